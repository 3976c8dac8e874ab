//! Pages in the memory of a file that programs have mapped: what writeback, reclaim, growth and direct I/O do differently there.
//!
//! Memory of such a page is given back only under exclusive `invalidate_lock`, or by reclaim when nothing but the index refers to
//! the page: whoever copies from one holds `invalidate_lock` shared (readers), or what keeps range operations away.

use std::io;
use std::ops::Range;

use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use extant_sys::{MemSlice, PageMem};

use crate::Host;
use crate::fault::show_inline;
use crate::looks::Before;
use crate::mutant::without;
use crate::page::{Blocks, Kind, LockedPages, Page};
use crate::space::{AddressSpace, ExclusiveGuard, Gate, forget};
use crate::sums::of_block;

/// So many pages are looked at before it is asked whether that can be for the last time; asking costs as much.
const ASKED_FOR: usize = if cfg!(feature = "shuttle") { 1 } else { 256 };

/// Bytes of a file of which what is clean moves along when the file leaves its memory: copying costs less than reading it again.
const MOVED_CLEAN: usize = 1 << 20;

/// The lock of page 0 of an inode that has mappings, for who changes content that is kept in the inode, or moves it to blocks.
pub struct InlineGuard<'a> {
    space: &'a AddressSpace,
    first: Option<LockedPages<'a>>,
}

impl InlineGuard<'_> {
    /// Makes page 0, if a mapping may show it, show this content of the inode.
    pub fn refresh(&self, content: &[u8]) {
        let all = self.space.cache.geometry().all_blocks();
        for page in self.first.iter().flat_map(|first| &first.pages) {
            if page.is_uptodate(all) {
                show_inline(page, all, content);
            }
        }
    }

    /// Says that the content, of `len` bytes, has moved to blocks: page 0, if it shows it, has places for these.
    pub fn moved(&self, len: u64) {
        let geo = self.space.cache.geometry();
        for page in self.first.iter().flat_map(|first| &first.pages) {
            if page.is_uptodate(geo.all_blocks()) && len > 0 {
                let set = geo.touched(0, (len as usize).min(geo.page_size()));
                page.update(|s| s.with(Kind::Backed, set));
            }
        }
    }
}

