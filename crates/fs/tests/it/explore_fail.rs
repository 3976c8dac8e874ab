//! Every pair of operations on a mapped file while the device fails somewhere, in metadata and journal too, once or for good, under the
//! exploring runtime.
//!
//! Nobody panics or waits for ever, no reader sees a byte that is not the file's (free blocks have another one), and once the
//! device is well again the image recovers to a consistent filesystem whose file has none either.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use extant::{Credentials, Mutant, NewInode, OpenFile, OpenMode};
use extant_device::{MemoryDevice, MemoryImage};
use extant_fsck::Kind as Found;
use extant_sync::model;
use extant_testkit::env::{seed, tools};
use rustix::io::Errno;

use crate::explore::{Checked, STACK, image, open, together};
use crate::explore_map::{Before, FLIP, INLINE, MEMORY, OPS, Op, in_memory, mapped};
use crate::failing::{Call, Failing, Failure};

/// What no file has.
const FOREIGN: u8 = 0xEE;
/// Bytes of free space that have it: more than the operations allocate.
const PAINTED: usize = 1 << 20;
/// The first failure is within so many calls of its kind: few pairs make more.
const REACH: u32 = 24;

/// The image with [`FOREIGN`] in free blocks.
fn painted(image: MemoryImage) -> MemoryImage {
    let bytes = Arc::new(Mutex::new(image));
    let shared = Arc::clone(&bytes);
    let paint = move || {
        let device = Arc::new(MemoryDevice::from_image(&shared.lock().unwrap()));
        let (fs, cred) = (open(&device, Mutant::None), Credentials::root());
        let root = fs.root().unwrap();
        let inode = fs.mknod(&root, b"paint", &NewInode::file(0o644), &cred).unwrap();
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
        file.write_at(0, &vec![FOREIGN; PAINTED]).unwrap();
        file.fsync(false).unwrap();
        drop((file, inode));
        fs.unlink(&root, b"paint", &cred).unwrap();
        drop(root);
        fs.unmount().unwrap();
        drop(fs);
        *shared.lock().unwrap() = device.image();
    };
    model::check_random_deep(paint, 1, 1, STACK);
    let bytes = bytes.lock().unwrap();
    bytes.clone()
}

fn pair(device: &Arc<Failing>, before: Before, ops: [&'static Op; 2], failure: Failure) -> bool {
    let what = format!("{before:?}: {} beside {}, {failure:?}", ops[0].name, ops[1].name);
    let fs = open(device, Mutant::None);
    let file = Arc::new(mapped(&fs, before));
    device.will(failure);
    let tasks = ops.map(|op| -> Box<dyn FnOnce() + Send> {
        let file = Arc::clone(&file);
        Box::new(move || {
            // An error is what a failing device may give; which one is not this test's.
            let _answer = (op.run)(&file);
        })
    });
    together(tasks.into());
    let mut got = vec![0; file.largest()];
    if let Ok(n) = file.buffered.read_at(0, &mut got) {
        let foreign = got[..n].iter().position(|byte| !file.allowed.contains(byte));
        assert!(foreign.is_none(), "{what}: byte {foreign:?} is foreign");
    }
    let (largest, allowed) = (file.largest(), file.allowed.clone());
    drop(file);
    let _result = fs.unmount();
    drop(fs);
    let failed = device.heal();

    let fs = open(device, Mutant::None);
    let noted = fs.superblock().state().bits() & ERRORS_SEEN != 0;
    let mut got = vec![0; largest];
    // What was never synced need not be there.
    let n = match fs.lookup(&fs.root().unwrap(), b"m", &Credentials::root()) {
        Ok(inode) => fs.read_at(&inode, 0, &mut got).unwrap_or_else(|e| panic!("{what}: {e}")),
        Err(e) if e.errno() == Errno::NOENT.raw_os_error() && before != Before::Written => 0,
        Err(e) => panic!("{what}: {e}"),
    };
    let foreign = got[..n].iter().position(|byte| !allowed.contains(byte));
    assert!(foreign.is_none(), "{what}: byte {foreign:?} on the device is foreign");
    fs.unmount().unwrap_or_else(|e| panic!("{what}: unmount after recovery: {e}"));
    drop(fs);
    let report = device.checked();
    // What nobody could write down that it is free: a check of the whole is asked for.
    let excused = |kind: &Found| match kind {
        Found::ZeroDtime { .. } | Found::BlockMarkedUsed { .. } | Found::InodeMarkedUsed { .. } => noted,
        _ => false,
    };
    let wrong: Vec<String> =
        report.errors().filter(|finding| !excused(&finding.kind)).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{what}, errors recorded: {noted}: {wrong:#?}");
    failed > 0
}

/// `EXTANT_ERROR_FS` of the superblock's state.
const ERRORS_SEEN: u16 = 2;

/// Runs all pairs, so many schedules together; each has a failure of its own.
fn pairs(name: &str, image: MemoryImage, befores: &[Before], device: fn(&MemoryImage) -> Arc<Failing>) {
    let image = painted(image);
    let (number, failed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (befores, seed) = (befores.to_vec(), seed());
    let ops: Vec<&'static Op> = OPS.iter().chain([&FLIP]).collect();
    let count = Arc::clone(&failed);
    let scenario = move || {
        // A stride that meets everything: pairs, states before, calls, places.
        let n =
            u64::from(number.fetch_add(1, Ordering::Relaxed)).wrapping_add(seed).wrapping_mul(2_654_435_761);
        let mut rest = n >> 8;
        let mut pick = |of: usize| {
            let one = rest % of as u64;
            rest /= of as u64;
            one as usize
        };
        let failure = Failure {
            call: [Call::Read, Call::Write, Call::Write, Call::Flush][pick(4)],
            after: pick(REACH as usize) as u32,
            for_good: pick(2) == 0,
            of_content: false,
        };
        let (a, b) = (ops[pick(ops.len())], ops[pick(ops.len())]);
        let before = befores[pick(befores.len())];
        if pair(&device(&image), before, [a, b], failure) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    model::Lab::new(name, 600).deep(seed, STACK).holds(scenario);
    let failed = failed.load(Ordering::Relaxed);
    println!("{name}: the device failed in {failed} schedules");
    assert!(failed > 0, "{name}: the device never failed");
}

#[test]
fn pairs_while_the_device_fails_anywhere() {
    need!(tools(&["mke2fs"]));
    pairs(
        "pairs while the device fails anywhere",
        image(INLINE),
        &[Before::Small, Before::Written, Before::Delayed],
        |image| Failing::on(MemoryDevice::from_image(image)),
    );
}

#[test]
fn pairs_in_dax_mode_while_the_device_fails_anywhere() {
    need!(tools(&["mke2fs"]));
    pairs(
        "pairs in DAX mode while the device fails anywhere",
        image(MEMORY),
        &[Before::Dax, Before::Written, Before::Delayed],
        |image| Failing::on(in_memory(image)),
    );
}
