//! MAP_SYNC: who may have such a mapping, what its faults wait for, and what it keeps from changing. That nothing is lost is the crash lab's
//! affair (`crash::dax_stores`).

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use extant::{
    Advice, Credentials, Error, FallocateMode, Filesystem, InodeFlags, InodeRef, MapOptions, Mapping,
    Protection, Setup,
};
use extant_device::{BlockDevice, DirectAccess, FileDevice, MemoryDevice};
use extant_sync::thread;
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};

use crate::dax::in_memory;
use crate::mapping::{new_file, open, shared, userfaultfd};

const PAGE: usize = 4096;
const EOPNOTSUPP: i32 = 95;
const EBUSY: i32 = 16;
const EFAULT: i32 = 14;

fn sync() -> MapOptions {
    MapOptions { sync: true, ..shared() }
}

/// What flushes of a device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushes {
    Work,
    Wait,
    Fail,
}

/// Persistent memory whose flushes can be held up.
#[derive(Debug)]
struct Pmem {
    memory: Arc<FileDevice>,
    /// And how many are under way.
    flushes: Mutex<(Flushes, usize)>,
    changed: Condvar,
}

impl Pmem {
    fn new(image: &Path) -> Arc<Self> {
        let flushes = Mutex::new((Flushes::Work, 0));
        Arc::new(Self { memory: in_memory(image), flushes, changed: Condvar::new() })
    }

    fn set(&self, flushes: Flushes) {
        self.flushes.lock().unwrap().0 = flushes;
        self.changed.notify_all();
    }

    fn memory_to(&self, image: &Path) {
        let mut bytes = vec![0; self.size() as usize];
        self.read_at(0, &mut bytes).unwrap();
        std::fs::write(image, bytes).unwrap();
    }

    /// Returns once a flush waits.
    fn await_flush(&self) {
        drop(
            self.changed.wait_while(self.flushes.lock().unwrap(), |(_, under_way)| *under_way == 0).unwrap(),
        );
    }
}

impl BlockDevice for Pmem {
    fn size(&self) -> u64 {
        self.memory.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.memory.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.memory.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        let mut state = self.flushes.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |(flushes, _)| *flushes == Flushes::Wait).unwrap();
        state.1 -= 1;
        if state.0 == Flushes::Fail { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.memory.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.memory.write_zeroes(offset, len)
    }
    fn direct_access(&self) -> Option<DirectAccess> {
        self.memory.direct_access().map(DirectAccess::persistent)
    }
}

fn mounted(device: Arc<dyn BlockDevice>, options: &str) -> Arc<Filesystem> {
    Filesystem::open(device, Setup::with_options(options).unwrap()).expect("mount")
}

/// A file of so many pages, none of which has a block.
fn sparse(fs: &Arc<Filesystem>, name: &str, pages: usize) -> InodeRef {
    let inode = new_file(fs, name);
    open(fs, &inode, false).set_len((pages * PAGE) as u64).unwrap();
    inode
}

fn map(fs: &Arc<Filesystem>, inode: &InodeRef, options: &MapOptions) -> Mapping {
    open(fs, inode, false).map(0, inode.size() as usize, options).expect("mmap")
}

