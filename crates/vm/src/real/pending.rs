//! One fault.

use std::fmt;

use extant_sync::Arc;
use extant_sys::UserPages;

use super::server::{Entry, Shared};
use crate::queue::{Epoch, Pool};
use crate::{Access, Fault, MapId};

/// A thread that waits for a page. It is answered at the latest when this is dropped: with SIGBUS.
pub(super) struct Pending {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    page: u32,
    access: Access,
    answered: bool,
}

/// Something for a worker to do.
pub(super) enum Job {
    /// Ask the handler, and answer.
    Ask(Pending),
    /// SIGBUS.
    Refuse(Pending),
    /// Let accesses of a page ask again.
    Heal(Arc<UserPages>, u32),
}

impl Pending {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>, page: u32, access: Access) -> Self {
        Self { shared, entry, page, access, answered: false }
    }

    pub(super) fn pool(&self) -> Pool {
        match self.access {
            Access::Read => Pool::Reads,
            Access::Write => Pool::Writes,
        }
    }

    fn map(&self) -> MapId {
        MapId(self.entry.pages.id())
    }

    /// Asks what can be said without waiting.
    pub(super) fn try_ask(&self) -> Option<Fault> {
        self.entry.handler.try_fault(self.map(), self.page, self.access)
    }

    pub(super) fn ask(&self) -> Fault {
        self.entry.handler.fault(self.map(), self.page, self.access)
    }

    /// Carries out an answer that was asked for at `asked`.
    pub(super) fn answer(mut self, fault: Fault, asked: Epoch) {
        match fault {
            Fault::Mapped | Fault::Retry => {
                self.answered = true;
                self.entry.pages.wake(self.page..self.page + 1);
            }
            Fault::Parked => {
                let shared = Arc::clone(&self.shared);
                // A closed queue gives it back, to be dropped.
                drop(shared.queue.park(self.pool(), Job::Ask(self), asked));
            }
            Fault::Sigbus | Fault::Oom => drop(self),
        }
    }

    fn refuse(&self) {
        let (pages, page) = (&self.entry.pages, self.page);
        // Past the end the kernel says so itself.
        if !pages.is_page_past_end(page).unwrap_or(false) {
            match pages.poison(page) {
                Ok(()) => self.shared.poisoned(pages, page),
                // The thread asks again, and again: it hangs, but can be killed, and no wrong byte is seen.
                Err(error) => {
                    tracing::error!(%error, page, "a page that cannot be had could not be marked so");
                }
            }
        }
        pages.wake(page..page + 1);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.refuse();
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of page {} in {:?}", self.access, self.page, self.map())
    }
}
