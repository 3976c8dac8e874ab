//! Duplicates of descriptors, and fcntl.

use std::ffi::c_void;
use std::sync::Arc;

use libc::c_int;

use crate::abi::{Answer, Errno, interpose};
use crate::table::{self, is_ours, is_own};
use crate::{calls::locks, calls::stdio, real};

interpose! {
    fn dup(fd: c_int) -> c_int,
        if is_ours(fd) => duplicate(fd, |fd| real::call!(dup(fd: c_int) -> c_int));
    fn dup2(fd: c_int, to: c_int) -> c_int,
        if is_ours(fd) || is_ours(to) || is_own(to) => onto(fd, to, |fd, to| real::call!(dup2(fd: c_int, to: c_int) -> c_int));
    fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int,
        if is_ours(fd) || is_ours(to) || is_own(to) => {
            onto(fd, to, |fd, to| real::call!(dup3(fd: c_int, to: c_int, flags: c_int) -> c_int))
        };
    fn fcntl[fcntl64](fd: c_int, command: c_int, argument: *mut c_void) -> c_int,
        if is_ours(fd) => control(fd, command, argument);
}

fn done(fd: c_int) -> Result<c_int, Errno> {
    if fd < 0 { Err(Errno(crate::abi::errno())) } else { Ok(fd) }
}

/// A duplicate of `fd` that `make` gets from the kernel.
fn duplicate(fd: c_int, make: impl FnOnce(c_int) -> c_int) -> Answer<c_int> {
    let what = table::get(fd)?;
    let new = done(make(fd))?;
    match table::set(new, what) {
        Ok(old) => drop(old),
        Err(errno) => {
            let fd = new;
            real::call!(close(fd: c_int) -> c_int);
            return Err(errno);
        }
    }
    Ok(Some(new))
}

/// A duplicate in the place of `to`: one of the two is ours, or `to` is the library's own.
pub(super) fn onto(fd: c_int, to: c_int, make: impl FnOnce(c_int, c_int) -> c_int) -> Answer<c_int> {
    if is_own(to) {
        return Err(Errno(libc::EBUSY));
    }
    let what = table::find(fd)?;
    let new = done(make(fd, to))?;
    if fd == to {
        return Ok(Some(new));
    }
    let old = match what {
        Some(what) => table::set(new, Arc::clone(&what))?,
        None => table::remove(new),
    };
    locks::closed(old.as_deref());
    drop(old);
    stdio::redirected(new);
    Ok(Some(new))
}

fn control(fd: c_int, command: c_int, argument: *mut c_void) -> Answer<c_int> {
    let number = argument as usize as c_int;
    let real = move |fd: c_int| real::call!(fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int);
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicate(fd, real),
        // The kernel's, of the placeholder.
        libc::F_GETFD | libc::F_SETFD => done(real(fd)).map(Some),
        libc::F_GETFL => Ok(Some(table::get(fd)?.flags())),
        libc::F_SETFL => {
            table::get(fd)?.set_flags(number);
            Ok(Some(0))
        }
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => locks::posix(fd, command, argument.cast()),
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            locks::ofd(fd, command, argument.cast())
        }
        // A program alone with its files breaks no lease.
        _ => {
            table::get(fd)?.check_open()?;
            Err(Errno(libc::EINVAL))
        }
    }
}
