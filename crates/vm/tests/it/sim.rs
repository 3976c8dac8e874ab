//! A file in memory that keeps books strictly: every reservation, claim and publication is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use extant_device::{BlockDevice, DirectAccess, MemSlice, MemoryDevice};
use extant_format::{Lblk, Pblk, Tid};
use extant_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use extant_sync::{Arc, Condvar, Mutex, Rank};
use extant_vm::{
    AddressSpace, Backing, CacheConfig, Host, Mapped, PageCache, Placement, SimMmu, SpaceHope, SpaceWait,
};

/// What the device holds where nobody ever wrote: old bytes of other files, which must never be seen.
pub(crate) const STALE: u8 = 0xEE;

/// A device whose writes can be made to fail.
#[derive(Debug)]
pub(crate) struct FaultyDevice {
    inner: Box<dyn BlockDevice>,
    /// Byte ranges whose writes fail.
    bad: Mutex<Vec<Range<u64>>>,
    /// What it had when it was flushed last.
    durable: Mutex<Vec<u8>>,
    /// It looks twice at memory that it is to write; and what it was to write has changed meanwhile.
    pub(crate) looks_twice: AtomicBool,
    changed: AtomicBool,
    pub(crate) writes: AtomicU64,
}

impl FaultyDevice {
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Self::over(Box::new(MemoryDevice::from_bytes(&vec![STALE; size])))
    }

    /// One that can be mapped.
    pub(crate) fn mappable(size: usize) -> Arc<Self> {
        let inner = extant_device::FileDevice::in_memory(size as u64).expect("a memory file");
        inner.write_at(0, &vec![STALE; size]).expect("inside");
        Self::over(Box::new(inner))
    }

    fn over(inner: Box<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            bad: Mutex::new(Rank::LEAF, Vec::new()),
            durable: Mutex::new(Rank::LEAF, Vec::new()),
            looks_twice: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        })
    }

    /// A byte as a crash leaves it at least.
    #[cfg(feature = "shuttle")]
    pub(crate) fn durable(&self, at: u64) -> u8 {
        self.durable.lock().get(at as usize).copied().unwrap_or(STALE)
    }

    /// Whether anything that was to be written of memory changed while it was read.
    #[cfg(feature = "shuttle")]
    pub(crate) fn saw_changes(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    pub(crate) fn break_writes(&self, ranges: &[Range<u64>]) {
        *self.bad.lock() = ranges.to_vec();
    }
}

impl BlockDevice for FaultyDevice {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let end = offset + buf.len() as u64;
        if self.bad.lock().iter().any(|r| r.start < end && offset < r.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.write_at(offset, buf)
    }

    fn write_mem_at(&self, offset: u64, slices: &[MemSlice<'_>]) -> io::Result<()> {
        let read = || {
            let mut bytes = vec![0; slices.iter().map(MemSlice::len).sum()];
            let mut at = 0;
            for slice in slices {
                slice.copy_to(0, &mut bytes[at..at + slice.len()]);
                at += slice.len();
            }
            bytes
        };
        let bytes = read();
        if self.looks_twice.load(Ordering::Relaxed) {
            // As a device does that makes a checksum or a mirror.
            extant_sync::may_be_preempted();
            if read() != bytes {
                self.changed.store(true, Ordering::Relaxed);
            }
        }
        self.write_at(offset, &bytes)
    }

    fn flush(&self) -> io::Result<()> {
        // One at a time, so that none ends with older bytes.
        let mut durable = self.durable.lock();
        durable.resize(self.inner.size() as usize, 0);
        self.inner.read_at(0, &mut durable)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.write_zeroes(offset, len)
    }

    fn direct_access(&self) -> Option<DirectAccess> {
        self.inner.direct_access()
    }
}

/// Space of the simulated filesystem: blocks are handed out in short runs, never twice while in use.
#[derive(Debug)]
pub(crate) struct Space {
    free: BTreeSet<u64>,
    pub(crate) reserved: u64,
    /// Blocks that are not to be used again, by how many hold them; and those of them that were freed.
    held: BTreeMap<u64, u32>,
    back: BTreeSet<u64>,
    /// Longest run that a claim gets.
    longest: u32,
}

pub(crate) type Shared = Arc<Mutex<Space>>;

/// A filesystem without names: a device, its space, a cache.
pub(crate) struct SimFs {
    pub(crate) device: Arc<FaultyDevice>,
    pub(crate) cache: Arc<PageCache>,
    pub(crate) space: Shared,
    block_size: u32,
}

impl SimFs {
    pub(crate) fn new(block_size: u32, blocks: u64, config: CacheConfig) -> Self {
        Self::on(FaultyDevice::new(blocks as usize * block_size as usize), block_size, blocks, config)
    }

