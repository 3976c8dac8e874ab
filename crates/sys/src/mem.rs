//! Memory that others may read and write at the same time: no references into it ever exist, only copies in and out
//! (after rust-vmm's `volatile_memory`).

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::AsFd;

/// A piece of memory that is valid for `'a` and may change at any time, written through other slices, by the kernel,
/// or by a program that has it mapped. A copy that races with a write gets a mixture of old and new bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemSlice<'a> {
    ptr: *mut u8,
    len: usize,
    life: PhantomData<&'a [std::cell::Cell<u8>]>,
}

// A `MemSlice` is what the kernel calls an iovec, and so are std's slices for vectored I/O ("guaranteed to be ABI
// compatible with the `iovec` type on Unix platforms").
const _: () = assert!(size_of::<MemSlice<'_>>() == size_of::<IoSlice<'_>>());
const _: () = assert!(size_of::<MemSlice<'_>>() == size_of::<IoSliceMut<'_>>());
const _: () = assert!(align_of::<MemSlice<'_>>() == align_of::<IoSlice<'_>>());

// SAFETY: the memory may be accessed from any thread; every access is a copy that tolerates races.
unsafe impl Send for MemSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for MemSlice<'_> {}

impl<'a> MemSlice<'a> {
    /// The memory of a slice that nobody else can use for `'a`.
    pub fn from_mut(slice: &'a mut [u8]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Memory by address.
    ///
    /// # Safety
    /// `ptr` to `ptr + len` is allocated, readable and writable for `'a`, and for that time no Rust reference to any of it
    /// is used.
    pub unsafe fn from_raw(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, life: PhantomData }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from `at` on.
    ///
    /// # Panics
    /// When they are not all inside.
    #[must_use]
    pub fn slice(&self, at: usize, len: usize) -> Self {
        self.assert_inside(at, len);
        Self { ptr: self.ptr.wrapping_add(at), len, life: PhantomData }
    }

    /// Copies `source` to the bytes from `at` on.
    ///
    /// # Panics
    /// When it does not fit.
    #[inline]
    pub fn copy_from(&self, at: usize, source: &[u8]) {
        self.assert_inside(at, source.len());
        // SAFETY:
        // - The target range is inside memory that is valid for writes for `'a` (type's invariant, just checked range).
        // - The source is a live shared slice; no part of a `MemSlice` is ever reachable by a reference, so the two do not
        //   overlap.
        // - Others may access the target at the same time, but only by such copies, by the kernel or through a mapping: as in
        //   vm-memory, the copy is one opaque byte move whose result in a race is any mixture, and no bit pattern is invalid.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.ptr.wrapping_add(at), source.len()) }
    }

    /// Copies the bytes from `at` on to `target`.
    ///
    /// # Panics
    /// When there are too few.
    #[inline]
    pub fn copy_to(&self, at: usize, target: &mut [u8]) {
        self.assert_inside(at, target.len());
        // SAFETY:
        // - The source range is inside memory that is valid for reads for `'a` (type's invariant, just checked range).
        // - The target is exclusive; no part of a `MemSlice` is reachable by a reference, so the two do not overlap.
        // - Races: see `copy_from`.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.wrapping_add(at), target.as_mut_ptr(), target.len()) }
    }

    /// Copies all of `source` to the bytes from `at` on. The two may overlap.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn copy_from_mem(&self, at: usize, source: MemSlice<'_>) {
        self.assert_inside(at, source.len);
        // SAFETY:
        // - Both ranges are inside memory that is valid for the length of this call (type's invariant, just checked range).
        // - `copy` allows overlap. Races: see `copy_from`.
        unsafe { std::ptr::copy(source.ptr, self.ptr.wrapping_add(at), source.len) }
    }

    /// Sets the `len` bytes from `at` on to zero.
    ///
    /// # Panics
    /// When they are not all inside.
    #[inline]
    pub fn zero(&self, at: usize, len: usize) {
        self.assert_inside(at, len);
        // SAFETY: the range is inside memory that is valid for writes for `'a`. Races: see `copy_from`.
        unsafe { std::ptr::write_bytes(self.ptr.wrapping_add(at), 0, len) }
    }

    /// The address, for system calls.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    #[inline]
    fn assert_inside(&self, at: usize, len: usize) {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of {}", self.len);
    }
}

impl fmt::Debug for MemSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemSlice({} bytes)", self.len)
    }
}

/// What a system call gets for `bufs`: pieces that lie behind each other in memory as one. Only the kernel may look through
/// the result, to which the border between two allocations is nothing.
fn joined<'a>(bufs: impl Iterator<Item = MemSlice<'a>>) -> Vec<MemSlice<'a>> {
    let mut all: Vec<MemSlice<'a>> = Vec::with_capacity(bufs.size_hint().0.min(16));
    for buf in bufs {
        match all.last_mut() {
            Some(last) if last.ptr.wrapping_add(last.len) == buf.ptr => last.len += buf.len,
            _ => all.push(buf),
        }
    }
    all
}

/// The same list as std's slices for reading from.
fn as_io_slices<'s>(bufs: &'s [MemSlice<'_>]) -> &'s [IoSlice<'s>] {
    // SAFETY:
    // - `MemSlice` and `IoSlice` are both an iovec (asserted above), so the array has the right layout.
    // - The slices are only handed to the kernel, which reads the memory; no Rust code looks through them.
    unsafe { std::slice::from_raw_parts(bufs.as_ptr().cast(), bufs.len()) }
}

/// preadv(2) into shared memory: bytes read, fewer than asked for at the end of the file, for a signal or with more than
/// 1024 pieces.
pub fn preadv(fd: impl AsFd, bufs: &[MemSlice<'_>], offset: u64) -> io::Result<usize> {
    let mut iovecs = joined(bufs.iter().copied());
    // SAFETY:
    // - `MemSlice` and `IoSliceMut` are both an iovec (asserted above), so the array has the right layout; it is our own copy.
    // - The slices are only handed to the kernel, which writes the memory; no Rust code looks through them, so the
    //   references in them are never used as references.
    let slices: &mut [IoSliceMut<'_>] =
        unsafe { std::slice::from_raw_parts_mut(iovecs.as_mut_ptr().cast(), iovecs.len()) };
    Ok(rustix::io::retry_on_intr(|| rustix::io::preadv(&fd, slices, offset))?)
}

/// pwritev(2) from shared memory: bytes written, fewer than asked for in rare cases or with more than 1024 pieces.
pub fn pwritev(fd: impl AsFd, bufs: &[MemSlice<'_>], offset: u64) -> io::Result<usize> {
    let iovecs = joined(bufs.iter().copied());
    Ok(rustix::io::retry_on_intr(|| rustix::io::pwritev(&fd, as_io_slices(&iovecs), offset))?)
}

/// writev(2) of `head` and then shared memory: for a message with content of a cache behind its header.
pub fn writev(fd: impl AsFd, head: &[u8], bufs: &[MemSlice<'_>]) -> io::Result<usize> {
    let head = MemSlice { ptr: head.as_ptr().cast_mut(), len: head.len(), life: PhantomData };
    let iovecs = joined(std::iter::once(head).chain(bufs.iter().copied()));
    Ok(rustix::io::retry_on_intr(|| rustix::io::writev(&fd, as_io_slices(&iovecs)))?)
}
