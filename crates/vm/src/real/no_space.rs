//! Stores for which there is no space, while blocks are held that can be used before long.
//!
//! They wait as values. While there are any, a thread of the pool for loads looks every now and then whether such blocks can be used, once for
//! all of them, and has those asked again for which there may be space; the reader says when. Nobody has to tell that blocks were let go
//! of: it is compared how often that was.

use std::time::{Duration, Instant};

use extant_sync::Arc;
use extant_sync::atomic::Ordering;

use super::pending::{Job, Pending};
use super::server::Shared;
use crate::grace::LOOKS;
use crate::queue::Pool;

/// Faults that wait for space.
#[derive(Debug, Default)]
pub(super) struct NoSpace {
    waiting: Vec<Pending>,
    /// When the next look is due; `None`: none is to come, or one is under way.
    due: Option<Instant>,
    /// Between two looks.
    pause: Duration,
}

impl NoSpace {
    /// Takes out what waits, to be answered out of the lock.
    pub(super) fn take(&mut self) -> Vec<Pending> {
        self.due = None;
        std::mem::take(&mut self.waiting)
    }
}

impl Shared {
    /// Keeps a fault until there may be space.
    pub(super) fn await_space(&self, pending: Pending) {
        let mut all = self.no_space.lock();
        if self.closed.load(Ordering::Acquire) {
            drop(all);
            drop(pending);
            return;
        }
        let first = all.waiting.is_empty();
        all.waiting.push(pending);
        if first && all.due.is_none() {
            self.look_after(&mut all, LOOKS[0]);
        }
    }

    fn look_after(&self, all: &mut NoSpace, pause: Duration) {
        all.pause = pause;
        all.due = Some(Instant::now() + pause);
        extant_sys::bell::ring(&self.bell);
    }

    /// Hands a look that is due to a thread; time until the next one is.
    pub(super) fn look_due(&self) -> Option<Duration> {
        let mut all = self.no_space.lock();
        let (due, now) = (all.due?, Instant::now());
        if due > now {
            return Some(due - now);
        }
        all.due = None;
        drop(all);
        self.hand_on(Pool::Reads, Job::LookForSpace);
        None
    }

    /// Looks for space, and has those asked again for which there may be some.
    pub(super) fn look_for_space(self: &Arc<Self>) {
        let waiting = self.no_space.lock().take();
        let Some(first) = waiting.first() else { return };
        first.look_for_space();
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(Pending::may_have_space);
        let mut all = self.no_space.lock();
        if self.closed.load(Ordering::Acquire) {
            drop(all);
            // Answered as they are dropped.
            return;
        }
        // Whoever came meanwhile has set a time for itself.
        let pause = if ready.is_empty() { LOOKS[1].min(all.pause * 2) } else { LOOKS[0] };
        all.waiting.splice(0..0, rest);
        if all.waiting.is_empty() {
            all.due = None;
        } else {
            self.look_after(&mut all, pause);
        }
        drop(all);
        for pending in ready {
            self.hand_on(pending.pool(), Job::Ask(pending));
        }
    }
}
