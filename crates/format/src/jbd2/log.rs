//! The blocks of the log under one set of features.

use alloc::borrow::Cow;
use bitflags::bitflags;
use core::mem::size_of;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::raw::{BlockTag, BlockTag3, CommitHeader, JournalHeader, RevokeHeader};
use super::{ChecksumType, MAGIC, crc32c_raw};
use crate::{Pblk, Tid};

const HEADER_SIZE: usize = size_of::<JournalHeader>();
const TAIL_SIZE: usize = 4;
const UUID_SIZE: usize = 16;

/// What a control block is (`h_blocktype`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BlockType {
    /// Names the blocks that follow it.
    Descriptor = 1,
    /// Closes a transaction.
    Commit = 2,
    /// Journal superblock, version 1.
    SuperblockV1 = 3,
    /// Journal superblock, version 2.
    SuperblockV2 = 4,
    /// Names blocks that earlier transactions must no longer write.
    Revoke = 5,
}

/// The header of a control block of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None` for a type no version of jbd2 writes.
    pub block_type: Option<BlockType>,
    /// The transaction.
    pub sequence: Tid,
}

impl Header {
    /// The header at the start of `block`, or `None` where the magic number is missing (a data block, or unused log).
    #[must_use]
    pub fn decode(block: &[u8]) -> Option<Self> {
        let (raw, _) = JournalHeader::ref_from_prefix(block).ok()?;
        if raw.h_magic.get() != MAGIC {
            return None;
        }
        let block_type = match raw.h_blocktype.get() {
            1 => Some(BlockType::Descriptor),
            2 => Some(BlockType::Commit),
            3 => Some(BlockType::SuperblockV1),
            4 => Some(BlockType::SuperblockV2),
            5 => Some(BlockType::Revoke),
            _ => None,
        };
        Some(Self { block_type, sequence: Tid(raw.h_sequence.get()) })
    }
}

fn write_header(block: &mut [u8], block_type: BlockType, sequence: Tid) {
    let header = JournalHeader {
        h_magic: U32::new(MAGIC),
        h_blocktype: U32::new(block_type as u32),
        h_sequence: U32::new(sequence.0),
    };
    block[..HEADER_SIZE].copy_from_slice(header.as_bytes());
}

bitflags! {
    /// `t_flags` of a tag.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TagFlags: u32 {
        /// The block began with jbd2's magic number; the log has zeros there.
        const ESCAPE = 1;
        /// No UUID follows this tag.
        const SAME_UUID = 2;
        /// The block was deleted by the transaction (never written by Linux).
        const DELETED = 4;
        /// The last tag of its descriptor block.
        const LAST_TAG = 8;
        /// A bit this code does not know.
        const _ = !0;
    }
}

/// Which of the tag layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagForm {
    /// No checksums: 8 bytes, 12 with 64-bit block numbers.
    V1,
    /// 16-bit checksums: 10 bytes, 14 with 64-bit block numbers.
    V2,
    /// 32-bit checksums: 16 bytes.
    V3,
}

/// One tag of a descriptor block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Where the block belongs.
    pub pblk: Pblk,
    /// Escape and friends.
    pub flags: TagFlags,
    /// Checksum of the block: 32 bits, 16 bits, or 0, by the form.
    pub checksum: u32,
}

/// A decoded commit block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// `h_chksum_type`, unchecked.
    pub checksum_type: u8,
    /// `h_chksum_size`, in bytes, unchecked.
    pub checksum_size: u8,
    /// First word of `h_chksum`.
    pub checksum: u32,
    /// Commit time: seconds since 1970.
    pub seconds: u64,
    /// Commit time: nanoseconds.
    pub nanoseconds: u32,
}

impl CommitRecord {
    /// Reads the record of a commit block; `None` when `block` is too short.
    #[must_use]
    pub fn decode(block: &[u8]) -> Option<Self> {
        let (raw, _) = CommitHeader::ref_from_prefix(block).ok()?;
        Some(Self {
            checksum_type: raw.h_chksum_type,
            checksum_size: raw.h_chksum_size,
            checksum: raw.h_chksum[0].get(),
            seconds: raw.h_commit_sec.get(),
            nanoseconds: raw.h_commit_nsec.get(),
        })
    }

    /// Commit time as one comparable value.
    #[must_use]
    pub fn time(&self) -> (u64, u32) {
        (self.seconds, self.nanoseconds)
    }
}

/// Whether a block must be escaped in the log: it starts with jbd2's magic number.
#[must_use]
pub fn is_escapable(block: &[u8]) -> bool {
    block.first_chunk::<4>().is_some_and(|word| u32::from_be_bytes(*word) == MAGIC)
}

