//! The path layer on an image that mke2fs made; e2fsck has the last word.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use extant_testkit::{Scratch, env, need, oracle, scratch};

use super::{MAX_LINKS, OpenOptions, Paths};
use crate::{Credentials, Error, Filesystem, SetAttr, Setup};

struct Image {
    _dir: Scratch,
    path: PathBuf,
    fs: Arc<Filesystem>,
}

impl Image {
    fn new() -> Self {
        let dir = scratch();
        let path = dir.join("paths.img");
        oracle::mke2fs(&path, 16 << 20, "-t ext4 -b 4096");
        let device = extant_device::OpenOptions::new().write(true).open(&path).expect("image");
        let fs = Filesystem::open(Arc::new(device), Setup::default()).expect("mount");
        Self { _dir: dir, path, fs }
    }

    fn paths(&self) -> Paths {
        self.fs.paths()
    }

    fn check(self) {
        self.fs.unmount().expect("unmount");
        oracle::assert_clean(&self.path);
    }
}

#[test]
fn files_are_made_written_read_and_removed() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let image = Image::new();
    let paths = image.paths();
    paths.create_dir_all("a/b/c").unwrap();
    paths.create_dir_all("/a/b/c/").unwrap();
    paths.write("a/b/c/file", b"content").unwrap();
    assert_eq!(paths.read("/a/./b/../b/c/file").unwrap(), b"content");
    paths.hard_link("a/b/c/file", "a/again").unwrap();
    assert_eq!(paths.metadata("a/again").unwrap().nlink, 2);
    paths.rename("a/again", "moved").unwrap();
    let names: Vec<_> = paths.read_dir("/").unwrap().map(|e| e.unwrap().name).collect();
    assert!(names.contains(&b"moved".to_vec()) && !names.contains(&b".".to_vec()), "{names:?}");
    assert!(matches!(paths.remove_file("a/b/c"), Err(Error::IsDirectory)));
    assert!(matches!(paths.remove_dir("a"), Err(Error::NotEmpty)));
    paths.remove_dir_all("a").unwrap();
    assert!(!paths.exists("a").unwrap());
    image.check();
}

#[test]
fn a_file_reads_writes_and_seeks_like_one() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let image = Image::new();
    let paths = image.paths();
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&paths, "f").unwrap();
    file.write_all(b"0123456789").unwrap();
    file.seek(SeekFrom::Current(-4)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "6789");
    assert!(file.seek(SeekFrom::Current(-11)).is_err());
    file.write_all_at(b"end", 100_000).unwrap();
    assert_eq!(file.seek_hole(0).unwrap(), 4096);
    file.set_len(5).unwrap();
    file.sync_all().unwrap();
    let mut log = OpenOptions::new().append(true).open(&paths, "f").unwrap();
    log.write_all(b"+more").unwrap();
    assert!(matches!(log.read_at(&mut [0; 4], 0), Err(Error::BadFile)));
    drop((file, log));
    assert_eq!(paths.read("f").unwrap(), b"01234+more");
    let again = OpenOptions::new().write(true).create_new(true).open(&paths, "f");
    assert!(matches!(again, Err(Error::Exists)));
    image.check();
}

#[test]
fn symbolic_links_are_followed_and_bounded() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let image = Image::new();
    let paths = image.paths();
    paths.create_dir_all("d/e").unwrap();
    paths.write("d/e/f", b"x").unwrap();
    paths.symlink("/d/e", "absolute").unwrap();
    paths.symlink("../d/./e/f", "d/relative").unwrap();
    paths.symlink("loop", "loop").unwrap();
    paths.symlink("nowhere", "dangling").unwrap();
    paths.symlink("f/", "d/e/slash").unwrap();
    assert_eq!(paths.read("absolute/f").unwrap(), b"x");
    assert_eq!(paths.read("d/relative").unwrap(), b"x");
    // Never out of the image: `..` of the root is the root.
    assert_eq!(paths.read("../../absolute/../e/f").unwrap(), b"x");
    assert!(matches!(paths.inode("loop"), Err(Error::SymlinkLoop)));
    assert!(matches!(paths.inode("dangling"), Err(Error::NotFound)));
    assert!(matches!(paths.read("d/e/slash"), Err(Error::NotDirectory)));
    assert!(matches!(paths.read("d/e/f/"), Err(Error::NotDirectory)));
    assert_eq!(paths.read_link("d/relative").unwrap(), b"../d/./e/f");
    // A chain of exactly the permitted length leads somewhere, one more does not.
    paths.symlink("d", "l1").unwrap();
    for i in 2..=MAX_LINKS + 1 {
        paths.symlink(format!("l{}", i - 1), format!("l{i}")).unwrap();
    }
    assert!(paths.inode(format!("l{MAX_LINKS}")).is_ok());
    assert!(matches!(paths.inode(format!("l{}", MAX_LINKS + 1)), Err(Error::SymlinkLoop)));
    image.check();
}

#[test]
fn others_see_what_their_permissions_allow() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let image = Image::new();
    let root = image.paths();
    root.create_dir("private").unwrap();
    root.write("private/secret", b"s").unwrap();
    root.write("public", b"p").unwrap();
    root.set_permissions("private", 0o700).unwrap();
    root.create_dir("theirs").unwrap();
    let give = SetAttr { uid: Some(1000), gid: Some(1000), ..SetAttr::default() };
    root.set_attr("theirs", &give).unwrap();
    let user = image.fs.paths_as(Credentials::user(1000, 1000, &[]));
    assert!(matches!(user.read("private/secret"), Err(Error::AccessDenied)));
    assert_eq!(user.read("public").unwrap(), b"p");
    assert!(matches!(user.create("public"), Err(Error::AccessDenied)));
    assert!(matches!(user.create("new"), Err(Error::AccessDenied)));
    user.write("theirs/own", b"o").unwrap();
    assert_eq!(user.metadata("theirs/own").unwrap().uid, 1000);
    image.check();
}
