//! Devices that write to memory of mappings, pinned or not, against everything that takes that memory or its blocks away (S2).
//!
//! Whoever has a page as a target has the memory that it was then ([`extant_vm::Target`]): what it writes after that was given back is
//! nobody's.

use std::io;
use std::ops::Range;

use extant_sync::Arc;
use extant_sync::atomic::Ordering;
use extant_vm::{Landing, Mutant, SimMmu};

use crate::faults::{BLOCK, PAGE, Rig, explore, load, store, task, together};
use crate::sim::SimFile;

/// A transfer into a page that nobody pinned, begun while it could be stored to, ends at any time beside an fsync and reclaim: it ends
/// in the page.
#[test]
fn reclaim_against_a_transfer() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig] {
                rig.sync();
                rig.fs.cache.reclaim(4);
                rig.fs.cache.reclaim(4);
            }),
            task!([mmu] {
                target.copy_from(2000, &[9]);
                mmu.end_transfer();
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 2000), Some(9), "the transfer ended in memory that is nobody's");
        rig.sync();
        assert_eq!(rig.settled()[2000], 9);
        // And then it can go.
        rig.fs.cache.reclaim(4);
        rig.fs.cache.reclaim(4);
        assert_eq!(rig.fs.cache.stats().pages, 0, "the page stays for ever");
    }
    explore("reclaim against a transfer", scenario, &[Mutant::ReclaimQuiet]);
}

/// Direct I/O looks for what a device has put into the pages of its range, and beside it in them.
#[test]
fn direct_io_after_a_transfer() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        rig.sync();
        mmu.target(0).copy_from(3000, &[9]);
        together(vec![
            task!([rig] {
                let mut got = [0; PAGE];
                rig.file.pages.read_past_cache(&*rig.file, 0, &mut got).expect("read");
                assert_eq!((got[0], got[3000]), (2, 9), "an older byte from the device");
            }),
            task!([rig, mmu, map] { assert_eq!(load(&rig, &mmu, &map, 3000), Some(9)); }),
        ]);
        mmu.target(0).copy_from(3001, &[8]);
        assert_eq!(rig.write_direct(0, &[7; BLOCK]), BLOCK);
        assert_eq!(load(&rig, &mmu, &map, 3001), Some(8));
        let got = rig.settled();
        assert_eq!((got[0], got[3000], got[3001]), (7, 9, 8));
    }
    explore("direct I/O after a transfer", scenario, &[Mutant::DirectLooks]);
}

/// A direct write of some blocks of a page beside a transfer to others.
#[test]
fn direct_write_against_a_transfer() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig] { assert_eq!(rig.write_direct(0, &[7; BLOCK]), BLOCK); }),
            task!([mmu] {
                target.copy_from(3000, &[9]);
                mmu.end_transfer();
            }),
            task!([rig, mmu, map] { assert!([2, 7].contains(&load(&rig, &mmu, &map, 0).expect("inside"))); }),
        ]);
        assert_eq!((load(&rig, &mmu, &map, 0), load(&rig, &mmu, &map, 3000)), (Some(7), Some(9)));
        rig.sync();
        let got = rig.settled();
        assert_eq!((got[0], got[BLOCK - 1], got[BLOCK], got[3000]), (7, 7, 1, 9));
    }
    explore("direct write against a transfer", scenario, &[Mutant::TargetStays]);
}

/// The same where the file grows from the middle of the page.
#[test]
fn a_longer_direct_write_against_a_transfer() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; BLOCK], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig] { assert_eq!(rig.write_direct(2 * BLOCK as u64, &[7; PAGE]), PAGE); }),
            task!([mmu] {
                target.copy_from(100, &[9]);
                mmu.end_transfer();
            }),
        ]);
        assert_eq!(load(&rig, &mmu, &map, 100), Some(9));
        rig.sync();
        let got = rig.settled();
        assert_eq!((got.len(), got[0], got[100], got[BLOCK], got[2 * BLOCK]), (6 * BLOCK, 2, 9, 0, 7));
    }
    explore("a longer direct write against a transfer", scenario, &[Mutant::TargetStays]);
}

