//! Scenarios under the exploring runtime, and mutants of them that it must catch.

use extant_sync::{Arc, model, thread};
use extant_vm::{CacheConfig, Host, ReadAhead};

use crate::sim::{STALE, SimFile, SimFs};

const BLOCK: usize = 1024;

fn fs() -> SimFs {
    SimFs::new(BLOCK as u32, 32, CacheConfig { direct_read: usize::MAX, ..CacheConfig::default() })
}

fn content(file: &SimFile) -> Vec<u8> {
    let mut got = vec![0; 8 * BLOCK];
    let n = file.pages.read(file, 0, &mut got, &mut ReadAhead::default()).expect("read");
    got.truncate(n);
    got
}

fn together(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(|task| thread::spawn(task)).collect();
    for t in threads {
        t.join().expect("no panic inside");
    }
}

fn explore(name: &str, scenario: fn(), few: usize) {
    model::Lab::new(name, few).holds(scenario);
}

/// Two writers of one page: each block is one's or the other's, and both ends reserve exactly once.
#[test]
fn two_writers() {
    explore(
        "two writers",
        || {
            let fs = fs();
            let file = fs.file(12);
            let write = |byte: u8, at: u64| -> Box<dyn FnOnce() + Send> {
                let file = Arc::clone(&file);
                Box::new(move || {
                    let outcome = file.pages.write(&*file, at, &[byte; 3 * BLOCK]);
                    assert!(outcome.error.is_none() && outcome.written == 3 * BLOCK);
                })
            };
            together(vec![write(1, 0), write(2, 2 * BLOCK as u64)]);
            let got = content(&file);
            assert_eq!(got.len(), 5 * BLOCK);
            for (n, block) in got.chunks(BLOCK).enumerate() {
                let may = match n {
                    0 | 1 => &[1][..],
                    2 => &[1, 2],
                    _ => &[2],
                };
                assert!(may.contains(&block[0]) && block.iter().all(|b| *b == block[0]), "block {n}");
            }
            assert_eq!(file.reserved_blocks(), 5);
            fs.cache.sync_all().expect("sync");
            assert!(file.after_crash() == got && file.reserved_blocks() == 0);
        },
        400,
    );
}

/// A write that comes before or after a truncate, under the inode lock's stand-in, while a writeback runs.
#[test]
fn write_truncate_and_writeback() {
    explore(
        "write truncate and writeback",
        || {
            let fs = fs();
            let file = fs.file(12);
            file.pages.write(&*file, 0, &[1; 5 * BLOCK]);
            let lock = Arc::new(extant_sync::Mutex::new(extant_sync::Rank::INODE, ()));
            let (a, b, c) = (Arc::clone(&file), Arc::clone(&file), Arc::clone(&file));
            let other = Arc::clone(&lock);
            together(vec![
                Box::new(move || {
                    let _inode = lock.lock();
                    assert_eq!(a.pages.write(&*a, 700, &[2; 2 * BLOCK]).written, 2 * BLOCK);
                }),
                Box::new(move || {
                    let _inode = other.lock();
                    b.truncate(1500).expect("truncate");
                }),
                Box::new(move || c.pages.sync(&*c, 0..u64::MAX).expect("sync")),
            ]);
            let got = content(&file);
            let expected = |size: usize, second_from: usize| {
                let mut want = vec![1; size];
                want[700..second_from].fill(2);
                want
            };
            assert!(got == expected(1500, 1500) || got == expected(700 + 2 * BLOCK, 700 + 2 * BLOCK));
            fs.cache.sync_all().expect("sync");
            assert!(file.after_crash() == got && file.reserved_blocks() == 0);
            assert_eq!(fs.cache.stats().dirty, 0);
        },
        400,
    );
}

/// A write into pages that are being written: afterwards one of the two writebacks has brought the new data.
#[test]
fn write_during_writeback() {
    explore(
        "write during writeback",
        || {
            let fs = fs();
            let file = fs.file(12);
            file.pages.write(&*file, 0, &[1; 4 * BLOCK]);
            let (a, b) = (Arc::clone(&file), Arc::clone(&file));
            together(vec![
                Box::new(move || {
                    a.pages.write(&*a, 100, &[2; 100]);
                    a.pages.write(&*a, 4 * BLOCK as u64 - 10, &[3; 100]);
                }),
                Box::new(move || b.pages.sync(&*b, 0..u64::MAX).expect("sync")),
            ]);
            assert!(file.after_crash().iter().all(|b| *b != STALE));
            fs.cache.sync_all().expect("sync");
            assert!(file.after_crash() == content(&file));
            assert_eq!((file.after_crash()[150], file.after_crash()[4 * BLOCK + 50]), (2, 3));
            assert_eq!((fs.cache.stats().dirty, fs.cache.stats().dirty_inodes), (0, 0));
        },
        400,
    );
}

