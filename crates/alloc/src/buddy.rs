//! Free clusters of one group in memory: binary buddies over a bitmap.
//!
//! One bit per possible chunk and order; a set bit of order `k` says that the aligned chunk of `1 << k` clusters is
//! free and is not part of a larger free chunk. The state is canonical: it depends only on which clusters are free,
//! not on the order of the calls that freed them. All operations on a range touch O(log n) chunks for each chunk of
//! the range; nothing scans the group except the search for a chunk of an order, which is known to exist and runs
//! 64 chunks a step.
//!
//! No locking here: the owner holds the group's lock.

use std::ops::Range;

/// Orders that a group can have: `2^19` clusters are the most a 64 KiB bitmap block describes.
pub(crate) const MAX_ORDERS: usize = 20;

/// How many chunks one best-fit search looks at, once no chunk of the wanted order is left.
const RUN_SEARCH_LIMIT: usize = 64;

/// Free clusters of one group. Numbers are clusters relative to the group's first.
#[derive(Clone)]
pub(crate) struct Buddy {
    len: u32,
    free: u32,
    orders: u8,
    /// Bit `k` is set where order `k` has a free chunk.
    nonempty: u32,
    counts: [u32; MAX_ORDERS],
    /// Word of each order where the last search ended; the next starts there.
    cursor: [u32; MAX_ORDERS],
    base: [u32; MAX_ORDERS + 1],
    bits: Box<[u64]>,
}

impl Buddy {
    /// A group of `len` clusters, all in use.
    pub(crate) fn new_full(len: u32) -> Self {
        assert!(len > 0 && len <= 1 << (MAX_ORDERS - 1), "a group of {len} clusters");
        let orders = (u32::BITS - len.leading_zeros()) as usize;
        let mut base = [0u32; MAX_ORDERS + 1];
        for k in 0..orders {
            base[k + 1] = base[k] + (len >> k).div_ceil(64).max(1);
        }
        Self {
            len,
            free: 0,
            orders: orders as u8,
            nonempty: 0,
            counts: [0; MAX_ORDERS],
            cursor: [0; MAX_ORDERS],
            base,
            bits: vec![0; base[orders] as usize].into_boxed_slice(),
        }
    }

    /// Builds the buddies from an on-disk bitmap, where a set bit is a cluster in use. Bits past the bitmap's end
    /// count as in use.
    pub(crate) fn from_bitmap(bitmap: &[u8], len: u32) -> Self {
        let mut buddy = Self::new_full(len);
        let words = len.div_ceil(64) as usize;
        for w in 0..words {
            buddy.bits[w] = !bitmap_word(bitmap, w) & tail_mask(len, w);
        }
        buddy.free = buddy.bits[..words].iter().map(|w| w.count_ones()).sum();
        buddy.raise_pairs();
        buddy.recount();
        buddy
    }

    /// Clusters of the group.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Free clusters.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// The order of the largest free chunk, or `None` in a full group.
    pub(crate) fn largest_order(&self) -> Option<u32> {
        self.nonempty.checked_ilog2()
    }

