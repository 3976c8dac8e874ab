//! When times that changed in memory reach the device; the kernel's `lazytime` beside ours where it can be asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use extant_device::OpenOptions;
use extant_format::Tid;
use extant_format::inode::Timestamp;
use extant_testkit::kernel::KernelMount;
use extant_testkit::{env, need, oracle, scratch};

use crate::{
    Clock, Credentials, Filesystem, InodeRef, NewInode, OpenFile, OpenMode, SetAttr, SetTime, Setup, XattrSet,
};

const START: i64 = 1_000_000_000;
const DAY: i64 = 24 * 60 * 60;

#[derive(Debug)]
struct Hand(AtomicI64);

impl Hand {
    fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_sec(self.0.load(Ordering::Relaxed))
    }
}

fn open(image: &Path, options: &str) -> (Arc<Filesystem>, Arc<Hand>) {
    let clock = Arc::new(Hand(AtomicI64::new(START)));
    let device = OpenOptions::new().write(true).open(image).unwrap();
    let setup = Setup { clock: Arc::clone(&clock) as _, ..Setup::with_options(options).unwrap() };
    (Filesystem::open(Arc::new(device), setup).unwrap(), clock)
}

/// A time of `/f` as a crash now would leave it, after what has been journalled is committed.
fn durable(fs: &Filesystem, image: &Path, which: &str) -> i64 {
    fs.journal.commit_all().unwrap();
    replayed(image, which)
}

fn replayed(image: &Path, which: &str) -> i64 {
    let copy = image.with_extension("state");
    std::fs::copy(image, &copy).unwrap();
    let _ = oracle::replay_journal(&copy);
    let stat = oracle::debugfs(&copy, &["stat /f"]);
    let hex = stat
        .split(&format!("{which}: 0x"))
        .nth(1)
        .and_then(|t| t.split([':', ' ']).next())
        .unwrap()
        .to_owned();
    i64::from_str_radix(&hex, 16).unwrap()
}

fn file(fs: &Arc<Filesystem>) -> (InodeRef, OpenFile) {
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let open = OpenFile::new(fs, &inode, mode, &cred).unwrap();
    open.write_at(0, &[1; 8192]).unwrap();
    fs.fsync(&inode, false).unwrap();
    (inode, open)
}

#[test]
fn lazytime_keeps_times_in_memory_for_a_day() {
    need!(env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    for lazy in [false, true] {
        oracle::mke2fs(&image, 16 << 20, "-t ext4");
        let (fs, clock) = open(&image, if lazy { "lazytime,commit=3000" } else { "commit=3000" });
        let (inode, open) = file(&fs);
        clock.advance(100);
        open.write_at(0, b"new").unwrap();
        fs.fsync(&inode, true).unwrap();
        assert_eq!(durable(&fs, &image, "mtime"), START, "fdatasync leaves times alone");
        fs.periodic_work();
        assert_eq!(durable(&fs, &image, "mtime"), START + if lazy { 0 } else { 100 }, "lazytime: {lazy}");
        // The day begins with the first change, and again after a write.
        clock.advance(DAY - 1);
        open.write_at(0, b"newer").unwrap();
        fs.periodic_work();
        assert_eq!(
            durable(&fs, &image, "mtime"),
            START + if lazy { 0 } else { 99 + DAY },
            "lazytime: {lazy}"
        );
        clock.advance(1);
        fs.periodic_work();
        assert_eq!(durable(&fs, &image, "mtime"), START + 99 + DAY, "lazytime: {lazy}");
        clock.advance(1);
        open.write_at(0, b"newest").unwrap();
        clock.advance(DAY - 1);
        fs.periodic_work();
        assert_eq!(
            durable(&fs, &image, "mtime"),
            START + DAY + if lazy { 99 } else { 101 },
            "lazytime: {lazy}"
        );
        clock.advance(1);
        fs.periodic_work();
        assert_eq!(durable(&fs, &image, "mtime"), START + DAY + 101, "lazytime: {lazy}");
        drop((inode, open));
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&image);
    }
}

