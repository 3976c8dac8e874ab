//! Linear blocks against a model, and against random bytes.

use super::{
    DirError, DirLayout, NewEntry, decode_rec_len, encode_rec_len, entries, find, has_tail, init_empty,
    init_first, insert, is_empty, pack, record_at, records, remove, set_ino, set_tail, validate, verify_tail,
};
use crate::inode::FileType;
use crate::testing::Rng;
use crate::types::Ino;
use std::collections::BTreeMap;
use std::string::String;
use std::vec;
use std::vec::Vec;

fn layout(block_size: u32) -> DirLayout {
    DirLayout { block_size, filetype: true, checksummed: true, hash_in_entry: false, inodes_count: 1000 }
}

#[test]
fn rec_len_round_trips_for_all_block_sizes() {
    for block_size in [1024_u32, 4096, 32768, 65536] {
        for len in (12..=block_size).step_by(4) {
            // 65532 in a 64 KiB block and above reads back exactly; 65536 there means the whole block.
            assert_eq!(
                decode_rec_len(encode_rec_len(len, block_size), block_size),
                len,
                "{len} of {block_size}"
            );
        }
    }
}

#[test]
fn a_block_behaves_like_a_map() {
    let mut rng = Rng::from_env();
    for block_size in [1024, 4096, 65536] {
        for checksummed in [false, true] {
            let layout = DirLayout { checksummed, ..layout(block_size) };
            let mut block = vec![0xaa; block_size as usize];
            init_first(&layout, &mut block, Ino(2), Ino(2)).unwrap();
            let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for _ in 0..2000 {
                step(&mut rng, &layout, &mut block, &mut model);
            }
            set_tail(&layout, &mut block, 7);
            verify_tail(&layout, &block, 7).unwrap();
            compare(&layout, &block, &model);
        }
    }
}

fn step(rng: &mut Rng, layout: &DirLayout, block: &mut [u8], model: &mut BTreeMap<Vec<u8>, u32>) {
    let max = if rng.chance(8) { 255 } else { 3 };
    let name = rng.name(max).into_bytes();
    let ino = 11 + rng.below(900) as u32;
    match (find(layout, block, &name).unwrap().map(|r| r.offset), rng.below(3)) {
        (Some(offset), 0) => {
            set_ino(layout, block, offset, Ino(ino), FileType::Fifo).unwrap();
            model.insert(name, ino);
        }
        (Some(offset), _) => {
            assert!(model.remove(&name).is_some());
            remove(layout, block, offset).unwrap();
        }
        (None, _) => {
            assert!(!model.contains_key(&name));
            let new = NewEntry::new(Ino(ino), FileType::Regular, &name);
            if insert(layout, block, &new).unwrap().is_some() {
                model.insert(name, ino);
            } else if let Some(victim) = model.keys().nth(rng.below(model.len())).cloned() {
                let offset = find(layout, block, &victim).unwrap().unwrap().offset;
                remove(layout, block, offset).unwrap();
                model.remove(&victim);
            }
        }
    }
}

fn compare(layout: &DirLayout, block: &[u8], model: &BTreeMap<Vec<u8>, u32>) {
    validate(layout, block).unwrap();
    let found: BTreeMap<Vec<u8>, u32> = entries(layout, block)
        .map(|r| r.unwrap())
        .filter(|r| !r.is_dot_or_dotdot())
        .map(|r| (r.name.to_vec(), r.ino.0))
        .collect();
    assert_eq!(&found, model);
    assert_eq!(is_empty(layout, block).unwrap(), model.is_empty());
}

#[test]
fn an_empty_block_has_one_unused_record_and_a_tail() {
    let layout = layout(1024);
    let mut block = vec![1; 1024];
    init_empty(&layout, &mut block).unwrap();
    let all: Vec<_> = records(&layout, &block).collect::<Result<_, _>>().unwrap();
    assert_eq!((all.len(), all[0].rec_len, all[0].is_used()), (1, 1012, false));
    assert!(has_tail(&block));
    assert!(verify_tail(&layout, &block, 1).is_err());
    set_tail(&layout, &mut block, 1);
    assert!(verify_tail(&layout, &block, 1).is_ok());
    block[1016] ^= 1;
    assert_eq!(verify_tail(&layout, &block, 1), Err(DirError::MissingTail));
}

