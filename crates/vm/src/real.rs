//! The real [`Mmu`](crate::Mmu): memory files, mappings of them in this process, faults through userfaultfd.
//!
//! | part | what |
//! |---|---|
//! | [`FaultServer`] | threads that read and answer faults, for any number of files |
//! | [`FaultHandler`] | whom they ask, a file |
//! | [`RealMmu`] | the memory file of one inode and its mappings |
//! | [`RealMapping`] | one mapping, owned by the program |
//! | `queue`, beside this | what waits for a thread, and what is parked |
//! | `pending` | one fault: a value that is answered, at the latest when it is dropped |
//! | `no_space` | faults that wait for blocks that are held, and when it is looked for these |
//! | `suspects` | in debug builds, threads that fault with a lock held |
//!
//! The reader of messages waits for nothing but messages, and takes leaves only; what it cannot answer from [`FaultHandler::try_fault`]
//! at once goes to one of two pools, so that loads do not queue behind stores. A fault that has to wait for a thaw, or for blocks that are held on a full disk, is kept as a value,
//! and asked again; it keeps no thread.
//!
//! **SIGBUS** for a page that cannot be had is a mark in the mapping (poison) that stays for [`POISONED`] or until the page is installed: then
//! the next access asks again, as the kernel reads again after an error. For a store that cannot be, it is a signal sent to the thread
//! ([`UserPages::refuse_access`](extant_sys::UserPages::refuse_access)): others may load from the page; only who cannot be told so gets the
//! mark. An access past the end of the memory file is none of our faults.
//!
//! **A message is never lost**: a thread that panics outside of a handler begins anew and has every waiting thread look again, and
//! so does who changed a mapping meanwhile. A fault at an address that no mapping is known to have goes to a thread for loads: it waits for
//! who changes a mapping there, or asks the kernel whose that memory is ([`UserPages::look_for`](extant_sys::UserPages::look_for)).

mod mmu;
mod mutant;
mod no_space;
mod pending;
mod server;
mod suspects;

use std::time::Duration;

use crate::{Access, Fault, FaultWait, MapId, SpaceWait};

pub use mmu::{RealMapping, RealMmu};
pub use server::{FaultServer, FaultThreads, ParkedFaults};

/// How long a page that could not be had is SIGBUS before the next access asks again.
///
/// Unit tests say themselves when: on a loaded machine their threads may not run for as long.
pub const POISONED: Duration = if cfg!(test) { Duration::from_secs(60) } else { Duration::from_millis(20) };

/// Who decides what a fault gets: a file, with its engine.
pub trait FaultHandler: Send + Sync {
    /// As [`Self::fault`], if that can be said at once: by the thread that reads all faults, which must not wait for anything, nor
    /// protect, unmap or discard pages. `None`: it is to be asked properly.
    fn try_fault(&self, mapping: MapId, page: u32, access: Access) -> Option<Fault>;

    /// Decides a fault and installs what it gets; the caller wakes. May wait for locks and I/O. A private mapping loads only.
    /// [`Fault::AwaitsSpace`] and [`Fault::Parked`] say with `wait` what it waits for, and it gets that back when it is asked again.
    fn fault(&self, mapping: MapId, page: u32, access: Access, wait: &mut FaultWait) -> Fault;

    /// Looks whether space can be had that faults wait for, of this handler or another one of the same server. With nothing held.
    fn look_for_space(&self);

    /// Whether who waits is to be asked again. With nothing held.
    fn may_have_space(&self, wait: &SpaceWait) -> bool;
}

#[cfg(test)]
mod tests;
