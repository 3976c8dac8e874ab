//! File content: the library does what the kernel does, and leaves images that e2fsck and the kernel accept.

use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, Filesystem, NewInode, OpenFile, OpenMode, PageRefs, ReadAhead, SeekKind,
    SetAttr, Setup, WriteFlags,
};
use extant_device::{MemSlice, MemoryDevice};
use extant_testkit::env::{kernel_mounts, scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::rng::Rng;
use extant_testkit::script::{DirExecutor, Mix, random, run_all};
use extant_testkit::tree::Tree;

use crate::support::{COMBINATIONS, LibExecutor, open_ro, open_rw, tree_of};

#[test]
fn content_scripts_as_the_kernel() {
    need!(kernel_mounts());
    let seed = seed();
    println!("seed={seed}");
    for (name, args) in COMBINATIONS {
        println!("{name}");
        let dir = scratch();
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        mke2fs(&ours, 48 << 20, args);
        mke2fs(&theirs, 48 << 20, args);
        let mount = KernelMount::rw(&theirs);
        // Refused where clusters are larger, half of the time.
        let shift = if args.contains("bigalloc") { 8192 } else { 4096 };
        let mix = Mix { names: 15, shift, ..Mix::default() };
        let ops = random(&mut Rng::new(seed), 500, &mix);
        let mut kernel = DirExecutor::new("kernel", mount.path());
        let mut lib = LibExecutor::new(open_rw(&ours));
        run_all(&ops, &mut [&mut kernel, &mut lib]);
        lib.fs.unmount().unwrap();
        drop(lib);
        assert_clean(&ours);
        let kernel_tree = Tree::read(mount.path(), false).unwrap();
        mount.unmount();
        let without_times = |mut tree: Tree| {
            for (path, node) in &mut tree.nodes {
                // Made at different times.
                node.mtime = kernel_tree.nodes.get(path).and_then(|n| n.mtime);
            }
            tree
        };
        kernel_tree.assert_equal(&without_times(tree_of(&open_ro(&ours))), name);
        let again = KernelMount::ro(&ours);
        kernel_tree.assert_equal(&without_times(Tree::read(again.path(), false).unwrap()), name);
    }
}

/// A new file in an image of its own.
fn new_file(image: &std::path::Path) -> (std::sync::Arc<extant::Filesystem>, OpenFile) {
    let fs = open_rw(image);
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
    (fs, file)
}

/// What a file has at `offset`, read through references to cached pages.
fn by_reference(file: &OpenFile, offset: u64, len: usize) -> Vec<u8> {
    let (mut buf, mut refs) = (vec![0xDD; len], PageRefs::default());
    let n = file.read_refs(offset, &mut buf, &mut refs).unwrap();
    let mut memory = Vec::new();
    refs.memory(MemSlice::from_mut(&mut buf), &mut memory);
    let mut content = vec![0; n];
    let mut at = 0;
    for piece in memory {
        piece.copy_to(0, &mut content[at..at + piece.len()]);
        at += piece.len();
    }
    assert_eq!(at, n);
    content
}

#[test]
fn data_and_holes_are_found() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let (fs, file) = new_file(&image);
    file.write_at(10_000, &[1; 5000]).unwrap();
    file.fallocate(FallocateMode::Allocate, 40_960, 40_960, false).unwrap();
    file.write_at(50_000, &[2; 10]).unwrap();
    let walk = |file: &OpenFile| {
        let mut found = Vec::new();
        let mut at = 0;
        while let Ok(data) = file.seek(at, SeekKind::Data) {
            at = file.seek(data, SeekKind::Hole).unwrap();
            found.push((data, at));
        }
        found
    };
    let want = [(8192, 16384), (49_152, 53_248)];
    assert_eq!(walk(&file), want, "delayed");
    fs.sync().unwrap();
    assert_eq!(walk(&file), want, "written");
    assert_eq!(file.seek(81_920, SeekKind::Hole).unwrap_err().errno(), 6);
    assert_eq!(file.seek(60_000, SeekKind::Data).unwrap_err().errno(), 6);
}

