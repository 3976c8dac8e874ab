//! Names: making, removing, renaming, links, the working directory.

use std::ffi::{c_char, c_uint, c_void};
use std::ops::ControlFlow;

use extant::{DeviceNumber, Error, Filesystem, InodeRef, NewInode, RenameFlags};
use libc::{AT_FDCWD, c_int, dev_t, mode_t, size_t, ssize_t};

use crate::abi::{Answer, Errno, interpose};
use crate::config::{self, Cwd, DirId};
use crate::table::{self, is_ours};
use crate::user::{Buffer, string};
use crate::walk::{FOLLOW, NAME, NO_FOLLOW, Place, Route, Walking, resolve};
use crate::{mount, real};

interpose! {
    fn mkdir(path: *const c_char, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => make_dir(&mut route, mode);
    fn mkdirat(dirfd: c_int, path: *const c_char, mode: mode_t) -> c_int,
        at route = dirfd, path => make_dir(&mut route, mode);
    fn mknod(path: *const c_char, mode: mode_t, device: dev_t) -> c_int,
        at route = AT_FDCWD, path => make_node(&mut route, mode, device);
    fn mknodat(dirfd: c_int, path: *const c_char, mode: mode_t, device: dev_t) -> c_int,
        at route = dirfd, path => make_node(&mut route, mode, device);
    fn __xmknod(version: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int,
        // SAFETY: the program says that it is a device number.
        at route = AT_FDCWD, path => make_node(&mut route, mode, unsafe { crate::user::load(device) }?);
    fn __xmknodat(version: c_int, dirfd: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int,
        // SAFETY: as above.
        at route = dirfd, path => make_node(&mut route, mode, unsafe { crate::user::load(device) }?);
    fn mkfifo(path: *const c_char, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => make_node(&mut route, mode & 0o7777 | libc::S_IFIFO, 0);
    fn mkfifoat(dirfd: c_int, path: *const c_char, mode: mode_t) -> c_int,
        at route = dirfd, path => make_node(&mut route, mode & 0o7777 | libc::S_IFIFO, 0);
    fn unlink(path: *const c_char) -> c_int,
        at route = AT_FDCWD, path => unlink_at(&mut route, 0);
    fn rmdir(path: *const c_char) -> c_int,
        at route = AT_FDCWD, path => unlink_at(&mut route, libc::AT_REMOVEDIR);
    fn unlinkat(dirfd: c_int, path: *const c_char, flags: c_int) -> c_int,
        at route = dirfd, path => unlink_at(&mut route, flags);
    fn remove(path: *const c_char) -> c_int,
        at route = AT_FDCWD, path => remove_at(&mut route);
    fn rename(from: *const c_char, to: *const c_char) -> c_int,
        at one = AT_FDCWD, from, at two = AT_FDCWD, to => rename_at(&mut one, &mut two, 0);
    fn renameat(fromfd: c_int, from: *const c_char, tofd: c_int, to: *const c_char) -> c_int,
        at one = fromfd, from, at two = tofd, to => rename_at(&mut one, &mut two, 0);
    fn renameat2(fromfd: c_int, from: *const c_char, tofd: c_int, to: *const c_char, flags: c_uint) -> c_int,
        at one = fromfd, from, at two = tofd, to => rename_at(&mut one, &mut two, flags);
    fn link(from: *const c_char, to: *const c_char) -> c_int,
        at one = AT_FDCWD, from, at two = AT_FDCWD, to => link_at(&mut one, &mut two, 0);
    fn linkat(fromfd: c_int, from: *const c_char, tofd: c_int, to: *const c_char, flags: c_int) -> c_int,
        at one = fromfd, from, at two = tofd, to => link_at(&mut one, &mut two, flags);
    fn symlink(target: *const c_char, path: *const c_char) -> c_int,
        at route = AT_FDCWD, path => symlink_at(target, &mut route);
    fn symlinkat(target: *const c_char, dirfd: c_int, path: *const c_char) -> c_int,
        at route = dirfd, path => symlink_at(target, &mut route);
    fn readlink(path: *const c_char, buf: *mut c_char, len: size_t) -> ssize_t,
        at route = AT_FDCWD, path => read_link(&mut route, buf, len);
    fn readlinkat(dirfd: c_int, path: *const c_char, buf: *mut c_char, len: size_t) -> ssize_t,
        at route = dirfd, path => read_link(&mut route, buf, len);
    fn __readlink_chk(path: *const c_char, buf: *mut c_char, len: size_t, room: size_t) -> ssize_t,
        at route = AT_FDCWD, path => if len > room { Ok(None) } else { read_link(&mut route, buf, len) };
    fn __readlinkat_chk(dirfd: c_int, path: *const c_char, buf: *mut c_char, len: size_t, room: size_t) -> ssize_t,
        at route = dirfd, path => if len > room { Ok(None) } else { read_link(&mut route, buf, len) };
}

pub(super) fn make_dir(route: &mut Route, mode: mode_t) -> Answer<c_int> {
    let Some(place) = resolve(route, NAME)? else { return Ok(None) };
    place.fs.mkdir(&place.dir, place.new_dir_name()?, (mode & 0o7777) as u16, &place.cred)?;
    Ok(Some(0))
}

fn make_node(route: &mut Route, mode: mode_t, device: dev_t) -> Answer<c_int> {
    let Some(place) = resolve(route, NAME)? else { return Ok(None) };
    if mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno(libc::EPERM));
    }
    let rdev = DeviceNumber { major: libc::major(device), minor: libc::minor(device) };
    let new = NewInode { mode: (mode & (libc::S_IFMT | 0o7777)) as u16, rdev };
    place.fs.mknod(&place.dir, place.new_name()?, &new, &place.cred)?;
    Ok(Some(0))
}

fn unlink_at(route: &mut Route, flags: c_int) -> Answer<c_int> {
    let Some(place) = resolve(route, NAME)? else { return Ok(None) };
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if flags & libc::AT_REMOVEDIR != 0 { remove_dir(&place) } else { remove_file(&place) }
}

fn remove_dir(place: &Place) -> Answer<c_int> {
    let name = place.old_name(libc::EINVAL, libc::ENOTEMPTY)?;
    drop(place.fs.rmdir(&place.dir, name, &place.cred)?);
    Ok(Some(0))
}

fn remove_file(place: &Place) -> Answer<c_int> {
    if place.is_root() {
        return Err(Errno(libc::EISDIR));
    }
    let name = place.old_name(libc::EISDIR, libc::EISDIR)?;
    let inode = place.inode()?;
    if place.slash && inode.is_dir() {
        return Err(Errno(libc::EISDIR));
    }
    drop(place.fs.unlink(&place.dir, name, &place.cred)?);
    Ok(Some(0))
}

fn remove_at(route: &mut Route) -> Answer<c_int> {
    let Some(place) = resolve(route, NAME)? else { return Ok(None) };
    if place.inode()?.is_dir() { remove_dir(&place) } else { remove_file(&place) }
}

/// Both places of a call about two; `None` where neither is ours, EXDEV where only one is.
fn both(one: &mut Route, first: Walking, two: &mut Route) -> Answer<(Place, Place)> {
    let first = resolve(one, first)?;
    let second = resolve(two, NAME)?;
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        _ => Err(Errno(libc::EXDEV)),
    }
}

pub(super) fn rename_at(one: &mut Route, two: &mut Route, flags: c_uint) -> Answer<c_int> {
    let Some((from, to)) = both(one, NAME, two)? else { return Ok(None) };
    let flags = RenameFlags::from_bits(flags)?;
    match (from.is_root(), to.is_root()) {
        (true, true) => return Ok(Some(0)),
        (false, false) => {}
        _ => return Err(Errno(libc::EXDEV)),
    }
    let name = from.old_name(libc::EBUSY, libc::EBUSY)?;
    let new = to.old_name(libc::EBUSY, libc::EBUSY)?;
    let moved = from.inode()?;
    if to.slash && !moved.is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    if flags.exchange {
        to.inode()?;
    }
    drop(from.fs.rename(&from.dir, name, &to.dir, new, flags, &from.cred)?);
    Ok(Some(0))
}

fn link_at(one: &mut Route, two: &mut Route, flags: c_int) -> Answer<c_int> {
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Ok(None);
    }
    if let Some(inode) = linked_descriptor(one, flags)? {
        let Some(to) = resolve(two, NAME)? else { return Err(Errno(libc::EXDEV)) };
        to.fs.link(&inode, &to.dir, to.new_name()?, &to.cred)?;
        return Ok(Some(0));
    }
    let Some((from, to)) =
        both(one, if flags & libc::AT_SYMLINK_FOLLOW != 0 { FOLLOW } else { NO_FOLLOW }, two)?
    else {
        return Ok(None);
    };
    to.fs.link(from.inode()?, &to.dir, to.new_name()?, &to.cred)?;
    Ok(Some(0))
}

