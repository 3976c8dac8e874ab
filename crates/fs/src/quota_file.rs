//! Quota files as their tree sees them: 1 KiB blocks on the metadata buffers of an inode that is kept for them.
//!
//! The tree works on copies of its blocks, under a lock of its own; entries are changed in place under theirs, also while a new one
//! is put next to them. So what the tree writes is what it has changed of a block since it read it (test
//! `new_entries_beside_changed_ones`).

use std::sync::Arc;

use extant_alloc::{Privilege, Reservation};
use extant_format::Lblk;
use extant_format::quota::{
    BLOCK_LEN, Dqblk, QuotaError, QuotaFile, QuotaInfo, QuotaKind, QuotaStore, TREE_LEVELS, block_place,
};
use extant_journal::{Buf, Handle};
use extant_map::{MapFs, Run};
use rustc_hash::FxHashMap;

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;
use crate::quota::{Entry, Kind};

/// 1 KiB blocks that one new entry may add: the levels below the root, and a data block.
pub(crate) const NEW_BLOCKS: u32 = TREE_LEVELS as u32;

/// A quota file's blocks, to be read, or changed in a handle.
pub(crate) struct Store<'a> {
    fs: &'a Filesystem,
    inode: &'a Inode,
    change: Option<(&'a mut Handle, &'a mut Reservation)>,
    /// Blocks as they were read, to tell what was changed.
    read: FxHashMap<u32, [u8; BLOCK_LEN]>,
}

impl<'a> Store<'a> {
    pub(crate) fn reading(fs: &'a Filesystem, inode: &'a Inode) -> Self {
        Self { fs, inode, change: None, read: FxHashMap::default() }
    }

    pub(crate) fn changing(
        fs: &'a Filesystem,
        inode: &'a Inode,
        handle: &'a mut Handle,
        blocks: &'a mut Reservation,
    ) -> Self {
        Self { change: Some((handle, blocks)), ..Self::reading(fs, inode) }
    }

    fn buf(&self, block: u32) -> Result<(Buf, usize)> {
        let (lblk, at) = block_place(block, self.fs.geo.block_size());
        match self.fs.map_lookup(self.inode, lblk, 1)? {
            Run::Mapped { pblk, unwritten: false, .. } => Ok((self.fs.cache.read(pblk)?, at)),
            _ => Err(bad(self.inode, format!("block {lblk} of the quota file is a hole"))),
        }
    }

    fn is_mapped(&self, lblk: Lblk) -> Result<bool> {
        Ok(matches!(self.fs.map_lookup(self.inode, lblk, 1)?, Run::Mapped { .. }))
    }
}

impl QuotaStore for Store<'_> {
    type Error = Error;

    fn read(&mut self, block: u32, into: &mut [u8; BLOCK_LEN]) -> Result<()> {
        let (buf, at) = self.buf(block)?;
        buf.with(|bytes| into.copy_from_slice(&bytes[at..at + BLOCK_LEN]));
        if self.change.is_some() {
            self.read.insert(block, *into);
        }
        Ok(())
    }

    fn write(&mut self, block: u32, from: &[u8; BLOCK_LEN]) -> Result<()> {
        let (lblk, at) = block_place(block, self.fs.geo.block_size());
        let mapped = self.is_mapped(lblk)?;
        let old = if mapped { Some(self.buf(block)?.0) } else { None };
        let Some((handle, blocks)) = &mut self.change else {
            return Err(Error::ReadOnly);
        };
        let buf = match old {
            Some(buf) => buf,
            None => self.fs.add_meta_block(handle, self.inode, lblk, blocks)?,
        };
        let before = self.read.insert(block, *from);
        handle.modify(&buf, |bytes: &mut [u8]| {
            let into = &mut bytes[at..at + BLOCK_LEN];
            match before {
                None => into.copy_from_slice(from),
                Some(before) => {
                    let changed = into.iter_mut().zip(from).zip(before).filter(|((_, new), old)| *new != old);
                    changed.for_each(|((byte, new), _)| *byte = *new);
                }
            }
        })?;
        let mut state = self.inode.state();
        let end = (u64::from(block) + 1) * BLOCK_LEN as u64;
        state.size = state.size.max(end);
        state.raw.size = state.raw.size.max(end);
        Ok(())
    }
}

impl From<QuotaError> for Error {
    fn from(e: QuotaError) -> Self {
        Self::corrupt(Place::Superblock, CorruptKind::Quota(e.to_string().into()))
    }
}

fn bad(inode: &Inode, what: String) -> Error {
    Error::corrupt(Place::Inode(inode.ino), CorruptKind::Quota(what.into()))
}

impl Filesystem {
    /// The header of a quota file, checked.
    pub(crate) fn quota_info(&self, kind: QuotaKind, inode: &Inode) -> Result<QuotaInfo> {
        let store = Store::reading(self, inode);
        Ok(*QuotaFile::open_any(store, kind, inode.size())?.info())
    }

    /// Finds the entry of an id, or makes it: in the handle given, else in one of its own (no handle open then).
    pub(crate) fn quota_load(&self, kind: &Kind, id: u32, handle: Option<&mut Handle>) -> Result<Arc<Entry>> {
        if let Some(found) = self.quota_find(kind, id)? {
            return Ok(found);
        }
        let reach = MapFs::reach(kind.inode.map_kind());
        if let Some(handle) = handle {
            // Nobody prepared for this id: take what is there.
            let mut blocks = self.alloc.no_reservation_below(Privilege::Pool, reach);
            return self.quota_make(kind, id, handle, &mut blocks);
        }
        let most = u64::from(NEW_BLOCKS);
        let mut blocks = self.alloc.reserve_below(most, most, Privilege::Reserved, reach)?;
        let mut handle = self.journal.start(self.quota_entry_credits(self.depth(&kind.inode)?))?;
        let made = self.quota_make(kind, id, &mut handle, &mut blocks);
        self.finish(handle, made, &kind.inode)
    }

    pub(crate) fn quota_find(&self, kind: &Kind, id: u32) -> Result<Option<Arc<Entry>>> {
        let _tree = kind.tree.lock();
        let store = Store::reading(self, &kind.inode);
        let mut file = QuotaFile::open_any(store, kind.kind, kind.inode.size())?;
        let Some((place, dq)) = file.find(id)? else { return Ok(None) };
        let buf = file.store().buf(place.block)?;
        Ok(Some(kind.keep(id, kind.entry_state(dq, place, buf))))
    }

    fn quota_make(
        &self,
        kind: &Kind,
        id: u32,
        handle: &mut Handle,
        blocks: &mut Reservation,
    ) -> Result<Arc<Entry>> {
        let _tree = kind.tree.lock();
        let dq = Dqblk::default();
        let (place, buf) = {
            let store = Store::changing(self, &kind.inode, &mut *handle, blocks);
            let mut file = QuotaFile::open_any(store, kind.kind, kind.inode.size())?;
            match file.find(id)? {
                // Another caller was first.
                Some((place, found)) => {
                    let buf = file.store().buf(place.block)?;
                    return Ok(kind.keep(id, kind.entry_state(found, place, buf)));
                }
                None => {
                    let place = file.insert(id, &dq)?;
                    (place, file.store().buf(place.block)?)
                }
            }
        };
        self.write_inode(handle, &kind.inode)?;
        Ok(kind.keep(id, kind.entry_state(dq, place, buf)))
    }
}
