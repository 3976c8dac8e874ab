//! Setting and removing attributes; sharing attribute blocks.
//!
//! An attribute goes into the inode if it fits there, else into the block, else (with `ea_inode`) its value goes into an
//! inode of its own. A block that others share is never changed: the inode takes a copy, or joins another block that
//! already says the same.

use extant_alloc::Reservation;
use extant_format::inode::InodeFlags;
use extant_format::xattr::{self as format, Area, AreaKind, AttrSet, BlockHeader, MAX_REFCOUNT, Value};
use extant_format::{Pblk, RoCompat};
use extant_journal::{Buf, Error as JournalError, Handle};
use extant_sync::atomic::Ordering;
use extant_sync::{Mutex, Rank};
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

use super::value::References;

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

    /// How many values of the inode are in inodes of their own.
    pub(crate) fn values_named(&self, inode: &Inode) -> Result<u32> {
        if !self.has_ea_inode() {
            return Ok(0);
        }
        let _xattr = inode.xattr.read();
        let count =
            |area: Option<&Area<'_>>| area.map_or(0, |a| a.entries().filter(|e| e.value_inum.0 != 0).count());
        Ok((self.with_ibody(inode, count)? + self.with_block(inode, count)?) as u32)
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
        let mut values = self.references(inode, [&body, &block])?;
        body.remove(index, name);
        block.remove(index, name);
        if let Some(value) = value {
            self.place(handle, inode, (index, name), value, (&mut body, &mut block), blocks)?;
        }
        self.count_values(inode, [&body_before, &block_before], [&body, &block]);
        values.left(&body_before);
        values.joined(&body);
        if block != block_before {
            self.store_block(handle, inode, (&block_before, block), &mut values, blocks)?;
        }
        self.settle_references(handle, values)?;
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

    /// Makes `attrs` the content of the inode's attribute block, which had `before`: in place, in a new block, in one that it
    /// shares, or in none. The caller writes the inode, and settles the references of `values`: each block has its own, however
    /// many inodes share it.
    fn store_block(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        (before, mut attrs): (&AttrSet, AttrSet),
        values: &mut References,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let old = self.xattr_block(inode)?;
        if attrs.is_empty() {
            if self.leave_block(handle, inode, old)? {
                values.left(before);
            }
            return Ok(());
        }
        let mut bytes = vec![0; self.geo.block_size() as usize];
        attrs.write_block(&mut bytes, 1).map_err(|e| self.xattr_error(inode, &e))?;
        let hash = BlockHeader::read(&bytes).map_err(|e| self.xattr_error(inode, &e))?.hash;
        if let Some(shared) = self.join_block(handle, hash, &bytes)? {
            if self.leave_block(handle, inode, old)? {
                values.left(before);
            }
            inode.state().raw.file_acl = shared;
            self.block_joined(inode);
            return Ok(());
        }
        if let Some(buf) = &old
            && self.rewrite_own(handle, buf, &bytes)?
        {
            self.remember_block(hash, buf.pblk());
            values.left(before);
            values.joined(&attrs);
            return Ok(());
        }
        let buf = self.new_xattr_block(handle, inode, blocks)?;
        if self.leave_block(handle, inode, old)? {
            values.left(before);
        }
        values.joined(&attrs);
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
        if hash != 0 && self.options().mbcache {
            self.shared_blocks.remember(hash, pblk);
        }
    }

    /// Writes new content over a block that nobody shares; false if somebody does.
    fn rewrite_own(&self, handle: &mut Handle, buf: &Buf, bytes: &[u8]) -> Result<bool> {
        let pblk = buf.pblk();
        let header = buf.with(|b| BlockHeader::read(b).ok());
        // Without touching a shared block in the handle: what comes next may find no space, which must leave nothing changed.
        let Some(old_hash) = header.filter(|h| h.refcount == 1).map(|h| h.hash) else { return Ok(false) };
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
        if hash == 0 || !self.options().mbcache {
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

    /// Takes the inode off its attribute block, which is freed if no other inode has it; whether it was. The caller writes the
    /// inode.
    fn leave_block(&self, handle: &mut Handle, inode: &Inode, old: Option<Buf>) -> Result<bool> {
        let Some(buf) = old else { return Ok(false) };
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
        Ok(last)
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

    /// Charges the inode for the values that it has in inodes of their own now and had not before: whole clusters in `i_blocks`,
    /// and inodes, as e2fsck counts them. Every inode that shares an attribute block is charged in full. The caller writes it.
    fn count_values(&self, inode: &Inode, before: [&AttrSet; 2], now: [&AttrSet; 2]) {
        let sum = |sets: [&AttrSet; 2]| {
            let sizes = sets.into_iter().flat_map(AttrSet::iter).filter_map(|attr| match attr.value {
                Value::EaInode { size, .. } => Some(u64::from(size)),
                Value::Inline(_) => None,
            });
            sizes.fold((0, 0), |(sectors, count), size| {
                (sectors + size.next_multiple_of(self.geo.cluster_size()) / 512, count + 1)
            })
        };
        let ((had, count_had), (has, count_has)) = (sum(before), sum(now));
        let mut state = inode.state();
        state.raw.blocks = (state.raw.blocks + has).saturating_sub(had);
        drop(state);
        let change = |count: u32| Some((count + count_has).saturating_sub(count_had));
        // Never fails: the closure always has a value.
        let _ = inode.ea_values.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Finds out how many values an inode that is being read has in inodes of their own, where quota counts them.
    pub(crate) fn count_ea_values(&self, inode: &mut Inode) {
        let quota = self.features.ro_compat.contains(RoCompat::QUOTA);
        if !quota || !self.has_ea_inode() || inode.flags().contains(InodeFlags::EA_INODE) {
            return;
        }
        let count =
            |area: Option<&Area<'_>>| area.map_or(0, |a| a.entries().filter(|e| e.value_inum.0 != 0).count());
        // Damage is reported when an attribute is wanted.
        let counts = [self.with_ibody(inode, count), self.with_block(inode, count)];
        let values = counts.into_iter().map(|c| c.unwrap_or(0) as u32).sum();
        *inode.ea_values.get_mut() = values;
        let inodes = 1 + values;
        let sectors = inode.state().raw.blocks;
        inode.counted = crate::quota::counted(Self::quota_ids(inode), sectors, inodes);
    }

    /// Frees every attribute of an inode that is going away. The caller writes the inode afterwards.
    pub(crate) fn xattr_free_all(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let _xattr = inode.xattr.write();
        let held = |area: Option<&Area<'_>>| area.map_or_else(AttrSet::new, AttrSet::from_area);
        let body = self.with_ibody(inode, held)?;
        let block = self.with_block(inode, held)?;
        let mut values = self.references(inode, [&body, &block])?;
        values.left(&body);
        let old = self.xattr_block(inode)?;
        if self.leave_block(handle, inode, old)? {
            values.left(&block);
        }
        self.settle_references(handle, values)
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
        let (mut block, none) = (AttrSet::new(), AttrSet::new());
        for (index, name, value) in attrs {
            self.place(handle, inode, (*index, name), value, (&mut body, &mut block), blocks)?;
        }
        self.count_values(inode, [&none, &none], [&body, &block]);
        let mut values = References::default();
        values.joined(&body);
        if !block.is_empty() {
            self.store_block(handle, inode, (&none, block), &mut values, blocks)?;
        }
        self.settle_references(handle, values)?;
        self.write_ibody(handle, inode, &body)
    }
}
