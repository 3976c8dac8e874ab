//! Times that fit into atomics.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Since this was asked first.
pub(crate) fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let now = START.get_or_init(Instant::now).elapsed();
    #[cfg(feature = "shuttle")]
    let now = now + AHEAD.get();
    now
}

#[cfg(feature = "shuttle")]
std::thread_local! {
    /// A schedule, with all its threads, is explored by one thread.
    static AHEAD: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

/// Lets time pass for the ages of pages, in the scenario that is explored.
#[cfg(feature = "shuttle")]
pub fn pass(time: Duration) {
    AHEAD.set(AHEAD.get() + time);
}
