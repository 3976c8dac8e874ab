//! How much of the cache one write takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use extant_device::OpenOptions;
use extant_testkit::SimDevice;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::sim::{Failpoint, Kind};
use extant_testkit::{env, need, scratch};

use super::{PIECE, WriteFlags};
use crate::{Credentials, FallocateMode, Filesystem, NewInode, Setup};

/// One write that is many times the cache: what it overdraws stays bounded.
#[test]
fn a_large_write_leaves_the_cache_as_it_goes() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let (dir, admin) = (scratch(), Credentials::root());
    let image = dir.join("image");
    mke2fs(&image, 512 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let setup = Setup::with_options("cache_size=24m").unwrap();
    let fs = Filesystem::open(Arc::new(device), setup).unwrap();
    let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &admin).unwrap();
    let most = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let bytes = vec![7; 256 << 20];
        let (fs, file, admin, most) = (&fs, &file, &admin, &most);
        let writer = scope.spawn(move || fs.write_at(file, 0, &bytes, WriteFlags::default(), admin).unwrap());
        while !writer.is_finished() {
            let stats = fs.pages.stats();
            most.fetch_max((stats.pages * stats.page_size) as u64, Ordering::Relaxed);
            std::thread::yield_now();
        }
        assert_eq!(writer.join().unwrap(), (256 << 20, 0));
    });
    // Three quarters of `cache_size`, and what one piece overdraws.
    let (most, bound) = (most.load(Ordering::Relaxed), (18 << 20) + PIECE as u64);
    println!("{most} bytes at most");
    assert!(most <= bound + (1 << 20), "{most} bytes in the cache, more than {bound}");
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// An inode that left the cache after its content was published, and was read again: fsync waits for the transaction of before.
#[test]
fn fsync_of_an_inode_that_was_read_again() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let (dir, admin) = (scratch(), Credentials::root());
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::with_options("commit=300").unwrap()).unwrap();
    let root = fs.root().unwrap();
    let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &admin).unwrap();
    fs.sync().unwrap();
    fs.write_at(&file, 0, &[7; 100_000], WriteFlags::default(), &admin).unwrap();
    fs.write_back_all().unwrap();
    let (ino, changed) = (file.ino, fs.journal.running_tid());
    drop(file);
    fs.icache.forget(ino);
    assert!(fs.icache.cached(ino).is_none(), "it is in the cache still");
    assert!(changed.is_after(fs.journal.committed_tid()), "committed before it was asked for");
    let file = fs.lookup(&root, b"f", &admin).unwrap();
    fs.fsync(&file, true).unwrap();
    assert!(
        !changed.is_after(fs.journal.committed_tid()),
        "fsync came back before the transaction was durable"
    );
    drop((file, root));
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}

/// What a punch reads before its handle is read before it drops anything: what is dirty in the range would be gone, and what it had
/// been written over back.
#[test]
fn a_punch_that_cannot_read_the_inode_table_keeps_what_is_dirty() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRange] {
        let (dir, admin) = (scratch(), Credentials::root());
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, "-t ext4");
        let device = SimDevice::from_file(&image);
        device.set_recording(false);
        let open = || Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
        let fs = open();
        let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &admin).unwrap();
        fs.write_at(&file, 0, &[3; 20_000], WriteFlags::default(), &admin).unwrap();
        drop(file);
        fs.unmount().unwrap();
        let fs = open();
        let file = fs.lookup(&fs.root().unwrap(), b"f", &admin).unwrap();
        fs.write_at(&file, 0, &[5; 20_000], WriteFlags::default(), &admin).unwrap();
        fs.cache.invalidate(file.table.0, 1);
        device.fail(Failpoint::all_from(Kind::Read, 0));
        let done = fs.fallocate(&file, mode, 4096, 8192, true, &admin);
        device.heal();
        assert_eq!(done.expect_err("the device fails").errno(), 5);
        let mut got = [0; 20_000];
        fs.read_at(&file, 0, &mut got).unwrap();
        assert!(got == [5; 20_000], "{mode:?}: what was written before is gone");
        fs.fallocate(&file, mode, 4096, 8192, true, &admin).unwrap();
        fs.read_at(&file, 0, &mut got).unwrap();
        assert!(got[..4096] == [5; 4096] && got[4096..12_288] == [0; 8192]);
        drop(file);
        fs.unmount().unwrap();
        drop(fs);
        device.content().to_file(&image).unwrap();
        assert_clean(&image);
    }
}