/// Reads of a file with data on the device, while a hole is punched with `guard_of` as the file whose lock the puncher takes.
const FILL: &str = "fill against punch";

fn fill_against_punch(right_lock: bool) {
    let fs = fs();
    let file = fs.file(12);
    let other = fs.file(13);
    file.pages.write(&*file, 0, &[1; 8 * BLOCK]);
    fs.cache.sync_all().expect("sync");
    assert!(file.pages.invalidate(0..u64::MAX));
    let (a, b) = (Arc::clone(&file), Arc::clone(&file));
    together(vec![
        Box::new(move || {
            let got = content(&a);
            assert!(got.iter().all(|b| *b != STALE), "a reader saw another file's bytes");
        }),
        Box::new(move || {
            let guard = if right_lock { b.pages.exclusive() } else { other.pages.exclusive() };
            let _gate = b.pages.punch(&guard, &*b, 0..4 * BLOCK as u64).expect("punch");
            b.unmap(0..4);
        }),
    ]);
    let got = content(&file);
    assert!(got[..4 * BLOCK].iter().all(|b| *b == 0), "an old page came back after the punch");
    assert!(got[4 * BLOCK..].iter().all(|b| *b == 1));
}

#[test]
fn read_fill_against_punch() {
    explore(FILL, || fill_against_punch(true), 800);
}

/// The same without the lock: the explorer has to find the stale page.
#[test]
fn mutant_punch_without_invalidate_lock_is_caught() {
    model::Lab::new(FILL, 800).notices("invalidate_lock", 6000, || fill_against_punch(false));
}

/// Reclaim takes clean pages while they are read, written and synced.
#[test]
fn reclaim_against_everything() {
    explore(
        "reclaim against everything",
        || {
            let fs = Arc::new(fs());
            let file = fs.file(12);
            file.pages.write(&*file, 0, &[1; 8 * BLOCK]);
            fs.cache.sync_all().expect("sync");
            let (a, b, c) = (Arc::clone(&file), Arc::clone(&file), Arc::clone(&fs));
            together(vec![
                Box::new(move || {
                    assert_eq!(a.pages.write(&*a, 1000, &[2; 1000]).written, 1000);
                    a.pages.sync(&*a, 0..u64::MAX).expect("sync");
                }),
                Box::new(move || {
                    let got = content(&b);
                    assert!(got.iter().all(|b| [1, 2].contains(b)) && got.len() == 8 * BLOCK);
                }),
                Box::new(move || {
                    c.cache.reclaim(8);
                    c.cache.reclaim(8);
                }),
            ]);
            let mut want = vec![1; 8 * BLOCK];
            want[1000..2000].fill(2);
            assert!(content(&file) == want && file.after_crash() == want);
            assert!(fs.cache.stats().pages <= 2 && file.size() == 8 * BLOCK as u64);
            // What is on the list of dirty files is held by it, and holds the cache.
            fs.cache.sync_all().expect("sync");
        },
        300,
    );
}

/// Two syncs and a throttling writer: everybody comes to an end, whoever wakes whom.
#[test]
fn nobody_sleeps_for_ever() {
    explore(
        "nobody sleeps for ever",
        || {
            let fs = Arc::new(fs());
            let file = fs.file(12);
            fs.cache.start_threads(1).expect("a thread");
            let (a, b) = (Arc::clone(&file), Arc::clone(&fs));
            together(vec![
                Box::new(move || {
                    a.pages.write(&*a, 0, &[2; 2 * BLOCK]);
                    a.pages.sync(&*a, 0..u64::MAX).expect("sync");
                }),
                Box::new(move || {
                    b.cache.throttle().expect("throttle");
                    b.cache.sync_all().expect("sync");
                }),
            ]);
            fs.cache.stop_threads();
            assert!(file.after_crash() == [2; 2 * BLOCK]);
            fs.cache.sync_all().expect("sync");
        },
        300,
    );
}
