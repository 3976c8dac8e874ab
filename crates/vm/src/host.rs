//! What the page cache needs of a file.

use std::io;

use extant_device::MemSlice;
use extant_format::{Lblk, Pblk, Tid};
use extant_sync::Arc;

use crate::AddressSpace;
use crate::grace::{SpaceHope, SpaceWait};

/// Where a run of logical blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Nowhere: reads as zeros.
    Hole,
    /// On disk from this block on.
    Data(Pblk),
    /// Has blocks from this one on, but reads as zeros until converted.
    Unwritten(Pblk),
}

/// A run of blocks with one kind of backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// What the run is.
    pub backing: Backing,
    /// Blocks in it, from the one asked for, at least 1.
    pub len: u32,
}

/// Where a run of dirty blocks is to be written.
#[derive(Debug)]
pub struct Placement<C> {
    /// First block on disk.
    pub pblk: Pblk,
    /// Blocks, at least 1, at most as many as asked for.
    pub len: u32,
    /// What must be published once the data is on the device; `None` for blocks that are mapped and written already.
    pub claim: Option<C>,
}

/// A file as the page cache sees it. Implemented by the in-core inode.
///
/// Every method may be called by many threads at once. None may wait for memory or for the dirty limit.
pub trait Host: Send + Sync + 'static {
    /// The filesystem's error.
    type Error: From<io::Error> + Send;

    /// Blocks claimed and not published. Dropping one gives the blocks back; the reservation stays.
    type Claim: Send;

    /// The file's pages.
    fn space(&self) -> &AddressSpace;

    /// The inode number: orders several inodes' locks, names the file in messages.
    fn number(&self) -> u64;

    /// `i_size` in bytes. Takes no lock.
    fn size(&self) -> u64;

    /// Raises `i_size` to at least `end`. Called under the lock of the page that contains the new end, by a writer whose
    /// caller holds the inode lock.
    fn grow_size(&self, end: u64);

    /// Sets `i_size`. Called under exclusive `invalidate_lock` and the gate, before pages are dropped.
    fn set_size(&self, size: u64);

    /// `i_disksize` in bytes: what the inode on disk says, or will with the running transaction. Takes no lock.
    fn disk_size(&self) -> u64;

    /// The backing of `lblk` and of up to `len` blocks that follow in one run. Takes 80 shared.
    fn map(&self, lblk: Lblk, len: u32) -> Result<Mapped, Self::Error>;

    /// Rises with every change of the mapping. Takes no lock.
    fn map_seq(&self) -> u64;

    /// Reserves space for these blocks, which are holes, exactly, with what their placement may need beside (tree blocks,
    /// quota). Called under page locks; takes 80, 82, 92.
    fn reserve(&self, lblk: Lblk, len: u32) -> Result<(), Self::Error>;

    /// Gives back the reservation of these blocks, which are dropped. Takes 80, 82, 92.
    fn unreserve(&self, lblk: Lblk, len: u32);

    /// The last transaction that is noted to have changed the map or `i_disksize`: once it is durable, a crash leaves the file with all the
    /// blocks that [`Self::map`] says now, as far as nobody takes them away. Under the gate: who has published a block there has noted
    /// that. Takes no lock.
    ///
    /// # Errors
    /// That the filesystem is gone.
    fn map_tid(&self) -> Result<Tid, Self::Error> {
        Ok(Tid(0))
    }

    /// Whether such a transaction is durable. Takes no lock.
    fn is_durable(&self, tid: Tid) -> bool {
        let _ = tid;
        true
    }

    /// Makes it durable. `false`: that is under way, and faults that were answered [`Fault::Parked`](crate::Fault::Parked) are asked again
    /// when it is done, or cannot be. With `stay` it is waited for, and the answer not `false`. Nothing is held.
    ///
    /// # Errors
    /// The journal's.
    fn commit_map(&self, tid: Tid, stay: bool) -> Result<bool, Self::Error> {
        let _ = (tid, stay);
        Ok(true)
    }

    /// Finds a place for these dirty blocks. `delayed`: they are reserved holes, and a claim is made; else they have blocks,
    /// which are claimed for conversion when unwritten (split at the run's ends now). Called under the gate, with no
    /// page lock; may start a handle (60).
    fn claim(&self, lblk: Lblk, len: u32, delayed: bool) -> Result<Placement<Self::Claim>, Self::Error>;

    /// In one handle: enters the claimed blocks, whose data is on the device, in map and bitmaps, consumes their
    /// reservations, and raises `i_disksize` to `end` (already limited to `i_size`; 0: leave it). Called under the gate,
    /// with no page lock. An error means nothing was published. Either way the caller then drops the claims at once.
    fn publish(&self, claims: &mut [Self::Claim], end: u64) -> Result<(), Self::Error>;

    /// For a file whose data goes through the journal: the most blocks of which one handle takes the data. Then nothing is
    /// written to the device here: [`Self::publish_data`] gets the data instead. `None`: an ordinary file.
    fn journalled(&self) -> Option<u32> {
        None
    }

    /// As [`Self::publish`], for a file that is [`Self::journalled`]: `data`, the content of whole blocks from a place on,
    /// becomes part of the same transaction.
    fn publish_data(
        &self,
        claims: &mut [Self::Claim],
        data: &[(Pblk, Vec<MemSlice<'_>>)],
        end: u64,
    ) -> Result<(), Self::Error> {
        let _ = data;
        self.publish(claims, end)
    }

    /// The content of a block of a [`Self::journalled`] file, if the device may not have it yet. `None`: what is read from the
    /// device after this call is right.
    fn newer(&self, pblk: Pblk) -> Option<std::sync::Arc<[u8]>> {
        let _ = pblk;
        None
    }

    /// How many claims one [`Self::publish`] may get: as many as fit in one handle.
    fn claims_per_publish(&self) -> usize;

    /// The device did not take content (`data_err=`). Called with the gate held, no page locks; must not wait.
    fn content_lost(&self, error: &Self::Error) {
        let _ = error;
    }

    /// The errno to remember for a failed writeback.
    fn errno(error: &Self::Error) -> i32;

    /// Whether the content is kept in the inode. Takes no lock; certain only under the lock of page 0.
    fn is_inline(&self) -> bool {
        false
    }

    /// Content that is kept in the inode and not in blocks: all of it. Under the lock of page 0, for an inode that has mappings.
    /// Takes 70 shared.
    ///
    /// # Errors
    /// From reading the inode.
    fn inline(&self) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(None)
    }

    /// Moves content that is in the inode to blocks: claim, write, publish. On an error it is where it was. Under the lock of
    /// page 0; may start a handle (60).
    ///
    /// # Errors
    /// No space, the device's.
    fn leave_inline(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether the file may change: the filesystem is writable, and the file neither immutable nor gone. Asked under shared
    /// `invalidate_lock`. Takes no lock, and does not wait.
    fn may_store(&self) -> bool {
        true
    }

    /// Notes that a program may store to the file through a mapping: its times move, in memory. Nothing is held.
    fn stored(&self) {}

    /// Whether an error says that space ran out; then [`Self::make_space`] may help.
    fn is_no_space(error: &Self::Error) -> bool {
        Self::errno(error) == 28
    }

    /// Makes freed blocks usable, with nothing held from 28 on.
    ///
    /// # Errors
    /// The journal's.
    fn make_space(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// After [`Self::make_space`], for who has found no space: what is to be hoped for ([`PageCache::hope_for_space`]); with `stay` it is
    /// waited for, and the answer not [`SpaceHope::Later`]. With nothing held from 28 on.
    ///
    /// [`PageCache::hope_for_space`]: crate::PageCache::hope_for_space
    fn await_space(&self, wait: &mut SpaceWait, stay: bool) -> SpaceHope {
        let _ = (wait, stay);
        SpaceHope::None
    }

    /// Tells the filesystem of an error that a fault met, which no caller will be told of.
    fn noted(&self, error: &Self::Error) {
        let _ = error;
    }

    /// Keeps blocks that a device may write from being used again once they are freed, until the result is dropped.
    fn hold(&self, pblk: Pblk, len: u32) -> Box<dyn Send + Sync> {
        let _ = (pblk, len);
        Box::new(())
    }

    /// Runs `work` with the inode lock (20) held exclusively and direct I/O drained, if that is to be had at once; `None` if not. Nothing
    /// is held.
    fn try_alone<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let _ = work;
        None
    }

    /// Runs what a store fault does between what has to come before and after it (freeze, rank 25); `None` when that must not
    /// begin now.
    fn in_fault<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        Some(work())
    }

    /// Runs a piece of background writeback between what has to come before and after it (freeze, rank 28). Nothing is held
    /// at 28 or above.
    fn in_background<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }
}

