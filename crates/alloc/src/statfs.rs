//! What statfs(2) says about space, by the kernel's rules.

use extant_format::{Compat, GroupNr, Incompat, Superblock};

use crate::allocator::Allocator;

/// The space part of statfs, in blocks and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SpaceStats {
    /// `f_blocks`: with `bsddf` without the filesystem's own structures, with `minixdf` all.
    pub blocks: u64,
    /// `f_bfree`: not used and not promised to dirty data.
    pub bfree: u64,
    /// `f_bavail`: what the unprivileged can have of it.
    pub bavail: u64,
    /// `f_files`
    pub files: u64,
    /// `f_ffree`
    pub ffree: u64,
}

impl Allocator {
    /// The numbers of statfs; `overhead` is [`overhead_clusters`], or 0 with `minixdf`. Takes no lock.
    #[must_use]
    pub fn statfs(&self, overhead: u64) -> SpaceStats {
        let log = self.geo.log_cluster_ratio();
        let bfree = self.counters().shown_free() << log;
        SpaceStats {
            blocks: self.geo.blocks_count().saturating_sub(overhead << log),
            bfree,
            bavail: bfree.saturating_sub(self.counters().held_back() << log),
            files: u64::from(self.geo.inodes_count()),
            ffree: self.free_inode_count(),
        }
    }

    /// Free clusters as the descriptors have them, for the superblock's `s_free_blocks_count`.
    #[must_use]
    pub fn free_clusters(&self) -> u64 {
        self.counters().disk_free()
    }

    /// Clusters that a reservation could get now, the reserved and held-back ones included.
    #[must_use]
    pub fn usable_clusters(&self) -> u64 {
        self.counters().usable().max(0) as u64
    }
}

/// The clusters that the filesystem's own structures take, as `bsddf` subtracts them: what precedes the first data
/// block, superblock and descriptor copies, bitmaps, inode tables, the internal journal of `journal_blocks` blocks.
/// The superblock's `s_overhead_clusters` counts if it is set.
#[must_use]
pub fn overhead_clusters(sb: &Superblock, journal_blocks: u64) -> u64 {
    let stored = u64::from(sb.raw().s_overhead_clusters.get());
    if stored != 0 && stored < sb.geometry().clusters_for(sb.geometry().blocks_count()) {
        return stored;
    }
    let geo = sb.geometry();
    let features = sb.features();
    let per_group = u64::from(geo.itable_blocks()) + 2;
    let base: u64 = (0..geo.groups()).map(|g| u64::from(geo.base_meta_blocks(GroupNr(g)))).sum();
    let mut blocks = u64::from(geo.first_data_block()) + base + per_group * u64::from(geo.groups());
    let internal = features.compat.contains(Compat::HAS_JOURNAL)
        && !features.incompat.contains(Incompat::JOURNAL_DEV)
        && sb.raw().s_journal_inum.get() != 0;
    if internal {
        blocks += journal_blocks;
    }
    geo.clusters_for(blocks)
}
