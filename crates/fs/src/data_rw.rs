//! Reading and writing files, changing their size, and making their content durable.

use extant_format::indirect;
use extant_format::inline;
use extant_format::inode::InodeFlags;
use extant_format::{Lblk, RoCompat, Tid};
use extant_journal::Flushed;
use extant_map::MapKind;
use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use extant_vm::{Host, PageRefs, ReadAhead};

use crate::cred::{Caps, Credentials};
use crate::credits::ORPHAN;
use crate::data::FileData;
use crate::error::{Error, Result};
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mapping::{into_caller, of_caller};

/// Most bytes that go into the cache at once: so much may it be overdrawn by one writer.
const PIECE: usize = 16 << 20;

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Write at the end, wherever that is when the inode lock is held; the offset is ignored.
    pub append: bool,
    /// Content and what is needed to find it is durable on return (O_DSYNC).
    pub data_sync: bool,
    /// Content and attributes are durable on return (O_SYNC).
    pub sync: bool,
    /// Whoever writes takes set-user-id and set-group-id away, even with the capability to keep them
    /// (`FUSE_WRITE_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

/// Where a file's content is.
enum Content<'a> {
    /// In the inode: `None` is answered when it has moved to blocks meanwhile.
    Inline,
    Pages(&'a Arc<FileData>),
}

impl Filesystem {
    /// The largest size in bytes that a file of this inode's map kind may have.
    #[must_use]
    pub fn max_file_size(&self, inode: &Inode) -> u64 {
        self.max_size_of(inode.map_kind())
    }

    /// The largest size that a file may have, whatever its map.
    pub(crate) fn largest_file(&self) -> u64 {
        self.max_size_of(MapKind::Extents)
    }

    fn max_size_of(&self, kind: MapKind) -> u64 {
        let huge = self.features.ro_compat.contains(RoCompat::HUGE_FILE);
        indirect::max_file_size(kind, self.geo.block_size(), huge)
    }

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

    /// The same for changing it.
    pub(crate) fn check_content_change(&self, inode: &Inode) -> Result<()> {
        self.check_content(inode)?;
        // Also through a file that was open for writing before it became immutable.
        if inode.flags().contains(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    /// Reads from byte `offset` of a regular file; how many bytes there were. Streams are recognised by inode.
    ///
    /// # Errors
    /// `IsDirectory`, `NotSupported`; damage; the device's errors.
    pub fn read_at(&self, inode: &InodeRef, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let data = inode.data(self);
        let mut ahead = data.stream.try_lock().map(|s| *s).unwrap_or_default();
        let done = self.read_stream(inode, offset, buf, &mut ahead)?;
        if let Some(mut stream) = data.stream.try_lock() {
            *stream = ahead;
        }
        Ok(done)
    }

    /// The same for one open file, which keeps its own state of the stream.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_stream(
        &self,
        inode: &InodeRef,
        offset: u64,
        buf: &mut [u8],
        ahead: &mut ReadAhead,
    ) -> Result<usize> {
        into_caller(buf, |buf| {
            self.read_content(inode, |data| match data {
                Content::Inline => self.read_inline(inode, offset, buf),
                Content::Pages(data) => data.pages.read(&**data, offset, buf, ahead).map(Some),
            })
        })
    }

    /// The same with references to pages of the cache in place of copies: for who passes content on. Up to `buf.len()` bytes;
    /// what no page holds (inline content, what is read past the cache) is in `buf`. `refs` is emptied first.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_refs(
        &self,
        inode: &InodeRef,
        offset: u64,
        buf: &mut [u8],
        refs: &mut PageRefs,
        ahead: &mut ReadAhead,
    ) -> Result<usize> {
        refs.clear();
        into_caller(buf, |buf| {
            self.read_content(inode, |data| match data {
                Content::Inline => {
                    let done = self.read_inline(inode, offset, buf)?;
                    done.into_iter().for_each(|n| refs.push_buffer(0, n));
                    Ok(done)
                }
                Content::Pages(data) => data.pages.read_refs(&**data, offset, buf, refs, ahead).map(Some),
            })
        })
    }

