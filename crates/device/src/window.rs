//! A part of another device.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use rustix::io::Errno;

use crate::{BlockDevice, DirectAccess, MemSlice, check_range, errno, total, total_mem};

/// The bytes of a device from an offset on: a partition of a disk image, or a filesystem behind a header.
#[derive(Debug)]
pub struct Window {
    base: Arc<dyn BlockDevice>,
    start: u64,
    size: u64,
}

impl Window {
    /// The `size` bytes of `base` from `start` on.
    ///
    /// # Errors
    /// EINVAL when they are not all inside.
    pub fn new(base: Arc<dyn BlockDevice>, start: u64, size: u64) -> io::Result<Self> {
        check_range(base.size(), start, size).map_err(|_| errno(Errno::INVAL))?;
        Ok(Self { base, start, size })
    }

    /// All bytes of `base` from `start` on.
    ///
    /// # Errors
    /// EINVAL when `start` is past the end.
    pub fn from_offset(base: Arc<dyn BlockDevice>, start: u64) -> io::Result<Self> {
        let size = base.size().checked_sub(start).ok_or_else(|| errno(Errno::INVAL))?;
        Ok(Self { base, start, size })
    }

    /// The offset in the base of the window's first byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        check_range(self.size, offset, len)?;
        Ok(self.start + offset)
    }
}

impl BlockDevice for Window {
    fn size(&self) -> u64 {
        self.size
    }
    fn logical_sector_size(&self) -> u32 {
        self.base.logical_sector_size()
    }
    fn is_read_only(&self) -> bool {
        self.base.is_read_only()
    }
    fn may_turn_writable(&self) -> bool {
        self.base.may_turn_writable()
    }
    fn make_writable(&self) -> io::Result<()> {
        self.base.make_writable()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.base.read_at(self.place(offset, buf.len() as u64)?, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.base.write_at(self.place(offset, buf.len() as u64)?, buf)
    }
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.base.read_vectored_at(self.place(offset, total(bufs))?, bufs)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.base.write_vectored_at(self.place(offset, total(bufs))?, bufs)
    }
    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.base.read_mem_at(self.place(offset, total_mem(bufs) as u64)?, bufs)
    }
    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.base.write_mem_at(self.place(offset, total_mem(bufs) as u64)?, bufs)
    }
    fn flush(&self) -> io::Result<()> {
        self.base.flush()
    }
    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.base.write_fua_at(self.place(offset, total(bufs))?, bufs)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.base.discard(self.place(offset, len)?, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.base.write_zeroes(self.place(offset, len)?, len)
    }
    fn makes_zeros(&self) -> bool {
        self.base.makes_zeros()
    }
    fn advise(&self, offset: u64, len: u64) {
        if let Ok(at) = self.place(offset, len) {
            self.base.advise(at, len);
        }
    }
    fn direct_access(&self) -> Option<DirectAccess> {
        Some(self.base.direct_access()?.from_offset(self.start))
    }
}
