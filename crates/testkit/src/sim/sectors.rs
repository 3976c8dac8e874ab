//! Contents by what differs from a base, sector by sector: a digest each, 0 where it is the base's. The sum over all sectors is a
//! digest of the whole, that over some a digest of these; both follow a write without the content being made.

use std::hash::Hasher as _;
use std::ops::Range;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::content::Content;
use super::{Event, LINE, SECTOR};

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

/// The same of a part of a sector that begins at byte `at`.
fn part_digest(base: &Content, at: u64, bytes: &[u8]) -> u128 {
    let mut old = [0; LINE as usize];
    base.read(at, &mut old);
    if old == bytes {
        return 0;
    }
    let mut hasher = SipHasher13::new_with_keys(LINE, at);
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

/// Every place that a record touches, and what each change of it leaves there: sectors, or, where stores are among the changes, lines of
/// a cache.
#[derive(Debug)]
pub(super) struct Slots {
    /// Bytes of a place.
    unit: u64,
    /// The sector of each place, ascending.
    pub(super) sectors: Vec<u64>,
    /// Of every epoch, of every change: its places in order, and digests.
    changes: Vec<Vec<Vec<(usize, u128)>>>,
}

impl Slots {
    /// # Panics
    /// If a change does not begin and end with a line.
    pub(super) fn new<'e, C>(base: &Content, epochs: impl Iterator<Item = C> + Clone) -> Self
    where
        C: Iterator<Item = &'e Event>,
    {
        let whole = |change: &Event| {
            let (offset, len) = range_of(change);
            offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR)
        };
        let unit = if epochs.clone().flatten().all(whole) { SECTOR } else { LINE };
        let mut places: Vec<u64> = epochs.clone().flatten().flat_map(|c| places_of(c, unit)).collect();
        places.sort_unstable();
        places.dedup();
        let digest = |place: u64, bytes: &[u8]| {
            if unit == SECTOR {
                sector_digest(base, place, bytes)
            } else {
                part_digest(base, place * unit, bytes)
            }
        };
        let slots = |change: &Event| -> Vec<(usize, u128)> {
            let slot = |place| {
                let at = ((place - places_of(change, unit).start) * unit) as usize;
                let digest = match change {
                    Event::Write { data, .. } => digest(place, &data[at..at + unit as usize]),
                    _ => digest(place, &[0; SECTOR as usize][..unit as usize]),
                };
                (places.binary_search(&place).expect("collected above"), digest)
            };
            places_of(change, unit).map(slot).collect()
        };
        let changes = epochs.map(|epoch| epoch.map(slots).collect()).collect();
        let sectors = places.iter().map(|place| place * unit / SECTOR).collect();
        Self { unit, sectors, changes }
    }

    /// Sets the digests of the places that a change (or some sectors of it) writes.
    pub(super) fn apply(&self, values: &mut [u128], epoch: usize, change: usize, part: Option<&Range<u64>>) {
        let all = &self.changes[epoch][change];
        let places = |sectors: u64| (sectors * SECTOR / self.unit) as usize;
        let part = part.map_or(0..all.len(), |part| places(part.start)..places(part.end));
        for (slot, digest) in &all[part] {
            values[*slot] = *digest;
        }
    }
}

/// The bytes of a change.
fn range_of(change: &Event) -> (u64, u64) {
    match change {
        Event::Write { offset, data, .. } => (*offset, data.len() as u64),
        Event::Zero { offset, len } => (*offset, *len),
        Event::Flush | Event::Mark(_) => (0, 0),
    }
}

/// The places of `unit` bytes of a change.
fn places_of(change: &Event, unit: u64) -> Range<u64> {
    let (offset, len) = range_of(change);
    let whole = offset.is_multiple_of(unit) && len.is_multiple_of(unit);
    assert!(whole, "{len} bytes at {offset}: not in whole places of {unit}");
    offset / unit..(offset + len) / unit
}
