//! Linear directory blocks: a chain of variable-length records, and in checksummed filesystems a tail record.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..4 | `inode` | 0: the record is unused |
//! | 4..6 | `rec_len` | to the next record; a multiple of 4; see [`decode_rec_len`] for blocks of 64 KiB |
//! | 6 | `name_len` | |
//! | 7 | `file_type` | without the `filetype` feature ignored, and 0 in what we write |
//! | 8.. | `name` | not terminated; after it, padded to 4, hash and minor hash where a directory is encrypted *and* casefolded |
//!
//! With `metadata_csum` the last 12 bytes of a block are a record that looks unused and whose type is `0xde`; its
//! checksum is crc32c over (inode seed, block without these 12 bytes).
//!
//! Every function takes the bytes of one block (or of one part of an inline directory) and a [`DirLayout`]; each walks
//! records only after validating them, so hostile bytes give a [`DirError`]. Nothing here locks: the caller holds the
//! directory's inode lock, and changes bytes inside a journal handle.
//!
//! Source: kernel documentation `filesystems/ext4/directory.rst`, "Linear (Classic) Directories".

use crate::csum::crc32c;
use crate::inode::FileType;
use crate::types::Ino;
use thiserror::Error;

/// Bytes of a record before its name.
pub const HEADER_LEN: usize = 8;
/// The shortest record: a name of up to four bytes.
pub const MIN_REC_LEN: usize = 12;
/// Bytes of the checksum record at a block's end.
pub const TAIL_LEN: usize = 12;
/// The longest name.
pub const MAX_NAME_LEN: usize = 255;
/// `file_type` of the checksum record.
pub const TAIL_FILE_TYPE: u8 = 0xde;

/// What the superblock and the directory's flags say about its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirLayout {
    /// Filesystem block size in bytes: decides how `rec_len` is encoded.
    pub block_size: u32,
    /// The `filetype` feature: records carry a type.
    pub filetype: bool,
    /// `metadata_csum`: blocks end with a checksum record.
    pub checksummed: bool,
    /// The directory is encrypted and casefolded: records other than `.` and `..` end with their hash.
    pub hash_in_entry: bool,
    /// `s_inodes_count`: the largest inode number that a record may hold.
    pub inodes_count: u32,
}

impl DirLayout {
    /// The same records without a checksum record: the parts of an inline directory, and the fake records with which
    /// htree index blocks begin.
    #[must_use]
    pub const fn without_tail(self) -> Self {
        Self { checksummed: false, ..self }
    }

    /// Bytes of a block that hold records.
    #[must_use]
    pub const fn usable(&self, block_len: usize) -> usize {
        if self.checksummed { block_len.saturating_sub(TAIL_LEN) } else { block_len }
    }

    /// Bytes that a record with a name of `name_len` bytes needs at least; `dots`: it is `.` or `..`.
    #[must_use]
    pub const fn rec_len(&self, name_len: usize, dots: bool) -> usize {
        let base = (name_len + HEADER_LEN + 3) & !3;
        if self.hash_in_entry && !dots { base + 8 } else { base }
    }
}

