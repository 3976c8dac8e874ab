//! An open regular file: what an open adds to an inode.

use extant_format::inode::InodeFlags;
use extant_sync::atomic::Ordering;
use extant_sync::{Arc, Mutex, Rank};
use extant_vm::{ErrCursor, Leave, PageRefs, ReadAhead, ReadFlags};

use crate::cred::Credentials;
use crate::data_rw::WriteFlags;
use crate::error::{Error, Result};
use crate::fallocate::{FallocateMode, SeekKind};
use crate::fiemap::{FiemapExtent, FiemapHow};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::move_ext::MoveRange;

/// How a file is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Reading is allowed.
    pub read: bool,
    /// Writing is allowed.
    pub write: bool,
    /// Every write goes to the end (O_APPEND).
    pub append: bool,
    /// Content is durable when a write returns (O_DSYNC).
    pub data_sync: bool,
    /// Content and attributes are (O_SYNC).
    pub sync: bool,
    /// Content goes past the page cache (O_DIRECT): offset and length are multiples of [`Filesystem::direct_alignment`].
    pub direct: bool,
}

/// Where a write goes that a server passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WritePlace {
    /// To the offset.
    #[default]
    At,
    /// To the end, wherever that is when the inode lock is held.
    End,
    /// To the offset, where a cache above this one has it already: also of a file that may only grow.
    Cached,
}

/// A write that a server passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassedOn {
    /// Where to.
    pub place: WritePlace,
    /// It was made with O_DIRECT.
    pub past_cache: bool,
    /// As in [`WriteFlags`].
    pub kill_suidgid: bool,
}

/// An open regular file. Permission was checked by whoever made it; the rights to space are those of the credentials given then.
#[derive(Debug)]
pub struct OpenFile {
    fs: Arc<Filesystem>,
    inode: InodeRef,
    mode: OpenMode,
    cred: Credentials,
    stream: Mutex<ReadAhead>,
    errors: ErrCursor,
}

