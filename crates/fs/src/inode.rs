//! The in-core inode: attributes, locks, map; reading it from and writing it to the inode table.
//!
//! # Locks
//! | field | protected by |
//! |---|---|
//! | names in a directory, size changes, attribute changes | [`Inode::lock`] (rank 20), shared to look names up |
//! | extended attributes, inline data | [`Inode::xattr`] (rank 70) |
//! | the block map in `i_block` | [`Inode::map`] (rank 80); a copy is in the attributes |
//! | each attribute by itself | [`Inode::state`] (leaf), so that `stat` takes no inode lock |
//!
//! An inode is encoded into its table block from the attributes while the buffer is being changed (rank 100), so that of two
//! writers the later one always stores the later state.

use std::sync::{Arc, OnceLock, Weak};

use extant_alloc::InodeWindow;
use extant_format::inode::{FileType, I_BLOCK_SIZE, Inode as RawInode, InodeFlags, Timestamp};
use extant_format::{Ino, Lblk, Pblk};
use extant_journal::{Buf, Handle, WriteOrder};
use extant_map::{ExtentStatus, MapKind, MapMut, MapRef, Run};
use extant_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use extant_sync::{Mutex, MutexGuard, Rank, RwLock};

use crate::data::FileData;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::{InodeCache, InodeRef};

/// Attributes of an inode. `raw.size` is i_disksize, what the journal knows; `size` is i_size, what the file has.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The fields as they are stored.
    pub(crate) raw: RawInode,
    /// i_size.
    pub(crate) size: u64,
    /// Blocks that content in memory will take, whole clusters: those reserved for it that `raw.blocks` does not have yet.
    pub(crate) delayed: u32,
    /// Times changed in memory only (access times, lazytime), still to be written.
    pub(crate) times_dirty: bool,
    /// Since which second they are so.
    pub(crate) times_since: i64,
    /// Listed among the inodes with such times.
    pub(crate) times_listed: bool,
}

/// An inode in memory. Reached through [`InodeRef`].
///
/// What a lookup touches stands first, in the cache line of the counts of its `Arc`: with ten thousand inodes in turn each line is one that has
/// to be fetched.
#[repr(C)]
pub struct Inode {
    pub(crate) refs: AtomicU64,
    pub(crate) referenced: AtomicBool,
    /// No links: the last reference evicts.
    dead: AtomicBool,
    /// With `dax_switch=deferred`: the mode that the file is in may not be the one that its flags ask for.
    pub(crate) mode_due: AtomicBool,
    /// Made without a name (O_TMPFILE): may be linked although it has none.
    linkable: AtomicBool,
    pub(crate) kind: FileType,
    pub(crate) ino: Ino,
    pub(crate) generation: u32,
    state: Mutex<State>,
    /// The table block and the byte in it.
    pub(crate) table: (Pblk, usize),
    /// Seed of the checksums of what belongs to this inode.
    pub(crate) csum_seed: u32,
    /// The inode lock, rank 20.
    pub(crate) lock: RwLock<()>,
    /// xattr and inline-data lock, rank 70.
    pub(crate) xattr: RwLock<()>,
    /// `i_block` as a block map, rank 80.
    pub(crate) map: RwLock<[u8; I_BLOCK_SIZE]>,
    /// Extents seen lately.
    pub(crate) es: ExtentStatus,
    /// Blocks set aside for this inode's growth.
    pub(crate) window: InodeWindow,
    /// What the quota files count for it, rank 82.
    pub(crate) counted: Mutex<crate::quota::Counted>,
    /// Attribute values that are in inodes of their own. Kept where quota counts them; changed under the xattr lock.
    pub(crate) ea_values: AtomicU32,
    /// Emptied since it was opened: what was written is published at the next close (`auto_da_alloc`).
    pub(crate) publish_at_close: AtomicBool,
    /// Who has it open; a mapping counts as one.
    pub(crate) openers: AtomicU32,
    /// Set where eviction may change the image.
    evictable: AtomicBool,
    /// Transaction that last changed this inode, and that last changed more than its times; the one that ran
    /// when it was read if there was none since.
    pub(crate) sync_tid: AtomicU32,
    pub(crate) datasync_tid: AtomicU32,
    /// The parent of a directory that is leaving its inode for a block: for who looks without its lock, while neither has it. 0: it is
    /// not leaving.
    leaving: AtomicU32,
    /// It was said that the hash tree is damaged.
    pub(crate) index_warned: AtomicBool,
    /// Looked for ACLs and found none (cleared by whoever stores one).
    pub(crate) no_acl: AtomicBool,
    /// Looked for file capabilities and found none (cleared by whoever stores an attribute of that namespace).
    pub(crate) no_file_caps: AtomicBool,
    /// Block size of the filesystem.
    pub(crate) block_size: u32,
    pub(crate) cache: Weak<InodeCache>,
    /// This inode, once it is in the cache.
    pub(crate) this: OnceLock<Weak<Inode>>,
    /// Content of a regular file in memory, once it was read or written.
    pub(crate) data: OnceLock<Arc<FileData>>,
}

