//! The lab: one kind of filesystem, its scripts, their states, and the judgement of each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extant::{Filesystem, Setup};
use extant_device::BlockDevice;
use extant_testkit::crash::{History, setup};
use extant_testkit::kernel::KernelMount;
use extant_testkit::script::{DirExecutor, Executor as _, Op, text};
use extant_testkit::sim::{
    Content, Footprint, Mappable, SECTOR, SectorSet, SimDevice, Sketch, sector_digest,
};
use extant_testkit::tree::Tree;
use extant_testkit::{oracle, scratch};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use rustix::io::Errno;

use super::known::{Found, Known, Outcome, Slots};
use super::outside::{Failure, Job, Outside};
use super::{Device, Kind};
use crate::support::{LibExecutor, tree_of};

/// Of so many states that are known one is recovered all the same, and must do what is known.
const LOOK_AGAIN: usize = 1000;

/// What the lab has done.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) scripts: usize,
    /// Scripts that the filesystem refused an operation of.
    pub(super) refused: usize,
    pub(super) states: usize,
    /// Recovered by the library.
    pub(super) recoveries: usize,
    /// Distinct recovered images, each seen by the outside programs: now, or earlier.
    pub(super) images: usize,
    /// Those seen now.
    pub(super) new: usize,
}

/// What all scripts of one kind of filesystem share.
pub(super) struct Lab {
    pub(super) kind: &'static Kind,
    pub(super) base: Content,
    /// Sectors in which two recovered images may differ and be the same: superblock, journal.
    pub(super) masked: SectorSet,
    pub(super) seed: u64,
    pub(super) counts: Counts,
    known: Known,
    trees: Vec<Arc<Tree>>,
    tree_digests: Vec<u128>,
    tree_numbers: HashMap<Arc<Tree>, u32, FxBuildHasher>,
    /// Beginnings of scripts that have a number.
    beginnings: HashMap<Vec<Op>, u32, FxBuildHasher>,
    /// Trees that were judged good: beginning of the script, operations that had returned, tree.
    judged: FxHashSet<(u32, usize, u32)>,
    /// The recovered images, by digest and tree; whether they were seen by an earlier run.
    seen: FxHashMap<u128, bool>,
    outside: Outside,
}

/// What is kept while the states of one record are gone through.
struct Record {
    history: History,
    /// The numbers of the script's first 0, 1, … operations.
    beginnings: Vec<u32>,
    slots: Slots,
}

/// A recovery and what it left.
struct Recovered {
    tree: Tree,
    content: Content,
    footprint: Footprint,
}

impl Lab {
    pub(super) fn new(kind: &'static Kind, seed: u64) -> Self {
        let (base, masked) = base(kind);
        let outside = Outside::new(&base);
        Self {
            kind,
            base,
            masked,
            seed,
            counts: Counts::default(),
            known: Known::default(),
            trees: Vec::new(),
            tree_digests: Vec::new(),
            tree_numbers: HashMap::default(),
            beginnings: HashMap::default(),
            judged: FxHashSet::default(),
            seen: earlier(kind),
            outside,
        }
    }

    /// Runs a script and judges every state of it; the first that is found wanting fails the test.
    pub(super) fn explore(&mut self, script: &[Op]) {
        if let Some(failure) = self.first_failure(script).or_else(|| self.outside.failure()) {
            self.fail(failure);
        }
    }

    /// The same; gives the first state that is found wanting.
    pub(super) fn first_failure(&mut self, script: &[Op]) -> Option<Failure> {
        let Some(device) = self.record(script) else {
            self.counts.refused += 1;
            return None;
        };
        self.counts.scripts += 1;
        let mut record = self.start(script);
        let mut failure = None;
        device.crash_plan(self.seed).for_each_sketch(|sketch| {
            if failure.is_some() {
                return;
            }
            self.counts.states += 1;
            if let Err(problem) = self.judge(&mut record, sketch, script) {
                failure = Some((sketch.content(), format!("{problem}; {}", self.place(sketch, script))));
            }
        });
        failure
    }

