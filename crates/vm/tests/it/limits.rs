//! Memory and threads.

use extant_sync::atomic::Ordering;
use extant_sync::{Arc, thread};
use extant_vm::{CacheConfig, Host, MapAdvice, MapView, ReadAhead, SimMmu};

use crate::sim::{Random, SimFile, SimFs};

#[test]
fn memory_stays_within_the_budget() {
    let config = CacheConfig { budget: 2 << 20, direct_read: usize::MAX, read_ahead: 64 << 10 };
    let fs = SimFs::new(4096, 8192, config);
    let files: Vec<_> = (0..2).map(|n| fs.file(12 + n)).collect();
    let data = Random::seeded().bytes(1 << 20);
    for file in &files {
        fs.cache.throttle().expect("throttle");
        assert_eq!(file.pages.write(&**file, 0, &data).written, data.len());
        fs.cache.throttle().expect("throttle");
        assert!(fs.cache.stats().pages <= 512, "{:?}", fs.cache.stats());
    }
    for file in &files {
        let mut got = vec![0; data.len()];
        let mut ahead = ReadAhead::default();
        for (at, part) in got.chunks_mut(5000).enumerate() {
            let n = file.pages.read(&**file, at as u64 * 5000, part, &mut ahead).expect("read");
            assert_eq!(n, part.len());
            fs.cache.throttle().expect("throttle");
            assert!(fs.cache.stats().pages <= 512 + 32, "{:?}", fs.cache.stats());
        }
        assert!(got == data);
    }
}

/// Pins of pages that others have pinned already, or that have left the file, are none that keep a page dirty: what can be written is
/// written, and the cache keeps its limits.
#[test]
fn pins_are_counted_by_pages() {
    let config = CacheConfig { budget: 2 << 20, direct_read: usize::MAX, ..CacheConfig::default() };
    let fs = SimFs::new(4096, 8192, config);
    let (file, other) = (fs.file(12), fs.file(13));
    let data = Random::seeded().bytes(1 << 20);
    for n in 0..4_u64 {
        assert_eq!(file.pages.write(&*file, n << 20, &data).written, data.len());
        fs.cache.throttle().expect("throttle");
    }
    let mmu = SimMmu::new(4096, file.size()).expect("a memory file");
    assert!(file.pages.attach(mmu.clone()));
    let view = MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal, sync: false };
    let overdraws = |fs: &SimFs| {
        for n in 0..3_u64 {
            fs.cache.throttle().expect("throttle");
            assert_eq!(other.pages.write(&*other, n << 20, &data).written, data.len());
            fs.cache.throttle().expect("throttle");
        }
        fs.cache.stats().pages > 512
    };
    let one: Vec<_> = (0..10_000).map(|_| file.pages.pin(&*file, &view, 0..1).expect("a pin")).collect();
    assert_eq!(fs.cache.stats().pins, 10_000);
    assert!(!overdraws(&fs), "{:?}", fs.cache.stats());
    let many: Vec<_> = (0..2).map(|_| file.pages.pin(&*file, &view, 1..1000).expect("a pin")).collect();
    file.truncate(0).expect("truncate");
    assert!(!overdraws(&fs), "{:?}", fs.cache.stats());
    drop((one, many));
    assert_eq!(fs.cache.stats().pins, 0);
    // None is counted twice: what is dirty is written, to the last page.
    fs.cache.sync_all().expect("sync");
    assert_eq!(fs.cache.stats().dirty, 0);
    assert!(!overdraws(&fs), "{:?}", fs.cache.stats());
}

/// A file of so many pages of ones that are on the device and in memory, stored to through a mapping, while it cannot be told whether a
/// transfer to them is under way.
fn in_doubt(fs: &SimFs, pages: u32) -> (Arc<SimFile>, Arc<SimMmu>, MapView) {
    let file = fs.file(12);
    for page in 0..pages {
        fs.cache.throttle().expect("throttle");
        assert_eq!(file.pages.write(&*file, u64::from(page) * 4096, &[1; 4096]).written, 4096);
    }
    fs.cache.sync_all().expect("sync");
    assert!(file.pages.invalidate(0..u64::MAX));
    let mmu = file.attach();
    let view = MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal, sync: false };
    mmu.begin_transfer();
    (file, mmu, view)
}

