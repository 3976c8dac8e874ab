//! Commands of the FUSE device, and of files on a mount of ours.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`; reads its argument in spite of the direction in its number.
const DEV_IOC_CLONE: Opcode = opcode::read::<u32>(229, 0);

/// Opens the FUSE device.
pub fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Another descriptor of the connection that `device` is mounted with: requests that are read from it are
/// answered on it.
pub fn clone_device(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = open_device()?;
    let source = device.as_raw_fd().cast_unsigned();
    // SAFETY:
    // - The opcode takes a pointer to a `u32`, the number of an open FUSE device, and only reads it.
    let clone_of = unsafe { Setter::<DEV_IOC_CLONE, u32>::new(source) };
    // SAFETY: as above; the kernel checks that the number is a FUSE device's.
    unsafe { ioctl(&clone, clone_of) }?;
    Ok(clone)
}

/// The generation of an inode (`FS_IOC_GETVERSION`: `_IOR('v', 1, long)`, which stores an `int` all the same).
pub fn generation(file: impl AsFd) -> io::Result<u32> {
    const GETVERSION: Opcode = opcode::read::<u64>(b'v', 1);
    let mut word = 0_u64;
    // SAFETY: the command stores at most the size in its number, which is that of `word`.
    let update = unsafe { Updater::<GETVERSION, u64>::new(&mut word) };
    // SAFETY: as above; a file of another kind refuses it.
    unsafe { ioctl(file, update) }?;
    // The first four bytes, in the machine's order.
    let bytes = word.to_ne_bytes();
    Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// An `_IOWR` command of `SIZE` bytes on a file of a FUSE mount: the kernel copies the bytes to the server and back.
pub fn exchange<const OPCODE: Opcode, const SIZE: usize>(
    file: impl AsFd,
    value: &mut [u8; SIZE],
) -> io::Result<()> {
    const { assert!(((OPCODE >> 16) & 0x3fff) as usize == SIZE, "the opcode carries the argument's size") };
    const { assert!(OPCODE >> 30 == 3, "the opcode carries both directions") };
    // SAFETY:
    // - The size in the opcode is `SIZE` (asserted). A file on a FUSE mount has exactly so many bytes copied in
    //   and out; any other file system or driver refuses a command it does not know.
    // - The opcodes used are of this program's own magic number.
    let update = unsafe { Updater::<OPCODE, [u8; SIZE]>::new(value) };
    // SAFETY: as above.
    unsafe { ioctl(file, update) }?;
    Ok(())
}
