//! Blocks of the orphan file: inode numbers of files that were deleted, or were being truncated, while in use.
//!
//! A block is an array of 32-bit inode numbers (0: free slot) with 8 bytes behind it: `ob_magic`, and with `metadata_csum`
//! `ob_checksum`, crc32c over (the orphan file's inode seed, the block's number as 64 bits, the array).
//!
//! Source: kernel documentation `filesystems/ext4/orphan.rst`.

use crate::csum::crc32c;
use crate::types::{Ino, Pblk};
use thiserror::Error;

/// `ob_magic`.
pub const MAGIC: u32 = 0x0b10_ca04;
/// Bytes after the array.
pub const TAIL_LEN: usize = 8;

/// Why bytes are no block of an orphan file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum OrphanFileError {
    /// The magic number is wrong.
    #[error("orphan file block has magic {0:#010x}")]
    Magic(u32),
    /// The checksum is wrong.
    #[error("orphan file block checksum {stored:#010x} should be {computed:#010x}")]
    Checksum {
        /// On disk.
        stored: u32,
        /// Computed.
        computed: u32,
    },
    /// The block is too short to hold a slot.
    #[error("orphan file block of {0} bytes is too short")]
    TooShort(usize),
    /// There is no such slot.
    #[error("orphan file block has no slot {0}")]
    Slot(usize),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Inode numbers that a block of `block_len` bytes holds.
#[must_use]
pub const fn slots(block_len: usize) -> usize {
    block_len.saturating_sub(TAIL_LEN) / 4
}

/// What the checksum of a block depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Checksum seed of the orphan file's inode; `None` without `metadata_csum`.
    pub inode_seed: Option<u32>,
    /// Where the block lies.
    pub pblk: Pblk,
}

fn checksum(seed: u32, pblk: Pblk, block: &[u8]) -> u32 {
    crc32c(crc32c(seed, &pblk.0.to_le_bytes()), &block[..slots(block.len()) * 4])
}

/// Checks magic and checksum of a block.
///
/// # Errors
/// An [`OrphanFileError`] for what is wrong.
pub fn verify(place: Place, block: &[u8]) -> Result<(), OrphanFileError> {
    if block.len() < TAIL_LEN + 4 {
        return Err(OrphanFileError::TooShort(block.len()));
    }
    let at = block.len() - TAIL_LEN;
    let magic = u32_at(block, at);
    if magic != MAGIC {
        return Err(OrphanFileError::Magic(magic));
    }
    if let Some(seed) = place.inode_seed {
        let (stored, computed) = (u32_at(block, at + 4), checksum(seed, place.pblk, block));
        if stored != computed {
            return Err(OrphanFileError::Checksum { stored, computed });
        }
    }
    Ok(())
}

/// Makes `block` a block without orphans.
///
/// # Errors
/// [`OrphanFileError::TooShort`].
pub fn init(place: Place, block: &mut [u8]) -> Result<(), OrphanFileError> {
    if block.len() < TAIL_LEN + 4 {
        return Err(OrphanFileError::TooShort(block.len()));
    }
    block.fill(0);
    set_checksum(place, block);
    Ok(())
}

/// Writes the tail of a block: the magic number, and the checksum where there is one.
pub fn set_checksum(place: Place, block: &mut [u8]) {
    if block.len() < TAIL_LEN + 4 {
        return;
    }
    let at = block.len() - TAIL_LEN;
    block[at..at + 4].copy_from_slice(&MAGIC.to_le_bytes());
    let sum = place.inode_seed.map_or(0, |seed| checksum(seed, place.pblk, block));
    block[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// The slots in use, with their inodes.
pub fn orphans(block: &[u8]) -> impl Iterator<Item = (usize, Ino)> {
    let array = &block[..slots(block.len()) * 4];
    let inos = array.chunks_exact(4).map(|b| Ino(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    inos.enumerate().filter(|(_, ino)| ino.0 != 0)
}

/// The first free slot from `from` on, wrapping round.
#[must_use]
pub fn free_slot(block: &[u8], from: usize) -> Option<usize> {
    let slots = slots(block.len());
    let from = if from < slots { from } else { 0 };
    (from..slots).chain(0..from).find(|&slot| u32_at(block, slot * 4) == 0)
}

/// Sets a slot (`Ino(0)` frees it) and updates the checksum.
///
/// # Errors
/// [`OrphanFileError::Slot`].
pub fn set(place: Place, block: &mut [u8], slot: usize, ino: Ino) -> Result<(), OrphanFileError> {
    if slot >= slots(block.len()) {
        return Err(OrphanFileError::Slot(slot));
    }
    block[slot * 4..slot * 4 + 4].copy_from_slice(&ino.0.to_le_bytes());
    set_checksum(place, block);
    Ok(())
}

#[cfg(test)]
mod tests;
