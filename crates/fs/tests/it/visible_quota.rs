//! Old quota files: usage as quotacheck counts it, limits kept, the files left to themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use extant::{
    Credentials, Dqblk, Error, Filesystem, InodeFlags, InodeRef, NewInode, QuotaKind, QuotaLimits, SetAttr,
    Setup,
};
use extant_device::OpenOptions;
use extant_testkit::env::{self, Scratch, kernel_mounts};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle;

use crate::support::open_with;

fn needs() -> Result<(), String> {
    kernel_mounts().and_then(|()| env::tools(&["mke2fs", "e2fsck", "quotacheck", "repquota"]))
}

/// An image with files of several owners, and what quotacheck makes of it.
fn image(mkfs: &str, format: &str) -> (Scratch, PathBuf) {
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 32 << 20, mkfs);
    let mount = KernelMount::rw(&image);
    let open = oracle::files_on_a_mount();
    for uid in 1000..1005_u32 {
        let path = mount.path().join(uid.to_string());
        std::fs::write(&path, vec![1; 3000 * (uid as usize - 999)]).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), Some(uid + 1)).unwrap();
    }
    drop(open);
    mount.unmount();
    quotacheck(&image, format);
    (scratch, image)
}

/// Counts anew.
fn quotacheck(image: &Path, format: &str) {
    let mount = KernelMount::with(image, "usrquota,grpquota").unwrap();
    let outcome = oracle::run(oracle::command("quotacheck").args(["-cugM", "-F", format]).arg(mount.path()));
    assert!(outcome.status == 0, "{outcome}");
    mount.unmount();
}

/// What repquota reads from the files, lines of ids only.
fn reported(image: &Path, format: &str) -> Vec<String> {
    let mount = KernelMount::with(image, "usrquota,grpquota").unwrap();
    let mut lines = Vec::new();
    for kind in ["-u", "-g"] {
        let mut repquota = oracle::command("repquota");
        let text = oracle::run_ok(repquota.args([kind, "-np", "-F", format]).arg(mount.path()));
        // Those that own nothing may have an entry or not.
        let owners = text.lines().filter(|l| l.starts_with('#'));
        let something = |line: &&str| line.split_whitespace().skip(2).any(|w| w != "0");
        lines.extend(owners.filter(something).map(|line| {
            // Usage alone: space and inodes.
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{kind} {} {} {}", words[0], words[2], words[6])
        }));
    }
    mount.unmount();
    lines.sort();
    lines
}

fn options(format: &str) -> String {
    format!("usrjquota=aquota.user,grpjquota=aquota.group,jqfmt={format}")
}

fn user(uid: u32) -> Credentials {
    Credentials::user(uid, uid, &[])
}

fn open_to_all(fs: &Filesystem) -> InodeRef {
    let root = fs.root().unwrap();
    let mode = SetAttr { mode: Some(0o1777), ..SetAttr::default() };
    fs.set_attr(&root, &mode, &Credentials::root()).unwrap();
    root
}

fn write(fs: &Filesystem, file: &InodeRef, len: usize, cred: &Credentials) -> extant::Result<()> {
    fs.write_at(file, 0, &vec![7; len], extant::WriteFlags::default(), cred).map(drop)
}

/// Work of many owners.
fn work(fs: &Arc<Filesystem>, from: u32) {
    let (root, admin) = (open_to_all(fs), Credentials::root());
    for uid in from..from + 60 {
        let cred = user(uid);
        let dir = fs.mkdir(&root, format!("d{uid}").as_bytes(), 0o755, &cred).unwrap();
        let file = fs.mknod(&dir, b"f", &NewInode::file(0o644), &cred).unwrap();
        write(fs, &file, 1000 * (uid % 17) as usize, &cred).unwrap();
        if uid % 3 == 0 {
            let owner = SetAttr { uid: Some(uid + 5000), gid: Some(3), ..SetAttr::default() };
            fs.set_attr(&file, &owner, &admin).unwrap();
        }
        if uid % 5 == 0 {
            fs.unlink(&dir, b"f", &admin).unwrap();
        }
    }
}

