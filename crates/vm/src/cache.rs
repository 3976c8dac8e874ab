//! What all inodes of a filesystem share: page memory, limits, the list of dirty inodes, reclaim, writeback threads.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use extant_device::{BlockDevice, DirectAccess};
use extant_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use extant_sync::{Arc, Condvar, Mutex, Rank, Weak, assert_nothing_held, thread};
use extant_sys::PagePool;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::grace::Graces;
use crate::host::{Held, Owner};
use crate::looks::Looks;
use crate::mutant::without;
use crate::page::Page;
use crate::pause::{Pause, SLACK_PART};
use crate::pin::Holders;
use crate::remembered::Remembered;
use crate::together::TOGETHER;
use crate::wait::WaitTable;

/// Pages that reclaim frees at a time, and writes at a time before it looks again.
const RECLAIM_BATCH: usize = 256;
/// Pages a thread writes of one inode before another one gets its turn: 8 MiB.
pub(crate) const WRITE_BATCH: usize = 2048;
/// See [`PageCache::easy_limit`].
const EASY_BYTES: usize = 16 << 20;
/// Inodes that are looked at for memory to use again: enough for files of one page each.
const EASY_VISITS: usize = 1024;
/// Parts of the budget that may be dirty before the threads write for who takes new pages, and before writers write themselves. Who
/// writes to pages that are in memory has the threads write at half of the latter.
///
/// Smaller than the kernel's tenth and fifth: what is dirty is memory that cannot be used again, and fresh memory costs more than
/// an early write. Measured with an image in memory, 4 KiB written to 60,000 random places of 512 MiB: limits of 8 and 32 MiB
/// took 0.24 s of processor time, 32 and 96 MiB 0.31 s, 192 and 384 MiB 0.54 s, and the larger ones saved an eighth of the bytes
/// written. 256 MiB in sequence: 0.17 s against 0.22 s.
const BACKGROUND_PART: usize = 64;
const DIRTY_PART: usize = 16;
/// A small budget is no reason to write in tiny pieces: at least so much, if that is no more than an eighth, or half, of it.
const BACKGROUND_LEAST: usize = 4 << 20;
const DIRTY_LEAST: usize = 16 << 20;
/// How often the writeback threads look for old dirty pages.
const TICK: Duration = Duration::from_secs(5);
/// Dirty pages are old after so many ticks.
const OLD: u64 = 6;

/// Limits of a [`PageCache`].
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// Bytes of pages at most, between operations. One operation may overdraw by what it handles at a time; pages of mapped files to
    /// which a device may be writing, by as much again.
    pub budget: usize,
    /// Reads of at least so many bytes that find nothing cached go straight to the caller's buffer, until as many bytes as the
    /// file has were read so: what is read once leaves the cache alone. `usize::MAX` caches everything.
    pub direct_read: usize,
    /// Largest read-ahead in bytes.
    pub read_ahead: usize,
    /// The guard that is taken away.
    #[cfg(feature = "shuttle")]
    pub mutant: crate::Mutant,
}

/// Sizes and places of pages and blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageGeometry {
    block_shift: u32,
    page_shift: u32,
}

/// Counters of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Pages in memory.
    pub pages: usize,
    /// Of these, dirty.
    pub dirty: usize,
    /// Bytes of a page.
    pub page_size: usize,
    /// Inodes with dirty pages.
    pub dirty_inodes: usize,
    /// Pins that are held.
    pub pins: usize,
    /// Pages that were looked at for what no fault told of, since the beginning.
    pub looked_at: u64,
}

