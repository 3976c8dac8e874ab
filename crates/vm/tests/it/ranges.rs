//! Everything that takes blocks away, moves them, or changes the mode of a file, against everything that looks at blocks or writes to
//! them (S3, S4): each pair explored, on pages of the cache and on the device.
//!
//! Whatever the schedule: an access sees what the file has at that place at some moment of some order of the steps, and at the end file,
//! mapping and disk are what one of the orders gives. That no other file's byte is seen and no block of nobody written is in
//! `Rig::settled`.

use extant_sync::Arc;
use extant_vm::{MapView, Mutant, ReadAhead, SimMmu};

use crate::dax::{Rig, load, store};
use crate::faults::{explore, together};

const PAGE: usize = 4096;
const P: u64 = PAGE as u64;
/// Pages of the file; page `n` is full of the byte `n + 1`.
const PAGES: u64 = 6;

/// A step of one thread: what it does, and what that makes of the file's bytes.
#[derive(Clone, Copy)]
struct Step {
    run: fn(&Scene),
    model: fn(&mut Vec<u8>),
}

/// What happens to the file as a whole.
#[derive(Clone, Copy)]
struct Change {
    name: &'static str,
    steps: &'static [Step],
}

/// Who is there beside it.
#[derive(Clone, Copy)]
struct Side {
    name: &'static str,
    before: Before,
    /// The steps of each thread.
    threads: &'static [&'static [Step]],
}

/// How the file begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// On the device, nothing in memory.
    Cold,
    /// In DAX mode, no two blocks in a row on the device.
    Scattered,
    /// In DAX mode, all blocks in a row: a fault shows a huge page's at once.
    Row,
    /// In DAX mode, pages 1 to 4 preallocated.
    Unwritten,
}

/// What a pair may come to.
struct Plan {
    before: Before,
    threads: Vec<&'static [Step]>,
    /// By position the bytes that are there at some moment of some order, one bit for each; [`END`] where the file has none.
    moments: Vec<u16>,
    /// What the file has after each order.
    ends: Vec<Vec<u8>>,
}

/// The end of the file is before this position.
const END: u16 = 1 << 15;
/// No order makes the file longer.
const LARGEST: usize = 9 * PAGE;

impl Plan {
    /// It stays for as long as the test runs.
    fn of(before: Before, threads: Vec<&'static [Step]>) -> &'static Self {
        let mut start: Vec<u8> = (1..=PAGES as u8).flat_map(|byte| [byte; PAGE]).collect();
        if before == Before::Unwritten {
            start[PAGE..5 * PAGE].fill(0);
        }
        let mut plan = Self { before, threads, moments: vec![0; LARGEST], ends: Vec::new() };
        plan.order(&start, &mut plan.threads.clone());
        Box::leak(Box::new(plan))
    }

    /// Notes the bytes now, and after every order of the steps that are left.
    fn order(&mut self, bytes: &[u8], threads: &mut Vec<&'static [Step]>) {
        for (at, moment) in self.moments.iter_mut().enumerate() {
            *moment |= bytes.get(at).map_or(END, |byte| 1 << byte);
        }
        if threads.iter().all(|steps| steps.is_empty()) && !self.ends.iter().any(|end| end == bytes) {
            self.ends.push(bytes.to_vec());
        }
        for who in 0..threads.len() {
            let Some((step, rest)) = threads[who].split_first() else { continue };
            let mut next = bytes.to_vec();
            (step.model)(&mut next);
            let steps = std::mem::replace(&mut threads[who], rest);
            self.order(&next, threads);
            threads[who] = steps;
        }
    }

    fn may(&self, at: usize, byte: Option<u8>) -> bool {
        let bit = byte.map_or(END, |byte| if byte < 15 { 1 << byte } else { 0 });
        self.moments[at] & bit != 0
    }

    /// One schedule.
    fn run(&'static self, mutant: Mutant) {
        let scene = Scene::new(self, mutant);
        let tasks = self.threads.iter().map(|steps| -> Box<dyn FnOnce() + Send> {
            let scene = scene.clone();
            Box::new(move || steps.iter().for_each(|step| (step.run)(&scene)))
        });
        together(tasks.collect());
        let got = scene.rig.settled();
        if !self.ends.contains(&got) {
            let differs = |end: &Vec<u8>| {
                let at = (0..LARGEST).find(|at| got.get(*at) != end.get(*at));
                at.map(|at| (at, got.get(at).copied(), end.get(at).copied()))
            };
            let first: Vec<_> = self.ends.iter().map(differs).collect();
            panic!("no order gives this; the first bytes that differ: {first:?}");
        }
        for at in [20, 107, 600].into_iter().flat_map(|at| (0..9).map(move |page| page * P + at)) {
            let seen = load(&scene.rig, &scene.mmu, &scene.map, at);
            assert_eq!(seen, got.get(at as usize).copied(), "the mapping at {at}");
        }
    }
}

/// A file in use.
#[derive(Clone)]
struct Scene {
    plan: &'static Plan,
    rig: Arc<Rig>,
    mmu: Arc<SimMmu>,
    map: MapView,
}

impl Scene {
    fn new(plan: &'static Plan, mutant: Mutant) -> Self {
        let before = plan.before;
        let dax = before != Before::Cold;
        let (rig, mmu, map) = Rig::with(&[], dax, mutant);
        let order: [u64; PAGES as usize] =
            if before == Before::Scattered { [0, 2, 4, 1, 3, 5] } else { [0, 1, 2, 3, 4, 5] };
        for page in order {
            rig.write(page * P, &[page as u8 + 1; PAGE]);
        }
        if before == Before::Unwritten {
            rig.unwrite(P, 5 * P);
        }
        rig.fs.cache.sync_all().expect("sync");
        assert!(rig.file.pages.invalidate(0..u64::MAX), "nothing in memory");
        Self { plan, rig, mmu, map }
    }

