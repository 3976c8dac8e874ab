//! `extant exec --fakeroot`: ids and device nodes that a user namespace of one id does not have.
//!
//! In such a namespace the kernel refuses chown(2) to other ids, and mknod(2) of devices, before any file system is
//! asked; and files of ids that it does not know may not be written. So the kernel is told that everything in the image
//! belongs to its root ([`crate::adapter::AdapterOptions::as_root`]), and the calls that matter are trapped (seccomp's user
//! notification) and answered here: those that set ids or make devices by doing it in the image, those that ask for ids by
//! filling in what the image says. Calls about anything else go on as if nothing had been.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use extant::{Credentials, NewInode, SetAttr};
use extant_format::Ino;
use extant_sys::seccomp::{self, Answer, Call};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, FileType, Stat, Statx, StatxFlags};
use rustix::io::Errno;

use crate::adapter::Adapter;

/// What a trapped call wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    /// Path, uid, gid; whether a link is followed.
    Chown { follow: bool },
    /// Descriptor, uid, gid.
    Fchown,
    /// Folder, path, uid, gid, flags.
    Fchownat,
    /// Path, mode, device.
    #[cfg(target_arch = "x86_64")]
    Mknod,
    /// Folder, path, mode, device.
    Mknodat,
    /// Path, buffer; whether a link is followed.
    #[cfg(target_arch = "x86_64")]
    Stat { follow: bool },
    /// Descriptor, buffer.
    Fstat,
    /// Folder, path, buffer, flags.
    Fstatat,
    /// Folder, path, flags, mask, buffer.
    Statx,
}

/// Numbers of system calls and what they want.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(u32, Wish)] = &[
    (4, Wish::Stat { follow: true }),
    (5, Wish::Fstat),
    (6, Wish::Stat { follow: false }),
    (92, Wish::Chown { follow: true }),
    (93, Wish::Fchown),
    (94, Wish::Chown { follow: false }),
    (133, Wish::Mknod),
    (259, Wish::Mknodat),
    (260, Wish::Fchownat),
    (262, Wish::Fstatat),
    (332, Wish::Statx),
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS: &[(u32, Wish)] = &[
    (33, Wish::Mknodat),
    (54, Wish::Fchownat),
    (55, Wish::Fchown),
    (79, Wish::Fstatat),
    (80, Wish::Fstat),
    (291, Wish::Statx),
];

/// Traps the calls of this thread and of all that it starts.
pub(super) fn trap() -> io::Result<OwnedFd> {
    let numbers: Vec<u32> = CALLS.iter().map(|(number, _)| *number).collect();
    seccomp::trap(&numbers)
}

/// Who answers.
pub(super) struct Answerer<'a> {
    adapter: &'a Adapter,
    /// `st_dev` of the mount.
    device: u64,
}

/// Nothing to do with us, or not to be seen from here: the kernel knows what to say.
struct NotOurs;

impl From<io::Error> for NotOurs {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl From<Errno> for NotOurs {
    fn from(_: Errno) -> Self {
        Self
    }
}

type Answered = Result<Answer, NotOurs>;

impl<'a> Answerer<'a> {
    /// For the mount at `dir`, which must be there.
    pub(super) fn new(adapter: &'a Adapter, dir: &Path) -> io::Result<Self> {
        Ok(Self { adapter, device: rustix::fs::stat(dir)?.st_dev })
    }