/// A page gets more blocks while it is pinned, or the target of a transfer: what the device puts there then is the file's.
#[test]
fn growth_against_a_device() {
    fn scenario_with(pinned: bool, mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 700], mutant);
        let file = &rig.file;
        let pin = pinned.then(|| file.pages.pin(&**file, &map, 0..1).expect("a pin"));
        if !pinned {
            assert!(store(&rig, &mmu, &map, 0, 1));
            mmu.begin_transfer();
        }
        let target = mmu.target(0);
        together(vec![
            task!([rig, mmu] {
                rig.truncate(3000);
                target.copy_from(2000, &[9]);
                rig.write(3500, &[4; 10]);
                target.copy_from(3200, &[8]);
                if !pinned {
                    mmu.end_transfer();
                }
                drop(pin);
            }),
            task!([rig] {
                rig.sync();
                rig.fs.cache.reclaim(4);
                rig.fs.cache.reclaim(4);
            }),
        ]);
        rig.sync();
        let got = rig.settled();
        assert_eq!((got[699], got[700], got[2000], got[3200], got[3505]), (1, 0, 9, 8, 4));
    }
    explore("growth against a pin", |m| scenario_with(true, m), &[Mutant::GainedSummed]);
    explore("growth against a transfer", |m| scenario_with(false, m), &[Mutant::GainedSummed]);
}

/// Blocks of a page are punched out, or cut off and come back, while a device has it as a target.
#[test]
fn punch_of_blocks_against_a_device() {
    fn scenario_with(pinned: bool, mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        let file = &rig.file;
        let pin = pinned.then(|| file.pages.pin(&**file, &map, 0..1).expect("a pin"));
        if !pinned {
            assert!(store(&rig, &mmu, &map, 0, 1));
            mmu.begin_transfer();
        }
        let target = mmu.target(0);
        together(vec![
            task!([rig, mmu] {
                rig.punch(BLOCK as u64, 2 * BLOCK as u64 + 100);
                target.copy_from(1500, &[9]);
                rig.truncate(3 * BLOCK as u64 + 10);
                rig.truncate(PAGE as u64);
                rig.truncate(3 * BLOCK as u64);
                rig.truncate(PAGE as u64);
                target.copy_from(3500, &[8]);
                if !pinned {
                    mmu.end_transfer();
                }
                drop(pin);
            }),
            task!([rig] {
                rig.sync();
                rig.fs.cache.reclaim(4);
                rig.fs.cache.reclaim(4);
            }),
            task!([rig, mmu, map] {
                let seen = load(&rig, &mmu, &map, 1600).expect("inside");
                assert!([0, 1].contains(&seen), "{seen}");
            }),
        ]);
        rig.sync();
        let got = rig.settled();
        assert_eq!((got[1023], got[1024], got[1500], got[2148], got[3072], got[3500]), (1, 0, 9, 1, 0, 8));
    }
    explore("punch of blocks against a pin", |m| scenario_with(true, m), &[Mutant::GainedSummed]);
    explore("punch of blocks against a transfer", |m| scenario_with(false, m), &[Mutant::GainedSummed]);
}

/// All blocks of the last page that the file has are punched out, so that nothing of it is dirty or has a checksum any more; the page
/// stays, since it has more blocks. What the device puts there then is the file's.
#[test]
fn punch_up_to_the_end_against_a_device() {
    fn scenario(mutant: Mutant) {
        let size = 3 * BLOCK;
        let (rig, mmu, map) = Rig::with(&[1; 3 * BLOCK], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig, mmu] {
                rig.punch(0, size as u64);
                target.copy_from(1500, &[9]);
                mmu.end_transfer();
            }),
            task!([rig] { rig.fs.cache.reclaim(4); }),
        ]);
        rig.sync();
        let got = rig.settled();
        assert_eq!((got.len(), got[0], got[1024], got[1500]), (size, 0, 0, 9));
    }
    explore("punch up to the end against a transfer", scenario, &[Mutant::GainedSummed]);
}

