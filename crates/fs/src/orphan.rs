//! Orphans: inodes without links that are still open, and files whose truncation is not finished. After a crash the next
//! mount frees or truncates them.
//!
//! With the feature `orphan_file` they are in the slots of a file made for this; else, or when that is full, they form a list
//! from the superblock's `s_last_orphan` through the inodes' `i_dtime` (kernel ext4 documentation, "Orphan File" and
//! `s_last_orphan`).
//!
//! Locking: one lock, rank 95, for the list in memory and for choosing slots.

use extant_format::orphan_file::{self as file, OrphanFileError};
use extant_format::{Ino, Lblk, Pblk};
use extant_journal::{Buf, Handle};
use extant_map::Run;
use extant_sync::{Mutex, Rank};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

/// Where an orphan is recorded.
#[derive(Debug)]
enum Record {
    /// In a slot of the orphan file.
    Slot { block: u32, slot: u32 },
    /// In the list, between these (`Ino(0)`: the head, or the end). With its block of the inode table, so that the list is changed
    /// without a device; not of those that an earlier mount left, which may be many, and go from the head on.
    List { before: Ino, after: Ino, table: Option<Buf> },
}

#[derive(Debug, Default)]
struct State {
    records: FxHashMap<u32, Record>,
    /// Blocks of the orphan file; held, so that a slot is changed without a device.
    blocks: Vec<Buf>,
    seed: Option<u32>,
    /// Where to look for a free slot next.
    hand: (u32, u32),
    head: Ino,
    /// Numbers being processed at mount, which may be read although they have no links.
    pending: FxHashSet<u32>,
    /// What earlier mounts left is among the records.
    found: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Orphans(Mutex<State>);

impl Orphans {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Rank::ORPHAN, State::default()))
    }

    /// Whether `ino` is being processed at mount.
    pub(crate) fn is_pending(&self, ino: Ino) -> bool {
        self.0.lock().pending.contains(&ino.0)
    }
}

fn slot_error(pblk: Pblk, e: &OrphanFileError) -> Error {
    match e {
        OrphanFileError::Checksum { .. } => Error::Checksum(Place::Block(pblk)),
        e => Error::corrupt(Place::Block(pblk), CorruptKind::Layout(e.to_string().into())),
    }
}

impl Orphans {
    /// Whether an inode is recorded.
    pub(crate) fn has(&self, ino: Ino) -> bool {
        self.0.lock().records.contains_key(&ino.0)
    }

    /// Whether the orphan file has an entry; `None` if that was not found out.
    pub(crate) fn fill_slots(&self) -> Option<bool> {
        let state = self.0.lock();
        state.found.then(|| state.records.values().any(|record| matches!(record, Record::Slot { .. })))
    }
}

impl Filesystem {
    /// Records `inode` as an orphan; once is enough. Credits: [`ORPHAN`](crate::credits::ORPHAN). The caller writes the
    /// inode afterwards.
    pub(crate) fn orphan_add(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let mut state = self.orphans.0.lock();
        if state.records.contains_key(&inode.ino.0) {
            return Ok(());
        }
        if let Some(record) = self.take_slot(handle, &mut state, inode.ino)? {
            state.records.insert(inode.ino.0, record);
            return Ok(());
        }
        let table = Some(self.cache.read(inode.table.0)?);
        let after = state.head;
        if let Some(Record::List { before, .. }) = state.records.get_mut(&after.0) {
            *before = inode.ino;
        }
        state.records.insert(inode.ino.0, Record::List { before: Ino(0), after, table });
        state.head = inode.ino;
        inode.state().raw.dtime = after.0;
        self.write_super(handle, |sb| sb.set_last_orphan(inode.ino))
    }

    fn take_slot(&self, handle: &mut Handle, state: &mut State, ino: Ino) -> Result<Option<Record>> {
        let blocks = state.blocks.len() as u32;
        for step in 0..blocks {
            let block = (state.hand.0 + step) % blocks;
            let buf = state.blocks[block as usize].clone();
            let from = if step == 0 { state.hand.1 as usize } else { 0 };
            let Some(slot) = buf.with(|bytes| file::free_slot(bytes, from)) else { continue };
            self.set_slot(handle, state.seed, &buf, slot, ino)?;
            state.hand = (block, slot as u32 + 1);
            return Ok(Some(Record::Slot { block, slot: slot as u32 }));
        }
        Ok(None)
    }

    fn set_slot(
        &self,
        handle: &mut Handle,
        seed: Option<u32>,
        buf: &Buf,
        slot: usize,
        ino: Ino,
    ) -> Result<()> {
        let place = file::Place { inode_seed: seed, pblk: buf.pblk() };
        handle
            .modify(buf, |bytes| file::set(place, bytes, slot, ino))?
            .map_err(|e| slot_error(buf.pblk(), &e))
    }

