//! How to open a file.

use std::path::Path;

use crate::create::NewInode;
use crate::cred::Access;
use crate::error::{Error, Result};
use crate::icache::InodeRef;
use crate::open_file::{OpenFile, OpenMode};

use super::{File, Paths, bytes};

/// Options of an open, as `std::fs::OpenOptions` has them.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    mode: OpenMode,
    truncate: bool,
    create: bool,
    create_new: bool,
    no_follow: bool,
    permissions: u16,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// Nothing is allowed, nothing is made.
    #[must_use]
    pub fn new() -> Self {
        Self {
            mode: OpenMode::default(),
            truncate: false,
            create: false,
            create_new: false,
            no_follow: false,
            permissions: 0o666,
        }
    }

    /// Reading.
    #[must_use]
    pub fn read(mut self, yes: bool) -> Self {
        self.mode.read = yes;
        self
    }

    /// Writing.
    #[must_use]
    pub fn write(mut self, yes: bool) -> Self {
        self.mode.write = yes;
        self
    }

    /// Writing, always at the end.
    #[must_use]
    pub fn append(mut self, yes: bool) -> Self {
        self.mode.append = yes;
        self.mode.write |= yes;
        self
    }

    /// Past the page cache (O_DIRECT): see [`OpenMode::direct`].
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.mode.direct = yes;
        self
    }

    /// Cut to nothing.
    #[must_use]
    pub fn truncate(mut self, yes: bool) -> Self {
        self.truncate = yes;
        self
    }

    /// Made if missing.
    #[must_use]
    pub fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// Made; it is an error if something is there.
    #[must_use]
    pub fn create_new(mut self, yes: bool) -> Self {
        self.create_new = yes;
        self
    }

    /// A symbolic link at the end of the path is an error (O_NOFOLLOW).
    #[must_use]
    pub fn no_follow(mut self, yes: bool) -> Self {
        self.no_follow = yes;
        self
    }

    /// Every write is durable when it returns (O_SYNC).
    #[must_use]
    pub fn sync(mut self, yes: bool) -> Self {
        self.mode.sync = yes;
        self
    }

    /// Permission bits of a file that is made, less the caller's umask; 0666 unless told.
    #[must_use]
    pub fn permissions(mut self, mode: u16) -> Self {
        self.permissions = mode & 0o7777;
        self
    }

    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `IsDirectory`, `AccessDenied`, `SymlinkLoop`, `Invalid` for anything but a regular file or
    /// for options that contradict each other.
    pub fn open(&self, paths: &Paths, path: impl AsRef<Path>) -> Result<File> {
        if (self.truncate || self.create || self.create_new) && !self.mode.write {
            return Err(Error::Invalid("truncate or create without write"));
        }
        if !self.mode.read && !self.mode.write {
            return Err(Error::Invalid("open for neither reading nor writing"));
        }
        let path = bytes(path.as_ref())?;
        let (inode, made) = self.find_or_make(paths, path)?;
        if !made {
            let want = Access((u8::from(self.mode.read) << 2) | (u8::from(self.mode.write) << 1));
            paths.fs.access(&inode, want, &paths.cred)?;
        }
        let open = OpenFile::new(&paths.fs, &inode, self.mode, &paths.cred)?;
        // Also of nothing: blocks may be preallocated past the end.
        if self.truncate && !made {
            open.set_len(0)?;
        }
        Ok(File::new(open))
    }

    /// The inode, and whether it was made here.
    fn find_or_make(&self, paths: &Paths, path: &[u8]) -> Result<(InodeRef, bool)> {
        if !self.create && !self.create_new {
            return self.find(paths, path).map(|inode| (inode, false));
        }
        loop {
            if !self.create_new {
                match self.find(paths, path) {
                    Ok(inode) => return Ok((inode, false)),
                    Err(Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            let at = paths.parent(path)?;
            if at.must_be_dir {
                return Err(Error::IsDirectory);
            }
            match paths.fs.mknod(&at.dir, at.name, &NewInode::file(self.permissions), &paths.cred) {
                Ok(inode) => return Ok((inode, true)),
                // Made by somebody else meanwhile, or a symbolic link that leads nowhere.
                Err(Error::Exists) if !self.create_new => {
                    let there = paths.walk(path, false)?;
                    if there.kind() == crate::FileType::Symlink {
                        return Err(Error::NotFound);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn find(&self, paths: &Paths, path: &[u8]) -> Result<InodeRef> {
        let inode = paths.walk(path, !self.no_follow)?;
        if inode.kind() == crate::FileType::Symlink {
            return Err(Error::SymlinkLoop);
        }
        Ok(inode)
    }
}
