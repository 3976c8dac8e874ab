//! Content and directories in both parts.

use super::{
    IBLOCK_LEN, capacity, find, init_dir, insert, parent, read, records, remove, second_part, to_block, write,
};
use crate::dir::{self, DirLayout, NewEntry};
use crate::inode::FileType;
use crate::testing::Rng;
use crate::types::Ino;
use crate::xattr::{AttrSet, Value};
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const LAYOUT: DirLayout = DirLayout {
    block_size: 1024,
    filetype: true,
    checksummed: true,
    hash_in_entry: false,
    inodes_count: 1000,
};

#[test]
fn content_round_trips_up_to_capacity() {
    let mut attrs = AttrSet::new();
    let area = 96;
    assert_eq!(capacity(&attrs, area), 60 + 96 - 4 - 4 - 20);
    assert_eq!(capacity(&attrs, 27), 0);
    assert_eq!(capacity(&attrs, 28), 60);
    attrs.set(1, b"a", Value::Inline(vec![1; 10])).unwrap();
    let max = capacity(&attrs, area);
    assert_eq!(max, 128 - 20 - 12);
    let mut i_block = [9; IBLOCK_LEN];
    for len in 0..=max {
        let data: Vec<u8> = (0..len as u8).collect();
        assert!(write(&data, &mut i_block, &mut attrs, area));
        let mut ibody = vec![0; area];
        attrs.write_ibody(&mut ibody).unwrap();
        let mut back = vec![0; 200];
        let second = second_part(&attrs).to_vec();
        assert_eq!(read(&i_block, &second, len as u64, 0, &mut back), len);
        assert_eq!(&back[..len], data);
        assert_eq!(read(&i_block, &second, len as u64, u64::MAX, &mut back), 0);
    }
    assert!(!write(&vec![0; max + 1], &mut i_block, &mut attrs, area));
}

#[test]
fn a_directory_behaves_like_a_map_and_converts() {
    let mut rng = Rng::from_env();
    for _ in 0..300 {
        let (mut i_block, mut second) = ([0; IBLOCK_LEN], Vec::new());
        init_dir(&LAYOUT, &mut i_block, Ino(2));
        let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for _ in 0..60 {
            let name = rng.name(3).into_bytes();
            let found = find(&LAYOUT, &i_block, &second, &name).unwrap().map(|(p, r)| (p, r.offset));
            assert_eq!(found.is_some(), model.contains_key(&name));
            if let Some((part, offset)) = found {
                remove(&LAYOUT, &mut i_block, &mut second, part, offset).unwrap();
                model.remove(&name);
                continue;
            }
            let ino = 11 + rng.below(900) as u32;
            let new = NewEntry::new(Ino(ino), FileType::Regular, &name);
            if insert(&LAYOUT, &mut i_block, &mut second, 60 + 68, &new).unwrap() {
                model.insert(name, ino);
            }
        }
        assert!(records(&LAYOUT, &i_block, &second).all(|(_, r)| r.is_ok()));
        assert_eq!(parent(&i_block), Ino(2));
        let mut block = vec![0; 1024];
        to_block(&LAYOUT, &i_block, &second, Ino(12), &mut block).unwrap();
        let all: Vec<_> = dir::entries(&LAYOUT, &block).map(|r| r.unwrap()).collect();
        assert_eq!((all[0].ino, all[1].ino, all.len()), (Ino(12), Ino(2), model.len() + 2));
        assert!(all[2..].iter().all(|r| model[r.name] == r.ino.0));
    }
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    for _ in 0..20_000 {
        let mut i_block = [0; IBLOCK_LEN];
        init_dir(&LAYOUT, &mut i_block, Ino(2));
        let len = rng.below(80);
        let mut second = rng.bytes(len);
        rng.mutate(&mut i_block);
        let new = NewEntry::new(Ino(11), FileType::Regular, b"name");
        let _ = insert(&LAYOUT, &mut i_block, &mut second, rng.below(300), &new);
        let all: Vec<_> =
            records(&LAYOUT, &i_block, &second).filter_map(|(p, r)| r.ok().map(|r| (p, r.offset))).collect();
        if let Some(&(part, offset)) = all.get(rng.below(all.len())) {
            let _ = remove(&LAYOUT, &mut i_block, &mut second, part, offset);
        }
        let _ = to_block(&LAYOUT, &i_block, &second, Ino(12), &mut vec![0; 1024]);
        let _ = read(&i_block, &second, rng.next(), rng.next(), &mut [0; 100]);
    }
}
