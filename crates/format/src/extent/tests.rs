use std::vec;
use std::vec::Vec;

use super::*;
use crate::test_support::superblock;

fn extent(lblk: u32, len: u32, pblk: u64, unwritten: bool) -> Extent {
    Extent { lblk: Lblk(lblk), len, pblk: Pblk(pblk), unwritten }
}

fn leaf(extents: &[Extent]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut node = NodeMut::init(&mut bytes, Ino(12), Some(Pblk(99)), 0);
    for (at, e) in extents.iter().enumerate() {
        node.insert_extent(at as u16, *e).unwrap();
    }
    node.set_checksum(Ino(12), 5, superblock(|_| ()).csum());
    bytes
}

fn read(bytes: &[u8]) -> Result<Node<'_>, FormatError> {
    let sb = superblock(|_| ());
    Node::read_block(bytes, Ino(12), 5, Pblk(99), 0, sb.geometry(), sb.csum())
}

fn kind(e: FormatError) -> Corrupt {
    match e {
        FormatError::Corrupt { place: Place::ExtentNode(Ino(12), _), kind } => kind,
        other => panic!("{other}"),
    }
}

/// Checks the entries alone: what a wrong value gives once the checksum is right.
fn check(extents: &[Extent]) -> Corrupt {
    let bytes = leaf(extents);
    kind(read(&bytes).unwrap_err())
}

#[test]
fn capacities() {
    assert_eq!(capacity(60), ROOT_ENTRIES);
    for (size, entries) in [(1024, 84), (2048, 169), (4096, 340), (65536, 5460)] {
        assert_eq!(capacity(size), entries);
        assert!(ENTRY_SIZE + usize::from(entries) * ENTRY_SIZE + 4 <= size, "room for the tail");
    }
    assert_eq!(blocks_for_extents(4, 1024), 0);
    assert_eq!(blocks_for_extents(5, 1024), 1);
    assert_eq!(blocks_for_extents(84 * 5, 1024), 6);
}

#[test]
fn lengths_encode_the_state() {
    for (len, unwritten) in [(1, false), (32768, false), (1, true), (32767, true)] {
        let e = extent(7, len, 0xffff_1234_5678, unwritten);
        assert_eq!(Extent::from_raw(&e.to_raw()), e);
    }
    assert_eq!(extent(0, 32768, 1, false).to_raw().ee_len.get(), 32768);
    assert_eq!(extent(0, 1, 1, true).to_raw().ee_len.get(), 32769);
}

#[test]
fn insert_search_remove() {
    let all = [extent(0, 2, 100, false), extent(5, 1, 200, true), extent(10, 20, 300, false)];
    let mut bytes = leaf(&[all[0], all[2]]);
    let mut node = NodeMut::open(&mut bytes, Ino(12), Some(Pblk(99)), Some(0)).unwrap();
    node.insert_extent(1, all[1]).unwrap();
    assert_eq!(node.as_node().extents().collect::<Vec<_>>(), all);
    let searches = [(0, Some(0)), (4, Some(0)), (5, Some(1)), (10, Some(2)), (u32::MAX, Some(2))];
    for (lblk, at) in searches {
        assert_eq!(node.as_node().search(Lblk(lblk)), at);
    }
    node.remove(0, 2);
    assert_eq!(node.as_node().search(Lblk(9)), None);
    assert_eq!(node.as_node().extents().collect::<Vec<_>>(), [all[2]]);
    node.remove(0, 9);
    assert!(node.as_node().is_empty());
    assert!(bytes[12..1020].iter().all(|&b| b == 0), "removed entries leave nothing behind");
}

#[test]
fn a_full_node_says_so() {
    let mut root = [0; 60];
    let mut node = NodeMut::init(&mut root, Ino(12), None, 0);
    for n in 0..4 {
        node.insert_extent(n, extent(u32::from(n), 1, 100 + u64::from(n) * 2, false)).unwrap();
    }
    let e = node.insert_extent(4, extent(9, 1, 9, false)).unwrap_err();
    assert_eq!(e, FormatError::Full { place: Place::ExtentNode(Ino(12), None), have: 4, max: 4 });
    let mut other = vec![0; 1024];
    let mut other = NodeMut::init(&mut other, Ino(12), Some(Pblk(9)), 0);
    node.move_tail(1, &mut other).unwrap();
    assert_eq!((node.as_node().len(), other.as_node().len()), (1, 3));
    assert_eq!(other.as_node().key(0), Some(Lblk(1)));
}