/// A device writes while blocks of its page become zeros: before that, and it is zeros, or after it, and it is the file's.
#[test]
fn a_device_beside_zeroing() {
    fn scenario_with(grows: bool, mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE][..if grows { 700 } else { PAGE }], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        together(vec![
            task!([rig] {
                if grows { rig.truncate(PAGE as u64) } else { rig.punch(BLOCK as u64, 3 * BLOCK as u64) }
            }),
            task!([mmu] {
                target.copy_from(1500, &[9]);
                mmu.end_transfer();
            }),
        ]);
        let seen = load(&rig, &mmu, &map, 1500).expect("inside");
        assert!([0, 9].contains(&seen), "{seen}");
        rig.sync();
        assert_eq!(rig.settled()[1500], seen, "what a load has seen is not on the disk");
    }
    explore("growth beside a device that writes", |m| scenario_with(true, m), &[]);
    explore("punch of blocks beside a device that writes", |m| scenario_with(false, m), &[]);
}

/// A device puts something into a block that has just become zeros, or into a hole, while the block leaves the map, becomes unwritten
/// there, or the hole gets a block: an fsync that finds it meets the map as it was or as it will be, and what is there stays there.
#[test]
fn a_device_while_the_map_changes() {
    type Change = fn(&SimFile, Range<u64>) -> io::Result<()>;
    fn scenario_with(pinned: bool, hole: bool, change: Change, mutant: Mutant) {
        const AT: u64 = 1500;
        let (rig, mmu, map) = Rig::with(if hole { &[1; 700] } else { &[1; PAGE] }, mutant);
        let file = &rig.file;
        let pin = pinned.then(|| file.pages.pin(&**file, &map, 0..1).expect("a pin"));
        if !pinned {
            assert!(store(&rig, &mmu, &map, 0, 1));
            mmu.begin_transfer();
        }
        let target = mmu.target(0);
        if hole {
            rig.truncate(PAGE as u64);
        }
        together(vec![
            task!([rig] {
                let _inode = rig.file.inode.lock();
                change(&rig.file, BLOCK as u64..2 * BLOCK as u64).expect("a change");
            }),
            task!([mmu] {
                target.copy_from(AT as usize, &[9]);
                if !pinned {
                    mmu.end_transfer();
                }
                drop(pin);
            }),
            task!([rig] { rig.sync(); }),
        ]);
        let seen = load(&rig, &mmu, &map, AT).expect("inside");
        assert!(seen == 9 || (seen == 0 && !hole), "{seen}");
        rig.sync();
        let got = rig.settled();
        let last = if hole { 0 } else { 1 };
        assert_eq!((got[699], got[1024], got[AT as usize], got[2048]), (1, 0, seen, last));
        assert!(rig.file.free_blocks_untouched(), "a write to a block that is nobody's");
    }
    const WAYS: [(&str, bool, Change, Mutant); 3] = [
        ("punched", false, SimFile::punch, Mutant::PunchGated),
        ("zeroed", false, SimFile::unwrite, Mutant::PunchGated),
        ("allocated", true, SimFile::allocate, Mutant::DelayedLooked),
    ];
    for (what, hole, change, guard) in WAYS {
        for (pinned, whose) in [(true, "pin"), (false, "transfer")] {
            let name = format!("a {whose} while a block is {what}");
            explore(&name, move |m| scenario_with(pinned, hole, change, m), &[guard]);
        }
    }
}

/// Where there is no space for a block that a device has filled, fsync says so, each time, and has it as soon as there is.
#[test]
fn what_a_device_puts_into_a_hole_on_a_full_disk() {
    fn scenario(mutant: Mutant) {
        let rig = Rig::new(8, mutant);
        rig.write(0, &[1; 700]);
        let other = rig.fs.file(13);
        assert_eq!(other.write(0, &[5; 6 * BLOCK], 0).expect("write"), 6 * BLOCK);
        rig.fs.cache.sync_all().expect("sync");
        let mmu = rig.file.attach();
        let map = crate::faults::view(&mmu);
        let file = &rig.file;
        let pin = file.pages.pin(&**file, &map, 0..1).expect("a pin");
        rig.truncate(PAGE as u64);
        mmu.target(0).copy_from(2000, &[9]);
        drop(pin);
        for _ in 0..2 {
            let refused = file.pages.sync(&**file, 0..u64::MAX).expect_err("no space");
            assert_eq!(refused.raw_os_error(), Some(28));
            let refused = rig.fs.cache.find_unseen_changes().expect_err("no space");
            assert_eq!(refused.raw_os_error(), Some(28));
            together(vec![
                task!([rig] { rig.fs.cache.reclaim(4); }),
                task!([rig, mmu, map] { assert_eq!(load(&rig, &mmu, &map, 2000), Some(9)); }),
            ]);
        }
        other.truncate(BLOCK as u64).expect("truncate");
        rig.sync();
        assert_eq!(rig.settled()[2000], 9);
    }
    explore("a hole filled by a device on a full disk", scenario, &[]);
}

