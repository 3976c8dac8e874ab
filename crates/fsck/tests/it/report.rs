//! The command: arguments, exit status, text and JSON.

use crate::base;
use extant_fsck::cli;
use std::ffi::OsString;

fn command(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = cli::run(args.iter().map(OsString::from), &mut out, &mut err);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn wrong_arguments_are_told_apart() {
    assert_eq!(command(&[]).0, 16);
    assert_eq!(command(&["-y", "image"]).0, 16);
    assert_eq!(command(&["--what", "image"]).0, 16);
    assert_eq!(command(&["a", "b"]).0, 16);
    assert_eq!(command(&["-b", "x", "a"]).0, 16);
    let (status, out, _) = command(&["--help"]);
    assert!(status == 0 && out.starts_with("usage:"));
    let (status, _, err) = command(&["/nowhere/image"]);
    assert!(status == 8 && err.contains("/nowhere/image"));
}

#[test]
fn status_text_and_json_agree() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut bytes) = base::make(folder.path(), &base::KINDS[0]) else {
        eprintln!("skipped: mke2fs or debugfs is not installed");
        return;
    };
    let path = folder.path().join("image \"quoted\"");
    let image = path.to_str().unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let (status, out, _) = command(&["-fn", image]);
    assert!(status == 0 && out.contains(": clean, "), "{out}");
    // The count of free inodes of group 0.
    bytes[2048 + 14] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (status, out, _) = command(&["-n", "-f", image]);
    assert!(status == 4 && out.contains("group 0: ") && out.contains("free inodes"), "{out}");
    let (status, out, _) = command(&["--json", "-f", image]);
    assert_eq!(status, 4);
    assert!(out.contains("\"checked\":true"), "{out}");
    assert!(out.contains("\"clean\":false") && out.contains("\"kind\":\"GroupFreeInodes\""), "{out}");
    assert!(out.contains("\\\"quoted\\\"") && out.contains("\"place\":{\"group\":0}"), "{out}");
    let (status, ..) = command(&["-b", "8193", "-B", "1024", image]);
    assert!(status == 0 || status == 4 || status == 8);
}
