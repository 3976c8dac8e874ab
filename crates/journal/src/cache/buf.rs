//! One metadata block in memory.

use std::fmt;
use std::sync::Arc;

use extant_format::{Pblk, Tid};
use extant_sync::atomic::{AtomicU32, Ordering};
use extant_sync::{Condvar, Mutex, MutexGuard, Rank};

use crate::{Error, Result};

const VERIFIED: u32 = 1;
const REFERENCED: u32 = 2;
/// Read because its neighbour was wanted; nobody has asked for it yet.
const AHEAD: u32 = 4;
const ORDER_SHIFT: u32 = 8;

/// Without a journal, a sync writes changed blocks class by class, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum WriteOrder {
    /// Block and inode bitmaps: first, so that a crash leaks blocks instead of sharing them.
    Bitmap = 0,
    /// Extent and indirect blocks, directories, xattrs: everything else.
    #[default]
    Map = 1,
    /// Inode tables, group descriptors, superblock: last, they point at the others.
    Inode = 2,
}

impl WriteOrder {
    pub(crate) const ALL: [Self; 3] = [Self::Bitmap, Self::Map, Self::Inode];
}

/// A metadata block in the [`BlockCache`](crate::BlockCache); clones are the same block.
///
/// As long as a `Buf` exists its block stays in the cache. Its content is read with [`Self::with`] or
/// [`Self::bytes`], and changed only through [`Handle::modify`](crate::Handle::modify).
#[derive(Clone)]
pub struct Buf(Arc<Inner>);

struct Inner {
    pblk: Pblk,
    flags: AtomicU32,
    state: Mutex<State>,
    /// The content has arrived or failed, or a checkpoint's write has ended.
    changed: Condvar,
}

/// What rank 100 protects.
pub(crate) struct State {
    /// The current content; empty until it has been loaded.
    pub(crate) data: Arc<[u8]>,
    pub(crate) load: Load,
    /// The transaction whose changes `data` contains and whose commit has not yet taken its copy.
    pub(crate) running: Option<Tid>,
    /// What the transaction that is being committed wrote.
    pub(crate) committing: Option<(Tid, Arc<[u8]>)>,
    /// What the last committed transaction wrote, as long as it is not in its place on the device.
    pub(crate) checkpoint: Option<(Tid, Arc<[u8]>)>,
    /// A write of `checkpoint` to its place is under way.
    pub(crate) writing: bool,
    /// The transaction that freed the block.
    pub(crate) forgotten: Option<Tid>,
}

pub(crate) enum Load {
    Pending,
    Ready,
    Failed(Error),
}

impl Buf {
    pub(crate) fn pending(pblk: Pblk) -> Self {
        Self::with_flags(pblk, REFERENCED)
    }

    /// A block that is read ahead: the first to go unless somebody asks for it.
    pub(crate) fn pending_ahead(pblk: Pblk) -> Self {
        Self::with_flags(pblk, AHEAD)
    }

    fn with_flags(pblk: Pblk, flags: u32) -> Self {
        let state = State {
            data: Arc::new([]),
            load: Load::Pending,
            running: None,
            committing: None,
            checkpoint: None,
            writing: false,
            forgotten: None,
        };
        Self(Arc::new(Inner {
            pblk,
            flags: AtomicU32::new(flags | (WriteOrder::Map as u32) << ORDER_SHIFT),
            state: Mutex::new(Rank::BUFFER, state),
            changed: Condvar::new(),
        }))
    }

    /// The block's number.
    #[inline]
    #[must_use]
    pub fn pblk(&self) -> Pblk {
        self.0.pblk
    }

    /// A snapshot of the content. Changes made later do not show in it (the first one copies the block).
    /// Takes rank 100 for a moment.
    #[must_use]
    pub fn bytes(&self) -> Arc<[u8]> {
        Arc::clone(&self.state().data)
    }

