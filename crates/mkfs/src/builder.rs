//! The image while it is made: free space, inode tables in memory, usage by owner, sequential writes.

use std::collections::BTreeMap;

use extant_format::inode::InodeFormat;
use extant_format::{
    BgFlags, Compat, Csum, GroupDesc, GroupNr, Ino, Inode, Pblk, RoCompat, Superblock, bitmap,
};

use crate::error::{MkfsError, Result};
use crate::journal_dev;
use crate::layout::Layout;
use crate::params::Params;
use crate::writer::Writer;

/// What an owner uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) space: u64,
    pub(crate) inodes: u64,
}

/// An image being made.
pub(crate) struct Builder {
    pub(crate) params: Params,
    pub(crate) layout: Layout,
    pub(crate) writer: Writer,
    inodes: InodeFormat,
    /// By group, the table up to its last inode in use.
    tables: BTreeMap<u32, Vec<u8>>,
    dirs: BTreeMap<u32, u32>,
    next_ino: u32,
    pub(crate) usage: [BTreeMap<u32, Usage>; 3],
    pub(crate) journal_clusters: u64,
    /// The external journal, which the filesystem enters when all but its primary superblock is written.
    pub(crate) journal: Option<journal_dev::Found>,
    /// Where contents go on.
    pub(crate) data_goal: u64,
    /// Inode tables that nothing was written to are known to read as zeros, or will be zeroed here.
    itable_zeroed: bool,
    /// Nothing is written anywhere: whether all of it can be made shall be known first.
    pub(crate) rehearsal: bool,
}

impl Builder {
    pub(crate) fn new(params: Params, layout: Layout, writer: Writer, itable_zeroed: bool) -> Self {
        let inodes = InodeFormat::new(&layout.sb);
        let next_ino = layout.geometry().first_ino().0;
        Self {
            params,
            inodes,
            tables: BTreeMap::new(),
            dirs: BTreeMap::new(),
            next_ino,
            usage: [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()],
            journal_clusters: 0,
            journal: None,
            data_goal: 0,
            itable_zeroed,
            rehearsal: false,
            layout,
            writer,
        }
    }

    pub(crate) fn sb(&self) -> &Superblock {
        &self.layout.sb
    }

    pub(crate) fn csum(&self) -> &Csum {
        self.layout.sb.csum()
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.params.block_size
    }

    /// Takes `len` blocks together (whole clusters), the first free ones from `goal` on.
    pub(crate) fn allocate(&mut self, goal: u64, len: u64) -> Result<u64> {
        let len = len.next_multiple_of(u64::from(self.params.cluster_ratio));
        let Some(at) = self.layout.space.find(self.cluster_start(goal), len) else {
            return Err(self.no_space(len));
        };
        self.mark(at, len);
        Ok(at)
    }

    /// Takes at least one and at most `len` blocks, the first free ones from `goal` on.
    pub(crate) fn allocate_some(&mut self, goal: u64, len: u64) -> Result<(u64, u64)> {
        let found =
            self.layout.space.next_free(self.cluster_start(goal)).or_else(|| self.layout.space.next_free(0));
        let Some((at, end)) = found else { return Err(self.no_space(len)) };
        let ratio = u64::from(self.params.cluster_ratio);
        let got = (end - at).min(len.next_multiple_of(ratio));
        self.mark(at, got);
        Ok((at, got.min(len)))
    }

    /// The start of the cluster that `block` is in: what is given out are whole clusters.
    fn cluster_start(&self, block: u64) -> u64 {
        let (first, ratio) = (self.default_goal(), u64::from(self.params.cluster_ratio));
        block.saturating_sub(first) / ratio * ratio + first
    }

    fn mark(&mut self, at: u64, len: u64) {
        let end = (at + len).min(self.layout.geometry().blocks_count());
        self.layout.space.take(at, end - at);
        self.layout.touch(at, end - at);
    }

    fn no_space(&self, needed: u64) -> MkfsError {
        MkfsError::NoSpace {
            what: "the filesystem".to_owned(),
            needed,
            free: self.layout.free_blocks(),
            unit: "contiguous blocks",
            hint: "",
        }
    }

