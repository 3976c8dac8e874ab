//! Changing extent trees.
//!
//! Every change of extents is one step: some neighbouring extents of a leaf are replaced by others. If the leaf has
//! no room for them, it is split first (and its parents, and the root grows, as needed), and the way is looked for
//! again. All that can fail is done before the first change of such a step: nodes are read, tree blocks are claimed.
//!
//! Invariants kept: the key of an index is the first key of its child; no node but the root is empty; extents that
//! can be one are one within a leaf.

use extant_alloc::{Claim, ClaimRequest, Reservation};
use extant_format::extent::{Extent, Index, MAX_LBLK, MAX_LEN, Node, NodeMut, ROOT_ENTRIES};
use extant_format::{Corrupt, Lblk, Pblk};
use extant_journal::{Buf, Handle};

use crate::error::{MapError, Result};
use crate::tree::{Path, Step, Tree};

/// At most this many extents take the place of others in one step: two neighbours and three pieces.
const MOST_PIECES: usize = 5;

/// Up to five extents, without a heap allocation.
pub(crate) struct Pieces {
    list: [Option<Extent>; MOST_PIECES],
    len: usize,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        Self { list: [None; MOST_PIECES], len: 0 }
    }

    /// Adds an extent, joined with the last one if the two can be one.
    pub(crate) fn push(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        if let Some(last) = self.len.checked_sub(1).and_then(|i| self.list[i].as_mut())
            && last.merges_with(&extent)
        {
            last.len += extent.len;
            return;
        }
        self.list[self.len] = Some(extent);
        self.len += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.list.iter().flatten().copied()
    }
}

/// The part `[from, to)` of an extent.
pub(crate) fn part(e: &Extent, from: u32, to: u32) -> Extent {
    Extent {
        lblk: Lblk(from),
        len: to - from,
        pblk: Pblk(e.pblk.0 + u64::from(from - e.lblk.0)),
        unwritten: e.unwritten,
    }
}

