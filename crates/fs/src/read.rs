//! Reading files straight from where they are mapped.

use extant_format::Lblk;
use extant_format::inline;
use extant_format::inode::InodeFlags;
use extant_map::Run;

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

impl Filesystem {
    /// Refuses content that this program cannot make sense of.
    pub(crate) fn check_content(&self, inode: &Inode) -> Result<()> {
        if inode.is_dir() {
            return Err(Error::IsDirectory);
        }
        if !inode.is_regular() {
            return Err(Error::Invalid("not a regular file"));
        }
        let flags = inode.flags();
        if flags.contains(InodeFlags::ENCRYPT) {
            return Err(Error::NotSupported("the content of an encrypted file (feature encrypt)"));
        }
        if flags.contains(InodeFlags::VERITY) {
            return Err(Error::NotSupported("the content of a file with fs-verity (feature verity)"));
        }
        Ok(())
    }

    /// Reads from byte `offset` of a regular file; returns how many bytes there were.
    ///
    /// # Errors
    /// `IsDirectory`, `NotSupported`; damage; the device's errors.
    pub fn read_at(&self, inode: &InodeRef, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let done = self.noted(self.check_alive().and_then(|()| {
            self.check_content(inode)?;
            let size = inode.size();
            let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
            let buf = &mut buf[..len];
            if self.is_inline(inode) {
                let data = self.inline_read(inode)?;
                buf.fill(0);
                // What neither part has reads as zero.
                let _ = inline::read(&data.i_block, &data.second, size, offset, buf);
            } else {
                self.read_mapped(inode, offset, buf)?;
            }
            Ok(len)
        }))?;
        self.touch_atime(inode);
        Ok(done)
    }

    fn read_mapped(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<()> {
        let shift = self.geo.log_block_size();
        let block_size = u64::from(self.geo.block_size());
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = at & (block_size - 1);
            let lblk = Lblk(u32::try_from(at >> shift).map_err(|_| Error::FileTooBig)?);
            let left = (buf.len() - done) as u64;
            let want = u32::try_from((within + left).div_ceil(block_size)).unwrap_or(u32::MAX);
            let run = self.map_lookup(inode, lblk, want)?;
            let len = (u64::from(run.len()) * block_size - within).min(left) as usize;
            let part = &mut buf[done..done + len];
            match run {
                Run::Mapped { pblk, unwritten: false, .. } => {
                    self.device.read_at((pblk.0 << shift) + within, part)?;
                }
                _ => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }
}
