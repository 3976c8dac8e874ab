//! Group descriptors: 32 bytes, or `s_desc_size` (64 and more) with the `64bit` feature.
//!
//! Source: the kernel's ext4 documentation, "Block Group Descriptors" (`struct ext4_group_desc`).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::csum::{Csum, CsumKind};
use crate::error::{Corrupt, FormatError, Place};
use crate::geometry::Geometry;
use crate::types::{GroupNr, Pblk};

bitflags! {
    /// `bg_flags`; they count only where descriptors have a checksum.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct BgFlags: u16 {
        /// The inode table and bitmap are not initialised.
        const INODE_UNINIT = 0x1;
        /// The block bitmap is not initialised.
        const BLOCK_UNINIT = 0x2;
        /// The inode table is zeroed.
        const INODE_ZEROED = 0x4;
        const _ = !0;
    }
}

/// `struct ext4_group_desc` with its 64-bit half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawGroupDesc {
    pub bg_block_bitmap_lo: U32,
    pub bg_inode_bitmap_lo: U32,
    pub bg_inode_table_lo: U32,
    pub bg_free_blocks_count_lo: U16,
    pub bg_free_inodes_count_lo: U16,
    pub bg_used_dirs_count_lo: U16,
    pub bg_flags: U16,
    pub bg_exclude_bitmap_lo: U32,
    pub bg_block_bitmap_csum_lo: U16,
    pub bg_inode_bitmap_csum_lo: U16,
    pub bg_itable_unused_lo: U16,
    pub bg_checksum: U16,
    pub bg_block_bitmap_hi: U32,
    pub bg_inode_bitmap_hi: U32,
    pub bg_inode_table_hi: U32,
    pub bg_free_blocks_count_hi: U16,
    pub bg_free_inodes_count_hi: U16,
    pub bg_used_dirs_count_hi: U16,
    pub bg_itable_unused_hi: U16,
    pub bg_exclude_bitmap_hi: U32,
    pub bg_block_bitmap_csum_hi: U16,
    pub bg_inode_bitmap_csum_hi: U16,
    pub bg_reserved: U32,
}

const _: () = {
    assert!(size_of::<RawGroupDesc>() == 64);
    assert!(core::mem::offset_of!(RawGroupDesc, bg_checksum) == 0x1e);
    assert!(core::mem::offset_of!(RawGroupDesc, bg_block_bitmap_hi) == 0x20);
    assert!(core::mem::offset_of!(RawGroupDesc, bg_reserved) == 0x3c);
};

/// A decoded descriptor. Counts are of clusters and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GroupDesc {
    /// Block of the block bitmap.
    pub block_bitmap: Pblk,
    /// Block of the inode bitmap.
    pub inode_bitmap: Pblk,
    /// First block of the inode table.
    pub inode_table: Pblk,
    /// Free clusters (blocks without bigalloc).
    pub free_clusters: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Directories.
    pub used_dirs: u32,
    /// `bg_flags`
    pub flags: BgFlags,
    /// Inodes at the table's end that were never used.
    pub itable_unused: u32,
    /// Checksum of the block bitmap; 16 bits in descriptors of 32 bytes.
    pub block_bitmap_csum: u32,
    /// Checksum of the inode bitmap; 16 bits in descriptors of 32 bytes.
    pub inode_bitmap_csum: u32,
    /// `bg_checksum` as found on disk (written anew by [`GroupDesc::encode`]).
    pub checksum: u16,
}

const fn wide(lo: u32, hi: u32) -> u64 {
    lo as u64 | (hi as u64) << 32
}

const fn wide16(lo: u16, hi: u16) -> u32 {
    lo as u32 | (hi as u32) << 16
}

impl GroupDesc {
    /// Decodes the first `s_desc_size` bytes of `bytes` without checking values.
    ///
    /// # Errors
    /// [`Corrupt::Short`] when `bytes` is shorter than `desc_size`.
    pub fn decode(group: GroupNr, bytes: &[u8], desc_size: u16) -> Result<Self, FormatError> {
        let desc = slice(group, bytes, desc_size)?;
        let mut full = [0; 64];
        let n = desc.len().min(64);
        full[..n].copy_from_slice(&desc[..n]);
        let raw = RawGroupDesc::read_from_bytes(&full[..]).map_err(|_| short(group, bytes, desc_size))?;
        Ok(Self::from_raw(&raw))
    }

