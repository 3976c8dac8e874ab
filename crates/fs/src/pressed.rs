//! Changes under memory pressure on a device that fails: what a change reads stays in memory until it is done.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use extant_device::BlockDevice;
use extant_format::xattr::INDEX_USER;
use extant_format::{Lblk, Pblk};
use extant_journal::BlockCache;
use extant_sync::Rank;
use extant_sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::sim::Content;
use extant_testkit::{Rng, SimDevice, env, need, scratch};

use crate::{
    Credentials, FallocateMode, Filesystem, InodeRef, MoveRange, NewInode, Setup, WriteFlags, XattrSet,
};

/// Blocks that are read to push all others out of the cache.
const FLOOD: u64 = 512;

thread_local! {
    static FLOODING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// At each read everything leaves the cache that nobody holds; after some reads the device fails.
#[derive(Debug)]
struct Pressed {
    device: Arc<SimDevice>,
    cache: OnceLock<Weak<BlockCache>>,
    on: AtomicBool,
    /// Reads that still succeed.
    left: AtomicI64,
    /// Reads while a handle was open.
    in_handle: AtomicU64,
    floods: AtomicU64,
}

impl Pressed {
    fn new(content: Content) -> Arc<Self> {
        let device = SimDevice::from_content(content);
        device.set_recording(false);
        Arc::new(Self {
            device,
            cache: OnceLock::new(),
            on: AtomicBool::new(false),
            left: AtomicI64::new(0),
            in_handle: AtomicU64::new(0),
            floods: AtomicU64::new(0),
        })
    }

    fn mount(self: &Arc<Self>) -> Arc<Filesystem> {
        let setup = Setup::with_options("errors=continue,init_itable=0").unwrap();
        let fs = Filesystem::open(Arc::clone(self) as _, setup).unwrap();
        let _ = self.cache.set(Arc::downgrade(&fs.cache));
        fs
    }

    /// Begins: `reads` reads succeed.
    fn press(&self, fs: &Filesystem, reads: i64) {
        fs.journal.checkpoint_all().unwrap();
        fs.cache.set_budget(0);
        self.left.store(reads, Ordering::SeqCst);
        self.in_handle.store(0, Ordering::SeqCst);
        self.flood();
        self.on.store(true, Ordering::SeqCst);
    }

    /// Ends; whether a read has failed.
    fn relax(&self) -> bool {
        self.on.store(false, Ordering::SeqCst);
        self.left.load(Ordering::SeqCst) < 0
    }

    fn flood(&self) {
        let Some(cache) = self.cache.get().and_then(Weak::upgrade) else { return };
        let turn = self.floods.fetch_add(1, Ordering::Relaxed) % 2;
        let first = cache.blocks() - (turn + 1) * FLOOD;
        FLOODING.set(true);
        for block in first..first + FLOOD {
            cache.read(Pblk(block)).unwrap();
        }
        FLOODING.set(false);
    }

    fn before_read(&self) -> io::Result<()> {
        if FLOODING.get() || !self.on.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.in_handle.fetch_add(u64::from(extant_sync::holds(Rank::HANDLE)), Ordering::SeqCst);
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.left.store(-1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.flood();
        Ok(())
    }

    #[track_caller]
    fn assert_clean(&self) {
        let dir = scratch();
        let image = dir.join("image");
        self.device.content().to_file(&image).unwrap();
        assert_clean(&image);
    }
}

impl BlockDevice for Pressed {
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.before_read()?;
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, buf)
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.write_zeroes(offset, len)
    }
}

/// An image of mke2fs's after some work.
fn image(args: &str, work: impl FnOnce(&Filesystem)) -> Content {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, args);
    let device = Pressed::new(Content::from_file(&image).unwrap());
    let fs = device.mount();
    work(&fs);
    fs.unmount().unwrap();
    device.device.content()
}

fn file(fs: &Filesystem, name: &[u8]) -> InodeRef {
    fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &Credentials::root()).unwrap()
}

fn find(fs: &Filesystem, name: &[u8]) -> InodeRef {
    fs.lookup(&fs.root().unwrap(), name, &Credentials::root()).unwrap()
}

/// Blocks of the files whose content moves.
const BLOCKS: u64 = 500;

/// A file each block of which is an extent of its own, in a tree of some leaves, and a donor that is one.
fn fragmented() -> Content {
    image("-t ext4 -b 1024", |fs| {
        let cred = Credentials::root();
        let (orig, donor) = (file(fs, b"orig"), file(fs, b"donor"));
        for block in (0..BLOCKS).step_by(2).chain((1..BLOCKS).step_by(2)) {
            let content = vec![block as u8 | 1; 1024];
            fs.write_at(&orig, block * 1024, &content, WriteFlags::default(), &cred).unwrap();
            fs.fsync(&orig, true).unwrap();
        }
        fs.fallocate(&donor, FallocateMode::Allocate, 0, BLOCKS * 1024, false, &cred).unwrap();
    })
}

