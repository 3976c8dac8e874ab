//! An image as sink.

use std::collections::HashMap;

use extant::{DeviceNumber, InodeRef, NewInode, SetAttr, SetTime, WriteFlags, XattrSet};
use extant_format::inode::FileType;
use extant_mkfs::archive::pax::XATTR_ACL_DEFAULT;

use super::{Added, Content, Meta, Sink, What, each_piece};
use crate::fail::{At as _, Failure, Outcome};
use crate::volume::{Volume, join};

/// A directory of an image as the target. What is there already is replaced, except directories, which are filled.
pub(crate) struct VolumeSink<'a> {
    volume: &'a Volume,
    top: InodeRef,
    /// Where the top is, for messages.
    path: Vec<u8>,
    /// Directories whose times and default access control lists are set when nothing more is put into them: what is made
    /// in them must not inherit.
    last: Vec<LastTouch>,
    /// Directories by path, so that each is looked up once.
    dirs: HashMap<Vec<u8>, InodeRef>,
}

/// A directory, its path for messages, its times, and its default access control list if it has one.
type LastTouch = (InodeRef, Vec<u8>, SetAttr, Option<Vec<u8>>);

impl<'a> VolumeSink<'a> {
    pub(crate) fn new(volume: &'a Volume, top: InodeRef, path: &[u8]) -> Self {
        Self { volume, top, path: path.to_vec(), last: Vec::new(), dirs: HashMap::new() }
    }

    /// The directory that `path` (relative to the top) is in, made if it is missing, and the last name.
    fn place<'p>(&mut self, path: &'p [u8]) -> Outcome<(InodeRef, &'p [u8])> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        Ok((self.dir(dir)?, name))
    }

    fn dir(&mut self, path: &[u8]) -> Outcome<InodeRef> {
        if path.is_empty() {
            return Ok(self.top.clone());
        }
        if let Some(found) = self.dirs.get(path) {
            return Ok(found.clone());
        }
        let (above, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (self.dir(&path[..at])?, &path[at + 1..]),
            None => (self.top.clone(), path),
        };
        let shown = join(&self.path, path);
        let dir = match self.volume.child(&above, name).at(&shown)? {
            Some(inode) if inode.is_dir() => inode,
            // Never through a link: an archive could lead out of its place that way.
            Some(_) => return Err(Failure::inside(&shown, &extant::Error::NotDirectory)),
            None => self.volume.fs.mkdir(&above, name, 0o755, &self.volume.cred).at(&shown)?,
        };
        self.dirs.insert(path.to_vec(), dir.clone());
        Ok(dir)
    }

    /// Removes what is in the way of something that is not a directory.
    fn make_room(&self, dir: &InodeRef, name: &[u8], shown: &[u8]) -> Outcome {
        match self.volume.child(dir, name).at(shown)? {
            None => Ok(()),
            Some(inode) if inode.is_dir() => Err(Failure::inside(shown, &extant::Error::IsDirectory)
                .hint("a directory is in the place of a file; `extant rm -r` removes it")),
            Some(_) => self.volume.fs.unlink(dir, name, &self.volume.cred).at(shown).map(drop),
        }
    }

    /// Gives what is at `first` a further name. What it is comes before room is made: the name may be its only one.
    fn link(&mut self, first: &[u8], dir: &InodeRef, name: &[u8], shown: &[u8]) -> Outcome {
        let (fs, cred) = (&self.volume.fs, &self.volume.cred);
        let (first_dir, first_name) = self.place(first)?;
        let inode = fs.lookup(&first_dir, first_name, cred).at(shown)?;
        if self.volume.child(dir, name).at(shown)?.is_some_and(|there| there == inode) {
            return Ok(());
        }
        self.make_room(dir, name, shown)?;
        fs.link(&inode, dir, name, cred).at(shown).map(drop)
    }

    fn fill(&self, inode: &InodeRef, content: &mut dyn Content, shown: &[u8]) -> Outcome {
        let Volume { fs, cred, .. } = self.volume;
        let size = content.size();
        let mut end = 0;
        each_piece(content, &mut |offset, bytes| {
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                let written =
                    fs.write_at(inode, at, &bytes[done..], WriteFlags::default(), cred).at(shown)?;
                if written.0 == 0 {
                    return Err(Failure::inside(shown, &extant::Error::NoSpace));
                }
                done += written.0;
            }
            end = offset + bytes.len() as u64;
            Ok(())
        })?;
        if end < size {
            let grow = SetAttr { size: Some(size), ..SetAttr::default() };
            fs.set_attr(inode, &grow, cred).at(shown)?;
        }
        Ok(())
    }

    fn dress(&mut self, inode: &InodeRef, meta: &Meta, shown: &[u8]) -> Outcome {
        let cred = &self.volume.cred;
        // First: a change of owner takes capabilities (which are an attribute) and set-id bits away.
        let owner = SetAttr { uid: Some(meta.uid), gid: Some(meta.gid), ..SetAttr::default() };
        self.volume.fs.set_attr(inode, &owner, cred).at(shown)?;
        let waits = |name: &[u8]| inode.is_dir() && name == XATTR_ACL_DEFAULT;
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| !waits(name)) {
            self.volume.fs.set_xattr(inode, name, value, XattrSet::Any, cred).at(shown)?;
        }
        if inode.kind() != FileType::Symlink {
            let mode = SetAttr { mode: Some(meta.mode as u16), ..SetAttr::default() };
            self.volume.fs.set_attr(inode, &mode, cred).at(shown)?;
        }
        let times = SetAttr {
            atime: Some(SetTime::At(meta.atime)),
            mtime: Some(SetTime::At(meta.mtime)),
            ..SetAttr::default()
        };
        if inode.is_dir() {
            let default = meta.xattrs.iter().find(|(name, _)| waits(name)).map(|(_, value)| value.clone());
            self.last.push((inode.clone(), shown.to_vec(), times, default));
            return Ok(());
        }
        self.volume.fs.set_attr(inode, &times, cred).at(shown).map(drop)
    }
}

