//! Single fields changed through debugfs, which makes checksums right again: the verdict is e2fsck's.

use std::path::Path;
use std::process::Command;

use crate::{e2fsck_says_clean, e2fsck_text};

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
}

/// mke2fs's options, and requests of which each damages a fresh image.
const CASES: &[(&str, &[&str])] = &[
    (
        // Two groups, so that there is a backup; group 1 was never initialised.
        "-t ext4 -b 1024",
        &[
            "set_super_value inodes_count 1",
            "set_super_value rev_level 9",
            "set_super_value first_ino 3",
            "set_super_value first_ino 4097",
            "set_super_value desc_size 7",
            "set_super_value reserved_gdt_blocks 9999",
            "set_block_group 0 block_bitmap 1",
            "set_block_group 0 flags 7",
            "set_block_group 0 itable_unused 60000",
            "set_block_group 1 itable_unused 19",
            "set_inode_field <1> block[5] 2",
            "set_inode_field <1> block[5] 14",
            "set_inode_field <1> block[5] 130",
            "set_inode_field <1> block[5] 8193",
            "set_inode_field <1> block[5] 8194",
            "set_inode_field <1> block[5] 600",
            "set_inode_field <7> mode 0",
            "set_inode_field <7> size 1",
            "set_inode_field <7> size 33566720",
            "set_inode_field <7> size 33566719",
            "set_inode_field <7> size 17247252480",
            "set_inode_field <7> size 17247252481",
            "set_inode_field <7> flags 0x80000",
            "set_inode_field <7> flags 0x10000000",
            "set_inode_field <7> file_acl 5",
            "set_inode_field <8> size 1048577",
            "set_inode_field <8> size 99999999",
        ],
    ),
    (
        "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
        &[
            "set_super_value first_data_block 0",
            "set_super_value first_data_block 1033501905",
            "set_super_value feature_ro_compat 0x47f",
            "set_block_group 1 flags 7",
            "set_super_value log_block_size 4",
        ],
    ),
    ("-t ext2 -b 1024", &["set_super_value first_data_block 1033501905", "set_super_value blocks_count 12"]),
    (
        "-t ext4 -b 4096",
        &[
            "set_super_value desc_size 1",
            "set_super_value desc_size 16",
            "set_super_value desc_size 32",
            "set_super_value desc_size 33",
            "set_super_value desc_size 128",
        ],
    ),
    ("-t ext2 -b 4096", &["set_super_value orphan_file_inum 7", "set_super_value orphan_file_inum 5"]),
    ("-t ext3 -b 1024", &["set_block_group 1 inode_bitmap 8192", "set_block_group 1 inode_table 100"]),
    ("-t ext4 -b 1024 -O ^metadata_csum,^dir_index", &["set_super_value feature_compat 15"]),
    (
        // The backup is elsewhere than where it is looked for first.
        "-t ext4 -b 1024 -g 2048 -O ^metadata_csum",
        &[
            "set_super_value inodes_count 2048",
            "set_super_value inodes_count 0",
            "set_super_value inodes_count 8392704",
            "set_super_value blocks_count 8192",
            "set_super_value reserved_gdt_blocks 27788",
            "set_super_value feature_incompat 1412",
            "set_super_value feature_incompat 131778",
        ],
    ),
    (
        "-t ext3 -b 2048 -g 4096",
        &[
            "set_super_value blocks_count 16384",
            "set_super_value inodes_count 3",
            "set_super_value inodes_per_group 4096",
        ],
    ),
    (
        "-t ext2 -b 1024 -g 1024",
        &[
            "set_super_value feature_ro_compat 4099",
            "set_super_value reserved_gdt_blocks 65535",
            "set_super_value reserved_gdt_blocks 512",
            "set_super_value inodes_per_group 257",
        ],
    ),
    (
        "-t ext4 -b 1024 -O ^metadata_csum",
        &[
            "set_inode_field <1> block[5] 600",
            "set_inode_field <1> block[5] 134",
            "set_super_value orphan_file_inum 8",
            "set_super_value orphan_file_inum 7",
            "set_inode_field <12> flags 0x280000",
            "set_inode_field <1> flags 0x80000",
            "set_inode_field <1> flags 0xffffff",
            "set_inode_field <4> flags 0x3fffffff",
            "set_inode_field <9> flags 0x10080000",
            "set_inode_field <4> flags 0x10000000",
        ],
    ),
    (
        "-t ext4 -b 1024 -O orphan_file",
        &["set_inode_field <12> file_acl 99999999", "set_inode_field <12> file_acl 3000"],
    ),
    (
        "-t ext3 -b 1024",
        &[
            "set_super_value orphan_file_inum 1024",
            "set_super_value prj_quota_inum 1024",
            "set_super_value feature_incompat 0",
            "set_inode_field <8> size 1047552",
            "set_inode_field <8> size 8388607",
            "set_inode_field <8> size 100",
            "set_inode_field <8> links_count 0",
            "set_inode_field <8> mode 0",
            "set_inode_field <8> block[0] 0",
            "set_inode_field <8> block[3] 0",
            "set_inode_field <8> flags 0x80000",
        ],
    ),
];

