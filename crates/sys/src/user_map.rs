//! Mappings of memory files into the program's memory, whose faults go to a [`Uffd`].
//!
//! | part | what |
//! |---|---|
//! | [`UserMap`] | a mapping, owned: its address, its content, unmapped when dropped |
//! | [`UserPages`] | its pages, shared: what a fault's handler and writeback do with them |
//! | `pieces` | the ranges of addresses that a mapping consists of |
//! | `poison` | pages that cannot be had, marked so |
//! | `change` | unmapping, moving, growing, protecting parts of it |
//! | `device` | windows: parts that show a device |
//! | `kernel` | what the program did without telling: what the kernel says against what we have on record |
//! | `budget` | how many of the kernel's mappings all of that takes |
//!
//! Nothing of a mapping can be reached before it is registered: it is made inaccessible and opened after that. To a fixed
//! address it is moved when that is done, so that there is no time at which an access meets an unregistered page.
//!
//! A shared mapping is registered for missing, unmapped and protected pages, whatever its protection; a private one for the first
//! two: what it stores goes to copies of its own, which no operation here takes away.
//!
//! Locks: `changing` over a change of the mapping's shape, with its system calls; then, where what the kernel says and our books are to belong
//! together, the reader's ([`Uffd::hold`]); then `state`, held shared over the ioctls of
//! installing and protecting, exclusively for a few instructions or one ioctl. None of them is held while a thread waits for the
//! reader of messages: a moved mapping is marked busy instead, and installing leaves busy pieces out.

mod budget;
mod change;
mod device;
mod kernel;
mod pieces;
mod poison;

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect, munmap};
use rustix::param::page_size;

use crate::bus::Sent;
use crate::uffd::Outcome;
use crate::vma::FileId;
use crate::{MemFile, MemSlice, Uffd};
pub use change::Target;
pub use device::{Showing, Stored, StoredMark};
pub(crate) use kernel::follow;
use pieces::{Piece, State};

/// What a program may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// Load.
    pub read: bool,
    /// Store.
    pub write: bool,
    /// Execute.
    pub exec: bool,
}

/// What is to be mapped.
#[derive(Debug, Clone, Copy)]
pub struct MapRequest {
    /// First byte of the file: a multiple of the system's page.
    pub offset: u64,
    /// Bytes, rounded up to the system's pages; not 0.
    pub len: usize,
    /// What the program may do at first.
    pub protection: Protection,
    /// Stores go to the file; otherwise to the mapping's own copies.
    pub shared: bool,
    /// The program may ask for stores to a shared mapping later: the file was opened for writing.
    pub may_write: bool,
    /// Windows of a device's file that the kernel maps with MAP_SYNC are mapped so.
    pub sync: bool,
    /// Where it would be welcome; 0: anywhere.
    pub hint: usize,
}

/// A mapping of a memory file, unmapped when dropped. Its memory may be used by any thread; an access may wait for the handler of
/// its faults, or be SIGBUS.
pub struct UserMap {
    pages: Arc<UserPages>,
}

/// The pages of a mapping. Pages are those of the memory file.
pub struct UserPages {
    id: u64,
    uffd: Arc<Uffd>,
    file: Arc<MemFile>,
    file_id: FileId,
    shared: bool,
    may_write: bool,
    sync: bool,
    /// Some page could be stored to.
    stored: AtomicBool,
    /// Of windows that have gone since somebody asked.
    stored_to_device: StoredMark,
    pub(crate) start: AtomicUsize,
    pub(crate) len: AtomicUsize,
    changing: Mutex<device::Windows>,
    state: RwLock<State>,
}

/// What came of [`UserPages::refuse_access`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The thread gets SIGBUS.
    Signalled,
    /// It does not wait there any more, for all that is known: it faults again if it still wants to store.
    Gone,
    /// It is inside of a system call, or a signal would not stop it, or that cannot be told: it still waits.
    Waits,
}

/// Numbers for mappings.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Protection {
    /// Loads and stores.
    pub const READ_WRITE: Self = Self { read: true, write: true, exec: false };
    /// Loads.
    pub const READ: Self = Self { read: true, write: false, exec: false };

    pub(crate) fn for_mprotect(self) -> MprotectFlags {
        let mut flags = MprotectFlags::empty();
        flags.set(MprotectFlags::READ, self.read);
        flags.set(MprotectFlags::WRITE, self.write);
        flags.set(MprotectFlags::EXEC, self.exec);
        flags
    }
}

