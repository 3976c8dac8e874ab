//! Damaged bitmaps and descriptors: an error that names the group, and the rest goes on.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use extant_alloc::{AllocError, AllocOptions, Allocator};
use extant_device::{BlockDevice, OpenOptions};
use extant_format::{GroupNr, Ino, Superblock};
use extant_journal::BlockCache;
use extant_testkit::{env, need};
use std::sync::Arc;

use crate::inodes::request;
use crate::rig::Rig;

fn needs() -> Result<(), String> {
    env::tools(&["mke2fs", "e2fsck", "debugfs"])
}

fn flip(image: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(image).expect("image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("byte");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("byte");
}

fn superblock(image: &Path) -> Superblock {
    let mut bytes = [0; 1024];
    std::fs::File::open(image).expect("image").read_exact_at(&mut bytes, 1024).expect("superblock");
    Superblock::read(&bytes).expect("superblock")
}

/// Byte offset of a group's bitmap, by its descriptor.
fn bitmap_offset(image: &Path, group: u32, inodes: bool) -> u64 {
    let sb = superblock(image);
    let (block, at) = sb.geometry().desc_location(GroupNr(group)).expect("group");
    let file = std::fs::File::open(image).expect("image");
    let mut desc = [0; 64];
    file.read_exact_at(&mut desc, (block.0 << sb.geometry().log_block_size()) + u64::from(at)).expect("desc");
    let field = if inodes { 4 } else { 0 };
    let pblk = u32::from_le_bytes([desc[field], desc[field + 1], desc[field + 2], desc[field + 3]]);
    u64::from(pblk) << sb.geometry().log_block_size()
}

fn damaged_block_bitmap(args: &str) {
    let rig = Rig::with(args, 32 << 20, |image| flip(image, bitmap_offset(image, 0, false) + 1000));
    let free = rig.alloc.usable_clusters();
    let lost = u64::from(rig.alloc.group_desc(GroupNr(0)).expect("group").free_clusters);
    let claim = rig.claim(3000, 10).expect("other groups have space");
    assert!(claim.pblk().0 > 8192, "not from the damaged group: {claim:?}");
    let errors = rig.errors.lock().expect("errors").clone();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("group 0"), "{errors:?}");
    drop(claim);
    assert_eq!(rig.alloc.usable_clusters(), free - lost);
}

#[test]
fn block_bitmap_with_bad_checksum() {
    need!(needs());
    damaged_block_bitmap("-t ext4 -b 1024 -O ^has_journal");
}

#[test]
fn block_bitmap_that_contradicts_its_count() {
    need!(needs());
    damaged_block_bitmap("-t ext2 -b 1024");
}

#[test]
fn own_blocks_called_free() {
    need!(needs());
    let rig = Rig::with("-t ext2 -b 1024", 32 << 20, |image| flip(image, bitmap_offset(image, 0, false)));
    assert!(rig.claim(3000, 10).expect("space").pblk().0 > 8192);
    assert_eq!(rig.errors.lock().expect("errors").len(), 1);
}

fn damaged_inode_bitmap(args: &str) {
    let rig = Rig::with(args, 32 << 20, |image| flip(image, bitmap_offset(image, 0, true) + 20));
    let ino = rig.handle(|h| rig.alloc.alloc_inode(h, &request(Ino::ROOT, false))).expect("other groups");
    let location = rig.sb.geometry().inode_location(ino).expect("inode");
    assert_ne!(location.group, GroupNr(0));
    assert_eq!(rig.errors.lock().expect("errors").len(), 1);
}

#[test]
fn inode_bitmap_with_bad_checksum() {
    need!(needs());
    damaged_inode_bitmap("-t ext4 -b 1024 -O ^has_journal");
}

#[test]
fn inode_bitmap_that_contradicts_its_count() {
    need!(needs());
    damaged_inode_bitmap("-t ext2 -b 1024");
}

#[test]
fn descriptor_with_bad_checksum_refuses_to_open() {
    need!(needs());
    let scratch = env::scratch();
    let image = scratch.join("image");
    extant_testkit::oracle::mke2fs(&image, 32 << 20, "-t ext4 -b 1024 -O ^has_journal");
    flip(&image, 2048 + 64 + 12);
    let sb = superblock(&image);
    let device: Arc<dyn BlockDevice> = Arc::new(OpenOptions::new().open(&image).expect("image"));
    let cache = BlockCache::new(Arc::clone(&device), 1024, sb.geometry().blocks_count(), 1 << 20);
    let error = Allocator::open(cache, device, &sb, AllocOptions::from_superblock(&sb)).expect_err("refused");
    assert!(matches!(error, AllocError::Format(_)), "{error}");
    assert!(error.to_string().contains("group 1"), "{error}");
}
