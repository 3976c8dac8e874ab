//! Attribute values in inodes of their own (`ea_inode`).
//!
//! Such an inode has no name, one flag and one link; it counts references in fields it does not need (kernel ext4
//! documentation, "Large Extended Attribute Values"). Its blocks are metadata buffers.
//!
//! Equal values share an inode: one is looked for by the hash of its content, before the handle. Until the handle counts the new
//! reference the old ones may go, and with them the last: the value is dead then, but stays while it is held, and counting makes it
//! alive again. From a change of the count to the record of it the references are under a lock of rank 72.

use extant_alloc::{Claim, ClaimRequest, Reservation};
use extant_format::inode::{FileType, Inode as RawInode, InodeFlags};
use extant_format::xattr::{AttrSet, Value, ea_inode_hash};
use extant_format::{Ino, Lblk, Pblk};
use extant_journal::{Buf, Handle};
use extant_map::{Extent, MapFs, MapKind, Run};
use extant_sync::{Mutex, MutexGuard, Rank};
use rustc_hash::FxHashMap;

use crate::cred::Credentials;
use crate::credits::NEW_INODE;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;

/// Inodes with values by the hash of their content, to find one to share. A hint: what it names is checked.
#[derive(Debug)]
pub(crate) struct SharedValues {
    by_hash: Mutex<FxHashMap<u32, Ino>>,
    /// Rank 72, by number: over the references of a value, from their change to its record in the handle.
    counting: [Mutex<()>; COUNTING_LOCKS],
}

/// How many inodes the hint remembers.
const REMEMBERED: usize = 4096;
const COUNTING_LOCKS: usize = 16;

impl SharedValues {
    pub(crate) fn new() -> Self {
        Self {
            by_hash: Mutex::new(Rank::LEAF, FxHashMap::default()),
            counting: std::array::from_fn(|_| Mutex::new(Rank::EA_INODE, ())),
        }
    }

    fn find(&self, hash: u32) -> Option<Ino> {
        self.by_hash.lock().get(&hash).copied()
    }

    fn remember(&self, hash: u32, ino: Ino) {
        let mut map = self.by_hash.lock();
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(hash, ino);
    }

    fn forget(&self, hash: u32, ino: Ino) {
        let mut map = self.by_hash.lock();
        if map.get(&hash) == Some(&ino) {
            map.remove(&hash);
        }
    }

    fn counting(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.counting[ino.0 as usize % COUNTING_LOCKS].lock()
    }
}

impl Filesystem {
    /// The inode that holds a value of `owner`.
    fn ea_inode(&self, owner: &Inode, ino: Ino) -> Result<InodeRef> {
        let bad = |what| Error::corrupt(Place::Inode(owner.ino), CorruptKind::Xattr(what));
        if ino < self.geo.first_ino() || ino.0 > self.geo.inodes_count() || ino == owner.ino {
            return Err(bad("value in an impossible inode"));
        }
        let inode = self.iget(ino).map_err(|e| match e {
            Error::Stale => bad("value in an inode that is not in use"),
            e => e,
        })?;
        if !inode.is_regular() || !inode.flags().contains(InodeFlags::EA_INODE) {
            return Err(bad("value in an inode that is not for values"));
        }
        Ok(inode)
    }

    /// Reads a value of `size` bytes.
    pub(super) fn ea_value(&self, owner: &Inode, ino: Ino, size: u32) -> Result<Vec<u8>> {
        let inode = self.ea_inode(owner, ino)?;
        let bad = |what| Error::corrupt(Place::Inode(ino), CorruptKind::Xattr(what));
        if inode.size() != u64::from(size) || size > extant_format::xattr::MAX_VALUE_LEN {
            return Err(bad("size of the inode and of its value differ"));
        }
        let block_size = self.geo.block_size();
        let mut value = Vec::with_capacity(size as usize);
        for lblk in (0..size.div_ceil(block_size)).map(Lblk) {
            let Run::Mapped { pblk, unwritten: false, .. } = self.map_lookup(&inode, lblk, 1)? else {
                return Err(bad("value with a hole"));
            };
            let want = (size as usize - value.len()).min(block_size as usize);
            self.cache.read(pblk)?.with(|bytes| value.extend_from_slice(&bytes[..want]));
        }
        let hash = inode.state().raw.ea_hash();
        if hash != ea_inode_hash(self.csum.seed(), &value) {
            return Err(Error::Checksum(Place::Inode(ino)));
        }
        self.remember_value(hash, ino);
        Ok(value)
    }

