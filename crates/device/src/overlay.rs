//! Writes that go to memory.

use std::fmt;
use std::io;
use std::sync::Arc;

use extant_sync::{Rank, RwLock};
use rustc_hash::FxHashMap;

use crate::{BlockDevice, check_range};

/// Bytes that are copied together.
const CHUNK: usize = 4096;
const SHARDS: usize = 16;

enum Chunk {
    Zeros,
    Bytes(Box<[u8]>),
}

type Chunks = FxHashMap<u64, Chunk>;

/// A device that reads from another one and keeps what is written in memory, sparsely; the base is never written.
///
/// Two writers of one chunk at the same time are ordered by the chunk's lock. The base must not change meanwhile.
pub struct Overlay {
    base: Arc<dyn BlockDevice>,
    shards: [RwLock<Chunks>; SHARDS],
}

impl Overlay {
    /// An overlay with nothing in it.
    #[must_use]
    pub fn new(base: Arc<dyn BlockDevice>) -> Self {
        Self { base, shards: std::array::from_fn(|_| RwLock::new(Rank::LEAF, Chunks::default())) }
    }

    /// Bytes of memory that writes have taken so far.
    #[must_use]
    pub fn bytes_held(&self) -> u64 {
        let bytes = |shard: &RwLock<Chunks>| {
            shard.read().values().filter(|c| matches!(c, Chunk::Bytes(_))).count() as u64 * CHUNK as u64
        };
        self.shards.iter().map(bytes).sum()
    }

    /// Blocks of `block_size` bytes (a power of two) whose content differs from the base's, in ascending order, with what
    /// they hold now. Nobody writes meanwhile.
    ///
    /// # Errors
    /// The base's.
    pub fn changed_blocks(&self, block_size: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut blocks: Vec<u64> = Vec::new();
        for shard in &self.shards {
            for chunk in shard.read().keys() {
                let first = chunk * CHUNK as u64 / block_size as u64;
                let more = (CHUNK / block_size).max(1) as u64;
                blocks.extend(first..first + more);
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        let (mut now, mut before) = (vec![0; block_size], vec![0; block_size]);
        let mut changed = Vec::new();
        for block in blocks {
            let at = block * block_size as u64;
            if at + block_size as u64 > self.size() {
                continue;
            }
            self.read_at(at, &mut now)?;
            self.base.read_at(at, &mut before)?;
            if now != before {
                changed.push((block, now.clone()));
            }
        }
        Ok(changed)
    }

    /// Writes everything that was changed to the base, and flushes it. Nobody writes meanwhile.
    ///
    /// # Errors
    /// The base's; it is then partly written.
    pub fn apply(&self) -> io::Result<()> {
        let mut changed: Vec<u64> = Vec::new();
        for shard in &self.shards {
            changed.extend(shard.read().keys());
        }
        changed.sort_unstable();
        let mut buf = vec![0; CHUNK];
        for chunk in changed {
            let at = chunk * CHUNK as u64;
            let len = (self.size() - at).min(CHUNK as u64) as usize;
            self.read_at(at, &mut buf[..len])?;
            self.base.write_at(at, &buf[..len])?;
        }
        self.base.flush()
    }

    fn shard(&self, chunk: u64) -> &RwLock<Chunks> {
        &self.shards[(chunk % SHARDS as u64) as usize]
    }

    /// How many of the `len` bytes from chunk `first` on, `inside` bytes into it, are in consecutive chunks that are
    /// not in memory.
    fn run_of_base(&self, first: u64, inside: usize, len: usize) -> usize {
        let mut chunk = first;
        let mut run = CHUNK - inside;
        while run < len {
            chunk += 1;
            if self.shard(chunk).read().contains_key(&chunk) {
                break;
            }
            run += CHUNK;
        }
        run.min(len)
    }

    /// The chunk's present bytes, as the base has them.
    fn base_chunk(&self, chunk: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; CHUNK].into_boxed_slice();
        let at = chunk * CHUNK as u64;
        let len = (self.size() - at).min(CHUNK as u64) as usize;
        self.base.read_at(at, &mut bytes[..len])?;
        Ok(bytes)
    }

    fn write_piece(&self, chunk: u64, inside: usize, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < CHUNK && !self.shard(chunk).read().contains_key(&chunk) {
            // Read without the lock: it is a leaf. Whoever else was faster has the same base.
            let base = self.base_chunk(chunk)?;
            self.shard(chunk).write().entry(chunk).or_insert(Chunk::Bytes(base));
        }
        let mut chunks = self.shard(chunk).write();
        let entry = chunks.entry(chunk).or_insert(Chunk::Zeros);
        if matches!(entry, Chunk::Zeros) {
            *entry = Chunk::Bytes(vec![0; CHUNK].into_boxed_slice());
        }
        if let Chunk::Bytes(memory) = entry {
            memory[inside..inside + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl BlockDevice for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn logical_sector_size(&self) -> u32 {
        self.base.logical_sector_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (chunk, inside) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let n = (CHUNK - inside).min(buf.len() - done);
            let here = match self.shard(chunk).read().get(&chunk) {
                Some(Chunk::Bytes(memory)) => {
                    buf[done..done + n].copy_from_slice(&memory[inside..inside + n]);
                    true
                }
                Some(Chunk::Zeros) => {
                    buf[done..done + n].fill(0);
                    true
                }
                None => false,
            };
            if here {
                done += n;
            } else {
                let run = self.run_of_base(chunk, inside, buf.len() - done);
                self.base.read_at(at, &mut buf[done..done + run])?;
                done += run;
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let inside = (at % CHUNK as u64) as usize;
            let n = (CHUNK - inside).min(buf.len() - done);
            self.write_piece(at / CHUNK as u64, inside, &buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Nothing to do: what nobody needs may as well read as before.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size(), offset, len)
    }

    fn makes_zeros(&self) -> bool {
        true
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size(), offset, len)?;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (chunk, inside) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let n = ((CHUNK - inside) as u64).min(end - at) as usize;
            if n == CHUNK {
                self.shard(chunk).write().insert(chunk, Chunk::Zeros);
            } else {
                self.write_piece(chunk, inside, &[0; CHUNK][..n])?;
            }
            at += n as u64;
        }
        Ok(())
    }

    fn advise(&self, offset: u64, len: u64) {
        self.base.advise(offset, len);
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay").field("base", &self.base).finish_non_exhaustive()
    }
}
