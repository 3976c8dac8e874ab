//! Extent trees: the way to a block, and how nodes are read.

use extant_format::extent::{Extent, Index, MAX_LBLK, Node, NodeMut};
use extant_format::{Corrupt, FormatError, Ino, Lblk, Pblk, Place};
use extant_journal::{Buf, Handle};

use crate::error::{MapError, Result};
use crate::fs::MapFs;
use crate::status::Run;

/// An extent tree: where its root is, whose it is.
pub(crate) struct Tree<'a> {
    pub(crate) fs: &'a MapFs,
    pub(crate) ino: Ino,
    pub(crate) generation: u32,
    pub(crate) root: &'a mut [u8; 60],
}

/// A node below the root on the way to a block.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) buf: Buf,
    /// Entry of this node that the way takes: an index, or in the leaf the last extent at or before the block.
    pub(crate) at: Option<u16>,
}

/// The way from the root to the leaf of a block.
pub(crate) struct Path {
    /// Entry of the root.
    pub(crate) root_at: Option<u16>,
    /// Nodes below the root, the leaf last; empty if the root is the leaf.
    pub(crate) steps: Vec<Step>,
    /// One past the blocks that the leaf may hold.
    pub(crate) end: u32,
}

impl Path {
    /// The entry of the leaf.
    pub(crate) fn at(&self) -> Option<u16> {
        self.steps.last().map_or(self.root_at, |s| s.at)
    }

    /// Levels below the root.
    pub(crate) fn depth(&self) -> usize {
        self.steps.len()
    }
}

/// Looks up a block from a root that may only be read. One pass, no path kept.
pub(crate) fn lookup(fs: &MapFs, ino: Ino, generation: u32, root: &[u8; 60], lblk: Lblk) -> Result<Run> {
    let node = open_root(ino, root)?;
    if node.is_leaf() {
        node.check(ino, None, &fs.geo)?;
        return Ok(run_in_leaf(&node, lblk, MAX_LBLK));
    }
    let mut next = child_of(&node, lblk, MAX_LBLK);
    let mut depth = node.depth();
    loop {
        let (index, end) = next;
        depth -= 1;
        let buf = fs.read_node(ino, generation, index, end, depth)?;
        let found = buf.with(|bytes| {
            let node = Node::open(bytes, ino, Some(index.child), Some(depth))?;
            Ok::<_, FormatError>(if node.is_leaf() {
                Err(run_in_leaf(&node, lblk, end))
            } else {
                Ok(child_of(&node, lblk, end))
            })
        })?;
        match found {
            Ok(child) => next = child,
            Err(run) => return Ok(run),
        }
    }
}

fn open_root(ino: Ino, root: &[u8; 60]) -> Result<Node<'_>> {
    Ok(Node::open(root, ino, None, None)?)
}

/// The child that holds `lblk`, and one past the blocks that it may hold.
fn child_of(node: &Node<'_>, lblk: Lblk, end: u32) -> (Index, u32) {
    let at = node.search(lblk).unwrap_or(0);
    let index = node.index(at).expect("an inner node that was opened has an entry");
    (index, node.key(at + 1).map_or(end, |k| k.0))
}

fn run_in_leaf(node: &Node<'_>, lblk: Lblk, end: u32) -> Run {
    let at = node.search(lblk);
    if let Some(extent) = at.and_then(|at| node.extent(at)).filter(|e| e.contains(lblk)) {
        let len = extent.end() - lblk.0;
        return Run::Mapped { pblk: extent.pblk_of(lblk), len, unwritten: extent.unwritten };
    }
    let next = node.key(at.map_or(0, |at| at + 1)).map_or(end, |k| k.0);
    Run::Hole { len: next.saturating_sub(lblk.0).max(1) }
}

impl MapFs {
    /// Reads a node of an extent tree: checksum and entries are checked when it comes from the disk, its place in the
    /// tree every time. Two parents that share a child fail here, and so no walk goes round in circles.
    pub(crate) fn read_node(
        &self,
        ino: Ino,
        generation: u32,
        index: Index,
        end: u32,
        depth: u16,
    ) -> Result<Buf> {
        let place = Place::ExtentNode(ino, Some(index.child));
        if !self.alloc.is_data_range(index.child, 1) {
            return Err(MapError::NotData { ino, lblk: index.lblk, pblk: index.child, len: 1 });
        }
        let buf = self.cache.read(index.child)?;
        buf.verify_once(|bytes| {
            Node::read_block(bytes, ino, generation, index.child, depth, &self.geo, &self.csum).map(|_| ())
        })?;
        buf.with(|bytes| {
            let node = Node::open(bytes, ino, Some(index.child), Some(depth))?;
            let first = node.key(0).unwrap_or(index.lblk);
            let last = node.len().checked_sub(1);
            let stop = match last {
                Some(at) if depth == 0 => node.extent(at).map_or(first.0, |e| e.end()),
                Some(at) => node.key(at).map_or(first.0, |k| k.0.saturating_add(1)),
                None => first.0,
            };
            if first == index.lblk && stop <= end {
                return Ok(buf.clone());
            }
            let kind = Corrupt::Order {
                what: "node",
                index: 0,
                value: u64::from(if first == index.lblk { stop } else { first.0 }),
                previous: u64::from(if first == index.lblk { end } else { index.lblk.0 }),
            };
            Err(FormatError::corrupt(place, kind).into())
        })
    }
}

