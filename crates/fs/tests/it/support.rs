//! Running scripts on the library, and reading a tree through it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, DeviceNumber, FallocateMode, FiemapHow, FileType, Filesystem, InodeRef, MapOptions, Mapping,
    MoveRange, NewInode, OpenFile, OpenMode, Protection, RenameFlags, SetAttr, SetTime, Setup, SyncMode,
    Timestamp, WriteFlags, XattrSet,
};
use extant_device::OpenOptions;
use extant_testkit::rng::pattern;
use extant_testkit::script::{Executor, Op, Rename, Special};
use extant_testkit::tree::{Data, Kind, Node, Tree};
use rustix::io::Errno;

/// Opens an image for writing.
pub(crate) fn open_rw(image: &Path) -> Arc<Filesystem> {
    open_with(image, "")
}

/// Opens an image for writing with mount options.
pub(crate) fn open_with(image: &Path, options: &str) -> Arc<Filesystem> {
    let device = OpenOptions::new().write(true).open(image).expect("image");
    Filesystem::open(Arc::new(device), Setup::with_options(options).expect("options")).expect("mount")
}

/// Opens an image for reading.
pub(crate) fn open_ro(image: &Path) -> Arc<Filesystem> {
    let device = OpenOptions::new().open(image).expect("image");
    Filesystem::open(Arc::new(device), Setup::read_only()).expect("mount")
}

/// Scripts on the library.
pub(crate) struct LibExecutor {
    pub(crate) fs: Arc<Filesystem>,
    cred: Credentials,
    open: HashMap<String, Arc<OpenFile>>,
    /// By inode numbers: one for each file that was stored to.
    maps: HashMap<u32, Mapping>,
    /// The same with MAP_SYNC, and what writes bytes of the device back from the processor's caches.
    sync_maps: HashMap<u32, Mapping>,
    write_back: Option<WriteBack>,
}

/// Writes bytes of a device back from the processor's caches.
type WriteBack = Box<dyn Fn(Range<u64>)>;

/// Bytes of a mapping, more than any script's file has.
const MAPPED: usize = 256 << 10;

fn errno<T>(result: extant::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| {
        assert!(!e.is_corruption() && e.errno() != 5, "{e}");
        Errno::from_raw_os_error(e.errno())
    })
}

impl LibExecutor {
    pub(crate) fn new(fs: Arc<Filesystem>) -> Self {
        Self {
            fs,
            cred: Credentials::root().with_umask(0),
            open: HashMap::new(),
            maps: HashMap::new(),
            sync_maps: HashMap::new(),
            write_back: None,
        }
    }

    /// On a device that is persistent memory.
    pub(crate) fn on_persistent(fs: Arc<Filesystem>, write_back: impl Fn(Range<u64>) + 'static) -> Self {
        Self { write_back: Some(Box::new(write_back)), ..Self::new(fs) }
    }

