//! The allocator of one filesystem: its groups and what finds them.

use extant_device::BlockDevice;
use std::collections::BTreeSet;

use extant_format::{Corrupt, Csum, FormatError, Geometry, GroupDesc, GroupNr, Pblk, Place, Superblock, Tid};
use extant_journal::BlockCache;
use extant_sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use extant_sync::{Arc, Mutex, Rank};

use crate::counters::Counters;
use crate::error::{AllocError, Result};
use crate::free_map::FreeMap;
use crate::group::{Group, GroupState};
use crate::hold::Holds;
use crate::index::{GroupSet, OrderIndex};
use crate::pending::Pending;
use crate::window::{Registry, Slot};
use crate::zones::{self, SystemZones};

/// Told of every corruption that the allocator finds, once, without a lock of the allocator held.
pub type ErrorSink = Arc<dyn Fn(&AllocError) + Send + Sync>;

/// What the mount options and the superblock say about allocation.
#[derive(Clone)]
pub struct AllocOptions {
    /// Blocks that only the privileged may use (`s_r_blocks_count`).
    pub r_blocks: u64,
    /// Whether a pool of clusters is held back for splits at full disk (extents are on).
    pub hold_pool: bool,
    /// Size and alignment of large claims, in blocks (`stripe=`, `s_raid_stripe_width`); 0 or 1 for none.
    pub stripe: u32,
    /// Whether freed blocks are discarded before they are used again (`discard`).
    pub discard: bool,
    /// Ranges besides bitmaps, tables and descriptors that no file may map: the journal's blocks.
    pub system: Vec<(Pblk, u64)>,
    /// Heap bytes that open free maps of groups may take together.
    pub memory: usize,
    /// The block number that files without extents cannot have: 2^32. (Tests have less.)
    pub low_end: u64,
    /// Told of corruption.
    pub on_error: Option<ErrorSink>,
}

impl AllocOptions {
    /// What a superblock says, without mount options.
    #[must_use]
    pub fn from_superblock(sb: &Superblock) -> Self {
        let raw = sb.raw();
        Self {
            r_blocks: raw.r_blocks_count(),
            hold_pool: sb.features().incompat.contains(extant_format::Incompat::EXTENTS),
            stripe: raw.s_raid_stripe_width.get(),
            discard: false,
            system: Vec::new(),
            memory: 64 << 20,
            low_end: 1 << 32,
            on_error: None,
        }
    }
}

impl std::fmt::Debug for AllocOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocOptions").field("stripe", &self.stripe).finish_non_exhaustive()
    }
}

/// Block and inode allocation of one filesystem. `&self` everywhere; a group's lock (rank 90) is the only lock that
/// is held over a change, and for one group at a time.
pub struct Allocator {
    pub(crate) geo: Geometry,
    pub(crate) csum: Csum,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) groups: Box<[Group]>,
    /// Groups by the order of their largest free chunk.
    pub(crate) index: OrderIndex,
    /// Groups that have free inodes.
    pub(crate) with_inodes: GroupSet,
    pub(crate) free_inodes: AtomicI64,
    pub(crate) dirs: AtomicI64,
    pub(crate) pending: Mutex<Pending>,
    /// Clusters that are not to be used again yet, whether freed or not.
    pub(crate) holds: Mutex<Holds>,
    pub(crate) slots: Box<[Slot]>,
    pub(crate) windows: Registry,
    /// Held while a trim has clusters on the device: whoever finds none of those he was promised waits for them.
    pub(crate) trimming: Mutex<()>,
    /// How many groups end below the block that files without extents cannot have; all, as a rule.
    low_groups: usize,
    /// How often clusters went back into a free map.
    pub(crate) returned: AtomicU64,
    pub(crate) discard: extant_sync::atomic::AtomicBool,
    pub(crate) stripe: AtomicU32,
    counters: Counters,
    zones: SystemZones,
    on_error: Option<ErrorSink>,
    /// Heap bytes of open free maps, and how many are allowed.
    loaded: AtomicUsize,
    memory: usize,
    /// Groups whose free map is open, and where the search for one to close goes on.
    open: GroupSet,
    hand: AtomicUsize,
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allocator({} groups, {} clusters free)", self.groups.len(), self.counters.disk_free())
    }
}

