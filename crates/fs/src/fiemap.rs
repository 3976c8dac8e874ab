//! FIEMAP: where on the device the content of a file is (the kernel's `Documentation/filesystems/fiemap.rst`).
//!
//! Extents are those of the map on disk, one by one; the pointers of an indirect map are joined as far as their blocks follow each
//! other. Blocks that are dirty and have no place yet are delayed: the page cache knows them. Pages are looked at before the map, so a
//! block that finds its place in between is mapped by then.
//!
//! As ext4 in the kernel, measured: extents are cut to the blocks that the range touches, and the last one found in it is marked as the
//! last one although the file may go on. Otherwise than the kernel, whose answer has no regard to the inode's place in its block,
//! attributes in the inode are said to be where they are.

use std::ops::Range;

use extant_format::Lblk;
use extant_map::{MapKind, Run};

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;

/// Where `i_block` begins in an inode.
const I_BLOCK_OFFSET: u64 = 40;

bitflags::bitflags! {
    /// `fe_flags`
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FiemapFlags: u32 {
        /// Nothing follows in the range asked for.
        const LAST = 0x1;
        /// Has no place yet.
        const UNKNOWN = 0x2;
        /// Has no place yet, since allocation is delayed. Comes with `UNKNOWN`.
        const DELALLOC = 0x4;
        /// The place is not a multiple of the block size.
        const NOT_ALIGNED = 0x100;
        /// Lies between metadata. Comes with `NOT_ALIGNED`.
        const DATA_INLINE = 0x200;
        /// Allocated, and reads as zeros.
        const UNWRITTEN = 0x800;
        /// Joined from the pointers of a map without extents.
        const MERGED = 0x1000;
    }

    /// `fm_flags`
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FiemapHow: u32 {
        /// What is dirty is written first.
        const SYNC = 0x1;
        /// The place of the extended attributes instead of the content's.
        const XATTR = 0x2;
        /// The map is to be read into memory. Extents are asked for anyway.
        const CACHE = 0x4;
    }
}

impl FiemapHow {
    /// From `fm_flags`; what is not known of them otherwise (EBADR).
    ///
    /// # Errors
    /// The unknown bits.
    pub fn from_raw(bits: u32) -> Result<Self, u32> {
        Self::from_bits(bits).ok_or(bits & !Self::all().bits())
    }
}

/// One extent, in bytes (`struct fiemap_extent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiemapExtent {
    /// Where it begins in the file.
    pub logical: u64,
    /// Where it begins on the device; 0 for delayed ones.
    pub physical: u64,
    /// How long it is.
    pub length: u64,
    /// What it is.
    pub flags: FiemapFlags,
}

impl FiemapExtent {
    /// Bytes of a `struct fiemap_extent`.
    pub const SIZE: usize = 56;

    /// As `struct fiemap_extent`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.logical.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.physical.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.flags.bits().to_ne_bytes());
        bytes
    }

    /// From a `struct fiemap_extent`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let flags = u32::from_ne_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]);
        let flags = FiemapFlags::from_bits_retain(flags);
        Self { logical: word(0), physical: word(8), length: word(16), flags }
    }

    /// Whether `next` goes on where this one ends, in the file and on the device.
    fn goes_on_in(&self, next: &Self) -> bool {
        let delayed = self.flags.contains(FiemapFlags::DELALLOC);
        self.flags == next.flags
            && self.logical + self.length == next.logical
            && (delayed || self.physical + self.length == next.physical)
    }
}

/// Extents as they are found: the latest is held back, since it may be the last one, or go on.
struct Found {
    extents: Vec<FiemapExtent>,
    /// Extents to be found, and whether they are kept or counted only.
    most: usize,
    keep: bool,
    count: usize,
    held: Option<FiemapExtent>,
}

impl Found {
    fn new(most: Option<usize>) -> Self {
        Self {
            extents: Vec::new(),
            most: most.unwrap_or(usize::MAX),
            keep: most.is_some(),
            count: 0,
            held: None,
        }
    }

    /// Adds an extent, `joined` with the one before if it goes on from there; whether more are wanted.
    fn add(&mut self, extent: FiemapExtent, joined: bool) -> bool {
        if let Some(held) = self.held.as_mut().filter(|held| joined && held.goes_on_in(&extent)) {
            held.length += extent.length;
            return true;
        }
        if let Some(held) = self.held.take() {
            self.give(held);
        }
        if self.count == self.most {
            return false;
        }
        self.held = Some(extent);
        true
    }

