//! Direct I/O: between the device and the caller's memory, past the pages, coherent with them.
//!
//! The inode lock is held over the whole transfer, shared for reads and for overwriting blocks that are there, exclusively for
//! everything else. Whoever takes blocks away holds it exclusively, so direct I/O is over by then; and no page becomes dirty
//! meanwhile. What is dirty in the range is written first, and pages leave the cache before and after a write: a fill that read
//! the old content is gone when the write returns.

use std::ops::Range;

use extant_format::{Lblk, Pblk};

use crate::Host;
use crate::host::{Backing, Placement};
use crate::mutant::without;
use crate::read::wanted;
use crate::space::{AddressSpace, ExclusiveGuard};
use crate::write::WriteOutcome;

/// Blocks that are reserved at a time.
const MOST_BLOCKS: u32 = 4096;

impl AddressSpace {
    /// Reads up to `buf.len()` bytes at `pos`, up to `i_size`, from the device; how many. The caller holds the inode lock at
    /// least shared, and nothing from 28 on.
    ///
    /// # Errors
    /// The device's or the map's; that of writing what was dirty in the range.
    pub fn read_past_cache<H: Host>(&self, host: &H, pos: u64, buf: &mut [u8]) -> Result<usize, H::Error> {
        let want = wanted(host.size(), pos, buf.len());
        if want > 0 {
            self.settle_range(host, pos..pos + want as u64)?;
            let guard = self.shared();
            self.read_direct(host, &guard, pos, &mut buf[..want])?;
        }
        Ok(want)
    }

    /// Overwrites whole blocks at `pos` that are all mapped, written and inside of `i_size`; `false` when some are not, and then
    /// nothing was done. The caller holds the inode lock at least shared, and nothing from 28 on.
    ///
    /// # Errors
    /// The device's or the map's; part of the data may have been written.
    pub fn overwrite_past_cache<H: Host>(&self, host: &H, pos: u64, data: &[u8]) -> Result<bool, H::Error> {
        let geo = self.cache.geometry();
        let range = pos..pos + data.len() as u64;
        if data.is_empty() || range.end > host.size() || !self.is_whole_blocks(&range) {
            return Ok(false);
        }
        if self.is_dax() {
            if self.written_runs(host, &range)?.is_none() {
                return Ok(false);
            }
            return self.write_dax_runs(host, pos, data, u64::MAX, &mut 0).map(|()| true);
        }
        // Where programs have the file mapped, a store would make a page dirty that was filled before the write, and is written over
        // it (test `explore_map::pairs_on_written_blocks`): faults wait.
        let _guard = self.mmu().filter(|_| !without!(self.cache, DirectExclusive)).map(|_| self.exclusive());
        self.settle_range(host, range.clone())?;
        let Some(runs) = self.written_runs(host, &range)? else { return Ok(false) };
        // A pinned page stays, and dirty: what it has would be written over this.
        if !self.invalidate(range.clone()) && self.mmu().is_some() {
            return Ok(false);
        }
        let mut rest = data;
        let mut result = Ok(());
        for (pblk, len) in runs {
            let (now, later) = rest.split_at(geo.block_bytes(len) as usize);
            result = self.write_to(pblk, now);
            if result.is_err() {
                break;
            }
            rest = later;
        }
        // A reader may have filled a page from what was there before.
        self.invalidate(range);
        result.map(|()| true).map_err(H::Error::from)
    }

    /// Writes whole blocks at `pos`, whatever is there: finds places for holes, converts unwritten blocks once they are written,
    /// and raises `i_size` and `i_disksize`, in one handle with the map. The caller holds the inode lock exclusively.
    ///
    /// The outcome may be short: then everything before is written and published, nothing after. Without an error nothing is written: some
    /// of the range has to stay in memory, and the cache has to take the write, too.
    pub fn write_past_cache<H: Host>(
        &self,
        guard: &ExclusiveGuard<'_>,
        host: &H,
        pos: u64,
        data: &[u8],
    ) -> WriteOutcome<H::Error> {
        if self.is_dax() {
            return self.write_dax(Some(guard), host, pos, data);
        }
        let mut written = 0;
        let result = self.write_blocks(host, pos, data, &mut written);
        WriteOutcome { written, error: result.err() }
    }

    fn write_blocks<H: Host>(
        &self,
        host: &H,
        pos: u64,
        data: &[u8],
        written: &mut usize,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let range = pos..pos + data.len() as u64;
        debug_assert!(self.is_whole_blocks(&range), "direct write of {range:?}");
        let too_big = || H::Error::from(std::io::Error::from_raw_os_error(27));
        let block = u64::from(geo.block_size());
        let first = u32::try_from(pos / block).map_err(|_| too_big())?;
        let end = u32::try_from(range.end / block).map_err(|_| too_big())?;
        let (size, disk_size) = (host.size(), host.disk_size());
        if pos > size {
            self.zero_tail(host, size)?;
        }
        if range.end > disk_size && !disk_size.is_multiple_of(block) {
            // The file grows over its old end on disk: the tail of that block has to be zero there.
            self.sync(host, disk_size - 1..disk_size + 1)?;
        }
        self.settle_range(host, range.clone())?;
        if !self.invalidate(range) {
            // A transfer of which nobody tells may be writing to a page of it.
            return Ok(());
        }
        let _gate = self.gate();
        self.grow_memory(size.max(pos + data.len() as u64))?;
        if let Some(old_end) = self.lock_old_end(size, u32::MAX).filter(|_| pos + data.len() as u64 > size) {
            self.settle_old_end(&old_end.pages[0], size)?;
        }
        let mut at = first;
        while at < end {
            let bytes = &data[*written..];
            let (done, result) = self.write_run(host, at, (end - at).min(MOST_BLOCKS), bytes);
            *written += geo.block_bytes(done) as usize;
            at += done;
            result?;
        }
        Ok(())
    }

