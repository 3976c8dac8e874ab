//! What unit tests share.

/// A small generator of numbers.
pub(crate) struct Random(u64);

impl Random {
    /// Seeded from `SEED`, or from the clock; prints the seed.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| u64::from(d.subsec_nanos()) | 1)
        });
        println!("seed={seed}");
        Self(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
