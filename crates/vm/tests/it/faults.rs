//! Faults against everything else, explored: the scenarios of the race lab that need no filesystem.
//!
//! Each scenario runs `EXTANT_RACES` schedules (300 unless given), half of them random and half with few preemptions. For each guard
//! that it is about there is a mutant: with the guard taken away, the same scenario has to fail.

use extant_sync::{Arc, Mutex, Rank, model, thread};
use extant_vm::{CacheConfig, Fault, Host, MapAdvice, MapView, Mutant, ReadAhead, SimMmu};

use crate::sim::{STALE, SimFile, SimFs};

pub(crate) const BLOCK: usize = 1024;
pub(crate) const PAGE: usize = 4096;

/// Most schedules until a mutant must be dead.
const MOST_TO_KILL: usize = 20_000;

/// A scenario: it panics when something is wrong.
pub(crate) trait Scenario: Fn(Mutant) + Copy + Send + Sync + 'static {}

impl<F: Fn(Mutant) + Copy + Send + Sync + 'static> Scenario for F {}

/// Explores a scenario with all guards, then without each of `guards`, and prints its lines of the table.
pub(crate) fn explore(name: &str, scenario: impl Scenario, guards: &[Mutant]) {
    let lab = model::Lab::new(name, 300);
    lab.holds(move || scenario(Mutant::None));
    for guard in guards.iter().copied() {
        lab.notices(&format!("{guard:?}"), MOST_TO_KILL, move || scenario(guard));
    }
}

/// A file, its mappings, and a lock in the place of the inode's.
pub(crate) struct Rig {
    pub(crate) fs: SimFs,
    pub(crate) file: Arc<SimFile>,
    pub(crate) inode: Mutex<()>,
}

impl Rig {
    pub(crate) fn new(blocks: u64, mutant: Mutant) -> Arc<Self> {
        let config = CacheConfig { direct_read: usize::MAX, mutant, ..CacheConfig::default() };
        let fs = SimFs::new(BLOCK as u32, blocks, config);
        let file = fs.file(12);
        Arc::new(Self { fs, file, inode: Mutex::new(Rank::INODE, ()) })
    }

    /// A file of `bytes`, on the device, with nothing cached, and mapped.
    pub(crate) fn with(bytes: &[u8], mutant: Mutant) -> (Arc<Self>, Arc<SimMmu>, MapView) {
        let rig = Self::new(64, mutant);
        rig.file.pages.write(&*rig.file, 0, bytes);
        rig.fs.cache.sync_all().expect("sync");
        assert!(rig.file.pages.invalidate(0..u64::MAX));
        let mmu = rig.file.attach();
        let view = view(&mmu);
        (rig, mmu, view)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let _inode = self.inode.lock();
        assert_eq!(self.file.write(at, bytes, 0).expect("write"), bytes.len());
    }

    pub(crate) fn truncate(&self, size: u64) {
        let _inode = self.inode.lock();
        self.file.truncate(size).expect("truncate");
    }

    pub(crate) fn punch(&self, from: u64, to: u64) {
        let _inode = self.inode.lock();
        self.file.punch(from..to).expect("punch");
    }

    pub(crate) fn collapse(&self, from: u64, to: u64) {
        let _inode = self.inode.lock();
        self.file.collapse(from..to).expect("collapse");
    }

    pub(crate) fn write_direct(&self, at: u64, bytes: &[u8]) -> usize {
        let _inode = self.inode.lock();
        self.file.write_direct(at, bytes).expect("write")
    }

    fn insert(&self, from: u64, to: u64) {
        let _inode = self.inode.lock();
        self.file.insert(from..to).expect("insert");
    }

    pub(crate) fn sync(&self) {
        self.file.pages.sync(&*self.file, 0..u64::MAX).expect("sync");
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        let mut got = vec![0; self.file.size() as usize];
        let n = self.file.pages.read(&*self.file, 0, &mut got, &mut ReadAhead::default()).expect("read");
        got.truncate(n);
        got
    }

