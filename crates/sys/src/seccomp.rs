//! System calls that another thread answers: seccomp's user notification.
//!
//! Source: seccomp(2), seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Call {
    /// Names it in the answer.
    pub id: u64,
    /// The thread that made it, as seen from here.
    pub pid: u32,
    flags: u32,
    /// Its number.
    pub number: i32,
    arch: u32,
    instruction: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Call>() == 80);
const _: () = assert!(size_of::<Response>() == 24);

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The kernel does it as if nobody had asked.
    Continue,
    /// It has returned this.
    Value(i64),
    /// It has failed with this errno.
    Error(i32),
}

const RECEIVE: Opcode = opcode::read_write::<Call>(b'!', 0);
const SEND: Opcode = opcode::read_write::<Response>(b'!', 1);
const ID_VALID: Opcode = opcode::write::<u64>(b'!', 2);

/// `AUDIT_ARCH_*` of the system calls that are told apart; those of other kinds go through.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: u32 = 0;

const SET_MODE_FILTER: libc::c_long = 1;
const NEW_LISTENER: libc::c_long = 1 << 3;
const USER_NOTIF: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const FLAG_CONTINUE: u32 = 1;

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// From now on the calls `numbers` of this thread, and of all that it starts, wait for whoever holds the descriptor. It needs
/// `CAP_SYS_ADMIN` in the thread's user namespace. Once the descriptor is closed those calls fail with ENOSYS.
pub fn trap(numbers: &[u32]) -> io::Result<OwnedFd> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let Some(count) = u8::try_from(numbers.len()).ok().filter(|_| ARCH != 0) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut program = vec![
        // The architecture; another one's numbers mean other calls.
        statement(LOAD, 4),
        libc::sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: ARCH },
        statement(RETURN, ALLOW),
        statement(LOAD, 0),
    ];
    for (n, &number) in numbers.iter().enumerate() {
        // Over the remaining comparisons and the return that lets through.
        let jt = count - n as u8;
        program.push(libc::sock_filter { code: JUMP_IF_EQUAL, jt, jf: 0, k: number });
    }
    program.push(statement(RETURN, ALLOW));
    program.push(statement(RETURN, USER_NOTIF));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY:
    // - `program` points to `len` instructions, alive until the call returns; the kernel copies and checks them.
    // - The filter changes no memory of this process; what it does to calls is the function's purpose.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, NEW_LISTENER, &raw const program) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The next call that waits; `None` if the one there was has gone, with its thread.
pub fn receive(listener: impl AsFd) -> io::Result<Option<Call>> {
    let mut call = Call::default();
    // SAFETY: the command fills a zeroed structure of the size in its number; every bit pattern is a valid `Call`.
    let update = unsafe { Updater::<RECEIVE, Call>::new(&mut call) };
    // SAFETY: as above; another kind of descriptor refuses the command.
    match unsafe { ioctl(listener, update) } {
        Ok(()) => Ok(Some(call)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the call still waits: only then its pid is that of who made it.
pub fn still_waits(listener: impl AsFd, id: u64) -> bool {
    // SAFETY: the command reads one `u64`.
    let setter = unsafe { Setter::<ID_VALID, u64>::new(id) };
    // SAFETY: as above.
    unsafe { ioctl(listener, setter) }.is_ok()
}

/// Ends a call. One that has gone meanwhile is no error.
pub fn answer(listener: impl AsFd, id: u64, answer: Answer) -> io::Result<()> {
    let mut response = Response { id, ..Response::default() };
    match answer {
        Answer::Continue => response.flags = FLAG_CONTINUE,
        Answer::Value(value) => response.value = value,
        Answer::Error(errno) => response.error = -errno,
    }
    // SAFETY: the command reads a structure of the size in its number.
    let update = unsafe { Updater::<SEND, Response>::new(&mut response) };
    // SAFETY: as above.
    match unsafe { ioctl(listener, update) } {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
