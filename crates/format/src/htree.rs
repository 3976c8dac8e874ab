//! Indexed directories: index blocks that sort the names of linear leaf blocks by their hash.
//!
//! Block 0 is the root. It begins with `.` and `..` as ordinary records, the second of which hides the rest of the
//! block from readers that know no index; then come `dx_root_info` (at byte 24) and the index entries (byte 32). A
//! node block begins with one unused record over the whole block, and its entries (byte 8). The first entry has no
//! hash; in its place are the block's `limit` and `count`. With `metadata_csum` eight bytes after the last possible
//! entry hold a checksum over (inode seed, bytes before the end of the used entries, the tail with a zero checksum).
//!
//! An entry says: hashes from mine up to the next one's are in block `lblk`. Bit 0 of a hash is not part of it: set, it
//! says that names of this very hash started in the block before ([`DxEntry::continues`]). The tree has the root, and
//! up to one level of nodes (two with `large_dir`), over the leaves.
//!
//! Every function takes the bytes of one block and validates them first. The caller holds the directory's inode lock.
//!
//! Source: kernel documentation `filesystems/ext4/directory.rst`, "Hash Tree Directories"; the tests compare with trees
//! that the kernel made.

use crate::csum::crc32c;
use crate::dir::{self, DirError, DirLayout, NewEntry};
use crate::hash::{HashVersion, Hasher};
use crate::types::Lblk;
use alloc::vec::Vec;
use thiserror::Error;

/// Bytes of an index entry.
pub const ENTRY_LEN: usize = 8;
/// Bytes of the checksum after the last possible entry.
pub const TAIL_LEN: usize = 8;
/// Where `dx_root_info` lies in the root.
const INFO_AT: usize = 24;
/// `dx_root_info.info_length`.
const INFO_LEN: u8 = 8;
/// Bits of an entry's block number that count.
const LBLK_MASK: u32 = 0x0fff_ffff;
/// Levels of index blocks that a tree may have without and with `large_dir`.
pub const MAX_LEVELS: u8 = 2;
/// See [`MAX_LEVELS`].
pub const MAX_LEVELS_LARGE_DIR: u8 = 3;

/// Why bytes are no index block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HtreeError {
    /// The records at the root's start are not `.` and `..`, or the node's is not one unused record.
    #[error("htree block: bad record at its start")]
    BadHead,
    /// `reserved_zero` is not zero.
    #[error("htree root: reserved field is {0:#x}")]
    Reserved(u32),
    /// The hash version is unknown.
    #[error("htree root: unknown hash version {0}")]
    HashVersion(u8),
    /// `info_length` is not 8.
    #[error("htree root: info length {0}")]
    InfoLength(u8),
    /// `unused_flags` has bit 0 set.
    #[error("htree root: unknown flags {0:#x}")]
    Flags(u8),
    /// More levels than the filesystem allows.
    #[error("htree root: {0} levels of nodes are too many")]
    Levels(u8),
    /// `limit` is not what the block size gives.
    #[error("htree block: limit {limit} should be {expected}")]
    Limit {
        /// On disk.
        limit: u16,
        /// Computed.
        expected: u16,
    },
    /// `count` is 0 or above `limit`.
    #[error("htree block: count {count} is not within 1..={limit}")]
    Count {
        /// On disk.
        count: u16,
        /// Of the block.
        limit: u16,
    },
    /// Hashes do not ascend (equal ones must carry the continuation bit).
    #[error("htree block: entry {index} has hash {hash:#010x}, not above the one before")]
    Order {
        /// Of the entry.
        index: u16,
        /// Its hash.
        hash: u32,
    },
    /// The checksum is wrong.
    #[error("htree block checksum {stored:#010x} should be {computed:#010x}")]
    Checksum {
        /// On disk.
        stored: u32,
        /// Computed.
        computed: u32,
    },
    /// The caller's entry does not fit or is out of place: a bug above, or bytes that changed under it.
    #[error("htree block: cannot insert at {index} of {count}")]
    Insert {
        /// Where to.
        index: usize,
        /// Entries there are.
        count: usize,
    },
    /// The block is too short to be one.
    #[error("htree block of {0} bytes is too short")]
    TooShort(usize),
    /// A leaf is no directory block.
    #[error(transparent)]
    Leaf(#[from] DirError),
    /// A leaf has too few names to split.
    #[error("htree leaf has {0} names, too few to split")]
    CannotSplit(usize),
}

