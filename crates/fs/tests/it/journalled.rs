//! Data through the journal: `data=journal`, the flag `j`; and maps of the other kind.

use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, InodeFlags, InodeRef, NewInode, SetAttr, Setup, WriteFlags,
};
use extant_device::OpenOptions;
use extant_testkit::env::{kernel_mounts, scratch, seed, tools};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, debugfs_cat, mke2fs, tune2fs};
use extant_testkit::rng::{Rng, pattern};
use extant_testkit::script::{Executor, Mix, random};
use extant_testkit::sim::SimDevice;
use extant_testkit::tree::Tree;

use crate::support::{LibExecutor, open_rw, open_with, tree_of};

fn cred() -> Credentials {
    Credentials::root()
}

fn write(fs: &Filesystem, file: &InodeRef, at: u64, bytes: &[u8]) {
    let (n, _) = fs.write_at(file, at, bytes, WriteFlags::default(), &cred()).unwrap();
    assert_eq!(n, bytes.len());
}

fn content(fs: &Filesystem, name: &[u8]) -> Vec<u8> {
    let file = fs.lookup(&fs.root().unwrap(), name, &cred()).unwrap();
    let mut bytes = vec![0; file.size() as usize];
    let n = fs.read_at(&file, 0, &mut bytes).unwrap();
    assert_eq!(n, bytes.len());
    bytes
}

fn mount(device: &Arc<SimDevice>, options: &str) -> Arc<Filesystem> {
    Filesystem::open(Arc::clone(device) as _, Setup::with_options(options).unwrap()).unwrap()
}

/// Random work with a cache that is too small for it, so that what is in the log only is read back.
#[test]
fn random_work_with_a_small_cache() {
    need!(kernel_mounts());
    let seed = seed();
    println!("seed={seed}");
    for (round, args) in
        ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext3", "-t ext4 -O bigalloc -C 16384 -b 4096"]
            .into_iter()
            .enumerate()
    {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 48 << 20, args);
        let fs = open_with(&image, "data=journal,cache_size=4m");
        let mut ours = LibExecutor::new(Arc::clone(&fs));
        let mut rng = Rng::new(seed).fork(round as u64);
        for op in
            random(&mut rng, 250, &Mix { reach: 2 << 20, longest: 200 << 10, shift: 4096, ..Mix::default() })
        {
            let _ = ours.apply(&op);
        }
        drop(ours);
        let before = tree_of(&fs);
        fs.unmount().unwrap();
        assert_clean(&image);
        let mount = KernelMount::ro(&image);
        before.assert_equal(&Tree::read(mount.path(), false).unwrap(), args);
        mount.unmount();
    }
}

/// One file, written over in place: after a crash it is as after some number of whole writes, all that were synced among
/// them. Returns how many of the states looked at are not like that.
fn torn_states(options: &str, mkfs: &str, seed: u64) -> (usize, usize) {
    const SIZE: usize = 96 << 10;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 24 << 20, mkfs);
    let device = SimDevice::from_file(&image);
    let fs = mount(&device, options);
    let root = fs.root().unwrap();
    let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &cred()).unwrap();
    write(&fs, &file, 0, &pattern(0, 0, SIZE));
    fs.fsync(&file, false).unwrap();
    device.restart_log();
    let mut rng = Rng::new(seed);
    let mut history = vec![content(&fs, b"f")];
    for n in 1..=10u64 {
        let at = rng.below(SIZE as u64 - 30_000);
        let len = 1 + rng.below(30_000) as usize;
        write(&fs, &file, at, &pattern(n, 0, len));
        history.push(content(&fs, b"f"));
        if rng.chance(1, 3) {
            fs.fsync(&file, false).unwrap();
            device.mark(n);
        }
    }
    fs.sync().unwrap();
    drop((file, root));
    let plan = device.crash_plan(seed).subsets(4);
    let every = plan.len().div_ceil(80);
    let (mut looked, mut bad, mut number) = (0, 0, 0);
    plan.for_each(|state| {
        number += 1;
        if number % every != 0 {
            return;
        }
        looked += 1;
        let synced = state.marks.iter().max().copied().unwrap_or(0) as usize;
        let device = SimDevice::from_content(state.content);
        let fs = mount(&device, options);
        let found = content(&fs, b"f");
        fs.unmount().unwrap();
        bad += usize::from(!history[synced..].contains(&found));
    });
    fs.unmount().unwrap();
    (looked, bad)
}

