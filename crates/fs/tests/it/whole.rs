//! What is refused, or meets a failing device, leaves everything as it was and the filesystem writable.

use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, InodeRef, NewInode, SetAttr, Setup, WriteFlags, XattrSet,
};
use extant_format::superblock::State;
use extant_testkit::SimDevice;
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::sim::{Failpoint, Kind};

use crate::support::{names, open_with};

/// A mounted image on a device that can fail.
fn mounted(args: &str, options: &str) -> (Arc<SimDevice>, Arc<Filesystem>) {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, args);
    let device = SimDevice::from_file(&image);
    device.set_recording(false);
    let fs = remounted(&device, options);
    (device, fs)
}

fn remounted(device: &Arc<SimDevice>, options: &str) -> Arc<Filesystem> {
    Filesystem::open(Arc::clone(device) as _, Setup::with_options(options).unwrap()).unwrap()
}

fn assert_device_clean(device: &SimDevice) {
    let dir = scratch();
    let image = dir.join("image");
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
}

fn file(fs: &Filesystem, name: &[u8], bytes: &[u8]) -> InodeRef {
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&inode, 0, bytes, WriteFlags::default(), &cred).unwrap();
    fs.sync().unwrap();
    inode
}

#[test]
fn a_directory_at_its_limit_refuses_before_it_changes() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for (args, options) in [
        ("-t ext4 -b 1024 -O inline_data", "max_dir_size_kb=1"),
        ("-t ext4 -b 1024 -O inline_data,^dir_index", "max_dir_size_kb=1"),
        ("-t ext4 -b 1024", "max_dir_size_kb=1"),
        ("-t ext4 -b 1024 -O ^dir_index", "max_dir_size_kb=2"),
    ] {
        let (device, fs) = mounted(args, options);
        let cred = Credentials::root();
        let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &cred).unwrap();
        let mut made = 0_u32;
        // The last name is long: an inline directory that becomes a block has no room for it there.
        let refused = loop {
            let name = format!("{made:03}{}", "x".repeat(if made % 4 == 3 { 250 } else { 5 }));
            match fs.mknod(&dir, name.as_bytes(), &NewInode::file(0o644), &cred) {
                Ok(_) => made += 1,
                Err(e) => break e,
            }
            assert!(made < 200, "{args}: no limit");
        };
        assert!(matches!(refused, Error::NoSpace), "{args}: {refused}");
        assert_eq!(names(&fs, &dir).len(), made as usize);
        fs.mkdir(&fs.root().unwrap(), b"elsewhere", 0o755, &cred).expect("the filesystem is writable");
        fs.unmount().unwrap();
        assert_device_clean(&device);
    }
}

/// The inline directory whose next name fits neither into the inode nor beside the others in a block.
#[test]
fn an_inline_directory_is_not_converted_for_a_name_that_is_refused() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let (device, fs) = mounted("-t ext4 -b 1024 -I 1024 -O inline_data", "max_dir_size_kb=1");
    let cred = Credentials::root();
    let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &cred).unwrap();
    for n in 0..3 {
        let name = format!("{n}{}", "x".repeat(249));
        fs.mknod(&dir, name.as_bytes(), &NewInode::file(0o644), &cred).unwrap();
    }
    let before = (dir.attr().size, dir.attr().flags);
    let refused = fs.mknod(&dir, &[b'y'; 255], &NewInode::file(0o644), &cred).expect_err("full");
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert_eq!((dir.attr().size, dir.attr().flags), before);
    fs.mkdir(&fs.root().unwrap(), b"elsewhere", 0o755, &cred).expect("the filesystem is writable");
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// An access control list of so many users, as programs write it.
fn acl(users: u32) -> Vec<u8> {
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    bytes.extend(entry(1, 7, u32::MAX));
    (0..users).for_each(|n| bytes.extend(entry(2, 5, 1000 + n)));
    for tag in [4, 0x10, 0x20] {
        bytes.extend(entry(tag, 5, u32::MAX));
    }
    bytes
}

