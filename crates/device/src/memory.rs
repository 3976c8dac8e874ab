//! A device in memory.

use std::fmt;
use std::io;

use extant_sync::{Rank, RwLock};
use rustc_hash::FxHashMap;

use crate::{BlockDevice, MemSlice, check_range, total_mem};

/// Bytes of one piece of memory.
const CHUNK: usize = 64 << 10;
const SHARDS: usize = 16;

type Chunks = FxHashMap<u64, Box<[u8]>>;

/// A device whose bytes are in memory. What was never written takes none and reads as zeros.
pub struct MemoryDevice {
    size: u64,
    shards: [RwLock<Chunks>; SHARDS],
}

impl MemoryDevice {
    /// `size` bytes of zeros.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, shards: std::array::from_fn(|_| RwLock::new(Rank::LEAF, Chunks::default())) }
    }

    /// A device with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = Self::new(bytes.len() as u64);
        device.pieces(0, bytes.len(), |chunk, at, range| device.write_piece(chunk, at, &bytes[range]));
        device
    }

    /// All bytes. For small devices, in tests.
    ///
    /// # Panics
    /// When they do not fit in memory.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).expect("fits in memory")];
        self.read_at(0, &mut bytes).expect("all inside");
        bytes
    }

    fn shard(&self, chunk: u64) -> &RwLock<Chunks> {
        &self.shards[(chunk % SHARDS as u64) as usize]
    }

    /// Cuts a range at chunk ends: calls `f(chunk, offset in it, range of the buffer)`.
    fn pieces(&self, offset: u64, len: usize, mut f: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = (at % CHUNK as u64) as usize;
            let n = (CHUNK - inside).min(len - done);
            f(at / CHUNK as u64, inside, done..done + n);
            done += n;
        }
    }

    fn write_piece(&self, chunk: u64, at: usize, bytes: &[u8]) {
        let mut chunks = self.shard(chunk).write();
        let memory = chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK].into_boxed_slice());
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        self.pieces(offset, buf.len(), |chunk, at, range| match self.shard(chunk).read().get(&chunk) {
            Some(memory) => buf[range.clone()].copy_from_slice(&memory[at..at + range.len()]),
            None => buf[range].fill(0),
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        self.pieces(offset, buf.len(), |chunk, at, range| self.write_piece(chunk, at, &buf[range]));
        Ok(())
    }

    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        check_range(self.size, offset, total_mem(bufs) as u64)?;
        let mut from = offset;
        for buf in bufs {
            self.pieces(from, buf.len(), |chunk, at, range| match self.shard(chunk).read().get(&chunk) {
                Some(memory) => buf.copy_from(range.start, &memory[at..at + range.len()]),
                None => buf.zero(range.start, range.len()),
            });
            from += buf.len() as u64;
        }
        Ok(())
    }

    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        check_range(self.size, offset, total_mem(bufs) as u64)?;
        let mut to = offset;
        for buf in bufs {
            self.pieces(to, buf.len(), |chunk, at, range| {
                let mut chunks = self.shard(chunk).write();
                let memory = chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK].into_boxed_slice());
                buf.copy_to(range.start, &mut memory[at..at + range.len()]);
            });
            to += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }

    fn makes_zeros(&self) -> bool {
        true
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, offset, len)?;
        let end = offset + len;
        let chunk = CHUNK as u64;
        let inside = |c: u64| c * chunk >= offset && (c + 1) * chunk <= end;
        for shard in &self.shards {
            shard.write().retain(|c, memory| {
                if inside(*c) {
                    return false;
                }
                let from = offset.clamp(c * chunk, (c + 1) * chunk) - c * chunk;
                let to = end.clamp(c * chunk, (c + 1) * chunk) - c * chunk;
                memory[from as usize..to as usize].fill(0);
                true
            });
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryDevice({} bytes)", self.size)
    }
}