    /// What is true whatever has happened: after everything is written, the disk has what the file has, nothing is promised, nothing
    /// dirty, and no byte is anybody else's.
    pub(crate) fn settled(&self) -> Vec<u8> {
        let got = self.read();
        self.fs.cache.sync_all().expect("sync");
        assert!(got.iter().all(|b| *b != STALE), "another file's byte");
        assert!(self.file.after_crash() == got, "the disk has what the file has");
        assert_eq!(self.file.reserved_blocks(), 0, "promises are left");
        assert_eq!(self.file.mapped_past_end(), 0, "blocks past the end of the file");
        let stats = self.fs.cache.stats();
        assert_eq!((stats.dirty, stats.dirty_inodes, stats.pins), (0, 0, 0));
        got
    }
}

pub(crate) fn view(mmu: &SimMmu) -> MapView {
    MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal, sync: false }
}

pub(crate) fn together(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(|task| thread::spawn(task)).collect();
    for t in threads {
        t.join().expect("no panic inside");
    }
}

macro_rules! task {
    ([$($name:ident),*] $body:block) => {{
        $(let $name = $name.clone();)*
        Box::new(move || $body) as Box<dyn FnOnce() + Send>
    }};
}
pub(crate) use task;

/// One byte through a mapping; `None` past the end.
pub(crate) fn load(rig: &Rig, mmu: &SimMmu, view: &MapView, at: u64) -> Option<u8> {
    let mut byte = [0];
    match mmu.load(&*rig.file, view, at, &mut byte) {
        Ok(()) => Some(byte[0]),
        Err(Fault::Sigbus) => None,
        Err(fault) => panic!("{fault:?}"),
    }
}

pub(crate) fn store(rig: &Rig, mmu: &SimMmu, view: &MapView, at: u64, byte: u8) -> bool {
    match mmu.store(&*rig.file, view, at, &[byte]) {
        Ok(()) => true,
        Err(Fault::Sigbus) => false,
        Err(fault) => panic!("{fault:?}"),
    }
}

/// Stores that come one after the other while the page is written back again and again: the last one is on the disk.
#[test]
fn store_against_writeback() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        together(vec![
            task!([rig, mmu, map] {
                for byte in 2..6 {
                    assert!(store(&rig, &mmu, &map, 100, byte));
                }
            }),
            task!([rig] {
                rig.sync();
                rig.sync();
            }),
        ]);
        let got = rig.settled();
        assert_eq!((got[100], got[99]), (5, 1));
    }
    explore("store against writeback", scenario, &[Mutant::ProtectFirst, Mutant::InstallLocked]);
}

/// Two mappings of one page store to different places of it, and write(2) to a third, while it is written back.
#[test]
fn two_mappings_and_a_writer() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; PAGE], mutant);
        let two = view(&mmu);
        together(vec![
            task!([rig, mmu, one] {
                assert!(store(&rig, &mmu, &one, 10, 2));
                assert!(store(&rig, &mmu, &one, 11, 3));
            }),
            task!([rig, mmu, two] { assert!(store(&rig, &mmu, &two, 1500, 4)); }),
            task!([rig] {
                rig.write(3000, &[5]);
                rig.sync();
            }),
        ]);
        let got = rig.settled();
        assert_eq!((got[10], got[11], got[1500], got[3000]), (2, 3, 4, 5));
    }
    explore("two mappings, a writer, writeback", scenario, &[Mutant::ProtectFirst]);
}

