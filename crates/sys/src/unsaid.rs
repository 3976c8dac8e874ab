//! What a program does to its mappings by instructions of its own, and what it meets at an address: for tests.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::Ordering;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed};

use crate::{Protection, UserPages};

/// mprotect(2) of the whole mapping.
///
/// # Errors
/// The system's.
pub fn protect(pages: &UserPages, protection: Protection) -> io::Result<()> {
    let (start, len) = place(pages);
    // SAFETY: memory of a mapping, to which no reference exists; an access that is not allowed is a signal.
    Ok(unsafe { mprotect(ptr::with_exposed_provenance_mut(start), len, protection.for_mprotect()) }?)
}

/// mremap(2) of the whole mapping to another place, where it is `more` bytes longer; its new address.
///
/// # Errors
/// The system's.
pub fn move_away(pages: &UserPages, more: usize) -> io::Result<usize> {
    let (start, len) = place(pages);
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let new = unsafe { mmap_anonymous(ptr::null_mut(), len + more, ProtFlags::empty(), flags) }?;
    let old = ptr::with_exposed_provenance_mut(start);
    // SAFETY:
    // - Memory of a mapping, to which no reference exists, and whose owner follows it.
    // - What is replaced was made just now.
    let moved = unsafe { mremap_fixed(old, len, len + more, MremapFlags::MAYMOVE, new) }?;
    Ok(moved.expose_provenance())
}

/// The byte at an address, as write(2) to a pipe meets it.
///
/// # Errors
/// EFAULT where a load would be a signal; the system's.
pub fn look(addr: usize) -> io::Result<u8> {
    let (read, write) = rustix::pipe::pipe()?;
    // SAFETY: one byte, at which the kernel alone looks; to it any address is good.
    let done = unsafe { libc::write(write.as_raw_fd(), ptr::with_exposed_provenance(addr), 1) };
    if done != 1 {
        return Err(io::Error::last_os_error());
    }
    let mut byte = [0];
    rustix::io::read(&read, &mut byte)?;
    Ok(byte[0])
}

/// Stores a byte of the mapping, as read(2) from a pipe does.
///
/// # Errors
/// EFAULT where a store would be a signal; the system's.
///
/// # Panics
/// When it is not inside.
pub fn put(pages: &UserPages, at: usize, byte: u8) -> io::Result<()> {
    let (start, len) = place(pages);
    assert!(at < len, "{at} of {len}");
    let (read, write) = rustix::pipe::pipe()?;
    rustix::io::write(&write, &[byte])?;
    // SAFETY: one byte inside of the mapping, to which no reference exists.
    let done = unsafe { libc::read(read.as_raw_fd(), ptr::with_exposed_provenance_mut(start + at), 1) };
    if done == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn place(pages: &UserPages) -> (usize, usize) {
    (pages.start.load(Ordering::Acquire), pages.len.load(Ordering::Acquire))
}
