//! ioctls, theirs and our own.
//!
//! The kernel passes a command on with as many bytes of its argument as the command's number says; pointers inside are not
//! followed. A command that only returns something (`_IOR`) brings no bytes.

use std::io;
use std::os::fd::AsFd;

use extant::{FsxAttr, InodeFlags, ShutdownMode};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Adapter, caller, errno};
use crate::private;
use crate::server::Request;
use crate::wire::{IoctlFlags, IoctlIn};

/// Command numbers (`linux/fs.h`; the ext4 documentation's chapter on ioctls). Those with `_32` are what programs of 32 bits call; the
/// kernel turns theirs of [`FS_GETFLAGS`](command::FS_GETFLAGS) and `FS_SETFLAGS` into the long ones itself.
mod command {
    pub(super) const FS_GETFLAGS: u32 = 0x8008_6601;
    pub(super) const FS_SETFLAGS: u32 = 0x4008_6602;
    pub(super) const FS_FSGETXATTR: u32 = 0x801c_581f;
    pub(super) const FS_FSSETXATTR: u32 = 0x401c_5820;
    pub(super) const FS_GETVERSION: u32 = 0x8008_7601;
    pub(super) const FS_GETVERSION_32: u32 = 0x8004_7601;
    pub(super) const EXT4_GETVERSION: u32 = 0x8008_6603;
    pub(super) const EXT4_GETVERSION_32: u32 = 0x8004_6603;
    pub(super) const FS_SETVERSION: u32 = 0x4008_7602;
    pub(super) const FS_SETVERSION_32: u32 = 0x4004_7602;
    pub(super) const EXT4_SETVERSION: u32 = 0x4008_6604;
    pub(super) const EXT4_SETVERSION_32: u32 = 0x4004_6604;
    pub(super) const FS_GETFSLABEL: u32 = 0x8100_9431;
    pub(super) const FS_SETFSLABEL: u32 = 0x4100_9432;
    pub(super) const FITRIM: u32 = 0xc018_5879;
    pub(super) const EXT4_SHUTDOWN: u32 = 0x8004_587d;
}

/// Our own: the server's process id, and [`SHUT_DOWN`]. `_IOWR('E', 0xE0, u64)`.
const SERVER_PID: u32 = 0xc008_45e0;
/// Our own: a remount. `_IOWR('E', 0xE1, [u8; 4096])`.
const REMOUNT: u32 = 0xd000_45e1;
/// Our own: may the filesystem be mounted a second time with these options? `_IOWR('E', 0xE2, [u8; 4096])`.
const SECOND_MOUNT: u32 = 0xd000_45e2;
/// In the answer to [`SERVER_PID`]: the filesystem is shut down, or stopped for damage.
const SHUT_DOWN: u64 = 1 << 32;
/// Bytes of a [`REMOUNT`] and a [`SECOND_MOUNT`]: a status, a length, text.
const CONTROL_SIZE: usize = 4096;
const XFLAG_IMMUTABLE: u32 = 8;
const LABEL_MAX: usize = 256;

/// `struct fsxattr`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fstrim_range`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    minlen: u64,
}

/// Text in both directions between `extant mount` and the server.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Control {
    /// Bytes of `text`.
    len: u32,
    /// An errno in the answer.
    status: u32,
    text: [u8; CONTROL_SIZE - 8],
}

/// What the server answered: an error number and its words.
pub type ControlReply = Result<(), (i32, String)>;

impl Control {
    fn new(text: &str, status: u32) -> Self {
        let mut control = Self { len: 0, status, text: [0; CONTROL_SIZE - 8] };
        let len = text.len().min(control.text.len());
        control.text[..len].copy_from_slice(&text.as_bytes()[..len]);
        control.len = u32::try_from(len).unwrap_or(0);
        control
    }

    fn text(&self) -> String {
        let len = (self.len as usize).min(self.text.len());
        String::from_utf8_lossy(&self.text[..len]).into_owned()
    }
}

/// Asks the server of the mount that `root` is on to change its options to `list`.
pub fn control_remount(root: impl AsFd, list: &str) -> io::Result<ControlReply> {
    control::<REMOUNT>(root, list)
}

/// Asks the server of the mount that `root` is on whether a second mount may have the options `list`.
pub fn control_second_mount(root: impl AsFd, list: &str) -> io::Result<ControlReply> {
    control::<SECOND_MOUNT>(root, list)
}

