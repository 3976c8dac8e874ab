//! The inode cache: one in-core inode per number, found through sharded tables, loaded once, bounded.
//!
//! A slot is *loading* (one thread reads the inode, others wait for it), *live*, or *evicting* (dead and unreferenced:
//! the evictor frees it; its number answers ESTALE until it is reused). Live inodes that nobody refers to stay until a
//! second-chance sweep takes them for room.
//!
//! Locking: a shard is rank 98, never held over I/O. Whoever loads holds no shard lock meanwhile.

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use extant_format::Ino;
use extant_sync::atomic::Ordering;
use extant_sync::{Condvar, Mutex, Rank};
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::heap;
use crate::inode::Inode;

/// Shards; a power of two.
const SHARDS: usize = 64;

/// How many dead inodes may wait for the evictor before those who make more wait for it.
const MOST_QUEUED: usize = 8192;

/// A counted reference to an in-core inode. Dropping the last one of a dead inode (no links) queues its eviction.
pub struct InodeRef(Arc<Inode>);

impl InodeRef {
    /// Counts one more reference. The first one of an unreferenced inode is made under its shard's lock.
    fn new(inode: &Arc<Inode>) -> Self {
        inode.refs.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inode))
    }
}

impl Clone for InodeRef {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Deref for InodeRef {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.0
    }
}

impl std::fmt::Debug for InodeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {}", self.0.ino)
    }
}

impl PartialEq for InodeRef {
    /// Whether both are the same in-core inode.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for InodeRef {}

impl Drop for InodeRef {
    fn drop(&mut self) {
        if self.0.refs.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if self.0.is_dead()
            && let Some(cache) = self.0.cache.upgrade()
        {
            cache.dropped_dead(&self.0);
        }
    }
}

enum Slot {
    Loading,
    Live(Arc<Inode>),
    /// Being freed; kept for who has to change its record, see [`InodeCache::in_core`].
    Evicting(Arc<Inode>),
}

#[derive(Default)]
struct Shard {
    slots: FxHashMap<u32, Slot>,
    /// Numbers in order of arrival, swept like a clock; may hold numbers that are gone.
    ring: std::collections::VecDeque<u32>,
}

struct LockedShard {
    shard: Mutex<Shard>,
    changed: Condvar,
}

/// Dead inodes on their way to the evictor.
#[derive(Default)]
pub(crate) struct EvictQueue {
    pub(crate) dead: std::collections::VecDeque<Arc<Inode>>,
    /// Evictions that were taken from the queue and are not finished.
    pub(crate) running: usize,
    /// An evictor empties the queue: only then is there somebody to wait for (a mount that fails before its threads
    /// start has none, and what it queued stays an orphan).
    pub(crate) served: bool,
    /// The evictor shall end when the queue is empty.
    pub(crate) stop: bool,
    /// How many wait for the queue to be empty: the evictor does not linger.
    waiting: usize,
}

/// So many dead inodes are not let wait.
const MANY_DEAD: usize = 64;
/// How long the evictor lets a dead inode wait for company. A wake for each costs two switches of threads, a fifth of creating and removing an
/// empty file through a mount on one processor.
const LINGER: Duration = Duration::from_millis(2);

/// See the module.
pub(crate) struct InodeCache {
    shards: Box<[LockedShard]>,
    per_shard: usize,
    pub(crate) queue: Mutex<EvictQueue>,
    pub(crate) queued: Condvar,
}

impl InodeCache {
    /// A cache that tries to stay below `capacity` inodes.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let shards = (0..SHARDS)
            .map(|_| LockedShard {
                shard: Mutex::new(Rank::INODE_SHARD, Shard::default()),
                changed: Condvar::new(),
            })
            .collect();
        Arc::new(Self {
            shards,
            per_shard: (capacity / SHARDS).max(8),
            queue: Mutex::new(Rank::LEAF, EvictQueue::default()),
            queued: Condvar::new(),
        })
    }

