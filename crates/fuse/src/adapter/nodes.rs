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
    held: FxHashMap<u32, Held>,
}

struct Held {
    inode: InodeRef,
    /// When its last name went, or last an open file of it.
    since: Instant,
}

/// How long the kernel is given to forget an inode that nothing seems to need any more. One that is still known then is somebody's
/// working directory or the like, and nobody waits for it.
const FORGET_WAIT: Duration = Duration::from_millis(200);

pub(super) struct Nodes {
    shards: Vec<Mutex<Shard>>,
    /// Counts FORGETs that let go of an inode without a name.
    released: Mutex<u64>,
    release: Condvar,
    /// [`FORGET_WAIT`], but for tests.
    patience: Duration,
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
            patience: FORGET_WAIT,
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
            shard.held.entry(ino.0).or_insert_with(|| Held { inode: inode.clone(), since: Instant::now() });
        }
    }

    /// `inode` lost a name. If that was the last and the kernel knows the inode, it stays until FORGET.
    pub(super) fn lost_name(&self, inode: InodeRef) {
        if !inode.is_dead() {
            return;
        }
        let ino = inode.ino();
        let mut shard = self.shard(ino).lock();
        let held = Held { inode, since: Instant::now() };
        let extra =
            if shard.counts.contains_key(&ino.0) { shard.held.insert(ino.0, held) } else { Some(held) };
        // The last reference queues an eviction, which must not happen under this lock.
        drop(shard);
        drop(extra);
    }

    /// An open file of an inode without a name was closed.
    pub(super) fn closed(&self, ino: Ino) {
        if let Some(held) = self.shard(ino).lock().held.get_mut(&ino.0) {
            held.since = Instant::now();
        }
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

    /// Waits until the kernel has forgotten the inodes that lost their name, or were closed, before the caller `came`, and that `busy`
    /// does not keep. It has queued those FORGETs when unlink(2) returned, but they may be read after requests that came later,
    /// and until then the space is not free.
    pub(super) fn wait_forgotten(&self, came: Instant, busy: &impl Fn(&InodeRef) -> bool) {
        loop {
            let before = *self.released.lock();
            let Some(left) = self.time_left(came, Instant::now(), busy) else { return };
            let mut released = self.released.lock();
            if *released == before {
                self.release.wait_for(&mut released, left);
            }
        }
    }

    /// How long to wait at most, at `now`. An inode that a working directory or an O_PATH descriptor keeps looks like one whose
    /// FORGET is on its way: so only the age of its loss counts.
    pub(super) fn time_left(
        &self,
        came: Instant,
        now: Instant,
        busy: &impl Fn(&InodeRef) -> bool,
    ) -> Option<Duration> {
        let left = |held: &Held| {
            let age = now.saturating_duration_since(held.since);
            let left = self.patience.saturating_sub(age);
            (held.since <= came && !left.is_zero()).then(|| (left, held.inode.clone()))
        };
        self.shards
            .iter()
            .filter_map(|shard| {
                // Outside the lock: `busy` takes others, and the last reference queues an eviction.
                let young: Vec<_> = shard.lock().held.values().filter_map(left).collect();
                young.into_iter().filter(|(_, inode)| !busy(inode)).map(|(left, _)| left).max()
            })
            .max()
    }

    /// Lets go of everything, at the end of the mount.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *shard.lock());
            drop(old);
        }
    }
}

#[cfg(test)]
mod tests;