fn control<const COMMAND: u32>(root: impl AsFd, list: &str) -> io::Result<ControlReply> {
    if list.len() > CONTROL_SIZE - 8 {
        return Err(Errno::TOOBIG.into());
    }
    let mut bytes = [0; CONTROL_SIZE];
    bytes.copy_from_slice(Control::new(list, 0).as_bytes());
    extant_sys::fuse::exchange::<COMMAND, CONTROL_SIZE>(root, &mut bytes)?;
    let answer = Control::read_from_bytes(&bytes).map_err(|_| io::Error::from(Errno::INVAL))?;
    Ok(match i32::try_from(answer.status) {
        Ok(0) => Ok(()),
        status => Err((status.unwrap_or(Errno::IO.raw_os_error()), answer.text())),
    })
}

/// A mount's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// Its process id.
    pub pid: u32,
    /// The filesystem was shut down (`EXT4_IOC_SHUTDOWN`, or for damage).
    pub shut_down: bool,
}

/// The server of the mount that `root` is on.
pub fn control_server(root: impl AsFd) -> io::Result<ServerState> {
    let mut bytes = [0; 8];
    extant_sys::fuse::exchange::<{ SERVER_PID }, 8>(root, &mut bytes)?;
    let word = u64::from_ne_bytes(bytes);
    let pid = u32::try_from(word & !SHUT_DOWN).map_err(|_| io::Error::from(Errno::RANGE))?;
    Ok(ServerState { pid, shut_down: word & SHUT_DOWN != 0 })
}

/// How `EXT4_IOC_SHUTDOWN` is to be done. Its number says that it only returns something, so the kernel does not bring the
/// flags along: they are read where the caller, which waits, has them.
fn shutdown_mode(req: &Request<'_>, arg: u64) -> Result<ShutdownMode, Errno> {
    match caller::read_word(req, arg) {
        Ok(0) => Ok(ShutdownMode::Sync),
        Ok(1) => Ok(ShutdownMode::FlushLog),
        Ok(2) => Ok(ShutdownMode::NoFlush),
        Ok(_) => Err(Errno::INVAL),
        // A caller that is not to be seen from here. What is committed first can do no harm to one that asked for less.
        Err(_) => Ok(ShutdownMode::FlushLog),
    }
}

/// The number that a program of 64 bits would have called. One of 32 bits that such a program calls is no command of ext4's, and above
/// all none that the kernel has checked.
fn native(args: &IoctlIn) -> Option<u32> {
    let compat = IoctlFlags::from_bits_retain(args.flags).contains(IoctlFlags::COMPAT);
    match args.cmd {
        command::FS_GETVERSION_32 => compat.then_some(command::FS_GETVERSION),
        command::FS_SETVERSION_32 => compat.then_some(command::FS_SETVERSION),
        command::EXT4_GETVERSION_32 => compat.then_some(command::EXT4_GETVERSION),
        command::EXT4_SETVERSION_32 => compat.then_some(command::EXT4_SETVERSION),
        cmd => Some(cmd),
    }
}

