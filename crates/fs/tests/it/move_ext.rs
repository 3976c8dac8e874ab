//! MOVE_EXT: what the kernel answers and leaves, crash states, full disks, mapped files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, FiemapExtent, FiemapFlags, FiemapHow, Filesystem, InodeFlags, InodeRef,
    MoveRange, NewInode, OpenFile, OpenMode, SetAttr, Setup,
};
use extant_testkit::SimDevice;
use extant_testkit::env::{kernel_mounts, scratch, seed, tools};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, files_on_a_mount, mke2fs};
use extant_testkit::rng::Rng;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::fiemap::all_of_kernel;
use crate::support::{open_ro, open_rw, open_with};

const BLOCK: u64 = 4096;

/// A piece of a file, in blocks.
#[derive(Clone, Copy, Debug)]
enum Part {
    Written(u64, u64),
    Unwritten(u64, u64),
    /// Past the end, keeping the size.
    Kept(u64, u64),
    /// The size, in bytes.
    Size(u64),
}
use Part::{Kept, Size, Unwritten, Written};

fn byte(name: u8, block: u64) -> u8 {
    name.wrapping_mul(31).wrapping_add(block as u8) | 1
}

/// Makes a file of the kernel's.
fn theirs(dir: &Path, name: &str, parts: &[Part]) -> File {
    let file =
        File::options().read(true).write(true).create_new(true).open(dir.join(name)).expect("a new file");
    for part in parts {
        match *part {
            Written(at, len) => (at..at + len).for_each(|n| {
                let content = [byte(name.as_bytes()[0], n); BLOCK as usize];
                file.write_all_at(&content, n * BLOCK).expect("write");
            }),
            Unwritten(at, len) => {
                rustix::fs::fallocate(&file, FallocateFlags::empty(), at * BLOCK, len * BLOCK)
                    .expect("fallocate");
            }
            Kept(at, len) => {
                let keep = FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, keep, at * BLOCK, len * BLOCK).expect("fallocate");
            }
            Size(size) => file.set_len(size).expect("size"),
        }
    }
    file.sync_all().expect("sync");
    file
}

fn open(fs: &Arc<Filesystem>, inode: &InodeRef, mode: OpenMode) -> OpenFile {
    OpenFile::new(fs, inode, mode, &Credentials::root()).expect("open")
}

/// The same file, read from the device.
fn past_cache(fs: &Arc<Filesystem>, file: &OpenFile) -> OpenFile {
    open(fs, file.inode(), OpenMode { direct: true, ..BOTH })
}

const BOTH: OpenMode =
    OpenMode { read: true, write: true, append: false, data_sync: false, sync: false, direct: false };

/// The same file of ours.
fn ours(fs: &Arc<Filesystem>, name: &str, parts: &[Part]) -> OpenFile {
    let root = fs.root().expect("root");
    let inode =
        fs.mknod(&root, name.as_bytes(), &NewInode::file(0o644), &Credentials::root()).expect("create");
    let file = open(fs, &inode, BOTH);
    for part in parts {
        match *part {
            Written(at, len) => (at..at + len).for_each(|n| {
                let content = [byte(name.as_bytes()[0], n); BLOCK as usize];
                file.write_at(n * BLOCK, &content).expect("write");
            }),
            Unwritten(at, len) => {
                file.fallocate(FallocateMode::Allocate, at * BLOCK, len * BLOCK, false).expect("fallocate");
            }
            Kept(at, len) => {
                file.fallocate(FallocateMode::Allocate, at * BLOCK, len * BLOCK, true).expect("fallocate");
            }
            Size(size) => file.set_len(size).expect("size"),
        }
    }
    file.fsync(false).expect("sync");
    file
}

/// What is special about a pair of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    None,
    OrigReadOnly,
    OrigWriteOnly,
    DonorReadOnly,
    DonorWriteOnly,
    DonorImmutable,
    DonorAppendOnly,
    DonorSetUid,
    DonorSetGid,
    OrigIndirect,
    DonorIndirect,
}

