//! Freeing inodes that have no names and no users any more, and finishing truncations.

use std::ops::Range;

use extant_alloc::Reservation;
use extant_format::Lblk;
use extant_format::inode::{FileType, InodeFlags};
use extant_journal::Handle;

use crate::credits::ORPHAN;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;

impl Filesystem {
    /// Frees a dead inode that nobody refers to: its blocks, its attributes, its number. Called by the evictor. What
    /// cannot be freed stays recorded as an orphan for the next mount.
    pub(crate) fn evict(&self, inode: &Inode) {
        let _pass = self.gate.enter(Level::Internal);
        if self.is_read_only() {
            // Nothing can be freed any more, but what the page cache still lists would keep the device open.
            self.drop_data(inode);
            return;
        }
        if let Err(e) = self.noted(self.free_inode(inode)) {
            tracing::error!("inode {} could not be freed: {e}", inode.ino);
        }
    }

    /// Frees the next dead inode of the queue; false if there is none.
    pub(crate) fn evict_next(&self) -> bool {
        let cache = &self.icache;
        let Some(inode) = cache.begin_eviction() else { return false };
        self.evict(&inode);
        let ino = inode.ino;
        drop(inode);
        cache.evicted(ino);
        cache.end_eviction();
        true
    }

    /// The same for an orphan found at mount, before the threads run.
    pub(crate) fn evict_orphan(&self, inode: InodeRef) {
        drop(inode);
        let queued: Vec<_> = self.icache.queue.lock().dead.drain(..).collect();
        for inode in queued {
            self.evict(&inode);
            let ino = inode.ino;
            drop(inode);
            self.icache.evicted(ino);
        }
    }

    /// Frees dead inodes that somebody still refers to: at unmount, after which such references only answer `Shutdown`.
    pub(crate) fn evict_all_dead(&self) {
        for inode in self.icache.take_dead() {
            self.evict(&inode);
            self.icache.evicted(inode.ino);
        }
    }

    fn free_inode(&self, inode: &Inode) -> Result<()> {
        self.drop_data(inode);
        let shown = inode.data.get().is_some_and(|data| data.pages.has_shown());
        if inode.is_regular() && (shown || self.pages.has_shown(inode.ino.0.into())) {
            // Of mappings that it had.
            let data = inode.data(self);
            data.pages.hold_shown(&data.pages.exclusive(), &**data, &(0..u64::MAX))?;
        }
        let credits = self.removal_credits(inode) + self.end_credits();
        let mut handle = self.start_data(inode, credits)?;
        let done = self.free_inode_in(&mut handle, inode);
        self.finish(handle, done, inode)
    }

    /// The same in a handle. What went before an error is whole (it is kept if the handle is dropped), and the inode still an
    /// orphan.
    pub(crate) fn free_inode_in(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        // As the kernel does: by the count, most of what is made and removed at once has no block.
        if self.has_map(inode) && inode.state().raw.blocks != 0 {
            self.remove_blocks(handle, inode, Lblk(0))?;
        }
        self.shed_values(handle, inode)?;
        handle.ensure(self.end_credits())?;
        let table = self.cache.read(inode.table.0)?;
        let _number = self.alloc.prepare_free_inode(inode.ino)?;
        self.xattr_free_all(handle, inode)?;
        self.orphan_del(handle, inode)?;
        // Before the flag goes by which a value's inode is known not to be counted.
        let counted = self.is_counted(inode);
        {
            let mut state = inode.state();
            state.size = 0;
            state.raw.size = 0;
            state.raw.dtime = self.clock.now().sec as u32;
            state.raw.flags.remove(InodeFlags::EA_INODE);
        }
        if counted {
            self.write_inode_to(handle, inode, &table)?;
            self.quota_gone(handle, inode)?;
        } else {
            self.write_inode_uncounted(handle, inode, &table)?;
        }
        // The number may be loaded again from here on: before it can be allocated.
        self.icache.evicted(inode.ino);
        self.alloc.free_inode(handle, inode.ino, inode.is_dir())?;
        Ok(())
    }

    /// Whether `i_block` is a block map.
    pub(crate) fn has_map(&self, inode: &Inode) -> bool {
        let state = inode.state();
        match inode.kind {
            FileType::Regular | FileType::Directory => !state.raw.has_inline_data(),
            FileType::Symlink => !state.raw.has_inline_data() && !state.raw.is_fast_symlink(),
            _ => false,
        }
    }

    /// Makes a hole of everything from block `from`, over several transactions if it takes them. The inode must be an
    /// orphan, or be dropped wholly in this handle. Nothing above rank 60 is held. Credits: [`Filesystem::removal_credits`].
    ///
    /// What was removed before an error is whole: it is kept if the handle is dropped.
    pub(crate) fn remove_blocks(&self, handle: &mut Handle, inode: &Inode, from: Lblk) -> Result<()> {
        let mut spare = self.alloc.no_reservation(extant_alloc::Privilege::Pool);
        self.remove_range(handle, inode, from..Lblk(u32::MAX), &mut spare)
    }

