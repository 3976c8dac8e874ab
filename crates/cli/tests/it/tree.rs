//! A tree that the kernel made, which every reading command must show as it is.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use extant_testkit::kernel::KernelMount;
use extant_testkit::{Scratch, oracle, scratch};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

/// An image with one of each; the kernel made it.
pub(crate) struct Sample {
    pub(crate) dir: Scratch,
    pub(crate) image: PathBuf,
}

impl Sample {
    /// Needs root and loop devices.
    pub(crate) fn new(mke2fs: &str) -> Self {
        let dir = scratch();
        let image = dir.join("image");
        oracle::mke2fs(&image, 64 << 20, mke2fs);
        let mount = KernelMount::rw(&image);
        fill(mount.path());
        mount.unmount();
        Self { dir, image }
    }
}

fn fill(top: &Path) {
    let _open = oracle::files_on_a_mount();
    fs::create_dir_all(top.join("etc/deep/er")).unwrap();
    fs::write(top.join("etc/hostname"), "sample\n").unwrap();
    fs::write(top.join("etc/deep/er/file"), vec![b'x'; 100_000]).unwrap();
    fs::hard_link(top.join("etc/hostname"), top.join("etc/other-name")).unwrap();
    symlink("etc/hostname", top.join("link")).unwrap();
    symlink("/etc", top.join("absolute")).unwrap();
    symlink("../nowhere", top.join("etc/dangling")).unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(24 << 20).unwrap();
    sparse.write_all_at(b"middle", 10 << 20).unwrap();
    for i in 0..500 {
        fs::create_dir_all(top.join("many")).unwrap();
        fs::write(top.join(format!("many/file-{i:03}")), format!("{i}")).unwrap();
    }
    rustix::fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let device = rustix::fs::makedev(4, 300);
    rustix::fs::mknodat(CWD, top.join("tty"), FileType::CharacterDevice, Mode::from_raw_mode(0o620), device)
        .unwrap();
    let hostname = top.join("etc/hostname");
    fs::set_permissions(&hostname, fs::Permissions::from_mode(0o640)).unwrap();
    let owner = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(70_000)));
    rustix::fs::chownat(CWD, &hostname, owner.0, owner.1, AtFlags::empty()).unwrap();
    rustix::fs::setxattr(&hostname, "user.comment", b"a value", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&hostname, "trusted.raw", &[0, 1, 0xff], XattrFlags::empty()).unwrap();
    let time = Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, &hostname, &times, AtFlags::empty()).unwrap();
}
