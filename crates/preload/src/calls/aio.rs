//! Linux AIO (libaio): requests on our descriptors are done when they are submitted, and are there to be got at once.
//!
//! A context is the kernel's; what was completed here waits beside it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_long, c_void};
use std::sync::{Mutex, PoisonError};

use libc::{iovec, off_t, size_t, ssize_t, timespec};

use crate::abi::{Answer, Errno, interpose};
use crate::table::{self, is_ours};
use crate::user::{Buffer, buffers, load};
use crate::{calls::read_write, real};

/// `struct iocb` (`linux/aio_abi.h`, little-endian).
#[derive(Clone, Copy)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: c_int,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
const FLAG_RESFD: u32 = 1;

/// A context as the kernel names it.
type Context = *mut c_void;

static DONE: Mutex<BTreeMap<usize, VecDeque<Event>>> = Mutex::new(BTreeMap::new());

interpose! {
    fn io_destroy(context: Context) -> c_int,
        if table::count() > 0 => { forget(context); Ok(None) };
    fn io_submit(context: Context, count: c_long, list: *mut *mut c_void) -> c_int,
        if table::count() > 0 => as_libaio(submit(context, count, list, &|count, list| {
            real::call!(io_submit(context: Context, count: c_long, list: *mut *mut c_void) -> c_int)
        }));
    fn io_getevents(context: Context, least: c_long, most: c_long, events: *mut c_void, timeout: *mut timespec) -> c_int,
        if has_done(context) => as_libaio(events_of(context, least, most, events, &|least, most, events| {
            real::call!(io_getevents(context: Context, least: c_long, most: c_long, events: *mut c_void, timeout: *mut timespec) -> c_int)
        }));
}

/// libaio gives errors as negative numbers and leaves errno alone.
fn as_libaio(answer: Answer<c_int>) -> Answer<c_int> {
    answer.or_else(|Errno(number)| Ok(Some(-number)))
}

pub(super) fn forget(context: Context) {
    DONE.lock().unwrap_or_else(PoisonError::into_inner).remove(&context.addr());
}

/// Whether anything was completed here for this context.
pub(super) fn has_done(context: Context) -> bool {
    let done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    done.get(&context.addr()).is_some_and(|events| !events.is_empty())
}

/// Does the requests on our descriptors and passes the others on one by one, in their order; how many were taken.
pub(super) fn submit(
    context: Context,
    count: c_long,
    list: *mut *mut c_void,
    real: &dyn Fn(c_long, *mut *mut c_void) -> c_int,
) -> Answer<c_int> {
    let count = usize::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
    for number in 0..count {
        // SAFETY: the program says that there are `count` of them.
        let place = unsafe { list.add(number) };
        // SAFETY: as above.
        let iocb = unsafe { load(place) }?;
        // SAFETY: each is a request.
        let request = unsafe { load(iocb.cast::<Iocb>()) }?;
        let taken = if is_ours(request.fd.cast_signed()) {
            complete(context, iocb, &request).map(|()| 1)
        } else {
            match real(1, place) {
                1 => Ok(1),
                other => Err(other),
            }
        };
        if let Err(error) = taken {
            return Ok(Some(if number > 0 { number as c_int } else { error }));
        }
    }
    Ok(Some(count as c_int))
}

/// Does one request. An error of the request itself (not of what it does) is given as a negative number.
fn complete(context: Context, iocb: *mut c_void, request: &Iocb) -> Result<(), c_int> {
    let result = match perform(request) {
        Ok(n) => n as i64,
        Err(Errno(libc::EBADF)) => return Err(-libc::EBADF),
        Err(Errno(libc::EINVAL)) if !matches!(request.opcode, PREAD | PWRITE | PREADV | PWRITEV) => {
            return Err(-libc::EINVAL);
        }
        Err(Errno(number)) => -i64::from(number),
    };
    let event = Event { data: request.data, obj: iocb.addr() as u64, res: result, res2: 0 };
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    done.entry(context.addr()).or_default().push_back(event);
    drop(done);
    if request.flags & FLAG_RESFD != 0 {
        let (fd, one, len) = (request.resfd.cast_signed(), 1_u64.to_ne_bytes(), 8);
        let from = one.as_ptr().cast::<c_void>();
        real::call!(write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t);
    }
    Ok(())
}

fn perform(request: &Iocb) -> Result<ssize_t, Errno> {
    let (fd, at) = (request.fd.cast_signed(), Some(request.offset as off_t));
    let memory = std::ptr::with_exposed_provenance::<c_void>(request.buf as usize);
    let len = request.nbytes as usize;
    let done = match request.opcode {
        // SAFETY: the program says that the request's buffer is one.
        PREAD => read_write::read_one(fd, unsafe { Buffer::new(memory, len) }?, at)?,
        // SAFETY: as above.
        PWRITE => write(fd, unsafe { Buffer::new(memory, len) }?, at, request.rw_flags)?,
        PREADV => {
            // SAFETY: as above, of a list of buffers.
            let bufs = unsafe { buffers(memory.cast::<iovec>(), len as c_int) }?;
            read_write::read_many(fd, bufs, at, request.rw_flags)?
        }
        PWRITEV => {
            // SAFETY: as above.
            let bufs = unsafe { buffers(memory.cast::<iovec>(), len as c_int) }?;
            read_write::write_many(fd, bufs, at, request.rw_flags)?
        }
        FSYNC | FDSYNC if request.buf == 0 && len == 0 && request.offset == 0 && request.rw_flags == 0 => {
            table::get(fd)?.sync(request.opcode == FDSYNC).map(|()| Some(0))?
        }
        _ => return Err(Errno(libc::EINVAL)),
    };
    Ok(done.unwrap_or(0))
}

fn write(fd: c_int, buf: Buffer, at: Option<off_t>, flags: c_int) -> Answer<ssize_t> {
    if flags == 0 {
        return read_write::write_one(fd, buf, at);
    }
    let one = buf.as_iovec();
    // SAFETY: one buffer, which was checked.
    read_write::write_many(fd, unsafe { buffers(&raw const one, 1) }?, at, flags)
}

/// What was completed here first; then, up to `least`, what the kernel has.
pub(super) fn events_of(
    context: Context,
    least: c_long,
    most: c_long,
    events: *mut c_void,
    real: &dyn Fn(c_long, c_long, *mut c_void) -> c_int,
) -> Answer<c_int> {
    let most_here = usize::try_from(most).map_err(|_| Errno(libc::EINVAL))?;
    let given: Vec<Event> = {
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = done.entry(context.addr()).or_default();
        let count = waiting.len().min(most_here);
        waiting.drain(..count).collect()
    };
    for (number, event) in given.iter().enumerate() {
        // SAFETY: the program says that there is room for `most` events.
        let place = unsafe { events.cast::<Event>().add(number) };
        // SAFETY: as above.
        unsafe { crate::user::store(place, *event) }?;
    }
    let here = given.len() as c_long;
    if here >= least {
        return Ok(Some(here as c_int));
    }
    // SAFETY: as above.
    let rest = unsafe { events.cast::<Event>().add(given.len()) };
    let more = real(least - here, most - here, rest.cast());
    Ok(Some(here as c_int + more.max(0)))
}

/// What the kernel gave, as libaio gives it.
pub(super) fn negative(answer: c_long) -> c_int {
    if answer < 0 { -crate::abi::errno() } else { answer as c_int }
}

/// What libaio gives, as the kernel gives it.
pub(super) fn with_errno(answer: Answer<c_int>) -> Answer<c_int> {
    match answer? {
        Some(number) if number < 0 => Err(Errno(-number)),
        answer => Ok(answer),
    }
}
