//! What can go wrong in allocation.

use extant_format::{FormatError, GroupNr, Ino, Pblk, Tid};
use extant_journal::Error as JournalError;

/// An error of the allocator.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// Not enough free clusters for the caller's rights (ENOSPC). Blocks freed in transaction `pending` become
    /// usable once it has committed: wait for it without any lock and ask once more.
    #[error("no space left{}", if pending.is_some() { " until the next commit" } else { "" })]
    NoSpace {
        /// The newest transaction that frees blocks.
        pending: Option<Tid>,
    },
    /// No free inode (ENOSPC).
    #[error("no free inodes left")]
    NoInodes,
    /// A bitmap or descriptor is wrong; its group takes no more part in allocation.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Blocks to be freed or used that are no data blocks: outside the filesystem, or its own metadata.
    #[error("blocks {pblk}+{len} are not data blocks of the filesystem")]
    NotData {
        /// The first block.
        pblk: Pblk,
        /// How many.
        len: u64,
    },
    /// An inode number that is reserved or does not exist.
    #[error("{ino:?} is not an inode that can be freed")]
    NotInode {
        /// The number.
        ino: Ino,
    },
    /// A group whose bitmap was found wrong before.
    #[error("{group:?} has a corrupt bitmap")]
    CorruptGroup {
        /// The group.
        group: GroupNr,
    },
    /// The journal or the metadata cache failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The device failed.
    #[error("device: {0}")]
    Device(#[from] std::io::Error),
}

/// Result of an allocator function.
pub type Result<T> = std::result::Result<T, AllocError>;
