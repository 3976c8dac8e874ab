//! Which inodes the kernel knows.
//!
//! The kernel counts its lookups of a node and gives them all back by FORGET. An inode that has lost its last name
//! must live until then: the kernel may still ask about it (an open file, a working directory, an O_PATH
//! descriptor). Only such inodes are held here; for all others a count is enough, 8 bytes each, so that a million
//! known inodes cost little.

use std::time::{Duration, Instant};

use extant::{Ino, InodeRef};
use extant_sync::{Condvar, Mutex, Rank};
use rustc_hash::FxHashMap;

use super::{ino_of, node_of};

const SHARDS: usize = 64;

#[derive(Default)]
struct Shard {
    /// Lookups by inode number.
    counts: FxHashMap<u32, u32>,
    /// Inodes without a name.
    held: FxHashMap<u32, InodeRef>,
}

/// How long a caller that found no space waits for the kernel to forget what was removed before it came.
const FORGET_WAIT: Duration = Duration::from_millis(200);

pub(super) struct Nodes {
    shards: Vec<Mutex<Shard>>,
    /// Counts FORGETs that let go of an inode without a name.
    released: Mutex<u64>,
    release: Condvar,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

impl Nodes {
    pub(super) fn new() -> Self {
        let shard = || Mutex::new(Rank::LEAF, Shard::default());
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            released: Mutex::new(Rank::CACHE, 0),
            release: Condvar::new(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The kernel gets one more reference.
    pub(super) fn remember(&self, inode: &InodeRef) {
        let ino = inode.ino();
        let mut shard = self.shard(ino).lock();
        let count = shard.counts.entry(ino.0).or_insert(0);
        *count = count.saturating_add(1);
        // Its last name may have gone since it was looked up; whoever removed that name saw no count then.
        if inode.is_dead() {
            shard.held.insert(ino.0, inode.clone());
        }
    }

    /// `inode` lost a name. If that was the last and the kernel knows the inode, it stays until FORGET.
    pub(super) fn lost_name(&self, inode: InodeRef) {
        if !inode.is_dead() {
            return;
        }
        let ino = inode.ino();
        let mut shard = self.shard(ino).lock();
        let extra =
            if shard.counts.contains_key(&ino.0) { shard.held.insert(ino.0, inode) } else { Some(inode) };
        // The last reference queues an eviction, which must not happen under this lock.
        drop(shard);
        drop(extra);
    }

    /// The kernel gives `n` references back.
    pub(super) fn forget(&self, node: u64, n: u64) {
        let Ok(ino) = ino_of(node) else { return };
        let mut shard = self.shard(ino).lock();
        let Some(count) = shard.counts.get_mut(&ino.0) else {
            if node != node_of(Ino(2)) {
                tracing::warn!(node, n, "the kernel forgets a node that it does not know");
            }
            return;
        };
        // A count that ever reached its limit stays there.
        if *count == u32::MAX {
            return;
        }
        *count = u32::try_from(u64::from(*count).saturating_sub(n)).unwrap_or(0);
        if *count > 0 {
            return;
        }
        shard.counts.remove(&ino.0);
        if shard.counts.capacity() > 1024 && shard.counts.len() < shard.counts.capacity() / 8 {
            shard.counts.shrink_to_fit();
        }
        let held = shard.held.remove(&ino.0);
        drop(shard);
        if held.is_some() {
            drop(held);
            *self.released.lock() += 1;
            self.release.notify_all();
        }
    }

    /// Waits until the kernel has forgotten the inodes without a name that `busy` does not keep. It has queued those FORGETs
    /// when unlink(2) returned, but they may be read after requests that came later, and until then the space is not
    /// free. A working directory or an O_PATH descriptor can hold one for ever: so it ends after a while. Returns whether
    /// any was forgotten.
    pub(super) fn wait_forgotten(&self, busy: impl Fn(&InodeRef) -> bool) -> bool {
        let end = Instant::now() + FORGET_WAIT;
        let before = *self.released.lock();
        while self.any_idle(&busy) {
            let mut released = self.released.lock();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero()
                || self.release.wait_for(&mut released, left.min(FORGET_WAIT / 10)) && left.is_zero()
            {
                break;
            }
        }
        *self.released.lock() != before
    }

    fn any_idle(&self, busy: &impl Fn(&InodeRef) -> bool) -> bool {
        self.shards.iter().any(|shard| {
            let held: Vec<InodeRef> = shard.lock().held.values().cloned().collect();
            held.iter().any(|inode| !busy(inode))
        })
    }

    /// Lets go of everything, at the end of the mount.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *shard.lock());
            drop(old);
        }
    }
}
