//! Blocks that mappings showed and that their file has lost, on a disk without much space: who needs them gets them.

use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, Filesystem, InodeFlags, InodeRef, MountOptions, MoveRange, Setup, SyncMode,
};
use extant_device::OpenOptions;
use extant_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use extant_sync::thread;
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};

use crate::dax::{alone, nobody_uses_libaio};
use crate::mapping::{new_file, open, shared, userfaultfd};
use crate::support::open_with;

const PAGE: usize = 4096;
const LEN: usize = 256 * PAGE;

/// A range that is shown, written and punched, again and again, takes more blocks than there are, beside a thread that always runs: so it
/// is seen that no transfer is under way only after a while, and that is waited for.
#[test]
fn a_full_disk_waits_for_blocks_that_are_held() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("shown::a_full_disk_waits_for_blocks_that_are_held") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -J size=4");
    let fs = open_with(&image, "dax=always");
    let file = open(&fs, &new_file(&fs, "f"), false);
    let direct = open(&fs, file.inode(), true);
    file.set_len(LEN as u64).unwrap();
    let map = file.map(0, LEN, &shared()).unwrap();
    let disk = fs.statfs().blocks as usize * PAGE;
    let stop = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..2 * disk / LEN {
                let byte = [round as u8 | 1; LEN];
                match round % 4 {
                    // Whoever finds no space: a write may be cut short there, and goes on.
                    0 | 1 => {
                        let file = if round % 4 == 0 { &file } else { &direct };
                        let mut done = 0;
                        while done < LEN {
                            done += file.write_at(done as u64, &byte[done..]).expect("a write").0;
                        }
                    }
                    2 => map.write_at(0, &byte).expect("stores"),
                    _ => {
                        file.fallocate(FallocateMode::ZeroRange, 0, LEN as u64, false).expect("a zero range");
                        map.write_at(0, &byte).expect("stores");
                    }
                }
                let mut got = vec![0; LEN];
                map.read_at(0, &mut got).expect("loads");
                assert!(got == byte, "round {round}");
                file.fallocate(FallocateMode::PunchHole, 0, LEN as u64, true).expect("a punch");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        ended
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
    map.sync(0..LEN, SyncMode::Sync).unwrap();
    drop((map, file, direct));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// The blocks of a file that mappings have shown go to no other file while somebody is in a system call that may have told a device to write
/// there, though the file is not in DAX mode any more.
#[test]
fn shown_blocks_are_not_moved_to_another_file() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("shown::shown_blocks_are_not_moved_to_another_file") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -J size=4");
    let fs = open_with(&image, "");
    let flip = |inode: &InodeRef| {
        fs.set_flags(inode, inode.attr().flags ^ InodeFlags::DAX, &Credentials::root()).expect("a flip");
    };
    for shown_is_donor in [false, true] {
        let new = |name: &str| {
            let file = open(&fs, &new_file(&fs, &format!("{name}{shown_is_donor}")), false);
            file.write_at(0, &[1; 4 * PAGE]).unwrap();
            file
        };
        let (shown, other) = (new("shown"), new("other"));
        flip(shown.inode());
        let map = shown.map(0, 4 * PAGE, &shared()).unwrap();
        map.write_at(PAGE, &[2]).unwrap();
        flip(shown.inode());
        let (orig, donor) = if shown_is_donor { (&other, &shown) } else { (&shown, &other) };
        let move_all = || orig.move_extents(donor, MoveRange { orig_start: 0, donor_start: 0, len: 4 });
        let (mut from, mut to) = std::io::pipe().unwrap();
        let reading = thread::spawn(move || std::io::Read::read(&mut from, &mut [0]).unwrap());
        assert_eq!(move_all().expect_err("a reader").errno(), 16);
        std::io::Write::write_all(&mut to, &[1]).unwrap();
        reading.join().unwrap();
        // Threads of the filesystem that have just done something run for a moment.
        let moved = loop {
            match move_all() {
                Err(error) if error.errno() == 16 => thread::yield_now(),
                moved => break moved,
            }
        };
        assert_eq!(moved.expect("nobody is under way"), 4);
        let mut got = vec![0; 4 * PAGE];
        orig.read_at(0, &mut got).unwrap();
        let want = if shown_is_donor { 1 } else { 2 };
        assert!(got[PAGE] == want && got[PAGE + 1] == 1);
        drop(map);
    }
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// An inode that nobody uses is forgotten, and read anew does not know what mappings showed; but that is remembered, while somebody is in a
/// system call that may have told a device to write there.
#[test]
fn that_blocks_were_shown_outlives_the_inode_in_memory() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("shown::that_blocks_were_shown_outlives_the_inode_in_memory") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096 -J size=4");
    let device = Arc::new(OpenOptions::new().write(true).open(&image).unwrap());
    let options = MountOptions::parse("dax=always").unwrap();
    let fs = Filesystem::open(device, Setup { options, inode_capacity: 1, ..Setup::default() }).unwrap();
    let root = Credentials::root();
    let dir = fs.root().unwrap();
    let shown = |name: &str, pages: usize| {
        let file = open(&fs, &new_file(&fs, name), false);
        file.write_at(0, &vec![1; pages * PAGE]).unwrap();
        let map = file.map(0, pages * PAGE, &shared()).unwrap();
        map.write_at(0, &[2]).unwrap();
    };
    for unlinked in [false, true] {
        let (mut from, mut to) = std::io::pipe().unwrap();
        let reading = thread::spawn(move || std::io::Read::read(&mut from, &mut [0]).unwrap());
        let name = format!("f{unlinked}");
        shown(&name, 64);
        // So many lose their mappings after it that its memory goes, and so many come that it is not kept.
        for n in 0..40 {
            shown(&format!("m{unlinked}{n}"), 1);
        }
        fs.sync().unwrap();
        for n in 0..1500 {
            drop(new_file(&fs, &format!("n{unlinked}{n}")));
        }
        let inode = fs.lookup(&dir, name.as_bytes(), &root).unwrap();
        if unlinked {
            drop(inode);
            fs.unlink(&dir, name.as_bytes(), &root).unwrap();
        } else {
            let file = open(&fs, &inode, false);
            file.fallocate(FallocateMode::PunchHole, 0, 64 * PAGE as u64, true).unwrap();
        }
        fs.sync().unwrap();
        assert_eq!(fs.release_shown_blocks(), 64 * PAGE as u64, "unlinked: {unlinked}");
        std::io::Write::write_all(&mut to, &[1]).unwrap();
        reading.join().unwrap();
        // Threads of the filesystem that have just done something run for a moment.
        while fs.release_shown_blocks() > 0 {
            thread::yield_now();
        }
    }
    drop(dir);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// Stores that wait for blocks which are held keep none of the threads that answer faults: another store, which needs no space, is answered
/// meanwhile.
#[test]
fn stores_that_wait_for_space_hold_up_no_other() {
    const HUNGRY: usize = 6;
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("shown::stores_that_wait_for_space_hold_up_no_other") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -J size=4");
    let fs = open_with(&image, "dax=always");
    let new = |name: &str, written: usize, len: usize| {
        let file = open(&fs, &new_file(&fs, name), false);
        file.write_at(0, &vec![1; written]).unwrap();
        file.set_len(len as u64).unwrap();
        let map = file.map(0, len, &shared()).unwrap();
        (file, map)
    };
    let (hungry, hungry_map) = new("hungry", 0, HUNGRY * PAGE);
    let (written, written_map) = new("written", PAGE, PAGE);
    let (shown, shown_map) = new("shown", 64 * PAGE, 64 * PAGE);
    shown_map.write_at(0, &[2; 64 * PAGE]).unwrap();
    let eater = open(&fs, &new_file(&fs, "eater"), false);
    let mut at = 0;
    while eater.write_at(at, &[0xEE; PAGE]).is_ok() {
        at += PAGE as u64;
    }
    let (mut from, mut to) = std::io::pipe().unwrap();
    let reading = thread::spawn(move || std::io::Read::read(&mut from, &mut [0]).unwrap());
    shown.fallocate(FallocateMode::PunchHole, 0, 64 * PAGE as u64, true).unwrap();
    let finished = AtomicUsize::new(0);
    let threads = [const { AtomicUsize::new(0) }; HUNGRY];
    let in_a_fault = |thread: usize| {
        let path = format!("/proc/self/task/{thread}/syscall");
        std::fs::read_to_string(path).is_ok_and(|said| said.starts_with("-1 "))
    };
    thread::scope(|scope| {
        for (n, thread) in threads.iter().enumerate() {
            let (map, finished) = (&hungry_map, &finished);
            scope.spawn(move || {
                thread.store(extant_sys::thread_number() as usize, Ordering::Relaxed);
                map.write_at(n * PAGE, &[3]).unwrap();
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        while !threads.iter().all(|thread| in_a_fault(thread.load(Ordering::Relaxed))) {
            thread::yield_now();
        }
        written_map.write_at(0, &[4]).unwrap();
        let before = finished.load(Ordering::Relaxed);
        std::io::Write::write_all(&mut to, &[1]).unwrap();
        assert_eq!(before, 0, "it waited for those who wait for space");
    });
    reading.join().unwrap();
    let mut got = vec![0; HUNGRY * PAGE];
    hungry.read_at(0, &mut got).unwrap();
    assert!(got.chunks(PAGE).all(|page| page[0] == 3 && page[1..].iter().all(|byte| *byte == 0)));
    drop((hungry, hungry_map, written_map, shown, shown_map, eater, written));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}