/// Why bytes are no directory block. Offsets are bytes from the start of the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DirError {
    /// The record's `rec_len` is below what any record needs.
    #[error("directory record at byte {offset}: rec_len {rec_len} is too small")]
    RecLenTooSmall {
        /// Where the record starts.
        offset: u32,
        /// Its length as decoded.
        rec_len: u32,
    },
    /// The record's `rec_len` is not a multiple of four.
    #[error("directory record at byte {offset}: rec_len {rec_len} is not a multiple of 4")]
    RecLenUnaligned {
        /// Where the record starts.
        offset: u32,
        /// Its length as decoded.
        rec_len: u32,
    },
    /// The record runs past the end of the block, or leaves a rest that is too short for a record.
    #[error("directory record at byte {offset}: rec_len {rec_len} does not fit before byte {end}")]
    Overrun {
        /// Where the record starts.
        offset: u32,
        /// Its length as decoded.
        rec_len: u32,
        /// Where records must end.
        end: u32,
    },
    /// The name does not fit into the record.
    #[error("directory record at byte {offset}: name_len {name_len} does not fit in rec_len {rec_len}")]
    NameLen {
        /// Where the record starts.
        offset: u32,
        /// Its name's length.
        name_len: u32,
        /// Its length as decoded.
        rec_len: u32,
    },
    /// A record in use has no name.
    #[error("directory record at byte {offset}: inode {ino} has an empty name")]
    EmptyName {
        /// Where the record starts.
        offset: u32,
        /// The inode that it names.
        ino: u32,
    },
    /// The record names an inode that the filesystem does not have.
    #[error("directory record at byte {offset}: inode {ino} is beyond the last inode {max}")]
    InodeRange {
        /// Where the record starts.
        offset: u32,
        /// The inode that it names.
        ino: u32,
        /// `s_inodes_count`.
        max: u32,
    },
    /// The block is too short to hold any record.
    #[error("directory block of {len} bytes is too short")]
    TooShort {
        /// Its length.
        len: u32,
    },
    /// The checksum record is missing or is not one.
    #[error("directory block has no checksum record at its end")]
    MissingTail,
    /// The checksum is wrong.
    #[error("directory block checksum {stored:#010x} should be {computed:#010x}")]
    Checksum {
        /// What the tail says.
        stored: u32,
        /// What the content gives.
        computed: u32,
    },
    /// A record does not start where the caller says that one starts.
    #[error("no directory record starts at byte {offset}")]
    NoSuchRecord {
        /// The offset asked for.
        offset: u32,
    },
    /// The caller's name is empty or longer than 255 bytes.
    #[error("a directory name of {len} bytes cannot be stored")]
    BadName {
        /// Its length.
        len: usize,
    },
}

/// `rec_len` as a number of bytes. Blocks of 64 KiB and more do not fit in 16 bits: there the lowest two bits hold
/// bits 16 and 17, and 0 and 65535 mean the whole block.
#[must_use]
pub const fn decode_rec_len(raw: u16, block_size: u32) -> u32 {
    let raw = raw as u32;
    if block_size < 65536 {
        return raw;
    }
    if raw == 65535 || raw == 0 {
        return block_size;
    }
    (raw & 0xfffc) | ((raw & 3) << 16)
}

/// The 16 bits that stand for `len` bytes; the opposite of [`decode_rec_len`]. `len` is at most the block size and a
/// multiple of 4.
#[must_use]
pub const fn encode_rec_len(len: u32, block_size: u32) -> u16 {
    if len < 65536 {
        return len as u16;
    }
    if len == block_size {
        return if block_size == 65536 { 65535 } else { 0 };
    }
    ((len & 0xfffc) | ((len >> 16) & 3)) as u16
}

/// One record, valid as to place, lengths and inode range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Where the record starts in its block, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub rec_len: u32,
    /// The inode it names; 0: unused.
    pub ino: Ino,
    /// The type byte as it is on disk; 0 without the `filetype` feature.
    pub raw_type: u8,
    /// The name; meaningless when unused.
    pub name: &'a [u8],
    /// `hash` and `minor_hash` at the record's end, where the layout has them.
    pub stored_hash: Option<(u32, u32)>,
}

