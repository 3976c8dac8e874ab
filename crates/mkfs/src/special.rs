//! What is in a filesystem that nothing was put into yet: root, lost+found, resize inode, MMP block, journal, quota
//! files, orphan file. In mke2fs's order, because the order decides which blocks they get.

use extant_format::dir::{self, DirLayout, NewEntry};
use extant_format::jbd2::NewJournal;
use extant_format::mmp::Mmp;
use extant_format::orphan_file;
use extant_format::{Compat, FileType, GroupNr, Incompat, Ino, Inode, InodeFlags, Pblk, RoCompat, Timestamp};

use crate::builder::Builder;
use crate::error::{MkfsError, Result, invalid};
use crate::maps::{self, Map, Run};

/// `lost+found`, the first inode that is not reserved.
const LOST_FOUND: Ino = Ino(11);
/// The largest journal, fast commits included.
pub(crate) const MAX_JOURNAL_BLOCKS: u64 = 10_240_000;

impl Builder {
    pub(crate) fn dir_layout(&self) -> DirLayout {
        DirLayout {
            block_size: self.block_size(),
            filetype: self.sb().features().incompat.contains(Incompat::FILETYPE),
            checksummed: self.has_csum(),
            hash_in_entry: false,
            inodes_count: self.layout.geometry().inodes_count(),
        }
    }

    fn has_extents(&self) -> bool {
        self.sb().features().incompat.contains(Incompat::EXTENTS)
    }

    /// Where blocks of inodes without a better goal go.
    pub(crate) fn default_goal(&self) -> u64 {
        u64::from(self.layout.geometry().first_data_block())
    }

    /// Where blocks of an inode's own go: its group, or the first of its flexible group.
    fn inode_goal(&self, ino: Ino) -> u64 {
        let geo = self.layout.geometry();
        if ino == LOST_FOUND && self.sb().features().incompat.contains(Incompat::INLINE_DATA) {
            // mke2fs made it inline first, and it grew from there.
            return self.default_goal();
        }
        let group = geo.inode_location(ino).map_or(0, |place| place.group.0);
        let log = geo.log_groups_per_flex();
        let first = if log > 0 { group & !(geo.groups_per_flex() - 1) } else { group };
        geo.group_first_block(GroupNr(first)).0
    }

    /// Takes `blocks` contiguous logical blocks from 0 on and makes their map.
    pub(crate) fn new_map(
        &mut self,
        ino: Ino,
        blocks: u32,
        goal: u64,
    ) -> Result<(Map, Vec<Run>, InodeFlags)> {
        if !self.has_extents() {
            let (map, runs) = maps::indirect_map(self, &[(0, blocks)], goal)?;
            return Ok((map, runs, InodeFlags::empty()));
        }
        let runs = self.allocate_runs(blocks, goal)?;
        let extents = maps::extents_of(&runs, self.params.cluster_ratio);
        let map = maps::extent_tree(self, ino, &extents, goal)?;
        Ok((map, runs, InodeFlags::EXTENTS))
    }

    /// The first free runs behind `goal`, as they come.
    fn allocate_runs(&mut self, blocks: u32, goal: u64) -> Result<Vec<Run>> {
        let (mut runs, mut done, mut next) = (Vec::new(), 0, goal);
        while done < blocks {
            let (pblk, got) = self.allocate_some(next, u64::from(blocks - done))?;
            runs.push(Run { lblk: done, len: got as u32, pblk });
            (done, next) = (done + got as u32, pblk + got);
        }
        Ok(runs)
    }

    /// Root and lost+found of an empty filesystem.
    pub(crate) fn make_root(&mut self) -> Result<()> {
        let mut root = self.empty_directory(Ino::ROOT, 1)?;
        root.links_count = 3;
        (root.uid, root.gid) = self.params.root_owner;
        root.mode = 0o40000 | self.params.root_perms;
        self.put_inode(Ino::ROOT, &root, None)?;
        self.take_lost_found()?;
        let time = Timestamp::from_sec(self.params.time as i64);
        self.make_lost_found(time)
    }

    /// Gives out lost+found's number, before any other.
    pub(crate) fn take_lost_found(&mut self) -> Result<()> {
        let ino = self.new_ino()?;
        debug_assert_eq!(ino, LOST_FOUND);
        Ok(())
    }

