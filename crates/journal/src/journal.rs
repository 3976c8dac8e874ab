//! The journal: the running transaction, whoever waits for room or for a commit, and abort.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use extant_format::jbd2::{CompatFeatures, IncompatFeatures, LogFormat, Superblock};
use extant_format::{Pblk, Tid};
use extant_sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use extant_sync::{Condvar, Held, Mutex, MutexGuard, Rank};

use crate::cache::Buf;
use crate::commit::UnderWay;
use crate::mutant::without;
use crate::running::{MOST_ROOM, Refused, Running};
use crate::thread::CommitThread;
use crate::{BlockCache, Error, Handle, JournalOptions, LogPlace, Result};

/// What a journal is aborted with that was stopped on request.
const ESHUTDOWN: i32 = 108;

/// Hears from the journal.
pub trait CommitObserver: Send + Sync {
    /// Transaction `tid` is durable: blocks that it freed may be used again. Called by the thread that commits, before
    /// anybody who waits for `tid` goes on; ranks from 90 up may be taken, no handle started.
    fn committed(&self, tid: Tid);

    /// [`Journal::is_durable`] says so of transaction `tid`. As [`Self::committed`], but after who waits may have gone on.
    fn settled(&self, tid: Tid) {
        let _ = tid;
    }

    /// The journal has been aborted with this errno. Must only set flags and wake: any lock may be held.
    fn aborted(&self, errno: i32) {
        let _ = errno;
    }
}

/// Whether a wait brought a flush of the filesystem's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All writes that ended before the call are durable.
    Yes,
    /// The transaction was durable already, and nothing was flushed.
    No,
}

/// Counts since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Transactions committed.
    pub commits: u64,
    /// Blocks written to the log.
    pub log_blocks: u64,
    /// Blocks written to their places.
    pub written_in_place: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Times a handle changed more blocks than it had credits for; an error of the code above that did no harm, since
    /// the transaction had room.
    pub credit_overruns: u64,
}

/// A journal, or without a log the order of changes that takes its place.
#[derive(Debug)]
pub struct Journal {
    cache: Arc<BlockCache>,
    pub(crate) options: JournalOptions,
    pub(crate) log: Option<Log>,
    running: Running,
    committed: AtomicU32,
    aborted: AtomicI32,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    observers: Mutex<Vec<Weak<dyn CommitObserver>>>,
    pub(crate) counts: Counts,
    pub(crate) thread: CommitThread,
    /// The transaction that [`Self::request_commit`] was last called for. (Not pressed: whoever joins it goes on.)
    requested: AtomicU32,
    errno_recorded: AtomicBool,
    /// The `commit=` interval, nanoseconds.
    interval: AtomicU64,
    barrier: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) commits: AtomicU64,
    pub(crate) log_blocks: AtomicU64,
    pub(crate) written_in_place: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    credit_overruns: AtomicU64,
}

/// The log, when there is one.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) place: LogPlace,
    pub(crate) format: LogFormat,
    pub(crate) first: u32,
    pub(crate) end: u32,
    /// Held while the superblock is written, so that an older tail never overwrites a newer one.
    pub(crate) superblock: Mutex<Superblock>,
    pub(crate) max_credits: u64,
}

/// What rank 110 protects.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Somebody commits.
    pub(crate) committing: bool,
    /// Commits begun, empty ones not counted.
    pub(crate) begun: u64,
    /// Commits that have become durable; they go one after the other.
    pub(crate) ended: u64,
    /// Log blocks that the transaction being committed may need.
    pub(crate) committing_need: u32,
    /// Somebody checkpoints.
    pub(crate) checkpointing: bool,
    /// Where the next transaction starts in the log.
    pub(crate) head: u32,
    /// Log blocks from the tail to the head.
    pub(crate) used: u32,
    /// Credits that the running transaction was given in all.
    pub(crate) given: u64,
    /// Committed and not yet written in place, oldest first.
    pub(crate) committed: VecDeque<Committed>,
}

/// A transaction that is in the log.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) tid: Tid,
    pub(crate) start: u32,
    pub(crate) blocks: u32,
    pub(crate) bufs: Arc<Vec<Buf>>,
}

impl Log {
    fn new(place: LogPlace, sb: Superblock, max_blocks: u32) -> Self {
        let (first, end) = (sb.first(), sb.log_end());
        let format = sb.log_format();
        let mut log =
            Self { place, format, first, end, superblock: Mutex::new(Rank::CACHE, sb), max_credits: 0 };
        log.max_credits = log.credits_in(max_blocks.min(log.size() / 4).into());
        log
    }

