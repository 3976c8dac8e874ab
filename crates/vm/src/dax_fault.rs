//! Faults in a file in DAX mode.

use extant_format::Lblk;
use extant_sys::Showing;

use crate::Host;
use crate::dax::{DaxRun, HUGE};
use crate::fault::{Go, MapView};
use crate::host::Backing;
use crate::mmu::{Access, Fault, Mmu};
use crate::mutant::without;
use crate::space::{AddressSpace, SharedGuard};

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
    /// A fault inside of the file, which is in DAX mode. `insist`: a window, however many there are. Under shared `invalidate_lock`; takes
    /// the gate where something is to be placed, or zeros to be shown.
    pub(crate) fn fault_dax<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        guard: &SharedGuard<'_>,
        view: &MapView,
        (page, access): (u32, Access),
        insist: bool,
    ) -> Result<Go, H::Error> {
        let geo = self.cache.geometry();
        let end = geo.page_of(host.size() - 1).unwrap_or(u32::MAX - 1);
        let last = end.min(view.pages.end.saturating_sub(1)).max(page);
        loop {
            match self.dax_run(host, view.pages.start.min(page), page, last)? {
                DaxRun::Written { pages, at } => {
                    if host.may_store() {
                        // Of loads too: what a mapping shows can be stored to.
                        if view.sync && !self.is_map_durable(host) {
                            return Ok(Go::NotDurable);
                        }
                        self.shows();
                        match mmu.show_device(view.id, pages, at, access, insist)? {
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

    /// Whether the blocks that were just seen in the map are the file's after a crash too. Under shared `invalidate_lock`; takes the gate:
    /// who has published them there has noted so (test `dax::stores_that_survive`).
    fn is_map_durable<H: Host>(&self, host: &H) -> bool {
        let _gate = (!without!(self.cache, SyncGated)).then(|| self.gate());
        host.map_is_durable() || without!(self.cache, SyncCommitted)
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
