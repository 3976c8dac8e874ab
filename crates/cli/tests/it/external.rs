//! External journals: verdicts beside e2fsck's.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use extant_device::OpenOptions;
use extant_fsck::{Options, check, check_with_journal, cli};
use extant_testkit::kernel::Loop;
use extant_testkit::{Scratch, env, oracle};

/// Where the journal's superblock is on the device.
const JOURNAL_AT: u64 = 2048;

struct Pair {
    scratch: Scratch,
    fs: PathBuf,
    journal: PathBuf,
}

impl Pair {
    fn new(args: &str) -> Self {
        let scratch = env::scratch();
        let (fs, journal) = (scratch.join("fs"), scratch.join("journal"));
        oracle::mke2fs(&journal, 4 << 20, "-O journal_dev -b 1024");
        let attached = Loop::attach(&journal, false);
        oracle::mke2fs(&fs, 16 << 20, &format!("{args} -b 1024 -J device={}", attached.device().display()));
        drop(attached);
        Self { scratch, fs, journal }
    }

    /// A copy, for damage.
    fn copy(&self) -> Self {
        let scratch = env::scratch();
        let (fs, journal) = (scratch.join("fs"), scratch.join("journal"));
        std::fs::copy(&self.fs, &fs).unwrap();
        std::fs::copy(&self.journal, &journal).unwrap();
        Self { scratch, fs, journal }
    }

    /// Whether each says that it is clean.
    fn verdicts(&self) -> (bool, bool) {
        let journal = self.journal.to_str().unwrap();
        let theirs = oracle::run(oracle::command("e2fsck").args(["-fn", "-j", journal]).arg(&self.fs));
        (ours(&self.fs, Some(&self.journal)).is_clean(), theirs.status == 0)
    }
}

fn ours(image: &Path, journal: Option<&Path>) -> extant_fsck::Report {
    let open = |path: &Path| OpenOptions::new().open(path).unwrap();
    let (dev, journal) = (open(image), journal.map(open));
    let report = check_with_journal(&dev, journal.as_ref().map(|j| j as _), &Options::default());
    report.findings.iter().for_each(|f| println!("    {f}"));
    report
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_filesystem_is_checked_with_its_journal() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck"]));
    for args in ["-t ext4", "-t ext3", "-t ext4 -O ^metadata_csum"] {
        let pair = Pair::new(args);
        assert_eq!(pair.verdicts(), (true, true), "{args}");
        let (dev, options) = (OpenOptions::new().open(&pair.fs).unwrap(), Options::default());
        let alone = check(&dev, &options);
        assert!(alone.is_fatal(), "without the journal it cannot be checked");
        let _ = &pair.scratch;
    }
}

#[test]
fn damage_of_an_external_journal_is_judged_as_e2fsck_judges_it() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck"]));
    let pair = Pair::new("-t ext4");
    let be = |value: u32| value.to_be_bytes().to_vec();
    let le = |value: u32| value.to_le_bytes().to_vec();
    let damages: Vec<(&str, u64, Vec<u8>)> = vec![
        ("magic of the device", 1024 + 0x38, vec![0, 0]),
        ("no journal_dev", 1024 + 0x60, le(0)),
        ("a further feature", 1024 + 0x60, le(0xc)),
        ("another UUID", 1024 + 0x68, le(5)),
        ("block size of the device", 1024 + 0x18, le(2)),
        ("few blocks", 1024 + 4, le(100)),
        ("many blocks", 1024 + 4, le(100_000)),
        ("revision", 1024 + 0x4c, le(5)),
        ("magic of the journal", JOURNAL_AT, be(0)),
        ("version 1", JOURNAL_AT + 4, be(3)),
        ("another type", JOURNAL_AT + 4, be(9)),
        ("block size", JOURNAL_AT + 0xc, be(4096)),
        ("longer than there is", JOURNAL_AT + 0x10, be(9000)),
        ("first block", JOURNAL_AT + 0x14, be(0)),
        ("first block outside", JOURNAL_AT + 0x14, be(9000)),
        ("with data", JOURNAL_AT + 0x1c, be(3)),
        ("unknown feature", JOURNAL_AT + 0x28, be(0x8000)),
        ("unknown ro feature", JOURNAL_AT + 0x2c, be(1)),
        ("compatible feature", JOURNAL_AT + 0x24, be(1)),
        ("checksums without one", JOURNAL_AT + 0x28, be(0x10)),
        ("no users", JOURNAL_AT + 0x40, be(0)),
        ("two users", JOURNAL_AT + 0x40, be(2)),
        ("many users", JOURNAL_AT + 0x40, be(200)),
        ("another user", JOURNAL_AT + 0x100, be(7)),
        ("its own UUID", JOURNAL_AT + 0x30, be(9)),
    ];
    for (what, at, bytes) in damages {
        let damaged = pair.copy();
        put(&damaged.journal, at, &bytes);
        println!("{what}");
        let (ours, theirs) = damaged.verdicts();
        assert_eq!(ours, theirs, "{what}");
    }
    // A filesystem is no journal.
    let journal = pair.fs.to_str().unwrap().to_owned();
    let theirs = oracle::run(oracle::command("e2fsck").args(["-fn", "-j", &journal]).arg(&pair.fs));
    assert!(theirs.status & 8 != 0 && ours(&pair.fs, Some(&pair.fs)).is_fatal());
}

#[test]
fn a_journal_device_is_checked_alone_and_by_the_command() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck"]));
    let pair = Pair::new("-t ext4");
    assert!(ours(&pair.journal, None).is_clean());
    let run = |args: &[&Path]| {
        let args = std::iter::once("-n".into()).chain(args.iter().map(|a| a.as_os_str().to_owned()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        (cli::run(args, &mut out, &mut err), String::from_utf8(out).unwrap())
    };
    let dash_j = Path::new("-j");
    assert_eq!(run(&[&pair.journal]).0, 0);
    assert_eq!(run(&[dash_j, &pair.journal, &pair.fs]).0, 0);
    assert_eq!(run(&[&pair.fs]).0, 8);
    assert_eq!(run(&[dash_j, Path::new("/nonexistent"), &pair.fs]).0, 8);
    assert_eq!(run(&[&pair.fs, dash_j]).0, 16);
    for (what, at, status) in
        [("magic", JOURNAL_AT, 8), ("length", JOURNAL_AT + 0x10, 8), ("features", JOURNAL_AT + 0x28, 8)]
    {
        let damaged = pair.copy();
        put(&damaged.journal, at, &[0x7f; 4]);
        let (found, text) = run(&[&damaged.journal]);
        assert_eq!(found, status, "{what}: {text}");
    }
    // The device is shorter than it says.
    let damaged = pair.copy();
    std::fs::OpenOptions::new().write(true).open(&damaged.journal).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(run(&[&damaged.journal]).0, 4);
}
