//! Every mode of fallocate(2) on every edge: by the library, on our mount as far as FUSE carries it, and on the kernel's. Same answer,
//! content, size and blocks, and e2fsck finds nothing. With `EXTANT_TABLE=FILE` the table goes there (`cargo xtask shows
//! fallocate-table`).

use std::fmt::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extant::{Credentials, FallocateMode, Filesystem, InodeFlags, OpenOptions, Setup};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{self, assert_clean, mke2fs};
use extant_testkit::rng::pattern;
use extant_testkit::{env, scratch};
use rustix::fs::FallocateFlags;

use crate::mounted::Mounted;

/// How a file comes to be what a case needs.
#[derive(Clone, Copy)]
enum Step {
    Write(u64, u64),
    Allocate(u64, u64),
    Size(u64),
    Sync,
    /// Another file takes all that is left.
    Fill,
}

use Step::{Allocate, Fill, Size, Sync, Write};

/// An edge: what is there, and the range.
struct Case {
    name: &'static str,
    /// mke2fs's arguments.
    image: &'static str,
    file: &'static [Step],
    range: (u64, u64),
}

const K4: &str = "-t ext4 -b 4096";
const K1: &str = "-t ext4 -b 1024";
const INLINE: &str = "-t ext4 -b 4096 -O inline_data";
const INDIRECT: &str = "-t ext4 -b 4096 -O ^extent,^64bit";
const CLUSTERS: &str = "-t ext4 -b 4096 -O bigalloc -C 16384";
const PLAIN: &[Step] = &[Write(0, 40_000), Sync];
const MIB: u64 = 1 << 20;

const CASES: &[Case] = &[
    case("whole blocks inside", K4, PLAIN, (8192, 8192)),
    case("neither end at a block's", K4, PLAIN, (5000, 9000)),
    case("inside one block", K4, PLAIN, (4100, 100)),
    case("the file to its end", K4, PLAIN, (0, 40_000)),
    case("all whole blocks before the end", K4, PLAIN, (0, 36_864)),
    case("across the end", K4, PLAIN, (36_864, 8192)),
    case("behind the last block", K4, PLAIN, (40_960, 8192)),
    case("a GiB past the end", K4, PLAIN, (1 << 30, 4096)),
    case("up to the last block", K4, PLAIN, (28_672, 8192)),
    case("no length", K4, PLAIN, (4096, 0)),
    case("past what an offset can be", K4, PLAIN, (1 << 62, 1 << 62)),
    case("past the largest file", K4, PLAIN, (1 << 44, 4096)),
    case("makes the file too large", K4, PLAIN, (4096, (1 << 44) - 8192 - 4096)),
    case("blocks not yet written", K4, &[Write(0, 40_000)], (8192, 8192)),
    case(
        "an appended tail not yet written",
        K4,
        &[Write(0, 20_000), Sync, Write(20_000, 20_000)],
        (16_384, 8192),
    ),
    case(
        "blocks behind it not yet written",
        K4,
        &[Write(0, 20_000), Sync, Write(30_000, 20_000)],
        (4096, 8192),
    ),
    case("a hole", K4, &[Write(0, 8192), Size(40_960), Sync], (12_288, 8192)),
    case("an edge in a hole", K4, &[Write(0, 8192), Write(20_480, 8192), Sync], (6000, 9000)),
    case("unwritten blocks", K4, &[Allocate(0, 40_960), Write(0, 4096), Size(40_960), Sync], (8192, 8192)),
    case(
        "blocks allocated past the end",
        K4,
        &[Write(0, 40_000), Allocate(40_960, 40_960), Sync],
        (8192, 8192),
    ),
    case(
        "inside what is allocated past the end",
        K4,
        &[Write(0, 40_000), Allocate(40_960, 40_960), Sync],
        (49_152, 8192),
    ),
    case("an empty file", K4, &[Sync], (0, 8192)),
    case("blocks smaller than a page", K1, PLAIN, (3072, 5120)),
    case("inside one of those", K1, PLAIN, (3100, 900)),
    case(
        "a page of those not yet written",
        K1,
        &[Write(0, 5000), Sync, Write(1024, 100), Write(5000, 3000)],
        (2048, 1024),
    ),
    case("content in the inode", INLINE, &[Write(0, 50), Sync], (0, 4096)),
    case("a part of content in the inode", INLINE, &[Write(0, 50), Sync], (10, 20)),
    case("no extents", INDIRECT, PLAIN, (8192, 8192)),
    case("no extents, past what their map holds", INDIRECT, PLAIN, (5 << 40, 4096)),
    case("whole clusters", CLUSTERS, &[Write(0, 80_000), Sync], (16_384, 32_768)),
    case("blocks, not clusters", CLUSTERS, &[Write(0, 80_000), Sync], (4096, 8192)),
    case(
        "a cluster's edge not yet written",
        CLUSTERS,
        &[Write(0, 20_000), Sync, Write(30_000, 30_000)],
        (16_384, 16_384),
    ),
];

