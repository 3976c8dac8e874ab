//! One thread, no crash.

use std::sync::{Arc, Mutex};

use extant_device::BlockDevice;
use extant_format::{Pblk, Tid};
use extant_journal::{BlockCache, CommitObserver, Error, Flushed, Journal, WriteOrder};

use extant_testkit::sim::{Event, Failpoint, Kind};

use crate::common::{BLOCKS, Setup, fill, on_device};

#[test]
fn what_is_closed_is_in_place() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    for n in 0..300 {
        fill(&journal, n, n as u8 | 1);
    }
    assert_eq!(on_device(&device, 1024, 5), 0, "nothing is written in place before its commit");
    journal.close().unwrap();
    for n in 0..300 {
        assert_eq!(on_device(&device, 1024, n), n as u8 | 1);
    }
    assert_eq!(setup.place(&device).read_superblock().unwrap().start(), 0);
}

#[test]
fn many_finishes_share_one_commit_and_two_flushes() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let tids: Vec<Tid> = (0..50).map(|n| fill(&journal, n, 1)).collect();
    assert!(tids.iter().all(|t| *t == tids[0]));
    assert_eq!(journal.wait_commit(tids[0]).unwrap(), Flushed::Yes);
    assert_eq!(journal.wait_commit(tids[0]).unwrap(), Flushed::No);
    assert_eq!(journal.commit_all().unwrap(), Flushed::No);
    assert_eq!(journal.stats().commits, 1);
    let counts = device.counts();
    assert!(counts.flushes <= 2, "{counts:?}");
}

#[test]
fn the_log_wraps_and_is_reused() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    for round in 0..200u64 {
        for n in 0..40 {
            fill(&journal, n, (round + n) as u8);
        }
        journal.commit_all().unwrap();
    }
    assert!(journal.stats().checkpoints > 3);
    journal.close().unwrap();
    (0..40).for_each(|n| assert_eq!(on_device(&device, 1024, n), (199 + n) as u8));
}

#[test]
fn a_transaction_larger_than_the_room_is_split_between_handles() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let most = journal.max_credits();
    assert!(matches!(journal.start(most + 1), Err(Error::TooManyCredits { .. })));
    journal.start(most).unwrap().finish().unwrap();
    for n in 0..1500 {
        fill(&journal, n, 3);
    }
    assert!(journal.stats().commits >= 5);
    journal.close().unwrap();
}

#[test]
fn a_restarted_handle_commits_its_first_part() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let most = journal.max_credits();
    let mut handle = journal.start(most).unwrap();
    let first = handle.tid();
    assert!(!handle.extend(1).unwrap());
    for n in 0..u64::from(most) {
        let buf = handle.create(Pblk(n)).unwrap();
        handle.modify(&buf, |b| b.fill(7)).unwrap();
    }
    assert_eq!(handle.credits_left(), 0);
    handle.restart(5).unwrap();
    assert!(handle.tid().is_after(first));
    handle.finish().unwrap();
    journal.close().unwrap();
    assert_eq!(journal.stats().credit_overruns, 0);
}

#[test]
fn a_dropped_handle_aborts_and_the_log_keeps_what_was_durable() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let tid = fill(&journal, 1, 1);
    journal.wait_commit(tid).unwrap();
    drop(journal.start(3).unwrap());
    assert!(!journal.is_aborted(), "an unchanged handle may be dropped");
    let buf = journal.cache().read(Pblk(2)).unwrap();
    let mut handle = journal.start(1).unwrap();
    handle.modify(&buf, |b| b.fill(2)).unwrap();
    drop(handle);
    assert!(journal.is_aborted());
    assert!(matches!(journal.start(1), Err(Error::Aborted(5))));
    assert!(matches!(journal.commit_all(), Err(Error::Aborted(5))));
    assert!(journal.wait_commit(tid).is_ok());
    assert!(journal.close().is_err());
    let sb = setup.place(&device).read_superblock().unwrap();
    assert_eq!(sb.errno(), 5);
    assert_ne!(sb.start(), 0, "the log is left for recovery");
}

struct Seen(Mutex<Vec<Tid>>);

