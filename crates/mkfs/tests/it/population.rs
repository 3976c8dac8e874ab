//! Contents in: e2fsck finds nothing, debugfs reads back what went in, and the same twice gives the same bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use extant_mkfs::{Silent, cli};

use crate::support::{Scratch, UUID, assert_clean, run, text, tool};

/// Options of images that the same tree goes into.
const WAYS: &[&str] = &[
    "-t ext4",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048",
    "-t ext4 -b 8192",
    "-t ext4 -b 65536",
    "-t ext2",
    "-t ext2 -I 128 -b 1024",
    "-t ext3 -b 4096",
    "-t ext4 -O inline_data",
    "-t ext4 -O inline_data -I 1024",
    "-t ext4 -O bigalloc -C 16384 -b 1024",
    "-t ext4 -O bigalloc -C 65536 -b 4096",
    "-t ext4 -O ^metadata_csum",
    "-t ext4 -O ^metadata_csum,uninit_bg,^64bit",
    "-t ext4 -O metadata_csum_seed,orphan_file,large_dir,ea_inode",
    "-t ext4 -O ^has_journal,^resize_inode",
    "-t ext4 -O ^dir_index,^filetype",
    "-t ext4 -O ^extent",
    "-t ext4 -O quota,project",
    "-t ext4 -O quota,project,orphan_file",
    "-t ext4 -O meta_bg,^resize_inode,^flex_bg -b 1024",
    "-t ext4 -O sparse_super2,mmp,fast_commit",
    "-t ext4 -G 4 -N 5000",
];

pub(crate) fn mkfs(line: &str, image: &Path, more: &[&str]) -> Result<(), String> {
    let args = line.split_whitespace().map(OsString::from);
    let more = more.iter().map(OsString::from);
    let all = ["-q", "-F"].map(OsString::from).into_iter().chain(args).chain([image.into()]).chain(more);
    let command = cli::parse(all).map_err(|e| e.to_string())?;
    extant_mkfs::run(&command, &mut std::io::sink(), &Silent).map_err(|e| e.to_string())
}

/// A tree with every kind of file that this user can make.
pub(crate) fn sample(dir: &Path) -> PathBuf {
    let root = dir.join("tree");
    let file = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    file("small", b"hello\n");
    file("empty", b"");
    file("a/b/c/deep", &[7; 3000]);
    let noise: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    file("large", &noise);
    for n in 0..900 {
        file(&format!("many/a name of some length, number {n}"), format!("{n}").as_bytes());
    }
    std::fs::create_dir(root.join("empty-dir")).unwrap();
    std::fs::hard_link(root.join("small"), root.join("a/hard")).unwrap();
    symlink("a/b", root.join("short")).unwrap();
    symlink("x".repeat(300), root.join("long")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 9 << 20).unwrap();
    std::fs::set_permissions(root.join("small"), std::fs::Permissions::from_mode(0o751)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let value = vec![b'v'; 600];
    // A filesystem without attributes for users only makes the test smaller.
    let _ = rustix::fs::setxattr(root.join("a"), "user.name", b"value", rustix::fs::XattrFlags::empty());
    let _ = rustix::fs::setxattr(root.join("large"), "user.large", &value, rustix::fs::XattrFlags::empty());
    root
}

/// Path to what a file is: type and mode, size, link target or contents.
type Listing = BTreeMap<String, String>;

fn listing(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let meta = std::fs::symlink_metadata(root.join(&path)).unwrap();
            if path.as_os_str() == "lost+found" {
                continue;
            }
            let what = if meta.is_dir() {
                todo.push(path.clone());
                String::new()
            } else if meta.is_symlink() {
                std::fs::read_link(root.join(&path)).unwrap().to_string_lossy().into_owned()
            } else if meta.is_file() {
                format!("{} bytes, {:x}", meta.len(), digest(&std::fs::read(root.join(&path)).unwrap()))
            } else {
                continue;
            };
            found.insert(path.to_string_lossy().into_owned(), format!("{:o} {what}", meta.mode()));
        }
    }
    found
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn read_back(image: &Path, into: &Path) -> Option<Listing> {
    let debugfs = tool("debugfs")?;
    std::fs::create_dir(into).unwrap();
    let request = format!("rdump / {}", into.display());
    let out = run(&debugfs, &["-R", &request, &image.to_string_lossy()]);
    assert!(out.status.success(), "{}", text(&out));
    let found = listing(into);
    std::fs::remove_dir_all(into).unwrap();
    Some(found)
}

