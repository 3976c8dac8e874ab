//! A connection to the kernel: reads requests, has them served, ends when the mount is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::buffer::Buffer;
use crate::dispatch::{Body, may_block, serve, wants_answer};
use crate::notify::Notifier;
use crate::pool::{MOST_SPARES, Pool, Relief};
use crate::reply::{Channel, Empty, Outlet, Reply};
use crate::ring::{self, Seats};
use crate::server::{InitConfig, Offer, Request, Server, Stand};
use crate::wire::{InHeader, InitFlags, InitIn, InitOut, InterruptIn, MAJOR, MINOR, opcode};

/// How requests are read.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Readers that always run; 0 for one per processor.
    pub readers: usize,
    /// Give each reader its own descriptor (`FUSE_DEV_IOC_CLONE`).
    pub clone_fd: bool,
    /// Pin each reader to a processor.
    pub pin: bool,
    /// Which way requests come.
    pub transport: Transport,
}

/// Which way requests come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Read from `/dev/fuse`.
    #[default]
    Device,
    /// By io_uring, from a queue for each processor, where the kernel offers it (Linux 6.14 with the module parameter
    /// `enable_uring`); else as `Device`.
    Ring,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { readers: 0, clone_fd: true, pin: false, transport: Transport::default() }
    }
}

/// What one reader serves right now, for INTERRUPT to find it.
#[derive(Default)]
pub(crate) struct Slot {
    unique: AtomicU64,
    interrupted: AtomicBool,
}

pub(crate) struct Shared<'s, S: ?Sized> {
    server: &'s S,
    channel: Channel,
    options: SessionOptions,
    max_write: u32,
    pool: Pool,
    /// Of the readers that always run, of spare ones, of ring seats.
    slots: Vec<Slot>,
    first_spare: usize,
    destroyed: AtomicBool,
}

/// A connection, INIT answered.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    config: InitConfig,
    options: SessionOptions,
    /// Empty if requests are read from the device.
    seats: Seats,
}

impl Session {
    /// Waits for the kernel's INIT on `device` (an open `/dev/fuse` that is being mounted) and answers it.
    pub fn start<S: Server + ?Sized>(
        device: OwnedFd,
        server: &S,
        options: SessionOptions,
    ) -> io::Result<Self> {
        let channel = Channel::new(Arc::new(device));
        let (config, seats) = handshake(&channel, server, options.transport)?;
        Ok(Self { channel, config, options, seats })
    }

    /// Sends notifications on this connection.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        Notifier::new(self.channel.clone())
    }

    /// What was agreed on.
    #[must_use]
    pub fn config(&self) -> &InitConfig {
        &self.config
    }

    /// Which way requests come.
    #[must_use]
    pub fn transport(&self) -> Transport {
        if self.seats.is_empty() { Transport::Device } else { Transport::Ring }
    }

    /// Serves requests until the mount is gone; calls [`Server::destroy`] before it returns.
    pub fn run<S: Server + ?Sized>(self, server: &S) -> io::Result<()> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let readers = match self.options.readers {
            // FORGET and INTERRUPT come by the device even so.
            _ if !self.seats.is_empty() => 1,
            0 => processors,
            n => n,
        };
        let seats = self.seats;
        let first_seat = readers + MOST_SPARES;
        let slots = first_seat + seats.len();
        let shared = Shared {
            server,
            channel: self.channel,
            options: self.options,
            max_write: self.config.max_write,
            pool: Pool::new(u32::try_from(readers).unwrap_or(u32::MAX)),
            slots: std::iter::repeat_with(Slot::default).take(slots).collect(),
            first_spare: readers,
            destroyed: AtomicBool::new(false),
        };
        let result = thread::scope(|scope| {
            let shared = &shared;
            let mut threads: Vec<_> = (0..readers)
                .map(|index| {
                    thread::Builder::new()
                        .name(format!("fuse-{index}"))
                        .spawn_scoped(scope, move || shared.reader(scope, index))
                })
                .collect();
            for (seat, slot) in seats.into_iter().zip(first_seat..) {
                let name = format!("fuse-ring-{}", seat.processor());
                let run = move || ring::attend(shared, seat, &shared.slots[slot]);
                threads.push(thread::Builder::new().name(name).spawn_scoped(scope, run));
            }
            let mut result = Ok(());
            for thread in threads {
                let one = match thread {
                    Ok(t) => t.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked"))),
                    Err(e) => Err(e),
                };
                result = result.and(one);
            }
            shared.pool.close();
            result
        });
        shared.destroy();
        result
    }
}

