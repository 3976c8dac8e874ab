//! The mount: FUSE requests to library calls.
//!
//! # Parts
//! | module | what |
//! |---|---|
//! | [`wire`] | the protocol's messages |
//! | [`Server`], [`Reply`] | what a file system implements, and how it answers |
//! | [`Session`] | the connection: reader threads or ring seats, interrupts, notifications |
//! | [`mount`] | mounting and unmounting: as root, through fusermount3, in a namespace, on a loop device as a token |
//! | [`Adapter`] | ext4 behind the transport |
//! | [`private`] | our own ioctls on files of a mount |
//! | [`command`] | `mount`, `umount`, `exec`, the helper of mount(8) |
//! | [`null`] | a file system in memory on the same transport: what the transport itself costs |
//!
//! # Invariants
//! - Every request that wants an answer gets exactly one: a [`Reply`] that is dropped, by an early return or by a
//!   panic, answers EIO.
//! - The transport holds no lock while a request is served.
//! - Data of a reply goes from the pages that hold it straight to the device by one vectored write; data of a WRITE
//!   lies page-aligned in the reader's buffer.

mod adapter;
mod buffer;
pub mod command;
mod dispatch;
pub mod mount;
mod notify;
pub mod null;
mod pool;
pub mod private;
mod reply;
mod ring;
mod server;
mod session;
pub mod wire;

pub use adapter::{
    Adapter, AdapterOptions, ControlReply, ServerState, control_remount, control_second_mount, control_server,
};
pub use notify::Notifier;
pub use reply::{Answer, Bytes, Empty, Ioctl, Reply, XattrValue};
pub use rustix::io::Errno;
pub use server::{InitConfig, Offer, Request, Server};
pub use session::{Session, SessionOptions, Transport};