/// The held-back pool: 2 percent of the clusters, at most this many.
const POOL_LIMIT: u64 = 4096;

impl Allocator {
    /// Reads and checks all group descriptors. Bitmaps are read when a group is first used.
    ///
    /// # Errors
    /// A descriptor that is wrong ([`AllocError::Format`], naming the group), or I/O.
    pub fn open(
        cache: Arc<BlockCache>,
        device: Arc<dyn BlockDevice>,
        sb: &Superblock,
        options: AllocOptions,
    ) -> Result<Arc<Self>> {
        let (geo, csum) = (*sb.geometry(), *sb.csum());
        let descs = read_descriptors(&cache, &geo, &csum)?;
        let (zones, overlap) = SystemZones::new(&geo, numbered(&descs), &options.system);
        let overlapping = if overlap {
            zones::overlapping(&geo, numbered(&descs), &options.system)
        } else {
            BTreeSet::new()
        };
        let sum = |some: &[GroupDesc]| some.iter().map(|d| i64::from(d.free_clusters)).sum::<i64>();
        let low_groups = groups_below(&geo, options.low_end, descs.len());
        let free = (sum(&descs), sum(&descs[..low_groups]));
        let total = geo.clusters_for(geo.blocks_count() - u64::from(geo.first_data_block()));
        let pool = if options.hold_pool { (total / 50).min(POOL_LIMIT) } else { 0 };
        let r_clusters = options.r_blocks >> geo.log_cluster_ratio();
        let alloc = Self {
            index: OrderIndex::new(descs.len()),
            with_inodes: GroupSet::new(descs.len()),
            free_inodes: AtomicI64::new(descs.iter().map(|d| i64::from(d.free_inodes)).sum()),
            dirs: AtomicI64::new(descs.iter().map(|d| i64::from(d.used_dirs)).sum()),
            pending: Mutex::new(Rank::RESERVATION, Pending::default()),
            holds: Mutex::new(Rank::LEAF, Holds::default()),
            slots: Slot::all(),
            windows: Registry::new(),
            trimming: Mutex::new(Rank::PREALLOC, ()),
            low_groups,
            returned: AtomicU64::new(0),
            discard: extant_sync::atomic::AtomicBool::new(options.discard),
            stripe: AtomicU32::new(options.stripe),
            counters: Counters::new(free, r_clusters as i64, pool as i64),
            zones,
            on_error: options.on_error,
            loaded: AtomicUsize::new(0),
            memory: options.memory,
            open: GroupSet::new(descs.len()),
            hand: AtomicUsize::new(0),
            groups: descs.into_iter().map(Group::new).collect(),
            geo,
            csum,
            cache,
            device,
        };
        alloc.enter_groups();
        for group in overlapping {
            alloc.fail_overlapping(group);
        }
        Ok(Arc::new(alloc))
    }

    /// Puts every group into the indexes; the largest chunk is a guess until its bitmap is read.
    fn enter_groups(&self) {
        for (g, group) in self.groups.iter().enumerate() {
            let mut state = group.lock();
            let desc = state.desc;
            self.index.shift(g, None, desc.free_clusters.checked_ilog2());
            state.order = desc.free_clusters.checked_ilog2();
            if desc.free_inodes > 0 {
                self.with_inodes.insert(g);
            }
        }
    }

    /// Takes a group whose bitmaps or inode table lie where others are out of all allocation: a change of one would be a change
    /// of the other.
    fn fail_overlapping(&self, group: GroupNr) {
        let g = group.0 as usize;
        let error = AllocError::from(FormatError::corrupt(Place::GroupDesc(group), Corrupt::Overlap));
        self.fail_group(g, self.groups[g].lock(), &error);
        self.fail_inodes(g, self.groups[g].lock(), &error);
    }

    /// The filesystem's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// Whether all of `len` blocks from `pblk` may belong to a file: inside the filesystem, none of its own.
    #[must_use]
    pub fn is_data_range(&self, pblk: Pblk, len: u64) -> bool {
        self.geo.contains_range(pblk, len) && !self.zones.touches(pblk, len)
    }

