//! userfaultfd(2): faults of registered memory as messages, and the answers to them.
//!
//! The ioctls, structures and messages are those of ioctl_userfaultfd(2) and userfaultfd(2). What changes memory is not public: the
//! safe way to it is [`UserMap`](crate::UserMap), which knows what is mapped where.
//!
//! `watch`: which memory was stored to.
//!
//! What every operation over a range meets, and what the callers make of it, is one enum, [`Outcome`].
//!
//! `moves`: memory that the program moves by mremap(2), which is followed while messages are read.

mod moves;
mod watch;

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::vma::Maps;
use moves::{Moves, Probe};
pub(crate) use watch::Watch;

/// `UFFD_API`, and the group of the ioctls.
const API: u8 = 0xAA;

const UFFDIO_API: Opcode = opcode::read_write::<ApiArg>(API, 0x3F);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<RegisterArg>(API, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<RangeArg>(API, 0x02);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<ProtectArg>(API, 0x06);
const UFFDIO_CONTINUE: Opcode = opcode::read_write::<ProgressArg>(API, 0x07);
const UFFDIO_POISON: Opcode = opcode::read_write::<ProgressArg>(API, 0x08);
/// `USERFAULTFD_IOC_NEW`, on the device.
const IOC_NEW: Opcode = opcode::none(API, 0x00);

/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: u32 = 1;

const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_THREAD_ID: u64 = 1 << 8;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_POISON: u64 = 1 << 14;

/// All that is used. Without `EVENT_REMAP` a moved mapping silently loses its registration. Of the other events none: who
/// unmapped or zapped memory would wait for the reader of messages.
const FEATURES: u64 = FEATURE_PAGEFAULT_FLAG_WP
    | FEATURE_EVENT_REMAP
    | FEATURE_MISSING_SHMEM
    | FEATURE_THREAD_ID
    | FEATURE_MINOR_SHMEM
    | FEATURE_EXACT_ADDRESS
    | FEATURE_WP_HUGETLBFS_SHMEM
    | FEATURE_POISON;

const REGISTER_MISSING: u64 = 1 << 0;
const REGISTER_WP: u64 = 1 << 1;
const REGISTER_MINOR: u64 = 1 << 2;

const CONTINUE_DONTWAKE: u64 = 1 << 0;
const CONTINUE_WP: u64 = 1 << 1;
const PROTECT_WP: u64 = 1 << 0;
const PROTECT_DONTWAKE: u64 = 1 << 1;
const POISON_DONTWAKE: u64 = 1 << 0;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMAP: u8 = 0x14;
const FAULT_WRITE: u64 = 1 << 0;
const FAULT_WP: u64 = 1 << 1;

/// Bytes of a message.
const MESSAGE: usize = 32;
/// Messages got by one read: more than threads that wait at one time, so that a report of a move is never starved by faults,
/// which the kernel hands out first.
const BATCH: usize = 128;

/// `struct uffdio_api`.
#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RangeArg {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct ProtectArg {
    range: RangeArg,
    mode: u64,
}

/// `struct uffdio_continue` and `struct uffdio_poison`.
#[repr(C)]
struct ProgressArg {
    range: RangeArg,
    mode: u64,
    /// Bytes done, or an error.
    done: i64,
}

const _: () = assert!(size_of::<ApiArg>() == 24 && size_of::<RegisterArg>() == 32);
const _: () = assert!(size_of::<ProtectArg>() == 24 && size_of::<ProgressArg>() == 32);

/// A userfaultfd: one may serve any number of mappings. Its messages must be read ([`Self::read`]) by a thread that waits for
/// nothing: whoever moves a mapping waits for that.
pub struct Uffd {
    fd: OwnedFd,
    kernel_faults: bool,
    woken: Woken,
    moves: Moves,
    /// Says whether memory is being moved.
    probe: Probe,
    #[cfg(test)]
    pub(crate) met_moves: AtomicU64,
    /// `None`: there is no `/proc`.
    maps: Option<Maps>,
}

/// Which pages anybody was woken at lately: the number of the last wake of each kind of address.
struct Woken {
    count: AtomicU64,
    /// By the number of the page, as far as it goes.
    page: [AtomicU64; 256],
    /// Of many pages at once.
    many: AtomicU64,
}

