//! What the order check allows and refuses.

use extant_sync::{Arc, Condvar, Held, Mutex, Rank, RwLock, assert_nothing_held, holds, thread};

fn mutex(rank: Rank) -> Mutex<u32> {
    Mutex::new(rank, 0)
}

#[test]
fn ascending_ranks_are_allowed() {
    let (a, b, c) = (mutex(Rank::INODE), mutex(Rank::PAGE), mutex(Rank::LEAF));
    let _a = a.lock();
    let _b = b.lock();
    let _c = c.lock();
}

#[test]
#[should_panic(expected = "inode lock (rank 20) wanted at")]
fn descending_ranks_panic() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::PAGE));
    let _b = b.lock();
    let _a = a.lock();
}

#[test]
fn the_message_names_both_places() {
    let result = std::panic::catch_unwind(|| {
        let (a, b) = (mutex(Rank::INODE), mutex(Rank::PAGE));
        let _b = b.lock();
        let _a = a.lock();
    });
    let message = *result.unwrap_err().downcast::<String>().expect("a formatted message");
    assert_eq!(message.matches("order.rs:").count(), 2, "{message}");
    assert!(message.contains("page lock (rank 50) is held since"), "{message}");
}

#[test]
#[should_panic(expected = "lock order")]
fn one_rank_twice_panics_without_keys() {
    let (a, b) = (mutex(Rank::GROUP), mutex(Rank::GROUP));
    let _a = a.lock();
    let _b = b.lock();
}

#[test]
fn one_rank_twice_with_ascending_keys_is_allowed() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::INODE));
    let _a = a.lock_ordered(11);
    let _b = b.lock_ordered(12);
}

#[test]
#[should_panic(expected = "key 11 wanted at")]
fn one_rank_twice_with_descending_keys_panics() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::INODE));
    let _a = a.lock_ordered(12);
    let _b = b.lock_ordered(11);
}

#[test]
#[should_panic(expected = "lock order")]
fn reading_twice_panics() {
    let l = RwLock::new(Rank::INVALIDATE, ());
    let _a = l.read();
    let _b = l.read();
}

#[test]
#[should_panic(expected = "lock order")]
fn shared_access_counts_in_the_order() {
    let l = RwLock::new(Rank::INVALIDATE, ());
    let m = mutex(Rank::INODE);
    let _l = l.read();
    let _m = m.lock();
}

#[test]
fn a_try_may_go_backwards() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::PAGE));
    let _b = b.lock();
    assert!(a.try_lock().is_some());
}

#[test]
#[should_panic(expected = "lock order")]
fn what_a_try_got_counts() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::PAGE));
    let _b = b.try_lock().expect("nobody else is there");
    let _a = a.lock();
}

#[test]
fn releasing_in_any_order_is_fine() {
    let (a, b, c) = (mutex(Rank::INODE), mutex(Rank::PAGE), mutex(Rank::GROUP));
    let ga = a.lock();
    let gb = b.lock();
    drop(ga);
    let gc = c.lock();
    drop(gb);
    drop(gc);
    let _a = a.lock();
}

#[test]
#[should_panic(expected = "journal handle (rank 60) is held since")]
fn states_that_are_no_mutexes_count() {
    let m = mutex(Rank::PAGE);
    let _handle = Held::enter(Rank::HANDLE, None);
    let _m = m.lock();
}

#[test]
#[should_panic(expected = "lock order")]
fn a_second_handle_is_refused() {
    let _a = Held::enter(Rank::HANDLE, None);
    let _b = Held::enter(Rank::HANDLE, None);
}

#[test]
fn a_boundary_starts_the_order_anew() {
    let (outer, inner) = (mutex(Rank::JOURNAL_STATE), mutex(Rank::INODE));
    let _outer = outer.lock();
    {
        let _boundary = Held::boundary();
        let _inner = inner.lock();
        assert!(!holds(Rank::JOURNAL_STATE));
    }
    assert!(holds(Rank::JOURNAL_STATE));
}

#[test]
#[should_panic(expected = "copying from a caller's buffer")]
fn asserting_that_nothing_is_held() {
    let m = mutex(Rank::INODE);
    let _m = m.lock();
    assert_nothing_held(Rank::FREEZE_WRITE, "copying from a caller's buffer");
}

#[test]
#[should_panic(expected = "lock order")]
fn waiting_with_a_later_lock_panics() {
    let (a, b) = (mutex(Rank::INODE), mutex(Rank::PAGE));
    let condvar = Condvar::new();
    let mut a = a.lock();
    let _b = b.lock();
    condvar.wait(&mut a);
}

#[test]
fn a_condition_passes_between_threads() {
    let shared = Arc::new((mutex(Rank::LEAF), Condvar::new()));
    let other = Arc::clone(&shared);
    let waiter = thread::spawn(move || {
        let mut n = other.0.lock();
        other.1.wait_while(&mut n, |n| *n < 3);
        *n
    });
    for _ in 0..3 {
        *shared.0.lock() += 1;
        shared.1.notify_all();
    }
    assert_eq!(waiter.join().expect("the waiter ends"), 3);
}

#[test]
fn owned_guards_outlive_the_last_other_reference() {
    let m = Arc::new(mutex(Rank::INODE));
    let mut guard = m.lock_arc();
    assert!(m.try_lock().is_none());
    drop(m);
    *guard += 1;
    assert_eq!(*guard, 1);

    let l = Arc::new(RwLock::new(Rank::INVALIDATE, 7));
    let guard = l.read_arc();
    assert!(l.try_write_arc().is_none());
    assert_eq!(*guard, 7);
    drop(guard);
    *l.write_arc() = 8;
    assert_eq!(*l.try_read_arc().expect("no writer"), 8);
}

#[test]
fn a_panic_releases_the_lock() {
    let m = Arc::new(mutex(Rank::INODE));
    let other = Arc::clone(&m);
    let result = thread::spawn(move || {
        let _g = other.lock();
        panic!("on purpose");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(*m.lock(), 0);
}
