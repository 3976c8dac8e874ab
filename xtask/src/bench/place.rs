//! Where a workload runs: images in memory, and mounts of them that go away with their guard.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::proc;

/// Which server stands behind a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    /// The kernel's ext4 on a loop device.
    Kernel,
    /// `extant mount` with a user's defaults.
    Extant,
    /// fuse2fs of e2fsprogs.
    Fuse2fs,
    /// The in-memory server on our transport that does no ext4 work: the limit.
    Null,
}

impl Server {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Extant => "extant",
            Self::Fuse2fs => "fuse2fs",
            Self::Null => "null",
        }
    }
}

/// A folder in memory that is removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self, String> {
        let dir = PathBuf::from(format!("/dev/shm/extant-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {err}", self.0.display());
        }
    }
}

/// Makes a fresh image with mke2fs's defaults for ext4 (4 KiB blocks), tables written at once so that no lazy work of
/// either side falls into a measurement.
pub(crate) fn make_image(path: &Path, size: &str) -> Result<(), String> {
    if path.exists() {
        std::fs::remove_file(path).map_err(|err| format!("{}: {err}", path.display()))?;
    }
    let mut mke2fs = Command::new(proc::find("mke2fs").ok_or("mke2fs is not installed")?);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    proc::output(mke2fs.arg(path).arg(size)).map(drop)
}

/// A mounted image.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    server: Server,
    up: bool,
}

impl Mounted {
    /// Mounts `image` at a fresh folder beside it. `pin` puts the server on that processor.
    pub(crate) fn new(server: Server, image: &Path, pin: Option<usize>) -> Result<Self, String> {
        let dir = image.with_extension(format!("mnt-{}", server.name()));
        std::fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        let mut command = match server {
            Server::Kernel => {
                let mut c = Command::new("mount");
                c.args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&dir);
                c
            }
            Server::Extant => {
                let mut c = pinned(pin, &extant()?);
                c.arg("mount").arg(image).arg(&dir);
                c
            }
            Server::Fuse2fs => {
                let mut c = pinned(pin, &proc::find("fuse2fs").ok_or("fuse2fs is not installed")?);
                c.arg(image).arg(&dir).args(["-o", "allow_other,default_permissions"]);
                c
            }
            Server::Null => {
                let mut c = pinned(pin, &extant()?);
                c.arg("null-server").arg(&dir);
                c
            }
        };
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|err| format!("{command:?}: {err}"))?;
        if !status.success() {
            return Err(format!("{command:?}: {status}"));
        }
        Ok(Self { dir, server, up: true })
    }

    /// Unmounts and waits until the image is clean.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.up) {
            return Ok(());
        }
        let mut command = if self.server == Server::Extant {
            let mut c = Command::new(extant()?);
            c.arg("umount");
            c
        } else {
            Command::new("umount")
        };
        proc::output(command.arg(&self.dir)).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(err) = self.unmount_now() {
            eprintln!("{err}");
        }
    }
}

/// The release build of the program.
pub(crate) fn extant() -> Result<PathBuf, String> {
    proc::release("extant")
}

/// `program`, on one processor if asked.
pub(crate) fn pinned(pin: Option<usize>, program: &Path) -> Command {
    match pin {
        Some(cpu) => {
            let mut c = Command::new("taskset");
            c.arg("-c").arg(cpu.to_string()).arg(program);
            c
        }
        None => Command::new(program),
    }
}

/// Empties the kernel's page cache, dentries and inodes.
pub(crate) fn drop_caches() -> Result<(), String> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|err| format!("drop_caches: {err}"))
}
