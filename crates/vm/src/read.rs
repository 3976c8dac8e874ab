//! Reading: the fast path, filling pages, read-ahead, and reads that leave the cache alone.

use extant_device::MemSlice;
use extant_format::{Lblk, Pblk};
use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use smallvec::SmallVec;

use crate::Host;
use crate::host::{Backing, Mapped};
use crate::mutant::without;
use crate::page::{Blocks, Kind, LockedPages, Page};
use crate::space::{AddressSpace, SharedGuard, runs_of};

/// Pages looked up at a time.
const RUN: usize = 64;

/// What a read leaves in the cache of what it does not find there. In each case it takes what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Leave {
    /// All of it, but what is large or a whole file, until as many bytes as the file has were read so: then they do come again.
    #[default]
    Pages,
    /// The same, but what is read at random places goes straight to the caller too: one who keeps it (a kernel in its own page cache).
    Streams,
    /// Nothing (O_DIRECT).
    Nothing,
}

/// How a read is done for who passes on what it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadFlags {
    /// What it leaves in the cache.
    pub leave: Leave,
    /// Everything up to the end of the file, or the error that is met on the way: for who takes less for the end of the file, as a
    /// kernel does that fills its pages. Otherwise what was read before the error counts, and the error is the next read's.
    pub whole: bool,
}

/// What one open file remembers to recognise a stream. Zero pages of read-ahead until reads follow each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadAhead {
    /// Where the last read ended.
    next: u64,
    /// Bytes to read ahead.
    window: usize,
    flags: ReadFlags,
}

impl ReadAhead {
    /// The same stream, read so.
    #[must_use]
    pub fn with(self, flags: ReadFlags) -> Self {
        Self { flags, ..self }
    }

    /// Bytes that a read of `len` bytes at `pos`, which found nothing, should fetch: `len` for a random one.
    fn fetch(&mut self, pos: u64, len: usize, most: usize) -> usize {
        if pos != self.next {
            self.window = 0;
            return len;
        }
        // A file is often read from its start on: begin small, double at each miss.
        self.window = (self.window * 2).clamp(64 << 10, most.max(64 << 10));
        len.max(self.window)
    }
}

/// Where what is read goes.
trait Sink {
    /// Bytes that it still wants.
    fn wants(&self) -> usize;

    /// Notes `n` bytes of `page` from `at` on, the next ones. Under the lock of the index.
    fn note(&mut self, page: &Arc<Page>, at: usize, n: usize);

    /// Does with what was noted what could not be done under the lock.
    fn flush(&mut self);

    /// Memory for the next `n` bytes.
    fn room(&mut self, n: usize) -> &mut [u8];

    /// Says that the caller has filled the next `n` bytes of [`Self::room`].
    fn filled(&mut self, n: usize);
}

/// Copies into a buffer.
struct Copying<'b> {
    buf: &'b mut [u8],
    done: usize,
    noted: Vec<(Arc<Page>, usize, usize)>,
    /// Bytes in `noted`.
    waiting: usize,
}

impl<'b> Copying<'b> {
    fn new(buf: &'b mut [u8]) -> Self {
        Self { buf, done: 0, noted: Vec::new(), waiting: 0 }
    }
}

impl Sink for Copying<'_> {
    fn wants(&self) -> usize {
        self.buf.len() - self.done - self.waiting
    }

    fn note(&mut self, page: &Arc<Page>, at: usize, n: usize) {
        self.noted.push((Arc::clone(page), at, n));
        self.waiting += n;
    }

    fn flush(&mut self) {
        for (page, at, n) in self.noted.drain(..) {
            page.mem().copy_to(at, &mut self.buf[self.done..self.done + n]);
            self.done += n;
        }
        self.waiting = 0;
    }

    fn room(&mut self, n: usize) -> &mut [u8] {
        &mut self.buf[self.done..self.done + n]
    }

    fn filled(&mut self, n: usize) {
        self.done += n;
    }
}

/// What a read found, in pieces: references to pages of the cache, and parts of the reader's own buffer.
///
/// A referenced page keeps its memory until the reference is dropped, whatever happens to the file: it may leave the cache, but
/// is not used for anything else. A write to the same bytes may show through, as in any read that overlaps a write.
#[derive(Default)]
pub struct PageRefs {
    pieces: Vec<Piece>,
    bytes: usize,
}

enum Piece {
    Page { page: Arc<Page>, at: usize, len: usize },
    Buffer { at: usize, len: usize },
}