    /// On a device that can be mapped.
    pub(crate) fn mappable(blocks: u64, config: CacheConfig) -> Self {
        Self::on(FaultyDevice::mappable(blocks as usize * 4096), 4096, blocks, config)
    }

    fn on(device: Arc<FaultyDevice>, block_size: u32, blocks: u64, config: CacheConfig) -> Self {
        let cache = PageCache::new(device.clone(), block_size, config);
        let space = Space {
            free: (1..blocks).collect(),
            reserved: 0,
            held: BTreeMap::new(),
            back: BTreeSet::new(),
            longest: 7,
        };
        Self { device, cache, space: Arc::new(Mutex::new(Rank::GROUP, space)), block_size }
    }

    pub(crate) fn file(&self, number: u64) -> Arc<SimFile> {
        Arc::new_cyclic(|weak: &std::sync::Weak<SimFile>| SimFile {
            pages: AddressSpace::new(self.cache.clone(), weak.clone()),
            number,
            size: AtomicU64::new(0),
            disk_size: AtomicU64::new(0),
            block_size: u64::from(self.block_size),
            map: Mutex::new(Rank::EXTENT_MAP, Map::default()),
            seq: AtomicU64::new(0),
            moves: Mutex::new(Rank::LEAF, None),
            no_claims: AtomicBool::new(false),
            inline: Mutex::new(Rank::XATTR, None),
            space: self.space.clone(),
            device: self.device.clone(),
            inode: Mutex::new(Rank::INODE, ()),
            in_use: AtomicBool::new(false),
            faults: std::sync::OnceLock::new(),
            handle: Mutex::new(Rank::HANDLE, ()),
            noted: AtomicU64::new(0),
            committed: Mutex::new(Rank::LEAF, Committed::default()),
        })
    }

    /// Blocks that are free.
    #[cfg(feature = "shuttle")]
    pub(crate) fn space_left(&self) -> usize {
        self.space.lock().free.len()
    }

    /// A file whose inode was forgotten, read anew.
    #[cfg(feature = "shuttle")]
    pub(crate) fn read_anew(&self, file: &SimFile) -> Arc<SimFile> {
        let anew = self.file(file.number);
        anew.pages.begin_dax(file.pages.is_dax());
        let map = std::mem::take(&mut *file.map.lock());
        *anew.map.lock() = map;
        anew.set_size(file.size());
        anew.disk_size.store(file.disk_size(), Ordering::Release);
        anew
    }
}

/// Lets store faults in, or not.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Nobody is let in any more; how many are.
    state: Mutex<(bool, usize)>,
    out: Condvar,
}

#[derive(Debug, Default)]
struct Map {
    blocks: BTreeMap<u32, (u64, bool)>,
    reserved: BTreeSet<u32>,
}