    /// Decodes and checks: checksum, then the places of bitmaps and table.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`FormatError::Corrupt`].
    pub fn read(group: GroupNr, bytes: &[u8], geo: &Geometry, csum: &Csum) -> Result<Self, FormatError> {
        let desc = Self::decode(group, bytes, geo.desc_size())?;
        desc.verify_checksum(group, bytes, geo.desc_size(), csum)?;
        desc.validate(group, geo)?;
        Ok(desc)
    }

    fn from_raw(raw: &RawGroupDesc) -> Self {
        Self {
            block_bitmap: Pblk(wide(raw.bg_block_bitmap_lo.get(), raw.bg_block_bitmap_hi.get())),
            inode_bitmap: Pblk(wide(raw.bg_inode_bitmap_lo.get(), raw.bg_inode_bitmap_hi.get())),
            inode_table: Pblk(wide(raw.bg_inode_table_lo.get(), raw.bg_inode_table_hi.get())),
            free_clusters: wide16(raw.bg_free_blocks_count_lo.get(), raw.bg_free_blocks_count_hi.get()),
            free_inodes: wide16(raw.bg_free_inodes_count_lo.get(), raw.bg_free_inodes_count_hi.get()),
            used_dirs: wide16(raw.bg_used_dirs_count_lo.get(), raw.bg_used_dirs_count_hi.get()),
            flags: BgFlags::from_bits_retain(raw.bg_flags.get()),
            itable_unused: wide16(raw.bg_itable_unused_lo.get(), raw.bg_itable_unused_hi.get()),
            block_bitmap_csum: wide16(raw.bg_block_bitmap_csum_lo.get(), raw.bg_block_bitmap_csum_hi.get()),
            inode_bitmap_csum: wide16(raw.bg_inode_bitmap_csum_lo.get(), raw.bg_inode_bitmap_csum_hi.get()),
            checksum: raw.bg_checksum.get(),
        }
    }

    /// Writes the descriptor into the first `s_desc_size` bytes of `bytes` with a fresh checksum. Bytes without a
    /// meaning (exclusion bitmap, reserved, beyond 64) stay as they are.
    ///
    /// # Errors
    /// [`Corrupt::Short`] when `bytes` is too short, [`FormatError::TooBig`] when a 32-byte descriptor cannot hold
    /// a value.
    pub fn encode(
        &self,
        group: GroupNr,
        bytes: &mut [u8],
        desc_size: u16,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        slice(group, bytes, desc_size)?;
        let desc = &mut bytes[..usize::from(desc_size)];
        let mut full = [0; 64];
        let n = desc.len().min(64);
        full[..n].copy_from_slice(&desc[..n]);
        let raw = RawGroupDesc::mut_from_bytes(&mut full[..]).map_err(|_| TOO_SHORT)?;
        self.to_raw(raw);
        if n < 64 {
            self.check_narrow()?;
        }
        desc[..n].copy_from_slice(&full[..n]);
        let sum = csum.group_desc(group, desc);
        desc[0x1e..0x20].copy_from_slice(&sum.to_le_bytes());
        Ok(())
    }