impl Adapter {
    /// Flags and project come from the kernel's VFS, which has asked who the owner is and for `CAP_LINUX_IMMUTABLE`. Everything else it
    /// passes on as it comes, for whoever has the file open, if only for reading: that is checked here.
    pub(super) fn do_ioctl(&self, req: &Request<'_>, args: &IoctlIn, data: &[u8]) -> Result<Vec<u8>, Errno> {
        if args.cmd == SERVER_PID {
            // Of a filesystem that is shut down too, which has no inodes any more.
            let shut_down = if self.fs.is_shut_down() { SHUT_DOWN } else { 0 };
            return Ok((u64::from(std::process::id()) | shut_down).to_ne_bytes().to_vec());
        }
        let inode = self.inode(req.node())?;
        let fail = |e: extant::Error| errno(&e);
        match native(args).ok_or(Errno::NOTTY)? {
            command::FS_GETFLAGS => {
                let flags = inode.attr().flags & InodeFlags::USER_VISIBLE;
                Ok(flags.bits().to_ne_bytes().to_vec())
            }
            command::FS_SETFLAGS => {
                let (flags, _) = u32::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
                let flags = InodeFlags::from_bits_retain(flags);
                let cred = caller::with_resources(req, caller::checked(req));
                if flags.contains(InodeFlags::IMMUTABLE) {
                    self.bring_back(&inode)?;
                }
                self.fs.set_flags(&inode, flags, &cred).map_err(fail)?;
                self.attributes_changed(req.node());
                Ok(Vec::new())
            }
            command::FS_FSGETXATTR => {
                let attr = self.fs.fsx_attr(&inode);
                let out = Fsxattr { xflags: attr.xflags, projid: attr.project, ..Fsxattr::default() };
                Ok(out.as_bytes().to_vec())
            }
            command::FS_FSSETXATTR => {
                let new = Fsxattr::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
                if new.extsize != 0 || new.cowextsize != 0 {
                    return Err(Errno::OPNOTSUPP);
                }
                let attr = FsxAttr { xflags: new.xflags, project: new.projid };
                let cred = caller::with_resources(req, caller::checked(req));
                if attr.xflags & XFLAG_IMMUTABLE != 0 {
                    self.bring_back(&inode)?;
                }
                self.fs.set_fsx_attr(&inode, attr, &cred).map_err(fail)?;
                self.attributes_changed(req.node());
                Ok(Vec::new())
            }
            command::FS_GETVERSION | command::EXT4_GETVERSION => {
                Ok(inode.attr().generation.to_ne_bytes().to_vec())
            }
            command::FS_SETVERSION | command::EXT4_SETVERSION => {
                let (generation, _) = u32::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
                let cred = caller::unchecked(req).ok_or(Errno::PERM)?;
                match self.fs.set_generation(&inode, generation, &cred) {
                    // The kernel's answer where metadata has checksums.
                    Err(extant::Error::NotSupported(_)) => Err(Errno::NOTTY),
                    done => done.map_err(fail).map(|()| Vec::new()),
                }
            }
            command::FS_GETFSLABEL => {
                let mut label = self.fs.label();
                label.resize(LABEL_MAX, 0);
                Ok(label)
            }
            command::FS_SETFSLABEL => {
                let end = data.iter().position(|&b| b == 0).ok_or(Errno::INVAL)?;
                self.fs.set_label(&data[..end], &caller::privileged(req)).map_err(fail).map(|()| Vec::new())
            }
            command::FITRIM => {
                let mut range = TrimRange::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
                range.len = self
                    .fs
                    .trim(range.start, range.len, range.minlen, &caller::privileged(req))
                    .map_err(fail)?;
                Ok(range.as_bytes().to_vec())
            }
            command::EXT4_SHUTDOWN => {
                let cred = caller::privileged(req);
                // Before its memory is looked at, which may be such that a reader of it waits for as long as it likes.
                if !cred.has(extant::Caps::SYS_ADMIN) {
                    return Err(Errno::PERM);
                }
                let mode = shutdown_mode(req, args.arg)?;
                self.fs.shutdown(mode, &cred).map_err(fail).map(|()| Vec::new())
            }
            SECOND_MOUNT => {
                let asked = Control::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
                if !caller::privileged(req).has(extant::Caps::SYS_ADMIN) {
                    return Err(Errno::PERM);
                }
                let answer = match self.second.get() {
                    Some(second) => second.0(&asked.text()),
                    None => Err(String::from("it cannot be mounted a second time")),
                };
                let busy = Errno::BUSY.raw_os_error().unsigned_abs();
                let answer = answer.map_or_else(|why| Control::new(&why, busy), |()| Control::new("", 0));
                Ok(answer.as_bytes().to_vec())
            }
            REMOUNT => {
                let asked = Control::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
                if !caller::privileged(req).has(extant::Caps::SYS_ADMIN) {
                    return Err(Errno::PERM);
                }
                Ok(self.remount(&asked.text()).as_bytes().to_vec())
            }
            private::FIEMAP => self.fiemap_ioctl(req, &inode, data),
            private::FALLOCATE => self.fallocate_ioctl(req, args.fh, data),
            private::QUOTA => self.quota_ioctl(req, data),
            private::MOVE_EXT => self.move_ext_ioctl(req, args.fh, data),
            _ => Err(Errno::NOTTY),
        }
    }

    fn remount(&self, list: &str) -> Control {
        let mut options = self.fs.options().given.clone();
        let done = options.apply(list).and_then(|()| self.fs.remount(&options));
        match done {
            Ok(()) => Control::new("", 0),
            Err(error) => Control::new(&error.to_string(), error.errno().unsigned_abs()),
        }
    }
}
