//! `extant mount` and `extant umount` of this build, as a guard.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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
        let dir = image.with_extension("mnt");
        std::fs::create_dir_all(&dir).expect("folder to mount on");
        let mut command = extant();
        command.arg("mount");
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let out = command.arg(image).arg(&dir).output().expect("extant mount");
        assert!(
            out.status.success(),
            "extant mount -o '{options}' {}: {}\n{}",
            image.display(),
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Self { dir, up: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Unmounts; when this returns the image is clean.
    ///
    /// Another test of this process that is starting a program holds copies of our descriptors between fork and exec, so the
    /// mount may be busy for that moment; nothing tells when it ends. A bounded number of looks.
    #[track_caller]
    pub(crate) fn unmount(mut self) {
        const LOOKS: usize = 500;
        self.up = false;
        let umount = || extant().arg("umount").arg(&self.dir).output().expect("extant umount");
        let busy = |out: &Output| String::from_utf8_lossy(&out.stderr).contains("os error 16");
        let out = std::iter::repeat_with(umount).take(LOOKS).find(|out| !busy(out)).expect("busy for good");
        assert!(
            out.status.success(),
            "extant umount: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.up {
            // The test is failing already; what matters is that nothing stays mounted.
            let done = extant().arg("umount").arg(&self.dir).status();
            if !done.is_ok_and(|s| s.success()) {
                let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
            }
        }
    }
}
