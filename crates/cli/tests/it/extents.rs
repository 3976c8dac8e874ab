//! `filefrag`, `defrag`, `fallocate`: on images, and on mounts while they are in use.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use extant::{
    Credentials, FallocateMode, FiemapHow, Filesystem, InodeFlags, MoveRange, NewInode, SetAttr, Setup,
    WriteFlags,
};
use extant_testkit::rng::pattern;
use extant_testkit::{env, oracle};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::mounted::Mounted;
use crate::run::{extant, ok};

const BLOCK: u64 = 4096;
const COLLAPSE: u32 = FallocateFlags::COLLAPSE_RANGE.bits();
const INSERT: u32 = FallocateFlags::INSERT_RANGE.bits();

/// A file in pieces, in blocks, and the image that it is in.
#[derive(Clone, Copy)]
struct Shape {
    mib: u64,
    blocks: u64,
    piece: u64,
}

const SMALL: Shape = Shape { mib: 128, blocks: 1200, piece: 3 };
/// What is claimed (`cargo xtask shows defrag`): 400 MiB, more than 6,000 pieces.
const LARGE: Shape = Shape { mib: 2048, blocks: 102_400, piece: 17 };

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 20;

/// Calls `look` with the file's content from its start to its end.
fn chunks(shape: Shape, mut look: impl FnMut(u64, &[u8])) {
    let size = shape.blocks * BLOCK;
    for at in (0..size).step_by(CHUNK) {
        look(at, &pattern(5, at, CHUNK.min((size - at) as usize)));
    }
}

/// Whether `cat` of the image says that the content is right.
#[track_caller]
fn assert_content(image: &Path, shape: Shape) {
    let got = ok(&[&"cat", &image, &"/d/f"]).out;
    assert_eq!(got.len() as u64, shape.blocks * BLOCK);
    chunks(shape, |at, want| assert!(got[at as usize..][..want.len()] == *want, "content from {at} on"));
}

/// An image with a file `/d/f` in pieces, and room to put them together.
fn in_pieces(image: &Path, shape: Shape) {
    let Shape { mib, blocks, piece } = shape;
    oracle::mke2fs(image, mib << 20, "-t ext4 -b 4096 -J size=16");
    let device = extant_device::OpenOptions::new().write(true).open(image).expect("image");
    let fs = Filesystem::open(Arc::new(device), Setup::default()).expect("mount");
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    let dir = fs.mkdir(&root, b"d", 0o777, &cred).unwrap();
    let take_all = |name: &[u8]| {
        let file = fs.mknod(&root, name, &NewInode::file(0o600), &cred).unwrap();
        let (mut at, mut part) = (0, fs.statfs().blocks_free);
        while part > 0 {
            match fs.fallocate(&file, FallocateMode::Allocate, at * BLOCK, part * BLOCK, false, &cred) {
                Ok(()) => at += part,
                // Some of it may be there.
                Err(_) => part /= 2,
            }
        }
        file
    };
    let full = take_all(b"full");
    let punch = |pieces: std::ops::Range<u64>| {
        for n in pieces {
            let start = n * 2 * piece * BLOCK;
            fs.fallocate(&full, FallocateMode::PunchHole, start, piece * BLOCK, true, &cred).unwrap();
        }
        fs.sync().unwrap();
    };
    // What nobody gets is still in one piece: it is taken, and scattered pieces are what nobody gets.
    let kept = fs.statfs().blocks_free;
    let pieces = kept / piece + 20;
    punch(0..pieces);
    let rest = fs.mknod(&root, b"rest", &NewInode::file(0o600), &cred).unwrap();
    fs.fallocate(&rest, FallocateMode::Allocate, 0, kept * BLOCK, false, &cred).unwrap();
    punch(pieces..pieces + blocks / piece + 20);
    let file = fs.mknod(&dir, b"f", &NewInode::file(0o666), &cred).unwrap();
    chunks(shape, |at, bytes| {
        let (n, _) = fs.write_at(&file, at, bytes, WriteFlags::default(), &cred).unwrap();
        assert_eq!(n, bytes.len());
    });
    fs.sync().unwrap();
    fs.unlink(&root, b"full", &cred).unwrap();
    fs.unlink(&root, b"rest", &cred).unwrap();
    drop((full, rest));
    fs.sync().unwrap();
    let owned = fs.mknod(&dir, b"of-root", &NewInode::file(0o600), &cred).unwrap();
    fs.fallocate(&owned, FallocateMode::Allocate, 0, 8 * BLOCK, false, &cred).unwrap();
    let sparse = fs.mknod(&dir, b"empty", &NewInode::file(0o600), &cred).unwrap();
    fs.set_attr(&sparse, &SetAttr { size: Some(40_000), ..SetAttr::default() }, &cred).unwrap();
    drop((root, dir, file, owned, sparse));
    fs.unmount().unwrap();
}

