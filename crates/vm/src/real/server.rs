//! The threads that read and answer faults.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use extant_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use extant_sync::{Arc, Mutex, Rank, RwLock, held_by, thread};
use extant_sys::{Message, Uffd, UserPages, user_memory};
use rustc_hash::FxHashMap;

use super::mutant::{Guard, without};
use super::no_space::NoSpace;
use super::pending::{Job, Pending, Waiter};
use super::suspects::{Suspects, Verdict};
use super::{FaultHandler, POISONED};
use crate::queue::{Pool, Queue};
use crate::{Access, MapId};

/// How many threads answer what the reader does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultThreads {
    /// For loads, at least 1.
    pub reads: usize,
    /// For stores, at least 1.
    pub writes: usize,
}

/// Reads faults of this process's mappings and has them answered. Dropped with the last [`RealMmu`](super::RealMmu) that uses it.
pub struct FaultServer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// What the threads share.
pub(super) struct Shared {
    uffd: Arc<Uffd>,
    /// Written to when the reader is to look up from its messages.
    pub(super) bell: OwnedFd,
    pub(super) queue: Queue<Job>,
    table: RwLock<FxHashMap<MapId, Arc<Entry>>>,
    poison: Mutex<VecDeque<Poisoned>>,
    pub(super) no_space: Mutex<NoSpace>,
    pub(super) closed: AtomicBool,
    /// The thread whose faults are not parked; 0: none.
    impatient: AtomicU32,
    restarts: AtomicU64,
    /// It was said that memory's owner could not be found out.
    said_unknown: AtomicBool,
    pub(super) suspects: Mutex<Suspects>,
    /// The guard that is taken away.
    pub(super) mutant: Mutex<Guard>,
    #[cfg(test)]
    pub(super) break_reader: AtomicBool,
}

/// A mapping and who answers for it.
pub(super) struct Entry {
    pub(super) pages: Arc<UserPages>,
    pub(super) handler: Arc<dyn FaultHandler>,
}

struct Poisoned {
    until: Instant,
    pages: Arc<UserPages>,
    page: u32,
}

impl Default for FaultThreads {
    fn default() -> Self {
        Self { reads: 4, writes: 4 }
    }
}