    /// A snapshot of a group's descriptor.
    #[must_use]
    pub fn group_desc(&self, group: GroupNr) -> Option<GroupDesc> {
        Some(self.groups.get(group.0 as usize)?.lock().desc)
    }

    /// Changes the blocks that only the privileged may use (a remount or `tune2fs`-like change).
    pub fn set_r_blocks(&self, blocks: u64) {
        self.counters.set_root_reserved((blocks >> self.geo.log_cluster_ratio()) as i64);
    }

    /// Turns discarding of freed blocks on or off (remount).
    pub fn set_discard(&self, on: bool) {
        self.discard.store(on, Ordering::Relaxed);
    }

    /// Size and alignment of large claims, in blocks (`stripe=`, remount).
    pub fn set_stripe(&self, blocks: u32) {
        self.stripe.store(blocks, Ordering::Relaxed);
    }

    /// How many groups end below a block.
    pub(crate) fn groups_below(&self, below: u64) -> usize {
        groups_below(&self.geo, below, self.groups.len())
    }

    /// Groups whose clusters are counted apart, because there are others ([`crate::counters`]).
    pub(crate) fn low_groups(&self) -> usize {
        if self.low_groups < self.groups.len() { self.low_groups } else { 0 }
    }

    /// Whether a group's clusters are counted apart.
    pub(crate) fn is_low(&self, g: usize) -> bool {
        g < self.low_groups()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn newest_pending(&self) -> Option<Tid> {
        self.pending.lock().newest()
    }

    /// Reports a corruption; the group that has it is marked by the caller.
    pub(crate) fn report(&self, error: &AllocError) {
        tracing::error!("{error}");
        if let Some(sink) = &self.on_error {
            sink(error);
        }
    }

    /// Runs `work` on a group whose free map is open; reads and checks its bitmap first if need be. `None` if
    /// the group is corrupt (reported when it was found) or unreadable.
    ///
    /// Takes the group's lock; the bitmap is read before.
    pub(crate) fn with_buddy<R>(
        &self,
        g: usize,
        work: impl FnOnce(&mut GroupState, usize) -> R,
    ) -> Option<R> {
        let group = &self.groups[g];
        let mut state = group.lock();
        if state.corrupt {
            return None;
        }
        if !state.map.is_open() {
            drop(state);
            state = self.load(g)?;
        }
        state.used = true;
        let result = work(&mut state, g);
        self.reindex(g, &mut state);
        Some(result)
    }

    /// As [`Self::with_buddy`], but gives up on a group that another thread holds: the search goes elsewhere.
    pub(crate) fn try_with_buddy<R>(
        &self,
        g: usize,
        work: impl FnOnce(&mut GroupState, usize) -> R,
    ) -> Option<Option<R>> {
        let mut state = self.groups[g].try_lock()?;
        if state.corrupt || !state.map.is_open() {
            drop(state);
            return Some(self.with_buddy(g, work));
        }
        state.used = true;
        let result = work(&mut state, g);
        self.reindex(g, &mut state);
        Some(Some(result))
    }

    /// Opens a group's free map, from its runs or from the bitmap, which is read and checked; returns the group locked.
    fn load(&self, g: usize) -> Option<crate::group::GroupGuard<'_>> {
        self.close_surplus(g);
        if let Some(state) = self.lock_known(g) {
            return (!state.corrupt).then_some(state);
        }
        let bitmap = self.read_bitmap(g);
        let Some(mut state) = self.lock_unknown(g) else { return self.load(g) };
        if matches!(bitmap, Ok(None)) && !self.is_block_uninit(&state.desc) {
            // Used for the first time, and its free map dropped again, since it was looked at.
            drop(state);
            return self.load(g);
        }
        // The bitmap may have changed since it was read, so it is taken from the buffer again under the lock.
        let built = bitmap.and_then(|bitmap| self.build(g, &state, bitmap.as_ref()));
        match built {
            Ok(buddy) => {
                state.map = FreeMap::Open(Box::new(buddy));
                self.opened(g, &state);
                self.reindex(g, &mut state);
                Some(state)
            }
            Err(error) => {
                self.mark_corrupt(g, &mut state);
                drop(state);
                self.report(&error);
                None
            }
        }
    }

