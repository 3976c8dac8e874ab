//! The journal superblock: decoded, validated, and encoded back without losing bytes this code does not know.

use alloc::vec::Vec;
use bitflags::bitflags;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::raw::JournalSuperblock;
use super::{BlockType, LogFormat, MAGIC, TagForm, crc32c_raw};
use crate::Tid;

/// Bytes of the journal superblock; it stands at the start of its block.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// The shortest journal Linux accepts, in blocks (`JBD2_MIN_JOURNAL_BLOCKS`; mke2fs refuses less).
pub const MIN_LOG_BLOCKS: u32 = 1024;
/// Length of the fast-commit area when `s_num_fc_blks` is zero, in blocks.
pub const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;
/// Filesystems that can share an external journal (`JBD2_USERS_MAX`).
pub const MAX_USERS: u32 = 48;

bitflags! {
    /// `s_feature_compat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct CompatFeatures: u32 {
        /// `JBD2_FEATURE_COMPAT_CHECKSUM`: the commit block carries a CRC-32 of the transaction's blocks.
        const CHECKSUM = 0x1;
        /// A bit this code does not know.
        const _ = !0;
    }
}

bitflags! {
    /// `s_feature_incompat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct IncompatFeatures: u32 {
        /// Revoke blocks may occur.
        const REVOKE = 0x1;
        /// Block numbers are 64 bits long.
        const BIT64 = 0x2;
        /// The commit block may reach the disk before the blocks it commits.
        const ASYNC_COMMIT = 0x4;
        /// Checksums of version 2: in control blocks, and 16 bits in each tag.
        const CSUM_V2 = 0x8;
        /// Checksums of version 3: in control blocks, and 32 bits in each tag.
        const CSUM_V3 = 0x10;
        /// The end of the journal is a fast-commit area.
        const FAST_COMMIT = 0x20;
        /// A bit this code does not know.
        const _ = !0;
    }
}

impl IncompatFeatures {
    /// The features that recovery understands.
    pub const SUPPORTED: Self = Self::REVOKE
        .union(Self::BIT64)
        .union(Self::ASYNC_COMMIT)
        .union(Self::CSUM_V2)
        .union(Self::CSUM_V3)
        .union(Self::FAST_COMMIT);
}

/// Which form of superblock: version 1 has no features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockVersion {
    /// Block type 3: only the fields up to `s_errno` mean anything.
    V1,
    /// Block type 4.
    V2,
}

/// `s_checksum_type`, also used in commit blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChecksumType {
    /// No checksum.
    None = 0,
    /// CRC-32, most significant bit first.
    Crc32 = 1,
    /// CRC-32C; the only one version-2 and version-3 checksums use.
    Crc32c = 4,
}

/// Why a journal superblock was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Fewer than 1024 bytes were given.
    #[error("the journal superblock is cut short")]
    Truncated,
    /// The first word is not jbd2's magic number.
    #[error("the journal superblock's magic is {0:#010x}, not 0xc03b3998")]
    Magic(u32),
    /// The block type is neither 3 nor 4.
    #[error("the journal superblock has block type {0}")]
    BlockType(u32),
    /// `s_blocksize` is not the filesystem's block size.
    #[error("the journal's block size is {journal}, the filesystem's {filesystem}")]
    BlockSize {
        /// What the journal superblock says, in bytes.
        journal: u32,
        /// What the filesystem says, in bytes.
        filesystem: u32,
    },
    /// The log is shorter than the shortest usable one.
    #[error("the journal is {0} blocks long, too short")]
    TooShort(u32),
    /// The journal claims more blocks than it has room for.
    #[error("the journal superblock counts {claimed} blocks, but the journal has {actual}")]
    TooLong {
        /// `s_maxlen`.
        claimed: u32,
        /// Blocks there are.
        actual: u64,
    },
    /// `s_first` lies outside the journal.
    #[error("the log's first block {0} lies outside the journal")]
    First(u32),
    /// `s_start` lies outside the log.
    #[error("the log's start {0} lies outside the log")]
    Start(u32),
    /// Features this code does not know.
    #[error("unknown journal features: incompatible {incompat:#x}, read-only compatible {ro_compat:#x}")]
    Unsupported {
        /// Unknown bits of `s_feature_incompat`.
        incompat: u32,
        /// Unknown bits of `s_feature_ro_compat`.
        ro_compat: u32,
    },
    /// Feature bits that exclude each other.
    #[error("the journal has checksums of version 2 and 3 at once, or with the old transaction checksum")]
    ConflictingChecksums,
    /// `s_checksum_type` is not CRC-32C although checksums are on.
    #[error("unknown journal checksum type {0}")]
    ChecksumType(u8),
    /// The superblock's own checksum does not match.
    #[error("the journal superblock's checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the superblock.
        stored: u32,
        /// Over the superblock.
        computed: u32,
    },
    /// More users than the array has room for.
    #[error("the journal superblock counts {0} users")]
    Users(u32),
    /// The fast-commit area leaves no log.
    #[error("a fast-commit area of {0} blocks leaves too little of the journal")]
    FastCommitArea(u32),
}

