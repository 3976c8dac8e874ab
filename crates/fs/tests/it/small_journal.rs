//! Journals as small as mke2fs makes them: every handle asks for what it may change, and the mount refuses what is too small.
//!
//! The journal asserts in debug builds that no handle changes more blocks than it asked for. Here everything is committed before
//! each operation, so that each pays for every block that it changes.

use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, InodeRef, NewInode, RenameFlags, SetAttr, Setup,
    WriteFlags, XattrSet,
};
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::script::{Executor, random};
use extant_testkit::{Rng, SimDevice, env};

use crate::support::{LibExecutor, open_with};

/// 1024 blocks, the shortest journal there is, under the features that make handles large.
const SMALLEST: &[&str] = &[
    "-t ext4 -b 1024 -J size=1",
    "-t ext4 -b 1024 -g 256 -J size=1",
    "-t ext4 -b 1024 -I 128 -J size=1 -O ^metadata_csum",
    "-t ext4 -b 1024 -J size=1 -O fast_commit",
    "-t ext4 -b 1024 -I 512 -J size=1 -O inline_data,orphan_file",
    "-t ext4 -b 1024 -J size=1 -O ea_inode,large_dir",
    "-t ext4 -b 1024 -J size=1 -O quota,project,ea_inode -E quotatype=usrquota:grpquota:prjquota",
    "-t ext4 -b 1024 -J size=1 -O bigalloc -C 4096",
    "-t ext4 -b 4096 -g 256 -J size=4",
    "-t ext3 -b 1024 -J size=1",
    "-t ext3 -b 1024 -g 256 -J size=1 -O quota",
];

fn size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

fn name(n: u32) -> Vec<u8> {
    format!("{n:06}-{}", "n".repeat(240)).into_bytes()
}

/// A file of single blocks, every second one a hole.
fn holes(fs: &Arc<Filesystem>, root: &InodeRef, name: &[u8], blocks: u64) -> InodeRef {
    let cred = Credentials::root();
    let inode = fs.mknod(root, name, &NewInode::file(0o644), &cred).expect("file");
    let block = u64::from(fs.geometry().block_size());
    for n in 0..blocks {
        let at = 2 * n * block;
        fs.write_at(&inode, at, &[n as u8 | 1; 600], WriteFlags::default(), &cred).expect("write");
        if n % 500 == 0 {
            fs.sync().expect("sync");
        }
    }
    fs.sync().expect("sync");
    inode
}

/// Large maps, directories and attributes: made, cut, removed, with a commit before each step.
fn strain(fs: &Arc<Filesystem>) {
    let (root, cred) = (fs.root().expect("root"), Credentials::root());
    let sync = || fs.sync().expect("sync");
    let file = holes(fs, &root, b"holes", 3000);
    let other = holes(fs, &root, b"other", 700);
    sync();
    fs.fallocate(&file, FallocateMode::PunchHole, 3 * 1024, 1_500_000, true, &cred).expect("punch");
    sync();
    match fs.fallocate(&file, FallocateMode::ZeroRange, 1_000_000, 700_000, false, &cred) {
        Ok(()) | Err(Error::NotSupported(_)) => {}
        Err(e) => panic!("{e}"),
    }
    sync();
    let cluster = u64::from(fs.geometry().block_size()) << fs.geometry().log_cluster_ratio();
    for (mode, at) in [(FallocateMode::CollapseRange, 5), (FallocateMode::InsertRange, 200)] {
        match fs.fallocate(&file, mode, at * cluster, 40 * cluster, false, &cred) {
            Ok(()) | Err(Error::NotSupported(_)) => {}
            Err(e) => panic!("{e}"),
        }
        sync();
    }
    fs.set_attr(&file, &size(700_001), &cred).expect("truncate");
    sync();
    fs.set_attr(&other, &size(0), &cred).expect("truncate");
    let (from, to) = (
        fs.mkdir(&root, b"from", 0o755, &cred).expect("mkdir"),
        fs.mkdir(&root, b"to", 0o755, &cred).expect("mkdir"),
    );
    for n in 0..260 {
        sync();
        let made = if n % 3 == 0 {
            fs.mkdir(&from, &name(n), 0o755, &cred)
        } else {
            fs.symlink(&from, &name(n), &[b't'; 700], &cred)
        };
        made.expect("a name");
    }
    for n in 0..260 {
        sync();
        let whiteout = RenameFlags { whiteout: n % 50 == 0, ..RenameFlags::default() };
        fs.rename(&from, &name(n), &to, &name(1000 + n), whiteout, &cred).expect("rename");
    }
    for n in 0..8 {
        sync();
        let value = vec![n; if n % 2 == 0 { 300 } else { 60_000 }];
        let name = format!("user.{n}");
        match fs.set_xattr(&to, name.as_bytes(), &value, XattrSet::Any, &cred) {
            Ok(()) | Err(Error::NoSpace | Error::NoRoom) => {}
            Err(e) => panic!("{e}"),
        }
    }
    sync();
    let ids = SetAttr { uid: Some(77), gid: Some(88), ..SetAttr::default() };
    fs.set_attr(&file, &ids, &cred).expect("chown");
    drop((file, other));
    for name in [&b"holes"[..], b"other"] {
        sync();
        fs.unlink(&root, name, &cred).expect("unlink");
    }
    sync();
    for n in 0..260 {
        let name = name(1000 + n);
        sync();
        if n % 3 == 0 { fs.rmdir(&to, &name, &cred) } else { fs.unlink(&to, &name, &cred) }.expect("remove");
    }
    drop(to);
    sync();
    fs.rmdir(&root, b"to", &cred).expect("rmdir");
    sync();
}

