//! Freed blocks on their way back: not usable before the transaction that frees them has committed.
//!
//! Used earlier, a block could be overwritten with a new file's data while a crash still brings the old file back.

use std::collections::VecDeque;

use extant_format::{Pblk, Tid};
use extant_journal::{CommitObserver, Handle};
use extant_sync::atomic::Ordering;
use smallvec::SmallVec;

use crate::allocator::Allocator;
use crate::error::{AllocError, Result};
use crate::group::GroupBufs;
use crate::window::Taken;

/// Freed clusters by transaction, oldest first.
#[derive(Default)]
pub(crate) struct Pending {
    queue: VecDeque<(Tid, Vec<Taken>)>,
}

impl Pending {
    pub(crate) fn newest(&self) -> Option<Tid> {
        self.queue.back().map(|(tid, _)| *tid)
    }

    fn add(&mut self, tid: Tid, freed: Taken) {
        // Two transactions can be open for frees at a time: the running one, and one whose last handles finish.
        let at = match self.queue.iter().rposition(|(t, _)| *t == tid) {
            Some(at) => at,
            None => {
                let at = self.queue.iter().rposition(|(t, _)| tid.is_after(*t)).map_or(0, |i| i + 1);
                self.queue.insert(at, (tid, Vec::new()));
                at
            }
        };
        let list = &mut self.queue[at].1;
        if let Some(last) = list.last_mut()
            && last.group == freed.group
        {
            if last.start + last.len == freed.start {
                last.len += freed.len;
                return;
            }
            if freed.start + freed.len == last.start {
                last.start = freed.start;
                last.len += freed.len;
                return;
            }
        }
        list.push(freed);
    }

    /// What transactions up to `tid` freed.
    fn take_until(&mut self, tid: Tid) -> Vec<Taken> {
        let mut all = Vec::new();
        while self.queue.front().is_some_and(|(t, _)| !t.is_after(tid)) {
            if let Some((_, list)) = self.queue.pop_front() {
                if all.is_empty() {
                    all = list;
                } else {
                    all.extend(list);
                }
            }
        }
        all
    }
}

/// What freeing or publishing a run needs, in memory ([`Allocator::prepare_free`]).
pub struct ToFree {
    _held: SmallVec<[GroupBufs; 1]>,
}

impl Allocator {
    /// Frees `len` blocks from `pblk` in a handle. They are usable again once its transaction has committed (and
    /// been discarded, if that is on). With bigalloc every cluster that the range touches is freed: the caller makes
    /// sure that no other block of it is in use. A group that was found corrupt keeps its blocks.
    ///
    /// The caller has told the journal if the blocks held metadata (`forget`, `revoke`).
    ///
    /// Takes one group's lock after the other. Credits: 2 for each group that the range touches
    /// ([`Self::free_credits`]).
    ///
    /// # Errors
    /// [`AllocError::NotData`] and nothing changed if the range is not of data blocks; the device's, not after
    /// [`Self::prepare_free`]; the journal's. A group that turns out to be corrupt is reported, and keeps its blocks.
    pub fn free(&self, handle: &mut Handle, pblk: Pblk, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if !self.is_data_range(pblk, len) {
            return Err(AllocError::NotData { pblk, len });
        }
        let end = pblk.0 + len;
        let mut at = pblk.0;
        while at < end {
            let Some((group, bit)) = self.geo.bit_of_block(Pblk(at)) else { break };
            let group_end = self.geo.group_first_block(group).0 + u64::from(self.geo.blocks_in_group(group));
            let stop = end.min(group_end);
            let last = self.geo.bit_of_block(Pblk(stop - 1)).map_or(bit, |(_, b)| b);
            self.free_in_group(handle, Taken { group: group.0, start: bit, len: last - bit + 1 })?;
            at = stop;
        }
        Ok(())
    }

    /// Credits that freeing `len` blocks in one run may need.
    #[must_use]
    pub fn free_credits(&self, len: u64) -> u32 {
        let groups = len.div_ceil(u64::from(self.geo.blocks_per_group())) + 1;
        self.alloc_credits(u32::try_from(groups).unwrap_or(u32::MAX))
    }

    /// The most blocks of one run that `credits` are enough to free.
    #[must_use]
    pub fn freeable(&self, credits: u32) -> u32 {
        if credits >= self.alloc_credits(self.geo.groups()) {
            return u32::MAX;
        }
        // A bitmap for each group, and a descriptor as long as there are others; a run begins and ends inside of a group.
        let descs = self.geo.desc_blocks();
        let groups = if credits <= 2 * descs { credits / 2 } else { credits - descs };
        groups.saturating_sub(1).saturating_mul(self.geo.blocks_per_group())
    }

