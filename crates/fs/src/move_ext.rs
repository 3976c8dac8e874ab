//! `EXT4_IOC_MOVE_EXT`: the content of a file moves to blocks that another file, the donor, has ready; the donor gets the blocks that
//! were the file's, unwritten. What defragmentation is made of.
//!
//! A call is cut into slices, each under the locks of both files: what is dirty is written; the donor's pages leave the cache; then, as
//! much at a time as a handle takes, written blocks are copied on the device, and one handle exchanges the extents in both maps. The
//! pages of the file stay as they are: their content has not changed, and what of them is dirty later is written to the new blocks.
//!
//! # After a crash
//! The copy is on the device before the exchange can be durable (a commit flushes first), and until then the file has its old blocks.
//! The donor may write into those at once, so nobody else gets at it before the exchange is durable: a slice ends with a commit under
//! the locks. The donor's own content is lost from the first copy on. Without a journal a crash in between wants a check, as ever.
//!
//! # Locks
//! Both inode locks, both `invalidate_lock`s exclusively, both writeback gates, each by number: over copy and exchange no page of either
//! is filled or written (test `explore_map::moving_a_pinned_page`).

use extant_alloc::{Reservation, ToFree};
use extant_format::inode::{I_BLOCK_SIZE, InodeFlags};
use extant_format::{Lblk, Tid};
use extant_journal::{Buf, Handle};
use extant_map::{Content, Extent, MapKind, Run};
use extant_sync::WriteGuard;

use crate::create::key;
use crate::cred::Credentials;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;

/// Bytes that are moved under the locks at a time.
const SLICE: u64 = 16 << 20;
/// Bytes that are copied at a time.
const COPY: u64 = 4 << 20;
/// Extents that one handle exchanges at most.
const MOST_PIECES: u32 = 128;
/// What two starts may not differ by, in bytes: pages of the kernel's.
const PAGE: u64 = 4096;
/// Set-user-id and set-group-id.
const SET_ID: u16 = 0o6000;

/// What is to be moved, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveRange {
    /// Where the file's content begins.
    pub orig_start: u64,
    /// Where the donor's blocks begin.
    pub donor_start: u64,
    /// How many.
    pub len: u64,
}

/// A run of blocks that is one extent in both files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    orig: Extent,
    donor: Extent,
}

/// Both files, as they are locked.
#[derive(Clone, Copy)]
struct Pair<'a> {
    orig: &'a InodeRef,
    donor: &'a InodeRef,
}

impl<'a> Pair<'a> {
    /// In the order of their locks.
    fn ordered(self) -> [&'a InodeRef; 2] {
        if self.orig.ino.0 < self.donor.ino.0 { [self.orig, self.donor] } else { [self.donor, self.orig] }
    }
}

/// A range of blocks that is within both files, and how far it is done.
#[derive(Clone, Copy)]
struct Slice {
    orig: u32,
    donor: u32,
    len: u32,
}

impl Slice {
    fn skip(&mut self, blocks: u32) {
        self.orig += blocks;
        self.donor += blocks;
        self.len -= blocks;
    }
}

impl Filesystem {
    /// Moves content of `orig` to blocks of `donor`; how many blocks. Holes of either stay. Blocks of `orig` that are unwritten get the
    /// donor's, unwritten. The range ends where one of the files does.
    ///
    /// Whoever calls has checked that the caller may read and write `orig` and write `donor`.
    ///
    /// # Errors
    /// `Invalid`: one file twice, a range without content, starts that differ within a page, a donor with set-user-id or set-group-id;
    /// `NotPermitted` for an immutable or append-only donor; `NotSupported` for what is not on extents, has clusters, is in DAX mode,
    /// or goes through the journal; `Busy` for a donor that is pinned; `NoSpace` for the maps; damage; the device's. An error after some blocks were
    /// moved is the next call's.
    pub fn move_extents(
        &self,
        orig: &InodeRef,
        donor: &InodeRef,
        range: MoveRange,
        cred: &Credentials,
    ) -> Result<u64> {
        let pair = Pair { orig, donor };
        let (mut done, mut moved) = (0, 0);
        let result = loop {
            match self.with_space(|| self.noted(self.move_slice(pair, range, done, cred))) {
                Ok(Some((blocks, of_them))) => {
                    done += blocks;
                    moved += of_them;
                }
                Ok(None) => break Ok(moved),
                Err(_) if moved > 0 => break Ok(moved),
                Err(error) => break Err(error),
            }
        };
        // Room was kept behind the old place.
        orig.window.release();
        result
    }

