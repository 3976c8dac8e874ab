//! What can be wrong with bytes from a disk: where, what, with which values.

use core::fmt;

use crate::features::Incompat;
use crate::types::{GroupNr, Ino, Lblk, Pblk};

/// A failure to decode, check or change an on-disk structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The structure contradicts itself or the filesystem's geometry.
    #[error("{place}: {kind}")]
    Corrupt {
        /// The structure.
        place: Place,
        /// What is wrong with it.
        kind: Corrupt,
    },
    /// The stored checksum is not that of the contents.
    #[error("{place}: bad checksum {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// The structure.
        place: Place,
        /// As found on disk.
        stored: u32,
        /// Of the bytes on disk.
        computed: u32,
    },
    /// Incompatible features that this crate does not know.
    #[error("unsupported incompatible features: {0}")]
    Incompatible(Incompat),
    /// A change that does not fit the structure (a caller checks for room first).
    #[error("{place}: no room ({have} of {max} entries used)")]
    Full {
        /// The structure.
        place: Place,
        /// Entries in use.
        have: u32,
        /// Entries that fit.
        max: u32,
    },
    /// A value that the on-disk field cannot hold.
    #[error("{field} cannot hold {value}")]
    TooBig {
        /// Kernel name of the field.
        field: &'static str,
        /// The value.
        value: u64,
    },
}

impl FormatError {
    /// [`FormatError::Corrupt`] in one word.
    #[must_use]
    pub const fn corrupt(place: Place, kind: Corrupt) -> Self {
        Self::Corrupt { place, kind }
    }
}

/// Which structure an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock or a backup.
    Superblock,
    /// A group's descriptor.
    GroupDesc(GroupNr),
    /// A group's block bitmap.
    BlockBitmap(GroupNr),
    /// A group's inode bitmap.
    InodeBitmap(GroupNr),
    /// An inode.
    Inode(Ino),
    /// A node of an inode's extent tree; `None` is the root in the inode.
    ExtentNode(Ino, Option<Pblk>),
    /// An indirect block of an inode.
    IndirectBlock(Ino, Pblk),
    /// A directory block, by its place in the directory.
    DirBlock(Ino, Lblk),
    /// Inline data of an inode.
    InlineData(Ino),
    /// Extended attributes inside an inode.
    InodeXattr(Ino),
    /// A block of extended attributes.
    XattrBlock(Pblk),
    /// The multiple-mount-protection block.
    Mmp(Pblk),
    /// A block of the orphan file.
    OrphanFile(Lblk),
    /// A quota file's block.
    Quota(Ino, Lblk),
    /// A block of the journal, by its place in the journal.
    Journal(u32),
    /// Any block.
    Block(Pblk),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::GroupDesc(g) => write!(f, "descriptor of group {g}"),
            Self::BlockBitmap(g) => write!(f, "block bitmap of group {g}"),
            Self::InodeBitmap(g) => write!(f, "inode bitmap of group {g}"),
            Self::Inode(i) => write!(f, "inode {i}"),
            Self::ExtentNode(i, None) => write!(f, "extent root of inode {i}"),
            Self::ExtentNode(i, Some(b)) => write!(f, "extent block {b} of inode {i}"),
            Self::IndirectBlock(i, b) => write!(f, "indirect block {b} of inode {i}"),
            Self::DirBlock(i, l) => write!(f, "block {l} of directory inode {i}"),
            Self::InlineData(i) => write!(f, "inline data of inode {i}"),
            Self::InodeXattr(i) => write!(f, "extended attributes in inode {i}"),
            Self::XattrBlock(b) => write!(f, "extended attribute block {b}"),
            Self::Mmp(b) => write!(f, "multiple-mount-protection block {b}"),
            Self::OrphanFile(l) => write!(f, "block {l} of the orphan file"),
            Self::Quota(i, l) => write!(f, "block {l} of quota inode {i}"),
            Self::Journal(b) => write!(f, "journal block {b}"),
            Self::Block(b) => write!(f, "block {b}"),
        }
    }
}

/// What is wrong with a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The magic number is another one.
    #[error("magic number is {found:#x}, not {expected:#x}")]
    Magic {
        /// As found.
        found: u32,
        /// As it should be.
        expected: u32,
    },
    /// Fewer bytes than the structure needs.
    #[error("{have} bytes, {need} needed")]
    Short {
        /// Bytes given.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// A field has a value outside what the format allows.
    #[error("{field} is {value}, allowed is {min} to {max}")]
    Range {
        /// Kernel name of the field.
        field: &'static str,
        /// As found.
        value: u64,
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
    },
    /// A field has a value that contradicts others.
    #[error("{field} is {value}, must be {expected}")]
    Mismatch {
        /// Kernel name of the field.
        field: &'static str,
        /// As found.
        value: u64,
        /// As the other fields say.
        expected: u64,
    },
    /// A field that must be a power of two is not.
    #[error("{field} is {value}, not a power of two")]
    NotPowerOfTwo {
        /// Kernel name of the field.
        field: &'static str,
        /// As found.
        value: u64,
    },
    /// A block number outside the filesystem.
    #[error("{field} names block {block}, outside the filesystem's blocks {first} to {last}")]
    BlockOutside {
        /// Kernel name of the field.
        field: &'static str,
        /// As found.
        block: u64,
        /// First block of the filesystem.
        first: u64,
        /// Last block of the filesystem.
        last: u64,
    },
    /// Features that exclude each other, or one that needs another.
    #[error("features {a} and {b} {relation}")]
    Features {
        /// One feature.
        a: &'static str,
        /// The other.
        b: &'static str,
        /// "exclude each other" or "go together".
        relation: &'static str,
    },
    /// Entries are not in ascending order, or overlap.
    #[error("{what} {index} at {value} does not follow {previous}")]
    Order {
        /// The kind of entry.
        what: &'static str,
        /// Its place in the structure.
        index: u32,
        /// Its key.
        value: u64,
        /// The end of the one before.
        previous: u64,
    },
    /// Bits of a bitmap were already as a change wanted to make them.
    #[error("bit {bit} is {}", if *set { "already set" } else { "already clear" })]
    Bit {
        /// Number of the bit in the bitmap.
        bit: u32,
        /// Its value.
        set: bool,
    },
    /// Blocks that belong to this structure belong to another one too.
    #[error("some of its blocks are another structure's too")]
    Overlap,
    /// The file type bits of `i_mode` mean nothing.
    #[error("i_mode is {mode:#o}, no known file type")]
    FileType {
        /// As found.
        mode: u16,
    },
}
