//! Extended attributes: the area behind an inode's fields, the shared attribute block, and values in inodes of their own.
//!
//! Both areas are a header, entries that grow up, four zero bytes, and values that grow down from the end:
//!
//! | entry bytes | field | |
//! |---|---|---|
//! | 0 | `e_name_len` | |
//! | 1 | `e_name_index` | stands for the name's prefix, see [`split_name`] |
//! | 2..4 | `e_value_offs` | from the block's start; in an inode from the first entry |
//! | 4..8 | `e_value_inum` | not 0: the value is the content of that inode (`ea_inode`) |
//! | 8..12 | `e_value_size` | |
//! | 12..16 | `e_hash` | of name and value; 0 for values in an inode's own area |
//! | 16.. | `e_name` | padded to 4 |
//!
//! The inode's area begins with a 4-byte magic, the block with a 32-byte header that also counts the inodes which share
//! it. Entries of a block are sorted by (index, name length, name), since readers stop early.
//!
//! Reading works on the bytes ([`Area`]); changing takes them apart ([`AttrSet`]), which also compacts the layout.
//! Nothing here locks: the caller holds the inode's xattr lock (and, for a block, decides about sharing).
//!
//! Source: kernel documentation `filesystems/ext4/attributes.rst` and `eainode.rst`; layout choices settled with images
//! that the kernel and debugfs wrote.

use crate::csum::crc32c;
use crate::types::{Ino, Pblk};
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use thiserror::Error;

mod names;

pub use names::{INDEX_ENCRYPTION, INDEX_SECURITY, INDEX_SYSTEM, INDEX_TRUSTED, INDEX_USER};
pub use names::{INDEX_POSIX_ACL_ACCESS, INDEX_POSIX_ACL_DEFAULT, full_name, split_name};

/// First word of both kinds of area.
pub const MAGIC: u32 = 0xea02_0000;
/// Bytes of a block's header.
pub const BLOCK_HEADER_LEN: usize = 32;
/// Bytes of the header of an inode's area.
pub const IBODY_HEADER_LEN: usize = 4;
/// Bytes of an entry before its name.
pub const ENTRY_HEADER_LEN: usize = 16;
/// The largest value that an inode of its own may hold.
pub const MAX_VALUE_LEN: u32 = 65536;
/// The most inodes that may share a block.
pub const MAX_REFCOUNT: u32 = 1024;

/// Bytes that an entry with a name of `name_len` bytes takes.
#[must_use]
pub const fn entry_len(name_len: usize) -> usize {
    (ENTRY_HEADER_LEN + name_len + 3) & !3
}

/// Bytes that a value of `len` bytes takes in an area.
#[must_use]
pub const fn padded(len: usize) -> usize {
    (len + 3) & !3
}

/// Why bytes are no attribute area. Offsets count from the area's start, header included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum XattrError {
    /// The block does not begin with the magic number.
    #[error("attribute block has magic {0:#010x}")]
    Magic(u32),
    /// `h_blocks` is not 1.
    #[error("attribute block says that it has {0} blocks")]
    Blocks(u32),
    /// `h_refcount` is 0 or above the most allowed.
    #[error("attribute block has reference count {0}")]
    Refcount(u32),
    /// The area is shorter than its header and terminator.
    #[error("attribute area of {0} bytes is too short")]
    TooShort(usize),
    /// An entry, or the four zero bytes after the last one, lies beyond the area's end.
    #[error("attribute entry at byte {0} is beyond the end of its area")]
    EntryBounds(usize),
    /// A name has no byte where its prefix needs more.
    #[error("attribute entry at byte {offset}: bad name index {index}")]
    NameIndex {
        /// Of the entry.
        offset: usize,
        /// Its index.
        index: u8,
    },
    /// The value does not lie between entries and end.
    #[error("attribute entry at byte {offset}: value of {size} bytes at {value} is out of bounds")]
    ValueBounds {
        /// Of the entry.
        offset: usize,
        /// Where it says the value is.
        value: u32,
        /// And how long.
        size: u32,
    },
    /// The value in an inode is longer than allowed.
    #[error("attribute entry at byte {offset}: value of {size} bytes in inode {inum} is too long")]
    ValueSize {
        /// Of the entry.
        offset: usize,
        /// The inode.
        inum: u32,
        /// The length stated.
        size: u32,
    },
    /// The checksum is wrong.
    #[error("attribute block checksum {stored:#010x} should be {computed:#010x}")]
    Checksum {
        /// On disk.
        stored: u32,
        /// Computed.
        computed: u32,
    },
    /// The caller's attribute cannot be: empty or over-long name.
    #[error("an attribute name of {0} bytes cannot be stored")]
    BadName(usize),
    /// The attributes do not fit into the area.
    #[error("attributes need {needed} bytes where there are {room}")]
    NoRoom {
        /// Bytes needed, header and terminator included.
        needed: usize,
        /// Bytes there are.
        room: usize,
    },
}

