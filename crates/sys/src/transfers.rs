//! Whether a device may be writing memory of this process.
//!
//! A transfer that the kernel has set up to a buffer (O_DIRECT, io_uring, libaio) writes there without a fault, and leaves no trace
//! in the page tables. But it is somebody's: a system call that has not returned, or a request of a ring or context that exists.

use std::fs;
use std::io;

/// Whether every transfer to memory of this process that a system call of it set up before this call is over. `false` also where that
/// cannot be told.
///
/// Looked at are io_uring and libaio (any ring at all; any context in the whole system) and all other threads: one that runs, or
/// is inside of a system call that is not known to wait for something else, may have one. What other drivers keep of a process's memory
/// (RDMA, VFIO, graphics) and what another process that shares it does is not seen.
#[must_use]
pub fn all_over() -> bool {
    no_contexts().unwrap_or(false) && no_calls().unwrap_or(false) && no_rings().unwrap_or(false)
}

fn no_contexts() -> io::Result<bool> {
    Ok(fs::read("/proc/sys/fs/aio-nr")?.trim_ascii() == b"0")
}

fn no_rings() -> io::Result<bool> {
    for entry in fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile may have been a ring.
        if fs::read_link(entry?.path())?.as_os_str() == "anon_inode:[io_uring]" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Of other threads.
fn no_calls() -> io::Result<bool> {
    let own = crate::thread_number().to_string();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if entry.file_name().as_os_str() == own.as_str() {
            continue;
        }
        match fs::read_to_string(entry.path().join("syscall")) {
            Ok(text) if waits(&text) => {}
            Ok(_) => return Ok(false),
            // It has ended: what it had set up, it waited for.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Whether a line of `/proc/PID/syscall` is that of a thread which waits for something else than a transfer.
fn waits(line: &str) -> bool {
    let Some(number) = line.split_ascii_whitespace().next().and_then(|word| word.parse::<i64>().ok()) else {
        // It runs.
        return false;
    };
    // In a fault of its own code.
    number == -1 || WAITING.contains(&number)
}

/// System calls that wait and transfer nothing to the caller's buffers, or only a few bytes, by copying.
const WAITING: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pselect6,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

#[cfg(test)]
mod tests;
