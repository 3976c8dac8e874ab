//! Memory that mremap(2) moves: whose call that is, and what is known of a mapping when the program did it by itself.
//!
//! The kernel tells it by a message, and mremap(2) returns when that is read; until then operations over ranges are
//! [`Moving`](super::Outcome::Moving). Between the read and the time that the books say so, an operation may look at the old addresses, and find
//! nothing there. So both are done under one lock, and who has to reach every page compares [`Uffd::moves`] before with
//! [`Uffd::settled`] after it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{EVENT_REMAP, Uffd};

/// What a descriptor knows of moves.
#[derive(Default)]
pub(super) struct Moves {
    /// Held over a read and what follows from it.
    reading: Mutex<()>,
    /// How many of the program's own were followed.
    followed: AtomicU64,
    /// Old and new addresses of those of this library that are under way.
    ours: Mutex<Vec<[Range<usize>; 2]>>,
}

impl Moves {
    pub(super) fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ours(&self) -> MutexGuard<'_, Vec<[Range<usize>; 2]>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A move of this library's, until the books say where the memory is.
pub(crate) struct OwnMove<'a> {
    uffd: &'a Uffd,
    ranges: [Range<usize>; 2],
}

impl Drop for OwnMove<'_> {
    fn drop(&mut self) {
        // The reader may be at its message.
        self.uffd.catch_up();
        let mut ours = self.uffd.moves.ours();
        let mine = ours.iter().position(|ranges| *ranges == self.ranges);
        mine.map(|at| ours.swap_remove(at));
    }
}

impl Uffd {
    /// Says that memory is about to be moved by who keeps the books of it. Not to be dropped by the reader, nor with the state of a mapping
    /// locked.
    pub(crate) fn own_move(&self, from: Range<usize>, to: Range<usize>) -> OwnMove<'_> {
        let ranges = [from, to];
        self.moves.ours().push(ranges.clone());
        OwnMove { uffd: self, ranges }
    }

    /// Whether an address is one that this library moves memory from or to just now.
    pub(crate) fn is_own_move(&self, addr: usize) -> bool {
        self.moves.ours().iter().flatten().any(|range| range.contains(&addr))
    }

    /// How many moves of the program's were followed.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.followed.load(Ordering::Acquire)
    }

    /// Whether nothing was moved since [`Self::moves`] said `before` that an operation since then could have missed. Not with the state of a
    /// mapping locked.
    pub(crate) fn settled(&self, before: u64) -> bool {
        self.catch_up();
        self.moves() == before
    }

    /// Waits until what the program moved before this call has been followed. Not with the state of a mapping locked.
    pub(crate) fn catch_up(&self) {
        drop(self.moves.reading());
    }

    /// Follows a move of the program's. Under the lock over reads.
    pub(super) fn follow(&self, _reading: &MutexGuard<'_, ()>, from: &Range<usize>, to: usize) {
        let is_ours = self.moves.ours().iter().any(|[old, _]| old.contains(&from.start));
        if !is_ours {
            crate::user_map::follow(self, from, to);
            self.moves.followed.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Old addresses and the new start, if a message is about a move.
pub(super) fn parse(message: &[u8]) -> Option<(Range<usize>, usize)> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(word) as usize
    };
    (message[0] == EVENT_REMAP).then(|| (word(8)..word(8) + word(24), word(16)))
}