/// Which of the two layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AreaKind {
    /// The bytes from the end of an inode's fields (128 + `i_extra_isize`) to the end of the inode.
    Ibody,
    /// A whole block.
    Block,
}

impl AreaKind {
    const fn header_len(self) -> usize {
        match self {
            Self::Ibody => IBODY_HEADER_LEN,
            Self::Block => BLOCK_HEADER_LEN,
        }
    }

    /// What `e_value_offs` counts from.
    const fn value_base(self) -> usize {
        match self {
            Self::Ibody => IBODY_HEADER_LEN,
            Self::Block => 0,
        }
    }
}

/// One entry of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Where the entry starts in its area.
    pub offset: usize,
    /// Stands for the prefix.
    pub index: u8,
    /// The name without the prefix.
    pub name: &'a [u8],
    /// The inode that holds the value; 0: it is in the area.
    pub value_inum: Ino,
    /// Length of the value.
    pub value_size: u32,
    /// `e_value_offs` as stored.
    pub value_offs: u16,
    /// `e_hash` as stored.
    pub hash: u32,
    /// The value; empty when it is in an inode.
    pub value: &'a [u8],
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

/// The header of an attribute block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// Inodes that share the block.
    pub refcount: u32,
    /// Hash over all entries; 0 if any of them has none: such a block is not shared.
    pub hash: u32,
    /// crc32c over the block, where the filesystem has checksums.
    pub checksum: u32,
}

impl BlockHeader {
    /// Reads the header of `block`.
    ///
    /// # Errors
    /// [`XattrError::Magic`], [`XattrError::Blocks`], [`XattrError::Refcount`] (0), [`XattrError::TooShort`].
    pub fn read(block: &[u8]) -> Result<Self, XattrError> {
        if block.len() < BLOCK_HEADER_LEN + 4 {
            return Err(XattrError::TooShort(block.len()));
        }
        let (magic, refcount, blocks) = (u32_at(block, 0), u32_at(block, 4), u32_at(block, 8));
        if magic != MAGIC {
            return Err(XattrError::Magic(magic));
        }
        if blocks != 1 {
            return Err(XattrError::Blocks(blocks));
        }
        if refcount == 0 {
            return Err(XattrError::Refcount(refcount));
        }
        Ok(Self { refcount, hash: u32_at(block, 12), checksum: u32_at(block, 16) })
    }
}

/// A validated attribute area.
#[derive(Clone, Copy, Debug)]
pub struct Area<'a> {
    kind: AreaKind,
    bytes: &'a [u8],
}

impl<'a> Area<'a> {
    /// The area in an inode; `None` if the inode has none (no magic). `bytes` go from the end of the inode's fields to
    /// its end, and may be empty.
    ///
    /// # Errors
    /// An [`XattrError`] of an entry.
    pub fn ibody(bytes: &'a [u8]) -> Result<Option<Self>, XattrError> {
        if bytes.len() < IBODY_HEADER_LEN + 4 || u32_at(bytes, 0) != MAGIC {
            return Ok(None);
        }
        let area = Self { kind: AreaKind::Ibody, bytes };
        area.validate()?;
        Ok(Some(area))
    }

