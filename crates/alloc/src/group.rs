//! One block group: descriptor, free map, and how its bitmaps are read, checked and changed.

use extant_format::{BgFlags, Corrupt, CsumKind, FormatError, GroupDesc, GroupNr, Pblk, Place, bitmap};
use extant_journal::{Buf, Handle, WriteOrder};
use extant_sync::{Mutex, MutexGuard, Rank};

use crate::allocator::Allocator;
use crate::buddy::Buddy;
use crate::error::{AllocError, Result};
use crate::free_map::FreeMap;

/// A locked group.
pub(crate) type GroupGuard<'a> = MutexGuard<'a, GroupState>;

/// A block group: everything is under its lock (rank 90).
pub(crate) struct Group(Mutex<GroupState>);

/// What is known of a group. The free map is "free on disk, not claimed, not freed by a transaction that has not
/// committed"; the descriptor's counts are those of the disk's bitmaps.
pub(crate) struct GroupState {
    pub(crate) desc: GroupDesc,
    pub(crate) map: FreeMap,
    /// The open map was used since the search for one to close last came by.
    pub(crate) used: bool,
    /// Order of the largest free chunk as the index has it.
    pub(crate) order: Option<u32>,
    /// Clusters that are free on disk but not in the free map: claimed, in a window, or freed and pending.
    pub(crate) pins: u32,
    /// The block bitmap is wrong: no claims, frees leak.
    pub(crate) corrupt: bool,
    /// The inode bitmap is wrong: no inodes from here.
    pub(crate) inodes_corrupt: bool,
    /// No inode with a smaller index is free.
    pub(crate) inode_hint: u32,
    /// While the rest of the inode table is zeroed: the first index that the zeroing covers.
    pub(crate) zeroing_from: Option<u32>,
    /// Shortest run that the last trim of the whole group sent, if nothing was freed here since.
    pub(crate) trimmed: Option<u32>,
}

impl Group {
    pub(crate) fn new(desc: GroupDesc) -> Self {
        let state = GroupState {
            desc,
            map: FreeMap::Absent,
            used: false,
            order: None,
            pins: 0,
            corrupt: false,
            inodes_corrupt: false,
            inode_hint: 0,
            zeroing_from: None,
            trimmed: None,
        };
        Self(Mutex::new(Rank::GROUP, state))
    }

    pub(crate) fn lock(&self) -> GroupGuard<'_> {
        self.0.lock()
    }

    pub(crate) fn try_lock(&self) -> Option<GroupGuard<'_>> {
        self.0.try_lock()
    }
}

impl GroupState {
    /// Takes clusters out of the free map for a claim or window.
    pub(crate) fn take(&mut self, start: u32, len: u32) {
        self.map.buddy_mut().expect("claims are made from an open free map").take(start, len);
        self.pins += len;
    }

    /// Puts claimed or pending clusters into the free map. Returns whether it had to be opened for that; a cluster that is free
    /// already is the error.
    pub(crate) fn give(&mut self, start: u32, len: u32) -> std::result::Result<bool, u32> {
        if self.corrupt {
            return Ok(false);
        }
        let opened = self.map.give(start, len)?;
        self.pins = self.pins.checked_sub(len).expect("only claimed clusters come back");
        Ok(opened)
    }

    /// `len` clusters fewer are free on disk but not in the free map.
    pub(crate) fn unpin(&mut self, len: u32) {
        self.pins = self.pins.checked_sub(len).expect("claimed clusters are counted");
        self.drop_packed();
    }

    /// A packed map that says what the disk says is not kept: nobody would look for it there.
    pub(crate) fn drop_packed(&mut self) {
        if self.pins == 0 && matches!(self.map, FreeMap::Packed(_)) {
            self.map = FreeMap::Absent;
        }
    }
}

/// The buffers that a change of a group needs, read before the group is locked.
#[derive(Clone)]
pub(crate) struct GroupBufs {
    pub(crate) bitmap: Option<Buf>,
    pub(crate) desc: Buf,
    offset: usize,
}

impl Allocator {
    pub(crate) fn group_nr(&self, g: usize) -> GroupNr {
        GroupNr(g as u32)
    }

