//! What is promised to the delayed blocks of a file.

use extant_alloc::{Privilege, Reservation};
use extant_format::Pblk;
use extant_map::{MapFs, MapKind};
use rustc_hash::FxHashMap;

use crate::filesystem::Filesystem;

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
