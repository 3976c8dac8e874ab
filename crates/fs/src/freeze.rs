//! Freeze: three levels of work that can be stopped and drained, in the order of their ranks.
//!
//! Changes by callers enter level [`Level::Write`] (rank 10), write faults [`Level::Fault`] (25), and the filesystem's
//! own work (fsync, eviction, writeback from claim to publication) [`Level::Internal`] (28). A freeze stops and drains
//! them in that order; remounting read-only does the same. Entering is one atomic addition unless a freeze is on.

use extant_sync::atomic::{AtomicU8, AtomicU64, Ordering};
use extant_sync::{Condvar, Held, Mutex, Rank};

/// Which kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// A change by a caller.
    Write = 0,
    /// A write fault.
    Fault = 1,
    /// The filesystem's own work.
    Internal = 2,
}

impl Level {
    const fn rank(self) -> Rank {
        match self {
            Self::Write => Rank::FREEZE_WRITE,
            Self::Fault => Rank::FREEZE_FAULT,
            Self::Internal => Rank::FREEZE_INTERNAL,
        }
    }
}

/// Counts who is inside, and keeps newcomers out while frozen.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Levels below this number are closed: 0 none, 3 all.
    closed: AtomicU8,
    inside: [AtomicU64; 3],
    turn: Mutex<()>,
    changed: Condvar,
}

/// Being inside one level; leaving is dropping it.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    level: Level,
    _held: Held,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        Self {
            closed: AtomicU8::new(0),
            inside: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)],
            turn: Mutex::new(Rank::LEAF, ()),
            changed: Condvar::new(),
        }
    }

    /// Enters `level`, waiting for a thaw.
    pub(crate) fn enter(&self, level: Level) -> Pass<'_> {
        let held = Held::enter(level.rank(), None);
        loop {
            self.inside[level as usize].fetch_add(1, Ordering::SeqCst);
            if self.closed.load(Ordering::SeqCst) <= level as u8 {
                return Pass { gate: self, level, _held: held };
            }
            self.leave(level);
            let mut turn = self.turn.lock();
            while self.closed.load(Ordering::SeqCst) > level as u8 {
                self.changed.wait(&mut turn);
            }
        }
    }

    /// Enters `level` unless it is closed.
    pub(crate) fn try_enter(&self, level: Level) -> Option<Pass<'_>> {
        let held = Held::enter(level.rank(), None);
        self.inside[level as usize].fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) <= level as u8 {
            return Some(Pass { gate: self, level, _held: held });
        }
        self.leave(level);
        None
    }

    fn leave(&self, level: Level) {
        let before = self.inside[level as usize].fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.closed.load(Ordering::SeqCst) > 0 {
            let _turn = self.turn.lock();
            self.changed.notify_all();
        }
    }

    /// Closes `level` (and those before it) and waits until nobody is inside. Levels are closed in order.
    pub(crate) fn close(&self, level: Level) {
        self.closed.fetch_max(level as u8 + 1, Ordering::SeqCst);
        let mut turn = self.turn.lock();
        while self.inside[level as usize].load(Ordering::SeqCst) != 0 {
            self.changed.wait(&mut turn);
        }
    }

    /// Opens all levels.
    pub(crate) fn open(&self) {
        let _turn = self.turn.lock();
        self.closed.store(0, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.leave(self.level);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
