//! The states that a crash may leave, enumerated.
//!
//! For each epoch (the writes between two flushes), with everything before it applied:
//! - **none** of its writes (the prefix of flush epochs), and every shorter **prefix** of its writes in order;
//! - each single write **dropped**, all others there;
//! - each write of several sectors **torn** at each of its sectors' borders, all others there: once what is before the border is
//!   new, once what is behind it;
//! - a number of seeded random **subsets**, in which each write is there, not there, or torn at some border.
//!
//! Writes are writes, discards and zeroings.
//!
//! The crash is taken to happen at the end of the epoch (just before its flush completes), so that forced writes are there
//! in all of these; except for prefixes, where it happens after the last write that is there, and for a forced write
//! dropped or torn, where it happens during that write. [`CrashState::marks`] are the promises given by then.

use std::ops::Range;

use super::content::Content;
use super::sectors::Slots;
use super::{Event, SECTOR};
use crate::rng::Rng;

/// Random subsets of each epoch, unless [`CrashPlan::subsets`] is told otherwise.
const SUBSETS: u32 = 16;

/// How a crash state differs from "everything arrived".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Only the epoch's first `n` changes arrived; with 0, of all changes of the epoch only the forced ones.
    Prefix(usize),
    /// All arrived but this one.
    Dropped(usize),
    /// All arrived, but of this one only these sectors.
    Torn(usize, Range<u64>),
    /// A seeded random subset with this label.
    Subset(u32),
    /// Everything arrived (the end of the record).
    Whole,
}

/// One state that a crash may leave.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// The flush epoch, from 0.
    pub epoch: usize,
    /// Which of its changes are there.
    pub cut: Cut,
    /// The marks set before the crash.
    pub marks: Vec<u64>,
    /// The device's content.
    pub content: Content,
}

/// A state as what differs from the base of the record; its content is made on demand only.
#[derive(Debug)]
pub struct Sketch<'p> {
    /// The flush epoch, from 0.
    pub epoch: usize,
    /// Which of its changes are there.
    pub cut: &'p Cut,
    /// The marks set before the crash.
    pub marks: &'p [u64],
    plan: &'p CrashPlan,
    durable: &'p Content,
    sectors: &'p [u64],
    values: &'p [u128],
}

impl Sketch<'_> {
    /// The sectors that the record touches, ascending: the same for all its states. With stores in the record one stands here once for
    /// each of its lines that the record touches.
    #[must_use]
    pub fn sectors(&self) -> &[u64] {
        self.sectors
    }

    /// What each of [`Sketch::sectors`], or its line, holds: by [`sector_digest`](super::sector_digest), or the like.
    #[must_use]
    pub fn values(&self) -> &[u128] {
        self.values
    }

    /// A hash of the content; 0 if it is the base's.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
    }

    /// The device's content.
    #[must_use]
    pub fn content(&self) -> Content {
        let mut content = self.durable.clone();
        self.plan.apply_cut(&mut content, self.epoch, self.cut);
        content
    }
}

/// All crash states of a record.
#[derive(Clone, Debug)]
pub struct CrashPlan {
    base: Content,
    epochs: Vec<Epoch>,
    seed: u64,
    subsets: u32,
}

#[derive(Clone, Debug, Default)]
struct Epoch {
    /// Writes and zeroings, each with the number of marks (of the whole record) set before it.
    changes: Vec<(Event, usize)>,
    /// Marks set until the end of this epoch, of the whole record.
    marks: Vec<u64>,
}

impl CrashPlan {
    /// The states of `log` on top of `base`.
    #[must_use]
    pub fn new(base: Content, log: Vec<Event>, seed: u64) -> Self {
        let mut epochs = vec![Epoch::default()];
        let mut marks = Vec::new();
        for event in log {
            let epoch = epochs.last_mut().expect("there is always one");
            match event {
                Event::Flush => {
                    epoch.marks.clone_from(&marks);
                    epochs.push(Epoch::default());
                }
                Event::Mark(mark) => marks.push(mark),
                change => epoch.changes.push((change, marks.len())),
            }
        }
        epochs.last_mut().expect("there is always one").marks = marks;
        Self { base, epochs, seed, subsets: SUBSETS }
    }

