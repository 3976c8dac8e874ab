//! Reading around a block that is wanted: its neighbours come with it, as long as that pays.
//!
//! Inode tables are read so. A walk over files that were made together wants the neighbours next; where a directory's files
//! are spread over a table, and the cache cannot keep the table, nearly all that is read ahead would be evicted unused. So
//! what becomes of blocks that were read ahead is counted, and the window is halved while most of them are lost, and doubled
//! again once more are used than lost. It is never narrower than two blocks: something must be read ahead to be counted.

use extant_format::Pblk;
use extant_sync::atomic::{AtomicU32, Ordering};

use super::shard::Ahead;
use super::{BlockCache, Buf, MAX_VECTORS};
use crate::Result;

/// How many misses lie between two looks at the counts.
const MISSES: u32 = 64;
/// A window is halved when more than this many blocks are lost for one that is used.
const LOST_FOR_ONE: u32 = 4;

/// How wide to read.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// How often the widest window has been halved.
    halved: AtomicU32,
    misses: AtomicU32,
}

impl Window {
    /// The blocks to read with one miss, at most `most`, a power of two.
    fn width(&self, most: u32) -> u32 {
        (most >> self.halved.load(Ordering::Relaxed).min(31)).max(2)
    }

    /// Whether it is time to look at the counts.
    fn is_due(&self) -> bool {
        self.misses.fetch_add(1, Ordering::Relaxed) % MISSES == MISSES - 1
    }

    /// Changes the width after what became of blocks that were read ahead, of windows of at most `most`.
    fn adapt(&self, seen: Ahead, most: u32) {
        let halved = self.halved.load(Ordering::Relaxed);
        if seen.lost / LOST_FOR_ONE > seen.used && most >> halved > 2 {
            self.halved.store(halved + 1, Ordering::Relaxed);
        } else if seen.used > seen.lost {
            self.halved.store(halved.saturating_sub(1), Ordering::Relaxed);
        }
    }
}

impl BlockCache {
    /// The block `pblk`, as [`Self::read`]; where it is not cached, its neighbours are read in the same transfer: at most the
    /// aligned `most` blocks around it (a power of two), fewer while the cache evicts them unused.
    ///
    /// # Errors
    /// Those of [`Self::read`]; errors of neighbours are left for who wants them.
    pub fn read_around(&self, pblk: Pblk, most: u32) -> Result<Buf> {
        if let Some(buf) = self.cached(pblk) {
            return Ok(buf);
        }
        let most = most.min(MAX_VECTORS as u32);
        if most > 1 {
            if self.window.is_due() {
                self.window.adapt(self.take_ahead(), most);
            }
            let width = u64::from(self.window.width(most).min(most));
            let start = pblk.0 / width * width;
            self.load_runs(start..start + width, |at| self.insert_around(at, pblk));
        }
        self.read(pblk)
    }

    /// A buffer to load, `None` where the block is cached. That of `wanted` itself is not read ahead.
    fn insert_around(&self, at: Pblk, wanted: Pblk) -> Option<Buf> {
        if at == wanted {
            return self.lookup_or_insert(at).ok().filter(|(_, mine)| *mine).map(|(buf, _)| buf);
        }
        self.shard(at).lock().insert_ahead(at, self.shard_budget())
    }

    /// What became of blocks that were read ahead since this was last asked.
    fn take_ahead(&self) -> Ahead {
        let mut sum = Ahead::default();
        for shard in &self.shards {
            let seen = std::mem::take(&mut shard.lock().ahead);
            sum.used += seen.used;
            sum.lost += seen.lost;
        }
        sum
    }
}