#[test]
fn lazy_times_go_with_whatever_else_writes_the_inode() {
    need!(env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    type Reason = fn(&Arc<Filesystem>, &InodeRef, &OpenFile);
    let reasons: [(&str, Reason); 7] = [
        ("fsync", |fs, f, _| fs.fsync(f, false).unwrap()),
        ("sync", |fs, _, _| fs.sync().unwrap()),
        ("chmod", |fs, f, _| {
            let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            fs.set_attr(f, &change, &Credentials::root()).unwrap();
        }),
        ("growth", |fs, f, open| {
            open.write_at(1 << 20, b"end").unwrap();
            fs.fsync(f, true).unwrap();
        }),
        ("an attribute", |fs, f, _| {
            fs.set_xattr(f, b"user.a", b"b", XattrSet::Any, &Credentials::root()).unwrap();
        }),
        ("freeze", |fs, _, _| {
            fs.freeze(&Credentials::root()).unwrap();
            fs.thaw(&Credentials::root()).unwrap();
        }),
        ("too many of them", |fs, _, _| {
            let root = fs.root().unwrap();
            for n in 0..super::MOST_DIRTY_TIMES {
                let name = format!("{n}").into_bytes();
                let one = fs.mknod(&root, &name, &NewInode::file(0o644), &Credentials::root()).unwrap();
                fs.touch_written(&one);
            }
        }),
    ];
    let dir = scratch();
    let image = dir.join("image");
    for (what, reason) in reasons {
        oracle::mke2fs(&image, 16 << 20, "-t ext4 -N 8192");
        let (fs, clock) = open(&image, "lazytime,commit=3000");
        let (inode, open) = file(&fs);
        clock.advance(100);
        open.write_at(0, b"new").unwrap();
        fs.fsync(&inode, true).unwrap();
        assert_eq!(durable(&fs, &image, "mtime"), START, "{what}");
        reason(&fs, &inode, &open);
        assert_eq!(durable(&fs, &image, "mtime"), START + 100, "{what}");
        clock.advance(100);
        open.write_at(0, b"newer").unwrap();
        drop((inode, open));
        fs.unmount().unwrap();
        drop(fs);
        assert_eq!(replayed(&image, "mtime"), START + 200, "unmount");
        oracle::assert_clean(&image);
    }
}

/// Access times: what the kernel and we leave of a read that was followed by the commit of something else. (Times of writes Linux
/// 6.18 writes at once, for they go with `i_version`, which is no lazy one.)
#[test]
fn the_kernels_lazytime_does_the_same() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    let old = crate::system_time(Timestamp::from_sec(START));
    for (options, lazy) in [("lazytime", true), ("", false)] {
        oracle::mke2fs(&image, 16 << 20, "-t ext4");
        let mount = KernelMount::with(&image, options).unwrap();
        let at = |name: &str| mount.path().join(name);
        // The kernel takes along the times of inodes that share a table block with one that is written.
        let fill =
            |from: u32| (from..from + 40).for_each(|n| drop(std::fs::File::create(at(&n.to_string()))));
        {
            let _open = oracle::files_on_a_mount();
            fill(0);
            std::fs::write(at("f"), [1; 8192]).unwrap();
            fill(40);
        }
        {
            let file = std::fs::File::open(at("f")).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(old).set_accessed(old)).unwrap();
            file.sync_all().unwrap();
            drop(std::fs::read(at("f")).unwrap());
            std::fs::create_dir(at("d")).unwrap();
            std::fs::File::open(at("d")).unwrap().sync_all().unwrap();
            assert_eq!(replayed(&image, "atime") == START, lazy, "{options}");
            file.sync_all().unwrap();
            assert_ne!(replayed(&image, "atime"), START, "{options}");
        }
        mount.unmount();
        let (fs, clock) = open(&image, options);
        let inode = fs.lookup(&fs.root().unwrap(), b"f", &Credentials::root()).unwrap();
        let time = Some(SetTime::At(Timestamp::from_sec(START)));
        let change = SetAttr { atime: time, mtime: time, ..SetAttr::default() };
        fs.set_attr(&inode, &change, &Credentials::root()).unwrap();
        clock.advance(100);
        fs.read_at(&inode, 0, &mut [0; 100]).unwrap();
        fs.touch_atime(&inode);
        fs.periodic_work();
        assert_eq!(durable(&fs, &image, "atime") == START, lazy, "{options}");
        fs.fsync(&inode, false).unwrap();
        assert_eq!(replayed(&image, "atime"), START + 100, "{options}");
        drop(inode);
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&image);
    }
}