#[test]
fn each_kind_of_damage_has_its_error() {
    let layout = layout(1024);
    let mut good = vec![0; 1024];
    init_first(&layout, &mut good, Ino(2), Ino(2)).unwrap();
    insert(&layout, &mut good, &NewEntry::new(Ino(12), FileType::Regular, b"hello")).unwrap();
    let bad = |at: usize, bytes: &[u8]| {
        let mut block = good.clone();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        validate(&layout, &block).unwrap_err()
    };
    assert!(matches!(bad(28, &[8, 0]), DirError::RecLenTooSmall { offset: 24, rec_len: 8 }));
    assert!(matches!(bad(28, &[13, 0]), DirError::RecLenUnaligned { offset: 24, .. }));
    assert!(matches!(bad(28, &[0xf8, 3]), DirError::Overrun { offset: 24, end: 1012, .. }));
    assert!(matches!(bad(28, &[12, 0]), DirError::NameLen { offset: 24, name_len: 5, rec_len: 12 }));
    assert!(matches!(bad(30, &[0]), DirError::EmptyName { offset: 24, ino: 12 }));
    assert!(matches!(bad(24, &[0xe9, 3]), DirError::InodeRange { ino: 1001, max: 1000, .. }));
    assert!(matches!(record_at(&layout, &good, 1020), Err(DirError::Overrun { .. })));
    assert!(matches!(remove(&layout, &mut good.clone(), 26), Err(DirError::NoSuchRecord { offset: 26 })));
    let long = [b'x'; 256];
    let too_long = insert(&layout, &mut good.clone(), &NewEntry::new(Ino(12), FileType::Regular, &long));
    assert_eq!(too_long, Err(DirError::BadName { len: 256 }));
}

#[test]
fn stored_hashes_are_written_and_read() {
    let layout = DirLayout { hash_in_entry: true, ..layout(1024) };
    let mut block = vec![0; 1024];
    init_first(&layout, &mut block, Ino(2), Ino(2)).unwrap();
    let new = NewEntry { stored_hash: Some((6, 9)), ..NewEntry::new(Ino(12), FileType::Regular, b"secret") };
    insert(&layout, &mut block, &new).unwrap().unwrap();
    let found = find(&layout, &block, b"secret").unwrap().unwrap();
    assert_eq!(found.stored_hash, Some((6, 9)));
    assert_eq!(found.offset, 24);
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    for round in 0..30_000 {
        let size = [60, 1024, 1024, 4096][rng.below(4)];
        let layout = DirLayout {
            block_size: [1024, 4096, 65536][rng.below(3)],
            filetype: rng.chance(2),
            checksummed: rng.chance(2),
            hash_in_entry: rng.chance(4),
            inodes_count: 1000,
        };
        let mut block = rng.bytes(size);
        if round % 2 == 0 {
            let names: Vec<String> = (0..rng.below(40)).map(|_| rng.name(12)).collect();
            let new = |n| NewEntry::new(Ino(12), FileType::Regular, n);
            let _ = pack(&layout, &mut block, names.iter().map(|n| new(n.as_bytes())));
            rng.mutate(&mut block);
        }
        exercise(&mut rng, &layout, &mut block);
    }
}

fn exercise(rng: &mut Rng, layout: &DirLayout, block: &mut [u8]) {
    let _ = verify_tail(layout, block, 3);
    let offsets: Vec<u32> = records(layout, block).filter_map(|r| r.ok().map(|r| r.offset)).collect();
    let name = rng.name(40).into_bytes();
    let _ = insert(layout, block, &NewEntry::new(Ino(5), FileType::Symlink, &name));
    if let Some(&offset) = offsets.get(rng.below(offsets.len())) {
        let before = validate(layout, block);
        let _ = set_ino(layout, block, offset, Ino(6), FileType::Socket);
        let _ = remove(layout, block, offset);
        if before.is_ok() {
            validate(layout, block).unwrap();
        }
    }
    let _ = find(layout, block, &name);
    set_tail(layout, block, 3);
}
