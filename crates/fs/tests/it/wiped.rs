//! A journal with data under a superblock that needs no recovery: nothing is replayed, as by the kernel. And what our own mounts leave
//! under such a superblock: an empty log.

use std::path::Path;
use std::sync::Arc;

use extant::{Credentials, Filesystem, MountOptions, Setup, ShutdownMode};
use extant_device::{BlockDevice, OpenOptions};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{self, assert_clean, mke2fs};
use extant_testkit::{env, scratch};

use crate::support::{open_ro, open_rw, open_with};

const KINDS: [&str; 3] = ["-t ext4", "-t ext4 -b 1024 -O orphan_file,fast_commit", "-t ext3 -b 1024"];

fn root() -> Credentials {
    Credentials::root()
}

/// Makes directories, each in a transaction of its own, and leaves them in the log.
fn leave_in_the_log(image: &Path, names: &[&str]) {
    let fs = open_rw(image);
    let dir = fs.root().unwrap();
    for name in names {
        fs.mkdir(&dir, name.as_bytes(), 0o755, &root()).unwrap();
        fs.fsync(&dir, false).unwrap();
    }
    fs.shutdown(ShutdownMode::NoFlush, &root()).unwrap();
    drop(dir);
    assert!(fs.unmount().is_err());
}

/// An image with a log that nobody needs.
fn unneeded(image: &Path, mkfs: &str) {
    mke2fs(image, 32 << 20, mkfs);
    leave_in_the_log(image, &["a", "b", "c"]);
    oracle::debugfs_write(image, &["feature -needs_recovery"]);
    assert!(header(image, "Journal start").is_some_and(|start| start != "0"), "{mkfs}: nothing in the log");
}

fn header(image: &Path, field: &str) -> Option<String> {
    oracle::dumpe2fs_header(image).into_iter().find(|(name, _)| name == field).map(|(_, value)| value)
}

fn has(fs: &Filesystem, name: &str) -> bool {
    fs.lookup(&fs.root().unwrap(), name.as_bytes(), &root()).is_ok()
}

#[test]
fn a_log_that_is_not_needed_is_wiped() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    for mkfs in KINDS {
        let dir = scratch();
        let image = dir.join("image");
        unneeded(&image, mkfs);
        let before = std::fs::read(&image).unwrap();
        let fs = open_ro(&image);
        assert!(!has(&fs, "a"), "{mkfs}: replayed in memory");
        drop(fs);
        assert!(before == std::fs::read(&image).unwrap(), "{mkfs}: a mount for reading wrote");
        let fs = open_rw(&image);
        assert!(!has(&fs, "a"), "{mkfs}: replayed");
        fs.unmount().unwrap();
        drop(fs);
        assert_eq!(header(&image, "Journal start").as_deref(), Some("0"), "{mkfs}");
        assert_clean(&image);

        // Where a mount for reading recovers, it wipes too, and can turn writable.
        std::fs::write(&image, &before).unwrap();
        let device: Arc<dyn BlockDevice> = Arc::new(OpenOptions::new().write(true).open(&image).unwrap());
        let setup = Setup { recover_on_device: true, ..Setup::read_only() };
        let fs = Filesystem::open(device, setup).unwrap();
        assert!(!has(&fs, "a"), "{mkfs}");
        assert_eq!(header(&image, "Journal start").as_deref(), Some("0"), "{mkfs}");
        fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}

/// The kernel does the same with the same image.
#[test]
fn the_kernel_wipes_it_too() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    for mkfs in KINDS {
        for options in ["", "ro"] {
            let dir = scratch();
            let image = dir.join("image");
            unneeded(&image, mkfs);
            let mount = KernelMount::with(&image, options).unwrap();
            assert!(!mount.path().join("a").exists(), "{mkfs} {options}: the kernel replays it");
            mount.unmount();
            assert_eq!(header(&image, "Journal start").as_deref(), Some("0"), "{mkfs} {options}");
        }
    }
}

