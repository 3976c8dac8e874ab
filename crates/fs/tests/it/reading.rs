//! What the kernel wrote is read equal.

use extant_testkit::env::{kernel_mounts, scratch, seed};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::mke2fs;
use extant_testkit::rng::Rng;
use extant_testkit::script::{DirExecutor, Executor, Mix, random};
use extant_testkit::tree::Tree;

use crate::support::{COMBINATIONS, open_ro, tree_of};

/// Things that scripts do not make: many names, deep paths, long links, ACLs, large attributes.
fn decorate(root: &std::path::Path) {
    let _open = extant_testkit::oracle::files_on_a_mount();
    let many = root.join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..3000 {
        std::fs::write(many.join(format!("a file with number {n}")), format!("{n}")).unwrap();
    }
    for n in (0..3000).step_by(3) {
        std::fs::remove_file(many.join(format!("a file with number {n}"))).unwrap();
    }
    for len in [1, 59, 60, 61, 200, 900] {
        std::os::unix::fs::symlink("t".repeat(len), root.join(format!("link of {len}"))).unwrap();
    }
    let file = root.join("with attributes");
    std::fs::write(&file, vec![7; 10_000]).unwrap();
    for (name, len) in [("user.small", 10), ("user.more", 300), ("trusted.x", 100), ("user.empty", 0)] {
        // Small blocks do not hold all of them.
        let _ = rustix::fs::setxattr(&file, name, &vec![b'v'; len], rustix::fs::XattrFlags::empty());
    }
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
    ]
    .into_iter()
    .chain([16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255])
    .collect::<Vec<u8>>();
    rustix::fs::setxattr(&file, "system.posix_acl_access", &acl, rustix::fs::XattrFlags::empty()).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt as _;
    for at in [0, 70_000, 5_000_000, 40_000_000] {
        sparse.write_all_at(b"island", at).unwrap();
    }
}

#[test]
fn what_the_kernel_wrote() {
    need!(kernel_mounts());
    let seed = seed();
    println!("seed={seed}");
    for (name, args) in COMBINATIONS {
        println!("{name}");
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, args);
        let expected = {
            let mount = KernelMount::rw(&image);
            let mut executor = DirExecutor::new("kernel", mount.path());
            for op in random(&mut Rng::new(seed), 300, &Mix::default()) {
                let _ = executor.apply(&op);
            }
            decorate(mount.path());
            // SEEK_DATA does not see delayed blocks of files without extents.
            mount.sync();
            let tree = Tree::read(mount.path(), false).unwrap();
            mount.unmount();
            tree
        };
        let before = std::fs::read(&image).unwrap();
        let fs = open_ro(&image);
        expected.assert_equal(&tree_of(&fs), name);
        fs.unmount().unwrap();
        assert!(before == std::fs::read(&image).unwrap(), "{name}: reading changed the image");
    }
}
