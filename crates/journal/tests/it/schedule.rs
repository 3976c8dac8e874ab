//! Explored schedules. Each scenario must hold with all guards, and fail with the guard named taken away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use extant_device::BlockDevice;
use extant_format::{Pblk, Tid};
use extant_journal::{CommitObserver, Journal, JournalOptions, Mutant, recover};
use extant_sync::{Rank, model, thread};
use extant_testkit::SimDevice;

use crate::common::{BLOCKS, Setup, on_device};

fn explore(name: &str, scenario: fn(Mutant), mutant: Mutant) {
    let lab = model::Lab::new(name, 500);
    lab.holds(move || scenario(Mutant::None));
    lab.notices(&format!("{mutant:?}"), 4000, move || scenario(mutant));
}

type OwnerLock = extant_sync::Mutex<()>;

fn owner_lock() -> Arc<OwnerLock> {
    Arc::new(OwnerLock::new(Rank::EXTENT_MAP, ()))
}

fn setup() -> Setup {
    Setup { log_len: 128, ..Setup::default() }
}

fn open(setup: &Setup, device: &Arc<SimDevice>, mutant: Mutant) -> Arc<Journal> {
    let options = JournalOptions { mutant, ..setup.options() };
    Journal::open(setup.cache(device), setup.place(device), options).unwrap()
}

/// Sets blocks 1 and 2 to the same value in one handle; the transaction. The lock is what owns the pair, as an
/// inode's lock owns its blocks.
fn set_pair(journal: &Arc<Journal>, pair: &OwnerLock, value: u8) -> extant_journal::Result<Tid> {
    let mut handle = journal.start(2)?;
    let _pair = pair.lock();
    for pblk in [1, 2] {
        let buf = journal.cache().read(Pblk(pblk))?;
        handle.modify(&buf, |b| b.fill(value))?;
    }
    handle.finish()
}

/// The pair as recovery finds it if the power fails now and all that was written has arrived.
fn recovered_pair(setup: &Setup, device: &SimDevice) -> (u8, u8) {
    let copy = SimDevice::from_content(device.content());
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(&copy) as _;
    recover(&setup.place(&copy), &dynamic, BLOCKS).unwrap();
    (on_device(&copy, 1024, 1), on_device(&copy, 1024, 2))
}

fn changes_race_with_commits(mutant: Mutant) {
    let setup = setup();
    let device = setup.device();
    let journal = open(&setup, &device, mutant);
    let pair = owner_lock();
    let writers: Vec<_> = [10, 20]
        .into_iter()
        .map(|base| {
            let (journal, device, pair) = (Arc::clone(&journal), Arc::clone(&device), Arc::clone(&pair));
            thread::spawn(move || {
                for n in 0..2 {
                    let tid = set_pair(&journal, &pair, base + n).unwrap();
                    journal.wait_commit(tid).unwrap();
                    let (a, b) = recovered_pair(&setup, &device);
                    assert_eq!(a, b, "half an operation was committed");
                    assert_ne!(a, 0, "what was waited for is not there");
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|w| w.join().unwrap());
    journal.close().unwrap();
    assert_eq!(on_device(&device, 1024, 1), on_device(&device, 1024, 2));
}

#[test]
fn a_commit_is_whole_while_others_change_its_blocks() {
    explore("changes race with commits", changes_race_with_commits, Mutant::NoCopyForCommit);
}

#[test]
fn a_commit_waits_for_handles() {
    explore("changes race with commits", changes_race_with_commits, Mutant::WakeWithoutLock);
}

fn aborts_race_with_waiters(mutant: Mutant) {
    let setup = setup();
    let device = setup.device();
    let journal = open(&setup, &device, mutant);
    let open = journal.start(1).unwrap();
    let waiter = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || {
            let tid = set_pair(&journal, &owner_lock(), 1)?;
            journal.wait_commit(tid)
        })
    };
    let aborter = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.abort(5))
    };
    aborter.join().unwrap();
    // The handle stays open: only the abort can wake a committer.
    let _ = waiter.join().unwrap();
    drop(open);
    assert!(journal.start(1).is_err());
}

#[test]
fn an_abort_wakes_every_waiter() {
    explore("aborts race with waiters", aborts_race_with_waiters, Mutant::SilentAbort);
}

struct Told(AtomicU32);

impl CommitObserver for Told {
    fn committed(&self, tid: Tid) {
        thread::yield_now();
        self.0.store(tid.0, Ordering::SeqCst);
    }
}

fn waiters_race_with_observers(mutant: Mutant) {
    let setup = setup();
    let device = setup.device();
    let journal = open(&setup, &device, mutant);
    let told = Arc::new(Told(AtomicU32::new(0)));
    let observer: Arc<dyn CommitObserver> = Arc::clone(&told) as _;
    journal.add_observer(Arc::downgrade(&observer));
    let tid = set_pair(&journal, &owner_lock(), 3).unwrap();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let (journal, told) = (Arc::clone(&journal), Arc::clone(&told));
            thread::spawn(move || {
                journal.wait_commit(tid).unwrap();
                assert_eq!(
                    told.0.load(Ordering::SeqCst),
                    tid.0,
                    "a waiter went on before freed blocks are usable"
                );
            })
        })
        .collect();
    waiters.into_iter().for_each(|w| w.join().unwrap());
}

#[test]
fn observers_hear_of_a_commit_before_waiters() {
    explore("waiters race with observers", waiters_race_with_observers, Mutant::DurableBeforeTold);
}

fn frees_race_with_checkpoints(mutant: Mutant) {
    let setup = setup();
    let device = setup.device();
    let journal = open(&setup, &device, mutant);
    let tid = set_pair(&journal, &owner_lock(), 1).unwrap();
    journal.wait_commit(tid).unwrap();
    let checkpointer = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.checkpoint_all().unwrap())
    };
    let mut handle = journal.start(1).unwrap();
    handle.revoke(Pblk(2)).unwrap();
    let freed = handle.finish().unwrap();
    journal.wait_commit(freed).unwrap();
    // The block may hold data from here on.
    device.write_at(2 * 1024, &[9; 1024]).unwrap();
    checkpointer.join().unwrap();
    journal.close().unwrap();
    assert_eq!(on_device(&device, 1024, 2), 9, "a checkpoint wrote a block after its reuse");
}

#[test]
fn a_freed_block_is_not_written_after_its_commit() {
    explore("frees race with checkpoints", frees_race_with_checkpoints, Mutant::ReuseUnderCheckpoint);
}