    /// The attribute block `block`.
    ///
    /// # Errors
    /// What [`BlockHeader::read`] says; an [`XattrError`] of an entry.
    pub fn block(block: &'a [u8]) -> Result<Self, XattrError> {
        BlockHeader::read(block)?;
        let area = Self { kind: AreaKind::Block, bytes: block };
        area.validate()?;
        Ok(area)
    }

    /// Which layout this is.
    #[must_use]
    pub const fn kind(&self) -> AreaKind {
        self.kind
    }

    /// Bytes of the area, header included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    fn validate(&self) -> Result<(), XattrError> {
        let mut at = self.kind.header_len();
        let table_end = self.table_end()?;
        while let Some(entry) = self.entry_at(at) {
            self.validate_value(&entry, table_end)?;
            at += entry_len(entry.name.len());
        }
        Ok(())
    }

    /// Where the terminator ends.
    fn table_end(&self) -> Result<usize, XattrError> {
        let mut at = self.kind.header_len();
        loop {
            if at + 4 > self.bytes.len() {
                return Err(XattrError::EntryBounds(at));
            }
            if u32_at(self.bytes, at) == 0 {
                return Ok(at + 4);
            }
            let next = at + entry_len(usize::from(self.bytes[at]));
            // The terminator must fit after every entry.
            if next + 4 > self.bytes.len() {
                return Err(XattrError::EntryBounds(at));
            }
            at = next;
        }
    }

    fn validate_value(&self, entry: &Entry<'_>, table_end: usize) -> Result<(), XattrError> {
        let (offset, size) = (entry.offset, entry.value_size);
        if entry.value_inum.0 != 0 {
            let inum = entry.value_inum.0;
            let fits = size <= MAX_VALUE_LEN;
            return if fits { Ok(()) } else { Err(XattrError::ValueSize { offset, inum, size }) };
        }
        let value = u32::from(entry.value_offs);
        let start = usize::from(entry.value_offs) + self.kind.value_base();
        // In 64 bits: `size` is hostile.
        let end = start as u64 + u64::from(size);
        if size != 0 && (start < table_end || end > self.bytes.len() as u64) {
            return Err(XattrError::ValueBounds { offset, value, size });
        }
        Ok(())
    }

    /// The entry at byte `at`; `None` at the terminator. Values out of bounds come out empty.
    fn entry_at(&self, at: usize) -> Option<Entry<'a>> {
        let head = self.bytes.get(at..at.checked_add(ENTRY_HEADER_LEN)?)?;
        if u32_at(head, 0) == 0 {
            return None;
        }
        let name = self.bytes.get(at + ENTRY_HEADER_LEN..at + ENTRY_HEADER_LEN + usize::from(head[0]))?;
        let (value_offs, value_inum, value_size) = (u16_at(head, 2), u32_at(head, 4), u32_at(head, 8));
        let start = usize::from(value_offs) + self.kind.value_base();
        let value = match value_inum {
            0 => start
                .checked_add(value_size as usize)
                .and_then(|end| self.bytes.get(start..end))
                .unwrap_or_default(),
            _ => &[],
        };
        let hash = u32_at(head, 12);
        Some(Entry {
            offset: at,
            index: head[1],
            name,
            value_inum: Ino(value_inum),
            value_size,
            value_offs,
            hash,
            value,
        })
    }

    /// The entries in their order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let area = *self;
        let mut at = self.kind.header_len();
        core::iter::from_fn(move || {
            let entry = area.entry_at(at)?;
            at += entry_len(entry.name.len());
            Some(entry)
        })
    }

    /// The entry of that prefix index and name.
    #[must_use]
    pub fn find(&self, index: u8, name: &[u8]) -> Option<Entry<'a>> {
        self.entries().find(|e| e.index == index && e.name == name)
    }

    /// The first two entries whose values share bytes, by offset of the entry; validation does not reject them, since
    /// reading is safe.
    #[must_use]
    pub fn overlap(&self) -> Option<(usize, usize)> {
        let mut spans: Vec<(usize, usize, usize)> = self
            .entries()
            .filter(|e| e.value_inum.0 == 0 && e.value_size > 0)
            .map(|e| (usize::from(e.value_offs), e.value_size as usize, e.offset))
            .collect();
        spans.sort_unstable();
        spans.windows(2).find(|w| w[0].0 + padded(w[0].1) > w[1].0).map(|w| (w[0].2, w[1].2))
    }
}

