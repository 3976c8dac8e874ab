//! The change of the mode: a file comes into DAX mode, or leaves it, for all that read, write and have it mapped, at once.
//!
//! It has two halves, between which the caller stores what makes it lasting: everything that may fail is in the first
//! ([`AddressSpace::prepare_switch`]), nothing that may fail in the second ([`Switch::commit`]). A first half without a second leaves the
//! file in the mode it was in; its mappings fault again.
//!
//! **Pins are waited for with nothing held** ([`AddressSpace::bar_pins`]): who has one goes on writing, faulting and reading, and so comes
//! to drop it. Then the locks are taken, and it is looked again.
//!
//! **What a device put into a page without a fault is looked for after the mappings have lost all pages**, when nobody can make another
//! device do so, and written before the pages are dropped.

use std::time::{Duration, Instant};

use extant_sync::atomic::Ordering;

use crate::Host;
use crate::cache::WRITE_BATCH;
use crate::mutant::without;
use crate::space::{AddressSpace, ExclusiveGuard, Gate};

/// A change of the mode that nothing keeps from happening any more. Until it is dropped nothing of the file is written.
#[must_use = "without `commit` the file stays in its mode"]
pub struct Switch<'a, H: Host> {
    host: &'a H,
    space: &'a AddressSpace,
    gate: Gate<'a>,
    on: bool,
    writing: Duration,
}

/// What parts of a change took, all of it under exclusive `invalidate_lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwitchTimes {
    /// Looking for what is to be written, and writing it.
    pub writing: Duration,
    /// Freeing the pages that the file had in the cache.
    pub freeing: Duration,
}

impl AddressSpace {
    /// Most of the work of a change, while faults and reads go on: writes what is dirty, and takes everything from the mappings, which costs
    /// the system some time for each page. What is used or stored meanwhile is left to [`Self::prepare_switch`]. Takes 40 and page locks.
    ///
    /// # Errors
    /// What could not be written, the system's.
    pub fn begin_switch<H: Host>(&self, host: &H) -> Result<(), H::Error> {
        self.sync(host, 0..u64::MAX)?;
        Ok(self.hide(&(0..u64::MAX))?)
    }

    /// Everything of a change of the mode that may fail: what is dirty is written, and mappings show nothing any more. `None`, and
    /// nothing done, while the file has pins: [`Self::bar_pins`] waits for them. Who wants to hold the lock for a short time calls
    /// [`Self::begin_switch`] before.
    ///
    /// The caller holds the inode lock exclusively, has drained direct I/O, and holds nothing from 40 on; takes page locks, and 40, which
    /// the result holds. A file that is mapped with MAP_SYNC does not leave DAX mode: the caller has looked under the inode lock.
    ///
    /// # Errors
    /// What could not be written, the system's. EOPNOTSUPP without a device that can be mapped.
    pub fn prepare_switch<'a, H: Host>(
        &'a self,
        _guard: &'a ExclusiveGuard<'_>,
        host: &'a H,
        on: bool,
    ) -> Result<Option<Switch<'a, H>>, H::Error> {
        if on {
            self.direct_access()?;
        }
        // None comes: that takes `invalidate_lock`.
        if self.is_pinned() && !without!(self.cache, PinsAwaited) {
            return Ok(None);
        }
        if !without!(self.cache, SwitchExchanges) {
            self.hide(&(0..u64::MAX))?;
        }
        let began = Instant::now();
        let gate = if on { self.write_hidden(host)? } else { self.gate() };
        Ok(Some(Switch { host, space: self, gate, on, writing: began.elapsed() }))
    }

    /// Writes everything of a file that no mapping shows any more, also what a device changes meanwhile. Then nothing is dirty while the
    /// gate is held that this returns.
    fn write_hidden<H: Host>(&self, host: &H) -> Result<Gate<'_>, H::Error> {
        self.write_dirty(host)?;
        let gate = self.gate();
        if !without!(self.cache, SwitchLooksLast) {
            self.find_unseen_under(&gate, host, 0..u64::MAX)?;
        }
        let mut from = Some(0);
        while let Some(first) = from {
            let taken = self.index.write().take_marked(first, u32::MAX, WRITE_BATCH);
            from = taken.last().and_then(|page| page.index.checked_add(1));
            if !taken.is_empty() {
                self.write_pages(host, &gate, taken)?;
            }
        }
        if self.is_dirty() {
            return Err(std::io::Error::from_raw_os_error(5).into());
        }
        Ok(gate)
    }

    /// Both halves at once, for who stores nothing in between; `false`, and nothing done, while the file has pins.
    ///
    /// # Errors
    /// As [`Self::prepare_switch`].
    pub fn switch_dax<H: Host>(
        &self,
        guard: &ExclusiveGuard<'_>,
        host: &H,
        on: bool,
    ) -> Result<bool, H::Error> {
        if self.is_dax() == on {
            return Ok(true);
        }
        let switch = self.prepare_switch(guard, host, on)?;
        Ok(switch.map(Switch::commit).is_some())
    }
}

impl<H: Host> Switch<'_, H> {
    /// Changes the mode.
    pub fn commit(self) -> SwitchTimes {
        let Self { host, space, gate, on, writing } = self;
        let began = Instant::now();
        space.drop_blocks(host, &gate, 0..u64::MAX);
        space.give_back(&(0..u64::MAX));
        space.copies_gone(&(0..u32::MAX));
        space.changed_device();
        space.dax.store(on, Ordering::Release);
        SwitchTimes { writing, freeing: began.elapsed() }
    }
}
