//! Journals of the kernel and of debugfs recovered by us, ours recovered by them.

use std::path::Path;
use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_format::fast_commit::Operation;
use extant_format::jbd2::MAGIC;
use extant_journal::{BlockCache, Journal, JournalOptions, LogPlace, WantedFeatures, recover};
use extant_testkit::kernel::{KernelMount, Loop};
use extant_testkit::sim::{Content, SimDevice};
use extant_testkit::{Scratch, env, need, oracle, scratch};

const SIZE: u64 = 64 << 20;

/// The journal inode's blocks, as debugfs maps them (its list of blocks would mix in those of an indirect map).
fn journal_blocks(image: &Path) -> Vec<u64> {
    let header = oracle::dumpe2fs_header(image);
    let total = header.iter().find(|(name, _)| name == "Total journal blocks").unwrap().1.parse().unwrap();
    let requests: Vec<String> = (0..total).map(|n: u32| format!("bmap <8> {n}")).collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    let text = oracle::debugfs(image, &requests);
    let blocks: Vec<u64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(blocks.len(), requests.len());
    blocks
}

fn block_size(image: &Path) -> u32 {
    let header = oracle::dumpe2fs_header(image);
    header.iter().find(|(name, _)| name == "Block size").unwrap().1.parse().unwrap()
}

fn place(image: &Path, device: &Arc<SimDevice>) -> LogPlace {
    place_in(image, device, SIZE / u64::from(block_size(image)))
}

fn place_in(image: &Path, device: &Arc<SimDevice>, fs_blocks: u64) -> LogPlace {
    let blocks = journal_blocks(image);
    let extents = blocks.iter().map(|b| (Pblk(*b), 1));
    LogPlace::internal(Arc::clone(device) as _, block_size(image), fs_blocks, extents).unwrap()
}

/// An image as it is while the kernel has it mounted and has just synced it several times.
fn dirty(scratch: &Scratch, mkfs: &str, options: &str) -> std::path::PathBuf {
    let image = scratch.join("live.img");
    oracle::mke2fs(&image, SIZE, mkfs);
    let mount = KernelMount::with(&image, options).unwrap();
    let at = |name: &str| mount.path().join(name);
    for dir in 0..20 {
        let open = oracle::files_on_a_mount();
        std::fs::create_dir(at(&format!("d{dir}"))).unwrap();
        for n in 0..30 {
            std::fs::write(at(&format!("d{dir}/f{n}")), vec![dir as u8; n * 100]).unwrap();
        }
        drop(open);
        if dir % 5 == 4 {
            mount.sync();
        }
    }
    for dir in 3..9 {
        let open = oracle::files_on_a_mount();
        std::fs::remove_dir_all(at(&format!("d{dir}"))).unwrap();
        drop(open);
        mount.sync();
        let open = oracle::files_on_a_mount();
        std::fs::write(at(&format!("again{dir}")), vec![7; 300_000]).unwrap();
        drop(open);
        mount.sync();
    }
    let copy = scratch.join("dirty.img");
    std::fs::copy(&image, &copy).unwrap();
    mount.unmount();
    copy
}

/// Both contents, the superblocks of filesystem and journal taken as equal: each program writes its own times and counts there.
fn assert_same(ours: &Content, theirs: &Path, skip: &[u64], size: u32, what: &str) {
    let theirs = Content::from_file(theirs).unwrap();
    let size = size as usize;
    let (mut a, mut b) = (vec![0; size], vec![0; size]);
    for block in 0..ours.size() / size as u64 {
        ours.read(block * size as u64, &mut a);
        theirs.read(block * size as u64, &mut b);
        if block == 1024 / size as u64 {
            let at = 1024 % size;
            a[at..at + 1024].fill(0);
            b[at..at + 1024].fill(0);
        }
        let differs = a.iter().zip(&b).position(|(a, b)| a != b);
        assert!(
            differs.is_none() || skip.contains(&block),
            "{what}: block {block} differs from byte {differs:?} on: {a:x?} / {b:x?}"
        );
    }
}

