//! The exported functions, by subject.

mod aio;
mod attributes;
mod descriptors;
mod directories;
mod extents;
mod ioctl;
mod limits;
mod locks;
mod mapping;
mod names;
mod open;
mod process;
mod raw;
mod read_write;
mod stdio;
mod system;
mod xattrs;

pub(crate) use mapping::{has_mappings, overlaps_mapping, serves_system_calls};
