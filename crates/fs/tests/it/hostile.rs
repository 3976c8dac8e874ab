//! Damaged images give errors: no panic, no endless walk, no memory beyond reason.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, FiemapHow, Filesystem, InodeRef, MoveRange, NewInode, RenameFlags,
    SetAttr, Setup, XattrSet,
};
use extant_device::{BlockDevice, MemoryDevice, Overlay};
use extant_testkit::env::{images, scratch, seed, tools};
use extant_testkit::oracle::mke2fs;
use extant_testkit::rng::Rng;
use extant_testkit::sim::{Failpoint, Kind};

use crate::support::open_rw;

/// Names, files read and bytes read that a walk stops after: a damaged tree may lead round in circles by hard links of
/// directories, which every reader follows.
const NAMES: usize = 20_000;
const BYTES: u64 = 16 << 20;

struct Walk<'a> {
    fs: &'a Filesystem,
    names: usize,
    bytes: u64,
    errors: usize,
}

impl Walk<'_> {
    fn note<T>(&mut self, result: extant::Result<T>) -> Option<T> {
        result.map_err(|_| self.errors += 1).ok()
    }

    fn visit(&mut self, inode: &InodeRef, depth: usize) {
        let cred = Credentials::root();
        let list = self.fs.list_xattr(inode, &cred);
        for name in self.note(list).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let value = self.fs.get_xattr(inode, name, &cred);
            self.note(value);
        }
        for how in [FiemapHow::empty(), FiemapHow::XATTR] {
            let extents = self.fs.fiemap(inode, 0, u64::MAX, how, 1000);
            self.note(extents);
        }
        if inode.is_dir() {
            self.list(inode, depth);
        } else if inode.is_regular() {
            let mut buf = vec![0; 64 << 10];
            let mut at = 0;
            while at < inode.size() && self.bytes < BYTES {
                let read = self.fs.read_at(inode, at, &mut buf);
                let Some(n) = self.note(read) else { break };
                at += n as u64;
                self.bytes += n as u64;
            }
        } else {
            let _ = self.fs.readlink(inode);
        }
    }

    fn list(&mut self, dir: &InodeRef, depth: usize) {
        let cred = Credentials::root();
        let mut found = Vec::new();
        let budget = NAMES.saturating_sub(self.names);
        let listed = self.fs.read_dir(dir, extant::START, &cred, &mut |entry| {
            found.push(entry.name.to_vec());
            if found.len() < budget { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        self.note(listed);
        self.names += found.len();
        for name in found.iter().filter(|n| !matches!(&n[..], b"." | b"..")) {
            let child = self.fs.lookup(dir, name, &cred);
            if let Some(child) = self.note(child)
                && depth < 12
            {
                self.visit(&child, depth + 1);
            }
        }
    }
}

/// Reads everything; returns how many errors there were.
fn walk(fs: &Filesystem) -> usize {
    let mut walk = Walk { fs, names: 0, bytes: 0, errors: 0 };
    match fs.root() {
        Ok(root) => walk.visit(&root, 0),
        Err(_) => walk.errors += 1,
    }
    walk.errors
}

/// Changes things all over the place; errors are fine.
fn work(fs: &Filesystem, rng: &mut Rng) {
    let cred = Credentials::root();
    let Ok(root) = fs.root() else { return };
    let mut dirs = vec![root.clone()];
    for name in [&b"many"[..], b"d", b"lost+found"] {
        dirs.extend(fs.lookup(&root, name, &cred).ok().filter(|d| d.is_dir()));
    }
    for n in 0..60 {
        let dir = dirs[rng.below(dirs.len() as u64) as usize].clone();
        let name = format!("name {}", rng.below(80)).into_bytes();
        let other = format!("name {}", rng.below(80)).into_bytes();
        let to = dirs[rng.below(dirs.len() as u64) as usize].clone();
        match rng.below(9) {
            8 => {
                let (orig, donor) = (fs.lookup(&dir, &name, &cred), fs.lookup(&to, &other, &cred));
                if let (Ok(orig), Ok(donor)) = (orig, donor) {
                    let _ = fs.fallocate(&orig, FallocateMode::Allocate, 0, 5000, false, &cred);
                    let _ = fs.fallocate(&donor, FallocateMode::Allocate, 0, 9000, false, &cred);
                    let start = rng.below(4);
                    let range = MoveRange { orig_start: start, donor_start: start, len: rng.below(12) };
                    let _ = fs.move_extents(&orig, &donor, range, &cred);
                }
            }
            0 | 1 => drop(fs.mknod(&dir, &name, &NewInode::file(0o644), &cred)),
            2 => drop(fs.unlink(&dir, &name, &cred)),
            3 => drop(fs.mkdir(&dir, &name, 0o755, &cred)),
            4 => drop(fs.rename(&dir, &name, &to, &other, RenameFlags::default(), &cred)),
            5 => drop(fs.rmdir(&dir, &name, &cred)),
            6 => {
                if let Ok(inode) = fs.lookup(&dir, &name, &cred) {
                    let _ = fs.set_xattr(&inode, b"user.n", &[n; 300], XattrSet::Any, &cred);
                    let _ = fs.set_attr(&inode, &SetAttr { size: Some(0), ..SetAttr::default() }, &cred);
                }
            }
            _ => drop(fs.sync()),
        }
    }
}

/// A small image with a bit of everything.
fn victim(image: &Path, args: &str) {
    mke2fs(image, 4 << 20, args);
    let fs = open_rw(image);
    let cred = Credentials::root();
    let root = fs.root().unwrap();
    let many = fs.mkdir(&root, b"many", 0o755, &cred).unwrap();
    for n in 0..150 {
        fs.mknod(&many, format!("name {n}").as_bytes(), &NewInode::file(0o644), &cred).unwrap();
    }
    let dir = fs.mkdir(&root, b"d", 0o755, &cred).unwrap();
    for n in 0..10 {
        let file = fs.mknod(&dir, format!("name {n}").as_bytes(), &NewInode::file(0o644), &cred).unwrap();
        fs.set_xattr(&file, b"user.n", &[n; 200], XattrSet::Any, &cred).unwrap();
        fs.set_xattr(&file, b"user.large", &[n; 500], XattrSet::Any, &cred).unwrap();
    }
    fs.symlink(&root, b"long", &[b't'; 300], &cred).unwrap();
    drop((root, many, dir));
    fs.unmount().unwrap();
}

/// Bytes of `content` that are not zero lie in these 64-byte pieces: where damage means something.
fn pieces(content: &[u8]) -> Vec<usize> {
    content.chunks(64).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)).map(|(n, _)| n * 64).collect()
}

