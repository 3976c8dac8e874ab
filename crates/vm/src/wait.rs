//! Where threads wait for the state of a page: a small table of queues shared by all pages.

use extant_sync::{Condvar, Mutex, Rank};

const QUEUES: usize = 64;

/// Queues by page. A page's word says whether anybody waits for it, so that nobody comes here for nothing.
pub(crate) struct WaitTable {
    queues: Box<[(Mutex<()>, Condvar)]>,
}

impl WaitTable {
    pub(crate) fn new() -> Self {
        Self { queues: (0..QUEUES).map(|_| (Mutex::new(Rank::LEAF, ()), Condvar::new())).collect() }
    }

    fn queue(&self, address: usize) -> &(Mutex<()>, Condvar) {
        &self.queues[(address >> 7) % QUEUES]
    }

    /// Waits until `ready` is true. It is called under the queue's lock: whoever makes it true and then finds the waiters'
    /// mark that it left cannot have called [`Self::wake`] before this thread sleeps.
    pub(crate) fn wait(&self, address: usize, mut ready: impl FnMut() -> bool) {
        let (lock, condvar) = self.queue(address);
        let mut guard = lock.lock();
        while !ready() {
            condvar.wait(&mut guard);
        }
    }

    /// Wakes whoever waits for the page.
    pub(crate) fn wake(&self, address: usize) {
        let (lock, condvar) = self.queue(address);
        drop(lock.lock());
        condvar.notify_all();
    }
}
