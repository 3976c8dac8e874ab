//! MAP_SYNC explored: what a program has stored through such a mapping, and brought out of the processor's caches, is the file's after a
//! crash, with no call to the filesystem.

use extant_sync::Arc;
use extant_vm::{Fault, FaultWait, Host, MapView, Mutant, SimMmu};

use crate::dax::{Rig, load};
use crate::faults::{explore, task, together, view};
use crate::sim::STALE;

const PAGE: usize = 4096;
const P: u64 = PAGE as u64;

/// A mapping with MAP_SYNC, of a file whose map is durable.
fn mapped(bytes: &[u8], size: u64, mutant: Mutant) -> (Arc<Rig>, Arc<SimMmu>, MapView) {
    let (rig, mmu, map) = Rig::with(bytes, true, mutant);
    if size > bytes.len() as u64 {
        rig.truncate(size);
    }
    rig.file.commit();
    rig.file.pages.begin_sync_map();
    (rig, mmu, MapView { sync: true, ..map })
}

/// Stores a byte, commits where the fault waits for that, and has the crash find it, in a block that is the file's.
fn store_durably(rig: &Rig, mmu: &SimMmu, map: &MapView, at: u64, byte: u8) {
    let mut wait = FaultWait::default();
    loop {
        match mmu.store_or_wait(&*rig.file, map, at, &[byte], &mut wait) {
            Ok(()) => break,
            Err(Fault::Parked) => rig.file.commit(),
            Err(fault) => panic!("{fault:?}"),
        }
    }
    let (_, flushed) = rig.file.survives(at).expect("a block that a crash takes away");
    assert_eq!(flushed, byte, "a crash loses a store");
    let (beside, _) = rig.file.survives(at ^ 1).expect("the same block");
    assert_ne!(beside, STALE, "a crash shows what the block had before");
}

/// Stores to holes and to preallocated blocks, beside a writer that places some of the same, a second mapping, and commits.
#[test]
fn stores_that_survive() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = mapped(&[1; PAGE], 4 * P, mutant);
        rig.file.allocate(3 * P..4 * P).expect("allocate");
        let two = MapView { sync: true, ..view(&mmu) };
        together(vec![
            task!([rig, mmu, one] {
                store_durably(&rig, &mmu, &one, 7, 2);
                store_durably(&rig, &mmu, &one, P + 8, 3);
                store_durably(&rig, &mmu, &one, 3 * P + 8, 4);
            }),
            task!([rig, mmu, two] {
                store_durably(&rig, &mmu, &two, P + 20, 5);
                store_durably(&rig, &mmu, &two, 2 * P + 20, 6);
            }),
            task!([rig] {
                rig.write(P + 100, &[7; 10]);
                rig.write(2 * P + 100, &[8; 10]);
            }),
            task!([rig] { rig.file.commit(); }),
        ]);
        let got = rig.settled();
        let at = |page: usize, byte: usize| got[page * PAGE + byte];
        assert_eq!((at(0, 7), at(0, 8), at(1, 8), at(1, 20), at(1, 100)), (2, 1, 3, 5, 7));
        assert_eq!((at(2, 20), at(2, 105), at(3, 8), at(3, 9)), (6, 8, 4, 0));
    }
    explore("map_sync: stores that survive", scenario, &[Mutant::SyncCommitted, Mutant::SyncGated]);
}

/// A file that grows inside its last page: the bytes that it gains are there after a crash once they have been stored to.
#[test]
fn stores_to_what_a_file_gains() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = mapped(&[1; 700], 700, mutant);
        store_durably(&rig, &mmu, &map, 5, 2);
        together(vec![
            task!([rig, mmu, map] {
                store_durably(&rig, &mmu, &map, 6, 3);
                if rig.read().len() > 3509 {
                    store_durably(&rig, &mmu, &map, 3000, 4);
                }
            }),
            task!([rig, mmu, map] {
                rig.write(3500, &[4; 10]);
                store_durably(&rig, &mmu, &map, 2500, 5);
            }),
        ]);
        let got = rig.settled();
        assert_eq!((got.len(), got[5], got[6], got[2500], got[3505]), (3510, 2, 3, 5, 4));
    }
    explore("map_sync: stores to what a file gains", scenario, &[Mutant::SyncCommitted]);
}

/// A file that would leave DAX mode for its many windows stays, and its mappings give windows up.
#[test]
fn a_fragmented_file_stays() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, one) = mapped(&[1; 3 * PAGE], 0, mutant);
        let two = view(&mmu);
        mmu.limit_windows(2, 100);
        together(vec![
            task!([rig, mmu, one] {
                store_durably(&rig, &mmu, &one, 7, 2);
                store_durably(&rig, &mmu, &one, P + 8, 3);
            }),
            task!([rig, mmu, two] { assert_eq!(load(&rig, &mmu, &two, 2 * P), Some(1)); }),
        ]);
        assert!(rig.file.pages.is_dax(), "what was stored is in a page of the cache");
        let got = rig.settled();
        assert_eq!((got[7], got[PAGE + 8], got[9]), (2, 3, 1));
    }
    explore("map_sync: a fragmented file stays", scenario, &[Mutant::SyncStays]);
}