#[test]
fn a_field_set_with_debugfs_is_judged_as_by_e2fsck() {
    let folder = tempfile::tempdir().unwrap();
    let (base, image) = (folder.path().join("base"), folder.path().join("image"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (options, requests) in CASES {
        let mut args = vec!["-q", "-F", "-U", "11111111-2222-3333-4444-555555555555"];
        args.extend(options.split(' '));
        let path = text(&base);
        args.extend([path.as_str(), "16M"]);
        if !run("mke2fs", &args) || !run("debugfs", &["-w", "-R", "mkdir d", &path]) {
            eprintln!("skipped: mke2fs or debugfs is not installed");
            return;
        }
        for request in *requests {
            std::fs::copy(&base, &image).unwrap();
            assert!(run("debugfs", &["-w", "-R", request, &text(&image)]));
            let Some(theirs) = e2fsck_says_clean(&image) else { continue };
            let device = extant_device::OpenOptions::new().open(&image).unwrap();
            let report = extant_fsck::check(&device, &extant_fsck::Options::default());
            let ours: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            let says = e2fsck_text(&image);
            assert_eq!(report.is_clean(), theirs, "{options}: {request}: {ours:#?}\n{says}");
            std::fs::remove_file(&image).unwrap();
        }
        std::fs::remove_file(&base).unwrap();
    }
}

/// Changes of an image where inode 12 has an attribute whose value is in inode 13.
const VALUE_CASES: &[&[&str]] = &[
    &[],
    &["link <13> lnk"],
    &["link <13> lnk", "set_inode_field <13> links_count 2"],
    &["link <13> lnk", "link <13> lnk2", "set_inode_field <13> links_count 2"],
    &["link <13> lnk", "set_inode_field <13> version 2"],
    &["set_inode_field <13> version 2"],
    &["set_inode_field <13> version 0"],
    &["set_inode_field <13> links_count 2"],
    &["set_inode_field <13> links_count 0"],
    &["set_inode_field <12> flags 0x280000"],
    &["set_inode_field <12> flags 0x280000", "set_inode_field <12> links_count 2"],
    &["set_inode_field <12> flags 0x280000", "unlink f"],
];

#[test]
fn value_inodes_that_directories_name_are_judged_as_by_e2fsck() {
    let folder = tempfile::tempdir().unwrap();
    let (base, image, value) =
        (folder.path().join("base"), folder.path().join("image"), folder.path().join("value"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    std::fs::write(&value, [b'v'; 3000]).unwrap();
    let path = text(&base);
    let debugfs = |image: &str, request: &str| run("debugfs", &["-w", "-R", request, image]);
    if !run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "ea_inode", &path, "16M"])
        || !debugfs(&path, &format!("write {} f", text(&value)))
    {
        eprintln!("skipped: mke2fs or debugfs is not installed");
        return;
    }
    assert!(debugfs(&path, &format!("ea_set -f {} f user.value", text(&value))));
    // debugfs does not charge the value to the file.
    Command::new("e2fsck").args(["-fy", &path]).output().unwrap();
    for requests in VALUE_CASES {
        std::fs::copy(&base, &image).unwrap();
        for request in *requests {
            assert!(debugfs(&text(&image), request), "{request}");
        }
        let Some(theirs) = e2fsck_says_clean(&image) else { continue };
        let device = extant_device::OpenOptions::new().open(&image).unwrap();
        let report = extant_fsck::check(&device, &extant_fsck::Options::default());
        let ours: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let says = e2fsck_text(&image);
        assert!(theirs || !requests.is_empty(), "the image is clean to begin with: {says}");
        assert_eq!(report.is_clean(), theirs, "{requests:?}: {ours:#?}\n{says}");
    }
}