struct Case {
    what: &'static str,
    orig: &'static [Part],
    donor: &'static [Part],
    /// Starts and length.
    range: [u64; 3],
    special: Special,
}

const fn case(what: &'static str, orig: &'static [Part], donor: &'static [Part], range: [u64; 3]) -> Case {
    Case { what, orig, donor, range, special: Special::None }
}

const fn special(special: Special) -> Case {
    let donor: &[Part] = if matches!(special, Special::DonorIndirect) { FULL } else { ROOM };
    Case { what: "special", orig: FULL, donor, range: [0, 0, 8], special }
}

const FULL: &[Part] = &[Written(0, 8)];
const ROOM: &[Part] = &[Unwritten(0, 8)];
const MANY: u64 = u32::MAX as u64;

/// All of them answer as the kernel's ext4 does, and leave the same. Left out, since the kernel answers oddly: a length of 0 (moves
/// everything if it begins at 0, else EINVAL; here always EINVAL), and holes at a file's end (ENODATA after what was before has been
/// moved; here a success).
const CASES: &[Case] = &[
    case("all", FULL, ROOM, [0, 0, 8]),
    case("a part", FULL, ROOM, [2, 2, 3]),
    case("elsewhere", FULL, ROOM, [2, 4, 2]),
    case("elsewhere, odd", FULL, ROOM, [2, 3, 2]),
    case("donor with content", FULL, &[Written(0, 8)], [0, 0, 8]),
    case("unwritten", ROOM, ROOM, [0, 0, 8]),
    case("unwritten, donor with content", ROOM, &[Written(0, 8)], [0, 0, 8]),
    case("a hole in the middle", &[Written(0, 2), Written(5, 3)], ROOM, [0, 0, 8]),
    case("a hole at the start", &[Size(8 * BLOCK), Written(5, 3)], ROOM, [0, 0, 8]),
    case("a hole at the range's end", &[Written(0, 2), Written(5, 3)], ROOM, [0, 0, 4]),
    case("a range that is a hole", &[Written(0, 2), Written(5, 3)], ROOM, [2, 2, 2]),
    case("a donor that is a hole", FULL, &[Size(8 * BLOCK)], [0, 0, 8]),
    case("a donor with a hole", FULL, &[Unwritten(0, 2), Unwritten(5, 3)], [0, 0, 8]),
    case("a donor with a hole at its end", FULL, &[Unwritten(0, 2), Size(8 * BLOCK)], [0, 0, 8]),
    case(
        "all kinds",
        &[Written(0, 2), Unwritten(2, 2), Written(4, 4)],
        &[Unwritten(0, 1), Written(1, 2), Unwritten(3, 5)],
        [0, 0, 8],
    ),
    case("a short donor", FULL, &[Unwritten(0, 4)], [0, 0, 8]),
    case("a donor with blocks past its end", FULL, &[Kept(0, 8)], [0, 0, 8]),
    case("a donor with some past its end", FULL, &[Unwritten(0, 3), Kept(0, 8)], [0, 0, 8]),
    case("a donor of a block and a bit", &[Written(0, 2)], &[Unwritten(0, 1), Size(10)], [0, 0, 2]),
    case("an empty donor", FULL, &[], [0, 0, 8]),
    case("an empty file", &[], ROOM, [0, 0, 8]),
    case("past the end", FULL, &[Unwritten(0, 16)], [0, 0, 16]),
    case("all past the end", FULL, &[Unwritten(0, 16)], [8, 8, 1]),
    case("blocks past the end", &[Written(0, 2), Kept(0, 8)], ROOM, [0, 0, 8]),
    case("a partial block", &[Written(0, 4), Size(3 * BLOCK + 10)], ROOM, [0, 0, 4]),
    case("far too long", FULL, ROOM, [0, 0, u64::MAX]),
    case("too long", FULL, ROOM, [0, 0, MANY]),
    case("just not too long", FULL, ROOM, [0, 0, MANY - 1]),
    case("ends too far", FULL, ROOM, [2, 2, MANY - 1]),
    case("begins too far", FULL, ROOM, [MANY, MANY, 1]),
    case("begins much too far", FULL, ROOM, [MANY + 1, MANY + 1, 1]),
    case("donor begins too far", FULL, ROOM, [0, MANY + 1, 1]),
    case("overflows", FULL, ROOM, [u64::MAX, u64::MAX, 1]),
    case("wraps round", FULL, ROOM, [2, 2, u64::MAX - 1]),
    special(Special::OrigReadOnly),
    special(Special::OrigWriteOnly),
    special(Special::DonorReadOnly),
    special(Special::DonorWriteOnly),
    special(Special::DonorImmutable),
    special(Special::DonorAppendOnly),
    special(Special::DonorSetUid),
    special(Special::DonorSetGid),
    special(Special::OrigIndirect),
    special(Special::DonorIndirect),
];