impl Sink for VolumeSink<'_> {
    fn add(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Outcome<Added> {
        let shown = if path.is_empty() { self.path.clone() } else { join(&self.path, path) };
        if path.is_empty() {
            let top = self.top.clone();
            return match what {
                What::Dir => self.dress(&top, meta, &shown).map(|()| Added::Taken),
                _ => Err(Failure::inside(&shown, &extant::Error::IsDirectory)),
            };
        }
        if let What::Dir = what {
            let dir = self.dir(path)?;
            return self.dress(&dir, meta, &shown).map(|()| Added::Taken);
        }
        let (dir, name) = self.place(path)?;
        if let What::Link(first) = what {
            return self.link(&first, &dir, name, &shown).map(|()| Added::Taken);
        }
        self.make_room(&dir, name, &shown)?;
        let (fs, cred) = (&self.volume.fs, &self.volume.cred);
        let node = |kind: FileType, rdev| NewInode { mode: kind.mode_bits() | meta.mode as u16, rdev };
        let inode = match what {
            What::Dir | What::Link(_) => return Ok(Added::Taken),
            What::File(content) => {
                let new = node(FileType::Regular, DeviceNumber::default());
                let inode = fs.mknod(&dir, name, &new, cred).at(&shown)?;
                self.fill(&inode, content, &shown)?;
                inode
            }
            What::Symlink(target) => fs.symlink(&dir, name, &target, cred).at(&shown)?,
            What::Special(kind, major, minor) => {
                let new = node(kind, DeviceNumber { major, minor });
                fs.mknod(&dir, name, &new, cred).at(&shown)?
            }
        };
        self.dress(&inode, meta, &shown).map(|()| Added::Taken)
    }

    fn finish(&mut self) -> Outcome {
        for (inode, shown, times, default) in self.last.drain(..).rev() {
            if let Some(value) = default {
                let (fs, cred) = (&self.volume.fs, &self.volume.cred);
                fs.set_xattr(&inode, XATTR_ACL_DEFAULT, &value, XattrSet::Any, cred).at(&shown)?;
            }
            self.volume.fs.set_attr(&inode, &times, &self.volume.cred).at(&shown)?;
        }
        Ok(())
    }
}