    /// Blocks of the log.
    pub(crate) fn size(&self) -> u32 {
        self.end - self.first
    }

    /// How many credits `blocks` of the log are surely enough for.
    fn credits_in(&self, blocks: u64) -> u64 {
        let per_descriptor = self.format.tags_per_descriptor() as u64;
        let left = blocks.saturating_sub(2);
        left - left.div_ceil(per_descriptor + 1)
    }

    /// Log blocks for a transaction.
    pub(crate) fn blocks_for(&self, joined: usize, revokes: usize) -> u32 {
        let descriptors = joined.div_ceil(self.format.tags_per_descriptor());
        let revokes = revokes.div_ceil(self.format.revokes_per_block());
        (joined + descriptors + revokes + 1) as u32
    }

    /// The block `n` after `block`, round the end.
    pub(crate) fn advance(&self, block: u32, n: u32) -> u32 {
        self.first + (block - self.first + n) % self.size()
    }
}

impl Journal {
    /// Opens a journal for writing. Its log must be empty: recovered, or closed cleanly.
    ///
    /// Nothing is written before the first commit. With `options.commit_interval` a thread is started.
    ///
    /// # Errors
    /// [`Error::NeedsRecovery`]; what [`LogPlace::read_superblock`] finds; [`Error::Thread`].
    pub fn open(cache: Arc<BlockCache>, place: LogPlace, options: JournalOptions) -> Result<Arc<Self>> {
        let mut sb = place.read_superblock()?;
        if sb.start() != 0 {
            return Err(Error::NeedsRecovery);
        }
        sb.clear_head();
        set_wanted_features(&mut sb, &options);
        let tid = sb.sequence();
        let budget = cache.budget_blocks().max(4096) / 4;
        let most =
            options.max_transaction_blocks.unwrap_or(u32::MAX).min(u32::try_from(budget).unwrap_or(u32::MAX));
        let log = Log::new(place, sb, most);
        let state = State { head: log.first, given: log.max_credits, ..State::default() };
        Self::build(cache, options, Some(log), tid, state)
    }

    /// The same interface without a log: handles order changes, commits write the changed blocks in place, in the order of
    /// [`WriteOrder`](crate::WriteOrder). After a crash the filesystem wants a check.
    pub fn without_log(cache: Arc<BlockCache>, options: JournalOptions) -> Result<Arc<Self>> {
        Self::build(cache, options, None, Tid(1), State { given: MOST_ROOM, ..State::default() })
    }

    fn build(
        cache: Arc<BlockCache>,
        options: JournalOptions,
        log: Option<Log>,
        tid: Tid,
        state: State,
    ) -> Result<Arc<Self>> {
        let interval = options.commit_interval;
        let barrier = AtomicBool::new(options.barrier);
        let journal = Arc::new(Self {
            cache,
            options,
            log,
            running: Running::new(tid, state.given),
            committed: AtomicU32::new(tid.0.wrapping_sub(1)),
            requested: AtomicU32::new(tid.0.wrapping_sub(1)),
            aborted: AtomicI32::new(0),
            state: Mutex::new(Rank::JOURNAL_STATE, state),
            changed: Condvar::new(),
            observers: Mutex::new(Rank::LEAF, Vec::new()),
            counts: Counts::default(),
            thread: CommitThread::default(),
            errno_recorded: AtomicBool::new(false),
            interval: AtomicU64::new(nanoseconds(interval.unwrap_or_default())),
            barrier,
        });
        if interval.is_some() {
            journal.thread.start(Arc::downgrade(&journal))?;
        }
        Ok(journal)
    }

