use super::*;

fn extent(block: u64, physical: u64, blocks: u64) -> FiemapExtent {
    let (logical, physical, length) = (block * 4096, physical * 4096, blocks * 4096);
    FiemapExtent { logical, physical, length, flags: FiemapFlags::empty() }
}

#[test]
fn the_last_one_is_marked_only_at_the_end() {
    let mut found = Found::new(Some(2));
    assert!(found.add(extent(0, 10, 1), false));
    assert!(found.add(extent(1, 20, 1), false));
    assert!(!found.add(extent(2, 30, 1), false), "no room for a third");
    found.finish();
    assert_eq!(found.extents, [extent(0, 10, 1), extent(1, 20, 1)]);
    let mut found = Found::new(Some(2));
    found.add(extent(0, 10, 1), false);
    found.finish();
    assert_eq!(found.extents[0].flags, FiemapFlags::LAST);
}

#[test]
fn neighbours_are_joined_where_that_is_asked_for() {
    let mut found = Found::new(Some(9));
    found.add(extent(0, 10, 1), true);
    found.add(extent(1, 11, 2), true);
    found.add(extent(3, 13, 1), false);
    found.add(extent(4, 20, 1), true);
    found.finish();
    let starts: Vec<_> = found.extents.iter().map(|e| (e.logical / 4096, e.length / 4096)).collect();
    assert_eq!(starts, [(0, 3), (3, 1), (4, 1)]);
    assert_eq!(found.count, 3);
}

#[test]
fn nothing_is_kept_when_counting() {
    let mut found = Found::new(None);
    for n in 0..5 {
        assert!(found.add(extent(n, 100 - 2 * n, 1), true));
    }
    found.finish();
    assert_eq!((found.count, found.extents.len()), (5, 0));
}

#[test]
fn the_structure_of_the_kernel() {
    let one = FiemapExtent { flags: FiemapFlags::UNWRITTEN | FiemapFlags::LAST, ..extent(1, 2, 3) };
    let bytes = one.to_bytes();
    assert_eq!(bytes[40..44], 0x801_u32.to_ne_bytes());
    assert_eq!(FiemapExtent::from_bytes(&bytes), one);
    assert_eq!(FiemapHow::from_raw(7), Ok(FiemapHow::all()));
    assert_eq!(FiemapHow::from_raw(0x1c), Err(0x18));
}
