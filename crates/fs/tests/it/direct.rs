//! Direct I/O: coherent with buffered I/O, aligned, and leaving images that e2fsck accepts.

use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, InodeRef, Leave, NewInode, OpenFile, OpenMode, PassedOn,
    ReadAhead, ReadFlags, Setup, WritePlace,
};
use extant_device::{BlockDevice, Counting, OpenOptions};
use extant_testkit::env::{scratch, seed};
use extant_testkit::oracle::{assert_clean, debugfs_cat, mke2fs};
use extant_testkit::rng::Rng;

use crate::support::{open_ro, open_rw};

const SIZE: u64 = 3 << 20;
const PAST_CACHE: PassedOn = PassedOn { place: WritePlace::At, past_cache: true, kill_suidgid: false };

fn open(fs: &Arc<Filesystem>, inode: &InodeRef, direct: bool) -> OpenFile {
    let mode = OpenMode { read: true, write: true, direct, ..OpenMode::default() };
    OpenFile::new(fs, inode, mode, &Credentials::root()).unwrap()
}

fn leaving(leave: Leave) -> ReadFlags {
    ReadFlags { leave, ..ReadFlags::default() }
}

fn new_file(fs: &Arc<Filesystem>) -> InodeRef {
    fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &Credentials::root()).unwrap()
}

/// One random operation on file and model.
fn step(rng: &mut Rng, buffered: &OpenFile, direct: &OpenFile, model: &mut Vec<u8>, prealloc: bool) {
    // Half of the direct operations are on whole blocks, the others on sectors.
    let unit = if rng.below(2) == 0 { 4096 } else { 512 };
    let at = rng.below(SIZE / unit) * unit;
    let len = (rng.below(200_000) / unit + 1) * unit;
    let end = (at + len).min(SIZE);
    let bytes: Vec<u8> = (0..end - at).map(|i| (i as u8).wrapping_add(rng.below(250) as u8) | 1).collect();
    let put = |model: &mut Vec<u8>, at: u64, bytes: &[u8]| {
        let (from, to) = (at as usize, at as usize + bytes.len());
        model.resize(model.len().max(to), 0);
        model[from..to].copy_from_slice(bytes);
    };
    match rng.below(15) {
        0..3 => {
            assert_eq!(direct.write_at(at, &bytes).unwrap(), (bytes.len(), at));
            put(model, at, &bytes);
        }
        10 | 11 => {
            let at = at + rng.below(2) * 100;
            assert_eq!(buffered.write_passed_on(at, &bytes, PAST_CACHE).unwrap(), (bytes.len(), at));
            put(model, at, &bytes);
        }
        12 => {
            let (at, mut got) = (at + rng.below(2) * 100, vec![0xEE; len as usize]);
            let leave = if rng.below(2) == 0 { Leave::Nothing } else { Leave::Streams };
            let n = buffered.read_passed_on(at, &mut got, leaving(leave)).unwrap();
            let want = model.get(at as usize..).unwrap_or_default();
            assert!(got[..n] == want[..want.len().min(len as usize)], "read of {len} at {at}");
        }
        3 | 4 => {
            let at = at + rng.below(500);
            assert_eq!(buffered.write_at(at, &bytes).unwrap(), (bytes.len(), at));
            put(model, at, &bytes);
        }
        5 | 6 => {
            for file in [direct, buffered] {
                let mut got = vec![0xEE; len as usize];
                let n = file.read_at(at, &mut got).unwrap();
                let want = model.get(at as usize..).unwrap_or_default();
                assert!(got[..n] == want[..want.len().min(len as usize)], "read of {len} at {at}");
            }
        }
        7 => {
            let size = rng.below(SIZE);
            buffered.set_len(size).unwrap();
            model.resize(size as usize, 0);
        }
        8 => {
            buffered.fallocate(FallocateMode::PunchHole, at, len, true).unwrap();
            let (from, to) = (model.len().min(at as usize), model.len().min((at + len) as usize));
            model[from..to].fill(0);
        }
        13 if prealloc => {
            // As many of them are refused as reach the end.
            let (at, len) = (at / 16_384 * 16_384, (len / 16_384 + 1) * 16_384);
            if at + len < model.len() as u64 {
                buffered.fallocate(FallocateMode::CollapseRange, at, len, false).unwrap();
                model.drain(at as usize..(at + len) as usize);
            } else {
                assert_eq!(
                    buffered.fallocate(FallocateMode::CollapseRange, at, len, false).unwrap_err().errno(),
                    22
                );
            }
        }
        14 if prealloc && (at / 16_384 * 16_384) < model.len() as u64 => {
            let at = at / 16_384 * 16_384;
            buffered.fallocate(FallocateMode::InsertRange, at, 16_384, false).unwrap();
            let tail = model.split_off(at as usize);
            model.resize(at as usize + 16_384, 0);
            model.extend(tail);
        }
        _ if prealloc => {
            buffered.fallocate(FallocateMode::Allocate, at, end - at, false).unwrap();
            model.resize(model.len().max(end as usize), 0);
        }
        _ => buffered.fsync(false).unwrap(),
    }
}

