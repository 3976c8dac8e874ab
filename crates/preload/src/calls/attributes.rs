//! Attributes of files and of the filesystem; permission.

use std::ffi::{c_char, c_long, c_uint};

use extant::{Access, Attr, Credentials, DeviceNumber, Filesystem, InodeRef, SetAttr, SetTime, Timestamp};
use libc::{
    AT_FDCWD, c_int, gid_t, mode_t, stat as Stat, statfs as StatFs, statvfs as StatVfs, timespec, timeval,
    uid_t, utimbuf,
};

use crate::abi::{Answer, Errno, interpose};
use crate::table::{self, is_ours};
use crate::user::{load, store};
use crate::walk::{FOLLOW, NO_FOLLOW, REAL_IDS, Route, Walking, resolve};
use crate::{config, mount};

/// Device number of the image's files: of no driver.
const DEVICE: DeviceNumber = DeviceNumber { major: 0xe47, minor: 0x4 };

interpose! {
    fn stat[stat64](path: *const c_char, out: *mut Stat) -> c_int,
        at route = AT_FDCWD, path => stat_at(&mut route, out, 0);
    fn lstat[lstat64](path: *const c_char, out: *mut Stat) -> c_int,
        at route = AT_FDCWD, path => stat_at(&mut route, out, libc::AT_SYMLINK_NOFOLLOW);
    fn fstat[fstat64](fd: c_int, out: *mut Stat) -> c_int,
        if is_ours(fd) => stat_fd(fd, out);
    fn fstatat[fstatat64](dirfd: c_int, path: *const c_char, out: *mut Stat, flags: c_int) -> c_int,
        at route = dirfd, path => stat_at(&mut route, out, flags);
    fn __xstat[__xstat64](version: c_int, path: *const c_char, out: *mut Stat) -> c_int,
        at route = AT_FDCWD, path => stat_at(&mut route, out, 0);
    fn __lxstat[__lxstat64](version: c_int, path: *const c_char, out: *mut Stat) -> c_int,
        at route = AT_FDCWD, path => stat_at(&mut route, out, libc::AT_SYMLINK_NOFOLLOW);
    fn __fxstat[__fxstat64](version: c_int, fd: c_int, out: *mut Stat) -> c_int,
        if is_ours(fd) => stat_fd(fd, out);
    fn __fxstatat[__fxstatat64](version: c_int, dirfd: c_int, path: *const c_char, out: *mut Stat, flags: c_int) -> c_int,
        at route = dirfd, path => stat_at(&mut route, out, flags);
    fn statx(dirfd: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut libc::statx) -> c_int,
        at route = dirfd, path => statx_at(&mut route, out, flags);
    fn access(path: *const c_char, mode: c_int) -> c_int,
        at route = AT_FDCWD, path => access_at(&mut route, mode, 0);
    fn eaccess[euidaccess](path: *const c_char, mode: c_int) -> c_int,
        at route = AT_FDCWD, path => access_at(&mut route, mode, libc::AT_EACCESS);
    fn faccessat(dirfd: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int,
        at route = dirfd, path => access_at(&mut route, mode, flags);
}

/// What a call about `route` means: a path, or with AT_EMPTY_PATH and none, its descriptor (or the working directory).
pub(super) fn inode_at(
    route: &mut Route,
    flags: c_int,
    how: Walking,
) -> Answer<(std::sync::Arc<Filesystem>, InodeRef, Credentials)> {
    let empty = route.path().is_null() || route.text()?.is_empty();
    if empty && flags & libc::AT_EMPTY_PATH != 0 {
        return inode_of(route.dirfd(), how.real_ids);
    }
    let Some(place) = resolve(route, how)? else { return Ok(None) };
    let inode = place.inode()?.clone();
    Ok(Some((place.fs, inode, place.cred)))
}

fn inode_of(fd: c_int, real_ids: bool) -> Answer<(std::sync::Arc<Filesystem>, InodeRef, Credentials)> {
    let cred = || mount::credentials(real_ids);
    if fd == AT_FDCWD {
        let Some(config) = config::config() else { return Ok(None) };
        let config::Cwd::Inside(id) = config::cwd(config) else { return Ok(None) };
        let fs = mount::filesystem(config)?;
        let inode = crate::walk::cwd_inode(&fs, id)?;
        return Ok(Some((fs, inode, cred())));
    }
    let Some(what) = table::find(fd)? else { return Ok(None) };
    Ok(Some((std::sync::Arc::clone(what.fs()), what.inode().clone(), cred())))
}

fn walking(flags: c_int) -> Walking {
    if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { NO_FOLLOW } else { FOLLOW }
}

fn stat_at(route: &mut Route, out: *mut Stat, flags: c_int) -> Answer<c_int> {
    let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    if flags & !known != 0 {
        return if crate::walk::is_inside(route) { Err(Errno(libc::EINVAL)) } else { Ok(None) };
    }
    let Some((_, inode, _)) = inode_at(route, flags, walking(flags))? else { return Ok(None) };
    // SAFETY: the program says that it is a `struct stat`.
    unsafe { store(out, stat_of(&inode.attr())) }?;
    Ok(Some(0))
}

fn stat_fd(fd: c_int, out: *mut Stat) -> Answer<c_int> {
    let what = table::get(fd)?;
    // SAFETY: as above.
    unsafe { store(out, stat_of(&what.inode().attr())) }?;
    Ok(Some(0))
}

pub(super) fn device() -> libc::dev_t {
    libc::makedev(DEVICE.major, DEVICE.minor)
}

fn stat_of(attr: &Attr) -> Stat {
    // SAFETY: a structure of integers.
    let mut out: Stat = unsafe { std::mem::zeroed() };
    out.st_dev = device();
    out.st_ino = attr.ino.0.into();
    out.st_nlink = attr.nlink.into();
    out.st_mode = attr.mode.into();
    out.st_uid = attr.uid;
    out.st_gid = attr.gid;
    out.st_rdev = libc::makedev(attr.rdev.major, attr.rdev.minor);
    out.st_size = attr.size as libc::off_t;
    out.st_blksize = attr.block_size.into();
    out.st_blocks = attr.blocks as libc::blkcnt_t;
    (out.st_atime, out.st_atime_nsec) = (attr.atime.sec, attr.atime.nsec.into());
    (out.st_mtime, out.st_mtime_nsec) = (attr.mtime.sec, attr.mtime.nsec.into());
    (out.st_ctime, out.st_ctime_nsec) = (attr.ctime.sec, attr.ctime.nsec.into());
    out
}

pub(super) fn statx_at(route: &mut Route, out: *mut libc::statx, flags: c_int) -> Answer<c_int> {
    let Some((fs, inode, _)) = inode_at(route, flags, walking(flags))? else { return Ok(None) };
    if flags & libc::AT_STATX_SYNC_TYPE == libc::AT_STATX_SYNC_TYPE {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the program says that it is a `struct statx`.
    unsafe { store(out, statx_of(&fs, &inode)) }?;
    Ok(Some(0))
}

fn statx_of(fs: &Filesystem, inode: &InodeRef) -> libc::statx {
    // The lower bits of the inode flags that statx(2) names have the same values there.
    const STATX_ATTR_DAX: u64 = 0x20_0000;
    const NAMED: u64 = 0x4 | 0x10 | 0x20 | 0x40 | 0x800 | 0x10_0000;
    let attr = inode.attr();
    // SAFETY: a structure of integers.
    let mut out: libc::statx = unsafe { std::mem::zeroed() };
    let time = |t: Timestamp| {
        // SAFETY: a structure of integers.
        let mut time: libc::statx_timestamp = unsafe { std::mem::zeroed() };
        (time.tv_sec, time.tv_nsec) = (t.sec, t.nsec);
        time
    };
    out.stx_mask = libc::STATX_BASIC_STATS;
    out.stx_blksize = attr.block_size;
    out.stx_attributes = u64::from(attr.flags.bits()) & NAMED;
    out.stx_attributes_mask = NAMED | STATX_ATTR_DAX;
    if fs.effective_dax(inode) {
        out.stx_attributes |= STATX_ATTR_DAX;
    }
    out.stx_nlink = attr.nlink;
    (out.stx_uid, out.stx_gid, out.stx_mode) = (attr.uid, attr.gid, attr.mode);
    (out.stx_ino, out.stx_size, out.stx_blocks) = (attr.ino.0.into(), attr.size, attr.blocks);
    (out.stx_atime, out.stx_ctime, out.stx_mtime) = (time(attr.atime), time(attr.ctime), time(attr.mtime));
    if let Some(born) = attr.btime {
        out.stx_btime = time(born);
        out.stx_mask |= libc::STATX_BTIME;
    }
    (out.stx_rdev_major, out.stx_rdev_minor) = (attr.rdev.major, attr.rdev.minor);
    (out.stx_dev_major, out.stx_dev_minor) = (DEVICE.major, DEVICE.minor);
    if inode.is_regular() {
        // The program's memory may lie anywhere.
        (out.stx_dio_mem_align, out.stx_dio_offset_align) = (1, fs.direct_alignment());
        out.stx_mask |= libc::STATX_DIOALIGN;
    }
    out
}

fn access_at(route: &mut Route, mode: c_int, flags: c_int) -> Answer<c_int> {
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let ids = if flags & libc::AT_EACCESS == 0 { REAL_IDS } else { FOLLOW };
    let how = Walking { follow, ..ids };
    let Some((fs, inode, cred)) = inode_at(route, flags, how)? else { return Ok(None) };
    let mode = u8::try_from(mode).ok().filter(|mode| mode & !7 == 0).ok_or(Errno(libc::EINVAL))?;
    if mode != 0 {
        fs.access(&inode, Access(mode), &cred)?;
        if mode & libc::W_OK as u8 != 0 && fs.is_read_only() {
            return Err(Errno(libc::EROFS));
        }
    }
    Ok(Some(0))
}

interpose! {
    fn chmod(path: *const c_char, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, 0, &mode_change(mode));
    fn lchmod(path: *const c_char, mode: mode_t) -> c_int,
        at route = AT_FDCWD, path => change_mode_at(&mut route, mode, libc::AT_SYMLINK_NOFOLLOW);
    fn fchmod(fd: c_int, mode: mode_t) -> c_int,
        if is_ours(fd) => change_fd(fd, &mode_change(mode));
    fn fchmodat(dirfd: c_int, path: *const c_char, mode: mode_t, flags: c_int) -> c_int,
        at route = dirfd, path => change_mode_at(&mut route, mode, flags);
    fn chown(path: *const c_char, uid: uid_t, gid: gid_t) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, 0, &owner_change(uid, gid));
    fn lchown(path: *const c_char, uid: uid_t, gid: gid_t) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, libc::AT_SYMLINK_NOFOLLOW, &owner_change(uid, gid));
    fn fchown(fd: c_int, uid: uid_t, gid: gid_t) -> c_int,
        if is_ours(fd) => change_fd(fd, &owner_change(uid, gid));
    fn fchownat(dirfd: c_int, path: *const c_char, uid: uid_t, gid: gid_t, flags: c_int) -> c_int,
        at route = dirfd, path => change_at(&mut route, flags, &owner_change(uid, gid));
    fn utimensat(dirfd: c_int, path: *const c_char, times: *const timespec, flags: c_int) -> c_int,
        at route = dirfd, path => set_times_at(&mut route, times, flags);
    fn futimens(fd: c_int, times: *const timespec) -> c_int,
        if is_ours(fd) => change_fd(fd, &time_change(times)?);
    fn utime(path: *const c_char, times: *const utimbuf) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, 0, &seconds_change(times)?);
    fn utimes(path: *const c_char, times: *const timeval) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, 0, &microseconds_change(times)?);
    fn lutimes(path: *const c_char, times: *const timeval) -> c_int,
        at route = AT_FDCWD, path => change_at(&mut route, libc::AT_SYMLINK_NOFOLLOW, &microseconds_change(times)?);
    fn futimes(fd: c_int, times: *const timeval) -> c_int,
        if is_ours(fd) => change_fd(fd, &microseconds_change(times)?);
    fn futimesat(dirfd: c_int, path: *const c_char, times: *const timeval) -> c_int,
        at route = dirfd, path => change_at(&mut route, 0, &microseconds_change(times)?);
}

