use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;

use extant_testkit::kernel::KernelMount;
use extant_testkit::tree::Tree;
use extant_testkit::{env, need, oracle};

use crate::run::{extant, ok};
use crate::tree::Sample;

#[test]
fn ls_shows_names_modes_and_targets() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    let text = ok(&[&"ls", &image]).text();
    let names: Vec<&str> = text.lines().collect();
    assert_eq!(names, ["absolute", "etc", "fifo", "link", "lost+found", "many", "sparse", "tty"]);
    let text = ok(&[&"ls", &image, &"-l", &"/etc", &"/link", &"/tty"]).text();
    assert!(
        text.contains("-rw-r-----    2   1000  70000            7 2009-02-13 23:31:30 hostname"),
        "{text}"
    );
    assert!(text.contains("dangling -> ../nowhere"), "{text}");
    let text = ok(&[&"ls", &image, &"-ld", &"/link", &"/tty"]).text();
    assert!(text.contains("/link -> etc/hostname") && text.contains("4, 300"), "{text}");
    assert_eq!(ok(&[&"ls", &image, &"/many"]).text().lines().count(), 500);
}

#[test]
fn json_holds_what_the_kernel_says() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4 -b 1024");
    let mount = KernelMount::ro(&image);
    let tree = Tree::read(mount.path(), false).unwrap();
    mount.unmount();
    let found = ok(&[&"find", &image, &"--json"]).json();
    let found = found.as_array().unwrap();
    let mut seen = BTreeSet::new();
    for object in found {
        let path = object["path"].as_str().unwrap().trim_start_matches('/').as_bytes().to_vec();
        if path == b"lost+found" {
            continue;
        }
        let node = &tree.nodes[&path];
        assert_eq!(object["mode"], format!("{:04o}", node.mode), "{object}");
        assert_eq!(object["uid"], node.uid);
        assert_eq!(object["gid"], node.gid);
        if !path.is_empty() {
            assert_eq!(object["links"], node.nlink, "{object}");
        }
        let (sec, nsec) = node.mtime.unwrap();
        assert_eq!(
            (object["mtime"]["seconds"].as_i64(), object["mtime"]["nanoseconds"].as_u64()),
            (Some(sec), Some(u64::from(nsec)))
        );
        if object["type"] == "file" {
            assert_eq!(object["size"], node.data.size);
        }
        if object["type"] == "symbolic link" {
            assert_eq!(object["target"].as_str().unwrap().as_bytes(), node.target);
        }
        seen.insert(path);
    }
    assert_eq!(seen, tree.nodes.keys().cloned().collect());
}

#[test]
fn cat_follows_links_and_reads_every_byte() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    assert_eq!(ok(&[&"cat", &image, &"/link", &"absolute/hostname"]).text(), "sample\nsample\n");
    assert_eq!(ok(&[&"cat", &image, &"/etc/deep/er/file"]).out, vec![b'x'; 100_000]);
    let ran = extant(&[&"cat", &image, &"/etc/dangling"]);
    assert!(ran.status == 1 && ran.err.contains("/etc/dangling"), "{}", ran.err);
    let ran = extant(&[&"cat", &image, &"/etc"]);
    assert!(ran.err.contains("/etc: "), "{}", ran.err);
}

#[test]
fn find_filters() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4 -O inline_data");
    let find = |args: &[&str]| {
        let args: Vec<&dyn AsRef<std::ffi::OsStr>> = std::iter::once(&"find" as &dyn AsRef<std::ffi::OsStr>)
            .chain([&image as &dyn AsRef<std::ffi::OsStr>])
            .chain(args.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>))
            .collect();
        ok(&args).text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(find(&["--name", "file-4?9"]).len(), 10);
    assert_eq!(find(&["--type", "p"]), ["/fifo"]);
    assert_eq!(find(&["--min-size", "100000", "--type", "f"]), ["/etc/deep/er/file", "/sparse"]);
    assert_eq!(find(&["/etc", "--uid", "1000"]), ["/etc/hostname", "/etc/other-name"]);
}

#[test]
fn stat_and_xattr_show_attributes() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    let text = ok(&[&"stat", &image, &"/etc/hostname"]).text();
    for part in ["0640 -rw-r-----", "1000:70000", "2009-02-13 23:31:30.123456789 UTC", "user.comment"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(ok(&[&"xattr", &"get", &image, &"/etc/hostname", &"user.comment"]).text(), "a value");
    let text = ok(&[&"xattr", &"ls", &image, &"/etc/hostname"]).text();
    assert!(text.contains("user.comment=\"a value\"") && text.contains("trusted.raw=0x0001ff"), "{text}");
    let several = ok(&[&"xattr", &"ls", &image, &"/etc/hostname", &"/fifo", &"/etc/other-name"]).text();
    assert!(
        several.starts_with("/etc/hostname:\n") && several.contains("\n/fifo:\n/etc/other-name:\n"),
        "{several}"
    );
    let json = ok(&[&"xattr", &"ls", &"--json", &image, &"/etc/hostname", &"/fifo"]).json();
    assert_eq!(json[0]["path"], "/etc/hostname");
    assert_eq!(json[0]["xattrs"]["trusted.raw"], "0001ff");
    assert_eq!(json[1]["xattrs"], serde_json::json!({}));
    assert!(ok(&[&"tree", &image, &"-L", &"1"]).text().contains("└── tty"));
}