impl FaultServer {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Unsupported` on a kernel that lacks what is needed (see [`Uffd::open`]); the system's.
    ///
    /// # Panics
    /// When a pool is to have no thread.
    pub fn start(threads: FaultThreads) -> io::Result<Arc<Self>> {
        Self::over(Uffd::open()?, threads)
    }

    /// The same with a descriptor that was opened already.
    ///
    /// # Errors
    /// The system's.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn over(uffd: Uffd, threads: FaultThreads) -> io::Result<Arc<Self>> {
        assert!(threads.reads > 0 && threads.writes > 0, "{threads:?}");
        let shared = Arc::new(Shared {
            uffd: Arc::new(uffd),
            bell: extant_sys::bell::new()?,
            queue: Queue::new(),
            table: RwLock::new(Rank::LEAF, FxHashMap::default()),
            poison: Mutex::new(Rank::LEAF, VecDeque::new()),
            no_space: Mutex::new(Rank::LEAF, NoSpace::default()),
            closed: AtomicBool::new(false),
            impatient: AtomicU32::new(0),
            restarts: AtomicU64::new(0),
            said_unknown: AtomicBool::new(false),
            suspects: Mutex::new(Rank::LEAF, Suspects::default()),
            mutant: Mutex::new(Rank::LEAF, Guard::None),
            #[cfg(test)]
            break_reader: AtomicBool::new(false),
        });
        // From here on an error stops what runs.
        let server = Arc::new(Self { shared, threads: Mutex::new(Rank::LEAF, Vec::new()) });
        server.spawn("extant-faults", Shared::reader)?;
        for _ in 0..threads.reads {
            server.spawn("extant-loads", |shared| shared.worker(Pool::Reads))?;
        }
        for _ in 0..threads.writes {
            server.spawn("extant-stores", |shared| shared.worker(Pool::Writes))?;
        }
        Ok(server)
    }

    fn spawn(&self, name: &str, work: fn(&Arc<Shared>)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.into()).spawn(move || shared.supervise(work))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Whether a fault that happens inside a system call is served: see [`Uffd::handles_kernel_faults`].
    #[must_use]
    pub fn handles_kernel_faults(&self) -> bool {
        self.shared.uffd.handles_kernel_faults()
    }

    /// Has every fault that was answered [`Parked`](crate::Fault::Parked) asked again; how many.
    pub fn retry_parked(&self) -> usize {
        self.shared.queue.unpark()
    }

    /// What asks them again, for who must not keep the server.
    #[must_use]
    pub fn parked(&self) -> ParkedFaults {
        ParkedFaults(Arc::clone(&self.shared))
    }

    /// From now on what would be parked of this thread (its number) is refused, by a signal for it alone where that can be: nobody else is
    /// there who would end its wait.
    pub fn refuse_parked_of(&self, thread: u32) {
        self.shared.impatient.store(thread, Ordering::Release);
        self.retry_parked();
    }

    /// Lets the next access of every page that could not be had ask again now.
    pub fn retry_poisoned(&self) {
        let all = std::mem::take(&mut *self.shared.poison.lock());
        for Poisoned { pages, page, .. } in all {
            pages.heal(&(page..page + 1));
        }
    }

    /// How often a thread had to begin anew.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    pub(super) fn uffd(&self) -> &Arc<Uffd> {
        &self.shared.uffd
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn add(&self, pages: &Arc<UserPages>, handler: Arc<dyn FaultHandler>) {
        let entry = Arc::new(Entry { pages: Arc::clone(pages), handler });
        self.shared.table.write().insert(MapId(pages.id()), entry);
        // A wild access before this moment was left unanswered.
        pages.wake_all();
    }

    /// The mapping is unmapped already.
    pub(super) fn remove(&self, map: MapId) {
        let entry = self.shared.table.write().remove(&map);
        // Not under the table's lock: it may be the last to know the handler.
        drop(entry);
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Answers what is left: there are no mappings any more, but answering is harmless.
        drop(self.shared.queue.close());
        let left = self.shared.no_space.lock().take();
        drop(left);
        extant_sys::bell::ring(&self.shared.bell);
        let me = thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            // One of the threads itself may have dropped the last handler, and this with it: it ends by itself.
            if thread.thread().id() != me {
                let result = thread.join();
                debug_assert!(result.is_ok(), "a supervised thread panicked");
            }
        }
    }
}

impl fmt::Debug for FaultServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultServer").field("uffd", &self.shared.uffd).finish_non_exhaustive()
    }
}

/// The faults of a server that were answered [`Parked`](crate::Fault::Parked).
pub struct ParkedFaults(Arc<Shared>);

impl ParkedFaults {
    /// [`FaultServer::retry_parked`]. Takes a leaf lock.
    pub fn retry(&self) {
        self.0.queue.unpark();
    }
}

impl fmt::Debug for ParkedFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkedFaults").finish_non_exhaustive()
    }
}

impl Shared {
    /// Does `work` until it ends; begins anew when it panics. What the panic took with it is sent again.
    fn supervise(self: &Arc<Self>, work: fn(&Arc<Self>)) {
        // One of them asks what is under way, right after it has had the others do something.
        let _harmless = extant_sys::transfers::harmless();
        while catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.restarts.fetch_add(1, Ordering::Relaxed);
            tracing::error!("a thread that answers faults panicked and begins anew");
            if without!(self, LostMessage) {
                continue;
            }
            let entries: Vec<Arc<Entry>> = self.table.read().values().cloned().collect();
            for entry in entries {
                entry.pages.wake_all();
            }
        }
    }

    fn reader(self: &Arc<Self>) {
        let mut messages = Vec::new();
        while !self.closed.load(Ordering::Acquire) {
            let timeout = [self.heal_due(), self.look_due()].into_iter().flatten().min();
            if let Err(error) = extant_sys::bell::wait(&self.uffd, &self.bell, timeout) {
                panic!("waiting for faults: {error}");
            }
            if cfg!(debug_assertions) {
                self.suspects.lock().begin_read();
            }
            let since = self.uffd.wakes();
            if let Err(error) = self.uffd.read(&mut messages) {
                panic!("reading faults: {error}");
            }
            for message in messages.drain(..) {
                if let Message::Fault { addr, write, thread } = message {
                    self.fault(write, Waiter { addr, thread, since });
                }
            }
        }
    }

    /// Answers a fault that can be answered at once, and hands on every other one.
    pub(super) fn fault(self: &Arc<Self>, write: bool, waiter: Waiter) {
        #[cfg(test)]
        assert!(!self.break_reader.swap(false, Ordering::Relaxed), "broken by a test");
        // Unknown: the mapping is being changed, or the program has changed it without a word.
        let Some(place) = user_memory::find(waiter.addr) else {
            return self.hand_on(Pool::Reads, Job::Find(waiter.addr));
        };
        // Not yet here, or not any more: who adds it wakes, and who unmapped it.
        let Some(entry) = self.table.read().get(&MapId(place.map)).cloned() else { return };
        if cfg!(debug_assertions) && !self.may_fault(waiter) {
            entry.pages.wake(place.page..place.page + 1);
            return;
        }
        let access = if write && entry.pages.is_shared() { Access::Write } else { Access::Read };
        let may_store = entry.pages.may_store();
        if access == Access::Write && may_store {
            entry.pages.note_store_at(waiter.addr);
        }
        let asked = self.queue.epoch();
        let pending = Pending::new(Arc::clone(self), entry, place.page, access, waiter);
        if access == Access::Write && !may_store {
            // mprotect(2) has let it through, without a word to us: the file is not open for writing.
            return self.hand_on(pending.pool(), Job::Refuse(pending));
        }
        match catch_unwind(AssertUnwindSafe(|| pending.try_ask())) {
            Ok(Some(fault @ (crate::Fault::Mapped | crate::Fault::Retry | crate::Fault::Parked))) => {
                pending.answer(fault, asked);
            }
            Ok(None) => self.hand_on(pending.pool(), Job::Ask(pending)),
            // Marking a page may wait a moment for who works on the mapping.
            Ok(Some(_)) | Err(_) => self.hand_on(pending.pool(), Job::Refuse(pending)),
        }
    }

    /// Whether a thread's faults are refused where they would be parked.
    pub(super) fn is_impatient(&self, thread: u32) -> bool {
        self.impatient.load(Ordering::Acquire) == thread
    }

    /// Whether a guard is taken away, which it is once.
    pub(super) fn is_without(&self, guard: Guard) -> bool {
        let mut mutant = self.mutant.lock();
        let without = *mutant == guard;
        if without {
            *mutant = Guard::None;
        }
        without
    }

    /// Whether a fault is to be served: not while it looks as if its thread held a ranked lock. Ends the program when it does.
    fn may_fault(&self, Waiter { addr, thread, .. }: Waiter) -> bool {
        let verdict = self.suspects.lock().judge(thread, &held_by(thread));
        if let Verdict::Guilty(held) = &verdict {
            #[expect(clippy::print_stderr, reason = "the last words of the process")]
            {
                eprintln!(
                    "lock order: thread {thread} touches memory of a mapping at {addr:#x} while it holds {held}"
                );
            }
            std::process::abort();
        }
        verdict == Verdict::Innocent
    }

    pub(super) fn hand_on(&self, pool: Pool, job: Job) {
        // A closed queue gives it back: dropped, it is answered.
        drop(self.queue.push(pool, job));
    }

    fn worker(self: &Arc<Self>, pool: Pool) {
        while let Some(job) = self.queue.next(pool) {
            match job {
                Job::Ask(mut pending) => {
                    let asked = self.queue.epoch();
                    match catch_unwind(AssertUnwindSafe(|| pending.ask())) {
                        Ok(fault) => pending.answer(fault, asked),
                        Err(_) if without!(self, PanicAnswered) => std::mem::forget(pending),
                        Err(_) => drop(pending),
                    }
                }
                Job::Refuse(pending) => drop(pending),
                Job::Find(addr) => {
                    // Refused where that cannot be found out at all; of what may pass the thread asks again, and again: it hangs, but can
                    // be killed, and no wrong byte is seen. Said once: there may be such a fault for every page, or one for ever.
                    if let Err(error) = UserPages::look_for(&self.uffd, addr)
                        && !self.said_unknown.swap(true, Ordering::Relaxed)
                    {
                        tracing::error!(%error, "whose memory an access met could not be found out");
                    }
                }
                Job::Heal(pages, page) => pages.heal(&(page..page + 1)),
                Job::LookForSpace => self.look_for_space(),
            }
        }
    }

    /// Remembers to heal a page.
    pub(super) fn poisoned(&self, pages: &Arc<UserPages>, page: u32) {
        let until = Instant::now() + POISONED;
        self.poison.lock().push_back(Poisoned { until, pages: Arc::clone(pages), page });
        extant_sys::bell::ring(&self.bell);
    }

    /// Hands pages that have been poisoned long enough to a worker; time until the next one is.
    fn heal_due(&self) -> Option<std::time::Duration> {
        loop {
            let now = Instant::now();
            let mut poison = self.poison.lock();
            let first = poison.front()?;
            if first.until > now {
                return Some(first.until - now);
            }
            let Poisoned { pages, page, .. } = poison.pop_front()?;
            drop(poison);
            self.hand_on(Pool::Reads, Job::Heal(pages, page));
        }
    }
}
