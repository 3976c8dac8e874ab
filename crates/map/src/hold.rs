//! Holding what a change of a map will read, so that the device is asked before the first change.

use std::ops::Range;

use extant_format::Lblk;
use extant_format::extent::{MAX_LBLK, Node};
use extant_format::indirect::MapKind;
use extant_journal::Buf;

use crate::error::Result;
use crate::fs::{MapFs, MapRef};
use crate::indirects::Indirects;

impl MapFs {
    /// Reads the nodes that changes of the blocks in `range` go through: those on the ways to them and, of an extent tree, to their
    /// neighbours, with which extents become one, and which are met where a node was before that went. As long as the result is
    /// held they stay in the cache.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn hold(&self, map: &MapRef<'_>, range: Range<Lblk>) -> Result<Vec<Buf>> {
        let mut held = Vec::new();
        match map.kind {
            MapKind::Extents => {
                let root = Node::open(map.i_block, map.ino, None, None)?;
                self.hold_below(map, &root, MAX_LBLK, &range, &mut held)?;
            }
            MapKind::Indirect => Indirects::hold(self, map.ino, map.i_block, &range, &mut held)?,
        }
        Ok(held)
    }

    /// The same below a node that ends at block `end`.
    fn hold_below(
        &self,
        map: &MapRef<'_>,
        node: &Node<'_>,
        end: u32,
        range: &Range<Lblk>,
        held: &mut Vec<Buf>,
    ) -> Result<()> {
        let Some(depth) = node.depth().checked_sub(1) else { return Ok(()) };
        let before = range.start.0.checked_sub(1).map_or(range.start, Lblk);
        let from = node.search(before).unwrap_or(0);
        // The child after the last is the next one's, if the range's own goes.
        let to = node.search(range.end).map_or(0, |at| at + 1);
        for (at, index) in (from..=to).filter_map(|at| Some((at, node.index(at)?))) {
            let end = node.key(at + 1).map_or(end, |key| key.0);
            let buf = self.read_node(map.ino, map.generation, index, end, depth)?;
            held.push(buf.clone());
            let bytes = buf.bytes();
            let child = Node::open(&bytes, map.ino, Some(index.child), Some(depth))?;
            self.hold_below(map, &child, end, range, held)?;
        }
        Ok(())
    }
}