/// An extent's place in the file, and its flags, joined: allocators differ, and so do the kernel's answers by what it has cached.
type Shape = Vec<(u64, u64, FiemapFlags)>;

fn shape(extents: &[FiemapExtent]) -> Shape {
    let mut all: Shape = Vec::new();
    for e in extents {
        let flags = e.flags - FiemapFlags::LAST;
        match all.last_mut() {
            Some((at, len, before)) if *before == flags && *at + *len == e.logical => *len += e.length,
            _ => all.push((e.logical, e.length, flags)),
        }
    }
    all
}

const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;
const EXTENTS: u32 = 0x8_0000;

fn set_flags(file: &File, set: u32, clear: u32) {
    let flags = rustix::fs::ioctl_getflags(file).expect("GETFLAGS").bits();
    let flags = rustix::fs::IFlags::from_bits_retain((flags | set) & !clear);
    rustix::fs::ioctl_setflags(file, flags).expect("SETFLAGS");
}

/// What the kernel does with a pair of files.
fn run_theirs(dir: &Path, n: usize, case: &Case) -> (Result<(), Errno>, u64) {
    let (orig_name, donor_name) = (format!("o{n}"), format!("d{n}"));
    let (mut orig, mut donor) = (theirs(dir, &orig_name, case.orig), theirs(dir, &donor_name, case.donor));
    let open = |name: &str, read: bool, write: bool| {
        File::options().read(read).write(write).open(dir.join(name)).expect("open")
    };
    let mode = |mode: u32| {
        let mode = rustix::fs::Mode::from_bits_retain(mode);
        rustix::fs::fchmod(&donor, mode).expect("fchmod");
    };
    match case.special {
        Special::None => {}
        Special::OrigReadOnly => orig = open(&orig_name, true, false),
        Special::OrigWriteOnly => orig = open(&orig_name, false, true),
        Special::DonorReadOnly => donor = open(&donor_name, true, false),
        Special::DonorWriteOnly => donor = open(&donor_name, false, true),
        Special::DonorImmutable => set_flags(&donor, IMMUTABLE, 0),
        Special::DonorAppendOnly => set_flags(&donor, APPEND, 0),
        Special::DonorSetUid => mode(0o4755),
        Special::DonorSetGid => mode(0o2755),
        Special::OrigIndirect => set_flags(&orig, 0, EXTENTS),
        Special::DonorIndirect => set_flags(&donor, 0, EXTENTS),
    }
    let (answer, moved) = extant_sys::extents::move_ext(&orig, &donor, case.range);
    (answer.map_err(|e| Errno::from_io_error(&e).expect("an errno")), moved)
}

