//! How many of the kernel's mappings of this process are taken here.
//!
//! The kernel allows a process so many (`vm.max_map_count`), and at the limit every call that may need one more fails: of the program, and
//! of who takes a window away. So all that mappings of this library take are counted, windows are refused while there is room for
//! the program's own, and some mappings are kept that are there to be given up for taking windows away.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;

/// Mappings that are kept to be given up: moving one over another needs a few more than there are after it.
const BALLAST: usize = 32;
/// A kernel's own number, where it does not say it.
const USUAL: usize = 65_530;

/// The kernel's mappings that mappings of this library take in the process, at most.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// So many that something takes.
#[derive(Debug, Default)]
pub(super) struct Counted(usize);

impl Counted {
    pub(super) fn set(&mut self, now: usize) {
        if now >= self.0 {
            TAKEN.fetch_add(now - self.0, Ordering::Relaxed);
        } else {
            TAKEN.fetch_sub(self.0 - now, Ordering::Relaxed);
        }
        self.0 = now;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How many are taken.
pub(super) fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// How many the kernel allows.
pub(super) fn allowed() -> usize {
    static ALLOWED: OnceLock<usize> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse().unwrap_or(USUAL)
    })
}

/// Mappings without a use.
struct Ballast(Option<usize>);

static KEPT: Mutex<Ballast> = Mutex::new(Ballast(None));

impl Ballast {
    fn len() -> usize {
        BALLAST * page_size()
    }

    /// As many as are to be had.
    fn take(&mut self) {
        if self.0.is_some() {
            return;
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), Self::len(), ProtFlags::empty(), flags) };
        let Ok(start) = start else { return };
        self.0 = Some(start.expose_provenance());
        // Pages in a row that may be used alike are one mapping: no two may.
        for at in (0..Self::len()).step_by(2 * page_size()) {
            // SAFETY: a page of the mapping just made, which nobody knows.
            if unsafe { mprotect(start.wrapping_byte_add(at), page_size(), MprotectFlags::READ) }.is_err() {
                return;
            }
        }
    }

    fn give_up(&mut self) {
        if let Some(start) = self.0.take() {
            // SAFETY: exactly the mapping that was made here, which nobody knows.
            let result = unsafe { munmap(ptr::with_exposed_provenance_mut(start), Self::len()) };
            debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
        }
    }
}

fn kept() -> std::sync::MutexGuard<'static, Ballast> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before something is shown that [`with_room`] is to take away.
pub(super) fn keep_room() {
    kept().take();
}

/// Does what may need a few mappings more than the kernel allows just now, and leaves fewer.
pub(super) fn with_room(mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    match work() {
        Err(error) if is_full(&error) => {}
        done => return done,
    }
    let mut kept = kept();
    kept.give_up();
    let done = work();
    kept.take();
    done
}

/// Whether the kernel has refused a mapping for want of one, or of memory.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOMEM.raw_os_error())
}

#[cfg(test)]
mod tests;
