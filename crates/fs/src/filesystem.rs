//! The mounted filesystem: what all parts share.

use std::sync::{Arc, Weak};

use extant_alloc::{Allocator, Privilege, Reservation};
use extant_device::BlockDevice;
use extant_format::dir::DirLayout;
use extant_format::hash::HashVersion;
use extant_format::inode::InodeFormat;
use extant_format::{Compat, Csum, Features, Geometry, Incompat, Ino, Lblk, Pblk, RoCompat, Superblock, Tid};
use extant_journal::{BlockCache, Buf, Handle, Journal};
use extant_map::{Extent, MapFs, MapKind, Run, StatusBudget};
use extant_sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use extant_sync::{Mutex, Rank, RwLock};
use extant_vm::{PageCache, SpaceHope, SpaceWait};

use crate::cred::{Caps, Credentials};
use crate::error::{CorruptKind, Error, Place, Result};
use crate::freeze::{Gate, Level, Pass};
use crate::icache::{InodeCache, InodeRef};
use crate::inode::Inode;
use crate::options::{DataMode, Resolved};
use crate::orphan::Orphans;
use crate::time::Clock;
use crate::xattr::{SharedBlocks, SharedValues};

/// What state the mount is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Reading and writing.
    ReadWrite = 0,
    /// Reading only.
    ReadOnly = 1,
    /// Nothing is written any more, whatever is asked: shut down, or stopped by an error.
    Shutdown = 2,
    /// Unmounted.
    Closed = 3,
}

/// A mounted ext2, ext3 or ext4 filesystem. See the crate's documentation.
pub struct Filesystem {
    pub(crate) this: Weak<Self>,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Nothing may be written to the device (or to the overlay over it).
    pub(crate) dev_read_only: bool,
    pub(crate) geo: Geometry,
    pub(crate) csum: Csum,
    pub(crate) features: Features,
    pub(crate) inode_format: InodeFormat,
    /// How directory blocks are laid out.
    pub(crate) layout: DirLayout,
    pub(crate) hash_version: HashVersion,
    pub(crate) hash_unsigned: bool,
    pub(crate) hash_seed: [u32; 4],
    /// `i_extra_isize` of new inodes.
    pub(crate) want_extra_isize: u16,
    /// The superblock as it will next be written.
    pub(crate) sb: Mutex<Superblock>,
    pub(crate) sb_buf: Buf,
    /// Clusters that the filesystem's own structures take, for statfs.
    pub(crate) overhead: u64,
    pub(crate) options: RwLock<Arc<Resolved>>,
    /// `data=`; it does not change while mounted.
    pub(crate) data_mode: DataMode,
    pub(crate) cache: Arc<BlockCache>,
    /// Content of regular files.
    pub(crate) pages: Arc<PageCache>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) alloc: Arc<Allocator>,
    pub(crate) map: Arc<MapFs>,
    /// Entries that the extent caches of all inodes may have together.
    pub(crate) status_budget: Arc<StatusBudget>,
    /// First block of each group's inode table; it never changes.
    pub(crate) itables: Box<[Pblk]>,
    pub(crate) icache: Arc<InodeCache>,
    pub(crate) orphans: Orphans,
    /// Set by a mount for writing, where the filesystem has quota files.
    pub(crate) quotas: std::sync::OnceLock<crate::quota::Quotas>,
    pub(crate) shared_blocks: SharedBlocks,
    pub(crate) shared_values: SharedValues,
    pub(crate) lazy_init: crate::lazy_init::LazyInit,
    pub(crate) late_features: crate::late_features::LateFeatures,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) gate: Gate,
    /// What mapped files need.
    pub(crate) maps: crate::mapping::Maps,
    /// Rank 15: renames between directories.
    pub(crate) rename_lock: Mutex<()>,
    pub(crate) mode: AtomicU8,
    /// Damage was found since the mount.
    pub(crate) saw_errors: AtomicBool,
    /// See [`Filesystem::on_panic`].
    pub(crate) on_panic: std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Inodes whose times changed in memory only.
    pub(crate) dirty_times: Mutex<Vec<Ino>>,
    /// Files that were cut, and whose zeros behind the new end the device has not taken yet.
    pub(crate) owed_tails: Mutex<Vec<Ino>>,
    /// Source of generation numbers.
    pub(crate) next_generation: AtomicU32,
    pub(crate) mount: crate::mount::MountState,
    /// The guard that a schedule test takes away.
    #[cfg(feature = "shuttle")]
    pub(crate) mutant: crate::Mutant,
}

