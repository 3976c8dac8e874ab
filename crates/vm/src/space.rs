//! The pages of one inode: locks, lookup, getting pages locked.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use extant_format::Lblk;
use extant_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use extant_sync::{Arc, Mutex, MutexGuard, Rank, ReadGuard, RwLock, Weak, WriteGuard};

use crate::copies::Copies;
use crate::errseq::ErrSeq;
use crate::fault::FaultAhead;
use crate::host::Owner;
use crate::index::PageIndex;
use crate::mutant::without;
use crate::page::{Kind, LockedPages, Page, Pages, State};
use crate::pin::Pinned;
use crate::{Host, Mmu, PageCache};

/// The pages of one inode. A field of the in-core inode; operations get the inode as their [`Host`].
pub struct AddressSpace {
    pub(crate) cache: Arc<PageCache>,
    owner: Weak<dyn Owner>,
    invalidate: RwLock<()>,
    gate: Mutex<()>,
    pub(crate) index: RwLock<PageIndex>,
    errors: ErrSeq,
    /// The mappings, from the first one on.
    mmu: OnceLock<Arc<dyn Mmu>>,
    /// What the last faults were, by [`crate::Access`].
    pub(crate) faults: Mutex<[FaultAhead; 2]>,
    /// The file has no pages, and mappings show the device. Changes under exclusive `invalidate_lock`.
    pub(crate) dax: AtomicBool,
    /// In DAX mode: pages of zeros and copies that the memory file has. New ones come under the gate.
    pub(crate) copies: Copies,
    /// Mappings have shown the device: a transfer may be under way to blocks that the file has or had.
    pub(crate) shown: AtomicBool,
    /// How often something was taken from what mappings show.
    taken: AtomicU64,
    /// Changes of the file's bytes on the device that were made in DAX mode; and how many of them a flush has come after. A file that
    /// comes into the mode has one: what was written before.
    pub(crate) device_changes: AtomicU64,
    pub(crate) device_flushed: AtomicU64,
    /// Mappings that show the device and nothing else (MAP_SYNC): the file stays in DAX mode. Changes under the inode lock, held
    /// exclusively, but for falling.
    pub(crate) sync_maps: AtomicUsize,
    /// Held while stores that are no faults become such a change.
    pub(crate) noting: Mutex<()>,
    /// The pins of the file, from the first one or the first bar on.
    pub(crate) pinned: OnceLock<Arc<Pinned>>,
    /// Pages that are marked dirty or in writeback.
    unclean: AtomicUsize,
    /// Bytes read without caching them: a file's first reading leaves nothing behind.
    pub(crate) cold_bytes: AtomicU64,
    /// Whether the clock's ring has it.
    pub(crate) in_ring: AtomicBool,
    /// Where background writeback goes on.
    pub(crate) write_hand: Mutex<u32>,
    /// Where the clock's hand goes on.
    pub(crate) hand: Mutex<u32>,
}

/// `invalidate_lock`, exclusive: no page is filled, and none of the cache's own reads of the map is under way.
pub struct ExclusiveGuard<'a>(#[expect(dead_code, reason = "held, not used")] WriteGuard<'a, ()>);

/// `invalidate_lock`, shared: what is mapped stays mapped.
pub struct SharedGuard<'a>(#[expect(dead_code, reason = "held, not used")] Option<ReadGuard<'a, ()>>);

/// The writeback gate: no page of the inode is in writeback, but those that the holder writes.
#[must_use = "dropped at once, it keeps nobody out"]
pub struct Gate<'a>(Option<MutexGuard<'a, ()>>);

impl Gate<'_> {
    /// Nobody is kept out any more where a mutant says so.
    pub fn unless(self, open: bool) -> Self {
        Self(self.0.filter(|_| !open))
    }
}

