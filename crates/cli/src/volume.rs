//! A filesystem in an image, opened for one command: paths, entries, and closing it properly.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use extant::{Attr, Credentials, Filesystem, InodeRef, Setup};
use extant_device::BlockDevice;
use extant_format::Ino;
use extant_format::inode::FileType;

use crate::fail::{At as _, Failure, Outcome};
use crate::image::{ImageArgs, ReadArgs};

/// Symbolic links followed in one path at most, as in Linux.
const MAX_LINKS: u32 = 40;

/// A name in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
}

/// Called with a path, the name's entry and its inode; says whether to go into a directory.
pub(crate) type Visit<'v> = &'v mut dyn FnMut(&[u8], &Entry, &InodeRef) -> Outcome<bool>;

/// The directories that a walk has been in. One with two names holds what it holds twice, and so on below it: a damaged image of a few
/// kilobytes can have more paths than anybody can walk.
#[derive(Debug, Default)]
pub(crate) struct Visited(HashSet<Ino>);

impl Visited {
    /// Notes a directory that is gone into at `path`.
    pub(crate) fn enter(&mut self, dir: &InodeRef, path: &[u8]) -> Outcome {
        if self.0.insert(dir.ino()) {
            return Ok(());
        }
        let path = crate::fail::show_path(path);
        Err(Failure::new(format!("{path}: a directory with a second name, or one that holds itself"))
            .hint("the image is damaged: `extant fsck -f IMAGE` shows all of it"))
    }
}

/// An open filesystem. Commands act as root: who can write the image file can write every byte of it anyway.
pub(crate) struct Volume {
    pub(crate) fs: Arc<Filesystem>,
    pub(crate) cred: Credentials,
    image: PathBuf,
}

impl Volume {
    /// Opens an image for reading; the image does not change, whatever its journal holds.
    pub(crate) fn read(args: &ReadArgs) -> Outcome<Self> {
        let (device, _) = args.device()?;
        Self::open(device, args.setup()?, args.at.image.clone())
    }

    /// Opens an image for changing it.
    pub(crate) fn write(args: &ImageArgs) -> Outcome<Self> {
        Self::open(args.writable()?, args.setup()?, args.image.clone())
    }

    fn open(device: Arc<dyn BlockDevice>, setup: Setup, image: PathBuf) -> Outcome<Self> {
        let fs = Filesystem::open(device, setup).map_err(|err| Failure::mount(&image, &err))?;
        Ok(Self { fs, cred: Credentials::root(), image })
    }

    /// Writes everything and leaves the image clean. A command that changes an image ends with this, or has failed.
    pub(crate) fn close(self) -> Outcome {
        self.fs.unmount().map_err(|err| Failure::mount(&self.image, &err))
    }

    /// The inode of a path; a symbolic link in last place is followed.
    pub(crate) fn resolve(&self, path: &[u8]) -> Outcome<InodeRef> {
        self.walk(path, true)
    }

    /// The inode of a path; a symbolic link in last place is what is meant.
    pub(crate) fn resolve_link(&self, path: &[u8]) -> Outcome<InodeRef> {
        self.walk(path, false)
    }