/// Root or node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DxKind {
    /// Block 0 of the directory.
    Root,
    /// Any other index block.
    Node,
}

impl DxKind {
    const fn entries_at(self) -> usize {
        match self {
            Self::Root => 32,
            Self::Node => 8,
        }
    }

    /// How many entries, the first included, a block of this kind can hold.
    #[must_use]
    pub const fn limit(self, layout: &DirLayout) -> u16 {
        let tail = if layout.checksummed { TAIL_LEN } else { 0 };
        let bytes = (layout.block_size as usize).saturating_sub(self.entries_at() + tail);
        let entries = bytes / ENTRY_LEN;
        if entries > u16::MAX as usize { u16::MAX } else { entries as u16 }
    }
}

/// `dx_root_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootInfo {
    /// The hash that sorts the tree, as stored (not yet [resolved](HashVersion::resolve)).
    pub hash_version: HashVersion,
    /// Levels of nodes between the root and the leaves.
    pub indirect_levels: u8,
}

/// One index entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DxEntry {
    /// The lowest hash in the block, bit 0 as stored; 0 for a block's first entry, which stores none.
    pub hash: u32,
    /// The block that the entry leads to.
    pub lblk: Lblk,
}

impl DxEntry {
    /// Names with this very hash started in the block before.
    #[must_use]
    pub const fn continues(&self) -> bool {
        self.hash & 1 != 0
    }
}

/// A validated view of one index block.
#[derive(Clone, Copy, Debug)]
pub struct DxBlock<'a> {
    entries: &'a [u8],
    count: u16,
    limit: u16,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Reads and validates `dx_root_info` of block 0. `large_dir`: the feature, which allows a third level.
///
/// # Errors
/// An [`HtreeError`] for what is wrong with the root.
pub fn root_info(layout: &DirLayout, block: &[u8], large_dir: bool) -> Result<RootInfo, HtreeError> {
    if block.len() < 64 {
        return Err(HtreeError::TooShort(block.len()));
    }
    let head = layout.without_tail();
    let dot = dir::record_at(&head, block, 0)?;
    let dotdot = dir::record_at(&head, block, 12)?;
    let whole = dotdot.rec_len as usize == block.len() - 12;
    if dot.rec_len != 12 || dot.name != b"." || dotdot.name != b".." || !whole {
        return Err(HtreeError::BadHead);
    }
    let reserved = u32_at(block, INFO_AT);
    if reserved != 0 {
        return Err(HtreeError::Reserved(reserved));
    }
    let [version, length, levels, flags] = [block[28], block[29], block[30], block[31]];
    let hash_version = HashVersion::from_raw(version).ok_or(HtreeError::HashVersion(version))?;
    if length != INFO_LEN {
        return Err(HtreeError::InfoLength(length));
    }
    if flags & 1 != 0 {
        return Err(HtreeError::Flags(flags));
    }
    let max = if large_dir { MAX_LEVELS_LARGE_DIR } else { MAX_LEVELS };
    if levels >= max {
        return Err(HtreeError::Levels(levels));
    }
    Ok(RootInfo { hash_version, indirect_levels: levels })
}

/// Which kind of index block `block` looks like, if any: how checksums are told apart before the tree is known.
#[must_use]
pub fn kind_of(layout: &DirLayout, block: &[u8]) -> Option<DxKind> {
    let head = layout.without_tail();
    let first = dir::decode_rec_len(u16_at(block, 4), layout.block_size) as usize;
    if first == block.len() && u32_at(block, 0) == 0 && block.get(6) == Some(&0) {
        return Some(DxKind::Node);
    }
    if first != 12 {
        return None;
    }
    let second = dir::record_at(&head, block, 12).ok()?;
    let info = u32_at(block, INFO_AT) == 0 && block.get(29) == Some(&INFO_LEN);
    (second.rec_len as usize == block.len() - 12 && info).then_some(DxKind::Root)
}

