//! Moving extents to other logical blocks (collapse, insert): whole nodes in memory, with the keys above them.
//!
//! The rule is the same for every node: entries with a key in the range move, all others stay. The key of an index is the first key
//! of its child, so an index moves exactly if its child's first entry does, and what was a tree before is one afterwards. Nodes that
//! change are read before the first of them does. Tree blocks neither come nor go.
//!
//! What one handle cannot take is done in parts, each a whole tree: moving down from the range's start on, moving up from its end
//! backwards, so that what moves always moves into a hole.

use std::ops::Range;

use extant_format::Lblk;
use extant_format::extent::{MAX_LBLK, Node, NodeMut};
use extant_journal::{Buf, Handle};

use crate::error::{MapError, Result};
use crate::fs::{MapFs, MapMut, MapRef};
use crate::tree::Tree;

/// Nodes that one call changes at most: all of them are in memory at once.
pub(crate) const MOST_NODES: u32 = 16_384;

/// Where blocks move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// To the blocks so many before.
    Down(u32),
    /// To the blocks so many behind.
    Up(u32),
}

impl Shift {
    fn by(self) -> i64 {
        match self {
            Self::Down(n) => -i64::from(n),
            Self::Up(n) => i64::from(n),
        }
    }
}

/// Nodes that are about to change.
struct Plan {
    nodes: Vec<Buf>,
    /// How many of them are leaves.
    leaves: u32,
    /// Nodes that there is room for.
    room: u32,
    /// Where the part ends that there is room for: the first key that stays for the next one (moving down), or the first one that
    /// moves now (moving up).
    edge: Option<u32>,
}

/// Nodes that a move will change, read and kept in memory, so that it meets no device.
#[derive(Debug, Default)]
pub struct MovedNodes {
    held: Vec<Buf>,
    count: u32,
}

impl MovedNodes {
    /// How many there are at most: the credits of [`MapFs::shift`], beside the inode's own.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl MapFs {
    /// Reads the nodes that [`Self::shift`] of the range changes; only counts those that no single call would.
    ///
    /// # Errors
    /// A damaged map; the device's.
    pub fn moved_nodes(&self, map: &MapRef<'_>, range: Range<Lblk>) -> Result<MovedNodes> {
        let mut nodes = MovedNodes::default();
        let root = Node::open(map.i_block, map.ino, None, None)?;
        if !root.is_leaf() {
            self.add_nodes(map, &root, MAX_LBLK, &(range.start.0..range.end.0), &mut nodes)?;
        }
        Ok(nodes)
    }

    fn add_nodes(
        &self,
        map: &MapRef<'_>,
        node: &Node<'_>,
        end: u32,
        range: &Range<u32>,
        nodes: &mut MovedNodes,
    ) -> Result<()> {
        let depth = node.depth() - 1;
        for at in touched(node, range) {
            nodes.count = nodes.count.saturating_add(1);
            let wanted = depth > 0 || nodes.held.len() < MOST_NODES as usize;
            let Some(index) = node.index(at).filter(|_| wanted) else { continue };
            let end = node.key(at + 1).map_or(end, |key| key.0);
            let buf = self.read_node(map.ino, map.generation, index, end, depth)?;
            if depth > 0 {
                let bytes = buf.bytes();
                let child = Node::open(&bytes, map.ino, Some(index.child), Some(depth))?;
                self.add_nodes(map, &child, end, range, nodes)?;
            }
            nodes.held.push(buf);
        }
        Ok(())
    }

    /// One past the last mapped block, 0 of an empty map of extents.
    ///
    /// # Errors
    /// A damaged map; the device's.
    pub fn extents_end(&self, map: &mut MapMut<'_>) -> Result<u32> {
        let tree = self.tree(map);
        let path = tree.descend(Lblk(MAX_LBLK - 1))?;
        Ok(tree.neighbours(&path)?.0.map_or(0, |last| last.end()))
    }

    /// Moves the extents that begin in `range` by whole blocks: as many leaves as the handle's credits are enough for, of which `keep`
    /// are left to the caller. No extent may lie across the range's start or where it goes to: make a hole there, or
    /// [`Self::split_at`], before. What is left of the range, to be moved in the next handle; the map is whole in between, with the hole
    /// that is moved into further on. The inode's blocks stay as many.
    ///
    /// # Errors
    /// [`MapError::Overlap`], [`MapError::TooBig`]; a damaged map; the device's: nothing is changed then. The journal's.
    pub fn shift(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        range: Range<Lblk>,
        by: Shift,
        keep: u32,
    ) -> Result<Option<Range<Lblk>>> {
        let range = range.start.0..range.end.0;
        let room = handle.credits_left().saturating_sub(keep).min(MOST_NODES);
        let result = self.tree(map).shift(handle, &range, by, room);
        let from = match by {
            Shift::Down(n) => range.start.saturating_sub(n),
            Shift::Up(_) => range.start,
        };
        map.es.forget(Lblk(from), MAX_LBLK - from);
        Ok(result?.map(|left| Lblk(left.start)..Lblk(left.end)))
    }
}

