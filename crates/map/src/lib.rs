//! Logical to physical: extent trees, indirect maps, extent-status cache.
//!
//! [`MapFs`] has the functions; an inode's map is passed to them as a [`MapRef`] or [`MapMut`] by who holds the
//! inode's map lock (rank 80). `i_block` belongs to the caller; all other nodes are buffers of the journal's cache.
//!
//! # Reading
//! [`ExtentStatus::lookup`] needs no map lock. What it does not know, [`MapFs::lookup`] finds in the tree, and checks:
//! a damaged tree is an error that names inode and block. Each node's keys must fit its place, so no walk goes round
//! in circles.
//!
//! # Changing
//! Blocks are claimed and written before; then one handle publishes them and calls [`MapFs::insert`] or
//! [`MapFs::convert`]. Tree blocks come out of a reservation made with the data's, so publication meets no ENOSPC.
//! What can fail for other reasons (reading a node) is done before the first change of each step. Large removals stop
//! where the handle's credits end and go on in the next one.
//!
//! | module | what |
//! |---|---|
//! | `status` | the extent-status cache, its sequence number |
//! | `fs` | the interface for both kinds of map |
//! | `tree`, `edit`, `remove`, `shift` | extent trees: lookup; insert, split, merge, convert; removal; moving |
//! | `indirects` | maps of ext2 and ext3 |
//! | `credits` | worst cases: credits, tree blocks |
//! | `hold` | what a change will read, in memory before it |

mod credits;
mod edit;
mod error;
mod fs;
mod hold;
mod indirects;
mod remove;
mod shift;
mod status;
#[cfg(test)]
mod testrand;
mod tree;

pub use error::{MapError, Result};
pub use extant_format::extent::Extent;
pub use extant_format::indirect::MapKind;
pub use fs::{Content, Delta, MapFs, MapMut, MapRef, Placement, Removed, Written};
pub use shift::{MovedNodes, Shift};
pub use status::{ExtentStatus, LBLK_END, Run, Status, StatusBudget};
