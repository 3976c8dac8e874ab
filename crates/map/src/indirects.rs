//! Indirect maps (ext2, ext3): 15 pointers in the inode, up to three levels of blocks full of pointers.
//!
//! There is no checksum and no magic, so every pointer is checked when it is followed. A pointer of 0 is a hole, at
//! any level. Recursion is as deep as the levels, so pointers in circles end; what they point at is freed only once,
//! because a second time its bitmap bit is clear, which is an error.

use std::ops::Range;

use extant_alloc::{Claim, ClaimRequest, Reservation};
use extant_format::extent::Extent;
use extant_format::indirect::{DIND_BLOCK, IND_BLOCK, NDIR_BLOCKS, Path, TIND_BLOCK, first_of_slot, span};
use extant_format::{Corrupt, FormatError, Ino, Lblk, Pblk, Place};
use extant_journal::{Buf, Handle};

use crate::error::{MapError, Result};
use crate::fs::{Delta, MapFs, MapMut, Removed};
use crate::remove::Removal;
use crate::status::Run;

/// One past the last block that a pointer can name.
pub(crate) const POINTER_END: u64 = 1 << 32;

/// An indirect map that is being changed.
pub(crate) struct Indirects<'a, 'b> {
    fs: &'a MapFs,
    map: &'a mut MapMut<'b>,
    removed: Progress,
}

/// How far a removal came: everything from `left` to the range's end is a hole.
struct Progress {
    delta: Delta,
    left: u32,
    /// [`Handle::changes`] when that was so.
    changes: u64,
}

/// Where a pointer is.
#[derive(Clone)]
enum Slot {
    /// A word of `i_block`.
    Root(usize),
    /// A word of an indirect block.
    Block(Buf, usize),
}

impl<'a, 'b> Indirects<'a, 'b> {
    pub(crate) fn new(fs: &'a MapFs, map: &'a mut MapMut<'b>) -> Self {
        Self { fs, map, removed: Progress { delta: Delta::default(), left: u32::MAX, changes: 0 } }
    }

    /// What is at `lblk`: a run of pointers in one block that follow each other, or a hole up to where something may
    /// be.
    pub(crate) fn lookup(fs: &MapFs, ino: Ino, root: &[u8; 60], lblk: Lblk) -> Result<Run> {
        let bs = fs.geo.block_size();
        let Some(path) = Path::new(lblk, bs) else { return Ok(Run::Hole { len: u32::MAX - lblk.0 }) };
        let offsets = path.offsets();
        let mut pointer = word(root, offsets[0] as usize);
        if path.levels() == 0 {
            return Ok(scan(&root[..NDIR_BLOCKS as usize * 4], offsets[0] as usize));
        }
        let mut first = first_of_slot(offsets[0] as usize, bs);
        for (i, &offset) in offsets[1..].iter().enumerate() {
            let level = path.levels() - i as u8;
            if pointer == 0 {
                let end = first + span(level, bs) * u64::from(bs / 4);
                return Ok(Run::Hole { len: hole_len(lblk, end) });
            }
            let buf = fs.read_indirect(ino, pointer)?;
            if level == 1 {
                return Ok(buf.with(|bytes| scan(bytes, offset as usize)));
            }
            pointer = buf.with(|bytes| word(bytes, offset as usize));
            first += u64::from(offset) * span(level, bs);
        }
        Ok(Run::Hole { len: 1 })
    }

    /// Reads the indirect blocks on the ways to a range.
    pub(crate) fn hold(
        fs: &MapFs,
        ino: Ino,
        root: &[u8; 60],
        range: &Range<Lblk>,
        held: &mut Vec<Buf>,
    ) -> Result<()> {
        let bs = fs.geo.block_size();
        let mut at = range.start.0;
        while at < range.end.0 {
            let Some(path) = Path::new(Lblk(at), bs) else { break };
            let offsets = path.offsets();
            let mut pointer = word(root, offsets[0] as usize);
            for &offset in &offsets[1..] {
                if pointer == 0 {
                    break;
                }
                let buf = fs.read_indirect(ino, pointer)?;
                pointer = buf.with(|bytes| word(bytes, offset as usize));
                held.push(buf);
            }
            at = at.saturating_add(path.rest_of_block(bs) + 1);
        }
        Ok(())
    }

