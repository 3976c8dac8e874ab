//! Free clusters of the filesystem, promised ones, and who may have them.
//!
//! Every cluster that the disk calls free is in exactly one state:
//! - *usable*: nobody's. Only these can be promised.
//! - *promised*: reserved for somebody, or already claimed.
//! - *pending*: freed in a transaction that has not committed; not usable before.
//!
//! A [`Reservation`] holds promised clusters. As only usable clusters are promised, a claim that is paid for by a
//! reservation finds a cluster: it is in a group's free map, or in a preallocation window that gives way.
//!
//! Files without extents have 32 bits for a block's number. Where the filesystem has more blocks, the groups that end below 2^32
//! are the *low* ones, and what is promised to such files is promised of their clusters: `low` counts those that are free, in a
//! window or not, less what is so promised. Whoever else takes a cluster of a low group takes it from that count first, and looks
//! elsewhere when there is none: then every other free cluster is in the groups above, so one is found.

use extant_format::{Pblk, Tid};
use extant_sync::Arc;
use extant_sync::atomic::{AtomicI64, Ordering};

use crate::allocator::Allocator;
use crate::claim::Claim;
use crate::error::{AllocError, Result};

/// Who asks for space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// Leaves the reserved blocks (`s_r_blocks_count`) and the held-back pool alone.
    Normal,
    /// May use the reserved blocks: root, `resuid`, a member of `resgid`.
    Reserved,
    /// May use everything, the held-back pool too: tree blocks for splits that must not fail.
    Pool,
}

/// The counters, in clusters. No lock: each change is one atomic step, and a promise is made by compare-and-swap.
pub(crate) struct Counters {
    /// Usable clusters. Never negative except after a group was found corrupt.
    usable: AtomicI64,
    /// What the group descriptors add up to.
    disk_free: AtomicI64,
    /// Promised for data; statfs counts these as used, as the kernel does with delayed blocks.
    data: AtomicI64,
    /// Freed, not yet committed.
    pending: AtomicI64,
    /// `s_r_blocks_count` in clusters.
    root_reserved: AtomicI64,
    /// Held back for splits at full disk: 2 percent, at most 4096 clusters.
    pool: AtomicI64,
    /// Free clusters of the low groups less those promised of them. Never negative except after a group was found corrupt.
    low: AtomicI64,
}

impl Counters {
    pub(crate) fn new((free, low): (i64, i64), root_reserved: i64, pool: i64) -> Self {
        Self {
            usable: AtomicI64::new(free),
            disk_free: AtomicI64::new(free),
            data: AtomicI64::new(0),
            pending: AtomicI64::new(0),
            root_reserved: AtomicI64::new(root_reserved),
            pool: AtomicI64::new(pool),
            low: AtomicI64::new(low),
        }
    }

