//! Claims, publication, freeing.

use std::collections::BTreeMap;

use extant_alloc::{AllocError, ClaimRequest, InodeWindow, Privilege};
use extant_format::{BgFlags, GroupNr, Lblk, Pblk};
use extant_testkit::{Rng, env, need, oracle};

use crate::rig::Rig;

fn needs() -> Result<(), String> {
    env::tools(&["mke2fs", "e2fsck", "debugfs"])
}

const SMALL: &str = "-t ext4 -b 1024 -O ^has_journal";

#[test]
fn a_dropped_claim_leaves_nothing_behind() {
    need!(needs());
    let mut rig = Rig::new(SMALL, 32 << 20);
    let before = rig.alloc.usable_clusters();
    let claim = rig.claim(9000, 100).expect("space");
    assert_eq!(rig.alloc.usable_clusters(), before - 100);
    let stats = rig.alloc.statfs(0);
    assert_eq!(stats.bfree, before - 100, "promised blocks are not free");
    drop(claim);
    assert_eq!(rig.alloc.usable_clusters(), before);
    rig.close();
    oracle::assert_clean(&rig.image);
}

#[test]
fn a_goal_that_is_free_is_taken() {
    need!(needs());
    let rig = Rig::new(SMALL, 32 << 20);
    let claim = rig.claim(20_001, 333).expect("space");
    assert_eq!((claim.pblk(), claim.len()), (Pblk(20_001), 333));
    let next = rig.claim(20_001, 8).expect("space");
    assert!(next.pblk().0 > 20_001 && next.pblk().0 < 24_577, "near the goal: {next:?}");
}

#[test]
fn what_is_published_is_used_on_disk_and_what_is_freed_is_free() {
    need!(needs());
    let mut rig = Rig::new(SMALL, 32 << 20);
    let (pblk, len) = rig.take(9000, 64).expect("space");
    rig.close();
    let used = oracle::debugfs(&rig.image, &[&format!("testb {pblk} {len}")]);
    assert_eq!(used.lines().filter(|l| l.contains("marked in use")).count(), 64, "{used}");
    assert_ne!(oracle::e2fsck(&rig.image).status, 0, "blocks that nobody owns");
    let mut rig = rig.reopen();
    rig.free(pblk, u64::from(len));
    rig.close();
    oracle::assert_clean(&rig.image);
}

#[test]
fn freed_blocks_are_not_claimed_before_the_commit() {
    need!(needs());
    let rig = Rig::new(SMALL, 32 << 20);
    let (pblk, len) = rig.take(9000, 64).expect("space");
    rig.commit();
    rig.free(pblk, 64);
    for _ in 0..3 {
        let claim = rig.claim(pblk, 1).expect("space");
        assert!(claim.pblk().0 < pblk || claim.pblk().0 >= pblk + u64::from(len), "{claim:?}");
    }
    rig.commit();
    assert_eq!(rig.claim(pblk, 64).expect("space").pblk(), Pblk(pblk));
}

#[test]
fn freeing_what_is_not_data_is_an_error_and_what_is_free_already_is_reported() {
    need!(needs());
    let rig = Rig::new(SMALL, 32 << 20);
    let bitmap = rig.alloc.group_desc(GroupNr(0)).expect("group").block_bitmap;
    for (pblk, len) in [(bitmap.0, 1), (1, 1), (0, 1), (32_767, 2), (u64::MAX - 3, 9)] {
        let result = rig.handle(|h| rig.alloc.free(h, Pblk(pblk), len));
        assert!(matches!(result, Err(AllocError::NotData { .. })), "{pblk}+{len}: {result:?}");
    }
    // Whoever frees has taken the blocks out of his map: his operation goes on.
    rig.handle(|h| rig.alloc.free(h, Pblk(20_000), 4)).expect("reported");
    assert_eq!(rig.errors.lock().expect("errors").len(), 1);
}

