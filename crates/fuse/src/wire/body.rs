//! Bodies of requests and replies, in the order of their opcodes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Attributes of a node (`struct fuse_attr`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attr {
    /// Inode number that callers see.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Seconds.
    pub atime: i64,
    /// Seconds.
    pub mtime: i64,
    /// Seconds.
    pub ctime: i64,
    /// Nanoseconds.
    pub atimensec: u32,
    /// Nanoseconds.
    pub mtimensec: u32,
    /// Nanoseconds.
    pub ctimensec: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node (new encoding).
    pub rdev: u32,
    /// Block size for stat(2).
    pub blksize: u32,
    /// 0.
    pub flags: u32,
}

/// A name's node (`struct fuse_entry_out`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryOut {
    /// Node id, 0 for a name known not to exist.
    pub nodeid: u64,
    /// Tells apart two uses of one node id.
    pub generation: u64,
    /// Seconds the name may be cached.
    pub entry_valid: u64,
    /// Seconds the attributes may be cached.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub entry_valid_nsec: u32,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// The node's attributes.
    pub attr: Attr,
}

/// Attributes (`struct fuse_attr_out`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttrOut {
    /// Seconds they may be cached.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// 0.
    pub dummy: u32,
    /// The attributes.
    pub attr: Attr,
}

/// FORGET.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetIn {
    /// References the kernel drops.
    pub nlookup: u64,
}

/// One node of BATCH_FORGET.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForgetOne {
    /// Node.
    pub nodeid: u64,
    /// References the kernel drops.
    pub nlookup: u64,
}

/// BATCH_FORGET; [`ForgetOne`]s follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BatchForgetIn {
    /// How many.
    pub count: u32,
    /// 0.
    pub dummy: u32,
}

/// GETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetattrIn {
    /// [`super::GetattrFlags`].
    pub getattr_flags: u32,
    /// 0.
    pub dummy: u32,
    /// Open file, if the flag says so.
    pub fh: u64,
}

/// SETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetattrIn {
    /// [`super::FattrFlags`].
    pub valid: u32,
    /// 0.
    pub padding: u32,
    /// Open file.
    pub fh: u64,
    /// New size.
    pub size: u64,
    /// Unused.
    pub lock_owner: u64,
    /// Seconds.
    pub atime: i64,
    /// Seconds.
    pub mtime: i64,
    /// Seconds.
    pub ctime: i64,
    /// Nanoseconds.
    pub atimensec: u32,
    /// Nanoseconds.
    pub mtimensec: u32,
    /// Nanoseconds.
    pub ctimensec: u32,
    /// New mode.
    pub mode: u32,
    /// 0.
    pub unused4: u32,
    /// New owner.
    pub uid: u32,
    /// New group.
    pub gid: u32,
    /// 0.
    pub unused5: u32,
}

/// MKNOD; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MknodIn {
    /// Type and permissions.
    pub mode: u32,
    /// Device number.
    pub rdev: u32,
    /// Caller's umask.
    pub umask: u32,
    /// 0.
    pub padding: u32,
}

/// MKDIR; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MkdirIn {
    /// Permissions.
    pub mode: u32,
    /// Caller's umask.
    pub umask: u32,
}

/// RENAME; two names follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RenameIn {
    /// Target directory.
    pub newdir: u64,
}

/// RENAME2; two names follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Rename2In {
    /// Target directory.
    pub newdir: u64,
    /// As in renameat2(2).
    pub flags: u32,
    /// 0.
    pub padding: u32,
}

/// LINK; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LinkIn {
    /// Node to link.
    pub oldnodeid: u64,
}

/// OPEN and OPENDIR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenIn {
    /// As in open(2).
    pub flags: u32,
    /// [`super::OpenInFlags`].
    pub open_flags: u32,
}

/// CREATE and TMPFILE; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateIn {
    /// As in open(2).
    pub flags: u32,
    /// Permissions.
    pub mode: u32,
    /// Caller's umask.
    pub umask: u32,
    /// [`super::OpenInFlags`].
    pub open_flags: u32,
}

/// An open file (`struct fuse_open_out`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenOut {
    /// Handle of ours.
    pub fh: u64,
    /// [`super::FopenFlags`].
    pub open_flags: u32,
    /// Unused.
    pub backing_id: i32,
}

/// A new node, open.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateOut {
    /// The node.
    pub entry: EntryOut,
    /// The open file.
    pub open: OpenOut,
}

/// RELEASE and RELEASEDIR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReleaseIn {
    /// Handle.
    pub fh: u64,
    /// As in open(2).
    pub flags: u32,
    /// [`super::ReleaseFlags`].
    pub release_flags: u32,
    /// Unused.
    pub lock_owner: u64,
}

/// FLUSH.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushIn {
    /// Handle.
    pub fh: u64,
    /// 0.
    pub unused: u32,
    /// 0.
    pub padding: u32,
    /// Unused.
    pub lock_owner: u64,
}

