//! The running transaction: the gate that handles pass, and what they have joined to it.
//!
//! The gate is one atomic word: whether the transaction is being closed, how many handles are open, and how many
//! blocks may still be reserved. A handle starts, extends and ends with one operation on it. While a handle is open the
//! transaction cannot be switched, so everything else here belongs to the transaction of whoever has a handle.

use extant_format::{Pblk, Tid};
use extant_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use extant_sync::{Mutex, Rank};
use rustc_hash::FxHashSet;

use crate::cache::Buf;

const LOCKED: u64 = 1 << 63;
const ONE_HANDLE: u64 = 1 << 40;
const HANDLES: u64 = LOCKED - ONE_HANDLE;
const ROOM: u64 = ONE_HANDLE - 1;
const SHARDS: usize = 8;

/// Room that a transaction has at most; without a log there is no other limit.
pub(crate) const MOST_ROOM: u64 = 1 << 32;

/// Why a reservation was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The transaction is being closed.
    Closing,
    /// It has not that much room.
    Full,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Running {
    gate: AtomicU64,
    tid: AtomicU32,
    /// The transaction should be committed before anybody joins it again.
    pressed: AtomicBool,
    joined: [Mutex<Vec<Buf>>; SHARDS],
    joined_count: AtomicU32,
    revokes: Mutex<FxHashSet<u64>>,
    revoke_count: AtomicU32,
    forgotten: Mutex<Vec<Buf>>,
    /// Nanoseconds since 1970 of the first change; 0 for none.
    began: AtomicU64,
}

/// What [`Running::switch`] takes out.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) joined: Vec<Buf>,
    pub(crate) revokes: Vec<u64>,
    pub(crate) forgotten: Vec<Buf>,
}

impl Contents {
    pub(crate) fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.revokes.is_empty() && self.forgotten.is_empty()
    }
}

impl Running {
    pub(crate) fn new(tid: Tid, room: u64) -> Self {
        Self {
            gate: AtomicU64::new(room.min(MOST_ROOM)),
            tid: AtomicU32::new(tid.0),
            pressed: AtomicBool::new(false),
            joined: std::array::from_fn(|_| Mutex::new(Rank::LEAF, Vec::new())),
            joined_count: AtomicU32::new(0),
            revokes: Mutex::new(Rank::LEAF, FxHashSet::default()),
            revoke_count: AtomicU32::new(0),
            forgotten: Mutex::new(Rank::LEAF, Vec::new()),
            began: AtomicU64::new(0),
        }
    }

    /// The running transaction. Stable only for who has a handle.
    pub(crate) fn tid(&self) -> Tid {
        Tid(self.tid.load(Ordering::Acquire))
    }

    /// Opens a handle with `credits` blocks reserved.
    #[inline]
    pub(crate) fn enter(&self, credits: u32) -> Result<Tid, Refused> {
        self.take(u64::from(credits), ONE_HANDLE)?;
        Ok(self.tid())
    }

    /// Reserves more for an open handle.
    pub(crate) fn reserve(&self, credits: u32) -> Result<(), Refused> {
        self.take(u64::from(credits), 0)
    }