    /// Credits for bits of `claims` different places: a bitmap and a descriptor each, or all that there are.
    #[must_use]
    pub fn alloc_credits(&self, claims: u32) -> u32 {
        claims.min(self.geo.groups()) + claims.min(self.geo.desc_blocks())
    }

    /// Reads what freeing or publishing these blocks will read, so that no device error comes between. As long as the result is held it stays in
    /// the cache. A corrupt group is passed over: it keeps its blocks.
    ///
    /// # Errors
    /// The device's.
    pub fn prepare_free(&self, pblk: Pblk, len: u64) -> Result<ToFree> {
        let mut held = SmallVec::new();
        let (Some((first, _)), Some((last, _))) = (
            self.geo.bit_of_block(pblk),
            self.geo.bit_of_block(Pblk(pblk.0.saturating_add(len.saturating_sub(1)))),
        ) else {
            return Ok(ToFree { _held: held });
        };
        for g in first.0 as usize..=last.0 as usize {
            let corrupt = self.groups[g].lock().corrupt;
            if !corrupt {
                held.push(self.block_bufs(g)?);
            }
        }
        Ok(ToFree { _held: held })
    }

    fn free_in_group(&self, handle: &mut Handle, freed: Taken) -> Result<()> {
        let g = freed.group as usize;
        // The free map must be there before the bits are cleared: a map that is built later would count the blocks
        // as usable at once. From here on it may be packed, not dropped.
        if self.with_buddy(g, |state, _| state.pins += freed.len).is_none() {
            return Ok(());
        }
        let bufs = self.block_bufs(g);
        let mut state = self.groups[g].lock();
        let range = (freed.start, freed.len);
        let changed = bufs.and_then(|bufs| self.change_bits(handle, g, &mut state, &bufs, range, false));
        if let Err(error) = changed {
            state.unpin(freed.len);
            self.fail_group(g, state, &error);
            // Whoever frees has taken the blocks out of his map: that they leak is all that can be done.
            return if matches!(error, AllocError::Format(_)) { Ok(()) } else { Err(error) };
        }
        state.trimmed = None;
        drop(state);
        self.counters().freed(i64::from(freed.len));
        self.pending.lock().add(handle.tid(), freed);
        Ok(())
    }

    pub(crate) fn make_usable(&self, freed: Taken) {
        if self.discard.load(Ordering::Relaxed) {
            self.discard_range(freed);
        }
        self.give_back(freed);
        if self.is_low(freed.group as usize) {
            // Before they are usable: who is promised some of them must be able to take them.
            self.return_low(freed.len.into());
        }
        self.counters().committed(i64::from(freed.len));
    }

    /// Discards clusters that nobody can use at the moment. A device that cannot is not asked again.
    fn discard_range(&self, range: Taken) {
        let log = self.geo.log_block_size();
        let start = self.geo.block_of_bit(extant_format::GroupNr(range.group), range.start).0;
        let blocks = u64::from(range.len) << self.geo.log_cluster_ratio();
        let end = (start + blocks).min(self.geo.blocks_count());
        if let Err(error) = self.device.discard(start << log, (end - start) << log) {
            tracing::warn!("discard of blocks {start} to {end} failed, turned off: {error}");
            self.discard.store(false, Ordering::Relaxed);
        }
    }
}

impl CommitObserver for Allocator {
    fn committed(&self, tid: Tid) {
        let freed = self.pending.lock().take_until(tid);
        for range in freed {
            self.make_usable_unless_held(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pending, Taken};
    use extant_format::Tid;

    const fn taken(start: u32, len: u32) -> Taken {
        Taken { group: 3, start, len }
    }

    #[test]
    fn runs_are_joined_and_leave_with_their_transaction() {
        let mut pending = Pending::default();
        pending.add(Tid(7), taken(10, 2));
        pending.add(Tid(7), taken(12, 2));
        pending.add(Tid(7), taken(8, 2));
        pending.add(Tid(8), taken(100, 1));
        pending.add(Tid(7), taken(50, 1));
        assert_eq!(pending.newest(), Some(Tid(8)));
        assert_eq!(pending.take_until(Tid(6)), []);
        assert_eq!(pending.take_until(Tid(7)), [taken(8, 6), taken(50, 1)]);
        assert_eq!(pending.take_until(Tid(8)), [taken(100, 1)]);
        assert_eq!(pending.newest(), None);
    }

    #[test]
    fn order_survives_the_wrap_of_transaction_numbers() {
        let mut pending = Pending::default();
        pending.add(Tid(0), taken(2, 1));
        pending.add(Tid(u32::MAX), taken(1, 1));
        assert_eq!(pending.take_until(Tid(u32::MAX)), [taken(1, 1)]);
        assert_eq!(pending.take_until(Tid(1)), [taken(2, 1)]);
    }
}