#[test]
fn every_way_reads_back() {
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    let want = listing(&root);
    let image = scratch.path("image");
    for way in WAYS {
        let _ = std::fs::remove_file(&image);
        mkfs(way, &image, &["-d", &root.to_string_lossy()]).unwrap_or_else(|e| panic!("{way}: {e}"));
        assert_clean(&image);
        let Some(found) = read_back(&image, &scratch.path("back")) else { return };
        for (path, what) in &want {
            // debugfs 1.47 gives all 60 bytes of i_block for a shorter inline file, on mke2fs's images too.
            let padded = way.contains("inline_data") && found[path].contains(" 60 bytes");
            assert!(padded || found.get(path) == Some(what), "{way}: {path}: {:?}, not {what}", found[path]);
        }
        assert_eq!(found.len(), want.len(), "{way}");
    }
}

/// Where the kernel's ext4 can be mounted, it says what is really there.
#[test]
fn the_kernel_reads_inline_files() {
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    let (image, mount) = (scratch.path("image"), scratch.path("mount"));
    mkfs("-t ext4 -O inline_data", &image, &["-d", &root.to_string_lossy()]).unwrap();
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&mount).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: no loop mount of ext4 here");
        return;
    }
    let found = listing(&mount);
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    assert_eq!(found, listing(&root));
}

#[test]
fn twice_the_same_bytes() {
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    let images = [scratch.path("one"), scratch.path("two")];
    for way in ["-t ext4", "-t ext4 -O inline_data,orphan_file -b 1024", "-t ext2"] {
        for image in &images {
            let _ = std::fs::remove_file(image);
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "population::helper_makes_one", "--nocapture"])
                .env("SOURCE_DATE_EPOCH", "1600000000")
                .env("MKFS_HELPER", format!("{way} -U {UUID} -d {} {}", root.display(), image.display()))
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", text(&out));
        }
        let [one, two] = images.each_ref().map(|i| digest(&std::fs::read(i).unwrap()));
        assert_eq!(one, two, "{way}");
    }
}

/// Without a SIZE, what is asked for beside the contents has room too.
#[test]
fn a_size_is_found_where_there_is_one() {
    let scratch = Scratch::new();
    let (image, root) = (scratch.path("image"), scratch.path("tree"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), b"contents").unwrap();
    let root = root.to_string_lossy().into_owned();
    for (line, mib) in [
        ("-t ext4 -N 2000000", 600),
        ("-t ext4 -b 1024 -N 2000000", 600),
        ("-t ext4 -I 1024 -N 200000", 300),
        ("-t ext4 -g 256 -b 4096 -I 1024 -N 200000", 700),
        ("-t ext4 -J size=4", 10),
        ("-t ext4 -J size=64", 140),
        ("-t ext4 -b 1024 -O fast_commit -J size=4,fast_commit_size=40000", 100),
        // The largest journal.
        ("-t ext4 -b 1024 -J size=10000", 20_480),
        // Tables inside their groups.
        ("-t ext2 -N 2000000", 700),
        ("-t ext4 -O ^flex_bg -N 2000000", 700),
        // Twelve inode bitmaps' groups of 8 GiB hold too few.
        ("-t ext4 -b 1024 -O bigalloc -C 1m -N 100000", 112 << 10),
        ("-t ext4 -b 1024 -O bigalloc -C 1m -N 2000000", 2304 << 10),
        // No room is kept for what is not made.
        ("-t ext4 -J size=4,fast_commit_size=40000", 10),
    ] {
        let _ = std::fs::remove_file(&image);
        mkfs(line, &image, &["-d", &root]).unwrap_or_else(|e| panic!("{line}: {e}"));
        let bytes = std::fs::metadata(&image).unwrap().len();
        assert!(bytes <= mib << 20, "{line}: {bytes} bytes");
        assert_clean(&image);
    }
    // More files than the inode bitmap of one large group has bits.
    for n in 0..9000 {
        std::fs::write(Path::new(&root).join(n.to_string()), b"").unwrap();
    }
    for (line, mib) in
        [("-b 1024 -O bigalloc -C 1m", 9 << 10), ("-b 4096 -I 4096", 45), ("-b 1024 -I 1024", 12)]
    {
        std::fs::remove_file(&image).unwrap();
        mkfs(line, &image, &["-d", &root]).unwrap_or_else(|e| panic!("{line}: {e}"));
        let bytes = std::fs::metadata(&image).unwrap().len();
        assert!(bytes <= mib << 20, "{line}: {bytes} bytes");
        assert_clean(&image);
    }
}

