//! Opening and closing.

use std::ffi::{CStr, c_char, c_uint};
use std::sync::Arc;

use extant::{Access, Error, FileType, NewInode, SetAttr, SetTime};
use libc::{AT_FDCWD, c_int, mode_t};

use crate::abi::{Answer, Errno, interpose, is_inside, serve};
use crate::description::Description;
use crate::table::{self, is_ours};
use crate::walk::{self, FOLLOW, NO_FOLLOW, Place, Route, resolve};
use crate::{config, mount, real};

interpose! {
    fn open[open64](path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => open_at(&mut route, flags, mode);
    fn __open_2[__open64_2](path: *const c_char, flags: c_int) -> c_int,
        at route = AT_FDCWD, path => open_at(&mut route, flags, 0);
    fn openat[openat64](dirfd: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        at route = dirfd, path => open_at(&mut route, flags, mode);
    fn __openat_2[__openat64_2](dirfd: c_int, path: *const c_char, flags: c_int) -> c_int,
        at route = dirfd, path => open_at(&mut route, flags, 0);
    fn creat[creat64](path: *const c_char, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => open_at(&mut route, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode);
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int,
        if config::config().is_some() => close_many(first, last, flags);
}

/// The library's own descriptors are closed by the library alone.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_close"))]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    if is_inside() {
        table::forget_own(fd);
    } else if is_ours(fd) || table::is_own(fd) {
        let closed = || if is_ours(fd) { close_ours(fd).map(Some) } else { Err(Errno(libc::EBADF)) };
        if let Some(answer) = serve::<c_int>(closed) {
            return answer;
        }
    }
    real::call!(close(fd: c_int) -> c_int)
}

/// It gives nothing back, so it is none of those above.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_closefrom"))]
unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: which descriptors are closed is the program's to know.
    unsafe { close_range(first.max(0).unsigned_abs(), c_uint::MAX, 0) };
}

const CLOSE_RANGE_CLOEXEC: c_int = 4;

/// Closes what is the program's in a range.
pub(super) fn close_many(first: c_uint, last: c_uint, flags: c_int) -> Answer<c_int> {
    // The library's own are marked so already.
    if flags & CLOSE_RANGE_CLOEXEC != 0 || first > last {
        return Ok(None);
    }
    for fd in table::ours_between(first, last) {
        drop(table::remove(fd));
    }
    let mut from = first;
    for own in table::own_between(first, last) {
        if from < own {
            close_between(from, own - 1, flags)?;
        }
        from = own + 1;
    }
    if from <= last {
        close_between(from, last, flags)?;
    }
    Ok(Some(0))
}

fn close_between(first: c_uint, last: c_uint, flags: c_int) -> Result<(), Errno> {
    let done = real::call!(close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int);
    if done < 0 { Err(Errno(crate::abi::errno())) } else { Ok(()) }
}

pub(crate) fn close_ours(fd: c_int) -> Result<c_int, Errno> {
    // First here: once the kernel has closed it, its number may be another thread's at once.
    let old = table::remove(fd);
    super::locks::closed(old.as_deref());
    let done = real::call!(close(fd: c_int) -> c_int);
    drop(old);
    if done == 0 { Ok(0) } else { Err(Errno(crate::abi::errno())) }
}

/// A descriptor that every system call but ours refuses.
pub(crate) fn placeholder(cloexec: bool) -> Result<c_int, Errno> {
    const NOTHING: &CStr = c"/dev/null";
    // O_ACCMODE is neither for reading nor for writing (open(2)).
    let flags = libc::O_ACCMODE | if cloexec { libc::O_CLOEXEC } else { 0 };
    let (path, mode) = (NOTHING.as_ptr(), 0);
    let fd = real::call!(open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int);
    if fd < 0 { Err(Errno(crate::abi::errno())) } else { Ok(fd) }
}

/// A new descriptor for `description`.
pub(crate) fn install(description: Description, cloexec: bool) -> Result<c_int, Errno> {
    let description = Arc::new(description);
    let fd = placeholder(cloexec)?;
    match table::set(fd, description) {
        Ok(old) => {
            drop(old);
            Ok(fd)
        }
        Err(errno) => {
            real::call!(close(fd: c_int) -> c_int);
            Err(errno)
        }
    }
}

pub(super) fn open_at(route: &mut Route, flags: c_int, mode: mode_t) -> Answer<c_int> {
    if let Some(fd) = own_descriptor(route)? {
        return reopen(fd, flags).map(Some);
    }
    let Some(description) = open_description(route, flags, mode)? else { return Ok(None) };
    install(description, flags & libc::O_CLOEXEC != 0).map(Some)
}