/// See [`Inode::leave`].
pub(crate) struct Leaving<'a>(&'a Inode);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leaving.store(0, Ordering::Release);
    }
}

impl Inode {
    /// The inode's number.
    #[must_use]
    pub const fn ino(&self) -> Ino {
        self.ino
    }

    /// The inode's generation: number and generation together are never used twice, unless somebody sets one
    /// ([`Filesystem::set_generation`]). It stays the same while the inode is in memory; `Attr` has what is stored.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The inode's type.
    #[must_use]
    pub const fn kind(&self) -> FileType {
        self.kind
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.kind == FileType::Regular
    }

    /// Whether no name leads to it any more.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn set_dead(&self, dead: bool) {
        self.dead.store(dead, Ordering::Release);
    }

    /// The parent of a directory that is leaving its inode at the moment, see the field.
    pub(crate) fn leaving(&self) -> Option<Ino> {
        let parent = self.leaving.load(Ordering::Acquire);
        (parent != 0).then_some(Ino(parent))
    }

    /// As long as the guard lives the directory, whose lock the caller holds exclusively, is on its way from the inode to a block.
    pub(crate) fn leave(&self, parent: Ino) -> Leaving<'_> {
        self.leaving.store(parent.0, Ordering::Release);
        Leaving(self)
    }

    pub(crate) fn is_linkable(&self) -> bool {
        self.linkable.load(Ordering::Relaxed)
    }

    pub(crate) fn set_linkable(&self) {
        self.linkable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn may_evict(&self) -> bool {
        self.evictable.load(Ordering::Relaxed)
    }

    /// Whether the cache must keep it although nobody refers to it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.has_dirty_data()
            || self.state().times_dirty
            || self.data.get().is_some_and(|data| data.has_memory_file())
    }

    /// The attributes; a leaf lock.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The flags.
    pub(crate) fn flags(&self) -> InodeFlags {
        self.state().raw.flags
    }

    /// i_size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Which kind of block map it has.
    pub(crate) fn map_kind(&self) -> MapKind {
        if self.flags().contains(InodeFlags::EXTENTS) { MapKind::Extents } else { MapKind::Indirect }
    }

    /// A view of the map for looking up, over a guard of [`Self::map`].
    pub(crate) fn map_ref<'a>(&'a self, i_block: &'a [u8; I_BLOCK_SIZE]) -> MapRef<'a> {
        MapRef { ino: self.ino, generation: self.generation, kind: self.map_kind(), i_block, es: &self.es }
    }

    /// A view of the map for changing it, over an exclusive guard of [`Self::map`].
    pub(crate) fn map_mut<'a>(&'a self, i_block: &'a mut [u8; I_BLOCK_SIZE]) -> MapMut<'a> {
        MapMut { ino: self.ino, generation: self.generation, kind: self.map_kind(), i_block, es: &self.es }
    }

    /// The last transaction that changed more of this inode than its times.
    pub(crate) fn datasync_tid(&self) -> extant_format::Tid {
        extant_format::Tid(self.datasync_tid.load(Ordering::Relaxed))
    }

    /// Notes that the transaction `tid` changed this inode; `data`: more than its times.
    ///
    /// The number only rises: who finished a handle of an older transaction may come here after who has changed the inode in a
    /// newer one, and fsync must wait for the newer.
    pub(crate) fn note_tid(&self, tid: extant_format::Tid, data: bool) {
        let rise = |at: &AtomicU32| {
            let newer = |old: u32| tid.is_after(extant_format::Tid(old)).then_some(tid.0);
            // Refused is fine: what is there is as new.
            let _ = at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, newer);
        };
        rise(&self.sync_tid);
        if data {
            rise(&self.datasync_tid);
        }
    }
}

impl Filesystem {
    /// The inode `ino` in use, whatever it is (reserved ones too).
    pub(crate) fn iget(&self, ino: Ino) -> Result<InodeRef> {
        if let Some(found) = self.icache.cached(ino) {
            found.referenced.store(true, Ordering::Relaxed);
            return Ok(found);
        }
        self.icache.load(ino, |cache| self.read_inode(ino, cache))
    }

