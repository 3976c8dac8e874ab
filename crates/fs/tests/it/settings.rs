//! What an image says about its own mount (`s_mount_opts`), generations that callers set, and features that come late; against
//! the kernel.

use std::fs::File;
use std::path::Path;

use extant::{
    Credentials, Error, Filesystem, FsxAttr, InodeFlags, MountOptions, NewInode, OnError, SetAttr, Setup,
};
use extant_device::OpenOptions;
use extant_testkit::env::{self, kernel_mounts};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle;

use crate::support::{open_ro, open_with};

/// Stores a list as it is; tune2fs would take its commas for its own.
fn store(image: &Path, list: &str) {
    oracle::debugfs_write(image, &[&format!("ssv mount_opts {list}")]);
}

/// The options that the kernel shows for a mount with `options`; `None` if it refuses.
fn kernel_shows(image: &Path, options: &str) -> Option<Vec<String>> {
    let mount = KernelMount::with(image, options).ok()?;
    let table = std::fs::read_to_string("/proc/mounts").unwrap();
    let at = mount.path().to_str().unwrap().to_owned();
    let line = table.lines().find(|l| l.split(' ').nth(1) == Some(&at)).expect("mounted").to_owned();
    let shown = line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect();
    mount.unmount();
    Some(shown)
}

fn try_open(image: &Path, options: &str) -> extant::Result<std::sync::Arc<Filesystem>> {
    let device = OpenOptions::new().write(true).open(image).unwrap();
    Filesystem::open(std::sync::Arc::new(device), Setup::with_options(options).unwrap())
}

/// What both say of a mount in words of /proc/mounts that are not there by default.
fn ours_shows(image: &Path, options: &str) -> Option<Vec<String>> {
    let fs = try_open(image, options).ok()?;
    let o = fs.options();
    let mut shown = Vec::new();
    if o.commit_secs != 5 {
        shown.push(format!("commit={}", o.commit_secs));
    }
    if o.stripe != 0 {
        shown.push(format!("stripe={}", o.stripe));
    }
    match o.errors {
        OnError::Continue => {}
        OnError::RemountReadOnly => shown.push("errors=remount-ro".into()),
        OnError::Panic => shown.push("errors=panic".into()),
    }
    if o.max_dir_size_kb != 0 {
        shown.push(format!("max_dir_size_kb={}", o.max_dir_size_kb));
    }
    if o.resuid != 0 {
        shown.push(format!("resuid={}", o.resuid));
    }
    if o.inode_readahead_blks != 32 {
        shown.push(format!("inode_readahead_blks={}", o.inode_readahead_blks));
    }
    drop(o);
    fs.unmount().unwrap();
    Some(shown)
}

#[test]
fn stored_options_are_applied_under_those_given() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "debugfs"]));
    let words = ["commit=", "stripe=", "errors=", "max_dir_size_kb=", "resuid=", "inode_readahead_blks="];
    let cases = [
        ("commit=30", ""),
        ("commit=30", "commit=7"),
        ("commit=30", "commit=0"),
        ("stripe=16,commit=9", ""),
        ("stripe=16,,commit=9", "stripe=8"),
        ("errors=remount-ro.max_dir_size_kb=3", "resuid=12"),
        ("resuid=7,inode_readahead_blks=8", ""),
        // One bad word, and the whole list counts for nothing.
        ("stripe=16,frobnicate,commit=9", ""),
        ("stripe=16,commit=x", "commit=8"),
        ("inode_readahead_blks=7,commit=9", ""),
        ("errors=frob,commit=9", ""),
        ("commit=9,ro", ""),
        ("commit=9,noatime", ""),
        ("commit=9,sync", ""),
        ("commit=9,lazytime", ""),
        ("commit=9,noacl", ""),
        // Refused.
        ("delalloc,data=journal", ""),
        ("data=journal", "delalloc"),
        ("data=journal,commit=9", "data=ordered"),
    ];
    let scratch = env::scratch();
    let image = scratch.join("image");
    for (stored, given) in cases {
        oracle::mke2fs(&image, 16 << 20, "-t ext4");
        store(&image, stored);
        let kernel = kernel_shows(&image, given).map(|mut shown| {
            shown.retain(|w| words.iter().any(|k| w.starts_with(k)));
            shown.sort();
            shown
        });
        let ours = ours_shows(&image, given).map(|mut shown| {
            shown.sort();
            shown
        });
        println!("`{stored}` under `{given}`: {kernel:?}");
        assert_eq!(ours, kernel, "`{stored}` under `{given}`");
    }
    // They count again at a remount, and under it.
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    store(&image, "commit=30,noauto_da_alloc");
    let fs = open_with(&image, "");
    assert!(!fs.options().auto_da_alloc);
    fs.remount(&MountOptions::parse("auto_da_alloc").unwrap()).unwrap();
    assert!(fs.options().auto_da_alloc && fs.options().commit_secs == 30);
    fs.unmount().unwrap();
}