    /// Promises `n` clusters, or says no and changes nothing.
    fn promise(&self, n: i64, floor: i64) -> bool {
        let enough = |usable: i64| (usable - n >= floor).then(|| usable - n);
        self.usable.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enough).is_ok()
    }

    /// The same of the low groups' clusters, which are promised of all already.
    fn promise_low(&self, n: i64) -> bool {
        let enough = |low: i64| (low >= n).then(|| low - n);
        self.low.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enough).is_ok()
    }

    /// Takes up to `n` low clusters that are promised to nobody; how many.
    pub(crate) fn take_low(&self, n: u32) -> u32 {
        let left = |low: i64| (low > 0).then(|| low - low.min(n.into()));
        let before = self.low.fetch_update(Ordering::AcqRel, Ordering::Relaxed, left);
        before.map_or(0, |low| low.min(n.into()) as u32)
    }

    /// Low clusters are free again, or no longer promised.
    pub(crate) fn give_low(&self, n: i64) {
        self.low.fetch_add(n, Ordering::AcqRel);
    }

    /// Whether some low cluster is promised to nobody.
    pub(crate) fn has_low(&self) -> bool {
        self.low.load(Ordering::Acquire) > 0
    }

    fn floor(&self, privilege: Privilege) -> i64 {
        let pool = self.pool.load(Ordering::Relaxed);
        match privilege {
            Privilege::Normal => pool + self.root_reserved.load(Ordering::Relaxed),
            Privilege::Reserved => pool,
            Privilege::Pool => 0,
        }
    }

    /// Promised clusters become usable again.
    pub(crate) fn release(&self, n: i64, data: bool) {
        if data {
            self.data.fetch_sub(n, Ordering::Relaxed);
        }
        self.usable.fetch_add(n, Ordering::AcqRel);
    }

    /// Promised clusters are used on disk now.
    pub(crate) fn published(&self, n: i64, data: bool) {
        if data {
            self.data.fetch_sub(n, Ordering::Relaxed);
        }
        self.disk_free.fetch_sub(n, Ordering::Relaxed);
    }

    /// Used clusters are free on disk once the running transaction commits.
    pub(crate) fn freed(&self, n: i64) {
        self.disk_free.fetch_add(n, Ordering::Relaxed);
        self.pending.fetch_add(n, Ordering::Relaxed);
    }

    /// Pending clusters became usable.
    pub(crate) fn committed(&self, n: i64) {
        self.pending.fetch_sub(n, Ordering::Relaxed);
        self.usable.fetch_add(n, Ordering::AcqRel);
    }

    /// A corrupt group's free clusters are out of the game.
    pub(crate) fn lost(&self, n: i64) {
        self.usable.fetch_sub(n, Ordering::AcqRel);
        self.disk_free.fetch_sub(n, Ordering::Relaxed);
    }

    /// Free clusters as statfs shows them: free on disk and not promised to data.
    pub(crate) fn shown_free(&self) -> u64 {
        let free = self.disk_free.load(Ordering::Relaxed) - self.data.load(Ordering::Relaxed);
        free.max(0) as u64
    }

    /// Clusters that only the privileged get: the reserved blocks and the pool.
    pub(crate) fn held_back(&self) -> u64 {
        self.floor(Privilege::Normal).max(0) as u64
    }

    pub(crate) fn disk_free(&self) -> u64 {
        self.disk_free.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn usable(&self) -> i64 {
        self.usable.load(Ordering::Relaxed)
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn set_root_reserved(&self, n: i64) {
        self.root_reserved.store(n, Ordering::Relaxed);
    }
}

/// Clusters promised to somebody who has not taken them yet. Dropped, it gives them back.
///
/// Two purses: clusters for data, and clusters for the tree blocks that mapping the data may need in the worst case.
pub struct Reservation {
    alloc: Arc<Allocator>,
    data: u64,
    meta: u64,
    privilege: Privilege,
    /// Of the low groups' clusters.
    pub(crate) low: bool,
    /// Claimed out of it beforehand, each with the goal that it was asked for ([`Allocator::claim_ahead`]).
    pub(crate) ahead: Vec<(Pblk, Claim)>,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} data, {} meta, {:?})", self.data, self.meta, self.privilege)
    }
}

impl Reservation {
    /// Clusters left for data.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Clusters left for tree blocks.
    #[must_use]
    pub fn meta(&self) -> u64 {
        self.meta
    }

    /// The rights it was made with.
    #[must_use]
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// Promises `data` and `meta` clusters more.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`]; nothing changes then.
    pub fn grow(&mut self, data: u64, meta: u64) -> Result<()> {
        let more = self.alloc.reserve_of(data, meta, self.privilege, self.low)?;
        self.merge(more);
        Ok(())
    }

    /// Takes up to `data` and `meta` clusters out into a reservation of their own.
    #[must_use]
    pub fn split(&mut self, data: u64, meta: u64) -> Self {
        let (data, meta) = (data.min(self.data), meta.min(self.meta));
        self.data -= data;
        self.meta -= meta;
        let Self { privilege, low, .. } = *self;
        Self { alloc: Arc::clone(&self.alloc), data, meta, privilege, low, ahead: Vec::new() }
    }

    /// Puts what `other` holds into this one; both are of all blocks, or of those below a bound.
    pub fn merge(&mut self, mut other: Self) {
        assert!(Arc::ptr_eq(&self.alloc, &other.alloc), "reservations of two filesystems");
        assert_eq!(self.low, other.low, "reservations of different blocks");
        self.data += std::mem::take(&mut other.data);
        self.meta += std::mem::take(&mut other.meta);
        self.ahead.append(&mut other.ahead);
    }

