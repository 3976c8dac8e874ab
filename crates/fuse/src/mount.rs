//! Mounting and unmounting.
//!
//! - As root: mount(2) itself, `fuse` or, with a block device, `fuseblk`: then sync(2), syncfs(2) and umount(2) reach
//!   the server, and umount(2) waits for it.
//! - As a user: the set-user-id program `fusermount3`, which passes the device's descriptor over a socket.
//! - In a namespace of our own: [`enter_namespace`], then as root.

mod fusermount;
mod namespace;
mod table;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountFlags, UnmountFlags};

pub use extant_sys::loopdev::LoopDevice;
use extant_sys::mount_attr::{MountAttributes, set_attributes};
pub use namespace::enter_namespace;
pub(crate) use table::mounts_of;
pub use table::{MountEntry, find_mount, mounts};

/// What to mount.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// What stands in the first column of mount(8)'s list; for `fuseblk` the block device.
    pub source: PathBuf,
    /// The directory to mount on.
    pub target: PathBuf,
    /// Mount as `fuseblk` on the block device `source`.
    pub block_device: bool,
    /// The type's second half: `extant` for `fuse.extant`.
    pub subtype: String,
    /// `ro`, `nosuid` and the like.
    pub flags: MountFlags,
    /// `allow_other`: everybody may enter, not only who mounts.
    pub allow_other: bool,
    /// Largest READ, bytes.
    pub max_read: u32,
    /// Block size of a `fuseblk` mount, bytes.
    pub block_size: u32,
}

impl MountRequest {
    /// A mount of `source` on `target` as the kernel's own file systems are mounted: for everybody. The kernel always checks
    /// permissions (`default_permissions`).
    #[must_use]
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            block_device: false,
            subtype: "extant".into(),
            flags: MountFlags::empty(),
            allow_other: true,
            max_read: 1 << 20,
            block_size: 4096,
        }
    }
}

/// How a mount was made, and so how it is undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// By mount(2).
    SystemCall,
    /// By `fusermount3`.
    Fusermount,
}

/// Mounts by mount(2). Needs `CAP_SYS_ADMIN` in the mount namespace's user namespace and the right to open
/// `/dev/fuse`. The kernel's INIT waits on the descriptor returned.
pub fn mount_direct(request: &MountRequest) -> io::Result<OwnedFd> {
    let device = extant_sys::fuse::open_device()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot open /dev/fuse: {e}")))?;
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},max_read={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        request.max_read,
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    let kind = if request.block_device {
        options.push_str(&format!(",blksize={}", request.block_size));
        format!("fuseblk.{}", request.subtype)
    } else {
        format!("fuse.{}", request.subtype)
    };
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(&request.source, &request.target, kind.as_str(), request.flags, options.as_c_str())?;
    Ok(device)
}

/// Mounts once more, on `target`, what `first` shows, with these of mount(2)'s flags: `ro`, `nosuid`, `nodev`, `noexec`,
/// `nosymfollow`. It has them before anybody sees it; those of access times are as on `first`.
pub fn mount_again(first: &MountEntry, target: &Path, flags: MountFlags) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags};
    let flag = |flag| flags.contains(flag);
    let attributes = MountAttributes {
        read_only: flag(MountFlags::RDONLY),
        nosuid: flag(MountFlags::NOSUID),
        nodev: flag(MountFlags::NODEV),
        noexec: flag(MountFlags::NOEXEC),
        nosymfollow: flag(MountFlags::NOSYMFOLLOW),
    };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, &first.target, clone)?;
    if !first.is_shown_by(&tree)? {
        return Err(io::Error::other(format!("{} is covered by another mount", first.target.display())));
    }
    set_attributes(&tree, attributes)?;
    let from_tree = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&tree, "", rustix::fs::CWD, target, from_tree)?)
}

/// Mounts through `fusermount3`.
pub fn mount_as_user(request: &MountRequest) -> io::Result<OwnedFd> {
    fusermount::mount(request)
}

/// Mounts by whatever this process may use.
pub fn mount(request: &MountRequest) -> io::Result<(OwnedFd, How)> {
    if rustix::process::geteuid().is_root() {
        return Ok((mount_direct(request)?, How::SystemCall));
    }
    Ok((mount_as_user(request)?, How::Fusermount))
}

/// Unmounts; EBUSY while files are open. `lazy` takes the mount out of the tree at once and ends it with its last
/// user.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(target, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount::unmount(target, lazy),
        Err(errno) => Err(errno.into()),
    }
}

/// Changes flags of a mount, and nothing of its file system. EBUSY when it has files open for writing and is to become read-only.
pub fn remount(target: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"")?)
}

/// The words of fsconfig(2) for flags of a file system: with and without. There is none that takes `dirsync` away.
const SUPER_WORDS: [(MountFlags, &str, Option<&str>); 4] = [
    (MountFlags::RDONLY, "ro", Some("rw")),
    (MountFlags::SYNCHRONOUS, "sync", Some("async")),
    (MountFlags::LAZYTIME, "lazytime", Some("nolazytime")),
    (MountFlags::DIRSYNC, "dirsync", None),
];

/// Changes the flags of the file system that is mounted at `target` from `old` to `new`, and nothing of its mounts. EBUSY when it has
/// files open for writing and is to become read-only. Flags of mounts alone do not matter.
pub fn remount_super(target: &Path, old: MountFlags, new: MountFlags) -> io::Result<()> {
    let changed = SUPER_WORDS.iter().filter(|(flag, ..)| old.contains(*flag) != new.contains(*flag));
    let words: Vec<&str> = changed
        .filter_map(|(flag, with, without)| if new.contains(*flag) { Some(*with) } else { *without })
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    let context = rustix::mount::fspick(rustix::fs::CWD, target, FsPickFlags::FSPICK_CLOEXEC)?;
    for word in words {
        rustix::mount::fsconfig_set_flag(&context, word)?;
    }
    Ok(rustix::mount::fsconfig_reconfigure(&context)?)
}
