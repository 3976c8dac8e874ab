//! The content of a regular file: its pages, what is promised to them, and how they reach the disk.
//!
//! [`FileData`] is what the page cache knows of an inode (it is its [`Host`]); made with the first read or write. Delayed blocks
//! are held by one [`Reservation`] per file: a cluster for each cluster that has delayed blocks and none in the map, and the tree
//! blocks that mapping them may need in the worst case. A run of delayed blocks is claimed, written, and published in one
//! handle with bitmap, map, `i_disksize` and the inode (claim, write, publish).
//!
//! Where data goes through the journal (`data=journal`, the flag `j`) it is not written first: the handle that publishes takes the
//! content too, as blocks of its transaction. A write does so before it returns, so what one handle takes is there after a crash
//! as a whole or not at all. Reads ask the journal for blocks that it has not written to their places; freed blocks are revoked.
//!
//! # Locks
//! `invalidate_lock` 30, the writeback gate 40 and page locks 50 are the page cache's; publication starts a handle (60), then
//! takes the block map (80). [`Promise`] is behind a leaf lock.

use std::ops::Range;

use extant_alloc::{Claim, ClaimRequest, Privilege, Reservation, ToFree};
use extant_device::MemSlice;
use extant_format::inode::InodeFlags;
use extant_format::{Ino, Lblk, Pblk, Tid};
use extant_journal::Handle;
use extant_map::{Content, Extent, MapFs, MapKind, Placement as Cluster, Run, Written};
use extant_sync::atomic::{AtomicBool, AtomicU8, Ordering};
use extant_sync::{Arc, Mutex, Rank, Weak};
use extant_vm::real::RealMmu;
use extant_vm::{AddressSpace, Backing, Host, Mapped, Placement, ReadAhead, SpaceHope, SpaceWait};
use smallvec::SmallVec;

use crate::cred::{Caps, Credentials};
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::heap;
use crate::inode::Inode;
use crate::options::DataMode;

mod promise;

use promise::Promise;

/// Most blocks of journalled data in one handle.
const MOST_JOURNALLED: u32 = 1024;
/// Most claims in one handle.
const MOST_CLAIMS: u32 = 64;
/// Rights of a writer: may use the reserved blocks; may exceed its quota.
const RESERVED_BLOCKS: u8 = 1;
const NO_QUOTA: u8 = 2;

/// A regular file's content in memory.
pub(crate) struct FileData {
    pub(crate) pages: AddressSpace,
    /// Where readers without a state of their own have got to.
    pub(crate) stream: Mutex<ReadAhead>,
    fs: Weak<Filesystem>,
    inode: Weak<Inode>,
    ino: Ino,
    /// The rights of the present writer, under the inode lock.
    rights: AtomicU8,
    /// The data goes through the journal; changed under the inode lock, with nothing dirty.
    journalled: AtomicBool,
    /// With whose rights content moves out of the inode for a store through a mapping: those of who mapped it last.
    mapper: Mutex<Option<Credentials>>,
    /// The mappings, which `pages` owns.
    pub(crate) mmu: Mutex<Weak<RealMmu>>,
    promise: Mutex<Promise>,
}

/// Blocks claimed for a file and not yet published.
pub(crate) struct FileClaim {
    lblk: u32,
    len: u32,
    pblk: Pblk,
    what: What,
    data: Arc<FileData>,
}

enum What {
    /// Taken from the allocator for delayed blocks.
    Fresh(Option<Claim>),
    /// Delayed blocks in a cluster that the file has already, or that an earlier claim brings.
    Implied,
    /// Unwritten blocks.
    Convert,
}

/// How delayed blocks ceased to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// Published with a claim, which their reservation paid.
    Paid,
    /// Published in a cluster that is the file's by other blocks.
    Implied,
    /// Thrown away.
    Dropped,
}

