//! Every on-disk structure of ext2, ext3, ext4 and jbd2: bytes to typed, validated values and back.
//!
//! No I/O, no clock, no panics on any input. On-disk layouts are `zerocopy` structures with explicit byte order
//! (ext4 is little-endian, jbd2 big-endian); what leaves this crate is validated.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acl;
pub mod bitmap;
pub mod csum;
pub mod dir;
pub mod error;
pub mod extent;
pub mod fast_commit;
pub mod features;
pub mod geometry;
pub mod group_desc;
pub mod hash;
pub mod htree;
pub mod indirect;
pub mod inline;
pub mod inode;
pub mod jbd2;
pub mod mmp;
pub mod orphan_file;
pub mod quota;
pub mod superblock;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod testing;
mod types;
pub mod xattr;

pub use csum::{Csum, CsumKind};
pub use error::{Corrupt, FormatError, Place};
pub use extent::{Extent, Index, Node, NodeMut};
pub use features::{Compat, Features, Incompat, RoCompat};
pub use geometry::{Backups, Geometry, InodeLocation};
pub use group_desc::{BgFlags, GroupDesc};
pub use inode::device::DeviceNumber;
pub use inode::{FileType, Inode, InodeFlags, InodeFormat, Timestamp};
pub use superblock::{RawSuperblock, Superblock};
pub use types::{GroupNr, Ino, Lblk, Pblk, Tid};
