//! Pins: memory of a mapping that a device may write at any time.

use std::fmt;
use std::ops::Range;

use extant_format::Lblk;
use extant_sync::atomic::Ordering;
use extant_sync::{Arc, Condvar, Mutex, Rank};

use crate::fault::MapView;
use crate::host::Backing;
use crate::mmu::Access;
use crate::page::{LockedPages, Page};
use crate::space::AddressSpace;
use crate::{Fault, Host, PageCache};

/// Pages that are dirty and in memory until this is dropped. Writeback writes them from copies and leaves them dirty: what a device
/// puts there after a writeback reaches the disk with the next one.
///
/// Of a file in DAX mode there are no such pages: a pin keeps the blocks from being used again, whatever happens to the file. Either
/// way the file does not change its mode meanwhile.
pub struct Pin {
    pages: Vec<Arc<Page>>,
    blocks: Vec<Box<dyn Send + Sync>>,
    cache: Arc<PageCache>,
    of: Arc<Pinned>,
}

/// How many pages and blocks of a file are pinned.
pub(crate) struct Pinned {
    count: Mutex<usize>,
    gone: Condvar,
}

impl Default for Pinned {
    fn default() -> Self {
        Self { count: Mutex::new(Rank::LEAF, 0), gone: Condvar::new() }
    }
}

impl Pinned {
    /// Whether there are some. New ones are made under shared `invalidate_lock`.
    pub(crate) fn any(&self) -> bool {
        *self.count.lock() > 0
    }

    /// Waits until there are none. New ones are made under shared `invalidate_lock`: who holds it exclusively is alone then.
    pub(crate) fn wait(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.gone.wait(&mut count);
        }
    }
}

impl Pin {
    /// Pages held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len() + self.blocks.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AddressSpace {
    /// Pins `pages` of the file in the mapping `view`, as if a store had touched each; the reservations are made. The caller holds
    /// nothing, as for [`Self::fault`].
    ///
    /// # Errors
    /// What the first store that cannot be would have met: [`Fault::Sigbus`] and the like; then nothing is pinned.
    pub fn pin<H: Host>(&self, host: &H, view: &MapView, pages: Range<u32>) -> Result<Pin, Fault> {
        let (cache, of) = (Arc::clone(self.cache()), Arc::clone(&self.pinned));
        let mut pin = Pin { pages: Vec::new(), blocks: Vec::new(), cache, of };
        for page in pages {
            loop {
                match self.fault(host, view, page, Access::Write) {
                    Fault::Mapped => {}
                    Fault::Retry => continue,
                    fault => return Err(fault),
                }
                if self.pin_one(host, page, &mut pin) {
                    break;
                }
            }
        }
        Ok(pin)
    }

    /// Pins a page that has just been stored to; `false` when it is not what it was then.
    fn pin_one<H: Host>(&self, host: &H, page: u32, pin: &mut Pin) -> bool {
        let _guard = self.shared();
        if self.is_dax() {
            let Ok(Backing::Data(pblk)) = host.map(Lblk(page), 1).map(|mapped| mapped.backing) else {
                return false;
            };
            pin.blocks.push(host.hold(pblk, 1));
        } else {
            let Some(held) = self.pin_dirty(page) else { return false };
            pin.pages.push(held);
        }
        *self.pinned.count.lock() += 1;
        self.cache().pins.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Pins a page that is dirty and in the file's memory; `None` when it is so no more. Under shared `invalidate_lock`: who holds it
    /// exclusively and finds no pin gets none.
    fn pin_dirty(&self, page: u32) -> Option<Arc<Page>> {
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
        let all = self.len();
        self.pages.iter().for_each(|page| page.unpin());
        self.blocks.clear();
        self.cache.pins.fetch_sub(all, Ordering::Relaxed);
        let mut count = self.of.count.lock();
        *count -= all;
        if *count == 0 {
            self.of.gone.notify_all();
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({} pages)", self.len())
    }
}