impl Drop for FileClaim {
    fn drop(&mut self) {
        if let What::Fresh(claim) = &mut self.what
            && let Some(claim) = claim.take()
            && let Some(fs) = self.data.fs.upgrade()
        {
            let mut back = claim.purse(Privilege::Normal);
            claim.give_back(&mut back);
            let mut promise = self.data.promise.lock();
            promise.put_back(back);
            let ratio = fs.geo.cluster_ratio();
            if ratio > 1 {
                for cluster in self.lblk / ratio..=(self.lblk + self.len - 1) / ratio {
                    promise.claimed.remove(&cluster);
                }
            }
        }
    }
}

impl Inode {
    /// The file's content in memory; made when it is first wanted.
    pub(crate) fn data(&self, fs: &Filesystem) -> &Arc<FileData> {
        if let Some(data) = self.data.get() {
            return data;
        }
        // Made before the cell is entered: making it takes locks, and who waits for a cell waits outside of all ranks.
        heap::announce(size_of::<FileData>());
        let made = Arc::new_cyclic(|weak: &Weak<FileData>| FileData {
            pages: AddressSpace::new(Arc::clone(&fs.pages), weak.clone()),
            stream: Mutex::new(Rank::LEAF, ReadAhead::default()),
            fs: fs.this.clone(),
            inode: self.this.get().cloned().unwrap_or_default(),
            ino: self.ino,
            rights: AtomicU8::new(0),
            journalled: AtomicBool::new(fs.journals_data(self)),
            mapper: Mutex::new(Rank::LEAF, None),
            mmu: Mutex::new(Rank::LEAF, Weak::new()),
            promise: Mutex::new(Rank::PROMISE, Promise::default()),
        });
        made.pages.begin_dax(fs.wants_dax(self, self.flags()));
        self.data.get_or_init(|| made)
    }

    /// Whether content waits to be written.
    pub(crate) fn has_dirty_data(&self) -> bool {
        self.data.get().is_some_and(|data| data.pages.is_dirty())
    }
}

impl FileData {
    /// Whether the data goes through the journal.
    pub(crate) fn is_journalled(&self) -> bool {
        self.journalled.load(Ordering::Acquire)
    }

    pub(crate) fn set_journalled(&self, on: bool) {
        self.journalled.store(on, Ordering::Release);
    }

    /// Says with whose rights space is reserved from now on. Under the inode lock.
    pub(crate) fn set_rights(&self, fs: &Filesystem, cred: &Credentials) {
        let reserved = u8::from(fs.privilege(cred) == Privilege::Reserved) * RESERVED_BLOCKS;
        let exempt = u8::from(cred.has(Caps::SYS_RESOURCE)) * NO_QUOTA;
        self.rights.store(reserved | exempt, Ordering::Relaxed);
    }

    /// Says with whose rights a store through a mapping finds space. Under the inode lock.
    pub(crate) fn set_mapper(&self, fs: &Filesystem, cred: &Credentials) {
        self.set_rights(fs, cred);
        *self.mapper.lock() = Some(cred.clone());
    }

    fn is_exempt(&self) -> bool {
        self.rights.load(Ordering::Relaxed) & NO_QUOTA != 0
    }

    fn privilege(&self) -> Privilege {
        let reserved = self.rights.load(Ordering::Relaxed) & RESERVED_BLOCKS != 0;
        if reserved { Privilege::Reserved } else { Privilege::Normal }
    }

    /// The filesystem and the inode; both are there as long as anything is dirty.
    fn both(&self) -> Result<(Arc<Filesystem>, Arc<Inode>)> {
        match (self.fs.upgrade(), self.inode.upgrade()) {
            (Some(fs), Some(inode)) => Ok((fs, inode)),
            _ => Err(Error::Shutdown),
        }
    }

    fn lost_block(&self, lblk: Lblk) -> Error {
        let words = format!("block {lblk} is dirty and has no place");
        Error::corrupt(Place::Inode(self.ino), CorruptKind::Map(words.into()))
    }

