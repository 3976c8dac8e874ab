//! What the kernel's FUSE client takes a file to be after a call that changed it behind the kernel's back: a fallocate(2) that
//! failed half-way, a collapse.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use extant_fuse::private;
use extant_testkit::{env, oracle};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::ext4::{finish, mounted};
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
