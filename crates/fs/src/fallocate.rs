//! Preallocation, holes, zeroed ranges; finding data and holes. Ranges that go out of a file or come in are in `shift`.

use std::collections::BTreeSet;
use std::ops::Range;

use extant_alloc::{ClaimRequest, Privilege, Reservation, ToFree};
use extant_format::inode::InodeFlags;
use extant_format::{GroupNr, Lblk, Pblk};
use extant_journal::Buf;
use extant_map::{Extent, MapKind, Placement, Run, Written};
use extant_vm::{ExclusiveGuard, Gate, Host};

use crate::cred::Credentials;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;

/// So many groups' bitmaps are in memory before a range goes.
const GROUPS_HELD: usize = 256;
/// Most blocks of one unwritten extent.
const MOST_UNWRITTEN: u32 = 32_767;

/// What fallocate(2) is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Blocks for every hole, reading as zeros.
    Allocate,
    /// A hole; i_size stays.
    PunchHole,
    /// Zeros, with blocks behind them.
    ZeroRange,
    /// The range goes out of the file, what is behind it moves down. Whole blocks (clusters), not up to the end.
    CollapseRange,
    /// A hole comes in, what is there and behind it moves up. Whole blocks (clusters), before the end.
    InsertRange,
    /// Zeros in blocks that count as written, where the device makes zeros itself.
    WriteZeroes,
    /// Blocks of its own for what is shared: ext4 shares nothing, and refuses this.
    UnshareRange,
}

impl FallocateMode {
    /// What a mode word of fallocate(2) asks for, and whether i_size stays.
    ///
    /// # Errors
    /// `NotSupported` for the words and combinations that the kernel refuses.
    pub fn from_flags(flags: u32) -> Result<(Self, bool)> {
        let keep_size = flags & KEEP_SIZE != 0;
        let mode = match flags & !KEEP_SIZE {
            0 => Self::Allocate,
            2 if keep_size => Self::PunchHole,
            8 if !keep_size => Self::CollapseRange,
            16 => Self::ZeroRange,
            32 if !keep_size => Self::InsertRange,
            64 => Self::UnshareRange,
            128 if !keep_size => Self::WriteZeroes,
            _ => return Err(Error::NotSupported("that mode of fallocate(2)")),
        };
        Ok((mode, keep_size))
    }
}

