//! Pins: memory of a mapping that a device may write at any time.

use std::fmt;
use std::ops::Range;

use extant_sync::Arc;
use extant_sync::atomic::Ordering;

use crate::fault::MapView;
use crate::mmu::Access;
use crate::page::{LockedPages, Page};
use crate::space::AddressSpace;
use crate::{Fault, Host, PageCache};

/// Pages that are dirty and in memory until this is dropped. Writeback writes them from copies and leaves them dirty: what a device
/// puts there after a writeback reaches the disk with the next one.
pub struct Pin {
    pages: Vec<Arc<Page>>,
    cache: Arc<PageCache>,
}

impl Pin {
    /// Pages held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl AddressSpace {
    /// Pins `pages` of the file in the mapping `view`, as if a store had touched each; the reservations are made. The caller holds
    /// nothing, as for [`Self::fault`].
    ///
    /// # Errors
    /// What the first store that cannot be would have met: [`Fault::Sigbus`] and the like; then nothing is pinned.
    pub fn pin<H: Host>(&self, host: &H, view: &MapView, pages: Range<u32>) -> Result<Pin, Fault> {
        let mut pin = Pin { pages: Vec::with_capacity(pages.len()), cache: Arc::clone(self.cache()) };
        for page in pages {
            loop {
                match self.fault(host, view, page, Access::Write) {
                    Fault::Mapped => {}
                    Fault::Retry => continue,
                    fault => return Err(fault),
                }
                if let Some(held) = self.pin_dirty(page) {
                    self.cache().pins.fetch_add(1, Ordering::Relaxed);
                    pin.pages.push(held);
                    break;
                }
            }
        }
        Ok(pin)
    }

    /// Pins a page that is dirty and in the file's memory; `None` when it is so no more. Under shared `invalidate_lock`: who holds it
    /// exclusively and finds no pin gets none.
    fn pin_dirty(&self, page: u32) -> Option<Arc<Page>> {
        let _guard = self.shared();
        let locked: LockedPages<'_> = self.lock_present(page)?;
        let found = &locked.pages[0];
        let dirty = found.state().has(crate::page::Kind::Dirty) != 0;
        (dirty && found.is_of_file()).then(|| {
            found.pin();
            Arc::clone(found)
        })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for page in &self.pages {
            page.unpin();
            self.cache.pins.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({} pages)", self.pages.len())
    }
}
