//! The ioctls about extents of files on the kernel's own filesystems: FIEMAP (`Documentation/filesystems/fiemap.rst`) and ext4's
//! MOVE_EXT (`linux/fs.h`, the ext4 documentation).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Extents that one [`fiemap`] has room for.
pub const FIEMAP_ROOM: usize = 145;
/// Bytes of the head of a `struct fiemap`.
pub const FIEMAP_HEAD: usize = 32;
/// Bytes of a `struct fiemap` with its extents.
pub const FIEMAP_SIZE: usize = FIEMAP_HEAD + 56 * FIEMAP_ROOM;

/// `_IOWR('f', 11, struct fiemap)`: the number has the size of the head.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u64; FIEMAP_HEAD / 8]>(b'f', 11);
/// `_IOWR('f', 15, struct move_extent)`
const EXT4_IOC_MOVE_EXT: Opcode = opcode::read_write::<MoveExt>(b'f', 15);

/// `FS_IOC_FIEMAP`: `bytes` are a `struct fiemap`, filled in for the request, and then with the answer.
///
/// # Errors
/// `EINVAL` for a request that wants more than [`FIEMAP_ROOM`] extents; the system's.
pub fn fiemap(file: impl AsFd, bytes: &mut [u8; FIEMAP_SIZE]) -> io::Result<()> {
    let count = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    if count as usize > FIEMAP_ROOM {
        return Err(Errno::INVAL.into());
    }
    // SAFETY:
    // - FIEMAP reads the head and writes it and at most `fm_extent_count` extents of 56 bytes behind it, all inside of `bytes`: the
    //   count was checked.
    // - A file that knows no FIEMAP refuses the command; its number is used by nothing else.
    let update = unsafe { Updater::<FS_IOC_FIEMAP, [u8; FIEMAP_SIZE]>::new(bytes) };
    // SAFETY: as above.
    unsafe { ioctl(file, update) }?;
    Ok(())
}

/// `struct move_extent`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct MoveExt {
    reserved: u32,
    donor_fd: u32,
    orig_start: u64,
    donor_start: u64,
    len: u64,
    moved_len: u64,
}

/// `EXT4_IOC_MOVE_EXT`, in blocks: what it answered, and how many blocks were moved, which may be some with an error too.
pub fn move_ext(
    orig: impl AsFd,
    donor: impl AsFd,
    [orig_start, donor_start, len]: [u64; 3],
) -> (io::Result<()>, u64) {
    let donor_fd = donor.as_fd().as_raw_fd().cast_unsigned();
    let mut moved = MoveExt { donor_fd, orig_start, donor_start, len, ..MoveExt::default() };
    // SAFETY:
    // - The command reads and writes a `struct move_extent`, which this is; a file of another filesystem refuses it.
    // - The donor's number is that of an open descriptor, borrowed for the call.
    let update = unsafe { Updater::<EXT4_IOC_MOVE_EXT, MoveExt>::new(&mut moved) };
    // SAFETY: as above.
    let done = unsafe { ioctl(orig, update) };
    (done.map_err(io::Error::from), moved.moved_len)
}
