//! Locks on files. The process has the image for itself, so only its own locks can be in each other's way: those of open files
//! (flock(2), F_OFD_SETLK), not those of the process (F_SETLK), which never conflict with themselves.

use std::sync::{Condvar, Mutex, PoisonError};

use extant::Ino;
use libc::{c_int, off_t};

use crate::abi::{Answer, Errno, interpose};
use crate::description::Description;
use crate::table::{self, is_ours};
use crate::user::{load, store};

/// A lock of an open file on a range, or (flock) on the file as a whole. flock(2) and ranges do not see each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lock {
    ino: Ino,
    owner: u64,
    whole: bool,
    exclusive: bool,
    start: u64,
    end: u64,
}

impl Lock {
    fn touches(&self, other: &Self) -> bool {
        let same_kind = self.ino == other.ino && self.whole == other.whole;
        same_kind && self.start < other.end && other.start < self.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner && self.touches(other) && (self.exclusive || other.exclusive)
    }
}

static LOCKS: Mutex<Vec<Lock>> = Mutex::new(Vec::new());
static FREED: Condvar = Condvar::new();

interpose! {
    fn flock(fd: c_int, operation: c_int) -> c_int,
        if is_ours(fd) => lock_whole(fd, operation);
    fn lockf[lockf64](fd: c_int, command: c_int, len: off_t) -> c_int,
        if is_ours(fd) => lock_from_here(fd, command, len);
}

fn lock_whole(fd: c_int, operation: c_int) -> Answer<c_int> {
    let description = table::get(fd)?;
    description.check_open()?;
    let wait = operation & libc::LOCK_NB == 0;
    let (ino, owner) = (description.inode().ino(), description.id());
    let lock = |exclusive| Lock { ino, owner, whole: true, exclusive, start: 0, end: u64::MAX };
    match operation & !libc::LOCK_NB {
        libc::LOCK_SH => take(lock(false), wait)?,
        libc::LOCK_EX => take(lock(true), wait)?,
        libc::LOCK_UN => give_back(&lock(true)),
        _ => return Err(Errno(libc::EINVAL)),
    }
    Ok(Some(0))
}

/// Takes a lock, in the place of what its owner has of the range.
fn take(lock: Lock, wait: bool) -> Result<(), Errno> {
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    while locks.iter().any(|other| lock.conflicts(other)) {
        if !wait {
            return Err(Errno(libc::EAGAIN));
        }
        locks = FREED.wait(locks).unwrap_or_else(PoisonError::into_inner);
    }
    cut_out(&mut locks, &lock);
    locks.push(lock);
    drop(locks);
    // What was exclusive may be shared now.
    FREED.notify_all();
    Ok(())
}

fn give_back(lock: &Lock) {
    cut_out(&mut LOCKS.lock().unwrap_or_else(PoisonError::into_inner), lock);
    FREED.notify_all();
}

/// Takes the range of `lock` out of the locks of its owner.
fn cut_out(locks: &mut Vec<Lock>, lock: &Lock) {
    let mut parts = Vec::new();
    locks.retain(|other| {
        if other.owner != lock.owner || !other.touches(lock) {
            return true;
        }
        if other.start < lock.start {
            parts.push(Lock { end: lock.start, ..*other });
        }
        if lock.end < other.end {
            parts.push(Lock { start: lock.end, ..*other });
        }
        false
    });
    locks.append(&mut parts);
}

/// A descriptor of `what` was closed: with the last one its locks go.
pub(super) fn closed(what: Option<&Description>) {
    let Some(what) = what else { return };
    let owner = what.id();
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    if locks.iter().any(|lock| lock.owner == owner) && table::is_last(owner) {
        locks.retain(|lock| lock.owner != owner);
        drop(locks);
        FREED.notify_all();
    }
}

