//! The ranked mutex.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use extant_sys::{Acquire, OwnedGuard};

use crate::backend;
use crate::held::{self, Held};
use crate::{Condvar, Rank};

/// A mutex with a rank. No poisoning.
pub struct Mutex<T: ?Sized> {
    rank: Rank,
    inner: backend::Mutex<T>,
}

/// Gives access to what a [`Mutex`] protects until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    inner: backend::MutexGuard<'a, T>,
    held: Held,
    rank: Rank,
    key: Option<u64>,
}

/// A [`MutexGuard`] that keeps its mutex alive by itself.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ArcMutexGuard<T: 'static>(OwnedGuard<Mutex<T>, Exclusive>);

/// Marks the only way to lock a mutex.
pub(crate) enum Exclusive {}

impl<T> Mutex<T> {
    /// A mutex of rank `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: backend::Mutex::new(value) }
    }

    /// The value; nobody else can hold the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }

    /// [`Mutex::lock`] with a guard that owns a reference of the mutex.
    #[track_caller]
    pub fn lock_arc(self: &Arc<Self>) -> ArcMutexGuard<T> {
        held::check(self.rank, None);
        ArcMutexGuard(OwnedGuard::<Self, Exclusive>::new(Arc::clone(self), |m| m.locked(None)))
    }

    /// [`Mutex::try_lock`] with a guard that owns a reference of the mutex.
    #[track_caller]
    pub fn try_lock_arc(self: &Arc<Self>) -> Option<ArcMutexGuard<T>> {
        OwnedGuard::<Self, Exclusive>::try_new(Arc::clone(self), Self::try_lock).map(ArcMutexGuard)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a lock of this or a later rank.
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        held::check(self.rank, None);
        self.locked(None)
    }

    /// Waits for one of several locks of this rank: `key` must be larger than that of each one held.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a later rank, or this rank with no key or one not smaller.
    #[track_caller]
    #[inline]
    pub fn lock_ordered(&self, key: u64) -> MutexGuard<'_, T> {
        held::check(self.rank, Some(key));
        self.locked(Some(key))
    }

    /// Takes the lock if it is free; allowed in any order.
    #[track_caller]
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(MutexGuard { inner, held: Held::adopt(self.rank, None), rank: self.rank, key: None })
    }

    /// The value; nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    #[track_caller]
    #[inline]
    fn locked(&self, key: Option<u64>) -> MutexGuard<'_, T> {
        let inner = self.inner.lock();
        MutexGuard { inner, held: Held::adopt(self.rank, key), rank: self.rank, key }
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<'a, T> MutexGuard<'a, T> {
    #[track_caller]
    pub(crate) fn for_wait(&mut self) -> &mut backend::MutexGuard<'a, T> {
        held::check_again(self.rank, self.key, &self.held);
        &mut self.inner
    }
}

impl<T> ArcMutexGuard<T> {
    /// [`Condvar::wait`] for a guard that owns its mutex.
    #[track_caller]
    pub fn wait_on(&mut self, condvar: &Condvar) {
        self.0.with_mut(|guard| condvar.wait(guard));
    }
}

impl<T: 'static> Acquire<Exclusive> for Mutex<T> {
    type Target = T;
    type Guard<'a> = MutexGuard<'a, T>;
}

impl<T> Deref for ArcMutexGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for ArcMutexGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
