//! Inodes: records of 128 to 4096 bytes with the extra fields that `i_extra_isize` covers.
//!
//! [`InodeFormat`] knows what a filesystem's features make of the bytes; [`Inode`] is the decoded value. Encoding
//! writes only the fields known here, so bytes without a meaning and the extended attributes behind the fields
//! survive. Source: the kernel's ext4 documentation, "Index Nodes" (`struct ext4_inode`).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::csum::{Csum, inode_has_checksum_hi};
use crate::error::{Corrupt, FormatError, Place};
use crate::features::{Incompat, RoCompat};
use crate::superblock::Superblock;
use crate::types::{Ino, Pblk};

pub mod device;
pub mod time;

pub use time::Timestamp;

#[cfg(test)]
mod tests;

/// Bytes of the inode that every filesystem has (`EXT2_GOOD_OLD_INODE_SIZE`).
pub const GOOD_OLD_INODE_SIZE: u16 = 128;
/// Bytes of `i_block`.
pub const I_BLOCK_SIZE: usize = 60;
/// Links that an inode may have; a directory with `dir_nlink` shows 1 beyond it.
pub const LINK_MAX: u16 = 65000;

bitflags! {
    /// `i_flags`
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct InodeFlags: u32 {
        /// `s`: secure deletion; without effect.
        const SECRM = 0x1;
        /// `u`: undelete; without effect.
        const UNRM = 0x2;
        /// `c`: compressed; without effect.
        const COMPR = 0x4;
        /// `S`: synchronous writes.
        const SYNC = 0x8;
        /// `i`: immutable.
        const IMMUTABLE = 0x10;
        /// `a`: append only.
        const APPEND = 0x20;
        /// `d`: not for dump(8).
        const NODUMP = 0x40;
        /// `A`: no access times.
        const NOATIME = 0x80;
        /// Unused.
        const DIRTY = 0x100;
        /// Unused.
        const COMPRBLK = 0x200;
        /// `m`: do not compress; without effect.
        const NOCOMPR = 0x400;
        /// `E`: encrypted.
        const ENCRYPT = 0x800;
        /// `I`: the directory has a hash tree.
        const INDEX = 0x1000;
        /// AFS directory; unused.
        const IMAGIC = 0x2000;
        /// `j`: data goes through the journal.
        const JOURNAL_DATA = 0x4000;
        /// `t`: no tail merging; without effect.
        const NOTAIL = 0x8000;
        /// `D`: synchronous directory changes.
        const DIRSYNC = 0x10000;
        /// `T`: top of a directory hierarchy, for the inode allocator.
        const TOPDIR = 0x20000;
        /// `i_blocks` counts filesystem blocks.
        const HUGE_FILE = 0x40000;
        /// `e`: `i_block` holds an extent tree.
        const EXTENTS = 0x80000;
        /// `V`: under fs-verity.
        const VERITY = 0x10_0000;
        /// Holds the value of an extended attribute.
        const EA_INODE = 0x20_0000;
        /// Deprecated: blocks beyond the end of the file.
        const EOFBLOCKS = 0x40_0000;
        /// `x`: DAX.
        const DAX = 0x200_0000;
        /// `N`: inline data.
        const INLINE_DATA = 0x1000_0000;
        /// `P`: children inherit the project id.
        const PROJINHERIT = 0x2000_0000;
        /// `F`: names are compared without case.
        const CASEFOLD = 0x4000_0000;
        /// Kept for the library.
        const RESERVED = 0x8000_0000;
        const _ = !0;
    }
}

impl InodeFlags {
    /// Flags that FS_IOC_GETFLAGS shows.
    pub const USER_VISIBLE: Self = Self::from_bits_retain(0x725B_DFFF);
    /// Flags that FS_IOC_SETFLAGS may change (journal data, extents, casefold and DAX have rules of their own).
    pub const USER_MODIFIABLE: Self = Self::from_bits_retain(0x624B_C0FF);
    /// Flags that a new inode takes over from its directory, before [`InodeFlags::inherited_by`] masks by type.
    pub const INHERITED: Self = Self::from_bits_retain(
        Self::SECRM.bits()
            | Self::UNRM.bits()
            | Self::COMPR.bits()
            | Self::SYNC.bits()
            | Self::NODUMP.bits()
            | Self::NOATIME.bits()
            | Self::NOCOMPR.bits()
            | Self::JOURNAL_DATA.bits()
            | Self::NOTAIL.bits()
            | Self::DIRSYNC.bits()
            | Self::PROJINHERIT.bits()
            | Self::CASEFOLD.bits()
            | Self::DAX.bits(),
    );

