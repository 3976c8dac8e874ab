//! Which groups have a free chunk of which order: one set of groups for each order, read and changed without a lock.
//!
//! A search for a group of order `k` or more looks at the sets of the orders from `k` upwards, 64 groups a word and
//! 4096 groups a summary word, starting at the goal's group; nothing walks all groups. The sets are hints: a group
//! is entered under its own lock, and the searcher checks again under that lock.

use extant_sync::atomic::{AtomicU64, Ordering};

use crate::buddy::MAX_ORDERS;

/// A set of group numbers that many threads change at once.
pub(crate) struct GroupSet {
    words: Box<[AtomicU64]>,
    /// Bit `w` of it: word `w` may be non-zero. Never clear while the word is set, except during an insert.
    summary: Box<[AtomicU64]>,
}

impl GroupSet {
    /// An empty set for groups below `groups`.
    pub(crate) fn new(groups: usize) -> Self {
        let words = groups.div_ceil(64);
        Self { words: zeros(words), summary: zeros(words.div_ceil(64)) }
    }

    /// Adds `group`.
    pub(crate) fn insert(&self, group: usize) {
        self.words[group / 64].fetch_or(1 << (group % 64), Ordering::Relaxed);
        self.mark(group / 64);
    }

    /// Takes `group` out.
    pub(crate) fn remove(&self, group: usize) {
        let w = group / 64;
        let old = self.words[w].fetch_and(!(1 << (group % 64)), Ordering::Relaxed);
        if old & !(1 << (group % 64)) != 0 {
            return;
        }
        self.summary[w / 64].fetch_and(!(1 << (w % 64)), Ordering::SeqCst);
        // An insert between the two steps above set the summary bit before it was cleared.
        if self.words[w].load(Ordering::SeqCst) != 0 {
            self.mark(w);
        }
    }

    /// The first member at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let w = from / 64;
        let here = self.words.get(w)?.load(Ordering::Relaxed) & (!0 << (from % 64));
        if here != 0 {
            return Some(w * 64 + here.trailing_zeros() as usize);
        }
        let mut at = w + 1;
        while let Some(w) = self.next_word(at) {
            let word = self.words[w].load(Ordering::Relaxed);
            if word != 0 {
                return Some(w * 64 + word.trailing_zeros() as usize);
            }
            at = w + 1;
        }
        None
    }

    fn next_word(&self, from: usize) -> Option<usize> {
        let mut s = from / 64;
        let mut bits = self.summary.get(s)?.load(Ordering::Relaxed) & (!0 << (from % 64));
        while bits == 0 {
            s += 1;
            bits = self.summary.get(s)?.load(Ordering::Relaxed);
        }
        Some(s * 64 + bits.trailing_zeros() as usize)
    }

    fn mark(&self, w: usize) {
        let bit = 1 << (w % 64);
        if self.summary[w / 64].load(Ordering::SeqCst) & bit == 0 {
            self.summary[w / 64].fetch_or(bit, Ordering::SeqCst);
        }
    }
}

fn zeros(n: usize) -> Box<[AtomicU64]> {
    (0..n.max(1)).map(|_| AtomicU64::new(0)).collect()
}

/// The groups by the order of their largest free chunk.
pub(crate) struct OrderIndex {
    sets: Vec<GroupSet>,
}

impl OrderIndex {
    /// An index of `groups` groups, all of them full.
    pub(crate) fn new(groups: usize) -> Self {
        Self { sets: (0..MAX_ORDERS).map(|_| GroupSet::new(groups)).collect() }
    }

    /// Moves `group` from the set of order `old` to that of `new`; `None` is a full group. Under the group's lock.
    pub(crate) fn shift(&self, group: usize, old: Option<u32>, new: Option<u32>) {
        if old == new {
            return;
        }
        if let Some(k) = new {
            self.sets[k as usize].insert(group);
        }
        if let Some(k) = old {
            self.sets[k as usize].remove(group);
        }
    }

    /// The nearest group at or after `from` with a chunk of order `order` or more.
    pub(crate) fn first_in(&self, order: u32, from: usize) -> Option<usize> {
        self.sets.get(order as usize..)?.iter().filter_map(|set| set.next(from)).min()
    }

    /// The largest order that any group has, at most `below - 1`.
    pub(crate) fn largest_below(&self, below: u32) -> Option<u32> {
        (0..below.min(MAX_ORDERS as u32)).rev().find(|&k| self.sets[k as usize].next(0).is_some())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
