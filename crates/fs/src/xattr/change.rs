//! Setting and removing attributes; sharing attribute blocks.
//!
//! An attribute goes into the inode if it fits there, else into the block, else (with `ea_inode`) its value goes into an
//! inode of its own, or is found in one that has the same. A block that others share is never changed: the inode takes a copy,
//! or joins another block that already says the same.
//!
//! A change has two steps. [`Filesystem::plan_xattr`] finds, under the inode's exclusive lock and without a handle, what the
//! attributes will be, and claims the blocks for it; [`Filesystem::apply_xattr`] does it in a handle, where the only thing
//! left to fail is an inode for a value, before anything is changed.

use extant_alloc::{Claim, ClaimRequest, Reservation, ToFree};
use extant_format::inode::InodeFlags;
use extant_format::xattr::{
    self as format, Area, AreaKind, AttrSet, BlockHeader, MAX_REFCOUNT, Value, XattrError,
};
use extant_format::{Ino, Lblk, Pblk, RoCompat};
use extant_journal::{Buf, Error as JournalError, Handle};
use extant_sync::atomic::Ordering;
use extant_sync::{Mutex, Rank};
use rustc_hash::FxHashMap;

use crate::cred::Credentials;
use crate::credits::{VALUE, VALUES_AT_ONCE, XATTR_BLOCK};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

use super::value::{NewValue, References, named};

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

/// What a change of one attribute comes to, with everything claimed that it takes.
pub(crate) struct XattrPlan {
    /// The attributes in the inode and in its block, before and after.
    before: [AttrSet; 2],
    now: [AttrSet; 2],
    large: Option<Large>,
    /// A block, if one may be needed.
    fresh: Option<Claim>,
    values: References,
    credits: u32,
    _table: Buf,
    /// The block that there is, and what freeing it changes.
    _block: Option<(Buf, ToFree)>,
}

/// A value that goes to an inode of its own.
struct Large {
    /// The area that names it.
    area: usize,
    index: u8,
    name: Vec<u8>,
    value: NewValue,
}

impl XattrPlan {
    /// Credits beside the inode's own block.
    pub(crate) fn credits(&self) -> u32 {
        self.credits
    }

    fn changes_block(&self) -> bool {
        self.now[1] != self.before[1]
    }
}

impl Filesystem {
    /// Writes the attributes inside the inode, and the inode. The caller holds the xattr lock exclusively. One credit.
    pub(crate) fn write_ibody(&self, handle: &mut Handle, inode: &Inode, attrs: &AttrSet) -> Result<()> {
        let len = self.ibody_len(inode);
        if attrs.is_empty() && len == 0 {
            return self.write_inode(handle, inode);
        }
        if !attrs.fits(AreaKind::Ibody, len) {
            return Err(Error::NoRoom);
        }
        let end = inode.table.1 + usize::from(self.inode_format.inode_size());
        let buf = self.cache.read(inode.table.0)?;
        handle
            .modify(&buf, |bytes| attrs.write_ibody(&mut bytes[end - len..end]))?
            .map_err(|e| self.xattr_error(inode, &e))?;
        self.write_inode_to(handle, inode, &buf)
    }

