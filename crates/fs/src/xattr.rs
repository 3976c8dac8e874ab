//! Extended attributes: in the inode, in a block that inodes with equal attributes share, in inodes of their own.
//!
//! | module | what |
//! |---|---|
//! | this one | reading |
//! | `change` | setting and removing, sharing blocks |
//! | `value` | values in inodes of their own |
//! | `calls` | what callers ask for: names, permissions |
//!
//! The xattr lock (rank 70) protects all of it, shared to read. Attribute blocks are metadata buffers; a reference count
//! changes under the buffer's own lock, inside a handle.

mod calls;
mod change;
mod value;

use extant_format::xattr::{self as format, Area, AttrSet, XattrError};
use extant_format::{Ino, Pblk};
use extant_journal::Buf;

pub use calls::XattrSet;
pub(crate) use change::{NewAttrs, SharedBlocks, XattrPlan};
pub(crate) use value::SharedValues;

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;
use crate::mutant::without;

/// What an entry says about its value.
enum Held {
    Here(Vec<u8>),
    InInode { ino: Ino, size: u32 },
}

impl Filesystem {
    /// Bytes of the attribute area inside the inode.
    pub(crate) fn ibody_len(&self, inode: &Inode) -> usize {
        let size = usize::from(self.inode_format.inode_size());
        let extra = usize::from(inode.state().raw.extra_isize);
        size.saturating_sub(128 + extra).min(size - 128)
    }

    /// Looks at the inode's attribute area. The caller holds the xattr lock.
    pub(super) fn with_ibody<R>(
        &self,
        inode: &Inode,
        look: impl FnOnce(Option<&Area<'_>>) -> R,
    ) -> Result<R> {
        let len = self.ibody_len(inode);
        let end = inode.table.1 + usize::from(self.inode_format.inode_size());
        let buf = self.cache.read(inode.table.0)?;
        let looked = buf.with(|bytes| {
            // An inode whose extra size is 0 has no area.
            let bytes = if inode.state().raw.extra_isize == 0 { &[] } else { &bytes[end - len..end] };
            Area::ibody(bytes).map(|area| look(area.as_ref()))
        });
        looked.map_err(|e| self.xattr_error(inode, &e))
    }

    /// The attributes in the inode. The caller holds the xattr lock.
    pub(crate) fn ibody_attrs(&self, inode: &Inode) -> Result<AttrSet> {
        self.with_ibody(inode, |area| area.map_or_else(AttrSet::new, AttrSet::from_area))
    }

    /// The attribute block of the inode, verified; `None` if it has none.
    pub(super) fn xattr_block(&self, inode: &Inode) -> Result<Option<Buf>> {
        let pblk = inode.state().raw.file_acl;
        if pblk == Pblk(0) {
            return Ok(None);
        }
        if !self.alloc.is_data_range(pblk, 1) {
            return Err(Error::bad_inode(inode.ino, "i_file_acl", pblk.0));
        }
        let buf = self.cache.read(pblk)?;
        buf.verify_once(|bytes| {
            if self.csum.has_metadata() {
                format::verify_block(self.csum.seed(), pblk, bytes)?;
            }
            Area::block(bytes).map(|_| ())
        })
        .map_err(|e: XattrError| self.xattr_block_error(inode, pblk, &e))?;
        Ok(Some(buf))
    }

    /// Looks at the attribute block. The caller holds the xattr lock.
    pub(super) fn with_block<R>(
        &self,
        inode: &Inode,
        look: impl FnOnce(Option<&Area<'_>>) -> R,
    ) -> Result<R> {
        let Some(buf) = self.xattr_block(inode)? else { return Ok(look(None)) };
        let looked = buf.with(|bytes| Area::block(bytes).map(|area| look(Some(&area))));
        looked.map_err(|e| self.xattr_block_error(inode, buf.pblk(), &e))
    }

    /// The value of an attribute; `None` if there is no such attribute.
    pub(crate) fn xattr_value(&self, inode: &Inode, index: u8, name: &[u8]) -> Result<Option<Vec<u8>>> {
        // Held while a value is read from an inode of its own: whoever replaces the attribute frees that.
        let xattr = inode.xattr.read();
        let find = |area: Option<&Area<'_>>| {
            area.and_then(|a| a.find(index, name)).map(|e| match e.value_inum {
                Ino(0) => Held::Here(e.value.to_vec()),
                ino => Held::InInode { ino, size: e.value_size },
            })
        };
        let held = match self.with_ibody(inode, find)? {
            Some(held) => Some(held),
            None => self.with_block(inode, find)?,
        };
        let _held = (!without!(self, XattrHeld)).then_some(xattr);
        if without!(self, XattrHeld) {
            extant_sync::thread::yield_now();
        }
        match held {
            None => Ok(None),
            Some(Held::Here(value)) => Ok(Some(value)),
            Some(Held::InInode { ino, size }) => self.ea_value(inode, ino, size).map(Some),
        }
    }

    /// Index and name of every attribute, as stored.
    pub(crate) fn xattr_names(&self, inode: &Inode) -> Result<Vec<(u8, Vec<u8>)>> {
        let _xattr = inode.xattr.read();
        let names = |area: Option<&Area<'_>>| -> Vec<(u8, Vec<u8>)> {
            area.map(|a| a.entries().map(|e| (e.index, e.name.to_vec())).collect()).unwrap_or_default()
        };
        let mut all = self.with_ibody(inode, names)?;
        all.extend(self.with_block(inode, names)?);
        Ok(all)
    }

    /// Damage in the attributes inside an inode.
    pub(crate) fn xattr_error(&self, inode: &Inode, e: &XattrError) -> Error {
        match e {
            XattrError::NoRoom { .. } => Error::NoRoom,
            XattrError::BadName(_) => Error::Range,
            e => Error::corrupt(Place::Inode(inode.ino), CorruptKind::Layout(e.to_string().into())),
        }
    }

    /// Damage in an attribute block.
    pub(super) fn xattr_block_error(&self, inode: &Inode, pblk: Pblk, e: &XattrError) -> Error {
        let place = Place::XattrBlock { ino: inode.ino, pblk };
        match e {
            XattrError::Checksum { .. } => Error::Checksum(place),
            XattrError::NoRoom { .. } => Error::NoRoom,
            e => Error::corrupt(place, CorruptKind::Layout(e.to_string().into())),
        }
    }
}
