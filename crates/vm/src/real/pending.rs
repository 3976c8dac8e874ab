//! One fault.

use std::fmt;

use extant_sync::Arc;
use extant_sys::{Refused, UserPages};

use super::mutant::without;
use super::server::{Entry, Shared};
use crate::queue::{Epoch, Pool};
use crate::{Access, Fault, FaultWait, MapId};

/// A thread that waits for a page. It is answered at the latest when this is dropped: with SIGBUS.
pub(super) struct Pending {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    page: u32,
    access: Access,
    waiter: Waiter,
    wait: FaultWait,
    answered: bool,
}

/// Who waits, where, and how old that message may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) addr: usize,
    pub(super) thread: u32,
    /// [`Uffd::wakes`](extant_sys::Uffd::wakes) before the message was read.
    pub(super) since: u64,
}

/// Something for a worker to do.
pub(super) enum Job {
    /// Ask the handler, and answer.
    Ask(Pending),
    /// SIGBUS.
    Refuse(Pending),
    /// Find out whose this address is: no mapping is known to have it.
    Find(usize),
    /// Let accesses of a page ask again.
    Heal(Arc<UserPages>, u32),
    /// Look whether there may be space for stores that wait for some.
    LookForSpace,
}

impl Pending {
    pub(super) fn new(
        shared: Arc<Shared>,
        entry: Arc<Entry>,
        page: u32,
        access: Access,
        waiter: Waiter,
    ) -> Self {
        Self { shared, entry, page, access, waiter, wait: FaultWait::default(), answered: false }
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

    pub(super) fn ask(&mut self) -> Fault {
        let map = self.map();
        self.entry.handler.fault(map, self.page, self.access, &mut self.wait)
    }

    /// Looks for what it waits for, for all that wait.
    pub(super) fn look_for_space(&self) {
        self.entry.handler.look_for_space();
    }

    /// Whether it is to be asked again.
    pub(super) fn may_have_space(&self) -> bool {
        self.entry.handler.may_have_space(&self.wait.space)
    }

    /// Carries out an answer that was asked for at `asked`.
    pub(super) fn answer(mut self, fault: Fault, asked: Epoch) {
        match fault {
            Fault::Mapped if without!(self.shared, WakeWhenThere) => self.answered = true,
            Fault::Mapped | Fault::Retry => {
                self.answered = true;
                self.entry.pages.wake(self.page..self.page + 1);
            }
            // Its own pages are no worse for others, who wait on.
            Fault::Parked if self.shared.is_impatient(self.waiter.thread) => {
                self.answered = true;
                self.refuse(true);
            }
            Fault::Parked => {
                let shared = Arc::clone(&self.shared);
                // A closed queue gives it back, to be dropped.
                drop(shared.queue.park(self.pool(), Job::Ask(self), asked));
            }
            Fault::AwaitsSpace => Arc::clone(&self.shared).await_space(self),
            Fault::Sigbus | Fault::Oom => drop(self),
        }
    }

    /// A store is refused to its thread alone: others may go on seeing the page; and so is a load where the thread `alone` is meant. A page that
    /// nobody can have, and an access that no signal would stop, is marked in the mapping.
    fn refuse(&self, alone: bool) {
        let (pages, page) = (&self.entry.pages, self.page);
        // Past the end the kernel says so itself.
        if !pages.is_page_past_end(page).unwrap_or(false) {
            let Waiter { addr, thread, since } = self.waiter;
            let refused = match self.access {
                Access::Read if !alone => Refused::Waits,
                Access::Read | Access::Write => pages.refuse_access(addr, thread, since),
            };
            match refused {
                Refused::Signalled => return,
                Refused::Gone => {}
                Refused::Waits => self.mark(),
            }
        }
        pages.wake(page..page + 1);
    }

    fn mark(&self) {
        match self.entry.pages.poison(self.page) {
            Ok(()) => self.shared.poisoned(&self.entry.pages, self.page),
            // The thread asks again, and again: it hangs, but can be killed, and no wrong byte is seen.
            Err(error) => {
                tracing::error!(%error, page = self.page, "a page that cannot be had could not be marked so");
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.refuse(false);
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of page {} in {:?}", self.access, self.page, self.map())
    }
}
