//! FUSE requests over io_uring: one ring with one seat, which holds one request at a time.
//!
//! The kernel keeps a queue of requests for each processor. A seat is registered with one of them; the kernel copies a request
//! into the seat's memory and completes the command; the answer is written to the same memory, and the next command commits it
//! and waits for the next request. Layouts and commands are those of `struct fuse_uring_req_header`, `fuse_uring_ent_in_out` and
//! `fuse_uring_cmd_req` of the protocol's header (7.42, Linux 6.14).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};

const PAGE: usize = 4096;
/// Bytes of a request's or an answer's head, and of what a request has of its own kind.
const PART: usize = 128;
/// Where in the first page the third part lies: flags, commit id, length of the payload.
const ENTRY: usize = 2 * PART;
const COMMIT_ID: usize = ENTRY + 8;
const PAYLOAD_LEN: usize = ENTRY + 16;
/// All three parts.
const HEAD: usize = ENTRY + 32;
/// Where in the first page the list of the two pieces of memory lies.
const PIECES: usize = 1024;

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

const EINTR: i32 = 4;
const ENODEV: i32 = 19;
const ENOTCONN: i32 = 107;
const ECONNABORTED: i32 = 103;
const ECANCELED: i32 = 125;

/// A seat: its ring and the memory that it shares with the kernel.
pub struct FuseSeat {
    /// Before the memory: when the ring is gone, nobody writes that any more.
    ring: IoUring<Entry128, cqueue::Entry>,
    memory: Memory,
    device: OwnedFd,
    queue: u16,
    /// What [`Self::wait`] hands to the kernel first.
    command: Command,
}

#[derive(Clone, Copy)]
enum Command {
    /// The ring has yet to be switched on.
    Begin,
    Commit(u64),
    /// A request was delivered and not yet answered.
    None,
}

/// A request in a seat's memory.
#[derive(Debug)]
pub struct Delivered<'a> {
    /// Its head: `struct fuse_in_header`, and room.
    pub head: &'a [u8; PART],
    /// What its kind has, and room.
    pub own: &'a [u8; PART],
    /// The seat's payload memory, whole.
    pub payload: &'a mut [u8],
    /// Bytes of the request in `payload`.
    pub len: usize,
}

impl FuseSeat {
    /// Prepares a seat for queue `queue` (a processor's number) of the connection of `device`, for requests and answers of at
    /// most `payload` bytes. Nothing is said to the kernel's FUSE before [`Self::wait`].
    pub fn new(device: impl AsFd, queue: u16, payload: usize) -> io::Result<Self> {
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_r_disabled()
            .build(2)?;
        let device = rustix::io::fcntl_dupfd_cloexec(device, 3)?;
        let memory = Memory::new(payload.next_multiple_of(PAGE));
        Ok(Self { ring, memory, device, queue, command: Command::Begin })
    }

    /// Hands the answer given before to the kernel and waits for the next request: `None` once the connection is gone. All calls
    /// must come from one thread.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn wait(&mut self) -> io::Result<Option<Delivered<'_>>> {
        match std::mem::replace(&mut self.command, Command::None) {
            Command::Begin => {
                self.ring.submitter().register_enable_rings()?;
                self.push(REGISTER, 0)?;
            }
            Command::Commit(id) => self.push(COMMIT_AND_FETCH, id)?,
            Command::None => return Err(io::Error::other("the last request was not answered")),
        }
        match self.completed()? {
            0.. => Ok(Some(self.memory.delivered())),
            code if [ENODEV, ENOTCONN, ECONNABORTED, ECANCELED].contains(&-code) => Ok(None),
            code => Err(io::Error::from_raw_os_error(-code)),
        }
    }

    /// The answer to the request delivered last: its head (`struct fuse_out_header`), and the number of bytes that are in the
    /// payload memory.
    ///
    /// # Panics
    /// When `len` is more than that memory has.
    pub fn answer(&mut self, head: [u8; 16], len: usize) {
        assert!(len <= self.memory.payload, "an answer of {len} bytes");
        self.command = Command::Commit(self.memory.commit_id());
        self.memory.set_answer(head, len);
    }

    fn push(&mut self, what: u32, commit_id: u64) -> io::Result<()> {
        // struct fuse_uring_cmd_req: flags, commit id, queue.
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        words[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let pieces = self.memory.pieces() as u64;
        let fd = types::Fd(self.device.as_raw_fd());
        let mut entry = opcode::UringCmd80::new(fd, what).cmd(words).addr(Some(pieces)).build();
        set_len(&mut entry, 2);
        // SAFETY:
        // - The entry names memory of `self.memory`, which lives until the ring is gone (order of the fields), and a descriptor
        //   that `self` owns.
        // - The kernel writes the memory only inside the system calls of `completed` (DEFER_TASKRUN, one thread), where no
        //   reference to it exists: `Delivered` borrows `self`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the submission queue is full"))
    }

    /// Waits for the one command that is under way; its result.
    fn completed(&mut self) -> io::Result<i32> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(EINTR) => {}
                Err(e) => return Err(e),
            }
            if let Some(done) = self.ring.completion().next() {
                return Ok(done.result());
            }
        }
    }
}