#[test]
fn refused_where_it_cannot_be() {
    need!(tools(&["mke2fs"]), userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let maps = |fs: &Arc<Filesystem>, name: &str, options: MapOptions| {
        let inode = sparse(fs, name, 1);
        open(fs, &inode, false).map(0, PAGE, &options).map(drop).map_err(|e| e.errno())
    };
    let private = MapOptions { shared: false, ..sync() };
    // What device and mount say, and what is answered for a file in DAX mode and one that is not.
    let persistent = || Pmem::new(&image) as Arc<dyn BlockDevice>;
    let volatile = || in_memory(&image) as Arc<dyn BlockDevice>;
    for (device, words, dax) in [
        (persistent(), "", Ok(())),
        (persistent(), ",pmem=off", Err(EOPNOTSUPP)),
        (volatile(), "", Err(EOPNOTSUPP)),
        (volatile(), ",pmem=on", Ok(())),
    ] {
        for (mode, wanted) in [("always", dax), ("never", Err(EOPNOTSUPP))] {
            let fs = mounted(Arc::clone(&device), &format!("dax={mode}{words}"));
            assert_eq!(maps(&fs, mode, sync()), wanted, "dax={mode}{words}");
            assert_eq!(maps(&fs, &format!("{mode} private"), private), wanted, "dax={mode}{words}, private");
            assert_eq!(maps(&fs, &format!("{mode} plain"), shared()), Ok(()));
            fs.unmount().unwrap();
        }
    }
    let bytes = std::fs::read(&image).unwrap();
    let refused =
        Filesystem::open(Arc::new(MemoryDevice::from_bytes(&bytes)), Setup::with_options("pmem=on").unwrap());
    assert!(matches!(refused, Err(Error::Incompatible(_))), "a device that cannot be mapped");
}

/// Faults that wait for a commit hold no thread: others are answered meanwhile, and all when it is done.
#[test]
fn faults_wait_for_the_commit_as_values() {
    need!(tools(&["mke2fs"]), userfaultfd());
    const STORES: usize = 12;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let device = Pmem::new(&image);
    let fs = mounted(Arc::clone(&device) as _, "dax=always,commit=300");
    let inode = sparse(&fs, "f", STORES);
    let other = new_file(&fs, "other");
    open(&fs, &other, false).write_at(0, &[1; PAGE]).unwrap();
    let (map_sync, plain) = (Arc::new(map(&fs, &inode, &sync())), map(&fs, &other, &shared()));
    device.set(Flushes::Wait);
    let threads: Vec<_> = (0..STORES)
        .map(|n| {
            let map = Arc::clone(&map_sync);
            thread::spawn(move || map.write_at(n * PAGE + n, &[n as u8 + 1]).unwrap())
        })
        .collect();
    device.await_flush();
    // More of them than there are threads for stores.
    while (0..STORES).any(|n| fs.device_block(&inode, n as u64).unwrap().is_none()) {
        std::thread::yield_now();
    }
    plain.write_at(5, &[9]).unwrap();
    assert!(threads.iter().any(|t| !t.is_finished()), "nobody waits for the commit");
    device.set(Flushes::Work);
    threads.into_iter().for_each(|t| t.join().unwrap());
    let mut got = vec![0; STORES * PAGE];
    assert_eq!(open(&fs, &inode, false).read_at(0, &mut got).unwrap(), got.len());
    assert!((0..STORES).all(|n| got[n * PAGE + n] == n as u8 + 1));
    drop((map_sync, plain));
    fs.unmount().unwrap();
    drop(fs);
    device.memory_to(&image);
    assert_clean(&image);
}

/// A commit that fails ends the wait: the store is refused.
#[test]
fn a_commit_that_fails_is_no_store() {
    need!(tools(&["mke2fs"]), userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let device = Pmem::new(&image);
    let fs = mounted(Arc::clone(&device) as _, "dax=always,commit=300");
    let map = map(&fs, &sparse(&fs, "f", 2), &sync());
    let source = dir.join("source");
    std::fs::write(&source, [7; 100]).unwrap();
    let source = std::fs::File::open(&source).unwrap();
    assert_eq!(map.read_from(&source, 0, 0..100).unwrap(), 100);
    device.set(Flushes::Fail);
    let refused = map.read_from(&source, 0, PAGE..PAGE + 100);
    assert_eq!(refused.map_err(|e| e.errno()), Err(EFAULT));
    drop(map);
    let _ = fs.unmount();
}

#[test]
fn a_file_that_is_mapped_so_stays_in_dax_mode() {
    need!(tools(&["mke2fs"]), userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let fs = mounted(Pmem::new(&image) as _, "");
    let inode = sparse(&fs, "f", 4);
    let cred = Credentials::root();
    let flip = || {
        let flags = inode.attr().flags ^ InodeFlags::DAX;
        fs.set_flags(&inode, flags, &cred)
            .and_then(|()| fs.try_set_flags(&inode, flags, &cred))
            .map_err(|e| e.errno())
    };
    flip().unwrap();
    let file = open(&fs, &inode, false);
    let (one, two) = (map(&fs, &inode, &sync()), map(&fs, &inode, &sync()));
    assert_eq!(flip(), Err(EBUSY));
    one.write_at(0, &[1; 8]).unwrap();
    drop(one);
    assert_eq!(flip(), Err(EBUSY), "another one is there");
    two.write_at(8, &[2; 8]).unwrap();
    drop(two);
    // A mapping that cannot store has no promise to keep.
    let only = extant::OpenMode { read: true, ..extant::OpenMode::default() };
    let only = extant::OpenFile::new(&fs, &inode, only, &cred).unwrap();
    let only = only.map(0, PAGE, &MapOptions { protection: Protection::READ, ..sync() }).unwrap();
    flip().unwrap();
    let mut got = [0; 16];
    file.read_at(0, &mut got).unwrap();
    assert_eq!((got[0], got[8], fs.effective_dax(&inode)), (1, 2, false));
    drop((only, file));
    fs.unmount().unwrap();
}

/// A pin, advice, and ranges that go and come again.
#[test]
fn what_else_a_mapping_does() {
    need!(tools(&["mke2fs"]), userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let device = Pmem::new(&image);
    let fs = mounted(Arc::clone(&device) as _, "dax=always,commit=300");
    let inode = sparse(&fs, "f", 8);
    let file = open(&fs, &inode, false);
    let map = map(&fs, &inode, &sync());
    let pin = map.pin(0..2 * PAGE).unwrap();
    map.write_at(100, &[1; 8]).unwrap();
    drop(pin);
    file.fallocate(FallocateMode::Allocate, 2 * PAGE as u64, 2 * PAGE as u64, false).unwrap();
    file.write_at(4 * PAGE as u64, &[2; 2 * PAGE]).unwrap();
    map.advise(0..map.len(), Advice::WillNeed).unwrap();
    map.write_at(2 * PAGE, &[3; 8]).unwrap();
    map.write_at(4 * PAGE, &[4; 8]).unwrap();
    file.fallocate(FallocateMode::PunchHole, 4 * PAGE as u64, PAGE as u64, true).unwrap();
    map.write_at(4 * PAGE + 8, &[5; 8]).unwrap();
    fs.freeze(&Credentials::root()).unwrap();
    let frozen = thread::spawn(move || {
        map.write_at(6 * PAGE, &[6; 8]).unwrap();
        map
    });
    fs.thaw(&Credentials::root()).unwrap();
    let map = frozen.join().unwrap();
    map.sync(0..map.len(), extant::SyncMode::Sync).unwrap();
    let mut got = vec![0; 8 * PAGE];
    file.read_at(0, &mut got).unwrap();
    let at = |page: usize, byte: usize| got[page * PAGE + byte];
    assert_eq!((at(0, 100), at(2, 0), at(4, 0), at(4, 8), at(5, 0), at(6, 0)), (1, 3, 0, 5, 2, 6));
    drop((map, file));
    fs.unmount().unwrap();
    drop(fs);
    device.memory_to(&image);
    assert_clean(&image);
}
