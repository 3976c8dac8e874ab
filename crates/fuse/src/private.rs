//! Our own ioctls on files of a mount, for what FUSE does not carry: extents, moving blocks, the modes of fallocate(2) that the kernel
//! keeps to itself. `docs/ioctls.md` is their reference; here are the bytes, and the calls for programs that use them.
//!
//! The kernel passes on as many bytes as a command's number says, and follows no pointers. So each command has one buffer of a fixed
//! size, that comes and goes; what is longer is asked for piece by piece.

use std::io;
use std::os::fd::AsFd;

use extant::{Dqblk, FiemapExtent, FiemapFlags, FiemapHow, MoveRange};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `_IOWR('E', 0xE2, struct extant_fiemap)`
pub const FIEMAP: u32 = 0xdfd8_45e2;
/// `_IOWR('E', 0xE3, struct extant_fallocate)`
pub const FALLOCATE: u32 = 0xc018_45e3;
/// `_IOWR('E', 0xE4, struct extant_move_ext)`
pub const MOVE_EXT: u32 = 0xc030_45e4;

/// `_IOWR('E', 0xE5, struct extant_quota)`
pub const QUOTA: u32 = 0xd220_45e5;

/// Extents that one [`FIEMAP`] has room for.
pub const FIEMAP_ROOM: usize = 145;
const FIEMAP_SIZE: usize = size_of::<FiemapHead>() + FiemapExtent::SIZE * FIEMAP_ROOM;

