//! Whether pages were stored to: write protection that the kernel lifts by itself, at the first store to each page, and PAGEMAP_SCAN, which
//! finds where it did, and protects those again. Any mapping of a file can be watched, by any process.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};

use super::{
    API, ApiArg, FEATURE_PAGEFAULT_FLAG_WP, FEATURE_WP_HUGETLBFS_SHMEM, PROTECT_WP, ProtectArg, REGISTER_WP,
    RangeArg, RegisterArg, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_WRITEPROTECT, USER_MODE_ONLY, Uffd,
};

const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const FEATURES: u64 =
    FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;

const PAGEMAP_SCAN: Opcode = opcode::read_write::<ScanArg>(b'f', 16);
/// `PM_SCAN_WP_MATCHING`: what is found is protected.
const PROTECT_FOUND: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: an error for memory that is not watched.
const WATCHED_ONLY: u64 = 1 << 1;
/// `PAGE_IS_WRITTEN`, `PAGE_IS_PRESENT`.
const IS_WRITTEN: u64 = 1 << 1;
const IS_PRESENT: u64 = 1 << 3;

/// Runs of pages that one call tells of.
const RUNS: usize = 64;

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<Region>() == 24 && size_of::<ScanArg>() == 96);

/// Watches memory of this process.
pub(crate) struct Watch {
    fd: OwnedFd,
    pagemap: File,
}

impl Watch {
    /// The one of the process; `None` on a kernel that cannot (before Linux 6.7).
    pub(crate) fn of_process() -> Option<&'static Self> {
        static WATCH: OnceLock<Option<Watch>> = OnceLock::new();
        WATCH.get_or_init(|| Self::open().ok()).as_ref()
    }

    fn open() -> io::Result<Self> {
        // No fault is reported to it: it needs no rights.
        let fd = Uffd::from_call(USER_MODE_ONLY)?;
        let mut arg = ApiArg { api: API.into(), features: FEATURES, ioctls: 0 };
        // SAFETY: UFFDIO_API takes a pointer to a `struct uffdio_api`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_API, ApiArg>::new(&mut arg) };
        // SAFETY: as above.
        unsafe { ioctl(&fd, call) }?;
        let watch = Self { fd: crate::descriptor::lift(fd), pagemap: File::open("/proc/self/pagemap")? };
        // Whether there is PAGEMAP_SCAN at all.
        watch.scan(&(0..0), IS_PRESENT, 0)?;
        Ok(watch)
    }

    /// Begins to watch memory. Whether any of it is there already, and so may have been stored to before.
    ///
    /// # Safety
    /// The range is one mapping of a file that the caller owns, and is under no other descriptor's rule.
    pub(crate) unsafe fn begin(&self, range: &Range<usize>) -> io::Result<bool> {
        let mut arg = RegisterArg { range: RangeArg::of(range), mode: REGISTER_WP, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER takes a pointer to a `struct uffdio_register`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_REGISTER, RegisterArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        unsafe { ioctl(&self.fd, call) }?;
        let mut arg = ProtectArg { range: RangeArg::of(range), mode: PROTECT_WP };
        // SAFETY: UFFDIO_WRITEPROTECT takes a pointer to a `struct uffdio_writeprotect`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_WRITEPROTECT, ProtectArg>::new(&mut arg) };
        // SAFETY: the caller's promise; the kernel lets every store through.
        unsafe { ioctl(&self.fd, call) }?;
        // Afterwards: a store before is to a page that is there.
        self.scan(range, IS_PRESENT, 0)
    }

    /// Whether any page of memory that is watched was stored to since it was asked last.
    pub(crate) fn stored(&self, range: &Range<usize>) -> io::Result<bool> {
        self.scan(range, IS_WRITTEN, PROTECT_FOUND | WATCHED_ONLY)
    }

    /// Whether there are pages of a kind.
    fn scan(&self, range: &Range<usize>, kind: u64, flags: u64) -> io::Result<bool> {
        let mut found = false;
        let mut at = range.start as u64;
        loop {
            let mut runs = [Region::default(); RUNS];
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags,
                start: at,
                end: range.end as u64,
                vec: runs.as_mut_ptr().expose_provenance() as u64,
                vec_len: RUNS as u64,
                category_mask: kind,
                return_mask: kind,
                ..ScanArg::default()
            };
            // SAFETY:
            // - The command reads and writes the argument, and writes at most `vec_len` elements of `runs`, which live on.
            // - Of memory it changes the protection alone that is lifted at the next store.
            found |= unsafe { ioctl(&self.pagemap, Scan(&mut arg)) }? > 0;
            if arg.walk_end >= range.end as u64 {
                return Ok(found);
            }
            if arg.walk_end <= at {
                return Err(Errno::IO.into());
            }
            at = arg.walk_end;
        }
    }
}

/// `PAGEMAP_SCAN`: the answer is the return value.
struct Scan<'a>(&'a mut ScanArg);

// SAFETY:
// - The argument is a `struct pm_scan_arg`, which the command reads and writes.
// - The output is the system call's return value, a number.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0))
    }
}
