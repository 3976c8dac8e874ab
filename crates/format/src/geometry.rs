//! Where things are: computed once from a superblock, validated, then plain arithmetic that cannot overflow.
//!
//! Every number here is bounded by [`Geometry::new`]: blocks fit in 48 bits and more, products of group counts
//! and sizes fit in `u64`. Functions that take a group or block from outside return `Option`.
//!
//! Source: the kernel's ext4 documentation, "Block Groups", "Meta Block Groups", "Bigalloc", "Super Block".

use crate::error::{Corrupt, FormatError, Place};
use crate::features::{Compat, Features, Incompat, RoCompat};
use crate::superblock::RawSuperblock;
use crate::types::{GroupNr, Ino, Pblk};

/// Which groups hold a copy of the superblock and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backups {
    /// Every group (no sparse feature).
    All,
    /// Groups 0, 1 and the powers of 3, 5, 7 (`sparse_super`).
    Sparse,
    /// Group 0 and these two, where 0 means none (`sparse_super2`).
    Two([u32; 2]),
}

/// Where an inode's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeLocation {
    /// Its group; the table starts at that group's `bg_inode_table`.
    pub group: GroupNr,
    /// Index in the group, from 0.
    pub index: u32,
    /// Block in the table, from 0.
    pub block: u32,
    /// Byte in that block.
    pub offset: u32,
}

/// Sizes and places of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    log_block_size: u8,
    log_cluster_ratio: u8,
    log_groups_per_flex: u8,
    inode_size: u16,
    desc_size: u16,
    reserved_gdt_blocks: u16,
    flex_bg: bool,
    bigalloc: bool,
    meta_bg: bool,
    first_meta_bg: u32,
    first_data_block: u32,
    blocks_count: u64,
    blocks_per_group: u32,
    clusters_per_group: u32,
    inodes_per_group: u32,
    inodes_count: u32,
    first_ino: u32,
    groups: u32,
    desc_blocks: u32,
    backups: Backups,
}

/// Smallest block size in bytes.
pub const MIN_BLOCK_SIZE: u32 = 1024;
/// Largest block size in bytes.
pub const MAX_BLOCK_SIZE: u32 = 65536;
/// Byte offset of the superblock.
pub const SUPERBLOCK_OFFSET: u64 = 1024;

fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), FormatError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(FormatError::corrupt(Place::Superblock, Corrupt::Range { field, value, min, max }))
}

fn equal(field: &'static str, value: u64, expected: u64) -> Result<(), FormatError> {
    if value == expected {
        return Ok(());
    }
    Err(FormatError::corrupt(Place::Superblock, Corrupt::Mismatch { field, value, expected }))
}

fn power_of_two(field: &'static str, value: u64) -> Result<(), FormatError> {
    if value.is_power_of_two() {
        return Ok(());
    }
    Err(FormatError::corrupt(Place::Superblock, Corrupt::NotPowerOfTwo { field, value }))
}

