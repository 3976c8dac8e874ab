//! Waking a thread that waits for messages.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A bell (eventfd).
///
/// # Errors
/// The system's.
pub fn new() -> io::Result<OwnedFd> {
    Ok(crate::descriptor::lift(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}

/// Ends one [`wait`], now or later.
pub fn ring(bell: &OwnedFd) {
    // It fails only when it is ringing as loud as it can.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// Waits until `fd` can be read, the bell rings, or `limit` has passed; whether it rang.
///
/// # Errors
/// The system's.
pub fn wait(fd: impl AsFd, bell: &OwnedFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit =
        limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
    let mut fds = [PollFd::new(&fd, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let rang = !fds[1].revents().is_empty();
    if rang {
        // Rung once for any number of times.
        let _ = rustix::io::read(bell, &mut [0_u8; 8][..]);
    }
    Ok(rang)
}
