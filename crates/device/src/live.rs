//! Who else uses an image or device.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How an image file or block device is in use by somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Live {
    /// Another process (or this one, a second time) holds its advisory lock.
    Locked,
    /// It is attached to this loop device.
    Loop(PathBuf),
    /// It is mounted here.
    Mounted(PathBuf),
    /// The kernel has claimed it (a mount in another namespace, a volume manager, RAID, swap).
    Claimed,
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another program has it open"),
            Self::Loop(path) => write!(f, "it is attached to {}", path.display()),
            Self::Mounted(path) => write!(f, "it is mounted on {}", path.display()),
            Self::Claimed => f.write_str("the kernel has claimed it"),
        }
    }
}

/// Looks for another user of `path`. For reading, a loop device that is itself read-only does not count.
pub(crate) fn look(path: &Path, meta: &Metadata, write: bool) -> Option<Live> {
    if meta.file_type().is_block_device() { mounted(meta.rdev()) } else { attached(path, meta, write, &[]) }
}

/// Whether the image file is attached to a loop device that is none of these.
pub(crate) fn attached_elsewhere(path: &Path, meta: &Metadata, own: &[PathBuf]) -> bool {
    attached(path, meta, true, own).is_some()
}

/// The loop device behind which the image file is, if it is none of `own`.
fn attached(path: &Path, meta: &Metadata, write: bool, own: &[PathBuf]) -> Option<Live> {
    let real = std::fs::canonicalize(path).ok();
    for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|n| n.starts_with("loop"))
            || own.contains(&Path::new("/dev").join(&name))
        {
            continue;
        }
        // Absent when nothing is attached.
        let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let backing = Path::new(backing.trim_end_matches('\n'));
        let same = std::fs::metadata(backing).is_ok_and(|m| m.dev() == meta.dev() && m.ino() == meta.ino());
        if !same && real.as_deref() != Some(backing) {
            continue;
        }
        let device = Path::new("/dev").join(name);
        let only_reads = || {
            std::fs::read_to_string(entry.path().join("ro")).is_ok_and(|ro| ro.trim() == "1")
                || is_token_to_read(&device)
        };
        if write || !only_reads() {
            return Some(Live::Loop(device));
        }
    }
    None
}

/// Whether a loop device is only the token of a read-only mount that is served from user space, and reads the image by itself.
fn is_token_to_read(device: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split_once(" - ")).any(|(_, mount)| {
        let mut words = mount.split(' ');
        let (kind, source, options) = (words.next(), words.next(), words.next());
        kind.is_some_and(|kind| kind.starts_with("fuseblk"))
            && source.map(Path::new) == Some(device)
            && options.is_some_and(|options| options.split(',').any(|word| word == "ro"))
    })
}

/// Where the block device is mounted, as this process sees it (fields of /proc/PID/mountinfo: proc(5)).
fn mounted(rdev: u64) -> Option<Live> {
    let want = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|l| l.split(' ').nth(2) == Some(&want))?;
    Some(Live::Mounted(PathBuf::from(line.split(' ').nth(4)?)))
}
