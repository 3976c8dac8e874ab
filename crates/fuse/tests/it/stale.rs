//! What the kernel's FUSE client takes a file to be after a call that changed it behind the kernel's back: a fallocate(2) that
//! failed half-way, a collapse.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use extant_fuse::{AdapterOptions, private};
use extant_testkit::{env, oracle};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::ext4::{finish, mounted, mounted_with};
use crate::served::may_mount;

/// More than the images here have.
const TOO_MUCH: u64 = 1 << 30;
const MIB: usize = 1 << 20;

/// A fallocate(2) that fails makes the file longer up to where the space was out. Who appends next has not looked at the size, and the
/// kernel puts what is appended where it takes the end to be.
#[test]
fn an_append_after_a_failed_allocation_is_at_the_end_and_nowhere_else() {
    if !may_mount("an_append_after_a_failed_allocation_is_at_the_end_and_nowhere_else") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for flags in [FallocateFlags::empty(), FallocateFlags::ZERO_RANGE] {
        let scratch = env::scratch();
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -O ^inline_data");
        let (mount, adapter) = mounted(&image, "");
        adapter.set_notifier(mount.notifier().clone());
        let open = oracle::files_on_a_mount();
        fs::write(mount.join("other"), vec![2; MIB]).unwrap();
        fs::write(mount.join("f"), [1; 100]).unwrap();
        let mut file = OpenOptions::new().read(true).append(true).open(mount.join("f")).unwrap();
        file.read_exact_at(&mut [0; 100], 0).unwrap();
        // Not the first block, which a zeroing would have the kernel drop.
        assert_eq!(fallocate(&file, flags, 4096, TOO_MUCH), Err(Errno::NOSPC));
        fs::remove_file(mount.join("other")).unwrap();
        file.write_all(b"hello").unwrap();
        // Not more than the kernel would take to be there: for that it would look at the size, and drop its pages.
        let mut at = [9; 105];
        file.read_exact_at(&mut at, 0).unwrap();
        assert!(at[..100] == [1; 100] && at[100..] == [0; 5], "{flags:?}: the kernel has it at 100");
        let size = file.metadata().unwrap().size();
        assert!(size > MIB as u64, "{flags:?}: {size}");
        let mut end = [9; 8];
        file.read_exact_at(&mut end, size - 8).unwrap();
        assert_eq!(&end, b"\0\0\0hello", "{flags:?}");
        drop(file);
        finish(mount, &adapter);
        drop(open);
        oracle::assert_clean(&image);
    }
}

/// A collapse makes the file shorter, and the kernel knows it only once it asks.
#[test]
fn pages_of_an_append_after_a_collapse_are_dropped() {
    if !may_mount("pages_of_an_append_after_a_collapse_are_dropped") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let (mount, adapter) = mounted(&image, "");
    adapter.set_notifier(mount.notifier().clone());
    let open = oracle::files_on_a_mount();
    fs::write(mount.join("f"), [[1; 4096], [2; 4096], [3; 4096]].concat()).unwrap();
    let mut file = OpenOptions::new().read(true).append(true).open(mount.join("f")).unwrap();
    // Not `private::fallocate`, which has the kernel look at the size.
    collapse_first_block(&file);
    // A whole page, at 8192; the kernel has it at 12288 too, behind the end.
    file.write_all(&[4; 4096]).unwrap();
    // What fails here is answered after what the kernel was to be told before.
    let keep_size = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&file, keep_size, 1 << 20, TOO_MUCH), Err(Errno::NOSPC));
    let mut page = [0; 4096];
    assert_eq!(file.read_at(&mut page, 12_288).unwrap(), 0, "a page behind the end");
    let mut got = Vec::new();
    File::open(mount.join("f")).unwrap().read_to_end(&mut got).unwrap();
    assert!(got == [[2; 4096], [3; 4096], [4; 4096]].concat());
    drop(file);
    finish(mount, &adapter);
    drop(open);
    oracle::assert_clean(&image);
}

