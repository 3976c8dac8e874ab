//! A device that counts.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use extant_sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{BlockDevice, DirectAccess, MemSlice, total, total_mem};

/// Another device, with counters of what was asked of it.
#[derive(Debug)]
pub struct Counting {
    base: Arc<dyn BlockDevice>,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    zeroes: AtomicU64,
}

/// What a [`Counting`] device was asked so far. A vectored call counts once; a failed one counts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that read.
    pub reads: u64,
    /// Bytes they asked for.
    pub bytes_read: u64,
    /// Calls that wrote (write-zeroes and discards apart).
    pub writes: u64,
    /// Bytes they brought.
    pub bytes_written: u64,
    /// Flushes (a FUA write counts as a write and a flush).
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Calls of write-zeroes.
    pub zeroes: u64,
}

impl Counting {
    /// Counts from zero.
    #[must_use]
    pub fn new(base: Arc<dyn BlockDevice>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            base,
            reads: zero(),
            bytes_read: zero(),
            writes: zero(),
            bytes_written: zero(),
            flushes: zero(),
            discards: zero(),
            zeroes: zero(),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            reads: self.reads.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            writes: self.writes.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            discards: self.discards.load(Relaxed),
            zeroes: self.zeroes.load(Relaxed),
        }
    }

    fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Relaxed);
        self.bytes_read.fetch_add(bytes, Relaxed);
    }

    fn write(&self, bytes: u64) {
        self.writes.fetch_add(1, Relaxed);
        self.bytes_written.fetch_add(bytes, Relaxed);
    }
}

impl BlockDevice for Counting {
    fn size(&self) -> u64 {
        self.base.size()
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
        self.read(buf.len() as u64);
        self.base.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write(buf.len() as u64);
        self.base.write_at(offset, buf)
    }
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.read(total(bufs));
        self.base.read_vectored_at(offset, bufs)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(total(bufs));
        self.base.write_vectored_at(offset, bufs)
    }
    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.read(total_mem(bufs) as u64);
        self.base.read_mem_at(offset, bufs)
    }
    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.write(total_mem(bufs) as u64);
        self.base.write_mem_at(offset, bufs)
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Relaxed);
        self.base.flush()
    }
    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(total(bufs));
        self.flushes.fetch_add(1, Relaxed);
        self.base.write_fua_at(offset, bufs)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.discards.fetch_add(1, Relaxed);
        self.base.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zeroes.fetch_add(1, Relaxed);
        self.base.write_zeroes(offset, len)
    }
    fn makes_zeros(&self) -> bool {
        self.base.makes_zeros()
    }
    fn advise(&self, offset: u64, len: u64) {
        self.base.advise(offset, len);
    }
    /// What goes that way is not counted.
    fn direct_access(&self) -> Option<DirectAccess> {
        self.base.direct_access()
    }
}
