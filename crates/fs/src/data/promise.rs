//! What is promised to the delayed blocks of a file.

use std::collections::BTreeSet;

use extant_alloc::{Privilege, Reservation};
use extant_format::{Lblk, Pblk};
use extant_map::{MapFs, MapKind};
use extant_sync::{Arc, MutexGuard};
use rustc_hash::FxHashMap;

use super::{FileClaim, FileData, What};
use crate::error::Result;
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// What is promised to a file's delayed blocks.
#[derive(Default)]
pub(super) struct Promise {
    pub(super) reservation: Option<Reservation>,
    /// Delayed blocks.
    pub(super) blocks: u64,
    /// With bigalloc, each cluster with delayed blocks: how many, and whether a cluster is reserved for them.
    pub(super) clusters: FxHashMap<u32, (u32, bool)>,
    /// With bigalloc, the file's clusters that are claimed and not yet published, by number, with their first block: one claim
    /// serves all delayed blocks of a cluster.
    pub(super) claimed: FxHashMap<u32, Pblk>,
}

impl Promise {
    pub(super) fn put_back(&mut self, part: Reservation) {
        match &mut self.reservation {
            Some(all) => all.merge(part),
            none => *none = Some(part),
        }
    }

    /// Takes a part out, to be used without the lock, for a file whose map is of that kind.
    pub(super) fn take(&mut self, fs: &Filesystem, kind: MapKind, data: u64, meta: u64) -> Reservation {
        match &mut self.reservation {
            Some(all) => all.split(data, meta),
            None => fs.alloc.no_reservation_below(Privilege::Normal, MapFs::reach(kind)),
        }
    }

    /// Gives back tree blocks that the delayed blocks left do not need, and everything when there are none.
    pub(super) fn trim(&mut self, worst: u64) {
        let Some(all) = &mut self.reservation else { return };
        if self.blocks == 0 {
            self.reservation = None;
            self.clusters.clear();
            return;
        }
        let spare = all.meta().saturating_sub(worst);
        all.shrink(0, spare);
    }
}

impl FileData {
    /// Promises clusters and tree blocks for delayed blocks.
    pub(super) fn promise_space(
        &self,
        fs: &Arc<Filesystem>,
        inode: &Inode,
        lblk: Lblk,
        len: u32,
    ) -> Result<()> {
        let worst = Self::worst(fs, inode)?;
        let ratio = fs.geo.cluster_ratio();
        let exempt = self.is_exempt();
        // Quota's locks come before: it promises what is needed by a first look, and a second one says whether it still is that much.
        let mut charged = 0;
        let (mut promise, mapped, clusters) = loop {
            let (promise, mapped) = self.promise_beside_map(fs, inode, lblk, len)?;
            let needed = Self::missing_clusters(&promise, lblk.0, len, ratio, mapped);
            if needed == charged || !fs.has_quotas() {
                break (promise, mapped, needed);
            }
            drop(promise);
            fs.quota_unreserve(inode, charged * u64::from(ratio));
            fs.quota_reserve(inode, needed * u64::from(ratio), exempt)?;
            charged = needed;
        };
        if ratio > 1 {
            Self::enter_clusters(&mut promise, lblk.0, len, ratio, mapped);
        }
        let have = promise.reservation.as_ref().map_or(0, Reservation::meta);
        let worst = worst(promise.blocks + u64::from(len));
        let (meta, reach) = (worst.saturating_sub(have), MapFs::reach(inode.map_kind()));
        match fs.alloc.reserve_below(clusters, meta, self.privilege(), reach) {
            Ok(more) => promise.put_back(more),
            Err(e) => {
                if ratio > 1 {
                    Self::forget_clusters(&mut promise, lblk.0, len, ratio);
                }
                drop(promise);
                fs.quota_unreserve(inode, charged * u64::from(ratio));
                return Err(e.into());
            }
        }
        promise.blocks += u64::from(len);
        if clusters > 0 {
            let mut state = inode.state();
            state.delayed = state.delayed.saturating_add(clusters as u32 * ratio);
        }
        Ok(())
    }

    /// Locks the promise; and the clusters with the ends of a hole that are the file's by other blocks, with bigalloc. (Those between are
    /// holes as a whole.) The map is looked at before, and once more if it has changed since: blocks that were delayed in such a
    /// cluster may have been published meanwhile. None leaves the map: who reserves keeps those out who take blocks away.
    fn promise_beside_map(
        &self,
        fs: &Filesystem,
        inode: &Inode,
        lblk: Lblk,
        len: u32,
    ) -> Result<(MutexGuard<'_, Promise>, [Option<u32>; 2])> {
        let ratio = fs.geo.cluster_ratio();
        if ratio == 1 {
            return Ok((self.promise.lock(), [None; 2]));
        }
        let ends = [lblk.0, lblk.0 + len.saturating_sub(1)];
        loop {
            let seq = inode.es.seq();
            let mut mapped = [None; 2];
            {
                let i_block = inode.map.read();
                for (at, end) in mapped.iter_mut().zip(ends) {
                    let implied = fs.map.implied(&inode.map_ref(&i_block), Lblk(end))?;
                    *at = implied.map(|_| end / ratio);
                }
            }
            let promise = self.promise.lock();
            if inode.es.seq() == seq {
                return Ok((promise, mapped));
            }
        }
    }

    /// How many clusters delayed blocks there need, beside those that are reserved, and those in `mapped`.
    fn missing_clusters(promise: &Promise, lblk: u32, len: u32, ratio: u32, mapped: [Option<u32>; 2]) -> u64 {
        if ratio == 1 || len == 0 {
            return len.into();
        }
        let clusters = lblk / ratio..=(lblk + (len - 1)) / ratio;
        let missing = |at: &u32| !promise.clusters.contains_key(at) && !mapped.contains(&Some(*at));
        clusters.filter(missing).count() as u64
    }

    /// Counts delayed blocks in their clusters, of which those that are not there yet and not in `mapped` are reserved.
    fn enter_clusters(promise: &mut Promise, lblk: u32, len: u32, ratio: u32, mapped: [Option<u32>; 2]) {
        for at in lblk..lblk + len {
            let needed = !mapped.contains(&Some(at / ratio));
            promise.clusters.entry(at / ratio).or_insert((0, needed)).0 += 1;
        }
    }

    /// With bigalloc: the blocks of the clusters that are reserved for what `claims` brings into the map.
    pub(super) fn reserved_for(&self, claims: &[FileClaim], ratio: u32) -> u32 {
        let promise = self.promise.lock();
        let delayed = claims.iter().filter(|claim| !matches!(claim.what, What::Convert));
        let clusters: BTreeSet<_> =
            delayed.flat_map(|claim| claim.lblk / ratio..=(claim.lblk + (claim.len - 1)) / ratio).collect();
        let reserved = |at: &&u32| promise.clusters.get(*at).is_some_and(|(_, reserved)| *reserved);
        clusters.iter().filter(reserved).count() as u32 * ratio
    }

    fn forget_clusters(promise: &mut Promise, lblk: u32, len: u32, ratio: u32) {
        for at in lblk..lblk + len {
            if let Some((count, _)) = promise.clusters.get_mut(&(at / ratio)) {
                *count -= 1;
                if *count == 0 {
                    promise.clusters.remove(&(at / ratio));
                }
            }
        }
    }
}