#[test]
fn random_damage() {
    need!(tools(&["mke2fs"]));
    let seed = seed();
    println!("seed={seed}");
    for args in [
        "-t ext4 -b 1024 -N 256 -O ^metadata_csum,^resize_inode -J size=1",
        "-t ext4 -b 1024 -N 256 -O ^resize_inode -J size=1",
        "-t ext2 -b 1024 -N 256",
        "-t ext4 -b 1024 -N 256 -O inline_data,ea_inode,^metadata_csum,^has_journal",
    ] {
        let dir = scratch();
        let image = dir.join("image");
        victim(&image, args);
        let content = std::fs::read(&image).unwrap();
        let pieces = pieces(&content);
        let base: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(&content));
        for round in 0..200 {
            let mut rng = Rng::new(seed ^ round);
            let device: Arc<dyn BlockDevice> = Arc::new(Overlay::new(Arc::clone(&base)));
            for _ in 0..12 {
                let at = pieces[rng.below(pieces.len() as u64) as usize] as u64 + rng.below(64);
                let value = if rng.chance(1, 4) { 0xff } else { rng.below(256) as u8 };
                device.write_at(at, &[value]).unwrap();
            }
            if let Ok(fs) = Filesystem::open(Arc::clone(&device), Setup::read_only()) {
                walk(&fs);
            }
            if let Ok(fs) = Filesystem::open(device, Setup::default()) {
                work(&fs, &mut rng);
                walk(&fs);
                let _ = fs.unmount();
            }
        }
    }
}