impl UserMap {
    /// A number that no other mapping of this process has.
    #[must_use]
    pub fn new_id() -> u64 {
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Maps `file`; faults are messages of `uffd`. `id` is what [`user_memory::find`](crate::user_memory::find) says of its
    /// addresses, from [`Self::new_id`].
    ///
    /// # Errors
    /// EINVAL for a length of 0 or an offset inside a page, EACCES for stores to a shared mapping that may not, EOVERFLOW past the
    /// last page that a file can have; the system's.
    pub fn new(uffd: &Arc<Uffd>, file: &Arc<MemFile>, id: u64, request: &MapRequest) -> io::Result<Self> {
        let len = request.check(file)?;
        let file_id = FileId::of(&rustix::fs::fstat(file)?);
        let start = map_hidden(file, len, request)?;
        let piece = Piece::new(start..start + len, request.offset, request.protection);
        let pages = Arc::new(UserPages {
            id,
            uffd: Arc::clone(uffd),
            file: Arc::clone(file),
            file_id,
            shared: request.shared,
            may_write: request.may_write,
            sync: request.sync,
            stored: AtomicBool::new(false),
            stored_to_device: StoredMark::default(),
            start: AtomicUsize::new(start),
            len: AtomicUsize::new(len),
            changing: Mutex::default(),
            state: RwLock::new(State::of(piece)),
        });
        // From here on an error unmaps it.
        let map = Self { pages };
        kernel::add(&map.pages);
        {
            // In one step for who adopts addresses.
            let _held = uffd.hold();
            kernel::take_over(&(start..start + len), id);
            map.pages.publish(&mut map.pages.write());
        }
        map.pages.open(start..start + len, request.protection)?;
        Ok(map)
    }

    /// The pages, for the handler of faults.
    #[must_use]
    pub fn pages(&self) -> &Arc<UserPages> {
        &self.pages
    }

    /// The first byte's address.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.pages.start.load(Ordering::Acquire))
    }

