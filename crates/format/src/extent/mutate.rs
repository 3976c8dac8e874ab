//! Changing a node in place. Keys stay in order because the caller gives the place; debug builds check it.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{ENTRY_SIZE, EXT4_EXT_MAGIC, Extent, Index, Node, RawHeader, capacity};
use crate::csum::Csum;
use crate::error::{FormatError, Place};
use crate::types::{Ino, Lblk, Pblk};

/// A node's bytes with a checked header, to be changed. The checksum of a block is written by
/// [`NodeMut::set_checksum`] when the changes are done.
#[derive(Debug)]
pub struct NodeMut<'a> {
    bytes: &'a mut [u8],
    place: Place,
}

impl<'a> NodeMut<'a> {
    /// Opens a node; as [`Node::open`].
    ///
    /// # Errors
    /// As [`Node::open`].
    pub fn open(
        bytes: &'a mut [u8],
        ino: Ino,
        block: Option<Pblk>,
        depth: Option<u16>,
    ) -> Result<Self, FormatError> {
        Node::open(bytes, ino, block, depth)?;
        Ok(Self { bytes, place: Place::ExtentNode(ino, block) })
    }

    /// Makes an empty node of all the bytes (60 of a root, or a block), with everything else zero.
    pub fn init(bytes: &'a mut [u8], ino: Ino, block: Option<Pblk>, depth: u16) -> Self {
        bytes.fill(0);
        let header = RawHeader {
            eh_magic: U16::new(EXT4_EXT_MAGIC),
            eh_entries: U16::new(0),
            eh_max: U16::new(capacity(bytes.len())),
            eh_depth: U16::new(depth),
            eh_generation: U32::new(0),
        };
        bytes[..ENTRY_SIZE].copy_from_slice(header.as_bytes());
        Self { bytes, place: Place::ExtentNode(ino, block) }
    }

    fn header(&mut self) -> &mut RawHeader {
        // Both constructors have seen a whole header in the bytes.
        RawHeader::mut_from_prefix(self.bytes).expect("a node holds a header").0
    }

