//! The byte layouts of jbd2's blocks, with the kernel's field names.

use core::mem::size_of;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct journal_header_s`: the start of every control block (journal.rst, "Block Header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct JournalHeader {
    pub h_magic: U32,
    pub h_blocktype: U32,
    pub h_sequence: U32,
}

/// `struct journal_superblock_s` (journal.rst, "Super Block"). `s_checksum` is the CRC-32C of these 1024 bytes, itself
/// taken as zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct JournalSuperblock {
    pub s_header: JournalHeader,
    pub s_blocksize: U32,
    pub s_maxlen: U32,
    pub s_first: U32,
    pub s_sequence: U32,
    pub s_start: U32,
    pub s_errno: U32,
    pub s_feature_compat: U32,
    pub s_feature_incompat: U32,
    pub s_feature_ro_compat: U32,
    pub s_uuid: [u8; 16],
    pub s_nr_users: U32,
    pub s_dynsuper: U32,
    pub s_max_transaction: U32,
    pub s_max_trans_data: U32,
    pub s_checksum_type: u8,
    pub s_padding2: [u8; 3],
    pub s_num_fc_blks: U32,
    pub s_head: U32,
    pub s_padding: [U32; 40],
    pub s_checksum: U32,
    pub s_users: [[u8; 16]; 48],
}

/// `struct journal_block_tag_s`, the part that all forms but version 3 share. `t_blocknr_high` follows with 64-bit block
/// numbers; with version-2 checksums two more bytes follow that.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct BlockTag {
    pub t_blocknr: U32,
    pub t_checksum: U16,
    pub t_flags: U16,
}

/// `struct journal_block_tag3_s`, used with version-3 checksums.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct BlockTag3 {
    pub t_blocknr: U32,
    pub t_flags: U32,
    pub t_blocknr_high: U32,
    pub t_checksum: U32,
}

/// `struct jbd2_journal_revoke_header_s`. `r_count` counts bytes, this header included.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct RevokeHeader {
    pub r_header: JournalHeader,
    pub r_count: U32,
}

/// `struct commit_header`. With version-2 or version-3 checksums `h_chksum[0]` covers the whole block, itself taken as zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CommitHeader {
    pub h_header: JournalHeader,
    pub h_chksum_type: u8,
    pub h_chksum_size: u8,
    pub h_padding: [u8; 2],
    pub h_chksum: [U32; 8],
    pub h_commit_sec: U64,
    pub h_commit_nsec: U32,
}

const _: () = {
    assert!(size_of::<JournalHeader>() == 12);
    assert!(size_of::<JournalSuperblock>() == 1024);
    assert!(core::mem::offset_of!(JournalSuperblock, s_num_fc_blks) == 0x54);
    assert!(core::mem::offset_of!(JournalSuperblock, s_checksum) == 0xFC);
    assert!(core::mem::offset_of!(JournalSuperblock, s_users) == 0x100);
    assert!(size_of::<BlockTag>() == 8);
    assert!(size_of::<BlockTag3>() == 16);
    assert!(size_of::<RevokeHeader>() == 16);
    assert!(core::mem::offset_of!(CommitHeader, h_commit_sec) == 0x30);
    assert!(size_of::<CommitHeader>() == 0x3C);
};
