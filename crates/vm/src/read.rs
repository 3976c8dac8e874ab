//! Reading: the fast path, filling pages, read-ahead, and reads that leave the cache alone.

use extant_device::MemSlice;
use extant_format::{Lblk, Pblk};
use extant_sync::Arc;
use extant_sync::atomic::Ordering;

use crate::Host;
use crate::host::Backing;
use crate::page::{Blocks, Kind, LockedPages, Page};
use crate::space::{AddressSpace, SharedGuard, runs_of};

/// Pages looked up at a time.
const RUN: usize = 64;

/// What one open file remembers to recognise a stream. Zero pages of read-ahead until reads follow each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadAhead {
    /// Where the last read ended.
    next: u64,
    /// Bytes to read ahead.
    window: usize,
}

impl ReadAhead {
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

impl AddressSpace {
    /// Reads up to `buf.len()` bytes at `pos`, up to `i_size`; how many. Holes are zeros.
    ///
    /// Takes 30 shared and page locks, where pages are missing; the caller holds nothing from 30 on, and `buf` is not memory
    /// of a mapping of this library.
    ///
    /// # Errors
    /// The device's or the map's, when the first byte could not be read.
    pub fn read<H: Host>(
        &self,
        host: &H,
        pos: u64,
        buf: &mut [u8],
        ahead: &mut ReadAhead,
    ) -> Result<usize, H::Error> {
        let want = usize::try_from(host.size().saturating_sub(pos)).unwrap_or(usize::MAX).min(buf.len());
        let mut done = 0;
        while done < want {
            let at = pos + done as u64;
            let cached = self.copy_cached(at, &mut buf[done..want]);
            done += cached;
            if done == want {
                break;
            }
            match self.read_missing(host, at + cached as u64, &mut buf[done..want], ahead) {
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
            ahead.next = pos + done as u64;
        }
        ahead.next = pos + done as u64;
        Ok(done)
    }

    /// Copies what is uptodate from `pos` on without a break; how many bytes. Takes no page lock: a page that is uptodate stays
    /// readable as long as it is referenced, whatever happens to the file.
    fn copy_cached(&self, pos: u64, buf: &mut [u8]) -> usize {
        let geo = self.cache.geometry();
        let mut done = 0;
        let mut pages: Vec<Arc<Page>> = Vec::new();
        while done < buf.len() {
            let at = pos + done as u64;
            let end = pos + buf.len() as u64;
            let (Some(first), Some(last)) = (geo.page_of(at), geo.page_of(end - 1)) else { break };
            pages.clear();
            self.index.read().run(first, last, |page| {
                let start = geo.page_start(page.index);
                let from = geo.in_page(at.max(start));
                let to = (end - start).min(geo.page_size() as u64) as usize;
                let take = pages.len() < RUN && page.is_uptodate(geo.touched(from, to));
                if take {
                    pages.push(Arc::clone(page));
                }
                take
            });
            if pages.is_empty() {
                break;
            }
            for page in &pages {
                page.touch();
                done += copy_out(page, geo.in_page(pos + done as u64), &mut buf[done..]);
            }
        }
        done
    }

    /// Reads what the fast path did not find at `pos`; at least one byte.
    fn read_missing<H: Host>(
        &self,
        host: &H,
        pos: u64,
        buf: &mut [u8],
        ahead: &mut ReadAhead,
    ) -> Result<usize, H::Error> {
        let geo = self.cache.geometry();
        let guard = self.shared();
        let last_byte = pos + buf.len() as u64 - 1;
        let (Some(first), Some(last)) = (geo.page_of(pos), geo.page_of(last_byte)) else {
            return Err(std::io::Error::from_raw_os_error(27).into());
        };
        let absent = self.index.read().absent_run(first, last);
        if absent > 0 {
            let bytes = (geo.page_start(first) + u64::from(absent) * geo.page_size() as u64 - pos)
                .min(buf.len() as u64);
            let bytes = bytes as usize;
            if self.leaves_cache_alone(host, pos, bytes) {
                self.read_direct(host, &guard, pos, &mut buf[..bytes])?;
                return Ok(bytes);
            }
        }
        let fetch = ahead.fetch(pos, buf.len(), self.cache.config().read_ahead) as u64;
        let until = (pos + fetch).min(host.size().max(last_byte + 1)) - 1;
        let until = geo.page_of(until).unwrap_or(u32::MAX).min(first.saturating_add(4095));
        if fetch > buf.len() as u64 {
            self.advise(host, until, fetch);
        }
        let pages = self.fill(host, &guard, first, until)?;
        let mut done = 0;
        for page in &pages.pages {
            if done == buf.len() || !page.is_uptodate(geo.all_blocks()) {
                break;
            }
            done += copy_out(page, geo.in_page(pos + done as u64), &mut buf[done..]);
        }
        Ok(done)
    }

    /// Whether a read of `bytes` absent bytes at `pos` goes straight to the caller: a large one, or of a whole file, that is
    /// not known to come again.
    fn leaves_cache_alone<H: Host>(&self, host: &H, pos: u64, bytes: usize) -> bool {
        let config = self.cache.config();
        if config.direct_read == usize::MAX {
            return false;
        }
        let size = host.size();
        let large = bytes >= config.direct_read || (pos == 0 && bytes as u64 >= size);
        large && self.cold_bytes.fetch_add(bytes as u64, Ordering::Relaxed) < size
    }

    /// Reads bytes of which no page is in memory into the caller's buffer.
    ///
    /// No page at the time of the look, under shared `invalidate_lock`: what the map says then is on the device and stays
    /// there; a write that comes meanwhile is concurrent with this read.
    fn read_direct<H: Host>(
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
                Backing::Data(pblk) => self.cache.device().read_at(geo.pblk_bytes(pblk)? + inside, part)?,
                Backing::Hole | Backing::Unwritten(_) => part.fill(0),
            }
            done += run;
        }
        Ok(())
    }

