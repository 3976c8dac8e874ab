//! What a mount finds after a crash and what it leaves: recovery by read-only mounts, the three kinds of shutdown, and
//! `auto_da_alloc`.

use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, Filesystem, Ino, InodeRef, MountOptions, NewInode, OpenFile, OpenMode,
    RenameFlags, SetAttr, Setup, ShutdownMode,
};
use extant_device::{BlockDevice, OpenOptions};
use extant_testkit::oracle::{self, assert_clean, mke2fs};
use extant_testkit::sim::{Content, Failpoint, Kind, SimDevice};
use extant_testkit::{env, scratch};

use crate::support::{open_rw, open_with};

fn setup(options: &str, recover_on_device: bool) -> Setup {
    Setup { recover_on_device, ..Setup::with_options(options).unwrap() }
}

#[track_caller]
fn device(image: &Path, write: bool) -> Arc<dyn BlockDevice> {
    Arc::new(OpenOptions::new().write(write).open(image).unwrap())
}

fn root() -> Credentials {
    Credentials::root()
}

fn open(fs: &Arc<Filesystem>, inode: &InodeRef) -> OpenFile {
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    OpenFile::new(fs, inode, mode, &root()).unwrap()
}

/// A file with content, written in one go.
fn make(fs: &Arc<Filesystem>, name: &[u8], content: &[u8]) -> InodeRef {
    let inode = fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &root()).unwrap();
    assert_eq!(open(fs, &inode).write_at(0, content).unwrap().0, content.len());
    inode
}

fn read(fs: &Arc<Filesystem>, name: &[u8]) -> Option<Vec<u8>> {
    let inode = fs.lookup(&fs.root().unwrap(), name, &root()).ok()?;
    let mut bytes = vec![0; inode.attr().size as usize];
    let read = fs.read_at(&inode, 0, &mut bytes).unwrap();
    assert_eq!(read, bytes.len());
    Some(bytes)
}

/// An image that was in use when its machine stopped: in its journal are a file and one that has lost its name while it was
/// open.
fn crashed(image: &Path, mkfs: &str) {
    mke2fs(image, 32 << 20, mkfs);
    let fs = open_rw(image);
    let root_dir = fs.root().unwrap();
    make(&fs, b"kept", b"in the journal");
    let nameless = make(&fs, b"nameless", &[7; 100_000]);
    open(&fs, &nameless).fsync(false).unwrap();
    fs.unlink(&root_dir, b"nameless", &root()).unwrap();
    open(&fs, &fs.lookup(&root_dir, b"kept", &root()).unwrap()).fsync(false).unwrap();
    fs.fsync(&root_dir, false).unwrap();
    fs.shutdown(ShutdownMode::NoFlush, &root()).unwrap();
    drop(nameless);
    assert!(matches!(fs.unmount(), Err(Error::Shutdown)));
}

fn wants_recovery(image: &Path) -> bool {
    let header = oracle::dumpe2fs_header(image);
    header.iter().any(|(name, value)| name == "Filesystem features" && value.contains("needs_recovery"))
}

const KINDS: [&str; 3] = ["-t ext4", "-t ext4 -O orphan_file", "-t ext4 -b 1024 -O inline_data"];

/// As the kernel: journal and orphans are done on the device, the image is clean while it is mounted, and it can turn writable.
#[test]
fn a_read_only_mount_recovers_a_device_that_can_be_written() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for mkfs in KINDS {
        let dir = scratch();
        let image = dir.join("image");
        crashed(&image, mkfs);
        assert!(wants_recovery(&image));
        let fs = Filesystem::open(device(&image, true), setup("ro", true)).unwrap();
        assert!(fs.is_read_only());
        assert!(!wants_recovery(&image), "{mkfs}");
        assert_clean(&image);
        assert_eq!(read(&fs, b"kept").as_deref(), Some(&b"in the journal"[..]), "{mkfs}");
        let new = NewInode::file(0o644);
        let root_dir = fs.root().unwrap();
        assert!(matches!(fs.mknod(&root_dir, b"a", &new, &root()), Err(Error::ReadOnly)));
        fs.unmount().unwrap();
        drop((root_dir, fs));
        assert_clean(&image);

        crashed(&image, mkfs);
        let fs = Filesystem::open(device(&image, true), setup("ro", true)).unwrap();
        fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
        make(&fs, b"a", b"written after it turned writable");
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        assert!(read(&open_with(&image, "ro"), b"a").is_some());
    }
}

