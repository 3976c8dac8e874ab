//! Quota: usage as e2fsck counts it, limits kept.

use std::path::{Path, PathBuf};

use extant::{
    Credentials, Dqblk, Error, Filesystem, FsxAttr, InodeRef, NewInode, QuotaGrace, QuotaKind, QuotaLimits,
    SetAttr, WriteFlags, XattrSet,
};
use extant_testkit::env::{self, Scratch};
use extant_testkit::{need, oracle};

use crate::support::open_with;

const ARGS: &str = "-t ext4 -b 4096 -J size=4 -O quota,project -E quotatype=usrquota:grpquota:prjquota";

fn image() -> (Scratch, PathBuf) {
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 64 << 20, ARGS);
    (scratch, image)
}

fn user(uid: u32) -> Credentials {
    Credentials::user(uid, uid, &[])
}

fn open_to_all(fs: &Filesystem) -> InodeRef {
    let root = fs.root().expect("root");
    let mode = SetAttr { mode: Some(0o1777), ..SetAttr::default() };
    fs.set_attr(&root, &mode, &Credentials::root()).expect("chmod");
    root
}

fn usage(fs: &Filesystem, kind: QuotaKind, id: u32) -> (u64, u64) {
    let Dqblk { curspace, curinodes, .. } = fs.quota(kind, id).expect("quota");
    (curspace, curinodes)
}

fn chown(uid: u32) -> SetAttr {
    SetAttr { uid: Some(uid), gid: Some(uid), ..SetAttr::default() }
}

fn clean(image: &Path) {
    let outcome = oracle::e2fsck(image);
    assert!(outcome.status == 0 && !outcome.text.contains("QUOTA WARNING"), "{outcome}");
}

#[test]
fn usage_follows_creation_chown_project_and_removal() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let (_scratch, image) = image();
    let fs = open_with(&image, "");
    let root = open_to_all(&fs);
    let start = usage(&fs, QuotaKind::User, 0);
    let admin = Credentials::root();
    for uid in 1000..1040 {
        let dir = fs.mkdir(&root, format!("d{uid}").as_bytes(), 0o755, &user(uid)).expect("mkdir");
        for n in 0..5 {
            let name = format!("f{n}");
            fs.mknod(&dir, name.as_bytes(), &NewInode::file(0o644), &user(uid)).expect("file");
        }
        fs.symlink(&dir, b"long", &[b'x'; 200], &user(uid)).expect("symlink");
        assert_eq!(usage(&fs, QuotaKind::User, uid), (8192, 7));
        assert_eq!(usage(&fs, QuotaKind::Group, uid), (8192, 7));
    }
    let dir = fs.lookup(&root, b"d1007", &admin).expect("dir");
    fs.set_attr(&dir, &chown(5000), &admin).expect("chown");
    assert_eq!(usage(&fs, QuotaKind::User, 1007), (4096, 6));
    assert_eq!(usage(&fs, QuotaKind::User, 5000), (4096, 1));
    fs.set_fsx_attr(&dir, FsxAttr { project: 77, ..fs.fsx_attr(&dir) }, &admin).expect("project");
    assert_eq!(usage(&fs, QuotaKind::Project, 77), (4096, 1));
    let gone = fs.lookup(&root, b"d1008", &admin).expect("dir");
    for name in ["f0", "f1", "f2", "f3", "f4", "long"] {
        fs.unlink(&gone, name.as_bytes(), &admin).expect("unlink");
    }
    fs.rmdir(&root, b"d1008", &admin).expect("rmdir");
    drop(gone);
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1008), (0, 0));
    assert_eq!(usage(&fs, QuotaKind::User, 0), start);
    fs.unmount().expect("unmount");
    drop(fs);
    clean(&image);
    let fs = open_with(&image, "");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (8192, 7), "kept on disk");
    fs.unmount().expect("unmount");
}

#[test]
fn limits_count_only_with_the_mount_option_and_not_for_root() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let (_scratch, image) = image();
    let admin = Credentials::root();
    let limits = QuotaLimits { inodes_hard: 5, inodes_soft: 3, ..QuotaLimits::default() };
    for (options, enforced) in [("", false), ("usrquota", true)] {
        let fs = open_with(&image, options);
        let root = open_to_all(&fs);
        let refused = fs.set_quota(QuotaKind::User, 1000, limits, &user(1000));
        assert!(matches!(refused, Err(Error::NotPermitted)), "{refused:?}");
        fs.set_quota(QuotaKind::User, 1000, limits, &admin).expect("limits");
        let file = NewInode::file(0o644);
        let made: Vec<_> =
            (0..8).map(|n| fs.mknod(&root, format!("{options}{n}").as_bytes(), &file, &user(1000))).collect();
        let good = made.iter().filter(|r| r.is_ok()).count();
        if enforced {
            // The first round left 8 of 5.
            assert_eq!(good, 0);
            assert!(made.iter().all(|r| matches!(r, Err(Error::QuotaExceeded))));
            let by_root = fs.mknod(&root, b"root", &file, &admin).expect("root's own");
            let given = fs.set_attr(&by_root, &chown(1000), &admin);
            assert!(given.is_ok(), "root may give files away: {given:?}");
        } else {
            assert_eq!(good, 8);
        }
        fs.unmount().expect("unmount");
        drop((made, root));
        drop(fs);
        clean(&image);
    }
}