    fn remember_value(&self, hash: u32, ino: Ino) {
        if self.options().mbcache {
            self.shared_values.remember(hash, ino);
        }
    }

    /// What an attribute of `owner` with this value says of an inode that holds it already, if there is one; `values` then knows
    /// that inode, which keeps its number and its content while it does.
    pub(super) fn share_value(&self, owner: &Inode, value: &[u8], values: &mut References) -> Option<Value> {
        if !self.options().mbcache {
            return None;
        }
        let hash = ea_inode_hash(self.csum.seed(), value);
        let ino = self.shared_values.find(hash)?;
        let size = u32::try_from(value.len()).ok()?;
        let Some((inode, table)) = self.same_value(owner, ino, value, size) else {
            self.shared_values.forget(hash, ino);
            return None;
        };
        if !values.known.iter().any(|(known, ..)| *known == ino) {
            values.known.push((ino, inode, table));
        }
        Some(Value::EaInode { ino, size, hash })
    }

    /// The inode `ino` and its block of the table, if it holds this value and is not about to go. Whatever stands against that
    /// costs an inode more, and is reported to who reads the value there.
    fn same_value(&self, owner: &Inode, ino: Ino, value: &[u8], size: u32) -> Option<(InodeRef, Buf)> {
        let inode = self.ea_inode(owner, ino).ok()?;
        let same = !inode.is_dead() && self.ea_value(owner, ino, size).ok()? == value;
        let table = self.cache.read(inode.table.0).ok()?;
        same.then_some((inode, table))
    }

    /// Claims the blocks of a value for an attribute of `owner`.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(super) fn plan_value(&self, owner: &Inode, value: &[u8], cred: &Credentials) -> Result<NewValue> {
        let blocks = (value.len() as u64).div_ceil(u64::from(self.geo.block_size())) as u32;
        let kind = if self.has_extents() { MapKind::Extents } else { MapKind::Indirect };
        let tree = self.map.tree_blocks_worst(kind, 0, blocks.into());
        let mut purse =
            self.alloc.reserve_below(blocks.into(), tree, self.privilege(cred), MapFs::reach(kind))?;
        let (mut claims, mut at) = (Vec::new(), 0);
        while at < blocks {
            let goal = self.alloc.goal_for_inode(owner.ino, false);
            let request = ClaimRequest::plain(goal, Lblk(at), blocks - at).below(MapFs::reach(kind));
            let claim = self.alloc.claim_held(&request, &mut purse)?;
            let len = claim.len().min(blocks - at);
            claims.push((at, len, claim));
            at += len;
        }
        let map = match kind {
            MapKind::Extents => self.map.insert_credits(kind, 0, claims.len() as u32),
            MapKind::Indirect => {
                claims.iter().map(|(_, len, _)| self.map.insert_credits_for(kind, 0, *len)).sum()
            }
        };
        Ok(NewValue { bytes: value.to_vec(), claims, purse, credits: NEW_INODE + blocks + map })
    }

    /// Makes an inode that holds a value, with one reference, for an attribute of `owner`. What that says of it.
    ///
    /// # Errors
    /// `NoSpace` if there is no inode, with nothing changed; the journal's.
    pub(super) fn ea_create(&self, handle: &mut Handle, owner: &Inode, value: NewValue) -> Result<Value> {
        let NewValue { bytes, claims, mut purse, .. } = value;
        let (uid, gid) = {
            let state = owner.state();
            (state.raw.uid, state.raw.gid)
        };
        let hash = ea_inode_hash(self.csum.seed(), &bytes);
        let mut raw = RawInode {
            mode: FileType::Regular.mode_bits() | 0o600,
            uid,
            gid,
            size: bytes.len() as u64,
            links_count: 1,
            flags: InodeFlags::EA_INODE,
            ..RawInode::default()
        };
        raw.mtime = self.now();
        raw.crtime = raw.mtime;
        raw.set_ea_refcount(1);
        raw.set_ea_hash(hash);
        let inode = self.new_inode_of(handle, owner.ino, raw, FileType::Regular)?;
        let block_size = self.geo.block_size() as usize;
        let mut parts = bytes.chunks(block_size);
        for (lblk, len, mut claim) in claims {
            self.alloc.publish(handle, &mut claim, len)?;
            let extent = Extent { lblk: Lblk(lblk), len, pblk: claim.pblk(), unwritten: false };
            let mut i_block = inode.map.write();
            let mut map = inode.map_mut(&mut i_block);
            let delta = self.map.insert(handle, &mut map, extent, &mut purse)?;
            self.map_changed(&inode, &i_block, delta.total());
            drop(i_block);
            for (n, part) in (0..u64::from(len)).zip(&mut parts) {
                let buf = handle.create(Pblk(extent.pblk.0 + n))?;
                handle.modify(&buf, |block| block[..part.len()].copy_from_slice(part))?;
            }
        }
        self.write_inode(handle, &inode)?;
        self.remember_value(hash, inode.ino);
        Ok(Value::EaInode { ino: inode.ino, size: bytes.len() as u32, hash })
    }

    /// The inodes of the values that these attributes of `owner` name, read before the first change.
    pub(super) fn references(&self, owner: &Inode, sets: [&AttrSet; 2]) -> Result<References> {
        let mut values = References::default();
        for ino in sets.into_iter().flat_map(named) {
            let inode = self.ea_inode(owner, ino)?;
            let table = self.cache.read(inode.table.0)?;
            values.known.push((ino, inode, table));
        }
        Ok(values)
    }

    /// Counts what came and went; a value that nobody names any more is dead, and is evicted once it is dropped.
    pub(super) fn settle_references(&self, handle: &mut Handle, values: References) -> Result<()> {
        for (ino, change) in values.changes {
            // A value that was just made has its first reference, and is not known here.
            let Some((_, inode, table)) = values.known.iter().find(|(known, ..)| *known == ino) else {
                continue;
            };
            if change != 0 {
                self.count_references(handle, inode, table, change)?;
            }
        }
        Ok(())
    }

    fn count_references(&self, handle: &mut Handle, inode: &Inode, table: &Buf, change: i64) -> Result<()> {
        let _counting = (!without!(self, ValueCounted)).then(|| self.shared_values.counting(inode.ino));
        let (left, hash) = {
            let mut state = inode.state();
            let left = state.raw.ea_refcount().saturating_add_signed(change);
            state.raw.set_ea_refcount(left);
            state.raw.links_count = u16::from(left > 0);
            (left, state.raw.ea_hash())
        };
        if without!(self, ValueCounted) {
            extant_sync::thread::yield_now();
        }
        if left == 0 {
            self.shared_values.forget(hash, inode.ino);
            inode.set_dead(true);
            self.orphan_add(handle, inode)?;
        } else if inode.is_dead() && !without!(self, ValueRevived) {
            inode.set_dead(false);
            self.orphan_del(handle, inode)?;
        }
        self.write_inode_to(handle, inode, table)
    }
}