/// With multiple-mount protection the filesystem is taken for the recovery, given back, and taken again for writing.
#[test]
fn a_protected_filesystem_is_taken_before_it_is_recovered() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    crashed(&image, "-t ext4 -O mmp -E mmp_update_interval=1");
    let fs = Filesystem::open(device(&image, true), setup("ro", true)).unwrap();
    assert!(!wants_recovery(&image));
    let free = || oracle::debugfs(&image, &["dump_mmp"]).contains("sequence: ff4d4d50");
    assert!(free(), "a read-only mount does not keep it");
    assert_clean(&image);
    fs.remount(&MountOptions::parse("rw").unwrap()).unwrap();
    assert!(!free(), "nobody else may open it");
    fs.unmount().unwrap();
    drop(fs);
    assert!(free());
    assert_clean(&image);
}

/// Not asked to, or told not to look at the journal, or where the device refuses writing: the image stays as it is.
#[test]
fn a_read_only_mount_that_may_not_recover_writes_nothing() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for mkfs in KINDS {
        let dir = scratch();
        let image = dir.join("image");
        crashed(&image, mkfs);
        let before = std::fs::read(&image).unwrap();
        for (options, write, asked) in
            [("ro", true, false), ("ro", false, true), ("ro,noload", true, true), ("ro,noload", false, false)]
        {
            let fs = Filesystem::open(device(&image, write), setup(options, asked)).unwrap();
            let kept = read(&fs, b"kept");
            assert_eq!(kept.is_some(), !options.contains("noload"), "{mkfs} {options}");
            let refused = fs.remount(&MountOptions::parse("rw").unwrap());
            assert!(matches!(refused, Err(Error::Incompatible(_))), "{mkfs} {options}: {refused:?}");
            fs.unmount().unwrap();
            drop(fs);
            assert!(before == std::fs::read(&image).unwrap(), "{mkfs} {options} {write} {asked}");
        }
    }
}

/// `EXT4_IOC_SHUTDOWN`: by default all is written and the image is clean; with the log flushed what was committed is there
/// after recovery, and with nothing flushed what was synced.
#[test]
fn the_kinds_of_shutdown() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    for how in [ShutdownMode::Sync, ShutdownMode::FlushLog, ShutdownMode::NoFlush] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, "-t ext4");
        let fs = open_with(&image, "commit=300");
        make(&fs, b"synced", b"s");
        fs.sync().unwrap();
        let late = make(&fs, b"late", b"some content");
        fs.shutdown(how, &root()).unwrap();
        assert!(matches!(
            fs.mknod(&fs.root().unwrap(), b"x", &NewInode::file(0o600), &root()),
            Err(Error::Shutdown)
        ));
        assert!(fs.unmount().is_err(), "nobody takes it for an orderly end");
        drop((late, fs));
        assert_eq!(wants_recovery(&image), how != ShutdownMode::Sync, "{how:?}");
        assert!(!wants_check(&image), "{how:?}: it was asked for, nothing is wrong");
        let fs = open_rw(&image);
        assert_eq!(read(&fs, b"synced").as_deref(), Some(&b"s"[..]));
        let late = read(&fs, b"late");
        match how {
            ShutdownMode::Sync => assert_eq!(late.as_deref(), Some(&b"some content"[..])),
            ShutdownMode::FlushLog => assert_eq!(late.as_deref(), Some(&b""[..]), "its name was committed"),
            ShutdownMode::NoFlush => assert_eq!(late, None),
        }
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        assert!(!wants_check(&image), "{how:?}");
    }
}

/// Whether the journal or the superblock says that something went wrong.
fn wants_check(image: &Path) -> bool {
    let header = oracle::dumpe2fs_header(image);
    header
        .iter()
        .any(|(name, value)| name == "Journal errno" || name == "Filesystem state" && value != "clean")
}

