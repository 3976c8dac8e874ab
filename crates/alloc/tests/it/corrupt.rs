//! Damaged bitmaps and descriptors: an error that names the group, and the rest goes on.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use extant_alloc::{AllocError, AllocOptions, Allocator, Claim, ClaimRequest, Privilege};
use extant_device::{BlockDevice, OpenOptions};
use extant_format::{BgFlags, GroupDesc, GroupNr, Ino, Lblk, Pblk, Superblock};
use extant_journal::{BlockCache, Journal, JournalOptions};
use extant_testkit::sim::{Failpoint, Kind};
use extant_testkit::{SimDevice, env, need};
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

/// Changes a group's descriptor, with a right checksum.
fn change_desc(image: &Path, group: GroupNr, change: impl FnOnce(&mut GroupDesc)) {
    let sb = superblock(image);
    let (geo, csum) = (sb.geometry(), sb.csum());
    let (block, at) = geo.desc_location(group).expect("group");
    let at = (block.0 << geo.log_block_size()) + u64::from(at);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(image).expect("image");
    let mut bytes = vec![0; usize::from(geo.desc_size())];
    file.read_exact_at(&mut bytes, at).expect("desc");
    let mut desc = GroupDesc::read(group, &bytes, geo, csum).expect("desc");
    change(&mut desc);
    desc.encode(group, &mut bytes, geo.desc_size(), csum).expect("desc");
    file.write_all_at(&bytes, at).expect("desc");
}

/// What is done to a descriptor; with the inodes of a group.
type Damage = Box<dyn Fn(&mut GroupDesc, u32)>;

/// Zeroing of unused inode tables does not believe a descriptor that calls inodes in use unused.
#[test]
fn tables_with_inodes_in_use_are_not_zeroed() {
    need!(needs());
    let unused = |inodes: u32| move |desc: &mut GroupDesc, all: u32| desc.itable_unused = all - inodes;
    let uninit = |desc: &mut GroupDesc, _: u32| desc.flags.insert(BgFlags::INODE_UNINIT);
    // The eleventh is lost+found; who believes ten has the bitmap against him.
    let cases: [(&str, Damage); 4] = [
        ("INODE_UNINIT", Box::new(uninit)),
        ("none", Box::new(unused(0))),
        ("nine", Box::new(unused(9))),
        ("ten", Box::new(unused(10))),
    ];
    for (what, damage) in cases {
        let args = "-t ext4 -b 1024 -G 1 -O ^has_journal -E lazy_itable_init=1,nodiscard";
        let rig = Rig::with(args, 32 << 20, |image| {
            let all = superblock(image).geometry().inodes_per_group();
            change_desc(image, GroupNr(0), |desc| {
                desc.flags.remove(BgFlags::INODE_ZEROED);
                damage(desc, all);
            });
        });
        let geo = *rig.sb.geometry();
        let table = rig.alloc.group_desc(GroupNr(0)).expect("group").inode_table.0;
        let read = || {
            let mut bytes = vec![0; (geo.itable_blocks() * geo.block_size()) as usize];
            rig.journal.cache().device().read_at(table << geo.log_block_size(), &mut bytes).expect("table");
            bytes
        };
        let before = read();
        let (mut from, mut zeroed) = (GroupNr(0), Vec::new());
        while let Some(job) = rig.alloc.next_itable(from).expect("table") {
            let group = job.group();
            job.zero().expect("zero");
            let mut job = Some(job);
            rig.handle(|h| job.take().map(|j| j.finish(h))).expect("job").expect("finish");
            zeroed.push(group.0);
            from = GroupNr(group.0 + 1);
        }
        assert!(before == read(), "{what}: the root's table was changed");
        assert_eq!(zeroed, (1..geo.groups()).collect::<Vec<_>>(), "{what}");
        let errors = rig.errors.lock().expect("errors").clone();
        assert!(errors.len() == 1 && errors[0].contains("group 0"), "{what}: {errors:?}");
    }
}

