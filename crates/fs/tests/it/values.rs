//! Attribute values in inodes of their own: what they are charged, and how often they are referred to.

use std::path::Path;

use extant::{Credentials, Filesystem, NewInode, QuotaKind, SetAttr, XattrSet};
use extant_testkit::env::{self, kernel_mounts};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle;

use crate::support::open_with;

const NAME: &[u8] = b"user.large";

fn clean(image: &Path) {
    let outcome = oracle::e2fsck(image);
    assert!(outcome.status == 0 && !outcome.text.contains("QUOTA WARNING"), "{outcome}");
}

fn set(fs: &Filesystem, name: &[u8], value: &[u8]) {
    let admin = Credentials::root();
    let inode = fs.lookup(&fs.root().unwrap(), name, &admin).unwrap();
    fs.set_xattr(&inode, NAME, value, XattrSet::Any, &admin).unwrap();
}

#[test]
fn values_are_charged_to_their_owner() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let variants = [
        "-t ext4 -b 1024 -O ea_inode",
        "-t ext4 -b 1024 -O ea_inode,inline_data",
        "-t ext4 -b 1024 -O ea_inode,bigalloc -C 4096",
        "-t ext4 -b 4096 -O ea_inode,quota -J size=4",
    ];
    for options in variants {
        let image = dir.join("image");
        oracle::mke2fs(&image, 32 << 20, options);
        let admin = Credentials::root();
        for round in 0..4 {
            let fs = open_with(&image, "");
            let root = fs.root().unwrap();
            if round == 0 {
                for name in [b"a", b"b", b"c"] {
                    fs.mknod(&root, name, &NewInode::file(0o644), &admin).unwrap();
                }
            }
            let before = fs.lookup(&root, b"a", &admin).unwrap().attr().blocks;
            match round {
                0 => {
                    set(&fs, b"a", &[b'x'; 5000]);
                    set(&fs, b"b", &[b'y'; 30_000]);
                    let after = fs.lookup(&root, b"a", &admin).unwrap().attr().blocks;
                    let cluster =
                        if options.contains("1024") && !options.contains("bigalloc") { 1024 } else { 4096 };
                    assert!(after - before >= 5000_u64.next_multiple_of(cluster) / 512, "{options}");
                }
                1 => {
                    set(&fs, b"a", &[b'z'; 7000]);
                    let owner = SetAttr { uid: Some(7), ..SetAttr::default() };
                    fs.set_attr(&fs.lookup(&root, b"b", &admin).unwrap(), &owner, &admin).unwrap();
                    if options.contains("quota") {
                        let usage = fs.quota(QuotaKind::User, 7).unwrap();
                        assert_eq!((usage.curspace, usage.curinodes), (32_768, 2));
                    }
                }
                2 => {
                    set(&fs, b"a", b"short");
                    fs.unlink(&root, b"b", &admin).unwrap();
                }
                _ => fs.remove_xattr(&fs.lookup(&root, b"a", &admin).unwrap(), NAME, &admin).unwrap(),
            }
            drop(root);
            fs.unmount().unwrap();
            println!("{options}: round {round}");
            clean(&image);
        }
    }
}

#[test]
fn a_value_in_a_shared_block_stays_while_somebody_has_it() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let large = vec![b'v'; 5000];
    for change in ["remove", "replace", "add", "unlink", "unlink both"] {
        let image = dir.join("image");
        oracle::mke2fs(&image, 32 << 20, "-t ext4 -b 1024 -I 128 -O ea_inode");
        let kernel = KernelMount::rw(&image);
        for name in ["a", "b"] {
            let path = kernel.path().join(name);
            std::fs::write(&path, name).unwrap();
            for (attribute, value) in [("user.large", &large[..]), ("user.small", b"small")] {
                rustix::fs::setxattr(&path, attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
            }
        }
        kernel.unmount();
        let shared = oracle::debugfs(&image, &["stat /a", "stat /b"]);
        let blocks: Vec<&str> = shared.lines().filter_map(|l| l.strip_prefix("File ACL: ")).collect();
        assert!(blocks.len() == 2 && blocks[0] == blocks[1], "the kernel shares the block: {shared}");
        let fs = open_with(&image, "");
        let (root, admin) = (fs.root().unwrap(), Credentials::root());
        let a = fs.lookup(&root, b"a", &admin).unwrap();
        match change {
            "remove" => fs.remove_xattr(&a, NAME, &admin).unwrap(),
            "replace" => fs.set_xattr(&a, NAME, &[b'w'; 6000], XattrSet::Replace, &admin).unwrap(),
            "add" => fs.set_xattr(&a, b"user.third", b"third", XattrSet::Create, &admin).unwrap(),
            _ => drop(fs.unlink(&root, b"a", &admin).unwrap()),
        }
        drop(a);
        fs.sync().unwrap();
        let b = fs.lookup(&root, b"b", &admin).unwrap();
        assert_eq!(fs.get_xattr(&b, NAME, &admin).unwrap(), large, "{change}");
        drop(b);
        if change == "unlink both" {
            drop(fs.unlink(&root, b"b", &admin).unwrap());
        }
        drop(root);
        fs.unmount().unwrap();
        println!("{change}");
        clean(&image);
        let kernel = KernelMount::ro(&image);
        if change != "unlink both" {
            let mut read = vec![0; 8192];
            let len = rustix::fs::getxattr(kernel.path().join("b"), "user.large", &mut read[..]).unwrap();
            assert_eq!(read[..len], large, "{change}");
        }
        kernel.unmount();
    }
}
