//! Streams of the C library over our files.
//!
//! The C library reads and writes its streams by system calls of its own, which nothing can stand in front of. So a stream of ours
//! is made with fopencookie(3), over functions that come here, and is given its descriptor for fileno(3).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{AT_FDCWD, FILE, off64_t, size_t, ssize_t};

use crate::abi::{Answer, Errno, interpose, serve};
use crate::real;
use crate::table::{self, is_ours};
use crate::user::{Buffer, string};
use crate::walk::Route;

interpose! {
    fn fopen[fopen64](path: *const c_char, mode: *const c_char) -> *mut FILE,
        at route = AT_FDCWD, path => open_stream(&mut route, mode);
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE,
        if is_ours(fd) => {
            // SAFETY: the program says that it is a C string.
            let mode = Mode::parse(unsafe { string(mode) }?)?;
            over(fd, &mode).map(Some)
        };
}

/// freopen(3) puts another file in the place of a stream's, which may be one of the three that every program has.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_freopen"))]
unsafe extern "C" fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
    let mut route = Route::new(AT_FDCWD, path);
    if let Some(answer) = serve::<*mut FILE>(|| reopen(&mut route, mode, stream)) {
        return answer;
    }
    let path = route.path();
    real::call!(freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_freopen64"))]
unsafe extern "C" fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
    // SAFETY: the same function under another name.
    unsafe { freopen(path, mode, stream) }
}

/// What fopen(3)'s mode says.
struct Mode {
    flags: c_int,
    /// For fopencookie, which knows the plain modes.
    plain: &'static CStr,
}

impl Mode {
    fn parse(text: &[u8]) -> Result<Self, Errno> {
        let (first, rest) = text.split_first().ok_or(Errno(libc::EINVAL))?;
        // What follows a comma names a character set; such a stream would be the C library's to convert.
        let rest = rest.split(|b| *b == b',').next().unwrap_or_default();
        let both = rest.contains(&b'+');
        let access = match (first, both) {
            (_, true) => libc::O_RDWR,
            (b'r', false) => libc::O_RDONLY,
            (_, false) => libc::O_WRONLY,
        };
        let (making, plain) = match (first, both) {
            (b'r', false) => (0, c"r"),
            (b'r', true) => (0, c"r+"),
            (b'w', false) => (libc::O_CREAT | libc::O_TRUNC, c"w"),
            (b'w', true) => (libc::O_CREAT | libc::O_TRUNC, c"w+"),
            (b'a', false) => (libc::O_CREAT | libc::O_APPEND, c"a"),
            (b'a', true) => (libc::O_CREAT | libc::O_APPEND, c"a+"),
            _ => return Err(Errno(libc::EINVAL)),
        };
        let extra = |letter, flag| if rest.contains(&letter) { flag } else { 0 };
        let flags = access | making | extra(b'x', libc::O_EXCL) | extra(b'e', libc::O_CLOEXEC);
        Ok(Self { flags, plain })
    }
}

fn open_stream(route: &mut Route, mode: *const c_char) -> Answer<*mut FILE> {
    // SAFETY: the program says that it is a C string.
    let mode = Mode::parse(unsafe { string(mode) }?)?;
    let Some(fd) = super::open::open_at(route, mode.flags, 0o666)? else { return Ok(None) };
    over(fd, &mode).map(Some).inspect_err(|_| {
        let _ = super::open::close_ours(fd);
    })
}

/// A stream over a descriptor of ours.
fn over(fd: c_int, mode: &Mode) -> Result<*mut FILE, Errno> {
    let what = table::get(fd)?;
    if mode.flags & libc::O_APPEND != 0 {
        what.set_flags(what.flags() | libc::O_APPEND);
    }
    let stream = cookie(fd, mode.plain, Some(cookie_close))?;
    name_descriptor(stream, fd);
    Ok(stream)
}

type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// `cookie_io_functions_t` of fopencookie(3).
#[repr(C)]
#[derive(Clone, Copy)]
struct Functions {
    read: unsafe extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: unsafe extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: unsafe extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: Option<Close>,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut FILE;
}

fn cookie(fd: c_int, mode: &CStr, close: Option<Close>) -> Result<*mut FILE, Errno> {
    let functions = Functions { read: cookie_read, write: cookie_write, seek: cookie_seek, close };
    let cookie = std::ptr::without_provenance_mut(fd as usize);
    // SAFETY: the cookie is a number that our functions understand, the mode a C string.
    let stream = unsafe { fopencookie(cookie, mode.as_ptr(), functions) };
    if stream.is_null() { Err(Errno(crate::abi::errno())) } else { Ok(stream) }
}

/// Byte of the descriptor in a `FILE`: part of the C library's ABI, since programs once looked there themselves.
const FILENO: usize = 112;

/// Makes fileno(3) of a stream answer `fd`. The stream still goes through its cookie.
fn name_descriptor(stream: *mut FILE, fd: c_int) {
    // SAFETY: a `FILE` of the C library's is larger than that.
    let place = unsafe { stream.cast::<u8>().add(FILENO) };
    // SAFETY: an aligned integer of it, which nothing but fileno looks at in a stream over a cookie.
    unsafe { place.cast::<c_int>().write(fd) };
}