    fn load(&self, at: u64) {
        let seen = load(&self.rig, &self.mmu, &self.map, at);
        assert!(self.plan.may(at as usize, seen), "a load at {at} saw {seen:?}");
    }

    fn store(&self, at: u64, byte: u8) {
        store(&self.rig, &self.mmu, &self.map, at, byte);
    }

    /// Bytes that were read from the start on: each was there at some moment, or lies past the end as it was at one.
    fn has_read(&self, got: &[u8]) {
        for (at, byte) in got.iter().enumerate() {
            let past_end = *byte == 0 && self.plan.may(at, None);
            assert!(past_end || self.plan.may(at, Some(*byte)), "a read at {at} saw {byte}");
        }
    }

    /// The second read of a stream: it brings in all that is behind it in a small file.
    fn read_ahead(&self) {
        let mut ahead = ReadAhead::default();
        for at in [2 * P - 1, 2 * P] {
            let mut byte = [0];
            let n = self.rig.file.pages.read(&*self.rig.file, at, &mut byte, &mut ahead).expect("read");
            assert!(n == 0 || self.plan.may(at as usize, Some(byte[0])), "a read at {at} saw {}", byte[0]);
        }
    }
}

fn put(bytes: &mut [u8], at: usize, byte: u8) {
    if let Some(place) = bytes.get_mut(at) {
        *place = byte;
    }
}

const FLIPS: Change = Change { name: "flips", steps: &[Step { run: |s| s.rig.flips(), model: |_| {} }] };

const CHANGES: [Change; 6] = [
    Change {
        name: "truncate",
        steps: &[
            Step { run: |s| s.rig.truncate(P + 500), model: |m| m.truncate(PAGE + 500) },
            Step { run: |s| s.rig.truncate(4 * P), model: |m| m.resize(4 * PAGE, 0) },
        ],
    },
    Change {
        name: "punch",
        steps: &[Step { run: |s| s.rig.punch(P + 100, 3 * P), model: |m| m[PAGE + 100..3 * PAGE].fill(0) }],
    },
    Change {
        name: "zero",
        steps: &[Step { run: |s| s.rig.unwrite(P + 100, 3 * P), model: |m| m[PAGE + 100..3 * PAGE].fill(0) }],
    },
    Change {
        name: "collapse",
        steps: &[Step { run: |s| s.rig.collapse(P, 3 * P), model: |m| drop(m.drain(PAGE..3 * PAGE)) }],
    },
    Change {
        name: "insert",
        steps: &[Step {
            run: |s| s.rig.insert(P, 3 * P),
            model: |m| drop(m.splice(PAGE..PAGE, [0; 2 * PAGE])),
        }],
    },
    FLIPS,
];

/// A load of what goes, and one of what moves.
const LOADS: &[Step] = &[
    Step { run: |s| s.load(2 * P + 105), model: |_| {} },
    Step { run: |s| s.load(3 * P + 20), model: |_| {} },
];

const STORES: &[Step] = &[
    Step { run: |s| s.store(2 * P + 107, 9), model: |m| put(m, 2 * PAGE + 107, 9) },
    Step { run: |s| s.store(3 * P + 20, 9), model: |m| put(m, 3 * PAGE + 20, 9) },
];

const SIDES: [Side; 10] = [
    Side { name: "read faults", before: Before::Cold, threads: &[LOADS] },
    Side { name: "write faults", before: Before::Cold, threads: &[STORES] },
    Side {
        name: "fill",
        before: Before::Cold,
        threads: &[&[Step { run: |s| s.has_read(&s.rig.read()), model: |_| {} }]],
    },
    Side {
        name: "read-ahead",
        before: Before::Cold,
        threads: &[&[
            Step { run: Scene::read_ahead, model: |_| {} },
            Step { run: |s| s.load(2 * P + 105), model: |_| {} },
            Step { run: |s| s.load(3 * P + 20), model: |_| {} },
        ]],
    },
    Side {
        name: "direct writes and stores",
        before: Before::Cold,
        threads: &[
            &[Step {
                run: |s| s.rig.write_direct(2 * P, &[7; PAGE]),
                model: |m| {
                    m.resize(m.len().max(3 * PAGE), 0);
                    m[2 * PAGE..3 * PAGE].fill(7);
                },
            }],
            &[Step { run: |s| s.store(2 * P + 20, 9), model: |m| put(m, 2 * PAGE + 20, 9) }],
        ],
    },
    Side {
        name: "direct I/O on the device",
        before: Before::Row,
        threads: &[
            &[Step {
                run: |s| s.rig.write_direct(2 * P, &[7; PAGE]),
                model: |m| {
                    m.resize(m.len().max(3 * PAGE), 0);
                    m[2 * PAGE..3 * PAGE].fill(7);
                },
            }],
            &[Step { run: |s| s.has_read(&s.rig.read_direct()), model: |_| {} }],
            &[Step { run: |s| s.has_read(&s.rig.read()), model: |_| {} }],
        ],
    },
    Side { name: "DAX faults of a page", before: Before::Scattered, threads: &[LOADS, STORES] },
    Side { name: "DAX faults of a huge page", before: Before::Row, threads: &[LOADS, STORES] },
    Side { name: "DAX write enable", before: Before::Unwritten, threads: &[STORES] },
    Side {
        name: "DAX write enable beside loads",
        before: Before::Unwritten,
        threads: &[LOADS, &[Step { run: |s| s.store(2 * P + 20, 9), model: |m| put(m, 2 * PAGE + 20, 9) }]],
    },
];

/// Guards without which the pair fails.
fn guards(change: &str, side: &str) -> &'static [Mutant] {
    use Mutant::*;
    match (change, side) {
        ("flips", "read faults" | "write faults") => &[FaultShared, DaxLookedAt],
        ("flips", "fill" | "read-ahead") => &[FillShared, DaxLookedAt],
        ("flips", "direct writes and stores") => &[DirectExclusive, DaxLookedAt, FaultShared],
        // What a fill finds past the end becomes zero.
        ("truncate", "read faults" | "fill" | "read-ahead") => &[],
        ("collapse" | "insert", "read faults") => &[FaultShared, MoveDropped],
        ("collapse" | "insert", "write faults") => &[FaultShared, MoveDropped, MoveWritten],
        ("collapse" | "insert", "fill" | "read-ahead") => &[FillShared, MoveDropped],
        // Whatever a fault brings back of the page, the direct write has come before that, or comes after it.
        ("zero", "direct writes and stores") => &[],
        (_, "read faults" | "write faults" | "direct writes and stores") => &[FaultShared],
        (_, "fill" | "read-ahead") => &[FillShared],
        // A direct write that comes between is as if it had come before.
        ("zero" | "insert", "direct I/O on the device") => &[],
        (_, "direct I/O on the device") => &[DirectDrained],
        ("flips", "DAX write enable" | "DAX write enable beside loads") => {
            &[FaultShared, DaxLookedAt, DaxFilled]
        }
        ("flips", _) => &[FaultShared, DaxLookedAt, SwitchExchanges],
        (_, "flips") => &[FaultShared, DaxLookedAt, SwitchExchanges, PartHidden],
        (_, "DAX write enable" | "DAX write enable beside loads") => &[FaultShared, PartHidden, DaxFilled],
        _ => &[FaultShared, PartHidden],
    }
}

