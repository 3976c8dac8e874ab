//! Applying fast commits to a filesystem.
//!
//! The records come in the order in which Linux wrote them; each says what is so afterwards: this name is there, this one is
//! not, these blocks belong to the file, this is the inode. Some name what never came to be (a file made and removed between
//! two commits): those are passed over. What an inode's record says of its blocks is not used where a map exists: the map
//! is brought up to date by the ranges, and counts its own blocks.
//!
//! # Blocks
//! Bitmaps are not in the records; they follow from the maps. While records are applied no data block is allocated or
//! freed: ranges that come go to `added`, ranges that go to `dropped`, both as whole clusters. Whatever is free and will
//! be added is claimed first, so that new directory and tree blocks go elsewhere. At the end the bits of what was added are
//! set, and those of what was dropped and not added again (by whichever file) are cleared.
//!
//! # Links
//! A file's record brings its link count; names that come and go after it count up and down. Directories have no records
//! after their first, so their counts follow from the names alone. What has no links at the end is freed.
//!
//! Sources: the kernel's `Documentation/filesystems/ext4/journal.rst`, "Fast commits", and the records that Linux 6.18
//! was seen to write.

use std::collections::BTreeMap;
use std::ops::Range;

use extant_alloc::{Claim, Privilege, Reservation};
use extant_format::fast_commit::{Dentry, Operation};
use extant_format::inline;
use extant_format::inode::{FileType, GOOD_OLD_INODE_SIZE, I_BLOCK_SIZE, Inode as RawInode, InodeFlags};
use extant_format::{Ino, Lblk, Pblk};
use extant_journal::Handle;
use extant_map::{Content, Extent, LBLK_END, MapFs, MapKind, MapRef, Run, Written};
use rustc_hash::{FxHashMap, FxHashSet};

use super::blocks::Blocks;
use crate::dir::check_name;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::{self, Inode};

/// Blocks that the one handle of a replay may change without more ado.
const CREDITS: u32 = 1 << 24;

/// Applies `records` to `fs`, which nobody else uses, and writes the result to its device.
pub(super) fn replay(fs: &Filesystem, records: &[Operation]) -> Result<()> {
    fs.quota_open()?;
    fs.find_orphans()?;
    let mut replay = Replay::new(fs, records)?;
    let mut handle = fs.journal.start(CREDITS)?;
    let done = replay.run(&mut handle);
    done.and_then(|()| Ok(handle.finish()?))?;
    fs.journal.commit_all()?;
    Ok(())
}

struct Replay<'a> {
    fs: &'a Filesystem,
    records: &'a [Operation],
    /// Where each inode's own records are.
    images: FxHashMap<u32, Vec<usize>>,
    /// Inodes in use that records name.
    touched: BTreeMap<u32, InodeRef>,
    /// New directories that have no name and no block yet.
    bare: FxHashSet<u32>,
    /// Free clusters that ranges name.
    claims: Vec<(u64, u64, Claim)>,
    /// The same as a set: these bits are clear on the device.
    free: Blocks,
    added: FxHashMap<u32, Blocks>,
    dropped: Blocks,
    /// Pays for directory and tree blocks.
    purse: Reservation,
}

fn bad(ino: Ino, what: &str) -> Error {
    Error::corrupt(Place::Inode(ino), CorruptKind::Journal(format!("fast commit: {what}").into()))
}

