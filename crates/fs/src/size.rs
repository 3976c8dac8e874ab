//! Changing a file's size.

use extant_format::Lblk;
use extant_format::RoCompat;
use extant_format::indirect;
use extant_format::inode::InodeFlags;

use crate::cred::Credentials;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

impl Filesystem {
    /// The largest size that a file of this map kind may have.
    pub(crate) fn max_file_size(&self, inode: &Inode) -> u64 {
        let huge = self.features.ro_compat.contains(RoCompat::HUGE_FILE);
        indirect::max_file_size(inode.map_kind(), self.geo.block_size(), huge)
    }

    /// Sets i_size. The caller holds the inode lock exclusively and writes times afterwards.
    pub(crate) fn set_size(&self, inode: &Inode, size: u64, _cred: &Credentials) -> Result<()> {
        self.check_content(inode)?;
        if size > self.max_file_size(inode) {
            return Err(Error::FileTooBig);
        }
        if inode.flags().contains(InodeFlags::INLINE_DATA) {
            return Err(Error::NotSupported("changing the size of a file with inline data"));
        }
        if size == inode.size() {
            return Ok(());
        }
        let mut handle = self.journal.start(self.free_credits(inode) + 3)?;
        let shrinks = size < inode.size();
        if shrinks {
            self.orphan_add(&mut handle, inode)?;
        }
        {
            let mut state = inode.state();
            state.size = size;
            state.raw.size = size;
        }
        self.write_inode(&mut handle, inode)?;
        if shrinks {
            let from = size.div_ceil(u64::from(self.geo.block_size()));
            if let Ok(from) = u32::try_from(from) {
                self.remove_blocks(&mut handle, inode, Lblk(from))?;
            }
            self.orphan_del(&mut handle, inode)?;
            self.write_inode(&mut handle, inode)?;
        }
        handle.finish()?;
        Ok(())
    }
}
