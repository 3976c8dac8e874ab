//! The blocks that a file has, as the kernel counts them: delayed ones, content in the inode, what is preallocated past the end, and
//! what a crash or a full disk leaves of them.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, FiemapHow, Filesystem, InodeRef, NewInode, OpenFile, OpenMode, OpenOptions,
    SetAttr, Setup, WriteFlags, XattrSet,
};
use extant_device::BlockDevice as _;
use extant_testkit::env::{kernel_mounts, scratch, seed, tools};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::script::{DirExecutor, Executor as _, parse};
use extant_testkit::sim::{Failpoint, Kind, SimDevice};

use crate::support::{LibExecutor, open_rw};

fn root() -> Credentials {
    Credentials::root()
}

fn create(fs: &Arc<Filesystem>, name: &str) -> OpenFile {
    let inode = fs.mknod(&fs.root().unwrap(), name.as_bytes(), &NewInode::file(0o644), &root()).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    OpenFile::new(fs, &inode, mode, &root()).unwrap()
}

fn lookup(fs: &Arc<Filesystem>, name: &str) -> InodeRef {
    fs.lookup(&fs.root().unwrap(), name.as_bytes(), &root()).unwrap()
}

/// Runs a script here and by the kernel, and compares `st_blocks` of the file after each operation.
fn counted_alike(mkfs: &str, script: &str) {
    let dir = scratch();
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    mke2fs(&ours, 64 << 20, mkfs);
    mke2fs(&theirs, 64 << 20, mkfs);
    let mount = KernelMount::rw(&theirs);
    let mut kernel = DirExecutor::new("kernel", mount.path());
    let mut lib = LibExecutor::new(open_rw(&ours));
    let file = mount.path().join("f");
    for op in parse(script).unwrap() {
        assert_eq!(lib.apply(&op), kernel.apply(&op), "{mkfs}: {op}");
        let (found, want) = (lookup(&lib.fs, "f").attr(), std::fs::metadata(&file).unwrap());
        assert_eq!((found.size, found.blocks), (want.size(), want.blocks()), "{mkfs}: {op}");
    }
    drop(kernel);
    mount.unmount();
    lib.fs.unmount().unwrap();
    drop(lib);
    assert_clean(&ours);
}

/// What waits to be written counts, else programs that look at the count take a file for one hole.
#[test]
fn stat_counts_delayed_blocks_and_content_in_the_inode() {
    need!(kernel_mounts());
    let script = "create f 644\nwrite f 0 300000 1\nwrite f 900000 5000 2\ntruncate f 100000\npunch f 8192 8192\n\
                  fsync f\nwrite f 200000 40000 3\ntruncate f 0\nwrite f 0 4096 4\nsync\nwrite f 0 4096 5";
    for mkfs in ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 4096 -O bigalloc -C 16384"] {
        counted_alike(mkfs, script);
    }
    let small = "create f 644\nwrite f 0 20 1\nfsync f\ntruncate f 60\ntruncate f 10\nwrite f 5 30 2\n\
                 truncate f 0\nwrite f 0 30 3";
    counted_alike("-t ext4 -b 4096 -O inline_data", small);
}

/// A size that a file has already takes away what was preallocated past it.
#[test]
fn truncation_to_the_size_that_is() {
    need!(kernel_mounts());
    let script = "create f 644\nfallocate f 0 4194304 keep\nsync\ntruncate f 0\nsync\nfallocate f 0 65536 keep\n\
                  write f 0 10000 1\nsync\ntruncate f 10000\nsync\ntruncate f 10000";
    for mkfs in ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 4096 -O bigalloc -C 16384"] {
        counted_alike(mkfs, script);
    }
    counted_alike(
        "-t ext3",
        "create f 644\nwrite f 0 10000 1\nsync\ntruncate f 10000\nwrite f 0 9 1\ntruncate f 10000",
    );
}

/// So does opening an empty file to be cut.
#[test]
fn an_empty_file_is_opened_to_be_cut() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let fs = open_rw(&image);
    let file = create(&fs, "f");
    file.fallocate(FallocateMode::Allocate, 0, 1 << 20, true).unwrap();
    assert!(file.inode().attr().blocks > 0);
    let paths = fs.paths();
    drop(OpenOptions::new().write(true).truncate(true).open(&paths, "/f").unwrap());
    assert_eq!(file.inode().attr().blocks, 0);
    drop((file, paths));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// Delayed content of a size that is set anew is published with its end, not the end without it.
