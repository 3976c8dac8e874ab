//! Inode allocation: which group, which number, and the group's bookkeeping.
//!
//! Directories are spread (after Orlov): one in the root, or in a directory with the TOPDIR flag, goes to a flexible group with
//! few directories and more than the average of free inodes and clusters; any other stays near its parent unless
//! that part of the disk has become too full or too directory-heavy. Files go to their directory's group, then to the
//! rest of its flexible group, then to groups at growing distances, then anywhere. Source of the policy: the
//! kernel's ext4 documentation, "Block and Inode Allocation Policy".

use extant_format::{BgFlags, Corrupt, FormatError, GroupDesc, GroupNr, Ino, Pblk, Place, bitmap};
use extant_journal::{Buf, Handle, WriteOrder};
use extant_sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::error::{AllocError, Result};
use crate::group::GroupState;

/// Who wants an inode.
#[derive(Clone, Copy, Debug)]
pub struct InodeRequest {
    /// The directory that it is made in.
    pub parent: Ino,
    /// Whether it will be a directory.
    pub is_dir: bool,
    /// Whether the directory is to be spread: its parent is the root or has the TOPDIR flag.
    pub top_level: bool,
    /// Any number, to choose where the search for a top-level directory starts (a hash of the name, say).
    pub spread: u32,
}

/// What freeing an inode needs, in memory ([`Allocator::prepare_free_inode`]).
pub struct ToFreeInode {
    _held: Option<(Option<Buf>, Buf)>,
}

/// Totals over a flexible group.
struct FlexStats {
    free_inodes: u64,
    free_clusters: u64,
    dirs: u64,
}

/// Averages that a directory's flexible group must reach.
struct Limits {
    dirs: u64,
    inodes: u64,
    clusters: u64,
}

impl Allocator {
    /// Takes a free inode number and marks it in use, in a handle. The caller writes the inode's record, whole. If the number is
    /// the only one in use of its block of the inode table, that block is made anew, zeroed.
    ///
    /// Takes one group's lock after the other. Credits: 2, and 1 for the table block, which the caller changes anyway.
    ///
    /// # Errors
    /// [`AllocError::NoInodes`]; corruption is reported and the search goes on in other groups. The device's, with nothing changed:
    /// the table block was read too.
    pub fn alloc_inode(&self, handle: &mut Handle, request: &InodeRequest) -> Result<Ino> {
        let parent = self.geo.inode_location(request.parent).map_or(0, |at| at.group.0 as usize);
        let first = if request.is_dir { self.group_for_dir(parent, request) } else { None };
        let start = first.unwrap_or(parent);
        if let Some(ino) = self.inode_in(handle, start, request.is_dir)? {
            return Ok(ino);
        }
        for g in self.flex_after(start).chain(self.hops(start)) {
            if let Some(ino) = self.inode_in(handle, g, request.is_dir)? {
                return Ok(ino);
            }
        }
        for (from, to) in [(start, self.groups.len()), (0, start)] {
            let mut at = from;
            while let Some(g) = self.with_inodes.next(at).filter(|g| *g < to) {
                if let Some(ino) = self.inode_in(handle, g, request.is_dir)? {
                    return Ok(ino);
                }
                at = g + 1;
            }
        }
        Err(AllocError::NoInodes)
    }

    /// Takes this inode number and marks it in use, in a handle; false if it was in use already. The caller writes the
    /// inode's record, whole.
    ///
    /// Takes the group's lock. Credits: 2.
    ///
    /// # Errors
    /// [`AllocError::NotInode`] for reserved numbers and beyond the last; a corrupt group.
    pub fn take_inode(&self, handle: &mut Handle, ino: Ino, is_dir: bool) -> Result<bool> {
        let at = self.geo.inode_location(ino).filter(|_| ino >= self.geo.first_ino());
        let at = at.ok_or(AllocError::NotInode { ino })?;
        let g = at.group.0 as usize;
        let (desc_buf, offset) = self.desc_buf(g)?;
        let map = self.inode_bitmap(g)?;
        let mut state = self.groups[g].lock();
        if state.inodes_corrupt {
            return Err(AllocError::CorruptGroup { group: at.group });
        }
        if map.as_ref().is_some_and(|map| map.with(|bytes| bitmap::test(bytes, at.index))) {
            return Ok(false);
        }
        if state.desc.free_inodes == 0 {
            return Err(AllocError::CorruptGroup { group: at.group });
        }
        let map = match map {
            Some(map) => map,
            None => self.first_inode_bitmap(handle, &state)?,
        };
        self.first_of_table_block(handle, &state, &map, at.index)?;
        self.mark_inode(handle, g, &mut state, (&map, at.index), (&desc_buf, offset), is_dir)?;
        drop(state);
        self.free_inodes.fetch_sub(1, Ordering::Relaxed);
        self.dirs.fetch_add(i64::from(is_dir), Ordering::Relaxed);
        Ok(true)
    }

