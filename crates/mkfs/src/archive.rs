//! Reading tar archives, for whoever fills an image from one: ustar, PAX, GNU's and the old format.
//!
//! | part | does |
//! |---|---|
//! | `members` | member after member: headers, checked, as what they say |
//! | `packing` | gzip, zstd, xz |
//! | [`pax`] | records of PAX headers, both ways: keys, lengths, times |
//! | `acl_text` | access control lists as text, both ways |
//! | `sparse` | where the data of members with holes is |
//!
//! Headers are not taken through the `tar` crate's iterator: it looks for PAX records between newlines, but values may
//! hold newlines (an access control list does), and then a piece of a value would pass for a path or a size.
//!
//! Sources: POSIX pax(1); GNU tar's manual, appendices "Tar Internals" and "Sparse Formats"; what GNU tar 1.34 writes.

mod acl_text;
mod members;
mod packing;
pub mod pax;
mod sparse;

pub use acl_text::acl_to_text;
pub use members::{Input, Member, MemberKind, Members};
pub(crate) use packing::Packing;
pub use packing::Unpacked;
pub use sparse::Data;
pub(crate) use sparse::add_data;
