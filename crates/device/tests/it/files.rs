//! Image files, block devices, and keeping two masters apart.

use std::path::{Path, PathBuf};
use std::process::Command;

use extant_device::{BlockDevice, FileDevice, Live, OpenError, OpenOptions};

use crate::common::is_root;

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image");
    drop(FileDevice::create(&path, 1 << 20).expect("create"));
    path
}

fn how_in_use(result: Result<FileDevice, OpenError>) -> Live {
    match result {
        Err(OpenError::InUse { live, .. }) => live,
        other => panic!("not refused as in use: {other:?}"),
    }
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = image(dir.path());
    let first = OpenOptions::new().write(true).open(&path).expect("the first writer");
    assert_eq!(how_in_use(OpenOptions::new().write(true).open(&path)), Live::Locked);
    assert_eq!(how_in_use(OpenOptions::new().open(&path)), Live::Locked);
    assert_eq!(how_in_use(FileDevice::create(&path, 10)), Live::Locked);
    let forced = OpenOptions::new().force_read(true).open(&path).expect("forced");
    assert_eq!(forced.live(), Some(&Live::Locked));
    assert_eq!(forced.size(), 1 << 20, "a refused create changes nothing");
    drop(first);
    let writer = OpenOptions::new().write(true).open(&path).expect("free again");
    assert_eq!(writer.live(), None);
}

#[test]
fn readers_share_and_keep_writers_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = image(dir.path());
    let a = OpenOptions::new().open(&path).expect("a reader");
    let _b = OpenOptions::new().open(&path).expect("another reader");
    assert!(a.is_read_only());
    assert_eq!(a.write_at(0, &[1]).expect_err("read-only").raw_os_error(), Some(30));
    assert_eq!(how_in_use(OpenOptions::new().write(true).force_read(true).open(&path)), Live::Locked);
}

#[test]
fn other_kinds_of_files_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let kind = |path: &Path| OpenOptions::new().open(path).expect_err("refused");
    assert!(matches!(kind(dir.path()), OpenError::Kind { what: "a directory", .. }));
    assert!(matches!(kind(Path::new("/dev/null")), OpenError::Kind { what: "a character device", .. }));
    assert_eq!(kind(&dir.path().join("absent")).errno(), 2);
}

#[test]
fn a_file_cut_short_gives_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = image(dir.path());
    let device = OpenOptions::new().open(&path).expect("open");
    std::fs::OpenOptions::new().write(true).open(&path).expect("open").set_len(1000).expect("cut");
    assert_eq!(device.read_at(990, &mut [0; 20]).expect_err("too short").raw_os_error(), Some(5));
    let mut memory = [0; 20];
    let bufs = [extant_device::MemSlice::from_mut(&mut memory)];
    assert_eq!(device.read_mem_at(990, &bufs).expect_err("too short").raw_os_error(), Some(5));
}

#[test]
fn many_buffers_in_one_call() {
    let dir = tempfile::tempdir().expect("a folder");
    let device = FileDevice::create(dir.path().join("image"), 1 << 20).expect("create");
    let bytes: Vec<u8> = (0..300_000_usize).map(|i| (i % 251) as u8).collect();
    let bufs: Vec<_> = bytes.chunks(100).map(std::io::IoSlice::new).collect();
    assert!(bufs.len() > 2048);
    device.write_vectored_at(77, &bufs).expect("write");
    let mut got = vec![0; bytes.len()];
    let mut bufs: Vec<_> = got.chunks_mut(100).map(std::io::IoSliceMut::new).collect();
    device.read_vectored_at(77, &mut bufs).expect("read");
    assert!(got == bytes);
}

#[test]
fn discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("image");
    let device = FileDevice::create(&path, 1 << 20).expect("create");
    device.write_at(0, &[1; 1 << 20]).expect("write");
    let full = path.metadata().expect("stat").blocks();
    device.discard(0, 512 << 10).expect("discard");
    assert!(path.metadata().expect("stat").blocks() < full);
    device.write_zeroes(600 << 10, 10).expect("zero");
    let mut got = [1; 12];
    device.read_at((600 << 10) - 1, &mut got).expect("read");
    assert_eq!(got, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
}

struct Loop(PathBuf);

impl Loop {
    fn attach(image: &Path, read_only: bool) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).args(read_only.then_some("--read-only")).arg(image);
        let output = command.output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(PathBuf::from(path.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn an_image_behind_a_loop_device_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = image(dir.path());
    let attached = is_root().then(|| Loop::attach(&path, false)).flatten();
    let Some(attached) = attached else {
        println!("skipped: needs root and a loop device");
        return;
    };
    assert_eq!(how_in_use(OpenOptions::new().write(true).open(&path)), Live::Loop(attached.0.clone()));
    assert_eq!(how_in_use(OpenOptions::new().open(&path)), Live::Loop(attached.0.clone()));
    let forced = OpenOptions::new().force_read(true).open(&path).expect("forced");
    assert_eq!(forced.live(), Some(&Live::Loop(attached.0.clone())));
    drop(forced);

    // The loop device itself is a block device like any other.
    let device = OpenOptions::new().write(true).open(&attached.0).expect("open the loop device");
    assert!(device.is_block_device());
    assert_eq!((device.size(), device.logical_sector_size()), (1 << 20, 512));
    device.write_at(1234, &[5; 5000]).expect("write");
    device.write_zeroes(2048, 1024).expect("zero whole sectors");
    device.write_zeroes(4000, 7).expect("zero part of a sector");
    device.discard(8192, 4096).expect("discard");
    device.flush().expect("flush");
    let mut got = [9; 2];
    device.read_at(2047, &mut got).expect("read");
    assert_eq!(got, [5, 0]);
    device.read_at(4006, &mut got).expect("read");
    assert_eq!(got, [0, 5]);
    assert!(matches!(
        how_in_use(OpenOptions::new().write(true).open(&attached.0)),
        Live::Claimed | Live::Locked
    ));
}

#[test]
fn reading_behind_a_read_only_loop_device_is_fine() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = image(dir.path());
    let Some(attached) = is_root().then(|| Loop::attach(&path, true)).flatten() else {
        println!("skipped: needs root and a loop device");
        return;
    };
    OpenOptions::new().open(&path).expect("nobody can write");
    assert_eq!(how_in_use(OpenOptions::new().write(true).open(&path)), Live::Loop(attached.0.clone()));
    let error = OpenOptions::new().write(true).open(&attached.0).expect_err("a read-only device");
    assert!(matches!(error.errno(), 30 | 13 | 1), "{error}");
}
