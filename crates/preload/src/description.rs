//! An open file of the image, shared by the descriptors that were duplicated from one another.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use extant::{Credentials, Error, Filesystem, InodeRef, OpenFile, OpenMode, WriteFlags};
use libc::c_int;

use crate::abi::Errno;
use crate::limit;

/// Flags of open(2) that fcntl(F_SETFL) can change.
const SETTABLE: c_int = libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

/// Flags that say how to open, and nothing of the open file.
const OPENING: c_int = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC;

/// An open file, directory, or (with O_PATH) anything.
#[derive(Debug)]
pub(crate) struct Description {
    fs: Arc<Filesystem>,
    inode: InodeRef,
    /// Of a regular file, unless it is open with O_PATH.
    file: Option<OpenFile>,
    flags: AtomicI32,
    cred: Credentials,
    /// Offset of a file; of a directory, where its listing goes on. Held over a call that moves it, as the kernel does.
    position: Mutex<u64>,
    /// For locks: never that of another one.
    id: u64,
}

/// Who gets the next [`Description::id`].
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What open(2)'s flags mean to the filesystem.
fn mode_of(flags: c_int) -> OpenMode {
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access == libc::O_RDONLY || access == libc::O_RDWR,
        write: access == libc::O_WRONLY || access == libc::O_RDWR,
        append: flags & libc::O_APPEND != 0,
        data_sync: flags & libc::O_DSYNC != 0,
        sync: flags & libc::O_SYNC == libc::O_SYNC,
        direct: flags & libc::O_DIRECT != 0,
    }
}

/// What F_GETFL says of a file opened with these flags. Large files are all that there is.
fn kept_flags(flags: c_int) -> c_int {
    const O_LARGEFILE: c_int = 0o100_000;
    let kept = flags & !OPENING;
    if flags & libc::O_PATH != 0 { kept } else { kept | O_LARGEFILE }
}

