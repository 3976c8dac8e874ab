//! Directory streams and getdents64(2).
//!
//! A stream of ours starts with a number that is no descriptor, where the C library's own has its descriptor: so the two are told
//! apart without a look-up.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::mem::offset_of;
use std::ops::ControlFlow;

use libc::{AT_FDCWD, DIR, dirent, size_t, ssize_t};

use crate::abi::{Answer, Errno, interpose};
use crate::description::Description;
use crate::real;
use crate::table::{self, is_ours};
use crate::user::Buffer;
use crate::walk::Route;

/// What a stream of ours starts with.
const MARK: c_int = -0x0e47_0d14;

/// A directory stream.
#[repr(C)]
struct Stream {
    mark: c_int,
    fd: c_int,
    /// Entries read ahead, as getdents64 gives them.
    batch: Vec<u8>,
    /// Where the next one begins in `batch`.
    at: usize,
    /// The position after the last entry that was given out.
    position: u64,
    /// The entry that the program sees.
    entry: Entry,
}

/// A `struct dirent` with room for the longest name, aligned for it.
#[repr(C, align(8))]
struct Entry([u8; ENTRY_ROOM]);

const NAME: usize = offset_of!(dirent, d_name);
const ENTRY_ROOM: usize = size_of::<dirent>();
/// Bytes of entries read at once.
const BATCH: usize = 32 << 10;

interpose! {
    fn opendir(path: *const c_char) -> *mut DIR,
        at route = AT_FDCWD, path => open_stream(&mut route);
    fn fdopendir(fd: c_int) -> *mut DIR,
        if is_ours(fd) => stream_of(fd).map(Some);
    fn closedir(dir: *mut DIR) -> c_int,
        if is_stream(dir) => close_stream(dir).map(Some);
    fn readdir[readdir64](dir: *mut DIR) -> *mut dirent,
        if is_stream(dir) => next(dir);
    fn readdir_r[readdir64_r](dir: *mut DIR, entry: *mut dirent, result: *mut *mut dirent) -> c_int,
        if is_stream(dir) => next_into(dir, entry, result);
    fn telldir(dir: *mut DIR) -> c_long,
        if is_stream(dir) => Ok(Some(stream(dir).position as c_long));
    fn dirfd(dir: *mut DIR) -> c_int,
        if is_stream(dir) => Ok(Some(stream(dir).fd));
    fn getdents64(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t,
        if is_ours(fd) => entries(fd, buf, len);
}

/// These give nothing back.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_rewinddir"))]
unsafe extern "C" fn rewinddir(dir: *mut DIR) {
    if is_stream(dir) {
        return go_to(dir, extant::START);
    }
    real::call!(rewinddir(dir: *mut DIR) -> ());
}

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_seekdir"))]
unsafe extern "C" fn seekdir(dir: *mut DIR, position: c_long) {
    if is_stream(dir) {
        return go_to(dir, position as u64);
    }
    real::call!(seekdir(dir: *mut DIR, position: c_long) -> ());
}

fn is_stream(dir: *mut DIR) -> bool {
    // SAFETY: not null means a stream: the C library's, which starts with its descriptor, or ours.
    !dir.is_null() && unsafe { dir.cast::<c_int>().read() } == MARK
}

fn stream<'a>(dir: *mut DIR) -> &'a mut Stream {
    // SAFETY: `is_stream` said so, and a program does not use one stream from two threads at once.
    unsafe { &mut *dir.cast::<Stream>() }
}

fn open_stream(route: &mut Route) -> Answer<*mut DIR> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let Some(fd) = super::open::open_at(route, flags, 0)? else { return Ok(None) };
    stream_of(fd).map(Some)
}

fn stream_of(fd: c_int) -> Result<*mut DIR, Errno> {
    let what = table::get(fd)?;
    what.check_open()?;
    if !what.inode().is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    let position = *what.position();
    let entry = Entry([0; ENTRY_ROOM]);
    let stream = Stream { mark: MARK, fd, batch: Vec::new(), at: 0, position, entry };
    Ok(Box::into_raw(Box::new(stream)).cast())
}