    /// The node for reading. An empty inner node, between two changes, can be read too.
    #[must_use]
    pub fn as_node(&self) -> Node<'_> {
        let (head, _) = RawHeader::ref_from_prefix(self.bytes).expect("a node holds a header");
        let (entries, max) = (head.eh_entries.get(), head.eh_max.get());
        Node { bytes: self.bytes, entries, max, depth: head.eh_depth.get() }
    }

    /// Sets the depth (when a root moves down and becomes an index of the new child).
    pub fn set_depth(&mut self, depth: u16) {
        self.header().eh_depth.set(depth);
    }

    /// Puts an extent at `at`, moving later entries up.
    ///
    /// # Errors
    /// [`FormatError::Full`].
    pub fn insert_extent(&mut self, at: u16, extent: Extent) -> Result<(), FormatError> {
        debug_assert!(self.as_node().is_leaf(), "an extent goes into a leaf");
        self.insert(at, extent.to_raw().as_bytes())
    }

    /// Puts an index entry at `at`, moving later entries up.
    ///
    /// # Errors
    /// [`FormatError::Full`].
    pub fn insert_index(&mut self, at: u16, index: Index) -> Result<(), FormatError> {
        debug_assert!(!self.as_node().is_leaf(), "an index entry goes into an inner node");
        self.insert(at, index.to_raw().as_bytes())
    }

    fn insert(&mut self, at: u16, entry: &[u8]) -> Result<(), FormatError> {
        let node = self.as_node();
        let (entries, max) = (node.len(), node.max());
        if entries >= max || at > entries {
            return Err(FormatError::Full { place: self.place, have: entries.into(), max: max.into() });
        }
        let start = offset(at);
        self.bytes.copy_within(start..offset(entries), start + ENTRY_SIZE);
        self.bytes[start..start + ENTRY_SIZE].copy_from_slice(entry);
        self.header().eh_entries.set(entries + 1);
        self.debug_check_order(at);
        Ok(())
    }

    /// Replaces extent `at`; nothing happens past the last.
    pub fn set_extent(&mut self, at: u16, extent: Extent) {
        self.replace(at, extent.to_raw().as_bytes());
    }

    /// Replaces index entry `at`; nothing happens past the last.
    pub fn set_index(&mut self, at: u16, index: Index) {
        self.replace(at, index.to_raw().as_bytes());
    }

    /// Replaces the first logical block of entry `at` (a leaf's first extent moved, its parents follow).
    pub fn set_key(&mut self, at: u16, lblk: Lblk) {
        if at < self.as_node().len() {
            self.bytes[offset(at)..offset(at) + 4].copy_from_slice(&lblk.0.to_le_bytes());
        }
    }

    /// Adds `by` to the first logical blocks of the entries `from` to `to` (without `to`), which stay in order among themselves.
    pub fn shift_keys(&mut self, from: u16, to: u16, by: i64) {
        let to = to.min(self.as_node().len());
        if from >= to {
            return;
        }
        for entry in self.bytes[offset(from)..offset(to)].chunks_exact_mut(ENTRY_SIZE) {
            if let Some(key) = entry.first_chunk_mut::<4>() {
                *key = u32::from_le_bytes(*key).wrapping_add(by as u32).to_le_bytes();
            }
        }
        self.debug_check_order(from);
        self.debug_check_order(to - 1);
    }

    fn replace(&mut self, at: u16, entry: &[u8]) {
        if at < self.as_node().len() {
            self.bytes[offset(at)..offset(at + 1)].copy_from_slice(entry);
            self.debug_check_order(at);
        }
    }

    /// Takes out `count` entries from `at` on; entries past the last do not count.
    pub fn remove(&mut self, at: u16, count: u16) {
        let entries = self.as_node().len();
        let at = at.min(entries);
        let end = at.saturating_add(count).min(entries);
        self.bytes.copy_within(offset(end)..offset(entries), offset(at));
        let left = entries - (end - at);
        self.bytes[offset(left)..offset(entries)].fill(0);
        self.header().eh_entries.set(left);
    }

    /// Moves the entries from `at` on to the end of `to`, which is of the same depth.
    ///
    /// # Errors
    /// [`FormatError::Full`] if they do not fit; nothing is moved then.
    pub fn move_tail(&mut self, at: u16, to: &mut NodeMut<'_>) -> Result<(), FormatError> {
        let entries = self.as_node().len();
        let at = at.min(entries);
        let count = entries - at;
        let (have, max) = (to.as_node().len(), to.as_node().max());
        if count > max - have {
            return Err(FormatError::Full { place: to.place, have: have.into(), max: max.into() });
        }
        let moved = &self.bytes[offset(at)..offset(entries)];
        to.bytes[offset(have)..offset(have) + moved.len()].copy_from_slice(moved);
        to.header().eh_entries.set(have + count);
        self.remove(at, count);
        Ok(())
    }

    /// Writes the checksum into the tail of a block (not a root); nothing without `metadata_csum`.
    pub fn set_checksum(&mut self, ino: Ino, generation: u32, csum: &Csum) {
        if !csum.has_metadata() {
            return;
        }
        let at = self.as_node().tail_at();
        let sum =
            Csum::extent_block(csum.inode_seed(ino, generation), &self.bytes[..at.min(self.bytes.len())]);
        if let Some(tail) = self.bytes.get_mut(at..at + 4) {
            tail.copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn debug_check_order(&self, at: u16) {
        if cfg!(debug_assertions) {
            let node = self.as_node();
            let pair = |a: Option<Lblk>, b: Option<Lblk>| a.zip(b).is_none_or(|(a, b)| a < b);
            debug_assert!(at == 0 || pair(node.key(at - 1), node.key(at)), "entry {at} out of order");
            debug_assert!(pair(node.key(at), node.key(at + 1)), "entry {at} out of order");
        }
    }
}

fn offset(at: u16) -> usize {
    ENTRY_SIZE + usize::from(at) * ENTRY_SIZE
}
