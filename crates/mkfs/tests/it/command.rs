//! The whole command: what it opens, grows, refuses.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use extant_device::BlockDevice as _;

use crate::population::mkfs;
use crate::support::{Scratch, UUID, assert_clean, run, text, tool};

fn bytes(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// The command without `-F`.
fn careful(image: &Path, size: &str) -> Result<(), String> {
    plainly("-q", image, size)
}

fn plainly(line: &str, image: &Path, size: &str) -> Result<(), String> {
    let args = line.split_whitespace().map(Into::into);
    let command = extant_mkfs::cli::parse(args.chain([image.as_os_str().to_owned(), size.into()]))
        .map_err(|e| e.to_string())?;
    extant_mkfs::run(&command, &mut std::io::sink(), &extant_mkfs::Silent).map_err(|e| e.to_string())
}

#[test]
fn another_filesystem_is_not_overwritten_by_mistake() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    careful(&image, "16m").unwrap();
    assert_clean(&image);
    let e = careful(&image, "16m").unwrap_err();
    assert!(e.contains("-F"), "{e}");
    mkfs("-t ext2", &image, &[]).unwrap();
    assert_clean(&image);
}

#[test]
fn old_contents_do_not_show_through() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    for line in [
        "-t ext4",
        "-t ext2",
        "-t ext4 -E nodiscard",
        "-t ext2 -E nodiscard",
        "-t ext4 -E nodiscard,lazy_itable_init=0",
    ] {
        std::fs::write(&image, vec![0xa5; 40 << 20]).unwrap();
        mkfs(line, &image, &[]).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 40 << 20, "{line}");
        assert_clean(&image);
    }
}

#[test]
fn an_offset_leaves_what_is_before_and_behind() {
    let scratch = Scratch::new();
    let image = scratch.path("disk");
    std::fs::write(&image, vec![0x5a; 32 << 20]).unwrap();
    let args = ["-q", "-F", "-E", "offset=1048576"].map(Into::into);
    let all = args.into_iter().chain([image.as_os_str().to_owned(), "20m".into()]);
    let command = extant_mkfs::cli::parse(all).unwrap();
    extant_mkfs::run(&command, &mut std::io::sink(), &extant_mkfs::Silent).unwrap();
    assert!(bytes(&image, 0, 1 << 20).iter().all(|&b| b == 0x5a));
    assert!(bytes(&image, 21 << 20, 1 << 20).iter().all(|&b| b == 0x5a));
    let inner = scratch.path("inner");
    std::fs::write(&inner, bytes(&image, 1 << 20, 20 << 20)).unwrap();
    assert_clean(&inner);
}

/// Sizes and offsets whose sum or product has no room in 64 bits, or none in a file's size.
#[test]
fn nothing_is_larger_than_a_file() {
    let scratch = Scratch::new();
    let (new, there) = (scratch.path("new"), scratch.path("there"));
    std::fs::write(&there, vec![0x5a; 1 << 20]).unwrap();
    let huge = "-b 65536 -O bigalloc -C 256m";
    for (line, size, word) in [
        (huge, "281474976710656", "larger than a file can be"),
        (huge, "281474976714752", "larger than a file can be"),
        (huge, "140737488355328", "larger than a file can be"),
        ("-O journal_dev -b 65536", "281474976710656", "larger than a file can be"),
        ("-E offset=18446744073709551000", "4m", "-E offset"),
        ("-E offset=9223372036854774784", "4m", "-E offset"),
    ] {
        for image in [&new, &there] {
            let e = plainly(&format!("-q {line}"), image, size).unwrap_err();
            assert!(e.contains(word), "{line} {size}: {e}");
            assert!(!new.exists() && std::fs::read(&there).unwrap() == vec![0x5a; 1 << 20], "{line}");
        }
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let args = ["-n".into(), image.as_os_str().to_owned(), "16m".into()];
    let mut said = Vec::new();
    extant_mkfs::run(&extant_mkfs::cli::parse(args).unwrap(), &mut said, &extant_mkfs::Silent).unwrap();
    assert!(!image.exists());
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("16384 1k blocks") && said.contains("8193"), "{said}");
}