impl CommitObserver for Seen {
    fn committed(&self, tid: Tid) {
        self.0.lock().unwrap().push(tid);
    }
}

#[test]
fn a_freed_block_leaves_cache_and_checkpoint_before_its_commit_is_told() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let seen = Arc::new(Seen(Mutex::new(Vec::new())));
    let observer: Arc<dyn CommitObserver> = Arc::clone(&seen) as _;
    journal.add_observer(Arc::downgrade(&observer));
    let written = fill(&journal, 10, 1);
    journal.wait_commit(written).unwrap();
    let mut handle = journal.start(1).unwrap();
    handle.revoke(Pblk(10)).unwrap();
    let freed = handle.finish().unwrap();
    journal.wait_commit(freed).unwrap();
    assert_eq!(*seen.0.lock().unwrap(), [written, freed]);
    assert!(journal.cache().cached(Pblk(10)).is_none());
    journal.close().unwrap();
    assert_eq!(on_device(&device, 1024, 10), 0, "the checkpoint wrote a freed block");
}

#[test]
fn a_block_freed_and_made_again_in_one_transaction_is_written() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    fill(&journal, 10, 1);
    journal.commit_all().unwrap();
    let mut handle = journal.start(2).unwrap();
    handle.revoke(Pblk(10)).unwrap();
    let buf = handle.create(Pblk(10)).unwrap();
    handle.modify(&buf, |b| b.fill(8)).unwrap();
    handle.finish().unwrap();
    journal.close().unwrap();
    assert_eq!(on_device(&device, 1024, 10), 8);
}

#[test]
fn a_freed_buffer_cannot_be_changed() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let buf = journal.cache().read(Pblk(3)).unwrap();
    let mut handle = journal.start(1).unwrap();
    handle.revoke(Pblk(3)).unwrap();
    assert!(matches!(handle.modify(&buf, |b| b.fill(1)), Err(Error::Forgotten(Pblk(3)))));
    handle.finish().unwrap();
    journal.close().unwrap();
}

#[test]
fn a_failed_commit_aborts_for_good() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let tid = fill(&journal, 1, 1);
    device.fail(Failpoint::all_from(Kind::Write, 0));
    assert!(journal.wait_commit(tid).is_err());
    device.heal();
    assert!(journal.is_aborted());
    assert!(journal.close().is_err());
    assert_eq!(on_device(&device, 1024, 1), 0);
}

#[test]
fn without_a_log_blocks_are_written_by_class() {
    let setup = Setup::default();
    let device = setup.device();
    let cache = setup.cache(&device);
    let journal = Journal::without_log(Arc::clone(&cache), setup.options()).unwrap();
    for (pblk, order) in [(1, WriteOrder::Inode), (2, WriteOrder::Map), (3, WriteOrder::Bitmap)] {
        cache.read(Pblk(pblk)).unwrap().set_order(order);
        fill(&journal, pblk, 9);
    }
    journal.commit_all().unwrap();
    let offsets: Vec<u64> = device
        .log()
        .iter()
        .filter_map(|event| match event {
            Event::Write { offset, .. } => Some(offset / 1024),
            _ => None,
        })
        .collect();
    assert_eq!(offsets, [3, 2, 1]);
    journal.close().unwrap();
}