impl<'a> DxBlock<'a> {
    /// Validates limit, count and the order of hashes of an index block. The head of a root is checked by
    /// [`root_info`], checksums by [`verify_tail`].
    ///
    /// # Errors
    /// An [`HtreeError`] for what is wrong.
    pub fn new(layout: &DirLayout, block: &'a [u8], kind: DxKind) -> Result<Self, HtreeError> {
        let at = kind.entries_at();
        let expected = kind.limit(layout);
        if block.len() != layout.block_size as usize || expected < 2 {
            return Err(HtreeError::TooShort(block.len()));
        }
        let whole = dir::decode_rec_len(u16_at(block, 4), layout.block_size) == layout.block_size;
        if kind == DxKind::Node && (u32_at(block, 0) != 0 || !whole) {
            return Err(HtreeError::BadHead);
        }
        let (limit, count) = (u16_at(block, at), u16_at(block, at + 2));
        if limit != expected {
            return Err(HtreeError::Limit { limit, expected });
        }
        if count == 0 || count > limit {
            return Err(HtreeError::Count { count, limit });
        }
        let view = Self { entries: &block[at..at + usize::from(count) * ENTRY_LEN], count, limit };
        let mut before = 0;
        for (index, entry) in view.iter().enumerate().skip(1) {
            let ascends = entry.hash > before || (entry.hash == before && entry.continues());
            if !ascends && index > 1 {
                return Err(HtreeError::Order { index: index as u16, hash: entry.hash });
            }
            before = entry.hash;
        }
        Ok(view)
    }

    /// Number of entries; at least 1.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// Number of entries there is room for.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Whether no further entry fits.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// Entry `index`.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<DxEntry> {
        let bytes = self.entries.get(index.checked_mul(ENTRY_LEN)?..)?.get(..ENTRY_LEN)?;
        let hash = if index == 0 { 0 } else { u32_at(bytes, 0) };
        Some(DxEntry { hash, lblk: Lblk(u32_at(bytes, 4) & LBLK_MASK) })
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = DxEntry> + use<'a> {
        let view = *self;
        (0..view.count()).filter_map(move |index| view.entry(index))
    }

    /// The entry whose block can hold names of `hash`: the last one that is not above it. Names of the same hash may go
    /// on in the following blocks as long as those entries [continue](DxEntry::continues) it.
    #[must_use]
    pub fn lookup(&self, hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if u32_at(self.entries, middle * ENTRY_LEN) > hash {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low - 1
    }
}

/// Adds an entry for (`hash`, `lblk`) after entry `index`.
///
/// # Errors
/// What [`DxBlock::new`] says; [`HtreeError::Insert`] if the block is full or `index` is not in it.
pub fn insert_entry(
    layout: &DirLayout,
    block: &mut [u8],
    kind: DxKind,
    index: usize,
    entry: DxEntry,
) -> Result<(), HtreeError> {
    let view = DxBlock::new(layout, block, kind)?;
    let count = view.count();
    if view.is_full() || index >= count {
        return Err(HtreeError::Insert { index, count });
    }
    let base = kind.entries_at();
    let at = base + (index + 1) * ENTRY_LEN;
    block.copy_within(at..base + count * ENTRY_LEN, at + ENTRY_LEN);
    put_u32(block, at, entry.hash);
    put_u32(block, at + 4, entry.lblk.0);
    set_count(block, kind, count + 1);
    Ok(())
}

fn set_count(block: &mut [u8], kind: DxKind, count: usize) {
    let at = kind.entries_at() + 2;
    block[at..at + 2].copy_from_slice(&(count as u16).to_le_bytes());
}

fn set_limit(layout: &DirLayout, block: &mut [u8], kind: DxKind) {
    let at = kind.entries_at();
    block[at..at + 2].copy_from_slice(&kind.limit(layout).to_le_bytes());
}

fn init_node(layout: &DirLayout, block: &mut [u8]) {
    block.fill(0);
    block[4..6].copy_from_slice(&dir::encode_rec_len(layout.block_size, layout.block_size).to_le_bytes());
    set_limit(layout, block, DxKind::Node);
}

/// Moves the upper half of the entries of node `block` into the fresh block `new`, and returns the hash from which on
/// the new one answers: the caller adds (that hash, the new block) to the parent after the old node's entry.
///
/// # Errors
/// What [`DxBlock::new`] says of `block`; [`HtreeError::CannotSplit`]; [`HtreeError::TooShort`] of `new`.
pub fn split_node(layout: &DirLayout, block: &mut [u8], new: &mut [u8]) -> Result<u32, HtreeError> {
    let view = DxBlock::new(layout, block, DxKind::Node)?;
    let count = view.count();
    if count < 2 {
        return Err(HtreeError::CannotSplit(count));
    }
    if new.len() != block.len() {
        return Err(HtreeError::TooShort(new.len()));
    }
    let kept = count / 2;
    let base = DxKind::Node.entries_at();
    let (from, to) = (base + kept * ENTRY_LEN, base + count * ENTRY_LEN);
    let hash = u32_at(block, from);
    init_node(layout, new);
    new[base + 4..base + to - from].copy_from_slice(&block[from + 4..to]);
    set_count(new, DxKind::Node, count - kept);
    set_count(block, DxKind::Node, kept);
    Ok(hash)
}

