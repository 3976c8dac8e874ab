//! The one public error of the library.
//!
//! POSIX cases carry POSIX names; damage on disk carries the place and the kind; [`Error::errno`] is exhaustive,
//! so a new case cannot be forgotten there.

use std::fmt;
use std::io;

use extant_format::{GroupNr, Ino, Lblk, Pblk};

/// `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug)]
pub enum Error {
    /// EPERM: the caller may not do this, whatever the mode bits say (ownership, flags, capabilities).
    NotPermitted,
    /// ENOENT: no such name.
    NotFound,
    /// EACCES: mode bits or ACL refuse.
    AccessDenied,
    /// EEXIST: the name exists already.
    Exists,
    /// EXDEV: hard link or rename across project ids.
    CrossDevice,
    /// ENOTDIR: a directory was needed.
    NotDirectory,
    /// EISDIR: a directory was not wanted.
    IsDirectory,
    /// EINVAL, with the argument that is wrong.
    Invalid(&'static str),
    /// EFBIG: past the largest size of this map kind and block size.
    FileTooBig,
    /// ENOSPC: no free block, or a directory that cannot grow.
    NoSpace,
    /// ENOSPC: no free inode.
    NoInodes,
    /// ENOSPC: an attribute that fits neither into the inode nor into its block, however much is free.
    NoRoom,
    /// EROFS: the mount is read-only.
    ReadOnly,
    /// EMLINK: the inode has as many links as it can.
    TooManyLinks,
    /// ENAMETOOLONG: a name over 255 bytes or a link target over one block.
    NameTooLong,
    /// ENOTEMPTY: the directory has entries.
    NotEmpty,
    /// ELOOP: too many symbolic links in a path.
    SymlinkLoop,
    /// ENODATA: no such extended attribute.
    NoAttribute,
    /// ERANGE: the caller's buffer is too small, or the attribute name is too long.
    Range,
    /// E2BIG: the attribute value is larger than the filesystem can hold.
    ValueTooBig,
    /// EBUSY: in use.
    Busy,
    /// ESTALE: the inode number names no live inode (of that generation).
    Stale,
    /// EOPNOTSUPP, with what is not supported.
    NotSupported(&'static str),
    /// EDQUOT: over a quota limit.
    QuotaExceeded,
    /// EINTR: the caller was interrupted while it waited for a long look.
    Interrupted,
    /// ENXIO: no data or hole past this offset, or no such device.
    NoSuchAddress,
    /// EBADF: the open file does not allow this.
    BadFile,
    /// ETXTBSY: the file is in a use that excludes this one (a swap file or the like).
    TextBusy,
    /// EAGAIN: would have to wait.
    WouldBlock,
    /// EDEADLK: would have to wait for what this thread itself holds.
    WouldDeadlock,
    /// ENOMEM: the memory budget is spent.
    OutOfMemory,
    /// EIO and friends: the device failed.
    Io(io::Error),
    /// EUCLEAN: the structure on disk contradicts itself.
    Corrupt(Box<Corruption>),
    /// EBADMSG: a checksum does not match.
    Checksum(Place),
    /// EINVAL at mount: the filesystem needs something that this program does not have.
    Incompatible(Box<str>),
    /// EIO: the journal was aborted or the filesystem was shut down; nothing is written any more.
    Shutdown,
}

/// Damage: where, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Where it was found.
    pub place: Place,
    /// What is wrong, with the values.
    pub kind: CorruptKind,
}

/// A place on disk, for messages and the superblock's error record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// A group's descriptor or bitmaps.
    Group(GroupNr),
    /// A block.
    Block(Pblk),
    /// An inode.
    Inode(Ino),
    /// A block of a directory.
    DirBlock {
        /// The directory.
        ino: Ino,
        /// The block in it.
        lblk: Lblk,
    },
    /// An extended-attribute block of an inode.
    XattrBlock {
        /// The inode that refers to it.
        ino: Ino,
        /// The block.
        pblk: Pblk,
    },
    /// The journal.
    Journal,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Group(g) => write!(f, "group {g}"),
            Self::Block(b) => write!(f, "block {b}"),
            Self::Inode(i) => write!(f, "inode {i}"),
            Self::DirBlock { ino, lblk } => write!(f, "directory inode {ino}, block {lblk} of it"),
            Self::XattrBlock { ino, pblk } => write!(f, "extended attributes of inode {ino} in block {pblk}"),
            Self::Journal => f.write_str("journal"),
        }
    }
}

