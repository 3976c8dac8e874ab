//! A simulated device that is memory: files on it can be mapped, and what is stored through mappings is recorded as well.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use extant_device::{BlockDevice, DirectAccess, FileDevice};

use super::{Content, LINE, SECTOR, SimDevice};

/// Bytes that are compared at a time.
const PIECE: usize = 64 << 10;

/// A device in a memory file, and a [`SimDevice`] that records what is done to it. Stores make no call: they are found by comparing the
/// memory with what the record makes of it, before each flush and when the test says so. A line that was stored to is a
/// [`Write`](super::Event::Write) of [`LINE`] bytes then; so are the lines of a write that is not one of whole sectors, which is a copy to
/// the memory.
///
/// It says that it is persistent memory, and has the cache that the processor has: what is stored is durable at the next flush, or once its
/// lines were written back ([`Self::write_back`]).
#[derive(Debug)]
pub struct Mappable {
    record: Arc<SimDevice>,
    memory: FileDevice,
    /// Flushes make nothing durable.
    lies: AtomicBool,
    /// Over a change of both.
    both: Mutex<()>,
}

impl Mappable {
    /// A device with this content that records from the start.
    ///
    /// # Panics
    /// If the system has no memory for it.
    #[must_use]
    pub fn from_content(content: Content) -> Arc<Self> {
        let memory = FileDevice::in_memory(content.size()).expect("a memory file");
        let mut piece = vec![0; PIECE];
        for at in (0..content.size()).step_by(PIECE) {
            let part = &mut piece[..PIECE.min((content.size() - at) as usize)];
            content.read(at, part);
            memory.write_at(at, part).expect("inside");
        }
        let (record, lies) = (SimDevice::from_content(content), AtomicBool::new(false));
        Arc::new(Self { record, memory, lies, both: Mutex::new(()) })
    }

    /// From now on flushes are said to be done and make nothing durable: whoever looks for lost stores must find some.
    pub fn lie(&self) {
        self.lies.store(true, Ordering::Relaxed);
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &Arc<SimDevice> {
        &self.record
    }

    /// Records what has been stored through mappings since the last time.
    ///
    /// # Panics
    /// If the memory cannot be read.
    pub fn note_stores(&self) {
        self.compare(&self.both());
    }

    /// Writes the lines of a range back from the processor's caches: they are durable, and nothing else with them.
    ///
    /// # Panics
    /// If the memory cannot be read.
    pub fn write_back(&self, range: Range<u64>) {
        let both = self.both();
        self.compare(&both);
        let mut line = [0; LINE as usize];
        for at in (range.start - range.start % LINE..range.end).step_by(LINE as usize) {
            self.memory.read_at(at, &mut line).expect("inside");
            self.record.write_fua_at(at, &[IoSlice::new(&line)]).expect("inside");
        }
    }

    fn both(&self) -> MutexGuard<'_, ()> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records lines as they are.
    fn copy_lines(&self, _both: &MutexGuard<'_, ()>, range: Range<u64>) -> io::Result<()> {
        let mut line = [0; LINE as usize];
        for at in range.step_by(LINE as usize) {
            self.memory.read_at(at, &mut line)?;
            self.record.write_at(at, &line)?;
        }
        Ok(())
    }

    fn compare(&self, _both: &MutexGuard<'_, ()>) {
        let known = self.record.content();
        let (mut now, mut before) = (vec![0; PIECE], vec![0; PIECE]);
        for at in (0..known.size()).step_by(PIECE) {
            let len = PIECE.min((known.size() - at) as usize);
            self.memory.read_at(at, &mut now[..len]).expect("inside");
            known.read(at, &mut before[..len]);
            if now[..len] == before[..len] {
                continue;
            }
            let lines = now[..len].chunks(LINE as usize).zip(before[..len].chunks(LINE as usize));
            for (line, (now, _)) in (0..).zip(lines).filter(|(_, (now, before))| now != before) {
                self.record.write_at(at + line * LINE, now).expect("inside");
            }
        }
    }
}

impl BlockDevice for Mappable {
    fn size(&self) -> u64 {
        self.record.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_vectored_at(offset, &[IoSlice::new(buf)])
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let both = self.both();
        self.memory.write_vectored_at(offset, bufs)?;
        let end = offset + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        if offset.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR) {
            return self.record.write_vectored_at(offset, bufs);
        }
        self.copy_lines(&both, offset - offset % LINE..end.next_multiple_of(LINE))
    }

    fn write_fua_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let _both = self.both();
        self.memory.write_vectored_at(offset, bufs)?;
        self.record.write_fua_at(offset, bufs)
    }

    fn flush(&self) -> io::Result<()> {
        let both = self.both();
        self.compare(&both);
        if self.lies.load(Ordering::Relaxed) { Ok(()) } else { self.record.flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let _both = self.both();
        self.memory.write_zeroes(offset, len)?;
        self.record.write_zeroes(offset, len)
    }

    fn makes_zeros(&self) -> bool {
        true
    }

    fn direct_access(&self) -> Option<DirectAccess> {
        self.memory.direct_access().map(DirectAccess::persistent)
    }
}