/// A fault brings a page back from its old blocks while they are punched out and go to another file (S3).
#[test]
fn fault_against_punch() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], mutant);
        together(vec![
            task!([rig, mmu, map] {
                let seen = load(&rig, &mmu, &map, 500).expect("inside");
                assert!([0, 1].contains(&seen), "a byte of another file: {seen}");
                assert!(store(&rig, &mmu, &map, PAGE as u64 + 7, 9));
            }),
            task!([rig] { rig.punch(0, 2 * PAGE as u64); }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 500), Some(0), "a mapping shows what was punched out");
        let seen = load(&rig, &mmu, &map, PAGE as u64 + 7).expect("inside");
        let got = rig.settled();
        assert!(got[..PAGE].iter().all(|b| *b == 0) && seen == got[PAGE + 7] && [0, 9].contains(&seen));
    }
    explore("fault against punch", scenario, &[Mutant::FaultShared]);
}

/// The same with a part of a page.
#[test]
fn store_against_punch_of_blocks() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 5, 2));
        together(vec![
            task!([rig, mmu, map] { assert!(store(&rig, &mmu, &map, 1030, 3)); }),
            task!([rig] { rig.punch(1024, 3072); }),
        ]);
        let seen = load(&rig, &mmu, &map, 1030).expect("inside");
        let got = rig.settled();
        assert!([0, 3].contains(&seen) && got[1030] == seen, "mapping {seen}, file {}", got[1030]);
        assert!(got[1100] == 0 && got[2000] == 0 && got[5] == 2 && got[3073] == 1);
    }
    explore("store against punch of blocks", scenario, &[Mutant::PartHidden]);
}

/// What a collapse takes out and what it moves, under loads, stores, fills and read-ahead (S3): each access is before it or after it,
/// what was dirty is where it moved to, no byte comes from blocks that went to another file.
#[test]
fn faults_against_collapse() {
    fn scenario(mutant: Mutant) {
        let bytes = [[1; PAGE], [2; PAGE], [3; PAGE]].concat();
        let (rig, mmu, map) = Rig::with(&bytes, mutant);
        let third = 2 * PAGE as u64;
        assert!(store(&rig, &mmu, &map, third + 10, 9));
        let stored = Arc::new(Mutex::new(Rank::LEAF, false));
        together(vec![
            task!([rig, mmu, map, stored] {
                let seen = load(&rig, &mmu, &map, PAGE as u64 + 5).expect("inside");
                assert!([2, 3].contains(&seen), "a byte of another file: {seen}");
                *stored.lock() = store(&rig, &mmu, &map, third + 20, 8);
            }),
            task!([rig] { rig.collapse(PAGE as u64, third); }),
            task!([rig] {
                // Zeros where the end was when it began.
                let got = rig.read();
                assert!(got.iter().all(|b| [0, 1, 2, 3, 8, 9].contains(b)), "a reader saw another file's byte");
            }),
        ]);
        let at = |at: u64| load(&rig, &mmu, &map, at);
        let want = if *stored.lock() { 8 } else { 3 };
        assert_eq!((at(PAGE as u64 + 10), at(PAGE as u64 + 20), at(third)), (Some(9), Some(want), None));
        let got = rig.settled();
        assert_eq!((got.len(), got[PAGE - 1], got[PAGE], got[PAGE + 10]), (2 * PAGE, 1, 3, 9));
        assert_eq!(got[PAGE + 20], want);
    }
    explore(
        "faults against collapse",
        scenario,
        &[Mutant::FaultShared, Mutant::MoveWritten, Mutant::MoveDropped],
    );
}

