//! Claims: blocks taken for somebody in memory. The disk still says that they are free; the data is written to them;
//! then they are published in a handle together with the mapping. A claim that is dropped leaves nothing behind.
//!
//! The search for a group, in this order:
//! 1. the goal itself, then the goal's group near the goal;
//! 2. the nearest group whose largest free chunk is big enough ([`crate::index`]), skipping groups that another
//!    thread holds, then waiting for them;
//! 3. the longest run of the groups with the largest chunks below that;
//! 4. all preallocation windows are given back, once, and the search starts again.
//!
//! A group whose bitmap cannot be read or is wrong takes no more part. A claim that is made with a handle open
//! ([`Allocator::claim_held`]) finds that out before it comes to publishing: then only another group is looked for.
//!
//! Where files without extents cannot have every block, groups that they can have give others no more than is promised to nobody
//! ([`crate::counters`]).

use std::ops::Range;

use extant_format::{Corrupt, FormatError, GroupNr, Ino, Lblk, Pblk, Place};
use extant_journal::Handle;
use extant_sync::Arc;
use extant_sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::counters::{Privilege, Reservation};
use crate::error::{AllocError, Result};
use crate::group::{GroupBufs, GroupState};
use crate::window::{InodeWindow, Taken, thread_number};

/// Files up to this many bytes are cut from a slot that they share with other small files.
const SMALL_FILE: u64 = 64 << 10;
/// Clusters that a slot takes ahead.
const SLOT_CLUSTERS: u32 = 512;
/// Most bytes that a file's window takes ahead.
const WINDOW_BYTES: u64 = 8 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRequest<'a> {
    /// The block that would be best; see [`Allocator::goal_for_inode`].
    pub goal: Pblk,
    /// The file's first block that the claim is for. With bigalloc the blocks get the same place in their clusters.
    pub lblk: Lblk,
    /// Blocks wanted, at least 1. The claim may be shorter.
    pub len: u32,
    /// The file's window; `None` for metadata and for claims that must not take more than they need.
    pub window: Option<&'a InodeWindow>,
    /// The file's size in blocks after the write: decides how much is taken ahead.
    pub size_hint: u64,
    /// A tree block, paid out of the reservation's purse for tree blocks.
    pub meta: bool,
    /// Only blocks of groups that end below this number will do.
    pub below: u64,
}

impl<'a> ClaimRequest<'a> {
    /// `len` blocks near `goal`, nothing ahead.
    #[must_use]
    pub fn plain(goal: Pblk, lblk: Lblk, len: u32) -> Self {
        Self { goal, lblk, len, window: None, size_hint: 0, meta: false, below: u64::MAX }
    }

    /// One tree block near `goal`.
    #[must_use]
    pub fn tree_block(goal: Pblk) -> Self {
        Self { meta: true, ..Self::plain(goal, Lblk(0), 1) }
    }

    /// Data of a file of `size` blocks.
    #[must_use]
    pub fn file(goal: Pblk, lblk: Lblk, len: u32, size: u64, window: &'a InodeWindow) -> Self {
        Self { goal, lblk, len, window: Some(window), size_hint: size, meta: false, below: u64::MAX }
    }

    /// The same, with nothing from block `below` on: for who has fewer bits for a block's number than there are blocks.
    #[must_use]
    pub fn below(self, below: u64) -> Self {
        Self { below: self.below.min(below), ..self }
    }
}

/// Contiguous blocks that are taken in memory. Dropped, what was not published is free again.
///
/// With bigalloc a claim is of whole clusters; [`Claim::pblk`] and [`Claim::len`] are the blocks asked for.
pub struct Claim {
    alloc: Arc<Allocator>,
    group: u32,
    start: u32,
    clusters: u32,
    published: u32,
    /// Blocks before the first asked one in the first cluster.
    phase: u32,
    len: u32,
    data: bool,
    /// Paid by a promise of the low groups' clusters.
    low: bool,
    /// What publishing changes, if it must not be read then.
    bufs: Option<GroupBufs>,
}

