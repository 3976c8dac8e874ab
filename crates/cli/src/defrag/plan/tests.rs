use std::cell::{Cell, RefCell};

use super::*;

const BLOCK: u64 = 4096;

fn extent(logical: u64, physical: u64, length: u64, unwritten: bool) -> FiemapExtent {
    let flags = if unwritten { FiemapFlags::UNWRITTEN } else { FiemapFlags::empty() };
    FiemapExtent { logical: logical * BLOCK, physical: physical * BLOCK, length: length * BLOCK, flags }
}

/// A file that is made up.
struct Made {
    extents: Vec<FiemapExtent>,
    size: u64,
    /// Blocks that are free, and the longest run of them.
    free: u64,
    longest: u64,
    donors: Cell<usize>,
    moved: RefCell<Vec<Range<u64>>>,
}

impl Made {
    fn new(extents: Vec<FiemapExtent>, free: u64, longest: u64) -> Self {
        let size = extents.last().map_or(0, |last| last.logical + last.length);
        Self { extents, size, free, longest, donors: Cell::new(0), moved: RefCell::new(Vec::new()) }
    }
}

impl Defraggable for Made {
    type Donor = Vec<FiemapExtent>;

    fn block(&self) -> u64 {
        BLOCK
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
    fn extents(&self) -> io::Result<Vec<FiemapExtent>> {
        Ok(self.extents.clone())
    }
    fn donor(&self, ranges: &[Range<u64>]) -> io::Result<Self::Donor> {
        let blocks: u64 = ranges.iter().map(|r| (r.end - r.start) / BLOCK).sum();
        if blocks > self.free {
            return Err(Errno::NOSPC.into());
        }
        self.donors.set(self.donors.get() + 1);
        let mut all = Vec::new();
        for range in ranges {
            let mut at = range.start / BLOCK;
            while at < range.end / BLOCK {
                let len = (range.end / BLOCK - at).min(self.longest);
                all.push(extent(at, 1_000_000 + 2 * at, len, true));
                at += len;
            }
        }
        Ok(all)
    }
    fn donor_extents(&self, donor: &Self::Donor) -> io::Result<Vec<FiemapExtent>> {
        Ok(donor.clone())
    }
    fn move_to(&self, _: &Self::Donor, range: Range<u64>) -> io::Result<u64> {
        self.moved.borrow_mut().push(range.start / BLOCK..range.end / BLOCK);
        Ok(range.end - range.start)
    }
}

#[test]
fn what_is_as_it_can_be_is_left_alone() {
    let extents = vec![extent(0, 10, 100, false), extent(200, 500, 3, false), extent(203, 503, 7, true)];
    let file = Made::new(extents, 1_000_000, 1_000_000);
    let change = defragment(&file, false).unwrap();
    assert_eq!((change.before, change.after, change.moved), (3, 3, 0));
    assert_eq!(file.donors.get(), 0, "no donor is made for nothing");
}

#[test]
fn stretches_that_get_better_are_moved() {
    // In pieces; a hole; in one; a hole; in two.
    let extents = vec![
        extent(0, 10, 1, false),
        extent(1, 20, 1, false),
        extent(2, 30, 1, false),
        extent(10, 100, 50, false),
        extent(100, 300, 2, false),
        extent(102, 400, 2, false),
    ];
    let file = Made::new(extents.clone(), 1000, 1000);
    assert_eq!(defragment(&file, false).unwrap().moved, 7 * BLOCK);
    assert_eq!(*file.moved.borrow(), [0..3, 100..104]);
    // Where the free space is in pieces too, only what still gains.
    let file = Made::new(extents.clone(), 1000, 2);
    defragment(&file, false).unwrap();
    assert_eq!(*file.moved.borrow(), std::slice::from_ref(&(0..3)));
    let file = Made::new(extents.clone(), 1000, 1);
    defragment(&file, false).unwrap();
    assert!(file.moved.borrow().is_empty());
    let file = Made::new(extents, 1000, 1000);
    let change = defragment(&file, true).unwrap();
    assert_eq!((change.before, change.after, change.moved), (6, 3, 0));
    assert_eq!(file.donors.get(), 0);
}

/// What is preallocated past the end cannot be moved, nor a piece that begins there.
#[test]
fn past_the_end_nothing_is_moved() {
    let content = |n| extent(n, 10 * n, 1, false);
    let mut extents: Vec<_> = (0..3).map(content).collect();
    extents.extend((3..30_000).map(|n| extent(n, 500_000 - 10 * n, 1, true)));
    extents.extend((40_000..40_010).map(|n| extent(n, 500_000 - 10 * n, 1, true)));
    // The end is inside of the third block.
    let file = Made { size: 2 * BLOCK + 1, ..Made::new(extents, 100_000, 100_000) };
    let change = defragment(&file, true).unwrap();
    assert_eq!((change.before, change.after, change.moved), (30_010, 30_008, 0));
    assert_eq!(defragment(&file, false).unwrap().moved, 3 * BLOCK);
    assert_eq!(*file.moved.borrow(), std::slice::from_ref(&(0..3)));
    let only_past =
        Made { size: 0, ..Made::new((0..9).map(|n| extent(n, 90 - 10 * n, 1, true)).collect(), 99, 99) };
    let change = defragment(&only_past, false).unwrap();
    assert_eq!((change.before, change.after, change.moved), (9, 9, 0));
}

#[test]
fn one_half_after_the_other_when_space_is_short() {
    let extents = (0..20_000).map(|n| extent(n, 3 * n, 1, false)).collect();
    let file = Made::new(extents, 5000, 5000);
    assert_eq!(defragment(&file, false).unwrap().moved, 20_000 * BLOCK);
    assert_eq!(file.donors.get(), 4);
    let none = Made::new((0..20_000).map(|n| extent(n, 3 * n, 1, false)).collect(), 10, 10);
    assert_eq!(defragment(&none, false).unwrap_err().raw_os_error(), Some(28));
}

#[test]
fn a_long_run_needs_more_than_one() {
    let extents = [extent(0, 10, 32_768, false), extent(32_768, 90_000, 1, false)];
    assert_eq!(fewest(&extents, &(0..u64::MAX), BLOCK), 2);
    let unwritten = [extent(0, 10, 32_767, true), extent(32_767, 90_000, 1, true)];
    assert_eq!(fewest(&unwritten, &(0..u64::MAX), BLOCK), 2);
    let short = [extent(0, 10, 400, false), extent(400, 90_000, 1, true), extent(401, 95_000, 1, true)];
    assert_eq!(fewest(&short, &(0..u64::MAX), BLOCK), 2);
}
