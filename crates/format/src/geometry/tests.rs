use std::vec::Vec;

use super::*;
use crate::features::Incompat;
use crate::test_support::superblock;

fn large(change: impl FnOnce(&mut RawSuperblock)) -> Geometry {
    let sb = superblock(|raw| {
        raw.set_blocks_count(32768 * 100);
        raw.s_inodes_count.set(1024 * 100);
        change(raw);
    });
    *sb.geometry()
}

#[test]
fn blocks_and_groups() {
    let geo = large(|raw| {
        raw.set_blocks_count(32768 * 99 + 5000);
    });
    assert_eq!(geo.groups(), 100);
    assert_eq!(geo.blocks_in_group(GroupNr(98)), 32768);
    assert_eq!(geo.blocks_in_group(GroupNr(99)), 5000);
    assert_eq!(geo.blocks_in_group(GroupNr(100)), 0);
    assert_eq!(geo.group_of_block(Pblk(32768 * 3 + 7)), Some((GroupNr(3), 7)));
    assert_eq!(geo.group_of_block(Pblk(geo.blocks_count())), None);
    assert!(geo.contains_range(Pblk(0), geo.blocks_count()));
    assert!(!geo.contains_range(Pblk(1), geo.blocks_count()));
    assert!(!geo.contains_range(Pblk(u64::MAX), 2));
}

#[test]
fn inodes() {
    let geo = large(|_| ());
    assert_eq!(geo.inode_location(Ino(0)), None);
    assert_eq!(geo.inode_location(Ino(1024 * 100 + 1)), None);
    let at = geo.inode_location(Ino(1024 + 18)).unwrap();
    assert_eq!((at.group, at.index, at.block, at.offset), (GroupNr(1), 17, 1, 256));
    assert_eq!(geo.ino_of(GroupNr(1), 17), Ino(1024 + 18));
}

#[test]
fn sparse_backups() {
    let geo = large(|_| ());
    let groups: Vec<u32> = geo.super_groups().map(|g| g.0).collect();
    assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81]);
    assert_eq!(geo.super_offset(GroupNr(0)), Some(1024));
    assert_eq!(geo.super_offset(GroupNr(3)), Some(32768 * 3 * 4096));
    assert_eq!(geo.super_offset(GroupNr(2)), None);
}

#[test]
fn descriptors_in_meta_groups() {
    let geo = large(|raw| {
        let mut f = raw.features();
        f.incompat.insert(Incompat::META_BG);
        raw.set_features(f);
        raw.s_first_meta_bg.set(1);
    });
    // 64 descriptors a block: block 0 stays behind the superblock, block 1 is in group 64.
    assert_eq!(geo.desc_blocks(), 2);
    assert_eq!(geo.desc_location(GroupNr(63)), Some((Pblk(1), 63 * 64)));
    assert_eq!(geo.desc_location(GroupNr(64)), Some((Pblk(64 * 32768), 0)));
    assert_eq!(geo.backup_desc_block(1, GroupNr(65)), Some(Pblk(65 * 32768)));
    assert_eq!(geo.backup_desc_block(1, GroupNr(66)), None);
    assert_eq!(geo.backup_desc_block(0, GroupNr(3)), Some(Pblk(3 * 32768 + 1)));
    assert_eq!(geo.desc_location(GroupNr(100)), None);
    assert_eq!((geo.base_meta_blocks(GroupNr(64)), geo.base_meta_blocks(GroupNr(66))), (1, 0));
}

#[test]
fn clusters() {
    let geo = large(|raw| {
        let mut f = raw.features();
        f.ro_compat.insert(RoCompat::BIGALLOC);
        raw.set_features(f);
        raw.s_log_cluster_size.set(6);
        raw.s_clusters_per_group.set(2048);
    });
    assert_eq!((geo.cluster_ratio(), geo.cluster_size()), (16, 65536));
    assert_eq!(geo.bit_of_block(Pblk(32768 + 33)), Some((GroupNr(1), 2)));
    assert_eq!(geo.block_of_bit(GroupNr(1), 2), Pblk(32768 + 32));
    assert_eq!(geo.clusters_for(17), 2);
}