#[test]
fn direct_and_buffered_mixed_against_a_model() {
    let seed = seed();
    println!("seed={seed}");
    for (args, prealloc) in [
        ("-t ext4 -b 1024", true),
        ("-t ext4 -b 4096", true),
        ("-t ext4 -b 4096 -O bigalloc -C 16384", true),
        ("-t ext4 -b 1024 -O inline_data", true),
        ("-t ext2 -b 1024", false),
        ("-t ext3 -b 4096", false),
    ] {
        println!("{args}");
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, args);
        let fs = open_rw(&image);
        let inode = new_file(&fs);
        let (buffered, direct) = (open(&fs, &inode, false), open(&fs, &inode, true));
        let (mut rng, mut model) = (Rng::new(seed), Vec::new());
        for _ in 0..250 {
            step(&mut rng, &buffered, &direct, &mut model, prealloc);
        }
        let check = |fs: &Filesystem, inode: &InodeRef| {
            let mut got = vec![0; model.len() + 1];
            let n = fs.read_stream(inode, 0, &mut got, &mut ReadAhead::default()).unwrap();
            assert!(got[..n] == model, "{args}");
        };
        check(&fs, &inode);
        drop((buffered, direct, inode));
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let fs = open_ro(&image);
        check(&fs, &fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap());
    }
}

#[test]
fn what_is_not_aligned_is_refused() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let fs = open_rw(&image);
    let file = open(&fs, &new_file(&fs), true);
    assert_eq!(fs.direct_alignment(), 512);
    for (at, len) in [(1, 512), (512, 511), (256, 256)] {
        assert!(matches!(file.write_at(at, &vec![0; len]), Err(Error::Invalid(_))), "write of {len} at {at}");
        assert!(
            matches!(file.read_at(at, &mut vec![0; len]), Err(Error::Invalid(_))),
            "read of {len} at {at}"
        );
    }
    assert_eq!(file.write_at(512, &[7; 512]).unwrap(), (512, 512));
    let mut got = [9; 2048];
    assert_eq!(file.read_at(0, &mut got).unwrap(), 1024, "up to the end");
    assert!(got[..512] == [0; 512] && got[512..1024] == [7; 512]);
}

#[test]
fn writers_past_the_cache_and_readers_through_it_see_whole_writes_at_the_end() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let fs = open_rw(&image);
    let inode = new_file(&fs);
    open(&fs, &inode, true).write_at(0, &vec![1; 1 << 20]).unwrap();
    std::thread::scope(|scope| {
        for t in 0..2_u64 {
            let (fs, inode) = (&fs, &inode);
            scope.spawn(move || {
                let file = open(fs, inode, true);
                for round in 0..60 {
                    let value = (round * 2 + t + 2) as u8;
                    file.write_at(t << 19, &vec![value; 1 << 19]).unwrap();
                    let mut got = vec![0; 1 << 19];
                    // What this thread wrote is there, though others fill pages meanwhile.
                    open(fs, inode, false).read_at(t << 19, &mut got).unwrap();
                    assert!(got.iter().all(|b| *b == value), "round {round}: stale bytes in the cache");
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let (file, mut got) = (open(&fs, &inode, false), vec![0; 8192]);
                for n in 0..3000_u64 {
                    file.read_at(n * 8192 % (1 << 20), &mut got).unwrap();
                    assert!(got.iter().all(|b| *b != 0));
                }
            });
        }
    });
    drop(inode);
    fs.unmount().unwrap();
    assert_clean(&image);
}

