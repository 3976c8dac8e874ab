use std::os::unix::fs::FileExt as _;

use extant_testkit::{env, need, oracle, scratch};

use crate::run::{extant, ok};

#[test]
fn the_exit_status_is_e2fscks() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    ok(&[&"fsck", &"-n", &"-f", &image]);
    assert_eq!(ok(&[&"fsck", &"--json", &image]).json()["clean"], true);
    oracle::debugfs_write(&image, &["set_inode_field <2> links_count 9"]);
    let ran = extant(&[&"fsck", &image]);
    assert_eq!(ran.status, oracle::e2fsck(&image).status);
    assert!(ran.text().contains('2'), "{}", ran.text());
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    assert_eq!(extant(&[&"fsck", &image]).status, oracle::e2fsck(&image).status);
    assert!(ok(&[&"fsck", &"--help"]).text().contains("usage"));
}