impl AddressSpace {
    /// An inode without pages. `owner` is the inode (`Arc::new_cyclic`).
    #[must_use]
    pub fn new(cache: Arc<PageCache>, owner: Weak<dyn Owner>) -> Self {
        Self {
            cache,
            owner,
            invalidate: RwLock::new(Rank::INVALIDATE, ()),
            gate: Mutex::new(Rank::WRITEBACK_GATE, ()),
            index: RwLock::new(Rank::CACHE, PageIndex::default()),
            errors: ErrSeq::default(),
            mmu: OnceLock::new(),
            faults: Mutex::new(Rank::LEAF, [FaultAhead::default(); 2]),
            dax: AtomicBool::new(false),
            copies: Copies::default(),
            shown: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            device_changes: AtomicU64::new(1),
            device_flushed: AtomicU64::new(0),
            sync_maps: AtomicUsize::new(0),
            noting: Mutex::new(Rank::CACHE, ()),
            pinned: OnceLock::new(),
            unclean: AtomicUsize::new(0),
            cold_bytes: AtomicU64::new(0),
            in_ring: AtomicBool::new(false),
            write_hand: Mutex::new(Rank::LEAF, 0),
            hand: Mutex::new(Rank::LEAF, 0),
        }
    }

    /// The cache it is part of.
    pub fn cache(&self) -> &Arc<PageCache> {
        &self.cache
    }

    /// Gives the inode mappings, whose memory file is `i_size` long. From now on new pages are in its memory, and those that are
    /// there move at their first fault. Under the inode lock, held exclusively; takes the gate: a writeback that has begun ends as one
    /// of a file without mappings. `false` when it has some already.
    pub fn attach(&self, mmu: Arc<dyn Mmu>) -> bool {
        let _gate = self.gate();
        let first = self.mmu.set(mmu).is_ok();
        if first {
            self.cache.add_mapped(self.owner.clone());
        }
        first
    }

    /// The mappings, if there ever was one.
    pub fn mmu(&self) -> Option<&Arc<dyn Mmu>> {
        self.mmu.get()
    }

    /// How often blocks may have been taken from the file, or unwritten: under shared `invalidate_lock` none are.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Blocks are about to be taken from the file, or unwritten.
    pub(crate) fn takes(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    /// A locked page for the index, whose lock the caller holds.
    fn new_page(&self, index: u32) -> Arc<Page> {
        // One that gets no memory of the file is like one from before the first mapping: a fault tries again, and is told why not.
        let mem = self.mmu().and_then(|mmu| mmu.memory(index).ok());
        self.cache.new_page(index, mem)
    }

    /// Errors of writeback: sampled when a file is opened, checked by fsync.
    pub fn errors(&self) -> &ErrSeq {
        &self.errors
    }

    /// Takes `invalidate_lock` exclusively (30). The caller holds the inode lock exclusively and has drained direct I/O.
    #[track_caller]
    pub fn exclusive(&self) -> ExclusiveGuard<'_> {
        ExclusiveGuard(self.invalidate.write())
    }