/// The block as the log holds it: with its first word zeroed where [`is_escapable`].
#[must_use]
pub fn escape(block: &[u8]) -> Cow<'_, [u8]> {
    if !is_escapable(block) {
        return Cow::Borrowed(block);
    }
    let mut copy = block.to_vec();
    copy[..4].fill(0);
    Cow::Owned(copy)
}

/// The layout of the log's blocks: a function of the journal's features and block size.
#[derive(Clone, Debug)]
pub struct LogFormat {
    block_size: usize,
    tag_form: TagForm,
    bit64: bool,
    transaction_crc: bool,
    uuid: [u8; 16],
    seed: u32,
}

impl LogFormat {
    /// `transaction_crc`: the old `COMPAT_CHECKSUM`. `block_size` is at least 1024.
    #[must_use]
    pub fn new(
        block_size: u32,
        tag_form: TagForm,
        bit64: bool,
        transaction_crc: bool,
        uuid: [u8; 16],
    ) -> Self {
        assert!(block_size >= 1024, "journal blocks are at least 1024 bytes");
        Self {
            block_size: block_size as usize,
            tag_form,
            bit64,
            transaction_crc,
            uuid,
            seed: crc32c_raw(!0, &uuid),
        }
    }

    /// Bytes a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Which tags.
    #[must_use]
    pub fn tag_form(&self) -> TagForm {
        self.tag_form
    }

    /// Whether the commit block carries a CRC-32 of the transaction (`COMPAT_CHECKSUM`).
    #[must_use]
    pub fn has_transaction_crc(&self) -> bool {
        self.transaction_crc
    }