fn recovered(image: &Path) -> (Content, u32, u64) {
    let device = SimDevice::from_file(image);
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let place = place(image, &device);
    let recovery = recover(&place, &dynamic, SIZE / u64::from(place.block_size())).unwrap();
    let (transactions, revoked) = (recovery.transactions(), recovery.revoked());
    recovery.finish(&dynamic).unwrap();
    (device.content(), transactions, revoked)
}

fn compare_with_e2fsck(image: &Path, what: &str) -> (u32, u64) {
    let (ours, transactions, revoked) = recovered(image);
    let journal = journal_blocks(image)[0];
    let size = block_size(image);
    let outcome = oracle::replay_journal(image);
    assert!(outcome.status <= 1, "{what}: {outcome}");
    assert_same(&ours, image, &[journal], size, what);
    (transactions, revoked)
}

#[test]
fn the_kernels_journals_are_replayed_as_e2fsck_does() {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let cases = [
        ("-t ext4 -b 4096", "noinit_itable"),
        ("-t ext4 -b 1024 -J size=4", "noinit_itable"),
        ("-t ext4 -b 2048 -O ^64bit", "noinit_itable"),
        ("-t ext4 -b 1024 -O ^metadata_csum", "noinit_itable,journal_checksum"),
        ("-t ext4 -b 4096 -O ^metadata_csum,^64bit", "noinit_itable,data=writeback,journal_async_commit"),
        ("-t ext3 -b 1024", ""),
        ("-t ext4 -b 4096", "noinit_itable,data=journal"),
    ];
    let mut revokes = 0;
    for (mkfs, options) in cases {
        let scratch = scratch();
        let image = dirty(&scratch, mkfs, options);
        let (transactions, revoked) = compare_with_e2fsck(&image, mkfs);
        println!("{mkfs} {options}: {transactions} transactions, {revoked} revoked");
        assert!(transactions > 1, "{mkfs} {options}");
        revokes += revoked;
    }
    assert!(revokes > 0, "no case had a revoked block");
}

#[test]
fn journals_of_debugfs_are_replayed_as_e2fsck_does() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "dumpe2fs"]));
    let cases = [
        ("-t ext4 -b 1024 -O ^metadata_csum,^64bit", "jo"),
        ("-t ext4 -b 1024 -O ^metadata_csum,64bit", "jo"),
        ("-t ext4 -b 1024 -O ^metadata_csum,^64bit", "jo -c"),
        ("-t ext4 -b 1024 -O metadata_csum,^64bit", "jo -c -v 2"),
        ("-t ext4 -b 4096 -O metadata_csum,64bit", "jo -c -v 2"),
        ("-t ext4 -b 1024 -O metadata_csum,^64bit", "jo -c -v 3"),
        ("-t ext4 -b 4096 -O metadata_csum,64bit", "jo -c -v 3"),
    ];
    for (mkfs, open) in cases {
        let scratch = scratch();
        let image = scratch.join("fs.img");
        oracle::mke2fs(&image, SIZE, mkfs);
        let blocks = scratch.join("blocks");
        let mut bytes: Vec<u8> = (0..8 * 4096u32).map(|n| (n / 512) as u8 | 1).collect();
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        std::fs::write(&blocks, &bytes).unwrap();
        let file = blocks.display();
        let free: u64 = if mkfs.contains("4096") { 12_000 } else { 40_000 };
        let (a, b, c) = (free, free + 1, free + 7);
        let script = [
            open.to_string(),
            format!("jw -b {a},{b},{c} {file}"),
            // With the old checksum debugfs sums up revoke blocks too, which neither the kernel nor e2fsck do.
            if open == "jo -c" { String::new() } else { format!("jw -r {b}") },
            format!("jw -b {c},{a} {file}"),
            format!("jw -b {b} -c {file}"),
            "jc".to_string(),
        ];
        let script: Vec<&str> = script.iter().map(String::as_str).collect();
        oracle::debugfs_write(&image, &script);
        let what = format!("{mkfs} {open}");
        let (transactions, revoked) = compare_with_e2fsck(&image, &what);
        println!("{what}: {transactions} transactions, {revoked} revoked");
        let expected = if open == "jo -c" { (2, 0) } else { (3, 1) };
        assert_eq!((transactions, revoked), expected, "{what}");
    }
}