    fn place(&self, sketch: &Sketch<'_>, script: &[Op]) -> String {
        let (epoch, cut, seed) = (sketch.epoch, sketch.cut, self.seed);
        format!("epoch {epoch} {cut:?}; seed={seed}, script:\n{}", text(script))
    }

    /// Fails the test; the state goes to the file that `EXTANT_CRASH_KEEP` names.
    pub(super) fn fail(&self, (content, problem): Failure) -> ! {
        if let Some(path) = std::env::var_os("EXTANT_CRASH_KEEP") {
            content.to_file(Path::new(&path)).expect("state");
        }
        panic!("{}: {problem}", self.kind.name);
    }

    fn start(&mut self, script: &[Op]) -> Record {
        let number = |len| {
            let next = self.beginnings.len() as u32;
            *self.beginnings.entry(script[..len].to_vec()).or_insert(next)
        };
        let beginnings = (0..=script.len()).map(number).collect();
        let history = History::new(script).with_blocks(self.kind.block_size as usize);
        Record { history, beginnings, slots: Slots::default() }
    }

    /// Runs a script on the base and gives the device that recorded it; `None` if an operation is not supported.
    pub(super) fn record(&self, script: &[Op]) -> Option<Arc<SimDevice>> {
        if self.kind.device == Device::Disk {
            let device = SimDevice::from_content(self.base.clone());
            return self.run(script, &device, "", LibExecutor::new, |n| device.mark(n)).then_some(device);
        }
        let device = Mappable::from_content(self.base.clone());
        if self.kind.device == Device::LyingMemory {
            device.lie();
        }
        let mark = |n| {
            device.note_stores();
            device.record().mark(n);
        };
        let options = if self.kind.device == Device::MemoryWithoutSync {
            ",dax=always,pmem=off"
        } else {
            ",dax=always"
        };
        let executor = |fs| {
            let device = Arc::clone(&device);
            LibExecutor::on_persistent(fs, move |range| device.write_back(range))
        };
        self.run(script, &device, options, executor, mark).then(|| Arc::clone(device.record()))
    }

