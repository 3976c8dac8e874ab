//! How many blocks an operation may change (journal credits), and how many tree blocks it may need, at worst.

use extant_format::extent::{MAX_LEN, capacity};
use extant_format::indirect::MapKind;
use extant_journal::Journal;

use crate::fs::{Content, MapFs};
use crate::remove::MOST_REVOKED;

impl MapFs {
    /// Credits for publishing and mapping `runs` separate runs, each at most an extent long, into a map of `depth`
    /// ([`MapFs::depth`]): bitmaps and descriptors of data and tree blocks, and the tree. Without the inode's own block.
    #[must_use]
    pub fn insert_credits(&self, kind: MapKind, depth: u16, runs: u32) -> u32 {
        match kind {
            MapKind::Extents => self.tree_credits(depth, runs, runs),
            // Of a run that crosses from one branch into another: two blocks of pointers to data, two above, one at the top.
            MapKind::Indirect => 5 * runs + self.alloc.alloc_credits(6 * runs),
        }
    }

    /// Credits for mapping one run of `len` blocks. In an indirect map a kibibyte of pointers or so is a block of its own.
    #[must_use]
    pub fn insert_credits_for(&self, kind: MapKind, depth: u16, len: u32) -> u32 {
        match kind {
            MapKind::Extents => self.insert_credits(kind, depth, len.div_ceil(MAX_LEN - 1).max(1)),
            MapKind::Indirect => {
                let per = self.geo.block_size() / 4;
                let nodes = 5 + len / per + len / per / per;
                nodes + self.alloc.alloc_credits(nodes + 1)
            }
        }
    }

    /// Credits for converting `extents` extents, or parts of them. Without the inode's own block.
    #[must_use]
    pub fn convert_credits(&self, kind: MapKind, depth: u16, extents: u32) -> u32 {
        match kind {
            MapKind::Extents => self.tree_credits(depth, extents, 0),
            MapKind::Indirect => 0,
        }
    }

    /// Credits for `changes` changes of a leaf, each of which may split every node on its way, and for `claims` other claims. The
    /// root grows once at most: one level more has room for more children than an operation makes.
    fn tree_credits(&self, depth: u16, changes: u32, claims: u32) -> u32 {
        if changes == 0 {
            return 0;
        }
        let levels = u32::from(depth) + 1;
        let made = changes * levels + 1;
        changes * levels + made + self.alloc.alloc_credits(made + claims)
    }

    /// Credits for taking `pieces` neighbouring extents, or parts of them, out of an extent tree of `depth` and entering as many others
    /// in their place, where the blocks themselves stay allocated ([`Content::Kept`]). Without the inode's own block.
    #[must_use]
    pub fn replace_credits(&self, depth: u16, pieces: u32) -> u32 {
        // Each step of the removal takes one extent out at least; one more is split.
        pieces * Self::take_credits(depth.into()) + self.tree_credits(depth, pieces + 1, 0)
    }

    /// Credits that taking one extent out of a tree of `depth` takes beside the freeing of its blocks: the leaf and its parents, tree
    /// blocks that go or come, and their revoke records.
    pub(crate) fn take_credits(depth: usize) -> u32 {
        5 * (depth as u32 + 1) + 1
    }

    /// Credits with which one call of [`MapFs::remove`] makes progress, beside those that it is to keep; more let it do more.
    /// Without the inode's own block.
    #[must_use]
    pub fn remove_credits(&self, kind: MapKind, depth: u16) -> u32 {
        // Some block groups, or half a log block of revoke records, at a time.
        const PLENTY: u32 = 16;
        let tree = match kind {
            MapKind::Extents => Self::take_credits(depth.into()),
            MapKind::Indirect => Self::EMPTIED,
        };
        tree + self.alloc.free_credits(MAX_LEN.into()).clamp(PLENTY / 2, PLENTY)
    }

    /// Credits that removing a run of pointers takes beside the freeing of its blocks: the block that has the pointers, three
    /// levels that may go (each a bitmap, a descriptor and the pointer to it), and their revoke records.
    pub(crate) const EMPTIED: u32 = 1 + 3 * Self::DROPPED;
    /// The same for one level.
    pub(crate) const DROPPED: u32 = 4;

    /// How many blocks of one run `credits` are enough to free.
    pub(crate) fn freeable(&self, journal: &Journal, credits: u32, content: Content) -> u32 {
        let (records, credits) = match content {
            Content::Data | Content::Kept => (u32::MAX, credits),
            Content::Journalled => {
                let least = self.alloc.free_credits(1);
                let most = journal.revoke_credits(MOST_REVOKED).min(credits.saturating_sub(least));
                (journal.records_for(most).min(MOST_REVOKED), credits - most)
            }
        };
        self.alloc.freeable(credits).min(records)
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

    /// Tree blocks that a conversion of one range of an extent tree may need which makes up to `pieces` extents more: those at its two
    /// ends may be in different full leaves under different full nodes, the others follow each other.
    #[must_use]
    pub fn convert_blocks_worst(&self, depth: u16, pieces: u64) -> u64 {
        self.tree_blocks_worst(MapKind::Extents, depth, pieces) + u64::from(depth) + 1
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