    /// Takes `inode` off the record of orphans. Credits: [`ORPHAN`](crate::credits::ORPHAN). The caller writes the inode
    /// afterwards.
    pub(crate) fn orphan_del(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        let mut state = self.orphans.0.lock();
        let Some(record) = state.records.remove(&inode.ino.0) else { return Ok(()) };
        let (before, after) = match record {
            Record::Slot { block, slot } => {
                let buf = state.blocks[block as usize].clone();
                let seed = state.seed;
                state.hand = (block, slot);
                return self.set_slot(handle, seed, &buf, slot as usize, Ino(0));
            }
            Record::List { before, after, .. } => (before, after),
        };
        inode.state().raw.dtime = 0;
        if let Some(Record::List { before: b, .. }) = state.records.get_mut(&after.0) {
            *b = before;
        }
        if before.0 == 0 {
            state.head = after;
            return self.write_super(handle, |sb| sb.set_last_orphan(after));
        }
        let mut held = None;
        if let Some(Record::List { after: a, table, .. }) = state.records.get_mut(&before.0) {
            *a = after;
            held.clone_from(table);
        }
        self.relink(handle, (before, held), after)
    }

    /// Makes the orphan `before` lead to `after`, in memory and in its table block, which is read if it is not held.
    fn relink(&self, handle: &mut Handle, (before, held): (Ino, Option<Buf>), after: Ino) -> Result<()> {
        let (block, at) = self.inode_place(before)?;
        let buf = held.map_or_else(|| self.cache.read(block), Ok)?;
        // Also of one that is being freed: it is written again as its blocks go, maybe in a transaction before the last.
        if let Some(inode) = self.icache.in_core(before) {
            inode.state().raw.dtime = after.0;
            return self.write_inode_uncounted(handle, &inode, &buf);
        }
        let done = handle.modify(&buf, |bytes| {
            let mut raw = self.inode_format.decode(before, &bytes[at..])?;
            raw.dtime = after.0;
            self.inode_format.encode(before, &raw, &mut bytes[at..])
        })?;
        Ok(done?)
    }

    /// Opens the orphan file, and finds what an earlier mount left: such inodes can be read from now on although they
    /// have no links.
    pub(crate) fn find_orphans(&self) -> Result<Vec<Ino>> {
        let mut found = self.listed_orphans()?;
        self.open_orphan_file()?;
        found.extend(self.slot_orphans()?);
        let mut state = self.orphans.0.lock();
        state.pending = found.iter().map(|i| i.0).collect();
        state.found = true;
        drop(state);
        Ok(found)
    }

    /// Frees or finishes what an earlier mount left. As the kernel does, it passes over damage, and reports it: a list ends there, a
    /// slot is emptied, an inode stays as it is. A file whose content the device refuses stays an orphan.
    ///
    /// # Errors
    /// A bad block of the orphan file; the device's, and whatever ends all writing.
    pub(crate) fn process_orphans(&self) -> Result<()> {
        let found = self.find_orphans()?;
        let count = found.len();
        for ino in found {
            match self.process_orphan(ino) {
                Err(Error::Stale) if !self.journal.is_aborted() => self.drop_stale(ino)?,
                Err(e) if self.journal.is_aborted() || !e.is_corruption() => return Err(e),
                Err(e) => {
                    tracing::error!("inode {ino} was to be freed or cut, and stays as it is");
                    self.report(e);
                }
                Ok(()) => {}
            }
        }
        self.orphans.0.lock().pending.clear();
        if count > 0 {
            tracing::info!("{count} orphans processed");
        }
        Ok(())
    }

    /// Says what is wrong, and goes on.
    fn report(&self, error: Error) {
        let _ = self.noted::<()>(Err(error));
    }

    /// Takes an inode that is not in use off the record.
    fn drop_stale(&self, ino: Ino) -> Result<()> {
        let (block, slot) = {
            let mut state = self.orphans.0.lock();
            let Some(Record::Slot { block, slot }) = state.records.get(&ino.0) else { return Ok(()) };
            let place = (*block, *slot);
            state.records.remove(&ino.0);
            place
        };
        self.empty_slot(block, slot, "an inode that is not in use")
    }

    /// Empties a slot that leads to no orphan.
    fn empty_slot(&self, block: u32, slot: u32, what: &'static str) -> Result<()> {
        let (buf, seed) = {
            let state = self.orphans.0.lock();
            (state.blocks[block as usize].clone(), state.seed)
        };
        self.report(Error::corrupt(Place::Block(buf.pblk()), CorruptKind::Orphans(what)));
        self.in_small_handle(|handle| self.set_slot(handle, seed, &buf, slot as usize, Ino(0)))
    }

    fn in_small_handle(&self, change: impl FnOnce(&mut Handle) -> Result<()>) -> Result<()> {
        if self.journal.is_aborted() {
            // What was reported has ended all writing; the next mount finds it again.
            return Ok(());
        }
        let mut handle = self.journal.start(crate::credits::ORPHAN)?;
        change(&mut handle)?;
        handle.finish()?;
        Ok(())
    }

