//! The mount table of this process (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number, no other's in any namespace while it lasts.
    pub id: u64,
    /// Major and minor number of its file system's device, one for all mounts of it.
    pub dev: (u32, u32),
    /// What of the file system is shown: `/` unless it is a bind mount of a part.
    pub root: PathBuf,
    /// Directory.
    pub target: PathBuf,
    /// Type, with the subtype: `fuse.extant`, `fuseblk.extant`.
    pub kind: String,
    /// Source.
    pub source: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Options of the file system.
    pub super_options: String,
}

impl MountEntry {
    /// Whether this program serves it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.kind.as_str(), "fuse.extant" | "fuseblk.extant")
    }

    /// Whether an open directory is of this mount's file system.
    pub(crate) fn is_shown_by(&self, dir: impl AsFd) -> io::Result<bool> {
        let dev = rustix::fs::fstat(dir)?.st_dev;
        Ok((rustix::fs::major(dev), rustix::fs::minor(dev)) == self.dev)
    }

    /// Whether its file system is mounted read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.super_options.split(',').any(|word| word == "ro")
    }

    /// Whether this mount of it is read-only, whatever the file system is.
    #[must_use]
    pub fn is_read_only_here(&self) -> bool {
        self.options.split(',').any(|word| word == "ro")
    }
}

/// Every mount, in the order they were made.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    parse_all("/proc/self/mountinfo")
}

/// The same, as process `pid` sees them.
pub(crate) fn mounts_of(pid: i32) -> io::Result<Vec<MountEntry>> {
    parse_all(&format!("/proc/{pid}/mountinfo"))
}

fn parse_all(path: &str) -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read(path)?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// The mount that is visible at `target` (a mount point).
pub fn find_mount(target: &Path) -> io::Result<Option<MountEntry>> {
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    Ok(mounts()?.into_iter().rfind(|m| m.target == target))
}

/// `36 35 98:0 /root /target rw,noatime master:1 - type source superoptions`
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut words = line.split(|&b| b == b' ');
    let id = text(words.next()?).parse().ok()?;
    let dev = text(words.nth(1)?);
    let (major, minor) = dev.split_once(':')?;
    let dev = (major.parse().ok()?, minor.parse().ok()?);
    let root = path(words.next()?);
    let target = path(words.next()?);
    let options = text(words.next()?);
    words.find(|w| *w == b"-")?;
    let kind = text(words.next()?);
    let source = path(words.next()?);
    let super_options = text(words.next()?);
    Some(MountEntry { id, dev, root, target, kind, source, options, super_options })
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

/// Undoes `\040` and its like.
fn path(word: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|d| {
            let digits = std::str::from_utf8(d).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_of_mountinfo() {
        let line =
            b"36 35 0:45 / /mnt/a\\040b rw,relatime shared:1 master:2 - fuse.extant /tmp/x.img rw,user_id=0";
        let entry = parse(line).unwrap();
        assert_eq!(entry.target.to_str(), Some("/mnt/a b"));
        assert_eq!((entry.id, entry.dev), (36, (0, 45)));
        assert_eq!(entry.source.to_str(), Some("/tmp/x.img"));
        assert_eq!((entry.kind.as_str(), entry.options.as_str()), ("fuse.extant", "rw,relatime"));
        assert!(entry.is_ours());
        assert!(!entry.is_read_only());
        let line = b"36 35 0:45 / /mnt/a rw,relatime - fuseblk.extant /dev/loop0 ro,user_id=0";
        assert!(parse(line).unwrap().is_read_only());
        assert_eq!(parse(b""), None);
    }
}