#[test]
fn the_collected_images() {
    let Ok(folder) = images() else {
        println!("skipped: EXTANT_IMAGES is not set");
        return;
    };
    need!(tools(&["xz"]));
    let mut paths: Vec<_> = ["e2fsprogs", "syzkaller"]
        .iter()
        .flat_map(|sub| std::fs::read_dir(folder.join(sub)).expect("folder of images"))
        .map(|entry| entry.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "xz"))
        .collect();
    paths.sort();
    let dir = scratch();
    let mut opened = 0;
    for path in paths {
        println!("{}", path.display());
        let image = dir.join("image");
        extant_testkit::oracle::unxz(&path, &image);
        let device = extant_device::OpenOptions::new().open(&image).unwrap();
        let base: Arc<dyn BlockDevice> = Arc::new(device);
        match Filesystem::open(Arc::clone(&base), Setup::read_only()) {
            Ok(fs) => {
                opened += 1;
                walk(&fs);
            }
            Err(e) => println!("  {e}"),
        }
        match Filesystem::open(Arc::new(Overlay::new(base)), Setup::default()) {
            Ok(fs) => {
                work(&fs, &mut Rng::new(1));
                walk(&fs);
                let _ = fs.unmount();
            }
            Err(Error::Incompatible(_) | Error::Corrupt(_) | Error::Checksum(_)) => {}
            Err(e) => println!("  {e}"),
        }
    }
    assert!(opened > 0, "no image could be opened");
}

