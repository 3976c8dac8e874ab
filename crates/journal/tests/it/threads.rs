//! Real threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_journal::{Clock, Error, Journal, JournalOptions, recover};
use extant_testkit::SimDevice;

use crate::common::{BLOCKS, Setup, fill, on_device};

#[test]
fn threads_share_commits_and_lose_nothing() {
    let setup = Setup { log_len: 256, ..Setup::default() };
    let device = setup.device();
    device.set_recording(false);
    let journal = setup.open(&device);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (journal, device, setup) = (&journal, &device, &setup);
            scope.spawn(move || {
                for n in 1..=200u64 {
                    let mut handle = journal.start(3).unwrap();
                    for pblk in [thread * 10, thread * 10 + 1, 100 + n % 50] {
                        let buf = journal.cache().read(Pblk(pblk)).unwrap();
                        handle.modify(&buf, |b| b.fill(n as u8)).unwrap();
                    }
                    let tid = handle.finish().unwrap();
                    if n % 10 == 0 {
                        journal.wait_commit(tid).unwrap();
                    }
                    if n == 100 {
                        let copy = SimDevice::from_content(device.content());
                        let dynamic: Arc<dyn BlockDevice> = Arc::clone(&copy) as _;
                        recover(&setup.place(&copy), &dynamic, BLOCKS).unwrap();
                        let first = on_device(&copy, 1024, thread * 10);
                        assert_eq!(first, on_device(&copy, 1024, thread * 10 + 1));
                        assert!(first >= 100);
                    }
                }
            });
        }
    });
    journal.close().unwrap();
    for thread in 0..4 {
        assert_eq!(on_device(&device, 1024, thread * 10), 200);
    }
    assert_eq!(journal.stats().credit_overruns, 0);
}

#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

#[test]
fn a_tick_commits_what_is_old_enough() {
    let setup = Setup::default();
    let device = setup.device();
    let clock = Arc::new(Hand(AtomicU64::new(1000)));
    let options = JournalOptions { clock: Arc::clone(&clock) as _, ..setup.options() };
    let journal = Journal::open(setup.cache(&device), setup.place(&device), options).unwrap();
    let interval = Duration::from_secs(5);
    let tid = fill(&journal, 1, 1);
    assert_eq!(journal.tick(interval).unwrap(), interval);
    assert!(tid.is_after(journal.committed_tid()));
    clock.0.store(1003, Ordering::SeqCst);
    assert_eq!(journal.tick(interval).unwrap(), Duration::from_secs(2));
    clock.0.store(1005, Ordering::SeqCst);
    journal.tick(interval).unwrap();
    assert_eq!(journal.committed_tid(), tid);
}

#[test]
fn the_thread_ends_with_close_and_with_the_last_reference() {
    let setup = Setup::default();
    let device = setup.device();
    let options = JournalOptions { commit_interval: Some(Duration::from_millis(1)), ..setup.options() };
    let journal = Journal::open(setup.cache(&device), setup.place(&device), options.clone()).unwrap();
    let tid = fill(&journal, 1, 1);
    // The thread commits on its own; waiting for it needs no commit of ours, but is right either way.
    journal.wait_commit(tid).unwrap();
    journal.close().unwrap();
    drop(journal);
    let journal = Journal::open(setup.cache(&device), setup.place(&device), options).unwrap();
    drop(journal);
}

#[test]
fn the_cache_stays_within_its_budget_while_blocks_are_only_read() {
    let setup = Setup::default();
    let device = setup.device();
    let cache = extant_journal::BlockCache::new(Arc::clone(&device) as _, 1024, BLOCKS, 512 * 1024);
    for pblk in 0..BLOCKS {
        cache.read(Pblk(pblk)).unwrap();
    }
    assert!(cache.stats().cached <= 600, "{:?}", cache.stats());
    cache.prefetch(0..200);
    let reads = device.counts().reads;
    cache.read(Pblk(150)).unwrap();
    assert_eq!(device.counts().reads, reads, "prefetched");
    assert!(matches!(cache.read(Pblk(BLOCKS)), Err(Error::OutOfRange { .. })));
}

#[test]
fn concurrent_readers_share_one_read_and_one_error() {
    let setup = Setup::default();
    let device = setup.device();
    let cache = setup.cache(&device);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for pblk in 0..500 {
                    assert_eq!(cache.read(Pblk(pblk)).unwrap().pblk(), Pblk(pblk));
                }
            });
        }
    });
    assert_eq!(cache.stats().reads, 500);
    device.fail(extant_testkit::sim::Failpoint::nth(extant_testkit::sim::Kind::Read, 0));
    assert!(matches!(cache.read(Pblk(900)), Err(Error::Read { pblk: Pblk(900), .. })));
    cache.read(Pblk(900)).unwrap();
}