impl<S: Server + ?Sized> Shared<'_, S> {
    /// One of the readers that always run.
    fn reader<'scope, 'env>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, 'env>,
        index: usize,
    ) -> io::Result<()> {
        if self.options.pin {
            pin_to(index)?;
        }
        let channel = self.own_channel();
        let mut buffer = Buffer::new(self.max_write);
        while self.one(scope, &channel, &mut buffer, &self.slots[index])? {}
        // One reader that sees the end of the mount ends all: spares are woken by `close` after the last join, but a
        // reader that serves a long request must not hold up those that are parked.
        self.pool.close();
        Ok(())
    }

    /// A reader that only helps while the others are in long operations.
    fn spare<'scope, 'env>(&'scope self, scope: &'scope thread::Scope<'scope, 'env>, number: usize) {
        let channel = self.own_channel();
        let mut buffer = Buffer::new(self.max_write);
        loop {
            match self.one(scope, &channel, &mut buffer, &self.slots[self.first_spare + number]) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "a spare reader failed");
                    return self.pool.ended(number);
                }
            }
            if self.pool.anybody_reads() && !self.pool.park() {
                return;
            }
        }
    }

    /// A descriptor of its own, or the shared one where the kernel does not give any.
    fn own_channel(&self) -> Channel {
        if !self.options.clone_fd {
            return self.channel.clone();
        }
        match extant_sys::fuse::clone_device(self.channel.fd()) {
            Ok(fd) => Channel::new(Arc::new(fd)),
            Err(error) => {
                tracing::debug!(%error, "readers share one descriptor");
                self.channel.clone()
            }
        }
    }

    /// Reads and serves one request; false at the end of the mount.
    fn one<'scope, 'env>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, 'env>,
        channel: &Channel,
        buffer: &mut Buffer,
        slot: &Slot,
    ) -> io::Result<bool> {
        self.pool.enter_read();
        let read = rustix::io::read(channel.fd(), buffer.space());
        self.pool.leave_read();
        let len = match read {
            Ok(len) => len,
            Err(Errno::NODEV) => return Ok(false),
            // NOENT: the request was taken back. INTR, AGAIN: nothing was read.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let request = buffer.filled(len);
        let Ok((header, body)) = InHeader::ref_from_prefix(request) else {
            return Err(io::Error::other(format!("a request of {len} bytes")));
        };
        tracing::trace!(op = opcode::name(header.opcode), unique = header.unique, node = header.nodeid, len);
        match header.opcode {
            opcode::INTERRUPT => self.interrupt(channel, header, body),
            opcode::DESTROY => {
                self.destroy();
                Reply::<Empty>::new(channel, header.unique, 0).done();
            }
            _ => {
                let long = may_block(header);
                if long {
                    self.leave(scope);
                }
                let stand = ReaderStand { shared: self, scope, long };
                self.serve(channel, header, Body { fixed: body, rest: None }, slot, &stand);
                if long {
                    self.pool.end_long();
                }
            }
        }
        Ok(true)
    }

    /// A reader begins a long operation: another one takes its place.
    fn leave<'scope, 'env>(&'scope self, scope: &'scope thread::Scope<'scope, 'env>) {
        if let Relief::Start(number) = self.pool.begin_long() {
            self.start_spare(scope, number);
        }
    }

    pub(crate) fn serve(
        &self,
        outlet: &dyn Outlet,
        header: &InHeader,
        body: Body<'_>,
        slot: &Slot,
        stand: &dyn Stand,
    ) {
        slot.interrupted.store(false, Ordering::Relaxed);
        slot.unique.store(header.unique, Ordering::Release);
        let request = Request::new(header, &slot.interrupted, stand);
        let served = catch_unwind(AssertUnwindSafe(|| serve(self.server, outlet, &request, header, body)));
        slot.unique.store(0, Ordering::Release);
        match served {
            Ok(Some(())) => {}
            Ok(None) => {
                tracing::error!(op = opcode::name(header.opcode), "malformed request");
                if wants_answer(header.opcode) {
                    Reply::<Empty>::new(outlet, header.unique, 0).error(Errno::INVAL);
                }
            }
            // The reply was dropped while unwinding, which answered EIO.
            Err(_) => {
                tracing::error!(
                    op = opcode::name(header.opcode),
                    node = header.nodeid,
                    "the server panicked"
                );
            }
        }
    }

    /// Marks the request that INTERRUPT names. One that is not found is either answered, or was read and not yet
    /// noted: EAGAIN has the kernel send the interrupt again if it still waits.
    fn interrupt(&self, channel: &Channel, header: &InHeader, body: &[u8]) {
        let Ok((args, _)) = InterruptIn::ref_from_prefix(body) else { return };
        match self.slots.iter().find(|s| s.unique.load(Ordering::Acquire) == args.unique) {
            Some(slot) => slot.interrupted.store(true, Ordering::Relaxed),
            None => {
                let _ = channel.send(header.unique, -Errno::AGAIN.raw_os_error(), &[]);
            }
        }
    }

    fn start_spare<'scope, 'env>(&'scope self, scope: &'scope thread::Scope<'scope, 'env>, number: usize) {
        let started = thread::Builder::new()
            .name(format!("fuse-spare-{number}"))
            .spawn_scoped(scope, move || self.spare(scope, number));
        if let Err(error) = started {
            tracing::error!(%error, "no further reader could be started");
            self.pool.ended(number);
        }
    }

    pub(crate) fn destroy(&self) {
        if !self.destroyed.swap(true, Ordering::AcqRel)
            && catch_unwind(AssertUnwindSafe(|| self.server.destroy())).is_err()
        {
            tracing::error!("the server panicked at the end");
        }
    }
}

