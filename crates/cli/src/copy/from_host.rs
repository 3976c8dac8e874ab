//! A file or folder of the host as source.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use extant_format::inode::{FileType, Timestamp};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Added, Content, Meta, Sink, Source, What, below};
use crate::fail::{Failure, OnHost as _, Outcome};

/// A file or folder of the host.
pub(crate) struct HostSource {
    top: PathBuf,
    /// What the top is called on the other side; empty for "it is the target itself".
    name: Vec<u8>,
    seen: HashMap<(u64, u64), Vec<u8>>,
}

impl HostSource {
    pub(crate) fn new(top: &Path, name: &[u8]) -> Self {
        Self { top: top.to_owned(), name: name.to_vec(), seen: HashMap::new() }
    }

    fn hand_over(&mut self, at: &Path, target: &[u8], sink: &mut dyn Sink) -> Outcome<bool> {
        let meta = std::fs::symlink_metadata(at).on(at)?;
        let kind = kind(&meta);
        let ours = Meta {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            atime: Timestamp { sec: meta.atime(), nsec: meta.atime_nsec() as u32 },
            mtime: Timestamp { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 },
            xattrs: xattrs(at)?,
        };
        let id = (meta.dev(), meta.ino());
        if let Some(first) = self.seen.get(&id) {
            return sink.add(target, &ours, What::Link(first.clone())).map(|_| false);
        }
        let added = match kind {
            FileType::Directory => sink.add(target, &ours, What::Dir)?,
            FileType::Symlink => {
                let link = std::fs::read_link(at).on(at)?.into_os_string().into_vec();
                sink.add(target, &ours, What::Symlink(link))?
            }
            FileType::Regular => {
                let file = File::open(at).on(at)?;
                let mut content =
                    FileContent { size: file.metadata().on(at)?.len(), file, path: at.to_owned() };
                sink.add(target, &ours, What::File(&mut content))?
            }
            kind => {
                let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
                sink.add(target, &ours, What::Special(kind, major, minor))?
            }
        };
        if added == Added::Taken && meta.nlink() > 1 && kind != FileType::Directory {
            self.seen.insert(id, target.to_vec());
        }
        Ok(kind == FileType::Directory)
    }
}

impl Source for HostSource {
    fn feed(&mut self, sink: &mut dyn Sink) -> Outcome {
        let (top, name) = (self.top.clone(), self.name.clone());
        if !self.hand_over(&top, &name, sink)? {
            return Ok(());
        }
        let mut stack = vec![(top.clone(), name, names(&top)?.into_iter())];
        while let Some((dir, target, left)) = stack.last_mut() {
            let Some(name) = left.next() else {
                stack.pop();
                continue;
            };
            let (at, target) = (dir.join(OsStr::from_bytes(&name)), below(target, &name));
            if self.hand_over(&at, &target, sink)? {
                let left = names(&at)?.into_iter();
                stack.push((at, target, left));
            }
        }
        Ok(())
    }
}

/// The names in a folder, in order, so that two runs do the same.
fn names(dir: &Path) -> Outcome<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).on(dir)? {
        names.push(entry.on(dir)?.file_name().into_vec());
    }
    names.sort();
    Ok(names)
}

fn kind(meta: &Metadata) -> FileType {
    // The host's type bits are ext4's.
    FileType::from_mode(meta.mode() as u16).unwrap_or(FileType::Regular)
}

fn xattrs(at: &Path) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(at, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(err) => return Err(Failure::host(at, &err.into())),
    };
    let mut value = vec![0; 64 << 10];
    let mut found = Vec::new();
    for name in list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match rustix::fs::lgetxattr(at, name, &mut value[..]) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            // Gone in between, or listed for those who may read it only.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(err) => return Err(Failure::host(at, &err.into())),
        }
    }
    Ok(found)
}

/// A file's content on the host.
struct FileContent {
    file: File,
    size: u64,
    path: PathBuf,
}

impl Content for FileContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // No notion of holes: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..self.size)),
            Err(err) => return Err(Failure::host(&self.path, &err.into())),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).on(&self.path)?;
        Ok((start < self.size).then(|| start..end.min(self.size)))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
        self.file.read_exact_at(buf, offset).on(&self.path)
    }
}
