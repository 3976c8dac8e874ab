//! The threads of a mount: the evictor, and the one for periodic work.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use extant_format::Tid;
use extant_journal::CommitObserver;
use extant_sync::atomic::Ordering;
use extant_sync::{Condvar, Mutex, Rank, thread};

use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::icache::InodeCache;

/// How often times that changed in memory only are written.
const TIMES_INTERVAL: Duration = Duration::from_secs(30);

/// Ends threads that wait.
#[derive(Debug)]
pub(crate) struct Stop {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    stopped: bool,
    /// The journal was aborted, and nobody has seen to it.
    aborted: bool,
}

/// Why a thread of the mount is to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    End,
    Aborted,
    Time,
}

impl Default for Stop {
    fn default() -> Self {
        Self { told: Mutex::new(Rank::LEAF, Told::default()), changed: Condvar::new() }
    }
}

impl Stop {
    pub(crate) fn set(&self) {
        self.told.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for `time`; true if the threads shall end.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        self.wait_until(time, |_| false);
        self.told.lock().stopped
    }

    /// Waits for `time`, or until there is something else to do.
    fn wait_due(&self, time: Duration) -> Due {
        self.wait_until(time, |told| told.aborted);
        let mut told = self.told.lock();
        match (told.stopped, std::mem::take(&mut told.aborted)) {
            (true, _) => Due::End,
            (false, true) => Due::Aborted,
            (false, false) => Due::Time,
        }
    }

    fn wait_until(&self, time: Duration, more: impl Fn(&Told) -> bool) {
        let mut told = self.told.lock();
        let until = Instant::now() + time;
        while !told.stopped && !more(&told) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut told, left);
        }
    }
}

impl CommitObserver for Stop {
    fn committed(&self, _tid: Tid) {}

    fn aborted(&self, _errno: i32) {
        self.told.lock().aborted = true;
        self.changed.notify_all();
    }
}

impl Filesystem {
    pub(crate) fn start_threads(self: &Arc<Self>) {
        if self.mode() != Mode::ReadWrite {
            return;
        }
        if let Err(e) = self.pages.start_threads(1) {
            tracing::warn!("no thread for background writeback: {e}");
        }
        self.icache.queue.lock().served = true;
        self.start_lazy_init();
        let mut threads = self.mount.threads.lock();
        let (this, cache) = (Arc::downgrade(self), Arc::clone(&self.icache));
        threads.push(thread::spawn(move || evictor(&this, &cache)));
        let (this, stop) = (Arc::downgrade(self), Arc::clone(&self.mount.stop));
        threads.push(thread::spawn(move || periodic(&this, &stop)));
        drop(threads);
        self.mount.started.store(true, Ordering::Release);
    }

    pub(crate) fn stop_threads(&self) {
        self.pages.stop_threads();
        self.mount.stop.set();
        self.icache.queue.lock().stop = true;
        self.icache.queued.notify_all();
        let threads = std::mem::take(&mut *self.mount.threads.lock());
        let me = thread::current().id();
        for thread in threads {
            // The last reference may be dropped by one of the threads themselves.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

/// Frees dead inodes that nobody refers to. Once the filesystem is being dropped it leaves them to who drops it.
fn evictor(fs: &Weak<Filesystem>, cache: &InodeCache) {
    let _harmless = extant_sys::transfers::harmless();
    loop {
        cache.wait_dead();
        // Not with the queue's lock held: this may become the last reference.
        let Some(fs) = fs.upgrade() else { break };
        if !fs.evict_next() && cache.queue.lock().stop {
            break;
        }
        while fs.evict_next() {}
    }
    cache.queue.lock().served = false;
    cache.queued.notify_all();
}

fn periodic(fs: &Weak<Filesystem>, stop: &Stop) {
    let _harmless = extant_sys::transfers::harmless();
    loop {
        let due = stop.wait_due(TIMES_INTERVAL);
        if due == Due::End {
            return;
        }
        let Some(fs) = fs.upgrade() else { return };
        if due == Due::Aborted
            && let Err(e) = fs.end_stores()
        {
            tracing::error!("mappings can still be stored to, though nothing is written any more: {e}");
        }
        fs.periodic_work();
    }
}

impl Filesystem {
    /// What is done every [`TIMES_INTERVAL`].
    pub(crate) fn periodic_work(&self) {
        // Not while it is frozen; and not by waiting, or an unmount would wait for this thread.
        let Some(_pass) = self.gate.try_enter(Level::Internal) else { return };
        let done = self.flush_times_due().and_then(|()| self.write_record());
        if let Err(e) = done {
            tracing::warn!("periodic work: {e}");
        }
    }
}
