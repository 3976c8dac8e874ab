//! The library given memory of a mapping of its own, by a program that has a pointer to it: here, where that may be.

#![allow(unsafe_code, reason = "a caller's pointers into a mapping")]

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use extant::{
    Credentials, FallocateMode, Filesystem, InodeRef, MapOptions, Mapping, NewInode, OpenFile, OpenMode,
    PassedOn, Protection, RenameFlags, Setup, SyncMode, WritePlace, XattrSet,
};
use extant_device::BlockDevice;
use extant_testkit::{env, need, oracle, scratch};

const PAGE: usize = 4096;
const PAST_CACHE: PassedOn = PassedOn { place: WritePlace::At, past_cache: true, kill_suidgid: false };

fn userfaultfd() -> Result<(), String> {
    File::open("/dev/userfaultfd").map(drop).map_err(|e| format!("/dev/userfaultfd: {e}"))
}

fn mount(image: &Path) -> Arc<Filesystem> {
    let device = extant_device::OpenOptions::new().write(true).open(image).expect("image");
    Filesystem::open(Arc::new(device), Setup::default()).expect("mount")
}

fn new_file(fs: &Arc<Filesystem>, name: &str) -> InodeRef {
    let root = fs.root().expect("root");
    fs.mknod(&root, name.as_bytes(), &NewInode::file(0o644), &Credentials::root()).expect("mknod")
}

fn open(fs: &Arc<Filesystem>, inode: &InodeRef) -> OpenFile {
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    OpenFile::new(fs, inode, mode, &Credentials::root()).expect("open")
}

fn map(file: &OpenFile, len: usize) -> Mapping {
    file.map(0, len, &MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() })
        .expect("map")
}

/// Bytes of a mapping, as a caller has them.
fn bytes(map: &Mapping, at: usize, len: usize) -> &[u8] {
    assert!(at + len <= map.len());
    // SAFETY: inside of the mapping, which outlives the result; who uses this stores nothing there meanwhile.
    unsafe { std::slice::from_raw_parts(map.as_ptr().wrapping_add(at), len) }
}

/// A device that does something whenever it is read.
struct Reading {
    inner: extant_device::FileDevice,
    then: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl BlockDevice for Reading {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if let Some(then) = self.then.get() {
            then();
        }
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
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

/// A read of 10 bytes stores 10 bytes: no hole behind them gets blocks, and what another thread stores there meanwhile stays.
#[test]
fn a_short_read_leaves_the_rest_of_its_buffer_alone() {
    need!(userfaultfd());
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = mount(&image);
    open(&fs, &new_file(&fs, "source")).write_at(0, b"ten bytes.").expect("write");
    fs.unmount().expect("unmount");
    drop(fs);
    let inner = extant_device::OpenOptions::new().write(true).open(&image).expect("image");
    let device = Arc::new(Reading { inner, then: OnceLock::new() });
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).expect("mount");
    let root = fs.root().expect("root");
    let source = open(&fs, &fs.lookup(&root, b"source", &Credentials::root()).expect("source"));
    let target = open(&fs, &new_file(&fs, "target"));
    target.set_len(16 * PAGE as u64).expect("size");
    let map = Arc::new(map(&target, 16 * PAGE));
    // It can be stored to without a fault.
    map.write_at(100, &[1]).expect("store");
    let (other, reading) = (Arc::downgrade(&map), Arc::new(AtomicBool::new(true)));
    let armed = Arc::clone(&reading);
    let hook = move || {
        if let Some(map) = other.upgrade().filter(|_| armed.load(Ordering::Relaxed)) {
            map.atomic_u8(100).store(9, Ordering::Relaxed);
        }
    };
    assert!(device.then.set(Box::new(hook)).is_ok());
    // SAFETY: inside of the mapping, which outlives it; no other reference is used meanwhile.
    let buffer = unsafe { std::slice::from_raw_parts_mut(map.as_ptr(), 16 * PAGE) };
    assert_eq!(source.read_at(0, buffer).expect("read"), 10);
    reading.store(false, Ordering::Relaxed);
    assert_eq!(bytes(&map, 0, 10), b"ten bytes.");
    assert_eq!(map.atomic_u8(100).load(Ordering::Relaxed), 9, "another thread's store is undone");
    map.sync(0..PAGE, SyncMode::Sync).expect("sync");
    assert_eq!(target.inode().attr().blocks, 8, "blocks where nothing was stored");
    drop((map, target, source, root));
    fs.unmount().expect("unmount");
    oracle::assert_clean(&image);
}

/// Every call that takes bytes, given some that lie in a mapping whose page has yet to come, and comes with locks that the call takes: in
/// a process of its own, which a thread that waits for itself would not end (and which the check of locks ends at once).
#[test]
fn bytes_that_have_yet_to_come() {
    const CALL: &str = "EXTANT_TEST_CALL";
    if let Ok(call) = std::env::var(CALL) {
        return one_call(&call);
    }
    need!(userfaultfd());
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let calls = [
        "set_xattr",
        "get_xattr",
        "remove_xattr",
        "write_past_cache",
        "write",
        "lookup",
        "mknod",
        "mkdir",
        "symlink",
        "link",
        "rename",
        "unlink",
        "rmdir",
        "label",
    ];
    for call in calls {
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "buffers::bytes_that_have_yet_to_come", "--nocapture"])
            .env(CALL, call)
            .output()
            .expect("this program");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{call}: {}\n{said}", String::from_utf8_lossy(&output.stdout));
    }
}