impl Woken {
    fn new() -> Self {
        let page = std::array::from_fn(|_| AtomicU64::new(0));
        Self { count: AtomicU64::new(0), page, many: AtomicU64::new(0) }
    }

    fn note(&self, range: &Range<usize>) {
        let now = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        let pages = range.start >> 12..range.end.div_ceil(1 << 12);
        if pages.len() > 8 {
            self.many.fetch_max(now, Ordering::AcqRel);
            return;
        }
        for page in pages {
            self.page[page % self.page.len()].fetch_max(now, Ordering::AcqRel);
        }
    }

    fn since(&self, addr: usize, count: u64) -> bool {
        let page = &self.page[(addr >> 12) % self.page.len()];
        page.load(Ordering::Acquire) > count || self.many.load(Ordering::Acquire) > count
    }
}

/// What the kernel has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A thread waits for memory.
    Fault {
        /// The exact address.
        addr: usize,
        /// It wants to store. Says nothing of the page's state: that may have changed since.
        write: bool,
        /// The thread's number (`gettid`).
        thread: u32,
    },
    /// Memory was moved by mremap(2), which now goes on. What is known of it was changed already.
    Moved,
    /// Something that was not asked for, by its number.
    Other(u8),
}

/// What came of an operation over a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All done.
    Done,
    /// Done for this many bytes; asking for the rest says why no more.
    Part(usize),
    /// The first page is mapped already.
    Exists,
    /// The memory file has no such page: absent, or past its end.
    Absent,
    /// Nothing: memory is being moved, and the reader has yet to see the message. To be asked again, but not by the reader.
    Moving,
    /// Not all of the range lies in one registered mapping of the kernel's.
    NotMapped,
    /// The process that has the memory is gone.
    NoProcess,
    /// Anything else.
    Failed(Errno),
}

impl Uffd {
    /// Through `/dev/userfaultfd`, or else the system call: with faults of the kernel (a system call on a buffer in a mapping)
    /// if the process may, without otherwise: [`Self::handles_kernel_faults`] says which.
    ///
    /// # Errors
    /// `Unsupported` when the kernel has not all that is needed (Linux 6.6); the system's.
    pub fn open() -> io::Result<Self> {
        match Self::from_device().or_else(|_| Self::from_call(0)) {
            Ok(fd) => Self::begin(fd, true),
            Err(_) => Self::user_mode_only(),
        }
    }