/// A structure of one group where another one is: neither group is allocated from, and nothing of theirs is freed, since a change of
/// the one would be a change of the other.
#[test]
fn groups_that_share_a_block() {
    need!(needs());
    type Way = fn(&mut GroupDesc, &GroupDesc);
    let ways: [(&str, Way); 3] = [
        ("block bitmap", |desc, other| desc.block_bitmap = other.block_bitmap),
        ("inode bitmap", |desc, other| desc.inode_bitmap = other.block_bitmap),
        ("inode table", |desc, other| desc.inode_table = Pblk(other.block_bitmap.0 - 3)),
    ];
    for (what, share) in ways {
        let rig = Rig::with("-t ext2 -b 1024 -O flex_bg -G 1", 64 << 20, |image| {
            let other = read_desc(image, GroupNr(2));
            change_desc(image, GroupNr(4), |desc| share(desc, &other));
        });
        let errors = rig.errors.lock().expect("errors").clone();
        assert!(errors.iter().all(|e| e.contains("group 2") || e.contains("group 4")), "{what}: {errors:?}");
        assert_eq!(errors.len(), 4, "{what}: {errors:?}");
        let geo = *rig.sb.geometry();
        for group in [GroupNr(2), GroupNr(4)] {
            let first = geo.group_first_block(group);
            let claim = rig.claim(first.0 + 4000, 100).expect("other groups have space");
            assert_ne!(geo.group_of_block(claim.pblk()).map(|(g, _)| g), Some(group), "{what}");
            // Kept, without an error.
            rig.handle(|h| rig.alloc.free(h, Pblk(first.0 + 5000), 10)).expect("free");
        }
        for _ in 0..100 {
            let ino = rig.handle(|h| rig.alloc.alloc_inode(h, &request(Ino::ROOT, true))).expect("inodes");
            let group = geo.inode_location(ino).expect("inode").group;
            assert!(group != GroupNr(2) && group != GroupNr(4), "{what}: {ino}");
        }
        rig.commit();
    }
}

fn read_desc(image: &Path, group: GroupNr) -> GroupDesc {
    let mut found = None;
    change_desc(image, group, |desc| found = Some(*desc));
    found.expect("a descriptor")
}

/// An allocator over a device that can fail, and its journal.
fn on_sim(args: &str) -> (Arc<SimDevice>, Arc<BlockCache>, Superblock, Arc<Journal>, Arc<Allocator>) {
    let scratch = env::scratch();
    let image = scratch.join("image");
    extant_testkit::oracle::mke2fs(&image, 32 << 20, args);
    let device = SimDevice::from_file(&image);
    device.set_recording(false);
    let sb = superblock(&image);
    let geo = *sb.geometry();
    let cache = BlockCache::new(Arc::clone(&device) as _, geo.block_size(), geo.blocks_count(), 16 << 20);
    let options = AllocOptions::from_superblock(&sb);
    let alloc = Allocator::open(Arc::clone(&cache), Arc::clone(&device) as _, &sb, options).expect("opens");
    let quiet = JournalOptions { commit_interval: None, ..JournalOptions::default() };
    let journal = Journal::without_log(Arc::clone(&cache), quiet).expect("journal");
    (device, cache, sb, journal, alloc)
}

