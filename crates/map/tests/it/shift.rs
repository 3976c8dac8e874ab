//! Moving extents: deep trees, in one handle and in many; what is refused changes nothing.

use extant_format::Lblk;
use extant_map::{LBLK_END, MapError, Shift};
use extant_testkit::{Rng, env, need};

use crate::rig::{File, Rig};

/// A tree of three levels: single blocks, every second one a hole.
fn deep(rig: &Rig, blocks: u32) -> File {
    let mut file = rig.file(0);
    for i in 0..blocks {
        assert_eq!(rig.fill(&mut file, 2 * i + 10, 1, i % 3 == 0), 0);
    }
    assert!(rig.map.depth(&file.map_ref()).expect("depth") >= 2, "a tree of three levels");
    file
}

#[test]
fn deep_trees_move_in_parts_and_at_once() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let mut rng = Rng::new(env::seed());
    let mut rig = Rig::new("-t ext4 -b 1024 -J size=4", 32 << 20, 1);
    let mut file = deep(&rig, 2500);
    for step in 0..60 {
        let (lblk, len) = (rng.below(5000) as u32, 1 + rng.below(40) as u32);
        let most = *rng.pick(&[1, 2, 3, 7, 1000]);
        match step % 2 {
            0 => rig.collapse(&mut file, lblk, len, most),
            _ => rig.insert(&mut file, lblk, len, most),
        }
        if step % 10 == 0 {
            rig.check(&file);
        }
    }
    rig.check(&file);
    rig.punch(&mut file, 0, 1000);
    rig.insert(&mut file, 0, 77, 1000);
    rig.collapse(&mut file, 0, 77 + 1000, 1);
    rig.check(&file);
    rig.close_clean();
    let listed: usize = rig.debugfs_extents(&file).iter().map(|e| e.2 as usize).sum();
    assert_eq!(listed, file.truth.len());
}

/// What lay beside each other before an insert does again after a collapse.
#[test]
fn a_hole_that_goes_joins_what_was_one_extent() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let mut rig = Rig::new("-t ext4 -b 1024 -O ^has_journal", 16 << 20, 1);
    let mut file = rig.file(0);
    assert_eq!(rig.fill(&mut file, 0, 100, false), 0);
    let before = rig.debugfs_extents_after_commit(&file);
    rig.insert(&mut file, 40, 16, 1000);
    assert_eq!(rig.debugfs_extents_after_commit(&file).len(), before.len() + 1);
    rig.collapse(&mut file, 40, 16, 1000);
    assert_eq!(rig.debugfs_extents_after_commit(&file), before);
    rig.close_clean();
}

#[test]
fn what_would_lie_over_something_is_refused() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let mut rig = Rig::new("-t ext4 -b 1024 -J size=4", 16 << 20, 1);
    let mut file = rig.file(0);
    assert_eq!(rig.fill(&mut file, 10, 10, false), 0);
    assert_eq!(rig.fill(&mut file, 30, 10, false), 0);
    let mut refused = |from: u32, by: Shift| {
        let range = Lblk(from)..Lblk(LBLK_END);
        rig.handle(|handle| rig.map.shift(handle, &mut file.map_mut(), range, by, 0)).expect_err("refused")
    };
    // Into what is before; out of the file; inside of an extent; past the last block.
    assert!(matches!(refused(30, Shift::Down(11)), MapError::Overlap { .. }));
    assert!(matches!(refused(5, Shift::Down(6)), MapError::Overlap { .. }));
    assert!(matches!(refused(35, Shift::Up(1)), MapError::Overlap { .. }));
    assert!(matches!(refused(30, Shift::Up(u32::MAX - 39)), MapError::TooBig { .. }));
    rig.check(&file);
    rig.close_clean();
}
