use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;

use extant_testkit::kernel::KernelMount;
use extant_testkit::tree::Tree;
use extant_testkit::{env, need, oracle, scratch};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};

use crate::run::{extant, ok};

/// A tree on the host with one of each.
fn fill(top: &Path) {
    fs::create_dir_all(top.join("dir/below")).unwrap();
    fs::write(top.join("small"), "small").unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
    fs::write(top.join("dir/large"), large).unwrap();
    let sparse = fs::File::create(top.join("dir/sparse")).unwrap();
    sparse.set_len(2 << 30).unwrap();
    sparse.write_all_at(b"here", 1 << 30).unwrap();
    fs::hard_link(top.join("small"), top.join("dir/below/hard")).unwrap();
    symlink("../small", top.join("dir/link")).unwrap();
    symlink("x".repeat(150), top.join("dir/long-link")).unwrap();
    fs::write(top.join("n".repeat(150)), "a long name").unwrap();
    let owner = (Some(Uid::from_raw(70_000)), Some(Gid::from_raw(5)));
    rustix::fs::chownat(CWD, top.join("dir/large"), owner.0, owner.1, AtFlags::empty()).unwrap();
    rustix::fs::chmod(top.join("dir/large"), Mode::from_raw_mode(0o4750)).unwrap();
    // After the change of owner, which takes them away: cap_net_raw, permitted.
    let caps = [0x0200_0000_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    rustix::fs::setxattr(top.join("dir/large"), "security.capability", &caps, XattrFlags::empty()).unwrap();
    rustix::fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rustix::fs::setxattr(top.join("dir"), "trusted.x", b"on a directory", XattrFlags::empty()).unwrap();
    for i in 0..300 {
        fs::write(top.join(format!("dir/below/file-{i}")), format!("{i}")).unwrap();
    }
}

/// What the kernel sees of an image.
fn seen(image: &Path) -> Tree {
    oracle::assert_clean(image);
    let mount = KernelMount::ro(image);
    let tree = Tree::read(mount.path(), false).unwrap();
    mount.unmount();
    tree
}

#[test]
fn an_imported_folder_is_what_the_kernel_sees() {
    need!(env::kernel_mounts());
    let dir = scratch();
    let (image, tree) = (dir.join("image"), dir.join("tree"));
    fill(&tree);
    let expected = Tree::read(&tree, false).unwrap();
    for options in ["-t ext4", "-t ext4 -b 1024 -O inline_data", "-t ext2"] {
        oracle::mke2fs(&image, 128 << 20, options);
        ok(&[&"import", &image, &tree]);
        seen(&image).assert_equal(&expected, options);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn imported_archives_are_the_same_whatever_they_are_packed_with() {
    need!(env::kernel_mounts(), env::tools(&["tar", "xz", "gzip"]));
    let dir = scratch();
    let (image, tree, tar) = (dir.join("image"), dir.join("tree"), dir.join("tree.tar"));
    fill(&tree);
    fs::remove_file(tree.join("dir/sparse")).unwrap();
    let expected = Tree::read(&tree, false).unwrap();
    let mut pack = oracle::command("tar");
    oracle::run_ok(
        pack.args(["--format=posix", "--xattrs", "--xattrs-include=*", "-C"])
            .arg(&tree)
            .arg("-cf")
            .arg(&tar)
            .arg("."),
    );
    oracle::run_ok(oracle::command("xz").args(["-k"]).arg(&tar));
    oracle::run_ok(oracle::command("gzip").args(["-k"]).arg(&tar));
    for name in ["tree.tar", "tree.tar.xz", "tree.tar.gz"] {
        oracle::mke2fs(&image, 64 << 20, "-t ext4");
        ok(&[&"import", &image, &dir.join(name)]);
        seen(&image).assert_equal(&expected, name);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn put_copies_into_directories_and_under_new_names() {
    need!(env::kernel_mounts());
    let dir = scratch();
    let (image, file) = (dir.join("image"), dir.join("file"));
    fs::write(&file, "content").unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    fs::write(dir.join("folder/inner"), "inner").unwrap();
    oracle::mke2fs(&image, 32 << 20, "-t ext4");
    ok(&[&"mkdir", &image, &"-p", &"/etc/deep"]);
    ok(&[&"put", &image, &file, &"/etc/renamed"]);
    ok(&[&"put", &image, &"--owner", &"7:8", &file, &dir.join("folder"), &"/etc/deep"]);
    // Again, over what is there.
    fs::write(&file, "other content").unwrap();
    ok(&[&"put", &image, &file, &"/etc/renamed"]);
    let tree = seen(&image);
    assert_eq!(tree.nodes[&b"etc/renamed"[..]].data.bytes.as_deref(), Some(&b"other content"[..]));
    assert_eq!(tree.nodes[&b"etc/deep/folder/inner"[..]].data.bytes.as_deref(), Some(&b"inner"[..]));
    assert_eq!((tree.nodes[&b"etc/deep/file"[..]].uid, tree.nodes[&b"etc/deep/folder"[..]].gid), (7, 8));
    let ran = extant(&[&"put", &image, &file, &"/nowhere/file"]);
    assert!(ran.status == 1 && ran.err.contains("/nowhere"), "{}", ran.err);
}

/// What an archive's packing writes at its end may fail as well.
#[test]
fn a_full_disk_of_the_host_is_an_error_however_the_archive_is_packed() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 8 << 20, "-t ext4");
    for name in ["full.tar", "full.tar.gz", "full.tar.zst", "full.tar.xz"] {
        symlink("/dev/full", dir.join(name)).unwrap();
        let done = extant(&[&"export", &image, &dir.join(name)]);
        assert!(done.status != 0 && done.err.contains("No space"), "{name}: {}", done.err);
    }
}

#[test]
fn a_full_image_says_so_and_stays_clean() {
    need!(env::kernel_mounts());
    let dir = scratch();
    let (image, file) = (dir.join("image"), dir.join("file"));
    fs::write(&file, vec![1; 20 << 20]).unwrap();
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let ran = extant(&[&"put", &image, &file, &"/file"]);
    assert!(ran.status == 1 && ran.err.contains("full"), "{}", ran.err);
    oracle::assert_clean(&image);
}

#[test]
fn an_archive_cannot_lead_out_of_its_place() {
    need!(env::kernel_mounts(), env::tools(&["tar"]));
    let dir = scratch();
    let (image, tar) = (dir.join("image"), dir.join("bad.tar"));
    fs::write(dir.join("file"), "x").unwrap();
    let mut pack = oracle::command("tar");
    oracle::run_ok(
        pack.args(["-P", "--transform=s,file,../../out,", "-C"])
            .arg(dir.path())
            .arg("-cf")
            .arg(&tar)
            .arg("file"),
    );
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let ran = extant(&[&"import", &image, &tar, &"--to", &"/a/b"]);
    assert!(ran.status == 1 && ran.err.contains(".."), "{}", ran.err);
    // Nor through a link that the archive itself brings.
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    symlink("/", tree.join("d")).unwrap();
    let two = dir.join("two.tar");
    oracle::run_ok(oracle::command("tar").arg("-C").arg(&tree).arg("-cf").arg(&two).arg("d"));
    fs::remove_file(tree.join("d")).unwrap();
    fs::create_dir(tree.join("d")).unwrap();
    fs::write(tree.join("d/escaped"), "x").unwrap();
    oracle::run_ok(oracle::command("tar").arg("-C").arg(&tree).arg("-rf").arg(&two).arg("d/escaped"));
    let ran = extant(&[&"import", &image, &two, &"--to", &"/a"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(!seen(&image).nodes.contains_key(&b"escaped"[..]));
}

#[test]
fn a_sparse_file_stays_sparse_both_ways() {
    need!(env::kernel_mounts());
    let dir = scratch();
    let (image, file, back) = (dir.join("image"), dir.join("file"), dir.join("back"));
    let sparse = fs::File::create(&file).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"middle", 1 << 39).unwrap();
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    ok(&[&"put", &image, &file, &"/sparse"]);
    ok(&[&"get", &image, &"/sparse", &back]);
    let meta = fs::metadata(&back).unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() < 1000, "{} sectors", meta.blocks());
    let mut bytes = [0; 6];
    fs::File::open(&back).unwrap().read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(&bytes, b"middle");
    oracle::assert_clean(&image);
}

/// tar has no sockets, and who has no right to it makes no device nodes: their second names are left out like the first.
#[test]
fn what_is_left_out_has_no_second_name() {
    need!(env::kernel_mounts(), env::tools(&["setpriv"]));
    let dir = scratch();
    let (image, tree, tar) = (dir.join("image"), dir.join("tree"), dir.join("tree.tar"));
    fs::create_dir(&tree).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, tree.join("a"), FileType::Socket, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, tree.join("c"), FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3))
        .unwrap();
    for (name, again) in [("a", "b"), ("c", "d")] {
        fs::hard_link(tree.join(name), tree.join(again)).unwrap();
    }
    fs::write(tree.join("e"), "text").unwrap();
    fs::hard_link(tree.join("e"), tree.join("f")).unwrap();
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    ok(&[&"import", &image, &tree]);
    let names = |image: &Path| {
        let tree = seen(image);
        let names = tree.nodes.keys().filter(|path| !path.is_empty() && *path != b"lost+found");
        names.map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&image), ["a", "b", "c", "d", "e", "f"]);
    let ran = extant(&[&"export", &image, &tar]);
    assert!(ran.status == 0 && ran.err.contains("sockets"), "{}", ran.err);
    let second = dir.join("second");
    oracle::mke2fs(&second, 16 << 20, "-t ext4");
    ok(&[&"import", &second, &tar]);
    assert_eq!(names(&second), ["c", "d", "e", "f"]);
    let back = dir.join("back");
    let mut bare = oracle::command("setpriv");
    bare.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_extant"), "export"]);
    let out = oracle::run(bare.arg(&image).arg(&back));
    assert!(out.status == 0 && out.text.contains("device nodes"), "{out}");
    let mut names: Vec<_> = fs::read_dir(&back).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "e", "f"]);
    let [e, f] = ["e", "f"].map(|name| fs::metadata(back.join(name)).unwrap().ino());
    assert_eq!(e, f);
}