/// A directory inherits its parent's default list twice, as its own default and for access: both may not fit where one did.
#[test]
fn lists_that_a_new_directory_has_no_room_for_are_found_out_before_it_is_made() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for args in
        ["-t ext4 -b 1024 -I 128 -O ^metadata_csum", "-t ext4 -b 1024", "-t ext4 -b 1024 -O inline_data"]
    {
        let (device, fs) = mounted(args, "acl");
        let cred = Credentials::root();
        let root = fs.root().unwrap();
        let dir = fs.mkdir(&root, b"dir", 0o755, &cred).unwrap();
        fs.set_xattr(&dir, b"system.posix_acl_default", &acl(80), XattrSet::Any, &cred).unwrap();
        let free = fs.statfs().files_free;
        let refused = fs.mkdir(&dir, b"sub", 0o777, &cred).expect_err("two lists of 700 bytes");
        assert!(matches!(refused, Error::NoRoom), "{args}: {refused}");
        assert_eq!(fs.statfs().files_free, free);
        // One list has room.
        fs.mknod(&dir, b"file", &NewInode::file(0o666), &cred).unwrap_or_else(|e| panic!("{args}: {e}"));
        fs.unmount().unwrap();
        assert_device_clean(&device);
    }
}

/// A chmod that would need a copy of a shared attribute block, on a full disk: nothing of it is done.
#[test]
fn a_chmod_that_finds_no_space_for_its_list_changes_nothing() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let (device, fs) = mounted("-t ext4 -b 1024 -I 128 -O ^metadata_csum", "acl");
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    let (a, b) = (file(&fs, b"a", b""), file(&fs, b"b", b""));
    for inode in [&a, &b] {
        fs.set_xattr(inode, b"system.posix_acl_access", &acl(3), XattrSet::Any, &cred).unwrap();
    }
    let filler = file(&fs, b"filler", b"");
    let mut at = 0;
    while let Ok((n, _)) = fs.write_at(&filler, at, &[1; 1024], WriteFlags::default(), &cred) {
        at += n as u64;
    }
    fs.sync().unwrap();
    let (mode, blocks) = (a.attr().mode, a.attr().blocks);
    let change = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    let answer = fs.set_attr(&a, &change, &cred);
    assert!(matches!(answer, Err(Error::NoSpace)), "{answer:?}");
    assert_eq!((a.attr().mode, a.attr().blocks), (mode, blocks));
    fs.unlink(&root, b"filler", &cred).unwrap();
    drop(filler);
    fs.sync().unwrap();
    fs.set_attr(&a, &change, &cred).expect("there is space now");
    drop((a, b));
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// A value of many blocks on a disk that has not so many.
#[test]
fn a_value_that_finds_no_space_leaves_the_old_one() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let (device, fs) = mounted("-t ext4 -b 1024 -O ea_inode", "");
    let cred = Credentials::root();
    let inode = file(&fs, b"a", b"");
    let old = vec![7; 20_000];
    fs.set_xattr(&inode, b"user.v", &old, XattrSet::Any, &cred).unwrap();
    let filler = file(&fs, b"filler", b"");
    let mut at = 0;
    while let Ok((n, _)) = fs.write_at(&filler, at, &[1; 1024], WriteFlags::default(), &cred) {
        at += n as u64;
    }
    fs.sync().unwrap();
    let blocks = inode.attr().blocks;
    let answer = fs.set_xattr(&inode, b"user.v", &[8; 60_000], XattrSet::Any, &cred);
    assert!(matches!(answer, Err(Error::NoSpace)), "{answer:?}");
    assert_eq!((fs.get_xattr(&inode, b"user.v", &cred).unwrap(), inode.attr().blocks), (old, blocks));
    drop((inode, filler));
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// Growing a file needs its old end on the device with a zeroed tail. If that fails, so does the truncation, and i_size stays:
/// else a later sync would say that all is well with an end that the disk does not know.
#[test]
fn a_growing_truncation_that_meets_a_failing_device_leaves_the_size() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for fallocate in [false, true] {
        let (device, fs) = mounted("-t ext4 -b 4096", "");
        let cred = Credentials::root();
        let inode = file(&fs, b"file", &[3; 1000]);
        // What is past the end of the file on disk is not zero, or so it may be.
        fs.write_at(&inode, 1000, &[4; 3000], WriteFlags::default(), &cred).unwrap();
        fs.sync().unwrap();
        fs.set_attr(&inode, &SetAttr { size: Some(1000), ..SetAttr::default() }, &cred).unwrap();
        device.fail(Failpoint::all_from(Kind::Write, 0));
        let grown = if fallocate {
            fs.fallocate(&inode, FallocateMode::Allocate, 0, 100_000, false, &cred)
        } else {
            fs.set_attr(&inode, &SetAttr { size: Some(100_000), ..SetAttr::default() }, &cred).map(drop)
        };
        device.heal();
        assert_eq!(grown.expect_err("the device fails").errno(), 5);
        let size = inode.size();
        fs.fsync(&inode, false).expect("the device is well again");
        drop(inode);
        fs.unmount().unwrap();
        let fs = remounted(&device, "");
        let inode = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
        assert_eq!((size, inode.size()), (1000, 1000));
        drop(inode);
        fs.unmount().unwrap();
        assert_device_clean(&device);
    }
}

