//! A server whose mount is gone from the tree, and that is still writing what is left.
//!
//! umount(2) takes a mount out of the tree first, then has the server write. The kernel's own file systems make a mount of the same
//! device wait for that; so does this. After `umount -l` it is a wait for the last user.

use std::ffi::CStr;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::umount::{backing_image, wait_for_end};
use crate::mount::{MountRequest, mount_direct, mounts_of, unmount};

/// Name of a server's first thread while it serves. Before and otherwise the program has its own.
const SERVING: &CStr = c"extant-serve";

/// Says to later mounts of the same image that this process serves one.
pub(super) fn say_serving() {
    // Only a name: without it a later mount is refused instead of made to wait.
    let _ = rustix::thread::set_name(SERVING);
}

/// Who has an image that could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    /// Somebody who keeps it.
    Stays,
    /// A server whose mount was gone; it has ended.
    Ended,
    /// Nobody has its lock any more.
    Gone,
}

/// Looks who holds `image`, and waits for the server of a mount that is gone already.
pub(super) fn wait_for(image: &Path) -> Holder {
    let look = || Some((std::fs::metadata(image).ok()?, std::fs::read_to_string("/proc/locks").ok()?));
    let Some((meta, locks)) = look() else { return Holder::Stays };
    let Some(pid) = lock_holder(&locks, &meta) else { return Holder::Gone };
    match ending_server(image, &meta, pid) {
        Some(server) if wait_for_end(&server).is_ok() => Holder::Ended,
        _ => Holder::Stays,
    }
}

/// Waits while the kernel takes a `fuseblk` mount of a block device apart: between the server's end and the device being free
/// there is nobody to wait for. A mount(2) of it waits, as for every file system; the new mount is taken away again.
pub(super) fn wait_for_kernel(device: &Path, dir: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let request = MountRequest { block_device: true, ..MountRequest::new(device, dir) };
    match mount_direct(&request) {
        Ok(_) => {
            if let Err(error) = unmount(dir, true) {
                tracing::warn!("{}: {error}", dir.display());
            }
        }
        // Claimed by somebody else.
        Err(error) => tracing::debug!("{}: {error}", device.display()),
    }
}

fn ending_server(image: &Path, meta: &Metadata, pid: i32) -> Option<OwnedFd> {
    let server = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after it was opened, so that it is about this process and no later one of the same number.
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    if name.trim_ascii_end() != SERVING.to_bytes() {
        return None;
    }
    let mounted = mounts_of(pid).ok()?.iter().any(|m| m.is_ours() && shows(&m.source, image, meta));
    (!mounted).then_some(server)
}

/// Whether a mount's source is the image, or a loop device that it is attached to.
fn shows(source: &Path, image: &Path, meta: &Metadata) -> bool {
    if source == image || backing_image(source).is_some_and(|backing| backing == image) {
        return true;
    }
    let block = meta.file_type().is_block_device();
    block && std::fs::metadata(source).is_ok_and(|m| m.rdev() == meta.rdev())
}

/// Who holds the advisory lock (flock(2)) on a file, as /proc/locks (proc_locks(5)) tells:
/// `1: FLOCK  ADVISORY  WRITE 28950 00:06:118 0 EOF`
fn lock_holder(locks: &str, meta: &Metadata) -> Option<i32> {
    let dev = meta.dev();
    let wanted = format!("{:02x}:{:02x}:{}", rustix::fs::major(dev), rustix::fs::minor(dev), meta.ino());
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, pid, file) = (words.next()?, words.nth(2)?, words.next()?);
        (kind == "FLOCK" && file == wanted).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::lock_holder;

    #[test]
    fn the_holder_of_a_lock() {
        let meta = std::fs::metadata("/proc/self/exe").unwrap();
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
        let locks = format!(
            "1: POSIX  ADVISORY  WRITE 7 {file} 0 EOF\n1: -> FLOCK ADVISORY WRITE 8 {file} 0 EOF\n\
             2: FLOCK  ADVISORY  WRITE 9 {file}1 0 EOF\n3: FLOCK  ADVISORY  READ 10 {file} 0 EOF\n"
        );
        assert_eq!(lock_holder(&locks, &meta), Some(10));
        assert_eq!(lock_holder("", &meta), None);
        assert_eq!(lock_holder("nonsense\n3:\n", &meta), None);
    }
}
