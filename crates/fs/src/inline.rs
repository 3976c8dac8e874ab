//! Content kept in the inode: `i_block`, and the attribute `system.data` in the inode's own attribute area.
//!
//! Protected by the xattr lock (rank 70); a directory's by its inode lock as well.

use extant_format::inline::{self, DATA_NAME, IBLOCK_LEN};
use extant_format::inode::InodeFlags;
use extant_format::xattr::{AreaKind, AttrSet, INDEX_SYSTEM, Value};
use extant_journal::Handle;
use extant_map::MapFs;

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// Both parts of an inode's inline content, and the attributes that share the area with the second.
#[derive(Clone, Debug)]
pub(crate) struct Inline {
    pub(crate) i_block: [u8; IBLOCK_LEN],
    pub(crate) second: Vec<u8>,
    pub(crate) attrs: AttrSet,
    pub(crate) area_len: usize,
}

impl Inline {
    /// Bytes that fit into both parts.
    pub(crate) fn capacity(&self) -> usize {
        inline::capacity(&self.attrs, self.area_len)
    }
}

impl Filesystem {
    /// The inline content of `inode`, whose flag says that it has some.
    pub(crate) fn inline_read(&self, inode: &Inode) -> Result<Inline> {
        let _xattr = inode.xattr.read();
        self.inline_read_locked(inode)
    }

    /// The same for who holds the xattr lock.
    pub(crate) fn inline_read_locked(&self, inode: &Inode) -> Result<Inline> {
        let attrs = self.ibody_attrs(inode)?;
        let second = match attrs.find(INDEX_SYSTEM, DATA_NAME) {
            Some(Value::Inline(bytes)) => bytes.clone(),
            Some(Value::EaInode { .. }) => {
                return Err(Error::corrupt(
                    Place::Inode(inode.ino),
                    CorruptKind::InlineData("its second part is in another inode"),
                ));
            }
            None => Vec::new(),
        };
        let i_block = inode.state().raw.i_block;
        Ok(Inline { i_block, second, area_len: self.ibody_len(inode), attrs })
    }

    /// Stores inline content, makes `size` the inode's size, and writes the inode. One credit.
    pub(crate) fn inline_store(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        data: Inline,
        size: u64,
    ) -> Result<()> {
        let _xattr = inode.xattr.write();
        self.inline_store_locked(handle, inode, data, size)
    }

    /// The same for who holds the xattr lock exclusively.
    pub(crate) fn inline_store_locked(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        data: Inline,
        size: u64,
    ) -> Result<()> {
        let Inline { i_block, second, mut attrs, .. } = data;
        // What can fail comes before the inode in memory changes: an error here does not abort the journal.
        attrs.set(INDEX_SYSTEM, DATA_NAME, Value::Inline(second)).map_err(|e| self.xattr_error(inode, &e))?;
        if !attrs.fits(AreaKind::Ibody, self.ibody_len(inode)) {
            return Err(Error::NoSpace);
        }
        let _table = self.cache.read(inode.table.0)?;
        *inode.map.write() = i_block;
        {
            let mut state = inode.state();
            state.raw.i_block = i_block;
            state.raw.flags.insert(InodeFlags::INLINE_DATA);
            // A file that gets its first content has the flag of the map it does not use.
            state.raw.flags.remove(InodeFlags::EXTENTS);
            state.size = size;
            state.raw.size = size;
        }
        self.write_ibody(handle, inode, &attrs)
    }

    /// Takes the inline content away and gives the inode an empty block map. The caller sets the size and writes the inode
    /// once more. One credit.
    pub(crate) fn inline_drop(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let _xattr = inode.xattr.write();
        self.inline_drop_locked(handle, inode)
    }

    /// The same for who holds the xattr lock exclusively.
    pub(crate) fn inline_drop_locked(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let attrs = self.attrs_without_inline(inode)?;
        self.inline_to_map(inode, &mut inode.map.write());
        self.write_ibody(handle, inode, &attrs)
    }

    /// The attributes in the inode without the one that holds inline content. Under the xattr lock.
    pub(crate) fn attrs_without_inline(&self, inode: &Inode) -> Result<AttrSet> {
        let _table = self.cache.read(inode.table.0)?;
        let mut attrs = self.ibody_attrs(inode)?;
        attrs.remove(INDEX_SYSTEM, DATA_NAME);
        Ok(attrs)
    }

    /// Makes `i_block`, whose lock is held exclusively, an empty block map in the place of content.
    pub(crate) fn inline_to_map(&self, inode: &Inode, i_block: &mut [u8; IBLOCK_LEN]) {
        {
            let mut state = inode.state();
            state.raw.flags.remove(InodeFlags::INLINE_DATA);
            if self.has_extents() {
                state.raw.flags.insert(InodeFlags::EXTENTS);
            }
        }
        MapFs::init(inode.map_kind(), i_block, inode.ino);
        inode.state().raw.i_block = *i_block;
    }
}