/// What we do with the same pair.
fn run_ours(fs: &Arc<Filesystem>, n: usize, case: &Case) -> (Result<(), Errno>, u64) {
    let (mut orig, mut donor) =
        (ours(fs, &format!("o{n}"), case.orig), ours(fs, &format!("d{n}"), case.donor));
    let cred = Credentials::root();
    let read_only = OpenMode { write: false, ..BOTH };
    let write_only = OpenMode { read: false, ..BOTH };
    let flag = |file: &OpenFile, set: InodeFlags, clear: InodeFlags| {
        let flags = (file.inode().attr().flags & InodeFlags::USER_VISIBLE | set) - clear;
        fs.set_flags(file.inode(), flags, &cred).expect("flags");
    };
    let mode = |mode: u16| {
        fs.set_attr(donor.inode(), &SetAttr { mode: Some(mode), ..SetAttr::default() }, &cred).expect("mode");
    };
    match case.special {
        Special::None => {}
        Special::OrigReadOnly => orig = open(fs, orig.inode(), read_only),
        Special::OrigWriteOnly => orig = open(fs, orig.inode(), write_only),
        Special::DonorReadOnly => donor = open(fs, donor.inode(), read_only),
        Special::DonorWriteOnly => donor = open(fs, donor.inode(), write_only),
        Special::DonorImmutable => flag(&donor, InodeFlags::IMMUTABLE, InodeFlags::empty()),
        Special::DonorAppendOnly => flag(&donor, InodeFlags::APPEND, InodeFlags::empty()),
        Special::DonorSetUid => mode(0o4755),
        Special::DonorSetGid => mode(0o2755),
        Special::OrigIndirect => flag(&orig, InodeFlags::empty(), InodeFlags::EXTENTS),
        Special::DonorIndirect => flag(&donor, InodeFlags::empty(), InodeFlags::EXTENTS),
    }
    let [orig_start, donor_start, len] = case.range;
    match orig.move_extents(&donor, MoveRange { orig_start, donor_start, len }) {
        Ok(moved) => (Ok(()), moved),
        Err(e) => (Err(Errno::from_raw_os_error(e.errno())), 0),
    }
}

#[test]
fn pairs_of_files_as_the_kernel() {
    need!(kernel_mounts());
    let dir = scratch();
    let (image, their_image) = (dir.join("ours"), dir.join("theirs"));
    for image in [&image, &their_image] {
        mke2fs(image, 64 << 20, "-t ext4 -b 4096");
    }
    let mount = KernelMount::rw(&their_image);
    let fs = open_rw(&image);
    let open = files_on_a_mount();
    for (n, case) in CASES.iter().enumerate() {
        let (theirs, mine) = (run_theirs(mount.path(), n, case), run_ours(&fs, n, case));
        assert_eq!(mine, theirs, "{} {:?}: ours and the kernel's", case.what, case.special);
    }
    drop(open);
    mount.unmount();
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    assert_clean(&their_image);
    // What the two left, by our reading, and by the kernel's of both.
    let read_only = open_ro(&image);
    let by_us = |name: &str| {
        let root = read_only.root().unwrap();
        let inode = read_only.lookup(&root, name.as_bytes(), &Credentials::root()).unwrap();
        shape(&read_only.fiemap(&inode, 0, u64::MAX, FiemapHow::empty(), 100).unwrap())
    };
    let by_us: Vec<[Shape; 2]> =
        (0..CASES.len()).map(|n| [by_us(&format!("o{n}")), by_us(&format!("d{n}"))]).collect();
    drop(read_only);
    let (mount, mine) =
        (KernelMount::with(&their_image, "ro").unwrap(), KernelMount::with(&image, "ro").unwrap());
    let open = files_on_a_mount();
    for (n, case) in CASES.iter().enumerate() {
        for (who, name) in ["o", "d"].iter().enumerate() {
            let what = format!("{} {:?}, {name}", case.what, case.special);
            let name = format!("{name}{n}");
            let files = [&mount, &mine].map(|m| File::open(m.path().join(&name)).expect("open"));
            let content = files.each_ref().map(|f| {
                let mut bytes = vec![0; f.metadata().unwrap().len() as usize];
                f.read_exact_at(&mut bytes, 0).expect("read");
                bytes
            });
            assert!(content[0] == content[1], "{what}: content");
            let shapes = files.each_ref().map(|f| shape(&all_of_kernel(f, 0, u64::MAX, 0).expect("extents")));
            assert_eq!(shapes[1], shapes[0], "{what}: extents, ours and the kernel's");
            assert_eq!(by_us[n][who], shapes[0], "{what}: our own reading");
        }
    }
    drop(open);
    mount.unmount();
    mine.unmount();
}

