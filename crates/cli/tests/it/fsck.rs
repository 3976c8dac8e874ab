//! `extant fsck` beside e2fsck: what is checked at all.

use extant_testkit::{env, oracle};

use crate::run::extant;

/// Without `-f`, a filesystem is checked where `e2fsck -n` checks it; where not, both print the same line.
#[test]
fn a_filesystem_that_says_it_is_clean_is_left_alone_where_e2fsck_does() {
    need!(env::tools(&["mke2fs", "debugfs", "tune2fs", "e2fsck"]));
    // What is done to it, and whether it is checked then.
    let cases: [(&str, &str, &[&str], bool); 17] = [
        ("nothing", "-t ext4", &[], false),
        ("ext2", "-t ext2", &[], false),
        ("clusters", "-t ext4 -O bigalloc -C 4096", &[], false),
        ("wrong count in the superblock", "-t ext4", &["debugfs", "ssv free_blocks_count 7"], false),
        ("orphans", "-t ext4", &["debugfs", "ssv last_orphan 12"], false),
        ("not unmounted", "-t ext4", &["debugfs", "ssv state 0"], true),
        ("errors", "-t ext4", &["debugfs", "ssv state 3"], true),
        ("too many free inodes", "-t ext4", &["debugfs", "ssv free_inodes_count 99999"], true),
        ("descriptor", "-t ext4", &["debugfs", "set_bg 0 free_blocks_count 7"], true),
        ("descriptor's checksum", "-t ext4", &["debugfs", "set_bg 0 checksum 1"], true),
        ("bitmap elsewhere", "-t ext4", &["debugfs", "set_bg 1 inode_bitmap 99999999"], true),
        ("mounted often enough", "-t ext4", &["tune2fs", "-c 5 -C 5"], true),
        ("mounts left", "-t ext4", &["tune2fs", "-c 500 -C 4"], false),
        ("not checked for long", "-t ext4", &["tune2fs", "-i 1d -T 20200101"], true),
        ("checked lately", "-t ext4", &["tune2fs", "-i 1000d -T now"], false),
        ("checked in the future", "-t ext4", &["tune2fs", "-i 10d -T 20370101"], true),
        // The only one that e2fsck -n passes over, with a warning.
        ("a journal to recover", "-t ext4", &["debugfs", "feature needs_recovery"], true),
    ];
    let dir = env::scratch();
    let path = dir.join("image");
    let image = path.to_str().unwrap();
    let fsck = |option: &str| extant(&[&"fsck", &option, &path]);
    for (what, mkfs, change, checked) in cases {
        let _ = std::fs::remove_file(&path);
        oracle::mke2fs(&path, 16 << 20, &format!("{mkfs} -b 1024"));
        match change {
            ["debugfs", request] => drop(oracle::debugfs_write(&path, &[request])),
            ["tune2fs", words] => drop(oracle::tune2fs(&path, words)),
            _ => {}
        }
        let theirs = oracle::run(oracle::command("e2fsck").arg("-n").arg(image));
        let line = format!("{image}: clean, ");
        let line = theirs.text.lines().find(|l| l.starts_with(&line)).map(str::to_owned);
        assert_eq!(line.is_none(), checked && what != "a journal to recover", "{what}: {}", theirs.text);
        let (ours, json) = (fsck("-n"), fsck("--json").json());
        let (status, out) = (ours.status, ours.text());
        assert_eq!(json["checked"], checked, "{what}: {json}");
        if checked {
            assert!(out.contains(" directories"), "{what}: {out}");
            assert_eq!(status, fsck("-f").status, "{what}: {out}");
        } else {
            assert_eq!((status, out.trim_end()), (0, line.unwrap().split(" (").next().unwrap()), "{what}");
            assert!(json["directories"].is_null(), "{json}");
        }
    }
    // The first superblock left aside: checked.
    oracle::mke2fs(&path, 16 << 20, "-t ext4 -b 1024");
    assert!(extant(&[&"fsck", &"-b", &"8193", &"-B", &"1024", &path]).text().contains(" directories"));
}