/// READ, READDIR, READDIRPLUS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadIn {
    /// Handle.
    pub fh: u64,
    /// Byte offset or directory cookie.
    pub offset: u64,
    /// Most bytes to return.
    pub size: u32,
    /// Unused.
    pub read_flags: u32,
    /// Unused.
    pub lock_owner: u64,
    /// As in open(2).
    pub flags: u32,
    /// 0.
    pub padding: u32,
}

/// WRITE; the data follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteIn {
    /// Handle.
    pub fh: u64,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub size: u32,
    /// [`super::WriteFlags`].
    pub write_flags: u32,
    /// Unused.
    pub lock_owner: u64,
    /// As in open(2).
    pub flags: u32,
    /// 0.
    pub padding: u32,
}

/// Bytes written.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteOut {
    /// Bytes.
    pub size: u32,
    /// 0.
    pub padding: u32,
}

/// As in statfs(2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kstatfs {
    /// Blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Block size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Unit of the block counts.
    pub frsize: u32,
    /// 0.
    pub padding: u32,
    /// 0.
    pub spare: [u32; 6],
}

/// STATFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatfsOut {
    /// The figures.
    pub st: Kstatfs,
}

/// FSYNC and FSYNCDIR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsyncIn {
    /// Handle.
    pub fh: u64,
    /// [`super::FsyncFlags`].
    pub fsync_flags: u32,
    /// 0.
    pub padding: u32,
}

/// SETXATTR with `SETXATTR_EXT`; name and value follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetxattrIn {
    /// Bytes of the value.
    pub size: u32,
    /// As in setxattr(2).
    pub flags: u32,
    /// [`super::SetxattrFlags`].
    pub setxattr_flags: u32,
    /// 0.
    pub padding: u32,
}

/// GETXATTR (the name follows) and LISTXATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetxattrIn {
    /// Room of the caller, 0 to ask for the length.
    pub size: u32,
    /// 0.
    pub padding: u32,
}

/// Length asked for.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetxattrOut {
    /// Bytes.
    pub size: u32,
    /// 0.
    pub padding: u32,
}

/// ACCESS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AccessIn {
    /// As in access(2).
    pub mask: u32,
    /// 0.
    pub padding: u32,
}

/// INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitIn {
    /// Kernel's version.
    pub major: u32,
    /// Kernel's version.
    pub minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// Low half of [`super::InitFlags`].
    pub flags: u32,
    /// High half.
    pub flags2: u32,
    /// 0.
    pub unused: [u32; 11],
}

/// Reply to INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitOut {
    /// 7.
    pub major: u32,
    /// Version both speak.
    pub minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// Low half of [`super::InitFlags`].
    pub flags: u32,
    /// Background requests at once.
    pub max_background: u16,
    /// From where the kernel holds back.
    pub congestion_threshold: u16,
    /// Most bytes in a WRITE.
    pub max_write: u32,
    /// Nanoseconds.
    pub time_gran: u32,
    /// Most pages in a request.
    pub max_pages: u16,
    /// Unused.
    pub map_alignment: u16,
    /// High half.
    pub flags2: u32,
    /// Unused.
    pub max_stack_depth: u32,
    /// Unused.
    pub request_timeout: u16,
    /// 0.
    pub unused: [u16; 11],
}

/// INTERRUPT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptIn {
    /// Request to interrupt.
    pub unique: u64,
}

/// BMAP.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BmapIn {
    /// Block in the file.
    pub block: u64,
    /// Its size.
    pub blocksize: u32,
    /// 0.
    pub padding: u32,
}

/// Reply to BMAP.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BmapOut {
    /// Block on the device, 0 for a hole.
    pub block: u64,
}

/// IOCTL; the argument's bytes follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoctlIn {
    /// Handle.
    pub fh: u64,
    /// [`super::IoctlFlags`].
    pub flags: u32,
    /// Command.
    pub cmd: u32,
    /// Argument as the caller gave it.
    pub arg: u64,
    /// Bytes that follow.
    pub in_size: u32,
    /// Most bytes of the answer.
    pub out_size: u32,
}

/// Reply to IOCTL; bytes follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoctlOut {
    /// Return value.
    pub result: i32,
    /// 0.
    pub flags: u32,
    /// 0.
    pub in_iovs: u32,
    /// 0.
    pub out_iovs: u32,
}

/// POLL.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PollIn {
    /// Handle.
    pub fh: u64,
    /// For a wake-up.
    pub kh: u64,
    /// 1 to ask for a wake-up.
    pub flags: u32,
    /// As in poll(2).
    pub events: u32,
}

/// Reply to POLL.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PollOut {
    /// As in poll(2).
    pub revents: u32,
    /// 0.
    pub padding: u32,
}

