//! Walks an inode's block map, extents or indirect blocks, and reports what is wrong with it.

use crate::context::{Context, Record};
use crate::finding::{Kind, Pass, Place};
use extant_format::{Csum, InodeFlags, Node, Pblk};

const PASS: Pass = Pass::Inodes;
/// The most levels that any tree needs, which is what readers accept.
const USEFUL_DEPTH: u16 = 5;
/// The most levels that are followed at all.
const MAX_DEPTH: u16 = 15;

/// A part of a map.
#[derive(Clone, Copy)]
pub(crate) enum Piece {
    /// A block of the map itself. The visitor says whether to go into it.
    Tree(Pblk),
    /// Blocks of the file; the first `own` of them are in a cluster that the piece before was in, too.
    Data { lblk: u32, pblk: Pblk, len: u32, own: u32 },
}

/// What a walk counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Totals {
    /// Clusters of tree and data.
    pub(crate) clusters: u64,
    /// Where logical block 0 is.
    pub(crate) first: Option<Pblk>,
    /// The last mapped logical block.
    pub(crate) last: Option<u32>,
    /// The last one that is not unwritten.
    pub(crate) last_written: Option<u32>,
    /// Logical blocks that are mapped.
    pub(crate) mapped: u64,
    /// Something illegal was met.
    pub(crate) illegal: bool,
}

/// Block buffers, one a level, reused from inode to inode.
#[derive(Default)]
pub(crate) struct Buffers {
    levels: Vec<Vec<u8>>,
}

impl Buffers {
    fn take(&mut self, level: usize, len: usize) -> Vec<u8> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let mut buf = std::mem::take(&mut self.levels[level]);
        buf.resize(len, 0);
        buf
    }

    fn give(&mut self, level: usize, buf: Vec<u8>) {
        self.levels[level] = buf;
    }
}

/// A walk over one inode's map.
pub(crate) struct Walk<'c, 'd, V> {
    cx: &'c Context<'d>,
    rec: &'c Record,
    buffers: &'c mut Buffers,
    visit: V,
    /// Findings are wanted (the first walk), or this is a later one.
    report: bool,
    totals: Totals,
    previous: Option<u64>,
}

/// Walks the map of `rec`. Blocks outside the filesystem are reported and not visited.
pub(crate) fn walk<V: FnMut(Piece) -> bool>(
    cx: &Context<'_>,
    rec: &Record,
    buffers: &mut Buffers,
    report: bool,
    visit: V,
) -> Totals {
    let mut walk = Walk { cx, rec, buffers, visit, report, totals: Totals::default(), previous: None };
    if rec.has(InodeFlags::EXTENTS) {
        walk.extents();
    } else {
        walk.indirect();
    }
    walk.totals
}

impl<V: FnMut(Piece) -> bool> Walk<'_, '_, V> {
    fn found(&mut self, kind: Kind) {
        self.totals.illegal = true;
        if self.report {
            self.cx.found(PASS, Place::Inode(self.rec.ino.0), kind);
        }
    }

    /// Passes a tree block on; true if it may be read.
    fn tree(&mut self, block: Pblk) -> bool {
        self.totals.clusters += 1;
        (self.visit)(Piece::Tree(block))
    }

    fn data(&mut self, lblk: u32, pblk: Pblk, len: u32, unwritten: bool) {
        let last = lblk + (len - 1);
        if lblk == 0 {
            self.totals.first = Some(pblk);
        }
        self.totals.last = self.totals.last.max(Some(last));
        if !unwritten {
            self.totals.last_written = self.totals.last_written.max(Some(last));
        }
        self.totals.mapped += u64::from(len);
        let shift = self.cx.geo.log_cluster_ratio();
        let (first, end) = (pblk.0 >> shift, (pblk.0 + u64::from(len) - 1) >> shift);
        let again = u64::from(shift > 0 && self.previous == Some(first));
        self.totals.clusters += end - first + 1 - again;
        self.previous = Some(end);
        let rest = ((first + 1) << shift) - pblk.0;
        let own = if again == 1 { rest.min(u64::from(len)) as u32 } else { 0 };
        (self.visit)(Piece::Data { lblk, pblk, len, own });
    }

    fn extents(&mut self) {
        let mut root = self.rec.raw.i_block.to_vec();
        let depth = depth_of(&root);
        if depth > USEFUL_DEPTH && depth <= MAX_DEPTH && self.report {
            let (depth, should) = (u64::from(depth), u64::from(USEFUL_DEPTH));
            self.cx.found(PASS, Place::Inode(self.rec.ino.0), Kind::ExtentTreeDeep { depth, should });
        }
        if let Some(node) = self.open(&mut root, None, depth) {
            self.node(node, depth, 0, 1 << 32);
        }
    }