#[test]
fn a_crash_finds_whole_writes() {
    need!(tools(&["mke2fs"]));
    let seed = seed();
    for mkfs in ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext3 -b 1024"] {
        let (looked, bad) = torn_states("data=journal", mkfs, seed);
        println!("seed={seed}, {mkfs}: {looked} states, {bad} torn");
        assert!(
            looked > 10 && bad == 0,
            "{mkfs}: {bad} of {looked} states hold a part of a write, seed={seed}"
        );
    }
    // The test can fail: without the journal there are such states.
    let torn =
        (0..8).map(|n| torn_states("", "-t ext4 -b 4096", seed.wrapping_add(n)).1).find(|bad| *bad > 0);
    println!("ordered: {torn:?} torn");
    assert!(torn.is_some(), "no state was torn without journalled data");
}

#[test]
fn the_superblock_can_ask_for_it() {
    need!(tools(&["mke2fs", "tune2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4");
    tune2fs(&image, "-o journal_data");
    let fs = open_rw(&image);
    assert_eq!(fs.options().data, extant::DataMode::Journal);
    let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred()).unwrap();
    write(&fs, &file, 0, &[7; 50_000]);
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&image);
    assert!(debugfs_cat(&image, "f") == [7; 50_000]);
}

/// The journal's magic at the start of a block, through the log and back.
#[test]
fn blocks_that_look_like_the_journals() {
    need!(kernel_mounts());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let device = SimDevice::from_file(&image);
    let fs = mount(&device, "data=journal");
    let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred()).unwrap();
    let mut bytes = pattern(3, 0, 5 * 4096);
    bytes[4096..4100].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
    bytes[3 * 4096..3 * 4096 + 4].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
    write(&fs, &file, 0, &bytes);
    fs.fsync(&file, false).unwrap();
    // As a crash leaves it: the kernel replays our log.
    device.content().to_file(&image).unwrap();
    let mount = KernelMount::rw(&image);
    assert!(mount.read("f") == bytes, "the kernel reads something else");
    mount.unmount();
    assert_clean(&image);
    drop(file);
    fs.unmount().unwrap();
}

/// Freed blocks of journalled files are not brought back over what was written there since.
#[test]
fn freed_blocks_stay_freed() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024");
    let device = SimDevice::from_file(&image);
    let fs = mount(&device, "");
    let root = fs.root().unwrap();
    let flagged = fs.mknod(&root, b"j", &NewInode::file(0o644), &cred()).unwrap();
    fs.set_flags(&flagged, flagged.attr().flags | InodeFlags::JOURNAL_DATA, &cred()).unwrap();
    for n in 0..6 {
        // Nearly all of the space, so that the blocks are used again.
        write(&fs, &flagged, 0, &pattern(n, 0, 5 << 20));
        fs.fsync(&flagged, false).unwrap();
        fs.set_attr(&flagged, &SetAttr { size: Some(0), ..SetAttr::default() }, &cred()).unwrap();
        fs.fsync(&flagged, false).unwrap();
        let plain = fs.mknod(&root, b"p", &NewInode::file(0o644), &cred()).unwrap();
        let bytes = pattern(100 + n, 0, 5 << 20);
        write(&fs, &plain, 0, &bytes);
        fs.fsync(&plain, false).unwrap();
        let crashed = mount(&SimDevice::from_content(device.content()), "");
        assert!(content(&crashed, b"p") == bytes, "round {n}: older blocks came back");
        crashed.unmount().unwrap();
        drop(plain);
        fs.unlink(&root, b"p", &cred()).unwrap();
    }
    drop((flagged, root));
    fs.unmount().unwrap();
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
}