    /// Finds out what setting (`Some`) or removing (`None`) an attribute comes to. The caller holds the inode lock exclusively until
    /// the plan was carried out, and has checked that the attribute is there or not there as wanted.
    ///
    /// # Errors
    /// `NoRoom`: it fits nowhere; `NoSpace`; `QuotaExceeded`; damage.
    pub(crate) fn plan_xattr(
        &self,
        inode: &Inode,
        (index, name): (u8, &[u8]),
        value: Option<&[u8]>,
        cred: &Credentials,
    ) -> Result<XattrPlan> {
        let (before, mut values, block, _table) = {
            let _xattr = inode.xattr.read();
            let held = |area: Option<&Area<'_>>| area.map_or_else(AttrSet::new, AttrSet::from_area);
            let before = [self.ibody_attrs(inode)?, self.with_block(inode, held)?];
            let values = self.references(inode, [&before[0], &before[1]])?;
            let block = match self.xattr_block(inode)? {
                Some(buf) => Some((buf.clone(), self.alloc.prepare_free(buf.pblk(), 1)?)),
                None => None,
            };
            (before, values, block, self.cache.read(inode.table.0)?)
        };
        let own = block.as_ref().map(|(buf, _)| buf.with(refcount));
        let mut now = before.clone();
        now.iter_mut().for_each(|set| drop(set.remove(index, name)));
        let lens = self.area_lens(inode);
        let large = match value {
            Some(value) => self.place(inode, lens, (index, name), value, (&mut now, &mut values), cred)?,
            None => None,
        };
        let mut plan =
            XattrPlan { before, now, large, fresh: None, values, credits: 0, _table, _block: block };
        plan.credits = self.xattr_credits(&plan, own);
        self.quota_admit_xattr(inode, &plan, cred)?;
        if plan.changes_block() && !plan.now[1].is_empty() && (own != Some(1) || plan.large.is_some()) {
            plan.fresh = match self.claim_xattr_block(inode, cred) {
                // A block that says the same may be found, and nothing is changed before that is known.
                Err(Error::NoSpace) if plan.large.is_none() => None,
                fresh => Some(fresh?),
            };
        }
        Ok(plan)
    }

    /// Asks the quotas of the inode's owners for what a change adds: a block where there was none, shared or not, and values in inodes
    /// of their own.
    fn quota_admit_xattr(&self, inode: &Inode, plan: &XattrPlan, cred: &Credentials) -> Result<()> {
        let charged = |[body, block]: &[AttrSet; 2]| {
            let (sectors, inodes) = self.charged_values([body, block]);
            let own = if block.is_empty() { 0 } else { self.geo.cluster_size() / 512 };
            (sectors + own, inodes)
        };
        let (had, inodes_had) = charged(&plan.before);
        // A value whose inode is still to be made is among them.
        let (has, inodes_has) = charged(&plan.now);
        let inodes = if self.has_hidden_quota() { inodes_has.saturating_sub(inodes_had) } else { 0 };
        let blocks = has.saturating_sub(had) * 512 / u64::from(self.geo.block_size());
        if blocks == 0 && inodes == 0 {
            return Ok(());
        }
        self.quota_admit(Self::quota_ids(inode), blocks, inodes.into(), cred)
    }

    /// Credits of a change, the inode's own block apart: an attribute block that is left or joined, a new one, a value and its
    /// inode, the references of values. `own`: how many inodes share the block that there is.
    fn xattr_credits(&self, plan: &XattrPlan, own: Option<u32>) -> u32 {
        let [before, now] = [&plan.before[1], &plan.now[1]].map(|set| named(set).count() as u32);
        // The value that goes and another one; leaving a block that stays is a reference for each value of the copy.
        let values = if own.is_some_and(|n| n > 1) && plan.changes_block() { before + now } else { 2 };
        let values = if self.has_ea_inode() { VALUE * values } else { 0 };
        2 * XATTR_BLOCK + values + plan.large.as_ref().map_or(0, |large| large.value.credits())
    }

    /// Bytes for attributes inside the inode, and in a block.
    fn area_lens(&self, inode: &Inode) -> [usize; 2] {
        let body = if inode.state().raw.extra_isize == 0 { 0 } else { self.ibody_len(inode) };
        [body, self.geo.block_size() as usize]
    }

    /// Carries out a plan, and writes the inode. Credits: the plan's, and the inode's.
    ///
    /// # Errors
    /// `NoSpace` with nothing changed; the journal's.
    pub(crate) fn apply_xattr(&self, handle: &mut Handle, inode: &Inode, plan: XattrPlan) -> Result<()> {
        let changes_block = plan.changes_block();
        let XattrPlan { before, mut now, large, fresh, mut values, .. } = plan;
        let _xattr = inode.xattr.write();
        if let Some(Large { area, index, name, value }) = large {
            let stored = self.ea_create(handle, inode, value)?;
            now[area].set(index, &name, stored).map_err(|e| self.xattr_error(inode, &e))?;
        }
        values.left(&before[0]);
        values.joined(&now[0]);
        if changes_block {
            self.store_block(handle, inode, (&before[1], now[1].clone()), &mut values, fresh)?;
        }
        self.settle_references(handle, values)?;
        self.count_values(inode, [&before[0], &before[1]], [&now[0], &now[1]]);
        inode.state().raw.ctime = self.now();
        if now[0] == before[0] {
            self.write_inode(handle, inode)
        } else {
            self.write_ibody(handle, inode, &now[0])
        }
    }

