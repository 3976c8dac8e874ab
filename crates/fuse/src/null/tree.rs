//! Nodes in memory.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use extant_sync::atomic::{AtomicU64, Ordering};
use extant_sync::{Arc, Mutex, Rank, RwLock};
use rustc_hash::FxHashMap;
use rustix::io::Errno;

use crate::wire::{Attr, FattrFlags, ROOT_ID, SetattrIn};

const SHARDS: usize = 64;
/// Bytes in one piece of a file.
const PIECE: usize = 1 << 16;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// Content of a file: pieces, absent where nothing was written.
#[derive(Debug, Default)]
pub(super) struct Content {
    pieces: Vec<Option<Box<[u8]>>>,
    size: u64,
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `offset` on, as the pieces hold them.
    pub(super) fn slices(&self, offset: u64, len: usize) -> impl Iterator<Item = &[u8]> {
        let end = self.size.min(offset.saturating_add(len as u64));
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (index, from) = place(at);
            let n = (PIECE - from).min(usize::try_from(end - at).unwrap_or(PIECE));
            at += n as u64;
            let piece = self.pieces.get(index).and_then(Option::as_deref).unwrap_or(&ZEROES);
            Some(&piece[from..from + n])
        })
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (index, from) = place(at);
            let n = (PIECE - from).min(rest.len());
            if self.pieces.len() <= index {
                self.pieces.resize_with(index + 1, || None);
            }
            let piece = self.pieces[index].get_or_insert_with(|| vec![0; PIECE].into_boxed_slice());
            piece[from..from + n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            at += n as u64;
        }
        self.size = self.size.max(at);
    }

    fn truncate(&mut self, size: u64) {
        let (index, from) = place(size);
        self.pieces.truncate(index + 1);
        if let Some(Some(last)) = self.pieces.get_mut(index) {
            last[from..].fill(0);
        }
        self.size = size;
    }
}

fn place(at: u64) -> (usize, usize) {
    let piece = PIECE as u64;
    (usize::try_from(at / piece).unwrap_or(usize::MAX), usize::try_from(at % piece).unwrap_or(0))
}

/// Names of a directory, in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_name: FxHashMap<Box<[u8]>, u64>,
    by_cookie: BTreeMap<u64, (Box<[u8]>, u64)>,
    last: u64,
}

impl Names {
    fn node(&self, name: &[u8]) -> Option<u64> {
        self.by_name.get(name).map(|cookie| self.by_cookie[cookie].1)
    }

    fn insert(&mut self, name: &[u8], node: u64) {
        self.last += 1;
        self.by_cookie.insert(self.last, (name.into(), node));
        self.by_name.insert(name.into(), self.last);
    }

    fn remove(&mut self, name: &[u8]) -> Option<u64> {
        let cookie = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie).map(|(_, node)| node)
    }
}

#[derive(Debug)]
pub(super) enum Body {
    Dir(RwLock<Names>),
    File(RwLock<Content>),
    Link(Box<[u8]>),
}

impl Body {
    pub(super) fn dir() -> Self {
        Self::Dir(RwLock::new(Rank::INODE, Names::default()))
    }

    pub(super) fn file() -> Self {
        Self::File(RwLock::new(Rank::INODE, Content::default()))
    }

    pub(super) fn link(target: &[u8]) -> Self {
        Self::Link(target.into())
    }
}

#[derive(Debug)]
pub(super) struct Node {
    attr: Mutex<Attr>,
    lookups: AtomicU64,
    pub(super) body: Body,
}

impl Node {
    pub(super) fn set_size(&self, size: u64) {
        let mut attr = self.attr.lock();
        attr.size = size;
        attr.blocks = size.div_ceil(512);
        touch(&mut attr);
    }

    fn attr(&self) -> Attr {
        *self.attr.lock()
    }
}

type Shard = RwLock<FxHashMap<u64, Arc<Node>>>;