fn against_all(change: usize) {
    let change = CHANGES[change];
    for side in SIDES {
        let plan = Plan::of(side.before, side.threads.iter().copied().chain([change.steps]).collect());
        let name = format!("{} against {}", change.name, side.name);
        explore(&name, move |mutant| plan.run(mutant), guards(change.name, side.name));
    }
}

/// A change of the mode beside a change of blocks, under loads and stores.
fn flips_beside(change: usize, before: Before) {
    let change = CHANGES[change];
    let plan = Plan::of(before, vec![&STORES[..1], &LOADS[1..], change.steps, FLIPS.steps]);
    let name = format!("flips beside {} against faults, {before:?}", change.name);
    explore(&name, move |mutant| plan.run(mutant), guards(change.name, "flips"));
}

/// A direct write and a store to the same page: one is after the other.
#[test]
fn direct_writes_against_stores() {
    let side = SIDES.iter().find(|side| side.name == "direct writes and stores").expect("it is there");
    let plan = Plan::of(side.before, side.threads.to_vec());
    explore("direct writes against stores", move |mutant| plan.run(mutant), &[Mutant::DirectExclusive]);
}

#[test]
fn truncate_against_all() {
    against_all(0);
}

#[test]
fn punch_against_all() {
    against_all(1);
}

#[test]
fn zero_against_all() {
    against_all(2);
}

#[test]
fn collapse_against_all() {
    against_all(3);
}

#[test]
fn insert_against_all() {
    against_all(4);
}

#[test]
fn flips_against_all() {
    against_all(5);
}

#[test]
fn flips_beside_ranges() {
    for change in 0..5 {
        [Before::Cold, Before::Row].into_iter().for_each(|before| flips_beside(change, before));
    }
}