/// Where a search may look, and what it has to pay there.
#[derive(Clone, Copy)]
struct Search {
    /// The first groups, so many.
    limit: usize,
    low: Low,
}

/// Who pays for clusters of low groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Low {
    /// A promise of just these.
    Promised,
    /// Whoever finds them, as he takes them.
    Now,
    /// Whoever takes them from the window that they go into.
    Later,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({}+{}, {} clusters published)", self.pblk(), self.len, self.published)
    }
}

impl Claim {
    /// The first block.
    #[must_use]
    pub fn pblk(&self) -> Pblk {
        let cluster = self.alloc.geo.block_of_bit(GroupNr(self.group), self.start);
        Pblk(cluster.0 + u64::from(self.phase))
    }

    /// Blocks, at least 1.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// A claim is never empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Clusters, published ones included.
    #[must_use]
    pub fn clusters(&self) -> u32 {
        self.clusters
    }

    /// Splits off the blocks from `at` on; `at` is inside the claim and, with bigalloc, at a cluster's start.
    #[must_use]
    pub fn split_off(&mut self, at: u32) -> Self {
        let log = self.alloc.geo.log_cluster_ratio();
        assert!(at > 0 && at < self.len, "splitting a claim of {} blocks at {at}", self.len);
        assert!((self.phase + at).is_multiple_of(1 << log), "a cluster has one claim");
        let first = (self.phase + at) >> log;
        let rest = Self {
            alloc: Arc::clone(&self.alloc),
            group: self.group,
            start: self.start + first,
            clusters: self.clusters - first,
            published: self.published.saturating_sub(first),
            phase: 0,
            len: self.len - at,
            data: self.data,
            low: self.low,
            bufs: self.bufs.clone(),
        };
        self.clusters = first;
        self.published = self.published.min(first);
        self.len = at;
        rest
    }

    /// Gives what is not published back to the reservation that paid for it, or one of the same blocks.
    pub fn give_back(mut self, reservation: &mut Reservation) {
        assert_eq!(self.low, reservation.low, "a claim is paid back to whom it is due");
        let rest = self.unpublished();
        if rest.len > 0 {
            self.alloc.give_back(rest);
            if !self.low {
                self.alloc.unpay(rest);
            }
            reservation.refund(u64::from(rest.len), self.data);
        }
        self.published = self.clusters;
    }

    /// An empty reservation that [`Self::give_back`] may fill.
    #[must_use]
    pub fn purse(&self, privilege: Privilege) -> Reservation {
        let mut purse = self.alloc.no_reservation(privilege);
        purse.low = self.low;
        purse
    }

    fn unpublished(&self) -> Taken {
        Taken { group: self.group, start: self.start + self.published, len: self.clusters - self.published }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let rest = self.unpublished();
        if rest.len > 0 {
            self.alloc.give_back(rest);
            self.alloc.unpay(rest);
            self.alloc.counters().release(i64::from(rest.len), self.data);
        }
    }
}

impl Allocator {
    /// Claims contiguous blocks as near to the goal as there are some, paid for by `reservation` (which is topped up
    /// under its own rights when it is empty). The claim may be shorter than asked; it is never empty.
    ///
    /// Takes window and group locks; reads bitmaps before. May be called with a handle open and the map locked.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`].
    pub fn claim(
        self: &Arc<Self>,
        request: &ClaimRequest<'_>,
        reservation: &mut Reservation,
    ) -> Result<Claim> {
        let log = self.geo.log_cluster_ratio();
        let phase = request.lblk.0 & ((1 << log) - 1);
        let want = (u64::from(phase) + u64::from(request.len.max(1))).div_ceil(1 << log);
        let data = !request.meta;
        let paid = reservation.pay(want, data)?;
        match self.find(request, paid.min(u64::from(u32::MAX)) as u32, reservation.low) {
            Ok(taken) => {
                reservation.refund(paid - u64::from(taken.len), data);
                let len =
                    ((u64::from(taken.len) << log) - u64::from(phase)).min(u64::from(request.len.max(1)));
                Ok(Claim {
                    alloc: Arc::clone(self),
                    group: taken.group,
                    start: taken.start,
                    clusters: taken.len,
                    published: 0,
                    phase,
                    len: len as u32,
                    data,
                    low: reservation.low,
                    bufs: None,
                })
            }
            Err(error) => {
                reservation.refund(paid, data);
                Err(error)
            }
        }
    }

