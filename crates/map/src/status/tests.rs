use extant_format::{Lblk, Pblk};
use extant_sync::Arc;

use super::{ExtentStatus, LIMIT, Run, Status, StatusBudget};
use crate::testrand::Rng;

fn cache() -> ExtentStatus {
    ExtentStatus::new(StatusBudget::new(1 << 20))
}

#[test]
fn neighbours_of_one_run_become_one_entry() {
    let es = cache();
    es.changed(Lblk(0), 4, Status::Written(Pblk(100)));
    es.changed(Lblk(8), 4, Status::Written(Pblk(108)));
    es.changed(Lblk(4), 4, Status::Written(Pblk(104)));
    assert_eq!(es.len(), 1);
    assert_eq!(es.lookup(Lblk(3), 100), Some(Run::Mapped { pblk: Pblk(103), len: 9, unwritten: false }));
    assert_eq!(es.lookup(Lblk(12), 1), None);
}

#[test]
fn a_cached_hole_leaves_delayed_blocks_alone() {
    let es = cache();
    es.set_delayed(Lblk(10), 2);
    es.remember(Lblk(0), Run::Hole { len: 100 });
    assert_eq!(es.status(Lblk(10), 9), Some((Status::Delayed, 2)));
    assert_eq!(es.status(Lblk(12), 1000), Some((Status::Hole, 88)));
    assert_eq!(es.lookup(Lblk(10), 9), Some(Run::Hole { len: 2 }));
    es.clear_delayed(Lblk(0), 100);
    assert_eq!(es.status(Lblk(0), 1000), Some((Status::Hole, 100)));
}

#[test]
fn only_changes_of_the_map_raise_the_sequence_number() {
    let es = cache();
    es.remember(Lblk(0), Run::Hole { len: 5 });
    es.set_delayed(Lblk(1), 1);
    es.shrink();
    assert_eq!(es.seq(), 0);
    es.changed(Lblk(1), 1, Status::Written(Pblk(9)));
    es.forget(Lblk(0), 5);
    assert_eq!(es.seq(), 2);
}

#[test]
fn the_cache_is_bounded_and_keeps_delayed_ranges() {
    let budget = StatusBudget::new(usize::MAX);
    let es = ExtentStatus::new(Arc::clone(&budget));
    es.set_delayed(Lblk(1), 1);
    for i in 1..3 * LIMIT as u32 {
        es.remember(Lblk(i * 4), Run::Mapped { pblk: Pblk(u64::from(i) * 7), len: 1, unwritten: false });
        assert!(es.len() <= LIMIT + 3);
        assert_eq!(es.len(), budget.used());
    }
    assert_eq!(es.status(Lblk(1), 1), Some((Status::Delayed, 1)));
    drop(es);
    assert_eq!(budget.used(), 0);
}

#[test]
fn all_caches_together_stay_near_the_budget() {
    let budget = StatusBudget::new(100);
    let caches: Vec<_> = (0..10).map(|_| ExtentStatus::new(Arc::clone(&budget))).collect();
    for i in 0..1000u32 {
        let run = Run::Mapped { pblk: Pblk(u64::from(i) * 3), len: 1, unwritten: true };
        caches[i as usize % 10].remember(Lblk(i * 2), run);
        assert!(budget.used() <= 110);
    }
}

#[test]
fn the_end_of_the_address_space_does_not_overflow() {
    let es = cache();
    es.remember(Lblk(0), Run::Hole { len: u32::MAX });
    es.changed(Lblk(u32::MAX - 2), 2, Status::Written(Pblk(5)));
    es.forget(Lblk(u32::MAX - 1), u32::MAX);
    assert_eq!(es.status(Lblk(u32::MAX - 2), 9), Some((Status::Written(Pblk(5)), 1)));
    assert_eq!(es.status(Lblk(u32::MAX - 1), 1), None);
    assert_eq!(es.status(Lblk(u32::MAX), 1), None);
}

#[test]
fn random_operations_equal_a_plain_array() {
    const N: u32 = 200;
    let mut rng = Rng::from_env("extent status");
    let es = cache();
    let mut plain: Vec<Option<Status>> = vec![None; N as usize];
    for _ in 0..20_000 {
        let lblk = rng.below(u64::from(N)) as u32;
        let len = 1 + rng.below(u64::from((N - lblk).min(20))) as u32;
        let range = lblk as usize..(lblk + len) as usize;
        let pblk = Pblk(rng.below(4) * 1000 + u64::from(lblk));
        match rng.below(7) {
            0 => {
                es.remember(Lblk(lblk), Run::Hole { len });
                for s in &mut plain[range] {
                    *s = Some(if *s == Some(Status::Delayed) { Status::Delayed } else { Status::Hole });
                }
            }
            1 => {
                es.changed(Lblk(lblk), len, Status::Written(pblk));
                fill(&mut plain[range], Status::Written(pblk));
            }
            2 => {
                es.changed(Lblk(lblk), len, Status::Unwritten(pblk));
                fill(&mut plain[range], Status::Unwritten(pblk));
            }
            3 => {
                es.set_delayed(Lblk(lblk), len);
                fill(&mut plain[range], Status::Delayed);
            }
            4 => {
                es.clear_delayed(Lblk(lblk), len);
                for s in plain[range].iter_mut().filter(|s| **s == Some(Status::Delayed)) {
                    *s = Some(Status::Hole);
                }
            }
            5 => {
                es.forget(Lblk(lblk), len);
                for s in plain[range].iter_mut().filter(|s| **s != Some(Status::Delayed)) {
                    *s = None;
                }
            }
            _ => {
                es.changed(Lblk(lblk), len, Status::Hole);
                fill(&mut plain[range], Status::Hole);
            }
        }
        check(&es, &plain);
    }
}

fn fill(range: &mut [Option<Status>], status: Status) {
    for (i, s) in range.iter_mut().enumerate() {
        *s = Some(status.advance(i as u32));
    }
}

fn check(es: &ExtentStatus, plain: &[Option<Status>]) {
    let mut at = 0;
    while at < plain.len() {
        match es.status(Lblk(at as u32), u32::MAX) {
            None => {
                assert_eq!(plain[at], None);
                at += 1;
            }
            Some((status, len)) => {
                for i in 0..len {
                    assert_eq!(plain[at + i as usize], Some(status.advance(i)));
                }
                at += len as usize;
            }
        }
    }
    let delayed = plain.iter().position(|s| *s == Some(Status::Delayed)).map(|i| Lblk(i as u32));
    assert_eq!(es.next_delayed(Lblk(0), u32::MAX), delayed);
}
