use std::vec;
use std::vec::Vec;

use super::*;

#[test]
fn ranges_are_checked_before_they_change() {
    let mut map = vec![0; 16];
    set_range(&mut map, 5, 70).unwrap();
    assert_eq!((count_ones(&map, 0, 128), count_zeros(&map, 0, 128)), (70, 58));
    let before = map.clone();
    assert_eq!(set_range(&mut map, 70, 10), Err(Corrupt::Bit { bit: 70, set: true }));
    assert_eq!(clear_range(&mut map, 74, 3), Err(Corrupt::Bit { bit: 75, set: false }));
    assert!(matches!(set_range(&mut map, 120, 9), Err(Corrupt::Short { have: 16, need: 17 })));
    assert!(matches!(clear_range(&mut map, u32::MAX, u32::MAX), Err(Corrupt::Short { .. })));
    assert_eq!(map, before);
    clear_range(&mut map, 5, 70).unwrap();
    assert!(map.iter().all(|&b| b == 0));
}

#[test]
fn bits_outside_read_as_set() {
    let mut map = vec![0; 2];
    assert!(test(&map, 16) && !test(&map, 15));
    assert!(set(&mut map, 99) && clear(&mut map, 99));
    assert_eq!(map, [0, 0]);
    pad(&mut map, 11);
    assert_eq!(map, [0, 0xf8]);
    assert!(is_padded(&map, 11) && !is_padded(&map, 10));
}

#[test]
fn against_a_list_of_bools() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5u64);
    std::eprintln!("seed={seed}");
    let mut state = seed | 1;
    let mut next = move |n: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(n)) as u32
    };
    for _ in 0..500 {
        let bytes = 1 + next(30);
        let (mut map, mut list) = (vec![0u8; bytes as usize], vec![false; bytes as usize * 8]);
        for _ in 0..next(8) {
            let (from, to, value) = (next(bytes * 8), next(bytes * 8 + 9), next(2) == 1);
            fill(&mut map, from, to, value);
            let to = (to as usize).min(list.len());
            if (from as usize) < to {
                list[from as usize..to].fill(value);
            }
        }
        let (from, to) = (next(bytes * 8), next(bytes * 8 + 1));
        let span: Vec<u32> = (from..to).collect();
        let find = |value| span.iter().copied().find(|&n| list[n as usize] == value);
        assert_eq!(find_one(&map, from, to), find(true));
        assert_eq!(find_zero(&map, from, to), find(false));
        let ones = span.iter().filter(|&&n| list[n as usize]).count() as u32;
        assert_eq!(count_ones(&map, from, to), ones);
        assert_eq!(count_zeros(&map, from, to), span.len() as u32 - ones);
    }
}