/// `e_hash` of a name and a value; `signed`: old kernels took the name's bytes as signed characters, both are valid.
#[must_use]
pub fn entry_hash(name: &[u8], value: &[u8], signed: bool) -> u32 {
    let mut hash = name_hash(name, signed);
    for word in value.chunks(4) {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
    }
    hash
}

/// `e_hash` of a name whose value is in an inode with this [`ea_inode_hash`].
#[must_use]
pub fn entry_hash_ea_inode(name: &[u8], value_hash: u32, signed: bool) -> u32 {
    name_hash(name, signed).rotate_left(16) ^ value_hash
}

/// The hash that an inode holding a value keeps of it; `seed` is the filesystem's checksum seed.
#[must_use]
pub fn ea_inode_hash(seed: u32, value: &[u8]) -> u32 {
    crc32c(seed, value)
}

fn name_hash(name: &[u8], signed: bool) -> u32 {
    name.iter().fold(0_u32, |hash, &byte| {
        let byte = if signed { i32::from(byte as i8) as u32 } else { u32::from(byte) };
        hash.rotate_left(5) ^ byte
    })
}

/// `h_hash` of a block whose entries have these `e_hash`es in order.
#[must_use]
pub fn block_hash(entry_hashes: impl IntoIterator<Item = u32>) -> u32 {
    let mut hash = 0_u32;
    for entry in entry_hashes {
        if entry == 0 {
            return 0;
        }
        hash = hash.rotate_left(16) ^ entry;
    }
    hash
}

/// The checksum of an attribute block that lies at `pblk`; `seed` is the filesystem's checksum seed.
#[must_use]
pub fn block_checksum(seed: u32, pblk: Pblk, block: &[u8]) -> u32 {
    let sum = crc32c(seed, &pblk.0.to_le_bytes());
    let sum = crc32c(sum, block.get(..16).unwrap_or(block));
    let sum = crc32c(sum, &[0; 4]);
    crc32c(sum, block.get(20..).unwrap_or_default())
}

/// Checks the checksum of an attribute block of a filesystem with `metadata_csum`.
///
/// # Errors
/// [`XattrError::Checksum`].
pub fn verify_block(seed: u32, pblk: Pblk, block: &[u8]) -> Result<(), XattrError> {
    let (stored, computed) = (u32_at(block, 16), block_checksum(seed, pblk, block));
    if stored == computed { Ok(()) } else { Err(XattrError::Checksum { stored, computed }) }
}

/// Changes the reference count of a block in place; the checksum is left to [`set_block_checksum`].
///
/// # Errors
/// What [`BlockHeader::read`] says; [`XattrError::Refcount`] if `refcount` is 0.
pub fn set_refcount(block: &mut [u8], refcount: u32) -> Result<(), XattrError> {
    BlockHeader::read(block)?;
    if refcount == 0 {
        return Err(XattrError::Refcount(refcount));
    }
    put_u32(block, 4, refcount);
    Ok(())
}

/// Fills in the checksum of a block that will lie at `pblk`.
pub fn set_block_checksum(seed: u32, pblk: Pblk, block: &mut [u8]) {
    if block.len() >= BLOCK_HEADER_LEN {
        let sum = block_checksum(seed, pblk, block);
        put_u32(block, 16, sum);
    }
}

/// A value and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// In the area itself.
    Inline(Vec<u8>),
    /// In an inode of its own.
    EaInode {
        /// That inode.
        ino: Ino,
        /// Length of the value.
        size: u32,
        /// [`ea_inode_hash`] of it.
        hash: u32,
    },
}