#[test]
fn merging() {
    let a = extent(0, 32000, 1000, false);
    assert!(a.merges_with(&extent(32000, 768, 33000, false)));
    assert!(!a.merges_with(&extent(32000, 769, 33000, false)), "too long");
    assert!(!a.merges_with(&extent(32000, 1, 33000, true)), "other state");
    assert!(!a.merges_with(&extent(32001, 1, 33000, false)));
    let u = extent(0, 32000, 1000, true);
    assert!(!u.merges_with(&extent(32000, 768, 33000, true)), "32767 if unwritten");
}

#[test]
fn wrong_headers() {
    let good = leaf(&[extent(0, 1, 100, false)]);
    let with = |at: usize, value: u16| {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        kind(Node::open(&bytes, Ino(12), Some(Pblk(99)), Some(0)).unwrap_err())
    };
    assert!(matches!(with(0, 0xf30b), Corrupt::Magic { found: 0xf30b, expected: 0xf30a }));
    assert!(matches!(with(2, 85), Corrupt::Range { field: "eh_entries", value: 85, min: 0, max: 84 }));
    assert!(matches!(with(4, 85), Corrupt::Range { field: "eh_max", value: 85, min: 1, max: 84 }));
    assert!(matches!(with(4, 0), Corrupt::Range { field: "eh_max", .. }));
    assert!(matches!(with(6, 1), Corrupt::Mismatch { field: "eh_depth", value: 1, expected: 0 }));
    assert!(matches!(with(6, 6), Corrupt::Range { field: "eh_depth", value: 6, .. }));
    assert!(matches!(
        kind(Node::open(&good[..11], Ino(12), None, None).unwrap_err()),
        Corrupt::Short { have: 11, need: 12 }
    ));
    let mut inner = vec![0; 1024];
    NodeMut::init(&mut inner, Ino(12), Some(Pblk(99)), 1);
    let e = Node::open(&inner, Ino(12), Some(Pblk(99)), Some(1)).unwrap_err();
    assert!(matches!(kind(e), Corrupt::Range { field: "eh_entries", value: 0, min: 1, .. }));
}

#[test]
fn wrong_entries() {
    assert!(matches!(
        check(&[extent(0, 3, 100, false), extent(2, 1, 200, false)]),
        Corrupt::Order { what: "extent", index: 1, value: 2, previous: 3 }
    ));
    assert!(matches!(
        check(&[extent(0, 3, 4095, false)]),
        Corrupt::BlockOutside { field: "ee_start", block: 4095, first: 0, last: 4095 }
    ));
    assert!(matches!(check(&[extent(u32::MAX, 1, 100, false)]), Corrupt::Range { field: "ee_len", .. }));
    let mut bytes = leaf(&[extent(0, 3, 100, false)]);
    bytes[16..18].fill(0);
    let sb = superblock(|_| ());
    let node = Node::open(&bytes, Ino(12), Some(Pblk(99)), Some(0)).unwrap();
    let e = node.check(Ino(12), Some(Pblk(99)), sb.geometry()).unwrap_err();
    assert!(matches!(kind(e), Corrupt::Range { field: "ee_len", value: 0, .. }));
}

#[test]
fn wrong_checksum() {
    let good = leaf(&[extent(0, 3, 100, false)]);
    read(&good).unwrap();
    let mut bytes = good.clone();
    bytes[500] ^= 1;
    assert!(matches!(read(&bytes).unwrap_err(), FormatError::Checksum { .. }));
    let sb = superblock(|_| ());
    let other = Node::read_block(&good, Ino(13), 5, Pblk(99), 0, sb.geometry(), sb.csum());
    assert!(matches!(other.unwrap_err(), FormatError::Checksum { place: Place::ExtentNode(Ino(13), _), .. }));
}

#[test]
fn random_bytes_never_panic() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1u64);
    std::eprintln!("seed={seed}");
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let sb = superblock(|_| ());
    for _ in 0..20_000 {
        let mut bytes = leaf(&[extent(0, 3, 100, false), extent(8, 3, 200, true)]);
        for _ in 0..1 + next() % 6 {
            let at = (next() % 48) as usize;
            bytes[at] = next() as u8;
        }
        if let Ok(node) = Node::open(&bytes, Ino(12), Some(Pblk(9)), None) {
            let _ = node.check(Ino(12), Some(Pblk(9)), sb.geometry());
            let _ = node.search(Lblk(next() as u32));
            let _ = (node.extents().count(), node.indexes().count());
            let _ = node.verify_checksum(Ino(12), 5, Pblk(9), sb.csum());
        }
    }
}
