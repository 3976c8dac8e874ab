//! The FUSE protocol's messages, version 7.45, as the kernel lays them out.
//!
//! Every structure is in the processor's own byte order and has no hidden padding. Requests are read in place
//! ([`zerocopy::FromBytes`]); replies are written in place ([`zerocopy::IntoBytes`]).
//!
//! Sources: fuse(4); the kernel's documentation `filesystems/fuse/`; the crate fuser's `fuse_abi.rs` (MIT) for the
//! messages that fuse(4) does not list; what Linux 6.18 sends.

mod body;
mod dirent;
mod flags;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use body::{
    AccessIn, Attr, AttrOut, BatchForgetIn, BmapIn, BmapOut, CopyFileRangeIn, CopyFileRangeOut, CreateIn,
    CreateOut, EntryOut, FallocateIn, FlushIn, ForgetIn, ForgetOne, FsyncIn, GetattrIn, GetxattrIn,
    GetxattrOut, InitIn, InitOut, InterruptIn, IoctlIn, IoctlOut, Kstatfs, LinkIn, LseekIn, LseekOut,
    MkdirIn, MknodIn, NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, NotifyStoreOut, OpenIn,
    OpenOut, PollIn, PollOut, ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetxattrIn, StatfsOut,
    Statx, StatxIn, StatxOut, StatxTime, SyncfsIn, WriteIn, WriteOut,
};
pub use dirent::{DirBuffer, PlusRoom};
pub use flags::{
    FattrFlags, FopenFlags, FsyncFlags, GetattrFlags, InitFlags, IoctlFlags, OpenInFlags, ReleaseFlags,
    SetxattrFlags, StatxMask, WriteFlags,
};

/// Protocol major version.
pub const MAJOR: u32 = 7;
/// Protocol minor version this program speaks.
pub const MINOR: u32 = 45;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;

/// First bytes of every request (`struct fuse_in_header`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InHeader {
    /// Bytes of the whole request.
    pub len: u32,
    /// One of [`opcode`].
    pub opcode: u32,
    /// Names the request; the reply repeats it.
    pub unique: u64,
    /// Node the request is about.
    pub nodeid: u64,
    /// Caller's user id in the mount's user namespace.
    pub uid: u32,
    /// Caller's group id.
    pub gid: u32,
    /// Caller's thread id, 0 if it is outside the mount's process namespace.
    pub pid: u32,
    /// Length of request extensions in units of 8 bytes (low 16 bits), then padding.
    pub total_extlen: u32,
}

/// First bytes of every reply and notification (`struct fuse_out_header`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// Bytes of the whole reply.
    pub len: u32,
    /// 0 or a negated errno; the notification's code if `unique` is 0.
    pub error: i32,
    /// The request's.
    pub unique: u64,
}

const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<OutHeader>() == 16);

/// Kinds of requests (`enum fuse_opcode`).
#[allow(missing_docs, reason = "the names are the kernel's and say it")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;

    /// The name of an opcode, for messages and traces.
    #[must_use]
    pub fn name(code: u32) -> &'static str {
        const NAMES: [&str; 54] = [
            "0",
            "LOOKUP",
            "FORGET",
            "GETATTR",
            "SETATTR",
            "READLINK",
            "SYMLINK",
            "7",
            "MKNOD",
            "MKDIR",
            "UNLINK",
            "RMDIR",
            "RENAME",
            "LINK",
            "OPEN",
            "READ",
            "WRITE",
            "STATFS",
            "RELEASE",
            "19",
            "FSYNC",
            "SETXATTR",
            "GETXATTR",
            "LISTXATTR",
            "REMOVEXATTR",
            "FLUSH",
            "INIT",
            "OPENDIR",
            "READDIR",
            "RELEASEDIR",
            "FSYNCDIR",
            "GETLK",
            "SETLK",
            "SETLKW",
            "ACCESS",
            "CREATE",
            "INTERRUPT",
            "BMAP",
            "DESTROY",
            "IOCTL",
            "POLL",
            "NOTIFY_REPLY",
            "BATCH_FORGET",
            "FALLOCATE",
            "READDIRPLUS",
            "RENAME2",
            "LSEEK",
            "COPY_FILE_RANGE",
            "SETUPMAPPING",
            "REMOVEMAPPING",
            "SYNCFS",
            "TMPFILE",
            "STATX",
            "COPY_FILE_RANGE_64",
        ];
        NAMES.get(code as usize).copied().unwrap_or("?")
    }
}

/// Kinds of notifications (`enum fuse_notify_code`).
pub mod notify {
    /// Attributes or cached data of an inode changed.
    pub const INVAL_INODE: i32 = 2;
    /// A cached name is no longer right.
    pub const INVAL_ENTRY: i32 = 3;
    /// Data to put into the kernel's page cache.
    pub const STORE: i32 = 4;
    /// A name was deleted.
    pub const DELETE: i32 = 6;
}

#[cfg(test)]
mod tests;
