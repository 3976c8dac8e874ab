//! DAX explored: what takes blocks away, and the change of the mode itself, against faults, reads and writes (S3, S4).
//!
//! Whatever the schedule: no byte of another file is seen, no block that is nobody's is written to, no store and no write is lost, and at the
//! end the disk has what the file has.

use extant_device::BlockDevice;
use extant_sync::atomic::{AtomicBool, Ordering};
use extant_sync::{Arc, Mutex, MutexGuard, Rank, thread};
use extant_vm::{CacheConfig, Fault, Host, Landing, MapView, Mutant, ReadAhead, SimMmu};

use crate::faults::{explore, task, together, view};
use crate::sim::{STALE, SimFile, SimFs};

const PAGE: usize = 4096;
const P: u64 = PAGE as u64;

/// A file on a device that can be mapped.
pub(crate) struct Rig {
    pub(crate) fs: SimFs,
    pub(crate) file: Arc<SimFile>,
    mutant: Mutant,
}

impl Rig {
    /// A file of `bytes`, mapped; in DAX mode or not.
    pub(crate) fn with(bytes: &[u8], dax: bool, mutant: Mutant) -> (Arc<Self>, Arc<SimMmu>, MapView) {
        let config = CacheConfig { direct_read: usize::MAX, mutant, ..CacheConfig::default() };
        let fs = SimFs::mappable(16, config);
        let file = fs.file(12);
        file.pages.begin_dax(dax);
        file.pages.write(&*file, 0, bytes);
        fs.cache.sync_all().expect("sync");
        let mmu = file.attach();
        let view = view(&mmu);
        (Arc::new(Self { fs, file, mutant }), mmu, view)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let _inode = self.file.inode.lock();
        assert_eq!(self.file.write(at, bytes, 0).expect("write"), bytes.len());
    }

    pub(crate) fn write_direct(&self, at: u64, bytes: &[u8]) {
        let _inode = self.for_direct();
        assert_eq!(self.file.write_direct(at, bytes).expect("write"), bytes.len());
    }

    pub(crate) fn read_direct(&self) -> Vec<u8> {
        let _inode = self.for_direct();
        let mut got = vec![0; self.file.size() as usize];
        let n = self.file.pages.read_past_cache(&*self.file, 0, &mut got).expect("read");
        got.truncate(n);
        got
    }

    fn for_direct(&self) -> Option<MutexGuard<'_, ()>> {
        (self.mutant != Mutant::DirectDrained).then(|| self.file.inode.lock())
    }

    pub(crate) fn truncate(&self, size: u64) {
        let _inode = self.file.inode.lock();
        self.file.truncate(size).expect("truncate");
    }

    pub(crate) fn punch(&self, from: u64, to: u64) {
        let _inode = self.file.inode.lock();
        self.file.punch(from..to).expect("punch");
    }

    pub(crate) fn collapse(&self, from: u64, to: u64) {
        let _inode = self.file.inode.lock();
        self.file.collapse(from..to).expect("collapse");
    }

    pub(crate) fn insert(&self, from: u64, to: u64) {
        let _inode = self.file.inode.lock();
        self.file.insert(from..to).expect("insert");
    }

    pub(crate) fn unwrite(&self, from: u64, to: u64) {
        let _inode = self.file.inode.lock();
        self.file.unwrite(from..to).expect("zero");
    }

    fn try_switch(&self, dax: bool) -> bool {
        let _inode = self.file.inode.lock();
        self.file.switch(dax).expect("switch")
    }

    /// As the filesystem does it: waits for pins with nothing held.
    fn switch(&self, dax: bool) {
        let mut bar = None;
        while !self.try_switch(dax) {
            bar.get_or_insert_with(|| self.file.pages.bar_pins()).wait().expect("no pin of its own");
        }
    }

    pub(crate) fn flips(&self) {
        let dax = self.file.pages.is_dax();
        self.switch(!dax);
        self.switch(dax);
        self.switch(!dax);
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

    fn byte(&self, at: u64) -> u8 {
        let mut got = [0];
        let n = self.file.pages.read(&*self.file, at, &mut got, &mut ReadAhead::default()).expect("read");
        assert_eq!(n, 1, "inside");
        got[0]
    }

    pub(crate) fn settled(&self) -> Vec<u8> {
        let got = self.read();
        self.fs.cache.sync_all().expect("sync");
        assert!(got.iter().all(|b| *b != STALE), "another file's byte");
        assert!(self.file.after_crash() == got, "the disk has what the file has");
        assert!(self.file.free_blocks_untouched(), "a store to a block that is nobody's");
        assert_eq!(self.file.reserved_blocks(), 0, "promises are left");
        assert_eq!(self.file.mapped_past_end(), 0, "blocks past the end of the file");
        let stats = self.fs.cache.stats();
        assert_eq!((stats.dirty, stats.dirty_inodes, stats.pins), (0, 0, 0));
        assert!(!self.file.pages.is_dax() || self.file.pages.page_count() == 0, "pages in DAX mode");
        got
    }
}

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

