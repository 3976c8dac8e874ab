//! Inline data: the content of small files and directories inside the inode.
//!
//! The first 60 bytes are `i_block`; what does not fit there is the value of the attribute `system.data` in the inode's own
//! attribute area. An inode with the inline-data flag always has that attribute, if only with an empty value.
//!
//! An inline directory has in its first 4 bytes the parent's inode number (`.` and `..` are not stored); its records are
//! in two separate chains, one over bytes 4..60, one over the attribute's value.
//!
//! Nothing here locks: the caller holds the inode's xattr / inline lock. Source: kernel documentation
//! `filesystems/ext4/inlinedata.rst`.

use crate::dir::{self, DirError, DirLayout, NewEntry, Record};
use crate::inode::FileType;
use crate::types::Ino;
use crate::xattr::{AreaKind, AttrSet, INDEX_SYSTEM, Value};
use alloc::vec::Vec;

/// Bytes in `i_block`.
pub const IBLOCK_LEN: usize = 60;
/// Bytes before the records of an inline directory.
pub const DOTDOT_LEN: usize = 4;
/// The attribute's name, under [`INDEX_SYSTEM`].
pub const DATA_NAME: &[u8] = b"data";

/// How many bytes an inode can hold inline: `ibody_len` is its attribute area's length, `attrs` its attributes in the
/// area (`system.data` among them or not). 0 if not even an empty `system.data` fits.
#[must_use]
pub fn capacity(attrs: &AttrSet, ibody_len: usize) -> usize {
    let mut others = attrs.clone();
    others.remove(INDEX_SYSTEM, DATA_NAME);
    let with_empty = others.area_len(AreaKind::Ibody) + crate::xattr::entry_len(DATA_NAME.len());
    if with_empty > ibody_len {
        return 0;
    }
    IBLOCK_LEN + others.room_for_value(AreaKind::Ibody, ibody_len, DATA_NAME.len())
}

/// The bytes of the attribute that holds the second part; empty if there is no such attribute or its value is elsewhere.
#[must_use]
pub fn second_part(attrs: &AttrSet) -> &[u8] {
    match attrs.find(INDEX_SYSTEM, DATA_NAME) {
        Some(Value::Inline(bytes)) => bytes,
        _ => &[],
    }
}

/// Copies inline content from `offset` into `buf` and returns how many bytes there were; `size` is `i_size`, and bytes
/// that neither part has read as zero.
#[must_use]
pub fn read(i_block: &[u8; IBLOCK_LEN], second: &[u8], size: u64, offset: u64, buf: &mut [u8]) -> usize {
    let stored = (IBLOCK_LEN + second.len()) as u64;
    let end = size.min(stored);
    let len = end.saturating_sub(offset).min(buf.len() as u64) as usize;
    for (n, byte) in buf.iter_mut().enumerate().take(len) {
        let at = offset as usize + n;
        let of_second = || second.get(at - IBLOCK_LEN).copied().unwrap_or(0);
        *byte = i_block.get(at).copied().unwrap_or_else(of_second);
    }
    len
}

/// Makes `data` the whole inline content: the first part goes to `i_block` (its rest zeroed), the second into `attrs`.
/// False, with nothing changed, if it exceeds the [`capacity`].
#[must_use]
pub fn write(data: &[u8], i_block: &mut [u8; IBLOCK_LEN], attrs: &mut AttrSet, ibody_len: usize) -> bool {
    let max = capacity(attrs, ibody_len);
    if data.len() > max || max == 0 {
        return false;
    }
    let (first, second) = data.split_at(data.len().min(IBLOCK_LEN));
    i_block.fill(0);
    i_block[..first.len()].copy_from_slice(first);
    attrs.set(INDEX_SYSTEM, DATA_NAME, Value::Inline(second.to_vec())).is_ok()
}

/// Which chain of an inline directory a record is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Bytes 4..60 of `i_block`.
    First,
    /// The attribute's value.
    Second,
}

/// The parent of an inline directory.
#[must_use]
pub fn parent(i_block: &[u8; IBLOCK_LEN]) -> Ino {
    Ino(u32::from_le_bytes([i_block[0], i_block[1], i_block[2], i_block[3]]))
}

/// Changes the parent of an inline directory.
pub fn set_parent(i_block: &mut [u8; IBLOCK_LEN], parent: Ino) {
    i_block[..DOTDOT_LEN].copy_from_slice(&parent.0.to_le_bytes());
}

/// Makes `i_block` an empty inline directory; `i_size` becomes [`IBLOCK_LEN`].
pub fn init_dir(layout: &DirLayout, i_block: &mut [u8; IBLOCK_LEN], parent: Ino) {
    i_block.fill(0);
    set_parent(i_block, parent);
    let chain = layout.without_tail();
    // 56 bytes always hold a record.
    let _: Result<(), DirError> = dir::init_empty(&chain, &mut i_block[DOTDOT_LEN..]);
}

