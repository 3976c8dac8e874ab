//! Buffered reads beside direct writes.
//!
//! Before a direct write the kernel throws the pages of its range out of its cache; after one for which the caller waits it does
//! so again. After an asynchronous one (io_submit(2), io_uring) it does not: a buffered read that was served between the two
//! leaves old content in the cache for good. So the write is answered only after the server had the kernel drop the range.
//!
//! The same goes for what the kernel was not told of: a fallocate(2) that failed half-way, an append that went elsewhere than where the
//! kernel thought the end.
//!
//! A reader must not wait for that: the kernel waits for locked pages, whose READs other readers serve. A thread of its own
//! does it, started with the first such request. Files that are only read directly, or only by buffers, cost a counter.

use extant_sync::atomic::{AtomicBool, Ordering};
use extant_sync::{Arc, Condvar, Mutex, Rank, thread};
use rustc_hash::FxHashMap;
use rustix::io::Errno;

use crate::notify::Notifier;
use crate::reply::{Detached, Empty};
use crate::wire::WriteOut;

const SHARDS: usize = 16;

/// What open files of one inode share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// It was open for buffered reading while a file of now was open: the kernel may cache pages.
    buffered: AtomicBool,
    /// Somebody was told where its blocks are on the device.
    blocks_told: AtomicBool,
}

impl Shared {
    /// A buffered open or read.
    pub(super) fn note_buffered(&self) {
        if !self.buffered.load(Ordering::Relaxed) {
            self.buffered.store(true, Ordering::Release);
        }
    }

    /// Whether somebody was told where its blocks are.
    pub(super) fn has_told_blocks(&self) -> bool {
        self.blocks_told.load(Ordering::Acquire)
    }

    /// Whether a direct write must have the kernel's pages dropped.
    pub(super) fn is_buffered(&self) -> bool {
        self.buffered.load(Ordering::Acquire)
    }
}

/// The state that open files share, by inode number.
#[derive(Debug)]
pub(super) struct SharedByInode(Vec<Mutex<FxHashMap<u32, Arc<Shared>>>>);

impl SharedByInode {
    pub(super) fn new() -> Self {
        let shard = || Mutex::new(Rank::LEAF, FxHashMap::default());
        Self(std::iter::repeat_with(shard).take(SHARDS).collect())
    }

    /// The state of an inode that is being opened.
    pub(super) fn open(&self, ino: u32) -> Arc<Shared> {
        Arc::clone(self.0[ino as usize % SHARDS].lock().entry(ino).or_default())
    }

    /// Somebody is told where an inode's blocks are. One that is not open is told to nobody that keeps it.
    pub(super) fn note_blocks_told(&self, ino: u32) {
        if let Some(shared) = self.0[ino as usize % SHARDS].lock().get(&ino) {
            shared.blocks_told.store(true, Ordering::Release);
        }
    }

    /// Whether a file of the inode is open.
    pub(super) fn is_open(&self, ino: u32) -> bool {
        self.0[ino as usize % SHARDS].lock().contains_key(&ino)
    }

    /// An open file of the inode has gone, its state is given back.
    pub(super) fn close(&self, ino: u32, state: Arc<Shared>) {
        let mut shard = self.0[ino as usize % SHARDS].lock();
        drop(state);
        if shard.get(&ino).is_some_and(|left| Arc::strong_count(left) == 1) {
            shard.remove(&ino);
        }
    }
}

/// What the kernel's cache of a file has wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stale {
    /// Pages from this byte on, of so many bytes (0: up to the end).
    pub(super) pages: Option<(u64, u32)>,
    /// The size, where it is larger than the kernel was told, by zeros.
    pub(super) grown_to: Option<u64>,
}