/// A fault shows a block that is being punched out and goes to another file (S3).
#[test]
fn faults_against_punch() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], true, mutant);
        together(vec![
            task!([rig, mmu, map] {
                let seen = load(&rig, &mmu, &map, 500).expect("inside");
                assert!([0, 1].contains(&seen), "a byte of another file: {seen}");
                assert!(store(&rig, &mmu, &map, P + 7, 9));
            }),
            task!([rig] { rig.punch(100, 2 * P); }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 500), Some(0), "a mapping shows what was punched out");
        let seen = load(&rig, &mmu, &map, P + 7).expect("inside");
        let got = rig.settled();
        assert!(got[..100].iter().all(|b| *b == 1) && got[100..PAGE].iter().all(|b| *b == 0));
        assert!(seen == got[PAGE + 7] && [0, 9].contains(&seen));
    }
    explore("dax: faults against punch", scenario, &[Mutant::FaultShared, Mutant::PartHidden]);
}

/// The same where blocks become unwritten and stay the file's, under two mappings.
#[test]
fn faults_against_zeroing() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; 2 * PAGE], true, mutant);
        let two = view(&mmu);
        together(vec![
            task!([rig, mmu, one] { assert!(store(&rig, &mmu, &one, 7, 9)); }),
            task!([rig, mmu, two] {
                let seen = load(&rig, &mmu, &two, 8).expect("inside");
                assert!([0, 1].contains(&seen), "what an unwritten block has: {seen}");
            }),
            task!([rig] { rig.unwrite(0, P); }),
        ]);
        let seen = (load(&rig, &mmu, &one, 7), load(&rig, &mmu, &two, 7));
        let got = rig.settled();
        assert!(seen.0 == seen.1 && seen.0 == Some(got[7]) && [0, 9].contains(&got[7]), "{seen:?}");
        assert!(got[8..PAGE].iter().all(|b| *b == 0) && got[PAGE..].iter().all(|b| *b == 1));
    }
    explore(
        "dax: faults against zeroing",
        scenario,
        &[Mutant::FaultShared, Mutant::PartHidden, Mutant::DaxFilled],
    );
}

/// Blocks that are taken out, and those that move to other places in the file: each access is before or after, at the place where its
/// byte is then.
#[test]
fn faults_against_collapse_and_insert() {
    fn scenario(mutant: Mutant) {
        for insert in [false, true] {
            let bytes = [[1; PAGE], [2; PAGE], [3; PAGE]].concat();
            let (rig, mmu, map) = Rig::with(&bytes, true, mutant);
            let stored = Arc::new(Mutex::new(Rank::LEAF, false));
            together(vec![
                task!([rig, mmu, map, stored] {
                    let seen = load(&rig, &mmu, &map, P + 5).expect("inside");
                    assert!([0, 2, 3].contains(&seen), "a byte of another file: {seen}");
                    *stored.lock() = store(&rig, &mmu, &map, 2 * P + 20, 8);
                }),
                task!([rig] { if insert { rig.insert(P, 2 * P) } else { rig.collapse(P, 2 * P) } }),
                task!([rig] {
                    let got = rig.read();
                    assert!(got.iter().all(|b| [0, 1, 2, 3, 8].contains(b)), "another file's byte");
                }),
            ]);
            let got = rig.settled();
            let blocks: Vec<u8> = got.chunks(PAGE).map(|block| block[100]).collect();
            assert_eq!(blocks, if insert { vec![1, 0, 2, 3] } else { vec![1, 3] });
            // Where the store was made before, its byte moved; where after, it is where it was made, if that is inside.
            let eights: Vec<usize> = (0..got.len()).filter(|at| got[*at] == 8).collect();
            let places = if insert { [2 * PAGE + 20, 3 * PAGE + 20] } else { [PAGE + 20, PAGE + 20] };
            assert_eq!(eights.len(), usize::from(*stored.lock()));
            assert!(eights.iter().all(|at| places.contains(at)), "{eights:?}");
            for at in [5, PAGE + 20, 2 * PAGE + 20] {
                assert_eq!(load(&rig, &mmu, &map, at as u64), got.get(at).copied(), "the mapping at {at}");
            }
        }
    }
    explore("dax: faults against collapse and insert", scenario, &[Mutant::FaultShared, Mutant::PartHidden]);
}

