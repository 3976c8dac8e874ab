//! Blocks that hold the filesystem's own structures: no file may map them, nobody may free them.

use std::collections::BTreeSet;

use extant_format::{Geometry, GroupDesc, GroupNr, Pblk};

/// Sorted, merged ranges of system blocks. Built once; binary search to ask.
pub(crate) struct SystemZones(Box<[(u64, u64)]>);

/// What a group has for itself: the copies of superblock and descriptors, its bitmaps, its inode table. First block and length.
fn pieces(geo: &Geometry, group: GroupNr, desc: &GroupDesc) -> [(u64, u64); 4] {
    [
        (geo.group_first_block(group).0, u64::from(geo.base_meta_blocks(group))),
        (desc.block_bitmap.0, 1),
        (desc.inode_bitmap.0, 1),
        (desc.inode_table.0, u64::from(geo.itable_blocks())),
    ]
}

/// Groups that have blocks for themselves which another group, the journal, or they themselves in another place, have too. For when
/// [`SystemZones::new`] says that there are such blocks: it takes memory for each group.
pub(crate) fn overlapping<'a>(
    geo: &Geometry,
    descs: impl Iterator<Item = (GroupNr, &'a GroupDesc)>,
    extra: &[(Pblk, u64)],
) -> BTreeSet<GroupNr> {
    let own = descs.flat_map(|(group, desc)| {
        pieces(geo, group, desc).map(|(start, len)| (start, start.saturating_add(len), Some(group)))
    });
    let others = extra.iter().map(|(pblk, len)| (pblk.0, pblk.0.saturating_add(*len), None));
    let mut all: Vec<_> = own.chain(others).filter(|(start, end, _)| start < end).collect();
    all.sort_unstable();
    let mut found = BTreeSet::new();
    // The piece that reaches farthest of those before.
    let mut last: Option<(u64, Option<GroupNr>)> = None;
    for (start, end, group) in all {
        if let Some((_, before)) = last.filter(|(reach, _)| *reach > start) {
            found.extend(before.into_iter().chain(group));
        }
        if last.is_none_or(|(reach, _)| end > reach) {
            last = Some((end, group));
        }
    }
    found
}

impl SystemZones {
    /// From the group descriptors and `extra` ranges (the journal's blocks); and whether some of it overlaps.
    pub(crate) fn new<'a>(
        geo: &Geometry,
        descs: impl Iterator<Item = (GroupNr, &'a GroupDesc)>,
        extra: &[(Pblk, u64)],
    ) -> (Self, bool) {
        let mut merger = Merger::default();
        for (group, desc) in descs {
            for (start, len) in pieces(geo, group, desc) {
                merger.add(start, len);
            }
        }
        for &(pblk, len) in extra {
            merger.add(pblk.0, len);
        }
        let added = merger.blocks;
        let zones = Self(merger.finish());
        let merged: u64 = zones.0.iter().map(|(start, end)| end - start).sum();
        (zones, merged != added)
    }

    /// Whether any of `len` blocks from `pblk` is a system block.
    pub(crate) fn touches(&self, pblk: Pblk, len: u64) -> bool {
        let end = pblk.0.saturating_add(len);
        let at = self.0.partition_point(|&(start, _)| start < end);
        at > 0 && self.0[at - 1].1 > pblk.0
    }
}

/// Collects ranges; neighbours that come one after the other are joined at once, which keeps the list short.
#[derive(Default)]
struct Merger {
    ranges: Vec<(u64, u64)>,
    /// Blocks of all that was added.
    blocks: u64,
}

impl Merger {
    fn add(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = start.saturating_add(len);
        self.blocks = self.blocks.saturating_add(len);
        // With flex_bg the bitmaps and tables of neighbouring groups grow three or four runs at a time.
        let recent = self.ranges.len().saturating_sub(4);
        if let Some(last) = self.ranges[recent..].iter_mut().find(|r| r.1 == start) {
            last.1 = end;
            return;
        }
        self.ranges.push((start, end));
    }

    fn finish(mut self) -> Box<[(u64, u64)]> {
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for (start, end) in self.ranges {
            match merged.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged.into_boxed_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::{Merger, SystemZones};
    use extant_format::Pblk;

    #[test]
    fn ranges_are_joined_and_found() {
        let mut merger = Merger::default();
        for (start, len) in [(10, 5), (100, 1), (15, 5), (101, 3), (50, 0)] {
            merger.add(start, len);
        }
        let zones = SystemZones(merger.finish());
        assert_eq!(&*zones.0, &[(10, 20), (100, 104)]);
        assert!(!zones.touches(Pblk(0), 10));
        assert!(zones.touches(Pblk(0), 11));
        assert!(zones.touches(Pblk(19), 1));
        assert!(!zones.touches(Pblk(20), 80));
        assert!(zones.touches(Pblk(20), u64::MAX));
        assert!(!zones.touches(Pblk(104), u64::MAX));
    }
}