#[test]
fn a_size_set_anew_is_not_published_before_the_content() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let device = SimDevice::from_file(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let file = create(&fs, "f");
    file.write_at(0, &[7; 10_000]).unwrap();
    file.fallocate(FallocateMode::Allocate, 1 << 20, 1 << 20, true).unwrap();
    file.set_len(10_000).unwrap();
    fs.fsync(&fs.root().unwrap(), false).unwrap();
    let crashed = SimDevice::from_content(device.content());
    let again = Filesystem::open(Arc::clone(&crashed) as _, Setup::default()).unwrap();
    assert_eq!(lookup(&again, "f").size(), 0, "a size without content");
    again.unmount().unwrap();
    drop(file);
    fs.unmount().unwrap();
}

/// Blocks of one cluster, of which one was written and goes again: the others, promised a place when they were written, get one
/// although the disk is full by then.
#[test]
fn a_delayed_block_keeps_its_place_when_its_cluster_goes() {
    need!(tools(&["mke2fs", "e2fsck"]));
    type Way = fn(&OpenFile);
    let ways: [(&str, Way); 3] = [
        ("punched before", |file| file.fallocate(FallocateMode::PunchHole, 0, 4096, true).unwrap()),
        ("punched behind", |file| file.fallocate(FallocateMode::PunchHole, 40_960, 4096, true).unwrap()),
        ("cut", |file| file.set_len(40_960).unwrap()),
    ];
    for (way, remove) in ways {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, "-t ext4 -b 4096 -m 0 -O bigalloc -C 65536");
        let fs = open_rw(&image);
        let file = create(&fs, "f");
        file.write_at(0, &[7; 45_056]).unwrap();
        // Writes the block that goes, and only that.
        let at = if way == "punched before" { 0 } else { 40_960 };
        file.fallocate(FallocateMode::Allocate, at, 4096, true).unwrap();
        remove(&file);
        let filler = create(&fs, "filler");
        let mut end = 0;
        for piece in [65_536, 4096] {
            while let Ok((n, _)) = filler.write_at(end, &vec![1; piece]) {
                end += n as u64;
            }
        }
        assert!(end > 16 << 20, "{end}");
        filler.fsync(false).unwrap();
        file.fsync(false).unwrap_or_else(|e| panic!("{way}: {e}"));
        drop((file, filler));
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let fs = open_rw(&image);
        let mut bytes = vec![0; 36_864];
        fs.read_at(&lookup(&fs, "f"), 4096, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 7), "{way}");
        fs.unmount().unwrap();
    }
}

/// What was reserved for a block is free again when that is published in a cluster that was there.
#[test]
fn a_cluster_that_was_there_needs_no_other() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -O bigalloc -C 65536");
    let fs = open_rw(&image);
    let file = create(&fs, "f");
    // Delayed all the time, so that the file's reservation is never given back as a whole.
    file.write_at(8 << 20, &[1]).unwrap();
    file.write_at(0, &[2; 4096]).unwrap();
    file.fallocate(FallocateMode::Allocate, 0, 4096, true).unwrap();
    let free = fs.statfs().blocks_free;
    for block in 1..10 {
        file.write_at(block << 12, &[2; 4096]).unwrap();
        file.fallocate(FallocateMode::Allocate, block << 12, 4096, true).unwrap();
    }
    assert_eq!(fs.statfs().blocks_free, free, "reserved for nothing");
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// A punch splits nothing where there are no extents, so it needs no space: on a full disk it makes some.
#[test]
fn a_punch_without_extents_needs_no_space() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for mkfs in [
        "-t ext3 -b 1024 -m 0 -O ^has_journal",
        "-t ext2 -b 1024 -m 0",
        "-t ext4 -b 1024 -m 0 -O ^extent,^64bit",
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, mkfs);
        let fs = open_rw(&image);
        let file = create(&fs, "f");
        file.write_at(0, &[7; 300_000]).unwrap();
        let filler = create(&fs, "filler");
        let mut end = 0;
        for piece in [100_000, 1024] {
            while filler.write_at(end, &vec![1; piece]).is_ok_and(|(n, _)| n == piece) {
                end += piece as u64;
            }
        }
        fs.sync().unwrap();
        let before = file.inode().attr().blocks;
        assert!(fs.statfs().blocks_free <= 3, "{mkfs}: {:?}", fs.statfs());
        file.fallocate(FallocateMode::PunchHole, 4096, 100_000, true)
            .unwrap_or_else(|e| panic!("{mkfs}: {e}"));
        fs.sync().unwrap();
        assert_eq!(before - file.inode().attr().blocks, 97 * 2, "{mkfs}");
        drop((file, filler));
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}

