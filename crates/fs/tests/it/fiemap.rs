//! FIEMAP and SEEK_DATA, SEEK_HOLE: the library says what the kernel says of the same image.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use extant::{
    Credentials, Error, FallocateMode, FiemapExtent, FiemapFlags, FiemapHow, Filesystem, NewInode, OpenFile,
    OpenMode, SeekKind, XattrSet,
};
use extant_sys::extents::{FIEMAP_HEAD, FIEMAP_ROOM, FIEMAP_SIZE, fiemap};
use extant_testkit::env::{kernel_mounts, scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{debugfs_write, files_on_a_mount, mke2fs};
use extant_testkit::rng::Rng;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::support::{open_ro, open_rw};

/// The extents that the kernel finds, `most` at a time; and, for `most` 0, their number alone.
pub(crate) fn of_kernel(
    file: &File,
    start: u64,
    len: u64,
    how: u32,
    most: usize,
) -> Result<(u32, Vec<FiemapExtent>), Errno> {
    let mut bytes = [0; FIEMAP_SIZE];
    bytes[..8].copy_from_slice(&start.to_ne_bytes());
    bytes[8..16].copy_from_slice(&len.to_ne_bytes());
    bytes[16..20].copy_from_slice(&how.to_ne_bytes());
    bytes[24..28].copy_from_slice(&(most as u32).to_ne_bytes());
    fiemap(file, &mut bytes).map_err(|e| Errno::from_io_error(&e).expect("an errno"))?;
    let count = u32::from_ne_bytes(bytes[20..24].try_into().expect("four bytes"));
    let of = |n: usize| {
        let at = FIEMAP_HEAD + n * FiemapExtent::SIZE;
        FiemapExtent::from_bytes(bytes[at..at + FiemapExtent::SIZE].try_into().expect("an extent"))
    };
    Ok((count, (0..(count as usize).min(most)).map(of).collect()))
}

/// All extents of a range, asked for piece by piece.
pub(crate) fn all_of_kernel(file: &File, start: u64, len: u64, how: u32) -> Result<Vec<FiemapExtent>, Errno> {
    let (_, mut all) = of_kernel(file, start, len, how, FIEMAP_ROOM)?;
    let end = start.saturating_add(len);
    while let Some(last) = all.last().copied() {
        let at = last.logical + last.length;
        if last.flags.contains(FiemapFlags::LAST) || at >= end {
            break;
        }
        let (_, some) = of_kernel(file, at, end - at, how, FIEMAP_ROOM)?;
        if some.is_empty() {
            break;
        }
        all.extend(some);
    }
    Ok(all)
}

/// With neighbours that go on from each other made one: whether they are is a matter of what the kernel has cached.
fn joined(extents: &[FiemapExtent]) -> Vec<FiemapExtent> {
    let mut all: Vec<FiemapExtent> = Vec::new();
    for next in extents {
        if let Some(last) = all.last_mut()
            && last.flags == next.flags - FiemapFlags::LAST
            && last.logical + last.length == next.logical
            && last.physical + last.length == next.physical
        {
            *last = FiemapExtent { length: last.length + next.length, flags: next.flags, ..*last };
            continue;
        }
        all.push(*next);
    }
    all
}

/// Files of every shape, made by the kernel.
fn fill(dir: &Path, block: u64, rng: &mut Rng) {
    let make = |name: &str| {
        File::options().read(true).write(true).create_new(true).open(dir.join(name)).expect("a new file")
    };
    let write = |file: &File, at: u64, len: u64| {
        file.write_all_at(&vec![at as u8 | 1; len as usize], at).expect("write");
    };
    let allocate = |file: &File, flags: FallocateFlags, at: u64, len: u64| match rustix::fs::fallocate(
        file, flags, at, len,
    ) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(errno) => panic!("fallocate: {errno}"),
    };
    drop(make("empty"));
    write(&make("tiny"), 0, 50);
    write(&make("small"), 0, 120);
    let sparse = make("sparse");
    write(&sparse, 0, 2 * block);
    write(&sparse, 5 * block, 3 * block);
    allocate(&sparse, FallocateFlags::empty(), 10 * block, 4 * block);
    sparse.set_len(20 * block + 100).expect("size");
    let kept = make("kept");
    allocate(&kept, FallocateFlags::KEEP_SIZE, 0, 3 * block);
    // A tree with more than one leaf.
    let (many, other) = (make("many"), make("other"));
    for n in 0..700 {
        write(&many, 2 * n * block, block);
        if n % 3 == 0 {
            write(&other, n * block, block);
            many.sync_all().expect("sync");
            other.sync_all().expect("sync");
        }
    }
    let far = make("far");
    write(&far, 13_000 * block, block);
    let mixed = make("mixed");
    for _ in 0..60 {
        let (at, len) = (rng.below(200) * block, (rng.below(9) + 1) * block);
        match rng.below(4) {
            0 => allocate(&mixed, FallocateFlags::KEEP_SIZE, at, len),
            1 => allocate(&mixed, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len),
            _ => write(&mixed, at, len - rng.below(block)),
        }
        if rng.chance(1, 3) {
            mixed.sync_all().expect("sync");
        }
    }
    let names = dir.join("dir");
    std::fs::create_dir(&names).expect("mkdir");
    for n in 0..200 {
        File::create(names.join(format!("a name that takes some room {n}"))).expect("create");
    }
    std::fs::create_dir(dir.join("few")).expect("mkdir");
    let flags = rustix::fs::XattrFlags::empty();
    for (name, len) in [("tiny", 10), ("sparse", 900), ("many", 40)] {
        rustix::fs::setxattr(dir.join(name), "user.x", &vec![7; len], flags).expect("setxattr");
    }
}

