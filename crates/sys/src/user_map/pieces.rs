//! The pieces of a mapping: ranges of addresses, each one mapping of the kernel's (or part of one).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::budget::Counted;
use super::{Protection, UserMap, UserPages};
use crate::user_memory::{self, Entry};

/// Addresses that show consecutive bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<usize>,
    /// Byte of the file at its start.
    pub(super) offset: u64,
    pub(super) protection: Protection,
    /// Being unmapped or moved.
    pub(super) busy: bool,
    /// The kernel lets the program store though `protection` does not say so: it was changed without a word to us.
    pub(super) stores: bool,
}

/// What a mapping consists of.
#[derive(Debug)]
pub(super) struct State {
    /// They do not overlap; in no order.
    pub(super) pieces: Vec<Piece>,
    /// Bytes of the file at which a poisoned page of the system starts.
    pub(super) poisoned: BTreeSet<u64>,
    /// Starts of the entries that the process-wide tree has.
    published: Vec<usize>,
    /// The pieces, each of which takes one of the kernel's mappings.
    counted: Counted,
}

impl Piece {
    pub(super) fn new(range: Range<usize>, offset: u64, protection: Protection) -> Self {
        Self { range, offset, protection, busy: false, stores: false }
    }

    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.range.len() as u64
    }

    pub(super) fn overlaps(&self, bytes: &Range<u64>) -> bool {
        let own = self.bytes();
        own.start < bytes.end && bytes.start < own.end
    }

    /// The addresses of those of these bytes of the file that it shows; there are some.
    pub(super) fn part(&self, bytes: &Range<u64>) -> Range<usize> {
        let own = self.bytes();
        let start = bytes.start.max(own.start) - own.start;
        let end = bytes.end.min(own.end) - own.start;
        self.range.start + start as usize..self.range.start + end as usize
    }

    /// The byte of the file at an address.
    pub(super) fn file_byte(&self, addr: usize) -> u64 {
        self.offset + (addr - self.range.start) as u64
    }

    /// Whether the program can store there, by our books or the kernel's.
    pub(super) fn is_writable(&self) -> bool {
        self.protection.write || self.stores
    }

    /// Whether `next` goes on where it ends, and is the same in all else.
    fn continues_in(&self, next: &Self) -> bool {
        self.range.end == next.range.start
            && self.file_byte(self.range.end) == next.offset
            && (self.protection, self.busy, self.stores) == (next.protection, next.busy, next.stores)
    }

    /// Cuts it in two at an address inside; the second part.
    fn cut(&mut self, addr: usize) -> Self {
        let second = Self { range: addr..self.range.end, offset: self.file_byte(addr), ..self.clone() };
        self.range.end = addr;
        second
    }
}

impl State {
    pub(super) fn of(piece: Piece) -> Self {
        Self {
            pieces: vec![piece],
            poisoned: BTreeSet::new(),
            published: Vec::new(),
            counted: Counted::default(),
        }
    }

    /// The pieces that show any of these bytes of the file.
    pub(super) fn over(&self, bytes: &Range<u64>) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |p| p.overlaps(bytes))
    }

    /// The pieces that have any of these addresses.
    pub(super) fn inside(&self, range: &Range<usize>) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |p| p.range.start < range.end && range.start < p.range.end)
    }

    /// Poisoned places among these bytes of the file, apart from those in pieces that are busy.
    pub(super) fn poisoned_idle(&self, bytes: &Range<u64>) -> Vec<u64> {
        let is_busy = |byte: u64| self.over(&(byte..byte + 1)).any(|p| p.busy);
        self.poisoned.range(bytes.clone()).copied().filter(|byte| !is_busy(*byte)).collect()
    }

    pub(super) fn address_of(&self, byte: u64) -> Option<usize> {
        let bytes = byte..byte + 1;
        self.over(&bytes).next().map(|p| p.part(&bytes).start)
    }

    /// Cuts pieces so that none has addresses both inside and outside of the range; how many are inside.
    pub(super) fn cut(&mut self, range: &Range<usize>) -> usize {
        for addr in [range.start, range.end] {
            if let Some(piece) = self.pieces.iter_mut().find(|p| p.range.start < addr && addr < p.range.end) {
                let second = piece.cut(addr);
                self.pieces.push(second);
            }
        }
        self.inside(range).count()
    }

    /// Makes one of pieces that lie behind each other, in memory and in the file, and do not differ.
    pub(super) fn merge(&mut self) {
        self.pieces.sort_unstable_by_key(|p| p.range.start);
        self.pieces.dedup_by(|next, piece| {
            let one = piece.continues_in(next);
            if one {
                piece.range.end = next.range.end;
            }
            one
        });
    }

    /// Takes these addresses out: nothing of the mapping is there any more.
    pub(super) fn take_out(&mut self, range: &Range<usize>) {
        self.cut(range);
        self.pieces.retain(|p| p.range.end <= range.start || range.end <= p.range.start);
    }

    /// The same, but for what is being changed: that is left to who does it.
    pub(super) fn take_out_idle(&mut self, range: &Range<usize>) {
        self.cut(range);
        self.pieces.retain(|p| p.busy || p.range.end <= range.start || range.end <= p.range.start);
    }

    /// Says of the pieces in the range, which are cut at its ends, whether they are being changed.
    pub(super) fn set_busy(&mut self, range: &Range<usize>, busy: bool) {
        for piece in &mut self.pieces {
            if piece.range.start < range.end && range.start < piece.range.end {
                piece.busy = busy;
            }
        }
    }
}

impl UserPages {
    /// Takes addresses around `addr` in the range over that are nobody's in the process-wide tree; byte `offset` of the file is at the range's
    /// start. Whether there are any.
    pub(super) fn claim(
        &self,
        state: &mut State,
        range: &Range<usize>,
        addr: usize,
        offset: u64,
        protection: Protection,
    ) -> bool {
        let at = |start: usize| offset + (start - range.start) as u64;
        let page_size = self.file.page_size();
        let entry =
            |gap: &Range<usize>| Entry { end: gap.end, map: self.id, offset: at(gap.start), page_size };
        let Some(gap) = user_memory::claim(range, addr, entry) else { return false };
        state.published.push(gap.start);
        let offset = at(gap.start);
        state.pieces.push(Piece::new(gap, offset, protection));
        state.merge();
        self.publish(state);
        true
    }

    /// Makes the process-wide tree say what the pieces say; busy ones are not in it.
    pub(super) fn publish(&self, state: &mut State) {
        state.counted.set(state.pieces.len());
        let page_size = self.file.page_size();
        let entries: Vec<(usize, Entry)> = state
            .pieces
            .iter()
            .filter(|p| !p.busy)
            .map(|p| (p.range.start, Entry { end: p.range.end, map: self.id, offset: p.offset, page_size }))
            .collect();
        let old = std::mem::replace(&mut state.published, entries.iter().map(|(start, _)| *start).collect());
        user_memory::exchange(old.into_iter(), entries.into_iter());
    }
}

impl fmt::Debug for UserMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserMap").field("pages", &self.pages).finish()
    }
}

impl fmt::Debug for UserPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserPages")
            .field("id", &self.id)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