    fn walk(&self, path: &str) -> extant::Result<InodeRef> {
        if let Some(file) = self.open.get(path) {
            return Ok(file.inode().clone());
        }
        let mut at = self.fs.root()?;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = self.fs.lookup(&at, part.as_bytes(), &self.cred)?;
        }
        Ok(at)
    }

    fn split<'p>(&self, path: &'p str) -> extant::Result<(InodeRef, &'p [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.walk(dir)?, name.as_bytes()))
    }

    fn open(&self, path: &str) -> extant::Result<Arc<OpenFile>> {
        if let Some(file) = self.open.get(path) {
            return Ok(Arc::clone(file));
        }
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        OpenFile::new(&self.fs, &self.walk(path)?, mode, &self.cred).map(Arc::new)
    }

    /// The mapping of a file, made now if there is none.
    fn mapping(&mut self, path: &str, sync: bool) -> extant::Result<&Mapping> {
        let file = self.open(path)?;
        let options = MapOptions { protection: Protection::READ_WRITE, sync, ..MapOptions::default() };
        let maps = if sync { &mut self.sync_maps } else { &mut self.maps };
        Ok(match maps.entry(file.inode().ino().0) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(file.map(0, MAPPED, &options)?),
        })
    }

    /// Writes bytes of a file back from the processor's caches, wherever they are on the device.
    fn write_back(&self, path: &str, range: Range<u64>) -> extant::Result<()> {
        let write_back = self.write_back.as_ref().ok_or(extant::Error::NotSupported("no such device"))?;
        let len = range.end - range.start;
        for at in self.fs.fiemap(&self.walk(path)?, range.start, len, FiemapHow::empty(), usize::MAX)? {
            let (start, end) = (at.logical.max(range.start), (at.logical + at.length).min(range.end));
            let place = |byte: u64| at.physical + (byte - at.logical);
            write_back(place(start)..place(end));
        }
        Ok(())
    }

    /// Moves a file's content to blocks of a file without a name.
    fn move_away(&self, file: &OpenFile) -> extant::Result<()> {
        let size = file.inode().size();
        if size == 0 {
            return Ok(());
        }
        let donor = self.fs.tmpfile(&self.fs.root()?, 0o600, &self.cred)?;
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let donor = OpenFile::new(&self.fs, &donor, mode, &self.cred)?;
        donor.fallocate(FallocateMode::Allocate, 0, size, false)?;
        let len = size.div_ceil(self.fs.geometry().block_size().into());
        file.move_extents(&donor, MoveRange { orig_start: 0, donor_start: 0, len }).map(drop)
    }

    fn apply_inner(&mut self, op: &Op) -> extant::Result<()> {
        match op {
            Op::Store { path, offset, len, seed } => {
                let bytes = pattern(*seed, *offset, *len as usize);
                return self.mapping(path, false)?.write_at(*offset as usize, &bytes);
            }
            Op::Persist { path, offset, len, seed } => {
                let bytes = pattern(*seed, *offset, *len as usize);
                self.mapping(path, self.fs.is_persistent())?.write_at(*offset as usize, &bytes)?;
                return self.write_back(path, *offset..offset + len);
            }
            Op::Msync { path } => return self.mapping(path, false)?.sync(0..MAPPED, SyncMode::Sync),
            _ => {}
        }
        let (fs, cred) = (&self.fs, &self.cred);
        match op {
            // Done above, with all of `self`.
            Op::Store { .. } | Op::Persist { .. } | Op::Msync { .. } => {}
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.split(path)?;
                let new = fs.mkdir(&dir, name, 0o755, cred)?;
                fs.set_attr(&new, &SetAttr { mode: Some(*mode as u16), ..SetAttr::default() }, cred)?;
            }
            Op::Create { path, mode } => {
                let (dir, name) = self.split(path)?;
                fs.mknod(&dir, name, &NewInode::file(*mode as u16), cred)?;
            }
            Op::Symlink { target, path } => {
                let (dir, name) = self.split(path)?;
                fs.symlink(&dir, name, target.as_bytes(), cred)?;
            }
            Op::Link { old, new } => {
                let old = self.walk(old)?;
                let (dir, name) = self.split(new)?;
                fs.link(&old, &dir, name, cred)?;
            }
            Op::Mknod { path, node } => {
                let (dir, name) = self.split(path)?;
                let (kind, rdev) = match *node {
                    Special::Fifo => (FileType::Fifo, DeviceNumber::default()),
                    Special::Socket => (FileType::Socket, DeviceNumber::default()),
                    Special::Char(major, minor) => (FileType::CharDevice, DeviceNumber { major, minor }),
                };
                fs.mknod(&dir, name, &NewInode { mode: kind.mode_bits() | 0o600, rdev }, cred)?;
            }
            Op::Unlink { path } => {
                let (dir, name) = self.split(path)?;
                fs.unlink(&dir, name, cred)?;
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.split(path)?;
                fs.rmdir(&dir, name, cred)?;
            }
            Op::Rename { old, new, how } => {
                let flags = RenameFlags {
                    noreplace: *how == Rename::NoReplace,
                    exchange: *how == Rename::Exchange,
                    whiteout: false,
                };
                let (from, from_name) = self.split(old)?;
                let (to, to_name) = self.split(new)?;
                fs.rename(&from, from_name, &to, to_name, flags, cred)?;
            }
            Op::Chmod { path, mode } => {
                let inode = self.walk(path)?;
                fs.set_attr(&inode, &SetAttr { mode: Some(*mode as u16), ..SetAttr::default() }, cred)?;
            }
            Op::Chown { path, uid, gid } => {
                let inode = self.walk(path)?;
                fs.set_attr(
                    &inode,
                    &SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() },
                    cred,
                )?;
            }
            Op::Truncate { path, size } => {
                let inode = self.walk(path)?;
                fs.set_attr(&inode, &SetAttr { size: Some(*size), ..SetAttr::default() }, cred)?;
            }
            Op::Utimes { path, seconds, nanoseconds } => {
                let time = SetTime::At(Timestamp { sec: *seconds, nsec: *nanoseconds });
                let inode = self.walk(path)?;
                let change = SetAttr { atime: Some(time), mtime: Some(time), ..SetAttr::default() };
                fs.set_attr(&inode, &change, cred)?;
            }
            Op::Setxattr { path, name, len, seed } => {
                let inode = self.walk(path)?;
                fs.set_xattr(&inode, name.as_bytes(), &pattern(*seed, 0, *len), XattrSet::Any, cred)?;
            }
            Op::Removexattr { path, name } => {
                let inode = self.walk(path)?;
                fs.remove_xattr(&inode, name.as_bytes(), cred)?;
            }
            Op::Move { path } => self.move_away(&*self.open(path)?)?,
            Op::Open { path, handle } => {
                let file = self.open(path)?;
                self.open.insert(handle.clone(), file);
            }
            Op::Close { handle } => drop(self.open.remove(handle).ok_or(extant::Error::BadFile)?),
            Op::Fsync { path } | Op::Fdatasync { path } => {
                let inode = self.walk(path)?;
                fs.fsync(&inode, matches!(op, Op::Fdatasync { .. }))?;
            }
            Op::Sync => fs.sync()?,
            Op::Write { path, offset, len, seed } => {
                let bytes = pattern(*seed, *offset, *len as usize);
                let file = self.open(path)?;
                let done = file.write_at(*offset, &bytes)?;
                assert_eq!(done, (bytes.len(), *offset), "a short write");
            }
            Op::Append { path, len, seed } => {
                let file = self.open(path)?;
                let at = file.inode().size();
                let bytes = pattern(*seed, at, *len as usize);
                let flags = WriteFlags { append: true, ..WriteFlags::default() };
                assert_eq!(fs.write_at(file.inode(), 0, &bytes, flags, cred)?, (bytes.len(), at));
            }
            Op::Fallocate { path, offset, len, keep_size } => {
                self.open(path)?.fallocate(FallocateMode::Allocate, *offset, *len, *keep_size)?;
            }
            Op::Punch { path, offset, len } => {
                self.open(path)?.fallocate(FallocateMode::PunchHole, *offset, *len, true)?;
            }
            Op::Zero { path, offset, len, keep_size } => {
                self.open(path)?.fallocate(FallocateMode::ZeroRange, *offset, *len, *keep_size)?;
            }
            Op::Collapse { path, offset, len } => {
                self.open(path)?.fallocate(FallocateMode::CollapseRange, *offset, *len, false)?;
            }
            Op::Insert { path, offset, len } => {
                self.open(path)?.fallocate(FallocateMode::InsertRange, *offset, *len, false)?;
            }
        }
        Ok(())
    }
}

