//! A small seeded generator (SplitMix64), the same on every machine and for ever: a seed in an old report must
//! reproduce.

/// A deterministic generator; not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A new generator whose stream depends on this one's seed and on `label`, so that parts of a test do not
    /// disturb each other's streams.
    #[must_use]
    pub fn fork(&self, label: u64) -> Self {
        let mut child = Self(self.0 ^ label.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        child.next_u64();
        child
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`; `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below 0 was asked for");
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Whether a thing of probability `num / den` happens.
    pub fn chance(&mut self, num: u64, den: u64) -> bool {
        self.below(den) < num
    }

    /// One of the items; there must be one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fills the buffer.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// Puts the items in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// The byte that the pattern of `seed` has at file offset `pos`: contents of test files are patterns, so that a
/// misplaced block shows as a wrong byte.
#[must_use]
pub const fn pattern_byte(seed: u64, pos: u64) -> u8 {
    let word = (pos / 8).wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut z = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^= z >> 32;
    (z >> ((pos % 8) * 8)) as u8
}

/// `len` bytes of the pattern of `seed`, as at file offset `pos`.
#[must_use]
pub fn pattern(seed: u64, pos: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| pattern_byte(seed, pos + i)).collect()
}
