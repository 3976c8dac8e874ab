//! Collapse and insert where they are large, interrupted, out of space or refused.

use std::io;
use std::sync::Arc;

use extant::{Credentials, FallocateMode, Filesystem, InodeRef, OpenFile, OpenMode, Setup};
use extant_device::{BlockDevice, MemoryDevice};
use extant_testkit::env::{scratch, seed, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::{Rng, SimDevice};

use crate::mapping::{new_file, open, shared, userfaultfd};
use crate::support::open_rw;

const BLOCK: u64 = 1024;

/// A file of single blocks, each with its number in it, every second one a hole.
fn fragments(fs: &Arc<Filesystem>, extents: u64) -> InodeRef {
    let inode = new_file(fs, "file");
    let file = open(fs, &inode, false);
    for n in 0..extents {
        file.write_at((2 * n + 1) * BLOCK, &number(n)).unwrap();
    }
    fs.sync().unwrap();
    inode
}

fn number(n: u64) -> [u8; BLOCK as usize] {
    let mut block = [0xA5; BLOCK as usize];
    block[..8].copy_from_slice(&n.to_le_bytes());
    block
}

/// What [`fragments`] makes.
fn content(extents: u64) -> Vec<u8> {
    let mut all = vec![0; (2 * extents * BLOCK) as usize];
    for n in 0..extents {
        let at = ((2 * n + 1) * BLOCK) as usize;
        all[at..at + BLOCK as usize].copy_from_slice(&number(n));
    }
    all
}

fn all(fs: &Filesystem, inode: &InodeRef) -> Vec<u8> {
    let mut got = vec![0; inode.size() as usize];
    assert_eq!(fs.read_at(inode, 0, &mut got).unwrap(), got.len());
    got
}

fn find(fs: &Filesystem) -> InodeRef {
    fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap()
}

fn changed(mut bytes: Vec<u8>, mode: FallocateMode, at: u64, len: u64) -> Vec<u8> {
    let (at, len) = (at as usize, len as usize);
    if mode == FallocateMode::CollapseRange {
        bytes.drain(at..at + len);
    } else {
        let tail = bytes.split_off(at);
        bytes.resize(at + len, 0);
        bytes.extend(tail);
    }
    bytes
}

fn recovered(device: &Arc<SimDevice>) -> (Vec<u8>, Arc<SimDevice>) {
    let fs = Filesystem::open(Arc::clone(device) as _, Setup::default()).expect("recovery");
    let inode = find(&fs);
    let got = all(&fs, &inode);
    drop(inode);
    fs.unmount().expect("unmount");
    (got, Arc::clone(device))
}

fn assert_device_clean(device: &SimDevice) {
    let dir = scratch();
    let image = dir.join("image");
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
}

/// Any crash leaves the file as it was or as it is to be, however many nodes of its tree move.
#[test]
fn a_tree_moves_at_once() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let seed = seed();
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024 -J size=4");
    for (mode, at, len) in [
        (FallocateMode::CollapseRange, 31 * BLOCK, 500 * BLOCK),
        (FallocateMode::InsertRange, 31 * BLOCK, 9 * BLOCK),
    ] {
        let device = SimDevice::from_file(&image);
        device.set_recording(false);
        let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
        let inode = fragments(&fs, 900);
        let (old, new) = (content(900), changed(content(900), mode, at, len));
        device.set_recording(true);
        open(&fs, &inode, false).fallocate(mode, at, len, false).unwrap();
        assert!(all(&fs, &inode) == new);
        fs.fsync(&inode, false).unwrap();
        device.mark(1);
        let (mut states, mut moved) = (0, 0);
        device.crash_plan(seed).for_each_sketch(|sketch| {
            states += 1;
            let (got, left) = recovered(&SimDevice::from_content(sketch.content()));
            assert!(got == old || got == new, "{mode:?}: neither before nor after");
            assert!(!sketch.marks.contains(&1) || got == new, "{mode:?}: fsync had returned");
            moved += usize::from(got == new);
            if states % 16 == 0 {
                assert_device_clean(&left);
            }
        });
        println!("{mode:?}: {states} states, {moved} with the file moved");
        assert!(moved > 0 && moved < states);
        drop(inode);
        fs.unmount().unwrap();
        assert_device_clean(&device);
    }
}