/// The same without enough space: a disk of [`SMALL`] that is full, or has less than is asked for. After each operation there is as
/// much as before it.
const FULL: &[Case] = &[
    case("all of it has blocks", K4, &[Write(0, 40_000), Sync, Fill], (8192, 16_384)),
    case("not behind the end", K4, &[Write(0, 40_000), Sync, Fill], (8192, 65_536)),
    case(
        "not behind what is not yet written",
        K4,
        &[Write(0, 40_000), Sync, Fill, Write(4096, 30_000)],
        (8192, 65_536),
    ),
    case("to inside a block", K4, &[Write(0, 40_000), Sync, Fill], (8192, 65_636)),
    case("from inside a block", K4, &[Write(0, 40_000), Sync, Fill], (8100, 65_628)),
    case("nothing of it", K4, &[Write(0, 40_000), Sync, Fill], (49_152, 100)),
    case("a hole before the end", K4, &[Write(0, 40_000), Size(60_000), Sync, Fill], (8192, 65_536)),
    case("an empty file without space", K4, &[Sync, Fill], (0, 8192)),
    case("blocks smaller than a page, without space", K1, &[Write(0, 5000), Sync, Fill], (1024, 8192)),
    case("content in the inode, without space", INLINE, &[Write(0, 50), Sync, Fill], (0, 8192)),
    case("no extents, without space", INDIRECT, &[Write(0, 40_000), Sync, Fill], (8192, 65_536)),
    case("in a cluster with space", CLUSTERS, &[Write(0, 40_000), Sync, Fill], (36_864, 8192)),
    case("up to the end of a cluster", CLUSTERS, &[Write(0, 40_000), Sync, Fill], (45_056, 8192)),
    case("an empty file, more than there is", K4, &[Sync], (0, MORE)),
    case("more than there is", K4, PLAIN, (8192, MORE)),
    case("more than there is, from inside a block", K4, PLAIN, (4100, MORE)),
    case(
        "more than there is, and the end behind",
        K4,
        &[Write(0, 40_000), Write(20 * MIB, 8192), Sync],
        (0, MORE),
    ),
];

/// Bytes that may differ of how much a file has got that takes all there is.
const NEAR: u64 = 64 << 10;
/// Bytes of a small disk.
const SMALL: u64 = 16 << 20;
/// More than that.
const MORE: u64 = 40 << 20;

impl Case {
    /// Whether a file of its own has what is left, and must go for the next.
    fn wants_more(&self) -> bool {
        self.range.1 == MORE
    }
}

const fn case(name: &'static str, image: &'static str, file: &'static [Step], range: (u64, u64)) -> Case {
    Case { name, image, file, range }
}

/// The mode words, and whether FUSE carries them.
const MODES: &[(&str, u32, bool)] = &[
    ("allocate", 0, true),
    ("allocate, keep size", 1, true),
    ("punch, keep size", 3, true),
    ("punch", 2, false),
    ("zero", 16, true),
    ("zero, keep size", 17, true),
    ("collapse", 8, false),
    ("collapse, keep size", 9, false),
    ("insert", 32, false),
    ("unshare", 64, false),
    ("write zeroes", WRITE_ZEROES, false),
    ("write zeroes, keep size", WRITE_ZEROES | 1, false),
];

const ZERO: u32 = 16;
const WRITE_ZEROES: u32 = 128;

