//! Content kept in the inode, written: within its capacity in place, past it by moving to blocks.
//!
//! The move claims a block, writes the data to it, and swaps inline content for a map in one handle: at no time is the one gone
//! and the other not there, so there is nothing to put back when something fails.

use extant_alloc::ClaimRequest;
use extant_format::Lblk;
use extant_format::inline::{self, IBLOCK_LEN};
use extant_format::inode::InodeFlags;
use extant_map::{Extent, MapFs, MapKind};

use crate::cred::Credentials;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;

impl Filesystem {
    /// Writes into inline content if it fits; `false` when the file has its content in blocks now, empty room or not. The caller
    /// holds the inode lock exclusively.
    pub(crate) fn write_inline(
        &self,
        inode: &InodeRef,
        at: u64,
        bytes: &[u8],
        cred: &Credentials,
    ) -> Result<bool> {
        let end = at + bytes.len() as u64;
        let pages = &inode.data(self).pages;
        // A store through a mapping moves the content without the inode lock: not while this is between its look at the content
        // and its end (test `explore_map::inline_write_against_store`).
        let first = (!without!(self, InlineWrite)).then(|| pages.lock_inline());
        if pages.mmu().is_some() && !self.is_inline(inode) {
            return Ok(false);
        }
        let mut content = self.inline_content(inode)?;
        if !self.fits_inline(inode, end)? {
            self.to_blocks(inode, &content, cred)?;
            first.iter().for_each(|first| first.moved(content.len() as u64));
            return Ok(false);
        }
        pages.grow_memory(end.max(content.len() as u64))?;
        let end = end as usize;
        content.resize(content.len().max(end), 0);
        content[at as usize..end].copy_from_slice(bytes);
        self.store_inline(inode, &content)?;
        if let Some(first) = first {
            first.refresh(&content);
        }
        self.touch_written(inode);
        Ok(true)
    }

    /// Whether an empty file can take its first content up to `end` inside the inode.
    pub(crate) fn may_become_inline(&self, inode: &Inode, end: u64) -> Result<bool> {
        // The inode's own area is at most a few kilobytes: nothing is to be read for a larger write.
        if !self.has_inline_data() || end > u64::from(self.inode_format.inode_size()) {
            return Ok(false);
        }
        // What is to go to a device's memory is in blocks from the start.
        if inode.flags().contains(InodeFlags::DAX) || inode.data.get().is_some_and(|data| data.pages.is_dax())
        {
            return Ok(false);
        }
        // Under a mapping content does not go back into the inode.
        if inode.data.get().is_some_and(|data| data.pages.mmu().is_some()) {
            return Ok(false);
        }
        {
            let state = inode.state();
            let empty = state.size == 0 && state.raw.size == 0;
            let blocks = if state.raw.file_acl.0 == 0 { state.raw.blocks } else { 1 };
            if !empty || blocks != 0 {
                return Ok(false);
            }
        }
        self.fits_inline(inode, end)
    }

    /// Changes the size of inline content; `false` when it has moved to blocks instead, with its old size.
    pub(crate) fn resize_inline(&self, inode: &InodeRef, size: u64, cred: &Credentials) -> Result<bool> {
        let data = inode.data(self);
        let pages = &data.pages;
        let guard = pages.mmu().map(|_| pages.exclusive());
        {
            let first = pages.lock_inline();
            if guard.is_some() && !self.is_inline(inode) {
                return Ok(false);
            }
            let mut content = self.inline_content(inode)?;
            if !self.fits_inline(inode, size)? {
                self.to_blocks(inode, &content, cred)?;
                first.moved(content.len() as u64);
                return Ok(false);
            }
            content.resize(size as usize, 0);
            self.store_inline(inode, &content)?;
        }
        if let Some(guard) = guard {
            pages.inline_resized(&guard, &**data)?;
        }
        Ok(true)
    }

    /// Moves inline content to blocks, if there is any. The caller holds the inode lock exclusively.
    pub(crate) fn make_blocks(&self, inode: &InodeRef, cred: &Credentials) -> Result<()> {
        if self.is_inline(inode) {
            let first = inode.data(self).pages.lock_inline();
            self.move_to_blocks(inode, cred)?;
            first.moved(inode.size());
        }
        Ok(())
    }

