use super::{Buddy, MAX_ORDERS};
use crate::testrand::Rng;

/// The plain truth to compare with: one bool a cluster.
struct Plain(Vec<bool>);

impl Plain {
    fn bitmap(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; self.0.len().div_ceil(8)];
        for (i, free) in self.0.iter().enumerate() {
            bytes[i / 8] |= u8::from(!free) << (i % 8);
        }
        bytes
    }

    fn run_at(&self, start: usize) -> usize {
        self.0[start..].iter().take_while(|f| **f).count()
    }
}

fn assert_canonical(buddy: &Buddy, plain: &Plain) {
    let rebuilt = Buddy::from_bitmap(&plain.bitmap(), plain.0.len() as u32);
    assert_eq!(buddy.free, rebuilt.free);
    assert_eq!(buddy.nonempty, rebuilt.nonempty);
    assert_eq!(buddy.counts, rebuilt.counts);
    assert_eq!(buddy.bits, rebuilt.bits);
}

#[test]
fn bitmap_of_one_long_run_becomes_its_aligned_chunks() {
    let mut bitmap = vec![0u8; 8];
    bitmap[0] = 0b0000_0111;
    let buddy = Buddy::from_bitmap(&bitmap, 50);
    assert_eq!(buddy.free(), 47);
    assert_eq!(buddy.run_at(3, 100), 47);
    assert_eq!(buddy.run_before(50, 100), 47);
    assert_eq!(buddy.largest_order(), Some(4));
    assert_eq!(buddy.next_run(0), Some(3..50));
}

#[test]
fn missing_bitmap_bytes_count_as_in_use() {
    assert_eq!(Buddy::from_bitmap(&[0], 64).free(), 8);
}

#[test]
fn full_group_has_no_order() {
    let mut buddy = Buddy::new_full(1 << (MAX_ORDERS - 1));
    assert_eq!(buddy.largest_order(), None);
    assert_eq!(buddy.find_order(0), None);
    assert_eq!(buddy.find_best(1), None);
    buddy.give(0, 1 << (MAX_ORDERS - 1)).unwrap();
    assert_eq!(buddy.largest_order(), Some(MAX_ORDERS as u32 - 1));
}

#[test]
#[should_panic(expected = "is not free")]
fn taking_a_used_cluster_is_an_assertion() {
    let mut buddy = Buddy::from_bitmap(&[0b0001_0000], 8);
    buddy.take(2, 4);
}

#[test]
fn freeing_a_free_cluster_is_an_error() {
    let mut buddy = Buddy::from_bitmap(&[0b0000_1100], 8);
    assert_eq!(buddy.give(3, 2), Err(4));
}

#[test]
fn best_fit_takes_the_run_that_holds_all_before_a_longer_chunk() {
    // Free: 10..22 (12 clusters, no aligned chunk of 16) and 40..44.
    let mut plain = Plain(vec![false; 64]);
    plain.0[10..22].fill(true);
    plain.0[40..44].fill(true);
    let mut buddy = Buddy::from_bitmap(&plain.bitmap(), 64);
    assert_eq!(buddy.find_best(12), Some((10, 12)));
    assert_eq!(buddy.find_best(13), Some((10, 12)));
    assert_eq!(buddy.find_best(4).map(|f| f.1), Some(4));
}

#[test]
fn aligned_search_keeps_the_phase() {
    let buddy = Buddy::from_bitmap(&[0; 32], 256);
    assert_eq!(buddy.find_aligned(16, 16, 5, 0), Some(5));
    assert_eq!(buddy.find_aligned(16, 16, 5, 6), Some(21));
    assert_eq!(buddy.find_aligned(16, 16, 5, 250), Some(5));
}

#[test]
fn random_operations_equal_the_plain_bitmap() {
    let mut rng = Rng::from_env("buddy");
    for len in [1u32, 2, 63, 64, 65, 100, 1000, 4096, 32768] {
        let mut plain = Plain(vec![false; len as usize]);
        let mut buddy = Buddy::new_full(len);
        for step in 0..400 {
            let start = rng.below(u64::from(len)) as u32;
            let cap = 1 + rng.below(u64::from(len));
            let wish = 1 + rng.below(u64::from(len - start).min(cap)) as u32;
            let same = plain.0[start as usize..][..wish as usize]
                .iter()
                .take_while(|f| **f == plain.0[start as usize])
                .count() as u32;
            if plain.0[start as usize] {
                assert_eq!(buddy.run_at(start, wish), same);
                buddy.take(start, same);
                plain.0[start as usize..][..same as usize].fill(false);
            } else {
                assert_eq!(buddy.run_at(start, wish), 0);
                buddy.give(start, same).unwrap();
                plain.0[start as usize..][..same as usize].fill(true);
            }
            if step % 16 == 0 {
                assert_canonical(&buddy, &plain);
            }
            check_searches(&mut buddy, &plain, &mut rng);
        }
        assert_canonical(&buddy, &plain);
    }
}

fn check_searches(buddy: &mut Buddy, plain: &Plain, rng: &mut Rng) {
    let len = plain.0.len();
    let want = 1 + rng.below(len as u64) as u32;
    match buddy.find_best(want) {
        Some((start, n)) => {
            assert!(n <= want && plain.run_at(start as usize) >= n as usize);
        }
        None => assert_eq!(buddy.free(), 0),
    }
    let from = rng.below(len as u64) as usize;
    let next = (from..len).find(|&i| plain.0[i]).map(|i| i as u32);
    match buddy.next_run(from as u32) {
        Some(run) => {
            assert_eq!(Some(run.start), next);
            assert_eq!(run.len(), plain.run_at(run.start as usize));
        }
        None => assert_eq!(next, None),
    }
}