/// A truncate under a mapping, and a file that grows again: an access is before it, or finds the end.
#[test]
fn faults_against_truncate() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], true, mutant);
        together(vec![
            task!([rig, mmu, map] {
                store(&rig, &mmu, &map, 2 * P, 7);
                if let Some(seen) = load(&rig, &mmu, &map, P + 3000) {
                    assert!([0, 1].contains(&seen), "{seen}");
                }
            }),
            task!([rig] {
                rig.truncate(P + 500);
                rig.truncate(3 * P);
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, P + 3000), Some(0));
        let last = load(&rig, &mmu, &map, 2 * P).expect("inside");
        let got = rig.settled();
        assert!(
            got[..PAGE + 500].iter().all(|b| *b == 1) && got[PAGE + 500..2 * PAGE].iter().all(|b| *b == 0)
        );
        assert!(got[2 * PAGE] == last && [0, 7].contains(&last));
    }
    explore("dax: faults against truncate", scenario, &[Mutant::FaultShared, Mutant::PartHidden]);
}

/// A store to a hole of which another mapping shows the page of zeros: once it is made, everybody sees it.
#[test]
fn store_to_a_hole() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; PAGE], true, mutant);
        rig.truncate(3 * P);
        let two = view(&mmu);
        assert_eq!(load(&rig, &mmu, &two, P + 5), Some(0));
        let stored = Arc::new(AtomicBool::new(false));
        together(vec![
            task!([rig, mmu, one, stored] {
                assert!(store(&rig, &mmu, &one, P + 5, 7));
                stored.store(true, Ordering::SeqCst);
                assert_eq!(rig.byte(P + 5), 7);
            }),
            task!([rig, mmu, two, stored] {
                let done = stored.load(Ordering::SeqCst);
                let seen = load(&rig, &mmu, &two, P + 5).expect("inside");
                assert!([0, 7].contains(&seen) && (seen == 7 || !done), "{seen}, stored: {done}");
                assert!(store(&rig, &mmu, &two, P + 6, 8));
            }),
            task!([rig] { rig.write(P + 100, &[3; 10]); }),
        ]);
        assert_eq!((load(&rig, &mmu, &two, P + 5), load(&rig, &mmu, &one, P + 6)), (Some(7), Some(8)));
        let got = rig.settled();
        assert_eq!((got[PAGE + 5], got[PAGE + 6], got[PAGE + 105], got[PAGE + 110]), (7, 8, 3, 0));
        // The last page is a hole still: nobody asked for it.
        assert_eq!(rig.file.places().len(), 2);
    }
    explore(
        "dax: store to a hole",
        scenario,
        &[Mutant::DaxHolesHidden, Mutant::DaxFilled, Mutant::PlacedOnce, Mutant::PlacedLooked],
    );
}

/// A file grows inside its last page, under stores past its end.
#[test]
fn store_while_the_file_grows() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 700], true, mutant);
        together(vec![
            task!([rig, mmu, map] {
                assert!(store(&rig, &mmu, &map, 5, 2));
                assert!(store(&rig, &mmu, &map, 2500, 3));
            }),
            task!([rig] { rig.write(3500, &[4; 10]); }),
        ]);
        let seen = load(&rig, &mmu, &map, 2500).expect("inside");
        let got = rig.settled();
        assert!(got.len() == 3510 && got[2500] == seen && [0, 3].contains(&seen));
        assert!(got[5] == 2 && got[699] == 1 && got[3505] == 4);
        assert!(got[700..2500].iter().chain(&got[2501..3500]).all(|b| *b == 0), "stored past the end");
        assert!(store(&rig, &mmu, &map, 3600, 9));
        rig.truncate(P);
        assert_eq!(load(&rig, &mmu, &map, 3600), Some(0), "stored past the end");
        rig.settled();
    }
    explore("dax: store while the file grows", scenario, &[Mutant::DaxEndHidden]);
}

/// The mode changes under a thread that stores and loads, and under writeback (S4).
#[test]
fn flips_against_faults() {
    fn scenario(mutant: Mutant) {
        for dax in [false, true] {
            let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], dax, mutant);
            rig.truncate(3 * P);
            together(vec![
                task!([rig, mmu, map] {
                    for byte in 2..5 {
                        assert!(store(&rig, &mmu, &map, 100, byte));
                        assert_eq!(load(&rig, &mmu, &map, 100), Some(byte), "a lost store");
                        assert_eq!(rig.byte(100), byte, "a store that read(2) does not see");
                    }
                    assert!(store(&rig, &mmu, &map, 2 * P + 1, 6));
                    assert_eq!(load(&rig, &mmu, &map, P), Some(1));
                }),
                task!([rig] { rig.flips(); }),
                task!([rig] { rig.sync(); }),
            ]);
            assert_eq!(load(&rig, &mmu, &map, 2 * P + 1), Some(6));
            let got = rig.settled();
            assert_eq!((got[100], got[99], got[2 * PAGE + 1], got[2 * PAGE]), (4, 1, 6, 0));
        }
    }
    explore("dax: flips against faults", scenario, &[Mutant::DaxLookedAt, Mutant::SwitchExchanges]);
}

