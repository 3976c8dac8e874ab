//! The outside opinions: e2fsprogs' programs as functions. They panic with the program's whole output when a
//! program that must succeed does not: this is test code.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::env;

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit status; -1 if a signal ended it.
    pub status: i32,
    /// Standard output and standard error, in that order.
    pub text: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}\n{}", self.status, self.text)
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Self { status: output.status.code().unwrap_or(-1), text }
    }
}

/// A program of this machine with a fixed locale and time zone and no standard input.
///
/// # Panics
/// If there is no such program: ask [`env::tools`] first.
#[must_use]
pub fn command(program: &str) -> Command {
    let path = env::tool(program).unwrap_or_else(|| panic!("no {program} on this machine"));
    let mut command = Command::new(path);
    command.env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// Shared by who has files open on a mount, exclusive while a program is being started: a child gets copies of all our open
/// files at fork, gives them up at some time during exec (after the parent is told that it has begun), and a copy of a file
/// on a mount keeps that mount busy. So no child is made while another thread has such a file open.
static FILES: RwLock<()> = RwLock::new(());

/// Held over the time in which a test has files open on a mount that it will unmount. [`DirExecutor`](crate::script::DirExecutor)
/// and [`Tree::read`](crate::tree::Tree::read) do it themselves; who holds it starts no program and takes it not a second time.
pub fn files_on_a_mount() -> RwLockReadGuard<'static, ()> {
    FILES.read().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a program while no thread has files open on a mount (see [`files_on_a_mount`]). A test program that mounts starts
/// all its programs through here.
///
/// # Errors
/// Those of [`Command::spawn`].
pub fn start(command: &mut Command) -> std::io::Result<Child> {
    let _alone = FILES.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// [`Command::output`] through [`start`].
///
/// # Errors
/// Those of [`Command::output`].
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command) -> Outcome {
    output(command).unwrap_or_else(|err| panic!("{command:?}: {err}")).into()
}

/// Runs a command that must succeed; gives its output.
///
/// # Panics
/// If it fails, with its output.
pub fn run_ok(command: &mut Command) -> String {
    let outcome = run(command);
    assert!(outcome.status == 0, "{command:?}: {outcome}");
    outcome.text
}

/// Makes a filesystem in `image` (created, sparse, if it is not there) with mke2fs. `args` are mke2fs's own, for
/// example `-t ext4 -b 1024 -O ^has_journal`, split at blanks; `size` in bytes.
pub fn mke2fs(image: &Path, size: u64, args: &str) {
    mke2fs_with(image, size, &args.split_whitespace().collect::<Vec<_>>());
}

/// [`mke2fs`] with arguments that may hold blanks.
pub fn mke2fs_with(image: &Path, size: u64, args: &[&str]) {
    let outcome = try_mke2fs(image, size, args);
    assert!(outcome.status == 0, "mke2fs {args:?}: {outcome}");
}

/// [`mke2fs_with`], with its outcome.
pub fn try_mke2fs(image: &Path, size: u64, args: &[&str]) -> Outcome {
    let file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(image).expect("image");
    if file.metadata().expect("image").is_file() {
        file.set_len(size).expect("size of the image");
    }
    drop(file);
    run(command("mke2fs").args(["-q", "-F"]).args(args).arg(image))
}

/// `e2fsck -fn`: status 0 is clean, 4 is errors left, 8 is an operational error.
#[must_use]
pub fn e2fsck(image: &Path) -> Outcome {
    run(command("e2fsck").arg("-fn").arg(image))
}

/// `e2fsck` with other options, for example `-fy` or `-p` (which change the image).
#[must_use]
pub fn e2fsck_with(image: &Path, options: &[&str]) -> Outcome {
    run(command("e2fsck").args(options).arg(image))
}

/// The image is clean, or the test fails with all that e2fsck said.
#[track_caller]
pub fn assert_clean(image: &Path) {
    let outcome = e2fsck(image);
    assert!(outcome.status == 0, "e2fsck -fn {}: {outcome}", image.display());
}

/// Replays the journal in place, as e2fsck does before a check (`-p` would repair more; `-E journal_only` does not).
#[must_use]
pub fn replay_journal(image: &Path) -> Outcome {
    run(command("e2fsck").args(["-fy", "-E", "journal_only"]).arg(image))
}

/// debugfs requests, one a line, on a read-only image; gives what they print.
#[must_use]
pub fn debugfs(image: &Path, requests: &[&str]) -> String {
    debugfs_run(image, requests, &[])
}

/// [`debugfs`] on an image opened for writing.
pub fn debugfs_write(image: &Path, requests: &[&str]) -> String {
    debugfs_run(image, requests, &["-w"])
}

fn debugfs_run(image: &Path, requests: &[&str], options: &[&str]) -> String {
    let mut command = command("debugfs");
    command.args(options).arg("-f").arg("-").arg(image);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command).unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let mut input = child.stdin.take().expect("a pipe was asked for");
    let script = requests.join("\n") + "\n";
    let feeder = std::thread::spawn(move || input.write_all(script.as_bytes()));
    let outcome = Outcome::from(child.wait_with_output().expect("debugfs"));
    feeder.join().expect("feeder").unwrap_or_else(|err| panic!("debugfs: {err}: {outcome}"));
    assert!(outcome.status == 0, "{command:?}: {outcome}");
    outcome.text
}

/// A file's content by debugfs.
#[must_use]
pub fn debugfs_cat(image: &Path, path: &str) -> Vec<u8> {
    let mut debugfs = command("debugfs");
    debugfs.args(["-R", &format!("cat \"{path}\"")]).arg(image);
    output(&mut debugfs).unwrap_or_else(|err| panic!("debugfs: {err}")).stdout
}

/// `dumpe2fs -h`: the superblock's fields as pairs of name and value, in order.
#[must_use]
pub fn dumpe2fs_header(image: &Path) -> Vec<(String, String)> {
    let text = run_ok(command("dumpe2fs").arg("-h").arg(image));
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// `dumpe2fs`: the whole output, groups included.
#[must_use]
pub fn dumpe2fs(image: &Path) -> String {
    run_ok(command("dumpe2fs").arg(image))
}

/// `tune2fs` on an image.
pub fn tune2fs(image: &Path, args: &str) -> String {
    run_ok(command("tune2fs").args(args.split_whitespace()).arg(image))
}

/// Unpacks an `.xz` file.
///
/// # Panics
/// If there is no `xz`, or it fails.
pub fn unxz(from: &Path, to: &Path) {
    let out = std::fs::File::create(to).expect("file to unpack to");
    let mut command = command("xz");
    command.args(["-dc", "--"]).arg(from).stdout(out);
    let mut child = start(&mut command).unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let status = child.wait().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    assert!(status.success(), "{command:?}: {status}");
}
