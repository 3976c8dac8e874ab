//! MAP_SYNC explored: what a program has stored through such a mapping, and brought out of the processor's caches, is the file's after a
//! crash, with no call to the filesystem.

use extant_sync::Arc;
use extant_vm::{Fault, MapView, Mutant, SimMmu};

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
    loop {
        match mmu.store(&*rig.file, map, at, &[byte]) {
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
