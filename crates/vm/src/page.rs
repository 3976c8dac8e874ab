//! One page: its memory and one word of state.

use std::fmt;
use std::ops::Range;

use extant_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use extant_sync::{Arc, Held, Rank};
use extant_sys::{MemSlice, PageMem};
use smallvec::{SmallVec, smallvec};

use crate::sums::Sums;
use crate::wait::WaitTable;

/// A page of a file's content.
///
/// `mem` never changes: an inode that gets its memory elsewhere gets another `Page` in the index, under this one's lock.
pub(crate) struct Page {
    pub(crate) index: u32,
    /// How often it is pinned: it then stays dirty and in memory.
    pins: AtomicU32,
    state: AtomicU64,
    pub(crate) sums: Sums,
    mem: PageMem,
}

/// In the number of pins: the page has left the index, and is none that the cache counts any more.
const GONE: u32 = 1 << 31;

/// The page's lock bit: owned by an operation.
const LOCKED: u64 = 1;
/// Somebody waits for the lock or for the end of writeback.
const WAITERS: u64 = 1 << 1;
/// No longer in the index; who waited for the lock looks again.
const DETACHED: u64 = 1 << 2;
const WRITEBACK: u64 = 1 << 3;
/// Used since the clock's hand came by.
const REFERENCED: u64 = 1 << 4;
/// Some mapping could ever write it: its content may change while it is written, so a copy is written.
const WRITE_MAPPED: u64 = 1 << 5;

/// A kind of state that a page keeps per block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Uptodate = 8,
    Dirty = 12,
    /// Reserved; no place on disk.
    Delayed = 16,
    /// Between claim and publication.
    Claimed = 20,
    /// Known to have a place on disk (written or not).
    Backed = 24,
    /// Being written.
    InFlight = 28,
}

/// A copy of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(u64);

/// A set of blocks of a page: bit `n` is block `n`.
pub(crate) type Blocks = u8;

/// The blocks of a range, as a set.
pub(crate) fn blocks(range: Range<u32>) -> Blocks {
    debug_assert!(range.start <= range.end && range.end <= 4, "blocks {range:?} of a page");
    ((1_u16 << range.end) - (1 << range.start)) as Blocks
}

impl State {
    pub(crate) fn has(self, kind: Kind) -> Blocks {
        (self.0 >> kind as u8) as u8 & 0xF
    }

    pub(crate) fn with(self, kind: Kind, set: Blocks) -> Self {
        Self(self.0 | u64::from(set) << kind as u8)
    }

    pub(crate) fn without(self, kind: Kind, set: Blocks) -> Self {
        Self(self.0 & !(u64::from(set) << kind as u8))
    }

    pub(crate) fn is_detached(self) -> bool {
        self.0 & DETACHED != 0
    }

    pub(crate) fn in_writeback(self) -> bool {
        self.0 & WRITEBACK != 0
    }

    pub(crate) fn was_write_mapped(self) -> bool {
        self.0 & WRITE_MAPPED != 0
    }

    pub(crate) fn starting_writeback(self) -> Self {
        Self(self.0 | WRITEBACK)
    }

    /// Blocks that are reserved or have a place: writing them needs no reservation.
    pub(crate) fn has_space(self) -> Blocks {
        self.has(Kind::Delayed) | self.has(Kind::Claimed) | self.has(Kind::Backed)
    }

    /// Whether it may be thrown away: what it holds can be read again, and nobody is at work on it.
    fn is_evictable(self) -> bool {
        let busy = LOCKED | DETACHED | WRITEBACK;
        let kinds = [Kind::Dirty, Kind::Delayed, Kind::Claimed, Kind::InFlight];
        self.0 & busy == 0 && kinds.iter().all(|k| self.has(*k) == 0)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}{}{}uptodate {:x} dirty {:x} delayed {:x} claimed {:x} backed {:x} in flight {:x}",
            if self.0 & LOCKED != 0 { "locked " } else { "" },
            if self.is_detached() { "detached " } else { "" },
            if self.in_writeback() { "writeback " } else { "" },
            if self.was_write_mapped() { "write-mapped " } else { "" },
            self.has(Kind::Uptodate),
            self.has(Kind::Dirty),
            self.has(Kind::Delayed),
            self.has(Kind::Claimed),
            self.has(Kind::Backed),
            self.has(Kind::InFlight)
        )
    }
}