impl Value {
    /// Bytes that it takes in an area.
    #[must_use]
    pub const fn area_len(&self) -> usize {
        match self {
            Self::Inline(bytes) => padded(bytes.len()),
            Self::EaInode { .. } => 0,
        }
    }
}

/// One attribute, taken out of its area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Stands for the prefix.
    pub index: u8,
    /// The name without the prefix.
    pub name: Vec<u8>,
    /// The value.
    pub value: Value,
    /// `e_hash` that an unchanged attribute had; kept so that what another kernel wrote stays as it was.
    stored_hash: Option<u32>,
}

impl Attr {
    fn order(&self, index: u8, name: &[u8]) -> Ordering {
        (self.index, self.name.len(), self.name.as_slice()).cmp(&(index, name.len(), name))
    }

    fn hash(&self, kind: AreaKind) -> u32 {
        match (&self.value, kind, self.stored_hash) {
            (Value::EaInode { .. }, _, Some(hash)) => hash,
            (Value::EaInode { hash, .. }, _, None) => entry_hash_ea_inode(&self.name, *hash, false),
            (Value::Inline(_), AreaKind::Ibody, _) => 0,
            (Value::Inline(_), AreaKind::Block, Some(hash)) if hash != 0 => hash,
            (Value::Inline(value), AreaKind::Block, _) => entry_hash(&self.name, value, false),
        }
    }
}

/// The attributes of one area, to be changed and written back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttrSet {
    attrs: Vec<Attr>,
}

impl AttrSet {
    /// No attributes.
    #[must_use]
    pub const fn new() -> Self {
        Self { attrs: Vec::new() }
    }

