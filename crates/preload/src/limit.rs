//! RLIMIT_FSIZE: the program's limit holds for files of the image, not for the image.
//!
//! The kernel knows one limit of a process, and would apply it to what this library writes: to offsets in the image, and to the sizes of
//! the memory of mapped files. So from mount to unmount the kernel's limit is raised, and the program's is kept here: calls that ask for
//! it or change it are answered from here, and what makes a file of the image longer goes by it. At all other times the kernel has
//! the soft limit. A hard limit that the program lowers is kept here at any time, unless the program has the right to take that back:
//! the image would be lost to it for good.
//!
//! # Locks
//! `STATE` is held over changes, and by who needs the kernel's limit to stay raised. Within it the filesystem is frozen
//! and thawed, and nothing is mounted or unmounted. `ORDER` is taken last before the filesystem's own.

use std::cell::Cell;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use libc::{RLIM_INFINITY, rlimit};

use crate::abi::Errno;
use crate::{mount, real};

/// The kernel's limit is raised.
static RAISED: AtomicBool = AtomicBool::new(false);

/// The program's soft limit while the kernel's is raised; none else.
static SOFT: AtomicU64 = AtomicU64::new(RLIM_INFINITY);

/// The program's hard limit where the kernel's is higher than that.
static HARD: AtomicU64 = AtomicU64::new(RLIM_INFINITY);

static STATE: RwLock<()> = RwLock::new(());

/// While there is a limit: who appends is alone, so that the end of the file is where it was seen to be.
static ORDER: RwLock<()> = RwLock::new(());

thread_local! {
    /// This thread is to get SIGXFSZ when it leaves the library.
    static EXCEEDED: Cell<bool> = const { Cell::new(false) };
}

/// Asks the kernel for its limit, after it was set to `new`.
fn kernel(new: Option<rlimit>) -> Result<rlimit, Errno> {
    let (pid, resource) = (0, libc::RLIMIT_FSIZE);
    let mut now = rlimit { rlim_cur: 0, rlim_max: 0 };
    let to: *const rlimit = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let old: *mut rlimit = &raw mut now;
    let done =
        real::call!(prlimit64(pid: c_int, resource: c_uint, to: *const rlimit, old: *mut rlimit) -> c_int);
    if done == 0 { Ok(new.unwrap_or(now)) } else { Err(Errno(crate::abi::errno())) }
}

/// Whether this thread is in the first user namespace: the right of another one does not count for limits.
fn in_first_namespace() -> bool {
    /// PROC_USER_INIT_INO.
    const FIRST: u64 = 0xeffffffd;
    // SAFETY: a structure of integers.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    let path = c"/proc/thread-self/ns/user".as_ptr();
    // SAFETY: a path, and room for the answer.
    let done =
        unsafe { libc::syscall(libc::SYS_statx, libc::AT_FDCWD, path, 0, libc::STATX_INO, &raw mut seen) };
    done == 0 && seen.stx_ino == FIRST
}

/// Whether this thread has CAP_SYS_RESOURCE in its user namespace.
fn has_capability() -> bool {
    const VERSION_3: u32 = 0x2008_0522;
    const SYS_RESOURCE: u32 = 24;
    let (head, mut sets) = ([VERSION_3, 0], [0_u32; 6]);
    // SAFETY: the head names this thread, and version 3 has two times three words.
    let done = unsafe { libc::syscall(libc::SYS_capget, head.as_ptr(), sets.as_mut_ptr()) };
    done == 0 && sets[0] & (1 << SYS_RESOURCE) != 0
}

/// Whether this thread may raise a hard limit; no where that cannot be shown.
///
/// Who has the right may be refused all the same (by a security module), so it is tried, where that costs the image nothing: past a
/// limit, or back from one that no file reaches. `kernels` is the kernel's limit, before and after.
fn may_raise(kernels: &mut rlimit) -> bool {
    /// Of any file. More, but for RLIM_INFINITY, is negative to the kernel, and every write beyond it.
    const LONGEST: u64 = i64::MAX.cast_unsigned();
    if !(has_capability() && in_first_namespace()) {
        return false;
    }
    let with_hard = |hard| rlimit { rlim_cur: kernels.rlim_cur.min(hard), rlim_max: hard };
    if kernels.rlim_max != RLIM_INFINITY {
        return kernel(Some(with_hard(RLIM_INFINITY))).is_ok() && kernel(Some(*kernels)).is_ok();
    }
    let Ok(below) = kernel(Some(with_hard(LONGEST))) else { return false };
    let may = kernel(Some(*kernels)).is_ok();
    if !may {
        *kernels = below;
    }
    may
}

