//! An image, and programs that see it below a folder that is not there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use extant_testkit::kernel::KernelMount;
use extant_testkit::tree::Tree;
use extant_testkit::{Scratch, env, oracle, scratch};

/// Where programs see the image. There is no such folder outside of it.
pub(crate) const ROOT: &str = "/extant-preload-test";

/// The library under test: Cargo builds it beside the tests.
pub(crate) fn library() -> PathBuf {
    let deps = std::env::current_exe().expect("this program");
    let library = deps.with_file_name("libextant_preload.so");
    assert!(library.is_file(), "{} is not there", library.display());
    library
}

pub(crate) struct Image {
    _dir: Scratch,
    pub(crate) path: PathBuf,
}

impl Image {
    pub(crate) fn new(mkfs: &str) -> Self {
        let dir = scratch();
        let path = dir.join("image");
        oracle::mke2fs(&path, 64 << 20, mkfs);
        Self { _dir: dir, path }
    }

    /// `program` with the image below [`ROOT`].
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = oracle::command(program);
        command.env("LD_PRELOAD", library()).env("EXTANT_IMAGE", &self.path).env("EXTANT_ROOT", ROOT);
        command.env("T", ROOT);
        command
    }

    /// Two opinions that the image is clean.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        oracle::assert_clean(&self.path);
        let device = extant_device::OpenOptions::new().open(&self.path).expect("image");
        let report = extant_fsck::check(&device, &extant_fsck::Options::default());
        let errors: Vec<String> = report.errors().map(|e| format!("{e:?}")).collect();
        assert!(report.is_clean(), "{errors:?}");
    }

    /// The tree as the kernel sees it.
    pub(crate) fn tree(&self) -> Tree {
        let mount = KernelMount::ro(&self.path);
        let tree = Tree::read(mount.path(), false).expect("tree");
        mount.unmount();
        tree
    }
}

/// What a program said, standard error last.
pub(crate) fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}{}\n", output.status)
}

/// The interpreter itself: what is on the PATH may be a script that looks for it.
pub(crate) fn python() -> Option<String> {
    env::tool("python3")?;
    let mut command = oracle::command("python3");
    let output = oracle::output(command.args(["-c", "import sys; print(sys.executable)"])).ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|path| Path::new(path).is_file())
}

pub(crate) fn interpreter() -> Option<String> {
    let found = python();
    if found.is_none() {
        println!("skipped: no python3 on this machine");
    }
    found
}

/// Fails with the lines that differ.
#[track_caller]
fn assert_same(ours: &str, theirs: &str) {
    let (mut a, mut b) = (ours.lines(), theirs.lines());
    let mut different = Vec::new();
    loop {
        match (a.next(), b.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => different.push(format!("ours:   {}\nkernel: {}", a.unwrap_or("-"), b.unwrap_or("-"))),
        }
    }
    assert!(different.is_empty(), "{} lines differ:\n{}", different.len(), different.join("\n"));
}

/// Runs the same program with `T` on the image through the library, and on one that the kernel has mounted; both say the same
/// and leave the same tree.
#[track_caller]
pub(crate) fn compare(mkfs: &str, program: &str, args: &[&str]) {
    let (ours, theirs) = (Image::new(mkfs), Image::new(mkfs));
    let mount = KernelMount::rw(&theirs.path);
    let mut command = oracle::command(program);
    let expected = oracle::output(command.args(args).env("T", mount.path())).expect("program");
    mount.unmount();
    let found = oracle::output(ours.command(program).args(args)).expect("program");
    assert_same(&said(&found), &said(&expected));
    ours.assert_clean();
    let (found, mut expected) = (ours.tree(), theirs.tree());
    let mut found = found;
    // Two runs at two times.
    for node in found.nodes.values_mut().chain(expected.nodes.values_mut()) {
        node.mtime = None;
    }
    found.assert_equal(&expected, "the image, ours and the kernel's");
}
