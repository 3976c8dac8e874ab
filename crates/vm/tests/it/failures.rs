//! Errors: who is told, what stays dirty, and that nothing grows.

use extant_sync::atomic::Ordering;
use extant_vm::{CacheConfig, Host, MapAdvice, MapView, ReadAhead};

use crate::sim::{SimFile, SimFs};

fn break_all(fs: &SimFs) {
    fs.device.break_writes(&[std::ops::Range { start: 0, end: u64::MAX }]);
}

#[test]
fn every_open_file_hears_of_a_failed_writeback_once_and_the_data_stays() {
    let fs = SimFs::new(4096, 64, CacheConfig::default());
    let file = fs.file(12);
    let (a, b) = (file.pages.errors().sample(), file.pages.errors().sample());
    assert_eq!(file.pages.write(&*file, 0, &[7; 9000]).written, 9000);
    break_all(&fs);
    assert_eq!(fs.cache.sync_all().expect_err("the device fails").raw_os_error(), Some(5));
    assert_eq!(file.pages.errors().check(&a), Some(5));
    assert_eq!(file.pages.errors().check(&a), None);
    assert_eq!(file.pages.errors().check(&b), Some(5));
    assert!(file.pages.is_dirty());
    assert_eq!(file.reserved_blocks(), 3, "the reservations stay");
    let mut got = [0; 9000];
    file.pages.read(&*file, 0, &mut got, &mut ReadAhead::default()).expect("read");
    assert_eq!(got, [7; 9000]);

    fs.device.break_writes(&[]);
    fs.cache.sync_all().expect("it works again");
    assert!(file.after_crash() == [7; 9000]);
    assert_eq!((file.pages.errors().check(&a), file.pages.errors().check(&b)), (None, None));
}

#[test]
fn a_file_that_finds_no_place_says_so_stays_dirty_and_holds_nobody_up() {
    let config = CacheConfig { budget: 64 << 20, ..CacheConfig::default() };
    let fs = SimFs::new(4096, 8192, config);
    let (bad, good) = (fs.file(12), fs.file(13));
    bad.no_claims.store(true, Ordering::Relaxed);
    let told = bad.pages.errors().sample();
    // More than may be dirty, less than half of the memory.
    assert_eq!(bad.pages.write(&*bad, 0, &vec![7; 5000 * 4096]).written, 5000 * 4096);
    assert_eq!(fs.cache.sync_all().expect_err("no claims").raw_os_error(), Some(5));
    assert_eq!((bad.pages.errors().check(&told), bad.pages.errors().check(&told)), (Some(117), None));
    for n in 0..20_u64 {
        fs.cache.throttle().expect("this file can be written");
        assert_eq!(good.pages.write(&*good, n * 100 * 4096, &vec![1; 100 * 4096]).written, 100 * 4096);
    }
    assert!(!good.pages.is_dirty() || fs.cache.stats().dirty <= 5100, "{:?}", fs.cache.stats());
    assert!(bad.pages.is_dirty());
    bad.no_claims.store(false, Ordering::Relaxed);
    fs.cache.sync_all().expect("now it has a place");
    assert!(bad.after_crash() == vec![7; 5000 * 4096]);
    assert_eq!(fs.cache.stats().dirty, 0);
}

#[test]
fn what_was_read_from_a_block_that_moved_meanwhile_is_read_again() {
    let fs = SimFs::new(4096, 64, CacheConfig { direct_read: usize::MAX, ..CacheConfig::default() });
    let file = fs.file(12);
    file.pages.write(&*file, 0, &[7; 5 * 4096]);
    fs.cache.sync_all().expect("sync");
    assert!(file.pages.invalidate(0..u64::MAX));
    *file.moves.lock() = Some(2);
    let mut got = [0; 5 * 4096];
    file.pages.read(&*file, 0, &mut got, &mut ReadAhead::default()).expect("read");
    assert!(got == [7; 5 * 4096], "bytes of a place that the block had left");
    assert!(file.moves.lock().is_none(), "it has moved");
}

#[test]
fn a_failed_run_stays_dirty_alone() {
    let fs = SimFs::new(4096, 64, CacheConfig::default());
    let file = fs.file(12);
    let other = fs.file(13);
    for n in 0..5_u64 {
        // Five runs of four blocks, with a block of another file between.
        file.pages.write(&*file, n * 4 * 4096, &[1; 4 * 4096]);
        fs.cache.sync_all().expect("sync");
        other.pages.write(&*other, n * 4096, &[1; 4096]);
        fs.cache.sync_all().expect("sync");
    }
    let bad = file.places()[11].1 * 4096;
    file.pages.write(&*file, 0, &[2; 20 * 4096]);
    fs.device.break_writes(std::slice::from_ref(&(bad..bad + 1)));
    fs.cache.sync_all().expect_err("one block is bad");
    let disk = file.after_crash();
    let good = disk.chunks(4096).filter(|b| b[0] == 2).count();
    assert!(disk[11 * 4096] == 1 && good == 16, "{good} of 20 blocks were written");
}