/// The same with an insert, inside a page.
#[test]
fn faults_against_insert() {
    fn scenario(mutant: Mutant) {
        let bytes = [[1; BLOCK], [2; BLOCK], [3; BLOCK], [4; BLOCK], [5; BLOCK]].concat();
        let (rig, mmu, map) = Rig::with(&bytes, mutant);
        assert!(store(&rig, &mmu, &map, 2 * BLOCK as u64 + 10, 9));
        let stored = Arc::new(Mutex::new(Rank::LEAF, false));
        together(vec![
            task!([rig, mmu, map, stored] {
                let seen = load(&rig, &mmu, &map, BLOCK as u64 + 5).expect("inside");
                assert!([0, 2].contains(&seen), "{seen}");
                // Before, this is behind the end.
                *stored.lock() = store(&rig, &mmu, &map, 10 * BLOCK as u64 + 50, 8);
                let seen = load(&rig, &mmu, &map, 3).expect("inside");
                assert_eq!(seen, 1);
            }),
            task!([rig] { rig.insert(BLOCK as u64, 9 * BLOCK as u64); }),
            task!([rig] {
                let got = rig.read();
                assert!(got.iter().all(|b| [0, 1, 2, 3, 4, 5, 8, 9].contains(b)), "a reader saw another file's byte");
            }),
        ]);
        let at = |at: usize| load(&rig, &mmu, &map, at as u64);
        assert_eq!((at(3), at(BLOCK), at(9 * BLOCK)), (Some(1), Some(0), Some(2)));
        assert_eq!(at(10 * BLOCK + 10), Some(9));
        let got = rig.settled();
        assert_eq!(got.len(), 13 * BLOCK);
        let byte = |block: usize| got[block * BLOCK + 100];
        assert_eq!([0, 1, 4, 8, 9, 10, 11, 12].map(byte), [1, 0, 0, 0, 2, 3, 4, 5]);
        assert_eq!(got[10 * BLOCK + 50], if *stored.lock() { 8 } else { 3 });
    }
    explore(
        "faults against insert",
        scenario,
        &[Mutant::FaultShared, Mutant::PartHidden, Mutant::MoveWritten, Mutant::MoveDropped],
    );
}

/// Direct writes beside a collapse: the bytes are where they were written or where they have moved.
#[test]
fn direct_write_against_collapse() {
    fn scenario(mutant: Mutant) {
        let bytes = [[1; PAGE], [2; PAGE], [3; PAGE]].concat();
        let (rig, mmu, map) = Rig::with(&bytes, mutant);
        assert_eq!(load(&rig, &mmu, &map, 2 * PAGE as u64), Some(3));
        together(vec![
            task!([rig] {
                let _inode = rig.inode.lock();
                let at = rig.file.size() - PAGE as u64;
                assert_eq!(rig.file.write_direct(at, &[7; PAGE]).expect("write"), PAGE);
            }),
            task!([rig] { rig.collapse(PAGE as u64, 2 * PAGE as u64); }),
            task!([rig, mmu, map] {
                let seen = load(&rig, &mmu, &map, PAGE as u64 + 5).expect("inside");
                assert!([2, 3, 7].contains(&seen), "{seen}");
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, PAGE as u64), Some(7));
        let got = rig.settled();
        assert_eq!((got.len(), got[0], got[PAGE], got[2 * PAGE - 1]), (2 * PAGE, 1, 7, 7));
    }
    explore("direct write against collapse", scenario, &[Mutant::MoveDropped]);
}

/// A page that a device may write stays where it is: a pin is seen by who would move it, or comes after.
#[test]
fn pin_against_insert() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[[1; PAGE], [2; PAGE], [3; PAGE]].concat(), mutant);
        together(vec![
            task!([rig, mmu, map] {
                let file = &rig.file;
                let pin = file.pages.pin(&**file, &map, 1..2).expect("a pin");
                let target = mmu.target(1);
                target.copy_from(100, &[9]);
                drop(pin);
            }),
            task!([rig] {
                let _inode = rig.inode.lock();
                let done = rig.file.insert(PAGE as u64..2 * PAGE as u64);
                assert!(done.is_ok() || done.is_err_and(|e| e.raw_os_error() == Some(16)), "neither done nor busy");
            }),
        ]);
        let got = rig.settled();
        assert_eq!(got.iter().filter(|b| **b == 9).count(), 1, "what the device wrote is in the file");
    }
    explore("pin against insert", scenario, &[Mutant::PinSeen]);
}