/// What came of an operation.
#[derive(Clone, Debug)]
struct Outcome {
    /// 0 or an errno.
    answer: i32,
    size: u64,
    /// In units of 512 bytes, after an fsync.
    blocks: u64,
    /// The first MiB and the last 8 KiB, as read at once.
    content: Vec<u8>,
    /// The same as the kernel reads it after a fresh mount.
    later: Vec<u8>,
}

impl Outcome {
    fn not_run() -> Self {
        Self { answer: -1, size: 0, blocks: 0, content: Vec::new(), later: Vec::new() }
    }

    /// Whether this is what the kernel did, by what it said at once or by what it has on the disk. `near`: how many tree blocks there
    /// are is each allocator's own, and so how many are left for the file.
    fn is(&self, kernel: &Self, near: bool) -> bool {
        let content = self.content == kernel.content || self.content == kernel.later;
        let most = if near { NEAR } else { 0 };
        let same_size = self.size.abs_diff(kernel.size) <= most;
        let same_blocks = self.blocks.abs_diff(kernel.blocks) * 512 <= most;
        self.answer == kernel.answer && same_size && same_blocks && content
    }

    /// The same where the sides are only near each other.
    fn about(&self) -> String {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB as f64);
        format!("ENOSPC: {}, {}", mib(self.size), mib(self.blocks * 512))
    }

    fn text(&self) -> String {
        let name = match self.answer {
            28 => return format!("ENOSPC: {}, {}", self.size, self.blocks),
            0 => return format!("{}, {}", self.size, self.blocks),
            -1 => "–",
            1 => "EPERM",
            9 => "EBADF",
            21 => "EISDIR",
            22 => "EINVAL",
            26 => "ETXTBSY",
            27 => "EFBIG",
            29 => "ESPIPE",
            95 => "EOPNOTSUPP",
            n => return format!("errno {n}"),
        };
        name.into()
    }
}

/// On a mount, ours or the kernel's.
fn on_mount(dir: &Path, name: &str, case: &Case, mode: u32) -> Outcome {
    let _open = oracle::files_on_a_mount();
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(dir.join(name)).expect("a new file");
    for step in case.file {
        match *step {
            Write(at, len) => file.write_all_at(&pattern(7, at, len as usize), at).expect("write"),
            // Nothing of the kind without extents, and no case asks for it there.
            Allocate(at, len) => {
                rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, at, len).expect("allocate");
            }
            Size(size) => file.set_len(size).expect("truncate"),
            Sync => file.sync_all().expect("fsync"),
            Fill => fill(&dir.join(FILLERS)),
        }
    }
    let (at, len) = case.range;
    let answer = rustix::fs::fallocate(&file, FallocateFlags::from_bits_retain(mode), at, len);
    file.sync_all().expect("fsync");
    let meta = file.metadata().expect("stat");
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    };
    let content = ends(meta.len(), read);
    Outcome {
        answer: answer.err().map_or(0, rustix::io::Errno::raw_os_error),
        size: meta.len(),
        blocks: meta.blocks(),
        content,
        later: Vec::new(),
    }
}

fn ends(size: u64, read: impl Fn(u64, u64) -> Vec<u8>) -> Vec<u8> {
    let mut content = read(0, size.min(MIB));
    content.extend(read(size.saturating_sub(8192), size.min(8192)));
    content
}

const FILLERS: &str = "fillers";

/// Takes what there is, by files that keep what was left of a fallocate(2) of more than that, until one gets nothing: on the kernel's the
/// first may leave a few blocks that another gets.
fn fill(dir: &Path) {
    use rustix::io::Errno;
    std::fs::create_dir(dir).expect("a new directory");
    for n in 0.. {
        let file = std::fs::File::create(dir.join(n.to_string())).expect("a new file");
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, MORE) {
            Err(Errno::NOSPC) => {}
            // Without extents.
            Err(Errno::OPNOTSUPP) => {
                while file.write_all_at(&[1; 4096], file.metadata().expect("stat").len()).is_ok() {}
            }
            other => panic!("{other:?}, with more than there is"),
        }
        rustix::fs::syncfs(&file).expect("syncfs");
        if file.metadata().expect("stat").blocks() == 0 {
            return;
        }
    }
}