/// Without a SIZE, what no size has room for is refused for what it is, and no size is tried for it.
#[test]
fn what_no_size_has_room_for_is_named() {
    let scratch = Scratch::new();
    let (image, root) = (scratch.path("image"), scratch.path("tree"));
    std::fs::create_dir(&root).unwrap();
    let root = root.to_string_lossy().into_owned();
    let max = u64::MAX;
    for (line, said) in [
        ("-t ext4 -J size=40000".to_owned(), "-J size: the journal would have 40960000 blocks"),
        (format!("-t ext4 -J size={max}"), "-J size: the journal would have 18014398509481983 blocks"),
        (
            format!("-t ext4 -b 1024 -O fast_commit -J size=4,fast_commit_size={max}"),
            "-J fast_commit_size: 18014398509481983 blocks and a log of 4096",
        ),
        (
            "-t ext4 -b 1024 -J size=4 -O orphan_file -E orphan_file_size=4611686018427387904".to_owned(),
            "-E orphan_file_size: 4503599627370496 blocks",
        ),
        ("-t ext4 -b 1024 -O bigalloc -C 1m -i 1024".to_owned(), "inodes are more than bitmaps of 8192 bits"),
    ] {
        let e = mkfs(&line, &image, &["-d", &root]).expect_err(&line);
        assert!(e.contains(said), "{line}: {e}");
    }
}

/// A time that is no number is not taken for none, with contents or without.
#[test]
fn the_time_of_the_source_is_a_number() {
    let scratch = Scratch::new();
    let (image, root) = (scratch.path("image"), scratch.path("tree"));
    std::fs::create_dir(&root).unwrap();
    let without = scratch.path("there");
    std::fs::write(&without, vec![0; 4 << 20]).unwrap();
    for time in ["", "yesterday", "-1", "1600000000.5", "9223372036854775808", "1600000000"] {
        for (line, image) in [(format!("-d {}", root.display()), &image), (String::new(), &without)] {
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "population::helper_makes_one", "--nocapture"])
                .env("SOURCE_DATE_EPOCH", time)
                .env("MKFS_HELPER", format!("{line} {}", image.display()))
                .output()
                .unwrap();
            let refused = text(&out).contains(&format!("SOURCE_DATE_EPOCH={time}: not a number"));
            assert_eq!(out.status.success(), time == "1600000000", "{time} {line}: {}", text(&out));
            assert_eq!(refused, time != "1600000000", "{time} {line}: {}", text(&out));
        }
    }
}

/// Nor is one taken for another that has no room: in inodes of 256 bytes, of 128, and in the superblock of an external journal.
#[test]
fn the_time_of_the_source_has_room() {
    let scratch = Scratch::new();
    let root = scratch.path("tree");
    std::fs::create_dir(&root).unwrap();
    let contents = format!("-d {}", root.display());
    let (most, most_small) = (15_032_385_535_u64, 2_147_483_647_u64);
    for (line, latest) in [
        ("-t ext4", most),
        (contents.as_str(), most),
        ("-O journal_dev", most),
        ("-t ext4 -I 128", most_small),
        ("-t ext2 -I 128 -r 0", most_small),
    ] {
        for (time, fits) in [(latest, true), (latest + 1, false), (u64::MAX / 2, false)] {
            let image = scratch.path("image");
            let _ = std::fs::remove_file(&image);
            if line != contents {
                std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
            }
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "population::helper_makes_one", "--nocapture"])
                .env("SOURCE_DATE_EPOCH", time.to_string())
                .env("MKFS_HELPER", format!("{line} {}", image.display()))
                .output()
                .unwrap();
            assert_eq!(out.status.success(), fits, "{time} {line}: {}", text(&out));
            if !fits {
                assert!(text(&out).contains("have no times after"), "{time} {line}: {}", text(&out));
                continue;
            }
            let bytes = std::fs::read(&image).unwrap();
            let sb = &bytes[1024..2048];
            // s_mkfs_time and its high byte, s_wtime and s_lastcheck and theirs (kernel ext4 documentation, "Super Block").
            for (low, high) in [(0x108, 0x276), (0x30, 0x274), (0x40, 0x277)] {
                let low = u32::from_le_bytes(sb[low..low + 4].try_into().unwrap());
                assert_eq!(u64::from(sb[high]) << 32 | u64::from(low), time, "{line}, byte {high:#x}");
            }
        }
    }
}

