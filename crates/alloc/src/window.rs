//! Preallocation: clusters taken out of a free map ahead of need. On disk they stay free; a window is memory only.
//!
//! - An [`InodeWindow`] keeps room for one file: writes at its end find their next blocks behind the last ones although
//!   other files are written at the same time, and blocks that are written in any order lie in the file's order.
//! - A [`Slot`] serves small files, one slot for each of a few threads: files written one after the other lie one
//!   after the other, and threads do not meet in one group.
//!
//! Window clusters are promised to nobody, so a reservation may find all free clusters in windows; then all windows
//! are emptied ([`WindowState::empty`]). Lock order: a window's lock before a group's, never a group's before a window's,
//! and never two windows.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{OnceLock, Weak};

use extant_sync::atomic::{AtomicUsize, Ordering};
use extant_sync::{Arc, Mutex, MutexGuard, Rank, thread_local};

use rustc_hash::FxHasher;

use crate::allocator::Allocator;

/// Slots for small files; threads beyond share.
const SLOTS: usize = 8;

/// Pieces that one file's window holds at most; with more it starts anew.
const MOST_PIECES: usize = 1024;

/// A free run of one group that was taken ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) group: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Taken {
    /// Cuts up to `len` clusters off the front.
    pub(crate) fn cut(&mut self, len: u32) -> Self {
        let front = Self { len: len.min(self.len), ..*self };
        self.start += front.len;
        self.len -= front.len;
        front
    }
}

/// Blocks kept for one file, each for a place in the file. Lives in the in-core inode and costs nothing until the first claim.
///
/// Release it at the last close and at truncation; dropped, it is released too.
#[derive(Default)]
pub struct InodeWindow(OnceLock<Arc<WindowCell>>);

/// A window, and whose clusters they are.
pub(crate) struct WindowCell {
    alloc: Arc<Allocator>,
    state: Mutex<WindowState>,
}

#[derive(Default)]
pub(crate) struct WindowState {
    /// Clusters that are kept, by the file's first cluster that each piece is for.
    pieces: BTreeMap<u32, Taken>,
}

impl std::fmt::Debug for InodeWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InodeWindow").field(&self.0.get().map(|cell| cell.state.lock().pieces.len())).finish()
    }
}

impl InodeWindow {
    /// No window yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the window's clusters back.
    pub fn release(&self) {
        if let Some(cell) = self.0.get() {
            cell.release();
        }
    }

    /// The window of a file of `alloc`.
    pub(crate) fn cell(&self, alloc: &Arc<Allocator>) -> &Arc<WindowCell> {
        if let Some(cell) = self.0.get() {
            return cell;
        }
        let state = Mutex::new(Rank::PREALLOC, WindowState::default());
        let made = Arc::new(WindowCell { alloc: Arc::clone(alloc), state });
        // Listed before anybody can fill it; one that comes too late stays empty, and its listing goes with the next sweep. No
        // lock is taken while others wait for the cell.
        alloc.windows.enter(&made);
        self.0.get_or_init(|| made)
    }
}

impl Drop for InodeWindow {
    /// Releases while the cell is still alive: who empties all windows to keep a promise finds the clusters in the window
    /// or in the free map, never in neither (explored in `the_last_blocks_in_somebodys_window`).
    fn drop(&mut self) {
        self.release();
    }
}

impl WindowCell {
    /// Locks the window. The lock is held while clusters go in and come out, so that who empties all windows waits
    /// for those on their way.
    pub(crate) fn lock(&self) -> MutexGuard<'_, WindowState> {
        self.state.lock()
    }

    /// Gives the clusters back. Returns whether there were any.
    pub(crate) fn release(&self) -> bool {
        self.state.lock().empty(&self.alloc)
    }
}

impl WindowState {
    /// Cuts up to `len` clusters for the file's cluster `at`.
    pub(crate) fn cut(&mut self, at: u32, len: u32) -> Option<Taken> {
        let (&first, piece) = self.pieces.range_mut(..=at).next_back()?;
        let into = at - first;
        if into >= piece.len {
            return None;
        }
        let mut rest = *piece;
        let before = rest.cut(into);
        let cut = rest.cut(len);
        if before.len > 0 {
            *piece = before;
        } else {
            self.pieces.remove(&first);
        }
        if rest.len > 0 {
            self.pieces.insert(at + cut.len, rest);
        }
        Some(cut)
    }

    /// Keeps `taken` for the file's clusters from `first` on, except where others are kept already.
    pub(crate) fn keep(&mut self, alloc: &Allocator, first: u32, mut taken: Taken) {
        if self.pieces.len() >= MOST_PIECES {
            self.empty(alloc);
        }
        let mut at = first;
        while taken.len > 0 {
            let before = self.pieces.range(..=at).next_back().map_or(0, |(f, p)| f.saturating_add(p.len));
            let overlap = taken.cut(before.saturating_sub(at));
            if overlap.len > 0 {
                alloc.give_back(overlap);
                at += overlap.len;
                continue;
            }
            let room = self.pieces.range(at..).next().map_or(u32::MAX, |(f, _)| f - at);
            let piece = taken.cut(room);
            self.pieces.insert(at, piece);
            at = at.saturating_add(piece.len);
        }
    }

    /// Gives everything back. Returns whether there was anything.
    pub(crate) fn empty(&mut self, alloc: &Allocator) -> bool {
        let pieces = std::mem::take(&mut self.pieces);
        for piece in pieces.values() {
            alloc.give_back(*piece);
        }
        !pieces.is_empty()
    }
}

/// A window that small files of some threads are cut from.
pub(crate) struct Slot(pub(crate) Mutex<Option<Taken>>);

impl Slot {
    pub(crate) fn all() -> Box<[Self]> {
        (0..SLOTS).map(|_| Self(Mutex::new(Rank::PREALLOC, None))).collect()
    }
}

thread_local! {
    static THREAD: usize = {
        let mut hasher = FxHasher::default();
        extant_sync::thread::current().id().hash(&mut hasher);
        (hasher.finish() >> 32) as usize
    };
}

/// A number of the calling thread, to spread threads over slots.
pub(crate) fn thread_number() -> usize {
    THREAD.with(|n| *n)
}

/// All inode windows that may hold clusters.
pub(crate) struct Registry {
    cells: Mutex<Vec<Weak<WindowCell>>>,
    /// Entries at which dead ones are swept out.
    sweep_at: AtomicUsize,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { cells: Mutex::new(Rank::LEAF, Vec::new()), sweep_at: AtomicUsize::new(1024) }
    }

    /// Makes a window known, before it is first filled.
    fn enter(&self, cell: &Arc<WindowCell>) {
        let mut cells = self.cells.lock();
        if cells.len() >= self.sweep_at.load(Ordering::Relaxed) {
            cells.retain(|w| w.strong_count() > 0);
            self.sweep_at.store(1024.max(cells.len() * 2), Ordering::Relaxed);
        }
        cells.push(Arc::downgrade(cell));
    }

    /// All windows alive, to be emptied one by one.
    pub(crate) fn alive(&self) -> Vec<Arc<WindowCell>> {
        self.cells.lock().iter().filter_map(Weak::upgrade).collect()
    }
}