/// Writes a journal with escapes and revokes on a filesystem's free blocks, and stops without a checkpoint. What recovery
/// must bring: (block, content).
fn write_ours(image: &Path, features: WantedFeatures) -> Vec<(u64, Vec<u8>)> {
    let device = SimDevice::from_file(image);
    let place = place(image, &device);
    let size = place.block_size();
    let cache = BlockCache::new(Arc::clone(&device) as _, size, SIZE / u64::from(size), 16 << 20);
    let options =
        JournalOptions { features: Some(features), commit_interval: None, ..JournalOptions::default() };
    let journal = Journal::open(cache, place, options).unwrap();
    let free = SIZE / u64::from(size) - 600;
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..12u64 {
        let mut handle = journal.start(40).unwrap();
        for n in 0..30 {
            let pblk = free + (round * 17 + n * 3) % 400;
            let mut bytes = vec![(round * 30 + n) as u8; size as usize];
            if n % 5 == 0 {
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            let buf = handle.create(Pblk(pblk)).unwrap();
            handle.modify(&buf, |b| b.copy_from_slice(&bytes)).unwrap();
            expected.insert(pblk, bytes);
        }
        if let Some(pblk) = expected.keys().copied().nth(round as usize) {
            handle.revoke(Pblk(pblk)).unwrap();
            expected.insert(pblk, vec![0; size as usize]);
        }
        handle.finish().unwrap();
        journal.commit_all().unwrap();
        // A revoked block made again in the next round would be metadata of a later transaction: that is the point.
    }
    assert_eq!(journal.stats().checkpoints, 0);
    drop(journal);
    device.content().to_file(image).unwrap();
    oracle::debugfs_write(image, &["feature needs_recovery"]);
    expected.into_iter().collect()
}

fn assert_blocks(image: &Path, size: u32, expected: &[(u64, Vec<u8>)], what: &str) {
    let content = Content::from_file(image).unwrap();
    for (pblk, bytes) in expected {
        let mut found = vec![0; size as usize];
        content.read(pblk * u64::from(size), &mut found);
        assert!(found == *bytes, "{what}: block {pblk}: {:?} is not {:?}", &found[..8], &bytes[..8]);
    }
}

#[test]
fn our_journals_are_replayed_by_e2fsck_and_by_the_kernel() {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "debugfs", "dumpe2fs"]));
    let cases = [
        ("-t ext4 -b 4096", WantedFeatures { checksums: true, bit64: true }),
        ("-t ext4 -b 1024 -J size=4", WantedFeatures { checksums: true, bit64: true }),
        ("-t ext4 -b 1024 -O ^64bit", WantedFeatures { checksums: true, bit64: false }),
        ("-t ext4 -b 2048 -O ^metadata_csum", WantedFeatures { checksums: false, bit64: true }),
        ("-t ext3 -b 1024", WantedFeatures { checksums: false, bit64: false }),
    ];
    for (mkfs, features) in cases {
        let scratch = scratch();
        let image = scratch.join("fs.img");
        oracle::mke2fs(&image, SIZE, mkfs);
        let size = block_size(&image);
        let expected = write_ours(&image, features);
        let by_kernel = scratch.join("kernel.img");
        std::fs::copy(&image, &by_kernel).unwrap();
        let outcome = oracle::replay_journal(&image);
        assert!(outcome.status <= 1, "{mkfs}: {outcome}");
        assert_blocks(&image, size, &expected, &format!("{mkfs}: e2fsck"));
        oracle::assert_clean(&image);
        KernelMount::with(&by_kernel, "").unwrap().unmount();
        assert_blocks(&by_kernel, size, &expected, &format!("{mkfs}: kernel"));
        oracle::assert_clean(&by_kernel);
    }
}

