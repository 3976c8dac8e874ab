//! DAX: the flag beside the kernel's, the mode on a device that is memory, mappings that show it, and changes of the mode under all of
//! that.

use std::path::Path;
use std::sync::Arc;

use extant::{
    Advice, Credentials, DaxMode, FallocateMode, Filesystem, InodeFlags, InodeRef, MapOptions, MountOptions,
    NewInode, OpenFile, Protection, SetAttr, Setup, SyncMode,
};
use extant_device::{BlockDevice, DirectAccess, FileDevice, MemoryDevice, OpenOptions};
use extant_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use extant_sync::thread;
use extant_testkit::env::{kernel_mounts, scratch, tools};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, files_on_a_mount, mke2fs};
use extant_testkit::rng::Rng;
use rustix::fs::IFlags;

use crate::mapping::{new_file, open, shared, userfaultfd};
use crate::support::{open_rw, open_with};

const PAGE: usize = 4096;

fn root() -> Credentials {
    Credentials::root()
}

fn flip(fs: &Filesystem, inode: &InodeRef) {
    fs.set_flags(inode, inode.attr().flags ^ InodeFlags::DAX, &root()).expect("a flip");
}

/// What is done to flags, on us and on the kernel; and the errno of each.
trait Flags {
    fn mkdir(&self, path: &str);
    fn create(&self, path: &str, content: &[u8]);
    fn flags(&self, path: &str) -> u32;
    fn set(&self, path: &str, flags: u32) -> i32;
}

impl Flags for Path {
    fn mkdir(&self, path: &str) {
        std::fs::create_dir(self.join(path)).unwrap();
    }
    fn create(&self, path: &str, content: &[u8]) {
        std::fs::write(self.join(path), content).unwrap();
    }
    fn flags(&self, path: &str) -> u32 {
        let file = std::fs::File::open(self.join(path)).unwrap();
        rustix::fs::ioctl_getflags(&file).unwrap().bits()
    }
    fn set(&self, path: &str, flags: u32) -> i32 {
        let file = std::fs::File::open(self.join(path)).unwrap();
        let set = rustix::fs::ioctl_setflags(&file, IFlags::from_bits_retain(flags));
        set.err().map_or(0, rustix::io::Errno::raw_os_error)
    }
}

impl Flags for Arc<Filesystem> {
    fn mkdir(&self, path: &str) {
        let (dir, name) = parent(self, path);
        Filesystem::mkdir(self, &dir, name.as_bytes(), 0o755, &root()).unwrap();
    }
    fn create(&self, path: &str, content: &[u8]) {
        let (dir, name) = parent(self, path);
        let inode = self.mknod(&dir, name.as_bytes(), &NewInode::file(0o644), &root()).unwrap();
        if !content.is_empty() {
            open(self, &inode, false).write_at(0, content).unwrap();
        }
    }
    fn flags(&self, path: &str) -> u32 {
        (find(self, path).attr().flags & InodeFlags::USER_VISIBLE).bits()
    }
    fn set(&self, path: &str, flags: u32) -> i32 {
        let set = self.set_flags(&find(self, path), InodeFlags::from_bits_retain(flags), &root());
        set.err().map_or(0, |e| e.errno())
    }
}

fn find(fs: &Arc<Filesystem>, path: &str) -> InodeRef {
    path.split('/').fold(fs.root().unwrap(), |at, name| fs.lookup(&at, name.as_bytes(), &root()).unwrap())
}

fn parent<'p>(fs: &Arc<Filesystem>, path: &'p str) -> (InodeRef, &'p str) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (find(fs, dir), name),
        None => (fs.root().unwrap(), path),
    }
}

/// A session of changes; what each answered, and every file's flags at the end.
fn session(on: &(impl Flags + ?Sized)) -> Vec<(String, u32)> {
    const DAX: u32 = 0x200_0000;
    let mut said = Vec::new();
    let set = |said: &mut Vec<(String, u32)>, path: &str, bits: u32| {
        let flags = on.flags(path);
        said.push((format!("set {bits:#x} of {path}"), on.set(path, flags ^ bits).unsigned_abs()));
    };
    on.mkdir("d");
    on.mkdir("d/before");
    set(&mut said, "d", DAX);
    on.mkdir("d/sub");
    on.mkdir("d/sub/deeper");
    on.create("d/empty", b"");
    on.create("d/small", b"a few bytes");
    on.create("d/before/f", b"a few bytes");
    on.create("d/sub/f", &[7; 9000]);
    on.create("small", b"a few bytes");
    on.create("large", &[7; 9000]);
    for path in ["small", "large", "d/small", "d/before", "d/sub"] {
        set(&mut said, path, DAX);
    }
    // With the append-only flag beside it, and without.
    set(&mut said, "large", 0x20);
    set(&mut said, "large", DAX);
    set(&mut said, "large", 0x20 | DAX);
    let all = [
        "d",
        "d/before",
        "d/before/f",
        "d/sub",
        "d/sub/deeper",
        "d/sub/f",
        "d/empty",
        "d/small",
        "small",
        "large",
    ];
    said.extend(all.map(|path| (format!("flags of {path}"), on.flags(path))));
    said
}

