//! The block map of ext2 and ext3: 12 direct blocks, then one, two and three levels of indirect blocks.
//!
//! Arithmetic only; pointers are 32 bits. Also the largest file sizes of both map kinds. Source: the kernel's ext4
//! documentation, "Direct/Indirect Block Addressing"; the size limits by truncate(1) on loop mounts of every block
//! size.

use crate::extent;
use crate::types::Lblk;

/// Direct blocks in `i_block`.
pub const NDIR_BLOCKS: u32 = 12;
/// Word of `i_block` with the single indirect block.
pub const IND_BLOCK: usize = 12;
/// Word of `i_block` with the double indirect block.
pub const DIND_BLOCK: usize = 13;
/// Word of `i_block` with the triple indirect block.
pub const TIND_BLOCK: usize = 14;

/// The way from `i_block` to a block's pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    offsets: [u32; 4],
    levels: u8,
}

impl Path {
    /// The way to `lblk`, `None` past the triple indirect block's end.
    #[must_use]
    pub const fn new(lblk: Lblk, block_size: u32) -> Option<Self> {
        let bits = (block_size / 4).trailing_zeros();
        let mask = (1u64 << bits) - 1;
        let mut at = lblk.0 as u64;
        if at < NDIR_BLOCKS as u64 {
            return Some(Self { offsets: [at as u32, 0, 0, 0], levels: 0 });
        }
        at -= NDIR_BLOCKS as u64;
        if at < 1 << bits {
            return Some(Self { offsets: [IND_BLOCK as u32, at as u32, 0, 0], levels: 1 });
        }
        at -= 1 << bits;
        if at < 1 << (2 * bits) {
            let offsets = [DIND_BLOCK as u32, (at >> bits) as u32, (at & mask) as u32, 0];
            return Some(Self { offsets, levels: 2 });
        }
        at -= 1 << (2 * bits);
        if at >> bits >> bits >> bits != 0 {
            return None;
        }
        let offsets =
            [TIND_BLOCK as u32, (at >> bits >> bits) as u32, (at >> bits & mask) as u32, (at & mask) as u32];
        Some(Self { offsets, levels: 3 })
    }

    /// Indirect blocks on the way, 0 to 3.
    #[must_use]
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// The word of `i_block` and the pointers' indexes in each indirect block: `levels() + 1` numbers.
    #[must_use]
    pub fn offsets(&self) -> &[u32] {
        &self.offsets[..=usize::from(self.levels)]
    }

    /// How many further logical blocks have their pointers in the same block (or in `i_block`) behind this one.
    #[must_use]
    pub const fn rest_of_block(&self, block_size: u32) -> u32 {
        let last = self.offsets[self.levels as usize];
        let end = if self.levels == 0 { NDIR_BLOCKS } else { block_size / 4 };
        end - 1 - last
    }
}

/// Logical blocks that the subtree below one pointer of an indirect block at `level` (1 to 3) covers.
#[must_use]
pub const fn span(level: u8, block_size: u32) -> u64 {
    let bits = (block_size / 4).trailing_zeros();
    1 << (bits * (level as u32 - 1))
}

/// First logical block under word `slot` (12, 13 or 14) of `i_block`.
#[must_use]
pub const fn first_of_slot(slot: usize, block_size: u32) -> u64 {
    let per = block_size as u64 / 4;
    match slot {
        IND_BLOCK => NDIR_BLOCKS as u64,
        DIND_BLOCK => NDIR_BLOCKS as u64 + per,
        TIND_BLOCK => NDIR_BLOCKS as u64 + per + per * per,
        _ => slot as u64,
    }
}

/// Blocks that the map can address.
#[must_use]
pub const fn max_blocks(block_size: u32) -> u64 {
    let per = block_size as u64 / 4;
    NDIR_BLOCKS as u64 + per + per * per + per * per * per
}

/// Indirect blocks that a file without holes needs for its first `blocks` blocks.
#[must_use]
pub const fn blocks_for(blocks: u64, block_size: u32) -> u64 {
    let per = block_size as u64 / 4;
    let mut left = blocks.saturating_sub(NDIR_BLOCKS as u64);
    let mut sum = 0;
    let mut level = 1;
    while left > 0 && level <= 3 {
        let room = per.pow(level);
        let here = if left < room { left } else { room };
        let mut nodes = here;
        let mut depth = 0;
        while depth < level {
            nodes = nodes.div_ceil(per);
            sum += nodes;
            depth += 1;
        }
        left -= here;
        level += 1;
    }
    sum
}

/// Kinds of map a file's size limit depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// An extent tree.
    Extents,
    /// An indirect map.
    Indirect,
}

/// The largest file in bytes: beyond it the answer is EFBIG. `huge_file` is the filesystem's feature (without it
/// `i_blocks` has 32 bits of sectors).
#[must_use]
pub const fn max_file_size(kind: MapKind, block_size: u32, huge_file: bool) -> u64 {
    let log = block_size.trailing_zeros();
    let counted = if huge_file { (1 << 48) - 1 } else { (u32::MAX as u64) >> (log - 9) };
    let blocks = match kind {
        MapKind::Extents if huge_file => extent::MAX_LBLK as u64,
        MapKind::Extents => min(extent::MAX_LBLK as u128, counted),
        MapKind::Indirect => indirect_limit(block_size, counted),
    };
    min((blocks as u128) << log, i64::MAX as u64)
}

/// Data blocks such that they and their indirect blocks stay within `counted`, what `i_blocks` can count.
const fn indirect_limit(block_size: u32, counted: u64) -> u64 {
    let all = max_blocks(block_size);
    let reach = min(all as u128, u32::MAX as u64);
    if all + blocks_for(all, block_size) <= counted {
        return reach;
    }
    // As the kernel: the tree of a file of `counted` blocks is taken off, a little more than needed.
    min((counted - blocks_for(counted, block_size)) as u128, reach)
}

const fn min(a: u128, b: u64) -> u64 {
    if a < b as u128 { a as u64 } else { b }
}

#[cfg(test)]
mod tests;
