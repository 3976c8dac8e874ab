//! Every pair of operations on the same few bytes of a file that is mapped, under the exploring runtime: on content in the inode, on
//! blocks, on blocks without a place yet, with space and without, on a device that fails to read or write the content once.
//!
//! After each schedule every byte is what one of the two orders gives (a write and a store on one page may each win a part), the size
//! is that of one of them, reads on the way saw nothing else, the disk has what the file has, and the image is clean by our checker
//! (which counts blocks: no promise is left behind, no block leaked).

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use extant::{
    Credentials, FallocateMode, Fault, Filesystem, InodeFlags, InodeRef, MapAdvice, MapView, MoveRange,
    Mutant, NewInode, OpenFile, OpenMode, SimMmu,
};
use extant_device::{BlockDevice, FileDevice, MemoryDevice, MemoryImage};
use extant_sync::model;
use extant_testkit::env::tools;
use rustix::io::Errno;

use crate::explore::{STACK, close, find, image, open, together};
use crate::failing::{Call, Failing, Failure};

/// What an operation may do to a file, in a model of bytes; with the unit of [`File::unit`].
type OnModel = fn(&mut Vec<u8>, usize);

/// An operation: on the file, and on the model. Offsets and lengths are for blocks of 1 KiB, and are multiplied by the unit.
pub(crate) struct Op {
    pub(crate) name: &'static str,
    /// Errors that a full disk explains are its own business; others panic.
    pub(crate) run: fn(&File) -> Result<(), Errno>,
    model: OnModel,
}

/// A mapped file.
pub(crate) struct File {
    pub(crate) fs: Arc<Filesystem>,
    pub(crate) inode: InodeRef,
    pub(crate) buffered: OpenFile,
    pub(crate) direct: OpenFile,
    pub(crate) mmu: Arc<SimMmu>,
    pub(crate) view: MapView,
    /// KiB of a block: so much larger is the file and what is done to it.
    unit: u64,
    /// Bytes that a read may see anywhere.
    pub(crate) allowed: Vec<u8>,
    /// Where a write ended for which there was not enough space.
    cut_short: Mutex<Option<usize>>,
}

pub(crate) fn put(model: &mut Vec<u8>, at: usize, len: usize, byte: u8) {
    model.resize(model.len().max(at + len), 0);
    model[at..at + len].fill(byte);
}

pub(crate) fn cut(model: &mut [u8], from: usize, to: usize) {
    let size = model.len();
    model[from.min(size)..to.min(size)].fill(0);
}

pub(crate) fn errno<T>(result: extant::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| Errno::from_raw_os_error(e.errno()))
}

impl File {
    fn write(&self, at: u64, len: usize, byte: u8) -> Result<(), Errno> {
        self.whole(&self.buffered, at, len, byte)
    }

    /// Writes all, or says that there is no space for all of it: a full disk may cut a write short.
    fn whole(&self, file: &OpenFile, at: u64, len: usize, byte: u8) -> Result<(), Errno> {
        match errno(file.write_at(at, &vec![byte; len]))?.0 {
            n if n == len => Ok(()),
            n => {
                *self.cut_short.lock().unwrap() = Some(at as usize + n);
                Err(Errno::NOSPC)
            }
        }
    }

    /// fallocate(2), in units.
    fn range(&self, mode: FallocateMode, at: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
        errno(self.buffered.fallocate(mode, at * self.unit, len * self.unit, keep_size))
    }

    fn store(&self, at: u64, byte: u8) -> Result<(), Errno> {
        match self.fs.access_simulated(&self.inode, &self.mmu, &self.view, at, Some(byte)) {
            Ok(_) => Ok(()),
            // Past the end, or no space.
            Err(Fault::Sigbus) => Err(Errno::FAULT),
            Err(fault) => panic!("{fault:?}"),
        }
    }

    fn load(&self, at: u64) {
        match self.fs.access_simulated(&self.inode, &self.mmu, &self.view, at, None) {
            Ok(byte) => assert!(self.allowed.contains(&byte), "a load saw {byte}"),
            Err(Fault::Sigbus) => {}
            Err(fault) => panic!("{fault:?}"),
        }
    }