#[test]
fn the_flag_is_set_and_cleared() {
    need!(kernel_mounts());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "cache_size=4m");
    let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred()).unwrap();
    let mut expected = vec![0; 200_000];
    for round in 0..8u64 {
        let on = round % 2 == 0;
        let mut flags = file.attr().flags;
        flags.set(InodeFlags::JOURNAL_DATA, on);
        fs.set_flags(&file, flags, &cred()).unwrap();
        let at = 1000 * round as usize;
        let bytes = pattern(round, 0, 60_000);
        write(&fs, &file, at as u64, &bytes);
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
        fs.fallocate(&file, FallocateMode::PunchHole, 100_000, 30_000, true, &cred()).unwrap();
        write(&fs, &file, 130_000 + round * 100, &bytes);
        // Direct I/O is as good as any other.
        let mut direct = vec![0; 8192];
        let n = fs.read_direct(&file, 131_072, &mut direct).unwrap();
        fs.write_direct(&file, 131_072, &direct[..n], WriteFlags::default(), &cred()).unwrap();
        expected[130_000 + at / 10..130_000 + at / 10 + bytes.len()].copy_from_slice(&bytes);
        let found = content(&fs, b"f");
        assert!(found == expected[..found.len()], "round {round}");
    }
    let nobody = Credentials::user(5, 5, &[]);
    let flags = file.attr().flags ^ InodeFlags::JOURNAL_DATA;
    assert!(fs.set_flags(&file, flags, &nobody).is_err());
    let size = file.size() as usize;
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&image);
    let mount = KernelMount::ro(&image);
    assert!(mount.read("f") == expected[..size], "the kernel reads something else");
    mount.unmount();
}

#[test]
fn what_excludes_it() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext2");
    let open = |options: &str| {
        let device = OpenOptions::new().write(true).open(&image).unwrap();
        Filesystem::open(Arc::new(device), Setup::with_options(options).unwrap()).map(drop)
    };
    assert!(open("data=journal").unwrap_err().to_string().contains("journal"));
    open("").unwrap();
    mke2fs(&image, 16 << 20, "-t ext4");
    assert!(open("data=journal,delalloc").is_err());
    open("data=journal,nodelalloc").unwrap();
}

/// Extents to indirect blocks and back, by the flag `e`.
#[test]
fn maps_change_their_kind() {
    need!(kernel_mounts());
    for args in ["-t ext4 -b 4096 -O ^64bit", "-t ext4 -b 1024"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, args);
        let fs = open_rw(&image);
        let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred()).unwrap();
        for n in 0..40u64 {
            write(&fs, &file, n * 70_000, &pattern(n, 0, 30_000));
        }
        let expected = content(&fs, b"f");
        let sectors = |file: &InodeRef| file.attr().blocks;
        fs.fsync(&file, false).unwrap();
        let before = sectors(&file);
        for extents in [false, true, false] {
            let mut flags = file.attr().flags;
            flags.set(InodeFlags::EXTENTS, extents);
            fs.set_flags(&file, flags, &cred()).unwrap();
            assert_eq!(file.attr().flags.contains(InodeFlags::EXTENTS), extents);
            assert!(content(&fs, b"f") == expected, "{args}: extents {extents}");
            write(&fs, &file, 5, &expected[5..100]);
            if extents {
                assert_eq!(sectors(&file), before, "{args}");
            }
        }
        fs.fallocate(&file, FallocateMode::PunchHole, 0, 4096, true, &cred()).unwrap();
        drop(file);
        fs.unmount().unwrap();
        assert_clean(&image);
        let mount = KernelMount::ro(&image);
        assert!(mount.read("f")[4096..] == expected[4096..], "{args}");
        mount.unmount();
    }
}

/// What indirect blocks cannot have is refused, and nothing is changed.
#[test]
fn maps_that_cannot_change_their_kind() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for (args, size) in [
        ("-t ext4 -b 1024", 1_u64 << 41),
        ("-t ext4 -O bigalloc -b 1024 -C 4096", 5000),
        ("-t ext4 -O bigalloc -b 4096 -C 4096", 5000),
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, args);
        let fs = open_rw(&image);
        let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred()).unwrap();
        write(&fs, &file, 0, &[7; 5000]);
        fs.set_attr(&file, &SetAttr { size: Some(size), ..SetAttr::default() }, &cred()).unwrap();
        let flags = file.attr().flags;
        let refused = fs.set_flags(&file, flags.difference(InodeFlags::EXTENTS), &cred());
        assert!(matches!(refused, Err(Error::NotSupported(_))), "{args}: {refused:?}");
        assert_eq!(file.attr().flags, flags);
        drop(file);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}
