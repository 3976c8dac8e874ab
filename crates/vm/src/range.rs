//! Operations on ranges: truncate, punch, moving blocks, invalidate, and dropping everything.

use std::ops::Range;

use extant_sync::Arc;

use crate::Host;
use crate::mutant::without;
use crate::page::{Blocks, Kind, Page};
use crate::space::{AddressSpace, ExclusiveGuard, Gate, forget, runs_of};

/// What a range operation threw away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Dirty bytes, whole blocks, that will never be written.
    pub dirty_bytes: u64,
    /// Of these, bytes that had no place on disk yet; their reservation was given back.
    pub delayed_bytes: u64,
}

impl AddressSpace {
    /// Brings the cache and `i_size` to `size`. The caller then changes the map in a handle of its own; with `size` smaller,
    /// nothing from its block on is in the cache, and the rest of a last partial block is zero in the cache and dirty. With
    /// `size` larger, the rest of the old last block is. (Who grows a file and can fail afterwards calls
    /// [`Self::prepare_growth`], and sets `i_size` last of all.)
    ///
    /// The caller holds the inode lock exclusively; takes the gate, page locks, [`Host::unreserve`].
    ///
    /// # Errors
    /// From reading a partial block, the map's, the system's; then nothing is changed.
    pub fn truncate<H: Host>(
        &self,
        guard: &ExclusiveGuard<'_>,
        host: &H,
        size: u64,
    ) -> Result<Dropped, H::Error> {
        let old = host.size();
        if size >= old {
            self.prepare_growth(guard, host, size)?;
            host.set_size(size);
            self.grown(old, size);
            return Ok(Dropped::default());
        }
        let block = u64::from(self.cache.geometry().block_size());
        let gone = size.next_multiple_of(block)..u64::MAX;
        // What can fail comes before a byte changes.
        self.hide(&gone)?;
        self.hold_shown(guard, host, &gone)?;
        self.zero_tail(host, size)?;
        let gate = self.gate();
        host.set_size(size);
        let dropped = self.zero_blocks(host, &gate, gone);
        // It stays too long if this fails: an access past the end is then a fault, which finds that.
        if let Some(mmu) = self.mmu()
            && mmu.resize(size).is_ok()
            && let Some(pages) = self.pages_of(&(size.next_multiple_of(block)..u64::MAX))
        {
            self.copies_gone(&pages);
        }
        Ok(dropped)
    }

    /// Everything that growing a file to `size` needs but `i_size` itself, which the caller raises while it still holds the guard: the
    /// rest of the old last block zero, the memory file of mappings long enough, and stores to the page with the old end faults
    /// again, which wait for the guard.
    ///
    /// # Errors
    /// From reading a partial block; the system's.
    pub fn prepare_growth<H: Host>(
        &self,
        guard: &ExclusiveGuard<'_>,
        host: &H,
        size: u64,
    ) -> Result<(), H::Error> {
        if self.is_dax() {
            return self.dax_growth(guard, host, size);
        }
        let old = host.size();
        self.zero_tail(host, old)?;
        self.grow_memory(size)?;
        let end = self.mmu().and_then(|_| self.cache.geometry().page_of(old));
        if let Some(end) = end.and_then(|page| self.lock_present(page)) {
            self.settle_old_end(&end.pages[0], old)?;
        }
        Ok(())
    }

