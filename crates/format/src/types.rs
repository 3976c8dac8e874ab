//! Newtypes for the numbers that ext4 counts things with. Arithmetic on them is explicit and checked where a
//! value may come from disk.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// `self + n`, or `None` past the type's range.
            #[must_use]
            pub const fn checked_add(self, n: $inner) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Logical block number: a block's place in a file, in filesystem blocks.
    Lblk(u32), "lblk"
}
number! {
    /// Physical block number: a block's place on the device, in filesystem blocks from the filesystem's start.
    Pblk(u64), "block"
}
number! {
    /// Inode number; the first inode is 1, 0 means "none".
    Ino(u32), "inode"
}
number! {
    /// Block group number, from 0.
    GroupNr(u32), "group"
}

impl Ino {
    /// The bad-blocks inode.
    pub const BAD_BLOCKS: Self = Self(1);
    /// The root directory.
    pub const ROOT: Self = Self(2);
    /// The reserved-GDT (resize) inode.
    pub const RESIZE: Self = Self(7);
    /// The usual journal inode; the superblock's `s_journal_inum` is what counts.
    pub const JOURNAL: Self = Self(8);
}

/// A journal transaction's sequence number. It wraps; compare with [`Tid::is_after`] only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Tid(pub u32);

impl Tid {
    /// Whether `self` is later than `other`, by the wrapping rule of jbd2's sequence numbers.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 > 0
    }

    /// The next sequence number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tid {}", self.0)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