    /// Reserves more for an open handle even while the transaction is being closed: for changes that cannot be put off.
    pub(crate) fn reserve_at_once(&self, credits: u32) -> Result<(), Refused> {
        let credits = u64::from(credits);
        let take = |gate: u64| (gate & ROOM >= credits).then(|| gate - credits);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).map(drop).map_err(|_| Refused::Full)
    }

    fn take(&self, credits: u64, handles: u64) -> Result<(), Refused> {
        let mut gate = self.gate.load(Ordering::Acquire);
        loop {
            if gate & LOCKED != 0 {
                return Err(Refused::Closing);
            }
            if gate & ROOM < credits {
                return Err(Refused::Full);
            }
            let next = gate - credits + handles;
            match self.gate.compare_exchange_weak(gate, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => gate = now,
            }
        }
    }

    /// Ends a handle, giving back what it has not used. Whether it was the last one that a closing waits for.
    #[inline]
    #[must_use]
    pub(crate) fn leave(&self, unused: u32) -> bool {
        let before = self.gate.fetch_sub(ONE_HANDLE - u64::from(unused), Ordering::AcqRel);
        debug_assert!(before & HANDLES != 0, "a handle that is not open ended");
        before & LOCKED != 0 && before & HANDLES == ONE_HANDLE
    }

    /// From now on nobody enters. [`Self::switch`] or [`Self::reopen`] ends it.
    pub(crate) fn close(&self) {
        self.gate.fetch_or(LOCKED, Ordering::AcqRel);
    }

    /// Whether no handle is open.
    pub(crate) fn is_still(&self) -> bool {
        self.gate.load(Ordering::Acquire) & HANDLES == 0
    }

    /// Whether the transaction is being closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.gate.load(Ordering::Acquire) & LOCKED != 0
    }

    /// Lets handles in again, the transaction unchanged.
    pub(crate) fn reopen(&self) {
        self.gate.fetch_and(!LOCKED, Ordering::AcqRel);
    }

    /// Blocks that may still be reserved.
    pub(crate) fn room(&self) -> u64 {
        self.gate.load(Ordering::Acquire) & ROOM
    }

    /// Gives the running transaction more room. Called under the journal's state lock only.
    pub(crate) fn add_room(&self, more: u64) {
        let add = |gate: u64| {
            let room = ((gate & ROOM) + more).min(MOST_ROOM);
            Some((gate & !ROOM) | room)
        };
        let _ = self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// Takes the contents out, of a closed and still transaction.
    pub(crate) fn take_contents(&self) -> Contents {
        debug_assert!(self.is_closing() && self.is_still(), "switched under an open handle");
        let mut contents = Contents::default();
        for shard in &self.joined {
            contents.joined.append(&mut shard.lock());
        }
        contents.revokes = self.revokes.lock().drain().collect();
        contents.forgotten = std::mem::take(&mut *self.forgotten.lock());
        // Who sees that nothing has joined sees that it is being closed ([`Self::is_unchanged`]).
        self.joined_count.store(0, Ordering::Release);
        self.revoke_count.store(0, Ordering::Release);
        self.began.store(0, Ordering::Relaxed);
        self.pressed.store(false, Ordering::Relaxed);
        contents
    }

    /// Opens the gate of the next transaction.
    pub(crate) fn switch(&self, tid: Tid, room: u64) {
        self.tid.store(tid.0, Ordering::Release);
        self.gate.store(room.min(MOST_ROOM), Ordering::Release);
    }

    /// Adds a buffer that a handle has changed for the first time. How many there are.
    pub(crate) fn join(&self, buf: &Buf) -> u32 {
        self.joined[(buf.pblk().0 % SHARDS as u64) as usize].lock().push(buf.clone());
        self.joined_count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether nothing has been changed. Exact only without open handles.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.joined_count.load(Ordering::Acquire) == 0 && self.revoke_count.load(Ordering::Acquire) == 0
    }

    /// Notes when the first change came.
    pub(crate) fn mark_begin(&self, now: impl FnOnce() -> u64) {
        if self.began.load(Ordering::Relaxed) == 0 {
            let _ = self.began.compare_exchange(0, now().max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// When the first change came, in nanoseconds since 1970.
    pub(crate) fn began(&self) -> Option<u64> {
        Some(self.began.load(Ordering::Relaxed)).filter(|began| *began != 0)
    }

    /// Adds a revoke record.
    pub(crate) fn revoke(&self, pblk: Pblk) {
        if self.revokes.lock().insert(pblk.0) {
            self.revoke_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a revoke record back: the block is metadata again in the same transaction.
    pub(crate) fn cancel_revoke(&self, pblk: Pblk) {
        if self.revoke_count.load(Ordering::Relaxed) != 0 && self.revokes.lock().remove(&pblk.0) {
            self.revoke_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Keeps a freed buffer until the commit.
    pub(crate) fn forget(&self, buf: Buf) {
        self.forgotten.lock().push(buf);
    }

    /// Asks for a commit before anybody else joins.
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::press`] was called for this transaction.
    #[inline]
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }
}