/// The number of extents that `filefrag --json` has of a path.
#[track_caller]
fn extents(args: &[&dyn AsRef<std::ffi::OsStr>]) -> u64 {
    let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"filefrag", &"--json"];
    all.extend(args);
    let said = ok(&all).json();
    let list = said[0]["extents"].as_array().expect("extents").len() as u64;
    assert_eq!(said[0]["block_size"], BLOCK);
    list
}

#[test]
fn an_image() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let image = dir.join("image");
    in_pieces(&image, SMALL);
    let before = extents(&[&image, &"/d/f"]);
    assert!(before >= SMALL.blocks / SMALL.piece, "{before} extents");
    let text = ok(&[&"filefrag", &"-v", &image, &"/d/f", &"/d"]).text();
    assert!(text.contains(&format!("/d/f: {before} extents found")), "{text}");
    assert!(text.contains("/d: 1 extent found") && text.contains("last,eof"), "{text}");
    assert!(text.contains("File size of /d/f is 4915200 (1200 blocks of 4096 bytes)"), "{text}");
    let dry = ok(&[&"defrag", &"-n", &image]).text();
    assert!(dry.contains(&format!("/d/f: {before} extents in {before} fragments, could be 1")), "{dry}");
    assert_eq!(extents(&[&image, &"/d/f"]), before, "a dry run moves nothing");
    let said = ok(&[&"defrag", &"--json", &image]).json();
    assert_eq!(said["improved"], 1, "{said}");
    assert_eq!(said["failed"], 0, "{said}");
    let after = extents(&[&image, &"/d/f"]);
    assert!(after <= 2, "{after} extents");
    // A written extent and one that is not, side by side.
    let small = dir.join("small");
    std::fs::write(&small, vec![1; 2 * BLOCK as usize]).unwrap();
    ok(&[&"put", &image, &small, &"/d/half"]);
    ok(&[&"fallocate", &"-n", &"-l", &"32K", &image, &"/d/half"]);
    let half = ok(&[&"filefrag", &"--json", &image, &"/d/half"]).json();
    assert_eq!(
        (half[0]["extents"].as_array().unwrap().len(), &half[0]["fragments"]),
        (2, &1.into()),
        "{half}"
    );
    // Extents that go on where the one before ends are fewer fragments: both commands count the same of each.
    let files = ok(&[&"defrag", &"-n", &"--json", &image, &"/d"]).json();
    for file in files["files"].as_array().unwrap() {
        let path = file["path"].as_str().unwrap();
        let listed = &ok(&[&"filefrag", &"--json", &image, &path]).json()[0];
        assert_eq!(file["before"], listed["extents"].as_array().unwrap().len(), "{path}");
        assert_eq!(file["fragments_before"], listed["fragments"], "{path}");
    }
    let again = ok(&[&"defrag", &"-v", &image, &"/d"]).text();
    assert!(again.contains("0 of them are in fewer extents"), "{again}");
    oracle::assert_clean(&image);
    assert_content(&image, SMALL);
}

