//! Errors of the device as programs on a mount meet them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use extant::{Credentials, Filesystem, OpenFile, OpenMode, Setup};
use extant_device::BlockDevice;
use extant_fuse::{Adapter, AdapterOptions};
use extant_testkit::sim::{Failpoint, Kind, SimDevice};
use extant_testkit::{env, oracle};

use crate::served::{Served, may_mount};

const SIZE: usize = 128 << 10;

/// A READ that begins in the server's cache and ends on blocks that the device cannot read: less than was asked for would be the end of
/// the file for the kernel, and the program would find a shorter file, without an error.
#[test]
fn a_read_that_fails_half_way_is_an_error_and_not_the_end() {
    if !may_mount("a_read_that_fails_half_way_is_an_error_and_not_the_end") {
        return;
    }
    let dir = env::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    let content: Vec<u8> = (0..SIZE).map(|i| (i >> 12) as u8 | 1).collect();
    let put = dir.join("file");
    fs::write(&put, &content).unwrap();
    oracle::debugfs_write(&image, &[&format!("write {} file", put.display())]);
    let device = SimDevice::from_file(&image);
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, Setup::default()).unwrap();
    let inode = fs.lookup(&fs.root().unwrap(), b"file", &Credentials::root()).unwrap();
    let at = |block: u64| fs.device_block(&inode, block).unwrap().unwrap().0 * 4096;
    // What a stream reads ahead: 64 KiB are in the cache.
    let mode = OpenMode { read: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &Credentials::root()).unwrap();
    assert_eq!(file.read_at(0, &mut [0; 4096]).unwrap(), 4096);
    let bad = at(20);
    device.fail(Failpoint::all_from(Kind::Read, 0).within(bad..bad + 4096));
    assert_eq!(file.read_at(0, &mut vec![0; SIZE]).unwrap(), 64 << 10, "half of it is cached");
    drop(file);
    drop(inode);

    let served = Served::new(Arc::new(Adapter::new(fs, AdapterOptions::default())));
    let path = served.join("file");
    let mut got = Vec::new();
    let error = File::open(&path).unwrap().read_to_end(&mut got).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(got[..] == content[..got.len()]);
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
    let mut page = [0; 4096];
    let file = File::open(&path).unwrap();
    assert_eq!(file.read_at(&mut page, 20 << 12).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(file.read_at(&mut page, 21 << 12).unwrap(), 4096);
    device.heal();
    assert!(fs::read(&path).unwrap() == content, "the device is whole again");
    drop(file);
    served.finish().unwrap();
}