/// FALLOCATE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FallocateIn {
    /// Handle.
    pub fh: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// As in fallocate(2).
    pub mode: u32,
    /// 0.
    pub padding: u32,
}

/// LSEEK.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LseekIn {
    /// Handle.
    pub fh: u64,
    /// Bytes.
    pub offset: u64,
    /// SEEK_DATA or SEEK_HOLE.
    pub whence: u32,
    /// 0.
    pub padding: u32,
}

/// Reply to LSEEK.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LseekOut {
    /// Bytes.
    pub offset: u64,
}

/// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyFileRangeIn {
    /// Source.
    pub fh_in: u64,
    /// Bytes.
    pub off_in: u64,
    /// Target's node.
    pub nodeid_out: u64,
    /// Target.
    pub fh_out: u64,
    /// Bytes.
    pub off_out: u64,
    /// Bytes.
    pub len: u64,
    /// 0.
    pub flags: u64,
}

/// Reply to COPY_FILE_RANGE_64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyFileRangeOut {
    /// Bytes.
    pub bytes_copied: u64,
}

/// SYNCFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyncfsIn {
    /// 0.
    pub padding: u64,
}

/// STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxIn {
    /// [`super::GetattrFlags`].
    pub getattr_flags: u32,
    /// 0.
    pub reserved: u32,
    /// Open file, if the flag says so.
    pub fh: u64,
    /// As in statx(2).
    pub sx_flags: u32,
    /// Fields wanted.
    pub sx_mask: u32,
}

/// A time in STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxTime {
    /// Seconds.
    pub tv_sec: i64,
    /// Nanoseconds.
    pub tv_nsec: u32,
    /// 0.
    pub reserved: i32,
}

/// As in statx(2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Statx {
    /// [`super::StatxMask`].
    pub mask: u32,
    /// Block size.
    pub blksize: u32,
    /// Attribute bits.
    pub attributes: u64,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permissions.
    pub mode: u16,
    /// 0.
    pub spare0: u16,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Attribute bits that are supported.
    pub attributes_mask: u64,
    /// Access.
    pub atime: StatxTime,
    /// Creation.
    pub btime: StatxTime,
    /// Change.
    pub ctime: StatxTime,
    /// Modification.
    pub mtime: StatxTime,
    /// Device node.
    pub rdev_major: u32,
    /// Device node.
    pub rdev_minor: u32,
    /// 0.
    pub dev_major: u32,
    /// 0.
    pub dev_minor: u32,
    /// 0.
    pub spare2: [u64; 14],
}

/// Reply to STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StatxOut {
    /// Seconds it may be cached.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// 0.
    pub flags: u32,
    /// 0.
    pub spare: [u64; 2],
    /// The attributes.
    pub stat: Statx,
}

/// Notification INVAL_INODE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyInvalInodeOut {
    /// Node.
    pub ino: u64,
    /// From here, negative for attributes only.
    pub off: i64,
    /// Bytes, 0 for all.
    pub len: i64,
}

/// Notification INVAL_ENTRY; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyInvalEntryOut {
    /// Directory.
    pub parent: u64,
    /// Bytes of the name.
    pub namelen: u32,
    /// 0.
    pub flags: u32,
}

/// Notification STORE; the data follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyStoreOut {
    /// Node.
    pub nodeid: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u32,
    /// 0.
    pub padding: u32,
}

/// Notification DELETE; the name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyDeleteOut {
    /// Directory.
    pub parent: u64,
    /// Node that had the name.
    pub child: u64,
    /// Bytes of the name.
    pub namelen: u32,
    /// 0.
    pub padding: u32,
}

const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<SetattrIn>() == 88);
const _: () = assert!(size_of::<MknodIn>() == 16);
const _: () = assert!(size_of::<OpenIn>() == 8);
const _: () = assert!(size_of::<CreateIn>() == 16);
const _: () = assert!(size_of::<OpenOut>() == 16);
const _: () = assert!(size_of::<CreateOut>() == 144);
const _: () = assert!(size_of::<ReadIn>() == 40);
const _: () = assert!(size_of::<WriteIn>() == 40);
const _: () = assert!(size_of::<Kstatfs>() == 80);
const _: () = assert!(size_of::<SetxattrIn>() == 16);
const _: () = assert!(size_of::<InitIn>() == 64);
const _: () = assert!(size_of::<InitOut>() == 64);
const _: () = assert!(size_of::<IoctlIn>() == 32);
const _: () = assert!(size_of::<IoctlOut>() == 16);
const _: () = assert!(size_of::<FallocateIn>() == 32);
const _: () = assert!(size_of::<LseekIn>() == 24);
const _: () = assert!(size_of::<CopyFileRangeIn>() == 56);
const _: () = assert!(size_of::<Statx>() == 256);
const _: () = assert!(size_of::<StatxIn>() == 24);
const _: () = assert!(size_of::<StatxOut>() == 288);
const _: () = assert!(size_of::<ReleaseIn>() == 24);
