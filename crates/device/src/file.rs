//! An image file or a block device.

use std::fs::{File, Metadata};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use extant_sync::{Mutex, Rank};
use extant_sys::{DeviceMemory, MemSlice, blkdev};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::live::{self, Live};
use crate::{BlockDevice, DirectAccess, check_range, errno, total, total_mem};

/// An image file or block device that is open, and ours alone if for writing.
#[derive(Debug)]
pub struct FileDevice {
    /// What it was opened as; the advisory lock is on this one.
    file: Arc<File>,
    /// Opened for writing after it was opened for reading.
    writable: OnceLock<File>,
    /// Loop devices of the caller's own, to which the file is attached.
    own_loops: Mutex<Vec<PathBuf>>,
    path: PathBuf,
    size: u64,
    sector: u32,
    read_only: bool,
    block_device: bool,
    live: Option<Live>,
}

impl Drop for FileDevice {
    /// Lets go of the advisory lock itself: a child between fork and exec has a copy of the file, and closing only ours would leave
    /// the lock with that one.
    fn drop(&mut self) {
        let _closed_anyway = self.unlock();
    }
}

/// How to open a [`FileDevice`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    write: bool,
    force_read: bool,
    claimed_by_mount: bool,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else uses it.
    #[error("{} is in use: {live}", .path.display())]
    InUse {
        /// The path as given.
        path: PathBuf,
        /// How it is used.
        live: Live,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is {what}, not an image file or block device", .path.display())]
    Kind {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl OpenError {
    /// The errno that fits.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            Self::InUse { .. } => Errno::BUSY.raw_os_error(),
            Self::Kind { .. } => Errno::NOTBLK.raw_os_error(),
        }
    }
}

impl OpenOptions {
    /// For reading only, and only if nobody may write it meanwhile.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Open for writing too: then nobody else may have it open through this crate, mounted, or behind a loop device.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Open for reading although somebody may be writing to it; [`FileDevice::live`] says who. What is read may
    /// contradict itself. No effect when opened for writing.
    #[must_use]
    pub fn force_read(mut self, force: bool) -> Self {
        self.force_read = force;
        self
    }

    /// A block device opened for writing is checked, but not kept claimed: a mount that is about to be made on it claims it.
    #[must_use]
    pub fn claimed_by_mount(mut self, yes: bool) -> Self {
        self.claimed_by_mount = yes;
        self
    }

    /// Opens `path`.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when somebody else is its master; see [`Live`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<FileDevice, OpenError> {
        let path = path.as_ref();
        let fail = |source| OpenError::Io { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(fail)?;
        check_kind(path, &meta)?;
        let block_device = meta.file_type().is_block_device();
        let found = live::look(path, &meta, self.write);
        if let Some(live) = &found
            && (self.write || !self.force_read)
        {
            return Err(OpenError::InUse { path: path.to_owned(), live: live.clone() });
        }
        let file = self.open_file(path, block_device)?;
        let live = self.lock(path, &file, found)?;
        let (size, sector, device_read_only) = if block_device {
            let size = blkdev::size_bytes(&file).map_err(fail)?;
            let sector = blkdev::logical_sector_size(&file).map_err(fail)?;
            (size, sector, blkdev::is_read_only(&file).map_err(fail)?)
        } else {
            (file.metadata().map_err(fail)?.len(), 512, false)
        };
        if self.write && device_read_only {
            return Err(fail(errno(Errno::ROFS)));
        }
        Ok(FileDevice {
            file: Arc::new(file),
            writable: OnceLock::new(),
            own_loops: Mutex::new(Rank::LEAF, Vec::new()),
            path: path.to_owned(),
            size,
            sector,
            read_only: !self.write,
            block_device,
            live,
        })
    }

    fn open_file(self, path: &Path, block_device: bool) -> Result<File, OpenError> {
        // On a block device O_EXCL without O_CREAT means: nobody has it mounted or claimed (open(2)).
        let exclusive = if block_device && self.write { OFlags::EXCL } else { OFlags::empty() };
        let open = |flags: OFlags| -> io::Result<File> {
            let mut options = std::fs::OpenOptions::new();
            let file =
                options.read(true).write(self.write).custom_flags(flags.bits().cast_signed()).open(path)?;
            Ok(File::from(extant_sys::descriptor::lift(file.into())))
        };
        let claimed = open(exclusive).and_then(|file| {
            if !self.claimed_by_mount {
                return Ok(file);
            }
            drop(file);
            open(OFlags::empty())
        });
        claimed.map_err(|source| match source.raw_os_error() {
            Some(code) if block_device && code == Errno::BUSY.raw_os_error() => {
                OpenError::InUse { path: path.to_owned(), live: Live::Claimed }
            }
            _ => OpenError::Io { path: path.to_owned(), source },
        })
    }

