//! Times that fit into atomics.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Since this was asked first.
pub(crate) fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}