/// What is wrong with a structure on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorruptKind {
    /// A field of an inode is impossible; which, and its value.
    InodeField(&'static str, u64),
    /// An inode number outside the filesystem, or of a reserved inode, where an ordinary one belongs.
    InodeNumber(u64),
    /// A name refers to an inode that is not in use.
    DeadInode(Ino),
    /// A directory entry is malformed: what, and at which byte of the block.
    Dirent(&'static str, u32),
    /// A directory's hash tree is malformed.
    Htree(&'static str),
    /// The same in a way that leaves the names readable from end to end, as the kernel reads them then.
    BadIndex(Box<str>),
    /// A directory has a hole, or no first block.
    DirectoryHole,
    /// A directory's `..` does not lead to a directory that holds it.
    Parent(Ino),
    /// Extended attributes are malformed.
    Xattr(&'static str),
    /// An access control list is malformed.
    Acl,
    /// Inline data is malformed.
    InlineData(&'static str),
    /// A symbolic link is malformed.
    Symlink(&'static str),
    /// The list of orphans is malformed.
    Orphans(&'static str),
    /// A block map is malformed; the map room's own words.
    Map(Box<str>),
    /// Allocation bitmaps or counters are inconsistent; the allocator's own words.
    Allocation(Box<str>),
    /// A group descriptor or superblock field is impossible; the format room's own words.
    Layout(Box<str>),
    /// The journal is malformed; the journal room's own words.
    Journal(Box<str>),
    /// A quota file is malformed; the quota room's own words.
    Quota(Box<str>),
}

impl fmt::Display for CorruptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InodeField(name, v) => write!(f, "{name} is {v:#x}"),
            Self::InodeNumber(n) => write!(f, "impossible inode number {n}"),
            Self::DeadInode(i) => write!(f, "a name refers to inode {i}, which is not in use"),
            Self::Dirent(what, at) => write!(f, "directory entry at byte {at}: {what}"),
            Self::Htree(what) => write!(f, "hash tree: {what}"),
            Self::DirectoryHole => f.write_str("directory with a hole"),
            Self::Parent(i) => write!(f, "`..` leads to inode {i}, which does not fit"),
            Self::Xattr(what) => write!(f, "extended attributes: {what}"),
            Self::Acl => f.write_str("malformed access control list"),
            Self::InlineData(what) => write!(f, "inline data: {what}"),
            Self::Symlink(what) => write!(f, "symbolic link: {what}"),
            Self::Orphans(what) => write!(f, "orphans: {what}"),
            Self::BadIndex(what) => write!(f, "the index does not count: {what}"),
            Self::Map(what)
            | Self::Allocation(what)
            | Self::Layout(what)
            | Self::Journal(what)
            | Self::Quota(what) => f.write_str(what),
        }
    }
}

impl Error {
    /// Damage of `kind` found at `place`.
    #[must_use]
    pub fn corrupt(place: Place, kind: CorruptKind) -> Self {
        Self::Corrupt(Box::new(Corruption { place, kind }))
    }

    /// Damage in an inode's field.
    #[must_use]
    pub fn bad_inode(ino: Ino, field: &'static str, value: u64) -> Self {
        Self::corrupt(Place::Inode(ino), CorruptKind::InodeField(field, value))
    }

    /// Whether this is damage on disk (which `errors=` applies to).
    #[must_use]
    pub const fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt(_) | Self::Checksum(_))
    }

    /// The place of damage, when it is damage.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Corrupt(c) => Some(c.place),
            Self::Checksum(p) => Some(*p),
            _ => None,
        }
    }

    /// The error number a system call would return (positive).
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotPermitted => errno::EPERM,
            Self::NotFound => errno::ENOENT,
            Self::AccessDenied => errno::EACCES,
            Self::Exists => errno::EEXIST,
            Self::CrossDevice => errno::EXDEV,
            Self::NotDirectory => errno::ENOTDIR,
            Self::IsDirectory => errno::EISDIR,
            Self::Invalid(_) | Self::Incompatible(_) => errno::EINVAL,
            Self::FileTooBig => errno::EFBIG,
            Self::NoSpace | Self::NoInodes | Self::NoRoom => errno::ENOSPC,
            Self::ReadOnly => errno::EROFS,
            Self::TooManyLinks => errno::EMLINK,
            Self::NameTooLong => errno::ENAMETOOLONG,
            Self::NotEmpty => errno::ENOTEMPTY,
            Self::SymlinkLoop => errno::ELOOP,
            Self::NoAttribute => errno::ENODATA,
            Self::Range => errno::ERANGE,
            Self::ValueTooBig => errno::E2BIG,
            Self::Busy => errno::EBUSY,
            Self::Stale => errno::ESTALE,
            Self::NotSupported(_) => errno::EOPNOTSUPP,
            Self::QuotaExceeded => errno::EDQUOT,
            Self::Interrupted => errno::EINTR,
            Self::NoSuchAddress => errno::ENXIO,
            Self::BadFile => errno::EBADF,
            Self::TextBusy => errno::ETXTBSY,
            Self::WouldBlock => errno::EAGAIN,
            Self::WouldDeadlock => errno::EDEADLK,
            Self::OutOfMemory => errno::ENOMEM,
            Self::Io(e) => e.raw_os_error().filter(|&n| n > 0).unwrap_or(errno::EIO),
            Self::Corrupt(_) => errno::EUCLEAN,
            Self::Checksum(_) => errno::EBADMSG,
            Self::Shutdown => errno::EIO,
        }
    }
}