/// The file of a descriptor that is to get a name: `""` with AT_EMPTY_PATH, or `/proc/self/fd/N`.
fn linked_descriptor(route: &Route, flags: c_int) -> Answer<InodeRef> {
    if route.path().is_null() {
        return Ok(None);
    }
    let text = route.text()?;
    let fd = if text.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        Some(route.dirfd())
    } else if flags & libc::AT_SYMLINK_FOLLOW != 0 {
        super::open::descriptor_of_path(text)
    } else {
        None
    };
    match fd.filter(|fd| is_ours(*fd)) {
        Some(fd) => Ok(Some(table::get(fd)?.inode().clone())),
        None => Ok(None),
    }
}

fn symlink_at(target: *const c_char, route: &mut Route) -> Answer<c_int> {
    let Some(place) = resolve(route, NAME)? else { return Ok(None) };
    // SAFETY: the program says that it is a C string.
    let target = unsafe { string(target) }?;
    place.fs.symlink(&place.dir, place.new_name()?, target, &place.cred)?;
    Ok(Some(0))
}

fn read_link(route: &mut Route, buf: *mut c_char, len: size_t) -> Answer<ssize_t> {
    // readlinkat(2) of a descriptor's own link.
    let flags = if route.dirfd() == AT_FDCWD { 0 } else { libc::AT_EMPTY_PATH };
    let found = super::attributes::inode_at(route, flags, NO_FOLLOW)?;
    let Some((fs, inode, _)) = found else { return Ok(None) };
    if len == 0 || inode.kind() != extant::FileType::Symlink {
        return Err(Errno(libc::EINVAL));
    }
    let target = fs.readlink(&inode)?;
    // SAFETY: the program says that `buf` has room for `len` bytes.
    unsafe { Buffer::new(buf.cast(), len) }?.copy_from(0, &target);
    Ok(Some(target.len().min(len) as ssize_t))
}