#[test]
fn the_flag_is_the_kernels() {
    need!(kernel_mounts(), tools(&["mke2fs"]));
    for args in
        ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 4096 -O inline_data -I 512", "-t ext3 -b 4096"]
    {
        let dir = scratch();
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        mke2fs(&ours, 16 << 20, args);
        std::fs::copy(&ours, &theirs).unwrap();
        let mount = KernelMount::rw(&theirs);
        let open = files_on_a_mount();
        let want = session(mount.path());
        drop(open);
        mount.unmount();
        let fs = open_rw(&ours);
        let got = session(&fs);
        assert_eq!(got, want, "{args}");
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&ours);
        // And what we left is the kernel's to read.
        let mount = KernelMount::ro(&ours);
        let open = files_on_a_mount();
        let left: Vec<u32> =
            ["d/sub/f", "d/small", "large"].iter().map(|path| mount.path().flags(path)).collect();
        drop(open);
        let said = |path: &str| want.iter().find(|(what, _)| *what == format!("flags of {path}")).unwrap().1;
        assert_eq!(left, [said("d/sub/f"), said("d/small"), said("large")], "{args}");
        mount.unmount();
    }
}

fn refusal(device: Arc<dyn BlockDevice>, options: &str) -> String {
    let setup = Setup::with_options(options).unwrap();
    Filesystem::open(device, setup).expect_err("refused").to_string()
}

#[test]
fn always_needs_a_device_that_can() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    let device = || Arc::new(OpenOptions::new().write(true).open(&image).unwrap());
    for (args, options, why) in [
        ("-t ext4 -b 1024", "dax", "blocks of 1024 bytes"),
        ("-t ext4 -b 4096 -O inline_data", "dax=always", "inline_data"),
        ("-t ext4 -b 4096", "dax=always,data=journal", "data=journal"),
    ] {
        mke2fs(&image, 16 << 20, args);
        assert!(refusal(device(), options).contains(why), "{args} {options}: {}", refusal(device(), options));
        // Asked for by inode it is off, and says nothing.
        open_with(&image, &format!("{options},dax=inode")).unmount().unwrap();
    }
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let bytes = std::fs::read(&image).unwrap();
    let plain = || Arc::new(MemoryDevice::from_bytes(&bytes)) as Arc<dyn BlockDevice>;
    assert!(refusal(plain(), "dax=always").contains("no direct access"));
    let read_only = Arc::new(OpenOptions::new().open(&image).unwrap());
    assert!(refusal(read_only, "dax=always,ro").contains("no direct access"));
    let fs = Filesystem::open(plain(), Setup::with_options("dax=inode").unwrap()).unwrap();
    let inode = new_file(&fs, "f");
    flip(&fs, &inode);
    assert!(inode.attr().flags.contains(InodeFlags::DAX) && !fs.effective_dax(&inode));
    fs.unmount().unwrap();
    // What the mount was asked for does not change.
    let fs = open_with(&image, "dax=always");
    assert!(fs.remount(&MountOptions::parse("dax=never").unwrap()).is_err());
    fs.remount(&MountOptions::parse("commit=9").unwrap()).unwrap();
    assert_eq!((fs.options().dax, fs.options().commit_secs), (DaxMode::Always, 9));
    assert!(fs.effective_dax(&new_file(&fs, "g")) && !fs.effective_dax(&fs.root().unwrap()));
    fs.unmount().unwrap();
}

/// An image in memory that can be mapped.
pub(crate) fn in_memory(image: &Path) -> Arc<FileDevice> {
    let bytes = std::fs::read(image).unwrap();
    let device = FileDevice::in_memory(bytes.len() as u64).unwrap();
    device.write_at(0, &bytes).unwrap();
    Arc::new(device)
}

/// Bytes of a file that are on the device now, nothing written back.
fn on_device(fs: &Filesystem, device: &dyn BlockDevice, inode: &InodeRef, lblk: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PAGE];
    device.read_at(fs.device_block(inode, lblk).unwrap()?.0 * PAGE as u64, &mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn content_is_on_the_device_at_once_and_switches_under_use() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let device = in_memory(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 3 * PAGE]).unwrap();
    assert!(!fs.effective_dax(&inode));
    flip(&fs, &inode);
    assert!(fs.effective_dax(&inode));
    // What was delayed has its place, and what is written now is there.
    assert_eq!(on_device(&fs, &*device, &inode, 2), Some(vec![1; PAGE]));
    file.write_at(100, &[2; 10]).unwrap();
    let first = on_device(&fs, &*device, &inode, 0).unwrap();
    assert!(first[..100] == [1; 100] && first[100..110] == [2; 10]);
    // Past the end, into preallocated blocks, over a hole.
    file.write_at(5 * PAGE as u64 + 7, &[3; 5]).unwrap();
    file.fallocate(FallocateMode::Allocate, 8 * PAGE as u64, 4 * PAGE as u64, false).unwrap();
    file.write_at(9 * PAGE as u64 + 1, &[4; 2]).unwrap();
    let (five, nine) =
        (on_device(&fs, &*device, &inode, 5).unwrap(), on_device(&fs, &*device, &inode, 9).unwrap());
    assert!(
        five[7..12] == [3; 5]
            && five[..7] == [0; 7]
            && nine[1..3] == [4; 2]
            && nine[3..].iter().all(|b| *b == 0)
    );
    assert_eq!(on_device(&fs, &*device, &inode, 4), None, "a hole has a block");
    let mut got = vec![9; 13 * PAGE];
    assert_eq!(file.read_at(0, &mut got).unwrap(), 12 * PAGE);
    assert!(got[3 * PAGE..5 * PAGE + 7].iter().all(|b| *b == 0) && got[5 * PAGE + 7] == 3);
    // Cut inside of a block, and grown again: zeros.
    file.set_len(100).unwrap();
    file.set_len(PAGE as u64).unwrap();
    assert_eq!(on_device(&fs, &*device, &inode, 0).unwrap()[100..], [0; PAGE - 100]);
    flip(&fs, &inode);
    assert!(!fs.effective_dax(&inode));
    let mut got = [9; PAGE];
    file.read_at(0, &mut got).unwrap();
    assert!(got[..100] == [1; 100] && got[100..].iter().all(|b| *b == 0));
    // The flag counts for nothing where it is not asked.
    file.fsync(false).unwrap();
    drop(file);
    fs.unmount().unwrap();
    drop((inode, fs));
    std::fs::write(&image, {
        let mut all = vec![0; device.size() as usize];
        device.read_at(0, &mut all).unwrap();
        all
    })
    .unwrap();
    assert_clean(&image);
}

