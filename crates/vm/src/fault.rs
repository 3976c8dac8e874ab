//! The fault engine: what a load or store through a mapping gets.
//!
//! Decided from the file's own state under its locks, never from what brought the fault: by the time a fault is looked at, the
//! page may have come, gone, or changed its kind. In order: freeze level 25 (stores), shared `invalidate_lock`, the lock of the page.
//! Under them the page is filled, a store gets space for every block of the page that the file has (exactly these: not one past
//! `i_size`), the page becomes dirty, and only then does the mapping see it. So a page that a mapping can store to is dirty, and
//! writeback, which takes the page's lock, first takes that right away.
//!
//! Nothing here waits for memory or for the dirty limit with a lock held, takes the inode lock, or touches a program's memory.

use std::ops::Range;

use extant_format::{Lblk, Tid};
use extant_sync::{Arc, Held, Rank, assert_nothing_held};

use crate::dax_fault::SyncLook;
use crate::grace::{SpaceHope, SpaceWait};
use crate::host::Backing;
use crate::index::PageIndex;
use crate::mmu::{Access, Fault, MapId, Mmu};
use crate::mutant::without;
use crate::page::{Blocks, Kind, LockedPages, Page};
use crate::space::{AddressSpace, ExclusiveGuard, SharedGuard, runs_of};
use crate::write::Span;
use crate::{Host, PageCache};

/// Pages that one fault maps at most.
const MOST: u32 = 512;
/// Bytes that a fault which follows no other one brings along.
const AROUND: u32 = 64 << 10;

/// What a program has said about its use of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MapAdvice {
    /// Nothing: streams are recognised.
    #[default]
    Normal,
    /// Pages are used in no order (MADV_RANDOM): each fault brings one.
    Random,
    /// From start to end (MADV_SEQUENTIAL): each fault brings as many as it may.
    Sequential,
}

/// A mapping as a fault in it sees it.
#[derive(Debug, Clone)]
pub struct MapView {
    /// Which one.
    pub id: MapId,
    /// The pages of the file that it shows: none beside them is brought along.
    pub pages: Range<u32>,
    /// How it is used.
    pub advice: MapAdvice,
    /// What it shows of a device is the file's after a crash (MAP_SYNC).
    pub sync: bool,
}

/// What a fault waits for, as a value with which it is asked again.
#[derive(Debug, Clone, Default)]
pub struct FaultWait {
    /// Blocks that are held.
    pub space: SpaceWait,
    /// A commit ([`MapView::sync`]).
    pub(crate) look: Option<SyncLook>,
    /// Nothing: how often it was refused a window since it was last asked. After the first time it gets one, however many there are.
    pub(crate) refused: u32,
}

/// What came of one go at a fault.
pub(crate) enum Go {
    /// It is answered.
    Done(Fault),
    /// It has to be between what comes before and after a store, and was not.
    AsStore,
    /// The mappings of the file show the device in too many pieces.
    TooMany,
    /// What is to be shown may not be the file's after a crash before this is durable, and the mapping promises that.
    NotDurable(Tid),
}

/// What the last fault of a kind was.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FaultAhead {
    next: u32,
    window: u32,
}

impl FaultAhead {
    /// How many pages a fault at `page` is to map, at least 1.
    fn window(&mut self, page: u32, least: u32, advice: MapAdvice) -> u32 {
        self.window = match advice {
            MapAdvice::Random => 1,
            MapAdvice::Sequential => MOST,
            MapAdvice::Normal if page == self.next && page > 0 => (self.window * 2).clamp(least.max(2), MOST),
            MapAdvice::Normal => least,
        };
        self.next = page.saturating_add(1);
        self.window
    }
}

impl AddressSpace {
    /// Answers a fault at `page` of the file in the mapping `view`. Tells no thread: when this returns [`Fault::Mapped`], the page
    /// is there, and whoever waits may be woken.
    ///
    /// The calling thread holds nothing. Takes 25 for a store, 30 shared, page locks, and what [`Host::map`], [`Host::reserve`] and
    /// [`Host::leave_inline`] take. An error becomes [`Fault::Sigbus`]; one that says more than that there is no space is told to
    /// [`Host::noted`], and damage to the next fsync as well.
    pub fn fault<H: Host>(&self, host: &H, view: &MapView, page: u32, access: Access) -> Fault {
        let fault = self.fault_and_stay(host, view, page, access);
        // What a read fault brought counts like what a read brought.
        let _ = self.cache.throttle();
        fault
    }

