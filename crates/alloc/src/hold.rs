//! Blocks that something outside may still write: they are freed like others, and come back to use when they are let go of.
//!
//! A device that was told to write to memory that shows a block (a pin of a DAX mapping, or a transfer that nobody told us of) does so
//! whenever it likes, also when the file has lost the block and the transaction that freed it has committed. Until then the block is
//! nobody's.

use std::collections::BTreeMap;
use std::ops::Range;

use extant_format::Pblk;
use extant_sync::Arc;

use crate::allocator::Allocator;
use crate::window::Taken;

/// A cluster: its group, and its number in that.
type Place = (u32, u32);

/// Who is not to be used again, and what came back meanwhile. Both are runs of clusters that do not overlap, by where they begin.
#[derive(Default)]
pub(crate) struct Holds {
    held: BTreeMap<Place, Held>,
    /// Freed and committed, with the ends.
    back: BTreeMap<Place, u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    end: u32,
    /// How many hold it.
    count: u32,
}

impl Holds {
    /// One holder more of a run.
    fn hold(&mut self, group: u32, run: &Range<u32>) {
        self.cut_held(group, run);
        let mut gaps = Vec::new();
        let mut at = run.start;
        for (&(_, start), held) in self.held.range_mut((group, run.start)..(group, run.end)) {
            held.count += 1;
            gaps.extend((at < start).then_some(at..start));
            at = held.end;
        }
        gaps.extend((at < run.end).then_some(at..run.end));
        let one = |gap: Range<u32>| ((group, gap.start), Held { end: gap.end, count: 1 });
        self.held.extend(gaps.into_iter().map(one));
    }

    /// Keeps what is held of a freed run; the rest.
    fn keep(&mut self, freed: Taken) -> Vec<Taken> {
        let run = freed.start..freed.start + freed.len;
        self.cut_held(freed.group, &run);
        let mut free = Vec::new();
        let mut rest = freed;
        for (&(group, start), held) in self.held.range((freed.group, run.start)..(freed.group, run.end)) {
            let before = rest.cut(start - rest.start);
            free.extend((before.len > 0).then_some(before));
            rest.cut(held.end - start);
            self.back.insert((group, start), held.end);
        }
        free.extend((rest.len > 0).then_some(rest));
        free
    }

    /// One holder less of a run; what may be used again now.
    fn let_go(&mut self, group: u32, run: &Range<u32>) -> Vec<Taken> {
        self.cut_held(group, run);
        let mut gone = Vec::new();
        for (&(_, start), held) in self.held.range_mut((group, run.start)..(group, run.end)) {
            held.count -= 1;
            gone.extend((held.count == 0).then_some(start..held.end));
        }
        let mut free = Vec::new();
        for run in gone {
            self.held.remove(&(group, run.start));
            [run.start, run.end].iter().for_each(|at| cut_back(&mut self.back, group, *at));
            let inside = self.back.range((group, run.start)..(group, run.end));
            let back: Vec<Taken> =
                inside.map(|(&(_, start), end)| Taken { group, start, len: end - start }).collect();
            back.iter().for_each(|taken| {
                self.back.remove(&(group, taken.start));
            });
            free.extend(back);
        }
        free
    }

    /// Cuts what is held so that no run of it has clusters both inside and outside.
    fn cut_held(&mut self, group: u32, run: &Range<u32>) {
        for at in [run.start, run.end] {
            if let Some((_, held)) = self.held.range_mut((group, 0)..(group, at)).next_back()
                && held.end > at
            {
                let second = *held;
                held.end = at;
                self.held.insert((group, at), second);
            }
        }
    }
}

fn cut_back(back: &mut BTreeMap<Place, u32>, group: u32, at: u32) {
    if let Some((_, end)) = back.range_mut((group, 0)..(group, at)).next_back()
        && *end > at
    {
        let second = *end;
        *end = at;
        back.insert((group, at), second);
    }
}

/// Blocks that are not used again while this is there.
pub struct Hold {
    alloc: Arc<Allocator>,
    /// Runs of clusters of groups.
    runs: Vec<(u32, Range<u32>)>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        for (group, run) in std::mem::take(&mut self.runs) {
            let back = self.alloc.holds.lock().let_go(group, &run);
            back.into_iter().for_each(|run| self.alloc.make_usable(run));
        }
    }
}