    /// An inode that a directory entry leads to: an ordinary number or the root, in use.
    pub(crate) fn iget_named(&self, dir: &Inode, ino: Ino) -> Result<InodeRef> {
        let ordinary = ino == Ino::ROOT || ino >= self.geo.first_ino();
        if !ordinary || ino.0 > self.geo.inodes_count() || self.is_system_inode(ino) {
            return Err(Error::corrupt(Place::Inode(dir.ino), CorruptKind::InodeNumber(ino.0.into())));
        }
        self.iget(ino).map_err(|e| match e {
            Error::Stale => Error::corrupt(Place::Inode(dir.ino), CorruptKind::DeadInode(ino)),
            e => e,
        })
    }

    /// Where `ino` is in the inode table.
    pub(crate) fn inode_place(&self, ino: Ino) -> Result<(Pblk, usize)> {
        let at = self
            .geo
            .inode_location(ino)
            .ok_or_else(|| Error::corrupt(Place::Superblock, CorruptKind::InodeNumber(ino.0.into())))?;
        let table = self.itables.get(at.group.0 as usize).copied();
        let block = table.and_then(|t| t.checked_add(at.block.into())).filter(|b| self.geo.contains(*b));
        let block = block.ok_or_else(|| {
            Error::corrupt(
                Place::Group(at.group),
                CorruptKind::Layout("inode table outside the filesystem".into()),
            )
        })?;
        Ok((block, at.offset as usize))
    }

    fn read_inode(&self, ino: Ino, cache: Weak<InodeCache>) -> Result<Inode> {
        let table = self.inode_place(ino)?;
        let buf = self.cache.read_around(table.0, self.options().inode_readahead_blks)?;
        let raw = buf.with(|bytes| self.inode_format.read(ino, &bytes[table.1..]))?;
        // An orphan of the list keeps the next one in i_dtime, so that field says nothing here.
        if raw.links_count == 0 && (raw.mode == 0 || !self.reads_dead(ino)) {
            return Err(Error::Stale);
        }
        let kind = raw.file_type().ok_or_else(|| Error::bad_inode(ino, "i_mode", raw.mode.into()))?;
        check(ino, kind, &raw, self)?;
        let mut inode = self.build_inode(ino, kind, raw, table, cache);
        self.count_ea_values(&mut inode);
        Ok(inode)
    }

    /// An in-core inode from its fields.
    pub(crate) fn build_inode(
        &self,
        ino: Ino,
        kind: FileType,
        raw: RawInode,
        table: (Pblk, usize),
        cache: Weak<InodeCache>,
    ) -> Inode {
        Inode {
            ino,
            generation: raw.generation,
            kind,
            table,
            csum_seed: self.csum.inode_seed(ino, raw.generation),
            lock: RwLock::new(Rank::INODE, ()),
            xattr: RwLock::new(Rank::XATTR, ()),
            map: RwLock::new(Rank::EXTENT_MAP, raw.i_block),
            es: ExtentStatus::new(std::sync::Arc::clone(&self.status_budget)),
            window: InodeWindow::new(),
            dead: AtomicBool::new(raw.links_count == 0),
            linkable: AtomicBool::new(false),
            publish_at_close: AtomicBool::new(false),
            mode_due: AtomicBool::new(false),
            openers: AtomicU32::new(0),
            evictable: AtomicBool::new(!self.dev_read_only),
            refs: AtomicU64::new(0),
            referenced: AtomicBool::new(true),
            // It may have been changed in the transaction that runs and have left the cache since: fsync must wait for that.
            sync_tid: AtomicU32::new(self.journal.running_tid().0),
            datasync_tid: AtomicU32::new(self.journal.running_tid().0),
            leaving: AtomicU32::new(0),
            index_warned: AtomicBool::new(false),
            no_acl: AtomicBool::new(false),
            no_file_caps: AtomicBool::new(false),
            block_size: self.geo.block_size(),
            cache,
            counted: crate::quota::counted([raw.uid, raw.gid, raw.projid], raw.blocks, 1),
            ea_values: AtomicU32::new(0),
            this: OnceLock::new(),
            data: OnceLock::new(),
            state: Mutex::new(
                Rank::LEAF,
                State {
                    size: raw.size,
                    raw,
                    delayed: 0,
                    times_dirty: false,
                    times_since: 0,
                    times_listed: false,
                },
            ),
        }
    }

    /// Writes the inode's attributes into its table block. One credit.
    pub(crate) fn write_inode(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let buf = self.cache.read(inode.table.0)?;
        self.write_inode_to(handle, inode, &buf)
    }

    /// The same where the buffer is at hand.
    pub(crate) fn write_inode_to(&self, handle: &mut Handle, inode: &Inode, buf: &Buf) -> Result<()> {
        self.quota_settle(handle, inode)?;
        self.write_inode_uncounted(handle, inode, buf)
    }