    /// Answers until nobody is left who may call, or the other end of `stop` is closed.
    pub(super) fn run(&self, listener: &OwnedFd, stop: &OwnedFd) {
        loop {
            let mut waiting = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::empty())];
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let gone = PollFlags::HUP | PollFlags::ERR;
            if waiting.iter().any(|fd| fd.revents().intersects(gone)) {
                return;
            }
            if !waiting[0].revents().contains(PollFlags::IN) {
                continue;
            }
            let call = match seccomp::receive(listener) {
                Ok(Some(call)) => call,
                Ok(None) => continue,
                Err(_) => return,
            };
            let answer =
                Caller::new(call, listener).and_then(|c| self.answer(&c)).unwrap_or(Answer::Continue);
            if let Err(error) = seccomp::answer(listener, call.id, answer) {
                tracing::warn!(%error, "answering a trapped call");
            }
        }
    }

    fn answer(&self, c: &Caller<'_>) -> Answered {
        let wish =
            CALLS.iter().find(|(n, _)| i64::from(*n) == i64::from(c.call.number)).map(|(_, wish)| *wish);
        let a = c.call.args;
        match wish.ok_or(NotOurs)? {
            Wish::Chown { follow } => self.chown(&c.path(AT_FDCWD, a[0], follow)?, a[1], a[2]),
            Wish::Fchown => self.chown(&c.descriptor(a[0]), a[1], a[2]),
            Wish::Fchownat => self.chown(&c.path_at(a[0], a[1], a[4])?, a[2], a[3]),
            #[cfg(target_arch = "x86_64")]
            Wish::Mknod => self.mknod(c, AT_FDCWD, a[0], a[1], a[2]),
            Wish::Mknodat => self.mknod(c, a[0], a[1], a[2], a[3]),
            #[cfg(target_arch = "x86_64")]
            Wish::Stat { follow } => self.stat(c, &c.path(AT_FDCWD, a[0], follow)?, a[1]),
            Wish::Fstat => self.stat(c, &c.descriptor(a[0]), a[1]),
            Wish::Fstatat => self.stat(c, &c.path_at(a[0], a[1], a[3])?, a[2]),
            Wish::Statx => self.statx(c, &c.path_at(a[0], a[1], a[2])?, a[3], a[4]),
        }
    }

    /// The status of a target that is in the image.
    fn ours(&self, target: &Target) -> Result<Stat, NotOurs> {
        let stat = target.stat()?;
        if stat.st_dev == self.device { Ok(stat) } else { Err(NotOurs) }
    }

    fn inode(&self, stat: &Stat) -> Result<extant::InodeRef, NotOurs> {
        let ino = u32::try_from(stat.st_ino).map_err(|_| NotOurs)?;
        self.adapter.filesystem().inode(Ino(ino)).map_err(|_| NotOurs)
    }

    fn chown(&self, target: &Target, uid: u64, gid: u64) -> Answered {
        let inode = self.inode(&self.ours(target)?)?;
        // -1 keeps; ids are 32 bits.
        let id = |value: u64| Some(value as u32).filter(|&id| id != u32::MAX);
        let change =
            SetAttr { uid: id(uid), gid: id(gid), kill_suidgid: !inode.is_dir(), ..SetAttr::default() };
        let done = self.adapter.filesystem().set_attr(&inode, &change, &Credentials::root());
        self.adapter.changed_outside(&inode);
        Ok(match done {
            Ok(_) => Answer::Value(0),
            Err(error) => Answer::Error(error.errno()),
        })
    }

    fn mknod(&self, c: &Caller<'_>, folder: u64, path: u64, mode: u64, device: u64) -> Answered {
        if !matches!(FileType::from_raw_mode(mode as u32), FileType::CharacterDevice | FileType::BlockDevice)
        {
            return Err(NotOurs);
        }
        let mut path = c.text(path)?;
        while path.last() == Some(&b'/') {
            path.pop();
        }
        let at = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let name = path.split_off(at);
        // What is left is the folder, or nothing for where the path begins.
        path.push(b'.');
        let target = Target { path: c.full(folder, &path), follow: true };
        let dir = self.inode(&self.ours(&target)?)?;
        let new = NewInode { mode: mode as u16, rdev: crate::adapter::device_of(device as u32) };
        let cred = Credentials::root().with_umask(c.umask()?);
        let made = self.adapter.filesystem().mknod(&dir, &name, &new, &cred);
        self.adapter.name_changed_outside(&dir, &name);
        Ok(match made {
            Ok(_) => Answer::Value(0),
            Err(error) => Answer::Error(error.errno()),
        })
    }

    fn stat(&self, c: &Caller<'_>, target: &Target, buffer: u64) -> Answered {
        let mut stat = self.ours(target)?;
        let attr = self.inode(&stat)?.attr();
        (stat.st_uid, stat.st_gid) = (attr.uid, attr.gid);
        c.fill(buffer, &stat_bytes(&stat))
    }

    fn statx(&self, c: &Caller<'_>, target: &Target, mask: u64, buffer: u64) -> Answered {
        let stat = self.ours(target)?;
        let attr = self.inode(&stat)?.attr();
        let flags = if target.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let mask = StatxFlags::from_bits_retain(mask as u32);
        let mut found = rustix::fs::statx(CWD, target.os(), flags, mask)?;
        (found.stx_uid, found.stx_gid) = (attr.uid, attr.gid);
        c.fill(buffer, &statx_bytes(&found))
    }
}

