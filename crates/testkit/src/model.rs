//! The reference: a POSIX filesystem tree in memory, written for being obviously right. It knows what names, links,
//! contents, permissions and xattrs must be after a script, not where blocks are, and acts for root.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use crate::rng::pattern;
use crate::script::{Executor, Op, Rename, Special};
use crate::tree::{CHUNK, DataBuilder, Kind, Node, Tree};

const ROOT: u64 = 2;
/// Longest file name, in bytes.
const NAME_MAX: usize = 255;

/// The model: a tree that scripts run on.
#[derive(Clone, Debug)]
pub struct Model {
    inodes: HashMap<u64, Inode>,
    next: u64,
    /// Open files by their handles.
    open: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
struct Inode {
    node: Node,
    data: Sparse,
    /// Directories only.
    names: BTreeMap<String, u64>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty root directory of mode 755.
    #[must_use]
    pub fn new() -> Self {
        let mut model = Self { inodes: HashMap::new(), next: ROOT, open: BTreeMap::new() };
        let root = Node { nlink: 2, ..Node::new(Kind::Dir, 0o755) };
        model.add(root);
        model
    }

    /// A model whose tree is that of `ops`, each of which must succeed.
    ///
    /// # Panics
    /// If one fails.
    #[must_use]
    pub fn after(ops: &[Op]) -> Self {
        let mut model = Self::new();
        for op in ops {
            model.apply(op).unwrap_or_else(|err| panic!("`{op}`: {err}"));
        }
        model
    }

    fn add(&mut self, node: Node) -> u64 {
        let number = self.next;
        self.next += 1;
        self.inodes.insert(number, Inode { node, data: Sparse::default(), names: BTreeMap::new() });
        number
    }

    fn inode(&self, number: u64) -> &Inode {
        &self.inodes[&number]
    }

    fn inode_mut(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("a name's inode exists")
    }

    fn lookup(&self, path: &str) -> Result<u64, Errno> {
        if let Some(number) = self.open.get(path) {
            return Ok(*number);
        }
        let mut at = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let inode = self.inode(at);
            if inode.node.kind != Kind::Dir {
                return Err(Errno::NOTDIR);
            }
            if name.len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            at = *inode.names.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(at)
    }

    /// The directory that holds the last name of `path`, and that name.
    fn parent<'p>(&self, path: &'p str) -> Result<(u64, &'p str), Errno> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.lookup(dir)?;
        if self.inode(dir).node.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        Ok((dir, name))
    }

    fn child(&self, dir: u64, name: &str) -> Option<u64> {
        self.inode(dir).names.get(name).copied()
    }

    fn is_dir(&self, number: u64) -> bool {
        self.inode(number).node.kind == Kind::Dir
    }