/// A validated journal superblock.
///
/// Block numbers in it count from the start of the journal (inode or device). What is changed through the methods is
/// written back by [`Superblock::to_bytes`], with the checksum renewed.
#[derive(Clone, Debug)]
pub struct Superblock {
    raw: JournalSuperblock,
    version: SuperblockVersion,
}

impl Superblock {
    /// Decodes and checks the superblock in `bytes`, for a filesystem of `block_size` bytes a block and a journal of
    /// `journal_blocks` blocks.
    pub fn decode(bytes: &[u8], block_size: u32, journal_blocks: u64) -> Result<Self, SuperblockError> {
        let (raw, _) = JournalSuperblock::read_from_prefix(bytes).map_err(|_| SuperblockError::Truncated)?;
        let version = check_header(&raw)?;
        let sb = Self { raw, version };
        sb.check_features()?;
        sb.check_checksum()?;
        sb.check_geometry(block_size, journal_blocks)?;
        Ok(sb)
    }

    fn check_features(&self) -> Result<(), SuperblockError> {
        let incompat = self.incompat().difference(IncompatFeatures::SUPPORTED).bits();
        let ro_compat =
            if self.version == SuperblockVersion::V1 { 0 } else { self.raw.s_feature_ro_compat.get() };
        if incompat != 0 || ro_compat != 0 {
            return Err(SuperblockError::Unsupported { incompat, ro_compat });
        }
        let v2 = self.incompat().contains(IncompatFeatures::CSUM_V2);
        let v3 = self.incompat().contains(IncompatFeatures::CSUM_V3);
        let old = self.compat().contains(CompatFeatures::CHECKSUM);
        if (v2 && v3) || (old && (v2 || v3)) {
            return Err(SuperblockError::ConflictingChecksums);
        }
        Ok(())
    }

    fn check_checksum(&self) -> Result<(), SuperblockError> {
        if !self.has_checksums() {
            return Ok(());
        }
        if self.raw.s_checksum_type != ChecksumType::Crc32c as u8 {
            return Err(SuperblockError::ChecksumType(self.raw.s_checksum_type));
        }
        let (stored, computed) = (self.raw.s_checksum.get(), self.computed_checksum());
        if stored != computed {
            return Err(SuperblockError::Checksum { stored, computed });
        }
        Ok(())
    }

    fn check_geometry(&self, block_size: u32, journal_blocks: u64) -> Result<(), SuperblockError> {
        if self.raw.s_blocksize.get() != block_size {
            return Err(SuperblockError::BlockSize {
                journal: self.raw.s_blocksize.get(),
                filesystem: block_size,
            });
        }
        let max_len = self.max_len();
        if u64::from(max_len) > journal_blocks {
            return Err(SuperblockError::TooLong { claimed: max_len, actual: journal_blocks });
        }
        if max_len < 8 {
            return Err(SuperblockError::TooShort(max_len));
        }
        if self.first() == 0 || self.first() >= max_len {
            return Err(SuperblockError::First(self.first()));
        }
        let fc = self.fast_commit_blocks();
        match max_len.checked_sub(fc) {
            Some(end) if end > self.first().saturating_add(4) => {}
            _ if fc != 0 => return Err(SuperblockError::FastCommitArea(fc)),
            _ => return Err(SuperblockError::First(self.first())),
        }
        let start = self.start();
        if start != 0 && (start < self.first() || start >= self.log_end()) {
            return Err(SuperblockError::Start(start));
        }
        if self.version == SuperblockVersion::V2 && self.raw.s_nr_users.get() > MAX_USERS {
            return Err(SuperblockError::Users(self.raw.s_nr_users.get()));
        }
        Ok(())
    }

