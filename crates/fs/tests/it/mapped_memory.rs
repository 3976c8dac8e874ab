//! The memory of mapped files: stores that are refused, what a device puts there, how many of them there are.

use std::os::unix::fs::FileExt;

use extant::{Credentials, FallocateMode, Mapping, OpenFile, SyncMode};
use extant_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use extant_sync::thread;
use extant_testkit::env::scratch;
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::mapping::{new_file, open, shared, userfaultfd};
use crate::support::open_rw;

const PAGE: usize = 4096;

/// A store that finds no space is SIGBUS for its thread, as often as it tries, and goes through once there is some; who loads from the
/// same page sees it all the time.
#[test]
fn a_store_without_space_hides_nothing() {
    need!(userfaultfd());
    extant_sys::bus::count().unwrap();
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 4 << 20, "-t ext4 -b 1024");
    let fs = open_rw(&image);
    let file = open(&fs, &new_file(&fs, "f"), false);
    file.set_len(8 * PAGE as u64).unwrap();
    let full = open(&fs, &new_file(&fs, "full"), false);
    let map = file.map(0, 8 * PAGE, &shared()).unwrap();
    fill(&full);
    let (stop, looked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = extant_sys::bus::counted().count;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!([0, 7].contains(&map.atomic_u8(2 * PAGE + 9).load(Ordering::Relaxed)));
                looked.fetch_add(1, Ordering::Relaxed);
            }
        });
        while looked.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let storing = scope.spawn(|| {
            map.atomic_u8(2 * PAGE + 9).store(7, Ordering::Relaxed);
            extant_sys::thread_number()
        });
        // Several refusals, with loads between them.
        while extant_sys::bus::counted().count < before + 3 {
            thread::yield_now();
        }
        let seen = looked.load(Ordering::Relaxed);
        while looked.load(Ordering::Relaxed) < seen + 1000 {
            thread::yield_now();
        }
        full.set_len(0).unwrap();
        fs.sync().unwrap();
        let thread = storing.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        let got = extant_sys::bus::counted();
        assert_eq!((got.addr, got.thread), (map.as_ptr().addr() + 2 * PAGE + 9, thread));
    });
    assert_eq!(map.atomic_u8(2 * PAGE + 9).load(Ordering::Relaxed), 7);
    drop((map, file, full));
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// Takes all space.
fn fill(file: &OpenFile) {
    let mut at = 0;
    for step in [256 << 10, 16 << 10, 1 << 10] {
        while file.fallocate(FallocateMode::Allocate, at, step, false).is_ok() {
            at += step;
        }
    }
}

/// The memory file of a mapping, as a device has it that was told to write there: no page table knows what it does.
fn behind(map: &Mapping) -> std::fs::File {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let is_memory =
            std::fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:extant"));
        // Of all tests' files the one of that size.
        if is_memory && std::fs::metadata(&path).is_ok_and(|m| m.len() == map.len() as u64) {
            found.push(path);
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    std::fs::OpenOptions::new().read(true).write(true).open(&found[0]).unwrap()
}

/// What came after the last fsync and without a pin is on the disk after a clean unmount, a freeze, a sync, while the mapping stays.
#[test]
fn what_a_device_put_there_is_found_before_all_is_clean() {
    need!(userfaultfd());
    // Of a size that no other test has.
    const PAGES: usize = 37;
    for way in ["unmount", "freeze", "sync", "unmap"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, "-t ext4 -b 1024");
        let fs = open_rw(&image);
        let file = open(&fs, &new_file(&fs, "f"), false);
        file.set_len((PAGES * PAGE) as u64).unwrap();
        let map = file.map(0, PAGES * PAGE, &shared()).unwrap();
        map.write_at(0, &[1; PAGES * PAGE]).unwrap();
        map.sync(0..PAGES * PAGE, SyncMode::Sync).unwrap();
        behind(&map).write_all_at(&[9; 3000], 5 * PAGE as u64 + 100).unwrap();
        let seen = dir.join("seen");
        match way {
            "unmount" => fs.unmount().unwrap(),
            "freeze" => fs.freeze(&Credentials::root()).unwrap(),
            "sync" => fs.sync().unwrap(),
            _ => {
                drop(map);
                file.fsync(false).unwrap();
            }
        }
        std::fs::copy(&image, &seen).unwrap();
        let mount = KernelMount::rw(&seen);
        let got = mount.read("f");
        mount.unmount();
        let mut want = vec![1; PAGES * PAGE];
        want[5 * PAGE + 100..][..3000].fill(9);
        assert!(got == want, "after {way}");
        drop(file);
    }
}