impl Page {
    /// A page that its maker has locked, with nothing uptodate.
    pub(crate) fn new_locked(index: u32, mem: PageMem) -> Self {
        Self { index, pins: AtomicU32::new(0), state: AtomicU64::new(LOCKED), sums: Sums::default(), mem }
    }

    /// The same page in other memory, locked: what is known of its blocks goes along, the content is the caller's to copy. Under
    /// the old one's lock, out of writeback and with no pin.
    pub(crate) fn moved_to(&self, mem: PageMem) -> Self {
        let state = self.state();
        debug_assert!(!state.in_writeback() && !self.is_pinned(), "a page moves that is in use: {self:?}");
        // Nothing shows the new memory yet.
        let state = AtomicU64::new((state.0 | LOCKED) & !(WAITERS | DETACHED | WRITE_MAPPED));
        Self { index: self.index, pins: AtomicU32::new(0), state, sums: Sums::default(), mem }
    }

    /// Whether its memory is that of a memory file, which mappings may show.
    #[inline]
    pub(crate) fn is_of_file(&self) -> bool {
        self.mem.is_of_file()
    }

    /// Keeps it dirty and in memory from now on; whether it was not kept so before. Under its lock, while it is in the index.
    pub(crate) fn pin(&self) -> bool {
        self.pins.fetch_add(1, Ordering::AcqRel) == 0
    }

    /// Takes back one [`Self::pin`]; whether it is kept no more, and was in the index until now.
    pub(crate) fn unpin(&self) -> bool {
        let before = self.pins.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & !GONE > 0, "a pin that never was: {self:?}");
        before == 1
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) & !GONE > 0
    }

    /// Its clean blocks that may have changed all the same: something stored to them that no mapping had the right to (a device that
    /// had taken the memory as a target before it was written).
    pub(crate) fn suspects(&self) -> Blocks {
        self.sums.noted() & !self.state().has(Kind::Dirty)
    }

    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn mem(&self) -> MemSlice<'_> {
        self.mem.mem()
    }

    /// Whether `wanted` blocks may be read.
    #[inline]
    pub(crate) fn is_uptodate(&self, wanted: Blocks) -> bool {
        self.state().has(Kind::Uptodate) & wanted == wanted
    }

    /// Marks it used. Writes the word only if that changes it: many readers of one page share the line.
    #[inline]
    pub(crate) fn touch(&self) {
        if self.state.load(Ordering::Relaxed) & REFERENCED == 0 {
            self.state.fetch_or(REFERENCED, Ordering::Relaxed);
        }
    }

    /// Changes the blocks' states. By the holder of the page's lock, or by the end of a writeback.
    pub(crate) fn update(&self, change: impl Fn(State) -> State) -> State {
        let mut old = self.state.load(Ordering::Acquire);
        loop {
            let new = change(State(old)).0;
            match self.state.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return State(new),
                Err(now) => old = now,
            }
        }
    }

    pub(crate) fn try_lock(&self) -> bool {
        self.state.fetch_or(LOCKED, Ordering::AcqRel) & LOCKED == 0
    }

    /// Waits for the lock. The caller has checked the order.
    fn lock_raw(&self, waits: &WaitTable) {
        if self.try_lock() {
            return;
        }
        waits.wait(self.address(), || {
            // One step, so that an unlock sees either no attempt or the mark: a lost wakeup otherwise (test
            // `explore::page_lock_wakes_every_waiter`).
            let old = self.state.fetch_or(LOCKED | WAITERS, Ordering::AcqRel);
            old & LOCKED == 0
        });
    }

    pub(crate) fn unlock(&self, waits: &WaitTable) {
        let old = self.state.fetch_and(!(LOCKED | WAITERS), Ordering::AcqRel);
        debug_assert!(old & LOCKED != 0, "unlock of a page that is not locked");
        if old & WAITERS != 0 {
            waits.wake(self.address());
        }
    }

    /// Ends writeback and wakes whoever waits for that, after the blocks' states were settled.
    pub(crate) fn end_writeback(&self, waits: &WaitTable) {
        let old = self.state.fetch_and(!(WRITEBACK | WAITERS), Ordering::AcqRel);
        debug_assert!(old & WRITEBACK != 0, "end of a writeback that never began");
        if old & WAITERS != 0 {
            waits.wake(self.address());
        }
    }

    /// Waits for the end of its writeback, if it is in one. Under its lock, which keeps the next one away; nothing from 55 on is
    /// held.
    #[track_caller]
    pub(crate) fn wait_for_writeback(&self, waits: &WaitTable) {
        if !self.state().in_writeback() {
            return;
        }
        let _held = Held::enter(Rank::PAGE_WRITEBACK, None);
        waits.wait(self.address(), || {
            // In one step, as in `lock_raw`.
            let old = self.state.fetch_or(WAITERS, Ordering::AcqRel);
            old & WRITEBACK == 0
        });
    }

    /// Says that the page is out of the index, under its lock and the index's; whether it is pinned.
    pub(crate) fn detach(&self) -> bool {
        self.state.fetch_or(DETACHED, Ordering::AcqRel);
        let pins = self.pins.load(Ordering::Relaxed);
        pins > 0 && self.pins.fetch_or(GONE, Ordering::AcqRel) & !GONE > 0
    }

    /// Marks that a mapping may write it from now on. Under its lock.
    pub(crate) fn mark_write_mapped(&self) {
        self.state.fetch_or(WRITE_MAPPED, Ordering::AcqRel);
    }

    /// The clock's hand: takes the lock of a page that can go and was not used lately; else marks it unused.
    pub(crate) fn try_lock_for_eviction(&self) -> bool {
        let state = self.state();
        if state.0 & REFERENCED != 0 {
            self.state.fetch_and(!REFERENCED, Ordering::Relaxed);
            return false;
        }
        state.is_evictable()
            && !self.is_pinned()
            && self
                .state
                .compare_exchange(state.0, state.0 | LOCKED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}: {:?}", self.index, self.state())
    }
}