#[test]
fn files_that_cannot_be_moved() {
    need!(tools(&["mke2fs"]));
    for (args, options) in [
        ("-t ext4 -b 4096 -O inline_data -I 256", ""),
        ("-t ext4 -b 4096 -O bigalloc -C 16384", ""),
        ("-t ext4 -b 4096", "data=journal"),
        ("-t ext3 -b 4096", ""),
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, args);
        let fs = open_with(&image, options);
        let (orig, donor) = (ours(&fs, "o", &[]), ours(&fs, "d", &[]));
        orig.write_at(0, &[1; 50]).unwrap();
        donor.write_at(0, &[2; 9000]).unwrap();
        let range = MoveRange { orig_start: 0, donor_start: 0, len: 1 };
        for (a, b) in [(&orig, &donor), (&donor, &orig)] {
            let refused = a.move_extents(b, range).unwrap_err();
            assert_eq!(refused.errno(), Errno::OPNOTSUPP.raw_os_error(), "{args} {options}: {refused}");
        }
        assert_eq!(orig.move_extents(&orig, range).unwrap_err().errno(), 22);
        fs.unmount().unwrap();
    }
}

/// Takes all space, and gives back every second of so many blocks and some more: what comes next gets these, one by one. The space
/// goes with the file `full`.
fn fragment_free_space(fs: &Arc<Filesystem>, blocks: u64) {
    let block = u64::from(fs.geometry().block_size());
    let take_all = |file: &OpenFile| {
        let (mut at, mut piece) = (0, fs.statfs().blocks_free);
        while piece > 0 {
            match file.fallocate(FallocateMode::Allocate, at * block, piece * block, false) {
                Ok(()) => at += piece,
                // Some of it may be there.
                Err(_) => piece /= 2,
            }
        }
    };
    let punch = |file: &OpenFile, pieces: std::ops::Range<u64>| {
        for n in pieces {
            file.fallocate(FallocateMode::PunchHole, 2 * n * block, block, true).unwrap();
        }
        fs.sync().unwrap();
    };
    let full = ours(fs, "full", &[]);
    take_all(&full);
    // What nobody gets is still in one piece: it is taken, and scattered blocks are what nobody gets.
    // Some more: the map of `full` grows with its holes.
    let kept = fs.statfs().blocks_free;
    let holes = kept + kept / 16 + 64;
    punch(&full, 0..holes);
    ours(fs, "rest", &[]).fallocate(FallocateMode::Allocate, 0, kept * block, false).unwrap();
    punch(&full, holes..holes + blocks + blocks / 8);
}

