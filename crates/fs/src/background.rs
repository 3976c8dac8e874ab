//! The threads of a mount: the evictor, and the one for periodic work.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

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
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Default for Stop {
    fn default() -> Self {
        Self { stopped: Mutex::new(Rank::LEAF, false), changed: Condvar::new() }
    }
}

impl Stop {
    pub(crate) fn set(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for `time`; true if the threads shall end.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        let until = Instant::now() + time;
        while !*stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut stopped, left);
        }
        *stopped
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
    while !stop.wait(TIMES_INTERVAL) {
        let Some(fs) = fs.upgrade() else { return };
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