    /// Whether the descriptors' flags and checksums mean anything.
    pub(crate) fn has_group_csum(&self) -> bool {
        self.csum.kind() != CsumKind::None
    }

    /// Whether the block bitmap on disk was never written and is computed instead.
    pub(crate) fn is_block_uninit(&self, desc: &GroupDesc) -> bool {
        self.has_group_csum() && desc.flags.contains(BgFlags::BLOCK_UNINIT)
    }

    /// Whether the inode bitmap on disk was never written.
    pub(crate) fn is_inode_uninit(&self, desc: &GroupDesc) -> bool {
        self.has_group_csum() && desc.flags.contains(BgFlags::INODE_UNINIT)
    }

    /// The group's block bitmap buffer, `None` where it is computed. Reads; no lock held.
    pub(crate) fn read_bitmap(&self, g: usize) -> Result<Option<Buf>> {
        let desc = self.groups[g].lock().desc;
        if self.is_block_uninit(&desc) {
            return Ok(None);
        }
        let buf = self.cache.read(desc.block_bitmap)?;
        buf.set_order(WriteOrder::Bitmap);
        Ok(Some(buf))
    }

    /// Builds the free map of a group without claims from its bitmap, checked against the descriptor. Under the
    /// group's lock; `buf` was read before.
    pub(crate) fn build(&self, g: usize, state: &GroupState, buf: Option<&Buf>) -> Result<Buddy> {
        let group = self.group_nr(g);
        let clusters = self.geo.clusters_in_group(group);
        let buddy = if self.is_block_uninit(&state.desc) {
            Buddy::from_bitmap(&self.initial_bitmap(group, &state.desc), clusters)
        } else {
            let Some(buf) = buf else { return Err(AllocError::CorruptGroup { group }) };
            let bytes = buf.bytes();
            state.desc.verify_block_bitmap(group, &bytes, &self.geo, &self.csum)?;
            self.check_own_blocks(group, &state.desc, &bytes)?;
            Buddy::from_bitmap(&bytes, clusters)
        };
        if buddy.free() != state.desc.free_clusters {
            return Err(mismatch(group, state.desc.free_clusters, buddy.free()));
        }
        Ok(buddy)
    }

    /// The bitmap of a group that was never used: its own structures, and the padding past its end.
    pub(crate) fn initial_bitmap(&self, group: GroupNr, desc: &GroupDesc) -> Vec<u8> {
        let mut map = vec![0; self.geo.block_size() as usize];
        for (start, end) in self.own_bits(group, desc) {
            bitmap::fill(&mut map, start, end, true);
        }
        bitmap::pad(&mut map, self.geo.clusters_in_group(group));
        map
    }

    /// Bit ranges of the group's own structures that lie in it.
    fn own_bits(&self, group: GroupNr, desc: &GroupDesc) -> impl Iterator<Item = (u32, u32)> {
        let first = self.geo.group_first_block(group);
        let own = [
            (first, self.geo.base_meta_blocks(group)),
            (desc.block_bitmap, 1),
            (desc.inode_bitmap, 1),
            (desc.inode_table, self.geo.itable_blocks()),
        ];
        let geo = self.geo;
        let (first, blocks) = (first.0, u64::from(geo.blocks_in_group(group)));
        own.into_iter().filter_map(move |(pblk, len)| {
            let start = pblk.0.max(first) - first;
            let end = (pblk.0 + u64::from(len)).min(first + blocks).checked_sub(first)?;
            if start >= end {
                return None;
            }
            let log = geo.log_cluster_ratio();
            Some(((start >> log) as u32, ((end - 1) >> log) as u32 + 1))
        })
    }

    /// A bitmap that calls the group's own structures free is wrong, whatever its checksum says.
    fn check_own_blocks(&self, group: GroupNr, desc: &GroupDesc, map: &[u8]) -> Result<()> {
        for (start, end) in self.own_bits(group, desc) {
            if let Some(bit) = bitmap::find_zero(map, start, end) {
                let kind = Corrupt::Bit { bit, set: false };
                return Err(FormatError::corrupt(Place::BlockBitmap(group), kind).into());
            }
        }
        Ok(())
    }