/// A file in many pieces moves into few, and its map with it; holes and unwritten blocks stay what they are.
#[test]
fn many_extents_become_few() {
    need!(kernel_mounts());
    let mut rng = Rng::new(seed());
    for (args, blocks) in [
        ("-t ext4 -b 1024", 6000),
        ("-t ext4 -b 1024 -J size=1", 2000),
        ("-t ext4 -b 4096 -O ^has_journal", 3000),
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, args);
        let fs = open_rw(&image);
        let block = u64::from(fs.geometry().block_size());
        fragment_free_space(&fs, blocks);
        let orig = ours(&fs, "o", &[]);
        // With a hole and an unwritten piece now and then.
        let mut want = vec![0; (blocks * block) as usize];
        for n in 0..blocks {
            match rng.below(20) {
                0 => {}
                1 => orig.fallocate(FallocateMode::Allocate, n * block, block, true).unwrap(),
                _ => {
                    let content = vec![rng.below(255) as u8 + 1; block as usize];
                    orig.write_at(n * block, &content).unwrap();
                    want[(n * block) as usize..][..block as usize].copy_from_slice(&content);
                }
            }
        }
        orig.set_len(blocks * block).unwrap();
        orig.fsync(false).unwrap();
        fs.unlink(&fs.root().unwrap(), b"full", &Credentials::root()).unwrap();
        fs.sync().unwrap();
        let extents = |file: &OpenFile| file.fiemap(0, u64::MAX, FiemapHow::empty(), usize::MAX).unwrap();
        let before = extents(&orig);
        assert!(before.len() > blocks as usize / 3, "{} extents", before.len());
        let donor = open(&fs, &fs.tmpfile(&fs.root().unwrap(), 0o600, &Credentials::root()).unwrap(), BOTH);
        donor.fallocate(FallocateMode::Allocate, 0, blocks * block, false).unwrap();
        let mapped: u64 = before.iter().map(|e| e.length / block).sum();
        let moved = orig.move_extents(&donor, MoveRange { orig_start: 0, donor_start: 0, len: blocks });
        assert_eq!(moved.unwrap(), mapped, "{args}");
        let after = extents(&orig);
        assert_eq!(shape(&after), shape(&before), "{args}");
        // One extent for each stretch of one state, and a few where groups end.
        assert!(after.len() <= shape(&after).len() + 16, "{args}: {} extents", after.len());
        let read = |file: &OpenFile| {
            let mut got = vec![1; want.len()];
            assert_eq!(file.read_at(0, &mut got).unwrap(), want.len());
            got
        };
        assert!(read(&orig) == want, "{args}: content in memory");
        assert!(read(&past_cache(&fs, &orig)) == want, "{args}: content on disk");
        assert!(read(&donor).iter().all(|b| *b == 0), "{args}: the donor shows the file's blocks");
        drop((orig, donor));
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let mount = KernelMount::with(&image, "ro").unwrap();
        assert!(mount.read("o") == want, "{args}: by the kernel");
        mount.unmount();
    }
}

/// What a crash leaves, at every point of a move and of a write to the donor behind it: the file's content, always.
#[test]
fn crash_states() {
    need!(tools(&["mke2fs"]));
    let seed = seed();
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -J size=1 -N 64");
    let device = SimDevice::from_file(&image);
    let setup = || Setup::with_options("commit=300").unwrap();
    let fs = Filesystem::open(Arc::clone(&device) as _, setup()).unwrap();
    let cred = Credentials::root();
    let (orig, donor) = (ours(&fs, "o", &[]), ours(&fs, "d", &[]));
    let want: Vec<u8> = (0..40_000_u32).map(|n| (n / 1024) as u8 + 1).collect();
    for n in (0..40).step_by(2).chain((1..40).step_by(2)) {
        let at = n * 1024;
        orig.write_at(at as u64, &want[at.min(want.len())..(at + 1024).min(want.len())]).unwrap();
        orig.fsync(false).unwrap();
    }
    donor.fallocate(FallocateMode::Allocate, 0, 40 * 1024, false).unwrap();
    fs.sync().unwrap();
    device.restart_log();
    device.set_recording(true);
    let half = MoveRange { orig_start: 0, donor_start: 0, len: 20 };
    assert_eq!(orig.move_extents(&donor, half).unwrap(), 20);
    // Into the blocks that were the file's.
    donor.write_at(0, &[0xEE; 20 * 1024]).unwrap();
    donor.fsync(true).unwrap();
    device.mark(1);
    let rest = MoveRange { orig_start: 20, donor_start: 20, len: 20 };
    assert_eq!(orig.move_extents(&donor, rest).unwrap(), 20);
    fs.unlink(&fs.root().unwrap(), b"d", &cred).unwrap();
    drop(donor);
    fs.sync().unwrap();
    let plan = device.crash_plan(seed);
    let mut states = 0;
    plan.for_each(|state| {
        let crashed = SimDevice::from_content(state.content.clone());
        let fs = Filesystem::open(Arc::clone(&crashed) as _, setup()).expect("mount");
        let inode = fs.lookup(&fs.root().unwrap(), b"o", &cred).expect("the file is there");
        let mut got = vec![0; want.len() + 1];
        let n = fs.read_at(&inode, 0, &mut got).expect("read");
        let differs = got.iter().zip(&want).position(|(a, b)| a != b);
        assert!(
            n == want.len() && differs.is_none(),
            "state {states}: {n} bytes, first other one {differs:?}"
        );
        drop(inode);
        fs.unmount().expect("unmount");
        let report = extant_fsck::check(&*crashed, &extant_fsck::Options::default());
        assert!(report.is_clean(), "state {states}: {:?}", report.errors().next());
        states += 1;
    });
    println!("{states} states");
    assert!(states > 50, "{states}");
    drop(orig);
    fs.unmount().unwrap();
}