    /// As [`Self::claim`], and publishing will not ask the device: for who has a handle open, or will have one. One block of data that
    /// was claimed ahead is found in the reservation.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`]; the device's, where nothing was left but a group that it could not read.
    pub fn claim_held(
        self: &Arc<Self>,
        request: &ClaimRequest<'_>,
        reservation: &mut Reservation,
    ) -> Result<Claim> {
        let single = !request.meta && request.len == 1;
        match single.then(|| self.take_ahead(request, reservation)).flatten() {
            Some(claim) => Ok(claim),
            None => self.claim_readable(request, reservation),
        }
    }

    /// Claims the blocks of a request one by one before they are asked for, the first with the request's goal and each other one with
    /// the block behind the last as its goal ([`Self::claim_held`]). With clusters of several blocks, of which the next block may
    /// find itself in the last one's, this does nothing.
    ///
    /// # Errors
    /// As [`Self::claim_held`].
    pub fn claim_ahead(
        self: &Arc<Self>,
        request: &ClaimRequest<'_>,
        reservation: &mut Reservation,
    ) -> Result<()> {
        if self.geo.cluster_ratio() > 1 {
            return Ok(());
        }
        let mut goal = request.goal;
        for _ in 0..request.len {
            let claim = self.claim_readable(&ClaimRequest { goal, len: 1, ..*request }, reservation)?;
            let next = Pblk(claim.pblk().0 + 1);
            reservation.ahead.push((goal, claim));
            goal = next;
        }
        Ok(())
    }

    /// What was claimed for this goal; where nothing is left in the purse, for another one: who asks for one block as each of them was
    /// asked for may have had theirs.
    fn take_ahead(&self, request: &ClaimRequest<'_>, reservation: &mut Reservation) -> Option<Claim> {
        let spent = reservation.data() == 0;
        let ahead = &mut reservation.ahead;
        let at = ahead.iter().position(|(goal, _)| *goal == request.goal);
        let at = at.or_else(|| {
            let groups = self.groups_below(request.below);
            let fits = |(_, claim): &(Pblk, Claim)| spent && (claim.group as usize) < groups;
            ahead.iter().position(fits)
        })?;
        Some(ahead.swap_remove(at).1)
    }

    /// Claims out of a group whose bitmap and descriptor are in memory then. One that cannot be read takes no more part.
    fn claim_readable(
        self: &Arc<Self>,
        request: &ClaimRequest<'_>,
        reservation: &mut Reservation,
    ) -> Result<Claim> {
        let mut unreadable = None;
        loop {
            let mut claim = match self.claim(request, reservation) {
                Ok(claim) => claim,
                Err(none) => return Err(unreadable.unwrap_or(none)),
            };
            let g = claim.group as usize;
            match self.block_bufs(g) {
                Ok(bufs) => {
                    claim.bufs = Some(bufs);
                    return Ok(claim);
                }
                Err(error) => {
                    claim.give_back(reservation);
                    let mut state = self.groups[g].lock();
                    self.mark_corrupt(g, &mut state);
                    drop(state);
                    self.report(&error);
                    unreadable = Some(error);
                }
            }
        }
    }

