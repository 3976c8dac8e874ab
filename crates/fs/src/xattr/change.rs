//! Setting and removing attributes; sharing attribute blocks.
//!
//! An attribute goes into the inode if it fits there, else into the block, else (with `ea_inode`) its value goes into an
//! inode of its own. A block that others share is never changed: the inode takes a copy, or joins another block that
//! already says the same.

use extant_alloc::Reservation;
use extant_format::Pblk;
use extant_format::xattr::{self as format, Area, AreaKind, AttrSet, BlockHeader, MAX_REFCOUNT, Value};
use extant_journal::{Buf, Error as JournalError, Handle};
use extant_sync::{Mutex, Rank};
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// Attribute blocks by the hash of their content, to find one to share. A hint: what it names is checked.
#[derive(Debug)]
pub(crate) struct SharedBlocks {
    by_hash: Mutex<FxHashMap<u32, Pblk>>,
}

/// How many blocks the hint remembers.
const REMEMBERED: usize = 4096;

impl SharedBlocks {
    pub(crate) fn new() -> Self {
        Self { by_hash: Mutex::new(Rank::LEAF, FxHashMap::default()) }
    }

    fn find(&self, hash: u32) -> Option<Pblk> {
        self.by_hash.lock().get(&hash).copied()
    }

    fn remember(&self, hash: u32, pblk: Pblk) {
        let mut map = self.by_hash.lock();
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(hash, pblk);
    }

    fn forget(&self, hash: u32, pblk: Pblk) {
        let mut map = self.by_hash.lock();
        if map.get(&hash) == Some(&pblk) {
            map.remove(&hash);
        }
    }
}

/// Attributes that a new inode begins with.
pub(crate) type NewAttrs = Vec<(u8, Vec<u8>, Vec<u8>)>;

impl Filesystem {
    /// Writes the attributes inside the inode, and the inode. The caller holds the xattr lock exclusively. One credit.
    pub(crate) fn write_ibody(&self, handle: &mut Handle, inode: &Inode, attrs: &AttrSet) -> Result<()> {
        let len = self.ibody_len(inode);
        if attrs.is_empty() && len == 0 {
            return self.write_inode(handle, inode);
        }
        if !attrs.fits(AreaKind::Ibody, len) {
            return Err(Error::NoSpace);
        }
        let end = inode.table.1 + usize::from(self.inode_format.inode_size());
        let buf = self.cache.read(inode.table.0)?;
        handle
            .modify(&buf, |bytes| attrs.write_ibody(&mut bytes[end - len..end]))?
            .map_err(|e| self.xattr_error(inode, &e))?;
        self.write_inode_to(handle, inode, &buf)
    }

    /// What [`Self::xattr_store`] may need: blocks to reserve, credits.
    pub(crate) fn xattr_needs(&self, value_len: usize) -> (u64, u32) {
        let large = if self.has_ea_inode() { self.ea_blocks(value_len) } else { 0 };
        let blocks = 1 + u64::from(large);
        // Inode, both attribute blocks, an EA inode and the one it replaces, the orphan record.
        (blocks, 12 + (1 + large) * self.block_credits())
    }

    /// Sets (`Some`) or removes (`None`) an attribute. The caller holds the inode lock exclusively, and has checked
    /// that the attribute is there or not there as wanted. Writes the inode.
    pub(crate) fn xattr_store(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        (index, name): (u8, &[u8]),
        value: Option<&[u8]>,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let _xattr = inode.xattr.write();
        let mut body = self.ibody_attrs(inode)?;
        let mut block = self.with_block(inode, |area| area.map_or_else(AttrSet::new, AttrSet::from_area))?;
        let (body_before, block_before) = (body.clone(), block.clone());
        let old = [body.remove(index, name), block.remove(index, name)];
        if let Some(value) = value {
            self.place(handle, inode, (index, name), value, (&mut body, &mut block), blocks)?;
        }
        if block != block_before {
            self.store_block(handle, inode, block, blocks)?;
        }
        for old in old.into_iter().flatten() {
            if let Value::EaInode { ino, .. } = old {
                self.ea_release(handle, inode, ino)?;
            }
        }
        inode.state().raw.ctime = self.now();
        if body != body_before {
            self.write_ibody(handle, inode, &body)
        } else {
            self.write_inode(handle, inode)
        }
    }