/// The kernel zeroes what lies between the end of a file and the end of its block when the file is cut, and relies on that when it
/// grows: after a crash it must find zeros there.
#[test]
fn the_rest_of_a_cut_block_is_zero_after_a_crash() {
    need!(kernel_mounts());
    let seed = seed();
    for mkfs in ["-t ext4 -b 4096", "-t ext4 -b 1024 -O ^orphan_file"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, mkfs);
        let device = SimDevice::from_file(&image);
        let fs =
            Filesystem::open(Arc::clone(&device) as _, Setup::with_options("commit=300").unwrap()).unwrap();
        let file = create(&fs, "f");
        file.write_at(0, &[7; 20_000]).unwrap();
        file.fsync(false).unwrap();
        device.restart_log();
        file.set_len(9000).unwrap();
        // A commit, and no content.
        drop(create(&fs, "g"));
        fs.fsync(&fs.root().unwrap(), false).unwrap();
        let plan = device.crash_plan(seed).subsets(4);
        let (mut seen, mut cut) = (HashSet::new(), 0);
        plan.for_each_sketch(|state| {
            if seen.insert(state.digest()) {
                state.content().to_file(&image).unwrap();
                cut += u32::from(grown_by_the_kernel(&image, 9000));
            }
        });
        println!("{mkfs}: {} states, in {cut} the file was cut", seen.len());
        assert!(cut > 0);
        drop(file);
        fs.unmount().unwrap();
    }
}

/// A file that is cut between the end that the disk knows and its end: the disk is told of more bytes then, and must have them. What is
/// behind its old end there was never the file's (a store through a mapping that shows the device leaves it).
#[test]
fn a_cut_that_lengthens_the_file_on_disk_brings_no_bytes_from_behind_the_old_end() {
    need!(tools(&["mke2fs", "e2fsck"]));
    for mkfs in ["-t ext4 -b 4096", "-t ext3 -b 4096", "-t ext4 -b 4096 -O ^has_journal"] {
        for (end, cut) in [(25_000, 15_000), (25_000, 6500), (7000, 6500)] {
            let dir = scratch();
            let image = dir.join("image");
            mke2fs(&image, 16 << 20, mkfs);
            let device = SimDevice::from_file(&image);
            device.set_recording(false);
            let setup = || Setup::with_options("commit=300").unwrap();
            let fs = Filesystem::open(Arc::clone(&device) as _, setup()).unwrap();
            let file = create(&fs, "f");
            file.write_at(0, &[1; 5000]).unwrap();
            file.fsync(false).unwrap();
            let last = fs.fiemap(file.inode(), 4096, 1, FiemapHow::empty(), 1).unwrap()[0];
            let tail = last.physical + 6000 - last.logical;
            drop(file);
            fs.unmount().unwrap();
            drop(fs);
            device.write_at(tail, &[0x77; 100]).unwrap();

            let fs = Filesystem::open(Arc::clone(&device) as _, setup()).unwrap();
            let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
            let file = OpenFile::new(&fs, &lookup(&fs, "f"), mode, &root()).unwrap();
            file.write_at(5000, &vec![2; end - 5000]).unwrap();
            file.set_len(cut).unwrap();
            // A commit, and no content.
            drop(create(&fs, "g"));
            fs.fsync(&fs.root().unwrap(), false).unwrap();
            let crashed = SimDevice::from_content(device.content());
            let after = Filesystem::open(Arc::clone(&crashed) as _, setup()).unwrap();
            let inode = lookup(&after, "f");
            let mut bytes = vec![0; inode.size() as usize];
            after.read_at(&inode, 0, &mut bytes).unwrap();
            // Without a journal nobody has written the inode.
            assert!(bytes.len() as u64 == cut || mkfs.contains("^has_journal"), "{mkfs}, {end}, {cut}");
            let strange = bytes.iter().position(|b| *b == 0x77);
            assert_eq!(
                strange,
                None,
                "{mkfs}, {end}, {cut}: a byte that the file never had, in {}",
                bytes.len()
            );
            assert_eq!(bytes[..5000], [1; 5000], "{mkfs}, {end}, {cut}");
            drop((file, inode));
            after.unmount().unwrap();
            fs.unmount().unwrap();
        }
    }
}

