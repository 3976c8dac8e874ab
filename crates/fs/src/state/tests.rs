//! Remounts and freezes at the same time; what a filesystem that was stopped still writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use extant_device::{BlockDevice, MemoryDevice, OpenOptions};
use extant_testkit::{env, need, oracle, scratch};

use crate::data_rw::WriteFlags;
use crate::icache::InodeRef;
use crate::{Credentials, Error, Filesystem, MountOptions, NewInode, Setup, ShutdownMode};

/// One remount waits for the other, and only one begins the mount for writing.
#[test]
fn remounts_go_one_after_the_other() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::with_options("ro").unwrap()).unwrap();
    let (before, _) = fs.superblock().mount_counts();
    let under_way = fs.mount.whole.lock();
    let remounts = [(); 2].map(|()| {
        let fs = Arc::clone(&fs);
        std::thread::spawn(move || fs.remount(&MountOptions::parse("rw").unwrap()))
    });
    // Without the wait they end soon.
    let mut looks = 0;
    while !remounts.iter().any(std::thread::JoinHandle::is_finished) && looks < 20_000 {
        std::thread::yield_now();
        looks += 1;
    }
    assert!(fs.is_read_only(), "they do not wait");
    drop(under_way);
    remounts.into_iter().for_each(|one| one.join().unwrap().unwrap());
    assert!(!fs.is_read_only());
    assert_eq!(fs.superblock().mount_counts().0, before + 1);
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

type Stop = fn(&Filesystem);

/// What stops a filesystem at once: it writes nothing after it, however often writeback tries.
#[test]
fn a_stopped_filesystem_leaves_the_image_alone() {
    need!(env::tools(&["mke2fs"]));
    let stops: [(&str, Stop); 3] = [
        ("shutdown", |fs| fs.shutdown(ShutdownMode::NoFlush, &Credentials::root()).unwrap()),
        ("errors=panic", |fs| fs.on_damage(&Error::bad_inode(extant_format::Ino(11), "size", 77))),
        ("errors=remount-ro", |fs| fs.on_damage(&Error::bad_inode(extant_format::Ino(11), "size", 77))),
    ];
    for (name, stop) in stops {
        let dir = scratch();
        let image = dir.join("image");
        oracle::mke2fs(&image, 16 << 20, "-t ext4");
        let device = OpenOptions::new().write(true).open(&image).unwrap();
        let words = if name.starts_with("errors") { name } else { "errors=continue" };
        let words = format!("{words},commit=300");
        let fs = Filesystem::open(Arc::new(device), Setup::with_options(&words).unwrap()).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        fs.on_panic(move || told.store(true, Ordering::Release));
        let cred = Credentials::root();
        let file = fs.mknod(&fs.root().unwrap(), b"file", &crate::NewInode::file(0o644), &cred).unwrap();
        let mode = crate::OpenMode { read: true, write: true, ..crate::OpenMode::default() };
        let open = crate::OpenFile::new(&fs, &file, mode, &cred).unwrap();
        open.write_at(0, &[b'a'; 4096]).unwrap();
        fs.sync().unwrap();
        // One block in place, one that is new.
        open.write_at(0, &[b'b'; 8192]).unwrap();
        stop(&fs);
        let before = std::fs::read(&image).unwrap();
        for _ in 0..3 {
            assert!(fs.pages.sync_all().is_err(), "{name}");
        }
        let after = std::fs::read(&image).unwrap();
        assert!(!after.chunks(1024).any(|c| c == [b'b'; 1024]), "{name}: content was written");
        assert!(fs.unmount().is_err(), "{name}");
        drop((open, file, fs));
        assert_eq!(ended.load(Ordering::Acquire), name == "errors=panic", "{name}");
        // An abort is recorded in the journal.
        if name != "errors=remount-ro" {
            assert!(before == std::fs::read(&image).unwrap(), "{name}: something was written at the end");
        }
    }
}

/// What a remount cannot change it refuses by name; the same value is no change.
#[test]
fn a_remount_says_what_it_cannot_change() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::with_options("cache_size=64m").unwrap()).unwrap();
    let remount = |words| fs.remount(&MountOptions::parse(words).unwrap());
    for words in
        ["cache_size=32m", "sb=8193", "journal_path=/dev/null", "data=journal", "dax=always", "pmem=on"]
    {
        let name = &words[..=words.find('=').unwrap()];
        let why = remount(words).unwrap_err().to_string();
        assert!(why.contains(name), "{words}: {why}");
    }
    remount("cache_size=64m,commit=9,nobarrier,stripe=16").unwrap();
    assert_eq!((fs.options().commit_secs, fs.options().barrier, fs.options().stripe), (9, false, 16));
    fs.unmount().unwrap();
}