    /// Maps a hole; returns the indirect blocks added.
    pub(crate) fn insert(
        &mut self,
        handle: &mut Handle,
        extent: Extent,
        res: &mut Reservation,
    ) -> Result<u32> {
        if extent.unwritten {
            return Err(MapError::NoUnwritten { ino: self.map.ino });
        }
        if extent.pblk.0 + u64::from(extent.len) > POINTER_END {
            return Err(MapError::NotData {
                ino: self.map.ino,
                lblk: extent.lblk,
                pblk: extent.pblk,
                len: extent.len,
            });
        }
        let (kept, missing) = self.prepare(extent)?;
        let goal = self.fs.alloc.goal_for_inode(self.map.ino, false);
        let mut claims: Vec<Claim> = (0..missing)
            .map(|_| self.fs.alloc.claim_held(&ClaimRequest::tree_block(goal).below(POINTER_END), res))
            .collect::<std::result::Result<_, _>>()?;
        let (mut at, mut added) = (extent.lblk.0, 0);
        while at < extent.end() {
            let path = self.path(at)?;
            let (slot, new) = self.slot(handle, &path, &mut claims)?;
            added += new;
            let n = (path.rest_of_block(self.fs.geo.block_size()) + 1).min(extent.end() - at);
            let pblk = extent.pblk.0 + u64::from(at - extent.lblk.0);
            self.write_words(handle, &slot, n, pblk as u32)?;
            at += n;
        }
        drop(kept);
        Ok(added * self.fs.geo.cluster_ratio())
    }

    /// Reads every indirect block on the way to the range, so that nothing can fail later; checks that the range is a
    /// hole; counts the indirect blocks that are missing.
    fn prepare(&self, extent: Extent) -> Result<(Vec<Buf>, usize)> {
        let bs = self.fs.geo.block_size();
        let (mut kept, mut missing) = (Vec::new(), 0);
        // One past the last block that a missing block counted already will cover, by level.
        let mut covered = [0u64; 4];
        let mut at = extent.lblk.0;
        while at < extent.end() {
            let path = self.path(at)?;
            let n = (path.rest_of_block(bs) + 1).min(extent.end() - at);
            let offsets = path.offsets();
            let mut pointer = word(self.map.i_block, offsets[0] as usize);
            for (i, &offset) in offsets.iter().enumerate().skip(1) {
                let level = usize::from(path.levels()) - i + 1;
                if pointer == 0 {
                    let size = span(level as u8, bs) * u64::from(bs / 4);
                    let base = first_of_slot(offsets[0] as usize, bs);
                    if u64::from(at) >= covered[level] {
                        missing += 1;
                        covered[level] = base + ((u64::from(at) - base) / size + 1) * size;
                    }
                    continue;
                }
                let buf = self.fs.read_indirect(self.map.ino, pointer)?;
                pointer = buf.with(|bytes| word(bytes, offset as usize));
                kept.push(buf);
            }
            let run = Self::lookup(self.fs, self.map.ino, self.map.i_block, Lblk(at))?;
            match run {
                Run::Hole { len } if len >= n => at += n,
                Run::Hole { len } => {
                    let next = Self::lookup(self.fs, self.map.ino, self.map.i_block, Lblk(at + len))?;
                    if matches!(next, Run::Mapped { .. }) {
                        return Err(MapError::Overlap { ino: self.map.ino, lblk: Lblk(at + len) });
                    }
                    at += len;
                }
                Run::Mapped { .. } => return Err(MapError::Overlap { ino: self.map.ino, lblk: Lblk(at) }),
            }
        }
        Ok((kept, missing))
    }

    fn path(&self, lblk: u32) -> Result<Path> {
        let too_big = MapError::TooBig { ino: self.map.ino, lblk: u64::from(lblk) };
        Path::new(Lblk(lblk), self.fs.geo.block_size()).ok_or(too_big)
    }

    /// The place of a block's pointer; indirect blocks that are missing on the way are made. Returns how many.
    fn slot(&mut self, handle: &mut Handle, path: &Path, claims: &mut Vec<Claim>) -> Result<(Slot, u32)> {
        let offsets = path.offsets();
        let mut slot = Slot::Root(offsets[0] as usize);
        let mut added = 0;
        for &offset in &offsets[1..] {
            let pointer = self.read_word(&slot);
            let buf = if pointer == 0 {
                let mut claim = claims.pop().expect("missing indirect blocks were counted before");
                self.fs.alloc.publish(handle, &mut claim, 1)?;
                let buf = handle.create(claim.pblk())?;
                self.write_words(handle, &slot, 1, claim.pblk().0 as u32)?;
                added += 1;
                buf
            } else {
                self.fs.read_indirect(self.map.ino, pointer)?
            };
            slot = Slot::Block(buf, offset as usize);
        }
        Ok((slot, added))
    }