impl Geometry {
    /// Computes and checks the geometry of a superblock.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] naming the first field that cannot be.
    pub fn new(sb: &RawSuperblock) -> Result<Self, FormatError> {
        let features = sb.features();
        let log_block_size = log_size("s_log_block_size", sb.s_log_block_size.get(), 16)?;
        let bigalloc = features.ro_compat.contains(RoCompat::BIGALLOC);
        let log_cluster_ratio = cluster_ratio(sb, bigalloc, log_block_size)?;
        let block_size = 1u32 << log_block_size;
        let clusters_per_group = sb.s_clusters_per_group.get();
        let blocks_per_group = sb.s_blocks_per_group.get();
        let max_bits = u64::from(block_size) * 8;
        if bigalloc {
            range("s_clusters_per_group", u64::from(clusters_per_group), 8, max_bits)?;
            let blocks = u64::from(clusters_per_group) << log_cluster_ratio;
            equal("s_blocks_per_group", u64::from(blocks_per_group), blocks)?;
        } else {
            range("s_blocks_per_group", u64::from(blocks_per_group), 8, max_bits)?;
        }
        let clusters_per_group = if bigalloc { clusters_per_group } else { blocks_per_group };
        let inode_size = inode_size(sb, block_size)?;
        let desc_size = desc_size(sb, features)?;
        let first_data_block = sb.s_first_data_block.get();
        let min_first = u64::from(block_size == 1024 && log_cluster_ratio == 0);
        range("s_first_data_block", u64::from(first_data_block), min_first, min_first.max(1))?;
        let blocks_count = sb.blocks_count();
        range("s_blocks_count", blocks_count, u64::from(first_data_block) + 1, max_blocks(features))?;
        let groups = (blocks_count - u64::from(first_data_block)).div_ceil(u64::from(blocks_per_group));
        let desc_per_block = u64::from(block_size) / u64::from(desc_size);
        range("s_blocks_count (groups)", groups, 1, u64::from(u32::MAX) - desc_per_block)?;
        let inodes_per_group = sb.s_inodes_per_group.get();
        range("s_inodes_per_group", u64::from(inodes_per_group), 1, max_bits)?;
        let inodes = u64::from(inodes_per_group) * groups;
        equal("s_inodes_count", u64::from(sb.s_inodes_count.get()), inodes)?;
        let first_ino = if sb.s_rev_level.get() == 0 { 11 } else { sb.s_first_ino.get() };
        range("s_first_ino", u64::from(first_ino), 11, inodes.max(11))?;
        let desc_blocks = groups.div_ceil(desc_per_block) as u32;
        let meta_bg = features.incompat.contains(Incompat::META_BG);
        let first_meta_bg = if meta_bg { sb.s_first_meta_bg.get() } else { 0 };
        range("s_first_meta_bg", u64::from(first_meta_bg), 0, u64::from(desc_blocks))?;
        let flex_bg = features.incompat.contains(Incompat::FLEX_BG);
        let log_groups_per_flex = if flex_bg { sb.s_log_groups_per_flex } else { 0 };
        range("s_log_groups_per_flex", u64::from(log_groups_per_flex), 0, 31)?;
        let reserved_gdt_blocks = sb.s_reserved_gdt_blocks.get();
        range("s_reserved_gdt_blocks", u64::from(reserved_gdt_blocks), 0, u64::from(block_size / 4))?;
        let backups = if features.compat.contains(Compat::SPARSE_SUPER2) {
            Backups::Two([sb.s_backup_bgs[0].get(), sb.s_backup_bgs[1].get()])
        } else if features.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            Backups::Sparse
        } else {
            Backups::All
        };
        Ok(Self {
            log_block_size,
            log_cluster_ratio,
            log_groups_per_flex,
            inode_size,
            desc_size,
            reserved_gdt_blocks,
            flex_bg,
            bigalloc,
            meta_bg,
            first_meta_bg,
            first_data_block,
            blocks_count,
            blocks_per_group,
            clusters_per_group,
            inodes_per_group,
            inodes_count: sb.s_inodes_count.get(),
            first_ino,
            groups: groups as u32,
            desc_blocks,
            backups,
        })
    }

    /// Bytes in a block.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        1 << self.log_block_size
    }

    /// log2 of the block size in bytes (10 to 16).
    #[must_use]
    pub const fn log_block_size(&self) -> u32 {
        self.log_block_size as u32
    }

    /// Bytes in a cluster.
    #[must_use]
    pub const fn cluster_size(&self) -> u64 {
        1 << (self.log_block_size + self.log_cluster_ratio)
    }

    /// Blocks in a cluster (1 without bigalloc).
    #[must_use]
    pub const fn cluster_ratio(&self) -> u32 {
        1 << self.log_cluster_ratio
    }

    /// log2 of [`Geometry::cluster_ratio`].
    #[must_use]
    pub const fn log_cluster_ratio(&self) -> u32 {
        self.log_cluster_ratio as u32
    }

    /// Whether the feature bigalloc is on (the ratio may still be 1).
    #[must_use]
    pub const fn has_bigalloc(&self) -> bool {
        self.bigalloc
    }

    /// Whether the feature flex_bg is on.
    #[must_use]
    pub const fn has_flex_bg(&self) -> bool {
        self.flex_bg
    }

    /// Whether the feature meta_bg is on.
    #[must_use]
    pub const fn has_meta_bg(&self) -> bool {
        self.meta_bg
    }

    /// `s_first_meta_bg`, in descriptor blocks (0 without meta_bg).
    #[must_use]
    pub const fn first_meta_bg(&self) -> u32 {
        self.first_meta_bg
    }

    /// Bytes of a descriptor.
    #[must_use]
    pub const fn desc_size(&self) -> u16 {
        self.desc_size
    }

    /// Descriptors in a block.
    #[must_use]
    pub const fn desc_per_block(&self) -> u32 {
        self.block_size() / self.desc_size as u32
    }

    /// Blocks that the whole descriptor table takes.
    #[must_use]
    pub const fn desc_blocks(&self) -> u32 {
        self.desc_blocks
    }

    /// `s_reserved_gdt_blocks`
    #[must_use]
    pub const fn reserved_gdt_blocks(&self) -> u32 {
        self.reserved_gdt_blocks as u32
    }

    /// Bytes of an inode's record.
    #[must_use]
    pub const fn inode_size(&self) -> u16 {
        self.inode_size
    }

    /// Inode records in a block.
    #[must_use]
    pub const fn inodes_per_block(&self) -> u32 {
        self.block_size() / self.inode_size as u32
    }

    /// Inodes in a group.
    #[must_use]
    pub const fn inodes_per_group(&self) -> u32 {
        self.inodes_per_group
    }

    /// Inodes in the filesystem.
    #[must_use]
    pub const fn inodes_count(&self) -> u32 {
        self.inodes_count
    }

    /// First inode that is not reserved (11 usually).
    #[must_use]
    pub const fn first_ino(&self) -> Ino {
        Ino(self.first_ino)
    }

    /// Blocks of one group's inode table.
    #[must_use]
    pub const fn itable_blocks(&self) -> u32 {
        self.inodes_per_group.div_ceil(self.inodes_per_block())
    }

    /// First block that belongs to group 0 (1 with blocks of 1 KiB and clusters of 1 KiB, else 0).
    #[must_use]
    pub const fn first_data_block(&self) -> u32 {
        self.first_data_block
    }

    /// Blocks of the filesystem, those before the first data block included.
    #[must_use]
    pub const fn blocks_count(&self) -> u64 {
        self.blocks_count
    }

    /// Bytes of the filesystem.
    #[must_use]
    pub const fn size_bytes(&self) -> u128 {
        (self.blocks_count as u128) << self.log_block_size
    }

    /// Blocks in every group but perhaps the last.
    #[must_use]
    pub const fn blocks_per_group(&self) -> u32 {
        self.blocks_per_group
    }

    /// Clusters in every group but perhaps the last.
    #[must_use]
    pub const fn clusters_per_group(&self) -> u32 {
        self.clusters_per_group
    }

    /// Number of groups.
    #[must_use]
    pub const fn groups(&self) -> u32 {
        self.groups
    }

    /// The groups, ascending.
    pub fn group_numbers(&self) -> impl DoubleEndedIterator<Item = GroupNr> + use<> {
        (0..self.groups).map(GroupNr)
    }

    /// log2 of the groups in a flexible group (0 without flex_bg).
    #[must_use]
    pub const fn log_groups_per_flex(&self) -> u32 {
        self.log_groups_per_flex as u32
    }

    /// Groups in a flexible group.
    #[must_use]
    pub const fn groups_per_flex(&self) -> u32 {
        1 << self.log_groups_per_flex
    }

    /// Which groups hold backups.
    #[must_use]
    pub const fn backups(&self) -> Backups {
        self.backups
    }

    /// First block of a group.
    #[must_use]
    pub const fn group_first_block(&self, group: GroupNr) -> Pblk {
        Pblk(self.first_data_block as u64 + group.0 as u64 * self.blocks_per_group as u64)
    }

    /// Blocks in a group; fewer in the last one, 0 past it.
    #[must_use]
    pub const fn blocks_in_group(&self, group: GroupNr) -> u32 {
        let left = self.blocks_count.saturating_sub(self.group_first_block(group).0);
        if left < self.blocks_per_group as u64 { left as u32 } else { self.blocks_per_group }
    }

    /// Clusters in a group; the last cluster of the filesystem may be incomplete.
    #[must_use]
    pub const fn clusters_in_group(&self, group: GroupNr) -> u32 {
        self.blocks_in_group(group).div_ceil(self.cluster_ratio())
    }

    /// Whether a block lies in the filesystem's groups.
    #[must_use]
    pub const fn contains(&self, block: Pblk) -> bool {
        block.0 >= self.first_data_block as u64 && block.0 < self.blocks_count
    }

    /// Whether all of `len` blocks from `start` lie in the filesystem's groups (true for no blocks at a valid
    /// start).
    #[must_use]
    pub const fn contains_range(&self, start: Pblk, len: u64) -> bool {
        match start.0.checked_add(len) {
            Some(end) => start.0 >= self.first_data_block as u64 && end <= self.blocks_count,
            None => false,
        }
    }

    /// The group that a block belongs to and its block number in it; `None` outside the filesystem.
    #[must_use]
    pub const fn group_of_block(&self, block: Pblk) -> Option<(GroupNr, u32)> {
        if !self.contains(block) {
            return None;
        }
        let at = block.0 - self.first_data_block as u64;
        let per = self.blocks_per_group as u64;
        Some((GroupNr((at / per) as u32), (at % per) as u32))
    }

    /// The group that a block belongs to and the bit of its cluster in the block bitmap.
    #[must_use]
    pub const fn bit_of_block(&self, block: Pblk) -> Option<(GroupNr, u32)> {
        match self.group_of_block(block) {
            Some((group, at)) => Some((group, at >> self.log_cluster_ratio)),
            None => None,
        }
    }

    /// First block of the cluster that is bit `bit` of a group's bitmap.
    #[must_use]
    pub const fn block_of_bit(&self, group: GroupNr, bit: u32) -> Pblk {
        Pblk(self.group_first_block(group).0 + ((bit as u64) << self.log_cluster_ratio))
    }

    /// Blocks rounded up to clusters.
    #[must_use]
    pub const fn clusters_for(&self, blocks: u64) -> u64 {
        blocks.div_ceil(1 << self.log_cluster_ratio)
    }

    /// Where an inode's record is; `None` for 0 and beyond the last.
    #[must_use]
    pub const fn inode_location(&self, ino: Ino) -> Option<InodeLocation> {
        if ino.0 == 0 || ino.0 > self.inodes_count {
            return None;
        }
        let (group, index) = ((ino.0 - 1) / self.inodes_per_group, (ino.0 - 1) % self.inodes_per_group);
        Some(InodeLocation {
            group: GroupNr(group),
            index,
            block: index / self.inodes_per_block(),
            offset: index % self.inodes_per_block() * self.inode_size as u32,
        })
    }

    /// The inode at `index` of a group.
    #[must_use]
    pub const fn ino_of(&self, group: GroupNr, index: u32) -> Ino {
        Ino((group.0 as u64 * self.inodes_per_group as u64 + index as u64 + 1) as u32)
    }

    /// Whether a group starts with a superblock (the primary or a backup).
    #[must_use]
    pub const fn has_super(&self, group: GroupNr) -> bool {
        let g = group.0;
        match self.backups {
            _ if g == 0 => true,
            Backups::All => true,
            Backups::Two([a, b]) => g == a || g == b,
            Backups::Sparse => g == 1 || is_power(g, 3) || is_power(g, 5) || is_power(g, 7),
        }
    }

    /// Groups that hold a superblock, ascending, group 0 included.
    pub fn super_groups(&self) -> impl Iterator<Item = GroupNr> + use<'_> {
        self.group_numbers().filter(|&g| self.has_super(g))
    }

    /// Byte offset of a group's superblock copy, `None` where there is none.
    #[must_use]
    pub const fn super_offset(&self, group: GroupNr) -> Option<u64> {
        if !self.has_super(group) || group.0 >= self.groups {
            return None;
        }
        if group.0 == 0 {
            return Some(SUPERBLOCK_OFFSET);
        }
        Some(self.group_first_block(group).0 << self.log_block_size)
    }

    /// The block in which a group's superblock copy lies.
    #[must_use]
    pub const fn super_block(&self, group: GroupNr) -> Option<Pblk> {
        match self.super_offset(group) {
            Some(at) => Some(Pblk(at >> self.log_block_size)),
            None => None,
        }
    }

    /// Block and byte of a group's primary descriptor, `None` past the last group.
    #[must_use]
    pub const fn desc_location(&self, group: GroupNr) -> Option<(Pblk, u32)> {
        if group.0 >= self.groups {
            return None;
        }
        let index = group.0 / self.desc_per_block();
        let offset = group.0 % self.desc_per_block() * self.desc_size as u32;
        match self.desc_block(index) {
            Some(block) => Some((block, offset)),
            None => None,
        }
    }

    /// Block of the primary descriptor table's block `index`.
    #[must_use]
    pub const fn desc_block(&self, index: u32) -> Option<Pblk> {
        if index >= self.desc_blocks {
            return None;
        }
        if self.in_meta_bg(index) {
            return self.meta_desc_block(index, 0);
        }
        Some(Pblk(self.first_desc_block(GroupNr(0)).0 + index as u64))
    }

    /// Block of a backup of descriptor block `index` kept in `group`: any group with a superblock, or with meta_bg
    /// the second and last group of the meta group.
    #[must_use]
    pub const fn backup_desc_block(&self, index: u32, group: GroupNr) -> Option<Pblk> {
        if index >= self.desc_blocks || group.0 >= self.groups {
            return None;
        }
        if self.in_meta_bg(index) {
            let per = self.desc_per_block();
            if group.0 / per != index {
                return None;
            }
            return match group.0 % per {
                at if at == 1 || at == per - 1 => self.meta_desc_block(index, at),
                _ => None,
            };
        }
        if group.0 == 0 || !self.has_super(group) {
            return None;
        }
        Some(Pblk(self.first_desc_block(group).0 + index as u64))
    }

    /// Whether descriptor block `index` lies in its own meta group.
    #[must_use]
    pub const fn in_meta_bg(&self, index: u32) -> bool {
        self.meta_bg && index >= self.first_meta_bg
    }

    /// The block after a group's superblock, where its copy of the table starts.
    const fn first_desc_block(&self, group: GroupNr) -> Pblk {
        let start = self.group_first_block(group).0;
        Pblk(start + self.super_blocks_of(group) as u64)
    }

    /// Blocks that a superblock takes at the start of `group`: 2 where block 0 is the boot block but belongs to
    /// group 0 (blocks of 1 KiB with larger clusters), else 1; 0 without a copy.
    const fn super_blocks_of(&self, group: GroupNr) -> u32 {
        if !self.has_super(group) {
            return 0;
        }
        if group.0 == 0 && self.log_block_size == 10 && self.first_data_block == 0 { 2 } else { 1 }
    }

    const fn meta_desc_block(&self, index: u32, at: u32) -> Option<Pblk> {
        let group = index as u64 * self.desc_per_block() as u64 + at as u64;
        if group >= self.groups as u64 {
            return None;
        }
        let group = GroupNr(group as u32);
        Some(Pblk(self.group_first_block(group).0 + self.super_blocks_of(group) as u64))
    }

    /// Blocks at the start of a group that hold the superblock, descriptors and reserved descriptor blocks.
    #[must_use]
    pub const fn base_meta_blocks(&self, group: GroupNr) -> u32 {
        self.super_blocks_of(group) + self.desc_blocks_in(group)
    }

    /// Descriptor blocks (reserved ones included) that a group holds.
    #[must_use]
    pub const fn desc_blocks_in(&self, group: GroupNr) -> u32 {
        let per = self.desc_per_block();
        let index = group.0 / per;
        if self.in_meta_bg(index) {
            let at = group.0 % per;
            return if at == 0 || at == 1 || at == per - 1 { 1 } else { 0 };
        }
        if !self.has_super(group) {
            return 0;
        }
        if self.meta_bg {
            let fixed =
                if self.first_meta_bg < self.desc_blocks { self.first_meta_bg } else { self.desc_blocks };
            return fixed + self.reserved_gdt_blocks as u32;
        }
        self.desc_blocks + self.reserved_gdt_blocks as u32
    }
}