/// A tree that no transaction can take moves in parts: the file is right at the end, the filesystem at any time.
#[test]
fn a_tree_too_large_for_a_transaction_moves_in_parts() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let seed = seed();
    let mut rng = Rng::new(seed);
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 64 << 20, "-t ext4 -b 1024 -J size=1");
    let device = SimDevice::from_file(&image);
    device.set_recording(false);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let extents = 24_000;
    let inode = fragments(&fs, extents);
    let mut want = content(extents);
    for (mode, at, len) in [
        (FallocateMode::CollapseRange, 11 * BLOCK, 70 * BLOCK),
        (FallocateMode::InsertRange, 8 * BLOCK, 33 * BLOCK),
    ] {
        want = changed(want, mode, at, len);
        device.set_recording(true);
        open(&fs, &inode, false).fallocate(mode, at, len, false).unwrap();
        assert!(all(&fs, &inode) == want, "{mode:?}");
        fs.fsync(&inode, false).unwrap();
        let mut states = 0;
        let plan = device.crash_plan(seed);
        plan.for_each_sketch(|sketch| {
            if rng.chance(1, 40) && states < 10 {
                states += 1;
                assert_device_clean(&recovered(&SimDevice::from_content(sketch.content())).1);
            }
        });
        println!("{mode:?}: {states} states");
        assert!(states > 0);
        device.set_recording(false);
    }
    drop(inode);
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// A range in many groups goes in one handle where the journal has the room, and what is behind it moves in the same: there is no
/// crash after which the range is a hole.
#[test]
fn a_range_in_many_groups_goes_at_once() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let seed = seed();
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 56 << 20, "-t ext4 -b 1024 -g 256 -N 1024 -J size=1");
    let device = SimDevice::from_file(&image);
    device.set_recording(false);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::with_options("commit=300").unwrap()).unwrap();
    let inode = new_file(&fs, "file");
    let file = open(&fs, &inode, false);
    let (size, len) = (35 << 20, 34 << 20);
    file.fallocate(FallocateMode::Allocate, 0, size, false).unwrap();
    fs.sync().unwrap();
    let before = inode.attr().blocks;
    device.set_recording(true);
    file.fallocate(FallocateMode::CollapseRange, BLOCK, len, false).unwrap();
    fs.fsync(&inode, false).unwrap();
    device.mark(1);
    let after = inode.attr().blocks;
    assert!(after < before / 25 && inode.size() == size - len);
    let (mut states, mut gone) = (0, 0);
    device.crash_plan(seed).for_each_sketch(|sketch| {
        states += 1;
        if states % 8 != 0 && !sketch.marks.contains(&1) {
            return;
        }
        let device = SimDevice::from_content(sketch.content());
        let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).expect("recovery");
        let (size_now, blocks) = (find(&fs).size(), find(&fs).attr().blocks);
        fs.unmount().expect("unmount");
        let done = (size_now, blocks) == (size - len, after);
        assert!(
            done || (size_now, blocks) == (size, before),
            "half: {blocks} of {before} blocks, {size_now} bytes"
        );
        gone += u32::from(done);
        if states % 128 == 0 {
            assert_device_clean(&device);
        }
    });
    println!("{states} states, in {gone} the range was gone");
    assert!(gone > 0 && gone < states / 8);
    drop((file, inode));
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// On a full disk an insert that has to split finds its block in what is held back, or changes nothing.
#[test]
fn a_full_disk() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for args in [
        "-t ext4 -b 1024 -m 0",
        "-t ext4 -b 1024 -m 0 -O inline_data",
        "-t ext4 -b 1024 -m 0 -O bigalloc -C 4096",
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, args);
        let fs = open_rw(&image);
        let inode = new_file(&fs, "file");
        let file = open(&fs, &inode, false);
        let mut want = vec![7; 400_000];
        file.write_at(0, &want).unwrap();
        file.fsync(false).unwrap();
        let filler = new_file(&fs, "filler");
        let filler = open(&fs, &filler, false);
        let mut end = 0;
        for piece in [100_000, 1024] {
            while filler.write_at(end, &vec![1; piece]).is_ok_and(|(n, _)| n == piece) {
                end += piece as u64;
            }
        }
        fs.sync().unwrap();
        let mut inserted = 0;
        for n in 0..60 {
            let at = n * 8192;
            match file.fallocate(FallocateMode::InsertRange, at, 4096, false) {
                Ok(()) => {
                    want = changed(want, FallocateMode::InsertRange, at, 4096);
                    inserted += 1;
                }
                Err(e) => assert_eq!(e.errno(), 28, "{args}: {e}"),
            }
            assert!(all(&fs, &inode) == want, "{args}: after insert {n}");
        }
        for n in (0..40).rev() {
            file.fallocate(FallocateMode::CollapseRange, n * 8192, 4096, false).unwrap();
            want = changed(want, FallocateMode::CollapseRange, n * 8192, 4096);
        }
        assert!(all(&fs, &inode) == want, "{args}");
        println!("{args}: {inserted} of 60 inserts");
        drop((file, filler, inode));
        fs.unmount().unwrap();
        assert_clean(&image);
    }
}