    /// The 1024 bytes as they go to disk, checksum renewed.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut copy = self.clone();
        if copy.has_checksums() {
            copy.raw.s_checksum.set(copy.computed_checksum());
        }
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes.copy_from_slice(copy.raw.as_bytes());
        bytes
    }

    fn computed_checksum(&self) -> u32 {
        let mut copy = self.raw;
        copy.s_checksum.set(0);
        crc32c_raw(!0, copy.as_bytes())
    }

    /// Version 1 or 2.
    #[must_use]
    pub fn version(&self) -> SuperblockVersion {
        self.version
    }

    /// Block size in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.raw.s_blocksize.get()
    }

    /// Blocks in the whole journal, superblock and fast-commit area included.
    #[must_use]
    pub fn max_len(&self) -> u32 {
        self.raw.s_maxlen.get()
    }

    /// First block of the log.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.raw.s_first.get()
    }

    /// The block past the log: where it wraps to [`Self::first`].
    #[must_use]
    pub fn log_end(&self) -> u32 {
        self.max_len() - self.fast_commit_blocks()
    }

    /// Blocks kept at the journal's end for fast commits; 0 without that feature.
    #[must_use]
    pub fn fast_commit_blocks(&self) -> u32 {
        if !self.incompat().contains(IncompatFeatures::FAST_COMMIT) {
            return 0;
        }
        match self.raw.s_num_fc_blks.get() {
            0 => DEFAULT_FAST_COMMIT_BLOCKS,
            n => n,
        }
    }

    /// The first transaction expected in the log.
    #[must_use]
    pub fn sequence(&self) -> Tid {
        Tid(self.raw.s_sequence.get())
    }

    /// Where the log's first transaction starts; 0 when the log is empty.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.raw.s_start.get()
    }

    /// Sets [`Self::sequence`] and [`Self::start`]: the log's tail. `start` 0 says that there is nothing to recover.
    pub fn set_tail(&mut self, sequence: Tid, start: u32) {
        self.raw.s_sequence.set(sequence.0);
        self.raw.s_start.set(start);
    }

    /// Says that there is nothing to recover, whatever the log holds. What is logged from here on is not continued by anything
    /// that is left in it, fast commits included: a transaction takes a block at least, so none has the sequence number that
    /// comes next.
    pub fn pass_over_log(&mut self) {
        let sequence = self.sequence().0.wrapping_add(self.max_len());
        self.set_tail(Tid(sequence), 0);
    }

    /// Forgets where the last clean unmount left the log's head (`s_head`), a hint that only Linux uses.
    pub fn clear_head(&mut self) {
        if self.version == SuperblockVersion::V2 {
            self.raw.s_head.set(0);
        }
    }

    /// The error a past abort left, as a positive errno; 0 for none. Linux stores it negative.
    #[must_use]
    pub fn errno(&self) -> u32 {
        (self.raw.s_errno.get() as i32).unsigned_abs()
    }

    /// Records an abort's errno (positive), or clears it with 0.
    pub fn set_errno(&mut self, errno: u32) {
        self.raw.s_errno.set((errno as i32).wrapping_neg() as u32);
    }

    /// `s_feature_compat`; empty in version 1.
    #[must_use]
    pub fn compat(&self) -> CompatFeatures {
        match self.version {
            SuperblockVersion::V1 => CompatFeatures::empty(),
            SuperblockVersion::V2 => CompatFeatures::from_bits_retain(self.raw.s_feature_compat.get()),
        }
    }

    /// `s_feature_incompat`; empty in version 1.
    #[must_use]
    pub fn incompat(&self) -> IncompatFeatures {
        match self.version {
            SuperblockVersion::V1 => IncompatFeatures::empty(),
            SuperblockVersion::V2 => IncompatFeatures::from_bits_retain(self.raw.s_feature_incompat.get()),
        }
    }

    /// Replaces the feature bits and sets the checksum type to match. Only for an empty log: the log's layout depends on
    /// them. Returns false, and changes nothing, for a version-1 superblock, which has none.
    pub fn set_features(&mut self, compat: CompatFeatures, incompat: IncompatFeatures) -> bool {
        if self.version == SuperblockVersion::V1 {
            return false;
        }
        self.raw.s_feature_compat.set(compat.bits());
        self.raw.s_feature_incompat.set(incompat.bits());
        self.raw.s_checksum_type = if self.has_checksums() { ChecksumType::Crc32c as u8 } else { 0 };
        if !self.has_checksums() {
            self.raw.s_checksum.set(0);
        }
        true
    }

    /// Turns a version-1 superblock into one of version 2 without features or users. Only for an empty log.
    pub fn upgrade(&mut self) {
        if self.version == SuperblockVersion::V1 {
            let bytes = self.raw.as_mut_bytes();
            bytes[core::mem::offset_of!(JournalSuperblock, s_feature_compat)..].fill(0);
            self.raw.s_header.h_blocktype.set(BlockType::SuperblockV2 as u32);
            self.version = SuperblockVersion::V2;
        }
    }

    /// The journal's UUID; the seed of every checksum in the log.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.raw.s_uuid
    }

    /// UUIDs of the filesystems that use an external journal.
    #[must_use]
    pub fn users(&self) -> Vec<[u8; 16]> {
        let count =
            if self.version == SuperblockVersion::V1 { 0 } else { self.raw.s_nr_users.get().min(MAX_USERS) };
        self.raw.s_users[..count as usize].to_vec()
    }

    /// Adds a user; false, with nothing changed, where there is no room. Only for an empty log: a version-1 superblock, which has no
    /// users, becomes one of version 2.
    pub fn add_user(&mut self, user: [u8; 16]) -> bool {
        let count = self.users().len();
        if count == self.raw.s_users.len().min(MAX_USERS as usize) {
            return false;
        }
        self.upgrade();
        self.raw.s_users[count] = user;
        self.raw.s_nr_users.set(count as u32 + 1);
        true
    }

    /// The layout of the log's blocks.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        let incompat = self.incompat();
        let tag = if incompat.contains(IncompatFeatures::CSUM_V3) {
            TagForm::V3
        } else if incompat.contains(IncompatFeatures::CSUM_V2) {
            TagForm::V2
        } else {
            TagForm::V1
        };
        LogFormat::new(
            self.block_size(),
            tag,
            incompat.contains(IncompatFeatures::BIT64),
            self.compat().contains(CompatFeatures::CHECKSUM),
            self.uuid(),
        )
    }

    /// Whether control blocks and tags carry checksums (version 2 or 3).
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.incompat().intersects(IncompatFeatures::CSUM_V2.union(IncompatFeatures::CSUM_V3))
    }
}