#[test]
fn writing_takes_file_capabilities_away() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let fs = open_rw(&image);
    let (root, name) = (Credentials::root(), b"security.capability");
    let inode = new_file(&fs);
    let (buffered, direct) = (open(&fs, &inode, false), open(&fs, &inode, true));
    direct.write_at(0, &[1; 8192]).unwrap();
    let grant =
        || fs.set_xattr(&inode, name, &[1, 0, 0, 2, 0, 0, 0, 0], extant::XattrSet::Any, &root).unwrap();
    let changes: [(&str, &dyn Fn()); 6] = [
        ("write", &|| assert_eq!(buffered.write_at(0, b"x").unwrap().0, 1)),
        ("direct overwrite", &|| assert_eq!(direct.write_at(0, &[2; 4096]).unwrap().0, 4096)),
        ("direct write past the end", &|| assert_eq!(direct.write_at(1 << 20, &[2; 4096]).unwrap().0, 4096)),
        ("truncate", &|| buffered.set_len(5000).unwrap()),
        ("fallocate", &|| buffered.fallocate(FallocateMode::Allocate, 0, 20_000, false).unwrap()),
        ("chown", &|| {
            let change = extant::SetAttr { uid: Some(5), ..extant::SetAttr::default() };
            fs.set_attr(&inode, &change, &root).unwrap();
        }),
    ];
    for (what, change) in changes {
        grant();
        assert_eq!(fs.get_xattr(&inode, name, &root).unwrap().len(), 8);
        change();
        assert!(matches!(fs.get_xattr(&inode, name, &root), Err(Error::NoAttribute)), "after {what}");
    }
    drop((buffered, direct, inode));
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// What a server does with O_DIRECT: overwrites in place go to the device at once and reads leave the cache as it is, but what
/// is newer or needs a place stays with the cache.
#[test]
fn past_the_cache_where_that_serves() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let device = Arc::new(Counting::new(Arc::new(OpenOptions::new().write(true).open(&image).unwrap())));
    let setup = Setup::with_options("commit=300").unwrap();
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, setup).unwrap();
    let inode = new_file(&fs);
    let file = open(&fs, &inode, false);
    file.write_at(0, &[1; 65536]).unwrap();
    file.fsync(false).unwrap();
    let moved = |what: &dyn Fn()| {
        let before = device.counts();
        what();
        let after = device.counts();
        (after.bytes_read - before.bytes_read, after.bytes_written - before.bytes_written)
    };
    let write = |at, len| {
        moved(&|| assert_eq!(file.write_passed_on(at, &vec![2; len], PAST_CACHE).unwrap(), (len, at)))
    };
    let read = |at, value| {
        moved(&|| {
            let mut got = [0; 8192];
            assert_eq!(file.read_passed_on(at, &mut got, leaving(Leave::Nothing)).unwrap(), 8192);
            assert!(got == [value; 8192]);
        })
    };
    assert_eq!(write(0, 8192), (0, 8192), "in place");
    assert_eq!(read(0, 2), (8192, 0), "no page of it");
    assert_eq!(read(0, 2), (8192, 0), "the cache is as it was");
    assert_eq!(read(16384, 1), (0, 0), "cached");
    file.write_at(20480, &[3; 4096]).unwrap();
    assert_eq!(write(16384, 8192), (0, 0), "dirty");
    assert_eq!(read(16384, 2), (0, 0), "what is newer");
    assert_eq!(write(65536, 8192), (0, 0), "it needs a place");
    assert_eq!(write(32768, 100).1, 0, "a part of a block");
    drop((file, inode));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    let mut want = vec![1; 65536];
    want.resize(73728, 2);
    [0..8192, 16384..24576, 32768..32868].into_iter().for_each(|range| want[range].fill(2));
    assert!(debugfs_cat(&image, "/file") == want);
}