impl<'a> Replay<'a> {
    fn new(fs: &'a Filesystem, records: &'a [Operation]) -> Result<Self> {
        let mut images: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
        let mut named = Blocks::default();
        for (at, record) in records.iter().enumerate() {
            match record {
                Operation::Inode { ino, .. } => images.entry(ino.0).or_default().push(at),
                Operation::AddRange { ino, pblk, len, .. } => {
                    if !fs.alloc.is_data_range(*pblk, u64::from(*len)) {
                        return Err(bad(*ino, &format!("blocks {pblk}+{len} are no data blocks")));
                    }
                    named.insert(clusters(fs, *pblk, *len));
                }
                _ => {}
            }
        }
        let mut replay = Self {
            fs,
            records,
            images,
            touched: BTreeMap::new(),
            bare: FxHashSet::default(),
            claims: Vec::new(),
            free: Blocks::default(),
            added: FxHashMap::default(),
            dropped: Blocks::default(),
            purse: fs.alloc.no_reservation(Privilege::Pool),
        };
        for run in named.runs() {
            for claim in fs.alloc.claim_at(Pblk(run.start), existing(fs, &run))? {
                let (from, to) = (claim.pblk().0, claim.pblk().0 + u64::from(claim.len()));
                replay.free.insert(from..to);
                replay.claims.push((from, to, claim));
            }
        }
        Ok(replay)
    }

    fn run(&mut self, handle: &mut Handle) -> Result<()> {
        let records = self.records;
        for (at, record) in records.iter().enumerate() {
            match record {
                Operation::Inode { ino, raw } => self.image(handle, *ino, raw)?,
                Operation::AddRange { ino, lblk, len, pblk, unwritten } => {
                    let extent = Extent { lblk: *lblk, len: *len, pblk: *pblk, unwritten: *unwritten };
                    self.add_range(handle, at, *ino, extent)?;
                }
                Operation::DelRange { ino, lblk, len } => {
                    if let Some(inode) = self.in_use(*ino)?.filter(|inode| self.fs.has_map(inode)) {
                        self.refuse_directory(&inode)?;
                        self.remove(handle, &inode, lblk.0, lblk.0.saturating_add(*len))?;
                    }
                }
                Operation::Create(name) => self.link(handle, at, name, true)?,
                Operation::Link(name) => self.link(handle, at, name, false)?,
                Operation::Unlink(name) => self.unlink(handle, name)?,
            }
        }
        self.free_dead(handle)?;
        self.settle_blocks(handle)?;
        for inode in self.touched.values() {
            self.fs.write_inode(handle, inode)?;
        }
        Ok(())
    }

