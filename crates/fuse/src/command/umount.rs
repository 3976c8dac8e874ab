//! `extant umount`.

use std::fs::File;
use std::path::{Path, PathBuf};

use extant_format::{Incompat, Superblock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::CommandError;
use crate::adapter::control_server;
use crate::mount::{MountEntry, find_mount, unmount};

/// What `extant umount` is asked to do.
#[derive(Clone, Debug, Default)]
pub struct UmountArgs {
    /// Mount point.
    pub dir: PathBuf,
    /// `-l`: take it out of the tree now, end it with its last user; does not wait.
    pub lazy: bool,
}

/// Unmounts; returns once the server has written everything and ended.
pub fn umount(args: &UmountArgs) -> Result<(), CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", args.dir.display()));
    let entry = find_mount(&args.dir).map_err(|e| at(&e))?;
    let Some(entry) = entry.filter(MountEntry::is_ours) else {
        return Err(at(&"not mounted by extant"));
    };
    // A read-only mount leaves an image as it finds it.
    let image = if entry.is_read_only() { None } else { backing_image(&entry.source) };
    let server = server_of(&entry.target);
    unmount(&entry.target, args.lazy).map_err(|e| at(&e))?;
    if args.lazy {
        return Ok(());
    }
    if let Some(server) = server {
        wait_for_end(&server).map_err(|e| at(&e))?;
    }
    match image.as_deref().map(is_clean) {
        Some(Some(false)) => Err(at(
            &"the image could not be left clean; the system log says why (its journal holds all that was synced)",
        )),
        _ => Ok(()),
    }
}

/// The server's process; `None` if it cannot be known (another process namespace, a server that has died).
fn server_of(dir: &Path) -> Option<std::os::fd::OwnedFd> {
    let root = File::open(dir).ok()?;
    let pid = control_server(&root).ok()?;
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

pub(super) fn wait_for_end(server: &std::os::fd::OwnedFd) -> Result<(), Errno> {
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
