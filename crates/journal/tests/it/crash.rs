//! What a crash may leave: every state of a recorded run is recovered and compared with what was promised.
//!
//! Each operation is one handle that writes its number into block 0 and into a few random blocks, now and then frees a
//! block that later holds file data, and makes it metadata again later still. After recovery block 0 says how many
//! operations are there; every block must be what exactly those left, and all that was promised durable is among them.

use std::collections::BTreeMap;
use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::jbd2::MAGIC;
use extant_format::{Pblk, Tid};
use extant_journal::{Journal, JournalOptions, WantedFeatures, recover};
use extant_testkit::sim::{CrashState, SimDevice};
use extant_testkit::{Rng, env};

use crate::common::{BLOCKS, Setup};

const USED: u64 = 48;
const DATA_MARK: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Written by this operation, as metadata.
    Op(u32),
    /// Freed: holds `DATA` once that has been flushed, until then anything.
    Data,
}

struct Run {
    device: Arc<SimDevice>,
    block_size: u32,
    /// Blocks after each operation.
    states: Vec<BTreeMap<u64, Expect>>,
}

fn content(block_size: u32, pblk: u64, op: u32) -> Vec<u8> {
    let mut bytes = vec![0; block_size as usize];
    for (n, word) in bytes.chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&op.wrapping_add(n as u32 / 200).to_le_bytes());
    }
    bytes[4..8].copy_from_slice(&(pblk as u32).to_le_bytes());
    if pblk % 4 == 1 {
        // Blocks that look like the journal's own must be escaped.
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&op.to_le_bytes());
    }
    bytes
}

fn data(block_size: u32, pblk: u64) -> Vec<u8> {
    vec![0xD0 | pblk as u8 & 0xF; block_size as usize]
}

struct Writer {
    run: Run,
    journal: Arc<Journal>,
    rng: Rng,
    now: BTreeMap<u64, Expect>,
    freed: Vec<(u64, Tid)>,
}

impl Writer {
    fn operation(&mut self, op: u32) -> Tid {
        let mut handle = self.journal.start(12).unwrap();
        let count = 1 + self.rng.below(8);
        let mut blocks: Vec<u64> = (0..count).map(|_| 1 + self.rng.below(USED - 1)).collect();
        blocks.push(0);
        for pblk in blocks {
            let bytes = content(self.run.block_size, pblk, op);
            let buf = match self.now.get(&pblk) {
                Some(Expect::Data) if self.freed.iter().any(|(b, _)| *b == pblk) => continue,
                Some(Expect::Data) | None => handle.create(Pblk(pblk)).unwrap(),
                Some(Expect::Op(_)) => self.journal.cache().read(Pblk(pblk)).unwrap(),
            };
            handle.modify(&buf, |b| b.copy_from_slice(&bytes)).unwrap();
            self.now.insert(pblk, Expect::Op(op));
        }
        if self.rng.chance(1, 3) {
            let pblk = 1 + self.rng.below(USED - 1);
            if matches!(self.now.get(&pblk), Some(Expect::Op(_))) {
                handle.revoke(Pblk(pblk)).unwrap();
                self.now.insert(pblk, Expect::Data);
                self.freed.push((pblk, handle.tid()));
            }
        }
        self.run.states.push(self.now.clone());
        handle.finish().unwrap()
    }

    /// Freed blocks whose transaction is durable become file data.
    fn reuse(&mut self) {
        let committed = self.journal.committed_tid();
        let ready: Vec<u64> =
            self.freed.iter().filter(|(_, tid)| !tid.is_after(committed)).map(|(b, _)| *b).collect();
        self.freed.retain(|(_, tid)| tid.is_after(committed));
        let size = self.run.block_size;
        for pblk in &ready {
            self.run.device.write_at(pblk * u64::from(size), &data(size, *pblk)).unwrap();
        }
        if !ready.is_empty() {
            self.run.device.flush().unwrap();
            ready.iter().for_each(|pblk| self.run.device.mark(DATA_MARK | pblk));
        }
    }
}

fn record(setup: &Setup, options: JournalOptions, ops: u32, seed: u64) -> Run {
    let device = setup.device();
    let journal = Journal::open(setup.cache(&device), setup.place(&device), options).unwrap();
    let run = Run { device, block_size: setup.block_size, states: vec![BTreeMap::new()] };
    let mut writer = Writer { run, journal, rng: Rng::new(seed), now: BTreeMap::new(), freed: Vec::new() };
    for op in 1..=ops {
        let tid = writer.operation(op);
        if writer.rng.chance(1, 3) {
            writer.journal.wait_commit(tid).unwrap();
            writer.run.device.mark(op.into());
            writer.reuse();
        }
        if writer.rng.chance(1, 12) {
            writer.journal.checkpoint_all().unwrap();
            writer.run.device.mark(op.into());
        }
    }
    writer.run
}