/// What the program's limit is, while the kernel's is this.
fn of_program(kernel: rlimit) -> rlimit {
    let soft = if RAISED.load(Ordering::Acquire) { SOFT.load(Ordering::Acquire) } else { kernel.rlim_cur };
    rlimit { rlim_cur: soft, rlim_max: kernel.rlim_max.min(HARD.load(Ordering::Acquire)) }
}

fn equal(a: rlimit, b: rlimit) -> bool {
    a.rlim_cur == b.rlim_cur && a.rlim_max == b.rlim_max
}

/// The program's limit.
pub(crate) fn get() -> Result<rlimit, Errno> {
    let _state = STATE.read().unwrap_or_else(PoisonError::into_inner);
    Ok(of_program(kernel(None)?))
}

/// Sets the program's limit; what it was.
///
/// # Errors
/// EINVAL for a soft limit above the hard one, EPERM for a higher hard limit without the right to it.
pub(crate) fn set(new: rlimit) -> Result<rlimit, Errno> {
    let _state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    let mut kernels = kernel(None)?;
    let old = of_program(kernels);
    if new.rlim_cur > new.rlim_max {
        return Err(Errno(libc::EINVAL));
    }
    let may_raise = new.rlim_max != old.rlim_max && may_raise(&mut kernels);
    // Past its own limit the kernel knows.
    if new.rlim_max > old.rlim_max && new.rlim_max <= kernels.rlim_max && !may_raise {
        return Err(Errno(libc::EPERM));
    }
    let hard = if RAISED.load(Ordering::Acquire) {
        let hard = kernels.rlim_max.max(new.rlim_max);
        if hard != kernels.rlim_max {
            kernel(Some(rlimit { rlim_cur: hard, rlim_max: hard }))?;
        }
        SOFT.store(new.rlim_cur, Ordering::Release);
        hard
    } else {
        let hard = if may_raise { new.rlim_max } else { kernels.rlim_max.max(new.rlim_max) };
        kernel(Some(rlimit { rlim_cur: new.rlim_cur, rlim_max: hard }))?.rlim_max
    };
    HARD.store(if hard == new.rlim_max { RLIM_INFINITY } else { new.rlim_max }, Ordering::Release);
    Ok(old)
}

/// Raises the kernel's limit for an image of `size` bytes that is about to be mounted.
///
/// # Errors
/// The kernel's hard limit, if that is less and may not be raised.
pub(crate) fn raise(size: u64) -> Result<(), u64> {
    let _state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    let Ok(kernels) = kernel(None) else { return Ok(()) };
    let program = of_program(kernels);
    if kernels.rlim_cur != RLIM_INFINITY {
        let hard = if kernels.rlim_max < size { RLIM_INFINITY } else { kernels.rlim_max };
        kernel(Some(rlimit { rlim_cur: hard, rlim_max: hard })).map_err(|_| kernels.rlim_max)?;
    }
    SOFT.store(program.rlim_cur, Ordering::Release);
    if program.rlim_max != RLIM_INFINITY {
        HARD.store(program.rlim_max, Ordering::Release);
    }
    RAISED.store(true, Ordering::Release);
    Ok(())
}

/// The image is unmounted: the kernel goes by the program's limit again.
pub(crate) fn lower() {
    let _state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    let Ok(mut kernels) = kernel(None) else { return };
    if !RAISED.load(Ordering::Acquire) {
        return;
    }
    let mut program = of_program(kernels);
    let lowered = program.rlim_max == kernels.rlim_max || may_raise(&mut kernels);
    if !lowered {
        program.rlim_max = kernels.rlim_max;
    }
    if !equal(program, kernels)
        && let Err(Errno(error)) = kernel(Some(program))
    {
        crate::user::complain(&format!("RLIMIT_FSIZE stays raised: error {error}"));
    }
    RAISED.store(false, Ordering::Release);
    SOFT.store(RLIM_INFINITY, Ordering::Release);
    if lowered {
        HARD.store(RLIM_INFINITY, Ordering::Release);
    }
}

/// In the child after a fork: whether no thread that is not here holds the lock.
pub(crate) fn is_free() -> bool {
    STATE.try_write().is_ok()
}

/// In a child that has no image: all of the limit is the kernel's again.
pub(crate) fn leave_to_kernel() {
    let Ok(kernels) = kernel(None) else { return };
    let program = of_program(kernels);
    if !equal(program, kernels) {
        // A limit that is less than what it was is always granted.
        let _ = kernel(Some(program));
    }
    RAISED.store(false, Ordering::Release);
    SOFT.store(RLIM_INFINITY, Ordering::Release);
    HARD.store(RLIM_INFINITY, Ordering::Release);
}