/// Runs as a process of its own, so that the time can come from the environment.
#[test]
fn helper_makes_one() {
    let Ok(line) = std::env::var("MKFS_HELPER") else { return };
    let (line, image) = line.rsplit_once(' ').unwrap();
    mkfs(line, Path::new(image), &[]).unwrap();
}

#[test]
fn archives_of_every_kind() {
    let (Some(tar), scratch) = (tool("tar"), Scratch::new()) else { return };
    let root = sample(&scratch.path(""));
    let want = listing(&root);
    let image = scratch.path("image");
    for (name, flag) in [("tar", ""), ("tar.gz", "-z"), ("tar.zst", "--zstd"), ("tar.xz", "-J")] {
        let archive = scratch.path(name);
        let (from, to) = (root.to_string_lossy().into_owned(), archive.to_string_lossy().into_owned());
        let mut args = vec!["-c", "--format=posix", "--xattrs", "-f", &to, "-C", &from];
        args.extend((!flag.is_empty()).then_some(flag));
        args.push(".");
        let out = run(&tar, &args);
        if !out.status.success() {
            eprintln!("skipped: tar {flag}: {}", text(&out));
            continue;
        }
        mkfs("-t ext4", &image, &["-d", &to]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_clean(&image);
        let Some(found) = read_back(&image, &scratch.path("back")) else { return };
        assert_eq!(found, want, "{name}");
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_sparse_archive_on_standard_input() {
    let (Some(tar), Some(debugfs)) = (tool("tar"), tool("debugfs")) else { return };
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "population::helper_makes_one", "--nocapture"])
        .env("MKFS_HELPER", format!("-t ext4 -d - {}", scratch.path("image").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let archived = Command::new(tar)
        .args(["-c", "--format=gnu", "--sparse", "-C"])
        .arg(&root)
        .arg(".")
        .stdout(child.stdin.take().unwrap())
        .status()
        .unwrap();
    assert!(archived.success() && child.wait().unwrap().success());
    let image = scratch.path("image");
    assert_clean(&image);
    assert_eq!(read_back(&image, &scratch.path("back")).unwrap(), listing(&root));
    let out = text(&run(&debugfs, &["-R", "stat /sparse", &image.to_string_lossy()]));
    let blocks: u64 =
        out.split("Blockcount:").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(blocks <= 64, "holes stay holes: {blocks} sectors");
}

#[test]
fn sparse_members_in_every_format() {
    let (Some(tar), Some(debugfs)) = (tool("tar"), tool("debugfs")) else { return };
    let scratch = Scratch::new();
    let root = scratch.path("tree");
    std::fs::create_dir(&root).unwrap();
    let file = std::fs::File::create(root.join("holes")).unwrap();
    file.set_len(50 << 20).unwrap();
    for n in 0..300_u64 {
        let bytes = vec![(n % 250) as u8 + 1; 4096];
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, n * 163_840 + (n % 3) * 4096).unwrap();
    }
    std::fs::write(root.join("plain"), b"between").unwrap();
    let only_hole = std::fs::File::create(root.join("only-hole")).unwrap();
    only_hole.set_len(1 << 20).unwrap();
    let want = listing(&root);
    let image = scratch.path("image");
    for format in [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=1.0",
    ] {
        for packed in [false, true] {
            let archive = scratch.path("archive").to_string_lossy().into_owned();
            let tree = root.to_string_lossy().into_owned();
            let mut args: Vec<&str> = vec!["-c", "--sparse"];
            args.extend(format.split(' '));
            args.extend(packed.then_some("-z"));
            args.extend(["-f", &archive, "-C", &tree, "."]);
            let out = run(&tar, &args);
            assert!(out.status.success(), "{format}: {}", text(&out));
            let _ = std::fs::remove_file(&image);
            mkfs("-t ext4", &image, &["-d", &archive]).unwrap_or_else(|e| panic!("{format}: {e}"));
            assert_clean(&image);
            let Some(found) = read_back(&image, &scratch.path("back")) else { return };
            assert_eq!(found, want, "{format}, packed: {packed}");
            let out = text(&run(&debugfs, &["-R", "stat /holes", &image.to_string_lossy()]));
            let sectors = out.split("Blockcount:").nth(1).unwrap().split_whitespace().next().unwrap();
            assert!(sectors.parse::<u64>().unwrap() < 300 * 8 + 64, "{format}: {sectors} sectors");
        }
    }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_500_000_000);
    header
}

/// Name, contents, PAX extensions.
type Member<'a> = (&'a str, &'a [u8], &'a [(&'a str, &'a [u8])]);

