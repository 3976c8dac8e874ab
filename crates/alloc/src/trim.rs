//! Trim (FITRIM) and lazy initialisation of inode tables: slow work on parts of groups that nobody may use meanwhile.
//!
//! Both take their blocks out of the game in memory first and hold no lock over the device's work.

use extant_format::{BgFlags, Corrupt, FormatError, GroupDesc, GroupNr, Pblk, Place, bitmap};
use extant_journal::{Buf, Handle};
use extant_sync::Arc;

use crate::allocator::Allocator;
use crate::error::{AllocError, Result};
use crate::group::GroupState;
use crate::window::Taken;

/// A part of an inode table that is being zeroed: no inode of it is handed out meanwhile.
#[derive(Debug)]
pub struct ItableZeroing {
    alloc: Arc<Allocator>,
    group: u32,
    /// Blocks still to be zeroed.
    start: Pblk,
    blocks: u64,
    done: bool,
}

impl Allocator {
    /// Discards free runs of at least `min_len` blocks within `[start, end)` and returns how many blocks that were.
    /// `stop` is asked between runs. Runs are claimed while the device works on them; nothing else is locked but what makes a
    /// claim wait for their return if it finds nothing else.
    ///
    /// # Errors
    /// The device's (EOPNOTSUPP where it cannot discard).
    pub fn trim(&self, start: Pblk, end: Pblk, min_len: u64, stop: &dyn Fn() -> bool) -> Result<u64> {
        let (lo, hi) =
            (start.0.max(u64::from(self.geo.first_data_block())), end.0.min(self.geo.blocks_count()));
        if lo >= hi {
            return Ok(0);
        }
        let log = self.geo.log_cluster_ratio();
        let min = u32::try_from(min_len.div_ceil(1 << log).max(1)).unwrap_or(u32::MAX);
        let first = self.geo.group_of_block(Pblk(lo)).map_or(0, |(g, _)| g.0);
        let last = self.geo.group_of_block(Pblk(hi - 1)).map_or(0, |(g, _)| g.0);
        let mut trimmed = 0;
        for g in first..=last {
            let base = self.geo.group_first_block(GroupNr(g)).0;
            let from = (lo.max(base) - base).div_ceil(1 << log) as u32;
            let len = self.geo.clusters_in_group(GroupNr(g));
            let to = ((hi - base) >> log).min(u64::from(len)) as u32;
            trimmed += u64::from(self.trim_group(g as usize, from, to, min, stop)?) << log;
            if stop() {
                break;
            }
        }
        Ok(trimmed)
    }

    fn trim_group(&self, g: usize, from: u32, to: u32, min: u32, stop: &dyn Fn() -> bool) -> Result<u32> {
        let whole = from == 0 && to == self.geo.clusters_in_group(self.group_nr(g));
        let done = self.groups[g].lock().trimmed.is_some_and(|shortest| min >= shortest);
        if done {
            return Ok(0);
        }
        if whole {
            // A free that comes while we work clears it again.
            self.groups[g].lock().trimmed = Some(min);
        }
        let (mut at, mut sum) = (from, 0);
        while at < to && !stop() {
            let _trimming = self.trimming.lock();
            let Some(Some(run)) = self.with_buddy(g, |state, g| take_run(state, g, at, to, min)) else {
                break;
            };
            at = run.start + run.len;
            let result = self.discard_taken(run);
            self.give_back(run);
            if let Err(error) = result {
                self.groups[g].lock().trimmed = None;
                return Err(error);
            }
            sum += run.len;
        }
        if at < to && stop() {
            self.groups[g].lock().trimmed = None;
        }
        Ok(sum)
    }

    fn discard_taken(&self, run: Taken) -> Result<()> {
        let log = self.geo.log_block_size();
        let start = self.geo.block_of_bit(GroupNr(run.group), run.start).0;
        let end = (start + (u64::from(run.len) << self.geo.log_cluster_ratio())).min(self.geo.blocks_count());
        Ok(self.device.discard(start << log, (end - start) << log)?)
    }

    /// Whether an inode table is left for [`Self::next_itable`].
    #[must_use]
    pub fn has_unzeroed_itable(&self) -> bool {
        let left = |group: &crate::group::Group| {
            let state = group.lock();
            !state.desc.flags.contains(BgFlags::INODE_ZEROED) && !state.inodes_corrupt
        };
        self.has_group_csum() && self.groups.iter().any(left)
    }

