//! Reading a directory with everything below it.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use extant_format::{DeviceNumber, FileType, Timestamp};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::tree::{Content, Kind, Links, Meta, Node, NodeId, Place, Tree};
use crate::archive::{Data, add_data};
use crate::error::{MkfsError, Result, source_error};
use crate::options::Options;
use crate::progress::Progress;

struct Scanner<'a> {
    tree: Tree,
    links: Links,
    /// Whether attributes are wanted, and the source's filesystem has any.
    attributes: bool,
    progress: &'a dyn Progress,
}

/// Reads the directory `root`.
///
/// # Errors
/// [`MkfsError::Source`] naming the file.
pub(super) fn scan(root: &Path, options: &Options, progress: &dyn Progress) -> Result<Tree> {
    let attributes = !options.extended.no_copy_xattrs;
    let mut scanner = Scanner { tree: Tree::new(), links: Links::default(), attributes, progress };
    let stat = rustix::fs::stat(root).map_err(|e| source_error(root, e))?;
    scanner.tree.nodes[0].meta = meta_of(&stat);
    scanner.tree.nodes[0].xattrs = scanner.xattrs_of(root)?;
    let mut todo = vec![(0, root.to_owned())];
    while let Some((id, path)) = todo.pop() {
        scanner.directory(id, &path, &mut todo)?;
    }
    Ok(scanner.tree)
}

/// Opens a directory; only the root may be reached through a symbolic link.
fn open_dir(path: &Path, root: bool) -> Result<OwnedFd> {
    let nofollow = if root { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | nofollow;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| source_error(path, e))
}

fn meta_of(stat: &Stat) -> Meta {
    let nsec = stat.st_mtime_nsec as u32;
    Meta {
        perms: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { sec: stat.st_mtime, nsec },
    }
}

impl Scanner<'_> {
    fn directory(&mut self, id: NodeId, path: &Path, todo: &mut Vec<(NodeId, PathBuf)>) -> Result<()> {
        let fd = open_dir(path, id == 0)?;
        let dir_index = self.tree.dirs.len() as u32;
        self.tree.dirs.push(path.to_owned());
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd).map_err(|e| source_error(path, e))? {
            let entry = entry.map_err(|e| source_error(path, e))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let child = path.join(std::ffi::OsStr::from_bytes(name));
            let stat = rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| source_error(&child, e))?;
            let node = self.node(&stat, &fd, dir_index, name, &child)?;
            if matches!(self.tree.nodes[node as usize].kind, Kind::Directory(_)) {
                todo.push((node, child));
            }
            entries.push((name.into(), node));
        }
        self.progress.advance(entries.len() as u64);
        self.tree.nodes[id as usize].kind = Kind::Directory(entries);
        Ok(())
    }

    /// The node of a file, the one that an earlier name of it made if there was one.
    fn node(
        &mut self,
        stat: &Stat,
        dir: &OwnedFd,
        dir_index: u32,
        name: &[u8],
        path: &Path,
    ) -> Result<NodeId> {
        let Some(file_type) = FileType::from_mode(stat.st_mode as u16) else {
            return Err(MkfsError::Member { path: path.to_owned(), what: "unknown file type".to_owned() });
        };
        let many = stat.st_nlink > 1 && file_type != FileType::Directory;
        if many && let Some(&node) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            self.tree.nodes[node as usize].names += 1;
            return Ok(node);
        }
        let kind = match file_type {
            FileType::Directory => Kind::Directory(Vec::new()),
            FileType::Regular => Kind::Regular(content(stat, dir, dir_index, name, path)?),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|e| source_error(path, e))?;
                Kind::Symlink(target.as_bytes().into())
            }
            FileType::CharDevice | FileType::BlockDevice => {
                let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                Kind::Device(file_type, DeviceNumber { major, minor })
            }
            FileType::Fifo | FileType::Socket => Kind::Other(file_type),
        };
        let xattrs = self.xattrs_of(path)?;
        let node = self.tree.add(Node { meta: meta_of(stat), kind, names: 1, xattrs });
        if many {
            self.links.insert((stat.st_dev, stat.st_ino), node);
        }
        Ok(node)
    }

    fn xattrs_of(&mut self, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if !self.attributes {
            return Ok(Vec::new());
        }
        let mut list = [0u8; 4096];
        let len = match rustix::fs::llistxattr(path, &mut list[..]) {
            Ok(0) | Err(Errno::PERM) => return Ok(Vec::new()),
            Ok(len) => len,
            Err(Errno::RANGE) => return long_xattrs(path),
            Err(Errno::NOTSUP) => {
                self.attributes = false;
                return Ok(Vec::new());
            }
            Err(e) => return Err(source_error(path, e)),
        };
        values(path, &list[..len])
    }
}

fn long_xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list[..]).map_err(|e| source_error(path, e))?;
    values(path, &list[..len])
}

fn values(path: &Path, list: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut value = vec![0; 1 << 16];
    for name in list.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            // Gone since it was listed, or not for us.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(source_error(path, e)),
        }
    }
    Ok(found)
}

fn content(stat: &Stat, dir: &OwnedFd, dir_index: u32, name: &[u8], path: &Path) -> Result<Content> {
    let size = stat.st_size as u64;
    let place = Place::Host { dir: dir_index, name: name.into() };
    let sparse = (stat.st_blocks as u64).saturating_mul(512) < size && size > 4096;
    let data = if sparse { Some(data_ranges(dir, name, size, path)?) } else { None };
    Ok(Content { size, place, data })
}

/// Where a sparse file has data, by SEEK_DATA and SEEK_HOLE.
fn data_ranges(dir: &OwnedFd, name: &[u8], size: u64, path: &Path) -> Result<Vec<Data>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| source_error(path, e))?;
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            Err(e) => return Err(source_error(path, e)),
        };
        let end =
            rustix::fs::seek(&file, SeekFrom::Hole(start)).map_err(|e| source_error(path, e))?.min(size);
        if end <= start {
            break;
        }
        add_data(&mut ranges, start, end - start);
        at = end;
    }
    Ok(ranges)
}