    /// The same for who has better things to do than to wait for blocks that are held, or a commit: [`Fault::AwaitsSpace`], and `wait`, with
    /// which it is asked again, says when ([`PageCache::may_have_space`]); [`Fault::Parked`], and [`Host::commit_map`] says when.
    pub fn fault_or_wait<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        page: u32,
        access: Access,
        wait: &mut FaultWait,
    ) -> Fault {
        let fault = self.fault_waiting(host, view, (page, access), wait, false);
        let _ = self.cache.throttle();
        fault
    }

    /// As [`Self::fault`], for who does something with the page before the cache is brought back under its limits, which may write it.
    pub(crate) fn fault_and_stay<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        page: u32,
        access: Access,
    ) -> Fault {
        self.fault_waiting(host, view, (page, access), &mut FaultWait::default(), true)
    }

    /// `stay`: it is waited here for blocks that are held, and for commits.
    pub(crate) fn fault_waiting<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        (page, access): (u32, Access),
        wait: &mut FaultWait,
        stay: bool,
    ) -> Fault {
        assert_nothing_held(Rank::FREEZE_WRITE, "a fault");
        if access == Access::Write && self.cache.throttle().is_err() {
            return Fault::Sigbus;
        }
        let mut result = self.fault_once(host, view, (page, access), wait, stay);
        if result.as_ref().is_err_and(H::is_no_space) && wait.space.begin(&self.cache) {
            if host.make_space().is_err() {
                return Fault::Sigbus;
            }
            result = self.fault_once(host, view, (page, access), wait, stay);
        }
        while result.as_ref().is_err_and(H::is_no_space) {
            match host.await_space(&mut wait.space, stay) {
                SpaceHope::Again => result = self.fault_once(host, view, (page, access), wait, stay),
                SpaceHope::Later => return Fault::AwaitsSpace,
                SpaceHope::None => break,
            }
        }
        if matches!(result, Ok(Fault::Parked)) {
            // What it finds after the thaw is another wait.
            wait.space = SpaceWait::default();
        }
        if access == Access::Write && matches!(result, Ok(Fault::Mapped)) {
            host.stored();
        }
        result.unwrap_or_else(|error| self.failed_fault(host, &error))
    }

    fn failed_fault<H: Host>(&self, host: &H, error: &H::Error) -> Fault {
        const ENOMEM: i32 = 12;
        const EUCLEAN: i32 = 117;
        const EBADMSG: i32 = 74;
        if H::is_no_space(error) {
            return Fault::Sigbus;
        }
        host.noted(error);
        match H::errno(error) {
            ENOMEM => return Fault::Oom,
            EUCLEAN | EBADMSG => self.remember_error::<H>(error),
            _ => {}
        }
        Fault::Sigbus
    }

    fn fault_once<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        (page, access): (u32, Access),
        wait: &mut FaultWait,
        stay: bool,
    ) -> Result<Fault, H::Error> {
        let Some(mmu) = self.mmu() else { return Ok(Fault::Sigbus) };
        wait.refused = 0;
        loop {
            // What a load shows of a device can be stored to.
            let stores = access == Access::Write || self.is_dax();
            let mut work = || self.fault_inside(host, &**mmu, view, (page, access), wait, stores);
            let done =
                if stores { host.in_fault(work).unwrap_or(Ok(Go::Done(Fault::Parked))) } else { work() };
            match done? {
                Go::Done(fault) => return Ok(fault),
                Go::AsStore => {}
                Go::NotDurable(tid) if host.commit_map(tid, stay)? => {}
                // Asked again after the commit, for which no thread waits here.
                Go::NotDurable(_) => return Ok(Fault::Parked),
                Go::TooMany => {
                    wait.refused += 1;
                    if let Some(fault) = self.make_windows(host, &**mmu, wait.refused)? {
                        return Ok(fault);
                    }
                }
            }
        }
    }

    /// `stores`: between what has to come before and after a store.
    fn fault_inside<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        view: &MapView,
        (page, access): (u32, Access),
        wait: &mut FaultWait,
        stores: bool,
    ) -> Result<Go, H::Error> {
        let before = self.is_dax();
        let guard = self.shared_for_fault();
        // Under the guard: what was let through before stores were forbidden is found by `end_stores`.
        if access == Access::Write && !host.may_store() {
            return Ok(Go::Done(Fault::Sigbus));
        }
        // `i_size` shrinks under exclusive `invalidate_lock` only.
        if self.cache.geometry().page_start(page) >= host.size() {
            return Ok(Go::Done(Fault::Sigbus));
        }
        // What the file is now, not what it was when the fault came (test `dax::flips_against_faults`).
        if if without!(self.cache, DaxLookedAt) { before } else { self.is_dax() } {
            return if stores {
                self.fault_dax(host, mmu, &guard, view, (page, access), wait)
            } else {
                Ok(Go::AsStore)
            };
        }
        if let Some(fault) = self.fault_inline(host, mmu, view, page, access)? {
            return Ok(Go::Done(fault));
        }
        let mut locked = self.lock_for_fault(host, &guard, mmu, view, page, access)?;
        let first = &locked.pages[0];
        debug_assert!(first.is_uptodate(self.cache.geometry().all_blocks()), "filled: {first:?}");
        let count = match access {
            Access::Read => locked.pages.len(),
            Access::Write => self.make_storable(host, &locked)?,
        };
        locked.truncate(if without!(self.cache, InstallLocked) { 0 } else { count });
        mmu.install(view.id, page..page + count as u32, access == Access::Write)?;
        self.went_up_to(access, page + count as u32);
        Ok(Go::Done(Fault::Mapped))
    }

    /// A fault that needs nothing but a look: the page is in memory, and a store finds it dirty. `None` when that is not so, or a lock
    /// is not free at once. For who must not wait.
    pub fn try_fault<H: Host>(&self, host: &H, view: &MapView, page: u32, access: Access) -> Option<Fault> {
        let mmu = self.mmu()?;
        let _guard = self.try_shared()?;
        let geo = self.cache.geometry();
        if self.is_dax() || geo.page_start(page) >= host.size() {
            return None;
        }
        // A dirty page stays dirty when nothing may be written any more (test `mapped_errors::no_store_after_an_abort`).
        if access == Access::Write && !host.may_store() {
            return None;
        }
        let mut locked = LockedPages::none(page, &self.cache.waits, 1);
        // From here on a wait for any lock but a leaf is an error, in debug builds.
        let _tries = Held::adopt(Rank::CACHE, None);
        // Held to the end: it is not waited for, here or later.
        let index = self.index.try_read()?;
        let found = index.find(page).filter(|p| p.is_of_file() && p.try_lock())?;
        locked.push(Arc::clone(found));
        let found = &locked.pages[0];
        let ready = match access {
            Access::Read => found.is_uptodate(geo.all_blocks()),
            Access::Write => {
                let state = found.state();
                found.is_uptodate(geo.all_blocks())
                    && state.was_write_mapped()
                    && state.has(Kind::Dirty) & state.has_space() == self.blocks_of_file(host, page)
            }
        };
        if !ready {
            return None;
        }
        let last = match access {
            Access::Read => self.last_wanted(host, view, page, access),
            Access::Write => page,
        };
        self.lock_more(&index, &mut locked, last, Page::is_of_file);
        drop(index);
        let count = locked.pages.len() as u32;
        mmu.install(view.id, page..page + count, access == Access::Write).ok()?;
        self.went_up_to(access, page + count);
        Some(Fault::Mapped)
    }

    /// A load of a page that is in memory, where the device is not to be asked any more; `None` for every other. The calling thread holds
    /// nothing. Takes 30 shared and the page's lock.
    pub fn fault_in_memory<H: Host>(&self, host: &H, view: &MapView, page: u32) -> Option<Fault> {
        let mmu = self.mmu()?;
        let _guard = self.shared_for_fault();
        let geo = self.cache.geometry();
        if self.is_dax() || geo.page_start(page) >= host.size() {
            return None;
        }
        let mut locked = loop {
            let found = self.index.read().find(page).cloned()?;
            // Or it has just moved to other memory.
            if let Some(locked) = LockedPages::wait_for(found, &self.cache.waits) {
                break locked;
            }
        };
        if !locked.pages[0].is_uptodate(geo.all_blocks()) {
            return None;
        }
        self.move_to_file(&**mmu, &mut locked, 0).ok()?;
        mmu.install(view.id, page..page + 1, false).ok()?;
        Some(Fault::Mapped)
    }

    /// Makes the next store to any page a fault, for who has forbidden stores ([`Host::may_store`]): pages stay dirty, and loads see them.
    /// Nothing of a file in DAX mode, for which there is [`Self::hide_dax`].
    ///
    /// # Errors
    /// The system's; then some pages may still be stored to.
    pub fn end_stores(&self, _guard: &ExclusiveGuard<'_>) -> std::io::Result<()> {
        match self.mmu() {
            Some(mmu) if !self.is_dax() => mmu.protect(0..u32::MAX),
            _ => Ok(()),
        }
    }

    /// The last page that a fault at `page` is to map, as far as file and mapping go.
    fn last_wanted<H: Host>(&self, host: &H, view: &MapView, page: u32, access: Access) -> u32 {
        let geo = self.cache.geometry();
        let least = match access {
            Access::Read => (AROUND / geo.page_size() as u32).max(1),
            Access::Write => 1,
        };
        let window = self.faults.lock()[access as usize].window(page, least, view.advice);
        let last = page.saturating_add(window - 1).min(view.pages.end.saturating_sub(1).max(page));
        let end = geo.page_of(host.size().saturating_sub(1)).unwrap_or(u32::MAX).max(page);
        last.min(end)
    }

    /// Notes that a fault has mapped the pages before `next`: the one that goes on there belongs to the same stream.
    fn went_up_to(&self, access: Access, next: u32) {
        self.faults.lock()[access as usize].next = next;
    }

    /// The page of a fault, locked, uptodate and in the memory of the file, and as many after it as are to be had.
    fn lock_for_fault<H: Host>(
        &self,
        host: &H,
        guard: &SharedGuard<'_>,
        mmu: &dyn Mmu,
        view: &MapView,
        page: u32,
        access: Access,
    ) -> Result<LockedPages<'_>, H::Error> {
        let last = self.last_wanted(host, view, page, access);
        let mut locked = self.fill(host, guard, page, last)?;
        self.move_to_file(mmu, &mut locked, 0)?;
        self.lock_more(&self.index.read(), &mut locked, last, |_| true);
        let all = self.cache.geometry().all_blocks();
        let mut good = 1;
        while good < locked.pages.len() {
            let next = &locked.pages[good];
            // Nothing is waited for that was not asked for.
            if !next.is_uptodate(all) || (!next.is_of_file() && next.state().in_writeback()) {
                break;
            }
            if !next.is_of_file() {
                self.move_to_file(mmu, &mut locked, good)?;
            }
            good += 1;
        }
        locked.truncate(good);
        Ok(locked)
    }

    /// Adds pages behind those that are locked, up to `last`, while they are in memory, uptodate, `wanted`, and free.
    fn lock_more(
        &self,
        index: &PageIndex,
        locked: &mut LockedPages<'_>,
        last: u32,
        wanted: impl Fn(&Page) -> bool,
    ) {
        let all = self.cache.geometry().all_blocks();
        let Some(from) = locked.pages.last().and_then(|p| p.index.checked_add(1)).filter(|f| *f <= last)
        else {
            return;
        };
        index.run(from, last, |page| {
            let take = page.is_uptodate(all) && wanted(page) && page.try_lock();
            if take {
                locked.push(Arc::clone(page));
            }
            take
        });
        if let Some(stale) = locked.pages.iter().position(|p| !p.is_uptodate(all)) {
            locked.truncate(stale.max(1));
        }
    }

    /// Gives a locked page memory of the file, if it has other memory. Waits for its writeback (55).
    fn move_to_file(&self, mmu: &dyn Mmu, locked: &mut LockedPages<'_>, slot: usize) -> std::io::Result<()> {
        let old = Arc::clone(&locked.pages[slot]);
        if old.is_of_file() {
            return Ok(());
        }
        old.wait_for_writeback(&self.cache.waits);
        self.exchange(locked, slot, mmu.memory(old.index)?);
        Ok(())
    }

    /// The blocks of `page` that the file has.
    pub(crate) fn blocks_of_file<H: Host>(&self, host: &H, page: u32) -> Blocks {
        self.blocks_below(host.size(), page)
    }

    /// The blocks of `page` that a file of `size` bytes has.
    fn blocks_below(&self, size: u64, page: u32) -> Blocks {
        let geo = self.cache.geometry();
        let inside = size.saturating_sub(geo.page_start(page)).min(geo.page_size() as u64) as usize;
        if without!(self.cache, BlocksOfFile) {
            return geo.all_blocks();
        }
        if inside == 0 { 0 } else { geo.touched(0, inside) }
    }

    /// Gets locked, uptodate pages ready for stores: space for every block that the file has, dirty. The first for sure, those after
    /// it where that needs no new space and can be found out; how many. On an error, which is the first page's, all are as they were.
    pub(crate) fn make_storable<H: Host>(
        &self,
        host: &H,
        locked: &LockedPages<'_>,
    ) -> Result<usize, H::Error> {
        let mut count = 0;
        // Not looked at for each: the blocks of a page that the file has change under the page's lock.
        let size = host.size();
        for page in &locked.pages {
            let set = self.blocks_below(size, page.index);
            if count == 0 {
                self.find_page_space(host, page, set)?;
            } else if set == 0 || !self.has_place(host, page, set).unwrap_or(false) {
                // An error here concerns a page that nobody asked for; its own fault meets it again. The pages before it are dirty, and
                // their marks are still to be made.
                break;
            }
            page.mark_write_mapped();
            page.sums.forget(self.cache.geometry().all_blocks());
            page.touch();
            page.update(|s| s.with(Kind::Dirty, set));
            count += 1;
        }
        self.mark_dirty(&locked.pages[..count]);
        Ok(count)
    }

    /// Space for the blocks `set` of a locked page. What was reserved before an error is given back: a reserved block is dirty.
    pub(crate) fn find_page_space<H: Host>(
        &self,
        host: &H,
        page: &Arc<Page>,
        set: Blocks,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let start = geo.page_start(page.index);
        // A writeback that fails gives blocks back their reservation meanwhile: those are not this fault's.
        let before = page.state().has_space();
        for run in runs_of(set) {
            let span =
                Span { start: start + geo.block_bytes(run.start), end: start + geo.block_bytes(run.end) };
            if let Err((_, error)) = self.find_space(host, std::slice::from_ref(page), span) {
                let new = page.state().has(Kind::Delayed) & set & !before;
                if without!(self.cache, FaultUndone) {
                    return Err(error);
                }
                page.update(|s| s.without(Kind::Delayed, new));
                self.unreserve(host, page.index, new);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the blocks `set` of a locked page have space already; notes those that have a place on disk.
    fn has_place<H: Host>(&self, host: &H, page: &Page, set: Blocks) -> Result<bool, H::Error> {
        let geo = self.cache.geometry();
        for run in runs_of(set & !page.state().has_space()) {
            let mut at = run.start;
            while at < run.end {
                let mapped = host.map(Lblk(geo.first_block(page.index) + at), run.end - at)?;
                if mapped.backing == Backing::Hole {
                    return Ok(false);
                }
                let end = at + mapped.len.clamp(1, run.end - at);
                page.update(|s| s.with(Kind::Backed, crate::page::blocks(at..end)));
                at = end;
            }
        }
        Ok(true)
    }

    /// A fault in a file whose content is in its inode; `None` when that is not so, or not any more.
    ///
    /// A load shows the content in page 0, which stays clean: the inode has it. A store moves the content to blocks first; the
    /// page's lock is held from the look to the end, as it is by a writer (test `faults::inline_*`).
    fn fault_inline<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        view: &MapView,
        page: u32,
        access: Access,
    ) -> Result<Option<Fault>, H::Error> {
        if page > 0 || !host.is_inline() {
            return Ok(None);
        }
        let mut locked = self.lock_or_create(0, 0);
        let Some(content) = host.inline()? else { return Ok(None) };
        if without!(self.cache, InlineLock) && access == Access::Write {
            drop(locked);
            host.leave_inline()?;
            return Ok(None);
        }
        self.move_to_file(mmu, &mut locked, 0)?;
        let first = &locked.pages[0];
        show_inline(first, self.cache.geometry().all_blocks(), &content);
        if access == Access::Write {
            host.leave_inline()?;
            if without!(self.cache, FaultOnce) {
                return Ok(Some(Fault::Retry));
            }
            self.make_storable(host, &locked)?;
        }
        mmu.install(view.id, 0..1, access == Access::Write)?;
        Ok(Some(Fault::Mapped))
    }
}

impl PageCache {
    /// What [`AddressSpace::end_stores`] does, for all inodes that have had mappings. Takes their `invalidate_lock`s exclusively (30), one
    /// at a time.
    ///
    /// # Errors
    /// The first of the system's; all were tried.
    pub fn end_stores(&self) -> std::io::Result<()> {
        let each = |owner: crate::host::Held| {
            let pages = owner.pages();
            pages.end_stores(&pages.exclusive())
        };
        self.mapped_owners().into_iter().map(each).fold(Ok(()), std::io::Result::and)
    }
}

/// Makes page 0 show content that is kept in the inode. Under its lock.
pub(crate) fn show_inline(page: &Page, all: Blocks, content: &[u8]) {
    let mem = page.mem();
    let len = content.len().min(mem.len());
    mem.copy_from(0, &content[..len]);
    mem.zero(len, mem.len() - len);
    page.update(|s| s.with(Kind::Uptodate, all));
}
