//! Quota files in the form ext4 keeps them (`vfsv1`, revision 1): a radix tree from an id to its limits and usage. Visible quota
//! files may also be of revision 0 (`vfsv0`), which differs in the entries only: 21 of 48 bytes, with 32 bits for most numbers.
//!
//! The file is an array of 1 KiB blocks, whatever the filesystem's block size. Block 0 holds the header (`dqh_magic`,
//! `dqh_version`) and the info (grace times, flags, lists of free blocks and of blocks with free entries). Block 1 is the
//! root of the tree: four levels of 256 block numbers each, one for each byte of the id from the highest down. The last
//! level leads to data blocks: a 16-byte header and 14 entries of 72 bytes. A zero entry is free; one that is for id 0
//! and otherwise zero has its inode grace time set to 1 to tell it apart.
//!
//! [`QuotaFile`] works over a [`QuotaStore`], which the caller implements on its metadata buffers; the caller holds the
//! quota file's lock (rank 84), and its handle. Every walk is bounded by the tree's depth and the file's length.
//!
//! Sources: quota(5), the quota-tools description of the format, and quota files that mke2fs and quotacheck wrote.

use crate::types::Lblk;
use alloc::boxed::Box;
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

mod tree;

pub use tree::{EntryPlace, QuotaFile, QuotaStore};

/// Bytes of a block of a quota file.
pub const BLOCK_LEN: usize = 1024;
/// Numbers in a tree block.
pub const REFS: usize = 256;
/// Levels of tree blocks.
pub const TREE_LEVELS: usize = 4;
/// The tree's root.
pub const ROOT_BLOCK: u32 = 1;
/// Bytes of a data block before its entries.
pub const DATA_HEADER_LEN: usize = 16;
/// Grace of a new file, in seconds: a week.
pub const DEFAULT_GRACE: u32 = 7 * 24 * 60 * 60;
/// Block limits are in units of this many bytes.
pub const LIMIT_UNIT: u64 = 1024;

/// The form of a file's entries (`dqh_version`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Revision {
    /// `vfsv0`
    R0,
    /// `vfsv1`, the form of ext4's hidden quota files.
    R1,
}

impl Revision {
    const fn from_version(version: u32) -> Option<Self> {
        match version {
            0 => Some(Self::R0),
            1 => Some(Self::R1),
            _ => None,
        }
    }

    /// `dqh_version`
    #[must_use]
    pub const fn version(self) -> u32 {
        self as u32
    }

    /// Bytes of an entry.
    #[must_use]
    pub const fn entry_len(self) -> usize {
        match self {
            Self::R0 => size_of::<RawEntry0>(),
            Self::R1 => size_of::<RawEntry>(),
        }
    }

    /// Entries in a data block.
    #[must_use]
    pub const fn entries(self) -> usize {
        (BLOCK_LEN - DATA_HEADER_LEN) / self.entry_len()
    }
}

/// Whose usage a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum QuotaKind {
    /// By user id (`s_usr_quota_inum`).
    User,
    /// By group id (`s_grp_quota_inum`).
    Group,
    /// By project id (`s_prj_quota_inum`).
    Project,
}

impl QuotaKind {
    /// `dqh_magic`.
    #[must_use]
    pub const fn magic(self) -> u32 {
        match self {
            Self::User => 0xd9c0_1f11,
            Self::Group => 0xd9c0_1927,
            Self::Project => 0xd9c0_3f14,
        }
    }
}

/// Header and info, at the start of block 0.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct RawInfo {
    dqh_magic: U32,
    dqh_version: U32,
    dqi_bgrace: U32,
    dqi_igrace: U32,
    dqi_flags: U32,
    dqi_blocks: U32,
    dqi_free_blk: U32,
    dqi_free_entry: U32,
}

const _: () = assert!(size_of::<RawInfo>() == 32);

/// Start of a data block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct RawDataHeader {
    dqdh_next_free: U32,
    dqdh_prev_free: U32,
    dqdh_entries: U16,
    dqdh_pad1: U16,
    dqdh_pad2: U32,
}

const _: () = assert!(size_of::<RawDataHeader>() == DATA_HEADER_LEN);

/// `struct v2r1_disk_dqblk`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct RawEntry {
    dqb_id: U32,
    dqb_pad: U32,
    dqb_ihardlimit: U64,
    dqb_isoftlimit: U64,
    dqb_curinodes: U64,
    dqb_bhardlimit: U64,
    dqb_bsoftlimit: U64,
    dqb_curspace: U64,
    dqb_btime: U64,
    dqb_itime: U64,
}

