//! Pins: memory of a mapping that a device may write at any time.

use std::fmt;
use std::io;
use std::ops::Range;

use extant_format::Lblk;
use extant_sync::atomic::Ordering;
use extant_sync::thread::{self, ThreadId};
use extant_sync::{Arc, Condvar, Mutex, Rank, assert_nothing_held};
use rustc_hash::FxHashMap;

use crate::fault::{FaultWait, MapView};
use crate::grace::SpaceWait;
use crate::host::Backing;
use crate::mmu::Access;
use crate::mutant::without;
use crate::page::{Kind, LockedPages, Page};
use crate::space::AddressSpace;
use crate::{Fault, Host, PageCache};

/// Pages that are dirty and in memory until this is dropped. Writeback writes them from copies and leaves them dirty: what a device
/// puts there after a writeback reaches the disk with the next one.
///
/// Of a file in DAX mode there are no such pages: a pin keeps the blocks from being used again, whatever happens to the file. Either
/// way the file does not change its mode meanwhile.
///
/// Any thread may drop it; as its holder counts the thread that made it.
pub struct Pin {
    pages: Vec<Arc<Page>>,
    blocks: Vec<Box<dyn Send + Sync>>,
    cache: Arc<PageCache>,
    of: Arc<Pinned>,
    holder: ThreadId,
}

/// How many pages and blocks of a file are pinned, and how many wait until there are none.
pub(crate) struct Pinned {
    counts: Mutex<Counts>,
    /// The last pin has gone, or the last who waits for that.
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    pins: usize,
    bars: usize,
}

impl Default for Pinned {
    fn default() -> Self {
        Self { counts: Mutex::new(Rank::LEAF, Counts::default()), changed: Condvar::new() }
    }
}

impl Pinned {
    /// Whether there are some. New ones are made under shared `invalidate_lock`.
    pub(crate) fn any(&self) -> bool {
        self.counts.lock().pins > 0
    }

    /// Waits while somebody waits for the pins that there are: else new ones could keep him waiting for ever.
    fn wait_for_turn(&self) {
        self.changed.wait_while(&mut self.counts.lock(), |counts| counts.bars > 0);
    }
}

/// Pages and blocks that each thread has pinned, of all files of a cache.
pub(crate) struct Holders(Mutex<FxHashMap<ThreadId, usize>>);

impl Default for Holders {
    fn default() -> Self {
        Self(Mutex::new(Rank::LEAF, FxHashMap::default()))
    }
}

impl Holders {
    /// Whether the calling thread has made a pin that is there still.
    fn has_this_thread(&self) -> bool {
        self.0.lock().contains_key(&thread::current().id())
    }

    fn add(&self, holder: ThreadId) {
        *self.0.lock().entry(holder).or_default() += 1;
    }

    fn take(&self, holder: ThreadId, pages: usize) {
        let mut all = self.0.lock();
        if let Some(count) = all.get_mut(&holder) {
            *count -= pages;
            if *count == 0 {
                all.remove(&holder);
            }
        }
    }
}

/// Keeps new pins of a file waiting while this is there, for who waits for those that it has. Not those of a thread that holds a pin, of
/// whatever file: it may be the one that is waited for.
pub struct PinBar {
    cache: Arc<PageCache>,
    of: Arc<Pinned>,
}

impl PinBar {
    /// Waits until the file has no pin. The caller holds nothing, and looks again under `invalidate_lock`: a thread that holds a pin may
    /// have made another one.
    ///
    /// # Errors
    /// EDEADLK when the calling thread has made a pin, of whatever file, that is there still: it would wait for itself, or for somebody
    /// who waits for it.
    pub fn wait(&self) -> io::Result<()> {
        assert_nothing_held(Rank::FREEZE_WRITE, "a wait for pins");
        if self.cache.holders.has_this_thread() {
            return Err(io::Error::from_raw_os_error(35));
        }
        self.of.changed.wait_while(&mut self.of.counts.lock(), |counts| counts.pins > 0);
        Ok(())
    }
}

impl Drop for PinBar {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock();
        counts.bars -= 1;
        if counts.bars == 0 {
            self.of.changed.notify_all();
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
    /// Whether the file has pins: certain under exclusive `invalidate_lock`.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pinned.get().is_some_and(|pinned| pinned.any())
    }

    fn pinned(&self) -> &Arc<Pinned> {
        self.pinned.get_or_init(Arc::default)
    }