#[test]
fn usage_is_what_quotacheck_counts() {
    need!(needs());
    for (mkfs, format) in [
        ("-t ext4", "vfsv0"),
        ("-t ext4", "vfsv1"),
        ("-t ext4 -b 4096", "vfsv1"),
        ("-t ext3", "vfsv0"),
        ("-t ext2", "vfsv0"),
        ("-t ext4 -O ea_inode,inline_data", "vfsv1"),
    ] {
        let (_scratch, image) = image(mkfs, format);
        let fs = open_with(&image, &options(format));
        let dq = fs.quota(QuotaKind::User, 1003).unwrap();
        assert_eq!(dq.curinodes, 1, "{mkfs} {format}");
        assert!(dq.curspace >= 12_000);
        work(&fs, 2000);
        fs.sync().unwrap();
        if !mkfs.contains("ext2") {
            // As if the machine stopped here.
            let state = image.with_extension("state");
            std::fs::copy(&image, &state).unwrap();
            let fs = open_with(&state, &options(format));
            fs.unmount().unwrap();
            drop(fs);
            oracle::assert_clean(&state);
            let kept = reported(&state, format);
            quotacheck(&state, format);
            assert_eq!(kept, reported(&state, format), "{mkfs} {format}, after a crash");
        }
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&image);
        // With the files' usual names, and once more over what there is.
        let fs = open_with(&image, "usrquota,grpquota");
        work(&fs, 3000);
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&image);
        let kept = reported(&image, format);
        quotacheck(&image, format);
        println!("{mkfs} {format}: {} lines", kept.len());
        assert!(kept.len() > 100);
        assert_eq!(kept, reported(&image, format), "{mkfs} {format}");
    }
}

#[test]
fn limits_of_old_quota_files_are_kept() {
    need!(needs());
    for format in ["vfsv0", "vfsv1"] {
        let (_scratch, image) = image("-t ext4", format);
        let fs = open_with(&image, &options(format));
        let (root, admin, cred) = (open_to_all(&fs), Credentials::root(), user(1500));
        let limits = QuotaLimits { space_hard: 100, inodes_hard: 3, ..QuotaLimits::default() };
        fs.set_quota(QuotaKind::User, 1500, limits, &admin).unwrap();
        let file = fs.mknod(&root, b"f", &NewInode::file(0o644), &cred).unwrap();
        write(&fs, &file, 60 << 10, &cred).unwrap();
        assert!(matches!(write(&fs, &file, 200 << 10, &cred), Err(Error::QuotaExceeded) | Ok(())));
        fs.sync().unwrap();
        assert!(fs.quota(QuotaKind::User, 1500).unwrap().curspace <= 100 << 10);
        for name in [b"g", b"h"] {
            fs.mknod(&root, name, &NewInode::file(0o644), &cred).unwrap();
        }
        let refused = fs.mknod(&root, b"i", &NewInode::file(0o644), &cred);
        assert!(matches!(refused, Err(Error::QuotaExceeded)), "{format}");
        drop((file, root));
        fs.unmount().unwrap();
        drop(fs);
        // They are there after a mount, and not in the way where nobody asks for quota.
        let fs = open_with(&image, &options(format));
        let Dqblk { bhardlimit, ihardlimit, curinodes, .. } = fs.quota(QuotaKind::User, 1500).unwrap();
        assert_eq!((bhardlimit, ihardlimit, curinodes), (100, 3, 3), "{format}");
        fs.unmount().unwrap();
        drop(fs);
        let fs = open_with(&image, "");
        assert!(fs.quota(QuotaKind::User, 1500).is_err());
        fs.mknod(&fs.root().unwrap(), b"i", &NewInode::file(0o644), &cred).unwrap();
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&image);
    }
}