fn descriptor(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

/// The C library calls these while the program is in a call of its own.
unsafe extern "C" fn cookie_read(cookie: *mut c_void, buf: *mut c_char, len: size_t) -> ssize_t {
    let fd = descriptor(cookie);
    serve(|| {
        // SAFETY: the C library says that `buf` has room for `len` bytes.
        super::read_write::read_one(fd, unsafe { Buffer::new(buf.cast(), len) }?, None)
    })
    .unwrap_or(-1)
}

/// Unlike write(2), 0 says that it failed.
unsafe extern "C" fn cookie_write(cookie: *mut c_void, buf: *const c_char, len: size_t) -> ssize_t {
    let fd = descriptor(cookie);
    let written = serve(|| {
        // SAFETY: the C library says that `buf` has `len` bytes.
        super::read_write::write_one(fd, unsafe { Buffer::new(buf.cast(), len) }?, None)
    });
    written.unwrap_or(0).max(0)
}

unsafe extern "C" fn cookie_seek(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    let fd = descriptor(cookie);
    serve(|| {
        // SAFETY: the C library says that it is an offset.
        let by = unsafe { crate::user::load(offset) }?;
        let Some(to) = super::read_write::seek(fd, by, whence)? else { return Err(Errno(libc::EBADF)) };
        // SAFETY: as above.
        unsafe { crate::user::store(offset, to) }?;
        Ok(Some(0))
    })
    .unwrap_or(-1)
}

unsafe extern "C" fn cookie_close(cookie: *mut c_void) -> c_int {
    let fd = descriptor(cookie);
    serve(|| super::open::close_ours(fd).map(Some)).unwrap_or(-1)
}

unsafe extern "C" {
    static mut stdin: *mut FILE;
    static mut stdout: *mut FILE;
    static mut stderr: *mut FILE;
}

/// One of the three streams that every program has: the program's variable.
fn standard(fd: c_int) -> Option<*mut *mut FILE> {
    match fd {
        0 => Some(&raw mut stdin),
        1 => Some(&raw mut stdout),
        2 => Some(&raw mut stderr),
        _ => None,
    }
}

/// The C library's own three streams, while ones of ours are in their place.
static KEPT: [AtomicPtr<FILE>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];

/// Descriptor `fd` was made to stand for another file. If it is one of the standard three, its stream follows.
pub(super) fn redirected(fd: c_int) {
    let Some(variable) = standard(fd) else { return };
    let kept = &KEPT[fd as usize];
    let is_kept = !kept.load(Ordering::Relaxed).is_null();
    match (is_ours(fd), is_kept) {
        (true, false) => {
            let mode = if fd == 0 { c"r" } else { c"w" };
            // It does not own the descriptor, which the program closes by its number.
            let Ok(ours) = cookie(fd, mode, None) else { return };
            name_descriptor(ours, fd);
            if fd == 2 {
                // SAFETY: a new stream; standard error is not buffered.
                unsafe { libc::setvbuf(ours, std::ptr::null_mut(), libc::_IONBF, 0) };
            }
            // SAFETY: the C library's variable, which programs may change.
            let before = unsafe { variable.replace(ours) };
            kept.store(before, Ordering::Relaxed);
        }
        (false, true) => {
            // SAFETY: as above.
            let ours = unsafe { variable.replace(kept.swap(std::ptr::null_mut(), Ordering::Relaxed)) };
            // SAFETY: it was made above, and is the program's no more. What it held cannot be written: its file is gone.
            unsafe { libc::fclose(ours) };
        }
        _ => {}
    }
}

fn reopen(route: &mut Route, mode: *const c_char, stream: *mut FILE) -> Answer<*mut FILE> {
    // SAFETY: the program says that it is an open stream.
    let fd = unsafe { libc::fileno(stream) };
    if route.path().is_null() {
        // The same file in another mode: of ours, not served.
        return if is_ours(fd) { Err(Errno(libc::EBADF)) } else { Ok(None) };
    }
    // SAFETY: the program says that it is a C string.
    let mode = Mode::parse(unsafe { string(mode) }?)?;
    let Some(new) = super::open::open_at(route, mode.flags, 0o666)? else {
        return if is_ours(fd) { back_outside(route, &mode, stream, fd) } else { Ok(None) };
    };
    // SAFETY: as above.
    unsafe { libc::fflush(stream) };
    if fd < 0 || (!is_ours(fd) && standard(fd).is_none()) {
        super::open::close_ours(new)?;
        // A stream of the C library's cannot become one over a cookie.
        return Err(Errno(libc::EOPNOTSUPP));
    }
    put_in_place(new, fd)?;
    Ok(Some(current(fd, stream)))
}

/// A stream of ours that is to be a file outside of the image.
fn back_outside(route: &Route, mode: &Mode, stream: *mut FILE, fd: c_int) -> Answer<*mut FILE> {
    let (path, flags, permissions) = (route.path(), mode.flags, 0o666);
    let new = real::call!(open(path: *const c_char, flags: c_int, permissions: libc::mode_t) -> c_int);
    if new < 0 {
        return Err(Errno(crate::abi::errno()));
    }
    if standard(fd).is_none() {
        real::call!(close(new: c_int) -> c_int);
        return Err(Errno(libc::EOPNOTSUPP));
    }
    // SAFETY: the program says that it is an open stream.
    unsafe { libc::fflush(stream) };
    put_in_place(new, fd)?;
    Ok(Some(current(fd, stream)))
}

/// Moves descriptor `new` to the number `fd`.
fn put_in_place(new: c_int, fd: c_int) -> Result<(), Errno> {
    super::descriptors::onto(new, fd, |new, fd| real::call!(dup2(new: c_int, fd: c_int) -> c_int))?;
    if is_ours(new) {
        super::open::close_ours(new)?;
    } else {
        real::call!(close(new: c_int) -> c_int);
    }
    Ok(())
}

/// The stream that stands for `fd` now.
fn current(fd: c_int, otherwise: *mut FILE) -> *mut FILE {
    match standard(fd) {
        // SAFETY: the C library's variable.
        Some(variable) => unsafe { variable.read() },
        None => otherwise,
    }
}