    /// Claims every cluster of the given range that is free, whatever else is there: one claim for each free run, in
    /// order. The reserved blocks and the pool may be used.
    ///
    /// Takes one group's lock after the other; reads bitmaps before.
    ///
    /// # Errors
    /// [`AllocError::NotData`] for a range that no file may have, [`AllocError::NoSpace`]; a corrupt group.
    pub fn claim_at(self: &Arc<Self>, pblk: Pblk, len: u64) -> Result<Vec<Claim>> {
        if !self.is_data_range(pblk, len) {
            return Err(AllocError::NotData { pblk, len });
        }
        let (mut at, end) = (pblk.0, pblk.0 + len);
        let mut claims = Vec::new();
        while at < end {
            let Some((group, bit)) = self.geo.bit_of_block(Pblk(at)) else { break };
            let group_end = self.geo.group_first_block(group).0 + u64::from(self.geo.blocks_in_group(group));
            let stop = end.min(group_end);
            let last = self.geo.bit_of_block(Pblk(stop - 1)).map_or(bit, |(_, b)| b);
            self.claim_free(group.0 as usize, (bit, last + 1), &mut claims)?;
            at = stop;
        }
        Ok(claims)
    }

    /// Claims the free runs of a group's clusters `from..to`.
    fn claim_free(self: &Arc<Self>, g: usize, (from, to): (u32, u32), claims: &mut Vec<Claim>) -> Result<()> {
        let mut purse = self.reserve(u64::from(to - from), 0, Privilege::Pool)?;
        let mut at = from;
        while at < to {
            let taken = self.with_buddy(g, |state, g| {
                let run = state.map.buddy()?.next_run(at)?;
                (run.start < to).then(|| take(state, g, run.start, run.end.min(to) - run.start))
            });
            let taken = taken.ok_or(AllocError::CorruptGroup { group: self.group_nr(g) })?;
            let Some(Taken { group, start, len }) = taken else { break };
            if self.is_low(g) {
                // These and no others are wanted: what is promised of the low ones gives way.
                self.counters().give_low(-i64::from(len));
            }
            at = start + len;
            let paid = purse.pay(u64::from(len), true)?;
            assert_eq!(paid, u64::from(len), "as many clusters are reserved as the range has");
            claims.push(Claim {
                alloc: Arc::clone(self),
                group,
                start,
                clusters: len,
                published: 0,
                phase: 0,
                len: len << self.geo.log_cluster_ratio(),
                data: true,
                low: false,
                bufs: None,
            });
        }
        Ok(())
    }

    /// Clusters that were paid for, and are in the free map again, are nobody's.
    fn unpay(&self, taken: Taken) {
        if self.is_low(taken.group as usize) {
            self.return_low(taken.len.into());
        }
    }

    /// Publishes the clusters of the claim's first `blocks` blocks: from here on the disk says that they are in use.
    /// In the same handle as the mapping. Clusters that were published before are left out.
    ///
    /// Takes the group's lock. Credits: 2.
    ///
    /// # Errors
    /// Corruption found in the group (nothing changed), or the journal's.
    pub fn publish(&self, handle: &mut Handle, claim: &mut Claim, blocks: u32) -> Result<()> {
        assert!(blocks <= claim.len, "publishing {blocks} of {} blocks", claim.len);
        let clusters = (claim.phase + blocks).div_ceil(self.geo.cluster_ratio());
        let Some(more) = clusters.checked_sub(claim.published).filter(|n| *n > 0) else { return Ok(()) };
        let g = claim.group as usize;
        let bufs = match &claim.bufs {
            Some(bufs) => bufs.clone(),
            None => self.block_bufs(g)?,
        };
        let mut state = self.groups[g].lock();
        let range = (claim.start + claim.published, more);
        if let Err(error) = self.change_bits(handle, g, &mut state, &bufs, range, true) {
            self.fail_group(g, state, &error);
            return Err(error);
        }
        state.unpin(more);
        drop(state);
        claim.published += more;
        self.counters().published(i64::from(more), claim.data);
        Ok(())
    }

    /// Puts clusters that were taken ahead or claimed back into their group's free map.
    pub(crate) fn give_back(&self, taken: Taken) {
        let g = taken.group as usize;
        let mut state = self.groups[g].lock();
        match state.give(taken.start, taken.len) {
            Ok(true) => self.opened(g, &state),
            Ok(false) => {}
            Err(bit) => {
                // The bitmap was changed by others than who have its group.
                let kind = Corrupt::Bit { bit, set: false };
                let error = FormatError::corrupt(Place::BlockBitmap(self.group_nr(g)), kind).into();
                return self.fail_group(g, state, &error);
            }
        }
        // Before a map that the disk knows too goes: the index must have what it says.
        self.reindex(g, &mut state);
        state.drop_packed();
        // Under the group's lock, so that nobody takes the clusters before they are counted as returned.
        self.returned.fetch_add(1, Ordering::SeqCst);
    }