    /// lost+found, with room for what a checker may put there.
    pub(crate) fn make_lost_found(&mut self, time: Timestamp) -> Result<()> {
        let mut lost = self.empty_directory(LOST_FOUND, self.lost_found_blocks())?;
        (lost.atime, lost.ctime, lost.mtime) = (time, time, time);
        lost.links_count = 2;
        lost.mode = 0o40700;
        self.put_inode(LOST_FOUND, &lost, None)
    }

    /// A directory of `blocks` blocks in the root; the root itself gets lost+found's entry.
    fn empty_directory(&mut self, ino: Ino, blocks: u32) -> Result<Inode> {
        let goal = self.inode_goal(ino);
        let (map, runs, flags) = self.new_map(ino, blocks, goal)?;
        let layout = self.dir_layout();
        let seed = self.csum().inode_seed(ino, 0);
        let mut bytes = vec![0; self.block_size() as usize];
        for run in &runs {
            for n in 0..run.len {
                if run.lblk + n == 0 {
                    dir::init_first(&layout, &mut bytes, ino, Ino::ROOT).map_err(broken)?;
                    if ino == Ino::ROOT {
                        add_entry(&layout, &mut bytes, LOST_FOUND, b"lost+found")?;
                    }
                } else {
                    dir::init_empty(&layout, &mut bytes).map_err(broken)?;
                }
                dir::set_tail(&layout, &mut bytes, seed);
                self.write_block(run.pblk + u64::from(n), &bytes)?;
            }
        }
        let size = u64::from(blocks) * u64::from(self.block_size());
        let sectors = self.sectors(u64::from(blocks) + map.tree_blocks);
        Ok(Inode { size, blocks: sectors, i_block: map.i_block, flags, ..self.fresh(0o40755) })
    }

    /// 16 KiB and at least two blocks, but not more than 12 blocks; with inline data the first block is not there
    /// before the others.
    fn lost_found_blocks(&self) -> u32 {
        let size = self.block_size();
        let mut grown = 0;
        while grown < 11 && (grown + 1) * size < (16 << 10).max(2 * size) {
            grown += 1;
        }
        let inline = self.sb().features().incompat.contains(Incompat::INLINE_DATA);
        if inline { grown } else { grown + 1 }
    }

    /// Inode 1 holds no bad blocks, but it is in use.
    pub(crate) fn make_bad_blocks(&mut self) -> Result<()> {
        let inode = Inode { links_count: 0, extra_isize: 0, ..self.fresh(0) };
        self.put_uncharged(Ino::BAD_BLOCKS, &inode, None)?;
        // The other reserved inodes are in use too, and empty.
        for ino in (3..self.layout.geometry().first_ino().0).map(Ino) {
            self.put_uncharged(ino, &Inode::default(), None)?;
        }
        Ok(())
    }

    /// The resize inode: a map of the reserved descriptor blocks and their copies.
    pub(crate) fn make_resize_inode(&mut self) -> Result<()> {
        let geo = *self.layout.geometry();
        let reserved = geo.reserved_gdt_blocks();
        if !self.sb().features().compat.contains(Compat::RESIZE_INODE) {
            return Ok(());
        }
        let size = geo.block_size() as usize;
        let per = (size / 4) as u32;
        let mut inode = Inode { ..self.fresh(0o100600) };
        // A copy is as far from its group's start as the original is from the first block.
        let per_group = u64::from(geo.blocks_per_group());
        let copies: Vec<u64> =
            geo.super_groups().filter(|g| g.0 != 0).map(|g| u64::from(g.0) * per_group).collect();
        inode.size = (12 + u64::from(per) + u64::from(per) * u64::from(per)) * size as u64;
        let primary = geo.desc_block(0).map_or(0, |b| b.0) + u64::from(geo.desc_blocks());
        let mut top = vec![0; size];
        for n in 0..reserved {
            let block = primary + u64::from(n);
            let slot = ((geo.desc_blocks() + n) % per) as usize * 4;
            top[slot..slot + 4].copy_from_slice(&(block as u32).to_le_bytes());
            let mut list = vec![0; size];
            for (at, distance) in copies.iter().enumerate().take(per as usize) {
                let copy = block + distance;
                list[at * 4..at * 4 + 4].copy_from_slice(&(copy as u32).to_le_bytes());
            }
            self.write_block(block, &list)?;
        }
        // Behind a superblock, which is in block 1 of 1024 bytes even where the first group starts at 0.
        let before = 2 + u64::from(geo.block_size() == 1024);
        let tables = u64::from(geo.desc_blocks()) + u64::from(geo.itable_blocks());
        let goal = before + u64::from(reserved) + tables;
        let double = self.allocate(goal, 1)?;
        self.write_block(double, &top)?;
        inode.i_block[13 * 4..14 * 4].copy_from_slice(&(double as u32).to_le_bytes());
        let blocks = u64::from(reserved) * (1 + copies.len() as u64);
        // Every block is counted as a whole cluster.
        inode.blocks = (blocks + 1) * geo.cluster_size() / 512;
        self.put_uncharged(Ino::RESIZE, &inode, None)
    }