#[test]
fn with_a_failing_device_writers_get_an_error_and_the_cache_stays_bounded() {
    let config = CacheConfig { budget: 1 << 20, ..CacheConfig::default() };
    let fs = SimFs::new(4096, 4096, config);
    break_all(&fs);
    let file = fs.file(12);
    let mut refused = 0;
    for n in 0..2000_u64 {
        if fs.cache.throttle().is_err() {
            refused += 1;
            continue;
        }
        assert_eq!(file.pages.write(&*file, n * 4096, &[1; 4096]).written, 4096);
    }
    assert!(refused > 1800, "{refused} of 2000 were refused");
    let stats = fs.cache.stats();
    assert!(stats.pages <= 256 + 1, "{stats:?}");
    // Reading goes on.
    let other = fs.file(13);
    let mut got = [0; 4096];
    other.pages.read(&*other, 0, &mut got, &mut ReadAhead::default()).expect("read");

    let dropped = file.pages.drop_all(&*file);
    assert_eq!(dropped.dirty_bytes, stats.dirty as u64 * 4096);
    assert_eq!((file.reserved_blocks(), fs.cache.stats().dirty), (0, 0));
}

#[test]
fn a_full_disk_stops_a_write_where_space_ends() {
    let fs = SimFs::new(1024, 11, CacheConfig::default());
    let file = fs.file(12);
    let outcome = file.pages.write(&*file, 500, &[3; 20_000]);
    assert_eq!(outcome.written, 10 * 1024 - 500);
    assert_eq!(outcome.error.expect("full").raw_os_error(), Some(28));
    assert_eq!(file.size(), 10 * 1024);
    let again = file.pages.write(&*file, 0, &[4; 10 * 1024]);
    assert!(again.error.is_none(), "what is reserved can be written again");
    fs.cache.sync_all().expect("sync");
    assert!(file.after_crash() == [4; 10 * 1024]);
}

#[test]
fn a_page_that_a_mapping_may_write_goes_out_from_a_copy() {
    let fs = SimFs::new(4096, 64, CacheConfig::default());
    let file = fs.file(12);
    file.pages.write(&*file, 0, &[1; 4096]);
    assert!(file.pages.mark_write_mapped(0));
    assert!(!file.pages.mark_write_mapped(4096));
    fs.cache.sync_all().expect("sync");
    assert!(file.after_crash() == [1; 4096]);
}

/// A range operation that is refused, whichever call the unit refuses, has changed no byte.
#[test]
fn a_cut_or_punch_that_the_unit_refuses_changes_nothing() {
    type Change = fn(&SimFile) -> std::io::Result<()>;
    let changes: [(&str, Change); 3] = [
        ("truncate", |file| file.truncate(5000)),
        ("punch", |file| file.punch(100..13_000)),
        ("punch to the end", |file| file.punch(100..16_384)),
    ];
    for (name, change) in changes {
        for dax in [true, false] {
            let mut refused = 0;
            for call in 0.. {
                let fs = SimFs::mappable(16, CacheConfig::default());
                let file = fs.file(12);
                file.pages.begin_dax(dax);
                file.pages.write(&*file, 0, &[7; 16_384]);
                fs.cache.sync_all().expect("sync");
                let mmu = file.attach();
                let map =
                    MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal, sync: false };
                for page in 0..4 {
                    mmu.load(&*file, &map, page * 4096, &mut [0]).expect("inside");
                }
                mmu.fail_after(call);
                let done = change(&file);
                mmu.fail_after(u32::MAX);
                if done.is_ok() {
                    break;
                }
                refused += 1;
                let mut got = [0; 16_384];
                let n = file.pages.read(&*file, 0, &mut got, &mut ReadAhead::default()).expect("read");
                assert!(
                    (n, got) == (16_384, [7; 16_384]),
                    "{name}, DAX {dax}, call {call}: bytes have changed"
                );
            }
            assert!(refused > 0, "{name}, DAX {dax}: the unit was not asked");
        }
    }
}

#[test]
fn delayed_data_is_found() {
    let fs = SimFs::new(1024, 64, CacheConfig::default());
    let file = fs.file(12);
    file.pages.write(&*file, 5000, &[1; 100]);
    assert_eq!(file.pages.next_dirty(0..u64::MAX), Some(4096..5120));
    assert_eq!(file.pages.next_dirty(4500..5000), Some(4500..5000));
    assert_eq!(file.pages.next_dirty(5120..u64::MAX), None);
    fs.cache.sync_all().expect("sync");
    assert_eq!(file.pages.next_dirty(0..u64::MAX), None);
}