const OLD: &[u8] = b"the old content";
const NEW: [u8; 9000] = [0x5A; 9000];

/// The two ways in which programs replace a file without fsync (ext4(5), `auto_da_alloc`).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Replace {
    ByRename,
    BetweenDirectories,
    ByTruncate,
}

fn replace(fs: &Arc<Filesystem>, how: Replace) {
    let root_dir = fs.root().unwrap();
    if how == Replace::ByTruncate {
        let inode = fs.lookup(&root_dir, b"file", &root()).unwrap();
        let open = open(fs, &inode);
        fs.set_attr(&inode, &SetAttr { size: Some(0), ..SetAttr::default() }, &root()).unwrap();
        open.write_at(0, &NEW).unwrap();
        return;
    }
    let from = match how {
        Replace::BetweenDirectories => fs.mkdir(&root_dir, b"dir", 0o755, &root()).unwrap(),
        _ => root_dir.clone(),
    };
    let inode = fs.mknod(&from, b"new", &NewInode::file(0o644), &root()).unwrap();
    open(fs, &inode).write_at(0, &NEW).unwrap();
    fs.rename(&from, b"new", &root_dir, b"file", RenameFlags::default(), &root()).unwrap();
}

/// What `file` holds in each state that a crash may leave once the replacement is committed by an fsync of something else,
/// and in any before.
fn states_after(base: &Content, options: &str, how: Replace) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let device = SimDevice::from_content(base.clone());
    let fs = Filesystem::open(Arc::clone(&device) as _, setup(options, false)).unwrap();
    replace(&fs, how);
    make(&fs, b"other", b"");
    // Commits the replacement, and writes no file's content.
    fs.fsync(&fs.root().unwrap(), false).unwrap();
    device.mark(1);
    device.flush().unwrap();
    fs.shutdown(ShutdownMode::NoFlush, &root()).unwrap();
    assert!(fs.unmount().is_err());
    let (mut before, mut after) = (Vec::new(), Vec::new());
    device.crash_plan(env::seed_or(1)).subsets(8).for_each(|state| {
        let committed = !state.marks.is_empty();
        let device = SimDevice::from_content(state.content);
        device.set_recording(false);
        let fs = Filesystem::open(device as _, Setup::default()).unwrap();
        let content = read(&fs, b"file").expect("the name is there");
        if committed { after.push(content) } else { before.push(content) }
    });
    (before, after)
}

#[test]
fn a_file_that_replaces_another_is_not_empty_after_a_crash() {
    need!(env::tools(&["mke2fs"]));
    for mkfs in [
        "-t ext4 -b 1024 -J size=1",
        "-t ext4 -b 4096 -J size=4",
        "-t ext4 -b 1024 -J size=1 -O inline_data -I 256",
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 16 << 20, mkfs);
        let fs = open_rw(&image);
        make(&fs, b"file", OLD);
        fs.unmount().unwrap();
        drop(fs);
        let base = Content::from_file(&image).unwrap();
        for how in [Replace::ByRename, Replace::BetweenDirectories, Replace::ByTruncate] {
            let (before, after) = states_after(&base, "commit=300", how);
            assert!(!after.is_empty() && after.iter().all(|c| *c == NEW), "{mkfs} {how:?}: new content");
            let whole = |c: &Vec<u8>| *c == OLD || *c == NEW;
            assert!(!before.is_empty() && before.iter().all(whole), "{mkfs} {how:?}: old or new");
            let (_, without) = states_after(&base, "commit=300,noauto_da_alloc", how);
            assert!(
                without.iter().all(Vec::is_empty),
                "{mkfs} {how:?}: `noauto_da_alloc` leaves it to fsync"
            );
        }
    }
}
/// A mount that was shut down leaves nothing behind that keeps the device open, whatever was dirty or had lost its name.
#[test]
fn after_a_shutdown_the_device_is_let_go() {
    need!(env::tools(&["mke2fs"]));
    for (unlink, sync, held) in [
        (false, false, false),
        (false, true, true),
        (true, false, false),
        (true, false, true),
        (true, true, true),
    ] {
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, "-t ext4");
        let device = device(&image, true);
        let fs = Filesystem::open(Arc::clone(&device), setup("commit=300", false)).unwrap();
        let inode = make(&fs, b"file", b"content");
        if sync {
            open(&fs, &inode).fsync(false).unwrap();
        }
        if unlink {
            fs.unlink(&fs.root().unwrap(), b"file", &root()).unwrap();
        }
        let inode = held.then_some(inode);
        fs.shutdown(ShutdownMode::NoFlush, &root()).unwrap();
        drop(inode);
        assert!(fs.unmount().is_err());
        drop(fs);
        assert_eq!(Arc::strong_count(&device), 1, "unlink {unlink}, sync {sync}, held {held}");
    }
}

