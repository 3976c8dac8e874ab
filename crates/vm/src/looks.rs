//! What the looks at transfers that are under way say of pages that were written some time ago.
//!
//! A look that sees nothing speaks for all of them, one that sees more than threads that run for none that is younger than half a minute. One
//! that sees threads that run says little by itself: a call runs, too, while it tells the device of its next part. Two of them a second
//! apart, with none between that saw more, speak for what was written before the first, as for blocks that are held ([`crate::grace`]): who
//! waits for a device is seen to wait, and a call does not run for as long. So the looks of a cache are remembered, whoever looks.

use std::time::Duration;

use extant_sys::transfers::UnderWay;

use crate::clock::now;
use crate::grace::{MOST, MOST_RUNNING};
use crate::mutant::without;
use crate::{Mmu, PageCache};

/// When pages were written that get nothing any more: before this, in milliseconds of the [`clock`](crate::clock).
pub(crate) type Before = u64;

#[derive(Default)]
pub(crate) struct Looks {
    /// When a look began since which none has seen more than threads that run; the second, a second or more after the first.
    first: Option<u64>,
    second: Option<u64>,
    /// When the last began that has seen more.
    more: Option<u64>,
}

const fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

impl Looks {
    /// Notes what a look saw that began at `now`.
    pub(crate) fn note(&mut self, seen: UnderWay, now: u64) -> Before {
        let long_ago = now.saturating_sub(ms(MOST));
        if seen == UnderWay::Perhaps {
            *self = Self { first: None, second: None, more: self.more.max(Some(now)) };
            return long_ago;
        }
        // Looks may be noted in another order than they began.
        if self.more < Some(now) && self.second <= Some(now) {
            match self.second {
                Some(second) if now - second < ms(MOST_RUNNING) => {}
                // Of those between nobody needs to know.
                second => (self.first, self.second) = (second, Some(now)),
            }
        }
        match (seen, self.first) {
            (UnderWay::Nothing, _) => Before::MAX,
            (_, Some(first)) if now.saturating_sub(first) >= ms(MOST_RUNNING) => first.max(long_ago),
            _ => long_ago,
        }
    }
}

impl PageCache {
    /// Asks the system what is under way. Takes a leaf.
    pub(crate) fn look(&self, mmu: &dyn Mmu) -> (UnderWay, Before) {
        // Of what begins from now on nothing is said by the answer.
        let now = ms(now());
        let seen = mmu.under_way();
        if seen == UnderWay::ThreadsRun && without!(self, TwoLooks) {
            return (seen, now.saturating_sub(ms(MOST_RUNNING)));
        }
        (seen, self.looks.lock().note(seen, now))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