    /// What a new inode of type `kind` inherits from a directory with these flags.
    #[must_use]
    pub fn inherited_by(self, kind: FileType) -> Self {
        let flags = self.intersection(Self::INHERITED);
        match kind {
            FileType::Directory => flags,
            FileType::Regular => {
                flags.difference(Self::DIRSYNC | Self::TOPDIR | Self::CASEFOLD | Self::PROJINHERIT)
            }
            _ => flags.intersection(Self::NODUMP | Self::NOATIME),
        }
    }
}

/// The type bits of `i_mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileType {
    /// S_IFREG
    Regular,
    /// S_IFDIR
    Directory,
    /// S_IFCHR
    CharDevice,
    /// S_IFBLK
    BlockDevice,
    /// S_IFIFO
    Fifo,
    /// S_IFSOCK
    Socket,
    /// S_IFLNK
    Symlink,
}

impl FileType {
    /// From the top four bits of a mode.
    #[must_use]
    pub const fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0xf000 {
            0x1000 => Self::Fifo,
            0x2000 => Self::CharDevice,
            0x4000 => Self::Directory,
            0x6000 => Self::BlockDevice,
            0x8000 => Self::Regular,
            0xa000 => Self::Symlink,
            0xc000 => Self::Socket,
            _ => return None,
        })
    }

    /// The top four bits of a mode.
    #[must_use]
    pub const fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0x1000,
            Self::CharDevice => 0x2000,
            Self::Directory => 0x4000,
            Self::BlockDevice => 0x6000,
            Self::Regular => 0x8000,
            Self::Symlink => 0xa000,
            Self::Socket => 0xc000,
        }
    }

    /// The file type byte of a directory entry (`EXT4_FT_*`).
    #[must_use]
    pub const fn dirent_code(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    /// From the file type byte of a directory entry; `None` for 0 (unknown) and the checksum tail's 0xde.
    #[must_use]
    pub const fn from_dirent_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}

/// `struct ext4_inode`, extra fields included. `i_checksum_lo/hi` cover inode number, generation and the whole
/// record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawInode {
    pub i_mode: U16,
    pub i_uid: U16,
    pub i_size_lo: U32,
    pub i_atime: U32,
    pub i_ctime: U32,
    pub i_mtime: U32,
    pub i_dtime: U32,
    pub i_gid: U16,
    pub i_links_count: U16,
    pub i_blocks_lo: U32,
    pub i_flags: U32,
    pub l_i_version: U32,
    pub i_block: [u8; I_BLOCK_SIZE],
    pub i_generation: U32,
    pub i_file_acl_lo: U32,
    pub i_size_high: U32,
    pub i_obso_faddr: U32,
    pub l_i_blocks_high: U16,
    pub l_i_file_acl_high: U16,
    pub l_i_uid_high: U16,
    pub l_i_gid_high: U16,
    pub l_i_checksum_lo: U16,
    pub l_i_reserved: U16,
    pub i_extra_isize: U16,
    pub i_checksum_hi: U16,
    pub i_ctime_extra: U32,
    pub i_mtime_extra: U32,
    pub i_atime_extra: U32,
    pub i_crtime: U32,
    pub i_crtime_extra: U32,
    pub i_version_hi: U32,
    pub i_projid: U32,
}

/// Bytes of [`RawInode`].
const RAW_SIZE: usize = 160;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<RawInode>() == RAW_SIZE);
    assert!(offset_of!(RawInode, i_block) == 0x28);
    assert!(offset_of!(RawInode, i_generation) == 0x64);
    assert!(offset_of!(RawInode, l_i_checksum_lo) == 0x7c);
    assert!(offset_of!(RawInode, i_extra_isize) == 0x80);
    assert!(offset_of!(RawInode, i_checksum_hi) == 0x82);
    assert!(offset_of!(RawInode, i_crtime) == 0x90);
    assert!(offset_of!(RawInode, i_projid) == 0x9c);
};

