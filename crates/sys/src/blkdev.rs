//! The ioctls of block devices (numbers: `linux/fs.h`; meaning: the block layer's `ioctl` documentation).

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

const BLKROGET: Opcode = opcode::none(0x12, 94);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);

/// The device's size in bytes.
pub fn size_bytes(fd: impl AsFd) -> io::Result<u64> {
    // SAFETY: the kernel stores a `u64` for BLKGETSIZE64 (its number is built from `size_t` for historical reasons).
    let getter = unsafe { Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: the getter's opcode and type belong together, see above; on another kind of file the kernel answers
    // ENOTTY and stores nothing that is then used.
    Ok(unsafe { ioctl(fd, getter) }?)
}

/// Whether the device is read-only.
pub fn is_read_only(fd: impl AsFd) -> io::Result<bool> {
    // SAFETY: the kernel stores an `int` for BLKROGET.
    let getter = unsafe { Getter::<BLKROGET, i32>::new() };
    // SAFETY: the getter's opcode and type belong together, see above.
    Ok(unsafe { ioctl(fd, getter) }? != 0)
}

/// The logical sector size in bytes.
pub fn logical_sector_size(fd: impl AsFd) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blksszget(fd)?)
}

/// Tells the device that nobody needs these bytes; what they read as afterwards is the device's choice.
pub fn discard(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads `uint64_t range[2]` (start, length) from the pointer it gets.
    let setter = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([offset, len]) };
    // SAFETY: opcode and type belong together, see above; it changes only the device's content, which the caller owns.
    Ok(unsafe { ioctl(fd, setter) }?)
}

/// Makes these bytes read as zero, by the fastest way the device has.
pub fn zero_out(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads `uint64_t range[2]` (start, length) from the pointer it gets.
    let setter = unsafe { Setter::<BLKZEROOUT, [u64; 2]>::new([offset, len]) };
    // SAFETY: opcode and type belong together, see above; it changes only the device's content, which the caller owns.
    Ok(unsafe { ioctl(fd, setter) }?)
}