/// A truncate under a mapping: an access is before it, or finds the end; blocks that were cut off come back as zeros.
#[test]
fn faults_against_truncate() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], mutant);
        together(vec![
            task!([rig, mmu, map] {
                store(&rig, &mmu, &map, 2 * PAGE as u64, 7);
                if let Some(seen) = load(&rig, &mmu, &map, PAGE as u64 + 3000) {
                    assert!([0, 1].contains(&seen), "{seen}");
                }
            }),
            task!([rig] {
                rig.truncate(PAGE as u64 + 500);
                rig.truncate(3 * PAGE as u64);
            }),
            task!([rig] { rig.sync(); }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, PAGE as u64 + 3000), Some(0));
        let last = load(&rig, &mmu, &map, 2 * PAGE as u64).expect("inside");
        let got = rig.settled();
        assert!(
            got[..PAGE + 500].iter().all(|b| *b == 1) && got[PAGE + 500..2 * PAGE].iter().all(|b| *b == 0)
        );
        assert!(got[2 * PAGE] == last && [0, 7].contains(&last));
        assert_eq!(got.len(), 3 * PAGE);
    }
    explore("faults against truncate", scenario, &[Mutant::FaultShared]);
}

/// A file grows inside the page that holds its end, by write(2) far behind and by truncate, while a mapping stores to that page: what
/// was stored past the end is gone, blocks that become the file's are reserved when a store touches them (S2).
#[test]
fn store_while_the_file_grows() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 700], mutant);
        together(vec![
            task!([rig, mmu, map] {
                assert!(store(&rig, &mmu, &map, 5, 2));
                // Past the end, or inside, as it comes.
                assert!(store(&rig, &mmu, &map, 2500, 3));
            }),
            task!([rig] { rig.write(3500, &[4; 10]); }),
        ]);
        let seen = load(&rig, &mmu, &map, 2500).expect("inside");
        let got = rig.settled();
        assert_eq!(got.len(), 3510);
        assert!(got[2500] == seen && [0, 3].contains(&seen), "mapping {seen}, file {}", got[2500]);
        assert!(got[5] == 2 && got[699] == 1 && got[3505] == 4);
        assert!(
            got[700..2500].iter().chain(&got[2501..3500]).all(|b| *b == 0),
            "what was stored past the end came back"
        );
        assert!(store(&rig, &mmu, &map, 2600, 8));
        assert_eq!(rig.settled()[2600], 8);
    }
    explore("store while the file grows", scenario, &[Mutant::OldEndProtected, Mutant::OldEndZeroed]);
}

/// Reclaim takes clean pages away while they are loaded, stored to, read and written back.
#[test]
fn reclaim_against_faults() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], mutant);
        rig.read();
        together(vec![
            task!([rig, mmu, map] {
                assert!(store(&rig, &mmu, &map, PAGE as u64, 2));
                rig.sync();
                assert_eq!(load(&rig, &mmu, &map, PAGE as u64), Some(2));
            }),
            task!([rig] {
                let got = rig.read();
                assert!(got.iter().all(|b| [1, 2].contains(b)), "a reader lost its page");
            }),
            task!([rig] {
                rig.fs.cache.reclaim(4);
                rig.fs.cache.reclaim(4);
            }),
        ]);
        let got = rig.settled();
        assert!(got[PAGE] == 2 && got.iter().filter(|b| **b == 1).count() == 3 * PAGE - 1);
    }
    explore("reclaim against faults", scenario, &[Mutant::LeaveUsed]);
}

/// A device writes into a pinned page while that is written back and reclaimed (S2).
#[test]
fn pin_against_writeback_and_reclaim() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        let file = &rig.file;
        let pin = file.pages.pin(&**file, &map, 0..1).expect("a pin");
        let target = mmu.target(0);
        together(vec![
            task!([rig] {
                rig.sync();
                rig.fs.cache.reclaim(4);
                rig.fs.cache.reclaim(4);
            }),
            Box::new(move || {
                target.copy_from(2000, &[9]);
                drop(pin);
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 2000), Some(9), "the device's byte is in the mapping");
        let got = rig.settled();
        assert!(got[2000] == 9 && got[0] == 1);
    }
    explore("pin against writeback and reclaim", scenario, &[Mutant::PinDirty]);
}

