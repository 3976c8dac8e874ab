//! Zeroing of inode tables that mke2fs left as they were, in the background (`init_itable`).
//!
//! Nothing reads the unused part of a table: its blocks are made anew with their first inode. Zeroed, a table says the truth to
//! a checker that has lost the descriptors' counts.
//!
//! One table at a time: its unused part is taken from the inode allocator, zeroed, flushed, and then marked in a handle (one
//! credit: the descriptor). It is internal work (rank 28); between two tables the thread sleeps `init_itable` times as long as
//! one took. It ends when all are done, when the mount turns read-only or the option is taken away; a remount starts it again.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use extant_format::GroupNr;
use extant_sync::{Condvar, Mutex, Rank, thread};

use crate::background::Stop;
use crate::error::Result;
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::options::InitItable;

/// How long after a mount it begins: who mounts has something to do.
const START_DELAY: Duration = Duration::from_secs(5);
/// How long it waits while it may not work, in a frozen filesystem.
const FROZEN_DELAY: Duration = Duration::from_secs(1);

/// What the thread and those who wait for it share.
#[derive(Debug)]
pub(crate) struct LazyInit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// There is a thread, or it is about to begin.
    running: bool,
    /// Tables being zeroed now, whose inodes cannot be had.
    at_work: u32,
}

/// What one turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// A table of this group was zeroed.
    Zeroed(GroupNr),
    /// There is none left.
    Done,
    /// The filesystem is frozen.
    Frozen,
    /// Nothing may be written, or it is not wanted.
    Unwanted,
}

impl Default for LazyInit {
    fn default() -> Self {
        Self { state: Mutex::new(Rank::CACHE, State::default()), changed: Condvar::new() }
    }
}

impl LazyInit {
    /// Waits until no table is being zeroed. Nothing is held.
    pub(crate) fn wait_idle(&self) {
        let mut state = self.state.lock();
        while state.at_work > 0 {
            self.changed.wait(&mut state);
        }
    }
}

/// A table is being zeroed.
struct AtWork<'a>(&'a LazyInit);

impl<'a> AtWork<'a> {
    fn begin(lazy: &'a LazyInit) -> Self {
        lazy.state.lock().at_work += 1;
        Self(lazy)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state.lock().at_work -= 1;
        self.0.changed.notify_all();
    }
}

impl Filesystem {
    /// Starts the thread, if it is wanted, there is something to do, and none is running.
    pub(crate) fn start_lazy_init(self: &Arc<Self>) {
        self.start_lazy_init_after(START_DELAY);
    }

    fn start_lazy_init_after(self: &Arc<Self>, delay: Duration) {
        if !self.wants_lazy_init() || !self.alloc.has_unzeroed_itable() {
            return;
        }
        if std::mem::replace(&mut self.lazy_init.state.lock().running, true) {
            return;
        }
        let (this, stop) = (Arc::downgrade(self), Arc::clone(&self.mount.stop));
        self.mount.threads.lock().push(thread::spawn(move || run(&this, &stop, delay)));
    }

    fn wants_lazy_init(&self) -> bool {
        self.mode() == Mode::ReadWrite && self.options().init_itable != InitItable::Off
    }

    /// Zeroes the next inode table that never was, at group `from` or after, whatever `init_itable` says.
    ///
    /// # Errors
    /// The device's, the journal's.
    pub(crate) fn zero_next_itable(&self, from: GroupNr) -> Result<Turn> {
        let Some(_pass) = self.gate.try_enter(Level::Internal) else { return Ok(Turn::Frozen) };
        if self.mode() != Mode::ReadWrite {
            return Ok(Turn::Unwanted);
        }
        let _at_work = AtWork::begin(&self.lazy_init);
        let Some(table) = self.alloc.next_itable(from)? else { return Ok(Turn::Done) };
        let group = table.group();
        table.zero()?;
        let mut handle = self.journal.start(1)?;
        table.finish(&mut handle)?;
        handle.finish()?;
        Ok(Turn::Zeroed(group))
    }

    /// Zeroes every inode table that never was, now, as the background does in time; for who makes or repairs images.
    ///
    /// # Errors
    /// `ReadOnly`, `Busy` while it is frozen; the device's, the journal's.
    pub fn zero_inode_tables(&self) -> Result<()> {
        let mut from = GroupNr(0);
        loop {
            match self.zero_next_itable(from)? {
                Turn::Zeroed(group) => from = GroupNr(group.0 + 1),
                Turn::Done => return Ok(()),
                Turn::Frozen => return Err(crate::Error::Busy),
                Turn::Unwanted => {
                    self.check_alive()?;
                    return Err(crate::Error::ReadOnly);
                }
            }
        }
    }

    /// One turn of the thread; false when it is to end.
    fn lazy_turn(&self, from: &mut GroupNr, pause: &mut Duration) -> bool {
        let times = {
            // Under the lock: a remount changes the options first, and then looks here whether there is a thread.
            let mut state = self.lazy_init.state.lock();
            match self.options().init_itable {
                InitItable::Multiplier(times) if self.mode() == Mode::ReadWrite => times,
                _ => {
                    state.running = false;
                    return false;
                }
            }
        };
        let began = Instant::now();
        match self.zero_next_itable(*from) {
            Ok(Turn::Zeroed(group)) => {
                *from = GroupNr(group.0 + 1);
                *pause = began.elapsed().saturating_mul(times);
                return true;
            }
            Ok(Turn::Frozen | Turn::Unwanted) => {
                *pause = FROZEN_DELAY;
                return true;
            }
            Ok(Turn::Done) => {}
            Err(e) => tracing::warn!("zeroing of inode tables ends: {e}"),
        }
        self.lazy_init.state.lock().running = false;
        false
    }
}

fn run(fs: &Weak<Filesystem>, stop: &Stop, delay: Duration) {
    let _harmless = extant_sys::transfers::harmless();
    let (mut from, mut pause) = (GroupNr(0), delay);
    while !stop.wait(pause) {
        let Some(fs) = fs.upgrade() else { return };
        if !fs.lazy_turn(&mut from, &mut pause) {
            return;
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
