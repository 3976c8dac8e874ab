//! Which addresses of this process are mappings of memory files: one tree for all of them.
//!
//! Who wants to touch a caller's buffer with a lock held asks first ([`overlaps`]); who got a fault asks whose it is ([`find`]).
//! Entries change under a lock that is held for a few instructions, never over a system call.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// A piece of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) end: usize,
    /// [`UserPages::id`](crate::UserPages::id) of the mapping.
    pub(crate) map: u64,
    /// Byte of the file at the piece's start.
    pub(crate) offset: u64,
    pub(crate) page_size: usize,
}

/// Where in a file an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserPlace {
    /// [`UserPages::id`](crate::UserPages::id) of the mapping.
    pub map: u64,
    /// Page of the file.
    pub page: u32,
}

/// By first address; entries do not overlap.
static TREE: RwLock<BTreeMap<usize, Entry>> = RwLock::new(BTreeMap::new());
/// Entries in the tree: who has no mappings pays one load.
static ENTRIES: AtomicUsize = AtomicUsize::new(0);

/// Whether any of the `len` bytes at `addr` is in a mapping of a memory file. Whoever changes its own mappings meanwhile gets
/// either answer.
#[must_use]
pub fn overlaps(addr: usize, len: usize) -> bool {
    if ENTRIES.load(Ordering::Acquire) == 0 || len == 0 {
        return false;
    }
    let end = addr.saturating_add(len);
    let tree = TREE.read().unwrap_or_else(PoisonError::into_inner);
    tree.range(..end).next_back().is_some_and(|(_, entry)| entry.end > addr)
}

/// Whose memory `addr` is. `None` also while that part of the mapping is being changed; who does that wakes everybody who waits
/// there.
#[must_use]
pub fn find(addr: usize) -> Option<UserPlace> {
    let tree = TREE.read().unwrap_or_else(PoisonError::into_inner);
    let (start, entry) = tree.range(..=addr).next_back()?;
    if entry.end <= addr {
        return None;
    }
    let at = entry.offset + (addr - start) as u64;
    let page = u32::try_from(at / entry.page_size as u64).ok()?;
    Some(UserPlace { map: entry.map, page })
}

/// Every mapping that has memory in the range, by number, each once.
#[must_use]
pub fn maps_in(range: Range<usize>) -> Vec<u64> {
    let tree = TREE.read().unwrap_or_else(PoisonError::into_inner);
    let before = tree.range(..range.start).next_back().filter(|(_, entry)| entry.end > range.start);
    let inside = tree.range(range.start..range.end.max(range.start));
    let mut all: Vec<u64> = before.into_iter().chain(inside).map(|(_, entry)| entry.map).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Gives a mapping the addresses around `addr` in the range that no mapping has, as the entry that `entry` makes of them, in one step; which.
/// `None` when one has `addr`.
pub(crate) fn claim(
    range: &Range<usize>,
    addr: usize,
    entry: impl FnOnce(&Range<usize>) -> Entry,
) -> Option<Range<usize>> {
    let mut tree = TREE.write().unwrap_or_else(PoisonError::into_inner);
    let before = tree.range(..=addr).next_back().map_or(0, |(_, entry)| entry.end);
    let behind = tree.range(addr + 1..).next().map_or(usize::MAX, |(start, _)| *start);
    let gap = (before <= addr).then(|| range.start.max(before)..range.end.min(behind))?;
    tree.insert(gap.start, entry(&gap));
    ENTRIES.store(tree.len(), Ordering::Release);
    Some(gap)
}

/// Exchanges the entries of one mapping, in one step.
pub(crate) fn exchange(old: impl Iterator<Item = usize>, new: impl Iterator<Item = (usize, Entry)>) {
    let mut tree = TREE.write().unwrap_or_else(PoisonError::into_inner);
    for start in old {
        tree.remove(&start);
    }
    for (start, entry) in new {
        debug_assert!(start < entry.end, "an empty piece at {start:x}");
        let last = tree.insert(start, entry);
        debug_assert!(last.is_none(), "two pieces at {start:x}");
    }
    ENTRIES.store(tree.len(), Ordering::Release);
}