    /// A new place for delayed blocks.
    fn claim_delayed(&self, fs: &Filesystem, inode: &Inode, lblk: Lblk, mut len: u32) -> Result<FileClaim> {
        let data = Arc::clone(inode.data(fs));
        let ratio = fs.geo.cluster_ratio();
        if ratio > 1 {
            let claimed = self.promise.lock().claimed.get(&(lblk.0 / ratio)).copied();
            let place = match claimed {
                Some(first) => {
                    let pblk = Pblk(first.0 + u64::from(lblk.0 % ratio));
                    Cluster::Implied { pblk, len: len.min(ratio - lblk.0 % ratio) }
                }
                None => fs.map.placement(&inode.map_ref(&inode.map.read()), lblk, len)?,
            };
            match place {
                Cluster::Implied { pblk, len } => {
                    return Ok(FileClaim { lblk: lblk.0, len, pblk, what: What::Implied, data });
                }
                Cluster::Claim { len: fresh } => len = fresh,
            }
        }
        let clusters = u64::from(len / ratio) + 2;
        let mut part = self.promise.lock().take(fs, inode.map_kind(), clusters, 0);
        let goal = self.goal(fs, inode, lblk)?;
        let blocks = inode.size().div_ceil(u64::from(fs.geo.block_size()));
        let request =
            ClaimRequest::file(goal, lblk, len, blocks, &inode.window).below(MapFs::reach(inode.map_kind()));
        let claim = fs.alloc.claim(&request, &mut part);
        let mut promise = self.promise.lock();
        promise.put_back(part);
        let claim = claim?;
        let (pblk, len) = (claim.pblk(), claim.len().min(len));
        if ratio > 1 {
            let first = lblk.0 / ratio;
            for cluster in first..=(lblk.0 + len - 1) / ratio {
                let into = u64::from(cluster - first) * u64::from(ratio);
                promise.claimed.insert(cluster, Pblk(pblk.0 - u64::from(lblk.0 % ratio) + into));
            }
        }
        drop(promise);
        Ok(FileClaim { lblk: lblk.0, len, pblk, what: What::Fresh(Some(claim)), data })
    }

    /// Behind the block before, else where the allocator would begin.
    pub(crate) fn goal(&self, fs: &Filesystem, inode: &Inode, lblk: Lblk) -> Result<Pblk> {
        if let Some(before) = lblk.0.checked_sub(1)
            && let Run::Mapped { pblk, .. } = fs.map_lookup(inode, Lblk(before), 1)?
        {
            return Ok(Pblk(pblk.0 + 1));
        }
        Ok(fs.alloc.goal_for_inode(inode.ino, true))
    }

    /// The place of dirty blocks that have one; unwritten ones are split off first, so that publishing them needs no space.
    fn claim_mapped(
        &self,
        fs: &Filesystem,
        inode: &Inode,
        lblk: Lblk,
        len: u32,
    ) -> Result<Placement<FileClaim>> {
        let Run::Mapped { pblk, len, unwritten } = fs.map_lookup(inode, lblk, len)? else {
            return Err(self.lost_block(lblk));
        };
        if !unwritten {
            return Ok(Placement { pblk, len, claim: None });
        }
        fs.split_unwritten(inode, lblk, len)?;
        // One extent, not several that the cache of the map knows as one: so its handle knows what converting it takes.
        let len = fs.map.lookup_extent(&inode.map_ref(&inode.map.read()), lblk, len)?.len();
        let data = Arc::clone(inode.data(fs));
        let claim = FileClaim { lblk: lblk.0, len, pblk, what: What::Convert, data };
        Ok(Placement { pblk, len, claim: Some(claim) })
    }

