//! The crash lab: scripts of a few changes on a simulated device, every legal state that a crash may leave of them, each
//! recovered, read and checked.
//!
//! The script space and the judgement are `extant_testkit::crash`'s, the states `extant_testkit::sim`'s. Each state is mounted
//! for writing (which replays the journal and processes orphans), its tree is read and judged, it is unmounted, our checker
//! looks at it; each distinct image that this leaves (by hash, superblock and journal apart) is then checked by e2fsck, and
//! mounted and read by the kernel. Free space is full of junk from the start, so that a byte that was never written shows.
//!
//! | module | what |
//! |---|---|
//! | [`lab`] | runs scripts, goes through their states, recovers and judges |
//! | [`known`] | which states recover to what is known already: those that are equal in all that recovery reads |
//! | [`outside`] | e2fsck and the kernel |
//! | [`repaired`] | filesystems without a journal |
//!
//! Short form: a sample of the scripts of one change, of two and of three. `EXTANT_CRASH=long` (`cargo xtask crash --long`): all of one
//! and of two changes, and a sample of three; `EXTANT_CRASH_PART=i/n` runs one part of n. A script that the filesystem refuses
//! (preallocation without extents) is counted apart. `EXTANT_CRASH_SCRIPT` names a file with the only script to run,
//! `EXTANT_CRASH_KEEP` the file for a state that was found wanting, `EXTANT_CRASH_DIR` a folder in which parts of a run leave what spares the
//! next ones work.

mod known;
mod lab;
mod outside;
mod repaired;

use extant_testkit::crash::{Space, scripts};
use extant_testkit::script::Op;
use extant_testkit::{Rng, env};

use lab::Lab;

use crate::mapping::userfaultfd;

/// A kind of filesystem.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    /// mke2fs's arguments, the block size apart.
    mkfs: &'static str,
    block_size: u32,
    /// Bytes of the image.
    size: u64,
    /// Mount options.
    options: &'static str,
    device: Device,
}

/// What it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Disk,
    /// Memory, and all files in DAX mode; recovered without.
    Memory,
    /// Memory that says it has flushed, and has not: for the test that the lab notices.
    LyingMemory,
    /// Memory of which the mount is told that it is not persistent, so that what is to be persisted is stored without MAP_SYNC: for the
    /// same.
    MemoryWithoutSync,
}

/// How many scripts of one, two and three changes are run.
struct Sample {
    one: usize,
    two: usize,
    three: usize,
}

/// The short form.
const SOME: Sample = Sample { one: 30, two: 4, three: 4 };
/// The short form for filesystems that share most code with the first.
const FEW: Sample = Sample { one: 8, two: 2, three: 2 };
const LONG: Sample = Sample { one: usize::MAX, two: usize::MAX, three: 2000 };

fn is_long() -> bool {
    std::env::var("EXTANT_CRASH").is_ok_and(|form| form == "long")
}

/// The scripts that are to be run: the sample of the short form, or the part of the long one that `EXTANT_CRASH_PART` names.
/// Neighbours in a part have their first change in common.
fn chosen(space: Space, seed: u64, short: &Sample, long: &Sample) -> Vec<Vec<Op>> {
    if let Ok(script) = std::env::var("EXTANT_CRASH_SCRIPT") {
        let script = std::fs::read_to_string(script).expect("script");
        return vec![extant_testkit::script::parse(&script).expect("script")];
    }
    let size = if is_long() { long } else { short };
    let one = sample(scripts(space, 1, seed, 0), size.one, seed);
    let two = sample(scripts(space, 2, seed, 0), size.two, seed);
    part([one, two, scripts(space, 3, seed, size.three)].concat())
}

fn part(scripts: Vec<Vec<Op>>) -> Vec<Vec<Op>> {
    let Ok(part) = std::env::var("EXTANT_CRASH_PART") else { return scripts };
    let (i, n) = part.split_once('/').expect("EXTANT_CRASH_PART=i/n");
    let (i, n): (usize, usize) = (i.parse().expect("i"), n.parse().expect("n"));
    assert!(i < n, "parts are 0/{n} to {}/{n}", n - 1);
    let len = scripts.len();
    scripts[i * len / n..(i + 1) * len / n].to_vec()
}

/// So many of the scripts; in their order if that is all.
fn sample(mut scripts: Vec<Vec<Op>>, most: usize, seed: u64) -> Vec<Vec<Op>> {
    if most >= scripts.len() {
        return scripts;
    }
    Rng::new(seed).shuffle(&mut scripts);
    scripts.truncate(most);
    scripts
}

fn run(kind: &'static Kind, short: &Sample) {
    explore(kind, Space::Calls, short);
}

fn explore(kind: &'static Kind, space: Space, short: &Sample) {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let seed = env::seed_or(1);
    let mut lab = Lab::new(kind, seed);
    for script in chosen(space, seed, short, &LONG) {
        lab.explore(&script);
    }
    lab.finish();
}

