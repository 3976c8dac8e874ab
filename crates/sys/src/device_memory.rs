//! The bytes of a device's file as memory: copied from a view, and shown in mappings of files that live on it.
//!
//! What pwrite(2) changes in the file is seen in the view and in every mapping at once, and what a mapping stores is read by pread(2):
//! they are the same pages. Bytes are written to the file, never through the view, so that a write that cannot be is an error and not a
//! signal. They are read through the view where the pages stay once they are there, in memory files and on tmpfs; elsewhere an error
//! of the disk below would be a signal, and pread(2) is used.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::MemSlice;

/// Bytes of one mapping of the view.
const VIEW: u64 = 256 << 20;
/// Bytes that are brought in at a time.
const PIECE: u64 = 64 << 10;
/// `f_type` of tmpfs, and of memory files.
const TMPFS: i64 = 0x0102_1994;

/// MAP_SHARED_VALIDATE with MAP_SYNC, of which the first has both bits of MAP_SHARED and MAP_PRIVATE.
pub(crate) const SYNC: MapFlags = MapFlags::SHARED_VALIDATE.union(MapFlags::SYNC);

/// A device's file that can be mapped.
pub struct DeviceMemory {
    file: Arc<File>,
    size: u64,
    steady: bool,
    /// The kernel maps it with MAP_SYNC.
    maps_sync: bool,
    views: Mutex<BTreeMap<u64, Arc<View>>>,
}

/// A part of the file, mapped for loads.
struct View {
    start: NonNull<u8>,
    len: usize,
    /// The pieces whose pages are there, by bit.
    there: Box<[AtomicU64]>,
}

// SAFETY: the pointer is to a mapping that the value owns; the memory is only reached through `MemSlice`, whose accesses may race.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl DeviceMemory {
    /// Over a regular file of `size` bytes that is open for reading and writing, and whose size does not change.
    ///
    /// # Errors
    /// The system's: such a file cannot be mapped.
    pub fn new(file: Arc<File>, size: u64) -> io::Result<Arc<Self>> {
        // Of a file with a name somebody else may cut something off, and its filesystem may be full: a load would be a signal.
        let steady = fstatfs(&file)?.f_type == TMPFS && fstat(&file)?.st_nlink == 0;
        let len = rustix::param::page_size();
        let look = |flags| -> io::Result<()> {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
            let start = unsafe { mmap(ptr::null_mut(), len, protection, flags, &file, 0) }?;
            // SAFETY: exactly the mapping just made, to which nothing refers.
            Ok(unsafe { munmap(start, len) }?)
        };
        // Whether it can be mapped at all, and what the kernel says of persistent memory.
        look(MapFlags::SHARED)?;
        let maps_sync = look(SYNC).is_ok();
        Ok(Arc::new(Self { file, size, steady, maps_sync, views: Mutex::new(BTreeMap::new()) }))
    }

    /// Whether the kernel maps the file with MAP_SYNC: it is in DAX mode on a filesystem that is on persistent memory.
    #[must_use]
    pub fn maps_sync(&self) -> bool {
        self.maps_sync
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies the bytes from `at` on; all of `buf`.
    ///
    /// # Errors
    /// EIO past the end; the system's.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else { return Err(io::Error::from_raw_os_error(5)) };
        if !self.steady {
            return self.file.read_exact_at(buf, at);
        }
        let mut from = at;
        while from < end {
            let (number, inside) = (from / VIEW, from % VIEW);
            let n = (VIEW - inside).min(end - from);
            let view = self.view(number)?;
            if view.bring(inside, n).is_err() {
                self.file.read_exact_at(&mut buf[(from - at) as usize..], from)?;
                return Ok(());
            }
            let part = &mut buf[(from - at) as usize..(from - at + n) as usize];
            view.memory().copy_to(inside as usize, part);
            from += n;
        }
        Ok(())
    }

    /// Writes all of `buf` to the bytes from `at` on.
    ///
    /// # Errors
    /// EIO past the end; the system's.
    pub fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.write_all_at(buf, at)
    }

    fn view(&self, number: u64) -> io::Result<Arc<View>> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(&number) {
            return Ok(Arc::clone(view));
        }
        let len = (self.size - number * VIEW).min(VIEW) as usize;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let start = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &self.file, number * VIEW)
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(12))?;
        let words = (len as u64).div_ceil(PIECE).div_ceil(64) as usize;
        let view = Arc::new(View { start, len, there: (0..words).map(|_| AtomicU64::new(0)).collect() });
        views.insert(number, Arc::clone(&view));
        Ok(view)
    }
}

impl View {
    /// All of it. Only for copies out.
    fn memory(&self) -> MemSlice<'_> {
        // SAFETY:
        // - The mapping lives as long as `self`; it is readable, and callers only read.
        // - No reference into it exists; what others change meanwhile, a copy tolerates.
        unsafe { MemSlice::from_raw(self.start.as_ptr(), self.len) }
    }

    /// Sees to it that the pages of a range are there: a load that could not be served would be a signal.
    fn bring(&self, at: u64, len: u64) -> io::Result<()> {
        for piece in at / PIECE..(at + len).div_ceil(PIECE) {
            let (word, bit) = (&self.there[(piece / 64) as usize], 1 << (piece % 64));
            if word.load(Ordering::Acquire) & bit != 0 {
                continue;
            }
            let from = (piece * PIECE) as usize;
            let len = (self.len - from).min(PIECE as usize);
            // SAFETY: inside of the mapping.
            let start = unsafe { self.start.add(from) };
            // SAFETY: a part of an own mapping; the advice changes nothing of its content.
            unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxPopulateRead) }?;
            word.fetch_or(bit, Ordering::AcqRel);
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: exactly a mapping of this object, to which nothing refers any more.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
    }
}

impl AsFd for DeviceMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes)", self.size)
    }
}