/// Nobody changes the kernel's limit while this is held.
pub(crate) fn steady() -> RwLockReadGuard<'static, ()> {
    STATE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what is started now would have another limit than the program.
pub(crate) fn hides() -> bool {
    let _state = STATE.read().unwrap_or_else(PoisonError::into_inner);
    RAISED.load(Ordering::Acquire) && kernel(None).is_ok_and(|kernels| !equal(kernels, of_program(kernels)))
}

/// Runs `start`, which starts another program: that gets the program's limit. `in_place`: it takes the place of this one.
///
/// While the image is mounted it is frozen over that, since the kernel would apply the limit to it.
pub(crate) fn starting<R>(in_place: bool, start: impl FnOnce() -> R) -> R {
    if mount::is_forked() {
        return start();
    }
    let state: RwLockWriteGuard<'_, ()> = STATE.write().unwrap_or_else(PoisonError::into_inner);
    let mut kernels = kernel(None).ok();
    let raised = RAISED.load(Ordering::Acquire);
    let wanted = kernels.as_mut().map(|kernels| {
        let program = of_program(*kernels);
        // What cannot be taken back is done only where it cannot cost the image.
        let whole = program.rlim_max == kernels.rlim_max || (in_place && !raised) || may_raise(kernels);
        rlimit { rlim_max: if whole { program.rlim_max } else { kernels.rlim_max }, ..program }
    });
    let change = kernels.zip(wanted).filter(|(kernels, wanted)| !equal(*kernels, *wanted));
    let frozen = (in_place || (raised && change.is_some())) && mount::before_exec();
    let change = change.filter(|_| frozen || !raised);
    let lowered = change.is_some_and(|(_, wanted)| kernel(Some(wanted)).is_ok());
    let done = start();
    let error = crate::abi::errno();
    if let Some((kernels, _)) = change.filter(|_| lowered)
        && kernel(Some(kernels)).is_err()
        && raised
    {
        crate::user::complain("RLIMIT_FSIZE could not be raised again");
    }
    if frozen {
        mount::exec_failed();
    }
    drop(state);
    crate::abi::set_errno(error);
    done
}

/// Whether files of the image have a limit.
pub(crate) fn is_set() -> bool {
    SOFT.load(Ordering::Acquire) != RLIM_INFINITY
}

/// Held over what makes a file longer while there is a limit.
pub(crate) enum Order {
    Appending(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
    Beside(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
}

impl Order {
    pub(crate) fn of(append: bool) -> Self {
        if append {
            Self::Appending(ORDER.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            Self::Beside(ORDER.read().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

fn exceeded() -> Errno {
    EXCEEDED.set(true);
    Errno(libc::EFBIG)
}

/// How many of `len` bytes may be written from `at` on; EFBIG and SIGXFSZ for none.
pub(crate) fn room(at: u64, len: usize) -> Result<usize, Errno> {
    let soft = SOFT.load(Ordering::Acquire);
    if soft == RLIM_INFINITY {
        return Ok(len);
    }
    match soft.checked_sub(at) {
        None | Some(0) => Err(exceeded()),
        Some(left) => Ok(len.min(usize::try_from(left).unwrap_or(usize::MAX))),
    }
}

/// Whether a file may be given the size `new`; EFBIG and SIGXFSZ if not.
pub(crate) fn check_size(old: u64, new: u64) -> Result<(), Errno> {
    if new > old && new > SOFT.load(Ordering::Acquire) { Err(exceeded()) } else { Ok(()) }
}

/// Sends SIGXFSZ if this thread is to have it. It is outside of the library, and a handler may use the image.
pub(crate) fn deliver() {
    if EXCEEDED.replace(false) {
        send();
    }
}

#[cold]
fn send() {
    // SAFETY: a structure of integers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a set of bits.
    let mut blocked: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: room for what is asked for; nothing is changed.
    unsafe { libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &raw mut action) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked) };
    // SAFETY: a set.
    let is_blocked = unsafe { libc::sigismember(&raw const blocked, libc::SIGXFSZ) } == 1;
    if action.sa_sigaction == libc::SIG_DFL && !is_blocked {
        // It ends the process, and what the program has written is to stay, as it does in a kernel.
        let _ = crate::abi::serve::<c_int>(|| {
            mount::end();
            Ok(Some(0))
        });
    }
    // SAFETY: it cannot fail.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: a signal for this thread, which the program has said what to do with.
    unsafe { libc::pthread_kill(this, libc::SIGXFSZ) };
}
