//! `extant mount` and `extant umount` of this build, as a guard.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use extant_testkit::oracle;

/// The program under test.
pub(crate) fn extant() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_extant"));
    command.stdin(Stdio::null());
    command
}

/// An image mounted by us; unmounted with the guard.
pub(crate) struct Mounted {
    dir: PathBuf,
    up: bool,
}

impl Mounted {
    /// Mounts `image` with `options` (may be empty) on a fresh folder beside it.
    ///
    /// # Panics
    /// If the program refuses.
    #[track_caller]
    pub(crate) fn new(image: &Path, options: &str) -> Self {
        Self::of(image, &image.with_extension("mnt"), options)
    }

    /// Mounts `image` on `dir`, which is made.
    ///
    /// # Panics
    /// If the program refuses.
    #[track_caller]
    pub(crate) fn of(image: &Path, dir: &Path, options: &str) -> Self {
        std::fs::create_dir_all(dir).expect("folder to mount on");
        let mut command = extant();
        command.arg("mount");
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let out = oracle::output(command.arg(image).arg(dir)).expect("extant mount");
        assert!(
            out.status.success(),
            "extant mount -o '{options}' {}: {}\n{}",
            image.display(),
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Self { dir: dir.to_owned(), up: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Somebody else has taken it away.
    pub(crate) fn gone(mut self) {
        self.up = false;
    }

    /// Unmounts; when this returns the image is clean.
    ///
    /// No program was started while files were open on it ([`oracle::files_on_a_mount`]), so nobody holds copies of them.
    #[track_caller]
    pub(crate) fn unmount(mut self) {
        let out = oracle::output(extant().arg("umount").arg(&self.dir)).expect("extant umount");
        assert!(
            out.status.success(),
            "extant umount: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        self.up = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.up {
            // The test is failing already; what matters is that nothing stays mounted.
            let done = oracle::output(extant().arg("umount").arg(&self.dir));
            if !done.is_ok_and(|out| out.status.success()) {
                let _ = oracle::output(Command::new("umount").arg("-l").arg(&self.dir));
            }
        }
    }
}
