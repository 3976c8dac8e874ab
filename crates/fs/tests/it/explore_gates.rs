//! What goes through the gates of a freeze, under the exploring runtime: what fallocate(2) holds over its changes of the map, and that
//! nothing is written while it is frozen.
//!
//! A device puts something into a pinned page while a block of it is punched out, zeroed, made of zeros that are written, or allocated, and
//! fsync finds it: it meets the map as it was or as it will be. What a load sees then is on the disk, and every block is somebody's.
//! (Without a filesystem: `transfers::a_device_while_the_map_changes` of `extant-vm`.)

use std::sync::Arc;

use extant::{Credentials, FallocateMode, MountOptions, Mutant};
use extant_device::{MemoryDevice, MemoryImage};
use extant_format::{Incompat, Superblock};
use extant_sync::{model, thread};
use extant_testkit::env::{seed, tools};

use crate::explore::{PLAIN, STACK, close, find, image, open, together};
use crate::explore_direct::HALF_PAGES;
use crate::explore_map::{Before, errno, mapped};

/// The second block of page 0, and a place in it.
const BLOCK: std::ops::Range<u64> = 2048..4096;
const AT: usize = 2500;

fn changed_beside_a_device(image: &MemoryImage, mutant: Mutant, mode: FallocateMode) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let file = Arc::new(mapped(&fs, Before::Written));
    let size = file.inode.size() as usize;
    let pin = fs.pin_simulated(&file.inode, &file.view, 0..1).expect("a pin");
    let target = file.mmu.target(0);
    let len = BLOCK.end - BLOCK.start;
    let change = |mode| (mode, BLOCK.start, len, mode == FallocateMode::PunchHole);
    if mode == FallocateMode::Allocate {
        let (mode, at, len, keep) = change(FallocateMode::PunchHole);
        file.buffered.fallocate(mode, at, len, keep).expect("a hole");
    }
    file.buffered.fsync(true).expect("fsync");
    let (a, b) = (Arc::clone(&file), Arc::clone(&file));
    let (mode, at, len, keep) = change(mode);
    together(vec![
        Box::new(move || errno(a.buffered.fallocate(mode, at, len, keep)).expect("a change")),
        Box::new(move || {
            target.copy_from(AT, &[9]);
            drop(pin);
            b.buffered.fsync(true).expect("fsync");
        }),
    ]);
    let seen = fs.access_simulated(&file.inode, &file.mmu, &file.view, AT as u64, None).expect("a load");
    assert!(seen == 9 || (seen == 0 && mode != FallocateMode::Allocate), "{mode:?}: {seen}");
    let mut want = vec![1; size];
    want[BLOCK.start as usize..BLOCK.end as usize].fill(0);
    want[AT] = seen;
    file.buffered.fsync(true).expect("fsync");
    let crashed = open(&Arc::new(MemoryDevice::from_image(&device.image())), Mutant::None);
    let mut got = vec![0; size];
    crashed.read_at(&find(&crashed, "m"), 0, &mut got).expect("read");
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert!(differs.is_none(), "{mode:?}: byte {differs:?} on the disk; a load saw {seen}");
    crashed.unmount().expect("unmount");
    drop((crashed, file));
    close(fs, &*device, "a change of the map beside a device");
}

fn explored(mutant: Mutant, mode: FallocateMode) {
    need!(tools(&["mke2fs"]));
    let image = image(HALF_PAGES);
    let name = format!("a device beside fallocate, {mode:?}");
    let lab = model::Lab::new(&name, 100).deep(seed(), STACK);
    let scenario = move || changed_beside_a_device(&image, mutant, mode);
    match mutant {
        Mutant::None => lab.holds(scenario),
        // One preemption at one place of many.
        mutant => lab.notices(&format!("{mutant:?}"), 20_000, scenario),
    }
}

#[test]
fn a_device_beside_punch_and_zeroing() {
    explored(Mutant::None, FallocateMode::PunchHole);
    explored(Mutant::None, FallocateMode::ZeroRange);
    explored(Mutant::None, FallocateMode::WriteZeroes);
}

#[test]
fn a_device_beside_preallocation() {
    explored(Mutant::None, FallocateMode::Allocate);
}

#[test]
fn mutant_punching_beside_writeback() {
    explored(Mutant::PunchGated, FallocateMode::PunchHole);
}

#[test]
fn mutant_zeroing_beside_writeback() {
    explored(Mutant::ZeroGated, FallocateMode::ZeroRange);
}

#[test]
fn mutant_written_zeros_beside_writeback() {
    explored(Mutant::WrittenZerosGated, FallocateMode::WriteZeroes);
}

#[test]
fn mutant_allocating_beside_writeback() {
    explored(Mutant::AllocateGated, FallocateMode::Allocate);
}

/// Times that a reader has changed in memory are written neither while the filesystem is frozen nor after it has turned read-only: the
/// image says then that nothing is to be recovered, and stays as it is.
fn still_beside_a_sync(image: &MemoryImage, how: Still) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, Mutant::None);
    let file = find(&fs, "a");
    let (a, b) = ((Arc::clone(&fs), Arc::clone(&device)), Arc::clone(&fs));
    together(vec![
        Box::new(move || {
            let ((fs, device), cred) = (a, Credentials::root());
            match how {
                Still::Frozen => fs.freeze(&cred).unwrap(),
                _ => fs.remount(&MountOptions::parse("ro").unwrap()).unwrap(),
            }
            let still = device.to_bytes();
            let sb = Superblock::read(&still[1024..2048]).unwrap();
            assert!(!sb.features().incompat.contains(Incompat::RECOVER), "{how:?}, and said to be in use");
            thread::yield_now();
            assert!(still == device.to_bytes(), "written to while it is {how:?}");
            if how == Still::Frozen {
                fs.thaw(&cred).unwrap();
            }
        }),
        Box::new(move || {
            let fs = b;
            let mut byte = [0];
            assert_eq!(fs.read_at(&file, 0, &mut byte).unwrap(), 1);
            match how {
                Still::ReadOnlyBesideSync => fs.sync().unwrap(),
                Still::ReadOnlyBesideFsync => fs.fsync(&file, false).unwrap(),
                _ => fs.sync_inode(&file, false).unwrap(),
            }
        }),
    ]);
    close(fs, &*device, "times beside a freeze");
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Still {
    Frozen,
    ReadOnly,
    ReadOnlyBesideSync,
    ReadOnlyBesideFsync,
}

#[test]
fn times_are_not_written_while_it_is_still() {
    need!(tools(&["mke2fs"]));
    for how in [Still::Frozen, Still::ReadOnly, Still::ReadOnlyBesideSync, Still::ReadOnlyBesideFsync] {
        let image = image(PLAIN);
        let name = format!("times while it is still, {how:?}");
        model::Lab::new(&name, 400).deep(seed(), STACK).holds(move || still_beside_a_sync(&image, how));
    }
}
