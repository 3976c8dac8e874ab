//! Buffered writing.

use std::ops::Range;

use extant_format::Lblk;
use extant_sync::Arc;

use crate::Host;
use crate::host::Backing;
use crate::page::{Blocks, Kind, LockedPages, Page, State};
use crate::space::AddressSpace;

/// Pages that are locked at a time.
const BATCH: u32 = 256;

/// How far a write got.
#[derive(Debug)]
pub struct WriteOutcome<E> {
    /// Bytes written, from the start.
    pub written: usize,
    /// Why not all of them.
    pub error: Option<E>,
}

/// The bytes of a file that one batch of pages takes.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl AddressSpace {
    /// Writes `data` at `pos` into the cache, reserving space for exactly the blocks that have none; raises `i_size` as the
    /// data arrives. The caller holds the inode lock exclusively (which keeps range operations away), nothing from 30 on, and
    /// `data` is not memory of a mapping of this library. Takes page locks, and under them what [`Host::map`] and
    /// [`Host::reserve`] take.
    ///
    /// The outcome may be short: then everything before is written, nothing after.
    pub fn write<H: Host>(&self, host: &H, pos: u64, data: &[u8]) -> WriteOutcome<H::Error> {
        if self.is_dax() {
            return self.write_dax(None, host, pos, data);
        }
        let mut written = 0;
        let size = host.size();
        if pos > size
            && !data.is_empty()
            && let Err(error) = self.zero_tail(host, size)
        {
            return WriteOutcome { written, error: Some(error) };
        }
        if let Err(error) = self.grow_memory(size.max(pos.saturating_add(data.len() as u64))) {
            return WriteOutcome { written, error: Some(error.into()) };
        }
        let mut error = None;
        while written < data.len() && error.is_none() {
            match self.write_batch(host, pos + written as u64, &data[written..]) {
                Ok(n) => written += n,
                Err(e) => error = Some(e),
            }
        }
        self.grown(size, host.size());
        WriteOutcome { written, error }
    }

    /// Between the parts of a large write, under the inode lock: where the cache is overdrawn, writes what the file has dirty in
    /// `range` (bytes) and frees clean pages. Waits for the device, not for anybody else's lock or memory.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn make_way<H: Host>(&self, host: &H, range: Range<u64>) -> Result<(), H::Error> {
        if !self.cache.is_overdrawn() {
            return Ok(());
        }
        let written = self.sync(host, range);
        self.cache.reclaim_surplus();
        written
    }

    /// Writes the start of `data` into as many pages as can be locked at once; how many bytes.
    fn write_batch<H: Host>(&self, host: &H, pos: u64, data: &[u8]) -> Result<usize, H::Error> {
        let geo = self.cache.geometry();
        let too_big = || H::Error::from(std::io::Error::from_raw_os_error(27));
        let first = geo.page_of(pos).ok_or_else(too_big)?;
        let end = pos.checked_add(data.len() as u64).ok_or_else(too_big)?;
        let last = geo.page_of(end - 1).ok_or_else(too_big)?.min(first.saturating_add(BATCH - 1));
        let size = host.size();
        // Growing past the end inside a page that programs have mapped changes what the page's blocks are: under its lock.
        let old_end = if end > size { self.lock_old_end(size, first) } else { None };
        let mut locked = self.lock_or_create(first, last);
        if end > size {
            // Before anything is reserved: it may fail.
            let ends = old_end.iter().flat_map(|l| &l.pages).chain(&locked.pages);
            for page in ends.filter(|p| Some(p.index) == geo.page_of(size)) {
                self.settle_old_end(page, size)?;
            }
        }
        let span = self.span(&locked, pos, end);
        let (ready, error) = self.prepare(host, &locked.pages, span);
        if ready.end == span.start {
            return Err(error.expect("something is ready, or there is an error"));
        }
        let wanted = geo.page_of(ready.end - 1).expect("inside the batch") - first + 1;
        locked.truncate(wanted as usize);
        let n = (ready.end - pos) as usize;
        self.copy_in(&locked, ready, &data[..n]);
        // Under the locks: a writeback of the last page zeroes what lies past the end of the file.
        host.grow_size(ready.end);
        self.mark_dirty(&locked.pages);
        // What could be written is; the error comes again, with nothing written, when the caller goes on.
        drop(error);
        Ok(n)
    }

    fn span(&self, locked: &LockedPages<'_>, pos: u64, end: u64) -> Span {
        let geo = self.cache.geometry();
        let last = locked.pages.last().expect("at least one page").index;
        Span { start: pos, end: end.min(geo.page_start(last) + geo.page_size() as u64) }
    }

    /// Gets the blocks of `span` ready for new content: those written in part uptodate, all with space. As much from the
    /// start as is possible, and why not all.
    fn prepare<H: Host>(&self, host: &H, pages: &[Arc<Page>], span: Span) -> (Span, Option<H::Error>) {
        if let Err(e) = self.fill_edges(host, pages, span) {
            return (Span { end: span.start, ..span }, Some(e));
        }
        match self.find_space(host, pages, span) {
            Ok(()) => (span, None),
            Err((block, error)) => {
                let size = u64::from(self.cache.geometry().block_size());
                let end = (u64::from(block) * size).clamp(span.start, span.end);
                (Span { end, ..span }, Some(error))
            }
        }
    }

    /// Reads what stands in the blocks at both ends that are written only in part.
    fn fill_edges<H: Host>(&self, host: &H, pages: &[Arc<Page>], span: Span) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let size = u64::from(geo.block_size());
        // The last block needs nothing read when the write reaches the end of the file in it: the rest is zeros.
        let edges = [
            (!span.start.is_multiple_of(size)).then_some(span.start),
            (!span.end.is_multiple_of(size)).then_some(span.end - 1),
        ];
        for at in edges.into_iter().flatten() {
            let index = geo.page_of(at).expect("inside the batch");
            let page = &pages[(index - pages[0].index) as usize];
            let inside = geo.in_page(at);
            let set = geo.touched(inside, inside + 1);
            if page.is_uptodate(set) {
                continue;
            }
            let block_start = at - at % size;
            if block_start >= host.size() {
                let from = inside - (at % size) as usize;
                page.mem().zero(from, size as usize);
                page.update(|s| s.with(Kind::Uptodate, set));
            } else {
                self.fill_locked(host, std::slice::from_ref(page), |_| set)?;
            }
        }
        Ok(())
    }

    /// Finds out which blocks of `span` have space, and reserves for those that have none. Fails with the block that could not
    /// be had; the ones before are fine, and those from it on are as they were.
    pub(crate) fn find_space<H: Host>(
        &self,
        host: &H,
        pages: &[Arc<Page>],
        span: Span,
    ) -> Result<(), (u32, H::Error)> {
        let geo = self.cache.geometry();
        let without_space = |page: &Page| self.in_span(page, span) & !page.state().has_space();
        for (start, len) in self.runs_in(pages, without_space) {
            let mut at = start;
            while at < start + len {
                let rest = start + len - at;
                let mapped = host.map(Lblk(at), rest).map_err(|e| (at, e))?;
                let run = mapped.len.clamp(1, rest);
                let kind = match mapped.backing {
                    Backing::Hole => {
                        self.reserve_run(host, pages, at, run)?;
                        at += run;
                        continue;
                    }
                    Backing::Data(_) | Backing::Unwritten(_) => Kind::Backed,
                };
                for (page, from, to) in self.parts(pages, at, run) {
                    let set = geo.touched(from, to);
                    page.update(|s| s.with(kind, set));
                }
                at += run;
            }
        }
        Ok(())
    }

    /// Reserves a run of holes: whole, or, when there is not enough, block by block as far as it goes.
    fn reserve_run<H: Host>(
        &self,
        host: &H,
        pages: &[Arc<Page>],
        lblk: u32,
        len: u32,
    ) -> Result<(), (u32, H::Error)> {
        let geo = self.cache.geometry();
        let mark = |at: u32, n: u32| {
            for (page, from, to) in self.parts(pages, at, n) {
                let set = geo.touched(from, to);
                page.update(|s| s.with(Kind::Delayed, set));
            }
        };
        if host.reserve(Lblk(lblk), len).is_ok() {
            mark(lblk, len);
            return Ok(());
        }
        for at in lblk..lblk + len {
            host.reserve(Lblk(at), 1).map_err(|e| (at, e))?;
            mark(at, 1);
        }
        Ok(())
    }

    /// The blocks of `page` that `span` touches.
    fn in_span(&self, page: &Page, span: Span) -> Blocks {
        let geo = self.cache.geometry();
        let start = geo.page_start(page.index);
        let from = span.start.saturating_sub(start).min(geo.page_size() as u64) as usize;
        let to = span.end.saturating_sub(start).min(geo.page_size() as u64) as usize;
        if from < to { geo.touched(from, to) } else { 0 }
    }

    fn copy_in(&self, locked: &LockedPages<'_>, span: Span, data: &[u8]) {
        let geo = self.cache.geometry();
        let mut done = 0;
        for page in &locked.pages {
            let at = geo.in_page(span.start + done as u64);
            let n = (geo.page_size() - at).min(data.len() - done);
            if !(at > 0 && done + n < data.len() && crate::bug!(TornWrite, 64)) {
                page.mem().copy_from(at, &data[done..done + n]);
            }
            let set = geo.touched(at, at + n);
            debug_assert_eq!(set & !page.state().has_space(), 0, "a dirty block without space: {page:?}");
            // What is written once in passing is no reason to keep a page.
            if page.state().has(Kind::Uptodate) & set != 0 {
                page.touch();
            }
            page.update(|s: State| s.with(Kind::Uptodate, set).with(Kind::Dirty, set));
            done += n;
        }
    }

    /// Makes the rest of the block that contains byte `from` zero, in the cache and, through writeback, on the device, before
    /// the file grows over it. Nothing to do when it is zero already, or a hole. The caller holds the inode lock exclusively.
    ///
    /// # Errors
    /// The device's or the map's, from reading the block.
    pub fn zero_tail<H: Host>(&self, host: &H, from: u64) -> Result<(), H::Error> {
        let size = u64::from(self.cache.geometry().block_size());
        let to = from.next_multiple_of(size);
        if from == to || crate::bug!(OldTail) { Ok(()) } else { self.zero_in_block(host, from, to) }
    }

    /// Zeroes the bytes `from..to` of one block, if it has content.
    pub(crate) fn zero_in_block<H: Host>(&self, host: &H, from: u64, to: u64) -> Result<(), H::Error> {
        if self.is_dax() {
            return self.zero_in_dax_block(host, from, to);
        }
        let Some((locked, set)) = self.lock_block_part(host, &(from..to))? else { return Ok(()) };
        let (inside, len) = (self.cache.geometry().in_page(from), (to - from) as usize);
        let page = &locked.pages[0];
        let mut bytes = vec![0; len];
        page.mem().copy_to(inside, &mut bytes);
        if bytes.iter().all(|b| *b == 0) && !self.disk_may_differ(host, page, set, to) {
            return Ok(());
        }
        if page.state().has_space() & set == 0 {
            // A hole: zeros already.
            page.mem().zero(inside, len);
            return Ok(());
        }
        page.mem().zero(inside, len);
        page.update(|s| s.with(Kind::Dirty, set));
        self.mark_dirty(&locked.pages);
        Ok(())
    }

    /// Brings a part of one block, if it has content, into the cache: what [`Self::zero_in_block`] can fail of.
    pub(crate) fn read_block_part<H: Host>(&self, host: &H, part: &Range<u64>) -> Result<(), H::Error> {
        if self.is_dax() { Ok(()) } else { self.lock_block_part(host, part).map(drop) }
    }

    /// The same; its page, locked, and which of its blocks that is.
    fn lock_block_part<H: Host>(
        &self,
        host: &H,
        part: &Range<u64>,
    ) -> Result<Option<(LockedPages<'_>, Blocks)>, H::Error> {
        let (geo, from) = (self.cache.geometry(), part.start);
        let Some(index) = geo.page_of(from) else { return Ok(None) };
        let (inside, len) = (geo.in_page(from), (part.end - from) as usize);
        let set = geo.touched(inside, inside + len);
        let present = self.index.read().find(index).is_some();
        // Past the end only what is written can have anything but zeros, and an unwritten block that was made dirty would become a
        // written one past the end (fs test `zeroing_past_the_end_leaves_unwritten_blocks_unwritten`).
        let past_end = from - from % u64::from(geo.block_size()) >= host.size();
        if !present || past_end {
            let mapped = host.map(Lblk(geo.first_block(index) + set.trailing_zeros()), 1)?;
            if !matches!(mapped.backing, Backing::Data(_)) {
                return Ok(None);
            }
        }
        let locked = self.lock_or_create(index, index);
        if !locked.pages[0].is_uptodate(set) {
            self.fill_locked(host, &locked.pages, |_| set)?;
        }
        Ok(Some((locked, set)))
    }

    /// Whether the device may have something else than zeros where the cache has them: only past `i_size`, where a fill
    /// zeroes without looking.
    fn disk_may_differ<H: Host>(&self, host: &H, page: &Page, set: Blocks, to: u64) -> bool {
        to > host.size()
            && page.state().has(Kind::Backed) & set != 0
            && page.state().has(Kind::Dirty) & set == 0
    }
}