    /// Sets an inode's bit, with the descriptor. Under the group's lock. Credits: 2.
    fn mark_inode(
        &self,
        handle: &mut Handle,
        g: usize,
        state: &mut GroupState,
        (map, index): (&Buf, u32),
        (desc_buf, offset): (&Buf, usize),
        is_dir: bool,
    ) -> Result<()> {
        let desc = self.desc_with_inode(state, index, is_dir);
        let desc = handle.modify(map, |bytes: &mut [u8]| {
            let mut desc = desc;
            bitmap::set(bytes, index);
            desc.set_inode_bitmap_csum(bytes, &self.geo, &self.csum);
            desc
        })?;
        self.write_desc(handle, self.group_nr(g), state, desc, desc_buf, offset)?;
        if desc.free_inodes == 0 {
            self.with_inodes.remove(g);
        }
        Ok(())
    }

    /// Reads what freeing an inode number will read, so that no device error comes between. As long as the result is held it stays
    /// in the cache.
    ///
    /// # Errors
    /// The device's.
    pub fn prepare_free_inode(&self, ino: Ino) -> Result<ToFreeInode> {
        let Some(at) = self.geo.inode_location(ino) else { return Ok(ToFreeInode { _held: None }) };
        let g = at.group.0 as usize;
        let map = match self.inode_bitmap(g) {
            Err(AllocError::Format(_) | AllocError::CorruptGroup { .. }) => None,
            map => map?,
        };
        Ok(ToFreeInode { _held: Some((map, self.desc_buf(g)?.0)) })
    }

    /// Frees an inode number in a handle. The caller has cleared the record and dropped the in-core inode's claims.
    ///
    /// Takes the group's lock. Credits: 2.
    ///
    /// # Errors
    /// [`AllocError::NotInode`] for reserved numbers; the device's, not after [`Self::prepare_free_inode`]; the journal's. A bitmap
    /// that is corrupt or says that the number is free is reported, and keeps it.
    pub fn free_inode(&self, handle: &mut Handle, ino: Ino, is_dir: bool) -> Result<()> {
        let at = self.geo.inode_location(ino).filter(|_| ino >= self.geo.first_ino());
        let at = at.ok_or(AllocError::NotInode { ino })?;
        let g = at.group.0 as usize;
        let (desc_buf, offset) = self.desc_buf(g)?;
        let map = match self.inode_bitmap(g) {
            Err(AllocError::Format(_) | AllocError::CorruptGroup { .. }) => return Ok(()),
            map => map?,
        };
        let mut state = self.groups[g].lock();
        if state.inodes_corrupt {
            return Ok(());
        }
        let Some(map) = map else {
            self.fail_inodes(g, state, &free_already(at.group, at.index));
            return Ok(());
        };
        let mut desc = state.desc;
        desc.free_inodes = (desc.free_inodes + 1).min(self.geo.inodes_per_group());
        if is_dir {
            desc.used_dirs = desc.used_dirs.saturating_sub(1);
        }
        let cleared = handle.modify(&map, |bytes: &mut [u8]| {
            let was_set = bitmap::clear(bytes, at.index);
            desc.set_inode_bitmap_csum(bytes, &self.geo, &self.csum);
            was_set
        })?;
        if !cleared {
            self.fail_inodes(g, state, &free_already(at.group, at.index));
            return Ok(());
        }
        self.write_desc(handle, at.group, &mut state, desc, &desc_buf, offset)?;
        state.inode_hint = state.inode_hint.min(at.index);
        self.with_inodes.insert(g);
        drop(state);
        self.free_inodes.fetch_add(1, Ordering::Relaxed);
        self.dirs.fetch_sub(i64::from(is_dir), Ordering::Relaxed);
        Ok(())
    }