const NAMES: &[&str] =
    &["empty", "tiny", "small", "sparse", "kept", "many", "other", "far", "mixed", "dir", "few"];

/// One image: everything that both sides say of every file.
fn compare(image: &Path, ours: &Path, block: u64, rng: &mut Rng) {
    let mount = KernelMount::with(image, "ro").expect("mount");
    let open = files_on_a_mount();
    let content = std::fs::read(ours).expect("image");
    let fs = open_ro(ours);
    for name in NAMES {
        let file = File::open(mount.path().join(name)).expect("open");
        let inode = fs.lookup(&fs.root().unwrap(), name.as_bytes(), &Credentials::root()).expect("lookup");
        let mine = |start, len, how| {
            let how = FiemapHow::from_bits_retain(how);
            let count = fs.fiemap_count(&inode, start, len, how);
            let extents = fs.fiemap(&inode, start, len, how, usize::MAX);
            if let (Ok(count), Ok(extents)) = (&count, &extents) {
                assert_eq!(*count as usize, extents.len());
            }
            extents.map_err(|e| Errno::from_raw_os_error(e.errno()))
        };
        let size = file.metadata().unwrap().len();
        let mut ranges = vec![(0, u64::MAX), (0, 1), (0, block), (block - 1, 2), (5, u64::MAX), (size, 1)];
        ranges.extend([(0, 0), (size, 0), (1 << 45, 1), (u64::MAX, u64::MAX), (1 << 43, 7)]);
        ranges.extend((0..60).map(|_| (rng.below(size + 2 * block), rng.below(40 * block) + 1)));
        for (start, len) in ranges {
            for how in [0, 1, 4] {
                let theirs = all_of_kernel(&file, start, len, how);
                let mine = mine(start, len, how);
                let what = format!("{name}: {start}+{len}, flags {how}");
                let both = (mine.as_deref().map(joined), theirs.as_deref().map(joined));
                assert_eq!(both.0, both.1, "{what}: ours and the kernel's");
            }
            let theirs = all_of_kernel(&file, start, len, 2);
            compare_attributes(mine(start, len, 2), theirs, &content, block, name);
        }
        if *name != "dir" && *name != "few" {
            compare_seek(&fs, &file, &inode, block);
        }
        // Last: what was read is data to the kernel's lseek(2), even zeros of unwritten blocks.
        check_content(&file, &mine(0, u64::MAX, 0).unwrap(), &content);
    }
    drop((fs, open));
    mount.unmount();
}

