//! The only crate with `unsafe`: everything here is a safe interface around one thing that needs it.

#![allow(unsafe_code, reason = "this is the crate for it")]

pub mod bell;
pub mod blkdev;
pub mod bus;
pub mod descriptor;
mod device_memory;
pub mod extents;
mod file_map;
pub mod fuse;
mod fuse_ring;
pub mod loopdev;
mod mem;
mod mem_file;
pub mod mount_attr;
pub mod namespace;
mod owned_guard;
mod page_pool;
pub mod seccomp;
pub mod transfers;
mod uffd;
pub mod unsaid;
mod user_map;
pub mod user_memory;
mod vma;

pub use device_memory::DeviceMemory;
pub use file_map::FileMap;
pub use fuse_ring::{Delivered, FuseSeat};
pub use mem::{MemSlice, preadv, pwritev, writev};
pub use mem_file::MemFile;
pub use owned_guard::{Acquire, OwnedGuard};
pub use page_pool::{PageMem, PagePool};
pub use uffd::{Message, Uffd};
pub use user_map::{
    MapRequest, Protection, Refused, Showing, Stored, StoredMark, Target, UserMap, UserPages,
};

/// This thread's number, as the system has it (`gettid`).
#[must_use]
pub fn thread_number() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Ends the process at once (`_exit`): no handler of atexit(3) runs and nothing is flushed.
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: it takes any status, and nothing runs after it.
    unsafe { libc::_exit(status) }
}

/// Bytes of a page of the system.
#[must_use]
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// The atomics of memory that programs share: always the processor's, whatever explores schedules.
pub mod user_atomic {
    pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
}

#[cfg(test)]
mod tests;
