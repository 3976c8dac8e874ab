//! Hash trees with one damage each: what is found, listed, added and removed, against the kernel on the same image.

use std::collections::BTreeMap;
use std::path::Path;

use extant::{Credentials, NewInode};
use extant_format::csum::crc32c;
use extant_testkit::env::{self, kernel_mounts};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle;
use rustix::io::Errno;

use crate::support::{names, open_with};

const BLOCK: u64 = 1024;
/// Enough for a level of nodes.
const FILES: usize = 3600;

fn name_of(i: usize) -> String {
    format!("name-{i:05}-xxxxxxxxxx")
}

/// Where block `lblk` of `/d` is.
fn place(image: &Path, lblk: u32) -> u64 {
    let said = oracle::debugfs(image, &[&format!("bmap /d {lblk}")]);
    let number = said.lines().rev().find_map(|l| l.trim().parse::<u64>().ok());
    number.unwrap_or_else(|| panic!("{said}")) * BLOCK
}

fn read(image: &Path, lblk: u32) -> Vec<u8> {
    let at = place(image, lblk) as usize;
    std::fs::read(image).unwrap()[at..at + BLOCK as usize].to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What an operation came to, by outcome.
type Counts = BTreeMap<String, usize>;

/// What is seen of the directory, and what changes come to.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stat: Counts,
    absent: Counts,
    listed: Result<usize, i32>,
    create: Counts,
    unlink: Counts,
}

fn count<T>(counts: &mut Counts, done: Result<T, i32>) {
    let key = match done {
        Ok(_) => "ok".to_owned(),
        Err(errno) => format!("{:?}", Errno::from_raw_os_error(errno)),
    };
    *counts.entry(key).or_default() += 1;
}

fn some() -> impl Iterator<Item = usize> {
    (0..FILES).step_by(97)
}

fn by_kernel(image: &Path) -> Seen {
    let mount = KernelMount::with(image, "errors=continue").unwrap();
    let open = oracle::files_on_a_mount();
    let dir = mount.path().join("d");
    let errno = |e: std::io::Error| e.raw_os_error().unwrap();
    let mut seen = Seen {
        stat: Counts::new(),
        absent: Counts::new(),
        listed: Ok(0),
        create: Counts::new(),
        unlink: Counts::new(),
    };
    for i in some() {
        count(&mut seen.stat, std::fs::symlink_metadata(dir.join(name_of(i))).map_err(errno));
    }
    count(&mut seen.absent, std::fs::symlink_metadata(dir.join("absent")).map_err(errno));
    seen.listed = std::fs::read_dir(&dir)
        .map_err(errno)
        .and_then(|list| list.map(|e| e.map_err(errno)).collect::<Result<Vec<_>, _>>().map(|l| l.len()));
    for i in 0..20 {
        count(&mut seen.create, std::fs::File::create_new(dir.join(format!("new-{i}"))).map_err(errno));
    }
    for i in some() {
        count(&mut seen.unlink, std::fs::remove_file(dir.join(name_of(i))).map_err(errno));
    }
    drop(open);
    mount.unmount();
    seen
}

fn by_us(image: &Path) -> Seen {
    let (fs, cred) = (open_with(image, "errors=continue"), Credentials::root());
    let dir = fs.lookup(&fs.root().unwrap(), b"d", &cred).unwrap();
    let errno = |e: extant::Error| e.errno();
    let mut seen = Seen {
        stat: Counts::new(),
        absent: Counts::new(),
        listed: Ok(0),
        create: Counts::new(),
        unlink: Counts::new(),
    };
    for i in some() {
        count(&mut seen.stat, fs.lookup(&dir, name_of(i).as_bytes(), &cred).map_err(errno));
    }
    count(&mut seen.absent, fs.lookup(&dir, b"absent", &cred).map_err(errno));
    let mut listed = 0;
    let done = fs.read_dir(&dir, extant::START, &cred, &mut |entry| {
        listed += usize::from(entry.name != b"." && entry.name != b"..");
        std::ops::ControlFlow::Continue(())
    });
    seen.listed = done.map(|()| listed).map_err(errno);
    if seen.listed.is_ok() {
        // In small portions each name comes once, too.
        let mut all = names(&fs, &dir);
        assert_eq!(all.len(), listed);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), listed);
    }
    for i in 0..20 {
        let name = format!("new-{i}");
        count(
            &mut seen.create,
            fs.mknod(&dir, name.as_bytes(), &NewInode::file(0o644), &cred).map_err(errno),
        );
    }
    for i in some() {
        count(&mut seen.unlink, fs.unlink(&dir, name_of(i).as_bytes(), &cred).map_err(errno));
    }
    drop(dir);
    fs.unmount().unwrap();
    seen
}

fn indexed(image: &Path) -> bool {
    let stat = oracle::debugfs(image, &["stat /d"]);
    let flags = stat.split("Flags: 0x").nth(1).and_then(|t| t.split_whitespace().next()).unwrap();
    u32::from_str_radix(flags, 16).unwrap() & 0x1000 != 0
}

fn base(image: &Path, options: &str) {
    oracle::mke2fs(image, 32 << 20, &format!("-t ext4 -b 1024 -N 8000 {options}"));
    let mount = KernelMount::rw(image);
    let open = oracle::files_on_a_mount();
    std::fs::create_dir(mount.path().join("d")).unwrap();
    for i in 0..FILES {
        std::fs::File::create(mount.path().join("d").join(name_of(i))).unwrap();
    }
    drop(open);
    mount.unmount();
}