    /// Marks a group corrupt if `error` says so, and reports it without the lock.
    pub(crate) fn fail_group(&self, g: usize, mut state: crate::group::GroupGuard<'_>, error: &AllocError) {
        if matches!(error, AllocError::Format(_)) {
            self.mark_corrupt(g, &mut state);
            drop(state);
            self.report(error);
        }
    }

    /// Finds `want` clusters or fewer: out of a window, or with more taken ahead for one, or plainly. `low`: a promise of the low
    /// groups' clusters pays.
    fn find(self: &Arc<Self>, request: &ClaimRequest<'_>, want: u32, low: bool) -> Result<Taken> {
        let limit = self.groups_below(request.below);
        let limit = if low { limit.min(self.low_groups()) } else { limit };
        let plain = Search { limit, low: if low { Low::Promised } else { Low::Now } };
        if limit < self.groups.len() {
            // Windows are of any group.
            return self.search(request.goal, want, plain);
        }
        let Some(window) = request.window else { return self.search(request.goal, want, plain) };
        let log = self.geo.log_cluster_ratio();
        let at = request.lblk.0 >> log;
        let bytes = request.size_hint << self.geo.log_block_size();
        if bytes <= SMALL_FILE {
            return self.find_small(request.goal, want, plain);
        }
        let mut window = window.cell(self).lock();
        if let Some(cut) = window.cut(at, want) {
            let paid = self.pay_cut(cut);
            drop(window);
            return paid.map_or_else(|| self.search(request.goal, want, plain), Ok);
        }
        // More than is asked, larger than the file: what it does not use costs nothing.
        let bytes = bytes.saturating_mul(2).next_power_of_two().min(WINDOW_BYTES);
        let ahead = ((bytes / self.geo.cluster_size()) as u32).next_power_of_two();
        if (at == 0 || !self.is_group_start(request.goal))
            && let Some(all) = self.exactly(request.goal, want, ahead.max(want))
        {
            window.keep(self, at, all);
        } else {
            // Not where the file's order wants it: then with room for the blocks before this one too.
            let first = at & !(ahead - 1);
            let len = (at - first).saturating_add(want).max(ahead);
            if let Some(all) = self.look(request.goal, len, Search { low: Low::Later, ..plain }) {
                window.keep(self, if all.len > at - first { first } else { at }, all);
            }
        }
        let paid = window.cut(at, want).and_then(|cut| self.pay_cut(cut));
        drop(window);
        paid.map_or_else(|| self.search(request.goal, want, plain), Ok)
    }

    /// Pays for what was taken from a window, whose lock is still held; what cannot be had goes back. `None` if that is all.
    fn pay_cut(&self, mut cut: Taken) -> Option<Taken> {
        if !self.is_low(cut.group as usize) {
            return Some(cut);
        }
        let paid = cut.cut(self.counters().take_low(cut.len));
        if cut.len > 0 {
            self.give_back(cut);
        }
        (paid.len > 0).then_some(paid)
    }

    /// Whether a goal is only a group's beginning, as for a file without blocks near the one that is claimed.
    fn is_group_start(&self, goal: Pblk) -> bool {
        self.geo.group_of_block(goal).is_none_or(|(_, at)| at == 0)
    }

    /// The goal itself with as much as is free behind it, up to `len`, for a window; `None` if fewer than `want` are.
    fn exactly(&self, goal: Pblk, want: u32, len: u32) -> Option<Taken> {
        let (g, bit) = self.geo.bit_of_block(goal)?;
        self.with_buddy(g.0 as usize, |state, g| {
            let run = state.map.buddy()?.run_at(bit, len);
            (run >= want).then(|| take(state, g, bit, run))
        })?
    }

