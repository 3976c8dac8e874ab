//! Directories: finding, listing, adding and removing names.
//!
//! | module | what |
//! |---|---|
//! | this one | blocks of a directory, lookup |
//! | `tree` | walking a hash tree |
//! | `list` | listing with stable positions |
//! | `unindexed` | directories whose hash tree is damaged |
//! | `change` | adding, removing, redirecting names |
//! | `inline` | directories kept in their inode |
//!
//! Directory blocks are metadata buffers. Each is verified (checksum, every record) when it is first used after being
//! read; after that only handles change it. The caller holds the directory's inode lock: shared to find and list,
//! exclusively to change.

mod change;
mod inline;
mod list;
mod tree;
mod unindexed;

use extant_format::dir::{self as records, DirError, DirLayout};
use extant_format::htree::{self, DxKind, HtreeError};
use extant_format::inline::Part;
use extant_format::inode::InodeFlags;
use extant_format::{Ino, Lblk, Pblk};
use extant_journal::Buf;
use extant_map::Run;

pub(crate) use change::{Place as NamePlace, Plan};
pub use list::{DirEntry, START};

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;

/// Blocks read ahead when a directory is searched from front to back.
const READ_AHEAD: u32 = 32;

/// A name that was found, and where.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) ino: Ino,
    pub(crate) at: At,
}

/// Where a record is.
#[derive(Clone, Debug)]
pub(crate) enum At {
    /// In a block.
    Block { buf: Buf, lblk: Lblk, offset: u32 },
    /// In the inode, at a byte of one of the two chains.
    Inline { part: Part, offset: u32 },
    /// `.` or `..` of an inline directory, which are no records.
    InlineParent,
}

/// Refuses names that no directory can hold.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Error::NotFound);
    }
    if name.len() > records::MAX_NAME_LEN {
        return Err(Error::NameTooLong);
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("a name with `/` or a zero byte"));
    }
    Ok(())
}

impl Filesystem {
    /// Refuses what is no directory, or one whose names this program cannot handle.
    pub(crate) fn check_dir(&self, dir: &Inode) -> Result<()> {
        if !dir.is_dir() {
            return Err(Error::NotDirectory);
        }
        let flags = dir.flags();
        if flags.contains(InodeFlags::ENCRYPT) {
            return Err(Error::NotSupported("names in an encrypted directory (feature encrypt)"));
        }
        if flags.contains(InodeFlags::CASEFOLD) && self.has_casefold() {
            return Err(Error::NotSupported("names in a case-insensitive directory (feature casefold)"));
        }
        Ok(())
    }

    /// Whether `dir` is indexed by a hash tree.
    pub(crate) fn is_indexed(&self, dir: &Inode) -> bool {
        self.has_dir_index() && dir.flags().contains(InodeFlags::INDEX)
    }

    pub(crate) fn is_inline(&self, inode: &Inode) -> bool {
        inode.flags().contains(InodeFlags::INLINE_DATA)
    }

    /// Number of blocks of a directory that is not inline.
    pub(crate) fn dir_blocks(&self, dir: &Inode) -> u32 {
        u32::try_from(dir.size() >> self.geo.log_block_size()).unwrap_or(u32::MAX)
    }

    fn dir_pblk(&self, dir: &Inode, lblk: Lblk) -> Result<Pblk> {
        match self.map_lookup(dir, lblk, 1)? {
            Run::Mapped { pblk, unwritten: false, .. } => Ok(pblk),
            _ => Err(Error::corrupt(Place::DirBlock { ino: dir.ino, lblk }, CorruptKind::DirectoryHole)),
        }
    }

    /// Block `lblk` as a block of records, verified.
    pub(crate) fn dir_leaf(&self, dir: &Inode, lblk: Lblk) -> Result<Buf> {
        let buf = self.cache.read(self.dir_pblk(dir, lblk)?)?;
        buf.verify_once(|bytes| self.verify_leaf(dir, bytes).map_err(|e| dir_error(dir, lblk, &e)))?;
        Ok(buf)
    }

    fn verify_leaf(&self, dir: &Inode, bytes: &[u8]) -> Result<(), DirError> {
        records::verify_tail(&self.layout, bytes, dir.csum_seed)?;
        records::validate(&self.layout, bytes)
    }