/// A damage: its name, block, byte, bytes.
type Damage = (&'static str, u32, usize, Vec<u8>);

fn damages(image: &Path) -> Vec<Damage> {
    let root = read(image, 0);
    let node = u32_at(&root, 44);
    let leaf = u32_at(&read(image, node), 20);
    let word = |n: u32| n.to_le_bytes().to_vec();
    vec![
        ("hash version", 0, 28, vec![9]),
        ("info length", 0, 29, vec![5]),
        ("levels", 0, 30, vec![7]),
        ("flags", 0, 31, vec![1]),
        ("limit", 0, 32, vec![3, 0]),
        ("no entries", 0, 34, vec![0, 0]),
        ("too many entries", 0, 34, vec![0xff, 0x7f]),
        ("an entry outside", 0, 44, word(0xfffff)),
        ("an entry that leads back", 0, 44, word(0)),
        ("an entry that leads to a leaf", 0, 44, word(leaf)),
        ("limit of a node", node, 8, vec![5, 0]),
        ("a node of zeros", node, 0, vec![0; BLOCK as usize]),
        ("tail of a node", node, BLOCK as usize - 4, word(0x1234_5678)),
    ]
}

fn apply(image: &Path, lblk: u32, at: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let place = place(image, lblk) + at as u64;
    std::fs::OpenOptions::new().write(true).open(image).unwrap().write_all_at(bytes, place).unwrap();
}

#[test]
fn a_damaged_tree_is_treated_as_the_kernel_treats_it() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let scratch = env::scratch();
    let (good, theirs, ours) = (scratch.join("good"), scratch.join("theirs"), scratch.join("ours"));
    for (options, checked) in [("-O ^metadata_csum", false), ("", true)] {
        base(&good, options);
        for (what, lblk, at, bytes) in damages(&good) {
            println!("{what} {options}");
            for copy in [&theirs, &ours] {
                std::fs::copy(&good, copy).unwrap();
                apply(copy, lblk, at, &bytes);
            }
            let (kernel, mut seen) = (by_kernel(&theirs), by_us(&ours));
            if kernel.listed.is_ok() && kernel.listed != Ok(FILES) {
                // Where it leaves the tree in the middle of a listing, the kernel loses names.
                assert_eq!(seen.listed, Ok(FILES), "{what} {options}");
                seen.listed = kernel.listed;
            }
            assert_eq!(seen, kernel, "{what} {options}");
            assert_eq!(indexed(&ours), indexed(&theirs), "{what} {options}: the flag");
            let errors = |image: &Path| {
                let head = oracle::dumpe2fs_header(image);
                head.iter().find(|(name, _)| name == "Filesystem state").unwrap().1.clone()
            };
            assert_eq!(errors(&ours), errors(&theirs), "{what} {options}");
            if !checked {
                // What was done to it can be mended without losing a name.
                let mended = oracle::e2fsck_with(&ours, &["-fy"]);
                assert!(mended.status == 1 || mended.status == 0, "{what}: {mended}");
                assert!(!mended.text.contains("lost+found"), "{what}: {mended}");
                oracle::assert_clean(&ours);
            }
        }
    }
}

/// An index that contradicts itself under a good checksum.
#[test]
fn a_tree_that_was_damaged_on_purpose_is_read_and_not_written_to() {
    need!(kernel_mounts(), env::tools(&["mke2fs", "debugfs", "e2fsck"]));
    let scratch = env::scratch();
    let (good, theirs, ours) = (scratch.join("good"), scratch.join("theirs"), scratch.join("ours"));
    base(&good, "-U 11111111-2222-3333-4444-555555555555");
    let stat = oracle::debugfs(&good, &["stat /d"]);
    let words: Vec<&str> = stat.split_whitespace().collect();
    let after =
        |word: &str| words[words.iter().position(|w| *w == word).unwrap() + 1].parse::<u32>().unwrap();
    let uuid = [&[0x11; 4][..], &[0x22; 2], &[0x33; 2], &[0x44; 2], &[0x55; 6]].concat();
    let seed = crc32c(!0, &uuid);
    let seed = crc32c(crc32c(seed, &after("Inode:").to_le_bytes()), &after("Generation:").to_le_bytes());
    for (what, at, byte) in [("flags", 31, 1), ("hash version", 28, 9)] {
        let mut root = read(&good, 0);
        root[at] = byte;
        // The checksum: what the entries in use take, then the tail's first word and a checksum of zero.
        let used = 32 + 8 * usize::from(u16::from_le_bytes([root[34], root[35]]));
        let mut sum = crc32c(seed, &root[..used]);
        let tail = BLOCK as usize - 8;
        sum = crc32c(sum, &root[tail..tail + 4]);
        sum = crc32c(sum, &[0; 4]);
        root[tail + 4..].copy_from_slice(&sum.to_le_bytes());
        for copy in [&theirs, &ours] {
            std::fs::copy(&good, copy).unwrap();
            apply(copy, 0, 0, &root);
        }
        let (kernel, seen) = (by_kernel(&theirs), by_us(&ours));
        println!("{what}: {kernel:?}");
        assert_eq!(seen, kernel, "{what}");
        assert_eq!(kernel.stat.keys().collect::<Vec<_>>(), ["ok"], "the checksum is good");
        assert!(!kernel.create.contains_key("ok"), "{what}");
        assert!(indexed(&ours) && indexed(&theirs));
    }
}