#[test]
fn the_kernels_fast_commits_are_read() {
    need!(env::kernel_mounts(), env::tools(&["debugfs", "dumpe2fs"]));
    let scratch = scratch();
    let image = scratch.join("live.img");
    oracle::mke2fs(&image, SIZE, "-t ext4 -b 4096 -O fast_commit");
    let mount = KernelMount::with(&image, "noinit_itable").unwrap();
    let at = |name: &str| mount.path().join(name);
    let open = oracle::files_on_a_mount();
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("old"), "old").unwrap();
    drop(open);
    mount.sync();
    let open = oracle::files_on_a_mount();
    let sync = |name: &str| std::fs::File::open(at(name)).unwrap().sync_all().unwrap();
    std::fs::write(at("d/a"), vec![1; 10_000]).unwrap();
    sync("d/a");
    std::fs::hard_link(at("d/a"), at("d/b")).unwrap();
    sync("d/a");
    std::fs::remove_file(at("old")).unwrap();
    std::fs::File::options().write(true).open(at("d/a")).unwrap().set_len(4096).unwrap();
    sync("d/a");
    drop(open);
    let copy = scratch.join("dirty.img");
    std::fs::copy(&image, &copy).unwrap();
    mount.unmount();

    let device = SimDevice::from_file(&copy);
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let recovery = recover(&place(&copy, &device), &dynamic, SIZE / 4096).unwrap();
    let named = |want: &str| -> String {
        let kind = |op: &Operation| match op {
            Operation::Create(d) if d.name == want.as_bytes() => Some('c'),
            Operation::Link(d) if d.name == want.as_bytes() => Some('l'),
            Operation::Unlink(d) if d.name == want.as_bytes() => Some('u'),
            _ => None,
        };
        recovery.fast_commits().iter().filter_map(kind).collect()
    };
    assert_eq!((named("a"), named("b"), named("old")), ("c".into(), "l".into(), "u".into()));
    let ranges = recovery.fast_commits().iter().filter(|op| matches!(op, Operation::AddRange { len: 3, .. }));
    assert_eq!(ranges.count(), 1, "{:?}", recovery.fast_commits());
    assert!(
        recovery
            .fast_commits()
            .iter()
            .any(|op| matches!(op, Operation::Inode { raw, .. } if raw.len() >= 128))
    );
}