    /// Bytes of heap that this takes.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bits.len() * 8
    }

    /// Whether `cluster` is free.
    pub(crate) fn is_free(&self, cluster: u32) -> bool {
        self.chunk_at(cluster).is_some()
    }

    /// Length of the free run that begins at `start`, at most `max`.
    pub(crate) fn run_at(&self, start: u32, max: u32) -> u32 {
        let end = self.len.min(start.saturating_add(max));
        let mut at = start;
        while at < end {
            let Some(k) = self.chunk_at(at) else { break };
            at = ((at >> k) + 1) << k;
        }
        at.min(end).saturating_sub(start)
    }

    /// Length of the free run that ends just before `end`, at most `max`.
    pub(crate) fn run_before(&self, end: u32, max: u32) -> u32 {
        let floor = end.saturating_sub(max);
        let mut at = end;
        while at > floor {
            let Some(k) = self.chunk_at(at - 1) else { break };
            at = ((at - 1) >> k) << k;
        }
        end - at.max(floor)
    }

    /// Takes `[start, start + len)`, which is free, out of the free clusters.
    pub(crate) fn take(&mut self, start: u32, len: u32) {
        let end = start + len;
        assert!(len > 0 && end <= self.len, "taking {start}+{len} of {}", self.len);
        let mut at = start;
        while at < end {
            let k = self.chunk_at(at).unwrap_or_else(|| panic!("cluster {at} of the group is not free"));
            let (first, last) = ((at >> k) << k, ((at >> k) + 1) << k);
            self.clear(k, first >> k);
            self.put_pieces(first, at);
            self.put_pieces(end.min(last), last);
            at = last;
        }
        self.free -= len;
    }

    /// Makes `[start, start + len)`, none of which is free, free again. If some cluster was free already, that one is the
    /// error, and the state is of no more use.
    pub(crate) fn give(&mut self, start: u32, len: u32) -> Result<(), u32> {
        let end = start + len;
        assert!(len > 0 && end <= self.len, "freeing {start}+{len} of {}", self.len);
        for (k, chunk) in Pieces::new(start, end, self.orders) {
            if self.chunk_at(chunk << k).is_some() {
                return Err(chunk << k);
            }
            self.put_merging(k, chunk);
        }
        self.free += len;
        Ok(())
    }

    /// A free chunk of at least `1 << order` clusters, the smallest order that has one; its first cluster. The
    /// search goes upwards from where the last one ended, and wraps.
    pub(crate) fn find_order(&mut self, order: u32) -> Option<(u32, u32)> {
        let fitting = self.nonempty.checked_shr(order)?;
        if fitting == 0 {
            return None;
        }
        let k = order + fitting.trailing_zeros();
        let (lo, hi) = (self.base[k as usize], self.base[k as usize + 1]);
        let words = &self.bits[lo as usize..hi as usize];
        let from = (self.cursor[k as usize] as usize).min(words.len() - 1);
        let w = (from..words.len()).chain(0..from).find(|&w| words[w] != 0);
        let w = w.expect("the order's count says that it has a chunk");
        self.cursor[k as usize] = w as u32;
        Some(((w as u32 * 64 + words[w].trailing_zeros()) << k, k))
    }

    /// The first free chunk of order >= `order` at or after `from`, by place; for locality rather than fit.
    pub(crate) fn find_near(&self, from: u32, order: u32) -> Option<u32> {
        let mut best: Option<u32> = None;
        let mut orders = self.nonempty & !((1u32 << order.min(31)) - 1);
        while orders != 0 {
            let k = orders.trailing_zeros();
            orders &= orders - 1;
            let first = from.div_ceil(1 << k);
            if let Some(chunk) = self.next_chunk(k, first) {
                let at = chunk << k;
                best = Some(best.map_or(at, |b| b.min(at)));
            }
        }
        best
    }

    /// A run for `want` clusters: a run that holds them all where one is found, else the longest run seen.
    pub(crate) fn find_best(&mut self, want: u32) -> Option<(u32, u32)> {
        let order = want.next_power_of_two().trailing_zeros();
        if let Some((start, _)) = self.find_order(order) {
            return Some((start, want));
        }
        let mut best: Option<(u32, u32)> = None;
        let mut seen = 0;
        for k in (0..u32::from(self.orders)).rev().filter(|k| self.nonempty & (1 << k) != 0) {
            let mut chunk = self.next_chunk(k, 0);
            while let Some(c) = chunk {
                let (start, len) = self.run_around(c << k, 1 << k);
                if len >= want {
                    return Some((start, want));
                }
                if best.is_none_or(|(_, longest)| len > longest) {
                    best = Some((start, len));
                }
                seen += 1;
                if seen == RUN_SEARCH_LIMIT {
                    return best;
                }
                chunk = self.next_chunk(k, (start + len).div_ceil(1 << k));
            }
        }
        best
    }

    /// A free run of `want` clusters whose start is `phase` modulo `align` (stripe allocation).
    pub(crate) fn find_aligned(&self, want: u32, align: u32, phase: u32, from: u32) -> Option<u32> {
        let first = |at: u32| {
            let rest = (at % align + align - phase % align) % align;
            if rest == 0 { at } else { at + (align - rest) }
        };
        let scan = |mut at: u32, end: u32| {
            while at < end && at + want <= self.len {
                if self.run_at(at, want) == want {
                    return Some(at);
                }
                at += align;
            }
            None
        };
        scan(first(from), self.len).or_else(|| scan(first(0), from))
    }

    /// The first free run that begins at or after `from` or covers it, by place.
    pub(crate) fn next_run(&self, from: u32) -> Option<Range<u32>> {
        let start = if from < self.len && self.is_free(from) { from } else { self.find_near(from, 0)? };
        Some(start..start + self.run_at(start, self.len))
    }

    /// The maximal free run that contains the free chunk `[start, start + len)`.
    fn run_around(&self, start: u32, len: u32) -> (u32, u32) {
        let before = self.run_before(start, start);
        let after = self.run_at(start + len, self.len);
        (start - before, before + len + after)
    }

    /// The order of the free chunk that holds `cluster`.
    fn chunk_at(&self, cluster: u32) -> Option<u32> {
        if cluster >= self.len {
            return None;
        }
        let mut orders = self.nonempty;
        while orders != 0 {
            let k = orders.trailing_zeros();
            orders &= orders - 1;
            if self.is_set(k, cluster >> k) {
                return Some(k);
            }
        }
        None
    }

    /// The first free chunk of order `k` whose number is at least `chunk`.
    fn next_chunk(&self, k: u32, chunk: u32) -> Option<u32> {
        let words = &self.bits[self.base[k as usize] as usize..self.base[k as usize + 1] as usize];
        let mut w = (chunk / 64) as usize;
        let mut word = words.get(w)? & (!0 << (chunk % 64));
        while word == 0 {
            w += 1;
            word = *words.get(w)?;
        }
        Some(w as u32 * 64 + word.trailing_zeros())
    }

    /// Sets the chunks that make up `[start, end)`; none of them can have a free buddy.
    fn put_pieces(&mut self, start: u32, end: u32) {
        for (k, chunk) in Pieces::new(start, end, self.orders) {
            self.set(k, chunk);
        }
    }

    /// Sets a chunk, merged with its buddies as far up as they are free.
    fn put_merging(&mut self, mut k: u32, mut chunk: u32) {
        while k + 1 < u32::from(self.orders) && self.is_set(k, chunk ^ 1) {
            self.clear(k, chunk ^ 1);
            k += 1;
            chunk >>= 1;
        }
        self.set(k, chunk);
    }

    fn is_set(&self, k: u32, chunk: u32) -> bool {
        let word = self.base[k as usize] + chunk / 64;
        word < self.base[k as usize + 1] && self.bits[word as usize] & (1 << (chunk % 64)) != 0
    }

    fn set(&mut self, k: u32, chunk: u32) {
        self.bits[(self.base[k as usize] + chunk / 64) as usize] |= 1 << (chunk % 64);
        self.counts[k as usize] += 1;
        self.nonempty |= 1 << k;
    }

    fn clear(&mut self, k: u32, chunk: u32) {
        self.bits[(self.base[k as usize] + chunk / 64) as usize] &= !(1 << (chunk % 64));
        self.counts[k as usize] -= 1;
        if self.counts[k as usize] == 0 {
            self.nonempty &= !(1 << k);
        }
    }

    /// Moves every pair of free buddies one order up, order by order, 64 chunks a step.
    fn raise_pairs(&mut self) {
        for k in 0..usize::from(self.orders) - 1 {
            let (lo, mid, hi) = (self.base[k] as usize, self.base[k + 1] as usize, self.base[k + 2] as usize);
            let (lower, upper) = self.bits[lo..hi].split_at_mut(mid - lo);
            for (w, word) in lower.iter_mut().enumerate() {
                let pairs = *word & (*word >> 1) & 0x5555_5555_5555_5555;
                if pairs == 0 {
                    continue;
                }
                *word &= !(pairs | pairs << 1);
                upper[w / 2] |= even_bits(pairs) << (32 * (w % 2));
            }
        }
    }

    fn recount(&mut self) {
        self.nonempty = 0;
        for k in 0..usize::from(self.orders) {
            let words = &self.bits[self.base[k] as usize..self.base[k + 1] as usize];
            self.counts[k] = words.iter().map(|w| w.count_ones()).sum();
            self.nonempty |= u32::from(self.counts[k] > 0) << k;
        }
    }
}

