//! What can go wrong with a map.

use extant_alloc::AllocError;
use extant_format::{FormatError, Ino, Lblk, Pblk};

/// An error of a map.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A node of the tree is damaged; the error names inode and block.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A mapping to blocks that are no data blocks: outside the filesystem, or its own metadata.
    #[error("{ino:?}: block {lblk} maps to {pblk}+{len}, which are not data blocks")]
    NotData {
        /// The inode.
        ino: Ino,
        /// The file's block.
        lblk: Lblk,
        /// The block it maps to.
        pblk: Pblk,
        /// Blocks in the run.
        len: u32,
    },
    /// A range that should be a hole is mapped, or the other way round.
    #[error("{ino:?}: blocks from {lblk} are mapped already, or not as expected")]
    Overlap {
        /// The inode.
        ino: Ino,
        /// The first such block.
        lblk: Lblk,
    },
    /// Past the last block that this kind of map reaches (EFBIG).
    #[error("{ino:?}: block {lblk} is beyond what the file's map can hold")]
    TooBig {
        /// The inode.
        ino: Ino,
        /// The block.
        lblk: u64,
    },
    /// Indirect maps have no unwritten blocks (EOPNOTSUPP).
    #[error("{ino:?}: a file without extents cannot hold unwritten blocks")]
    NoUnwritten {
        /// The inode.
        ino: Ino,
    },
    /// The allocator's.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The journal's or the metadata cache's.
    #[error(transparent)]
    Journal(#[from] extant_journal::Error),
}

/// Result of a map function.
pub type Result<T> = std::result::Result<T, MapError>;
