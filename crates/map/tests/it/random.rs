//! Random operations on a few files of a small image, compared with a plain map after each, and with e2fsck and
//! debugfs in the end. Then everything is freed, and the image must be as it was.

use std::collections::BTreeSet;

use extant_map::{MapKind, Written};
use extant_testkit::{Rng, env, need};

use crate::rig::{File, Rig};

fn needs() -> Result<(), String> {
    env::tools(&["mke2fs", "e2fsck", "debugfs"])
}

fn random_ops(args: &str, size: u64, span: u32, steps: u32) {
    let mut rng = Rng::new(env::seed());
    let mut rig = Rig::new(args, size, 3);
    let mut files: Vec<File> = (0..3).map(|n| rig.file(n)).collect();
    let before = counts(&rig);
    for step in 0..steps {
        let file = &mut files[rng.below(3) as usize];
        if file.kind() == MapKind::Extents && rng.chance(1, 6) {
            shift(&rig, file, &mut rng, span);
        } else {
            one_op(&rig, file, &mut rng, span);
        }
        if step % 8 == 0 {
            rig.check(file);
        } else {
            rig.check_cached(file);
        }
        if rng.chance(1, 20) {
            rig.journal.commit_all().expect("commit");
        }
    }
    no_block_twice(&files);
    for file in &files {
        file.window.release();
    }
    rig.close_clean();
    for file in files.iter().filter(|f| f.kind() == MapKind::Extents) {
        agree_with_debugfs(&rig, file);
    }
    for file in &mut files {
        rig.punch(file, 0, u32::MAX);
        assert_eq!(file.inode.blocks, 0, "i_blocks of an empty file");
        file.inode.size = 0;
    }
    rig.close_clean();
    assert_eq!(counts(&rig), before, "nothing leaks");
    assert_eq!(rig.alloc.usable_clusters(), rig.alloc.free_clusters(), "no promise is left over");
}

fn one_op(rig: &Rig, file: &mut File, rng: &mut Rng, span: u32) {
    let lblk = match rng.below(10) {
        0 => span * 1000 + rng.below(100) as u32,
        _ => rng.below(u64::from(span)) as u32,
    };
    let longest = if rng.chance(1, 5) { u64::from(span) / 2 } else { 12 };
    let len = 1 + rng.below(longest) as u32;
    let extents = file.kind() == MapKind::Extents;
    match rng.below(20) {
        0..=8 => {
            let unwritten = extents && rng.chance(1, 2);
            rig.fill(file, lblk, len, unwritten);
        }
        9..=13 => rig.punch(file, lblk, lblk + len),
        14..=16 if extents => rig.convert(file, lblk, len, Written::Yes),
        17 if extents => rig.convert(file, lblk, len, Written::No),
        18 if extents => rig.split(file, lblk),
        19 if rng.chance(1, 8) => rig.punch(file, lblk, u32::MAX),
        _ => {
            // Single blocks far apart: fragments the tree.
            for i in 0..len {
                rig.fill(file, lblk + 2 * i, 1, false);
            }
        }
    }
}

/// Collapse or insert, in one handle or with as few nodes in each as can be.
fn shift(rig: &Rig, file: &mut File, rng: &mut Rng, span: u32) {
    let ratio = rig.map.geometry().cluster_ratio();
    let whole = |n: u64| n as u32 / ratio * ratio;
    let (lblk, len) = (whole(rng.below(span.into())), whole(rng.below(12 * u64::from(ratio))) + ratio);
    let most = if rng.chance(1, 2) { u32::MAX - 1 } else { 1 + rng.below(3) as u32 };
    if rng.chance(1, 2) {
        rig.collapse(file, lblk, len, most);
    } else {
        rig.insert(file, lblk, len, most);
    }
    rig.check(file);
}

fn counts(rig: &Rig) -> (u64, u64) {
    (rig.alloc.free_clusters(), rig.alloc.free_inode_count())
}

fn no_block_twice(files: &[File]) {
    let mut seen = BTreeSet::new();
    for file in files {
        for (lblk, (pblk, _)) in &file.truth {
            assert!(
                seen.insert(*pblk),
                "block {pblk} is in two places, one of them {lblk} of {:?}",
                file.ino
            );
        }
    }
}

fn agree_with_debugfs(rig: &Rig, file: &File) {
    let mut listed = Vec::new();
    for (lblk, pblk, len, unwritten) in rig.debugfs_extents(file) {
        listed.extend((0..len).map(|i| (lblk + i, (pblk + u64::from(i), unwritten))));
    }
    let truth: Vec<_> = file.truth.iter().map(|(l, v)| (*l, *v)).collect();
    assert!(listed == truth, "debugfs lists {} blocks, {} are mapped", listed.len(), truth.len());
}

#[test]
fn extents_1k() {
    need!(needs());
    random_ops("-t ext4 -b 1024 -O ^has_journal", 32 << 20, 400, 600);
}

#[test]
fn extents_4k_with_journal() {
    need!(needs());
    random_ops("-t ext4 -b 4096 -J size=4", 64 << 20, 900, 600);
}

#[test]
fn extents_without_checksums_or_flex_bg() {
    need!(needs());
    random_ops("-t ext4 -b 1024 -O ^metadata_csum,^flex_bg,^64bit,^has_journal", 24 << 20, 300, 500);
}

#[test]
fn extents_meta_bg() {
    need!(needs());
    random_ops("-t ext4 -b 1024 -O meta_bg,^resize_inode,^has_journal", 40 << 20, 300, 300);
}

#[test]
fn extents_64k_blocks() {
    need!(needs());
    random_ops("-t ext4 -b 65536 -O ^has_journal", 256 << 20, 200, 300);
}

#[test]
fn indirect_ext2() {
    need!(needs());
    random_ops("-t ext2 -b 1024", 32 << 20, 900, 500);
}

#[test]
fn indirect_ext3_with_journal() {
    need!(needs());
    random_ops("-t ext3 -b 4096 -J size=4", 64 << 20, 3000, 400);
}

#[test]
fn bigalloc_16k_clusters() {
    need!(needs());
    random_ops("-t ext4 -b 4096 -C 16384 -O bigalloc,^has_journal", 64 << 20, 500, 600);
}

#[test]
fn bigalloc_1k_blocks_64k_clusters() {
    need!(needs());
    random_ops("-t ext4 -b 1024 -C 65536 -O bigalloc,^has_journal", 64 << 20, 400, 400);
}