/// The aligned chunks that make up a range, by place.
pub(crate) struct Pieces {
    at: u32,
    end: u32,
    orders: u8,
}

impl Pieces {
    pub(crate) fn new(start: u32, end: u32, orders: u8) -> Self {
        Self { at: start, end, orders }
    }
}

impl Iterator for Pieces {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        if self.at >= self.end {
            return None;
        }
        let fits = (self.end - self.at).ilog2();
        let k = self.at.trailing_zeros().min(fits).min(u32::from(self.orders) - 1);
        let chunk = self.at >> k;
        self.at += 1 << k;
        Some((k, chunk))
    }
}

/// Word `w` of an on-disk bitmap; bits past its end are set ("in use").
fn bitmap_word(bitmap: &[u8], w: usize) -> u64 {
    let bytes = bitmap.get(w * 8..).unwrap_or(&[]);
    let mut word = [0xff; 8];
    let n = bytes.len().min(8);
    word[..n].copy_from_slice(&bytes[..n]);
    u64::from_le_bytes(word)
}

/// The bits of word `w` that lie below `len`.
fn tail_mask(len: u32, w: usize) -> u64 {
    let left = u64::from(len) - (w as u64 * 64).min(u64::from(len));
    if left >= 64 { !0 } else { (1 << left) - 1 }
}

/// Squeezes the even bits of `x` (the odd ones are clear) into the lower half.
fn even_bits(mut x: u64) -> u64 {
    x = (x | x >> 1) & 0x3333_3333_3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) & 0x0000_0000_ffff_ffff
}

#[cfg(test)]
mod tests;