    /// Small files are cut one behind the other from the thread's slot.
    fn find_small(&self, goal: Pblk, want: u32, plain: Search) -> Result<Taken> {
        let slot = &self.slots[thread_number() % self.slots.len()];
        let Some(mut held) = slot.0.try_lock() else { return self.search(goal, want, plain) };
        if let Some(window) = held.as_mut().filter(|w| w.len >= want) {
            let paid = self.pay_cut(window.cut(want));
            drop(held);
            return paid.map_or_else(|| self.search(goal, want, plain), Ok);
        }
        let mut goal = goal;
        if let Some(old) = held.take() {
            goal = self.geo.block_of_bit(GroupNr(old.group), old.start);
            if old.len > 0 {
                self.give_back(old);
            }
        }
        let ahead = self.look(goal, SLOT_CLUSTERS.max(want), Search { low: Low::Later, ..plain });
        let paid = ahead.and_then(|mut all| {
            let cut = all.cut(want);
            *held = Some(all);
            self.pay_cut(cut)
        });
        drop(held);
        paid.map_or_else(|| self.search(goal, want, plain), Ok)
    }

    /// Takes `want` clusters or fewer out of a free map, near `goal` if it can be.
    ///
    /// No window is locked by the caller: if nothing is found, all windows are emptied, each under its lock, so that
    /// clusters on their way into a window are waited for. If any were returned meanwhile, by whomever, the free maps are
    /// looked at again: they may have gone from a window not yet emptied into one that was.
    fn search(&self, goal: Pblk, want: u32, how: Search) -> Result<Taken> {
        loop {
            let returned = self.returned.load(Ordering::SeqCst);
            if let Some(taken) = self.look(goal, want, how) {
                return Ok(taken);
            }
            if !self.empty_windows() && self.returned.load(Ordering::SeqCst) == returned {
                return Err(self.no_space());
            }
        }
    }

    /// As [`Self::search`], with what is in the free maps only.
    fn look(&self, goal: Pblk, want: u32, how: Search) -> Option<Taken> {
        let want = want.clamp(1, self.geo.clusters_per_group());
        // Low groups that have nothing for whom it is not promised to need not be looked at one by one.
        let barred = how.low != Low::Promised && !self.counters().has_low();
        let groups = if barred { self.low_groups() } else { 0 }..how.limit;
        let goal = self.geo.bit_of_block(goal).filter(|(g, _)| groups.contains(&(g.0 as usize)));
        let (g, bit) = goal.map_or((groups.start, 0), |(g, bit)| (g.0 as usize, bit));
        if groups.is_empty() {
            return None;
        }
        self.near_goal(g, bit, want, how.low).or_else(|| self.in_groups(g, want, groups, how.low))
    }

    /// The goal itself, or a run near it in its group.
    fn near_goal(&self, g: usize, bit: u32, want: u32, low: Low) -> Option<Taken> {
        let stripe = self.stripe_clusters(want);
        self.with_buddy(g, |state, g| {
            let buddy = state.map.buddy_mut()?;
            if stripe == 0 && buddy.run_at(bit, want) == want {
                return self.take_paid(state, g, (bit, want), low);
            }
            if stripe > 0 {
                let phase = self.stripe_phase(g, stripe);
                if let Some(at) = buddy.find_aligned(want, stripe, phase, bit) {
                    return self.take_paid(state, g, (at, want), low);
                }
            }
            let order = want.next_power_of_two().trailing_zeros();
            let at = buddy.find_near(bit, order).or_else(|| buddy.find_near(0, order))?;
            self.take_paid(state, g, (at, want), low)
        })?
    }

    /// Some group with a chunk that is large enough, else the longest run that the best groups have.
    fn in_groups(&self, g: usize, want: u32, groups: Range<usize>, low: Low) -> Option<Taken> {
        let order = want.next_power_of_two().trailing_zeros();
        let of_order = |order| self.of_order(g, order, want, groups.clone(), low);
        if let Some(taken) = of_order(order) {
            return Some(taken);
        }
        let mut below = order;
        while let Some(k) = self.index.largest_below(below) {
            if let Some(taken) = of_order(k) {
                return Some(taken);
            }
            below = k;
        }
        None
    }

