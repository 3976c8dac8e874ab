//! Numbers, blocks and inodes for everything in a tree; then the data.

use extant_format::hash::{HashVersion, Hasher};
use extant_format::indirect::{MapKind, max_file_size};
use extant_format::inode::LINK_MAX;
use extant_format::superblock::SbFlags;
use extant_format::xattr::{INDEX_SYSTEM, Value};
use extant_format::{Compat, FileType, Incompat, Ino, Inode, InodeFlags, RoCompat, inline};

use super::attrs::{AttrPlacer, Placed};
use super::copy::{self, Job};
use super::dirs::{DirMaker, Entry};
use super::tree::{Content, Kind, Node, NodeId, Tree};
use crate::archive::Data;
use crate::builder::Builder;
use crate::error::{MkfsError, Result, invalid};
use crate::maps::{self, Map, Run};
use crate::progress::Progress;
use crate::special::broken;

const LOST_FOUND: Ino = Ino(11);
const LOST_FOUND_NAME: &[u8] = b"lost+found";

/// Fills the image with `tree`. Reserved inodes are there already and lost+found's number is given out.
pub(crate) fn fill(b: &mut Builder, tree: &Tree, progress: &dyn Progress) -> Result<()> {
    let order = tree.order();
    let mut filler = Filler {
        numbers: vec![Ino(0); tree.nodes.len()],
        maker: dir_maker(b)?,
        attrs: AttrPlacer::default(),
        jobs: Vec::new(),
        tree,
    };
    filler.number(b, &order)?;
    progress.stage("Placing files", order.len() as u64);
    filler.directories(b, &order, progress)?;
    for &id in &order {
        filler.file(b, id).map_err(|e| named(tree, id, e))?;
        progress.advance(1);
    }
    filler.attrs.finish(b)?;
    if b.rehearsal {
        return Ok(());
    }
    b.writer.finish()?;
    progress.stage("Copying data", tree.data_bytes());
    filler.jobs.sort_unstable_by_key(|j| j.image);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let device = b.writer.device().clone();
    copy::copy(tree, &filler.jobs, &device, threads, progress)?;
    b.writer.wrote(filler.jobs.iter().map(|j| j.room).sum());
    Ok(())
}

/// What a node cannot have, said with its path.
fn named(tree: &Tree, id: NodeId, error: MkfsError) -> MkfsError {
    match error {
        MkfsError::Invalid(what) => MkfsError::Member { path: tree.path(id), what },
        other => other,
    }
}

fn dir_maker(b: &Builder) -> Result<DirMaker> {
    let features = b.sb().features();
    let large_dir = features.incompat.contains(Incompat::LARGEDIR);
    let layout = b.dir_layout();
    if !features.compat.contains(Compat::DIR_INDEX) {
        return Ok(DirMaker { layout, index: None, large_dir });
    }
    let raw = b.sb().def_hash_version();
    let Some(version) = HashVersion::from_raw(raw) else {
        return invalid(format!("unknown directory hash {raw}"));
    };
    let unsigned = b.sb().flags().contains(SbFlags::UNSIGNED_HASH);
    let hasher = Hasher::new(version.resolve(unsigned), b.sb().hash_seed());
    Ok(DirMaker { layout, index: hasher.map(|h| (version, h)), large_dir })
}

struct Filler<'a> {
    tree: &'a Tree,
    /// By node.
    numbers: Vec<Ino>,
    maker: DirMaker,
    attrs: AttrPlacer,
    jobs: Vec<Job>,
}