fn mode_change(mode: mode_t) -> SetAttr {
    SetAttr { mode: Some((mode & 0o7777) as u16), ..SetAttr::default() }
}

fn owner_change(uid: uid_t, gid: gid_t) -> SetAttr {
    let given = |id: u32| (id != u32::MAX).then_some(id);
    SetAttr { uid: given(uid), gid: given(gid), ..SetAttr::default() }
}

fn change_at(route: &mut Route, flags: c_int, change: &SetAttr) -> Answer<c_int> {
    let Some((fs, inode, cred)) = inode_at(route, flags, walking(flags))? else { return Ok(None) };
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    fs.set_attr(&inode, change, &cred)?;
    Ok(Some(0))
}

/// A symbolic link has no permissions to change.
fn change_mode_at(route: &mut Route, mode: mode_t, flags: c_int) -> Answer<c_int> {
    let Some((fs, inode, cred)) = inode_at(route, flags, walking(flags))? else { return Ok(None) };
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if inode.kind() == extant::FileType::Symlink {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    fs.set_attr(&inode, &mode_change(mode), &cred)?;
    Ok(Some(0))
}

fn change_fd(fd: c_int, change: &SetAttr) -> Answer<c_int> {
    let what = table::get(fd)?;
    what.check_open()?;
    what.fs().set_attr(what.inode(), change, &mount::credentials(false))?;
    Ok(Some(0))
}

const NOW: SetAttr = SetAttr {
    mode: None,
    uid: None,
    gid: None,
    size: None,
    atime: Some(SetTime::Now),
    mtime: Some(SetTime::Now),
    ctime: None,
    kill_suidgid: false,
    noted_by_cache: false,
};

fn set_times_at(route: &mut Route, times: *const timespec, flags: c_int) -> Answer<c_int> {
    // glibc's futimens comes here with no path at all.
    let flags = if route.path().is_null() { flags | libc::AT_EMPTY_PATH } else { flags };
    let change = time_change(times)?;
    change_at(route, flags, &change)
}

fn time_change(times: *const timespec) -> Result<SetAttr, Errno> {
    if times.is_null() {
        return Ok(NOW);
    }
    // SAFETY: the program says that it is two of them.
    let times = unsafe { load(times.cast::<[timespec; 2]>()) }?;
    let set = |t: timespec| match t.tv_nsec {
        libc::UTIME_NOW => Ok(Some(SetTime::Now)),
        libc::UTIME_OMIT => Ok(None),
        nsec => exact(t.tv_sec, nsec).map(Some),
    };
    Ok(SetAttr { atime: set(times[0])?, mtime: set(times[1])?, ..SetAttr::default() })
}

fn exact(sec: libc::time_t, nsec: c_long) -> Result<SetTime, Errno> {
    let nsec = u32::try_from(nsec).ok().filter(|n| *n < 1_000_000_000).ok_or(Errno(libc::EINVAL))?;
    Ok(SetTime::At(Timestamp { sec, nsec }))
}

fn seconds_change(times: *const utimbuf) -> Result<SetAttr, Errno> {
    if times.is_null() {
        return Ok(NOW);
    }
    // SAFETY: the program says that it is one.
    let times = unsafe { load(times) }?;
    let (atime, mtime) = (exact(times.actime, 0)?, exact(times.modtime, 0)?);
    Ok(SetAttr { atime: Some(atime), mtime: Some(mtime), ..SetAttr::default() })
}

fn microseconds_change(times: *const timeval) -> Result<SetAttr, Errno> {
    if times.is_null() {
        return Ok(NOW);
    }
    // SAFETY: the program says that it is two of them.
    let times = unsafe { load(times.cast::<[timeval; 2]>()) }?;
    let set = |t: timeval| match t.tv_usec {
        0..1_000_000 => exact(t.tv_sec, t.tv_usec * 1000),
        _ => Err(Errno(libc::EINVAL)),
    };
    Ok(SetAttr { atime: Some(set(times[0])?), mtime: Some(set(times[1])?), ..SetAttr::default() })
}

interpose! {
    fn statfs[statfs64](path: *const c_char, out: *mut StatFs) -> c_int,
        at route = AT_FDCWD, path => {
            let Some((fs, inode, _)) = inode_at(&mut route, 0, FOLLOW)? else { return Ok(None) };
            fill_statfs(&fs, &inode, out)
        };
    fn fstatfs[fstatfs64](fd: c_int, out: *mut StatFs) -> c_int,
        if is_ours(fd) => { let file = table::get(fd)?; fill_statfs(file.fs(), file.inode(), out) };
    fn statvfs[statvfs64](path: *const c_char, out: *mut StatVfs) -> c_int,
        at route = AT_FDCWD, path => {
            let Some((fs, inode, _)) = inode_at(&mut route, 0, FOLLOW)? else { return Ok(None) };
            fill_statvfs(&fs, &inode, out)
        };
    fn fstatvfs[fstatvfs64](fd: c_int, out: *mut StatVfs) -> c_int,
        if is_ours(fd) => { let file = table::get(fd)?; fill_statvfs(file.fs(), file.inode(), out) };
    fn pathconf(path: *const c_char, name: c_int) -> c_long,
        at route = AT_FDCWD, path => {
            let Some((fs, _, _)) = inode_at(&mut route, 0, FOLLOW)? else { return Ok(None) };
            configured(&fs, name)
        };
    fn fpathconf(fd: c_int, name: c_int) -> c_long,
        if is_ours(fd) => configured(table::get(fd)?.fs(), name);
}

const ST_VALID: u64 = 0x20;
/// Where `f_flags` is, which comes after `f_frsize` and has no name in the binding.
const FLAGS: usize = std::mem::offset_of!(StatFs, f_frsize) + size_of::<libc::__fsword_t>();

fn mount_flags(fs: &Filesystem) -> u64 {
    if fs.is_read_only() { libc::ST_RDONLY } else { 0 }
}

fn fill_statfs(fs: &Filesystem, inode: &InodeRef, out: *mut StatFs) -> Answer<c_int> {
    let s = fs.statfs_at(inode)?;
    // SAFETY: a structure of integers.
    let mut to: StatFs = unsafe { std::mem::zeroed() };
    to.f_type = libc::EXT4_SUPER_MAGIC;
    to.f_bsize = s.block_size.into();
    to.f_frsize = s.block_size.into();
    (to.f_blocks, to.f_bfree, to.f_bavail) = (s.blocks, s.blocks_free, s.blocks_available);
    (to.f_files, to.f_ffree) = (s.files, s.files_free);
    to.f_namelen = s.name_max.into();
    // SAFETY: two integers of 32 bits in either type.
    to.f_fsid = unsafe { std::mem::transmute::<u64, libc::fsid_t>(s.fsid) };
    // SAFETY: the program says that it is a `struct statfs`.
    unsafe { store(out, to) }?;
    // SAFETY: inside of it.
    let flags = unsafe { out.cast::<u8>().add(FLAGS) };
    // SAFETY: one of its integers.
    unsafe { store(flags.cast(), mount_flags(fs) | ST_VALID) }?;
    Ok(Some(0))
}

fn fill_statvfs(fs: &Filesystem, inode: &InodeRef, out: *mut StatVfs) -> Answer<c_int> {
    let s = fs.statfs_at(inode)?;
    // SAFETY: a structure of integers.
    let mut to: StatVfs = unsafe { std::mem::zeroed() };
    to.f_bsize = s.block_size.into();
    to.f_frsize = s.block_size.into();
    (to.f_blocks, to.f_bfree, to.f_bavail) = (s.blocks, s.blocks_free, s.blocks_available);
    (to.f_files, to.f_ffree, to.f_favail) = (s.files, s.files_free, s.files_free);
    to.f_fsid = s.fsid;
    to.f_flag = mount_flags(fs);
    to.f_namemax = s.name_max.into();
    // SAFETY: the program says that it is a `struct statvfs`.
    unsafe { store(out, to) }?;
    Ok(Some(0))
}

/// pathconf(3). What has no limit of the filesystem's is the C library's to say.
fn configured(fs: &Filesystem, name: c_int) -> Answer<c_long> {
    let s = fs.statfs();
    Ok(Some(match name {
        libc::_PC_LINK_MAX => 65_000,
        libc::_PC_NAME_MAX => s.name_max.into(),
        libc::_PC_PATH_MAX | libc::_PC_SYMLINK_MAX => 4096,
        libc::_PC_CHOWN_RESTRICTED | libc::_PC_NO_TRUNC | libc::_PC_2_SYMLINKS | libc::_PC_SYNC_IO => 1,
        libc::_PC_FILESIZEBITS => 64,
        libc::_PC_REC_MIN_XFER_SIZE | libc::_PC_REC_XFER_ALIGN | libc::_PC_ALLOC_SIZE_MIN => {
            s.block_size.into()
        }
        _ => return Err(Errno(libc::EINVAL)),
    }))
}