/// A device whose next read runs something else first, and then fails.
struct Interrupted {
    base: Arc<extant_testkit::SimDevice>,
    next: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

impl BlockDevice for Interrupted {
    fn size(&self) -> u64 {
        self.base.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let next = self.next.lock().unwrap().take();
        if let Some(next) = next {
            next();
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.base.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.base.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.base.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.base.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.base.write_zeroes(offset, len)
    }
}

/// A read of a free block fails while the block is allocated and made: the failure is the reader's alone.
#[test]
fn a_failed_read_does_not_take_a_new_block_away() {
    let setup = Setup::default();
    let base = setup.device();
    let device = Arc::new(Interrupted { base: Arc::clone(&base), next: Mutex::new(None) });
    let cache = BlockCache::new(Arc::clone(&device) as _, 1024, BLOCKS, 1 << 20);
    let journal = Journal::open(Arc::clone(&cache), setup.place(&base), setup.options()).unwrap();
    let maker = Arc::clone(&journal);
    *device.next.lock().unwrap() = Some(Box::new(move || {
        std::thread::spawn(move || {
            let mut handle = maker.start(1).unwrap();
            let buf = handle.create(Pblk(7)).unwrap();
            handle.modify(&buf, |bytes| bytes.fill(7)).unwrap();
            handle.finish().unwrap();
        })
        .join()
        .unwrap();
    }));
    cache.prefetch(7..8);
    assert_eq!(cache.read(Pblk(7)).unwrap().bytes()[0], 7);
    journal.close().unwrap();
    assert_eq!(on_device(&base, 1024, 7), 7);
}

/// A failure to read is not remembered.
#[test]
fn a_block_that_could_not_be_read_is_read_again() {
    let setup = Setup::default();
    let base = setup.device();
    let device = Arc::new(Interrupted { base, next: Mutex::new(Some(Box::new(|| {}))) });
    let cache = BlockCache::new(device as _, 1024, BLOCKS, 1 << 20);
    assert!(matches!(cache.read(Pblk(7)), Err(Error::Read { .. })));
    assert!(cache.cached(Pblk(7)).is_none());
    assert!(cache.read(Pblk(7)).is_ok());
}

#[test]
fn revoke_records_take_credits_and_as_many_as_there_are_fit_the_log() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let most = journal.max_credits();
    let records = journal.records_for(most);
    assert_eq!(journal.revoke_credits(records), most);
    for _ in 0..3 {
        let mut handle = journal.start(most).unwrap();
        (0..u64::from(records)).for_each(|n| handle.revoke(Pblk(100_000 + n)).unwrap());
        assert_eq!(handle.credits_left(), 0);
        handle.finish().unwrap();
    }
    journal.commit_all().unwrap();
    assert!(!journal.is_aborted());
    assert!(journal.stats().commits >= 3);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "more blocks than the 1 it asked for")]
fn a_handle_that_needs_more_than_it_asked_for_is_found_out() {
    let setup = Setup::default();
    let journal = setup.open(&setup.device());
    let mut handle = journal.start(1).unwrap();
    for n in 0..2 {
        let buf = handle.create(Pblk(n)).unwrap();
        handle.modify(&buf, |b| b.fill(7)).unwrap();
    }
}

#[test]
fn what_a_handle_says_to_keep_is_kept_when_it_is_dropped() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let buf = journal.cache().read(Pblk(2)).unwrap();
    let mut handle = journal.start(2).unwrap();
    handle.modify(&buf, |b| b.fill(2)).unwrap();
    let changes = handle.changes();
    handle.keep();
    assert_eq!(handle.changes(), changes);
    drop(handle);
    assert!(!journal.is_aborted());
    let mut handle = journal.start(2).unwrap();
    handle.modify(&buf, |b| b.fill(3)).unwrap();
    handle.keep();
    handle.modify(&buf, |b| b.fill(4)).unwrap();
    assert_eq!(handle.changes(), 2);
    drop(handle);
    assert!(journal.is_aborted(), "it was changed again");
}

struct Fails;

impl CommitObserver for Fails {
    fn committed(&self, _: Tid) {
        panic!("an observer that fails");
    }
}

/// A commit that unwinds has aborted the journal: nobody waits for its end.
#[test]
fn a_commit_that_unwinds_aborts() {
    let setup = Setup::default();
    let device = setup.device();
    let journal = setup.open(&device);
    let observer: Arc<dyn CommitObserver> = Arc::new(Fails);
    journal.add_observer(Arc::downgrade(&observer));
    let tid = fill(&journal, 10, 1);
    let commit = std::thread::spawn({
        let journal = Arc::clone(&journal);
        move || journal.commit_all().map(drop)
    });
    assert!(commit.join().is_err(), "the observer fails");
    assert!(journal.is_aborted());
    assert!(matches!(journal.wait_commit(tid), Err(Error::Aborted(5))));
    assert!(matches!(journal.start(1), Err(Error::Aborted(5))));
    assert!(journal.close().is_err());
}