    /// Whether an inode number is marked in use.
    ///
    /// # Errors
    /// The bitmap cannot be read or is corrupt; [`AllocError::NotInode`] beyond the last.
    pub fn inode_in_use(&self, ino: Ino) -> Result<bool> {
        let at = self.geo.inode_location(ino).ok_or(AllocError::NotInode { ino })?;
        let Some(map) = self.inode_bitmap(at.group.0 as usize)? else { return Ok(false) };
        Ok(map.with(|bytes| bitmap::test(bytes, at.index)))
    }

    /// Free inodes of the filesystem.
    #[must_use]
    pub fn free_inode_count(&self) -> u64 {
        self.free_inodes.load(Ordering::Relaxed).max(0) as u64
    }

    /// Takes an inode of group `g`, if it has one.
    fn inode_in(&self, handle: &mut Handle, g: usize, is_dir: bool) -> Result<Option<Ino>> {
        if self.with_inodes.next(g) != Some(g) {
            return Ok(None);
        }
        let (desc_buf, offset) = self.desc_buf(g)?;
        let map = match self.inode_bitmap(g) {
            Ok(map) => map,
            Err(AllocError::Format(_) | AllocError::CorruptGroup { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let group = self.group_nr(g);
        let mut table: Option<Buf> = None;
        let (mut state, map, index) = loop {
            let state = self.groups[g].lock();
            if state.inodes_corrupt || state.desc.free_inodes == 0 {
                return Ok(None);
            }
            let map = match &map {
                Some(map) => map.clone(),
                None => self.first_inode_bitmap(handle, &state)?,
            };
            let limit = state.zeroing_from.unwrap_or(self.geo.inodes_per_group());
            let hint =
                if g == 0 { state.inode_hint.max(self.geo.first_ino().0 - 1) } else { state.inode_hint };
            let Some(index) = map.with(|bytes| bitmap::find_zero(bytes, hint, limit)) else {
                if state.zeroing_from.is_none() {
                    self.with_inodes.remove(g);
                }
                return Ok(None);
            };
            // With others in it, the table block is read, before anything is changed.
            match self.table_block_in_use(&state, &map, index) {
                Some(pblk) if table.as_ref().is_none_or(|held| held.pblk() != pblk) => {
                    drop(state);
                    table = Some(self.cache.read(pblk)?);
                }
                _ => break (state, map, index),
            }
        };
        self.first_of_table_block(handle, &state, &map, index)?;
        self.mark_inode(handle, g, &mut state, (&map, index), (&desc_buf, offset), is_dir)?;
        state.inode_hint = index + 1;
        drop(state);
        self.free_inodes.fetch_sub(1, Ordering::Relaxed);
        self.dirs.fetch_add(i64::from(is_dir), Ordering::Relaxed);
        Ok(Some(self.geo.ino_of(group, index)))
    }

    /// Makes the table block of the inode at `index` anew (zeroed) if no inode of it is in use: what the disk has there means
    /// nothing, and may never have been written.
    ///
    /// Under the group's lock, before the inode's bit is set: a second inode of the block finds the first one's bit, and must
    /// then find the block made already, never make or read it itself while the first one's owner is about to make it.
    fn first_of_table_block(
        &self,
        handle: &mut Handle,
        state: &GroupState,
        map: &Buf,
        index: u32,
    ) -> Result<()> {
        if self.table_block_in_use(state, map, index).is_none() {
            let block = index / self.geo.inodes_per_block();
            let buf = handle.create(Pblk(state.desc.inode_table.0 + u64::from(block)))?;
            buf.set_order(WriteOrder::Inode);
        }
        Ok(())
    }

    /// The table block of the inode at `index`, if an inode of it is in use. Under the group's lock.
    fn table_block_in_use(&self, state: &GroupState, map: &Buf, index: u32) -> Option<Pblk> {
        let per_block = self.geo.inodes_per_block();
        let block = index / per_block;
        let first = block * per_block;
        let end = (first + per_block).min(self.geo.inodes_per_group());
        let used = map.with(|bytes| bitmap::count_ones(bytes, first, end)) > 0;
        used.then(|| Pblk(state.desc.inode_table.0 + u64::from(block)))
    }

    /// The descriptor once the inode at `index` is in use.
    fn desc_with_inode(&self, state: &GroupState, index: u32, is_dir: bool) -> GroupDesc {
        let mut desc = state.desc;
        desc.free_inodes -= 1;
        desc.used_dirs += u32::from(is_dir);
        if self.has_group_csum() {
            desc.flags.remove(BgFlags::INODE_UNINIT);
            let unused = self.geo.inodes_per_group() - index - 1;
            desc.itable_unused = desc.itable_unused.min(unused);
        }
        desc
    }

    /// The group's inode bitmap, checked; `None` if it was never written. Reads; no lock held on entry.
    fn inode_bitmap(&self, g: usize) -> Result<Option<Buf>> {
        let group = self.group_nr(g);
        let (desc, corrupt) = {
            let state = self.groups[g].lock();
            (state.desc, state.inodes_corrupt)
        };
        if corrupt {
            return Err(AllocError::CorruptGroup { group });
        }
        if self.is_inode_uninit(&desc) {
            return Ok(None);
        }
        let buf = self.cache.read(desc.inode_bitmap)?;
        buf.set_order(WriteOrder::Bitmap);
        if buf.is_verified() {
            return Ok(Some(buf));
        }
        // Checked under the lock: bitmap and descriptor change together there.
        let state = self.groups[g].lock();
        let checked = buf.verify_once(|bytes| {
            let found = bitmap::count_zeros(bytes, 0, self.geo.inodes_per_group());
            state.desc.verify_inode_bitmap(group, bytes, &self.geo, &self.csum)?;
            if found == state.desc.free_inodes {
                Ok(())
            } else {
                Err(miscount(group, state.desc.free_inodes, found))
            }
        });
        match checked {
            Ok(()) => Ok(Some(buf)),
            Err(error) => {
                let error = AllocError::Format(error);
                self.fail_inodes(g, state, &error);
                Err(error)
            }
        }
    }

    /// Takes a group whose inode bitmap is bad, or whose descriptor lies about its inodes, out of inode allocation.
    pub(crate) fn fail_inodes(&self, g: usize, mut state: crate::group::GroupGuard<'_>, error: &AllocError) {
        if std::mem::replace(&mut state.inodes_corrupt, true) {
            return;
        }
        self.with_inodes.remove(g);
        self.free_inodes.fetch_sub(i64::from(state.desc.free_inodes), Ordering::Relaxed);
        drop(state);
        self.report(error);
    }

    /// The inode bitmap of an INODE_UNINIT group at its first use: all free, padded.
    fn first_inode_bitmap(&self, handle: &mut Handle, state: &GroupState) -> Result<Buf> {
        if !self.is_inode_uninit(&state.desc) {
            return Ok(self.cache.read(state.desc.inode_bitmap)?);
        }
        let buf = handle.create(state.desc.inode_bitmap)?;
        buf.set_order(WriteOrder::Bitmap);
        handle.modify(&buf, |bytes: &mut [u8]| {
            bytes.fill(0);
            bitmap::pad(bytes, self.geo.inodes_per_group());
        })?;
        let Ok(()) = buf.verify_once(|_| Ok::<(), std::convert::Infallible>(()));
        Ok(buf)
    }

    /// The group for a new directory, or `None` to try the parent's and then any.
    fn group_for_dir(&self, parent: usize, request: &InodeRequest) -> Option<usize> {
        let per_flex = self.geo.groups_per_flex() as usize;
        let flexes = self.groups.len().div_ceil(per_flex);
        let (groups, flex_count) = (self.groups.len() as u64, flexes as u64);
        let inodes = self.free_inode_count();
        let clusters = self.counters().disk_free();
        let dirs = self.dirs.load(Ordering::Relaxed).max(0) as u64;
        if request.top_level {
            let start = request.spread as usize % flexes;
            let average =
                Limits { dirs: u64::MAX, inodes: inodes / flex_count, clusters: clusters / flex_count };
            let best = self.flexes_from(start, flexes, per_flex).filter(|(_, s)| average.admits(s));
            let best = best.min_by_key(|(_, s)| s.dirs).map(|(f, _)| f);
            return best.and_then(|f| self.first_with_inodes(f * per_flex, per_flex));
        }
        let per = per_flex as u64;
        let ipg = u64::from(self.geo.inodes_per_group());
        let cpg = u64::from(self.geo.clusters_per_group());
        let limits = Limits {
            dirs: dirs * per / groups + ipg * per / 16,
            inodes: (inodes * per / groups).saturating_sub(ipg * per / 4).max(1),
            clusters: (clusters * per / groups).saturating_sub(cpg * per / 4),
        };
        let home = parent / per_flex;
        let (f, _) = self.flexes_from(home, flexes, per_flex).find(|(_, s)| limits.admits(s))?;
        if f == home {
            return self.first_from(parent, home * per_flex, per_flex);
        }
        self.first_with_inodes(f * per_flex, per_flex)
    }

    /// All flexible groups with their totals, from `start` on, round.
    fn flexes_from(
        &self,
        start: usize,
        flexes: usize,
        per_flex: usize,
    ) -> impl Iterator<Item = (usize, FlexStats)> {
        (start..flexes).chain(0..start).map(move |f| {
            let end = ((f + 1) * per_flex).min(self.groups.len());
            let mut stats = FlexStats { free_inodes: 0, free_clusters: 0, dirs: 0 };
            for group in &self.groups[f * per_flex..end] {
                let state = group.lock();
                stats.free_inodes += u64::from(state.desc.free_inodes);
                stats.free_clusters += u64::from(state.desc.free_clusters);
                stats.dirs += u64::from(state.desc.used_dirs);
            }
            (f, stats)
        })
    }

    fn first_with_inodes(&self, from: usize, len: usize) -> Option<usize> {
        self.with_inodes.next(from).filter(|g| *g < from + len)
    }

    fn first_from(&self, start: usize, from: usize, len: usize) -> Option<usize> {
        self.with_inodes.next(start).filter(|g| *g < from + len).or_else(|| self.first_with_inodes(from, len))
    }

    /// The other groups of `start`'s flexible group, the following ones first.
    fn flex_after(&self, start: usize) -> impl Iterator<Item = usize> + use<> {
        let per = self.geo.groups_per_flex() as usize;
        let first = start / per * per;
        let end = (first + per).min(self.groups.len());
        (start + 1..end).chain(first..start)
    }

    /// Groups at distances 1, 2, 4, ... from `start`, round: related files stay in the neighbourhood, and
    /// directories that share a group spill to different places.
    fn hops(&self, start: usize) -> impl Iterator<Item = usize> + use<> {
        let groups = self.groups.len();
        std::iter::successors(Some(1usize), |d| d.checked_mul(2))
            .take_while(move |d| *d < groups)
            .map(move |d| (start + d) % groups)
    }
}

impl Limits {
    fn admits(&self, stats: &FlexStats) -> bool {
        stats.free_inodes >= self.inodes.max(1)
            && stats.free_clusters >= self.clusters
            && stats.dirs <= self.dirs
    }
}

fn free_already(group: GroupNr, index: u32) -> AllocError {
    let kind = Corrupt::Bit { bit: index, set: false };
    FormatError::corrupt(Place::InodeBitmap(group), kind).into()
}

fn miscount(group: GroupNr, desc: u32, bitmap: u32) -> FormatError {
    let kind = Corrupt::Mismatch {
        field: "bg_free_inodes_count",
        value: u64::from(desc),
        expected: u64::from(bitmap),
    };
    FormatError::corrupt(Place::GroupDesc(group), kind)
}
