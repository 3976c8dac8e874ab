//! Running e2fsprogs, images that remove themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The UUID of every image here, so that images can be compared.
pub(crate) const UUID: &str = "11111111-2222-4333-8444-555555555555";
/// The time of every image here.
pub(crate) const TIME: u64 = 1_700_000_000;

/// A file in a temporary folder, removed on drop.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// In memory where there is such a place.
    pub(crate) fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        Self { dir: dir.expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The path of an e2fsprogs program, or a message that the test is skipped.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = dirs.iter().map(|d| Path::new(d).join(name)).find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// Runs a program and returns what it said.
pub(crate) fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("E2FSPROGS_FAKE_TIME", TIME.to_string())
        .env("TZ", "UTC")
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

/// Everything a program printed.
pub(crate) fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// `e2fsck -fn` finds nothing.
pub(crate) fn assert_clean(image: &Path) {
    let Some(e2fsck) = tool("e2fsck") else { return };
    let out = run(&e2fsck, &["-fn", &image.to_string_lossy()]);
    assert!(out.status.success(), "e2fsck {}:\n{}", image.display(), text(&out));
}
