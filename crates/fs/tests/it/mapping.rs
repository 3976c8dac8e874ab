//! Files mapped for real: against a model, against the kernel, and with many threads.

use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, InodeRef, MapOptions, Mapping, NewInode, OpenFile,
    OpenMode, Protection, SyncMode,
};
use extant_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use extant_sync::thread;
use extant_testkit::env::{scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::rng::Rng;

use crate::support::open_rw;

const SIZE: usize = 1 << 20;
/// The largest cluster of any of [`KINDS`].
const CLUSTER: u64 = 16_384;

/// What the tests make files on: block sizes with all that decides where content is; and mount options.
const KINDS: &[(&str, &str)] = &[
    ("-t ext4 -b 1024", ""),
    ("-t ext4 -b 2048", ""),
    ("-t ext4 -b 4096", ""),
    ("-t ext4 -b 1024 -O inline_data -I 256", ""),
    ("-t ext4 -b 4096 -O inline_data -I 1024", ""),
    ("-t ext4 -b 1024 -O bigalloc -C 16384", ""),
    ("-t ext3 -b 1024", ""),
    ("-t ext2 -b 4096", ""),
    ("-t ext4 -b 4096", "dax=always"),
    ("-t ext4 -b 4096 -O bigalloc -C 16384", "dax=always"),
    ("-t ext3 -b 4096", "dax=always"),
    ("-t ext4 -b 1024", "data=journal"),
    ("-t ext4 -b 4096 -O inline_data -I 1024", "data=journal"),
    // With flips of the flag.
    ("-t ext4 -b 4096", "dax=inode"),
];

pub(crate) fn userfaultfd() -> Result<(), String> {
    match std::fs::File::open("/dev/userfaultfd") {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("/dev/userfaultfd: {e}")),
    }
}

pub(crate) fn open(fs: &Arc<Filesystem>, inode: &InodeRef, direct: bool) -> OpenFile {
    let mode = OpenMode { read: true, write: true, direct, ..OpenMode::default() };
    OpenFile::new(fs, inode, mode, &Credentials::root()).unwrap()
}

pub(crate) fn new_file(fs: &Arc<Filesystem>, name: &str) -> InodeRef {
    fs.mknod(&fs.root().unwrap(), name.as_bytes(), &NewInode::file(0o644), &Credentials::root()).unwrap()
}

pub(crate) fn shared() -> MapOptions {
    MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() }
}

/// A file as the test believes it to be.
struct Model(Vec<u8>);

impl Model {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.resize(self.0.len().max(at + bytes.len()), 0);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn range(&self, rng: &mut Rng, longest: usize) -> Option<(usize, usize)> {
        let size = self.0.len();
        if size == 0 {
            return None;
        }
        let at = rng.below(size as u64) as usize;
        let len = (rng.below(longest as u64) as usize + 1).min(size - at);
        Some((at, len))
    }
}

struct Rig<'a> {
    fs: &'a Arc<Filesystem>,
    buffered: &'a OpenFile,
    direct: &'a OpenFile,
    maps: Vec<Mapping>,
    model: Model,
    extents: bool,
    /// The flag flips.
    flips: bool,
}