    /// Whether control blocks and tags carry checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.tag_form != TagForm::V1
    }

    /// Whether block numbers above 2^32 can be journalled.
    #[must_use]
    pub fn is_64bit(&self) -> bool {
        self.bit64
    }

    fn tag_size(&self) -> usize {
        let high = if self.bit64 { 4 } else { 0 };
        match self.tag_form {
            TagForm::V1 => size_of::<BlockTag>() + high,
            TagForm::V2 => size_of::<BlockTag>() + 2 + high,
            TagForm::V3 => size_of::<BlockTag3>(),
        }
    }

    fn tail_size(&self) -> usize {
        if self.has_checksums() { TAIL_SIZE } else { 0 }
    }

    fn revoke_size(&self) -> usize {
        if self.bit64 { 8 } else { 4 }
    }

    /// Tags that fit in one descriptor block.
    #[must_use]
    pub fn tags_per_descriptor(&self) -> usize {
        (self.block_size - HEADER_SIZE - UUID_SIZE - self.tail_size()) / self.tag_size()
    }

    /// Records that fit in one revoke block.
    #[must_use]
    pub fn revokes_per_block(&self) -> usize {
        (self.block_size - size_of::<RevokeHeader>() - self.tail_size()) / self.revoke_size()
    }

    /// The checksum that a tag carries for `block` (as in the log: escaped) in transaction `sequence`; 0 without
    /// checksums.
    #[must_use]
    pub fn tag_checksum(&self, sequence: Tid, block: &[u8]) -> u32 {
        if !self.has_checksums() {
            return 0;
        }
        let sum = crc32c_raw(crc32c_raw(self.seed, &sequence.0.to_be_bytes()), block);
        if self.tag_form == TagForm::V2 { sum & 0xFFFF } else { sum }
    }

    /// The CRC-32 of `COMPAT_CHECKSUM`, continued over one more block from `sum`; it starts as all ones, and runs over descriptor
    /// and data blocks in log order.
    #[must_use]
    pub fn transaction_crc(sum: u32, block: &[u8]) -> u32 {
        const CRC: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_MPEG_2);
        // The algorithm's initial value is bit-reversed by the crate only for reflected ones; this one is not.
        let mut digest = CRC.digest_with_initial(sum);
        digest.update(block);
        digest.finalize()
    }

    /// The tags of a descriptor block, in order, up to the last one.
    #[must_use]
    pub fn tags<'a>(&self, block: &'a [u8]) -> Tags<'a> {
        let end = block.len().min(self.block_size).saturating_sub(self.tail_size());
        Tags {
            bytes: block.get(HEADER_SIZE..end).unwrap_or(&[]),
            size: self.tag_size(),
            form: self.tag_form,
            bit64: self.bit64,
        }
    }

    /// Whether the checksum at the end of a descriptor or revoke block matches (true without checksums).
    #[must_use]
    pub fn tail_checksum_ok(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let Some((body, tail)) = block.split_last_chunk::<TAIL_SIZE>() else { return false };
        u32::from_be_bytes(*tail) == self.tail_checksum(body)
    }

    fn tail_checksum(&self, body: &[u8]) -> u32 {
        crc32c_raw(crc32c_raw(self.seed, body), &[0; TAIL_SIZE])
    }

    fn write_tail(&self, block: &mut [u8]) {
        if self.has_checksums() {
            let (body, tail) = block.split_at_mut(self.block_size - TAIL_SIZE);
            tail.copy_from_slice(&self.tail_checksum(body).to_be_bytes());
        }
    }

    /// The block numbers of a revoke block; `None` when its count does not fit the block.
    #[must_use]
    pub fn revokes<'a>(&self, block: &'a [u8]) -> Option<impl Iterator<Item = Pblk> + use<'a>> {
        let (header, _) = RevokeHeader::ref_from_prefix(block).ok()?;
        let count = usize::try_from(header.r_count.get()).ok()?;
        let end = block.len().min(self.block_size).saturating_sub(self.tail_size());
        if count < size_of::<RevokeHeader>() || count > end {
            return None;
        }
        let size = self.revoke_size();
        Some(block[size_of::<RevokeHeader>()..count].chunks_exact(size).map(move |record| {
            Pblk(match size {
                8 => U64::read_from_bytes(record).map_or(0, U64::get),
                _ => U32::read_from_bytes(record).map_or(0, |v| u64::from(v.get())),
            })
        }))
    }

    /// Writes a commit block for `sequence` into `block` (whole, overwritten). `transaction_crc` is what
    /// [`Self::transaction_crc`] gave, used only with that feature.
    pub fn write_commit(&self, block: &mut [u8], sequence: Tid, time: (u64, u32), transaction_crc: u32) {
        block.fill(0);
        write_header(block, BlockType::Commit, sequence);
        let Ok((raw, _)) = CommitHeader::mut_from_prefix(block) else { return };
        raw.h_commit_sec.set(time.0);
        raw.h_commit_nsec.set(time.1);
        if self.transaction_crc {
            raw.h_chksum_type = ChecksumType::Crc32 as u8;
            raw.h_chksum_size = 4;
            raw.h_chksum[0].set(transaction_crc);
        }
        if self.has_checksums() {
            let sum = crc32c_raw(self.seed, block);
            if let Ok((raw, _)) = CommitHeader::mut_from_prefix(block) {
                raw.h_chksum[0].set(sum);
            }
        }
    }

    /// Whether a commit block's own checksum matches (true without version-2 or version-3 checksums).
    #[must_use]
    pub fn commit_checksum_ok(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let Ok((raw, rest)) = CommitHeader::ref_from_prefix(block) else { return false };
        let mut copy = *raw;
        copy.h_chksum[0].set(0);
        crc32c_raw(crc32c_raw(self.seed, copy.as_bytes()), rest) == raw.h_chksum[0].get()
    }

    /// Starts a descriptor block for `sequence` in `block` (whole, overwritten).
    pub fn descriptor<'a>(&'a self, block: &'a mut [u8], sequence: Tid) -> DescriptorWriter<'a> {
        assert_eq!(block.len(), self.block_size, "a descriptor fills one block");
        block.fill(0);
        write_header(block, BlockType::Descriptor, sequence);
        DescriptorWriter { format: self, block, at: HEADER_SIZE, last: None }
    }

    /// Starts a revoke block for `sequence` in `block` (whole, overwritten).
    pub fn revoke_block<'a>(&'a self, block: &'a mut [u8], sequence: Tid) -> RevokeWriter<'a> {
        assert_eq!(block.len(), self.block_size, "a revoke block fills one block");
        block.fill(0);
        write_header(block, BlockType::Revoke, sequence);
        RevokeWriter { format: self, block, at: size_of::<RevokeHeader>() }
    }

    fn write_tag(&self, to: &mut [u8], tag: &Tag) {
        let low = tag.pblk.0 as u32;
        let high = (tag.pblk.0 >> 32) as u32;
        if self.tag_form == TagForm::V3 {
            let raw = BlockTag3 {
                t_blocknr: low.into(),
                t_flags: tag.flags.bits().into(),
                t_blocknr_high: high.into(),
                t_checksum: tag.checksum.into(),
            };
            to[..size_of::<BlockTag3>()].copy_from_slice(raw.as_bytes());
            return;
        }
        let raw = BlockTag {
            t_blocknr: low.into(),
            t_checksum: (tag.checksum as u16).into(),
            t_flags: (tag.flags.bits() as u16).into(),
        };
        to[..size_of::<BlockTag>()].copy_from_slice(raw.as_bytes());
        if self.bit64 {
            to[8..12].copy_from_slice(&high.to_be_bytes());
        }
    }
}

