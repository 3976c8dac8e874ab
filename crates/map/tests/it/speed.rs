//! What the hot paths cost, printed: a small and a large size of each. Nothing is asserted about time.

use std::time::Instant;

use extant_alloc::InodeRequest;
use extant_format::{Ino, Lblk};
use extant_testkit::{Rng, env, need};

use crate::rig::Rig;

fn per_op(what: &str, n: u32, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    println!("{what}: {} ns each, {n} times", start.elapsed().as_nanos() / u128::from(n.max(1)));
}

#[test]
fn speed() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    for n in [500u32, 5_000] {
        small_files(n);
        random_writes(n);
        cached_lookups(n);
    }
}

/// An inode and one block for each of `n` small files.
fn small_files(n: u32) {
    let rig = Rig::new("-t ext4 -b 4096 -J size=16 -N 20000", 512 << 20, 1);
    let request = InodeRequest { parent: Ino::ROOT, is_dir: false, top_level: false, spread: 0 };
    per_op("inode", n, || {
        for _ in 0..n {
            rig.handle(|h| rig.alloc.alloc_inode(h, &request)).expect("inode");
        }
    });
    let mut file = rig.file(0);
    per_op("claim, publish, insert and remove of one block", n, || {
        for i in 0..n {
            rig.fill(&mut file, i % 8, 1, false);
            rig.punch(&mut file, i % 8, i % 8 + 1);
        }
    });
}

/// Blocks at random places of one file, so that its tree gets deep and every block is an extent.
fn random_writes(n: u32) {
    let rig = Rig::new("-t ext4 -b 4096 -J size=16", 512 << 20, 1);
    let mut rng = Rng::new(7);
    let mut order: Vec<u32> = (0..n).collect();
    rng.shuffle(&mut order);
    let mut file = rig.file(0);
    per_op("insert at random", n, || {
        for lblk in &order {
            rig.fill(&mut file, lblk * 2, 1, false);
        }
    });
    file.es.shrink();
    per_op("lookup in the tree", n, || {
        for lblk in &order {
            file.es.shrink();
            rig.map.lookup(&file.map_ref(), Lblk(lblk * 2), 1).expect("lookup");
        }
    });
    per_op("remove all", n, || rig.punch(&mut file, 0, u32::MAX));
}

fn cached_lookups(n: u32) {
    let rig = Rig::new("-t ext4 -b 4096 -J size=16", 512 << 20, 1);
    let mut file = rig.file(0);
    for i in 0..64 {
        rig.fill(&mut file, i * 2, 1, false);
    }
    per_op("lookup in the cache", n * 100, || {
        for i in 0..n * 100 {
            assert!(file.es.lookup(Lblk(i % 128), 1).is_some() || i < 200_000);
        }
    });
}