#[test]
fn groups_that_were_never_used_are_computed_and_then_written() {
    need!(needs());
    let mut rig = Rig::new(SMALL, 64 << 20);
    let uninit =
        |g: u32| rig.alloc.group_desc(GroupNr(g)).expect("group").flags.contains(BgFlags::BLOCK_UNINIT);
    let groups: Vec<u32> = (0..8).filter(|g| uninit(*g)).collect();
    assert!(!groups.is_empty(), "mke2fs leaves groups uninitialised");
    let mut runs = Vec::new();
    for g in &groups {
        let first = rig.sb.geometry().group_first_block(GroupNr(*g)).0;
        runs.push(rig.take(first, 5).expect("space"));
        assert!(!rig.alloc.group_desc(GroupNr(*g)).expect("group").flags.contains(BgFlags::BLOCK_UNINIT));
    }
    for (pblk, len) in runs {
        rig.free(pblk, u64::from(len));
    }
    rig.close();
    oracle::assert_clean(&rig.image);
}

#[test]
fn a_growing_file_stays_in_one_piece_while_others_grow() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 4096 -O ^has_journal", 512 << 20);
    let windows: Vec<InodeWindow> = (0..4).map(|_| InodeWindow::new()).collect();
    let mut runs: Vec<Vec<(u64, u32)>> = vec![Vec::new(); 4];
    let mut goals = [Pblk(40_000); 4];
    for step in 0..64u32 {
        for f in 0..4 {
            let mut res = rig.alloc.reserve(16, 0, Privilege::Normal).expect("space");
            let lblk = step * 16;
            let request = ClaimRequest::file(goals[f], Lblk(lblk), 16, u64::from(lblk + 16), &windows[f]);
            let mut claim = rig.alloc.claim(&request, &mut res).expect("space");
            assert_eq!(claim.len(), 16);
            rig.handle(|h| rig.alloc.publish(h, &mut claim, 16)).expect("publish");
            goals[f] = Pblk(claim.pblk().0 + 16);
            match runs[f].last_mut() {
                Some((start, len)) if *start + u64::from(*len) == claim.pblk().0 => *len += 16,
                _ => runs[f].push((claim.pblk().0, 16)),
            }
        }
    }
    for run in &runs {
        assert!(run.len() <= 8, "1024 blocks in {} pieces: {run:?}", run.len());
    }
    let held = rig.alloc.usable_clusters();
    for window in &windows {
        window.release();
    }
    assert_eq!(rig.alloc.usable_clusters(), held, "windows are promised to nobody");
}

#[test]
fn small_files_lie_one_behind_the_other() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 4096 -O ^has_journal", 256 << 20);
    let mut last = None;
    let mut breaks = 0;
    for _ in 0..300 {
        let window = InodeWindow::new();
        let mut res = rig.alloc.reserve(1, 0, Privilege::Normal).expect("space");
        let request = ClaimRequest::file(Pblk(40_000), Lblk(0), 1, 1, &window);
        let mut claim = rig.alloc.claim(&request, &mut res).expect("space");
        rig.handle(|h| rig.alloc.publish(h, &mut claim, 1)).expect("publish");
        breaks += u32::from(last.is_some_and(|l: u64| l + 1 != claim.pblk().0));
        last = Some(claim.pblk().0);
    }
    assert!(breaks <= 1, "{breaks} gaps");
}

#[test]
fn large_claims_are_aligned_to_the_stripe() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 4096 -O ^has_journal -E stride=16,stripe_width=64", 256 << 20);
    for _ in 0..20 {
        let mut res = rig.alloc.reserve(128, 0, Privilege::Normal).expect("space");
        let request = ClaimRequest::plain(Pblk(12_345), Lblk(0), 128);
        let mut claim = rig.alloc.claim(&request, &mut res).expect("space");
        assert!(claim.pblk().0.is_multiple_of(64), "{claim:?}");
        rig.handle(|h| rig.alloc.publish(h, &mut claim, 128)).expect("publish");
    }
}

