//! Faults in a file in DAX mode.

use std::ops::Range;

use extant_format::{Lblk, Tid};
use extant_sys::Showing;

use crate::Host;
use crate::dax::{DaxRun, HUGE};
use crate::fault::{FaultWait, Go, MapView};
use crate::host::Backing;
use crate::mmu::{Access, Fault, Mmu};
use crate::mutant::without;
use crate::space::{AddressSpace, SharedGuard};

/// What a fault of a mapping with MAP_SYNC has seen, and what it waits for.
#[derive(Debug, Clone)]
pub(crate) struct SyncLook {
    /// Once this is durable, what was seen is the file's after a crash.
    tid: Tid,
    /// Written blocks in a row, from a byte of the device on.
    pages: Range<u32>,
    at: u64,
    size: u64,
    /// [`AddressSpace::taken`].
    taken: u64,
}

/// What a mapping with MAP_SYNC may show.
enum Part {
    /// These pages, from a byte of the device on.
    Durable(Range<u32>, u64),
    /// Nothing before a commit.
    Awaits(Tid),
}

/// Whether a file has left DAX mode.
enum Left {
    Yes,
    /// Somebody uses it.
    InUse,
    /// A mapping promises what the page cache cannot keep (MAP_SYNC); or a device may write to it, of which somebody told us,
    Pinned,
    /// or nobody.
    MayBeWritten,
}

