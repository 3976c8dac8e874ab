//! Where a workload runs: images in memory, and mounts of them that go away with their guard.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// How a server is started.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct How {
    /// The processor it is pinned to.
    pub(crate) pin: Option<usize>,
    /// Words for `-o` of `extant mount`, and what `null-server` takes for the same.
    pub(crate) options: Option<(&'static str, &'static str)>,
}

/// A mounted image.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    server: Server,
    up: bool,
    /// A server that stays in the foreground.
    child: Option<Child>,
}

impl Mounted {
    /// Mounts `image` at a fresh folder beside it.
    pub(crate) fn new(server: Server, image: &Path, how: How) -> Result<Self, String> {
        let dir = image.with_extension(format!("mnt-{}", server.name()));
        std::fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        let (for_us, for_null) = how.options.unwrap_or_default();
        let mut command = match server {
            Server::Kernel => {
                let mut c = Command::new("mount");
                c.args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&dir);
                c
            }
            Server::Extant => {
                let mut c = pinned(how.pin, &extant()?);
                c.arg("mount").arg(image).arg(&dir);
                if !for_us.is_empty() {
                    c.args(["-o", for_us]);
                }
                c
            }
            Server::Fuse2fs => {
                let mut c = apart(how.pin, &proc::find("fuse2fs").ok_or("fuse2fs is not installed")?);
                // In the foreground: umount(8) does not wait for it, and the image must not be opened again before it ends.
                c.arg("-f").arg(image).arg(&dir).args(["-o", "allow_other,default_permissions"]);
                c
            }
            Server::Null => {
                let mut c = apart(how.pin, &extant()?);
                c.arg("null-server").args(for_null.split_whitespace()).arg(&dir);
                c
            }
        };
        let child = match server {
            Server::Null => Some(start(&mut command)?),
            Server::Fuse2fs => Some(start_silent(&mut command, &dir)?),
            Server::Kernel | Server::Extant => {
                run(&mut command)?;
                None
            }
        };
        Ok(Self { dir, server, up: true, child })
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
        proc::output(command.arg(&self.dir))?;
        if let Some(mut child) = self.child.take() {
            child.wait().map_err(|err| format!("{}: {err}", self.server.name()))?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(err) = self.unmount_now() {
            eprintln!("{err}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status.map_err(|err| format!("{command:?}: {err}"))? {
        status if status.success() => Ok(()),
        status => Err(format!("{command:?}: {status}")),
    }
}

/// Starts a server that stays in the foreground and says `ready`.
fn start(command: &mut Command) -> Result<Child, String> {
    let failed = |err: std::io::Error| format!("starting the server: {err}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let mut said = String::new();
    BufReader::new(stdout).read_line(&mut said).map_err(failed)?;
    if said.trim() == "ready" {
        return Ok(child);
    }
    let status = child.wait().map_err(failed)?;
    Err(format!("{command:?}: {status}"))
}

/// Starts a server that stays in the foreground and says nothing: it is ready when its mount is there.
fn start_silent(command: &mut Command, dir: &Path) -> Result<Child, String> {
    let failed = |err: std::io::Error| format!("{command:?}: {err}");
    let device = |path: &Path| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
    let before = device(dir).map_err(failed)?;
    let mut child = Command::new(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    loop {
        if device(dir).map_err(failed)? != before {
            return Ok(child);
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Err(format!("{command:?}: {status}"));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// The release build of the program.
pub(crate) fn extant() -> Result<PathBuf, String> {
    proc::release("extant")
}

/// A server in a session of its own, as one that goes to the background is: the scheduler shares a processor out between
/// sessions, and a server in its client's would be handed it sooner.
fn apart(pin: Option<usize>, program: &Path) -> Command {
    let inner = pinned(pin, program);
    let mut c = Command::new("setsid");
    c.arg(inner.get_program()).args(inner.get_args());
    c
}

/// `program`, on one processor if asked: then ahead of everything else there (`SCHED_FIFO`), so that a machine's other work
/// does not count.
pub(crate) fn pinned(pin: Option<usize>, program: &Path) -> Command {
    match pin {
        Some(cpu) => {
            let mut c = Command::new("chrt");
            c.args(["-f", "1", "taskset", "-c"]).arg(cpu.to_string()).arg(program);
            c
        }
        None => Command::new(program),
    }
}
