//! Scripts on a folder of a mounted filesystem: the kernel's ext4, or a FUSE mount.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::RwLockReadGuard;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Executor, Op, Rename, Special};
use crate::rng::pattern;
use crate::tree::Tree;

/// Runs scripts in a folder, through system calls.
#[derive(Debug)]
pub struct DirExecutor {
    name: String,
    root: PathBuf,
    open: HashMap<String, File>,
    /// While there are open files; after them: fields drop in order.
    files: Option<RwLockReadGuard<'static, ()>>,
}

impl DirExecutor {
    /// An executor that works under `root`. Modes are taken as they stand whatever the umask.
    #[must_use]
    pub fn new(name: &str, root: &Path) -> Self {
        Self { name: name.to_owned(), root: root.to_owned(), open: HashMap::new(), files: None }
    }

    fn at(&self, path: &str) -> PathBuf {
        match self.open.get(path) {
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            None if path == "/" => self.root.clone(),
            None => self.root.join(path),
        }
    }

    fn open(&self, path: &str) -> Result<File, Errno> {
        if let Some(file) = self.open.get(path) {
            return file.try_clone().map_err(|err| errno(&err));
        }
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        options.open(self.at(path)).map_err(|err| errno(&err))
    }

    fn fallocate(&self, path: &str, offset: u64, len: u64, flags: FallocateFlags) -> Result<(), Errno> {
        rustix::fs::fallocate(self.open(path)?, flags, offset, len)
    }

    /// Opens for reading whatever can be opened, directories too.
    fn open_any(&self, path: &str) -> Result<File, Errno> {
        File::open(self.at(path)).map_err(|err| errno(&err))
    }
}

/// The errno of an I/O error of this system.
fn errno(err: &std::io::Error) -> Errno {
    Errno::from_io_error(err).unwrap_or(Errno::IO)
}

impl Executor for DirExecutor {
    fn name(&self) -> &str {
        &self.name
    }

    fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        let guard = self.files.is_none().then(crate::oracle::files_on_a_mount);
        let io = |result: std::io::Result<()>| result.map_err(|err| errno(&err));
        match op {
            Op::Mkdir { path, mode } => {
                rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode))?;
                rustix::fs::chmod(self.at(path), Mode::from_raw_mode(*mode))
            }
            Op::Create { path, mode } => {
                let flags =
                    rustix::fs::OFlags::CREATE | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::WRONLY;
                let file = rustix::fs::open(self.at(path), flags, Mode::from_raw_mode(*mode))?;
                rustix::fs::fchmod(file, Mode::from_raw_mode(*mode))
            }
            Op::Symlink { target, path } => rustix::fs::symlink(target.as_str(), self.at(path)),
            Op::Link { old, new } => rustix::fs::link(self.at(old), self.at(new)),
            Op::Mknod { path, node } => {
                let (kind, device) = match *node {
                    Special::Fifo => (FileType::Fifo, 0),
                    Special::Socket => (FileType::Socket, 0),
                    Special::Char(major, minor) => {
                        (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                    }
                };
                rustix::fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(0o600), device)?;
                rustix::fs::chmod(self.at(path), Mode::from_raw_mode(0o600))
            }
            Op::Unlink { path } => rustix::fs::unlink(self.at(path)),
            Op::Rmdir { path } => rustix::fs::rmdir(self.at(path)),
            Op::Rename { old, new, how } => {
                let flags = match how {
                    Rename::Plain => RenameFlags::empty(),
                    Rename::NoReplace => RenameFlags::NOREPLACE,
                    Rename::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.at(old), CWD, self.at(new), flags)
            }
            Op::Chmod { path, mode } => rustix::fs::chmod(self.at(path), Mode::from_raw_mode(*mode)),
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                rustix::fs::chownat(CWD, self.at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Write { path, offset, len, seed } => {
                io(self.open(path)?.write_all_at(&pattern(*seed, *offset, *len as usize), *offset))
            }
            Op::Append { path, len, seed } => {
                let file = self.open(path)?;
                let end = file.metadata().map_err(|err| errno(&err))?.len();
                io(file.write_all_at(&pattern(*seed, end, *len as usize), end))
            }
            Op::Truncate { path, size } => io(self.open(path)?.set_len(*size)),
            Op::Utimes { path, seconds, nanoseconds } => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: i64::from(*nanoseconds) };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Fallocate { path, offset, len, keep_size } => {
                let flags = if *keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                self.fallocate(path, *offset, *len, flags)
            }
            Op::Punch { path, offset, len } => {
                self.fallocate(path, *offset, *len, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
            }
            Op::Zero { path, offset, len, keep_size } => {
                let keep = if *keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                self.fallocate(path, *offset, *len, FallocateFlags::ZERO_RANGE | keep)
            }
            Op::Collapse { path, offset, len } => {
                self.fallocate(path, *offset, *len, FallocateFlags::COLLAPSE_RANGE)
            }
            Op::Insert { path, offset, len } => {
                self.fallocate(path, *offset, *len, FallocateFlags::INSERT_RANGE)
            }
            // A kernel could; whoever compares with one leaves these out.
            Op::Move { .. } | Op::Store { .. } | Op::Persist { .. } | Op::Msync { .. } => {
                Err(Errno::OPNOTSUPP)
            }
            Op::Setxattr { path, name, len, seed } => {
                let name = CString::new(name.as_str()).map_err(|_| Errno::INVAL)?;
                let value = pattern(*seed, 0, *len);
                match self.open.get(path) {
                    Some(file) => rustix::fs::fsetxattr(file, name.as_c_str(), &value, XattrFlags::empty()),
                    None => {
                        rustix::fs::lsetxattr(self.at(path), name.as_c_str(), &value, XattrFlags::empty())
                    }
                }
            }
            Op::Removexattr { path, name } => match self.open.get(path) {
                Some(file) => rustix::fs::fremovexattr(file, name.as_str()),
                None => rustix::fs::lremovexattr(self.at(path), name.as_str()),
            },
            Op::Open { path, handle } => {
                let file = self.open(path)?;
                self.open.insert(handle.clone(), file);
                self.files = self.files.take().or(guard);
                Ok(())
            }
            Op::Close { handle } => {
                let closed = self.open.remove(handle).map(drop).ok_or(Errno::BADF);
                if self.open.is_empty() {
                    self.files = None;
                }
                closed
            }
            Op::Fsync { path } => rustix::fs::fsync(self.open_any(path)?),
            Op::Fdatasync { path } => rustix::fs::fdatasync(self.open_any(path)?),
            Op::Sync => {
                let root = File::open(&self.root).map_err(|err| errno(&err))?;
                rustix::fs::syncfs(root)
            }
        }
    }

    fn tree(&mut self) -> Tree {
        Tree::read(&self.root, false).unwrap_or_else(|err| panic!("{}: {err}", self.name))
    }
}