    /// Locks a group whose bitmap need not be read: its map is in memory, and open now, or it is corrupt.
    fn lock_known(&self, g: usize) -> Option<crate::group::GroupGuard<'_>> {
        let mut state = self.groups[g].lock();
        if state.map.open() {
            self.opened(g, &state);
        }
        (state.corrupt || state.map.is_open()).then_some(state)
    }

    /// Locks a group whose bitmap has to be read; `None` if somebody else has done so meanwhile.
    fn lock_unknown(&self, g: usize) -> Option<crate::group::GroupGuard<'_>> {
        let state = self.groups[g].lock();
        (!state.corrupt && state.map.is_absent()).then_some(state)
    }

    /// A group's map was opened. Under the group's lock.
    pub(crate) fn opened(&self, g: usize, state: &GroupState) {
        self.loaded.fetch_add(state.map.open_bytes(), Ordering::Relaxed);
        self.open.insert(g);
    }

    /// Takes a group with a bad block bitmap out of allocation and its free clusters out of the counters.
    pub(crate) fn mark_corrupt(&self, g: usize, state: &mut GroupState) {
        if state.corrupt {
            return;
        }
        state.corrupt = true;
        self.counters.lost(i64::from(state.desc.free_clusters));
        if self.is_low(g) {
            self.counters.give_low(-i64::from(state.desc.free_clusters));
        }
        self.index.shift(g, state.order, None);
        state.order = None;
    }

    /// Keeps the index in step with the group's largest free chunk.
    pub(crate) fn reindex(&self, g: usize, state: &mut GroupState) {
        if state.corrupt {
            return;
        }
        let Some(order) = state.map.largest_order() else { return };
        if order != state.order {
            self.index.shift(g, state.order, order);
            state.order = order;
        }
    }

    /// Closes free maps of other groups while they take more memory than allowed: the next ones behind the last closed
    /// that were not used since. Gives up after a few; the next caller goes on.
    fn close_surplus(&self, keep: usize) {
        let mut tries = 16;
        while self.loaded.load(Ordering::Relaxed) > self.memory && tries > 0 {
            tries -= 1;
            let hand = self.hand.load(Ordering::Relaxed);
            let Some(g) = self.open.next(hand).or_else(|| self.open.next(0)) else { return };
            self.hand.store(g + 1, Ordering::Relaxed);
            if g != keep
                && let Some(mut state) = self.groups[g].try_lock()
                && !std::mem::take(&mut state.used)
            {
                self.close(g, &mut state);
            }
        }
    }

    /// Closes an open free map, if it can be. Under the group's lock.
    fn close(&self, g: usize, state: &mut GroupState) {
        let bytes = state.map.open_bytes();
        if bytes == 0 {
            return;
        }
        if state.pins == 0 {
            state.map = FreeMap::Absent;
        } else if !state.map.pack() {
            return;
        }
        self.open.remove(g);
        self.loaded.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Heap bytes of the open free maps.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        self.loaded.load(Ordering::Relaxed)
    }
}

fn groups_below(geo: &Geometry, below: u64, all: usize) -> usize {
    geo.group_of_block(Pblk(below)).map_or(all, |(group, _)| group.0 as usize)
}

fn numbered(descs: &[GroupDesc]) -> impl Iterator<Item = (GroupNr, &GroupDesc)> {
    descs.iter().enumerate().map(|(g, d)| (GroupNr(g as u32), d))
}

fn read_descriptors(cache: &Arc<BlockCache>, geo: &Geometry, csum: &Csum) -> Result<Vec<GroupDesc>> {
    let mut descs = Vec::with_capacity(geo.groups() as usize);
    for index in 0..geo.desc_blocks() {
        let Some(block) = geo.desc_block(index) else { break };
        let buf = cache.read(block)?;
        let bytes = buf.bytes();
        for slot in bytes.chunks_exact(usize::from(geo.desc_size())) {
            if descs.len() == geo.groups() as usize {
                break;
            }
            let group = GroupNr(descs.len() as u32);
            let desc = GroupDesc::read(group, slot, geo, csum)?;
            descs.push(desc);
        }
    }
    Ok(descs)
}