    /// The metadata cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// Whether there is a log.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// The most credits one handle can have.
    #[must_use]
    pub fn max_credits(&self) -> u32 {
        let most = self.log.as_ref().map_or(MOST_ROOM, |log| log.max_credits);
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// Credits that a handle needs for `records` revoke records; none without a log.
    #[must_use]
    pub fn revoke_credits(&self, records: u32) -> u32 {
        self.revokes_per_block().map_or(0, |n| records.div_ceil(n))
    }

    /// Revoke records that `credits` pay for.
    #[must_use]
    pub fn records_for(&self, credits: u32) -> u32 {
        self.revokes_per_block().map_or(u32::MAX, |n| n.saturating_mul(credits))
    }

    pub(crate) fn revokes_per_block(&self) -> Option<u32> {
        self.log.as_ref().map(|log| log.format.revokes_per_block() as u32)
    }

    /// Opens a handle that may change `credits` blocks. Counts as taking rank 60; may wait for a transaction to close, for
    /// log space, for a commit.
    ///
    /// # Errors
    /// [`Error::Aborted`], [`Error::TooManyCredits`].
    ///
    /// # Panics
    /// In debug builds, when this thread has a handle or anything later.
    #[track_caller]
    pub fn start(self: &Arc<Self>, credits: u32) -> Result<Handle> {
        Handle::start(self, credits)
    }

    /// The transaction that changes join now.
    #[must_use]
    pub fn running_tid(&self) -> Tid {
        self.running.tid()
    }

    /// The last durable transaction.
    #[must_use]
    pub fn committed_tid(&self) -> Tid {
        Tid(self.committed.load(Ordering::Acquire))
    }

    /// Waits until transaction `tid` is durable, committing it if nobody does yet. All who wait at the same time share one
    /// commit. Counts as taking rank 60.
    ///
    /// # Errors
    /// [`Error::Aborted`] when it can never become durable, or the error of the commit.
    #[track_caller]
    pub fn wait_commit(&self, tid: Tid) -> Result<Flushed> {
        let _held = Held::enter(Rank::HANDLE, None);
        self.commit_through(tid)
    }

    /// Whether a change that was finished in transaction `tid` is durable, or there is nothing in it. Takes no lock.
    #[must_use]
    pub fn is_durable(&self, tid: Tid) -> bool {
        // In this order: then it is said of `tid` if that still runs, which it has done since that change, and it is not that its contents
        // have just been taken out.
        let unchanged = self.running.is_unchanged() && !self.running.is_closing();
        !tid.is_after(self.committed_tid()) || (unchanged && self.running_tid() == tid)
    }

    /// Has the commit thread make `tid` durable, without waiting: [`CommitObserver::settled`] or [`CommitObserver::aborted`] says when it
    /// is done. `false` where there is no such thread.
    #[must_use]
    pub fn request_commit(&self, tid: Tid) -> bool {
        if self.options.commit_interval.is_none() {
            return false;
        }
        // The last one that was asked for: an older one is committed, or is being.
        let newer = |last: u32| tid.is_after(Tid(last)).then_some(tid.0);
        let _ = self.requested.fetch_update(Ordering::AcqRel, Ordering::Acquire, newer);
        self.thread.wake();
        true
    }

    /// Commits all that has been finished, and waits. Counts as taking rank 60.
    #[track_caller]
    pub fn commit_all(&self) -> Result<Flushed> {
        self.wait_commit(self.running_tid())
    }

    /// Commits everything and writes it in place: the log is empty afterwards unless others go on. Counts as taking rank 60.
    #[track_caller]
    pub fn checkpoint_all(&self) -> Result<()> {
        let _held = Held::enter(Rank::HANDLE, None);
        self.commit_through(self.running_tid())?;
        self.checkpoint()
    }

    /// The same for who keeps all changes out, and then says that nothing is left to recover: the log is marked empty, until the next
    /// commit says otherwise. Counts as taking rank 60.
    #[track_caller]
    pub fn rest(&self) -> Result<()> {
        let Some(log) = &self.log else { return self.checkpoint_all() };
        loop {
            self.checkpoint_all()?;
            let mut state = self.state.lock();
            while state.committing {
                self.changed.wait(&mut state);
            }
            if state.committed.is_empty() {
                // No commit begins meanwhile: it would take the log for one that is said to be in use.
                state.committing = true;
                break;
            }
            // Somebody was not kept out. What is in the log now would be lost: the caller says that nothing is.
        }
        let mut under_way = UnderWay::new(self, |state| &mut state.committing);
        let outcome = self.check().and_then(|()| self.mark_empty(log));
        under_way.over = true;
        drop(under_way);
        outcome
    }

    /// Commits and writes everything in place, marks the log empty, ends the thread. No handle may be open or started. An
    /// aborted journal is left as it is, for recovery. Counts as taking rank 60.
    #[track_caller]
    pub fn close(&self) -> Result<()> {
        self.thread.stop();
        let _held = Held::enter(Rank::HANDLE, None);
        let outcome = self.check().and_then(|()| self.close_log());
        if outcome.is_err() {
            self.record_errno();
        }
        outcome
    }

    fn close_log(&self) -> Result<()> {
        self.commit_through(self.running_tid())?;
        self.checkpoint()?;
        match &self.log {
            Some(log) => self.mark_empty(log),
            None => Ok(()),
        }
    }

    /// Ends all writing: nothing that is not durable yet will ever be. Every waiter wakes with an error, the journal stays so
    /// until it is opened anew. Only sets flags and wakes; may be called with any lock below rank 110.
    pub fn abort(&self, errno: i32) {
        self.end_writing(if errno == 0 { 5 } else { errno });
    }

    /// The same because somebody asked for it: no error is recorded in the journal for who mounts next.
    pub fn stop(&self) {
        self.end_writing(ESHUTDOWN);
    }

    fn end_writing(&self, errno: i32) {
        if self.aborted.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        tracing::error!(errno, "journal aborted");
        drop(self.state.lock());
        if !without!(self, SilentAbort) {
            self.changed.notify_all();
        }
        for observer in self.observers() {
            observer.aborted(errno);
        }
        self.thread.wake();
    }

    /// Whether [`Self::abort`] or [`Self::stop`] has been called.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire) != 0
    }