/// The same under two mappings, of which one only loads.
#[test]
fn flips_against_two_mappings() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; PAGE], false, mutant);
        let two = view(&mmu);
        let stored = Arc::new(AtomicBool::new(false));
        together(vec![
            task!([rig, mmu, one, stored] {
                assert!(store(&rig, &mmu, &one, 100, 2));
                stored.store(true, Ordering::SeqCst);
                assert_eq!(rig.byte(100), 2, "a store that read(2) does not see");
                assert!(store(&rig, &mmu, &one, 101, 3));
                assert_eq!(rig.byte(101), 3, "a store that read(2) does not see");
            }),
            task!([rig, mmu, two, stored] {
                load(&rig, &mmu, &two, 100);
                let done = stored.load(Ordering::SeqCst);
                let seen = load(&rig, &mmu, &two, 100).expect("inside");
                assert!(seen == 2 || (seen == 1 && !done), "{seen}, stored: {done}");
            }),
            task!([rig] { rig.flips(); }),
        ]);
        let got = rig.settled();
        assert_eq!((got[100], got[101], got[102]), (2, 3, 1));
        assert_eq!((load(&rig, &mmu, &two, 100), load(&rig, &mmu, &two, 101)), (Some(2), Some(3)));
    }
    explore("dax: flips against two mappings", scenario, &[Mutant::SwitchExchanges]);
}

/// The same under write(2), read(2) and direct writes.
#[test]
fn flips_against_reads() {
    fn scenario(mutant: Mutant) {
        let (rig, _mmu, _map) = Rig::with(&[1; 2 * PAGE], false, mutant);
        together(vec![
            task!([rig] {
                rig.write(10, &[2; 3]);
                assert_eq!(rig.byte(11), 2, "a lost write");
                rig.write_direct(P, &[3; PAGE]);
                assert_eq!(rig.byte(P + 9), 3, "a lost direct write");
                rig.write(10, &[4; 3]);
                assert_eq!(rig.byte(11), 4, "a lost write");
            }),
            task!([rig] {
                let got = rig.read();
                assert!(got.iter().all(|b| [1, 2, 3, 4].contains(b)), "a wrong byte");
            }),
            task!([rig] { rig.flips(); }),
        ]);
        let got = rig.settled();
        assert!((got[11], got[PAGE], got[9], got[13]) == (4, 3, 1, 1) && got[PAGE..].iter().all(|b| *b == 3));
    }
    explore("dax: flips against reads and writes", scenario, &[Mutant::DaxLookedAt]);
}

/// The same while blocks are taken away.
#[test]
fn flips_against_punch_and_truncate() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], true, mutant);
        together(vec![
            task!([rig, mmu, map] {
                store(&rig, &mmu, &map, P + 5, 2);
                if let Some(seen) = load(&rig, &mmu, &map, 2 * P + 5) {
                    assert!([0, 1].contains(&seen), "another file's byte: {seen}");
                }
                store(&rig, &mmu, &map, 2 * P + 6, 3);
            }),
            task!([rig] {
                rig.punch(0, 2 * P);
                rig.truncate(2 * P + 100);
                rig.truncate(3 * P);
            }),
            task!([rig] { rig.flips(); }),
        ]);
        let seen = load(&rig, &mmu, &map, P + 5).expect("inside");
        let got = rig.settled();
        assert!(got[PAGE + 5] == seen && [0, 2].contains(&seen));
        assert!(
            got[..PAGE].iter().all(|b| *b == 0) && got[2 * PAGE + 100..].iter().all(|b| [0, 3].contains(b))
        );
    }
    explore("dax: flips against punch and truncate", scenario, &[Mutant::FaultShared, Mutant::PartHidden]);
}

/// A pin keeps the mode from changing. Who holds it writes, stores, loads and pins meanwhile, and drops it in the end.
#[test]
fn a_switch_waits_for_pins() {
    fn scenario(mutant: Mutant) {
        for dax in [false, true] {
            let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], dax, mutant);
            let dropped = Arc::new(AtomicBool::new(false));
            together(vec![
                task!([rig, mmu, map, dropped] {
                    let pin = rig.file.pages.pin(&*rig.file, &map, 0..1).expect("a pin");
                    assert!(store(&rig, &mmu, &map, 3, 4));
                    rig.write(5, &[6]);
                    assert_eq!((rig.byte(5), load(&rig, &mmu, &map, 5)), (6, Some(6)));
                    let more = rig.file.pages.pin(&*rig.file, &map, 0..2).expect("a pin");
                    assert_eq!(rig.file.pages.is_dax(), dax, "switched under a pin");
                    dropped.store(true, Ordering::SeqCst);
                    drop((pin, more));
                }),
                task!([rig, dropped] {
                    if rig.file.pages.is_pinned() {
                        rig.switch(!dax);
                        assert!(dropped.load(Ordering::SeqCst), "switched under a pin");
                    }
                }),
            ]);
            rig.switch(!dax);
            let got = rig.settled();
            assert_eq!((got[3], got[5], got[7], rig.file.pages.is_dax()), (4, 6, 1, !dax));
        }
    }
    explore("dax: a switch waits for pins", scenario, &[Mutant::PinsAwaited]);
}