    fn lock(self, path: &Path, file: &File, found: Option<Live>) -> Result<Option<Live>, OpenError> {
        let operation = if self.write {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match rustix::fs::flock(file, operation) {
            Ok(()) => Ok(found),
            Err(Errno::WOULDBLOCK) if !self.write && self.force_read => {
                Ok(Some(found.unwrap_or(Live::Locked)))
            }
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse { path: path.to_owned(), live: Live::Locked }),
            Err(e) => Err(OpenError::Io { path: path.to_owned(), source: errno(e) }),
        }
    }
}

fn check_kind(path: &Path, meta: &Metadata) -> Result<(), OpenError> {
    let kind = meta.file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a FIFO"
    } else {
        "a socket"
    };
    Err(OpenError::Kind { path: path.to_owned(), what })
}

impl FileDevice {
    /// Lets go of the advisory lock: the caller uses the device no more, others may from now on.
    ///
    /// # Errors
    /// The system's.
    pub fn unlock(&self) -> io::Result<()> {
        rustix::fs::flock(&self.file, FlockOperation::Unlock).map_err(errno)
    }

    /// Makes (or empties) the image file `path` with `size` bytes of zeros, all sparse, and opens it for writing. A block
    /// device is opened as it is and must be large enough.
    ///
    /// # Errors
    /// As [`OpenOptions::open`]; a file in use is left as it is.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let fail = |source| OpenError::Io { path: path.to_owned(), source };
        if !path.exists() {
            std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(fail)?;
        }
        let mut device = OpenOptions::new().write(true).open(path)?;
        if device.block_device {
            if device.size < size {
                return Err(fail(errno(Errno::NOSPC)));
            }
        } else {
            device.file.set_len(0).map_err(fail)?;
            device.file.set_len(size).map_err(fail)?;
            device.size = size;
        }
        Ok(device)
    }

    /// `size` bytes of zeros in memory that can be mapped (a memory file).
    ///
    /// # Errors
    /// The system's.
    pub fn in_memory(size: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("extant-device", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(extant_sys::descriptor::lift(file));
        file.set_len(size)?;
        Ok(Self {
            file: Arc::new(file),
            writable: OnceLock::new(),
            own_loops: Mutex::new(Rank::LEAF, Vec::new()),
            path: PathBuf::from("(memory)"),
            size,
            sector: 512,
            read_only: false,
            block_device: false,
            live: None,
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device rather than an image file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Who else uses it, when it was opened with [`OpenOptions::force_read`] nevertheless.
    #[must_use]
    pub fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    /// The open file, for attaching it elsewhere. Its lock goes with the last copy.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Says that the image file is attached to this loop device by the caller himself, which keeps nobody from writing.
    pub fn add_own_loop(&self, path: PathBuf) {
        self.own_loops.lock().push(path);
    }

    /// What is read and written.
    fn io(&self) -> &File {
        self.writable.get().unwrap_or(&self.file)
    }

    /// Makes the shared advisory lock one that excludes everybody else; it stays shared where that fails.
    fn lock_alone(&self) -> io::Result<()> {
        let shared = FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            let _ = rustix::fs::flock(&self.file, shared);
            if e == Errno::WOULDBLOCK { errno(Errno::BUSY) } else { errno(e) }
        })?;
        let own = self.own_loops.lock().clone();
        if live::attached_elsewhere(&self.path, &self.file.metadata()?, &own) {
            let _ = rustix::fs::flock(&self.file, shared);
            return Err(errno(Errno::BUSY));
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_read_only() {
            return Err(errno(Errno::ROFS));
        }
        check_range(self.size, offset, len)
    }

    fn punch(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(self.io(), mode | FallocateFlags::KEEP_SIZE, offset, len)
        })?)
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(len.min(1 << 20)).expect("at most 1 MiB")];
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let n = usize::try_from((end - at).min(zeros.len() as u64)).expect("at most 1 MiB");
            self.io().write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }

    fn not_supported(error: &io::Error) -> bool {
        matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL))
    }
}

/// The buffers that are left after `done` bytes, the first one cut.
fn rest_of<'a>(bufs: &[MemSlice<'a>], mut done: usize) -> Vec<MemSlice<'a>> {
    let mut rest = Vec::with_capacity(bufs.len());
    for buf in bufs {
        let skip = done.min(buf.len());
        done -= skip;
        if skip < buf.len() {
            rest.push(buf.slice(skip, buf.len() - skip));
        }
    }
    rest
}

