//! tar archives, with GNU tar on the other side.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;

use extant_format::acl::{Acl, AclEntry, Tag};
use extant_testkit::kernel::KernelMount;
use extant_testkit::rng::pattern;
use extant_testkit::tree::Tree;
use extant_testkit::{env, need, oracle, scratch};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::run::{extant, ok};

/// Bytes of an image.
const IMAGE: u64 = 64 << 20;

fn acl(named: &[Tag]) -> Vec<u8> {
    let mut tags = vec![Tag::UserObj, Tag::GroupObj, Tag::Mask, Tag::Other];
    tags.extend(named);
    tags.sort();
    Acl::new(tags.into_iter().map(|tag| AclEntry { tag, perm: 5 }).collect()).unwrap().to_xattr()
}

fn sparse(path: &Path, size: u64, data: &[u64]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in data {
        file.write_all_at(b"data", *at).unwrap();
    }
}

fn age(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with all that is hard for archives, on a mount of the kernel.
fn fill(top: &Path) {
    let every: Vec<u8> = (0..=255).collect();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(top.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    fs::create_dir_all(top.join("dir/below")).unwrap();
    for name in ["every", "key", "cap", "acl", "past", "future", "owned"] {
        fs::write(top.join(name), name).unwrap();
    }
    set("every", "user.every", &every);
    set("every", "user.lines", b"\n13 path=evil\n9 size=0\n\n");
    set("every", "user.empty", b"");
    set("key", "user.a=b%c%3D", b"=\n=");
    set("key", "trusted.x", b"trusted");
    set("cap", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    set("acl", "system.posix_acl_access", &acl(&[Tag::User(1), Tag::User(123_456), Tag::Group(2)]));
    set("dir", "system.posix_acl_default", &acl(&[Tag::Group(123_456)]));
    set("dir", "system.posix_acl_access", &acl(&[Tag::User(0)]));
    sparse(&top.join("holes"), 1 << 34, &[1 << 20, 1 << 33, (1 << 33) + 9000]);
    sparse(&top.join("hole"), 10 << 20, &[]);
    sparse(&top.join("end"), (1 << 30) + 4, &[1 << 30]);
    sparse(&top.join("dir").join("s".repeat(200)), 1 << 21, &[0]);
    fs::hard_link(top.join("holes"), top.join("dir/same-holes")).unwrap();
    fs::hard_link(top.join("every"), top.join("dir/below").join("h".repeat(120))).unwrap();
    fs::hard_link(top.join("dir/below").join("h".repeat(120)), top.join("zz")).unwrap();
    symlink("x".repeat(250), top.join("link")).unwrap();
    symlink("\u{e4}\n b", top.join("n\u{e4}me\nof two lines")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("char", FileType::CharacterDevice, rustix::fs::makedev(259, 70_000)),
        ("block", FileType::BlockDevice, rustix::fs::makedev(8, 1)),
    ] {
        rustix::fs::mknodat(CWD, top.join(name), kind, mode, device).unwrap();
    }
    let owner = (Some(Uid::from_raw(3_000_000_000)), Some(Gid::from_raw(4_000_000)));
    rustix::fs::chownat(CWD, top.join("owned"), owner.0, owner.1, AtFlags::empty()).unwrap();
    rustix::fs::chmod(top.join("owned"), Mode::from_raw_mode(0o6751)).unwrap();
    age(&top.join("past"), -2, 500_000_000);
    age(&top.join("future"), 1 << 33, 123_456_789);
    age(&top.join("dir/below"), 1_000_000_000, 1);
    age(top, 0, 0);
}

fn filled(image: &Path) -> Tree {
    oracle::mke2fs(image, IMAGE, "-t ext4");
    let mount = KernelMount::rw(image);
    let open = oracle::files_on_a_mount();
    fill(mount.path());
    drop(open);
    mount.unmount();
    seen(image)
}

/// What the kernel sees of an image, holes too.
fn seen(image: &Path) -> Tree {
    oracle::assert_clean(image);
    let mount = KernelMount::ro(image);
    let tree = Tree::read(mount.path(), true).unwrap();
    mount.unmount();
    tree
}

/// The archive in a fresh image, by `import` and by `mkfs -d`.
fn in_images(dir: &Path, tar: &Path, expected: &Tree, what: &str) {
    let image = dir.join("in");
    oracle::mke2fs(&image, IMAGE, "-t ext4");
    ok(&[&"import", &image, &tar]);
    seen(&image).assert_equal(expected, &format!("{what}: import"));
    fs::remove_file(&image).unwrap();
    ok(&[&"mkfs", &"-q", &"-d", &tar, &image, &"64m"]);
    seen(&image).assert_equal(expected, &format!("{what}: mkfs -d"));
    fs::remove_file(&image).unwrap();
}

/// The header of a member of `size` bytes.
fn header(size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn gnu_tar(tar: &Path, at: &Path, args: &[&str]) {
    let mut command = oracle::command("tar");
    command.arg("-C").arg(at).arg("-f").arg(tar).args(args);
    oracle::run_ok(command.args(["--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner"]));
}

#[test]
fn an_exported_archive_is_the_same_tree_for_gnu_tar_and_for_import() {
    need!(env::kernel_mounts(), env::tools(&["tar"]));
    let dir = scratch();
    let (image, other) = (dir.join("image"), dir.join("other"));
    let tree = filled(&image);
    for name in ["out.tar", "out.tar.zst", "out.tar.xz", "out.tgz"] {
        ok(&[&"export", &image, &dir.join(name)]);
        in_images(dir.path(), &dir.join(name), &tree, name);
    }
    let tar = dir.join("out.tar");
    let size = fs::metadata(&tar).unwrap().len();
    assert!(size < 200 << 10, "{size} bytes for 17 GiB of holes");
    oracle::mke2fs(&other, IMAGE, "-t ext4");
    let mount = KernelMount::rw(&other);
    gnu_tar(&tar, mount.path(), &["-xp"]);
    mount.unmount();
    seen(&other).assert_equal(&tree, "GNU tar");
}

#[test]
fn an_archive_packed_in_another_way_is_no_folder() {
    let dir = scratch();
    let image = dir.join("image");
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    let ran = extant(&[&"export", &image, &dir.join("out.tar.bz2")]);
    assert!(ran.status != 0 && ran.err.contains("out.tar.bz2") && ran.err.contains(".tar.xz"), "{}", ran.err);
    assert!(!dir.join("out.tar.bz2").exists());
}

#[test]
fn lists_are_in_the_text_that_gnu_tar_restores() {
    need!(env::kernel_mounts(), env::tools(&["tar"]));
    let dir = scratch();
    let (image, other, tar) = (dir.join("image"), dir.join("other"), dir.join("out.tar"));
    let tree = filled(&image);
    ok(&[&"export", &image, &tar]);
    oracle::mke2fs(&other, IMAGE, "-t ext4");
    let mount = KernelMount::rw(&other);
    let mut command = oracle::command("tar");
    oracle::run_ok(command.arg("-C").arg(mount.path()).arg("-xpf").arg(&tar).arg("--acls"));
    mount.unmount();
    let found = seen(&other);
    for (path, name) in [
        (&b"acl"[..], &b"system.posix_acl_access"[..]),
        (b"dir", b"system.posix_acl_access"),
        (b"dir", b"system.posix_acl_default"),
    ] {
        assert!(tree.nodes[path].xattrs.contains_key(name));
        assert_eq!(found.nodes[path].xattrs.get(name), tree.nodes[path].xattrs.get(name));
    }
}

#[test]
fn archives_of_gnu_tar_are_the_same_tree() {
    need!(env::kernel_mounts(), env::tools(&["tar"]));
    let dir = scratch();
    let (image, tar) = (dir.join("image"), dir.join("gnu.tar"));
    let tree = filled(&image);
    for version in ["1.0", "0.1", "0.0"] {
        let mount = KernelMount::ro(&image);
        let version = format!("--sparse-version={version}");
        gnu_tar(&tar, mount.path(), &["-cS", "--format=pax", &version, "--exclude=./lost+found", "."]);
        mount.unmount();
        in_images(dir.path(), &tar, &tree, &version);
    }
}

#[test]
fn a_list_for_somebody_unknown_is_an_error_that_names_the_member() {
    let dir = scratch();
    let (image, tar) = (dir.join("image"), dir.join("a.tar"));
    let list = b"user::rw-\nuser:no-such-user-here:r--\ngroup::r--\nmask::r--\nother::r--\n";
    let mut out = tar::Builder::new(fs::File::create(&tar).unwrap());
    out.append_pax_extensions([("SCHILY.acl.access", &list[..])]).unwrap();
    let mut header = header(0);
    out.append_data(&mut header, "etc/member", std::io::empty()).unwrap();
    out.into_inner().unwrap();
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    for args in
        [&[&"import" as &dyn AsRef<_>, &image, &tar][..], &[&"mkfs", &"-q", &"-F", &"-d", &tar, &image]]
    {
        let ran = extant(args);
        assert!(
            ran.status != 0 && ran.err.contains("etc/member") && ran.err.contains("no-such-user-here"),
            "{}",
            ran.err
        );
    }
    ok(&[&"mkfs", &"-q", &"-F", &"-E", &"no_copy_xattrs", &"-d", &tar, &image]);
}

#[test]
fn what_packs_an_archive_is_right_to_its_end() {
    let dir = scratch();
    let (image, packed) = (dir.join("image"), dir.join("a.tar.gz"));
    let mut out = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let noise = pattern(1, 0, 1 << 20);
    let mut header = header(noise.len());
    out.append_data(&mut header, "noise", &noise[..]).unwrap();
    let whole = out.into_inner().unwrap().finish().unwrap();
    let mut flipped = whole.clone();
    // Noise is not compressed: this is content, and only the sum at the end says that it is wrong.
    flipped[500_000..500_003].iter_mut().for_each(|byte| *byte ^= 0x55);
    let cut = &whole[..whole.len() - 8];
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    for (bytes, said) in [(&whole[..], None), (&flipped, Some("checksum")), (cut, Some("end is missing"))] {
        fs::write(&packed, bytes).unwrap();
        for args in [
            &[&"import" as &dyn AsRef<_>, &image, &packed][..],
            &[&"mkfs", &"-q", &"-F", &"-d", &packed, &image],
        ] {
            let ran = extant(args);
            match said {
                None => assert_eq!(ran.status, 0, "{}", ran.err),
                Some(said) => {
                    assert!(
                        ran.status != 0 && ran.err.contains(said) && ran.err.contains("a.tar.gz"),
                        "{}",
                        ran.err
                    );
                }
            }
        }
    }
}

#[test]
fn pairs_without_bytes_in_a_map_of_holes_take_no_memory() {
    const PAIRS: usize = 1 << 24;
    // Kilobytes of memory: kept as two numbers each, the pairs would take 256 MiB.
    const LIMIT: &str = "200000";
    let dir = scratch();
    let (image, packed) = (dir.join("image"), dir.join("a.tar.gz"));
    let mut map = format!("{PAIRS}\n").into_bytes();
    map.extend(b"0\n0\n".repeat(PAIRS));
    map.resize(map.len().next_multiple_of(512), 0);
    let file = fs::File::create(&packed).unwrap();
    let mut out = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    let sparse = |key: &'static str, value: &'static [u8]| (key, value);
    let records = [
        sparse("GNU.sparse.major", b"1"),
        sparse("GNU.sparse.minor", b"0"),
        sparse("GNU.sparse.name", b"file"),
        sparse("GNU.sparse.realsize", b"0"),
    ];
    out.append_pax_extensions(records).unwrap();
    let mut header = header(map.len());
    out.append_data(&mut header, "file", &map[..]).unwrap();
    out.into_inner().unwrap().finish().unwrap();
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    let mut command = oracle::command("sh");
    command.args(["-c", "ulimit -d $0 && exec \"$@\"", LIMIT, env!("CARGO_BIN_EXE_extant"), "import"]);
    oracle::run_ok(command.arg(&image).arg(&packed));
    assert!(ok(&[&"cat", &image, &"/file"]).out.is_empty());
}

#[test]
fn a_further_name_may_be_the_name_that_is_there() {
    let dir = scratch();
    let (image, tar) = (dir.join("image"), dir.join("a.tar"));
    let mut out = tar::Builder::new(fs::File::create(&tar).unwrap());
    let mut append = |kind, name: &str, link: &str, content: &str| {
        let mut header = header(content.len());
        header.set_entry_type(kind);
        match link {
            "" => out.append_data(&mut header, name, content.as_bytes()).unwrap(),
            link => out.append_link(&mut header, name, link).unwrap(),
        }
    };
    append(tar::EntryType::Regular, "a", "", "content");
    append(tar::EntryType::Link, "b", "a", "");
    append(tar::EntryType::Link, "a", "a", "");
    append(tar::EntryType::Link, "a", "b", "");
    append(tar::EntryType::Link, "b", "a", "");
    out.into_inner().unwrap();
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    // The second time everything is there already.
    for _ in 0..2 {
        ok(&[&"import", &image, &tar]);
        for name in ["/a", "/b"] {
            assert_eq!(ok(&[&"cat", &image, &name]).out, b"content");
            assert_eq!(ok(&[&"stat", &"--json", &image, &name]).json()[0]["links"], 2);
        }
    }
    oracle::assert_clean(&image);
}

#[test]
fn the_later_of_two_members_counts() {
    need!(env::kernel_mounts(), env::tools(&["tar"]));
    let dir = scratch();
    let (top, tar, want) = (dir.join("top"), dir.join("two.tar"), dir.join("want"));
    fs::create_dir(&top).unwrap();
    fs::create_dir(&want).unwrap();
    let append = |names: &[&str]| {
        let mut command = oracle::command("tar");
        oracle::run_ok(command.args(["--format=pax", "-rf"]).arg(&tar).arg("-C").arg(&top).args(names));
    };
    fs::write(top.join("a"), "first").unwrap();
    fs::hard_link(top.join("a"), top.join("b")).unwrap();
    symlink("/nowhere", top.join("c")).unwrap();
    append(&["./a", "./b", "./c"]);
    fs::remove_file(top.join("a")).unwrap();
    fs::remove_file(top.join("c")).unwrap();
    fs::write(top.join("a"), "second").unwrap();
    // In place of a link, not through it.
    fs::write(top.join("c"), "a file now").unwrap();
    append(&["./a", "./c"]);
    oracle::run_ok(oracle::command("tar").arg("-xpf").arg(&tar).arg("-C").arg(&want));
    let image = dir.join("image");
    let shown = |tree: &Tree| -> Vec<_> {
        tree.nodes
            .iter()
            .filter(|(path, _)| !path.is_empty())
            .map(|(path, n)| (path.clone(), n.data.bytes.clone(), n.nlink))
            .collect()
    };
    let want = shown(&Tree::read(&want, false).unwrap());
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    ok(&[&"import", &image, &tar]);
    assert_eq!(shown(&seen(&image)), want);
    ok(&[&"mkfs", &"-q", &"-F", &"-d", &tar, &image]);
    assert_eq!(shown(&seen(&image)), want);
}
