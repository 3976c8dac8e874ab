//! Readers to spare: while every reader waits in a long operation, another one takes requests.

use extant_sync::atomic::{AtomicU32, Ordering};
use extant_sync::{Condvar, Mutex, Rank};

/// Most readers beyond those that always run.
pub(crate) const MOST_SPARES: u32 = 16;

struct State {
    /// Spare readers asked for and not yet running.
    wanted: u32,
    /// Spare readers that wait to be asked.
    parked: u32,
    /// Spare readers that exist.
    spares: u32,
    closed: bool,
}

/// Counts the readers that wait for requests.
pub(crate) struct Pool {
    idle: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

/// What to do when no reader is left.
pub(crate) enum Relief {
    /// Somebody reads, or was woken, or no more are allowed.
    None,
    /// Start one more spare reader.
    Start,
}

impl Pool {
    pub(crate) fn new() -> Self {
        let state = State { wanted: 0, parked: 0, spares: 0, closed: false };
        Self { idle: AtomicU32::new(0), state: Mutex::new(Rank::LEAF, state), changed: Condvar::new() }
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

    /// Called before a long operation.
    pub(crate) fn relieve(&self) -> Relief {
        if self.anybody_reads() {
            return Relief::None;
        }
        let mut state = self.state.lock();
        if state.closed {
            Relief::None
        } else if state.parked > state.wanted {
            state.wanted += 1;
            self.changed.notify_one();
            Relief::None
        } else if state.spares < MOST_SPARES {
            state.spares += 1;
            Relief::Start
        } else {
            Relief::None
        }
    }

    /// A spare reader waits until it is asked for; false if the session ends.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.state.lock();
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