/// Calls `step` until all buffers are done; it returns the bytes it moved.
fn all_of(
    bufs: &[MemSlice<'_>],
    offset: u64,
    mut step: impl FnMut(&[MemSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    /// As many as the kernel takes in one call.
    const MOST: usize = 1024;
    let mut at = offset;
    for part in bufs.chunks(MOST) {
        let want = total_mem(part);
        let mut done = step(part, at)?;
        while done < want {
            let moved = step(&rest_of(part, done), at + done as u64)?;
            if moved == 0 {
                // The file became shorter than it was when opened.
                return Err(errno(Errno::IO));
            }
            done += moved;
        }
        at += want as u64;
    }
    Ok(())
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn logical_sector_size(&self) -> u32 {
        self.sector
    }

    fn is_read_only(&self) -> bool {
        self.read_only && self.writable.get().is_none()
    }

    fn may_turn_writable(&self) -> bool {
        !self.is_read_only() || (!self.block_device && self.live.is_none())
    }

    fn make_writable(&self) -> io::Result<()> {
        if !self.is_read_only() {
            return Ok(());
        }
        if !self.may_turn_writable() {
            return Err(errno(Errno::ROFS));
        }
        let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(itself)?;
        let file = File::from(extant_sys::descriptor::lift(file.into()));
        self.lock_alone()?;
        // Somebody else's is refused; one that is set twice at a time is the same file.
        let _ = self.writable.set(file);
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        match self.io().read_exact_at(buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(errno(Errno::IO)),
            result => result,
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        self.io().write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        check_range(self.size, offset, total(bufs))?;
        let slices: Vec<_> = bufs.iter_mut().map(|b| MemSlice::from_mut(b)).collect();
        all_of(&slices, offset, |bufs, at| extant_sys::preadv(self.io(), bufs, at))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.check_write(offset, total(bufs))?;
        let mut at = offset;
        for part in bufs.chunks(1024) {
            let want: usize = part.iter().map(|b| b.len()).sum();
            let done = rustix::io::retry_on_intr(|| rustix::io::pwritev(self.io(), part, at))?;
            if done < want {
                self.write_rest(part, at, done)?;
            }
            at += want as u64;
        }
        Ok(())
    }

    fn read_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        check_range(self.size, offset, total_mem(bufs) as u64)?;
        all_of(bufs, offset, |bufs, at| extant_sys::preadv(self.io(), bufs, at))
    }

    fn write_mem_at(&self, offset: u64, bufs: &[MemSlice<'_>]) -> io::Result<()> {
        self.check_write(offset, total_mem(bufs) as u64)?;
        all_of(bufs, offset, |bufs, at| extant_sys::pwritev(self.io(), bufs, at))
    }

    fn flush(&self) -> io::Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fdatasync(self.io()))?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if self.block_device {
            return blkdev::discard(self.io(), offset, len);
        }
        self.punch(FallocateFlags::PUNCH_HOLE, offset, len)
    }

    fn makes_zeros(&self) -> bool {
        !self.block_device
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if self.block_device {
            return match blkdev::zero_out(self.io(), offset, len) {
                // BLKZEROOUT wants whole sectors.
                Err(e) if Self::not_supported(&e) => self.write_zero_bytes(offset, len),
                result => result,
            };
        }
        match self.punch(FallocateFlags::PUNCH_HOLE, offset, len) {
            Err(e) if Self::not_supported(&e) => self.write_zero_bytes(offset, len),
            result => result,
        }
    }

    fn advise(&self, offset: u64, len: u64) {
        if let Some(len) = std::num::NonZeroU64::new(len) {
            // A hint: if the system does not want it, nothing is lost.
            let _ = rustix::fs::fadvise(self.io(), offset, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    /// A file that is open for writing; none of a block device, whose mappings are of its cache, which it may drop.
    fn direct_access(&self) -> Option<DirectAccess> {
        if self.block_device || self.read_only {
            return None;
        }
        DeviceMemory::new(Arc::clone(&self.file), self.size).ok().map(DirectAccess::new)
    }
}

impl FileDevice {
    /// What a short vectored write left.
    fn write_rest(&self, bufs: &[IoSlice<'_>], offset: u64, mut done: usize) -> io::Result<()> {
        let mut at = offset;
        for buf in bufs {
            let skip = done.min(buf.len());
            done -= skip;
            if skip < buf.len() {
                self.io().write_all_at(&buf[skip..], at + skip as u64)?;
            }
            at += buf.len() as u64;
        }
        Ok(())
    }
}
