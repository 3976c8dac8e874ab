//! Fast commits that the kernel wrote, replayed: against what was there, the kernel's own replay and e2fsck's.
//!
//! The kernel is never given fast commits of files without extents to replay: Linux 6.18 dies in mount(2) on them, and leaves a
//! superblock behind on which every later sync(2) of the machine waits for ever.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use extant::{Filesystem, Setup};
use extant_testkit::env::{Scratch, kernel_mounts, scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, command, e2fsck_with, files_on_a_mount, mke2fs, run};
use extant_testkit::rng::Rng;
use extant_testkit::script::{DirExecutor, Executor, Mix, Op, parse, random};
use extant_testkit::sim::{Content, SimDevice};
use extant_testkit::tree::{Kind, Tree};

use crate::support::{open_ro, open_rw, tree_of};

/// An image with fast commits in its journal, and the tree that was there after the last fsync.
struct Snapshot {
    image: PathBuf,
    live: Tree,
    /// Fast commits in it, as debugfs counts them.
    tails: usize,
    /// Whether the kernel may be asked to replay it.
    for_kernel: bool,
}

/// Replay moves the times of directories; the records have none.
fn without_directory_times(mut tree: Tree) -> Tree {
    for node in tree.nodes.values_mut().filter(|node| node.kind == Kind::Dir) {
        node.mtime = None;
    }
    tree
}

fn ops(text: &str) -> Vec<Op> {
    parse(text).unwrap_or_else(|e| panic!("{e:?} in {text}"))
}

const BEFORE: &str = "
    mkdir d 755
    mkdir e 755
    mkdir gone 755
    create a 644
    write a 0 20000 1
    create b 644
    write b 0 3 2
    create big 644
    write big 0 400000 3
    link a a2
    create d/old 644
    write d/old 0 5000 4
    sync
";

/// Runs `script` on the kernel, fsyncs, and copies the image as a crash would leave it.
fn snapshot(dir: &Scratch, args: &str, before: &[Op], script: &[Op]) -> Snapshot {
    let image = dir.join("live");
    mke2fs(&image, 64 << 20, &format!("-t ext4 -O fast_commit {args}"));
    let mount = KernelMount::with(&image, "commit=600").expect("kernel mount");
    let mut kernel = DirExecutor::new("kernel", mount.path());
    for op in before {
        let _ = kernel.apply(op);
    }
    mount.sync();
    for op in script {
        let _ = kernel.apply(op);
    }
    // What is delayed is in no fast commit but that of its own file.
    let tree = Tree::read(mount.path(), false).unwrap();
    let open = files_on_a_mount();
    for (path, _) in tree.nodes.iter().filter(|(_, node)| node.kind == Kind::File) {
        let path = mount.path().join(std::str::from_utf8(path).unwrap());
        std::fs::File::open(path).unwrap().sync_all().unwrap();
    }
    let last = mount.path().join("last");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&last).unwrap();
    std::io::Write::write_all(&mut &file, b"the end").unwrap();
    file.sync_all().unwrap();
    drop(file);
    drop(open);
    let live = without_directory_times(Tree::read(mount.path(), false).unwrap());
    let copy = dir.join("snapshot");
    std::fs::copy(&image, &copy).unwrap();
    mount.unmount();
    let log = run(command("debugfs").args(["-R", "logdump -a"]).arg(&copy)).text;
    let tails = log.split("Fast Commit Area").nth(1).map_or(0, |area| area.matches("tag TAIL").count());
    Snapshot { image: copy, live, tails, for_kernel: !args.contains("^extent") }
}

/// Judges our replay, for writing and for reading, and compares with what others make of it. How many of the two others
/// come to another tree than was there.
fn judge(dir: &Scratch, shot: &Snapshot, what: &str) -> usize {
    let before = std::fs::read(&shot.image).unwrap();
    let fs = open_ro(&shot.image);
    without_directory_times(tree_of(&fs)).assert_equal(&shot.live, &format!("{what}: read-only"));
    fs.unmount().unwrap();
    assert!(std::fs::read(&shot.image).unwrap() == before, "{what}: reading changed the image");
    let ours = dir.join("ours");
    std::fs::copy(&shot.image, &ours).unwrap();
    let fs = open_rw(&ours);
    without_directory_times(tree_of(&fs)).assert_equal(&shot.live, &format!("{what}: for writing"));
    fs.unmount().unwrap();
    assert_clean(&ours);
    others(dir, shot, what)
}