fn close_stream(dir: *mut DIR) -> Result<c_int, Errno> {
    let fd = stream(dir).fd;
    // SAFETY: made by `stream_of`, and the program gives it up.
    drop(unsafe { Box::from_raw(dir.cast::<Stream>()) });
    super::open::close_ours(fd)
}

fn go_to(dir: *mut DIR, position: u64) {
    let stream = stream(dir);
    stream.batch.clear();
    stream.at = 0;
    stream.position = position;
    if let Ok(what) = table::get(stream.fd) {
        *what.position() = position;
    }
}

impl Stream {
    /// The next entry as getdents64 has it: its whole record.
    fn next(&mut self) -> Result<Option<&[u8]>, Errno> {
        if self.at >= self.batch.len() {
            let what = table::get(self.fd)?;
            self.batch.resize(BATCH, 0);
            self.at = 0;
            let listed = {
                let mut position = what.position();
                let listed = list(&what, *position, &mut self.batch);
                if let Ok(Listed { next, .. }) = listed {
                    *position = next;
                }
                listed
            };
            self.batch.truncate(listed.as_ref().map_or(0, |listed| listed.len));
            if listed?.len == 0 {
                return Ok(None);
            }
        }
        let record_bytes = &self.batch[self.at..];
        let (len, next) = record(record_bytes);
        self.at += len;
        self.position = next;
        Ok(Some(&record_bytes[..len]))
    }
}

fn next(dir: *mut DIR) -> Answer<*mut dirent> {
    let stream = stream(dir);
    let Some(record) = stream.next()? else { return Ok(Some(std::ptr::null_mut())) };
    let len = record.len();
    let record: [u8; ENTRY_ROOM] = std::array::from_fn(|at| if at < len { record[at] } else { 0 });
    stream.entry = Entry(record);
    Ok(Some((&raw mut stream.entry).cast()))
}

/// readdir_r(3) gives the error number back.
fn next_into(dir: *mut DIR, entry: *mut dirent, result: *mut *mut dirent) -> Answer<c_int> {
    let found = match stream(dir).next() {
        Ok(found) => found,
        Err(Errno(number)) => return Ok(Some(number)),
    };
    let given = match found {
        None => std::ptr::null_mut(),
        Some(record) => {
            // SAFETY: the program says that there is room for a `struct dirent`, and no record is longer.
            unsafe { Buffer::new(entry.cast(), record.len()) }?.copy_from(0, record);
            entry
        }
    };
    // SAFETY: the program says that it is a place for a pointer.
    unsafe { crate::user::store(result, given) }?;
    Ok(Some(0))
}

const RECLEN: usize = offset_of!(dirent, d_reclen);
const TYPE: usize = offset_of!(dirent, d_type);

pub(super) fn entries(fd: c_int, buf: *mut c_void, len: size_t) -> Answer<ssize_t> {
    let what = table::get(fd)?;
    // SAFETY: the program says that `buf` has room for `len` bytes.
    let buf = unsafe { Buffer::new(buf, len) }?;
    let mut position = what.position();
    // Where each record ends, and where the listing goes on after it.
    let mut records = Vec::new();
    let given = buf.fill(|bytes| {
        let listed = list(&what, *position, bytes)?;
        let mut at = 0;
        while at < listed.len {
            let (len, next) = record(&bytes[at..]);
            at += len;
            records.push((at, next));
        }
        Ok(listed.len)
    })?;
    // Whole records: of one that was cut short by a page that could not be had the program knows nothing.
    match records.iter().rev().find(|(end, _)| *end <= given) {
        Some(&(end, next)) => {
            *position = next;
            Ok(Some(end as ssize_t))
        }
        None if records.is_empty() => Ok(Some(0)),
        None => Err(Errno(libc::EFAULT)),
    }
}

/// The length of the record at the start of some bytes, and where the listing goes on after it.
fn record(bytes: &[u8]) -> (usize, u64) {
    let mut next = [0; 8];
    next.copy_from_slice(&bytes[8..16]);
    (usize::from(u16::from_ne_bytes([bytes[RECLEN], bytes[RECLEN + 1]])), u64::from_ne_bytes(next))
}