#[test]
fn stored_options_that_would_skip_the_journal_count_for_reading_only() {
    need!(env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    store(&image, "noload,commit=9");
    let fs = open_with(&image, "");
    assert_eq!(fs.options().commit_secs, 9);
    fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &Credentials::root()).unwrap();
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
    assert!(open_ro(&image).options().given.noload);
    // `data=` takes a journal: what the superblock says is left out without one, what the caller says is refused.
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -O ^has_journal");
    store(&image, "data=journal");
    open_with(&image, "").unmount().unwrap();
    assert!(matches!(try_open(&image, "data=journal"), Err(Error::Incompatible(_))));
}

fn generation_ioctl(path: &Path, command: u32, value: u32) -> i32 {
    const SET: &str = "
import fcntl, os, struct, sys
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]), struct.pack('II', int(sys.argv[3]), 0))
except OSError as e:
    sys.exit(e.errno)
";
    let mut python = oracle::command("python3");
    python.args(["-c", SET]).arg(path).arg(command.to_string()).arg(value.to_string());
    oracle::run(&mut python).status
}

#[test]
fn generations_are_set_where_no_checksum_depends_on_them() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "debugfs", "e2fsck", "python3"]));
    let scratch = env::scratch();
    let image = scratch.join("image");
    let admin = Credentials::root();
    for (features, allowed) in [
        ("-t ext4", false),
        ("-t ext4 -O ^metadata_csum", true),
        ("-t ext4 -O ^metadata_csum,uninit_bg", true),
        ("-t ext2", true),
    ] {
        oracle::mke2fs(&image, 16 << 20, features);
        // Refused or done by the kernel, so by us.
        let kernel = KernelMount::rw(&image);
        let path = kernel.path().join("k");
        let open = oracle::files_on_a_mount();
        File::create(&path).unwrap();
        drop(open);
        let status = generation_ioctl(&path, 0x4008_6604, 0xfeed_beef);
        kernel.unmount();
        assert_eq!(status == 0, allowed, "{features}: {status}");
        assert!(allowed || status == rustix::io::Errno::NOTTY.raw_os_error());
        let fs = open_with(&image, "");
        let root = fs.root().unwrap();
        let file = fs.mknod(&root, b"f", &NewInode::file(0o666), &admin).unwrap();
        let before = file.attr();
        let done = fs.set_generation(&file, 0xdead_beef, &admin);
        let stranger = Credentials::user(1000, 1000, &[]);
        assert!(matches!(fs.set_generation(&file, 1, &stranger), Err(Error::NotPermitted)), "{features}");
        if allowed {
            done.unwrap();
            assert_eq!(file.attr().generation, 0xdead_beef);
            assert_eq!(file.generation(), before.generation, "in core it stays");
            assert!(file.attr().ctime >= before.ctime);
            assert!(matches!(fs.inode_generation(file.ino(), before.generation), Err(Error::Stale)));
            fs.inode_generation(file.ino(), 0xdead_beef).unwrap();
            // The inode is changed again with what it has in core.
            fs.set_attr(&file, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, &admin).unwrap();
        } else {
            assert!(matches!(done, Err(Error::NotSupported(_))), "{features}: {done:?}");
        }
        drop((file, root));
        fs.unmount().unwrap();
        oracle::assert_clean(&image);
        let stat = oracle::debugfs(&image, &["stat /f", "stat /k"]);
        let words: Vec<&str> = stat.split_whitespace().collect();
        let generations: Vec<&str> =
            words.windows(2).filter(|w| w[0] == "Generation:").map(|w| w[1]).collect();
        if allowed {
            assert_eq!(generations, [0xdead_beef_u32.to_string(), 0xfeed_beef_u32.to_string()], "{stat}");
        }
    }
}

fn has_features(image: &Path) -> (bool, bool) {
    let head = oracle::dumpe2fs_header(image);
    let features = &head.iter().find(|(name, _)| name == "Filesystem features").unwrap().1;
    let has = |name| features.split(' ').any(|f| f == name);
    (has("large_file"), has("ext_attr"))
}

