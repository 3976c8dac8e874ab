//! How many blocks an operation may change (journal credits), and how many tree blocks it may need, at worst.

use extant_format::extent::{MAX_LEN, capacity};
use extant_format::indirect::MapKind;

use crate::fs::MapFs;

impl MapFs {
    /// Credits for publishing and mapping `runs` separate runs into a map of `depth` ([`MapFs::depth`]): bitmaps and
    /// descriptors of data and tree blocks, and the tree. Without the inode's own block.
    #[must_use]
    pub fn insert_credits(&self, kind: MapKind, depth: u16, runs: u32) -> u32 {
        let data = 2 * runs;
        let levels = u32::from(depth) + 1;
        match kind {
            // Each level: the node and its new sibling, and the sibling's bitmap and descriptor; one more for growth.
            MapKind::Extents => data + runs.min(4) * (4 * levels + 3) + runs.saturating_sub(4) * (levels + 1),
            // Each run: up to three indirect blocks with bitmap and descriptor, and one more for a run that crosses.
            MapKind::Indirect => data + runs * 12,
        }
    }

    /// Credits for mapping one run of `len` blocks into an indirect map, where each kibibyte or so of pointers is a
    /// block of its own. For extents the length does not matter.
    #[must_use]
    pub fn insert_credits_for(&self, kind: MapKind, depth: u16, len: u32) -> u32 {
        match kind {
            MapKind::Extents => self.insert_credits(kind, depth, 1 + len / MAX_LEN),
            MapKind::Indirect => {
                let per = self.geo.block_size() / 4;
                self.insert_credits(kind, depth, 1) + 3 * (len / per + 1)
            }
        }
    }

    /// Credits for converting a range that covers at most `extents` extents. Without the inode's own block.
    #[must_use]
    pub fn convert_credits(&self, kind: MapKind, depth: u16, extents: u32) -> u32 {
        match kind {
            MapKind::Extents => self.insert_credits(kind, depth, extents + 2),
            MapKind::Indirect => 0,
        }
    }

    /// Credits with which one call of [`MapFs::remove`] makes progress; more let it do more. Without the inode's own
    /// block.
    #[must_use]
    pub fn remove_credits(&self, kind: MapKind, depth: u16) -> u32 {
        match kind {
            MapKind::Extents => self.alloc.free_credits(u64::from(MAX_LEN)) + 5 * (u32::from(depth) + 1),
            MapKind::Indirect => 16,
        }
    }

    /// Tree blocks (in clusters, as reservations count) that mapping `blocks` further blocks may need when every
    /// block becomes an extent of its own. Monotonic in `blocks`: who adds to a promise reserves the difference.
    #[must_use]
    pub fn tree_blocks_worst(&self, kind: MapKind, depth: u16, blocks: u64) -> u64 {
        if blocks == 0 {
            return 0;
        }
        match kind {
            MapKind::Extents => {
                // Nodes are at least half full after splits in the middle.
                let half = u64::from(capacity(self.geo.block_size() as usize) / 2).max(2);
                let (mut nodes, mut sum) = (blocks, u64::from(depth) + 1);
                while nodes >= half {
                    nodes /= half;
                    sum += nodes;
                }
                sum
            }
            MapKind::Indirect => {
                // A single block may need three; neighbours share all but every `per`-th.
                blocks.saturating_mul(3)
            }
        }
    }

    /// As [`Self::tree_blocks_worst`] for one run of `len` blocks that follow each other.
    #[must_use]
    pub fn tree_blocks_for_run(&self, kind: MapKind, depth: u16, len: u64) -> u64 {
        match kind {
            MapKind::Extents => self.tree_blocks_worst(kind, depth, len),
            MapKind::Indirect => {
                let per = u64::from(self.geo.block_size()) / 4;
                if len == 0 { 0 } else { len.div_ceil(per) + 1 + len.div_ceil(per * per) + 1 + 2 }
            }
        }
    }
}