const _: () = assert!(size_of::<RawEntry>() == 72);

/// `struct v2r0_disk_dqblk`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct RawEntry0 {
    dqb_id: U32,
    dqb_ihardlimit: U32,
    dqb_isoftlimit: U32,
    dqb_curinodes: U32,
    dqb_bhardlimit: U32,
    dqb_bsoftlimit: U32,
    dqb_curspace: U64,
    dqb_btime: U64,
    dqb_itime: U64,
}

const _: () = assert!(size_of::<RawEntry0>() == 48);

/// Why bytes are no quota file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum QuotaError {
    /// The magic number is not that of the kind.
    #[error("quota file has magic {found:#010x}, not {expected:#010x}")]
    Magic {
        /// On disk.
        found: u32,
        /// Of the kind.
        expected: u32,
    },
    /// Not revision 1 (0 and 1 for visible files).
    #[error("quota file has version {0}")]
    Version(u32),
    /// `dqi_blocks` is below the two blocks that every file has, or beyond the file's end.
    #[error("quota file says that it has {blocks} blocks where there are {len}")]
    Blocks {
        /// On disk.
        blocks: u32,
        /// By the file's size.
        len: u32,
    },
    /// A block number in the tree or a list lies outside the file.
    #[error("quota block {at} refers to block {block} of {blocks}")]
    BlockRange {
        /// Which block holds the number.
        at: u32,
        /// The number.
        block: u32,
        /// Blocks of the file.
        blocks: u32,
    },
    /// A data block that the tree leads to does not hold the id.
    #[error("quota block {block} has no entry for id {id}")]
    EntryMissing {
        /// The data block.
        block: u32,
        /// The id.
        id: u32,
    },
    /// A data block says that it has more entries than fit.
    #[error("quota block {block} says that it has {entries} entries")]
    Entries {
        /// The data block.
        block: u32,
        /// On disk.
        entries: u16,
    },
    /// A data block in the list of those with free entries has none.
    #[error("quota block {0} is listed as having a free entry and has none")]
    FreeList(u32),
    /// Two paths of the tree lead to one tree block.
    #[error("quota tree block {0} is reached twice")]
    Loop(u32),
    /// The file cannot grow further.
    #[error("quota file of {0} blocks cannot grow")]
    Full(u32),
}

/// Limits and usage of one id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dqblk {
    /// Most inodes; 0: no limit.
    pub ihardlimit: u64,
    /// Inodes above which the grace time runs.
    pub isoftlimit: u64,
    /// Inodes in use.
    pub curinodes: u64,
    /// Most space in [`LIMIT_UNIT`]s; 0: no limit.
    pub bhardlimit: u64,
    /// Space above which the grace time runs, in [`LIMIT_UNIT`]s.
    pub bsoftlimit: u64,
    /// Space in use, in bytes.
    pub curspace: u64,
    /// When the grace time for space ends, in seconds since 1970; 0: not running.
    pub btime: u64,
    /// When the grace time for inodes ends; 0: not running.
    pub itime: u64,
}

impl Dqblk {
    /// Whether it says nothing: no usage, no limits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// An entry from its bytes.
    fn decode(bytes: &[u8], revision: Revision) -> (u32, Self) {
        let (id, mut dq) = match revision {
            Revision::R0 => RawEntry0::read_from_bytes(bytes).map_or((0, Self::default()), |raw| {
                let dq = Self {
                    ihardlimit: raw.dqb_ihardlimit.get().into(),
                    isoftlimit: raw.dqb_isoftlimit.get().into(),
                    curinodes: raw.dqb_curinodes.get().into(),
                    bhardlimit: raw.dqb_bhardlimit.get().into(),
                    bsoftlimit: raw.dqb_bsoftlimit.get().into(),
                    curspace: raw.dqb_curspace.get(),
                    btime: raw.dqb_btime.get(),
                    itime: raw.dqb_itime.get(),
                };
                (raw.dqb_id.get(), dq)
            }),
            Revision::R1 => RawEntry::read_from_bytes(bytes).map_or((0, Self::default()), |raw| {
                let dq = Self {
                    ihardlimit: raw.dqb_ihardlimit.get(),
                    isoftlimit: raw.dqb_isoftlimit.get(),
                    curinodes: raw.dqb_curinodes.get(),
                    bhardlimit: raw.dqb_bhardlimit.get(),
                    bsoftlimit: raw.dqb_bsoftlimit.get(),
                    curspace: raw.dqb_curspace.get(),
                    btime: raw.dqb_btime.get(),
                    itime: raw.dqb_itime.get(),
                };
                (raw.dqb_id.get(), dq)
            }),
        };
        // The mark of an entry that would otherwise be all zero.
        if id == 0 && dq == (Self { itime: 1, ..Self::default() }) {
            dq.itime = 0;
        }
        (id, dq)
    }

