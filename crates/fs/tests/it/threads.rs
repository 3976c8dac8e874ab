//! Many threads on the same few names: lock order is checked as they go, and the image is clean afterwards.

use std::sync::Arc;

use extant::{Credentials, NewInode, WriteFlags};
use extant_testkit::env::{scratch, seed, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::rng::Rng;
use extant_testkit::script::{Executor, Mix, Op, random};

use crate::support::{LibExecutor, open_rw, open_with, tree_of};

fn of_names(op: &Op) -> bool {
    !matches!(
        op,
        Op::Write { .. }
            | Op::Append { .. }
            | Op::Fallocate { .. }
            | Op::Punch { .. }
            | Op::Zero { .. }
            | Op::Collapse { .. }
            | Op::Insert { .. }
    )
}

#[test]
fn changes_of_the_same_names() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let seed = seed();
    println!("seed={seed}");
    for args in
        ["-t ext4 -b 1024", "-t ext4 -O inline_data,ea_inode", "-t ext2", "-t ext4 -O orphan_file -b 1024"]
    {
        println!("{args}");
        let dir = scratch();
        let image = dir.join("image");
        mke2fs(&image, 32 << 20, args);
        let fs = open_rw(&image);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let fs = Arc::clone(&fs);
                scope.spawn(move || {
                    let mix = Mix { names: 80, ..Mix::default() };
                    let ops = random(&mut Rng::new(seed).fork(thread), 1500, &mix);
                    let mut executor = LibExecutor::new(fs);
                    for op in ops.iter().filter(|op| of_names(op)) {
                        let _ = executor.apply(op);
                    }
                });
            }
        });
        fs.sync().unwrap();
        let before = tree_of(&fs);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
        let fs = open_rw(&image);
        before.assert_equal(&tree_of(&fs), args);
    }
}

/// One thread a directory, all at once, and a reader that lists them.
#[test]
fn creation_in_separate_directories() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 128 << 20, "-t ext4");
    let fs = open_rw(&image);
    let cred = extant::Credentials::root();
    let root = fs.root().unwrap();
    let dirs: Vec<_> =
        (0..4).map(|n| fs.mkdir(&root, format!("d{n}").as_bytes(), 0o755, &cred).unwrap()).collect();
    std::thread::scope(|scope| {
        for dir in &dirs {
            let (fs, cred) = (&fs, &cred);
            scope.spawn(move || {
                for n in 0..2000 {
                    let name = format!("file number {n}");
                    fs.mknod(dir, name.as_bytes(), &extant::NewInode::file(0o644), cred).unwrap();
                    if n % 3 == 0 {
                        fs.unlink(dir, name.as_bytes(), cred).unwrap();
                    }
                }
            });
            scope.spawn(move || {
                for _ in 0..20 {
                    crate::support::names(fs, dir);
                }
            });
        }
    });
    for dir in &dirs {
        assert_eq!(crate::support::names(&fs, dir).len(), 2000 - 667);
    }
    drop((root, dirs));
    fs.unmount().unwrap();
    assert_clean(&image);
}

/// Whether the evictor still comes to it or not. It may hold the last reference: then the device tells when all is over.
#[test]
fn what_was_unlinked_is_freed_when_the_filesystem_is_dropped() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024");
    let device = extant_testkit::SimDevice::from_file(&image);
    device.set_recording(false);
    let run = |ops: &[Op]| {
        let fs = extant::Filesystem::open(Arc::clone(&device) as _, extant::Setup::default()).unwrap();
        let mut executor = LibExecutor::new(fs);
        ops.iter().for_each(|op| executor.apply(op).unwrap());
        drop(executor);
        while Arc::strong_count(&device) > 1 {
            std::thread::yield_now();
        }
    };
    for n in 0..40 {
        let path = format!("f{n}");
        run(&[
            Op::Create { path: path.clone(), mode: 0o644 },
            Op::Append { path: path.clone(), len: 5000, seed: n },
            Op::Fsync { path: path.clone() },
            Op::Unlink { path },
        ]);
    }
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
    let header = extant_testkit::oracle::dumpe2fs_header(&image);
    let field = |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, v)| v.parse::<u64>().unwrap());
    assert_eq!(field("Free inodes").unwrap() + 11, field("Inode count").unwrap());
    assert_eq!(field("First orphan inode"), None);
}

/// Appends larger than the cache stay whole beside each other, buffered and direct, and the cache keeps its bound.
#[test]
fn large_appends_are_whole() {
    need!(tools(&["mke2fs", "e2fsck"]));
    const LEN: usize = 40 << 20;
    let (dir, admin) = (scratch(), Credentials::root());
    let image = dir.join("image");
    for args in ["-t ext4", "-t ext4 -b 1024"] {
        mke2fs(&image, 512 << 20, args);
        let fs = open_with(&image, "cache_size=24m");
        let file = fs.mknod(&fs.root().unwrap(), b"f", &NewInode::file(0o644), &admin).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let (fs, file, admin) = (&fs, &file, &admin);
                scope.spawn(move || {
                    let flags = WriteFlags { append: true, ..WriteFlags::default() };
                    let (bytes, write) = (vec![b'a' + thread; LEN], [thread < 2, thread == 2]);
                    for direct in write {
                        let written = if direct {
                            fs.write_direct(file, 0, &bytes, flags, admin)
                        } else {
                            fs.write_at(file, 0, &bytes, flags, admin)
                        };
                        let (done, start) = written.unwrap();
                        assert_eq!((done, start % LEN as u64), (LEN, 0), "{args}");
                    }
                });
            }
        });
        assert_eq!(file.size(), 8 * LEN as u64);
        let mut piece = vec![0; LEN];
        for n in 0..8 {
            assert_eq!(fs.read_at(&file, n * LEN as u64, &mut piece).unwrap(), LEN);
            assert!(piece.iter().all(|b| *b == piece[0]), "{args}: append {n} is torn");
        }
        drop(file);
        fs.unmount().unwrap();
        drop(fs);
        assert_clean(&image);
    }
}
