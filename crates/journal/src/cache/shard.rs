//! One shard: an index by block number, and a clock hand over the slots.

use std::ops::Range;

use extant_format::Pblk;
use rustc_hash::FxHashMap;

use super::Buf;

#[derive(Debug, Default)]
pub(super) struct Shard {
    index: FxHashMap<u64, usize>,
    slots: Vec<Option<Buf>>,
    free: Vec<usize>,
    hand: usize,
    pub(super) evictions: u64,
    /// Blocks read ahead that were asked for, and that were evicted before, since these were last taken.
    pub(super) ahead: Ahead,
}

/// What became of blocks that were read ahead.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    pub(super) used: u32,
    pub(super) lost: u32,
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&mut self, pblk: Pblk) -> Option<Buf> {
        let buf = self.slots[*self.index.get(&pblk.0)?].as_ref()?;
        self.ahead.used += u32::from(buf.touch());
        Some(buf.clone())
    }

    /// The buffer and whether it was inserted just now, to be loaded by the caller.
    pub(super) fn find_or_insert(&mut self, pblk: Pblk, budget: usize) -> (Buf, bool) {
        if let Some(buf) = self.find(pblk) {
            return (buf, false);
        }
        let buf = Buf::pending(pblk);
        self.insert(&buf, budget);
        (buf, true)
    }

    /// A buffer to be read ahead, to be loaded by the caller; `None` where the block is cached. It does not count as asked for.
    pub(super) fn insert_ahead(&mut self, pblk: Pblk, budget: usize) -> Option<Buf> {
        if self.index.contains_key(&pblk.0) {
            return None;
        }
        let buf = Buf::pending_ahead(pblk);
        self.insert(&buf, budget);
        Some(buf)
    }

    fn insert(&mut self, buf: &Buf, budget: usize) {
        self.shrink(budget.saturating_sub(1));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(buf.clone());
        self.index.insert(buf.pblk().0, slot);
    }

    pub(super) fn remove(&mut self, buf: &Buf) {
        let Some(&slot) = self.index.get(&buf.pblk().0) else { return };
        if self.slots[slot].as_ref().is_some_and(|found| found.same(buf)) {
            self.vacate(slot);
        }
    }

    pub(super) fn in_range(&self, blocks: &Range<u64>) -> Vec<Buf> {
        self.slots.iter().flatten().filter(|buf| blocks.contains(&buf.pblk().0)).cloned().collect()
    }

    fn vacate(&mut self, slot: usize) {
        if let Some(buf) = self.slots[slot].take() {
            self.index.remove(&buf.pblk().0);
            self.free.push(slot);
        }
    }

    /// Evicts until at most `most` are left, passing each slot twice at most: what is held or was used lately stays.
    fn shrink(&mut self, most: usize) {
        let mut steps = 2 * self.slots.len();
        // A shard full of held buffers must not pay a whole turn for each insertion.
        if self.index.len() > most {
            steps = steps.min(64 + 2 * (self.index.len() - most));
        }
        while self.index.len() > most && steps > 0 {
            steps -= 1;
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let Some(buf) = self.slots[self.hand].as_ref().filter(|buf| !buf.is_held() && !buf.untouch())
            else {
                continue;
            };
            self.ahead.lost += u32::from(buf.is_ahead());
            self.vacate(self.hand);
            self.evictions += 1;
        }
    }
}