    fn make(&mut self, path: &str, mut node: Node) -> Result<u64, Errno> {
        let (dir, name) = self.parent(path)?;
        if self.child(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        let parent = &self.inode(dir).node;
        if parent.mode & 0o2000 != 0 {
            node.gid = parent.gid;
        }
        if node.kind == Kind::Dir {
            node.nlink = 2;
            self.inode_mut(dir).node.nlink += 1;
        }
        let number = self.add(node);
        self.inode_mut(dir).names.insert(name.to_owned(), number);
        Ok(number)
    }

    /// The file of a path, opened for writing.
    fn file(&mut self, path: &str) -> Result<&mut Inode, Errno> {
        let number = self.lookup(path)?;
        match self.inode(number).node.kind {
            Kind::File => Ok(self.inode_mut(number)),
            Kind::Dir => Err(Errno::ISDIR),
            Kind::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn link(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        let number = self.lookup(old)?;
        let (dir, name) = self.parent(new)?;
        if self.child(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        if self.is_dir(number) {
            return Err(Errno::PERM);
        }
        self.inode_mut(number).node.nlink += 1;
        self.inode_mut(dir).names.insert(name.to_owned(), number);
        Ok(())
    }

    fn drop_link(&mut self, number: u64) {
        let inode = self.inode_mut(number);
        inode.node.nlink -= 1;
        self.forget(number);
    }

    /// Frees a file that has neither a name nor a user.
    fn forget(&mut self, number: u64) {
        if self.inode(number).node.nlink == 0 && !self.open.values().any(|open| *open == number) {
            self.inodes.remove(&number);
        }
    }

    fn keep_open(&mut self, path: &str, handle: &str) -> Result<(), Errno> {
        self.file(path)?;
        let number = self.lookup(path)?;
        if let Some(before) = self.open.insert(handle.to_owned(), number) {
            self.forget(before);
        }
        Ok(())
    }

    fn close(&mut self, handle: &str) -> Result<(), Errno> {
        let number = self.open.remove(handle).ok_or(Errno::BADF)?;
        self.forget(number);
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        let number = self.child(dir, name).ok_or(Errno::NOENT)?;
        if self.is_dir(number) {
            return Err(Errno::ISDIR);
        }
        self.inode_mut(dir).names.remove(name);
        self.drop_link(number);
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        let number = self.child(dir, name).ok_or(Errno::NOENT)?;
        if !self.is_dir(number) {
            return Err(Errno::NOTDIR);
        }
        if !self.inode(number).names.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.inode_mut(dir).names.remove(name);
        self.inode_mut(dir).node.nlink -= 1;
        self.inodes.remove(&number);
        Ok(())
    }

    /// Whether `number` is `dir` or above it.
    fn is_above(&self, number: u64, dir: u64) -> bool {
        number == dir
            || self
                .inode(number)
                .names
                .values()
                .any(|child| self.is_dir(*child) && self.is_above(*child, dir))
    }

    fn rename(&mut self, old: &str, new: &str, how: Rename) -> Result<(), Errno> {
        let (old_dir, old_name) = self.parent(old)?;
        let (new_dir, new_name) = self.parent(new)?;
        let source = self.child(old_dir, old_name).ok_or(Errno::NOENT)?;
        let target = self.child(new_dir, new_name);
        match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Rename::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.is_dir(source) && self.is_above(source, new_dir) {
            return Err(Errno::INVAL);
        }
        if let Some(target) = target
            && self.is_dir(target)
            && self.is_above(target, old_dir)
        {
            return Err(if how == Rename::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        match (how, target) {
            (Rename::Exchange, Some(target)) => {
                self.place(old_dir, old_name, source, target);
                self.place(new_dir, new_name, target, source);
            }
            (_, Some(target)) => {
                self.may_replace(source, target)?;
                self.remove_name(old_dir, old_name, source);
                self.place(new_dir, new_name, target, source);
                if self.is_dir(target) {
                    self.inodes.remove(&target);
                } else {
                    self.drop_link(target);
                }
            }
            (_, None) => {
                self.remove_name(old_dir, old_name, source);
                self.inode_mut(new_dir).names.insert(new_name.to_owned(), source);
                self.inode_mut(new_dir).node.nlink += u64::from(self.is_dir(source));
            }
        }
        Ok(())
    }

    fn may_replace(&self, source: u64, target: u64) -> Result<(), Errno> {
        match (self.is_dir(source), self.is_dir(target)) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if !self.inode(target).names.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    fn remove_name(&mut self, dir: u64, name: &str, number: u64) {
        let is_dir = self.is_dir(number);
        let dir = self.inode_mut(dir);
        dir.names.remove(name);
        dir.node.nlink -= u64::from(is_dir);
    }

    /// The name in `dir` that meant `was` means `is` now.
    fn place(&mut self, dir: u64, name: &str, was: u64, is: u64) {
        let (was_dir, is_dir) = (u64::from(self.is_dir(was)), u64::from(self.is_dir(is)));
        let dir = self.inode_mut(dir);
        dir.names.insert(name.to_owned(), is);
        dir.node.nlink = dir.node.nlink + is_dir - was_dir;
    }

    fn write(&mut self, path: &str, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let inode = self.file(path)?;
        if bytes.is_empty() {
            return Ok(());
        }
        inode.data.write(offset, bytes);
        inode.node.data.size = inode.node.data.size.max(offset + bytes.len() as u64);
        inode.node.mtime = None;
        Ok(())
    }

    fn fallocate(
        &mut self,
        path: &str,
        offset: u64,
        len: u64,
        keep_size: bool,
        zero: bool,
    ) -> Result<(), Errno> {
        let inode = self.file(path)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        if zero {
            inode.data.zero(offset, offset + len);
        }
        if !keep_size {
            inode.node.data.size = inode.node.data.size.max(offset + len);
        }
        inode.node.mtime = None;
        Ok(())
    }

    /// Offset and length are whole blocks, whatever size those have: that alone is not judged.
    fn collapse(&mut self, path: &str, offset: u64, len: u64) -> Result<(), Errno> {
        let inode = self.file(path)?;
        let size = inode.node.data.size;
        if len == 0 || offset + len >= size {
            return Err(Errno::INVAL);
        }
        inode.data.shift(size, |bytes| drop(bytes.drain(offset as usize..(offset + len) as usize)));
        inode.node.data.size = size - len;
        inode.node.mtime = None;
        Ok(())
    }

    fn insert(&mut self, path: &str, offset: u64, len: u64) -> Result<(), Errno> {
        let inode = self.file(path)?;
        let size = inode.node.data.size;
        if len == 0 || offset >= size {
            return Err(Errno::INVAL);
        }
        inode.data.shift(size, |bytes| {
            let tail = bytes.split_off(offset as usize);
            bytes.resize((offset + len) as usize, 0);
            bytes.extend(tail);
        });
        inode.node.data.size = size + len;
        inode.node.mtime = None;
        Ok(())
    }

    fn xattr_target(&mut self, path: &str, name: &str) -> Result<&mut Node, Errno> {
        let number = self.lookup(path)?;
        let node = &mut self.inode_mut(number).node;
        if name.starts_with("user.") && !matches!(node.kind, Kind::File | Kind::Dir) {
            return Err(Errno::PERM);
        }
        Ok(node)
    }

    fn chown(&mut self, path: &str, uid: u32, gid: u32) -> Result<(), Errno> {
        let number = self.lookup(path)?;
        let node = &mut self.inode_mut(number).node;
        (node.uid, node.gid) = (uid, gid);
        if node.kind != Kind::Dir && node.kind != Kind::Symlink {
            node.mode &= !0o4000;
            if node.mode & 0o010 != 0 {
                node.mode &= !0o2000;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, path: &str, size: u64) -> Result<(), Errno> {
        let inode = self.file(path)?;
        if size < inode.node.data.size {
            inode.data.zero(size, u64::MAX);
        }
        inode.node.data.size = size;
        inode.node.mtime = None;
        Ok(())
    }

    fn collect(&self, number: u64, path: &str, first: &mut HashMap<u64, Vec<u8>>, tree: &mut Tree) {
        let inode = self.inode(number);
        let mut node = inode.node.clone();
        if node.kind == Kind::File {
            node.data = inode.data.finish(node.data.size);
        }
        if node.kind != Kind::Dir && node.nlink > 1 {
            node.link_of = Some(first.entry(number).or_insert_with(|| path.as_bytes().to_vec()).clone());
        }
        tree.nodes.insert(path.as_bytes().to_vec(), node);
        for (name, child) in &inode.names {
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.collect(*child, &below, first, tree);
        }
    }

    /// The tree as it is.
    #[must_use]
    pub fn snapshot(&self) -> Tree {
        let mut tree = Tree::default();
        self.collect(ROOT, "", &mut HashMap::new(), &mut tree);
        tree.with_links()
    }

    /// The inode behind each path; numbers mean something in this model only, and are never used twice.
    #[must_use]
    pub fn inode_numbers(&self) -> BTreeMap<Vec<u8>, u64> {
        let mut numbers = BTreeMap::from([(Vec::new(), ROOT)]);
        let mut todo = vec![(ROOT, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for (name, child) in &self.inode(dir).names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                numbers.insert(below.clone().into_bytes(), *child);
                todo.push((*child, below));
            }
        }
        numbers
    }

    /// Files that are open and have no name: their handles, numbers, and what they are.
    #[must_use]
    pub fn nameless(&self) -> Vec<(String, u64, Node)> {
        let nameless = |(handle, number): (&String, &u64)| {
            let inode = self.inode(*number);
            let mut node = inode.node.clone();
            node.data = inode.data.finish(node.data.size);
            (node.nlink == 0).then(|| (handle.clone(), *number, node))
        };
        self.open.iter().filter_map(nameless).collect()
    }

    /// The inodes of the open files, by their handles.
    #[must_use]
    pub fn open_files(&self) -> &BTreeMap<String, u64> {
        &self.open
    }

    /// A file's content.
    #[must_use]
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        let inode = self.inode(self.lookup(path).ok()?);
        let mut bytes = vec![0; usize::try_from(inode.node.data.size).ok()?];
        inode.data.read(&mut bytes);
        Some(bytes)
    }
}

impl Executor for Model {
    fn name(&self) -> &str {
        "the model"
    }

    fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Mkdir { path, mode } => self.make(path, Node::new(Kind::Dir, *mode)).map(drop),
            Op::Create { path, mode } => self.make(path, Node::new(Kind::File, *mode)).map(drop),
            Op::Symlink { target, path } => {
                let mut node = Node::new(Kind::Symlink, 0o777);
                node.target = target.clone().into_bytes();
                self.make(path, node).map(drop)
            }
            Op::Mknod { path, node } => {
                let mut made = Node::new(Kind::Fifo, 0o600);
                match *node {
                    Special::Fifo => {}
                    Special::Socket => made.kind = Kind::Socket,
                    Special::Char(major, minor) => (made.kind, made.rdev) = (Kind::Char, (major, minor)),
                }
                self.make(path, made).map(drop)
            }
            Op::Link { old, new } => self.link(old, new),
            Op::Unlink { path } => self.unlink(path),
            Op::Rmdir { path } => self.rmdir(path),
            Op::Rename { old, new, how } => self.rename(old, new, *how),
            Op::Chmod { path, mode } => {
                let number = self.lookup(path)?;
                self.inode_mut(number).node.mode = *mode;
                Ok(())
            }
            Op::Chown { path, uid, gid } => self.chown(path, *uid, *gid),
            Op::Write { path, offset, len, seed } => {
                self.write(path, *offset, &pattern(*seed, *offset, *len as usize))
            }
            Op::Append { path, len, seed } => {
                let end = self.file(path)?.node.data.size;
                self.write(path, end, &pattern(*seed, end, *len as usize))
            }
            Op::Store { path, offset, len, seed } | Op::Persist { path, offset, len, seed } => {
                // Past the end of the file there is a signal, or memory that is nobody's.
                if offset + len > self.file(path)?.node.data.size {
                    return Err(Errno::FAULT);
                }
                self.write(path, *offset, &pattern(*seed, *offset, *len as usize))
            }
            Op::Truncate { path, size } => self.truncate(path, *size),
            Op::Utimes { path, seconds, nanoseconds } => {
                let number = self.lookup(path)?;
                self.inode_mut(number).node.mtime = Some((*seconds, *nanoseconds));
                Ok(())
            }
            Op::Fallocate { path, offset, len, keep_size } => {
                self.fallocate(path, *offset, *len, *keep_size, false)
            }
            Op::Punch { path, offset, len } => self.fallocate(path, *offset, *len, true, true),
            Op::Zero { path, offset, len, keep_size } => {
                self.fallocate(path, *offset, *len, *keep_size, true)
            }
            Op::Collapse { path, offset, len } => self.collapse(path, *offset, *len),
            Op::Insert { path, offset, len } => self.insert(path, *offset, *len),
            Op::Move { path } => self.file(path).map(drop),
            Op::Setxattr { path, name, len, seed } => {
                let value = pattern(*seed, 0, *len);
                self.xattr_target(path, name)?.xattrs.insert(name.clone().into_bytes(), value);
                Ok(())
            }
            Op::Removexattr { path, name } => {
                let gone = self.xattr_target(path, name)?.xattrs.remove(name.as_bytes());
                gone.map(drop).ok_or(Errno::NODATA)
            }
            Op::Open { path, handle } => self.keep_open(path, handle),
            Op::Close { handle } => self.close(handle),
            Op::Fsync { path } | Op::Fdatasync { path } => self.lookup(path).map(drop),
            Op::Msync { path } => self.file(path).map(drop),
            Op::Sync => Ok(()),
        }
    }

    fn tree(&mut self) -> Tree {
        self.snapshot()
    }
}

/// A file's bytes, in chunks; what has no chunk is zero.
#[derive(Clone, Debug, Default)]
struct Sparse(BTreeMap<u64, Box<[u8; CHUNK]>>);

impl Sparse {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = offset + i as u64;
            let chunk = self.0.entry(at / CHUNK as u64).or_insert_with(|| Box::new([0; CHUNK]));
            chunk[(at % CHUNK as u64) as usize] = *byte;
        }
    }

    fn zero(&mut self, start: u64, end: u64) {
        let size = CHUNK as u64;
        for (number, chunk) in self.0.range_mut(start / size..) {
            let at = number * size;
            if at >= end {
                break;
            }
            let from = start.saturating_sub(at).min(size) as usize;
            let to = (end - at).min(size) as usize;
            chunk[from..to].fill(0);
        }
    }

    /// Changes all of the first `size` bytes; files of models are small.
    fn shift(&mut self, size: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = vec![0; size as usize];
        self.read(&mut bytes);
        change(&mut bytes);
        self.0.clear();
        self.write(0, &bytes);
    }

    fn read(&self, bytes: &mut [u8]) {
        for (number, chunk) in &self.0 {
            let at = (number * CHUNK as u64) as usize;
            if at < bytes.len() {
                let len = CHUNK.min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&chunk[..len]);
            }
        }
    }

    fn finish(&self, size: u64) -> crate::tree::Data {
        let mut builder = DataBuilder::default();
        for (number, chunk) in &self.0 {
            builder.chunk(number * CHUNK as u64, &chunk[..]);
        }
        let small = (size <= 64 << 10).then(|| {
            let mut bytes = vec![0; size as usize];
            self.read(&mut bytes);
            bytes
        });
        builder.finish(size, small)
    }
}
