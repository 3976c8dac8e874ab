//! FIEMAP and MOVE_EXT, with the kernel's structures.

use std::ffi::c_void;
use std::mem::size_of;

use extant::{FiemapExtent, FiemapHow, MoveRange};

use crate::abi::{Answer, Errno};
use crate::description::Description;
use crate::table::{self, is_ours};
use crate::user::{load, store};

/// `struct fiemap` without its extents.
#[derive(Clone, Copy)]
#[repr(C)]
struct FiemapHead {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct move_extent`.
#[derive(Clone, Copy)]
#[repr(C)]
struct MoveExtent {
    reserved: u32,
    donor_fd: u32,
    orig_start: u64,
    donor_start: u64,
    len: u64,
    moved_len: u64,
}

/// More extents than a request may have room for.
const TOO_MANY: usize = (u32::MAX as usize - size_of::<FiemapHead>()) / FiemapExtent::SIZE + 1;

/// `FS_IOC_FIEMAP`. What is not understood of the flags is handed back with the error.
pub(super) fn fiemap(what: &Description, argument: *mut c_void) -> Answer<i32> {
    let place = argument.cast::<FiemapHead>();
    // SAFETY: the program says that it is what the command wants.
    let mut head = unsafe { load(place) }?;
    let most = head.extent_count as usize;
    if most >= TOO_MANY {
        return Err(Errno(libc::EINVAL));
    }
    let how = match FiemapHow::from_raw(head.flags) {
        Ok(how) => how,
        Err(unknown) => {
            head.flags = unknown;
            // SAFETY: as above.
            unsafe { store(place, head) }?;
            return Err(Errno(libc::EBADR));
        }
    };
    let (fs, inode) = (what.fs(), what.inode());
    if most == 0 {
        head.mapped_extents = fs.fiemap_count(inode, head.start, head.length, how)?;
    } else {
        let found = fs.fiemap(inode, head.start, head.length, how, most)?;
        head.mapped_extents = found.len() as u32;
        // SAFETY: the extents follow the head.
        let mut at = unsafe { place.add(1) }.cast::<[u8; FiemapExtent::SIZE]>();
        for extent in found {
            // SAFETY: the program says that it has room for so many.
            unsafe { store(at, extent.to_bytes()) }?;
            // SAFETY: as above.
            at = unsafe { at.add(1) };
        }
    }
    // SAFETY: as above.
    unsafe { store(place, head) }?;
    Ok(Some(0))
}

/// `EXT4_IOC_MOVE_EXT`.
pub(super) fn move_extents(what: &Description, argument: *mut c_void) -> Answer<i32> {
    let place = argument.cast::<MoveExtent>();
    // SAFETY: the program says that it is what the command wants.
    let mut asked = unsafe { load(place) }?;
    let orig = what.file().map_err(|_| Errno(libc::EBADF))?;
    if !orig.mode().read || !orig.mode().write {
        return Err(Errno(libc::EBADF));
    }
    let donor_fd = asked.donor_fd.cast_signed();
    if !is_ours(donor_fd) {
        // The kernel says whether it is open for writing, or at all.
        // SAFETY: a descriptor's flags are asked for, and no memory given.
        let flags = unsafe { libc::syscall(libc::SYS_fcntl, donor_fd, libc::F_GETFL) };
        let writable = flags >= 0 && flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        return Err(Errno(if writable { libc::EINVAL } else { libc::EBADF }));
    }
    let donor = table::get(donor_fd)?;
    let MoveExtent { orig_start, donor_start, len, .. } = asked;
    let range = MoveRange { orig_start, donor_start, len };
    asked.moved_len = orig.move_extents(donor.file().map_err(|_| Errno(libc::EBADF))?, range)?;
    // SAFETY: as above.
    unsafe { store(place, asked) }?;
    Ok(Some(0))
}
