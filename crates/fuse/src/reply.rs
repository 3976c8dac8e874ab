//! Answers to requests.

use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use extant_sys::MemSlice;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::wire::{GetxattrOut, IoctlOut, OutHeader};

/// Where the answers to requests go.
pub(crate) trait Outlet {
    /// Sends a head and what follows it as one message.
    fn send(&self, unique: u64, error: i32, body: &[IoSlice<'_>]) -> Result<(), Errno>;

    /// Sends a head and what is in `body`, which others may change meanwhile, as one message.
    fn send_memory(&self, unique: u64, body: &[MemSlice<'_>]) -> Result<(), Errno>;

    /// What a later answer by another thread can be sent on, if it can.
    fn channel(&self) -> Option<&Channel> {
        None
    }
}

/// A descriptor of the FUSE device that requests are read from and answered on.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    fd: Arc<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Outlet for Channel {
    fn channel(&self) -> Option<&Channel> {
        Some(self)
    }

    fn send(&self, unique: u64, error: i32, body: &[IoSlice<'_>]) -> Result<(), Errno> {
        let len = size_of::<OutHeader>() + body.iter().map(|s| s.len()).sum::<usize>();
        let len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        let header = OutHeader { len, error, unique };
        let written = with_header(header.as_bytes(), body, |all| rustix::io::writev(self.fd(), all))?;
        debug_assert_eq!(written, len as usize, "the FUSE device takes a message whole or not at all");
        Ok(())
    }

    fn send_memory(&self, unique: u64, body: &[MemSlice<'_>]) -> Result<(), Errno> {
        let len = size_of::<OutHeader>() + body.iter().map(MemSlice::len).sum::<usize>();
        let len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        let header = OutHeader { len, error: 0, unique };
        let written = extant_sys::writev(self.fd(), header.as_bytes(), body)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        debug_assert_eq!(written, len as usize, "the FUSE device takes a message whole or not at all");
        Ok(())
    }
}

/// Calls `f` with `head` and `body` in one list, on the stack where it has the usual length.
fn with_header<R>(head: &[u8], body: &[IoSlice<'_>], f: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
    // 256 pages of a largest READ, each alone, and the header.
    const USUAL: usize = 258;
    match body.len() {
        0 => f(&[IoSlice::new(head)]),
        1 => f(&[IoSlice::new(head), IoSlice::new(&body[0])]),
        2..USUAL => {
            let mut all = [IoSlice::new(&[]); USUAL];
            all[0] = IoSlice::new(head);
            all[1..=body.len()].copy_from_slice(body);
            f(&all[..=body.len()])
        }
        _ => {
            let mut all = Vec::with_capacity(body.len() + 1);
            all.push(IoSlice::new(head));
            all.extend_from_slice(body);
            f(&all)
        }
    }
}

/// What a kind of reply carries.
pub trait Answer {}

/// A reply without a body.
#[derive(Debug)]
pub struct Empty;
/// A reply of any bytes, up to the room the request gave.
#[derive(Debug)]
pub struct Bytes;
/// A reply of an attribute's value or list: bytes, or their length if the caller has no room yet.
#[derive(Debug)]
pub struct XattrValue;
/// A reply to an ioctl: result and bytes.
#[derive(Debug)]
pub struct Ioctl;

impl Answer for Empty {}
impl Answer for Bytes {}
impl Answer for XattrValue {}
impl Answer for Ioctl {}
impl<T: IntoBytes + Immutable> Answer for T {}

/// The one answer a request gets. Dropped unanswered, it answers EIO.
#[must_use = "a request must be answered"]
pub struct Reply<'a, A: Answer> {
    outlet: &'a dyn Outlet,
    unique: u64,
    /// Bytes the caller has room for, where the request says so.
    room: u32,
    answered: bool,
    kind: PhantomData<fn(A)>,
}

impl<'a, A: Answer> Reply<'a, A> {
    pub(crate) fn new(outlet: &'a dyn Outlet, unique: u64, room: u32) -> Self {
        Self { outlet, unique, room, answered: false, kind: PhantomData }
    }

    /// Answers with an error.
    pub fn error(mut self, errno: Errno) {
        self.fail(errno);
    }

    fn fail(&mut self, errno: Errno) {
        tracing::trace!(unique = self.unique, %errno, "error");
        self.send(-errno.raw_os_error(), &[]);
    }

    fn send(&mut self, error: i32, body: &[IoSlice<'_>]) {
        self.answered = true;
        let sent = self.outlet.send(self.unique, error, body);
        self.sent(error, sent);
    }

    fn sent(&self, error: i32, sent: Result<(), Errno>) {
        match sent {
            Ok(()) => {}
            // The caller was killed meanwhile, or the mount is gone: nobody waits for this answer.
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(errno) => {
                tracing::error!(unique = self.unique, %errno, "the FUSE device refused a reply");
                if error == 0 {
                    // A caller must not wait for ever on a reply that could not be sent.
                    let _ = self.outlet.send(self.unique, -Errno::IO.raw_os_error(), &[]);
                }
            }
        }
    }
}

impl<A: Answer> Drop for Reply<'_, A> {
    fn drop(&mut self) {
        if !self.answered {
            tracing::error!(unique = self.unique, "a request was left unanswered");
            self.fail(Errno::IO);
        }
    }
}

/// A reply that is given by another thread than the one that read the request.
#[must_use = "a request must be answered"]
pub(crate) struct Detached<A: Answer> {
    channel: Channel,
    unique: u64,
    answered: bool,
    kind: PhantomData<fn(A)>,
}

impl<A: Answer> Reply<'_, A> {
    /// The reply as a value of its own. Itself if the request occupies who serves it until it is answered, so that it must
    /// not wait.
    pub(crate) fn detach(mut self) -> Result<Detached<A>, Self> {
        let Some(channel) = self.outlet.channel().cloned() else { return Err(self) };
        self.answered = true;
        Ok(Detached { channel, unique: self.unique, answered: false, kind: PhantomData })
    }
}

impl<A: IntoBytes + Immutable> Detached<A> {
    /// Answers with a body.
    pub(crate) fn ok(mut self, body: &A) {
        self.answered = true;
        Reply::<A>::new(&self.channel, self.unique, 0).ok(body);
    }
}

impl Detached<Empty> {
    /// Answers with an error.
    pub(crate) fn error(mut self, errno: Errno) {
        self.answered = true;
        Reply::<Empty>::new(&self.channel, self.unique, 0).error(errno);
    }
}

impl<A: Answer> Drop for Detached<A> {
    fn drop(&mut self) {
        if !self.answered {
            Reply::<Empty>::new(&self.channel, self.unique, 0).error(Errno::IO);
        }
    }
}

impl<A: Answer> fmt::Debug for Reply<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("unique", &self.unique).finish_non_exhaustive()
    }
}

impl<A: IntoBytes + Immutable> Reply<'_, A> {
    /// Answers with a body.
    pub fn ok(mut self, body: &A) {
        self.send(0, &[IoSlice::new(body.as_bytes())]);
    }

    /// Answers with a body or an error.
    pub fn answer(self, result: Result<A, Errno>) {
        match result {
            Ok(body) => self.ok(&body),
            Err(errno) => self.error(errno),
        }
    }
}

impl Reply<'_, Empty> {
    /// Answers that it is done.
    pub fn done(mut self) {
        self.send(0, &[]);
    }