    /// The next inode that is not reserved.
    pub(crate) fn new_ino(&mut self) -> Result<Ino> {
        let max = self.layout.geometry().inodes_count();
        if self.next_ino > max {
            return Err(MkfsError::NoSpace {
                what: "the source".to_owned(),
                needed: u64::from(self.next_ino),
                free: u64::from(max),
                unit: "inodes",
                hint: " or more inodes with -N",
            });
        }
        self.next_ino += 1;
        Ok(Ino(self.next_ino - 1))
    }

    pub(crate) fn write_block(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        self.writer.write(block * u64::from(self.params.block_size), bytes)
    }

    /// 512-byte sectors of `blocks` blocks in whole clusters.
    pub(crate) fn sectors(&self, blocks: u64) -> u64 {
        blocks.next_multiple_of(u64::from(self.params.cluster_ratio)) * u64::from(self.params.block_size)
            / 512
    }

    /// 512-byte sectors of `blocks` single blocks, each in a cluster of its own.
    pub(crate) fn sectors_each(&self, blocks: u64) -> u64 {
        blocks * self.layout.geometry().cluster_size() / 512
    }

    /// Stores an inode and charges its owner; `attributes` is what goes behind its fields.
    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode, attributes: Option<&[u8]>) -> Result<()> {
        self.put_uncharged(ino, inode, attributes)?;
        if ino != Ino::ROOT && ino < self.layout.geometry().first_ino() {
            return Ok(());
        }
        let used = Usage { space: inode.blocks * 512, inodes: 1 };
        for (map, id) in self.usage.iter_mut().zip([inode.uid, inode.gid, inode.projid]) {
            let entry = map.entry(id).or_default();
            entry.space += used.space;
            entry.inodes += used.inodes;
        }
        Ok(())
    }

    /// Charges the owner of `inode` for further inodes.
    pub(crate) fn charge_inodes(&mut self, inode: &Inode, count: u64) {
        for (map, id) in self.usage.iter_mut().zip([inode.uid, inode.gid, inode.projid]) {
            map.entry(id).or_default().inodes += count;
        }
    }

    /// Stores an inode that no quota counts.
    pub(crate) fn put_uncharged(&mut self, ino: Ino, inode: &Inode, attributes: Option<&[u8]>) -> Result<()> {
        let geo = *self.layout.geometry();
        let Some(place) = geo.inode_location(ino) else {
            return crate::error::invalid(format!("inode {ino} does not exist"));
        };
        let size = usize::from(geo.inode_size());
        let table = self.tables.entry(place.group.0).or_default();
        let start = place.index as usize * size;
        if table.len() < start + size {
            table.resize(start + size, 0);
        }
        let record = &mut table[start..start + size];
        if let Some(bytes) = attributes {
            let at = size - bytes.len();
            record[at..].copy_from_slice(bytes);
        }
        self.inodes.encode(ino, inode, record)?;
        if inode.is_dir() {
            *self.dirs.entry(place.group.0).or_default() += 1;
        }
        Ok(())
    }

    /// A new inode's fields that do not depend on what it is.
    pub(crate) fn fresh(&self, mode: u16) -> Inode {
        let time = extant_format::Timestamp::from_sec(self.params.time as i64);
        Inode {
            mode,
            links_count: 1,
            atime: time,
            ctime: time,
            mtime: time,
            crtime: time,
            extra_isize: self.extra_isize(),
            ..Inode::default()
        }
    }

    pub(crate) fn extra_isize(&self) -> u16 {
        if self.params.inode_size > 128 { 32 } else { 0 }
    }

    /// Writes inode tables, bitmaps, descriptors and superblocks, the primary superblock last, and flushes.
    pub(crate) fn finish(mut self) -> Result<Superblock> {
        let descs = self.descriptors()?;
        self.write_tables()?;
        self.write_descriptors(&descs)?;
        self.write_superblocks(&descs)?;
        self.writer.finish()?;
        self.writer.device().flush().map_err(crate::writer::device_error("flushing the image"))?;
        Ok(self.layout.sb)
    }

    /// Writes only descriptors and superblocks, so that a checker can rebuild the rest from inode tables that are still
    /// there: everything counts as used and initialised, the state is not clean.
    pub(crate) fn finish_super_only(&mut self) -> Result<Superblock> {
        let geo = *self.layout.geometry();
        let mut descs = Vec::with_capacity(geo.groups() as usize);
        for group in geo.group_numbers() {
            let (mut desc, ..) = self.describe(group, false);
            desc.flags = BgFlags::INODE_ZEROED;
            descs.push(desc);
        }
        self.layout.sb.update(|raw| {
            raw.s_state.set(0);
            if raw.features().compat.contains(Compat::HAS_JOURNAL) {
                raw.s_journal_inum.set(Ino::JOURNAL.0);
            }
        })?;
        self.write_descriptors(&descs)?;
        self.write_superblocks(&descs)?;
        self.writer.finish()?;
        self.writer.device().flush().map_err(crate::writer::device_error("flushing the image"))?;
        Ok(self.layout.sb.clone())
    }

    /// Descriptors with counts and checksums; writes the bitmaps on the way.
    fn descriptors(&mut self) -> Result<Vec<GroupDesc>> {
        let geo = *self.layout.geometry();
        let lazy = self.sb().features().has_group_desc_csum();
        let mut descs = Vec::with_capacity(geo.groups() as usize);
        let mut bitmaps: Vec<(u64, Vec<u8>)> = Vec::new();
        for group in geo.group_numbers() {
            let (desc, block_map, inode_map) = self.describe(group, lazy);
            bitmaps.extend(block_map.map(|m| (desc.block_bitmap.0, m)));
            bitmaps.extend(inode_map.map(|m| (desc.inode_bitmap.0, m)));
            descs.push(desc);
            if bitmaps.len() >= 2048 {
                self.write_sorted(&mut bitmaps)?;
            }
        }
        self.write_sorted(&mut bitmaps)?;
        Ok(descs)
    }

    fn write_sorted(&mut self, blocks: &mut Vec<(u64, Vec<u8>)>) -> Result<()> {
        blocks.sort_by_key(|(at, _)| *at);
        for (at, bytes) in blocks.drain(..) {
            self.write_block(at, &bytes)?;
        }
        Ok(())
    }

    #[allow(clippy::type_complexity, reason = "the two bitmaps that must be written")]
    fn describe(&self, group: GroupNr, lazy: bool) -> (GroupDesc, Option<Vec<u8>>, Option<Vec<u8>>) {
        let geo = self.layout.geometry();
        let size = geo.block_size() as usize;
        let tables = self.layout.tables[group.0 as usize];
        let clusters = geo.clusters_in_group(group);
        let start = geo.group_first_block(group).0;
        let end = start + u64::from(geo.blocks_in_group(group));
        let used_inodes =
            self.tables.get(&group.0).map_or(0, |t| t.len() / usize::from(geo.inode_size())) as u32;
        let mut desc = GroupDesc {
            block_bitmap: Pblk(tables.block_bitmap),
            inode_bitmap: Pblk(tables.inode_bitmap),
            inode_table: Pblk(tables.inode_table),
            free_inodes: geo.inodes_per_group() - used_inodes,
            used_dirs: self.dirs.get(&group.0).copied().unwrap_or(0),
            ..GroupDesc::default()
        };
        let mut block_map = vec![0; size];
        let mut taken = 0;
        let ratio = u64::from(geo.cluster_ratio());
        for (s, e) in self.layout.space.taken_in(start, end) {
            let (from, to) = ((s - start) / ratio, (e - start).div_ceil(ratio));
            bitmap::fill(&mut block_map, from as u32, to as u32, true);
            taken += (to - from) as u32;
        }
        bitmap::pad(&mut block_map, clusters);
        desc.free_clusters = clusters - taken;
        let mut inode_map = vec![0; size];
        bitmap::fill(&mut inode_map, 0, used_inodes, true);
        bitmap::pad(&mut inode_map, geo.inodes_per_group());
        if self.itable_zeroed {
            desc.flags |= BgFlags::INODE_ZEROED;
        }
        if lazy {
            desc.itable_unused = geo.inodes_per_group() - used_inodes;
            if used_inodes == 0 {
                desc.flags |= BgFlags::INODE_UNINIT;
            }
            let ends = group.0 == 0 || group.0 + 1 == geo.groups();
            // An inode's allocation says that its group is in use, wherever its blocks are.
            if !ends && used_inodes == 0 && !self.layout.touched.contains(&group.0) {
                desc.flags |= BgFlags::BLOCK_UNINIT;
            }
        }
        let block_map = (!desc.flags.contains(BgFlags::BLOCK_UNINIT)).then_some(block_map);
        let inode_map = (!desc.flags.contains(BgFlags::INODE_UNINIT)).then_some(inode_map);
        if let Some(map) = &block_map {
            desc.set_block_bitmap_csum(map, geo, self.csum());
        }
        if let Some(map) = &inode_map {
            desc.set_inode_bitmap_csum(map, geo, self.csum());
        }
        (desc, block_map, inode_map)
    }

    fn write_tables(&mut self) -> Result<()> {
        let geo = *self.layout.geometry();
        let size = geo.block_size() as usize;
        let tables = std::mem::take(&mut self.tables);
        for group in geo.group_numbers() {
            let first = self.layout.tables[group.0 as usize].inode_table;
            let mut written = 0;
            if let Some(table) = tables.get(&group.0) {
                let mut bytes = table.clone();
                bytes.resize(table.len().next_multiple_of(size), 0);
                self.write_block(first, &bytes)?;
                written = (bytes.len() / size) as u64;
            }
            if self.itable_zeroed {
                let rest = u64::from(geo.itable_blocks()) - written;
                self.zero_blocks(first + written, rest)?;
            }
        }
        Ok(())
    }

    pub(crate) fn zero_blocks(&mut self, first: u64, len: u64) -> Result<()> {
        let size = u64::from(self.params.block_size);
        self.writer.zero(first * size, len * size)
    }

    fn write_descriptors(&mut self, descs: &[GroupDesc]) -> Result<()> {
        let geo = *self.layout.geometry();
        let (size, desc_size) = (geo.block_size() as usize, geo.desc_size());
        let mut table = vec![0; geo.desc_blocks() as usize * size];
        for (group, desc) in geo.group_numbers().zip(descs) {
            let index = (group.0 / geo.desc_per_block()) as usize * size;
            let at = index + (group.0 % geo.desc_per_block()) as usize * usize::from(desc_size);
            desc.encode(group, &mut table[at..at + usize::from(desc_size)], desc_size, self.csum())?;
        }
        for (index, block) in (0..geo.desc_blocks()).zip(table.chunks(size)) {
            if let Some(at) = geo.desc_block(index) {
                self.write_block(at.0, block)?;
            }
        }
        let groups: Vec<GroupNr> = self.desc_groups();
        for group in groups {
            for (index, block) in (0..geo.desc_blocks()).zip(table.chunks(size)) {
                if let Some(at) = geo.backup_desc_block(index, group) {
                    self.write_block(at.0, block)?;
                }
            }
        }
        Ok(())
    }

    /// Groups that may hold a backup of some descriptor block.
    fn desc_groups(&self) -> Vec<GroupNr> {
        let geo = self.layout.geometry();
        if geo.has_meta_bg() { geo.group_numbers().collect() } else { geo.super_groups().collect() }
    }

    fn write_superblocks(&mut self, descs: &[GroupDesc]) -> Result<()> {
        let geo = *self.layout.geometry();
        let ratio = u64::from(geo.cluster_ratio());
        let free: u64 = descs.iter().map(|d| u64::from(d.free_clusters)).sum::<u64>() * ratio;
        let free_inodes: u64 = descs.iter().map(|d| u64::from(d.free_inodes)).sum();
        let overhead = self.layout.overhead + self.journal_clusters;
        let kbytes = self.writer.written() / 1024 + 1;
        self.layout.sb.update(|raw| {
            raw.set_free_blocks_count(free.min(geo.blocks_count()));
            raw.s_free_inodes_count.set(free_inodes as u32);
            raw.s_overhead_clusters.set(overhead as u32);
            if raw.s_rev_level.get() > 0 {
                raw.s_kbytes_written.set(kbytes);
            }
        })?;
        let groups: Vec<GroupNr> = geo.super_groups().collect();
        for group in groups.into_iter().rev() {
            if group.0 == 0
                && let Some(journal) = self.journal.take()
            {
                self.writer.finish()?;
                journal.join(self.params.uuid)?;
            }
            let mut copy = self.layout.sb.clone();
            copy.update(|raw| {
                raw.s_block_group_nr.set(group.0 as u16);
                if group.0 != 0 {
                    raw.s_state.set(0);
                }
            })?;
            let bytes = copy.encode();
            if let Some(offset) = geo.super_offset(group) {
                self.writer.write(offset, &bytes)?;
            }
        }
        Ok(())
    }

    /// Whether metadata has checksums.
    pub(crate) fn has_csum(&self) -> bool {
        self.sb().features().ro_compat.contains(RoCompat::METADATA_CSUM)
    }
}
