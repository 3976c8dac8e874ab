//! The index of a directory: every leaf is referenced once, at the right depth, and holds only names of its hash range.

use crate::context::Context;
use crate::finding::{Kind, Pass, Place};
use extant_format::htree::{DxBlock, DxKind};
use rustc_hash::FxHashMap;

const PASS: Pass = Pass::Directories;

/// The hashes of a leaf's names.
#[derive(Clone, Copy, Default)]
pub(crate) struct Leaf {
    range: Option<(u32, u32)>,
    unknown: bool,
}

impl Leaf {
    /// Adds a name's hash; `None`: it cannot be computed.
    pub(crate) fn add(&mut self, hash: Option<u32>) {
        match (hash, self.range) {
            (None, _) => self.unknown = true,
            (Some(hash), None) => self.range = Some((hash, hash)),
            (Some(hash), Some((min, max))) => self.range = Some((min.min(hash), max.max(hash))),
        }
    }
}

enum Block {
    Node(Vec<(u32, u32)>),
    Leaf(Leaf),
}

/// What was found of an index while its blocks were read.
#[derive(Default)]
pub(crate) struct DirIndex {
    /// Of the root; `None` if it is bad, and the index is not checked further.
    pub(crate) levels: Option<u8>,
    blocks: FxHashMap<u32, Block>,
}

impl DirIndex {
    pub(crate) fn node(&mut self, lblk: u32, kind: DxKind, view: &DxBlock<'_>) {
        debug_assert_eq!(kind == DxKind::Root, lblk == 0, "the root is block 0");
        let entries = view.iter().map(|e| (e.hash, e.lblk.0)).collect();
        self.blocks.insert(lblk, Block::Node(entries));
    }

    pub(crate) fn leaf(&mut self, lblk: u32, leaf: Leaf) {
        self.blocks.insert(lblk, Block::Leaf(leaf));
    }

    /// Walks from the root and reports what does not fit; `blocks` is the directory's length.
    pub(crate) fn report(mut self, cx: &Context<'_>, ino: u32, blocks: u32) {
        let found = |lblk, kind| cx.found(PASS, Place::DirBlock(ino, lblk), kind);
        let Some(levels) = self.levels else {
            return;
        };
        let Some(Block::Node(root)) = self.blocks.remove(&0) else {
            return;
        };
        let mut taken: rustc_hash::FxHashSet<u32> = [0].into_iter().collect();
        // (entries, height above the leaves, where the range of the whole ends)
        let mut stack = vec![(root, levels, u32::MAX, 0_u32)];
        while let Some((entries, height, end, start)) = stack.pop() {
            for (n, &(hash, lblk)) in entries.iter().enumerate() {
                let from = if n == 0 { start } else { hash & !1 };
                let to = entries.get(n + 1).map_or(end, |e| e.0);
                if lblk >= blocks {
                    found(lblk, Kind::HtreeBadBlock { lblk: u64::from(lblk) });
                    continue;
                }
                if !taken.insert(lblk) {
                    found(lblk, Kind::HtreeReferencedTwice {});
                    continue;
                }
                match (self.blocks.remove(&lblk), height) {
                    (Some(Block::Leaf(leaf)), 0) => range(leaf, from, to, |kind| found(lblk, kind)),
                    (Some(Block::Node(node)), 1..) => stack.push((node, height - 1, to, from)),
                    (Some(_), _) => found(lblk, Kind::HtreeDepth {}),
                    // Unreadable, or a hole: said already.
                    (None, _) => {}
                }
            }
        }
        let mut left: Vec<u32> = self.blocks.into_keys().collect();
        left.sort_unstable();
        for lblk in left {
            found(lblk, Kind::HtreeNotReferenced {});
        }
    }
}

fn range(leaf: Leaf, from: u32, to: u32, found: impl Fn(Kind)) {
    let Some((min, max)) = leaf.range else {
        return;
    };
    if min < from {
        found(Kind::HtreeMinHash {});
    }
    if max > to {
        found(Kind::HtreeMaxHash {});
    }
}
