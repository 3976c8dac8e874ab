//! The free map of one group in memory, in the form that its use and the memory allow.
//!
//! A map is absent as long as the disk's bitmap says the same: nothing is claimed, in a window, or freed and pending. It
//! is open, as buddies, while clusters are taken from it. When the open maps of all groups pass
//! [`AllocOptions::memory`](crate::AllocOptions::memory), those that were not used lately are closed: dropped where the
//! disk says the same, else packed into the runs that are free, of which a group that was allocated whole, or whose
//! whole file is being removed, has a few at most. A map with many runs that the disk does not know stays open.
//!
//! No locking here: the owner holds the group's lock.

use crate::buddy::{Buddy, Pieces};

/// Runs that a packed map holds at most.
const MOST_RUNS: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) enum FreeMap {
    /// Not in memory.
    #[default]
    Absent,
    /// Few runs, not searched.
    Packed(Box<Packed>),
    /// All that the search for clusters needs.
    Open(Box<Buddy>),
}

impl FreeMap {
    /// The buddies of an open map.
    pub(crate) fn buddy(&self) -> Option<&Buddy> {
        match self {
            Self::Open(buddy) => Some(buddy),
            _ => None,
        }
    }

    /// The buddies of an open map, to take from.
    pub(crate) fn buddy_mut(&mut self) -> Option<&mut Buddy> {
        match self {
            Self::Open(buddy) => Some(buddy),
            _ => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Bytes of heap that an open map takes; packed ones are few and small.
    pub(crate) fn open_bytes(&self) -> usize {
        self.buddy().map_or(0, |b| b.heap_bytes() + size_of::<Buddy>())
    }

    /// The order of the largest free chunk as the index wants it; `None` for an absent map.
    pub(crate) fn largest_order(&self) -> Option<Option<u32>> {
        match self {
            Self::Absent => None,
            Self::Packed(packed) => Some(packed.largest_order()),
            Self::Open(buddy) => Some(buddy.largest_order()),
        }
    }

    /// Packs an open map. Returns whether that was done: it has few runs.
    pub(crate) fn pack(&mut self) -> bool {
        let Some(packed) = self.buddy().and_then(Packed::of) else { return false };
        *self = Self::Packed(Box::new(packed));
        true
    }

    /// Opens a packed map. Returns whether that was done.
    pub(crate) fn open(&mut self) -> bool {
        let Self::Packed(packed) = self else { return false };
        *self = Self::Open(Box::new(packed.buddy()));
        true
    }

    /// Makes `[start, start + len)`, none of which is free, free again. Returns whether a packed map had to be opened
    /// for it; if some cluster was free already, that one is the error, and the map is of no more use.
    pub(crate) fn give(&mut self, start: u32, len: u32) -> Result<bool, u32> {
        let opened = matches!(self, Self::Packed(p) if p.is_full()) && self.open();
        match self {
            Self::Absent => panic!("a free map with claims stays in memory"),
            Self::Packed(packed) => packed.give(start, len)?,
            Self::Open(buddy) => buddy.give(start, len)?,
        }
        Ok(opened)
    }
}

/// The free runs of a group, by place; no two of them touch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Clusters of the group.
    len: u32,
    /// First cluster and the one behind the last.
    runs: Vec<(u32, u32)>,
}

impl Packed {
    /// The runs of `buddy`, if they are few and take less than half of its memory.
    fn of(buddy: &Buddy) -> Option<Self> {
        let most = MOST_RUNS.min(buddy.heap_bytes() / (2 * size_of::<(u32, u32)>()));
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(run) = buddy.next_run(at) {
            if runs.len() == most {
                return None;
            }
            runs.push((run.start, run.end));
            at = run.end;
        }
        runs.shrink_to_fit();
        Some(Self { len: buddy.len(), runs })
    }

    fn buddy(&self) -> Buddy {
        let mut buddy = Buddy::new_full(self.len);
        for &(start, end) in &self.runs {
            let given = buddy.give(start, end - start);
            debug_assert!(given.is_ok(), "no two runs touch");
        }
        buddy
    }

    fn is_full(&self) -> bool {
        self.runs.len() >= MOST_RUNS
    }

    fn largest_order(&self) -> Option<u32> {
        let orders = |&(start, end): &(u32, u32)| Pieces::new(start, end, u8::MAX).map(|(k, _)| k).max();
        self.runs.iter().filter_map(orders).max()
    }

    fn give(&mut self, start: u32, len: u32) -> Result<(), u32> {
        let end = start + len;
        assert!(len > 0 && end <= self.len, "freeing {start}+{len} of {}", self.len);
        let at = self.runs.partition_point(|run| run.1 < start);
        // The run before that touches, the run behind that does; what lies across one of them is free already.
        let before = self.runs.get(at).copied().filter(|run| run.1 == start);
        let next = at + usize::from(before.is_some());
        let behind = self.runs.get(next).copied();
        if let Some(run) = behind.filter(|run| run.0 < end) {
            return Err(run.0.max(start));
        }
        let behind = behind.filter(|run| run.0 == end);
        let joined = (before.map_or(start, |run| run.0), behind.map_or(end, |run| run.1));
        self.runs.splice(at..next + usize::from(behind.is_some()), [joined]);
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
