//! The long form of the trials: `extant-trials fuzz SECONDS`, `extant-trials failing SECONDS` for those of failing devices alone, or
//! `extant-trials one SEED` for a single one. `SEED=` chooses where to begin.
//!
//! Takes images one after the other: damaged ones that are read, damaged ones that are written to, and healthy ones on a
//! failing device. A panic in any thread, a trial without end, memory beyond the bound and an image that does not recover end up
//! in the count, with the seed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use extant_testkit::env;
use extant_trials::hostile::{Bases, Limits};
use extant_trials::{assault, hostile, warden};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(reason) = env::tools(&["mke2fs"]) {
        println!("fuzz: skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    warden::install();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fuzz", seconds] if seconds.parse::<u64>().is_ok() => {
            fuzz(Duration::from_secs(seconds.parse().unwrap_or_default()), env::seed(), 1)
        }
        ["failing-one", seed] if seed.parse::<u64>().is_ok() => {
            let seed = seed.parse().unwrap_or(0);
            match assault::failing(&Bases::make(), seed) {
                Ok(outcome) => {
                    println!("SEED={seed}: {outcome:?}");
                    ExitCode::SUCCESS
                }
                Err(what) => {
                    println!("SEED={seed}: {what}");
                    ExitCode::FAILURE
                }
            }
        }
        ["failing", seconds] if seconds.parse::<u64>().is_ok() => {
            let first = env::seed() / KINDS * KINDS + FAILING;
            fuzz(Duration::from_secs(seconds.parse().unwrap_or_default()), first, KINDS)
        }
        ["one", seed] if seed.parse::<u64>().is_ok() => {
            let mut count = Count::default();
            count.run(&Bases::make(), seed.parse().unwrap_or_default());
            count.verdict()
        }
        _ => {
            eprintln!("usage: extant-trials fuzz SECONDS | failing SECONDS | one SEED");
            ExitCode::FAILURE
        }
    }
}

/// Seeds stand for trials of some kinds in turn, and this is the last, of failing devices.
const KINDS: u64 = 4;
const FAILING: u64 = KINDS - 1;

/// Runs every `step`th seed from `seed` on.
fn fuzz(time: Duration, mut seed: u64, step: u64) -> ExitCode {
    let bases = Bases::make();
    let start = Instant::now();
    let mut count = Count::default();
    while start.elapsed() < time {
        count.run(&bases, seed);
        if let Err(what) = Limits::default().check() {
            println!("{what}: SEED={seed}");
            count.bad += 1;
            break;
        }
        seed = seed.wrapping_add(step);
    }
    println!("next SEED={seed}");
    count.verdict()
}

#[derive(Default)]
struct Count {
    trials: u64,
    mounted: u64,
    done: u64,
    failed: u64,
    bad: u64,
}

impl Count {
    /// The trial that the seed stands for.
    fn run(&mut self, bases: &Bases, seed: u64) {
        warden::trying(seed);
        self.trials += 1;
        let panics = warden::panics();
        let ran = std::panic::catch_unwind(|| match seed % KINDS {
            0 => Ok((hostile::trial(bases, seed), 0, 0)),
            1 | 2 => {
                let outcome = assault::damaged(bases, seed);
                Ok((outcome.mounted, outcome.done, outcome.failed))
            }
            _ => assault::failing(bases, seed).map(|o| (o.mounted, o.done, o.failed)),
        });
        match ran {
            Ok(Ok((mounted, done, failed))) => {
                self.mounted += u64::from(mounted);
                self.done += done;
                self.failed += failed;
            }
            Ok(Err(what)) => {
                println!("SEED={seed}: {what}");
                self.bad += 1;
            }
            Err(_) => {}
        }
        if warden::panics() > panics {
            println!("panic: SEED={seed}");
            self.bad += 1;
        }
    }

    fn verdict(&self) -> ExitCode {
        let Self { trials, mounted, done, failed, bad } = self;
        println!(
            "fuzz: {trials} trials, {mounted} mounted, {done} operations done, {failed} failed; {bad} panics, overruns or \
             inconsistent images (bound 0)"
        );
        if *bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