/// The page cache of one filesystem.
pub struct PageCache {
    device: Arc<dyn BlockDevice>,
    /// The device's memory, if files may be in DAX mode.
    dax: Option<DirectAccess>,
    geometry: PageGeometry,
    config: CacheConfig,
    pool: PagePool,
    pub(crate) waits: WaitTable,
    pages: AtomicUsize,
    dirty: AtomicUsize,
    pub(crate) pins: AtomicUsize,
    /// Pages in an index that are pinned, however often.
    pub(crate) pinned_pages: AtomicUsize,
    pub(crate) holders: Holders,
    pub(crate) looked_at: AtomicU64,
    pub(crate) pause: Pause,
    work: Mutex<Work>,
    wake: Condvar,
    /// Threads are there to do background work.
    has_threads: AtomicBool,
    ring: Mutex<VecDeque<Weak<dyn Owner>>>,
    /// Inodes that have had mappings.
    mapped: Mutex<Vec<Weak<dyn Owner>>>,
    /// Blocks that are not to be used again yet, the oldest first.
    pub(crate) grace: Mutex<Graces>,
    pub(crate) grace_ended: Condvar,
    /// Files that have shown blocks, and that have no mapping any more.
    pub(crate) remembered: Mutex<Remembered>,
    /// There are some.
    pub(crate) remembers: AtomicBool,
    pub(crate) looks: Mutex<Looks>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Work {
    /// Every inode with dirty pages, by its address.
    dirty: FxHashMap<usize, Listed>,
    /// The same in the order they came, with the number of the listing: an inode that left the list and came back has two
    /// entries here, of which the old one is skipped.
    queue: VecDeque<(usize, u64)>,
    listings: u64,
    tick: u64,
    kick: bool,
    stop: bool,
}

struct Listed {
    owner: Held,
    /// The tick when it came.
    tick: u64,
    listing: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            budget: 256 << 20,
            direct_read: 16 << 10,
            read_ahead: 2 << 20,
            #[cfg(feature = "shuttle")]
            mutant: crate::Mutant::None,
        }
    }
}

impl PageGeometry {
    pub(crate) fn block_size(self) -> u32 {
        1 << self.block_shift
    }

    pub(crate) fn page_size(self) -> usize {
        1 << self.page_shift
    }

    pub(crate) fn blocks_per_page(self) -> u32 {
        1 << (self.page_shift - self.block_shift)
    }

    /// The number of the page that holds byte `at`; `None` past the last page a file can have.
    /// The page of byte `at`; `None` past the last block that has a number.
    pub(crate) fn page_of(self, at: u64) -> Option<u32> {
        u32::try_from(at >> self.page_shift).ok().filter(|page| *page <= self.last_page())
    }

    /// The last page whose blocks all have numbers.
    pub(crate) fn last_page(self) -> u32 {
        u32::MAX >> (self.page_shift - self.block_shift)
    }

    pub(crate) fn page_start(self, page: u32) -> u64 {
        u64::from(page) << self.page_shift
    }

    pub(crate) fn in_page(self, at: u64) -> usize {
        (at & (self.page_size() as u64 - 1)) as usize
    }

    pub(crate) fn first_block(self, page: u32) -> u32 {
        page << (self.page_shift - self.block_shift)
    }

    pub(crate) fn page_of_block(self, lblk: u32) -> u32 {
        lblk >> (self.page_shift - self.block_shift)
    }

    /// Bytes of `blocks` blocks.
    pub(crate) fn block_bytes(self, blocks: u32) -> u64 {
        u64::from(blocks) << self.block_shift
    }

    /// Blocks that hold `bytes` bytes, the last one perhaps in part.
    pub(crate) fn blocks_up(self, bytes: usize) -> u32 {
        bytes.div_ceil(1 << self.block_shift) as u32
    }

    /// The set of a page's blocks that the bytes `from..to` of it touch.
    pub(crate) fn touched(self, from: usize, to: usize) -> u8 {
        crate::page::blocks((from >> self.block_shift) as u32..self.blocks_up(to))
    }

    pub(crate) fn all_blocks(self) -> u8 {
        crate::page::blocks(0..self.blocks_per_page())
    }

