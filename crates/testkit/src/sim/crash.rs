//! The states that a crash may leave, enumerated.
//!
//! For each epoch (the writes between two flushes), with everything before it applied:
//! - **none** of its writes (the prefix of flush epochs), and every shorter **prefix** of its writes in order;
//! - each single write **dropped**, all others there;
//! - each write of several sectors **torn** at 512 bytes, all others there: only its first sector new, all but its last
//!   sector new, only its last sector new, and one cut in between chosen by the seed;
//! - a number of seeded random **subsets**, in which each write is there, not there, or torn.
//!
//! The crash is taken to happen at the end of the epoch (just before its flush completes), so that forced writes are there
//! in all of these; except for prefixes, where it happens after the last write that is there, and for a forced write
//! dropped or torn, where it happens during that write. [`CrashState::marks`] are the promises given by then.

use std::ops::Range;

use super::content::Content;
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
        self.epochs.iter().enumerate().map(|(e, epoch)| self.cuts(e, epoch).len()).sum::<usize>() + 1
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.epochs.iter().all(|epoch| epoch.changes.is_empty())
    }

    /// Calls `visit` with every state in turn; only one is held in memory at a time.
    pub fn for_each(&self, mut visit: impl FnMut(CrashState)) {
        let mut durable = self.base.clone();
        for (number, epoch) in self.epochs.iter().enumerate() {
            for cut in self.cuts(number, epoch) {
                let mut content = durable.clone();
                self.apply_cut(&mut content, number, epoch, &cut);
                let marks = self.marks_at(number, &cut).to_vec();
                visit(CrashState { epoch: number, cut, marks, content });
            }
            for (change, _) in &epoch.changes {
                apply(&mut durable, change, None);
            }
        }
        let last = self.epochs.len() - 1;
        let marks = self.epochs[last].marks.clone();
        visit(CrashState { epoch: last, cut: Cut::Whole, marks, content: durable });
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

    fn cuts(&self, number: usize, epoch: &Epoch) -> Vec<Cut> {
        let n = epoch.changes.len();
        let mut cuts: Vec<Cut> = (0..n).map(Cut::Prefix).collect();
        if n > 1 {
            // The last one dropped is the longest prefix.
            // A forced one can be missing in a prefix only.
            cuts.extend((0..n - 1).filter(|i| !is_forced(&epoch.changes[*i].0)).map(Cut::Dropped));
        }
        let mut rng = Rng::new(self.seed).fork(number as u64);
        for (i, (change, _)) in epoch.changes.iter().enumerate() {
            cuts.extend(tears(change, &mut rng).into_iter().map(|sectors| Cut::Torn(i, sectors)));
        }
        if n > 1 {
            cuts.extend((0..self.subsets).map(Cut::Subset));
        }
        cuts
    }

    fn apply_cut(&self, content: &mut Content, number: usize, epoch: &Epoch, cut: &Cut) {
        let changes = || epoch.changes.iter().map(|(change, _)| change).enumerate();
        match cut {
            Cut::Prefix(0) => {
                changes().filter(|(_, c)| is_forced(c)).for_each(|(_, c)| apply(content, c, None));
            }
            Cut::Prefix(n) => changes().take(*n).for_each(|(_, c)| apply(content, c, None)),
            Cut::Dropped(i) => changes().filter(|(j, _)| j != i).for_each(|(_, c)| apply(content, c, None)),
            Cut::Torn(i, sectors) => {
                let there = if is_forced(&epoch.changes[*i].0) { i + 1 } else { epoch.changes.len() };
                changes().take(there).for_each(|(j, c)| apply(content, c, (j == *i).then_some(sectors)));
            }
            Cut::Subset(label) => {
                let mut rng = Rng::new(self.seed).fork(number as u64).fork(u64::from(*label) + 1);
                for (_, change) in changes() {
                    match rng.below(4) {
                        _ if is_forced(change) => apply(content, change, None),
                        0 | 1 => apply(content, change, None),
                        2 => {}
                        _ => match tears(change, &mut rng).first() {
                            Some(sectors) => apply(content, change, Some(sectors)),
                            None => apply(content, change, None),
                        },
                    }
                }
            }
            Cut::Whole => changes().for_each(|(_, c)| apply(content, c, None)),
        }
    }
}

fn is_forced(change: &Event) -> bool {
    matches!(change, Event::Write { fua: true, .. })
}

/// The sector ranges of a write that a torn write is cut to: first sector only, all but the last, last only, one
/// seeded cut.
fn tears(change: &Event, rng: &mut Rng) -> Vec<Range<u64>> {
    let Event::Write { offset, data, .. } = change else { return Vec::new() };
    if !offset.is_multiple_of(SECTOR) {
        return Vec::new();
    }
    let sectors = (data.len() as u64).div_ceil(SECTOR);
    match sectors {
        0 | 1 => Vec::new(),
        2 => vec![0..1, 1..2],
        _ => {
            let cut = 1 + rng.below(sectors - 1);
            let mut all = vec![0..cut, 0..1, 0..sectors - 1, sectors - 1..sectors];
            all.dedup();
            all
        }
    }
}

fn apply(content: &mut Content, change: &Event, sectors: Option<&Range<u64>>) {
    match change {
        Event::Write { offset, data, .. } => match sectors {
            None => content.write(*offset, data),
            Some(part) => {
                let start = (part.start * SECTOR) as usize;
                let end = data.len().min((part.end * SECTOR) as usize);
                content.write(offset + start as u64, &data[start..end]);
            }
        },
        Event::Zero { offset, len } => content.zero(*offset, *len),
        Event::Flush | Event::Mark(_) => {}
    }
}
