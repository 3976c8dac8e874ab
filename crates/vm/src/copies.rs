//! Pages of the memory file that a file in DAX mode has all the same: zeros that mappings show of holes, and copies of the device's
//! pages. They count as pages of the cache, and reclaim takes them.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use extant_sync::atomic::{AtomicBool, Ordering};
use extant_sync::{Mutex, Rank};

use crate::space::AddressSpace;

/// Which pages these are.
pub(crate) struct Copies {
    /// There are some: looked at by every write.
    any: AtomicBool,
    pages: Mutex<BTreeSet<u32>>,
}

impl Default for Copies {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), pages: Mutex::new(Rank::LEAF, BTreeSet::new()) }
    }
}

impl Copies {
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.lock().len()
    }

    /// Whether it is a new one.
    fn add(&self, page: u32) -> bool {
        let mut pages = self.pages.lock();
        self.any.store(true, Ordering::Release);
        pages.insert(page)
    }

    /// Forgets those of a range; how many.
    fn forget(&self, range: &Range<u32>) -> usize {
        let mut pages = self.pages.lock();
        let inside: Vec<u32> = pages.range(range.clone()).copied().collect();
        inside.iter().for_each(|page| {
            pages.remove(page);
        });
        self.any.store(!pages.is_empty(), Ordering::Release);
        inside.len()
    }

    fn has(&self, range: &Range<u32>) -> bool {
        self.any() && self.pages.lock().range(range.clone()).next().is_some()
    }

    /// The first ones, as runs.
    fn first(&self, most: usize) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for page in self.pages.lock().iter().take(most) {
            match runs.last_mut() {
                Some(run) if run.end == *page => run.end += 1,
                _ => runs.push(*page..page + 1),
            }
        }
        runs
    }
}

impl AddressSpace {
    /// Counts a page of the memory file that is about to be filled. Under the gate.
    pub(crate) fn add_copy(&self, page: u32) {
        let new = {
            // Before it joins the ring: see `leave_ring_if_empty`.
            let _index = self.index.write();
            self.copies.add(page)
        };
        if new {
            self.cache.attached(1);
        }
        self.join_ring();
    }

    /// The memory file has none of these pages any more.
    pub(crate) fn copies_gone(&self, range: &Range<u32>) -> usize {
        let gone = self.copies.forget(range);
        self.cache.detached(gone);
        gone
    }

    /// Takes pages of zeros and copies out of all mappings, and their memory with them. Under the gate, or exclusive `invalidate_lock`.
    pub(crate) fn drop_copies(&self, range: Range<u64>) -> io::Result<()> {
        let (Some(mmu), Some(pages)) = (self.mmu(), self.pages_of(&range)) else { return Ok(()) };
        if !self.copies.has(&pages) {
            return Ok(());
        }
        mmu.discard(pages.clone())?;
        self.copies_gone(&pages);
        Ok(())
    }

    /// Gives back the memory of up to `most` of them; how many. Only tries the gate, without which nobody fills one.
    pub(crate) fn reclaim_copies(&self, most: usize) -> usize {
        let Some(mmu) = self.mmu().filter(|_| self.copies.any()) else { return 0 };
        let Some(_gate) = self.try_gate() else { return 0 };
        let mut freed = 0;
        for run in self.copies.first(most) {
            if mmu.discard(run.clone()).is_ok() {
                freed += self.copies_gone(&run);
            }
        }
        freed
    }
}
