use std::io::{Seek as _, SeekFrom, Write as _};

use extant_testkit::kernel::KernelMount;
use extant_testkit::{env, need, oracle, scratch};

use crate::run::{extant, ok};

#[test]
fn info_agrees_with_dumpe2fs() {
    need!(env::tools(&["mke2fs", "dumpe2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 64 << 20, "-t ext4 -b 1024 -L a-label -m 3");
    let info = ok(&[&"info", &image, &"--json"]).json();
    let header = oracle::dumpe2fs_header(&image);
    let field =
        |name: &str| header.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default();
    assert_eq!(info["label"], "a-label");
    assert_eq!(info["uuid"], field("Filesystem UUID"));
    assert_eq!(info["blocks"].to_string(), field("Block count"));
    assert_eq!(info["free_blocks"].to_string(), field("Free blocks"));
    assert_eq!(info["reserved_blocks"].to_string(), field("Reserved block count"));
    assert_eq!(info["inodes"].to_string(), field("Inode count"));
    assert_eq!(info["block_size"], 1024);
    assert_eq!(info["clean"], true);
    let features: Vec<&str> = field("Filesystem features").split_whitespace().collect();
    let ours: Vec<&str> = info["features"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    for feature in &features {
        assert!(ours.contains(feature), "{feature} is not in {ours:?}");
    }
    assert_eq!(ours.len(), features.len());
    let text = ok(&[&"info", &image]).text();
    assert!(text.contains("a-label"));
    let mounted = text.lines().find(|line| line.trim_start().starts_with("last mounted")).unwrap();
    assert!(mounted.ends_with(" never"), "no place without a time: {mounted}");
}

#[test]
fn what_is_no_filesystem_is_said_to_be_none() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let ran = extant(&[&"info", &dir.sparse("empty", 100)]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("no ext4 filesystem"), "{}", ran.err);
    let ran = extant(&[&"info", &dir.sparse("zeroes", 1 << 20)]);
    assert!(ran.err.contains("magic"), "{}", ran.err);
    let ran = extant(&[&"info", &dir.join("missing")]);
    assert!(ran.err.contains("missing") && ran.err.contains("No such file"), "{}", ran.err);
}

#[test]
fn a_damaged_superblock_is_shown_with_its_problem() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let mut file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.seek(SeekFrom::Start(1024 + 24)).unwrap();
    file.write_all(&[0xff; 4]).unwrap();
    drop(file);
    let info = ok(&[&"info", &image, &"--json"]).json();
    assert!(info["problem"].is_string(), "{info}");
}

#[test]
fn a_mounted_image_is_read_only_when_asked_for() {
    need!(env::kernel_mounts());
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let mount = KernelMount::rw(&image);
    let ran = extant(&[&"info", &image]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("in use") && ran.err.contains("--force-read"), "{}", ran.err);
    let ran = ok(&[&"info", &image, &"--force-read", &"--json"]);
    assert!(ran.json()["in_use"].is_string());
    mount.unmount();
}

#[test]
fn a_filesystem_at_an_offset_is_found() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 17 << 20, "-t ext4 -E offset=1048576 -L inside");
    let info = ok(&[&"info", &image, &"--offset", &"1048576", &"--json"]).json();
    assert_eq!(info["label"], "inside");
}

#[test]
fn completions_and_man_pages_are_made() {
    let dir = scratch();
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&[&"completions", &shell]).text().contains("info"), "{shell}");
    }
    ok(&[&"man", &dir.path()]);
    assert!(std::fs::read_to_string(dir.join("extant-info.1")).unwrap().contains("features"));
}

#[test]
fn recorded_errors_are_in_both_forms() {
    need!(env::tools(&["mke2fs", "debugfs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let none = ok(&[&"info", &image, &"--json"]).json();
    assert!(none["first_error"].is_null() && none["last_error"].is_null() && none["errors"] == 0);
    let set = [
        "error_count 2",
        "first_error_ino 12",
        "first_error_func somewhere",
        "first_error_line 7",
        "last_error_block 99",
    ];
    let set = set.map(|words| format!("ssv {words}"));
    oracle::debugfs_write(&image, &set.each_ref().map(String::as_str));
    let info = ok(&[&"info", &image, &"--json"]).json();
    let first = &info["first_error"];
    assert_eq!(first["inode"], 12);
    assert_eq!(first["function"], "somewhere");
    assert_eq!(first["line"], 7);
    assert_eq!(info["last_error"]["block"], 99);
    assert!(ok(&[&"info", &image]).text().contains("inode 12, block 0, in somewhere:7"));
}