/// A device that fails at every write and read in turn: the file keeps its content, whatever the answer.
#[test]
fn failing_devices() {
    need!(tools(&["mke2fs"]));
    use extant_testkit::sim::{Failpoint, Kind};
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -J size=1 -N 64");
    for kind in [Kind::Write, Kind::Read, Kind::Flush] {
        let mut n = 0;
        loop {
            let device = SimDevice::from_file(&image);
            let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
            let (orig, donor) = (ours(&fs, "o", &[]), ours(&fs, "d", &[]));
            orig.write_at(0, &[5; 30 * 1024]).unwrap();
            donor.fallocate(FallocateMode::Allocate, 0, 30 * 1024, false).unwrap();
            fs.sync().unwrap();
            device.fail(Failpoint::nth(kind, n));
            let moved = orig.move_extents(&donor, MoveRange { orig_start: 0, donor_start: 0, len: 30 });
            device.heal();
            let mut got = vec![0; 30 * 1024];
            // After an abort of the journal, too, what is read is the file's.
            assert_eq!(past_cache(&fs, &orig).read_at(0, &mut got).unwrap(), got.len());
            assert!(got.iter().all(|b| *b == 5), "{kind:?} {n}: {moved:?}");
            let crashed = SimDevice::from_content(device.content());
            drop((orig, donor));
            let _ = fs.unmount();
            drop(fs);
            let fs = Filesystem::open(Arc::clone(&crashed) as _, Setup::default()).unwrap();
            let inode = fs.lookup(&fs.root().unwrap(), b"o", &Credentials::root()).unwrap();
            fs.read_at(&inode, 0, &mut got).unwrap();
            assert!(got.iter().all(|b| *b == 5), "{kind:?} {n}, after a crash: {moved:?}");
            drop(inode);
            fs.unmount().unwrap();
            if moved.is_ok() {
                break;
            }
            n += 1;
        }
        println!("{kind:?}: {n} failed");
        assert!(n > 0, "{kind:?}: none failed");
    }
}

