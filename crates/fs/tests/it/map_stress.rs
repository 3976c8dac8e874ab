//! Mapped files under real threads: about a second each, or `EXTANT_STRESS` seconds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use extant::{Advice, Credentials, Error, FallocateMode, Filesystem, InodeFlags, Mapping, OpenFile};
use extant_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use extant_sync::thread;
use extant_testkit::env::{scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::rng::Rng;

use crate::mapping::{new_file, open, shared, userfaultfd};

const PAGE: usize = 4096;

/// Until when the threads work.
fn end() -> Instant {
    let seconds = std::env::var("EXTANT_STRESS").map_or(1, |s| s.parse().expect("EXTANT_STRESS: seconds"));
    Instant::now() + Duration::from_secs(seconds)
}

fn go_on(end: Instant) -> bool {
    Instant::now() < end
}

/// A seed for each thread.
fn rng(seed: u64, thread: u64) -> Rng {
    Rng::new(seed.wrapping_mul(31).wrapping_add(thread))
}

/// Unmounts, asks e2fsck, and compares files with what the kernel reads.
fn finish(fs: Arc<Filesystem>, image: &Path, files: &BTreeMap<String, Vec<u8>>) {
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(image);
    let mount = KernelMount::ro(image);
    for (name, want) in files {
        let got = mount.read(name);
        assert!(got == *want, "{name} on the kernel");
    }
    mount.unmount();
}

/// Has the file written over and over.
fn keep_durable(file: &extant::OpenFile, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        file.fsync(true).unwrap();
    }
}

/// The words of some bytes.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()))
}

/// Counters in the first quarter of each of the first pages; the rest of these pages is punched, the pages after them come and go with
/// the file's size.
const COUNTED: usize = 96;
const MOST: usize = 160;

fn counter(rng: &mut Rng) -> usize {
    rng.below(COUNTED as u64) as usize * PAGE + rng.below(128) as usize * 8
}

