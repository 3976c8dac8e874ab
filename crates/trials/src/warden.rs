//! Sees to it that a trial that panics in another thread, or never ends, is found.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One image may take so long; a shared machine is slow at times.
const PATIENCE: Duration = Duration::from_secs(120);

static PANICS: AtomicU64 = AtomicU64::new(0);
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// Panics of any thread since [`install`].
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::SeqCst)
}

/// Says which seed is tried from now on.
pub fn trying(seed: u64) {
    CURRENT.store(seed, Ordering::SeqCst);
}

/// Counts panics of all threads, and ends the process when one seed takes too long.
pub fn install() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
    std::thread::spawn(|| {
        let mut last = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let seed = CURRENT.load(Ordering::SeqCst);
            if seed != last.0 {
                last = (seed, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                println!("one trial takes longer than {PATIENCE:?}: SEED={seed}");
                std::process::exit(1);
            }
        }
    });
}