    /// The same without a look at quota: for a change of the record alone, under locks that come after quota's.
    pub(crate) fn write_inode_uncounted(&self, handle: &mut Handle, inode: &Inode, buf: &Buf) -> Result<()> {
        self.encode_inode(handle, inode, buf)?;
        inode.note_tid(handle.tid(), true);
        Ok(())
    }

    /// [`Self::write_inode`] where nothing has changed but times: no business of fdatasync(2). Who has changed anything else meanwhile
    /// notes that himself, when he writes the inode.
    pub(crate) fn write_inode_times(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let buf = self.cache.read(inode.table.0)?;
        self.quota_settle(handle, inode)?;
        self.encode_inode(handle, inode, &buf)?;
        inode.note_tid(handle.tid(), false);
        Ok(())
    }

    fn encode_inode(&self, handle: &mut Handle, inode: &Inode, buf: &Buf) -> Result<()> {
        buf.set_order(WriteOrder::Inode);
        handle.modify(buf, |bytes| {
            let mut state = inode.state();
            state.times_dirty = false;
            self.inode_format.encode(inode.ino, &state.raw, &mut bytes[inode.table.1..])
        })??;
        Ok(())
    }

    /// Where block `lblk` of `inode` is, and how many blocks go on there or are missing there, at most `max`.
    pub(crate) fn map_lookup(&self, inode: &Inode, lblk: Lblk, max: u32) -> Result<Run> {
        if let Some(run) = inode.es.lookup(lblk, max) {
            return Ok(run);
        }
        let i_block = inode.map.read();
        Ok(self.map.lookup(&inode.map_ref(&i_block), lblk, max)?)
    }

    /// Stores the changed map of `inode` in its attributes: `delta` blocks came or went. The caller writes the inode.
    pub(crate) fn map_changed(&self, inode: &Inode, i_block: &[u8; I_BLOCK_SIZE], delta: i64) {
        self.map_published(inode, i_block, delta, 0);
    }

    /// The same where `delayed` of the blocks were counted as delayed ones: who looks sees them once.
    pub(crate) fn map_published(
        &self,
        inode: &Inode,
        i_block: &[u8; I_BLOCK_SIZE],
        delta: i64,
        delayed: u32,
    ) {
        let mut state = inode.state();
        state.raw.i_block = *i_block;
        state.delayed = state.delayed.saturating_sub(delayed);
        let sectors = delta * (i64::from(self.geo.block_size()) / 512);
        state.raw.blocks = state.raw.blocks.saturating_add_signed(sectors);
    }

    /// The present, as inodes of this filesystem can hold it.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now().clamp_to(self.inode_format.inode_size() > extant_format::inode::GOOD_OLD_INODE_SIZE)
    }

    /// Whether inodes without links are read all the same: orphans while they are being processed.
    fn reads_dead(&self, ino: Ino) -> bool {
        self.orphans.is_pending(ino)
    }
}

/// Refuses inodes whose fields contradict each other.
pub(crate) fn check(ino: Ino, kind: FileType, raw: &RawInode, fs: &Filesystem) -> Result<()> {
    let flags = raw.flags;
    if raw.file_acl.0 != 0 && !fs.geo.contains(raw.file_acl) {
        return Err(Error::bad_inode(ino, "i_file_acl", raw.file_acl.0));
    }
    if flags.contains(InodeFlags::INLINE_DATA) {
        let fits = matches!(kind, FileType::Regular | FileType::Directory | FileType::Symlink);
        if !fits || !fs.has_inline_data() || raw.size > u64::from(fs.inode_format.inode_size()) {
            return Err(Error::corrupt(
                Place::Inode(ino),
                CorruptKind::InlineData("flag on an inode that cannot have it"),
            ));
        }
    }
    if flags.contains(InodeFlags::EXTENTS) && flags.contains(InodeFlags::INLINE_DATA) {
        return Err(Error::bad_inode(ino, "i_flags", flags.bits().into()));
    }
    if kind == FileType::Directory {
        let limit = u64::from(u32::MAX) * u64::from(fs.geo.block_size());
        let odd = !raw.size.is_multiple_of(u64::from(fs.geo.block_size()))
            && !flags.contains(InodeFlags::INLINE_DATA);
        if odd || raw.size == 0 || raw.size > limit {
            return Err(Error::bad_inode(ino, "i_size of a directory", raw.size));
        }
    }
    if kind == FileType::Symlink && raw.size > u64::from(fs.geo.block_size()) {
        return Err(Error::bad_inode(ino, "i_size of a symbolic link", raw.size));
    }
    Ok(())
}