    /// The same for several inodes, by ascending number.
    #[track_caller]
    pub fn exclusive_ordered(&self, number: u64) -> ExclusiveGuard<'_> {
        ExclusiveGuard(self.invalidate.write_ordered(number))
    }

    /// Takes `invalidate_lock` shared (30).
    #[track_caller]
    pub fn shared(&self) -> SharedGuard<'_> {
        SharedGuard(Some(self.invalidate.read()))
    }

    /// The same if it is to be had at once.
    pub(crate) fn try_shared(&self) -> Option<SharedGuard<'_>> {
        self.invalidate.try_read().map(|guard| SharedGuard(Some(guard)))
    }

    /// The same as [`Self::shared`], for a fault.
    #[track_caller]
    pub(crate) fn shared_for_fault(&self) -> SharedGuard<'_> {
        if without!(self.cache, FaultShared) { SharedGuard(None) } else { self.shared() }
    }

    /// The same as [`Self::shared`], for a read.
    #[track_caller]
    pub(crate) fn shared_for_read(&self) -> SharedGuard<'_> {
        if without!(self.cache, FillShared) { SharedGuard(None) } else { self.shared() }
    }

    /// Takes the writeback gate (40).
    #[track_caller]
    pub fn gate(&self) -> Gate<'_> {
        Gate(Some(self.gate.lock()))
    }

    /// The same if it is to be had at once.
    pub(crate) fn try_gate(&self) -> Option<Gate<'_>> {
        self.gate.try_lock().map(|gate| Gate(Some(gate)))
    }

    /// Takes the writeback gates of several inodes, by ascending number.
    #[track_caller]
    pub fn gate_ordered(&self, number: u64) -> Gate<'_> {
        Gate(Some(self.gate.lock_ordered(number)))
    }

    /// Pages in memory.
    pub fn page_count(&self) -> usize {
        self.index.read().len()
    }

    /// Whether anything is dirty or in writeback, apart from what an operation is at work on.
    pub fn is_dirty(&self) -> bool {
        self.unclean() > 0
    }

    /// Takes the inode off the cache's list when nothing of it is dirty any more.
    pub(crate) fn unlist_if_clean(&self) {
        if self.unclean() == 0 {
            self.cache.unlist_clean(&self.owner);
        }
    }

    pub(crate) fn unclean(&self) -> usize {
        self.unclean.load(Ordering::Acquire)
    }

    /// Pages that were marked are clean, or were not dirty after all.
    pub(crate) fn cleaned(&self, pages: usize) {
        self.unclean.fetch_sub(pages, Ordering::AcqRel);
        self.cache.cleaned(pages);
    }

    /// The first part of `range` (bytes, to whole blocks) that is dirty or being written: data, whatever the map says. For
    /// SEEK_DATA, which must see it.
    pub fn next_dirty(&self, range: Range<u64>) -> Option<Range<u64>> {
        let geo = self.cache.geometry();
        let mut at = geo.page_of(range.start)?;
        loop {
            let index = self.index.read();
            at = index.next_present(at)?;
            if geo.page_start(at) >= range.end {
                return None;
            }
            let page = Arc::clone(index.find(at)?);
            drop(index);
            let state = page.state();
            let set = state.has(Kind::Dirty) | state.has(Kind::InFlight);
            for block in (0..geo.blocks_per_page()).filter(|b| set & (1 << b) != 0) {
                let start = geo.page_start(at) + geo.block_bytes(block);
                let end = start + u64::from(geo.block_size());
                if end > range.start && start < range.end {
                    return Some(start.max(range.start)..end.min(range.end));
                }
            }
            at = at.checked_add(1)?;
        }
    }

    pub(crate) fn remember_error<H: Host>(&self, error: &H::Error) {
        self.errors.set(H::errno(error));
    }

    /// The pages `first..=last`, locked: present ones and new ones, as many in a row as are to be had without waiting for a
    /// lock while holding another one; at least the first. For a writer.
    #[track_caller]
    pub(crate) fn lock_or_create(&self, first: u32, last: u32) -> LockedPages<'_> {
        loop {
            let mut batch = LockedPages::none(first, &self.cache.waits, (last - first + 1) as usize);
            let mut contended = None;
            {
                let mut index = self.index.write();
                for at in first..=last {
                    match index.find(at) {
                        Some(page) if page.try_lock() => batch.pages.push(Arc::clone(page)),
                        Some(page) => {
                            contended = batch.pages.is_empty().then(|| Arc::clone(page));
                            break;
                        }
                        None => {
                            let page = self.new_page(at);
                            index.insert(Arc::clone(&page));
                            batch.pages.push(page);
                        }
                    }
                }
            }
            self.join_ring();
            let Some(page) = contended else { return batch };
            drop(batch);
            if let Some(one) = LockedPages::wait_for(page, &self.cache.waits) {
                return one;
            }
        }
    }

    /// New pages `first..`, locked, until one is present or `last` is passed. When `first` itself is present: that one alone,
    /// if any of its blocks is not uptodate; none otherwise. For a fill.
    #[track_caller]
    pub(crate) fn lock_to_fill(&self, first: u32, last: u32) -> LockedPages<'_> {
        loop {
            let mut batch = LockedPages::none(first, &self.cache.waits, (last - first + 1) as usize);
            let present = {
                let mut index = self.index.write();
                let present = index.find(first).cloned();
                if present.is_none() {
                    for at in first..=last {
                        if index.find(at).is_some() {
                            break;
                        }
                        let page = self.new_page(at);
                        index.insert(Arc::clone(&page));
                        batch.pages.push(page);
                    }
                }
                present
            };
            self.join_ring();
            let Some(page) = present else { return batch };
            drop(batch);
            if let Some(one) = LockedPages::wait_for(page, &self.cache.waits) {
                return one;
            }
        }
    }

    /// The page `at`, locked, if it is in memory.
    #[track_caller]
    pub(crate) fn lock_present(&self, at: u32) -> Option<LockedPages<'_>> {
        loop {
            let page = Arc::clone(self.index.read().find(at)?);
            if let Some(locked) = LockedPages::wait_for(page, &self.cache.waits) {
                return Some(locked);
            }
        }
    }

    /// Marks pages dirty in the index, after their blocks' states were set, under their locks.
    pub(crate) fn mark_dirty<'p>(&self, pages: impl IntoIterator<Item = &'p Arc<Page>>) {
        let mut index = self.index.write();
        let new = pages.into_iter().filter(|page| index.mark(page.index)).count();
        drop(index);
        if new > 0 {
            self.unclean.fetch_add(new, Ordering::AcqRel);
            self.cache.dirtied(new, &self.owner);
        }
    }

    /// Takes a locked page out of the index. What it reserved is the caller's to give back.
    pub(crate) fn detach(&self, page: &Page) {
        let mut index = self.index.write();
        let pinned = page.detach();
        let marked = index.remove(page.index).is_some_and(|(_, marked)| marked);
        drop(index);
        // What a device writes there is nobody's from now on.
        self.cache.pinned_pages.fetch_sub(usize::from(pinned), Ordering::Relaxed);
        self.cache.detached(1);
        self.cleaned(usize::from(marked));
    }

    /// Throws away up to `most` pages that were not used since the hand came by last; how many, and whether the hand has
    /// come round to the inode's start.
    pub(crate) fn reclaim(&self, most: usize) -> (usize, bool) {
        if self.copies.any() {
            return (self.reclaim_copies(most), true);
        }
        let Some(mut hand) = self.hand.try_lock() else { return (0, true) };
        let from = std::mem::take(&mut *hand);
        drop(hand);
        let Some(mut index) = self.index.try_write() else { return (0, true) };
        let mut gone = Pages::new();
        let mut looked = 0;
        let stopped = index.each_from(from, |page| {
            if gone.len() >= most || looked >= 2 * most {
                return false;
            }
            looked += 1;
            if page.try_lock_for_eviction() {
                gone.push(Arc::clone(page));
            }
            true
        });
        let mut unmarked = 0;
        let mut leaving = Vec::new();
        gone.retain(|page| {
            if page.is_of_file() {
                leaving.push(Arc::clone(page));
                return false;
            }
            true
        });
        for page in &gone {
            page.detach();
            unmarked += usize::from(index.remove(page.index).is_some_and(|(_, marked)| marked));
            // Who waits for its lock finds it gone.
            page.unlock(&self.cache.waits);
        }
        drop(index);
        self.cache.detached(gone.len());
        self.cleaned(unmarked);
        if let Some(at) = stopped {
            *self.hand.lock() = at;
        }
        (gone.len() + self.let_go(leaving), stopped.is_none())
    }

    /// Says that the ring no longer has it, if it has no pages.
    pub(crate) fn leave_ring_if_empty(&self) -> bool {
        // Who inserts a page joins the ring after that: under the index's lock, so either the page is seen here, or the
        // joining comes later.
        let index = self.index.write();
        let empty = index.len() == 0 && !self.copies.any();
        if empty {
            self.in_ring.store(false, Ordering::Release);
        }
        empty
    }

    pub(crate) fn join_ring(&self) {
        if !self.in_ring.load(Ordering::Acquire) && !self.in_ring.swap(true, Ordering::AcqRel) {
            self.cache.add_to_ring(self.owner.clone());
        }
    }

    /// Gives back the reservations of blocks of a page, run by run.
    pub(crate) fn unreserve<H: Host>(&self, host: &H, page: u32, set: u8) {
        let geo = self.cache.geometry();
        for run in runs_of(set) {
            host.unreserve(Lblk(geo.first_block(page) + run.start), run.end - run.start);
        }
    }
}

/// The runs of ones in a set of blocks.
pub(crate) fn runs_of(set: u8) -> impl Iterator<Item = Range<u32>> {
    let mut rest = u32::from(set);
    let mut at = 0;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let skip = rest.trailing_zeros();
        let start = at + skip;
        rest >>= skip;
        let len = rest.trailing_ones();
        rest >>= len;
        at = start + len;
        Some(start..start + len)
    })
}

/// The state of blocks that were dropped: nothing is known of them.
pub(crate) fn forget(state: State, set: u8) -> State {
    let kinds = [Kind::Uptodate, Kind::Dirty, Kind::Delayed, Kind::Backed];
    kinds.iter().fold(state, |s, kind| s.without(*kind, set))
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").finish_non_exhaustive()
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.cache.detached(self.index.get_mut().len() + self.copies.len());
        self.cache.cleaned(self.unclean());
    }
}