/// Where a reader stands, with a request that is `long` anyway or may turn out so.
struct ReaderStand<'scope, 'env, S: ?Sized> {
    shared: &'scope Shared<'scope, S>,
    scope: &'scope thread::Scope<'scope, 'env>,
    long: bool,
}

impl<S: Server + ?Sized> Stand for ReaderStand<'_, '_, S> {
    fn leave(&self) -> bool {
        if !self.long {
            self.shared.leave(self.scope);
        }
        self.shared.pool.anybody_left()
    }

    fn come_back(&self) {
        if !self.long {
            self.shared.pool.end_long();
        }
    }
}

/// Reads INIT and answers it.
fn handshake<S: Server + ?Sized>(
    channel: &Channel,
    server: &S,
    transport: Transport,
) -> io::Result<(InitConfig, Seats)> {
    let mut buffer = Buffer::new(1 << 16);
    let len = loop {
        match rustix::io::read(channel.fd(), buffer.space()) {
            Ok(len) => break len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let request = buffer.filled(len);
    let bad = || io::Error::other("the kernel's first message is not INIT");
    let (header, body) = InHeader::ref_from_prefix(request).map_err(|_| bad())?;
    if header.opcode != opcode::INIT {
        return Err(bad());
    }
    let (init, _) = InitIn::ref_from_prefix(body)
        .map_err(|_| io::Error::other("this kernel's FUSE is older than protocol 7.36 (Linux 5.17)"))?;
    if init.major != MAJOR {
        return Err(io::Error::other(format!(
            "this kernel speaks FUSE protocol {}, not {MAJOR}",
            init.major
        )));
    }
    let offered = InitFlags::from_words(init.flags, init.flags2);
    let offer = Offer { minor: init.minor, flags: offered, max_readahead: init.max_readahead };
    let mut config = server.init(&offer);
    config.flags = (config.flags | InitFlags::INIT_EXT) & offered;
    config.max_readahead = config.max_readahead.min(init.max_readahead);
    // All that can be lacking is got before the kernel is told: from then on it waits for the seats.
    let seats = match transport {
        Transport::Ring if offered.contains(InitFlags::OVER_IO_URING) => {
            ring::seats(channel, config.max_write).unwrap_or_else(|error| {
                tracing::warn!(%error, "no io_uring: requests are read from /dev/fuse");
                Seats::new()
            })
        }
        Transport::Ring => {
            tracing::warn!(
                "the kernel offers no io_uring (/sys/module/fuse/parameters/enable_uring): requests are read from /dev/fuse"
            );
            Seats::new()
        }
        Transport::Device => Seats::new(),
    };
    config.flags.set(InitFlags::OVER_IO_URING, !seats.is_empty());
    let (flags, flags2) = config.flags.words();
    let out = InitOut {
        major: MAJOR,
        minor: MINOR.min(init.minor),
        max_readahead: config.max_readahead,
        flags,
        max_background: config.max_background,
        congestion_threshold: config.congestion_threshold,
        max_write: config.max_write,
        time_gran: config.time_gran_ns,
        max_pages: u16::try_from(config.max_write.div_ceil(4096)).unwrap_or(u16::MAX),
        flags2,
        ..InitOut::default()
    };
    channel.send(header.unique, 0, &[io::IoSlice::new(out.as_bytes())])?;
    Ok((config, seats))
}

/// Pins the calling thread to the `index`th processor it may run on.
fn pin_to(index: usize) -> io::Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let all: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&c| allowed.is_set(c)).collect();
    let mut one = rustix::thread::CpuSet::new();
    one.set(all[index % all.len()]);
    rustix::thread::sched_setaffinity(None, &one)?;
    Ok(())
}