    /// Writes the entry of `id`. Revision 0 keeps what does not fit its 32 bits at their largest.
    fn encode(&self, id: u32, revision: Revision, bytes: &mut [u8]) {
        let itime = if id == 0 && self.is_empty() { 1 } else { self.itime };
        let narrow = |value: u64| U32::new(u32::try_from(value).unwrap_or(u32::MAX));
        match revision {
            Revision::R0 => {
                let raw = RawEntry0 {
                    dqb_id: id.into(),
                    dqb_ihardlimit: narrow(self.ihardlimit),
                    dqb_isoftlimit: narrow(self.isoftlimit),
                    dqb_curinodes: narrow(self.curinodes),
                    dqb_bhardlimit: narrow(self.bhardlimit),
                    dqb_bsoftlimit: narrow(self.bsoftlimit),
                    dqb_curspace: self.curspace.into(),
                    dqb_btime: self.btime.into(),
                    dqb_itime: itime.into(),
                };
                bytes.copy_from_slice(raw.as_bytes());
            }
            Revision::R1 => {
                let raw = RawEntry {
                    dqb_id: id.into(),
                    dqb_pad: 0.into(),
                    dqb_ihardlimit: self.ihardlimit.into(),
                    dqb_isoftlimit: self.isoftlimit.into(),
                    dqb_curinodes: self.curinodes.into(),
                    dqb_bhardlimit: self.bhardlimit.into(),
                    dqb_bsoftlimit: self.bsoftlimit.into(),
                    dqb_curspace: self.curspace.into(),
                    dqb_btime: self.btime.into(),
                    dqb_itime: itime.into(),
                };
                bytes.copy_from_slice(raw.as_bytes());
            }
        }
    }
}

/// One of the two resources that are limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Bytes.
    Space,
    /// Inodes.
    Inodes,
}

/// What an addition to the usage leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Allowed; no grace time runs.
    Within,
    /// Allowed, above the soft limit: the grace time ends then (seconds since 1970).
    Grace(u64),
    /// Refused: above the hard limit, or the grace time is over.
    Exceeded,
}

impl Dqblk {
    /// Whether `add` (bytes or inodes) may be added at time `now`, with `grace` seconds for the soft limit. Changes
    /// nothing; the caller stores the grace time with [`Dqblk::charge`].
    #[must_use]
    pub fn admit(&self, resource: Resource, add: u64, now: u64, grace: u32) -> Verdict {
        let (used, soft, hard, ends) = match resource {
            Resource::Space => {
                let bytes = |limit: u64| limit.saturating_mul(LIMIT_UNIT);
                (self.curspace, bytes(self.bsoftlimit), bytes(self.bhardlimit), self.btime)
            }
            Resource::Inodes => (self.curinodes, self.isoftlimit, self.ihardlimit, self.itime),
        };
        let after = used.saturating_add(add);
        if hard != 0 && after > hard {
            return Verdict::Exceeded;
        }
        if soft == 0 || after <= soft {
            return Verdict::Within;
        }
        match ends {
            0 => Verdict::Grace(now.saturating_add(u64::from(grace))),
            ends if now >= ends => Verdict::Exceeded,
            ends => Verdict::Grace(ends),
        }
    }

    /// Adds to the usage and stores what [`Dqblk::admit`] said of the grace time.
    pub fn charge(&mut self, resource: Resource, add: u64, verdict: Verdict) {
        let ends = if let Verdict::Grace(ends) = verdict { ends } else { 0 };
        match resource {
            Resource::Space => (self.curspace, self.btime) = (self.curspace.saturating_add(add), ends),
            Resource::Inodes => (self.curinodes, self.itime) = (self.curinodes.saturating_add(add), ends),
        }
    }

    /// Takes from the usage; at or below the soft limit the grace time stops. False if less was in use: the file's
    /// numbers were wrong, and are now 0.
    pub fn release(&mut self, resource: Resource, sub: u64) -> bool {
        let (used, soft) = match resource {
            Resource::Space => (&mut self.curspace, self.bsoftlimit.saturating_mul(LIMIT_UNIT)),
            Resource::Inodes => (&mut self.curinodes, self.isoftlimit),
        };
        let (after, under) = used.overflowing_sub(sub);
        *used = if under { 0 } else { after };
        if *used <= soft || soft == 0 {
            match resource {
                Resource::Space => self.btime = 0,
                Resource::Inodes => self.itime = 0,
            }
        }
        !under
    }
}