impl Record<'_> {
    /// Whether the record names an inode.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        self.ino.0 != 0
    }

    /// The type that the record states; `None` for a byte without a meaning, and without the `filetype` feature.
    #[must_use]
    pub const fn file_type(&self) -> Option<FileType> {
        FileType::from_dirent_code(self.raw_type)
    }

    /// Whether the name is `.` or `..`.
    #[must_use]
    pub const fn is_dot_or_dotdot(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }

    /// Whether the name has a byte that no path component can have (`/` or NUL).
    #[must_use]
    pub fn has_illegal_byte(&self) -> bool {
        self.name.iter().any(|&b| b == b'/' || b == 0)
    }

    /// Bytes the record needs at least for what it holds.
    const fn needed(&self, layout: &DirLayout) -> usize {
        if self.is_used() { layout.rec_len(self.name.len(), self.is_dot_or_dotdot()) } else { 0 }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Validates and returns the record at `offset` of `block`.
///
/// # Errors
/// A [`DirError`] for what is wrong with it.
pub fn record_at<'a>(layout: &DirLayout, block: &'a [u8], offset: u32) -> Result<Record<'a>, DirError> {
    let end = layout.usable(block.len());
    let start = offset as usize;
    if start.checked_add(HEADER_LEN).is_none_or(|h| h > end) {
        return Err(DirError::Overrun { offset, rec_len: 0, end: end as u32 });
    }
    let ino = u32_at(block, start);
    let rec_len = decode_rec_len(u16_at(block, start + 4), layout.block_size);
    let raw_type = if layout.filetype { block[start + 7] } else { 0 };
    // The kernel never sets the byte above it without `filetype`, and ignores what stands there: seen on images that it
    // wrote, where a directory's block had been used before.
    let name_len = u32::from(block[start + 6]);
    if !rec_len.is_multiple_of(4) {
        return Err(DirError::RecLenUnaligned { offset, rec_len });
    }
    if (rec_len as usize) < MIN_REC_LEN {
        return Err(DirError::RecLenTooSmall { offset, rec_len });
    }
    let next = start + rec_len as usize;
    if next > end || (next != end && end - next < MIN_REC_LEN) {
        return Err(DirError::Overrun { offset, rec_len, end: end as u32 });
    }
    let name_end = start + HEADER_LEN + name_len as usize;
    if name_end > next || name_len as usize > MAX_NAME_LEN {
        return Err(DirError::NameLen { offset, name_len, rec_len });
    }
    if ino != 0 && name_len == 0 {
        return Err(DirError::EmptyName { offset, ino });
    }
    if ino > layout.inodes_count {
        return Err(DirError::InodeRange { offset, ino, max: layout.inodes_count });
    }
    let name = &block[start + HEADER_LEN..name_end];
    let mut record = Record { offset, rec_len, ino: Ino(ino), raw_type, name, stored_hash: None };
    if record.needed(layout) > rec_len as usize {
        return Err(DirError::NameLen { offset, name_len, rec_len });
    }
    if layout.hash_in_entry && ino != 0 && !record.is_dot_or_dotdot() {
        let at = (name_end + 3) & !3;
        record.stored_hash = Some((u32_at(block, at), u32_at(block, at + 4)));
    }
    Ok(record)
}

/// Iterates over the records of a block; ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    layout: DirLayout,
    block: &'a [u8],
    next: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DirError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.layout.usable(self.block.len()) as u32;
        if self.next >= end {
            return None;
        }
        let result = record_at(&self.layout, self.block, self.next);
        self.next = match &result {
            Ok(record) => self.next + record.rec_len,
            Err(_) => end,
        };
        Some(result)
    }
}

/// All records of `block`, unused ones too, the checksum record not.
#[must_use]
pub const fn records<'a>(layout: &DirLayout, block: &'a [u8]) -> Records<'a> {
    Records { layout: *layout, block, next: 0 }
}

/// The records of `block` that name an inode.
pub fn entries<'a>(
    layout: &DirLayout,
    block: &'a [u8],
) -> impl Iterator<Item = Result<Record<'a>, DirError>> + use<'a> {
    records(layout, block).filter(|r| r.as_ref().map_or(true, Record::is_used))
}

/// Validates every record of `block`. Checksums are [`verify_tail`]'s business.
///
/// # Errors
/// The first [`DirError`] met.
pub fn validate(layout: &DirLayout, block: &[u8]) -> Result<(), DirError> {
    if layout.usable(block.len()) < MIN_REC_LEN {
        return Err(DirError::TooShort { len: block.len() as u32 });
    }
    records(layout, block).try_for_each(|r| r.map(|_| ()))
}

/// What one pass over a block finds out for who looks a name up or adds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// The record in use with the name: its inode and where it starts. The pass ends there.
    pub found: Option<(Ino, u32)>,
    /// The first record with enough unused space for the name, for [`insert_at`]; only looked for until the name was
    /// found.
    pub room: Option<u32>,
}

/// Looks for `name`, and for room for it, in one pass.
///
/// # Errors
/// A [`DirError`] met before the name was found.
pub fn scan(layout: &DirLayout, block: &[u8], name: &[u8]) -> Result<Scan, DirError> {
    let end = layout.usable(block.len());
    let want = layout.rec_len(name.len(), false);
    let (mut scan, mut at) = (Scan::default(), 0);
    while at < end {
        let Some((head, rest)) = block[at..end].split_first_chunk::<HEADER_LEN>() else {
            return Err(broken(layout, block, at));
        };
        let ino = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let rec_len = decode_rec_len(u16::from_le_bytes([head[4], head[5]]), layout.block_size) as usize;
        let name_len = usize::from(head[6]);
        let next = at + rec_len;
        let fits = rec_len.is_multiple_of(4)
            && HEADER_LEN + name_len <= rec_len
            && rec_len >= MIN_REC_LEN
            && next <= end;
        if !fits {
            return Err(broken(layout, block, at));
        }
        let kept = if ino == 0 {
            0
        } else {
            // Names of one directory often begin alike: their ends first.
            let same = |there: &[u8]| there.last() == name.last() && there == name;
            if name_len == name.len() && rest.get(..name_len).is_some_and(same) {
                if ino > layout.inodes_count {
                    return Err(broken(layout, block, at));
                }
                scan.found = Some((Ino(ino), at as u32));
                return Ok(scan);
            }
            // Counting a dots record as long as others leaves room unused at most.
            layout.rec_len(name_len, false)
        };
        if scan.room.is_none() && rec_len >= kept + want {
            scan.room = Some(at as u32);
        }
        at = next;
    }
    Ok(scan)
}