/// Adds a level: all entries of the root move into the fresh node block `new`, and the root keeps one entry that leads
/// to it.
///
/// # Errors
/// What [`root_info`] and [`DxBlock::new`] say of the root; [`HtreeError::Levels`] if the tree may not grow.
pub fn deepen(
    layout: &DirLayout,
    root: &mut [u8],
    new: &mut [u8],
    new_lblk: Lblk,
    large_dir: bool,
) -> Result<(), HtreeError> {
    let info = root_info(layout, root, large_dir)?;
    let max = if large_dir { MAX_LEVELS_LARGE_DIR } else { MAX_LEVELS };
    if info.indirect_levels + 1 >= max {
        return Err(HtreeError::Levels(info.indirect_levels + 1));
    }
    if new.len() != root.len() {
        return Err(HtreeError::TooShort(new.len()));
    }
    let count = DxBlock::new(layout, root, DxKind::Root)?.count();
    let (from, to) = (DxKind::Root.entries_at(), DxKind::Node.entries_at());
    init_node(layout, new);
    let bytes = count * ENTRY_LEN - 4;
    new[to + 4..to + 4 + bytes].copy_from_slice(&root[from + 4..from + 4 + bytes]);
    set_count(new, DxKind::Node, count);
    root[30] = info.indirect_levels + 1;
    set_count(root, DxKind::Root, 1);
    put_u32(root, from + 4, new_lblk.0);
    Ok(())
}

/// Makes an indexed directory of one leaf out of a full linear block 0: all names except `.` and `..` move to the fresh
/// block `leaf`, which the directory holds at `leaf_lblk`, and block 0 becomes the root. Checksums are left to
/// [`set_tail`] (root) and [`dir::set_tail`] (leaf).
///
/// # Errors
/// A [`DirError`] of the block; [`HtreeError::BadHead`] if it does not begin with `.` and `..`.
pub fn make_indexed(
    layout: &DirLayout,
    block: &mut [u8],
    leaf: &mut [u8],
    leaf_lblk: Lblk,
    version: HashVersion,
) -> Result<(), HtreeError> {
    if block.len() != layout.block_size as usize || leaf.len() != block.len() || block.len() < 64 {
        return Err(HtreeError::TooShort(block.len().min(leaf.len())));
    }
    let mut names = Vec::new();
    for (n, record) in dir::entries(layout, block).enumerate() {
        let record = record?;
        match n {
            0 if record.name == b"." && record.rec_len == 12 => {}
            1 if record.name == b".." && record.offset == 12 => {}
            0 | 1 => return Err(HtreeError::BadHead),
            _ => names.push(to_new(&record)),
        }
    }
    if !dir::pack(layout, leaf, names) {
        return Err(HtreeError::CannotSplit(0));
    }
    block[24..].fill(0);
    let len = layout.block_size - 12;
    block[16..18].copy_from_slice(&dir::encode_rec_len(len, layout.block_size).to_le_bytes());
    block[28] = version.family().raw();
    block[29] = INFO_LEN;
    set_limit(layout, block, DxKind::Root);
    set_count(block, DxKind::Root, 1);
    put_u32(block, DxKind::Root.entries_at() + 4, leaf_lblk.0);
    Ok(())
}

const fn to_new<'a>(record: &dir::Record<'a>) -> NewEntry<'a> {
    NewEntry {
        ino: record.ino,
        raw_type: record.raw_type,
        name: record.name,
        stored_hash: record.stored_hash,
    }
}

