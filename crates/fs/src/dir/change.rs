//! Adding, removing and redirecting names.
//!
//! Adding goes in two steps: [`Filesystem::plan_name`] finds, under the directory's exclusive lock and without a handle,
//! where the name will go and how many new blocks that takes; [`Filesystem::add_name`] does it inside a handle, with
//! everything that could fail done before the first change.

use extant_alloc::Reservation;
use extant_format::dir::{self as records, NewEntry};
use extant_format::hash::Hasher;
use extant_format::htree::{self, DxEntry, DxKind};
use extant_format::inline;
use extant_format::inode::{FileType, InodeFlags};
use extant_format::{Ino, Lblk};
use extant_journal::{Buf, Handle};

use super::tree::Path;
use super::{At, Found, dir_error, tree_error};
use crate::error::{CorruptKind, Error, Place as Spot, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// Where a new name will go.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Into this block, after the record that starts there.
    Block { buf: Buf, lblk: Lblk, offset: u32 },
    /// Into the inode of an inline directory.
    Inline,
    /// The inline directory becomes one of blocks first.
    FromInline,
    /// A new block at the end.
    Append,
    /// The only block, this one, is full: the directory becomes indexed.
    Index { _only: Buf },
    /// The leaf is full. With it and the way to it, which stay in the cache.
    Split { _way: Vec<Buf> },
}

/// What became of a name that is to be added.
#[derive(Debug)]
pub(crate) enum Place {
    /// It is there already.
    Taken,
    /// It will go there.
    Free(Plan),
}

impl Plan {
    /// New directory blocks, at most.
    pub(crate) const fn blocks(&self) -> u32 {
        match self {
            Self::Block { .. } | Self::Inline => 0,
            Self::Append => 1,
            // A block for the names, and if the new name does not fit next to them, a tree over it.
            Self::FromInline => 4,
            // The first leaf, and its second half.
            Self::Index { .. } => 3,
            // A leaf, a node on each of two levels, a level more.
            Self::Split { .. } => 4,
        }
    }

    /// [`Self::credits`] of the plan that takes most.
    pub(crate) fn split_credits(fs: &Filesystem, depth: u16) -> u32 {
        Self::Split { _way: Vec::new() }.credits(fs, depth)
    }

    /// Blocks of the journal for the directory alone, whose map has `depth`, its inode included.
    pub(crate) fn credits(&self, fs: &Filesystem, depth: u16) -> u32 {
        let growth = fs.block_credits(depth);
        match self {
            Self::Block { .. } | Self::Inline => 2,
            plan => 2 + 4 + plan.blocks() * growth,
        }
    }
}

impl Filesystem {
    /// [`Plan::credits`] for `dir`.
    pub(crate) fn plan_credits(&self, dir: &Inode, plan: &Plan) -> Result<u32> {
        Ok(plan.credits(self, if self.is_inline(dir) { 0 } else { self.depth(dir)? }))
    }

    /// Finds `name` in `dir`, or else where it will go. The caller holds the directory's lock exclusively and keeps it
    /// until the name was added.
    pub(crate) fn find_or_plan(&self, dir: &Inode, name: &[u8]) -> Result<Place> {
        if name == b"." || name == b".." {
            return Ok(Place::Taken);
        }
        if self.is_inline(dir) {
            if self.find(dir, name)?.is_some() {
                return Ok(Place::Taken);
            }
            if self.inline_has_room(dir, name)? {
                return Ok(Place::Free(Plan::Inline));
            }
            if !self.block_would_have_room(dir, name)? {
                self.check_growth(self.geo.block_size().into(), 3)?;
            }
            return Ok(Place::Free(Plan::FromInline));
        }
        if self.is_indexed(dir) {
            match self.find_or_plan_in_tree(dir, name) {
                Err(e) if e.is_bad_index() => self.drop_index(dir, e)?,
                done => return done,
            }
        }
        let blocks = self.dir_blocks(dir);
        let mut room = None;
        for lblk in (0..blocks).map(Lblk) {
            let (buf, layout) = self.dir_any(dir, lblk)?;
            // An index block of a tree that is not used looks like one with room, but is not to be written to.
            let usable = layout == self.layout;
            let scan = buf.with(|bytes| records::scan(&layout, bytes, name));
            let scan = scan.map_err(|e| dir_error(dir, lblk, &e))?;
            if scan.found.is_some() {
                return Ok(Place::Taken);
            }
            if let (true, None, Some(offset)) = (usable, &room, scan.room) {
                room = Some(Plan::Block { buf, lblk, offset });
            }
        }
        if let Some(plan) = room {
            return Ok(Place::Free(plan));
        }
        let index = blocks == 1 && self.has_dir_index() && !dir.flags().contains(InodeFlags::INDEX);
        if index {
            self.check_growth(dir.size(), 2)?;
            return Ok(Place::Free(Plan::Index { _only: self.dir_leaf(dir, Lblk(0))? }));
        }
        self.check_growth(dir.size(), 1)?;
        Ok(Place::Free(Plan::Append))
    }