    /// Walks the groups that the index has for `order`, from `g` on, once; first those that nobody holds.
    fn of_order(&self, g: usize, order: u32, want: u32, groups: Range<usize>, low: Low) -> Option<Taken> {
        for wait in [false, true] {
            for (from, to) in [(g, groups.end), (groups.start, g)] {
                let mut at = from;
                while let Some(found) = self.index.first_in(order, at).filter(|f| *f < to) {
                    let pick = |state: &mut GroupState, g: usize| self.pick(state, g, order, want, low);
                    let taken = if wait {
                        self.with_buddy(found, pick)
                    } else {
                        self.try_with_buddy(found, pick).flatten()
                    };
                    if let Some(taken) = taken.flatten() {
                        return Some(taken);
                    }
                    at = found + 1;
                }
            }
        }
        None
    }

    /// Takes a run out of a group, if the group has a chunk of the order after all.
    fn pick(&self, state: &mut GroupState, g: usize, order: u32, want: u32, low: Low) -> Option<Taken> {
        let stripe = self.stripe_clusters(want);
        let buddy = state.map.buddy_mut()?;
        if buddy.largest_order()? < order {
            return None;
        }
        if stripe > 0
            && let Some(at) = buddy.find_aligned(want, stripe, self.stripe_phase(g, stripe), 0)
        {
            return self.take_paid(state, g, (at, want), low);
        }
        let (start, len) = buddy.find_best(want)?;
        self.take_paid(state, g, (start, len), low)
    }

    /// Takes a run that was found, or as much of it as may be had.
    fn take_paid(
        &self,
        state: &mut GroupState,
        g: usize,
        (start, len): (u32, u32),
        low: Low,
    ) -> Option<Taken> {
        let pays = low == Low::Now && self.is_low(g);
        let len = if pays { self.counters().take_low(len) } else { len };
        (len > 0).then(|| take(state, g, start, len))
    }

    /// The stripe in clusters, if `want` is a multiple of it; else 0.
    fn stripe_clusters(&self, want: u32) -> u32 {
        let blocks = self.stripe.load(extant_sync::atomic::Ordering::Relaxed);
        let stripe = blocks >> self.geo.log_cluster_ratio();
        if stripe > 1 && want.is_multiple_of(stripe) { stripe } else { 0 }
    }

    /// Where in its group a stripe begins: stripes count from the device's start.
    fn stripe_phase(&self, g: usize, stripe: u32) -> u32 {
        let first = self.geo.group_first_block(GroupNr(g as u32)).0 >> self.geo.log_cluster_ratio();
        let into = (first % u64::from(stripe)) as u32;
        (stripe - into) % stripe
    }

    /// Gives back all clusters that were taken ahead, and waits for those that are being trimmed. Returns whether there were any.
    fn empty_windows(&self) -> bool {
        let mut any = false;
        drop(self.trimming.lock());
        for slot in &*self.slots {
            let mut held = slot.0.lock();
            if let Some(old) = held.take().filter(|w| w.len > 0) {
                self.give_back(old);
                any = true;
            }
        }
        for cell in self.windows.alive() {
            any |= cell.release();
        }
        any
    }

    /// Where an inode's first blocks should lie: its group, or with flexible groups of 4 and more the second group
    /// of its flexible group for files, the first for directories and the rest, so that metadata stays together.
    #[must_use]
    pub fn goal_for_inode(&self, ino: Ino, regular: bool) -> Pblk {
        let group = self.geo.inode_location(ino).map_or(0, |at| at.group.0);
        let flex = self.geo.groups_per_flex();
        let mut goal = group;
        if flex >= 4 {
            goal = group & !(flex - 1);
            if regular && goal + 1 < self.geo.groups() {
                goal += 1;
            }
        }
        self.geo.group_first_block(GroupNr(goal))
    }
}

fn take(state: &mut GroupState, g: usize, start: u32, len: u32) -> Taken {
    state.take(start, len);
    Taken { group: g as u32, start, len }
}
