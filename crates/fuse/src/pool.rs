//! Readers to spare: while every reader is in a long operation, another one takes requests.
//!
//! A reader that serves a short request comes back by itself. Waking another one for it would cost more than the request: after
//! each WRITE whose caller goes on with FSYNC before the reader of the WRITE is back, for example.

use extant_sync::atomic::{AtomicU32, Ordering};
use extant_sync::{Condvar, Mutex, Rank};

/// Most readers beyond those that always run.
pub(crate) const MOST_SPARES: usize = 16;

struct State {
    /// Spare readers asked for and not yet running.
    wanted: u32,
    /// Spare readers that wait to be asked.
    parked: u32,
    /// Numbers of spare readers that do not exist, below [`MOST_SPARES`].
    free: Vec<usize>,
    closed: bool,
}

/// Counts the readers.
pub(crate) struct Pool {
    /// Those that wait for requests.
    idle: AtomicU32,
    /// Those that are in a long operation.
    long: AtomicU32,
    /// All but the parked ones.
    active: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

/// What to do when no reader is left.
pub(crate) enum Relief {
    /// Somebody reads or will soon, or was woken, or no more are allowed.
    None,
    /// Start the spare reader of this number.
    Start(usize),
}

impl Pool {
    /// For so many readers that always run.
    pub(crate) fn new(readers: u32) -> Self {
        let free = (0..MOST_SPARES).rev().collect();
        let state = State { wanted: 0, parked: 0, free, closed: false };
        Self {
            idle: AtomicU32::new(0),
            long: AtomicU32::new(0),
            active: AtomicU32::new(readers),
            state: Mutex::new(Rank::LEAF, state),
            changed: Condvar::new(),
        }
    }

    /// A reader goes to wait for a request.
    pub(crate) fn enter_read(&self) {
        self.idle.fetch_add(1, Ordering::Relaxed);
    }

    /// A reader got one.
    pub(crate) fn leave_read(&self) {
        self.idle.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether anybody waits for requests. A stale answer only costs a wake-up or delays one to the next long
    /// operation's end.
    pub(crate) fn anybody_reads(&self) -> bool {
        self.idle.load(Ordering::Relaxed) > 0
    }

    /// A reader begins a long operation.
    pub(crate) fn begin_long(&self) -> Relief {
        self.long.fetch_add(1, Ordering::SeqCst);
        if !self.all_in_long() {
            return Relief::None;
        }
        let mut state = self.state.lock();
        if state.closed {
            Relief::None
        } else if state.parked > state.wanted {
            state.wanted += 1;
            self.active.fetch_add(1, Ordering::SeqCst);
            self.changed.notify_one();
            Relief::None
        } else if let Some(number) = state.free.pop() {
            self.active.fetch_add(1, Ordering::SeqCst);
            Relief::Start(number)
        } else {
            Relief::None
        }
    }

    /// The long operation has ended.
    pub(crate) fn end_long(&self) {
        self.long.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether some reader is not in a long operation.
    pub(crate) fn anybody_left(&self) -> bool {
        !self.all_in_long()
    }

    /// The reader that [`Self::begin_long`] asked for could not be started, or has ended before the session: another one may be started
    /// in its place.
    pub(crate) fn ended(&self, number: usize) {
        let mut state = self.state.lock();
        self.active.fetch_sub(1, Ordering::SeqCst);
        state.free.push(number);
    }

    fn all_in_long(&self) -> bool {
        self.long.load(Ordering::SeqCst) >= self.active.load(Ordering::SeqCst)
    }

    /// A spare reader waits until it is asked for; false if the session ends.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        self.active.fetch_sub(1, Ordering::SeqCst);
        // Who began a long operation meanwhile has counted on this reader: either it is seen here, or it sees one reader less.
        if self.all_in_long() {
            self.active.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        state.parked += 1;
        while state.wanted == 0 && !state.closed {
            self.changed.wait(&mut state);
        }
        state.parked -= 1;
        if state.closed {
            return false;
        }
        state.wanted -= 1;
        true
    }

    /// Ends every wait.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