/// The same through the library.
fn fill_in_library(fs: &Arc<Filesystem>) {
    let paths = fs.paths();
    paths.create_dir(FILLERS).expect("a new directory");
    let options = OpenOptions::new().write(true).create_new(true).permissions(0o644);
    for n in 0.. {
        let file = options.open(&paths, format!("{FILLERS}/{n}")).expect("a new file");
        match file.allocate(0, MORE, false).map_err(|e| e.errno()) {
            Err(28) => {}
            Err(95) => while file.write_all_at(&[1; 4096], file.metadata().size).is_ok() {},
            other => panic!("{other:?}, with more than there is"),
        }
        fs.sync().expect("sync");
        if file.metadata().blocks == 0 {
            return;
        }
    }
}

/// After an operation on a small disk on a mount: there is as much space as before.
fn make_room(dir: &Path, name: &str, case: &Case) {
    let _open = oracle::files_on_a_mount();
    // Cut first: FUSE's RELEASE may come after the unlink, and keep the blocks until then.
    let empty = |path: &Path| {
        std::fs::OpenOptions::new().write(true).truncate(true).open(path).map(drop).expect("truncate");
        std::fs::remove_file(path).expect("unlink");
    };
    let fillers = dir.join(FILLERS);
    if fillers.exists() {
        for filler in std::fs::read_dir(&fillers).expect("the fillers") {
            empty(&filler.expect("a filler").path());
        }
        std::fs::remove_dir(&fillers).expect("rmdir");
    }
    if case.wants_more() {
        empty(&dir.join(name));
    }
    rustix::fs::syncfs(std::fs::File::open(dir).expect("the directory")).expect("syncfs");
}

/// Through the library.
fn in_library(fs: &Arc<Filesystem>, name: &str, case: &Case, mode: u32) -> Outcome {
    let options = OpenOptions::new().read(true).write(true).create_new(true).permissions(0o644);
    let file = options.open(&fs.paths(), name).expect("a new file");
    for step in case.file {
        match *step {
            Write(at, len) => file.write_all_at(&pattern(7, at, len as usize), at).expect("write"),
            Allocate(at, len) => file.allocate(at, len, true).expect("allocate"),
            Size(size) => file.set_len(size).expect("truncate"),
            Sync => file.sync_all().expect("fsync"),
            Fill => fill_in_library(fs),
        }
    }
    let (at, len) = case.range;
    let answer = FallocateMode::from_flags(mode)
        .and_then(|(mode, keep)| file.open_file().fallocate(mode, at, len, keep))
        .map_or_else(|e| e.errno(), |()| 0);
    // The kernel looks at the length before the mode.
    let answer = if len == 0 { 22 } else { answer };
    file.sync_all().expect("fsync");
    let attr = file.metadata();
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    };
    Outcome {
        answer,
        size: attr.size,
        blocks: attr.blocks,
        content: ends(attr.size, read),
        later: Vec::new(),
    }
}

/// The three sides of one case, by mode.
struct Row {
    case: &'static Case,
    sides: Vec<[Outcome; 3]>,
}

/// What would allocate more than there is: how much it gets is each allocator's own.
fn fills_the_disk(case: &Case, mode: u32) -> bool {
    let (at, len) = case.range;
    [0, 1, ZERO, ZERO | 1, WRITE_ZEROES].contains(&mode) && len > 1 << 30 && at + len < 1 << 44
}

fn file_name(case: usize, mode: usize) -> String {
    format!("f{case}-{mode}")
}