/// A thread that pins while somebody waits to change the mode has its turn after him: else two that pin in turn could keep him waiting for
/// ever.
#[test]
fn a_switch_is_not_starved_by_new_pins() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], true, mutant);
        let pin = rig.file.pages.pin(&*rig.file, &map, 0..1).expect("a pin");
        let pin = Arc::new(Mutex::new(Rank::LEAF, Some(pin)));
        let switched = Arc::new(AtomicBool::new(false));
        together(vec![
            task!([rig, switched] {
                rig.switch(false);
                switched.store(true, Ordering::SeqCst);
            }),
            task!([rig, mmu, map] {
                let late = rig.file.pages.pins_are_barred();
                let pin = rig.file.pages.pin(&*rig.file, &map, 0..1).expect("a pin");
                assert!(!late || !rig.file.pages.is_dax(), "a new pin was faster than who waited");
                assert!(store(&rig, &mmu, &map, 3, 4));
                drop(pin);
            }),
            task!([pin] {
                let pin = pin.lock().take();
                drop(pin);
            }),
        ]);
        assert!(switched.load(Ordering::SeqCst));
        assert_eq!((rig.settled()[3], rig.file.pages.is_dax()), (4, false));
    }
    explore("dax: a switch is not starved by new pins", scenario, &[Mutant::PinsKeptOut]);
}

/// Threads that hold a pin and want the mode of another one's file changed would wait for each other: they are told.
#[test]
fn who_holds_a_pin_does_not_wait_for_pins() {
    extant_sync::model::check_random(
        || {
            let (rig, _mmu, map) = Rig::with(&[1; PAGE], true, Mutant::None);
            let other = rig.fs.file(13);
            other.pages.write(&*other, 0, &[1; PAGE]);
            let other_map = view(&other.attach());
            let pin = rig.file.pages.pin(&*rig.file, &map, 0..1).expect("a pin");
            let own = rig.file.pages.bar_pins().wait().expect_err("its own pin");
            assert_eq!(own.raw_os_error(), Some(35));
            drop(pin);
            together(vec![
                task!([rig, map, other] {
                    let _pin = rig.file.pages.pin(&*rig.file, &map, 0..1).expect("a pin");
                    let bar = other.pages.bar_pins();
                    assert!(bar.wait().is_err());
                }),
                task!([rig, other, other_map] {
                    let _pin = other.pages.pin(&*other, &other_map, 0..1).expect("a pin");
                    let bar = rig.file.pages.bar_pins();
                    assert!(bar.wait().is_err());
                }),
            ]);
            rig.file.pages.bar_pins().wait().expect("no pin is left");
            // What is on the list of dirty files is held by it, and holds the cache.
            rig.fs.cache.sync_all().expect("sync");
        },
        300,
    );
}

/// A transfer into a page, without a pin, that comes while the mode changes: as long as the pages are there it is the file's.
#[test]
fn what_a_device_puts_into_a_page_before_it_goes() {
    fn scenario(mutant: Mutant) {
        // In the midst of writing, and with either call that takes the pages away.
        for calls in 0..3 {
            let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], false, mutant);
            mmu.begin_transfer();
            assert!(store(&rig, &mmu, &map, 3, 2) && store(&rig, &mmu, &map, P + 3, 2));
            rig.sync();
            assert!(store(&rig, &mmu, &map, 3, 4));
            mmu.land_after(calls, Landing { page: 1, at: 100, byte: 9 });
            together(vec![
                task!([rig] { rig.switch(true); }),
                // One that brings no page, which would be another call.
                task!([rig] { assert_eq!(rig.byte(P + 3), 2); }),
            ]);
            assert!(mmu.has_landed());
            mmu.end_transfer();
            let got = rig.settled();
            assert_eq!((got[3], got[PAGE + 3], got[PAGE + 99]), (4, 2, 1));
            assert_eq!(got[PAGE + 100], 9, "what a device wrote before the pages went is lost");
        }
    }
    explore("dax: a transfer before the pages go", scenario, &[Mutant::SwitchLooksLast]);
}

