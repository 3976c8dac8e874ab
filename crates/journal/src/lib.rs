//! The journal (jbd2) and the cache of metadata blocks.
//!
//! All metadata of a mounted filesystem passes through one [`BlockCache`]. What changes it is a [`Handle`] of the
//! [`Journal`]: the blocks that one handle changes reach the disk together or not at all. Many handles make a
//! transaction, a commit writes it to the log, a checkpoint later writes the blocks to their places.
//!
//! | part | what |
//! |---|---|
//! | [`BlockCache`], [`Buf`] | metadata blocks in memory: bounded, one read for concurrent callers |
//! | [`Journal`], [`Handle`] | transactions, credits, group commit, abort; with a log or without one |
//! | [`LogPlace`] | where the log's blocks are: an inode's extents, or an external device |
//! | [`recover`], [`pass_over`], [`Recovery`] | replay after a crash, from anything Linux writes, or a log that is none of the filesystem's |
//! | [`CommitObserver`], [`Clock`] | what a filesystem hears from the journal, and the time it is told |
//!
//! # Content of a buffer
//! A buffer's bytes are an `Arc` that a change copies only while somebody else holds it. A commit takes such a
//! reference of each block of its transaction, so the next transaction changes a copy; no block is ever "being
//! written" from the point of view of who changes it. Up to three contents exist: the current one, that of the
//! transaction being committed, that of the last committed transaction not yet written in place.
//!
//! # Locks
//! A handle is rank 60, a buffer's content rank 100 (never over I/O), the journal's state rank 110 (never over I/O, except
//! that the journal superblock has its own small lock that is held while it is written). Starting and finishing a
//! handle is one atomic operation each, as long as there is room and no transaction is being closed.
//!
//! # What is durable when
//! [`Journal::wait_commit`] returns after the transaction's commit block is on stable storage; the blocks before it were
//! flushed first, on the log's device and on the filesystem's.

mod cache;
mod checkpoint;
mod commit;
mod error;
mod handle;
mod journal;
mod log;
mod mutant;
mod options;
mod recovery;
mod running;
mod thread;

pub use cache::{BlockCache, Buf, CacheStats, WriteOrder};
pub use error::{Error, Result};
pub use handle::Handle;
pub use journal::{CommitObserver, Flushed, Journal, JournalStats};
pub use log::{LogPlace, LogRun};
#[cfg(feature = "shuttle")]
pub use mutant::Mutant;
pub use options::{Clock, JournalOptions, SystemClock, WantedFeatures};
pub use recovery::{Recovery, pass_over, recover};