/// Where it can never be said that no transfer is under way, the cache takes up to twice its budget, and no more. What a device has put
/// into a page until it leaves is the file's.
#[test]
fn doubt_about_transfers_has_a_bound() {
    let config = CacheConfig { budget: 2 << 20, direct_read: usize::MAX, ..CacheConfig::default() };
    let (limit, pages) = (512, 4096);
    let fs = SimFs::new(4096, 8192, config);
    let (file, mmu, view) = in_doubt(&fs, pages);
    let mut most = 0;
    for page in 0..pages {
        fs.cache.throttle().expect("throttle");
        mmu.store(&*file, &view, u64::from(page) * 4096, &[2]).expect("a store");
        if page == 300 {
            file.pages.sync(&*file, 0..u64::MAX).expect("sync");
            mmu.target(300).copy_from(3000, &[9]);
        }
        fs.cache.throttle().expect("throttle");
        let now = fs.cache.stats().pages;
        most = most.max(now);
        assert!(now <= 2 * limit, "{:?}", fs.cache.stats());
    }
    assert!(most > limit + limit / 2, "pages stay while a transfer may be under way: {most}");
    let mut got = vec![0; pages as usize * 4096];
    for (at, part) in got.chunks_mut(64 << 10).enumerate() {
        let at = at as u64 * (64 << 10);
        assert_eq!(file.pages.read(&*file, at, part, &mut ReadAhead::default()).expect("read"), part.len());
        fs.cache.throttle().expect("throttle");
    }
    for (number, page) in got.chunks(4096).enumerate() {
        let unseen = if number == 300 { 9 } else { 1 };
        assert_eq!((page[0], page[1], page[3000]), (2, 1, unseen), "page {number}");
    }
}

/// While the cache is over its limit for that, a file that cannot be written is no reason to refuse the others.
#[test]
fn doubt_about_transfers_refuses_nobody() {
    let config = CacheConfig { budget: 2 << 20, direct_read: usize::MAX, ..CacheConfig::default() };
    let fs = SimFs::new(4096, 8192, config);
    let (file, mmu, view) = in_doubt(&fs, 700);
    for page in 0..700 {
        mmu.store(&*file, &view, page * 4096, &[2]).expect("a store");
    }
    file.pages.sync(&*file, 0..u64::MAX).expect("sync");
    let (bad, good) = (fs.file(13), fs.file(14));
    bad.no_claims.store(true, Ordering::Relaxed);
    assert_eq!(bad.pages.write(&*bad, 0, &[3; 4096]).written, 4096);
    assert!(fs.cache.stats().pages > 512, "{:?}", fs.cache.stats());
    for n in 0..600 {
        fs.cache.throttle().expect("this file can be written");
        assert_eq!(good.pages.write(&*good, n * 4096, &[4; 4096]).written, 4096);
    }
    bad.no_claims.store(false, Ordering::Relaxed);
    fs.cache.sync_all().expect("now it has a place");
    assert_eq!((bad.after_crash(), good.after_crash()), (vec![3; 4096], vec![4; 600 * 4096]));
}

#[test]
fn many_threads_and_background_writeback() {
    let config = CacheConfig { budget: 2 << 20, ..CacheConfig::default() };
    let fs = Arc::new(SimFs::new(4096, 8192, config));
    fs.cache.start_threads(2).expect("threads");
    let threads: Vec<_> = (0..4_u64)
        .map(|n| {
            let fs = Arc::clone(&fs);
            thread::spawn(move || {
                let file = fs.file(12 + n);
                let mut random = Random::from_seed(n + 1);
                let mut model = vec![0; 1 << 20];
                for _ in 0..300 {
                    fs.cache.throttle().expect("throttle");
                    let at = random.below(1 << 20) as usize;
                    let len = (random.below(60_000) as usize + 1).min(model.len() - at);
                    let data = random.bytes(len);
                    assert_eq!(file.pages.write(&*file, at as u64, &data).written, len);
                    model[at..at + len].copy_from_slice(&data);
                    let from = random.below(1 << 20) as usize;
                    let mut got = vec![0; 30_000];
                    let n = file
                        .pages
                        .read(&*file, from as u64, &mut got, &mut ReadAhead::default())
                        .expect("read");
                    assert!(got[..n] == model[from..from + n]);
                }
                file.pages.sync(&*file, 0..u64::MAX).expect("sync");
                let disk = file.after_crash();
                assert!(disk == model[..disk.len()]);
            })
        })
        .collect();
    for t in threads {
        t.join().expect("no panic inside");
    }
    fs.cache.sync_all().expect("sync");
    fs.cache.stop_threads();
    assert_eq!(fs.cache.stats().dirty, 0);
}
