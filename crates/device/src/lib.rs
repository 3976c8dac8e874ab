//! Block devices: what a filesystem lives on.
//!
//! [`BlockDevice`] is the trait; `Arc<dyn BlockDevice>` is what is passed around. Here are
//! - [`FileDevice`]: an image file or a block device, opened so that two masters cannot meet,
//! - [`MemoryDevice`]: memory, sparse; [`MemoryImage`]: what one holds at a moment, from which others can begin,
//! - [`Window`]: a part of another device (a byte offset, a partition found with [`partitions`]),
//! - [`ReadOnly`], [`Overlay`] (writes go to memory, the base stays untouched), [`Counting`].
//!
//! A device is linear memory of bytes. Reads and writes are whole or an error; after an error the bytes of a write are
//! old, new or torn. A write is durable after the next [`BlockDevice::flush`] that began after it ended. Devices order
//! nothing by themselves: whoever writes the same bytes twice waits in between.
//!
//! Locks: only leaves, never held over the I/O of a device below.

mod counting;
mod direct_access;
mod file;
mod live;
mod memory;
mod overlay;
mod partition;
mod read_only;
mod window;

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

pub use counting::{Counting, Counts};
pub use direct_access::DirectAccess;
pub use file::{FileDevice, OpenError, OpenOptions};
pub use live::Live;
pub use memory::{MemoryDevice, MemoryImage};
pub use overlay::Overlay;
pub use partition::{Partition, PartitionError, PartitionKind, partition_window, partitions};
pub use read_only::ReadOnly;
pub use window::Window;

pub use extant_sys::MemSlice;

/// A device of [`Self::size`] bytes.
///
/// Every method takes `&self` and may be called by many threads at once. Errors carry an errno: EIO for bytes past the
/// end, EROFS for a write to a read-only device, else what the system said.
pub trait BlockDevice: Send + Sync + Debug {
    /// Size in bytes. It does not change.
    fn size(&self) -> u64;

    /// The unit in bytes that the device itself writes as a whole; 512 for an image file. Reads and writes of other
    /// sizes and offsets are allowed.
    fn logical_sector_size(&self) -> u32 {
        512
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether [`Self::make_writable`] may do something about that.
    fn may_turn_writable(&self) -> bool {
        !self.is_read_only()
    }

    /// Accepts writes from now on, where it was opened for reading only; nothing if it does already.
    ///
    /// # Errors
    /// EROFS where it cannot, EBUSY where somebody else uses it; it stays as it was.
    fn make_writable(&self) -> io::Result<()> {
        if self.is_read_only() { Err(errno(rustix::io::Errno::ROFS)) } else { Ok(()) }
    }

    /// Reads all of `buf` from the bytes at `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` to the bytes at `offset`.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Fills the buffers one after the other from consecutive bytes at `offset`.
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        check_range(self.size(), offset, total(bufs))?;
        let mut at = offset;
        for buf in bufs {
            self.read_at(at, buf)?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes the buffers one after the other to consecutive bytes at `offset`.
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        check_range(self.size(), offset, total(bufs))?;
        let mut at = offset;
        for buf in bufs {
            self.write_at(at, buf)?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// [`Self::read_vectored_at`] into memory that others may look at meanwhile (pages of a cache).
    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        let mut bounce = vec![0; total_mem(bufs)];
        self.read_at(offset, &mut bounce)?;
        let mut rest = &bounce[..];
        for buf in bufs {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from(0, now);
            rest = later;
        }
        Ok(())
    }

    /// [`Self::write_vectored_at`] from memory that others may write meanwhile (pages of a cache).
    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        let mut bounce = vec![0; total_mem(bufs)];
        let mut rest = &mut bounce[..];
        for buf in bufs {
            let (now, later) = rest.split_at_mut(buf.len());
            buf.copy_to(0, now);
            rest = later;
        }
        self.write_at(offset, &bounce)
    }

    /// Returns when every write that ended before this call is durable.
    fn flush(&self) -> io::Result<()>;

    /// A write that is durable when it returns, without a promise about others.
    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.write_vectored_at(offset, bufs)?;
        self.flush()
    }

    /// Says that these bytes are not needed. What they read as afterwards is undefined (old bytes or zeros).
    /// EOPNOTSUPP where the device cannot.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes these bytes read as zeros, without writing them where the device can.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether [`Self::write_zeroes`] costs next to nothing, however much it is: an image file, memory.
    fn makes_zeros(&self) -> bool {
        false
    }

    /// Says that these bytes will be read soon. May do nothing.
    fn advise(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Its bytes as memory that can be mapped for loads and stores, where it has that.
    fn direct_access(&self) -> Option<DirectAccess> {
        None
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn logical_sector_size(&self) -> u32 {
        (**self).logical_sector_size()
    }
    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }
    fn may_turn_writable(&self) -> bool {
        (**self).may_turn_writable()
    }
    fn make_writable(&self) -> io::Result<()> {
        (**self).make_writable()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, buf)
    }
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        (**self).read_vectored_at(offset, bufs)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        (**self).write_vectored_at(offset, bufs)
    }
    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        (**self).read_mem_at(offset, bufs)
    }
    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        (**self).write_mem_at(offset, bufs)
    }
    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        (**self).write_fua_at(offset, bufs)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).write_zeroes(offset, len)
    }
    fn makes_zeros(&self) -> bool {
        (**self).makes_zeros()
    }
    fn advise(&self, offset: u64, len: u64) {
        (**self).advise(offset, len);
    }
    fn direct_access(&self) -> Option<DirectAccess> {
        (**self).direct_access()
    }
}

/// Bytes in all buffers together.
fn total<B: std::ops::Deref<Target = [u8]>>(bufs: &[B]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

fn total_mem(bufs: &[MemSlice<'_>]) -> usize {
    bufs.iter().map(MemSlice::len).sum()
}

/// EIO unless the `len` bytes at `offset` are all inside `size`.
fn check_range(size: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(errno(rustix::io::Errno::IO)),
    }
}

fn errno(e: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(e.raw_os_error())
}
