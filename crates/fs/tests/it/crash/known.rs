//! What recovery is known to make of a state.
//!
//! Recovering a state depends on the sectors that it reads and on nothing else. So what was seen for one state holds for every
//! state that is equal in all sectors that were read for the first (by digest, 128 bits); that the sectors which were not read
//! may differ then only shows in the image that recovery leaves, in those of them that recovery does not write.

use std::collections::HashMap;
use std::sync::Arc;

use extant_testkit::sim::{SectorSet, Sketch};
use rustc_hash::FxHashMap;

/// Sets of sectors that a look-up tries, those of the last hits first. A hit that this misses costs a recovery, nothing else.
const TRIES: usize = 200;
/// States whose digests are kept.
const MOST_STATES: usize = 8 << 20;

/// What recovering a state did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The tree that was read, by its number in the lab.
    pub(super) tree: u32,
    /// The sectors that were written, by their number in [`Known::written`].
    pub(super) written: u32,
    /// The sum of the digests of what the written sectors hold in the end, as far as they count.
    pub(super) left: u128,
}

/// Sets of sectors, each kept once.
#[derive(Default)]
pub(super) struct Sets {
    numbers: HashMap<Arc<SectorSet>, u32>,
    sets: Vec<Arc<SectorSet>>,
}

impl Sets {
    fn number(&mut self, set: SectorSet) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        let (number, set) = (self.sets.len() as u32, Arc::new(set));
        self.sets.push(Arc::clone(&set));
        self.numbers.insert(set, number);
        number
    }
}

/// Which slots of the states of one record are in which set.
#[derive(Default)]
pub(super) struct Slots {
    read: FxHashMap<u32, Vec<u32>>,
    kept: FxHashMap<u32, Vec<u32>>,
}

fn slots(sketch: &Sketch<'_>, of: impl Fn(u64) -> bool) -> Vec<u32> {
    let sectors = sketch.sectors().iter().enumerate();
    sectors.filter(|(_, sector)| of(**sector)).map(|(slot, _)| slot as u32).collect()
}

fn sum(sketch: &Sketch<'_>, slots: &[u32]) -> u128 {
    let values = sketch.values();
    slots.iter().fold(0, |sum: u128, slot| sum.wrapping_add(values[*slot as usize]))
}

#[derive(Default)]
pub(super) struct Known {
    /// By the digests of whole states.
    states: FxHashMap<u128, u32>,
    read: Sets,
    /// Numbers of `read`, those that were of use last first.
    order: Vec<u32>,
    /// By the number of a set of sectors and the digest of what they hold.
    by_read: FxHashMap<(u32, u128), u32>,
    written: Sets,
    outcomes: Vec<Outcome>,
}

/// How a state was found to be known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// The same state was there before.
    State(u32),
    /// One that recovery cannot tell from it.
    Alike(u32),
}

impl Known {
    pub(super) fn outcome(&self, number: u32) -> Outcome {
        self.outcomes[number as usize]
    }

    pub(super) fn find(&mut self, sketch: &Sketch<'_>, record: &mut Slots) -> Option<Found> {
        let digest = sketch.digest();
        if let Some(number) = self.states.get(&digest) {
            return Some(Found::State(*number));
        }
        for place in 0..self.order.len().min(TRIES) {
            let set = self.order[place];
            let sectors = &self.read.sets[set as usize];
            let read = record.read.entry(set).or_insert_with(|| slots(sketch, |s| sectors.contains(s)));
            if let Some(number) = self.by_read.get(&(set, sum(sketch, read))).copied() {
                self.order[..=place].rotate_right(1);
                self.note(digest, number);
                return Some(Found::Alike(number));
            }
        }
        None
    }

    fn note(&mut self, digest: u128, number: u32) {
        if self.states.len() >= MOST_STATES {
            self.states.clear();
        }
        self.states.insert(digest, number);
    }

    /// The number of a set of written sectors.
    pub(super) fn written(&mut self, set: SectorSet) -> u32 {
        self.written.number(set)
    }

    /// Keeps what recovering the state, which was not known, did after reading these sectors.
    pub(super) fn learn(
        &mut self,
        sketch: &Sketch<'_>,
        record: &mut Slots,
        read: SectorSet,
        outcome: Outcome,
    ) -> u32 {
        let set = self.read.number(read);
        let sectors = &self.read.sets[set as usize];
        let slots = record.read.entry(set).or_insert_with(|| slots(sketch, |s| sectors.contains(s)));
        let number = self.outcomes.len() as u32;
        self.outcomes.push(outcome);
        self.by_read.insert((set, sum(sketch, slots)), number);
        match self.order.iter().position(|other| *other == set) {
            Some(place) => self.order[..=place].rotate_right(1),
            None => self.order.insert(0, set),
        }
        self.note(sketch.digest(), number);
        number
    }

    /// A digest of the image that recovery leaves of a state, sectors that are `masked` apart.
    pub(super) fn left(
        &self,
        sketch: &Sketch<'_>,
        record: &mut Slots,
        outcome: Outcome,
        masked: &SectorSet,
    ) -> u128 {
        let written = &self.written.sets[outcome.written as usize];
        let kept = record.kept.entry(outcome.written);
        let kept = kept.or_insert_with(|| slots(sketch, |s| !written.contains(s) && !masked.contains(s)));
        sum(sketch, kept).wrapping_add(outcome.left)
    }

    /// Outcomes and sets of sectors, for the curious.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.outcomes.len(), self.order.len())
    }
}