/// The image of a frozen filesystem is clean, and stays so if it cannot be marked as in use: then nothing is written to it.
#[test]
fn a_thaw_that_cannot_mark_the_image_leaves_it_alone() {
    use extant_testkit::sim::{Failpoint, Kind, SimDevice};
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for mkfs in ["-t ext4", "-t ext4 -O ^has_journal"] {
        for unmounted in [false, true] {
            let dir = scratch();
            let image = dir.join("image");
            oracle::mke2fs(&image, 16 << 20, mkfs);
            let device = SimDevice::from_file(&image);
            let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
            let (root, cred) = (fs.root().unwrap(), crate::Credentials::root());
            let new = crate::NewInode::file(0o644);
            drop(fs.mknod(&root, b"before", &new, &cred).unwrap());
            fs.freeze(&cred).unwrap();
            device.fail(Failpoint::nth(Kind::Write, 0));
            if !unmounted {
                assert_eq!(fs.thaw(&cred).unwrap_err().errno(), 5, "{mkfs}");
                assert!(fs.is_read_only(), "{mkfs}");
                assert!(fs.mknod(&root, b"after", &new, &cred).is_err(), "{mkfs}");
            }
            drop(root);
            assert!(fs.unmount().is_err(), "{mkfs}");
            device.heal();
            device.content().to_file(&image).unwrap();
            oracle::assert_clean(&image);
        }
    }
}

/// What is written after a freeze or a remount that was refused is found after a crash: the superblock does not say clean, whichever
/// write or flush failed; or nothing is written any more.
#[test]
fn a_refused_freeze_leaves_the_image_in_use() {
    use extant_device::BlockDevice;
    use extant_format::superblock::State;
    use extant_format::{Incompat, Superblock};
    use extant_testkit::sim::{Failpoint, Kind, SimDevice};
    need!(env::tools(&["mke2fs"]));
    type Change = fn(&Filesystem) -> crate::Result<()>;
    let changes: [(&str, Change); 2] = [
        ("freeze", |fs| fs.freeze(&Credentials::root())),
        ("remount", |fs| fs.remount(&MountOptions::parse("ro").unwrap())),
    ];
    let in_use = |device: &SimDevice| {
        let mut bytes = [0; 1024];
        device.read_at(1024, &mut bytes).unwrap();
        let sb = Superblock::read(&bytes).unwrap();
        sb.features().incompat.contains(Incompat::RECOVER) || !sb.state().contains(State::VALID)
    };
    let (cred, new) = (Credentials::root(), crate::NewInode::file(0o644));
    let dir = scratch();
    let image = dir.join("image");
    let (mut refused, mut written) = (0, 0);
    for mkfs in ["-t ext4", "-t ext4 -O ^has_journal"] {
        oracle::mke2fs(&image, 16 << 20, mkfs);
        let made = SimDevice::from_file(&image).content();
        let points = [(Kind::Write, 1), (Kind::Write, u64::MAX), (Kind::Flush, 1), (Kind::Flush, u64::MAX)];
        for (kind, times) in points {
            for (name, change) in changes {
                for skip in 0.. {
                    let what = format!("{mkfs}, {name}: {kind:?} {skip}, {times} times");
                    assert!(skip < 1000, "{what}");
                    let device = SimDevice::from_content(made.clone());
                    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
                    let root = fs.root().unwrap();
                    drop(fs.mknod(&root, b"before", &new, &cred).unwrap());
                    device.fail(Failpoint { skip, times, ..Failpoint::nth(kind, 0) });
                    let done = change(&fs);
                    device.heal();
                    if done.is_ok() {
                        break;
                    }
                    refused += 1;
                    let after = fs.mknod(&root, b"after", &new, &cred);
                    if after.and_then(|file| fs.fsync(&file, false)).is_ok() {
                        written += 1;
                        assert!(in_use(&device), "{what}: written under a superblock that says clean");
                    }
                    drop(root);
                    // What the device did not take may end it with an error.
                    let _ = fs.unmount();
                }
            }
        }
    }
    assert!(refused > 40 && written > 10, "{refused} refused, {written} written to");
}

