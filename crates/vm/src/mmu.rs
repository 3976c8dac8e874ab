//! What the fault engine drives: the mappings of one file, as a memory management unit sees them.
//!
//! The engine ([`AddressSpace::fault`]) decides what a fault gets from the file's own state, under the file's locks; it knows
//! nothing of system calls, threads, or what brought the fault. An [`Mmu`] carries out what was decided. There are two: the
//! real one (memory files and userfaultfd) and a simulated one, on which schedules are explored.
//!
//! Pages are those of the file's page cache: the larger of 4096 bytes and a block.
//!
//! [`AddressSpace::fault`]: crate::AddressSpace::fault

use std::io;
use std::ops::Range;

use extant_sys::transfers::UnderWay;
use extant_sys::{PageMem, Showing, Stored};

/// One mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapId(pub u64);

/// What a faulting thread wanted to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
}

/// What a fault gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The page is mapped as wanted: the thread goes on.
    Mapped,
    /// The thread looks again at once: what it met is gone.
    Retry,
    /// The fault cannot be answered before something happens that the engine must not wait for (a thaw, a commit): it is to be asked
    /// again then.
    Parked,
    /// There is no space, but blocks are held that can be used before long: it is to be asked again when
    /// [`PageCache::may_have_space`](crate::PageCache::may_have_space) says so. Only for who has a [`SpaceWait`](crate::SpaceWait).
    AwaitsSpace,
    /// Past the end of the file, or the page cannot be had: SIGBUS.
    Sigbus,
    /// There is no memory for the page: SIGBUS, or the system's way of running out.
    Oom,
}

/// The mappings of one file and the memory behind them.
///
/// Every method may be called by many threads at once, with page locks, the writeback gate or `invalidate_lock` held; none takes a
/// ranked lock below [`Rank::CACHE`], waits for a fault, or touches memory of a mapping.
///
/// [`Rank::CACHE`]: extant_sync::Rank::CACHE
pub trait Mmu: Send + Sync {
    /// The memory of page `index`; the content is undefined until it is filled. Under the page's lock, for a page that has none.
    ///
    /// # Errors
    /// The system's, when there is none.
    fn memory(&self, index: u32) -> io::Result<PageMem>;

    /// Says that the memory of so many pages will be written now, all of them: advice, which need not do anything. Under their locks.
    fn populate(&self, _pages: Range<u32>) {}

    /// Lets `mapping` see pages that are in memory and uptodate; `writable`: also store. Under the pages' locks. Says nothing to
    /// a thread that waits: [`Self::wake`] does. A page that another thread has installed already is no error; one that is
    /// installed read-only becomes writable if asked for.
    ///
    /// # Errors
    /// The system's; the mapping may then see some of the pages.
    fn install(&self, mapping: MapId, pages: Range<u32>, writable: bool) -> io::Result<()>;

    /// Takes the right to store away from every mapping: the next store to any of the pages is a fault. Under the pages' locks.
    ///
    /// # Errors
    /// The system's; then some may still store.
    fn protect(&self, pages: Range<u32>) -> io::Result<()>;

    /// Takes pages away from every mapping; their memory stays. The next access is a fault.
    ///
    /// # Errors
    /// The system's; then some may still see the pages.
    fn unmap(&self, pages: Range<u32>) -> io::Result<()>;

    /// Lets `mapping` see pages of the device, from byte `at` of it on, in place of those of the memory file, for stores too where it may;
    /// `access`: what the fault wants. `insist`: also if there are too many windows already, as long as the system gives one. Under shared
    /// `invalidate_lock`; not by the thread that reads faults.
    ///
    /// # Errors
    /// The system's; the mapping may then see some of the pages.
    fn show_device(
        &self,
        mapping: MapId,
        pages: Range<u32>,
        at: u64,
        access: Access,
        insist: bool,
    ) -> io::Result<Showing>;

    /// What programs have stored to pages of the device, of which nobody hears, since this was asked last. What they store from now on is
    /// said the next time.
    fn have_stored_to_device(&self) -> Stored;

    /// Takes pages of the device away from every mapping: the next access is a fault. Not by the thread that reads faults.
    ///
    /// # Errors
    /// The system's; then some may still see them.
    fn hide_device(&self, pages: Range<u32>) -> io::Result<()>;

    /// Takes pages away from every mapping and gives their memory back. Private copies that a mapping made stay, but those past the
    /// end of the file. Nobody uses the memory: under exclusive `invalidate_lock`, or by who has made sure.
    ///
    /// # Errors
    /// The system's; then some may still see the pages.
    fn discard(&self, pages: Range<u32>) -> io::Result<()>;

    /// Sets the size of the memory file in bytes: an access to pages wholly past it is SIGBUS without a fault. Grows before `i_size`,
    /// shrinks after it.
    ///
    /// # Errors
    /// The system's; then it has its old size.
    fn resize(&self, size: u64) -> io::Result<()>;

    /// What transfers by a device to memory of the mappings may be under way that were set up before this call.
    fn under_way(&self) -> UnderWay {
        UnderWay::Perhaps
    }

    /// Whether there is none.
    fn is_quiet(&self) -> bool {
        self.under_way() == UnderWay::Nothing
    }

    /// Lets go of all memory: no page is in it and no mapping shows any. Under exclusive `invalidate_lock` and the inode lock.
    fn release(&self) {}

    /// Lets pages that an access was refused for be asked for again at once. With nothing held.
    fn heal(&self, pages: Range<u32>) {
        let _ = pages;
    }

    /// Lets threads that wait for any of the pages in `mapping` look again.
    fn wake(&self, mapping: MapId, pages: Range<u32>);
}