    /// Adds an attribute to the area that has room for it.
    fn place(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        (index, name): (u8, &[u8]),
        value: &[u8],
        (body, block): (&mut AttrSet, &mut AttrSet),
        blocks: &mut Reservation,
    ) -> Result<()> {
        let fits = |set: &AttrSet, kind, len: usize, value: &Value| -> Result<Option<AttrSet>> {
            let mut with = set.clone();
            with.set(index, name, value.clone()).map_err(|e| self.xattr_error(inode, &e))?;
            Ok(with.fits(kind, len).then_some(with))
        };
        let block_len = self.geo.block_size() as usize;
        let body_len = if inode.state().raw.extra_isize == 0 { 0 } else { self.ibody_len(inode) };
        let mut stored = Value::Inline(value.to_vec());
        for large in [false, true] {
            if large {
                if !self.has_ea_inode() || value.is_empty() {
                    break;
                }
                // Only made when the entry itself has room.
                let probe = Value::EaInode { ino: inode.ino, size: value.len() as u32, hash: 0 };
                let room = fits(body, AreaKind::Ibody, body_len, &probe)?.is_some()
                    || fits(block, AreaKind::Block, block_len, &probe)?.is_some();
                // The value's blocks and an attribute block must be there before the first change.
                let enough = blocks.data() > u64::from(self.ea_blocks(value.len()));
                if !room || !enough {
                    break;
                }
                let holder = self.ea_create(handle, inode, value, blocks)?;
                let hash = format::ea_inode_hash(self.csum.seed(), value);
                stored = Value::EaInode { ino: holder.ino, size: value.len() as u32, hash };
            }
            if let Some(with) = fits(body, AreaKind::Ibody, body_len, &stored)? {
                *body = with;
                return Ok(());
            }
            if let Some(with) = fits(block, AreaKind::Block, block_len, &stored)? {
                *block = with;
                return Ok(());
            }
        }
        Err(Error::NoSpace)
    }

    /// Makes `attrs` the content of the inode's attribute block: in place, in a new block, in one that it shares, or in
    /// none. The caller writes the inode.
    fn store_block(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        mut attrs: AttrSet,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let old = self.xattr_block(inode)?;
        if attrs.is_empty() {
            return self.leave_block(handle, inode, old);
        }
        let mut bytes = vec![0; self.geo.block_size() as usize];
        attrs.write_block(&mut bytes, 1).map_err(|e| self.xattr_error(inode, &e))?;
        let hash = BlockHeader::read(&bytes).map_err(|e| self.xattr_error(inode, &e))?.hash;
        if let Some(shared) = self.join_block(handle, hash, &bytes)? {
            self.leave_block(handle, inode, old)?;
            inode.state().raw.file_acl = shared;
            self.block_joined(inode);
            return Ok(());
        }
        if let Some(buf) = &old
            && self.rewrite_own(handle, buf, &bytes)?
        {
            self.remember_block(hash, buf.pblk());
            return Ok(());
        }
        let buf = self.new_xattr_block(handle, inode, blocks)?;
        self.leave_block(handle, inode, old)?;
        let pblk = buf.pblk();
        if self.csum.has_metadata() {
            format::set_block_checksum(self.csum.seed(), pblk, &mut bytes);
        }
        handle.modify(&buf, |place| place.copy_from_slice(&bytes))?;
        inode.state().raw.file_acl = pblk;
        self.block_joined(inode);
        self.remember_block(hash, pblk);
        Ok(())
    }

    fn remember_block(&self, hash: u32, pblk: Pblk) {
        if hash != 0 && self.options().given.mbcache {
            self.shared_blocks.remember(hash, pblk);
        }
    }

    /// Writes new content over a block that nobody shares; false if somebody does.
    fn rewrite_own(&self, handle: &mut Handle, buf: &Buf, bytes: &[u8]) -> Result<bool> {
        let pblk = buf.pblk();
        let old_hash = buf.with(|b| BlockHeader::read(b).map(|h| h.hash).unwrap_or(0));
        let written = handle.modify(buf, |place| {
            if BlockHeader::read(place).map_or(0, |h| h.refcount) != 1 {
                return false;
            }
            place.copy_from_slice(bytes);
            if self.csum.has_metadata() {
                format::set_block_checksum(self.csum.seed(), pblk, place);
            }
            true
        })?;
        if written {
            self.shared_blocks.forget(old_hash, pblk);
        }
        Ok(written)
    }

