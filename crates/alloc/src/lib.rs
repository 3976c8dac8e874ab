//! Block and inode allocation: groups, bitmaps, buddy allocator, claims, reservations.
//!
//! # The rule
//! Claim, write, publish. A [`Claim`] takes blocks in memory; the disk says that they are free until
//! [`Allocator::publish`] sets their bits in the handle that also maps them. Freed blocks are free on disk with
//! their handle, and free in memory once its transaction has committed.
//!
//! # Parts
//! | module | what |
//! |---|---|
//! | `buddy` | free clusters of one group: orders over a bitmap |
//! | `free_map` | the free clusters of a group, absent, packed or open |
//! | `index` | groups by their largest free chunk, without a lock |
//! | `group` | a group's bitmap and descriptor: read, checked, changed in a handle |
//! | `counters` | usable, promised, pending clusters; [`Reservation`] |
//! | `claim` | the search; [`Claim`]; publication |
//! | `window` | clusters taken ahead, for one file or for a thread's small files |
//! | `pending` | freed clusters until their commit; discard |
//! | `inode` | inode numbers, where directories and files go |
//! | `trim` | FITRIM, lazy zeroing of inode tables |
//! | `hold` | freed blocks that something outside may still write |
//! | `statfs`, `zones` | the numbers of statfs; blocks that no file may map |
//!
//! # Locks
//! One group's lock at a time (rank 90), never over I/O: its bitmap and descriptor buffers are read before. A
//! window's lock (rank 86) comes before a group's. Counters and the index of groups have no lock.
//!
//! An open free map takes about two bits a cluster. When all together pass [`AllocOptions::memory`], those that were not
//! used lately are closed: dropped without claims or pending frees, else packed into a few runs.

mod allocator;
mod buddy;
mod claim;
mod counters;
mod error;
mod free_map;
mod group;
mod hold;
mod index;
mod inode;
mod pending;
mod statfs;
#[cfg(test)]
mod testrand;
mod trim;
mod window;
mod zones;

pub use allocator::{AllocOptions, Allocator, ErrorSink};
pub use claim::{Claim, ClaimRequest};
pub use counters::{Privilege, Reservation};
pub use error::{AllocError, Result};
pub use hold::Hold;
pub use inode::{InodeRequest, ToFreeInode};
pub use pending::ToFree;
pub use statfs::{SpaceStats, overhead_clusters};
pub use trim::ItableZeroing;
pub use window::InodeWindow;
