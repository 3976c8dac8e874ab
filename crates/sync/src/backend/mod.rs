//! The primitives underneath: `parking_lot`, or the exploring runtime in the same shape.

#[cfg(not(feature = "shuttle"))]
pub(crate) use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard,
};

#[cfg(feature = "shuttle")]
mod explore;

#[cfg(feature = "shuttle")]
pub(crate) use explore::{Condvar, Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard};
