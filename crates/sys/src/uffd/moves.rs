//! Memory that mremap(2) moves: whose call that is, and what is known of a mapping when the program did it by itself.
//!
//! The kernel tells it by a message, and mremap(2) returns when that is read; until then operations over ranges are
//! [`Moving`](super::Outcome::Moving). Between the read and the time that the books say so, an operation may look at the old addresses, and find
//! nothing there. So both are done under one lock, and who has to reach every page compares [`Uffd::moves`] before with
//! [`Uffd::settled`] after it. Who asks by a call that is not refused while memory moves (madvise(2), `/proc`) looks at [`Uffd::is_moving`] in
//! between.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::ioctl::{Updater, ioctl};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::param::page_size;

use super::{EVENT_REMAP, Outcome, REGISTER_WP, RangeArg, RegisterArg, UFFDIO_REGISTER, Uffd};

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

/// [`Uffd::hold`].
pub(crate) struct Held<'a> {
    _reading: MutexGuard<'a, ()>,
}

/// A page without access or use, registered with a descriptor.
pub(super) struct Probe(usize);

impl Probe {
    pub(super) fn new(fd: &OwnedFd) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), page_size(), ProtFlags::empty(), flags) }?;
        // From here on an error unmaps it.
        let probe = Self(start.expose_provenance());
        let mut arg = RegisterArg { range: RangeArg::of(&probe.range()), mode: REGISTER_WP, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER takes a pointer to a `struct uffdio_register`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_REGISTER, RegisterArg>::new(&mut arg) };
        // SAFETY: the page just made, which nobody can access.
        unsafe { ioctl(fd, call) }?;
        Ok(probe)
    }

    fn range(&self) -> Range<usize> {
        self.0..self.0 + page_size()
    }

    fn ask(&self, uffd: &Uffd) -> Outcome {
        // SAFETY: a page that nobody can access.
        unsafe { uffd.protect(self.range(), true) }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was made here, which nobody knows.
        let result = unsafe { munmap(ptr::with_exposed_provenance_mut(self.0), page_size()) };
        debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
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
        // Not while somebody who has looked for it takes addresses over: either he sees it, or it comes after him.
        let _reading = self.moves.reading();
        self.moves.ours().push(ranges.clone());
        OwnMove { uffd: self, ranges }
    }

    /// Whether an address is one that this library moves memory from or to just now.
    pub(crate) fn is_own_move(&self, addr: usize) -> bool {
        self.is_own_move_in(&(addr..addr + 1))
    }

    /// The same of any address in a range.
    pub(crate) fn is_own_move_in(&self, addrs: &Range<usize>) -> bool {
        let ours = self.moves.ours();
        ours.iter().flatten().any(|range| range.start < addrs.end && addrs.start < range.end)
    }

    /// While this is held no message is read, and all that were are followed: with [`Self::is_moving`] false, what the kernel said before that,
    /// and what the books say, belong together. Before the state of a mapping is locked, after `changing`; nothing that waits for the reader is
    /// done under it.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held { _reading: self.moves.reading() }
    }

    /// Whether the kernel is moving memory, and the reader has yet to read of it. Where not, every move that was seen to have happened, or that an
    /// operation before this has missed, has been read. Asked by write protection of a page that nobody uses: that is refused for that time
    /// alone. madvise(2), and what `/proc` says, are not.
    pub(crate) fn is_moving(&self) -> bool {
        let moving = self.probe.ask(self) == Outcome::Moving;
        #[cfg(test)]
        self.met_moves.fetch_add(u64::from(moving), Ordering::AcqRel);
        moving
    }

    /// How many moves of the program's were followed.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.followed.load(Ordering::Acquire)
    }

    /// Whether nothing was moved since [`Self::moves`] said `before` that an operation since then could have missed, if that is refused while
    /// memory moves, or [`Self::is_moving`] was false after it. Not with the state of a
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
