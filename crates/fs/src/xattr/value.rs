//! Attribute values in inodes of their own (`ea_inode`).
//!
//! Such an inode has no name, one flag and one link; it counts references in fields it does not need (kernel ext4
//! documentation, "Large Extended Attribute Values"). Its blocks are metadata buffers.

use extant_alloc::Reservation;
use extant_format::inode::{FileType, Inode as RawInode, InodeFlags};
use extant_format::xattr::{AttrSet, Value, ea_inode_hash};
use extant_format::{Ino, Lblk};
use extant_journal::Handle;
use extant_map::Run;

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

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
        Ok(value)
    }

    /// Blocks of a value of `len` bytes.
    pub(super) fn ea_blocks(&self, len: usize) -> u32 {
        (len as u64).div_ceil(u64::from(self.geo.block_size())) as u32
    }

    /// Makes an inode that holds `value`, with one reference, for an attribute of `owner`.
    pub(super) fn ea_create(
        &self,
        handle: &mut Handle,
        owner: &Inode,
        value: &[u8],
        blocks: &mut Reservation,
    ) -> Result<InodeRef> {
        let (uid, gid) = {
            let state = owner.state();
            (state.raw.uid, state.raw.gid)
        };
        let mut raw = RawInode {
            mode: FileType::Regular.mode_bits() | 0o600,
            uid,
            gid,
            links_count: 1,
            flags: InodeFlags::EA_INODE,
            ..RawInode::default()
        };
        raw.mtime = self.now();
        raw.crtime = raw.mtime;
        raw.set_ea_refcount(1);
        raw.set_ea_hash(ea_inode_hash(self.csum.seed(), value));
        let inode = self.new_inode_of(handle, owner.ino, raw, FileType::Regular)?;
        let block_size = self.geo.block_size() as usize;
        for (n, part) in value.chunks(block_size).enumerate() {
            let buf = self.add_meta_block(handle, &inode, Lblk(n as u32), blocks)?;
            handle.modify(&buf, |bytes| bytes[..part.len()].copy_from_slice(part))?;
        }
        {
            let mut state = inode.state();
            state.size = value.len() as u64;
            state.raw.size = state.size;
        }
        self.write_inode(handle, &inode)?;
        Ok(inode)
    }

    /// The inodes of the values that these attributes of `owner` name, read before the first change.
    pub(super) fn references(&self, owner: &Inode, sets: [&AttrSet; 2]) -> Result<References> {
        let mut values = References::default();
        for ino in sets.into_iter().flat_map(named) {
            values.known.push((ino, self.ea_inode(owner, ino)?));
        }
        Ok(values)
    }

    /// Counts what came and went; a value that nobody names any more is dead, and is evicted once it is dropped.
    pub(super) fn settle_references(&self, handle: &mut Handle, values: References) -> Result<()> {
        for (ino, change) in values.changes {
            // A value that was just made has its first reference, and is not known here.
            let Some((_, inode)) = values.known.iter().find(|(known, _)| *known == ino) else { continue };
            if change == 0 {
                continue;
            }
            let left = {
                let mut state = inode.state();
                let left = state.raw.ea_refcount().saturating_add_signed(change);
                state.raw.set_ea_refcount(left);
                if left == 0 {
                    state.raw.links_count = 0;
                }
                left
            };
            if left == 0 {
                inode.set_dead(true);
                self.orphan_add(handle, inode)?;
            }
            self.write_inode(handle, inode)?;
        }
        Ok(())
    }
}

/// How the references of values change with the attributes of one inode. A reference is held by an inode whose own area
/// names the value, and by an attribute block that does, however many inodes share it.
#[derive(Default)]
pub(super) struct References {
    known: Vec<(Ino, InodeRef)>,
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
fn named(attrs: &AttrSet) -> impl Iterator<Item = Ino> + '_ {
    attrs.iter().filter_map(|attr| match attr.value {
        Value::EaInode { ino, .. } => Some(ino),
        Value::Inline(_) => None,
    })
}