/// `large_file` and `ext_attr` come with the first file or attribute that needs them, in every state that a crash can leave.
#[test]
fn features_come_when_they_are_first_needed() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "dumpe2fs", "e2fsck"]));
    type Change = fn(&Filesystem, &extant::InodeRef);
    let admin = Credentials::root();
    let changes: [(&str, Change, (bool, bool)); 8] = [
        ("truncate to the last byte without", |fs, f| size(fs, f, (1 << 31) - 1), (false, false)),
        ("truncate", |fs, f| size(fs, f, 1 << 31), (true, false)),
        ("write", |fs, f| write(fs, f, (1 << 31) - 1, b"xy"), (true, false)),
        ("write up to the last byte without", |fs, f| write(fs, f, (1 << 31) - 2, b"x"), (false, false)),
        ("attribute in the inode", |fs, f| attribute(fs, f, 1), (false, true)),
        ("attribute in a block", |fs, f| attribute(fs, f, 500), (false, true)),
        ("removing none", |fs, f| drop(fs.remove_xattr(f, b"user.a", &Credentials::root())), (false, false)),
        (
            "both",
            |fs, f| {
                size(fs, f, 3 << 30);
                attribute(fs, f, 1);
            },
            (true, true),
        ),
    ];
    let scratch = env::scratch();
    let (ours, state) = (scratch.join("ours"), scratch.join("state"));
    for features in [
        "-t ext4 -O ^large_file,^ext_attr,^huge_file",
        "-t ext4 -b 1024 -O ^large_file,^ext_attr,^metadata_csum",
        "-t ext3 -O ^large_file,^ext_attr",
        "-t ext2 -O ^large_file,^ext_attr",
        "-t ext2 -r 0",
    ] {
        for (what, change, expected) in &changes {
            oracle::mke2fs(&ours, 32 << 20, features);
            let fs = open_with(&ours, "");
            let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &admin).unwrap();
            fs.sync().unwrap();
            change(&fs, &file);
            fs.fsync(&file, false).unwrap();
            // As if the machine stopped here.
            std::fs::copy(&ours, &state).unwrap();
            drop(file);
            fs.unmount().unwrap();
            drop(fs);
            println!("{features}: {what}");
            assert_eq!(has_features(&ours), *expected, "{features}: {what}");
            oracle::assert_clean(&ours);
            let kernel = KernelMount::rw(&ours);
            let len = std::fs::metadata(kernel.path().join("f")).unwrap().len();
            kernel.unmount();
            assert_eq!(len >= 1 << 31, expected.0, "{features}: {what}");
            if !features.contains("ext2") {
                let fs = open_with(&state, "");
                let kept = fs.lookup(&fs.root().unwrap(), b"f", &admin).unwrap();
                assert_eq!(kept.size() >= 1 << 31, expected.0, "{features}: {what}");
                drop(kept);
                fs.unmount().unwrap();
                drop(fs);
                assert_eq!(has_features(&state), *expected, "{features}: {what}, after a crash");
                oracle::assert_clean(&state);
            }
        }
    }
}

fn size(fs: &Filesystem, file: &extant::InodeRef, size: u64) {
    fs.set_attr(file, &SetAttr { size: Some(size), ..SetAttr::default() }, &Credentials::root()).unwrap();
}

fn write(fs: &Filesystem, file: &extant::InodeRef, at: u64, bytes: &[u8]) {
    let flags = extant::WriteFlags::default();
    fs.write_at(file, at, bytes, flags, &Credentials::root()).unwrap();
}

fn attribute(fs: &Filesystem, file: &extant::InodeRef, len: usize) {
    fs.set_xattr(file, b"user.a", &vec![b'v'; len], extant::XattrSet::Any, &Credentials::root()).unwrap();
}

/// While a file stays immutable nothing else of its flags changes, as by the kernel, nor its project (which a kernel without
/// quotas does not have).
#[test]
fn flags_of_an_immutable_file() {
    need!(kernel_mounts(), env::tools(&["chattr"]));
    let dir = env::scratch();
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    oracle::mke2fs(&ours, 16 << 20, "-t ext4 -O project,quota");
    oracle::mke2fs(&theirs, 16 << 20, "-t ext4");
    let mount = KernelMount::rw(&theirs);
    let path = mount.path().join("file");
    File::create(&path).unwrap();
    let fs = open_with(&ours, "");
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    let (fixed, other) = (InodeFlags::IMMUTABLE, InodeFlags::NOATIME);
    let steps = [
        ("+i", Some((fixed, true))),
        ("+A", Some((other, true))),
        ("+i", Some((fixed, true))),
        ("project", None),
        ("-i", Some((fixed, false))),
        ("+A", Some((other, true))),
        ("project", None),
        ("+i", Some((fixed, true))),
        ("-A", Some((other, false))),
        ("-i", Some((fixed, false))),
    ];
    for (n, (word, flag)) in steps.into_iter().enumerate() {
        let mut flags = inode.attr().flags;
        let Some((flag, on)) = flag else {
            let done = fs.set_fsx_attr(&inode, FsxAttr { project: 7, ..fs.fsx_attr(&inode) }, &cred);
            let refused = done.is_err_and(|e| e.errno() == 1);
            assert_eq!(refused, flags.contains(fixed), "step {n}");
            continue;
        };
        flags.set(flag, on);
        let done = fs.set_flags(&inode, flags, &cred);
        let kernel = oracle::run(oracle::command("chattr").arg(word).arg(&path));
        assert_eq!(done.is_ok(), kernel.status == 0, "step {n}, {word}: {done:?}; {kernel}");
        done.unwrap_or_else(|e| assert_eq!(e.errno(), 1, "step {n}, {word}"));
    }
    mount.unmount();
    drop(inode);
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&ours);
}