/// On a full disk the maps grow out of what is held back for them.
#[test]
fn a_full_disk() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -J size=1 -m 0");
    let fs = open_rw(&image);
    let (orig, donor) = (ours(&fs, "o", &[]), ours(&fs, "d", &[]));
    orig.write_at(0, &[5; 400 * 1024]).unwrap();
    orig.fsync(false).unwrap();
    // The donor in pieces, so that the file's map grows.
    fragment_free_space(&fs, 450);
    donor.fallocate(FallocateMode::Allocate, 0, 400 * 1024, false).unwrap();
    fs.sync().unwrap();
    let more = ours(&fs, "more", &[]);
    let mut at = 0;
    while more.fallocate(FallocateMode::Allocate, at, 1024, true).is_ok() {
        at += 1024;
    }
    // The last blocks, for files whose map is in the inode.
    for n in 0.. {
        if ours(&fs, &format!("n{n}"), &[]).fallocate(FallocateMode::Allocate, 0, 1024, true).is_err() {
            break;
        }
    }
    let pieces = |file: &OpenFile| file.fiemap(0, u64::MAX, FiemapHow::empty(), usize::MAX).unwrap().len();
    let (before, free) = ([pieces(&orig), pieces(&donor)], fs.statfs().blocks_free);
    let moved = orig.move_extents(&donor, MoveRange { orig_start: 0, donor_start: 0, len: 400 });
    let after = [pieces(&orig), pieces(&donor)];
    assert_eq!(moved.unwrap(), 400);
    assert!(before[1] > 200 && free < 200, "{before:?} extents, {free} blocks free");
    assert_eq!(after, [before[1], before[0]]);
    let mut got = vec![0; 400 * 1024];
    past_cache(&fs, &orig).read_at(0, &mut got).unwrap();
    assert!(got.iter().all(|b| *b == 5));
    drop((orig, donor, more));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// A file that programs have mapped and store to while it is moved back and forth.
#[test]
fn mapped_and_stored_to() {
    need!(crate::mapping::userfaultfd(), tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 64 << 20, "-t ext4 -b 1024");
    let fs = open_rw(&image);
    let (orig, donor) = (ours(&fs, "o", &[]), ours(&fs, "d", &[]));
    let pages = 64_u64;
    orig.write_at(0, &vec![0; (pages * 4096) as usize]).unwrap();
    donor.fallocate(FallocateMode::Allocate, 0, pages * 4096, false).unwrap();
    let mapping = orig.map(0, (pages * 4096) as usize, &crate::mapping::shared()).unwrap();
    let rounds = 60_u64;
    std::thread::scope(|scope| {
        for part in 0..2 {
            let mapping = &mapping;
            scope.spawn(move || {
                for round in 1..=rounds * 20 {
                    for page in (part..pages).step_by(2) {
                        let at = (page * 4096 + 8 * (round % 100)) as usize;
                        mapping.write_at(at, &round.to_ne_bytes()).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                orig.fsync(true).unwrap();
            }
        });
        for _ in 0..rounds {
            let range = MoveRange { orig_start: 0, donor_start: 0, len: pages * 4 };
            assert_eq!(orig.move_extents(&donor, range).unwrap(), pages * 4);
        }
    });
    let last = rounds * 20;
    let mut want = vec![0; (pages * 4096) as usize];
    for page in 0..pages {
        for slot in 0..100 {
            let round = last - (last % 100 + 100 - slot) % 100;
            let at = (page * 4096 + 8 * slot) as usize;
            want[at..at + 8].copy_from_slice(&round.to_ne_bytes());
        }
    }
    drop(mapping);
    orig.fsync(false).unwrap();
    let pinned = donor.map(0, 4096, &crate::mapping::shared()).unwrap();
    let pin = pinned.pin(0..4096).unwrap();
    let range = MoveRange { orig_start: 0, donor_start: 0, len: 4 };
    assert!(matches!(orig.move_extents(&donor, range), Err(extant::Error::Busy)), "a donor that is pinned");
    drop((pin, pinned, orig, donor));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    let fs = open_ro(&image);
    let inode = fs.lookup(&fs.root().unwrap(), b"o", &Credentials::root()).unwrap();
    let mut got = vec![1; want.len()];
    fs.read_at(&inode, 0, &mut got).unwrap();
    assert!(got == want, "byte {:?}", got.iter().zip(&want).position(|(a, b)| a != b));
}