/// The descriptor of ours that `/dev/fd/N` and the like name: the kernel would open the placeholder again.
fn own_descriptor(route: &Route) -> Answer<c_int> {
    if route.path().is_null() || table::count() == 0 {
        return Ok(None);
    }
    Ok(descriptor_of_path(route.text()?).filter(|fd| table::is_ours(*fd)))
}

pub(crate) fn descriptor_of_path(path: &[u8]) -> Option<c_int> {
    let number = match path {
        b"/dev/stdin" => return Some(0),
        b"/dev/stdout" => return Some(1),
        b"/dev/stderr" => return Some(2),
        path => path.strip_prefix(b"/dev/fd/").or_else(|| path.strip_prefix(b"/proc/self/fd/"))?,
    };
    std::str::from_utf8(number).ok()?.parse().ok()
}

fn reopen(fd: c_int, flags: c_int) -> Result<c_int, Errno> {
    let old = table::get(fd)?;
    let cred = mount::credentials(false);
    check_existing(old.fs(), old.inode(), flags, &cred)?;
    let new = Description::new(old.fs(), old.inode().clone(), flags, cred)?;
    truncate_if_asked(&new, flags)?;
    install(new, flags & libc::O_CLOEXEC != 0)
}

/// What the open would be, without a descriptor.
fn open_description(route: &mut Route, flags: c_int, mode: mode_t) -> Answer<Description> {
    // Of all other flags O_PATH leaves two.
    let flags = if flags & libc::O_PATH != 0 {
        flags & (libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY | libc::O_NOFOLLOW)
    } else {
        flags
    };
    if flags & libc::O_CREAT != 0
        && flags & libc::O_DIRECTORY != 0
        && flags & libc::O_TMPFILE != libc::O_TMPFILE
    {
        return if walk::is_inside(route) { Err(Errno(libc::EINVAL)) } else { Ok(None) };
    }
    let exclusive = flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0;
    let follow = flags & libc::O_NOFOLLOW == 0 && !exclusive;
    loop {
        let Some(place) = resolve(route, if follow { FOLLOW } else { NO_FOLLOW })? else { return Ok(None) };
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            return temporary(&place, flags, mode).map(Some);
        }
        if flags & libc::O_CREAT != 0 && route.text()?.ends_with(b"/") {
            return Err(Errno(libc::EISDIR));
        }
        if !place.exists() && flags & libc::O_CREAT != 0 {
            match create(&place, flags, mode) {
                // Somebody else made it meanwhile.
                Err(Errno(libc::EEXIST)) if !exclusive => continue,
                done => return done.map(Some),
            }
        }
        if exclusive {
            place.inode()?;
            return Err(Errno(libc::EEXIST));
        }
        return open_existing(&place, flags).map(Some);
    }
}

fn create(place: &Place, flags: c_int, mode: mode_t) -> Result<Description, Errno> {
    let new = NewInode::file((mode & 0o7777) as u16);
    let inode = place.fs.mknod(&place.dir, place.new_name()?, &new, &place.cred)?;
    // Who makes a file may use it as it asked, whatever its permissions are.
    Description::new(&place.fs, inode, flags, place.cred.clone())
}

fn temporary(place: &Place, flags: c_int, mode: mode_t) -> Result<Description, Errno> {
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno(libc::EINVAL));
    }
    let inode = place.fs.tmpfile(place.inode()?, (mode & 0o7777) as u16, &place.cred)?;
    Description::new(&place.fs, inode, flags & !libc::O_TMPFILE, place.cred.clone())
}

fn open_existing(place: &Place, flags: c_int) -> Result<Description, Errno> {
    let inode = place.inode()?;
    if inode.is_dir() && flags & libc::O_CREAT != 0 {
        return Err(Errno(libc::EISDIR));
    }
    check_existing(&place.fs, inode, flags, &place.cred)?;
    let description = Description::new(&place.fs, inode.clone(), flags, place.cred.clone())?;
    truncate_if_asked(&description, flags)?;
    Ok(description)
}