#[test]
fn inline_content_moves_out_when_it_outgrows() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -O inline_data");
    let (fs, file) = new_file(&image);
    file.write_at(0, b"hello").unwrap();
    fs.sync().unwrap();
    assert_eq!(file.inode().attr().blocks, 1, "it is inline");
    file.write_at(100, b"world").unwrap();
    file.set_len(120).unwrap();
    let mut want = vec![0; 120];
    want[..5].copy_from_slice(b"hello");
    want[100..105].copy_from_slice(b"world");
    let check = |file: &OpenFile, want: &[u8]| {
        let mut got = vec![9; want.len() + 5];
        assert_eq!(file.read_at(0, &mut got).unwrap(), want.len());
        assert_eq!(&got[..want.len()], want);
        assert_eq!(by_reference(file, 0, want.len() + 5), want);
    };
    check(&file, &want);
    file.write_at(3000, &[7; 3000]).unwrap();
    want.resize(3000, 0);
    want.extend([7; 3000]);
    check(&file, &want);
    fs.sync().unwrap();
    assert!(file.inode().attr().blocks > 0, "it is in blocks");
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&image);
}

#[test]
fn a_full_disk_refuses_and_keeps_what_was_there() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -m 0");
    let (fs, file) = new_file(&image);
    let mut at = 0;
    let error = loop {
        match file.write_at(at, &[5; 100_000]) {
            Ok((n, _)) => at += n as u64,
            Err(e) => break e,
        }
    };
    assert_eq!(error.errno(), 28, "{error}");
    assert!(at > 4 << 20, "{at} bytes went in");
    file.fsync(false).unwrap();
    file.set_len(at / 2).unwrap();
    // What was freed can be used at once: the wait for its commit is inside.
    assert_eq!(file.write_at(at / 2, &[6; 100_000]).unwrap().0, 100_000);
    let size = file.inode().size();
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
    let fs = open_ro(&image);
    let inode = fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap();
    let mut got = vec![0; size as usize];
    assert_eq!(fs.read_stream(&inode, 0, &mut got, &mut ReadAhead::default()).unwrap() as u64, size);
    assert!(
        got[..(at / 2) as usize].iter().all(|b| *b == 5) && got[(at / 2) as usize..].iter().all(|b| *b == 6)
    );
}

#[test]
fn a_failing_device_is_reported_once_and_the_data_is_kept() {
    use extant_device::BlockDevice;
    use extant_testkit::sim::{Failpoint, Kind, SimDevice};
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -O ^has_journal");
    let device = SimDevice::from_file(&image);
    let fs = extant::Filesystem::open(device.clone(), extant::Setup::default()).unwrap();
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let (a, b) =
        (OpenFile::new(&fs, &inode, mode, &cred).unwrap(), OpenFile::new(&fs, &inode, mode, &cred).unwrap());
    fs.sync().unwrap();
    a.write_at(0, &[3; 4096]).unwrap();
    device.fail(Failpoint::nth(Kind::Write, 0));
    assert_eq!(a.fsync(true).unwrap_err().errno(), 5);
    a.fsync(true).expect("the data was kept and is written now");
    assert_eq!(b.fsync(true).unwrap_err().errno(), 5, "the other open file is told too");
    b.fsync(true).unwrap();
    assert!(device.size() > 0);
}

/// `data_err=abort`: what could not be written stops the filesystem; without it the next fsync writes it.
#[test]
fn lost_content_aborts_the_journal_where_asked() {
    use extant_testkit::sim::{Failpoint, Kind, SimDevice};
    for (words, stays) in [("data_err=ignore", true), ("data_err=abort", false)] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, "-t ext4");
        let device = SimDevice::from_file(&image);
        let setup = extant::Setup::with_options(&format!("{words},commit=300")).unwrap();
        let fs = extant::Filesystem::open(device.clone(), setup).unwrap();
        let cred = Credentials::root();
        let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
        fs.sync().unwrap();
        file.write_at(0, &[3; 4096]).unwrap();
        device.fail(Failpoint::nth(Kind::Write, 0));
        assert_eq!(file.fsync(true).unwrap_err().errno(), 5, "{words}");
        assert_eq!(file.fsync(true).is_ok(), stays, "{words}");
        let made = fs.mknod(&fs.root().unwrap(), b"later", &NewInode::file(0o644), &cred);
        assert_eq!(made.is_ok(), stays, "{words}");
        assert_eq!(fs.unmount().is_ok(), stays, "{words}");
    }
}

