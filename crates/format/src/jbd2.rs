//! The journal's on-disk format (jbd2). Every field is big-endian.
//!
//! A journal is a run of blocks: a superblock, then a circular log of transactions. A transaction is any mix of
//! descriptor blocks (each followed by the blocks its tags name) and revoke blocks, closed by one commit block.
//! Four layouts of the tags exist, chosen by the feature bits in the journal superblock; [`LogFormat`] holds that choice and
//! is what the log is read and written with.
//!
//! | part | what |
//! |---|---|
//! | [`Superblock`] | the journal superblock, version 1 and 2 |
//! | [`LogFormat`] | headers, tags, revoke records, commit records, checksums under one set of features |
//! | [`raw`] | the byte layouts |
//!
//! Source: `Documentation/filesystems/ext4/journal.rst`; where it is silent (the tag size with version-2 checksums, what
//! the checksums cover, the fields at 0x54 and 0x58), images written by the kernel and read by debugfs.

mod log;
pub mod raw;
mod superblock;

pub use log::{
    BlockType, CommitRecord, DescriptorWriter, Header, LogFormat, RevokeWriter, Tag, TagFlags, TagForm, Tags,
    escape, is_escapable,
};
pub use superblock::{
    ChecksumType, CompatFeatures, DEFAULT_FAST_COMMIT_BLOCKS, IncompatFeatures, MAX_USERS, MIN_LOG_BLOCKS,
    NewJournal, SUPERBLOCK_SIZE, Superblock, SuperblockError, SuperblockVersion,
};

/// The number every journal control block starts with.
pub const MAGIC: u32 = 0xC03B_3998;

/// The reflected CRC-32C without the final inversion, as ext4 and jbd2 chain it.
pub(crate) fn crc32c_raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests;
