//! Flag words of the FUSE protocol.

#![allow(missing_docs, reason = "the names are the kernel's")]

use bitflags::bitflags;

bitflags! {
    /// Capabilities negotiated by INIT; the upper half travels in `flags2`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct InitFlags: u64 {
        const ASYNC_READ = 1;
        const POSIX_LOCKS = 1 << 1;
        const FILE_OPS = 1 << 2;
        const ATOMIC_O_TRUNC = 1 << 3;
        const EXPORT_SUPPORT = 1 << 4;
        const BIG_WRITES = 1 << 5;
        const DONT_MASK = 1 << 6;
        const SPLICE_WRITE = 1 << 7;
        const SPLICE_MOVE = 1 << 8;
        const SPLICE_READ = 1 << 9;
        const FLOCK_LOCKS = 1 << 10;
        const HAS_IOCTL_DIR = 1 << 11;
        const AUTO_INVAL_DATA = 1 << 12;
        const DO_READDIRPLUS = 1 << 13;
        const READDIRPLUS_AUTO = 1 << 14;
        const ASYNC_DIO = 1 << 15;
        const WRITEBACK_CACHE = 1 << 16;
        const NO_OPEN_SUPPORT = 1 << 17;
        const PARALLEL_DIROPS = 1 << 18;
        const HANDLE_KILLPRIV = 1 << 19;
        const POSIX_ACL = 1 << 20;
        const ABORT_ERROR = 1 << 21;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        const NO_OPENDIR_SUPPORT = 1 << 24;
        const EXPLICIT_INVAL_DATA = 1 << 25;
        const MAP_ALIGNMENT = 1 << 26;
        const SUBMOUNTS = 1 << 27;
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        const SETXATTR_EXT = 1 << 29;
        const INIT_EXT = 1 << 30;
        const SECURITY_CTX = 1 << 32;
        const HAS_INODE_DAX = 1 << 33;
        const CREATE_SUPP_GROUP = 1 << 34;
        const HAS_EXPIRE_ONLY = 1 << 35;
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        const PASSTHROUGH = 1 << 37;
        const NO_EXPORT_SUPPORT = 1 << 38;
        const HAS_RESEND = 1 << 39;
        const ALLOW_IDMAP = 1 << 40;
        const OVER_IO_URING = 1 << 41;
        const REQUEST_TIMEOUT = 1 << 42;
    }

    /// Which attributes SETATTR changes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FattrFlags: u32 {
        const MODE = 1;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const LOCKOWNER = 1 << 9;
        const CTIME = 1 << 10;
        const KILL_SUIDGID = 1 << 11;
    }

    /// What the kernel may do with an open file.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FopenFlags: u32 {
        const DIRECT_IO = 1;
        const KEEP_CACHE = 1 << 1;
        const NONSEEKABLE = 1 << 2;
        const CACHE_DIR = 1 << 3;
        const STREAM = 1 << 4;
        const NOFLUSH = 1 << 5;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        const PASSTHROUGH = 1 << 7;
    }

    /// FSYNC.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FsyncFlags: u32 {
        /// Only what is needed to read the data back.
        const FDATASYNC = 1;
    }

    /// GETATTR and STATX.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct GetattrFlags: u32 {
        /// `fh` is valid.
        const FH = 1;
    }

    /// OPEN and CREATE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct OpenInFlags: u32 {
        /// Truncation by O_TRUNC must clear set-id bits.
        const KILL_SUIDGID = 1;
    }

    /// RELEASE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ReleaseFlags: u32 {
        const FLUSH = 1;
        const FLOCK_UNLOCK = 1 << 1;
    }

    /// WRITE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WriteFlags: u32 {
        /// From the kernel's page cache: the caller's ids are not the writer's.
        const CACHE = 1;
        /// `lock_owner` is valid.
        const LOCKOWNER = 1 << 1;
        /// Set-id bits must be cleared.
        const KILL_SUIDGID = 1 << 2;
    }

    /// SETXATTR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SetxattrFlags: u32 {
        /// The ACL takes away the set-group-id bit.
        const ACL_KILL_SGID = 1;
    }

    /// IOCTL.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct IoctlFlags: u32 {
        const COMPAT = 1;
        const UNRESTRICTED = 1 << 1;
        const RETRY = 1 << 2;
        const IS_32BIT = 1 << 3;
        const DIR = 1 << 4;
        const COMPAT_X32 = 1 << 5;
    }

    /// Fields of STATX, as in statx(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct StatxMask: u32 {
        const BASIC_STATS = 0x7ff;
        const BTIME = 0x800;
    }
}

impl InitFlags {
    /// From the two words of INIT.
    #[must_use]
    pub fn from_words(flags: u32, flags2: u32) -> Self {
        Self::from_bits_retain(u64::from(flags) | (u64::from(flags2) << 32))
    }

    /// The two words of INIT.
    #[must_use]
    pub fn words(self) -> (u32, u32) {
        #[allow(clippy::cast_possible_truncation, reason = "the low half")]
        (self.bits() as u32, (self.bits() >> 32) as u32)
    }
}
