//! ioctl: flags, projects, label, generation, trim, freeze, shutdown, extents.

use std::ffi::{c_int, c_ulong, c_void};

use extant::{FsxAttr, InodeFlags, ShutdownMode};

use crate::abi::{Answer, Errno, interpose};
use crate::table::{self, is_ours};
use crate::user::{load, store};
use crate::{mount, real};

/// Command numbers (`linux/fs.h`; the ext4 documentation's chapter on ioctls).
mod command {
    pub(super) const GETFLAGS: u32 = 0x8008_6601;
    pub(super) const SETFLAGS: u32 = 0x4008_6602;
    pub(super) const FSGETXATTR: u32 = 0x801c_581f;
    pub(super) const FSSETXATTR: u32 = 0x401c_5820;
    pub(super) const GETVERSION: u32 = 0x8008_7601;
    pub(super) const EXT4_GETVERSION: u32 = 0x8008_6603;
    pub(super) const GETFSLABEL: u32 = 0x8100_9431;
    pub(super) const SETFSLABEL: u32 = 0x4100_9432;
    pub(super) const FITRIM: u32 = 0xc018_5879;
    pub(super) const FIFREEZE: u32 = 0xc004_5877;
    pub(super) const FITHAW: u32 = 0xc004_5878;
    pub(super) const EXT4_SHUTDOWN: u32 = 0x8004_587d;
    pub(super) const FICLONE: u32 = 0x4004_9409;
    pub(super) const FICLONERANGE: u32 = 0x4020_940d;
    pub(super) const FIDEDUPERANGE: u32 = 0xc018_9436;
    pub(super) const FIEMAP: u32 = 0xc020_660b;
    pub(super) const EXT4_MOVE_EXT: u32 = 0xc028_660f;
    pub(super) const FIBMAP: u32 = 1;
    pub(super) const FIGETBSZ: u32 = 2;
    pub(super) const FIONREAD: u32 = 0x541b;
    pub(super) const FIONBIO: u32 = 0x5421;
    pub(super) const FIOCLEX: u32 = 0x5451;
    pub(super) const FIONCLEX: u32 = 0x5450;
}

const LABEL_MAX: usize = 256;

/// `struct fsxattr`.
#[derive(Clone, Copy, Default)]
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
#[derive(Clone, Copy)]
#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    minlen: u64,
}

interpose! {
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int,
        if is_ours(fd) => control(fd, request, argument);
}

fn control(fd: c_int, request: c_ulong, argument: *mut c_void) -> Answer<c_int> {
    let what = table::get(fd)?;
    what.check_open()?;
    let (fs, inode, cred) = (what.fs(), what.inode(), mount::credentials(false));
    // The kernel looks at the lower half only.
    match request as u32 {
        command::GETFLAGS => {
            let flags = (inode.attr().flags & InodeFlags::USER_VISIBLE).bits();
            give(argument, flags.cast_signed())
        }
        command::SETFLAGS => {
            let flags = InodeFlags::from_bits_retain(take::<c_int>(argument)?.cast_unsigned());
            fs.set_flags(inode, flags, &cred)?;
            Ok(Some(0))
        }
        command::FSGETXATTR => {
            let attr = fs.fsx_attr(inode);
            give(argument, Fsxattr { xflags: attr.xflags, projid: attr.project, ..Fsxattr::default() })
        }
        command::FSSETXATTR => {
            let new = take::<Fsxattr>(argument)?;
            if new.extsize != 0 || new.cowextsize != 0 {
                return Err(Errno(libc::EOPNOTSUPP));
            }
            fs.set_fsx_attr(inode, FsxAttr { xflags: new.xflags, project: new.projid }, &cred)?;
            Ok(Some(0))
        }
        command::GETVERSION | command::EXT4_GETVERSION => give(argument, inode.generation().cast_signed()),
        command::GETFSLABEL => {
            let mut label = [0; LABEL_MAX];
            let there = fs.label();
            label[..there.len()].copy_from_slice(&there);
            give(argument, label)
        }
        command::SETFSLABEL => {
            let label = take::<[u8; LABEL_MAX]>(argument)?;
            let end = label.iter().position(|b| *b == 0).ok_or(Errno(libc::EINVAL))?;
            fs.set_label(&label[..end], &cred)?;
            Ok(Some(0))
        }
        command::FITRIM => {
            let mut range = take::<TrimRange>(argument)?;
            range.len = fs.trim(range.start, range.len, range.minlen, &cred)?;
            give(argument, range)
        }
        command::FIFREEZE => fs.freeze(&cred).map(|()| Some(0)).map_err(Errno::from),
        command::FITHAW => fs.thaw(&cred).map(|()| Some(0)).map_err(Errno::from),
        command::EXT4_SHUTDOWN => {
            let how = match take::<u32>(argument)? {
                0 => ShutdownMode::Sync,
                1 => ShutdownMode::FlushLog,
                2 => ShutdownMode::NoFlush,
                _ => return Err(Errno(libc::EINVAL)),
            };
            fs.shutdown(how, &cred)?;
            Ok(Some(0))
        }
        command::FIEMAP => super::extents::fiemap(&what, argument),
        command::EXT4_MOVE_EXT => super::extents::move_extents(&what, argument),
        command::FIGETBSZ => give(argument, inode.attr().block_size.cast_signed()),
        command::FIONREAD if inode.is_regular() => {
            let left = inode.size().saturating_sub(*what.position());
            give(argument, c_int::try_from(left).unwrap_or(c_int::MAX))
        }
        // Blocks of the image mean nothing to a program that cannot read them through this library.
        command::FIBMAP => Err(Errno(libc::EINVAL)),
        command::FICLONE | command::FICLONERANGE | command::FIDEDUPERANGE => Err(Errno(libc::EOPNOTSUPP)),
        command::FIONBIO => {
            let on = take::<c_int>(argument)? != 0;
            let others = what.flags() & !libc::O_NONBLOCK;
            what.set_flags(if on { others | libc::O_NONBLOCK } else { others });
            Ok(Some(0))
        }
        // The kernel's, of the placeholder.
        command::FIOCLEX | command::FIONCLEX => {
            let done = real::call!(ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int);
            if done < 0 { Err(Errno(crate::abi::errno())) } else { Ok(Some(done)) }
        }
        _ => Err(Errno(libc::ENOTTY)),
    }
}

fn take<T: Copy>(argument: *mut c_void) -> Result<T, Errno> {
    // SAFETY: the program says that it is what the command wants.
    unsafe { load(argument.cast::<T>()) }
}

fn give<T>(argument: *mut c_void, value: T) -> Answer<c_int> {
    // SAFETY: the program says that it is a place for what the command gives.
    unsafe { store(argument.cast::<T>(), value) }?;
    Ok(Some(0))
}
