//! An open file as `std::io` knows it: positioned calls through `&self`, and a cursor for `Read`, `Write`, `Seek`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use extant_sync::{Mutex, Rank};

use crate::attr::Attr;
use crate::error::{Error, Result};
use crate::fallocate::{FallocateMode, SeekKind};
use crate::icache::InodeRef;
use crate::open_file::OpenFile;

/// An open regular file. Positioned calls may be made by many threads at once; `Read`, `Write` and `Seek` share one
/// position, also through `&File`.
#[derive(Debug)]
pub struct File {
    open: OpenFile,
    /// Held while the position is used, never during I/O: two readers through `&File` may read the same bytes.
    position: Mutex<u64>,
}

impl File {
    pub(super) fn new(open: OpenFile) -> Self {
        Self { open, position: Mutex::new(Rank::LEAF, 0) }
    }

    /// The open file below, for what is not offered here.
    #[must_use]
    pub const fn open_file(&self) -> &OpenFile {
        &self.open
    }

    /// The file's inode.
    #[must_use]
    pub fn inode(&self) -> &InodeRef {
        self.open.inode()
    }

    /// Attributes.
    #[must_use]
    pub fn metadata(&self) -> Attr {
        self.open.inode().attr()
    }

    /// Reads from byte `offset`; 0 at the end.
    ///
    /// # Errors
    /// As [`OpenFile::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.open.read_at(offset, buf)
    }

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// As [`Self::read_at`]; EIO with `UnexpectedEof` where the file ends before.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset)? {
                0 => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
                n => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes at byte `offset` (at the end, when open for appending); how many bytes were written.
    ///
    /// # Errors
    /// As [`OpenFile::write_at`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        Ok(self.open.write_at(offset, bytes)?.0)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As [`Self::write_at`]; what was written before the failure stays.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            let n = self.write_at(bytes, offset)?;
            bytes = &bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// Makes content and attributes durable (fsync).
    ///
    /// # Errors
    /// The device's, also of an earlier writeback that this file has not been told of.
    pub fn sync_all(&self) -> Result<()> {
        self.open.fsync(false)
    }

    /// Makes content durable, and what is needed to find it (fdatasync).
    ///
    /// # Errors
    /// As [`Self::sync_all`].
    pub fn sync_data(&self) -> Result<()> {
        self.open.fsync(true)
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// As [`OpenFile::set_len`].
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.open.set_len(size)
    }

    /// Reserves blocks for a range; the file grows to its end unless `keep_size`.
    ///
    /// # Errors
    /// As [`OpenFile::fallocate`].
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.open.fallocate(FallocateMode::Allocate, offset, len, keep_size)
    }

    /// Makes a range a hole.
    ///
    /// # Errors
    /// As [`OpenFile::fallocate`].
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.open.fallocate(FallocateMode::PunchHole, offset, len, true)
    }

    /// Makes a range read as zeros, with blocks behind it.
    ///
    /// # Errors
    /// As [`OpenFile::fallocate`].
    pub fn zero_range(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.open.fallocate(FallocateMode::ZeroRange, offset, len, keep_size)
    }

    /// Takes a range of whole blocks (with bigalloc: clusters) out of the file, which gets shorter by it.
    ///
    /// # Errors
    /// As [`OpenFile::fallocate`].
    pub fn collapse_range(&self, offset: u64, len: u64) -> Result<()> {
        self.open.fallocate(FallocateMode::CollapseRange, offset, len, false)
    }

    /// Makes room of whole blocks (clusters) inside the file, which gets longer by it: a hole.
    ///
    /// # Errors
    /// As [`OpenFile::fallocate`].
    pub fn insert_range(&self, offset: u64, len: u64) -> Result<()> {
        self.open.fallocate(FallocateMode::InsertRange, offset, len, false)
    }

    /// The start of the next data at or after `offset`.
    ///
    /// # Errors
    /// `NoSuchAddress` where there is none.
    pub fn seek_data(&self, offset: u64) -> Result<u64> {
        self.open.seek(offset, SeekKind::Data)
    }

    /// The start of the next hole at or after `offset`; the end of the file is one.
    ///
    /// # Errors
    /// `NoSuchAddress` past the end.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        self.open.seek(offset, SeekKind::Hole)
    }
}

impl Read for &File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let at = *self.position.lock();
        let n = self.read_at(buf, at)?;
        *self.position.lock() = at + n as u64;
        Ok(n)
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = *self.position.lock();
        let (n, start) = self.open.write_at(at, bytes)?;
        *self.position.lock() = start + n as u64;
        Ok(n)
    }

    /// Nothing is buffered here; [`File::sync_all`] is what makes a file durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut position = self.position.lock();
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => position.checked_add_signed(by),
            SeekFrom::End(by) => self.open.inode().size().checked_add_signed(by),
        };
        let target = target.filter(|t| i64::try_from(*t).is_ok());
        *position = target.ok_or(Error::Invalid("a position before the start or past all files"))?;
        Ok(*position)
    }
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}
