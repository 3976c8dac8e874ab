//! The same writes on the kernel and here: our files are in no more pieces than the kernel's.

use std::os::unix::fs::FileExt as _;

use extant_map::Run;
use extant_testkit::kernel::KernelMount;
use extant_testkit::{Rng, env, need, oracle};

use crate::rig::{File, Rig, all_runs};

const ARGS: &str = "-t ext4 -b 4096 -O ^has_journal";
const SIZE: u64 = 256 << 20;

/// A write of `len` blocks at `lblk` of file `n`, made durable at once.
#[derive(Clone, Copy)]
struct Write {
    n: usize,
    lblk: u32,
    len: u32,
}

/// Pieces of all files, here.
fn ours(files: u32, writes: &[Write]) -> usize {
    let mut rig = Rig::new(ARGS, SIZE, files as usize);
    let mut open: Vec<File> = (0..files).map(|n| rig.file(n)).collect();
    for w in writes {
        assert_eq!(rig.fill(&mut open[w.n], w.lblk, w.len, false), 0);
    }
    let pieces = open
        .iter()
        .map(|f| pieces(&all_runs(&rig.map, f).iter().map(|r| (r.0.0, r.1.0, r.2)).collect::<Vec<_>>()))
        .sum();
    rig.close_clean();
    pieces
}

/// Runs that do not go on where the one before ended, on the disk.
fn pieces(runs: &[(u32, u64, u32)]) -> usize {
    let breaks = runs.windows(2).filter(|w| w[0].1 + u64::from(w[0].2) != w[1].1).count();
    breaks + usize::from(!runs.is_empty())
}

/// Pieces of all files, on the kernel.
fn kernels(files: u32, writes: &[Write]) -> usize {
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, SIZE, ARGS);
    let mount = KernelMount::rw(&image);
    let holding = oracle::files_on_a_mount();
    let open: Vec<std::fs::File> = (0..files)
        .map(|n| std::fs::File::create(mount.path().join(format!("f{n}"))).expect("file"))
        .collect();
    for w in writes {
        let bytes = vec![1; w.len as usize * 4096];
        open[w.n].write_all_at(&bytes, u64::from(w.lblk) * 4096).expect("write");
        open[w.n].sync_all().expect("fsync");
    }
    drop((open, holding));
    mount.unmount();
    (0..files).map(|n| pieces(&listed(&image, n))).sum()
}

fn listed(image: &std::path::Path, n: u32) -> Vec<(u32, u64, u32)> {
    let text = oracle::debugfs(image, &[&format!("ex -l /f{n}")]);
    text.lines().filter_map(crate::rig::parse_extent).map(|(l, p, n, _)| (l, p, n)).collect()
}

fn compare(what: &str, files: u32, writes: &[Write]) {
    let (ours, kernels) = (ours(files, writes), kernels(files, writes));
    println!("{what}: {ours} pieces, the kernel has {kernels}");
    // Some room for luck: which block of a random order comes first decides where the rest can go.
    let most = (kernels + kernels / 4 + 3).max(files as usize);
    assert!(ours <= most, "{what}: {ours} pieces, the kernel has {kernels}");
}

#[test]
fn no_more_pieces_than_the_kernels() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]), env::kernel_mounts());
    let mut rng = Rng::new(env::seed());
    let growing: Vec<Write> =
        (0..64).flat_map(|i| (0..4).map(move |n| Write { n, lblk: i * 16, len: 16 })).collect();
    compare("four files that grow in turn", 4, &growing);
    let small: Vec<Write> = (0..200).map(|n| Write { n, lblk: 0, len: 1 + n as u32 % 4 }).collect();
    compare("small files", 200, &small);
    let mut order: Vec<u32> = (0..300).collect();
    rng.shuffle(&mut order);
    let random: Vec<Write> = order.iter().map(|l| Write { n: 0, lblk: *l, len: 1 }).collect();
    compare("blocks of one file in random order", 1, &random);
    let single = [Write { n: 0, lblk: 0, len: 20_000 }];
    compare("one large write", 1, &single);
}

/// A run is never longer than an entry, so a large file is many runs and still one piece.
#[test]
fn a_large_file_is_one_piece() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let rig = Rig::new("-t ext4 -b 4096 -O ^has_journal -G 64", 1 << 30, 1);
    let mut file = rig.file(0);
    assert_eq!(rig.fill(&mut file, 0, 100_000, true), 0);
    let runs: Vec<_> = all_runs(&rig.map, &file).iter().map(|r| (r.0.0, r.1.0, r.2)).collect();
    assert!(pieces(&runs) <= 4, "{runs:?}");
    let first = rig.map.lookup(&file.map_ref(), extant_format::Lblk(0), u32::MAX).expect("lookup");
    assert!(matches!(first, Run::Mapped { unwritten: true, .. }));
}
