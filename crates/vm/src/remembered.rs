//! Files whose blocks mappings showed, and whose inodes may have left the memory since.
//!
//! An inode that has a mapping, or the memory file of one, stays in memory. When it lets go of that ([`AddressSpace::leave_memory`]) no
//! mapping shows its blocks, but a transfer may be on its way to them; the inode may be forgotten and read anew, and then does not know. So
//! its number is kept here, until no transfer can be under way that began before, by the same looks as for blocks that are held
//! ([`crate::grace`]), half a minute at most. Of so many files that it would take much memory none is told from the others any more: each
//! inode counts as one of them, for as long as the last of them would be kept.

use std::time::Instant;

use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use extant_sys::transfers::UnderWay;
use rustc_hash::FxHashMap;

use crate::grace::Doubt;
use crate::space::{AddressSpace, ExclusiveGuard};
use crate::{Mmu, PageCache};

/// Files that are told from each other: a megabyte or so.
const MOST_FILES: usize = 16_384;

#[derive(Default)]
pub(crate) struct Remembered {
    /// By number, what is known of the transfers to them.
    files: FxHashMap<u64, Doubt>,
    /// Of those that were too many: older than all in `files`.
    all: Option<Doubt>,
    /// Who knows what is under way.
    mmu: Option<Arc<dyn Mmu>>,
}

impl Remembered {
    fn add(&mut self, number: u64, doubt: Doubt) {
        if self.files.len() >= MOST_FILES && !self.files.contains_key(&number) {
            // The last of them is the last of all; those that come after it are told from each other again.
            self.files.clear();
            self.all = Some(doubt);
        } else {
            self.files.insert(number, doubt);
        }
    }

    /// The younger one, which ends later.
    fn find(&self, number: u64) -> Option<Doubt> {
        self.files.get(&number).copied().or(self.all)
    }

    /// What a look at `now` says.
    fn look(&mut self, seen: UnderWay, now: Instant) {
        self.files.retain(|_, doubt| !doubt.ends(seen, now));
        self.all = self.all.take().and_then(|mut doubt| (!doubt.ends(seen, now)).then_some(doubt));
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.all.is_none()
    }
}

impl AddressSpace {
    /// Whether a transfer may be on its way to blocks that mappings of the file `number` showed: who knows what is under way, and what is
    /// known.
    pub(crate) fn shown_by(&self, number: u64) -> Option<(Arc<dyn Mmu>, Doubt)> {
        match self.mmu().filter(|_| self.has_shown()) {
            Some(mmu) => Some((Arc::clone(mmu), Doubt::new(Instant::now()))),
            None => self.cache.recall(number),
        }
    }

    /// Whether a transfer may be on its way to blocks that mappings of the file showed, though none does any more: asks the system. For who
    /// gives blocks to another file, which is not in DAX mode.
    pub fn may_be_written_unseen<H: crate::Host>(&self, _guard: &ExclusiveGuard<'_>, host: &H) -> bool {
        self.shown_by(host.number()).is_some_and(|(mmu, _)| !mmu.is_quiet())
    }
}

impl PageCache {
    /// A file whose blocks mappings showed has no mapping any more, and its inode may be forgotten.
    pub(crate) fn remember(&self, number: u64, mmu: &Arc<dyn Mmu>) {
        let mut all = self.remembered.lock();
        all.add(number, Doubt::new(Instant::now()));
        let old = all.mmu.replace(Arc::clone(mmu));
        self.remembers.store(true, Ordering::Release);
        drop(all);
        // Out of the lock: it may be the last to know it.
        drop(old);
    }

    pub(crate) fn recall(&self, number: u64) -> Option<(Arc<dyn Mmu>, Doubt)> {
        // There are none, as a rule.
        if !self.remembers.load(Ordering::Acquire) {
            return None;
        }
        let all = self.remembered.lock();
        all.find(number).and_then(|doubt| Some((Arc::clone(all.mmu.as_ref()?), doubt)))
    }

    /// Whether mappings showed blocks of the file `number`, as far as it matters: a transfer may be on its way to them. For who has no
    /// [`AddressSpace`] of it.
    #[must_use]
    pub fn has_shown(&self, number: u64) -> bool {
        self.recall(number).is_some()
    }

    pub(crate) fn remembered_mmu(&self) -> Option<Arc<dyn Mmu>> {
        self.remembers.load(Ordering::Acquire).then(|| self.remembered.lock().mmu.clone())?
    }

    /// Forgets files of which a look at `now` says that no transfer to them is under way.
    pub(crate) fn forget_shown(&self, seen: UnderWay, now: Instant) {
        if !self.remembers.load(Ordering::Acquire) {
            return;
        }
        let mut all = self.remembered.lock();
        all.look(seen, now);
        let mmu = all.is_empty().then(|| all.mmu.take());
        self.remembers.store(!all.is_empty(), Ordering::Release);
        drop(all);
        drop(mmu);
    }

    /// Forgets all, whatever is under way.
    pub(crate) fn forget_all_shown(&self) {
        let all = std::mem::take(&mut *self.remembered.lock());
        self.remembers.store(false, Ordering::Release);
        drop(all);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