impl Tree<'_> {
    /// The root as a node.
    pub(crate) fn root_node(&self) -> Result<Node<'_>> {
        open_root(self.ino, self.root)
    }

    /// The way to `lblk`.
    pub(crate) fn descend(&self, lblk: Lblk) -> Result<Path> {
        let root = self.root_node()?;
        if root.is_leaf() {
            root.check(self.ino, None, &self.fs.geo)?;
            return Ok(Path { root_at: root.search(lblk), steps: Vec::new(), end: MAX_LBLK });
        }
        let mut depth = root.depth();
        let root_at = Some(root.search(lblk).unwrap_or(0));
        let (mut index, mut end) = child_of(&root, lblk, MAX_LBLK);
        let mut steps = Vec::with_capacity(usize::from(depth));
        loop {
            depth -= 1;
            let buf = self.fs.read_node(self.ino, self.generation, index, end, depth)?;
            let (at, child) = buf.with(|bytes| {
                let node = Node::open(bytes, self.ino, Some(index.child), Some(depth))?;
                Ok::<_, FormatError>(if node.is_leaf() {
                    (node.search(lblk), None)
                } else {
                    (Some(node.search(lblk).unwrap_or(0)), Some(child_of(&node, lblk, end)))
                })
            })?;
            steps.push(Step { buf, at });
            match child {
                Some(next) => (index, end) = next,
                None => return Ok(Path { root_at, steps, end }),
            }
        }
    }

    /// Looks at the leaf of a path.
    pub(crate) fn with_leaf<R>(&self, path: &Path, look: impl FnOnce(&Node<'_>) -> R) -> Result<R> {
        match path.steps.last() {
            None => Ok(look(&self.root_node()?)),
            Some(step) => self.with_node(&step.buf, look),
        }
    }

    /// Looks at a node below the root.
    pub(crate) fn with_node<R>(&self, buf: &Buf, look: impl FnOnce(&Node<'_>) -> R) -> Result<R> {
        buf.with(|bytes| Ok(look(&Node::open(bytes, self.ino, Some(buf.pblk()), None)?)))
    }

    /// Changes the node at `level` of a path (0 is the root) and its checksum. Credits: 1, none for the root.
    pub(crate) fn change<R>(
        &mut self,
        handle: &mut Handle,
        path: &Path,
        level: usize,
        change: impl FnOnce(&mut NodeMut<'_>) -> R,
    ) -> Result<R> {
        match level.checked_sub(1) {
            None => Ok(change(&mut NodeMut::open(&mut self.root[..], self.ino, None, None)?)),
            Some(i) => {
                let buf = path.steps[i].buf.clone();
                self.change_buf(handle, &buf, change)
            }
        }
    }

    /// Changes a node below the root and its checksum. Credits: 1.
    pub(crate) fn change_buf<R>(
        &self,
        handle: &mut Handle,
        buf: &Buf,
        change: impl FnOnce(&mut NodeMut<'_>) -> R,
    ) -> Result<R> {
        let (ino, generation, csum) = (self.ino, self.generation, self.fs.csum);
        handle.modify(buf, |bytes: &mut [u8]| {
            let mut node = NodeMut::open(bytes, ino, Some(buf.pblk()), None)?;
            let result = change(&mut node);
            node.set_checksum(ino, generation, &csum);
            Ok(result)
        })?
    }

    /// The extents of a leaf around `at`: the one before, at it, and after it.
    pub(crate) fn neighbours(&self, path: &Path) -> Result<(Option<Extent>, Option<Extent>)> {
        let at = path.at();
        self.with_leaf(path, |leaf| {
            let here = at.and_then(|at| leaf.extent(at));
            let next = leaf.extent(at.map_or(0, |at| at + 1));
            (here, next)
        })
    }

    pub(crate) fn corrupt(&self, block: Option<Pblk>, kind: Corrupt) -> MapError {
        FormatError::corrupt(Place::ExtentNode(self.ino, block), kind).into()
    }
}
