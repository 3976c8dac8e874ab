//! Blocks that mappings showed and that the file has lost: a transfer that was told to write to the mapping (a system call of another
//! library, a ring) may be under way, of which nobody tells.
//!
//! They are held like those of pins ([`Host::hold`]), from before they leave the map, until no transfer can be under way that began before
//! ([`Mmu::is_quiet`]); the windows are gone by then, so none begins after. That is asked for by the threads of the cache every
//! few seconds, and by who finds no space, who waits for them. In a program of which that can never be said they are used again
//! after [`MOST`], or [`MOST_RUNNING`].
//!
//! [`Host::hold`]: crate::Host::hold

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use extant_format::Lblk;
use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use extant_sys::transfers::UnderWay;

use crate::host::{Backing, Host};
use crate::mutant::without;
use crate::space::{AddressSpace, ExclusiveGuard};
use crate::{Mmu, PageCache};

/// After this blocks are used again, whatever is under way.
pub(crate) const MOST: Duration = Duration::from_secs(30);
/// The same if from a first look to a last one, so far apart, the only doubt were threads that run: who waits for a device is seen to wait,
/// and a call does not run for as long. One look would not do: a call runs, too, while it tells the device of its next part.
pub(crate) const MOST_RUNNING: Duration = Duration::from_secs(1);
/// Between two looks of who waits, at first and at most.
pub(crate) const LOOKS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// Blocks of one operation.
pub(crate) struct Grace {
    /// Who knows what is under way.
    mmu: Arc<dyn Mmu>,
    bytes: u64,
    doubt: Doubt,
    _holds: Vec<Box<dyn Send + Sync>>,
}

/// All blocks that are not to be used again yet.
#[derive(Default)]
pub(crate) struct Graces {
    /// The oldest first.
    held: VecDeque<Grace>,
    /// Taken from there, and not let go of yet.
    ending: usize,
    /// How often some were let go of.
    ended: u64,
}

/// What is known of the transfers that may be on their way to held blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doubt {
    /// None began later.
    since: Instant,
    /// The first look since the last one that saw more than threads that run.
    running_since: Option<Instant>,
}

impl Doubt {
    pub(crate) fn new(since: Instant) -> Self {
        Self { since, running_since: None }
    }

    /// What a look at `now` says; whether no transfer is under way any more, or it has been waited for long enough.
    pub(crate) fn ends(&mut self, seen: UnderWay, now: Instant) -> bool {
        if now < self.since {
            return false;
        }
        match seen {
            UnderWay::Nothing => return true,
            UnderWay::ThreadsRun => {
                let first = *self.running_since.get_or_insert(now);
                if now - first >= MOST_RUNNING {
                    return true;
                }
            }
            UnderWay::Perhaps => self.running_since = None,
        }
        now - self.since >= MOST
    }
}

/// A wait for blocks that are held, as a value: nothing waits meanwhile but who wants them.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpaceWait {
    /// Since when, and how often blocks had been let go of then.
    from: Option<(Instant, u64)>,
}

/// What there is for who has found no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceHope {
    /// Blocks have been let go of since he looked: he looks again.
    Again,
    /// Some are held.
    Later,
    /// None are, or he has waited for as long as any is.
    None,
}

impl SpaceWait {
    /// Begins, if it has not begun, before space is made; whether it has not.
    pub fn begin(&mut self, cache: &PageCache) -> bool {
        let new = self.from.is_none();
        if new {
            self.from = Some((Instant::now(), cache.graces_ended()));
        }
        new
    }
}

impl AddressSpace {
    /// Notes that a mapping is about to show blocks of the device. Under shared `invalidate_lock`.
    pub(crate) fn shows(&self) {
        if !self.shown.load(Ordering::Relaxed) {
            self.shown.store(true, Ordering::Release);
        }
    }

    /// Before the blocks of `range` (bytes) leave the file's map: if mappings have shown the device, they are not used again while a
    /// transfer may be on its way to them. No mapping shows them any more, nor will.
    ///
    /// # Errors
    /// From the map; then nothing is held.
    pub fn hold_shown<H: Host>(
        &self,
        _guard: &ExclusiveGuard<'_>,
        host: &H,
        range: &Range<u64>,
    ) -> Result<(), H::Error> {
        let Some((mmu, doubt)) = self.shown_by(host.number()) else { return Ok(()) };
        if without!(self.cache, ShownHeld) {
            return Ok(());
        }
        let geo = self.cache.geometry();
        let block = u64::from(geo.block_size());
        let number = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        let end = number(range.end.min(host.size().next_multiple_of(block)).div_ceil(block));
        let mut at = number(range.start / block);
        let (mut holds, mut bytes) = (Vec::new(), 0);
        while at < end {
            let mapped = host.map(Lblk(at), end - at)?;
            let len = mapped.len.clamp(1, end - at);
            // One that was zeroed since may have been shown before.
            if let Backing::Data(pblk) | Backing::Unwritten(pblk) = mapped.backing {
                holds.push(host.hold(pblk, len));
                bytes += geo.block_bytes(len);
            }
            at += len;
        }
        if !holds.is_empty() {
            self.cache.add_grace(mmu, doubt, holds, bytes);
        }
        Ok(())
    }