fn read_block(device: &dyn BlockDevice, size: u32, pblk: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    device.read_at(pblk * u64::from(size), &mut bytes).unwrap();
    bytes
}

/// What is wrong with a crash state after its recovery.
fn judge(setup: &Setup, run: &Run, state: &CrashState) -> Result<(), String> {
    let device = SimDevice::from_content(state.content.clone());
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let place = setup.place(&device);
    let recovery = recover(&place, &dynamic, BLOCKS).map_err(|e| format!("recovery: {e}"))?;
    recovery.finish(&dynamic).map_err(|e| format!("finish: {e}"))?;
    let size = run.block_size;
    let first = read_block(&*device, size, 0);
    let op = u32::from_le_bytes([first[0], first[1], first[2], first[3]]);
    let promised = state.marks.iter().filter(|m| **m & DATA_MARK == 0).max().copied().unwrap_or(0);
    if u64::from(op) < promised {
        return Err(format!("operation {promised} was promised, {op} is there"));
    }
    for (pblk, expect) in &run.states[op as usize] {
        let found = read_block(&*device, size, *pblk);
        let wanted = match expect {
            Expect::Op(by) => content(size, *pblk, *by),
            Expect::Data if state.marks.contains(&(DATA_MARK | pblk)) => data(size, *pblk),
            Expect::Data => continue,
        };
        // Data of an earlier stay may be marked while a later one has been freed and not yet written.
        let reused = *expect == Expect::Data && found != wanted && freed_again(run, *pblk, op, state);
        if found != wanted && !reused {
            return Err(format!("after {op}: block {pblk} is not {expect:?} but {:?}", &found[..12]));
        }
    }
    Ok(())
}

/// Whether the block was metadata again after data of it had been marked: then its data marks say nothing about `op`.
fn freed_again(run: &Run, pblk: u64, op: u32, state: &CrashState) -> bool {
    let mut stays = 0;
    for n in 1..=op as usize {
        let before = run.states[n - 1].get(&pblk);
        if run.states[n].get(&pblk) == Some(&Expect::Data) && before != Some(&Expect::Data) {
            stays += 1;
        }
    }
    stays > state.marks.iter().filter(|m| **m == DATA_MARK | pblk).count()
}

fn check_all(setup: &Setup, run: &Run, seed: u64) -> (usize, Vec<String>) {
    let plan = run.device.crash_plan(seed);
    let mut problems = Vec::new();
    let mut count = 0;
    plan.for_each(|state| {
        count += 1;
        if let Err(problem) = judge(setup, run, &state) {
            problems.push(format!("epoch {} {:?}: {problem}", state.epoch, state.cut));
        }
    });
    (count, problems)
}

fn small(checksums: bool, bit64: bool) -> Setup {
    Setup { log_len: 128, features: WantedFeatures { checksums, bit64 }, ..Setup::default() }
}

#[test]
fn every_crash_state_recovers_to_whole_operations() {
    let seed = env::seed_or(1);
    let mut states = 0;
    for (n, (checksums, bit64)) in
        [(true, true), (true, false), (false, true), (false, false)].iter().enumerate()
    {
        let setup = small(*checksums, *bit64);
        let run = record(&setup, setup.options(), 60, seed + n as u64);
        let (count, problems) = check_all(&setup, &run, seed);
        assert!(problems.is_empty(), "checksums {checksums} 64bit {bit64}: {problems:#?}");
        states += count;
    }
    println!("{states} crash states");
    assert!(states > 3000, "{states}");
}

#[test]
fn without_flushes_the_same_check_finds_losses() {
    let seed = env::seed_or(1);
    let setup = small(true, true);
    let options = JournalOptions { barrier: false, ..setup.options() };
    let run = record(&setup, options, 60, seed);
    let (_, problems) = check_all(&setup, &run, seed);
    assert!(!problems.is_empty(), "the check cannot fail");
}

#[test]
fn a_recovered_journal_goes_on() {
    let seed = env::seed_or(3);
    let setup = small(true, true);
    let run = record(&setup, setup.options(), 25, seed);
    run.device.crash_plan(seed).subsets(2).for_each(|state| {
        let device = SimDevice::from_content(state.content);
        let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
        recover(&setup.place(&device), &dynamic, BLOCKS).unwrap().finish(&dynamic).unwrap();
        let journal = setup.open(&device);
        for op in 1000..1003 {
            let mut handle = journal.start(1).unwrap();
            let buf = handle.create(Pblk(0)).unwrap();
            handle.modify(&buf, |b| b.copy_from_slice(&content(1024, 0, op))).unwrap();
            handle.finish().unwrap();
            journal.commit_all().unwrap();
        }
        drop(journal);
        let recovery = recover(&setup.place(&device), &dynamic, BLOCKS).unwrap();
        assert_eq!(recovery.transactions(), 3);
        assert_eq!(read_block(&*device, 1024, 0), content(1024, 0, 1002));
    });
}