    /// Answers that it is done, or with an error.
    pub fn answer_empty(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.done(),
            Err(errno) => self.error(errno),
        }
    }
}

impl Reply<'_, Bytes> {
    /// Bytes the caller has room for.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Answers with bytes.
    pub fn bytes(mut self, data: &[u8]) {
        self.send(0, &[IoSlice::new(data)]);
    }

    /// Answers with bytes from several places, in one system call and without copying them together.
    pub fn vectored(mut self, data: &[IoSlice<'_>]) {
        self.send(0, data);
    }

    /// The same from memory that others may change meanwhile: pages of a cache.
    pub fn memory(mut self, data: &[MemSlice<'_>]) {
        self.answered = true;
        let sent = self.outlet.send_memory(self.unique, data);
        self.sent(0, sent);
    }

    /// Answers with bytes or an error.
    pub fn answer_bytes(self, result: Result<Vec<u8>, Errno>) {
        match result {
            Ok(data) => self.bytes(&data),
            Err(errno) => self.error(errno),
        }
    }
}

impl Reply<'_, XattrValue> {
    /// Answers with a value: itself if it fits, its length if the caller asked for that, else ERANGE.
    pub fn value(mut self, value: &[u8]) {
        let Ok(size) = u32::try_from(value.len()) else { return self.error(Errno::TOOBIG) };
        if self.room == 0 {
            let out = GetxattrOut { size, padding: 0 };
            self.send(0, &[IoSlice::new(out.as_bytes())]);
        } else if size > self.room {
            self.fail(Errno::RANGE);
        } else {
            self.send(0, &[IoSlice::new(value)]);
        }
    }

    /// Answers with a value or an error.
    pub fn answer_value(self, result: Result<Vec<u8>, Errno>) {
        match result {
            Ok(value) => self.value(&value),
            Err(errno) => self.error(errno),
        }
    }
}

impl Reply<'_, Ioctl> {
    /// Answers with a return value and the argument's new bytes.
    pub fn result(mut self, result: i32, data: &[u8]) {
        let out = IoctlOut { result, ..IoctlOut::default() };
        self.send(0, &[IoSlice::new(out.as_bytes()), IoSlice::new(data)]);
    }

    /// Answers with the argument's new bytes or an error.
    pub fn answer_ioctl(self, result: Result<Vec<u8>, Errno>) {
        match result {
            Ok(data) => self.result(0, &data),
            Err(errno) => self.error(errno),
        }
    }
}