#[derive(Debug)]
pub(super) struct Tree {
    shards: Vec<Shard>,
    next: AtomicU64,
    /// Renames are one at a time.
    rename: Mutex<()>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::new(Rank::CACHE, FxHashMap::default())).collect();
        let tree = Self { shards, next: AtomicU64::new(ROOT_ID + 1), rename: Mutex::new(Rank::RENAME, ()) };
        tree.add(ROOT_ID, 0o040_755, 0, (0, 0), Body::dir());
        tree
    }

    fn shard(&self, id: u64) -> &Shard {
        &self.shards[usize::try_from(id % SHARDS as u64).unwrap_or(0)]
    }

    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.shard(id).read().get(&id).cloned().ok_or(Errno::STALE)
    }

    fn add(&self, id: u64, mode: u32, rdev: u32, owner: (u32, u32), body: Body) -> Attr {
        let nlink = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let size = match &body {
            Body::Link(target) => target.len() as u64,
            _ => 0,
        };
        let mut attr = Attr {
            ino: id,
            size,
            mode,
            nlink,
            uid: owner.0,
            gid: owner.1,
            rdev,
            blksize: 4096,
            ..Attr::default()
        };
        touch(&mut attr);
        (attr.atime, attr.atimensec) = (attr.mtime, attr.mtimensec);
        let node = Node { attr: Mutex::new(Rank::LEAF, attr), lookups: AtomicU64::new(1), body };
        self.shard(id).write().insert(id, Arc::new(node));
        attr
    }

    pub(super) fn attr(&self, id: u64) -> Result<Attr, Errno> {
        Ok(self.node(id)?.attr())
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        let dir = self.node(parent)?;
        let id = names(&dir)?.read().node(name).ok_or(Errno::NOENT)?;
        let node = self.node(id)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(node.attr())
    }

    /// Counts one more reference of the kernel.
    pub(super) fn remember(&self, id: u64) {
        if let Ok(node) = self.node(id) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn forget(&self, id: u64, n: u64) {
        let Ok(node) = self.node(id) else { return };
        if node.lookups.fetch_sub(n, Ordering::Relaxed) == n && node.attr.lock().nlink == 0 {
            self.shard(id).write().remove(&id);
        }
    }

    pub(super) fn make(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        owner: (u32, u32),
        body: Body,
    ) -> Result<Attr, Errno> {
        let dir = self.node(parent)?;
        let mut names = names(&dir)?.write();
        if names.node(name).is_some() {
            return Err(Errno::EXIST);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let attr = self.add(id, mode, rdev, owner, body);
        names.insert(name, id);
        let mut dir = dir.attr.lock();
        dir.nlink += u32::from(attr.nlink == 2);
        touch(&mut dir);
        Ok(attr)
    }

    pub(super) fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        let dir = self.node(parent)?;
        let node = self.node(id)?;
        let mut names = names(&dir)?.write();
        if names.node(name).is_some() {
            return Err(Errno::EXIST);
        }
        names.insert(name, id);
        node.attr.lock().nlink += 1;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(node.attr())
    }

    pub(super) fn remove(&self, parent: u64, name: &[u8], directory: bool) -> Result<(), Errno> {
        let dir = self.node(parent)?;
        let mut list = names(&dir)?.write();
        let id = list.node(name).ok_or(Errno::NOENT)?;
        let node = self.node(id)?;
        self.drop_link(&dir, &node, directory)?;
        list.remove(name);
        Ok(())
    }

    fn drop_link(&self, dir: &Node, node: &Node, directory: bool) -> Result<(), Errno> {
        match (&node.body, directory) {
            (Body::Dir(_), false) => return Err(Errno::ISDIR),
            // Two locks of one rank: only a look, so it need not wait.
            (Body::Dir(names), true) if names.try_read().is_none_or(|n| !n.by_name.is_empty()) => {
                return Err(Errno::NOTEMPTY);
            }
            (Body::Dir(_), true) => {
                node.attr.lock().nlink = 0;
                dir.attr.lock().nlink -= 1;
            }
            (_, true) => return Err(Errno::NOTDIR),
            (_, false) => node.attr.lock().nlink -= 1,
        }
        touch(&mut dir.attr.lock());
        Ok(())
    }

    pub(super) fn rename(&self, from: u64, old: &[u8], to: u64, new: &[u8], flags: u32) -> Result<(), Errno> {
        if flags & !1 != 0 {
            return Err(Errno::INVAL);
        }
        let _one = self.rename.lock();
        let (from, to) = (self.node(from)?, self.node(to)?);
        let id = names(&from)?.read().node(old).ok_or(Errno::NOENT)?;
        let node = self.node(id)?;
        let is_dir = matches!(node.body, Body::Dir(_));
        let mut target = names(&to)?.write();
        if let Some(victim) = target.node(new) {
            if victim == id {
                return Ok(());
            }
            if flags & 1 != 0 {
                return Err(Errno::EXIST);
            }
            self.drop_link(&to, &*self.node(victim)?, is_dir)?;
            target.remove(new);
        }
        target.insert(new, id);
        drop(target);
        names(&from)?.write().remove(old);
        if is_dir && !Arc::ptr_eq(&from, &to) {
            from.attr.lock().nlink -= 1;
            to.attr.lock().nlink += 1;
        }
        Ok(())
    }

    pub(super) fn change(&self, id: u64, args: &SetattrIn, valid: FattrFlags) -> Result<Attr, Errno> {
        let node = self.node(id)?;
        if valid.contains(FattrFlags::SIZE)
            && let Body::File(file) = &node.body
        {
            let mut file = file.write();
            file.truncate(args.size);
            node.set_size(args.size);
        }
        let mut attr = node.attr.lock();
        if valid.contains(FattrFlags::MODE) {
            attr.mode = attr.mode & 0o170_000 | args.mode & 0o7777;
        }
        if valid.contains(FattrFlags::UID) {
            attr.uid = args.uid;
        }
        if valid.contains(FattrFlags::GID) {
            attr.gid = args.gid;
        }
        let (now, now_ns) = now();
        if valid.contains(FattrFlags::ATIME_NOW) {
            (attr.atime, attr.atimensec) = (now, now_ns);
        } else if valid.contains(FattrFlags::ATIME) {
            (attr.atime, attr.atimensec) = (args.atime, args.atimensec);
        }
        if valid.contains(FattrFlags::MTIME_NOW) {
            (attr.mtime, attr.mtimensec) = (now, now_ns);
        } else if valid.contains(FattrFlags::MTIME) {
            (attr.mtime, attr.mtimensec) = (args.mtime, args.mtimensec);
        }
        (attr.ctime, attr.ctimensec) = (now, now_ns);
        Ok(*attr)
    }

    pub(super) fn link_target(&self, id: u64) -> Result<Vec<u8>, Errno> {
        match &self.node(id)?.body {
            Body::Link(target) => Ok(target.to_vec()),
            _ => Err(Errno::INVAL),
        }
    }

    /// Calls `f(name, cookie of the next, attributes)` for names after `cookie` until it returns false.
    pub(super) fn list(
        &self,
        id: u64,
        cookie: u64,
        mut f: impl FnMut(&[u8], u64, &dyn Fn() -> Attr) -> bool,
    ) -> Result<(), Errno> {
        let dir = self.node(id)?;
        let names = names(&dir)?.read();
        for (&at, (name, node)) in names.by_cookie.range(cookie + 1..) {
            let node = self.node(*node)?;
            if !f(name, at, &|| node.attr()) {
                break;
            }
        }
        Ok(())
    }
}

fn names(node: &Node) -> Result<&RwLock<Names>, Errno> {
    match &node.body {
        Body::Dir(names) => Ok(names),
        _ => Err(Errno::NOTDIR),
    }
}

fn now() -> (i64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
}

fn touch(attr: &mut Attr) {
    let (now, ns) = now();
    (attr.mtime, attr.mtimensec) = (now, ns);
    (attr.ctime, attr.ctimensec) = (now, ns);
}
