use extant_testkit::kernel::KernelMount;
use extant_testkit::tree::Tree;
use extant_testkit::{env, need, oracle};

use crate::run::{extant, ok};
use crate::tree::Sample;

#[test]
fn edits_are_what_the_kernel_sees() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    ok(&[&"mkdir", &image, &"/new"]);
    ok(&[&"mkdir", &image, &"-p", &"-m", &"750", &"/a/b/c"]);
    ok(&[&"mv", &image, &"/etc/deep", &"/new/moved"]);
    ok(&[&"mv", &image, &"/fifo", &"/tty", &"/new"]);
    ok(&[&"ln", &image, &"/etc/hostname", &"/new/hard"]);
    ok(&[&"ln", &image, &"-s", &"anywhere", &"/new/soft"]);
    ok(&[&"chmod", &image, &"u+s,g-w", &"/new/moved/er/file"]);
    ok(&[&"chmod", &image, &"-R", &"a+rX", &"/a"]);
    ok(&[&"chown", &image, &"-R", &"5:6", &"/many"]);
    ok(&[&"xattr", &"set", &image, &"/new", &"user.k", &"v"]);
    ok(&[&"xattr", &"rm", &image, &"/etc/hostname", &"user.comment"]);
    ok(&[&"rm", &image, &"/sparse"]);
    ok(&[&"rm", &image, &"-r", &"/etc"]);
    oracle::assert_clean(&image);
    let mount = KernelMount::rw(&image);
    let tree = Tree::read(mount.path(), false).unwrap();
    mount.unmount();
    let node = |path: &str| &tree.nodes[path.as_bytes()];
    assert_eq!(node("a/b/c").mode, 0o755);
    assert_eq!(node("new/moved/er/file").mode, 0o4644);
    assert_eq!(node("new/tty").rdev, (4, 300));
    assert_eq!(node("new/soft").target, b"anywhere");
    assert_eq!((node("new/hard").nlink, node("new/hard").data.bytes.as_deref()), (1, Some(&b"sample\n"[..])));
    assert!(!node("new/hard").xattrs.contains_key(&b"user.comment"[..]));
    assert_eq!(node("new").xattrs[&b"user.k"[..]], b"v");
    assert_eq!((node("many/file-042").uid, node("many/file-042").gid), (5, 6));
    assert!(!tree.nodes.contains_key(&b"etc"[..]) && !tree.nodes.contains_key(&b"sparse"[..]));
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    let before = ok(&[&"find", &image, &"--json"]).json();
    for (args, part) in [
        (vec!["rm", "/etc"], "-r"),
        (vec!["rm", "/nothing"], "/nothing"),
        (vec!["mkdir", "/etc"], "/etc"),
        (vec!["mkdir", "/no/way"], "/no"),
        (vec!["mv", "/etc", "/etc/deep/inside"], "/etc"),
        (vec!["chmod", "u+q", "/etc"], "u+q"),
        (vec!["ln", "/etc", "/hard"], "/hard"),
        // A slash at the end means a directory, as in open(2), unlink(2), rename(2), link(2).
        (vec!["fallocate", "-l", "5000", "/new/"], "is a directory"),
        (vec!["fallocate", "-l", "5000", "/sparse/"], "is a directory"),
        (vec!["fallocate", "-p", "-l", "4096", "/sparse/"], "not a directory"),
        (vec!["defrag", "/sparse/"], "not a directory"),
        (vec!["defrag", "/sparse/."], "not a directory"),
        (vec!["filefrag", "/sparse/.."], "not a directory"),
        (vec!["cat", "/etc/hostname/"], "not a directory"),
        (vec!["rm", "/sparse/"], "not a directory"),
        (vec!["rm", "-r", "/absolute/"], "not a directory"),
        (vec!["mv", "/sparse/", "/new"], "not a directory"),
        (vec!["mv", "/sparse", "/new/"], "not a directory"),
        (vec!["mv", "/absolute/", "/new"], "not a directory"),
        (vec!["mv", "/sparse", "/etc/hostname/"], "not a directory"),
        (vec!["ln", "/sparse", "/new/"], "no such file"),
        (vec!["ln", "/sparse/", "/new"], "not a directory"),
        (vec!["ln", "-s", "/sparse", "/new/"], "no such file"),
        (vec!["ln", "-s", "/sparse", "/sparse/"], "exists"),
        (vec!["chmod", "600", "/sparse/"], "not a directory"),
        (vec!["put", "/etc/passwd", "/new/"], "not a directory"),
        (vec!["mkdir", "/sparse/"], "exists"),
    ] {
        let (command, rest) = args.split_first().unwrap();
        // The options, the image, the rest.
        let paths = rest.iter().position(|word| word.starts_with('/')).unwrap_or(rest.len());
        let (options, rest) = if *command == "fallocate" { rest.split_at(paths) } else { rest.split_at(0) };
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![command];
        all.extend(options.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>));
        all.push(&image);
        all.extend(rest.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>));
        let ran = extant(&all);
        assert!(ran.status == 1 && ran.err.contains(part), "{args:?}: {} {}", ran.status, ran.err);
    }
    assert_eq!(ok(&[&"rm", &image, &"-f", &"/nothing"]).status, 0);
    oracle::assert_clean(&image);
    assert_eq!(ok(&[&"find", &image, &"--json"]).json(), before);
}

/// Where the kernel takes a slash at the end, so do we.
#[test]
fn a_slash_at_the_end_of_a_directory() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    ok(&[&"mkdir", &image, &"/new/"]);
    ok(&[&"mv", &image, &"/new/", &"/newer/"]);
    ok(&[&"mv", &image, &"/sparse", &"/newer/"]);
    ok(&[&"ln", &image, &"/fifo", &"/newer/fifo"]);
    let stat = ok(&[&"stat", &"--json", &image, &"/absolute", &"/absolute/", &"/newer/sparse"]).json();
    let kinds: Vec<&str> = (0..3).map(|n| stat[n]["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["symbolic link", "directory", "file"], "a link with a slash is followed");
    ok(&[&"rm", &image, &"-r", &"/newer/"]);
    oracle::assert_clean(&image);
}

#[test]
fn an_image_that_is_mounted_is_not_changed() {
    need!(env::kernel_mounts());
    let Sample { image, dir: _dir } = Sample::new("-t ext4");
    let mount = KernelMount::rw(&image);
    let ran = extant(&[&"rm", &image, &"/fifo"]);
    assert!(ran.status == 1 && ran.err.contains("in use"), "{}", ran.err);
    mount.unmount();
}