interpose! {
    fn chdir(path: *const c_char) -> c_int,
        at route = AT_FDCWD, path => change_dir(&mut route);
    fn fchdir(fd: c_int) -> c_int,
        if config::config().is_some() => change_dir_fd(fd);
    fn getcwd(buf: *mut c_char, len: size_t) -> *mut c_char,
        if config::config().is_some() => current_dir(buf, len);
    fn __getcwd_chk(buf: *mut c_char, len: size_t, room: size_t) -> *mut c_char,
        if len <= room && config::config().is_some() => current_dir(buf, len);
    fn get_current_dir_name() -> *mut c_char,
        if config::config().is_some() => current_dir(std::ptr::null_mut(), 0);
    fn realpath(path: *const c_char, buf: *mut c_char) -> *mut c_char,
        at route = AT_FDCWD, path => real_path(&mut route, buf);
    fn __realpath_chk(path: *const c_char, buf: *mut c_char, room: size_t) -> *mut c_char,
        at route = AT_FDCWD, path => if room < 4096 { Ok(None) } else { real_path(&mut route, buf) };
    fn canonicalize_file_name(path: *const c_char) -> *mut c_char,
        at route = AT_FDCWD, path => real_path(&mut route, std::ptr::null_mut());
}

fn enter(fs: &Filesystem, inode: &InodeRef, cred: &extant::Credentials) -> Answer<c_int> {
    if !inode.is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    fs.access(inode, extant::Access::EXEC, cred)?;
    config::set_cwd_inside(DirId { ino: inode.ino(), generation: inode.generation() });
    Ok(Some(0))
}

fn change_dir(route: &mut Route) -> Answer<c_int> {
    let Some(place) = resolve(route, FOLLOW)? else {
        let path = route.path();
        return outside(real::call!(chdir(path: *const c_char) -> c_int));
    };
    enter(&place.fs, place.inode()?, &place.cred)
}

