use std::collections::BTreeSet;

use super::{GroupSet, OrderIndex};
use crate::testrand::Rng;

#[test]
fn set_equals_a_plain_set() {
    let mut rng = Rng::from_env("group set");
    for groups in [1usize, 64, 65, 5000, 200_000] {
        let set = GroupSet::new(groups);
        let mut plain = BTreeSet::new();
        for _ in 0..2000 {
            let g = rng.below(groups as u64) as usize;
            if rng.below(2) == 0 {
                set.insert(g);
                plain.insert(g);
            } else {
                set.remove(g);
                plain.remove(&g);
            }
            let from = rng.below(groups as u64 + 2) as usize;
            assert_eq!(set.next(from), plain.range(from..).next().copied());
        }
    }
}

#[test]
fn concurrent_changes_lose_no_member() {
    let set = GroupSet::new(4096);
    std::thread::scope(|s| {
        for t in 0..4 {
            let set = &set;
            s.spawn(move || {
                for round in 0..200 {
                    for g in (t..4096).step_by(4) {
                        set.insert(g);
                        if (g + round) % 3 != 0 || round == 199 && g % 2 == 0 {
                            set.remove(g);
                        }
                    }
                }
            });
        }
    });
    let left: Vec<_> = std::iter::successors(set.next(0), |g| set.next(g + 1)).collect();
    let want: Vec<_> = (0..4096).filter(|g| (g + 199) % 3 == 0 && g % 2 != 0).collect();
    assert_eq!(left, want);
}

#[test]
fn nearest_group_of_sufficient_order_wins() {
    let index = OrderIndex::new(100);
    index.shift(10, None, Some(4));
    index.shift(20, None, Some(9));
    assert_eq!(index.first_in(3, 5), Some(10));
    assert_eq!(index.first_in(5, 5), Some(20));
    assert_eq!(index.first_in(5, 50), None);
    assert_eq!(index.first_in(10, 0), None);
    assert_eq!(index.largest_below(9), Some(4));
    index.shift(20, Some(9), None);
    assert_eq!(index.first_in(5, 0), None);
}