/// All records of an inline directory, unused ones too, with the chain that each is in; offsets count within it.
pub fn records<'a>(
    layout: &DirLayout,
    i_block: &'a [u8; IBLOCK_LEN],
    second: &'a [u8],
) -> impl Iterator<Item = (Part, Result<Record<'a>, DirError>)> + use<'a> {
    let chain = layout.without_tail();
    let first = dir::records(&chain, &i_block[DOTDOT_LEN..]).map(|r| (Part::First, r));
    first.chain(dir::records(&chain, second).map(|r| (Part::Second, r)))
}

/// The record in use whose name is exactly `name`.
///
/// # Errors
/// A [`DirError`] met before the name was found.
pub fn find<'a>(
    layout: &DirLayout,
    i_block: &'a [u8; IBLOCK_LEN],
    second: &'a [u8],
    name: &[u8],
) -> Result<Option<(Part, Record<'a>)>, DirError> {
    for (part, record) in records(layout, i_block, second) {
        let record = record?;
        if record.is_used() && record.name == name {
            return Ok(Some((part, record)));
        }
    }
    Ok(None)
}

/// Adds an entry where there is room, growing the second part up to `capacity` bytes (both parts together, from
/// [`capacity`]). True if it was added; `i_size` is then [`IBLOCK_LEN`] plus the second part's length.
///
/// # Errors
/// A [`DirError`] of either chain, or of the entry. Nothing has changed then.
pub fn insert(
    layout: &DirLayout,
    i_block: &mut [u8; IBLOCK_LEN],
    second: &mut Vec<u8>,
    capacity: usize,
    entry: &NewEntry<'_>,
) -> Result<bool, DirError> {
    let chain = layout.without_tail();
    if dir::insert(&chain, &mut i_block[DOTDOT_LEN..], entry)?.is_some() {
        return Ok(true);
    }
    if !second.is_empty() && dir::insert(&chain, second, entry)?.is_some() {
        return Ok(true);
    }
    let (old, new) = (second.len(), capacity.saturating_sub(IBLOCK_LEN) & !3);
    // A grown part gets one unused record over the new bytes; they must hold the name.
    let needed = chain.rec_len(entry.name.len(), false);
    if new < old || new - old < needed {
        return Ok(false);
    }
    second.resize(new, 0);
    dir::init_empty(&chain, &mut second[old..])?;
    Ok(dir::insert(&chain, second, entry)?.is_some())
}

/// Removes the record at `offset` of a chain.
///
/// # Errors
/// A [`DirError`] of that chain; [`DirError::NoSuchRecord`].
pub fn remove(
    layout: &DirLayout,
    i_block: &mut [u8; IBLOCK_LEN],
    second: &mut [u8],
    part: Part,
    offset: u32,
) -> Result<(), DirError> {
    dir::remove(&layout.without_tail(), chain_mut(i_block, second, part), offset)
}

/// Makes the record at `offset` of a chain name another inode.
///
/// # Errors
/// The [`DirError`] of that record; [`DirError::NoSuchRecord`].
pub fn set_ino(
    layout: &DirLayout,
    i_block: &mut [u8; IBLOCK_LEN],
    second: &mut [u8],
    (part, offset): (Part, u32),
    (ino, file_type): (Ino, FileType),
) -> Result<(), DirError> {
    dir::set_ino(&layout.without_tail(), chain_mut(i_block, second, part), offset, ino, file_type)
}

fn chain_mut<'a>(i_block: &'a mut [u8; IBLOCK_LEN], second: &'a mut [u8], part: Part) -> &'a mut [u8] {
    match part {
        Part::First => &mut i_block[DOTDOT_LEN..],
        Part::Second => second,
    }
}

/// Writes what an inline directory holds into `block` as the first block of an ordinary one; the checksum is left to
/// [`dir::set_tail`].
///
/// # Errors
/// A [`DirError`] of either chain; [`DirError::TooShort`] if the block cannot hold the entries.
pub fn to_block(
    layout: &DirLayout,
    i_block: &[u8; IBLOCK_LEN],
    second: &[u8],
    dir_ino: Ino,
    block: &mut [u8],
) -> Result<(), DirError> {
    let directory = |ino, name| NewEntry::new(ino, FileType::Directory, name);
    let mut entries = Vec::new();
    entries.push(directory(dir_ino, &b"."[..]));
    entries.push(directory(parent(i_block), &b".."[..]));
    for (_, record) in records(layout, i_block, second) {
        let record = record?;
        if record.is_used() {
            let Record { ino, raw_type, name, stored_hash, .. } = record;
            entries.push(NewEntry { ino, raw_type, name, stored_hash });
        }
    }
    if dir::pack(layout, block, entries) {
        Ok(())
    } else {
        Err(DirError::TooShort { len: block.len() as u32 })
    }
}

#[cfg(test)]
mod tests;
