//! Pages that cannot be had: who accesses them gets a signal, without a fault, until the mark is taken away.

use std::io;
use std::ops::Range;
use std::sync::RwLockReadGuard;

use rustix::param::page_size;

use super::UserPages;
use super::pieces::State;
use crate::uffd::Outcome;

impl UserPages {
    /// Makes accesses of a page that is not visible SIGBUS (in a system call: EFAULT), until [`Self::heal`] or the page is installed.
    /// Wakes nobody. Left out is what [`Self::install`] leaves out.
    ///
    /// # Errors
    /// The system's.
    pub fn poison(&self, page: u32) -> io::Result<()> {
        let bytes = self.bytes(&(page..page + 1));
        let mut guard = self.write();
        let state = &mut *guard;
        for piece in state.pieces.iter().filter(|p| !p.busy && p.overlaps(&bytes)) {
            for at in piece.part(&bytes).step_by(page_size()) {
                let part = at..at + page_size();
                // SAFETY: a registered part of this mapping, which stays what it is while `state` is held.
                let mut outcome = unsafe { self.uffd.poison(part.clone()) };
                if matches!(outcome, Outcome::Exists) && self.shared {
                    // Visible without the right to store, or marked so: the page goes first, then the mark, so that no store slips
                    // through in between. Nothing is installed meanwhile.
                    self.zap_addresses(part.clone(), piece.file_byte(at))?;
                    // SAFETY: as above.
                    match unsafe { self.uffd.protect(part.clone(), false) } {
                        Outcome::Done
                        | Outcome::Part(_)
                        | Outcome::Moving
                        | Outcome::NotMapped
                        | Outcome::NoProcess => {}
                        other => return Err(other.error()),
                    }
                    // SAFETY: as above.
                    outcome = unsafe { self.uffd.poison(part) };
                }
                match outcome {
                    Outcome::Done | Outcome::Part(_) => {
                        state.poisoned.insert(piece.file_byte(at));
                    }
                    // A private mapping's own copy, or a part that is being changed: who waits asks again.
                    Outcome::Exists | Outcome::Moving | Outcome::NotMapped | Outcome::NoProcess => {}
                    other => return Err(other.error()),
                }
            }
        }
        Ok(())
    }

    /// Undoes [`Self::poison`]: the next access asks again. May wait for the reader of messages: not from that thread.
    pub fn heal(&self, pages: &Range<u32>) {
        while !self.try_heal(pages) {
            // With nothing held: the reader may want any of it.
            std::thread::yield_now();
        }
    }

    /// The same without waiting; `false`: memory is being moved, and the mark of a page may be where it is not known to be yet. Then all
    /// marks are still on record.
    pub(super) fn try_heal(&self, pages: &Range<u32>) -> bool {
        let bytes = self.bytes(pages);
        if self.read().poisoned.range(bytes.clone()).next().is_none() {
            return true;
        }
        // Nothing that was read is left to be followed, and nothing more is read.
        let _held = self.uffd.hold();
        let mut state = self.write();
        let all = state.poisoned_idle(&bytes);
        for byte in &all {
            let byte = *byte;
            if let Some(at) = state.address_of(byte) {
                // What is there is the mark of poison, and no copy of a private mapping's: `install`, which would let one be made,
                // heals first and excludes poison until it is done.
                let result = self.zap_addresses(at..at + page_size(), byte);
                debug_assert!(result.is_ok(), "zap of a poisoned page: {result:?}");
            }
        }
        let settled = !self.uffd.is_moving();
        if settled {
            state.poisoned.retain(|byte| !all.contains(byte));
        }
        settled
    }

    /// The state, with nothing poisoned in the pages (busy parts apart); `None` while memory is being moved: the reader of messages may be here.
    pub(super) fn read_healed(&self, pages: &Range<u32>) -> Option<RwLockReadGuard<'_, State>> {
        let bytes = self.bytes(pages);
        loop {
            let state = self.read();
            if state.poisoned.is_empty() || state.poisoned_idle(&bytes).is_empty() {
                return Some(state);
            }
            drop(state);
            if !self.try_heal(pages) {
                return None;
            }
        }
    }
}
