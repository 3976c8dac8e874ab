//! The checker against e2fsck: on images made here, on images with one damaged field, on a folder of images.

mod base;
mod corpus;
mod damage;
mod fields;
mod hostile;
mod report;

use std::path::Path;
use std::process::{Command, Stdio};

/// e2fsck's exit status when it failed at writing what it was told not to change: no verdict.
const E2FSCK_FAILED: i32 = 9;

/// What e2fsck says: `Some(true)` clean, `Some(false)` not clean, `None` when it is not installed or failed itself.
fn e2fsck_says_clean(image: &Path) -> Option<bool> {
    let status = Command::new("e2fsck")
        .arg("-fn")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    (status.code() != Some(E2FSCK_FAILED)).then_some(status.code() == Some(0))
}

/// What e2fsck prints, for messages of tests.
fn e2fsck_text(image: &Path) -> String {
    let output = Command::new("e2fsck").arg("-fn").arg(image).stdin(Stdio::null()).output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}

/// A small seeded generator: `SEED=` sets it, else `default` (deterministic tests) or the clock.
struct Rng(u64);

impl Rng {
    fn from_env(default: Option<u64>) -> Self {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| d.as_nanos() as u64)
        };
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.or(default).unwrap_or_else(clock);
        println!("seed={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
