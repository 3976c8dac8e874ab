//! Remounts at the same time.

use std::sync::Arc;

use extant_device::OpenOptions;
use extant_testkit::{env, need, oracle, scratch};

use crate::{Filesystem, MountOptions, Setup};

/// One remount waits for the other, and only one begins the mount for writing.
#[test]
fn remounts_go_one_after_the_other() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::with_options("ro").unwrap()).unwrap();
    let (before, _) = fs.superblock().mount_counts();
    let under_way = fs.mount.remounting.lock();
    let remounts = [(); 2].map(|()| {
        let fs = Arc::clone(&fs);
        std::thread::spawn(move || fs.remount(&MountOptions::parse("rw").unwrap()))
    });
    // Without the wait they end soon.
    let mut looks = 0;
    while !remounts.iter().any(std::thread::JoinHandle::is_finished) && looks < 20_000 {
        std::thread::yield_now();
        looks += 1;
    }
    assert!(fs.is_read_only(), "they do not wait");
    drop(under_way);
    remounts.into_iter().for_each(|one| one.join().unwrap().unwrap());
    assert!(!fs.is_read_only());
    assert_eq!(fs.superblock().mount_counts().0, before + 1);
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}