/// The rest of a cut block where the device does not take it: whoever mounts it next finds the file among the orphans, and zeroes it. Once
/// the device takes it again the file is off them.
#[test]
fn the_rest_of_a_cut_block_that_cannot_be_written_is_zeroed_later() {
    need!(kernel_mounts(), tools(&["e2fsck", "dumpe2fs"]));
    for mkfs in ["-t ext4 -b 4096", "-t ext4 -b 1024 -O ^orphan_file"] {
        for healed in [true, false] {
            let dir = scratch();
            let image = dir.join("image");
            mke2fs(&image, 16 << 20, mkfs);
            let device = SimDevice::from_file(&image);
            let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
            let (file, dir_inode) = (create(&fs, "f"), fs.root().unwrap());
            file.write_at(0, &[7; 20_000]).unwrap();
            file.fsync(false).unwrap();
            let block = u64::from(fs.geometry().block_size());
            let extents = fs.fiemap(file.inode(), 9000, 1, FiemapHow::empty(), 1).unwrap();
            let tail = extents[0].physical + 9000 / block * block - extents[0].logical;
            device.fail(Failpoint::all_from(Kind::Write, 0).within(tail..tail + block));
            file.set_len(9000).unwrap();
            drop(create(&fs, "g"));
            fs.fsync(&dir_inode, false).unwrap();
            // Not written, and nobody says it is.
            file.fsync(false).unwrap_err();
            let rest = tail + 9000 % block..tail + block;
            let zeroed = |by: &str| {
                let bytes = &std::fs::read(&image).unwrap()[rest.start as usize..rest.end as usize];
                assert!(bytes.iter().all(|b| *b == 0), "{mkfs}, healed {healed}: {by} left what was cut off");
                assert_clean(&image);
                assert!(grown_by_the_kernel(&image, 9000), "{mkfs}");
            };
            let recover = || {
                device.content().to_file(&image).unwrap();
                KernelMount::rw(&image).unmount();
                zeroed("the kernel");
                device.content().to_file(&image).unwrap();
                open_rw(&image).unmount().unwrap();
                zeroed("recovery");
            };
            recover();
            drop((file, dir_inode));
            if healed {
                device.heal();
                fs.unmount().unwrap();
            } else {
                fs.unmount().unwrap_err();
            }
            device.content().to_file(&image).unwrap();
            assert_eq!(has_orphans(&image), !healed, "{mkfs}");
            if healed {
                zeroed("the next writeback");
            } else {
                recover();
            }
        }
    }
}

/// Whether the superblock says that there are orphans.
fn has_orphans(image: &Path) -> bool {
    let header = extant_testkit::oracle::dumpe2fs_header(image);
    header.iter().any(|(name, value)| name == "First orphan inode" || value.contains("orphan_present"))
}

/// Lets the kernel recover an image and make the file longer; whether it had `size` bytes. What is behind them must be zeros.
fn grown_by_the_kernel(image: &Path, size: u64) -> bool {
    let mount = KernelMount::rw(image);
    let path = mount.path().join("f");
    let found = std::fs::metadata(&path).unwrap().size();
    if found == size {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size + 20_000).unwrap();
        let bytes = mount.read("f");
        assert!(bytes[..size as usize].iter().all(|b| *b == 7));
        assert!(bytes[size as usize..].iter().all(|b| *b == 0), "the kernel shows what was cut off");
    }
    mount.unmount();
    found == size
}

/// The same where somebody else was interrupted before it zeroed anything: the next mount does it.
#[test]
fn the_rest_of_a_block_is_zeroed_for_an_interrupted_cut() {
    need!(kernel_mounts(), tools(&["debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -O ^metadata_csum,^orphan_file");
    let fs = open_rw(&image);
    let file = create(&fs, "f");
    file.write_at(0, &[7; 20_000]).unwrap();
    let ino = file.inode().ino();
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let requests = [format!("sif <{ino}> size 9000"), format!("ssv last_orphan {ino}")];
    extant_testkit::oracle::debugfs_write(&image, &requests.each_ref().map(String::as_str));
    open_rw(&image).unmount().unwrap();
    assert_clean(&image);
    assert!(grown_by_the_kernel(&image, 9000));
}

/// Space that was freed lately serves attributes too.
#[test]
fn attributes_make_space() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -m 0");
    let fs = open_rw(&image);
    let (cred, dir_inode) = (Credentials::user(7, 7, &[]), fs.root().unwrap());
    let [attr, acl] = ["attr", "acl"].map(|name| create(&fs, name));
    let owner = SetAttr { uid: Some(7), gid: Some(7), ..SetAttr::default() };
    for file in [&attr, &acl] {
        fs.set_attr(file.inode(), &owner, &root()).unwrap();
        fs.set_xattr(file.inode(), b"user.small", b"1", XattrSet::Any, &root()).unwrap();
    }
    let fill = |name: &str| {
        let file = create(&fs, name);
        let mut at = 0;
        while let Ok((n, _)) = fs.write_at(file.inode(), at, &[1; 4096], WriteFlags::default(), &cred) {
            at += n as u64;
        }
        fs.sync().unwrap();
    };
    let free = |name: &[u8]| drop(fs.unlink(&dir_inode, name, &root()).unwrap());
    fill("filler");
    free(b"filler");
    fs.set_xattr(attr.inode(), b"user.large", &[b'x'; 2000], XattrSet::Any, &cred).unwrap();
    fill("again");
    free(b"again");
    fs.set_xattr(acl.inode(), b"user.large", &[b'y'; 2000], XattrSet::Any, &cred).unwrap();
    drop((attr, acl, dir_inode));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}