/// An entry among the orphans that leads nowhere does not keep the image from being written: a list ends there, a slot is emptied,
/// and what else is there is finished.
#[test]
fn orphans_that_lead_nowhere() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    for (mkfs, listed) in
        [("-t ext4 -b 4096 -O ^orphan_file", true), ("-t ext4 -b 4096 -O orphan_file", false)]
    {
        // An impossible number, and an inode that is not in use; alone, and beside one that is to be cut.
        for (wild, alone) in [(9_999_999, true), (9_999_999, false), (100, true), (100, false)] {
            let dir = scratch();
            let image = dir.join("image");
            mke2fs(&image, 32 << 20, &format!("{mkfs},^metadata_csum"));
            let fs = open_rw(&image);
            let ino = make(&fs, b"cut", &[7; 100_000]).ino().0;
            fs.unmount().unwrap();
            drop(fs);
            oracle::debugfs_write(&image, &[&format!("sif <{ino}> size 5000")]);
            let entries = if alone { vec![wild] } else { vec![ino, wild] };
            if listed {
                let next = [format!("ssv last_orphan {}", entries[0]), format!("sif <{ino}> dtime {wild}")];
                let next = if alone { &next[..1] } else { &next[..] };
                let _ = oracle::debugfs_write(&image, &next.iter().map(String::as_str).collect::<Vec<_>>());
            } else {
                fill_slots(&image, &entries);
            }
            let fs = open_with(&image, "errors=continue");
            assert!(!fs.is_read_only(), "{mkfs}, {wild}");
            make(&fs, b"a", b"written all the same");
            let cut = fs.lookup(&fs.root().unwrap(), b"cut", &root()).unwrap();
            assert_eq!(cut.attr().blocks, if alone { 200 } else { 16 }, "{mkfs}, {wild}");
            fs.set_attr(&cut, &SetAttr { size: Some(0), ..SetAttr::default() }, &root()).unwrap();
            drop(cut);
            fs.unmount().unwrap();
            drop(fs);
            assert_clean(&image);
        }
    }
}

/// Writes the first slots of the orphan file of an image without checksums.
fn fill_slots(image: &Path, entries: &[u32]) {
    let header = oracle::dumpe2fs_header(image);
    let file = header.iter().find(|(name, _)| name.starts_with("Orphan file inode")).expect("an orphan file");
    let blocks = oracle::debugfs(image, &[&format!("blocks <{}>", file.1)]);
    let block =
        blocks.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).next().expect("a block");
    let bytes: Vec<u8> = entries.iter().flat_map(|ino| ino.to_le_bytes()).collect();
    device(image, true).write_at(block * 4096, &bytes).unwrap();
}

fn state(image: &Path) -> String {
    let header = oracle::dumpe2fs_header(image);
    header.into_iter().find(|(name, _)| name == "Filesystem state").unwrap().1
}

