//! At the limit of mappings.

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::thread;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

use super::{allowed, taken};
use crate::{DeviceMemory, MapRequest, MemFile, Protection, Showing, Uffd, UserMap, bell};

const PAGE: usize = 4096;
/// Pages of a mapping.
const PAGES: u32 = 256;

/// The kernel's mappings of this process.
fn mappings() -> usize {
    std::fs::read("/proc/self/maps").expect("maps").iter().filter(|byte| **byte == b'\n').count()
}

/// Shows every page of a mapping where no two are neighbours, as far as it may; how many.
fn show_all(map: &UserMap, device: &DeviceMemory, insist: bool) -> u32 {
    let show =
        |page: u32| map.pages().show_device(page..page + 1, device, u64::from(page) * 2 * 4096, true, insist);
    (0..PAGES).take_while(|page| show(*page).expect("no error") == Showing::Shown).count() as u32
}

/// Takes mappings of the kernel until it has no more.
fn take_the_rest() {
    let len = allowed() * PAGE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let start =
        unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }.expect("addresses");
    for at in (0..len).step_by(2 * PAGE) {
        // SAFETY: a page of the mapping just made, which nobody knows.
        if unsafe { mprotect(start.wrapping_byte_add(at), PAGE, MprotectFlags::READ) }.is_err() {
            break;
        }
    }
    // SAFETY: as above.
    let more = unsafe { mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::PRIVATE) };
    assert!(more.is_err() || mappings() + 2 >= allowed(), "there are more: {}", mappings());
}

/// In a process of its own: nothing else works there.
#[test]
fn windows_leave_room_and_go_where_there_is_none() {
    const ASKED: &str = "EXTANT_LIMIT";
    if std::env::var_os(ASKED).is_none() {
        let program = std::env::current_exe().expect("this program");
        let name = "user_map::budget::tests::windows_leave_room_and_go_where_there_is_none";
        let mut command = std::process::Command::new(program);
        let output =
            command.args(["--exact", name, "--nocapture"]).env(ASKED, "1").output().expect("a program");
        let said = String::from_utf8_lossy(&output.stdout);
        said.lines().filter(|line| line.starts_with("skipped:")).for_each(|line| println!("{line}"));
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let uffd = match Uffd::open() {
        Ok(uffd) => Arc::new(uffd),
        Err(error) => {
            println!("skipped: no userfaultfd: {error}");
            return;
        }
    };
    let bell = Arc::new(bell::new().expect("a bell"));
    let reader = thread::spawn({
        let (uffd, bell) = (Arc::clone(&uffd), Arc::clone(&bell));
        move || {
            // Of moves: nobody touches the memory.
            let mut messages = Vec::new();
            while !bell::wait(&uffd, &bell, None).expect("wait") {
                uffd.read(&mut messages).expect("read");
            }
        }
    });
    let image = File::from(memfd_create("device", MemfdFlags::CLOEXEC).expect("a file"));
    let size = u64::from(2 * PAGES) * PAGE as u64;
    ftruncate(&image, size).expect("a size");
    let device = DeviceMemory::new(Arc::new(image), size).expect("memory");
    let file = MemFile::new("test", PAGE).expect("a memory file");
    file.resize(u64::from(PAGES) * PAGE as u64).expect("resize");
    let request = MapRequest {
        offset: 0,
        len: PAGES as usize * PAGE,
        protection: Protection::READ_WRITE,
        shared: true,
        may_write: true,
        sync: false,
        hint: 0,
    };
    let new = || UserMap::new(&uffd, &file, UserMap::new_id(), &request).expect("a mapping");
    let before = mappings();
    let many = allowed() / 512 + allowed() / 400;
    let maps: Vec<(UserMap, u32)> = (0..many)
        .map(|_| {
            let map = new();
            let shown = show_all(&map, &device, false);
            (map, shown)
        })
        .collect();
    let shown: Vec<u32> = maps.iter().map(|(_, shown)| *shown).collect();
    println!("{} mappings, windows {shown:?}", maps.len());
    // The first have what they want, then each has a few, then none.
    assert!(shown[0] == PAGES && shown.contains(&64) && shown[many - 1] == 0);
    assert!(taken() <= allowed() / 2 + many && mappings() - before <= taken() + 64, "{}", mappings());
    take_the_rest();
    assert_eq!(
        maps[many - 1].0.pages().show_device(9..10, &device, 0, true, true).expect("no error"),
        Showing::TooMany
    );
    for (map, shown) in &maps[..4] {
        assert_eq!(map.pages().windows(), *shown as usize);
        map.pages().hide_device(0..PAGES).expect("hidden");
        assert_eq!(map.pages().windows(), 0);
    }
    assert_eq!(show_all(&maps[many - 1].0, &device, true), PAGES);
    let gone: io::Result<()> = maps.iter().try_for_each(|(map, _)| map.pages().hide_device(0..PAGES));
    gone.expect("hidden");
    drop(maps);
    assert_eq!(taken(), 0);
    bell::ring(&bell);
    reader.join().expect("the reader");
}