/// What the page cache keeps of an inode: implemented for every [`Host`].
pub trait Owner: Send + Sync {
    /// The inode's pages.
    fn pages(&self) -> &AddressSpace;

    /// The inode number.
    fn number(&self) -> u64;

    /// Writes up to about `most` dirty pages; whether that went well. A failure is remembered in the pages' [`ErrSeq`].
    ///
    /// [`ErrSeq`]: crate::ErrSeq
    fn write_some(&self, most: usize) -> bool;

    /// Writes everything that is dirty now; whether that went well.
    fn write_all(&self) -> bool;

    /// What [`AddressSpace::find_unseen_changes`] does, for all of the file.
    ///
    /// # Errors
    /// The same.
    fn find_unseen(&self) -> io::Result<()>;

    /// Puts the first of its dirty pages into writeback, up to about `most`, and finds them places; `None` when nothing is dirty.
    /// Takes the gate, which the result holds.
    fn begin_write(&self, most: usize) -> Option<Box<dyn Pending + '_>>;

    /// Runs `work` as [`Host::in_background`] would.
    fn in_background_dyn(&self, work: &mut dyn FnMut());
}

/// Pages of one inode that have places and are not written yet.
pub trait Pending {
    /// The `n`th run to write, from 0 on: first block on the device, and blocks.
    fn run(&self, n: usize) -> Option<(Pblk, u32)>;

    /// The memory of a run, appended.
    fn memory<'a>(&'a self, run: usize, into: &mut Vec<MemSlice<'a>>);

    /// Says that writing a run failed.
    fn failed(&mut self, run: usize, error: io::Error);

    /// Publishes what was written and ends the writeback; whether everything went well.
    fn finish(self: Box<Self>) -> bool;
}

impl<H: Host> Owner for H {
    fn pages(&self) -> &AddressSpace {
        self.space()
    }

    fn number(&self) -> u64 {
        Host::number(self)
    }

    fn write_some(&self, most: usize) -> bool {
        self.in_background(|| self.space().write_some(self, most)).is_ok()
    }

    fn write_all(&self) -> bool {
        self.in_background(|| self.space().sync(self, 0..u64::MAX)).is_ok()
    }

    fn find_unseen(&self) -> io::Result<()> {
        let found = self.space().find_unseen_changes(self, 0..u64::MAX);
        found.map_err(|error| io::Error::from_raw_os_error(H::errno(&error)))
    }

    fn begin_write(&self, most: usize) -> Option<Box<dyn Pending + '_>> {
        self.space().begin_write(self, most)
    }

    fn in_background_dyn(&self, work: &mut dyn FnMut()) {
        self.in_background(work);
    }
}

/// A dirty inode, held until it is clean.
pub(crate) type Held = Arc<dyn Owner>;