    /// Adds somebody who hears of commits.
    pub fn add_observer(&self, observer: Weak<dyn CommitObserver>) {
        self.observers.lock().push(observer);
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        JournalStats {
            commits: count(&self.counts.commits),
            log_blocks: count(&self.counts.log_blocks),
            written_in_place: count(&self.counts.written_in_place),
            checkpoints: count(&self.counts.checkpoints),
            credit_overruns: count(&self.counts.credit_overruns),
        }
    }

    /// Changes the `commit=` interval of the thread (remount).
    pub fn set_commit_interval(&self, interval: Duration) {
        self.interval.store(nanoseconds(interval), Ordering::Relaxed);
        self.thread.wake();
    }

    pub(crate) fn commit_interval(&self) -> Duration {
        Duration::from_nanos(self.interval.load(Ordering::Relaxed))
    }

    /// Turns flushes on or off (`barrier=`, remount). Commits that begin after this heed it.
    pub fn set_barrier(&self, on: bool) {
        self.barrier.store(on, Ordering::Release);
    }

    pub(crate) fn barrier(&self) -> bool {
        self.barrier.load(Ordering::Acquire)
    }

    /// Does what is due by the clock: commits a transaction older than the `commit=` interval, writes in place when the log is half
    /// full. The commit thread calls it; without a thread (tests, single-threaded programs) the owner may. Returns
    /// how long nothing will be due. Counts as taking rank 60.
    #[track_caller]
    pub fn tick(&self, interval: Duration) -> Result<Duration> {
        let _held = Held::enter(Rank::HANDLE, None);
        if self.is_aborted() {
            self.record_errno();
        }
        self.check()?;
        let age = self
            .running
            .began()
            .map(|began| self.options.clock.now().saturating_sub(Duration::from_nanos(began)));
        let next = match age {
            Some(age) if age >= interval || self.running.is_pressed() || self.is_requested() => {
                self.commit_through(self.running_tid())?;
                interval
            }
            Some(age) => interval - age,
            None => interval,
        };
        if self.wants_checkpoint() {
            self.checkpoint()?;
        }
        Ok(next)
    }