/// Bitmaps that left the cache are not to be had again when it comes to publishing: the blocks come from another group, and what
/// was claimed so is published without a read. With nothing left the device's error is the answer.
#[test]
fn a_group_whose_bitmap_cannot_be_read_again_is_passed_over() {
    need!(needs());
    let (device, cache, sb, journal, alloc) = on_sim("-t ext2 -b 1024");
    let geo = *sb.geometry();
    let bitmap = |group: u32| alloc.group_desc(GroupNr(group)).expect("group").block_bitmap;
    let goal = Pblk(geo.group_first_block(GroupNr(1)).0 + 100);
    let mut res = alloc.reserve(20, 0, Privilege::Reserved).expect("space");
    let request = ClaimRequest::plain(goal, Lblk(0), 1);
    let group_of = |claim: &Claim| geo.group_of_block(claim.pblk()).expect("inside").0;
    // The group's free map is in memory from now on.
    assert_eq!(group_of(&alloc.claim_held(&request, &mut res).expect("space")), GroupNr(1));
    cache.invalidate(bitmap(1), 1);
    let at = bitmap(1).0 * 1024;
    device.fail(Failpoint::all_from(Kind::Read, 0).within(at..at + 1024));
    let mut claim = alloc.claim_held(&request, &mut res).expect("other groups");
    assert_ne!(group_of(&claim), GroupNr(1));
    device.fail(Failpoint::all_from(Kind::Read, 0));
    let mut handle = journal.start(10).expect("handle");
    alloc.publish(&mut handle, &mut claim, 1).expect("nothing is read");
    handle.finish().expect("finish");
    // No other group was ever looked at, and none can be.
    let g = group_of(&claim);
    drop(claim);
    journal.commit_all().expect("commit");
    cache.invalidate(bitmap(g.0), 1);
    let error = loop {
        match alloc.claim_held(&request, &mut res) {
            Ok(claim) => assert_ne!(group_of(&claim), g, "it cannot be read"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AllocError::Journal(_)), "{error}");
}

/// Blocks that were claimed ahead are found again, each by the goal that it was meant for, and what is left over comes back.
#[test]
fn blocks_claimed_ahead_are_found_one_by_one() {
    need!(needs());
    let (device, _, sb, _, alloc) = on_sim("-t ext4 -b 1024 -O ^has_journal");
    let free = alloc.usable_clusters();
    let goal = Pblk(sb.geometry().group_first_block(GroupNr(1)).0 + 100);
    let mut res = alloc.reserve(4, 0, Privilege::Reserved).expect("space");
    alloc.claim_ahead(&ClaimRequest::plain(goal, Lblk(0), 4), &mut res).expect("space");
    device.fail(Failpoint::all_from(Kind::Read, 0));
    let first = alloc.claim_held(&ClaimRequest::plain(goal, Lblk(9), 1), &mut res).expect("the first");
    let next = Pblk(first.pblk().0 + 1);
    let second = alloc.claim_held(&ClaimRequest::plain(next, Lblk(10), 1), &mut res).expect("the second");
    assert_eq!(second.pblk(), next);
    drop((first, second, res));
    assert_eq!(alloc.usable_clusters(), free);
}

/// On a full disk a block that was claimed ahead is not lost to its owner because another block was asked for at the same place.
#[test]
fn what_was_claimed_ahead_is_found_from_elsewhere_once_the_purse_is_empty() {
    need!(needs());
    let (_, _, sb, _, alloc) = on_sim("-t ext4 -b 1024 -O ^has_journal");
    let goal = Pblk(sb.geometry().group_first_block(GroupNr(1)).0 + 100);
    let mut res = alloc.reserve(3, 0, Privilege::Reserved).expect("space");
    alloc.claim_ahead(&ClaimRequest::plain(goal, Lblk(0), 2), &mut res).expect("space");
    let rest = alloc.reserve(0, alloc.usable_clusters(), Privilege::Pool).expect("all of it");
    let claim = |goal, lblk, res: &mut _| alloc.claim_held(&ClaimRequest::plain(goal, Lblk(lblk), 1), res);
    // A new inode's own block, which is to lie where the directory's blocks are to lie.
    let own = claim(goal, 0, &mut res).expect("promised");
    let first = claim(goal, 0, &mut res).expect("promised");
    assert_eq!(res.data(), 0);
    let next = Pblk(first.pblk().0 + 1);
    // Only of groups that it may be in.
    let low = ClaimRequest::plain(Pblk(goal.0 + 50), Lblk(1), 1).below(1);
    assert!(matches!(alloc.claim_held(&low, &mut res), Err(AllocError::NoSpace { .. })));
    let second = claim(next, 1, &mut res).expect("promised");
    let mut pblks = [own.pblk(), first.pblk(), second.pblk()];
    pblks.sort_unstable();
    assert!(pblks.windows(2).all(|two| two[0] < two[1]), "{pblks:?}");
    drop(rest);
}
