//! Images over the feature matrix, small, with a bit of everything in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// A name, mke2fs's options, and the size.
pub(crate) const KINDS: &[(&str, &[&str], &str)] = &[
    ("ext2-1k", &["-t", "ext2", "-b", "1024", "-I", "128"], "4M"),
    ("ext2-4k", &["-t", "ext2", "-b", "4096"], "8M"),
    ("ext3-1k", &["-t", "ext3", "-b", "1024", "-O", "dir_index", "-J", "size=1"], "6M"),
    ("ext4-nocsum-1k", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"], "4M"),
    ("ext4-nocsum-4k", &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^has_journal"], "8M"),
    (
        "ext4-nogdt",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg,^flex_bg,^has_journal"],
        "12M",
    ),
    ("ext4-csum-1k", &["-t", "ext4", "-b", "1024"], "4M"),
    ("ext4-csum-4k", &["-t", "ext4", "-b", "4096"], "8M"),
    (
        "inline",
        &["-t", "ext4", "-b", "1024", "-I", "256", "-O", "inline_data,^metadata_csum,^has_journal"],
        "4M",
    ),
    (
        "bigalloc",
        &["-t", "ext4", "-b", "1024", "-C", "4096", "-O", "bigalloc,^metadata_csum,^has_journal"],
        "8M",
    ),
    ("quota", &["-t", "ext4", "-b", "1024", "-O", "quota,^metadata_csum,^has_journal"], "4M"),
    ("ea-inode", &["-t", "ext4", "-b", "1024", "-O", "ea_inode,^metadata_csum,^has_journal"], "4M"),
    (
        "meta-bg",
        &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^metadata_csum"],
        "6M",
    ),
    ("orphan-file", &["-t", "ext4", "-b", "1024", "-O", "orphan_file,^metadata_csum"], "6M"),
];

/// Fills a folder with files of all kinds.
fn tree(root: &Path) -> std::io::Result<()> {
    fs::create_dir_all(root.join("dir/sub/deep"))?;
    fs::create_dir(root.join("many"))?;
    fs::write(root.join("empty"), b"")?;
    fs::write(root.join("tiny"), b"tiny")?;
    fs::write(root.join("dir/medium"), vec![7; 5000])?;
    fs::write(root.join("dir/large"), vec![8; 300_000])?;
    fs::write(root.join("dir/sub/inline"), vec![9; 100])?;
    for n in 0..120 {
        fs::write(root.join(format!("many/file-with-a-longer-name-{n:04}")), b"")?;
    }
    for n in 0..6 {
        fs::create_dir(root.join(format!("dir/d{n}")))?;
    }
    symlink("tiny", root.join("short-link"))?;
    symlink("x".repeat(150), root.join("long-link"))?;
    fs::hard_link(root.join("tiny"), root.join("dir/tiny-again"))?;
    let sparse = fs::File::create(root.join("sparse"))?;
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 200_000)?;
    Ok(())
}

fn run(program: &str, args: &[&str], input: &str) -> bool {
    let child = Command::new(program)
        .args(args)
        .env("E2FSPROGS_FAKE_TIME", "1600000000")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return false;
    };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    }
    child.wait().is_ok_and(|s| matches!(s.code(), Some(0 | 1)))
}

/// Makes the image of a kind; `None` without mke2fs and debugfs.
pub(crate) fn make(folder: &Path, kind: &(&str, &[&str], &str)) -> Option<Vec<u8>> {
    let (name, options, size) = kind;
    let (source, image) = (folder.join("tree"), folder.join(name));
    if !source.exists() {
        tree(&source).ok()?;
    }
    let image = image.to_str()?;
    let mut args = vec!["-q", "-F", "-N", "256", "-U", "11111111-2222-3333-4444-555555555555"];
    args.extend([
        "-E",
        "hash_seed=11111111-2222-3333-4444-555555555556,root_owner=0:0",
        "-d",
        source.to_str()?,
    ]);
    args.extend_from_slice(options);
    args.extend([image, size]);
    if !run("mke2fs", &args, "") {
        return None;
    }
    let long = "v".repeat(400);
    let longer = "w".repeat(1500);
    let mut script = format!("ea_set tiny user.small value\nea_set dir/medium user.long {long}\n");
    script += "ea_set dir/large user.one 1\nea_set dir/large trusted.two 22\nea_set dir/large security.x y\n";
    if options.iter().any(|o| o.contains("ea_inode")) {
        script += &format!("ea_set dir/large user.big {longer}\n");
    }
    script += "mknod pipe p\nmknod char c 1 3\nmknod block b 7 300\n";
    // debugfs does not count names of nodes it makes; the directories are indexed and all is made right after.
    run("debugfs", &["-w", "-f", "/dev/stdin", image], &script);
    run("e2fsck", &["-fyD", image], "");
    let bytes = fs::read(image).ok()?;
    let clean = super::e2fsck_says_clean(Path::new(image))?;
    assert!(clean, "{name} is clean to begin with:\n{}", super::e2fsck_text(Path::new(image)));
    Some(bytes)
}

#[test]
fn images_of_all_kinds_are_clean() {
    let folder = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let Some(bytes) = make(folder.path(), kind) else {
            eprintln!("skipped {}: mke2fs cannot make it here", kind.0);
            continue;
        };
        let device = extant_device::MemoryDevice::from_bytes(&bytes);
        let report = extant_fsck::check(&device, &extant_fsck::Options::default());
        let findings: Vec<String> = report.errors().map(ToString::to_string).collect();
        assert!(report.is_clean(), "{}: {findings:#?}", kind.0);
        let parallel = extant_fsck::Options { threads: 4, ..Default::default() };
        assert_eq!(extant_fsck::check(&device, &parallel).findings, report.findings);
    }
}
