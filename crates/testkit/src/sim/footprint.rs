//! What a user of a device looked at and what it changed, by sector.

use super::SECTOR;

/// A set of sectors of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SectorSet(Vec<u64>);

impl SectorSet {
    /// The empty set, for a device of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self(vec![0; size.div_ceil(SECTOR * 64) as usize])
    }

    /// Adds a sector.
    pub fn insert(&mut self, sector: u64) {
        self.0[(sector / 64) as usize] |= 1 << (sector % 64);
    }

    /// Whether the sector is in the set.
    #[must_use]
    pub fn contains(&self, sector: u64) -> bool {
        self.0[(sector / 64) as usize] & (1 << (sector % 64)) != 0
    }

    /// The sectors, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let word = |(i, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| i as u64 * 64 + bit)
        };
        self.0.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(word)
    }
}

/// What one use of a device depended on, and what it changed.
///
/// Two contents that are equal in all sectors of `read` show a deterministic user the same: it does the same to both, and leaves
/// the same in all sectors of `written`.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// Sectors of which a byte was read, or left as it was by a write of the others, before the whole of them was written.
    pub read: SectorSet,
    /// Sectors that were written, zeroed or discarded.
    pub written: SectorSet,
}

impl Footprint {
    pub(super) fn new(size: u64) -> Self {
        Self { read: SectorSet::new(size), written: SectorSet::new(size) }
    }

    pub(super) fn note_read(&mut self, offset: u64, len: u64) {
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            if !self.written.contains(sector) {
                self.read.insert(sector);
            }
        }
    }

    pub(super) fn note_write(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let whole = offset <= sector * SECTOR && (sector + 1) * SECTOR <= end;
            if !whole {
                self.note_read(sector * SECTOR, SECTOR);
            }
            self.written.insert(sector);
        }
    }
}
