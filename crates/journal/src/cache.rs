//! The cache of metadata blocks.
//!
//! Shards by block number, each with its own lock (rank 250, never over I/O) and its own clock hand. A block that
//! is not held by anybody may be evicted; a transaction's lists hold theirs, so changed blocks stay until they are
//! written in place. When everything is held the cache goes over its budget by what is held; the journal keeps that
//! bounded by committing and checkpointing.

mod ahead;
mod buf;
mod shard;

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_sync::atomic::{AtomicU64, Ordering};
use extant_sync::{Mutex, Rank};

use ahead::Window;
pub use buf::{Buf, WriteOrder};
pub(crate) use buf::{Load, State};
use shard::Shard;

use crate::{Error, Result};

const SHARDS: usize = 32;
/// The most bytes that one read of [`BlockCache::prefetch`] or one write brings.
pub(crate) const MAX_TRANSFER: usize = 1 << 20;
/// The most buffers in one vectored transfer.
pub(crate) const MAX_VECTORS: usize = 256;

/// Counts since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks read from the device.
    pub reads: u64,
    /// Blocks thrown out to stay within the budget.
    pub evictions: u64,
    /// Blocks cached now.
    pub cached: u64,
}

/// The metadata blocks of one filesystem in memory.
#[derive(Debug)]
pub struct BlockCache {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    blocks: AtomicU64,
    budget: AtomicU64,
    shards: Box<[Mutex<Shard>]>,
    reads: AtomicU64,
    window: Window,
}

