//! The null server through a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use extant_fuse::null::{NullOptions, NullServer};
use extant_fuse::{SessionOptions, Transport};

use crate::served::{Served, may_mount};

fn null() -> Arc<NullServer> {
    Arc::new(NullServer::new(NullOptions::default()))
}

#[test]
fn names_and_attributes() {
    if !may_mount("names_and_attributes") {
        return;
    }
    let mount = Served::new(null());
    fs::create_dir(mount.join("dir")).unwrap();
    fs::write(mount.join("dir/file"), b"hello").unwrap();
    fs::hard_link(mount.join("dir/file"), mount.join("link")).unwrap();
    symlink("dir/file", mount.join("soft")).unwrap();
    assert_eq!(fs::read(mount.join("soft")).unwrap(), b"hello");
    assert_eq!(fs::read_link(mount.join("soft")).unwrap().to_str(), Some("dir/file"));
    assert_eq!(fs::metadata(mount.join("link")).unwrap().nlink(), 2);
    fs::set_permissions(mount.join("link"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(mount.join("dir/file")).unwrap().mode(), 0o100_640);
    fs::rename(mount.join("dir/file"), mount.join("moved")).unwrap();
    assert!(!mount.join("dir/file").exists());
    fs::remove_dir(mount.join("dir")).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["link", "moved", "soft"]);
    mount.finish().unwrap();
}

#[test]
fn large_data_both_ways_and_truncation() {
    if !may_mount("large_data_both_ways_and_truncation") {
        return;
    }
    let mount = Served::new(null());
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = mount.join("big");
    fs::write(&path, &data).unwrap();
    // A mount option of the kernel's page cache must not hide what the server holds: read past the cache.
    let direct = OpenOptions::new().read(true).open(&path).unwrap();
    rustix::fs::fadvise(&direct, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    let mut piece = vec![0; 10_000];
    direct.read_exact_at(&mut piece, 1_234_567).unwrap();
    assert!(piece == data[1_234_567..1_244_567]);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(70_000).unwrap();
    file.set_len(200_000).unwrap();
    rustix::fs::fadvise(&direct, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let read = fs::read(&path).unwrap();
    assert!(read[..70_000] == data[..70_000]);
    assert!(read[70_000..].iter().all(|&b| b == 0));
    drop((file, direct));
    mount.finish().unwrap();
}

#[test]
fn a_large_directory_is_listed_whole() {
    if !may_mount("a_large_directory_is_listed_whole") {
        return;
    }
    let mount = Served::new(null());
    for i in 0..3000 {
        File::create(mount.join(&format!("file-{i:05}"))).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 3000);
    assert!(names.iter().enumerate().all(|(i, n)| *n == format!("file-{i:05}")));
    mount.finish().unwrap();
}

#[test]
fn an_unlinked_file_stays_until_it_is_closed() {
    if !may_mount("an_unlinked_file_stays_until_it_is_closed") {
        return;
    }
    let mount = Served::new(null());
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("gone")).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(mount.join("gone")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    mount.finish().unwrap();
}

#[test]
fn every_way_of_reading_requests() {
    if !may_mount("every_way_of_reading_requests") {
        return;
    }
    for (readers, clone_fd, pin) in [(1, false, false), (2, true, true), (4, false, true), (3, true, false)] {
        let mount =
            Served::with(null(), SessionOptions { readers, clone_fd, pin, ..SessionOptions::default() });
        many_at_once(&mount);
        mount.finish().unwrap();
    }
}

/// Four threads that make, write, read and remove files.
fn many_at_once(mount: &Served) {
    std::thread::scope(|scope| {
        for t in 0..4 {
            scope.spawn(move || {
                for i in 0..100 {
                    let path = mount.join(&format!("{t}-{i}"));
                    fs::write(&path, path.as_os_str().as_encoded_bytes()).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), path.as_os_str().as_encoded_bytes());
                    fs::remove_file(&path).unwrap();
                }
            });
        }
    });
}

/// Where the kernel has no io_uring for FUSE, the same through the device.
#[test]
fn requests_by_io_uring() {
    if !may_mount("requests_by_io_uring") {
        return;
    }
    let options = SessionOptions { transport: Transport::Ring, ..SessionOptions::default() };
    let mount = Served::with(null(), options);
    let parameter = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").unwrap_or_default();
    if parameter.trim() != "Y" {
        println!("requests_by_io_uring: the kernel's parameter enable_uring is not set: the device it is");
        assert_eq!(mount.transport(), Transport::Device);
    }
    many_at_once(&mount);
    // Names and data beside the head, answers with and without data, both sizes of each.
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::create_dir(mount.join("dir")).unwrap();
    fs::write(mount.join("dir/big"), &data).unwrap();
    rustix::fs::fadvise(File::open(mount.join("dir/big")).unwrap(), 0, None, rustix::fs::Advice::DontNeed)
        .unwrap();
    assert!(fs::read(mount.join("dir/big")).unwrap() == data);
    symlink("dir/big", mount.join("soft")).unwrap();
    assert_eq!(fs::read_link(mount.join("soft")).unwrap().to_str(), Some("dir/big"));
    fs::rename(mount.join("dir/big"), mount.join("moved")).unwrap();
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
    assert!(fs::metadata(mount.join("dir/big")).is_err());
    mount.finish().unwrap();
}