impl Tree<'_> {
    fn shift(
        &mut self,
        handle: &mut Handle,
        range: &Range<u32>,
        by: Shift,
        room: u32,
    ) -> Result<Option<Range<u32>>> {
        self.check_shift(range, by)?;
        let mut plan = Plan { nodes: Vec::new(), leaves: 0, room, edge: None };
        let done = {
            let root = self.root_node()?;
            root.is_leaf() || self.plan(&root, MAX_LBLK, range, by, &mut plan)?
        };
        let (now, left) = match (by, plan.edge) {
            _ if done => (range.clone(), None),
            (Shift::Down(_), Some(edge)) => (range.start..edge, Some(edge..range.end)),
            (Shift::Up(_), Some(edge)) => (edge..range.end, Some(range.start..edge)),
            // Not even one leaf: the caller asked for too little.
            (_, None) => return Ok(Some(range.clone())),
        };
        for buf in &plan.nodes {
            self.change_buf(handle, buf, |node| shift_node(node, &now, by))?;
        }
        let mut root = NodeMut::open(&mut self.root[..], self.ino, None, None)?;
        shift_node(&mut root, &now, by);
        Ok(left)
    }

    /// Refuses what would lie over other extents, or past the last block.
    fn check_shift(&self, range: &Range<u32>, by: Shift) -> Result<()> {
        let overlap = |lblk| Err(MapError::Overlap { ino: self.ino, lblk: Lblk(lblk) });
        match by {
            Shift::Down(n) => {
                let Some(to) = range.start.checked_sub(n) else { return overlap(0) };
                let Some(before) = range.start.checked_sub(1) else { return Ok(()) };
                let path = self.descend(Lblk(before))?;
                match self.neighbours(&path)?.0 {
                    Some(last) if last.end() > to => overlap(last.lblk.0),
                    _ => Ok(()),
                }
            }
            Shift::Up(n) => {
                if let Some(before) = range.start.checked_sub(1) {
                    let path = self.descend(Lblk(before))?;
                    if self.neighbours(&path)?.0.is_some_and(|last| last.end() > range.start) {
                        return overlap(range.start);
                    }
                }
                let path = self.descend(Lblk(range.end.saturating_sub(1)))?;
                let end = self.neighbours(&path)?.0.map_or(0, |last| last.end());
                if end > range.start && u64::from(end) + u64::from(n) > u64::from(MAX_LBLK) {
                    return Err(MapError::TooBig { ino: self.ino, lblk: u64::from(end) + u64::from(n) - 1 });
                }
                Ok(())
            }
        }
    }

    /// Adds the nodes below `node` that change, leaf by leaf in the order in which they may move; false when there is no room for all.
    fn plan(
        &self,
        node: &Node<'_>,
        end: u32,
        range: &Range<u32>,
        by: Shift,
        plan: &mut Plan,
    ) -> Result<bool> {
        let entries = touched(node, range);
        let mut down = entries.clone();
        let mut up = entries.rev();
        let mut next = || if matches!(by, Shift::Down(_)) { down.next() } else { up.next() };
        while let Some(at) = next() {
            let Some(index) = node.index(at) else { continue };
            let end = node.key(at + 1).map_or(end, |key| key.0);
            if plan.nodes.len() as u32 >= plan.room {
                if let Shift::Down(_) = by {
                    // What was met so far moves.
                    plan.edge = (plan.leaves > 0).then_some(index.lblk.0);
                }
                return Ok(false);
            }
            let depth = node.depth() - 1;
            let buf = self.fs.read_node(self.ino, self.generation, index, end, depth)?;
            if depth == 0 && !self.with_node(&buf, |leaf| has_key(leaf, range))? {
                continue;
            }
            plan.nodes.push(buf.clone());
            if depth == 0 {
                plan.leaves += 1;
                if let Shift::Up(_) = by {
                    plan.edge = Some(index.lblk.0.max(range.start));
                }
                continue;
            }
            let bytes = buf.bytes();
            let child = Node::open(&bytes, self.ino, Some(index.child), Some(depth))?;
            if !self.plan(&child, end, range, by, plan)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The entries of an inner node whose children may have entries in the range.
fn touched(node: &Node<'_>, range: &Range<u32>) -> Range<u16> {
    let first = node.search(Lblk(range.start)).unwrap_or(0);
    let after = range.end.checked_sub(1).and_then(|last| node.search(Lblk(last))).map_or(0, |at| at + 1);
    first..after.max(first)
}

/// Whether an entry of the node begins in the range.
fn has_key(node: &Node<'_>, range: &Range<u32>) -> bool {
    range
        .end
        .checked_sub(1)
        .and_then(|last| node.key(node.search(Lblk(last))?))
        .is_some_and(|key| key.0 >= range.start)
}

/// Moves the entries of one node that are in the range, and joins what has come to lie beside each other at the seam.
fn shift_node(node: &mut NodeMut<'_>, range: &Range<u32>, by: Shift) {
    let from = {
        let node = node.as_node();
        range.start.checked_sub(1).and_then(|before| node.search(Lblk(before))).map_or(0, |at| at + 1)
    };
    let to = {
        let node = node.as_node();
        range.end.checked_sub(1).and_then(|last| node.search(Lblk(last))).map_or(0, |at| at + 1)
    };
    if from >= to {
        return;
    }
    node.shift_keys(from, to, by.by());
    let Some(before) = from.checked_sub(1) else { return };
    let seam = {
        let node = node.as_node();
        node.extent(before).zip(node.extent(from)).filter(|(a, b)| a.merges_with(b))
    };
    if let Some((mut joined, next)) = seam {
        joined.len += next.len;
        node.set_extent(before, joined);
        node.remove(from, 1);
    }
}