    pub(crate) fn make_mmp(&mut self) -> Result<()> {
        if !self.sb().features().incompat.contains(Incompat::MMP) {
            return Ok(());
        }
        let goal = self.default_goal();
        let block = self.allocate(goal, 1)?;
        self.layout.sb.update(|raw| raw.s_mmp_block.set(block))?;
        let mut bytes = vec![0; self.block_size() as usize];
        let mmp = Mmp { time: self.params.time, ..Mmp::new(self.params.mmp_interval) };
        mmp.encode(Pblk(block), &mut bytes, self.csum())?;
        self.write_block(block, &bytes)
    }

    /// The internal journal; for an external one, that it can be used.
    pub(crate) fn make_journal(&mut self) -> Result<()> {
        let compat = self.sb().features().compat;
        if !compat.contains(Compat::HAS_JOURNAL) {
            return Ok(());
        }
        if let Some(path) = self.params.journal_device.clone() {
            let journal = crate::journal_dev::look(&path, self.block_size(), self.params.uuid)?;
            self.layout.sb.update(|raw| {
                raw.s_journal_uuid = journal.uuid;
                raw.s_journal_dev.set(journal.number);
            })?;
            self.journal = Some(journal);
            return Ok(());
        }
        let fast = compat.contains(Compat::FAST_COMMIT);
        let Some((log, fc)) = self.journal_size(fast)? else {
            self.params.warnings.push("the filesystem is too small for a journal: there is none".to_owned());
            return self.drop_feature(Compat::HAS_JOURNAL | Compat::FAST_COMMIT | Compat::ORPHAN_FILE);
        };
        let blocks = log + fc;
        let goal = self.journal_goal();
        let (map, runs, flags) = self.journal_map(blocks, goal)?;
        let size = u64::from(blocks) * u64::from(self.block_size());
        let sectors = self.sectors(u64::from(blocks))
            + self.sectors(map.tree_blocks * u64::from(self.params.cluster_ratio));
        let inode = Inode { size, blocks: sectors, i_block: map.i_block, flags, ..self.fresh(0o100600) };
        self.put_inode(Ino::JOURNAL, &inode, None)?;
        let mut bytes = vec![0; self.block_size() as usize];
        let new = NewJournal {
            block_size: self.block_size(),
            blocks,
            fast_commit_blocks: fc,
            external: None,
            uuid: self.params.uuid,
        };
        bytes[..1024].copy_from_slice(&new.superblock().to_bytes());
        for run in &runs {
            let skip = u64::from(run.lblk == 0);
            if skip == 1 {
                self.write_block(run.pblk, &bytes)?;
            }
            self.zero_blocks(run.pblk + skip, u64::from(run.len) - skip)?;
        }
        self.journal_clusters = self.layout.geometry().clusters_for(u64::from(blocks));
        self.note_journal(&inode)
    }

    fn drop_feature(&mut self, which: Compat) -> Result<()> {
        let mut features = self.sb().features();
        features.compat.remove(which);
        self.params.features = features;
        self.layout.sb.set_features(features)?;
        Ok(())
    }

