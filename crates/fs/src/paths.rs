//! The library as `std::fs` users know it: paths, [`File`], [`OpenOptions`], [`ReadDir`].
//!
//! [`Paths`] is a filesystem seen by one caller. Paths are bytes below the root, `/` between names; a leading `/` makes no
//! difference. Every look-up is done with the caller's [`Credentials`]; symbolic links are followed at most
//! [`MAX_LINKS`] times and never lead out of the image.
//!
//! Errors are [`extant::Error`](crate::Error); they convert to `std::io::Error` with the number that ext4 would give.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = std::sync::Arc::new(extant_device::OpenOptions::new().write(true).open("disk.img")?);
//! let fs = extant::Filesystem::open(device, extant::Setup::default())?;
//! let paths = fs.paths();
//! paths.create_dir_all("var/log")?;
//! paths.create("var/log/boot")?.write_all(b"hello\n")?;
//! let mut text = String::new();
//! paths.open("var/log/boot")?.read_to_string(&mut text)?;
//! fs.unmount()?;
//! # Ok(()) }
//! ```

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use extant_format::inode::FileType;

use crate::attr::{Attr, SetAttr};
use crate::cred::Credentials;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::rename::RenameFlags;
use crate::xattr::XattrSet;

mod file;
mod open;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

pub use file::File;
pub use open::OpenOptions;

/// How many symbolic links one path may lead through, as path_resolution(7) says of Linux.
pub const MAX_LINKS: usize = 40;

/// The longest path in bytes.
const PATH_MAX: usize = 4096;

/// A filesystem seen by one caller, by paths.
#[derive(Clone, Debug)]
pub struct Paths {
    fs: Arc<Filesystem>,
    cred: Credentials,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: extant_format::Ino,
    /// Type, where the directory records it.
    pub kind: Option<FileType>,
}

/// Entries of a directory in the order of its cookies, without `.` and `..`. Reads on in batches; holds no lock between.
#[derive(Debug)]
pub struct ReadDir {
    fs: Arc<Filesystem>,
    cred: Credentials,
    dir: InodeRef,
    from: u64,
    batch: VecDeque<ListedEntry>,
    done: bool,
}

/// Where the walk of a path ended: the directory and the last name in it.
struct Parent<'a> {
    dir: InodeRef,
    name: &'a [u8],
    /// The path ended with a slash: only a directory will do.
    must_be_dir: bool,
}

impl Filesystem {
    /// This filesystem by paths, as the superuser.
    #[must_use]
    pub fn paths(self: &Arc<Self>) -> Paths {
        self.paths_as(Credentials::root())
    }

    /// This filesystem by paths, as somebody.
    #[must_use]
    pub fn paths_as(self: &Arc<Self>, cred: Credentials) -> Paths {
        Paths { fs: Arc::clone(self), cred }
    }
}

impl Paths {
    /// The filesystem.
    #[must_use]
    pub const fn filesystem(&self) -> &Arc<Filesystem> {
        &self.fs
    }

    /// On whose behalf calls are made.
    #[must_use]
    pub const fn credentials(&self) -> &Credentials {
        &self.cred
    }

    /// The inode at `path`; a symbolic link at its end is followed.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `AccessDenied`, `SymlinkLoop`, `NameTooLong`; damage.
    pub fn inode(&self, path: impl AsRef<Path>) -> Result<InodeRef> {
        self.walk(bytes(path.as_ref())?, true)
    }