#[test]
fn an_abort_that_only_the_journal_could_note_asks_for_a_check() {
    need!(extant_testkit::env::kernel_mounts());
    let dir = extant_testkit::scratch();
    let image = dir.join("image");
    extant_testkit::oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = extant_testkit::SimDevice::from_file(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let (root, admin) = (fs.root().unwrap(), Credentials::root());
    fs.mknod(&root, b"kept", &NewInode::file(0o644), &admin).unwrap();
    fs.sync().unwrap();
    fs.mknod(&root, b"lost", &NewInode::file(0o644), &admin).unwrap();
    device.fail(Failpoint::nth(Kind::Flush, 0));
    fs.sync().unwrap_err();
    drop(root);
    fs.unmount().unwrap_err();
    device.heal();
    let theirs = dir.join("theirs");
    device.content().to_file(&theirs).unwrap();
    extant_testkit::kernel::KernelMount::rw(&theirs).unmount();
    let ours = extant_testkit::SimDevice::from_content(device.content());
    let fs = Filesystem::open(Arc::clone(&ours) as _, Setup::default()).unwrap();
    assert!(fs.lookup(&fs.root().unwrap(), b"kept", &admin).is_ok());
    fs.unmount().unwrap();
    ours.content().to_file(&image).unwrap();
    for path in [&theirs, &image] {
        let header = extant_testkit::oracle::dumpe2fs_header(path);
        let state = header.iter().find(|(name, _)| name == "Filesystem state").unwrap();
        assert!(state.1.contains("errors"), "{}: {state:?}", path.display());
    }
}

#[test]
fn damage_that_makes_it_read_only_is_recorded_and_nothing_is_said_to_be_durable() {
    need!(tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    let dir = extant_testkit::scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4");
    extant_testkit::oracle::debugfs_write(&image, &["mkdir /bad"]);
    let blocks = extant_testkit::oracle::debugfs(&image, &["blocks /bad"]);
    let block: u64 = blocks.split_whitespace().find_map(|word| word.parse().ok()).expect("a block");
    let mut content = extant_testkit::sim::Content::from_file(&image).unwrap();
    content.write(block * 1024, &[0xff; 16]);
    let device = extant_testkit::SimDevice::from_content(content);
    let setup = Setup::with_options("errors=remount-ro").unwrap();
    let fs = Filesystem::open(Arc::clone(&device) as _, setup).unwrap();
    let (root, admin) = (fs.root().unwrap(), Credentials::root());
    let kept = fs.mknod(&root, b"kept", &NewInode::file(0o644), &admin).unwrap();
    fs.write_at(&kept, 0, b"kept", extant::WriteFlags::default(), &admin).unwrap();
    fs.fsync(&kept, false).unwrap();
    let lost = fs.mknod(&root, b"lost", &NewInode::file(0o644), &admin).unwrap();
    fs.write_at(&lost, 0, b"lost", extant::WriteFlags::default(), &admin).unwrap();
    let bad = fs.lookup(&root, b"bad", &admin).unwrap();
    assert!(fs.lookup(&bad, b"x", &admin).is_err_and(|e| e.errno() != 2));
    assert!(matches!(fs.mknod(&root, b"more", &NewInode::file(0o644), &admin), Err(Error::ReadOnly)));
    assert!(matches!(fs.fsync(&lost, false), Err(Error::ReadOnly)));
    assert!(matches!(fs.sync(), Err(Error::ReadOnly)));
    let mut read = [0; 4];
    assert_eq!(fs.read_at(&kept, 0, &mut read).unwrap(), 4);
    drop((kept, lost, bad, root));
    fs.unmount().unwrap_err();
    device.content().to_file(&image).unwrap();
    let header = extant_testkit::oracle::dumpe2fs_header(&image);
    let field = |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    assert_eq!(field("FS Error count").as_deref(), Some("1"));
    assert!(field("First error time").is_some() && field("Journal errno").is_some(), "{header:?}");
    // e2fsck mends the directory; what was synced is there.
    let mended = extant_testkit::oracle::e2fsck_with(&image, &["-fy"]);
    assert!(mended.status <= 1, "{mended}");
    assert_eq!(extant_testkit::oracle::debugfs_cat(&image, "/kept"), b"kept");
}

/// A directory that has itself, or a directory above it, among its names: nobody waits for a lock that he holds.
#[test]
fn directories_within_themselves_are_neither_removed_nor_renamed() {
    need!(tools(&["mke2fs", "debugfs"]));
    for args in ["-t ext4 -b 1024", "-t ext4 -b 1024 -O inline_data", "-t ext2 -b 1024"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, args);
        let fs = open_rw(&image);
        let (root, cred) = (fs.root().unwrap(), Credentials::root());
        let d = fs.mkdir(&root, b"d", 0o755, &cred).unwrap();
        let e = fs.mkdir(&d, b"e", 0o755, &cred).unwrap();
        fs.mknod(&e, b"file", &NewInode::file(0o644), &cred).unwrap();
        drop((root, d, e));
        fs.unmount().unwrap();
        drop(fs);
        extant_testkit::oracle::debugfs_write(&image, &["ln /d /d/e/above", "ln /d/e /d/e/self"]);
        let fs = open_rw(&image);
        let d = fs.lookup(&fs.root().unwrap(), b"d", &cred).unwrap();
        let e = fs.lookup(&d, b"e", &cred).unwrap();
        for name in [&b"self"[..], b"above"] {
            for refused in [
                fs.unlink(&e, name, &cred).map(drop),
                fs.rmdir(&e, name, &cred).map(drop),
                fs.rename(&e, name, &e, b"other", RenameFlags::default(), &cred).map(drop),
                fs.rename(&e, b"file", &e, name, RenameFlags::default(), &cred).map(drop),
                fs.rename(&e, name, &fs.root().unwrap(), b"other", RenameFlags::default(), &cred).map(drop),
            ] {
                assert!(refused.as_ref().is_err_and(Error::is_corruption), "{args}: {refused:?}");
            }
        }
        fs.unlink(&e, b"file", &cred).unwrap();
        drop((d, e));
        fs.unmount().unwrap();
    }
}

/// The root among the names of a directory below it, with a `..` that says so: it is in nothing, so nobody waits for its lock who
/// holds another. (Of circles without the root see `explore`.)
#[test]
fn the_root_is_in_no_directory() {
    need!(tools(&["mke2fs", "debugfs"]));
    for args in ["-t ext4 -b 1024", "-t ext2 -b 1024"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 8 << 20, args);
        let forge = ["mkdir /a", "mkdir /a/b", "ln / /a/b/r", "unlink /..", "ln /a/b /.."];
        extant_testkit::oracle::debugfs_write(&image, &forge);
        let fs = open_rw(&image);
        let cred = Credentials::root();
        let a = fs.lookup(&fs.root().unwrap(), b"a", &cred).unwrap();
        let b = fs.lookup(&a, b"b", &cred).unwrap();
        for refused in [
            fs.rmdir(&b, b"r", &cred).map(drop),
            fs.rename(&b, b"r", &b, b"other", RenameFlags::default(), &cred).map(drop),
            fs.rename(&b, b"r", &a, b"other", RenameFlags::default(), &cred).map(drop),
        ] {
            assert!(refused.as_ref().is_err_and(Error::is_corruption), "{args}: {refused:?}");
        }
        drop((a, b));
        fs.unmount().unwrap();
    }
}

