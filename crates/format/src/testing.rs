//! A small seeded generator for this crate's randomised tests.

use std::string::String;
use std::vec::Vec;

/// xorshift64*, printed and replayable: `SEED=` sets it.
pub(crate) struct Rng(u64);

impl Rng {
    /// From `SEED=` or the clock; prints `seed=`.
    pub(crate) fn from_env() -> Self {
        let clock =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock);
        std::println!("seed={seed}");
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A printable name of 1 to `max` bytes.
    pub(crate) fn name(&mut self, max: usize) -> String {
        let len = 1 + self.below(max);
        (0..len).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// Changes one to eight bytes.
    pub(crate) fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            bytes[at] = match self.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ (1 << self.below(8)),
                _ => self.next() as u8,
            };
        }
    }
}