/// The info in block 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaInfo {
    /// Form of the entries.
    pub revision: Revision,
    /// Grace time for space in seconds.
    pub bgrace: u32,
    /// Grace time for inodes in seconds.
    pub igrace: u32,
    /// Flags; none that ext4 uses.
    pub flags: u32,
    /// Blocks of the file.
    pub blocks: u32,
    /// First of the unused blocks; 0: none.
    pub free_blk: u32,
    /// First of the data blocks with free entries; 0: none.
    pub free_entry: u32,
}

impl QuotaInfo {
    /// Reads block 0 of a file of `kind` that is `file_len` bytes long.
    ///
    /// # Errors
    /// [`QuotaError::Magic`], [`QuotaError::Version`], [`QuotaError::Blocks`]. The lists of free blocks and entries are
    /// checked as they are used.
    pub fn read(kind: QuotaKind, block: &[u8; BLOCK_LEN], file_len: u64) -> Result<Self, QuotaError> {
        let Ok((raw, _)) = RawInfo::ref_from_prefix(block) else {
            return Err(QuotaError::Blocks { blocks: 0, len: 0 });
        };
        let (found, expected) = (raw.dqh_magic.get(), kind.magic());
        if found != expected {
            return Err(QuotaError::Magic { found, expected });
        }
        let version = raw.dqh_version.get();
        let revision = Revision::from_version(version).ok_or(QuotaError::Version(version))?;
        let blocks = raw.dqi_blocks.get();
        let len = u32::try_from(file_len / BLOCK_LEN as u64).unwrap_or(u32::MAX);
        if blocks <= ROOT_BLOCK || blocks > len {
            return Err(QuotaError::Blocks { blocks, len });
        }
        Ok(Self {
            revision,
            bgrace: raw.dqi_bgrace.get(),
            igrace: raw.dqi_igrace.get(),
            flags: raw.dqi_flags.get(),
            blocks,
            free_blk: raw.dqi_free_blk.get(),
            free_entry: raw.dqi_free_entry.get(),
        })
    }

    /// Writes block 0; what is behind the info stays.
    pub fn write(&self, kind: QuotaKind, block: &mut [u8; BLOCK_LEN]) {
        let raw = RawInfo {
            dqh_magic: kind.magic().into(),
            dqh_version: self.revision.version().into(),
            dqi_bgrace: self.bgrace.into(),
            dqi_igrace: self.igrace.into(),
            dqi_flags: self.flags.into(),
            dqi_blocks: self.blocks.into(),
            dqi_free_blk: self.free_blk.into(),
            dqi_free_entry: self.free_entry.into(),
        };
        block[..32].copy_from_slice(raw.as_bytes());
    }

    /// The two blocks of an empty quota file.
    #[must_use]
    pub fn empty_file(kind: QuotaKind) -> (Self, Box<[u8; 2 * BLOCK_LEN]>) {
        let info = Self {
            revision: Revision::R1,
            bgrace: DEFAULT_GRACE,
            igrace: DEFAULT_GRACE,
            flags: 0,
            blocks: 2,
            free_blk: 0,
            free_entry: 0,
        };
        let mut first = [0; BLOCK_LEN];
        info.write(kind, &mut first);
        let mut file = Box::new([0; 2 * BLOCK_LEN]);
        file[..BLOCK_LEN].copy_from_slice(&first);
        (info, file)
    }
}

/// Writes the entry of `id` into its data block, in place. Nothing happens for a slot that no block has.
pub fn write_entry(
    block: &mut [u8; BLOCK_LEN],
    place: EntryPlace,
    revision: Revision,
    (id, dq): (u32, &Dqblk),
) {
    let at = place.at(revision);
    if let Some(bytes) = block.get_mut(at..at + revision.entry_len()) {
        dq.encode(id, revision, bytes);
    }
}

/// Where 1 KiB block `block` of a quota file lies: the file's block, and the byte in it.
#[must_use]
pub const fn block_place(block: u32, block_size: u32) -> (Lblk, usize) {
    let per = block_size / BLOCK_LEN as u32;
    let per = if per == 0 { 1 } else { per };
    (Lblk(block / per), (block % per) as usize * BLOCK_LEN)
}

#[cfg(test)]
mod tests;