/// The same without a pin: what a device puts into a page that was written meanwhile is found by fsync.
#[test]
fn a_change_without_a_fault_is_found() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        let target = mmu.target(0);
        together(vec![
            task!([rig] { rig.sync(); }),
            Box::new(move || target.copy_from(2000, &[9])),
            task!([rig, mmu, map] { assert_eq!(load(&rig, &mmu, &map, 0), Some(2)); }),
        ]);
        rig.fs.cache.reclaim(4);
        rig.fs.cache.reclaim(4);
        rig.sync();
        assert_eq!(load(&rig, &mmu, &map, 2000), Some(9));
        let got = rig.settled();
        assert!(got[0] == 2 && got[2000] == 9);
    }
    explore("a change without a fault", scenario, &[Mutant::UnseenFound]);
}

/// A page is looked at for the last time when nothing is under way to it: beside a transfer that a system call has set up, and
/// that ends at any time. What it put there is on the disk when an fsync that begins after that returns.
#[test]
fn a_transfer_beside_looks() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        // Set up while it could be stored to.
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig] {
                rig.sync();
                rig.sync();
                rig.sync();
            }),
            task!([mmu] {
                target.copy_from(2000, &[9]);
                mmu.end_transfer();
            }),
        ]);
        rig.sync();
        assert_eq!(rig.file.after_crash()[2000], 9, "on the disk");
        // And now for the last time.
        let looked_at = || rig.fs.cache.stats().looked_at;
        rig.sync();
        let before = looked_at();
        rig.sync();
        assert_eq!(looked_at(), before, "looked at again");
        assert_eq!(rig.settled()[2000], 9);
    }
    explore("a transfer beside looks", scenario, &[Mutant::SumsKept, Mutant::QuietFirst]);
}

/// The same when the filesystem is about to be clean: nothing says that the file is not (sync, freeze, unmount).
#[test]
fn a_change_without_a_fault_before_all_is_clean() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        rig.sync();
        let target = mmu.target(0);
        target.copy_from(2000, &[9]);
        together(vec![
            // A fault that only looks has the page's lock for a while.
            task!([rig, mmu, map] { assert_eq!(load(&rig, &mmu, &map, 0), Some(2)); }),
            task!([rig] {
                rig.fs.cache.find_unseen_changes().expect("looked");
                rig.fs.cache.sync_all().expect("sync");
                assert_eq!(rig.file.after_crash()[2000], 9, "on the disk");
            }),
        ]);
        assert_eq!(rig.settled()[2000], 9);
    }
    explore("a change without a fault, then all is clean", scenario, &[Mutant::AllLookedAt]);
}

/// A file leaves its memory, with what changed there without a fault, beside everything else.
#[test]
fn leaving_the_memory() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        rig.sync();
        mmu.target(0).copy_from(2000, &[9]);
        together(vec![
            task!([rig] {
                let _inode = rig.inode.lock();
                assert!(rig.file.pages.leave_memory(&*rig.file));
            }),
            task!([rig] { rig.sync(); }),
            task!([rig, mmu, map] {
                assert_eq!(load(&rig, &mmu, &map, PAGE as u64), Some(1));
                assert!(store(&rig, &mmu, &map, PAGE as u64 + 7, 5));
            }),
            task!([rig] {
                rig.fs.cache.reclaim(2);
                let got = rig.read();
                assert!([1, 9].contains(&got[2000]) && got[0] == 2, "{} and {}", got[0], got[2000]);
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, PAGE as u64 + 7), Some(5));
        rig.fs.cache.find_unseen_changes().expect("looked");
        let got = rig.settled();
        assert_eq!((got[0], got[2000], got[PAGE + 7]), (2, 9, 5));
    }
    explore("leaving the memory", scenario, &[Mutant::LeftWithChanges]);
}

