//! A device in memory, and what it holds at a moment.

use std::fmt;
use std::io;
// Not the runtime's that explores interleavings: an image is made outside of it and used by every schedule.
use std::sync::Arc;

use extant_sync::{Rank, RwLock};
use rustc_hash::FxHashMap;

use crate::{BlockDevice, MemSlice, check_range, total_mem};

/// Bytes of one piece of memory.
const CHUNK: usize = 16 << 10;
const SHARDS: usize = 16;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Pieces by number. A piece that an image has too is copied before it is changed.
type Chunks = FxHashMap<u64, Arc<[u8]>>;

/// The bytes of a device at a moment, never changed. What a [`MemoryDevice`] and its images have in common is in memory once, so that many
/// devices can begin alike at little cost. As a device it is read only.
#[derive(Clone)]
pub struct MemoryImage {
    size: u64,
    chunks: Arc<Chunks>,
}

impl MemoryImage {
    /// These bytes; zeros take no memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let piece = |bytes: &[u8]| match bytes.len() {
            CHUNK => Arc::from(bytes),
            // The last piece of a device may be shorter.
            len => {
                let mut whole = vec![0; CHUNK];
                whole[..len].copy_from_slice(bytes);
                Arc::from(whole)
            }
        };
        let pieces = (0..).zip(bytes.chunks(CHUNK)).filter(|(_, bytes)| **bytes != ZEROS[..bytes.len()]);
        let chunks = pieces.map(|(number, bytes)| (number, piece(bytes))).collect();
        Self { size: bytes.len() as u64, chunks: Arc::new(chunks) }
    }

    /// All bytes.
    ///
    /// # Panics
    /// When they do not fit in memory.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        all_bytes(self)
    }

    /// What is in memory, by offset and in no order: all other bytes are zeros.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.chunks.iter().map(|(number, memory)| {
            let offset = number * CHUNK as u64;
            (offset, &memory[..CHUNK.min((self.size - offset) as usize)])
        })
    }
}

fn all_bytes(device: &impl BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(device.size()).expect("fits in memory")];
    device.read_at(0, &mut bytes).expect("all inside");
    bytes
}

impl BlockDevice for MemoryImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        pieces(offset, buf.len(), |chunk, at, range| match self.chunks.get(&chunk) {
            Some(memory) => buf[range.clone()].copy_from_slice(&memory[at..at + range.len()]),
            None => buf[range].fill(0),
        });
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl fmt::Debug for MemoryImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryImage({} bytes)", self.size)
    }
}

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
        Self::from_image(&MemoryImage::from_bytes(bytes))
    }

    /// A device that begins with what an image holds.
    #[must_use]
    pub fn from_image(image: &MemoryImage) -> Self {
        let mut shards: [Chunks; SHARDS] = Default::default();
        for (number, memory) in &*image.chunks {
            shards[shard_of(*number)].insert(*number, Arc::clone(memory));
        }
        Self { size: image.size, shards: shards.map(|chunks| RwLock::new(Rank::LEAF, chunks)) }
    }

    /// What it holds now. Of writes that run at the same time, some pieces may be in it and others not.
    #[must_use]
    pub fn image(&self) -> MemoryImage {
        let mut all = Chunks::default();
        for shard in &self.shards {
            all.extend(shard.read().iter().map(|(number, memory)| (*number, Arc::clone(memory))));
        }
        MemoryImage { size: self.size, chunks: Arc::new(all) }
    }

    /// All bytes. For small devices, in tests.
    ///
    /// # Panics
    /// When they do not fit in memory.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        all_bytes(self)
    }

    fn shard(&self, chunk: u64) -> &RwLock<Chunks> {
        &self.shards[shard_of(chunk)]
    }

    fn write_piece(&self, chunk: u64, change: impl FnOnce(&mut [u8])) {
        let mut chunks = self.shard(chunk).write();
        let memory = chunks.entry(chunk).or_insert_with(|| Arc::from(vec![0; CHUNK]));
        change(Arc::make_mut(memory));
    }
}

fn shard_of(chunk: u64) -> usize {
    (chunk % SHARDS as u64) as usize
}

/// Cuts a range at chunk ends: calls `f(chunk, offset in it, range of the buffer)`.
fn pieces(offset: u64, len: usize, mut f: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let inside = (at % CHUNK as u64) as usize;
        let n = (CHUNK - inside).min(len - done);
        f(at / CHUNK as u64, inside, done..done + n);
        done += n;
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        pieces(offset, buf.len(), |chunk, at, range| match self.shard(chunk).read().get(&chunk) {
            Some(memory) => buf[range.clone()].copy_from_slice(&memory[at..at + range.len()]),
            None => buf[range].fill(0),
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        pieces(offset, buf.len(), |chunk, at, range| {
            self.write_piece(chunk, |memory| memory[at..at + range.len()].copy_from_slice(&buf[range]));
        });
        Ok(())
    }

    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        check_range(self.size, offset, total_mem(bufs) as u64)?;
        let mut from = offset;
        for buf in bufs {
            pieces(from, buf.len(), |chunk, at, range| match self.shard(chunk).read().get(&chunk) {
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
            pieces(to, buf.len(), |chunk, at, range| {
                self.write_piece(chunk, |memory| buf.copy_to(range.start, &mut memory[at..at + range.len()]));
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
                if from < to {
                    Arc::make_mut(memory)[from as usize..to as usize].fill(0);
                }
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