/// A page that a device may write to stays where it is.
#[test]
fn what_is_pinned_does_not_move() {
    need!(userfaultfd(), tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let fs = open_rw(&image);
    let inode = new_file(&fs, "file");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 40_960]).unwrap();
    let map = file.map(0, 40_960, &shared()).unwrap();
    let pin = map.pin(16_384..20_480).unwrap();
    for mode in [FallocateMode::CollapseRange, FallocateMode::InsertRange] {
        for at in [0, 8192, 16_384] {
            assert_eq!(file.fallocate(mode, at, 4096, false).unwrap_err().errno(), 16, "{mode:?} at {at}");
        }
        file.fallocate(mode, 20_480, 4096, false).unwrap();
    }
    drop(pin);
    file.fallocate(FallocateMode::CollapseRange, 0, 4096, false).unwrap();
    assert_eq!(inode.size(), 36_864);
    drop((map, file, inode));
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// A device that has to be sent its zeros.
#[derive(Debug)]
struct Plain(MemoryDevice);

impl BlockDevice for Plain {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, buf)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, len)
    }
}

/// Written zeros are blocks that count as written and hold zeros, where the device makes them.
#[test]
fn written_zeros() {
    need!(tools(&["mke2fs", "e2fsck", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024");
    let fs = open_rw(&image);
    let inode = new_file(&fs, "file");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 30_000]).unwrap();
    file.write_at(100_000, &[2; 3000]).unwrap();
    file.fallocate(FallocateMode::WriteZeroes, 5000, 150_000, false).unwrap();
    let got = all(&fs, &inode);
    assert_eq!(got.len(), 155_000);
    assert!(got[..5000].iter().all(|b| *b == 1) && got[5000..].iter().all(|b| *b == 0));
    drop((file, inode));
    fs.unmount().unwrap();
    assert_clean(&image);
    let listed = extant_testkit::oracle::debugfs(&image, &["ex -l /file"]);
    let unwritten: Vec<&str> = listed.lines().filter(|l| l.contains("Uninit")).collect();
    // Of the whole blocks none; those that the range covers in part are what they were: holes that were given blocks.
    assert!(unwritten.len() <= 1, "{listed}");
    let bytes = std::fs::read(&image).unwrap();
    let device = Arc::new(Plain(MemoryDevice::from_bytes(&bytes)));
    let fs = Filesystem::open(device, Setup::default()).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &find(&fs), mode, &Credentials::root()).unwrap();
    let refused = file.fallocate(FallocateMode::WriteZeroes, 0, 4096, false).unwrap_err();
    assert_eq!(refused.errno(), 95, "{refused}");
    drop(file);
    fs.unmount().unwrap();
}