    /// Gives back up to `data` and `meta` clusters.
    pub fn shrink(&mut self, data: u64, meta: u64) {
        drop(self.split(data, meta));
    }

    /// Pays `n` clusters out of the purse; what is missing is promised on the spot, with the pool's rights for tree
    /// blocks. Returns how many were paid.
    pub(crate) fn pay(&mut self, n: u64, data: bool) -> Result<u64> {
        let purse = if data { self.data } else { self.meta };
        if purse == 0 {
            self.grow(u64::from(data), u64::from(!data))?;
        }
        let purse = if data { &mut self.data } else { &mut self.meta };
        let paid = n.min(*purse);
        *purse -= paid;
        Ok(paid)
    }

    /// Takes back clusters that were paid but not found.
    pub(crate) fn refund(&mut self, n: u64, data: bool) {
        let purse = if data { &mut self.data } else { &mut self.meta };
        *purse += n;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let counters = self.alloc.counters();
        if self.low {
            // Before they are usable: who is promised one must find it.
            self.alloc.return_low((self.data + self.meta) as i64);
        }
        counters.release(self.data as i64, true);
        counters.release(self.meta as i64, false);
    }
}

impl Allocator {
    /// Promises `data` clusters under the caller's rights, and `meta` clusters for tree blocks, for which the
    /// held-back pool may be used. Takes no lock.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`], with the transaction to wait for when its commit would free blocks.
    pub fn reserve(self: &Arc<Self>, data: u64, meta: u64, privilege: Privilege) -> Result<Reservation> {
        self.reserve_of(data, meta, privilege, false)
    }

    /// The same, of the groups that end below block `below` only: for claims that are so bounded ([`crate::ClaimRequest::below`]).
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_below(
        self: &Arc<Self>,
        data: u64,
        meta: u64,
        privilege: Privilege,
        below: u64,
    ) -> Result<Reservation> {
        self.reserve_of(data, meta, privilege, self.is_low_bound(below))
    }

    fn reserve_of(
        self: &Arc<Self>,
        data: u64,
        meta: u64,
        privilege: Privilege,
        low: bool,
    ) -> Result<Reservation> {
        let counters = self.counters();
        let (d, m) = (clamp(data), clamp(meta));
        if !counters.promise(d, if d == 0 { i64::MIN } else { counters.floor(privilege) }) {
            return Err(self.no_space());
        }
        if !counters.promise(m, if m == 0 { i64::MIN } else { 0 }) {
            counters.release(d, false);
            return Err(self.no_space());
        }
        if low && !counters.promise_low(d + m) {
            counters.release(d + m, false);
            return Err(self.no_space());
        }
        counters.data.fetch_add(d, Ordering::Relaxed);
        Ok(Reservation { alloc: Arc::clone(self), data, meta, privilege, low, ahead: Vec::new() })
    }

    /// An empty reservation, for callers that promise on the spot what they take.
    #[must_use]
    pub fn no_reservation(self: &Arc<Self>, privilege: Privilege) -> Reservation {
        self.nothing(privilege, false)
    }

    /// The same for claims below block `below`.
    #[must_use]
    pub fn no_reservation_below(self: &Arc<Self>, privilege: Privilege, below: u64) -> Reservation {
        self.nothing(privilege, self.is_low_bound(below))
    }

    fn nothing(self: &Arc<Self>, privilege: Privilege, low: bool) -> Reservation {
        Reservation { alloc: Arc::clone(self), data: 0, meta: 0, privilege, low, ahead: Vec::new() }
    }

    /// Whether a bound leaves groups out, and so is a matter of the low ones.
    fn is_low_bound(&self, below: u64) -> bool {
        let groups = self.groups_below(below);
        debug_assert!(groups == self.groups.len() || groups == self.low_groups(), "another bound: {below}");
        groups < self.groups.len()
    }

    /// Low clusters are free again, or no longer promised: who found none looks again.
    pub(crate) fn return_low(&self, n: i64) {
        if n > 0 {
            self.counters().give_low(n);
            self.returned.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn no_space(&self) -> AllocError {
        let pending: Option<Tid> = if self.counters().has_pending() { self.newest_pending() } else { None };
        AllocError::NoSpace { pending }
    }
}

/// Clusters as the counters' type; more than any filesystem has is "too many", not an overflow.
fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}