    /// Keeps new pins waiting from now on, for who wants to wait for those that there are.
    #[must_use]
    pub fn bar_pins(&self) -> PinBar {
        let of = Arc::clone(self.pinned());
        of.counts.lock().bars += 1;
        PinBar { cache: Arc::clone(self.cache()), of }
    }

    /// Whether new pins wait, for tests.
    #[cfg(feature = "shuttle")]
    #[must_use]
    pub fn pins_are_barred(&self) -> bool {
        self.pinned().counts.lock().bars > 0
    }

    /// Pins `pages` of the file in the mapping `view`, as if a store had touched each; the reservations are made. The caller holds
    /// nothing, as for [`Self::fault`]. Unless it holds a pin already, it waits for who waits for pins of the file ([`Self::bar_pins`]).
    ///
    /// # Errors
    /// What the first store that cannot be would have met: [`Fault::Sigbus`] and the like; then nothing is pinned.
    pub fn pin<H: Host>(&self, host: &H, view: &MapView, pages: Range<u32>) -> Result<Pin, Fault> {
        assert_nothing_held(Rank::FREEZE_WRITE, "a pin");
        let (cache, of) = (Arc::clone(self.cache()), Arc::clone(self.pinned()));
        if !cache.holders.has_this_thread() && !without!(cache, PinsKeptOut) {
            of.wait_for_turn();
        }
        let holder = thread::current().id();
        // What one page waited for may have been all that the next ones need.
        let mut wait = FaultWait::default();
        let mut pin = Pin { pages: Vec::new(), blocks: Vec::new(), cache, of, holder };
        for page in pages {
            loop {
                wait.space = SpaceWait::default();
                match self.fault_waiting(host, view, (page, Access::Write), &mut wait, true) {
                    Fault::Mapped => {}
                    Fault::Retry => continue,
                    fault => return Err(fault),
                }
                // Who keeps faults out and then counts pins counts this one, or it waits for him (test `holds::a_pin_beside_the_end`).
                let pinned = if without!(self.cache, PinGated) {
                    Some(self.pin_one(host, page, &mut pin))
                } else {
                    host.in_fault(|| self.pin_one(host, page, &mut pin))
                };
                match pinned {
                    Some(true) => break,
                    Some(false) => {}
                    None => return Err(Fault::Parked),
                }
            }
        }
        Ok(pin)
    }

    /// Pins a page that has just been stored to; `false` when it is not what it was then, or nothing may be stored any more.
    fn pin_one<H: Host>(&self, host: &H, page: u32, pin: &mut Pin) -> bool {
        let _guard = self.shared();
        if !host.may_store() {
            return false;
        }
        if self.is_dax() {
            let Ok(Backing::Data(pblk)) = host.map(Lblk(page), 1).map(|mapped| mapped.backing) else {
                return false;
            };
            pin.blocks.push(host.hold(pblk, 1));
        } else {
            let Some(held) = self.pin_dirty(host, page) else { return false };
            pin.pages.push(held);
        }
        pin.of.counts.lock().pins += 1;
        pin.cache.holders.add(pin.holder);
        self.cache().pins.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Pins a page that is dirty in every block that the file has, with space for each, and in the file's memory; `None` when it is so no
    /// more. Under shared `invalidate_lock`: who holds it exclusively and finds no pin gets none.
    fn pin_dirty<H: Host>(&self, host: &H, page: u32) -> Option<Arc<Page>> {
        let locked: LockedPages<'_> = self.lock_present(page)?;
        let found = &locked.pages[0];
        let (state, blocks) = (found.state(), self.blocks_of_file(host, page));
        // Since the fault a writer may have made the file longer inside of the page, or a punch taken blocks of it.
        let storable = state.has(Kind::Dirty) & state.has_space() & blocks == blocks;
        (blocks != 0 && storable && found.is_of_file()).then(|| {
            if found.pin() {
                self.cache.pinned_pages.fetch_add(1, Ordering::Relaxed);
            }
            Arc::clone(found)
        })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let all = self.len();
        let pages = self.pages.iter().filter(|page| page.unpin()).count();
        self.cache.pinned_pages.fetch_sub(pages, Ordering::Relaxed);
        self.blocks.clear();
        self.cache.pins.fetch_sub(all, Ordering::Relaxed);
        self.cache.holders.take(self.holder, all);
        let mut counts = self.of.counts.lock();
        counts.pins -= all;
        if counts.pins == 0 {
            self.of.changed.notify_all();
        }
    }
}

impl fmt::Debug for PinBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinBar").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({} pages)", self.len())
    }
}
