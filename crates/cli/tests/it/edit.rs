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
    ] {
        let (command, rest) = args.split_first().unwrap();
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![command, &image];
        all.extend(rest.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>));
        let ran = extant(&all);
        assert!(ran.status == 1 && ran.err.contains(part), "{args:?}: {} {}", ran.status, ran.err);
    }
    assert_eq!(ok(&[&"rm", &image, &"-f", &"/nothing"]).status, 0);
    oracle::assert_clean(&image);
    assert_eq!(ok(&[&"find", &image, &"--json"]).json(), before);
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