fn one_call(call: &str) {
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = mount(&image);
    let (root, cred) = (fs.root().expect("root"), Credentials::root());
    let file = open(&fs, &new_file(&fs, "file"));
    let mut content = vec![b'x'; 16 * PAGE];
    content[..40].copy_from_slice(b"user.name\0name\0other\0file\0folder\0label..");
    file.write_at(0, &content).expect("write");
    file.fallocate(FallocateMode::Allocate, 0, content.len() as u64, false).expect("fallocate");
    fs.sync().expect("sync");
    fs.mkdir(&root, b"folder", 0o755, &cred).expect("mkdir");
    fs.set_xattr(file.inode(), b"user.name", b"value", XattrSet::Any, &cred).expect("xattr");
    let map = map(&file, content.len());
    let word = |text: &[u8]| {
        let at = content.windows(text.len()).position(|at| at == text).expect("a word");
        bytes(&map, at, text.len())
    };
    let (inode, flags) = (file.inode(), RenameFlags::default());
    let failed = match call {
        "set_xattr" => {
            fs.set_xattr(inode, word(b"user.name"), bytes(&map, 0, 64), XattrSet::Any, &cred).map(drop)
        }
        "get_xattr" => fs.get_xattr(inode, word(b"user.name"), &cred).map(drop),
        "remove_xattr" => fs.remove_xattr(inode, word(b"user.name"), &cred),
        "write_past_cache" => {
            file.write_passed_on(8 * PAGE as u64, bytes(&map, 0, PAGE), PAST_CACHE).map(drop)
        }
        "write" => file.write_at(8 * PAGE as u64, bytes(&map, 0, PAGE)).map(drop),
        "lookup" => fs.lookup(&root, word(b"file"), &cred).map(drop),
        "mknod" => fs.mknod(&root, word(b"other"), &NewInode::file(0o644), &cred).map(drop),
        "mkdir" => fs.mkdir(&root, word(b"other"), 0o755, &cred).map(drop),
        "symlink" => fs.symlink(&root, word(b"other"), word(b"name"), &cred).map(drop),
        "link" => fs.link(inode, &root, word(b"other"), &cred),
        "rename" => fs.rename(&root, word(b"file"), &root, word(b"other"), flags, &cred).map(drop),
        "unlink" => fs.unlink(&root, word(b"file"), &cred).map(drop),
        "rmdir" => fs.rmdir(&root, word(b"folder"), &cred).map(drop),
        _ => fs.set_label(word(b"label"), &cred),
    };
    failed.unwrap_or_else(|error| panic!("{call}: {error}"));
    if call == "write_past_cache" || call == "write" {
        let mut got = vec![0; PAGE];
        file.read_at(8 * PAGE as u64, &mut got).expect("read");
        assert!(got == content[..PAGE], "{call}: other bytes");
    }
    drop((map, file, root));
    fs.unmount().expect("unmount");
    oracle::assert_clean(&image);
}
