//! The runner of the exploring runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

pub use shuttle::{check_dfs, check_pct, check_random, check_random_with_seed, replay};

/// Most preemptions in the schedules that have few.
const DEPTH: usize = 3;
/// A mutant is looked for in so many schedules, then in as many of the other kind.
const TURN: usize = 250;

/// A scenario as the race lab runs it: so many schedules, half of them random, half with few preemptions; a line of the lab's table for it, and
/// one for each mutant.
#[derive(Clone, Copy, Debug)]
pub struct Lab<'a> {
    name: &'a str,
    few: usize,
    deep: Option<(u64, usize)>,
}

impl<'a> Lab<'a> {
    /// `few` schedules, unless `EXTANT_RACES` says how many.
    pub fn new(name: &'a str, few: usize) -> Self {
        Self { name, few, deep: None }
    }

    /// Schedules from a seed, and a stack of so many bytes for calls that go deep.
    #[must_use]
    pub fn deep(self, seed: u64, stack: usize) -> Self {
        Self { deep: Some((seed, stack)), ..self }
    }

    /// Explores: the scenario panics when something is wrong.
    pub fn holds(&self, scenario: impl Fn() + Clone + Send + Sync + 'static) {
        let times = schedules(self.few);
        let start = Instant::now();
        self.random(scenario.clone(), times.div_ceil(2));
        self.few_preemptions(scenario, times.div_ceil(2));
        let seconds = start.elapsed().as_secs_f64();
        println!("races: {}: held [{times} schedules in {seconds:.2} s]", self.name);
    }

    /// The same without a guard: within `most` schedules it has to fail.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn notices(&self, guard: &str, most: usize, scenario: impl Fn() + Clone + Send + Sync + 'static) {
        let after = self.kill(most, scenario);
        let after = after.unwrap_or_else(|| {
            panic!("{}: without {guard} nothing was noticed in {most} schedules", self.name)
        });
        println!("races: {}: without {guard}: noticed after {after} schedules", self.name);
    }

    fn kill(&self, most: usize, scenario: impl Fn() + Clone + Send + Sync + 'static) -> Option<usize> {
        let run = Arc::new(AtomicUsize::new(0));
        for turn in 0..most.div_ceil(TURN) {
            let (count, scenario) = (Arc::clone(&run), scenario.clone());
            let body = move || {
                count.fetch_add(1, Ordering::Relaxed);
                scenario();
            };
            // Each turn has schedules of its own.
            let this = Self {
                deep: self.deep.map(|(seed, stack)| (seed.wrapping_add(turn as u64), stack)),
                ..*self
            };
            let died = catch_unwind(AssertUnwindSafe(|| match turn % 2 {
                0 => this.random(body, TURN),
                _ => this.few_preemptions(body, TURN),
            }));
            if died.is_err() {
                return Some(run.load(Ordering::Relaxed));
            }
        }
        None
    }

    fn random(&self, scenario: impl Fn() + Send + Sync + 'static, times: usize) {
        match self.deep {
            None => check_random(scenario, times),
            Some((seed, stack)) => check_random_deep(scenario, seed, times, stack),
        }
    }

    fn few_preemptions(&self, scenario: impl Fn() + Send + Sync + 'static, times: usize) {
        match self.deep {
            None => check_pct(scenario, times, DEPTH),
            Some((seed, stack)) => check_pct_deep(scenario, seed, times, DEPTH, stack),
        }
    }
}

/// Schedules of a scenario: `EXTANT_RACES`, or as many as it says itself.
pub fn schedules(few: usize) -> usize {
    std::env::var("EXTANT_RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}

fn deep(stack: usize) -> Config {
    let mut config = Config::new();
    config.stack_size = stack;
    // The seed says all; a schedule of a whole filesystem is long.
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Random schedules from `seed`, for scenarios whose calls need a larger stack than the runtime gives them.
pub fn check_random_deep<F: Fn() + Send + Sync + 'static>(f: F, seed: u64, times: usize, stack: usize) {
    Runner::new(RandomScheduler::new_from_seed(seed, times), deep(stack)).run(f);
}

/// The same with few preemptions, `depth` of them at most.
pub fn check_pct_deep<F: Fn() + Send + Sync + 'static>(
    f: F,
    seed: u64,
    times: usize,
    depth: usize,
    stack: usize,
) {
    Runner::new(PctScheduler::new_from_seed(seed, depth, times), deep(stack)).run(f);
}