    /// Adds an attribute to the area that has room for it, of which there are `lens` bytes. The value is returned that goes to a
    /// new inode of its own.
    fn place(
        &self,
        inode: &Inode,
        lens: [usize; 2],
        (index, name): (u8, &[u8]),
        value: &[u8],
        (sets, values): (&mut [AttrSet; 2], &mut References),
        cred: &Credentials,
    ) -> Result<Option<Large>> {
        let here = Value::Inline(value.to_vec());
        if place_in(sets, lens, (index, name), &here).map_err(|e| self.xattr_error(inode, &e))?.is_some() {
            return Ok(None);
        }
        if !self.has_ea_inode() || value.is_empty() {
            return Err(Error::NoRoom);
        }
        let shared = self.share_value(inode, value, values);
        let is_shared = shared.is_some();
        // The number is known once the inode is there.
        let unknown = || Value::EaInode { ino: Ino(u32::MAX), size: value.len() as u32, hash: 0 };
        let there = shared.unwrap_or_else(unknown);
        let area = place_in(sets, lens, (index, name), &there).map_err(|e| self.xattr_error(inode, &e))?;
        let area = area.ok_or(Error::NoRoom)?;
        if is_shared {
            return Ok(None);
        }
        Ok(Some(Large { area, index, name: name.to_vec(), value: self.plan_value(inode, value, cred)? }))
    }

    /// Finds places for the first attributes of a new inode, none of which goes to an inode of its own.
    ///
    /// # Errors
    /// `NoRoom`: they do not fit.
    pub(crate) fn place_new(&self, dir: &Inode, attrs: &NewAttrs) -> Result<[AttrSet; 2]> {
        let mut sets = [AttrSet::new(), AttrSet::new()];
        let size = usize::from(self.inode_format.inode_size());
        let body = size.saturating_sub(128 + usize::from(self.want_extra_isize));
        let body = if self.want_extra_isize == 0 { 0 } else { body };
        for (index, name, value) in attrs {
            let lens = [body, self.geo.block_size() as usize];
            let placed = place_in(&mut sets, lens, (*index, name), &Value::Inline(value.clone()));
            placed.map_err(|e| self.xattr_error(dir, &e))?.ok_or(Error::NoRoom)?;
        }
        Ok(sets)
    }

    /// A block for attributes, taken in memory.
    fn claim_xattr_block(&self, inode: &Inode, cred: &Credentials) -> Result<Claim> {
        let mut purse = self.alloc.reserve(1, 0, self.privilege(cred))?;
        self.xattr_claim(inode, &mut purse)
    }

    fn xattr_claim(&self, inode: &Inode, purse: &mut Reservation) -> Result<Claim> {
        let goal = self.alloc.goal_for_inode(inode.ino, false);
        Ok(self.alloc.claim_held(&ClaimRequest::plain(goal, Lblk(0), 1), purse)?)
    }

