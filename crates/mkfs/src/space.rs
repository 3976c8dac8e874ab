//! Which blocks are taken: runs, not bitmaps, so that 20 TiB cost as little as their metadata has runs.

use std::collections::BTreeMap;

/// The taken blocks of `first..end`.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    first: u64,
    end: u64,
    /// Start to end of every run; runs do not touch.
    used: BTreeMap<u64, u64>,
}

impl Space {
    pub(crate) fn new(first: u64, end: u64) -> Self {
        Self { first, end, used: BTreeMap::new() }
    }

    /// Takes `len` blocks from `start`, which may be taken already.
    pub(crate) fn take(&mut self, start: u64, len: u64) {
        let (mut start, mut end) = (start, start + len);
        if len == 0 {
            return;
        }
        if let Some((&s, &e)) = self.used.range(..=start).next_back()
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        while let Some((&s, &e)) = self.used.range(start..=end).next() {
            end = end.max(e);
            self.used.remove(&s);
        }
        self.used.insert(start, end);
    }

    /// The end of the taken run that `block` is in, `None` if it is free.
    fn run_end(&self, block: u64) -> Option<u64> {
        let (_, &end) = self.used.range(..=block).next_back()?;
        (end > block).then_some(end)
    }

    /// The free run at or after `from`: its start and end.
    pub(crate) fn next_free(&self, from: u64) -> Option<(u64, u64)> {
        let from = from.max(self.first);
        let start = self.run_end(from).unwrap_or(from);
        let end = self.used.range(start..).next().map_or(self.end, |(&s, _)| s);
        (start < end).then_some((start, end))
    }

    /// First free run of at least `len` blocks from `from` on, below `limit`.
    fn find_from(&self, from: u64, len: u64, limit: u64) -> Option<u64> {
        let mut at = from;
        while let Some((start, end)) = self.next_free(at) {
            let end = end.min(limit);
            if start >= limit {
                return None;
            }
            if end - start >= len {
                return Some(start);
            }
            at = end;
        }
        None
    }

    /// First free run of at least `len` blocks from `goal` to the end, else from the beginning.
    pub(crate) fn find(&self, goal: u64, len: u64) -> Option<u64> {
        self.find_from(goal, len, self.end).or_else(|| self.find_from(self.first, len, self.end))
    }

    /// The taken runs that meet `start..end`, cut to it.
    pub(crate) fn taken_in(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        let before = self.used.range(..start).next_back().map(|(&s, &e)| (s, e));
        let inside = self.used.range(start..end).map(|(&s, &e)| (s, e));
        before.into_iter().chain(inside).filter_map(move |(s, e)| {
            let (s, e) = (s.max(start), e.min(end));
            (s < e).then_some((s, e))
        })
    }

    /// Number of taken blocks in `start..end`.
    pub(crate) fn taken_count(&self, start: u64, end: u64) -> u64 {
        self.taken_in(start, end).map(|(s, e)| e - s).sum()
    }

    /// The same runs rounded outward to clusters of `ratio` blocks (counted from block 0 of the first group).
    pub(crate) fn rounded(&self, ratio: u64) -> Self {
        let mut out = Self::new(self.first, self.end);
        for (&s, &e) in &self.used {
            let down = (s - self.first) / ratio * ratio + self.first;
            let up = ((e - self.first).div_ceil(ratio) * ratio + self.first).min(self.end);
            out.take(down, up - down);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_gaps_are_found() {
        let mut s = Space::new(1, 100);
        s.take(1, 5);
        s.take(10, 10);
        s.take(6, 4);
        assert_eq!(s.used, BTreeMap::from([(1, 20)]));
        s.take(30, 10);
        assert_eq!(s.next_free(0), Some((20, 30)));
        assert_eq!(s.next_free(25), Some((25, 30)));
        assert_eq!(s.find(0, 11), Some(40));
        assert_eq!(s.find(90, 11), Some(40), "from the beginning again");
        assert_eq!(s.find(0, 61), None);
        assert_eq!(s.taken_count(15, 35), 10);
        s.take(99, 1);
        assert_eq!(s.next_free(99), None);
    }

    #[test]
    fn against_a_bitmap() {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7u64);
        eprintln!("seed={seed}");
        let mut state = seed | 1;
        let mut next = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        for _ in 0..200 {
            let (mut s, mut map) = (Space::new(0, 64), [false; 64]);
            for _ in 0..next(12) {
                let start = next(60);
                let len = 1 + next(64 - start).min(9);
                s.take(start, len);
                map[start as usize..(start + len) as usize].fill(true);
            }
            for len in 1..20 {
                let want = (0..=64 - len).find(|&at| !map[at..at + len].contains(&true));
                assert_eq!(s.find(0, len as u64), want.map(|w| w as u64));
            }
            let (from, to) = (next(32), 32 + next(32));
            let want = map[from as usize..to as usize].iter().filter(|&&b| b).count();
            assert_eq!(s.taken_count(from, to), want as u64);
            let rounded = s.rounded(4);
            let clusters = map.chunks(4).filter(|c| c.contains(&true)).count();
            assert_eq!(rounded.taken_count(0, 64), clusters as u64 * 4);
        }
    }
}
