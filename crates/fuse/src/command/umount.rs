//! `extant umount`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use extant_format::{Incompat, Superblock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::CommandError;
use crate::adapter::control_server;
use crate::mount::{MountEntry, find_mount, mounts, mounts_of, unmount};

/// What `extant umount` is asked to do.
#[derive(Clone, Debug, Default)]
pub struct UmountArgs {
    /// Mount point.
    pub dir: PathBuf,
    /// `-l`: take it out of the tree now, end it with its last user; does not wait.
    pub lazy: bool,
}

/// What an unmount has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// The server has written everything and ended; or with `lazy` will, with its last user.
    Ended,
    /// The directory is free, and the file system is mounted elsewhere in this mount namespace, so its server goes on: where.
    StillMounted(Vec<PathBuf>),
}

/// Unmounts; returns once the server has written everything and ended, or at once where the file system is mounted elsewhere.
/// Copies of the mount in other mount namespaces are waited for: they come and go with processes that know nothing of it. `waits` is told
/// of a process in each first.
pub fn umount(args: &UmountArgs, waits: impl FnOnce(&[i32])) -> Result<Unmounted, CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", args.dir.display()));
    let entry = find_mount(&args.dir).map_err(|e| at(&e))?;
    let Some(entry) = entry.filter(MountEntry::is_ours) else {
        return Err(at(&"not mounted by extant"));
    };
    // A read-only mount leaves an image as it finds it.
    let image = if entry.is_read_only() { None } else { backing_image(&entry.source) };
    let server = Server::of(&entry.target);
    unmount(&entry.target, args.lazy).map_err(|e| at(&e))?;
    if args.lazy {
        return Ok(Unmounted::Ended);
    }
    let others = other_mounts(&entry).map_err(|e| at(&e))?;
    if !others.is_empty() {
        return Ok(Unmounted::StillMounted(others));
    }
    let holders = other_namespaces(&entry).map_err(|e| at(&e))?;
    if !holders.is_empty() {
        waits(&holders);
    }
    if let Server::Known { process, .. } = &server {
        wait_for_end(process).map_err(|e| at(&e))?;
    }
    match image.as_deref().map(is_clean) {
        Some(Some(false)) => {
            Err(at(&format!("the image could not be left clean: {}", server.why_not_clean())))
        }
        _ => Ok(Unmounted::Ended),
    }
}

/// A mount's server, before the unmount.
enum Server {
    Known {
        process: OwnedFd,
        shut_down: bool,
    },
    /// It has ended, and the mount was dead.
    Dead,
    /// In another process namespace, or nobody who may ask.
    Unknown,
}

impl Server {
    fn of(dir: &Path) -> Self {
        let state = match File::open(dir).and_then(control_server) {
            Ok(state) => state,
            Err(e) if e.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => return Self::Dead,
            Err(_) => return Self::Unknown,
        };
        let pid = i32::try_from(state.pid).ok().and_then(Pid::from_raw);
        match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(process)) => Self::Known { process, shut_down: state.shut_down },
            _ => Self::Unknown,
        }
    }

    fn why_not_clean(&self) -> &'static str {
        match self {
            Self::Dead => {
                "its server had ended before, killed or by errors=panic (the journal holds all that was synced)"
            }
            Self::Known { shut_down: true, .. } => {
                "the filesystem had been shut down (the journal holds all that was synced, unless that was not wanted)"
            }
            _ => "the system log says why (its journal holds all that was synced)",
        }
    }
}

/// Where else the file system of `entry` is mounted in this mount namespace.
fn other_mounts(entry: &MountEntry) -> io::Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().filter(|m| shows_same(m, entry)).map(|m| m.target).collect())
}

fn shows_same(mount: &MountEntry, entry: &MountEntry) -> bool {
    mount.is_ours() && mount.dev == entry.dev
}

/// Processes, one for each other mount namespace that has it mounted, of those that may be looked at.
fn other_namespaces(entry: &MountEntry) -> io::Result<Vec<i32>> {
    let (mut holders, mut seen) = (Vec::new(), HashSet::new());
    seen.extend(std::fs::read_link("/proc/self/ns/mnt"));
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile, or is somebody else's.
        let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else { continue };
        if seen.insert(namespace) && mounts_of(pid).is_ok_and(|all| all.iter().any(|m| shows_same(m, entry)))
        {
            holders.push(pid);
        }
    }
    Ok(holders)
}

pub(super) fn wait_for_end(server: &OwnedFd) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::new(server, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The image behind a mount's source: itself, or what its loop device is attached to.
pub(super) fn backing_image(source: &Path) -> Option<PathBuf> {
    let name = source.file_name()?.to_str()?;
    if !(source.starts_with("/dev") && name.starts_with("loop")) {
        return source.is_file().then(|| source.to_owned());
    }
    let backing = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(backing.trim_end_matches('\n')))
}

/// Whether the superblock says that nothing is left to recover; `None` if it cannot be read (an offset, no right).
fn is_clean(image: &Path) -> Option<bool> {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 1024];
    File::open(image).ok()?.read_exact_at(&mut bytes, 1024).ok()?;
    let sb = Superblock::read(&bytes).ok()?;
    Some(!sb.features().incompat.contains(Incompat::RECOVER))
}