    /// Makes `attrs` the content of the inode's attribute block, which had `before`: in place, in a new block, in one that it
    /// shares, or in none. The caller writes the inode, and settles the references of `values`: each block has its own, however
    /// many inodes share it. Credits: twice [`XATTR_BLOCK`].
    ///
    /// # Errors
    /// `NoSpace` with nothing changed, if a new block is needed and `fresh` is none.
    fn store_block(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        (before, mut attrs): (&AttrSet, AttrSet),
        values: &mut References,
        fresh: Option<Claim>,
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
        // Joining one that names values would be a reference to each of them less: more than there are credits for.
        let may_join = named(&attrs).next().is_none();
        if may_join && let Some(shared) = self.join_block(handle, hash, &bytes)? {
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
        let mut claim = fresh.ok_or(Error::NoSpace)?;
        self.alloc.publish(handle, &mut claim, 1)?;
        let buf = handle.create(claim.pblk())?;
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
        let _held = self.alloc.prepare_free(pblk, 1)?;
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
        let ((had, count_had), (has, count_has)) = (self.charged_values(before), self.charged_values(now));
        let mut state = inode.state();
        state.raw.blocks = (state.raw.blocks + has).saturating_sub(had);
        drop(state);
        let change = |count: u32| Some((count + count_has).saturating_sub(count_had));
        // Never fails: the closure always has a value.
        let _ = inode.ea_values.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Sectors and inodes that an inode is charged for values in inodes of their own.
    fn charged_values(&self, sets: [&AttrSet; 2]) -> (u64, u32) {
        let sizes = sets.into_iter().flat_map(AttrSet::iter).filter_map(|attr| match attr.value {
            Value::EaInode { size, .. } => Some(u64::from(size)),
            Value::Inline(_) => None,
        });
        sizes.fold((0, 0), |(sectors, count), size| (sectors + self.value_sectors(size), count + 1))
    }

    /// Sectors that a value of `len` bytes in an inode of its own is charged as.
    fn value_sectors(&self, len: u64) -> u64 {
        len.next_multiple_of(self.geo.cluster_size()) / 512
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

    /// Drops attribute values of an inode that is going away until so few are left that they go with the rest
    /// ([`Filesystem::xattr_free_all`]), in handles of their own. The inode is recorded as an orphan; nothing above rank 60 is held.
    pub(crate) fn shed_values(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        while self.has_ea_inode() && self.shed_some(handle, inode)? {
            handle.keep();
            handle.ensure(self.end_credits())?;
        }
        Ok(())
    }

    /// Drops some values, if there are many; whether there were.
    fn shed_some(&self, handle: &mut Handle, inode: &Inode) -> Result<bool> {
        let _xattr = inode.xattr.write();
        let held = |area: Option<&Area<'_>>| area.map_or_else(AttrSet::new, AttrSet::from_area);
        let before = [self.ibody_attrs(inode)?, self.with_block(inode, held)?];
        let own = self.xattr_block(inode)?.is_some_and(|buf| buf.with(refcount) == 1);
        let mut now = before.clone();
        let mut gone = 0;
        for (area, set) in before.iter().enumerate().filter(|(area, _)| *area == 0 || own) {
            let many = set.iter().filter(|attr| matches!(attr.value, Value::EaInode { .. }));
            for attr in many {
                gone += 1;
                if gone <= VALUES_AT_ONCE {
                    now[area].remove(attr.index, &attr.name);
                }
            }
        }
        if gone <= VALUES_AT_ONCE {
            return Ok(false);
        }
        let mut values = self.references(inode, [&before[0], &before[1]])?;
        values.left(&before[0]);
        values.joined(&now[0]);
        if now[1] != before[1] {
            self.store_block(handle, inode, (&before[1], now[1].clone()), &mut values, None)?;
        }
        self.settle_references(handle, values)?;
        self.count_values(inode, [&before[0], &before[1]], [&now[0], &now[1]]);
        self.write_ibody(handle, inode, &now[0])?;
        Ok(true)
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

    /// Gives a new inode, which nobody else sees yet, its first attributes ([`Filesystem::place_new`]), and writes it.
    pub(crate) fn xattr_init(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        [body, block]: &[AttrSet; 2],
        blocks: &mut Reservation,
    ) -> Result<()> {
        let _xattr = inode.xattr.write();
        if !block.is_empty() {
            let fresh = self.xattr_claim(inode, blocks)?;
            let mut values = References::default();
            self.store_block(handle, inode, (&AttrSet::new(), block.clone()), &mut values, Some(fresh))?;
        }
        self.write_ibody(handle, inode, body)
    }
}

/// Puts an attribute into the first area that has room for it; which that is.
fn place_in(
    sets: &mut [AttrSet; 2],
    lens: [usize; 2],
    (index, name): (u8, &[u8]),
    value: &Value,
) -> Result<Option<usize>, XattrError> {
    for (area, kind) in [AreaKind::Ibody, AreaKind::Block].into_iter().enumerate() {
        let mut with = sets[area].clone();
        with.set(index, name, value.clone())?;
        if with.fits(kind, lens[area]) {
            sets[area] = with;
            return Ok(Some(area));
        }
    }
    Ok(None)
}

/// How many inodes have an attribute block.
fn refcount(block: &[u8]) -> u32 {
    BlockHeader::read(block).map_or(0, |header| header.refcount)
}