#[test]
fn space_limits_stop_directories_and_long_links() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let (_scratch, image) = image();
    let fs = open_with(&image, "usrquota,grpquota");
    let root = open_to_all(&fs);
    let limits = QuotaLimits { space_hard: 12, ..QuotaLimits::default() };
    fs.set_quota(QuotaKind::Group, 1000, limits, &Credentials::root()).expect("limits");
    for n in 0..3 {
        fs.mkdir(&root, format!("d{n}").as_bytes(), 0o755, &user(1000)).expect("within the limit");
    }
    let more = fs.mkdir(&root, b"d3", 0o755, &user(1000));
    assert!(matches!(more, Err(Error::QuotaExceeded)), "{more:?}");
    let more = fs.symlink(&root, b"l", &[b'x'; 100], &user(1000));
    assert!(matches!(more, Err(Error::QuotaExceeded)), "{more:?}");
    fs.symlink(&root, b"short", b"target", &user(1000)).expect("needs no block");
    fs.unmount().expect("unmount");
    drop(root);
    drop(fs);
    clean(&image);
}

#[test]
fn data_is_counted_when_it_is_promised_and_stops_at_the_limit() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let (_scratch, image) = image();
    let fs = open_with(&image, "usrquota");
    let root = open_to_all(&fs);
    let limits = QuotaLimits { space_hard: 200, space_soft: 100, ..QuotaLimits::default() };
    fs.set_quota(QuotaKind::User, 1000, limits, &Credentials::root()).expect("limits");
    let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &user(1000)).expect("file");
    let mut at = 0;
    let error = loop {
        match fs.write_at(&file, at, &[7; 8192], WriteFlags::default(), &user(1000)) {
            Ok((n, _)) => at += n as u64,
            Err(error) => break error,
        }
        assert!(at <= 200 << 10, "past the limit");
    };
    assert!(matches!(error, Error::QuotaExceeded), "{error}");
    assert_eq!(at, 200 << 10, "to the last block, not yet written back");
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (200 << 10, 1));
    let entry = fs.quota(QuotaKind::User, 1000).expect("quota");
    assert!(entry.btime > 0, "the grace time runs");
    fs.write_at(&file, 0, &[8; 8192], WriteFlags::default(), &user(1000)).expect("nothing new");
    let size = SetAttr { size: Some(40 << 10), ..SetAttr::default() };
    fs.set_attr(&file, &size, &user(1000)).expect("truncate");
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (40 << 10, 1));
    assert_eq!(fs.quota(QuotaKind::User, 1000).expect("quota").btime, 0, "it stopped");
    fs.unlink(&root, b"f", &user(1000)).expect("unlink");
    drop(file);
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (0, 0));
    fs.unmount().expect("unmount");
    drop(root);
    drop(fs);
    clean(&image);
}

/// With bigalloc what is promised is clusters, as what is charged: one for all the delayed blocks in it, none where the file has it.
#[test]
fn delayed_blocks_are_promised_their_clusters() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 64 << 20, &(ARGS.replace("project ", "project,bigalloc ") + " -C 16384"));
    let fs = open_with(&image, "usrquota");
    let (root, me) = (open_to_all(&fs), user(1000));
    let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &me).expect("file");
    let write = |block: u64| fs.write_at(&file, block << 12, &[7; 4096], WriteFlags::default(), &me);
    limit(&fs, 32, 0);
    write(1).expect("a cluster");
    write(10).expect("another one");
    exceeded(write(12));
    write(8).expect("in the same");
    write(2).expect("in the same");
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (32 << 10, 1));
    write(0).expect("in a cluster that it has");
    exceeded(write(12));
    let cut = |blocks: u64| {
        let size = SetAttr { size: Some(blocks << 12), ..SetAttr::default() };
        fs.set_attr(&file, &size, &me).expect("truncate");
    };
    write(11).expect("in a cluster that it has");
    cut(4);
    write(12).expect("there is room again");
    cut(4);
    write(4).expect("what was delayed and dropped is promised no longer");
    exceeded(write(12));
    fs.sync().expect("sync");
    exceeded(write(12));
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (32 << 10, 1));
    fs.unlink(&root, b"f", &me).expect("unlink");
    drop(file);
    fs.sync().expect("sync");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (0, 0));
    let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &me).expect("file");
    let write = |block: u64| fs.write_at(&file, block << 12, &[7; 4096], WriteFlags::default(), &me);
    write(1).expect("nothing is promised any more");
    write(4).expect("nor the second");
    drop((file, root));
    fs.unmount().expect("unmount");
    drop(fs);
    clean(&image);
}

