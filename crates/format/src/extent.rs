//! Extent trees: nodes of 12-byte entries, the root in `i_block`, others in blocks with a checksum tail.
//!
//! [`Node`] reads a node whose header has been checked, so entries are always inside the bytes; [`Node::check`] goes
//! through all entries once. [`NodeMut`] changes a node in place. Source: the kernel's ext4 documentation,
//! "Extent Tree" (`struct ext4_extent_header`, `ext4_extent_idx`, `ext4_extent`, `ext4_extent_tail`).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::csum::Csum;
use crate::error::{Corrupt, FormatError, Place};
use crate::geometry::Geometry;
use crate::types::{Ino, Lblk, Pblk};

mod mutate;
#[cfg(test)]
mod tests;

pub use mutate::NodeMut;

/// `eh_magic`
pub const EXT4_EXT_MAGIC: u16 = 0xF30A;
/// Bytes of a header and of every entry.
pub const ENTRY_SIZE: usize = 12;
/// Deepest tree: five levels reach every block of a file.
pub const MAX_DEPTH: u16 = 5;
/// Longest written extent in blocks (`EXT_INIT_MAX_LEN`).
pub const MAX_LEN: u32 = 32768;
/// Longest unwritten extent in blocks (`EXT_UNWRITTEN_MAX_LEN`).
pub const MAX_UNWRITTEN_LEN: u32 = 32767;
/// Entries of a root.
pub const ROOT_ENTRIES: u16 = 4;
/// One past the last logical block that an extent may cover (`EXT_MAX_BLOCKS`).
pub const MAX_LBLK: u32 = u32::MAX;

/// `struct ext4_extent_header`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawHeader {
    pub eh_magic: U16,
    pub eh_entries: U16,
    pub eh_max: U16,
    pub eh_depth: U16,
    pub eh_generation: U32,
}

/// `struct ext4_extent_idx`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawIndex {
    pub ei_block: U32,
    pub ei_leaf_lo: U32,
    pub ei_leaf_hi: U16,
    pub ei_unused: U16,
}

/// `struct ext4_extent`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawExtent {
    pub ee_block: U32,
    pub ee_len: U16,
    pub ee_start_hi: U16,
    pub ee_start_lo: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == ENTRY_SIZE);
    assert!(size_of::<RawIndex>() == ENTRY_SIZE);
    assert!(size_of::<RawExtent>() == ENTRY_SIZE);
    assert!(core::mem::offset_of!(RawIndex, ei_leaf_lo) == 4);
    assert!(core::mem::offset_of!(RawExtent, ee_start_hi) == 6);
    assert!(core::mem::offset_of!(RawExtent, ee_start_lo) == 8);
};

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First logical block.
    pub lblk: Lblk,
    /// Blocks, 1 to 32768 (32767 if unwritten).
    pub len: u32,
    /// First block on the device.
    pub pblk: Pblk,
    /// Allocated but reads as zeroes.
    pub unwritten: bool,
}

impl Extent {
    /// One past the last logical block. Saturates (a checked extent ends at or below [`MAX_LBLK`]).
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.lblk.0.saturating_add(self.len)
    }

    /// Whether `lblk` is in it.
    #[must_use]
    pub const fn contains(&self, lblk: Lblk) -> bool {
        lblk.0 >= self.lblk.0 && lblk.0 - self.lblk.0 < self.len
    }

    /// The block of `lblk`, which must be in it.
    #[must_use]
    pub const fn pblk_of(&self, lblk: Lblk) -> Pblk {
        debug_assert!(self.contains(lblk));
        Pblk(self.pblk.0 + lblk.0.saturating_sub(self.lblk.0) as u64)
    }

    /// The longest an extent of this kind may be.
    #[must_use]
    pub const fn max_len(&self) -> u32 {
        if self.unwritten { MAX_UNWRITTEN_LEN } else { MAX_LEN }
    }

    /// Whether `next` goes on where `self` ends, logically and physically, in the same state, and both fit in one.
    #[must_use]
    pub const fn merges_with(&self, next: &Self) -> bool {
        self.unwritten == next.unwritten
            && self.end() == next.lblk.0
            && self.pblk.0 + self.len as u64 == next.pblk.0
            && self.len + next.len <= self.max_len()
    }

    fn from_raw(raw: &RawExtent) -> Self {
        let len = u32::from(raw.ee_len.get());
        let unwritten = len > MAX_LEN;
        Self {
            lblk: Lblk(raw.ee_block.get()),
            len: if unwritten { len - MAX_LEN } else { len },
            pblk: Pblk(u64::from(raw.ee_start_lo.get()) | u64::from(raw.ee_start_hi.get()) << 32),
            unwritten,
        }
    }

    fn to_raw(self) -> RawExtent {
        debug_assert!(self.len > 0 && self.len <= self.max_len());
        let len = if self.unwritten { self.len + MAX_LEN } else { self.len };
        RawExtent {
            ee_block: U32::new(self.lblk.0),
            ee_len: U16::new(len as u16),
            ee_start_hi: U16::new((self.pblk.0 >> 32) as u16),
            ee_start_lo: U32::new(self.pblk.0 as u32),
        }
    }
}