/// The `i_extra_isize` at which a field exists.
mod reach {
    pub(super) const CTIME: u16 = 8;
    pub(super) const MTIME: u16 = 12;
    pub(super) const ATIME: u16 = 16;
    pub(super) const CRTIME: u16 = 20;
    pub(super) const CRTIME_EXTRA: u16 = 24;
    pub(super) const VERSION: u16 = 28;
    pub(super) const PROJID: u16 = 32;
}

/// A decoded inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Links as stored.
    pub links_count: u16,
    /// Space taken, in sectors of 512 bytes, whatever the unit on disk.
    pub blocks: u64,
    /// `i_flags`; `HUGE_FILE` is set and cleared by encoding as `blocks` asks for.
    pub flags: InodeFlags,
    /// `i_generation`
    pub generation: u32,
    /// Block of extended attributes, 0 for none.
    pub file_acl: Pblk,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Creation; meaningless where the record has no room for it.
    pub crtime: Timestamp,
    /// Deletion in seconds since 1970, or the next inode of the orphan list.
    pub dtime: u32,
    /// Map root, symbolic link, device number or inline data.
    pub i_block: [u8; I_BLOCK_SIZE],
    /// `i_version`; its upper half only where the record has room.
    pub version: u64,
    /// Project id; 0 where the record has no room.
    pub projid: u32,
    /// `i_extra_isize`, 0 in records of 128 bytes.
    pub extra_isize: u16,
}

impl Default for Inode {
    fn default() -> Self {
        Self {
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            links_count: 0,
            blocks: 0,
            flags: InodeFlags::empty(),
            generation: 0,
            file_acl: Pblk(0),
            atime: Timestamp::default(),
            ctime: Timestamp::default(),
            mtime: Timestamp::default(),
            crtime: Timestamp::default(),
            dtime: 0,
            i_block: [0; I_BLOCK_SIZE],
            version: 0,
            projid: 0,
            extra_isize: 0,
        }
    }
}

/// What a filesystem's features make of inode records. Small and `Copy`: every room keeps one.
#[derive(Clone, Copy, Debug)]
pub struct InodeFormat {
    inode_size: u16,
    log_block_size: u8,
    huge_file: bool,
    large_dir: bool,
    csum: Csum,
}

impl InodeFormat {
    /// From a superblock.
    #[must_use]
    pub fn new(sb: &Superblock) -> Self {
        let features = sb.features();
        Self {
            inode_size: sb.geometry().inode_size(),
            log_block_size: sb.geometry().log_block_size() as u8,
            huge_file: features.ro_compat.contains(RoCompat::HUGE_FILE),
            large_dir: features.incompat.contains(Incompat::LARGEDIR),
            csum: *sb.csum(),
        }
    }

    /// Bytes of a record.
    #[must_use]
    pub const fn inode_size(&self) -> u16 {
        self.inode_size
    }

    /// Verifies the checksum, decodes and checks.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`FormatError::Corrupt`].
    pub fn read(&self, ino: Ino, bytes: &[u8]) -> Result<Inode, FormatError> {
        self.verify_checksum(ino, bytes)?;
        let inode = self.decode(ino, bytes)?;
        inode.validate(ino, self.inode_size)?;
        Ok(inode)
    }

    /// Decodes without checking values. Extra fields beyond `i_extra_isize` read as zero.
    ///
    /// # Errors
    /// [`Corrupt::Short`] when `bytes` is less than a record.
    pub fn decode(&self, ino: Ino, bytes: &[u8]) -> Result<Inode, FormatError> {
        let raw = self.raw(ino, bytes)?;
        let extra = raw.i_extra_isize.get();
        let has = |reach: u16| extra >= reach;
        let mode = raw.i_mode.get();
        let time = |low: U32, high: U32, reach| time::decode(low.get(), has(reach).then(|| high.get()));
        let crtime = has(reach::CRTIME).then(|| time(raw.i_crtime, raw.i_crtime_extra, reach::CRTIME_EXTRA));
        let version_hi = if has(reach::VERSION) { u64::from(raw.i_version_hi.get()) } else { 0 };
        let file_acl = u64::from(raw.i_file_acl_lo.get()) | u64::from(raw.l_i_file_acl_high.get()) << 32;
        Ok(Inode {
            mode,
            uid: u32::from(raw.i_uid.get()) | u32::from(raw.l_i_uid_high.get()) << 16,
            gid: u32::from(raw.i_gid.get()) | u32::from(raw.l_i_gid_high.get()) << 16,
            size: self.decode_size(&raw),
            links_count: raw.i_links_count.get(),
            blocks: self.decode_blocks(&raw),
            flags: InodeFlags::from_bits_retain(raw.i_flags.get()),
            generation: raw.i_generation.get(),
            file_acl: Pblk(file_acl),
            atime: time(raw.i_atime, raw.i_atime_extra, reach::ATIME),
            ctime: time(raw.i_ctime, raw.i_ctime_extra, reach::CTIME),
            mtime: time(raw.i_mtime, raw.i_mtime_extra, reach::MTIME),
            crtime: crtime.unwrap_or_default(),
            dtime: raw.i_dtime.get(),
            i_block: raw.i_block,
            version: u64::from(raw.l_i_version.get()) | version_hi << 32,
            projid: if has(reach::PROJID) { raw.i_projid.get() } else { 0 },
            extra_isize: extra,
        })
    }

