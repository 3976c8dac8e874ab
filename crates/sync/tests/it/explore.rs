//! The primitives under the exploring runtime: what is right passes, what is racy is found.

use extant_sync::atomic::{AtomicU32, Ordering};
use extant_sync::{Arc, Condvar, Mutex, Rank, RwLock, model, thread};

/// Schedules of each in the short form.
const LAB: usize = 300;

#[test]
fn a_mutex_excludes() {
    model::Lab::new("a mutex excludes", LAB).holds(|| {
        let m = Arc::new(Mutex::new(Rank::LEAF, 0_u32));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let m = Arc::clone(&m);
                thread::spawn(move || {
                    let mut g = m.lock();
                    let seen = *g;
                    thread::yield_now();
                    *g = seen + 1;
                })
            })
            .collect();
        for t in threads {
            t.join().expect("no panic inside");
        }
        assert_eq!(*m.lock(), 3);
    });
}

#[test]
#[should_panic(expected = "lost")]
fn a_lost_update_is_found() {
    model::check_random(
        || {
            let n = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let n = Arc::clone(&n);
                    thread::spawn(move || n.store(n.load(Ordering::SeqCst) + 1, Ordering::SeqCst))
                })
                .collect();
            for t in threads {
                t.join().expect("no panic inside");
            }
            assert_eq!(n.load(Ordering::SeqCst), 2, "lost");
        },
        500,
    );
}

#[test]
fn a_condition_is_never_missed() {
    model::Lab::new("a condition is never missed", LAB).holds(|| {
        let shared = Arc::new((Mutex::new(Rank::LEAF, false), Condvar::new()));
        let other = Arc::clone(&shared);
        let waiter = thread::spawn(move || {
            let mut set = other.0.lock();
            other.1.wait_while(&mut set, |set| !*set);
        });
        *shared.0.lock() = true;
        shared.1.notify_all();
        waiter.join().expect("no panic inside");
    });
}

#[test]
fn readers_share_and_writers_do_not() {
    model::Lab::new("readers share and writers do not", LAB).holds(|| {
        let l = Arc::new(RwLock::new(Rank::INVALIDATE, (0_u32, 0_u32)));
        let other = Arc::clone(&l);
        let writer = thread::spawn(move || {
            let mut g = other.write();
            g.0 += 1;
            thread::yield_now();
            g.1 += 1;
        });
        {
            let g = l.read_arc();
            assert_eq!(g.0, g.1);
        }
        writer.join().expect("no panic inside");
    });
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "lock order")]
fn the_order_is_checked_per_explored_thread() {
    model::check_random(
        || {
            let a = Mutex::new(Rank::PAGE, ());
            let b = Mutex::new(Rank::INODE, ());
            let _a = a.lock();
            let _b = b.lock();
        },
        1,
    );
}
