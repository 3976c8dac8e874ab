//! A device that cannot be written.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use rustix::io::Errno;

use crate::{BlockDevice, MemSlice, errno};

/// Another device, with EROFS for everything that would change it.
#[derive(Debug)]
pub struct ReadOnly {
    base: Arc<dyn BlockDevice>,
}

impl ReadOnly {
    /// A read-only view of `base`.
    #[must_use]
    pub fn new(base: Arc<dyn BlockDevice>) -> Self {
        Self { base }
    }
}

impl BlockDevice for ReadOnly {
    fn size(&self) -> u64 {
        self.base.size()
    }
    fn logical_sector_size(&self) -> u32 {
        self.base.logical_sector_size()
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.base.read_at(offset, buf)
    }
    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(errno(Errno::ROFS))
    }
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.base.read_vectored_at(offset, bufs)
    }
    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.base.read_mem_at(offset, bufs)
    }
    /// Nothing was written here, so nothing is to be made durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(errno(Errno::ROFS))
    }
    fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(errno(Errno::ROFS))
    }
    fn advise(&self, offset: u64, len: u64) {
        self.base.advise(offset, len);
    }
}