/// Figures, not judged: 64 MiB in 128 KiB pieces, and many small files.
#[test]
fn speed_of_writing() {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 128 << 20, "-t ext4");
    let mut bytes = vec![0; 128 << 20];
    let file = extant_device::OpenOptions::new().open(&image).unwrap();
    extant_device::BlockDevice::read_at(&file, 0, &mut bytes).unwrap();
    let device = std::sync::Arc::new(MemoryDevice::from_bytes(&bytes));
    let fs = extant::Filesystem::open(device, extant::Setup::default()).unwrap();
    let cred = Credentials::root();
    let root = fs.root().unwrap();
    let inode = fs.mknod(&root, b"large", &NewInode::file(0o644), &cred).unwrap();
    let start = std::time::Instant::now();
    let piece = vec![9; 128 << 10];
    for n in 0..512_u64 {
        fs.write_at(&inode, n << 17, &piece, WriteFlags::default(), &cred).unwrap();
    }
    fs.sync().unwrap();
    println!("64 MiB: {:.0} MB/s", 67.0 / start.elapsed().as_secs_f64());
    let start = std::time::Instant::now();
    for n in 0..1000 {
        let inode = fs.mknod(&root, format!("small {n}").as_bytes(), &NewInode::file(0o644), &cred).unwrap();
        fs.write_at(&inode, 0, &[1; 2000], WriteFlags::default(), &cred).unwrap();
    }
    fs.sync().unwrap();
    println!("1000 files of 2 kB: {:.0} us each", start.elapsed().as_secs_f64() * 1000.0);
    fs.unmount().unwrap();
}

#[test]
fn a_file_without_a_name_that_is_truncated_is_freed_after_a_crash() {
    need!(extant_testkit::env::tools(&["mke2fs"]));
    for options in ["-t ext4 -b 1024", "-t ext3", "-t ext4 -O orphan_file", "-t ext4 -O inline_data"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, options);
        let device = extant_testkit::SimDevice::from_file(&image);
        let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
        let (root, admin) = (fs.root().unwrap(), Credentials::root());
        let named = fs.mknod(&root, b"named", &NewInode::file(0o600), &admin).unwrap();
        let nameless = fs.tmpfile(&root, 0o600, &admin).unwrap();
        for inode in [&named, &nameless] {
            fs.write_at(inode, 0, &[7; 300_000], WriteFlags::default(), &admin).unwrap();
        }
        fs.unlink(&root, b"named", &admin).unwrap();
        for inode in [&named, &nameless] {
            for size in [100_000, 0] {
                fs.set_attr(inode, &SetAttr { size: Some(size), ..SetAttr::default() }, &admin).unwrap();
            }
        }
        fs.sync().unwrap();
        let crashed = extant_testkit::SimDevice::from_content(device.content());
        let recovered = Filesystem::open(Arc::clone(&crashed) as _, Setup::default()).unwrap();
        recovered.unmount().unwrap();
        crashed.content().to_file(&image).unwrap();
        println!("{options}");
        assert_clean(&image);
        drop((named, nameless, root));
        fs.unmount().unwrap();
        device.content().to_file(&image).unwrap();
        assert_clean(&image);
    }
}

#[test]
fn a_small_image_can_be_filled_to_the_last_blocks() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    for options in ["-t ext2 -b 1024 -m 0", "-t ext3 -b 4096 -m 0", "-t ext4 -b 1024 -m 0"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, options);
        let fs = open_rw(&image);
        let (root, admin) = (fs.root().unwrap(), Credentials::root());
        let free = fs.statfs().blocks_available * u64::from(fs.statfs().block_size);
        // All but room for the map.
        let most = vec![7; (free - free / 32) as usize];
        let file = fs.mknod(&root, b"large", &NewInode::file(0o644), &admin).unwrap();
        let written = fs.write_at(&file, 0, &most, WriteFlags::default(), &admin).unwrap().0;
        assert_eq!(written, most.len(), "{options}: {free} bytes were free");
        drop((file, root));
        fs.unmount().unwrap();
        assert_clean(&image);
    }
}

#[test]
fn a_frozen_filesystem_can_be_unmounted() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let fs = open_rw(&image);
    let (root, admin) = (fs.root().unwrap(), Credentials::root());
    let file = fs.mknod(&root, b"file", &NewInode::file(0o644), &admin).unwrap();
    fs.write_at(&file, 0, b"content", WriteFlags::default(), &admin).unwrap();
    fs.freeze(&admin).unwrap();
    assert_clean(&image);
    drop((file, root));
    fs.unmount().unwrap();
    assert_clean(&image);
    assert_eq!(extant_testkit::oracle::debugfs_cat(&image, "/file"), b"content");
}