    /// The upper half of the size counts for regular files, and for everything with `large_dir`; in a directory of
    /// ext2 the same field was `i_dir_acl`.
    fn decode_size(&self, raw: &RawInode) -> u64 {
        let regular = FileType::from_mode(raw.i_mode.get()) == Some(FileType::Regular);
        let high = if regular || self.large_dir { u64::from(raw.i_size_high.get()) } else { 0 };
        u64::from(raw.i_size_lo.get()) | high << 32
    }

    fn decode_blocks(&self, raw: &RawInode) -> u64 {
        let low = u64::from(raw.i_blocks_lo.get());
        if !self.huge_file {
            return low;
        }
        let blocks = low | u64::from(raw.l_i_blocks_high.get()) << 32;
        let in_blocks = InodeFlags::from_bits_retain(raw.i_flags.get()).contains(InodeFlags::HUGE_FILE);
        if in_blocks { blocks << (self.log_block_size - 9) } else { blocks }
    }

    /// Writes the known fields and the checksum into a record; other bytes stay. Times beyond what the record can
    /// hold are cut to its limits ([`InodeFormat::time_limits`]).
    ///
    /// # Errors
    /// [`Corrupt::Short`] for too few bytes, [`FormatError::TooBig`] for a size or block count that the fields
    /// cannot hold, [`Corrupt::Range`] for an `extra_isize` beyond the record.
    pub fn encode(&self, ino: Ino, inode: &Inode, bytes: &mut [u8]) -> Result<(), FormatError> {
        check_extra_isize(ino, inode.extra_isize, self.inode_size)?;
        let mut raw = self.raw(ino, bytes)?;
        self.fill(&mut raw, inode)?;
        // Only what i_extra_isize covers is ours: extended attributes start right behind it.
        let own = if self.inode_size > GOOD_OLD_INODE_SIZE {
            128 + usize::from(inode.extra_isize.max(2))
        } else {
            128
        };
        let own = own.min(RAW_SIZE);
        bytes[..own].copy_from_slice(&raw.as_bytes()[..own]);
        self.set_checksum(ino, inode.generation, &mut bytes[..usize::from(self.inode_size)]);
        Ok(())
    }

    fn fill(&self, raw: &mut RawInode, inode: &Inode) -> Result<(), FormatError> {
        let extra = inode.extra_isize;
        raw.i_mode.set(inode.mode);
        (raw.i_uid, raw.l_i_uid_high) = (U16::new(inode.uid as u16), U16::new((inode.uid >> 16) as u16));
        (raw.i_gid, raw.l_i_gid_high) = (U16::new(inode.gid as u16), U16::new((inode.gid >> 16) as u16));
        self.fill_size(raw, inode)?;
        raw.i_links_count.set(inode.links_count);
        raw.i_flags.set(inode.flags.difference(InodeFlags::HUGE_FILE).bits());
        self.fill_blocks(raw, inode.blocks)?;
        raw.i_generation.set(inode.generation);
        fill_file_acl(raw, inode.file_acl)?;
        (raw.i_atime, raw.i_atime_extra) = time::encode(inode.atime, extra >= reach::ATIME);
        (raw.i_ctime, raw.i_ctime_extra) = time::encode(inode.ctime, extra >= reach::CTIME);
        (raw.i_mtime, raw.i_mtime_extra) = time::encode(inode.mtime, extra >= reach::MTIME);
        (raw.i_crtime, raw.i_crtime_extra) = time::encode(inode.crtime, extra >= reach::CRTIME_EXTRA);
        raw.i_dtime.set(inode.dtime);
        raw.i_block = inode.i_block;
        raw.l_i_version.set(inode.version as u32);
        raw.i_version_hi.set((inode.version >> 32) as u32);
        raw.i_projid.set(inode.projid);
        raw.i_extra_isize.set(extra);
        Ok(())
    }

