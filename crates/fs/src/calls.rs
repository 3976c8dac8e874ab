//! Calls that change nothing: lookup, listing, links; and those that make changes durable.

use std::ops::ControlFlow;

use extant_format::inode::{FileType, I_BLOCK_SIZE, InodeFlags};
use extant_format::{Lblk, Superblock, Tid};
use extant_journal::Flushed;
use extant_map::Run;
use extant_sync::atomic::Ordering;

use crate::cred::{Access, Credentials};
use crate::dir::DirEntry;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mapping::of_caller;

impl Filesystem {
    /// The inode that `name` in `dir` leads to; `.` and `..` too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `AccessDenied`, `NameTooLong`; damage.
    pub fn lookup(&self, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<InodeRef> {
        self.noted(self.lookup_inner(dir, &of_caller(name), cred))
    }

    fn lookup_inner(&self, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<InodeRef> {
        self.check_alive()?;
        self.check_dir(dir)?;
        self.permission(dir, Access::EXEC, cred)?;
        let _lock = dir.lock.read_ordered(crate::create::key::PARENT);
        self.lookup_locked(dir, name)
    }

    /// The directory that `dir` is in; the root is in itself.
    ///
    /// # Errors
    /// Damage.
    pub fn parent(&self, dir: &InodeRef) -> Result<InodeRef> {
        self.noted(self.check_alive().and_then(|()| {
            self.check_dir(dir)?;
            let _lock = dir.lock.read_ordered(crate::create::key::PARENT);
            self.lookup_locked(dir, b"..")
        }))
    }

    /// Lists `dir` from position `from` ([`crate::START`], or [`DirEntry::next`] of the last name that was used) until
    /// `sink` breaks. `.` and `..` are among the names.
    ///
    /// A directory that is removed while it is listed ends; names that come or go meanwhile are listed or not, all others
    /// exactly once.
    ///
    /// `sink` is called with locks held: it must not use the filesystem, nor memory of a mapping of any file of this library.
    ///
    /// # Errors
    /// `NotDirectory`, `AccessDenied`; damage.
    pub fn read_dir(
        &self,
        dir: &InodeRef,
        from: u64,
        cred: &Credentials,
        sink: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.noted(self.check_alive().and_then(|()| {
            self.may_list(dir)?;
            self.permission(dir, Access::READ, cred)?;
            let _lock = dir.lock.read_ordered(crate::create::key::PARENT);
            self.list(dir, from, sink)
        }))?;
        self.touch_atime(dir);
        Ok(())
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for anything else; damage.
    pub fn readlink(&self, link: &InodeRef) -> Result<Vec<u8>> {
        let target = self.noted(self.check_alive().and_then(|()| self.link_target(link)))?;
        self.touch_atime(link);
        Ok(target)
    }

    fn link_target(&self, link: &Inode) -> Result<Vec<u8>> {
        if link.kind() != FileType::Symlink {
            return Err(Error::Invalid("not a symbolic link"));
        }
        if link.flags().contains(InodeFlags::ENCRYPT) {
            return Err(Error::NotSupported("an encrypted symbolic link (feature encrypt)"));
        }
        let bad = |what| Error::corrupt(Place::Inode(link.ino), CorruptKind::Symlink(what));
        let (size, raw) = {
            let state = link.state();
            (state.size as usize, state.raw.clone())
        };
        let target = if self.is_inline(link) {
            let data = self.inline_read(link)?;
            let mut whole = data.i_block.to_vec();
            whole.extend_from_slice(&data.second);
            whole.get(..size).ok_or_else(|| bad("longer than its inline data"))?.to_vec()
        } else if raw.is_fast_symlink() || size < I_BLOCK_SIZE && raw.blocks == 0 {
            raw.i_block.get(..size).ok_or_else(|| bad("longer than its inode"))?.to_vec()
        } else {
            let Run::Mapped { pblk, unwritten: false, .. } = self.map_lookup(link, Lblk(0), 1)? else {
                return Err(bad("its block is a hole"));
            };
            let buf = self.cache.read(pblk)?;
            buf.with(|bytes| bytes.get(..size).map(<[u8]>::to_vec))
                .ok_or_else(|| bad("longer than a block"))?
        };
        if target.is_empty() || target.contains(&0) {
            return Err(bad("empty, or with a zero byte"));
        }
        Ok(target)
    }

    /// Makes everything that was changed durable.
    ///
    /// # Errors
    /// What could not be written.
    pub fn sync(&self) -> Result<()> {
        if self.mode() != Mode::ReadWrite {
            self.check_alive()?;
            return self.check_not_aborted();
        }
        let found = self.pages.find_unseen_changes().map_err(Error::from);
        let data = self.write_back_all().and(found);
        {
            let _pass = self.gate.enter(Level::Internal);
            self.flush_times()?;
            self.settle_tails()?;
            self.write_record()?;
        }
        // What was removed is gone, and its space is free, when sync returns.
        self.icache.wait_evicted();
        self.commit_and_flush()?;
        self.refresh_quota_files();
        data
    }

    /// Refuses to say that anything became durable when damage made the filesystem read-only under it.
    pub(crate) fn check_not_aborted(&self) -> Result<()> {
        if self.journal.is_aborted() { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Commits everything; what was written to the device before is durable then, whether or not there was anything to commit
    /// (content may have been written to blocks that it had).
    pub(crate) fn commit_and_flush(&self) -> Result<()> {
        if self.journal.commit_all()? == Flushed::No {
            self.device.flush()?;
        }
        Ok(())
    }

    /// Makes the attributes of one inode durable; for a directory, its names.
    ///
    /// # Errors
    /// What could not be written.
    pub fn sync_inode(&self, inode: &InodeRef, datasync: bool) -> Result<()> {
        if self.mode() != Mode::ReadWrite {
            self.check_alive()?;
            return self.check_not_aborted();
        }
        if !datasync && inode.state().times_dirty {
            let _pass = self.gate.enter(Level::Internal);
            self.write_own_times(inode)?;
        }
        let tid = if datasync { &inode.datasync_tid } else { &inode.sync_tid };
        self.journal.wait_commit(Tid(tid.load(Ordering::Relaxed)))?;
        Ok(())
    }

    /// The label, without the zero bytes after it.
    #[must_use]
    pub fn label(&self) -> Vec<u8> {
        self.sb.lock().label().to_vec()
    }

    /// Changes the label, at most 16 bytes, in the superblock and its copies.
    ///
    /// # Errors
    /// `Invalid`, `NotPermitted`; the journal's and the device's errors.
    pub fn set_label(&self, label: &[u8], cred: &Credentials) -> Result<()> {
        let label = &*of_caller(label);
        let _write = self.begin_write()?;
        if !cred.has(crate::cred::Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        if label.len() > 16 || label.contains(&0) {
            return Err(Error::Invalid("label"));
        }
        let mut handle = self.journal.start(1)?;
        self.write_super(&mut handle, |sb| {
            // The length was checked.
            let _ = sb.set_label(label);
        })?;
        let tid = handle.finish()?;
        self.settle(tid, true)?;
        // Programs like blkid read it from the device while it is mounted.
        self.journal.checkpoint_all()?;
        self.label_backups(label)
    }

    /// Puts the label into the copies of the superblock, as tune2fs and the kernel do; the rest of each stays. One that is damaged
    /// stays as it is.
    fn label_backups(&self, label: &[u8]) -> Result<()> {
        for group in self.geo.super_groups().filter(|group| group.0 != 0) {
            let Some(at) = self.geo.super_offset(group) else { continue };
            let mut bytes = [0; 1024];
            self.device.read_at(at, &mut bytes)?;
            match Superblock::read(&bytes) {
                Ok(mut backup) if backup.uuid() == self.sb.lock().uuid() => {
                    // The length was checked.
                    let _ = backup.set_label(label);
                    self.device.write_at(at, &backup.encode())?;
                }
                Ok(_) => tracing::warn!("group {group}: the copy of the superblock is another filesystem's"),
                Err(e) => tracing::warn!("group {group}: the copy of the superblock is damaged: {e}"),
            }
        }
        Ok(self.device.flush()?)
    }
}