/// Runs cases that want one kind of image on each side.
fn run(image: &str, size: u64, cases: &[(usize, &'static Case)], dir: &Path, rows: &mut Vec<Row>) {
    let make = |name: &str| -> PathBuf {
        let path = dir.join(name);
        let _ = std::fs::remove_file(&path);
        mke2fs(&path, size, image);
        path
    };
    let small = size == SMALL;
    let each = |run: &dyn Fn(&str, &Case, u32) -> Outcome| -> Vec<Vec<Outcome>> {
        let one = |n: usize, m: usize, case: &Case| {
            let mode = MODES[m].1;
            if fills_the_disk(case, mode) { Outcome::not_run() } else { run(&file_name(n, m), case, mode) }
        };
        let modes = |n: usize, case: &Case| (0..MODES.len()).map(|m| one(n, m, case)).collect();
        cases.iter().map(|(n, case)| modes(*n, case)).collect()
    };
    let (library, mount, kernel) = (make("library"), make("mount"), make("kernel"));
    let fs = {
        let device = extant_device::OpenOptions::new().write(true).open(&library).expect("image");
        Filesystem::open(Arc::new(device), Setup::default()).expect("mount")
    };
    let ours = each(&|name, case, mode| {
        let outcome = in_library(&fs, name, case, mode);
        if small {
            let _ = fs.paths().remove_dir_all(FILLERS);
            if case.wants_more() {
                fs.paths().remove_file(name).expect("unlink");
            }
        }
        outcome
    });
    fs.unmount().expect("unmount");
    drop(fs);
    let on = |dir: &Path, name: &str, case: &Case, mode| {
        let outcome = on_mount(dir, name, case, mode);
        if small {
            make_room(dir, name, case);
        }
        outcome
    };
    let mounted = Mounted::new(&mount, "");
    let served = each(&|name, case, mode| on(mounted.path(), name, case, mode));
    mounted.unmount();
    let theirs = KernelMount::rw(&kernel);
    let kernels = each(&|name, case, mode| on(theirs.path(), name, case, mode));
    theirs.unmount();
    let (ours, served) = (again(&library, cases, ours, true), again(&mount, cases, served, true));
    let kernels = again(&kernel, cases, kernels, false);
    for ((((_, case), a), b), c) in cases.iter().zip(ours).zip(served).zip(kernels) {
        let sides = a.into_iter().zip(b).zip(c).map(|((a, b), c)| [a, b, c]).collect();
        rows.push(Row { case, sides });
    }
}

/// Runs all cases: those with space, and those without.
fn run_all(dir: &Path) -> [Vec<Row>; 2] {
    let of = |cases: &'static [Case], image: &str| -> Vec<(usize, &'static Case)> {
        cases.iter().enumerate().filter(|(_, c)| c.image == image).collect()
    };
    let (mut plenty, mut none) = (Vec::new(), Vec::new());
    for image in [K4, K1, INLINE, INDIRECT, CLUSTERS] {
        run(image, 128 << 20, &of(CASES, image), dir, &mut plenty);
        let (more, full): (Vec<_>, Vec<_>) = of(FULL, image).into_iter().partition(|(_, c)| c.wants_more());
        run(image, SMALL, &full, dir, &mut none);
        run(image, SMALL, &more, dir, &mut none);
    }
    [plenty, none]
}

/// Adds what the kernel reads of an image that e2fsck has found clean. For us that is what was read at once; the kernel is not of
/// one mind about what was in the inode before (see the head of the table).
fn again(
    image: &Path,
    cases: &[(usize, &'static Case)],
    mut seen: Vec<Vec<Outcome>>,
    same: bool,
) -> Vec<Vec<Outcome>> {
    assert_clean(image);
    let mounted = KernelMount::ro(image);
    {
        let _open = oracle::files_on_a_mount();
        for ((n, case), outcomes) in cases.iter().zip(&mut seen) {
            for (m, outcome) in outcomes.iter_mut().enumerate().filter(|(_, o)| o.answer >= 0) {
                if case.wants_more() {
                    // It had to go.
                    outcome.later.clone_from(&outcome.content);
                    continue;
                }
                let file = std::fs::File::open(mounted.path().join(file_name(*n, m))).expect("the file");
                let size = file.metadata().expect("stat").len();
                let content = ends(size, |at, len| {
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, at).expect("read");
                    bytes
                });
                assert!(
                    !same || content == outcome.content,
                    "{}: {}: other bytes on the disk",
                    case.name,
                    MODES[m].0
                );
                outcome.later = content;
            }
        }
    }
    mounted.unmount();
    seen
}

/// The answer that the library owes: the kernel's, but where that is its device's.
fn owed(row: &Row, mode: usize) -> (&Outcome, bool) {
    let kernel = &row.sides[mode][2];
    if MODES[mode].1 == WRITE_ZEROES && kernel.answer == 95 {
        let zero = MODES.iter().position(|m| m.1 == ZERO).expect("a mode");
        return (&row.sides[zero][2], true);
    }
    (kernel, false)
}

#[test]
fn every_mode_on_every_edge() {
    need!(env::kernel_mounts(), env::fuse(), env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let all = run_all(dir.path());
    let mut wrong = String::new();
    for row in all.iter().flatten() {
        let near = row.case.wants_more();
        for (m, (name, _, carried)) in MODES.iter().enumerate() {
            let [library, mount, _] = &row.sides[m];
            let (want, _) = owed(row, m);
            let mut differs = |side: &str, got: &Outcome| {
                let same = if got.content == want.content || got.content == want.later {
                    ""
                } else {
                    ", other content"
                };
                let (got, want) = (got.text(), want.text());
                let _ = writeln!(wrong, "{}: {name}: {side} {got}, the kernel {want}{same}", row.case.name);
            };
            if !library.is(want, near) {
                differs("the library", library);
            }
            if *carried && !mount.is(want, near) {
                differs("the mount", mount);
            }
            // What is not carried is refused before it comes to us.
            assert!(
                *carried || [-1, 22, 27, 95].contains(&mount.answer),
                "{}: {name}: {mount:?}",
                row.case.name
            );
        }
    }
    if let Some(path) = std::env::var_os("EXTANT_TABLE") {
        std::fs::write(path, table(&all, &refusals(dir.path()))).expect("the table");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    println!(
        "fallocate: {} modes on {} edges, library, mount and kernel alike",
        MODES.len(),
        all.iter().flatten().count()
    );
}

/// Files that refuse, by what they are: the answers of library, mount and kernel for each mode.
fn refusals(dir: &Path) -> Vec<(&'static str, Vec<[String; 3]>)> {
    let image = |name: &str| {
        let path = dir.join(name);
        let _ = std::fs::remove_file(&path);
        mke2fs(&path, 32 << 20, K4);
        path
    };
    let kinds = ["append-only", "immutable", "open for reading", "a directory", "a FIFO"];
    let library = {
        let device = extant_device::OpenOptions::new().write(true).open(image("l")).expect("image");
        let fs = Filesystem::open(Arc::new(device), Setup::default()).expect("mount");
        let answers: Vec<Vec<String>> = kinds[..4].iter().map(|kind| refused_in_library(&fs, kind)).collect();
        fs.unmount().expect("unmount");
        answers
    };
    let image_of_mount = image("m");
    let mounted = Mounted::new(&image_of_mount, "");
    let served: Vec<Vec<String>> = kinds.iter().map(|kind| refused_on(mounted.path(), kind)).collect();
    mounted.unmount();
    let image_of_kernel = image("k");
    let theirs = KernelMount::rw(&image_of_kernel);
    let kernels: Vec<Vec<String>> = kinds.iter().map(|kind| refused_on(theirs.path(), kind)).collect();
    theirs.unmount();
    let mut out = Vec::new();
    for (n, kind) in kinds.into_iter().enumerate() {
        let of_library =
            |m: usize| library.get(n).map_or_else(|| "not to be opened".to_owned(), |a| a[m].clone());
        let row =
            (0..MODES.len()).map(|m| [of_library(m), served[n][m].clone(), kernels[n][m].clone()]).collect();
        out.push((kind, row));
    }
    out
}

fn answer_text(answer: i32) -> String {
    let outcome = Outcome { answer, size: 0, blocks: 0, content: Vec::new(), later: Vec::new() };
    if answer == 0 { "ok".into() } else { outcome.text() }
}

fn refused_in_library(fs: &Arc<Filesystem>, kind: &str) -> Vec<String> {
    let paths = fs.paths();
    let root = Credentials::root();
    paths.write(kind, &[1; 10_000]).expect("a file");
    let answers = |fallocate: &dyn Fn(FallocateMode, bool) -> extant::Result<()>| {
        let one = |mode: u32| FallocateMode::from_flags(mode).and_then(|(mode, keep)| fallocate(mode, keep));
        MODES.iter().map(|m| answer_text(one(m.1).map_or_else(|e| e.errno(), |()| 0))).collect()
    };
    if kind == "a directory" {
        // No open file of one can be written to.
        let dir = paths.inode("/").expect("root");
        let read_only = |mode, keep| match fs.fallocate(&dir, mode, 0, 4096, keep, &root) {
            Err(extant::Error::IsDirectory) => Err(extant::Error::BadFile),
            other => other,
        };
        return answers(&read_only);
    }
    let writes = kind != "open for reading";
    let file = OpenOptions::new().read(true).write(writes).open(&paths, kind).expect("open");
    let inode = file.open_file().inode().clone();
    let flag = match kind {
        "append-only" => InodeFlags::APPEND,
        "immutable" => InodeFlags::IMMUTABLE,
        _ => InodeFlags::empty(),
    };
    let old = inode.attr().flags;
    fs.set_flags(&inode, old | flag, &root).expect("flags");
    let out = answers(&|mode, keep| file.open_file().fallocate(mode, 0, 4096, keep));
    fs.set_flags(&inode, old, &root).expect("flags");
    out
}

fn refused_on(dir: &Path, kind: &str) -> Vec<String> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let _open = oracle::files_on_a_mount();
    let path = dir.join(kind);
    let file = match kind {
        "a directory" => std::fs::File::open(dir),
        "a FIFO" => {
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .expect("FIFO");
            std::fs::OpenOptions::new().read(true).write(true).open(&path)
        }
        _ => {
            std::fs::write(&path, [1; 10_000]).expect("a file");
            std::fs::OpenOptions::new().read(true).write(kind != "open for reading").open(&path)
        }
    }
    .expect("open");
    let flag = match kind {
        "append-only" => IFlags::APPEND,
        "immutable" => IFlags::IMMUTABLE,
        _ => IFlags::empty(),
    };
    let old = if flag.is_empty() { flag } else { ioctl_getflags(&file).expect("flags") };
    if !flag.is_empty() {
        ioctl_setflags(&file, old | flag).expect("flags");
    }
    let one = |mode: u32| {
        rustix::fs::fallocate(&file, FallocateFlags::from_bits_retain(mode), 0, 4096)
            .map_or_else(|e| answer_text(e.raw_os_error()), |()| "ok".into())
    };
    let out = MODES.iter().map(|m| one(m.1)).collect();
    if !flag.is_empty() {
        ioctl_setflags(&file, old).expect("flags");
    }
    out
}

#[test]
fn files_that_refuse() {
    need!(env::kernel_mounts(), env::fuse(), env::tools(&["mke2fs", "e2fsck"]));
    for (kind, row) in refusals(scratch().path()) {
        for ([library, mount, kernel], (name, mode, carried)) in row.iter().zip(MODES) {
            let device = *mode == WRITE_ZEROES && kernel == "EOPNOTSUPP";
            assert!(
                library == kernel || library == "not to be opened" || device,
                "{kind}: {name}: {library}, {kernel}"
            );
            assert!(
                mount == kernel || !carried && mount == "EOPNOTSUPP",
                "{kind}: {name}: {mount}, {kernel}"
            );
        }
    }
}

/// docs/fallocate.md's tables.
fn table([plenty, none]: &[Vec<Row>; 2], refusals: &[(&'static str, Vec<[String; 3]>)]) -> String {
    let mut out = String::from(HEAD);
    let heads: Vec<&str> = MODES.iter().map(|m| m.0).collect();
    edges(&mut out, plenty);
    out.push_str(WITHOUT_SPACE);
    edges(&mut out, none);
    let _ = writeln!(
        out,
        "\n## Files that refuse\n\nLibrary / mount / kernel, or what all three say.\n\n| file | {} |\n{}|",
        heads.join(" | "),
        "|---".repeat(MODES.len() + 1)
    );
    for (kind, row) in refusals {
        let cells: Vec<String> = row
            .iter()
            .map(|[a, b, c]| if a == b && b == c { a.clone() } else { format!("{a} / {b} / {c}") })
            .collect();
        let _ = writeln!(out, "| {kind} | {} |", cells.join(" | "));
    }
    out
}

/// One table of edges.
fn edges(out: &mut String, rows: &[Row]) {
    let heads: Vec<&str> = MODES.iter().map(|m| m.0).collect();
    let rule = "|---".repeat(MODES.len() + 2);
    let _ = writeln!(out, "| edge | range | {} |\n{rule}|", heads.join(" | "));
    let mut alike = 0;
    for row in rows {
        let near = row.case.wants_more();
        let cells: Vec<String> = (0..MODES.len())
            .map(|m| {
                let [library, mount, kernel] = &row.sides[m];
                let (want, device) = owed(row, m);
                let same = library.is(want, near) && (!MODES[m].2 || mount.is(want, near));
                alike += usize::from(same);
                match (same, device) {
                    (true, false) if near && want.answer == 28 => want.about(),
                    (true, true) if near => format!("{} (kernel {})", library.about(), kernel.text()),
                    (true, false) => want.text(),
                    (true, true) => format!("{} (kernel {})", library.text(), kernel.text()),
                    (false, _) => {
                        format!(
                            "**library {}, mount {}, kernel {}**",
                            library.text(),
                            mount.text(),
                            kernel.text()
                        )
                    }
                }
            })
            .collect();
        let (at, len) = row.case.range;
        let _ = writeln!(out, "| {} | {at}+{len} | {} |", row.case.name, cells.join(" | "));
    }
    let _ = writeln!(
        out,
        "\n{alike} of {} cells alike, with what the file then holds; e2fsck finds nothing on any side.",
        rows.len() * MODES.len()
    );
}

const WITHOUT_SPACE: &str = "
## Without enough space

An image of 16 MiB. \"More than there is\" is asked for on an empty one; elsewhere other files have taken all that root can have, and
only the pool for tree blocks is left. A cell says ENOSPC with the size and the blocks that the file has then. On full disks all is
compared to the byte: none of these files needs a tree block. Where the file takes what there is, the answer and the content are, and
size and blocks to 64 KiB (the cell says MiB): how many blocks its tree takes, and so what is left, is each allocator's own.

- What was allocated before the space was out stays, and i_size is raised to its end, if the size was not to be kept.
- A zeroing of whole blocks has come as far; one with an edge inside a block changes nothing where it has not enough.
- Content in the inode moves to blocks of its own first, whatever the mode: ENOSPC.

";

const HEAD: &str = "# fallocate(2)

Every mode on every edge, by the library, on a mount of ours and on the kernel's (a loop device on an image in memory): made by
`cargo xtask shows fallocate-table`, which runs `crates/cli/tests/it/fallocate_table.rs`.

A cell is size and blocks (of 512 bytes, after an fsync) or the error that all sides give. Some things are the sides' own:

- FUSE carries allocate, punch and zero; its kernel answers EOPNOTSUPP for the other modes before they come to us, and the mount counts
  as alike where that is so.
- WRITE_ZEROES is the device's affair. The kernel's loop device does not make zeros, so its answer is EOPNOTSUPP; an image
  file and memory do, so ours is what ZERO_RANGE gives, with blocks that count as written.
- The kernel (6.18) errs where content was in the inode and the range is a part of it: after an insert its cache shows zeros in place of what
  moved, until the file leaves the cache, and the disk is right; after a punch or zero the cache is right, and the old bytes come
  back from the disk. Ours is what it should be on both, and counts as alike with the one that is right.
- A file in use for swapping is ETXTBSY to all modes, by the kernel itself, before it asks a filesystem (seen on its ext4); the library has
  no swapping.
- On a read-only mount a file is not to be opened for writing: EROFS, and EROFS is what the library says to each mode there is; open for
  reading it is as below.

What collapse and insert do in a crash, and with pinned pages, is in `crates/fs/src/shift.rs`: one handle, so it is done or not; a tree with
more nodes behind the range than a transaction takes (about 1,200,000 extents with a journal of 64 MiB) is moved in parts, and a
crash in between leaves a file that is half moved, in a filesystem that is whole. So is a collapse whose range has blocks in more
groups than a transaction takes bitmaps; a crash before it moves leaves a hole there. A page pinned at or behind the range makes them EBUSY.

Where the kernel fails and ours does too, but cleaner: inserting so much that blocks allocated past the end would pass the last block
there can be is EINVAL to both; the kernel has made the file longer by then.

";