impl Filler<'_> {
    fn number(&mut self, b: &mut Builder, order: &[NodeId]) -> Result<()> {
        let lost = self.own_lost_found();
        for &id in order {
            self.numbers[id as usize] = match id {
                0 => Ino::ROOT,
                id if Some(id) == lost => LOST_FOUND,
                _ => b.new_ino()?,
            };
        }
        Ok(())
    }

    /// The source's own lost+found, if it is a directory.
    fn own_lost_found(&self) -> Option<NodeId> {
        let entries = self.tree.entries(0);
        let (_, id) = entries.iter().find(|(name, _)| name.as_ref() == LOST_FOUND_NAME)?;
        matches!(self.tree.nodes[*id as usize].kind, Kind::Directory(_)).then_some(*id)
    }

    fn directories(&mut self, b: &mut Builder, order: &[NodeId], progress: &dyn Progress) -> Result<()> {
        let root = &self.tree.nodes[0];
        let lost = self.own_lost_found();
        if lost.is_none() && self.tree.entries(0).iter().any(|(name, _)| name.as_ref() == LOST_FOUND_NAME) {
            return invalid("the source's lost+found is not a directory; remove it");
        }
        let mut parents = vec![Ino::ROOT; self.tree.nodes.len()];
        for &id in order {
            if !matches!(self.tree.nodes[id as usize].kind, Kind::Directory(_)) {
                continue;
            }
            for (_, child) in self.tree.entries(id) {
                parents[*child as usize] = self.numbers[id as usize];
            }
            let added = id == 0 && lost.is_none();
            let parent = parents[id as usize];
            self.directory(b, id, parent, added).map_err(|e| named(self.tree, id, e))?;
            progress.advance(0);
        }
        if lost.is_none() {
            b.make_lost_found(root.meta.mtime)?;
        }
        Ok(())
    }

    fn directory(&mut self, b: &mut Builder, id: NodeId, parent: Ino, add_lost_found: bool) -> Result<()> {
        let (tree, ino) = (self.tree, self.numbers[id as usize]);
        let node = &tree.nodes[id as usize];
        let kind_of = |n: NodeId| tree.nodes[n as usize].kind.file_type();
        let mut entries: Vec<Entry<'_>> = Vec::with_capacity(tree.entries(id).len() + 1);
        for (name, child) in tree.entries(id) {
            entries.push(Entry { ino: self.numbers[*child as usize], kind: kind_of(*child), name });
        }
        if add_lost_found {
            let entry = Entry { ino: LOST_FOUND, kind: FileType::Directory, name: LOST_FOUND_NAME };
            let at = entries.partition_point(|e| e.name < LOST_FOUND_NAME);
            entries.insert(at, entry);
        }
        let room = b.ibody_len();
        let mut placed = self.attrs.place(b, &node.xattrs, room)?;
        let mut inode = self.start(b, node, 0o40000);
        inode.links_count = self.dir_links(b, &entries)?;
        if ino != Ino::ROOT && self.inline_dir(b, &mut inode, &entries, parent, &mut placed)? {
            return self.put(b, ino, inode, placed);
        }
        let seed = b.csum().inode_seed(ino, 0);
        let blocks = self.maker.build(ino, parent, &entries, seed)?;
        let size = b.block_size() as usize;
        let count = (blocks.bytes.len() / size) as u32;
        let goal = b.data_goal;
        let (map, runs, flags) = b.new_map(ino, count, goal)?;
        for run in &runs {
            let start = run.lblk as usize * size;
            b.write_block(run.pblk, &blocks.bytes[start..start + run.len as usize * size])?;
        }
        self.set_map(b, &mut inode, &map, u64::from(count), &runs, flags);
        inode.size = blocks.bytes.len() as u64;
        if blocks.indexed {
            inode.flags |= InodeFlags::INDEX;
        }
        self.put(b, ino, inode, placed)
    }

    /// 2 and one for each directory in it; 1 where `dir_nlink` allows not to count.
    fn dir_links(&self, b: &Builder, entries: &[Entry<'_>]) -> Result<u16> {
        let links = 2 + entries.iter().filter(|e| e.kind == FileType::Directory).count();
        match u16::try_from(links) {
            Ok(links) if links < LINK_MAX => Ok(links),
            _ if b.sb().features().ro_compat.contains(RoCompat::DIR_NLINK) => Ok(1),
            _ => invalid(format!("{links} links of subdirectories; more than 64998 need -O dir_nlink")),
        }
    }

    /// Puts a small directory into its inode.
    fn inline_dir(
        &self,
        b: &Builder,
        inode: &mut Inode,
        entries: &[Entry<'_>],
        parent: Ino,
        placed: &mut Placed,
    ) -> Result<bool> {
        if !b.sb().features().incompat.contains(Incompat::INLINE_DATA) || entries.len() > 64 {
            return Ok(false);
        }
        let capacity = inline::capacity(&placed.ibody, b.ibody_len());
        if capacity < inline::IBLOCK_LEN {
            return Ok(false);
        }
        let mut i_block = inode.i_block;
        let mut second = Vec::new();
        inline::init_dir(&self.maker.layout, &mut i_block, parent);
        for e in entries {
            let entry = extant_format::dir::NewEntry::new(e.ino, e.kind, e.name);
            let added = inline::insert(&self.maker.layout, &mut i_block, &mut second, capacity, &entry);
            if !added.map_err(broken)? {
                return Ok(false);
            }
        }
        inode.i_block = i_block;
        inode.size = (inline::IBLOCK_LEN + second.len()) as u64;
        inode.flags |= InodeFlags::INLINE_DATA;
        let value = Value::Inline(second);
        placed.ibody.set(INDEX_SYSTEM, inline::DATA_NAME, value).map_err(broken)?;
        Ok(true)
    }

    /// Everything that is no directory.
    fn file(&mut self, b: &mut Builder, id: NodeId) -> Result<()> {
        let (tree, ino) = (self.tree, self.numbers[id as usize]);
        let node = &tree.nodes[id as usize];
        if matches!(node.kind, Kind::Directory(_)) {
            return Ok(());
        }
        let room = b.ibody_len();
        let mut placed = self.attrs.place(b, &node.xattrs, room)?;
        let mut inode = self.start(b, node, node.kind.file_type().mode_bits());
        inode.links_count = match u16::try_from(node.names) {
            Ok(n) if n <= LINK_MAX => n,
            _ => return invalid(format!("a file has {} names; ext4 allows {LINK_MAX}", node.names)),
        };
        match &node.kind {
            Kind::Directory(_) | Kind::Other(_) => {}
            Kind::Device(_, number) if number.fits() => inode.i_block = number.encode(),
            Kind::Device(_, n) => {
                return invalid(format!("device {}:{} does not fit into an inode", n.major, n.minor));
            }
            Kind::Symlink(target) => self.symlink(b, ino, &mut inode, target)?,
            Kind::Regular(content) => self.regular(b, id, &mut inode, content, &mut placed)?,
        }
        self.put(b, ino, inode, placed)
    }

    fn symlink(&self, b: &mut Builder, ino: Ino, inode: &mut Inode, target: &[u8]) -> Result<()> {
        inode.size = target.len() as u64;
        if target.len() < inode.i_block.len() {
            inode.i_block[..target.len()].copy_from_slice(target);
            return Ok(());
        }
        let size = b.block_size() as usize;
        if target.len() >= size {
            return invalid(format!(
                "a symbolic link of {} bytes does not fit into a block of {size}",
                target.len()
            ));
        }
        let goal = b.data_goal;
        let (map, runs, flags) = b.new_map(ino, 1, goal)?;
        let mut block = target.to_vec();
        block.resize(size, 0);
        b.write_block(runs[0].pblk, &block)?;
        self.set_map(b, inode, &map, 1, &runs, flags);
        Ok(())
    }

    fn regular(
        &mut self,
        b: &mut Builder,
        id: NodeId,
        inode: &mut Inode,
        content: &Content,
        placed: &mut Placed,
    ) -> Result<()> {
        inode.size = content.size;
        self.check_size(b, content.size)?;
        if b.sb().features().incompat.contains(Incompat::INLINE_DATA)
            && content.size <= inline::capacity(&placed.ibody, b.ibody_len()) as u64
            && b.ibody_len() > 0
        {
            let bytes = copy::whole(self.tree, content)?;
            if inline::write(&bytes, &mut inode.i_block, &mut placed.ibody, b.ibody_len()) {
                inode.flags |= InodeFlags::INLINE_DATA;
                return Ok(());
            }
        }
        let ranges = block_ranges(content, b.block_size(), b.params.cluster_ratio);
        let ino = self.numbers[id as usize];
        let (map, runs, flags) = b.map_ranges(ino, &ranges)?;
        let blocks: u64 = runs.iter().map(|r| u64::from(r.len)).sum();
        self.set_map(b, inode, &map, blocks, &runs, flags);
        let size = u64::from(b.block_size());
        for run in &runs {
            let offset = u64::from(run.lblk) * size;
            let room = u64::from(run.len) * size;
            let len = content.size.saturating_sub(offset).min(room);
            self.jobs.push(Job { node: id, offset, len, image: run.pblk * size, room });
        }
        Ok(())
    }

    fn check_size(&self, b: &mut Builder, size: u64) -> Result<()> {
        let features = b.sb().features();
        let kind =
            if features.incompat.contains(Incompat::EXTENTS) { MapKind::Extents } else { MapKind::Indirect };
        let max = max_file_size(kind, b.block_size(), features.ro_compat.contains(RoCompat::HUGE_FILE));
        if size > max {
            return invalid(format!("a file of {size} bytes is larger than this filesystem allows, {max}"));
        }
        if size > i32::MAX as u64 && !features.ro_compat.contains(RoCompat::LARGE_FILE) {
            let mut features = features;
            features.ro_compat.insert(RoCompat::LARGE_FILE);
            b.layout.sb.set_features(features)?;
        }
        Ok(())
    }

    /// The fields that every kind of file has.
    fn start(&self, b: &Builder, node: &Node, type_bits: u16) -> Inode {
        let time = node.meta.mtime;
        Inode {
            mode: type_bits | node.meta.perms,
            uid: node.meta.uid,
            gid: node.meta.gid,
            atime: time,
            ctime: time,
            mtime: time,
            ..b.fresh(0)
        }
    }

    fn set_map(
        &self,
        b: &mut Builder,
        inode: &mut Inode,
        map: &Map,
        blocks: u64,
        runs: &[Run],
        flags: InodeFlags,
    ) {
        inode.i_block = map.i_block;
        inode.flags |= flags;
        inode.blocks = b.sectors(blocks) + b.sectors_each(map.tree_blocks);
        if let Some(last) = runs.last() {
            b.data_goal = last.pblk + u64::from(last.len);
        }
    }

    fn put(&self, b: &mut Builder, ino: Ino, mut inode: Inode, placed: Placed) -> Result<()> {
        if placed.block != 0 {
            inode.file_acl = extant_format::Pblk(placed.block);
            inode.blocks += b.sectors_each(1);
        }
        inode.blocks += placed.held_sectors;
        b.charge_inodes(&inode, placed.held_inodes);
        let mut area = vec![0; b.ibody_len()];
        placed.ibody.write_ibody(&mut area).map_err(broken)?;
        b.put_inode(ino, &inode, Some(&area))
    }
}

/// The blocks that hold data, in whole clusters, merged where they touch.
fn block_ranges(content: &Content, block_size: u32, ratio: u32) -> Vec<(u32, u32)> {
    let size = u64::from(block_size);
    let cluster = size * u64::from(ratio);
    let last = content.size.div_ceil(size);
    let whole = [Data { offset: 0, len: content.size, before: 0 }];
    let data: &[Data] = content.data.as_deref().unwrap_or(&whole);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &Data { offset, len, .. } in data.iter().filter(|d| d.len > 0) {
        let start = offset / cluster * u64::from(ratio);
        let end = ((offset + len).div_ceil(cluster) * u64::from(ratio)).min(last);
        match ranges.last_mut() {
            Some((s, l)) if u64::from(*s) + u64::from(*l) >= start => {
                *l = (end - u64::from(*s)) as u32;
            }
            _ => ranges.push((start as u32, (end - start) as u32)),
        }
    }
    ranges
}

impl Builder {
    /// Bytes behind an inode's fields.
    pub(crate) fn ibody_len(&self) -> usize {
        if self.params.inode_size > 128 {
            usize::from(self.params.inode_size - 128 - self.extra_isize())
        } else {
            0
        }
    }

    /// Blocks for logical ranges of a file, and their map.
    pub(crate) fn map_ranges(
        &mut self,
        ino: Ino,
        ranges: &[(u32, u32)],
    ) -> Result<(Map, Vec<Run>, InodeFlags)> {
        let goal = self.data_goal;
        if !self.sb().features().incompat.contains(Incompat::EXTENTS) {
            let (map, runs) = maps::indirect_map(self, ranges, goal)?;
            return Ok((map, runs, InodeFlags::empty()));
        }
        let (mut runs, mut next): (Vec<Run>, _) = (Vec::new(), goal);
        for &(start, len) in ranges {
            let mut done = 0;
            while done < len {
                let (pblk, got) = self.allocate_some(next, u64::from(len - done))?;
                runs.push(Run { lblk: start + done, len: got as u32, pblk });
                (done, next) = (done + got as u32, pblk + got);
            }
        }
        let extents = maps::extents_of(&runs, self.params.cluster_ratio);
        let map = maps::extent_tree(self, ino, &extents, next)?;
        Ok((map, runs, InodeFlags::EXTENTS))
    }
}