/// An entry of an inner node: the child holds logical blocks from `lblk` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// First logical block of the child.
    pub lblk: Lblk,
    /// The child's block.
    pub child: Pblk,
}

impl Index {
    fn from_raw(raw: &RawIndex) -> Self {
        let child = u64::from(raw.ei_leaf_lo.get()) | u64::from(raw.ei_leaf_hi.get()) << 32;
        Self { lblk: Lblk(raw.ei_block.get()), child: Pblk(child) }
    }

    fn to_raw(self) -> RawIndex {
        RawIndex {
            ei_block: U32::new(self.lblk.0),
            ei_leaf_lo: U32::new(self.child.0 as u32),
            ei_leaf_hi: U16::new((self.child.0 >> 32) as u16),
            ei_unused: U16::new(0),
        }
    }
}

/// Entries that fit in a node of `bytes` bytes (60 for a root, the block size for others).
#[must_use]
pub const fn capacity(bytes: usize) -> u16 {
    ((bytes - ENTRY_SIZE) / ENTRY_SIZE) as u16
}

/// The most blocks that a tree of `depth` needs below the root to hold `extents` separate extents.
#[must_use]
pub const fn blocks_for_extents(extents: u64, block_size: u32) -> u64 {
    let per = capacity(block_size as usize) as u64;
    let (mut nodes, mut sum) = (extents, 0);
    while nodes > ROOT_ENTRIES as u64 {
        nodes = nodes.div_ceil(per);
        sum += nodes;
    }
    sum
}

/// A node's bytes with a checked header.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    bytes: &'a [u8],
    entries: u16,
    max: u16,
    depth: u16,
}

impl<'a> Node<'a> {
    /// Opens a node: magic, depth and counts are checked, so that no entry is outside the bytes. `ino` and `block`
    /// (`None` for a root) are for the error. `depth` is what the parent says; `None` for a root.
    ///
    /// # Errors
    /// [`Corrupt::Magic`], [`Corrupt::Range`], [`Corrupt::Mismatch`], [`Corrupt::Short`].
    pub fn open(
        bytes: &'a [u8],
        ino: Ino,
        block: Option<Pblk>,
        depth: Option<u16>,
    ) -> Result<Self, FormatError> {
        Self::open_at(bytes, Place::ExtentNode(ino, block), depth)
    }

    fn open_at(bytes: &'a [u8], place: Place, depth: Option<u16>) -> Result<Self, FormatError> {
        let corrupt = |kind| Err(FormatError::corrupt(place, kind));
        let Ok((head, _)) = RawHeader::ref_from_prefix(bytes) else {
            return corrupt(Corrupt::Short { have: bytes.len() as u64, need: ENTRY_SIZE as u64 });
        };
        let magic = head.eh_magic.get();
        if magic != EXT4_EXT_MAGIC {
            return corrupt(Corrupt::Magic { found: magic.into(), expected: EXT4_EXT_MAGIC.into() });
        }
        let (entries, max) = (head.eh_entries.get(), head.eh_max.get());
        let fits = u64::from(capacity(bytes.len()));
        if max == 0 || u64::from(max) > fits {
            return corrupt(Corrupt::Range { field: "eh_max", value: max.into(), min: 1, max: fits });
        }
        let found = head.eh_depth.get();
        if found > MAX_DEPTH {
            let max = u64::from(MAX_DEPTH);
            return corrupt(Corrupt::Range { field: "eh_depth", value: found.into(), min: 0, max });
        }
        if depth.is_some_and(|d| d != found) {
            let expected = u64::from(depth.unwrap_or(found));
            return corrupt(Corrupt::Mismatch { field: "eh_depth", value: found.into(), expected });
        }
        let least = u16::from(found > 0);
        if entries > max || entries < least {
            let (value, min, max) = (entries.into(), least.into(), max.into());
            return corrupt(Corrupt::Range { field: "eh_entries", value, min, max });
        }
        Ok(Self { bytes, entries, max, depth: found })
    }

    /// Opens a block of the tree, verifies its checksum and checks every entry. Call it once per block read.
    ///
    /// # Errors
    /// As [`Node::open`] and [`Node::check`], and [`FormatError::Checksum`].
    pub fn read_block(
        bytes: &'a [u8],
        ino: Ino,
        generation: u32,
        block: Pblk,
        depth: u16,
        geo: &Geometry,
        csum: &Csum,
    ) -> Result<Self, FormatError> {
        let node = Self::open(bytes, ino, Some(block), Some(depth))?;
        node.verify_checksum(ino, generation, block, csum)?;
        node.check(ino, Some(block), geo)?;
        Ok(node)
    }

