//! Whether a device may be writing memory of this process.
//!
//! A transfer that the kernel has set up to a buffer (O_DIRECT, io_uring, libaio) writes there without a fault, and leaves no trace
//! in the page tables. But it is somebody's: a system call that has not returned, or a request of a ring or context that exists.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When an io_uring was seen last.
static RING_SEEN: Mutex<Option<Instant>> = Mutex::new(None);

/// So long after a ring was there its requests may still run: the system ends them after it is closed, and says nothing.
const AFTER_RING: Duration = Duration::from_secs(30);

/// Threads that make no transfers to memory of the program.
static HARMLESS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// While this is there, the thread that made it is left out of [`under_way`].
#[derive(Debug)]
pub struct Harmless(u32);

/// Says that the calling thread tells no device to write to memory that a program has mapped: one of a filesystem's own.
#[must_use]
pub fn harmless() -> Harmless {
    let thread = crate::thread_number();
    threads().insert(thread);
    Harmless(thread)
}

impl Drop for Harmless {
    fn drop(&mut self) {
        threads().remove(&self.0);
    }
}

fn threads() -> MutexGuard<'static, BTreeSet<u32>> {
    HARMLESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What may be under way that began before it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderWay {
    /// No transfer.
    Nothing,
    /// One only if a thread that runs is in a system call that makes one: most run in their own code. One that waits for a device is
    /// seen to.
    ThreadsRun,
    /// Perhaps one; also where that cannot be told.
    Perhaps,
}

/// Whether transfers to memory of this process that a system call of it set up before this call may be under way.
///
/// Looked at are io_uring and libaio (any ring that has a descriptor or is mapped, and that did half a minute ago; any context in the
/// whole system) and all other threads but those that are [`harmless`]: one that runs, or is inside of a system call that is not known to
/// wait for something else, may have one. Not seen are a ring that is neither (registered by its thread, closed, and set up in the
/// program's own memory), one that came and went between two looks, what other drivers keep of a process's memory (RDMA, VFIO, graphics),
/// and what another process that shares it does.
#[must_use]
pub fn under_way() -> UnderWay {
    let calls = no_contexts().unwrap_or(false).then(|| calls().unwrap_or(UnderWay::Perhaps));
    match calls {
        Some(calls @ (UnderWay::Nothing | UnderWay::ThreadsRun)) if no_rings().unwrap_or(false) => calls,
        _ => UnderWay::Perhaps,
    }
}

/// Whether there is nothing under way.
#[must_use]
pub fn all_over() -> bool {
    under_way() == UnderWay::Nothing
}

fn no_contexts() -> io::Result<bool> {
    Ok(fs::read("/proc/sys/fs/aio-nr")?.trim_ascii() == b"0")
}

/// What the system calls a ring, among descriptors and mappings.
const RING: &str = "anon_inode:[io_uring]";

fn no_rings() -> io::Result<bool> {
    let there = has_ring_descriptor()? || has_ring_mapping()?;
    let mut seen = RING_SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(rings_are_over(there, &mut seen, Instant::now()))
}

/// Whether the requests of all rings are over, after a look for rings.
fn rings_are_over(there: bool, seen: &mut Option<Instant>, now: Instant) -> bool {
    if there {
        *seen = Some(now);
    }
    seen.is_none_or(|seen| now.saturating_duration_since(seen) >= AFTER_RING)
}

fn has_ring_descriptor() -> io::Result<bool> {
    for entry in fs::read_dir("/proc/self/fd")? {
        match fs::read_link(entry?.path()) {
            Ok(what) if what.as_os_str() == RING => return Ok(true),
            Ok(_) => {}
            // It was closed meanwhile. A ring that is closed a moment earlier is not seen either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A ring that its thread has registered works without a descriptor; its queues are mapped.
fn has_ring_mapping() -> io::Result<bool> {
    let maps = fs::read("/proc/self/maps")?;
    Ok(maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(RING.as_bytes())))
}

/// Of other threads.
fn calls() -> io::Result<UnderWay> {
    let mut all = UnderWay::Nothing;
    let own = crate::thread_number();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if number.is_some_and(|number| number == own || threads().contains(&number)) {
            continue;
        }
        match fs::read_to_string(entry.path().join("syscall")) {
            Ok(text) => match of(&text) {
                UnderWay::Nothing => {}
                UnderWay::ThreadsRun => all = UnderWay::ThreadsRun,
                UnderWay::Perhaps => return Ok(UnderWay::Perhaps),
            },
            // It has ended: what it had set up, it waited for.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// What a line of `/proc/PID/syscall` says of its thread.
fn of(line: &str) -> UnderWay {
    let Some(number) = line.split_ascii_whitespace().next().and_then(|word| word.parse::<i64>().ok()) else {
        return if line.trim_ascii() == "running" { UnderWay::ThreadsRun } else { UnderWay::Perhaps };
    };
    // In a fault of its own code.
    let waits = number == -1 || WAITING.contains(&number);
    if waits { UnderWay::Nothing } else { UnderWay::Perhaps }
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
    // One of those with a limit that a signal or a freezer has interrupted: only calls that wait are taken up again by this.
    libc::SYS_restart_syscall,
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