    /// Moves the content to blocks of a file without a name. Content in the inode has none to move, and a short file none there.
    fn move_away(&self) -> Result<(), Errno> {
        let cred = Credentials::root();
        let inode = errno(self.fs.root().and_then(|root| self.fs.tmpfile(&root, 0o600, &cred)))?;
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let donor = errno(OpenFile::new(&self.fs, &inode, mode, &cred))?;
        errno(donor.fallocate(FallocateMode::Allocate, 0, 6144 * self.unit, false))?;
        match errno(self.buffered.move_extents(&donor, MoveRange { orig_start: 0, donor_start: 0, len: 6 })) {
            Ok(_) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// No pair makes the file as large.
    pub(crate) fn largest(&self) -> usize {
        16_384 * self.unit as usize
    }

    fn read(&self, file: &OpenFile) -> Result<(), Errno> {
        let mut got = vec![0xEE; self.largest()];
        let n = errno(file.read_at(0, &mut got))?;
        assert!(got[..n].iter().all(|b| self.allowed.contains(b)), "a read saw another byte");
        Ok(())
    }
}

/// Byte 1 is what the file begins with; each operation has its own.
pub(crate) const OPS: &[Op] = &[
    Op { name: "write inside", run: |f| f.write(20, 30, 2), model: |m, _| put(m, 20, 30, 2) },
    Op {
        name: "write across",
        run: |f| f.write(900 * f.unit, 2500 * f.unit as usize, 3),
        model: |m, unit| put(m, 900 * unit, 2500 * unit, 3),
    },
    Op {
        name: "store",
        run: |f| f.store(30, 4),
        model: |m, _| {
            if m.len() > 30 {
                m[30] = 4;
            }
        },
    },
    Op {
        name: "store behind",
        run: |f| f.store(2500 * f.unit, 5),
        model: |m, unit| {
            if m.len() > 2500 * unit {
                m[2500 * unit] = 5;
            }
        },
    },
    Op {
        name: "load",
        run: |f| {
            f.load(30);
            f.load(2500 * f.unit);
            Ok(())
        },
        model: |_, _| {},
    },
    Op { name: "read", run: |f| f.read(&f.buffered), model: |_, _| {} },
    Op { name: "truncate", run: |f| errno(f.buffered.set_len(25)), model: |m, _| m.resize(25, 0) },
    Op {
        name: "extend",
        run: |f| errno(f.buffered.set_len(3000 * f.unit)),
        model: |m, unit| m.resize(3000 * unit, 0),
    },
    Op {
        name: "punch",
        run: |f| f.range(FallocateMode::PunchHole, 10, 2100, true),
        model: |m, unit| cut(m, 10 * unit, 2110 * unit),
    },
    Op { name: "allocate", run: |f| f.range(FallocateMode::Allocate, 10, 6000, true), model: |_, _| {} },
    Op {
        name: "zero range",
        run: |f| f.range(FallocateMode::ZeroRange, 10, 2100, true),
        model: |m, unit| cut(m, 10 * unit, 2110 * unit),
    },
    Op {
        name: "collapse",
        run: |f| f.range(FallocateMode::CollapseRange, 1024, 1024, false),
        model: |m, unit| {
            if m.len() > COLLAPSED * unit {
                m.drain(1024 * unit..2048 * unit);
            }
        },
    },
    Op {
        name: "insert",
        run: |f| f.range(FallocateMode::InsertRange, 1024, 2048, false),
        model: |m, unit| {
            if m.len() > INSERTED * unit {
                let tail = m.split_off(1024 * unit);
                m.resize(3072 * unit, 0);
                m.extend(tail);
            }
        },
    },
    Op { name: "move", run: File::move_away, model: |_, _| {} },
    Op { name: "fsync", run: |f| errno(f.buffered.fsync(false)), model: |_, _| {} },
    Op {
        name: "reclaim",
        run: |f| {
            f.fs.reclaim_pages(4);
            f.fs.reclaim_pages(4);
            Ok(())
        },
        model: |_, _| {},
    },
    Op {
        name: "direct write",
        run: |f| f.whole(&f.direct, 0, 2048 * f.unit as usize, 6),
        model: |m, unit| put(m, 0, 2048 * unit, 6),
    },
    Op { name: "direct read", run: |f| f.read(&f.direct), model: |_, _| {} },
    Op {
        name: "map and unmap",
        run: |f| {
            let view = MapView { id: f.mmu.map(), ..f.view.clone() };
            let seen = f.fs.access_simulated(&f.inode, &f.mmu, &view, 30, None);
            assert!(seen.is_ok_and(|b| f.allowed.contains(&b)) || seen == Err(Fault::Sigbus));
            f.mmu.end(view.id);
            Ok(())
        },
        model: |_, _| {},
    },
];

/// A file is to be longer than that for a collapse, and for an insert; else they are EINVAL.
const COLLAPSED: usize = 2048;
const INSERTED: usize = 1024;

/// The change of the mode that a file is in, while it is used (S4); nothing but the flag where the device is no memory.
pub(crate) const FLIP: Op = Op {
    name: "flip",
    run: |f| {
        let flags = f.inode.attr().flags ^ InodeFlags::DAX;
        errno(f.fs.set_flags(&f.inode, flags, &Credentials::root()))
    },
    model: |_, _| {},
};

/// What the file is before: 60 bytes in the inode or in a block, five blocks on disk, or five that are dirty and have no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Small,
    Written,
    Delayed,
    /// Written, and in DAX mode.
    Dax,
}

pub(crate) fn mapped(fs: &Arc<Filesystem>, before: Before) -> File {
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"m", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let buffered = OpenFile::new(fs, &inode, mode, &cred).unwrap();
    let direct = OpenFile::new(fs, &inode, OpenMode { direct: true, ..mode }, &cred).unwrap();
    let unit = u64::from(fs.geometry().block_size()) / 1024;
    let len = if before == Before::Small { 60 } else { 5000 * unit as usize };
    buffered.write_at(0, &vec![1; len]).unwrap();
    if before == Before::Written {
        buffered.fsync(false).unwrap();
        fs.reclaim_pages(100);
    }
    if before == Before::Dax {
        fs.set_flags(&inode, inode.attr().flags | InodeFlags::DAX, &cred).unwrap();
        assert!(fs.effective_dax(&inode));
    }
    let mmu = fs.map_simulated(&inode).unwrap();
    let view = MapView { id: mmu.map(), pages: 0..u32::MAX, advice: MapAdvice::Normal, sync: false };
    let cut_short = Mutex::new(None);
    File {
        fs: Arc::clone(fs),
        inode,
        buffered,
        direct,
        mmu,
        view,
        unit,
        allowed: (0..=6).collect(),
        cut_short,
    }
}

/// Blocks that a nearly full image has for the file, for what maps it, and for what the allocator keeps back.
const ROOM: u64 = 256;

/// The same image with a file that takes all but [`ROOM`] blocks: what is left of them goes in each schedule, and that is short.
fn nearly_full(image: MemoryImage) -> MemoryImage {
    let bytes = Arc::new(Mutex::new(image));
    let shared = Arc::clone(&bytes);
    let make = move || {
        let device = Arc::new(MemoryDevice::from_image(&shared.lock().unwrap()));
        let fs = open(&device, Mutant::None);
        fill(&fs, b"most", ROOM);
        fs.unmount().unwrap();
        drop(fs);
        *shared.lock().unwrap() = device.image();
    };
    model::check_random_deep(make, 1, 1, STACK);
    let bytes = bytes.lock().unwrap();
    bytes.clone()
}

/// Takes all space, but for `left` blocks.
fn fill(fs: &Arc<Filesystem>, name: &[u8], left: u64) {
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { write: true, ..OpenMode::default() };
    let file = OpenFile::new(fs, &inode, mode, &cred).unwrap();
    let block = u64::from(fs.geometry().block_size());
    let free = fs.statfs().blocks_free.saturating_sub(left + 4);
    // What does not fit at once does so in parts.
    let _ = file.fallocate(FallocateMode::Allocate, 0, free * block, true);
    let mut at = 0;
    // The rest one by one: the map takes some.
    while fs.statfs().blocks_free > left {
        if file.fallocate(FallocateMode::Allocate, (free + at) * block, block, true).is_err() {
            break;
        }
        at += 1;
    }
}

/// What goes wrong beside two operations.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// So many blocks are free.
    Space(u64),
    /// The device fails to read, or to write, content of the file, once, after so many times.
    Device(Call, u32),
}

