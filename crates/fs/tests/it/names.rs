//! Namespace changes: the library does what the kernel does, and leaves images that e2fsck and the kernel accept.

use extant::{Credentials, NewInode};
use extant_testkit::env::{kernel_mounts, scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::rng::Rng;
use extant_testkit::script::{DirExecutor, Mix, Op, random, run_all};
use extant_testkit::tree::Tree;

use crate::support::{COMBINATIONS, LibExecutor, names, open_ro, open_rw, tree_of};

/// Operations that need no file content.
fn of_names(op: &Op) -> bool {
    !matches!(
        op,
        Op::Write { .. }
            | Op::Append { .. }
            | Op::Fallocate { .. }
            | Op::Punch { .. }
            | Op::Zero { .. }
            | Op::Collapse { .. }
            | Op::Insert { .. }
            | Op::Truncate { .. }
            | Op::Fdatasync { .. }
    )
}

#[test]
fn scripts_as_the_kernel() {
    need!(kernel_mounts());
    let seed = seed();
    println!("seed={seed}");
    for (name, args) in COMBINATIONS {
        println!("{name}");
        let dir = scratch();
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        mke2fs(&ours, 32 << 20, args);
        mke2fs(&theirs, 32 << 20, args);
        let mount = KernelMount::rw(&theirs);
        let mix = Mix { names: 75, ..Mix::default() };
        let ops: Vec<Op> = random(&mut Rng::new(seed), 600, &mix).into_iter().filter(of_names).collect();
        let mut kernel = DirExecutor::new("kernel", mount.path());
        let mut lib = LibExecutor::new(open_rw(&ours));
        run_all(&ops, &mut [&mut kernel, &mut lib]);
        lib.fs.unmount().unwrap();
        drop(lib);
        assert_clean(&ours);
        let kernel_tree = Tree::read(mount.path(), false).unwrap();
        mount.unmount();
        let again = KernelMount::ro(&ours);
        let mut ours_tree = Tree::read(again.path(), false).unwrap();
        for (path, node) in &mut ours_tree.nodes {
            // Made at different times.
            node.mtime = kernel_tree.nodes.get(path).and_then(|n| n.mtime);
        }
        kernel_tree.assert_equal(&ours_tree, name);
    }
}

#[test]
fn many_names_in_one_directory() {
    need!(kernel_mounts());
    for (name, args) in [
        ("4k", "-t ext4"),
        ("1k", "-t ext4 -b 1024 -O ^metadata_csum"),
        ("1k large_dir", "-t ext4 -b 1024 -O large_dir"),
        ("no htree", "-t ext4 -O ^dir_index"),
        ("no extents", "-t ext4 -b 1024 -O ^extent,^64bit"),
        ("inline", "-t ext4 -O inline_data"),
        ("bigalloc", "-t ext4 -O bigalloc"),
    ] {
        println!("{name}");
        let count = if args.contains("dir_index") {
            2000
        } else if args.contains("bigalloc") {
            8000
        } else {
            20_000
        };
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 512 << 20, args);
        let fs = open_rw(&image);
        let cred = Credentials::root();
        let many = fs.mkdir(&fs.root().unwrap(), b"many", 0o755, &cred).unwrap();
        for n in 0..count {
            fs.mknod(&many, format!("name {n}").as_bytes(), &NewInode::file(0o644), &cred).unwrap();
        }
        for n in (0..count).step_by(7) {
            fs.unlink(&many, format!("name {n}").as_bytes(), &cred).unwrap();
        }
        let mut listed = names(&fs, &many);
        listed.sort();
        let mut expected: Vec<_> =
            (0..count).filter(|n| n % 7 != 0).map(|n| format!("name {n}").into_bytes()).collect();
        expected.sort();
        assert_eq!(listed, expected, "{name}");
        drop(many);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let mount = KernelMount::ro(&image);
        let theirs = Tree::read(mount.path(), false).unwrap();
        mount.unmount();
        let fs = open_ro(&image);
        theirs.assert_equal(&tree_of(&fs), name);
    }
}

/// Files without a name that somebody still refers to are gone after an unmount, and leave nothing behind.
#[test]
fn unmount_with_open_files_that_are_gone() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    for args in ["-t ext4", "-t ext4 -O orphan_file", "-t ext2"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, args);
        let fs = open_rw(&image);
        let cred = Credentials::root();
        let root = fs.root().unwrap();
        let file = fs.mknod(&root, b"file", &NewInode::file(0o644), &cred).unwrap();
        fs.unlink(&root, b"file", &cred).unwrap();
        let nameless = fs.tmpfile(&root, 0o600, &cred).unwrap();
        fs.unmount().unwrap();
        assert_clean(&image);
        assert!(matches!(
            fs.set_attr(&file, &extant::SetAttr::default(), &cred),
            Err(extant::Error::Shutdown)
        ));
        drop((file, nameless));
    }
}

