//! The program's memory: strings, buffers, structures, and messages to whoever runs it.

use std::ffi::{CStr, c_char, c_void};

use libc::{c_int, iovec};

use crate::abi::Errno;

/// Says something on standard error, past everything that is served.
pub(crate) fn complain(what: &str) {
    let line = format!("extant_preload: {what}\n");
    // SAFETY: the buffer and its length belong together; a raw system call cannot be served by ourselves.
    unsafe { libc::syscall(libc::SYS_write, 2, line.as_ptr(), line.len()) };
}

/// The bytes of a C string; EFAULT for a null pointer.
///
/// # Safety
/// Not null means a valid C string that outlives its use.
pub(crate) unsafe fn string<'a>(text: *const c_char) -> Result<&'a [u8], Errno> {
    if text.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Stores a value in the program's memory; EFAULT for a null pointer.
///
/// # Safety
/// Not null means valid for a write of `T`.
pub(crate) unsafe fn store<T>(place: *mut T, value: T) -> Result<(), Errno> {
    if place.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise; C structures may come unaligned.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// Loads a value from the program's memory; EFAULT for a null pointer.
///
/// # Safety
/// Not null means valid for a read of an initialised `T`.
pub(crate) unsafe fn load<T: Copy>(place: *const T) -> Result<T, Errno> {
    if place.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { place.read_unaligned() })
}

/// A buffer of the program: an address and a length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    base: *mut u8,
    len: usize,
}

impl Buffer {
    /// # Safety
    /// Valid for reads, and where it is filled for writes, of `len` bytes until the call that it came with returns.
    pub(crate) unsafe fn new(base: *const c_void, len: usize) -> Result<Self, Errno> {
        if len > isize::MAX as usize {
            return Err(Errno(libc::EINVAL));
        }
        if base.is_null() && len > 0 {
            return Err(Errno(libc::EFAULT));
        }
        Ok(Self { base: base.cast::<u8>().cast_mut(), len })
    }

    /// As the structure of vectored calls.
    pub(crate) fn as_iovec(self) -> iovec {
        iovec { iov_base: self.base.cast(), iov_len: self.len }
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Calls `f` with the buffer's bytes; with fewer, as a system call that meets a page it cannot have does, where part of the
    /// buffer is mapped and past its file's end. EFAULT if that is where it begins.
    pub(crate) fn with<R>(self, f: impl FnOnce(&[u8]) -> Result<R, Errno>) -> Result<R, Errno> {
        if self.len == 0 {
            return f(&[]);
        }
        if self.is_mapped() {
            return f(&self.copy_of_mapping()?);
        }
        // SAFETY: valid for reads by the promise of `new`; it is not memory of one of our mappings, which others write.
        f(unsafe { std::slice::from_raw_parts(self.base, self.len) })
    }

    /// Calls `f` with the buffer to be filled; what it says that it has filled is the program's then.
    pub(crate) fn fill(self, f: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
        if self.len == 0 {
            return f(&mut []);
        }
        if self.is_mapped() {
            let mut bounce = vec![0; self.len];
            let filled = f(&mut bounce)?;
            return self.copy_into_mapping(&bounce[..filled]);
        }
        // SAFETY: valid for writes by the promise of `new`; it is not memory of one of our mappings.
        f(unsafe { std::slice::from_raw_parts_mut(self.base, self.len) })
    }

    /// Whether any of it lies in a mapping of ours: then it is copied before the filesystem is entered, because filling a page
    /// of it may need locks that the call holds.
    fn is_mapped(self) -> bool {
        crate::calls::overlaps_mapping(self.base, self.len)
    }

    /// The bytes of a buffer that lies in a mapping. The page faults that this may take are answered by other threads; this one
    /// holds no lock of the filesystem's.
    fn copy_of_mapping(self) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; self.len];
        let n = copy_with_faults(bytes.as_mut_ptr(), self.base, self.len, false)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Fills a buffer that lies in a mapping; how many of the bytes there was room for.
    fn copy_into_mapping(self, bytes: &[u8]) -> Result<usize, Errno> {
        copy_with_faults(bytes.as_ptr().cast_mut(), self.base, bytes.len().min(self.len), true)
    }

    /// Copies `bytes` to byte `at` of the buffer, as far as there is room.
    pub(crate) fn copy_from(self, at: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.len.saturating_sub(at));
        if len == 0 {
            return;
        }
        // SAFETY: `at` is inside the buffer.
        let to = unsafe { self.base.add(at) };
        // SAFETY: valid for writes by the promise of `new`, `len` bytes from `at` on.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
    }

    /// Appends the buffer's bytes to `bytes`; whether all of them could be had.
    fn append_to(self, bytes: &mut Vec<u8>) -> Result<bool, Errno> {
        if self.is_mapped() {
            let copy = self.copy_of_mapping()?;
            bytes.extend_from_slice(&copy);
            return Ok(copy.len() == self.len);
        }
        let at = bytes.len();
        bytes.resize(at + self.len, 0);
        if self.len > 0 {
            // SAFETY: valid for reads by the promise of `new`, and there is room for it.
            unsafe { std::ptr::copy_nonoverlapping(self.base, bytes[at..].as_mut_ptr(), self.len) };
        }
        Ok(true)
    }
}