/// A unit that refuses one of its calls: an error or a signal, and nothing is lost.
#[test]
fn a_unit_that_refuses() {
    for call in 0..8 {
        extant_sync::model::check_random(
            move || {
                let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], true, Mutant::None);
                rig.truncate(3 * P);
                assert!(store(&rig, &mmu, &map, 7, 2));
                mmu.fail_after(call);
                together(vec![
                    task!([rig, mmu, map] {
                        let mut byte = [0];
                        // The first may be refused.
                        let _ = mmu.load(&*rig.file, &map, 2 * P, &mut byte);
                        let _ = mmu.store(&*rig.file, &map, 2 * P + 1, &[3]);
                    }),
                    task!([rig] {
                        let _inode = rig.file.inode.lock();
                        let _ = rig.file.switch(false);
                        let _ = rig.file.punch(P..2 * P);
                    }),
                ]);
                mmu.fail_after(u32::MAX);
                rig.switch(false);
                let got = rig.settled();
                assert!(got[7] == 2 && [0, 3].contains(&got[2 * PAGE + 1]) && [0, 1].contains(&got[PAGE]));
            },
            40,
        );
    }
}

/// A device that was told to write to a mapping does so when the block is another file's.
#[test]
fn transfers_against_punch() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], true, mutant);
        let other = rig.fs.file(13);
        other.pages.begin_dax(true);
        assert_eq!(load(&rig, &mmu, &map, P), Some(1));
        together(vec![
            task!([rig, mmu, map] { transfer(&rig, &mmu, &map, 1, 5); }),
            task!([rig] {
                rig.punch(P, 2 * P);
                rig.fs.cache.end_grace();
            }),
            task!([other] {
                let _inode = other.inode.lock();
                assert_eq!(other.write(0, &[7; 2 * PAGE], 0).expect("write"), 2 * PAGE);
            }),
        ]);
        let mut got = vec![0; 2 * PAGE];
        other.pages.read(&*other, 0, &mut got, &mut ReadAhead::default()).expect("read");
        assert!(got.iter().all(|b| *b == 7), "a transfer reached another file");
        let got = rig.settled();
        assert!(got[..PAGE].iter().all(|b| *b == 1) && got[PAGE..2 * PAGE].iter().all(|b| *b == 0));
        // When nothing is under way the blocks come back.
        rig.fs.cache.end_grace();
        assert_eq!((rig.fs.cache.grace_bytes(), rig.file.places().len()), (0, 2));
    }
    explore("dax: transfers against punch", scenario, &[Mutant::ShownHeld]);
}

/// The same with truncate, and with blocks that were zeroed before.
#[test]
fn transfers_against_truncate() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 3 * PAGE], true, mutant);
        assert_eq!(load(&rig, &mmu, &map, 2 * P), Some(1));
        together(vec![
            task!([rig, mmu, map] {
                transfer(&rig, &mmu, &map, 2, 5);
                rig.fs.cache.end_grace();
            }),
            task!([rig] {
                rig.unwrite(2 * P, 3 * P);
                rig.truncate(P + 100);
                rig.truncate(3 * P);
                rig.fs.cache.end_grace();
            }),
        ]);
        let got = rig.settled();
        assert!(got[..P as usize + 100].iter().all(|b| *b == 1));
        assert!(got[P as usize + 100..].iter().all(|b| *b == 0));
    }
    explore("dax: transfers against truncate", scenario, &[Mutant::ShownHeld]);
}

/// A read(2) with O_DIRECT of a library that is not ours, into a page of the mapping; whether it was told to write to the device's own.
fn transfer(rig: &Rig, mmu: &SimMmu, map: &MapView, page: u32, byte: u8) -> bool {
    let Some(at) = mmu.begin_transfer_to(map.id, page) else { return false };
    thread::yield_now();
    rig.fs.device.write_at(at + 100, &[byte; 16]).expect("inside");
    mmu.end_transfer();
    true
}

/// Too many windows: the file leaves DAX mode by itself, under stores, loads, reads and writes.
#[test]
fn a_fragmented_file_leaves() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; 3 * PAGE], true, mutant);
        let two = view(&mmu);
        mmu.limit_windows(4, 100);
        together(vec![
            task!([rig, mmu, one] {
                for byte in 2..4 {
                    assert!(store(&rig, &mmu, &one, 100, byte));
                    assert_eq!(load(&rig, &mmu, &one, 100), Some(byte), "a lost store");
                    assert_eq!(rig.byte(100), byte, "a store that read(2) does not see");
                }
            }),
            task!([rig, mmu, two] {
                let seen = load(&rig, &mmu, &two, 100).expect("inside");
                assert!([1, 2, 3].contains(&seen), "{seen}");
                assert!(store(&rig, &mmu, &two, P + 7, 9));
                assert_eq!(rig.byte(P + 7), 9, "a store that read(2) does not see");
            }),
            task!([rig] {
                rig.write(2 * P + 50, &[3; 3]);
                assert_eq!(rig.byte(2 * P + 51), 3, "a lost write");
            }),
        ]);
        assert_eq!((load(&rig, &mmu, &two, 100), load(&rig, &mmu, &one, P + 7)), (Some(3), Some(9)));
        assert_eq!(load(&rig, &mmu, &two, 2 * P + 52), Some(3));
        let got = rig.settled();
        assert_eq!((got[100], got[PAGE + 7], got[2 * PAGE + 50], got[99]), (3, 9, 3, 1));
    }
    explore("dax: a fragmented file leaves", scenario, &[Mutant::DaxLookedAt, Mutant::SwitchExchanges]);
}