/// A punch drops delayed blocks past the end that the disk knows, so it raises that first; where it cannot, nothing is dropped.
#[test]
fn a_punch_that_meets_a_failing_device_keeps_the_size_and_the_data() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRange] {
        let (device, fs) = mounted("-t ext4 -b 4096", "");
        let cred = Credentials::root();
        let inode = file(&fs, b"file", &[3; 1000]);
        fs.write_at(&inode, 8192, &[5; 8192], WriteFlags::default(), &cred).unwrap();
        device.fail(Failpoint::all_from(Kind::Write, 0));
        let answer = fs.fallocate(&inode, mode, 8192, 8192, true, &cred);
        device.heal();
        assert_eq!(answer.expect_err("the device fails").errno(), 5);
        fs.fsync(&inode, false).expect("the device is well again");
        assert_eq!(inode.size(), 16_384);
        drop(inode);
        fs.unmount().unwrap();
        let fs = remounted(&device, "");
        let inode = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
        assert_eq!(inode.size(), 16_384);
        let mut got = vec![0; 8192];
        fs.read_at(&inode, 8192, &mut got).unwrap();
        assert!(got.iter().all(|b| *b == 5), "data was dropped by a punch that failed");
        drop(inode);
        fs.unmount().unwrap();
        assert_device_clean(&device);
    }
}

/// A punch that cannot read one of its edges, the map, or a bitmap: no byte has changed.
#[test]
fn a_punch_that_cannot_read_what_it_needs_changes_nothing() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRange] {
        let (device, fs) = mounted("-t ext4 -b 4096", "");
        let cred = Credentials::root();
        drop(file(&fs, b"file", &[3; 20_000]));
        fs.unmount().unwrap();
        drop(fs);
        let mut refused = 0;
        for skip in 0.. {
            let fs = remounted(&device, "");
            let inode = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
            device.fail(Failpoint::all_from(Kind::Read, skip));
            let done = fs.fallocate(&inode, mode, 100, 12_288, true, &cred);
            device.heal();
            let mut got = vec![0; 20_000];
            fs.read_at(&inode, 0, &mut got).unwrap();
            let changed = got.iter().filter(|b| **b == 0).count();
            refused += usize::from(done.is_err());
            assert_eq!(changed, if done.is_ok() { 12_288 } else { 0 }, "{mode:?}, {skip}: {done:?}");
            drop(inode);
            fs.unmount().unwrap();
            if done.is_ok() {
                break;
            }
        }
        assert!(refused >= 2, "{mode:?}: refused {refused} times");
        assert_device_clean(&device);
    }
}