const fn is_power(mut n: u32, base: u32) -> bool {
    while n > 1 && n.is_multiple_of(base) {
        n /= base;
    }
    n == 1
}

/// `10 + value`, at most `max`.
fn log_size(field: &'static str, value: u32, max: u64) -> Result<u8, FormatError> {
    range(field, u64::from(value), 0, max - 10)?;
    Ok(10 + value as u8)
}

fn cluster_ratio(sb: &RawSuperblock, bigalloc: bool, log_block_size: u8) -> Result<u8, FormatError> {
    if !bigalloc {
        return Ok(0);
    }
    // The kernel's limit on s_log_cluster_size is 20 past 1 KiB (clusters of 1 GiB).
    let log_cluster = log_size("s_log_cluster_size", sb.s_log_cluster_size.get(), 30)?;
    range("s_log_cluster_size", u64::from(log_cluster) - 10, u64::from(log_block_size) - 10, 20)?;
    Ok(log_cluster - log_block_size)
}

fn inode_size(sb: &RawSuperblock, block_size: u32) -> Result<u16, FormatError> {
    if sb.s_rev_level.get() == 0 {
        return Ok(128);
    }
    let size = sb.s_inode_size.get();
    power_of_two("s_inode_size", u64::from(size))?;
    range("s_inode_size", u64::from(size), 128, u64::from(block_size))?;
    Ok(size)
}

fn desc_size(sb: &RawSuperblock, features: Features) -> Result<u16, FormatError> {
    if !features.incompat.contains(Incompat::BIT64) {
        return Ok(32);
    }
    let size = sb.s_desc_size.get();
    power_of_two("s_desc_size", u64::from(size))?;
    range("s_desc_size", u64::from(size), 64, 1024)?;
    Ok(size)
}

/// The most blocks a filesystem can have: block numbers have 32 bits, or 48 in extents with `64bit`.
const fn max_blocks(features: Features) -> u64 {
    if features.incompat.contains(Incompat::BIT64) { 1 << 48 } else { u32::MAX as u64 }
}

#[cfg(test)]
mod tests;