impl PageRefs {
    /// Drops all references; the memory of the list stays.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Bytes in all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Pieces.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces in order, appended to `into`. `buffer` is the one that was read with.
    pub fn memory<'a>(&'a self, buffer: MemSlice<'a>, into: &mut Vec<MemSlice<'a>>) {
        into.extend(self.pieces.iter().map(|piece| match piece {
            Piece::Page { page, at, len } => page.mem().slice(*at, *len),
            Piece::Buffer { at, len } => buffer.slice(*at, *len),
        }));
    }

    /// Notes that the next `len` bytes are in the reader's buffer from `at` on: for content that no page holds.
    pub fn push_buffer(&mut self, at: usize, len: usize) {
        self.pieces.push(Piece::Buffer { at, len });
        self.bytes += len;
    }
}

impl std::fmt::Debug for PageRefs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageRefs({} bytes in {} pieces)", self.bytes, self.pieces.len())
    }
}

/// Takes references, and a buffer for what is not cached.
struct Referring<'b> {
    refs: &'b mut PageRefs,
    buf: &'b mut [u8],
    used: usize,
    end: usize,
}

impl Sink for Referring<'_> {
    fn wants(&self) -> usize {
        self.end - self.refs.bytes
    }

    fn note(&mut self, page: &Arc<Page>, at: usize, len: usize) {
        if page.is_of_file() {
            // Its memory may go before the reference does.
            page.mem().copy_to(at, &mut self.buf[self.used..self.used + len]);
            self.filled(len);
            return;
        }
        self.refs.pieces.push(Piece::Page { page: Arc::clone(page), at, len });
        self.refs.bytes += len;
    }

    fn flush(&mut self) {}

    fn room(&mut self, n: usize) -> &mut [u8] {
        &mut self.buf[self.used..self.used + n]
    }

    fn filled(&mut self, n: usize) {
        self.refs.push_buffer(self.used, n);
        self.used += n;
    }
}

impl AddressSpace {
    /// Reads up to `buf.len()` bytes at `pos`, up to `i_size`; how many. Holes are zeros.
    ///
    /// Takes 30 shared and page locks, where pages are missing; the caller holds nothing from 30 on, and `buf` is not memory
    /// of a mapping of this library.
    ///
    /// # Errors
    /// The device's or the map's, when the first byte could not be read ([`ReadFlags::whole`]: any byte).
    pub fn read<H: Host>(
        &self,
        host: &H,
        pos: u64,
        buf: &mut [u8],
        ahead: &mut ReadAhead,
    ) -> Result<usize, H::Error> {
        let want = wanted(host.size(), pos, buf.len());
        self.read_into(host, pos, &mut Copying::new(&mut buf[..want]), ahead)
    }

