//! What is kept for a device that may be writing, and for how long: blocks of a file whose inode was forgotten, pages of which one look says
//! little, pins beside the end of the mount.

use std::time::Duration;

use extant_device::BlockDevice;
use extant_sync::{Arc, Mutex, Rank, thread};
use extant_sys::transfers::UnderWay;
use extant_vm::{Access, Fault, FaultWait, Mutant, ReadAhead, pass};

use crate::dax;
use crate::faults::{BLOCK, PAGE, Rig, explore, load, store, task, together};

/// A file in DAX mode has lost its mappings and its inode was forgotten, with a transfer under way to what the mappings showed: the blocks are
/// no other file's when the inode, read anew, is punched.
#[test]
fn an_inode_that_is_read_anew() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = dax::Rig::with(&[1; 3 * PAGE], true, mutant);
        assert_eq!(dax::load(&rig, &mmu, &map, PAGE as u64), Some(1));
        let at = mmu.begin_transfer_to(map.id, 1).expect("the device's page");
        mmu.end(map.id);
        {
            let _inode = rig.file.inode.lock();
            assert!(rig.file.pages.leave_memory(&*rig.file));
        }
        let anew = rig.fs.read_anew(&rig.file);
        let other = rig.fs.file(13);
        other.pages.begin_dax(true);
        together(vec![
            task!([rig, mmu] {
                rig.fs.device.write_at(at + 100, &[5; 16]).expect("inside");
                mmu.end_transfer();
                rig.fs.cache.end_grace();
            }),
            task!([rig, anew] {
                rig.fs.cache.end_grace();
                let _inode = anew.inode.lock();
                anew.punch(PAGE as u64..2 * PAGE as u64).expect("punch");
            }),
            task!([other] {
                let _inode = other.inode.lock();
                assert_eq!(other.write(0, &[7; 2 * PAGE], 0).expect("write"), 2 * PAGE);
            }),
        ]);
        let mut got = vec![0; 2 * PAGE];
        other.pages.read(&*other, 0, &mut got, &mut ReadAhead::default()).expect("read");
        assert!(got.iter().all(|b| *b == 7), "a transfer reached another file");
        // When nothing is under way nothing is kept.
        rig.fs.cache.end_grace();
        assert!(rig.fs.cache.grace_bytes() == 0 && !rig.fs.cache.has_shown(12));
        assert!(anew.free_blocks_untouched(), "a transfer reached a block that is nobody's");
    }
    explore("an inode that is read anew", scenario, &[Mutant::ShownRemembered]);
}

/// A transfer that is under way is not seen by a look: its call tells the device of its next part just then. Reclaim leaves the page alone,
/// until two looks a second apart have seen no more.
#[test]
fn reclaim_after_a_look_at_running_threads() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        rig.sync();
        pass(Duration::from_secs(2));
        mmu.looks_like(UnderWay::ThreadsRun);
        together(vec![
            task!([rig] {
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
        // What was written before the first of two looks goes after the second.
        for _ in 0..3 {
            pass(Duration::from_secs(1));
            rig.fs.cache.reclaim(4);
            rig.fs.cache.reclaim(4);
        }
        assert_eq!(rig.fs.cache.stats().pages, 0, "the page stays for ever");
    }
    explore("reclaim after a look at running threads", scenario, &[Mutant::TwoLooks]);
}

/// A direct write does as reclaim does.
#[test]
fn direct_write_after_a_look_at_running_threads() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = Rig::with(&[1; PAGE], mutant);
        assert!(store(&rig, &mmu, &map, 0, 2));
        mmu.begin_transfer();
        let target = mmu.target(0);
        rig.sync();
        pass(Duration::from_secs(2));
        mmu.looks_like(UnderWay::ThreadsRun);
        together(vec![
            task!([rig] { assert_eq!(rig.write_direct(0, &[7; BLOCK]), BLOCK); }),
            task!([mmu] {
                target.copy_from(3000, &[9]);
                mmu.end_transfer();
            }),
        ]);
        assert_eq!((load(&rig, &mmu, &map, 0), load(&rig, &mmu, &map, 3000)), (Some(7), Some(9)));
        rig.sync();
        let got = rig.settled();
        assert_eq!((got[0], got[BLOCK - 1], got[BLOCK], got[3000]), (7, 7, 1, 9));
    }
    explore("direct write after a look at running threads", scenario, &[Mutant::TwoLooks]);
}

/// A store finds no space while blocks are held, to which a transfer is under way, and waits as a value: it gets one of them, whenever they are
/// let go of.
#[test]
fn a_store_that_waits_for_held_blocks() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map) = dax::Rig::with(&[1; 2 * PAGE], true, mutant);
        let other = rig.fs.file(13);
        other.pages.begin_dax(true);
        let room = rig.fs.space_left();
        other.pages.write(&*other, 0, &vec![7; room * PAGE]);
        assert_eq!((dax::load(&rig, &mmu, &map, PAGE as u64), rig.fs.space_left()), (Some(1), 0));
        let at = mmu.begin_transfer_to(map.id, 1).expect("the device's page");
        rig.punch(PAGE as u64, 2 * PAGE as u64);
        together(vec![
            task!([rig, mmu, map] {
                let mut wait = FaultWait::default();
                loop {
                    match rig.file.pages.fault_or_wait(&*rig.file, &map, 1, Access::Write, &mut wait) {
                        Fault::Mapped => break,
                        Fault::AwaitsSpace => {}
                        fault => panic!("{fault:?}"),
                    }
                    while !rig.fs.cache.may_have_space(&wait.space) {
                        thread::yield_now();
                        rig.fs.cache.end_grace();
                    }
                }
                assert!(dax::store(&rig, &mmu, &map, PAGE as u64, 3));
            }),
            task!([rig, mmu] {
                rig.fs.device.write_at(at + 100, &[5; 16]).expect("inside");
                mmu.end_transfer();
                rig.fs.cache.end_grace();
            }),
        ]);
        let got = rig.settled();
        assert_eq!((got[PAGE], got[PAGE + 100]), (3, 0), "a transfer reached a block that was used again");
    }
    explore("a store that waits for held blocks", scenario, &[Mutant::SpaceCounted]);
}

/// Who ends a mount keeps store faults out and then counts pins: there is none that he has not counted.
#[test]
fn a_pin_beside_the_end() {
    fn scenario_with(in_dax: bool, mutant: Mutant) {
        let (rig, mmu, map) = dax::Rig::with(&[1; 2 * PAGE], in_dax, mutant);
        rig.file.gate_faults();
        let made = Arc::new(Mutex::new(Rank::LEAF, None));
        together(vec![
            task!([rig, made] {
                match rig.file.pages.pin(&*rig.file, &map, 0..2) {
                    Ok(pin) => *made.lock() = Some(pin),
                    Err(Fault::Parked) => {}
                    Err(fault) => panic!("{fault:?}"),
                }
            }),
            task!([rig] {
                rig.file.end_faults();
                let counted = rig.fs.cache.stats().pins;
                thread::yield_now();
                let now = rig.fs.cache.stats().pins;
                assert!(now <= counted, "{now} pins, {counted} of them counted");
            }),
        ]);
        let pin = made.lock().take();
        drop(pin);
        assert_eq!(rig.fs.cache.stats().pins, 0);
        drop(mmu);
        rig.settled();
    }
    explore("a pin beside the end", |mutant| scenario_with(false, mutant), &[Mutant::PinGated]);
    explore("a pin beside the end in DAX mode", |mutant| scenario_with(true, mutant), &[Mutant::PinGated]);
}
