//! The extent-status cache of one inode: what is known of its map, without a look at the tree.
//!
//! An interval map from logical blocks to {written, unwritten, hole, delayed}. It is filled by lookups (under the
//! shared map lock) and by every change of the map (under the exclusive one), so what it says is what the tree says;
//! what it does not know must be looked up. Delayed ranges exist only here: blocks that are promised but have no
//! place yet.
//!
//! The sequence number rises with every change of the mapping (not when knowledge is merely cached). Who filled a
//! page without the map lock compares it before and after.
//!
//! Memory is bounded twice: each cache drops what it may when it grows past its own limit, and when all caches
//! together pass the [`StatusBudget`]. Delayed ranges are never dropped.
//!
//! Locking: a leaf lock inside, shared for lookups. [`ExtentStatus::lookup`] is the whole cost of a cached read.

use extant_format::{Lblk, Pblk};
use extant_sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use extant_sync::{Arc, Rank, RwLock};
use smallvec::SmallVec;

/// Entries that one inode may cache beside its delayed ranges.
const LIMIT: usize = 1024;

/// One past the last logical block that a file can have.
pub const LBLK_END: u32 = u32::MAX;

/// What a range of logical blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Blocks on the device, in one run.
    Mapped {
        /// The first block.
        pblk: Pblk,
        /// Blocks from there that follow each other, at least 1.
        len: u32,
        /// Allocated but never written: reads as zeroes.
        unwritten: bool,
    },
    /// Nothing is allocated for `len` blocks.
    Hole {
        /// Blocks, at least 1.
        len: u32,
    },
}

impl Run {
    /// Blocks that the run covers.
    #[must_use]
    pub const fn len(&self) -> u32 {
        match self {
            Self::Mapped { len, .. } | Self::Hole { len } => *len,
        }
    }

    /// Whether the run covers nothing; no function of this crate returns such a run.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The run cut to at most `max` blocks.
    #[must_use]
    pub fn cut(self, max: u32) -> Self {
        match self {
            Self::Mapped { pblk, len, unwritten } => Self::Mapped { pblk, len: len.min(max), unwritten },
            Self::Hole { len } => Self::Hole { len: len.min(max) },
        }
    }
}

/// What the cache knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Allocated and written, at this block.
    Written(Pblk),
    /// Allocated, reads as zeroes, at this block.
    Unwritten(Pblk),
    /// Not allocated.
    Hole,
    /// Not allocated, but promised to dirty data.
    Delayed,
}

impl Status {
    /// The status of the block `n` further on in the same run.
    fn advance(self, n: u32) -> Self {
        match self {
            Self::Written(p) => Self::Written(Pblk(p.0 + u64::from(n))),
            Self::Unwritten(p) => Self::Unwritten(Pblk(p.0 + u64::from(n))),
            Self::Hole | Self::Delayed => self,
        }
    }
}

impl From<Run> for Status {
    fn from(run: Run) -> Self {
        match run {
            Run::Mapped { pblk, unwritten: false, .. } => Self::Written(pblk),
            Run::Mapped { pblk, unwritten: true, .. } => Self::Unwritten(pblk),
            Run::Hole { .. } => Self::Hole,
        }
    }
}

/// How many entries all caches of a filesystem may hold together.
#[derive(Debug)]
pub struct StatusBudget {
    used: AtomicUsize,
    limit: usize,
}

