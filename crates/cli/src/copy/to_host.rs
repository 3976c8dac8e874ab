//! A folder of the host as sink.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use extant_format::inode::Timestamp;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Added, Content, Meta, Sink, What, each_piece, is_safe_name};
use crate::fail::{Failure, OnHost as _, Outcome, show_path};

/// A folder of the host as the target. Names that come from elsewhere are checked, and never followed if they are
/// links, so that nothing is written outside.
pub(crate) struct HostSink {
    top: PathBuf,
    /// Keep owners; only root can.
    owners: bool,
    /// Folders whose permissions and times are set at the end.
    dirs: Vec<(PathBuf, Meta)>,
    /// What could not be kept, said once.
    lost: Vec<&'static str>,
}

impl HostSink {
    pub(crate) fn new(top: &Path) -> Self {
        let owners = rustix::process::geteuid().is_root();
        Self { top: top.to_owned(), owners, dirs: Vec::new(), lost: Vec::new() }
    }

    /// The host's path, all folders on the way there being folders, not links.
    fn place(&self, path: &[u8]) -> Outcome<PathBuf> {
        let mut at = self.top.clone();
        let mut names = path.split(|b| *b == b'/').filter(|_| !path.is_empty()).peekable();
        while let Some(name) = names.next() {
            if !is_safe_name(name) {
                return Err(Failure::new(format!("{}: not a name that can be copied", show_path(path))));
            }
            at.push(OsStr::from_bytes(name));
            if names.peek().is_none() {
                break;
            }
            match std::fs::symlink_metadata(&at) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => return Err(Failure::new(format!("{}: not a folder", at.display()))),
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir(&at).on(&at)?,
                Err(err) => return Err(Failure::host(&at, &err)),
            }
        }
        Ok(at)
    }

    fn make_room(at: &Path) -> Outcome {
        match std::fs::symlink_metadata(at) {
            Ok(meta) if meta.is_dir() => {
                Err(Failure::new(format!("{}: a folder is in the way", at.display())))
            }
            Ok(_) => std::fs::remove_file(at).on(at),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(Failure::host(at, &err)),
        }
    }

    fn fill(at: &Path, content: &mut dyn Content) -> Outcome {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(at).on(at)?;
        let size = content.size();
        each_piece(content, &mut |offset, bytes| file.write_all_at(bytes, offset).on(at))?;
        // For what ends in a hole.
        file.set_len(size).on(at)
    }

    fn lose(&mut self, what: &'static str) {
        if !self.lost.contains(&what) {
            eprintln!("extant: {what} cannot be kept here (without root, or on this filesystem)");
            self.lost.push(what);
        }
    }

    fn dress(&mut self, at: &Path, meta: &Meta, is_link: bool) -> Outcome {
        if self.owners {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(CWD, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).on(at)?;
        }
        for (name, value) in &meta.xattrs {
            match rustix::fs::lsetxattr(at, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => self.lose("some extended attributes"),
                Err(err) => return Err(Failure::host(at, &err.into())),
            }
        }
        if !is_link {
            // Set-id bits belong to an owner; without him they would lend the caller's rights.
            let mode = if self.owners { meta.mode } else { meta.mode & 0o1777 };
            rustix::fs::chmod(at, Mode::from_raw_mode(mode)).on(at)?;
        }
        let time = |t: Timestamp| Timespec { tv_sec: t.sec, tv_nsec: i64::from(t.nsec) };
        let times = Timestamps { last_access: time(meta.atime), last_modification: time(meta.mtime) };
        rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).on(at)
    }
}

impl Sink for HostSink {
    fn add(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Outcome<Added> {
        let at = self.place(path)?;
        if let What::Dir = what {
            match std::fs::symlink_metadata(&at) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(Failure::new(format!("{}: not a folder", at.display()))),
                Err(_) => std::fs::create_dir(&at).on(&at)?,
            }
            self.dirs.push((at, meta.clone()));
            return Ok(Added::Taken);
        }
        Self::make_room(&at)?;
        let is_link = matches!(what, What::Symlink(_));
        match what {
            What::Dir => return Ok(Added::Taken),
            What::File(content) => Self::fill(&at, content)?,
            What::Symlink(target) => rustix::fs::symlink(&target[..], &at).on(&at)?,
            What::Special(kind, major, minor) => {
                let host = rustix::fs::FileType::from_raw_mode(u32::from(kind.mode_bits()));
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(CWD, &at, host, Mode::from_raw_mode(0o600), device) {
                    Ok(()) => {}
                    Err(Errno::PERM) => {
                        self.lose("device nodes");
                        return Ok(Added::LeftOut);
                    }
                    Err(err) => return Err(Failure::host(&at, &err.into())),
                }
            }
            What::Link(first) => {
                let first = self.place(&first)?;
                return std::fs::hard_link(&first, &at).on(&at).map(|()| Added::Taken);
            }
        }
        self.dress(&at, meta, is_link).map(|()| Added::Taken)
    }

    fn finish(&mut self) -> Outcome {
        for (at, meta) in std::mem::take(&mut self.dirs).into_iter().rev() {
            self.dress(&at, &meta, false)?;
        }
        Ok(())
    }
}