    fn fill_size(&self, raw: &mut RawInode, inode: &Inode) -> Result<(), FormatError> {
        let high = (inode.size >> 32) as u32;
        let regular = inode.file_type() == Some(FileType::Regular);
        if high != 0 && !regular && !self.large_dir {
            return Err(FormatError::TooBig { field: "i_size", value: inode.size });
        }
        raw.i_size_lo.set(inode.size as u32);
        if regular || self.large_dir {
            raw.i_size_high.set(high);
        }
        Ok(())
    }

    /// Three forms: 32 bits of sectors; 48 bits of sectors (`huge_file`); 48 bits of blocks (`HUGE_FILE` flag too).
    fn fill_blocks(&self, raw: &mut RawInode, sectors: u64) -> Result<(), FormatError> {
        let too_big = FormatError::TooBig { field: "i_blocks", value: sectors };
        let mut stored = sectors;
        if sectors > u64::from(u32::MAX) && !self.huge_file {
            return Err(too_big);
        }
        if sectors >= 1 << 48 {
            stored = sectors >> (self.log_block_size - 9);
            let flags = InodeFlags::from_bits_retain(raw.i_flags.get()) | InodeFlags::HUGE_FILE;
            raw.i_flags.set(flags.bits());
        }
        if stored >= 1 << 48 {
            return Err(too_big);
        }
        raw.i_blocks_lo.set(stored as u32);
        if self.huge_file {
            raw.l_i_blocks_high.set((stored >> 32) as u16);
        }
        Ok(())
    }

    /// Compares the record's checksum with its bytes.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`Corrupt::Short`].
    pub fn verify_checksum(&self, ino: Ino, bytes: &[u8]) -> Result<(), FormatError> {
        let record = self.record(ino, bytes)?;
        if !self.csum.has_metadata() {
            return Ok(());
        }
        let raw = self.raw(ino, record)?;
        let mut stored = u32::from(raw.l_i_checksum_lo.get());
        if inode_has_checksum_hi(record) {
            stored |= u32::from(raw.i_checksum_hi.get()) << 16;
        }
        let computed = self.csum.inode(ino, raw.i_generation.get(), record);
        if stored == computed {
            return Ok(());
        }
        Err(FormatError::Checksum { place: Place::Inode(ino), stored, computed })
    }

    /// Writes the checksum of a whole record.
    fn set_checksum(&self, ino: Ino, generation: u32, record: &mut [u8]) {
        if !self.csum.has_metadata() {
            return;
        }
        let sum = self.csum.inode(ino, generation, record).to_le_bytes();
        record[0x7c..0x7e].copy_from_slice(&sum[..2]);
        if inode_has_checksum_hi(record) {
            record[0x82..0x84].copy_from_slice(&sum[2..]);
        }
    }

    /// Writes the checksum anew after a change behind the fields (extended attributes, inline data).
    ///
    /// # Errors
    /// [`Corrupt::Short`].
    pub fn update_checksum(&self, ino: Ino, bytes: &mut [u8]) -> Result<(), FormatError> {
        let generation = self.raw(ino, bytes)?.i_generation.get();
        self.set_checksum(ino, generation, &mut bytes[..usize::from(self.inode_size)]);
        Ok(())
    }

    /// First and last second that an inode with `extra_isize` can hold: 1901 to 2038, or to 2446 with extra fields.
    #[must_use]
    pub const fn time_limits(extra_isize: u16) -> (i64, i64) {
        let max = if extra_isize >= reach::CRTIME_EXTRA { time::MAX_EXTRA } else { time::MAX_PLAIN };
        (time::MIN, max)
    }