/// Splits a leaf by hash: names are sorted by hash, and the upper half by size moves to the fresh block `new`. Returns
/// the hash from which on `new` answers, its bit 0 set if names of that hash stayed in the old block too.
/// Checksums are left to [`dir::set_tail`].
///
/// # Errors
/// A [`DirError`] of the leaf; [`HtreeError::CannotSplit`] if it has fewer than two names.
pub fn split_leaf(
    layout: &DirLayout,
    hasher: &Hasher,
    leaf: &mut [u8],
    new: &mut [u8],
) -> Result<u32, HtreeError> {
    if new.len() != leaf.len() {
        return Err(HtreeError::TooShort(new.len()));
    }
    let old = leaf.to_vec();
    let mut names = Vec::new();
    for record in dir::entries(layout, &old) {
        let record = record?;
        let hash = record.stored_hash.map_or_else(|| hasher.hash(record.name).major, |(hash, _)| hash & !1);
        names.push((hash, to_new(&record)));
    }
    if names.len() < 2 {
        return Err(HtreeError::CannotSplit(names.len()));
    }
    names.sort_by_key(|&(hash, _)| hash);
    let size = |entry: &NewEntry<'_>| layout.rec_len(entry.name.len(), false);
    let half = layout.usable(leaf.len()) / 2;
    let mut moved = 0;
    let mut split = names.len();
    // From the top down, while the moved names take no more than half of the block.
    while split > 1 && moved + size(&names[split - 1].1) / 2 <= half {
        split -= 1;
        moved += size(&names[split].1);
    }
    if split == names.len() || moved == 0 {
        split = names.len() / 2;
    }
    let hash = names[split].0;
    let continued = u32::from(names[split - 1].0 == hash);
    let (low, high) = names.split_at(split);
    if !dir::pack(layout, leaf, low.iter().map(|n| n.1)) || !dir::pack(layout, new, high.iter().map(|n| n.1))
    {
        return Err(HtreeError::CannotSplit(names.len()));
    }
    Ok(hash | continued)
}

fn tail_at(layout: &DirLayout, kind: DxKind) -> usize {
    kind.entries_at() + usize::from(kind.limit(layout)) * ENTRY_LEN
}

fn checksum(layout: &DirLayout, block: &[u8], kind: DxKind, count: usize, inode_seed: u32) -> u32 {
    let used = kind.entries_at() + count * ENTRY_LEN;
    let tail = tail_at(layout, kind);
    let sum = crc32c(inode_seed, &block[..used]);
    crc32c(crc32c(sum, &block[tail..tail + 4]), &[0; 4])
}

/// Checks the checksum of an index block; `inode_seed` is the directory's checksum seed. Does nothing where the layout
/// has none.
///
/// # Errors
/// [`HtreeError::Checksum`], and what makes it impossible to find (limit, count, size).
pub fn verify_tail(
    layout: &DirLayout,
    block: &[u8],
    kind: DxKind,
    inode_seed: u32,
) -> Result<(), HtreeError> {
    if !layout.checksummed {
        return Ok(());
    }
    let (limit, count, expected) = count_limit(layout, block, kind)?;
    if limit != expected {
        return Err(HtreeError::Limit { limit, expected });
    }
    if count > limit {
        return Err(HtreeError::Count { count, limit });
    }
    let computed = checksum(layout, block, kind, usize::from(count), inode_seed);
    let stored = u32_at(block, tail_at(layout, kind) + 4);
    if stored == computed { Ok(()) } else { Err(HtreeError::Checksum { stored, computed }) }
}

fn count_limit(layout: &DirLayout, block: &[u8], kind: DxKind) -> Result<(u16, u16, u16), HtreeError> {
    let at = kind.entries_at();
    let expected = kind.limit(layout);
    if block.len() != layout.block_size as usize || expected < 2 {
        return Err(HtreeError::TooShort(block.len()));
    }
    Ok((u16_at(block, at), u16_at(block, at + 2), expected))
}

/// Fills in the checksum of an index block that [`DxBlock::new`] accepts. Does nothing where the layout has none.
///
/// # Errors
/// What [`DxBlock::new`] says.
pub fn set_tail(
    layout: &DirLayout,
    block: &mut [u8],
    kind: DxKind,
    inode_seed: u32,
) -> Result<(), HtreeError> {
    if !layout.checksummed {
        return Ok(());
    }
    let count = DxBlock::new(layout, block, kind)?.count();
    let sum = checksum(layout, block, kind, count, inode_seed);
    put_u32(block, tail_at(layout, kind) + 4, sum);
    Ok(())
}

#[cfg(test)]
mod tests;