    /// Block `lblk` as an index block of the tree, its checksum verified; its structure is checked at each use.
    pub(crate) fn dir_index(&self, dir: &Inode, lblk: Lblk, kind: DxKind) -> Result<Buf> {
        let buf = self.cache.read(self.dir_pblk(dir, lblk)?)?;
        buf.verify_once(|bytes| {
            if kind == DxKind::Node && htree::kind_of(&self.layout, bytes) != Some(kind) {
                return Err(tree_error(dir, lblk, &HtreeError::BadHead));
            }
            let place = Place::DirBlock { ino: dir.ino, lblk };
            htree::verify_tail(&self.layout, bytes, kind, dir.csum_seed).map_err(|e| match e {
                // Without them nothing says where the checksum is.
                HtreeError::Limit { .. } | HtreeError::Count { .. } => Error::Checksum(place),
                e => tree_error(dir, lblk, &e),
            })
        })?;
        Ok(buf)
    }

    /// Block `lblk` of a directory that is read from front to back, whatever kind of block it is, and how its records
    /// are laid out.
    pub(crate) fn dir_any(&self, dir: &Inode, lblk: Lblk) -> Result<(Buf, DirLayout)> {
        if !dir.flags().contains(InodeFlags::INDEX) {
            return Ok((self.dir_leaf(dir, lblk)?, self.layout));
        }
        // The tree is there but is not used: index blocks look like blocks of unused records without a tail.
        let buf = self.cache.read(self.dir_pblk(dir, lblk)?)?;
        match buf.with(|bytes| htree::kind_of(&self.layout, bytes)) {
            Some(kind) => Ok((self.dir_index(dir, lblk, kind)?, self.layout.without_tail())),
            None => Ok((self.dir_leaf(dir, lblk)?, self.layout)),
        }
    }