    /// Tells the device what a stream will want after page `until`.
    fn advise<H: Host>(&self, host: &H, until: u32, bytes: u64) {
        let geo = self.cache.geometry();
        let Some(next) = until.checked_add(1).filter(|n| geo.page_start(*n) < host.size()) else { return };
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
        let geo = self.cache.geometry();
        let missing = |page: &Page| wanted(page) & !page.state().has(Kind::Uptodate);
        let mut needed: Vec<(u32, u32)> = Vec::new();
        for page in pages {
            for run in runs_of(missing(page)) {
                let start = geo.first_block(page.index) + run.start;
                let len = run.end - run.start;
                match needed.last_mut() {
                    Some((at, n)) if *at + *n == start => *n += len,
                    _ => needed.push((start, len)),
                }
            }
        }
        for (start, len) in needed {
            let mut at = 0;
            while at < len {
                let mapped = host.map(Lblk(start + at), len - at)?;
                let run = mapped.len.clamp(1, len - at);
                self.fill_run(host, pages, start + at, run, mapped.backing)?;
                at += run;
            }
        }
        Ok(())
    }

    /// Fills `len` blocks from `lblk` on, all in `pages`, with one kind of backing.
    fn fill_run<H: Host>(
        &self,
        host: &H,
        pages: &[Arc<Page>],
        lblk: u32,
        len: u32,
        backing: Backing,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let parts = self.parts(pages, lblk, len);
        if let Backing::Data(pblk) = backing {
            self.read_blocks(pblk, &parts)?;
        }
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
        Ok(())
    }

    fn read_blocks(&self, pblk: Pblk, parts: &[(&Arc<Page>, usize, usize)]) -> std::io::Result<()> {
        let at = self.cache.geometry().pblk_bytes(pblk)?;
        let slices: Vec<MemSlice<'_>> =
            parts.iter().map(|(p, from, to)| p.mem().slice(*from, to - from)).collect();
        self.cache.device().read_mem_at(at, &slices)
    }

    /// Where `len` blocks from `lblk` on are in `pages` (ascending): page, first byte, end byte.
    pub(crate) fn parts<'p>(
        &self,
        pages: &'p [Arc<Page>],
        lblk: u32,
        len: u32,
    ) -> Vec<(&'p Arc<Page>, usize, usize)> {
        let geo = self.cache.geometry();
        let mut slot = pages.partition_point(|p| p.index < geo.page_of_block(lblk));
        let mut parts = Vec::with_capacity((len / geo.blocks_per_page()) as usize + 2);
        let mut at = lblk;
        while at < lblk + len {
            let page = &pages[slot];
            debug_assert_eq!(page.index, geo.page_of_block(at), "the run is in the pages");
            let first = geo.first_block(page.index);
            let end = (lblk + len - first).min(geo.blocks_per_page());
            parts.push((page, geo.block_bytes(at - first) as usize, geo.block_bytes(end) as usize));
            at = first + end;
            slot += 1;
        }
        parts
    }
}

/// Copies from the page's byte `at` on; how many bytes.
fn copy_out(page: &Page, at: usize, buf: &mut [u8]) -> usize {
    let mem = page.mem();
    let n = (mem.len() - at).min(buf.len());
    mem.copy_to(at, &mut buf[..n]);
    n
}