    /// Follows the list. At a loop, a wild number, or an inode that is not in use or not to be read it ends, on the disk too.
    fn listed_orphans(&self) -> Result<Vec<Ino>> {
        let mut found = Vec::new();
        let mut seen = FxHashSet::default();
        let mut next = self.sb.lock().last_orphan();
        while next.0 != 0 {
            match self.listed_orphan(next, &mut seen) {
                Ok(after) => {
                    found.push(next);
                    next = after;
                }
                // What cannot be read now may be read at the next mount: cut there, the rest would be lost, and nobody told.
                Err(error) if !error.is_corruption() => return Err(error),
                Err(error) => {
                    self.report(error);
                    self.in_small_handle(|handle| match found.last() {
                        Some(last) => self.relink(handle, (*last, None), Ino(0)),
                        None => self.write_super(handle, |sb| sb.set_last_orphan(Ino(0))),
                    })?;
                    break;
                }
            }
        }
        let mut state = self.orphans.0.lock();
        state.head = found.first().copied().unwrap_or(Ino(0));
        for (n, ino) in found.iter().enumerate() {
            let before = n.checked_sub(1).map_or(Ino(0), |b| found[b]);
            let after = found.get(n + 1).copied().unwrap_or(Ino(0));
            state.records.insert(ino.0, Record::List { before, after, table: None });
        }
        Ok(found)
    }

    /// What follows an orphan of the list.
    fn listed_orphan(&self, ino: Ino, seen: &mut FxHashSet<u32>) -> Result<Ino> {
        let bad = |what| Err(Error::corrupt(Place::Superblock, CorruptKind::Orphans(what)));
        if ino.0 > self.geo.inodes_count() || ino < self.geo.first_ino() {
            return bad("an impossible inode number");
        }
        if !seen.insert(ino.0) {
            return bad("the list goes round in a circle");
        }
        let (block, at) = self.inode_place(ino)?;
        let raw = self.cache.read(block)?.with(|bytes| self.inode_format.read(ino, &bytes[at..]))?;
        if raw.links_count == 0 && raw.mode == 0 {
            bad("an inode that is not in use")
        } else {
            Ok(Ino(raw.dtime))
        }
    }

    fn open_orphan_file(&self) -> Result<()> {
        let Some(ino) = self.sb.lock().orphan_file() else { return Ok(()) };
        let inode = self.iget(ino)?;
        let blocks = inode.size() >> self.geo.log_block_size();
        // As many as e2fsprogs makes at most; all are held in memory.
        let blocks = u32::try_from(blocks).ok().filter(|b| *b <= 512);
        let blocks =
            blocks.ok_or_else(|| Error::bad_inode(ino, "i_size of the orphan file", inode.size()))?;
        let mut places = Vec::new();
        for lblk in (0..blocks).map(Lblk) {
            match self.map_lookup(&inode, lblk, 1)? {
                Run::Mapped { pblk, unwritten: false, .. } => places.push(self.cache.read(pblk)?),
                _ => {
                    return Err(Error::corrupt(
                        Place::Inode(ino),
                        CorruptKind::Orphans("orphan file with a hole"),
                    ));
                }
            }
        }
        let mut state = self.orphans.0.lock();
        state.seed = self.csum.has_metadata().then_some(inode.csum_seed);
        state.blocks = places;
        Ok(())
    }

    fn slot_orphans(&self) -> Result<Vec<Ino>> {
        let (blocks, seed) = {
            let state = self.orphans.0.lock();
            (state.blocks.clone(), state.seed)
        };
        let (mut found, mut wild) = (Vec::new(), Vec::new());
        for (n, buf) in blocks.iter().enumerate() {
            let pblk = buf.pblk();
            let place = file::Place { inode_seed: seed, pblk };
            let bytes = buf.bytes();
            file::verify(place, &bytes).map_err(|e| slot_error(pblk, &e))?;
            for (slot, ino) in file::orphans(&bytes) {
                if ino.0 > self.geo.inodes_count() || ino < self.geo.first_ino() {
                    wild.push((n as u32, slot as u32));
                    continue;
                }
                let record = Record::Slot { block: n as u32, slot: slot as u32 };
                if self.orphans.0.lock().records.insert(ino.0, record).is_none() {
                    found.push(ino);
                }
            }
        }
        for (block, slot) in wild {
            self.empty_slot(block, slot, "an impossible inode number")?;
        }
        Ok(found)
    }

    fn process_orphan(&self, ino: Ino) -> Result<()> {
        let inode: InodeRef = self.iget(ino)?;
        if inode.is_dead() {
            // Dropping the last reference queues it; here the threads do not run yet.
            let raw = inode.clone();
            drop(inode);
            self.evict_orphan(raw);
            return Ok(());
        }
        self.finish_truncate(&inode)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
