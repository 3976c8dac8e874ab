//! A lock guard that keeps its lock alive.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A lock whose guards borrow it. `Kind` tells apart several ways of locking one type.
pub trait Acquire<Kind>: 'static {
    /// What a guard gives access to.
    type Target: 'static;
    /// The borrowing guard.
    type Guard<'a>: Deref<Target = Self::Target>
    where
        Self: 'a;
}

/// A guard of the lock `L` together with a reference that keeps `L` in place.
pub struct OwnedGuard<L: Acquire<Kind>, Kind> {
    /// Always initialised; `MaybeUninit` because it borrows from `owner`, which may be freed while a function that got
    /// this value as an argument still runs.
    guard: MaybeUninit<L::Guard<'static>>,
    owner: Arc<L>,
    kind: PhantomData<Kind>,
}

impl<L: Acquire<Kind>, Kind> OwnedGuard<L, Kind> {
    /// Locks with `lock`.
    pub fn new(owner: Arc<L>, lock: impl for<'a> FnOnce(&'a L) -> L::Guard<'a>) -> Self {
        let guard = extend::<L, Kind>(lock(&owner));
        Self { guard, owner, kind: PhantomData }
    }

    /// Locks with `lock`, if it can.
    pub fn try_new(owner: Arc<L>, lock: impl for<'a> FnOnce(&'a L) -> Option<L::Guard<'a>>) -> Option<Self> {
        let guard = extend::<L, Kind>(lock(&owner)?);
        Some(Self { guard, owner, kind: PhantomData })
    }

    /// The lock.
    pub fn owner(&self) -> &Arc<L> {
        &self.owner
    }

    /// Calls `f` with the guard itself.
    pub fn with_mut<R>(&mut self, f: impl for<'a, 'b> FnOnce(&'b mut L::Guard<'a>) -> R) -> R {
        // SAFETY:
        // - `guard` is initialised from construction to drop.
        // - `f` is generic over the guard's lifetime, so it can neither keep a borrow of the lock nor put a guard of
        //   another lifetime in its place.
        f(unsafe { self.guard.assume_init_mut() })
    }
}

/// Forgets the lifetime of a guard.
fn extend<'a, L: Acquire<Kind>, Kind>(guard: L::Guard<'a>) -> MaybeUninit<L::Guard<'static>> {
    let guard = MaybeUninit::new(guard);
    // SAFETY:
    // - Source and target are one type but for a lifetime, so they have one layout.
    // - The original is in a `MaybeUninit` and never used nor dropped again: the guard is moved, not copied.
    // - The only callers put the result beside an `Arc` of the lock it borrows, and drop it first.
    unsafe { std::ptr::read((&raw const guard).cast::<MaybeUninit<L::Guard<'static>>>()) }
}

impl<L: Acquire<Kind>, Kind> Deref for OwnedGuard<L, Kind> {
    type Target = L::Target;

    fn deref(&self) -> &L::Target {
        // SAFETY: `guard` is initialised from construction to drop.
        unsafe { self.guard.assume_init_ref() }
    }
}

impl<L: Acquire<Kind>, Kind> DerefMut for OwnedGuard<L, Kind>
where
    L::Guard<'static>: DerefMut,
{
    fn deref_mut(&mut self) -> &mut L::Target {
        // SAFETY: `guard` is initialised from construction to drop.
        unsafe { self.guard.assume_init_mut() }
    }
}

impl<L: Acquire<Kind>, Kind> Drop for OwnedGuard<L, Kind> {
    fn drop(&mut self) {
        // SAFETY:
        // - `guard` is initialised and not used after this.
        // - `owner` is dropped after this function, so the lock is still in place.
        unsafe { self.guard.assume_init_drop() }
    }
}