/// With `dax_switch=deferred` a changed flag counts when nobody has the file open any more, whatever of it is still in memory.
#[test]
fn a_deferred_switch_waits_until_nobody_uses_the_file() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax_switch=deferred");
    // As the server of a mount does, which keeps what the kernel knows.
    let inode = new_file(&fs, "f");
    let (file, other) = (open(&fs, &inode, false), open(&fs, &inode, false));
    file.write_at(0, &[1; 100]).unwrap();
    flip(&fs, &inode);
    assert!(inode.attr().flags.contains(InodeFlags::DAX) && !fs.effective_dax(&inode));
    // Dirty, and still to be found in the new mode.
    file.write_at(50, &[2; 10]).unwrap();
    drop(file);
    assert!(!fs.effective_dax(&inode) && !fs.effective_dax(open(&fs, &inode, false).inode()));
    drop(other);
    assert!(fs.effective_dax(&inode));
    let file = open(&fs, &inode, false);
    assert!(fs.effective_dax(&inode));
    let mut got = [0; 100];
    file.read_at(0, &mut got).unwrap();
    assert!(got[..50] == [1; 50] && got[50..60] == [2; 10]);
    // And back.
    flip(&fs, &inode);
    assert!(fs.effective_dax(&inode));
    drop(file);
    assert!(!fs.effective_dax(&inode));
    // Twice is not at all.
    flip(&fs, &inode);
    flip(&fs, &inode);
    open(&fs, &inode, false).read_at(0, &mut got).unwrap();
    assert!(!fs.effective_dax(&inode) && got[50..60] == [2; 10]);
    drop(inode);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// The same of a file that is mapped: it is in use; and what is kept of its memory for the next mapping holds nothing back.
#[test]
fn a_deferred_switch_waits_for_mappings_and_not_for_their_memory() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax_switch=deferred");
    let inode = new_file(&fs, "f");
    for dax in [true, false, true] {
        let file = open(&fs, &inode, false);
        file.set_len(2 * PAGE as u64).unwrap();
        let map = file.map(0, 2 * PAGE, &shared()).unwrap();
        map.write_at(7, &[1]).unwrap();
        flip(&fs, &inode);
        drop(file);
        // The mapping keeps it open, and shows what it showed.
        map.write_at(PAGE + 7, &[2 + u8::from(dax)]).unwrap();
        let windows = map.user_pages().windows();
        assert_eq!((fs.effective_dax(&inode), windows > 0), (!dax, !dax));
        open(&fs, &inode, false).read_at(0, &mut [0; 8]).unwrap();
        assert_eq!(fs.effective_dax(&inode), !dax);
        drop(map);
        assert_eq!(fs.effective_dax(&inode), dax);
        let file = open(&fs, &inode, false);
        let map = file.map(0, 2 * PAGE, &shared()).unwrap();
        let mut got = [0; 2 * PAGE];
        map.read_at(0, &mut got).unwrap();
        assert_eq!((got[7], got[8], got[PAGE + 7]), (1, 0, 2 + u8::from(dax)));
        assert_eq!(map.user_pages().windows() > 0, dax);
    }
    drop(inode);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// A device in memory whose reads fail from some time on.
#[derive(Debug)]
struct FailingMemory {
    inner: Arc<FileDevice>,
    /// Reads until one fails, and all after it.
    left: AtomicU64,
}

impl BlockDevice for FailingMemory {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| std::io::Error::from_raw_os_error(5))?;
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
    fn direct_access(&self) -> Option<extant_device::DirectAccess> {
        self.inner.direct_access()
    }
}

/// A change of the flag on a device that fails, from each of its reads on: flag and mode have both changed, or neither.
#[test]
fn flag_and_mode_change_together_or_not_at_all() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    // With quota, whose files are read when an owner's first change comes.
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -O quota");
    let fs = open_rw(&image);
    for (name, dax) in [("plain", false), ("dax", true)] {
        let inode = new_file(&fs, name);
        let change = SetAttr { uid: Some(1000), gid: Some(1000), ..SetAttr::default() };
        fs.set_attr(&inode, &change, &root()).unwrap();
        open(&fs, &inode, false).write_at(0, &[1; 2 * PAGE]).unwrap();
        if dax {
            flip(&fs, &inode);
        }
    }
    fs.unmount().unwrap();
    drop(fs);
    for (name, dax) in [("plain", false), ("dax", true)] {
        let mut refused = 0;
        for left in 0.. {
            let device = Arc::new(FailingMemory { inner: in_memory(&image), left: AtomicU64::new(u64::MAX) });
            let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
            let inode = find(&fs, name);
            assert_eq!(fs.effective_dax(&inode), dax);
            device.left.store(left, Ordering::SeqCst);
            let done = fs.set_flags(&inode, inode.attr().flags ^ InodeFlags::DAX, &root());
            device.left.store(u64::MAX, Ordering::SeqCst);
            let flag = inode.attr().flags.contains(InodeFlags::DAX);
            assert_eq!(
                (flag, flag),
                (fs.effective_dax(&inode), dax == done.is_err()),
                "{name}, {left}: {done:?}"
            );
            let mut got = [0; 2 * PAGE];
            open(&fs, &inode, false).read_at(0, &mut got).unwrap();
            assert!(got == [1; 2 * PAGE]);
            drop(inode);
            fs.unmount().unwrap();
            drop(fs);
            // What the disk says is what it is mounted as.
            let fs = Filesystem::open(Arc::clone(&device.inner) as _, Setup::default()).unwrap();
            let inode = find(&fs, name);
            assert_eq!(
                (inode.attr().flags.contains(InodeFlags::DAX), fs.effective_dax(&inode)),
                (flag, flag)
            );
            drop(inode);
            fs.unmount().unwrap();
            if done.is_ok() {
                break;
            }
            refused += 1;
        }
        assert!(refused > 0, "{name}: nothing was read for it");
    }
}