    /// Whether a mapping has shown blocks of the device since the inode came into memory.
    #[must_use]
    pub fn has_shown(&self) -> bool {
        self.shown.load(Ordering::Acquire)
    }
}

impl PageCache {
    fn add_grace(&self, mmu: Arc<dyn Mmu>, doubt: Doubt, holds: Vec<Box<dyn Send + Sync>>, bytes: u64) {
        self.grace.lock().held.push_back(Grace { mmu, bytes, doubt, _holds: holds });
    }

    /// Lets go of blocks, and forgets files, to which no transfer can be under way any more. Takes 90; nothing is held.
    pub fn end_grace(&self) {
        let last = self.grace.lock().held.back().map(|last| Arc::clone(&last.mmu));
        let Some(mmu) = last.or_else(|| self.remembered_mmu()) else { return };
        // Of what is held from now on nothing is said by the answer.
        let now = Instant::now();
        let (seen, _) = self.look(&*mmu);
        self.forget_shown(seen, now);
        self.let_go_of(|one| one.doubt.ends(seen, now));
    }

    fn let_go_of(&self, mut ends: impl FnMut(&mut Grace) -> bool) {
        let mut grace = self.grace.lock();
        let mut ended = Vec::new();
        for mut one in std::mem::take(&mut grace.held) {
            if ends(&mut one) {
                ended.push(one);
            } else {
                grace.held.push_back(one);
            }
        }
        if ended.is_empty() {
            return;
        }
        grace.ending += 1;
        drop(grace);
        // Out of the lock, and before anyone is told.
        drop(ended);
        let mut grace = self.grace.lock();
        grace.ending -= 1;
        grace.ended += 1;
        drop(grace);
        self.grace_ended.notify_all();
    }

    /// How often blocks were let go of.
    fn graces_ended(&self) -> u64 {
        self.grace.lock().ended
    }

    /// What there is for who has found no space after `wait` began, or after this said [`SpaceHope::Again`] last. Does not wait, nor look
    /// what is under way.
    pub fn hope_for_space(&self, wait: &mut SpaceWait) -> SpaceHope {
        let Some((began, seen)) = &mut wait.from else { return SpaceHope::Again };
        let grace = self.grace.lock();
        if grace.ended != *seen && !without!(self, SpaceCounted) {
            *seen = grace.ended;
            SpaceHope::Again
        } else if grace.held.is_empty() && grace.ending == 0 || began.elapsed() > MOST {
            SpaceHope::None
        } else {
            SpaceHope::Later
        }
    }

    /// Whether who was told [`SpaceHope::Later`] is to look again.
    #[must_use]
    pub fn may_have_space(&self, wait: &SpaceWait) -> bool {
        self.hope_for_space(&mut { *wait }) != SpaceHope::Later
    }

    /// As [`Self::hope_for_space`], but waits, and looks what is under way meanwhile: whether to look again. Takes 90; nothing is held.
    pub fn await_grace(&self, wait: &mut SpaceWait) -> bool {
        let [mut pause, longest] = LOOKS;
        loop {
            self.end_grace();
            match self.hope_for_space(wait) {
                SpaceHope::Again => return true,
                SpaceHope::None => return false,
                SpaceHope::Later => {}
            }
            let mut grace = self.grace.lock();
            if wait.from.is_some_and(|(_, seen)| grace.ended == seen) {
                self.grace_ended.wait_for(&mut grace, pause);
            }
            drop(grace);
            pause = longest.min(pause * 2);
        }
    }

    /// Lets go of all of them, whatever is under way, and forgets all files. Takes 90.
    pub fn forget_grace(&self) {
        self.forget_all_shown();
        self.let_go_of(|_| true);
    }

    /// Bytes of blocks that are held.
    #[must_use]
    pub fn grace_bytes(&self) -> u64 {
        self.grace.lock().held.iter().map(|one| one.bytes).sum()
    }
}

#[cfg(test)]
mod tests;
