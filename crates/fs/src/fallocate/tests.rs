//! Where space runs out in the middle.

use std::sync::Arc;

use extant_alloc::{Privilege, Reservation};
use extant_testkit::SimDevice;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::{env, need, scratch};

use crate::data_rw::WriteFlags;
use crate::{Credentials, FallocateMode, FiemapHow, Filesystem, NewInode, Setup};

/// Promises all there is to nobody, the pool too.
fn take_all(fs: &Filesystem) -> Reservation {
    let mut all = fs.alloc.no_reservation(Privilege::Pool);
    let mut step = 1 << 20;
    while step > 0 {
        if all.grow(0, step).is_err() {
            step /= 2;
        }
    }
    all
}

/// Splitting an extent may take blocks. Where there are none a zeroing changes nothing: neither the edges, which are a part of a block,
/// nor what is between them.
#[test]
fn a_zeroing_without_space_for_the_map_changes_nothing() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for range in [8192..16_384, 5000..14_000, 5000..8192 + 4096] {
        let (dir, admin) = (scratch(), Credentials::root());
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
        let device = SimDevice::from_file(&image);
        device.set_recording(false);
        let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
        let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &admin).unwrap();
        fs.write_at(&file, 0, &[3; 40_000], WriteFlags::default(), &admin).unwrap();
        fs.sync().unwrap();
        fs.write_at(&file, 0, &[7; 40_000], WriteFlags::default(), &admin).unwrap();
        let read = || {
            let mut got = [1; 40_000];
            fs.read_at(&file, 0, &mut got).unwrap();
            got
        };
        let zero = || {
            let len = range.end - range.start;
            fs.fallocate(&file, FallocateMode::ZeroRange, range.start, len, true, &admin)
        };
        let all = take_all(&fs);
        assert_eq!(zero().expect_err("there is no space").errno(), 28);
        assert!(read() == [7; 40_000], "{range:?}: something has changed");
        drop(all);
        zero().unwrap();
        let mut want = [7; 40_000];
        want[range.start as usize..range.end as usize].fill(0);
        assert!(read() == want, "{range:?}");
        drop(file);
        fs.unmount().unwrap();
        drop(fs);
        device.content().to_file(&image).unwrap();
        assert_clean(&image);
    }
}

/// The extents at the two ends of a zeroing are in different leaves, and no node has room for one more: two leaves are split and the
/// root gets a level more. Two blocks are left.
#[test]
fn a_zeroing_counts_the_splits_of_both_its_ends() {
    /// A file that grows leaves one entry free in each leaf but the last; a root has room for four leaves.
    const ENTRIES: usize = 3 * 83 + 84;
    const BLOCK: u64 = 1024;
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let (dir, admin) = (scratch(), Credentials::root());
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024 -m 0");
    let device = SimDevice::from_file(&image);
    device.set_recording(false);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let make = |name: &[u8]| fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &admin).unwrap();
    let (holed, rest, file) = (make(b"holed"), make(b"rest"), make(b"file"));
    // Free space in pieces of three blocks only.
    fs.fallocate(&holed, FallocateMode::Allocate, 0, 6 * 500 * BLOCK, false, &admin).unwrap();
    fs.fallocate(&rest, FallocateMode::Allocate, 0, 1 << 30, true, &admin)
        .expect_err("it takes all there is");
    for hole in 0..500 {
        fs.fallocate(&holed, FallocateMode::PunchHole, 6 * hole * BLOCK, 3 * BLOCK, true, &admin).unwrap();
    }
    fs.sync().unwrap();
    let extents = || fs.fiemap(&file, 0, u64::MAX, FiemapHow::default(), 2 * ENTRIES).unwrap();
    let mut len = 0;
    while extents().len() < ENTRIES || extents().last().is_none_or(|last| last.length < 2 * BLOCK) {
        fs.write_at(&file, len, &[3; BLOCK as usize], WriteFlags::default(), &admin).unwrap();
        fs.fsync(&file, true).unwrap();
        len += BLOCK;
    }
    let mut ends = extents()
        .into_iter()
        .filter(|extent| extent.length == 3 * BLOCK)
        .map(|extent| extent.logical + BLOCK);
    let mut content = vec![3; len as usize];
    // The first leaf has its last entry then, and the last leaf has it already.
    let (full, start) = (ends.next().unwrap(), ends.next().unwrap());
    fs.fallocate(&file, FallocateMode::ZeroRange, full, 2 * BLOCK, true, &admin).unwrap();
    content[full as usize..(full + 2 * BLOCK) as usize].fill(0);
    assert_eq!((extents().len(), fs.depth(&file).unwrap()), (ENTRIES + 1, 1));
    let range = start..len - BLOCK;
    fs.write_at(&file, start, &vec![7; (len - start) as usize], WriteFlags::default(), &admin).unwrap();
    content[start as usize..].fill(7);
    let read = || {
        let mut got = vec![1; len as usize];
        fs.read_at(&file, 0, &mut got).unwrap();
        got
    };
    let zero =
        || fs.fallocate(&file, FallocateMode::ZeroRange, range.start, range.end - range.start, true, &admin);
    let two = fs.alloc.reserve(0, 2, Privilege::Pool).unwrap();
    let all = take_all(&fs);
    drop(two);
    assert_eq!(zero().expect_err("it takes three").errno(), 28);
    assert!(read() == content, "something has changed");
    drop(all);
    zero().unwrap();
    assert_eq!(fs.depth(&file).unwrap(), 2);
    let mut want = content.clone();
    want[range.start as usize..range.end as usize].fill(0);
    assert!(read() == want);
    drop((holed, rest, file));
    fs.unmount().unwrap();
    drop(fs);
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
}