/// A file whose map is a table.
pub(crate) struct SimFile {
    pub(crate) pages: AddressSpace,
    number: u64,
    size: AtomicU64,
    disk_size: AtomicU64,
    block_size: u64,
    map: Mutex<Map>,
    seq: AtomicU64,
    /// The next look at this block's place finds it, and then it moves.
    pub(crate) moves: Mutex<Option<u32>>,
    /// Claims fail with EIO.
    pub(crate) no_claims: AtomicBool,
    /// Content that is in the inode.
    pub(crate) inline: Mutex<Option<Vec<u8>>>,
    space: Shared,
    device: Arc<FaultyDevice>,
    /// In the place of the inode's lock.
    pub(crate) inode: Mutex<()>,
    /// Somebody has that lock.
    pub(crate) in_use: AtomicBool,
    /// In the place of the filesystem's gate, where a scenario closes it.
    faults: std::sync::OnceLock<Faults>,
    /// Held over a change of the map that a commit is to have or not.
    handle: Mutex<()>,
    /// Publications that are over.
    noted: AtomicU64,
    committed: Mutex<Committed>,
}

/// What the last commit has made durable.
#[derive(Debug, Default)]
struct Committed {
    noted: u64,
    #[cfg(feature = "shuttle")]
    blocks: BTreeMap<u32, (u64, bool)>,
    #[cfg(feature = "shuttle")]
    size: u64,
}

/// Blocks that are kept from being used again.
struct SimHold {
    blocks: Range<u64>,
    block_size: u64,
    space: Shared,
    device: Arc<FaultyDevice>,
}

impl Drop for SimHold {
    fn drop(&mut self) {
        for block in self.blocks.clone() {
            let mut space = self.space.lock();
            let count = space.held.get_mut(&block).expect("held");
            *count -= 1;
            if *count > 0 {
                continue;
            }
            space.held.remove(&block);
            if space.back.remove(&block) {
                // Whoever gets it finds what a block has that is nobody's.
                let bytes = vec![STALE; self.block_size as usize];
                self.device.inner.write_at(block * self.block_size, &bytes).expect("inside");
                assert!(space.free.insert(block), "freed twice");
            }
        }
    }
}

/// Claimed blocks: returned when dropped unpublished.
pub(crate) struct SimClaim {
    lblk: u32,
    len: u32,
    pblk: u64,
    /// For unwritten blocks nothing was taken from the free ones.
    fresh: bool,
    space: Option<Shared>,
}

impl Drop for SimClaim {
    fn drop(&mut self) {
        if let (true, Some(space)) = (self.fresh, self.space.take()) {
            space.lock().free.extend(self.pblk..self.pblk + u64::from(self.len));
        }
    }
}

impl Host for SimFile {
    type Error = io::Error;
    type Claim = SimClaim;