fn check_header(raw: &JournalSuperblock) -> Result<SuperblockVersion, SuperblockError> {
    if raw.s_header.h_magic.get() != MAGIC {
        return Err(SuperblockError::Magic(raw.s_header.h_magic.get()));
    }
    match raw.s_header.h_blocktype.get() {
        t if t == BlockType::SuperblockV1 as u32 => Ok(SuperblockVersion::V1),
        t if t == BlockType::SuperblockV2 as u32 => Ok(SuperblockVersion::V2),
        t => Err(SuperblockError::BlockType(t)),
    }
}

/// What a new journal is made with; [`NewJournal::superblock`] gives the bytes.
#[derive(Clone, Debug)]
pub struct NewJournal {
    /// Bytes a block.
    pub block_size: u32,
    /// Blocks in the whole journal.
    pub blocks: u32,
    /// Blocks of them for fast commits; 0 for none.
    pub fast_commit_blocks: u32,
    /// For an external journal: the UUID of the device, and the block its superblock stands in.
    pub external: Option<u32>,
    /// The journal's UUID: the filesystem's for an internal journal, its own for an external one.
    pub uuid: [u8; 16],
}

impl NewJournal {
    /// The superblock of an empty journal as mke2fs makes it: version 2, features only for what is asked; a mount adds
    /// the others.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        let mut raw =
            JournalSuperblock::read_from_bytes(&[0; SUPERBLOCK_SIZE]).unwrap_or_else(|_| unreachable!());
        raw.s_header.h_magic.set(MAGIC);
        raw.s_header.h_blocktype.set(BlockType::SuperblockV2 as u32);
        raw.s_blocksize.set(self.block_size);
        raw.s_maxlen.set(self.blocks);
        raw.s_first.set(self.external.unwrap_or(0) + 1);
        raw.s_sequence.set(1);
        raw.s_uuid = self.uuid;
        raw.s_nr_users.set(u32::from(self.external.is_none()));
        if self.fast_commit_blocks != 0 {
            raw.s_num_fc_blks.set(self.fast_commit_blocks);
        }
        Superblock { raw, version: SuperblockVersion::V2 }
    }
}