    /// The buffers for changing a group's block bitmap and descriptor. Reads; no group lock held.
    pub(crate) fn block_bufs(&self, g: usize) -> Result<GroupBufs> {
        let bitmap = self.read_bitmap(g)?;
        let (desc, offset) = self.desc_buf(g)?;
        Ok(GroupBufs { bitmap, desc, offset })
    }

    /// The buffer that holds a group's descriptor, and where in it.
    pub(crate) fn desc_buf(&self, g: usize) -> Result<(Buf, usize)> {
        let group = self.group_nr(g);
        let (block, offset) = self.geo.desc_location(group).ok_or(AllocError::CorruptGroup { group })?;
        let buf = self.cache.read(block)?;
        buf.set_order(WriteOrder::Inode);
        Ok((buf, offset as usize))
    }

    /// Changes bits of a group's block bitmap in a handle, with descriptor, counts and checksums: sets them (`used`)
    /// or clears them. Nothing is changed if one of them already was as wished.
    ///
    /// Under the group's lock. Credits: 2.
    pub(crate) fn change_bits(
        &self,
        handle: &mut Handle,
        g: usize,
        state: &mut GroupState,
        bufs: &GroupBufs,
        (start, len): (u32, u32),
        used: bool,
    ) -> Result<()> {
        let group = self.group_nr(g);
        let buf = match &bufs.bitmap {
            Some(buf) => buf.clone(),
            None => self.first_bitmap(handle, group, state)?,
        };
        let mut desc = state.desc;
        let free =
            if used { desc.free_clusters.checked_sub(len) } else { desc.free_clusters.checked_add(len) };
        desc.free_clusters = free.ok_or_else(|| mismatch(group, desc.free_clusters, len))?;
        desc.flags.remove(BgFlags::BLOCK_UNINIT);
        let (geo, csum) = (&self.geo, &self.csum);
        handle.modify(&buf, |map: &mut [u8]| {
            let changed =
                if used { bitmap::set_range(map, start, len) } else { bitmap::clear_range(map, start, len) };
            if changed.is_ok() {
                desc.set_block_bitmap_csum(map, geo, csum);
            }
            changed.map_err(|kind| FormatError::corrupt(Place::BlockBitmap(group), kind))
        })??;
        self.write_desc(handle, group, state, desc, &bufs.desc, bufs.offset)
    }

    /// Writes a group's descriptor into its buffer. Under the group's lock. Credits: 1.
    pub(crate) fn write_desc(
        &self,
        handle: &mut Handle,
        group: GroupNr,
        state: &mut GroupState,
        desc: GroupDesc,
        buf: &Buf,
        offset: usize,
    ) -> Result<()> {
        let size = self.geo.desc_size();
        handle.modify(buf, |bytes: &mut [u8]| {
            let slot = &mut bytes[offset..offset + usize::from(size)];
            desc.encode(group, slot, size, &self.csum)
        })??;
        state.desc = desc;
        Ok(())
    }

    /// The bitmap buffer of a BLOCK_UNINIT group at its first change.
    fn first_bitmap(&self, handle: &mut Handle, group: GroupNr, state: &GroupState) -> Result<Buf> {
        let pblk: Pblk = state.desc.block_bitmap;
        // Somebody may have made it since the caller looked.
        if !self.is_block_uninit(&state.desc) {
            return Ok(self.cache.read(pblk)?);
        }
        let map = self.initial_bitmap(group, &state.desc);
        let buf = handle.create(pblk)?;
        buf.set_order(WriteOrder::Bitmap);
        handle.modify(&buf, |bytes: &mut [u8]| bytes.copy_from_slice(&map))?;
        Ok(buf)
    }
}

/// The descriptor and the bitmap do not agree.
fn mismatch(group: GroupNr, desc: u32, bitmap: u32) -> AllocError {
    let kind = Corrupt::Mismatch {
        field: "bg_free_blocks_count",
        value: u64::from(desc),
        expected: u64::from(bitmap),
    };
    FormatError::corrupt(Place::GroupDesc(group), kind).into()
}
