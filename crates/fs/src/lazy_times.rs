//! Times that change in memory only: access times, and the times of writes that change nothing else of an inode.
//!
//! They are written with the inode's next change, by fsync, sync, freeze and unmount, when too many inodes have such times (they
//! stay in the cache until then), and every half minute; with `lazytime` not before they are a day old.

use extant_format::Ino;
use extant_format::inode::InodeFlags;

use crate::error::Result;
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::{Inode, State};
use crate::quota::Ids;
use crate::time::atime_moves;

/// How many inodes may have times that changed in memory only.
const MOST_DIRTY_TIMES: usize = 4096;
/// `lazytime`: seconds after which times are written all the same.
const LAZY_SECONDS: i64 = 24 * 60 * 60;
/// Inodes in one handle.
const AT_ONCE: usize = 64;

impl State {
    /// Notes that times changed in memory; true if the inode is to be listed.
    pub(crate) fn times_changed(&mut self, now: i64) -> bool {
        if !std::mem::replace(&mut self.times_dirty, true) {
            self.times_since = now;
        }
        !std::mem::replace(&mut self.times_listed, true)
    }
}

impl Filesystem {
    /// Moves the access time after a read, in memory.
    pub(crate) fn touch_atime(&self, inode: &InodeRef) {
        if self.mode() != Mode::ReadWrite {
            return;
        }
        let options = self.options();
        let now = self.now();
        let mut state = inode.state();
        let raw = &state.raw;
        if raw.flags.contains(InodeFlags::NOATIME) || (inode.is_dir() && options.given.nodiratime) {
            return;
        }
        if atime_moves(options.given.atime, raw.atime, raw.mtime, raw.ctime, now) {
            state.raw.atime = now;
            let unlisted = state.times_changed(now.sec);
            drop(state);
            if unlisted {
                self.remember_times(inode.ino());
            }
        }
    }

    /// Moves mtime and ctime after a write, in memory.
    pub(crate) fn touch_written(&self, inode: &Inode) {
        let now = self.now();
        let unlisted = {
            let mut state = inode.state();
            state.raw.mtime = now;
            state.raw.ctime = now;
            state.raw.version = state.raw.version.wrapping_add(1);
            state.times_changed(now.sec)
        };
        if unlisted {
            self.remember_times(inode.ino);
        }
    }

    /// Notes an inode whose times are to be written later. The list holds numbers, not references: a dead inode must not
    /// wait for it.
    fn remember_times(&self, ino: Ino) {
        let many = {
            let mut list = self.dirty_times.lock();
            list.push(ino);
            list.len() >= MOST_DIRTY_TIMES
        };
        // Inodes with unwritten times stay in the cache, so there must not be too many of them. A reader of a frozen
        // filesystem neither writes nor waits.
        if many
            && let Some(_pass) = self.gate.try_enter(Level::Internal)
            && let Err(e) = self.flush_times()
        {
            tracing::warn!("access times: {e}");
        }
    }

    /// Writes all times that changed in memory only. The caller is inside the freeze gate, or has closed it. Nothing where it has been
    /// remounted for reading since: the image says that there is nothing to recover.
    pub(crate) fn flush_times(&self) -> Result<()> {
        if self.mode() != Mode::ReadWrite {
            return Ok(());
        }
        // Who flushes waits for the flush that has taken the list.
        let _flushing = self.mount.flushing_times.lock();
        let listed = std::mem::take(&mut *self.dirty_times.lock());
        self.write_times(&listed)
    }

    /// Writes those whose time has come; as [`Self::flush_times`].
    pub(crate) fn flush_times_due(&self) -> Result<()> {
        if !self.options().given.lazytime || self.mode() != Mode::ReadWrite {
            return self.flush_times();
        }
        let _flushing = self.mount.flushing_times.lock();
        let until = self.clock.now().sec.saturating_sub(LAZY_SECONDS);
        // Not looked at under the list's lock, a leaf as an inode's state is.
        let mut due = self.dirty_times.lock().clone();
        let seen = due.len();
        let later: Vec<Ino> = due.extract_if(.., |ino| self.times_later(*ino, until)).collect();
        // Others only append: what was seen is still in front.
        self.dirty_times.lock().splice(..seen, later);
        self.write_times(&due)
    }

    /// Writes the times of the inodes in `listed`, which are off the list; they go back on it, all of those that are left, if
    /// something fails.
    fn write_times(&self, listed: &[Ino]) -> Result<()> {
        // Each owner's quota is a block more.
        let at_once = if self.has_quotas() { AT_ONCE / 8 } else { AT_ONCE };
        for (n, some) in listed.chunks(at_once).enumerate() {
            let due: Vec<InodeRef> = some.iter().filter_map(|ino| self.times_due(*ino)).collect();
            if let Err(e) = self.write_times_of(&due) {
                // Not under the list's lock, a leaf as an inode's state is.
                let again: Vec<Ino> =
                    due.iter().filter(|inode| inode.state().relisted()).map(|inode| inode.ino).collect();
                let mut list = self.dirty_times.lock();
                list.extend(again);
                list.extend_from_slice(&listed[((n + 1) * at_once).min(listed.len())..]);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes the times of an inode that changed in memory only; as [`Self::flush_times`].
    pub(crate) fn write_own_times(&self, inode: &Inode) -> Result<()> {
        if !inode.state().times_dirty || self.mode() != Mode::ReadWrite {
            return Ok(());
        }
        let mut handle = self.start_data(inode, 1)?;
        self.write_inode_times(&mut handle, inode)?;
        self.record_with(&mut handle)?;
        let tid = handle.finish()?;
        inode.note_tid(tid, false);
        Ok(())
    }

    /// Whether the times of a listed inode changed after second `until`.
    fn times_later(&self, ino: Ino, until: i64) -> bool {
        let Some(inode) = self.icache.cached(ino) else { return false };
        let state = inode.state();
        state.times_dirty && state.times_since > until
    }

    /// An inode that was taken off the list, if it has times to be written.
    fn times_due(&self, ino: Ino) -> Option<InodeRef> {
        let inode = self.icache.cached(ino)?;
        let dirty = {
            let mut state = inode.state();
            state.times_listed = false;
            state.times_dirty
        };
        dirty.then_some(inode)
    }

    fn write_times_of(&self, inodes: &[InodeRef]) -> Result<()> {
        if inodes.is_empty() {
            return Ok(());
        }
        let owners: Vec<Ids> = inodes.iter().map(|inode| Self::quota_ids(inode)).collect();
        let mut handle = self.start(&owners, inodes.len() as u32)?;
        for inode in inodes {
            if inode.state().times_dirty {
                self.write_inode_times(&mut handle, inode)?;
            }
        }
        handle.finish()?;
        Ok(())
    }
}

impl State {
    /// Whether the inode, which could not be written, has to be listed again; it is then.
    fn relisted(&mut self) -> bool {
        self.times_dirty && !std::mem::replace(&mut self.times_listed, true)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