impl Tree<'_> {
    /// Maps a hole. `extent` may be longer than one entry can be. Returns the tree blocks added.
    pub(crate) fn insert(
        &mut self,
        handle: &mut Handle,
        extent: Extent,
        res: &mut Reservation,
    ) -> Result<u32> {
        let most = if extent.unwritten { MAX_LEN - 1 } else { MAX_LEN };
        let mut added = 0;
        let mut at = extent.lblk.0;
        while at < extent.end() {
            let to = extent.end().min(at.saturating_add(most));
            added += self.insert_one(handle, part(&extent, at, to), res)?;
            at = to;
        }
        Ok(added)
    }

    fn insert_one(&mut self, handle: &mut Handle, new: Extent, res: &mut Reservation) -> Result<u32> {
        let mut added = 0;
        loop {
            let path = self.descend(new.lblk)?;
            let (here, next) = self.neighbours(&path)?;
            let limit = next.map_or(path.end, |n| n.lblk.0);
            if here.is_some_and(|h| h.end() > new.lblk.0) || limit < new.end() {
                return Err(MapError::Overlap { ino: self.ino, lblk: new.lblk });
            }
            let mut pieces = Pieces::new();
            let left = here.filter(|h| h.merges_with(&new));
            let right = next.filter(|n| new.merges_with(n));
            pieces.push_all([left, Some(new), right]);
            let first = match (left, path.at()) {
                (Some(_), Some(at)) => at,
                (_, at) => at.map_or(0, |at| at + 1),
            };
            let old = u16::from(left.is_some()) + u16::from(right.is_some());
            if self.replace(handle, &path, first, old, &pieces)? {
                return Ok(added);
            }
            added += self.split(handle, path, first, res)?;
        }
    }

    /// Changes the state of the part `[from, to)` of the extent that holds `from`; returns tree blocks added and one
    /// past the last block done. `None` if `from` is a hole.
    pub(crate) fn convert_one(
        &mut self,
        handle: &mut Handle,
        (from, to): (u32, u32),
        unwritten: bool,
        res: &mut Reservation,
    ) -> Result<(u32, Option<u32>)> {
        let mut added = 0;
        loop {
            let path = self.descend(Lblk(from))?;
            let (Some(at), Some(here)) =
                (path.at(), self.neighbours(&path)?.0.filter(|h| h.contains(Lblk(from))))
            else {
                return Ok((added, None));
            };
            let to = to.min(here.end());
            if here.unwritten == unwritten {
                return Ok((added, Some(to)));
            }
            let (before, after) = self.with_leaf(&path, |leaf| {
                (at.checked_sub(1).and_then(|b| leaf.extent(b)), leaf.extent(at + 1))
            })?;
            let mut changed = part(&here, from, to);
            changed.unwritten = unwritten;
            // An unwritten extent is one block shorter at most than a written one.
            let changed = Extent { len: changed.len.min(changed.max_len()), ..changed };
            let to = changed.end();
            let head = (from > here.lblk.0).then(|| part(&here, here.lblk.0, from));
            let tail = (to < here.end()).then(|| part(&here, to, here.end()));
            let left = before.filter(|b| head.is_none() && b.merges_with(&changed));
            let right = after.filter(|a| tail.is_none() && changed.merges_with(a));
            let mut pieces = Pieces::new();
            pieces.push_all([left, head, Some(changed), tail, right]);
            let first = at - u16::from(left.is_some());
            let old = 1 + u16::from(left.is_some()) + u16::from(right.is_some());
            if self.replace(handle, &path, first, old, &pieces)? {
                return Ok((added, Some(to)));
            }
            added += self.split(handle, path, first, res)?;
        }
    }

    /// Makes `lblk` the start of an extent, if it is inside one. Returns the tree blocks added.
    pub(crate) fn split_at(&mut self, handle: &mut Handle, lblk: Lblk, res: &mut Reservation) -> Result<u32> {
        let mut added = 0;
        loop {
            let path = self.descend(lblk)?;
            let (Some(at), Some(here)) = (path.at(), self.neighbours(&path)?.0) else { return Ok(added) };
            if !here.contains(lblk) || here.lblk == lblk {
                return Ok(added);
            }
            // Not through `push`, which would join the two again.
            let mut pieces = Pieces::new();
            pieces.list[0] = Some(part(&here, here.lblk.0, lblk.0));
            pieces.list[1] = Some(part(&here, lblk.0, here.end()));
            pieces.len = 2;
            if self.replace(handle, &path, at, 1, &pieces)? {
                return Ok(added);
            }
            added += self.split(handle, path, at, res)?;
        }
    }

    /// Puts `pieces` in the place of `old` extents of the leaf from `first` on. Returns false, with nothing changed,
    /// if the leaf has no room.
    pub(crate) fn replace(
        &mut self,
        handle: &mut Handle,
        path: &Path,
        first: u16,
        old: u16,
        pieces: &Pieces,
    ) -> Result<bool> {
        let room = self
            .with_leaf(path, |leaf| usize::from(leaf.len() - old) + pieces.len <= usize::from(leaf.max()))?;
        if !room {
            return Ok(false);
        }
        let depth = path.depth();
        let key = self.change(handle, path, depth, |leaf| {
            let before = leaf.as_node().key(0);
            let keep = (pieces.len as u16).min(old);
            for (i, piece) in pieces.iter().enumerate().take(usize::from(keep)) {
                leaf.set_extent(first + i as u16, piece);
            }
            leaf.remove(first + keep, old - keep);
            for (i, piece) in pieces.iter().enumerate().skip(usize::from(keep)) {
                leaf.insert_extent(first + i as u16, piece)?;
            }
            let after = leaf.as_node().key(0);
            Ok::<_, MapError>(if after == before { None } else { after })
        })??;
        if let Some(key) = key {
            self.fix_keys(handle, path, depth, key)?;
        }
        Ok(true)
    }

    /// The first key of the node at `level` changed: its parents follow.
    pub(crate) fn fix_keys(
        &mut self,
        handle: &mut Handle,
        path: &Path,
        level: usize,
        key: Lblk,
    ) -> Result<()> {
        for level in (0..level).rev() {
            let at = if level == 0 { path.root_at } else { path.steps[level - 1].at };
            let at = at.expect("an inner node has the entry that the way takes");
            self.change(handle, path, level, |node| node.set_key(at, key))?;
            if at > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Makes room in the leaf of `path`: splits it and its full parents, or lets the root grow. The way must be
    /// looked for again afterwards. Returns the tree blocks added.
    ///
    /// Blocks are claimed before anything is changed.
    fn split(&mut self, handle: &mut Handle, path: Path, at: u16, res: &mut Reservation) -> Result<u32> {
        let depth = path.depth();
        let mut full = 0;
        while full < depth
            && self.with_node(&path.steps[depth - 1 - full].buf, |n| n.is_full() || full == 0)?
        {
            full += 1;
        }
        let grow = full == depth && self.root_node()?.is_full();
        let mut claims = self.claim_blocks(full + usize::from(grow), res)?;
        let added = claims.len() as u32;
        let mut path = path;
        if grow || depth == 0 {
            let block = self.new_block(handle, &mut claims)?;
            self.grow(handle, &mut path, block)?;
        }
        let depth = path.depth();
        if depth > 0 && full > 0 {
            for level in depth - full + 1..=depth {
                let at = if level == depth { Some(at) } else { path.steps[level - 1].at };
                let block = self.new_block(handle, &mut claims)?;
                self.split_node(handle, &mut path, level, at.unwrap_or(0), block)?;
            }
        }
        Ok(added * self.fs.geo.cluster_ratio())
    }

    /// The root's entries move into a block, and the root becomes an index of that block alone.
    fn grow(&mut self, handle: &mut Handle, path: &mut Path, block: Buf) -> Result<()> {
        let root = self.root_node()?;
        let depth = root.depth();
        let first = root.key(0).unwrap_or_default();
        let image = self.image(&block, &root, 0)?;
        self.fill(handle, &block, &image)?;
        let mut node = NodeMut::init(&mut self.root[..], self.ino, None, depth + 1);
        node.insert_index(0, Index { lblk: first, child: block.pblk() })?;
        path.steps.insert(0, Step { buf: block, at: path.root_at });
        path.root_at = Some(0);
        Ok(())
    }

    /// Moves the upper entries of the node at `level` into `block` and enters that in the parent, which has room. If
    /// the change is at the node's end, only the last entry moves: files that grow get full nodes.
    fn split_node(
        &mut self,
        handle: &mut Handle,
        path: &mut Path,
        level: usize,
        at: u16,
        block: Buf,
    ) -> Result<()> {
        let buf = path.steps[level - 1].buf.clone();
        let bytes = buf.bytes();
        let node = Node::open(&bytes, self.ino, Some(buf.pblk()), None)?;
        let entries = node.len();
        if entries < 2 {
            let kind =
                Corrupt::Range { field: "eh_max", value: entries.into(), min: 2, max: node.max().into() };
            return Err(self.corrupt(Some(buf.pblk()), kind));
        }
        let from = if at + 1 >= entries { entries - 1 } else { entries / 2 };
        let key = node.key(from).unwrap_or_default();
        let image = self.image(&block, &node, from)?;
        drop(bytes);
        self.fill(handle, &block, &image)?;
        self.change_buf(handle, &buf, |node| node.remove(from, entries - from))?;
        let parent_at = if level == 1 { path.root_at } else { path.steps[level - 2].at };
        let parent_at = parent_at.expect("an inner node has the entry that the way takes");
        let index = Index { lblk: key, child: block.pblk() };
        self.change(handle, path, level - 1, |node| node.insert_index(parent_at + 1, index))??;
        if at >= from {
            let step = &mut path.steps[level - 1];
            step.buf = block;
            step.at = step.at.map(|a| a.saturating_sub(from));
            let parent = if level == 1 { &mut path.root_at } else { &mut path.steps[level - 2].at };
            *parent = Some(parent_at + 1);
        }
        Ok(())
    }

    /// The bytes of a new node at `block` with the entries of `node` from `from` on.
    fn image(&self, block: &Buf, node: &Node<'_>, from: u16) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.fs.geo.block_size() as usize];
        let mut new = NodeMut::init(&mut bytes, self.ino, Some(block.pblk()), node.depth());
        for (to, at) in (from..node.len()).enumerate() {
            match (node.extent(at), node.index(at)) {
                (Some(extent), _) => new.insert_extent(to as u16, extent)?,
                (None, Some(index)) => new.insert_index(to as u16, index)?,
                (None, None) => {}
            }
        }
        new.set_checksum(self.ino, self.generation, &self.fs.csum);
        Ok(bytes)
    }

    fn fill(&self, handle: &mut Handle, block: &Buf, image: &[u8]) -> Result<()> {
        handle.modify(block, |bytes: &mut [u8]| bytes.copy_from_slice(image))?;
        let Ok(()) = block.verify_once(|_| Ok::<(), std::convert::Infallible>(()));
        Ok(())
    }

    /// Claims tree blocks near the inode, away from its data so that data stays in one piece.
    fn claim_blocks(&self, n: usize, res: &mut Reservation) -> Result<Vec<Claim>> {
        let goal = self.fs.alloc.goal_for_inode(self.ino, false);
        let n = if self.root_node()?.is_leaf() { n.max(1) } else { n };
        (0..n).map(|_| Ok(self.fs.alloc.claim_held(&ClaimRequest::tree_block(goal), res)?)).collect()
    }

    /// Publishes a claimed tree block and joins its buffer, zeroed. Credits: 3.
    fn new_block(&self, handle: &mut Handle, claims: &mut Vec<Claim>) -> Result<Buf> {
        let mut claim = claims.pop().expect("tree blocks were counted before");
        self.fs.alloc.publish(handle, &mut claim, 1)?;
        Ok(handle.create(claim.pblk())?)
    }

    /// Takes a whole extent or a run of them out of a leaf, and the leaf out of the tree if that empties it. Returns
    /// the tree blocks freed.
    pub(crate) fn take_out(
        &mut self,
        handle: &mut Handle,
        path: &Path,
        first: u16,
        count: u16,
    ) -> Result<u32> {
        let left = self.with_leaf(path, |leaf| leaf.len() - count)?;
        if left > 0 || path.depth() == 0 {
            let (all, none) = (count, Pieces::new());
            self.replace(handle, path, first, all, &none)?;
            return self.shrink(handle);
        }
        let mut freed = 0;
        let mut level = path.depth();
        // The emptied leaf goes, and every parent that it was the only child of.
        loop {
            freed += self.free_block(handle, path.steps[level - 1].buf.pblk())?;
            level -= 1;
            let at = if level == 0 { path.root_at } else { path.steps[level - 1].at };
            let at = at.expect("an inner node has the entry that the way takes");
            let children = if level == 0 {
                u32::from(self.root_node()?.len())
            } else {
                self.with_node(&path.steps[level - 1].buf, |n| u32::from(n.len()))?
            };
            if children > 1 {
                let key = self.change(handle, path, level, |node| {
                    node.remove(at, 1);
                    if at == 0 { node.as_node().key(0) } else { None }
                })?;
                if let Some(key) = key {
                    self.fix_keys(handle, path, level, key)?;
                }
                break;
            }
            if level == 0 {
                NodeMut::init(&mut self.root[..], self.ino, None, 0);
                break;
            }
        }
        Ok(freed + self.shrink(handle)?)
    }

    /// While the root has one child whose entries fit into the root, they move there. Not if that child cannot be read: the map is
    /// whole without it.
    fn shrink(&mut self, handle: &mut Handle) -> Result<u32> {
        let mut freed = 0;
        loop {
            let root = self.root_node()?;
            let only = (root.len() == 1).then(|| root.index(0)).flatten();
            let (Some(index), Some(depth)) = (only, root.depth().checked_sub(1)) else { return Ok(freed) };
            let read = self.fs.read_node(self.ino, self.generation, index, MAX_LBLK, depth);
            let (Ok(buf), Ok(_held)) = (read, self.fs.alloc.prepare_free(index.child, 1)) else {
                return Ok(freed);
            };
            let bytes = buf.bytes();
            let child = Node::open(&bytes, self.ino, Some(buf.pblk()), Some(depth))?;
            // One entry of air, so that a file at the edge does not go up and down all the time.
            if child.len() >= ROOT_ENTRIES {
                return Ok(freed);
            }
            let mut node = NodeMut::init(&mut self.root[..], self.ino, None, depth);
            for at in 0..child.len() {
                match (child.extent(at), child.index(at)) {
                    (Some(extent), _) => node.insert_extent(at, extent)?,
                    (None, Some(index)) => node.insert_index(at, index)?,
                    (None, None) => {}
                }
            }
            drop(bytes);
            freed += self.free_block(handle, buf.pblk())?;
        }
    }

    /// Frees a tree block: it must not be written or replayed any more. Credits: 2.
    fn free_block(&self, handle: &mut Handle, pblk: Pblk) -> Result<u32> {
        handle.revoke(pblk)?;
        self.fs.alloc.free(handle, pblk, 1)?;
        Ok(self.fs.geo.cluster_ratio())
    }
}

impl Pieces {
    pub(crate) fn push_all<const N: usize>(&mut self, extents: [Option<Extent>; N]) {
        for extent in extents.into_iter().flatten() {
            self.push(extent);
        }
    }

    /// One extent, or none.
    pub(crate) fn one(extent: Option<Extent>) -> Self {
        let mut pieces = Self::new();
        pieces.push_all([extent]);
        pieces
    }
}