impl Stale {
    /// Tells the kernel. Of an inode that it does not know (ENOENT) it caches nothing.
    pub(super) fn tell(self, notifier: &Notifier, node: u64) -> Result<(), Errno> {
        let unknown = |error| if error == Errno::NOENT { Ok(()) } else { Err(error) };
        // Attributes that are not known any more do not change the size that the kernel appends at, a store behind it does.
        let grown = match self.grown_to.and_then(|size| size.checked_sub(1)) {
            Some(last) => notifier.store(node, last, &[0]).or_else(unknown),
            None => Ok(()),
        };
        let dropped = match self.pages {
            Some((offset, len)) => i64::try_from(offset)
                .map_err(|_| Errno::FBIG)
                .and_then(|offset| notifier.inval_inode(node, offset, len.into()).or_else(unknown)),
            None => Ok(()),
        };
        grown.and(dropped)
    }
}

/// What is to be done once the kernel was told.
enum Then {
    Written(Detached<WriteOut>, WriteOut),
    Failed(Detached<Empty>, Errno),
    Nothing,
}

impl Then {
    fn run(self) {
        match self {
            Self::Written(reply, out) => reply.ok(&out),
            Self::Failed(reply, errno) => reply.error(errno),
            Self::Nothing => {}
        }
    }
}

struct Waiting {
    node: u64,
    stale: Stale,
    then: Then,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    ended: bool,
    thread: Option<thread::JoinHandle<()>>,
}

/// The thread that has the kernel told, and then answers.
#[derive(Clone)]
pub(super) struct Dropper {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

impl std::fmt::Debug for Dropper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dropper").finish_non_exhaustive()
    }
}

impl Dropper {
    pub(super) fn new() -> Self {
        Self { shared: Arc::new((Mutex::new(Rank::LEAF, Queue::default()), Condvar::new())) }
    }

    /// Answers a write after the kernel has dropped what it cached of its range.
    pub(super) fn answer(
        &self,
        notifier: &Notifier,
        node: u64,
        offset: u64,
        reply: Detached<WriteOut>,
        out: WriteOut,
    ) {
        let stale = Stale { pages: Some((offset, out.size)), grown_to: None };
        self.queue(notifier, Waiting { node, stale, then: Then::Written(reply, out) });
    }

    /// Answers a request that failed after the kernel was told of what it has changed all the same.
    pub(super) fn fail(
        &self,
        notifier: &Notifier,
        node: u64,
        stale: Stale,
        reply: Detached<Empty>,
        errno: Errno,
    ) {
        self.queue(notifier, Waiting { node, stale, then: Then::Failed(reply, errno) });
    }

    /// Tells the kernel soon.
    pub(super) fn tell(&self, notifier: &Notifier, node: u64, stale: Stale) {
        self.queue(notifier, Waiting { node, stale, then: Then::Nothing });
    }

    fn queue(&self, notifier: &Notifier, waiting: Waiting) {
        let (queue, changed) = &*self.shared;
        let mut held = queue.lock();
        if held.thread.is_none() && !held.ended {
            let (shared, notifier) = (Arc::clone(&self.shared), notifier.clone());
            let run = move || serve(&shared, &notifier);
            held.thread = thread::Builder::new().name("fuse-drop".into()).spawn(run).ok();
        }
        if held.thread.is_none() {
            drop(held);
            // No thread: rather an old page than no answer.
            tracing::warn!(node = waiting.node, "a buffered read may see old content");
            waiting.then.run();
            return;
        }
        held.waiting.push(waiting);
        changed.notify_all();
    }

    /// Answers what waits and ends the thread.
    pub(super) fn end(&self) {
        let (queue, changed) = &*self.shared;
        let thread = {
            let mut held = queue.lock();
            held.ended = true;
            changed.notify_all();
            held.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &(Mutex<Queue>, Condvar), notifier: &Notifier) {
    let (queue, changed) = shared;
    loop {
        let now = {
            let mut held = queue.lock();
            while held.waiting.is_empty() && !held.ended {
                changed.wait(&mut held);
            }
            std::mem::take(&mut held.waiting)
        };
        if now.is_empty() {
            return;
        }
        for one in now {
            if let Err(error) = one.stale.tell(notifier, one.node) {
                tracing::warn!(%error, node = one.node, "a buffered read may see old content");
            }
            one.then.run();
        }
    }
}