/// Whether the caller may open `inode` so.
fn check_existing(
    fs: &extant::Filesystem,
    inode: &extant::InodeRef,
    flags: c_int,
    cred: &extant::Credentials,
) -> Result<(), Errno> {
    if flags & libc::O_DIRECTORY != 0 && !inode.is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    if inode.kind() == FileType::Symlink {
        return Err(Errno(libc::ELOOP));
    }
    let access = flags & libc::O_ACCMODE;
    let write = access != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
    if inode.is_dir() && write {
        return Err(Errno(libc::EISDIR));
    }
    let want = match (access, write) {
        (libc::O_WRONLY, _) => Access::WRITE,
        (_, true) => Access::READ_WRITE,
        (_, false) => Access::READ,
    };
    fs.access(inode, want, cred)?;
    if inode.is_dir() && flags & libc::O_DIRECT != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if flags & libc::O_NOATIME != 0 && !cred.owns(inode.attr().uid) {
        return Err(Errno(libc::EPERM));
    }
    Ok(())
}

fn truncate_if_asked(description: &Description, flags: c_int) -> Result<(), Errno> {
    if flags & libc::O_TRUNC == 0 || description.is_path_only() {
        return Ok(());
    }
    let Ok(file) = description.file() else { return Ok(()) };
    if file.mode().write {
        file.set_len(0)?;
        return Ok(());
    }
    // O_RDONLY with O_TRUNC: unspecified by POSIX; Linux cuts.
    let change = SetAttr { size: Some(0), mtime: Some(SetTime::Now), ..SetAttr::default() };
    match description.fs().set_attr(description.inode(), &change, description.credentials()) {
        Ok(_) => Ok(()),
        Err(Error::Invalid(_)) => Err(Errno(libc::EINVAL)),
        Err(error) => Err(error.into()),
    }
}

interpose! {
    fn mkstemp[mkstemp64](path: *mut c_char) -> c_int,
        if is_template(path) => make_temporary(path, 0, 0);
    fn mkostemp[mkostemp64](path: *mut c_char, flags: c_int) -> c_int,
        if is_template(path) => make_temporary(path, 0, flags);
    fn mkstemps[mkstemps64](path: *mut c_char, suffix: c_int) -> c_int,
        if is_template(path) => make_temporary(path, suffix, 0);
    fn mkostemps[mkostemps64](path: *mut c_char, suffix: c_int, flags: c_int) -> c_int,
        if is_template(path) => make_temporary(path, suffix, flags);
    fn mkdtemp(path: *mut c_char) -> *mut c_char,
        if is_template(path) => make_temporary_dir(path);
}

/// Whether a template is to be looked at here at all.
fn is_template(path: *const c_char) -> bool {
    !path.is_null() && config::config().is_some()
}

/// Names tried before giving up, as the C library's `TMP_MAX`.
const TRIES: u32 = 238_328;

/// Fills the six letters before the last `suffix` ones of a template until `make` does not say EEXIST; `None` where the first
/// attempt says that the path is not ours.
fn with_template<T>(
    path: *mut c_char,
    suffix: c_int,
    mut make: impl FnMut(&mut Route) -> Answer<T>,
) -> Answer<T> {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut probe = Route::new(AT_FDCWD, path);
    if resolve(&mut probe, NO_FOLLOW)?.is_none() {
        return Ok(None);
    }
    let text = probe.text()?;
    let end = usize::try_from(suffix).ok().and_then(|s| text.len().checked_sub(s));
    let Some(start) = end.and_then(|end| end.checked_sub(6)) else { return Err(Errno(libc::EINVAL)) };
    if &text[start..start + 6] != b"XXXXXX" {
        return Err(Errno(libc::EINVAL));
    }
    for _ in 0..TRIES {
        let mut random = [0_u8; 6];
        // SAFETY: the buffer and its length belong together.
        unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
        let letters = random.map(|byte| LETTERS[usize::from(byte) % LETTERS.len()]);
        // SAFETY: the six letters were found in the program's string, which it gave to be changed.
        let place = unsafe { path.add(start) };
        // SAFETY: as above.
        unsafe { place.cast::<[u8; 6]>().write_unaligned(letters) };
        match make(&mut Route::new(AT_FDCWD, path)) {
            Err(Errno(libc::EEXIST)) => {}
            done => return done,
        }
    }
    Err(Errno(libc::EEXIST))
}

fn make_temporary(path: *mut c_char, suffix: c_int, flags: c_int) -> Answer<c_int> {
    let flags = flags & !libc::O_ACCMODE | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    with_template(path, suffix, |route| open_at(route, flags, 0o600))
}

fn make_temporary_dir(path: *mut c_char) -> Answer<*mut c_char> {
    with_template(path, 0, |route| Ok(super::names::make_dir(route, 0o700)?.map(|_| path)))
}
