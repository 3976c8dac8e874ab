//! Zeroed inode tables: what is on the device, in every state that a crash can leave, and beside other work.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use extant_device::{BlockDevice, OpenOptions};
use extant_format::GroupNr;
use extant_testkit::kernel::KernelMount;
use extant_testkit::{Scratch, SimDevice, env, need, oracle, scratch};

use super::{AtWork, FROZEN_DELAY, Turn};
use crate::{Credentials, Filesystem, MountOptions, NewInode, Setup};

const MAKE: &str = "-E nodiscard,lazy_itable_init=1";

/// A filesystem on a device that was full of something else.
fn dirty_image(dir: &Scratch, size: u64, args: &str) -> std::path::PathBuf {
    let image = dir.join("image");
    let file = std::fs::File::create(&image).unwrap();
    let piece = vec![0xa5; 1 << 20];
    for at in (0..size).step_by(piece.len()) {
        file.write_all_at(&piece, at).unwrap();
    }
    drop(file);
    oracle::mke2fs(&image, size, &format!("{args} {MAKE}"));
    image
}

fn open(image: &Path, options: &str) -> Arc<Filesystem> {
    let device = OpenOptions::new().write(true).open(image).unwrap();
    Filesystem::open(Arc::new(device), Setup::with_options(options).unwrap()).unwrap()
}

/// What dumpe2fs says of a group.
#[derive(Debug, Default)]
struct Group {
    flags: String,
    table: (u64, u64),
    unused: u64,
}

fn groups(image: &Path) -> (u64, BTreeMap<u32, Group>) {
    let text = oracle::dumpe2fs(image);
    let mut found: BTreeMap<u32, Group> = BTreeMap::new();
    let mut at = 0;
    let (mut block, mut inode) = (0, 0);
    for line in text.lines().map(str::trim) {
        let number = |text: &str| {
            text.split(|c: char| !c.is_ascii_digit()).find(|w| !w.is_empty()).unwrap().parse::<u64>()
        };
        if let Some(rest) = line.strip_prefix("Group ") {
            if let Some((nr, rest)) = rest.split_once(':').filter(|(nr, _)| nr.parse::<u32>().is_ok()) {
                at = nr.parse().unwrap();
                found.entry(at).or_default().flags = rest.to_owned();
            }
        } else if let Some(rest) = line.strip_prefix("Block size:") {
            block = number(rest).unwrap();
        } else if let Some(rest) = line.strip_prefix("Inode size:") {
            inode = number(rest).unwrap();
        } else if let Some(rest) = line.strip_prefix("Inode table at ") {
            let (first, rest) = rest.split_once('-').unwrap();
            found.entry(at).or_default().table = (number(first).unwrap(), number(rest).unwrap());
        } else if let Some((_, rest)) = line.split_once(" directories, ").or(line.split_once(" directories"))
        {
            found.entry(at).or_default().unused =
                if rest.contains("unused inodes") { number(rest).unwrap() } else { 0 };
        }
    }
    // In bytes.
    for group in found.values_mut() {
        group.table = (group.table.0 * block, (group.table.1 + 1) * block);
        group.unused *= inode;
    }
    (block, found)
}

/// Groups that say that their table is zeroed; their unused parts are looked at.
fn zeroed(image: &Path) -> usize {
    let (block, groups) = groups(image);
    let file = std::fs::File::open(image).unwrap();
    let mut count = 0;
    for (nr, group) in &groups {
        if group.flags.contains("ITABLE_ZEROED") {
            count += 1;
            // Whole blocks: the rest of one with inodes was made anew with the first of them.
            let from = (group.table.1 - group.unused).next_multiple_of(block);
            let mut bytes = vec![1; (group.table.1 - from) as usize];
            file.read_exact_at(&mut bytes, from).unwrap();
            assert!(bytes.iter().all(|b| *b == 0), "group {nr} says that its table is zeroed");
        }
    }
    count
}

fn make_files(fs: &Filesystem, names: std::ops::Range<u32>) {
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    for n in names {
        fs.mknod(&root, n.to_string().as_bytes(), &NewInode::file(0o644), &cred).unwrap();
    }
}

#[test]
fn tables_are_zeroed_and_say_so() {
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]));
    let dir = scratch();
    for args in [
        "-t ext4 -b 1024 -N 4096",
        "-t ext4 -b 4096 -O ^has_journal -g 2048",
        "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -N 4096",
        "-t ext4 -b 1024 -O ^flex_bg -I 128 -N 4096",
        "-t ext4 -b 1024 -O bigalloc -C 2048 -N 4096",
    ] {
        let image = dirty_image(&dir, 32 << 20, args);
        let (_, all) = groups(&image);
        assert!(all.len() > 1, "{args}");
        let before = all.values().filter(|g| g.flags.contains("ITABLE_ZEROED")).count();
        assert!(before < all.len(), "{args}");
        let fs = open(&image, "noinit_itable");
        assert!(!fs.lazy_init.state.lock().running);
        make_files(&fs, 0..50);
        fs.zero_inode_tables().unwrap();
        make_files(&fs, 50..300);
        assert_eq!(fs.zero_next_itable(GroupNr(0)).unwrap(), Turn::Done);
        fs.unmount().unwrap();
        drop(fs);
        println!("{args}: {} groups", all.len());
        oracle::assert_clean(&image);
        assert_eq!(zeroed(&image), all.len(), "{args}");
        let kernel = KernelMount::ro(&image);
        // By another process: what this one opens a fork of another test may hold a moment longer, and the unmount fails.
        let listed = oracle::run_ok(oracle::command("ls").arg("-A").arg(kernel.path()));
        assert_eq!(listed.lines().count(), 301, "{args}");
        kernel.unmount();
    }
    // Without checksums of groups there are no such flags, and mke2fs zeroes the tables.
    let image = dirty_image(&dir, 16 << 20, "-t ext2");
    let fs = open(&image, "");
    assert!(!fs.lazy_init.state.lock().running);
    fs.zero_inode_tables().unwrap();
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

