//! The ranks of all locks. What is held may be followed only by a larger number.

use std::fmt;

/// A lock's place in the order. Whoever holds a rank may wait only for a larger one.
///
/// Numbers are those of `docs/locking.md`; two of one rank go by inode number, then index (an ascending key).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8);

impl Rank {
    /// A change of the mount as a whole, from its first look to its end, one at a time: remount, freeze, thaw, an orderly shutdown,
    /// unmount.
    pub const MOUNT: Self = Self(5);
    /// What multiple-mount protection holds; over its reading and writing of the block.
    pub const MMP: Self = Self(6);
    /// Freeze, write level: any change by a caller.
    pub const FREEZE_WRITE: Self = Self(10);
    /// Rename lock: a rename between directories, of anything; ancestry is checked under it.
    pub const RENAME: Self = Self(15);
    /// Inode lock: directories first, ancestor before descendant, unrelated ones by number (only under
    /// [`Self::RENAME`]); then children that are directories, then other inodes, by number.
    pub const INODE: Self = Self(20);
    /// Freeze, fault level: write faults. A fault worker starts here and never takes [`Self::INODE`].
    pub const FREEZE_FAULT: Self = Self(25);
    /// Freeze, internal level: fsync, eviction, background writeback from claim to publication, discard, lazy work.
    pub const FREEZE_INTERNAL: Self = Self(28);
    /// A flush of times that changed in memory only: one at a time, inside the freeze gate or with it closed.
    pub const FLUSH_TIMES: Self = Self(29);
    /// `invalidate_lock`. Shared: fault, fill, read-ahead (never taken twice: the guard is passed). Exclusive:
    /// truncate, punch, zero, collapse, insert, DAX switch, by who holds [`Self::INODE`] exclusively and has drained
    /// direct I/O (eviction of a dead inode excepted).
    pub const INVALIDATE: Self = Self(30);
    /// Writeback gate of an inode; writeback and publication take neither [`Self::INODE`] nor [`Self::INVALIDATE`].
    pub const WRITEBACK_GATE: Self = Self(40);
    /// Page locks, ascending index, and page-range entries of direct I/O. Owned by an operation, not a thread. Only
    /// an ascending lock may block; every other one is a try.
    pub const PAGE: Self = Self(50);
    /// Waiting for a page's writeback: a state, not a lock. Set under [`Self::PAGE`], ended only after publication;
    /// never waited for with a handle or anything above.
    pub const PAGE_WRITEBACK: Self = Self(55);
    /// Journal handle. Starting or restarting one, waiting for log space, for a commit, or for the journal to be
    /// still, all count as taking it.
    pub const HANDLE: Self = Self(60);
    /// xattr and inline-data lock; these do not nest.
    pub const XATTR: Self = Self(70);
    /// An EA inode; its own class, not the inode lock.
    pub const EA_INODE: Self = Self(72);
    /// The tree of a quota file, to find or make an entry.
    pub const QUOTA_FILE: Self = Self(74);
    /// Extent map (and indirect map) of an inode.
    pub const EXTENT_MAP: Self = Self(80);
    /// Quota entries.
    pub const QUOTA: Self = Self(82);
    /// Map of a quota or EA inode.
    pub const META_MAP: Self = Self(84);
    /// Preallocation window of a file or a thread; never two, never after a group.
    pub const PREALLOC: Self = Self(86);
    /// What is promised to a file's delayed blocks; before the counters that the promise is made from.
    pub const PROMISE: Self = Self(88);
    /// Allocation group; one at a time, its bitmaps are read in before.
    pub const GROUP: Self = Self(90);
    /// Reservation counters, after the group.
    pub const RESERVATION: Self = Self(92);
    /// Orphan list, or a slot of the orphan file.
    pub const ORPHAN: Self = Self(95);
    /// Inode cache shard; never held over I/O.
    pub const INODE_SHARD: Self = Self(98);
    /// Metadata buffer: for one change or copy of one buffer, never two, never over I/O.
    pub const BUFFER: Self = Self(100);
    /// Journal state.
    pub const JOURNAL_STATE: Self = Self(110);
    /// A cache's own structure (index of pages, of buffers) under which a [`Self::LEAF`] may be taken; never over I/O.
    pub const CACHE: Self = Self(250);
    /// Leaves: caches, statistics, states inside a device. Nothing is taken under one.
    pub const LEAF: Self = Self(255);

    /// The rank's number.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.0
    }

    /// What the rank stands for.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            5 => "mount as a whole",
            6 => "multiple-mount protection",
            10 => "freeze, write level",
            15 => "rename lock",
            20 => "inode lock",
            25 => "freeze, fault level",
            28 => "freeze, internal level",
            29 => "flush of times",
            30 => "invalidate_lock",
            40 => "writeback gate",
            50 => "page lock",
            55 => "page writeback",
            60 => "journal handle",
            70 => "xattr lock",
            72 => "EA inode",
            74 => "tree of a quota file",
            80 => "extent map",
            82 => "quota entries",
            84 => "map of a quota or EA inode",
            86 => "preallocation window",
            88 => "promise to delayed blocks",
            90 => "allocation group",
            92 => "reservation counters",
            95 => "orphan list",
            98 => "inode cache shard",
            100 => "metadata buffer",
            110 => "journal state",
            250 => "cache structure",
            255 => "leaf",
            _ => "unnamed",
        }
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rank {})", self.name(), self.level())
    }
}