/// `FALLOC_FL_KEEP_SIZE`
const KEEP_SIZE: u32 = 1;

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekKind {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

impl Filesystem {
    /// fallocate(2). `keep_size`: i_size stays although the range goes past it.
    ///
    /// # Errors
    /// `Invalid`, `FileTooBig`, `NotPermitted` as the kernel; `NoSpace`: what was allocated until then stays, i_size is raised to its end
    /// unless `keep_size`, and a zeroing of whole blocks is done up to there; `NotSupported` for files without extents, and of
    /// [`FallocateMode::WriteZeroes`] for devices that do not make zeros; `Busy` where a pinned page would move; damage; the device's.
    pub fn fallocate(
        &self,
        inode: &InodeRef,
        mode: FallocateMode,
        offset: u64,
        len: u64,
        keep_size: bool,
        cred: &Credentials,
    ) -> Result<()> {
        if len == 0 {
            return Err(Error::Invalid("a length of zero"));
        }
        let end = offset.saturating_add(len);
        self.pages.throttle()?;
        self.with_space(|| self.noted(self.fallocate_once(inode, mode, offset..end, keep_size, cred)))?;
        if self.is_sync(inode) { self.fsync(inode, false) } else { Ok(()) }
    }

    /// The one entry of all modes. The inode lock is held exclusively, so direct I/O is over; content has left the inode;
    /// `invalidate_lock` is held exclusively, so no fault, fill or read-ahead is under way until the operation is over, and what mappings
    /// show of the range, pages or windows of the device, is taken away under it and does not come back.
    fn fallocate_once(
        &self,
        inode: &InodeRef,
        mode: FallocateMode,
        range: Range<u64>,
        keep_size: bool,
        cred: &Credentials,
    ) -> Result<()> {
        let _write = self.begin_write()?;
        let _lock = inode.lock.write();
        self.check_content_change(inode)?;
        if mode != FallocateMode::Allocate && inode.flags().contains(InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        // For whatever a mode does there, and however much less a map without extents can hold: as the kernel.
        if range.end > self.largest_file() {
            return Err(Error::FileTooBig);
        }
        self.check_mode(mode, keep_size)?;
        if mode == FallocateMode::WriteZeroes && self.journals_data(inode) {
            // The log may have content for the blocks, and would bring it back over what the device made.
            return Err(Error::NotSupported("written zeros in a file whose data goes through the journal"));
        }
        self.kill_privs(inode, false, cred)?;
        self.make_blocks(inode, cred)?;
        if mode != FallocateMode::PunchHole && inode.map_kind() == MapKind::Indirect {
            return Err(Error::NotSupported("preallocated or moved blocks in a file without extents"));
        }
        let data = inode.data(self);
        data.set_rights(self, cred);
        self.touch_written(inode);
        let guard = data.pages.exclusive();
        self.operate(inode, &guard, mode, range, keep_size, cred)?;
        drop(guard);
        self.log_data(inode, 0)
    }

    fn operate(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        mode: FallocateMode,
        range: Range<u64>,
        keep_size: bool,
        cred: &Credentials,
    ) -> Result<()> {
        match mode {
            FallocateMode::PunchHole => return self.punch_hole(inode, guard, range),
            FallocateMode::CollapseRange => return self.collapse_range(inode, guard, range),
            FallocateMode::InsertRange => return self.insert_range(inode, guard, range),
            FallocateMode::Allocate | FallocateMode::ZeroRange | FallocateMode::WriteZeroes => {}
            FallocateMode::UnshareRange => return self.check_mode(mode, keep_size),
        }
        if !keep_size {
            self.need_size(range.end)?;
        }
        let (reached, done) = match mode {
            FallocateMode::Allocate => self.preallocate(inode, guard, range.clone(), cred),
            _ => self.zero_range(inode, guard, range.clone(), cred),
        };
        // What was allocated stays, and the file ends behind it also where there was not enough: as with the kernel.
        let extended = if !keep_size && reached > inode.size() {
            self.extend_under(inode, guard, reached)
        } else {
            Ok(())
        };
        done.and(extended)?;
        // After i_size: past it no block is written.
        if mode == FallocateMode::WriteZeroes { self.write_zeroes(inode, &range) } else { Ok(()) }
    }

    /// Refuses modes that nothing here, or not this device, can do.
    fn check_mode(&self, mode: FallocateMode, keep_size: bool) -> Result<()> {
        match mode {
            FallocateMode::WriteZeroes | FallocateMode::CollapseRange | FallocateMode::InsertRange
                if keep_size =>
            {
                Err(Error::NotSupported("that mode of fallocate(2) with the size kept"))
            }
            FallocateMode::UnshareRange => Err(Error::NotSupported("unsharing: ext4 shares no blocks")),
            FallocateMode::WriteZeroes if !self.device.makes_zeros() => {
                Err(Error::NotSupported("written zeros on a device that does not make them itself"))
            }
            _ => Ok(()),
        }
    }

    /// Gives unwritten blocks to every hole of the range, in as many handles as it takes. Up to which byte, 0 for not even the first
    /// block, and why not further.
    ///
    /// Faults wait: a store would make a hole of the range delayed that gets a block here.
    fn preallocate(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        range: Range<u64>,
        cred: &Credentials,
    ) -> (u64, Result<()>) {
        let size = u64::from(self.geo.block_size());
        let first = range.start / size;
        let mut at = first;
        let done = self.allocate_holes(inode, guard, &range, &mut at, cred);
        (if at == first { 0 } else { (at * size).min(range.end) }, done)
    }

    /// The same: all before block `at` has its place.
    fn allocate_holes(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        range: &Range<u64>,
        at: &mut u64,
        cred: &Credentials,
    ) -> Result<()> {
        let data = inode.data(self);
        // Delayed blocks of the range are reserved holes; afterwards they have their places, and none becomes delayed under the gate.
        // With bigalloc, blocks beside the range may be on their way into the same clusters.
        let gate = data.pages.place_delayed(guard, &**data, range.clone())?;
        let _gate = gate.unless(without!(self, AllocateGated));
        let size = u64::from(self.geo.block_size());
        let end = u32::try_from(range.end.div_ceil(size)).map_err(|_| Error::FileTooBig)?;
        while let Some(left) = u64::from(end).checked_sub(*at).filter(|left| *left > 0) {
            let (lblk, left) = (*at as u32, left as u32);
            let len = match self.map_lookup(inode, Lblk(lblk), left)? {
                Run::Mapped { len, .. } => len,
                Run::Hole { len } => {
                    self.allocate_hole(inode, lblk, len.min(left).min(MOST_UNWRITTEN), cred)?
                }
            };
            *at += u64::from(len);
        }
        Ok(())
    }

    /// Gives unwritten blocks to a hole, at least to its first block; to how many.
    fn allocate_hole(&self, inode: &InodeRef, at: u32, len: u32, cred: &Credentials) -> Result<u32> {
        self.quota_admit(Self::quota_ids(inode), 1, 0, cred)?;
        let len = self.within_quota(inode, len, cred);
        let (kind, depth) = (inode.map_kind(), self.depth(inode)?);
        let ratio = self.geo.cluster_ratio();
        let place = self.map.placement(&inode.map_ref(&inode.map.read()), Lblk(at), len)?;
        let meta = self.map.tree_blocks_worst(kind, depth, 1);
        let (pblk, len, mut claim, mut space) = match place {
            Placement::Implied { pblk, len } => {
                (pblk, len, None, self.alloc.reserve(0, meta, self.privilege(cred))?)
            }
            Placement::Claim { len } => {
                let clusters = (u64::from(at % ratio) + u64::from(len)).div_ceil(u64::from(ratio));
                let mut space = self
                    .alloc
                    .reserve(clusters, meta, self.privilege(cred))
                    .or_else(|_| self.alloc.reserve(1, meta, self.privilege(cred)))?;
                let goal = inode.data(self).goal(self, inode, Lblk(at))?;
                let claim = self.alloc.claim_held(&ClaimRequest::plain(goal, Lblk(at), len), &mut space)?;
                (claim.pblk(), claim.len().min(len), Some(claim), space)
            }
        };
        let mut handle = self.start_data(inode, self.map.insert_credits(kind, depth, 1) + 1)?;
        let done = (|| {
            let mut i_block = inode.map.write();
            if let Some(claim) = &mut claim {
                self.alloc.publish(&mut handle, claim, len)?;
            }
            let extent = Extent { lblk: Lblk(at), len, pblk, unwritten: true };
            let delta = self.map.insert(&mut handle, &mut inode.map_mut(&mut i_block), extent, &mut space)?;
            self.map_changed(inode, &i_block, delta.total());
            drop(i_block);
            self.write_inode(&mut handle, inode)
        })();
        self.finish(handle, done, inode)?;
        Ok(len)
    }

    /// How many of `len` blocks the owners' quotas allow: as many as a few halvings find.
    fn within_quota(&self, inode: &Inode, len: u32, cred: &Credentials) -> u32 {
        let mut len = len;
        while len > 1 && self.quota_admit(Self::quota_ids(inode), len.into(), 0, cred).is_err() {
            len /= 2;
        }
        len
    }

    /// The part of `range` that a punch has to do with: past the last byte nothing is.
    fn inside(&self, inode: &Inode, range: Range<u64>) -> Option<Range<u64>> {
        let size = inode.size();
        // The block with the end is covered only by a range that goes on behind the end: as the kernel.
        let end =
            if range.end > size { size.next_multiple_of(self.geo.block_size().into()) } else { range.end };
        (range.start < size).then_some(range.start..end)
    }

    /// Takes the range out of the cache, its edges zeroed, after what the disk knows as the end of the file was brought behind it:
    /// dropped blocks are never published, and their end with them. Until the gate that this returns is dropped nothing is written or
    /// finds a place: the caller changes the map under it.
    fn clear_cache<'a>(
        &self,
        inode: &'a Inode,
        guard: &ExclusiveGuard<'_>,
        range: Range<u64>,
    ) -> Result<Gate<'a>> {
        let data = inode.data(self);
        let end = range.end.min(inode.size());
        if end > data.disk_size() {
            self.raise_disk_size(inode, end)?;
        }
        data.pages.punch(guard, &**data, range)
    }

    /// The whole blocks of a range.
    pub(crate) fn whole_blocks(&self, range: &Range<u64>) -> Range<u32> {
        let size = u64::from(self.geo.block_size());
        let block = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        block(range.start.div_ceil(size))..block(range.end / size)
    }

    /// What splitting an extent at both ends of a range may take. Pointers to blocks are not split, and without extents there is no pool.
    pub(crate) fn split_space(&self, inode: &Inode) -> Result<Reservation> {
        if inode.map_kind() == MapKind::Indirect {
            return Ok(self.alloc.no_reservation(Privilege::Pool));
        }
        let worst = self.map.tree_blocks_worst(inode.map_kind(), self.depth(inode)?, 2);
        Ok(self.alloc.reserve(0, worst, Privilege::Pool)?)
    }

    /// Reads what taking a range out of the map, or changing it there, reads: once the cache has lost the range, what was dirty
    /// there is gone, and an error would bring back what was on the device before.
    fn hold_for_range(&self, inode: &Inode, range: &Range<u64>) -> Result<Vec<Buf>> {
        self.quota_prepare(Self::quota_ids(inode))?;
        let blocks = self.whole_blocks(range);
        let mut held =
            self.map.hold(&inode.map_ref(&inode.map.read()), Lblk(blocks.start)..Lblk(blocks.end))?;
        held.push(self.cache.read(inode.table.0)?);
        Ok(held)
    }

    /// In how many groups the blocks of a range are, and what freeing them reads, of the first ones.
    pub(crate) fn hold_groups(&self, inode: &Inode, blocks: &Range<u32>) -> Result<(u32, Vec<ToFree>)> {
        let (mut groups, mut held) = (BTreeSet::new(), Vec::new());
        let mut at = blocks.start;
        while at < blocks.end {
            let run = self.map_lookup(inode, Lblk(at), blocks.end - at)?;
            if let Run::Mapped { pblk, len, .. } = run {
                let last = Pblk(pblk.0 + u64::from(len) - 1);
                let (Some((first, _)), Some((last, _))) =
                    (self.geo.bit_of_block(pblk), self.geo.bit_of_block(last))
                else {
                    // Damage, which taking the range out finds.
                    break;
                };
                for group in first.0..=last.0 {
                    if groups.insert(group) && held.len() < GROUPS_HELD {
                        held.push(self.alloc.prepare_free(self.geo.group_first_block(GroupNr(group)), 1)?);
                    }
                }
            }
            at = at.saturating_add(run.len());
        }
        Ok((u32::try_from(groups.len()).unwrap_or(u32::MAX), held))
    }

    fn punch_hole(&self, inode: &InodeRef, guard: &ExclusiveGuard<'_>, range: Range<u64>) -> Result<()> {
        let Some(range) = self.inside(inode, range) else { return Ok(()) };
        // What can fail comes before anything is dropped.
        let mut spare = self.split_space(inode)?;
        self.place_neighbours(inode, &range)?;
        let blocks = self.whole_blocks(&range);
        let _held = (self.hold_for_range(inode, &range)?, self.hold_groups(inode, &blocks)?);
        let mut clear = range.clone();
        if extant_vm::bug!(PunchEnd) {
            clear.end -= (clear.end % u64::from(self.geo.block_size())).min(clear.end - clear.start);
        }
        let _gate = self.clear_cache(inode, guard, clear)?.unless(without!(self, PunchGated));
        if blocks.start >= blocks.end {
            return Ok(());
        }
        // Not before: until the cache is clear, delayed blocks may find places.
        let len = blocks.end - blocks.start;
        if matches!(self.map_lookup(inode, Lblk(blocks.start), len)?, Run::Hole { len: hole } if hole >= len)
        {
            return Ok(());
        }
        let mut handle = self.start_data(inode, self.removal_credits(inode))?;
        let range = Lblk(blocks.start)..Lblk(blocks.end);
        let done = self.remove_range(&mut handle, inode, range, &mut spare);
        self.finish(handle, done, inode)
    }

    /// Blocks for all of the range, then zeros in it. Up to which byte it has come ([`Self::preallocate`]), and why not further.
    fn zero_range(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        range: Range<u64>,
        cred: &Credentials,
    ) -> (u64, Result<()>) {
        let (reached, allocated) = self.preallocate(inode, guard, range.clone(), cred);
        let block = u64::from(self.geo.block_size());
        let whole_blocks = range.start.is_multiple_of(block) && range.end.is_multiple_of(block);
        // The kernel's goes block by block, and stops where there is no space; but where an edge is a part of a block it sees first
        // whether there is enough, and clears nothing if not.
        let zeroed = match &allocated {
            Ok(()) => self.zero_allocated(inode, guard, range),
            Err(_) if whole_blocks && reached > range.start => {
                self.zero_allocated(inode, guard, range.start..reached)
            }
            Err(_) => Ok(()),
        };
        match zeroed {
            Ok(()) => (reached, allocated),
            Err(error) => (0, allocated.and(Err(error))),
        }
    }

    /// Makes a range that has its blocks zeros.
    fn zero_allocated(&self, inode: &InodeRef, guard: &ExclusiveGuard<'_>, range: Range<u64>) -> Result<()> {
        // What can fail comes before anything is dropped: what the map has would be the content again.
        let _held = self.hold_for_range(inode, &range)?;
        let blocks = self.whole_blocks(&range);
        let mut spare = self.conversion_space(inode, &blocks)?;
        let mut clear = range.clone();
        if extant_vm::bug!(ZeroStart) {
            clear.start = clear.start.next_multiple_of(self.geo.block_size().into()).min(clear.end);
        }
        let _gate = self.clear_cache(inode, guard, clear)?.unless(without!(self, ZeroGated));
        let mut at = blocks.start;
        while at < blocks.end {
            let run = self.map_lookup(inode, Lblk(at), blocks.end - at)?;
            if let Run::Mapped { len, unwritten: false, .. } = run {
                let len = self.one_extent(inode, at, len.min(MOST_UNWRITTEN))?;
                self.set_written(inode, at, len, Written::No, &mut spare)?;
                at += len;
            } else {
                at = at.saturating_add(run.len());
            }
        }
        Ok(())
    }

    /// What making all blocks of a range unwritten may take: an extent at each end is split, and every written one that is longer than
    /// an unwritten one can be. The ends may be in two branches, of which each is full. Content that is written until the gate is held
    /// may make the tree a level deeper.
    fn conversion_space(&self, inode: &Inode, blocks: &Range<u32>) -> Result<Reservation> {
        let pieces = 2 + u64::from(blocks.end.saturating_sub(blocks.start) / (MOST_UNWRITTEN + 1));
        let deeper = inode.data.get().is_some_and(|data| data.pages.is_dirty());
        let depth = self.depth(inode)? + u16::from(deeper);
        let worst = self.map.convert_blocks_worst(depth, pieces);
        Ok(self.alloc.reserve(0, worst, Privilege::Pool)?)
    }

    /// Makes the unwritten whole blocks of a range written ones that hold zeros.
    fn write_zeroes(&self, inode: &InodeRef, range: &Range<u64>) -> Result<()> {
        // What a device has put into a block since it was zeros is written before, and the block is a written one, or after this.
        let _gate = inode.data(self).pages.gate().unless(without!(self, WrittenZerosGated));
        let blocks = self.whole_blocks(range);
        let mut at = blocks.start;
        while at < blocks.end {
            let run = self.map_lookup(inode, Lblk(at), blocks.end - at)?;
            let Run::Mapped { unwritten: true, .. } = run else {
                at = at.saturating_add(run.len());
                continue;
            };
            let len = self.one_extent(inode, at, run.len())?;
            let Run::Mapped { pblk, len, .. } = run.cut(len) else { continue };
            let (start, bytes) =
                (pblk.0 << self.geo.log_block_size(), u64::from(len) << self.geo.log_block_size());
            self.device.write_zeroes(start, bytes)?;
            // Where there is no space for it they stay unwritten ones, which read the same.
            self.set_written(inode, at, len, Written::Yes, &mut self.split_space(inode)?)?;
            at += len;
        }
        Ok(())
    }

    /// How many of `len` mapped blocks from `at` on are of one extent.
    fn one_extent(&self, inode: &Inode, at: u32, len: u32) -> Result<u32> {
        Ok(self.map.lookup_extent(&inode.map_ref(&inode.map.read()), Lblk(at), len)?.len())
    }

    /// Makes blocks of one extent written or unwritten; what splitting it takes comes out of `spare`.
    fn set_written(
        &self,
        inode: &Inode,
        at: u32,
        len: u32,
        to: Written,
        spare: &mut Reservation,
    ) -> Result<()> {
        let (kind, depth) = (inode.map_kind(), self.depth(inode)?);
        let mut handle = self.start_data(inode, self.map.convert_credits(kind, depth, 1) + 1)?;
        let done = (|| {
            let mut i_block = inode.map.write();
            let mut map = inode.map_mut(&mut i_block);
            let delta = self.map.convert(&mut handle, &mut map, Lblk(at), len, to, spare)?;
            self.map_changed(inode, &i_block, delta.total());
            drop(i_block);
            self.write_inode(&mut handle, inode)
        })();
        self.finish(handle, done, inode)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE: the offset of the next data, or hole (the end of the file is one), at or after
    /// `offset`.
    ///
    /// # Errors
    /// `NoSuchAddress` past the end, or when no data follows; damage.
    pub fn seek(&self, inode: &InodeRef, offset: u64, kind: SeekKind) -> Result<u64> {
        self.seek_interruptible(inode, offset, kind, &|| false)
    }

    /// The same for a caller that may be interrupted: a damaged map can have as many runs as there are block numbers.
    ///
    /// # Errors
    /// `Interrupted` once `interrupted` says so; as [`Self::seek`].
    pub fn seek_interruptible(
        &self,
        inode: &InodeRef,
        offset: u64,
        kind: SeekKind,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<u64> {
        self.noted(self.check_alive().and_then(|()| {
            self.check_content(inode)?;
            let _lock = inode.lock.read();
            let size = inode.size();
            if offset >= size {
                return Err(Error::NoSuchAddress);
            }
            if self.is_inline(inode) {
                return Ok(if kind == SeekKind::Data { offset } else { size });
            }
            match kind {
                SeekKind::Data => {
                    let data = self.next_data(inode, offset, size, interrupted)?;
                    data.map(|r| r.start).ok_or(Error::NoSuchAddress)
                }
                SeekKind::Hole => self.next_hole(inode, offset, size, interrupted),
            }
        }))
    }

    /// The block of the device that is allocated for block `lblk` of a regular file, as swapon(2) asks for it: content in memory
    /// is written first, and an unwritten block has its place too. `None` for a hole and content in the inode.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid`; the device's; damage.
    pub fn device_block(&self, inode: &InodeRef, lblk: u64) -> Result<Option<Pblk>> {
        self.noted(self.check_alive().and_then(|()| {
            self.check_content(inode)?;
            let _lock = inode.lock.read();
            if let Some(data) = inode.data.get().filter(|data| data.pages.is_dirty()) {
                let _pass = self.gate.enter(Level::Internal);
                data.pages.sync(&**data, 0..u64::MAX)?;
            }
            let lblk = u32::try_from(lblk).ok().filter(|_| !self.is_inline(inode));
            match lblk.map(|lblk| self.map_lookup(inode, Lblk(lblk), 1)).transpose()? {
                Some(Run::Mapped { pblk, .. }) => Ok(Some(pblk)),
                Some(Run::Hole { .. }) | None => Ok(None),
            }
        }))
    }

    fn next_hole(
        &self,
        inode: &Inode,
        offset: u64,
        size: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<u64> {
        let mut at = offset;
        while at < size {
            match self.next_data(inode, at, size, interrupted)? {
                Some(data) if data.start == at => at = data.end,
                _ => return Ok(at),
            }
        }
        Ok(size)
    }

    /// The first piece of data at or after `offset`: written blocks, or dirty pages over a hole or unwritten blocks.
    fn next_data(
        &self,
        inode: &Inode,
        offset: u64,
        size: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<Range<u64>>> {
        let dirty = inode.data.get().and_then(|data| data.pages.next_dirty(offset..size));
        let block = u64::from(self.geo.block_size());
        // A damaged size may lie past the last block that has a number: nothing is there.
        let limit = dirty.as_ref().map_or(size, |d| d.start).min(u64::from(u32::MAX) * block);
        let mut at = offset;
        while at < limit {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let lblk = Lblk((at / block) as u32);
            let most = u32::try_from((limit - 1) / block - at / block + 1).unwrap_or(u32::MAX);
            let run = self.map_lookup(inode, lblk, most)?;
            let end = (u64::from(lblk.0) + u64::from(run.len())) * block;
            if matches!(run, Run::Mapped { unwritten: false, .. }) {
                return Ok(Some(at..end.min(size)));
            }
            at = end;
        }
        Ok(dirty)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
