//! External journals: verdicts beside e2fsck's.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extant::{Credentials, Filesystem, Setup, ShutdownMode};
use extant_device::OpenOptions;
use extant_fsck::{Options, check, check_with_journal, cli};
use extant_testkit::kernel::{DeviceMount, Loop};
use extant_testkit::{Scratch, env, oracle};

use crate::mounted;
use crate::run::{extant, ok};

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
        let args = std::iter::once("-nf".into()).chain(args.iter().map(|a| a.as_os_str().to_owned()));
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

/// A filesystem of our own mkfs with its journal, both with blocks of 1 KiB (so that the first copy of the superblock is at 8,193
/// KiB).
fn made_by_us() -> Pair {
    let scratch = env::scratch();
    let (fs, journal) = (scratch.join("fs"), scratch.join("journal"));
    ok(&[&"mkfs", &"-q", &"-O", &"journal_dev", &"-b", &"1024", &journal, &"4m"]);
    let device = format!("device={}", journal.display());
    ok(&[&"mkfs", &"-q", &"-b", &"1024", &"-J", &device, &fs, &"32m"]);
    Pair { scratch, fs, journal }
}

impl Pair {
    /// Leaves a file in the journal only, as a machine that stops does.
    fn crash(&self) {
        self.crash_with(b"in-the-journal");
    }

    fn crash_with(&self, name: &[u8]) {
        let open = |path: &Path| Arc::new(OpenOptions::new().write(true).open(path).unwrap());
        let setup = Setup { journal_device: Some(open(&self.journal)), ..Setup::default() };
        let fs = Filesystem::open(open(&self.fs), setup).unwrap();
        let (root, cred) = (fs.root().unwrap(), Credentials::root());
        fs.mkdir(&root, name, 0o755, &cred).unwrap();
        fs.fsync(&root, false).unwrap();
        fs.shutdown(ShutdownMode::NoFlush, &cred).unwrap();
        drop(root);
        assert!(fs.unmount().is_err());
    }

    fn bytes(&self) -> [Vec<u8>; 2] {
        [&self.fs, &self.journal].map(|path| std::fs::read(path).unwrap())
    }
}

#[test]
fn every_command_takes_an_external_journal() {
    need!(env::tools(&["e2fsck"]));
    let pair = made_by_us();
    let (fs, journal) = (&pair.fs, &pair.journal);
    let alone = extant(&[&"ls", fs]);
    assert!(alone.status == 1 && alone.err.contains("--journal"), "{}", alone.err);
    ok(&[&"mkdir", &"--journal", journal, fs, &"/d"]);
    std::fs::write(pair.scratch.join("file"), "content").unwrap();
    ok(&[&"put", &"--journal", journal, fs, &pair.scratch.join("file"), &"/d"]);
    assert_eq!(ok(&[&"cat", &"--journal", journal, fs, &"/d/file"]).text(), "content");
    let wrong = extant(&[&"ls", &"--journal", fs, fs]);
    assert_eq!(wrong.status, 1, "a filesystem is no journal");
    assert_eq!(pair.verdicts(), (true, true));
}

#[test]
fn an_unclean_image_is_read_through_its_external_journal() {
    need!(env::tools(&["e2fsck"]));
    let pair = made_by_us();
    let (fs, journal) = (&pair.fs, &pair.journal);
    pair.crash();
    let before = pair.bytes();
    assert!(ok(&[&"ls", &"--journal", journal, fs]).text().contains("in-the-journal"));
    assert!(!ok(&[&"ls", &"--noload", fs]).text().contains("in-the-journal"));
    assert!(pair.bytes() == before, "reading changes neither");
    ok(&[&"mkdir", &"--journal", journal, fs, &"/d"]);
    let names = ok(&[&"ls", &"--noload", fs]).text();
    assert!(names.contains("in-the-journal") && names.contains("d\n"), "{names}");
    assert_eq!(pair.verdicts(), (true, true));
}

#[test]
fn a_copy_of_the_superblock_opens_an_image() {
    need!(env::tools(&["e2fsck"]));
    let pair = made_by_us();
    let (fs, journal) = (&pair.fs, &pair.journal);
    ok(&[&"mkdir", &"--journal", journal, fs, &"/d"]);
    put(fs, 1024, &[0; 1024]);
    assert_eq!(extant(&[&"ls", &"--journal", journal, fs]).status, 1);
    let text = ok(&[&"ls", &"--superblock", &"8193", &"--journal", journal, fs]).text();
    assert!(text.contains("d\n"), "{text}");
    assert!(ok(&[&"info", &"--superblock", &"8193", fs]).text().contains("block size"));
    assert_eq!(extant(&[&"info", &"--superblock", &"99999999", fs]).status, 1);
}