    pub(crate) fn pblk_bytes(self, pblk: extant_format::Pblk) -> io::Result<u64> {
        pblk.0.checked_mul(u64::from(self.block_size())).ok_or_else(|| io::Error::from_raw_os_error(5))
    }
}

impl PageCache {
    /// A cache for files on `device` with blocks of `block_size` bytes.
    ///
    /// # Panics
    /// Unless `block_size` is a power of two from 1024 to 65536.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>, block_size: u32, config: CacheConfig) -> Arc<Self> {
        assert!(
            block_size.is_power_of_two() && (1024..=65536).contains(&block_size),
            "block size {block_size}"
        );
        let geometry = PageGeometry {
            block_shift: block_size.trailing_zeros(),
            page_shift: block_size.max(4096).trailing_zeros(),
        };
        // A block is then a page, of the cache and of the processor.
        let is_page = block_size as usize == extant_sys::page_size();
        let dax = device.direct_access().filter(|dax| is_page && dax.has_pages_of(block_size.into()));
        Arc::new(Self {
            device,
            dax,
            geometry,
            config,
            pool: PagePool::new(geometry.page_size()),
            waits: WaitTable::new(),
            pages: AtomicUsize::new(0),
            dirty: AtomicUsize::new(0),
            pins: AtomicUsize::new(0),
            pinned_pages: AtomicUsize::new(0),
            holders: Holders::default(),
            looked_at: AtomicU64::new(0),
            pause: Pause::default(),
            work: Mutex::new(Rank::LEAF, Work::default()),
            wake: Condvar::new(),
            has_threads: AtomicBool::new(false),
            ring: Mutex::new(Rank::LEAF, VecDeque::new()),
            mapped: Mutex::new(Rank::LEAF, Vec::new()),
            grace: Mutex::new(Rank::LEAF, Graces::default()),
            grace_ended: Condvar::new(),
            remembered: Mutex::new(Rank::LEAF, Remembered::default()),
            remembers: AtomicBool::new(false),
            looks: Mutex::new(Rank::LEAF, Looks::default()),
            threads: Mutex::new(Rank::LEAF, Vec::new()),
        })
    }

    pub(crate) fn geometry(&self) -> PageGeometry {
        self.geometry
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    /// The device as memory, if it can be mapped and its blocks are pages of the system: then files may be in DAX mode.
    #[must_use]
    pub fn dax(&self) -> Option<&DirectAccess> {
        self.dax.as_ref()
    }

    pub(crate) fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            pages: self.pages.load(Ordering::Relaxed),
            dirty: self.dirty.load(Ordering::Relaxed),
            page_size: self.geometry.page_size(),
            dirty_inodes: self.work.lock().dirty.len(),
            pins: self.pins.load(Ordering::Relaxed),
            looked_at: self.looked_at.load(Ordering::Relaxed),
        }
    }

    /// A locked page for the index, whose lock the caller holds; with memory of the pool unless some is given. What was written long
    /// enough ago is cleaned for its memory.
    pub(crate) fn new_page(&self, index: u32, mem: Option<extant_sys::PageMem>) -> Arc<Page> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        if self.dirty.load(Ordering::Relaxed) > self.background_limit() {
            self.kick();
        }
        Arc::new(Page::new_locked(index, mem.unwrap_or_else(|| self.pool.take())))
    }

    /// Memory for a copy of a page.
    pub(crate) fn bounce(&self) -> extant_sys::PageMem {
        self.pool.take()
    }

    /// Pages of a file in DAX mode that are in no index.
    pub(crate) fn attached(&self, pages: usize) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages went out of an index.
    pub(crate) fn detached(&self, pages: usize) {
        self.pages.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Pages that were marked dirty are clean, or their mark was wrong.
    pub(crate) fn cleaned(&self, pages: usize) {
        self.dirty.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Pages of `owner` were marked dirty.
    pub(crate) fn dirtied(&self, pages: usize, owner: &Weak<dyn Owner>) {
        let dirty = self.dirty.fetch_add(pages, Ordering::Relaxed) + pages;
        self.list(owner);
        // Pages that were in memory before take no more of it: they need not be clean as soon as new ones.
        if dirty > self.dirty_limit() / 2 {
            self.kick();
        }
    }

    /// Puts an inode on the list of dirty ones, unless it is there.
    fn list(&self, owner: &Weak<dyn Owner>) {
        let address = owner.as_ptr().addr();
        let mut work = self.work.lock();
        if work.dirty.contains_key(&address) {
            return;
        }
        // An inode that is going away has dropped its pages.
        let Some(owner) = owner.upgrade() else { return };
        work.listings += 1;
        let (tick, listing) = (work.tick, work.listings);
        work.dirty.insert(address, Listed { owner, tick, listing });
        work.queue.push_back((address, listing));
    }

    /// Takes an inode off the list when nothing of it is dirty. Its last reference may go with it.
    fn unlist(&self, owner: &dyn Owner, address: usize) {
        let removed = {
            let mut work = self.work.lock();
            // Who marks a page counts it, then lists its inode: either the count is seen here, or the listing comes later.
            if owner.pages().unclean() > 0 {
                let tick = work.tick;
                // What is pinned is dirty again, from now on: else its inode would be the oldest one for ever.
                if let Some(listed) =
                    work.dirty.get_mut(&address).filter(|_| self.pinned_pages.load(Ordering::Relaxed) > 0)
                {
                    listed.tick = tick;
                }
                None
            } else {
                work.dirty.remove(&address)
            }
        };
        drop(removed);
    }

    /// The same for an inode whose dirty pages were dropped.
    pub(crate) fn unlist_clean(&self, owner: &Weak<dyn Owner>) {
        if let Some(strong) = owner.upgrade() {
            self.unlist(&*strong, owner.as_ptr().addr());
        }
    }

    pub(crate) fn add_to_ring(&self, owner: Weak<dyn Owner>) {
        self.ring.lock().push_back(owner);
    }

    /// An inode gets mappings.
    pub(crate) fn add_mapped(&self, owner: Weak<dyn Owner>) {
        let mut mapped = self.mapped.lock();
        // Those that are gone go from the list when it would grow: each is looked at a bounded number of times.
        if mapped.len() == mapped.capacity() {
            mapped.retain(|owner| owner.strong_count() > 0);
        }
        mapped.push(owner);
    }

    /// What [`AddressSpace::find_unseen_changes`](crate::AddressSpace::find_unseen_changes) does, for all inodes that have had
    /// mappings: before everything is written and the filesystem is said to be clean. Takes page locks (50), one at a time.
    ///
    /// # Errors
    /// The first that any of them met; the others were looked at all the same.
    pub fn find_unseen_changes(&self) -> io::Result<()> {
        if without!(self, AllLookedAt) {
            return Ok(());
        }
        let mut result = Ok(());
        for owner in self.mapped_owners() {
            let found = owner.find_unseen();
            result = result.and(found);
        }
        result
    }

    /// What [`AddressSpace::hide_dax`](crate::AddressSpace::hide_dax) does, for all inodes that have had mappings. Takes their
    /// `invalidate_lock`s exclusively (30), one at a time.
    ///
    /// # Errors
    /// The system's; then some may go on showing the device.
    pub fn hide_dax(&self) -> io::Result<()> {
        for owner in self.mapped_owners() {
            let pages = owner.pages();
            pages.hide_dax(&pages.exclusive())?;
        }
        Ok(())
    }

    pub(crate) fn mapped_owners(&self) -> Vec<Held> {
        self.mapped.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// So many pages the cache takes without a second thought. Beyond, memory that was used once is used again before the system
    /// is asked for more: fresh memory costs more than reading something again from a device that is cached below.
    fn easy_limit(&self) -> usize {
        (EASY_BYTES / self.geometry.page_size()).min(self.limit())
    }

    /// Dirty pages that writing makes clean: pinned ones stay dirty.
    fn dirty_to_write(&self) -> usize {
        self.dirty.load(Ordering::Relaxed).saturating_sub(self.pinned_pages.load(Ordering::Relaxed))
    }

    fn limit(&self) -> usize {
        (self.config.budget / self.geometry.page_size()).max(64)
    }

    /// Above this many dirty pages the threads write.
    fn background_limit(&self) -> usize {
        let least = BACKGROUND_LEAST / self.geometry.page_size();
        (self.limit() / BACKGROUND_PART).max(least).min(self.limit() / 8)
    }

    /// Above this many dirty pages writers write themselves.
    fn dirty_limit(&self) -> usize {
        let least = DIRTY_LEAST / self.geometry.page_size();
        (self.limit() / DIRTY_PART).max(least).min(self.limit() / 2)
    }

    /// Brings the cache back under its limits: before and after an operation, with nothing held.
    ///
    /// # Errors
    /// The device's, when too much is dirty and nothing can be written: the cache does not grow past its bounds for
    /// data that may never reach the disk.
    #[track_caller]
    pub fn throttle(&self) -> io::Result<()> {
        if self.dirty_to_write() > self.dirty_limit() {
            assert_nothing_held(Rank::INODE, "waiting for the dirty limit");
            let written = self.write_down_to(self.dirty_limit());
            // A file that cannot be written is no reason to refuse the others, until it takes half of the memory.
            if self.dirty_to_write() > self.limit() / 2 {
                written?;
            }
        }
        if self.over() > 0 {
            assert_nothing_held(Rank::INODE, "waiting for memory");
            self.make_room()?;
        } else if self.pages.load(Ordering::Relaxed) > self.easy_limit()
            && self.pool.free_pages() < RECLAIM_BATCH
        {
            // If little comes of it, not again before a good many pages were used.
            // Each inode once: what is dirty there now stays so for a while.
            let visits = EASY_VISITS.min(self.ring.lock().len());
            let freed = self.reclaim_from(2 * RECLAIM_BATCH, visits);
            // Pages of mapped files give the pool nothing: without growing it, every fault would take more of them away.
            if freed < RECLAIM_BATCH || self.pool.free_pages() < RECLAIM_BATCH {
                self.pool.grow();
            }
        }
        Ok(())
    }

    /// Whether there is more in the cache, or more dirty, than [`Self::throttle`] would leave.
    pub(crate) fn is_overdrawn(&self) -> bool {
        let over = self.over();
        self.dirty_to_write() > self.dirty_limit() || over > 0 && !self.pause.holds(over, self.limit())
    }

    /// Frees clean pages, if there are more than allowed: only tries locks.
    pub(crate) fn reclaim_surplus(&self) {
        let over = self.over();
        if over == 0 || self.pause.holds(over, self.limit()) {
            return;
        }
        let kept = self.pause.kept();
        if self.reclaim(over + RECLAIM_BATCH.min(self.limit() / 8)) < over && self.pause.kept() != kept {
            self.pause.begin(self.over());
        }
    }

    /// Pages over the limit.
    fn over(&self) -> usize {
        self.pages.load(Ordering::Relaxed).saturating_sub(self.limit())
    }

    /// How many pages leave whatever may be under way to them: none, until there are twice as many as allowed.
    pub(crate) fn leave_in_doubt(&self) -> usize {
        let over = self.over();
        if over > self.limit() { over - self.limit() + self.limit() / SLACK_PART } else { 0 }
    }

    /// Frees clean pages until the limit is kept; writes some when too few are clean. What waits for transfers may stay.
    fn make_room(&self) -> io::Result<()> {
        let (mut wrote, mut failed) = (false, false);
        loop {
            let over = self.over();
            if over == 0 || self.pause.holds(over, self.limit()) {
                return Ok(());
            }
            let kept_before = self.pause.kept();
            if self.reclaim(over + RECLAIM_BATCH.min(self.limit() / 8)) >= over {
                return Ok(());
            }
            let kept = self.pause.kept() != kept_before;
            let dirty = self.dirty_to_write();
            // Writing again gives no more than it gave.
            let in_vain = failed || wrote && kept;
            if dirty == 0 || in_vain {
                if kept {
                    self.pause.begin(self.over());
                }
                // Everything else is locked by somebody who is at work, or used all the time: they will throttle too.
                return Ok(());
            }
            let written = self.write_down_to(dirty.saturating_sub(over + RECLAIM_BATCH));
            // As above: one file that cannot be written is no reason to refuse the others.
            if self.dirty_to_write() > self.limit() / 2 {
                written?;
            } else {
                failed = written.is_err();
            }
            wrote = true;
        }
    }

    /// Writes inodes, oldest first, until at most `most` pages are dirty. In the calling thread: progress needs no other.
    fn write_down_to(&self, most: usize) -> io::Result<()> {
        let mut failed = FxHashSet::default();
        while self.dirty_to_write() > most {
            let some = self.next_dirty(TOGETHER, |address, _| !failed.contains(&address));
            if some.is_empty() {
                return if failed.is_empty() { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) };
            }
            self.write_listed(some, &mut failed);
        }
        Ok(())
    }

    /// Writes some of the inodes' dirty pages and takes those that are clean off the list; notes the ones that failed.
    fn write_listed(&self, mut some: Vec<(Held, usize)>, failed: &mut FxHashSet<usize>) {
        if let [(owner, address)] = &some[..] {
            // Alone: go on where the last time ended.
            if !owner.write_some(WRITE_BATCH) {
                failed.insert(*address);
            }
            self.unlist(&**owner, *address);
            return;
        }
        some.sort_by_cached_key(|(owner, _)| owner.number());
        let owners: Vec<Held> = some.iter().map(|(owner, _)| Arc::clone(owner)).collect();
        let good = self.write_together(&owners);
        for ((owner, address), good) in some.iter().zip(good) {
            if !good {
                failed.insert(*address);
            }
            self.unlist(&**owner, *address);
        }
    }

    /// The next inodes of the list that `wanted(address, its tick)`, at most `most`; they go to the end.
    fn next_dirty(&self, most: usize, wanted: impl Fn(usize, u64) -> bool) -> Vec<(Held, usize)> {
        let mut work = self.work.lock();
        let mut found = Vec::new();
        for _ in 0..work.queue.len() {
            let Some((address, listing)) = work.queue.pop_front() else { break };
            let Some(listed) = work.dirty.get(&address).filter(|l| l.listing == listing) else { continue };
            if wanted(address, listed.tick) {
                found.push((Arc::clone(&listed.owner), address));
            }
            work.queue.push_back((address, listing));
            if found.len() >= most {
                break;
            }
        }
        found
    }

    /// Writes everything that is dirty now, inodes in the order of their numbers. All data is then on the device and
    /// published; flushing and committing are the caller's. Holds nothing itself; the caller holds nothing from 40 on.
    ///
    /// # Errors
    /// EIO when any inode's writeback failed; the others were written all the same.
    pub fn sync_all(&self) -> io::Result<()> {
        let mut owners: Vec<(Held, usize)> = {
            let work = self.work.lock();
            work.dirty.iter().map(|(address, listed)| (Arc::clone(&listed.owner), *address)).collect()
        };
        owners.sort_by_key(|(owner, _)| owner.number());
        let mut good = true;
        let mut held: Vec<Held> = Vec::with_capacity(TOGETHER);
        for group in owners.chunks(TOGETHER) {
            held.clear();
            held.extend(group.iter().map(|(owner, _)| Arc::clone(owner)));
            let went_well = self.write_together(&held);
            for ((owner, address), mut well) in group.iter().zip(went_well) {
                // What did not fit into the first go; a failure is not tried again.
                if well && owner.pages().is_dirty() {
                    well = owner.write_all();
                }
                good &= well;
                self.unlist(&**owner, *address);
            }
        }
        if good { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) }
    }

    /// Inodes with dirty pages, for reporting what an unmount had to drop.
    pub fn dirty_owners(&self) -> Vec<Arc<dyn Owner>> {
        self.work.lock().dirty.values().map(|listed| Arc::clone(&listed.owner)).collect()
    }

    /// Frees up to `want` pages that are clean and not in use; how many.
    pub fn reclaim(&self, want: usize) -> usize {
        // Each inode gets two visits at most: one clears the marks of use, the next one frees.
        let visits = 2 * self.ring.lock().len() + 1;
        self.reclaim_from(want, visits)
    }

    /// The same, looking at no more than `visits` inodes.
    fn reclaim_from(&self, want: usize, mut visits: usize) -> usize {
        let mut freed = 0;
        while freed < want && visits > 0 {
            visits -= 1;
            let Some(weak) = self.ring.lock().pop_front() else { break };
            let Some(owner) = weak.upgrade() else { continue };
            let (now, wrapped) = owner.pages().reclaim(want - freed);
            freed += now;
            if wrapped && owner.pages().leave_ring_if_empty() {
                continue;
            }
            let mut ring = self.ring.lock();
            if wrapped {
                ring.push_back(weak);
            } else {
                visits += 1;
                ring.push_front(weak);
            }
        }
        freed
    }

    fn kick(&self) {
        if !self.has_threads.load(Ordering::Relaxed) {
            return;
        }
        let mut work = self.work.lock();
        if !work.kick {
            work.kick = true;
            drop(work);
            self.wake.notify_all();
        }
    }

    /// Starts `count` threads that write in the background: above the background limit, and what is older than half a minute.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_threads(self: &Arc<Self>, count: usize) -> io::Result<()> {
        for number in 0..count {
            let cache = Arc::clone(self);
            let builder = thread::Builder::new().name(format!("writeback-{number}"));
            let handle = builder.spawn(move || cache.background())?;
            self.threads.lock().push(handle);
            self.has_threads.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Stops the threads and waits for them. They leave what is dirty as it is.
    pub fn stop_threads(&self) {
        self.has_threads.store(false, Ordering::Relaxed);
        let threads = std::mem::take(&mut *self.threads.lock());
        self.work.lock().stop = true;
        self.wake.notify_all();
        let me = thread::current().id();
        for handle in threads {
            // The owner's last reference may be dropped by one of the threads themselves, which then ends by itself.
            if handle.thread().id() != me {
                // A panic of the thread has been printed; what it left dirty stays dirty.
                let _ = handle.join();
            }
        }
        self.work.lock().stop = false;
    }

    fn background(&self) {
        let _harmless = extant_sys::transfers::harmless();
        loop {
            let oldest = {
                let mut work = self.work.lock();
                if !work.kick && !work.stop && self.wake.wait_for(&mut work, TICK) {
                    work.tick += 1;
                }
                if work.stop {
                    return;
                }
                work.kick = false;
                work.tick.checked_sub(OLD)
            };
            self.end_grace();
            // A failing inode is tried once a round.
            let mut failed = FxHashSet::default();
            // Once above the limit, well below it: else every newly dirty page would wake the thread for one write.
            let low = self.background_limit() / 4 * 3;
            loop {
                let over = self.dirty_to_write() > low;
                if !over && oldest.is_none() {
                    break;
                }
                let wanted =
                    |address, tick| !failed.contains(&address) && (over || oldest.is_some_and(|o| tick <= o));
                let some = self.next_dirty(TOGETHER, wanted);
                if some.is_empty() {
                    break;
                }
                self.write_listed(some, &mut failed);
                if self.work.lock().stop {
                    return;
                }
            }
        }
    }
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageCache").field("config", &self.config).finish_non_exhaustive()
    }
}