/// Whoever keeps what it reads (a kernel) is not given it by way of our cache at random places, until the file was read so once; streams
/// are read ahead for it as for others, and what is newer in memory is what it gets.
#[test]
fn what_the_caller_keeps_is_not_kept_twice() {
    const SIZE: u64 = 1 << 20;
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let fs = open_rw(&image);
    let file = open(&fs, &new_file(&fs), false);
    let content: Vec<u8> = (0..SIZE).map(|i| (i >> 12) as u8 | 1).collect();
    file.write_at(0, &content).unwrap();
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let device = Arc::new(Counting::new(Arc::new(OpenOptions::new().write(true).open(&image).unwrap())));
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, Setup::default()).unwrap();
    let root = fs.root().unwrap();
    let inode = fs.lookup(&root, b"file", &Credentials::root()).unwrap();
    let file = open(&fs, &inode, false);
    let read = |file: &OpenFile, leave, at: u64, want: u8| {
        let before = device.counts().bytes_read;
        let mut got = [0; 4096];
        assert_eq!(file.read_passed_on(at, &mut got, leaving(leave)).unwrap(), 4096);
        assert!(got == [want; 4096], "at {at}");
        device.counts().bytes_read - before
    };
    let of = |at: u64| (at >> 12) as u8 | 1;
    read(&file, Leave::Streams, 40 << 12, of(40 << 12));
    assert_eq!(read(&file, Leave::Streams, 40 << 12, of(40 << 12)), 4096, "the cache is as it was");
    assert_eq!(read(&file, Leave::Pages, 40 << 12, of(40 << 12)), 4096);
    assert_eq!(read(&file, Leave::Streams, 40 << 12, of(40 << 12)), 0, "what is there is taken");
    assert_eq!(read(&file, Leave::Streams, 41 << 12, of(41 << 12)), 64 << 10, "a stream");
    assert_eq!(read(&file, Leave::Streams, 42 << 12, of(42 << 12)), 0, "read ahead");
    assert_eq!(read(&file, Leave::Streams, 100 << 12, of(100 << 12)), 4096, "the end of the stream");
    assert_eq!(read(&file, Leave::Streams, 101 << 12, of(101 << 12)), 64 << 10, "another one begins small");
    let begin = device.counts().bytes_read;
    let mut got = [0; 3 * 4096];
    assert_eq!(file.read_passed_on(115 << 12, &mut got, leaving(Leave::Streams)).unwrap(), got.len());
    assert_eq!(device.counts().bytes_read - begin, 4096, "two blocks are cached");
    assert_eq!(file.read_passed_on(118 << 12, &mut got, leaving(Leave::Streams)).unwrap(), got.len());
    let begin = device.counts().bytes_read;
    assert_eq!(file.read_at(140 << 12, &mut got[..4096]).unwrap(), 4096);
    assert_eq!(file.read_at(140 << 12, &mut got[..4096]).unwrap(), 4096);
    assert_eq!(device.counts().bytes_read - begin, 4096, "who does not say so does not keep it");
    file.write_at(20 << 12, &[0xEE; 4096]).unwrap();
    assert_eq!(read(&file, Leave::Streams, 20 << 12, 0xEE), 0, "what is newer");
    // Four of the file's blocks were read past the cache so far.
    for _ in 0..SIZE / 4096 - 4 {
        assert_eq!(read(&file, Leave::Streams, 200 << 12, of(200 << 12)), 4096);
        assert_eq!(read(&file, Leave::Streams, 20 << 12, 0xEE), 0);
    }
    assert_eq!(
        read(&file, Leave::Streams, 200 << 12, of(200 << 12)),
        4096,
        "as much as the file has: it is kept"
    );
    read(&file, Leave::Streams, 20 << 12, 0xEE);
    assert_eq!(read(&file, Leave::Streams, 200 << 12, of(200 << 12)), 0, "it comes again");
    drop((file, inode, root));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// What was freed and is not committed is space all the same: a direct write is not cut short for it, on whole blocks or parts of them.
#[test]
fn direct_writes_use_what_was_freed_just_now() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -m 0");
    let fs = open_rw(&image);
    let inode = new_file(&fs);
    let direct = open(&fs, &inode, true);
    let bytes = vec![7; 3 << 20];
    for at in [0, 512] {
        // Five times what the filesystem holds, in less than a commit's interval.
        for _ in 0..14 {
            assert_eq!(direct.write_at(at, &bytes).unwrap(), (bytes.len(), at));
            direct.set_len(0).unwrap();
        }
    }
    drop((direct, inode));
    fs.unmount().unwrap();
    assert_clean(&image);
}