/// The kernel forgets where in its block the inode is; else the answers are the same.
fn compare_attributes(
    mine: Result<Vec<FiemapExtent>, Errno>,
    theirs: Result<Vec<FiemapExtent>, Errno>,
    image: &[u8],
    block: u64,
    name: &str,
) {
    let Ok(mut mine) = mine else {
        assert_eq!(mine, theirs, "{name}: attributes");
        return;
    };
    for extent in mine.iter_mut().filter(|e| e.flags.contains(FiemapFlags::DATA_INLINE)) {
        let at = extent.physical as usize;
        assert_eq!(image[at..at + 4], 0xEA02_0000_u32.to_le_bytes(), "{name}: attributes are there");
        extent.physical = extent.physical / block * block + extent.physical % 256;
    }
    assert_eq!(Ok(mine), theirs, "{name}: attributes");
}

/// What the image has at an extent's place is what the file has.
fn check_content(file: &File, extents: &[FiemapExtent], image: &[u8]) {
    if file.metadata().unwrap().is_dir() {
        return;
    }
    for extent in extents {
        // Of content in the inode the second part is elsewhere.
        let inline = extent.flags.contains(FiemapFlags::DATA_INLINE);
        let length = if inline { extent.length.min(60) } else { extent.length };
        let mut bytes = vec![0; length as usize];
        let n = file.read_at(&mut bytes, extent.logical).expect("read");
        let there = &image[extent.physical as usize..][..n];
        let unwritten = extent.flags.contains(FiemapFlags::UNWRITTEN);
        assert!(if unwritten { bytes[..n].iter().all(|b| *b == 0) } else { bytes[..n] == *there });
    }
}

fn compare_seek(fs: &Filesystem, file: &File, inode: &extant::InodeRef, block: u64) {
    let size = file.metadata().unwrap().len();
    let mut places: Vec<u64> = (0..=size / block + 1).flat_map(|n| [n * block, n * block + 1]).collect();
    if places.len() > 1000 {
        places = places.into_iter().step_by(17).collect();
    }
    for at in places {
        for (kind, whence) in [
            (SeekKind::Data, rustix::fs::SeekFrom::Data(at)),
            (SeekKind::Hole, rustix::fs::SeekFrom::Hole(at)),
        ] {
            let theirs = rustix::fs::seek(file, whence);
            let mine = fs.seek(inode, at, kind).map_err(|e| Errno::from_raw_os_error(e.errno()));
            assert_eq!(mine, theirs, "inode {}, {kind:?} from {at}", inode.ino());
        }
    }
}

#[test]
fn extents_and_holes_as_the_kernel() {
    need!(kernel_mounts());
    let mut rng = Rng::new(seed());
    for (args, block) in [
        ("-t ext4 -b 4096 -I 256", 4096),
        ("-t ext4 -b 1024 -I 256", 1024),
        ("-t ext4 -b 2048 -I 256 -O inline_data", 2048),
        ("-t ext4 -b 4096 -I 256 -O bigalloc -C 16384", 4096),
        ("-t ext3 -b 1024 -I 256", 1024),
        ("-t ext2 -b 4096 -I 256", 4096),
    ] {
        println!("{args}");
        let dir = scratch();
        let (image, ours) = (dir.join("image"), dir.join("ours"));
        mke2fs(&image, 96 << 20, args);
        let mount = KernelMount::rw(&image);
        let open = files_on_a_mount();
        fill(mount.path(), block, &mut rng);
        drop(open);
        mount.unmount();
        std::fs::copy(&image, &ours).expect("copy");
        compare(&image, &ours, block, &mut rng);
    }
}