impl AddressSpace {
    /// A fault inside of the file, which is in DAX mode. Under shared `invalidate_lock`; takes the gate where something is to be placed, or
    /// zeros to be shown.
    pub(crate) fn fault_dax<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        guard: &SharedGuard<'_>,
        view: &MapView,
        (page, access): (u32, Access),
        wait: &mut FaultWait,
    ) -> Result<Go, H::Error> {
        let geo = self.cache.geometry();
        let end = geo.page_of(host.size() - 1).unwrap_or(u32::MAX - 1);
        let last = end.min(view.pages.end.saturating_sub(1)).max(page);
        loop {
            match self.dax_run(host, view.pages.start.min(page), page, last)? {
                DaxRun::Written { mut pages, mut at } => {
                    if host.may_store() {
                        // Of loads too: what a mapping shows can be stored to.
                        if view.sync {
                            match self.durable_part(host, &mut wait.look, page, pages, at)? {
                                Part::Durable(part, from) => (pages, at) = (part, from),
                                Part::Awaits(tid) => return Ok(Go::NotDurable(tid)),
                            }
                        }
                        self.shows();
                        match mmu.show_device(view.id, pages, at, access, wait.refused > 0)? {
                            Showing::Shown => return Ok(Go::Done(Fault::Mapped)),
                            Showing::TooMany => return Ok(Go::TooMany),
                            Showing::Never => {}
                        }
                    }
                    return self.show_copy(host, mmu, guard, view, page).map(Go::Done);
                }
                DaxRun::Zeros(there) if access == Access::Write => {
                    // Of preallocated blocks as many as a huge page has; of a hole the one.
                    let most = match there.backing {
                        Backing::Unwritten(_) => there.len.min((page | (HUGE - 1)).min(last) - page + 1),
                        _ => 1,
                    };
                    let size = host.size();
                    let end = |blocks: u32| {
                        (geo.page_start(page) + geo.block_bytes(blocks)).min(size).max(host.disk_size())
                    };
                    self.place_dax(host, page, most, |place, blocks| self.zero_new(place, blocks), end)?;
                }
                DaxRun::Zeros(_) => {
                    if self.show_zeros(host, mmu, view, page)? {
                        return Ok(Go::Done(Fault::Mapped));
                    }
                }
            }
        }
    }

    /// After a fault was refused a window, for the `refused`th time: the file leaves DAX mode, or windows go, and the fault is to be looked
    /// at again (`None`). First those of this file, then those of all. With nothing held.
    ///
    /// A file to which a device may be writing stays in its mode: what comes late would miss the page that mappings show by then. The last
    /// time, when there is no mapping to be had though nothing here has any more, only a pin keeps it, or a mapping with MAP_SYNC.
    pub(crate) fn make_windows<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        refused: u32,
    ) -> Result<Option<Fault>, H::Error> {
        match (self.leave_dax(host, mmu, refused > 2)?, refused) {
            (Left::Yes, _) => {}
            (_, 1) => mmu.hide_device(0..u32::MAX)?,
            (_, 2) => self.cache.hide_dax()?,
            (Left::Pinned, _) => return Ok(Some(Fault::Oom)),
            // Whoever uses it comes to an end.
            (Left::InUse | Left::MayBeWritten, _) => return Ok(Some(Fault::Retry)),
        }
        Ok(None)
    }

    /// Which of the written blocks `pages` round `page`, just seen in the map, from byte `at` of the device on, are the file's after a crash
    /// too, with all bytes that the file has there. Under shared `invalidate_lock`; takes the gate: who has published them there has noted so
    /// (test `map_sync::stores_that_survive`).
    ///
    /// What an earlier look saw counts once its transaction is durable, whatever others have changed meanwhile, if it is there still: else who
    /// goes on changing the file would keep a fault waiting for as long (test `map_sync::an_appender_keeps_no_fault_waiting`).
    fn durable_part<H: Host>(
        &self,
        host: &H,
        look: &mut Option<SyncLook>,
        page: u32,
        pages: Range<u32>,
        at: u64,
    ) -> Result<Part, H::Error> {
        if without!(self.cache, SyncCommitted) {
            return Ok(Part::Durable(pages, at));
        }
        let seen = SyncLook { tid: Tid(0), pages, at, size: host.size(), taken: self.taken() };
        if let Some(look) = look.as_ref()
            && let Some((part, from)) = self.same_since(look, page, &seen)
        {
            return Ok(if host.is_durable(look.tid) {
                Part::Durable(part, from)
            } else {
                Part::Awaits(look.tid)
            });
        }
        let tid = {
            let _gate = (!without!(self.cache, SyncGated)).then(|| self.gate());
            host.map_tid()?
        };
        if host.is_durable(tid) {
            return Ok(Part::Durable(seen.pages, seen.at));
        }
        *look = Some(SyncLook { tid, ..seen });
        Ok(Part::Awaits(tid))
    }

    /// What was seen round `page` in `old` and is so still in `new`: blocks that were not taken from the file in between, even if they came
    /// back, with no byte of the file that was not one then. Under shared `invalidate_lock`.
    fn same_since(&self, old: &SyncLook, page: u32, new: &SyncLook) -> Option<(Range<u32>, u64)> {
        let geo = self.cache.geometry();
        let place = |look: &SyncLook, page: u32| look.at + geo.block_bytes(page - look.pages.start);
        if (old.taken != new.taken && !without!(self.cache, SyncTaken))
            || !old.pages.contains(&page)
            || place(old, page) != place(new, page)
        {
            return None;
        }
        if without!(self.cache, SyncPart) {
            return Some((new.pages.clone(), new.at));
        }
        let start = old.pages.start.max(new.pages.start);
        let mut end = old.pages.end.min(new.pages.end);
        if old.size != new.size && !without!(self.cache, SyncGained) {
            // The page in which it ended has gained bytes.
            end = end.min(geo.page_of(old.size).unwrap_or(u32::MAX));
        }
        (page < end).then(|| (start..end, place(new, start)))
    }

    /// The file leaves DAX mode, until its flag is changed or it is read again, if nobody uses it just now. `at_once`: also while
    /// somebody may have told a device to write to a mapping.
    fn leave_dax<H: Host>(&self, host: &H, mmu: &dyn Mmu, at_once: bool) -> Result<Left, H::Error> {
        let work = || {
            let guard = self.exclusive();
            if !self.is_dax() {
                return Ok(Left::Yes);
            }
            if self.is_pinned() || (self.is_mapped_sync() && !without!(self.cache, SyncStays)) {
                return Ok(Left::Pinned);
            }
            // Asked when no mapping shows the device: no transfer to it begins after that.
            if !without!(self.cache, SwitchExchanges) {
                mmu.hide_device(0..u32::MAX)?;
            }
            if !at_once && !without!(self.cache, LeftQuiet) && !mmu.is_quiet() {
                return Ok(Left::MayBeWritten);
            }
            if !self.switch_dax(&guard, host, false)? {
                return Ok(Left::Pinned);
            }
            tracing::info!(inode = host.number(), "too fragmented for DAX: through the page cache");
            Ok(Left::Yes)
        };
        let left = if without!(self.cache, LeftAlone) { Some(work()) } else { host.try_alone(work) };
        left.unwrap_or(Ok(Left::InUse))
    }

    /// Shows a page of zeros where the file has none; `false` when it has one by now.
    fn show_zeros<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        view: &MapView,
        page: u32,
    ) -> Result<bool, H::Error> {
        let _gate = (!without!(self.cache, CopiesGated)).then(|| self.gate());
        if matches!(host.map(Lblk(page), 1)?.backing, Backing::Data(_)) {
            return Ok(false);
        }
        self.add_copy(page);
        let mem = mmu.memory(page)?;
        mem.mem().zero(0, mem.mem().len());
        mmu.install(view.id, page..page + 1, false)?;
        Ok(true)
    }

    /// Shows a copy of a page of the device: in a private mapping, which makes its own from that, and where nothing may be stored.
    fn show_copy<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        guard: &SharedGuard<'_>,
        view: &MapView,
        page: u32,
    ) -> Result<Fault, H::Error> {
        let geo = self.cache.geometry();
        let _gate = (!without!(self.cache, CopiesGated)).then(|| self.gate());
        self.add_copy(page);
        let start = geo.page_start(page);
        let mut bytes = vec![0; geo.page_size()];
        let inside = (host.size().saturating_sub(start)).min(bytes.len() as u64) as usize;
        self.read_direct(host, guard, start, &mut bytes[..inside])?;
        let mem = mmu.memory(page)?;
        mem.mem().copy_from(0, &bytes);
        mmu.install(view.id, page..page + 1, false)?;
        Ok(Fault::Mapped)
    }
}