/// What [`list`] has found.
struct Listed {
    /// Bytes of whole records.
    len: usize,
    /// Where the listing goes on.
    next: u64,
}

/// Fills `out` with entries from a position on, as getdents64 gives them; nothing at the end.
fn list(what: &Description, from: u64, out: &mut [u8]) -> Result<Listed, Errno> {
    what.check_open()?;
    if !what.inode().is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    let (mut at, mut next, mut cut) = (0, from, false);
    what.fs().read_dir(what.inode(), from, what.credentials(), &mut |entry| {
        let len = (NAME + entry.name.len() + 1).next_multiple_of(8);
        let Some(record) = out.get_mut(at..at + len) else {
            cut = true;
            return ControlFlow::Break(());
        };
        record.fill(0);
        record[..8].copy_from_slice(&u64::from(entry.ino.0).to_ne_bytes());
        record[8..16].copy_from_slice(&entry.next.to_ne_bytes());
        record[RECLEN..RECLEN + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        record[TYPE] = entry.kind.map_or(libc::DT_UNKNOWN, |kind| (kind.mode_bits() >> 12) as u8);
        record[NAME..NAME + entry.name.len()].copy_from_slice(entry.name);
        at += len;
        next = entry.next;
        ControlFlow::Continue(())
    })?;
    if cut && at == 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(Listed { len: at, next })
}

type Filter = unsafe extern "C" fn(*const dirent) -> c_int;
type Order = unsafe extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int;

interpose! {
    fn scandir[scandir64](path: *const c_char, list: *mut *mut *mut dirent, filter: Option<Filter>, order: Option<Order>) -> c_int,
        at route = AT_FDCWD, path => scan(&mut route, list, filter, order);
    fn scandirat[scandirat64](dirfd: c_int, path: *const c_char, list: *mut *mut *mut dirent, filter: Option<Filter>, order: Option<Order>) -> c_int,
        at route = dirfd, path => scan(&mut route, list, filter, order);
}

fn scan(
    route: &mut Route,
    out: *mut *mut *mut dirent,
    filter: Option<Filter>,
    order: Option<Order>,
) -> Answer<c_int> {
    let Some(dir) = open_stream(route)? else { return Ok(None) };
    let mut found: Vec<*mut dirent> = Vec::new();
    let done = collect(dir, filter, &mut found);
    close_stream(dir)?;
    if let Err(errno) = done {
        for one in found {
            // SAFETY: from malloc, and given to nobody.
            unsafe { libc::free(one.cast()) };
        }
        return Err(errno);
    }
    if let Some(order) = order {
        found.sort_by(|a, b| {
            let (mut a, mut b) = (a.cast_const(), b.cast_const());
            // SAFETY: the program's own function, on entries as it expects them.
            unsafe { order(&raw mut a, &raw mut b) }.cmp(&0)
        });
    }
    let count = found.len();
    // SAFETY: any size will do.
    let list = unsafe { libc::malloc((count * size_of::<*mut dirent>()).max(1)) }.cast::<*mut dirent>();
    if list.is_null() {
        return Err(Errno(libc::ENOMEM));
    }
    // SAFETY: room for as many was just allocated.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), list, count) };
    // SAFETY: the program says that it is a place for a pointer.
    unsafe { crate::user::store(out, list) }?;
    Ok(Some(c_int::try_from(count).map_err(|_| Errno(libc::EOVERFLOW))?))
}

fn collect(dir: *mut DIR, filter: Option<Filter>, found: &mut Vec<*mut dirent>) -> Result<(), Errno> {
    while let Some(entry) = next(dir)?.filter(|entry| !entry.is_null()) {
        // SAFETY: the program's own function, on an entry as it expects it.
        if filter.is_some_and(|filter| unsafe { filter(entry) } == 0) {
            continue;
        }
        // SAFETY: any size will do.
        let copy = unsafe { libc::malloc(ENTRY_ROOM) };
        if copy.is_null() {
            return Err(Errno(libc::ENOMEM));
        }
        // SAFETY: both have that size.
        unsafe { std::ptr::copy_nonoverlapping(entry.cast::<u8>(), copy.cast(), ENTRY_ROOM) };
        found.push(copy.cast());
    }
    Ok(())
}
