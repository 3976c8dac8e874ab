use super::{FreeMap, MOST_RUNS, Packed};
use crate::buddy::Buddy;
use crate::testrand::Rng;

/// The free runs of a plain map, one bool a cluster.
fn runs_of(plain: &[bool]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for at in (0..plain.len() as u32).filter(|at| plain[*at as usize]) {
        match runs.last_mut() {
            Some(last) if last.1 == at => last.1 += 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

/// The map says what `plain` says, in whatever form.
fn assert_same(map: &FreeMap, plain: &[bool]) {
    let runs = runs_of(plain);
    let mut buddy = Buddy::new_full(plain.len() as u32);
    for (start, end) in &runs {
        buddy.give(*start, end - start).unwrap();
    }
    assert_eq!(map.largest_order(), Some(buddy.largest_order()), "what the index is told");
    match map {
        FreeMap::Absent => panic!("dropped"),
        FreeMap::Packed(packed) => assert_eq!(packed.runs, runs),
        FreeMap::Open(open) => {
            assert_eq!(open.free(), buddy.free());
            assert_eq!(Packed::of(open).map(|p| p.runs), Packed::of(&buddy).map(|p| p.runs));
        }
    }
}

/// A run of equal clusters of `plain` that begins at `start`, at most `most` long.
fn same(plain: &[bool], start: u32, most: u32) -> u32 {
    let rest = &plain[start as usize..][..most as usize];
    rest.iter().take_while(|free| **free == rest[0]).count() as u32
}

#[test]
fn random_operations_and_changes_of_form_equal_the_plain_map() {
    let mut rng = Rng::from_env("free_map");
    for len in [64u32, 1000, 8192, 32768] {
        let mut plain = vec![false; len as usize];
        let mut map = FreeMap::Open(Box::new(Buddy::new_full(len)));
        let (mut packed, mut opened) = (0, 0);
        // Chance alone meets a full list in most runs only: large maps begin with one, and are then empty again.
        if len >= 8192 {
            let starts = (0..=MOST_RUNS as u32).map(|run| run * 3);
            for start in starts.clone() {
                opened += u32::from(map.give(start, 1).unwrap());
                map.pack();
            }
            starts.for_each(|start| map.buddy_mut().expect("open: the list was full").take(start, 1));
        }
        for step in 0..3000 {
            let start = rng.below(u64::from(len)) as u32;
            // Long runs first, then ever shorter ones, so that maps with few runs and with many are met.
            let most = (len >> (step / 300)).max(1);
            let wish = 1 + rng.below(u64::from(most.min(len - start))) as u32;
            let n = same(&plain, start, wish);
            let free = plain[start as usize];
            if free {
                map.open();
                map.buddy_mut().expect("open").take(start, n);
            } else {
                opened += u32::from(map.give(start, n).unwrap());
            }
            plain[start as usize..][..n as usize].fill(!free);
            if rng.below(2) == 0 {
                packed += u32::from(map.pack());
            }
            if step % 8 == 0 {
                assert_same(&map, &plain);
            }
        }
        assert!(packed > 0, "never packed");
        assert!(opened > 0 || len < 8192, "no give ever met a full list");
    }
}

#[test]
fn a_map_of_many_runs_stays_open() {
    let mut buddy = Buddy::new_full(32768);
    for run in 0..MOST_RUNS as u32 {
        buddy.give(run * 10, 1).unwrap();
    }
    let mut map = FreeMap::Open(Box::new(buddy));
    assert!(map.pack(), "{MOST_RUNS} runs are few");
    assert!(map.give(30000, 1).unwrap(), "one more opens it");
    assert!(!map.pack() && map.is_open());
}

#[test]
fn nothing_and_all_are_packed_and_opened_again() {
    for free in [false, true] {
        let mut map = FreeMap::Open(Box::new(Buddy::new_full(8192)));
        if free {
            map.give(0, 8192).unwrap();
        }
        assert!(map.pack() && !map.is_open());
        assert_same(&map, &vec![free; 8192]);
        assert!(map.open());
        assert_same(&map, &vec![free; 8192]);
    }
}

#[test]
fn freeing_free_clusters_of_a_packed_map_is_an_error() {
    let mut map = FreeMap::Open(Box::new(Buddy::new_full(8192)));
    map.give(100, 10).unwrap();
    assert!(map.pack());
    assert_eq!(map.give(95, 6), Err(100));
}

#[test]
fn freeing_around_free_clusters_of_a_packed_map_is_an_error() {
    let mut map = FreeMap::Open(Box::new(Buddy::new_full(8192)));
    map.give(100, 10).unwrap();
    map.give(90, 5).unwrap();
    assert!(map.pack());
    assert_eq!(map.give(95, 20), Err(100));
}