impl Allocator {
    /// Keeps blocks in use, or freed from now on, from being used again until the result is dropped. Takes a leaf; dropping it takes 90.
    #[must_use]
    pub fn hold(self: &Arc<Self>, pblk: Pblk, len: u32) -> Hold {
        let mut runs: Vec<(u32, Range<u32>)> = Vec::new();
        for at in pblk.0..pblk.0 + u64::from(len) {
            let Some((group, bit)) = self.geo.bit_of_block(Pblk(at)) else { continue };
            match runs.last_mut() {
                // Blocks of one cluster have one bit.
                Some((last, run)) if *last == group.0 && (run.start..=run.end).contains(&bit) => {
                    run.end = run.end.max(bit + 1);
                }
                _ => runs.push((group.0, bit..bit + 1)),
            }
        }
        let mut holds = self.holds.lock();
        runs.iter().for_each(|(group, run)| holds.hold(*group, run));
        drop(holds);
        Hold { alloc: Arc::clone(self), runs }
    }

    /// Gives a freed run whose transaction has committed back to use, but for what is held.
    pub(crate) fn make_usable_unless_held(&self, freed: Taken) {
        let free = {
            let mut holds = self.holds.lock();
            if holds.held.is_empty() { vec![freed] } else { holds.keep(freed) }
        };
        free.into_iter().for_each(|run| self.make_usable(run));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Holds, Taken};
    use crate::testrand::Rng;

    const fn taken(start: u32, len: u32) -> Taken {
        Taken { group: 3, start, len }
    }

    #[test]
    fn what_is_held_comes_back_when_the_last_one_lets_go() {
        let mut holds = Holds::default();
        for (group, run) in [(3, 12..13), (3, 12..13), (3, 14..15), (2, 13..14), (4, 13..14)] {
            holds.hold(group, &run);
        }
        assert_eq!(holds.keep(taken(0, 12)), [taken(0, 12)]);
        assert_eq!(holds.keep(taken(12, 4)), [taken(13, 1), taken(15, 1)]);
        assert_eq!(holds.let_go(3, &(12..13)), []);
        assert_eq!(holds.let_go(3, &(12..13)), [taken(12, 1)]);
        assert_eq!(holds.let_go(3, &(14..15)), [taken(14, 1)]);
        // Let go of before it was freed.
        assert_eq!(holds.let_go(2, &(13..14)), []);
        assert_eq!(holds.keep(taken(12, 4)), [taken(12, 4)]);
        assert!(holds.back.is_empty());
    }

    /// Runs against a table of single clusters.
    #[test]
    fn runs_are_held_like_their_clusters() {
        let mut rng = Rng::from_env("runs_are_held_like_their_clusters");
        let mut holds = Holds::default();
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        let mut back: BTreeMap<u32, ()> = BTreeMap::new();
        let mut mine: Vec<std::ops::Range<u32>> = Vec::new();
        let flat = |runs: Vec<Taken>| -> Vec<u32> {
            let mut all: Vec<u32> = runs.iter().flat_map(|r| r.start..r.start + r.len).collect();
            all.sort_unstable();
            all
        };
        for _ in 0..20_000 {
            let start = rng.below(60) as u32;
            let run = start..start + 1 + rng.below(9) as u32;
            match rng.below(3) {
                0 if mine.len() < 12 => {
                    holds.hold(3, &run);
                    run.clone().for_each(|at| *counts.entry(at).or_default() += 1);
                    mine.push(run);
                }
                1 if !mine.is_empty() => {
                    let run = mine.swap_remove(rng.below(mine.len() as u64) as usize);
                    let mut want = Vec::new();
                    for at in run.clone() {
                        let count = counts.get_mut(&at).expect("held");
                        *count -= 1;
                        if *count == 0 {
                            counts.remove(&at);
                            want.extend(back.remove(&at).map(|()| at));
                        }
                    }
                    assert_eq!(flat(holds.let_go(3, &run)), want);
                }
                _ => {
                    // Nothing is freed twice.
                    let run: Vec<u32> = run.take_while(|at| !back.contains_key(at)).collect();
                    let (Some(start), len) = (run.first(), run.len() as u32) else { continue };
                    let want: Vec<u32> = run.iter().copied().filter(|at| !counts.contains_key(at)).collect();
                    assert_eq!(flat(holds.keep(taken(*start, len))), want);
                    back.extend(run.iter().filter(|at| counts.contains_key(at)).map(|at| (*at, ())));
                }
            }
        }
        assert!(!counts.is_empty() || mine.is_empty());
    }
}