#[test]
fn nobody_touches_a_quota_file_that_is_kept() {
    need!(needs());
    let (_scratch, image) = image("-t ext4", "vfsv1");
    let fs = open_with(&image, &options("vfsv1"));
    let (root, admin) = (fs.root().unwrap(), Credentials::root());
    let file = fs.lookup(&root, b"aquota.user", &admin).unwrap();
    let held = InodeFlags::IMMUTABLE | InodeFlags::NOATIME;
    assert!(file.attr().flags.contains(held));
    assert!(matches!(fs.unlink(&root, b"aquota.user", &admin), Err(Error::NotPermitted)));
    let empty = SetAttr { size: Some(0), ..SetAttr::default() };
    assert!(matches!(fs.set_attr(&file, &empty, &admin), Err(Error::NotPermitted)));
    assert!(matches!(fs.set_flags(&file, InodeFlags::empty(), &admin), Err(Error::NotPermitted)));
    // Read through its name it is what the last sync left.
    let id = 1777;
    fs.mknod(&open_to_all(&fs), b"new", &NewInode::file(0o644), &user(id)).unwrap();
    fs.sync().unwrap();
    let mut bytes = vec![0; file.size() as usize];
    fs.read_at(&file, 0, &mut bytes).unwrap();
    let entry = (1024..bytes.len() - 16).find(|&at| bytes[at..at + 4] == id.to_le_bytes());
    assert!(entry.is_some(), "the entry of id {id} is seen");
    // Read-only it is an ordinary file.
    fs.remount(&extant::MountOptions::parse(&format!("ro,{}", options("vfsv1"))).unwrap()).unwrap();
    assert!(!file.attr().flags.intersects(held));
    fs.remount(&extant::MountOptions::parse(&options("vfsv1")).unwrap()).unwrap();
    assert!(file.attr().flags.contains(held));
    drop((file, root));
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
    let fs = open_with(&image, "");
    let file = fs.lookup(&fs.root().unwrap(), b"aquota.user", &admin).unwrap();
    assert!(!file.attr().flags.intersects(held));
    drop(file);
    fs.unlink(&fs.root().unwrap(), b"aquota.user", &admin).unwrap();
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

#[test]
fn quota_files_that_cannot_be_kept_refuse_the_mount() {
    need!(needs());
    let (_scratch, image) = image("-t ext4", "vfsv0");
    let try_open = |options: &str| {
        let device = OpenOptions::new().write(true).open(&image).unwrap();
        let opened = Filesystem::open(Arc::new(device), Setup::with_options(options)?);
        opened.map(|fs| fs.unmount().unwrap())
    };
    for (options, words) in [
        ("usrjquota=aquota.user", "need `jqfmt=`"),
        ("usrjquota=aquota.user,jqfmt=vfsv1", "format vfsv0"),
        ("usrjquota=aquota.user,jqfmt=vfsold", "not supported"),
        ("usrjquota=other,jqfmt=vfsv0", "no quota file `other`"),
        ("grpjquota=1000,jqfmt=vfsv0", "magic"),
        ("grpjquota=aquota.user,jqfmt=vfsv0", "magic"),
        ("usrjquota=d/aquota.user,jqfmt=vfsv0", "root directory"),
        ("usrjquota=lost+found,jqfmt=vfsv0", "no regular file"),
    ] {
        let error = try_open(options).unwrap_err().to_string();
        assert!(error.contains(words), "{options}: {error}");
        oracle::assert_clean(&image);
    }
    for options in ["usrjquota=,jqfmt=vfsv0", "noquota,usrjquota=other", "usrjquota=aquota.user,jqfmt=vfsv0"]
    {
        try_open(options).unwrap();
    }
    std::fs::remove_file(&image).unwrap();
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    // Wanted, but there are none: quota is not kept.
    try_open("usrquota,grpquota").unwrap();
    oracle::assert_clean(&image);
}
