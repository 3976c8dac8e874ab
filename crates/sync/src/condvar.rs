//! The condition variable.

use std::fmt;
use std::time::Duration;

use crate::{MutexGuard, backend};

/// A condition variable; belongs to one mutex. Wakes may be spurious: wait in a loop, or use [`Self::wait_while`].
pub struct Condvar(backend::Condvar);

impl Condvar {
    /// A condition variable nobody waits for.
    #[must_use]
    pub const fn new() -> Self {
        Self(backend::Condvar::new())
    }

    /// Gives the lock up, waits for a notification, takes the lock again.
    ///
    /// # Panics
    /// In debug builds, when this thread holds anything of a later rank than the mutex.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.0.wait(guard.for_wait());
    }

    /// Waits until `condition` is false.
    ///
    /// # Panics
    /// As [`Self::wait`].
    #[track_caller]
    pub fn wait_while<T>(&self, guard: &mut MutexGuard<'_, T>, mut condition: impl FnMut(&mut T) -> bool) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    /// Waits for a notification, `limit` at most; whether the time ran out. For periodic work only, never to give
    /// another thread time.
    ///
    /// # Panics
    /// As [`Self::wait`].
    #[track_caller]
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, limit: Duration) -> bool {
        self.0.wait_for(guard.for_wait(), limit).timed_out()
    }

    /// Wakes one waiter.
    #[inline]
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiters.
    #[inline]
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}