/// Limits, in KiB and inodes, of user 1000.
fn limit(fs: &Filesystem, space_hard: u64, inodes_hard: u64) {
    let limits = QuotaLimits { space_hard, inodes_hard, ..QuotaLimits::default() };
    fs.set_quota(QuotaKind::User, 1000, limits, &Credentials::root()).expect("limits");
}

/// An access list as setxattr(2) takes it, too long for an inode: entries of `users` users beside the owner, group, mask and others.
fn long_acl(users: u32) -> Vec<u8> {
    let entry =
        |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7_u16.to_le_bytes(), &id.to_le_bytes()].concat();
    let mut acl = 2_u32.to_le_bytes().to_vec();
    acl.extend(entry(1, u32::MAX));
    (0..users).for_each(|id| acl.extend(entry(2, 5000 + id)));
    [4, 0x10, 0x20].into_iter().for_each(|tag| acl.extend(entry(tag, u32::MAX)));
    acl
}

fn exceeded<T: std::fmt::Debug>(what: extant::Result<T>) {
    assert!(matches!(what, Err(Error::QuotaExceeded)), "{what:?}");
}

/// A block for attributes is asked of the owner's quota before it is taken, shared or not; the caller with `CAP_SYS_RESOURCE` passes, and
/// what needs no block is not refused.
#[test]
fn space_limits_stop_blocks_for_attributes() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    for args in [ARGS.to_owned(), ARGS.replace("project ", "project,bigalloc ") + " -C 16384"] {
        let scratch = env::scratch();
        let image = scratch.join("image");
        oracle::mke2fs(&image, 64 << 20, &args);
        let fs = open_with(&image, "usrquota,acl");
        let unit = fs.geometry().cluster_size() >> 10;
        let (root, admin, me) = (open_to_all(&fs), Credentials::root(), user(1000));
        let [one, two, three] = [&b"1"[..], b"2", b"3"]
            .map(|name| fs.mknod(&root, name, &NewInode::file(0o644), &me).expect("file"));
        let default = fs.mkdir(&root, b"default", 0o777, &admin).expect("directory");
        let open = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        fs.set_attr(&default, &open, &admin).expect("chmod");
        fs.set_xattr(&default, b"system.posix_acl_default", &long_acl(30), XattrSet::Any, &admin).unwrap();
        limit(&fs, unit, 0);
        let set = |file: &InodeRef, byte: u8, len: usize, cred: &Credentials| {
            fs.set_xattr(file, b"user.long", &vec![byte; len], XattrSet::Any, cred)
        };
        set(&one, 1, 2000, &me).expect("up to the limit");
        set(&one, 2, 2100, &me).expect("in the block that there is");
        exceeded(set(&two, 3, 2000, &me));
        exceeded(set(&two, 2, 2100, &me));
        set(&two, 4, 20, &me).expect("in the inode");
        fs.remove_xattr(&two, b"user.long", &me).expect("removed");
        exceeded(fs.set_xattr(&two, b"system.posix_acl_access", &long_acl(30), XattrSet::Any, &me));
        let mode = two.attr().mode;
        assert_eq!(mode & 0o777, 0o644, "a list that is refused changes no permissions");
        exceeded(fs.mknod(&default, b"inherits", &NewInode::file(0o644), &me));
        exceeded(fs.tmpfile(&default, 0o644, &me));
        assert_eq!(usage(&fs, QuotaKind::User, 1000), (unit << 10, 3));
        set(&three, 5, 2000, &admin).expect("root may");
        assert_eq!(usage(&fs, QuotaKind::User, 1000), ((2 * unit) << 10, 3));
        fs.remove_xattr(&three, b"user.long", &me).expect("removed");
        fs.remove_xattr(&one, b"user.long", &me).expect("removed");
        fs.mknod(&default, b"inherits", &NewInode::file(0o644), &me).expect("there is room again");
        assert_eq!(usage(&fs, QuotaKind::User, 1000), (unit << 10, 4));
        drop((one, two, three, default, root));
        fs.unmount().expect("unmount");
        drop(fs);
        clean(&image);
    }
}