/// The same while blocks are taken away and the flag flips.
#[test]
fn a_fragmented_file_leaves_under_punch_and_flips() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; 3 * PAGE], true, mutant);
        let two = view(&mmu);
        mmu.limit_windows(3, 100);
        together(vec![
            task!([rig, mmu, one, two] {
                for map in [&one, &two] {
                    let seen = load(&rig, &mmu, map, P + 5).expect("inside");
                    assert!([0, 1].contains(&seen), "another file's byte: {seen}");
                    assert!(store(&rig, &mmu, map, 2 * P + 6, 3));
                }
            }),
            task!([rig] { rig.punch(0, 2 * P); }),
            task!([rig] { rig.flips(); }),
        ]);
        assert_eq!((load(&rig, &mmu, &one, P + 5), load(&rig, &mmu, &two, 2 * P + 6)), (Some(0), Some(3)));
        let got = rig.settled();
        assert!(got[..2 * PAGE].iter().all(|b| *b == 0) && got[2 * PAGE + 6] == 3 && got[2 * PAGE + 7] == 1);
    }
    explore(
        "dax: a fragmented file leaves under punch and flips",
        scenario,
        &[Mutant::FaultShared, Mutant::PartHidden],
    );
}

/// Not while somebody writes, who has looked at the mode before he had what he needs.
#[test]
fn a_fragmented_file_waits_for_writers() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; 3 * PAGE], true, mutant);
        let two = view(&mmu);
        assert_eq!(load(&rig, &mmu, &one, P), Some(1));
        mmu.limit_windows(3, 100);
        together(vec![
            task!([rig] {
                rig.write(P + 50, &[3; 3]);
                assert_eq!(rig.byte(P + 51), 3, "a lost write");
            }),
            task!([rig, mmu, two] {
                assert!(store(&rig, &mmu, &two, 7, 9));
                assert!([1, 3].contains(&rig.byte(P + 51)));
            }),
        ]);
        let got = rig.settled();
        assert_eq!((got[7], got[PAGE + 51], got[PAGE + 53]), (9, 3, 1));
    }
    explore("dax: a fragmented file waits for writers", scenario, &[Mutant::LeftAlone]);
}

/// Private mappings show copies: what was written before an access is in what it sees.
#[test]
fn copies_against_writes() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, _shared) = Rig::with(&[1; 2 * PAGE], true, mutant);
        let own = MapView { id: mmu.map_private(), ..view(&mmu) };
        let written = Arc::new(AtomicBool::new(false));
        together(vec![
            task!([rig, mmu, own, written] {
                rig.write(P + 5, &[7]);
                written.store(true, Ordering::SeqCst);
                assert_eq!(load(&rig, &mmu, &own, P + 5), Some(7), "a copy from before");
            }),
            task!([rig, mmu, own, written] {
                let done = written.load(Ordering::SeqCst);
                let seen = load(&rig, &mmu, &own, P + 5).expect("inside");
                assert!(seen == 7 || (seen == 1 && !done), "{seen}, written: {done}");
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &own, P + 5), Some(7), "a copy from before");
        assert_eq!(rig.settled()[PAGE + 5], 7);
    }
    explore("dax: copies against writes", scenario, &[Mutant::CopiesDropped, Mutant::CopiesGated]);
}

/// A hole is shown as zeros, beside a write that gives it a block.
#[test]
fn zeros_against_writes() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], true, mutant);
        rig.truncate(3 * P);
        together(vec![
            task!([rig] { rig.write(P + 5, &[7]); }),
            task!([rig, mmu, map] {
                let seen = load(&rig, &mmu, &map, P + 5).expect("inside");
                assert!([0, 7].contains(&seen), "{seen}");
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, P + 5), Some(7), "zeros from before");
        assert_eq!(rig.settled()[PAGE + 5], 7);
    }
    explore("dax: zeros against writes", scenario, &[Mutant::DaxHolesHidden, Mutant::CopiesGated]);
}

