//! The fast-commit area: a log of tag-length-value records at the journal's end, little-endian.
//!
//! Between two full commits Linux may write what an fsync needs as a few records instead of whole blocks. The area starts
//! with a HEAD record that names the transaction after which it applies; each fast commit ends with a TAIL record whose
//! CRC-32C (starting from 0, not inverted) covers every byte since the previous tail, up to itself. A full commit makes the area void, since its
//! HEAD then names an older transaction.
//!
//! [`Scanner`] takes the area block by block and keeps the operations of the fast commits that are whole.
//!
//! Source: `Documentation/filesystems/ext4/journal.rst`, "Fast commits"; values and the reach of the checksum from images
//! written by the kernel and read by debugfs.

use alloc::vec::Vec;
use core::mem::size_of;
use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::jbd2::crc32c_raw;
use crate::{Ino, Lblk, Pblk, Tid};

const MAX_NAME: usize = 255;
const MIN_INODE: usize = 128;
/// An extent of the record is longer than this when it is unwritten (as in extent leaves).
const MAX_WRITTEN_LEN: u16 = 0x8000;

/// `struct ext4_fc_tl`, before each value.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTagLength {
    fc_tag: U16,
    fc_len: U16,
}

/// `struct ext4_fc_add_range`: an inode and one entry of an extent leaf.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAddRange {
    fc_ino: U32,
    ee_block: U32,
    ee_len: U16,
    ee_start_hi: U16,
    ee_start_lo: U32,
}

/// `struct ext4_fc_del_range`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDelRange {
    fc_ino: U32,
    fc_lblk: U32,
    fc_len: U32,
}

/// `struct ext4_fc_dentry_info` without the name; `ext4_fc_head` and `ext4_fc_tail` have the same two words.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPair {
    first: U32,
    second: U32,
}

const _: () = {
    assert!(size_of::<RawTagLength>() == 4);
    assert!(size_of::<RawAddRange>() == 16);
    assert!(size_of::<RawDelRange>() == 12);
    assert!(size_of::<RawPair>() == 8);
};

/// One change that a fast commit describes. Replaying it twice must give the same as once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// These blocks belong to the inode at this place.
    AddRange {
        /// The inode.
        ino: Ino,
        /// First logical block.
        lblk: Lblk,
        /// Length in blocks, not 0.
        len: u32,
        /// First block on the device.
        pblk: Pblk,
        /// The blocks have not been written.
        unwritten: bool,
    },
    /// The inode has no blocks at these places.
    DelRange {
        /// The inode.
        ino: Ino,
        /// First logical block.
        lblk: Lblk,
        /// Length in blocks.
        len: u32,
    },
    /// A new inode and its name.
    Create(Dentry),
    /// A further name of an inode.
    Link(Dentry),
    /// A name that is gone.
    Unlink(Dentry),
    /// The inode as it is on disk, but for its map where that is an extent tree.
    Inode {
        /// The inode.
        ino: Ino,
        /// Its bytes: 128 and what the extra size says.
        raw: Vec<u8>,
    },
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// The directory.
    pub parent: Ino,
    /// What the name stands for.
    pub ino: Ino,
    /// The name, 1 to 255 bytes.
    pub name: Vec<u8>,
}

/// Why the rest of a fast-commit area is not applied. None of these is damage that stops a mount: what a crash cuts
/// off looks the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum End {
    /// The area is empty, or belongs to an older transaction.
    #[error("no fast commits after the last transaction")]
    Void,
    /// The head asks for features this code does not know.
    #[error("fast-commit features {0:#x} are unknown")]
    Features(u32),
    /// A record of an unknown kind, or of an impossible length.
    #[error("fast-commit record {tag} of {len} bytes is not valid")]
    Record {
        /// Its tag.
        tag: u16,
        /// Its length.
        len: u16,
    },
    /// A tail of another transaction.
    #[error("a fast commit's tail names another transaction")]
    Tail,
    /// A tail whose checksum does not match.
    #[error("a fast commit's checksum does not match")]
    Checksum,
}

enum Record {
    Head { features: u32, tid: Tid },
    Operation(Operation),
    Pad,
    Tail { tid: Tid, crc: u32 },
}

/// Reads a fast-commit area.
#[derive(Debug)]
pub struct Scanner {
    expected: Tid,
    crc: u32,
    headed: bool,
    pending: Vec<Operation>,
    whole: Vec<Operation>,
    commits: u32,
}

impl Scanner {
    /// For the fast commits that follow when `expected` is the first transaction not in the log.
    #[must_use]
    pub fn new(expected: Tid) -> Self {
        Self { expected, crc: 0, headed: false, pending: Vec::new(), whole: Vec::new(), commits: 0 }
    }

    /// Takes the next block of the area.
    ///
    /// # Errors
    /// Nothing after this point belongs to a whole fast commit.
    pub fn block(&mut self, block: &[u8]) -> Result<(), End> {
        let mut rest = block;
        while rest.len() >= size_of::<RawTagLength>() {
            let (record, used) = read_record(rest)?;
            let bytes = &rest[..used];
            self.take(record, bytes)?;
            rest = &rest[used..];
        }
        Ok(())
    }