/// `AT_FDCWD` as an argument.
const AT_FDCWD: u64 = (-100_i64).cast_unsigned();

/// A file that a caller means, by a path that leads to it from here.
struct Target {
    path: Vec<u8>,
    follow: bool,
}

impl Target {
    fn os(&self) -> &std::ffi::OsStr {
        std::os::unix::ffi::OsStrExt::from_bytes(&self.path)
    }

    fn stat(&self) -> rustix::io::Result<Stat> {
        if self.follow { rustix::fs::stat(self.os()) } else { rustix::fs::lstat(self.os()) }
    }
}

/// The thread that called, and what it holds in memory.
struct Caller<'a> {
    call: Call,
    listener: &'a OwnedFd,
    memory: File,
}

/// The longest path that the system takes.
const PATH_MAX: usize = 4096;

impl<'a> Caller<'a> {
    fn new(call: Call, listener: &'a OwnedFd) -> Result<Self, NotOurs> {
        let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", call.pid))?;
        // Else the number may be another thread's by now.
        if seccomp::still_waits(listener, call.id) {
            Ok(Self { call, listener, memory })
        } else {
            Err(NotOurs)
        }
    }

    /// A text in the caller's memory.
    fn text(&self, at: u64) -> Result<Vec<u8>, NotOurs> {
        let mut text = vec![0; PATH_MAX];
        let mut got = 0;
        while got < text.len() {
            // Up to the end of a page: the next one may not be there.
            let piece = (PATH_MAX - (at as usize).wrapping_add(got) % PATH_MAX).min(text.len() - got);
            let next = at.checked_add(got as u64).ok_or(NotOurs)?;
            self.memory.read_exact_at(&mut text[got..got + piece], next)?;
            if let Some(end) = text[got..got + piece].iter().position(|&b| b == 0) {
                text.truncate(got + end);
                return Ok(text);
            }
            got += piece;
        }
        Err(NotOurs)
    }

    fn descriptor(&self, fd: u64) -> Target {
        let path = format!("/proc/{}/fd/{}", self.call.pid, fd as u32 as i32);
        Target { path: path.into_bytes(), follow: true }
    }

    fn path(&self, folder: u64, text: u64, follow: bool) -> Result<Target, NotOurs> {
        let text = self.text(text)?;
        if text.is_empty() {
            return Err(NotOurs);
        }
        Ok(Target { path: self.full(folder, &text), follow })
    }

    /// By the arguments of calls that take `AT_…` flags.
    fn path_at(&self, folder: u64, text: u64, flags: u64) -> Result<Target, NotOurs> {
        let flags = AtFlags::from_bits_retain(flags as u32);
        let text = if text == 0 { Vec::new() } else { self.text(text)? };
        if text.is_empty() {
            if !flags.contains(AtFlags::EMPTY_PATH) {
                return Err(NotOurs);
            }
            if folder as i32 == AT_FDCWD as i32 {
                return Ok(Target { path: self.full(folder, b"."), follow: true });
            }
            return Ok(self.descriptor(folder));
        }
        Ok(Target { path: self.full(folder, &text), follow: !flags.contains(AtFlags::SYMLINK_NOFOLLOW) })
    }