/// What a device was told to write to a window is not lost when the file leaves DAX mode by itself.
#[test]
fn a_fragmented_file_waits_for_transfers() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = Rig::with(&[1; 3 * PAGE], true, mutant);
        let two = view(&mmu);
        assert_eq!(load(&rig, &mmu, &one, P), Some(1));
        mmu.limit_windows(3, 100);
        let told = Arc::new(AtomicBool::new(false));
        together(vec![
            task!([rig, mmu, one, told] {
                told.store(transfer(&rig, &mmu, &one, 1, 5), Ordering::SeqCst);
            }),
            task!([rig, mmu, two] { assert!(store(&rig, &mmu, &two, P + 7, 9)); }),
        ]);
        let want = if told.load(Ordering::SeqCst) { 5 } else { 1 };
        assert_eq!(rig.byte(P + 100), want, "a lost transfer");
        assert_eq!((load(&rig, &mmu, &two, P + 100), load(&rig, &mmu, &one, P + 7)), (Some(want), Some(9)));
        rig.settled();
    }
    explore("dax: a fragmented file waits for transfers", scenario, &[Mutant::LeftQuiet]);
}

/// Two threads that make what they stored durable.
#[test]
fn two_at_a_time_make_durable() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], true, mutant);
        assert_eq!(load(&rig, &mmu, &map, 0), Some(1));
        let places = rig.file.places();
        rig.file.fsync().expect("fsync");
        let one = move |rig: &Rig, mmu: &SimMmu, map: &MapView, page: usize| {
            let at = page as u64 * P + 9;
            let place = places[page].1 * P + 9;
            for byte in 5..7 {
                assert!(store(rig, mmu, map, at, byte));
                rig.file.fsync().expect("fsync");
                assert_eq!(rig.fs.device.durable(place), byte, "acknowledged, and not durable");
            }
        };
        let one = Arc::new(one);
        together(vec![
            task!([rig, mmu, map, one] { one(&rig, &mmu, &map, 0); }),
            task!([rig, mmu, map, one] { one(&rig, &mmu, &map, 1); }),
        ]);
        rig.settled();
    }
    explore("dax: two at a time make durable", scenario, &[Mutant::NotedAtOnce]);
}

/// One at a time: when a file leaves and when it does not.
#[test]
fn when_a_fragmented_file_leaves() {
    extant_sync::model::check_random(
        || {
            let begin = |limits: (usize, usize)| {
                let (rig, mmu, one) = Rig::with(&[1; 3 * PAGE], true, Mutant::None);
                assert_eq!(load(&rig, &mmu, &one, 0), Some(1));
                mmu.limit_windows(limits.0, limits.1);
                let two = view(&mmu);
                (rig, mmu, one, two)
            };
            // Nobody uses it: it leaves, for all its mappings, and stays away until the flag changes.
            let (rig, mmu, one, two) = begin((5, 100));
            assert!(store(&rig, &mmu, &two, 1, 2) && !rig.file.pages.is_dax() && mmu.windows() == 0);
            assert_eq!((load(&rig, &mmu, &one, 1), mmu.windows()), (Some(2), 0));
            rig.switch(true);
            assert_eq!((load(&rig, &mmu, &one, 1), mmu.windows()), (Some(2), 3));
            // Somebody does: windows go, and it stays.
            let (rig, mmu, _one, two) = begin((5, 100));
            rig.file.in_use.store(true, Ordering::Relaxed);
            assert!(store(&rig, &mmu, &two, 1, 2) && rig.file.pages.is_dax() && mmu.windows() == 3);
            // A pin, or a transfer.
            let (rig, mmu, one, two) = begin((5, 100));
            let pin = rig.file.pages.pin(&*rig.file, &one, 0..1).expect("a pin");
            assert!(store(&rig, &mmu, &two, 1, 2) && rig.file.pages.is_dax());
            drop(pin);
            mmu.limit_windows(2, 100);
            mmu.begin_transfer();
            assert!(store(&rig, &mmu, &one, 1, 3) && rig.file.pages.is_dax() && mmu.windows() == 3);
            mmu.end_transfer();
            assert!(store(&rig, &mmu, &two, 1, 4) && !rig.file.pages.is_dax());
            // The system gives no mapping: it leaves whatever is under way, but for a pin.
            let (rig, mmu, one, two) = begin((0, 0));
            let pin = rig.file.pages.pin(&*rig.file, &one, 0..1).expect("a pin");
            let mut byte = [0];
            assert_eq!(mmu.load(&*rig.file, &two, 0, &mut byte), Err(Fault::Oom));
            drop(pin);
            mmu.begin_transfer();
            assert!(store(&rig, &mmu, &two, 1, 2) && !rig.file.pages.is_dax());
            mmu.end_transfer();
            assert_eq!(rig.settled()[1], 2);
        },
        5,
    );
}
