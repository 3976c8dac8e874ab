//! Guards that the schedule tests take away, one at a time, to see that the tests notice. Only with the feature `shuttle`; otherwise
//! the question `without!(cache, Guard)` is the constant `false`.

/// A guard of the page cache that can be taken away.
#[cfg(feature = "shuttle")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All guards are there.
    #[default]
    None,
    /// A fault holds `invalidate_lock` shared.
    FaultShared,
    /// A read that fills pages of a mapped file, or reads ahead, holds `invalidate_lock` shared.
    FillShared,
    /// A direct write to a mapped file keeps faults away over its transfer.
    DirectExclusive,
    /// Direct I/O is over before blocks go or move, and before the mode changes (the caller's lock of the inode).
    DirectDrained,
    /// Writeback takes the right to store away before it clears the dirty state and makes its copy.
    ProtectFirst,
    /// A store becomes possible under the lock under which the page became dirty.
    InstallLocked,
    /// A store reserves the blocks that the file has, and no others.
    BlocksOfFile,
    /// A file that grows inside a page takes the right to store to the page away.
    OldEndProtected,
    /// A file that grows inside a page zeroes what was stored past its end.
    OldEndZeroed,
    /// A page that somebody refers to keeps its memory.
    LeaveUsed,
    /// A page to which a transfer may be under way keeps its memory.
    ReclaimQuiet,
    /// Direct I/O looks for what changed without a fault.
    DirectLooks,
    /// A page to which a transfer may be under way stays what it is before a direct write.
    TargetStays,
    /// Zeros that a page gets, as the file grows or is punched, have a checksum.
    GainedSummed,
    /// What changed without a fault is looked for after the mappings have lost what moves to another place in the file.
    MoveLooks,
    /// The gate is held from when blocks of a page leave the cache until they have left the map, or are unwritten there (by the caller).
    PunchGated,
    /// Before holes get blocks it is looked under the gate whether they are delayed.
    DelayedLooked,
    /// What a mapping, or a device, can store to is written from a copy.
    Snapshot,
    /// What was filled counts only if its blocks have not moved meanwhile.
    MapSeq,
    /// A pinned page stays dirty.
    PinDirty,
    /// A pin is made where store faults are kept out by who ends the mount, before he counts pins.
    PinGated,
    /// What changed without a fault is found by its checksum.
    UnseenFound,
    /// Before everything is written, files that are not dirty are looked at too, if they have had mappings.
    AllLookedAt,
    /// A checksum is kept while a transfer may be under way.
    SumsKept,
    /// Whether one is under way is asked before the page is looked at.
    QuietFirst,
    /// A page that leaves the memory of the file with all others brings along what changed of it without a fault.
    LeftWithChanges,
    /// A page that lost blocks to a range operation is shown by no mapping.
    PartHidden,
    /// Blocks of pinned pages do not move to another place in the file.
    PinSeen,
    /// What is dirty is written before its blocks move to another place in the file.
    MoveWritten,
    /// Pages leave the cache before their blocks move to another place in the file.
    MoveDropped,
    /// A fault looks again at a page that moved to the memory of the file.
    MovedMark,
    /// What a failed store fault reserved is given back.
    FaultUndone,
    /// The lock of page 0 is held while a fault moves content out of the inode.
    InlineLock,
    /// A store that moves content out of the inode gets its page with the same fault.
    FaultOnce,
    /// Whether a file is in DAX mode is looked at under `invalidate_lock`.
    DaxLookedAt,
    /// A change of the mode exchanges what mappings show.
    SwitchExchanges,
    /// It waits for pins.
    PinsAwaited,
    /// While it waits, new pins wait.
    PinsKeptOut,
    /// It looks for what changed without a fault after the mappings have lost all pages.
    SwitchLooksLast,
    /// A page of zeros is taken from all mappings before its hole gets a block.
    DaxHolesHidden,
    /// One at a time gives blocks a place.
    PlacedOnce,
    /// Who is about to give a block a place looks again whether it has one.
    PlacedLooked,
    /// What is overwritten is taken from mappings that show a copy.
    CopiesDropped,
    /// A copy, or zeros, are shown before what they are of can change.
    CopiesGated,
    /// A new block is filled before it is published.
    DaxFilled,
    /// A file in DAX mode that grows inside a page hides it and zeroes what was stored past its end.
    DaxEndHidden,
    /// A file that has too many windows leaves DAX mode when no transfer to them can be under way.
    LeftQuiet,
    /// It leaves when nobody uses it with its inode lock.
    LeftAlone,
    /// Blocks that mappings showed are not used again while a transfer to them may be under way.
    ShownHeld,
    /// Who has found no space looks again if blocks were let go of meanwhile, though none are held any more.
    SpaceCounted,
    /// That mappings showed blocks of a file is remembered when its inode may be forgotten.
    ShownRemembered,
    /// One look that sees only threads that run is not believed.
    TwoLooks,
    /// A mapping with MAP_SYNC shows the device once the map is durable.
    SyncCommitted,
    /// Whether it is, is looked at under the gate.
    SyncGated,
    /// What such a fault saw before its commit counts if nothing was taken from the file since,
    SyncTaken,
    /// of the pages that it saw,
    SyncPart,
    /// and of those that have gained no byte.
    SyncGained,
    /// A file that is mapped so does not leave DAX mode by itself.
    SyncStays,
    /// What was stored without a fault is a change of the file's bytes on the device at the same time as it is found.
    NotedAtOnce,
}

/// Whether the guard named is taken away in this run.
#[cfg(feature = "shuttle")]
macro_rules! without {
    ($cache:expr, $mutant:ident) => {
        $cache.config().mutant == $crate::mutant::Mutant::$mutant
    };
}

/// Whether the guard named is taken away in this run: never, in the product.
#[cfg(not(feature = "shuttle"))]
macro_rules! without {
    ($cache:expr, $mutant:ident) => {
        false
    };
}

pub(crate) use without;
