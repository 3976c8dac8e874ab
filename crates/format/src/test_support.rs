//! A small valid superblock for unit tests.

use crate::features::{Compat, Features, Incompat, RoCompat};
use crate::superblock::{EXT4_SUPER_MAGIC, RawSuperblock, Superblock};

/// 16 MiB in blocks of 4 KiB, 64bit, metadata_csum, huge_file.
pub(crate) fn raw_superblock() -> RawSuperblock {
    let mut raw = RawSuperblock::zeroed();
    raw.s_magic.set(EXT4_SUPER_MAGIC);
    raw.s_rev_level.set(1);
    raw.s_log_block_size.set(2);
    raw.s_log_cluster_size.set(2);
    raw.s_blocks_per_group.set(32768);
    raw.s_clusters_per_group.set(32768);
    raw.s_inodes_per_group.set(1024);
    raw.s_inodes_count.set(1024);
    raw.set_blocks_count(4096);
    raw.s_first_ino.set(11);
    raw.s_inode_size.set(256);
    raw.s_desc_size.set(64);
    raw.s_checksum_type = 1;
    raw.s_uuid = [7; 16];
    raw.set_features(Features {
        compat: Compat::HAS_JOURNAL | Compat::EXT_ATTR,
        incompat: Incompat::EXTENTS | Incompat::BIT64 | Incompat::FLEX_BG | Incompat::FILETYPE,
        ro_compat: RoCompat::SPARSE_SUPER
            | RoCompat::METADATA_CSUM
            | RoCompat::HUGE_FILE
            | RoCompat::EXTRA_ISIZE
            | RoCompat::LARGE_FILE,
    });
    raw
}

/// The same, changed, checked.
pub(crate) fn superblock(change: impl FnOnce(&mut RawSuperblock)) -> Superblock {
    let mut raw = raw_superblock();
    change(&mut raw);
    Superblock::from_raw(raw).expect("a valid superblock")
}