/// A flush of what is due leaves the rest where other flushes find it.
#[test]
fn what_is_not_due_stays_listed() {
    need!(env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let (fs, clock) = open(&image, "lazytime,commit=3000");
    let (inode, open) = file(&fs);
    let other = fs.mknod(&fs.root().unwrap(), b"g", &NewInode::file(0o644), &Credentials::root()).unwrap();
    fs.sync().unwrap();
    fs.touch_written(&other);
    clock.advance(100);
    open.write_at(0, b"new").unwrap();
    fs.fsync(&inode, true).unwrap();
    let listed = fs.dirty_times.lock().clone();
    assert!(listed.contains(&inode.ino()) && listed.contains(&other.ino()));
    clock.advance(DAY - 50);
    fs.periodic_work();
    assert_eq!(*fs.dirty_times.lock(), [inode.ino()]);
    assert!(!other.state().times_dirty && inode.state().times_dirty);
    assert_eq!(durable(&fs, &image, "mtime"), START);
    fs.sync().unwrap();
    assert_eq!(replayed(&image, "mtime"), START + 100);
    drop((inode, open, other));
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

/// Who has to have all times written waits for whoever has some of them in hand.
#[test]
fn a_flush_waits_for_a_flush() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let (fs, _) = open(&image, "");
    for flush in
        [Filesystem::flush_times as fn(&Filesystem) -> crate::Result<()>, Filesystem::flush_times_due]
    {
        let under_way = fs.mount.flushing_times.lock();
        let second = {
            let fs = Arc::clone(&fs);
            std::thread::spawn(move || flush(&fs))
        };
        // Without the wait it ends soon.
        let mut looks = 0;
        while !second.is_finished() && looks < 2000 {
            std::thread::yield_now();
            looks += 1;
        }
        assert!(!second.is_finished(), "it does not wait");
        drop(under_way);
        second.join().unwrap().unwrap();
    }
    fs.unmount().unwrap();
}

/// Times are durable after fsync(2), and no reason for a commit to fdatasync(2), nor to a fault with MAP_SYNC; a new i_size is one.
#[test]
fn times_alone_are_not_for_fdatasync() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let (fs, clock) = open(&image, "commit=3000");
    let (inode, open) = file(&fs);
    let sync_tid = || Tid(inode.sync_tid.load(Ordering::Relaxed));
    let data = inode.datasync_tid();
    clock.advance(100);
    open.write_at(0, b"new").unwrap();
    fs.fsync(&inode, false).unwrap();
    assert!(inode.datasync_tid() == data && sync_tid().is_after(data), "written by fsync");
    let times = sync_tid();
    fs.touch_written(&inode);
    fs.flush_times().unwrap();
    assert!(inode.datasync_tid() == data && sync_tid().is_after(times), "written in the background");
    open.write_at(8192, b"more").unwrap();
    fs.fsync(&inode, true).unwrap();
    assert!(inode.datasync_tid().is_after(data) && fs.journal.is_durable(inode.datasync_tid()));
    drop((inode, open));
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}