    /// Writes blocks from `lblk` on, up to `most`, that have one kind of backing: how many, and what stopped it. Under the gate.
    fn write_run<H: Host>(&self, host: &H, lblk: u32, most: u32, data: &[u8]) -> (u32, Result<(), H::Error>) {
        let mapped = match host.map(Lblk(lblk), most) {
            Ok(mapped) => mapped,
            Err(e) => return (0, Err(e)),
        };
        let len = mapped.len.clamp(1, most);
        let delayed = mapped.backing == Backing::Hole;
        if delayed && let Err(error) = host.reserve(Lblk(lblk), len) {
            // As far as space goes.
            return if len == 1 { (0, Err(error)) } else { self.write_run(host, lblk, len / 2, data) };
        }
        let mut done = 0;
        while done < len {
            let at = self.cache.geometry().block_bytes(done) as usize;
            match self.write_claimed(host, lblk + done, len - done, delayed, &data[at..]) {
                Ok(n) => done += n,
                Err(error) => {
                    if delayed {
                        host.unreserve(Lblk(lblk + done), len - done);
                    }
                    return (done, Err(error));
                }
            }
        }
        (done, Ok(()))
    }

    /// Claims, writes and publishes blocks from `lblk` on; how many. Under the gate and exclusive `invalidate_lock`.
    fn write_claimed<H: Host>(
        &self,
        host: &H,
        lblk: u32,
        most: u32,
        delayed: bool,
        data: &[u8],
    ) -> Result<u32, H::Error> {
        let geo = self.cache.geometry();
        let Placement { pblk, len, mut claim } = host.claim(Lblk(lblk), most, delayed)?;
        let len = len.clamp(1, most);
        self.write_to(pblk, &data[..geo.block_bytes(len) as usize])?;
        // Readers that see the new size wait for `invalidate_lock` before they look at the map.
        let (before, end) = (host.size(), geo.block_bytes(lblk) + geo.block_bytes(len));
        host.grow_size(end);
        host.publish(claim.as_mut_slice(), end).inspect_err(|_| host.set_size(before))?;
        Ok(len)
    }

    fn write_to(&self, pblk: Pblk, data: &[u8]) -> std::io::Result<()> {
        self.cache.device().write_at(self.cache.geometry().pblk_bytes(pblk)?, data)
    }

    /// Writes what is dirty in the pages that `range` touches, and what changed there without a fault: a page with a dirty block beside
    /// the range could not leave.
    fn settle_range<H: Host>(&self, host: &H, range: Range<u64>) -> Result<(), H::Error> {
        let pages = self.whole_pages(&range);
        if !without!(self.cache, DirectLooks) {
            self.find_unseen_changes(host, pages.clone())?;
        }
        if self.is_dirty_in(&range) { self.sync(host, pages) } else { Ok(()) }
    }

    /// Whether a page that `range` touches is dirty or being written.
    pub fn is_dirty_in(&self, range: &Range<u64>) -> bool {
        self.is_dirty() && self.next_dirty(self.whole_pages(range)).is_some()
    }

    fn whole_pages(&self, range: &Range<u64>) -> Range<u64> {
        let page = self.cache.geometry().page_size() as u64;
        range.start - range.start % page..range.end.checked_next_multiple_of(page).unwrap_or(u64::MAX)
    }

    /// The places of the blocks of `range`, if they all are mapped and written.
    fn written_runs<H: Host>(
        &self,
        host: &H,
        range: &Range<u64>,
    ) -> Result<Option<Vec<(Pblk, u32)>>, H::Error> {
        let block = u64::from(self.cache.geometry().block_size());
        let (Ok(mut at), Ok(end)) = (u32::try_from(range.start / block), u32::try_from(range.end / block))
        else {
            return Ok(None);
        };
        let mut runs = Vec::new();
        while at < end {
            let mapped = host.map(Lblk(at), end - at)?;
            let Backing::Data(pblk) = mapped.backing else { return Ok(None) };
            let len = mapped.len.clamp(1, end - at);
            runs.push((pblk, len));
            at += len;
        }
        Ok(Some(runs))
    }

    fn is_whole_blocks(&self, range: &Range<u64>) -> bool {
        let block = u64::from(self.cache.geometry().block_size());
        range.start.is_multiple_of(block) && range.end.is_multiple_of(block)
    }
}