/// Writers, mappers, punch, truncate, writeback and reclaim under a small cache: no addition is lost, no foreign byte shows.
#[test]
fn counters_under_everything() {
    need!(userfaultfd());
    let seed = seed();
    println!("seed={seed}");
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 48 << 20, "-t ext4 -b 1024");
    let fs = crate::support::open_with(&image, "cache_size=1m");
    let file = open(&fs, &new_file(&fs, "counters"), false);
    let other = open(&fs, &new_file(&fs, "other"), false);
    file.set_len((COUNTED * PAGE) as u64).unwrap();
    let map = file.map(0, COUNTED * PAGE, &shared()).unwrap();
    let added = AtomicU64::new(0);
    let end = end();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (map, stop, added, fs, file, other) = (&map, &stop, &added, &fs, &file, &other);
        let mut workers = Vec::new();
        for thread in 0..3 {
            workers.push(scope.spawn(move || {
                let mut rng = rng(seed, thread);
                while go_on(end) {
                    for _ in 0..100 {
                        map.atomic_u64(counter(&mut rng)).fetch_add(1, Ordering::Relaxed);
                        added.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        // Through mappings that come and go.
        workers.push(scope.spawn(move || {
            let mut rng = rng(seed, 10);
            while go_on(end) {
                let own = file.map(0, COUNTED * PAGE, &shared()).unwrap();
                for _ in 0..rng.below(50) {
                    own.atomic_u64(counter(&mut rng)).fetch_add(1, Ordering::Relaxed);
                    added.fetch_add(1, Ordering::Relaxed);
                }
                own.advise(0..own.len(), Advice::DontNeed).unwrap();
            }
        }));
        scope.spawn(move || keep_durable(file, stop));
        scope.spawn(move || punch(&mut rng(seed, 11), file, stop));
        scope.spawn(move || come_and_go(&mut rng(seed, 12), file, stop));
        scope.spawn(move || {
            let mut rng = rng(seed, 13);
            while !stop.load(Ordering::Relaxed) {
                other.write_at(rng.below(4_000_000), &[0xEE; 5000]).unwrap();
                fs.sync().unwrap();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let total: u64 = (0..COUNTED * PAGE / 8)
        .map(|n| map.atomic_u64(n * 8).load(Ordering::Relaxed))
        .fold(0, u64::wrapping_add);
    let added = added.into_inner();
    println!("{added} additions");
    assert_eq!(total, added, "in the mapping");
    drop(map);
    let mut bytes = vec![0; file.inode().size() as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
    assert_eq!(words(&bytes).fold(0, u64::wrapping_add), added, "in the file");
    drop((file, other));
    finish(fs, &image, &BTreeMap::from([("counters".to_owned(), bytes)]));
}

/// Makes holes behind the counters, and looks that nothing but zeros is there.
fn punch(rng: &mut Rng, file: &extant::OpenFile, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let page = rng.below(COUNTED as u64);
        file.fallocate(FallocateMode::PunchHole, page * PAGE as u64 + 2048, 2048, true).unwrap();
        let mut got = [0; PAGE];
        file.read_at(page * PAGE as u64, &mut got).unwrap();
        assert!(got[1024..].iter().all(|b| *b == 0), "another file's byte");
    }
}

/// Grows and shrinks the file behind the counted pages; what appears there is zeros.
fn come_and_go(rng: &mut Rng, file: &extant::OpenFile, stop: &AtomicBool) {
    let least = (COUNTED * PAGE) as u64;
    let window = file.map(0, MOST * PAGE, &shared()).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let size = least + rng.below(((MOST - COUNTED) * PAGE) as u64);
        file.set_len(size).unwrap();
        let mut got = vec![1; (size - least) as usize];
        window.read_at(COUNTED * PAGE, &mut got).unwrap();
        assert!(got.iter().all(|b| *b == 0), "a byte that nobody wrote");
        let some = vec![0xAB; got.len().min(PAGE)];
        window.write_at(COUNTED * PAGE, &some).unwrap();
        if rng.below(2) == 0 {
            file.fsync(true).unwrap();
        }
        file.set_len(least).unwrap();
    }
}

/// Files that move out of their inodes under mapped stores, with the disk full half of the time: a store that finds no space is
/// EFAULT for the system call that makes it, and changes nothing; one that was made is in the file.
#[test]
fn inline_files_on_a_full_disk() {
    need!(userfaultfd());
    let seed = seed();
    println!("seed={seed}");
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024 -O inline_data -I 256");
    let source = dir.join("source");
    std::fs::write(&source, (0..PAGE * 4).map(|n| (n % 251) as u8 + 1).collect::<Vec<u8>>()).unwrap();
    let fs = crate::support::open_with(&image, "cache_size=2m");
    let end = end();
    let stop = AtomicBool::new(false);
    let counts = [AtomicU64::new(0), AtomicU64::new(0)];
    let mut files = BTreeMap::new();
    thread::scope(|scope| {
        let (fs, stop, source, counts) = (&fs, &stop, &source, &counts);
        let full = scope.spawn(move || fill_and_empty(fs, stop));
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                fs.sync().unwrap();
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    let mut rng = rng(seed, thread);
                    let from = File::open(source).unwrap();
                    let mut files = BTreeMap::new();
                    let mut round = 0;
                    while go_on(end) {
                        let name = format!("f{thread}-{}", round % 16);
                        if let Some(content) = flip_one(fs, &name, &from, &mut rng, counts) {
                            files.insert(name, content);
                        } else {
                            files.remove(&name);
                        }
                        round += 1;
                    }
                    files
                })
            })
            .collect();
        for worker in workers {
            files.extend(worker.join().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        full.join().unwrap();
    });
    let [stored, refused] = counts.map(AtomicU64::into_inner);
    println!("{stored} stores, {refused} refused");
    assert!(stored > 0 && refused > 0, "a disk that is full half of the time");
    finish(fs, &image, &files);
}

/// Takes all space, then gives it back, over and over.
fn fill_and_empty(fs: &Arc<Filesystem>, stop: &AtomicBool) {
    let filler = open(fs, &new_file(fs, "filler"), false);
    while !stop.load(Ordering::Relaxed) {
        let mut at = 0;
        loop {
            // First in large pieces, then what is left, block by block.
            let len = if filler.write_at(at, &[7; 64 << 10]).is_ok() { 64 << 10 } else { 1024 };
            if len == 1024 && filler.write_at(at, &[7; 1024]).is_err() {
                break;
            }
            at += len;
        }
        // Full for as long as it takes to write that.
        let _ = filler.fsync(true);
        let _ = filler.fsync(true);
        filler.set_len(0).unwrap();
        let _ = fs.sync();
    }
    filler.set_len(0).unwrap();
}

/// A fresh file with content in its inode, stored to through a mapping by the kernel; what it holds, if it could be made.
fn flip_one(
    fs: &Arc<Filesystem>,
    name: &str,
    from: &File,
    rng: &mut Rng,
    [stored, refused]: &[AtomicU64; 2],
) -> Option<Vec<u8>> {
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    match fs.unlink(&root, name.as_bytes(), &cred) {
        Ok(_) | Err(Error::NotFound) => {}
        // It stays as it is; the next round tries again.
        Err(error) => panic!("unlink {name}: {error}"),
    }
    let inode = match fs.mknod(&root, name.as_bytes(), &extant::NewInode::file(0o644), &cred) {
        Ok(inode) => inode,
        Err(Error::NoSpace) => return None,
        Err(error) => panic!("mknod {name}: {error}"),
    };
    let file = open(fs, &inode, false);
    let len = rng.below(150) as usize + 1;
    let mut model: Vec<u8> = (0..len).map(|_| rng.below(255) as u8 + 1).collect();
    match file.write_at(0, &model) {
        Ok((n, _)) => model.truncate(n),
        Err(Error::NoSpace) => return Some(Vec::new()),
        Err(error) => panic!("write {name}: {error}"),
    }
    let map = file.map(0, PAGE, &shared()).unwrap();
    for _ in 0..rng.below(4) + 1 {
        store_by_kernel(&map, from, rng, &mut model, stored, refused);
        let mut got = vec![0; model.len()];
        assert_eq!(file.read_at(0, &mut got).unwrap(), got.len());
        assert!(got == model, "{name} is not what was stored");
        if rng.below(3) == 0 {
            let size = rng.below(200) as usize;
            match file.set_len(size as u64) {
                Ok(()) => model.resize(size, 0),
                Err(Error::NoSpace) => {}
                Err(error) => panic!("set_len {name}: {error}"),
            }
        }
    }
    Some(model)
}

fn store_by_kernel(
    map: &Mapping,
    from: &File,
    rng: &mut Rng,
    model: &mut [u8],
    stored: &AtomicU64,
    refused: &AtomicU64,
) {
    const EFAULT: i32 = 14;
    if model.is_empty() {
        return;
    }
    let at = rng.below(model.len() as u64) as usize;
    let len = rng.below((model.len() - at) as u64) as usize + 1;
    let offset = rng.below(PAGE as u64 * 2) as usize;
    match map.read_from(from, offset as u64, at..at + len) {
        Ok(n) => {
            assert_eq!(n, len);
            for (i, byte) in model[at..at + len].iter_mut().enumerate() {
                *byte = ((offset + i) % 251) as u8 + 1;
            }
            stored.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            assert_eq!(error.errno(), EFAULT, "a store: {error}");
            refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Pages of a thread that reads another file into a mapping.
const OWN: usize = 64;

/// O_DIRECT reads of another file, of the system's and of ours, into a mapping, with and without a pin, while writeback and reclaim run:
/// what a device put there is what the file holds.
#[test]
fn direct_reads_into_a_mapping() {
    need!(userfaultfd());
    let seed = seed();
    println!("seed={seed}");
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 48 << 20, "-t ext4 -b 1024");
    let source = dir.join("source");
    let blocks: Vec<u8> = (0..256 * PAGE).map(|n| (n / PAGE) as u8 ^ (n % 253) as u8).collect();
    std::fs::write(&source, &blocks).unwrap();
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(O_DIRECT).open(&source);
    need!(direct.as_ref().map(|_| ()).map_err(|e| format!("O_DIRECT in the scratch folder: {e}")));
    let direct = direct.unwrap();
    let fs = crate::support::open_with(&image, "cache_size=1m");
    let ours = new_file(&fs, "ours");
    assert_eq!(open(&fs, &ours, false).write_at(0, &blocks).unwrap().0, blocks.len());
    fs.sync().unwrap();
    let ours = open(&fs, &ours, true);
    let file = open(&fs, &new_file(&fs, "target"), false);
    let other = open(&fs, &new_file(&fs, "other"), false);
    file.set_len((3 * OWN * PAGE) as u64).unwrap();
    let map = file.map(0, 3 * OWN * PAGE, &shared()).unwrap();
    let end = end();
    let stop = AtomicBool::new(false);
    let mut content = Vec::new();
    thread::scope(|scope| {
        let (map, stop, fs, file, other) = (&map, &stop, &fs, &file, &other);
        let (direct, ours, blocks) = (&direct, &ours, &blocks);
        let workers: Vec<_> = (0..3_usize)
            .map(|thread| {
                scope.spawn(move || {
                    let mut rng = rng(seed, thread as u64);
                    let mut model = vec![0; OWN * PAGE];
                    while go_on(end) {
                        let block = rng.below(250) as usize * PAGE;
                        let len = (rng.below(5) as usize + 1) * PAGE;
                        let at = rng.below((OWN - 5) as u64) as usize * PAGE;
                        let range = thread * OWN * PAGE + at..thread * OWN * PAGE + at + len;
                        let pin = (rng.below(2) == 0).then(|| map.pin(range.clone()).unwrap());
                        if rng.below(4) == 0 {
                            let mut own = vec![0; len];
                            assert_eq!(ours.read_at(block as u64, &mut own).unwrap(), len);
                            map.write_at(range.start, &own).unwrap();
                        } else {
                            assert_eq!(map.read_from(direct, block as u64, range.clone()).unwrap(), len);
                        }
                        drop(pin);
                        model[at..at + len].copy_from_slice(&blocks[block..block + len]);
                        let mut got = vec![0; OWN * PAGE];
                        map.read_at(thread * OWN * PAGE, &mut got).unwrap();
                        assert!(got == model, "thread {thread}: the mapping");
                    }
                    model
                })
            })
            .collect();
        scope.spawn(move || keep_durable(file, stop));
        scope.spawn(move || {
            let mut rng = rng(seed, 9);
            while !stop.load(Ordering::Relaxed) {
                // Memory for this comes from the clean pages.
                other.write_at(rng.below(4_000_000), &[0xEE; 50_000]).unwrap();
                fs.sync().unwrap();
            }
        });
        for worker in workers {
            content.extend(worker.join().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut got = vec![0; content.len()];
    assert_eq!(file.read_at(0, &mut got).unwrap(), got.len());
    assert!(got == content, "read");
    drop((map, file, other, ours));
    finish(fs, &image, &BTreeMap::from([("target".to_owned(), content), ("ours".to_owned(), blocks)]));
}

/// As the system calls it on this architecture.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

/// Bytes before the counted ones, the counted ones, and where nothing is counted wherever the front stands.
const FRONT: usize = 64 << 10;
const WINDOW: usize = 256 << 10;
const BEHIND: usize = 2 * FRONT + WINDOW;

/// A cell of the window.
fn cell(rng: &mut Rng) -> usize {
    FRONT + rng.below((WINDOW / 8) as u64) as usize * 8
}

/// Counters that move while they are counted: ranges of any number of blocks come in and go out in front of them and behind them, holes and
/// zeros are made behind them, a small cache is written and read past, and a second file takes what is freed. Cells move in and out of the
/// window, but none is ever in a range that goes: so every addition is in the file at the end, wherever it stands.
#[test]
fn counters_that_move() {
    need!(userfaultfd());
    for block in [1024, 4096] {
        moving(block, false);
    }
}

/// The same while the file's mode flips, so that half of all that happens on the device itself.
#[test]
fn counters_that_move_and_flip() {
    need!(userfaultfd());
    moving(PAGE, true);
}

fn moving(block: usize, flips: bool) {
    let seed = seed();
    println!("seed={seed}, blocks of {block}");
    let dir = scratch();
    let image = dir.join("image");
    // What mappings showed of the device is not used again at once.
    let size = if flips { 32 << 20 } else { 16 << 20 };
    mke2fs(&image, size, &format!("-t ext4 -b {block}"));
    let fs = crate::support::open_with(&image, "cache_size=1m");
    let inode = new_file(&fs, "counters");
    let (file, direct) = (open(&fs, &inode, false), open(&fs, &inode, true));
    let other = open(&fs, &new_file(&fs, "other"), false);
    file.set_len((BEHIND + 2 * FRONT) as u64).unwrap();
    let maps = [0; 2].map(|at| file.map(at, FRONT + WINDOW, &shared()).unwrap());
    let added = AtomicU64::new(0);
    let flipped = AtomicU64::new(0);
    let moves = AtomicU64::new(0);
    let end = end();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (maps, stop, added, moves, fs) = (&maps, &stop, &added, &moves, &fs);
        let (file, direct, other, inode, flipped) = (&file, &direct, &other, &inode, &flipped);
        let workers: Vec<_> = (0..2)
            .map(|thread| {
                scope.spawn(move || {
                    let mut rng = rng(seed, thread);
                    while go_on(end) {
                        for _ in 0..100 {
                            let map = &maps[rng.below(2) as usize];
                            map.atomic_u64(cell(&mut rng)).fetch_add(1, Ordering::Relaxed);
                            added.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        if flips {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = inode.attr().flags ^ InodeFlags::DAX;
                    fs.set_flags(inode, flags, &Credentials::root()).unwrap();
                    assert_eq!(fs.effective_dax(inode), flags.contains(InodeFlags::DAX));
                    flipped.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(move || {
            let mut rng = rng(seed, 10);
            while !stop.load(Ordering::Relaxed) {
                let at = if rng.below(4) == 0 { BEHIND as u64 } else { 0 };
                let len = (rng.below((FRONT / block) as u64) + 1) * block as u64;
                file.fallocate(FallocateMode::InsertRange, at, len, false).unwrap();
                file.fallocate(FallocateMode::CollapseRange, at, len, false).unwrap();
                moves.fetch_add(2, Ordering::Relaxed);
            }
        });
        scope.spawn(move || {
            let mut rng = rng(seed, 11);
            while !stop.load(Ordering::Relaxed) {
                let at = BEHIND as u64 + rng.below(FRONT as u64);
                let len = rng.below(FRONT as u64) + 1;
                let write_all = |file: &OpenFile, mut at: u64, mut len: u64| {
                    // Where there is only a part of the space that is needed, it is cut short.
                    while len > 0 {
                        let n = file.write_at(at, &vec![0; len as usize]).unwrap().0 as u64;
                        (at, len) = (at + n, len - n);
                    }
                };
                match rng.below(4) {
                    0 => file.fallocate(FallocateMode::PunchHole, at, len, true).unwrap(),
                    1 => file.fallocate(FallocateMode::ZeroRange, at, len, true).unwrap(),
                    2 => write_all(file, at, len),
                    _ => write_all(direct, at.next_multiple_of(4096), len.next_multiple_of(4096)),
                }
            }
        });
        scope.spawn(move || {
            let mut rng = rng(seed, 12);
            let mut got = vec![0; 16384];
            while !stop.load(Ordering::Relaxed) {
                let at = rng.below(((BEHIND + FRONT) / 4096) as u64) * 4096;
                let n = match rng.below(3) {
                    0 => direct.read_at(at, &mut got).unwrap(),
                    1 => file.read_at(at, &mut got).unwrap(),
                    _ => {
                        maps[1].read_at(at as usize % (FRONT + WINDOW - got.len()), &mut got).unwrap();
                        got.len()
                    }
                };
                assert!(words(&got[..n]).all(|cell| cell < 1 << 48), "another file's byte");
            }
        });
        scope.spawn(move || keep_durable(file, stop));
        scope.spawn(move || {
            let mut rng = rng(seed, 13);
            while !stop.load(Ordering::Relaxed) {
                other.write_at(rng.below(2_000_000), &[0xEE; 50_000]).unwrap();
                if rng.below(8) == 0 {
                    other.set_len(0).unwrap();
                }
                fs.sync().unwrap();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let added = added.into_inner();
    println!("{added} additions, {} moves, {} flips", moves.into_inner(), flipped.into_inner());
    drop(maps);
    let mut bytes = vec![0; file.inode().size() as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
    assert_eq!(words(&bytes).fold(0, u64::wrapping_add), added, "in the file");
    drop((file, direct, other, inode));
    finish(fs, &image, &BTreeMap::from([("counters".to_owned(), bytes)]));
}
