//! The ranks of all locks. What is held may be followed only by a larger number.

use std::fmt;

/// A lock's place in the order. Whoever holds a rank may wait only for a larger one.
///
/// Numbers are those of `docs/locking.md`; two of one rank go by inode number, then index (an ascending key).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    level: u16,
    name: &'static str,
}

impl Rank {
    /// Freeze, write level: any change by a caller.
    pub const FREEZE_WRITE: Self = Self::new(10, "freeze, write level");
    /// Rename lock: a rename between directories, of anything; ancestry is checked under it.
    pub const RENAME: Self = Self::new(15, "rename lock");
    /// Inode lock: directories first, ancestor before descendant, unrelated ones by number (only under
    /// [`Self::RENAME`]); then children that are directories, then other inodes, by number.
    pub const INODE: Self = Self::new(20, "inode lock");
    /// Freeze, fault level: write faults. A fault worker starts here and never takes [`Self::INODE`].
    pub const FREEZE_FAULT: Self = Self::new(25, "freeze, fault level");
    /// Freeze, internal level: fsync, eviction, background writeback from claim to publication, discard, lazy work.
    pub const FREEZE_INTERNAL: Self = Self::new(28, "freeze, internal level");
    /// `invalidate_lock`. Shared: fault, fill, read-ahead (never taken twice: the guard is passed). Exclusive:
    /// truncate, punch, zero, collapse, insert, DAX switch, by who holds [`Self::INODE`] exclusively and has drained
    /// direct I/O (eviction of a dead inode excepted).
    pub const INVALIDATE: Self = Self::new(30, "invalidate_lock");
    /// Writeback gate of an inode; writeback and publication take neither [`Self::INODE`] nor [`Self::INVALIDATE`].
    pub const WRITEBACK_GATE: Self = Self::new(40, "writeback gate");
    /// Page locks, ascending index, and page-range entries of direct I/O. Owned by an operation, not a thread. Only
    /// an ascending lock may block; every other one is a try.
    pub const PAGE: Self = Self::new(50, "page lock");
    /// Waiting for a page's writeback: a state, not a lock. Set under [`Self::PAGE`], ended only after publication;
    /// never waited for with a handle or anything above.
    pub const PAGE_WRITEBACK: Self = Self::new(55, "page writeback");
    /// Journal handle. Starting or restarting one, waiting for log space, for a commit, or for the journal to be
    /// still, all count as taking it.
    pub const HANDLE: Self = Self::new(60, "journal handle");
    /// xattr and inline-data lock; these do not nest.
    pub const XATTR: Self = Self::new(70, "xattr lock");
    /// An EA inode; its own class, not the inode lock.
    pub const EA_INODE: Self = Self::new(72, "EA inode");
    /// Extent map (and indirect map) of an inode.
    pub const EXTENT_MAP: Self = Self::new(80, "extent map");
    /// Quota entries.
    pub const QUOTA: Self = Self::new(82, "quota entries");
    /// Map of a quota or EA inode.
    pub const META_MAP: Self = Self::new(84, "map of a quota or EA inode");
    /// Preallocation window of a file or a thread; never two, never after a group.
    pub const PREALLOC: Self = Self::new(86, "preallocation window");
    /// Allocation group; one at a time, its bitmaps are read in before.
    pub const GROUP: Self = Self::new(90, "allocation group");
    /// Reservation counters, after the group.
    pub const RESERVATION: Self = Self::new(92, "reservation counters");
    /// Orphan list, or a slot of the orphan file.
    pub const ORPHAN: Self = Self::new(95, "orphan list");
    /// Inode cache shard; never held over I/O.
    pub const INODE_SHARD: Self = Self::new(98, "inode cache shard");
    /// Metadata buffer: for one change or copy of one buffer, never two, never over I/O.
    pub const BUFFER: Self = Self::new(100, "metadata buffer");
    /// Journal state.
    pub const JOURNAL_STATE: Self = Self::new(110, "journal state");
    /// A cache's own structure (index of pages, of buffers) under which a [`Self::LEAF`] may be taken; never over I/O.
    pub const CACHE: Self = Self::new(250, "cache structure");
    /// Leaves: caches, statistics, states inside a device. Nothing is taken under one.
    pub const LEAF: Self = Self::new(255, "leaf");

    const fn new(level: u16, name: &'static str) -> Self {
        Self { level, name }
    }

    /// The rank's number.
    #[must_use]
    pub const fn level(self) -> u16 {
        self.level
    }

    /// What the rank stands for.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rank {})", self.name, self.level)
    }
}
