//! The commit thread: calls [`Journal::tick`] when something is due.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use extant_sync::{Condvar, Mutex, Rank, thread};

use crate::{Error, Journal, Result};

/// The thread, or its absence.
#[derive(Default)]
pub(crate) struct CommitThread {
    signal: Arc<Signal>,
    join: Handle,
}

struct Handle(Mutex<Option<thread::JoinHandle<()>>>);

impl Default for Handle {
    fn default() -> Self {
        Self(Mutex::new(Rank::LEAF, None))
    }
}

struct Signal {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Work,
    End,
}

impl Default for Signal {
    fn default() -> Self {
        Self { wanted: Mutex::new(Rank::LEAF, Wanted::Nothing), changed: Condvar::new() }
    }
}

impl CommitThread {
    pub(crate) fn start(&self, journal: Weak<Journal>) -> Result<()> {
        let signal = Arc::clone(&self.signal);
        let spawned = thread::Builder::new()
            .name("extant-commit".into())
            .spawn(move || run(&journal, &signal))
            .map_err(|e| Error::Thread(Arc::new(e)))?;
        *self.join.0.lock() = Some(spawned);
        Ok(())
    }

    /// Makes the thread look for work now.
    pub(crate) fn wake(&self) {
        self.signal.set(Wanted::Work);
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        self.signal.set(Wanted::End);
        let join = self.join.0.lock().take();
        if let Some(join) = join {
            // A panic there has been reported by the thread itself, and its handle has aborted the journal.
            let _ = join.join();
        }
    }

    /// Ends the thread without waiting: it may be the caller.
    pub(crate) fn abandon(&self) {
        self.signal.set(Wanted::End);
    }
}

impl Signal {
    fn set(&self, wanted: Wanted) {
        let mut now = self.wanted.lock();
        if *now != Wanted::End {
            *now = wanted;
        }
        drop(now);
        self.changed.notify_all();
    }

    /// Waits until something is wanted or the time has come; false: the end.
    fn wait(&self, limit: Duration) -> bool {
        let mut wanted = self.wanted.lock();
        if *wanted == Wanted::Nothing {
            self.changed.wait_for(&mut wanted, limit);
        }
        if *wanted == Wanted::Work {
            *wanted = Wanted::Nothing;
        }
        *wanted != Wanted::End
    }
}

fn run(journal: &Weak<Journal>, signal: &Signal) {
    let _harmless = extant_sys::transfers::harmless();
    let Some(mut next) = journal.upgrade().map(|j| j.commit_interval()) else { return };
    while signal.wait(next) {
        let Some(journal) = journal.upgrade() else { return };
        let interval = journal.commit_interval();
        // An error has aborted the journal; there is nothing to do until somebody ends this thread.
        next = journal.tick(interval).unwrap_or(interval);
    }
}

impl fmt::Debug for CommitThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommitThread")
    }
}
