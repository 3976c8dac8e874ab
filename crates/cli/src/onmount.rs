//! Commands that take either an image and paths in it, or paths on a mount of ours: which of the two it is.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Whether a path leads to a file or directory on a mount of ours.
pub(crate) fn is_on_mount(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| openable(&meta))
        && open(path).is_ok_and(|file| extant_fuse::control_server(file).is_ok())
}

/// The same of a path whose last name may be missing.
pub(crate) fn may_be_on_mount(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    is_on_mount(path) || (!path.exists() && is_on_mount(parent))
}

/// Opens a file or directory for looking at it.
pub(crate) fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Whether opening does no more than that: not for devices, pipes, sockets.
fn openable(meta: &Metadata) -> bool {
    let kind = meta.file_type();
    !(kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket())
}
