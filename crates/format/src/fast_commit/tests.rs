use alloc::vec;
use alloc::vec::Vec;

use super::*;

fn record(tag: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&tag.to_le_bytes());
    bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
    bytes.extend_from_slice(value);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn head(tid: u32) -> Vec<u8> {
    record(9, &words(&[0, tid]))
}

/// Appends a tail that fills the block.
fn closed(mut bytes: Vec<u8>, tid: u32, start: usize) -> Vec<u8> {
    let len = (1024 - bytes.len() - 4) as u16;
    bytes.extend_from_slice(&8u16.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&tid.to_le_bytes());
    let crc = crc32c_raw(0, &bytes[start..]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.resize(1024, 0);
    bytes
}

fn name(tag: u16, parent: u32, ino: u32, name: &[u8]) -> Vec<u8> {
    record(tag, &[&words(&[parent, ino]), name].concat())
}

#[test]
fn whole_commits_are_kept_and_a_torn_one_is_not() {
    let first = closed([head(7), name(3, 2, 12, b"a")].concat(), 7, 0);
    let second = closed(record(2, &words(&[12, 5, 6])), 7, 0);
    let mut third = closed(name(5, 2, 12, b"a"), 7, 0);
    third[5] ^= 1;
    let mut scanner = Scanner::new(Tid(7));
    scanner.block(&first).unwrap();
    scanner.block(&second).unwrap();
    assert_eq!(scanner.block(&third), Err(End::Checksum));
    assert_eq!(scanner.commits(), 2);
    assert_eq!(
        scanner.finish(),
        [
            Operation::Create(Dentry { parent: Ino(2), ino: Ino(12), name: b"a".to_vec() }),
            Operation::DelRange { ino: Ino(12), lblk: Lblk(5), len: 6 },
        ]
    );
}

#[test]
fn the_checksum_runs_over_a_pad_into_the_next_block() {
    let mut first = [head(7), name(4, 2, 12, b"b")].concat();
    let pad = 1024 - first.len() - 4;
    first.extend(record(7, &vec![0; pad]));
    let both = [first.clone(), name(5, 2, 13, b"c")].concat();
    let crc = {
        let mut all = both.clone();
        all.extend_from_slice(&8u16.to_le_bytes());
        all.extend_from_slice(&8u16.to_le_bytes());
        all.extend_from_slice(&7u32.to_le_bytes());
        crc32c_raw(0, &all)
    };
    let second = [name(5, 2, 13, b"c"), record(8, &words(&[7, crc]))].concat();
    let mut scanner = Scanner::new(Tid(7));
    scanner.block(&first).unwrap();
    scanner.block(&second).unwrap();
    assert_eq!(scanner.finish().len(), 2);
}

#[test]
fn an_area_of_another_transaction_is_void() {
    let block = closed(head(6), 6, 0);
    assert_eq!(Scanner::new(Tid(7)).block(&block), Err(End::Void));
    assert_eq!(Scanner::new(Tid(7)).block(&name(3, 2, 12, b"a")), Err(End::Void));
    assert_eq!(Scanner::new(Tid(7)).block(&vec![0; 1024]), Err(End::Record { tag: 0, len: 0 }));
    assert_eq!(Scanner::new(Tid(7)).block(&record(9, &words(&[4, 7]))), Err(End::Features(4)));
}

#[test]
fn an_extent_longer_than_32768_is_unwritten() {
    let value =
        [&words(&[12, 3])[..], &0x8002u16.to_le_bytes(), &1u16.to_le_bytes(), &9u32.to_le_bytes()].concat();
    let Some(Operation::AddRange { len, pblk, unwritten, .. }) = read_add_range(&value) else {
        panic!("not a range")
    };
    assert_eq!((len, pblk, unwritten), (2, Pblk(1 << 32 | 9), true));
}

#[test]
fn records_of_impossible_lengths_end_the_scan() {
    for (tag, len) in [(1, 15), (1, 17), (2, 11), (3, 8), (4, 264), (6, 131), (8, 7), (9, 9), (10, 8), (0, 0)]
    {
        let block = [head(7), record(tag, &vec![1; len])].concat();
        let mut scanner = Scanner::new(Tid(7));
        assert_eq!(scanner.block(&block), Err(End::Record { tag, len: len as u16 }), "tag {tag} len {len}");
    }
    let mut cut = head(7);
    cut.extend_from_slice(&3u16.to_le_bytes());
    cut.extend_from_slice(&500u16.to_le_bytes());
    assert_eq!(Scanner::new(Tid(7)).block(&cut), Err(End::Record { tag: 3, len: 500 }));
}