/// The error of a record that [`scan`] could not step over.
#[cold]
fn broken(layout: &DirLayout, block: &[u8], at: usize) -> DirError {
    let (offset, end) = (at as u32, layout.usable(block.len()) as u32);
    record_at(layout, block, offset).err().unwrap_or(DirError::Overrun { offset, rec_len: 0, end })
}

/// The record in use whose name is exactly `name`.
///
/// # Errors
/// A [`DirError`] met before the name was found.
pub fn find<'a>(layout: &DirLayout, block: &'a [u8], name: &[u8]) -> Result<Option<Record<'a>>, DirError> {
    match scan(layout, block, name)?.found {
        Some((_, offset)) => record_at(layout, block, offset).map(Some),
        None => Ok(None),
    }
}

/// Whether the block names nothing but `.` and `..`.
///
/// # Errors
/// The first [`DirError`] met.
pub fn is_empty(layout: &DirLayout, block: &[u8]) -> Result<bool, DirError> {
    for record in entries(layout, block) {
        if !record?.is_dot_or_dotdot() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a record is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEntry<'a> {
    /// The inode to name; not 0.
    pub ino: Ino,
    /// Its type's byte; written only where the layout has types.
    pub raw_type: u8,
    /// The name, 1 to 255 bytes.
    pub name: &'a [u8],
    /// Hash and minor hash, for layouts that store them.
    pub stored_hash: Option<(u32, u32)>,
}

impl<'a> NewEntry<'a> {
    /// An entry without a stored hash.
    #[must_use]
    pub const fn new(ino: Ino, file_type: FileType, name: &'a [u8]) -> Self {
        Self { ino, raw_type: file_type.dirent_code(), name, stored_hash: None }
    }

    const fn rec_len(&self, layout: &DirLayout) -> usize {
        layout.rec_len(self.name.len(), matches!(self.name, b"." | b".."))
    }
}

/// Writes a record over `bytes`, whose length becomes its `rec_len`. The rest of the record stays as it is.
fn write_record(layout: &DirLayout, bytes: &mut [u8], entry: &NewEntry<'_>) {
    let rec_len = encode_rec_len(bytes.len() as u32, layout.block_size);
    bytes[0..4].copy_from_slice(&entry.ino.0.to_le_bytes());
    bytes[4..6].copy_from_slice(&rec_len.to_le_bytes());
    bytes[6] = entry.name.len() as u8;
    bytes[7] = if layout.filetype { entry.raw_type } else { 0 };
    let name_end = HEADER_LEN + entry.name.len();
    bytes[HEADER_LEN..name_end].copy_from_slice(entry.name);
    let padded = (name_end + 3) & !3;
    bytes[name_end..padded].fill(0);
    if let (true, Some((hash, minor))) = (layout.hash_in_entry, entry.stored_hash) {
        bytes[padded..padded + 4].copy_from_slice(&hash.to_le_bytes());
        bytes[padded + 4..padded + 8].copy_from_slice(&minor.to_le_bytes());
    }
}

/// Writes an unused record over `bytes`.
fn write_unused(layout: &DirLayout, bytes: &mut [u8]) {
    let rec_len = encode_rec_len(bytes.len() as u32, layout.block_size);
    bytes[..HEADER_LEN].fill(0);
    bytes[4..6].copy_from_slice(&rec_len.to_le_bytes());
}

fn set_rec_len(layout: &DirLayout, block: &mut [u8], offset: u32, rec_len: u32) {
    let at = offset as usize + 4;
    block[at..at + 2].copy_from_slice(&encode_rec_len(rec_len, layout.block_size).to_le_bytes());
}

/// Makes `block` an empty directory block: one unused record, and the checksum record (not yet filled) where the
/// layout has one.
///
/// # Errors
/// [`DirError::TooShort`].
pub fn init_empty(layout: &DirLayout, block: &mut [u8]) -> Result<(), DirError> {
    let end = layout.usable(block.len());
    if end < MIN_REC_LEN {
        return Err(DirError::TooShort { len: block.len() as u32 });
    }
    block.fill(0);
    write_unused(layout, &mut block[..end]);
    init_tail(layout, block);
    Ok(())
}

/// Makes `block` the first block of a new directory: `.`, `..`, and the checksum record where the layout has one.
///
/// # Errors
/// [`DirError::TooShort`].
pub fn init_first(layout: &DirLayout, block: &mut [u8], dir: Ino, parent: Ino) -> Result<(), DirError> {
    let end = layout.usable(block.len());
    if end < 2 * MIN_REC_LEN {
        return Err(DirError::TooShort { len: block.len() as u32 });
    }
    block.fill(0);
    write_record(layout, &mut block[..MIN_REC_LEN], &NewEntry::new(dir, FileType::Directory, b"."));
    write_record(layout, &mut block[MIN_REC_LEN..end], &NewEntry::new(parent, FileType::Directory, b".."));
    init_tail(layout, block);
    Ok(())
}

/// Where a new record of `needed` bytes fits: the record to take it from.
fn find_slot(layout: &DirLayout, block: &[u8], needed: usize) -> Result<Option<(u32, u32, usize)>, DirError> {
    for record in records(layout, block) {
        let record = record?;
        let kept = record.needed(layout);
        if record.rec_len as usize - kept >= needed {
            return Ok(Some((record.offset, record.rec_len, kept)));
        }
    }
    Ok(None)
}

/// Whether [`insert`] would find room for a name of `name_len` bytes.
///
/// # Errors
/// The first [`DirError`] met.
pub fn has_room(layout: &DirLayout, block: &[u8], name_len: usize) -> Result<bool, DirError> {
    Ok(find_slot(layout, block, layout.rec_len(name_len, false))?.is_some())
}

/// Adds `entry` to the first unused space that is large enough, splitting the record that has it, and returns where
/// the new record starts; `None` if there is no room. Does not look whether the name exists, and leaves the
/// checksum to [`set_tail`].
///
/// # Errors
/// The first [`DirError`] met; [`DirError::BadName`]. On error nothing has changed.
pub fn insert(layout: &DirLayout, block: &mut [u8], entry: &NewEntry<'_>) -> Result<Option<u32>, DirError> {
    if entry.name.is_empty() || entry.name.len() > MAX_NAME_LEN {
        return Err(DirError::BadName { len: entry.name.len() });
    }
    let Some((offset, rec_len, kept)) = find_slot(layout, block, entry.rec_len(layout))? else {
        return Ok(None);
    };
    if kept > 0 {
        set_rec_len(layout, block, offset, kept as u32);
    }
    let start = offset as usize + kept;
    write_record(layout, &mut block[start..offset as usize + rec_len as usize], entry);
    Ok(Some(start as u32))
}

/// Adds `entry` in the unused space of the record at `offset`, which [`scan`] has found, and returns where the new record
/// starts. Leaves the checksum to [`set_tail`].
///
/// # Errors
/// The [`DirError`] of that record; [`DirError::BadName`]; [`DirError::NoSuchRecord`] if it has no such space. On error
/// nothing has changed.
pub fn insert_at(
    layout: &DirLayout,
    block: &mut [u8],
    offset: u32,
    entry: &NewEntry<'_>,
) -> Result<u32, DirError> {
    if entry.name.is_empty() || entry.name.len() > MAX_NAME_LEN {
        return Err(DirError::BadName { len: entry.name.len() });
    }
    let record = record_at(layout, block, offset)?;
    let (kept, rec_len) = (record.needed(layout), record.rec_len as usize);
    if rec_len - kept < entry.rec_len(layout) {
        return Err(DirError::NoSuchRecord { offset });
    }
    if kept > 0 {
        set_rec_len(layout, block, offset, kept as u32);
    }
    let start = offset as usize + kept;
    write_record(layout, &mut block[start..offset as usize + rec_len], entry);
    Ok(start as u32)
}

/// Removes the record at `offset`: its space joins the record before it, or, as the block's first, it becomes unused.
/// Leaves the checksum to [`set_tail`].
///
/// # Errors
/// The first [`DirError`] met; [`DirError::NoSuchRecord`]. On error nothing has changed.
pub fn remove(layout: &DirLayout, block: &mut [u8], offset: u32) -> Result<(), DirError> {
    let mut previous: Option<(u32, u32)> = None;
    for record in records(layout, block) {
        let record = record?;
        if record.offset == offset {
            let (at, len) = (record.offset as usize, record.rec_len);
            match previous {
                Some((before, before_len)) => {
                    set_rec_len(layout, block, before, before_len + len);
                    block[at..at + len as usize].fill(0);
                }
                None => {
                    block[at..at + len as usize].fill(0);
                    write_unused(layout, &mut block[at..at + len as usize]);
                }
            }
            return Ok(());
        }
        previous = Some((record.offset, record.rec_len));
    }
    Err(DirError::NoSuchRecord { offset })
}

/// Makes the record at `offset` name another inode, as rename does.
///
/// # Errors
/// The [`DirError`] of that record; [`DirError::NoSuchRecord`] if it is unused.
pub fn set_ino(
    layout: &DirLayout,
    block: &mut [u8],
    offset: u32,
    ino: Ino,
    file_type: FileType,
) -> Result<(), DirError> {
    let record = record_at(layout, block, offset)?;
    if !record.is_used() {
        return Err(DirError::NoSuchRecord { offset });
    }
    let at = offset as usize;
    block[at..at + 4].copy_from_slice(&ino.0.to_le_bytes());
    if layout.filetype {
        block[at + 7] = file_type.dirent_code();
    }
    Ok(())
}

/// Packs the given entries from the start of `block` in their order, the last one taking the rest; the checksum record
/// is made, not filled. False, and an unspecified content, if they do not fit.
#[must_use]
pub fn pack<'a>(
    layout: &DirLayout,
    block: &mut [u8],
    entries: impl IntoIterator<Item = NewEntry<'a>>,
) -> bool {
    let end = layout.usable(block.len());
    if end < MIN_REC_LEN {
        return false;
    }
    block.fill(0);
    let (mut last, mut at) = (None, 0_usize);
    for entry in entries {
        let len = entry.rec_len(layout);
        if at + len > end || entry.name.is_empty() || entry.name.len() > MAX_NAME_LEN {
            return false;
        }
        write_record(layout, &mut block[at..at + len], &entry);
        last = Some(at);
        at += len;
    }
    match last {
        Some(last) => set_rec_len(layout, block, last as u32, (end - last) as u32),
        None => write_unused(layout, &mut block[..end]),
    }
    init_tail(layout, block);
    true
}