/// What both sides say of a file that is dirty, without the places: the two allocate as they like.
#[test]
fn delayed_blocks_as_the_kernel() {
    need!(kernel_mounts());
    let dir = scratch();
    let (image, theirs) = (dir.join("ours"), dir.join("theirs"));
    for image in [&image, &theirs] {
        mke2fs(image, 64 << 20, "-t ext4 -b 4096");
    }
    let mount = KernelMount::rw(&theirs);
    let open = files_on_a_mount();
    let kernel =
        File::options().read(true).write(true).create(true).truncate(true).open(mount.path().join("f"));
    let kernel = kernel.expect("file");
    let fs = open_rw(&image);
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
    let write = |at: u64, len: usize| {
        file.write_at(at, &vec![3; len]).unwrap();
        kernel.write_all_at(&vec![3; len], at).unwrap();
    };
    let compare = |what: &str, how: u32| {
        let shape = |e: &FiemapExtent| (e.logical, e.length, e.flags);
        let theirs = joined(&all_of_kernel(&kernel, 0, u64::MAX, how).unwrap());
        let mine = joined(&file.fiemap(0, u64::MAX, FiemapHow::from_bits_retain(how), usize::MAX).unwrap());
        let shapes = |all: &[FiemapExtent]| all.iter().map(shape).collect::<Vec<_>>();
        assert_eq!(shapes(&mine), shapes(&theirs), "{what}");
        mine.len()
    };
    write(0, 9000);
    write(40_960, 9000);
    assert_eq!(compare("delayed", 0), 2);
    compare("written first", 1);
    write(12_288, 8192);
    assert_eq!(compare("delayed between written ones", 0), 3);
    file.fallocate(FallocateMode::Allocate, 81_920, 40_960, false).unwrap();
    rustix::fs::fallocate(&kernel, FallocateFlags::empty(), 81_920, 40_960).unwrap();
    write(90_112, 4096);
    write(0, 100);
    compare("dirty over unwritten and over written blocks", 0);
    assert_eq!(file.fiemap(0, u64::MAX, FiemapHow::empty(), 2).unwrap().len(), 2);
    assert!(!file.fiemap(0, u64::MAX, FiemapHow::empty(), 2).unwrap()[1].flags.contains(FiemapFlags::LAST));
    fs.set_xattr(&inode, b"user.x", &[1; 10], XattrSet::Any, &cred).unwrap();
    assert_eq!(file.fiemap(0, 1, FiemapHow::XATTR, 9).unwrap().len(), 1);
    let fifo =
        fs.mknod(&fs.root().unwrap(), b"p", &NewInode { mode: 0o10644, rdev: Default::default() }, &cred);
    let refused = fs.fiemap(&fifo.unwrap(), 0, 1, FiemapHow::empty(), 1).unwrap_err();
    assert_eq!(refused.errno(), Errno::OPNOTSUPP.raw_os_error());
    drop((kernel, open));
    mount.unmount();
}

/// A map whose top block is all of its blocks, tree and data: 256^3 extents of one block each.
#[test]
fn a_long_look_can_be_interrupted() {
    need!(extant_testkit::env::tools(&["mke2fs", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext2 -b 1024");
    let (top, kib) = (9000_u32, 1024);
    debugfs_write(
        &image,
        &["mknod f p", "sif f mode 0100644", "sif f size 17179869184", &format!("sif f block[TIND] {top}")],
    );
    let file = File::options().write(true).open(&image).expect("the image");
    file.write_all_at(&top.to_le_bytes().repeat(kib / 4), u64::from(top) * kib as u64).expect("a block");
    let fs = open_ro(&image);
    let inode = fs.lookup(&fs.root().expect("root"), b"f", &Credentials::root()).expect("the file");
    let looks = Cell::new(0);
    let interrupted = || {
        looks.set(looks.get() + 1);
        looks.get() > 1000
    };
    let start = (12 + 256 + 256 * 256) * kib as u64;
    let how = FiemapHow::empty();
    let errors = [
        fs.fiemap_count_interruptible(&inode, 0, u64::MAX, how, &interrupted).map(drop),
        fs.fiemap_interruptible(&inode, 0, u64::MAX, how, usize::MAX, &interrupted).map(drop),
        fs.seek_interruptible(&inode, start, SeekKind::Hole, &interrupted).map(drop),
    ];
    for (n, error) in errors.into_iter().enumerate() {
        assert!(matches!(error, Err(Error::Interrupted)), "{n}: {error:?}");
    }
    assert_eq!(looks.get(), 1003, "a look for each extent");
    let some = fs.fiemap(&inode, 0, u64::MAX, how, 3).expect("three of them");
    assert!(some.iter().all(|e| e.length == 1024 && e.physical == u64::from(top) * 1024), "{some:?}");
}