    /// Looks at the content without copying it. Rank 100 is held while `look` runs: it must be short, and must not touch
    /// another buffer.
    #[inline]
    pub fn with<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        look(&self.state().data)
    }

    /// Runs `check` on the content unless it has succeeded on this buffer before. Meant for checksums and structure: what
    /// is changed through handles stays valid.
    pub fn verify_once<E>(
        &self,
        check: impl FnOnce(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if self.is_verified() {
            return Ok(());
        }
        check(&self.bytes())?;
        self.set_verified();
        Ok(())
    }

    /// Whether [`Self::verify_once`] has nothing left to do.
    #[inline]
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.0.flags.load(Ordering::Acquire) & VERIFIED != 0
    }

    pub(crate) fn set_verified(&self) {
        self.0.flags.fetch_or(VERIFIED, Ordering::Release);
    }

    /// When a sync without journal writes this block. [`WriteOrder::Map`] unless set.
    #[inline]
    pub fn set_order(&self, order: WriteOrder) {
        if self.order() == order {
            return;
        }
        let mask = 0xFF << ORDER_SHIFT;
        let set = |flags: u32| Some((flags & !mask) | (order as u32) << ORDER_SHIFT);
        let _ = self.0.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    pub(crate) fn order(&self) -> WriteOrder {
        match (self.0.flags.load(Ordering::Relaxed) >> ORDER_SHIFT) & 0xFF {
            0 => WriteOrder::Bitmap,
            2 => WriteOrder::Inode,
            _ => WriteOrder::Map,
        }
    }

    /// Marks the buffer as used, for the cache's clock. Whether it had been read ahead, and this is its first use. Under the
    /// shard's lock.
    #[inline]
    pub(crate) fn touch(&self) -> bool {
        let flags = self.0.flags.load(Ordering::Relaxed);
        if flags & REFERENCED == 0 {
            self.0.flags.fetch_or(REFERENCED, Ordering::Relaxed);
        }
        let first = flags & AHEAD != 0;
        if first {
            self.0.flags.fetch_and(!AHEAD, Ordering::Relaxed);
        }
        first
    }

    /// Whether it was read ahead and nobody has asked for it.
    pub(crate) fn is_ahead(&self) -> bool {
        self.0.flags.load(Ordering::Relaxed) & AHEAD != 0
    }

    /// Takes the mark of [`Self::touch`] away; whether it was there.
    pub(crate) fn untouch(&self) -> bool {
        self.0.flags.fetch_and(!REFERENCED, Ordering::Relaxed) & REFERENCED != 0
    }

    /// Whether somebody besides the cache holds it; a transaction's lists do.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    #[track_caller]
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// Whether the last read failed; the caller then reads again.
    pub(crate) fn try_again(&self) -> bool {
        let mut state = self.state();
        let failed = matches!(state.load, Load::Failed(_));
        if failed {
            state.load = Load::Pending;
        }
        failed
    }

    /// Waits until the content is there.
    pub(crate) fn wait_loaded(&self) -> Result<()> {
        let mut state = self.state();
        loop {
            match &state.load {
                Load::Ready => return Ok(()),
                Load::Failed(error) => return Err(error.clone()),
                Load::Pending => self.0.changed.wait(&mut state),
            }
        }
    }

    /// Sets what a read brought, unless the block has been made anew meanwhile.
    pub(crate) fn loaded(&self, outcome: Result<Arc<[u8]>>) {
        let mut state = self.state();
        if matches!(state.load, Load::Pending) {
            match outcome {
                Ok(data) => {
                    state.data = data;
                    state.load = Load::Ready;
                }
                Err(error) => state.load = Load::Failed(error),
            }
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until no checkpoint writes this block.
    pub(crate) fn wait_written<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        while state.writing {
            self.0.changed.wait(state);
        }
    }

    pub(crate) fn notify(&self) {
        self.0.changed.notify_all();
    }
}

impl State {
    /// Whether a transaction or a checkpoint still needs this block.
    pub(crate) fn is_journalled(&self) -> bool {
        self.running.is_some() || self.committing.is_some() || self.checkpoint.is_some() || self.writing
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({})", self.0.pblk)
    }
}