    fn take(&mut self, record: Record, bytes: &[u8]) -> Result<(), End> {
        if !self.headed && !matches!(record, Record::Head { .. }) {
            return Err(End::Void);
        }
        match record {
            Record::Head { tid, .. } if tid != self.expected => return Err(End::Void),
            Record::Head { features, .. } if features != 0 => return Err(End::Features(features)),
            Record::Head { .. } => self.headed = true,
            Record::Operation(operation) => self.pending.push(operation),
            Record::Pad => {}
            Record::Tail { tid, crc } => return self.close(tid, crc, bytes),
        }
        self.crc = crc32c_raw(self.crc, bytes);
        Ok(())
    }

    fn close(&mut self, tid: Tid, crc: u32, bytes: &[u8]) -> Result<(), End> {
        if tid != self.expected {
            return Err(End::Tail);
        }
        let covered = &bytes[..size_of::<RawTagLength>() + 4];
        if crc32c_raw(self.crc, covered) != crc {
            return Err(End::Checksum);
        }
        self.crc = 0;
        self.commits += 1;
        self.whole.append(&mut self.pending);
        Ok(())
    }

    /// How many whole fast commits there were.
    #[must_use]
    pub fn commits(&self) -> u32 {
        self.commits
    }

    /// The operations of the whole fast commits, in order.
    #[must_use]
    pub fn finish(self) -> Vec<Operation> {
        self.whole
    }
}

/// The record at the start of `bytes` (at least four), and how long it is.
fn read_record(bytes: &[u8]) -> Result<(Record, usize), End> {
    let bad = |tag: u16, len: u16| End::Record { tag, len };
    let (head, rest) = RawTagLength::ref_from_prefix(bytes).map_err(|_| bad(0, 0))?;
    let (tag, len) = (head.fc_tag.get(), head.fc_len.get());
    let value = rest.get(..usize::from(len)).ok_or(bad(tag, len))?;
    let record = read_value(tag, value).ok_or(bad(tag, len))?;
    Ok((record, size_of::<RawTagLength>() + value.len()))
}

fn read_value(tag: u16, value: &[u8]) -> Option<Record> {
    let pair = || {
        RawPair::ref_from_prefix(value).ok().map(|(pair, rest)| (pair.first.get(), pair.second.get(), rest))
    };
    Some(match tag {
        1 => Record::Operation(read_add_range(value)?),
        2 => Record::Operation(read_del_range(value)?),
        3 => Record::Operation(Operation::Create(read_dentry(value)?)),
        4 => Record::Operation(Operation::Link(read_dentry(value)?)),
        5 => Record::Operation(Operation::Unlink(read_dentry(value)?)),
        6 => Record::Operation(read_inode(value)?),
        7 => Record::Pad,
        8 => {
            let (tid, crc, _) = pair()?;
            Record::Tail { tid: Tid(tid), crc }
        }
        9 => {
            let (features, tid, rest) = pair()?;
            return rest.is_empty().then_some(Record::Head { features, tid: Tid(tid) });
        }
        _ => return None,
    })
}

fn read_add_range(value: &[u8]) -> Option<Operation> {
    let raw = RawAddRange::ref_from_bytes(value).ok()?;
    let len = raw.ee_len.get();
    let unwritten = len > MAX_WRITTEN_LEN;
    let len = u32::from(if unwritten { len - MAX_WRITTEN_LEN } else { len });
    let pblk = u64::from(raw.ee_start_hi.get()) << 32 | u64::from(raw.ee_start_lo.get());
    if len == 0 || raw.ee_block.get().checked_add(len - 1).is_none() {
        return None;
    }
    Some(Operation::AddRange {
        ino: Ino(raw.fc_ino.get()),
        lblk: Lblk(raw.ee_block.get()),
        len,
        pblk: Pblk(pblk),
        unwritten,
    })
}

fn read_del_range(value: &[u8]) -> Option<Operation> {
    let raw = RawDelRange::ref_from_bytes(value).ok()?;
    Some(Operation::DelRange {
        ino: Ino(raw.fc_ino.get()),
        lblk: Lblk(raw.fc_lblk.get()),
        len: raw.fc_len.get(),
    })
}

fn read_dentry(value: &[u8]) -> Option<Dentry> {
    let (pair, name) = RawPair::ref_from_prefix(value).ok()?;
    if name.is_empty() || name.len() > MAX_NAME {
        return None;
    }
    Some(Dentry { parent: Ino(pair.first.get()), ino: Ino(pair.second.get()), name: name.to_vec() })
}

fn read_inode(value: &[u8]) -> Option<Operation> {
    let (ino, raw) = U32::ref_from_prefix(value).ok()?;
    if raw.len() < MIN_INODE {
        return None;
    }
    Some(Operation::Inode { ino: Ino(ino.get()), raw: raw.to_vec() })
}

#[cfg(test)]
mod tests;
