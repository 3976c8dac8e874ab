//! Which clusters somebody claims: a bitmap that exists only where something was claimed.

use extant_format::{GroupNr, Pblk};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use extant_format::Geometry;

/// Blocks in a part of a map of blocks.
const PART: u64 = 1 << 15;

/// One bit a cluster, allocated by group ([`BlockMap::new`]), or one bit a block, allocated by parts ([`Visited`]). Shared by the threads
/// of a pass.
pub(crate) struct BlockMap {
    groups: Vec<OnceLock<Box<[AtomicU64]>>>,
    words: usize,
}

/// A run of clusters within one group.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) group: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// Splits a range of blocks, which lies inside the filesystem, into runs of clusters by group.
pub(crate) fn spans(geo: &Geometry, start: Pblk, len: u64) -> impl Iterator<Item = Span> + use<> {
    let geo = *geo;
    let (mut at, end) = (start.0, start.0 + len);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (group, first) = geo.bit_of_block(Pblk(at))?;
        let group_end = geo.group_first_block(group).0 + u64::from(geo.blocks_in_group(group));
        let stop = end.min(group_end);
        let (_, last) = geo.bit_of_block(Pblk(stop - 1))?;
        at = stop;
        Some(Span { group: group.0, first, count: last - first + 1 })
    })
}

impl BlockMap {
    pub(crate) fn new(geo: &Geometry) -> Self {
        let words = (geo.clusters_per_group() as usize).div_ceil(64);
        Self { groups: (0..geo.groups()).map(|_| OnceLock::new()).collect(), words }
    }

    fn words(&self, group: u32) -> &[AtomicU64] {
        match self.groups.get(group as usize) {
            Some(cell) => cell.get_or_init(|| (0..self.words).map(|_| AtomicU64::new(0)).collect()),
            None => &[],
        }
    }

    /// The group's words, if anything in it was ever claimed.
    pub(crate) fn group(&self, group: GroupNr) -> Option<&[AtomicU64]> {
        self.groups.get(group.0 as usize)?.get().map(|b| &b[..])
    }

    /// Sets the bits of a run; those that were set before are set in `again`, too. Returns the first of them.
    pub(crate) fn claim(&self, span: Span, again: Option<&Self>) -> Option<u32> {
        let words = self.words(span.group);
        let (mut bit, end) = (span.first, span.first + span.count);
        let mut first = None;
        while bit < end {
            let (word, low) = ((bit / 64) as usize, bit % 64);
            let count = (64 - low).min(end - bit);
            let mask = if count == 64 { !0 } else { ((1_u64 << count) - 1) << low };
            let before = words.get(word)?.fetch_or(mask, Ordering::Relaxed) & mask;
            if before != 0 {
                first = first.or(Some(bit - low + before.trailing_zeros()));
                if let Some(other) = again.and_then(|a| a.words(span.group).get(word)) {
                    other.fetch_or(before, Ordering::Relaxed);
                }
            }
            bit += count;
        }
        first
    }

    /// Whether any cluster of a run was claimed.
    pub(crate) fn test_any(&self, span: Span) -> bool {
        (span.first..span.first + span.count).any(|bit| self.test(span.group, bit))
    }

    /// Whether a cluster was claimed.
    pub(crate) fn test(&self, group: u32, bit: u32) -> bool {
        let word = self.group(GroupNr(group)).and_then(|w| w.get((bit / 64) as usize));
        word.is_some_and(|w| w.load(Ordering::Relaxed) & (1 << (bit % 64)) != 0)
    }

    /// How many clusters were claimed.
    pub(crate) fn count(&self) -> u64 {
        let words = self.groups.iter().filter_map(OnceLock::get).flatten();
        words.map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Whether nothing was claimed at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.iter().all(|g| g.get().is_none())
    }
}

/// Blocks, whatever the clusters, that a pass has read.
pub(crate) struct Visited(BlockMap);

impl Visited {
    pub(crate) fn new(geo: &Geometry) -> Self {
        let parts = (0..geo.blocks_count().div_ceil(PART)).map(|_| OnceLock::new()).collect();
        Self(BlockMap { groups: parts, words: (PART / 64) as usize })
    }

    /// Notes a block, which lies inside the filesystem; whether it is the first time.
    pub(crate) fn first_time(&self, block: Pblk) -> bool {
        let part = Span { group: (block.0 / PART) as u32, first: (block.0 % PART) as u32, count: 1 };
        self.0.claim(part, None).is_none()
    }
}
