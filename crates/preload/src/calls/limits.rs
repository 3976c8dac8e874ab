//! RLIMIT_FSIZE of this process, which is kept here ([`crate::limit`]). Other limits and processes are the kernel's.

use std::ffi::{c_int, c_long, c_uint};

use libc::{RLIM_INFINITY, pid_t, rlimit};

use crate::abi::{Answer, interpose};
use crate::user::{load, store};
use crate::{config, limit, mount};

interpose! {
    fn getrlimit[getrlimit64](resource: c_uint, place: *mut rlimit) -> c_int,
        if is_kept(resource) => show(place);
    fn setrlimit[setrlimit64](resource: c_uint, place: *const rlimit) -> c_int,
        // SAFETY: the program says that it is a limit.
        if is_kept(resource) => { limit::set(unsafe { load(place) }?)?; Ok(Some(0)) };
    fn prlimit[prlimit64](pid: pid_t, resource: c_uint, new: *const rlimit, old: *mut rlimit) -> c_int,
        if is_kept(resource) && is_this(pid) => change(new, old);
    fn ulimit(command: c_int, blocks: c_long) -> c_long,
        if is_kept(libc::RLIMIT_FSIZE) => old_form(command, blocks);
}

/// A child that has no image asks the kernel.
fn is_kept(resource: c_uint) -> bool {
    resource == libc::RLIMIT_FSIZE && config::config().is_some() && !mount::is_forked()
}

fn is_this(pid: pid_t) -> bool {
    // SAFETY: it cannot fail.
    pid == 0 || pid == unsafe { libc::getpid() }
}

fn show(place: *mut rlimit) -> Answer<c_int> {
    // SAFETY: the program says that there is room.
    unsafe { store(place, limit::get()?) }?;
    Ok(Some(0))
}

fn change(new: *const rlimit, old: *mut rlimit) -> Answer<c_int> {
    let before = if new.is_null() {
        limit::get()?
    } else {
        // SAFETY: the program says that it is a limit.
        limit::set(unsafe { load(new) }?)?
    };
    if !old.is_null() {
        // SAFETY: the program says that there is room.
        unsafe { store(old, before) }?;
    }
    Ok(Some(0))
}

/// ulimit(3) counts in blocks of 512 bytes, and sets both limits.
fn old_form(command: c_int, blocks: c_long) -> Answer<c_long> {
    const GET: c_int = 1;
    const SET: c_int = 2;
    match command {
        GET => Ok(Some((limit::get()?.rlim_cur / 512).cast_signed())),
        SET => {
            let bytes = blocks.cast_unsigned().checked_mul(512).unwrap_or(RLIM_INFINITY);
            limit::set(rlimit { rlim_cur: bytes, rlim_max: bytes })?;
            Ok(Some((bytes / 512).cast_signed()))
        }
        _ => Ok(None),
    }
}

/// The same by the numbers of system calls.
pub(super) fn by_number(number: c_long, [a, b, c, d, ..]: [c_long; 6]) -> Answer<c_int> {
    let place = std::ptr::with_exposed_provenance_mut::<rlimit>;
    match number {
        libc::SYS_getrlimit if is_kept(a as c_uint) => show(place(b as usize)),
        libc::SYS_setrlimit if is_kept(a as c_uint) => {
            // SAFETY: the program says that it is a limit.
            limit::set(unsafe { load(place(b as usize).cast_const()) }?)?;
            Ok(Some(0))
        }
        libc::SYS_prlimit64 if is_kept(b as c_uint) && is_this(a as pid_t) => {
            change(place(c as usize), place(d as usize))
        }
        _ => Ok(None),
    }
}