/// A value in an inode of its own is asked for as what it is charged: its clusters and an inode, also where it is shorter than a block
/// and where another file has the same.
#[test]
fn limits_stop_values_in_inodes_of_their_own() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 64 << 20, &ARGS.replace("quota,", "quota,ea_inode,"));
    let fs = open_with(&image, "usrquota");
    let (root, me) = (open_to_all(&fs), user(1000));
    let [one, two] =
        [&b"1"[..], b"2"].map(|name| fs.mknod(&root, name, &NewInode::file(0o644), &me).expect("file"));
    let set = |file: &InodeRef, name: &[u8], len: usize| {
        fs.set_xattr(file, name, &vec![b'v'; len], XattrSet::Any, &me)
    };
    limit(&fs, 4 + 4, 0);
    set(&one, b"user.a", 3000).expect("in a block");
    set(&one, b"user.b", 3000).expect("in an inode");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (8 << 10, 3));
    exceeded(set(&one, b"user.c", 3000));
    exceeded(set(&two, b"user.b", 10_000));
    limit(&fs, 0, 3);
    exceeded(set(&one, b"user.c", 3000));
    set(&two, b"user.a", 3000).expect("a block is no inode");
    exceeded(set(&two, b"user.b", 3000));
    set(&one, b"user.b", 2900).expect("one for another");
    assert_eq!(usage(&fs, QuotaKind::User, 1000), (12 << 10, 3));
    drop((one, two, root));
    fs.unmount().expect("unmount");
    drop(fs);
    clean(&image);
}

/// Entries come while those beside them in the same block change: no change is lost.
#[test]
fn new_entries_beside_changed_ones() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let (_scratch, image) = image();
    let fs = open_with(&image, "");
    let root = open_to_all(&fs);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (fs, root) = (&fs, &root);
            scope.spawn(move || {
                let old = 500 + thread;
                for n in 0..150 {
                    let name = format!("{thread}-{n}");
                    let uid = if thread < 2 { 1000 + 1000 * thread + n } else { old };
                    let file = fs.mknod(root, name.as_bytes(), &NewInode::file(0o644), &user(uid)).unwrap();
                    if n % 2 == 0 {
                        fs.unlink(root, name.as_bytes(), &Credentials::root()).unwrap();
                    }
                    drop(file);
                }
            });
        }
    });
    drop(root);
    fs.unmount().unwrap();
    drop(fs);
    clean(&image);
}

/// What is listed is what each was given, in order, from any id on.
#[test]
fn ids_are_listed_in_order() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let (_scratch, image) = image();
    let fs = open_with(&image, "");
    let admin = Credentials::root();
    let ids = [1, 13, 255, 256, 70_000, 1 << 24, u32::MAX];
    for id in ids {
        let limits = QuotaLimits { inodes_hard: u64::from(id), ..QuotaLimits::default() };
        fs.set_quota(QuotaKind::Group, id, limits, &admin).expect("limits");
    }
    let listed = |from, most| -> Vec<u32> {
        let list = fs.quota_list(QuotaKind::Group, from, most).expect("list");
        assert!(list.iter().all(|(id, dq)| dq.ihardlimit == u64::from(*id)));
        list.into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(listed(0, usize::MAX), [&[0], &ids[..]].concat());
    assert_eq!(listed(0, 3), [0, 1, 13]);
    assert_eq!(listed(14, 2), [255, 256]);
    assert_eq!(listed(257, 9), [70_000, 1 << 24, u32::MAX]);
    assert_eq!(listed(u32::MAX, 9), [u32::MAX]);
    let grace = QuotaGrace { space: 5, inodes: 6 };
    let refused = fs.set_quota_grace(QuotaKind::Group, grace, &user(5));
    assert!(matches!(refused, Err(Error::NotPermitted)), "{refused:?}");
    fs.set_quota_grace(QuotaKind::Group, grace, &admin).expect("grace");
    fs.unmount().expect("unmount");
    drop(fs);
    clean(&image);
    let fs = open_with(&image, "ro");
    assert_eq!(
        fs.quota_grace(QuotaKind::Group).expect("grace"),
        grace,
        "kept on disk, read without being kept"
    );
    assert_eq!(fs.quota_list(QuotaKind::Group, 0, 2).expect("list").len(), 2);
    assert_eq!(fs.quota_on_record(), [QuotaKind::User, QuotaKind::Group, QuotaKind::Project]);
}