/// Does it beside a reader of the file.
fn beside_a_reader(rig: &Arc<Rig>, work: impl FnOnce() + Send + 'static) {
    together(vec![Box::new(work), task!([rig] { rig.read(); })]);
}

/// What a page is shown for, once it has been seen and its transaction is durable, however the file goes on growing: two commits are enough.
/// The pages that it has gained meanwhile are not shown with it.
#[test]
fn an_appender_keeps_no_fault_waiting() {
    fn append_and_store(rig: &Rig, mmu: &SimMmu, map: &MapView) {
        rig.write(P, &[2; PAGE]);
        let (mut wait, mut commits) = (FaultWait::default(), 0);
        while let Err(fault) = mmu.store_or_wait(&*rig.file, map, P + 8, &[3], &mut wait) {
            assert_eq!((fault, commits < 2), (Fault::Parked, true), "it waits for the appender");
            // Changed before the commit, which says nothing of what comes after it.
            rig.write(rig.file.size(), &[4; PAGE]);
            rig.file.commit();
            commits += 1;
            rig.write(rig.file.size(), &[5; PAGE]);
        }
        store_durably(rig, mmu, map, P + 9, 6);
        store_durably(rig, mmu, map, 2 * P + 9, 7);
        store_durably(rig, mmu, map, 3 * P + 9, 8);
    }
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = mapped(&[1; PAGE], 2 * P, mutant);
        beside_a_reader(&rig, {
            let rig = Arc::clone(&rig);
            move || append_and_store(&rig, &mmu, &map)
        });
        let got = rig.settled();
        let at = |page: usize, byte: usize| got[page * PAGE + byte];
        assert_eq!((at(1, 8), at(1, 9), at(2, 9), at(3, 9), at(3, 10)), (3, 6, 7, 8, 5));
    }
    explore("map_sync: an appender", scenario, &[Mutant::SyncPart]);
}

/// What was seen does not count when it is gone meanwhile, even if the same block has come back; nor for bytes that its page has gained.
#[test]
fn what_was_seen_and_is_gone() {
    fn taken(mutant: Mutant) {
        let (rig, mmu, map) = mapped(&[1; PAGE], 2 * P, mutant);
        beside_a_reader(&Arc::clone(&rig), move || {
            let mut wait = FaultWait::default();
            let mut store = |byte| mmu.store_or_wait(&*rig.file, &map, P + 8, &[byte], &mut wait);
            assert_eq!(store(3), Err(Fault::Parked));
            rig.file.commit();
            rig.punch(P, 2 * P);
            rig.file.commit();
            rig.write(P, &[2; PAGE]);
            if store(4).is_err() {
                rig.file.commit();
                store(4).expect("it is durable");
            }
            assert_eq!(
                rig.file.survives(P + 8).map(|(_, flushed)| flushed),
                Some(4),
                "a crash loses a store"
            );
        });
    }
    fn gained(mutant: Mutant) {
        let (rig, mmu, map) = mapped(&[1; 700], 0, mutant);
        beside_a_reader(&Arc::clone(&rig), move || {
            rig.write(700, &[2; 10]);
            let mut wait = FaultWait::default();
            let mut store = |at| mmu.store_or_wait(&*rig.file, &map, at, &[3], &mut wait);
            assert_eq!(store(6), Err(Fault::Parked));
            rig.file.commit();
            rig.write(3500, &[4; 10]);
            if store(6).is_err() {
                rig.file.commit();
                store(6).expect("it is durable");
            }
            store(3000).expect("the same page");
            assert_eq!(rig.file.survives(3000).map(|(_, flushed)| flushed), Some(3), "a crash loses a store");
        });
    }
    explore("map_sync: a block that came back", taken, &[Mutant::SyncTaken]);
    explore("map_sync: bytes that came meanwhile", gained, &[Mutant::SyncGained]);
}

/// A pin beside an appender: it waits for the commit of what it has seen.
#[test]
fn a_pin_beside_an_appender() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = mapped(&[1; PAGE], 3 * P, mutant);
        together(vec![
            task!([rig, map] {
                let pin = rig.file.pages.pin(&*rig.file, &map, 1..3).expect("a pin");
                assert_eq!(pin.len(), 2);
                drop(pin);
            }),
            task!([rig] {
                rig.write(3 * P, &[4; PAGE]);
                rig.write(4 * P, &[5; PAGE]);
            }),
        ]);
        store_durably(&rig, &mmu, &map, P + 9, 6);
        let got = rig.settled();
        assert_eq!((got[PAGE + 9], got[4 * PAGE]), (6, 5));
    }
    explore("map_sync: a pin", scenario, &[]);
}
