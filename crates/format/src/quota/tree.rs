//! The radix tree of a quota file: find, walk, insert, change, remove.

use super::{
    BLOCK_LEN, DATA_HEADER_LEN, Dqblk, QuotaError, QuotaInfo, QuotaKind, REFS, ROOT_BLOCK, RawDataHeader,
    Revision, TREE_LEVELS, write_entry,
};
use alloc::vec::Vec;
use zerocopy::FromBytes;

type Block = [u8; BLOCK_LEN];

/// The 1 KiB blocks of a quota file.
pub trait QuotaStore {
    /// What can fail besides the format.
    type Error: From<QuotaError>;

    /// Reads block `block` of the file.
    ///
    /// # Errors
    /// The store's.
    fn read(&mut self, block: u32, into: &mut Block) -> Result<(), Self::Error>;

    /// Writes block `block` of the file, which may lie one block behind its end: the file grows then.
    ///
    /// # Errors
    /// The store's.
    fn write(&mut self, block: u32, from: &Block) -> Result<(), Self::Error>;
}

/// Where an entry lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryPlace {
    /// Its data block.
    pub block: u32,
    /// Its place among the block's entries.
    pub slot: usize,
}

impl EntryPlace {
    pub(super) const fn at(self, revision: Revision) -> usize {
        DATA_HEADER_LEN + self.slot * revision.entry_len()
    }
}

/// A quota file's tree.
#[derive(Debug)]
pub struct QuotaFile<S> {
    store: S,
    kind: QuotaKind,
    info: QuotaInfo,
}