    /// The inode at `path`; a symbolic link at its end is what is meant.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub fn inode_no_follow(&self, path: impl AsRef<Path>) -> Result<InodeRef> {
        self.walk(bytes(path.as_ref())?, false)
    }

    /// Attributes, links followed.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        Ok(self.inode(path)?.attr())
    }

    /// Attributes of a link itself.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        Ok(self.inode_no_follow(path)?.attr())
    }

    /// Whether `path` leads somewhere.
    ///
    /// # Errors
    /// Whatever kept it from being found out.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.inode(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound | Error::NotDirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        OpenOptions::new().read(true).open(self, path)
    }

    /// Opens a file for writing; makes it, or cuts it to nothing.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn create(&self, path: impl AsRef<Path>) -> Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(self, path)
    }

    /// The whole content of a file.
    ///
    /// # Errors
    /// As [`Self::open`]; what reading gives. A file that grows while it is read may be read longer than it was.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        const STEP: usize = 1 << 20;
        let file = self.open(path)?;
        let mut content = Vec::new();
        loop {
            // Grows with what was really read, not with what a damaged i_size says.
            let at = content.len();
            content.resize(at + STEP, 0);
            let got = file.read_at(&mut content[at..], at as u64)?;
            content.truncate(at + got);
            if got == 0 {
                return Ok(content);
            }
        }
    }

    /// Makes or replaces a file with this content.
    ///
    /// # Errors
    /// As [`Self::create`]; what writing gives.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        self.create(path)?.write_all_at(content, 0)
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// As [`Self::inode`]; `NotDirectory`, `AccessDenied`. Later ones come from the iterator.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<ReadDir> {
        let dir = self.inode(path)?;
        let mut listing = ReadDir {
            fs: Arc::clone(&self.fs),
            cred: self.cred.clone(),
            dir,
            from: crate::START,
            batch: VecDeque::new(),
            done: false,
        };
        listing.fill()?;
        Ok(listing)
    }

    /// Makes a directory with mode 0777 less the umask.
    ///
    /// # Errors
    /// As [`Filesystem::mkdir`].
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = self.parent(bytes(path.as_ref())?)?;
        self.fs.mkdir(&at.dir, at.name, 0o777, &self.cred).map(drop)
    }

    /// Makes a directory and those above it that are missing.
    ///
    /// # Errors
    /// As [`Self::create_dir`]; `Exists` where something else is in the way.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match self.inode(path) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(Error::Exists),
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        if let Some(above) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.create_dir_all(above)?;
        }
        match self.create_dir(path) {
            // Somebody else made it meanwhile.
            Err(Error::Exists) if self.inode(path)?.is_dir() => Ok(()),
            done => done,
        }
    }

    /// Makes a symbolic link at `path` to `target`.
    ///
    /// # Errors
    /// As [`Filesystem::symlink`].
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let at = self.parent(bytes(path.as_ref())?)?;
        refuse_dir(&at)?;
        self.fs.symlink(&at.dir, at.name, target.as_ref().as_os_str().as_bytes(), &self.cred).map(drop)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As [`Filesystem::readlink`].
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        self.fs.readlink(&self.inode_no_follow(path)?)
    }

    /// Gives the file at `old` a second name. A link at the end of `old` is not followed.
    ///
    /// # Errors
    /// As [`Filesystem::link`].
    pub fn hard_link(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) -> Result<()> {
        let inode = self.inode_no_follow(old)?;
        let at = self.parent(bytes(new.as_ref())?)?;
        refuse_dir(&at)?;
        self.fs.link(&inode, &at.dir, at.name, &self.cred)
    }

    /// Takes the name of anything but a directory away.
    ///
    /// # Errors
    /// As [`Filesystem::unlink`].
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = self.parent(bytes(path.as_ref())?)?;
        refuse_dir(&at)?;
        self.fs.unlink(&at.dir, at.name, &self.cred).map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Filesystem::rmdir`].
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = self.parent(bytes(path.as_ref())?)?;
        self.fs.rmdir(&at.dir, at.name, &self.cred).map(drop)
    }

    /// Removes a directory with everything in it; symbolic links are removed, not followed. Anything else at `path` is
    /// removed like a file.
    ///
    /// # Errors
    /// The first failure; what was removed before stays removed.
    pub fn remove_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let at = self.parent(bytes(path.as_ref())?)?;
        let top = self.fs.lookup(&at.dir, at.name, &self.cred)?;
        if !top.is_dir() {
            return self.fs.unlink(&at.dir, at.name, &self.cred).map(drop);
        }
        // A stack of its own: trees may be deeper than a thread's stack.
        let mut stack = vec![(at.dir, at.name.to_vec(), top)];
        while let Some((_, _, dir)) = stack.last() {
            let dir = dir.clone();
            match self.remove_files_in(&dir)? {
                Some((name, below)) => stack.push((dir, name, below)),
                None => {
                    let Some((above, name, _)) = stack.pop() else { break };
                    self.fs.rmdir(&above, &name, &self.cred)?;
                }
            }
        }
        Ok(())
    }

    /// Unlinks what is in `dir` up to the first directory, which is returned.
    fn remove_files_in(&self, dir: &InodeRef) -> Result<Option<(Vec<u8>, InodeRef)>> {
        loop {
            let (_, batch) = list_batch(&self.fs, dir, crate::START, &self.cred)?;
            if batch.is_empty() {
                return Ok(None);
            }
            for entry in batch {
                let child = self.fs.lookup(dir, &entry.name, &self.cred)?;
                if child.is_dir() {
                    return Ok(Some((entry.name, child)));
                }
                self.fs.unlink(dir, &entry.name, &self.cred)?;
            }
        }
    }

    /// Renames, replacing what can be replaced.
    ///
    /// # Errors
    /// As [`Filesystem::rename`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename_with(from, to, RenameFlags::default())
    }

    /// renameat2(2).
    ///
    /// # Errors
    /// As [`Filesystem::rename`].
    pub fn rename_with(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        flags: RenameFlags,
    ) -> Result<()> {
        let (from, to) = (self.parent(bytes(from.as_ref())?)?, self.parent(bytes(to.as_ref())?)?);
        if (from.must_be_dir || to.must_be_dir) && !self.fs.lookup(&from.dir, from.name, &self.cred)?.is_dir()
        {
            return Err(Error::NotDirectory);
        }
        self.fs.rename(&from.dir, from.name, &to.dir, to.name, flags, &self.cred).map(drop)
    }

    /// Changes attributes; links followed.
    ///
    /// # Errors
    /// As [`Filesystem::set_attr`].
    pub fn set_attr(&self, path: impl AsRef<Path>, change: &SetAttr) -> Result<Attr> {
        self.fs.set_attr(&self.inode(path)?, change, &self.cred)
    }

    /// Changes the permission bits; links followed.
    ///
    /// # Errors
    /// As [`Filesystem::set_attr`].
    pub fn set_permissions(&self, path: impl AsRef<Path>, mode: u16) -> Result<()> {
        self.set_attr(path, &SetAttr { mode: Some(mode), ..SetAttr::default() }).map(drop)
    }

    /// The value of an extended attribute; links followed.
    ///
    /// # Errors
    /// As [`Filesystem::get_xattr`].
    pub fn get_xattr(&self, path: impl AsRef<Path>, name: &str) -> Result<Vec<u8>> {
        self.fs.get_xattr(&self.inode(path)?, name.as_bytes(), &self.cred)
    }

    /// Sets an extended attribute; links followed.
    ///
    /// # Errors
    /// As [`Filesystem::set_xattr`].
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: &str, value: &[u8]) -> Result<()> {
        self.fs.set_xattr(&self.inode(path)?, name.as_bytes(), value, XattrSet::Any, &self.cred)
    }

    /// Walks `path` to its end.
    fn walk(&self, path: &[u8], follow: bool) -> Result<InodeRef> {
        if path.is_empty() {
            return Err(Error::NotFound);
        }
        self.walk_from(self.fs.root()?, path, follow, &mut 0)
    }

    /// The same from `dir` on, for who has gone through so many `links`.
    fn walk_from(&self, mut dir: InodeRef, path: &[u8], follow: bool, links: &mut usize) -> Result<InodeRef> {
        let must_be_dir = wants_dir(path);
        let mut names = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").peekable();
        while let Some(name) = names.next() {
            let child = self.fs.lookup(&dir, name, &self.cred)?;
            let last = names.peek().is_none();
            if child.kind() != FileType::Symlink || last && !follow && !must_be_dir {
                dir = child;
                continue;
            }
            *links += 1;
            if *links > MAX_LINKS {
                return Err(Error::SymlinkLoop);
            }
            let target = self.fs.readlink(&child)?;
            let from = if target.first() == Some(&b'/') { self.fs.root()? } else { dir };
            dir = self.walk_from(from, &target, true, links)?;
        }
        if must_be_dir && !dir.is_dir() {
            return Err(Error::NotDirectory);
        }
        Ok(dir)
    }

    /// Walks `path` to the directory of its last name.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<Parent<'a>> {
        let trimmed = trim_slashes(path);
        let split = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        let (above, name) = trimmed.split_at(split);
        match name {
            b"" => Err(Error::Exists),
            b"." | b".." => Err(Error::Invalid("a path that ends with . or ..")),
            name => {
                let dir = self.walk(if above.is_empty() { b"/" } else { above }, true)?;
                Ok(Parent { dir, name, must_be_dir: trimmed.len() < path.len() })
            }
        }
    }
}

/// Whether the path's end says that only a directory will do.
fn wants_dir(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}

fn bytes(path: &Path) -> Result<&[u8]> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= PATH_MAX {
        return Err(Error::NameTooLong);
    }
    if bytes.contains(&0) {
        return Err(Error::Invalid("a path with a zero byte"));
    }
    Ok(bytes)
}

fn trim_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |i| i + 1);
    &path[..end]
}

/// What is made here cannot be a directory, so a slash at the end is a mistake.
fn refuse_dir(at: &Parent<'_>) -> Result<()> {
    if at.must_be_dir { Err(Error::NotDirectory) } else { Ok(()) }
}

/// Some entries from position `from` on, and where to go on; `.` and `..` are left out.
fn list_batch(
    fs: &Filesystem,
    dir: &InodeRef,
    from: u64,
    cred: &Credentials,
) -> Result<(u64, VecDeque<ListedEntry>)> {
    const BATCH: usize = 256;
    let (mut next, mut batch) = (from, VecDeque::new());
    fs.read_dir(dir, from, cred, &mut |entry| {
        next = entry.next;
        if entry.name != b"." && entry.name != b".." {
            batch.push_back(ListedEntry { name: entry.name.to_vec(), ino: entry.ino, kind: entry.kind });
        }
        if batch.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok((next, batch))
}

impl ReadDir {
    fn fill(&mut self) -> Result<()> {
        let (next, batch) = list_batch(&self.fs, &self.dir, self.from, &self.cred)?;
        self.done = batch.is_empty();
        (self.from, self.batch) = (next, batch);
        Ok(())
    }
}

impl Iterator for ReadDir {
    type Item = Result<ListedEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.is_empty()
            && !self.done
            && let Err(error) = self.fill()
        {
            self.done = true;
            return Some(Err(error));
        }
        self.batch.pop_front().map(Ok)
    }
}