fn random_runs(args: &str, size: u64) {
    let mut rng = Rng::new(env::seed());
    let mut rig = Rig::new(args, size);
    let ratio = u64::from(rig.sb.geometry().cluster_ratio());
    let start = (rig.alloc.free_clusters(), rig.alloc.usable_clusters());
    let mut held: BTreeMap<u64, u64> = BTreeMap::new();
    let mut claims = Vec::new();
    for _ in 0..800 {
        let goal = rng.below(size / u64::from(rig.sb.geometry().block_size()));
        let longest = if rng.chance(1, 10) { 9000 } else { 40 };
        let len = 1 + rng.below(longest) as u32;
        match rng.below(10) {
            0..=4 => {
                if let Some((pblk, len)) = rig.take(goal, len) {
                    let end = (pblk + u64::from(len)).next_multiple_of(ratio);
                    assert!(held.range(..end).next_back().is_none_or(|(p, l)| p + l <= pblk), "given twice");
                    held.insert(pblk, end - pblk);
                }
            }
            5..=7 => {
                if let Some((&pblk, &len)) = held.range(goal..).next() {
                    rig.free(pblk, len);
                    held.remove(&pblk);
                }
            }
            8 => {
                claims.extend(rig.claim(goal, len));
                if claims.len() > 5 {
                    claims.remove(0);
                }
            }
            _ => rig.commit(),
        }
    }
    drop(claims);
    for (pblk, len) in held {
        rig.free(pblk, len);
    }
    rig.close();
    oracle::assert_clean(&rig.image);
    assert_eq!((rig.alloc.free_clusters(), rig.alloc.usable_clusters()), start);
    assert!(rig.errors.lock().expect("errors").is_empty());
}

#[test]
fn random_runs_1k() {
    need!(needs());
    random_runs(SMALL, 40 << 20);
}

#[test]
fn random_runs_ext2() {
    need!(needs());
    random_runs("-t ext2 -b 4096", 300 << 20);
}

#[test]
fn random_runs_old_checksums() {
    need!(needs());
    random_runs("-t ext4 -b 2048 -O ^metadata_csum,uninit_bg,^has_journal,^64bit", 100 << 20);
}

#[test]
fn random_runs_bigalloc() {
    need!(needs());
    random_runs("-t ext4 -b 1024 -C 8192 -O bigalloc,^has_journal", 100 << 20);
}

/// A file whose map has no bits for the higher blocks gets none of them, also when only those are free.
#[test]
fn blocks_below_a_limit_are_all_that_is_claimed() {
    need!(needs());
    let rig = Rig::new("-t ext2 -b 1024 -g 1024", 16 << 20);
    let limit = rig.sb.geometry().group_first_block(GroupNr(5)).0;
    let mut purse = rig.alloc.reserve(8000, 0, Privilege::Pool).expect("space");
    let window = extant_alloc::InodeWindow::new();
    let mut claims = Vec::new();
    let refused = loop {
        let goal = Pblk(if claims.len() % 2 == 0 { 9000 } else { 1500 });
        let request = match claims.len() % 3 {
            0 => ClaimRequest::plain(goal, Lblk(0), 70),
            1 => ClaimRequest::file(goal, Lblk(claims.len() as u32 * 10), 10, 20_000, &window),
            _ => ClaimRequest::file(goal, Lblk(0), 1, 1, &window),
        };
        match rig.alloc.claim(&request.below(limit), &mut purse) {
            Ok(claim) => claims.push(claim),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AllocError::NoSpace { .. }), "{refused}");
    assert!(claims.iter().all(|c| c.pblk().0 + u64::from(c.len()) <= limit), "{claims:?}");
    let claimed: u64 = claims.iter().map(|c| u64::from(c.len())).sum();
    assert!(claimed > 3000, "only {claimed} blocks of the first five groups");
    assert!(
        rig.alloc.claim(&ClaimRequest::plain(Pblk(1500), Lblk(0), 1), &mut purse).is_ok(),
        "others are free"
    );
}