    /// Finds a block with the content of `bytes` (whatever its count) and counts one more inode.
    fn join_block(&self, handle: &mut Handle, hash: u32, bytes: &[u8]) -> Result<Option<Pblk>> {
        if hash == 0 || !self.options().given.mbcache {
            return Ok(None);
        }
        let Some(pblk) = self.shared_blocks.find(hash) else { return Ok(None) };
        let Ok(buf) = self.cache.read(pblk) else { return Ok(None) };
        let same = |place: &[u8]| {
            // Everything but count and checksum.
            let header = BlockHeader::read(place).ok().filter(|h| h.refcount < MAX_REFCOUNT)?;
            (place[8..16] == bytes[8..16] && place[32..] == bytes[32..]).then_some(header.refcount)
        };
        if buf.with(|place| same(place)).is_none() {
            self.shared_blocks.forget(hash, pblk);
            return Ok(None);
        }
        let joined = handle.modify(&buf, |place| {
            let Some(count) = same(place) else { return false };
            let counted = format::set_refcount(place, count + 1).is_ok();
            if self.csum.has_metadata() {
                format::set_block_checksum(self.csum.seed(), pblk, place);
            }
            counted
        });
        match joined {
            Ok(joined) => Ok(joined.then_some(pblk)),
            Err(JournalError::Forgotten(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the inode off its attribute block, which is freed if no other inode has it. The caller writes the inode.
    pub(super) fn leave_block(&self, handle: &mut Handle, inode: &Inode, old: Option<Buf>) -> Result<()> {
        let Some(buf) = old else { return Ok(()) };
        let pblk = buf.pblk();
        let hash = buf.with(|b| BlockHeader::read(b).map(|h| h.hash).unwrap_or(0));
        let last = handle.modify(&buf, |place| {
            let count = BlockHeader::read(place).map_or(1, |h| h.refcount);
            if count <= 1 {
                // No longer a block of attributes: whoever looks at it as one to share sees that.
                place[..8].fill(0);
                return true;
            }
            let counted = format::set_refcount(place, count - 1);
            debug_assert!(counted.is_ok());
            if self.csum.has_metadata() {
                format::set_block_checksum(self.csum.seed(), pblk, place);
            }
            false
        })?;
        inode.state().raw.file_acl = Pblk(0);
        self.block_left(inode);
        if last {
            self.shared_blocks.forget(hash, pblk);
            drop(buf);
            handle.revoke(pblk)?;
            self.alloc.free(handle, pblk, 1)?;
        }
        Ok(())
    }

    fn block_joined(&self, inode: &Inode) {
        let sectors = self.geo.cluster_size() / 512;
        inode.state().raw.blocks += sectors;
    }

    fn block_left(&self, inode: &Inode) {
        let sectors = self.geo.cluster_size() / 512;
        let mut state = inode.state();
        state.raw.blocks = state.raw.blocks.saturating_sub(sectors);
    }

    /// Frees every attribute of an inode that is going away. The caller writes the inode afterwards.
    pub(crate) fn xattr_free_all(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let _xattr = inode.xattr.write();
        let held = |area: Option<&Area<'_>>| -> Vec<extant_format::Ino> {
            area.map(|a| a.entries().map(|e| e.value_inum).filter(|i| i.0 != 0).collect()).unwrap_or_default()
        };
        let mut values = self.with_ibody(inode, held)?;
        if let Some(buf) = self.xattr_block(inode)? {
            let own = buf.with(|b| BlockHeader::read(b).map_or(0, |h| h.refcount)) == 1;
            if own {
                values.extend(self.with_block(inode, held)?);
            }
            self.leave_block(handle, inode, Some(buf))?;
        }
        for ino in values {
            self.ea_release(handle, inode, ino)?;
        }
        Ok(())
    }

    /// Gives a new inode, which nobody else sees yet, its first attributes, and writes it.
    pub(crate) fn xattr_init(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        attrs: &NewAttrs,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let _xattr = inode.xattr.write();
        let mut body = self.ibody_attrs(inode)?;
        let mut block = AttrSet::new();
        for (index, name, value) in attrs {
            self.place(handle, inode, (*index, name), value, (&mut body, &mut block), blocks)?;
        }
        if !block.is_empty() {
            self.store_block(handle, inode, block, blocks)?;
        }
        self.write_ibody(handle, inode, &body)
    }
}
