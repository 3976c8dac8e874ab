//! A folder of images that others collected (`EXTANT_IMAGES`): the verdict on each is e2fsck's.

use crate::{e2fsck_says_clean, e2fsck_text};
use extant_device::MemoryDevice;
use extant_fsck::{Options, check};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Images below `folder`, packed or not.
pub(crate) fn images(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(".img") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The bytes of an image, unpacked.
pub(crate) fn load(path: &Path) -> Option<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().ok()?;
        return output.status.success().then_some(output.stdout);
    }
    std::fs::read(path).ok()
}

#[test]
fn collected_images_are_judged_as_by_e2fsck() {
    let Some(folder) = std::env::var_os("EXTANT_IMAGES") else {
        eprintln!("skipped: EXTANT_IMAGES names no folder of images");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("image");
    let (mut wrong, mut count) = (String::new(), 0);
    for path in images(Path::new(&folder)) {
        let Some(bytes) = load(&path) else {
            eprintln!("skipped {}: cannot be unpacked", path.display());
            continue;
        };
        std::fs::write(&file, &bytes).unwrap();
        let Some(theirs) = e2fsck_says_clean(&file) else {
            eprintln!("skipped: e2fsck is not installed");
            return;
        };
        count += 1;
        let report = check(&MemoryDevice::from_bytes(&bytes), &Options::default());
        if report.is_clean() != theirs {
            let ours: Vec<String> = report.errors().take(5).map(ToString::to_string).collect();
            let text = e2fsck_text(&file);
            let _ = writeln!(wrong, "{}: e2fsck says clean={theirs}\n{ours:#?}\n{text}", path.display());
        }
    }
    println!("{count} images");
    assert!(count > 0, "the folder has images");
    assert!(wrong.is_empty(), "disagreements:\n{wrong}");
}