/// Iterator over a descriptor block's tags; ends after the one marked last, or where the block ends.
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    bytes: &'a [u8],
    size: usize,
    form: TagForm,
    bit64: bool,
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let raw = self.bytes.get(..self.size)?;
        let tag = decode_tag(raw, self.form, self.bit64)?;
        let skip = if tag.flags.contains(TagFlags::SAME_UUID) { self.size } else { self.size + UUID_SIZE };
        self.bytes =
            if tag.flags.contains(TagFlags::LAST_TAG) { &[] } else { self.bytes.get(skip..).unwrap_or(&[]) };
        Some(tag)
    }
}

fn decode_tag(bytes: &[u8], form: TagForm, bit64: bool) -> Option<Tag> {
    if form == TagForm::V3 {
        let (raw, _) = BlockTag3::ref_from_prefix(bytes).ok()?;
        let high = if bit64 { raw.t_blocknr_high.get() } else { 0 };
        return Some(Tag {
            pblk: Pblk(u64::from(high) << 32 | u64::from(raw.t_blocknr.get())),
            flags: TagFlags::from_bits_retain(raw.t_flags.get()),
            checksum: raw.t_checksum.get(),
        });
    }
    let (raw, rest) = BlockTag::ref_from_prefix(bytes).ok()?;
    let high = if bit64 { U32::ref_from_prefix(rest).ok()?.0.get() } else { 0 };
    Some(Tag {
        pblk: Pblk(u64::from(high) << 32 | u64::from(raw.t_blocknr.get())),
        flags: TagFlags::from_bits_retain(u32::from(raw.t_flags.get())),
        checksum: if form == TagForm::V2 { u32::from(raw.t_checksum.get()) } else { 0 },
    })
}

/// Fills a descriptor block tag by tag.
#[derive(Debug)]
pub struct DescriptorWriter<'a> {
    format: &'a LogFormat,
    block: &'a mut [u8],
    at: usize,
    last: Option<(usize, Tag)>,
}

impl DescriptorWriter<'_> {
    /// Adds a tag for a block that is held in the log as `logged` (escaped already when `escaped`).
    ///
    /// # Panics
    /// Past [`LogFormat::tags_per_descriptor`] tags.
    pub fn push(&mut self, pblk: Pblk, escaped: bool, checksum: u32) {
        let mut flags = TagFlags::empty();
        flags.set(TagFlags::ESCAPE, escaped);
        flags.set(TagFlags::SAME_UUID, self.last.is_some());
        let first = self.last.is_none();
        let tag = Tag { pblk, flags, checksum };
        let size = self.format.tag_size();
        self.format.write_tag(&mut self.block[self.at..self.at + size], &tag);
        self.last = Some((self.at, tag));
        self.at += size;
        if first {
            self.block[self.at..self.at + UUID_SIZE].copy_from_slice(&self.format.uuid);
            self.at += UUID_SIZE;
        }
        assert!(self.at + self.format.tail_size() <= self.format.block_size, "descriptor block overrun");
    }

    /// Marks the last tag and sets the block's checksum.
    pub fn finish(self) {
        if let Some((at, mut tag)) = self.last {
            tag.flags |= TagFlags::LAST_TAG;
            let size = self.format.tag_size();
            self.format.write_tag(&mut self.block[at..at + size], &tag);
        }
        self.format.write_tail(self.block);
    }
}

/// Fills a revoke block record by record.
#[derive(Debug)]
pub struct RevokeWriter<'a> {
    format: &'a LogFormat,
    block: &'a mut [u8],
    at: usize,
}

impl RevokeWriter<'_> {
    /// Adds a block number.
    ///
    /// # Panics
    /// Past [`LogFormat::revokes_per_block`] records.
    pub fn push(&mut self, pblk: Pblk) {
        let size = self.format.revoke_size();
        assert!(self.at + size + self.format.tail_size() <= self.format.block_size, "revoke block overrun");
        let to = &mut self.block[self.at..self.at + size];
        match size {
            8 => to.copy_from_slice(&pblk.0.to_be_bytes()),
            _ => to.copy_from_slice(&(pblk.0 as u32).to_be_bytes()),
        }
        self.at += size;
    }

    /// Sets the count and the block's checksum.
    pub fn finish(self) {
        let count = U32::new(self.at as u32);
        self.block[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(count.as_bytes());
        self.format.write_tail(self.block);
    }
}
