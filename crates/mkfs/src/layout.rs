//! Where everything goes: groups, descriptors, bitmaps, inode tables. No I/O.
//!
//! The layout is mke2fs's, found by comparing images: groups as large as a bitmap block, tables packed by flexible
//! groups, a last group that is too small left out, inodes rounded up to whole table blocks and multiples of 8.

use std::collections::BTreeSet;

use extant_format::superblock::EXT4_SUPER_MAGIC;
use extant_format::{Compat, Features, Geometry, GroupNr, Incompat, RawSuperblock, RoCompat, Superblock};

use crate::error::{MkfsError, Result, invalid};
use crate::params::Params;
use crate::space::Space;

/// Blocks of one group's bitmaps and inode table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Block bitmap.
    pub block_bitmap: u64,
    /// Inode bitmap.
    pub inode_bitmap: u64,
    /// First block of the inode table.
    pub inode_table: u64,
}

/// A filesystem's layout before anything is in it.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The superblock; free counts are filled in at the end.
    pub sb: Superblock,
    /// By group.
    pub tables: Vec<Tables>,
    /// Taken blocks, rounded to clusters.
    pub(crate) space: Space,
    /// Groups whose block bitmap must be written because more than their own superblock copy is in them.
    pub(crate) touched: BTreeSet<u32>,
    /// Clusters of superblocks, descriptors, bitmaps and tables (`s_overhead_clusters` without the journal).
    pub(crate) overhead: u64,
}

/// Counts that follow from each other while the last group is made to fit.
#[derive(Clone, Copy, Debug)]
struct Counts {
    blocks: u64,
    blocks_per_group: u32,
    groups: u64,
    inodes_per_group: u32,
    itable_blocks: u32,
    reserved_gdt: u32,
    reserved: u64,
    /// The features: large descriptor tables in small groups become those of meta block groups.
    features: Features,
}

impl Layout {
    /// Lays out a filesystem.
    ///
    /// # Errors
    /// [`MkfsError::TooSmall`], [`MkfsError::Invalid`].
    pub fn new(p: &Params) -> Result<Self> {
        let counts = Counts::find(p)?;
        let raw = superblock(p, &counts);
        let sb = Superblock::from_raw(raw)?;
        let mut layout = Self {
            tables: Vec::new(),
            space: Space::new(u64::from(sb.geometry().first_data_block()), sb.geometry().blocks_count()),
            touched: BTreeSet::new(),
            overhead: 0,
            sb,
        };
        layout.take_static()?;
        layout.place_tables(p)?;
        let geo = *layout.sb.geometry();
        layout.space = layout.space.rounded(u64::from(geo.cluster_ratio()));
        let taken = layout.space.taken_count(u64::from(geo.first_data_block()), geo.blocks_count());
        layout.overhead = geo.clusters_for(taken) + u64::from(geo.first_data_block());
        Ok(layout)
    }

