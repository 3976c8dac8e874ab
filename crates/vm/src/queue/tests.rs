//! The queue, by itself and under the exploring runtime.

use super::{Pool, Queue};

#[cfg(not(feature = "shuttle"))]
#[test]
fn closing_gives_back_what_is_left() {
    let queue = Queue::new();
    queue.push(Pool::Reads, 1).expect("open");
    queue.push(Pool::Writes, 2).expect("open");
    let asked = queue.epoch();
    queue.park(Pool::Writes, 3, asked).expect("open");
    assert_eq!(queue.next(Pool::Writes), Some(2));
    let mut left = queue.close();
    left.sort_unstable();
    assert_eq!(left, [1, 3]);
    assert_eq!((queue.next(Pool::Reads), queue.push(Pool::Reads, 4)), (None, Err(4)));
    assert_eq!(queue.park(Pool::Reads, 5, asked), Err(5));
}

#[cfg(feature = "shuttle")]
mod explored {
    use extant_sync::atomic::{AtomicBool, Ordering};
    use extant_sync::{Arc, model, thread};

    use super::{Pool, Queue};

    /// A worker asks, is told to wait, and parks; somebody makes it possible and unparks. `fresh`: the epoch is taken before asking.
    fn park_against_unpark(fresh: bool) {
        let queue = Arc::new(Queue::new());
        let possible = Arc::new(AtomicBool::new(false));
        let worker = {
            let (queue, possible) = (Arc::clone(&queue), Arc::clone(&possible));
            thread::spawn(move || {
                while let Some(job) = queue.next(Pool::Writes) {
                    let early = queue.epoch();
                    if possible.load(Ordering::SeqCst) {
                        return job;
                    }
                    let asked = if fresh { early } else { queue.epoch() };
                    queue.park(Pool::Writes, job, asked).expect("open");
                }
                0
            })
        };
        queue.push(Pool::Writes, 7).expect("open");
        possible.store(true, Ordering::SeqCst);
        queue.unpark();
        assert_eq!(worker.join().expect("worker"), 7);
    }

    #[test]
    fn a_parked_job_is_asked_again() {
        model::check_random(|| park_against_unpark(true), 2000);
        model::check_pct(|| park_against_unpark(true), 2000, 3);
    }

    /// The mutant: an epoch taken after asking loses the wakeup, and the worker waits for ever.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn an_epoch_taken_late_loses_the_wakeup() {
        model::check_random(|| park_against_unpark(false), 2000);
    }
}