    /// Makes the bytes `range` read as zeros as far as the cache is concerned: blocks at the edges that are covered in part are
    /// zeroed (and dirty), whole ones leave the cache. The caller then takes the whole blocks out of the map, or converts them, and
    /// keeps the gate that this returns until that is done: a device may put something into them as soon as they are zeros, and whoever
    /// finds that (fsync) would give it the place that the map still has, which is about to go (test
    /// `transfers::a_device_while_the_map_changes`).
    ///
    /// The caller holds the inode lock exclusively; takes the gate, page locks, [`Host::unreserve`].
    ///
    /// # Errors
    /// From reading a partial block, the map's, the system's; then nothing is changed. From zeroing on the device; then nothing is
    /// dropped.
    pub fn punch<H: Host>(
        &self,
        guard: &ExclusiveGuard<'_>,
        host: &H,
        range: Range<u64>,
    ) -> Result<Gate<'_>, H::Error> {
        let block = u64::from(self.cache.geometry().block_size());
        let Some(first_whole) = range.start.checked_next_multiple_of(block) else {
            return Ok(self.gate());
        };
        let end_whole = range.end - range.end % block;
        if first_whole > end_whole {
            // Inside of one block.
            self.zero_in_block(host, range.start, range.end)?;
            return Ok(self.gate());
        }
        // What can fail comes before a byte changes.
        self.hide(&(first_whole..end_whole))?;
        self.hold_shown(guard, host, &(first_whole..end_whole))?;
        let edges = [range.start..first_whole, end_whole..range.end];
        let edges = || edges.iter().filter(|edge| !edge.is_empty());
        for edge in edges() {
            self.read_block_part(host, edge)?;
        }
        for edge in edges() {
            self.zero_in_block(host, edge.start, edge.end)?;
        }
        let gate = self.gate();
        self.zero_blocks(host, &gate, first_whole..end_whole);
        self.give_back(&(first_whole..end_whole));
        Ok(gate.unless(without!(self.cache, PunchGated)))
    }

    /// The gate, with no block of `range` (bytes) delayed: what was is written. For who gives places to holes of the range, and keeps the
    /// gate until they have them: who looks for what a device has put there (fsync) makes such a hole delayed, and it would have two.
    ///
    /// The caller holds the inode lock exclusively; takes the gate, page locks, and what writing takes.
    ///
    /// # Errors
    /// From writing.
    pub fn place_delayed<H: Host>(
        &self,
        _guard: &ExclusiveGuard<'_>,
        host: &H,
        range: Range<u64>,
    ) -> Result<Gate<'_>, H::Error> {
        loop {
            self.sync(host, range.clone())?;
            let gate = self.gate();
            // Each time round is one more hole that has got its place.
            if !self.has_delayed(&range) || without!(self.cache, DelayedLooked) {
                return Ok(gate);
            }
        }
    }

    /// Whether a block of `range` (bytes) is delayed. Under the gate none is on its way to a place.
    fn has_delayed(&self, range: &Range<u64>) -> bool {
        let geo = self.cache.geometry();
        let Some(pages) = self.pages_of(range).filter(|_| self.is_dirty()) else { return false };
        let mut found = false;
        self.index.read().each_from(pages.start, |page| {
            if page.index >= pages.end {
                return false;
            }
            let start = geo.page_start(page.index);
            let inside = |byte: u64| byte.saturating_sub(start).min(geo.page_size() as u64) as usize;
            let (first, end) = (inside(range.start), inside(range.end));
            found = first < end && page.state().has(Kind::Delayed) & geo.touched(first, end) != 0;
            !found
        });
        found
    }

    /// Whether a page is pinned that has bytes from `start` on. Who holds `invalidate_lock` exclusively knows that none will be.
    pub fn has_pins(&self, _guard: &ExclusiveGuard<'_>, start: u64) -> bool {
        // The pages are many, and pins are seldom.
        if self.is_dax() || !self.is_pinned() {
            return self.is_pinned();
        }
        let Some(first) = self.cache.geometry().page_of(start) else { return false };
        let mut found = false;
        self.index.read().each_from(first, |page| {
            found = page.is_pinned() && !without!(self.cache, PinSeen);
            !found
        });
        found
    }

    /// Before blocks from byte `start` (a multiple of the block size) on move to other places in the file: what is dirty there is
    /// written, then all of it leaves the cache and the mappings. Until the gate that this returns is dropped nothing of the file is
    /// written or finds a place; the caller moves the blocks and says so ([`Self::moved`]).
    ///
    /// The caller holds the inode lock exclusively and has found no pin ([`Self::has_pins`]); takes the gate, page locks, and what
    /// writing takes.
    ///
    /// # Errors
    /// From writing; the system's. Then nothing has left the cache.
    pub fn take_out<H: Host>(
        &self,
        _guard: &ExclusiveGuard<'_>,
        host: &H,
        start: u64,
    ) -> Result<Gate<'_>, H::Error> {
        let gone = start..u64::MAX;
        // Under the gate, since an fsync finds changes without a fault, and makes pages dirty, at any time; and what a device has put there
        // since the last look is found, or would be gone (test `faults::a_transfer_before_blocks_move`).
        let gate = loop {
            let gate = self.gate();
            if !without!(self.cache, MoveDropped) {
                // Then nobody can make a device store to them any more.
                self.hide(&gone)?;
            }
            if !without!(self.cache, MoveLooks) {
                self.find_unseen_under(&gate, host, gone.clone())?;
            }
            let dirty = self.is_dirty() && self.next_dirty(gone.clone()).is_some();
            if !dirty || without!(self.cache, MoveWritten) {
                break gate;
            }
            drop(gate);
            self.sync(host, gone.clone())?;
        };
        if without!(self.cache, MoveDropped) {
            return Ok(gate);
        }
        self.drop_blocks(host, &gate, gone);
        let page = self.cache.geometry().page_size() as u64;
        self.give_back(&(start..host.size().next_multiple_of(page)));
        Ok(gate)
    }

    /// Ends what [`Self::take_out`] began: the blocks have moved, and the file has `size` bytes now.
    pub fn moved<H: Host>(&self, _guard: &ExclusiveGuard<'_>, host: &H, size: u64) {
        let old = host.size();
        host.set_size(size);
        if size >= old {
            self.grown(old, size);
        } else if let Some(mmu) = self.mmu() {
            // As in a truncate: an access past the end is a fault, which finds that.
            let _ = mmu.resize(size);
        }
    }

    /// Takes clean pages that touch `range` out of the cache; whether none is left. For direct I/O, after [`Self::sync`] of the
    /// range. Takes the gate and page locks. A fill under way is waited for, so nothing that was read from the device before
    /// this call stays; later ones are only kept away by whoever holds `invalidate_lock` exclusively.
    ///
    /// A clean page stays, too, that has changed without a fault, or to which a transfer may be under way: what it brings would be read
    /// over, and be gone.
    pub fn invalidate(&self, range: Range<u64>) -> bool {
        let geo = self.cache.geometry();
        let _gate = self.gate();
        let mut before = None;
        let mut none_left = true;
        let mut at = geo.page_of(range.start);
        while let Some(from) = at {
            let next = self.index.read().next_present(from).filter(|n| geo.page_start(*n) < range.end);
            let Some(next) = next else { break };
            if let Some(locked) = self.lock_present(next) {
                let page = &locked.pages[0];
                if page.state().has(Kind::Dirty) == 0 && !page.is_of_file() {
                    self.detach(page);
                } else if page.state().has(Kind::Dirty) > 0
                    || self.is_target(page, &mut before)
                    || self.forget_page(page).is_err()
                {
                    none_left = false;
                }
            }
            at = next.checked_add(1);
        }
        none_left
    }

    /// Says that a mapping may write the page that holds byte `at` from now on, if it is in memory and uptodate: it is
    /// written from a copy, whatever comes. Whether it is.
    pub fn mark_write_mapped(&self, at: u64) -> bool {
        let geo = self.cache.geometry();
        let Some(locked) = geo.page_of(at).and_then(|index| self.lock_present(index)) else { return false };
        let uptodate = locked.pages[0].is_uptodate(geo.all_blocks());
        if uptodate {
            locked.pages[0].mark_write_mapped();
        }
        uptodate
    }

    /// Takes all pages out, dirty or not: for an inode that is being evicted, or whose filesystem is shut down. Takes the gate,
    /// page locks, [`Host::unreserve`].
    pub fn drop_all<H: Host>(&self, host: &H) -> Dropped {
        let gate = self.gate();
        // An inode that is evicted has no mappings; those of a filesystem that was shut down may go on showing what they have, and a
        // store there reaches nothing.
        let _ = self.hide(&(0..u64::MAX));
        self.drop_blocks(host, &gate, 0..u64::MAX)
    }

    /// Takes the whole blocks of `range` (multiples of the block size, or no end) out of the cache. Under the gate no page is in
    /// writeback, so no block is claimed.
    pub(crate) fn drop_blocks<H: Host>(&self, host: &H, gate: &Gate<'_>, range: Range<u64>) -> Dropped {
        self.take_blocks(host, gate, range, |page, set| self.forget_blocks(page, set))
    }

    /// The same for blocks that are zeros from now on. In pages of a mapped file that keep other blocks they are there, as zeros: what a
    /// device puts into them from now on is the file's.
    fn zero_blocks<H: Host>(&self, host: &H, gate: &Gate<'_>, range: Range<u64>) -> Dropped {
        let geo = self.cache.geometry();
        self.take_blocks(host, gate, range, |page, set| {
            if !page.is_of_file() {
                return self.forget_blocks(page, set);
            }
            let may_change = self.may_change_unseen(page);
            for run in runs_of(set) {
                let at = geo.block_bytes(run.start) as usize;
                page.mem().zero(at, geo.block_bytes(run.end) as usize - at);
            }
            let there = page.state().has(Kind::Uptodate) & set;
            page.update(|s| forget(s, set).with(Kind::Uptodate, there));
            page.sums.forget(set);
            if may_change {
                self.note_zeros(page, set);
            }
        })
    }

    /// `part` does with blocks of a page that stays what is to be done.
    fn take_blocks<H: Host>(
        &self,
        host: &H,
        _gate: &Gate<'_>,
        range: Range<u64>,
        part: impl Fn(&Page, Blocks),
    ) -> Dropped {
        let geo = self.cache.geometry();
        let mut dropped = Dropped::default();
        let mut at = geo.page_of(range.start);
        while let Some(from) = at {
            let next = self.index.read().next_present(from).filter(|n| geo.page_start(*n) < range.end);
            let Some(next) = next else { break };
            if let Some(locked) = self.lock_present(next) {
                let start = geo.page_start(next);
                let inside = |byte: u64| byte.saturating_sub(start).min(geo.page_size() as u64) as usize;
                let (first, end) = (inside(range.start), inside(range.end));
                let set = if first < end { geo.touched(first, end) } else { 0 };
                let page = Arc::clone(&locked.pages[0]);
                let state = page.state();
                debug_assert!(!state.in_writeback(), "the gate is held: {page:?}");
                let delayed = state.has(Kind::Delayed) & set;
                let dirty = state.has(Kind::Dirty) & set;
                if set == geo.all_blocks() {
                    self.detach(&page);
                } else {
                    part(&page, set);
                }
                self.unreserve(host, next, delayed);
                dropped.delayed_bytes += geo.block_bytes(delayed.count_ones());
                dropped.dirty_bytes += geo.block_bytes(dirty.count_ones());
            }
            at = next.checked_add(1);
        }
        self.unlist_if_clean();
        dropped
    }
}