/// Freeing meets a bitmap that cannot be read: what went before is kept, the rest is left to the next mount, and nothing leaks.
#[test]
fn a_file_whose_bitmaps_cannot_be_read_is_freed_by_the_next_mount() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for args in
        ["-t ext4 -b 1024 -g 1024", "-t ext3 -b 1024 -g 1024", "-t ext4 -b 1024 -g 1024 -O orphan_file"]
    {
        for skip in 0..6 {
            let (device, fs) = mounted(args, "");
            let cred = Credentials::root();
            drop(file(&fs, b"file", &vec![3; 5 << 20]));
            fs.unmount().unwrap();
            drop(fs);
            // Nothing is in memory now but what mounting reads.
            let fs = remounted(&device, "errors=continue");
            let inode = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
            fs.unlink(&fs.root().unwrap(), b"file", &cred).unwrap();
            fs.sync().unwrap();
            device.fail(Failpoint::all_from(Kind::Read, skip));
            drop(inode);
            // Waits for the eviction.
            let _ = fs.sync();
            device.heal();
            fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &cred)
                .unwrap_or_else(|e| panic!("{args}, {skip}: not writable: {e}"));
            let _ = fs.unmount();
            drop(fs);
            remounted(&device, "").unmount().unwrap();
            assert_device_clean(&device);
        }
    }
}

/// What is left undone because of a group that is out of use is not durable without the superblock's record that something is wrong.
#[test]
fn the_record_of_damage_is_durable_with_what_it_left_undone() {
    need!(tools(&["mke2fs"]));
    let (device, fs) = mounted("-t ext4 -b 1024 -g 1024 -O ^metadata_csum,^uninit_bg", "");
    let cred = Credentials::root();
    drop(file(&fs, b"file", &vec![3; 3 << 20]));
    fs.unmount().unwrap();
    drop(fs);
    let fs = remounted(&device, "errors=continue,commit=300");
    let inode = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
    device.fail(Failpoint::all_from(Kind::Read, 0));
    let refused = fs.fallocate(&inode, FallocateMode::Allocate, 4 << 20, 4096, true, &cred);
    device.heal();
    refused.expect_err("no bitmap can be read");
    let shorter = extant::SetAttr { size: Some(1 << 20), ..extant::SetAttr::default() };
    fs.set_attr(&inode, &shorter, &cred).unwrap();
    fs.fsync(&inode, false).unwrap();
    let crashed = SimDevice::from_content(device.content());
    crashed.set_recording(false);
    let after = remounted(&crashed, "");
    assert!(after.superblock().state().contains(State::ERROR), "nobody is told that it wants a check");
    after.unmount().unwrap();
    drop(inode);
    fs.unmount().unwrap();
}

/// Blocks that were preallocated past the end, in a page that holds the end too: a written one there contradicts i_size.
#[test]
fn zeroing_past_the_end_leaves_unwritten_blocks_unwritten() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let (device, fs) = mounted("-t ext4 -b 1024", "");
    let cred = Credentials::root();
    let inode = file(&fs, b"file", &[3; 21_418]);
    fs.fallocate(&inode, FallocateMode::Allocate, 21_504, 3072, true, &cred).unwrap();
    fs.fallocate(&inode, FallocateMode::ZeroRange, 21_600, 2400, true, &cred).unwrap();
    fs.sync().unwrap();
    assert_eq!(inode.size(), 21_418);
    drop(inode);
    fs.unmount().unwrap();
    assert_device_clean(&device);
}