impl Rig<'_> {
    fn step(&mut self, rng: &mut Rng) {
        let at = rng.below(SIZE as u64 / 2) as usize >> rng.below(16);
        let len = rng.below(60_000) as usize >> rng.below(14);
        let bytes: Vec<u8> = (0..len).map(|_| rng.below(255) as u8 + 1).collect();
        let map = rng.below(self.maps.len() as u64) as usize;
        match rng.below(17) {
            0..3 => {
                assert_eq!(self.buffered.write_at(at as u64, &bytes).unwrap().0, len);
                if len > 0 {
                    self.model.put(at, &bytes);
                }
            }
            3..7 => {
                if let Some((at, len)) = self.model.range(rng, 60_000) {
                    let bytes: Vec<u8> = (0..len).map(|_| rng.below(255) as u8 + 1).collect();
                    self.maps[map].write_at(at, &bytes).unwrap();
                    self.model.put(at, &bytes);
                }
            }
            7..10 => {
                if let Some((at, len)) = self.model.range(rng, 100_000) {
                    let mut got = vec![0; len];
                    self.maps[map].read_at(at, &mut got).unwrap();
                    assert!(got == self.model.0[at..at + len], "load of {len} at {at}");
                }
            }
            10 => {
                let mut got = vec![0; SIZE];
                let n = self.buffered.read_at(0, &mut got).unwrap();
                assert!(got[..n] == self.model.0, "the whole file, {n} bytes of {}", self.model.0.len());
            }
            11 => {
                let size = rng.below(SIZE as u64) as usize >> rng.below(16);
                self.buffered.set_len(size as u64).unwrap();
                self.model.0.resize(size, 0);
            }
            12 => {
                self.buffered.fallocate(FallocateMode::PunchHole, at as u64, len as u64 + 1, true).unwrap();
                let size = self.model.0.len();
                self.model.0[at.min(size)..(at + len + 1).min(size)].fill(0);
            }
            13 if self.extents => {
                let mode = if rng.below(2) == 0 { FallocateMode::ZeroRange } else { FallocateMode::Allocate };
                self.buffered.fallocate(mode, at as u64, len as u64 + 1, true).unwrap();
                if mode == FallocateMode::ZeroRange {
                    let size = self.model.0.len();
                    self.model.0[at.min(size)..(at + len + 1).min(size)].fill(0);
                }
            }
            13 => self.shift(rng, at as u64, len as u64),
            14 => {
                let (at, len) = (at / 512 * 512, (len / 512 + 1) * 512);
                let bytes = vec![rng.below(255) as u8 + 1; len];
                assert_eq!(self.direct.write_at(at as u64, &bytes).unwrap().0, len);
                self.model.put(at, &bytes);
                let mut got = vec![0; len];
                assert_eq!(self.direct.read_at(at as u64, &mut got).unwrap(), len);
                assert!(got == bytes);
            }
            15 if self.extents => self.shift(rng, at as u64, len as u64),
            _ => match rng.below(4) {
                3 if self.flips => {
                    let inode = self.buffered.inode();
                    let flags = inode.attr().flags ^ extant::InodeFlags::DAX;
                    self.fs.set_flags(inode, flags, &Credentials::root()).unwrap();
                    assert_eq!(self.fs.effective_dax(inode), flags.contains(extant::InodeFlags::DAX));
                }
                0 => self.maps[map].sync(0..1, SyncMode::Sync).unwrap(),
                1 => self.maps[map].advise(0..SIZE, extant::Advice::DontNeed).unwrap(),
                _ => self.maps[map] = self.buffered.map(0, SIZE, &shared()).unwrap(),
            },
        }
    }

    /// Collapse or insert of whole clusters, which moves what the mappings show.
    fn shift(&mut self, rng: &mut Rng, at: u64, len: u64) {
        let (at, len) = (at / CLUSTER * CLUSTER, len / CLUSTER * CLUSTER + CLUSTER);
        let size = self.model.0.len() as u64;
        let insert = rng.below(2) == 0;
        let mode = if insert { FallocateMode::InsertRange } else { FallocateMode::CollapseRange };
        let fits = if insert { at < size && size + len <= SIZE as u64 } else { at + len < size };
        if insert && size + len > SIZE as u64 {
            return;
        }
        match self.buffered.fallocate(mode, at, len, false) {
            Ok(()) => {
                assert!(fits && self.extents);
                let (at, len) = (at as usize, len as usize);
                if insert {
                    let tail = self.model.0.split_off(at);
                    self.model.0.resize(at + len, 0);
                    self.model.0.extend(tail);
                } else {
                    self.model.0.drain(at..at + len);
                }
            }
            Err(e) if self.extents => assert!(e.errno() == 22 && !fits, "{e}"),
            Err(e) => assert_eq!(e.errno(), 95, "{e}"),
        }
    }
}

#[test]
fn mapped_reads_and_writes_mixed_against_a_model() {
    need!(userfaultfd());
    let seed = seed();
    println!("seed={seed}");
    for (number, (args, options)) in KINDS.iter().enumerate() {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 24 << 20, args);
        let fs = crate::support::open_with(&image, options);
        let mut rng = Rng::new(seed.wrapping_add(number as u64));
        let mut contents = Vec::new();
        for round in 0..12 {
            let inode = new_file(&fs, &format!("f{round}"));
            let (buffered, direct) = (open(&fs, &inode, false), open(&fs, &inode, true));
            let maps = (0..2).map(|_| buffered.map(0, SIZE, &shared()).unwrap()).collect();
            let (extents, flips) = (args.contains("ext4"), options.contains("dax=inode"));
            let model = Model(Vec::new());
            let mut rig = Rig { fs: &fs, buffered: &buffered, direct: &direct, maps, model, extents, flips };
            for _ in 0..120 {
                rig.step(&mut rng);
            }
            contents.push(rig.model.0);
        }
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        if !args.contains("bigalloc") {
            let mount = KernelMount::ro(&image);
            for (round, want) in contents.iter().enumerate() {
                let got = mount.read(&format!("f{round}"));
                assert!(got == *want, "{args}: file {round} on the kernel");
            }
            mount.unmount();
        }
        println!("{args} {options}: held");
    }
}