    fn note_journal(&mut self, inode: &Inode) -> Result<()> {
        let i_block = inode.i_block;
        self.layout.sb.update(|raw| {
            raw.s_journal_inum.set(Ino::JOURNAL.0);
            raw.s_jnl_backup_type = 1;
            for (word, bytes) in raw.s_jnl_blocks.iter_mut().zip(i_block.chunks_exact(4)) {
                word.set(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
            raw.s_jnl_blocks[15].set((inode.size >> 32) as u32);
            raw.s_jnl_blocks[16].set(inode.size as u32);
        })?;
        Ok(())
    }

    /// Blocks of the log and for fast commits; `None` where the filesystem is too small for a journal.
    fn journal_size(&self, fast: bool) -> Result<Option<(u32, u32)>> {
        let p = &self.params;
        let blocks = self.layout.geometry().blocks_count();
        let log = match p.journal_blocks {
            Some(n) if !(1024..=MAX_JOURNAL_BLOCKS).contains(&n) => {
                return invalid(format!(
                    "-J size: the journal would have {n} blocks; 1024 to {MAX_JOURNAL_BLOCKS} are allowed"
                ));
            }
            Some(n) if n * 2 > blocks => {
                return Err(MkfsError::TooSmall(format!(
                    "-J size: {n} blocks are too many for a filesystem of {blocks}"
                )));
            }
            Some(n) => n as u32,
            None => match default_journal_blocks(blocks) {
                Some(n) => n,
                None => return Ok(None),
            },
        };
        let fc = match (fast, p.fast_commit_blocks) {
            (false, _) => 0,
            (true, None) => log / 64,
            (true, Some(n)) if n > MAX_JOURNAL_BLOCKS - u64::from(log) => {
                return invalid(format!(
                    "-J fast_commit_size: {n} blocks and a log of {log}; {MAX_JOURNAL_BLOCKS} are allowed in all"
                ));
            }
            (true, Some(n)) if (u64::from(log) + n) * 2 > blocks => {
                return Err(MkfsError::TooSmall(format!(
                    "-J fast_commit_size: {n} blocks and a log of {log} are too many for a filesystem of {blocks}"
                )));
            }
            (true, Some(n)) => n as u32,
        };
        Ok(Some((log, fc)))
    }

    /// The middle of the filesystem: the group with most free blocks around it, or the start of its flexible group.
    fn journal_goal(&self) -> u64 {
        let geo = self.layout.geometry();
        if let Some(block) = self.params.journal_goal {
            return block.clamp(u64::from(geo.first_data_block()), geo.blocks_count() - 1);
        }
        if self.params.packed_meta_blocks || !self.has_extents() {
            return self.default_goal();
        }
        let free = |g: u32| {
            let start = geo.group_first_block(GroupNr(g)).0;
            let len = u64::from(geo.blocks_in_group(GroupNr(g)));
            len - self.layout.space.taken_count(start, start + len)
        };
        let first = u64::from(geo.first_data_block());
        let middle = Pblk(((geo.blocks_count() - first) / 2).max(first));
        let mut group = geo.group_of_block(middle).map_or(0, |(g, _)| g.0);
        let log = geo.log_groups_per_flex();
        let start = if log > 0 && group > 1 << log {
            group &= !((1 << log) - 1);
            while group < geo.groups() && free(group) == 0 {
                group += 1;
            }
            if group == geo.groups() { 0 } else { group }
        } else {
            group.saturating_sub(1)
        };
        let end = if group + 1 < geo.groups() { group + 1 } else { group };
        let best = (start..=end).fold(start, |best, g| if free(g) > free(best) { g } else { best });
        geo.group_first_block(GroupNr(best)).0
    }

    fn journal_map(&mut self, blocks: u32, goal: u64) -> Result<(Map, Vec<Run>, InodeFlags)> {
        if !self.has_extents() {
            let (map, runs) = maps::indirect_map(self, &[(0, blocks)], goal)?;
            return Ok((map, runs, InodeFlags::empty()));
        }
        let runs = self.allocate_runs(blocks, goal)?;
        let extents = maps::extents_of(&runs, self.params.cluster_ratio);
        let before = runs.first().map_or(goal, |r| r.pblk.saturating_sub(1));
        let map = maps::extent_tree(self, Ino::JOURNAL, &extents, before)?;
        Ok((map, runs, InodeFlags::EXTENTS))
    }

    /// A file of `bytes` bytes of contents that belongs to nobody.
    fn make_hidden_file(
        &mut self,
        ino: Ino,
        content: &[u8],
        size: u64,
        flags: InodeFlags,
    ) -> Result<Vec<Run>> {
        let block = self.block_size() as usize;
        let blocks = content.len().div_ceil(block) as u32;
        let goal = self.inode_goal(ino);
        let (map, runs, map_flags) = self.new_map(ino, blocks, goal)?;
        let sectors = self.sectors(u64::from(blocks) + map.tree_blocks);
        let inode = Inode {
            size,
            blocks: sectors,
            i_block: map.i_block,
            flags: map_flags | flags,
            ..self.fresh(0o100600)
        };
        self.put_inode(ino, &inode, None)?;
        let mut bytes = vec![0; block];
        for run in &runs {
            for n in 0..run.len {
                let at = (run.lblk + n) as usize * block;
                let piece = &content[at..content.len().min(at + block)];
                bytes[..piece.len()].copy_from_slice(piece);
                bytes[piece.len()..].fill(0);
                self.write_block(run.pblk + u64::from(n), &bytes)?;
            }
        }
        Ok(runs)
    }

    /// The orphan file, all slots empty.
    pub(crate) fn make_orphan_file(&mut self) -> Result<()> {
        if !self.sb().features().compat.contains(Compat::ORPHAN_FILE) {
            return Ok(());
        }
        let size = u64::from(self.block_size());
        let total = self.layout.geometry().blocks_count();
        let default = match total {
            0..0x2_0000 => 32,
            0x2_0000..0x20_0000 => total / 4096,
            _ => 512,
        };
        let blocks = self.params.orphan_file_size.map_or(default, |bytes| bytes.div_ceil(size));
        if blocks == 0 || blocks > 512 {
            return invalid(format!("-E orphan_file_size: {} blocks; 1 to 512 are allowed", blocks));
        }
        let ino = self.new_ino()?;
        let goal = self.inode_goal(ino);
        let (map, runs, flags) = self.new_map(ino, blocks as u32, goal)?;
        let sectors = self.sectors(blocks + map.tree_blocks);
        let inode = Inode {
            size: blocks * size,
            blocks: sectors,
            i_block: map.i_block,
            flags,
            ..self.fresh(0o100600)
        };
        // It belongs to nobody, and with contents the quota files are written after it.
        self.put_uncharged(ino, &inode, None)?;
        let seed = self.has_csum().then(|| self.csum().inode_seed(ino, 0));
        let mut bytes = vec![0; size as usize];
        for run in &runs {
            for n in 0..u64::from(run.len) {
                let pblk = Pblk(run.pblk + n);
                orphan_file::init(orphan_file::Place { inode_seed: seed, pblk }, &mut bytes)
                    .map_err(broken)?;
                self.write_block(pblk.0, &bytes)?;
            }
        }
        self.layout.sb.update(|raw| raw.s_orphan_file_inum.set(ino.0))?;
        Ok(())
    }

    /// Numbers of the quota files that are asked for: 3, 4, and the first free one for projects.
    pub(crate) fn quota_inos(&mut self) -> Result<[Option<Ino>; 3]> {
        let [user, group, project] = self.params.quota;
        let on = self.sb().features().ro_compat.contains(RoCompat::QUOTA);
        let project = if on && project { Some(self.new_ino()?) } else { None };
        let inos = [(on && user).then_some(Ino(3)), (on && group).then_some(Ino(4)), project];
        self.layout.sb.update(|raw| {
            raw.s_usr_quota_inum.set(inos[0].map_or(0, |i| i.0));
            raw.s_grp_quota_inum.set(inos[1].map_or(0, |i| i.0));
            raw.s_prj_quota_inum.set(inos[2].map_or(0, |i| i.0));
        })?;
        Ok(inos)
    }

    /// Writes a quota file's contents, made from what owners use.
    pub(crate) fn make_quota_file(&mut self, ino: Ino, content: &[u8]) -> Result<()> {
        self.make_hidden_file(ino, content, content.len() as u64, InodeFlags::IMMUTABLE)?;
        Ok(())
    }
}

/// mke2fs's sizes by the filesystem's blocks (mke2fs(8), `-J size`).
pub(crate) fn default_journal_blocks(blocks: u64) -> Option<u32> {
    Some(match blocks {
        0..2048 => return None,
        2048..32_768 => 1024,
        32_768..262_144 => 4096,
        262_144..524_288 => 8192,
        524_288..4_194_304 => 16_384,
        4_194_304..8_388_608 => 32_768,
        8_388_608..16_777_216 => 65_536,
        16_777_216..33_554_432 => 131_072,
        _ => 262_144,
    })
}

fn add_entry(layout: &DirLayout, block: &mut [u8], ino: Ino, name: &[u8]) -> Result<()> {
    let entry = NewEntry::new(ino, FileType::Directory, name);
    match dir::insert(layout, block, &entry).map_err(broken)? {
        Some(_) => Ok(()),
        None => invalid("a directory block is too small for its first entries"),
    }
}

/// An error of a format function on bytes that were made here: a bug, said as such.
pub(crate) fn broken(e: impl std::fmt::Display) -> MkfsError {
    MkfsError::Invalid(format!("the image would not be valid: {e}"))
}
