//! Memory for the pages of a cache: carved from large pieces, recycled, never given to two owners.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::MemSlice;
use crate::mem_file::MemFile;

/// Bytes of a piece: what a processor maps with one entry, so that touching it first costs one fault, not 512.
const SLAB: usize = 2 << 20;

/// Hands out page memory of one size. What was handed out keeps the pool's memory alive.
#[derive(Clone)]
pub struct PagePool(Arc<Inner>);

struct Inner {
    page_size: usize,
    free: Mutex<Free>,
}

struct Free {
    pages: Vec<NonNull<u8>>,
    slabs: Vec<NonNull<u8>>,
}

// SAFETY: the pointers are to memory that the pool owns and no thread has a special right to; they are only moved in and
// out of lists under the mutex.
unsafe impl Send for Free {}

/// The memory of one page. Its content is whatever the last owner left: never show it before it is filled.
pub struct PageMem {
    ptr: NonNull<u8>,
    home: Home,
}

/// Whose memory it is.
enum Home {
    Pool(Arc<Inner>),
    File(Arc<MemFile>),
}

// SAFETY: the memory lives as long as its home, and is only reached through `MemSlice`, whose accesses may race.
unsafe impl Send for PageMem {}
// SAFETY: as above.
unsafe impl Sync for PageMem {}

impl PagePool {
    /// A pool of pages of `page_size` bytes.
    ///
    /// # Panics
    /// Unless `page_size` is a power of two from 4096 to 2 MiB.
    #[must_use]
    pub fn new(page_size: usize) -> Self {
        assert!(page_size.is_power_of_two() && (4096..=SLAB).contains(&page_size), "page size {page_size}");
        let free = Free { pages: Vec::new(), slabs: Vec::new() };
        Self(Arc::new(Inner { page_size, free: Mutex::new(free) }))
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.0.page_size
    }

    /// Memory for one page.
    #[must_use]
    pub fn take(&self) -> PageMem {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.pages.is_empty() {
            free.grow(self.0.page_size);
        }
        let ptr = free.pages.pop().expect("just grown");
        PageMem { ptr, home: Home::Pool(Arc::clone(&self.0)) }
    }

    /// Appends memory for `count` pages to `into`.
    pub fn take_many(&self, count: usize, into: &mut Vec<PageMem>) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.pages.len() < count {
            free.grow(self.0.page_size);
        }
        let from = free.pages.len() - count;
        into.extend(
            free.pages.drain(from..).rev().map(|ptr| PageMem { ptr, home: Home::Pool(Arc::clone(&self.0)) }),
        );
    }

    /// Pages that can be taken without asking the system for memory.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pages.len()
    }

    /// Asks the system for one more piece.
    pub fn grow(&self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).grow(self.0.page_size);
    }

    /// Bytes that the pool has from the system.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).slabs.len() * SLAB
    }
}

/// A fresh slab, zeroed by the system when first touched, at a multiple of its size.
///
/// # Panics
/// When the system has no memory left, as any allocation.
fn map_slab() -> NonNull<u8> {
    // SAFETY: an anonymous mapping at an address of the system's choice touches nothing that exists.
    let mapped = unsafe {
        mmap_anonymous(ptr::null_mut(), 2 * SLAB, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    };
    let start = mapped.expect("memory for pages").cast::<u8>();
    let before = start.align_offset(SLAB);
    let slab = start.wrapping_add(before);
    unmap(start, before);
    unmap(slab.wrapping_add(SLAB), SLAB - before);
    // SAFETY: the range is exactly the mapping just made, and this advice changes nothing of its content; where the system
    // has no huge pages it fails, and nothing is lost.
    let _ = unsafe { madvise(slab.cast(), SLAB, Advice::LinuxHugepage) };
    NonNull::new(slab).expect("a mapping is never at address 0")
}

/// Unmaps memory of the pool's own mappings that nobody uses.
fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: only called for parts of our own mappings of which no `PageMem` exists (any more, or yet).
        let result = unsafe { munmap(start.cast(), len) };
        debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
    }
}

impl Free {
    fn grow(&mut self, page_size: usize) {
        let slab = map_slab();
        self.slabs.push(slab);
        let pages = SLAB / page_size;
        // The last one pushed is the first one taken: ascending addresses.
        for i in (0..pages).rev() {
            // SAFETY: `i * page_size` is inside the slab.
            self.pages.push(unsafe { slab.add(i * page_size) });
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for slab in free.slabs.drain(..) {
            // Every `PageMem` holds a reference of this pool, so none is left.
            unmap(slab.as_ptr(), SLAB);
        }
    }
}

impl PageMem {
    /// A page of a memory file's view.
    pub(crate) fn of_file(ptr: NonNull<u8>, file: Arc<MemFile>) -> Self {
        Self { ptr, home: Home::File(file) }
    }

    /// Whether it is a page of a memory file, which programs may have mapped.
    #[must_use]
    #[inline]
    pub fn is_of_file(&self) -> bool {
        matches!(self.home, Home::File(_))
    }

    /// The memory.
    #[must_use]
    #[inline]
    pub fn mem(&self) -> MemSlice<'_> {
        let len = match &self.home {
            Home::Pool(pool) => pool.page_size,
            Home::File(file) => file.page_size(),
        };
        // SAFETY:
        // - The pointer is to a page of a slab or of a window, which lives as long as the home, which `self` keeps alive.
        // - No reference into it is ever made: a page of the pool belongs to `self` alone, one of a file is shared with others
        //   that only reach it through `MemSlice`, the kernel, or a program's mapping.
        // - It is initialised: the system hands out zeroes.
        unsafe { MemSlice::from_raw(self.ptr.as_ptr(), len) }
    }
}

impl Drop for PageMem {
    fn drop(&mut self) {
        if let Home::Pool(pool) = &self.home {
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.pages.push(self.ptr);
        }
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PagePool({} bytes a page)", self.0.page_size)
    }
}

impl fmt::Debug for PageMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageMem")
    }
}