    /// Tree blocks that mapping `blocks` blocks may need.
    ///
    /// In two steps: what the map says is looked up before the promise is locked, the number of delayed blocks is what it is
    /// under the lock. (Writers add to it and writeback takes from it at the same time.)
    fn worst<'f>(fs: &'f Filesystem, inode: &Inode) -> Result<impl Fn(u64) -> u64 + use<'f>> {
        let (kind, depth) = (inode.map_kind(), fs.depth(inode)?);
        Ok(move |blocks| fs.map.tree_blocks_worst(kind, depth, blocks))
    }

    /// Takes blocks out of the promise that are published or dropped. How many blocks are reserved no longer, whole clusters (0 for single
    /// blocks that are published).
    fn undelay(&self, fs: &Filesystem, inode: &Inode, lblk: u32, len: u32, gone: Gone) -> u32 {
        // Where the map cannot be read any more no tree block is given back before the last delayed block.
        let worst = Self::worst(fs, inode).ok();
        let ratio = fs.geo.cluster_ratio();
        let mut promise = self.promise.lock();
        debug_assert!(promise.blocks >= u64::from(len), "{len} blocks of {} delayed ones", promise.blocks);
        promise.blocks = promise.blocks.saturating_sub(len.into());
        // Clusters that are reserved no longer. (Of single blocks that are published the publication has told already.)
        let mut ended = 0;
        if ratio == 1 {
            ended = if gone == Gone::Dropped { len } else { 0 };
        } else {
            for at in lblk..lblk + len {
                let Some((count, reserved)) = promise.clusters.get_mut(&(at / ratio)) else { continue };
                *count -= 1;
                let left = *count;
                // A published block makes the cluster the file's: what else is delayed in it needs none.
                if *reserved && (left == 0 || gone != Gone::Dropped) {
                    *reserved = false;
                    ended += 1;
                }
                if left == 0 {
                    promise.clusters.remove(&(at / ratio));
                }
            }
        }
        if let Some(all) = &mut promise.reservation
            && gone != Gone::Paid
        {
            all.shrink(ended.into(), 0);
        }
        Self::count_ended(inode, ended * ratio);
        let left = promise.blocks;
        promise.trim(worst.map_or(u64::MAX, |worst| worst(left)));
        ended * ratio
    }

    /// Takes blocks out of what stat counts as delayed. Saturating: where a publication failed after the map had them they are told of twice;
    /// the count is for stat(2) alone.
    fn count_ended(inode: &Inode, blocks: u32) {
        if blocks > 0 {
            let mut state = inode.state();
            state.delayed = state.delayed.saturating_sub(blocks);
        }
    }

    /// Enters claimed blocks in bitmap and map. The change in the inode's blocks.
    fn enter(
        fs: &Filesystem,
        handle: &mut Handle,
        map: &mut extant_map::MapMut<'_>,
        claim: &mut FileClaim,
        part: &mut Reservation,
    ) -> Result<i64> {
        let (lblk, len) = (Lblk(claim.lblk), claim.len);
        let extent = Extent { lblk, len, pblk: claim.pblk, unwritten: false };
        let delta = match &mut claim.what {
            What::Fresh(taken) => {
                if let Some(taken) = taken {
                    fs.alloc.publish(handle, taken, len)?;
                }
                fs.map.insert(handle, map, extent, part)?
            }
            What::Implied => fs.map.insert(handle, map, extent, part)?,
            What::Convert => fs.map.convert(handle, map, lblk, len, Written::Yes, part)?,
        };
        Ok(delta.total())
    }

    /// With bigalloc: whether every claim that relies on another one's cluster has it, in `claims` or in the map.
    fn is_complete(fs: &Filesystem, inode: &Inode, claims: &[FileClaim]) -> Result<bool> {
        let ratio = fs.geo.cluster_ratio();
        let i_block = inode.map.read();
        let mut brought = None;
        for claim in claims {
            let cluster = claim.lblk / ratio;
            match claim.what {
                What::Fresh(_) => brought = Some((claim.lblk + claim.len - 1) / ratio),
                What::Implied if brought == Some(cluster) => {}
                What::Implied if fs.map.implied(&inode.map_ref(&i_block), Lblk(claim.lblk))?.is_some() => {}
                What::Implied => return Ok(false),
                What::Convert => {}
            }
        }
        Ok(true)
    }

    /// Reads what publishing `claims` changes: bitmaps, which stay in the cache as long as the result is held, and the ways to the
    /// blocks. The device fails here, before the first change.
    fn hold(fs: &Filesystem, inode: &Inode, claims: &[FileClaim]) -> Result<SmallVec<[ToFree; 1]>> {
        let i_block = inode.map.read();
        for claim in claims {
            fs.map.lookup_extent(&inode.map_ref(&i_block), Lblk(claim.lblk), 1)?;
        }
        drop(i_block);
        let fresh = claims.iter().filter(|claim| matches!(claim.what, What::Fresh(_)));
        fresh.map(|claim| Ok(fs.alloc.prepare_free(claim.pblk, claim.len.into())?)).collect()
    }

    /// Credits for publishing `claims`.
    fn credits(fs: &Filesystem, inode: &Inode, claims: &[FileClaim]) -> Result<u32> {
        let (kind, depth) = (inode.map_kind(), fs.depth(inode)?);
        let conversions = claims.iter().filter(|c| matches!(c.what, What::Convert)).count() as u32;
        let map = match kind {
            MapKind::Extents => fs.map.insert_credits(kind, depth, claims.len() as u32 - conversions),
            MapKind::Indirect => claims.iter().map(|c| fs.map.insert_credits_for(kind, depth, c.len)).sum(),
        };
        Ok(1 + map + fs.map.convert_credits(kind, depth, conversions))
    }
}

