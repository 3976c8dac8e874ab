//! Extended attributes.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use extant::{Credentials, Filesystem, InodeRef, XattrSet};
use libc::{AT_FDCWD, c_int, size_t, ssize_t};

use crate::abi::{Answer, Errno, interpose};
use crate::table::{self, is_ours};
use crate::user::{Buffer, copy_value, string};
use crate::walk::{FOLLOW, NO_FOLLOW, Route, Walking};
use crate::{calls::attributes::inode_at, mount};

interpose! {
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, len: size_t) -> ssize_t,
        at route = AT_FDCWD, path => with(&mut route, FOLLOW, |file| get(file, name, value, len));
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, len: size_t) -> ssize_t,
        at route = AT_FDCWD, path => with(&mut route, NO_FOLLOW, |file| get(file, name, value, len));
    fn fgetxattr(fd: c_int, name: *const c_char, value: *mut c_void, len: size_t) -> ssize_t,
        if is_ours(fd) => get(&of(fd)?, name, value, len).map(Some);
    fn listxattr(path: *const c_char, list: *mut c_char, len: size_t) -> ssize_t,
        at route = AT_FDCWD, path => with(&mut route, FOLLOW, |file| all(file, list, len));
    fn llistxattr(path: *const c_char, list: *mut c_char, len: size_t) -> ssize_t,
        at route = AT_FDCWD, path => with(&mut route, NO_FOLLOW, |file| all(file, list, len));
    fn flistxattr(fd: c_int, list: *mut c_char, len: size_t) -> ssize_t,
        if is_ours(fd) => all(&of(fd)?, list, len).map(Some);
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int,
        at route = AT_FDCWD, path => with(&mut route, FOLLOW, |file| set(file, name, value, len, flags));
    fn lsetxattr(path: *const c_char, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int,
        at route = AT_FDCWD, path => with(&mut route, NO_FOLLOW, |file| set(file, name, value, len, flags));
    fn fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, len: size_t, flags: c_int) -> c_int,
        if is_ours(fd) => set(&of(fd)?, name, value, len, flags).map(Some);
    fn removexattr(path: *const c_char, name: *const c_char) -> c_int,
        at route = AT_FDCWD, path => with(&mut route, FOLLOW, |file| remove(file, name));
    fn lremovexattr(path: *const c_char, name: *const c_char) -> c_int,
        at route = AT_FDCWD, path => with(&mut route, NO_FOLLOW, |file| remove(file, name));
    fn fremovexattr(fd: c_int, name: *const c_char) -> c_int,
        if is_ours(fd) => remove(&of(fd)?, name).map(Some);
}

type File = (Arc<Filesystem>, InodeRef, Credentials);

fn with<T>(route: &mut Route, how: Walking, f: impl FnOnce(&File) -> Result<T, Errno>) -> Answer<T> {
    inode_at(route, 0, how)?.map(|file| f(&file)).transpose()
}

fn of(fd: c_int) -> Result<File, Errno> {
    let what = table::get(fd)?;
    what.check_open()?;
    Ok((Arc::clone(what.fs()), what.inode().clone(), mount::credentials(false)))
}

/// An attribute's name: ERANGE for none, and for one that is too long.
fn name_of<'a>(name: *const c_char) -> Result<&'a [u8], Errno> {
    // SAFETY: the program says that it is a C string, which stays while the call is answered.
    let name = unsafe { string(name) }?;
    match name {
        b"" => Err(Errno(libc::ERANGE)),
        // A namespace without a name in it.
        b"user." | b"trusted." | b"security." => Err(Errno(libc::EINVAL)),
        name if name.len() > 255 => Err(Errno(libc::ERANGE)),
        name => Ok(name),
    }
}

fn get(file: &File, name: *const c_char, value: *mut c_void, len: size_t) -> Result<ssize_t, Errno> {
    let (fs, inode, cred) = file;
    let found = fs.get_xattr(inode, name_of(name)?, cred)?;
    // SAFETY: the program says that `value` has room for `len` bytes.
    Ok(copy_value(&found, unsafe { Buffer::new(value, len) }?)? as ssize_t)
}

fn all(file: &File, list: *mut c_char, len: size_t) -> Result<ssize_t, Errno> {
    let (fs, inode, cred) = file;
    let found = fs.list_xattr(inode, cred)?;
    // SAFETY: the program says that `list` has room for `len` bytes.
    Ok(copy_value(&found, unsafe { Buffer::new(list.cast(), len) }?)? as ssize_t)
}

fn set(
    file: &File,
    name: *const c_char,
    value: *const c_void,
    len: size_t,
    flags: c_int,
) -> Result<c_int, Errno> {
    const LARGEST: usize = 65_536;
    let (fs, inode, cred) = file;
    let how = match flags {
        0 => XattrSet::Any,
        libc::XATTR_CREATE => XattrSet::Create,
        libc::XATTR_REPLACE => XattrSet::Replace,
        _ => return Err(Errno(libc::EINVAL)),
    };
    if len > LARGEST {
        return Err(Errno(libc::E2BIG));
    }
    let name = name_of(name)?;
    // SAFETY: the program says that `value` has `len` bytes.
    let value = unsafe { Buffer::new(value, len) }?;
    value.with(|bytes| Ok(fs.set_xattr(inode, name, bytes, how, cred)?))?;
    Ok(0)
}

fn remove(file: &File, name: *const c_char) -> Result<c_int, Errno> {
    let (fs, inode, cred) = file;
    fs.remove_xattr(inode, name_of(name)?, cred)?;
    Ok(0)
}
