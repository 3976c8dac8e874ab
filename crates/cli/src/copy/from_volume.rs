//! An image as source.

use std::collections::HashMap;
use std::ops::Range;

use extant::{InodeRef, SeekKind};
use extant_format::Ino;
use extant_format::inode::FileType;

use super::{Added, Content, Meta, Sink, Source, What, below, is_safe_name};
use crate::fail::{At as _, Failure, Outcome, show_path};
use crate::volume::Volume;

/// A tree of an image.
pub(crate) struct VolumeSource<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) top: InodeRef,
    /// Where the top is, for messages.
    pub(crate) path: Vec<u8>,
    /// What the top is called on the other side; empty for "it is the target itself".
    pub(crate) name: Vec<u8>,
}

impl Source for VolumeSource<'_> {
    fn feed(&mut self, sink: &mut dyn Sink) -> Outcome {
        let mut seen = HashMap::new();
        hand_over(self.volume, &self.top, &self.path, &self.name, &mut seen, sink)?;
        if !self.top.is_dir() {
            return Ok(());
        }
        let skip = self.path.iter().all(|b| *b == b'/');
        let strip = self.path.len();
        self.volume.walk_tree(&self.top, &self.path, &mut |path, entry, inode| {
            // fsck's own folder is no part of what people stored.
            if skip && path == b"/lost+found" && self.volume.entries(inode, path)?.is_empty() {
                return Ok(false);
            }
            if !is_safe_name(&entry.name) {
                return Err(Failure::new(format!("{}: not a name that can be copied", show_path(path))));
            }
            let tail = path.get(strip..).unwrap_or_default();
            let tail = tail.strip_prefix(b"/").unwrap_or(tail);
            hand_over(self.volume, inode, path, &below(&self.name, tail), &mut seen, sink)?;
            Ok(true)
        })
    }
}

fn hand_over(
    volume: &Volume,
    inode: &InodeRef,
    path: &[u8],
    target: &[u8],
    seen: &mut HashMap<Ino, Vec<u8>>,
    sink: &mut dyn Sink,
) -> Outcome {
    let attr = volume.attr(inode);
    let mut xattrs = Vec::new();
    for name in volume.xattr_names(inode, path)? {
        let value = volume.fs.get_xattr(inode, &name, &volume.cred).at(path)?;
        xattrs.push((name, value));
    }
    let meta = Meta {
        mode: u32::from(attr.mode) & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        atime: attr.atime,
        mtime: attr.mtime,
        xattrs,
    };
    if let Some(first) = seen.get(&inode.ino()) {
        return sink.add(target, &meta, What::Link(first.clone())).map(drop);
    }
    let added = match attr.kind {
        FileType::Directory => sink.add(target, &meta, What::Dir)?,
        FileType::Symlink => {
            let link = volume.fs.readlink(inode).at(path)?;
            sink.add(target, &meta, What::Symlink(link))?
        }
        FileType::Regular => {
            let mut content = FileContent { volume, inode, size: attr.size, path: path.to_vec() };
            sink.add(target, &meta, What::File(&mut content))?
        }
        kind => sink.add(target, &meta, What::Special(kind, attr.rdev.major, attr.rdev.minor))?,
    };
    if added == Added::Taken && attr.nlink > 1 && !inode.is_dir() {
        seen.insert(inode.ino(), target.to_vec());
    }
    Ok(())
}

/// A file's content in an image.
struct FileContent<'a> {
    volume: &'a Volume,
    inode: &'a InodeRef,
    size: u64,
    path: Vec<u8>,
}

impl Content for FileContent<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        let fs = &self.volume.fs;
        let start = match fs.seek(self.inode, from, SeekKind::Data) {
            Ok(start) => start,
            Err(extant::Error::NoSuchAddress) => return Ok(None),
            Err(err) => return Err(Failure::inside(&self.path, &err)),
        };
        let end = fs.seek(self.inode, start, SeekKind::Hole).at(&self.path)?;
        Ok(Some(start..end.min(self.size)))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let len = self.volume.fs.read_at(self.inode, at, &mut buf[done..]).at(&self.path)?;
            if len == 0 {
                return Err(Failure::new(format!("{}: it ends early", show_path(&self.path))));
            }
            done += len;
        }
        Ok(())
    }
}
