//! Writeback: collect dirty pages, find them places, write, publish, settle.

use std::ops::Range;

use extant_device::MemSlice;
use extant_format::{Lblk, Pblk};
use extant_sync::Arc;
use extant_sys::PageMem;
use smallvec::SmallVec;

use crate::Host;
use crate::cache::WRITE_BATCH;
use crate::host::{Pending, Placement};
use crate::mutant::without;
use crate::page::{Blocks, Kind, LockedPages, Page, Pages};
use crate::space::{AddressSpace, Gate, runs_of};

/// Bytes of one device write at most.
pub(crate) const MOST_BYTES: u64 = 8 << 20;

/// Pages that are locked at a time to take a right away from their mappings.
const PROTECT_BATCH: usize = 512;

/// A page in writeback.
struct InFlight {
    page: Arc<Page>,
    /// What is written of it.
    blocks: Blocks,
    /// Of these, the ones that had no place.
    delayed: Blocks,
    /// What is written instead of the page, when a mapping may change that meanwhile.
    snapshot: Option<PageMem>,
    /// It was pinned when the copy was made: a device may have written it since.
    pinned: bool,
    /// Blocks whose data is on the device and published.
    good: Blocks,
}

/// A run of blocks with a place.
struct Placed<C> {
    lblk: u32,
    len: u32,
    pblk: Pblk,
    claim: Option<C>,
    good: bool,
}

/// As most inodes have it, with one page: that takes no memory of its own.
type Few<T> = SmallVec<[T; 1]>;

/// Pages of one inode on their way to the device.
struct Batch<E> {
    pages: Few<InFlight>,
    /// `i_size` when the last page was collected.
    size: u64,
    error: Option<E>,
}

/// What [`crate::Owner::begin_write`] returns; always finished.
struct PendingWrite<'a, H: Host> {
    space: &'a AddressSpace,
    host: &'a H,
    batch: Batch<H::Error>,
    placed: Few<Placed<H::Claim>>,
    _gate: Gate<'a>,
}

impl<H: Host> Pending for PendingWrite<'_, H> {
    fn run(&self, n: usize) -> Option<(Pblk, u32)> {
        let placed = self.placed.get(n).filter(|_| self.host.journalled().is_none())?;
        Some((placed.pblk, placed.len))
    }

    fn memory<'a>(&'a self, run: usize, into: &mut Vec<MemSlice<'a>>) {
        let run = &self.placed[run];
        self.space.slices(&self.batch.pages, run.lblk, run.len, into);
    }

    fn failed(&mut self, run: usize, error: std::io::Error) {
        self.placed[run].good = false;
        self.batch.error.get_or_insert(error.into());
    }

    fn finish(self: Box<Self>) -> bool {
        let this = *self;
        this.space.complete(this.host, this.batch, this.placed).is_ok()
    }
}