    /// The same plan with `n` random subsets an epoch.
    #[must_use]
    pub fn subsets(mut self, n: u32) -> Self {
        self.subsets = n;
        self
    }

    /// How many states [`CrashPlan::for_each`] gives.
    #[must_use]
    pub fn len(&self) -> usize {
        (0..self.epochs.len()).map(|number| self.all_cuts(number).len()).sum()
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.epochs.iter().all(|epoch| epoch.changes.is_empty())
    }

    /// Calls `visit` with every state in turn; only one is held in memory at a time.
    pub fn for_each(&self, mut visit: impl FnMut(CrashState)) {
        let mut durable = self.base.clone();
        for number in 0..self.epochs.len() {
            for cut in self.all_cuts(number) {
                let mut content = durable.clone();
                self.apply_cut(&mut content, number, &cut);
                let marks = self.marks_at(number, &cut).to_vec();
                visit(CrashState { epoch: number, cut, marks, content });
            }
            self.apply_cut(&mut durable, number, &Cut::Whole);
        }
    }

    /// The same states, none of which is made.
    ///
    /// # Panics
    /// If a recorded change does not begin and end with a sector, or, if it is a store, with a line.
    pub fn for_each_sketch(&self, mut visit: impl FnMut(&Sketch<'_>)) {
        let changes =
            |epoch: &'_ Epoch| -> Vec<Event> { epoch.changes.iter().map(|(c, _)| c.clone()).collect() };
        let epochs: Vec<Vec<Event>> = self.epochs.iter().map(changes).collect();
        let slots = Slots::new(&self.base, epochs.iter().map(|epoch| epoch.iter()));
        let mut durable = self.base.clone();
        let mut before = vec![0; slots.sectors.len()];
        let mut values = before.clone();
        for number in 0..self.epochs.len() {
            for cut in self.all_cuts(number) {
                values.copy_from_slice(&before);
                self.present(number, &cut, |i, part| slots.apply(&mut values, number, i, part));
                visit(&Sketch {
                    epoch: number,
                    cut: &cut,
                    marks: self.marks_at(number, &cut),
                    plan: self,
                    durable: &durable,
                    sectors: &slots.sectors,
                    values: &values,
                });
            }
            self.apply_cut(&mut durable, number, &Cut::Whole);
            self.present(number, &Cut::Whole, |i, part| slots.apply(&mut before, number, i, part));
        }
    }

    /// All states at once; for small records.
    #[must_use]
    pub fn states(&self) -> Vec<CrashState> {
        let mut states = Vec::new();
        self.for_each(|state| states.push(state));
        states
    }

    fn marks_at(&self, number: usize, cut: &Cut) -> &[u64] {
        let epoch = &self.epochs[number];
        match cut {
            // Before the next change was done, so only promises given before it.
            Cut::Prefix(n) if *n > 0 && *n < epoch.changes.len() => self.marks_before(epoch, *n),
            Cut::Torn(i, _) if is_forced(&epoch.changes[*i].0) => self.marks_before(epoch, *i),
            _ => &epoch.marks,
        }
    }

    fn marks_before(&self, epoch: &Epoch, change: usize) -> &[u64] {
        let all = &self.epochs[self.epochs.len() - 1].marks;
        &all[..epoch.changes[change].1]
    }

    /// The cuts of an epoch, and that nothing was cut after the last one.
    fn all_cuts(&self, number: usize) -> Vec<Cut> {
        let mut cuts = self.cuts(&self.epochs[number]);
        if number + 1 == self.epochs.len() {
            cuts.push(Cut::Whole);
        }
        cuts
    }

    fn cuts(&self, epoch: &Epoch) -> Vec<Cut> {
        let n = epoch.changes.len();
        let mut cuts: Vec<Cut> = (0..n).map(Cut::Prefix).collect();
        if n > 1 {
            // The last one dropped is the longest prefix.
            // A forced one can be missing in a prefix only.
            cuts.extend((0..n - 1).filter(|i| !is_forced(&epoch.changes[*i].0)).map(Cut::Dropped));
        }
        for (i, (change, _)) in epoch.changes.iter().enumerate() {
            cuts.extend(tears(change).map(|sectors| Cut::Torn(i, sectors)));
        }
        if n > 1 {
            cuts.extend((0..self.subsets).map(Cut::Subset));
        }
        cuts
    }

    fn apply_cut(&self, content: &mut Content, number: usize, cut: &Cut) {
        let changes = &self.epochs[number].changes;
        self.present(number, cut, |i, part| apply(content, &changes[i].0, part));
    }

    /// Calls `there` with every change of an epoch that is there under `cut`, in order, and the sectors of it where not all are.
    fn present(&self, number: usize, cut: &Cut, mut there: impl FnMut(usize, Option<&Range<u64>>)) {
        let changes = &self.epochs[number].changes;
        let forced = |i: usize| is_forced(&changes[i].0);
        let all = 0..changes.len();
        match cut {
            Cut::Prefix(0) => all.filter(|i| forced(*i)).for_each(|i| there(i, None)),
            Cut::Prefix(n) => (0..*n).for_each(|i| there(i, None)),
            Cut::Dropped(dropped) => all.filter(|i| i != dropped).for_each(|i| there(i, None)),
            Cut::Torn(torn, sectors) => {
                let end = if forced(*torn) { torn + 1 } else { changes.len() };
                (0..end).for_each(|i| there(i, (i == *torn).then_some(sectors)));
            }
            Cut::Subset(label) => {
                let mut rng = Rng::new(self.seed).fork(number as u64).fork(u64::from(*label) + 1);
                for i in all {
                    match rng.below(4) {
                        _ if forced(i) => there(i, None),
                        0 | 1 => there(i, None),
                        2 => {}
                        _ => there(i, some_tear(&changes[i].0, &mut rng).as_ref()),
                    }
                }
            }
            Cut::Whole => all.for_each(|i| there(i, None)),
        }
    }
}

fn is_forced(change: &Event) -> bool {
    matches!(change, Event::Write { fua: true, .. })
}

/// How many sectors a change has that can be torn.
fn sectors(change: &Event) -> u64 {
    match change {
        Event::Write { offset, data, .. } if offset.is_multiple_of(SECTOR) => {
            (data.len() as u64).div_ceil(SECTOR)
        }
        Event::Zero { offset, len } if offset.is_multiple_of(SECTOR) => len.div_ceil(SECTOR),
        _ => 0,
    }
}

/// The sectors that are new where a change is torn: for each border those before it, and those behind it.
fn tears(change: &Event) -> impl Iterator<Item = Range<u64>> {
    let sectors = sectors(change);
    (1..sectors).flat_map(move |border| [0..border, border..sectors])
}

/// One of the tears; none of a single sector.
fn some_tear(change: &Event, rng: &mut Rng) -> Option<Range<u64>> {
    let sectors = sectors(change);
    let border = 1 + rng.below(sectors.saturating_sub(1).max(1));
    let before = rng.chance(1, 2);
    (sectors > 1).then_some(if before { 0..border } else { border..sectors })
}

fn apply(content: &mut Content, change: &Event, part: Option<&Range<u64>>) {
    let bytes = |len: u64| match part {
        None => 0..len,
        Some(part) => part.start * SECTOR..len.min(part.end * SECTOR),
    };
    match change {
        Event::Write { offset, data, .. } => {
            let bytes = bytes(data.len() as u64);
            content.write(offset + bytes.start, &data[bytes.start as usize..bytes.end as usize]);
        }
        Event::Zero { offset, len } => {
            let bytes = bytes(*len);
            content.zero(offset + bytes.start, bytes.end - bytes.start);
        }
        Event::Flush | Event::Mark(_) => {}
    }
}
