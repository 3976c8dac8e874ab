use super::{MOST_SPARES, Pool, Relief};

#[test]
fn a_spare_is_started_when_the_last_reader_begins_a_long_operation() {
    let pool = Pool::new(2);
    assert!(matches!(pool.begin_long(), Relief::None), "the other reader comes back");
    assert!(matches!(pool.begin_long(), Relief::Start(_)));
    pool.end_long();
    assert!(matches!(pool.begin_long(), Relief::None), "the spare reads");
    assert!(matches!(pool.begin_long(), Relief::Start(_)), "it is in a long operation, too");
}

#[test]
fn a_parked_spare_is_woken_first() {
    let pool = Pool::new(1);
    assert!(matches!(pool.begin_long(), Relief::Start(_)));
    assert!(pool.park(), "the only reader that is not in a long operation does not park");
    pool.end_long();
    std::thread::scope(|scope| {
        let spare = scope.spawn(|| pool.park());
        while pool.state.lock().parked == 0 {
            std::thread::yield_now();
        }
        assert!(matches!(pool.begin_long(), Relief::None));
        assert!(spare.join().expect("no panic"));
    });
}

#[test]
fn a_spare_that_ended_leaves_its_place() {
    let pool = Pool::new(1);
    // More often than there are places.
    for _ in 0..3 * MOST_SPARES {
        let Relief::Start(number) = pool.begin_long() else { panic!("a place is free") };
        assert!(number < MOST_SPARES);
        pool.ended(number);
        pool.end_long();
    }
    let mut numbers: Vec<usize> = (0..MOST_SPARES)
        .map(|_| match pool.begin_long() {
            Relief::Start(number) => number,
            Relief::None => panic!("all places are free"),
        })
        .collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..MOST_SPARES), "each number is one reader's");
    assert!(matches!(pool.begin_long(), Relief::None), "no more than that");
}
