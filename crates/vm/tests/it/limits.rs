//! Memory and threads.

use extant_sync::{Arc, thread};
use extant_vm::{CacheConfig, Host, MapAdvice, MapView, ReadAhead, SimMmu};

use crate::sim::{Random, SimFs};

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
    let view = MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal };
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