/// Writes an archive of files with these names, contents, PAX extensions.
fn archive(path: &Path, members: &[Member<'_>]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes, extensions) in members {
        builder.append_pax_extensions(extensions.iter().copied()).unwrap();
        let mut header = header(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn attributes_go_where_they_fit() {
    let Some(debugfs) = tool("debugfs") else { return };
    let scratch = Scratch::new();
    let (tar, image) = (scratch.path("tar"), scratch.path("image"));
    let small: &[u8] = b"small";
    let (block, huge) = (vec![b'b'; 700], vec![b'h'; 20_000]);
    let acl: &[u8] = b"user::rw-,user:someone:r--:1234,group::r--,mask::rw-,other::---";
    archive(
        &tar,
        &[
            ("one", b"1", &[("SCHILY.xattr.user.a", small), ("SCHILY.xattr.user.b", &block)]),
            ("two", b"2", &[("SCHILY.xattr.user.a", small), ("SCHILY.xattr.user.b", &block)]),
            ("three", b"3", &[("SCHILY.xattr.user.huge", &huge)]),
            ("four", b"4", &[("SCHILY.xattr.user.huge", &huge), ("SCHILY.acl.access", acl)]),
        ],
    );
    for way in [
        "-t ext4 -O ea_inode",
        "-t ext4 -O ea_inode -b 1024",
        "-t ext4 -O ea_inode,inline_data -I 512",
        "-t ext4 -O ea_inode -I 128",
        "-t ext4 -O ea_inode,quota",
    ] {
        let _ = std::fs::remove_file(&image);
        mkfs(way, &image, &["-d", &tar.to_string_lossy()]).unwrap_or_else(|e| panic!("{way}: {e}"));
        assert_clean(&image);
        let value = |path: &str, name: &str| {
            let file = scratch.path("value");
            let request = format!("ea_get -f {} {path} {name}", file.display());
            run(&debugfs, &["-R", &request, &image.to_string_lossy()]);
            std::fs::read(file).unwrap_or_default()
        };
        assert_eq!(value("/one", "user.a"), small, "{way}");
        assert_eq!(value("/two", "user.b"), block, "{way}");
        assert_eq!(value("/three", "user.huge"), huge, "{way}");
        assert_eq!(value("/four", "user.huge"), huge, "{way}");
        let list = text(&run(&debugfs, &["-R", "ea_list /four", &image.to_string_lossy()]));
        assert!(list.contains("posix_acl_access"), "{way}: {list}");
    }
    std::fs::remove_file(&image).unwrap();
    let e = mkfs("-t ext4", &image, &["-d", &tar.to_string_lossy()]).unwrap_err();
    assert!(e.contains("ea_inode") && e.contains("user.huge"), "{e}");
    assert!(e.starts_with("/four: "), "the file is named: {e}");
    archive(&tar, &[("some/where/deep", b"3", &[("SCHILY.xattr.user.huge", &huge)])]);
    let e = mkfs("-t ext4", &image, &["-d", &tar.to_string_lossy()]).unwrap_err();
    assert!(e.starts_with("/some/where/deep: "), "{e}");
}

#[test]
fn hash_trees_of_every_depth() {
    let Some(debugfs) = tool("debugfs") else { return };
    let scratch = Scratch::new();
    let (tar, image) = (scratch.path("tar"), scratch.path("image"));
    let names: Vec<String> = (0..70_000).map(|n| format!("dir/{n:06}-{}", "long".repeat(48))).collect();
    let write = |count: usize| {
        let mut builder = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(&tar).unwrap()));
        for name in &names[..count] {
            builder.append_data(&mut header(0), name, std::io::empty()).unwrap();
        }
        builder.finish().unwrap();
    };
    // One block, a root of leaves, one level of nodes, two levels (large_dir).
    for (count, way) in [
        (3, "-t ext4 -b 1024"),
        (200, "-t ext4 -b 1024"),
        (5_000, "-t ext4 -b 1024"),
        (5_000, "-t ext4 -b 4096 -O ^metadata_csum"),
        (70_000, "-t ext4 -b 1024 -O large_dir"),
    ] {
        write(count);
        let _ = std::fs::remove_file(&image);
        mkfs(way, &image, &["-d", &tar.to_string_lossy()]).unwrap_or_else(|e| panic!("{count}: {e}"));
        assert_clean(&image);
        for n in [0, count / 2, count - 1] {
            let request = format!("stat /{}", names[n]);
            let out = text(&run(&debugfs, &["-R", &request, &image.to_string_lossy()]));
            assert!(out.contains("Type: regular"), "{count}: {}: {out}", names[n]);
        }
    }
    std::fs::remove_file(&image).unwrap();
    let e = mkfs("-t ext4 -b 1024", &image, &["-d", &tar.to_string_lossy()]).unwrap_err();
    assert!(e.contains("large_dir"), "{e}");
}

#[test]
fn archives_that_lie_are_refused() {
    let scratch = Scratch::new();
    let (tar, image) = (scratch.path("evil.tar"), scratch.path("image"));
    let error = || mkfs("-t ext4", &image, &["-d", &tar.to_string_lossy()]).unwrap_err();
    let mut header = header(0);
    let evil = b"../../outside";
    header.as_old_mut().name[..evil.len()].copy_from_slice(evil);
    header.set_cksum();
    let mut builder = tar::Builder::new(std::fs::File::create(&tar).unwrap());
    builder.append(&header, std::io::empty()).unwrap();
    builder.finish().unwrap();
    assert!(error().contains("'..'"), "{}", error());
    archive(&tar, &[("file", b"x", &[]), ("file/below", b"y", &[])]);
    assert!(error().contains("not a directory"), "{}", error());
    archive(&tar, &[("file", b"some bytes", &[])]);
    let whole = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &whole[..700]).unwrap();
    assert!(!error().is_empty());
}

