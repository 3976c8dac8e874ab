//! Slots, tail, hostile bytes.

use super::{OrphanFileError, Place, free_slot, init, orphans, set, slots, verify};
use crate::testing::Rng;
use crate::types::{Ino, Pblk};
use std::vec;
use std::vec::Vec;

const PLACE: Place = Place { inode_seed: Some(77), pblk: Pblk(1234) };

#[test]
fn slots_are_set_and_freed() {
    let mut block = vec![0xee; 1024];
    init(PLACE, &mut block).unwrap();
    verify(PLACE, &block).unwrap();
    assert_eq!(slots(1024), 254);
    for n in 0..254 {
        let slot = free_slot(&block, 200).unwrap();
        assert_eq!(slot, (200 + n) % 254);
        set(PLACE, &mut block, slot, Ino(slot as u32 + 1)).unwrap();
    }
    assert_eq!(free_slot(&block, 0), None);
    set(PLACE, &mut block, 7, Ino(0)).unwrap();
    verify(PLACE, &block).unwrap();
    let left: Vec<_> = orphans(&block).collect();
    assert_eq!((left.len(), left[7]), (253, (8, Ino(9))));
    assert_eq!(free_slot(&block, 999), Some(7));
    assert_eq!(set(PLACE, &mut block, 254, Ino(1)), Err(OrphanFileError::Slot(254)));
}

#[test]
fn damage_is_told_apart() {
    let mut block = vec![0; 1024];
    init(PLACE, &mut block).unwrap();
    let mut bad = block.clone();
    bad[1016] ^= 1;
    assert!(matches!(verify(PLACE, &bad), Err(OrphanFileError::Magic(_))));
    let elsewhere = Place { pblk: Pblk(1), ..PLACE };
    assert!(matches!(verify(elsewhere, &block), Err(OrphanFileError::Checksum { .. })));
    verify(Place { inode_seed: None, ..PLACE }, &block).unwrap();
    assert_eq!(verify(PLACE, &block[..4]), Err(OrphanFileError::TooShort(4)));
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    for _ in 0..5000 {
        let len = rng.below(100);
        let mut block = rng.bytes(len);
        let _ = (verify(PLACE, &block), orphans(&block).count(), free_slot(&block, rng.below(40)));
        let _ = set(PLACE, &mut block, rng.below(40), Ino(3));
    }
}