fn remount(fs: &extant::Filesystem, list: &str) -> extant::Result<()> {
    fs.remount(&extant::MountOptions::parse(list).unwrap())
}

/// What was read of an image that somebody else changes does not hold any more: it is not written to.
#[test]
fn an_image_that_changed_meanwhile_stays_read_only() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    for (first, args) in
        [("ro", "-t ext4"), ("rw", "-t ext4"), ("rw", "-t ext4 -O ^has_journal"), ("ro", "-t ext2")]
    {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, args);
        let fs = crate::support::open_with(&image, first);
        if first == "rw" {
            remount(&fs, "ro").unwrap();
        }
        extant_testkit::oracle::debugfs_write(&image, &["mkdir /other"]);
        let before = std::fs::read(&image).unwrap();
        for _ in 0..2 {
            let refused = remount(&fs, "rw,noatime").unwrap_err();
            assert!(refused.to_string().contains("mount it anew"), "{args}: {refused}");
            assert!(fs.is_read_only());
            assert_ne!(fs.options().given.atime, extant::MountOptions::parse("noatime").unwrap().atime);
        }
        fs.unmount().unwrap();
        drop(fs);
        assert!(before == std::fs::read(&image).unwrap(), "{args}: a refused remount changed the image");
        assert_clean(&image);
    }
}

/// A first remount for writing that fails half-way leaves the image to recovery, and is the last.
#[test]
fn a_remount_that_fails_half_way_is_the_last() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    for args in ["-t ext4", "-t ext4 -O mmp -E mmp_update_interval=1"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, args);
        let fs = crate::support::open_with(&image, "ro");
        let failed = remount(&fs, "rw,usrjquota=missing,jqfmt=vfsv1").unwrap_err();
        assert!(failed.to_string().contains("missing"), "{failed}");
        assert!(fs.options().given.quota.user_file.is_none(), "the options are the old ones");
        let before = std::fs::read(&image).unwrap();
        let refused = remount(&fs, "rw").unwrap_err();
        assert!(refused.to_string().contains("mount it anew"), "{refused}");
        let new = NewInode::file(0o644);
        let root = fs.root().unwrap();
        assert!(matches!(fs.mknod(&root, b"a", &new, &Credentials::root()), Err(extant::Error::ReadOnly)));
        drop(root);
        fs.unmount().unwrap();
        drop(fs);
        assert!(before == std::fs::read(&image).unwrap(), "{args}: it was written to after that");
        crate::support::open_with(&image, "rw").unmount().unwrap();
        assert_clean(&image);
    }
}

/// A frozen filesystem is not remounted, and is unmounted whatever waits for its thaw.
#[test]
fn a_frozen_filesystem() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    let cred = Credentials::root();
    for frozen_as in ["rw", "ro"] {
        let fs = crate::support::open_with(&image, frozen_as);
        fs.freeze(&cred).unwrap();
        for options in ["ro", "rw", "rw,noatime"] {
            let refused = remount(&fs, options);
            assert!(matches!(refused, Err(extant::Error::Busy)), "{frozen_as}, {options}: {refused:?}");
        }
        assert!(matches!(fs.freeze(&cred), Err(extant::Error::Busy)));
        assert_clean(&image);
        fs.thaw(&cred).unwrap();
        assert!(matches!(fs.thaw(&cred), Err(extant::Error::Invalid(_))));
        remount(&fs, "rw").unwrap();
        let root = fs.root().unwrap();
        let nameless = fs.mknod(&root, b"nameless", &NewInode::file(0o644), &cred).unwrap();
        fs.unlink(&root, b"nameless", &cred).unwrap();
        fs.freeze(&cred).unwrap();
        // Its eviction waits for the thaw.
        drop(nameless);
        drop(root);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}

/// A read-only mount changes nothing, and can turn writable and back.
#[test]
fn remount_both_ways() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck"]));
    for args in ["-t ext4", "-t ext4 -O orphan_file", "-t ext4 -O ^has_journal"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, args);
        let before = std::fs::read(&image).unwrap();
        let fs = crate::support::open_with(&image, "ro");
        let cred = Credentials::root();
        let root = fs.root().unwrap();
        let new = NewInode::file(0o644);
        assert!(matches!(fs.mknod(&root, b"a", &new, &cred), Err(extant::Error::ReadOnly)));
        assert!(before == std::fs::read(&image).unwrap(), "{args}: reading changed the image");
        let options = |list: &str| extant::MountOptions::parse(list).unwrap();
        for name in [&b"a"[..], b"b"] {
            fs.remount(&options("rw")).unwrap();
            fs.mknod(&root, name, &new, &cred).unwrap();
            fs.remount(&options("ro")).unwrap();
            assert!(matches!(fs.mknod(&root, b"c", &new, &cred), Err(extant::Error::ReadOnly)));
            assert_clean(&image);
        }
        drop(root);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let fs = open_ro(&image);
        assert_eq!(names(&fs, &fs.root().unwrap()).len(), 3, "{args}");
    }
}