impl Executor for LibExecutor {
    fn name(&self) -> &str {
        "extant"
    }

    fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        errno(self.apply_inner(op))
    }

    fn tree(&mut self) -> Tree {
        let mut tree = tree_of(&self.fs);
        // Two executors do the same at different times.
        tree.nodes.values_mut().for_each(|node| node.mtime = None);
        tree
    }
}

/// All names of a directory.
pub(crate) fn names(fs: &Filesystem, dir: &InodeRef) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut from = extant::START;
    // In small portions, so that positions are put to use.
    loop {
        let mut count = 0;
        let mut next = from;
        fs.read_dir(dir, from, &Credentials::root(), &mut |entry| {
            if count == 7 {
                return ControlFlow::Break(());
            }
            count += 1;
            next = entry.next;
            if entry.name != b"." && entry.name != b".." {
                names.push(entry.name.to_vec());
            }
            ControlFlow::Continue(())
        })
        .expect("listing");
        if count < 7 {
            return names;
        }
        from = next;
    }
}

/// The tree as the library shows it; `lost+found` is left out, as the kernel's reader leaves it out.
pub(crate) fn tree_of(fs: &Filesystem) -> Tree {
    let mut tree = Tree::default();
    let mut first = BTreeMap::new();
    visit(fs, &fs.root().expect("root"), Vec::new(), &mut tree, &mut first);
    tree.with_links()
}

