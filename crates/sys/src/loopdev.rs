//! Loop devices: an image file as a block device of the kernel.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

/// `LOOP_CTL_GET_FREE`.
const CTL_GET_FREE: Opcode = 0x4C82;
/// `LOOP_CONFIGURE`.
const CONFIGURE: Opcode = 0x4C0A;
/// `LO_FLAGS_READ_ONLY`.
const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: detached when nobody has it open or mounted any more.
const AUTOCLEAR: u32 = 4;
/// Attempts to get a device that somebody else takes first.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64` (loop(4)).
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (loop(4)).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A loop device that is attached; it detaches itself once this is dropped and no mount uses it.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `image` to a free loop device.
    pub fn attach(image: &File, read_only: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            let number = free_number(&control)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            match configure(&file, image, read_only) {
                Ok(()) => return Ok(Self { file, path }),
                // Somebody else took it in between.
                Err(Errno::BUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "every free loop device was taken by somebody else"))
    }

    /// Its node in `/dev`.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn configure(device: &File, image: &File, read_only: bool) -> Result<(), Errno> {
    let config = LoopConfig {
        fd: image.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE takes a pointer to a `struct loop_config`, which this is, and only reads it.
    let set = unsafe { Setter::<CONFIGURE, LoopConfig>::new(config) };
    // SAFETY: as above.
    unsafe { ioctl(device.as_fd(), set) }
}

/// `LOOP_CTL_GET_FREE`: the answer is the return value.
struct GetFree;

// SAFETY:
// - The command has no argument and changes no memory of this process.
// - The output is the system call's return value.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

fn free_number(control: &File) -> io::Result<u32> {
    // SAFETY: the command takes no argument.
    Ok(unsafe { ioctl(control.as_fd(), GetFree) }?)
}