/// What a device has put into a page after the last look before its blocks move goes along.
#[test]
fn a_transfer_before_blocks_move() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[[1; PAGE], [2; PAGE], [3; PAGE]].concat(), mutant);
        assert!(store(&rig, &mmu, &map, 2 * PAGE as u64, 4));
        rig.sync();
        mmu.land_after(0, Landing { page: 2, at: 100, byte: 9 });
        together(vec![
            task!([rig] { rig.collapse(PAGE as u64, 2 * PAGE as u64); }),
            task!([rig] { rig.read(); }),
        ]);
        assert!(mmu.has_landed());
        let got = rig.settled();
        assert_eq!((got.len(), got[PAGE], got[PAGE + 100], got[PAGE + 101]), (2 * PAGE, 4, 9, 3));
    }
    explore("a transfer before blocks move", scenario, &[Mutant::MoveLooks]);
}

/// What the device gets to write does not change while it reads it, whoever stores to the page: else the checksum of a journal's block,
/// or a mirror, would not be that of what was written.
#[test]
fn what_is_written_stands_still() {
    fn scenario_with(pinned: bool, mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        let file = &rig.file;
        let pin = pinned.then(|| file.pages.pin(&**file, &map, 0..1).expect("a pin"));
        let target = mmu.target(0);
        rig.fs.device.looks_twice.store(true, Ordering::Relaxed);
        together(vec![
            task!([rig] { rig.sync(); }),
            task!([rig, mmu, map] {
                if pinned {
                    target.copy_from(100, &[3]);
                } else {
                    assert!(store(&rig, &mmu, &map, 100, 3));
                }
                drop(pin);
            }),
        ]);
        assert!(!rig.fs.device.saw_changes(), "the device read a page twice and found two contents");
        rig.sync();
        assert_eq!(rig.settled()[100], 3);
    }
    explore("stores to what is being written", |m| scenario_with(false, m), &[Mutant::Snapshot]);
    explore("a device that writes to what is being written", |m| scenario_with(true, m), &[Mutant::Snapshot]);
}

/// A block moves to another place while a fault reads it from the old one.
#[test]
fn fault_against_a_block_that_moves() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 2 * PAGE], mutant);
        *rig.file.moves.lock() = Some(2);
        together(vec![
            task!([rig, mmu, map] { assert_eq!(load(&rig, &mmu, &map, 2 * BLOCK as u64), Some(1)); }),
            task!([rig] { rig.read(); }),
        ]);
        assert!(rig.settled().iter().all(|b| *b == 1));
    }
    explore("fault against a block that moves", scenario, &[Mutant::MapSeq]);
}

/// What the thread that reads faults does waits for no lock (debug builds panic if it would): it answers from what is at hand, or not.
#[test]
fn a_look_waits_for_nothing() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; 4 * PAGE], mutant);
        let warm: Arc<SimMmu> = mmu.clone();
        for page in 0..4 {
            assert_eq!(load(&rig, &warm, &map, page * PAGE as u64), Some(1));
        }
        let fresh = crate::faults::view(&mmu);
        together(vec![
            task!([rig, fresh] {
                let file = &rig.file;
                let got = file.pages.try_fault(&**file, &fresh, 0, extant_vm::Access::Read);
                assert!([None, Some(extant_vm::Fault::Mapped)].contains(&got), "{got:?}");
            }),
            task!([rig] { rig.truncate(PAGE as u64); }),
            task!([rig] { rig.fs.cache.reclaim(2); }),
        ]);
        rig.settled();
    }
    explore("a look waits for nothing", scenario, &[]);
}