    /// One that sees faults of user-mode code only, which every process may have.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn user_mode_only() -> io::Result<Self> {
        Self::begin(Self::from_call(USER_MODE_ONLY)?, false)
    }

    /// Whether a fault that happens inside a system call is served. If not, a system call gets EFAULT for a buffer in a mapping
    /// that has no page there yet.
    #[must_use]
    pub fn handles_kernel_faults(&self) -> bool {
        self.kernel_faults
    }

    fn flags() -> UserfaultfdFlags {
        // Non-blocking: poll(2) of a blocking one always reports an error.
        UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK
    }

    fn from_device() -> io::Result<OwnedFd> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
        // SAFETY:
        // - The command makes a descriptor and changes no memory.
        // - Memory comes under the new descriptor's rule only by `register`.
        Ok(unsafe { ioctl(&device, New(Self::flags())) }?)
    }

    fn from_call(extra: u32) -> io::Result<OwnedFd> {
        let flags = Self::flags() | UserfaultfdFlags::from_bits_retain(extra);
        // SAFETY: memory comes under the new descriptor's rule only by `register`.
        Ok(unsafe { userfaultfd(flags) }?)
    }

    fn begin(fd: OwnedFd, kernel_faults: bool) -> io::Result<Self> {
        let mut arg = ApiArg { api: API.into(), features: FEATURES, ioctls: 0 };
        // SAFETY:
        // - UFFDIO_API takes a pointer to a `struct uffdio_api`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_API, ApiArg>::new(&mut arg) };
        // SAFETY: as above.
        match unsafe { ioctl(&fd, call) } {
            Ok(()) => Ok(Self {
                probe: Probe::new(&fd)?,
                #[cfg(test)]
                met_moves: AtomicU64::new(0),
                fd: crate::descriptor::lift(fd),
                kernel_faults,
                woken: Woken::new(),
                moves: Moves::default(),
                maps: Maps::of_process().ok(),
            }),
            Err(Errno::INVAL) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "mappings need userfaultfd with minor faults, write protection and poison of shared memory (Linux 6.6)",
            )),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What there is to read now, appended to `into`; how many. Never waits for a thread that waits for the reader. What the program has
    /// moved is followed before this returns.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, into: &mut Vec<Message>) -> io::Result<usize> {
        let mut bytes = [0; MESSAGE * BATCH];
        let reading = self.moves.reading();
        let got = match rustix::io::read(&self.fd, &mut bytes[..]) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for message in bytes[..got].chunks_exact(MESSAGE) {
            if let Some((from, to)) = moves::parse(message) {
                self.follow(&reading, &from, to);
            }
            into.push(Message::parse(message));
        }
        Ok(got / MESSAGE)
    }

    /// What the kernel has mapped in this process; `None` where that cannot be told.
    pub(crate) fn maps(&self) -> Option<&Maps> {
        self.maps.as_ref()
    }

    /// As on a kernel that does not answer for one address, or (`None`) without `/proc`.
    #[cfg(test)]
    pub(crate) fn set_maps(&mut self, maps: Option<Maps>) {
        self.maps = maps;
    }

    /// Lets whoever waits for memory in the range look again. Harmless where nothing is registered.
    pub(crate) fn wake(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: UFFDIO_WAKE takes a pointer to a `struct uffdio_range` and only reads it.
        let call = unsafe { Setter::<UFFDIO_WAKE, RangeArg>::new(RangeArg::of(&range)) };
        // SAFETY: as above; it changes no memory.
        let result = unsafe { ioctl(&self.fd, call) };
        debug_assert!(result.is_ok(), "UFFDIO_WAKE of {range:x?}: {result:?}");
        self.woken.note(&range);
    }

    /// How often anybody was woken: taken before a [`Self::read`], it says with `was_woken` whether a message of that may be old.
    #[must_use]
    pub fn wakes(&self) -> u64 {
        self.woken.count.load(Ordering::Acquire)
    }

    /// Whether who waits at an address, or at one of some others, may have been woken since [`Self::wakes`] said `count`. Certain when
    /// no wake of the address's mapping is under way.
    pub(crate) fn was_woken(&self, addr: usize, count: u64) -> bool {
        self.woken.since(addr, count)
    }

    /// Puts memory under this descriptor's rule: faults of missing and of unmapped pages are reported and, with `stores`, those of
    /// protected ones.
    ///
    /// # Safety
    /// The range is one mapping of a memory file that the caller owns; whoever accesses it knows that this may wait, or be SIGBUS.
    pub(crate) unsafe fn register(&self, range: Range<usize>, stores: bool) -> io::Result<()> {
        let mode = REGISTER_MISSING | REGISTER_MINOR | if stores { REGISTER_WP } else { 0 };
        let mut arg = RegisterArg { range: RangeArg::of(&range), mode, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER takes a pointer to a `struct uffdio_register`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_REGISTER, RegisterArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        Ok(unsafe { ioctl(&self.fd, call) }?)
    }

    /// Maps pages of the memory file that it has; wakes nobody.
    ///
    /// # Safety
    /// The range is part of a registered mapping that the caller owns, and its accessors may see what the file has there.
    pub(crate) unsafe fn cont(&self, range: Range<usize>, protected: bool) -> Outcome {
        let mode = CONTINUE_DONTWAKE | if protected { CONTINUE_WP } else { 0 };
        let mut arg = ProgressArg { range: RangeArg::of(&range), mode, done: 0 };
        // SAFETY: UFFDIO_CONTINUE takes a pointer to a `struct uffdio_continue`, reads and writes nothing else of ours.
        let call = unsafe { Updater::<UFFDIO_CONTINUE, ProgressArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        let result = unsafe { ioctl(&self.fd, call) };
        Outcome::of(result, arg.done)
    }

    /// Maps pages of the memory file that it has, protected, and wakes who waits for them.
    ///
    /// # Safety
    /// As [`Self::cont`].
    pub(crate) unsafe fn cont_waking(&self, range: Range<usize>) -> Outcome {
        let mut arg = ProgressArg { range: RangeArg::of(&range), mode: CONTINUE_WP, done: 0 };
        // SAFETY: UFFDIO_CONTINUE takes a pointer to a `struct uffdio_continue`, reads and writes nothing else of ours.
        let call = unsafe { Updater::<UFFDIO_CONTINUE, ProgressArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        let result = unsafe { ioctl(&self.fd, call) };
        self.woken.note(&range);
        Outcome::of(result, arg.done)
    }

    /// Makes accesses of pages that are not mapped SIGBUS; wakes nobody.
    ///
    /// # Safety
    /// The range is part of a registered mapping that the caller owns.
    pub(crate) unsafe fn poison(&self, range: Range<usize>) -> Outcome {
        let mut arg = ProgressArg { range: RangeArg::of(&range), mode: POISON_DONTWAKE, done: 0 };
        // SAFETY: UFFDIO_POISON takes a pointer to a `struct uffdio_poison`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_POISON, ProgressArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        let result = unsafe { ioctl(&self.fd, call) };
        Outcome::of(result, arg.done)
    }

    /// Makes the next store to each page a fault (`on`), or lets stores through again; wakes nobody.
    ///
    /// # Safety
    /// The range lies in registered mappings that the caller owns.
    pub(crate) unsafe fn protect(&self, range: Range<usize>, on: bool) -> Outcome {
        let mode = if on { PROTECT_WP } else { PROTECT_DONTWAKE };
        let mut arg = ProtectArg { range: RangeArg::of(&range), mode };
        // SAFETY: UFFDIO_WRITEPROTECT takes a pointer to a `struct uffdio_writeprotect`, reads and writes nothing else.
        let call = unsafe { Updater::<UFFDIO_WRITEPROTECT, ProtectArg>::new(&mut arg) };
        // SAFETY: the caller's promise.
        let result = unsafe { ioctl(&self.fd, call) };
        Outcome::of(result, 0)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Uffd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uffd").field("kernel_faults", &self.kernel_faults).finish_non_exhaustive()
    }
}

impl RangeArg {
    fn of(range: &Range<usize>) -> Self {
        Self { start: range.start as u64, len: (range.end - range.start) as u64 }
    }
}

impl Message {
    /// `struct uffd_msg`.
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        match bytes[0] {
            EVENT_PAGEFAULT => Self::Fault {
                addr: word(16) as usize,
                write: word(8) & (FAULT_WRITE | FAULT_WP) != 0,
                thread: word(24) as u32,
            },
            EVENT_REMAP => Self::Moved,
            other => Self::Other(other),
        }
    }
}

impl Outcome {
    fn of(result: Result<(), Errno>, done: i64) -> Self {
        match (result, usize::try_from(done)) {
            (Ok(()), _) => Self::Done,
            (Err(_), Ok(done @ 1..)) => Self::Part(done),
            (Err(Errno::AGAIN), _) => Self::Moving,
            (Err(Errno::EXIST), _) => Self::Exists,
            (Err(Errno::FAULT), _) => Self::Absent,
            (Err(Errno::NOENT), _) => Self::NotMapped,
            (Err(Errno::SRCH), _) => Self::NoProcess,
            (Err(errno), _) => Self::Failed(errno),
        }
    }

    /// As an error, for a caller that has no better idea.
    pub(crate) fn error(self) -> io::Error {
        let errno = match self {
            Self::Done | Self::Part(_) | Self::Moving => Errno::AGAIN,
            Self::Exists => Errno::EXIST,
            Self::Absent => Errno::FAULT,
            Self::NotMapped => Errno::NOENT,
            Self::NoProcess => Errno::SRCH,
            Self::Failed(errno) => errno,
        };
        errno.into()
    }
}

/// `USERFAULTFD_IOC_NEW`: the flags are the argument, the answer is the return value.
struct New(UserfaultfdFlags);

// SAFETY:
// - The argument is a number, and no memory of this process is changed.
// - The output is the system call's return value, a descriptor that nobody else has.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel has just made it for this call.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