    /// `done` is called with the number of operations that have returned; `false` if one is not supported.
    fn run<D: BlockDevice + 'static>(
        &self,
        script: &[Op],
        device: &Arc<D>,
        options: &str,
        executor: impl Fn(Arc<Filesystem>) -> LibExecutor,
        done: impl Fn(u64),
    ) -> bool {
        let fs = self.mount_with(device, options).expect("mount");
        let mut executor = executor(Arc::clone(&fs));
        for (n, op) in (1..).zip(script) {
            match executor.apply(op) {
                Ok(()) => done(n),
                Err(Errno::OPNOTSUPP) => return false,
                Err(e) => panic!("`{op}`: {e}; script:\n{}", text(script)),
            }
        }
        drop(executor);
        fs.unmount().expect("unmount");
        true
    }

    fn judge(&mut self, record: &mut Record, sketch: &Sketch<'_>, script: &[Op]) -> Result<(), String> {
        let done = sketch.marks.last().copied().unwrap_or(0) as usize;
        let mut fresh = None;
        let found = self.known.find(sketch, &mut record.slots);
        let number = match found {
            Some(Found::State(number) | Found::Alike(number)) => number,
            None => {
                let recovered = self.recover(sketch)?;
                let outcome = self.outcome(&recovered);
                fresh = Some(recovered.content);
                self.known.learn(sketch, &mut record.slots, recovered.footprint.read, outcome)
            }
        };
        let outcome = self.known.outcome(number);
        // What a tree is judged by is the script up to the operation that was under way.
        let last = (done + 1).min(script.len());
        if self.judged.insert((record.beginnings[last], done, outcome.tree)) {
            record.history.judge(&self.trees[outcome.tree as usize], done)?;
        }
        if matches!(found, Some(Found::State(_))) {
            return Ok(());
        }
        let image = self.known.left(sketch, &mut record.slots, outcome, &self.masked);
        let new = self.is_new(image.wrapping_add(self.tree_digests[outcome.tree as usize]));
        if fresh.is_none() && (new || self.counts.states.is_multiple_of(LOOK_AGAIN)) {
            fresh = Some(self.recover_again(sketch, outcome)?);
        }
        if new && let Some(content) = fresh {
            let tree = Arc::clone(&self.trees[outcome.tree as usize]);
            self.outside.ask(Job { content, tree, from: self.place(sketch, script) });
        }
        Ok(())
    }

    fn outcome(&mut self, recovered: &Recovered) -> Outcome {
        let mut left = 0u128;
        let mut bytes = [0; SECTOR as usize];
        for sector in recovered.footprint.written.iter().filter(|s| !self.masked.contains(*s)) {
            recovered.content.read(sector * SECTOR, &mut bytes);
            left = left.wrapping_add(sector_digest(&self.base, sector, &bytes));
        }
        let written = self.known.written(recovered.footprint.written.clone());
        Outcome { tree: self.tree_number(&recovered.tree), written, left }
    }

    /// Whether an image is one that the outside programs are to look at now.
    pub(super) fn is_new(&mut self, digest: u128) -> bool {
        match self.seen.entry(digest) {
            Entry::Vacant(entry) => {
                entry.insert(false);
                self.counts.images += 1;
                self.counts.new += 1;
                true
            }
            Entry::Occupied(mut entry) => {
                self.counts.images += usize::from(entry.insert(false));
                false
            }
        }
    }

    fn tree_number(&mut self, tree: &Tree) -> u32 {
        if let Some(number) = self.tree_numbers.get(tree) {
            return *number;
        }
        let (number, tree) = (self.trees.len() as u32, Arc::new(tree.clone()));
        self.trees.push(Arc::clone(&tree));
        self.tree_digests.push(digest(&tree));
        self.tree_numbers.insert(tree, number);
        number
    }

    /// Recovers a state of which it is known what comes of it, for the image, and to see whether it is true.
    fn recover_again(&mut self, sketch: &Sketch<'_>, known: Outcome) -> Result<Content, String> {
        let recovered = self.recover(sketch)?;
        let outcome = self.outcome(&recovered);
        if outcome == known {
            return Ok(recovered.content);
        }
        Err(format!("a state like an earlier one is recovered otherwise: {known:?}, {outcome:?}"))
    }

    /// Mounts a state for writing, reads the tree, unmounts, and has our checker look at what is left.
    fn recover(&mut self, sketch: &Sketch<'_>) -> Result<Recovered, String> {
        self.counts.recoveries += 1;
        let device = SimDevice::from_content(sketch.content());
        device.set_recording(false);
        device.watch();
        let fs = self.mount(&device).map_err(|e| format!("mount: {e}"))?;
        let tree = tree_of(&fs);
        fs.unmount().map_err(|e| format!("unmount: {e}"))?;
        drop(fs);
        check(&device)?;
        let footprint = device.footprint().expect("it was watched");
        Ok(Recovered { tree, content: device.content(), footprint })
    }

    pub(super) fn mount(&self, device: &Arc<SimDevice>) -> extant::Result<Arc<Filesystem>> {
        self.mount_with(device, "")
    }

    fn mount_with<D: BlockDevice + 'static>(
        &self,
        device: &Arc<D>,
        more: &str,
    ) -> extant::Result<Arc<Filesystem>> {
        let block = Some(self.kind.block_size);
        let setup = Setup {
            clock: Arc::new(Still),
            generation: Some(7),
            log_window: block,
            ..Setup::with_options(&format!("{}{more}", self.kind.options))?
        };
        Filesystem::open(Arc::clone(device) as _, setup)
    }

    fn keep_seen(&self) {
        let Some(path) = kept(self.kind, "seen") else { return };
        let bytes: Vec<u8> = self.seen.keys().flat_map(|digest| digest.to_le_bytes()).collect();
        // Whole or not at all.
        let part = path.with_extension("seen.part");
        std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, &path)).expect("seen images");
    }

    /// Waits for the outside opinions, and prints the line that `cargo xtask crash` adds up.
    pub(super) fn finish(mut self) -> Counts {
        if let Some(failure) = self.outside.finish() {
            self.fail(failure);
        }
        self.keep_seen();
        let Counts { scripts, refused, states, recoveries, images, new } = self.counts;
        println!(
            "crash lab: {scripts} scripts, {refused} refused, {states} states, {images} distinct recovered images, {new} new: {}",
            self.kind.name
        );
        let (outcomes, sets) = self.known.sizes();
        let trees = self.trees.len();
        println!("{recoveries} recoveries, {outcomes} outcomes by {sets} sets of sectors, {trees} trees");
        self.counts
    }
}

