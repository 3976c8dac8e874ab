//! The set-user-id helper `fusermount3`: mounts for a user, and passes the device's descriptor back.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::mount::MountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::MountRequest;

const PROGRAM: &str = "fusermount3";

/// Mounts and returns the FUSE device.
pub(super) fn mount(request: &MountRequest) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)?;
    // The helper inherits its end; the number is told by the environment.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options(request)?)
        .arg("--")
        .arg(&request.target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot run {PROGRAM}: {e}")))?;
    drop(theirs);
    let received = receive(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    match received? {
        Some(fd) if status.success() => {
            rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            Ok(fd)
        }
        _ => Err(io::Error::other(format!("{PROGRAM}: {}", said.trim()))),
    }
}

/// Unmounts.
pub(super) fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").arg("-q");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(target)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot run {PROGRAM}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(io::Error::from(Errno::BUSY));
    }
    Err(io::Error::other(format!("{PROGRAM}: {}", said.trim())))
}

/// The helper's `-o`.
fn options(request: &MountRequest) -> io::Result<String> {
    let source = request.source.to_str().ok_or(Errno::INVAL)?;
    // Commas and backslashes in the name are escaped by a backslash.
    let source: String =
        source.chars().flat_map(|c| matches!(c, ',' | '\\').then_some('\\').into_iter().chain([c])).collect();
    let mut list = format!(
        "fsname={source},subtype={},max_read={},default_permissions",
        request.subtype, request.max_read
    );
    if request.allow_other {
        list.push_str(",allow_other");
    }
    const WORDS: [(MountFlags, &str); 7] = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOSYMFOLLOW, "nosymfollow"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
    ];
    for (flag, word) in WORDS {
        if request.flags.contains(flag) {
            list.push(',');
            list.push_str(word);
        }
    }
    Ok(list)
}

/// The descriptor that the helper sends, or `None` if it ends without sending one.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => {
                return Ok(control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                }));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
