//! A simulated device. It keeps its content in memory, records every write, discard, zeroing and flush with its
//! content, fails on demand, and can give the content that any legal crash would leave.
//!
//! # Fault model
//! - A completed flush makes every write completed before it durable. Nothing else does.
//! - A forced write ([`BlockDevice::write_fua_at`]) is durable when it returns, and nothing else with it.
//! - Of the other writes after the last completed flush (an *epoch*), any subset may be on the medium, in any order.
//! - A write is atomic in units of 512 bytes ([`SECTOR`]): a crash may leave any of its sectors old, any new.
//! - Content that was acknowledged by a flush never changes by itself; bit rot is asked for with
//!   [`SimDevice::corrupt`].
//! - A store through a mapping ([`Mappable`]) is a write of each line of [`LINE`] bytes that it changed, each of which may be on the medium
//!   or not until the next flush, or until the line is written back from the processor's caches, which is a forced write of it.
//! - A failing read, write or flush is a [`Failpoint`]; a failed write changes nothing, a failed flush makes nothing
//!   durable.

mod content;
mod crash;
mod footprint;
mod mappable;
mod sectors;

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use extant_device::BlockDevice;

pub use content::Content;
pub use crash::{CrashPlan, CrashState, Cut, Sketch};
pub use footprint::{Footprint, SectorSet};
pub use mappable::Mappable;
pub use sectors::sector_digest;

/// The unit of atomicity of a write, in bytes.
pub const SECTOR: u64 = 512;

/// The unit of atomicity of a store, in bytes: a line of a processor's cache.
pub const LINE: u64 = 64;

/// One thing that was done to the device, in the order in which the device saw it.
#[derive(Clone, Debug)]
pub enum Event {
    /// `data` was written at byte `offset`.
    Write {
        /// Byte offset.
        offset: u64,
        /// What was written.
        data: Arc<[u8]>,
        /// Durable when it returned, without a promise about others.
        fua: bool,
    },
    /// The range reads as zeroes from here on (a discard does too, on this device).
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A completed flush.
    Flush,
    /// [`SimDevice::mark`]: what the test promises from here on.
    Mark(u64),
}

/// What an operation is, for failpoints and counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, discards and zeroings.
    Write,
    /// Flushes.
    Flush,
}

/// When and how operations fail.
#[derive(Clone, Debug)]
pub struct Failpoint {
    /// The operations that it is about.
    pub kind: Kind,
    /// Only those that touch this byte range; flushes have none.
    pub range: Option<Range<u64>>,
    /// How many of them still succeed.
    pub skip: u64,
    /// How many then fail; `u64::MAX` for all.
    pub times: u64,
    /// The errno that they fail with: 5 is EIO, 28 is ENOSPC (the host's disk is full).
    pub errno: i32,
}

impl Failpoint {
    /// The `n`th operation of this kind from now on (0 is the next) fails once with EIO.
    #[must_use]
    pub const fn nth(kind: Kind, n: u64) -> Self {
        Self { kind, range: None, skip: n, times: 1, errno: 5 }
    }

    /// All operations of this kind fail with EIO from the `n`th on.
    #[must_use]
    pub const fn all_from(kind: Kind, n: u64) -> Self {
        Self { kind, range: None, skip: n, times: u64::MAX, errno: 5 }
    }

    /// The same, for this byte range only.
    #[must_use]
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// The same, with this errno.
    #[must_use]
    pub const fn with_errno(mut self, errno: i32) -> Self {
        self.errno = errno;
        self
    }

    fn concerns(&self, kind: Kind, range: &Range<u64>) -> bool {
        self.kind == kind
            && self.range.as_ref().is_none_or(|mine| mine.start < range.end && range.start < mine.end)
    }
}

/// How many operations the device has seen, and how many bytes they carried. Failed ones are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read calls.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write, discard and zeroing calls.
    pub writes: u64,
    /// Bytes written, discarded or zeroed.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

struct State {
    content: Content,
    base: Content,
    log: Vec<Event>,
    recording: bool,
    failpoints: Vec<Failpoint>,
    counts: Counts,
    footprint: Option<Footprint>,
}

/// The simulated device. Clone the `Arc` to keep a hand on a device that a filesystem owns.
pub struct SimDevice {
    state: Mutex<State>,
    size: u64,
    sector: u32,
    read_only: bool,
}

impl std::fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDevice").field("size", &self.size).field("counts", &self.counts()).finish()
    }
}

impl SimDevice {
    /// A device of `size` zero bytes that records from the start.
    #[must_use]
    pub fn new(size: u64) -> Arc<Self> {
        Self::from_content(Content::zeroed(size))
    }

    /// A device with this content (cheap: memory is shared until written) that records from the start.
    #[must_use]
    pub fn from_content(content: Content) -> Arc<Self> {
        Arc::new(Self::build(content, 512, false))
    }