    /// Moves the part of `range` that begins `done` blocks in: how many blocks it goes on, and how many of them were moved. `None` at
    /// its end.
    fn move_slice(
        &self,
        pair: Pair<'_>,
        range: MoveRange,
        done: u64,
        cred: &Credentials,
    ) -> Result<Option<(u64, u64)>> {
        let _write = self.begin_write()?;
        if pair.orig.ino == pair.donor.ino {
            return Err(Error::Invalid("a file as its own donor"));
        }
        let [first, second] = pair.ordered();
        let _first = first.lock.write_ordered(key::child(first.ino, false));
        let _second = second.lock.write_ordered(key::child(second.ino, false));
        self.check_movable(pair)?;
        let Some(slice) = self.slice(pair, range, done)? else { return Ok(None) };
        let data = [first.data(self), second.data(self)];
        let numbers = [first, second].map(|inode| u64::from(inode.ino.0));
        let no_faults =
            [data[0].pages.exclusive_ordered(numbers[0]), data[1].pages.exclusive_ordered(numbers[1])];
        // From the time when a file was in DAX mode: a transfer would reach the other file.
        if data.iter().zip(&no_faults).any(|(data, guard)| data.pages.may_be_written_unseen(guard, &***data))
        {
            return Err(Error::Busy);
        }
        self.settle_pair(pair, slice)?;
        let _gates = (!without!(self, MoveGate))
            .then(|| [data[0].pages.gate_ordered(numbers[0]), data[1].pages.gate_ordered(numbers[1])]);
        let mut left = slice;
        let (mut moved, mut last) = (0, None);
        let mut buffer = Vec::new();
        let result = (|| {
            while left.len > 0 {
                let (skipped, pieces) = self.pieces(pair, left)?;
                left.skip(skipped);
                if pieces.is_empty() {
                    continue;
                }
                self.copy(&pieces, &mut buffer)?;
                last = Some(self.exchange_blocks(pair, &pieces, cred)?);
                let blocks: u32 = pieces.iter().map(|piece| piece.orig.len).sum();
                left.skip(blocks);
                moved += u64::from(blocks);
            }
            Ok(())
        })();
        if let Some(tid) = last.filter(|_| self.journal.has_log()) {
            self.journal.wait_commit(tid)?;
        }
        match result {
            Err(error) if moved == 0 => Err(error),
            // The next slice meets the error again.
            _ => Ok(Some((u64::from(slice.len - left.len), moved))),
        }
    }

