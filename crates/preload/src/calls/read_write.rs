//! Content: reading, writing, sizes, ranges, making durable.

use std::ffi::{c_char, c_uint, c_void};

use extant::{Access, Error, FallocateMode, SeekKind, SetAttr, SetTime};
use libc::{AT_FDCWD, c_int, iovec, off_t, size_t, ssize_t};

use crate::abi::{Answer, Errno, interpose};
use crate::description::{How, offset};
use crate::table::{self, is_ours};
use crate::user::{Buffer, Buffers, buffers, load, store};
use crate::walk::{FOLLOW, Route, resolve};
use crate::{limit, mount, real};

interpose! {
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t,
        // SAFETY: the program says that `buf` has room for `len` bytes.
        if is_ours(fd) => read_one(fd, unsafe { Buffer::new(buf, len) }?, None);
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t,
        // SAFETY: as for read; the real size of the buffer is smaller only where the C library is to end the program.
        if is_ours(fd) && len <= room => read_one(fd, unsafe { Buffer::new(buf, len) }?, None);
    fn pread[pread64](fd: c_int, buf: *mut c_void, len: size_t, at: off_t) -> ssize_t,
        // SAFETY: as for read.
        if is_ours(fd) => read_one(fd, unsafe { Buffer::new(buf, len) }?, Some(at));
    fn __pread_chk[__pread64_chk](fd: c_int, buf: *mut c_void, len: size_t, at: off_t, room: size_t) -> ssize_t,
        // SAFETY: as for __read_chk.
        if is_ours(fd) && len <= room => read_one(fd, unsafe { Buffer::new(buf, len) }?, Some(at));
    fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t,
        // SAFETY: the program says that `iov` has `count` buffers.
        if is_ours(fd) => read_many(fd, unsafe { buffers(iov, count) }?, None, 0);
    fn preadv[preadv64](fd: c_int, iov: *const iovec, count: c_int, at: off_t) -> ssize_t,
        // SAFETY: as for readv.
        if is_ours(fd) => read_many(fd, unsafe { buffers(iov, count) }?, Some(at), 0);
    fn preadv2[preadv64v2](fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t,
        // SAFETY: as for readv.
        if is_ours(fd) => read_many(fd, unsafe { buffers(iov, count) }?, (at != -1).then_some(at), flags);
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t,
        // SAFETY: the program says that `buf` has `len` bytes.
        if is_ours(fd) => write_one(fd, unsafe { Buffer::new(buf, len) }?, None);
    fn pwrite[pwrite64](fd: c_int, buf: *const c_void, len: size_t, at: off_t) -> ssize_t,
        // SAFETY: as for write.
        if is_ours(fd) => write_one(fd, unsafe { Buffer::new(buf, len) }?, Some(at));
    fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t,
        // SAFETY: as for readv.
        if is_ours(fd) => write_many(fd, unsafe { buffers(iov, count) }?, None, 0);
    fn pwritev[pwritev64](fd: c_int, iov: *const iovec, count: c_int, at: off_t) -> ssize_t,
        // SAFETY: as for readv.
        if is_ours(fd) => write_many(fd, unsafe { buffers(iov, count) }?, Some(at), 0);
    fn pwritev2[pwritev64v2](fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t,
        // SAFETY: as for readv.
        if is_ours(fd) => write_many(fd, unsafe { buffers(iov, count) }?, (at != -1).then_some(at), flags);
}

pub(super) fn read_one(fd: c_int, buf: Buffer, at: Option<off_t>) -> Answer<ssize_t> {
    let description = table::get(fd)?;
    let n = match at {
        None => description.reading(|at| buf.fill(|bytes| description.read_at(at, bytes)))?,
        Some(at) => {
            let at = offset(at)?;
            buf.fill(|bytes| description.read_at(at, bytes))?
        }
    };
    Ok(Some(n as ssize_t))
}

pub(super) fn read_many(fd: c_int, bufs: Buffers<'_>, at: Option<off_t>, flags: c_int) -> Answer<ssize_t> {
    // High priority is a hint; everything else would have to be kept.
    if flags & !libc::RWF_HIPRI != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let description = table::get(fd)?;
    let n = match at {
        None => description.reading(|at| bufs.fill(|bytes| description.read_at(at, bytes)))?,
        Some(at) => {
            let at = offset(at)?;
            bufs.fill(|bytes| description.read_at(at, bytes))?
        }
    };
    Ok(Some(n as ssize_t))
}

pub(super) fn write_one(fd: c_int, buf: Buffer, at: Option<off_t>) -> Answer<ssize_t> {
    let description = table::get(fd)?;
    let n = match at {
        None => buf.with(|bytes| description.write(bytes, How::default()))?,
        Some(at) => {
            let at = offset(at)?;
            buf.with(|bytes| description.write_at(at, bytes, How::default()))?.0
        }
    };
    Ok(Some(n as ssize_t))
}

const RWF_NOAPPEND: c_int = 0x20;

fn how(flags: c_int) -> Result<How, Errno> {
    let known = libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC | libc::RWF_APPEND | RWF_NOAPPEND;
    if flags & !known != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if flags & libc::RWF_APPEND != 0 && flags & RWF_NOAPPEND != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(How {
        append: flags & libc::RWF_APPEND != 0,
        no_append: flags & RWF_NOAPPEND != 0,
        data_sync: flags & libc::RWF_DSYNC != 0,
        sync: flags & libc::RWF_SYNC != 0,
    })
}

pub(super) fn write_many(fd: c_int, bufs: Buffers<'_>, at: Option<off_t>, flags: c_int) -> Answer<ssize_t> {
    let description = table::get(fd)?;
    let how = how(flags)?;
    let n = match at {
        None => bufs.with(|bytes| description.write(bytes, how))?,
        Some(at) => {
            let at = offset(at)?;
            bufs.with(|bytes| description.write_at(at, bytes, how))?.0
        }
    };
    Ok(Some(n as ssize_t))
}

interpose! {
    fn lseek[lseek64](fd: c_int, by: off_t, whence: c_int) -> off_t,
        if is_ours(fd) => seek(fd, by, whence);
    fn ftruncate[ftruncate64](fd: c_int, size: off_t) -> c_int,
        if is_ours(fd) => cut(fd, size);
    fn truncate[truncate64](path: *const c_char, size: off_t) -> c_int,
        at route = AT_FDCWD, path => cut_path(&mut route, size);
    fn fallocate[fallocate64](fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int,
        if is_ours(fd) => allocate(fd, mode, at, len);
    fn posix_fallocate[posix_fallocate64](fd: c_int, at: off_t, len: off_t) -> c_int,
        if is_ours(fd) => posix_allocate(fd, at, len);
    fn fsync(fd: c_int) -> c_int,
        if is_ours(fd) => table::get(fd)?.sync(false).map(|()| Some(0));
    fn fdatasync(fd: c_int) -> c_int,
        if is_ours(fd) => table::get(fd)?.sync(true).map(|()| Some(0));
    fn syncfs(fd: c_int) -> c_int,
        if is_ours(fd) => { table::get(fd)?.fs().sync()?; Ok(Some(0)) };
    fn sync_file_range(fd: c_int, at: off_t, len: off_t, flags: c_uint) -> c_int,
        if is_ours(fd) => sync_range(fd, at, len, flags);
    fn posix_fadvise[posix_fadvise64](fd: c_int, at: off_t, len: off_t, advice: c_int) -> c_int,
        if is_ours(fd) => advise(fd, len, advice);
    fn readahead(fd: c_int, at: off_t, len: size_t) -> ssize_t,
        if is_ours(fd) => read_ahead(fd);
    fn sendfile[sendfile64](out: c_int, from: c_int, at: *mut off_t, len: size_t) -> ssize_t,
        if is_ours(from) || is_ours(out) => send(out, from, at, len);
    fn copy_file_range(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint) -> ssize_t,
        if is_ours(from) || is_ours(to) => copy(from, from_at, to, to_at, len, flags);
}

/// `sync` gives nothing back, so it is none of those above.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_sync"))]
unsafe extern "C" fn sync() {
    let _ = crate::abi::serve::<c_int>(|| {
        if let Some(fs) = mount::mounted() {
            fs.sync()?;
        }
        Ok(Some(0))
    });
    real::call!(sync() -> ());
}

pub(super) fn seek(fd: c_int, by: off_t, whence: c_int) -> Answer<off_t> {
    let description = table::get(fd)?;
    description.check_open()?;
    let mut position = description.position();
    let inode = description.inode();
    // The largest size that any file of this inode's kind can have.
    let most = if inode.is_dir() { i64::MAX.cast_unsigned() } else { description.fs().max_file_size(inode) };
    let checked = |base: u64| {
        let at = base.checked_add_signed(by).filter(|at| *at <= most);
        at.ok_or(Errno(libc::EINVAL))
    };
    let to = match whence {
        libc::SEEK_SET => checked(0)?,
        libc::SEEK_CUR => checked(*position)?,
        // A listing's positions have no order that one could count back in.
        _ if inode.is_dir() => return Err(Errno(libc::EINVAL)),
        libc::SEEK_END => checked(inode.size())?,
        libc::SEEK_DATA | libc::SEEK_HOLE => {
            let kind = if whence == libc::SEEK_DATA { SeekKind::Data } else { SeekKind::Hole };
            let from = u64::try_from(by).map_err(|_| Errno(libc::ENXIO))?;
            description.regular()?.seek(from, kind)?
        }
        _ => return Err(Errno(libc::EINVAL)),
    };
    *position = to;
    Ok(Some(to as off_t))
}

fn cut(fd: c_int, size: off_t) -> Answer<c_int> {
    let description = table::get(fd)?;
    let size = offset(size)?;
    let file = description.regular()?;
    if !file.mode().write {
        return Err(Errno(libc::EINVAL));
    }
    let _order = grows(description.inode().size(), size)?;
    file.set_len(size)?;
    Ok(Some(0))
}

fn cut_path(route: &mut Route, size: off_t) -> Answer<c_int> {
    let Some(place) = resolve(route, FOLLOW)? else { return Ok(None) };
    let size = offset(size)?;
    let inode = place.inode()?;
    if inode.is_dir() {
        return Err(Errno(libc::EISDIR));
    }
    if !inode.is_regular() {
        return Err(Errno(libc::EINVAL));
    }
    place.fs.access(inode, Access::WRITE, &place.cred)?;
    let _order = grows(inode.size(), size)?;
    let change = SetAttr { size: Some(size), mtime: Some(SetTime::Now), ..SetAttr::default() };
    place.fs.set_attr(inode, &change, &place.cred)?;
    Ok(Some(0))
}

fn allocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> Answer<c_int> {
    let description = table::get(fd)?;
    description.check_open()?;
    let (at, len) = (offset(at)?, offset(len)?);
    if len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    let (what, keep_size) = FallocateMode::from_flags(mode.cast_unsigned())?;
    // What is no regular file here is a directory, which is never open for writing.
    let file = description.file().map_err(|_| Errno(libc::EBADF))?;
    let end = at.checked_add(len).filter(|end| *end <= description.fs().max_file_size(description.inode()));
    let _order = match (what, end) {
        (FallocateMode::Allocate | FallocateMode::ZeroRange | FallocateMode::WriteZeroes, Some(end))
            if !keep_size && file.mode().write =>
        {
            grows(description.inode().size(), end)?
        }
        _ => None,
    };
    file.fallocate(what, at, len, keep_size)?;
    Ok(Some(0))
}

/// Whether RLIMIT_FSIZE lets a file of `old` bytes have `new`. What is given is held over that.
fn grows(old: u64, new: u64) -> Result<Option<limit::Order>, Errno> {
    if !limit::is_set() {
        return Ok(None);
    }
    let order = limit::Order::of(false);
    limit::check_size(old, new)?;
    Ok(Some(order))
}

/// posix_fallocate(3) gives the error number back. Where nothing can be preallocated (ext3) the C library writes a byte into
/// each block.
fn posix_allocate(fd: c_int, at: off_t, len: off_t) -> Answer<c_int> {
    match allocate(fd, 0, at, len) {
        Err(Errno(libc::EOPNOTSUPP)) => write_every_block(fd, at, len),
        Err(Errno(number)) => Ok(Some(number)),
        done => done,
    }
}

fn write_every_block(fd: c_int, at: off_t, len: off_t) -> Answer<c_int> {
    let description = table::get(fd)?;
    let (start, end) = (offset(at)?, offset(at)? + offset(len)?);
    let block = u64::from(description.inode().attr().block_size);
    let touch = |at: u64| -> Result<(), Errno> {
        let mut byte = [0];
        if description.read_at(at, &mut byte)? == 0 || byte[0] == 0 {
            description.write_at(at, &[0], How { no_append: true, ..How::default() })?;
        }
        Ok(())
    };
    let mut at = start;
    while at < end {
        if let Err(Errno(number)) = touch(at) {
            return Ok(Some(number));
        }
        at = (at / block + 1) * block;
    }
    Ok(Some(touch(end - 1).map_or_else(|Errno(number)| number, |()| 0)))
}

/// A part cannot be made durable by itself: starting the writing of it is writing all that is dirty.
fn sync_range(fd: c_int, at: off_t, len: off_t, flags: c_uint) -> Answer<c_int> {
    const KNOWN: c_uint = 7;
    let description = table::get(fd)?;
    let file =
        description.regular().map_err(|e| if e.0 == libc::EINVAL { Errno(libc::ESPIPE) } else { e })?;
    offset(at)?;
    offset(len)?;
    if flags & !KNOWN != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if flags != 0 {
        file.fsync(true)?;
    }
    Ok(Some(0))
}

/// posix_fadvise(2) gives the error number back; what it says is only a hint.
fn advise(fd: c_int, len: off_t, advice: c_int) -> Answer<c_int> {
    let description = table::get(fd)?;
    if description.check_open().is_err() {
        return Ok(Some(libc::EBADF));
    }
    Ok(Some(if len < 0 || !(0..=5).contains(&advice) { libc::EINVAL } else { 0 }))
}

fn read_ahead(fd: c_int) -> Answer<ssize_t> {
    let description = table::get(fd)?;
    if !description.regular()?.mode().read {
        return Err(Errno(libc::EBADF));
    }
    Ok(Some(0))
}

/// Bytes copied at once.
const PIECE: usize = 1 << 20;

/// One end of a copy: a descriptor of ours or of the kernel, with an offset of its own or its position.
struct End {
    fd: c_int,
    at: Option<u64>,
}

impl End {
    /// # Safety
    /// Not null means valid for a read.
    unsafe fn new(fd: c_int, at: *const off_t) -> Result<Self, Errno> {
        // SAFETY: the caller's promise.
        let at = if at.is_null() { None } else { Some(offset(unsafe { load(at) }?)?) };
        Ok(Self { fd, at })
    }

    fn read(&self, done: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        if is_ours(self.fd) {
            let description = table::get(self.fd)?;
            return match self.at {
                Some(at) => description.read_at(at + done, buf),
                None => description.reading(|at| description.read_at(at, buf)),
            };
        }
        let (fd, into, len) = (self.fd, buf.as_mut_ptr().cast::<c_void>(), buf.len());
        counted(match self.at {
            Some(at) => {
                let at = (at + done) as off_t;
                real::call!(pread(fd: c_int, into: *mut c_void, len: size_t, at: off_t) -> ssize_t)
            }
            None => real::call!(read(fd: c_int, into: *mut c_void, len: size_t) -> ssize_t),
        })
    }

    fn write(&self, done: u64, bytes: &[u8]) -> Result<usize, Errno> {
        if is_ours(self.fd) {
            let description = table::get(self.fd)?;
            return match self.at {
                Some(at) => Ok(description.write_at(at + done, bytes, How::default())?.0),
                None => description.write(bytes, How::default()),
            };
        }
        let (fd, from, len) = (self.fd, bytes.as_ptr().cast::<c_void>(), bytes.len());
        counted(match self.at {
            Some(at) => {
                let at = (at + done) as off_t;
                real::call!(pwrite(fd: c_int, from: *const c_void, len: size_t, at: off_t) -> ssize_t)
            }
            None => real::call!(write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t),
        })
    }

    /// Bytes that were read and could not be written on go back.
    fn unread(&self, n: usize) -> Result<(), Errno> {
        if self.at.is_some() || n == 0 {
            return Ok(());
        }
        if is_ours(self.fd) {
            let description = table::get(self.fd)?;
            let mut position = description.position();
            *position = position.saturating_sub(n as u64);
            return Ok(());
        }
        let (fd, by, whence) = (self.fd, -(n as off_t), libc::SEEK_CUR);
        // Of a pipe nothing can be given back.
        counted(real::call!(lseek(fd: c_int, by: off_t, whence: c_int) -> off_t) as ssize_t).map(drop)
    }
}

fn counted(n: ssize_t) -> Result<usize, Errno> {
    usize::try_from(n).map_err(|_| Errno(crate::abi::errno()))
}

/// Copies up to `len` bytes; what is copied before something fails counts.
fn transfer(from: &End, to: &End, len: usize) -> Result<usize, Errno> {
    crate::user::with_room(|room| {
        room.resize(len.min(PIECE), 0);
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(PIECE);
            let moved = from.read(done as u64, &mut room[..piece]).and_then(|read| {
                let written = if read == 0 { Ok(0) } else { to.write(done as u64, &room[..read]) };
                from.unread(read - *written.as_ref().unwrap_or(&0))?;
                written.map(|written| (read, written))
            });
            match moved {
                Ok((_, 0)) => break,
                Ok((read, written)) => {
                    done += written;
                    // Short: a pipe has no more room, a file ended.
                    if written < read || read < piece {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    })
}

fn send(out: c_int, from: c_int, at: *mut off_t, len: usize) -> Answer<ssize_t> {
    // SAFETY: the program says that `at` is null or its offset.
    let source = unsafe { End::new(from, at) }?;
    let done = transfer(&source, &End { fd: out, at: None }, len)?;
    if let Some(start) = source.at {
        // SAFETY: as above.
        unsafe { store(at, (start + done as u64) as off_t) }?;
    }
    Ok(Some(done as ssize_t))
}

pub(super) fn copy(
    from: c_int,
    from_at: *mut off_t,
    to: c_int,
    to_at: *mut off_t,
    len: usize,
    flags: c_uint,
) -> Answer<ssize_t> {
    if flags != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if !(is_ours(from) && is_ours(to)) {
        // As between two filesystems; programs copy by reading and writing then.
        return Err(Errno(libc::EXDEV));
    }
    // SAFETY: the program says that each is null or its offset.
    let (source, target) = (unsafe { End::new(from, from_at) }?, unsafe { End::new(to, to_at) }?);
    let len = check_copy(&source, &target, len)?;
    let done = transfer(&source, &target, len)?;
    for (end, place) in [(&source, from_at), (&target, to_at)] {
        if let Some(start) = end.at {
            // SAFETY: as above.
            unsafe { store(place, (start + done as u64) as off_t) }?;
        }
    }
    Ok(Some(done as ssize_t))
}

/// What copy_file_range(2) refuses before it copies anything; how much it copies.
fn check_copy(source: &End, target: &End, len: usize) -> Result<usize, Errno> {
    let (from, to) = (table::get(source.fd)?, table::get(target.fd)?);
    let (reads, writes) = (from.file()?, to.file()?);
    if !reads.mode().read || !writes.mode().write || to.flags() & libc::O_APPEND != 0 {
        return Err(Errno(libc::EBADF));
    }
    let start = source.at.unwrap_or_else(|| *from.position());
    let onto = target.at.unwrap_or_else(|| *to.position());
    let given = len;
    let len = len as u64;
    if start.checked_add(len).is_none() || onto.checked_add(len).is_none() {
        return Err(Errno(libc::EOVERFLOW));
    }
    let given = limit::room(onto, given)?;
    let len = given as u64;
    let overlap = from.inode().ino() == to.inode().ino() && start < onto + len && onto < start + len;
    if overlap && len > 0 {
        return Err(Error::Invalid("a copy onto itself").into());
    }
    Ok(given)
}
