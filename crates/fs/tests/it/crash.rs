//! The crash lab: scripts of a few changes on a simulated device, every legal state that a crash may leave of them, each
//! recovered, read and checked.
//!
//! The script space and the judgement are `extant_testkit::crash`'s, the states `extant_testkit::sim`'s. Each state is mounted
//! for writing (which replays the journal and processes orphans), its tree is read and judged, it is unmounted, our checker
//! looks at it; each distinct image that this leaves (by hash, superblocks and journal apart) is then checked by e2fsck, and
//! mounted and read by the kernel. Free space is full of junk from the start, so that a byte that was never written shows.
//!
//! Short form: a sample of the scripts of one change, of two and of three. `EXTANT_CRASH=long` (`cargo xtask crash --long`): all of one
//! and of two changes, and a sample of three; `EXTANT_CRASH_PART=i/n` runs one part of n. A script that the filesystem refuses
//! (preallocation without extents) is counted apart.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use extant::{Filesystem, Setup};
use extant_testkit::crash::{History, scripts, setup};
use extant_testkit::kernel::KernelMount;
use extant_testkit::script::{DirExecutor, Executor as _, Op, text};
use extant_testkit::sim::{Content, CrashState, SimDevice};
use extant_testkit::tree::Tree;
use extant_testkit::{Rng, env, oracle, scratch};
use rustix::io::Errno;

use crate::support::{LibExecutor, tree_of};

/// What all scripts of one kind of filesystem share.
struct Lab {
    base: Content,
    masked_base: Content,
    /// Byte ranges in which two recovered images may differ and be the same: superblocks, journal.
    masked: Vec<(u64, u64)>,
    seed: u64,
    subsets: u32,
    scripts: usize,
    /// Scripts that the filesystem refused an operation of.
    refused: usize,
    states: usize,
    /// Trees that states recovered to, by the digests of the states: the first change's are the same in all scripts that begin
    /// with it.
    recovered: HashMap<u64, Arc<Tree>>,
    /// Digests of the recovered images that the outside programs have seen.
    seen: HashSet<u64>,
    options: &'static str,
}

/// A filesystem with the setup's tree, made by mke2fs and the kernel in an image full of junk.
fn base(mkfs: &str, size: u64) -> (Content, Vec<(u64, u64)>) {
    let scratch = scratch();
    let image = scratch.join("base.img");
    std::fs::write(&image, vec![0xEE; size as usize]).expect("junk");
    let args = format!("{mkfs} -N 64 -E nodiscard,lazy_itable_init=0");
    oracle::mke2fs(&image, size, &args);
    let mount = KernelMount::with(&image, "nodiscard").expect("kernel mount");
    let mut executor = DirExecutor::new("kernel", mount.path());
    setup().iter().for_each(|op| executor.apply(op).expect("setup"));
    mount.unmount();
    oracle::assert_clean(&image);
    let masked = masked(&image);
    (Content::from_file(&image).expect("image"), masked)
}

fn masked(image: &Path) -> Vec<(u64, u64)> {
    let header = oracle::dumpe2fs_header(image);
    let field = |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let size: u64 = field("Block size").expect("block size").parse().expect("a number");
    let mut masked = vec![(1024, 2048)];
    let Some(total) = field("Total journal blocks") else { return masked };
    let total: u32 = total.parse().expect("a number");
    let requests: Vec<String> = (0..total).map(|n| format!("bmap <8> {n}")).collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    let blocks = oracle::debugfs(image, &requests);
    let blocks = blocks.lines().filter_map(|line| line.trim().parse::<u64>().ok());
    masked.extend(blocks.map(|b| (b * size, (b + 1) * size)));
    masked
}

/// A time that stands still, so that equal images are equal.
#[derive(Debug)]
struct Still;

impl extant::Clock for Still {
    fn now(&self) -> extant::Timestamp {
        extant::Timestamp { sec: 1_800_000_000, nsec: 0 }
    }
}

fn mount(device: &Arc<SimDevice>, options: &str) -> extant::Result<Arc<Filesystem>> {
    let setup = Setup { clock: Arc::new(Still), generation: Some(7), ..Setup::with_options(options)? };
    Filesystem::open(Arc::clone(device) as _, setup)
}

impl Lab {
    fn new(mkfs: &str, size: u64, options: &'static str, seed: u64) -> Self {
        let (base, masked) = base(mkfs, size);
        let mut masked_base = base.clone();
        masked.iter().for_each(|(start, end)| masked_base.zero(*start, end - start));
        Self {
            base,
            masked_base,
            masked,
            seed,
            subsets: 16,
            scripts: 0,
            refused: 0,
            states: 0,
            recovered: HashMap::new(),
            seen: HashSet::new(),
            options,
        }
    }

    /// Runs a script and judges every state of it.
    fn explore(&mut self, script: &[Op]) {
        let Some(device) = self.record(script) else {
            self.refused += 1;
            return;
        };
        let history = History::new(script);
        self.scripts += 1;
        let plan = device.crash_plan(self.seed).subsets(self.subsets);
        plan.for_each(|state| {
            self.states += 1;
            if let Err(problem) = self.judge(&history, &state) {
                keep(&state.content);
                panic!(
                    "epoch {} {:?}: {problem}; seed={}, script:\n{}",
                    state.epoch,
                    state.cut,
                    self.seed,
                    text(script)
                );
            }
        });
    }