    fn space(&self) -> &AddressSpace {
        &self.pages
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn grow_size(&self, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    fn disk_size(&self) -> u64 {
        self.disk_size.load(Ordering::Acquire)
    }

    fn map(&self, lblk: Lblk, len: u32) -> io::Result<Mapped> {
        let map = self.map.lock();
        let at = |n: u32| map.blocks.get(&(lblk.0 + n)).copied();
        let first = at(0);
        let like = |n: u32| match (first, at(n)) {
            (None, None) => true,
            (Some((p, u)), Some((q, v))) => u == v && q == p + u64::from(n),
            _ => false,
        };
        let run = (1..len).take_while(|n| like(*n)).count() as u32 + 1;
        let backing = match first {
            None => Backing::Hole,
            Some((p, true)) => Backing::Unwritten(Pblk(p)),
            Some((p, false)) => Backing::Data(Pblk(p)),
        };
        drop(map);
        let moving = self.moves.lock().take_if(|m| lblk.0 <= *m && *m < lblk.0 + run);
        moving.into_iter().for_each(|m| self.move_block(m));
        Ok(Mapped { backing, len: run })
    }

    fn map_seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    fn map_tid(&self) -> io::Result<Tid> {
        Ok(Tid(self.noted.load(Ordering::Acquire) as u32))
    }

    fn is_durable(&self, tid: Tid) -> bool {
        self.committed.lock().noted >= u64::from(tid.0)
    }

    // Only there are mappings with MAP_SYNC.
    #[cfg(feature = "shuttle")]
    fn commit_map(&self, _tid: Tid, stay: bool) -> io::Result<bool> {
        // Who is answered that it is parked commits.
        if stay {
            self.commit();
        }
        Ok(stay)
    }

    fn reserve(&self, lblk: Lblk, len: u32) -> io::Result<()> {
        let mut map = self.map.lock();
        let mut space = self.space.lock();
        if space.reserved + u64::from(len) > space.free.len() as u64 {
            return Err(io::Error::from_raw_os_error(28));
        }
        for at in lblk.0..lblk.0 + len {
            assert!(!map.blocks.contains_key(&at), "reservation for block {at}, which is mapped");
            assert!(map.reserved.insert(at), "block {at} reserved twice");
        }
        space.reserved += u64::from(len);
        Ok(())
    }

    fn unreserve(&self, lblk: Lblk, len: u32) {
        let mut map = self.map.lock();
        for at in lblk.0..lblk.0 + len {
            assert!(map.reserved.remove(&at), "block {at} is not reserved");
        }
        self.space.lock().reserved -= u64::from(len);
    }

    fn claim(&self, lblk: Lblk, len: u32, delayed: bool) -> io::Result<Placement<SimClaim>> {
        if self.no_claims.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(117));
        }
        let map = self.map.lock();
        if !delayed {
            let mapped = {
                drop(map);
                self.map(lblk, len)?
            };
            let (pblk, unwritten) = match mapped.backing {
                Backing::Hole => panic!("a dirty block {lblk} with neither place nor reservation"),
                Backing::Data(p) => (p, false),
                Backing::Unwritten(p) => (p, true),
            };
            let len = mapped.len;
            let claim =
                unwritten.then(|| SimClaim { lblk: lblk.0, len, pblk: pblk.0, fresh: false, space: None });
            return Ok(Placement { pblk, len, claim });
        }
        let mut space = self.space.lock();
        let first = *space.free.first().expect("reserved blocks are there");
        let most = len.min(space.longest);
        let len = (1..most).take_while(|n| space.free.contains(&(first + u64::from(*n)))).count() as u32 + 1;
        for n in 0..len {
            assert!(
                map.reserved.contains(&(lblk.0 + n)),
                "claim of block {} without reservation",
                lblk.0 + n
            );
            space.free.remove(&(first + u64::from(n)));
        }
        let claim = SimClaim { lblk: lblk.0, len, pblk: first, fresh: true, space: Some(self.space.clone()) };
        Ok(Placement { pblk: Pblk(first), len, claim: Some(claim) })
    }

    fn publish(&self, claims: &mut [SimClaim], end: u64) -> io::Result<()> {
        let _handle = self.handle.lock();
        let mut map = self.map.lock();
        for claim in claims {
            for n in 0..claim.len {
                let at = claim.lblk + n;
                let pblk = claim.pblk + u64::from(n);
                if claim.fresh {
                    assert!(map.reserved.remove(&at), "publication of block {at} without reservation");
                    assert!(map.blocks.insert(at, (pblk, false)).is_none(), "block {at} has two places");
                } else {
                    assert_eq!(map.blocks.insert(at, (pblk, false)), Some((pblk, true)));
                }
            }
            if claim.fresh {
                self.space.lock().reserved -= u64::from(claim.len);
            }
            claim.space = None;
            self.seq.fetch_add(1, Ordering::AcqRel);
        }
        assert!(end <= self.size(), "i_disksize {end} past i_size {}", self.size());
        self.disk_size.fetch_max(end, Ordering::AcqRel);
        drop(map);
        // As the filesystem does: others may see the map before it is noted with the end of the handle.
        self.noted.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn is_inline(&self) -> bool {
        self.inline.lock().is_some()
    }

    fn inline(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.inline.lock().clone())
    }