/// A remount for writing whose write fails may be tried again.
#[test]
fn a_remount_that_the_device_refused_may_be_tried_again() {
    use extant_testkit::sim::{Failpoint, Kind, SimDevice};
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    let remount = |fs: &Filesystem, words| fs.remount(&MountOptions::parse(words).unwrap());
    for mkfs in ["-t ext4", "-t ext4 -O ^has_journal"] {
        for (kind, nth) in [(Kind::Write, 0), (Kind::Write, 1), (Kind::Flush, 0), (Kind::Flush, 1)] {
            let what = format!("{mkfs}: {kind:?} {nth}");
            oracle::mke2fs(&image, 16 << 20, mkfs);
            let device = SimDevice::from_file(&image);
            let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
            remount(&fs, "ro").unwrap();
            device.fail(Failpoint::nth(kind, nth));
            assert_eq!(remount(&fs, "rw").unwrap_err().errno(), 5, "{what}");
            assert!(fs.is_read_only(), "{what}");
            device.heal();
            remount(&fs, "rw").unwrap_or_else(|e| panic!("{what}: {e}"));
            fs.mknod(&fs.root().unwrap(), b"f", &crate::NewInode::file(0o644), &Credentials::root()).unwrap();
            fs.unmount().unwrap();
            device.content().to_file(&image).unwrap();
            oracle::assert_clean(&image);
        }
    }
}

/// A freeze, a thaw, an unmount and an orderly shutdown wait for a remount that is under way: whose lock they take, as the order of
/// locks says when the same thread has it.
#[test]
#[cfg(debug_assertions)]
fn what_changes_the_mount_waits_for_a_remount() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    type Change = fn(&Filesystem) -> crate::Result<()>;
    let changes: [(&str, Change); 5] = [
        ("remount", |fs| fs.remount(&MountOptions::parse("ro").unwrap())),
        ("freeze", |fs| fs.freeze(&Credentials::root())),
        ("thaw", |fs| fs.thaw(&Credentials::root())),
        ("shutdown", |fs| fs.shutdown(ShutdownMode::Sync, &Credentials::root())),
        ("unmount", Filesystem::unmount),
    ];
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
    for (what, change) in changes {
        let under_way = fs.mount.whole.lock();
        let waits = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(&fs))).unwrap_err();
        let words = waits.downcast_ref::<String>().map_or("", String::as_str);
        assert!(words.contains("mount as a whole"), "{what}: {words}");
        drop(under_way);
    }
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

/// Looks at each write to one block whether the inode is locked for writers.
#[derive(Debug)]
struct Watched {
    inner: MemoryDevice,
    block: std::ops::Range<u64>,
    inode: Mutex<Option<InodeRef>>,
    locked: Mutex<Vec<bool>>,
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        if offset < self.block.end && offset + buf.len() as u64 > self.block.start {
            let inode = self.inode.lock().unwrap();
            let locked = inode.as_ref().is_some_and(|inode| inode.lock.try_write().is_none());
            self.locked.lock().unwrap().push(locked);
        }
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.write_zeroes(offset, len)
    }
}

/// A filesystem that becomes writable while it is in use finishes an interrupted truncation beside writers: who appends to that file
/// waits for it.
#[test]
fn a_truncation_is_finished_under_the_lock_of_the_inode() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 1024 -O ^orphan_file");
    let cred = Credentials::root();
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
    let cut = fs.mknod(&fs.root().unwrap(), b"cut", &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&cut, 0, &[7; 4096], WriteFlags::default(), &cred).unwrap();
    let ino = cut.ino();
    drop(cut);
    fs.unmount().unwrap();
    drop(fs);
    let blocks = oracle::debugfs(&image, &["blocks /cut"]);
    let blocks: Vec<u64> = blocks.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    oracle::debugfs_write(&image, &["sif /cut size 1500", &format!("ssv last_orphan {ino}")]);
    let device = Arc::new(Watched {
        inner: MemoryDevice::from_bytes(&std::fs::read(&image).unwrap()),
        block: blocks[1] * 1024..blocks[2] * 1024,
        inode: Mutex::default(),
        locked: Mutex::default(),
    });
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::with_options("ro").unwrap()).unwrap();
    *device.inode.lock().unwrap() = Some(fs.lookup(&fs.root().unwrap(), b"cut", &cred).unwrap());
    fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
    assert_eq!(*device.locked.lock().unwrap(), [true]);
    let cut = device.inode.lock().unwrap().take().unwrap();
    assert_eq!((cut.attr().size, cut.attr().blocks), (1500, 4));
    drop(cut);
    fs.unmount().unwrap();
    drop(fs);
    std::fs::write(&image, device.inner.to_bytes()).unwrap();
    oracle::assert_clean(&image);
}