/// The range that a `struct flock` means: start, and end (not included).
fn range(description: &Description, lock: &libc::flock) -> Result<(u64, u64), Errno> {
    let base = match c_int::from(lock.l_whence) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => *description.position(),
        libc::SEEK_END => description.inode().size(),
        _ => return Err(Errno(libc::EINVAL)),
    };
    let start = base.checked_add_signed(lock.l_start).ok_or(Errno(libc::EINVAL))?;
    match lock.l_len {
        0 => Ok((start, u64::MAX)),
        len if len > 0 => {
            let end = start.checked_add(len.unsigned_abs()).filter(|end| i64::try_from(*end).is_ok());
            Ok((start, end.ok_or(Errno(libc::EOVERFLOW))?))
        }
        len => Ok((start.checked_add_signed(len).ok_or(Errno(libc::EINVAL))?, start)),
    }
}

/// A lock for reading needs a descriptor for reading, one for writing a descriptor for writing.
fn check_kind(description: &Description, kind: c_int) -> Result<(), Errno> {
    let access = description.flags() & libc::O_ACCMODE;
    let refused = match kind {
        libc::F_RDLCK => access == libc::O_WRONLY,
        libc::F_WRLCK => access == libc::O_RDONLY,
        libc::F_UNLCK => false,
        _ => return Err(Errno(libc::EINVAL)),
    };
    if refused { Err(Errno(libc::EBADF)) } else { Ok(()) }
}

/// Locks of the process: granted, since nobody else has the image.
pub(super) fn posix(fd: c_int, command: c_int, place: *mut libc::flock) -> Answer<c_int> {
    let description = table::get(fd)?;
    description.check_open()?;
    // SAFETY: the program says that it is a `struct flock`.
    let mut lock = unsafe { load(place) }?;
    range(&description, &lock)?;
    if command == libc::F_GETLK {
        lock.l_type = libc::F_UNLCK as libc::c_short;
        // SAFETY: as above.
        unsafe { store(place, lock) }?;
    } else {
        check_kind(&description, c_int::from(lock.l_type))?;
    }
    Ok(Some(0))
}

/// Locks of the open file.
pub(super) fn ofd(fd: c_int, command: c_int, place: *mut libc::flock) -> Answer<c_int> {
    let description = table::get(fd)?;
    description.check_open()?;
    // SAFETY: the program says that it is a `struct flock`.
    let mut given = unsafe { load(place) }?;
    if given.l_pid != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let (start, end) = range(&description, &given)?;
    let kind = c_int::from(given.l_type);
    let (ino, owner) = (description.inode().ino(), description.id());
    let lock = Lock { ino, owner, whole: false, exclusive: kind == libc::F_WRLCK, start, end };
    if command == libc::F_OFD_GETLK {
        let locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
        given.l_type = libc::F_UNLCK as libc::c_short;
        if let Some(other) = locks.iter().find(|other| lock.conflicts(other)) {
            given.l_type = if other.exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
            given.l_whence = libc::SEEK_SET as libc::c_short;
            given.l_start = other.start as off_t;
            given.l_len = if other.end == u64::MAX { 0 } else { (other.end - other.start) as off_t };
            given.l_pid = -1;
        }
        drop(locks);
        // SAFETY: as above.
        unsafe { store(place, given) }?;
        return Ok(Some(0));
    }
    check_kind(&description, kind)?;
    if kind == libc::F_UNLCK {
        give_back(&lock);
    } else {
        take(lock, command == libc::F_OFD_SETLKW)?;
    }
    Ok(Some(0))
}

/// lockf(3): a lock of the process from the position on.
fn lock_from_here(fd: c_int, command: c_int, len: off_t) -> Answer<c_int> {
    let description = table::get(fd)?;
    description.check_open()?;
    let kind = match command {
        libc::F_LOCK | libc::F_TLOCK => libc::F_WRLCK,
        libc::F_ULOCK | libc::F_TEST => libc::F_UNLCK,
        _ => return Err(Errno(libc::EINVAL)),
    };
    let position = *description.position() as off_t;
    if position.checked_add(len).is_none_or(|end| end < 0) {
        return Err(Errno(libc::EINVAL));
    }
    check_kind(&description, kind)?;
    Ok(Some(0))
}