/// What is logged after that is not continued by what the log held before, even where it lies block for block the same.
#[test]
fn what_was_wiped_does_not_come_back() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    for mkfs in KINDS {
        let dir = scratch();
        let image = dir.join("image");
        unneeded(&image, mkfs);
        leave_in_the_log(&image, &["x"]);
        let fs = open_rw(&image);
        let there = ["a", "b", "c", "x"].map(|name| has(&fs, name));
        assert_eq!(there, [false, false, false, true], "{mkfs}");
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}

/// A backup of the superblock never says that recovery is needed: where nothing else is left the log is replayed, as by e2fsck.
#[test]
fn a_mount_by_a_backup_alone_replays() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 1024");
    leave_in_the_log(&image, &["a"]);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[1024..2048].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    // Not the first backup, which a mount of ours may have written.
    let backup = 24577;
    let by_e2fsck = dir.join("by-e2fsck");
    std::fs::write(&by_e2fsck, &bytes).unwrap();
    let said = oracle::e2fsck_with(&by_e2fsck, &["-fy", "-b", &backup.to_string(), "-B", "1024"]);
    assert!(said.text.contains("running journal anyway"), "{said}");
    assert!(has(&open_ro(&by_e2fsck), "a"), "e2fsck replays");
    let fs = open_with(&image, &format!("sb={backup}"));
    assert!(has(&fs, "a"));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// A mount that says clean has an empty log: after a freeze, after a remount for reading (and its unmount, which writes nothing
/// more), and after an orderly shutdown. Otherwise e2fsck -p would not take the image.
#[test]
fn a_superblock_that_says_clean_has_an_empty_log() {
    need!(env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4");
    let check = |what: &str| {
        let copy = dir.join("copy");
        std::fs::copy(&image, &copy).unwrap();
        assert_eq!(header(&copy, "Journal start").as_deref(), Some("0"), "{what}");
        let said = oracle::e2fsck_with(&copy, &["-fp"]);
        assert_eq!(said.status, 0, "{what}: {said}");
    };
    let make = |fs: &Filesystem, name: &[u8]| {
        let dir = fs.root().unwrap();
        fs.mkdir(&dir, name, 0o755, &root()).unwrap();
        fs.fsync(&dir, false).unwrap();
    };
    let fs = open_rw(&image);
    make(&fs, b"a");
    fs.freeze(&root()).unwrap();
    check("frozen");
    fs.thaw(&root()).unwrap();
    make(&fs, b"b");
    fs.remount(&MountOptions::parse("ro").unwrap()).unwrap();
    check("remounted for reading");
    fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
    make(&fs, b"c");
    fs.remount(&MountOptions::parse("ro").unwrap()).unwrap();
    fs.unmount().unwrap();
    drop(fs);
    check("unmounted");
    // What is logged after each of these is replayed.
    for end in ["freeze", "remount"] {
        let fs = open_rw(&image);
        make(&fs, format!("before-{end}").as_bytes());
        if end == "freeze" {
            fs.freeze(&root()).unwrap();
            fs.thaw(&root()).unwrap();
        } else {
            fs.remount(&MountOptions::parse("ro").unwrap()).unwrap();
            fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
        }
        make(&fs, format!("after-{end}").as_bytes());
        fs.shutdown(ShutdownMode::NoFlush, &root()).unwrap();
        assert!(fs.unmount().is_err());
        drop(fs);
        let fs = open_rw(&image);
        assert!(has(&fs, &format!("before-{end}")) && has(&fs, &format!("after-{end}")), "{end}");
        fs.unmount().unwrap();
        drop(fs);
        check(end);
    }
    let fs = open_rw(&image);
    make(&fs, b"d");
    fs.shutdown(ShutdownMode::Sync, &root()).unwrap();
    assert!(fs.unmount().is_err());
    drop(fs);
    check("shut down");
}