    /// Bytes: whole pages of the system.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.pages.len.load(Ordering::Acquire)
    }

    /// Copies bytes out of the mapping, from byte `at` of it on.
    ///
    /// # Errors
    /// EACCES when it may not be read.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        self.may(at, into.len(), false)?;
        self.memory().copy_to(at, into);
        Ok(())
    }

    /// Copies bytes into the mapping, from byte `at` of it on.
    ///
    /// # Errors
    /// EACCES when it may not be stored to.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn copy_in(&self, at: usize, from: &[u8]) -> io::Result<()> {
        self.may(at, from.len(), true)?;
        self.memory().copy_from(at, from);
        Ok(())
    }

    /// pread(2) from byte `offset` of another file to the `len` bytes at `at`: the kernel stores, or, where the file is open for
    /// O_DIRECT, its device does.
    ///
    /// # Errors
    /// EACCES when it may not be stored to; EFAULT where a store would be a signal, or its fault is not served; the file's.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn read_from(&self, file: impl AsFd, offset: u64, at: usize, len: usize) -> io::Result<usize> {
        self.may(at, len, true)?;
        crate::preadv(file, &[self.memory().slice(at, len)], offset)
    }

    /// The byte at `at`, loaded by the kernel: where a load would be a signal, this is EFAULT.
    ///
    /// # Errors
    /// EFAULT; the system's.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn peek(&self, at: usize) -> io::Result<u8> {
        let ptr = self.atom(at, 1, 1);
        let (read, write) = rustix::pipe::pipe()?;
        // SAFETY: one byte, at which the kernel alone looks; to it any address is good.
        let sent = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&write), ptr.cast(), 1) };
        if sent != 1 {
            return Err(io::Error::last_os_error());
        }
        let mut byte = [0];
        rustix::io::read(&read, &mut byte)?;
        Ok(byte[0])
    }

    /// The byte at `at`, for atomic access.
    ///
    /// # Panics
    /// When it is not inside.
    #[must_use]
    pub fn atomic_u8(&self, at: usize) -> &AtomicU8 {
        let ptr = self.atom(at, 1, 1);
        // SAFETY: inside the mapping and aligned (just checked); all access is atomic, or a copy that tolerates races.
        unsafe { AtomicU8::from_ptr(ptr) }
    }

    /// The four bytes at `at`, for atomic access.
    ///
    /// # Panics
    /// When they are not all inside, or `at` is not a multiple of 4.
    #[must_use]
    pub fn atomic_u32(&self, at: usize) -> &AtomicU32 {
        let ptr = self.atom(at, 4, align_of::<AtomicU32>());
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(ptr.cast()) }
    }

    /// The eight bytes at `at`, for atomic access.
    ///
    /// # Panics
    /// When they are not all inside, or `at` is not a multiple of 8.
    #[must_use]
    pub fn atomic_u64(&self, at: usize) -> &AtomicU64 {
        let ptr = self.atom(at, 8, align_of::<AtomicU64>());
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(ptr.cast()) }
    }

    /// `count` times eight bytes from `at` on, for atomic access.
    ///
    /// # Panics
    /// When they are not all inside, or `at` is not a multiple of 8.
    #[must_use]
    pub fn atomic_u64s(&self, at: usize, count: usize) -> &[AtomicU64] {
        let len = count.checked_mul(8).expect("bytes that can be");
        let ptr = self.atom(at, len, align_of::<AtomicU64>());
        // SAFETY:
        // - Inside the mapping and aligned (just checked), which lives as long as `self`; atomics of eight bytes lie without gaps.
        // - All access is atomic, or a copy that tolerates races.
        unsafe { std::slice::from_raw_parts(ptr.cast(), count) }
    }

    fn atom(&self, at: usize, len: usize, align: usize) -> *mut u8 {
        assert!(at <= self.len() && len <= self.len() - at, "{len} bytes at {at} of {}", self.len());
        let ptr = self.as_ptr().wrapping_add(at);
        assert!(ptr.addr().is_multiple_of(align), "{len} bytes at {at} are not aligned");
        ptr
    }

    /// All of it. For [`Self::copy_in`] and [`Self::copy_out`], which have looked at the protection.
    fn memory(&self) -> MemSlice<'_> {
        // SAFETY:
        // - The mapping lives as long as `self`, unless an unsafe change of its shape took it away, whose caller promised that
        //   nobody uses that part here.
        // - No plain reference into it is ever made; what others do at the same time, a copy tolerates.
        // - A load or store that its protection or the file's end does not allow is a signal, not undefined.
        unsafe { MemSlice::from_raw(self.as_ptr(), self.len()) }
    }

    fn may(&self, at: usize, len: usize, write: bool) -> io::Result<()> {
        let start = self.as_ptr().addr() + at;
        let state = self.pages.read();
        let all = state
            .inside(&(start..start + len))
            .all(|p| if write { p.protection.write } else { p.protection.read });
        if all { Ok(()) } else { Err(Errno::ACCESS.into()) }
    }
}

impl Drop for UserMap {
    fn drop(&mut self) {
        self.pages.close();
    }
}

/// A new mapping of the file that cannot be accessed; its address. A large one lies such that huge pages of the file, and of a device
/// that it shows in the file's place, can be huge pages of the mapping.
fn map_hidden(file: &MemFile, len: usize, request: &MapRequest) -> io::Result<usize> {
    let flags = if request.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
    if request.hint == 0
        && len >= change::HUGE
        // Where there is no room for that it lies as it may.
        && let Ok(at) = change::reserve(len, request.offset)
    {
        let start = ptr::with_exposed_provenance_mut(at);
        // SAFETY:
        // - The addresses were reserved just now, and nobody else knows of them.
        // - It cannot be accessed.
        let mapped =
            unsafe { mmap(start, len, ProtFlags::empty(), flags | MapFlags::FIXED, file, request.offset) };
        if let Err(error) = mapped {
            // SAFETY: as above: they are still what was reserved, or nothing's.
            let _ = unsafe { munmap(start, len) };
            return Err(error.into());
        }
        return Ok(at);
    }
    let hint = ptr::without_provenance_mut(request.hint & !(page_size() - 1));
    // SAFETY:
    // - A new mapping; the address is only a hint, so it touches nothing that exists.
    // - It cannot be accessed.
    let start = unsafe { mmap(hint, len, ProtFlags::empty(), flags, file, request.offset) }?;
    Ok(start.expose_provenance())
}