impl Trouble {
    /// Whether it explains the answer of an operation.
    fn explains(self, answer: Result<(), Errno>) -> bool {
        match self {
            Self::None => false,
            Self::Space(_) => matches!(answer, Err(Errno::NOSPC | Errno::FAULT)),
            Self::Device(..) => matches!(answer, Err(Errno::IO | Errno::FAULT)),
        }
    }
}

std::thread_local! {
    /// Schedules in which a device failed: all tasks of the runtime are in the test's own thread.
    static FAILED: Cell<usize> = const { Cell::new(0) };
    /// Those in which a collapse, and in which an insert, moved something.
    static MOVED: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
}

/// One schedule of two operations.
fn pair(image: &MemoryImage, mutant: Mutant, before: Before, ops: [&'static Op; 2], trouble: Trouble) {
    pair_on(&Failing::on(MemoryDevice::from_image(image)), mutant, before, ops, trouble);
}

/// A device that can be mapped, with what an image has.
pub(crate) fn in_memory(image: &MemoryImage) -> FileDevice {
    let device = FileDevice::in_memory(image.size()).expect("a memory file");
    image.pieces().for_each(|(offset, bytes)| device.write_at(offset, bytes).expect("inside"));
    device
}

/// The same on a device that can be mapped.
fn pair_on_memory(image: &MemoryImage, before: Before, ops: [&'static Op; 2], trouble: Trouble) {
    pair_on(&Failing::on(in_memory(image)), Mutant::None, before, ops, trouble);
}

fn pair_on(device: &Arc<Failing>, mutant: Mutant, before: Before, ops: [&'static Op; 2], trouble: Trouble) {
    let what = format!("{before:?}: {} beside {}, {trouble:?}", ops[0].name, ops[1].name);
    let fs = open(device, mutant);
    let file = Arc::new(mapped(&fs, before));
    match trouble {
        Trouble::None => {}
        Trouble::Space(left) => fill(&fs, b"full", left),
        Trouble::Device(call, after) => {
            device.will(Failure { call, after, for_good: false, of_content: true });
        }
    }
    let mut start = vec![1; file.inode.size() as usize];
    start.shrink_to_fit();
    let answers = Arc::new(Mutex::new([Ok(()), Ok(())]));
    let tasks = (0..2).map(|who: usize| -> Box<dyn FnOnce() + Send> {
        let (file, answers) = (Arc::clone(&file), Arc::clone(&answers));
        Box::new(move || {
            let answer = (ops[who].run)(&file);
            answers.lock().unwrap()[who] = answer;
        })
    });
    together(tasks.collect());
    if device.heal() > 0 {
        FAILED.set(FAILED.get() + 1);
    }
    let answers = *answers.lock().unwrap();
    let unit = file.unit as usize;
    for (who, (op, answer)) in ops.iter().zip(&answers).enumerate() {
        let excused = trouble.explains(*answer);
        let past_end = op.name.starts_with("store") && *answer == Err(Errno::FAULT);
        let least = match op.name {
            "collapse" => Some(COLLAPSED * unit),
            "insert" => Some(INSERTED * unit),
            _ => None,
        };
        if let (Some(least), Ok(())) = (least, answer) {
            let mut moved = MOVED.get();
            moved[usize::from(least == INSERTED * unit)] += 1;
            MOVED.set(moved);
        }
        // Before the other one made the file longer, or after it made it shorter.
        let shorter = *answer == Err(Errno::INVAL)
            && least.is_some_and(|least| {
                let mut other = start.clone();
                (ops[1 - who].model)(&mut other, unit);
                start.len().min(other.len()) <= least
            });
        assert!(answer.is_ok() || excused || past_end || shorter, "{what}: {} answered {answer:?}", op.name);
    }
    let after = |order: [usize; 2]| {
        let mut bytes = start.clone();
        order
            .into_iter()
            .filter(|who| answers[*who].is_ok())
            .for_each(|who| (ops[who].model)(&mut bytes, unit));
        bytes
    };
    let (one, two) = (after([0, 1]), after([1, 0]));
    let mut got = vec![0xEE; file.largest()];
    let n = file.buffered.read_at(0, &mut got).unwrap();
    got.truncate(n);
    let end = file.cut_short.lock().unwrap().unwrap_or(0);
    let lens = [one.len(), two.len(), one.len().max(end), two.len().max(end)];
    // What an operation that failed half way did is not the model's to say.
    let failed = answers.iter().any(Result::is_err);
    let grew = failed && matches!(trouble, Trouble::Device(..));
    assert!(lens.contains(&n) || grew, "{what}: {n} bytes, not one of {lens:?}");
    for (at, byte) in got.iter().enumerate() {
        let may = [one.get(at).copied(), two.get(at).copied()];
        assert!(
            may.contains(&Some(*byte)) || (failed && file.allowed.contains(byte)),
            "{what}: byte {at} is {byte}, not {may:?}"
        );
        if at % 512 == 30 {
            let seen = fs.access_simulated(&file.inode, &file.mmu, &file.view, at as u64, None);
            assert_eq!(seen, Ok(*byte), "{what}: the mapping at {at}");
        }
    }
    let largest = file.largest();
    drop(file);
    close(fs, &**device, &what);
    let fs = open(device, Mutant::None);
    let mut on_disk = vec![0xEE; largest];
    let n = fs.read_at(&find(&fs, "m"), 0, &mut on_disk).unwrap();
    on_disk.truncate(n);
    let differs = (0..n.max(got.len())).find(|at| on_disk.get(*at) != got.get(*at));
    let at = |at: usize| (on_disk.get(at).copied(), got.get(at).copied());
    assert!(differs.is_none(), "{what}: byte {differs:?} on disk and before: {:?}", differs.map(at));
    fs.unmount().unwrap();
}

pub(crate) const INLINE: &str =
    "-t ext4 -b 1024 -I 256 -N 64 -J size=1 -O ^resize_inode,inline_data,^orphan_file";

/// Schedules of one kind for each pair of operations; `EXTANT_RACES` are those of all pairs together.
fn schedules() -> usize {
    model::schedules(300).div_ceil(OPS.len() * (OPS.len() + 1))
}

/// Says that all schedules of all pairs held. Where the device was to fail, it did in some; where it has blocks to move and
/// space for that, some did.
fn held(what: &str, trouble: Trouble, all: usize, start: Instant) {
    let moved = MOVED.take();
    // Without space they need not have.
    let may = what == "Small" || matches!(trouble, Trouble::Space(_));
    assert!(may || moved.iter().all(|n| *n > 0), "{what}: collapse and insert moved {moved:?} times");
    let (count, seconds) = (OPS.len(), start.elapsed().as_secs_f64());
    let failed = match (trouble, FAILED.take()) {
        (Trouble::Device(..), 0) => panic!("{what}: the device never failed"),
        (Trouble::Device(..), n) => format!(", the device failed in {n}"),
        _ => String::new(),
    };
    println!(
        "races: pairs of {count} operations, {what}, {trouble:?}: held{failed} [{all} schedules in {seconds:.2} s]"
    );
}

fn pairs(before: Before, trouble: Trouble) {
    let image = match trouble {
        Trouble::Space(_) => nearly_full(image(INLINE)),
        _ => image(INLINE),
    };
    let (times, start) = (schedules(), Instant::now());
    let seed = extant_testkit::env::seed();
    for (n, a) in OPS.iter().enumerate() {
        for b in &OPS[n..] {
            let image = image.clone();
            let scenario = move || pair(&image, Mutant::None, before, [a, b], trouble);
            model::check_random_deep(scenario.clone(), seed, times, STACK);
            model::check_pct_deep(scenario, seed, times, 3, STACK);
        }
    }
    let all = times * OPS.len() * (OPS.len() + 1);
    held(&format!("{before:?}"), trouble, all, start);
}

#[test]
fn pairs_on_content_in_the_inode() {
    need!(tools(&["mke2fs"]));
    pairs(Before::Small, Trouble::None);
}

#[test]
fn pairs_on_written_blocks() {
    need!(tools(&["mke2fs"]));
    pairs(Before::Written, Trouble::None);
}

#[test]
fn pairs_on_delayed_blocks() {
    need!(tools(&["mke2fs"]));
    pairs(Before::Delayed, Trouble::None);
}

#[test]
fn pairs_on_content_in_the_inode_with_a_full_disk() {
    need!(tools(&["mke2fs"]));
    pairs(Before::Small, Trouble::Space(0));
}

#[test]
fn pairs_on_written_blocks_with_a_full_disk() {
    need!(tools(&["mke2fs"]));
    pairs(Before::Written, Trouble::Space(1));
}

pub(crate) const MEMORY: &str = "-t ext4 -b 4096 -I 256 -N 64 -J size=4 -O ^resize_inode,^orphan_file";

/// Every pair of operations on a file in DAX mode, and every operation beside a flip of the mode, both ways (S3, S4).
fn pairs_on_memory(trouble: Trouble) {
    let image = image(MEMORY);
    let (times, start) = (schedules(), Instant::now());
    let seed = extant_testkit::env::seed();
    let run = |before, a: &'static Op, b: &'static Op| {
        let image = image.clone();
        let scenario = move || pair_on_memory(&image, before, [a, b], trouble);
        model::check_random_deep(scenario.clone(), seed, times, STACK);
        model::check_pct_deep(scenario, seed, times, 3, STACK);
    };
    for (n, a) in OPS.iter().enumerate() {
        OPS[n..].iter().for_each(|b| run(Before::Dax, a, b));
        [Before::Dax, Before::Written, Before::Delayed].into_iter().for_each(|before| run(before, a, &FLIP));
    }
    let all = times * OPS.len() * (OPS.len() + 1 + 6);
    held("in DAX mode and beside flips", trouble, all, start);
}

#[test]
fn pairs_in_dax_mode_and_beside_flips() {
    need!(tools(&["mke2fs"]));
    pairs_on_memory(Trouble::None);
}

#[test]
fn pairs_in_dax_mode_on_a_device_that_fails() {
    need!(tools(&["mke2fs"]));
    pairs_on_memory(Trouble::Device(Call::Write, 0));
    pairs_on_memory(Trouble::Device(Call::Read, 0));
}

#[test]
fn pairs_on_a_device_that_fails_to_read() {
    need!(tools(&["mke2fs"]));
    (0..2).for_each(|after| pairs(Before::Written, Trouble::Device(Call::Read, after)));
}

#[test]
fn pairs_on_a_device_that_fails_to_write() {
    need!(tools(&["mke2fs"]));
    for before in [Before::Small, Before::Written, Before::Delayed] {
        (0..2).for_each(|after| pairs(before, Trouble::Device(Call::Write, after)));
    }
}

/// One scenario with all guards, or without one of them.
pub(crate) fn explore(name: &str, mutant: Mutant, scenario: impl Fn() + Clone + Send + Sync + 'static) {
    let lab = model::Lab::new(name, 100).deep(extant_testkit::env::seed(), STACK);
    match mutant {
        Mutant::None => lab.holds(scenario),
        mutant => lab.notices(&format!("{mutant:?}"), 4000, scenario),
    }
}

/// A store moves content out of the inode while a writer changes it there (S0): with the lock of page 0, and without.
fn inline_write_against_store(mutant: Mutant) {
    let image = image(INLINE);
    let op = |name: &str| OPS.iter().find(|op| op.name == name).expect("an operation");
    let ops = [op("write inside"), op("store")];
    let scenario = move || pair(&image, mutant, Before::Small, ops, Trouble::None);
    explore("writers in the inode beside a store", mutant, scenario);
}

#[test]
fn writers_in_the_inode_beside_a_store() {
    need!(tools(&["mke2fs"]));
    inline_write_against_store(Mutant::None);
}

#[test]
fn mutant_writers_without_the_lock_of_page_0() {
    need!(tools(&["mke2fs"]));
    inline_write_against_store(Mutant::InlineWrite);
}

/// A device writes into a pinned page, and fsync says that this is durable, while the content moves to other blocks: it is there after a
/// crash, whichever came first.
fn moved_while_pinned(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let file = Arc::new(mapped(&fs, Before::Written));
    let pin = fs.pin_simulated(&file.inode, &file.view, 0..1).expect("a pin");
    let target = file.mmu.target(0);
    let (a, b) = (Arc::clone(&file), Arc::clone(&file));
    together(vec![
        Box::new(move || a.move_away().expect("the move")),
        Box::new(move || {
            target.copy_from(100, &[9]);
            b.buffered.fsync(true).expect("fsync");
        }),
    ]);
    let crashed = Arc::new(MemoryDevice::from_image(&device.image()));
    let recovered = open(&crashed, Mutant::None);
    let mut got = vec![0; 5000];
    recovered.read_at(&find(&recovered, "m"), 0, &mut got).expect("read");
    let mut want = vec![1; 5000];
    want[100] = 9;
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert!(differs.is_none(), "byte {differs:?} after a crash");
    recovered.unmount().expect("unmount");
    drop((recovered, pin, file));
    close(fs, &*device, "a move under a pin");
}

fn explore_moves(mutant: Mutant) {
    let image = image(INLINE);
    explore("moving a pinned page", mutant, move || moved_while_pinned(&image, mutant));
}

#[test]
fn moving_a_pinned_page() {
    need!(tools(&["mke2fs"]));
    explore_moves(Mutant::None);
}

#[test]
fn mutant_moving_beside_writeback() {
    need!(tools(&["mke2fs"]));
    explore_moves(Mutant::MoveGate);
}

/// Who holds a pin writes, stores, loads, reads and asks for another mode, while somebody else waits to change the mode: nobody waits for
/// himself.
fn flipped_while_pinned(image: &MemoryImage, mutant: Mutant, before: Before) {
    let device = Arc::new(in_memory(image));
    let fs = open(&device, mutant);
    let file = Arc::new(mapped(&fs, before));
    let was = fs.effective_dax(&file.inode);
    let (a, b) = (Arc::clone(&file), Arc::clone(&file));
    together(vec![
        Box::new(move || {
            let pin = a.fs.pin_simulated(&a.inode, &a.view, 0..1).expect("a pin");
            // Once it is the other one's turn the mode is his to change.
            let mode = a.fs.effective_dax(&a.inode);
            a.write(20, 30, 2).expect("a write");
            a.store(30, 4).expect("a store");
            a.load(2500 * a.unit);
            a.read(&a.buffered).expect("a read");
            a.range(FallocateMode::PunchHole, 4096, 904, true).expect("a punch");
            let other = a.inode.attr().flags ^ InodeFlags::DAX;
            let refused = a.fs.set_flags(&a.inode, other, &Credentials::root()).expect_err("its own pin");
            assert_eq!(refused.errno(), 35, "{refused}");
            assert_eq!(a.fs.effective_dax(&a.inode), mode, "changed under a pin");
            drop(pin);
        }),
        Box::new(move || (FLIP.run)(&b).expect("a flip")),
    ]);
    assert_eq!(fs.effective_dax(&file.inode), !was);
    let mut got = vec![0; 20_000];
    file.buffered.read_at(0, &mut got).expect("read");
    let mut want = vec![1; 20_000];
    put(&mut want, 20, 30, 2);
    put(&mut want, 30, 1, 4);
    cut(&mut want, 16_384, 20_000);
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert!(differs.is_none(), "byte {differs:?}");
    drop(file);
    close(fs, &*device, "a flip while pinned");
}

fn explore_flips(mutant: Mutant, before: Before) {
    let image = image(MEMORY);
    let name = format!("flipping the mode of a pinned file, {before:?}");
    explore(&name, mutant, move || flipped_while_pinned(&image, mutant, before));
}

#[test]
fn flipping_the_mode_of_a_pinned_file() {
    need!(tools(&["mke2fs"]));
    for before in [Before::Dax, Before::Written] {
        explore_flips(Mutant::None, before);
    }
}

#[test]
fn mutant_waiting_for_pins_under_locks() {
    need!(tools(&["mke2fs"]));
    explore_flips(Mutant::FlipWaitsUnlocked, Before::Dax);
}