    /// The same without copying: what is cached, or will be, comes as references; what is read past the cache goes to `buf`,
    /// at most as many bytes as it has in all. `refs` is emptied first.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_refs<H: Host>(
        &self,
        host: &H,
        pos: u64,
        buf: &mut [u8],
        refs: &mut PageRefs,
        ahead: &mut ReadAhead,
    ) -> Result<usize, H::Error> {
        refs.clear();
        let end = wanted(host.size(), pos, buf.len());
        self.read_into(host, pos, &mut Referring { refs, buf, used: 0, end }, ahead)
    }

    fn read_into<H: Host>(
        &self,
        host: &H,
        pos: u64,
        sink: &mut impl Sink,
        ahead: &mut ReadAhead,
    ) -> Result<usize, H::Error> {
        let want = sink.wants();
        let at = |left: usize| pos + (want - left) as u64;
        let mut result = Ok(());
        while sink.wants() > 0 && result.is_ok() {
            // Where programs have the file mapped, memory goes away with the range operation, not with the last reference.
            let guard = (self.mmu().is_some() || self.is_dax()).then(|| self.shared_for_read());
            let from = at(sink.wants());
            self.take_cached(from, sink, guard.is_some());
            if ahead.next == from {
                // A stream is one also where it leaves what is cached.
                ahead.next = at(sink.wants());
            }
            if sink.wants() > 0 {
                result = self.read_missing(host, guard, at(sink.wants()), sink, ahead);
            }
            ahead.next = at(sink.wants());
        }
        let done = want - sink.wants();
        match result {
            Err(e) if done == 0 || ahead.flags.whole => Err(e),
            _ => Ok(done),
        }
    }

    /// Takes what is uptodate from `pos` on without a break. Takes no page lock: a page that is uptodate stays readable as long
    /// as it is referenced, whatever happens to the file; one in the memory of a mapped file only while `invalidate_lock` is held
    /// (`guarded`).
    fn take_cached(&self, pos: u64, sink: &mut impl Sink, guarded: bool) {
        let geo = self.cache.geometry();
        let mut at = pos;
        while sink.wants() > 0 {
            let end = at + sink.wants() as u64;
            let (Some(first), Some(last)) = (geo.page_of(at), geo.page_of(end - 1)) else { break };
            let mut found = 0;
            self.index.read().run(first, last, |page| {
                let start = geo.page_start(page.index);
                let from = geo.in_page(at.max(start));
                let to = (end - start).min(geo.page_size() as u64) as usize;
                let take =
                    found < RUN && page.is_uptodate(geo.touched(from, to)) && (guarded || !page.is_of_file());
                if take {
                    found += 1;
                    page.touch();
                    sink.note(page, from, to - from);
                }
                take
            });
            if found == 0 {
                break;
            }
            extant_sync::may_be_preempted();
            sink.flush();
            at = end - sink.wants() as u64;
        }
    }

    /// Reads what the fast path did not find at `pos`; at least one byte.
    fn read_missing<H: Host>(
        &self,
        host: &H,
        guard: Option<SharedGuard<'_>>,
        pos: u64,
        sink: &mut impl Sink,
        ahead: &mut ReadAhead,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let guard = guard.unwrap_or_else(|| self.shared_for_read());
        let wants = sink.wants();
        // Looked at under the lock: the file may have come into this mode since the cache was looked at (test `dax::flips_against_reads`).
        if self.is_dax() && !without!(self.cache, DaxLookedAt) {
            self.read_direct(host, &guard, pos, sink.room(wants))?;
            sink.filled(wants);
            return Ok(());
        }
        let last_byte = pos + wants as u64 - 1;
        let (Some(first), Some(last)) = (geo.page_of(pos), geo.page_of(last_byte)) else {
            return Err(std::io::Error::from_raw_os_error(27).into());
        };
        let absent = self.index.read().absent_run(first, last);
        if absent > 0 {
            let bytes = (geo.page_start(first) + u64::from(absent) * geo.page_size() as u64 - pos)
                .min(wants as u64) as usize;
            if self.leaves_cache_alone(host, pos, bytes, ahead) {
                self.read_direct(host, &guard, pos, sink.room(bytes))?;
                sink.filled(bytes);
                return Ok(());
            }
        }
        let fetch = ahead.fetch(pos, wants, self.cache.config().read_ahead) as u64;
        let until = (pos + fetch).min(host.size().max(last_byte + 1)) - 1;
        let until = geo.page_of(until).unwrap_or(geo.last_page()).min(first.saturating_add(4095));
        if fetch > wants as u64 {
            self.advise(host, until, fetch);
        }
        let pages = self.fill(host, &guard, first, until)?;
        let mut at = geo.in_page(pos);
        for page in &pages.pages {
            if sink.wants() == 0 || !page.is_uptodate(geo.all_blocks()) {
                break;
            }
            let n = (geo.page_size() - at).min(sink.wants());
            sink.note(page, at, n);
            at = 0;
        }
        sink.flush();
        Ok(())
    }

    /// Whether a read of `bytes` absent bytes at `pos` goes straight to the caller: one that is to; a large one, one of a whole
    /// file, or one at a random place for a caller who keeps it, that is not known to come again.
    fn leaves_cache_alone<H: Host>(&self, host: &H, pos: u64, bytes: usize, ahead: &mut ReadAhead) -> bool {
        let config = self.cache.config();
        let leave = ahead.flags.leave;
        if host.journalled().is_some() {
            return false;
        }
        if leave == Leave::Nothing || config.direct_read == usize::MAX {
            return leave == Leave::Nothing;
        }
        let size = host.size();
        let large = bytes >= config.direct_read || (pos == 0 && bytes as u64 >= size);
        let kept = leave == Leave::Streams && pos != ahead.next;
        if kept {
            // The end of a stream, as in `ReadAhead::fetch`.
            ahead.window = 0;
        }
        (large || kept) && self.cold_bytes.fetch_add(bytes as u64, Ordering::Relaxed) < size
    }

    /// Reads bytes of which no page is in memory into the caller's buffer.
    ///
    /// No page at the time of the look, under shared `invalidate_lock`: what the map says then is on the device and stays
    /// there; a write that comes meanwhile is concurrent with this read.
    pub(crate) fn read_direct<H: Host>(
        &self,
        host: &H,
        _guard: &SharedGuard<'_>,
        pos: u64,
        buf: &mut [u8],
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let size = u64::from(geo.block_size());
        let mut done = 0;
        while done < buf.len() {
            let at = pos + done as u64;
            let inside = at % size;
            let blocks = geo.blocks_up(buf.len() - done + inside as usize);
            let mapped = host.map(Lblk((at / size) as u32), blocks)?;
            let run =
                (geo.block_bytes(mapped.len.min(blocks)) - inside).min((buf.len() - done) as u64) as usize;
            let part = &mut buf[done..done + run];
            match mapped.backing {
                Backing::Data(pblk) => {
                    let at = geo.pblk_bytes(pblk)? + inside;
                    match self.cache.dax().filter(|_| self.is_dax()) {
                        Some(memory) => memory.read_at(at, part)?,
                        None => self.cache.device().read_at(at, part)?,
                    }
                }
                Backing::Hole | Backing::Unwritten(_) => part.fill(0),
            }
            done += run;
        }
        Ok(())
    }

    /// Tells the device what a stream will want after page `until`.
    fn advise<H: Host>(&self, host: &H, until: u32, bytes: u64) {
        let geo = self.cache.geometry();
        let last = geo.last_page();
        let Some(next) = until.checked_add(1).filter(|n| *n <= last && geo.page_start(*n) < host.size())
        else {
            return;
        };
        let blocks = geo.blocks_up(bytes as usize);
        if let Ok(mapped) = host.map(Lblk(geo.first_block(next)), blocks)
            && let Backing::Data(pblk) = mapped.backing
            && let Ok(at) = geo.pblk_bytes(pblk)
        {
            self.cache.device().advise(at, geo.block_bytes(mapped.len.min(blocks)));
        }
    }

    /// Makes pages from `first` on uptodate: a run of absent ones up to `last`, or the present page `first` alone. Returned
    /// locked; at least the first is uptodate. Under shared or exclusive `invalidate_lock`, or the inode lock exclusively.
    pub(crate) fn fill<H: Host>(
        &self,
        host: &H,
        _guard: &SharedGuard<'_>,
        first: u32,
        last: u32,
    ) -> Result<LockedPages<'_>, H::Error> {
        let mut pages = self.lock_to_fill(first, last);
        let all = self.cache.geometry().all_blocks();
        if let (Some(mmu), [one, .., last]) = (self.mmu(), &pages.pages[..]) {
            // Several are new ones, in a row.
            mmu.populate(one.index..last.index + 1);
        }
        match self.fill_locked(host, &pages.pages, |_| all) {
            Ok(()) => Ok(pages),
            Err(e) if pages.pages[0].is_uptodate(all) => {
                // What lies further on failed; it is tried again when somebody wants it.
                drop(e);
                let good = pages.pages.iter().take_while(|p| p.is_uptodate(all)).count();
                pages.truncate(good);
                Ok(pages)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes `wanted` blocks of locked, consecutive pages uptodate that are not yet: reads them, or zeroes them where there is
    /// nothing on disk; what lies past `i_size` becomes zero.
    pub(crate) fn fill_locked<H: Host>(
        &self,
        host: &H,
        pages: &[Arc<Page>],
        wanted: impl Fn(&Page) -> Blocks,
    ) -> Result<(), H::Error> {
        let missing = |page: &Page| wanted(page) & !page.state().has(Kind::Uptodate);
        for (start, len) in self.runs_in(pages, missing) {
            let mut at = 0;
            while at < len {
                let seq = host.map_seq();
                let mapped = host.map(Lblk(start + at), len - at)?;
                let run = mapped.len.clamp(1, len - at);
                let parts = self.parts(pages, start + at, run);
                if let Backing::Data(pblk) = mapped.backing {
                    // Asked before the device is read: what is in its place by then is not reported any more.
                    let newer = newer_blocks(host, pblk, run);
                    self.read_blocks(pblk, parts.clone())?;
                    for (n, content) in newer {
                        for (page, from, _) in self.parts(pages, start + at + n, 1) {
                            page.mem().copy_from(from, &content);
                        }
                    }
                }
                // What was read counts only if the blocks are still there: the map lock was not held over the read.
                if host.map_seq() != seq
                    && !without!(self.cache, MapSeq)
                    && host.map(Lblk(start + at), run)? != (Mapped { len: run, ..mapped })
                {
                    continue;
                }
                self.filled(host, parts, mapped.backing);
                at += run;
            }
        }
        Ok(())
    }

    /// Says that parts of pages, of one kind of backing, have been read; what is not on the device becomes zero.
    fn filled<'p, H: Host>(&self, host: &H, parts: impl Iterator<Item = Part<'p>>, backing: Backing) {
        let geo = self.cache.geometry();
        let size = host.size();
        for (page, from, to) in parts {
            let start = geo.page_start(page.index);
            let known = match backing {
                Backing::Data(_) => {
                    // Zeros past the end, whatever the disk has there: the tail becomes visible when the file grows.
                    let end = (size.saturating_sub(start).min(to as u64) as usize).max(from);
                    page.mem().zero(end, to - end);
                    Kind::Backed
                }
                Backing::Unwritten(_) => {
                    page.mem().zero(from, to - from);
                    Kind::Backed
                }
                Backing::Hole => {
                    page.mem().zero(from, to - from);
                    Kind::Uptodate
                }
            };
            let set = geo.touched(from, to);
            page.update(|s| s.with(Kind::Uptodate, set).with(known, set));
        }
    }

    fn read_blocks<'p>(&self, pblk: Pblk, parts: impl Iterator<Item = Part<'p>>) -> std::io::Result<()> {
        let at = self.cache.geometry().pblk_bytes(pblk)?;
        let slices: SmallVec<[MemSlice<'_>; 1]> =
            parts.map(|(page, from, to)| page.mem().slice(from, to - from)).collect();
        self.cache.device().read_mem_at(at, &slices)
    }

    /// The blocks of `pages` (ascending) that `of` tells of each, as runs: first block, blocks.
    pub(crate) fn runs_in(
        &self,
        pages: &[Arc<Page>],
        of: impl Fn(&Page) -> Blocks,
    ) -> SmallVec<[(u32, u32); 1]> {
        let geo = self.cache.geometry();
        let mut runs = SmallVec::<[(u32, u32); 1]>::new();
        for page in pages {
            for run in runs_of(of(page)) {
                let start = geo.first_block(page.index) + run.start;
                let len = run.end - run.start;
                match runs.last_mut() {
                    Some((at, n)) if *at + *n == start => *n += len,
                    _ => runs.push((start, len)),
                }
            }
        }
        runs
    }

    /// Where `len` blocks from `lblk` on, at least one, are in `pages` (ascending).
    pub(crate) fn parts<'p>(
        &self,
        pages: &'p [Arc<Page>],
        lblk: u32,
        len: u32,
    ) -> impl Iterator<Item = Part<'p>> + Clone + use<'p> {
        let geo = self.cache.geometry();
        let end = lblk + len;
        let (first, last) = (geo.page_of_block(lblk), geo.page_of_block(end - 1));
        let slot = pages.partition_point(|p| p.index < first);
        let touched = &pages[slot..=slot + (last - first) as usize];
        debug_assert!(touched.last().is_some_and(|p| p.index == last), "the run is in the pages");
        touched.iter().map(move |page| {
            let start = geo.first_block(page.index);
            let (from, to) = (lblk.max(start) - start, (end - start).min(geo.blocks_per_page()));
            (page, geo.block_bytes(from) as usize, geo.block_bytes(to) as usize)
        })
    }
}

/// Some blocks of a page: the page, their first byte in it, their end.
pub(crate) type Part<'p> = (&'p Arc<Page>, usize, usize);

/// How many of `len` bytes at `pos` a file of `size` bytes has.
pub(crate) fn wanted(size: u64, pos: u64, len: usize) -> usize {
    usize::try_from(size.saturating_sub(pos)).unwrap_or(usize::MAX).min(len)
}

/// The blocks of a run that the device may not have yet, by their place in the run.
fn newer_blocks<H: Host>(host: &H, pblk: Pblk, len: u32) -> Vec<(u32, std::sync::Arc<[u8]>)> {
    if host.journalled().is_none() {
        return Vec::new();
    }
    (0..len).filter_map(|n| Some((n, host.newer(Pblk(pblk.0 + u64::from(n)))?))).collect()
}