fn others(dir: &Scratch, shot: &Snapshot, what: &str) -> usize {
    let mut differ = 0;
    for by in ["kernel", "e2fsck"].into_iter().filter(|by| *by == "e2fsck" || shot.for_kernel) {
        let copy = dir.join(by);
        std::fs::copy(&shot.image, &copy).unwrap();
        if by == "e2fsck" {
            let _ = e2fsck_with(&copy, &["-f", "-y"]);
        }
        let Ok(mount) = KernelMount::with(&copy, "") else {
            println!("{what}: {by} leaves what the kernel does not mount");
            differ += 1;
            continue;
        };
        let tree = Tree::read(mount.path(), false).map(without_directory_times);
        mount.unmount();
        let lines = tree.map_or_else(|e| vec![e.to_string()], |tree| tree.differences(&shot.live, 3));
        if !lines.is_empty() {
            println!("{what}: {by} recovers something else: {}", lines.join("; "));
            differ += 1;
        }
    }
    differ
}

const SCRIPTS: &[(&str, &str)] = &[
    ("append", "append a 5000 7\nfsync a\nappend b 9000 8\nfsync b"),
    ("overwrite", "write a 3 9000 7\nfsync a"),
    ("truncate", "truncate a 100\nfsync a\nappend a 9000 1\nfsync a\ntruncate big 5000"),
    ("create", "create d/n 644\nwrite d/n 0 8000 1\nfsync d/n\ncreate d/m 600\nfsync d/m"),
    ("link", "link a d/a3\nfsync a\nlink b b2\nlink b b3\nunlink b2\nfsync b"),
    ("unlink", "unlink b\nunlink a2\nunlink big"),
    ("unlink all names", "unlink a\nunlink a2\nfsync b"),
    ("rename", "rename a d/x\nfsync d/x\nrename b c\nfsync c"),
    ("rename over", "rename b a\nfsync a\nrename big d/old"),
    (
        "directories",
        "mkdir n 755\nmkdir n/m 700\ncreate n/m/f 644\nwrite n/m/f 0 100 1\nfsync n/m/f\nrmdir gone",
    ),
    ("made and removed", "mkdir t 755\ncreate t/f 644\nlink t/f kept\nunlink t/f\nrmdir t\nfsync kept"),
    (
        "number used again",
        "unlink b\ncreate new 644\nwrite new 0 9000 1\nfsync new\nunlink big\nmkdir r 755\ncreate r/f 644\nfsync r/f",
    ),
    (
        "preallocate",
        "fallocate a 0 100000\nfsync a\nwrite a 50000 3000 5\nfsync a\nfallocate b 8192 70000 keep",
    ),
    ("punch", "punch a 4096 8192\nfsync a\nzero big 8192 50000\nfsync big\npunch big 100000 200000"),
    ("attributes", "chmod a 600\nchown b 70000 5\nfsync a\nfsync b"),
    ("nodes", "symlink short s\nmknod p fifo\nmknod n 1:3\nappend a 1 1\nfsync a"),
];

const CONFIGS: &[(&str, &str)] = &[
    ("default", ""),
    ("1k", "-b 1024"),
    ("no checksums, indirect", "-O ^extent,^64bit,^metadata_csum"),
    ("inline data", "-O inline_data"),
    ("bigalloc", "-O bigalloc -C 16384"),
    ("small inodes", "-I 128"),
    ("orphan file", "-O orphan_file"),
];

#[test]
fn each_kind_of_change() {
    need!(kernel_mounts());
    let (mut with, mut all) = (0, 0);
    let every: String = SCRIPTS.iter().map(|(_, script)| format!("{script}\n")).collect();
    for (at, (config, args)) in CONFIGS.iter().enumerate() {
        // One by one on the first, one after the other on the rest.
        let scripts = if at == 0 { SCRIPTS.to_vec() } else { vec![("all", every.as_str())] };
        for (name, script) in scripts {
            let dir = scratch();
            let shot = snapshot(&dir, args, &ops(BEFORE), &ops(script));
            with += usize::from(shot.tails > 0);
            all += 1;
            judge(&dir, &shot, &format!("{config}, {name}"));
        }
    }
    println!("{with} of {all} images had fast commits");
    assert!(with > all / 2, "only {with} images had fast commits");
}

#[test]
fn random_changes() {
    need!(kernel_mounts());
    let seed = seed();
    let rng = Rng::new(seed);
    let (mut with, mut differ, rounds) = (0, 0, 14);
    for round in 0..rounds {
        let mut rng = rng.fork(round);
        let (config, args) = CONFIGS[round as usize % CONFIGS.len()];
        let mix = Mix { syncs: 4, xattr: 0, ..Mix::default() };
        let eligible = |op: &Op| !matches!(op, Op::Setxattr { .. } | Op::Removexattr { .. } | Op::Sync);
        let before = random(&mut rng, 60, &mix);
        let script: Vec<Op> = random(&mut rng, 80, &mix).into_iter().filter(eligible).collect();
        let dir = scratch();
        let shot = snapshot(&dir, args, &before, &script);
        with += usize::from(shot.tails > 0);
        differ += judge(&dir, &shot, &format!("{config}, round {round}, seed={seed}"));
    }
    println!("{with} of {rounds} images had fast commits; the others came to {differ} other trees");
    assert!(with > 0, "no image had fast commits");
}

