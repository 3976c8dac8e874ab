//! What must hold when changes meet each other, a full disk, or somebody without the right to make them.

use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, Filesystem, InodeFlags, NewInode, OpenFile, OpenMode, SetAttr, Setup,
    WriteFlags, XattrSet,
};
use extant_testkit::env::scratch;
use extant_testkit::oracle::{assert_clean, mke2fs};

use crate::support::open_rw;

/// A new file in an image.
fn new_file(image: &std::path::Path) -> (Arc<Filesystem>, OpenFile) {
    let fs = open_rw(image);
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
    (fs, file)
}

/// Extents of different kinds in one cluster: the cluster goes once, with the last of them, also when nothing of the map is
/// cached.
#[test]
fn a_cluster_that_several_extents_share_is_freed_once() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 1024 -O bigalloc -C 8192");
    let (fs, file) = new_file(&image);
    let free = fs.statfs().blocks_free;
    file.fallocate(FallocateMode::Allocate, 0, 64 << 10, false).unwrap();
    for block in [1, 4, 6, 9, 13, 21, 30] {
        file.write_at(block << 10, &[1; 1024]).unwrap();
        fs.sync().unwrap();
    }
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let fs = open_rw(&image);
    assert!(fs.statfs().blocks_free <= free - 64);
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    drop(fs.unlink(&root, b"file", &cred).unwrap());
    fs.sync().unwrap();
    assert_eq!(fs.statfs().blocks_free, free);
    drop(root);
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// With bigalloc a delayed block needs no cluster where its file has one, by a block in the map or by another delayed one: nothing is
/// reserved for it, and a full disk takes it.
#[test]
fn delayed_blocks_in_a_cluster_of_the_file_need_none() {
    for reopened in [false, true] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, "-t ext4 -b 1024 -O bigalloc -C 8192 -m 0");
        let (fs, file) = new_file(&image);
        let cred = Credentials::user(1, 1, &[]);
        // In the middle of the second cluster.
        file.write_at(11 << 10, &[1; 1024]).unwrap();
        let (fs, file) = if reopened {
            drop(file);
            fs.unmount().unwrap();
            drop(fs);
            let fs = open_rw(&image);
            let inode = fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap();
            let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
            let file = OpenFile::new(&fs, &inode, mode, &Credentials::root()).unwrap();
            (fs, file)
        } else {
            fs.sync().unwrap();
            (fs, file)
        };
        let write = |block: u64, len: usize| {
            fs.write_at(file.inode(), block << 10, &vec![2; len << 10], WriteFlags::default(), &cred)
        };
        let free = || fs.statfs().blocks_free;
        let before = free();
        write(10, 1).unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (0, 16), "before a mapped block");
        write(12, 2).unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (0, 16), "behind it");
        write(9, 6).unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (0, 16), "round it");
        // Blocks 15 to 33 reach over clusters 2 and 3 as a whole and into 4.
        write(15, 19).unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (24, 16 + 48), "over its end");
        write(36, 1).unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (24, 16 + 48), "beside a delayed one");
        fs.sync().unwrap();
        assert_eq!((before - free(), file.inode().attr().blocks), (24, 16 + 48), "as many as were taken");
        // A full disk.
        let root = fs.root().unwrap();
        let full = fs.mknod(&root, b"full", &NewInode::file(0o644), &Credentials::root()).unwrap();
        let mut at = 0;
        let error = loop {
            match fs.write_at(&full, at, &[1; 8192], WriteFlags::default(), &cred) {
                Ok((n, _)) => at += n as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), 28);
        write(8, 1).expect("in the second cluster");
        write(37, 3).expect("in the fifth");
        assert_eq!(write(40, 1).unwrap_err().errno(), 28, "in one that the file does not have");
        fs.sync().unwrap();
        let mut bytes = vec![0; 40 << 10];
        file.read_at(0, &mut bytes).unwrap();
        let rows: Vec<u8> = bytes.chunks(1024).map(|b| b[0]).collect();
        assert_eq!(rows[8..15], [2; 7]);
        assert_eq!(rows[34..], [0, 0, 2, 2, 2, 2]);
        drop((full, file, root));
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}

/// A change that finds no space leaves the filesystem as it was: alive.
#[test]
fn no_space_for_a_copy_of_a_shared_attribute_block() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -m 0");
    let (fs, file) = new_file(&image);
    let (root, cred) = (fs.root().unwrap(), Credentials::user(1, 1, &[]));
    let owner = Credentials::root().with_umask(0);
    let two =
        ["a", "b"].map(|name| fs.mknod(&root, name.as_bytes(), &NewInode::file(0o666), &owner).unwrap());
    for inode in &two {
        fs.set_xattr(inode, b"user.large", &[7; 2000], XattrSet::Any, &owner).unwrap();
    }
    let one = fs.set_attr(&root, &SetAttr { mode: Some(0o777), ..SetAttr::default() }, &owner);
    one.unwrap();
    let full = fs.mknod(&root, b"full", &NewInode::file(0o644), &cred).unwrap();
    let mut at = 0;
    while let Ok((n, _)) = fs.write_at(&full, at, &[1; 4096], WriteFlags::default(), &cred) {
        at += n as u64;
    }
    let more = fs.set_xattr(&two[1], b"user.more", &[8; 500], XattrSet::Any, &cred);
    assert_eq!(more.unwrap_err().errno(), 28);
    file.set_len(10).unwrap();
    fs.sync().unwrap();
    drop(fs.unlink(&root, b"full", &cred).unwrap());
    drop(full);
    fs.sync().unwrap();
    fs.set_xattr(&two[1], b"user.more", &[8; 500], XattrSet::Any, &cred).unwrap();
    drop((two, root, file));
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// sync makes content durable also where no metadata goes with it.
#[test]
fn sync_flushes_what_was_written_in_place() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let device = extant_testkit::SimDevice::from_file(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&inode, 0, &[1; 4096], WriteFlags::default(), &cred).unwrap();
    fs.sync().unwrap();
    fs.write_at(&inode, 0, &[2; 4096], WriteFlags::default(), &cred).unwrap();
    // The times go without the content.
    fs.sync_inode(&inode, false).unwrap();
    let before = device.counts();
    fs.sync().unwrap();
    let after = device.counts();
    assert!(after.writes > before.writes && after.flushes > before.flushes, "{before:?} {after:?}");
    drop(inode);
    fs.unmount().unwrap();
}

/// truncate(2) asks for the right to write; ftruncate(2) does not, and both respect the append-only flag.
#[test]
fn who_may_truncate() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let (fs, file) = new_file(&image);
    let (root, user) = (Credentials::root(), Credentials::user(7, 7, &[]));
    file.write_at(0, &[1; 100]).unwrap();
    let size = SetAttr { size: Some(1), ..SetAttr::default() };
    assert_eq!(fs.set_attr(file.inode(), &size, &user).unwrap_err().errno(), 13);
    assert_eq!(file.inode().size(), 100);
    let flags = file.inode().attr().flags | InodeFlags::APPEND;
    fs.set_flags(file.inode(), flags, &root).unwrap();
    assert_eq!(fs.set_attr(file.inode(), &size, &root).unwrap_err().errno(), 1);
    assert_eq!(file.set_len(1).unwrap_err().errno(), 1);
    assert_eq!(file.fallocate(FallocateMode::PunchHole, 0, 50, true).unwrap_err().errno(), 1);
    file.fallocate(FallocateMode::Allocate, 0, 8192, true).unwrap();
    assert_eq!(file.inode().size(), 100);
}