/// The same objects as find's, in the same order, with the depth of each.
#[test]
fn a_tree_as_json() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    let tree = ok(&[&"tree", &"--json", &image]).json();
    let mut tree = tree.as_array().unwrap().clone();
    for object in &mut tree {
        let depth = object.as_object_mut().unwrap().remove("depth").unwrap();
        assert_eq!(depth, object["path"].as_str().unwrap().matches('/').count(), "{object}");
    }
    let found = ok(&[&"find", &"--json", &image]).json();
    assert_eq!(tree, found.as_array().unwrap()[1..], "without the root itself");
    let two = ok(&[&"tree", &"--json", &"-L", &"1", &image, &"/etc"]).json();
    let names: Vec<&str> = two.as_array().unwrap().iter().map(|o| o["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["/etc/dangling", "/etc/deep", "/etc/hostname", "/etc/other-name"]);
}

#[test]
fn get_and_export_give_back_the_tree() {
    need!(env::kernel_mounts());
    let Sample { image, dir } = Sample::new("-t ext4");
    let mount = KernelMount::ro(&image);
    let expected = Tree::read(mount.path(), false).unwrap();
    let theirs = Tree::read(&mount.path().join("etc"), false).unwrap();
    mount.unmount();
    let out = dir.join("out");
    ok(&[&"export", &image, &out]);
    Tree::read(&out, false).unwrap().assert_equal(&expected, "exported folder / kernel");
    let etc = dir.join("etc-copy");
    ok(&[&"get", &image, &"/etc", &etc]);
    Tree::read(&etc, false).unwrap().assert_equal(&theirs, "got folder / kernel");

    for name in ["all.tar", "all.tar.gz", "all.tar.zst"] {
        let tar = dir.join(name);
        ok(&[&"export", &image, &tar]);
        let into = dir.join(&format!("un{name}"));
        std::fs::create_dir(&into).unwrap();
        if name.ends_with("zst") && env::tools(&["zstd"]).is_err() {
            continue;
        }
        oracle::run_ok(
            oracle::command("tar")
                .args(["--xattrs", "--xattrs-include=*", "-xpf"])
                .arg(&tar)
                .arg("-C")
                .arg(&into),
        );
        let mut got = Tree::read(&into, false).unwrap();
        for node in got.nodes.values_mut() {
            node.mtime = node.mtime.filter(|_| false);
        }
        got.assert_equal(&expected, name);
    }
}

#[test]
fn an_unclean_image_is_read_through_its_journal_and_left_alone() {
    need!(env::kernel_mounts());
    let dir = extant_testkit::scratch();
    let (image, copy) = (dir.join("image"), dir.join("copy"));
    oracle::mke2fs(&image, 32 << 20, "-t ext4");
    let mount = KernelMount::rw(&image);
    {
        let _open = oracle::files_on_a_mount();
        std::fs::write(mount.path().join("in-the-journal"), "content").unwrap();
    }
    mount.sync();
    std::fs::copy(&image, &copy).unwrap();
    mount.unmount();
    let before = std::fs::read(&copy).unwrap();
    let info = ok(&[&"info", &copy, &"--json"]).json();
    assert_eq!(info["needs_recovery"], true);
    assert_eq!(ok(&[&"cat", &copy, &"/in-the-journal"]).text(), "content");
    assert!(ok(&[&"ls", &copy]).text().contains("in-the-journal"));
    assert!(std::fs::read(&copy).unwrap() == before, "the image was changed by reading");
}

#[test]
fn names_that_are_not_text_survive() {
    need!(env::kernel_mounts());
    let dir = extant_testkit::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let mount = KernelMount::rw(&image);
    let name = std::ffi::OsStr::from_bytes(b"odd-\xff-name");
    {
        let _open = oracle::files_on_a_mount();
        std::fs::write(mount.path().join(name), "odd").unwrap();
    }
    mount.unmount();
    assert!(ok(&[&"ls", &image]).text().contains("odd-\\xff-name"));
    assert_eq!(ok(&[&"cat", &image, &name]).text(), "odd");
    let json = ok(&[&"ls", &image, &"--json"]).json();
    assert!(json.as_array().unwrap().iter().any(|o| o["path_hex"] == "2f6f64642dff2d6e616d65"), "{json}");
}

/// Directories that each have two names in the one above: 2^16 paths to the last of them.
#[test]
fn directories_with_several_names_are_damage() {
    need!(env::tools(&["mke2fs", "debugfs"]));
    const DEPTH: usize = 16;
    let dir = extant_testkit::scratch();
    let (image, out) = (dir.join("image"), dir.join("out"));
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -O ^metadata_csum");
    let mut requests: Vec<String> = (0..=DEPTH).map(|n| format!("mkdir d{n}")).collect();
    for n in 0..DEPTH {
        requests.extend(["a", "b"].map(|name| format!("ln d{} d{n}/{name}", n + 1)));
    }
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    oracle::debugfs_write(&image, &requests);
    let commands: [&[&dyn AsRef<std::ffi::OsStr>]; 5] = [
        &[&"find", &image, &"/d0"],
        &[&"tree", &image, &"/d0"],
        &[&"ls", &"-R", &image, &"/d0"],
        &[&"export", &image, &out, &"--from", &"/d0"],
        &[&"get", &image, &"/d0", &out],
    ];
    for args in commands {
        let ran = extant(args);
        assert!(
            ran.status == 1 && ran.err.contains("second name"),
            "exit status {}: {}",
            ran.status,
            ran.err
        );
        assert!(ran.out.len() < 20_000, "{} bytes", ran.out.len());
        let _ = std::fs::remove_dir_all(&out);
    }
    // The last one is gone when its second name is met.
    let ran = extant(&[&"rm", &"-r", &image, &"/d0"]);
    assert!(ran.status == 1 && ran.err.contains("the image is damaged"), "{}", ran.err);
}
