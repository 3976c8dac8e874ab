//! Contents by what differs from a base, sector by sector: a digest each, 0 where it is the base's. The sum over all sectors is a
//! digest of the whole, that over some a digest of these; both follow a write without the content being made.

use std::hash::Hasher as _;
use std::ops::Range;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::content::Content;
use super::{Event, SECTOR};

/// A hash of a sector's place and bytes; 0 if they are those of `base`.
#[must_use]
pub fn sector_digest(base: &Content, sector: u64, bytes: &[u8]) -> u128 {
    let mut old = [0; SECTOR as usize];
    base.read(sector * SECTOR, &mut old);
    if old == bytes {
        return 0;
    }
    let mut hasher = SipHasher13::new_with_keys(0, sector);
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

/// Every sector that a record touches, and what each change of it leaves there.
#[derive(Debug)]
pub(super) struct Slots {
    /// The sectors' numbers, ascending; a place in here is a slot.
    pub(super) sectors: Vec<u64>,
    /// Of every epoch, of every change: its sectors in order, as slots and digests.
    changes: Vec<Vec<Vec<(usize, u128)>>>,
}

impl Slots {
    /// # Panics
    /// If a change does not begin and end with a sector.
    pub(super) fn new<'e, C>(base: &Content, epochs: impl Iterator<Item = C> + Clone) -> Self
    where
        C: Iterator<Item = &'e Event>,
    {
        let mut sectors: Vec<u64> = epochs.clone().flatten().flat_map(sectors_of).collect();
        sectors.sort_unstable();
        sectors.dedup();
        let slots = |change: &Event| -> Vec<(usize, u128)> {
            let slot = |sector| {
                let at = (sector - sectors_of(change).start) * SECTOR;
                let digest = match change {
                    Event::Write { data, .. } => {
                        sector_digest(base, sector, &data[at as usize..(at + SECTOR) as usize])
                    }
                    _ => sector_digest(base, sector, &[0; SECTOR as usize]),
                };
                (sectors.binary_search(&sector).expect("collected above"), digest)
            };
            sectors_of(change).map(slot).collect()
        };
        let changes = epochs.map(|epoch| epoch.map(slots).collect()).collect();
        Self { sectors, changes }
    }

    /// Sets the digests of the sectors that a change (or some sectors of it) writes.
    pub(super) fn apply(&self, values: &mut [u128], epoch: usize, change: usize, part: Option<&Range<u64>>) {
        let all = &self.changes[epoch][change];
        let part = part.map_or(0..all.len(), |part| part.start as usize..part.end as usize);
        for (slot, digest) in &all[part] {
            values[*slot] = *digest;
        }
    }
}

/// The sectors of a change.
fn sectors_of(change: &Event) -> Range<u64> {
    let (offset, len) = match change {
        Event::Write { offset, data, .. } => (*offset, data.len() as u64),
        Event::Zero { offset, len } => (*offset, *len),
        Event::Flush | Event::Mark(_) => (0, 0),
    };
    let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
    assert!(whole, "{len} bytes at {offset}: not in whole sectors");
    offset / SECTOR..(offset + len) / SECTOR
}