    /// The inode of that number, if it is in use.
    fn in_use(&mut self, ino: Ino) -> Result<Option<InodeRef>> {
        if let Some(inode) = self.touched.get(&ino.0) {
            return Ok(Some(inode.clone()));
        }
        let ordinary =
            ino == Ino::ROOT || (ino >= self.fs.geo.first_ino() && ino.0 <= self.fs.geo.inodes_count());
        if !ordinary || self.fs.is_system_inode(ino) {
            return Err(bad(ino, "not an ordinary inode"));
        }
        if !self.fs.alloc.inode_in_use(ino)? {
            return Ok(None);
        }
        match self.fs.iget(ino) {
            Ok(inode) if inode.flags().contains(InodeFlags::EA_INODE) => {
                Err(bad(ino, "an attribute's value"))
            }
            Ok(inode) => {
                self.touched.insert(ino.0, inode.clone());
                Ok(Some(inode))
            }
            Err(Error::Stale) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The same; if it is not in use yet, it is made from its next record after `at`.
    fn in_use_or_made(&mut self, handle: &mut Handle, at: usize, ino: Ino) -> Result<Option<InodeRef>> {
        if let Some(inode) = self.in_use(ino)? {
            return Ok(Some(inode));
        }
        let records = self.records;
        let list = self.images.get(&ino.0).map_or(&[][..], Vec::as_slice);
        let next = list.get(list.partition_point(|i| *i < at)).map(|i| &records[*i]);
        let Some(Operation::Inode { raw, .. }) = next else { return Ok(None) };
        self.make(handle, ino, raw, 0).map(Some)
    }

    fn refuse_directory(&self, inode: &Inode) -> Result<()> {
        if inode.is_dir() { Err(bad(inode.ino, "a range of a directory")) } else { Ok(()) }
    }

    /// Brings an inode into the state that its record says.
    fn image(&mut self, handle: &mut Handle, ino: Ino, record: &[u8]) -> Result<()> {
        let Some(inode) = self.in_use(ino)? else {
            return self.make(handle, ino, record, 0).map(drop);
        };
        let raw = self.decode(ino, Some(&inode), record)?;
        if raw.generation == inode.generation() && raw.file_type() == Some(inode.kind()) {
            return self.update(handle, &inode, raw, record);
        }
        // The number was freed and is another file's now.
        let next_orphan = inode.state().raw.dtime;
        self.empty(handle, &inode)?;
        self.fs.xattr_free_all(handle, &inode)?;
        self.fs.quota_gone(handle, &inode)?;
        self.fs.alloc.free_inode(handle, ino, inode.is_dir())?;
        drop(inode);
        self.touched.remove(&ino.0);
        self.bare.remove(&ino.0);
        self.fs.icache.forget(ino);
        self.make(handle, ino, record, next_orphan).map(drop)
    }

    /// A record's fields, laid over those that the inode table has where the record ends.
    fn decode(&self, ino: Ino, inode: Option<&Inode>, record: &[u8]) -> Result<RawInode> {
        let size = usize::from(self.fs.inode_format.inode_size());
        let mut slot = vec![0; size];
        if let Some(inode) = inode {
            let at = inode.table.1;
            self.fs.cache.read(inode.table.0)?.with(|bytes| slot.copy_from_slice(&bytes[at..at + size]));
        }
        let part = slot.get_mut(..record.len()).ok_or_else(|| bad(ino, "a record longer than an inode"))?;
        part.copy_from_slice(record);
        let raw = self.fs.inode_format.decode(ino, &slot)?;
        let kind = raw.file_type().ok_or_else(|| Error::bad_inode(ino, "i_mode", raw.mode.into()))?;
        inode::check(ino, kind, &raw, self.fs)?;
        Ok(raw)
    }

    fn update(
        &mut self,
        handle: &mut Handle,
        inode: &InodeRef,
        mut raw: RawInode,
        record: &[u8],
    ) -> Result<()> {
        let ino = inode.ino;
        let now = inode.state().raw.clone();
        if raw.file_acl != now.file_acl {
            return Err(bad(ino, "a record with other extended attributes"));
        }
        if inode.is_dir() {
            // Names and their number are kept by the records of names.
            (raw.size, raw.links_count, raw.i_block, raw.flags) =
                (now.size, now.links_count, now.i_block, now.flags);
        } else if raw.has_inline_data() {
            self.empty(handle, inode)?;
            self.store_tail(handle, inode, record, raw.extra_isize)?;
            *inode.map.write() = raw.i_block;
        } else if is_mapped(inode.kind(), &raw) {
            self.map_kind(handle, inode, raw.flags.contains(InodeFlags::EXTENTS))?;
            raw.i_block = *inode.map.read();
        } else {
            *inode.map.write() = raw.i_block;
        }
        let mut state = inode.state();
        (raw.dtime, raw.blocks) = (now.dtime, state.raw.blocks);
        state.size = raw.size;
        state.raw = raw;
        drop(state);
        self.count_links(inode);
        Ok(())
    }

    /// Gives the inode a block map of the wanted kind, with the blocks that it has.
    fn map_kind(&mut self, handle: &mut Handle, inode: &InodeRef, extents: bool) -> Result<()> {
        let fs = self.fs;
        if fs.is_inline(inode) {
            fs.inline_drop(handle, inode)?;
        }
        if (inode.map_kind() == MapKind::Extents) == extents {
            return Ok(());
        }
        if extents && !fs.has_extents() {
            return Err(bad(inode.ino, "extents on a filesystem without them"));
        }
        fs.change_map_kind(handle, inode, extents, &mut self.purse)
    }

    /// Copies what a record has of the inode's attribute area, where inline content is.
    fn store_tail(&self, handle: &mut Handle, inode: &Inode, record: &[u8], extra: u16) -> Result<()> {
        let buf = self.fs.cache.read(inode.table.0)?;
        let from = usize::from(GOOD_OLD_INODE_SIZE + extra);
        let Some(tail) = record.get(from..) else { return Ok(()) };
        let at = inode.table.1 + from;
        handle.modify(&buf, |bytes| bytes[at..at + tail.len()].copy_from_slice(tail))?;
        Ok(())
    }

    /// Makes an inode from its record. A directory has no block before it gets its name.
    fn make(&mut self, handle: &mut Handle, ino: Ino, record: &[u8], next_orphan: u32) -> Result<InodeRef> {
        let fs = self.fs;
        let mut raw = self.decode(ino, None, record)?;
        let kind = raw.file_type().ok_or_else(|| Error::bad_inode(ino, "i_mode", raw.mode.into()))?;
        if raw.file_acl.0 != 0 {
            return Err(bad(ino, "a new inode with extended attributes"));
        }
        fs.alloc.take_inode(handle, ino, kind == FileType::Directory)?;
        let place = fs.inode_place(ino)?;
        let size = usize::from(fs.inode_format.inode_size());
        let buf = fs.cache.read(place.0)?;
        handle.modify(&buf, |bytes| bytes[place.1..place.1 + size].fill(0))?;
        (raw.blocks, raw.dtime) = (0, next_orphan);
        if kind == FileType::Directory {
            (raw.size, raw.links_count) = (0, 2);
            raw.flags.remove(InodeFlags::INDEX);
            self.bare.insert(ino.0);
        }
        if kind == FileType::Directory || is_mapped(kind, &raw) {
            let extents = raw.flags.contains(InodeFlags::EXTENTS);
            if extents && !fs.has_extents() {
                return Err(bad(ino, "extents on a filesystem without them"));
            }
            let map = if extents { MapKind::Extents } else { MapKind::Indirect };
            MapFs::init(map, &mut raw.i_block, ino);
        }
        let (inline, extra) = (raw.has_inline_data() && kind != FileType::Directory, raw.extra_isize);
        let ids = [raw.uid, raw.gid, raw.projid];
        let mut inode = fs.build_inode(ino, kind, raw, place, std::sync::Arc::downgrade(&fs.icache));
        inode.counted = crate::quota::counted(ids, 0, 0);
        if inline {
            self.store_tail(handle, &inode, record, extra)?;
        }
        let inode = fs.icache.insert_new(inode)?;
        self.touched.insert(ino.0, inode.clone());
        Ok(inode)
    }

    fn count_links(&self, inode: &Inode) {
        let none = inode.state().raw.links_count == 0;
        inode.set_dead(none);
    }

    /// A directory that names can be looked up in; `None` for what is none (any more, or yet).
    fn directory(&mut self, ino: Ino) -> Result<Option<InodeRef>> {
        let Some(dir) = self.in_use(ino)? else { return Ok(None) };
        if !dir.is_dir() || dir.is_dead() || self.bare.contains(&ino.0) {
            return Ok(None);
        }
        self.fs.check_dir(&dir)?;
        Ok(Some(dir))
    }

    fn link(&mut self, handle: &mut Handle, at: usize, name: &Dentry, create: bool) -> Result<()> {
        check_name(&name.name).map_err(|_| bad(name.parent, "an impossible name"))?;
        let Some(dir) = self.directory(name.parent)? else { return Ok(()) };
        let Some(inode) = self.in_use_or_made(handle, at, name.ino)? else { return Ok(()) };
        let old = match self.fs.find(&dir, &name.name)? {
            Some(found) if found.ino == name.ino => return Ok(()),
            old => old,
        };
        if inode.is_dir() {
            if !create || !self.bare.remove(&name.ino.0) || old.is_some() {
                return Err(bad(name.ino, "a second name for a directory"));
            }
            self.first_block(handle, &inode, dir.ino)?;
            self.fs.inc_links(&dir);
        } else if !create {
            let mut state = inode.state();
            state.raw.links_count = state.raw.links_count.saturating_add(1);
        }
        self.count_links(&inode);
        match old {
            Some(old) => {
                self.fs.redirect_name(handle, &dir, &old, (inode.ino, inode.kind()))?;
                self.unlinked(&dir, old.ino)?;
            }
            None => {
                let plan = self.fs.plan_name(&dir, &name.name)?;
                let mut blocks =
                    self.fs.alloc.reserve(plan.blocks().into(), plan.blocks().into(), Privilege::Pool)?;
                let child = (inode.ino, inode.kind());
                self.fs.add_name(handle, &dir, plan, &name.name, child, &mut blocks)?;
            }
        }
        self.fs.touch_dir(handle, &dir)
    }

    /// Gives a new directory its first block, or the inline form of it.
    fn first_block(&mut self, handle: &mut Handle, dir: &InodeRef, parent: Ino) -> Result<()> {
        if !self.fs.is_inline(dir) {
            let mut blocks = self.fs.alloc.reserve(1, 1, Privilege::Pool)?;
            return self.fs.init_dir(handle, dir, parent, &mut blocks);
        }
        let mut i_block = [0; I_BLOCK_SIZE];
        inline::init_dir(&self.fs.layout, &mut i_block, parent);
        *dir.map.write() = i_block;
        {
            let mut state = dir.state();
            state.raw.i_block = i_block;
            state.size = I_BLOCK_SIZE as u64;
            state.raw.size = state.size;
        }
        let mut data = self.fs.inline_read(dir)?;
        data.second.clear();
        self.fs.inline_store(handle, dir, data, I_BLOCK_SIZE as u64)
    }

    fn unlink(&mut self, handle: &mut Handle, name: &Dentry) -> Result<()> {
        check_name(&name.name).map_err(|_| bad(name.parent, "an impossible name"))?;
        let Some(dir) = self.directory(name.parent)? else { return Ok(()) };
        let found = self.fs.find(&dir, &name.name)?.filter(|found| found.ino == name.ino);
        let Some(found) = found else { return Ok(()) };
        if name.name == b"." || name.name == b".." {
            return Err(bad(name.parent, "removes `.` or `..`"));
        }
        self.fs.remove_name(handle, &dir, &found)?;
        self.unlinked(&dir, name.ino)?;
        self.fs.touch_dir(handle, &dir)
    }

    /// A name of `ino` in `dir` is gone.
    fn unlinked(&mut self, dir: &InodeRef, ino: Ino) -> Result<()> {
        let Some(inode) = self.in_use(ino)? else { return Ok(()) };
        if inode.is_dir() {
            if ino == Ino::ROOT || !self.fs.dir_is_empty(&inode)? {
                return Err(bad(ino, "removes a directory with names"));
            }
            inode.state().raw.links_count = 0;
            self.fs.dec_links(dir);
        } else {
            let mut state = inode.state();
            state.raw.links_count = state.raw.links_count.saturating_sub(1);
        }
        self.count_links(&inode);
        Ok(())
    }

    fn add_range(&mut self, handle: &mut Handle, at: usize, ino: Ino, extent: Extent) -> Result<()> {
        let Some(inode) = self.in_use_or_made(handle, at, ino)? else { return Ok(()) };
        self.refuse_directory(&inode)?;
        if self.fs.is_inline(&inode) {
            self.fs.inline_drop(handle, &inode)?;
        }
        if !self.fs.has_map(&inode) {
            return Err(bad(ino, "a range of an inode without blocks"));
        }
        if extent.unwritten && inode.map_kind() == MapKind::Indirect {
            return Err(bad(ino, "unwritten blocks in an indirect map"));
        }
        let mut at = extent.lblk.0;
        while at < extent.end() {
            let want = extent.pblk_of(Lblk(at));
            let run = self.fs.map_lookup(&inode, Lblk(at), extent.end() - at)?;
            let len = match run {
                Run::Hole { len } | Run::Mapped { len, .. } => len.min(extent.end() - at).max(1),
            };
            match run {
                Run::Mapped { pblk, unwritten, .. } if pblk == want => {
                    if unwritten != extent.unwritten {
                        let to = if extent.unwritten { Written::No } else { Written::Yes };
                        let mut i_block = inode.map.write();
                        let mut map = inode.map_mut(&mut i_block);
                        let delta =
                            self.fs.map.convert(handle, &mut map, Lblk(at), len, to, &mut self.purse)?;
                        self.fs.map_changed(&inode, &i_block, delta.total());
                    }
                }
                run => {
                    if matches!(run, Run::Mapped { .. }) {
                        self.remove(handle, &inode, at, at + len)?;
                    }
                    let piece = Extent { lblk: Lblk(at), len, pblk: want, ..extent };
                    let mut i_block = inode.map.write();
                    let new = self.new_clusters(&inode.map_ref(&i_block), piece)?;
                    let mut map = inode.map_mut(&mut i_block);
                    let delta = self.fs.map.insert(handle, &mut map, piece, &mut self.purse)?;
                    self.fs.map_changed(&inode, &i_block, delta.total());
                    self.added.entry(ino.0).or_default().insert(new);
                }
            }
            at += len;
        }
        Ok(())
    }

    /// The clusters of a hole's blocks-to-be that the file does not have yet.
    fn new_clusters(&self, map: &MapRef<'_>, piece: Extent) -> Result<Range<u64>> {
        let ratio = u64::from(self.fs.geo.cluster_ratio());
        let mut run = clusters(self.fs, piece.pblk, piece.len);
        if ratio == 1 {
            return Ok(run);
        }
        let ends = [piece.lblk, Lblk(piece.end() - 1)].map(|lblk| (lblk, piece.pblk_of(lblk)));
        let [first, last] = ends.map(|(lblk, at)| match self.fs.map.implied(map, lblk)? {
            Some(there) if there != at => Err(bad(map.ino, "a cluster in two places")),
            there => Ok(there.is_some()),
        });
        run.start += ratio * u64::from(first?);
        run.end -= ratio * u64::from(last? && run.start < run.end);
        Ok(run)
    }

    /// Makes a hole of `from..to`; the blocks stay allocated until the end.
    fn remove(&mut self, handle: &mut Handle, inode: &InodeRef, from: u32, to: u32) -> Result<()> {
        let mut gone = Vec::new();
        {
            let mut i_block = inode.map.write();
            let mut at = from;
            while let Some((lblk, Run::Mapped { pblk, len, .. })) =
                self.fs.map.next_mapped(&inode.map_ref(&i_block), Lblk(at), to)?
            {
                let len = len.min(to - lblk.0);
                gone.push((lblk, pblk, len));
                at = lblk.0 + len;
            }
            let mut map = inode.map_mut(&mut i_block);
            let span = Lblk(from)..Lblk(to);
            let removed = self.fs.map.remove(handle, &mut map, span, Content::Kept, 0, &mut self.purse)?;
            if removed.left.is_some() {
                return Err(bad(inode.ino, "a range with more extents than can be removed at once"));
            }
            self.fs.map_changed(inode, &i_block, removed.delta.total());
        }
        for (lblk, pblk, len) in gone {
            self.drop_run(inode, lblk, pblk, len)?;
        }
        Ok(())
    }

    /// Notes that blocks left an inode's map. With bigalloc a cluster goes with the last block of it that is mapped.
    fn drop_run(&mut self, inode: &Inode, lblk: Lblk, pblk: Pblk, len: u32) -> Result<()> {
        let ratio = self.fs.geo.cluster_ratio();
        let mut run = clusters(self.fs, pblk, len);
        if ratio > 1 {
            let i_block = inode.map.read();
            let map = inode.map_ref(&i_block);
            if self.fs.map.implied(&map, lblk)?.is_some() {
                run.start += u64::from(ratio);
            }
            if run.start < run.end && self.fs.map.implied(&map, Lblk(lblk.0 + len - 1))?.is_some() {
                run.end -= u64::from(ratio);
            }
        }
        if run.start < run.end {
            if let Some(added) = self.added.get_mut(&inode.ino.0) {
                added.remove(&run);
            }
            self.dropped.insert(run);
        }
        Ok(())
    }

    /// Takes all blocks and inline content of an inode away; it has an empty map then, if it can have one.
    fn empty(&mut self, handle: &mut Handle, inode: &InodeRef) -> Result<()> {
        if inode.is_dir() || !self.fs.has_map(inode) {
            if inode.is_dir() && self.fs.has_map(inode) {
                self.remove(handle, inode, 0, LBLK_END)?;
            }
            return Ok(());
        }
        self.remove(handle, inode, 0, LBLK_END)
    }

    /// Frees what has no links.
    fn free_dead(&mut self, handle: &mut Handle) -> Result<()> {
        for ino in std::mem::take(&mut self.bare) {
            if let Some(dir) = self.touched.get(&ino) {
                dir.state().raw.links_count = 0;
                self.count_links(dir);
            }
        }
        let dead: Vec<InodeRef> = self.touched.values().filter(|i| i.is_dead()).cloned().collect();
        for inode in dead {
            self.empty(handle, &inode)?;
            self.fs.free_inode_in(handle, &inode)?;
            self.touched.remove(&inode.ino.0);
        }
        Ok(())
    }

    /// Sets and clears the bits of what was added and dropped.
    fn settle_blocks(&mut self, handle: &mut Handle) -> Result<()> {
        let mut used = Blocks::default();
        for (ino, blocks) in &self.added {
            for run in blocks.runs() {
                if !used.within(run.clone()).is_empty() {
                    return Err(bad(Ino(*ino), &format!("blocks {run:?} belong to another file too")));
                }
                used.insert(run);
            }
        }
        let mut taken = used.clone();
        taken.subtract(&self.free);
        taken.subtract(&self.dropped);
        if let Some(run) = taken.runs().next() {
            let what = format!("fast commit: blocks {run:?} are in use already");
            return Err(Error::corrupt(Place::Block(Pblk(run.start)), CorruptKind::Journal(what.into())));
        }
        for (from, to, claim) in self.claims.drain(..) {
            publish_parts(self.fs, handle, claim, from, &used.within(from..to))?;
        }
        let mut gone = std::mem::take(&mut self.dropped);
        gone.subtract(&used);
        gone.subtract(&self.free);
        for run in gone.runs() {
            self.fs.alloc.free(handle, Pblk(run.start), existing(self.fs, &run))?;
        }
        Ok(())
    }
}

/// Publishes the parts of a claim that begins at block `at`, and gives the rest back.
fn publish_parts(
    fs: &Filesystem,
    handle: &mut Handle,
    claim: Claim,
    mut at: u64,
    parts: &[Range<u64>],
) -> Result<()> {
    let mut rest = Some(claim);
    for part in parts {
        let Some(mut claim) = rest.take() else { break };
        if part.start > at {
            claim = claim.split_off((part.start - at) as u32);
        }
        let len = (part.end - part.start) as u32;
        if len < claim.len() {
            rest = Some(claim.split_off(len));
        }
        fs.alloc.publish(handle, &mut claim, len)?;
        at = part.end;
    }
    Ok(())
}

/// The whole clusters that a run of blocks touches.
fn clusters(fs: &Filesystem, pblk: Pblk, len: u32) -> Range<u64> {
    let start =
        |block: u64| fs.geo.bit_of_block(Pblk(block)).map_or(block, |(g, bit)| fs.geo.block_of_bit(g, bit).0);
    let last = start(pblk.0 + u64::from(len) - 1);
    start(pblk.0)..last + u64::from(fs.geo.cluster_ratio())
}

/// Blocks of a run that exist: the last cluster may be a part of one.
fn existing(fs: &Filesystem, run: &Range<u64>) -> u64 {
    run.end.min(fs.geo.blocks_count()).saturating_sub(run.start)
}

/// Whether `i_block` of such an inode is a block map.
fn is_mapped(kind: FileType, raw: &RawInode) -> bool {
    match kind {
        FileType::Regular => !raw.has_inline_data(),
        FileType::Symlink => !raw.has_inline_data() && !raw.is_fast_symlink(),
        _ => false,
    }
}