/// Pages from before the first mapping move to its memory at their first fault, dirty or being written as they are.
#[test]
fn first_faults_against_writeback() {
    fn scenario(mutant: Mutant) {
        let rig = Rig::new(64, mutant);
        rig.write(0, &[1; 2 * PAGE]);
        let mmu = rig.file.attach();
        let map = view(&mmu);
        together(vec![
            task!([rig, mmu, map] {
                assert_eq!(load(&rig, &mmu, &map, 0), Some(1));
                assert!(store(&rig, &mmu, &map, PAGE as u64, 2));
            }),
            task!([rig] { rig.sync(); }),
            task!([rig] {
                rig.write(2000, &[3; 10]);
                let got = rig.read();
                assert_eq!((got[1], got[2005]), (1, 3));
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 2005), Some(3));
        let got = rig.settled();
        assert_eq!((got[0], got[PAGE], got[2005]), (1, 2, 3));
    }
    explore("first faults against writeback", scenario, &[Mutant::MovedMark]);
}

/// A disk with room for some: who gets none gets SIGBUS, and leaves no promise behind (a younger sibling of S2).
#[test]
fn stores_on_a_full_disk() {
    fn scenario_with(blocks: u64, mutant: Mutant) {
        let rig = Rig::new(blocks, mutant);
        rig.truncate(2 * PAGE as u64 + 700);
        let mmu = rig.file.attach();
        let map = view(&mmu);
        let (one, two) = (Arc::new(Mutex::new(Rank::LEAF, 0)), Arc::new(Mutex::new(Rank::LEAF, 0)));
        together(vec![
            task!([rig, mmu, map, one] {
                let got = (0..3).filter(|p| store(&rig, &mmu, &map, p * PAGE as u64, 2)).count();
                *one.lock() = got;
            }),
            task!([rig, mmu, map, two] {
                let got = (0..3).filter(|p| store(&rig, &mmu, &map, p * PAGE as u64 + 600, 3)).count();
                *two.lock() = got;
            }),
        ]);
        let got = rig.settled();
        let stored = |byte: u8| got.iter().filter(|b| **b == byte).count();
        let one = *one.lock();
        assert_eq!((stored(2), stored(3)), (one, *two.lock()));
        assert!(stored(2) + stored(3) > 0, "five blocks are room for a page");
    }
    explore("stores on a full disk", |m| scenario_with(6, m), &[Mutant::FaultUndone]);
    explore("stores at the end of a file", |m| scenario_with(64, m), &[Mutant::BlocksOfFile]);
}

/// Content in the inode: a writer, a store through a mapping, and a reader; with room and without (S0, S1).
#[test]
fn inline_content_under_a_mapping() {
    fn scenario_with(blocks: u64, mutant: Mutant) {
        let rig = Rig::new(blocks, mutant);
        rig.file.make_inline(&[1; 100]);
        let mmu = rig.file.attach();
        let map = view(&mmu);
        let stored = Arc::new(Mutex::new(Rank::LEAF, false));
        together(vec![
            task!([rig, mmu, map, stored] {
                *stored.lock() = store(&rig, &mmu, &map, 60, 3);
            }),
            task!([rig] {
                let _inode = rig.inode.lock();
                assert_eq!(rig.file.write(50, &[2; 5], 150).expect("it fits"), 5);
            }),
            task!([rig] { rig.sync(); }),
        ]);
        let want = if *stored.lock() { 3 } else { 1 };
        assert_eq!((load(&rig, &mmu, &map, 50), load(&rig, &mmu, &map, 60)), (Some(2), Some(want)));
        if rig.file.is_inline() {
            let content = rig.file.inline().expect("content").expect("inline");
            assert!(content[50] == 2 && content[60] == 1 && !*stored.lock() && blocks < 3);
            assert_eq!(rig.fs.cache.stats().dirty, 0, "a dirty page of a file whose content is in the inode");
        } else {
            let got = rig.settled();
            assert_eq!((got[0], got[50], got[60], got.len()), (1, 2, want, 100));
        }
    }
    explore("inline content under a mapping", |m| scenario_with(64, m), &[Mutant::InlineLock]);
    explore("the same on a full disk", |m| scenario_with(1, m), &[]);
}

/// A writer grows inline content out of the inode while a store does the same.
#[test]
fn inline_content_outgrows_the_inode() {
    fn scenario(mutant: Mutant) {
        let rig = Rig::new(64, mutant);
        rig.file.make_inline(&[1; 100]);
        let mmu = rig.file.attach();
        let map = view(&mmu);
        together(vec![
            task!([rig, mmu, map] { assert!(store(&rig, &mmu, &map, 60, 3)); }),
            task!([rig] {
                let _inode = rig.inode.lock();
                assert_eq!(rig.file.write(140, &[2; 3000], 150).expect("write"), 3000);
            }),
        ]);
        assert_eq!((load(&rig, &mmu, &map, 60), load(&rig, &mmu, &map, 3000)), (Some(3), Some(2)));
        let got = rig.settled();
        assert!(got.len() == 3140 && got[60] == 3 && got[99] == 1 && got[100] == 0 && got[3139] == 2);
    }
    explore("inline content outgrows the inode", scenario, &[Mutant::InlineLock]);
}

/// Direct writes beside a mapping: a load sees the old or the new, and afterwards the new.
#[test]
fn direct_write_against_faults() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], mutant);
        together(vec![
            task!([rig, mmu, map] {
                assert!([1, 2].contains(&load(&rig, &mmu, &map, 100).expect("inside")));
                assert!(store(&rig, &mmu, &map, PAGE as u64 + 100, 3));
            }),
            task!([rig] {
                let _inode = rig.inode.lock();
                assert_eq!(rig.file.write_direct(0, &[2; PAGE]).expect("write"), PAGE);
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 100), Some(2));
        let got = rig.settled();
        assert!(got[..PAGE].iter().all(|b| *b == 2) && got[PAGE + 100] == 3);
    }
    explore("direct write against faults", scenario, &[]);
}