#[test]
fn an_external_journal_is_replayed_as_e2fsck_does() {
    need!(env::kernel_mounts(), env::tools(&["e2fsck", "dumpe2fs"]));
    for size in [1024, 4096] {
        let scratch = scratch();
        let log = scratch.sparse("log.img", 16 << 20);
        let image = scratch.join("fs.img");
        let log_device = Loop::attach(&log, false);
        oracle::mke2fs(log_device.device(), 16 << 20, &format!("-O journal_dev -b {size}"));
        let journal_at = format!("device={}", log_device.device().display());
        oracle::mke2fs(&image, SIZE, &format!("-t ext4 -b {size} -J {journal_at}"));
        let mount = KernelMount::with(&image, "noinit_itable").unwrap();
        for n in 0..50 {
            std::fs::create_dir(mount.path().join(n.to_string())).unwrap();
            if n % 10 == 0 {
                mount.sync();
            }
        }
        mount.sync();
        let (dirty_log, dirty) = (scratch.join("dirty-log.img"), scratch.join("dirty.img"));
        std::fs::copy(&log, &dirty_log).unwrap();
        std::fs::copy(&image, &dirty).unwrap();
        mount.unmount();

        let device = SimDevice::from_file(&dirty);
        let our_log: Arc<dyn BlockDevice> = SimDevice::from_file(&dirty_log);
        let field = |at: usize| -> [u8; 16] {
            let mut bytes = [0; 16];
            device.read_at(1024 + at as u64, &mut bytes).unwrap();
            bytes
        };
        let (fs_uuid, journal_uuid) = (field(0x68), field(0xD0));
        let external = |journal, fs| LogPlace::external(Arc::clone(&our_log), size, journal, fs);
        assert!(external(fs_uuid, fs_uuid).is_err(), "a journal of another UUID was accepted");
        assert!(external(journal_uuid, journal_uuid).is_err(), "another filesystem's journal was accepted");
        let place = external(journal_uuid, fs_uuid).unwrap();
        let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
        let recovery = recover(&place, &dynamic, SIZE / u64::from(size)).unwrap();
        assert!(recovery.transactions() >= 5);
        recovery.finish(&dynamic).unwrap();
        assert_eq!(place.read_superblock().unwrap().start(), 0);

        // On the loop device that the superblock names: on one of another number, which others' loop devices may have made it
        // become, e2fsck corrects the superblock, and then does not stop after the replay but checks and corrects everything.
        let mut onto = std::fs::File::options().write(true).open(log_device.device()).unwrap();
        std::io::Write::write_all(&mut onto, &std::fs::read(&dirty_log).unwrap()).unwrap();
        onto.sync_all().unwrap();
        drop(onto);
        let journal = log_device.device().display().to_string();
        let outcome = oracle::e2fsck_with(&dirty, &["-y", "-E", "journal_only", "-j", &journal]);
        assert!(outcome.status <= 1 && !outcome.text.contains("Pass 1"), "{outcome}");
        assert_same(&device.content(), &dirty, &[], size, "external journal");
    }
}

/// Images of e2fsprogs' regression tests: replayed to the same bytes, or refused where e2fsck reports a damaged journal.
#[test]
fn published_journals_are_replayed_or_refused_as_e2fsck_does() {
    need!(env::images(), env::tools(&["e2fsck", "debugfs", "dumpe2fs", "xz"]));
    let folder = env::images().unwrap().join("e2fsprogs");
    let unpacked = |name: &str, scratch: &Scratch| {
        let image = scratch.join("fs.img");
        oracle::unxz(&folder.join(format!("{name}.img.xz")), &image);
        image
    };
    let blocks_of = |image: &Path| std::fs::metadata(image).unwrap().len() / u64::from(block_size(image));
    let outcome = |image: &Path| {
        let device = SimDevice::from_file(image);
        let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
        let place = place_in(image, &device, blocks_of(image));
        let recovery = recover(&place, &dynamic, blocks_of(image));
        recovery.and_then(|r| r.finish(&dynamic)).map(|()| device.content())
    };
    // The log of the last two ends before the damage.
    let replayed = [
        "j_recover_csum3_64bit",
        "f_jnl_32bit",
        "f_jnl_64bit",
        "j_corrupt_revoke_csum",
        "j_corrupt_revoke_block",
    ];
    for name in replayed {
        let scratch = scratch();
        let image = unpacked(name, &scratch);
        let ours = outcome(&image).unwrap_or_else(|e| panic!("{name}: {e}"));
        let journal = journal_blocks(&image)[0];
        let size = block_size(&image);
        let replayed = oracle::e2fsck_with(&image, &["-y", "-E", "journal_only"]);
        assert!(replayed.status <= 1, "{name}: {replayed}");
        assert_same(&ours, &image, &[journal], size, name);
    }
    for name in ["j_corrupt_descr_csum", "j_corrupt_journal_block"] {
        let scratch = scratch();
        let error = outcome(&unpacked(name, &scratch)).expect_err(name);
        println!("{name}: {error}");
    }
}
