//! The page cache: per-block state in the page, delayed allocation, writeback, reclaim, `invalidate_lock`.
//!
//! | part | what |
//! |---|---|
//! | [`Host`] | how this room sees a file: sizes, map, reservations, claims, publication |
//! | [`AddressSpace`] | the pages of one inode and the operations on them |
//! | [`PageCache`] | what all inodes of one filesystem share: memory, limits, the dirty list, reclaim, writeback threads |
//! | `page` | one page: its memory and one word of state |
//! | `index` | the pages of an inode by number |
//! | `dax`, `dax_fault`, `switch` | a file without pages; the change between both modes |
//!
//! A page is the larger of 4096 bytes and a block. For each of its blocks (one, two or four) the page's word says
//! uptodate, dirty, delayed (reserved, no place on disk yet), claimed (between claim and publication), backed (has a place),
//! in flight (being written); it cannot be separated from the page. Invariants, outside of a page's lock:
//! delayed blocks are dirty, dirty blocks are uptodate, in-flight blocks exist only while the page is in writeback.
//!
//! Locks, by rank: `invalidate_lock` 30 ([`AddressSpace::exclusive`], shared inside reads), the writeback gate 40, page locks 50,
//! the index of pages (`Rank::CACHE`) and leaves. What each operation needs from its caller stands there.
//!
//! **No page lock is held over a claim, the write of its blocks, or publication**: the page is then in writeback, and may be
//! read and written. Range operations hold the gate while they drop pages, so they never meet a page in writeback.
//!
//! **Memory and the dirty limit are waited for with nothing held**: [`PageCache::throttle`], before and after operations.

mod cache;
mod clock;
mod copies;
mod dax;
mod dax_fault;
mod direct;
mod errseq;
mod fault;
mod grace;
mod host;
mod index;
mod looks;
mod mapped;
mod mmu;
mod mutant;
mod page;
mod pause;
mod pin;
#[cfg(any(test, not(feature = "shuttle")))]
#[cfg_attr(feature = "shuttle", expect(dead_code, reason = "the explored scenario uses a part of it"))]
mod queue;
mod range;
mod read;
#[cfg(not(feature = "shuttle"))]
pub mod real;
mod remembered;
#[doc(hidden)]
pub mod sharpness;
mod sim_mmu;
mod space;
mod sums;
mod switch;
mod together;
mod wait;
mod write;
mod writeback;

pub use cache::{CacheConfig, CacheStats, PageCache};
#[cfg(feature = "shuttle")]
pub use clock::pass;
pub use errseq::{ErrCursor, ErrSeq};
pub use fault::{FaultWait, MapAdvice, MapView};
pub use grace::{SpaceHope, SpaceWait};
pub use host::{Backing, Host, Mapped, Owner, Pending, Placement};
pub use mapped::InlineGuard;
pub use mmu::{Access, Fault, MapId, Mmu};
#[cfg(feature = "shuttle")]
pub use mutant::Mutant;
pub use pin::{Pin, PinBar};
pub use range::Dropped;
pub use read::{Leave, PageRefs, ReadAhead, ReadFlags};
pub use sim_mmu::{Landing, SimMmu, Target};
pub use space::{AddressSpace, ExclusiveGuard, Gate, SharedGuard};
pub use switch::{Switch, SwitchTimes};
pub use write::WriteOutcome;

#[cfg(all(test, not(feature = "shuttle")))]
mod testing;