    fn read_word(&self, slot: &Slot) -> u32 {
        match slot {
            Slot::Root(at) => word(self.map.i_block, *at),
            Slot::Block(buf, at) => buf.with(|bytes| word(bytes, *at)),
        }
    }

    /// Writes `n` pointers from a slot on: to blocks from `first` on, or holes if that is 0.
    fn write_words(&mut self, handle: &mut Handle, slot: &Slot, n: u32, first: u32) -> Result<()> {
        let write = |bytes: &mut [u8], at: usize| {
            for i in 0..n as usize {
                let pointer = if first == 0 { 0 } else { first + i as u32 };
                bytes[(at + i) * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
            }
        };
        match slot {
            Slot::Root(at) => write(&mut self.map.i_block[..], *at),
            Slot::Block(buf, at) => handle.modify(buf, |bytes: &mut [u8]| write(bytes, *at))?,
        }
        Ok(())
    }

    /// Makes a range a hole, from its end, as far as the credits go.
    pub(crate) fn remove(&mut self, handle: &mut Handle, removal: Removal) -> Result<Removed> {
        self.removed = Progress { delta: Delta::default(), left: removal.end, changes: handle.changes() };
        let finished = self.remove_all(handle, removal);
        let Progress { delta, left, changes } = self.removed;
        match finished {
            Ok(true) => Ok(Removed { delta, left: None }),
            Ok(false) => Ok(Removed { delta, left: Some(Lblk(left)) }),
            // What was done before is whole, and counts. The next call will meet the error, with nothing done.
            Err(_) if left < removal.end && handle.changes() == changes => {
                Ok(Removed { delta, left: Some(Lblk(left)) })
            }
            Err(error) => Err(error),
        }
    }

    /// The same; false if the credits are used up.
    fn remove_all(&mut self, handle: &mut Handle, removal: Removal) -> Result<bool> {
        let bs = self.fs.geo.block_size();
        for slot in [TIND_BLOCK, DIND_BLOCK, IND_BLOCK] {
            let level = (slot - IND_BLOCK + 1) as u8;
            let first = first_of_slot(slot, bs);
            let lo = u64::from(removal.start).max(first);
            let hi = u64::from(removal.end).min(first + span(level, bs) * u64::from(bs / 4));
            let pointer = word(self.map.i_block, slot);
            if lo >= hi || pointer == 0 {
                continue;
            }
            let branch = Branch { level, first, pointer };
            if !self.remove_branch(handle, &branch, (lo, hi), removal, &Slot::Root(slot))? {
                return Ok(false);
            }
        }
        let end = removal.end.min(NDIR_BLOCKS);
        if removal.start >= end {
            return Ok(true);
        }
        let words: Vec<u32> = (removal.start..end).map(|i| word(self.map.i_block, i as usize)).collect();
        for (run, len) in runs_backwards(&words) {
            let most = self.fs.freeable(handle.journal(), removal.budget(handle), removal.content);
            // Twelve pointers at most: all of them or nothing.
            if most < len {
                return Ok(false);
            }
            let at = removal.start + run as u32;
            self.free_run(handle, (at, words[run], len), &Slot::Root(at as usize), removal)?;
        }
        Ok(true)
    }

    /// Removes `[lo, hi)` below an indirect block, and the block if it has no pointer left; false if the credits are used up.
    fn remove_branch(
        &mut self,
        handle: &mut Handle,
        branch: &Branch,
        (lo, hi): (u64, u64),
        removal: Removal,
        parent: &Slot,
    ) -> Result<bool> {
        let buf = self.fs.read_indirect(self.map.ino, branch.pointer)?;
        let size = span(branch.level, self.fs.geo.block_size());
        let from = ((lo - branch.first) / size) as usize;
        let to = ((hi - 1 - branch.first) / size) as usize + 1;
        let words: Vec<u32> = buf.with(|bytes| (from..to).map(|i| word(bytes, i)).collect());
        if branch.level > 1 {
            for i in (from..to).rev().filter(|i| words[i - from] != 0) {
                let first = branch.first + i as u64 * size;
                let child = Branch { level: branch.level - 1, first, pointer: words[i - from] };
                let part = (lo.max(first), hi.min(first + size));
                if !self.remove_branch(handle, &child, part, removal, &Slot::Block(buf.clone(), i))? {
                    return Ok(false);
                }
            }
        } else {
            let (first, fs) = (branch.first + from as u64, self.fs);
            for (run, len) in runs_backwards(&words) {
                let mut left = len;
                while left > 0 {
                    let budget = removal.budget(handle).saturating_sub(MapFs::EMPTIED);
                    let now = fs.freeable(handle.journal(), budget, removal.content).min(left);
                    if now == 0 {
                        return Ok(false);
                    }
                    left -= now;
                    let at = run + left as usize;
                    let lblk = first as u32 + at as u32;
                    let slot = Slot::Block(buf.clone(), from + at);
                    self.free_run(handle, (lblk, words[run] + left, now), &slot, removal)?;
                }
            }
        }
        self.drop_if_empty(handle, &buf, parent, removal, lo as u32)
    }

    /// Frees `len` blocks from `pblk` on that are mapped at `lblk`, their pointers from `slot` on.
    fn free_run(
        &mut self,
        handle: &mut Handle,
        (lblk, pblk, len): (u32, u32, u32),
        slot: &Slot,
        removal: Removal,
    ) -> Result<()> {
        let gone = [Extent { lblk: Lblk(lblk), len, pblk: Pblk(u64::from(pblk)), unwritten: false }];
        let _held = self.fs.prepare_free(self.map.ino, &gone, removal.content)?;
        self.write_words(handle, slot, len, 0)?;
        self.removed.delta.data -= self.fs.free_runs(handle, self.map, &gone, removal.content)?;
        (self.removed.left, self.removed.changes) = (lblk, handle.changes());
        Ok(())
    }

    /// Frees an indirect block that has no pointer left, and clears the one to it; false if the credits are used up. The range
    /// from `lblk` on, which is as far as it reaches below the block, is a hole then.
    fn drop_if_empty(
        &mut self,
        handle: &mut Handle,
        buf: &Buf,
        parent: &Slot,
        removal: Removal,
        lblk: u32,
    ) -> Result<bool> {
        if buf.with(|bytes| bytes.iter().any(|b| *b != 0)) {
            return Ok(true);
        }
        if removal.budget(handle) < MapFs::DROPPED {
            return Ok(false);
        }
        let _held = self.fs.alloc.prepare_free(buf.pblk(), 1)?;
        self.write_words(handle, parent, 1, 0)?;
        handle.revoke(buf.pblk())?;
        self.fs.alloc.free(handle, buf.pblk(), 1)?;
        self.removed.delta.tree -= i64::from(self.fs.geo.cluster_ratio());
        self.removed.left = self.removed.left.min(lblk);
        self.removed.changes = handle.changes();
        Ok(true)
    }
}

/// An indirect block and what it covers.
struct Branch {
    /// 1: its pointers are data blocks.
    level: u8,
    /// The first block that it covers.
    first: u64,
    pointer: u32,
}

impl MapFs {
    /// Reads an indirect block, if the pointer can be one.
    fn read_indirect(&self, ino: Ino, pointer: u32) -> Result<Buf> {
        let pblk = Pblk(u64::from(pointer));
        if !self.alloc.is_data_range(pblk, 1) {
            let (first, last) = (u64::from(self.geo.first_data_block()), self.geo.blocks_count() - 1);
            let kind = Corrupt::BlockOutside { field: "i_block", block: pblk.0, first, last };
            return Err(FormatError::corrupt(Place::IndirectBlock(ino, pblk), kind).into());
        }
        Ok(self.cache.read(pblk)?)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at * 4..at * 4 + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// The run that starts at pointer `at` of a block of pointers.
fn scan(bytes: &[u8], at: usize) -> Run {
    let first = word(bytes, at);
    let words = (at..bytes.len() / 4).map(|i| word(bytes, i));
    if first == 0 {
        return Run::Hole { len: words.take_while(|w| *w == 0).count() as u32 };
    }
    let following = words.enumerate().take_while(|(i, w)| u64::from(*w) == u64::from(first) + *i as u64);
    Run::Mapped { pblk: Pblk(u64::from(first)), len: following.count() as u32, unwritten: false }
}

fn hole_len(lblk: Lblk, end: u64) -> u32 {
    end.min(u64::from(u32::MAX)).saturating_sub(u64::from(lblk.0)).max(1) as u32
}

/// Runs of pointers to blocks that follow each other, the last first: index and length.
fn runs_backwards(words: &[u32]) -> Vec<(usize, u32)> {
    let mut runs: Vec<(usize, u32)> = Vec::new();
    for (i, &w) in words.iter().enumerate().filter(|(_, w)| **w != 0) {
        match runs.last_mut() {
            Some((at, len)) if *at + *len as usize == i && words[*at].checked_add(*len) == Some(w) => {
                *len += 1;
            }
            _ => runs.push((i, 1)),
        }
    }
    runs.reverse();
    runs
}