/// What a mapping of a file that was opened for appending brings back goes where it was stored.
#[test]
fn stores_to_a_file_opened_for_appending_stay_where_they_are() {
    if !may_mount("stores_to_a_file_opened_for_appending_stay_where_they_are") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck", "python3"]));
    const STORES: &str = "import mmap, os, sys\n\
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)\n\
        memory = mmap.mmap(fd, 8192)\n\
        memory[:4096] = b'B' * 4096\n\
        memory.flush()\n\
        os.fsync(fd)\n\
        os.write(fd, b'C' * 100)\n\
        os.fsync(fd)\n";
    for writeback_cache in [false, true] {
        let scratch = env::scratch();
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
        let options = AdapterOptions { writeback_cache, ..AdapterOptions::default() };
        let (mount, adapter) = mounted_with(&image, "", options);
        adapter.set_notifier(mount.notifier().clone());
        let open = oracle::files_on_a_mount();
        fs::write(mount.join("f"), [b'A'; 8192]).unwrap();
        drop(open);
        let mut program = std::process::Command::new("python3");
        oracle::run_ok(program.args(["-c", STORES]).arg(mount.join("f")));
        finish(mount, &adapter);
        drop(adapter);
        let (mount, adapter) = mounted(&image, "");
        let open = oracle::files_on_a_mount();
        let got = fs::read(mount.join("f")).unwrap();
        drop(open);
        let want = [&[b'B'; 4096][..], &[b'A'; 4096], &[b'C'; 100]].concat();
        assert!(got == want, "writeback_cache {writeback_cache}: {} bytes", got.len());
        finish(mount, &adapter);
        oracle::assert_clean(&image);
    }
}

/// Stores to holes for which there is space in part only: fsync(2) says so, though the first of them could be written.
#[test]
fn stores_that_have_space_in_part_are_an_error() {
    if !may_mount("stores_that_have_space_in_part_are_an_error") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck", "python3"]));
    const STORES: &str = "import errno, mmap, os, sys\n\
        fd = os.open(sys.argv[1], os.O_RDWR)\n\
        memory = mmap.mmap(fd, 1 << 20)\n\
        memory[:] = b'B' * (1 << 20)\n\
        try:\n    os.fsync(fd)\n\
        except OSError as error:\n    assert error.errno == errno.ENOSPC, error\n\
        else:\n    sys.exit('fsync of what has no space')\n";
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let (mount, adapter) = mounted(&image, "");
    adapter.set_notifier(mount.notifier().clone());
    let open = oracle::files_on_a_mount();
    File::create(mount.join("f")).unwrap().set_len(MIB as u64).unwrap();
    let free = rustix::fs::statvfs(&*mount.join("f")).unwrap().f_bfree;
    let other = File::create(mount.join("other")).unwrap();
    other.write_all_at(&vec![2; usize::try_from(free).unwrap() * 4096 - MIB / 2], 0).unwrap();
    other.sync_all().unwrap();
    drop(other);
    drop(open);
    let mut program = std::process::Command::new("python3");
    oracle::run_ok(program.args(["-c", STORES]).arg(mount.join("f")));
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

/// With the writeback cache the kernel is ahead: what a fallocate(2) that fails does to the size is no business of its pages.
#[test]
fn a_failed_allocation_takes_nothing_that_the_kernel_has_not_written() {
    if !may_mount("a_failed_allocation_takes_nothing_that_the_kernel_has_not_written") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for flags in [FallocateFlags::empty(), FallocateFlags::ZERO_RANGE] {
        let scratch = env::scratch();
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096 -O ^inline_data");
        let options = AdapterOptions { writeback_cache: true, ..AdapterOptions::default() };
        let (mount, adapter) = mounted_with(&image, "", options);
        adapter.set_notifier(mount.notifier().clone());
        let open = oracle::files_on_a_mount();
        let size = fs::create_dir(mount.join("d"))
            .and_then(|()| rustix::fs::statvfs(&*mount.join("d")).map_err(Into::into));
        // All but a few blocks, so that the allocation ends inside of what is written below.
        let free = usize::try_from(size.unwrap().f_bfree).unwrap() * 4096;
        let other = File::create(mount.join("other")).unwrap();
        other.write_all_at(&vec![2; free - (MIB / 2)], 0).unwrap();
        other.sync_all().unwrap();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mount.join("f"))
            .unwrap();
        file.write_all(&vec![0xEE; MIB / 4]).unwrap();
        // Behind what is written where zeros are asked for: those are to be there.
        let from = if flags.is_empty() { 0 } else { MIB as u64 / 4 };
        assert_eq!(fallocate(&file, flags, from, TOO_MUCH), Err(Errno::NOSPC));
        // There is no space for all of it: that is said, whatever could be written.
        let error = file.sync_all().expect_err("fsync of what has no space");
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{flags:?}");
        let mut seen = vec![0; MIB / 4];
        file.read_exact_at(&mut seen, 0).unwrap();
        let changed = seen.iter().position(|byte| *byte != 0xEE);
        assert!(changed.is_none(), "{flags:?}: byte {changed:?} is another");
        other.set_len(0).unwrap();
        file.write_all_at(&vec![0xEE; MIB / 4], 0).unwrap();
        file.sync_all().unwrap();
        drop(other);
        drop(file);
        drop(open);
        finish(mount, &adapter);
        drop(adapter);
        let (mount, adapter) = mounted(&image, "");
        let open = oracle::files_on_a_mount();
        let got = fs::read(mount.join("f")).unwrap();
        drop(open);
        assert!(got.len() == MIB / 4 && got.iter().all(|b| *b == 0xEE), "{flags:?}: {} bytes", got.len());
        finish(mount, &adapter);
        oracle::assert_clean(&image);
    }
}