/// In a process of its own, whose limit this is: more files are mapped, one after another, than it may have descriptors. What was
/// stored stays, also of those that lost their memory file and are mapped again.
#[test]
fn many_files_one_after_another() {
    const ASKED: &str = "EXTANT_MANY_FILES";
    need!(userfaultfd());
    if std::env::var_os(ASKED).is_none() {
        let program = std::env::current_exe().unwrap();
        let name = "mapped_memory::many_files_one_after_another";
        let mut command = std::process::Command::new(program);
        command.args(["--exact", name, "--nocapture"]).env(ASKED, "1");
        let output = extant_testkit::oracle::output(&mut command).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    const FILES: usize = 3000;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 64 << 20, "-t ext4 -b 1024 -N 4096");
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..before }).unwrap();
    let fs = open_rw(&image);
    let inodes: Vec<_> = (0..FILES).map(|n| new_file(&fs, &format!("f{n}"))).collect();
    let byte = |n: usize| (n % 250) as u8 + 1;
    for (n, inode) in inodes.iter().enumerate() {
        let file = open(&fs, inode, false);
        file.set_len(2 * PAGE as u64).unwrap();
        let map = file.map(0, 2 * PAGE, &shared()).unwrap();
        map.write_at(10, &[byte(n); 3000]).unwrap();
        if n % 3 == 0 {
            map.sync(0..PAGE, SyncMode::Sync).unwrap();
        }
    }
    let memory = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().map(|e| std::fs::read_link(e.unwrap().path()));
        all.filter(|to| to.as_ref().is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:extant"))).count()
    };
    assert!(memory() <= 40, "{} memory files", memory());
    for (n, inode) in inodes.iter().enumerate() {
        let file = open(&fs, inode, false);
        let mut got = [0; 3020];
        if n % 2 == 0 {
            let map = file.map(0, 2 * PAGE, &shared()).unwrap();
            map.read_at(0, &mut got).unwrap();
            map.write_at(PAGE + 5, &[byte(n)]).unwrap();
        } else {
            assert_eq!(file.read_at(0, &mut got).unwrap(), got.len());
        }
        assert!(got[..10].iter().all(|b| *b == 0) && got[10..3010].iter().all(|b| *b == byte(n)), "file {n}");
        assert!(got[3010..].iter().all(|b| *b == 0), "file {n}");
    }
    // With as many mappings at once as there are descriptors, those that are only kept go.
    let mut maps = Vec::new();
    let refused = loop {
        let file = open(&fs, &inodes[maps.len()], false);
        match file.map(0, 2 * PAGE, &shared()) {
            Ok(map) => maps.push(map),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.errno(), 24, "{refused}");
    assert!(maps.len() > 200, "{} mappings at once", maps.len());
    drop(maps);
    drop(inodes);
    fs.unmount().unwrap();
    drop(fs);
    setrlimit(Resource::Nofile, before).unwrap();
    assert_clean(&image);
    let mount = KernelMount::ro(&image);
    for n in 0..FILES {
        let got = mount.read(&format!("f{n}"));
        assert!(got[10..3010].iter().all(|b| *b == byte(n)), "file {n} on the kernel");
        assert_eq!(got[PAGE + 5], if n % 2 == 0 { byte(n) } else { 0 }, "file {n} on the kernel");
    }
    mount.unmount();
}