    fn leave_inline(&self) -> io::Result<()> {
        let content = self.inline.lock().clone().expect("content in the inode, under the lock of page 0");
        let len = self.block_size as usize;
        let pblk = {
            let mut space = self.space.lock();
            if space.free.len() as u64 <= space.reserved {
                return Err(io::Error::from_raw_os_error(28));
            }
            space.free.pop_first().expect("some are free")
        };
        let mut block = content;
        block.resize(len, 0);
        if let Err(e) = self.device.write_at(pblk * self.block_size, &block) {
            self.space.lock().free.insert(pblk);
            return Err(e);
        }
        let mut inline = self.inline.lock();
        assert!(self.map.lock().blocks.insert(0, (pblk, false)).is_none(), "moved twice");
        self.disk_size.fetch_max(self.size(), Ordering::AcqRel);
        *inline = None;
        self.seq.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn hold(&self, pblk: Pblk, len: u32) -> Box<dyn Send + Sync> {
        let blocks = pblk.0..pblk.0 + u64::from(len);
        let mut space = self.space.lock();
        blocks.clone().for_each(|block| *space.held.entry(block).or_default() += 1);
        drop(space);
        let (space, device) = (self.space.clone(), self.device.clone());
        Box::new(SimHold { blocks, block_size: self.block_size, space, device })
    }

    fn try_alone<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let _inode = self.inode.try_lock().filter(|_| !self.in_use.load(Ordering::Relaxed))?;
        Some(work())
    }

    fn await_space(&self, wait: &mut SpaceWait, stay: bool) -> SpaceHope {
        if stay { SpaceHope::None } else { self.pages.cache().hope_for_space(wait) }
    }

    fn in_fault<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let Some(faults) = self.faults.get() else { return Some(work()) };
        {
            let mut state = faults.state.lock();
            if state.0 {
                return None;
            }
            state.1 += 1;
        }
        let done = work();
        faults.state.lock().1 -= 1;
        faults.out.notify_all();
        Some(done)
    }

    fn claims_per_publish(&self) -> usize {
        3
    }

    fn errno(error: &io::Error) -> i32 {
        error.raw_os_error().unwrap_or(5)
    }
}

impl SimFile {
    /// Lets programs map it.
    pub(crate) fn attach(&self) -> Arc<SimMmu> {
        let page = 4096.max(self.block_size as usize);
        let device = self.pages.cache().dax().cloned();
        let mmu = SimMmu::over_device(page, self.size(), device).expect("a memory file");
        assert!(self.pages.attach(mmu.clone()));
        mmu
    }
}

/// For the explored scenarios.
#[cfg(feature = "shuttle")]
impl SimFile {
    /// Store faults can be kept out from now on.
    pub(crate) fn gate_faults(&self) {
        let faults = Faults { state: Mutex::new(Rank::LEAF, (false, 0)), out: Condvar::new() };
        assert!(self.faults.set(faults).is_ok());
    }

    /// Lets no store fault in any more, and waits for those that are.
    pub(crate) fn end_faults(&self) {
        let faults = self.faults.get().expect("a gate");
        let mut state = faults.state.lock();
        state.0 = true;
        faults.out.wait_while(&mut state, |state| state.1 > 0);
    }

    /// Makes it a file of this content in its inode.
    pub(crate) fn make_inline(&self, content: &[u8]) {
        *self.inline.lock() = Some(content.to_vec());
        self.set_size(content.len() as u64);
        self.disk_size.store(content.len() as u64, Ordering::Release);
    }

    /// write(2) as the filesystem would do it: content in the inode stays there while it fits into `capacity` bytes.
    pub(crate) fn write(&self, pos: u64, data: &[u8], capacity: usize) -> io::Result<usize> {
        if self.is_inline() {
            let end = pos as usize + data.len();
            self.pages.grow_memory(self.size().max(end as u64))?;
            let guard = self.pages.lock_inline();
            let mut inline = self.inline.lock();
            if let Some(content) = &mut *inline {
                if end <= capacity {
                    content.resize(content.len().max(end), 0);
                    content[pos as usize..end].copy_from_slice(data);
                    guard.refresh(content);
                    self.grow_size(end as u64);
                    self.disk_size.fetch_max(end as u64, Ordering::AcqRel);
                    return Ok(data.len());
                }
                drop(inline);
                self.leave_inline()?;
            }
        }
        let outcome = self.pages.write(self, pos, data);
        match outcome.error {
            Some(error) if outcome.written == 0 => Err(error),
            _ => Ok(outcome.written),
        }
    }
}

