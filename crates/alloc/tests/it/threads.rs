//! Real threads on one allocator.

use std::collections::BTreeSet;
use std::sync::Mutex;

use extant_alloc::{ClaimRequest, InodeWindow, Privilege};
use extant_format::{Ino, Lblk, Pblk};
use extant_testkit::{Rng, env, need, oracle};

use crate::inodes::request;
use crate::rig::Rig;

#[test]
fn four_threads_claim_publish_and_free() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let seed = env::seed();
    four_threads(seed, Rig::new("-t ext4 -b 1024 -O ^has_journal", 100 << 20));
}

/// With no memory for free maps each is closed as soon as another one is wanted: dropped or packed, with claims, windows and
/// pending frees, under the feet of the other threads. Nothing is lost, nothing is given twice.
#[test]
fn four_threads_without_memory_for_free_maps() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let seed = env::seed();
    let rig = Rig::new("-t ext4 -b 1024 -O ^has_journal -g 1024 -N 3200", 100 << 20);
    four_threads(seed, rig.reopen_with(|options| options.memory = 0));
}

fn four_threads(seed: u64, mut rig: Rig) {
    let start = (rig.alloc.free_clusters(), rig.alloc.usable_clusters(), rig.alloc.free_inode_count());
    let owned: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    std::thread::scope(|s| {
        for t in 0..4 {
            let (rig, owned) = (&rig, &owned);
            s.spawn(move || churn(rig, owned, Rng::new(seed).fork(t)));
        }
    });
    assert!(owned.lock().expect("owned").is_empty());
    rig.commit();
    all_can_be_claimed(&rig);
    rig.close();
    assert_eq!((rig.alloc.free_clusters(), rig.alloc.usable_clusters(), rig.alloc.free_inode_count()), start);
    assert!(rig.errors.lock().expect("errors").is_empty());
    oracle::assert_clean(&rig.image);
}

/// Every usable cluster can be found.
fn all_can_be_claimed(rig: &Rig) {
    let mut res = rig.alloc.reserve(rig.alloc.usable_clusters(), 0, Privilege::Pool).expect("all of it");
    let mut held = Vec::new();
    while res.data() > 0 {
        let request = ClaimRequest::plain(Pblk(0), Lblk(0), res.data().min(3000) as u32);
        held.push(rig.alloc.claim(&request, &mut res).expect("what is reserved can be claimed"));
    }
}

fn churn(rig: &Rig, owned: &Mutex<BTreeSet<u64>>, mut rng: Rng) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut inodes: Vec<Ino> = Vec::new();
    for step in 0..400u32 {
        let window = InodeWindow::new();
        let len = 1 + rng.below(200) as u32;
        let size = if rng.chance(1, 2) { 8 } else { 5000 };
        if let Ok(mut res) = rig.alloc.reserve(u64::from(len), 0, Privilege::Reserved) {
            let goal = Pblk(rng.below(100_000));
            let request = ClaimRequest::file(goal, Lblk(0), len, size, &window);
            let mut claim = rig.alloc.claim(&request, &mut res).expect("reserved clusters can be claimed");
            let (pblk, n) = (claim.pblk().0, u64::from(claim.len()));
            {
                let mut owned = owned.lock().expect("owned");
                for b in pblk..pblk + n {
                    assert!(owned.insert(b), "block {b} is claimed twice");
                }
            }
            if rng.chance(3, 4) {
                rig.handle(|h| rig.alloc.publish(h, &mut claim, n as u32)).expect("publish");
                runs.push((pblk, n));
            } else {
                forget(owned, pblk, n);
            }
        }
        if rng.chance(1, 2) && !runs.is_empty() {
            let (pblk, n) = runs.swap_remove(rng.below(runs.len() as u64) as usize);
            forget(owned, pblk, n);
            rig.free(pblk, n);
        }
        inodes.push(rig.handle(|h| rig.alloc.alloc_inode(h, &request(Ino::ROOT, false))).expect("inode"));
        if step % 50 == 0 {
            rig.commit();
        }
    }
    for (pblk, n) in runs {
        forget(owned, pblk, n);
        rig.free(pblk, n);
    }
    for ino in inodes {
        rig.handle(|h| rig.alloc.free_inode(h, ino, false)).expect("free");
    }
}

fn forget(owned: &Mutex<BTreeSet<u64>>, pblk: u64, n: u64) {
    let mut owned = owned.lock().expect("owned");
    for b in pblk..pblk + n {
        assert!(owned.remove(&b));
    }
}
