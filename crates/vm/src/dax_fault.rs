//! Faults in a file in DAX mode.

use extant_format::Lblk;
use extant_sync::atomic::Ordering;

use crate::Host;
use crate::dax::{DaxRun, HUGE};
use crate::fault::MapView;
use crate::host::Backing;
use crate::mmu::{Access, Fault, Mmu};
use crate::space::{AddressSpace, SharedGuard};

impl AddressSpace {
    /// A fault inside of the file, which is in DAX mode. Under shared `invalidate_lock`; takes the gate where something is to be placed,
    /// or zeros to be shown.
    pub(crate) fn fault_dax<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        guard: &SharedGuard<'_>,
        view: &MapView,
        page: u32,
        access: Access,
    ) -> Result<Fault, H::Error> {
        let geo = self.cache.geometry();
        let end = geo.page_of(host.size() - 1).unwrap_or(u32::MAX - 1);
        let last = end.min(view.pages.end.saturating_sub(1)).max(page);
        loop {
            match self.dax_run(host, view.pages.start.min(page), page, last)? {
                DaxRun::Written { pages, at } => {
                    if host.may_store() && mmu.show_device(view.id, pages, at)? {
                        return Ok(Fault::Mapped);
                    }
                    return self.show_copy(host, mmu, guard, view, page);
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
                        return Ok(Fault::Mapped);
                    }
                }
            }
        }
    }

    /// Shows a page of zeros where the file has none; `false` when it has one by now.
    fn show_zeros<H: Host>(
        &self,
        host: &H,
        mmu: &dyn Mmu,
        view: &MapView,
        page: u32,
    ) -> Result<bool, H::Error> {
        let _gate = self.gate();
        if matches!(host.map(Lblk(page), 1)?.backing, Backing::Data(_)) {
            return Ok(false);
        }
        self.copies.store(true, Ordering::Release);
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
        let _gate = self.gate();
        self.copies.store(true, Ordering::Release);
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