    fn shard(&self, ino: Ino) -> &LockedShard {
        // Neighbours share an inode-table block but should not share a shard.
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The inode if it is in the cache.
    pub(crate) fn cached(&self, ino: Ino) -> Option<InodeRef> {
        match self.shard(ino).shard.lock().slots.get(&ino.0) {
            Some(Slot::Live(inode)) => Some(InodeRef::new(inode)),
            _ => None,
        }
    }

    /// The inode in memory, if there is one, being freed or not; no reference is counted.
    pub(crate) fn in_core(&self, ino: Ino) -> Option<Arc<Inode>> {
        match self.shard(ino).shard.lock().slots.get(&ino.0) {
            Some(Slot::Live(inode) | Slot::Evicting(inode)) => Some(Arc::clone(inode)),
            _ => None,
        }
    }

    /// The inode `ino`; read by `load` if it is not in the cache (by one of concurrent callers only).
    pub(crate) fn load(
        self: &Arc<Self>,
        ino: Ino,
        load: impl FnOnce(Weak<Self>) -> Result<Inode>,
    ) -> Result<InodeRef> {
        let locked = self.shard(ino);
        let mut shard = locked.shard.lock();
        loop {
            match shard.slots.get(&ino.0) {
                Some(Slot::Live(inode)) => {
                    inode.referenced.store(true, Ordering::Relaxed);
                    return Ok(InodeRef::new(inode));
                }
                Some(Slot::Loading) => locked.changed.wait(&mut shard),
                Some(Slot::Evicting(_)) => return Err(Error::Stale),
                None => break,
            }
        }
        shard.slots.insert(ino.0, Slot::Loading);
        drop(shard);
        let mut unload = Unload { locked, ino, armed: true };
        heap::announce(size_of::<Inode>());
        let inode = Arc::new(load(Arc::downgrade(self))?);
        unload.armed = false;
        Ok(self.settle(locked, inode))
    }

    /// Puts a newly created inode under its number, which its creator has just allocated.
    pub(crate) fn insert_new(self: &Arc<Self>, inode: Inode) -> Result<InodeRef> {
        let ino = inode.ino;
        let locked = self.shard(ino);
        heap::announce(size_of::<Inode>());
        let inode = Arc::new(inode);
        let mut shard = locked.shard.lock();
        loop {
            match shard.slots.get(&ino.0) {
                // A stale reader of the number; it ends by itself.
                Some(Slot::Loading) => locked.changed.wait(&mut shard),
                Some(Slot::Live(_) | Slot::Evicting(_)) => {
                    return Err(Error::corrupt(
                        crate::error::Place::Inode(ino),
                        crate::error::CorruptKind::Allocation("a number in use was allocated again".into()),
                    ));
                }
                None => break,
            }
        }
        drop(shard);
        Ok(self.settle(locked, inode))
    }

    fn settle(&self, locked: &LockedShard, inode: Arc<Inode>) -> InodeRef {
        let mut shard = locked.shard.lock();
        let _ = inode.this.set(Arc::downgrade(&inode));
        shard.slots.insert(inode.ino.0, Slot::Live(Arc::clone(&inode)));
        shard.ring.push_back(inode.ino.0);
        let found = InodeRef::new(&inode);
        let victims = self.sweep(&mut shard);
        locked.changed.notify_all();
        drop(shard);
        // Dropped out of the lock: an inode owns caches with locks of their own.
        drop(victims);
        found
    }

    /// Takes unreferenced inodes out while the shard is over its share; gives up after a few steps.
    fn sweep(&self, shard: &mut Shard) -> Vec<Arc<Inode>> {
        let mut victims = Vec::new();
        let mut steps = 16;
        while shard.slots.len() > self.per_shard && steps > 0 {
            steps -= 1;
            let Some(number) = shard.ring.pop_front() else { break };
            let Some(Slot::Live(inode)) = shard.slots.get(&number) else { continue };
            let busy = inode.refs.load(Ordering::Acquire) > 0
                || inode.is_dead()
                || inode.referenced.swap(false, Ordering::Relaxed)
                || inode.is_pinned();
            if busy {
                shard.ring.push_back(number);
            } else if let Some(Slot::Live(inode)) = shard.slots.remove(&number) {
                victims.push(inode);
            }
        }
        victims
    }

    /// The last reference to a dead inode has been dropped: unless it was found again meanwhile, the inode goes to the
    /// evictor.
    fn dropped_dead(&self, inode: &Arc<Inode>) {
        let mut shard = self.shard(inode.ino).shard.lock();
        let ours =
            matches!(shard.slots.get(&inode.ino.0), Some(Slot::Live(held)) if Arc::ptr_eq(held, inode));
        // It may have got a link again (a name, a reference to a value) between the drop and here.
        let used = inode.refs.load(Ordering::Acquire) != 0 || !inode.is_dead();
        if !ours || used || !inode.may_evict() {
            return;
        }
        if let Some(Slot::Live(dead)) = shard.slots.insert(inode.ino.0, Slot::Evicting(Arc::clone(inode))) {
            drop(shard);
            let mut queue = self.queue.lock();
            queue.dead.push_back(dead);
            // In between the evictor lingers, or is at work and looks again before it sleeps.
            if queue.dead.len() == 1 || queue.dead.len() >= MANY_DEAD {
                self.queued.notify_all();
            }
        }
    }

    /// Waits until there are dead inodes, and somewhat longer for more of them; or until the evictor shall stop.
    pub(crate) fn wait_dead(&self) {
        let mut queue = self.queue.lock();
        while queue.dead.is_empty() && !queue.stop {
            self.queued.wait(&mut queue);
        }
        if queue.dead.len() < MANY_DEAD && !queue.stop && queue.waiting == 0 {
            self.queued.wait_for(&mut queue, LINGER);
        }
    }

    /// Takes out an inode whose number becomes another one's, while nobody else uses the cache.
    pub(crate) fn forget(&self, ino: Ino) {
        let gone = self.shard(ino).shard.lock().slots.remove(&ino.0);
        // Dropped out of the lock.
        drop(gone);
    }

    /// The evictor is about to free the number (or gave up): it may be loaded and reused from now on.
    pub(crate) fn evicted(&self, ino: Ino) {
        let locked = self.shard(ino);
        let mut shard = locked.shard.lock();
        let gone = match shard.slots.get(&ino.0) {
            Some(Slot::Evicting(_)) => shard.slots.remove(&ino.0),
            _ => None,
        };
        locked.changed.notify_all();
        drop(shard);
        // Out of the lock: an inode owns caches with locks of their own.
        drop(gone);
    }

    /// Takes out every dead inode, referred to or not: at unmount, when nobody can use it any more.
    pub(crate) fn take_dead(&self) -> Vec<Arc<Inode>> {
        let mut taken = Vec::new();
        for locked in &self.shards {
            let mut shard = locked.shard.lock();
            for slot in shard.slots.values_mut() {
                if let Slot::Live(inode) = slot
                    && inode.is_dead()
                    && inode.may_evict()
                {
                    let inode = Arc::clone(inode);
                    *slot = Slot::Evicting(Arc::clone(&inode));
                    taken.push(inode);
                }
            }
        }
        taken
    }

    /// Waits while too many evictions are queued. Nothing may be held.
    pub(crate) fn throttle(&self) {
        let mut queue = self.queue.lock();
        while queue.served && queue.dead.len() > MOST_QUEUED && !queue.stop {
            self.queued.wait(&mut queue);
        }
    }

    /// Takes the next dead inode from the queue, for [`Self::end_eviction`] when it is freed.
    pub(crate) fn begin_eviction(&self) -> Option<Arc<Inode>> {
        let mut queue = self.queue.lock();
        let inode = queue.dead.pop_front()?;
        queue.running += 1;
        Some(inode)
    }

    /// One eviction has ended.
    pub(crate) fn end_eviction(&self) {
        self.queue.lock().running -= 1;
        self.queued.notify_all();
    }

    /// Waits until no eviction is queued or running; at once where no evictor serves the queue.
    pub(crate) fn wait_evicted(&self) {
        let mut queue = self.queue.lock();
        if queue.dead.is_empty() && queue.running == 0 {
            return;
        }
        queue.waiting += 1;
        self.queued.notify_all();
        while queue.served && (!queue.dead.is_empty() || queue.running > 0) {
            self.queued.wait(&mut queue);
        }
        queue.waiting -= 1;
    }
}

/// Takes a slot that was being loaded out again when loading failed.
struct Unload<'a> {
    locked: &'a LockedShard,
    ino: Ino,
    armed: bool,
}

impl Drop for Unload<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.locked.shard.lock().slots.remove(&self.ino.0);
            self.locked.changed.notify_all();
        }
    }
}