    fn to_raw(self, raw: &mut RawGroupDesc) {
        let split = |v: u64| (U32::new(v as u32), U32::new((v >> 32) as u32));
        let split16 = |v: u32| (U16::new(v as u16), U16::new((v >> 16) as u16));
        (raw.bg_block_bitmap_lo, raw.bg_block_bitmap_hi) = split(self.block_bitmap.0);
        (raw.bg_inode_bitmap_lo, raw.bg_inode_bitmap_hi) = split(self.inode_bitmap.0);
        (raw.bg_inode_table_lo, raw.bg_inode_table_hi) = split(self.inode_table.0);
        (raw.bg_free_blocks_count_lo, raw.bg_free_blocks_count_hi) = split16(self.free_clusters);
        (raw.bg_free_inodes_count_lo, raw.bg_free_inodes_count_hi) = split16(self.free_inodes);
        (raw.bg_used_dirs_count_lo, raw.bg_used_dirs_count_hi) = split16(self.used_dirs);
        (raw.bg_itable_unused_lo, raw.bg_itable_unused_hi) = split16(self.itable_unused);
        (raw.bg_block_bitmap_csum_lo, raw.bg_block_bitmap_csum_hi) = split16(self.block_bitmap_csum);
        (raw.bg_inode_bitmap_csum_lo, raw.bg_inode_bitmap_csum_hi) = split16(self.inode_bitmap_csum);
        raw.bg_flags = U16::new(self.flags.bits());
    }

    /// Values that need the high half must not be lost in a descriptor of 32 bytes (checksums are cut there).
    fn check_narrow(&self) -> Result<(), FormatError> {
        let blocks = [
            ("bg_block_bitmap_lo", self.block_bitmap),
            ("bg_inode_bitmap_lo", self.inode_bitmap),
            ("bg_inode_table_lo", self.inode_table),
        ];
        for (field, block) in blocks {
            if block.0 > u64::from(u32::MAX) {
                return Err(FormatError::TooBig { field, value: block.0 });
            }
        }
        let counts = [
            ("bg_free_blocks_count_lo", self.free_clusters),
            ("bg_free_inodes_count_lo", self.free_inodes),
            ("bg_used_dirs_count_lo", self.used_dirs),
            ("bg_itable_unused_lo", self.itable_unused),
        ];
        for (field, count) in counts {
            if count > u32::from(u16::MAX) {
                return Err(FormatError::TooBig { field, value: u64::from(count) });
            }
        }
        Ok(())
    }

    /// Compares `bg_checksum` with the bytes; without checksums every value is right.
    ///
    /// # Errors
    /// [`FormatError::Checksum`].
    pub fn verify_checksum(
        &self,
        group: GroupNr,
        bytes: &[u8],
        desc_size: u16,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        if csum.kind() == CsumKind::None {
            return Ok(());
        }
        let computed = csum.group_desc(group, slice(group, bytes, desc_size)?);
        if computed == self.checksum {
            return Ok(());
        }
        Err(FormatError::Checksum {
            place: Place::GroupDesc(group),
            stored: u32::from(self.checksum),
            computed: u32::from(computed),
        })
    }

    /// Checks that bitmaps and table lie in the filesystem (in the group itself without flex_bg), and that no
    /// count is larger than the group.
    ///
    /// # Errors
    /// [`Corrupt::BlockOutside`], [`Corrupt::Range`].
    pub fn validate(&self, group: GroupNr, geo: &Geometry) -> Result<(), FormatError> {
        let place = Place::GroupDesc(group);
        let (first, last) = if geo.has_flex_bg() {
            (u64::from(geo.first_data_block()), geo.blocks_count() - 1)
        } else {
            let start = geo.group_first_block(group).0;
            (start, start + u64::from(geo.blocks_in_group(group)) - 1)
        };
        let inside = |field, block: Pblk, len: u32| {
            let end = block.0.checked_add(u64::from(len).saturating_sub(1));
            if block.0 >= first && end.is_some_and(|e| e <= last) {
                return Ok(());
            }
            Err(FormatError::corrupt(place, Corrupt::BlockOutside { field, block: block.0, first, last }))
        };
        inside("bg_block_bitmap", self.block_bitmap, 1)?;
        inside("bg_inode_bitmap", self.inode_bitmap, 1)?;
        inside("bg_inode_table", self.inode_table, geo.itable_blocks())?;
        let at_most = |field, value: u32, max: u32| {
            if value <= max {
                return Ok(());
            }
            let kind = Corrupt::Range { field, value: u64::from(value), min: 0, max: u64::from(max) };
            Err(FormatError::corrupt(place, kind))
        };
        at_most("bg_free_blocks_count", self.free_clusters, geo.clusters_in_group(group))?;
        at_most("bg_free_inodes_count", self.free_inodes, geo.inodes_per_group())?;
        at_most("bg_used_dirs_count", self.used_dirs, geo.inodes_per_group())?;
        at_most("bg_itable_unused", self.itable_unused, geo.inodes_per_group())
    }