/// A backup says what the filesystem is; its orphans, errors and state are those of the primary superblock, if there is one.
#[test]
fn a_mount_by_a_backup_knows_what_is_under_way() {
    need!(env::tools(&["mke2fs", "e2fsck", "dumpe2fs", "debugfs"]));
    let by_backup = |image: &Path| {
        let fs = open_with(image, "sb=8193");
        fs.mkdir(&fs.root().unwrap(), b"new", 0o755, &root()).unwrap();
        fs.unmount().unwrap();
    };
    for mkfs in ["-t ext4 -b 1024 -O ^orphan_file", "-t ext4 -b 1024 -O orphan_file", "-t ext2 -b 1024"] {
        let dir = scratch();
        let image = dir.join("image");
        if !mkfs.contains("ext2") {
            crashed(&image, mkfs);
            by_backup(&image);
            assert_eq!(state(&image), "clean", "{mkfs}");
            assert_clean(&image);
        }
        mke2fs(&image, 32 << 20, mkfs);
        by_backup(&image);
        assert_eq!(state(&image), "clean", "{mkfs}");
        assert_clean(&image);
        let group = |bytes: &[u8]| u16::from_le_bytes([bytes[1024 + 0x5a], bytes[1024 + 0x5b]]);
        let mut bytes = std::fs::read(&image).unwrap();
        assert_eq!((group(&bytes), group(&bytes[8192 << 10..])), (0, 1), "{mkfs}");
        // Errors stay on record.
        oracle::debugfs_write(&image, &["ssv state 3", "ssv error_count 2", "ssv first_error_ino 12"]);
        let fs = open_with(&image, "sb=8193,errors=continue");
        assert_eq!(fs.superblock().first_error().map(|e| e.ino), Some(12), "{mkfs}");
        fs.unmount().unwrap();
        drop(fs);
        assert!(state(&image).contains("errors"), "{mkfs}: {}", state(&image));
        // Where there is none it is made anew.
        bytes[1024..2048].fill(0);
        std::fs::write(&image, bytes).unwrap();
        let fs = open_with(&image, "sb=8193");
        fs.mkdir(&fs.root().unwrap(), b"newer", 0o755, &root()).unwrap();
        fs.unmount().unwrap();
        drop(fs);
        assert_eq!(group(&std::fs::read(&image).unwrap()), 0, "{mkfs}");
        assert_clean(&image);
    }
}

