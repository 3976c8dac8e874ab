//! Direct I/O (O_DIRECT): content between the device and the caller's memory, past the page cache and coherent with it.
//!
//! Offset and length are multiples of the device's logical sector; the memory may lie anywhere. Reads, and overwrites of whole
//! blocks that are written already, hold the inode lock shared; writes that find places, convert unwritten blocks or make the
//! file longer hold it exclusively and are published before they return. What is not whole blocks, is kept in the inode, or has
//! privileges to lose that takes more than that goes through the cache and is written and dropped from it at once; so does all of
//! a file whose data goes through the journal.

use crate::cred::Credentials;
use crate::data_rw::WriteFlags;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::mapping::{into_caller, of_caller};
use crate::mutant::without;

impl Filesystem {
    /// The number that offset and length of direct I/O must be multiples of.
    #[must_use]
    pub fn direct_alignment(&self) -> u32 {
        self.device.logical_sector_size()
    }

    fn check_aligned(&self, offset: u64, len: usize) -> Result<()> {
        let unit = u64::from(self.direct_alignment());
        if offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit) {
            return Ok(());
        }
        Err(Error::Invalid("direct I/O that is not aligned to the device's sectors"))
    }

    /// Reads like [`Self::read_at`], from the device. Takes the inode lock shared.
    ///
    /// # Errors
    /// `Invalid` for an offset or length that is not aligned to sectors; as [`Self::read_at`].
    pub fn read_direct(&self, inode: &InodeRef, offset: u64, buf: &mut [u8]) -> Result<usize> {
        into_caller(buf, |buf| self.read_direct_own(inode, offset, buf))
    }

    /// The same into memory that is in no mapping.
    fn read_direct_own(&self, inode: &InodeRef, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let done = self.noted(self.check_alive().and_then(|()| {
            self.check_content(inode)?;
            self.check_aligned(offset, buf.len())?;
            let _lock = inode.lock.read();
            if self.is_inline(inode)
                && let Some(done) = self.read_inline(inode, offset, buf)?
            {
                return Ok(done);
            }
            // For what is dirty.
            let _pass = self.gate.enter(Level::Internal);
            let data = inode.data(self);
            if data.is_journalled() {
                return data.pages.read(&**data, offset, buf, &mut extant_vm::ReadAhead::default());
            }
            data.pages.read_past_cache(&**data, offset, buf)
        }))?;
        self.touch_atime(inode);
        Ok(done)
    }

    /// Writes like [`Self::write_at`]; the content has reached the device on return, durable after a flush.
    ///
    /// # Errors
    /// `Invalid` for an offset or length that is not aligned to sectors; as [`Self::write_at`].
    pub fn write_direct(
        &self,
        inode: &InodeRef,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        self.check_aligned(if flags.append { 0 } else { offset }, bytes.len())?;
        let own = of_caller(bytes);
        let bytes = &*own;
        let (mut done, mut start) = (0, offset);
        while done < bytes.len() {
            let rest = &bytes[done..];
            match self.noted(self.write_direct_whole(inode, offset + done as u64, rest, flags, cred)) {
                Ok((n, from)) => {
                    if done == 0 {
                        start = from;
                    }
                    done += n;
                    // Short of space: once more, after space was made. Not so an append, whose bytes stay together.
                    if n == 0 || flags.append {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if done > 0 {
            self.sync_written(inode, flags)?;
        }
        Ok((done, start))
    }

    /// Overwrites past the cache what is whole blocks, written already and clean in memory; anything else is left undone, and then
    /// it is `false`: the cache serves that better, delayed allocation above all. For a server whose clients open with O_DIRECT.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn overwrite_clean(
        &self,
        inode: &InodeRef,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<bool> {
        let own = of_caller(bytes);
        let bytes = &*own;
        let range = offset..offset.checked_add(bytes.len() as u64).ok_or(Error::FileTooBig)?;
        let dirty = inode.data.get().is_some_and(|data| data.pages.is_dirty_in(&range));
        if flags.append || dirty || !self.noted(self.overwrite_direct(inode, offset, bytes, flags, cred))? {
            return Ok(false);
        }
        self.sync_written(inode, flags)?;
        Ok(true)
    }

    /// Makes durable what was written by a file that is open for that, or whose flags ask for it.
    fn sync_written(&self, inode: &InodeRef, flags: WriteFlags) -> Result<()> {
        let sync = flags.sync || self.is_sync(inode);
        if sync || flags.data_sync { self.fsync(inode, !sync) } else { Ok(()) }
    }

    /// One holding of the inode lock for all of it. Less is written than was asked where space runs out or the device fails.
    fn write_direct_whole(
        &self,
        inode: &InodeRef,
        at: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        if !flags.append && self.overwrite_direct(inode, at, bytes, flags, cred)? {
            return Ok((bytes.len(), at));
        }
        match self.with_space(|| self.place_direct(inode, at, bytes, flags, cred))? {
            Some(done) => Ok(done),
            None => self.write_through_cache(inode, at, bytes, flags, cred),
        }
    }

    /// Overwrites blocks in place, under the shared inode lock; `false` when that is not what the write is.
    fn overwrite_direct(
        &self,
        inode: &InodeRef,
        at: u64,
        piece: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<bool> {
        let _write = self.begin_write()?;
        let _lock = inode.lock.read();
        self.check_content_change(inode)?;
        if self.is_inline(inode) || self.has_privs(inode, flags.kill_suidgid, cred)? {
            return Ok(false);
        }
        let data = inode.data(self);
        if data.is_journalled() {
            return Ok(false);
        }
        let done = if without!(self, UnalignedCached) {
            // What this would be without the fallback: the blocks around it are read, changed, and written, beside others who do the same.
            let block = u64::from(self.geo.block_size());
            let from = at - at % block;
            let mut whole = vec![0; ((at + piece.len() as u64).next_multiple_of(block) - from) as usize];
            data.pages.read_past_cache(&**data, from, &mut whole)?;
            whole[(at - from) as usize..][..piece.len()].copy_from_slice(piece);
            data.pages.overwrite_past_cache(&**data, from, &whole)?
        } else {
            data.pages.overwrite_past_cache(&**data, at, piece)?
        };
        if done {
            self.touch_written(inode);
        }
        Ok(done)
    }

    /// Writes whole blocks under the exclusive inode lock, finding places as needed; `None` when they are not whole blocks of a
    /// file with a block map.
    fn place_direct(
        &self,
        inode: &InodeRef,
        at: u64,
        piece: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<Option<(usize, u64)>> {
        let _write = self.begin_write()?;
        let _lock = inode.lock.write();
        self.check_content_change(inode)?;
        let at = if flags.append { inode.size() } else { at };
        let block = u64::from(self.geo.block_size());
        let end = at.checked_add(piece.len() as u64).ok_or(Error::FileTooBig)?;
        if !at.is_multiple_of(block) || !end.is_multiple_of(block) || end > self.max_file_size(inode) {
            return Ok(None);
        }
        if self.is_inline(inode) || self.journals_data(inode) || self.may_become_inline(inode, end)? {
            return Ok(None);
        }
        self.need_size(end)?;
        self.kill_privs(inode, flags.kill_suidgid, cred)?;
        let data = inode.data(self);
        data.set_rights(self, cred);
        let guard = data.pages.exclusive();
        // A pinned page stays in the cache, and dirty: it takes the write too, or would be written over it.
        if !data.pages.is_dax() && data.pages.has_pins(&guard, at) {
            return Ok(None);
        }
        let outcome = data.pages.write_past_cache(&guard, &**data, at, piece);
        drop(guard);
        match outcome.error {
            Some(error) if outcome.written == 0 => Err(error),
            None if outcome.written < piece.len() => Ok(None),
            _ => {
                self.touch_written(inode);
                Ok(Some((outcome.written, at)))
            }
        }
    }

    /// Writes to the cache, then to the device, and drops it from the cache.
    fn write_through_cache(
        &self,
        inode: &InodeRef,
        at: u64,
        bytes: &[u8],
        flags: WriteFlags,
        cred: &Credentials,
    ) -> Result<(usize, u64)> {
        let (done, start) = self.write_with_space(inode, at, bytes, flags, cred)?;
        if !self.is_inline(inode) {
            let _pass = self.gate.enter(Level::Internal);
            let data = inode.data(self);
            let range = start..start + done as u64;
            if !without!(self, FallbackWritten) {
                data.pages.sync(&**data, range.clone())?;
            }
            data.pages.invalidate(range);
        }
        Ok((done, start))
    }
}