    fn find_or_plan_in_tree(&self, dir: &Inode, name: &[u8]) -> Result<Place> {
        let (mut path, hash) = self.probe_name(dir, name)?;
        let can_grow = self.tree_can_grow(&path);
        let mut room = None;
        loop {
            let lblk = path.leaf;
            let buf = self.dir_leaf(dir, lblk)?;
            let scan = buf.with(|bytes| records::scan(&self.layout, bytes, name));
            let scan = scan.map_err(|e| dir_error(dir, lblk, &e))?;
            if scan.found.is_some() {
                return Ok(Place::Taken);
            }
            if let (None, Some(offset)) = (&room, scan.room) {
                room = Some(Plan::Block { buf, lblk, offset });
            }
            if !self.goes_on(dir, &path, hash)? || !self.advance(dir, &mut path)? {
                break;
            }
        }
        if let Some(plan) = room {
            return Ok(Place::Free(plan));
        }
        self.check_growth(dir.size(), 4)?;
        if !can_grow {
            return Err(Error::NoSpace);
        }
        Ok(Place::Free(Plan::Split { _way: self.hold_way(dir, name)? }))
    }

    /// Reads the way to the leaf where `name` belongs: index blocks, the leaf, and the nodes of the map that lead to them.
    fn hold_way(&self, dir: &Inode, name: &[u8]) -> Result<Vec<Buf>> {
        let (path, _) = self.probe_name(dir, name)?;
        let mut way = vec![self.dir_leaf(dir, path.leaf)?];
        way.extend(path.frames.iter().map(|frame| frame.buf.clone()));
        let i_block = dir.map.read();
        for lblk in path.frames.iter().map(|frame| frame.lblk).chain([path.leaf]) {
            way.extend(self.map.hold(&dir.map_ref(&i_block), lblk..Lblk(lblk.0.saturating_add(1)))?);
        }
        Ok(way)
    }

    /// Finds where `name`, which is not in `dir`, will go; as [`Self::find_or_plan`].
    pub(crate) fn plan_name(&self, dir: &Inode, name: &[u8]) -> Result<Plan> {
        match self.find_or_plan(dir, name)? {
            Place::Free(plan) => Ok(plan),
            Place::Taken => Err(Error::Exists),
        }
    }

    /// Whether an index entry can be added somewhere above a leaf.
    fn tree_can_grow(&self, path: &Path) -> bool {
        let most = if self.has_large_dir() { 3 } else { 2 };
        path.frames.len() < most || path.frames.iter().any(|f| f.count < f.limit)
    }