    /// The next group at or after `from` whose inode table is not zeroed, taken for zeroing. `None`: all are done.
    ///
    /// Call [`ItableZeroing::zero`] without a handle, then [`ItableZeroing::finish`] in one.
    ///
    /// # Errors
    /// The device's. A group whose descriptor contradicts its inode bitmap, or the inodes that every filesystem has, is reported
    /// and passed over.
    pub fn next_itable(self: &Arc<Self>, from: GroupNr) -> Result<Option<ItableZeroing>> {
        if !self.has_group_csum() {
            return Ok(None);
        }
        for g in from.0 as usize..self.groups.len() {
            if let Some(table) = self.take_itable(g)? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    fn take_itable(self: &Arc<Self>, g: usize) -> Result<Option<ItableZeroing>> {
        let (mut state, used) = loop {
            let Some(desc) = self.unzeroed(&self.groups[g].lock()) else { return Ok(None) };
            let map = match self.checked_inode_bitmap(g, &desc) {
                Err(AllocError::Format(_) | AllocError::CorruptGroup { .. }) => return Ok(None),
                map => map?,
            };
            let state = self.groups[g].lock();
            let Some(desc) = self.unzeroed(&state) else { return Ok(None) };
            if map.is_none() && !self.is_inode_uninit(&desc) {
                // It got its bitmap meanwhile.
                continue;
            }
            match self.used_itable(g, &desc, map.as_ref()) {
                Ok(used) => break (state, used),
                Err(error) => {
                    self.fail_inodes(g, state, &error.into());
                    return Ok(None);
                }
            }
        };
        let per_block = self.geo.inodes_per_block();
        let first_block = used.div_ceil(per_block);
        state.zeroing_from = Some((first_block * per_block).min(self.geo.inodes_per_group()));
        Ok(Some(ItableZeroing {
            alloc: Arc::clone(self),
            group: g as u32,
            start: Pblk(state.desc.inode_table.0 + u64::from(first_block)),
            blocks: u64::from(self.geo.itable_blocks().saturating_sub(first_block)),
            done: false,
        }))
    }

    /// The descriptor of a group whose table is to be zeroed and that nobody is zeroing.
    fn unzeroed(&self, state: &GroupState) -> Option<GroupDesc> {
        let skip = state.desc.flags.contains(BgFlags::INODE_ZEROED)
            || state.zeroing_from.is_some()
            || state.inodes_corrupt;
        (!skip).then_some(state.desc)
    }

    /// The group's inode bitmap once it was checked; `None` if it was never written. Reads; no lock held.
    fn checked_inode_bitmap(&self, g: usize, desc: &GroupDesc) -> Result<Option<Buf>> {
        if self.is_inode_uninit(desc) {
            return Ok(None);
        }
        self.inode_in_use(self.geo.ino_of(self.group_nr(g), 0))?;
        Ok(Some(self.cache.read(desc.inode_bitmap)?))
    }

    /// How many inodes at the table's start are or were used. What is behind them will be zeroed, so the descriptor's word alone
    /// does not do: the reserved inodes are there in every filesystem, and the bitmap knows of no inode behind.
    ///
    /// Under the group's lock; a group of which there is no bitmap (`map`) is INODE_UNINIT.
    fn used_itable(
        &self,
        g: usize,
        desc: &GroupDesc,
        map: Option<&Buf>,
    ) -> std::result::Result<u32, FormatError> {
        let (group, all) = (self.group_nr(g), self.geo.inodes_per_group());
        let used = if map.is_some() { all.saturating_sub(desc.itable_unused) } else { 0 };
        let wrong = |value: u32, expected: u32| {
            let (value, expected) = (u64::from(value), u64::from(expected));
            FormatError::corrupt(
                Place::GroupDesc(group),
                Corrupt::Mismatch { field: "bg_itable_unused", value, expected },
            )
        };
        let reserved = if g == 0 { (self.geo.first_ino().0 - 1).min(all) } else { 0 };
        if used < reserved {
            return Err(wrong(all - used, all - reserved));
        }
        match map.and_then(|map| map.with(|bytes| bitmap::find_one(bytes, used, all))) {
            Some(index) => Err(wrong(all - used, all - index - 1)),
            None => Ok(used),
        }
    }
}

impl ItableZeroing {
    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupNr {
        GroupNr(self.group)
    }

    /// Writes the zeroes and makes them durable. No lock is held.
    ///
    /// # Errors
    /// The device's.
    pub fn zero(&self) -> Result<()> {
        let log = self.alloc.geo.log_block_size();
        if self.blocks > 0 {
            self.alloc.cache.invalidate(self.start, self.blocks);
            self.alloc.device.write_zeroes(self.start.0 << log, self.blocks << log)?;
            self.alloc.device.flush()?;
        }
        Ok(())
    }

    /// Marks the table as zeroed. Takes the group's lock. Credits: 1.
    ///
    /// # Errors
    /// The journal's.
    pub fn finish(mut self, handle: &mut Handle) -> Result<()> {
        let g = self.group as usize;
        let (buf, offset) = self.alloc.desc_buf(g)?;
        let mut state = self.alloc.groups[g].lock();
        let mut desc = state.desc;
        desc.flags.insert(BgFlags::INODE_ZEROED);
        let written = self.alloc.write_desc(handle, self.group(), &mut state, desc, &buf, offset);
        state.zeroing_from = None;
        self.done = true;
        written
    }
}

impl Drop for ItableZeroing {
    fn drop(&mut self) {
        if !self.done {
            self.alloc.groups[self.group as usize].lock().zeroing_from = None;
        }
    }
}

/// Takes the next free run of at least `min` clusters in `[at, to)`.
fn take_run(state: &mut GroupState, g: usize, mut at: u32, to: u32, min: u32) -> Option<Taken> {
    while at < to {
        let run = state.map.buddy()?.next_run(at)?;
        let end = run.end.min(to);
        if run.start >= to {
            return None;
        }
        if end - run.start >= min {
            state.take(run.start, end - run.start);
            return Some(Taken { group: g as u32, start: run.start, len: end - run.start });
        }
        at = run.end;
    }
    None
}
