//! SIGBUS for one thread: the answer to a store that cannot be, which leaves what others see of the page alone.
//!
//! The signal is sent to a thread that waits in a fault of its own code: it ends the program or runs its handler, at the
//! instruction that stores, and when that returns the store is tried again. `si_addr` is the address; `si_code` is SI_QUEUE, since
//! the kernel keeps the codes of its own (BUS_ADRERR) to itself: one thread cannot send them to another (rt_tgsigqueueinfo(2): EPERM).
//! What the kernel would do to a thread that blocks or ignores it, end the program, a sent signal does not; nor does it end a system
//! call with EFAULT. Such threads need another answer.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// `siginfo_t` of a fault.
#[repr(C)]
struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    addr: usize,
    _rest: [u64; 13],
}

const _: () = assert!(size_of::<SigInfo>() == size_of::<libc::siginfo_t>());

/// The signal in a mask of `/proc/PID/status`.
const BIT: u64 = 1 << (libc::SIGBUS - 1);

/// What came of [`send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The thread gets the signal.
    Yes,
    /// It runs: its wait is over, or has not quite begun, and it faults again when it is woken.
    Runs,
    /// It is inside of a system call, blocks or ignores the signal, or nothing can be told of it.
    Never,
}

/// How often a thread that runs is given time to begin its wait.
const TURNS: usize = 50;

/// Sends SIGBUS for `addr` to a thread of this process, if it waits in a fault of its own code, and neither blocks nor ignores the
/// signal.
pub(crate) fn send(thread: u32, addr: usize) -> Sent {
    for _ in 0..TURNS {
        match standing(thread) {
            Some(Standing::Runs) => std::thread::yield_now(),
            Some(Standing::Waits) if would_be_taken(thread) => {
                return if queue(thread, addr) { Sent::Yes } else { Sent::Never };
            }
            _ => return Sent::Never,
        }
    }
    Sent::Runs
}

/// Where a thread is.
enum Standing {
    Runs,
    /// Blocked, outside of any system call: that is a fault.
    Waits,
    Calls,
}

fn standing(thread: u32) -> Option<Standing> {
    let text = std::fs::read(format!("/proc/self/task/{thread}/syscall")).ok()?;
    // Or the number of a system call and its arguments.
    Some(match text.as_slice() {
        [b'r', ..] => Standing::Runs,
        [b'-', b'1', b' ', ..] => Standing::Waits,
        _ => Standing::Calls,
    })
}

fn queue(thread: u32, addr: usize) -> bool {
    let info = SigInfo { signo: libc::SIGBUS, errno: 0, code: libc::SI_QUEUE, _pad: 0, addr, _rest: [0; 13] };
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY:
    // - rt_tgsigqueueinfo(2) reads one `siginfo_t`, and changes no memory.
    // - What the signal does is what an access to that address may do at any time.
    let sent = unsafe {
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, std::ptr::from_ref(&info))
    };
    sent == 0
}

fn would_be_taken(thread: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")) else { return false };
    let mask = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let is_free = |name: &str| mask(name).is_some_and(|mask| mask & BIT == 0);
    is_free("SigBlk") && is_free("SigIgn")
}

/// What [`count`]'s handler has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusErrors {
    /// How many.
    pub count: u64,
    /// Where the last one was.
    pub addr: usize,
    /// Its code.
    pub code: i32,
    /// The thread that got it.
    pub thread: u32,
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static ADDR: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicU32 = AtomicU32::new(0);
static THREAD: AtomicU32 = AtomicU32::new(0);

/// From now on SIGBUS is counted, and the access tried again: for tests.
///
/// # Errors
/// The system's.
pub fn count() -> io::Result<()> {
    static DONE: OnceLock<i32> = OnceLock::new();
    let errno = *DONE.get_or_init(|| {
        // SAFETY: an action is plain data, for which zeros are a value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = noted as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler does nothing but atomic stores and one system call; the place for the old action may be null.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) }
    });
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// What was counted.
#[must_use]
pub fn counted() -> BusErrors {
    BusErrors {
        count: COUNT.load(Ordering::Acquire),
        addr: ADDR.load(Ordering::Acquire),
        code: CODE.load(Ordering::Acquire).cast_signed(),
        thread: THREAD.load(Ordering::Acquire),
    }
}

extern "C" fn noted(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler a valid one (SA_SIGINFO), and nobody else has it.
    let info = unsafe { &*info.cast::<SigInfo>() };
    ADDR.store(info.addr, Ordering::Release);
    CODE.store(info.code.cast_unsigned(), Ordering::Release);
    THREAD.store(crate::thread_number(), Ordering::Release);
    COUNT.fetch_add(1, Ordering::AcqRel);
}
