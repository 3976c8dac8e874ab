//! `extant umount`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use extant_format::{Incompat, Superblock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// What an unmount waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waits {
    /// Copies of the mount in other mount namespaces: a process of each.
    Namespaces(Vec<i32>),
    /// The server, this process, which has not ended yet though no mount of it is to be seen: it is still writing, or somebody has files open
    /// on a copy that was unmounted lazily.
    Server(i32),
}

/// How long a server is waited for without a word.
const WORDLESS: Duration = Duration::from_secs(5);

/// Unmounts; returns once the server has written everything and ended, or at once where the file system is mounted elsewhere.
/// Copies of the mount in other mount namespaces are waited for: they come and go with processes that know nothing of it. `waits` is told
/// of them first, and of the server once that has taken some seconds.
pub fn umount(args: &UmountArgs, mut waits: impl FnMut(Waits)) -> Result<Unmounted, CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", args.dir.display()));
    let entry = find_mount(&args.dir).map_err(|e| at(&e))?;
    let Some(entry) = entry.filter(MountEntry::is_ours) else {
        return Err(at(&"not mounted by extant"));
    };
    // A read-only mount leaves an image as it finds it.
    let image = if entry.is_read_only() { None } else { backing_image(&entry.source) };
    let server = Server::of(&entry.target);
    if args.lazy {
        unmount(&entry.target, true).map_err(|e| at(&e))?;
        return Ok(Unmounted::Ended);
    }
    let before = Others::of(&entry).map_err(|e| at(&e))?;
    unmount(&entry.target, false).map_err(|e| at(&e))?;
    let after = Others::of(&entry).map_err(|e| at(&e))?;
    // Looked at after the mounts: while it runs, none of them is of a later file system.
    let others = after.since(&before, server.may_run().then_some(&entry));
    if !others.here.is_empty() {
        return Ok(Unmounted::StillMounted(others.here.into_iter().map(|m| m.target).collect()));
    }
    if !others.elsewhere.is_empty() {
        waits(Waits::Namespaces(others.elsewhere.iter().map(|(pid, _)| *pid).collect()));
    }
    if let Server::Known { process, pid, .. } = &server {
        if !ends_within(process, WORDLESS).map_err(|e| at(&e))? {
            waits(Waits::Server(*pid));
        }
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
        pid: i32,
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
        match pid.map(|pid| (pid.as_raw_nonzero().get(), pidfd_open(pid, PidfdFlags::empty()))) {
            Some((pid, Ok(process))) => Self::Known { process, pid, shut_down: state.shut_down },
            _ => Self::Unknown,
        }
    }

    /// Whether it has not ended, or that is not known.
    fn may_run(&self) -> bool {
        match self {
            Self::Known { process, .. } => !ends_within(process, Duration::ZERO).unwrap_or(false),
            Self::Dead => false,
            Self::Unknown => true,
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

/// The mounts of a file system beside the one that is unmounted.
struct Others {
    /// In this mount namespace.
    here: Vec<MountEntry>,
    /// In each other one that may be looked at, with a process of it.
    elsewhere: Vec<(i32, Vec<MountEntry>)>,
}

impl Others {
    fn of(entry: &MountEntry) -> io::Result<Self> {
        let here = beside(mounts()?, entry);
        let (mut elsewhere, mut seen) = (Vec::new(), HashSet::new());
        seen.extend(std::fs::read_link("/proc/self/ns/mnt"));
        for process in std::fs::read_dir("/proc")? {
            let process = process?;
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended meanwhile, or is somebody else's.
            let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else { continue };
            if seen.contains(&namespace) {
                continue;
            }
            let Ok(all) = mounts_of(pid) else { continue };
            seen.insert(namespace);
            elsewhere.push((pid, beside(all, entry)));
        }
        Ok(Self { here, elsewhere })
    }

    /// Those that were there `before` too, and those of the same source and type as `running`: they were made since then. After
    /// the unmount the device number alone says nothing: once the file system has ended, the next one that is mounted may have it.
    fn since(mut self, before: &Self, running: Option<&MountEntry>) -> Self {
        let noted = before.elsewhere.iter().map(|(_, all)| all).chain([&before.here]);
        let noted: HashSet<u64> = noted.flatten().map(|m| m.id).collect();
        let made = |m: &MountEntry| running.is_some_and(|of| m.source == of.source && m.kind == of.kind);
        let is_other = |m: &MountEntry| noted.contains(&m.id) || made(m);
        self.here.retain(is_other);
        self.elsewhere.retain(|(_, all)| all.iter().any(is_other));
        self
    }
}

/// Those of `all` that show what `entry` does, but for that one.
fn beside(mut all: Vec<MountEntry>, entry: &MountEntry) -> Vec<MountEntry> {
    all.retain(|m| m.is_ours() && m.dev == entry.dev && m.id != entry.id);
    all
}

/// Whether a process ends within that time.
fn ends_within(process: &OwnedFd, time: Duration) -> Result<bool, Errno> {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&time)) {
        Ok(ready) => Ok(ready != 0),
        // What is said a moment early does no harm.
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
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

#[cfg(test)]
mod tests {
    use super::{Others, beside};
    use crate::mount::MountEntry;

    fn entry(id: u64, target: &str) -> MountEntry {
        MountEntry {
            id,
            dev: (0, 45),
            root: "/".into(),
            target: target.into(),
            kind: "fuse.extant".into(),
            source: "/tmp/image".into(),
            options: "rw".into(),
            super_options: "rw".into(),
        }
    }

    /// Another file system that is mounted right after the unmount may have the number of the device, and that of the mount.
    #[test]
    fn what_is_mounted_after_the_unmount_is_no_other_mount_of_it() {
        let gone = entry(36, "/a");
        let of = |here: &[MountEntry], elsewhere: &[MountEntry]| Others {
            here: beside(here.to_vec(), &gone),
            elsewhere: vec![(7, beside(elsewhere.to_vec(), &gone))],
        };
        let (bound, copied) = (entry(40, "/bound"), entry(50, "/a"));
        let before = of(&[gone.clone(), bound.clone()], std::slice::from_ref(&copied));
        let after = of(std::slice::from_ref(&bound), &[copied]).since(&before, None);
        assert_eq!((after.here, after.elsewhere.len()), (vec![bound.clone()], 1));
        let later = of(&[entry(36, "/b"), entry(37, "/b"), bound.clone()], &[entry(51, "/b")]);
        let after = later.since(&before, None);
        assert_eq!((after.here, after.elsewhere.len()), (vec![bound.clone()], 0));
        // The server runs, or nobody knows: of another image, or of another type.
        let other = |id| MountEntry { source: "/tmp/other".into(), ..entry(id, "/b") };
        let block = MountEntry { kind: "fuseblk.extant".into(), ..entry(38, "/b") };
        let later = of(&[other(37), block, bound.clone()], &[other(51)]);
        let after = later.since(&before, Some(&gone));
        assert_eq!((after.here, after.elsewhere.len()), (vec![bound], 0));
    }

    /// A mount of it that was made after the look before the unmount is another one all the same.
    #[test]
    fn what_was_bound_meanwhile_is_another_mount_of_it() {
        let gone = entry(36, "/a");
        let none = Others { here: Vec::new(), elsewhere: Vec::new() };
        let (bound, copied) = (entry(41, "/bound"), entry(52, "/a"));
        let after = Others { here: vec![bound.clone()], elsewhere: vec![(7, vec![copied])] };
        let after = after.since(&none, Some(&gone));
        assert_eq!((after.here, after.elsewhere.len()), (vec![bound], 1));
    }
}
