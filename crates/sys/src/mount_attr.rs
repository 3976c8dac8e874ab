//! Attributes of a mount that is not in the tree yet (mount_setattr(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Per-mount attributes, as of mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `ro`
    pub read_only: bool,
    /// `nosuid`
    pub nosuid: bool,
    /// `nodev`
    pub nodev: bool,
    /// `noexec`
    pub noexec: bool,
    /// `nosymfollow`
    pub nosymfollow: bool,
}

/// Gives the mount that `tree` is the root of exactly these attributes, whatever those were that it was cloned with, and takes it
/// out of its peer group. What it says of access times stays.
pub fn set_attributes(tree: impl AsFd, wanted: MountAttributes) -> io::Result<()> {
    let all = [
        (wanted.read_only, libc::MOUNT_ATTR_RDONLY),
        (wanted.nosuid, libc::MOUNT_ATTR_NOSUID),
        (wanted.nodev, libc::MOUNT_ATTR_NODEV),
        (wanted.noexec, libc::MOUNT_ATTR_NOEXEC),
        (wanted.nosymfollow, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let of = |set: bool| all.iter().filter(|(is, _)| *is == set).fold(0, |bits, (_, bit)| bits | *bit);
    let attributes = libc::mount_attr {
        attr_set: of(true),
        attr_clr: of(false),
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY:
    // - The descriptor is open for the whole call; the empty path with `AT_EMPTY_PATH` means what it is open on.
    // - `attributes` is a `struct mount_attr` of the size that is passed, and is only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