    /// Compares a bitmap's checksum (`bytes` is the covered part) with the stored one.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] with `place`.
    pub fn verify_bitmap(
        place: Place,
        stored: u32,
        bytes: &[u8],
        desc_size: u16,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        if !csum.has_metadata() {
            return Ok(());
        }
        let computed = cut_to_desc(csum.bitmap(bytes), desc_size);
        if computed == cut_to_desc(stored, desc_size) {
            return Ok(());
        }
        Err(FormatError::Checksum { place, stored, computed })
    }

    /// Sets the block bitmap's checksum from the bitmap block (0 without `metadata_csum`).
    pub fn set_block_bitmap_csum(&mut self, bitmap: &[u8], geo: &Geometry, csum: &Csum) {
        self.block_bitmap_csum = bitmap_csum(bitmap, geo.clusters_per_group(), geo, csum);
    }

    /// Sets the inode bitmap's checksum from the bitmap block (0 without `metadata_csum`).
    pub fn set_inode_bitmap_csum(&mut self, bitmap: &[u8], geo: &Geometry, csum: &Csum) {
        self.inode_bitmap_csum = bitmap_csum(bitmap, geo.inodes_per_group(), geo, csum);
    }

    /// Checks the block bitmap block of `group` against the descriptor. Not called for BLOCK_UNINIT groups.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`Corrupt::Short`].
    pub fn verify_block_bitmap(
        &self,
        group: GroupNr,
        bitmap: &[u8],
        geo: &Geometry,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        let place = Place::BlockBitmap(group);
        let covered = covered(place, bitmap, geo.clusters_per_group())?;
        Self::verify_bitmap(place, self.block_bitmap_csum, covered, geo.desc_size(), csum)
    }

    /// Checks the inode bitmap block of `group` against the descriptor. Not called for INODE_UNINIT groups.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`Corrupt::Short`].
    pub fn verify_inode_bitmap(
        &self,
        group: GroupNr,
        bitmap: &[u8],
        geo: &Geometry,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        let place = Place::InodeBitmap(group);
        let covered = covered(place, bitmap, geo.inodes_per_group())?;
        Self::verify_bitmap(place, self.inode_bitmap_csum, covered, geo.desc_size(), csum)
    }
}

const TOO_SHORT: FormatError =
    FormatError::Corrupt { place: Place::Superblock, kind: Corrupt::Short { have: 0, need: 64 } };

fn short(group: GroupNr, bytes: &[u8], desc_size: u16) -> FormatError {
    let kind = Corrupt::Short { have: bytes.len() as u64, need: u64::from(desc_size) };
    FormatError::corrupt(Place::GroupDesc(group), kind)
}

fn slice(group: GroupNr, bytes: &[u8], desc_size: u16) -> Result<&[u8], FormatError> {
    let need = usize::from(desc_size.max(32));
    bytes.get(..need).ok_or_else(|| short(group, bytes, desc_size))
}

fn covered(place: Place, bitmap: &[u8], bits: u32) -> Result<&[u8], FormatError> {
    let need = (bits / 8) as usize;
    let kind = Corrupt::Short { have: bitmap.len() as u64, need: need as u64 };
    bitmap.get(..need).ok_or(FormatError::corrupt(place, kind))
}

fn bitmap_csum(bitmap: &[u8], bits: u32, geo: &Geometry, csum: &Csum) -> u32 {
    if !csum.has_metadata() {
        return 0;
    }
    let bytes = bitmap.get(..(bits / 8) as usize).unwrap_or(bitmap);
    cut_to_desc(csum.bitmap(bytes), geo.desc_size())
}

/// Descriptors that do not reach the high halves keep 16 bits.
const fn cut_to_desc(sum: u32, desc_size: u16) -> u32 {
    if desc_size >= 0x3c { sum } else { sum & 0xffff }
}

#[cfg(test)]
mod tests;
