//! An ordinary mapping of an ordinary file, for whoever compares with it.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::MemSlice;

/// A shared mapping of a file by the kernel, unmapped when dropped. An access past the end of the file is SIGBUS.
pub struct FileMap {
    start: usize,
    len: usize,
}

impl FileMap {
    /// Maps the first `len` bytes for loads and stores.
    ///
    /// # Errors
    /// The system's: EINVAL for a length of 0, EACCES when the file is not open for both.
    pub fn new(file: impl AsFd, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let start = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start: start.expose_provenance(), len })
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The eight bytes at `at`, for atomic access.
    ///
    /// # Panics
    /// When they are not all inside, or `at` is not a multiple of 8.
    #[must_use]
    pub fn atomic_u64(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at < self.len && 8 <= self.len - at,
            "8 bytes at {at} of {}",
            self.len
        );
        // SAFETY:
        // - Inside the mapping (just checked), which lives as long as `self`, and aligned: it starts at a page.
        // - There is no other way to its memory from here than atomic access.
        unsafe { AtomicU64::from_ptr(ptr::with_exposed_provenance_mut(self.start + at)) }
    }

    /// All of it but for less than eight bytes at the end, for atomic access.
    #[must_use]
    pub fn atomic_u64s(&self) -> &[AtomicU64] {
        // SAFETY:
        // - Inside the mapping, which lives as long as `self`, and aligned: it starts at a page. Atomics of eight bytes lie without gaps.
        // - There is no other way to its memory from here than atomic access and copies that tolerate races.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(self.start), self.len / 8) }
    }

    /// Copies bytes out of the mapping.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) {
        // SAFETY: the mapping lives as long as `self`; no plain reference into it is ever made.
        unsafe { MemSlice::from_raw(ptr::with_exposed_provenance_mut(self.start), self.len) }
            .copy_to(at, into);
    }

    /// msync(2) with MS_SYNC of all of it.
    ///
    /// # Errors
    /// The device's.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly a mapping of this object; it changes no memory.
        Ok(unsafe { msync(ptr::with_exposed_provenance_mut(self.start), self.len, MsyncFlags::SYNC) }?)
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: exactly a mapping of this object, to which nothing refers any more.
        let result = unsafe { munmap(ptr::with_exposed_provenance_mut(self.start), self.len) };
        debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
    }
}

impl fmt::Debug for FileMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMap({} bytes)", self.len)
    }
}