/// Every state that a crash during the replay leaves is replayed to the same.
#[test]
fn a_crash_during_replay() {
    need!(kernel_mounts());
    let seed = seed();
    let dir = scratch();
    let script = "append a 5000 7\nunlink b\nmkdir n 755\ncreate n/f 644\nwrite n/f 0 9000 1\ntruncate big 5000\nfsync a";
    let shot = snapshot(&dir, "", &ops(BEFORE), &ops(script));
    assert!(shot.tails > 0, "no fast commits in the image");
    let device = SimDevice::from_file(&shot.image);
    device.restart_log();
    let mount = |device: &Arc<SimDevice>| Filesystem::open(Arc::clone(device) as _, Setup::default());
    mount(&device).unwrap().unmount().unwrap();
    let plan = device.crash_plan(seed).subsets(3);
    let every = plan.len().div_ceil(60);
    println!("seed={seed}: every {every}th of {} states", plan.len());
    let mut number = 0;
    plan.for_each(|state| {
        number += 1;
        if number % every != seed as usize % every {
            return;
        }
        let what = format!("seed={seed}, state {number}: epoch {}, {:?}", state.epoch, state.cut);
        let device = SimDevice::from_content(state.content);
        let fs = mount(&device).unwrap_or_else(|e| panic!("{what}: {e}"));
        without_directory_times(tree_of(&fs)).assert_equal(&shot.live, &what);
        fs.unmount().unwrap();
        let image = dir.join("recovered");
        device.content().to_file(&image).unwrap();
        assert_clean(&image);
    });
}

/// Records that were changed, with checksums that say otherwise: an error or a mount, never a panic.
#[test]
fn changed_records() {
    need!(kernel_mounts());
    let seed = seed();
    println!("seed={seed}");
    let dir = scratch();
    let script: String = SCRIPTS.iter().take(11).map(|(_, script)| format!("{script}\n")).collect();
    let shot = snapshot(&dir, "", &ops(BEFORE), &ops(&script));
    assert!(shot.tails > 0, "no fast commits in the image");
    let bytes = std::fs::read(&shot.image).unwrap();
    let content = Content::from_file(&shot.image).unwrap();
    let area = Area::find(&bytes);
    let span = area.values[0].start..area.sums.last().expect("a tail").1 + 4;
    assert!(area.values.len() > 20, "only {} records", area.values.len());
    let rng = Rng::new(seed);
    let (mut refused, mut mounted) = (0, 0);
    for round in 0..120 {
        let mut rng = rng.fork(round);
        let mut changed = bytes.clone();
        for _ in 0..=rng.below(2) {
            let value = rng.pick(&area.values).clone();
            let at = value.start + rng.below((value.end - value.start) as u64) as usize;
            let any = rng.next_u64() as u8;
            changed[at] = *rng.pick(&[0, 1, 0x7F, 0x80, 0xFF, any]);
        }
        area.sum(&mut changed);
        let mut content = content.clone();
        content.write(span.start as u64, &changed[span.clone()]);
        match Filesystem::open(SimDevice::from_content(content) as _, Setup::default()) {
            Ok(fs) => {
                mounted += 1;
                drop(fs);
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    println!("{refused} refused, {mounted} mounted");
    assert!(refused > 0 && mounted > 0, "{refused} refused, {mounted} mounted");
}

/// Where the records of the first fast-commit area in an image are.
struct Area {
    /// Values of the records, without head and tails.
    values: Vec<Range<usize>>,
    /// What each tail covers (in parts), and where its checksum is.
    sums: Vec<(Vec<Range<usize>>, usize)>,
}

impl Area {
    fn find(bytes: &[u8]) -> Self {
        let head = [9, 0, 8, 0, 0, 0, 0, 0];
        let size = 1024 << bytes[1024 + 24];
        let start =
            (0..bytes.len()).step_by(size).find(|at| bytes[*at..].starts_with(&head)).expect("a head");
        let mut area = Self { values: Vec::new(), sums: Vec::new() };
        let (mut at, mut covered, mut parts) = (start, start, Vec::new());
        loop {
            let (tag, len) = (bytes[at], usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]])));
            let value = at + 4..at + 4 + len;
            match tag {
                1..=6 => area.values.push(value.clone()),
                8 => {
                    parts.push(covered..at + 8);
                    area.sums.push((std::mem::take(&mut parts), at + 8));
                    covered = value.end;
                }
                7 | 9 => {}
                _ => return area,
            }
            at = value.end;
            if at % size > size - 4 {
                // No record begins in the last bytes of a block, and no checksum covers them.
                parts.push(covered..at);
                at = at.next_multiple_of(size);
                covered = at;
            }
        }
    }

    fn sum(&self, bytes: &mut [u8]) {
        for (parts, at) in &self.sums {
            let sum =
                parts.iter().fold(0, |sum, part| extant_format::csum::crc32c(sum, &bytes[part.clone()]));
            bytes[*at..*at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