    /// Refuses files whose blocks cannot be moved.
    fn check_movable(&self, pair: Pair<'_>) -> Result<()> {
        for inode in [pair.orig, pair.donor] {
            self.check_content(inode)?;
            if self.is_inline(inode) {
                return Err(Error::NotSupported("moving content that is kept in the inode"));
            }
            if inode.map_kind() != MapKind::Extents {
                return Err(Error::NotSupported("moving blocks of a file without extents"));
            }
            if self.journals_data(inode) {
                return Err(Error::NotSupported("moving data that goes through the journal"));
            }
            // Mappings show the blocks themselves, and a store to them waits for nothing here.
            if inode.data(self).pages.is_dax() {
                return Err(Error::NotSupported("moving blocks of a file in DAX mode"));
            }
        }
        if self.geo.cluster_ratio() > 1 {
            return Err(Error::NotSupported("moving blocks on a filesystem with clusters (bigalloc)"));
        }
        let donor = pair.donor.state();
        if donor.raw.mode & SET_ID != 0 {
            return Err(Error::Invalid("a donor with set-user-id or set-group-id"));
        }
        if donor.raw.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    /// The part of a range that is in both files, from `done` blocks on; `None` if nothing is left of it.
    fn slice(&self, pair: Pair<'_>, range: MoveRange, done: u64) -> Result<Option<Slice>> {
        const END: u64 = extant_map::LBLK_END as u64;
        let block = u64::from(self.geo.block_size());
        let per_page = (PAGE / block).max(1);
        let MoveRange { orig_start, donor_start, len } = range;
        let past = |start: u64| start.checked_add(len).is_none_or(|end| end >= END);
        if len == 0 || past(orig_start) || past(donor_start) {
            return Err(Error::Invalid("no blocks, or more than a file can have"));
        }
        if orig_start % per_page != donor_start % per_page {
            return Err(Error::Invalid("blocks that begin in different places of a page"));
        }
        let room = |inode: &Inode, start: u64| inode.size().div_ceil(block).saturating_sub(start);
        let there = room(pair.orig, orig_start).min(room(pair.donor, donor_start)).min(len);
        if there == 0 {
            return Err(Error::Invalid("a range that begins past the end of the file or of the donor"));
        }
        let left = there.saturating_sub(done).min(SLICE / block);
        // All of it is below `END`.
        Ok((left > 0).then(|| Slice {
            orig: (orig_start + done) as u32,
            donor: (donor_start + done) as u32,
            len: left as u32,
        }))
    }

    /// Brings what is dirty to the device and the donor's pages out of the cache. Under both exclusive `invalidate_lock`s, so that it
    /// stays so.
    fn settle_pair(&self, pair: Pair<'_>, slice: Slice) -> Result<()> {
        let block = u64::from(self.geo.block_size());
        let bytes = |start: u32| u64::from(start) * block..(u64::from(start) + u64::from(slice.len)) * block;
        let (orig, donor) = (pair.orig.data(self), pair.donor.data(self));
        orig.pages.sync(&**orig, bytes(slice.orig))?;
        donor.pages.sync(&**donor, bytes(slice.donor))?;
        if donor.pages.invalidate(bytes(slice.donor)) { Ok(()) } else { Err(Error::Busy) }
    }

    /// The next blocks that both files have, extent by extent, and how many before them one of the two has not.
    fn pieces(&self, pair: Pair<'_>, slice: Slice) -> Result<(u32, Vec<Piece>)> {
        let most = self.most_pieces(pair)?;
        let mut slice =
            Slice { len: slice.len.min((COPY / u64::from(self.geo.block_size())) as u32), ..slice };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut skipped = 0;
        while slice.len > 0 && pieces.len() < most {
            let orig = self.extent_at(pair.orig, slice.orig, slice.len)?;
            let donor = self.extent_at(pair.donor, slice.donor, slice.len)?;
            match (orig, donor) {
                (Ok(orig), Ok(donor)) => {
                    let len = orig.len.min(donor.len);
                    pieces.push(Piece { orig: Extent { len, ..orig }, donor: Extent { len, ..donor } });
                    slice.skip(len);
                }
                _ if !pieces.is_empty() => break,
                (orig, donor) => {
                    let len = orig.err().unwrap_or(0).max(donor.err().unwrap_or(0));
                    skipped += len;
                    slice.skip(len);
                }
            }
        }
        Ok((skipped, pieces))
    }

    /// The rest of an extent from a block on, or of a hole, at most `max` blocks.
    fn extent_at(&self, inode: &Inode, lblk: u32, max: u32) -> Result<Result<Extent, u32>> {
        let run = self.map.lookup_extent(&inode.map_ref(&inode.map.read()), Lblk(lblk), max)?;
        Ok(match run {
            Run::Mapped { pblk, len, unwritten } => Ok(Extent { lblk: Lblk(lblk), len, pblk, unwritten }),
            Run::Hole { len } => Err(len),
        })
    }

    /// How many extents one handle exchanges: what a quarter of the largest is enough for.
    fn most_pieces(&self, pair: Pair<'_>) -> Result<usize> {
        let room = self.journal.max_credits();
        let mut most = MOST_PIECES;
        while most > 1 && self.exchange_credits(pair, most)? > room / 4 {
            most /= 2;
        }
        if self.exchange_credits(pair, most)? > room {
            return Err(Error::NotSupported("moving blocks with a journal that small"));
        }
        Ok(most as usize)
    }

    fn exchange_credits(&self, pair: Pair<'_>, pieces: u32) -> Result<u32> {
        let of = |inode: &Inode| Ok::<_, Error>(self.map.replace_credits(self.depth(inode)?, pieces) + 1);
        Ok(of(pair.orig)? + of(pair.donor)? + self.quota_credits(2))
    }

    /// Copies what is written of the file to the donor's blocks; neighbours on the device together.
    fn copy(&self, pieces: &[Piece], buffer: &mut Vec<u8>) -> Result<()> {
        let block = u64::from(self.geo.block_size());
        let written = |piece: &&Piece| !piece.orig.unwritten;
        let mut rest = pieces.iter().filter(written).peekable();
        while let Some(first) = rest.next() {
            buffer.clear();
            let mut end = first.donor.pblk.0;
            let mut next = Some(first);
            while let Some(piece) = next {
                let (from, len) = (buffer.len(), piece.orig.len as usize * block as usize);
                buffer.resize(from + len, 0);
                self.device.read_at(piece.orig.pblk.0 * block, &mut buffer[from..])?;
                end += u64::from(piece.orig.len);
                next = rest.next_if(|piece| piece.donor.pblk.0 == end);
            }
            self.device.write_at(first.donor.pblk.0 * block, buffer)?;
        }
        Ok(())
    }

    /// Exchanges the blocks of `pieces`, which follow each other in both files, in one handle: its transaction.
    fn exchange_blocks(&self, pair: Pair<'_>, pieces: &[Piece], cred: &Credentials) -> Result<Tid> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Err(Error::Invalid("nothing to exchange"));
        };
        let ranges = [
            (pair.orig, first.orig.lblk.0, last.orig.end()),
            (pair.donor, first.donor.lblk.0, last.donor.end()),
        ];
        let _maps = [self.hold_map(ranges[0])?, self.hold_map(ranges[1])?];
        let spare = |inode: &Inode| -> Result<Reservation> {
            let worst =
                self.map.tree_blocks_worst(MapKind::Extents, self.depth(inode)?, pieces.len() as u64 + 2);
            Ok(self.alloc.reserve(0, worst, self.privilege(cred))?)
        };
        let mut spares = [spare(pair.orig)?, spare(pair.donor)?];
        let credits = self.exchange_credits(pair, pieces.len() as u32)? - self.quota_credits(2);
        let _tables = self.hold(&[pair.orig, pair.donor], None)?;
        let mut handle = self.start(&[Self::quota_ids(pair.orig), Self::quota_ids(pair.donor)], credits)?;
        let tid = handle.tid();
        let done = self.exchange_in_handle(&mut handle, pair, pieces, &mut spares);
        self.finish(handle, done, pair.orig)?;
        Ok(tid)
    }