    /// What every read does round the reading itself.
    fn read_content(
        &self,
        inode: &InodeRef,
        mut read: impl FnMut(Content<'_>) -> Result<Option<usize>>,
    ) -> Result<usize> {
        let done = self.noted(self.check_alive().and_then(|()| {
            self.check_content(inode)?;
            loop {
                if self.is_inline(inode)
                    && let Some(done) = read(Content::Inline)?
                {
                    return Ok(done);
                }
                match read(Content::Pages(inode.data(self))) {
                    // It had no content at the look, and has some in the inode now.
                    Err(Error::WouldBlock) => {}
                    done => return Ok(done?.unwrap_or_default()),
                }
            }
        }))?;
        self.touch_atime(inode);
        // A failing device is no reason to refuse a read: what it needs is clean.
        let _ = self.pages.throttle();
        Ok(done)
    }

    /// `None` when the content has moved to blocks meanwhile.
    pub(crate) fn read_inline(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<Option<usize>> {
        let _xattr = inode.xattr.read();
        if !self.is_inline(inode) {
            return Ok(None);
        }
        let data = self.inline_read_locked(inode)?;
        let size = inode.size();
        let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let there = inline::read(&data.i_block, &data.second, size, offset, &mut buf[..len]);
        buf[there..len].fill(0);
        Ok(Some(len))
    }

    /// Writes to a regular file: all of `bytes`, or less with no error when space ran out on the way. Returns the bytes written
    /// and the offset where they begin.
    ///
    /// # Errors
    /// When nothing was written: `ReadOnly`, `NoSpace`, `QuotaExceeded`, `FileTooBig`, `NotSupported`; damage; the device's.
    pub fn write_at(
        &self,
        inode: &InodeRef,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        let own = of_caller(bytes);
        let bytes = &*own;
        let mut done = 0;
        let mut start = offset;
        loop {
            let at = offset + done as u64;
            match self.noted(self.write_with_space(inode, at, &bytes[done..], flags, cred)) {
                Ok((n, from)) => {
                    if done == 0 {
                        start = from;
                    }
                    done += n;
                    // Short of space: once more, after space was made. Not so an append, whose bytes stay together.
                    if done == bytes.len() || n == 0 || flags.append {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        let sync = flags.sync || self.is_sync(inode);
        if (sync || flags.data_sync) && done > 0 {
            self.fsync(inode, !sync)?;
        }
        self.pages.throttle()?;
        Ok((done, start))
    }

    /// Writes under one holding of the inode lock; when there is no space at all, as [`Self::with_space`].
    pub(crate) fn write_with_space(
        &self,
        inode: &InodeRef,
        at: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        self.pages.throttle()?;
        self.with_space(|| self.write_locked(inode, at, bytes, flags, cred))
    }

    fn write_locked(
        &self,
        inode: &InodeRef,
        at: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        let _write = self.begin_write()?;
        let _lock = inode.lock.write();
        self.check_content_change(inode)?;
        let at = if flags.append { inode.size() } else { at };
        if bytes.is_empty() {
            return Ok((0, at));
        }
        let most = self.max_file_size(inode);
        if at >= most {
            return Err(Error::FileTooBig);
        }
        let bytes = &bytes[..bytes.len().min((most - at).min(usize::MAX as u64) as usize)];
        self.need_size(at + bytes.len() as u64)?;
        self.kill_privs(inode, flags.kill_suidgid, cred)?;
        let data = inode.data(self);
        data.set_rights(self, cred);
        let inline = self.is_inline(inode) || self.may_become_inline(inode, at + bytes.len() as u64)?;
        if inline && self.write_inline(inode, at, bytes, cred)? {
            return Ok((bytes.len(), at));
        }
        let size = inode.size();
        let (done, error) = Self::write_pieces(data, at, bytes);
        if done > 0 {
            self.touch_written(inode);
            self.log_data(inode, at.min(size))?;
            return Ok((done, at));
        }
        Err(error.unwrap_or(Error::Shutdown))
    }

    /// Brings all of a write into the cache, and out of it again what the cache has no room for: the inode lock is held over it all,
    /// so that writes are whole to each other. How much was written, and why not all.
    fn write_pieces(data: &FileData, at: u64, bytes: &[u8]) -> (usize, Option<Error>) {
        let mut done = 0;
        for piece in bytes.chunks(PIECE) {
            let outcome = data.pages.write(data, at + done as u64, piece);
            done += outcome.written;
            if outcome.error.is_some() {
                return (done, outcome.error);
            }
            if done < bytes.len()
                && let Err(error) = data.pages.make_way(data, at..at + done as u64)
            {
                return (done, Some(error));
            }
        }
        (done, None)
    }

    /// Refuses opening a file for writing that must not change.
    pub(crate) fn check_open_for_writing(&self, inode: &Inode, append: bool) -> Result<()> {
        self.check_content_change(inode)?;
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let flags = inode.flags();
        if flags.contains(InodeFlags::IMMUTABLE) || (flags.contains(InodeFlags::APPEND) && !append) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    /// Takes away, before content changes, what was granted to the old content: set-user-id and set-group-id (unless the writer
    /// has CAP_FSETID) and file capabilities. The caller holds the inode lock exclusively, and no handle.
    pub(crate) fn kill_privs(&self, inode: &InodeRef, kill_suidgid: bool, cred: &Credentials) -> Result<()> {
        if kill_suidgid || !cred.has(Caps::FSETID) {
            let mut state = inode.state();
            state.raw.mode = crate::attr::without_setid(state.raw.mode);
        }
        self.kill_file_caps(inode, cred)
    }

    /// Whether [`Self::kill_privs`] has anything to do. Takes no lock but 70.
    pub(crate) fn has_privs(&self, inode: &InodeRef, kill_suidgid: bool, cred: &Credentials) -> Result<bool> {
        let mode = inode.state().raw.mode;
        let set_id = crate::attr::without_setid(mode) != mode;
        Ok(set_id && (kill_suidgid || !cred.has(Caps::FSETID)) || self.has_file_caps(inode)?)
    }

    /// Sets i_size. The caller holds the inode lock exclusively and writes times afterwards.
    pub(crate) fn set_size(&self, inode: &InodeRef, size: u64, cred: &Credentials) -> Result<()> {
        self.check_content_change(inode)?;
        if size > self.max_file_size(inode) {
            return Err(Error::FileTooBig);
        }
        self.need_size(size)?;
        if size == 0 && inode.size() > 0 && self.options().auto_da_alloc {
            inode.publish_at_close.store(true, Ordering::Release);
        }
        inode.data(self).set_rights(self, cred);
        if self.is_inline(inode) && self.resize_inline(inode, size, cred)? {
            return Ok(());
        }
        let old = inode.size();
        if size > old {
            self.extend(inode, size)?;
        } else if size < old || self.has_blocks_past(inode, size)? {
            self.shrink(inode, size)?;
        }
        self.log_data(inode, 0)
    }

    /// Whether blocks were preallocated past byte `size`, where the file ends.
    fn has_blocks_past(&self, inode: &Inode, size: u64) -> Result<bool> {
        let Ok(from) = u32::try_from(size.div_ceil(self.geo.block_size().into())) else { return Ok(false) };
        let i_block = inode.map.read();
        Ok(self.map.next_mapped(&inode.map_ref(&i_block), Lblk(from), u32::MAX)?.is_some())
    }

    /// ftruncate(2): the permission to write was checked when the file was opened.
    pub(crate) fn truncate_file(&self, inode: &InodeRef, size: u64, cred: &Credentials) -> Result<()> {
        self.pages.throttle()?;
        let run = || {
            let _write = self.begin_write()?;
            let _lock = inode.lock.write();
            if inode.flags().contains(InodeFlags::APPEND) {
                return Err(Error::NotPermitted);
            }
            self.kill_privs(inode, false, cred)?;
            self.set_size(inode, size, cred)?;
            self.touch_written(inode);
            Ok(())
        };
        self.noted(self.with_space(run))?;
        if self.is_sync(inode) { self.fsync(inode, false) } else { Ok(()) }
    }

    /// Ends the file at `size`, which it has or is longer than, and takes the blocks past that out of the map.
    fn shrink(&self, inode: &InodeRef, size: u64) -> Result<()> {
        // What can fail comes before i_size moves.
        self.quota_prepare(Self::quota_ids(inode))?;
        let table = self.cache.read(inode.table.0)?;
        let (data, old) = (inode.data(self), inode.size());
        let guard = data.pages.exclusive();
        if size > data.disk_size() {
            // The disk is told of more than it knew.
            self.settle_disk_end(data)?;
        }
        self.place_neighbours(inode, &(size..u64::MAX))?;
        data.pages.truncate(&guard, &**data, size)?;
        let zeroed = self.write_tail(inode, size);
        let credits = ORPHAN + self.inode_credits() + self.removal_credits(inode);
        let mut handle = self.start_data(inode, credits)?;
        let done = (|| {
            self.orphan_add(&mut handle, inode)?;
            if size < old {
                inode.state().raw.size = size;
            }
            self.write_inode_to(&mut handle, inode, &table)?;
            // If the blocks cannot be removed now, the next mount does it.
            handle.keep();
            let from = size.div_ceil(u64::from(self.geo.block_size()));
            if let Ok(from) = u32::try_from(from) {
                self.remove_blocks(&mut handle, inode, Lblk(from))?;
            }
            // Without a name it was an orphan before, and stays one until it is freed.
            match (inode.is_dead(), zeroed) {
                (true, _) => Ok(()),
                (false, true) => self.truncated(&mut handle, inode),
                (false, false) => self.tail_owed(&mut handle, inode),
            }
        })();
        self.finish(handle, done, inode)
    }

    /// After the cache was cut at `size` and before the disk is told: writes the block with the new end, whose rest is zero now, where
    /// the disk has more of it. So the zeros are there when the transaction is durable that makes the file shorter, as with
    /// `data=ordered`; else, after a crash, the kernel would show the old bytes once the file grows (fs test
    /// `the_rest_of_a_cut_block_is_zero_after_a_crash`). A failure is remembered for fsync; the file is cut all the same, and the zeros
    /// are owed ([`Self::tail_owed`]). Whether the disk has them.
    ///
    /// Of a file that is an orphan the zeros may be owed for the end that it has: then they are written where it is cut to that.
    fn write_tail(&self, inode: &InodeRef, size: u64) -> bool {
        let data = inode.data(self);
        let owed = || !inode.is_dead() && self.orphans.has(inode.ino);
        if size.is_multiple_of(self.geo.block_size().into()) || data.disk_size() <= size && !owed() {
            return true;
        }
        let written = data.pages.sync(&**data, size - 1..size);
        if let Err(e) = &written {
            tracing::warn!("the new end of a file: {e}");
        }
        written.is_ok()
    }

    /// Raises i_size to `size`, a hole. On an error it stays.
    pub(crate) fn extend(&self, inode: &InodeRef, size: u64) -> Result<()> {
        let guard = inode.data(self).pages.exclusive();
        self.extend_under(inode, &guard, size)
    }

    /// The same for who holds `invalidate_lock` exclusively.
    pub(crate) fn extend_under(
        &self,
        inode: &InodeRef,
        guard: &extant_vm::ExclusiveGuard<'_>,
        size: u64,
    ) -> Result<()> {
        let data = inode.data(self);
        data.pages.prepare_growth(guard, &**data, size)?;
        self.raise_disk_size(inode, size)?;
        // Last, when nothing can fail any more: an i_size that the disk does not know of would be lost with nobody told.
        let old = inode.size();
        data.set_size(size);
        data.pages.grown(old, size);
        Ok(())
    }

    /// Before i_disksize is raised: writes the block with its old end, whose tail is what the file has there, or zero. What is there on
    /// the device may be neither, and would be the file's after a crash.
    fn settle_disk_end(&self, data: &Arc<FileData>) -> Result<()> {
        let old = data.disk_size();
        if !old.is_multiple_of(self.geo.block_size().into()) {
            data.pages.sync(&**data, old - 1..old + 1)?;
        }
        Ok(())
    }

    /// Raises i_disksize to `size` in a handle, after the block with its old end is on the device with a zeroed tail.
    pub(crate) fn raise_disk_size(&self, inode: &Inode, size: u64) -> Result<()> {
        self.settle_disk_end(inode.data(self))?;
        let mut handle = self.start_data(inode, 1)?;
        {
            let mut state = inode.state();
            state.raw.size = state.raw.size.max(size);
        }
        let done = self.write_inode(&mut handle, inode);
        self.finish(handle, done, inode)
    }

    /// Makes a file's content durable, with its attributes unless `data_only`. Reports no earlier failure of the background
    /// writeback: an open file does ([`Self::write_error`]).
    ///
    /// # Errors
    /// The device's; `ReadOnly` when damage made the filesystem so, `Shutdown`.
    pub fn fsync(&self, inode: &InodeRef, data_only: bool) -> Result<()> {
        self.check_alive()?;
        if self.mode() == Mode::ReadOnly {
            return self.check_not_aborted();
        }
        let data = inode.data.get().cloned();
        if let Some(data) = &data {
            data.pages.note_stores(&**data);
        }
        let pass = self.gate.enter(Level::Internal);
        if let Some(data) = &data {
            self.noted(data.pages.sync(&**data, 0..u64::MAX))?;
        }
        let unflushed = data.as_ref().map_or(Some(0), |data| data.pages.unflushed());
        if !data_only {
            self.write_own_times(inode)?;
        }
        drop(pass);
        let tid = if data_only { &inode.datasync_tid } else { &inode.sync_tid };
        let flushed = self.journal.wait_commit(Tid(tid.load(Ordering::Relaxed)))?;
        let Some(changes) = unflushed else { return Ok(()) };
        if flushed == Flushed::No {
            self.device.flush()?;
        }
        if let Some(data) = &data {
            data.pages.flushed(changes);
        }
        Ok(())
    }

    /// Writes the file's content to its blocks and publishes them, without waiting for a commit: the commit that makes later
    /// changes durable makes this content durable too (`auto_da_alloc`). What fails stays dirty, and is reported by fsync.
    pub(crate) fn publish_data(&self, inode: &Inode) {
        // While it is frozen nothing is dirty, and a close need not wait for the thaw.
        let Some(data) = inode.data.get().filter(|data| data.pages.is_dirty()) else { return };
        if self.mode() != Mode::ReadWrite {
            return;
        }
        let _pass = self.gate.enter(Level::Internal);
        if let Err(e) = self.noted(data.pages.sync(&**data, 0..u64::MAX)) {
            tracing::warn!("inode {}: {e}", inode.ino);
        }
    }

    /// The failed writeback that a file opened when `cursor` was taken has not been told of.
    pub fn write_error(&self, inode: &InodeRef, cursor: &extant_vm::ErrCursor) -> Option<i32> {
        inode.data(self).pages.errors().check(cursor)
    }

    /// A cursor for [`Self::write_error`], to be taken when a file is opened.
    #[must_use]
    pub fn write_error_cursor(&self, inode: &InodeRef) -> extant_vm::ErrCursor {
        inode.data(self).pages.errors().sample()
    }

    /// What the threads of the page cache do, now: for the schedule tests.
    ///
    /// # Errors
    /// What could not be written.
    #[cfg(feature = "shuttle")]
    pub fn write_back(&self) -> Result<()> {
        self.write_back_all()
    }

    /// Writes the content of all files; what is on the device then is published, not yet committed.
    ///
    /// # Errors
    /// EIO when any file's content could not be written; it stays dirty.
    pub(crate) fn write_back_all(&self) -> Result<()> {
        Ok(self.pages.sync_all()?)
    }

    /// Throws away the content of a dead inode, before its blocks are freed.
    pub(crate) fn drop_data(&self, inode: &Inode) {
        if let Some(data) = inode.data.get() {
            data.pages.drop_all(&**data);
        }
    }

    /// Throws away what could not be written, at an unmount: the inode numbers and the bytes lost.
    pub(crate) fn drop_unwritten(&self) -> Vec<(u64, u64)> {
        let mut lost = Vec::new();
        for owner in self.pages.dirty_owners() {
            let number = owner.number();
            let Some(inode) =
                u32::try_from(number).ok().and_then(|n| self.icache.cached(extant_format::Ino(n)))
            else {
                continue;
            };
            if let Some(data) = inode.data.get() {
                let dropped = data.pages.drop_all(&**data);
                if dropped.dirty_bytes > 0 {
                    lost.push((number, dropped.dirty_bytes));
                }
            }
        }
        lost
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