#[test]
fn superblocks_alone_bring_a_filesystem_back() {
    let (Some(e2fsck), Some(debugfs)) = (tool("e2fsck"), tool("debugfs")) else { return };
    let scratch = Scratch::new();
    let (image, file) = (scratch.path("image"), scratch.path("file"));
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    mkfs("-t ext4", &image, &["-U", UUID]).unwrap();
    std::fs::write(&file, b"still here").unwrap();
    let path = image.to_string_lossy().into_owned();
    let write = format!("write {} kept", file.display());
    assert!(run(&debugfs, &["-w", "-R", &write, &path]).status.success());
    let damaged = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    damaged.write_all_at(&[0; 3072], 1024).unwrap();
    drop(damaged);
    mkfs("-S", &image, &["-U", UUID]).unwrap();
    let out = run(&e2fsck, &["-fy", &path]);
    assert!(out.status.code().is_some_and(|c| c <= 3), "{}", text(&out));
    assert_clean(&image);
    let kept = text(&run(&debugfs, &["-R", "cat /kept", &path]));
    assert!(kept.contains("still here"), "{kept}");
}

#[test]
fn external_journals() {
    let (Some(mke2fs), Some(dumpe2fs)) = (tool("mke2fs"), tool("dumpe2fs")) else { return };
    let scratch = Scratch::new();
    for block in ["1024", "4096"] {
        let (ours, theirs, image) = (scratch.path("ours"), scratch.path("theirs"), scratch.path("image"));
        for path in [&ours, &theirs] {
            std::fs::File::create(path).unwrap().set_len(8 << 20).unwrap();
        }
        let line = format!("-O journal_dev -b {block} -U {UUID} -L log");
        mkfs(&line, &ours, &[]).unwrap();
        let path = theirs.to_string_lossy().into_owned();
        let mut args = vec!["-q", "-F"];
        args.extend(line.split_whitespace());
        args.push(&path);
        assert!(run(&mke2fs, &args).status.success());
        // All but the times and the hash seed.
        for (from, to) in [
            (1024, 1024 + 0x30),
            (1024 + 0x44, 1024 + 0xec),
            (1024 + 0xfc, 1024 + 0x108),
            (1024 + 0x10c, 16384),
        ] {
            assert_eq!(
                bytes(&theirs, from, (to - from) as usize),
                bytes(&ours, from, (to - from) as usize),
                "{block}"
            );
        }
        let device = format!("device={}", ours.display());
        let image_line = format!("-t ext4 -b {block} -J {device}");
        std::fs::File::create(&image).unwrap().set_len(40 << 20).unwrap();
        mkfs(&image_line, &image, &[]).unwrap();
        let journal = text(&run(&dumpe2fs, &["-h", &image.to_string_lossy()]));
        assert!(journal.contains(UUID), "{journal}");
        let users = text(&run(&dumpe2fs, &[&ours.to_string_lossy()]));
        assert!(users.contains("Journal users:"), "{users}");
    }
    let plain = scratch.path("plain");
    std::fs::File::create(&plain).unwrap().set_len(8 << 20).unwrap();
    let e = mkfs(&format!("-t ext4 -J device={}", plain.display()), &scratch.path("image"), &[]).unwrap_err();
    assert!(e.contains("not an external journal"), "{e}");
}

/// An external journal of `block` bytes a block, and the option that names it.
fn journal(scratch: &Scratch, block: u32) -> (PathBuf, String) {
    let path = scratch.path("journal");
    mkfs(&format!("-O journal_dev -b {block}"), &path, &["8m"]).unwrap();
    let option = format!("-b {block} -J device={}", path.display());
    (path, option)
}

/// A filesystem that is made again is not a further user, and there is no second one by mistake.
#[test]
fn an_external_journal_is_of_one_filesystem() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    for block in [1024, 4096] {
        let (journal, option) = journal(&scratch, block);
        let line = format!("-t ext4 {option} -U {UUID}");
        mkfs(&line, &image, &["32m"]).unwrap();
        let once = std::fs::read(&journal).unwrap();
        mkfs(&line, &image, &["32m"]).unwrap();
        assert!(std::fs::read(&journal).unwrap() == once, "entered twice");
        if let Some(e2fsck) = tool("e2fsck") {
            let paths = [journal.to_string_lossy(), image.to_string_lossy()];
            let out = run(&e2fsck, &["-fn", "-j", &paths[0], &paths[1]]);
            assert!(out.status.success(), "{}", text(&out));
        }
        let other = scratch.path("other");
        let e = plainly(&format!("-q {option}"), &other, "32m").unwrap_err();
        assert!(e.contains("another filesystem uses it") && e.contains("-F"), "{e}");
        assert!(std::fs::read(&journal).unwrap() == once && !other.exists());
        // A new image of the one user is not another filesystem.
        plainly(&format!("-q {line}"), &other, "32m").unwrap();
        mkfs(&option, &other, &["32m"]).unwrap();
        assert!(std::fs::read(&journal).unwrap() != once, "the second user is not entered");
        std::fs::remove_file(&other).unwrap();
    }
}