    /// The geometry.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        self.sb.geometry()
    }

    /// Blocks that nothing is in.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        let geo = self.geometry();
        let first = u64::from(geo.first_data_block());
        geo.blocks_count() - first - self.space.taken_count(first, geo.blocks_count())
    }

    /// Superblocks, descriptors and the blocks reserved for them.
    fn take_static(&mut self) -> Result<()> {
        let geo = *self.sb.geometry();
        for group in geo.group_numbers() {
            let (len, room) = (geo.base_meta_blocks(group), geo.blocks_in_group(group));
            if len > room {
                return Err(too_small(format!(
                    "group {group} has {room} blocks, its superblock and descriptors are {len}; \
                     give larger groups (-g), or -O ^resize_inode or meta_bg"
                )));
            }
            self.space.take(geo.group_first_block(group).0, u64::from(len));
        }
        Ok(())
    }

    fn place_tables(&mut self, p: &Params) -> Result<()> {
        let geo = *self.sb.geometry();
        self.tables = vec![Tables::default(); geo.groups() as usize];
        if geo.log_groups_per_flex() > 0 {
            // Packed, all groups' tables are at the front, and nothing keeps them apart.
            let step = if p.packed_meta_blocks { geo.groups() } else { geo.groups_per_flex() };
            let mut first = 0;
            while first < geo.groups() {
                let end = first.saturating_add(step).min(geo.groups());
                let alone = end - first == 1 && !p.packed_meta_blocks;
                let spare = if alone { u64::from(geo.groups_per_flex()) - 1 } else { 0 };
                self.place_flex(first, end, spare)?;
                first = end;
            }
            return Ok(());
        }
        for group in geo.group_numbers() {
            self.place_single(group, p.stride)?;
        }
        Ok(())
    }

    /// All block bitmaps, then all inode bitmaps, then all tables, from the flexible group's start. A single group
    /// leaves `spare` blocks for the bitmaps of those that growth would add.
    fn place_flex(&mut self, first: u32, end: u32, spare: u64) -> Result<()> {
        let geo = *self.sb.geometry();
        let mut goal = geo.group_first_block(GroupNr(first)).0;
        for group in first..end {
            let at = self.place(goal, 1)?;
            self.tables[group as usize].block_bitmap = at;
            goal = at + 1;
        }
        goal += spare;
        for group in first..end {
            let at = self.place(goal, 1)?;
            self.tables[group as usize].inode_bitmap = at;
            goal = at + 1;
        }
        goal += spare;
        let len = u64::from(geo.itable_blocks());
        for group in first..end {
            let at = self.place(goal, len)?;
            self.tables[group as usize].inode_table = at;
            goal = at + len;
        }
        Ok(())
    }

    /// Bitmaps and table at the group's own start; a RAID stride moves the bitmaps from group to group.
    fn place_single(&mut self, group: GroupNr, stride: u32) -> Result<()> {
        let geo = *self.sb.geometry();
        let start = geo.group_first_block(group).0;
        let (itable, size) = (u64::from(geo.itable_blocks()), u64::from(geo.blocks_in_group(group)));
        let mut goal = start;
        if stride > 0 {
            let base = start + u64::from(geo.base_meta_blocks(group)) + itable;
            let room = (start + size).saturating_sub(base).max(1);
            goal = base + u64::from(stride) * u64::from(group.0) % room;
        }
        let block_bitmap = self.place_in(group, goal, 1)?;
        let inode_bitmap = self.place_in(group, goal, 1)?;
        let inode_table = self.place_in(group, start, itable)?;
        self.tables[group.0 as usize] = Tables { block_bitmap, inode_bitmap, inode_table };
        Ok(())
    }

    fn place_in(&mut self, group: GroupNr, goal: u64, len: u64) -> Result<u64> {
        let geo = *self.sb.geometry();
        let start = geo.group_first_block(group).0;
        let end = start + u64::from(geo.blocks_in_group(group));
        let found = self.space.find(goal, len).filter(|&at| at >= start && at + len <= end);
        let found =
            found.or_else(|| self.space.find(start, len).filter(|&at| at >= start && at + len <= end));
        let Some(at) = found else {
            return Err(too_small(format!(
                "group {group} has no room for its own tables; give fewer inodes (-i, -N)"
            )));
        };
        self.space.take(at, len);
        Ok(at)
    }

    fn place(&mut self, goal: u64, len: u64) -> Result<u64> {
        let Some(at) = self.space.find(goal, len) else {
            return Err(too_small(
                "no room for the inode tables; give fewer inodes (-i, -N) or a larger SIZE".to_owned(),
            ));
        };
        self.space.take(at, len);
        self.touch(at, len);
        Ok(at)
    }

    /// Notes the groups of blocks that came from the allocator.
    pub(crate) fn touch(&mut self, at: u64, len: u64) {
        let geo = self.sb.geometry();
        let group =
            |block: u64| (block - u64::from(geo.first_data_block())) / u64::from(geo.blocks_per_group());
        for g in group(at)..=group(at + len.max(1) - 1) {
            self.touched.insert(g as u32);
        }
    }
}

fn too_small(text: String) -> MkfsError {
    MkfsError::TooSmall(text)
}

fn first_data_block(p: &Params) -> u64 {
    u64::from(p.block_size == 1024 && p.cluster_ratio == 1)
}