fn change_dir_fd(fd: c_int) -> Answer<c_int> {
    match table::find(fd)? {
        Some(what) => enter(what.fs(), what.inode(), &mount::credentials(false)),
        None => outside(real::call!(fchdir(fd: c_int) -> c_int)),
    }
}

/// After the kernel was asked to change its own.
fn outside(done: c_int) -> Answer<c_int> {
    if done != 0 {
        return Err(Errno(crate::abi::errno()));
    }
    if let Some(config) = config::config() {
        config::set_cwd_outside(config);
    }
    Ok(Some(0))
}

fn current_dir(buf: *mut c_char, len: size_t) -> Answer<*mut c_char> {
    let Some(config) = config::config() else { return Ok(None) };
    let Cwd::Inside(id) = config::cwd(config) else { return Ok(None) };
    let fs = mount::filesystem(config)?;
    let path = path_of(config, &fs, &crate::walk::cwd_inode(&fs, id)?)?;
    give_path(path, buf, len)
}

/// A path, and the zero after it, in `buf` of `len` bytes; in memory of malloc's for none.
fn give_path(mut path: Vec<u8>, buf: *mut c_char, len: size_t) -> Answer<*mut c_char> {
    path.push(0);
    if buf.is_null() {
        if len != 0 && len < path.len() {
            return Err(Errno(libc::ERANGE));
        }
        let buf = allocated(&path, len)?;
        return Ok(Some(buf));
    }
    if len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    if len < path.len() {
        return Err(Errno(libc::ERANGE));
    }
    // SAFETY: the program says that `buf` has room for `len` bytes.
    unsafe { Buffer::new(buf.cast(), len) }?.copy_from(0, &path);
    Ok(Some(buf))
}

/// A copy of `bytes` in memory of at least `len` bytes that the program will free.
fn allocated(bytes: &[u8], len: usize) -> Result<*mut c_char, Errno> {
    let size = bytes.len().max(len);
    // SAFETY: any size will do.
    let place: *mut c_void = unsafe { libc::malloc(size) };
    if place.is_null() {
        return Err(Errno(libc::ENOMEM));
    }
    // SAFETY: just allocated with that size.
    unsafe { Buffer::new(place, size) }?.copy_from(0, bytes);
    Ok(place.cast())
}

/// The path of a directory of the image, by the names on the way up.
fn path_of(config: &config::Config, fs: &Filesystem, dir: &InodeRef) -> Result<Vec<u8>, Errno> {
    let root = fs.root()?;
    let (mut here, mut names) = (dir.clone(), Vec::new());
    while here.ino() != root.ino() {
        if here.is_dead() {
            return Err(Errno(libc::ENOENT));
        }
        let above = fs.parent(&here)?;
        names.push(name_in(fs, &above, &here)?);
        here = above;
    }
    let mut path = config.root().to_vec();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(path)
}

fn name_in(fs: &Filesystem, dir: &InodeRef, child: &InodeRef) -> Result<Vec<u8>, Errno> {
    let mut found = None;
    // Whoever is in a directory may know where it is.
    fs.read_dir(dir, extant::START, &extant::Credentials::root(), &mut |entry| {
        if entry.ino == child.ino() && entry.name != b"." && entry.name != b".." {
            found = Some(entry.name.to_vec());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    found.ok_or(Errno(libc::ENOENT))
}

fn real_path(route: &mut Route, buf: *mut c_char) -> Answer<*mut c_char> {
    let Some(place) = resolve(route, FOLLOW)? else { return Ok(None) };
    let Some(config) = config::config() else { return Ok(None) };
    place.inode()?;
    let mut path = path_of(config, &place.fs, &place.dir).map_err(|errno| match errno {
        Errno(number) if number == Error::NotDirectory.errno() => Errno(libc::ENOENT),
        errno => errno,
    })?;
    if let Some(name) = &place.name {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    // PATH_MAX is what the program's buffer has, if it gives one.
    give_path(path, buf, if buf.is_null() { 0 } else { 4096 })
}

/// It cannot fail, so it is none of those above.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_umask"))]
unsafe extern "C" fn umask(mask: mode_t) -> mode_t {
    if !crate::abi::is_inside() {
        config::set_umask(mask);
    }
    real::call!(umask(mask: mode_t) -> mode_t)
}