impl BlockCache {
    /// A cache for the filesystem of `blocks` blocks of `block_size` bytes that starts at byte 0 of `device`, of about
    /// `budget` bytes.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>, block_size: u32, blocks: u64, budget: u64) -> Arc<Self> {
        assert!(
            block_size.is_power_of_two() && (1024..=65536).contains(&block_size),
            "block size {block_size}"
        );
        let shards = (0..SHARDS).map(|_| Mutex::new(Rank::CACHE, Shard::default())).collect();
        Arc::new(Self {
            device,
            block_size: block_size as usize,
            blocks: AtomicU64::new(blocks),
            budget: AtomicU64::new(budget / u64::from(block_size)),
            shards,
            reads: AtomicU64::new(0),
            window: Window::default(),
        })
    }

    /// The device beneath.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Bytes a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the filesystem.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Says that the filesystem has grown or shrunk to `blocks` blocks.
    pub fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    /// How many blocks the cache should hold at most.
    #[must_use]
    pub fn budget_blocks(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Changes the budget, in bytes; later insertions evict down to it.
    pub fn set_budget(&self, bytes: u64) {
        self.budget.store(bytes / self.block_size as u64, Ordering::Relaxed);
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats { reads: self.reads.load(Ordering::Relaxed), ..CacheStats::default() };
        for shard in &self.shards {
            let shard = shard.lock();
            stats.evictions += shard.evictions;
            stats.cached += shard.len() as u64;
        }
        stats
    }

    /// The block `pblk`, read from the device unless it is cached. Concurrent callers share one read.
    ///
    /// May wait for the device; ranks below 100 may be held.
    pub fn read(&self, pblk: Pblk) -> Result<Buf> {
        let (buf, mine) = self.lookup_or_insert(pblk)?;
        // A read that failed leaves the buffer where it is, for the next caller to try again. It must not go: somebody may have
        // made the block anew meanwhile, and would change a buffer that nobody else finds.
        if mine {
            self.load(&buf);
            buf.wait_loaded()?;
        } else if buf.wait_loaded().is_err() {
            if buf.try_again() {
                self.load(&buf);
            }
            buf.wait_loaded()?;
        }
        Ok(buf)
    }

    /// The block `pblk` if it is cached and loaded; never waits for the device.
    #[must_use]
    pub fn cached(&self, pblk: Pblk) -> Option<Buf> {
        let buf = self.shard(pblk).lock().find(pblk)?;
        let ready = matches!(buf.state().load, Load::Ready);
        ready.then_some(buf)
    }

    /// The block `pblk` filled with zeros in memory only, whatever the device holds: for a block that has just been
    /// allocated. [`Handle::create`](crate::Handle::create) does the same and makes it part of a transaction.
    pub fn new_zeroed(&self, pblk: Pblk) -> Result<Buf> {
        let (buf, _) = self.lookup_or_insert(pblk)?;
        {
            let mut state = buf.state();
            state.data = zeroed(self.block_size);
            state.load = Load::Ready;
        }
        buf.set_verified();
        buf.notify();
        Ok(buf)
    }

    /// Reads those of `blocks` that are not cached, in few large reads. Errors are left for [`Self::read`] to meet.
    pub fn prefetch(&self, blocks: Range<u64>) {
        self.load_runs(blocks, |pblk| {
            self.lookup_or_insert(pblk).ok().filter(|(_, mine)| *mine).map(|(buf, _)| buf)
        });
    }

    /// Loads the buffers that `insert` makes for `blocks`, consecutive ones in one transfer.
    fn load_runs(&self, blocks: Range<u64>, insert: impl Fn(Pblk) -> Option<Buf>) {
        let end = blocks.end.min(self.blocks());
        let mut run = Vec::new();
        let most = (MAX_TRANSFER / self.block_size).clamp(1, MAX_VECTORS);
        for pblk in blocks.start..end {
            match insert(Pblk(pblk)) {
                Some(buf) => run.push(buf),
                None => self.load_run(&mut run),
            }
            if run.len() == most {
                self.load_run(&mut run);
            }
        }
        self.load_run(&mut run);
    }

    /// The content of block `pblk` as long as a transaction or checkpoint has yet to write it to its place. `None`: the
    /// device has it.
    #[must_use]
    pub fn unwritten(&self, pblk: Pblk) -> Option<Arc<[u8]>> {
        let buf = self.find(pblk)?;
        let state = buf.state();
        state.is_journalled().then(|| Arc::clone(&state.data))
    }

    /// Drops the cached copies of `len` blocks from `pblk` that no transaction needs: after their place on the device was
    /// written around the cache.
    pub fn invalidate(&self, pblk: Pblk, len: u64) {
        let blocks = pblk.0..pblk.0.saturating_add(len).min(self.blocks());
        let found: Vec<Buf> = if blocks.end.saturating_sub(blocks.start) > 4 * self.budget_blocks().max(1024)
        {
            self.shards.iter().flat_map(|s| s.lock().in_range(&blocks)).collect()
        } else {
            blocks.filter_map(|n| self.find(Pblk(n))).collect()
        };
        for buf in found {
            let needed = buf.state().is_journalled();
            if !needed {
                self.remove(&buf);
            }
        }
    }

    /// Changes a block in the cache and at once in its place on the device, outside of any transaction; not flushed. If the device
    /// refuses it, the change is taken back.
    ///
    /// # Errors
    /// [`Error::Journalled`] when a transaction or checkpoint still needs the block, [`Error::Write`].
    pub fn write_through<R>(&self, buf: &Buf, change: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let (result, before, data) = {
            let mut state = buf.state();
            if state.is_journalled() {
                return Err(Error::Journalled(buf.pblk()));
            }
            let before = Arc::clone(&state.data);
            let result = change(Arc::make_mut(&mut state.data));
            (result, before, Arc::clone(&state.data))
        };
        let written = self.write_run(buf.pblk(), &[IoSlice::new(&data)]);
        if written.is_err() {
            let mut state = buf.state();
            // Unless somebody has changed it since, in a handle.
            if Arc::ptr_eq(&state.data, &data) {
                state.data = before;
            }
        }
        written.map(|()| result)
    }

    /// Writes consecutive blocks from `pblk`.
    pub(crate) fn write_run(&self, pblk: Pblk, blocks: &[IoSlice<'_>]) -> Result<()> {
        let offset = self.offset(pblk)?;
        self.device
            .write_vectored_at(offset, blocks)
            .map_err(|source| Error::Write { pblk, source: Arc::new(source) })
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|source| Error::Flush(Arc::new(source)))
    }

    /// Takes a buffer out of the cache; who holds it keeps it.
    pub(crate) fn remove(&self, buf: &Buf) {
        self.shard(buf.pblk()).lock().remove(buf);
    }

    /// The cached block, in whatever state.
    pub(crate) fn find(&self, pblk: Pblk) -> Option<Buf> {
        self.shard(pblk).lock().find(pblk)
    }

    pub(crate) fn lookup_or_insert(&self, pblk: Pblk) -> Result<(Buf, bool)> {
        self.check_range(pblk)?;
        Ok(self.shard(pblk).lock().find_or_insert(pblk, self.shard_budget()))
    }

    fn shard_budget(&self) -> usize {
        (self.budget_blocks() as usize / SHARDS).max(4)
    }

    fn check_range(&self, pblk: Pblk) -> Result<()> {
        let blocks = self.blocks();
        if pblk.0 < blocks { Ok(()) } else { Err(Error::OutOfRange { pblk, blocks }) }
    }

    fn offset(&self, pblk: Pblk) -> Result<u64> {
        pblk.0.checked_mul(self.block_size as u64).ok_or(Error::OutOfRange { pblk, blocks: self.blocks() })
    }

    fn shard(&self, pblk: Pblk) -> &Mutex<Shard> {
        // Neighbours share a shard eight by eight, so that a prefetch does not visit every lock for every block.
        let mixed = (pblk.0 >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.shards[(mixed >> 59) as usize]
    }

    fn load(&self, buf: &Buf) {
        let mut data = zeroed(self.block_size);
        let outcome = self.offset(buf.pblk()).and_then(|offset| {
            let bytes = Arc::get_mut(&mut data).unwrap_or(&mut []);
            self.device
                .read_at(offset, bytes)
                .map_err(|source| Error::Read { pblk: buf.pblk(), source: Arc::new(source) })
        });
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.loaded(outcome.map(|()| data));
    }

    /// Loads consecutive blocks that this thread has inserted, and empties the list.
    fn load_run(&self, run: &mut Vec<Buf>) {
        let Some(first) = run.first().map(Buf::pblk) else { return };
        let mut contents: Vec<Arc<[u8]>> = run.iter().map(|_| zeroed(self.block_size)).collect();
        let outcome = self.offset(first).and_then(|offset| {
            let mut slices: Vec<_> =
                contents.iter_mut().filter_map(Arc::get_mut).map(IoSliceMut::new).collect();
            self.device
                .read_vectored_at(offset, &mut slices)
                .map_err(|source| Error::Read { pblk: first, source: Arc::new(source) })
        });
        self.reads.fetch_add(run.len() as u64, Ordering::Relaxed);
        for (buf, data) in run.drain(..).zip(contents) {
            match &outcome {
                Ok(()) => buf.loaded(Ok(data)),
                // A read of this block alone may succeed; the next caller tries.
                Err(error) => buf.loaded(Err(error.clone())),
            }
        }
    }
}

pub(crate) fn zeroed(len: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, len).collect()
}