impl Counts {
    /// The last group is left out if it has room for little more than its own metadata; the counts follow.
    fn find(p: &Params) -> Result<Self> {
        let bits = (p.block_size * 8).min(65528);
        let full = if p.cluster_ratio > 1 || p.features.ro_compat.contains(RoCompat::BIGALLOC) {
            bits * p.cluster_ratio
        } else {
            bits
        };
        let mut blocks_per_group = p.blocks_per_group.unwrap_or(full);
        let first = first_data_block(p);
        let mut blocks = p.blocks;
        let all_reserved = (p.blocks_asked as f64 * p.reserved_percent / 100.0) as u64;
        let mut reserved = all_reserved;
        if u128::from(p.inodes) * u128::from(p.inode_size) >= u128::from(p.blocks) * u128::from(p.block_size)
        {
            return Err(too_small(format!(
                "{} inodes of {} bytes are larger than the filesystem; give fewer (-i, -N) or a larger SIZE",
                p.inodes, p.inode_size
            )));
        }
        loop {
            if blocks <= first + 4 {
                return Err(too_small(format!(
                    "{blocks} blocks are too few for a filesystem; give a larger SIZE"
                )));
            }
            let groups = (blocks - first).div_ceil(u64::from(blocks_per_group));
            let Some((inodes_per_group, itable_blocks)) = inodes_per_group(p, blocks, groups)? else {
                // Smaller groups make more bitmaps, of the size asked for again.
                if blocks_per_group <= 256 {
                    return invalid("too many inodes for the groups; give fewer (-N, -i)");
                }
                (blocks_per_group, blocks) = (blocks_per_group - 8, p.blocks);
                continue;
            };
            let mut counts = Self {
                blocks,
                blocks_per_group,
                groups,
                inodes_per_group,
                itable_blocks,
                reserved_gdt: 0,
                reserved,
                features: p.features,
            };
            counts.reserved_gdt = counts.reserved_gdt(p);
            counts.spread_large_table(p);
            // A part of what a last cluster cut off belonged to.
            counts.reserved = reserved.min(blocks / 2);
            let rest = (blocks - first) % u64::from(blocks_per_group);
            let overhead = counts.last_overhead(p);
            if groups == 1 && rest != 0 && rest < overhead {
                return Err(too_small(format!(
                    "{blocks} blocks are too few for a filesystem; give a larger SIZE"
                )));
            }
            if groups > 1 && rest != 0 && rest < overhead + 50 {
                blocks -= rest;
                reserved = (u128::from(all_reserved) * u128::from(blocks) / u128::from(p.blocks)) as u64;
                continue;
            }
            if u64::from(blocks_per_group) < overhead && p.log_groups_per_flex == 0 {
                return Err(too_small(
                    "the tables of a group do not fit into it; give larger groups (-g), fewer inodes (-i, -N) or a \
                     larger SIZE"
                        .to_owned(),
                ));
            }
            return Ok(counts);
        }
    }

    /// A descriptor table of more than three quarters of a group is spread over meta block groups, which do not grow
    /// by a resize inode.
    fn spread_large_table(&mut self, p: &Params) {
        let table = self.desc_blocks(p) + u64::from(self.reserved_gdt);
        if p.revision > 0 && table > u64::from(self.blocks_per_group) * 3 / 4 {
            self.features.incompat.insert(Incompat::META_BG);
            self.features.compat.remove(Compat::RESIZE_INODE);
            self.reserved_gdt = 0;
        }
    }

    fn desc_blocks(&self, p: &Params) -> u64 {
        self.groups.div_ceil(u64::from(p.block_size) / u64::from(p.desc_size))
    }

    /// Descriptor blocks kept free for growth: to 1024 times the size, or to `-E resize`, in one block's pointers.
    fn reserved_gdt(&self, p: &Params) -> u32 {
        if !p.features.compat.contains(Compat::RESIZE_INODE) {
            return 0;
        }
        let per_block = u64::from(p.block_size) / u64::from(p.desc_size);
        let most = u64::from(u32::MAX);
        let thousandfold = if self.blocks < most / 1024 { self.blocks * 1024 } else { most };
        let groups = (thousandfold - first_data_block(p)).div_ceil(u64::from(self.blocks_per_group));
        let usual = groups.div_ceil(per_block).saturating_sub(self.desc_blocks(p));
        // mke2fs counts what is asked for in groups of as many blocks as others have clusters.
        let blocks_of_group =
            p.blocks_per_group.map_or(u64::from(p.block_size) * 8, |n| u64::from(n / p.cluster_ratio));
        let table = |blocks: u64| blocks.div_ceil(blocks_of_group).div_ceil(per_block);
        // A size to grow to that needs no further block says nothing.
        let asked = p.resize.map(|to| table(to).saturating_sub(table(p.blocks_asked)));
        asked.filter(|&blocks| blocks > 0).unwrap_or(usual).min(u64::from(p.block_size / 4)) as u32
    }