/// Where the log starts and which sequence number is expected there, as the journal's superblock says, and the error on record.
fn tail(journal: &Path, block: u64) -> (u32, u32, u32) {
    let bytes = bytes(journal, if block == 1024 { 2048 } else { block }, 1024);
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (word(0x1c), word(0x18), word(0x20))
}

/// What is left in the log of a filesystem that was there before, or its error, reaches no new one: without `-F` it is not made, with it the
/// log is emptied, if it is nobody else's.
#[test]
fn a_journal_with_changes_in_it() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    for block in [1024, 4096] {
        let (journal, option) = journal(&scratch, block);
        let line = format!("-t ext4 {option} -U {UUID}");
        mkfs(&line, &image, &["32m"]).unwrap();
        let first = if block == 1024 { 3 } else { 2 };
        assert_eq!(tail(&journal, block.into()), (0, 1, 0));
        let put = |at: u64, word: u32| {
            let at = if block == 1024 { 2048 } else { 4096 } + at;
            let file = std::fs::OpenOptions::new().write(true).open(&journal).unwrap();
            file.write_all_at(&word.to_be_bytes(), at).unwrap();
        };
        put(0x1c, first);
        put(0x18, 7);
        put(0x20, (-5_i32) as u32);
        let used = std::fs::read(&journal).unwrap();
        let new = scratch.path("new");
        for line in [format!("-q {line}"), format!("-q -n {line}")] {
            let e = plainly(&line, &new, "32m").unwrap_err();
            assert!(e.contains("its log holds changes") && e.contains("-F"), "{line}: {e}");
            assert!(std::fs::read(&journal).unwrap() == used && !new.exists(), "{line}");
        }
        // Another one would lose them to it, or it to them.
        let before = std::fs::read(&image).unwrap();
        let e = mkfs(&option, &image, &["32m"]).unwrap_err();
        assert!(e.contains("changes of another filesystem"), "{e}");
        assert!(std::fs::read(&journal).unwrap() == used && std::fs::read(&image).unwrap() == before);
        mkfs(&line, &image, &["32m"]).unwrap();
        let blocks = (8 << 20) / block;
        assert_eq!(tail(&journal, block.into()), (0, 7 + blocks, 0), "start, sequence, error");
        if let Some(e2fsck) = tool("e2fsck") {
            let paths = [journal.to_string_lossy(), image.to_string_lossy()];
            let out = run(&e2fsck, &["-fn", "-j", &paths[0], &paths[1]]);
            let said = text(&out);
            assert!(out.status.success() && !said.contains("journal has data"), "{said}");
        }
        // Nobody's changes: nobody is listed.
        put(0x40, 0);
        put(0x1c, first);
        let e = plainly(&format!("-q {line}"), &new, "32m").unwrap_err();
        assert!(e.contains("its log holds changes"), "{e}");
        mkfs(&line, &image, &["32m"]).unwrap();
        assert_eq!(tail(&journal, block.into()), (0, 7 + 2 * blocks, 0));
        // An error alone does not keep it from being made, and is not the new one's.
        put(0x20, (-5_i32) as u32);
        plainly(&format!("-q {line}"), &new, "32m").unwrap();
        assert_eq!(tail(&journal, block.into()).2, 0);
        std::fs::remove_file(&new).unwrap();
    }
}

/// Nor does the journal hear of a filesystem that is not there.
#[test]
fn what_cannot_be_made_enters_no_journal() {
    let scratch = Scratch::new();
    let (journal, option) = journal(&scratch, 4096);
    let source = scratch.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("lost+found"), b"not a directory").unwrap();
    let before = std::fs::read(&journal).unwrap();
    let contents = format!("-d {}", source.display());
    for (line, word) in
        [("-O orphan_file -E orphan_file_size=8m", "orphan_file_size"), (contents.as_str(), "lost+found")]
    {
        let image = scratch.path("image");
        let e = mkfs(&format!("-t ext4 {option} {line}"), &image, &["32m"]).unwrap_err();
        assert!(e.contains(word), "{line}: {e}");
        assert!(std::fs::read(&journal).unwrap() == before, "{line}: the journal is changed");
    }
}

