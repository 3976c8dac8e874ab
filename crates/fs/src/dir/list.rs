//! Listing a directory, with positions that stay valid while names come and go.
//!
//! Where the filesystem has `dir_index`, names are listed in the order of their hashes, and a position is the hash of
//! the name to go on with: `major >> 1` in the upper, `minor` in the lower 32 bits, as the kernel's. `.` counts as hash
//! 0 and `..` as hash 2. Names of one hash and minor hash get consecutive positions in the order of their bytes. Otherwise
//! a position is the byte of the directory.
//!
//! Nothing is remembered between calls: a position is looked up anew.

use std::ops::ControlFlow;
use std::sync::Arc;

use extant_format::dir::{self as records, DirLayout, Record};
use extant_format::hash::Hasher;
use extant_format::inode::{FileType, InodeFlags};
use extant_format::{Ino, Lblk};

use super::dir_error;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// The position before the first name.
pub const START: u64 = 0;
/// The position after the last name of a directory listed by hash.
pub(super) const END: u64 = i64::MAX as u64;
/// How many leaves may hold names of one hash.
const MAX_CHAIN: usize = 1024;

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode it leads to.
    pub ino: Ino,
    /// The inode's type, where the directory records types.
    pub kind: Option<FileType>,
    /// The name.
    pub name: &'a [u8],
    /// The position of the name after this one: what to pass to go on here.
    pub next: u64,
}

/// Receives names until it breaks.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>;

/// The bytes of some blocks or parts, and the records in them in the order of their positions.
#[derive(Default)]
struct Batch {
    parts: Vec<(Arc<[u8]>, DirLayout)>,
    /// Position, part, offset.
    order: Vec<(u64, u32, u32)>,
}

/// The position of a hash.
const fn position(major: u32, minor: u32) -> u64 {
    ((major >> 1) as u64) << 32 | minor as u64
}

/// The position of a name, before names of one position are told apart.
pub(super) fn position_of(name: &[u8], hasher: &Hasher) -> u64 {
    match name {
        b"." => position(0, 0),
        b".." => position(2, 0),
        name => {
            let hash = hasher.hash(name);
            position(hash.major, hash.minor)
        }
    }
}

/// The hash to start looking at for a position.
const fn major_of(position: u64) -> u32 {
    ((position >> 32) as u32) << 1
}

impl Batch {
    fn record(&self, part: u32, offset: u32) -> Option<Record<'_>> {
        let (bytes, layout) = self.parts.get(part as usize)?;
        records::record_at(layout, bytes, offset).ok()
    }

    /// Adds the names of a part, each at the position of its hash.
    fn add(&mut self, bytes: Arc<[u8]>, layout: DirLayout, hasher: &Hasher) -> Result<(), records::DirError> {
        let part = self.parts.len() as u32;
        for record in records::entries(&layout, &bytes) {
            let record = record?;
            let at = position_of(record.name, hasher);
            self.order.push((at, part, record.offset));
        }
        self.parts.push((bytes, layout));
        Ok(())
    }

    /// Sorts, and gives names of the same hash positions of their own.
    fn settle(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0).then_with(|| {
                let name = |e: &(u64, u32, u32)| self.record(e.1, e.2).map(|r| r.name);
                name(a).cmp(&name(b))
            })
        });
        let mut free = 0;
        for entry in &mut order {
            entry.0 = entry.0.max(free);
            free = entry.0 + 1;
        }
        self.order = order;
    }

    /// Hands out the names from position `from`; `after` is the position behind the last.
    fn emit(&self, from: u64, after: u64, sink: Sink<'_>) -> ControlFlow<()> {
        let first = self.order.partition_point(|e| e.0 < from);
        for (n, &(_, part, offset)) in self.order.iter().enumerate().skip(first) {
            let next = self.order.get(n + 1).map_or(after, |e| e.0);
            let Some(record) = self.record(part, offset) else { continue };
            sink(DirEntry {
                ino: record.ino,
                kind: FileType::from_dirent_code(record.raw_type),
                name: record.name,
                next,
            })?;
        }
        ControlFlow::Continue(())
    }
}

impl Filesystem {
    /// Lists `dir` from position `from`. The caller holds the directory's lock, shared.
    pub(crate) fn list(&self, dir: &Inode, from: u64, sink: Sink<'_>) -> Result<()> {
        if dir.is_dead() || from >= END {
            return Ok(());
        }
        let by_hash = self.has_dir_index().then(|| self.default_hasher()).flatten();
        match by_hash {
            _ if self.is_indexed(dir) => self.list_indexed(dir, from, sink),
            Some(hasher) if self.is_inline(dir) => self.list_inline_by_hash(dir, from, &hasher, sink),
            None if self.is_inline(dir) => self.list_inline(dir, from, sink),
            Some(hasher) if self.dir_blocks(dir) == 1 => {
                let (buf, layout) = self.dir_any(dir, Lblk(0))?;
                let mut batch = Batch::default();
                batch.add(buf.bytes(), layout, &hasher).map_err(|e| dir_error(dir, Lblk(0), &e))?;
                batch.settle();
                let _ = batch.emit(from, END, sink);
                Ok(())
            }
            _ => self.list_linear(dir, from, sink),
        }
    }

