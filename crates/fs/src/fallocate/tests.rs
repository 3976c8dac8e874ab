//! Where space runs out in the middle.

use std::sync::Arc;

use extant_alloc::{Privilege, Reservation};
use extant_testkit::SimDevice;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::{env, need, scratch};

use crate::data_rw::WriteFlags;
use crate::{Credentials, FallocateMode, Filesystem, NewInode, Setup};

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