/// Makes the content of whole blocks, from `pblk` on, part of a handle's transaction. One credit a block.
fn log_content(handle: &mut Handle, size: usize, pblk: Pblk, parts: &[MemSlice<'_>]) -> Result<()> {
    let mut at = pblk;
    for part in parts {
        for from in (0..part.len()).step_by(size) {
            let buf = handle.create(at)?;
            handle.modify(&buf, |bytes| part.copy_to(from, bytes))?;
            at = Pblk(at.0 + 1);
        }
    }
    Ok(())
}

impl Filesystem {
    /// Whether a file's data goes through the journal: by the mount or by its flag.
    pub(crate) fn journals_data(&self, inode: &Inode) -> bool {
        let flags = inode.flags();
        inode.is_regular()
            && self.journal.has_log()
            && !flags.contains(InodeFlags::EA_INODE)
            && (self.data_mode == DataMode::Journal
                || flags.contains(InodeFlags::JOURNAL_DATA)
                // Nothing is written to it by its name; what is read may be in the journal.
                || self.is_quota_file(inode.ino))
    }

    /// What a file's blocks hold, for their freeing.
    pub(crate) fn content_of(&self, inode: &Inode) -> Content {
        let plain = inode.is_regular() && !inode.flags().contains(InodeFlags::EA_INODE);
        if plain && !self.journals_data(inode) { Content::Data } else { Content::Journalled }
    }

    /// Before `range` leaves the map, or the file ends at its start: with bigalloc, gives their places to delayed blocks that share a
    /// cluster with its ends. A cluster goes with its last mapped block, and what is delayed in a cluster that was the file's has none
    /// reserved. The caller holds the inode lock and `invalidate_lock` exclusively.
    pub(crate) fn place_neighbours(&self, inode: &Inode, range: &Range<u64>) -> Result<()> {
        if self.geo.cluster_ratio() == 1 {
            return Ok(());
        }
        let Some(data) = inode.data.get().filter(|data| data.pages.is_dirty()) else { return Ok(()) };
        let cluster = self.geo.cluster_size();
        let first = range.start - range.start % cluster;
        data.pages.sync(&**data, first..range.start)?;
        match range.end.checked_next_multiple_of(cluster) {
            Some(end) if end > range.end => data.pages.sync(&**data, range.end..end),
            _ => Ok(()),
        }
    }

    /// For a file whose data goes through the journal: puts what is dirty from byte `from` on into the running transaction. The
    /// caller holds the inode lock exclusively.
    pub(crate) fn log_data(&self, inode: &Inode, from: u64) -> Result<()> {
        match inode.data.get() {
            Some(data) if data.is_journalled() => data.pages.sync(&**data, from..u64::MAX),
            _ => Ok(()),
        }
    }

    /// Levels of a file's map.
    pub(crate) fn depth(&self, inode: &Inode) -> Result<u16> {
        Ok(self.map.depth(&inode.map_ref(&inode.map.read()))?)
    }

    /// Makes both ends of a run of unwritten blocks ends of extents, in a handle of its own.
    pub(crate) fn split_unwritten(&self, inode: &Inode, lblk: Lblk, len: u32) -> Result<()> {
        let (kind, depth) = (inode.map_kind(), self.depth(inode)?);
        let mut spare = self.alloc.reserve(0, self.map.tree_blocks_worst(kind, depth, 2), Privilege::Pool)?;
        let mut handle = self.start_data(inode, self.map.convert_credits(kind, depth, 2) + 1)?;
        let done = (|| {
            let mut i_block = inode.map.write();
            let mut map = inode.map_mut(&mut i_block);
            let mut tree = self.map.split_at(&mut handle, &mut map, lblk, &mut spare)?.total();
            let end = Lblk(lblk.0 + len);
            tree += self.map.split_at(&mut handle, &mut map, end, &mut spare)?.total();
            self.map_changed(inode, &i_block, tree);
            drop(i_block);
            self.write_inode(&mut handle, inode)
        })();
        self.finish(handle, done, inode)
    }
}

impl Host for FileData {
    type Error = Error;
    type Claim = FileClaim;

    fn space(&self) -> &AddressSpace {
        &self.pages
    }

    fn number(&self) -> u64 {
        self.ino.0.into()
    }

    fn size(&self) -> u64 {
        self.inode.upgrade().map_or(0, |inode| inode.size())
    }

    fn grow_size(&self, end: u64) {
        if let Some(inode) = self.inode.upgrade() {
            let mut state = inode.state();
            state.size = state.size.max(end);
        }
    }

    fn set_size(&self, size: u64) {
        if let Some(inode) = self.inode.upgrade() {
            inode.state().size = size;
        }
    }

    fn disk_size(&self) -> u64 {
        self.inode.upgrade().map_or(0, |inode| inode.state().raw.size)
    }

    fn map(&self, lblk: Lblk, len: u32) -> Result<Mapped> {
        let (fs, inode) = self.both()?;
        if fs.is_inline(&inode) {
            // `i_block` holds content, not a map. Only a reader comes here, who looked before the first content went there; it
            // stays so until the reader's `invalidate_lock` is released.
            return Err(Error::WouldBlock);
        }
        Ok(match fs.map_lookup(&inode, lblk, len)? {
            Run::Hole { len } => Mapped { backing: Backing::Hole, len },
            Run::Mapped { pblk, len, unwritten: false } => Mapped { backing: Backing::Data(pblk), len },
            Run::Mapped { pblk, len, unwritten: true } => Mapped { backing: Backing::Unwritten(pblk), len },
        })
    }

    fn map_seq(&self) -> u64 {
        self.inode.upgrade().map_or(0, |inode| inode.es.seq())
    }

    fn map_tid(&self) -> Result<Tid> {
        Ok(self.both()?.1.datasync_tid())
    }

    fn is_durable(&self, tid: Tid) -> bool {
        self.fs.upgrade().is_some_and(|fs| fs.journal.is_durable(tid))
    }

    fn commit_map(&self, tid: Tid, stay: bool) -> Result<bool> {
        let fs = self.fs.upgrade().ok_or(Error::Shutdown)?;
        if !stay && fs.journal.request_commit(tid) {
            return Ok(false);
        }
        fs.journal.wait_commit(tid)?;
        Ok(true)
    }

    fn reserve(&self, lblk: Lblk, len: u32) -> Result<()> {
        let (fs, inode) = self.both()?;
        let end = u64::from(lblk.0) + u64::from(len);
        if end > fs.map.max_blocks(inode.map_kind()) {
            return Err(Error::FileTooBig);
        }
        self.promise_space(&fs, &inode, lblk, len)
    }

    fn unreserve(&self, lblk: Lblk, len: u32) {
        let Ok((fs, inode)) = self.both() else {
            // The filesystem is going away: the count alone is kept.
            let mut promise = self.promise.lock();
            promise.blocks = promise.blocks.saturating_sub(len.into());
            promise.trim(u64::MAX);
            return;
        };
        let ended = self.undelay(&fs, &inode, lblk.0, len, Gone::Dropped);
        fs.quota_unreserve(&inode, ended.into());
    }

    fn claim(&self, lblk: Lblk, len: u32, delayed: bool) -> Result<Placement<FileClaim>> {
        let (fs, inode) = self.both()?;
        fs.check_may_write_data()?;
        if !delayed {
            return self.claim_mapped(&fs, &inode, lblk, len);
        }
        let claim = self.claim_delayed(&fs, &inode, lblk, len)?;
        Ok(Placement { pblk: claim.pblk, len: claim.len, claim: Some(claim) })
    }

    fn publish(&self, claims: &mut [FileClaim], end: u64) -> Result<()> {
        if claims.is_empty() && end <= self.disk_size() {
            return Ok(());
        }
        self.publish_data(claims, &[], end)
    }

    fn journalled(&self) -> Option<u32> {
        if !self.is_journalled() {
            return None;
        }
        let most = self.fs.upgrade().map_or(1, |fs| fs.journal.max_credits() / 8);
        Some(most.clamp(1, MOST_JOURNALLED))
    }

    fn newer(&self, pblk: Pblk) -> Option<std::sync::Arc<[u8]>> {
        self.fs.upgrade()?.cache.unwritten(pblk)
    }

    fn publish_data(
        &self,
        claims: &mut [FileClaim],
        content: &[(Pblk, Vec<MemSlice<'_>>)],
        end: u64,
    ) -> Result<()> {
        let (fs, inode) = self.both()?;
        if fs.geo.cluster_ratio() > 1 && !Self::is_complete(&fs, &inode, claims)? {
            // The write of the blocks that brought the cluster failed.
            return Err(std::io::Error::from_raw_os_error(5).into());
        }
        let size = fs.geo.block_size() as usize;
        let logged: usize = content.iter().flat_map(|(_, parts)| parts).map(|part| part.len() / size).sum();
        let _held = Self::hold(&fs, &inode, claims)?;
        let mut handle = fs.start_data(&inode, Self::credits(&fs, &inode, claims)? + logged as u32)?;
        let mut part = self.promise.lock().take(&fs, inode.map_kind(), 0, u64::MAX);
        let fresh: u32 = claims.iter().filter(|c| !matches!(c.what, What::Convert)).map(|c| c.len).sum();
        let counted = if fs.geo.cluster_ratio() == 1 { fresh } else { 0 };
        let done = (|| {
            let mut i_block = inode.map.write();
            let mut delta = 0;
            for claim in &mut *claims {
                let mut map = inode.map_mut(&mut i_block);
                delta += Self::enter(&fs, &mut handle, &mut map, claim, &mut part)?;
            }
            fs.map_published(&inode, &i_block, delta, counted);
            drop(i_block);
            for (pblk, parts) in content {
                log_content(&mut handle, size, *pblk, parts)?;
            }
            let paid = if counted > 0 { fresh } else { self.reserved_for(claims, fs.geo.cluster_ratio()) };
            fs.quota_unreserve(&inode, paid.into());
            {
                let mut state = inode.state();
                state.raw.size = state.raw.size.max(end);
            }
            fs.write_inode(&mut handle, &inode)
        })();
        self.promise.lock().put_back(part);
        fs.finish(handle, done, &inode)?;
        for claim in claims {
            let gone = match claim.what {
                What::Fresh(_) => Gone::Paid,
                What::Implied => Gone::Implied,
                What::Convert => continue,
            };
            self.undelay(&fs, &inode, claim.lblk, claim.len, gone);
        }
        Ok(())
    }

    fn is_inline(&self) -> bool {
        self.inode.upgrade().is_some_and(|inode| inode.flags().contains(InodeFlags::INLINE_DATA))
    }

    fn inline(&self) -> Result<Option<Vec<u8>>> {
        let (fs, inode) = self.both()?;
        if fs.is_inline(&inode) { fs.inline_content(&inode).map(Some) } else { Ok(None) }
    }

    fn leave_inline(&self) -> Result<()> {
        let (fs, inode) = self.both()?;
        let mapper = self.mapper.lock().clone();
        fs.move_to_blocks(&inode, &mapper.unwrap_or_else(|| Credentials::user(u32::MAX, u32::MAX, &[])))
    }

    fn may_store(&self) -> bool {
        let Ok((fs, inode)) = self.both() else { return false };
        !fs.is_read_only() && !fs.journal.is_aborted() && !inode.flags().contains(InodeFlags::IMMUTABLE)
    }

    fn hold(&self, pblk: Pblk, len: u32) -> Box<dyn Send + Sync> {
        match self.fs.upgrade() {
            Some(fs) => Box::new(fs.alloc.hold(pblk, len)),
            None => Box::new(()),
        }
    }

    fn stored(&self) {
        if let Ok((fs, inode)) = self.both() {
            fs.touch_written(&inode);
        }
    }

    fn is_no_space(error: &Error) -> bool {
        matches!(error, Error::NoSpace)
    }

    fn make_space(&self) -> Result<()> {
        self.fs.upgrade().ok_or(Error::Shutdown)?.make_space()
    }

    fn await_space(&self, wait: &mut SpaceWait, stay: bool) -> SpaceHope {
        let hope = self.fs.upgrade().map(|fs| fs.await_space(wait, stay));
        hope.and_then(Result::ok).unwrap_or(SpaceHope::None)
    }

    fn noted(&self, error: &Error) {
        if let Some(fs) = self.fs.upgrade().filter(|_| error.is_corruption()) {
            fs.on_damage(error);
        }
    }

    fn try_alone<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let (_fs, inode) = self.both().ok()?;
        // Direct I/O holds it shared over its transfers.
        let _lock = inode.lock.try_write()?;
        Some(work())
    }

    fn in_fault<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        match self.fs.upgrade() {
            Some(fs) => {
                let _pass = fs.gate.try_enter(Level::Fault)?;
                Some(work())
            }
            None => Some(work()),
        }
    }

    fn claims_per_publish(&self) -> usize {
        let Ok((fs, inode)) = self.both() else { return 1 };
        let (kind, depth) = (inode.map_kind(), fs.depth(&inode).unwrap_or(5));
        let room = fs.journal.max_credits() / 4;
        let fits = |n: u32| fs.map.insert_credits(kind, depth, n) < room;
        (1..=MOST_CLAIMS).rev().find(|n| fits(*n)).unwrap_or(1) as usize
    }

    fn content_lost(&self, error: &Error) {
        if let Some(fs) = self.fs.upgrade() {
            fs.on_lost_content(error);
        }
    }

    fn errno(error: &Error) -> i32 {
        error.errno()
    }

    fn in_background<R>(&self, work: impl FnOnce() -> R) -> R {
        let fs = self.fs.upgrade();
        let _pass = fs.as_ref().map(|fs| fs.gate.enter(Level::Internal));
        work()
    }
}

impl std::fmt::Debug for FileData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "content of inode {}", self.ino)
    }
}