    /// Entries in use.
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.entries
    }

    /// Whether there is no entry (an empty file's root).
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// `eh_max`
    #[must_use]
    pub const fn max(&self) -> u16 {
        self.max
    }

    /// Whether no further entry fits.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.entries >= self.max
    }

    /// Levels below this node; 0 is a leaf.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// Whether entries are extents.
    #[must_use]
    pub const fn is_leaf(&self) -> bool {
        self.depth == 0
    }

    fn entry_bytes(&self, at: u16) -> Option<&'a [u8]> {
        if at >= self.entries {
            return None;
        }
        let start = ENTRY_SIZE + usize::from(at) * ENTRY_SIZE;
        self.bytes.get(start..start + ENTRY_SIZE)
    }

    /// Extent `at` of a leaf.
    #[must_use]
    pub fn extent(&self, at: u16) -> Option<Extent> {
        if !self.is_leaf() {
            return None;
        }
        RawExtent::ref_from_bytes(self.entry_bytes(at)?).ok().map(Extent::from_raw)
    }

    /// Entry `at` of an inner node.
    #[must_use]
    pub fn index(&self, at: u16) -> Option<Index> {
        if self.is_leaf() {
            return None;
        }
        RawIndex::ref_from_bytes(self.entry_bytes(at)?).ok().map(Index::from_raw)
    }

    /// First logical block of entry `at`, leaf or not.
    #[must_use]
    pub fn key(&self, at: u16) -> Option<Lblk> {
        let b = self.entry_bytes(at)?.first_chunk::<4>()?;
        Some(Lblk(u32::from_le_bytes(*b)))
    }

    /// The extents of a leaf, in order.
    pub fn extents(&self) -> impl DoubleEndedIterator<Item = Extent> + use<'a> {
        let node = *self;
        (0..self.entries).filter_map(move |at| node.extent(at))
    }

    /// The entries of an inner node, in order.
    pub fn indexes(&self) -> impl DoubleEndedIterator<Item = Index> + use<'a> {
        let node = *self;
        (0..self.entries).filter_map(move |at| node.index(at))
    }

    /// The last entry that starts at or before `lblk`; `None` if all start behind it.
    #[must_use]
    pub fn search(&self, lblk: Lblk) -> Option<u16> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let mid = low + (high - low) / 2;
            if self.key(mid).is_some_and(|k| k <= lblk) { low = mid + 1 } else { high = mid }
        }
        low.checked_sub(1)
    }

    /// Checks every entry: ascending, not overlapping, lengths and blocks inside the filesystem.
    ///
    /// # Errors
    /// [`Corrupt::Order`], [`Corrupt::Range`], [`Corrupt::BlockOutside`].
    pub fn check(&self, ino: Ino, block: Option<Pblk>, geo: &Geometry) -> Result<(), FormatError> {
        let place = Place::ExtentNode(ino, block);
        let corrupt = |kind| Err(FormatError::corrupt(place, kind));
        let mut free_from = 0u64;
        for at in 0..self.entries {
            let key = u64::from(self.key(at).unwrap_or_default().0);
            let (what, field) = if self.is_leaf() { ("extent", "ee_start") } else { ("index", "ei_leaf") };
            if key < free_from {
                return corrupt(Corrupt::Order { what, index: at.into(), value: key, previous: free_from });
            }
            let (pblk, len) = match (self.extent(at), self.index(at)) {
                (Some(e), _) => (e.pblk, u64::from(e.len)),
                (None, Some(i)) => (i.child, 1),
                (None, None) => continue,
            };
            if len == 0 || self.is_leaf() && key + len > u64::from(MAX_LBLK) {
                let max = u64::from(MAX_LBLK) - key;
                return corrupt(Corrupt::Range { field: "ee_len", value: len, min: 1, max });
            }
            if !geo.contains_range(pblk, len) {
                let (first, last) = (geo.first_data_block().into(), geo.blocks_count() - 1);
                return corrupt(Corrupt::BlockOutside { field, block: pblk.0, first, last });
            }
            free_from = key + len;
        }
        Ok(())
    }

    /// The tail's place in a block.
    fn tail_at(&self) -> usize {
        ENTRY_SIZE + usize::from(self.max) * ENTRY_SIZE
    }

    /// Compares the checksum in the tail of a block (not a root).
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`Corrupt::Short`] where `eh_max` leaves no room for the tail.
    pub fn verify_checksum(
        &self,
        ino: Ino,
        generation: u32,
        block: Pblk,
        csum: &Csum,
    ) -> Result<(), FormatError> {
        if !csum.has_metadata() {
            return Ok(());
        }
        let place = Place::ExtentNode(ino, Some(block));
        let at = self.tail_at();
        let Some(tail) = self.bytes.get(at..).and_then(|t| t.first_chunk::<4>()) else {
            let kind = Corrupt::Short { have: self.bytes.len() as u64, need: at as u64 + 4 };
            return Err(FormatError::corrupt(place, kind));
        };
        let stored = u32::from_le_bytes(*tail);
        let computed = Csum::extent_block(csum.inode_seed(ino, generation), &self.bytes[..at]);
        if stored == computed { Ok(()) } else { Err(FormatError::Checksum { place, stored, computed }) }
    }
}