    /// What the last group must hold at least.
    fn last_overhead(&self, p: &Params) -> u64 {
        let last = self.groups - 1;
        let has_super = if p.features.compat.contains(Compat::SPARSE_SUPER2) {
            backup_groups(p, self.groups).contains(&(last as u32)) && last != 0
        } else if p.features.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            last <= 1 || [3, 5, 7].iter().any(|&base| is_power(last, base))
        } else {
            true
        };
        let table = 2 + u64::from(self.itable_blocks);
        if !has_super {
            return table;
        }
        table + 1 + self.desc_blocks(p) + u64::from(self.reserved_gdt)
    }
}

fn is_power(mut n: u64, base: u64) -> bool {
    while n > 1 && n.is_multiple_of(base) {
        n /= base;
    }
    n == 1
}

/// `s_backup_bgs`
fn backup_groups(p: &Params, groups: u64) -> [u32; 2] {
    match p.num_backup_sb {
        0 => [0, 0],
        // One backup is kept in the second slot.
        1 => [0, u32::from(groups > 1)],
        _ if groups > 2 => [1, (groups - 1) as u32],
        _ => [u32::from(groups > 1), 0],
    }
}

/// Inodes that every filesystem has: the reserved ones, lost+found, and files of features.
fn own_inodes(p: &Params) -> u64 {
    11 + u64::from(p.quota[2]) + u64::from(p.features.compat.contains(Compat::ORPHAN_FILE))
}

/// Inodes a group and its table's blocks: whole blocks, a multiple of 8; `None` if a bitmap is too small.
fn inodes_per_group(p: &Params, blocks: u64, groups: u64) -> Result<Option<(u32, u32)>> {
    let per_block = u64::from(p.block_size) / u64::from(p.inode_size);
    let asked = if p.inodes == 0 { blocks / u64::from((4096 / p.block_size).max(1)) } else { p.inodes };
    let wanted = asked.max(12);
    let least = own_inodes(p).div_ceil(groups).next_multiple_of(8);
    let mut per_group = wanted.div_ceil(groups);
    let most = u64::from(p.block_size) * 8;
    if per_group > most {
        if p.features.ro_compat.contains(RoCompat::BIGALLOC) {
            return Err(too_small(format!(
                "{wanted} inodes are more than bitmaps of {most} bits in {groups} groups hold; \
                 give fewer (-i, -N), smaller clusters (-C) or a larger SIZE"
            )));
        }
        return Ok(None);
    }
    per_group = per_group.min(65536 - per_block);
    loop {
        let table = per_group.div_ceil(per_block);
        let rounded = ((table * per_block).max(8) / 8 * 8).max(least);
        if rounded * groups <= u64::from(u32::MAX) {
            return Ok(Some((rounded as u32, rounded.div_ceil(per_block) as u32)));
        }
        per_group -= 1;
        if per_group == 0 {
            return invalid("too many groups for any inodes; use larger blocks (-b)");
        }
    }
}