#[test]
fn owners_are_overridden() {
    let Some(debugfs) = tool("debugfs") else { return };
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    std::fs::set_permissions(root.join("small"), std::fs::Permissions::from_mode(0o6751)).unwrap();
    let image = scratch.path("image");
    mkfs("--owner 12:34 --root-owner 56:78", &image, &["-d", &root.to_string_lossy()]).unwrap();
    let stat = |path: &str| text(&run(&debugfs, &["-R", &format!("stat {path}"), &image.to_string_lossy()]));
    let has = |path: &str, user: &str, group: &str| {
        let out = stat(path);
        let words: Vec<&str> = out.split_whitespace().collect();
        let after = |key: &str| words.iter().position(|w| *w == key).map(|at| words[at + 1]);
        assert_eq!((after("User:"), after("Group:")), (Some(user), Some(group)), "{path}");
    };
    has("/", "56", "78");
    has("/small", "12", "34");
    has("/many", "12", "34");
    assert!(stat("/small").contains("6751"), "{}", stat("/small"));
}

#[test]
fn what_cannot_be_is_said() {
    let scratch = Scratch::new();
    let root = sample(&scratch.path(""));
    let (image, tree) = (scratch.path("image"), root.to_string_lossy().into_owned());
    let error = |line: &str, more: &[&str]| mkfs(line, &image, more).unwrap_err();
    std::fs::File::create(&image).unwrap().set_len(2 << 20).unwrap();
    assert!(error("-t ext4", &["-d", &tree]).contains("no space left"));
    std::fs::remove_file(&image).unwrap();
    let missing = scratch.path("nothing").to_string_lossy().into_owned();
    assert!(error("-t ext4", &["-d", &missing]).contains("nothing"));
    let broken = scratch.path("broken.tar");
    std::fs::write(&broken, b"not an archive at all, just some text").unwrap();
    assert!(error("-t ext4", &["-d", &broken.to_string_lossy()]).contains("broken.tar"));
    std::fs::write(root.join("lost+found"), b"a file").unwrap();
    assert!(error("-t ext4", &["-d", &tree]).contains("lost+found"));
}