/// A file with the flag `x`, of which more is preallocated than it has content: what is past its end stays as it is.
#[test]
fn an_image_of_files_for_dax_with_blocks_past_the_end() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let image = dir.join("image");
    in_pieces(&image, SMALL);
    let device = extant_device::OpenOptions::new().write(true).open(&image).expect("image");
    let fs = Filesystem::open(Arc::new(device), Setup::default()).expect("mount");
    let cred = Credentials::root();
    let file = ["d", "f"]
        .iter()
        .fold(fs.root().unwrap(), |at, name| fs.lookup(&at, name.as_bytes(), &cred).unwrap());
    fs.set_flags(&file, file.attr().flags | InodeFlags::DAX, &cred).expect("the flag");
    // At the end itself, and far behind it, from the last one to the first.
    for n in (0..10).rev().flat_map(|n| [SMALL.blocks + n, 2 * SMALL.blocks + n]) {
        fs.fallocate(&file, FallocateMode::Allocate, n * BLOCK, BLOCK, true, &cred).unwrap();
    }
    drop(file);
    fs.unmount().unwrap();
    drop(fs);
    let before = extents(&[&image, &"/d/f"]);
    let said = ok(&[&"defrag", &"--json", &image]).json();
    assert_eq!((&said["improved"], &said["failed"]), (&1.into(), &0.into()), "{said}");
    let after = extents(&[&image, &"/d/f"]);
    assert!(after <= 22 && after < before, "{before} extents, {after} afterwards");
    oracle::assert_clean(&image);
    assert_content(&image, SMALL);
}

#[test]
fn a_mount_in_use() {
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck", "sh", "dd", "cmp"]));
    let dir = env::scratch();
    let image = dir.join("image");
    let shape = if std::env::var("EXTANT_DEFRAG").is_ok_and(|form| form == "long") { LARGE } else { SMALL };
    in_pieces(&image, shape);
    let mounted = Mounted::new(&image, "");
    let path = mounted.path().join("d/f");
    let before = extents(&[&path]);
    assert!(before >= shape.blocks / shape.piece, "{before} extents");
    let (want, stop, rounds) = (dir.join("want"), dir.join("stop"), dir.join("rounds"));
    let reference = File::create(&want).expect("file");
    chunks(shape, |at, bytes| reference.write_all_at(bytes, at).expect("write"));
    File::create(&rounds).expect("file");
    // Reads past what the kernel has cached, a MiB at a time, and compares, again and again.
    let text = "n=0; while [ ! -e \"$3\" ]; do \
                dd if=\"$1\" bs=1M skip=$n count=1 iflag=direct status=none >\"$6\" || exit 1; \
                cmp --ignore-initial=0:$((n << 20)) --bytes=$(stat -c %s \"$6\") \"$6\" \"$2\" || exit 1; \
                echo >>\"$4\"; n=$(((n + 1) % $5)); done";
    let mut reader = oracle::command("sh");
    let mib = (shape.blocks * BLOCK) >> 20;
    reader.args(["-c", text, "reader"]).args([&path, &want, &stop, &rounds]);
    reader.arg(mib.to_string()).arg(dir.join("piece"));
    let mut reader = oracle::start(&mut reader).expect("sh");
    let read = || std::fs::metadata(&rounds).expect("rounds").len();
    while read() == 0 && reader.try_wait().expect("reader").is_none() {
        std::thread::yield_now();
    }
    let first = read();
    let said = extant(&[&"defrag", &mounted.path()]);
    let rounds = read() - first;
    File::create(&stop).expect("file");
    assert!(reader.wait().expect("reader").success(), "the reader saw something else");
    assert_eq!(said.status, 0, "{}{}", said.text(), said.err);
    assert!(said.text().contains("/d/f: "), "{}", said.text());
    let after = extents(&[&path]);
    println!(
        "defrag: {mib} MiB in {before} extents, {after} afterwards, {rounds} MiB read and compared meanwhile"
    );
    assert!(after <= 4, "{after} extents");
    mounted.unmount();
    oracle::assert_clean(&image);
    assert_content(&image, shape);
}