impl fmt::Debug for FuseSeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseSeat").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Sets an entry's length: with this command the number of pieces at its address. The crate has no setter for it.
fn set_len(entry: &mut Entry128, len: u32) {
    const LEN: usize = 24;
    let at = std::ptr::from_mut(entry).cast::<u8>().wrapping_add(LEN).cast::<u32>();
    // SAFETY:
    // - `Entry128` is the kernel's `struct io_uring_sqe` of 128 bytes (`repr(C)`, its first field the 64 bytes of the plain
    //   one), whose `len` is a `u32` at byte 24; the entry is aligned to 8.
    unsafe { at.write(len) }
}

/// One page for the parts of a request, then the payload.
struct Memory {
    start: NonNull<u8>,
    payload: usize,
}

// SAFETY: it is plain memory that only the owner uses, and the kernel in system calls of the owner.
unsafe impl Send for Memory {}

impl Memory {
    fn layout(payload: usize) -> Layout {
        Layout::from_size_align(PAGE + payload, PAGE).unwrap_or(Layout::new::<[u8; PAGE]>())
    }

    fn new(payload: usize) -> Self {
        let layout = Self::layout(payload);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let memory = Self { start, payload };
        let base = start.as_ptr().addr();
        for (i, word) in [base, HEAD, base + PAGE, payload].into_iter().enumerate() {
            memory.set(PIECES + 8 * i, (word as u64).to_ne_bytes());
        }
        memory
    }

    /// Address of the two iovecs: the parts and the payload.
    fn pieces(&self) -> usize {
        self.start.as_ptr().expose_provenance() + PIECES
    }

    fn at(&self, at: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(at)
    }

    fn set<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        assert!(at + N <= PAGE);
        let place = self.at(at).cast::<[u8; N]>();
        // SAFETY: inside the first page, just checked; nobody holds a reference to it now (`Delivered` borrows the seat).
        unsafe { place.write_unaligned(bytes) }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= PAGE);
        let place = self.at(at).cast::<[u8; N]>();
        // SAFETY: as above; any bytes are valid.
        unsafe { place.read_unaligned() }
    }

    fn commit_id(&self) -> u64 {
        u64::from_ne_bytes(self.get(COMMIT_ID))
    }

    fn set_answer(&mut self, head: [u8; 16], len: usize) {
        self.set(0, head);
        self.set(PAYLOAD_LEN, (len as u32).to_ne_bytes());
    }

    fn delivered(&mut self) -> Delivered<'_> {
        let len = u32::from_ne_bytes(self.get(PAYLOAD_LEN)) as usize;
        // SAFETY:
        // - One of three ranges of the allocation that do not overlap, initialised (zeroed at first).
        // - The kernel does not touch them before the next command, for which `self` must be free again.
        let head = unsafe { &*self.at(0).cast::<[u8; PART]>() };
        // SAFETY: as above.
        let own = unsafe { &*self.at(PART).cast::<[u8; PART]>() };
        // SAFETY: as above.
        let payload = unsafe { std::slice::from_raw_parts_mut(self.at(PAGE), self.payload) };
        Delivered { head, own, len: len.min(payload.len()), payload }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.payload)) }
    }
}