    /// Refuses growth of a directory of `now` bytes past `max_dir_size_kb`, past what i_size can hold, and past the last logical
    /// block.
    fn check_growth(&self, now: u64, blocks: u32) -> Result<()> {
        let size = now + u64::from(blocks) * u64::from(self.geo.block_size());
        let limit_kb = self.options().max_dir_size_kb;
        if limit_kb != 0 && now >= u64::from(limit_kb) * 1024 {
            return Err(Error::NoSpace);
        }
        if size > u64::from(u32::MAX) && !self.has_large_dir() {
            return Err(Error::NoSpace);
        }
        let last = size >> self.geo.log_block_size();
        if last > u64::from(u32::MAX) { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Adds `name` for the inode `ino` as planned. Changes the directory's size and flags in core; the caller writes its
    /// inode. `blocks` holds what [`Plan::blocks`] said.
    pub(crate) fn add_name(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        plan: Plan,
        name: &[u8],
        (ino, kind): (Ino, FileType),
        blocks: &mut Reservation,
    ) -> Result<()> {
        let entry = NewEntry::new(ino, kind, name);
        match plan {
            Plan::Block { buf, lblk, offset } => {
                let done = handle.modify(&buf, |bytes| {
                    let done = records::insert_at(&self.layout, bytes, offset, &entry);
                    records::set_tail(&self.layout, bytes, dir.csum_seed);
                    done
                })?;
                done.map_err(|e| dir_error(dir, lblk, &e))?;
            }
            Plan::Inline => {
                if !self.insert_inline(handle, dir, &entry)? {
                    return Err(Error::NoSpace);
                }
            }
            Plan::FromInline => {
                self.convert_inline_dir(handle, dir, blocks)?;
                let plan = self.plan_name(dir, name)?;
                return self.add_name(handle, dir, plan, name, (ino, kind), blocks);
            }
            Plan::Append => {
                let (lblk, buf) = self.append_block(handle, dir, blocks)?;
                self.fill(handle, dir, &buf, lblk, |bytes| records::init_empty(&self.layout, bytes))?;
                self.insert_into(handle, dir, &buf, lblk, &entry)?;
            }
            Plan::Index { .. } => {
                self.make_indexed(handle, dir, blocks)?;
                self.insert_split(handle, dir, &entry, blocks)?;
            }
            Plan::Split { .. } => self.insert_split(handle, dir, &entry, blocks)?,
        }
        Ok(())
    }

    fn insert_into(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        buf: &Buf,
        lblk: Lblk,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let placed = handle.modify(buf, |bytes| {
            let placed = records::insert(&self.layout, bytes, entry);
            records::set_tail(&self.layout, bytes, dir.csum_seed);
            placed
        })?;
        match placed {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Error::NoSpace),
            Err(e) => Err(dir_error(dir, lblk, &e)),
        }
    }

    /// Changes a block of records and its checksum.
    pub(super) fn fill(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        buf: &Buf,
        lblk: Lblk,
        change: impl FnOnce(&mut [u8]) -> Result<(), records::DirError>,
    ) -> Result<()> {
        let done = handle.modify(buf, |bytes| {
            let done = change(bytes);
            records::set_tail(&self.layout, bytes, dir.csum_seed);
            done
        })?;
        done.map_err(|e| dir_error(dir, lblk, &e))
    }

    /// Gives the directory a new last block, zeroed.
    pub(super) fn append_block(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        blocks: &mut Reservation,
    ) -> Result<(Lblk, Buf)> {
        let lblk = Lblk(self.dir_blocks(dir));
        let buf = self.add_meta_block(handle, dir, lblk, blocks)?;
        let mut state = dir.state();
        state.size = (u64::from(lblk.0) + 1) << self.geo.log_block_size();
        state.raw.size = state.size;
        drop(state);
        Ok((lblk, buf))
    }

    /// Stores both contents of a split.
    fn store_pair(
        &self,
        handle: &mut Handle,
        (old, old_bytes): (&Buf, &[u8]),
        (new, new_bytes): (&Buf, &[u8]),
    ) -> Result<()> {
        handle.modify(old, |bytes| bytes.copy_from_slice(old_bytes))?;
        handle.modify(new, |bytes| bytes.copy_from_slice(new_bytes))?;
        Ok(())
    }

    fn make_indexed(&self, handle: &mut Handle, dir: &Inode, blocks: &mut Reservation) -> Result<()> {
        let root = self.dir_leaf(dir, Lblk(0))?;
        let mut root_bytes = root.bytes().to_vec();
        let mut leaf_bytes = vec![0; root_bytes.len()];
        let fail = |e: &htree::HtreeError| tree_error(dir, Lblk(0), e);
        htree::make_indexed(&self.layout, &mut root_bytes, &mut leaf_bytes, Lblk(1), self.hash_version)
            .map_err(|e| fail(&e))?;
        htree::set_tail(&self.layout, &mut root_bytes, DxKind::Root, dir.csum_seed).map_err(|e| fail(&e))?;
        records::set_tail(&self.layout, &mut leaf_bytes, dir.csum_seed);
        let (lblk, leaf) = self.append_block(handle, dir, blocks)?;
        debug_assert_eq!(lblk, Lblk(1), "only a directory of one block is converted");
        self.store_pair(handle, (&root, &root_bytes), (&leaf, &leaf_bytes))?;
        dir.state().raw.flags.insert(InodeFlags::INDEX);
        Ok(())
    }

    /// Splits the leaf that `entry` belongs to, and nodes above it where they are full, and adds it.
    fn insert_split(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        entry: &NewEntry<'_>,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let hasher = self.hasher_of(dir)?;
        let hash = hasher.hash(entry.name).major;
        let path = self.make_index_room(handle, dir, hash, blocks)?;
        let frame = path.frames.last().ok_or(Error::NotFound)?;
        let (lblk, buf) = self.split_leaf(handle, dir, &path, frame, &hasher, hash, blocks)?;
        self.insert_into(handle, dir, &buf, lblk, entry)
    }

    /// Splits the leaf of `path`; returns the half that names of `hash` belong to.
    #[allow(clippy::too_many_arguments, reason = "one step of one operation")]
    fn split_leaf(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        path: &Path,
        frame: &super::tree::Frame,
        hasher: &Hasher,
        hash: u32,
        blocks: &mut Reservation,
    ) -> Result<(Lblk, Buf)> {
        let old = self.dir_leaf(dir, path.leaf)?;
        let mut old_bytes = old.bytes().to_vec();
        let mut new_bytes = vec![0; old_bytes.len()];
        let from = htree::split_leaf(&self.layout, hasher, &mut old_bytes, &mut new_bytes)
            .map_err(|e| tree_error(dir, path.leaf, &e))?;
        records::set_tail(&self.layout, &mut old_bytes, dir.csum_seed);
        records::set_tail(&self.layout, &mut new_bytes, dir.csum_seed);
        let (new_lblk, new) = self.append_block(handle, dir, blocks)?;
        self.store_pair(handle, (&old, &old_bytes), (&new, &new_bytes))?;
        self.insert_index(handle, dir, frame, DxEntry { hash: from, lblk: new_lblk })?;
        Ok(if hash >= from { (new_lblk, new) } else { (path.leaf, old) })
    }

    fn insert_index(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        frame: &super::tree::Frame,
        entry: DxEntry,
    ) -> Result<()> {
        let done = handle.modify(&frame.buf, |bytes| {
            htree::insert_entry(&self.layout, bytes, frame.kind, frame.index, entry)?;
            htree::set_tail(&self.layout, bytes, frame.kind, dir.csum_seed)
        })?;
        done.map_err(|e| tree_error(dir, frame.lblk, &e))
    }

    /// Makes sure that the lowest index block on the way to `hash` has room for an entry, and returns the way.
    fn make_index_room(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        hash: u32,
        blocks: &mut Reservation,
    ) -> Result<Path> {
        // Each turn makes room one level further down.
        for _ in 0..4 {
            let path = self.probe(dir, hash)?;
            let bottom = path.frames.len().saturating_sub(1);
            let Some(room) = path.frames.iter().rposition(|f| f.count < f.limit) else {
                self.deepen(handle, dir, &path, blocks)?;
                continue;
            };
            if room == bottom {
                return Ok(path);
            }
            self.split_index(handle, dir, &path, room, blocks)?;
        }
        Err(Error::corrupt(Spot::Inode(dir.ino), CorruptKind::Htree("splitting makes no room")))
    }

    fn deepen(&self, handle: &mut Handle, dir: &Inode, path: &Path, blocks: &mut Reservation) -> Result<()> {
        let root = &path.frames.first().ok_or(Error::NotFound)?.buf;
        let mut root_bytes = root.bytes().to_vec();
        let mut node_bytes = vec![0; root_bytes.len()];
        let lblk = Lblk(self.dir_blocks(dir));
        let fail = |e: htree::HtreeError| tree_error(dir, Lblk(0), &e);
        htree::deepen(&self.layout, &mut root_bytes, &mut node_bytes, lblk, self.has_large_dir())
            .map_err(fail)?;
        htree::set_tail(&self.layout, &mut root_bytes, DxKind::Root, dir.csum_seed).map_err(fail)?;
        htree::set_tail(&self.layout, &mut node_bytes, DxKind::Node, dir.csum_seed).map_err(fail)?;
        let (_, node) = self.append_block(handle, dir, blocks)?;
        self.store_pair(handle, (root, &root_bytes), (&node, &node_bytes))
    }

    /// Splits the full node below frame `room`, which has room for the entry of the new half.
    fn split_index(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        path: &Path,
        room: usize,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let (above, full) = (&path.frames[room], &path.frames[room + 1]);
        let mut old_bytes = full.buf.bytes().to_vec();
        let mut new_bytes = vec![0; old_bytes.len()];
        let fail = |e: htree::HtreeError| tree_error(dir, full.lblk, &e);
        let hash = htree::split_node(&self.layout, &mut old_bytes, &mut new_bytes).map_err(fail)?;
        htree::set_tail(&self.layout, &mut old_bytes, DxKind::Node, dir.csum_seed).map_err(fail)?;
        htree::set_tail(&self.layout, &mut new_bytes, DxKind::Node, dir.csum_seed).map_err(fail)?;
        let (lblk, new) = self.append_block(handle, dir, blocks)?;
        self.store_pair(handle, (&full.buf, &old_bytes), (&new, &new_bytes))?;
        self.insert_index(handle, dir, above, DxEntry { hash, lblk })
    }

    /// Removes a name that was found under the lock that is still held.
    pub(crate) fn remove_name(&self, handle: &mut Handle, dir: &Inode, found: &Found) -> Result<()> {
        match &found.at {
            At::Block { buf, lblk, offset } => {
                self.fill(handle, dir, buf, *lblk, |bytes| records::remove(&self.layout, bytes, *offset))
            }
            At::Inline { part, offset } => self.remove_inline(handle, dir, *part, *offset),
            At::InlineParent => Err(Error::Invalid("`.` or `..`")),
        }
    }

    /// Makes a name lead to another inode.
    pub(crate) fn redirect_name(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        found: &Found,
        (ino, kind): (Ino, FileType),
    ) -> Result<()> {
        match &found.at {
            At::Block { buf, lblk, offset } => {
                // `..` of an indexed directory is in the index root, whose checksum is another.
                let root = lblk.0 == 0 && self.is_indexed(dir);
                let done = handle.modify(buf, |bytes| {
                    if root {
                        let layout = self.layout.without_tail();
                        records::set_ino(&layout, bytes, *offset, ino, kind)
                            .map_err(htree::HtreeError::from)?;
                        return htree::set_tail(&self.layout, bytes, DxKind::Root, dir.csum_seed);
                    }
                    records::set_ino(&self.layout, bytes, *offset, ino, kind)
                        .map_err(htree::HtreeError::from)?;
                    records::set_tail(&self.layout, bytes, dir.csum_seed);
                    Ok(())
                })?;
                done.map_err(|e| tree_error(dir, *lblk, &e))
            }
            At::Inline { part, offset } => self.change_inline(handle, dir, |layout, data| {
                inline::set_ino(layout, &mut data.i_block, &mut data.second, (*part, *offset), (ino, kind))
            }),
            At::InlineParent => self.change_inline(handle, dir, |_, data| {
                inline::set_parent(&mut data.i_block, ino);
                Ok(())
            }),
        }
    }

    /// Writes the first block of a new directory.
    pub(crate) fn init_dir(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        parent: Ino,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let (lblk, buf) = self.append_block(handle, dir, blocks)?;
        self.fill(handle, dir, &buf, lblk, |bytes| records::init_first(&self.layout, bytes, dir.ino, parent))
    }
}