    fn record<'a>(&self, ino: Ino, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let need = usize::from(self.inode_size);
        let kind = Corrupt::Short { have: bytes.len() as u64, need: need as u64 };
        bytes.get(..need).ok_or(FormatError::corrupt(Place::Inode(ino), kind))
    }

    /// The record's fields; those past a small record's end, zero.
    fn raw(&self, ino: Ino, bytes: &[u8]) -> Result<RawInode, FormatError> {
        let record = self.record(ino, bytes)?;
        let mut full = [0; RAW_SIZE];
        let n = record.len().min(RAW_SIZE);
        full[..n].copy_from_slice(&record[..n]);
        let kind = Corrupt::Short { have: n as u64, need: RAW_SIZE as u64 };
        RawInode::read_from_bytes(&full[..]).map_err(|_| FormatError::corrupt(Place::Inode(ino), kind))
    }
}

fn fill_file_acl(raw: &mut RawInode, block: Pblk) -> Result<(), FormatError> {
    if block.0 >= 1 << 48 {
        return Err(FormatError::TooBig { field: "i_file_acl", value: block.0 });
    }
    raw.i_file_acl_lo.set(block.0 as u32);
    raw.l_i_file_acl_high.set((block.0 >> 32) as u16);
    Ok(())
}

fn check_extra_isize(ino: Ino, extra: u16, inode_size: u16) -> Result<(), FormatError> {
    let max = inode_size - GOOD_OLD_INODE_SIZE;
    if extra <= max && extra.is_multiple_of(4) {
        return Ok(());
    }
    let kind =
        Corrupt::Range { field: "i_extra_isize", value: u64::from(extra), min: 0, max: u64::from(max) };
    Err(FormatError::corrupt(Place::Inode(ino), kind))
}

impl Inode {
    /// The file type, `None` for an inode that was never used or has an unknown one.
    #[must_use]
    pub const fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }

    /// The file type of an inode in use.
    ///
    /// # Errors
    /// [`Corrupt::FileType`].
    pub fn require_type(&self, ino: Ino) -> Result<FileType, FormatError> {
        let kind = Corrupt::FileType { mode: self.mode };
        self.file_type().ok_or(FormatError::corrupt(Place::Inode(ino), kind))
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Directory)
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.file_type() == Some(FileType::Regular)
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.file_type() == Some(FileType::Symlink)
    }

    /// Whether `i_block` holds an extent tree.
    #[must_use]
    pub const fn has_extents(&self) -> bool {
        self.flags.contains(InodeFlags::EXTENTS)
    }

    /// Whether the contents are in the inode.
    #[must_use]
    pub const fn has_inline_data(&self) -> bool {
        self.flags.contains(InodeFlags::INLINE_DATA)
    }

    /// Whether `i_block` is the target of a symbolic link itself.
    #[must_use]
    pub fn is_fast_symlink(&self) -> bool {
        self.is_symlink() && self.size < I_BLOCK_SIZE as u64 && !self.has_inline_data() && !self.has_extents()
    }

    /// Checks the fields that everyone depends on: `i_extra_isize`, size below 2^63.
    ///
    /// # Errors
    /// [`Corrupt::Range`].
    pub fn validate(&self, ino: Ino, inode_size: u16) -> Result<(), FormatError> {
        if inode_size > GOOD_OLD_INODE_SIZE {
            check_extra_isize(ino, self.extra_isize, inode_size)?;
        }
        let max = i64::MAX as u64;
        if self.size > max {
            let kind = Corrupt::Range { field: "i_size", value: self.size, min: 0, max };
            return Err(FormatError::corrupt(Place::Inode(ino), kind));
        }
        Ok(())
    }

    /// Hash of the value that an EA inode holds (in `i_atime`).
    #[must_use]
    pub const fn ea_hash(&self) -> u32 {
        self.atime.sec as u32
    }

    /// References to an EA inode: upper half in `i_ctime`, lower in `i_version`.
    #[must_use]
    pub const fn ea_refcount(&self) -> u64 {
        (self.ctime.sec as u32 as u64) << 32 | self.version & 0xffff_ffff
    }

    /// Stores the references to an EA inode.
    pub const fn set_ea_refcount(&mut self, count: u64) {
        self.ctime = Timestamp::from_raw_seconds((count >> 32) as u32);
        self.version = self.version >> 32 << 32 | count & 0xffff_ffff;
    }

    /// Stores the hash of an EA inode's value.
    pub const fn set_ea_hash(&mut self, hash: u32) {
        self.atime = Timestamp::from_raw_seconds(hash);
    }
}
