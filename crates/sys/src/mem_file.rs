//! A file in memory that a program may have mapped: the pages of one inode, seen by the filesystem through a view of its own.
//!
//! The view is mapped in windows as pages are asked for. It is registered with nothing: what the filesystem does through it
//! is no fault of anybody's, and touching a page that the file does not have yet makes it, full of zeros.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, ftruncate, memfd_create, openat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::page_pool::PageMem;

/// Bytes of a window: few of them for a large file, and little page table for a small one.
const WINDOW: u64 = 256 << 20;

/// A memory file of pages of one size.
pub struct MemFile {
    fd: OwnedFd,
    page_size: usize,
    /// It is in a directory whose filesystem may be full: pages get their memory before they are touched.
    bounded: bool,
    /// Bytes of the file, never more than it has.
    size: AtomicU64,
    /// Start of each window of the view, by number.
    windows: Mutex<BTreeMap<u64, NonNull<u8>>>,
}

// SAFETY: the pointers are to mappings that the file owns; they are only looked up under the mutex, and the memory is only
// reached through `MemSlice`, whose accesses may race.
unsafe impl Send for MemFile {}
// SAFETY: as above.
unsafe impl Sync for MemFile {}

impl MemFile {
    /// An empty memory file, called `name` in `/proc`.
    ///
    /// # Errors
    /// The system's, when it has no descriptor left.
    ///
    /// # Panics
    /// Unless `page_size` is a power of two from 4096 to 2 MiB.
    pub fn new(name: &str, page_size: usize) -> io::Result<Arc<Self>> {
        Ok(Self::over(memfd_create(name, MemfdFlags::CLOEXEC)?, page_size, false))
    }

    /// The same as a file without a name in a directory of a tmpfs, which may have huge pages where the system's own has none.
    ///
    /// # Errors
    /// The system's; EOPNOTSUPP where the directory's filesystem has no files without a name.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn in_dir(dir: &Path, page_size: usize) -> io::Result<Arc<Self>> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = openat(rustix::fs::CWD, dir, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self::over(fd, page_size, true))
    }

    fn over(fd: OwnedFd, page_size: usize, bounded: bool) -> Arc<Self> {
        assert!(
            page_size.is_power_of_two() && (4096..=2 << 20).contains(&page_size),
            "page size {page_size}"
        );
        let windows = Mutex::new(BTreeMap::new());
        let size = AtomicU64::new(0);
        Arc::new(Self { fd: crate::descriptor::lift(fd), page_size, bounded, size, windows })
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Makes the file `size` bytes long. Whoever has the file mapped gets SIGBUS for pages wholly past that; so does who uses a
    /// [`PageMem`] past it, and the caller sees to it that nobody does.
    ///
    /// # Errors
    /// The system's.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        self.size.fetch_min(size, Ordering::AcqRel);
        ftruncate(&self.fd, size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// The memory of page `index` in the filesystem's view. It stays what it is when the value is dropped: [`Self::discard`] gives
    /// it back. There may be several values of one page.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end of the file; the system's, when the view cannot be mapped.
    pub fn page(self: &Arc<Self>, index: u32) -> io::Result<PageMem> {
        let at = u64::from(index) * self.page_size as u64;
        // The system has all of the page with the last byte.
        let end = self.size.load(Ordering::Acquire).next_multiple_of(rustix::param::page_size() as u64);
        if at + self.page_size as u64 > end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.bounded {
            // Without it the first touch of a page on a full filesystem would be a signal to this process.
            fallocate(&self.fd, FallocateFlags::KEEP_SIZE, at, self.page_size as u64)?;
        }
        let window = self.window(at / WINDOW)?;
        let inside = (at % WINDOW) as usize;
        // SAFETY: `inside` is less than the window's length, and pages do not cross windows (both are powers of two).
        let ptr = unsafe { window.add(inside) };
        Ok(PageMem::of_file(ptr, Arc::clone(self)))
    }

    /// Makes pages that the file does not have yet, full of zeros, and has them at hand in the view: one call costs less than touching
    /// them one by one. Advice: what it could not do is done, or fails, where a page is touched.
    pub fn populate(&self, pages: Range<u32>) {
        let size = self.page_size as u64;
        let (mut at, end) = (u64::from(pages.start) * size, u64::from(pages.end) * size);
        while at < end {
            let (number, inside) = (at / WINDOW, (at % WINDOW) as usize);
            let len = (end - at).min(WINDOW - inside as u64) as usize;
            let Ok(window) = self.window(number) else { return };
            // SAFETY: `inside` is less than the window's length.
            let start = unsafe { window.add(inside) };
            // SAFETY: a part of a window, and the advice changes nothing of its content; past the end of the file it fails.
            if unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxPopulateWrite) }.is_err() {
                return;
            }
            at += len as u64;
        }
    }

    /// Takes pages out of the file and out of every mapping of it.
    ///
    /// # Errors
    /// The system's.
    pub fn discard(&self, pages: Range<u32>) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        let size = self.page_size as u64;
        let (at, len) = (u64::from(pages.start) * size, u64::from(pages.end - pages.start) * size);
        Ok(fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?)
    }

    fn window(&self, number: u64) -> io::Result<NonNull<u8>> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = windows.get(&number) {
            return Ok(*start);
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let mapped = unsafe {
            mmap(ptr::null_mut(), WINDOW as usize, prot, MapFlags::SHARED, &self.fd, number * WINDOW)
        }?;
        let start = NonNull::new(mapped.cast()).ok_or_else(|| io::Error::from_raw_os_error(12))?;
        windows.insert(number, start);
        Ok(start)
    }
}

impl AsFd for MemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let windows = self.windows.get_mut().unwrap_or_else(PoisonError::into_inner);
        for start in std::mem::take(windows).into_values() {
            // SAFETY: the range is exactly a mapping that this file made; every `PageMem` of it holds a reference of the file, so
            // none is left.
            let result = unsafe { munmap(start.as_ptr().cast(), WINDOW as usize) };
            debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
        }
    }
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemFile({} bytes a page)", self.page_size)
    }
}