/// A damaged size of more blocks than have numbers: what lies past them is an error, not another block of the file.
#[test]
fn reading_past_the_last_block_number_is_an_error() {
    need!(tools(&["mke2fs", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024");
    let fs = open_with(&image, "");
    drop(file(&fs, b"file", &[9; 4096]));
    fs.unmount().unwrap();
    drop(fs);
    extant_testkit::oracle::debugfs_write(&image, &["set_inode_field file size 0x50000000000"]);
    let fs = crate::support::open_ro(&image);
    let inode = fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap();
    let mut got = vec![1; 4096];
    assert_eq!(fs.read_at(&inode, 0, &mut got).unwrap(), 4096);
    assert!(got.iter().all(|b| *b == 9));
    assert_eq!(fs.read_at(&inode, (1 << 42) - 8192, &mut got).unwrap(), 4096);
    assert!(got.iter().all(|b| *b == 0), "a hole");
    for at in [1 << 42, (1 << 42) + 4096 * 3, (1 << 42) + 1000] {
        let mut whole = vec![1; 300_000];
        for len in [512, 300_000] {
            assert!(
                fs.read_at(&inode, at, &mut whole[..len]).is_err(),
                "at {at}: another block of the file was read"
            );
        }
    }
    let hole = fs.seek(&inode, 1 << 42, extant::SeekKind::Data);
    assert!(matches!(hole, Err(Error::NoSuchAddress)), "{hole:?}");
}

/// Names and content made while the device fails to read, from each read on: what is refused is not done, and the filesystem
/// goes on when the device does.
#[test]
fn what_is_read_for_a_change_is_read_before_it() {
    need!(tools(&["mke2fs", "e2fsck"]));
    type Change = fn(&Filesystem, &InodeRef) -> extant::Result<()>;
    let changes: [(&str, Change); 7] = [
        ("file", |fs, dir| fs.mknod(dir, b"new", &NewInode::file(0o644), &Credentials::root()).map(drop)),
        ("mkdir", |fs, dir| fs.mkdir(dir, b"new", 0o755, &Credentials::root()).map(drop)),
        ("symlink", |fs, dir| fs.symlink(dir, b"new", &[b'x'; 200], &Credentials::root()).map(drop)),
        ("link", |fs, dir| {
            let cred = Credentials::root();
            let old = fs.lookup(dir, &name(0), &cred)?;
            fs.link(&old, dir, b"new", &cred)
        }),
        ("unlink", |fs, dir| fs.unlink(dir, &name(1), &Credentials::root()).map(drop)),
        ("rename", |fs, dir| {
            let cred = Credentials::root();
            fs.rename(dir, &name(2), &fs.root()?, b"new", extant::RenameFlags::default(), &cred).map(drop)
        }),
        ("content", |fs, dir| {
            let cred = Credentials::root();
            let old = fs.lookup(dir, &name(3), &cred)?;
            fs.write_at(&old, 5000, &[1; 9000], WriteFlags::default(), &cred)?;
            fs.fsync(&old, true)
        }),
    ];
    for args in ["-t ext4 -b 1024 -N 1024", "-t ext3 -b 1024 -N 1024", "-t ext4 -b 1024 -g 1024 -N 2048"] {
        let (device, fs) = mounted(args, "");
        let cred = Credentials::root();
        let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &cred).unwrap();
        for n in 0..300 {
            fs.mknod(&dir, &name(n), &NewInode::file(0o644), &cred).unwrap();
        }
        drop(dir);
        fs.unmount().unwrap();
        drop(fs);
        let begin = device.content();
        for (what, change) in changes {
            let mut refused = 0;
            for skip in 0.. {
                let device = SimDevice::from_content(begin.clone());
                device.set_recording(false);
                // Nothing is in memory but what mounting reads.
                let fs = remounted(&device, "errors=continue");
                let dir = fs.lookup(&fs.root().unwrap(), b"dir", &cred).unwrap();
                device.fail(Failpoint::all_from(Kind::Read, skip));
                let done = change(&fs, &dir);
                device.heal();
                refused += u32::from(done.is_err());
                fs.mkdir(&dir, b"after", 0o755, &cred)
                    .unwrap_or_else(|e| panic!("{args}, {what}, {skip}: {done:?}, not writable: {e}"));
                drop(dir);
                fs.unmount().unwrap_or_else(|e| panic!("{args}, {what}, {skip}: {done:?}: {e}"));
                drop(fs);
                assert_device_clean(&device);
                if done.is_ok() {
                    break;
                }
            }
            println!("{args}, {what}: refused {refused} times");
            assert!(refused > 0, "{args}, {what}: nothing was read");
        }
    }
}

fn name(n: u32) -> Vec<u8> {
    format!("a name of some length {n:03}").into_bytes()
}