impl AddressSpace {
    /// Locks page 0 (50) against faults, which move content out of the inode without the inode lock. Nothing is locked while the
    /// inode never had a mapping. The caller holds the inode lock exclusively, and nothing from 50 on.
    #[track_caller]
    pub fn lock_inline(&self) -> InlineGuard<'_> {
        // In DAX mode content is not in the inode, and does not go there.
        let first = self.mmu().filter(|_| !self.is_dax()).map(|_| self.lock_or_create(0, 0));
        InlineGuard { space: self, first }
    }

    /// Makes the memory file large enough for a file of `size` bytes, before `i_size` grows to that. Nothing to do without mappings.
    ///
    /// # Errors
    /// The system's.
    pub fn grow_memory(&self, size: u64) -> io::Result<()> {
        match self.mmu() {
            Some(mmu) if size > 0 => mmu.resize(size),
            _ => Ok(()),
        }
    }

    /// After the size of content that is kept in the inode has changed: no page shows the old one, and the memory file has the new
    /// size. Under exclusive `invalidate_lock`.
    ///
    /// # Errors
    /// The system's; then a mapping may go on showing the old content.
    pub fn inline_resized<H: Host>(&self, _guard: &ExclusiveGuard<'_>, host: &H) -> io::Result<()> {
        let Some(mmu) = self.mmu() else { return Ok(()) };
        if let Some(locked) = self.lock_present(0) {
            mmu.unmap(0..1)?;
            self.forget_blocks(&locked.pages[0], self.cache.geometry().all_blocks());
        }
        mmu.resize(host.size())
    }

    /// Nothing is known any more of blocks of a locked page.
    pub(crate) fn forget_blocks(&self, page: &Page, set: Blocks) {
        page.update(|s| forget(s, set));
        page.sums.forget(set);
    }

    /// The page with the end of the file when that lies inside it and before page `first`, locked: `i_size` will pass it. Only for
    /// an inode with mappings.
    #[track_caller]
    pub(crate) fn lock_old_end(&self, size: u64, first: u32) -> Option<LockedPages<'_>> {
        self.mmu().filter(|_| !self.is_dax())?;
        let geo = self.cache.geometry();
        let page = geo.page_of(size).filter(|p| *p < first && geo.in_page(size) > 0)?;
        // Also one that is not there yet: a store must not bring it before `i_size` has moved.
        Some(self.lock_or_create(page, page))
    }

    /// Before `i_size` leaves `size`, inside a locked page: stores fault again, since more blocks of the page are the file's now, and
    /// what programs stored past the end is gone.
    pub(crate) fn settle_old_end(&self, page: &Arc<Page>, size: u64) -> io::Result<()> {
        let geo = self.cache.geometry();
        let from = geo.in_page(size);
        let Some(mmu) = self.mmu().filter(|_| page.state().was_write_mapped() && from > 0) else {
            return Ok(());
        };
        if !without!(self.cache, OldEndProtected) {
            mmu.protect(page.index..page.index + 1)?;
        }
        if without!(self.cache, OldEndZeroed) {
            return Ok(());
        }
        let may_change = self.may_change_unseen(page);
        page.mem().zero(from, geo.page_size() - from);
        if may_change {
            self.note_zeros(page, crate::page::blocks(geo.blocks_up(from)..geo.blocks_per_page()));
        }
        Ok(())
    }

    /// Whether a device may have a locked page as a target. To be asked before what is known of its blocks is forgotten.
    pub(crate) fn may_change_unseen(&self, page: &Page) -> bool {
        let state = page.state();
        state.was_write_mapped()
            && (state.has(Kind::Dirty) != 0 || page.sums.noted() != 0 || page.is_pinned())
    }

    /// Blocks of a locked page that [may change](Self::may_change_unseen) have become zeros that are clean, and no mapping has the right
    /// to store to them: what a device that had taken the page as a target before, or has it pinned, puts there from now on is found,
    /// also what it has put there since they were zeroed (tests `transfers::growth_against_a_device`,
    /// `transfers::punch_of_blocks_against_a_device`, `transfers::a_device_beside_zeroing`).
    pub(crate) fn note_zeros(&self, page: &Page, set: Blocks) {
        if !without!(self.cache, GainedSummed) {
            let size = self.cache.geometry().block_size() as usize;
            page.sums.note_zeros(set & page.state().has(Kind::Uptodate), size);
        }
    }

    /// Notes the checksums of blocks of a page, as they are in `mem`.
    pub(crate) fn note_sums(&self, page: &Page, mem: MemSlice<'_>, set: Blocks) {
        page.sums.note(mem, set, self.cache.geometry().block_size() as usize);
    }

    /// After `i_size` has grown from `old`: pages that an access was refused for, because they were past the end, are asked for again.
    pub fn grown(&self, old: u64, new: u64) {
        if let (Some(mmu), Some(pages)) = (self.mmu(), self.pages_of(&(old..new))) {
            mmu.heal(pages);
        }
    }

    /// Takes pages away from all mappings, before the blocks of `range` (bytes) are dropped. Under exclusive `invalidate_lock`: they
    /// do not come back.
    pub(crate) fn hide(&self, range: &Range<u64>) -> io::Result<()> {
        self.takes();
        if without!(self.cache, PartHidden) {
            return Ok(());
        }
        let (Some(mmu), Some(pages)) = (self.mmu(), self.pages_of(range)) else { return Ok(()) };
        if self.is_dax() {
            mmu.hide_device(pages.clone())?;
        }
        mmu.unmap(pages)
    }

    /// Gives back the memory of the pages that lie wholly in `range`, none of which is in the index. Under exclusive
    /// `invalidate_lock`. A failure wastes memory and nothing else: no mapping has the pages, and they are filled before one gets
    /// them.
    pub(crate) fn give_back(&self, range: &Range<u64>) {
        let geo = self.cache.geometry();
        let Some(mmu) = self.mmu() else { return };
        let size = geo.page_size() as u64;
        let first = range.start.div_ceil(size);
        let end = if range.end == u64::MAX { u64::from(u32::MAX) } else { range.end / size };
        if let (Ok(first), Ok(end)) = (u32::try_from(first), u32::try_from(end))
            && first < end
            && mmu.discard(first..end).is_ok()
        {
            self.copies_gone(&(first..end));
        }
    }

    /// The pages that `range` touches.
    pub(crate) fn pages_of(&self, range: &Range<u64>) -> Option<Range<u32>> {
        let geo = self.cache.geometry();
        let first = geo.page_of(range.start)?;
        let last = geo.page_of(range.end.checked_sub(1)?).unwrap_or(u32::MAX - 1);
        (first <= last).then(|| first..last.saturating_add(1))
    }

    /// Locks the pages of a batch of writeback and takes the right to store away from their mappings; those that could be written by
    /// one. Runs of neighbours cost one call.
    pub(crate) fn protect_batch(&self, pages: &[Arc<Page>]) -> io::Result<()> {
        let Some(mmu) = self.mmu() else { return Ok(()) };
        let mut storable = pages.iter().filter(|p| p.is_of_file() && p.state().was_write_mapped()).peekable();
        while let Some(first) = storable.next() {
            let mut end = first.index + 1;
            while storable.next_if(|p| p.index == end).is_some() {
                end += 1;
            }
            mmu.protect(first.index..end)?;
        }
        Ok(())
    }

    /// Pages of the file that reclaim has locked, all clean, leave; how many. Not those that somebody refers to, that are not what was
    /// written of them, or to which a transfer may be under way: it would end in memory that is nobody's (test
    /// `transfers::reclaim_against_a_transfer`), unless there are twice as many as allowed.
    pub(crate) fn let_go(&self, mut pages: Vec<Arc<Page>>) -> usize {
        // Asked once, with the pages locked: none of them can become a target from here on.
        let mut before = None;
        let mut in_doubt = self.cache.leave_in_doubt();
        pages.retain(|page| {
            let target = !without!(self.cache, ReclaimQuiet) && self.may_be_target(page, &mut before);
            let stays = target && in_doubt == 0;
            if stays {
                self.cache.pause.keep();
            }
            let changed = if stays { 0 } else { self.changed_unseen(page) };
            in_doubt -= usize::from(target && !stays && changed == 0);
            if changed != 0 && changed & !page.state().has_space() == 0 {
                self.dirty_again(page, changed);
            }
            if stays || changed != 0 {
                page.unlock(&self.cache.waits);
            }
            !stays && changed == 0
        });
        {
            // Under its lock no reader gets a reference, and from here on none finds anything.
            let _index = self.index.write();
            pages.retain(|page| {
                // The index and this list.
                let leaves = Arc::strong_count(page) <= 2 || without!(self.cache, LeaveUsed);
                if leaves {
                    page.update(|s| forget(s, self.cache.geometry().all_blocks()));
                } else {
                    page.unlock(&self.cache.waits);
                }
                leaves
            });
        }
        self.leave(&pages)
    }

    /// Whether a locked, clean page has something, or may get something, that no fault told of; as [`Self::may_be_target`].
    pub(crate) fn is_target(&self, page: &Page, before: &mut Option<Before>) -> bool {
        if without!(self.cache, TargetStays) {
            return false;
        }
        self.may_be_target(page, before) || self.changed_unseen(page) != 0
    }

    /// Whether a locked, clean page may get something that no fault tells of. What is under way is asked for once. Under the
    /// gate, or with the pages locked before that: no mapping has the right to store to a clean one then.
    fn may_be_target(&self, page: &Page, before: &mut Option<Before>) -> bool {
        let Some(mmu) = self.mmu().filter(|_| page.sums.noted() != 0) else { return false };
        page.sums.noted_at() >= *before.get_or_insert_with(|| self.cache.look(&**mmu).1)
    }

    /// Gives back the memory of locked pages that no reader finds any more, and takes them out of the index; how many.
    fn leave(&self, leaving: &[Arc<Page>]) -> usize {
        let Some(mmu) = self.mmu().filter(|_| !leaving.is_empty()) else { return 0 };
        let mut rest = leaving;
        while let Some(first) = rest.first() {
            let run = rest.iter().zip(first.index..).take_while(|(p, at)| p.index == *at).count();
            // A failure wastes memory until it is filled again; but a mapping may still show it.
            if mmu.discard(first.index..first.index + run as u32).is_err() {
                let _ = mmu.unmap(first.index..first.index + run as u32);
            }
            rest = &rest[run..];
        }
        let mut index = self.index.write();
        let mut unmarked = 0;
        for page in leaving {
            page.detach();
            unmarked += usize::from(index.remove(page.index).is_some_and(|(_, marked)| marked));
            page.unlock(&self.cache.waits);
        }
        drop(index);
        self.cache.detached(leaving.len());
        self.cleaned(unmarked);
        leaving.len()
    }

    /// For direct I/O: a clean page is shown by no mapping and known in no block. Under its lock; its memory stays, since somebody may
    /// be copying from it.
    pub(crate) fn forget_page(&self, page: &Page) -> io::Result<()> {
        if let Some(mmu) = self.mmu() {
            mmu.unmap(page.index..page.index + 1)?;
        }
        self.forget_blocks(page, self.cache.geometry().all_blocks());
        Ok(())
    }

    /// Takes everything out of the memory of the file and lets go of that, until `Mmu::memory` is to be had again; `false`: a pin
    /// keeps it, or what a device put into a hole where there is no space for it. What is dirty moves to memory of the cache, and of a small
    /// file what is clean too; of a large one that is read again.
    /// For a file that no mapping shows: one that does sees nothing any more, and its faults begin anew. The caller holds the inode lock
    /// exclusively, and nothing from 30 on.
    pub fn leave_memory<H: Host>(&self, host: &H) -> bool {
        let Some(mmu) = self.mmu() else { return true };
        let _guard = self.exclusive();
        let _gate = self.gate();
        if mmu.unmap(0..u32::MAX).is_err() {
            return false;
        }
        let keep_clean = self.page_count() <= MOVED_CLEAN / self.cache.geometry().page_size();
        let mut at = Some(0);
        while let Some(from) = at {
            let Some(next) = self.index.read().next_present(from) else { break };
            at = next.checked_add(1);
            if let Some(locked) = self.lock_present(next)
                && !self.leave_page(host, locked, keep_clean)
            {
                return false;
            }
        }
        if self.has_shown() && !without!(self.cache, ShownRemembered) {
            // Before anybody may forget the inode.
            self.cache.remember(host.number(), mmu);
        }
        mmu.release();
        self.copies_gone(&(0..u32::MAX));
        true
    }

    /// The same for one page; `false`: it stays. Under the gate it is in no writeback.
    fn leave_page<H: Host>(&self, host: &H, mut locked: LockedPages<'_>, keep_clean: bool) -> bool {
        let page = Arc::clone(&locked.pages[0]);
        if page.is_pinned() {
            return false;
        }
        if !page.is_of_file() {
            return true;
        }
        if !without!(self.cache, LeftWithChanges) && self.accept_unseen(host, &page).is_err() {
            return false;
        }
        if keep_clean || page.state().has(Kind::Dirty) != 0 {
            self.exchange(&mut locked, 0, self.cache.bounce());
        } else {
            self.detach(&page);
        }
        true
    }

    /// Gives a locked page, which is in no writeback, other memory with the same content.
    pub(crate) fn exchange(&self, locked: &mut LockedPages<'_>, slot: usize, mem: PageMem) {
        let old = Arc::clone(&locked.pages[slot]);
        mem.mem().copy_from_mem(0, old.mem());
        let new = Arc::new(old.moved_to(mem));
        {
            let mut index = self.index.write();
            old.detach();
            index.replace(Arc::clone(&new));
        }
        locked.pages[slot] = new;
        // Who waits for it finds it gone, and looks for the new one.
        old.unlock(&self.cache.waits);
    }

    /// The clean blocks of a locked page that are not what was written of them last.
    pub(crate) fn changed_unseen(&self, page: &Page) -> Blocks {
        if without!(self.cache, UnseenFound) {
            return 0;
        }
        let size = self.cache.geometry().block_size() as usize;
        let changed =
            |block: &u32| page.sums.of(*block).is_some_and(|sum| sum != of_block(page.mem(), *block, size));
        let suspects = page.suspects();
        (0..4)
            .filter(|block| suspects & 1 << block != 0)
            .filter(changed)
            .fold(0, |set, block| set | 1 << block)
    }

    /// Looks at all clean blocks of `range` (bytes) whose checksum is known, and makes those dirty that have changed without a fault: a
    /// transfer into a mapping, begun before the last writeback and over after it, leaves no other trace. A page that has not, and to
    /// which no transfer can be under way, needs no second look: it changes no more without a fault. Takes the gate (40), page locks
    /// (50) one at a time, and what [`Host::reserve`] takes.
    ///
    /// # Errors
    /// Where there is no space for a hole that has changed, the first of them; it is remembered in [`Self::errors`], and what has changed
    /// is found again.
    pub fn find_unseen_changes<H: Host>(&self, host: &H, range: Range<u64>) -> Result<(), H::Error> {
        if self.mmu().is_none() {
            return Ok(());
        }
        let gate = self.gate();
        self.find_unseen_under(&gate, host, range)
    }

    /// The same under the gate: nothing is written meanwhile, so the mappings had lost the right to store to what is found here before it
    /// is asked what is under way.
    pub(crate) fn find_unseen_under<H: Host>(
        &self,
        _gate: &Gate<'_>,
        host: &H,
        range: Range<u64>,
    ) -> Result<(), H::Error> {
        let Some(mmu) = self.mmu().filter(|_| !without!(self.cache, UnseenFound)) else { return Ok(()) };
        let Some(pages) = self.pages_of(&range) else { return Ok(()) };
        let mut suspects = Vec::new();
        self.index.read().each_from(pages.start, |page| {
            if page.index >= pages.end {
                return false;
            }
            if page.suspects() != 0 {
                suspects.push(Arc::clone(page));
            }
            true
        });
        let many = suspects.len() >= ASKED_FOR;
        let quiet = || many && (without!(self.cache, SumsKept) || mmu.is_quiet());
        let quiet_before = !without!(self.cache, QuietFirst) && quiet();
        let mut result = Ok(());
        for page in suspects {
            // Waited for: a fault that only looks may have it, and what the caller does next must find the mark.
            let Some(_locked) = LockedPages::wait_for(Arc::clone(&page), &self.cache.waits) else { continue };
            if page.suspects() == 0 {
                continue;
            }
            self.cache.looked_at.fetch_add(1, Ordering::Relaxed);
            // Before the look: what wrote to it while it was pinned had ended when it was not.
            let pinned = page.is_pinned();
            let changed = self.changed_unseen(&page) & self.blocks_of_file(host, page.index);
            if changed != 0 {
                let found = self.accept_changed(host, &page, changed);
                result = result.and(found);
            } else if !pinned && (quiet_before || (without!(self.cache, QuietFirst) && quiet())) {
                page.sums.forget(self.cache.geometry().all_blocks());
            }
        }
        result.inspect_err(|error| self.remember_error::<H>(error))
    }

    /// Before a locked page goes elsewhere: what changed of it without a fault is dirty, and nothing is known any more of what was
    /// written.
    fn accept_unseen<H: Host>(&self, host: &H, page: &Arc<Page>) -> Result<(), H::Error> {
        let changed = self.changed_unseen(page) & self.blocks_of_file(host, page.index);
        if changed != 0 {
            self.accept_changed(host, page, changed)?;
        }
        page.sums.forget(self.cache.geometry().all_blocks());
        Ok(())
    }

    /// Makes blocks of a locked page dirty that changed without a fault; those that have no space get some.
    fn accept_changed<H: Host>(&self, host: &H, page: &Arc<Page>, changed: Blocks) -> Result<(), H::Error> {
        self.find_page_space(host, page, changed)?;
        self.dirty_again(page, changed);
        Ok(())
    }

    /// Makes blocks of a locked page dirty that have space.
    fn dirty_again(&self, page: &Arc<Page>, set: Blocks) {
        page.update(|s| s.with(Kind::Dirty, set));
        self.mark_dirty([page]);
    }
}
