//! Walking the hash tree of an indexed directory.

use extant_format::Lblk;
use extant_format::hash::{DirHash, HashVersion, Hasher};
use extant_format::htree::{self, DxBlock, DxKind, RootInfo};
use extant_journal::Buf;
use smallvec::SmallVec;

use super::{Found, tree_error};
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// One index block on the way to a leaf.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) buf: Buf,
    pub(crate) lblk: Lblk,
    pub(crate) kind: DxKind,
    /// The entry taken.
    pub(crate) index: usize,
    pub(crate) count: usize,
    pub(crate) limit: usize,
}

/// The way from the root to a leaf.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) frames: SmallVec<[Frame; 2]>,
    pub(crate) leaf: Lblk,
    /// How many leaves this walk may still visit: as many as the directory has blocks.
    budget: u32,
}

/// Where a walk goes on.
pub(crate) struct Next {
    /// Names with the last hash of the leaf before go on in this one.
    pub(crate) continues: bool,
    /// The lowest hash of the leaf.
    pub(crate) hash: u32,
}

impl Filesystem {
    /// The hash function of an indexed directory, from its root.
    pub(crate) fn hasher_of(&self, dir: &Inode) -> Result<Hasher> {
        Ok(self.tree_root(dir)?.2)
    }

    /// The function for a hash version as stored; `None` for SipHash, which needs a key.
    pub(crate) fn hasher(&self, version: HashVersion) -> Option<Hasher> {
        Hasher::new(version.resolve(self.hash_unsigned), self.hash_seed)
    }

    /// The function that directories without a tree are listed by.
    pub(crate) fn default_hasher(&self) -> Option<Hasher> {
        self.hasher(self.hash_version)
    }

    /// The hash of a name in an indexed directory, and the way to the first leaf that can hold it.
    pub(crate) fn probe_name(&self, dir: &Inode, name: &[u8]) -> Result<(Path, DirHash)> {
        let (root, info, hasher) = self.tree_root(dir)?;
        let hash = hasher.hash(name);
        Ok((self.probe_from(dir, root, info, hash.major)?, hash))
    }

    /// Walks down to the first leaf that can hold names of `hash`.
    pub(crate) fn probe(&self, dir: &Inode, hash: u32) -> Result<Path> {
        let (root, info, _) = self.tree_root(dir)?;
        self.probe_from(dir, root, info, hash)
    }

    fn tree_root(&self, dir: &Inode) -> Result<(Buf, RootInfo, Hasher)> {
        let root = self.dir_index(dir, Lblk(0), DxKind::Root)?;
        let info = root
            .with(|bytes| htree::root_info(&self.layout, bytes, self.has_large_dir()))
            .map_err(|e| tree_error(dir, Lblk(0), &e))?;
        let hasher = self.hasher(info.hash_version).ok_or_else(|| {
            Error::corrupt(
                Place::DirBlock { ino: dir.ino, lblk: Lblk(0) },
                CorruptKind::BadIndex("its hash needs a key".into()),
            )
        })?;
        Ok((root, info, hasher))
    }

    fn probe_from(&self, dir: &Inode, root: Buf, info: RootInfo, hash: u32) -> Result<Path> {
        let blocks = self.dir_blocks(dir);
        let mut path = Path { frames: SmallVec::new(), leaf: Lblk(0), budget: blocks };
        let (mut lblk, mut kind, mut buf) = (Lblk(0), DxKind::Root, root);
        for level in 0..=info.indirect_levels {
            let (frame, child) = self.descend(dir, buf, lblk, kind, |view| view.lookup(hash))?;
            path.frames.push(frame);
            lblk = child;
            kind = DxKind::Node;
            if level == info.indirect_levels {
                break;
            }
            buf = self.dir_index(dir, lblk, kind)?;
        }
        path.leaf = lblk;
        Ok(path)
    }

    fn descend(
        &self,
        dir: &Inode,
        buf: Buf,
        lblk: Lblk,
        kind: DxKind,
        choose: impl FnOnce(&DxBlock<'_>) -> usize,
    ) -> Result<(Frame, Lblk)> {
        let taken = buf.with(|bytes| {
            let view = DxBlock::new(&self.layout, bytes, kind).map_err(|e| tree_error(dir, lblk, &e))?;
            let index = choose(&view);
            let entry = view.entry(index);
            Ok::<_, Error>((index, view.count(), view.limit(), entry.map(|e| e.lblk)))
        })?;
        let (index, count, limit, child) = taken;
        let place = Place::DirBlock { ino: dir.ino, lblk };
        let child = child.filter(|c| c.0 < self.dir_blocks(dir));
        let child = child.ok_or_else(|| Error::corrupt(place, CorruptKind::Htree("entry leads outside")))?;
        if child.0 == 0 || child == lblk {
            return Err(Error::corrupt(place, CorruptKind::BadIndex("an entry leads back".into())));
        }
        Ok((Frame { buf, lblk, kind, index, count, limit }, child))
    }

    /// What the walk would meet after its leaf, without going there.
    pub(crate) fn peek_next(&self, dir: &Inode, path: &Path) -> Result<Option<Next>> {
        let Some(frame) = path.frames.iter().rev().find(|f| f.index + 1 < f.count) else { return Ok(None) };
        let entry = frame.buf.with(|bytes| {
            let view =
                DxBlock::new(&self.layout, bytes, frame.kind).map_err(|e| tree_error(dir, frame.lblk, &e))?;
            Ok::<_, Error>(view.entry(frame.index + 1))
        })?;
        Ok(entry.map(|e| Next { continues: e.continues(), hash: e.hash & !1 }))
    }

    /// Goes on to the next leaf; false at the end. A tree that visits more leaves than there are blocks is refused.
    pub(crate) fn advance(&self, dir: &Inode, path: &mut Path) -> Result<bool> {
        let Some(level) = path.frames.iter().rposition(|f| f.index + 1 < f.count) else { return Ok(false) };
        path.budget = path.budget.checked_sub(1).ok_or_else(|| {
            Error::corrupt(Place::Inode(dir.ino), CorruptKind::BadIndex("more leaves than blocks".into()))
        })?;
        let depth = path.frames.len();
        path.frames.truncate(level + 1);
        let last = path.frames.pop().ok_or(Error::NotFound)?;
        let (mut frame, mut child) = {
            let index = last.index + 1;
            self.descend(dir, last.buf, last.lblk, last.kind, |_| index)?
        };
        path.frames.push(frame);
        while path.frames.len() < depth {
            let buf = self.dir_index(dir, child, DxKind::Node)?;
            (frame, child) = self.descend(dir, buf, child, DxKind::Node, |_| 0)?;
            path.frames.push(frame);
        }
        path.leaf = child;
        Ok(true)
    }

    /// Finds `name` in an indexed directory.
    pub(super) fn find_in_tree(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        let (mut path, hash) = self.probe_name(dir, name)?;
        loop {
            let buf = self.dir_leaf(dir, path.leaf)?;
            if let Some(found) = self.find_in_block(dir, &buf, path.leaf, &self.layout, name)? {
                return Ok(Some(found));
            }
            if !self.goes_on(dir, &path, hash)? || !self.advance(dir, &mut path)? {
                return Ok(None);
            }
        }
    }

    /// Whether names of `hash` go on in the next leaf.
    pub(crate) fn goes_on(&self, dir: &Inode, path: &Path, hash: DirHash) -> Result<bool> {
        Ok(self.peek_next(dir, path)?.is_some_and(|next| next.continues && next.hash == hash.major))
    }
}