/// Two groups with one block bitmap, and a file in one of them: what is allocated in the other and freed here never meets in a
/// commit.
#[test]
fn groups_that_share_a_bitmap() {
    need!(tools(&["mke2fs", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 64 << 20, "-t ext2 -b 1024 -O flex_bg,^resize_inode,^sparse_super2 -G 1");
    let fs = open_rw(&image);
    let cred = Credentials::root();
    let file = fs.mknod(&fs.root().unwrap(), b"file", &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&file, 0, &[1; 12 << 10], extant::WriteFlags::default(), &cred).unwrap();
    let geo = *fs.geometry();
    let [two, four] = [2, 4].map(extant_format::GroupNr);
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let bitmap = geo.group_first_block(two).0 + u64::from(geo.base_meta_blocks(two));
    let mut requests = vec![format!("set_bg 4 block_bitmap {bitmap}")];
    let first = geo.group_first_block(four).0 + 4000;
    requests.extend((0..12).map(|i| format!("sif /file block[{i}] {}", first + i)));
    extant_testkit::oracle::debugfs_write(&image, &requests.iter().map(String::as_str).collect::<Vec<_>>());
    let fs = crate::support::open_with(&image, "errors=continue");
    let root = fs.root().unwrap();
    let _ = fs.trim(0, u64::MAX, 0, &cred);
    let big = fs.mknod(&root, b"big", &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&big, 0, &vec![2; 12 << 20], extant::WriteFlags::default(), &cred).unwrap();
    fs.sync().unwrap();
    drop(fs.unlink(&root, b"file", &cred).unwrap());
    fs.sync().unwrap();
    fs.fsync(&big, false).unwrap();
    drop((big, root));
    fs.unmount().unwrap();
}

/// Two groups with one block bitmap are found at the mount, before there is a filesystem: recorded all the same, once it is mounted for
/// writing, and `errors=` is kept to.
#[test]
fn groups_that_share_a_bitmap_are_on_record() {
    need!(tools(&["mke2fs", "debugfs", "dumpe2fs"]));
    for args in ["-t ext4 -b 1024", "-t ext2 -b 1024 -O flex_bg"] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 64 << 20, &format!("{args} -G 1"));
        let fs = open_rw(&image);
        let (geo, two) = (*fs.geometry(), extant_format::GroupNr(2));
        fs.unmount().unwrap();
        drop(fs);
        let bitmap = geo.group_first_block(two).0 + u64::from(geo.base_meta_blocks(two));
        let forge = [format!("set_bg 4 block_bitmap {bitmap}"), "set_bg 4 checksum calc".to_owned()];
        extant_testkit::oracle::debugfs_write(&image, &forge.each_ref().map(String::as_str));
        let bytes = std::fs::read(&image).unwrap();
        let recorded = || {
            let header = extant_testkit::oracle::dumpe2fs_header(&image);
            let field = |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            let function = field("First error function");
            assert_eq!(function.is_some(), field("FS Error count").is_some(), "{header:?}");
            assert_eq!(function.is_some(), field("Last error time").is_some(), "{header:?}");
            let errors = field("Filesystem state").unwrap().contains("with errors");
            assert_eq!(function.is_some_and(|f| f == "extant"), errors, "{header:?}");
            errors
        };
        // Nobody writes, nobody records, until somebody does.
        let fs = crate::support::open_with(&image, "ro");
        assert!(!recorded(), "{args}");
        fs.remount(&extant::MountOptions::parse("rw,errors=continue").unwrap()).unwrap();
        fs.unmount().unwrap();
        drop(fs);
        assert!(recorded(), "{args}: after a remount");

        std::fs::write(&image, &bytes).unwrap();
        let fs = crate::support::open_with(&image, "errors=continue");
        let root = fs.root().unwrap();
        fs.mknod(&root, b"file", &NewInode::file(0o644), &Credentials::root()).expect("goes on");
        drop(root);
        fs.unmount().unwrap();
        drop(fs);
        assert!(recorded(), "{args}: errors=continue");

        std::fs::write(&image, &bytes).unwrap();
        let fs = crate::support::open_with(&image, "errors=remount-ro");
        assert!(fs.is_read_only(), "{args}");
        let root = fs.root().unwrap();
        let refused = fs.mknod(&root, b"file", &NewInode::file(0o644), &Credentials::root());
        assert!(matches!(refused, Err(Error::ReadOnly)), "{args}: {refused:?}");
        drop(root);
        let _ = fs.unmount();
        drop(fs);
        assert!(recorded(), "{args}: errors=remount-ro");

        std::fs::write(&image, &bytes).unwrap();
        let device = extant_device::OpenOptions::new().write(true).open(&image).unwrap();
        let refused = Filesystem::open(Arc::new(device), Setup::with_options("errors=panic").unwrap());
        assert!(matches!(refused, Err(Error::Shutdown)), "{args}: errors=panic: {refused:?}");
    }
}