impl std::fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem").field("mode", &self.mode()).finish_non_exhaustive()
    }
}

macro_rules! has {
    ($($(#[$doc:meta])* $name:ident: $set:ident $bit:expr;)+) => {
        impl Filesystem {
            $($(#[$doc])* pub(crate) fn $name(&self) -> bool { self.features.$set.contains($bit) })+
        }
    };
}
has! {
    has_extents: incompat Incompat::EXTENTS;
    has_inline_data: incompat Incompat::INLINE_DATA;
    has_large_dir: incompat Incompat::LARGEDIR;
    has_ea_inode: incompat Incompat::EA_INODE;
    has_casefold: incompat Incompat::CASEFOLD;
    has_dir_index: compat Compat::DIR_INDEX;
    has_dir_nlink: ro_compat RoCompat::DIR_NLINK;
    has_project: ro_compat RoCompat::PROJECT;
}

impl Filesystem {
    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            0 => Mode::ReadWrite,
            1 => Mode::ReadOnly,
            2 => Mode::Shutdown,
            _ => Mode::Closed,
        }
    }

    /// Changes the mode to one that forbids more, unless it is forbidden already.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.fetch_max(mode as u8, Ordering::AcqRel);
    }

    /// From read-only to read-write: the only mode that is ever taken back.
    ///
    /// # Errors
    /// `Shutdown`: it was stopped meanwhile.
    pub(crate) fn turn_writable(&self) -> Result<()> {
        let (from, to) = (Mode::ReadOnly as u8, Mode::ReadWrite as u8);
        let turned = self.mode.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        turned.map(drop).map_err(|_| Error::Shutdown)
    }

    /// Whether nothing can be changed (read-only, or stopped).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.mode() != Mode::ReadWrite
    }

    /// The options that the mount runs with.
    #[must_use]
    pub fn options(&self) -> Arc<Resolved> {
        Arc::clone(&self.options.read())
    }

    /// The geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// The superblock as it is now in memory.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.sb.lock().clone()
    }

    /// The features of the filesystem.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Refuses everything after a shutdown.
    /// Whether it was shut down, by [`Filesystem::shutdown`] or for damage, and not unmounted yet.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.mode() == Mode::Shutdown
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.mode() {
            Mode::Shutdown | Mode::Closed => Err(Error::Shutdown),
            _ => Ok(()),
        }
    }

    /// Begins a change by a caller: waits for a thaw (rank 10), and refuses on a read-only mount.
    pub(crate) fn begin_write(&self) -> Result<Pass<'_>> {
        let pass = self.gate.enter(Level::Write);
        self.check_alive()?;
        if self.mode() == Mode::ReadOnly {
            return Err(Error::ReadOnly);
        }
        if self.journal.is_aborted() {
            return Err(Error::Shutdown);
        }
        Ok(pass)
    }

    /// Passes a result on; damage in it goes through the choke point of `errors=` first.
    pub(crate) fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(e) = &result
            && e.is_corruption()
        {
            self.on_damage(e);
        }
        result
    }

    /// Ends a handle: finished if all went well, dropped (which aborts the journal if it has changed anything) if not.
    pub(crate) fn finish<T>(&self, mut handle: Handle, done: Result<T>, inode: &Inode) -> Result<T> {
        match done {
            Ok(value) => {
                self.record_with(&mut handle)?;
                let tid = handle.finish()?;
                inode.note_tid(tid, true);
                Ok(value)
            }
            Err(e) => {
                drop(handle);
                Err(e)
            }
        }
    }

    /// After an operation whose locks are gone: waits for its commit where the mount or an inode wants that.
    pub(crate) fn settle(&self, tid: Tid, sync: bool) -> Result<()> {
        if sync {
            self.journal.wait_commit(tid)?;
        }
        Ok(())
    }

    /// Runs a change; if space runs out, once more after what was freed lately has been committed, and whenever blocks that were held
    /// can be used.
    pub(crate) fn with_space<T>(&self, change: impl Fn() -> Result<T>) -> Result<T> {
        let mut result = change();
        if matches!(result, Err(Error::NoSpace | Error::NoInodes)) {
            let mut wait = SpaceWait::default();
            wait.begin(&self.pages);
            self.make_space()?;
            result = change();
            while matches!(result, Err(Error::NoSpace))
                && self.await_space(&mut wait, true)? == SpaceHope::Again
            {
                result = change();
            }
        }
        result
    }

    /// Before ENOSPC is believed: gives back what dirty data was promised for the worst case and does not need once it has its
    /// place, and makes freed blocks usable. Nothing is held.
    pub(crate) fn make_space(&self) -> Result<()> {
        self.icache.wait_evicted();
        // Inodes of a table that is being zeroed cannot be had.
        self.lazy_init.wait_idle();
        // A failure is remembered for the file that it concerns.
        let _ = self.write_back_all();
        self.journal.commit_all()?;
        self.pages.end_grace();
        Ok(())
    }

    /// After [`Self::make_space`], for who has found no space: whether some of the blocks that mappings showed can be used since, or will be;
    /// with `stay` that is waited for, for as long as they are held at most. Nothing is held.
    pub(crate) fn await_space(&self, wait: &mut SpaceWait, stay: bool) -> Result<SpaceHope> {
        let hope = match stay {
            true if self.pages.await_grace(wait) => SpaceHope::Again,
            true => SpaceHope::None,
            false => self.pages.hope_for_space(wait),
        };
        if hope == SpaceHope::Again {
            // What was freed and let go of meanwhile is used again once that is durable.
            self.journal.commit_all()?;
        }
        Ok(hope)
    }

    /// The rights to space of a caller.
    pub(crate) fn privilege(&self, cred: &Credentials) -> Privilege {
        let options = self.options();
        let reserved = cred.has(Caps::SYS_RESOURCE)
            || cred.uid == options.resuid
            || (options.resgid != 0 && cred.in_group(options.resgid));
        if reserved { Privilege::Reserved } else { Privilege::Normal }
    }

    /// Promises `blocks` blocks (as many clusters: each may need its own) that the map of `inode`, or of a new inode beside it, can
    /// name.
    pub(crate) fn reserve(&self, inode: &Inode, blocks: u64, cred: &Credentials) -> Result<Reservation> {
        let (privilege, reach) = (self.privilege(cred), self.reach(inode));
        if blocks == 0 {
            return Ok(self.alloc.no_reservation_below(privilege, reach));
        }
        // Each block may also need a tree block of its own in the worst case.
        Ok(self.alloc.reserve_below(blocks, blocks, privilege, reach)?)
    }

    /// Where the blocks of an inode must end, and those of new inodes.
    pub(crate) fn reach(&self, inode: &Inode) -> u64 {
        // What leaves its inode gets extents where there are some.
        let kind = if self.is_inline(inode) { MapKind::Extents } else { inode.map_kind() };
        if self.has_extents() { MapFs::reach(kind) } else { MapFs::reach(MapKind::Indirect) }
    }

    /// Adds a metadata block (of a directory, a symbolic link, an attribute value) to an inode's map at `lblk`, zeroed. The
    /// caller writes the inode.
    pub(crate) fn add_meta_block(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        lblk: Lblk,
        blocks: &mut Reservation,
    ) -> Result<Buf> {
        let goal = self.meta_goal(inode, lblk)?;
        let pblk = self.map_new_block(handle, inode, lblk, goal, blocks)?;
        Ok(handle.create(pblk)?)
    }

    pub(crate) fn meta_goal(&self, inode: &Inode, lblk: Lblk) -> Result<Pblk> {
        if let Some(before) = lblk.0.checked_sub(1)
            && let Run::Mapped { pblk, .. } = self.map_lookup(inode, Lblk(before), 1)?
        {
            return Ok(Pblk(pblk.0 + 1));
        }
        Ok(self.alloc.goal_for_inode(inode.ino, false))
    }

    /// Maps block `lblk` of `inode` to a newly claimed block.
    fn map_new_block(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        lblk: Lblk,
        goal: Pblk,
        blocks: &mut Reservation,
    ) -> Result<Pblk> {
        let request = extant_alloc::ClaimRequest::plain(goal, lblk, 1).below(MapFs::reach(inode.map_kind()));
        let mut i_block = inode.map.write();
        if let Some(pblk) = self.map.implied(&inode.map_ref(&i_block), lblk)? {
            let extent = Extent { lblk, len: 1, pblk, unwritten: false };
            let delta = self.map.insert(handle, &mut inode.map_mut(&mut i_block), extent, blocks)?;
            self.map_changed(inode, &i_block, delta.total());
            return Ok(pblk);
        }
        let mut claim = self.alloc.claim_held(&request, blocks)?;
        let pblk = claim.pblk();
        self.alloc.publish(handle, &mut claim, 1)?;
        let extent = Extent { lblk, len: 1, pblk, unwritten: false };
        let delta = self.map.insert(handle, &mut inode.map_mut(&mut i_block), extent, blocks)?;
        self.map_changed(inode, &i_block, delta.total());
        Ok(pblk)
    }

    /// Writes the superblock as it is in memory into the journal. One credit.
    pub(crate) fn write_super(
        &self,
        handle: &mut Handle,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<()> {
        let at = self.sb_offset();
        handle.modify(&self.sb_buf, |bytes| {
            let mut sb = self.sb.lock();
            change(&mut sb);
            let encoded = sb.encode_over(&bytes[at..at + 1024]);
            bytes[at..at + 1024].copy_from_slice(&encoded);
        })?;
        Ok(())
    }

    /// Where the superblock begins in its block.
    pub(crate) fn sb_offset(&self) -> usize {
        if self.geo.block_size() == 1024 { 0 } else { 1024 }
    }

    /// Inodes that only the filesystem itself uses and no name may lead to.
    pub(crate) fn is_system_inode(&self, ino: Ino) -> bool {
        let sb = self.sb.lock();
        sb.journal_inode() == Some(ino)
            || sb.orphan_file() == Some(ino)
            || sb.quota_inodes().contains(&Some(ino))
    }

    /// The root directory.
    ///
    /// # Errors
    /// Damage.
    pub fn root(&self) -> Result<InodeRef> {
        let root = self.iget(Ino::ROOT).map_err(|e| match e {
            Error::Stale => Error::corrupt(Place::Inode(Ino::ROOT), CorruptKind::DeadInode(Ino::ROOT)),
            e => e,
        });
        let root = self.noted(root)?;
        if root.is_dir() { Ok(root) } else { Err(Error::bad_inode(Ino::ROOT, "i_mode", 0)) }
    }

    /// The inode of that number, if it is in use and one that names may lead to.
    ///
    /// # Errors
    /// `Stale`; damage.
    pub fn inode(&self, ino: Ino) -> Result<InodeRef> {
        self.check_alive()?;
        let ordinary = ino == Ino::ROOT || (ino >= self.geo.first_ino() && ino.0 <= self.geo.inodes_count());
        if !ordinary || self.is_system_inode(ino) {
            return Err(Error::Stale);
        }
        self.noted(self.iget(ino))
    }

    /// The same, if its generation is still that one.
    ///
    /// # Errors
    /// `Stale`; damage.
    pub fn inode_generation(&self, ino: Ino, generation: u32) -> Result<InodeRef> {
        let inode = self.inode(ino)?;
        if inode.attr().generation == generation { Ok(inode) } else { Err(Error::Stale) }
    }
}

/// The rename lock's making, here so that the rank is next to the field.
pub(crate) fn rename_lock() -> Mutex<()> {
    Mutex::new(Rank::RENAME, ())
}
