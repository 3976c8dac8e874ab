//! Faults that cannot be tried again (S0): who asks (the kernel's get_user_pages for some drivers) has one go, and may hold what others wait
//! for. So the answer is the page, with the first fault, and no lock is waited for that somebody has who waits for the caller.

use extant_sync::{Arc, thread};
use extant_vm::{Access, Fault, MapView, Mutant, SimMmu};

use crate::faults::{PAGE, Rig, explore, load, store, task, view};

/// The page's one fault, for a store.
fn once(rig: &Rig, map: &MapView, page: u32) {
    let file = &rig.file;
    let answer = file.pages.fault(&**file, map, page, Access::Write);
    assert_eq!(answer, Fault::Mapped, "there is no other try");
}

/// Runs `fault` to its end, beside `beside` and a writeback, while this thread has the inode's lock, and `write` under it.
fn while_the_inode_is_locked(
    rig: &Arc<Rig>,
    fault: Box<dyn FnOnce() + Send>,
    beside: Box<dyn FnOnce() + Send>,
    write: impl FnOnce(),
) {
    let inode = rig.inode.lock();
    let (fault, beside) = (thread::spawn(fault), thread::spawn(beside));
    write();
    fault.join().expect("the page");
    drop(inode);
    beside.join().expect("no panic inside");
}

/// Content in the inode, which the store moves out, while a writer that has the inode's lock changes it there, or grows it out of it, and
/// waits for the faulting thread.
#[test]
fn the_one_fault_of_inline_content() {
    fn scenario_with(outgrows: bool, mutant: Mutant) {
        let rig = Rig::new(64, mutant);
        rig.file.make_inline(&[1; 100]);
        let mmu = rig.file.attach();
        let map = view(&mmu);
        let (at, len) = if outgrows { (140, 3000) } else { (50, 5) };
        while_the_inode_is_locked(
            &rig,
            task!([rig, mmu, map] {
                once(&rig, &map, 0);
                assert!(store(&rig, &mmu, &map, 60, 3));
            }),
            task!([rig] { rig.sync(); }),
            || assert_eq!(rig.file.write(at, &vec![2; len], 150).expect("write"), len),
        );
        let at = at as usize;
        assert_eq!((load(&rig, &mmu, &map, 60), load(&rig, &mmu, &map, at as u64)), (Some(3), Some(2)));
        let got = rig.settled();
        assert_eq!((got.len(), got[0], got[60], got[99]), (if outgrows { 3140 } else { 100 }, 1, 3, 1));
        assert!(got[at..at + len].iter().all(|b| *b == 2));
    }
    explore("the one fault of inline content, a writer", |m| scenario_with(false, m), &[Mutant::FaultOnce]);
    explore("the same, outgrown", |m| scenario_with(true, m), &[Mutant::FaultOnce]);
}

/// A page that is filled while its block moves, written back, punched out beside it and taken by reclaim: it is there with the first fault.
#[test]
fn the_one_fault_of_blocks() {
    fn scenario(mutant: Mutant) {
        let (rig, mmu, map): (Arc<Rig>, Arc<SimMmu>, MapView) = Rig::with(&[1; 2 * PAGE], mutant);
        *rig.file.moves.lock() = Some(2);
        while_the_inode_is_locked(
            &rig,
            task!([rig, mmu, map] {
                once(&rig, &map, 0);
                assert!(store(&rig, &mmu, &map, 2500, 3));
            }),
            task!([rig] {
                rig.sync();
                rig.fs.cache.reclaim(4);
            }),
            || rig.file.punch(0..2000).expect("punch"),
        );
        let got = rig.settled();
        assert!(got[..2000].iter().all(|b| *b == 0));
        assert_eq!((got[2000], got[2499], got[2500], got[2 * PAGE - 1]), (1, 1, 3, 1));
    }
    explore("the one fault of blocks", scenario, &[Mutant::MapSeq]);
}
