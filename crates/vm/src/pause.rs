//! When the cache is over its limit for pages that wait for transfers, and another look would find the same.
//!
//! Such pages stay for a while ([`AddressSpace::let_go`](crate::AddressSpace)), so the cache may have more than its limit, up to twice
//! that. A look at all of them costs each operation as much as the first: after one that was in vain there is none for [`PAUSE`], unless
//! a good many pages came meanwhile.

use std::time::Duration;

use extant_sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::clock::now;

/// So long a look that was in vain counts.
const PAUSE: Duration = Duration::from_millis(100);
/// The part of the limit that may come in that time.
pub(crate) const SLACK_PART: usize = 8;

#[derive(Default)]
pub(crate) struct Pause {
    /// Pages that reclaim has left for a transfer that may be under way, since the beginning.
    kept: AtomicUsize,
    /// When the last look in vain counts no more, and how many pages were over the limit after it.
    ends: AtomicU64,
    over: AtomicUsize,
}

impl Pause {
    /// Reclaim has left a page for a transfer that may be under way.
    pub(crate) fn keep(&self) {
        self.kept.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was, to compare with.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// A look was in vain: `over` pages are over the limit, and wait.
    pub(crate) fn begin(&self, over: usize) {
        self.begin_at(over, now());
    }

    /// Whether another look, with `over` pages over the limit, would most likely be in vain too.
    pub(crate) fn holds(&self, over: usize, limit: usize) -> bool {
        // The clock is asked by those alone for whom it matters.
        self.ends.load(Ordering::Relaxed) > 0 && self.holds_at(over, limit, now())
    }

    fn begin_at(&self, over: usize, now: Duration) {
        self.over.store(over, Ordering::Relaxed);
        self.ends.store((now + PAUSE).as_millis() as u64, Ordering::Relaxed);
    }

    fn holds_at(&self, over: usize, limit: usize, now: Duration) -> bool {
        let in_time = (now.as_millis() as u64) < self.ends.load(Ordering::Relaxed);
        in_time && over <= limit && over <= self.over.load(Ordering::Relaxed) + limit / SLACK_PART
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
