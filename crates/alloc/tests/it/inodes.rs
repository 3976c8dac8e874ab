//! Inode numbers: where they come from, and the bookkeeping.

use std::collections::BTreeSet;

use extant_alloc::{AllocError, InodeRequest};
use extant_format::{BgFlags, GroupNr, Ino};
use extant_testkit::{env, need, oracle};

use crate::rig::Rig;

fn needs() -> Result<(), String> {
    env::tools(&["mke2fs", "e2fsck", "debugfs"])
}

pub(crate) fn request(parent: Ino, is_dir: bool) -> InodeRequest {
    InodeRequest { parent, is_dir, top_level: is_dir && parent == Ino::ROOT, spread: 0 }
}

fn take(rig: &Rig, parent: Ino, is_dir: bool) -> Ino {
    rig.handle(|h| rig.alloc.alloc_inode(h, &request(parent, is_dir))).expect("inode")
}

fn group(rig: &Rig, ino: Ino) -> u32 {
    rig.sb.geometry().inode_location(ino).expect("inode").group.0
}

#[test]
fn all_inodes_can_be_had_once_and_given_back() {
    need!(needs());
    for args in ["-t ext4 -b 1024 -O ^has_journal -N 600", "-t ext2 -b 1024 -N 600"] {
        let mut rig = Rig::new(args, 32 << 20);
        let before = rig.alloc.free_inode_count();
        let mut seen = BTreeSet::new();
        for n in 0..before {
            let ino = take(&rig, Ino::ROOT, n % 7 == 0);
            assert!(ino >= rig.sb.geometry().first_ino());
            assert!(seen.insert(ino), "{ino} twice");
        }
        let full = rig.handle(|h| rig.alloc.alloc_inode(h, &request(Ino::ROOT, false)));
        assert!(matches!(full, Err(AllocError::NoInodes)), "{full:?}");
        for ino in &seen {
            assert!(rig.alloc.inode_in_use(*ino).expect("bitmap"));
        }
        // Which of them were directories is known by order of allocation only; free them as files, then the counts of
        // directories are wrong on purpose, so directories go first.
        let dirs: u32 = (0..rig.sb.geometry().groups())
            .map(|g| rig.alloc.group_desc(GroupNr(g)).expect("group").used_dirs)
            .sum();
        assert_eq!(u64::from(dirs), 2 + before.div_ceil(7));
        for ino in &seen {
            let g = GroupNr(group(&rig, *ino));
            let left = rig.alloc.group_desc(g).expect("group").used_dirs;
            let keep = if g.0 == 0 { 2 } else { 0 };
            rig.handle(|h| rig.alloc.free_inode(h, *ino, left > keep)).expect("free");
        }
        assert_eq!(rig.alloc.free_inode_count(), before);
        rig.close();
        oracle::assert_clean(&rig.image);
    }
}

#[test]
fn freeing_a_reserved_inode_is_an_error_and_freeing_twice_is_reported() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 1024 -O ^has_journal", 32 << 20);
    let ino = take(&rig, Ino::ROOT, false);
    rig.handle(|h| rig.alloc.free_inode(h, ino, false)).expect("free");
    // The inode's record is gone already: the operation goes on.
    rig.handle(|h| rig.alloc.free_inode(h, ino, false)).expect("reported");
    assert_eq!(rig.errors.lock().expect("errors").len(), 1);
    for ino in [Ino(0), Ino(2), Ino(10), Ino(u32::MAX)] {
        let result = rig.handle(|h| rig.alloc.free_inode(h, ino, false));
        assert!(matches!(result, Err(AllocError::NotInode { .. })), "{result:?}");
    }
}

#[test]
fn files_stay_with_their_directory_and_top_directories_spread() {
    need!(needs());
    // Flexible groups of one: every group is a place of its own.
    let rig = Rig::new("-t ext4 -b 1024 -G 1 -O ^has_journal", 64 << 20);
    let dirs: Vec<Ino> = (0..8).map(|_| take(&rig, Ino::ROOT, true)).collect();
    let groups: BTreeSet<u32> = dirs.iter().map(|d| group(&rig, *d)).collect();
    // Groups with backups of the superblock have fewer free blocks than the average and stay out.
    assert!(groups.len() >= 3, "8 directories in groups {groups:?}");
    for dir in &dirs {
        for _ in 0..5 {
            assert_eq!(group(&rig, take(&rig, *dir, false)), group(&rig, *dir));
        }
        assert_eq!(group(&rig, take(&rig, *dir, true)), group(&rig, *dir), "a subdirectory stays near");
    }
}

#[test]
fn flags_and_unused_counts_follow() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 1024 -G 1 -O ^has_journal", 64 << 20);
    let geo = *rig.sb.geometry();
    let fresh = GroupNr(5);
    let before = rig.alloc.group_desc(fresh).expect("group");
    assert!(before.flags.contains(BgFlags::INODE_UNINIT));
    let parent = geo.ino_of(fresh, 0);
    let garbage = vec![0xEE; 1024];
    rig.journal.cache().device().write_at(before.inode_table.0 * 1024, &garbage).expect("write");
    let ino = take(&rig, parent, false);
    assert_eq!(ino, parent, "the group's first inode");
    let table = rig.journal.cache().read(before.inode_table).expect("table");
    assert!(table.with(|bytes| bytes.iter().all(|b| *b == 0)), "made, not read");
    let desc = rig.alloc.group_desc(fresh).expect("group");
    assert!(!desc.flags.contains(BgFlags::INODE_UNINIT));
    assert_eq!(desc.itable_unused, geo.inodes_per_group() - 1);
    assert_eq!(desc.free_inodes, before.free_inodes - 1);
    rig.handle(|h| h.modify(&table, |bytes| bytes[0] = 1)).expect("record");
    take(&rig, parent, false);
    assert_eq!(table.with(|bytes| bytes[0]), 1, "another inode's record stays");
}

#[test]
fn lazy_tables_are_zeroed_while_inodes_are_handed_out() {
    need!(needs());
    let mut rig = Rig::new("-t ext4 -b 1024 -G 1 -O ^has_journal -E lazy_itable_init=1,nodiscard", 64 << 20);
    let geo = *rig.sb.geometry();
    let mut given = Vec::new();
    let mut from = GroupNr(0);
    let mut zeroed = 0;
    while let Some(job) = rig.alloc.next_itable(from).expect("table") {
        let group = job.group();
        let parent = geo.ino_of(group, 0);
        given.push(take(&rig, parent, false));
        job.zero().expect("zero");
        let mut job = Some(job);
        rig.handle(|h| job.take().map(|j| j.finish(h))).expect("job").expect("finish");
        given.push(take(&rig, parent, false));
        from = GroupNr(group.0 + 1);
        zeroed += 1;
    }
    assert_eq!(zeroed, geo.groups(), "every group once");
    assert!(rig.alloc.next_itable(GroupNr(0)).expect("table").is_none());
    assert!(given.iter().collect::<BTreeSet<_>>().len() == given.len());
    for ino in given {
        rig.handle(|h| rig.alloc.free_inode(h, ino, false)).expect("free");
    }
    rig.close();
    oracle::assert_clean(&rig.image);
}