    /// Runs a script on the base and gives the device that recorded it; `None` if an operation is not supported.
    fn record(&self, script: &[Op]) -> Option<Arc<SimDevice>> {
        let device = SimDevice::from_content(self.base.clone());
        let fs = mount(&device, self.options).expect("mount");
        let mut executor = LibExecutor::new(Arc::clone(&fs));
        for (done, op) in script.iter().enumerate() {
            match executor.apply(op) {
                Ok(()) => device.mark(done as u64 + 1),
                Err(Errno::OPNOTSUPP) => return None,
                Err(e) => panic!("`{op}`: {e}; script:\n{}", text(script)),
            }
        }
        drop(executor);
        fs.unmount().expect("unmount");
        Some(device)
    }

    fn judge(&mut self, history: &History, state: &CrashState) -> Result<(), String> {
        const MOST_TREES: usize = 20_000;
        let done = state.marks.last().copied().unwrap_or(0) as usize;
        let digest = state.content.difference_digest(&self.base);
        if let Some(tree) = self.recovered.get(&digest) {
            return history.judge(tree, done);
        }
        let tree = Arc::new(self.recover(history, state, done)?);
        if self.recovered.len() >= MOST_TREES {
            self.recovered.clear();
        }
        self.recovered.insert(digest, tree);
        Ok(())
    }

    /// Mounts a state, judges what is there, and has the image that this leaves checked by all.
    fn recover(&mut self, history: &History, state: &CrashState, done: usize) -> Result<Tree, String> {
        let device = SimDevice::from_content(state.content.clone());
        device.set_recording(false);
        let fs = mount(&device, self.options).map_err(|e| format!("mount: {e}"))?;
        let tree = tree_of(&fs);
        fs.unmount().map_err(|e| format!("unmount: {e}"))?;
        drop(fs);
        history.judge(&tree, done)?;
        check(&device)?;
        let content = device.content();
        if self.seen.insert(self.digest(&content)) {
            outside_opinions(&content, &tree)?;
        }
        Ok(tree)
    }

    fn digest(&self, content: &Content) -> u64 {
        let mut copy = content.clone();
        self.masked.iter().for_each(|(start, end)| copy.zero(*start, end - start));
        copy.difference_digest(&self.masked_base)
    }

    /// The line that `cargo xtask crash` adds up.
    fn report(&self, what: &str) {
        println!(
            "crash lab: {} scripts, {} refused, {} states, {} distinct recovered images: {what}",
            self.scripts,
            self.refused,
            self.states,
            self.seen.len()
        );
    }
}

/// What our own checker says, which shares no code with what wrote.
fn check(device: &SimDevice) -> Result<(), String> {
    let options = extant_fsck::Options { threads: 1, ..extant_fsck::Options::default() };
    let report = extant_fsck::check(device, &options);
    if report.is_clean() { Ok(()) } else { Err(format!("extant fsck: {:?}", report.findings)) }
}

/// Writes a state that was found wanting to the file that `EXTANT_CRASH_KEEP` names.
fn keep(content: &Content) {
    if let Some(path) = std::env::var_os("EXTANT_CRASH_KEEP") {
        content.to_file(Path::new(&path)).expect("state");
    }
}

/// What e2fsck and the kernel say of a recovered image.
fn outside_opinions(content: &Content, tree: &Tree) -> Result<(), String> {
    let scratch = scratch();
    let image = scratch.join("state.img");
    content.to_file(&image).expect("image");
    let outcome = oracle::e2fsck(&image);
    if outcome.status != 0 {
        return Err(format!("e2fsck: {outcome}"));
    }
    let mount = KernelMount::with(&image, "ro").map_err(|e| format!("kernel mount: {e}"))?;
    let theirs = Tree::read(mount.path(), false).map_err(|e| format!("kernel: {e}"))?;
    mount.unmount();
    let mut ours = tree.clone();
    ours.nodes.values_mut().for_each(|node| node.mtime = None);
    let differences = theirs.differences(&ours, 5);
    if differences.is_empty() { Ok(()) } else { Err(format!("kernel / extant: {}", differences.join("; "))) }
}

/// Every `n`th script from the `i`th on, by `EXTANT_CRASH_PART`.
fn part(scripts: Vec<Vec<Op>>) -> Vec<Vec<Op>> {
    let Ok(part) = std::env::var("EXTANT_CRASH_PART") else { return scripts };
    let (i, n) = part.split_once('/').expect("EXTANT_CRASH_PART=i/n");
    let (i, n): (usize, usize) = (i.parse().expect("i"), n.parse().expect("n"));
    scripts.into_iter().skip(i).step_by(n).collect()
}

fn sample(mut scripts: Vec<Vec<Op>>, most: usize, seed: u64) -> Vec<Vec<Op>> {
    Rng::new(seed).shuffle(&mut scripts);
    scripts.truncate(most);
    scripts
}

