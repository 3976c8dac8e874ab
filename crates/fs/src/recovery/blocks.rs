//! Sets of blocks, as runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of block numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    /// Adds a range.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Takes a range out.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        while let Some((&from, &to)) =
            self.0.range(..range.end).next_back().filter(|(_, to)| **to > range.start)
        {
            self.0.remove(&from);
            if from < range.start {
                self.0.insert(from, range.start);
            }
            if to > range.end {
                self.0.insert(range.end, to);
            }
        }
    }

    /// The runs, ascending.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(from, to)| *from..*to)
    }

    /// The parts of the set within a range, ascending.
    pub(super) fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(from, _)| *from);
        let touching = self.0.range(first..range.end.max(first));
        let cut = touching.map(|(from, to)| (*from).max(range.start)..(*to).min(range.end));
        cut.filter(|r| !r.is_empty()).collect()
    }

    /// Takes all of `other` out.
    pub(super) fn subtract(&mut self, other: &Self) {
        for run in other.runs() {
            self.remove(&run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    fn runs(blocks: &Blocks) -> Vec<(u64, u64)> {
        blocks.runs().map(|r| (r.start, r.end)).collect()
    }

    #[test]
    fn neighbours_join_and_holes_part() {
        let mut set = Blocks::default();
        set.insert(10..20);
        set.insert(30..40);
        set.insert(20..25);
        assert_eq!(runs(&set), [(10, 25), (30, 40)]);
        set.insert(5..35);
        assert_eq!(runs(&set), [(5, 40)]);
        set.remove(&(8..9));
        set.remove(&(0..6));
        set.remove(&(39..100));
        assert_eq!(runs(&set), [(6, 8), (9, 39)]);
        assert_eq!(set.within(7..11), [7..8, 9..11]);
        assert_eq!(set.within(8..9), []);
        let mut other = Blocks::default();
        other.insert(0..10);
        set.subtract(&other);
        assert_eq!(runs(&set), [(10, 39)]);
    }

    #[test]
    fn as_a_set_of_numbers() {
        let mut state = 7u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let (mut set, mut plain) = (Blocks::default(), std::collections::BTreeSet::new());
        for _ in 0..2000 {
            let from = next(100);
            let range = from..from + next(9);
            if next(2) == 0 {
                plain.extend(range.clone());
                set.insert(range);
            } else {
                range.clone().for_each(|n| {
                    plain.remove(&n);
                });
                set.remove(&range);
            }
            assert!(set.runs().flatten().eq(plain.iter().copied()));
            let window = next(100)..100;
            let inside = set.within(window.clone()).into_iter().flatten();
            assert!(inside.eq(plain.iter().copied().filter(|n| window.contains(n))));
        }
    }
}