/// A journal that says that the last mount ended with an error: the superblock says it too, also after a mount by a backup.
#[test]
fn a_mount_by_a_backup_takes_over_the_errors_of_the_journal() {
    need!(env::tools(&["mke2fs", "dumpe2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, "-t ext4 -b 1024");
    let sim = SimDevice::from_file(&image);
    // Nothing but the sync writes.
    let options = "errors=continue,noinit_itable,commit=300";
    let fs = Filesystem::open(Arc::clone(&sim) as _, setup(options, false)).unwrap();
    sim.fail(Failpoint::nth(Kind::Write, 0));
    fs.mknod(&fs.root().unwrap(), b"a", &NewInode::file(0o644), &root()).unwrap();
    assert!(fs.sync().is_err());
    assert!(fs.unmount().is_err());
    drop(fs);
    sim.content().to_file(&image).unwrap();
    open_with(&image, "sb=8193,errors=continue").unmount().unwrap();
    assert!(state(&image).contains("errors"), "{}", state(&image));
}

/// A file whose truncation a crash has interrupted, in a block that the device cannot read now, or does not take: the mount goes on
/// without the rest of that block, can be frozen, remounted and unmounted, and the next one zeroes it.
#[test]
fn an_orphan_whose_last_block_fails_waits_for_the_next_mount() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    for mkfs in ["-t ext4 -b 1024 -O ^orphan_file", "-t ext2 -b 1024"] {
        for kind in [Kind::Read, Kind::Write] {
            let what = format!("{mkfs}, {kind:?}");
            let (dir, ino, last) = interrupted(mkfs);
            let image = dir.join("image");
            let sim = SimDevice::from_file(&image);
            sim.fail(Failpoint::all_from(kind, 0).within(last..last + 1024));
            let fs = Filesystem::open(Arc::clone(&sim) as _, Setup::default()).expect("the rest can be used");
            make(&fs, b"other", &[1; 3000]);
            let cut = fs.lookup(&fs.root().unwrap(), b"cut", &root()).unwrap();
            let attr = cut.attr();
            assert_eq!((attr.size, attr.blocks), (1500, 4), "{what}: what is past the end is freed");
            assert_eq!(fs.superblock().last_orphan(), ino, "{what}");
            if kind == Kind::Write {
                assert_eq!(read(&fs, b"cut").as_deref(), Some(&[7; 1500][..]), "{what}");
            }
            drop(cut);
            fs.sync().unwrap();
            fs.freeze(&root()).unwrap();
            fs.thaw(&root()).unwrap();
            for options in ["ro", "rw"] {
                fs.remount(&MountOptions::parse(options).unwrap()).unwrap();
            }
            assert_eq!(fs.superblock().last_orphan(), ino, "{what}: still owed");
            fs.unmount().unwrap();
            drop(fs);
            sim.content().to_file(&image).unwrap();
            assert_clean(&image);
            sim.heal();
            settled(&sim, last, &[7; 1500], &what);
            sim.content().to_file(&image).unwrap();
            assert_clean(&image);
        }
    }
}

/// What is written into such a block afterwards is missed: who asks for it to be durable is told, and who unmounts.
#[test]
fn what_is_written_to_the_last_block_of_such_an_orphan_is_missed() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let mkfs = "-t ext4 -b 1024 -O ^orphan_file";
    for change in ["overwritten", "longer", "cut where it ends"] {
        let (dir, ino, last) = interrupted(mkfs);
        let sim = SimDevice::from_file(&dir.join("image"));
        sim.fail(Failpoint::all_from(Kind::Write, 0).within(last..last + 1024));
        let fs = Filesystem::open(Arc::clone(&sim) as _, Setup::default()).unwrap();
        let file = open(&fs, &fs.lookup(&fs.root().unwrap(), b"cut", &root()).unwrap());
        let kept = if change == "overwritten" {
            file.write_at(1100, &[8; 10]).unwrap();
            file.fsync(false).unwrap_err();
            fs.freeze(&root()).unwrap_err();
            drop(file);
            fs.unmount().unwrap_err();
            1500
        } else if change == "cut where it ends" {
            file.fallocate(FallocateMode::Allocate, 8192, 4096, true).unwrap();
            file.set_len(1500).unwrap();
            fs.sync().unwrap_err();
            assert_eq!(fs.superblock().last_orphan(), ino, "the zeros are still owed");
            drop(file);
            fs.unmount().unwrap_err();
            1500
        } else {
            // Longer it is only once its old end is zeroed.
            file.set_len(9000).unwrap_err();
            sim.heal();
            file.set_len(9000).unwrap();
            drop(file);
            fs.unmount().unwrap();
            9000
        };
        drop(fs);
        sim.heal();
        let mut want = vec![0; kept];
        want[..1500].fill(7);
        settled(&sim, last, &want, change);
        sim.content().to_file(&dir.join("image")).unwrap();
        assert_clean(&dir.join("image"));
    }
}

/// An image with the file `cut` whose truncation to 1500 bytes was interrupted; its number, and where its last block is then.
fn interrupted(mkfs: &str) -> (extant_testkit::Scratch, Ino, u64) {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, mkfs);
    let fs = open_rw(&image);
    let file = make(&fs, b"cut", &[7; 4096]);
    let ino = file.ino();
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let blocks = oracle::debugfs(&image, &["blocks /cut"]);
    let blocks: Vec<u64> = blocks.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    oracle::debugfs_write(&image, &["sif /cut size 1500", &format!("ssv last_orphan {ino}")]);
    (dir, ino, blocks[1] * 1024)
}

/// A mount of a device that works: `cut` is no orphan any more and has this content, and behind byte 1500 its block is zero.
fn settled(sim: &Arc<SimDevice>, last: u64, content: &[u8], what: &str) {
    let fs = Filesystem::open(Arc::clone(sim) as _, Setup::default()).unwrap();
    assert_eq!(fs.superblock().last_orphan().0, 0, "{what}");
    assert!(read(&fs, b"cut").as_deref() == Some(content), "{what}");
    fs.unmount().unwrap();
    let mut bytes = [9; 1024];
    sim.content().read(last, &mut bytes);
    assert!(bytes[..476] == [7; 476] && bytes[476..] == [0; 548], "{what}: old bytes past the end");
}
