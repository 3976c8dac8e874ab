//! What happens while the program moves memory and the reader has yet to read of it; what of a mapping a device's window does not replace; and a
//! system without `/proc`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope, ScopedJoinHandle};

use rustix::fs::{MemfdFlags, memfd_create};

use super::moved::{load_meets, mremap, replace, reserve, unmap, word};
use super::{PAGE, Turn, is_fault, look, shared};
use crate::vma::FileId;
use crate::{DeviceMemory, MemFile, Message, Showing, Uffd, UserMap, UserPages, user_memory};

/// A descriptor that nobody reads but the test, when it wants to; a file of 8 pages, which are there.
struct Unread {
    uffd: Arc<Uffd>,
    file: Arc<MemFile>,
    _turn: Turn,
}

impl Unread {
    fn new() -> Option<Self> {
        let turn = Turn::alone();
        let uffd = match Uffd::open() {
            Ok(uffd) if uffd.handles_kernel_faults() => Arc::new(uffd),
            _ => {
                println!("skipped: no userfaultfd that serves faults in system calls");
                return None;
            }
        };
        let file = MemFile::new("unread", PAGE).expect("a memory file");
        file.resize(8 * PAGE as u64).expect("resize");
        file.page(0).expect("memory").mem().copy_from(0, &[4; PAGE]);
        Some(Self { uffd, file, _turn: turn })
    }

    fn map(&self, pages: usize) -> UserMap {
        UserMap::new(&self.uffd, &self.file, UserMap::new_id(), &shared(pages)).expect("a mapping")
    }

    fn shows_file(&self, at: usize) -> bool {
        let id = FileId::of(&rustix::fs::fstat(&self.file).expect("stat"));
        let vma = self.uffd.maps().expect("/proc").covering(at).expect("an answer");
        vma.is_some_and(|vma| vma.file == id)
    }

    /// Begins a move, which has happened when this returns, and whose call comes back when it was read of.
    fn begin_move<'s>(
        &self,
        s: &'s Scope<'s, '_>,
        map: &UserMap,
        pages: usize,
        to: usize,
    ) -> ScopedJoinHandle<'s, usize> {
        let from = map.as_ptr().addr();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let moving = s.spawn(move || mremap(from, pages, pages, flags, to));
        while !self.shows_file(to) {
            thread::yield_now();
        }
        moving
    }

    /// Reads, and shows what somebody waits for, until a thread is done.
    fn read_until<T>(&self, map: &UserMap, thread: &ScopedJoinHandle<'_, T>) {
        let mut messages = Vec::new();
        while !thread.is_finished() {
            self.uffd.read(&mut messages).expect("read");
            for message in messages.drain(..) {
                let Message::Fault { addr, .. } = message else { continue };
                if let Some(place) = user_memory::find(addr) {
                    map.pages().install(place.page..place.page + 1, false).expect("install");
                    map.pages().wake(place.page..place.page + 1);
                }
            }
            thread::yield_now();
        }
    }
}

/// Whether a page is visible.
fn is_present(at: usize) -> bool {
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
    pagemap.read_exact_at(&mut entry, (at / PAGE * 8) as u64).expect("read");
    u64::from_ne_bytes(entry) >> 63 == 1
}

/// Two mappings of the same bytes; one is being moved, and a fault at its new place is looked at before the reader has read of that. The other
/// one does not get it, and takes nothing away when it goes.
#[test]
fn nobody_adopts_what_another_mapping_moves() {
    let Some(rig) = Unread::new() else { return };
    let (first, second) = (rig.map(2), rig.map(2));
    let place = reserve(2);
    let before = thread::scope(|s| {
        let moving = rig.begin_move(s, &second, 2, place);
        UserPages::look_for(&rig.uffd, place).expect("look");
        let found = user_memory::find(place);
        drop(first);
        rig.read_until(&second, &moving);
        found
    });
    rig.uffd.catch_up();
    assert_eq!(before, None, "whose it is was not known yet");
    let id = second.pages().id();
    assert_eq!(user_memory::find(place + PAGE).map(|place| (place.map, place.page)), Some((id, 1)));
    assert!(rig.shows_file(place), "unmapped by who never had it");
    drop(second);
    assert!(!rig.shows_file(place), "left behind");
}

/// Who was found to be of nobody is looked for once more before it is refused: a mapping may have come meanwhile.
#[test]
fn what_a_mapping_has_by_now_is_not_refused() {
    let Some(rig) = Unread::new() else { return };
    let map = rig.map(1);
    let base = map.as_ptr().addr();
    super::super::kernel::refuse(&rig.uffd, base, base).expect("refuse");
    let looked = thread::scope(|s| {
        let looking = s.spawn(move || look(base));
        rig.read_until(&map, &looking);
        looking.join().expect("a look")
    });
    assert_eq!(looked.expect("served"), 4);
}

/// A page that moves while it is taken away is taken away where it is then.
#[test]
fn a_zap_waits_for_what_is_moved_and_not_read_of() {
    let Some(rig) = Unread::new() else { return };
    let map = rig.map(1);
    map.pages().install(0..1, false).expect("install");
    let place = reserve(1);
    let (there, left) = thread::scope(|s| {
        let moving = rig.begin_move(s, &map, 1, place);
        let there = is_present(place);
        let met = rig.uffd.met_moves.load(Ordering::Acquire);
        let pages = map.pages();
        let zapping = s.spawn(move || {
            pages.zap(0..1).expect("zap");
            is_present(place)
        });
        while !zapping.is_finished() && rig.uffd.met_moves.load(Ordering::Acquire) == met {
            thread::yield_now();
        }
        rig.read_until(&map, &moving);
        (there, zapping.join().expect("a zap"))
    });
    assert!(there && !left, "visible after the zap");
}

