//! Guards that the schedule tests take away, one at a time, to see that the tests notice. Only with the feature `shuttle`; otherwise
//! the question `without!(fs, Guard)` is the constant `false`.

/// A guard of the filesystem that can be taken away.
#[cfg(feature = "shuttle")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All guards are there.
    #[default]
    None,
    /// Readers look at the block map while inline content moves to blocks.
    InlineMove,
    /// A writer holds the lock of page 0 while it changes content in the inode.
    InlineWrite,
    /// A value is read from an inode of its own after the lock over the attributes was given up.
    XattrHeld,
    /// The references of a value are counted and recorded in one.
    ValueCounted,
    /// A value that died before a new reference to it was counted is taken off the record of orphans.
    ValueRevived,
    /// A directory is unlocked between the look for a name's place and its entry there.
    PlanHeld,
    /// Nothing of a file is written while its content is copied to other blocks and these enter its map.
    MoveGate,
    /// Holes get blocks under the gate.
    AllocateGated,
    /// Blocks that are punched out leave the map under the gate under which they left the cache.
    PunchGated,
    /// The same of blocks that are zeroed and become unwritten ones.
    ZeroGated,
    /// Unwritten blocks become written ones that hold zeros under the gate.
    WrittenZerosGated,
    /// A direct write of a part of a block goes through the cache, under the exclusive inode lock.
    UnalignedCached,
    /// What went through the cache for that is on the device when the call returns.
    FallbackWritten,
    /// A remount for reading counts pins once more when none can be made.
    PinsCounted,
    /// Nobody remounts while the filesystem is being frozen.
    FreezeAlone,
    /// A change of the mode waits for pins with nothing held.
    FlipWaitsUnlocked,
    /// Who holds a directory waits for one in it only when the root is known to be above.
    RootAbove,
    /// Who looks at a directory that leaves its inode is told its parent.
    LeavingSeen,
    /// What is above a directory that was removed meanwhile may be gone too.
    GoneAbove,
}

/// Whether the guard named is taken away in this run.
#[cfg(feature = "shuttle")]
macro_rules! without {
    ($fs:expr, $mutant:ident) => {
        $fs.mutant == $crate::mutant::Mutant::$mutant
    };
}

/// Whether the guard named is taken away in this run: never, in the product.
#[cfg(not(feature = "shuttle"))]
macro_rules! without {
    ($fs:expr, $mutant:ident) => {
        false
    };
}

pub(crate) use without;