    fn give(&mut self, extent: FiemapExtent) {
        self.count += 1;
        if self.keep {
            self.extents.push(extent);
        }
    }

    /// After the end of the range.
    fn finish(&mut self) {
        if let Some(mut last) = self.held.take() {
            last.flags |= FiemapFlags::LAST;
            self.give(last);
        }
    }
}

impl Filesystem {
    /// The extents of a file or directory that the bytes `[start, start + len)` touch, `most` at most; the last of them is marked
    /// ([`FiemapFlags::LAST`]) if nothing follows in the range. Takes the inode lock shared.
    ///
    /// # Errors
    /// `Invalid` for an empty range; `FileTooBig` for one past the largest file; `NotSupported` for what is neither file nor directory;
    /// with `SYNC` those of writing; damage.
    pub fn fiemap(
        &self,
        inode: &InodeRef,
        start: u64,
        len: u64,
        how: FiemapHow,
        most: usize,
    ) -> Result<Vec<FiemapExtent>> {
        self.fiemap_interruptible(inode, start, len, how, most, &|| false)
    }

    /// The same for a caller that may be interrupted: a damaged map can have as many runs as there are block numbers.
    ///
    /// # Errors
    /// `Interrupted` once `interrupted` says so; as [`Self::fiemap`].
    pub fn fiemap_interruptible(
        &self,
        inode: &InodeRef,
        start: u64,
        len: u64,
        how: FiemapHow,
        most: usize,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Vec<FiemapExtent>> {
        Ok(self.find_extents(inode, start, len, how, Found::new(Some(most)), interrupted)?.extents)
    }

    /// How many extents [`Self::fiemap`] would find.
    ///
    /// # Errors
    /// As [`Self::fiemap`].
    pub fn fiemap_count(&self, inode: &InodeRef, start: u64, len: u64, how: FiemapHow) -> Result<u32> {
        self.fiemap_count_interruptible(inode, start, len, how, &|| false)
    }

    /// The same for a caller that may be interrupted, as [`Self::fiemap_interruptible`].
    ///
    /// # Errors
    /// As there.
    pub fn fiemap_count_interruptible(
        &self,
        inode: &InodeRef,
        start: u64,
        len: u64,
        how: FiemapHow,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<u32> {
        let found = self.find_extents(inode, start, len, how, Found::new(None), interrupted)?;
        Ok(u32::try_from(found.count).unwrap_or(u32::MAX))
    }

    fn find_extents(
        &self,
        inode: &InodeRef,
        start: u64,
        len: u64,
        how: FiemapHow,
        mut found: Found,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Found> {
        self.noted(self.check_alive().and_then(|()| {
            if !inode.is_dir() {
                self.check_content(inode).map_err(|e| match e {
                    Error::Invalid(_) => Error::NotSupported("extents of what is neither file nor directory"),
                    e => e,
                })?;
            }
            let end = self.fiemap_end(inode, start, len)?;
            let _lock = inode.lock.read();
            if how.contains(FiemapHow::SYNC)
                && let Some(data) = inode.data.get().filter(|data| data.pages.is_dirty())
            {
                let _pass = self.gate.enter(Level::Internal);
                data.pages.sync(&**data, 0..u64::MAX)?;
            }
            if how.contains(FiemapHow::XATTR) {
                self.attribute_extent(inode, start, &mut found)?;
            } else if self.is_inline(inode) {
                self.inline_extent(inode, start, &mut found);
            } else {
                self.block_extents(inode, start..end, &mut found, interrupted)?;
            }
            Ok(())
        }))?;
        found.finish();
        Ok(found)
    }

    /// Where a range ends that begins at `start`: no further than the largest file does.
    fn fiemap_end(&self, inode: &Inode, start: u64, len: u64) -> Result<u64> {
        let largest = self.max_file_size(inode);
        if start > largest {
            return Err(Error::FileTooBig);
        }
        let len = len.min(largest - start);
        if len == 0 { Err(Error::Invalid("a range of no bytes")) } else { Ok(start + len) }
    }

    fn block_extents(
        &self,
        inode: &Inode,
        range: Range<u64>,
        found: &mut Found,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let block = u64::from(self.geo.block_size());
        let number = |byte: u64| u32::try_from(byte).unwrap_or(u32::MAX);
        let (mut at, end) = (number(range.start / block), number(range.end.div_ceil(block)));
        let joined = inode.map_kind() == MapKind::Indirect;
        let mut dirty = Dirty { next: Some(at..at), block };
        while at < end {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            let dirty = dirty.at_or_after(inode, at, end);
            let run = self.map.lookup_extent(&inode.map_ref(&inode.map.read()), Lblk(at), end - at)?;
            let to = at.saturating_add(run.len()).min(end);
            let extent = |from: u32, to: u32, physical: u64, flags| FiemapExtent {
                logical: u64::from(from) * block,
                physical: physical * block,
                length: u64::from(to - from) * block,
                flags,
            };
            let goes_on = match run {
                Run::Mapped { pblk, unwritten, .. } => {
                    let mut flags = FiemapFlags::empty();
                    flags.set(FiemapFlags::UNWRITTEN, unwritten);
                    flags.set(FiemapFlags::MERGED, joined);
                    let goes_on = found.add(extent(at, to, pblk.0, flags), joined);
                    at = to;
                    goes_on
                }
                Run::Hole { .. } => match dirty.filter(|dirty| dirty.start < to) {
                    Some(dirty) => {
                        let to = dirty.end.min(to);
                        let flags = FiemapFlags::UNKNOWN | FiemapFlags::DELALLOC;
                        at = to;
                        found.add(extent(dirty.start, to, 0, flags), true)
                    }
                    None => {
                        at = to;
                        true
                    }
                },
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Content in the inode is one extent, which the range finds whole or not at all.
    fn inline_extent(&self, inode: &Inode, start: u64, found: &mut Found) {
        let length = inode.size();
        if start < length {
            let physical = self.inode_byte(inode) + I_BLOCK_OFFSET;
            let flags = FiemapFlags::DATA_INLINE | FiemapFlags::NOT_ALIGNED;
            found.add(FiemapExtent { logical: 0, physical, length, flags }, false);
        }
    }

    /// The attributes: the area in the inode if there are some in it, else the block.
    fn attribute_extent(&self, inode: &Inode, start: u64, found: &mut Found) -> Result<()> {
        let _xattr = inode.xattr.read();
        let (physical, length, flags) = if self.with_ibody(inode, |area| area.is_some())? {
            let (size, length) = (u64::from(self.inode_format.inode_size()), self.ibody_len(inode) as u64);
            let flags = FiemapFlags::DATA_INLINE | FiemapFlags::NOT_ALIGNED;
            (self.inode_byte(inode) + size - length, length, flags)
        } else {
            let Some(block) = self.xattr_block(inode)? else { return Ok(()) };
            let size = u64::from(self.geo.block_size());
            (block.pblk().0 * size, size, FiemapFlags::empty())
        };
        if start < length {
            found.add(FiemapExtent { logical: 0, physical, length, flags }, false);
        }
        Ok(())
    }

    /// Where an inode is on the device.
    fn inode_byte(&self, inode: &Inode) -> u64 {
        inode.table.0.0 * u64::from(self.geo.block_size()) + inode.table.1 as u64
    }
}

/// The dirty blocks of a file, looked for in ascending order.
struct Dirty {
    /// The latest that were found; `None`: there are no more.
    next: Option<Range<u32>>,
    block: u64,
}

impl Dirty {
    /// The first dirty blocks that end after block `at` and begin before `end`.
    fn at_or_after(&mut self, inode: &Inode, at: u32, end: u32) -> Option<Range<u32>> {
        if self.next.as_ref().is_some_and(|next| next.end <= at) {
            let bytes = u64::from(at) * self.block..u64::from(end) * self.block;
            let data = inode.data.get().filter(|data| data.pages.is_dirty());
            let found = data.and_then(|data| data.pages.next_dirty(bytes));
            self.next = found.map(|f| (f.start / self.block) as u32..f.end.div_ceil(self.block) as u32);
        }
        self.next.clone().map(|next| next.start.max(at)..next.end)
    }
}

#[cfg(test)]
mod tests;
