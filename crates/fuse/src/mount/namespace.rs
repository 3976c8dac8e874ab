//! A user and mount namespace of our own: a mount that only this process and its children see, without any right.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};

/// Moves this process into a new mount namespace; if it is not root, into a new user namespace too, where the caller's
/// ids are 0. Must be called while the process has one thread.
///
/// In such a user namespace only the caller's own ids exist: files of others appear as nobody's (65534), and chown(2)
/// to another id is EINVAL.
pub fn enter_namespace() -> io::Result<()> {
    let uid = rustix::process::geteuid();
    let gid = rustix::process::getegid();
    let user = !uid.is_root();
    extant_sys::namespace::unshare_mounts(user).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot make a namespace (are unprivileged user namespaces off?): {e}"),
        )
    })?;
    if user {
        // Without this a process could drop groups that deny it something (user_namespaces(7)).
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {} 1\n", uid.as_raw()))?;
        std::fs::write("/proc/self/gid_map", format!("0 {} 1\n", gid.as_raw()))?;
    }
    // What is mounted here must not spread to the outside.
    let flags = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", flags)
        .or_else(|_| mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM))?;
    Ok(())
}
