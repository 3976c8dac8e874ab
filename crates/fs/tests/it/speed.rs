//! What making many files costs in processor time, printed: a small and two large sizes. Nothing is asserted about time.

use std::sync::Arc;

use extant::{Credentials, Filesystem, NewInode, Setup, WriteFlags};
use extant_device::{BlockDevice, MemoryDevice};
use extant_testkit::{env, need, oracle};

/// User and system time of the whole process so far, in milliseconds.
fn processor_ms() -> u64 {
    let usage = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = usage.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields[i].parse::<u64>().expect("ticks");
    (ticks(11) + ticks(12)) * 10
}

fn empty() -> Arc<dyn BlockDevice> {
    let scratch = env::scratch();
    let image = scratch.join("image");
    let size = 1 << 30;
    oracle::mke2fs(&image, size, "-t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0");
    let device = MemoryDevice::new(size);
    let file = extant_device::OpenOptions::new().open(&image).expect("image");
    let (mut chunk, zeroes) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..size).step_by(1 << 20) {
        file.read_at(at, &mut chunk).expect("image");
        if chunk != zeroes {
            device.write_at(at, &chunk).expect("memory");
        }
    }
    Arc::new(device)
}

fn create(files: u32, dirs: u32, data: Option<&[u8]>) {
    let device = empty();
    let start = processor_ms();
    let fs = Filesystem::open(device, Setup::default()).expect("mount");
    let cred = Credentials::root();
    let root = fs.root().expect("root");
    let dirs: Vec<_> = (0..dirs)
        .map(|d| fs.mkdir(&root, format!("dir{d}").as_bytes(), 0o755, &cred).expect("mkdir"))
        .collect();
    let each = files as usize / dirs.len();
    for dir in &dirs {
        for n in 0..each {
            let name = format!("file{n:06}");
            let file = fs.mknod(dir, name.as_bytes(), &NewInode::file(0o644), &cred).expect("file");
            if let Some(data) = data {
                fs.write_at(&file, 0, data, WriteFlags::default(), &cred).expect("write");
            }
        }
    }
    fs.sync().expect("sync");
    let bytes = data.map_or(0, <[u8]>::len);
    println!(
        "create {files} files of {bytes} bytes in {} directories: {} ms",
        dirs.len(),
        processor_ms() - start
    );
    let start = processor_ms();
    for dir in &dirs {
        for n in 0..each {
            fs.unlink(dir, format!("file{n:06}").as_bytes(), &cred).expect("unlink");
        }
    }
    fs.sync().expect("sync");
    println!("remove {files} files: {} ms", processor_ms() - start);
    fs.unmount().expect("unmount");
}

#[test]
fn speed_of_many_files() {
    need!(env::tools(&["mke2fs"]));
    create(1_000, 10, None);
    if cfg!(debug_assertions) {
        return;
    }
    for data in [None, Some(&[1; 1024][..])] {
        create(10_000, 100, data);
        create(10_000, 1, data);
        create(40_000, 1, data);
    }
}