fn collapse_first_block(file: &File) {
    let asked = private::Fallocate {
        mode: FallocateFlags::COLLAPSE_RANGE.bits(),
        length: 4096,
        ..private::Fallocate::default()
    };
    let mut bytes = [0; size_of::<private::Fallocate>()];
    bytes.copy_from_slice(asked.as_bytes());
    extant_sys::fuse::exchange::<{ private::FALLOCATE }, { size_of::<private::Fallocate>() }>(
        file, &mut bytes,
    )
    .unwrap();
}

/// With the writeback cache the size is the kernel's: an append after one that changed behind it would overwrite what is there.
#[test]
fn no_ioctl_changes_a_size_under_the_writeback_cache() {
    if !may_mount("no_ioctl_changes_a_size_under_the_writeback_cache") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let options = AdapterOptions { writeback_cache: true, ..AdapterOptions::default() };
    let (mount, adapter) = mounted_with(&image, "", options);
    adapter.set_notifier(mount.notifier().clone());
    let open = oracle::files_on_a_mount();
    fs::write(mount.join("f"), [b'A'; 16_384]).unwrap();
    let mut file = OpenOptions::new().read(true).append(true).open(mount.join("f")).unwrap();
    for mode in [FallocateFlags::INSERT_RANGE, FallocateFlags::COLLAPSE_RANGE, FallocateFlags::ZERO_RANGE] {
        let refused = private::fallocate(&file, mode.bits(), 0, 4096).map(drop).unwrap_err();
        let errno = Errno::from_io_error(&refused);
        assert_eq!(errno, Some(Errno::OPNOTSUPP), "{mode:?}");
    }
    file.write_all(&[b'D'; 4096]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    drop(open);
    finish(mount, &adapter);
    drop(adapter);
    let (mount, adapter) = mounted(&image, "");
    let open = oracle::files_on_a_mount();
    let got = fs::read(mount.join("f")).unwrap();
    drop(open);
    assert!(got == [&[b'A'; 16_384][..], &[b'D'; 4096]].concat(), "{} bytes", got.len());
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}