/// Pages of a file, ascending. One, as most files have, takes no memory of its own.
pub(crate) type Pages = SmallVec<[Arc<Page>; 1]>;

/// Pages that one operation has locked, ascending; unlocked when dropped.
pub(crate) struct LockedPages<'a> {
    waits: &'a WaitTable,
    pub(crate) pages: Pages,
    _held: Held,
}

impl<'a> LockedPages<'a> {
    /// Waits for the lock of `page`, with no other page locked; `None` when it went out of the index meanwhile.
    #[track_caller]
    pub(crate) fn wait_for(page: Arc<Page>, waits: &'a WaitTable) -> Option<Self> {
        let held = Held::enter(Rank::PAGE, Some(page.index.into()));
        page.lock_raw(waits);
        let locked = Self { waits, pages: smallvec![page], _held: held };
        (!locked.pages[0].state().is_detached()).then_some(locked)
    }

    /// An empty batch, to which pages are added that were locked without waiting.
    #[track_caller]
    pub(crate) fn none(first: u32, waits: &'a WaitTable, capacity: usize) -> Self {
        let held = Held::enter(Rank::PAGE, Some(first.into()));
        Self { waits, pages: Pages::with_capacity(capacity), _held: held }
    }

    /// Adds a page that was locked without waiting, or later than the others and with a larger number.
    pub(crate) fn push(&mut self, page: Arc<Page>) {
        debug_assert!(self.pages.last().is_none_or(|last| last.index < page.index), "pages ascend");
        self.pages.push(page);
    }

    /// Adds a page after waiting for its lock; `false` when it went out of the index meanwhile. Larger than all others.
    #[track_caller]
    pub(crate) fn push_waiting(&mut self, page: &Arc<Page>) -> bool {
        page.lock_raw(self.waits);
        if page.state().is_detached() {
            page.unlock(self.waits);
            return false;
        }
        self.push(Arc::clone(page));
        true
    }

    /// Unlocks the pages from the `keep`th on.
    pub(crate) fn truncate(&mut self, keep: usize) {
        for page in self.pages.drain(keep..) {
            page.unlock(self.waits);
        }
    }
}

impl Drop for LockedPages<'_> {
    fn drop(&mut self) {
        for page in &self.pages {
            page.unlock(self.waits);
        }
    }
}

#[cfg(test)]
mod tests;