impl OpenFile {
    /// Opens `inode`. Failed writebacks from now on are reported by [`Self::fsync`], and one that nobody was told of yet.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid`, `NotSupported` for content that cannot be read; `ReadOnly`; `NotPermitted` for writing an
    /// immutable file, or an append-only one elsewhere than at its end.
    pub fn new(fs: &Arc<Filesystem>, inode: &InodeRef, mode: OpenMode, cred: &Credentials) -> Result<Self> {
        fs.check_alive()?;
        fs.check_content(inode)?;
        if mode.write {
            fs.check_open_for_writing(inode, mode.append)?;
        }
        fs.open_in_its_mode(inode);
        inode.openers.fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            fs: Arc::clone(fs),
            inode: inode.clone(),
            mode,
            cred: cred.clone(),
            stream: Mutex::new(Rank::LEAF, ReadAhead::default()),
            errors: fs.write_error_cursor(inode),
        })
    }

    /// The file's inode.
    #[must_use]
    pub fn inode(&self) -> &InodeRef {
        &self.inode
    }

    pub(crate) fn filesystem(&self) -> &Arc<Filesystem> {
        &self.fs
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.cred
    }

    /// How it is open.
    #[must_use]
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    /// Reads from byte `offset`; how many bytes there were.
    ///
    /// # Errors
    /// `BadFile` when not open for reading; as [`Filesystem::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if !self.mode.read {
            return Err(Error::BadFile);
        }
        if self.mode.direct {
            return self.fs.read_direct(&self.inode, offset, buf);
        }
        self.in_stream(ReadFlags::default(), |ahead| self.fs.read_stream(&self.inode, offset, buf, ahead))
    }

    /// The same without copying: `refs` then holds references to pages of the cache, or to parts of `buf` for what no page
    /// holds. What is referenced keeps its memory until `refs` is cleared or dropped; a write to the same bytes may show through.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_refs(&self, offset: u64, buf: &mut [u8], refs: &mut PageRefs) -> Result<usize> {
        if !self.mode.read {
            return Err(Error::BadFile);
        }
        if self.mode.direct {
            refs.clear();
            let n = self.fs.read_direct(&self.inode, offset, buf)?;
            refs.push_buffer(0, n);
            return Ok(n);
        }
        self.in_stream(ReadFlags::default(), |ahead| self.fs.read_refs(&self.inode, offset, buf, refs, ahead))
    }

    /// A read as a server passes it on, who says how. Any offset and length, and never by the way of [`OpenMode::direct`].
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_passed_on(&self, offset: u64, buf: &mut [u8], flags: ReadFlags) -> Result<usize> {
        self.passed_on(flags, |ahead| self.fs.read_stream(&self.inode, offset, buf, ahead))
    }

    /// The same with references as of [`Self::read_refs`].
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_refs_passed_on(
        &self,
        offset: u64,
        buf: &mut [u8],
        refs: &mut PageRefs,
        flags: ReadFlags,
    ) -> Result<usize> {
        self.passed_on(flags, |ahead| self.fs.read_refs(&self.inode, offset, buf, refs, ahead))
    }

    fn passed_on(
        &self,
        flags: ReadFlags,
        read: impl FnOnce(&mut ReadAhead) -> Result<usize>,
    ) -> Result<usize> {
        if !self.mode.read {
            return Err(Error::BadFile);
        }
        // What leaves nothing is no part of a stream.
        if flags.leave == Leave::Nothing {
            return read(&mut ReadAhead::default().with(flags));
        }
        self.in_stream(flags, read)
    }

    fn in_stream(
        &self,
        flags: ReadFlags,
        read: impl FnOnce(&mut ReadAhead) -> Result<usize>,
    ) -> Result<usize> {
        let mut ahead = self.stream.lock().with(flags);
        let done = read(&mut ahead);
        *self.stream.lock() = ahead;
        done
    }

    /// Writes at byte `offset`, or at the end when open for appending: the bytes written and where they begin.
    ///
    /// # Errors
    /// `BadFile` when not open for writing; as [`Filesystem::write_at`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(usize, u64)> {
        self.may_write()?;
        let flags = self.write_flags(false);
        if self.mode.direct {
            return self.fs.write_direct(&self.inode, offset, bytes, flags, &self.cred);
        }
        self.fs.write_at(&self.inode, offset, bytes, flags, &self.cred)
    }

    /// A write as a server passes it on: it says where that goes, since fcntl(2) may have changed what the file was opened with. Any offset
    /// and length: what goes past the cache is what overwrites blocks in place, if nothing in memory is newer.
    ///
    /// # Errors
    /// As [`Self::write_at`]; `NotPermitted` to leave the end of a file that may only grow, which was opened for that.
    pub fn write_passed_on(&self, offset: u64, bytes: &[u8], passed: PassedOn) -> Result<(usize, u64)> {
        self.may_write_to(passed.place)?;
        let flags = self.flags_for(passed);
        let past = passed.past_cache && passed.place != WritePlace::Cached;
        if past && self.fs.overwrite_clean(&self.inode, offset, bytes, flags, &self.cred)? {
            return Ok((bytes.len(), offset));
        }
        self.fs.write_at(&self.inode, offset, bytes, flags, &self.cred)
    }

    /// The flags with which [`Filesystem::write_at`] does the same as somebody else.
    #[must_use]
    pub fn flags_for(&self, passed: PassedOn) -> WriteFlags {
        WriteFlags { append: passed.place == WritePlace::End, ..self.write_flags(passed.kill_suidgid) }
    }

    /// fcntl(2) takes O_APPEND from no file that may only grow; where a kernel does not know that it is one, it is refused here.
    fn may_write_to(&self, place: WritePlace) -> Result<()> {
        self.may_write()?;
        let leaves = place == WritePlace::At && self.mode.append;
        if leaves && self.inode.flags().contains(InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    fn write_flags(&self, kill_suidgid: bool) -> WriteFlags {
        let OpenMode { append, data_sync, sync, .. } = self.mode;
        WriteFlags { append, data_sync, sync, kill_suidgid }
    }

    /// Makes content (and attributes, unless `data_only`) durable, and reports a failed writeback that this open file has not
    /// been told of.
    ///
    /// # Errors
    /// The device's; `Shutdown`.
    pub fn fsync(&self, data_only: bool) -> Result<()> {
        let done = self.fs.fsync(&self.inode, data_only);
        // Said once, so it comes first: what this one met it meets again. Damage that a fault has met makes the mount read-only, say.
        match self.fs.write_error(&self.inode, &self.errors) {
            None => done,
            Some(code) => Err(Error::Io(std::io::Error::from_raw_os_error(code))),
        }
    }

    /// ftruncate(2).
    ///
    /// # Errors
    /// `BadFile`; as [`Filesystem::set_attr`] with a size.
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.may_write()?;
        self.fs.truncate_file(&self.inode, size, &self.cred)
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// `BadFile`; as [`Filesystem::fallocate`].
    pub fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        if len > 0 {
            self.may_write()?;
        }
        self.fs.fallocate(&self.inode, mode, offset, len, keep_size, &self.cred)
    }

    /// SEEK_DATA and SEEK_HOLE.
    ///
    /// # Errors
    /// As [`Filesystem::seek`].
    pub fn seek(&self, offset: u64, kind: SeekKind) -> Result<u64> {
        self.fs.seek(&self.inode, offset, kind)
    }

    /// FIEMAP: extents that the range touches, `most` at most.
    ///
    /// # Errors
    /// As [`Filesystem::fiemap`].
    pub fn fiemap(&self, start: u64, len: u64, how: FiemapHow, most: usize) -> Result<Vec<FiemapExtent>> {
        self.fs.fiemap(&self.inode, start, len, how, most)
    }

    /// Moves content of this file to blocks of `donor`, as `EXT4_IOC_MOVE_EXT` does; how many blocks.
    ///
    /// # Errors
    /// `BadFile` unless this file is open for reading and writing, and the donor for writing; `Invalid` for a donor elsewhere; as
    /// [`Filesystem::move_extents`].
    pub fn move_extents(&self, donor: &Self, range: MoveRange) -> Result<u64> {
        if !self.mode.read || !self.mode.write || !donor.mode.write {
            return Err(Error::BadFile);
        }
        if !Arc::ptr_eq(&self.fs, &donor.fs) {
            return Err(Error::Invalid("a donor in another filesystem"));
        }
        self.fs.move_extents(&self.inode, &donor.inode, range, &self.cred)
    }

    fn may_write(&self) -> Result<()> {
        if self.mode.write { Ok(()) } else { Err(Error::BadFile) }
    }
}

impl Drop for OpenFile {
    /// A file that was emptied and written anew is not empty after a crash that comes later than the commit of the emptying
    /// (`auto_da_alloc`).
    fn drop(&mut self) {
        if self.mode.write && self.inode.publish_at_close.swap(false, Ordering::AcqRel) {
            self.fs.publish_data(&self.inode);
        }
        self.inode.openers.fetch_sub(1, Ordering::AcqRel);
    }
}