/// Who holds a pin and wants the mode changed is told, and goes on.
#[test]
fn a_flip_under_a_pin_of_its_own_is_refused() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_rw(&image);
    let inode = new_file(&fs, "f");
    let (file, direct) = (open(&fs, &inode, false), open(&fs, &inode, true));
    file.write_at(0, &[1; 4 * PAGE]).unwrap();
    let map = file.map(0, 4 * PAGE, &shared()).unwrap();
    for dax in [false, true, false] {
        assert_eq!(fs.effective_dax(&inode), dax);
        let flags = inode.attr().flags;
        let pin = map.pin(0..2 * PAGE).unwrap();
        let other = flags ^ InodeFlags::DAX;
        assert!(matches!(fs.set_flags(&inode, other, &root()), Err(extant::Error::WouldDeadlock)));
        assert!(matches!(fs.try_set_flags(&inode, other, &root()), Err(extant::Error::Busy)));
        // What changes no mode waits for nothing.
        fs.set_flags(&inode, flags ^ InodeFlags::NOATIME, &root()).unwrap();
        map.write_at(3, &[2]).unwrap();
        file.write_at(4, &[3]).unwrap();
        assert_eq!(direct.write_at(PAGE as u64, &[4; 2 * PAGE]).unwrap().0, 2 * PAGE);
        map.write_at(PAGE + 5, &[5]).unwrap();
        file.fallocate(FallocateMode::PunchHole, 3 * PAGE as u64, PAGE as u64, true).unwrap();
        file.set_len(3 * PAGE as u64).unwrap();
        file.set_len(4 * PAGE as u64).unwrap();
        file.fsync(false).unwrap();
        let mut got = [9; 4 * PAGE];
        file.read_at(0, &mut got).unwrap();
        assert!(got[3..5] == [2, 3] && got[PAGE + 4..PAGE + 6] == [4, 5] && got[3 * PAGE..] == [0; PAGE]);
        drop(pin);
        fs.try_set_flags(&inode, inode.attr().flags ^ InodeFlags::DAX, &root()).unwrap();
        file.read_at(0, &mut got).unwrap();
        assert!(got[3..5] == [2, 3] && got[PAGE + 4..PAGE + 6] == [4, 5]);
    }
    drop((map, file, direct, inode));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// Large mappings lie such that huge pages of the file can be huge pages of theirs.
#[test]
fn large_mappings_are_aligned_to_huge_pages() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    const HUGE: usize = 2 << 20;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    let file = open(&fs, &new_file(&fs, "f"), false);
    file.set_len(4 * HUGE as u64).unwrap();
    let maps: Vec<_> = [0, PAGE, HUGE, HUGE + 7 * PAGE]
        .into_iter()
        .map(|offset| (offset, file.map(offset as u64, HUGE + PAGE, &shared()).unwrap()))
        .collect();
    for (offset, map) in &maps {
        assert_eq!(map.as_ptr().addr().wrapping_sub(*offset) % HUGE, 0, "from byte {offset} on");
        map.write_at(HUGE - 5, b"across two").unwrap();
        let mut got = [0; 10];
        file.read_at((offset + HUGE - 5) as u64, &mut got).unwrap();
        assert_eq!(&got, b"across two");
    }
    drop((maps, file));
    fs.unmount().unwrap();
}

