//! Directories kept in their inode; the layout is the format room's (`extant_format::inline`).

use extant_alloc::Reservation;
use extant_format::dir::{self as records, DirError, DirLayout, NewEntry};
use extant_format::inline::{self, Part};
use extant_format::inode::{FileType, InodeFlags};
use extant_format::{Ino, Lblk};
use extant_journal::Handle;

use super::{At, Found, dir_error};
use crate::error::Result;
use crate::filesystem::Filesystem;
use crate::inline::Inline;
use crate::inode::Inode;

/// Records for `.` and `..` as they would begin a block.
pub(super) fn dots(layout: &DirLayout, ino: Ino, parent: Ino) -> Vec<u8> {
    let mut bytes = vec![0; 2 * records::MIN_REC_LEN];
    // 24 bytes hold both.
    let fits = records::init_first(&layout.without_tail(), &mut bytes, ino, parent);
    debug_assert!(fits.is_ok());
    bytes
}

impl Filesystem {
    pub(super) fn find_inline(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        if name == b"." {
            return Ok(Some(Found { ino: dir.ino, at: At::InlineParent }));
        }
        let data = self.inline_read(dir)?;
        if name == b".." {
            return Ok(Some(Found { ino: inline::parent(&data.i_block), at: At::InlineParent }));
        }
        let found = inline::find(&self.layout, &data.i_block, &data.second, name);
        let found = found.map_err(|e| dir_error(dir, Lblk(0), &e))?;
        Ok(found.map(|(part, r)| Found { ino: r.ino, at: At::Inline { part, offset: r.offset } }))
    }

    pub(super) fn inline_is_empty(&self, dir: &Inode) -> Result<bool> {
        let data = self.inline_read(dir)?;
        for (_, record) in inline::records(&self.layout, &data.i_block, &data.second) {
            if record.map_err(|e| dir_error(dir, Lblk(0), &e))?.is_used() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a name fits without leaving the inode.
    pub(super) fn inline_has_room(&self, dir: &Inode, name: &[u8]) -> Result<bool> {
        let mut data = self.inline_read(dir)?;
        // Which inode the name will lead to makes no difference for its place.
        let entry = NewEntry::new(dir.ino, FileType::Regular, name);
        self.try_insert(dir, &mut data, &entry)
    }

    fn try_insert(&self, dir: &Inode, data: &mut Inline, entry: &NewEntry<'_>) -> Result<bool> {
        let capacity = data.capacity();
        inline::insert(&self.layout, &mut data.i_block, &mut data.second, capacity, entry)
            .map_err(|e| dir_error(dir, Lblk(0), &e))
    }

    pub(super) fn insert_inline(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        entry: &NewEntry<'_>,
    ) -> Result<bool> {
        let mut data = self.inline_read(dir)?;
        if !self.try_insert(dir, &mut data, entry)? {
            return Ok(false);
        }
        let size = (inline::IBLOCK_LEN + data.second.len()) as u64;
        self.inline_store(handle, dir, data, size)?;
        Ok(true)
    }

    /// Changes the chain `part` of an inline directory without changing its length.
    pub(super) fn change_inline(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        change: impl FnOnce(&DirLayout, &mut Inline) -> Result<(), DirError>,
    ) -> Result<()> {
        let mut data = self.inline_read(dir)?;
        change(&self.layout, &mut data).map_err(|e| dir_error(dir, Lblk(0), &e))?;
        let size = (inline::IBLOCK_LEN + data.second.len()) as u64;
        self.inline_store(handle, dir, data, size)
    }

    /// The chains of an inline directory as listing reads them: bytes and how they are laid out, `.` and `..` first.
    pub(super) fn inline_chains(&self, dir: &Inode) -> Result<Vec<Vec<u8>>> {
        let data = self.inline_read(dir)?;
        let first = dots(&self.layout, dir.ino, inline::parent(&data.i_block));
        Ok(vec![first, data.i_block[inline::DOTDOT_LEN..].to_vec(), data.second])
    }

    /// The first block of an inline directory once it has blocks.
    fn first_block(&self, dir: &Inode) -> Result<Vec<u8>> {
        let data = self.inline_read(dir)?;
        let mut block = vec![0; self.geo.block_size() as usize];
        inline::to_block(&self.layout, &data.i_block, &data.second, dir.ino, &mut block)
            .map_err(|e| dir_error(dir, Lblk(0), &e))?;
        records::set_tail(&self.layout, &mut block, dir.csum_seed);
        Ok(block)
    }

    /// Whether that block will have room for a name.
    pub(super) fn block_would_have_room(&self, dir: &Inode, name: &[u8]) -> Result<bool> {
        let scan = records::scan(&self.layout, &self.first_block(dir)?, name);
        Ok(scan.map_err(|e| dir_error(dir, Lblk(0), &e))?.room.is_some())
    }

    /// Moves the names of an inline directory to a first block.
    pub(super) fn convert_inline_dir(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let block = self.first_block(dir)?;
        let _leaving = dir.leave(inline::parent(&self.inline_read(dir)?.i_block));
        self.inline_drop(handle, dir)?;
        {
            let mut state = dir.state();
            state.size = 0;
            state.raw.size = 0;
        }
        let (_, buf) = self.append_block(handle, dir, blocks)?;
        handle.modify(&buf, |bytes| bytes.copy_from_slice(&block))?;
        debug_assert!(!dir.flags().contains(InodeFlags::INLINE_DATA));
        Ok(())
    }

    pub(super) fn remove_inline(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        part: Part,
        offset: u32,
    ) -> Result<()> {
        self.change_inline(handle, dir, |layout, data| {
            inline::remove(layout, &mut data.i_block, &mut data.second, part, offset)
        })
    }
}