fn superblock(p: &Params, c: &Counts) -> RawSuperblock {
    let mut sb = RawSuperblock::zeroed();
    let f = c.features;
    let bigalloc = f.ro_compat.contains(RoCompat::BIGALLOC);
    sb.s_magic.set(EXT4_SUPER_MAGIC);
    sb.s_rev_level.set(p.revision);
    sb.s_inodes_count.set((u64::from(c.inodes_per_group) * c.groups) as u32);
    sb.set_blocks_count(c.blocks);
    sb.set_r_blocks_count(c.reserved);
    sb.s_first_data_block.set(first_data_block(p) as u32);
    sb.s_log_block_size.set(p.block_size.trailing_zeros() - 10);
    sb.s_log_cluster_size.set((p.block_size * p.cluster_ratio).trailing_zeros() - 10);
    sb.s_blocks_per_group.set(c.blocks_per_group);
    sb.s_clusters_per_group.set(if bigalloc {
        c.blocks_per_group / p.cluster_ratio
    } else {
        c.blocks_per_group
    });
    sb.s_inodes_per_group.set(c.inodes_per_group);
    set_times(&mut sb, p.time);
    let (mounts, interval) = if p.periodic_check { (20, 180 * 86400) } else { (u16::MAX, 0) };
    sb.s_max_mnt_count.set(mounts);
    sb.s_checkinterval.set(interval);
    sb.s_state.set(1);
    sb.s_errors.set(p.errors);
    sb.s_creator_os.set(p.creator_os);
    sb.s_uuid = p.uuid;
    sb.s_volume_name[..p.label.len()].copy_from_slice(&p.label);
    sb.s_last_mounted[..p.last_mounted.len()].copy_from_slice(&p.last_mounted);
    sb.s_first_ino.set(11);
    sb.s_inode_size.set(p.inode_size);
    set_hash_seed(&mut sb, p);
    // The hashes of names take bytes as signed, as on the machines where most images are made.
    sb.s_flags.set(0x1 | if p.test_fs { 0x4 } else { 0 });
    if p.revision > 0 {
        sb.set_features(f);
        set_dynamic(&mut sb, p, c);
    }
    sb
}

/// The hash of directory names and its seed.
pub(crate) fn set_hash_seed(sb: &mut RawSuperblock, p: &Params) {
    for (word, bytes) in sb.s_hash_seed.iter_mut().zip(p.hash_seed.chunks_exact(4)) {
        word.set(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    }
    sb.s_def_hash_version = p.hash_version;
}

/// Every time that a new superblock has.
pub(crate) fn set_times(sb: &mut RawSuperblock, time: u64) {
    let (low, high) = (time as u32, (time >> 32) as u8);
    sb.s_wtime.set(low);
    sb.s_lastcheck.set(low);
    sb.s_mkfs_time.set(low);
    (sb.s_wtime_hi, sb.s_lastcheck_hi, sb.s_mkfs_time_hi) = (high, high, high);
}

/// What only superblocks of revision 1 have.
fn set_dynamic(sb: &mut RawSuperblock, p: &Params, c: &Counts) {
    let f = c.features;
    sb.s_reserved_gdt_blocks.set(c.reserved_gdt as u16);
    sb.s_default_mount_opts.set(p.default_mount_opts);
    sb.s_raid_stride.set(p.stride as u16);
    sb.s_raid_stripe_width.set(p.stripe_width);
    if p.inode_size > 128 {
        sb.s_min_extra_isize.set(32);
        sb.s_want_extra_isize.set(32);
    }
    if f.incompat.contains(Incompat::BIT64) {
        sb.s_desc_size.set(p.desc_size);
    }
    if f.incompat.contains(Incompat::FLEX_BG) {
        sb.s_log_groups_per_flex = p.log_groups_per_flex;
    }
    if f.compat.contains(Compat::SPARSE_SUPER2) {
        let groups = backup_groups(p, c.groups);
        sb.s_backup_bgs = groups.map(Into::into);
    }
    if f.ro_compat.contains(RoCompat::METADATA_CSUM) {
        sb.s_checksum_type = 1;
    }
    if f.incompat.contains(Incompat::CSUM_SEED) {
        sb.s_checksum_seed.set(extant_format::csum::crc32c(!0, &p.uuid));
    }
    if f.incompat.contains(Incompat::ENCRYPT) {
        // AES-256 in XTS mode for contents, in CTS mode for names.
        sb.s_encrypt_algos = [1, 4, 0, 0];
    }
    if f.incompat.contains(Incompat::MMP) {
        sb.s_mmp_interval.set(p.mmp_interval);
        // The block's place is decided later; the first one is only there to be valid until then.
        sb.s_mmp_block.set(first_data_block(p));
    }
}