/// Writes the checksum record with a checksum of 0, where the layout has one.
pub fn init_tail(layout: &DirLayout, block: &mut [u8]) {
    if !layout.checksummed || block.len() < TAIL_LEN {
        return;
    }
    let at = block.len() - TAIL_LEN;
    block[at..].copy_from_slice(&[0, 0, 0, 0, TAIL_LEN as u8, 0, 0, TAIL_FILE_TYPE, 0, 0, 0, 0]);
}

/// Whether the block ends with a checksum record.
#[must_use]
pub fn has_tail(block: &[u8]) -> bool {
    let tail = [0, 0, 0, 0, TAIL_LEN as u8, 0, 0, TAIL_FILE_TYPE];
    block.len() >= TAIL_LEN && block[block.len() - TAIL_LEN..block.len() - 4] == tail
}

/// Checks the checksum record of a linear block; `inode_seed` is the directory's checksum seed. Does nothing where the
/// layout has none.
///
/// # Errors
/// [`DirError::MissingTail`], [`DirError::Checksum`].
pub fn verify_tail(layout: &DirLayout, block: &[u8], inode_seed: u32) -> Result<(), DirError> {
    if !layout.checksummed {
        return Ok(());
    }
    if !has_tail(block) {
        return Err(DirError::MissingTail);
    }
    let computed = crc32c(inode_seed, &block[..block.len() - TAIL_LEN]);
    let stored = u32_at(block, block.len() - 4);
    if stored == computed { Ok(()) } else { Err(DirError::Checksum { stored, computed }) }
}

/// Fills in the checksum of a linear block, writing the checksum record if it is missing. Does nothing where the layout
/// has none.
pub fn set_tail(layout: &DirLayout, block: &mut [u8], inode_seed: u32) {
    if !layout.checksummed || block.len() < TAIL_LEN {
        return;
    }
    init_tail(layout, block);
    let at = block.len() - TAIL_LEN;
    let sum = crc32c(inode_seed, &block[..at]);
    block[at + 8..].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests;