/// A file of the folder that `EXTANT_CRASH_DIR` names, in which parts of a run leave what the next ones need.
fn kept(kind: &Kind, what: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("EXTANT_CRASH_DIR")?;
    Some(Path::new(&dir).join(format!("{}.{what}", kind.name)))
}

/// The images that outside programs have found good in earlier runs from the same base: what they said of an image stays true.
fn earlier(kind: &Kind) -> FxHashMap<u128, bool> {
    let bytes = kept(kind, "seen").and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let (digests, _) = bytes.as_chunks();
    digests.iter().map(|digest| (u128::from_le_bytes(*digest), true)).collect()
}

fn digest(tree: &Tree) -> u128 {
    let mut hasher = std::hash::DefaultHasher::new();
    tree.hash(&mut hasher);
    u128::from(hasher.finish()) << 32
}

/// What our own checker says, which shares no code with what wrote.
pub(super) fn check(device: &SimDevice) -> Result<(), String> {
    let options = extant_fsck::Options { threads: 1, ..extant_fsck::Options::default() };
    let report = extant_fsck::check(device, &options);
    if report.is_clean() { Ok(()) } else { Err(format!("extant fsck: {:?}", report.findings)) }
}

/// A time that stands still, so that equal images are equal.
#[derive(Debug)]
struct Still;

impl extant::Clock for Still {
    fn now(&self) -> extant::Timestamp {
        extant::Timestamp { sec: 1_800_000_000, nsec: 0 }
    }
}

/// A filesystem with the setup's tree, made by mke2fs and the kernel in an image full of junk: a byte that was never written
/// shows. The same image each time if `EXTANT_CRASH_DIR` names a folder to keep it in.
fn base(kind: &Kind) -> (Content, SectorSet) {
    let scratch = scratch();
    let image = kept(kind, "img").unwrap_or_else(|| scratch.join("base.img"));
    if !image.exists() {
        make_base(kind, &scratch.join("new.img"), &image);
    }
    let masked = masked(&image);
    (Content::from_file(&image).expect("image"), masked)
}

fn make_base(kind: &Kind, new: &Path, image: &Path) {
    std::fs::write(new, vec![0xEE; kind.size as usize]).expect("junk");
    let args = format!("{} -b {} -N 64 -E nodiscard,lazy_itable_init=0", kind.mkfs, kind.block_size);
    oracle::mke2fs(new, kind.size, &args);
    let mount = KernelMount::with(new, "nodiscard").expect("kernel mount");
    let mut executor = DirExecutor::new("kernel", mount.path());
    setup().iter().for_each(|op| executor.apply(op).expect("setup"));
    mount.unmount();
    oracle::assert_clean(new);
    // Whole or not at all.
    let part = image.with_extension("part");
    std::fs::copy(new, &part).expect("copy");
    std::fs::rename(&part, image).expect("rename");
}

fn masked(image: &Path) -> SectorSet {
    let header = oracle::dumpe2fs_header(image);
    let field = |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let size: u64 = field("Block size").expect("block size").parse().expect("a number");
    let mut masked = SectorSet::new(std::fs::metadata(image).expect("image").len());
    (2..4).for_each(|sector| masked.insert(sector));
    let Some(total) = field("Total journal blocks") else { return masked };
    let total: u32 = total.parse().expect("a number");
    let requests: Vec<String> = (0..total).map(|n| format!("bmap <8> {n}")).collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    let blocks = oracle::debugfs(image, &requests);
    let blocks = blocks.lines().filter_map(|line| line.trim().parse::<u64>().ok());
    for block in blocks {
        (block * size / SECTOR..(block + 1) * size / SECTOR).for_each(|sector| masked.insert(sector));
    }
    masked
}