    /// The same for who holds the lock of page 0 in place of the inode lock: a store through a mapping.
    pub(crate) fn move_to_blocks(&self, inode: &Inode, cred: &Credentials) -> Result<()> {
        if !self.is_inline(inode) {
            return Ok(());
        }
        let content = self.inline_content(inode)?;
        self.to_blocks(inode, &content, cred)
    }

    pub(crate) fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let data = self.inline_read(inode)?;
        let size = inode.size();
        let len = usize::try_from(size).map_err(|_| Error::bad_inode(inode.ino, "i_size", size))?;
        let mut content = vec![0; len];
        let there = inline::read(&data.i_block, &data.second, size, 0, &mut content);
        content[there..].fill(0);
        Ok(content)
    }

    fn fits_inline(&self, inode: &Inode, size: u64) -> Result<bool> {
        Ok(size <= self.inline_read(inode)?.capacity() as u64)
    }

    fn store_inline(&self, inode: &Inode, content: &[u8]) -> Result<()> {
        let mut data = self.inline_read(inode)?;
        let pages = inode.data(self);
        // Nobody may look up a block in `i_block` while it changes from a map to content.
        let _guard = (!self.is_inline(inode)).then(|| pages.pages.exclusive());
        let first = content.len().min(IBLOCK_LEN);
        data.i_block = [0; IBLOCK_LEN];
        data.i_block[..first].copy_from_slice(&content[..first]);
        data.second = content[first..].to_vec();
        let mut handle = self.start_data(inode, 1)?;
        let done = self.inline_store(&mut handle, inode, data, content.len() as u64);
        self.finish(handle, done, inode)
    }

    fn to_blocks(&self, inode: &Inode, content: &[u8], cred: &Credentials) -> Result<()> {
        let block = self.geo.block_size() as usize;
        let blocks = content.len().div_ceil(block) as u32;
        self.quota_admit(Self::quota_ids(inode), blocks.into(), 0, cred)?;
        let mut space = self.reserve(inode, blocks.into(), cred)?;
        let kind = if self.has_extents() { MapKind::Extents } else { MapKind::Indirect };
        let mut claims = Vec::new();
        let mut at = 0;
        while at < blocks {
            let goal = self.alloc.goal_for_inode(inode.ino, true);
            let request = ClaimRequest::plain(goal, Lblk(at), blocks - at).below(MapFs::reach(kind));
            let claim = self.alloc.claim_held(&request, &mut space)?;
            let len = claim.len().min(blocks - at);
            let from = at as usize * block;
            let mut bytes = content[from..content.len().min(from + len as usize * block)].to_vec();
            bytes.resize(len as usize * block, 0);
            self.device.write_at(claim.pblk().0 << self.geo.log_block_size(), &bytes)?;
            claims.push((at, len, claim));
            at += len;
        }
        let credits = 2 + self.map.insert_credits(kind, 0, claims.len().max(1) as u32);
        let mut handle = self.start_data(inode, credits)?;
        let done = (|| {
            let xattr = inode.xattr.write();
            let attrs = self.attrs_without_inline(inode)?;
            let mut i_block = inode.map.write();
            self.inline_to_map(inode, &mut i_block);
            if without!(self, InlineMove) {
                drop(i_block);
                i_block = inode.map.write();
            }
            // From the moment that the inline content is gone until the blocks are mapped, a reader would find a hole, and keep it in
            // the cache over the content: nobody looks at the map meanwhile (test `explore::reading_while_inline_content_moves`).
            let mut delta = 0;
            for (lblk, len, claim) in &mut claims {
                self.alloc.publish(&mut handle, claim, *len)?;
                let extent = Extent { lblk: Lblk(*lblk), len: *len, pblk: claim.pblk(), unwritten: false };
                delta += self
                    .map
                    .insert(&mut handle, &mut inode.map_mut(&mut i_block), extent, &mut space)?
                    .total();
            }
            self.map_changed(inode, &i_block, delta);
            drop(i_block);
            self.write_ibody(&mut handle, inode, &attrs)?;
            drop(xattr);
            self.write_inode(&mut handle, inode)
        })();
        self.finish(handle, done, inode)
    }
}