    fn is_requested(&self) -> bool {
        self.running_tid().0 == self.requested.load(Ordering::Acquire)
    }

    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        match self.aborted.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(Error::Aborted(errno)),
        }
    }

    pub(crate) fn check_64bit(&self, pblk: Pblk) -> Result<()> {
        match &self.log {
            Some(log) if pblk.0 > u64::from(u32::MAX) && !log.format.is_64bit() => Err(Error::Not64Bit(pblk)),
            _ => Ok(()),
        }
    }

    #[inline]
    pub(crate) fn enter(&self, credits: u32) -> Result<Tid> {
        if !self.running.is_pressed()
            && !self.is_aborted()
            && let Ok(tid) = self.running.enter(credits)
        {
            return Ok(tid);
        }
        self.enter_slowly(credits)
    }

    #[cold]
    fn enter_slowly(&self, credits: u32) -> Result<Tid> {
        if credits > self.max_credits() {
            return Err(Error::TooManyCredits { wanted: credits, most: self.max_credits() });
        }
        loop {
            self.check()?;
            if self.running.is_pressed() {
                self.commit_through(self.running.tid())?;
            }
            match self.running.enter(credits) {
                Ok(tid) => return Ok(tid),
                Err(Refused::Closing) => self.wait_opened()?,
                Err(Refused::Full) => self.make_room(credits)?,
            }
        }
    }

    fn wait_opened(&self) -> Result<()> {
        let mut state = self.state.lock();
        while self.running.is_closing() {
            self.check()?;
            self.changed.wait(&mut state);
        }
        Ok(())
    }

    /// Commits, or writes in place, so that the running transaction may grow.
    fn make_room(&self, credits: u32) -> Result<()> {
        let mut state = self.state.lock();
        if self.running.room() >= u64::from(credits) || self.running.is_closing() {
            return Ok(());
        }
        if state.checkpointing {
            self.changed.wait(&mut state);
            return Ok(());
        }
        let short_of_log = state.given < self.max_credits().into();
        if short_of_log && !state.committed.is_empty() {
            drop(state);
            return self.checkpoint();
        }
        if self.running.is_unchanged() && self.running.is_still() && !state.committing {
            // Unreachable as long as an empty log has room for the largest handle; never wait for nothing.
            return Err(Error::TooManyCredits { wanted: credits, most: self.max_credits() });
        }
        drop(state);
        self.commit_through(self.running.tid()).map(drop)
    }

    pub(crate) fn leave(&self, unused: u32) {
        if self.running.leave(unused) {
            // The committer looks at the gate under this lock before it waits (schedule test: a_commit_waits_for_handles).
            if !without!(self, WakeWithoutLock) {
                drop(self.state.lock());
            }
            self.changed.notify_all();
        }
    }

    /// A buffer was changed for the first time in the running transaction.
    pub(crate) fn joined(&self, buf: &Buf) {
        self.running.cancel_revoke(buf.pblk());
        let count = self.running.join(buf);
        self.mark_begin();
        if self.log.is_none() && u64::from(count) > (self.cache.budget_blocks() / 2).max(1024) {
            self.running.press();
        }
    }

    pub(crate) fn mark_begin(&self) {
        let now = || u64::try_from(self.options.clock.now().as_nanos()).unwrap_or(u64::MAX);
        self.running.mark_begin(now);
    }

    #[cold]
    pub(crate) fn note_overrun(&self, asked: u32) {
        self.counts.credit_overruns.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(asked, "a handle changes more blocks than it asked for");
    }

    #[cold]
    pub(crate) fn abort_unfinished(&self, tid: Tid) {
        tracing::error!(%tid, "a handle was dropped after a change, its operation half done");
        self.abort(5);
    }

    pub(crate) fn observers(&self) -> Vec<Arc<dyn CommitObserver>> {
        let mut observers = self.observers.lock();
        observers.retain(|observer| observer.strong_count() > 0);
        observers.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn set_committed(&self, tid: Tid) {
        self.committed.store(tid.0, Ordering::Release);
    }

    /// Credits the running transaction may have, by what is free in the log.
    pub(crate) fn affordable(&self, state: &State) -> u64 {
        let Some(log) = &self.log else { return MOST_ROOM };
        let taken = state.used.saturating_add(state.committing_need).saturating_add(1);
        log.credits_in(log.size().saturating_sub(taken).into()).min(log.max_credits)
    }

    /// Gives the running transaction what has become free. The caller notifies.
    pub(crate) fn grow_room(&self, state: &mut MutexGuard<'_, State>) {
        let affordable = self.affordable(state);
        if affordable > state.given {
            self.running.add_room(affordable - state.given);
            state.given = affordable;
        }
    }

    /// Writes the abort's errno into the journal superblock, once; a failure to do so changes nothing.
    fn record_errno(&self) {
        let errno = self.aborted.load(Ordering::Acquire);
        let Some(log) = &self.log else { return };
        if errno == 0 || errno == ESHUTDOWN || self.errno_recorded.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut sb = log.superblock.lock();
        sb.set_errno(errno.unsigned_abs());
        if let Err(error) = log.place.write_superblock(&sb).and_then(|()| log.place.flush()) {
            tracing::error!(%error, "the abort could not be recorded in the journal");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.thread.abandon();
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn set_wanted_features(sb: &mut Superblock, options: &JournalOptions) {
    sb.upgrade();
    let Some(wanted) = options.features else { return };
    let mut compat = sb.compat();
    let mut incompat = sb.incompat();
    if wanted.checksums {
        compat.remove(CompatFeatures::CHECKSUM);
        incompat.remove(IncompatFeatures::CSUM_V2);
        incompat.insert(IncompatFeatures::CSUM_V3);
    } else {
        incompat.remove(IncompatFeatures::CSUM_V2 | IncompatFeatures::CSUM_V3);
    }
    incompat.set(IncompatFeatures::BIT64, wanted.bit64 || incompat.contains(IncompatFeatures::BIT64));
    sb.set_features(compat, incompat);
}
