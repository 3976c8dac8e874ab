//! Descriptors and what they stand for.
//!
//! A look-up takes a lock of its own descriptor only, for as long as it takes to clone an `Arc`. Whether a descriptor is ours at
//! all is an atomic load.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use libc::c_int;

use crate::abi::Errno;
use crate::description::Description;

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;

#[derive(Default)]
struct Slot {
    ours: AtomicBool,
    /// The library's own: the device, the memory of mapped files. Not the program's to close or replace.
    own: AtomicBool,
    what: RwLock<Option<Arc<Description>>>,
}

struct Chunk([Slot; CHUNK]);

static TABLE: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS];

/// Descriptors of ours.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn slot(fd: c_int) -> Option<&'static Slot> {
    let fd = usize::try_from(fd).ok()?;
    let chunk = TABLE.get(fd / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: null, or a chunk that was leaked by `slot_or_make`.
    let chunk = unsafe { chunk.as_ref() }?;
    Some(&chunk.0[fd % CHUNK])
}

fn slot_or_make(fd: c_int) -> Result<&'static Slot, Errno> {
    if let Some(slot) = slot(fd) {
        return Ok(slot);
    }
    let place = usize::try_from(fd).ok().and_then(|fd| TABLE.get(fd / CHUNK)).ok_or(Errno(libc::EMFILE))?;
    let new = Box::into_raw(Box::new(Chunk(std::array::from_fn(|_| Slot::default()))));
    let raced = place.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
    if raced.is_err() {
        // SAFETY: it was made above and nobody else has seen it.
        drop(unsafe { Box::from_raw(new) });
    }
    slot(fd).ok_or(Errno(libc::EMFILE))
}

/// Whether `fd` is ours.
pub(crate) fn is_ours(fd: c_int) -> bool {
    slot(fd).is_some_and(|slot| slot.ours.load(Ordering::Acquire))
}

/// What `fd` stands for; `None` if it is not ours.
///
/// # Errors
/// ENOTCONN in a child that was forked while the filesystem was in use.
pub(crate) fn find(fd: c_int) -> Result<Option<Arc<Description>>, Errno> {
    let Some(slot) = slot(fd).filter(|slot| slot.ours.load(Ordering::Acquire)) else { return Ok(None) };
    crate::mount::check_not_forked()?;
    Ok(slot.what.read().unwrap_or_else(PoisonError::into_inner).clone())
}

/// The same for a descriptor that must be ours.
pub(crate) fn get(fd: c_int) -> Result<Arc<Description>, Errno> {
    find(fd)?.ok_or(Errno(libc::EBADF))
}

/// `fd`, a placeholder, stands for `what` from now on. What it stood for is returned: to be dropped by the caller.
pub(crate) fn set(fd: c_int, what: Arc<Description>) -> Result<Option<Arc<Description>>, Errno> {
    let slot = slot_or_make(fd)?;
    let old = slot.what.write().unwrap_or_else(PoisonError::into_inner).replace(what);
    if !slot.ours.swap(true, Ordering::AcqRel) {
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
    Ok(old)
}

/// `fd` is not ours any more. What it stood for is returned: to be dropped by the caller.
pub(crate) fn remove(fd: c_int) -> Option<Arc<Description>> {
    let slot = slot(fd)?;
    if !slot.ours.swap(false, Ordering::AcqRel) {
        return None;
    }
    COUNT.fetch_sub(1, Ordering::AcqRel);
    if crate::mount::is_forked() {
        // It belongs to the parent's filesystem, whose threads are not here; and its lock may be held for ever.
        return None;
    }
    slot.what.write().unwrap_or_else(PoisonError::into_inner).take()
}

/// How many descriptors are ours.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// The descriptors of ours that are at least `from` and at most `to`.
pub(crate) fn ours_between(from: u32, to: u32) -> impl Iterator<Item = c_int> {
    all_between(from, to).filter(|fd| is_ours(*fd))
}

fn all_between(from: u32, to: u32) -> impl Iterator<Item = c_int> {
    let (from, to) = (from as usize, to as usize);
    let chunks = TABLE.iter().enumerate().filter(|(_, chunk)| !chunk.load(Ordering::Acquire).is_null());
    let fds = chunks.flat_map(|(number, _)| number * CHUNK..(number + 1) * CHUNK);
    fds.filter(move |fd| (from..=to).contains(fd)).filter_map(|fd| c_int::try_from(fd).ok())
}

/// Whether no descriptor stands for the open file `id` any more.
pub(crate) fn is_last(id: u64) -> bool {
    let mut all = ours_between(0, u32::MAX);
    !all.any(|fd| matches!(find(fd), Ok(Some(what)) if what.id() == id))
}

/// `fd` is one that the library itself works with.
pub(crate) fn note_own(fd: c_int) {
    if let Ok(slot) = slot_or_make(fd) {
        slot.own.store(true, Ordering::Release);
    }
}

/// The library is about to close `fd`, whosever it is.
pub(crate) fn forget_own(fd: c_int) {
    if let Some(slot) = slot(fd) {
        slot.own.store(false, Ordering::Release);
    }
}

/// Whether the library itself works with `fd`. A child of fork does not work any more.
pub(crate) fn is_own(fd: c_int) -> bool {
    slot(fd).is_some_and(|slot| slot.own.load(Ordering::Acquire)) && !crate::mount::is_forked()
}

/// The library's own descriptors between these, in order.
pub(crate) fn own_between(from: u32, to: u32) -> Vec<u32> {
    let fds = all_between(from, to).filter(|fd| is_own(*fd));
    fds.filter_map(|fd| u32::try_from(fd).ok()).collect()
}