    /// Opens a node of that depth; `block` is `None` for the root. Deeper nodes than any reader accepts are opened as
    /// nodes of depth 1, which differ in nothing else.
    fn open<'b>(&mut self, bytes: &'b mut [u8], block: Option<Pblk>, depth: u16) -> Option<Node<'b>> {
        let fits = (bytes.len() / 12).saturating_sub(1);
        let right = depth_of(bytes) == depth && depth <= MAX_DEPTH;
        // An empty root leads nowhere, at whatever depth.
        let empty = block.is_none() && bytes[2..4] == [0, 0];
        if empty {
            bytes[6..8].copy_from_slice(&[0, 0]);
        } else if right && depth > USEFUL_DEPTH {
            bytes[6..8].copy_from_slice(&[1, 0]);
        }
        match Node::open(bytes, self.rec.ino, block, None) {
            Ok(node) if (right || empty) && usize::from(node.max()) + 2 >= fits => Some(node),
            _ => {
                self.found(Kind::ExtentHeader { block: block.map_or(0, |b| b.0) });
                None
            }
        }
    }

    /// One node, whose keys must lie in `from..to`.
    fn node(&mut self, node: Node<'_>, depth: u16, from: u64, to: u64) {
        let mut next = from;
        if node.is_leaf() {
            for extent in node.extents() {
                if let Some(end) = self.extent(extent, next, to) {
                    next = end;
                }
            }
            return;
        }
        for at in 0..node.len() {
            let Some(index) = node.index(at) else {
                return;
            };
            let key = u64::from(index.lblk.0);
            let end = node.key(at + 1).map_or(to, |k| u64::from(k.0).min(to));
            if key < next || key >= to {
                self.found(Kind::ExtentOrder { lblk: key });
                continue;
            }
            if !self.cx.geo.contains(index.child) {
                self.found(Kind::ExtentInvalid { lblk: key, block: index.child.0, len: 0 });
                continue;
            }
            next = end.max(key);
            self.child(index.child, depth - 1, key, next);
        }
    }

    fn child(&mut self, block: Pblk, depth: u16, key: u64, to: u64) {
        if !self.tree(block) {
            return;
        }
        let level = usize::from(depth);
        let mut buf = self.buffers.take(level, self.cx.block_size());
        if self.cx.read_block(block, &mut buf) {
            self.checksum(&buf, block);
            if let Some(node) = self.open(&mut buf, Some(block), depth) {
                match node.key(0).map(|k| u64::from(k.0)) {
                    Some(first) if first != key => {
                        self.found(Kind::ExtentIndexStart { lblk: key, should: first });
                    }
                    Some(_) => self.node(node, depth, key, to),
                    None => self.found(Kind::ExtentEmptyNode { block: block.0 }),
                }
            }
        } else {
            self.found(Kind::ReadError {});
        }
        self.buffers.give(level, buf);
    }

    fn checksum(&mut self, bytes: &[u8], block: Pblk) {
        if !self.cx.csum.has_metadata() {
            return;
        }
        let seed = self.cx.csum.inode_seed(self.rec.ino, self.rec.raw.i_generation.get());
        let max = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let tail = 12 + max * 12;
        let stored = bytes.get(tail..tail + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if stored.is_some_and(|s| s != Csum::extent_block(seed, &bytes[..tail])) {
            self.found(Kind::ExtentChecksum { block: block.0 });
        }
    }

    /// One extent; returns where it ends if it counts.
    fn extent(&mut self, extent: extant_format::Extent, next: u64, to: u64) -> Option<u64> {
        let (lblk, len) = (u64::from(extent.lblk.0), u64::from(extent.len));
        let block = extent.pblk;
        if len == 0 || !self.cx.geo.contains_range(block, len) {
            self.found(Kind::ExtentInvalid { lblk, block: block.0, len });
            return None;
        }
        if lblk < next {
            self.found(Kind::ExtentOrder { lblk });
            return None;
        }
        if lblk + len > to {
            self.found(Kind::ExtentOutOfBounds { lblk });
            return None;
        }
        let ratio = u64::from(self.cx.geo.cluster_ratio());
        if (lblk ^ block.0) & (ratio - 1) != 0 {
            self.found(Kind::ExtentCluster { lblk, block: block.0 });
        }
        if self.rec.is_dir() {
            if extent.unwritten {
                self.found(Kind::ExtentUnwrittenInDirectory { lblk });
            }
            let most = 1_u64 << (31 - self.cx.geo.log_block_size());
            let large = self.cx.incompat(extant_format::Incompat::LARGEDIR);
            if !large && lblk + len > most {
                self.found(Kind::DirectorySize { size: lblk + len });
                return None;
            }
        }
        self.data(extent.lblk.0, block, extent.len, extent.unwritten);
        Some(lblk + len)
    }

    fn indirect(&mut self) {
        let per = (self.cx.block_size() / 4) as u64;
        for n in 0..12 {
            self.pointer(self.rec.word(n), n as u64, 0);
        }
        let mut at = 12;
        for level in 1..=3 {
            self.pointer(self.rec.word(11 + level), at, level);
            at += per.pow(level as u32);
        }
    }

    /// A block number in the map: of data at level 0, else of an indirect block.
    fn pointer(&mut self, block: u32, lblk: u64, level: usize) {
        if block == 0 {
            return;
        }
        let pblk = Pblk(u64::from(block));
        if !self.cx.geo.contains(pblk) {
            let block = pblk.0;
            let kind =
                if level == 0 { Kind::BlockIllegal { lblk, block } } else { Kind::IndirectIllegal { block } };
            self.found(kind);
            return;
        }
        if level == 0 {
            match u32::try_from(lblk) {
                Ok(lblk) if lblk < u32::MAX => self.data(lblk, pblk, 1, false),
                _ => self.found(Kind::BlockIllegal { lblk, block: pblk.0 }),
            }
            return;
        }
        if !self.tree(pblk) {
            return;
        }
        let per = (self.cx.block_size() / 4) as u64;
        let step = per.pow(level as u32 - 1);
        let mut buf = self.buffers.take(level, self.cx.block_size());
        if self.cx.read_block(pblk, &mut buf) {
            for (n, word) in buf.chunks_exact(4).enumerate() {
                let block = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                if block != 0 {
                    self.pointer(block, lblk + n as u64 * step, level - 1);
                }
            }
        } else {
            self.found(Kind::ReadError {});
        }
        self.buffers.give(level, buf);
    }
}

/// `eh_depth`
fn depth_of(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[6], bytes[7]])
}