#[test]
fn every_crash_leaves_tables_as_zeroed_as_they_say() {
    need!(env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]));
    let seed = env::seed();
    println!("seed={seed}");
    let dir = scratch();
    let image = dirty_image(&dir, 16 << 20, "-t ext4 -b 1024 -g 2048 -N 1024 -J size=4");
    let device = SimDevice::from_file(&image);
    let setup = Setup::with_options("noinit_itable,commit=3000").unwrap();
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, setup).unwrap();
    device.restart_log();
    let mut from = GroupNr(0);
    for n in 0..4 {
        make_files(&fs, n * 20..n * 20 + 20);
        if let Turn::Zeroed(group) = fs.zero_next_itable(from).unwrap() {
            from = GroupNr(group.0 + 1);
        }
        if n % 2 == 1 {
            fs.sync().unwrap();
        }
    }
    fs.unmount().unwrap();
    let plan = device.crash_plan(seed).subsets(4);
    let every = plan.len().div_ceil(60);
    let (mut number, mut flagged) = (0, 0);
    let state_file = dir.join("state");
    plan.for_each(|state| {
        number += 1;
        if number % every != 0 {
            return;
        }
        state.content.to_file(&state_file).unwrap();
        let fs = open(&state_file, "noinit_itable");
        fs.unmount().unwrap();
        drop(fs);
        oracle::assert_clean(&state_file);
        flagged = flagged.max(zeroed(&state_file));
    });
    println!("{number} states, up to {flagged} groups zeroed");
    assert!(flagged >= 4);
}

#[test]
fn files_are_made_while_tables_are_zeroed() {
    need!(env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]));
    let dir = scratch();
    let image = dirty_image(&dir, 32 << 20, "-t ext4 -b 1024 -g 2048 -N 4096");
    let fs = open(&image, "init_itable=0");
    // The mount's own thread begins later.
    std::thread::scope(|scope| {
        for t in 0..3 {
            let fs = &fs;
            scope.spawn(move || make_files(fs, t * 1000..t * 1000 + 600));
        }
        scope.spawn(|| fs.zero_inode_tables().unwrap());
    });
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
    assert_eq!(zeroed(&image), groups(&image).1.len());
}

/// The only inodes that are left are those of the table that is being zeroed: who wants one waits.
#[test]
fn nobody_runs_out_of_inodes_over_it() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dirty_image(&dir, 8 << 20, "-t ext4 -b 1024 -N 256");
    let fs = open(&image, "noinit_itable");
    let at_work = AtWork::begin(&fs.lazy_init);
    let table = fs.alloc.next_itable(GroupNr(0)).unwrap().unwrap();
    let maker = {
        let fs = Arc::clone(&fs);
        std::thread::spawn(move || make_files(&fs, 0..100))
    };
    // Without the wait it fails soon.
    let mut looks = 0;
    while !maker.is_finished() && looks < 2000 {
        std::thread::yield_now();
        looks += 1;
    }
    assert!(!maker.is_finished(), "it does not wait");
    table.zero().unwrap();
    let mut handle = fs.journal.start(1).unwrap();
    table.finish(&mut handle).unwrap();
    handle.finish().unwrap();
    drop(at_work);
    maker.join().unwrap();
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}

fn running(fs: &Filesystem) -> bool {
    fs.lazy_init.state.lock().running
}

/// Waits for the thread to come to its end, which it does.
fn ended(fs: &Filesystem) {
    while running(fs) {
        std::thread::yield_now();
    }
}

#[test]
fn the_thread_follows_the_options_and_the_state_of_the_mount() {
    need!(env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]));
    let dir = scratch();
    let image = dirty_image(&dir, 32 << 20, "-t ext4 -b 1024 -g 2048 -N 4096");
    let fs = open(&image, "noinit_itable");
    assert!(!running(&fs));
    let (mut from, mut pause) = (GroupNr(0), Duration::ZERO);
    assert!(!fs.lazy_turn(&mut from, &mut pause), "not wanted");
    let cred = Credentials::root();
    fs.remount(&MountOptions::parse("init_itable=7").unwrap()).unwrap();
    assert!(running(&fs), "a remount starts it");
    assert!(fs.lazy_turn(&mut from, &mut pause));
    assert!(from.0 > 0);
    fs.freeze(&cred).unwrap();
    let was = from;
    assert!(fs.lazy_turn(&mut from, &mut pause), "it waits for the thaw");
    assert_eq!((from, pause), (was, FROZEN_DELAY));
    fs.thaw(&cred).unwrap();
    fs.remount(&MountOptions::parse("ro,init_itable=7").unwrap()).unwrap();
    assert!(!fs.lazy_turn(&mut from, &mut pause), "nothing is written");
    assert_eq!(from, was);
    // Clean, as it stands.
    oracle::assert_clean(&image);
    fs.remount(&MountOptions::parse("init_itable=0").unwrap()).unwrap();
    assert!(running(&fs), "and on it goes");
    // The thread itself, not after seconds.
    fs.lazy_init.state.lock().running = false;
    fs.start_lazy_init_after(Duration::ZERO);
    ended(&fs);
    assert!(!fs.alloc.has_unzeroed_itable());
    fs.remount(&MountOptions::parse("init_itable=3").unwrap()).unwrap();
    assert!(!running(&fs), "there is nothing left to do");
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
    assert_eq!(zeroed(&image), groups(&image).1.len());
}