impl MapRequest {
    /// The length in whole pages of the system, if it can be mapped.
    fn check(&self, file: &MemFile) -> io::Result<usize> {
        let page = page_size();
        if self.len == 0 || !self.offset.is_multiple_of(page as u64) {
            return Err(Errno::INVAL.into());
        }
        if self.shared && self.protection.write && !self.may_write {
            return Err(Errno::ACCESS.into());
        }
        let len = self.len.checked_next_multiple_of(page).ok_or(Errno::NOMEM)?;
        let end = self.offset.checked_add(len as u64).ok_or(Errno::OVERFLOW)?;
        if end > u64::from(u32::MAX) * file.page_size() as u64 {
            return Err(Errno::OVERFLOW.into());
        }
        Ok(len)
    }
}

impl UserPages {
    /// The mapping's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether stores go to the file.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether the program may ask for stores at all: those to a private mapping are its own affair.
    #[must_use]
    pub fn may_store(&self) -> bool {
        self.may_write || !self.shared
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<MemFile> {
        &self.file
    }

    /// Makes pages that the file has visible; `writable`: for stores too, as far as the program may at all. Wakes nobody. A page that
    /// is visible already stays what it is, or becomes writable. A part of the mapping that is being changed, and everything
    /// while the reader has yet to see a move, is left out: who waits there asks again.
    ///
    /// # Errors
    /// EFAULT when the file has no such page, and the page is not past its end; the system's. Some pages may then be visible.
    pub fn install(&self, pages: Range<u32>, writable: bool) -> io::Result<()> {
        let bytes = self.bytes(&pages);
        let Some(state) = self.read_healed(&pages) else { return Ok(()) };
        for piece in state.over(&bytes).filter(|p| !p.busy) {
            let range = piece.part(&bytes);
            if writable && self.shared && piece.is_writable() {
                // Before anybody can store: `protect` looks at it under the same page's lock.
                self.stored.store(true, Ordering::Release);
                self.show_writable(range, piece)?;
            } else {
                self.show(range, piece)?;
            }
        }
        Ok(())
    }

    /// Makes a page that the file has visible for loads at an address, and wakes who waits for it, in one system call and with no
    /// look at anything: the least that a fault can get.
    ///
    /// # Errors
    /// EFAULT when the file has no such page, EEXIST when it is visible; the system's; EINVAL outside of the mapping.
    pub fn answer(&self, addr: usize) -> io::Result<()> {
        let at = addr & !(page_size() - 1);
        let state = self.read();
        if !state.pieces.iter().any(|p| !p.busy && p.range.contains(&at)) {
            return Err(Errno::INVAL.into());
        }
        // SAFETY:
        // - A registered part of this mapping, which stays what it is while `state` is held.
        // - Who accesses a mapping of the file may see what the file has.
        match unsafe { self.uffd.cont_waking(at..at + page_size()) } {
            Outcome::Done => Ok(()),
            other => Err(other.error()),
        }
    }

    /// Read-only, and what is visible stays as it is.
    fn show(&self, range: Range<usize>, piece: &Piece) -> io::Result<()> {
        self.step(range, piece, |at| self.cont(at, self.shared), |_| Ok(()))
    }

    /// For stores. A page that is visible read-only is taken away and shown again: lifting its protection alone would leave the
    /// kernel one more fault to deal with. A single one has its protection lifted, which costs less than a zap.
    fn show_writable(&self, range: Range<usize>, piece: &Piece) -> io::Result<()> {
        let mut zapped = range.len() <= page_size();
        let end = range.end;
        self.step(
            range,
            piece,
            |at| self.cont(at, false),
            |at| {
                if zapped {
                    return self.lift(at);
                }
                zapped = true;
                self.zap_addresses(at.start..end, piece.file_byte(at.start))?;
                match self.cont(at.clone(), false) {
                    // Somebody was faster.
                    Outcome::Exists => self.lift(at),
                    // The next step says what else it is.
                    _ => Ok(()),
                }
            },
        )
    }

    /// Does `one` for a range, as far as it goes with each call, and `exists` for each page of the system that is visible already.
    fn step(
        &self,
        range: Range<usize>,
        piece: &Piece,
        one: impl Fn(Range<usize>) -> Outcome,
        mut exists: impl FnMut(Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let page = page_size();
        let (mut at, mut end) = (range.start, range.end);
        while at < range.end {
            let next = at + page;
            match one(at..end) {
                Outcome::Done => at = end,
                Outcome::Part(bytes) => at += bytes,
                Outcome::Exists => {
                    exists(at..next)?;
                    at = next;
                }
                // More than one mapping of the kernel's (the program gave advice for a part): page by page.
                Outcome::NotMapped if next < end => {
                    end = next;
                    continue;
                }
                // The program unmapped it without saying so: who waits there finds out.
                Outcome::NotMapped | Outcome::NoProcess => at = next,
                // The kernel says either of a page past the end, depending on whether it has one.
                Outcome::Absent | Outcome::Failed(Errno::INVAL)
                    if self.is_past_end(piece.file_byte(at))? =>
                {
                    at = next;
                }
                Outcome::Moving => return Ok(()),
                other => return Err(other.error()),
            }
            end = range.end;
        }
        Ok(())
    }

    /// Makes the next store to each of the pages a fault. What the program has unmapped without saying so is no part of the mapping any
    /// more.
    ///
    /// # Errors
    /// The system's. Then some pages may still be stored to.
    pub fn protect(&self, pages: Range<u32>) -> io::Result<()> {
        if !self.shared || !self.stored.load(Ordering::Acquire) {
            return Ok(());
        }
        let bytes = self.bytes(&pages);
        loop {
            let moves = self.uffd.moves();
            let state = self.read_settled(&bytes);
            let (mut moving, mut gone) = (false, Vec::new());
            for piece in state.over(&bytes) {
                moving |= self.protect_part(&piece.part(&bytes), &mut gone)? == Outcome::Moving;
            }
            drop(state);
            // What the program has moved meanwhile is protected where it is now.
            if !moving && self.uffd.settled(moves) {
                if !gone.is_empty() {
                    self.forget_gone(gone);
                }
                return Ok(());
            }
            // With nothing held: the reader, for which this waits, may want any of it.
            std::thread::yield_now();
        }
    }

    /// Protects a part of a piece, page by page where not all of it is there: what is not is added to `gone`. Under `state`.
    fn protect_part(&self, part: &Range<usize>, gone: &mut Vec<Range<usize>>) -> io::Result<Outcome> {
        // SAFETY: a part of this mapping, which stays what it is while `state` is held.
        match unsafe { self.uffd.protect(part.clone(), true) } {
            done @ (Outcome::Done | Outcome::NoProcess | Outcome::Moving) => Ok(done),
            Outcome::NotMapped if part.len() > page_size() => {
                let middle = part.start + (part.len() / page_size() / 2) * page_size();
                for half in [part.start..middle, middle..part.end] {
                    if self.protect_part(&half, gone)? == Outcome::Moving {
                        return Ok(Outcome::Moving);
                    }
                }
                Ok(Outcome::Done)
            }
            Outcome::NotMapped => {
                match gone.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => gone.push(part.clone()),
                }
                Ok(Outcome::Done)
            }
            other => Err(other.error()),
        }
    }

    /// Takes pages away: the next access is a fault. The file keeps them. A private mapping keeps seeing what it saw: it cannot
    /// change it, and taking it away would take its own copies too.
    ///
    /// # Errors
    /// The system's.
    pub fn zap(&self, pages: Range<u32>) -> io::Result<()> {
        self.heal(&pages);
        if !self.shared {
            return Ok(());
        }
        let bytes = self.bytes(&pages);
        loop {
            let moves = self.uffd.moves();
            let state = self.read_settled(&bytes);
            for piece in state.over(&bytes) {
                let part = piece.part(&bytes);
                let byte = piece.file_byte(part.start);
                self.zap_addresses(part, byte)?;
            }
            // madvise(2) is not refused while memory moves, and `/proc` says where it is already.
            let moving = self.uffd.is_moving();
            drop(state);
            // What the program has moved meanwhile goes where it is now.
            if !moving && self.uffd.settled(moves) {
                return Ok(());
            }
            // With nothing held: the reader, for which this waits, may want any of it.
            std::thread::yield_now();
        }
    }

    /// SIGBUS for the thread that waits at `addr`, and for nobody else; what the page shows stays. The thread's message was
    /// read after [`Uffd::wakes`] said `since`. Wakes nobody but a thread that gets the signal.
    #[must_use]
    pub fn refuse_access(&self, addr: usize, thread: u32, since: u64) -> Refused {
        // While this is held nobody is woken in the mapping, so the thread stays where it was found waiting, unless a signal of
        // somebody else's interrupts it just now.
        let state = self.write();
        if !state.pieces.iter().any(|p| !p.busy && p.range.contains(&addr))
            || self.uffd.was_woken(addr, since)
        {
            return Refused::Gone;
        }
        match crate::bus::send(thread, addr) {
            Sent::Yes => {
                // If it ignores the signal by now, it asks again. At once: its next message is to be newer than this.
                let at = addr & !(page_size() - 1);
                self.uffd.wake(at..at + page_size());
                Refused::Signalled
            }
            Sent::Runs => Refused::Gone,
            Sent::Never => Refused::Waits,
        }
    }

    /// Lets threads that wait for any of the pages look again.
    pub fn wake(&self, pages: Range<u32>) {
        let bytes = self.bytes(&pages);
        let state = self.read();
        for piece in state.over(&bytes) {
            self.uffd.wake(piece.part(&bytes));
        }
    }

    /// Lets everybody who waits for any page look again: messages that were lost are sent anew.
    pub fn wake_all(&self) {
        let state = self.read();
        for piece in &state.pieces {
            self.uffd.wake(piece.range.clone());
        }
    }

    /// Whether a page of the file lies wholly past its end: who accesses that gets SIGBUS from the kernel without a fault.
    ///
    /// # Errors
    /// The system's.
    pub fn is_page_past_end(&self, page: u32) -> io::Result<bool> {
        self.is_past_end(u64::from(page) * self.file.page_size() as u64)
    }

    fn is_past_end(&self, byte: u64) -> io::Result<bool> {
        let size = rustix::fs::fstat(&self.file)?.st_size.cast_unsigned();
        Ok(byte >= size)
    }

    fn bytes(&self, pages: &Range<u32>) -> Range<u64> {
        let size = self.file.page_size() as u64;
        u64::from(pages.start) * size..u64::from(pages.end) * size
    }

    fn cont(&self, range: Range<usize>, protected: bool) -> Outcome {
        // SAFETY:
        // - A registered part of this mapping: callers hold `state`, under which it stays what it is.
        // - Who accesses a mapping of the file may see what the file has.
        unsafe { self.uffd.cont(range, protected) }
    }

    fn lift(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: as above.
        match unsafe { self.uffd.protect(range, false) } {
            // Moving: who waits for it asks again.
            Outcome::Done | Outcome::Moving | Outcome::NotMapped | Outcome::NoProcess => Ok(()),
            other => Err(other.error()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with no change under way in the range.
    fn read_settled(&self, bytes: &Range<u64>) -> RwLockReadGuard<'_, State> {
        loop {
            let state = self.read();
            if !state.over(bytes).any(|p| p.busy) {
                return state;
            }
            drop(state);
            // Whoever changes it holds this until it is done.
            drop(self.change());
        }
    }

    /// Puts a fresh, inaccessible mapping of the file under the descriptor's rule, and opens it.
    fn open(&self, range: Range<usize>, protection: Protection) -> io::Result<()> {
        let start = ptr::with_exposed_provenance_mut(range.start);
        // A child would have it without a handler: it gets no mapping.
        // SAFETY: the range is exactly a mapping just made, and the advice changes nothing of its content.
        unsafe { madvise(start, range.len(), Advice::LinuxDontFork) }?;
        // SAFETY:
        // - The range is exactly a mapping of a memory file just made, and is this object's.
        // - Nobody can access it yet; who does later knows from this type's documentation what may happen.
        unsafe { self.uffd.register(range.clone(), self.shared) }?;
        // SAFETY: as above.
        Ok(unsafe { mprotect(start, range.len(), protection.for_mprotect()) }?)
    }
}

#[cfg(test)]
mod tests;