impl Description {
    /// Opens `inode`, which `cred` may open so.
    pub(crate) fn new(
        fs: &Arc<Filesystem>,
        inode: InodeRef,
        flags: c_int,
        cred: Credentials,
    ) -> Result<Self, Errno> {
        let file = if flags & libc::O_PATH != 0 || inode.is_dir() {
            None
        } else if inode.is_regular() {
            Some(OpenFile::new(fs, &inode, mode_of(flags), &cred)?)
        } else {
            // A FIFO, socket or device of the image: only a kernel could make one work.
            return Err(Errno(libc::EOPNOTSUPP));
        };
        let position = if inode.is_dir() { extant::START } else { 0 };
        Ok(Self {
            fs: Arc::clone(fs),
            inode,
            file,
            flags: AtomicI32::new(kept_flags(flags)),
            cred,
            position: Mutex::new(position),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    pub(crate) fn fs(&self) -> &Arc<Filesystem> {
        &self.fs
    }

    pub(crate) fn inode(&self) -> &InodeRef {
        &self.inode
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.cred
    }

    /// What F_GETFL says.
    pub(crate) fn flags(&self) -> c_int {
        self.flags.load(Ordering::Relaxed)
    }

    /// What F_SETFL asks.
    pub(crate) fn set_flags(&self, flags: c_int) {
        let kept = self.flags() & !SETTABLE;
        self.flags.store(kept | flags & SETTABLE, Ordering::Relaxed);
    }

    pub(crate) fn is_path_only(&self) -> bool {
        self.flags() & libc::O_PATH != 0
    }

    /// Refuses a descriptor that names a file only.
    pub(crate) fn check_open(&self) -> Result<(), Errno> {
        if self.is_path_only() { Err(Errno(libc::EBADF)) } else { Ok(()) }
    }

    /// The open regular file.
    pub(crate) fn file(&self) -> Result<&OpenFile, Errno> {
        self.check_open()?;
        self.file.as_ref().ok_or(Errno(libc::EISDIR))
    }

    /// The same; the error of calls that want a regular file and say EINVAL of all others.
    pub(crate) fn regular(&self) -> Result<&OpenFile, Errno> {
        self.check_open()?;
        self.file.as_ref().ok_or(Errno(libc::EINVAL))
    }

    pub(crate) fn position(&self) -> MutexGuard<'_, u64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from byte `offset`.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let file = self.file()?;
        let mode = file.mode();
        if !mode.read {
            return Err(Errno(libc::EBADF));
        }
        check_offset(offset, buf.len())?;
        let direct = self.flags() & libc::O_DIRECT != 0;
        Ok(if direct == mode.direct {
            file.read_at(offset, buf)?
        } else if direct {
            self.fs.read_direct(&self.inode, offset, buf)?
        } else {
            self.fs.read_at(&self.inode, offset, buf)?
        })
    }

    /// Writes at byte `offset`, or where `how` says: the bytes written and where they begin.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8], how: How) -> Result<(usize, u64), Errno> {
        let file = self.file.as_ref().ok_or(Errno(libc::EBADF))?;
        self.check_open()?;
        if !file.mode().write {
            return Err(Errno(libc::EBADF));
        }
        let flags = self.flags();
        let mode = mode_of(flags);
        let flags = WriteFlags {
            append: (mode.append || how.append) && !how.no_append,
            data_sync: mode.data_sync || how.data_sync,
            sync: mode.sync || how.sync,
            kill_suidgid: false,
        };
        check_offset(offset, bytes.len())?;
        let (mut bytes, mut _order) = (bytes, None);
        if limit::is_set() && !bytes.is_empty() {
            _order = Some(limit::Order::of(flags.append));
            let at = if flags.append { self.inode.size() } else { offset };
            bytes = &bytes[..limit::room(at, bytes.len())?];
        }
        Ok(if mode.direct {
            self.fs.write_direct(&self.inode, offset, bytes, flags, &self.cred)?
        } else {
            self.fs.write_at(&self.inode, offset, bytes, flags, &self.cred)?
        })
    }

    /// Calls `read`, which reads at the position that it is given and says how many bytes the program got, and moves the position past
    /// these.
    pub(crate) fn reading(&self, read: impl FnOnce(u64) -> Result<usize, Errno>) -> Result<usize, Errno> {
        let mut position = self.position();
        let n = read(*position)?;
        *position += n as u64;
        Ok(n)
    }

    /// Writes at the position (at the end, with O_APPEND) and moves it.
    pub(crate) fn write(&self, bytes: &[u8], how: How) -> Result<usize, Errno> {
        let mut position = self.position();
        let (n, start) = self.write_at(*position, bytes, how)?;
        *position = start + n as u64;
        Ok(n)
    }

    pub(crate) fn sync(&self, data_only: bool) -> Result<(), Errno> {
        self.check_open()?;
        match &self.file {
            Some(file) => file.fsync(data_only)?,
            None => self.fs.sync_inode(&self.inode, data_only)?,
        }
        Ok(())
    }
}

/// How one write differs from what its descriptor says (RWF_*).
#[derive(Clone, Copy, Default)]
pub(crate) struct How {
    pub(crate) append: bool,
    pub(crate) no_append: bool,
    pub(crate) data_sync: bool,
    pub(crate) sync: bool,
}

/// Offsets are `off_t`; an end past all of them is EINVAL.
fn check_offset(offset: u64, len: usize) -> Result<(), Errno> {
    match i64::try_from(offset).ok().and_then(|at| at.checked_add(i64::try_from(len).ok()?)) {
        Some(_) => Ok(()),
        None => Err(Error::Invalid("an offset past all files").into()),
    }
}

/// The offset that the program gave.
pub(crate) fn offset(given: libc::off_t) -> Result<u64, Errno> {
    u64::try_from(given).map_err(|_| Errno(libc::EINVAL))
}