#[test]
fn the_smallest_journals_of_mke2fs_are_written_to() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for args in SMALLEST {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 48 << 20, args);
        let fs = open_with(&image, "");
        strain(&fs);
        fs.unmount().unwrap_or_else(|e| panic!("{args}: {e}"));
        drop(fs);
        assert_clean(&image);
    }
}

#[test]
fn random_operations_with_a_commit_before_each() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let seed = env::seed();
    for (n, args) in SMALLEST.iter().enumerate() {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 24 << 20, args);
        let mut rng = Rng::new(seed).fork(n as u64);
        let mut fs = LibExecutor::new(open_with(&image, ""));
        for op in random(
            &mut rng,
            150,
            &extant_testkit::script::Mix { xattr: 2000, shift: 4096, ..Default::default() },
        ) {
            fs.fs.sync().expect("sync");
            let _ = fs.apply(&op);
        }
        fs.fs.unmount().unwrap_or_else(|e| panic!("{args}, SEED={seed}: {e}"));
        drop(fs);
        assert_clean(&image);
    }
}

#[test]
fn small_images_with_the_defaults_of_mke2fs_are_mounted_for_writing() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for (size, args) in [
        (4 << 20, "-t ext4"),
        (8 << 20, "-t ext3"),
        (8 << 20, "-t ext4 -O quota,ea_inode,fast_commit"),
        (16 << 20, "-t ext4 -b 2048"),
        (20 << 20, "-t ext4 -b 4096"),
        (512 << 20, "-t ext4 -b 65536 -O ^resize_inode"),
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, size, args);
        open_with(&image, "").unmount().unwrap_or_else(|e| panic!("{args}: {e}"));
    }
}

/// Makes the journal superblock say that the journal has `blocks` blocks.
fn shorten(image: &Path, blocks: u32) {
    let text = extant_testkit::oracle::debugfs(image, &["bmap <8> 0"]);
    let first =
        text.lines().find_map(|line| line.trim().parse::<u64>().ok()).expect("the journal's first block");
    let device = SimDevice::from_file(image);
    extant_device::BlockDevice::write_at(&*device, first * 1024 + 0x10, &blocks.to_be_bytes())
        .expect("write");
    device.content().to_file(image).expect("image");
}

#[test]
fn a_journal_too_small_for_the_largest_operation_is_only_read() {
    need!(tools(&["mke2fs", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024 -J size=1 -O ^metadata_csum");
    shorten(&image, 200);
    let before = std::fs::read(&image).unwrap();
    let device = extant_device::OpenOptions::new().write(true).open(&image).unwrap();
    let refused = Filesystem::open(Arc::new(device), Setup::default()).expect_err("refused");
    let text = refused.to_string();
    assert!(matches!(refused, Error::Incompatible(_)) && text.contains("journal is too small"), "{text}");
    assert!(std::fs::read(&image).unwrap() == before, "a refused mount has written something");
    let fs = open_with(&image, "ro");
    assert!(fs.root().unwrap().is_dir());
    let turned = fs.remount(&extant::MountOptions::default()).expect_err("refused");
    assert!(turned.to_string().contains("journal is too small"), "{turned}");
    fs.unmount().unwrap();
    drop(fs);
    assert!(std::fs::read(&image).unwrap() == before);
}