    /// The same for a range; what splitting an extent takes comes out of `spare`.
    pub(crate) fn remove_range(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        range: Range<Lblk>,
        spare: &mut Reservation,
    ) -> Result<()> {
        let credits = self.removal_credits(inode);
        self.remove_range_keeping(handle, inode, range, spare, (self.inode_credits(), credits))
    }

    /// The same, with `keep` credits left in the handle for what comes after (those of the inode among them); a restart gets `credits`.
    pub(crate) fn remove_range_keeping(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        range: Range<Lblk>,
        spare: &mut Reservation,
        (keep, credits): (u32, u32),
    ) -> Result<()> {
        inode.window.release();
        let content = self.content_of(inode);
        let table = self.cache.read(inode.table.0)?;
        let Range { start, mut end } = range;
        loop {
            let left = {
                let mut i_block = inode.map.write();
                let mut map = inode.map_mut(&mut i_block);
                let removed = self.map.remove(handle, &mut map, start..end, content, keep, spare)?;
                self.map_changed(inode, &i_block, removed.delta.total());
                removed.left
            };
            self.write_inode_to(handle, inode, &table)?;
            handle.keep();
            match left {
                None => return Ok(()),
                Some(left) => end = left,
            }
            self.record_with(handle)?;
            // A split on the way may have made the tree deeper.
            handle.restart(credits.max(self.removal_credits(inode)))?;
        }
    }

    /// Frees what lies past i_size of a file whose truncation was interrupted, and takes it off the orphans; but not if the device
    /// refuses the rest of the last block, which is for the next mount to zero then.
    pub(crate) fn finish_truncate(&self, inode: &Inode) -> Result<()> {
        // Who makes a filesystem writable that was not is beside writers already.
        let _lock = inode.lock.write();
        let size = inode.size();
        let (mut owed, mut written_to) = (false, false);
        let data = inode.is_regular().then(|| inode.data(self));
        let _guard = data.map(|data| data.pages.exclusive());
        if self.check_content(inode).is_ok() && self.has_map(inode) {
            // Whoever was interrupted may have zeroed the rest of the last block, or not.
            let data = inode.data(self);
            data.pages.note_stores(&**data);
            written_to = data.pages.is_dirty();
            let zeroed = data.pages.zero_tail(&**data, size);
            match zeroed.and_then(|()| data.pages.sync(&**data, size.saturating_sub(1)..size)) {
                Err(e @ Error::Io(_)) if !self.journal.is_aborted() => {
                    tracing::error!(
                        "inode {} stays an orphan, its last block cannot be zeroed: {e}",
                        inode.ino
                    );
                    // Nothing but the zeros is lost of it, which are the next mount's to write, or whose that lets the file grow: who
                    // unmounts, remounts or freezes is not told of what nobody has written.
                    if !written_to {
                        data.pages.drop_all(&**data);
                    }
                    owed = true;
                }
                done => done?,
            }
        }
        let mut handle = self.start_data(inode, self.removal_credits(inode))?;
        let done = (|| {
            if self.has_map(inode) {
                let blocks = size.div_ceil(u64::from(self.geo.block_size()));
                if let Ok(from) = u32::try_from(blocks) {
                    self.remove_blocks(&mut handle, inode, Lblk(from))?;
                }
            }
            if owed && written_to {
                return self.tail_owed(&mut handle, inode);
            }
            if owed {
                handle.ensure(self.inode_credits())?;
                return self.write_inode(&mut handle, inode);
            }
            self.truncated(&mut handle, inode)
        })();
        self.finish(handle, done, inode)
    }

    /// Ends a truncation: nothing lies past i_size.
    pub(crate) fn truncated(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        handle.ensure(ORPHAN + self.inode_credits())?;
        let table = self.cache.read(inode.table.0)?;
        self.orphan_del(handle, inode)?;
        self.write_inode_to(handle, inode, &table)
    }

    /// Ends a truncation after which the device did not take the zeros behind the new end: they are in the cache, dirty. Until they are
    /// written the file stays among the orphans, so that the next mount, whoever's, writes them if this one cannot.
    pub(crate) fn tail_owed(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        self.owed_tails.lock().push(inode.ino);
        handle.ensure(self.inode_credits())?;
        self.write_inode(handle, inode)
    }

    /// After content was written: takes files whose zeros are on the device off the orphans. The others stay noted, and those that
    /// somebody has locked: they may be cut at the moment.
    pub(crate) fn settle_tails(&self) -> Result<()> {
        let owed = std::mem::take(&mut *self.owed_tails.lock());
        let mut done = Ok(());
        for ino in owed {
            // One that is gone, or going, was or is an orphan for that; so is a nameless one that has got its number since.
            let Ok(inode) = self.iget(ino) else { continue };
            let lock = inode.lock.try_write().filter(|_| done.is_ok() && !inode.has_dirty_data());
            if lock.is_none() {
                self.owed_tails.lock().push(ino);
            } else if !inode.is_dead() && inode.state().raw.links_count > 0 {
                done = self.start_data(&inode, ORPHAN + self.inode_credits()).and_then(|mut handle| {
                    let settled = self.truncated(&mut handle, &inode);
                    self.finish(handle, settled, &inode)
                });
                if done.is_err() {
                    self.owed_tails.lock().push(ino);
                }
            }
        }
        done
    }
}
