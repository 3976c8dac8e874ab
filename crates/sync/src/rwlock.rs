//! The ranked reader-writer lock.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use extant_sys::{Acquire, OwnedGuard};

use crate::Rank;
use crate::backend;
use crate::held::{self, Held};

/// A reader-writer lock with a rank. Readers that come after a waiting writer wait too, so a thread must never read
/// twice (the order check catches it). No poisoning.
pub struct RwLock<T: ?Sized> {
    rank: Rank,
    inner: backend::RwLock<T>,
}

/// Shared access until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a, T: ?Sized> {
    inner: backend::ReadGuard<'a, T>,
    _held: Held,
}

/// Exclusive access until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a, T: ?Sized> {
    inner: backend::WriteGuard<'a, T>,
    _held: Held,
}

/// A [`ReadGuard`] that keeps its lock alive by itself.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ArcReadGuard<T: 'static>(OwnedGuard<RwLock<T>, Shared>);

/// A [`WriteGuard`] that keeps its lock alive by itself.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ArcWriteGuard<T: 'static>(OwnedGuard<RwLock<T>, Exclusive>);

pub(crate) enum Shared {}
pub(crate) enum Exclusive {}

impl<T> RwLock<T> {
    /// A lock of rank `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: backend::RwLock::new(value) }
    }

    /// The value; nobody else can hold the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }

    /// [`RwLock::read`] with a guard that owns a reference of the lock.
    #[track_caller]
    pub fn read_arc(self: &Arc<Self>) -> ArcReadGuard<T> {
        ArcReadGuard(OwnedGuard::<Self, Shared>::new(Arc::clone(self), Self::read))
    }

    /// [`RwLock::write`] with a guard that owns a reference of the lock.
    #[track_caller]
    pub fn write_arc(self: &Arc<Self>) -> ArcWriteGuard<T> {
        ArcWriteGuard(OwnedGuard::<Self, Exclusive>::new(Arc::clone(self), Self::write))
    }

    /// [`RwLock::try_read`] with a guard that owns a reference of the lock.
    #[track_caller]
    pub fn try_read_arc(self: &Arc<Self>) -> Option<ArcReadGuard<T>> {
        OwnedGuard::<Self, Shared>::try_new(Arc::clone(self), Self::try_read).map(ArcReadGuard)
    }

    /// [`RwLock::try_write`] with a guard that owns a reference of the lock.
    #[track_caller]
    pub fn try_write_arc(self: &Arc<Self>) -> Option<ArcWriteGuard<T>> {
        OwnedGuard::<Self, Exclusive>::try_new(Arc::clone(self), Self::try_write).map(ArcWriteGuard)
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits for shared access.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a lock of this or a later rank.
    #[track_caller]
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        held::check(self.rank, None);
        ReadGuard { inner: self.inner.read(), _held: Held::adopt(self.rank, None) }
    }

    /// Waits for shared access to one of several locks of this rank, with ascending keys.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a later rank, or this rank with no key or one not smaller.
    #[track_caller]
    #[inline]
    pub fn read_ordered(&self, key: u64) -> ReadGuard<'_, T> {
        held::check(self.rank, Some(key));
        ReadGuard { inner: self.inner.read(), _held: Held::adopt(self.rank, Some(key)) }
    }

    /// Waits for exclusive access.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a lock of this or a later rank.
    #[track_caller]
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        held::check(self.rank, None);
        WriteGuard { inner: self.inner.write(), _held: Held::adopt(self.rank, None) }
    }

    /// Waits for exclusive access to one of several locks of this rank, with ascending keys.
    ///
    /// # Panics
    /// In debug builds, when this thread holds a later rank, or this rank with no key or one not smaller.
    #[track_caller]
    #[inline]
    pub fn write_ordered(&self, key: u64) -> WriteGuard<'_, T> {
        held::check(self.rank, Some(key));
        WriteGuard { inner: self.inner.write(), _held: Held::adopt(self.rank, Some(key)) }
    }

    /// Shared access if it is to be had at once; allowed in any order.
    #[track_caller]
    #[inline]
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        Some(ReadGuard { inner: self.inner.try_read()?, _held: Held::adopt(self.rank, None) })
    }

    /// Exclusive access if it is to be had at once; allowed in any order.
    #[track_caller]
    #[inline]
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        Some(WriteGuard { inner: self.inner.try_write()?, _held: Held::adopt(self.rank, None) })
    }

    /// The same for one of several locks of this rank: those waited for later must have larger keys.
    #[track_caller]
    #[inline]
    pub fn try_write_ordered(&self, key: u64) -> Option<WriteGuard<'_, T>> {
        Some(WriteGuard { inner: self.inner.try_write()?, _held: Held::adopt(self.rank, Some(key)) })
    }

    /// The value; nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<T: ?Sized> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: 'static> Acquire<Shared> for RwLock<T> {
    type Target = T;
    type Guard<'a> = ReadGuard<'a, T>;
}

impl<T: 'static> Acquire<Exclusive> for RwLock<T> {
    type Target = T;
    type Guard<'a> = WriteGuard<'a, T>;
}

impl<T> Deref for ArcReadGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Deref for ArcWriteGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for ArcWriteGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