/// Mappings of a file in DAX mode show the device: a store is on it at once; what takes blocks away takes the windows away.
#[test]
fn mappings_show_the_device() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let device = in_memory(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::with_options("dax=always").unwrap()).unwrap();
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 4 * PAGE]).unwrap();
    file.set_len(8 * PAGE as u64).unwrap();
    let (one, two) = (file.map(0, 8 * PAGE, &shared()).unwrap(), file.map(0, 8 * PAGE, &shared()).unwrap());
    one.write_at(5, &[2]).unwrap();
    assert_eq!(on_device(&fs, &*device, &inode, 0).unwrap()[5], 2);
    let mut got = [0; 8 * PAGE];
    two.read_at(0, &mut got).unwrap();
    assert!(got[5] == 2 && got[6] == 1 && got[4 * PAGE..].iter().all(|b| *b == 0));
    // Holes were looked at, not filled; a store gives the one page a block, with zeros round it, and everybody sees it.
    assert_eq!((inode.attr().blocks, one.user_pages().windows()), (4 * 8, 1));
    one.write_at(6 * PAGE + 9, &[3]).unwrap();
    two.read_at(6 * PAGE, &mut got[..PAGE]).unwrap();
    assert!(got[9] == 3 && got[..9] == [0; 9] && got[10..PAGE].iter().all(|b| *b == 0));
    assert_eq!((inode.attr().blocks, one.user_pages().windows()), (5 * 8, 2));
    // A punch in the middle of a window.
    file.fallocate(FallocateMode::PunchHole, PAGE as u64, 2 * PAGE as u64, true).unwrap();
    two.read_at(0, &mut got[..4 * PAGE]).unwrap();
    assert!(got[PAGE - 1] == 1 && got[PAGE..3 * PAGE].iter().all(|b| *b == 0) && got[3 * PAGE] == 1);
    // A private mapping has copies, and its own stay its own.
    let private = file.map(0, 4 * PAGE, &MapOptions { shared: false, ..shared() }).unwrap();
    private.write_at(7, &[8]).unwrap();
    one.write_at(8, &[9]).unwrap();
    file.write_at(3 * PAGE as u64, &[4]).unwrap();
    private.read_at(0, &mut got[..4 * PAGE]).unwrap();
    assert_eq!((got[7], got[6], got[3 * PAGE]), (8, 1, 4));
    assert_eq!((private.user_pages().windows(), on_device(&fs, &*device, &inode, 0).unwrap()[7]), (0, 1));
    // Growing, moving and forgetting a mapping.
    one.advise(0..8 * PAGE, Advice::DontNeed).unwrap();
    one.protect(0..PAGE, Protection::READ).unwrap();
    one.read_at(0, &mut got[..PAGE]).unwrap();
    assert_eq!((got[5], got[8]), (2, 9));
    assert!(one.write_at(0, &[1]).is_err());
    one.protect(0..PAGE, Protection::READ_WRITE).unwrap();
    one.write_at(0, &[6]).unwrap();
    assert_eq!(file.read_at(0, &mut got[..1]).map(|_| got[0]).unwrap(), 6);
    // Pins: the mapping stays, its blocks are nobody else's, and the file may not change its mode.
    let pin = two.pin(0..PAGE).unwrap();
    assert!(pin.len() == 1 && matches!(fs.unmount(), Err(extant::Error::Busy)));
    drop(pin);
    two.sync(0..PAGE, SyncMode::Sync).unwrap();
    drop((one, two, private, file));
    fs.unmount().unwrap();
}

/// Nobody stores to a frozen filesystem, nor to a file that may not change, nor to an image that is unmounted.
#[test]
fn windows_go_with_the_right_to_store() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 4 * PAGE]).unwrap();
    let map = file.map(0, 4 * PAGE, &shared()).unwrap();
    let pages = map.user_pages();
    map.write_at(0, &[2]).unwrap();
    assert_eq!(pages.windows(), 1);
    fs.freeze(&root()).unwrap();
    assert_eq!(pages.windows(), 0);
    thread::scope(|scope| {
        let late = scope.spawn(|| map.write_at(1, &[3]).unwrap());
        fs.thaw(&root()).unwrap();
        late.join().unwrap();
    });
    assert_eq!(pages.windows(), 1);
    let flags = inode.attr().flags;
    fs.set_flags(&inode, flags | InodeFlags::IMMUTABLE, &root()).unwrap();
    let mut got = [0; 3];
    map.read_at(0, &mut got).unwrap();
    assert_eq!((got, pages.windows()), ([2, 3, 1], 0));
    fs.set_flags(&inode, flags, &root()).unwrap();
    map.write_at(2, &[4]).unwrap();
    map.read_at(0, &mut got).unwrap();
    assert_eq!((got, pages.windows()), ([2, 3, 4], 1));
    fs.unmount().unwrap();
    assert_eq!(pages.windows(), 0);
    drop((map, file, inode, fs));
    let fs = open_rw(&image);
    open(&fs, &find(&fs, "f"), false).read_at(0, &mut got).unwrap();
    assert_eq!(got, [2, 3, 4]);
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// Blocks that a pin holds are not used again, though the file has lost them and the transaction is durable.
#[test]
fn pinned_blocks_are_not_used_again() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    // What is not pinned comes back when no transfer can be under way.
    if !alone("dax::pinned_blocks_are_not_used_again") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 2 * PAGE]).unwrap();
    let map = file.map(0, 2 * PAGE, &shared()).unwrap();
    let pin = map.pin(PAGE..2 * PAGE).unwrap();
    let block = fs.device_block(&inode, 1).unwrap().unwrap();
    file.fallocate(FallocateMode::PunchHole, 0, 2 * PAGE as u64, true).unwrap();
    fs.sync().unwrap();
    let eater = open(&fs, &new_file(&fs, "eater"), false);
    let eat = || {
        let mut at = 0;
        while eater.write_at(at, &[0xEE; 64 << 10]).is_ok_and(|(n, _)| n == 64 << 10) {
            at += 64 << 10;
        }
        at / PAGE as u64
    };
    let blocks = eat();
    let has = |blocks: u64| (0..blocks).any(|n| fs.device_block(eater.inode(), n).unwrap() == Some(block));
    assert!(blocks > 1000 && !has(blocks), "a pinned block is another file's");
    drop(pin);
    eater.set_len(0).unwrap();
    fs.sync().unwrap();
    while fs.release_shown_blocks() > 0 {
        thread::yield_now();
    }
    let blocks = eat();
    assert!(has(blocks + 32), "a block that was let go of stays away");
    drop((map, file, eater));
    fs.unmount().unwrap();
    drop((inode, fs));
    assert_clean(&image);
}

/// Whether this is a process in which no other test runs, and so no thread but those that wait; if not, the test has been run in one.
pub(crate) fn alone(name: &str) -> bool {
    const ASKED: &str = "EXTANT_ALONE";
    if std::env::var_os(ASKED).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let asked = command.args(["--exact", name, "--nocapture"]).env(ASKED, "1");
    let output = extant_testkit::oracle::output(asked).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("skipped:")).for_each(|line| println!("{line}"));
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// Without it nobody can say that no transfer is under way.
pub(crate) fn nobody_uses_libaio() -> bool {
    let none = std::fs::read_to_string("/proc/sys/fs/aio-nr").ok().as_deref() == Some("0\n");
    if !none {
        println!("skipped: a program of the system uses libaio");
    }
    none
}