/// What was there is there still.
#[test]
fn what_cannot_be_made_overwrites_nothing() {
    let scratch = Scratch::new();
    let (image, plain, source) = (scratch.path("image"), scratch.path("plain"), scratch.path("source"));
    mkfs("-t ext4", &image, &["-U", UUID, "32m"]).unwrap_or_else(|e| panic!("{e}"));
    std::fs::File::create(&plain).unwrap().set_len(8 << 20).unwrap();
    std::fs::create_dir(&source).unwrap();
    std::os::unix::fs::symlink("x".repeat(1500), source.join("link")).unwrap();
    let before = std::fs::read(&image).unwrap();
    let device = format!("-t ext4 -b 1024 -J device={}", plain.display());
    let contents = format!("-t ext4 -b 1024 -d {}", source.display());
    for (line, word) in [
        ("-t ext4 -J size=512", "-J size"),
        ("-t ext4 -O orphan_file -E orphan_file_size=8m", "orphan_file_size"),
        ("-t ext4 -g 256 -I 1024 -N 200000", "inodes"),
        ("-t ext4 -O bigalloc -I 1024 -N 123456", "inodes"),
        ("-t ext4 -b 1024 -O bigalloc -N 60000", "inodes"),
        ("-t ext2 -O orphan_file", "orphan_file"),
        ("-t ext2 -r 0 -O dir_index", "-r 0"),
        ("-t ext4 -o hurd -O ea_inode", "-o hurd"),
        (&device, "not an external journal"),
        (&contents, "/link: "),
    ] {
        let e = mkfs(line, &image, &[]).err().unwrap_or_else(|| panic!("{line} was made"));
        assert!(e.contains(word), "{line}: {e}");
        assert!(std::fs::read(&image).unwrap() == before, "{line} changed the image");
        // Nor does a new image come, and a dry run says the same.
        for dry in ["", "-n "] {
            let new = scratch.path("new");
            let e = mkfs(&format!("{dry}{line}"), &new, &["32m"]).err();
            assert!(e.as_ref().is_some_and(|e| e.contains(word)), "{dry}{line}: {e:?}");
            assert!(!new.exists(), "{dry}{line} left a file");
        }
    }
    assert_clean(&image);
}

/// mke2fs stops in the middle of these; here the reserved inodes and lost+found are counted first.
#[test]
fn a_filesystem_has_the_inodes_it_needs_itself() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    for (line, size) in [
        ("-t ext4 -i 1048576", "4m"),
        ("-t ext4 -N 1", "400k"),
        ("-t ext2 -N 11", "1m"),
        ("-t ext4 -N 1 -I 1024 -O quota,project,orphan_file", "6m"),
    ] {
        let _ = std::fs::remove_file(&image);
        mkfs(line, &image, &[size]).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_clean(&image);
    }
}

/// Beside the log, in half of the filesystem; and no number that wraps is taken for a small one.
#[test]
fn fast_commits_have_a_bound() {
    let scratch = Scratch::new();
    let make = |fc: u64, size: u64| {
        let image = scratch.path("image");
        let _ = std::fs::remove_file(&image);
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let line = format!("-t ext4 -b 1024 -O fast_commit -J size={size},fast_commit_size={fc}");
        let made = mkfs(&line, &image, &[]);
        if made.is_ok() {
            assert_clean(&image);
        }
        made.map(|()| {
            let journal = tool("dumpe2fs").map(|d| text(&run(&d, &["-h", &image.to_string_lossy()])));
            let blocks = |text: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix("Fast commit length:"));
                line.and_then(|l| l.trim().parse::<u64>().ok())
            };
            journal.map(|text| blocks(&text).expect("it has fast commits"))
        })
    };
    for (given, has) in [(0, 64), (16, 16), (4095, 4095), (12_000, 12_000), (28_672, 28_672)] {
        let made = make(given, 4).unwrap_or_else(|e| panic!("{given}: {e}"));
        assert!(made.is_none_or(|blocks| blocks == has), "{given}: {made:?}");
    }
    for given in [28_673, 100_000, 4_194_304, 1 << 44, 1 << 54, u64::MAX] {
        let e = make(given, 4).unwrap_err();
        assert!(e.contains("fast_commit_size"), "{given}: {e}");
    }
    let e = make(0, (1 << 44) + 4).unwrap_err();
    assert!(e.contains("-J size"), "{e}");
}

#[test]
fn twenty_tebibytes() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    if careful(&image, "20t").is_err_and(|e| e.contains("File too large")) {
        eprintln!("skipped: this filesystem does not hold files of 20 TiB");
        return;
    }
    let device = extant_device::OpenOptions::new().open(&image).unwrap();
    assert_eq!(device.size(), 20 << 40);
    let mut sb = [0; 1024];
    device.read_at(1024, &mut sb).unwrap();
    let sb = extant_format::Superblock::read(&sb).unwrap();
    assert_eq!(sb.geometry().blocks_count(), (20 << 40) / 4096);
}
