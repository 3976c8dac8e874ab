//! `cargo xtask tidy`: rules that the compiler does not know.
//!
//! - rooms use only rooms that the table below allows, and no product crate uses the test kit;
//! - `unsafe` stands in `crates/sys` only, and in `crates/preload` for the C ABI;
//! - source files have at most [`MAX_LINES`] lines, tests apart;
//! - nothing is stubbed, ignored or silenced;
//! - locks, threads and atomics of the concurrent rooms come from `extant-sync`;
//! - relative links in the documents lead somewhere;
//! - the tree names no machine's private paths.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::proc::{self, Verdict};

/// Longest source file, in lines, tests apart.
const MAX_LINES: usize = 800;

/// Each package and the packages of this workspace that it may use (dev-dependencies are free). Bottom to top.
const EDGES: &[(&str, &[&str])] = &[
    ("extant-format", &[]),
    ("extant-sys", &[]),
    ("extant-sync", &["extant-sys"]),
    ("extant-device", &["extant-format", "extant-sync", "extant-sys"]),
    ("extant-journal", &["extant-format", "extant-sync", "extant-sys", "extant-device"]),
    ("extant-alloc", &["extant-format", "extant-sync", "extant-sys", "extant-device", "extant-journal"]),
    (
        "extant-map",
        &["extant-format", "extant-sync", "extant-sys", "extant-device", "extant-journal", "extant-alloc"],
    ),
    ("extant-vm", &["extant-format", "extant-sync", "extant-sys", "extant-device"]),
    (
        "extant",
        &[
            "extant-format",
            "extant-sync",
            "extant-sys",
            "extant-device",
            "extant-journal",
            "extant-alloc",
            "extant-map",
            "extant-vm",
        ],
    ),
    ("extant-mkfs", &["extant-format", "extant-sync", "extant-sys", "extant-device"]),
    // Two independent opinions: the checker never reads through the filesystem.
    ("extant-fsck", &["extant-format", "extant-sync", "extant-sys", "extant-device"]),
    ("extant-fuse", &["extant", "extant-format", "extant-sync", "extant-sys", "extant-device"]),
    (
        "extant-cli",
        &[
            "extant",
            "extant-format",
            "extant-sync",
            "extant-sys",
            "extant-device",
            "extant-mkfs",
            "extant-fsck",
            "extant-fuse",
        ],
    ),
    ("extant-preload", &["extant", "extant-device"]),
    ("extant-testkit", &["extant-format", "extant-device"]),
    ("extant-bench", &["extant", "extant-device", "extant-sys"]),
    (
        "extant-trials",
        &[
            "extant",
            "extant-format",
            "extant-sync",
            "extant-device",
            "extant-journal",
            "extant-mkfs",
            "extant-fsck",
            "extant-testkit",
        ],
    ),
    ("xtask", &[]),
];

/// Rooms with `unsafe` code.
const UNSAFE: &[&str] = &["sys", "preload"];
/// Rooms whose locks, threads and atomics are ranked and can be explored.
const EXPLORED: &[&str] = &["journal", "alloc", "map", "vm", "fs"];
/// Rooms whose locks are ranked.
const RANKED: &[&str] = &["journal", "alloc", "map", "vm", "fs", "fuse"];

/// What the comment at a static that has no rank says.
const EXCUSE: &str = "not part of what schedule exploration looks at";

/// Words that no file may hold; written apart so that this file may be searched too.
const WORDS: &[&str] = &[
    concat!("sub", "agent"),
    concat!("cla", "ude"),
    concat!("anth", "ropic"),
    concat!("/work", "/main"),
    concat!("/work", "/shared"),
    concat!("/work", "/brief"),
    concat!("/work", "/wt"),
];