    /// Takes the attributes out of `area`. Values in inodes keep their `e_hash`; their [`Value::EaInode::hash`] is 0,
    /// since only that inode knows it.
    #[must_use]
    pub fn from_area(area: &Area<'_>) -> Self {
        let attr = |e: Entry<'_>| Attr {
            index: e.index,
            name: e.name.to_vec(),
            value: match e.value_inum {
                Ino(0) => Value::Inline(e.value.to_vec()),
                ino => Value::EaInode { ino, size: e.value_size, hash: 0 },
            },
            stored_hash: Some(e.hash),
        };
        Self { attrs: area.entries().map(attr).collect() }
    }

    /// The attributes in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Attr> {
        self.attrs.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.attrs.is_empty()
    }

    /// The value of that prefix index and name.
    #[must_use]
    pub fn find(&self, index: u8, name: &[u8]) -> Option<&Value> {
        self.attrs.iter().find(|a| a.order(index, name).is_eq()).map(|a| &a.value)
    }

    /// Adds or replaces an attribute and returns the value it replaces.
    ///
    /// # Errors
    /// [`XattrError::BadName`] for a name of over 255 bytes.
    pub fn set(&mut self, index: u8, name: &[u8], value: Value) -> Result<Option<Value>, XattrError> {
        if name.len() > 255 {
            return Err(XattrError::BadName(name.len()));
        }
        match self.attrs.iter_mut().find(|a| a.order(index, name).is_eq()) {
            Some(attr) => {
                attr.stored_hash = None;
                Ok(Some(core::mem::replace(&mut attr.value, value)))
            }
            None => {
                self.attrs.push(Attr { index, name: name.to_vec(), value, stored_hash: None });
                Ok(None)
            }
        }
    }

    /// Removes an attribute and returns its value.
    pub fn remove(&mut self, index: u8, name: &[u8]) -> Option<Value> {
        let at = self.attrs.iter().position(|a| a.order(index, name).is_eq())?;
        Some(self.attrs.remove(at).value)
    }

    /// Bytes that an area of `kind` needs for these attributes, header and terminator included.
    #[must_use]
    pub fn area_len(&self, kind: AreaKind) -> usize {
        let attrs: usize = self.attrs.iter().map(|a| entry_len(a.name.len()) + a.value.area_len()).sum();
        kind.header_len() + 4 + attrs
    }

    /// Whether they fit into an area of `len` bytes.
    #[must_use]
    pub fn fits(&self, kind: AreaKind, len: usize) -> bool {
        self.area_len(kind) <= len
    }

    /// Bytes left for the value of a further attribute with a name of `name_len` bytes, in an area of `len` bytes.
    #[must_use]
    pub fn room_for_value(&self, kind: AreaKind, len: usize, name_len: usize) -> usize {
        len.saturating_sub(self.area_len(kind) + entry_len(name_len)) & !3
    }

    /// Writes the attributes into an inode's area, zeroing the rest; without attributes the whole area becomes zero.
    ///
    /// # Errors
    /// [`XattrError::NoRoom`]; nothing has changed then.
    pub fn write_ibody(&self, bytes: &mut [u8]) -> Result<(), XattrError> {
        if self.attrs.is_empty() {
            bytes.fill(0);
            return Ok(());
        }
        self.check_room(AreaKind::Ibody, bytes.len())?;
        bytes.fill(0);
        put_u32(bytes, 0, MAGIC);
        self.write_entries(AreaKind::Ibody, bytes);
        Ok(())
    }

    /// Writes the attributes into a whole block, sorted, with `refcount` and the block's hash. The checksum is left to
    /// [`set_block_checksum`].
    ///
    /// # Errors
    /// [`XattrError::NoRoom`]; nothing has changed then.
    pub fn write_block(&mut self, block: &mut [u8], refcount: u32) -> Result<(), XattrError> {
        self.check_room(AreaKind::Block, block.len())?;
        self.attrs.sort_by(|a, b| a.order(b.index, &b.name));
        block.fill(0);
        put_u32(block, 0, MAGIC);
        put_u32(block, 4, refcount);
        put_u32(block, 8, 1);
        put_u32(block, 12, block_hash(self.attrs.iter().map(|a| a.hash(AreaKind::Block))));
        self.write_entries(AreaKind::Block, block);
        Ok(())
    }

    fn check_room(&self, kind: AreaKind, room: usize) -> Result<(), XattrError> {
        let needed = self.area_len(kind);
        // Offsets of values have 16 bits.
        let limit = if needed <= room && room > 0x1_0000 { 0x1_0000 } else { room };
        if needed <= limit { Ok(()) } else { Err(XattrError::NoRoom { needed, room }) }
    }

    fn write_entries(&self, kind: AreaKind, bytes: &mut [u8]) {
        let (mut at, mut free) = (kind.header_len(), bytes.len() & !3);
        for attr in &self.attrs {
            let (mut value_offs, mut inum, mut size) = (0, 0, 0);
            match &attr.value {
                Value::Inline(value) if value.is_empty() => {}
                Value::Inline(value) => {
                    free -= padded(value.len());
                    bytes[free..free + value.len()].copy_from_slice(value);
                    value_offs = free - kind.value_base();
                    size = value.len() as u32;
                }
                Value::EaInode { ino, size: len, .. } => (inum, size) = (ino.0, *len),
            }
            let name_at = at + ENTRY_HEADER_LEN;
            bytes[at] = attr.name.len() as u8;
            bytes[at + 1] = attr.index;
            bytes[at + 2..at + 4].copy_from_slice(&(value_offs as u16).to_le_bytes());
            put_u32(bytes, at + 4, inum);
            put_u32(bytes, at + 8, size);
            put_u32(bytes, at + 12, attr.hash(kind));
            bytes[name_at..name_at + attr.name.len()].copy_from_slice(&attr.name);
            at += entry_len(attr.name.len());
        }
    }
}

/// The full names of all entries, as listxattr gives them; entries whose index has no prefix are left out.
#[must_use]
pub fn list(area: &Area<'_>) -> Vec<String> {
    area.entries().filter_map(|e| full_name(e.index, e.name)).collect()
}

#[cfg(test)]
mod tests;
