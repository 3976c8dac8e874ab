//! Bitmaps of blocks (clusters) and inodes: bit n of a group is bit `n % 8` of byte `n / 8`.
//!
//! Functions take the bitmap's bytes; ranges are bit numbers. A bit outside the bytes reads as set, so a search
//! for free bits never runs out of the slice. Source: the kernel's ext4 documentation, "Block and Inode Bitmaps".

use crate::error::Corrupt;

/// Whether bit `bit` is set; a bit outside counts as set.
#[must_use]
pub fn test(map: &[u8], bit: u32) -> bool {
    map.get((bit / 8) as usize).is_none_or(|b| b & (1 << (bit % 8)) != 0)
}

/// Sets bit `bit`; outside the bytes nothing happens. Returns the old value.
pub fn set(map: &mut [u8], bit: u32) -> bool {
    let old = test(map, bit);
    if let Some(b) = map.get_mut((bit / 8) as usize) {
        *b |= 1 << (bit % 8);
    }
    old
}

/// Clears bit `bit`; outside the bytes nothing happens. Returns the old value.
pub fn clear(map: &mut [u8], bit: u32) -> bool {
    let old = test(map, bit);
    if let Some(b) = map.get_mut((bit / 8) as usize) {
        *b &= !(1 << (bit % 8));
    }
    old
}

/// First clear bit in `from..to`.
#[must_use]
pub fn find_zero(map: &[u8], from: u32, to: u32) -> Option<u32> {
    find(map, from, to, !0)
}

/// First set bit in `from..to` (bits outside the bytes do not count here).
#[must_use]
pub fn find_one(map: &[u8], from: u32, to: u32) -> Option<u32> {
    find(map, from, to, 0)
}

/// First bit in `from..to` that is set in `map ^ invert`.
fn find(map: &[u8], from: u32, to: u32, invert: u64) -> Option<u32> {
    let to = to.min(bits(map));
    let mut at = from;
    while at < to {
        let word = (word_at(map, at / 64) ^ invert) >> (at % 64);
        if word != 0 {
            let hit = at.checked_add(word.trailing_zeros())?;
            return (hit < to).then_some(hit);
        }
        at = (at / 64 + 1).checked_mul(64)?;
    }
    None
}

/// The 64 bits from bit `64 * index`; bytes that are missing read as zero.
fn word_at(map: &[u8], index: u32) -> u64 {
    let start = index as usize * 8;
    if let Some(b) = map.get(start..start + 8).and_then(|b| b.first_chunk::<8>()) {
        return u64::from_le_bytes(*b);
    }
    let mut word = [0; 8];
    let rest = map.get(start..).unwrap_or(&[]);
    word[..rest.len()].copy_from_slice(rest);
    u64::from_le_bytes(word)
}

fn bits(map: &[u8]) -> u32 {
    u32::try_from(map.len().saturating_mul(8)).unwrap_or(u32::MAX)
}

/// Number of set bits in `from..to`.
#[must_use]
pub fn count_ones(map: &[u8], from: u32, to: u32) -> u32 {
    let to = to.min(bits(map));
    let mut at = from;
    let mut sum = 0;
    while at < to {
        let end = ((at / 64 + 1).saturating_mul(64)).min(to);
        let word = (word_at(map, at / 64) >> (at % 64)) & low_mask(end - at);
        sum += word.count_ones();
        at = end;
    }
    sum
}

/// Number of clear bits in `from..to`.
#[must_use]
pub fn count_zeros(map: &[u8], from: u32, to: u32) -> u32 {
    let to = to.min(bits(map));
    to.saturating_sub(from) - count_ones(map, from, to)
}

const fn low_mask(bits: u32) -> u64 {
    if bits >= 64 { !0 } else { (1 << bits) - 1 }
}

/// Sets `len` bits from `start`.
///
/// # Errors
/// [`Corrupt::Bit`] if one was set, [`Corrupt::Short`] past the end; the map is then unchanged.
pub fn set_range(map: &mut [u8], start: u32, len: u32) -> Result<(), Corrupt> {
    let end = checked_end(map, start, len)?;
    match find_one(map, start, end) {
        Some(bit) => Err(Corrupt::Bit { bit, set: true }),
        None => {
            fill(map, start, end, true);
            Ok(())
        }
    }
}

/// Clears `len` bits from `start`.
///
/// # Errors
/// [`Corrupt::Bit`] if one was clear, [`Corrupt::Short`] past the end; the map is then unchanged.
pub fn clear_range(map: &mut [u8], start: u32, len: u32) -> Result<(), Corrupt> {
    let end = checked_end(map, start, len)?;
    match find_zero(map, start, end) {
        Some(bit) => Err(Corrupt::Bit { bit, set: false }),
        None => {
            fill(map, start, end, false);
            Ok(())
        }
    }
}

fn checked_end(map: &[u8], start: u32, len: u32) -> Result<u32, Corrupt> {
    let end = u64::from(start) + u64::from(len);
    match u32::try_from(end) {
        Ok(e) if e <= bits(map) => Ok(e),
        _ => Err(Corrupt::Short { have: u64::from(bits(map)) / 8, need: end.div_ceil(8) }),
    }
}

/// Makes all bits of `from..to` equal `value`, whatever they were; bits outside the bytes are left out.
pub fn fill(map: &mut [u8], from: u32, to: u32, value: bool) {
    let to = to.min(bits(map));
    if from >= to {
        return;
    }
    let (first, last) = ((from / 8) as usize, ((to - 1) / 8) as usize);
    let head = 0xffu8 << (from % 8);
    let tail = 0xffu8 >> (7 - (to - 1) % 8);
    let mut apply = |at: usize, mask: u8| {
        if value { map[at] |= mask } else { map[at] &= !mask }
    };
    if first == last {
        return apply(first, head & tail);
    }
    apply(first, head);
    apply(last, tail);
    map[first + 1..last].fill(if value { 0xff } else { 0 });
}

/// Sets every bit from `used` to the end of the block, as padding (a group with fewer clusters or inodes than a
/// bitmap block has bits).
pub fn pad(map: &mut [u8], used: u32) {
    let end = bits(map);
    fill(map, used, end, true);
}

/// Whether every bit from `used` to the end of the block is set.
#[must_use]
pub fn is_padded(map: &[u8], used: u32) -> bool {
    find_zero(map, used, bits(map)).is_none()
}

#[cfg(test)]
mod tests;