const FRAGMENTS: usize = 6000;

/// A file of single blocks, of which no two lie in a row of the file.
fn fragmented(fs: &Arc<Filesystem>) -> OpenFile {
    let file = open(fs, &new_file(fs, "f"), false);
    for n in 0..FRAGMENTS as u64 {
        file.write_at(2 * n * PAGE as u64, &[n as u8 | 1; 16]).unwrap();
    }
    file
}

fn assert_fragments(file: &OpenFile) {
    for n in 0..FRAGMENTS {
        let mut got = [0; 9];
        file.read_at(2 * (n * PAGE) as u64, &mut got).unwrap();
        assert!(got[8] == 7 && got[..8] == [n as u8 | 1; 8], "block {n}");
    }
}

/// Many single blocks: the file goes through the page cache by itself, for all its mappings, until its flag changes.
#[test]
fn a_fragmented_file_leaves_the_mode() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("dax::a_fragmented_file_leaves_the_mode") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 80 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    let file = fragmented(&fs);
    let inode = file.inode();
    let (map, other) = (
        file.map(0, 2 * FRAGMENTS * PAGE, &shared()).unwrap(),
        file.map(0, 2 * FRAGMENTS * PAGE, &shared()).unwrap(),
    );
    let mut got = [0; PAGE];
    other.read_at(0, &mut got).unwrap();
    assert!(fs.effective_dax(inode) && other.user_pages().windows() == 1);
    let mut stayed = 0;
    // It asks whenever there are too many. A thread of the filesystem that runs just then keeps it in its mode for as many more.
    while fs.effective_dax(inode) {
        for n in 0..FRAGMENTS {
            map.write_at(2 * n * PAGE + 8, &[7]).unwrap();
            assert!(map.user_pages().windows() <= 4096);
            stayed += usize::from(fs.effective_dax(inode));
        }
    }
    assert!(stayed >= 4000, "left after {stayed} windows");
    assert_eq!((map.user_pages().windows(), other.user_pages().windows()), (0, 0));
    assert_fragments(&file);
    // Both ways, through what it was mapped by before, and nothing of it comes back by itself.
    other.write_at(9, &[8]).unwrap();
    map.read_at(0, &mut got[..10]).unwrap();
    file.write_at(10, &[9]).unwrap();
    other.read_at(0, &mut got[10..21]).unwrap();
    assert!(got[8..10] == [7, 8] && got[20] == 9 && !fs.effective_dax(inode));
    file.fsync(true).unwrap();
    assert!(inode.attr().flags.bits() & InodeFlags::DAX.bits() == 0 && !fs.effective_dax(inode));
    // A change of the flag brings it back.
    flip(&fs, inode);
    assert!(fs.effective_dax(inode));
    map.read_at(0, &mut got[..10]).unwrap();
    assert!(got[8..10] == [7, 8] && map.user_pages().windows() == 1);
    drop((map, other));
    assert_fragments(&file);
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// One that is pinned stays in its mode: windows are kept within a budget by giving them up.
#[test]
fn a_fragmented_file_keeps_within_the_budget() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 80 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    let file = fragmented(&fs);
    let map = file.map(0, 2 * FRAGMENTS * PAGE, &shared()).unwrap();
    let pin = map.pin(0..PAGE).unwrap();
    let mut most = 0;
    for n in 0..FRAGMENTS {
        map.write_at(2 * n * PAGE + 8, &[7]).unwrap();
        if n % 64 == 0 {
            most = most.max(map.user_pages().windows());
        }
    }
    assert!((1000..=4096).contains(&most), "{most} windows");
    assert!(fs.effective_dax(file.inode()));
    assert_fragments(&file);
    drop((pin, map, file));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// What mappings show of holes, and copies in private ones, count as pages of the cache, which reclaim takes.