/// Linux error numbers, by name.
pub mod errno {
    macro_rules! errnos {
        ($($name:ident = $n:literal),+ $(,)?) => {
            $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: i32 = $n;)+
        };
    }
    errnos! {
        EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14,
        EBUSY = 16, EEXIST = 17, EXDEV = 18, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ETXTBSY = 26, EFBIG = 27,
        ENOSPC = 28, EROFS = 30, EMLINK = 31, ERANGE = 34, EDEADLK = 35, ENAMETOOLONG = 36, ENOTEMPTY = 39, ELOOP = 40,
        ENODATA = 61, EBADMSG = 74, EOPNOTSUPP = 95, ESTALE = 116, EUCLEAN = 117, EDQUOT = 122,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NotPermitted => "operation not permitted",
            Self::NotFound => "no such file or directory",
            Self::AccessDenied => "permission denied",
            Self::Exists => "file exists",
            Self::CrossDevice => "not within one project",
            Self::NotDirectory => "not a directory",
            Self::IsDirectory => "is a directory",
            Self::Invalid(what) => return write!(f, "invalid argument: {what}"),
            Self::FileTooBig => "file too large",
            Self::NoSpace => "no space left on the filesystem",
            Self::NoInodes => "no inode left on the filesystem",
            Self::NoRoom => "no room for the attribute in the inode and its block",
            Self::ReadOnly => "read-only filesystem",
            Self::TooManyLinks => "too many links",
            Self::NameTooLong => "name too long",
            Self::NotEmpty => "directory not empty",
            Self::SymlinkLoop => "too many levels of symbolic links",
            Self::NoAttribute => "no such extended attribute",
            Self::Range => "result too large for the buffer",
            Self::ValueTooBig => "attribute value too large",
            Self::Busy => "in use",
            Self::Stale => "stale inode number",
            Self::NotSupported(what) => return write!(f, "not supported: {what}"),
            Self::QuotaExceeded => "disk quota exceeded",
            Self::Interrupted => "interrupted",
            Self::NoSuchAddress => "no such device or address",
            Self::BadFile => "the open file does not allow this",
            Self::TextBusy => "file busy",
            Self::WouldBlock => "would block",
            Self::WouldDeadlock => "would wait for what this thread holds itself",
            Self::OutOfMemory => "out of memory",
            Self::Io(e) => return write!(f, "device: {e}"),
            Self::Corrupt(c) => return write!(f, "damaged filesystem: {}: {}", c.place, c.kind),
            Self::Checksum(place) => return write!(f, "wrong checksum: {place}"),
            Self::Incompatible(why) => return write!(f, "cannot mount: {why}"),
            Self::Shutdown => "the filesystem was shut down after an error",
        };
        f.write_str(text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<extant_format::FormatError> for Error {
    fn from(e: extant_format::FormatError) -> Self {
        use extant_format::FormatError as F;
        match e {
            F::Corrupt { place, kind } => {
                Self::corrupt(place.into(), CorruptKind::Layout(format!("{place}: {kind}").into()))
            }
            F::Checksum { place, .. } => Self::Checksum(place.into()),
            F::Incompatible(features) => {
                Self::Incompatible(format!("it uses features that are not supported: {features}").into())
            }
            F::Full { place, .. } => Self::corrupt(place.into(), CorruptKind::Layout(e.to_string().into())),
            F::TooBig { .. } => Self::FileTooBig,
        }
    }
}

impl From<extant_format::Place> for Place {
    fn from(place: extant_format::Place) -> Self {
        use extant_format::Place as P;
        match place {
            P::Superblock => Self::Superblock,
            P::GroupDesc(g) | P::BlockBitmap(g) | P::InodeBitmap(g) => Self::Group(g),
            P::Inode(i) | P::ExtentNode(i, None) | P::InlineData(i) | P::InodeXattr(i) | P::Quota(i, _) => {
                Self::Inode(i)
            }
            P::ExtentNode(_, Some(b))
            | P::IndirectBlock(_, b)
            | P::XattrBlock(b)
            | P::Mmp(b)
            | P::Block(b) => Self::Block(b),
            P::DirBlock(ino, lblk) => Self::DirBlock { ino, lblk },
            P::OrphanFile(_) => Self::Superblock,
            P::Journal(_) => Self::Journal,
        }
    }
}

impl From<extant_journal::Error> for Error {
    fn from(e: extant_journal::Error) -> Self {
        use extant_journal::Error as J;
        let place = match &e {
            J::OutOfRange { pblk, .. } | J::Forgotten(pblk) | J::Journalled(pblk) => Place::Block(*pblk),
            _ => Place::Journal,
        };
        match e {
            J::Read { ref source, .. } | J::Write { ref source, .. } | J::Log { ref source, .. } => {
                copy_io(source, &e)
            }
            J::Flush(ref source) | J::Thread(ref source) => copy_io(source, &e),
            J::Aborted(_) => Self::Shutdown,
            J::TooManyCredits { .. } | J::OutOfCredits(_) => {
                Self::Incompatible(format!("{e}: the journal is too small").into())
            }
            J::Checksum { .. } => Self::Checksum(place),
            e => Self::corrupt(place, CorruptKind::Journal(e.to_string().into())),
        }
    }
}

/// The same error of a device once more: the number if there is one, else kind and words.
fn copy_io(source: &io::Error, whole: &extant_journal::Error) -> Error {
    Error::Io(match source.raw_os_error() {
        Some(n) => io::Error::from_raw_os_error(n),
        None => io::Error::new(source.kind(), whole.to_string()),
    })
}

impl From<extant_alloc::AllocError> for Error {
    fn from(e: extant_alloc::AllocError) -> Self {
        use extant_alloc::AllocError as A;
        match e {
            A::NoSpace { .. } => Self::NoSpace,
            A::NoInodes => Self::NoInodes,
            A::Format(e) => e.into(),
            A::NotData { pblk, .. } => {
                Self::corrupt(Place::Block(pblk), CorruptKind::Allocation(e.to_string().into()))
            }
            A::NotInode { ino } => {
                Self::corrupt(Place::Inode(ino), CorruptKind::Allocation(e.to_string().into()))
            }
            A::CorruptGroup { group } => {
                Self::corrupt(Place::Group(group), CorruptKind::Allocation(e.to_string().into()))
            }
            A::Journal(e) => e.into(),
            A::Device(e) => Self::Io(e),
        }
    }
}

impl From<extant_map::MapError> for Error {
    fn from(e: extant_map::MapError) -> Self {
        use extant_map::MapError as M;
        match e {
            M::Format(e) => e.into(),
            M::NotData { ino, .. } | M::Overlap { ino, .. } => {
                Self::corrupt(Place::Inode(ino), CorruptKind::Map(e.to_string().into()))
            }
            M::TooBig { .. } => Self::FileTooBig,
            M::NoUnwritten { .. } => Self::NotSupported("unwritten blocks in a file without extents"),
            M::Alloc(e) => e.into(),
            M::Journal(e) => e.into(),
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Io(e) => e,
            // The number is what `io::ErrorKind` is derived from; the words would be lost for damage, so keep them.
            e if e.is_corruption() || matches!(e, Error::Incompatible(_)) => Self::other(e),
            e => Self::from_raw_os_error(e.errno()),
        }
    }
}