impl SimFile {
    /// truncate(2), as the filesystem would do it.
    pub(crate) fn truncate(&self, size: u64) -> io::Result<()> {
        let guard = self.pages.exclusive();
        let old = self.size();
        if size > old {
            // i_size last: on an error it stays, or no later sync would know that its end is not on disk.
            self.pages.prepare_growth(&guard, self, size)?;
            self.settle_old_end()?;
            self.disk_size.store(size, Ordering::Release);
            self.set_size(size);
            return Ok(());
        }
        if size > self.disk_size() {
            self.settle_old_end()?;
        }
        self.pages.truncate(&guard, self, size)?;
        self.unmap(size.div_ceil(self.block_size)..u64::MAX);
        self.disk_size.store(size, Ordering::Release);
        Ok(())
    }

    /// Punches `range`: edges zeroed, whole blocks out of the map.
    pub(crate) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let guard = self.pages.exclusive();
        let end = range.end.min(self.size());
        if range.start >= end {
            return Ok(());
        }
        // A punch up to the end covers the last block whole.
        let covered = if end == self.size() { end.next_multiple_of(self.block_size) } else { end };
        // Before blocks are dropped that nobody publishes any more.
        if end > self.disk_size() {
            self.settle_old_end()?;
            self.disk_size.fetch_max(end, Ordering::AcqRel);
        }
        let _gate = self.pages.punch(&guard, self, range.start..covered)?;
        let first = range.start.div_ceil(self.block_size);
        self.unmap(first..first.max(covered / self.block_size));
        Ok(())
    }

    /// Takes whole blocks out of the file.
    #[cfg(feature = "shuttle")]
    pub(crate) fn collapse(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        self.move_blocks(range, self.size() - len, |at, cut| {
            if at < cut.end { None } else { Some(at - (cut.end - cut.start)) }
        })
    }

    /// Makes room of whole blocks in the file.
    #[cfg(feature = "shuttle")]
    pub(crate) fn insert(&self, range: Range<u64>) -> io::Result<()> {
        let size = self.size() + (range.end - range.start);
        self.pages.grow_memory(size)?;
        self.move_blocks(range, size, |at, room| Some(at + (room.end - room.start)))
    }

    /// Gives every block from the range on the place that `to` says, or frees it.
    #[cfg(feature = "shuttle")]
    fn move_blocks(
        &self,
        range: Range<u64>,
        size: u64,
        to: fn(u64, &Range<u64>) -> Option<u64>,
    ) -> io::Result<()> {
        let guard = self.pages.exclusive();
        if self.pages.has_pins(&guard, range.start) {
            return Err(io::Error::from_raw_os_error(16));
        }
        let gate = self.pages.take_out(&guard, self, range.start)?;
        let blocks = range.start / self.block_size..range.end / self.block_size;
        let moved: Vec<(u32, (u64, bool))> = {
            let mut map = self.map.lock();
            let tail = map.blocks.split_off(&(blocks.start as u32));
            tail.into_iter().collect()
        };
        for (at, place) in moved {
            // One after the other: who looked now would find a file half moved.
            self.seq.fetch_add(1, Ordering::AcqRel);
            match to(u64::from(at), &blocks) {
                Some(new) => {
                    self.map.lock().blocks.insert(new as u32, place);
                }
                None => self.free_block(place.0),
            }
        }
        self.disk_size.store(size, Ordering::Release);
        self.pages.moved(&guard, self, size);
        drop(gate);
        Ok(())
    }

    /// Gives blocks to the holes of `range`, unwritten.
    pub(crate) fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let guard = self.pages.exclusive();
        let _gate = self.pages.place_delayed(&guard, self, range.clone())?;
        let blocks = range.start / self.block_size..range.end.div_ceil(self.block_size);
        for at in blocks {
            let at = at as u32;
            let mut map = self.map.lock();
            let mut space = self.space.lock();
            if !map.blocks.contains_key(&at) && space.free.len() as u64 > space.reserved {
                assert!(!map.reserved.contains(&at), "block {at} gets a place while it is delayed");
                let pblk = space.free.pop_first().expect("some are free");
                map.blocks.insert(at, (pblk, true));
                self.seq.fetch_add(1, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Gives a block another place; the old one turns stale.
    fn move_block(&self, lblk: u32) {
        let mut map = self.map.lock();
        let to = self.space.lock().free.pop_first().expect("a free block");
        let (from, unwritten) = map.blocks.insert(lblk, (to, false)).expect("a mapped block");
        assert!(!unwritten);
        let mut bytes = vec![0; self.block_size as usize];
        self.device.inner.read_at(from * self.block_size, &mut bytes).expect("inside");
        self.device.inner.write_at(to * self.block_size, &bytes).expect("inside");
        self.device.inner.write_at(from * self.block_size, &vec![STALE; bytes.len()]).expect("inside");
        self.space.lock().free.insert(from);
        self.seq.fetch_add(1, Ordering::AcqRel);
    }

    /// Writes as direct I/O would, by the cheapest way that is open.
    pub(crate) fn write_direct(&self, pos: u64, data: &[u8]) -> io::Result<usize> {
        if self.pages.overwrite_past_cache(self, pos, data)? {
            return Ok(data.len());
        }
        let guard = self.pages.exclusive();
        let outcome = self.pages.write_past_cache(&guard, self, pos, data);
        match outcome.error {
            Some(error) if outcome.written == 0 => Err(error),
            None if outcome.written < data.len() => {
                drop(guard);
                let outcome = self.pages.write(self, pos, data);
                self.pages.sync(self, pos..pos + data.len() as u64)?;
                outcome.error.map_or(Ok(outcome.written), Err)
            }
            _ => Ok(outcome.written),
        }
    }

    /// fsync(2), as the filesystem would do it where nothing is to be committed.
    #[cfg(feature = "shuttle")]
    pub(crate) fn fsync(&self) -> io::Result<()> {
        self.pages.note_stores(self);
        self.pages.sync(self, 0..u64::MAX)?;
        let Some(changes) = self.pages.unflushed() else { return Ok(()) };
        self.device.flush()?;
        self.pages.flushed(changes);
        Ok(())
    }

    /// Commits what was published, with the content of its blocks.
    #[cfg(feature = "shuttle")]
    pub(crate) fn commit(&self) {
        let _handle = self.handle.lock();
        let (noted, blocks) = (self.noted.load(Ordering::Acquire), self.map.lock().blocks.clone());
        let size = self.disk_size();
        self.device.flush().expect("flush");
        *self.committed.lock() = Committed { noted, blocks, size };
    }

    /// A byte as a crash leaves it at least, and as it does if its line has left the processor's caches; `None`: it is not the file's.
    #[cfg(feature = "shuttle")]
    pub(crate) fn survives(&self, at: u64) -> Option<(u8, u8)> {
        let place = {
            let committed = self.committed.lock();
            let block = committed
                .blocks
                .get(&((at / self.block_size) as u32))
                .filter(|b| !b.1 && at < committed.size);
            block?.0 * self.block_size + at % self.block_size
        };
        let mut flushed = [0];
        self.device.inner.read_at(place, &mut flushed).expect("inside");
        Some((self.device.durable(place), flushed[0]))
    }

    /// Brings it into DAX mode, or out of it; `false` while it has pins. Under the lock in the place of the inode's.
    #[cfg(feature = "shuttle")]
    pub(crate) fn switch(&self, dax: bool) -> io::Result<bool> {
        self.pages.begin_switch(self)?;
        let guard = self.pages.exclusive();
        self.pages.switch_dax(&guard, self, dax)
    }

    /// Makes blocks of `range` unwritten, as zeroing does.
    #[cfg(feature = "shuttle")]
    pub(crate) fn unwrite(&self, range: Range<u64>) -> io::Result<()> {
        let guard = self.pages.exclusive();
        let _gate = self.pages.punch(&guard, self, range.clone())?;
        let mut map = self.map.lock();
        for at in range.start.div_ceil(self.block_size)..range.end / self.block_size {
            if let Some((pblk, unwritten)) = map.blocks.get_mut(&(at as u32)) {
                *unwritten = true;
                let bytes = vec![STALE; self.block_size as usize];
                self.device.inner.write_at(*pblk * self.block_size, &bytes)?;
            }
        }
        self.seq.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Whether every free block has what it had when it was freed: nobody writes to blocks that are nobody's.
    #[cfg(feature = "shuttle")]
    pub(crate) fn free_blocks_untouched(&self) -> bool {
        let free: Vec<u64> = self.space.lock().free.iter().copied().collect();
        let mut bytes = vec![0; self.block_size as usize];
        free.iter().all(|block| {
            self.device.inner.read_at(block * self.block_size, &mut bytes).expect("inside");
            bytes.iter().all(|byte| *byte == STALE)
        })
    }

    fn settle_old_end(&self) -> io::Result<()> {
        let end = self.disk_size();
        if end.is_multiple_of(self.block_size) { Ok(()) } else { self.pages.sync(self, end - 1..end + 1) }
    }

    /// Frees blocks; their content turns stale, as if another file had got them.
    pub(crate) fn unmap(&self, blocks: Range<u64>) {
        let mut map = self.map.lock();
        let inside: Vec<u32> =
            map.blocks.keys().copied().filter(|b| blocks.contains(&u64::from(*b))).collect();
        for at in inside {
            let (pblk, _) = map.blocks.remove(&at).expect("just seen");
            self.seq.fetch_add(1, Ordering::AcqRel);
            self.free_block(pblk);
        }
    }

    fn free_block(&self, pblk: u64) {
        let bytes = vec![STALE; self.block_size as usize];
        self.device.inner.write_at(pblk * self.block_size, &bytes).expect("inside");
        let mut space = self.space.lock();
        let fresh = if space.held.contains_key(&pblk) {
            space.back.insert(pblk)
        } else {
            // Once more: what a device wrote before it was let go of is no write to a block that is nobody's.
            self.device.inner.write_at(pblk * self.block_size, &bytes).expect("inside");
            space.free.insert(pblk)
        };
        assert!(fresh, "freed twice");
    }

    /// The file as it would be after a crash: what map, `i_disksize` and device say.
    pub(crate) fn after_crash(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.disk_size().next_multiple_of(self.block_size) as usize];
        let map = self.map.lock();
        for (at, block) in bytes.chunks_mut(self.block_size as usize).enumerate() {
            if let Some((pblk, false)) = map.blocks.get(&(at as u32)) {
                self.device.inner.read_at(pblk * self.block_size, block).expect("inside");
            }
        }
        bytes.truncate(self.disk_size() as usize);
        bytes
    }

    /// Blocks that are mapped past the end the disk knows.
    pub(crate) fn mapped_past_end(&self) -> usize {
        let end = self.disk_size().div_ceil(self.block_size);
        self.map
            .lock()
            .blocks
            .iter()
            .filter(|(at, (_, unwritten))| u64::from(**at) >= end && !unwritten)
            .count()
    }

    pub(crate) fn reserved_blocks(&self) -> usize {
        self.map.lock().reserved.len()
    }

    /// The places on the device of the blocks of `range`.
    pub(crate) fn places(&self) -> Vec<(u32, u64)> {
        self.map.lock().blocks.iter().map(|(at, (pblk, _))| (*at, *pblk)).collect()
    }
}

/// A small generator of numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| u64::from(d.subsec_nanos()) | 1)
        });
        println!("seed={seed}");
        Self::from_seed(seed)
    }

    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Bytes that are never [`STALE`].
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let first = self.below(200) as usize;
        (0..len).map(|i| ((first + i) % 199 + 1) as u8).collect()
    }
}