fn reference(block: &Block, index: usize) -> u32 {
    let at = index * 4;
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn set_reference(block: &mut Block, index: usize, value: u32) {
    block[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
}

/// The index of `id` in a tree block of that level, the root being level 0.
fn index(id: u32, level: usize) -> usize {
    (id >> (8 * (TREE_LEVELS - 1 - level))) as usize & (REFS - 1)
}

fn data_header(block: &Block) -> RawDataHeader {
    RawDataHeader::read_from_prefix(block).map_or(
        RawDataHeader {
            dqdh_next_free: 0.into(),
            dqdh_prev_free: 0.into(),
            dqdh_entries: 0.into(),
            dqdh_pad1: 0.into(),
            dqdh_pad2: 0.into(),
        },
        |(header, _)| header,
    )
}

fn entry_bytes(block: &Block, slot: usize, revision: Revision) -> &[u8] {
    let at = DATA_HEADER_LEN + slot * revision.entry_len();
    &block[at..at + revision.entry_len()]
}

fn entry(block: &Block, slot: usize, revision: Revision) -> (u32, Dqblk) {
    Dqblk::decode(entry_bytes(block, slot, revision), revision)
}

fn is_free(block: &Block, slot: usize, revision: Revision) -> bool {
    entry_bytes(block, slot, revision).iter().all(|&b| b == 0)
}

impl<S: QuotaStore> QuotaFile<S> {
    /// Opens a file of `kind` and `file_len` bytes, of revision 1.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] of block 0.
    pub fn open(store: S, kind: QuotaKind, file_len: u64) -> Result<Self, S::Error> {
        let file = Self::open_any(store, kind, file_len)?;
        match file.info.revision {
            Revision::R1 => Ok(file),
            Revision::R0 => Err(QuotaError::Version(0).into()),
        }
    }

    /// The same, of any revision.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_any(mut store: S, kind: QuotaKind, file_len: u64) -> Result<Self, S::Error> {
        let mut block = [0; BLOCK_LEN];
        store.read(0, &mut block)?;
        let info = QuotaInfo::read(kind, &block, file_len)?;
        Ok(Self { store, kind, info })
    }

    /// The info of block 0.
    pub const fn info(&self) -> &QuotaInfo {
        &self.info
    }

    /// The store.
    pub const fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Changes the grace times.
    ///
    /// # Errors
    /// The store's.
    pub fn set_grace(&mut self, bgrace: u32, igrace: u32) -> Result<(), S::Error> {
        (self.info.bgrace, self.info.igrace) = (bgrace, igrace);
        self.write_info()
    }

    fn write_info(&mut self) -> Result<(), S::Error> {
        let mut block = [0; BLOCK_LEN];
        self.store.read(0, &mut block)?;
        self.info.write(self.kind, &mut block);
        self.store.write(0, &block)
    }

    fn check(&self, at: u32, block: u32) -> Result<(), QuotaError> {
        // Neither block 0 nor the root is ever referred to.
        if block <= ROOT_BLOCK || block >= self.info.blocks {
            return Err(QuotaError::BlockRange { at, block, blocks: self.info.blocks });
        }
        Ok(())
    }

    fn read_data(&mut self, at: u32, block: u32, into: &mut Block) -> Result<RawDataHeader, S::Error> {
        self.check(at, block)?;
        self.store.read(block, into)?;
        let header = data_header(into);
        let entries = header.dqdh_entries.get();
        if usize::from(entries) > self.info.revision.entries() {
            return Err(QuotaError::Entries { block, entries }.into());
        }
        Ok(header)
    }

    /// The entry of `id` and where it lies; `None` if there is none.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way.
    pub fn find(&mut self, id: u32) -> Result<Option<(EntryPlace, Dqblk)>, S::Error> {
        let (mut at, mut block) = (ROOT_BLOCK, [0; BLOCK_LEN]);
        for level in 0..TREE_LEVELS {
            self.store.read(at, &mut block)?;
            let next = reference(&block, index(id, level));
            if next == 0 {
                return Ok(None);
            }
            self.check(at, next)?;
            at = next;
        }
        match self.entry_in(at, id, &mut block)? {
            None => Err(QuotaError::EntryMissing { block: at, id }.into()),
            found => Ok(found),
        }
    }

    /// Overwrites the entry at `place`, which [`QuotaFile::find`] or [`QuotaFile::insert`] gave for `id`: one block is
    /// written, in place.
    ///
    /// # Errors
    /// The store's; [`QuotaError::EntryMissing`] if another id is there.
    pub fn update(&mut self, place: EntryPlace, id: u32, dq: &Dqblk) -> Result<(), S::Error> {
        let mut block = [0; BLOCK_LEN];
        self.read_data(place.block, place.block, &mut block)?;
        let revision = self.info.revision;
        let free = place.slot >= revision.entries() || is_free(&block, place.slot, revision);
        if free || entry(&block, place.slot, revision).0 != id {
            return Err(QuotaError::EntryMissing { block: place.block, id }.into());
        }
        write_entry(&mut block, place, revision, (id, dq));
        self.store.write(place.block, &block)
    }

    /// Stores limits and usage of `id`, adding the entry if it is not there.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way.
    pub fn set(&mut self, id: u32, dq: &Dqblk) -> Result<EntryPlace, S::Error> {
        match self.find(id)? {
            Some((place, _)) => self.update(place, id, dq).map(|()| place),
            None => self.insert(id, dq),
        }
    }

    /// Adds an entry for `id`, which has none. Writes up to [`TREE_LEVELS`] tree blocks, two data blocks and block 0.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way; the tree refers to nothing new then.
    pub fn insert(&mut self, id: u32, dq: &Dqblk) -> Result<EntryPlace, S::Error> {
        let place = self.take_slot(id, dq)?;
        let mut path = Vec::new();
        let (mut at, mut block) = (ROOT_BLOCK, [0; BLOCK_LEN]);
        self.store.read(at, &mut block)?;
        for level in 0..TREE_LEVELS {
            let next = reference(&block, index(id, level));
            if next == 0 || level == TREE_LEVELS - 1 {
                path.push((level, at, block));
                break;
            }
            self.check(at, next)?;
            at = next;
            self.store.read(at, &mut block)?;
        }
        let Some((level, at, mut parent)) = path.pop() else {
            return Err(QuotaError::EntryMissing { block: at, id }.into());
        };
        // New tree blocks from the lowest up, so that what is referred to exists.
        let mut child = place.block;
        for lower in (level + 1..TREE_LEVELS).rev() {
            let fresh = self.take_block()?;
            let mut node = [0; BLOCK_LEN];
            set_reference(&mut node, index(id, lower), child);
            self.store.write(fresh, &node)?;
            child = fresh;
        }
        set_reference(&mut parent, index(id, level), child);
        self.store.write(at, &parent)?;
        self.write_info()?;
        Ok(place)
    }

    /// Removes the entry of `id`, and the blocks that become empty by it. False if there was none.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way.
    pub fn remove(&mut self, id: u32) -> Result<bool, S::Error> {
        let Some((place, _)) = self.find(id)? else {
            return Ok(false);
        };
        let mut path = [ROOT_BLOCK; TREE_LEVELS];
        let mut block = [0; BLOCK_LEN];
        for level in 0..TREE_LEVELS - 1 {
            self.store.read(path[level], &mut block)?;
            path[level + 1] = reference(&block, index(id, level));
        }
        self.free_slot(place)?;
        for level in (0..TREE_LEVELS).rev() {
            let at = path[level];
            self.store.read(at, &mut block)?;
            set_reference(&mut block, index(id, level), 0);
            let empty = block.iter().all(|&b| b == 0);
            if empty && at != ROOT_BLOCK {
                self.give_block(at)?;
                continue;
            }
            self.store.write(at, &block)?;
            break;
        }
        self.write_info()?;
        Ok(true)
    }

    /// Takes a block from the list of unused ones, or grows the file; block 0 is left to the caller.
    fn take_block(&mut self) -> Result<u32, S::Error> {
        let free = self.info.free_blk;
        if free == 0 {
            let fresh = self.info.blocks;
            self.info.blocks = fresh.checked_add(1).ok_or(QuotaError::Full(fresh))?;
            return Ok(fresh);
        }
        let mut block = [0; BLOCK_LEN];
        self.read_data(0, free, &mut block)?;
        let next = data_header(&block).dqdh_next_free.get();
        if next != 0 {
            self.check(free, next)?;
        }
        self.info.free_blk = next;
        Ok(free)
    }

    fn give_block(&mut self, at: u32) -> Result<(), S::Error> {
        let mut block = [0; BLOCK_LEN];
        block[..4].copy_from_slice(&self.info.free_blk.to_le_bytes());
        self.info.free_blk = at;
        self.store.write(at, &block)
    }

    /// Finds a free entry, fills it, and keeps the list of blocks with free entries right.
    fn take_slot(&mut self, id: u32, dq: &Dqblk) -> Result<EntryPlace, S::Error> {
        let mut block = [0; BLOCK_LEN];
        let mut at = self.info.free_entry;
        if at == 0 {
            at = self.take_block()?;
            self.info.free_entry = at;
        } else {
            self.read_data(0, at, &mut block)?;
        }
        let revision = self.info.revision;
        let slot = (0..revision.entries())
            .find(|&s| is_free(&block, s, revision))
            .ok_or(QuotaError::FreeList(at))?;
        let entries = data_header(&block).dqdh_entries.get() + 1;
        if usize::from(entries) >= revision.entries() {
            self.unlink_free(&mut block, at)?;
        }
        block[8..10].copy_from_slice(&entries.to_le_bytes());
        let place = EntryPlace { block: at, slot };
        write_entry(&mut block, place, revision, (id, dq));
        self.store.write(at, &block)?;
        Ok(place)
    }

    fn free_slot(&mut self, place: EntryPlace) -> Result<(), S::Error> {
        let mut block = [0; BLOCK_LEN];
        let header = self.read_data(place.block, place.block, &mut block)?;
        let entries = header.dqdh_entries.get();
        let left = entries.checked_sub(1).ok_or(QuotaError::Entries { block: place.block, entries })?;
        let revision = self.info.revision;
        block[place.at(revision)..place.at(revision) + revision.entry_len()].fill(0);
        block[8..10].copy_from_slice(&left.to_le_bytes());
        let listed = self.info.free_entry == place.block || header.dqdh_prev_free.get() != 0;
        if left == 0 {
            if listed {
                self.unlink_free(&mut block, place.block)?;
            }
            return self.give_block(place.block);
        }
        if !listed {
            self.link_free(&mut block, place.block)?;
        }
        self.store.write(place.block, &block)
    }

    /// Takes `at`, whose content is `block` (written by the caller), out of the list of blocks with free entries.
    fn unlink_free(&mut self, block: &mut Block, at: u32) -> Result<(), S::Error> {
        let header = data_header(block);
        let (next, previous) = (header.dqdh_next_free.get(), header.dqdh_prev_free.get());
        let mut other = [0; BLOCK_LEN];
        if next != 0 {
            self.read_data(at, next, &mut other)?;
            other[4..8].copy_from_slice(&previous.to_le_bytes());
            self.store.write(next, &other)?;
        }
        if previous == 0 {
            self.info.free_entry = next;
        } else {
            self.read_data(at, previous, &mut other)?;
            other[..4].copy_from_slice(&next.to_le_bytes());
            self.store.write(previous, &other)?;
        }
        block[..8].fill(0);
        Ok(())
    }

    fn link_free(&mut self, block: &mut Block, at: u32) -> Result<(), S::Error> {
        let next = self.info.free_entry;
        if next != 0 {
            let mut other = [0; BLOCK_LEN];
            self.read_data(0, next, &mut other)?;
            other[4..8].copy_from_slice(&at.to_le_bytes());
            self.store.write(next, &other)?;
        }
        block[..4].copy_from_slice(&next.to_le_bytes());
        block[4..8].fill(0);
        self.info.free_entry = at;
        Ok(())
    }

    /// Calls `each` for every entry, in order of ids as the tree has them.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way; [`QuotaError::Loop`] if a tree block is reached twice.
    pub fn for_each(&mut self, mut each: impl FnMut(u32, &Dqblk)) -> Result<(), S::Error> {
        let mut first = None;
        self.scan(&mut each, |e| first = first.or(Some(e)))?;
        first.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Up to `most` entries with ids from `from` on, in order of ids.
    ///
    /// # Errors
    /// The store's, or a [`QuotaError`] on the way.
    pub fn entries_from(&mut self, from: u32, most: usize) -> Result<Vec<(u32, Dqblk)>, S::Error> {
        let mut found = Vec::new();
        let mut block = [0; BLOCK_LEN];
        // A place in the tree, and the id so far. Each leads to ids of its own, and one that has none at the end is an error, so
        // this ends in a damaged tree too.
        let mut stack: Vec<(usize, u32, u32)> = alloc::vec![(0, ROOT_BLOCK, 0)];
        while let Some((level, at, id)) = stack.pop() {
            if found.len() >= most {
                break;
            }
            if level == TREE_LEVELS {
                let missing = QuotaError::EntryMissing { block: at, id };
                found.push((id, self.entry_in(at, id, &mut block)?.ok_or(missing)?.1));
                continue;
            }
            self.store.read(at, &mut block)?;
            let shift = 8 * (TREE_LEVELS - 1 - level);
            for n in (0..REFS).rev() {
                let (next, below) = (reference(&block, n), id | (n as u32) << shift);
                if next != 0 && below | ((1 << shift) - 1) >= from {
                    self.check(at, next)?;
                    stack.push((level + 1, next, below));
                }
            }
        }
        Ok(found)
    }

    /// The entry of `id` in the data block at `at`.
    fn entry_in(
        &mut self,
        at: u32,
        id: u32,
        block: &mut Block,
    ) -> Result<Option<(EntryPlace, Dqblk)>, S::Error> {
        self.read_data(at, at, block)?;
        let revision = self.info.revision;
        for slot in 0..revision.entries() {
            let (found, dq) = entry(block, slot, revision);
            if found == id && !is_free(block, slot, revision) {
                return Ok(Some((EntryPlace { block: at, slot }, dq)));
            }
        }
        Ok(None)
    }

    /// Calls `each` for every entry that can be reached, and `bad` for what is wrong on the way; goes on behind it.
    ///
    /// # Errors
    /// The store's.
    pub fn scan(
        &mut self,
        mut each: impl FnMut(u32, &Dqblk),
        mut bad: impl FnMut(QuotaError),
    ) -> Result<(), S::Error> {
        let blocks = self.info.blocks;
        // Both bounded by the file's length, which the file really has.
        let (mut tree, mut data) = (Seen::new(blocks), Seen::new(blocks));
        let mut left = 4 * u64::from(blocks) + 1024;
        let mut stack: Vec<(usize, u32)> = alloc::vec![(0, ROOT_BLOCK)];
        let mut block = [0; BLOCK_LEN];
        while let Some((level, at)) = stack.pop() {
            if level == TREE_LEVELS {
                // Several ids share a data block.
                if data.mark(at) {
                    continue;
                }
                self.store.read(at, &mut block)?;
                let entries = data_header(&block).dqdh_entries.get();
                if usize::from(entries) > self.info.revision.entries() {
                    bad(QuotaError::Entries { block: at, entries });
                }
                entries_of(&block, self.info.revision, &mut each);
                continue;
            }
            // A tree block has one place; what a second one leads to is looked at, but not for ever.
            if tree.mark(at) {
                bad(QuotaError::Loop(at));
            }
            let Some(rest) = left.checked_sub(1) else {
                return Ok(());
            };
            left = rest;
            self.store.read(at, &mut block)?;
            for next in (0..REFS).rev().map(|n| reference(&block, n)).filter(|&n| n != 0) {
                if next >= ROOT_BLOCK && next < blocks {
                    stack.push((level + 1, next));
                }
                if let Err(e) = self.check(at, next) {
                    bad(e);
                }
            }
        }
        Ok(())
    }
}

/// Which blocks of the file were met.
struct Seen(Vec<u8>);

impl Seen {
    fn new(blocks: u32) -> Self {
        Self(alloc::vec![0; blocks as usize / 8 + 1])
    }

    /// Notes a block; whether it was noted before.
    fn mark(&mut self, block: u32) -> bool {
        let Some(byte) = self.0.get_mut(block as usize / 8) else {
            return true;
        };
        let bit = 1 << (block % 8);
        let before = *byte & bit != 0;
        *byte |= bit;
        before
    }
}

fn entries_of(block: &Block, revision: Revision, each: &mut impl FnMut(u32, &Dqblk)) {
    for slot in (0..revision.entries()).filter(|&s| !is_free(block, s, revision)) {
        let (id, dq) = entry(block, slot, revision);
        each(id, &dq);
    }
}