/// An unclean block device with its journal on another one, mounted read-only: both are recovered, as in the kernel. A journal that
/// cannot be written refuses the mount, with nothing done.
#[test]
fn a_read_only_mount_recovers_through_an_external_journal() {
    need!(env::kernel_mounts(), env::fuse(), env::tools(&["e2fsck"]));
    let pair = made_by_us();
    pair.crash();
    let before = pair.bytes();
    let at = pair.scratch.join("at");
    std::fs::create_dir(&at).unwrap();
    let fs = Loop::attach(&pair.fs, false);
    let mount = |journal: &Loop| {
        let options = format!("ro,journal_path={}", journal.device().display());
        oracle::output(mounted::extant().args(["mount", "-o", &options]).arg(fs.device()).arg(&at)).unwrap()
    };
    let journal = Loop::attach(&pair.journal, true);
    let refused = mount(&journal);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(32) && said.contains("write-protected"), "{said}");
    assert!(pair.bytes() == before);
    drop(journal);
    let journal = Loop::attach(&pair.journal, false);
    let done = mount(&journal);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(at.join("in-the-journal").is_dir());
    let ended = oracle::output(mounted::extant().arg("umount").arg(&at)).unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    drop((fs, journal));
    assert!(ok(&[&"ls", &"--noload", &pair.fs]).text().contains("in-the-journal"), "recovered on the device");
    assert_eq!(pair.verdicts(), (true, true));
}

/// A filesystem that is made again, with its UUID, on the journal that the old one left with changes in it: nothing of the old one is in the
/// new one, whether we mount it or the kernel does.
#[test]
fn a_filesystem_is_made_again_on_its_used_journal() {
    need!(env::tools(&["e2fsck", "dumpe2fs"]));
    let pair = made_by_us();
    let (fs, journal) = (&pair.fs, &pair.journal);
    let header = oracle::dumpe2fs_header(fs);
    let uuid = &header.iter().find(|(name, _)| name == "Filesystem UUID").unwrap().1;
    pair.crash();
    let source = pair.scratch.join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("new"), "content").unwrap();
    let device = format!("device={}", journal.display());
    let again: [&dyn AsRef<std::ffi::OsStr>; 10] =
        [&"mkfs", &"-q", &"-b", &"1024", &"-J", &device, &"-U", uuid, &"-d", &source];
    let used = pair.bytes();
    let other = pair.scratch.join("other");
    let mut command = again.to_vec();
    command.extend::<[&dyn AsRef<std::ffi::OsStr>; 2]>([&other, &"32m"]);
    let refused = extant(&command);
    assert!(refused.status != 0 && refused.err.contains("its log holds changes"), "{}", refused.err);
    assert!(pair.bytes() == used && !other.exists());
    let mut command = again.to_vec();
    command.extend::<[&dyn AsRef<std::ffi::OsStr>; 3]>([&"-F", fs, &"32m"]);
    ok(&command);
    assert_eq!(pair.verdicts(), (true, true));
    let kernel = pair.copy();
    let names = |pair: &Pair| {
        let names = ok(&[&"ls", &"--noload", &pair.fs]).text();
        assert!(names.contains("new") && !names.contains("in-the-journal"), "{names}");
        assert_eq!(pair.verdicts(), (true, true));
    };
    ok(&[&"mkdir", &"--journal", journal, fs, &"/d"]);
    names(&pair);
    // Nor after a crash of the new one.
    pair.crash_with(b"newer");
    ok(&[&"mkdir", &"--journal", journal, fs, &"/e"]);
    names(&pair);
    if env::kernel_mounts().is_ok() {
        let (fs, journal) = (Loop::attach(&kernel.fs, false), Loop::attach(&kernel.journal, false));
        let options = format!("journal_path={}", journal.device().display());
        let mount = DeviceMount::new(fs.device(), &options).unwrap();
        std::fs::create_dir(mount.path().join("d")).unwrap();
        mount.unmount();
        drop((fs, journal));
        names(&kernel);
    }
}