/// Content moves while nothing stays in memory that is not held, and reads fail from one on, from each: a handle reads nothing, so
/// that no error comes when half is done.
#[test]
fn moving_content_reads_nothing_in_its_handle() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let base = fragmented();
    let mut refused = 0;
    for reads in 0.. {
        let device = Pressed::new(base.clone());
        let fs = device.mount();
        let (orig, donor) = (find(&fs, b"orig"), find(&fs, b"donor"));
        // More than a leaf of extents, which go from the one tree into the other.
        let range = MoveRange { orig_start: 150, donor_start: 150, len: 120 };
        device.press(&fs, reads);
        let moved = fs.move_extents(&orig, &donor, range, &Credentials::root());
        let failed = device.relax();
        assert_eq!(device.in_handle.load(Ordering::SeqCst), 0, "after {reads} reads: {moved:?}");
        refused += u32::from(moved.is_err());
        assert!(!fs.journal.is_aborted(), "after {reads} reads: {moved:?}");
        let mut content = [0; 1024];
        for block in 100..300 {
            fs.read_at(&orig, block * 1024, &mut content).unwrap();
            assert!(content.iter().all(|b| *b == block as u8 | 1), "after {reads} reads: block {block}");
        }
        drop((orig, donor));
        fs.unmount().unwrap_or_else(|e| panic!("after {reads} reads: {e}"));
        if !failed || reads % 8 == 0 {
            device.assert_clean();
        }
        if !failed {
            moved.unwrap();
            break;
        }
    }
    println!("refused {refused} times");
    assert!(refused > 5, "hardly anything was read");
}

/// A value whose last reference went is shared anew before it is evicted, when it stands behind another orphan in the list: the block
/// of the inode table that leads to it is in memory.
#[test]
fn a_value_that_is_alive_again_leaves_the_orphans_without_a_read() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let device = Pressed::new(image("-t ext4 -b 1024 -I 256 -N 256 -O ea_inode,^orphan_file", |_| {}));
    let fs = device.mount();
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    let (one, other) = (file(&fs, b"one"), file(&fs, b"other"));
    let value = vec![7; 3000];
    fs.set_xattr(&one, b"user.large", &value, XattrSet::Any, &cred).unwrap();
    // In another block of the table.
    let others: Vec<_> = (0..8).map(|n| file(&fs, format!("{n}").as_bytes())).collect();
    let last = &others[7];
    assert_ne!(last.table.0, other.table.0);
    fs.sync().unwrap();
    let plan = fs.plan_xattr(&other, (INDEX_USER, b"large"), Some(&value), &cred).unwrap();
    fs.remove_xattr(&one, b"user.large", &cred).unwrap();
    fs.unlink(&root, b"7", &cred).unwrap();
    fs.sync().unwrap();
    device.press(&fs, 0);
    let mut handle = fs.start_data(&other, plan.credits() + 1).unwrap();
    let done = fs.apply_xattr(&mut handle, &other, plan);
    let done = fs.finish(handle, done, &other);
    assert!(!device.relax(), "something was read");
    done.unwrap();
    assert_eq!(fs.get_xattr(&other, b"user.large", &cred).unwrap(), value);
    drop((one, other, others, root));
    fs.unmount().unwrap();
    device.assert_clean();
}

/// Files come into a directory that grows often, whose group is full, while reads fail from some one on: leaves and index blocks are
/// split, or nothing is done.
#[test]
fn a_directory_that_grows_reads_before_it_changes() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let seed = env::seed();
    println!("seed={seed}");
    let cred = Credentials::root();
    let name = |n: u32| format!("{n:05}{}", "x".repeat(240)).into_bytes();
    for args in ["-t ext4 -b 1024 -N 2048 -g 1024", "-t ext3 -b 1024 -N 2048 -g 1024"] {
        let base = image(args, |fs| {
            let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &cred).unwrap();
            let filler = file(fs, b"filler");
            fs.write_at(&filler, 0, &vec![1; 9 << 20], WriteFlags::default(), &cred).unwrap();
            fs.sync().unwrap();
            (0..230).for_each(|n| drop(fs.mknod(&dir, &name(n), &NewInode::file(0o644), &cred).unwrap()));
        });
        let mut rng = Rng::new(seed);
        let (mut device, mut refused) = (Pressed::new(base), 0);
        let mut fs = device.mount();
        for n in 230..430 {
            let dir = find(&fs, b"dir");
            device.press(&fs, rng.below(20) as i64);
            // The inode is made first: then something has changed.
            let done = fs.mknod(&dir, &name(n), &NewInode::file(0o644), &cred).map(drop);
            device.relax();
            assert!(!fs.journal.is_aborted(), "SEED={seed}, {args}, name {n}: {done:?}");
            drop(dir);
            if done.is_err() {
                refused += 1;
                // Groups whose bitmaps could not be read take part again.
                fs.unmount().unwrap();
                drop(fs);
                device.assert_clean();
                device = Pressed::new(device.device.content());
                fs = device.mount();
                fs.mknod(&find(&fs, b"dir"), &name(n), &NewInode::file(0o644), &cred).unwrap();
            }
        }
        println!("{args}: refused {refused} times, {} blocks", find(&fs, b"dir").size() / 1024);
        assert!(refused > 10);
        fs.unmount().unwrap();
        device.assert_clean();
    }
}

/// What is held of a map is all that a lookup of the range and its neighbours reads.
#[test]
fn what_is_held_of_a_map_is_not_read_again() {
    need!(env::tools(&["mke2fs"]));
    let device = Pressed::new(fragmented());
    let fs = device.mount();
    let orig = find(&fs, b"orig");
    for (start, end) in [(0, 10), (150, 200), (166, 170), (400, 500), (490, 500), (0, 500)] {
        device.press(&fs, i64::MAX);
        let i_block = orig.map.read();
        let map = orig.map_ref(&i_block);
        let held = fs.map.hold(&map, Lblk(start)..Lblk(end)).unwrap();
        device.flood();
        device.left.store(0, Ordering::SeqCst);
        for lblk in start.saturating_sub(1)..=end {
            fs.map.lookup_extent(&map, Lblk(lblk), 1).unwrap();
        }
        assert!(!device.relax() && !held.is_empty());
    }
}