/// A file whose content is in its inode is read through a mapping where it is, and moves to blocks at the first store.
#[test]
fn inline_content_is_mapped() {
    need!(userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 4096 -O inline_data");
    let fs = open_rw(&image);
    let file = open(&fs, &new_file(&fs, "f"), false);
    file.write_at(0, b"hello, inode").unwrap();
    let map = file.map(0, 4096, &shared()).unwrap();
    let mut got = [0; 14];
    map.read_at(0, &mut got).unwrap();
    assert_eq!(&got, b"hello, inode\0\0");
    assert_eq!(file.inode().attr().blocks, 1, "reading moved it");
    file.write_at(7, b"INODE, and more").unwrap();
    map.read_at(0, &mut got).unwrap();
    assert_eq!(&got, b"hello, INODE, ");
    map.write_at(0, b"H").unwrap();
    map.sync(0..4096, SyncMode::Sync).unwrap();
    assert_eq!(file.inode().attr().blocks, 8);
    file.set_len(3).unwrap();
    file.set_len(30).unwrap();
    let mut all = [1; 30];
    map.read_at(0, &mut all).unwrap();
    assert!(all.starts_with(b"Hel\0") && all[3..].iter().all(|b| *b == 0));
    drop(map);
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// Stores from many threads to counters in a mapping, with writeback, reclaim under a small cache, writes and punches beside them:
/// no addition is lost, and none of a neighbour's bytes shows.
#[test]
fn counters_of_many_threads() {
    need!(userfaultfd());
    const PAGES: usize = 96;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 24 << 20, "-t ext4 -b 1024");
    let options = "cache_size=1m";
    let fs = crate::support::open_with(&image, options);
    let file = Arc::new(open(&fs, &new_file(&fs, "counters"), false));
    let other = open(&fs, &new_file(&fs, "other"), false);
    file.set_len((PAGES * 4096) as u64).unwrap();
    let map = file.map(0, PAGES * 4096, &shared()).unwrap();
    let stop = AtomicBool::new(false);
    let added = AtomicU64::new(0);
    thread::scope(|scope| {
        let (map, stop, added, fs, file, other) = (&map, &stop, &added, &fs, &file, &other);
        let mut workers = Vec::new();
        for thread in 0..3_u64 {
            workers.push(scope.spawn(move || {
                let mut rng = Rng::new(thread + 1);
                for _ in 0..20_000 {
                    // The first half of each page counts; the second half is punched.
                    let at = rng.below(PAGES as u64 / 2) as usize * 4096 + rng.below(128) as usize * 8;
                    map.atomic_u64(at).fetch_add(1, Ordering::Relaxed);
                    added.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                file.fsync(true).unwrap();
            }
        });
        scope.spawn(move || {
            let mut rng = Rng::new(99);
            while !stop.load(Ordering::Relaxed) {
                let page = rng.below(PAGES as u64);
                file.fallocate(FallocateMode::PunchHole, page * 4096 + 2048, 2048, true).unwrap();
                other.write_at(rng.below(4_000_000), &[0xEE; 5000]).unwrap();
                let mut got = [0; 4096];
                file.read_at(page * 4096, &mut got).unwrap();
                assert!(got[2048..].iter().all(|b| *b == 0), "another file's byte");
                fs.sync().unwrap();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let total: u64 = (0..PAGES * 512).map(|n| map.atomic_u64(n * 8).load(Ordering::Relaxed)).sum();
    assert_eq!(total, added.into_inner());
    drop(map);
    drop(file);
    drop(other);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    let mount = KernelMount::ro(&image);
    let bytes = mount.read("counters");
    let on_disk: u64 = bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).sum();
    assert_eq!(on_disk, total, "on the disk");
    mount.unmount();
}

#[test]
fn what_cannot_be_mapped() {
    need!(userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4");
    let fs = open_rw(&image);
    let inode = new_file(&fs, "f");
    let file = open(&fs, &inode, false);
    let is = |result: extant::Result<Mapping>, errno: i32| {
        assert_eq!(result.err().map(|e| e.errno()), Some(errno));
    };
    is(file.map(0, 0, &shared()), 22);
    is(file.map(100, 4096, &shared()), 22);
    let cred = Credentials::root();
    let reading = OpenFile::new(&fs, &inode, OpenMode { read: true, ..OpenMode::default() }, &cred).unwrap();
    is(reading.map(0, 4096, &shared()), 13);
    let private = MapOptions { shared: false, ..shared() };
    let map = reading.map(0, 4096, &private).unwrap();
    assert!(map.pin(0..4096).is_err());
    let writing = OpenFile::new(&fs, &inode, OpenMode { write: true, ..OpenMode::default() }, &cred).unwrap();
    is(writing.map(0, 4096, &MapOptions::default()), 13);
    assert!(matches!(
        OpenFile::new(&fs, &fs.root().unwrap(), OpenMode::default(), &cred),
        Err(Error::IsDirectory)
    ));
    // A private mapping keeps its stores.
    file.write_at(0, &[1; 4096]).unwrap();
    map.write_at(5, &[7]).unwrap();
    let mut got = [0; 10];
    map.read_at(0, &mut got).unwrap();
    assert_eq!(got, [1, 1, 1, 1, 1, 7, 1, 1, 1, 1]);
    file.read_at(0, &mut got).unwrap();
    assert_eq!(got, [1; 10]);
    // Pins.
    let map = file.map(0, 4096, &shared()).unwrap();
    let pin = map.pin(0..100).unwrap();
    assert!(matches!(fs.unmount(), Err(Error::Busy)));
    drop(pin);
    drop(map);
    fs.unmount().unwrap();
    assert_clean(&image);
}