/// A mark that moves while it is healed stays on record until it is gone.
#[test]
fn a_mark_that_moves_is_not_forgotten() {
    let Some(rig) = Unread::new() else { return };
    let map = rig.map(1);
    map.pages().poison(0).expect("poison");
    let place = reserve(1);
    let (marked, healed, looked) = thread::scope(|s| {
        let moving = rig.begin_move(s, &map, 1, place);
        let healed = map.pages().try_heal(&(0..1));
        rig.read_until(&map, &moving);
        let marked = is_fault(&look(place));
        map.pages().heal(&(0..1));
        let looking = s.spawn(move || look(place));
        rig.read_until(&map, &looking);
        (marked, healed, looking.join().expect("a look"))
    });
    assert!(marked && !healed, "the mark went with the page");
    assert_eq!(looked.expect("no mark any more"), 4);
}

/// Without `/proc` an access whose owner cannot be found out is a signal (here EFAULT), and not a fault for ever.
#[test]
fn without_proc_nobodys_memory_is_refused() {
    let Some(rig) = super::rig_of(Turn::alone(), true, |uffd| uffd.set_maps(None)) else { return };
    rig.fill(0..1, 4);
    // With a page that is visible without the right to store, and without one.
    for visible in [false, true] {
        let map = rig.map(shared(1));
        let base = map.as_ptr().addr();
        let place = reserve(1);
        let stay = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        mremap(base, 1, 1, stay, place);
        rig.uffd.catch_up();
        if visible {
            // SAFETY: a registered page of the file, which is this test's.
            let shown = unsafe { rig.uffd.cont(base..base + PAGE, true) };
            assert_eq!(shown, crate::uffd::Outcome::Done);
        }
        // Not joined when it waits for ever.
        let looking = thread::spawn(move || {
            let zero = File::open("/dev/zero").expect("/dev/zero");
            let at = std::ptr::with_exposed_provenance_mut(base);
            // SAFETY: a page of this test's, to which no reference exists.
            let got = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zero), at, 1) };
            (got, std::io::Error::last_os_error().raw_os_error())
        });
        let mut faults = 0;
        while !looking.is_finished() {
            let Ok(seen) = rig.faults.try_recv() else {
                thread::yield_now();
                continue;
            };
            faults += 1;
            assert!(faults < 5, "asked again and again");
            UserPages::look_for(&rig.uffd, seen.addr).expect_err("no /proc");
        }
        assert_eq!(looking.join().expect("a look"), (-1, Some(super::EFAULT)));
        unmap(base, 1);
        drop(map);
    }
}

/// Memory that the program has put in the place of a part of the mapping stays when a window comes, and when one goes; what it unmapped stays
/// unmapped.
#[test]
fn windows_replace_nothing_of_somebody_elses() {
    let Some(rig) = super::rig_in(Turn::alone(), true) else { return };
    rig.fill(0..16, 4);
    let image = File::from(memfd_create("device", MemfdFlags::CLOEXEC).expect("a file"));
    image.write_all_at(&[7; 16 * PAGE], 0).expect("write");
    let device = DeviceMemory::new(Arc::new(image), 16 * PAGE as u64).expect("memory");
    for shown_before in [false, true] {
        let map = rig.map(shared(8));
        let base = map.as_ptr().addr();
        let show = || map.pages().show_device(0..8, &device, 0, true, false).expect("shown");
        let byte = |page: usize| word(base + page * PAGE).load(Ordering::Relaxed);
        if shown_before {
            assert_eq!(show(), Showing::Shown);
        }
        replace(base + 3 * PAGE, 2, 9);
        unmap(base + 6 * PAGE, 1);
        let there = |what: &str| {
            // Looked at only if it is that: else it would be a fault that nobody answers.
            let theirs = rig.uffd.maps().expect("/proc").covering(base + 3 * PAGE).expect("an answer");
            assert!(theirs.is_some_and(|vma| !vma.shared), "{what}");
            assert_eq!((byte(3), byte(4)), (9, 9), "{what}");
            let hole = rig.uffd.maps().expect("/proc").covering(base + 6 * PAGE).expect("an answer");
            assert_eq!(hole, None, "{what}");
        };
        if !shown_before {
            assert_eq!(show(), Showing::Shown);
            there("shown");
            assert_eq!((byte(0), byte(2), byte(5), byte(7)), (7, 7, 7, 7));
            assert_eq!(map.pages().windows(), 3);
        }
        map.pages().hide_device(0..8).expect("hidden");
        there("hidden");
        assert!(!user_memory::overlaps(base + 3 * PAGE, 2 * PAGE), "addresses that are somebody else's");
        assert_eq!(map.pages().windows(), 0);
        for page in [2, 5, 7] {
            assert_eq!(load_meets(&rig, &map, base + page * PAGE, page as u32), 4);
        }
        assert_eq!(show(), Showing::Shown);
        there("shown again");
        drop(map);
        there("dropped");
        unmap(base + 3 * PAGE, 2);
    }
}