/// All files in DAX mode, on a device that records what mappings store.
fn run_stores(kind: &'static Kind) {
    need!(userfaultfd());
    explore(kind, Space::Stores, &Sample { one: usize::MAX, two: 40, three: 40 });
}

/// Without a journal: each distinct state has to be repaired by e2fsck, so of two and three changes there is a sample.
fn run_repaired(kind: &'static Kind) {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let seed = env::seed_or(1);
    let mut lab = Lab::new(kind, seed);
    let synced = |script: &Vec<Op>| script.last() == Some(&Op::Sync);
    let short = Sample { one: 12, two: 4, three: 4 };
    let long = Sample { one: usize::MAX, two: 400, three: 200 };
    for script in chosen(Space::Calls, seed, &short, &long).iter().filter(|script| synced(script)) {
        repaired::explore(&mut lab, script);
    }
    lab.finish();
}

macro_rules! kinds {
    ($($name:ident: $mkfs:literal, $block_size:literal, $mib:literal MiB, $options:literal, $device:ident, $run:expr;)+) => {$(
        #[test]
        fn $name() {
            static KIND: Kind = Kind {
                name: stringify!($name),
                mkfs: $mkfs,
                block_size: $block_size,
                size: $mib << 20,
                options: concat!("commit=300,cache_size=16m", $options),
                device: Device::$device,
            };
            let run: fn(&'static Kind) = $run;
            run(&KIND);
        }
    )+};
}

// The first has one group, and so no backup of the superblock; the others have two.
kinds! {
    blocks_of_4k: "-t ext4 -J size=4", 4096, 12 MiB, "", Disk, |kind| run(kind, &FEW);
    blocks_of_1k: "-t ext4 -J size=1", 1024, 10 MiB, "", Disk, |kind| run(kind, &SOME);
    data_writeback: "-t ext4 -g 2048 -J size=4", 4096, 12 MiB, ",data=writeback", Disk, |kind| run(kind, &FEW);
    data_journal: "-t ext4 -J size=1", 1024, 10 MiB, ",data=journal", Disk, |kind| run(kind, &FEW);
    inline_data: "-t ext4 -O inline_data,orphan_file -J size=1", 1024, 10 MiB, "", Disk, |kind| run(kind, &FEW);
    indirect_maps: "-t ext3 -J size=1", 1024, 10 MiB, "", Disk, |kind| run(kind, &FEW);
    clusters: "-t ext4 -O bigalloc -C 4096 -J size=1", 1024, 40 MiB, "", Disk, |kind| run(kind, &FEW);
    fast_commits: "-t ext4 -O fast_commit -J size=2", 1024, 10 MiB, "", Disk, |kind| run(kind, &FEW);
    without_journal: "-t ext4 -O ^has_journal", 1024, 10 MiB, "", Disk, run_repaired;
    ext2: "-t ext2", 1024, 10 MiB, "", Disk, run_repaired;
    dax: "-t ext4 -J size=4", 4096, 12 MiB, "", Memory, |kind| run(kind, &FEW);
    dax_stores: "-t ext4 -J size=4", 4096, 12 MiB, "", Memory, run_stores;
}

/// The lab can fail.
mod can_fail {
    use extant_testkit::env;
    use extant_testkit::script::parse;

    use super::{Device, Kind, Lab};
    use crate::mapping::userfaultfd;

    #[test]
    fn missing_flushes_are_found() {
        need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
        static KIND: Kind = Kind {
            name: "missing_flushes",
            mkfs: "-t ext4 -J size=1",
            block_size: 1024,
            size: 10 << 20,
            options: "commit=300,cache_size=16m,nobarrier",
            device: Device::Disk,
        };
        a_promise_is_broken(&KIND, "append a 3000 15\nfsync a\nmkdir m 755\nsync");
    }

    #[test]
    fn missing_flushes_of_stores_are_found() {
        need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]), userfaultfd());
        static KIND: Kind = Kind {
            name: "missing_flushes_of_stores",
            mkfs: "-t ext4 -J size=4",
            block_size: 4096,
            size: 12 << 20,
            options: "commit=300,cache_size=16m",
            device: Device::LyingMemory,
        };
        a_promise_is_broken(&KIND, "store a 4000 300 31\nmsync a");
    }

    /// A store whose block no commit has made the file's.
    #[test]
    fn a_missing_map_sync_is_found() {
        need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]), userfaultfd());
        static KIND: Kind = Kind {
            name: "missing_map_sync",
            mkfs: "-t ext4 -J size=4",
            block_size: 4096,
            size: 12 << 20,
            options: "commit=300,cache_size=16m",
            device: Device::MemoryWithoutSync,
        };
        a_promise_is_broken(&KIND, "fallocate a 8192 16384\npersist a 12200 200 42\nsync");
    }

    fn a_promise_is_broken(kind: &'static Kind, script: &str) {
        let script = parse(script).expect("script");
        let (_, problem) = Lab::new(kind, 1).first_failure(&script).expect("a promise is broken");
        println!("{problem}");
    }
}
