//! Every on-disk structure of ext2, ext3, ext4 and jbd2: bytes to typed, validated values and back.
//!
//! No I/O, no clock, no panics on any input. On-disk layouts are `zerocopy` structures with explicit byte order
//! (ext4 is little-endian, jbd2 big-endian); what leaves this crate is validated.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod jbd2;
mod types;

pub use types::{GroupNr, Ino, Lblk, Pblk, Tid};