    /// A path of the caller's as one of ours.
    fn full(&self, folder: u64, path: &[u8]) -> Vec<u8> {
        let pid = self.call.pid;
        if let Some(rest) = path.strip_prefix(b"/proc/self/".as_slice()) {
            return [format!("/proc/{pid}/").as_bytes(), rest].concat();
        }
        let base = match (path.first(), folder as i32) {
            (Some(b'/'), _) => format!("/proc/{pid}/root"),
            (_, fd) if fd == AT_FDCWD as i32 => format!("/proc/{pid}/cwd/"),
            (_, fd) => format!("/proc/{pid}/fd/{fd}/"),
        };
        [base.as_bytes(), path].concat()
    }

    fn umask(&self) -> Result<u16, NotOurs> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.call.pid))?;
        let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
        line.and_then(|l| u16::from_str_radix(l.trim(), 8).ok()).ok_or(NotOurs)
    }

    /// Puts a call's result into the caller's memory.
    fn fill(&self, at: u64, bytes: &[u8]) -> Answered {
        if !seccomp::still_waits(self.listener, self.call.id) {
            return Err(NotOurs);
        }
        Ok(match self.memory.write_all_at(bytes, at) {
            Ok(()) => Answer::Value(0),
            Err(_) => Answer::Error(Errno::FAULT.raw_os_error()),
        })
    }
}

/// Numbers one behind the other, as a structure of the system has them.
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn upto(mut self, len: usize) -> Vec<u8> {
        self.0.resize(len, 0);
        self.0
    }
}

/// `struct stat` of stat(2).
#[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "types differ between processors")]
fn stat_bytes(s: &Stat) -> Vec<u8> {
    let head = Bytes(Vec::with_capacity(144)).u64(s.st_dev).u64(s.st_ino);
    #[cfg(target_arch = "x86_64")]
    let head = head.u64(s.st_nlink).u32(s.st_mode).u32(s.st_uid).u32(s.st_gid).u32(0).u64(s.st_rdev);
    #[cfg(not(target_arch = "x86_64"))]
    let head = head.u32(s.st_mode).u32(s.st_nlink as u32).u32(s.st_uid).u32(s.st_gid).u64(s.st_rdev).u64(0);
    let sized = head.u64(s.st_size as u64);
    #[cfg(target_arch = "x86_64")]
    let sized = sized.u64(s.st_blksize as u64);
    #[cfg(not(target_arch = "x86_64"))]
    let sized = sized.u32(s.st_blksize as u32).u32(0);
    let times = sized
        .u64(s.st_blocks as u64)
        .u64(s.st_atime as u64)
        .u64(s.st_atime_nsec as u64)
        .u64(s.st_mtime as u64)
        .u64(s.st_mtime_nsec as u64)
        .u64(s.st_ctime as u64)
        .u64(s.st_ctime_nsec as u64);
    times.upto(if cfg!(target_arch = "x86_64") { 144 } else { 128 })
}

/// `struct statx` of statx(2).
fn statx_bytes(s: &Statx) -> Vec<u8> {
    let mut bytes = Bytes(Vec::with_capacity(256))
        .u32(s.stx_mask)
        .u32(s.stx_blksize)
        .u64(s.stx_attributes.bits())
        .u32(s.stx_nlink)
        .u32(s.stx_uid)
        .u32(s.stx_gid)
        .u16(s.stx_mode)
        .u16(0)
        .u64(s.stx_ino)
        .u64(s.stx_size)
        .u64(s.stx_blocks)
        .u64(s.stx_attributes_mask.bits());
    for time in [s.stx_atime, s.stx_btime, s.stx_ctime, s.stx_mtime] {
        bytes = bytes.u64(time.tv_sec.cast_unsigned()).u32(time.tv_nsec).u32(0);
    }
    bytes
        .u32(s.stx_rdev_major)
        .u32(s.stx_rdev_minor)
        .u32(s.stx_dev_major)
        .u32(s.stx_dev_minor)
        .u64(s.stx_mnt_id)
        .u32(s.stx_dio_mem_align)
        .u32(s.stx_dio_offset_align)
        .upto(256)
}