    /// Finds `name` among the names of `dir`; `.` and `..` too.
    pub(crate) fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        if dir.is_dead() {
            return Ok(None);
        }
        if self.is_inline(dir) {
            return self.find_inline(dir, name);
        }
        if self.is_indexed(dir) && name != b"." && name != b".." {
            match self.find_in_tree(dir, name) {
                Err(e) if e.is_bad_index() => self.warn_of_index(dir, &e),
                done => return done,
            }
        }
        self.find_linear(dir, name)
    }

    fn find_linear(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        let blocks = self.dir_blocks(dir);
        let mut ahead = 0;
        for lblk in (0..blocks).map(Lblk) {
            if lblk.0 >= ahead && blocks > 1 {
                ahead = self.prefetch_dir(dir, lblk, blocks);
            }
            let (buf, layout) = self.dir_any(dir, lblk)?;
            if let Some(found) = self.find_in_block(dir, &buf, lblk, &layout, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Starts reading blocks from `lblk`; returns the block before which to call again.
    fn prefetch_dir(&self, dir: &Inode, lblk: Lblk, blocks: u32) -> u32 {
        let want = (blocks - lblk.0).min(READ_AHEAD);
        match self.map_lookup(dir, lblk, want) {
            Ok(Run::Mapped { pblk, len, .. }) => {
                self.cache.prefetch(pblk.0..pblk.0 + u64::from(len.min(want)));
                lblk.0.saturating_add(len.min(want).max(1))
            }
            _ => lblk.0.saturating_add(1),
        }
    }

    pub(crate) fn find_in_block(
        &self,
        dir: &Inode,
        buf: &Buf,
        lblk: Lblk,
        layout: &DirLayout,
        name: &[u8],
    ) -> Result<Option<Found>> {
        let hit = buf.with(|bytes| records::scan(layout, bytes, name)).map(|scan| scan.found);
        match hit {
            Ok(Some((ino, offset))) => {
                Ok(Some(Found { ino, at: At::Block { buf: buf.clone(), lblk, offset } }))
            }
            Ok(None) => Ok(None),
            Err(e) => Err(dir_error(dir, lblk, &e)),
        }
    }

    /// The directory that `..` of `dir` leads to.
    pub(crate) fn parent_ino(&self, dir: &Inode) -> Result<Ino> {
        if let Some(parent) = dir.leaving()
            && !without!(self, LeavingSeen)
        {
            return Ok(parent);
        }
        // In the first block, whatever its tree: nothing is read ahead.
        let found = if dir.is_dead() || self.is_inline(dir) {
            self.find(dir, b"..")?
        } else {
            let (buf, layout) = self.dir_any(dir, Lblk(0))?;
            self.find_in_block(dir, &buf, Lblk(0), &layout, b"..")?
        };
        found
            .map(|f| f.ino)
            .ok_or_else(|| Error::corrupt(Place::Inode(dir.ino), CorruptKind::Dirent("no `..`", 0)))
    }

    /// The inode that `name` in `dir` leads to. The caller holds the directory's lock.
    pub(crate) fn lookup_locked(&self, dir: &InodeRef, name: &[u8]) -> Result<InodeRef> {
        check_name(name)?;
        if name == b"." {
            return Ok(dir.clone());
        }
        let found = self.find(dir, name)?.ok_or(Error::NotFound)?;
        if name == b".." {
            return self.iget_named(dir, found.ino);
        }
        self.iget_within(dir, found.ino)
    }

    /// The inode that a name in `dir`, not one of its own, leads to.
    fn iget_within(&self, dir: &InodeRef, ino: Ino) -> Result<InodeRef> {
        if ino == dir.ino {
            let kind = CorruptKind::Dirent("a directory within itself", 0);
            return Err(Error::corrupt(Place::Inode(dir.ino), kind));
        }
        self.iget_named(dir, ino)
    }

    /// The same for who will lock it, and holds the lock of `dir` exclusively: a directory must say itself that it is in `dir`, and
    /// not be what `dir` is in, nor the root. Else two threads would lock the two in different orders; of larger circles see
    /// `ancestry`.
    ///
    /// # Errors
    /// Damage; `Busy` where it is so changed at the moment that nothing can be said.
    pub(crate) fn iget_child(&self, dir: &InodeRef, ino: Ino) -> Result<InodeRef> {
        let child = self.iget_within(dir, ino)?;
        // Twice: since it was first looked at it may have begun to leave its inode, and says so then, or has left it
        // (test `explore::renaming_a_directory_that_leaves_its_inode`).
        if !child.is_dir() || (0..2).any(|_| self.check_parent(dir, &child).is_ok()) {
            return Ok(child);
        }
        let locked = child.lock.try_read().ok_or(Error::Busy)?;
        self.check_parent(dir, &child)?;
        drop(locked);
        Ok(child)
    }

    fn check_parent(&self, dir: &Inode, child: &Inode) -> Result<()> {
        let parent = self.parent_ino(child)?;
        if child.ino != Ino::ROOT && parent == dir.ino && self.parent_ino(dir)? != child.ino {
            return Ok(());
        }
        Err(Error::corrupt(Place::Inode(child.ino), CorruptKind::Parent(parent)))
    }

    /// Whether `dir` has no names but its own; damage counts as an error.
    pub(crate) fn dir_is_empty(&self, dir: &Inode) -> Result<bool> {
        if self.is_inline(dir) {
            return self.inline_is_empty(dir);
        }
        for lblk in (0..self.dir_blocks(dir)).map(Lblk) {
            let (buf, layout) = self.dir_any(dir, lblk)?;
            if !buf.with(|bytes| records::is_empty(&layout, bytes)).map_err(|e| dir_error(dir, lblk, &e))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A block of records that is damaged.
pub(crate) fn dir_error(dir: &Inode, lblk: Lblk, e: &DirError) -> Error {
    let place = Place::DirBlock { ino: dir.ino, lblk };
    match e {
        DirError::Checksum { .. } => Error::Checksum(place),
        e => Error::corrupt(place, CorruptKind::Layout(e.to_string().into())),
    }
}

/// An index block that is damaged. Where the kernel goes on without the index, so do we: see `unindexed`.
pub(crate) fn tree_error(dir: &Inode, lblk: Lblk, e: &HtreeError) -> Error {
    let place = Place::DirBlock { ino: dir.ino, lblk };
    match e {
        HtreeError::Checksum { .. } | HtreeError::Leaf(DirError::Checksum { .. }) => Error::Checksum(place),
        HtreeError::Reserved(_)
        | HtreeError::HashVersion(_)
        | HtreeError::InfoLength(_)
        | HtreeError::Flags(_)
        | HtreeError::Levels(_)
        | HtreeError::Limit { .. }
        | HtreeError::Count { .. }
        | HtreeError::Order { .. } => Error::corrupt(place, CorruptKind::BadIndex(e.to_string().into())),
        HtreeError::BadHead if lblk.0 == 0 => {
            Error::corrupt(place, CorruptKind::BadIndex(e.to_string().into()))
        }
        e => Error::corrupt(place, CorruptKind::Layout(e.to_string().into())),
    }
}