/// The unit refuses at any of its calls: somebody gets an error or a SIGBUS, and nothing is lost.
#[test]
fn a_unit_that_refuses() {
    fn scenario_at(call: u32) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], Mutant::None);
        mmu.fail_after(call);
        let stored = Arc::new(Mutex::new(Rank::LEAF, false));
        together(vec![
            task!([rig, mmu, map, stored] {
                *stored.lock() = matches!(mmu.store(&*rig.file, &map, 100, &[2]), Ok(()));
            }),
            task!([rig] { let _ = rig.file.pages.sync(&*rig.file, 0..u64::MAX); }),
            task!([rig] {
                let _inode = rig.inode.lock();
                let _ = rig.file.truncate(PAGE as u64);
            }),
        ]);
        // The last look is no call that may be refused.
        mmu.fail_after(u32::MAX);
        let got = rig.settled();
        assert!(!*stored.lock() || got[100] == 2, "an accepted store is lost");
        assert!(got.iter().enumerate().all(|(n, b)| *b == 1 || n == 100));
    }
    const AT: [fn(Mutant); 8] = [
        |_| scenario_at(0),
        |_| scenario_at(1),
        |_| scenario_at(2),
        |_| scenario_at(3),
        |_| scenario_at(4),
        |_| scenario_at(5),
        |_| scenario_at(6),
        |_| scenario_at(7),
    ];
    for (call, scenario) in AT.into_iter().enumerate() {
        explore(&format!("a unit that refuses call {call}"), scenario, &[]);
    }
}
