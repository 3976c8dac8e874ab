//! Checksums of what writeback wrote last of a page that a mapping could write, block by block: what a device changes of it afterwards
//! leaves no other trace.

use extant_format::csum::crc32c;
use extant_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use extant_sys::MemSlice;

use crate::clock;
use crate::page::Blocks;

/// The low bits of the word: the blocks that have one. Above them the time.
const SET: u64 = 0xF;
const TIME_SHIFT: u32 = 8;

/// The checksums of one page. They are noted and forgotten under its lock.
#[derive(Default)]
pub(crate) struct Sums {
    word: AtomicU64,
    of: [AtomicU32; 4],
}

impl Sums {
    /// The blocks that have one.
    pub(crate) fn noted(&self) -> Blocks {
        (self.word.load(Ordering::Acquire) & SET) as Blocks
    }

    /// That of a block, if it has one.
    pub(crate) fn of(&self, block: u32) -> Option<u32> {
        (self.noted() & 1 << block != 0).then(|| self.of[block as usize].load(Ordering::Relaxed))
    }

    /// Notes those of the blocks `set`, as they are in `mem`. No mapping has the right to store to them by now.
    pub(crate) fn note(&self, mem: MemSlice<'_>, set: Blocks, block_size: usize) {
        for block in (0..4).filter(|block| set & 1 << block != 0) {
            self.of[block as usize].store(of_block(mem, block, block_size), Ordering::Relaxed);
        }
        self.noted_now(set);
    }

    /// Notes those that the blocks `set` have while they are zeros: not those of memory to which a device may be writing.
    pub(crate) fn note_zeros(&self, set: Blocks, block_size: usize) {
        if set == 0 {
            return;
        }
        let sum = of_zeros(block_size);
        for block in (0..4).filter(|block| set & 1 << block != 0) {
            self.of[block as usize].store(sum, Ordering::Relaxed);
        }
        self.noted_now(set);
    }

    fn noted_now(&self, set: Blocks) {
        let noted = self.word.load(Ordering::Relaxed) & SET | u64::from(set);
        self.word.store(now() << TIME_SHIFT | noted, Ordering::Release);
    }

    /// Nothing is known any more of what was written of these blocks.
    pub(crate) fn forget(&self, set: Blocks) {
        let word = self.word.load(Ordering::Relaxed);
        if word & u64::from(set) != 0 {
            self.word.store(word & !u64::from(set), Ordering::Release);
        }
    }

    /// When the last was noted, in milliseconds of the [`clock`].
    pub(crate) fn noted_at(&self) -> u64 {
        self.word.load(Ordering::Relaxed) >> TIME_SHIFT
    }
}

/// The checksum of a block of a page.
pub(crate) fn of_block(mem: MemSlice<'_>, block: u32, block_size: usize) -> u32 {
    const PIECE: usize = 4096;
    let mut bytes = [0; PIECE];
    let start = block as usize * block_size;
    let mut sum = !0;
    for at in (start..start + block_size).step_by(PIECE) {
        let piece = &mut bytes[..PIECE.min(block_size)];
        mem.copy_to(at, piece);
        sum = crc32c(sum, piece);
    }
    sum
}

/// The checksum of a block of zeros.
fn of_zeros(block_size: usize) -> u32 {
    let zeros = [0; 1024];
    (0..block_size / zeros.len()).fold(!0, |sum, _| crc32c(sum, &zeros))
}

/// Milliseconds.
fn now() -> u64 {
    clock::now().as_millis() as u64
}