#[test]
fn zeros_and_copies_keep_within_the_cache() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    const PAGES: usize = 4096;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 64 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always,cache_size=4m");
    for private in [false, true] {
        let file = open(&fs, &new_file(&fs, if private { "private" } else { "holes" }), false);
        if private {
            file.write_at(0, &vec![5; PAGES * PAGE]).unwrap();
        }
        file.set_len((PAGES * PAGE) as u64).unwrap();
        let map = file.map(0, PAGES * PAGE, &MapOptions { shared: !private, ..shared() }).unwrap();
        let memory = || rustix::fs::fstat(map.user_pages().file()).unwrap().st_blocks as usize * 512;
        let mut most = 0;
        for round in 0..2 {
            for n in 0..PAGES {
                let mut got = [9; 8];
                map.read_at(n * PAGE + 8 * round, &mut got).unwrap();
                assert_eq!(got, [if private { 5 } else { 0 }; 8], "page {n}");
                most = most.max(memory());
            }
        }
        // Pages get three quarters of the caches.
        assert!((2 << 20..4 << 20).contains(&most), "{most} bytes");
        // Its own copies stay.
        if private {
            map.write_at(100, &[6]).unwrap();
            let mut got = vec![0; PAGES * PAGE];
            map.read_at(0, &mut got).unwrap();
            assert!(got[100] == 6 && got[101] == 5);
        }
        // They go when the hole gets blocks, and when the file is cut.
        file.write_at(0, &vec![7; PAGES * PAGE / 2]).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(memory(), 0);
    }
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// Blocks that a window showed are not used again while somebody is in a system call that may have told a device to write there.
#[test]
fn shown_blocks_are_not_used_again_at_once() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    if !alone("dax::shown_blocks_are_not_used_again_at_once") || !nobody_uses_libaio() {
        return;
    }
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "dax=always");
    for way in 0..3 {
        let inode = new_file(&fs, &format!("f{way}"));
        let file = open(&fs, &inode, false);
        file.write_at(0, &vec![1; 80 * PAGE]).unwrap();
        let map = file.map(0, 80 * PAGE, &shared()).unwrap();
        map.write_at(20 * PAGE, &[2]).unwrap();
        let name = format!("eater{way}");
        let eater = open(&fs, &new_file(&fs, &name), false);
        let mut room = 0;
        while eater.write_at(room * PAGE as u64, &[0xEE; PAGE]).is_ok() {
            room += 1;
        }
        eater.set_len(0).unwrap();
        let gone = 8..72_u64;
        let shown: Vec<_> = gone.clone().map(|n| fs.device_block(&inode, n).unwrap().unwrap()).collect();
        let (at, len) = (gone.start * PAGE as u64, (gone.end - gone.start) * PAGE as u64);
        let (mut from, mut to) = std::io::pipe().unwrap();
        let reading = thread::spawn(move || std::io::Read::read(&mut from, &mut [0]).unwrap());
        match way {
            0 => file.fallocate(FallocateMode::PunchHole, at, len, true).unwrap(),
            1 => file.fallocate(FallocateMode::CollapseRange, at, len, false).unwrap(),
            // The mapping goes, then the file.
            _ => {
                drop((map, file, inode));
                fs.unlink(&fs.root().unwrap(), b"f2", &root()).unwrap();
            }
        }
        fs.sync().unwrap();
        let eat = |blocks: u64| {
            for n in 0..blocks {
                assert_eq!(eater.write_at(n * PAGE as u64, &[0xEE; PAGE]).unwrap().0, PAGE);
            }
        };
        // All but the last few: who finds no space waits for what is held.
        let blocks = room - 16;
        eat(blocks);
        let count = |blocks: u64| {
            let of = |n: u64| fs.device_block(eater.inode(), n).unwrap();
            (0..blocks).filter_map(of).filter(|block| shown.contains(block)).count()
        };
        assert!(blocks > 1000, "{blocks} blocks");
        assert_eq!(count(blocks + 16), 0, "way {way}: blocks that a device may write are another file's");
        std::io::Write::write_all(&mut to, &[1]).unwrap();
        reading.join().unwrap();
        eater.set_len(0).unwrap();
        fs.sync().unwrap();
        // Threads of the filesystem that have just done something run for a moment.
        while fs.release_shown_blocks() > 0 {
            thread::yield_now();
        }
        let blocks = room + 64 - 16;
        eat(blocks);
        assert!(count(blocks + 16) > 16, "way {way}: blocks that nobody writes stay away");
        drop(eater);
        fs.unlink(&fs.root().unwrap(), name.as_bytes(), &root()).unwrap();
        fs.sync().unwrap();
    }
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// Counters in a mapping while the mode flips, beside writes, punches, direct I/O and a second file that takes every freed block.
#[test]
fn counters_under_flips() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    const PAGES: usize = 64;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 24 << 20, "-t ext4 -b 4096");
    let fs = open_with(&image, "cache_size=4m");
    let inode = new_file(&fs, "counters");
    let file = Arc::new(open(&fs, &inode, false));
    let direct = open(&fs, &inode, true);
    let other = open(&fs, &new_file(&fs, "other"), false);
    file.set_len((PAGES * PAGE) as u64).unwrap();
    let maps = [file.map(0, PAGES * PAGE, &shared()).unwrap(), file.map(0, PAGES * PAGE, &shared()).unwrap()];
    let seconds: u64 = std::env::var("EXTANT_STRESS").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let rounds = if seconds > 0 { seconds * 200_000 } else { 60_000 };
    let stop = AtomicBool::new(false);
    let (added, flips) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (maps, stop, added, flips) = (&maps, &stop, &added, &flips);
        let (fs, file, direct, other, inode) = (&fs, &file, &direct, &other, &inode);
        let counters: Vec<_> = (0..3_u64)
            .map(|n| {
                scope.spawn(move || {
                    let mut rng = Rng::new(n + 1);
                    for _ in 0..rounds {
                        let at = rng.below(PAGES as u64 / 2) as usize * PAGE + rng.below(512) as usize * 8;
                        maps[rng.below(2) as usize].atomic_u64(at).fetch_add(1, Ordering::Relaxed);
                        added.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                flip(fs, inode);
                flips.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(move || {
            let mut rng = Rng::new(99);
            while !stop.load(Ordering::Relaxed) {
                let at = (PAGES as u64 / 2 + rng.below(PAGES as u64 / 2)) * PAGE as u64;
                let bytes = vec![rng.below(200) as u8 + 1; PAGE];
                match rng.below(3) {
                    0 => assert_eq!(direct.write_at(at, &bytes).unwrap().0, PAGE),
                    1 => assert_eq!(file.write_at(at + 9, &bytes[..100]).unwrap().0, 100),
                    _ => file.fallocate(FallocateMode::PunchHole, at, PAGE as u64, true).unwrap(),
                }
                other.write_at(rng.below(1000) * PAGE as u64, &[0xEE; PAGE]).unwrap();
                let mut got = vec![0; PAGE];
                maps[0].read_at(at as usize, &mut got).unwrap();
                assert!(got.iter().all(|b| *b != 0xEE), "another file's byte");
                fs.sync().unwrap();
            }
        });
        for counter in counters {
            counter.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let total: u64 = (0..PAGES * PAGE / 16).map(|n| maps[1].atomic_u64(n * 8).load(Ordering::Relaxed)).sum();
    println!("{} flips, {total} additions", flips.load(Ordering::Relaxed));
    assert_eq!(total, added.into_inner());
    drop((maps, file, direct, other, inode));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    need!(kernel_mounts());
    let mount = KernelMount::ro(&image);
    let bytes = mount.read("counters");
    let half = bytes[..PAGES * PAGE / 2].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap()));
    assert_eq!(half.sum::<u64>(), total, "on the disk");
    mount.unmount();
}

/// A device that counts its flushes.
#[derive(Debug)]
struct Counting {
    inner: FileDevice,
    flushes: AtomicU64,
}

impl BlockDevice for Counting {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.inner.write_at(offset, buf)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.write_zeroes(offset, len)
    }

    fn direct_access(&self) -> Option<DirectAccess> {
        self.inner.direct_access()
    }
}

/// What was stored through windows since the last msync is known: it moves the times and is flushed, and what was not does neither.
#[test]
fn stores_move_the_times() {
    need!(userfaultfd(), tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let inner = OpenOptions::new().write(true).open(&image).unwrap();
    let device = Arc::new(Counting { inner, flushes: AtomicU64::new(0) });
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::with_options("dax=always").unwrap()).unwrap();
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 4 * PAGE]).unwrap();
    let whole = 0..4 * PAGE;
    let old = extant::SetTime::At(extant::Timestamp { sec: 1000, nsec: 0 });
    let age = || {
        let change = SetAttr { mtime: Some(old), ..SetAttr::default() };
        fs.set_attr(&inode, &change, &root()).unwrap();
        fs.sync().unwrap();
        (device.flushes.load(Ordering::Relaxed), inode.attr().ctime)
    };
    // Whether the times moved, and how often the device was flushed.
    let since = |(flushes, ctime): (u64, extant::Timestamp)| {
        let moved = inode.attr().mtime.sec > 1000;
        assert!(moved == (inode.attr().ctime != ctime));
        (moved, device.flushes.load(Ordering::Relaxed) - flushes)
    };
    let map = file.map(0, 4 * PAGE, &shared()).unwrap();
    let load = || {
        let mut got = vec![0; 4 * PAGE];
        map.read_at(0, &mut got).unwrap();
        got
    };
    // Written, and not flushed.
    assert!(load()[9] == 1 && file.fsync(true).is_ok());
    // Loads only, through what may be stored to as well.
    let then = age();
    load();
    map.sync(whole.clone(), SyncMode::Sync).unwrap();
    assert_eq!(since(then), (false, 0), "loads");
    file.fsync(false).unwrap();
    assert!(!since(then).0, "fsync after loads");
    for byte in 2..5 {
        let then = age();
        map.write_at(3 * PAGE + 7, &[byte]).unwrap();
        map.sync(whole.clone(), SyncMode::Sync).unwrap();
        let (moved, flushes) = since(then);
        assert!(moved && flushes > 0 && load()[3 * PAGE + 7] == byte, "store {byte}");
        let then = age();
        load();
        map.sync(whole.clone(), SyncMode::Sync).unwrap();
        assert_eq!(since(then), (false, 0), "a second msync");
    }
    // A window that a store makes.
    fs.freeze(&root()).unwrap();
    fs.thaw(&root()).unwrap();
    let then = age();
    map.write_at(5, &[8]).unwrap();
    map.sync(whole.clone(), SyncMode::Sync).unwrap();
    assert!(since(then).0, "a first store");
    let then = age();
    load();
    map.sync(whole.clone(), SyncMode::Sync).unwrap();
    assert_eq!(since(then), (false, 0), "after a first store");
    // A window that goes before anybody asks: with a freeze, with another protection.
    for way in 0..3 {
        for store in [false, true] {
            load();
            let then = age();
            if store {
                map.write_at(PAGE + 1, &[way + 20]).unwrap();
            }
            match way {
                0 => {
                    fs.freeze(&root()).unwrap();
                    fs.thaw(&root()).unwrap();
                }
                1 => map.protect(whole.clone(), Protection::READ).unwrap(),
                _ => map.protect(PAGE..2 * PAGE, Protection::READ_WRITE).unwrap(),
            }
            file.fsync(true).unwrap();
            assert_eq!(since(then).0, store, "way {way}");
            map.protect(whole.clone(), Protection::READ_WRITE).unwrap();
        }
    }
    let then = age();
    load();
    drop(map);
    assert!(!since(then).0, "munmap after loads");
    let map = file.map(0, 4 * PAGE, &shared()).unwrap();
    let then = age();
    map.write_at(0, &[3]).unwrap();
    drop(map);
    assert!(since(then).0, "munmap");
    file.fsync(true).unwrap();
    // Who may not store moves nothing.
    let map = file.map(0, PAGE, &MapOptions::default()).unwrap();
    let then = age();
    let mut got = [0];
    map.read_at(0, &mut got).unwrap();
    map.sync(0..PAGE, SyncMode::Sync).unwrap();
    drop(map);
    assert_eq!((got, since(then)), ([3], (false, 0)));
    // write(2) is flushed as ever.
    let then = age();
    file.write_at(0, &[4]).unwrap();
    file.fsync(true).unwrap();
    assert!(since(then).0 && since(then).1 > 0);
    drop(file);
    fs.unmount().unwrap();
    drop((inode, fs));
    assert_clean(&image);
}