/// The head of a [`FIEMAP`], as the kernel's `struct fiemap`; extents follow, each a `struct fiemap_extent`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FiemapHead {
    /// First byte asked for.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
    /// [`FiemapHow`]
    pub flags: u32,
    /// Answer: extents found.
    pub mapped_extents: u32,
    /// Extents wanted, of which there is room for [`FIEMAP_ROOM`]; with 0 they are counted only.
    pub extent_count: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct extant_fallocate`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fallocate {
    /// As fallocate(2)'s.
    pub mode: u32,
    /// 0.
    pub reserved: u32,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// `struct extant_move_ext`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MoveExt {
    /// The donor's inode number.
    pub donor_ino: u64,
    /// Its generation (`FS_IOC_GETVERSION`).
    pub donor_generation: u32,
    /// 0.
    pub reserved: u32,
    /// First block of the file.
    pub orig_start: u64,
    /// First block of the donor.
    pub donor_start: u64,
    /// How many.
    pub len: u64,
    /// Answer: how many were moved.
    pub moved_len: u64,
}

/// What a [`QUOTA`] is to do.
pub mod quota_op {
    /// Tell kinds and grace times.
    pub const LOOK: u32 = 0;
    /// Tell usage and limits of ids from `id` on, up to `count`.
    pub const LIST: u32 = 1;
    /// Tell those of `id`; zeros if there are none.
    pub const GET: u32 = 2;
    /// Set the limits of `id` to those of the first entry.
    pub const SET: u32 = 3;
    /// Set the grace times.
    pub const SET_GRACE: u32 = 4;
}

/// Ids that one [`QUOTA`] has room for.
pub const QUOTA_ROOM: usize = 64;
const QUOTA_SIZE: usize = size_of::<QuotaHead>() + size_of::<QuotaEntry>() * QUOTA_ROOM;

/// The head of a [`QUOTA`]; entries follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuotaHead {
    /// [`quota_op`]
    pub op: u32,
    /// User 0, group 1, project 2.
    pub kind: u32,
    /// The id.
    pub id: u32,
    /// Entries wanted, and how many there are in the answer.
    pub count: u32,
    /// Seconds for which a soft limit of space may be passed.
    pub space_grace: u32,
    /// The same of inodes.
    pub inodes_grace: u32,
    /// Answer: the kinds on record, a bit each.
    pub kinds: u32,
    /// 0.
    pub reserved: u32,
}

/// Usage and limits of one id.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuotaEntry {
    /// The id.
    pub id: u32,
    /// 0.
    pub reserved: u32,
    /// Most space in KiB; 0: no limit.
    pub space_hard: u64,
    /// Space in KiB above which the grace time runs.
    pub space_soft: u64,
    /// Space in use, in bytes.
    pub space: u64,
    /// When the grace time of space ends, in seconds since 1970; 0: it does not run.
    pub space_ends: u64,
    /// Most inodes.
    pub inodes_hard: u64,
    /// Inodes above which the grace time runs.
    pub inodes_soft: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// When the grace time of inodes ends.
    pub inodes_ends: u64,
}

impl QuotaEntry {
    /// One of the library's.
    #[must_use]
    pub fn new(id: u32, dq: &Dqblk) -> Self {
        Self {
            id,
            reserved: 0,
            space_hard: dq.bhardlimit,
            space_soft: dq.bsoftlimit,
            space: dq.curspace,
            space_ends: dq.btime,
            inodes_hard: dq.ihardlimit,
            inodes_soft: dq.isoftlimit,
            inodes: dq.curinodes,
            inodes_ends: dq.itime,
        }
    }

    /// As the library has it.
    #[must_use]
    pub fn dqblk(&self) -> Dqblk {
        Dqblk {
            ihardlimit: self.inodes_hard,
            isoftlimit: self.inodes_soft,
            curinodes: self.inodes,
            bhardlimit: self.space_hard,
            bsoftlimit: self.space_soft,
            curspace: self.space,
            btime: self.space_ends,
            itime: self.inodes_ends,
        }
    }
}

/// One [`QUOTA`] on a file or directory of a mount of ours: the head and its entries, as they go and as they come.
///
/// # Errors
/// `ENOTTY` for a file of another filesystem; `EPERM` without `CAP_SYS_ADMIN` for anything but one's own numbers; those of
/// [`extant::Filesystem::quota_list`] and its like.
pub fn quota(
    file: impl AsFd,
    head: QuotaHead,
    limits: QuotaEntry,
) -> io::Result<(QuotaHead, Vec<QuotaEntry>)> {
    let mut bytes = [0; QUOTA_SIZE];
    let (of_head, entries) = bytes.split_at_mut(size_of::<QuotaHead>());
    of_head.copy_from_slice(head.as_bytes());
    entries[..size_of::<QuotaEntry>()].copy_from_slice(limits.as_bytes());
    extant_sys::fuse::exchange::<{ QUOTA }, QUOTA_SIZE>(file, &mut bytes)?;
    let (head, rest) = QuotaHead::read_from_prefix(&bytes).map_err(|_| io::Error::from(Errno::INVAL))?;
    let entries = rest.chunks_exact(size_of::<QuotaEntry>()).take(head.count as usize);
    Ok((head, entries.filter_map(|bytes| QuotaEntry::read_from_bytes(bytes).ok()).collect()))
}

const _: () = assert!(size_of::<QuotaHead>() == 32 && size_of::<QuotaEntry>() == 72 && QUOTA_SIZE == 4640);
const _: () = assert!(size_of::<FiemapHead>() == 32 && FIEMAP_SIZE == 8152);
const _: () = assert!(size_of::<Fallocate>() == 24 && size_of::<MoveExt>() == 48);

/// The extents of a file of a mount of ours that the range touches.
///
/// # Errors
/// `ENOTTY` for a file of another filesystem; those of [`extant::Filesystem::fiemap`].
pub fn fiemap(file: impl AsFd, start: u64, len: u64, how: FiemapHow) -> io::Result<Vec<FiemapExtent>> {
    let mut all: Vec<FiemapExtent> = Vec::new();
    let end = start.saturating_add(len);
    let mut at = start;
    loop {
        let some = fiemap_once(&file, at, end - at, how)?;
        let Some(last) = some.last().copied() else { return Ok(all) };
        all.extend(some);
        at = last.logical.saturating_add(last.length);
        // What is in the inode or beside it comes as one.
        let whole = last.flags.contains(FiemapFlags::DATA_INLINE) || how.contains(FiemapHow::XATTR);
        if last.flags.contains(FiemapFlags::LAST) || whole || at >= end || last.length == 0 {
            return Ok(all);
        }
    }
}

fn fiemap_once(file: impl AsFd, start: u64, length: u64, how: FiemapHow) -> io::Result<Vec<FiemapExtent>> {
    let (flags, extent_count) = (how.bits(), FIEMAP_ROOM as u32);
    let head = FiemapHead { start, length, flags, extent_count, ..FiemapHead::default() };
    let mut bytes = [0; FIEMAP_SIZE];
    bytes[..size_of::<FiemapHead>()].copy_from_slice(head.as_bytes());
    extant_sys::fuse::exchange::<{ FIEMAP }, FIEMAP_SIZE>(file, &mut bytes)?;
    let (head, rest) = FiemapHead::read_from_prefix(&bytes).map_err(|_| io::Error::from(Errno::INVAL))?;
    let (extents, _) = rest.as_chunks::<{ FiemapExtent::SIZE }>();
    Ok(extents.iter().take(head.mapped_extents as usize).map(FiemapExtent::from_bytes).collect())
}

/// fallocate(2) with any mode that the filesystem knows, on a file of a mount of ours.
///
/// # Errors
/// `ENOTTY` for a file of another filesystem; `EAGAIN` while another one has the kernel's cache dropped, and nothing is done then; those
/// of [`extant::Filesystem::fallocate`].
pub fn fallocate(file: impl AsFd, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    let mut bytes = [0; size_of::<Fallocate>()];
    bytes.copy_from_slice(Fallocate { mode, reserved: 0, offset, length }.as_bytes());
    extant_sys::fuse::exchange::<{ FALLOCATE }, { size_of::<Fallocate>() }>(&file, &mut bytes)?;
    // The kernel asks for the size that it has now.
    rustix::fs::fstat(file)?;
    Ok(())
}

/// Moves content of `orig` to blocks of `donor`, both on one mount of ours; how many blocks.
///
/// # Errors
/// `ENOTTY` for a file of another filesystem; `EXDEV` for two mounts; `EBADF` for a donor that nobody has open for writing; `EAGAIN` as
/// [`fallocate`]; those of [`extant::OpenFile::move_extents`].
pub fn move_ext(orig: impl AsFd, donor: impl AsFd, range: MoveRange) -> io::Result<u64> {
    let (of_orig, of_donor) = (rustix::fs::fstat(&orig)?, rustix::fs::fstat(&donor)?);
    if of_orig.st_dev != of_donor.st_dev {
        return Err(Errno::XDEV.into());
    }
    let asked = MoveExt {
        donor_ino: of_donor.st_ino,
        donor_generation: extant_sys::fuse::generation(donor)?,
        orig_start: range.orig_start,
        donor_start: range.donor_start,
        len: range.len,
        ..MoveExt::default()
    };
    let mut bytes = [0; size_of::<MoveExt>()];
    bytes.copy_from_slice(asked.as_bytes());
    extant_sys::fuse::exchange::<{ MOVE_EXT }, { size_of::<MoveExt>() }>(orig, &mut bytes)?;
    let answer = MoveExt::read_from_bytes(&bytes).map_err(|_| io::Error::from(Errno::INVAL))?;
    Ok(answer.moved_len)
}