    /// A device with the content of an image file.
    ///
    /// # Panics
    /// If the file cannot be read.
    #[must_use]
    pub fn from_file(path: &Path) -> Arc<Self> {
        let content = Content::from_file(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        Self::from_content(content)
    }

    /// The same device content, read-only.
    #[must_use]
    pub fn read_only(content: Content) -> Arc<Self> {
        Arc::new(Self::build(content, 512, true))
    }

    /// A device that reports logical sectors of `sector` bytes and refuses anything not aligned to them.
    #[must_use]
    pub fn with_sector(content: Content, sector: u32) -> Arc<Self> {
        Arc::new(Self::build(content, sector, false))
    }

    fn build(content: Content, sector: u32, read_only: bool) -> Self {
        let size = content.size();
        let state = State {
            base: content.clone(),
            content,
            log: Vec::new(),
            recording: true,
            failpoints: Vec::new(),
            counts: Counts::default(),
            footprint: None,
        };
        Self { state: Mutex::new(state), size, sector, read_only }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already; the content is still whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Forgets the record: what is on the device now is the base of crash states from here on, and durable.
    pub fn restart_log(&self) {
        let mut state = self.state();
        state.base = state.content.clone();
        state.log.clear();
    }

    /// Stops or resumes recording; with it off, crash states are meaningless and memory stays small.
    pub fn set_recording(&self, on: bool) {
        let mut state = self.state();
        state.recording = on;
        state.base = state.content.clone();
        state.log.clear();
    }

    /// Puts a mark into the record: crash states after this point carry it ([`CrashState::marks`]). A test marks what
    /// it has been promised, for example after an fsync returned.
    pub fn mark(&self, mark: u64) {
        self.state().log.push(Event::Mark(mark));
    }

    /// What was recorded so far.
    #[must_use]
    pub fn log(&self) -> Vec<Event> {
        self.state().log.clone()
    }

    /// The content as it reads now.
    #[must_use]
    pub fn content(&self) -> Content {
        self.state().content.clone()
    }

    /// Every crash state of the record so far, by the plan's rules.
    #[must_use]
    pub fn crash_plan(&self, seed: u64) -> CrashPlan {
        let state = self.state();
        CrashPlan::new(state.base.clone(), state.log.clone(), seed)
    }

    /// Notes from now on which sectors are read and written.
    pub fn watch(&self) {
        self.state().footprint = Some(Footprint::new(self.size));
    }

    /// What was noted since [`SimDevice::watch`]; ends the noting.
    pub fn footprint(&self) -> Option<Footprint> {
        self.state().footprint.take()
    }

    /// Adds a failpoint.
    pub fn fail(&self, failpoint: Failpoint) {
        self.state().failpoints.push(failpoint);
    }

    /// Removes all failpoints.
    pub fn heal(&self) {
        self.state().failpoints.clear();
    }

    /// Changes content behind the filesystem's back, unrecorded and durable: damage.
    pub fn corrupt(&self, offset: u64, change: impl FnOnce(&mut [u8]), len: usize) {
        let mut state = self.state();
        let mut bytes = vec![0; len];
        state.content.read(offset, &mut bytes);
        change(&mut bytes);
        state.content.write(offset, &bytes);
        state.base.write(offset, &bytes);
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Sets the counters to zero.
    pub fn reset_counts(&self) {
        self.state().counts = Counts::default();
    }

    fn checked(&self, state: &mut State, kind: Kind, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let Some(end) = end else {
            let what = format!("{len} bytes at {offset} on a device of {} bytes", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let sector = u64::from(self.sector);
        if self.sector != 512 && (!offset.is_multiple_of(sector) || !len.is_multiple_of(sector)) {
            let what = format!("{len} bytes at {offset}: not in sectors of {sector} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if kind != Kind::Read && self.read_only {
            return Err(rustix::io::Errno::ROFS.into());
        }
        failpoint(&mut state.failpoints, kind, offset..end)
    }

    fn record(state: &mut State, event: Event) {
        if state.recording {
            state.log.push(event);
        }
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>], fua: bool) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let mut state = self.state();
        self.checked(&mut state, Kind::Write, offset, data.len() as u64)?;
        state.counts.writes += 1;
        state.counts.written_bytes += data.len() as u64;
        state.content.write(offset, &data);
        if let Some(footprint) = &mut state.footprint {
            footprint.note_write(offset, data.len() as u64);
        }
        Self::record(&mut state, Event::Write { offset, data: data.into(), fua });
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state();
        self.checked(&mut state, Kind::Write, offset, len)?;
        state.counts.writes += 1;
        state.counts.written_bytes += len;
        state.content.zero(offset, len);
        if let Some(footprint) = &mut state.footprint {
            footprint.note_write(offset, len);
        }
        Self::record(&mut state, Event::Zero { offset, len });
        Ok(())
    }
}

fn failpoint(points: &mut Vec<Failpoint>, kind: Kind, range: Range<u64>) -> io::Result<()> {
    let mut failed = None;
    points.retain_mut(|point| {
        if failed.is_some() || !point.concerns(kind, &range) {
            return true;
        }
        if point.skip > 0 {
            point.skip -= 1;
            return true;
        }
        failed = Some(point.errno);
        point.times = if point.times == u64::MAX { u64::MAX } else { point.times - 1 };
        point.times > 0
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

impl BlockDevice for SimDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn logical_sector_size(&self) -> u32 {
        self.sector
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_vectored_at(offset, &mut [IoSliceMut::new(buf)])
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_vectored_at(offset, &[IoSlice::new(buf)])
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let len = bufs.iter().map(|b| b.len() as u64).sum();
        let mut state = self.state();
        self.checked(&mut state, Kind::Read, offset, len)?;
        state.counts.reads += 1;
        state.counts.read_bytes += len;
        if let Some(footprint) = &mut state.footprint {
            footprint.note_read(offset, len);
        }
        let mut at = offset;
        for buf in bufs {
            state.content.read(at, buf);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(offset, bufs, false)
    }

    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(offset, bufs, true)
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        failpoint(&mut state.failpoints, Kind::Flush, 0..u64::MAX)?;
        if self.read_only {
            return Ok(());
        }
        state.counts.flushes += 1;
        Self::record(&mut state, Event::Flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }

    fn makes_zeros(&self) -> bool {
        true
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }
}