/// What the kernel does not pass on, what the server answers instead, and whom it refuses.
#[test]
fn ioctls_of_a_mount() {
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let image = dir.join("image");
    in_pieces(&image, SMALL);
    let mounted = Mounted::new(&image, "");
    let errno = |result: std::io::Result<u64>| Errno::from_io_error(&result.unwrap_err()).expect("an errno");
    {
        let _open = oracle::files_on_a_mount();
        let open = |name: &str, write: bool| {
            let path = mounted.path().join("d").join(name);
            File::options().read(true).write(write).open(path).expect("open")
        };
        let file = open("f", true);
        let mut bytes = [0; extant_sys::extents::FIEMAP_SIZE];
        bytes[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        let kernels = extant_sys::extents::fiemap(&file, &mut bytes).unwrap_err();
        assert_eq!(
            kernels.raw_os_error(),
            Some(Errno::OPNOTSUPP.raw_os_error()),
            "the kernel answers it by itself"
        );
        let all = extant_fuse::private::fiemap(&file, 0, u64::MAX, FiemapHow::empty()).unwrap();
        assert!(all.len() > 2 * extant_fuse::private::FIEMAP_ROOM, "{}", all.len());
        assert!(all.windows(2).all(|two| two[0].logical + two[0].length == two[1].logical));
        let range = MoveRange { orig_start: 0, donor_start: 0, len: 8 };
        let closed = open("of-root", false);
        let refused = errno(extant_fuse::private::move_ext(&file, &closed, range));
        assert_eq!(refused, Errno::BADF, "nobody has the donor open for writing");
        let donor = open("of-root", true);
        let other =
            File::options().read(true).write(true).create(true).truncate(true).open(dir.join("x")).unwrap();
        let move_ext = |a: &File, b: &File| extant_fuse::private::move_ext(a, b, range);
        assert_eq!(errno(move_ext(&open("f", false), &donor)), Errno::BADF);
        let collapse = extant_fuse::private::fallocate(open("f", false), COLLAPSE, 0, BLOCK);
        assert_eq!(errno(collapse.map(|()| 0)), Errno::BADF);
        assert_eq!(errno(move_ext(&file, &file)), Errno::INVAL);
        assert_eq!(errno(move_ext(&file, &other)), Errno::XDEV);
        assert_eq!(move_ext(&file, &open("empty", true)).unwrap(), 0, "a donor without blocks");
        // That somebody has the donor open is not enough.
        let as_user = std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                let id = rustix::process::Uid::from_raw(1000);
                rustix::thread::set_thread_res_uid(id, id, id).expect("setresuid");
                move_ext(&file, &donor)
            });
            user.join().expect("no panic")
        });
        assert_eq!(errno(as_user), Errno::ACCESS);
        assert_eq!(move_ext(&file, &donor).unwrap(), 8);
        let one = extant_fuse::private::fiemap(&file, 0, 8 * BLOCK, FiemapHow::empty()).unwrap();
        assert_eq!(one.len(), 1, "{one:?}");
        let plain = extant_fuse::private::fiemap(&other, 0, 1, FiemapHow::empty()).unwrap_err();
        assert_eq!(plain.raw_os_error(), Some(Errno::NOTTY.raw_os_error()));
        let mut got = vec![0; (8 * BLOCK) as usize];
        donor.read_exact_at(&mut got, 0).unwrap();
        assert!(got.iter().all(|b| *b == 0), "the donor shows the file's blocks");
    }
    mounted.unmount();
    oracle::assert_clean(&image);
    assert_content(&image, SMALL);
}