    pub(super) fn list_linear(&self, dir: &Inode, from: u64, sink: Sink<'_>) -> Result<()> {
        let blocks = self.dir_blocks(dir);
        let shift = self.geo.log_block_size();
        let first = u32::try_from(from >> shift).unwrap_or(u32::MAX);
        let mut ahead = 0;
        for lblk in (first..blocks).map(Lblk) {
            if lblk.0 >= ahead && blocks > 1 {
                ahead = self.prefetch_dir(dir, lblk, blocks);
            }
            let (buf, layout) = self.dir_any(dir, lblk)?;
            let start = u64::from(lblk.0) << shift;
            let bytes = buf.bytes();
            for record in records::entries(&layout, &bytes) {
                let record = record.map_err(|e| dir_error(dir, lblk, &e))?;
                if start + u64::from(record.offset) < from {
                    continue;
                }
                let next = start + u64::from(record.offset) + u64::from(record.rec_len);
                let kind = FileType::from_dirent_code(record.raw_type);
                if sink(DirEntry { ino: record.ino, kind, name: record.name, next }).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// By the tree; where that is damaged, by hash all the same, so that positions stay what they are.
    fn list_indexed(&self, dir: &Inode, mut from: u64, sink: Sink<'_>) -> Result<()> {
        match self.list_tree(dir, &mut from, sink) {
            Err(e) if e.is_bad_index() => {
                self.warn_of_index(dir, &e);
                self.list_unindexed(dir, from, sink)
            }
            done => done,
        }
    }

    /// `from` follows what has been handed out.
    fn list_tree(&self, dir: &Inode, from: &mut u64, sink: Sink<'_>) -> Result<()> {
        let hasher = self.hasher_of(dir)?;
        let mut path = self.probe(dir, major_of(*from))?;
        loop {
            let mut batch = Batch::default();
            if *from <= position(2, 0) {
                // The root begins with `.` and `..`.
                let root = self.dir_any(dir, Lblk(0))?;
                batch.add(root.0.bytes(), root.1, &hasher).map_err(|e| dir_error(dir, Lblk(0), &e))?;
            }
            let next = self.gather(dir, &mut path, &hasher, &mut batch)?;
            batch.settle();
            let after = next.map_or(END, |hash| position(hash, 0));
            if batch.emit(*from, after, sink).is_break() || next.is_none() {
                return Ok(());
            }
            *from = after.max(*from);
        }
    }

    /// Adds the leaf of `path`, and those that go on with its last hash, to `batch`; moves on, and returns the hash that the
    /// next leaf begins with.
    fn gather(
        &self,
        dir: &Inode,
        path: &mut super::tree::Path,
        hasher: &Hasher,
        batch: &mut Batch,
    ) -> Result<Option<u32>> {
        for _ in 0..MAX_CHAIN {
            let leaf = path.leaf;
            let buf = self.dir_leaf(dir, leaf)?;
            batch.add(buf.bytes(), self.layout, hasher).map_err(|e| dir_error(dir, leaf, &e))?;
            let next = self.peek_next(dir, path)?;
            if !self.advance(dir, path)? {
                return Ok(None);
            }
            match next {
                Some(next) if next.continues => {}
                next => return Ok(next.map(|n| n.hash)),
            }
        }
        Err(Error::corrupt(
            Place::Inode(dir.ino),
            CorruptKind::BadIndex("too many leaves with one hash".into()),
        ))
    }

    fn list_inline_by_hash(&self, dir: &Inode, from: u64, hasher: &Hasher, sink: Sink<'_>) -> Result<()> {
        let mut batch = Batch::default();
        for chain in self.inline_chains(dir)? {
            batch
                .add(chain.into(), self.layout.without_tail(), hasher)
                .map_err(|e| dir_error(dir, Lblk(0), &e))?;
        }
        batch.settle();
        let _ = batch.emit(from, END, sink);
        Ok(())
    }

    /// Positions are those that the names have after conversion to a block, where `.` and `..` take the first 24 bytes.
    fn list_inline(&self, dir: &Inode, from: u64, sink: Sink<'_>) -> Result<()> {
        let layout = self.layout.without_tail();
        let mut start = 0;
        for chain in &self.inline_chains(dir)? {
            for record in records::entries(&layout, chain) {
                let record = record.map_err(|e| dir_error(dir, Lblk(0), &e))?;
                let at = start + u64::from(record.offset);
                let next = at + u64::from(record.rec_len);
                let kind = FileType::from_dirent_code(record.raw_type);
                if at >= from && sink(DirEntry { ino: record.ino, kind, name: record.name, next }).is_break()
                {
                    return Ok(());
                }
            }
            start += chain.len() as u64;
        }
        Ok(())
    }

    /// Whether names may be listed at all: see [`Self::check_dir`].
    pub(crate) fn may_list(&self, dir: &Inode) -> Result<()> {
        self.check_dir(dir)?;
        if dir.flags().contains(InodeFlags::VERITY) {
            return Err(Error::bad_inode(dir.ino, "i_flags", dir.flags().bits().into()));
        }
        Ok(())
    }
}
