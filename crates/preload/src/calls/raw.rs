//! syscall(2): what programs call by number, because their C library has no function for it or once had none. Other system calls
//! that they make so go to the kernel, which refuses a descriptor of ours (EBADF) and knows no path below the root.

use std::ffi::{c_int, c_long, c_uint, c_void};

use super::{aio, attributes, directories, limits, mapping, names, open, read_write};
use crate::abi::{Answer, Errno, serve};
use crate::table::{self, is_ours};
use crate::walk::Route;
use crate::{config, real};

type Arguments = [c_long; 6];

/// What [`dispatch`] knows.
const SERVED: [c_long; 19] = [
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_getdents64,
    libc::SYS_copy_file_range,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_io_destroy,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_msync,
    libc::SYS_madvise,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
];

/// Arguments come as the C library's own function takes them: it, too, has no way to know how many there are.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_syscall"))]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // Most numbers first: the waiting of our own locks comes by here too.
    if SERVED.contains(&number)
        && config::config().is_some()
        && let Some(answer) = serve::<c_long>(|| dispatch(number, [a, b, c, d, e, f]))
    {
        return answer;
    }
    plain(number, [a, b, c, d, e, f])
}

fn plain(number: c_long, [a, b, c, d, e, f]: Arguments) -> c_long {
    real::call!(syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long)
}

fn pointer<T>(word: c_long) -> *mut T {
    std::ptr::with_exposed_provenance_mut(word as usize)
}

fn long<T: Into<c_long>>(answer: Answer<T>) -> Answer<c_long> {
    answer.map(|value| value.map(Into::into))
}

/// As the kernel does, takes the lower half of a register for an argument of 32 bits.
#[allow(clippy::cast_possible_truncation)]
fn dispatch(number: c_long, args: Arguments) -> Answer<c_long> {
    let [a, b, c, d, e, _] = args;
    let fd = a as c_int;
    match number {
        libc::SYS_close if is_ours(fd) => open::close_ours(fd).map(|done| Some(done.into())),
        libc::SYS_close if table::is_own(fd) => Err(Errno(libc::EBADF)),
        libc::SYS_close_range => long(open::close_many(a as c_uint, b as c_uint, c as c_int)),
        libc::SYS_getdents64 if is_ours(fd) => {
            let read = directories::entries(fd, pointer::<c_void>(b), c as usize)?;
            Ok(read.map(|n| n as c_long))
        }
        libc::SYS_copy_file_range if is_ours(fd) || is_ours(c as c_int) => {
            let done =
                read_write::copy(fd, pointer(b), c as c_int, pointer(d), e as usize, args[5] as c_uint)?;
            Ok(done.map(|n| n as c_long))
        }
        libc::SYS_renameat2 => {
            let (mut one, mut two) = (Route::new(fd, pointer(b)), Route::new(c as c_int, pointer(d)));
            long(names::rename_at(&mut one, &mut two, e as c_uint))
        }
        libc::SYS_statx => {
            long(attributes::statx_at(&mut Route::new(fd, pointer(b)), pointer(e), c as c_int))
        }
        libc::SYS_io_destroy if table::count() > 0 => {
            aio::forget(pointer(a));
            Ok(None)
        }
        libc::SYS_io_submit if table::count() > 0 => {
            let kernel = |count: c_long, list: *mut *mut c_void| {
                aio::negative(plain(number, [a, count, list.expose_provenance() as c_long, 0, 0, 0]))
            };
            long(aio::with_errno(aio::submit(pointer(a), b, pointer(c), &kernel)))
        }
        libc::SYS_io_getevents if aio::has_done(pointer(a)) => {
            let kernel = |least: c_long, most: c_long, events: *mut c_void| {
                aio::negative(plain(number, [a, least, most, events.expose_provenance() as c_long, e, 0]))
            };
            long(aio::with_errno(aio::events_of(pointer(a), b, c, pointer(d), &kernel)))
        }
        libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_mremap
        | libc::SYS_mprotect
        | libc::SYS_pkey_mprotect
        | libc::SYS_msync
        | libc::SYS_madvise => mapping::by_number(number, args),
        libc::SYS_getrlimit | libc::SYS_setrlimit | libc::SYS_prlimit64 => {
            long(limits::by_number(number, args))
        }
        _ => Ok(None),
    }
}
