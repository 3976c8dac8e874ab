//! Ranked locks with lock-order checking, and the switch to a schedule-exploring runtime.
//!
//! Every lock is made with a [`Rank`]. In test and debug builds each thread keeps a list of what it holds; taking
//! a lock whose rank is not larger than every rank held panics and names both places. In release builds the lists
//! do not exist. The ranks live in one file, `rank.rs`.
//!
//! - Two locks of one rank: [`Mutex::lock_ordered`] and its like, with ascending keys.
//! - `try_*` may be called in any order, since it never waits; what it got is then held like any other lock.
//! - States that exclude others without being a mutex (a page lock, an open handle, a freeze level): [`Held`].
//! - No poisoning: a panic under a lock releases it.
//!
//! With the cargo feature `shuttle` every primitive, [`thread`] and [`atomic`] are those of the `shuttle` crate and
//! only work inside its runner (module `model`). Code that wants to be explored uses nothing but this crate.

mod backend;
mod condvar;
mod held;
mod mutex;
mod rank;
mod rwlock;

pub use condvar::Condvar;
pub use held::{Boundary, Held, HeldBy, assert_nothing_held, held_by, holds};
pub use mutex::{ArcMutexGuard, Mutex, MutexGuard};
pub use rank::Rank;
pub use rwlock::{ArcReadGuard, ArcWriteGuard, ReadGuard, RwLock, WriteGuard};
pub use std::sync::{Arc, Weak};

/// Atomics: those of `std`, or of the exploring runtime.
pub mod atomic {
    #[cfg(feature = "shuttle")]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    };
    #[cfg(not(feature = "shuttle"))]
    pub use std::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    };
}

/// Threads: those of `std`, or of the exploring runtime.
pub mod thread {
    #[cfg(feature = "shuttle")]
    pub use shuttle::thread::{
        Builder, JoinHandle, Scope, ScopedJoinHandle, Thread, ThreadId, current, park, scope, spawn,
        yield_now,
    };
    #[cfg(not(feature = "shuttle"))]
    pub use std::thread::{
        Builder, JoinHandle, Scope, ScopedJoinHandle, Thread, ThreadId, current, park, scope, spawn,
        yield_now,
    };
}

/// The runner of the exploring runtime; the tests of other crates start their scenarios with it.
#[cfg(feature = "shuttle")]
pub mod model;

/// A place where the exploring runtime may let another thread go on, before something that it does not see, like a copy of memory
/// that others reach. Nothing otherwise.
#[inline]
pub fn may_be_preempted() {
    #[cfg(feature = "shuttle")]
    thread::yield_now();
}

/// `thread_local!` of `std`, or of the exploring runtime.
#[cfg(not(feature = "shuttle"))]
pub use std::thread_local;

/// `thread_local!` of `std`, or of the exploring runtime.
#[cfg(feature = "shuttle")]
pub use shuttle::thread_local;