/// Copies between memory of ours and mapped memory (`out`: to it). Where the kernel can wait for faults it copies, since it meets a
/// page that cannot be had (past the end of the file) with an error and not with SIGBUS.
fn copy_with_faults(own: *mut u8, mapped: *mut u8, len: usize, out: bool) -> Result<usize, Errno> {
    if len == 0 {
        return Ok(0);
    }
    if !crate::calls::serves_system_calls() {
        let (from, to) = if out { (own, mapped) } else { (mapped, own) };
        // SAFETY: both are valid for `len` bytes, by the promise of `Buffer::new` and of the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        return Ok(len);
    }
    let local = iovec { iov_base: own.cast(), iov_len: len };
    let remote = iovec { iov_base: mapped.cast(), iov_len: len };
    let copy = if out { libc::process_vm_writev } else { libc::process_vm_readv };
    let process = std::process::id().cast_signed();
    // SAFETY: each list has one buffer, and both are of this process.
    let n = unsafe { copy(process, &raw const local, 1, &raw const remote, 1, 0) };
    debug_assert!(n >= 0 || crate::abi::errno() == libc::EFAULT, "errno {}", crate::abi::errno());
    usize::try_from(n).map_err(|_| Errno(libc::EFAULT))
}

/// Most buffers of one call.
const IOV_MAX: usize = 1024;

/// The buffers of a vectored call.
///
/// # Safety
/// `iov` points to `count` structures whose buffers are as [`Buffer::new`] wants them.
pub(crate) unsafe fn buffers<'a>(iov: *const iovec, count: c_int) -> Result<Buffers<'a>, Errno> {
    let count = usize::try_from(count).ok().filter(|c| *c <= IOV_MAX).ok_or(Errno(libc::EINVAL))?;
    if count == 0 {
        return Ok(Buffers { list: &[], total: 0 });
    }
    if iov.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    let list = unsafe { std::slice::from_raw_parts(iov, count) };
    let mut total = 0_usize;
    for one in list {
        total = total.checked_add(one.iov_len).ok_or(Errno(libc::EINVAL))?;
        // SAFETY: the caller's promise.
        unsafe { Buffer::new(one.iov_base, one.iov_len) }?;
    }
    if total > isize::MAX as usize {
        return Err(Errno(libc::EINVAL));
    }
    Ok(Buffers { list, total })
}

/// What [`buffers`] found: each buffer was checked.
#[derive(Clone, Copy)]
pub(crate) struct Buffers<'a> {
    list: &'a [iovec],
    total: usize,
}

impl Buffers<'_> {
    fn iter(&self) -> impl Iterator<Item = Buffer> {
        self.list.iter().map(|one| Buffer { base: one.iov_base.cast(), len: one.iov_len })
    }

    /// The only buffer that is not empty, if there is only one (or none).
    fn single(&self) -> Option<Buffer> {
        let mut filled = self.iter().filter(|b| b.len > 0);
        let first = filled.next().unwrap_or(Buffer { base: std::ptr::null_mut(), len: 0 });
        filled.next().is_none().then_some(first)
    }

    /// Calls `f` with the bytes of all buffers, one after the other; up to the first that cannot be had, as [`Buffer::with`].
    pub(crate) fn with<R>(&self, f: impl FnOnce(&[u8]) -> Result<R, Errno>) -> Result<R, Errno> {
        match self.single() {
            Some(buffer) => buffer.with(f),
            None => with_room(|room| {
                for buffer in self.iter() {
                    match buffer.append_to(room) {
                        Ok(true) => {}
                        Err(errno) if room.is_empty() => return Err(errno),
                        Ok(false) | Err(_) => break,
                    }
                }
                f(room)
            }),
        }
    }

    /// Calls `f` with room for all buffers, and distributes what it says that it has filled.
    pub(crate) fn fill(&self, f: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, Errno> {
        match self.single() {
            Some(buffer) => buffer.fill(f),
            None => with_room(|room| {
                room.resize(self.total, 0);
                let filled = f(room)?;
                let mut left = &room[..filled];
                for buffer in self.iter() {
                    let (now, later) = left.split_at(left.len().min(buffer.len));
                    if buffer.is_mapped() {
                        let before = filled - left.len();
                        // What went into the buffers before it is the program's.
                        let copied = match buffer.copy_into_mapping(now) {
                            Err(_) if before > 0 => 0,
                            copied => copied?,
                        };
                        if copied < now.len() {
                            return Ok(before + copied);
                        }
                    } else {
                        buffer.copy_from(0, now);
                    }
                    left = later;
                }
                Ok(filled)
            }),
        }
    }
}

/// Bytes of room that a thread keeps.
const ROOM_KEPT: usize = 1 << 20;

/// Calls `f` with an empty vector of this thread, which keeps its memory for the next call.
pub(crate) fn with_room<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    thread_local! {
        static ROOM: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    // A thread that ends has none any more.
    let mut room = ROOM.try_with(std::cell::RefCell::take).unwrap_or_default();
    room.clear();
    let done = f(&mut room);
    if room.capacity() <= ROOM_KEPT {
        let _ = ROOM.try_with(|place| place.replace(room));
    }
    done
}

/// The size that getxattr(2) and readlink-like calls copy: `value` into a buffer of the program; its length alone where the
/// program gave no room.
pub(crate) fn copy_value(value: &[u8], to: Buffer) -> Result<usize, Errno> {
    if to.len() == 0 {
        return Ok(value.len());
    }
    if value.len() > to.len() {
        return Err(Errno(libc::ERANGE));
    }
    to.copy_from(0, value);
    Ok(value.len())
}