/// How much of the space the short form runs.
struct Short {
    one: usize,
    two: usize,
    three: usize,
}

/// For filesystems that share most code with the first.
const FEW: Short = Short { one: 8, two: 2, three: 2 };

fn run(what: &str, mkfs: &str, size: u64, options: &'static str, short: &Short) {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let seed = env::seed_or(1);
    let long = std::env::var("EXTANT_CRASH").is_ok_and(|form| form == "long");
    let mut lab = Lab::new(mkfs, size, options, seed);
    if let Ok(script) = std::env::var("EXTANT_CRASH_SCRIPT") {
        let script = std::fs::read_to_string(script).expect("script");
        return lab.explore(&extant_testkit::script::parse(&script).expect("script"));
    }
    let (one, two, three) = (scripts(1, seed, 0), scripts(2, seed, 0), if long { 2000 } else { short.three });
    let one = if long { one } else { sample(one, short.one, seed) };
    let two = if long { two } else { sample(two, short.two, seed) };
    for script in [one, two, scripts(3, seed, three)].into_iter().flat_map(part) {
        lab.explore(&script);
    }
    lab.report(what);
    assert!(lab.states > 300, "{} states", lab.states);
}

#[test]
fn crashes_with_small_blocks() {
    let short = Short { one: 30, two: 4, three: 4 };
    run("1 KiB blocks", "-t ext4 -b 1024 -J size=1", 10 << 20, "commit=300", &short);
}

#[test]
fn crashes_with_large_blocks() {
    run("4 KiB blocks", "-t ext4 -b 4096 -J size=4", 12 << 20, "commit=300", &FEW);
}

#[test]
fn crashes_with_data_writeback() {
    let options = "commit=300,data=writeback";
    run("4 KiB blocks, data=writeback", "-t ext4 -b 4096 -J size=4", 12 << 20, options, &FEW);
}

#[test]
fn crashes_with_inline_data_and_an_orphan_file() {
    let mkfs = "-t ext4 -b 1024 -O inline_data,orphan_file -J size=1";
    run("inline data, orphan file", mkfs, 10 << 20, "commit=300", &FEW);
}

#[test]
fn crashes_with_indirect_maps() {
    run("ext3: indirect maps, no checksums", "-t ext3 -b 1024 -J size=1", 10 << 20, "commit=300", &FEW);
}

#[test]
fn crashes_with_clusters() {
    let mkfs = "-t ext4 -b 1024 -O bigalloc -C 4096 -J size=1";
    run("clusters of 4 KiB", mkfs, 40 << 20, "commit=300", &FEW);
}

/// Without a journal a crash wants a check, and e2fsck repairs every state; what sync(2) has written is there in full once
/// nothing was written after it.
#[test]
fn crashes_without_a_journal() {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let seed = env::seed_or(1);
    let mut lab = Lab::new("-t ext2 -b 1024", 10 << 20, "commit=300", seed);
    let synced = |script: &Vec<Op>| script.last() == Some(&Op::Sync);
    let all: Vec<Vec<Op>> = scripts(1, seed, 0).into_iter().filter(synced).collect();
    let long = std::env::var("EXTANT_CRASH").is_ok_and(|form| form == "long");
    let some = if long { all } else { sample(all, 3, seed) };
    for script in part(some) {
        let Some(device) = lab.record(&script) else {
            lab.refused += 1;
            continue;
        };
        lab.scripts += 1;
        let history = History::new(&script);
        device.crash_plan(seed).subsets(lab.subsets).for_each(|state| {
            lab.states += 1;
            if lab.seen.insert(lab.digest(&state.content))
                && let Err(problem) = judge_repaired(&history, &state, script.len())
            {
                keep(&state.content);
                panic!(
                    "epoch {} {:?}: {problem}; seed={seed}, script:\n{}",
                    state.epoch,
                    state.cut,
                    text(&script)
                );
            }
        });
    }
    lab.report("ext2, repaired by e2fsck");
}

/// Our checker looks at the state as it is (any verdict, no panic), e2fsck repairs it, and we mount and judge the rest.
fn judge_repaired(history: &History, state: &CrashState, all: usize) -> Result<(), String> {
    let raw = SimDevice::from_content(state.content.clone());
    let _any = check(&raw);
    let scratch = scratch();
    let image = scratch.join("state.img");
    state.content.to_file(&image).map_err(|e| e.to_string())?;
    let repaired = oracle::e2fsck_with(&image, &["-fy"]);
    if !matches!(repaired.status, 0 | 1) {
        return Err(format!("e2fsck -fy: {repaired}"));
    }
    let device = SimDevice::from_file(&image);
    check(&device)?;
    let fs = mount(&device, "commit=300").map_err(|e| format!("mount: {e}"))?;
    let tree = tree_of(&fs);
    fs.unmount().map_err(|e| format!("unmount: {e}"))?;
    let done = state.marks.last().copied().unwrap_or(0) as usize;
    if done == all { history.judge(&tree, done) } else { Ok(()) }
}