    /// The directory in which a path's last name is or will be, and that name, without the slashes behind it
    /// ([`means_directory`]).
    pub(crate) fn parent(&self, path: &[u8]) -> Outcome<(InodeRef, Vec<u8>)> {
        let trimmed = path.trim_ascii_end_slashes();
        let (dir, name) = match trimmed.iter().rposition(|b| *b == b'/') {
            Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
            None => (&trimmed[..0], trimmed),
        };
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Failure::new(format!("{}: this needs a name", crate::fail::show_path(path))));
        }
        Ok((self.resolve(dir)?, name.to_vec()))
    }

    /// What a name in a directory leads to, if it is there.
    pub(crate) fn child(&self, dir: &InodeRef, name: &[u8]) -> Result<Option<InodeRef>, extant::Error> {
        match self.fs.lookup(dir, name, &self.cred) {
            Ok(inode) => Ok(Some(inode)),
            Err(extant::Error::NotFound) => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn walk(&self, path: &[u8], follow_last: bool) -> Outcome<InodeRef> {
        // Directories from the root to where we are, so that `..` needs no question.
        let mut trail = vec![self.fs.root().at(b"/")?];
        let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = &trail[trail.len() - 1];
            if !here.is_dir() {
                return Err(Failure::inside(path, &extant::Error::NotDirectory));
            }
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            if name == b"." {
                continue;
            }
            let inode = self.fs.lookup(here, &name, &self.cred).at(path)?;
            if inode.kind() != FileType::Symlink || (todo.is_empty() && !follow_last) {
                trail.push(inode);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Failure::inside(path, &extant::Error::SymlinkLoop));
            }
            let target = self.fs.readlink(&inode).at(path)?;
            if target.starts_with(b"/") {
                trail.truncate(1);
            }
            todo.extend(components(&target).rev().map(<[u8]>::to_vec));
        }
        trail.pop().ok_or_else(|| Failure::inside(path, &extant::Error::NotFound))
    }

    /// The entries of a directory by name, without `.` and `..`.
    pub(crate) fn entries(&self, dir: &InodeRef, path: &[u8]) -> Outcome<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut take = |entry: extant::DirEntry<'_>| {
            if entry.name != b"." && entry.name != b".." {
                entries.push(Entry { name: entry.name.to_vec(), ino: entry.ino });
            }
            ControlFlow::Continue(())
        };
        self.fs.read_dir(dir, 0, &self.cred, &mut take).at(path)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Calls `visit` for everything below `dir`, in order of names, directories before what is in them. `visit` says
    /// whether to go into a directory. One that has a second name is an error.
    pub(crate) fn walk_tree(&self, dir: &InodeRef, path: &[u8], visit: Visit<'_>) -> Outcome {
        // An explicit stack: a damaged image may hold a chain of directories longer than a thread's stack.
        let mut stack = vec![(dir.clone(), path.to_vec(), self.entries(dir, path)?.into_iter())];
        let mut visited = Visited::default();
        visited.enter(dir, path)?;
        while let Some((dir, path, entries)) = stack.last_mut() {
            let Some(entry) = entries.next() else {
                stack.pop();
                continue;
            };
            let below = join(path, &entry.name);
            let inode = self.fs.lookup(dir, &entry.name, &self.cred).at(&below)?;
            if !visit(&below, &entry, &inode)? || !inode.is_dir() {
                continue;
            }
            visited.enter(&inode, &below)?;
            let entries = self.entries(&inode, &below)?.into_iter();
            stack.push((inode, below, entries));
        }
        Ok(())
    }

    /// The attributes of an inode.
    pub(crate) fn attr(&self, inode: &InodeRef) -> Attr {
        inode.attr()
    }

    /// The names of the extended attributes.
    pub(crate) fn xattr_names(&self, inode: &InodeRef, path: &[u8]) -> Outcome<Vec<Vec<u8>>> {
        let list = self.fs.list_xattr(inode, &self.cred).at(path)?;
        Ok(list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

/// A directory's path and a name in it.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" | b"/" => [b"/", name].concat(),
        dir => [dir, b"/", name].concat(),
    }
}

/// The names in a path. A slash at its end is a `.`: it means a directory, and follows a symbolic link.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let last = means_directory(path).then_some(&b"."[..]);
    path.split(|b| *b == b'/').filter(|name| !name.is_empty()).chain(last)
}

/// Whether a path ends with a slash: only a directory can be meant.
pub(crate) fn means_directory(path: &[u8]) -> bool {
    path.ends_with(b"/")
}

trait TrimSlashes {
    fn trim_ascii_end_slashes(&self) -> &Self;
}

impl TrimSlashes for [u8] {
    fn trim_ascii_end_slashes(&self) -> &Self {
        let keep = self.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
        &self[..keep]
    }
}