/// A value on its way into an inode of its own: its blocks are claimed.
pub(super) struct NewValue {
    bytes: Vec<u8>,
    /// First block of the value, blocks, and where they are.
    claims: Vec<(u32, u32, Claim)>,
    /// For tree blocks.
    purse: Reservation,
    credits: u32,
}

impl NewValue {
    /// Credits for making the inode.
    pub(super) fn credits(&self) -> u32 {
        self.credits
    }
}

/// How the references of values change with the attributes of one inode. A reference is held by an inode whose own area
/// names the value, and by an attribute block that does, however many inodes share it.
#[derive(Default)]
pub(super) struct References {
    /// With their blocks of the inode table, so that writing them needs no device.
    known: Vec<(Ino, InodeRef, Buf)>,
    changes: Vec<(Ino, i64)>,
}

impl References {
    /// An area with these attributes is gone or was written over.
    pub(super) fn left(&mut self, attrs: &AttrSet) {
        named(attrs).for_each(|ino| self.change(ino, -1));
    }

    /// An area with these attributes was written.
    pub(super) fn joined(&mut self, attrs: &AttrSet) {
        named(attrs).for_each(|ino| self.change(ino, 1));
    }

    fn change(&mut self, ino: Ino, by: i64) {
        match self.changes.iter_mut().find(|(known, _)| *known == ino) {
            Some((_, sum)) => *sum += by,
            None => self.changes.push((ino, by)),
        }
    }
}

/// The inodes that attributes have their values in.
pub(super) fn named(attrs: &AttrSet) -> impl Iterator<Item = Ino> + '_ {
    attrs.iter().filter_map(|attr| match attr.value {
        Value::EaInode { ino, .. } => Some(ino),
        Value::Inline(_) => None,
    })
}