impl AddressSpace {
    /// Writes what is dirty in `range` (bytes) when the call begins; on return it is on the device and published. Takes the
    /// gate (40), page locks one at a time, and what [`Host::claim`] and [`Host::publish`] take; the caller holds nothing from
    /// 40 on. Flushing the device and committing the transaction are the caller's.
    ///
    /// # Errors
    /// The first failure; everything else was tried, what failed stays dirty. It is also remembered in [`Self::errors`].
    pub fn sync<H: Host>(&self, host: &H, range: Range<u64>) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let end = range.end.min(host.size());
        // The page counts, not the byte: the range may begin past the end of the file in a page that is dirty before it.
        let Some(first) = geo.page_of(range.start).filter(|p| geo.page_start(*p) < end) else {
            return Ok(());
        };
        let last = geo.page_of(end - 1).unwrap_or(u32::MAX);
        let found = self.find_unseen_changes(host, range.start..end);
        self.write_range(host, first, last, usize::MAX).1.and(found)
    }

    /// Writes what is marked dirty now, with no look for anything else: [`Self::sync`] for who looks later.
    pub(crate) fn write_dirty<H: Host>(&self, host: &H) -> Result<(), H::Error> {
        self.write_range(host, 0, u32::MAX, usize::MAX).1
    }

    /// Writes up to about `most` dirty pages, going on where the last call stopped.
    pub(crate) fn write_some<H: Host>(&self, host: &H, most: usize) -> Result<(), H::Error> {
        let from = *self.write_hand.lock();
        let (next, result) = self.write_range(host, from, u32::MAX, most);
        *self.write_hand.lock() = next.unwrap_or(0);
        match (next, result) {
            (None, Ok(())) if from > 0 => self.write_range(host, 0, from - 1, most).1,
            (_, result) => result,
        }
    }

    /// Writes dirty pages from `first` to `last`, at most `most`; the page to go on with when there may be more.
    fn write_range<H: Host>(
        &self,
        host: &H,
        first: u32,
        last: u32,
        most: usize,
    ) -> (Option<u32>, Result<(), H::Error>) {
        let mut result = self.write_old_end(host, first);
        let mut at = first;
        let mut left = most;
        loop {
            let gate = self.gate();
            let taken = self.index.write().take_marked(at, last, left.min(WRITE_BATCH));
            let Some(next) = taken.last().map(|p| p.index.checked_add(1)) else { return (None, result) };
            left = left.saturating_sub(taken.len());
            let written = self.write_pages(host, &gate, taken);
            if result.is_ok() {
                result = written;
            }
            match next.filter(|n| *n <= last) {
                None => return (None, result),
                next if left == 0 => return (next, result),
                Some(n) => at = n,
            }
        }
    }

    /// The block with the end of the file as the disk knows it, when it lies before `first` and is dirty: its zeroed tail has to
    /// be on the device before anything past it is published.
    fn write_old_end<H: Host>(&self, host: &H, first: u32) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let end = host.disk_size();
        if end.is_multiple_of(geo.block_size().into()) {
            return Ok(());
        }
        let Some(page) = geo.page_of(end).filter(|p| *p < first) else { return Ok(()) };
        let gate = self.gate();
        let taken = self.index.write().take_marked(page, page, 1);
        if taken.is_empty() { Ok(()) } else { self.write_pages(host, &gate, taken) }
    }

    /// See [`crate::Owner::begin_write`].
    pub(crate) fn begin_write<'a, H: Host>(
        &'a self,
        host: &'a H,
        most: usize,
    ) -> Option<Box<dyn Pending + 'a>> {
        let gate = self.gate_ordered(host.number());
        let taken = self.index.write().take_marked(0, u32::MAX, most);
        if taken.is_empty() {
            return None;
        }
        let mut batch = self.collect(host, taken);
        let placed = self.place(host, &mut batch);
        Some(Box::new(PendingWrite { space: self, host, batch, placed, _gate: gate }))
    }

    /// Writes pages whose marks were taken.
    pub(crate) fn write_pages<H: Host>(
        &self,
        host: &H,
        _gate: &Gate<'_>,
        taken: Pages,
    ) -> Result<(), H::Error> {
        let mut batch = self.collect(host, taken);
        let mut placed = self.place(host, &mut batch);
        if host.journalled().is_none() {
            self.write_placed(&batch.pages, &mut placed, &mut batch.error);
        }
        self.complete(host, batch, placed)
    }

    /// Publishes what was written, settles the pages, remembers an error.
    fn complete<H: Host>(
        &self,
        host: &H,
        mut batch: Batch<H::Error>,
        mut placed: Few<Placed<H::Claim>>,
    ) -> Result<(), H::Error> {
        if batch.pages.is_empty() && batch.error.is_none() {
            return Ok(());
        }
        self.hold_back_past_old_end(host, &batch.pages, &mut placed);
        self.publish(host, &mut batch, placed);
        self.settle(&mut batch);
        match batch.error {
            None => Ok(()),
            Some(error) => {
                self.remember_error::<H>(&error);
                host.content_lost(&error);
                Err(error)
            }
        }
    }

    /// Puts pages into writeback: one lock at a time, or, where programs have them mapped, many.
    fn collect<H: Host>(&self, host: &H, taken: Pages) -> Batch<H::Error> {
        let mut batch = Batch { pages: Few::with_capacity(taken.len()), size: 0, error: None };
        if self.mmu().is_some() {
            taken.chunks(PROTECT_BATCH).for_each(|some| self.collect_mapped(host, some, &mut batch));
            return batch;
        }
        for page in taken {
            match LockedPages::wait_for(Arc::clone(&page), &self.cache.waits) {
                Some(_locked) => self.collect_page(host, page, &mut batch),
                None => self.cleaned(1),
            }
        }
        batch
    }

    /// The same for pages that a mapping may show: under all their locks it loses the right to store, then they are as the others.
    /// In this order: a store that comes before the right is gone is in the copy, one that comes after it is a fault that makes the
    /// page dirty again (test `faults::store_against_writeback`).
    fn collect_mapped<H: Host>(&self, host: &H, taken: &[Arc<Page>], batch: &mut Batch<H::Error>) {
        let Some(first) = taken.first() else { return };
        let mut locked = LockedPages::none(first.index, &self.cache.waits, taken.len());
        for page in taken {
            // One that moved to the file's memory since its mark was taken is in the index under the same number.
            let mut page = Some(Arc::clone(page));
            while let Some(now) = page.take_if(|p| !locked.push_waiting(p)) {
                if without!(self.cache, MovedMark) {
                    break;
                }
                page = self.index.read().find(now.index).cloned();
            }
            if page.is_none() {
                self.cleaned(1);
            }
        }
        if without!(self.cache, ProtectFirst) {
            for page in &locked.pages {
                self.collect_page(host, Arc::clone(page), batch);
            }
            let _ = self.protect_batch(&locked.pages);
            return;
        }
        if let Err(error) = self.protect_batch(&locked.pages) {
            // What can still be stored to stays dirty.
            batch.error.get_or_insert(error.into());
            locked.pages.iter().for_each(|page| self.remark(page));
            return;
        }
        for page in &locked.pages {
            self.collect_page(host, Arc::clone(page), batch);
        }
    }

    /// The same for one page, under its lock.
    fn collect_page<H: Host>(&self, host: &H, page: Arc<Page>, batch: &mut Batch<H::Error>) {
        let geo = self.cache.geometry();
        let state = page.state();
        debug_assert!(!state.in_writeback(), "the gate keeps two writebacks apart: {page:?}");
        let dirty = state.has(Kind::Dirty);
        if dirty == 0 {
            self.cleaned(1);
            return;
        }
        let size = host.size();
        let start = geo.page_start(page.index);
        if start >= size {
            // A range operation has cut it off and will drop it.
            self.remark(&page);
            return;
        }
        let end = (size - start).min(geo.page_size() as u64) as usize;
        page.mem().zero(end, geo.page_size() - end);
        let pinned = page.is_pinned();
        let changes = (state.was_write_mapped() || pinned) && !without!(self.cache, Snapshot);
        let snapshot = changes.then(|| {
            let copy = self.cache.bounce();
            copy.mem().copy_from_mem(0, page.mem());
            if page.is_of_file() {
                self.note_sums(&page, copy.mem(), dirty);
            }
            copy
        });
        let delayed = dirty & state.has(Kind::Delayed);
        page.update(|s| {
            s.without(Kind::Dirty, dirty)
                .with(Kind::InFlight, dirty)
                .without(Kind::Delayed, delayed)
                .with(Kind::Claimed, delayed)
                .starting_writeback()
        });
        batch.size = size;
        batch.pages.push(InFlight { page, blocks: dirty, delayed, snapshot, pinned, good: 0 });
    }

    /// Puts back the mark of a page that was taken; it has been counted all the time.
    fn remark(&self, page: &Page) {
        if !self.index.write().mark(page.index) {
            // Somebody marked and counted it again meanwhile.
            self.cleaned(1);
        }
    }

    /// Finds places for everything. What finds none is left out.
    fn place<H: Host>(&self, host: &H, batch: &mut Batch<H::Error>) -> Few<Placed<H::Claim>> {
        let mut placed = Few::new();
        let most = host.journalled().unwrap_or(u32::MAX);
        for (start, len, delayed) in self.runs(&batch.pages) {
            let mut at = start;
            while at < start + len {
                let rest = (start + len - at).min(most);
                match host.claim(Lblk(at), rest, delayed) {
                    Ok(Placement { pblk, len, claim }) => {
                        let len = len.clamp(1, rest);
                        placed.push(Placed { lblk: at, len, pblk, claim, good: true });
                        at += len;
                    }
                    Err(error) => {
                        batch.error.get_or_insert(error);
                        break;
                    }
                }
            }
        }
        placed
    }

    /// The blocks of a batch as runs of one kind: first block, blocks, delayed.
    fn runs(&self, pages: &[InFlight]) -> Few<(u32, u32, bool)> {
        let geo = self.cache.geometry();
        let mut runs = Few::<(u32, u32, bool)>::new();
        for flight in pages {
            let first = geo.first_block(flight.page.index);
            for run in runs_of(flight.blocks) {
                for block in run {
                    let (lblk, delayed) = (first + block, flight.delayed & 1 << block != 0);
                    match runs.last_mut() {
                        Some((at, n, kind)) if *at + *n == lblk && *kind == delayed => *n += 1,
                        _ => runs.push((lblk, 1, delayed)),
                    }
                }
            }
        }
        runs
    }

    /// Writes everything that has a place: neighbours on the device together; if that fails, each run for itself, so that a
    /// bad one stays dirty alone.
    fn write_placed<C, E: From<std::io::Error>>(
        &self,
        pages: &[InFlight],
        placed: &mut [Placed<C>],
        error: &mut Option<E>,
    ) {
        let mut at = 0;
        while at < placed.len() {
            let together = self.neighbours(&placed[at..]);
            let group = &mut placed[at..at + together];
            at += together;
            match self.write_group(pages, group) {
                Ok(()) => continue,
                Err(e) if together == 1 => {
                    group[0].good = false;
                    error.get_or_insert(e.into());
                    continue;
                }
                Err(_) => {}
            }
            for one in group {
                if let Err(e) = self.write_group(pages, std::slice::from_mut(one)) {
                    one.good = false;
                    error.get_or_insert(e.into());
                }
            }
        }
    }

    /// How many runs from the first on lie behind each other on the device.
    fn neighbours<C>(&self, placed: &[Placed<C>]) -> usize {
        let geo = self.cache.geometry();
        let mut bytes = geo.block_bytes(placed[0].len);
        let mut together = 1;
        for pair in placed.windows(2) {
            bytes += geo.block_bytes(pair[1].len);
            if pair[0].pblk.0.checked_add(pair[0].len.into()) != Some(pair[1].pblk.0) || bytes > MOST_BYTES {
                break;
            }
            together += 1;
        }
        together
    }

    fn write_group<C>(&self, pages: &[InFlight], group: &[Placed<C>]) -> std::io::Result<()> {
        let mut slices: Vec<MemSlice<'_>> = Vec::new();
        for run in group {
            self.slices(pages, run.lblk, run.len, &mut slices);
        }
        self.cache.device().write_mem_at(self.cache.geometry().pblk_bytes(group[0].pblk)?, &slices)
    }

    /// The memory of `len` blocks from `lblk` on.
    fn slices<'p>(&self, pages: &'p [InFlight], lblk: u32, len: u32, into: &mut Vec<MemSlice<'p>>) {
        let geo = self.cache.geometry();
        let mut slot = pages.partition_point(|p| p.page.index < geo.page_of_block(lblk));
        let mut at = lblk;
        while at < lblk + len {
            let flight = &pages[slot];
            let first = geo.first_block(flight.page.index);
            let end = (lblk + len - first).min(geo.blocks_per_page());
            let from = geo.block_bytes(at - first) as usize;
            let memory = flight.snapshot.as_ref().map_or_else(|| flight.page.mem(), PageMem::mem);
            into.push(memory.slice(from, geo.block_bytes(end) as usize - from));
            at = first + end;
            slot += 1;
        }
    }

    /// If the block with the old end of the file could not be written, nothing past it is published: the old tail would become
    /// part of the file.
    fn hold_back_past_old_end<H: Host>(&self, host: &H, pages: &[InFlight], placed: &mut [Placed<H::Claim>]) {
        let geo = self.cache.geometry();
        let end = host.disk_size();
        if end.is_multiple_of(geo.block_size().into()) {
            return;
        }
        let Ok(old) = u32::try_from(end / u64::from(geo.block_size())) else { return };
        let in_batch = |f: &InFlight| {
            let first = geo.first_block(f.page.index);
            old >= first && old < first + geo.blocks_per_page() && f.blocks & 1 << (old - first) != 0
        };
        let written = placed.iter().any(|p| p.good && p.lblk <= old && old < p.lblk + p.len);
        let still_dirty = if pages.iter().any(in_batch) { !written } else { self.is_block_dirty(old) };
        if still_dirty {
            for run in placed.iter_mut().filter(|p| p.lblk + p.len > old) {
                run.good = false;
            }
        }
    }

    fn is_block_dirty(&self, lblk: u32) -> bool {
        let geo = self.cache.geometry();
        let page = geo.page_of_block(lblk);
        let bit = 1 << (lblk - geo.first_block(page));
        self.index.read().find(page).is_some_and(|p| p.state().has(Kind::Dirty) & bit != 0)
    }

    /// Publishes what was written, as much at a time as a handle takes, and notes it in the pages.
    fn publish<H: Host>(&self, host: &H, batch: &mut Batch<H::Error>, placed: Few<Placed<H::Claim>>) {
        let most = if placed.len() > 1 { host.claims_per_publish().max(1) } else { 1 };
        let most_blocks = host.journalled().unwrap_or(u32::MAX);
        let mut claims = Few::new();
        let mut done = Few::new();
        let mut blocks = 0;
        for run in placed {
            if !run.good {
                if batch.error.is_none() {
                    batch.error = Some(std::io::Error::from_raw_os_error(5).into());
                }
                continue;
            }
            let full = most_blocks - blocks < run.len || claims.len() >= most;
            if full && !done.is_empty() {
                if !self.publish_some(host, batch, &mut claims, &mut done) {
                    return;
                }
                blocks = 0;
            }
            claims.extend(run.claim);
            done.push((run.lblk, run.len, run.pblk));
            blocks = blocks.saturating_add(run.len);
        }
        if !done.is_empty() {
            self.publish_some(host, batch, &mut claims, &mut done);
        }
    }

    /// The same for what fits in one handle; whether it went well.
    fn publish_some<H: Host>(
        &self,
        host: &H,
        batch: &mut Batch<H::Error>,
        claims: &mut Few<H::Claim>,
        done: &mut Few<(u32, u32, Pblk)>,
    ) -> bool {
        let geo = self.cache.geometry();
        let end = done.last().map_or(0, |(at, n, _)| geo.block_bytes(*at) + geo.block_bytes(*n));
        let end = end.min(batch.size);
        let outcome = if host.journalled().is_some() {
            let memory = |(lblk, len, pblk): &(u32, u32, Pblk)| {
                let mut slices = Vec::new();
                self.slices(&batch.pages, *lblk, *len, &mut slices);
                (*pblk, slices)
            };
            host.publish_data(claims, &done.iter().map(memory).collect::<Vec<_>>(), end)
        } else {
            host.publish(claims, end)
        };
        claims.clear();
        if let Err(error) = outcome {
            batch.error.get_or_insert(error);
            return false;
        }
        for (lblk, len, _) in done.drain(..) {
            let mut slot = batch.pages.partition_point(|p| p.page.index < geo.page_of_block(lblk));
            for at in lblk..lblk + len {
                if geo.page_of_block(at) != batch.pages[slot].page.index {
                    slot += 1;
                }
                let flight = &mut batch.pages[slot];
                flight.good |= 1 << (at - geo.first_block(flight.page.index));
            }
        }
        true
    }

    /// Ends the writeback of all pages: what went well is clean, the rest dirty again, delayed if it was.
    fn settle<E>(&self, batch: &mut Batch<E>) {
        let mut clean = 0;
        for flight in &batch.pages {
            let bad = flight.blocks & !flight.good;
            // A device may write a pinned page at any time, also between the copy and the end of the pin (test
            // `faults::pin_against_writeback_and_reclaim`): it counts as written, and stays dirty.
            let again = if flight.pinned && !without!(self.cache, PinDirty) { flight.good } else { 0 };
            flight.page.update(|s| {
                s.without(Kind::InFlight, flight.blocks)
                    .without(Kind::Claimed, flight.delayed)
                    .with(Kind::Backed, flight.good)
                    .with(Kind::Delayed, bad & flight.delayed)
                    .with(Kind::Dirty, bad | again)
            });
            if bad | again == 0 {
                clean += 1;
            } else {
                self.remark(&flight.page);
            }
            flight.page.end_writeback(&self.cache.waits);
        }
        self.cleaned(clean);
    }
}