fn visit(
    fs: &Filesystem,
    inode: &InodeRef,
    path: Vec<u8>,
    tree: &mut Tree,
    first: &mut BTreeMap<u32, Vec<u8>>,
) {
    let mut node = node_of(fs, inode);
    if node.kind != Kind::Dir && node.nlink > 1 {
        node.link_of = Some(first.entry(inode.ino().0).or_insert_with(|| path.clone()).clone());
    }
    tree.nodes.insert(path.clone(), node);
    if !inode.is_dir() {
        return;
    }
    let mut list = names(fs, inode);
    let count = list.len();
    list.sort();
    list.dedup();
    assert_eq!(list.len(), count, "a name was listed twice in /{}", path.escape_ascii());
    for name in list {
        if path.is_empty() && name == b"lost+found" {
            tree.nodes.get_mut(&path).expect("just inserted").nlink -= 1;
            continue;
        }
        let child = fs.lookup(inode, &name, &Credentials::root()).expect("listed");
        let child_path = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
        visit(fs, &child, child_path, tree, first);
    }
}

fn node_of(fs: &Filesystem, inode: &InodeRef) -> Node {
    let cred = Credentials::root();
    let attr = inode.attr();
    let kind = match attr.kind {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
    };
    let mut node = Node::new(kind, u32::from(attr.mode & 0o7777));
    (node.uid, node.gid, node.nlink) = (attr.uid, attr.gid, u64::from(attr.nlink));
    node.mtime = Some((attr.mtime.sec, attr.mtime.nsec));
    node.rdev = (attr.rdev.major, attr.rdev.minor);
    for name in fs.list_xattr(inode, &cred).expect("names").split(|b| *b == 0).filter(|n| !n.is_empty()) {
        node.xattrs.insert(name.to_vec(), fs.get_xattr(inode, name, &cred).expect("value"));
    }
    match kind {
        Kind::File => {
            node.data = Data::of_ranges(attr.size, &[(0, attr.size)], |at, buf| {
                let n = fs.read_at(inode, at, buf).map_err(std::io::Error::from)?;
                assert_eq!(n, buf.len(), "short read");
                Ok(())
            })
            .expect("content");
        }
        Kind::Symlink => node.target = fs.readlink(inode).expect("target"),
        _ => {}
    }
    node
}

/// Feature combinations that this kernel mounts read-write: a name, mke2fs's arguments.
pub(crate) const COMBINATIONS: &[(&str, &str)] = &[
    ("default", "-t ext4"),
    ("1k", "-t ext4 -b 1024"),
    ("2k", "-t ext4 -b 2048"),
    ("ext2", "-t ext2"),
    ("ext3", "-t ext3"),
    ("ext2 1k", "-t ext2 -b 1024"),
    ("small inodes", "-t ext4 -I 128"),
    ("large inodes", "-t ext4 -I 1024"),
    ("no extents", "-t ext4 -O ^extent,^64bit"),
    ("no checksums", "-t ext4 -O ^metadata_csum,uninit_bg"),
    ("no journal", "-t ext4 -O ^has_journal"),
    ("no htree", "-t ext4 -O ^dir_index"),
    ("no file types", "-t ext4 -O ^filetype"),
    ("bigalloc", "-t ext4 -O bigalloc -C 16384"),
    ("meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
    ("inline data", "-t ext4 -O inline_data"),
    ("inline data 1k", "-t ext4 -b 1024 -I 512 -O inline_data"),
    ("ea_inode", "-t ext4 -O ea_inode"),
    ("large_dir", "-t ext4 -b 1024 -O large_dir"),
    ("orphan_file", "-t ext4 -O orphan_file"),
    ("csum_seed", "-t ext4 -O metadata_csum_seed"),
    ("32 bit", "-t ext4 -O ^64bit"),
    ("no flex_bg", "-t ext4 -O ^flex_bg"),
    ("sparse_super2", "-t ext4 -O sparse_super2,^resize_inode"),
    ("no dir_nlink", "-t ext4 -O ^dir_nlink,^extra_isize,^huge_file"),
];
