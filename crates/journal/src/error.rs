//! What can go wrong.

use std::io;
use std::sync::Arc;

use extant_format::Pblk;
use extant_format::jbd2::SuperblockError;
use thiserror::Error;

/// The result of the journal's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the metadata cache or the journal. Cloned to everybody who waited for the same thing.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A metadata block could not be read.
    #[error("cannot read {pblk}: {source}")]
    Read {
        /// The block.
        pblk: Pblk,
        /// What the device said.
        source: Arc<io::Error>,
    },
    /// A metadata block could not be written in place.
    #[error("cannot write {pblk}: {source}")]
    Write {
        /// The first block of the write.
        pblk: Pblk,
        /// What the device said.
        source: Arc<io::Error>,
    },
    /// The log could not be read or written.
    #[error("cannot {what} the journal at its block {block}: {source}")]
    Log {
        /// Read or write.
        what: &'static str,
        /// Block of the journal.
        block: u32,
        /// What the device said.
        source: Arc<io::Error>,
    },
    /// The device could not be flushed.
    #[error("cannot flush the device: {0}")]
    Flush(Arc<io::Error>),
    /// A block number past the filesystem's end.
    #[error("{pblk} lies outside the filesystem of {blocks} blocks")]
    OutOfRange {
        /// The block asked for.
        pblk: Pblk,
        /// Blocks there are.
        blocks: u64,
    },
    /// The journal has been aborted: nothing more is written.
    #[error("the journal has been aborted (errno {0})")]
    Aborted(i32),
    /// A handle asked for more than any transaction can hold.
    #[error("{wanted} blocks in one operation, but a transaction of this journal holds {most}")]
    TooManyCredits {
        /// Credits asked for.
        wanted: u32,
        /// The most a handle gets.
        most: u32,
    },
    /// A handle changed more blocks than it had asked for, and the transaction has no room left.
    #[error("the operation changes more than its {0} blocks, and the transaction is full")]
    OutOfCredits(u32),
    /// A block that has been freed was changed.
    #[error("{0} was freed and then changed")]
    Forgotten(Pblk),
    /// A block is part of a transaction and cannot be written outside of it.
    #[error("{0} is part of a transaction")]
    Journalled(Pblk),
    /// A block number that does not fit the journal's 32-bit tags.
    #[error("{0} does not fit this journal's 32-bit block numbers")]
    Not64Bit(Pblk),
    /// The journal superblock was refused.
    #[error("journal superblock: {0}")]
    Superblock(#[from] SuperblockError),
    /// The journal's place is damaged: the inode has a hole, an extent lies outside, a UUID differs.
    #[error("journal: {0}")]
    Place(String),
    /// The log is damaged in its middle: a transaction that was committed cannot be read.
    #[error("journal: transaction {tid} at journal block {block}: {what}")]
    Damaged {
        /// The transaction.
        tid: u32,
        /// Block of the journal.
        block: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// Like [`Self::Damaged`], found by a checksum.
    #[error("journal: transaction {tid} at journal block {block}: bad checksum of {what}")]
    Checksum {
        /// The transaction.
        tid: u32,
        /// Block of the journal.
        block: u32,
        /// What the checksum covers.
        what: &'static str,
    },
    /// The log has not been recovered, or holds transactions, where an empty one is needed.
    #[error("the journal holds transactions and must be recovered first")]
    NeedsRecovery,
    /// A thread could not be started.
    #[error("cannot start the commit thread: {0}")]
    Thread(Arc<io::Error>),
}

impl Error {
    /// The errno that a system call would fail with.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EROFS: i32 = 30;
        const ENOSPC: i32 = 28;
        const EBADMSG: i32 = 74;
        const EUCLEAN: i32 = 117;
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Log { source, .. } => {
                source.raw_os_error().unwrap_or(EIO)
            }
            Self::Flush(source) | Self::Thread(source) => source.raw_os_error().unwrap_or(EIO),
            Self::Aborted(_) | Self::NeedsRecovery => EROFS,
            Self::TooManyCredits { .. } | Self::OutOfCredits(_) => ENOSPC,
            Self::Superblock(SuperblockError::Checksum { .. }) | Self::Checksum { .. } => EBADMSG,
            Self::OutOfRange { .. }
            | Self::Superblock(_)
            | Self::Place(_)
            | Self::Damaged { .. }
            | Self::Forgotten(_)
            | Self::Journalled(_)
            | Self::Not64Bit(_) => EUCLEAN,
        }
    }
}
