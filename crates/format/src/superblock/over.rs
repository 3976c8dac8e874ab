//! Writing a superblock so that a crash cannot tear it.
//!
//! A device writes 512 bytes whole, and a superblock has 1024: what changes is in its first half, and the checksum over both is
//! at the end of the second. A crash between the two leaves a superblock with a wrong checksum, which nobody mounts, and a
//! filesystem of one group has no other. So four bytes that mean nothing (behind the end of the text in
//! `s_last_mounted`) are chosen such that the checksum stays what it was: then only the first half changes.

use core::mem::offset_of;

use super::{RawSuperblock, SUPERBLOCK_SIZE, Superblock, until_zero};
use crate::csum::crc32c;

/// Bytes that a device writes whole.
const SECTOR: usize = 512;
/// Where the four bytes are: the last of `s_last_mounted`.
const FREE: usize = offset_of!(RawSuperblock, s_last_mounted) + 60;

impl Superblock {
    /// The 1024 bytes with a right checksum, to be written over `old`. They differ from it in the first 512 bytes only, if what
    /// changes is in there, `old` has a right checksum itself, and the text of `s_last_mounted` leaves four bytes free.
    #[must_use]
    pub fn encode_over(&self, old: &[u8]) -> [u8; SUPERBLOCK_SIZE] {
        let new = self.encode();
        let room = until_zero(self.raw().s_last_mounted.as_slice()).len() < 60;
        old.first_chunk().filter(|_| room && self.csum().has_metadata()).map_or(new, |old| steady(new, old))
    }
}

/// `new` with the checksum of `old`, if that can be.
fn steady(new: [u8; SUPERBLOCK_SIZE], old: &[u8; SUPERBLOCK_SIZE]) -> [u8; SUPERBLOCK_SIZE] {
    let end = offset_of!(RawSuperblock, s_checksum);
    let stored = old[end..].try_into().map_or(0, u32::from_le_bytes);
    if new[SECTOR..end] != old[SECTOR..end] || crc32c(!0, &old[..end]) != stored {
        return new;
    }
    let mut half = new;
    half[FREE..FREE + 4].fill(0);
    // The second half being equal, the whole has the same checksum if the first half has.
    let wanted = crc32c(!0, &half[..SECTOR]) ^ crc32c(!0, &old[..SECTOR]);
    half[FREE..FREE + 4].copy_from_slice(&solve(wanted).to_le_bytes());
    half[SECTOR..].copy_from_slice(&old[SECTOR..]);
    half
}

/// The four bytes that change the checksum of the first half by `wanted`. The checksum is linear, and no two values of four bytes
/// in a row change it alike: so there is one, and it is the sum of those for each bit.
fn solve(wanted: u32) -> u32 {
    let bits = (0..32).filter(|bit| wanted >> bit & 1 != 0);
    bits.fold(0, |value, bit| value ^ FOR_BIT[bit])
}

/// For each bit of the checksum of the first half: the four bytes that change it alone.
const FOR_BIT: [u32; 32] = invert(changes());

/// What each bit of the four bytes changes in the checksum of the first half.
const fn changes() -> [u32; 32] {
    /// Castagnoli's polynomial, lowest bit first.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut out = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        // The bits before it are nought and leave nothing; those behind it up to the end of the half are.
        let mut sum = 1 << bit;
        let mut left = (SECTOR - FREE) * 8;
        while left > 0 {
            sum = if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ POLYNOMIAL };
            left -= 1;
        }
        out[bit] = sum;
        bit += 1;
    }
    out
}

/// The inverse of the map from four bytes to the change of the checksum, by elimination.
const fn invert(mut change: [u32; 32]) -> [u32; 32] {
    let mut value = [0; 32];
    let mut row = 0;
    while row < 32 {
        value[row] = 1 << row;
        row += 1;
    }
    let mut bit = 0;
    while bit < 32 {
        let mut from = bit;
        while change[from] >> bit & 1 == 0 {
            from += 1;
        }
        (change[bit], change[from]) = (change[from], change[bit]);
        (value[bit], value[from]) = (value[from], value[bit]);
        let mut row = 0;
        while row < 32 {
            if row != bit && change[row] >> bit & 1 != 0 {
                change[row] ^= change[bit];
                value[row] ^= value[bit];
            }
            row += 1;
        }
        bit += 1;
    }
    value
}
