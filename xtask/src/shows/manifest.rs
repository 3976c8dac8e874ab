//! A tree as text, to compare what a mount shows with what the kernel shows of the same image afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::hash::Hasher as _;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Path to everything about it.
pub(crate) type Manifest = BTreeMap<PathBuf, String>;

/// Reads a tree; `lost+found` at its top is left out.
pub(crate) fn read(top: &Path) -> Result<Manifest, String> {
    let mut manifest = Manifest::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        let failed = |err: std::io::Error| format!("{}: {err}", dir.display());
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path == top.join("lost+found") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).map_err(|err| format!("{}: {err}", path.display()))?;
            let text = describe(&path, &meta).map_err(|err| format!("{}: {err}", path.display()))?;
            if meta.is_dir() {
                todo.push(path.clone());
            }
            manifest.insert(path.strip_prefix(top).map_err(|err| err.to_string())?.to_owned(), text);
        }
    }
    Ok(manifest)
}

fn describe(path: &Path, meta: &fs::Metadata) -> std::io::Result<String> {
    let size = if meta.is_dir() { 0 } else { meta.size() };
    let (mode, links, rdev) = (meta.mode(), meta.nlink(), meta.rdev());
    let (uid, gid, time, nanoseconds) = (meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
    let head = format!("{mode:o} {links} {uid}:{gid} {rdev} {size} {time}.{nanoseconds:09}");
    if meta.is_symlink() {
        return Ok(format!("{head} -> {}", fs::read_link(path)?.display()));
    }
    if !meta.is_file() {
        return Ok(head);
    }
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    let mut file = fs::File::open(path)?;
    let mut buf = vec![0; 256 << 10];
    loop {
        let len = file.read(&mut buf)?;
        if len == 0 {
            return Ok(format!("{head} {:016x}", hasher.finish()));
        }
        hasher.write(&buf[..len]);
    }
}

/// The first differences, as text; nothing if there are none.
pub(crate) fn differences(a: &Manifest, b: &Manifest) -> Option<String> {
    let mut lines = Vec::new();
    for path in a.keys().chain(b.keys().filter(|p| !a.contains_key(*p))) {
        let (left, right) = (a.get(path), b.get(path));
        if left != right {
            lines.push(format!("{}: {left:?} / {right:?}", path.display()));
        }
        if lines.len() == 5 {
            break;
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}