impl StatusBudget {
    /// A budget of `limit` entries (about 64 bytes each).
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Entries in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn change(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn is_exceeded(&self) -> bool {
        self.used() > self.limit
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u32,
    len: u32,
    status: Status,
}

impl Entry {
    const fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// The extent-status cache of one in-core inode.
pub struct ExtentStatus {
    tree: RwLock<Tree>,
    seq: AtomicU64,
    budget: Arc<StatusBudget>,
}

impl std::fmt::Debug for ExtentStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtentStatus").field("seq", &self.seq()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Tree {
    /// By first block, ascending. Most files are one run, with a hole behind it: that takes no memory of its own.
    entries: SmallVec<[Entry; 2]>,
    delayed: usize,
}

impl ExtentStatus {
    /// An empty cache that draws on `budget`.
    #[must_use]
    pub fn new(budget: Arc<StatusBudget>) -> Self {
        Self { tree: RwLock::new(Rank::LEAF, Tree::default()), seq: AtomicU64::new(0), budget }
    }

    /// The map's sequence number; it rises with each change of the mapping.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// What the map has at `lblk`, at most `max` blocks, if it is known here. Delayed blocks are holes of the map.
    #[must_use]
    pub fn lookup(&self, lblk: Lblk, max: u32) -> Option<Run> {
        let (status, len) = self.status(lblk, max)?;
        Some(match status {
            Status::Written(pblk) => Run::Mapped { pblk, len, unwritten: false },
            Status::Unwritten(pblk) => Run::Mapped { pblk, len, unwritten: true },
            Status::Hole | Status::Delayed => Run::Hole { len },
        })
    }

    /// What is known of `lblk` and for how many blocks (at most `max`) it holds.
    #[must_use]
    pub fn status(&self, lblk: Lblk, max: u32) -> Option<(Status, u32)> {
        let tree = self.tree.read();
        let entry = tree.last_before(lblk.0.saturating_add(1))?;
        let into = lblk.0 - entry.start;
        if into >= entry.len {
            return None;
        }
        Some((entry.status.advance(into), (entry.len - into).min(max)))
    }

    /// The first delayed block in `[from, end)`.
    #[must_use]
    pub fn next_delayed(&self, from: Lblk, end: u32) -> Option<Lblk> {
        if let Some((Status::Delayed, _)) = self.status(from, 1) {
            return (from.0 < end).then_some(from);
        }
        let tree = self.tree.read();
        let mut later = tree.between(from.0, end).iter();
        later.find(|e| e.status == Status::Delayed).map(|e| Lblk(e.start))
    }

    /// Remembers what a lookup found; the mapping did not change. Under the map lock (shared is enough). Delayed
    /// ranges inside a hole stay delayed.
    pub fn remember(&self, lblk: Lblk, run: Run) {
        self.update(|tree| match run {
            Run::Hole { len } => tree.put_around_delayed(lblk.0, len),
            Run::Mapped { len, .. } => tree.put(lblk.0, len, Status::from(run)),
        });
    }

    /// Records a change of the map. Under the exclusive map lock.
    pub fn changed(&self, lblk: Lblk, len: u32, status: Status) {
        self.update(|tree| tree.put(lblk.0, len, status));
        self.bump();
    }

    /// Marks blocks as promised to dirty data; the mapping stays a hole.
    pub fn set_delayed(&self, lblk: Lblk, len: u32) {
        self.update(|tree| tree.put(lblk.0, len, Status::Delayed));
    }

    /// Ends the delayed state in a range (dirty data was dropped); the blocks are holes now.
    pub fn clear_delayed(&self, lblk: Lblk, len: u32) {
        self.update(|tree| {
            let end = lblk.0.saturating_add(len);
            for (start, len) in tree.delayed_in(lblk.0, end) {
                tree.put(start, len, Status::Hole);
            }
        });
    }

    /// Forgets everything of a range but delayed blocks, and bumps the sequence number: the map changed in a way
    /// that the cache was not told.
    pub fn forget(&self, lblk: Lblk, len: u32) {
        self.update(|tree| {
            let end = lblk.0.saturating_add(len);
            let delayed = tree.delayed_in(lblk.0, end);
            tree.cut(lblk.0, end);
            for (start, len) in delayed {
                tree.put(start, len, Status::Delayed);
            }
        });
        self.bump();
    }

    /// Drops everything that can be looked up again.
    pub fn shrink(&self) {
        self.update(Tree::shrink);
    }

    /// Entries held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.read().entries.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bump(&self) {
        self.seq.fetch_add(1, Ordering::AcqRel);
    }

    fn update(&self, change: impl FnOnce(&mut Tree)) {
        let mut tree = self.tree.write();
        let before = tree.entries.len();
        // Dropped before the change, so that the newest knowledge stays.
        if before - tree.delayed > LIMIT || before > tree.delayed && self.budget.is_exceeded() {
            tree.shrink();
        }
        change(&mut tree);
        self.budget.change(before, tree.entries.len());
    }
}

impl Drop for ExtentStatus {
    fn drop(&mut self) {
        let held = self.tree.get_mut().entries.len();
        self.budget.change(held, 0);
    }
}

impl Tree {
    /// Where the entry that begins at `start` is, or would be.
    fn place(&self, start: u32) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&start, |e| e.start)
    }

    /// The last entry that begins before `end`.
    fn last_before(&self, end: u32) -> Option<Entry> {
        let after = self.entries.partition_point(|e| e.start < end);
        self.entries[..after].last().copied()
    }

    /// The entries that begin in `[from, end)`.
    fn between(&self, from: u32, end: u32) -> &[Entry] {
        let first = self.entries.partition_point(|e| e.start < from);
        let after = self.entries.partition_point(|e| e.start < end);
        &self.entries[first..after.max(first)]
    }

    /// Makes `[start, start + len)` one entry, merged with equal neighbours.
    fn put(&mut self, start: u32, len: u32, status: Status) {
        let end = start.saturating_add(len);
        if end <= start {
            return;
        }
        self.cut(start, end);
        let (mut first, mut status, mut last) = (start, status, end);
        if let Some(before) = self.last_before(start)
            && before.end() == start
            && before.status.advance(before.len) == status
        {
            (first, status) = (before.start, before.status);
            self.take(first);
        }
        if let Ok(at) = self.place(end)
            && let after = self.entries[at]
            && after.status == status.advance(end - first)
        {
            last = after.end();
            self.take(end);
        }
        self.insert(Entry { start: first, len: last - first, status });
    }

    /// Makes the parts of a range that are not delayed holes.
    fn put_around_delayed(&mut self, start: u32, len: u32) {
        let end = start.saturating_add(len);
        let mut at = start;
        for (from, len) in self.delayed_in(start, end) {
            self.put(at, from - at, Status::Hole);
            at = from + len;
        }
        self.put(at, end.saturating_sub(at), Status::Hole);
    }

    /// The delayed parts of `[start, end)`.
    fn delayed_in(&self, start: u32, end: u32) -> Vec<(u32, u32)> {
        if self.delayed == 0 || start >= end {
            return Vec::new();
        }
        let from = self.last_before(start.saturating_add(1)).map_or(start, |e| e.start);
        let parts = self.between(from, end).iter().filter(|e| e.status == Status::Delayed);
        parts
            .map(|e| (start.max(e.start), e.end().min(end)))
            .filter(|(s, e)| s < e)
            .map(|(s, e)| (s, e - s))
            .collect()
    }

    /// Takes `[start, end)` out; entries across its edges keep their outer parts.
    fn cut(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        // Entries do not overlap, so both ends are ascending.
        let first = self.entries.partition_point(|e| e.end() <= start);
        let after = self.entries.partition_point(|e| e.start < end);
        if first >= after {
            return;
        }
        let (head, tail) = (self.entries[first], self.entries[after - 1]);
        let cut = self.entries.drain(first..after);
        self.delayed -= cut.filter(|e| e.status == Status::Delayed).count();
        if head.start < start {
            self.insert(Entry { len: start - head.start, ..head });
        }
        if tail.end() > end {
            let status = tail.status.advance(end - tail.start);
            self.insert(Entry { start: end, len: tail.end() - end, status });
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.delayed += usize::from(entry.status == Status::Delayed);
        match self.place(entry.start) {
            Ok(there) => self.entries[there] = entry,
            Err(there) => self.entries.insert(there, entry),
        }
    }

    fn take(&mut self, at: u32) {
        if let Ok(there) = self.place(at) {
            let entry = self.entries.remove(there);
            self.delayed -= usize::from(entry.status == Status::Delayed);
        }
    }

    fn shrink(&mut self) {
        self.entries.retain(|e| e.status == Status::Delayed);
        self.entries.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests;