    /// Reads the nodes of the map around a range, and what freeing them changes: extents of it may become one with their neighbours,
    /// and nodes may go. As long as the result is held all of it stays in the cache.
    fn hold_map(&self, (inode, start, end): (&InodeRef, u32, u32)) -> Result<(Vec<Buf>, Vec<ToFree>)> {
        let nodes = self.map.hold(&inode.map_ref(&inode.map.read()), Lblk(start)..Lblk(end))?;
        let groups = nodes.iter().map(|node| Ok(self.alloc.prepare_free(node.pblk(), 1)?));
        let groups = groups.collect::<Result<_>>()?;
        Ok((nodes, groups))
    }

    fn exchange_in_handle(
        &self,
        handle: &mut Handle,
        pair: Pair<'_>,
        pieces: &[Piece],
        [spare, donor_spare]: &mut [Reservation; 2],
    ) -> Result<()> {
        // The file's blocks keep their state in the file; in the donor nobody reads what the file had there.
        let news = |piece: &Piece| {
            let unwritten = piece.orig.unwritten;
            let to_orig = Extent { pblk: piece.donor.pblk, unwritten, ..piece.orig };
            let to_donor = Extent { pblk: piece.orig.pblk, unwritten: true, ..piece.donor };
            (to_orig, to_donor)
        };
        let (to_orig, to_donor): (Vec<Extent>, Vec<Extent>) = pieces.iter().map(news).unzip();
        let (mut map, mut donor_map) = lock_maps(pair);
        // Both leave their maps before one enters the other's: no block is ever in two.
        let mut delta = self.take_out(handle, pair.orig, &mut map, &to_orig, spare)?;
        let mut donor_delta = self.take_out(handle, pair.donor, &mut donor_map, &to_donor, donor_spare)?;
        delta += self.put_in(handle, pair.orig, &mut map, &to_orig, spare)?;
        donor_delta += self.put_in(handle, pair.donor, &mut donor_map, &to_donor, donor_spare)?;
        self.map_changed(pair.orig, &map, delta);
        self.map_changed(pair.donor, &donor_map, donor_delta);
        drop((map, donor_map));
        self.write_inode(handle, pair.orig)?;
        self.write_inode(handle, pair.donor)
    }

    /// Takes the range of `extents`, which follow each other, out of a map; what that changes in the inode's blocks.
    fn take_out(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        i_block: &mut [u8; I_BLOCK_SIZE],
        extents: &[Extent],
        spare: &mut Reservation,
    ) -> Result<i64> {
        let range = extents[0].lblk..Lblk(extents[extents.len() - 1].end());
        let mut map = inode.map_mut(i_block);
        // The credits of `replace_credits` are enough for all of it.
        let removed = self.map.remove(handle, &mut map, range, Content::Kept, 0, spare)?;
        if removed.left.is_some() {
            let words = "a range does not leave it in one transaction";
            return Err(Error::corrupt(Place::Inode(inode.ino), CorruptKind::Map(words.into())));
        }
        Ok(removed.delta.total())
    }

    /// Enters extents in a map that has a hole there.
    fn put_in(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        i_block: &mut [u8; I_BLOCK_SIZE],
        extents: &[Extent],
        spare: &mut Reservation,
    ) -> Result<i64> {
        let mut delta = 0;
        for extent in extents {
            delta += self.map.insert(handle, &mut inode.map_mut(i_block), *extent, spare)?.total();
        }
        Ok(delta)
    }
}

type MapGuard<'a> = WriteGuard<'a, [u8; I_BLOCK_SIZE]>;

/// The maps of the file and of the donor, locked by number.
fn lock_maps<'a>(pair: Pair<'a>) -> (MapGuard<'a>, MapGuard<'a>) {
    let lock = |inode: &'a InodeRef| inode.map.write_ordered(inode.ino.0.into());
    if pair.orig.ino.0 < pair.donor.ino.0 {
        let orig = lock(pair.orig);
        (orig, lock(pair.donor))
    } else {
        let donor = lock(pair.donor);
        (lock(pair.orig), donor)
    }
}
