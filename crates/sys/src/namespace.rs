//! Namespaces of the calling thread.

use std::io;

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new mount namespace, and into a new user namespace if `user`. The latter is
/// refused by the kernel (EINVAL) unless the process has one thread.
pub fn unshare_mounts(user: bool) -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNS;
    if user {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: the descriptor table (`CLONE_FILES`), which is what the function is unsafe for, stays shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}