/// EAGAIN means that nothing was done: who asks again until it is has one range more, not two.
#[test]
fn ranges_at_once() {
    /// Enough for the kernel to be at dropping it often.
    const BLOCKS: u64 = 512;
    const TIMES: u64 = 60;
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 64 << 20, "-t ext4 -b 4096");
    let mounted = Mounted::new(&image, "");
    let names = ["a", "b", "c"];
    let content = pattern(9, 0, (BLOCKS * BLOCK) as usize);
    {
        let _open = oracle::files_on_a_mount();
        // What was read is cached.
        let until_done = |file: &File, mode: u32, blocks: u64, name: &str| loop {
            file.read_exact_at(&mut vec![0; content.len()], 0).expect("read");
            match extant_fuse::private::fallocate(file, mode, BLOCK, BLOCK) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => std::thread::yield_now(),
                done => {
                    done.expect("fallocate");
                    return assert_eq!(file.metadata().expect("stat").len(), blocks * BLOCK, "{name}");
                }
            }
        };
        let change = |name: &str| {
            let path = mounted.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).open(path).expect("open");
            file.write_all_at(&content, 0).expect("write");
            (1..=TIMES).for_each(|n| until_done(&file, INSERT, BLOCKS + n, name));
            (0..TIMES).rev().for_each(|n| until_done(&file, COLLAPSE, BLOCKS + n, name));
        };
        std::thread::scope(|scope| {
            names.map(|name| scope.spawn(move || change(name))).map(|one| one.join().expect("no panic"))
        });
    }
    for name in names {
        assert!(oracle_read(&mounted.path().join(name)) == content, "{name}");
    }
    mounted.unmount();
    oracle::assert_clean(&image);
}

#[test]
fn space_for_ranges() {
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck"]));
    let dir = env::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 32 << 20, "-t ext4 -b 4096");
    ok(&[&"fallocate", &"-l", &"64K", &image, &"/new"]);
    ok(&[&"fallocate", &"-n", &"-o", &"64KiB", &"-l", &"8192", &image, &"/new"]);
    let one = ok(&[&"filefrag", &"--json", &image, &"/new"]).json();
    assert_eq!(one[0]["size"], 65_536);
    assert_eq!(one[0]["extents"][0]["length"], 73_728);
    assert_eq!(extant(&[&"fallocate", &"-p", &"-l", &"4096", &image, &"/none"]).status, 1);
    assert_eq!(extant(&[&"fallocate", &"-c", &"-z", &"-l", &"4096", &image, &"/new"]).status, 2);
    assert_eq!(extant(&[&"fallocate", &"-l", &"4096", &image]).status, 1);
    let mounted = Mounted::new(&image, "");
    let path = mounted.path().join("new");
    {
        let _open = oracle::files_on_a_mount();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&vec![7; 65_536], 0).unwrap();
    }
    ok(&[&"fallocate", &"-p", &"-o", &"4096", &"-l", &"4096", &path]);
    ok(&[&"fallocate", &"-z", &"-o", &"16384", &"-l", &"4096", &path]);
    ok(&[&"fallocate", &"-l", &"4096", &mounted.path().join("made")]);
    let mut want = vec![7; 65_536];
    want[4096..8192].fill(0);
    want[16_384..20_480].fill(0);
    assert!(oracle_read(&path) == want, "punched and zeroed");
    // What the kernel keeps to itself; it has cached the file by now.
    ok(&[&"fallocate", &"-c", &"-l", &"8K", &path]);
    want.drain(..8192);
    assert!(oracle_read(&path) == want, "a range taken out");
    ok(&[&"fallocate", &"-i", &"-o", &"4096", &"-l", &"16384", &path]);
    want.splice(4096..4096, [0; 16_384]);
    assert!(oracle_read(&path) == want, "a hole put in");
    assert_eq!(extant(&[&"fallocate", &"-c", &"-o", &"1", &"-l", &"4096", &path]).status, 1);
    ok(&[&"fallocate", &"-c", &"-o", &"4096", &"-l", &"16K", &path]);
    want.drain(4096..4096 + 16_384);
    want.splice(0..0, [0; 8192]);
    ok(&[&"fallocate", &"-i", &"-l", &"8K", &path]);
    assert!(oracle_read(&path) == want, "out and in again");
    let shape = ok(&[&"filefrag", &"--json", &path]).json();
    let holes = shape[0]["extents"].as_array().unwrap();
    assert!(holes.iter().all(|e| e["logical"] != 4096), "{shape}");
    mounted.unmount();
    ok(&[&"fallocate", &"-c", &"-l", &"4096", &image, &"/new"]);
    assert!(ok(&[&"cat", &image, &"/new"]).out == want[4096..], "in the image");
    oracle::assert_clean(&image);
}

fn oracle_read(path: &Path) -> Vec<u8> {
    let _open = oracle::files_on_a_mount();
    std::fs::read(path).expect("read")
}
