//! The long form of the trials: `extant-trials fuzz SECONDS`. `SEED=` chooses where to begin.
//!
//! Damages images, one after the other, and looks at everything in them. A panic, a walk without end and memory beyond
//! the bound end the program with the seed of the image.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use extant_testkit::env;
use extant_trials::hostile::{Bases, Limits, trial};

/// One image may take so long; a shared machine is slow at times.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fuzz", seconds] => seconds.parse().ok(),
        _ => None,
    };
    let Some(seconds) = seconds else {
        eprintln!("usage: extant-trials fuzz SECONDS");
        return ExitCode::FAILURE;
    };
    fuzz(Duration::from_secs(seconds))
}

fn fuzz(time: Duration) -> ExitCode {
    if let Err(reason) = env::tools(&["mke2fs", "debugfs"]) {
        println!("fuzz: skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let first = env::seed();
    let bases = Bases::make();
    let current = Arc::new(AtomicU64::new(0));
    watch(Arc::clone(&current));
    let start = Instant::now();
    let mut seed = first;
    let (mut mounted, mut refused, mut panicked) = (0_u64, 0_u64, 0_u64);
    while start.elapsed() < time {
        current.store(seed, Ordering::Relaxed);
        match std::panic::catch_unwind(|| trial(&bases, seed)) {
            Ok(true) => mounted += 1,
            Ok(false) => refused += 1,
            Err(_) => {
                println!("panic: SEED={seed}");
                panicked += 1;
            }
        }
        seed = seed.wrapping_add(1);
        if let Err(what) = Limits::default().check() {
            println!("{what}: SEED={seed}");
            panicked += 1;
            break;
        }
    }
    let images = mounted + refused + panicked;
    println!("fuzz: {images} images, {mounted} mounted, {refused} refused, {panicked} panics or overruns");
    if panicked == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the program when one image takes longer than the patience.
fn watch(current: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut last = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let seed = current.load(Ordering::Relaxed);
            if seed != last.0 {
                last = (seed, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                println!("fuzz: an image takes longer than {PATIENCE:?}: SEED={seed}");
                std::process::exit(1);
            }
        }
    });
}
