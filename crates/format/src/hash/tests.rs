//! Hashes against `debugfs dx_hash`.

use super::{DirHash, HashVersion, Hasher, MAX_MAJOR};
use std::format;
use std::io::Write;
use std::process::{Command, Stdio};
use std::string::{String, ToString};
use std::vec::Vec;

fn names() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for len in 1..=255 {
        names.push("abcdefghijklmnopqrstuvwxyz0123456789_".chars().cycle().skip(len % 7).take(len).collect());
    }
    for n in 0..200 {
        names.push(format!("file{n}"));
        names.push(format!("ü{n}ÿ日本語"));
    }
    names.extend([".", "..", "lost+found"].map(ToString::to_string));
    names
}

/// Asks debugfs; `None` when it is not installed.
fn ask(version: u8, seed: Option<&str>, names: &[String]) -> Option<Vec<DirHash>> {
    let mut child = Command::new("debugfs")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    let seed = seed.map(|s| format!("-s {s} ")).unwrap_or_default();
    let lines: String = names.iter().map(|n| format!("dx_hash -h {version} {seed}{n}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().ok()?;
    writer.join().ok()?.ok()?;
    let hex = |word: &str| u32::from_str_radix(word.trim_end_matches(')').trim_start_matches("0x"), 16).ok();
    let parse = |line: &str| {
        let mut tail = line.rsplit(' ');
        let minor = hex(tail.next()?)?;
        tail.next()?;
        Some(DirHash { major: hex(tail.next()?)?, minor })
    };
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    Some(text.lines().filter(|l| l.contains("Hash of ")).filter_map(parse).collect())
}

#[test]
fn all_versions_agree_with_debugfs() {
    let names = names();
    let seed = "01020304-0506-0708-090a-0b0c0d0e0f10";
    let words = [0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d];
    for raw in 0..6_u8 {
        for (text, seed) in [(None, [0; 4]), (Some(seed), words)] {
            let Some(expected) = ask(raw, text, &names) else {
                std::eprintln!("skipped: debugfs is not installed");
                return;
            };
            assert_eq!(expected.len(), names.len(), "debugfs answered every name");
            let hasher = Hasher::new(HashVersion::from_raw(raw).unwrap(), seed).unwrap();
            for (name, expected) in names.iter().zip(expected) {
                assert_eq!(hasher.hash(name.as_bytes()), expected, "version {raw} of {name}");
            }
        }
    }
}

#[test]
fn known_values_without_debugfs() {
    let hash = |v, name: &[u8]| Hasher::new(v, [0; 4]).unwrap().hash(name);
    assert_eq!(hash(HashVersion::Tea, b"foo"), DirHash { major: 0x901b_3376, minor: 0x4878_f6ae });
    assert_eq!(hash(HashVersion::Legacy, b"foo"), DirHash { major: 0x9f57_ef58, minor: 0 });
}

#[test]
fn versions_round_trip() {
    for raw in 0..=6 {
        assert_eq!(HashVersion::from_raw(raw).unwrap().raw(), raw);
    }
    assert_eq!(HashVersion::from_raw(7), None);
    assert_eq!(Hasher::new(HashVersion::SipHash, [0; 4]), None);
    assert_eq!(HashVersion::HalfMd4.resolve(true), HashVersion::HalfMd4Unsigned);
    assert_eq!(HashVersion::HalfMd4.resolve(true).family(), HashVersion::HalfMd4);
    assert_eq!(HashVersion::Tea.resolve(false), HashVersion::Tea);
    assert_eq!(MAX_MAJOR & 1, 0);
}
