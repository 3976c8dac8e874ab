//! Requests by io_uring: a queue for each processor, and threads that sit at it.
//!
//! The kernel puts a request into the queue of the processor that it is made on and gives it to a seat that is free, so it is
//! served there without waking another processor. A seat holds one request: while one is in a long operation, the next takes
//! what comes. FORGET and INTERRUPT still come by `/dev/fuse`.

use std::cell::RefCell;
use std::io::{self, IoSlice};

use extant_sys::{FuseSeat, MemSlice};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use zerocopy::{FromBytes, IntoBytes};

use crate::dispatch::Body;
use crate::reply::{Channel, Empty, Outlet, Reply};
use crate::server::{Server, Stand};
use crate::session::{Shared, Slot};
use crate::wire::{InHeader, OutHeader, opcode};

/// Seats at each processor's queue: as many long operations at once.
const SEATS: usize = 4;

/// A seat, and where it stands.
#[derive(Debug)]
pub(crate) struct Seat {
    processor: u16,
    seat: FuseSeat,
}

/// All seats of a connection.
pub(crate) type Seats = Vec<Seat>;

impl Seat {
    pub(crate) fn processor(&self) -> u16 {
        self.processor
    }
}

/// Seats for every processor there can be: the kernel sends nothing before each queue has one.
pub(crate) fn seats(channel: &Channel, max_write: u32) -> io::Result<Seats> {
    let mut all = Seats::new();
    for processor in 0..possible_processors()? {
        for _ in 0..SEATS {
            let seat = FuseSeat::new(channel.fd(), processor, max_write as usize)?;
            all.push(Seat { processor, seat });
        }
    }
    Ok(all)
}

/// How many processors the kernel has queues for, from the last number in a list like `0-3` or `0,2-7`.
fn possible_processors() -> io::Result<u16> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<u16>().ok());
    last.and_then(|n| n.checked_add(1))
        .ok_or_else(|| io::Error::other(format!("possible processors: {list}")))
}

/// Serves what comes to a seat until the mount is gone.
pub(crate) fn attend<S: Server + ?Sized>(
    shared: &Shared<'_, S>,
    mut seat: Seat,
    slot: &Slot,
) -> io::Result<()> {
    stay_on(seat.processor);
    let served = serve_all(shared, &mut seat.seat, slot);
    if let Err(error) = &served {
        // The kernel goes on waiting for this queue. Better no mount than one that hangs.
        tracing::error!(%error, processor = seat.processor, "io_uring failed: the mount ends");
        shared.destroy();
        std::process::exit(1);
    }
    served
}

/// Binds this thread to a processor, if it may run there.
fn stay_on(processor: u16) {
    let mut one = CpuSet::new();
    one.set(usize::from(processor));
    let allowed = sched_getaffinity(None).is_ok_and(|all| all.is_set(usize::from(processor)));
    if allowed && let Err(error) = sched_setaffinity(None, &one) {
        tracing::debug!(%error, processor, "not bound to its processor");
    }
}

fn serve_all<S: Server + ?Sized>(shared: &Shared<'_, S>, seat: &mut FuseSeat, slot: &Slot) -> io::Result<()> {
    let mut staged = Vec::new();
    while let Some(delivered) = seat.wait()? {
        let malformed = || io::Error::other("a request without a head");
        let (header, _) = InHeader::ref_from_prefix(delivered.head).map_err(|_| malformed())?;
        staged.clear();
        // An answer may take the place of the request only where that has no names and no data.
        let (rest, direct) = match delivered.len {
            0 => (&[][..], Some(&mut *delivered.payload)),
            len => (&delivered.payload[..len], None),
        };
        let answer = Answer { direct, staged: &mut staged, given: None };
        let outlet = Tray(RefCell::new(answer));
        match header.opcode {
            opcode::DESTROY => {
                shared.destroy();
                Reply::<Empty>::new(&outlet, header.unique, 0).done();
            }
            _ => {
                let body = Body { fixed: delivered.own, rest: Some(rest) };
                shared.serve(&outlet, header, body, slot, &SeatStand);
            }
        }
        let given = outlet.0.into_inner().given;
        let (error, len) = given.unwrap_or((-Errno::IO.raw_os_error(), 0));
        let head = OutHeader { len: (size_of::<OutHeader>() + len) as u32, error, unique: header.unique };
        if staged.len() > delivered.payload.len() {
            return Err(io::Error::other(format!("an answer of {} bytes", staged.len())));
        }
        if !staged.is_empty() {
            delivered.payload[..staged.len()].copy_from_slice(&staged);
        }
        let mut bytes = [0; size_of::<OutHeader>()];
        bytes.copy_from_slice(head.as_bytes());
        seat.answer(bytes, len);
    }
    Ok(())
}

/// While one waits at a seat, the others of its queue take requests, as in a long operation; FORGET comes by `/dev/fuse`.
struct SeatStand;

impl Stand for SeatStand {
    fn leave(&self) -> bool {
        true
    }

    fn come_back(&self) {}
}

/// An answer on its way: straight into the seat's memory, or kept until the request in there is no longer needed.
struct Answer<'a> {
    direct: Option<&'a mut [u8]>,
    staged: &'a mut Vec<u8>,
    /// Error and length.
    given: Option<(i32, usize)>,
}

struct Tray<'a>(RefCell<Answer<'a>>);

impl Tray<'_> {
    fn put(
        &self,
        error: i32,
        len: usize,
        direct: impl FnOnce(&mut [u8]),
        stage: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Errno> {
        let mut answer = self.0.borrow_mut();
        match &mut answer.direct {
            Some(room) => direct(room.get_mut(..len).ok_or(Errno::INVAL)?),
            None => stage(answer.staged),
        }
        answer.given = Some((error, len));
        Ok(())
    }
}

impl Outlet for Tray<'_> {
    fn send(&self, _: u64, error: i32, body: &[IoSlice<'_>]) -> Result<(), Errno> {
        let len = body.iter().map(|s| s.len()).sum();
        let direct = |room: &mut [u8]| {
            let mut at = 0;
            for part in body {
                room[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        };
        self.put(error, len, direct, |staged| body.iter().for_each(|part| staged.extend_from_slice(part)))
    }

    fn send_memory(&self, _: u64, body: &[MemSlice<'_>]) -> Result<(), Errno> {
        let len = body.iter().map(MemSlice::len).sum();
        let copy = |room: &mut [u8]| {
            let mut at = 0;
            for part in body {
                part.copy_to(0, &mut room[at..at + part.len()]);
                at += part.len();
            }
        };
        self.put(0, len, copy, |staged| {
            staged.resize(len, 0);
            copy(staged);
        })
    }
}