struct Finding {
    path: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

/// `cargo xtask tidy`.
pub(crate) fn command() -> Verdict {
    let mut findings = Vec::new();
    edges(&mut findings)?;
    let files = tracked_files()?;
    for path in &files {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        words(path, &text, &mut findings);
        match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => source(path, &text, &mut findings),
            Some("md") => links(path, &text, &mut findings),
            Some("toml") if path.ends_with("Cargo.toml") => manifest(path, &text, &mut findings),
            _ => {}
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(findings.is_empty())
}

fn tracked_files() -> Result<Vec<PathBuf>, String> {
    let list = proc::output(Command::new("git").args(["ls-files", "-co", "--exclude-standard"]))?;
    Ok(list.lines().map(PathBuf::from).filter(|p| !p.ends_with("Cargo.lock") && p.is_file()).collect())
}

fn edges(findings: &mut Vec<Finding>) -> Result<(), String> {
    let text = proc::output(proc::cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).map_err(|err| err.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata: no packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let path = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        let Some((_, allowed)) = EDGES.iter().find(|(room, _)| *room == name) else {
            let what =
                format!("package {name} is not in the table of rooms (xtask/src/tidy.rs, ARCHITECTURE.md)");
            findings.push(Finding { path, line: 1, what });
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"] == "dev" || !names.contains(&to) || allowed.contains(&to) {
                continue;
            }
            findings.push(Finding { path: path.clone(), line: 1, what: format!("{name} may not use {to}") });
        }
    }
    Ok(())
}

fn words(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in text.lines().enumerate() {
        let lower = line.to_lowercase();
        if let Some(word) = WORDS.iter().find(|w| lower.contains(*w)) {
            findings.push(finding(path, number, format!("{word} does not belong in the project")));
        }
    }
}

fn finding(path: &Path, number: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line: number + 1, what: what.into() }
}

/// Whether the file holds tests only.
fn is_test(path: &Path) -> bool {
    path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "benches" | "fuzz")))
        || path.ends_with("tests.rs") && !path.starts_with("xtask")
}

fn source(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let lines = text.lines().count();
    if lines > MAX_LINES && !is_test(path) {
        findings.push(finding(path, MAX_LINES, format!("{lines} lines; at most {MAX_LINES}")));
    }
    let room = path.strip_prefix("crates").ok().and_then(|p| p.iter().next()).and_then(|c| c.to_str());
    let mine = path.starts_with("xtask/src/tidy.rs");
    let mut testing = is_test(path);
    for (number, line) in text.lines().enumerate() {
        let code = code_of(line);
        if !UNSAFE.contains(&room.unwrap_or_default()) && !mine && has_unsafe(code) {
            findings.push(finding(path, number, "unsafe outside of crates/sys and crates/preload"));
        }
        if mine {
            continue;
        }
        for stub in ["todo!(", "unimplemented!(", "#[ignore", "dbg!("] {
            if code.contains(stub) {
                findings.push(finding(path, number, format!("{stub} …")));
            }
        }
        let silenced = ["dead_code", "unused", "warnings", "clippy::all"];
        if code.contains("allow(") && silenced.iter().any(|lint| code.contains(&format!("allow({lint}"))) {
            findings.push(finding(path, number, "a silenced lint"));
        }
        // Tests inside a file are at its end.
        testing |= code == "#[cfg(test)]";
        if let Some(room) = room.filter(|_| !testing && !text.contains(EXCUSE)) {
            unranked(path, number, room, code, findings);
        }
    }
}

fn unranked(path: &Path, number: usize, room: &str, code: &str, findings: &mut Vec<Finding>) {
    let locks = ["Mutex", "RwLock", "Condvar"];
    let outside = |names: &[&str], module: &str| {
        let grouped = format!("{module}::{{");
        names.iter().any(|n| {
            code.contains(&format!("{module}::{n}")) || (code.contains(&grouped) && code.contains(n))
        })
    };
    if RANKED.contains(&room) && (outside(&locks, "std::sync") || code.contains("parking_lot")) {
        findings.push(finding(path, number, "locks come from extant-sync"));
    }
    if EXPLORED.contains(&room) && (outside(&["atomic"], "std::sync") || code.contains("std::thread::spawn"))
    {
        findings.push(finding(path, number, "threads and atomics come from extant-sync"));
    }
}

/// The line without a trailing comment; lines that are only a comment or a string's text are left to luck, which has
/// been good enough: the words looked for are not prose.
fn code_of(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") {
        return "";
    }
    line.split(" // ").next().unwrap_or(line)
}

fn has_unsafe(code: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"].iter().any(|u| code.contains(u))
}

fn manifest(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let member = path.starts_with("crates") || path.starts_with("xtask");
    if member && !text.contains("[lints]\nworkspace = true") {
        findings.push(finding(path, 0, "[lints] workspace = true is missing"));
    }
}

/// Relative links `[text](target)` must lead to a file.
fn links(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let base = path.parent().unwrap_or(Path::new(""));
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !base.join(file).exists() {
                findings.push(finding(path, number, format!("a link to {file}, which is not there")));
            }
        }
    }
}
