use super::{Pool, Relief};

#[test]
fn a_spare_is_started_when_the_last_reader_begins_a_long_operation() {
    let pool = Pool::new(2);
    assert!(matches!(pool.begin_long(), Relief::None), "the other reader comes back");
    assert!(matches!(pool.begin_long(), Relief::Start));
    pool.end_long();
    assert!(matches!(pool.begin_long(), Relief::None), "the spare reads");
    assert!(matches!(pool.begin_long(), Relief::Start), "it is in a long operation, too");
}

#[test]
fn a_parked_spare_is_woken_first() {
    let pool = Pool::new(1);
    assert!(matches!(pool.begin_long(), Relief::Start));
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
