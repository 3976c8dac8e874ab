//! The superblock: all fields of `struct ext4_super_block`, raw and typed.
//!
//! [`RawSuperblock`] is the 1024 bytes. [`Superblock`] is one that has been checked ([`Superblock::read`]); it keeps
//! the raw bytes, so fields without a meaning here survive a write. 1024 bytes from byte 1024 of the device, and
//! at the start of backup groups. Source: the kernel's ext4 documentation, "Super Block".

use alloc::string::String;
use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::csum::{self, Csum};
use crate::error::{Corrupt, FormatError, Place};
use crate::features::{Compat, Features, Incompat, RoCompat};
use crate::geometry::Geometry;
use crate::types::{Ino, Pblk};

mod over;
mod record;

pub use record::{ErrorRecord, SbTime};

/// `s_magic`
pub const EXT4_SUPER_MAGIC: u16 = 0xEF53;
/// Bytes of a superblock.
pub const SUPERBLOCK_SIZE: usize = 1024;

bitflags! {
    /// `s_state`
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct State: u16 {
        /// Unmounted cleanly (or recoverable through the journal).
        const VALID = 0x1;
        /// An error was found.
        const ERROR = 0x2;
        /// Orphans are being recovered.
        const ORPHAN = 0x4;
        /// Fast-commit replay is going on.
        const FC_REPLAY = 0x20;
        const _ = !0;
    }
}

bitflags! {
    /// `s_flags`
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct SbFlags: u32 {
        /// Directory hashes take bytes as signed.
        const SIGNED_HASH = 0x1;
        /// Directory hashes take bytes as unsigned.
        const UNSIGNED_HASH = 0x2;
        /// A test filesystem.
        const TEST_FILESYS = 0x4;
        const _ = !0;
    }
}

bitflags! {
    /// `s_default_mount_opts`; the journal mode is [`DefMountOpts::journal_mode`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct DefMountOpts: u32 {
        /// `debug`
        const DEBUG = 0x1;
        /// `bsdgroups`
        const BSDGROUPS = 0x2;
        /// `user_xattr`
        const XATTR_USER = 0x4;
        /// `acl`
        const ACL = 0x8;
        /// `uid16`
        const UID16 = 0x10;
        /// The two bits of the journal mode.
        const JMODE = 0x60;
        /// `nobarrier`
        const NOBARRIER = 0x100;
        /// `block_validity`
        const BLOCK_VALIDITY = 0x200;
        /// `discard`
        const DISCARD = 0x400;
        /// `nodelalloc`
        const NODELALLOC = 0x800;
        const _ = !0;
    }
}

/// The default data mode of `s_default_mount_opts`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalMode {
    /// `data=journal`
    Data,
    /// `data=ordered`
    Ordered,
    /// `data=writeback`
    Writeback,
}

impl DefMountOpts {
    /// The journal mode, `None` where the superblock leaves it to the default.
    #[must_use]
    pub const fn journal_mode(self) -> Option<JournalMode> {
        match self.bits() & Self::JMODE.bits() {
            0x20 => Some(JournalMode::Data),
            0x40 => Some(JournalMode::Ordered),
            0x60 => Some(JournalMode::Writeback),
            _ => None,
        }
    }
}

/// `s_errors`: what to do when an error is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorPolicy {
    /// Go on (1).
    Continue,
    /// Remount read-only (2).
    RemountRo,
    /// Stop at once (3).
    Panic,
}

/// `struct ext4_super_block`. `s_checksum` covers everything before it. Times have 40 bits (`…_hi`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawSuperblock {
    pub s_inodes_count: U32,
    pub s_blocks_count_lo: U32,
    pub s_r_blocks_count_lo: U32,
    pub s_free_blocks_count_lo: U32,
    pub s_free_inodes_count: U32,
    pub s_first_data_block: U32,
    pub s_log_block_size: U32,
    pub s_log_cluster_size: U32,
    pub s_blocks_per_group: U32,
    pub s_clusters_per_group: U32,
    pub s_inodes_per_group: U32,
    pub s_mtime: U32,
    pub s_wtime: U32,
    pub s_mnt_count: U16,
    pub s_max_mnt_count: U16,
    pub s_magic: U16,
    pub s_state: U16,
    pub s_errors: U16,
    pub s_minor_rev_level: U16,
    pub s_lastcheck: U32,
    pub s_checkinterval: U32,
    pub s_creator_os: U32,
    pub s_rev_level: U32,
    pub s_def_resuid: U16,
    pub s_def_resgid: U16,
    pub s_first_ino: U32,
    pub s_inode_size: U16,
    pub s_block_group_nr: U16,
    pub s_feature_compat: U32,
    pub s_feature_incompat: U32,
    pub s_feature_ro_compat: U32,
    pub s_uuid: [u8; 16],
    pub s_volume_name: [u8; 16],
    pub s_last_mounted: [u8; 64],
    pub s_algorithm_usage_bitmap: U32,
    pub s_prealloc_blocks: u8,
    pub s_prealloc_dir_blocks: u8,
    pub s_reserved_gdt_blocks: U16,
    pub s_journal_uuid: [u8; 16],
    pub s_journal_inum: U32,
    pub s_journal_dev: U32,
    pub s_last_orphan: U32,
    pub s_hash_seed: [U32; 4],
    pub s_def_hash_version: u8,
    pub s_jnl_backup_type: u8,
    pub s_desc_size: U16,
    pub s_default_mount_opts: U32,
    pub s_first_meta_bg: U32,
    pub s_mkfs_time: U32,
    pub s_jnl_blocks: [U32; 17],
    pub s_blocks_count_hi: U32,
    pub s_r_blocks_count_hi: U32,
    pub s_free_blocks_count_hi: U32,
    pub s_min_extra_isize: U16,
    pub s_want_extra_isize: U16,
    pub s_flags: U32,
    pub s_raid_stride: U16,
    pub s_mmp_interval: U16,
    pub s_mmp_block: U64,
    pub s_raid_stripe_width: U32,
    pub s_log_groups_per_flex: u8,
    pub s_checksum_type: u8,
    pub s_reserved_pad: U16,
    pub s_kbytes_written: U64,
    pub s_snapshot_inum: U32,
    pub s_snapshot_id: U32,
    pub s_snapshot_r_blocks_count: U64,
    pub s_snapshot_list: U32,
    pub s_error_count: U32,
    pub s_first_error_time: U32,
    pub s_first_error_ino: U32,
    pub s_first_error_block: U64,
    pub s_first_error_func: [u8; 32],
    pub s_first_error_line: U32,
    pub s_last_error_time: U32,
    pub s_last_error_ino: U32,
    pub s_last_error_line: U32,
    pub s_last_error_block: U64,
    pub s_last_error_func: [u8; 32],
    pub s_mount_opts: [u8; 64],
    pub s_usr_quota_inum: U32,
    pub s_grp_quota_inum: U32,
    pub s_overhead_clusters: U32,
    pub s_backup_bgs: [U32; 2],
    pub s_encrypt_algos: [u8; 4],
    pub s_encrypt_pw_salt: [u8; 16],
    pub s_lpf_ino: U32,
    pub s_prj_quota_inum: U32,
    pub s_checksum_seed: U32,
    pub s_wtime_hi: u8,
    pub s_mtime_hi: u8,
    pub s_mkfs_time_hi: u8,
    pub s_lastcheck_hi: u8,
    pub s_first_error_time_hi: u8,
    pub s_last_error_time_hi: u8,
    pub s_first_error_errcode: u8,
    pub s_last_error_errcode: u8,
    pub s_encoding: U16,
    pub s_encoding_flags: U16,
    pub s_orphan_file_inum: U32,
    pub s_reserved: [U32; 94],
    pub s_checksum: U32,
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == SUPERBLOCK_SIZE);
    assert!(core::mem::offset_of!(RawSuperblock, s_magic) == 0x38);
    assert!(core::mem::offset_of!(RawSuperblock, s_first_ino) == 0x54);
    assert!(core::mem::offset_of!(RawSuperblock, s_uuid) == 0x68);
    assert!(core::mem::offset_of!(RawSuperblock, s_journal_uuid) == 0xd0);
    assert!(core::mem::offset_of!(RawSuperblock, s_hash_seed) == 0xec);
    assert!(core::mem::offset_of!(RawSuperblock, s_desc_size) == 0xfe);
    assert!(core::mem::offset_of!(RawSuperblock, s_jnl_blocks) == 0x10c);
    assert!(core::mem::offset_of!(RawSuperblock, s_blocks_count_hi) == 0x150);
    assert!(core::mem::offset_of!(RawSuperblock, s_raid_stride) == 0x164);
    assert!(core::mem::offset_of!(RawSuperblock, s_kbytes_written) == 0x178);
    assert!(core::mem::offset_of!(RawSuperblock, s_error_count) == 0x194);
    assert!(core::mem::offset_of!(RawSuperblock, s_last_error_time) == 0x1cc);
    assert!(core::mem::offset_of!(RawSuperblock, s_mount_opts) == 0x200);
    assert!(core::mem::offset_of!(RawSuperblock, s_backup_bgs) == 0x24c);
    assert!(core::mem::offset_of!(RawSuperblock, s_lpf_ino) == 0x268);
    assert!(core::mem::offset_of!(RawSuperblock, s_checksum_seed) == 0x270);
    assert!(core::mem::offset_of!(RawSuperblock, s_wtime_hi) == 0x274);
    assert!(core::mem::offset_of!(RawSuperblock, s_encoding) == 0x27c);
    assert!(core::mem::offset_of!(RawSuperblock, s_orphan_file_inum) == 0x280);
    assert!(core::mem::offset_of!(RawSuperblock, s_checksum) == 0x3fc);
};

impl RawSuperblock {
    /// A superblock of zeroes, for making a filesystem.
    #[must_use]
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// The three feature sets.
    #[must_use]
    pub fn features(&self) -> Features {
        Features {
            compat: Compat::from_bits_retain(self.s_feature_compat.get()),
            incompat: Incompat::from_bits_retain(self.s_feature_incompat.get()),
            ro_compat: RoCompat::from_bits_retain(self.s_feature_ro_compat.get()),
        }
    }

    /// Stores the three feature sets.
    pub fn set_features(&mut self, features: Features) {
        self.s_feature_compat.set(features.compat.bits());
        self.s_feature_incompat.set(features.incompat.bits());
        self.s_feature_ro_compat.set(features.ro_compat.bits());
    }

    fn has_64bit(&self) -> bool {
        self.features().incompat.contains(Incompat::BIT64)
    }

    fn wide(&self, lo: U32, hi: U32) -> u64 {
        // Without 64bit the upper halves mean nothing, whatever they hold.
        let hi = if self.has_64bit() { u64::from(hi.get()) } else { 0 };
        u64::from(lo.get()) | hi << 32
    }

    /// `s_blocks_count`
    #[must_use]
    pub fn blocks_count(&self) -> u64 {
        self.wide(self.s_blocks_count_lo, self.s_blocks_count_hi)
    }

    /// Stores `s_blocks_count` (both halves).
    pub fn set_blocks_count(&mut self, blocks: u64) {
        (self.s_blocks_count_lo, self.s_blocks_count_hi) = halves(blocks);
    }

    /// `s_r_blocks_count`: blocks only the super-user may take.
    #[must_use]
    pub fn r_blocks_count(&self) -> u64 {
        self.wide(self.s_r_blocks_count_lo, self.s_r_blocks_count_hi)
    }

    /// Stores `s_r_blocks_count` (both halves).
    pub fn set_r_blocks_count(&mut self, blocks: u64) {
        (self.s_r_blocks_count_lo, self.s_r_blocks_count_hi) = halves(blocks);
    }

    /// `s_free_blocks_count`, in blocks (with bigalloc too).
    #[must_use]
    pub fn free_blocks_count(&self) -> u64 {
        self.wide(self.s_free_blocks_count_lo, self.s_free_blocks_count_hi)
    }

    /// Stores `s_free_blocks_count` (both halves).
    pub fn set_free_blocks_count(&mut self, blocks: u64) {
        (self.s_free_blocks_count_lo, self.s_free_blocks_count_hi) = halves(blocks);
    }

    /// The checksum functions that this superblock's features and UUID ask for.
    #[must_use]
    pub fn csum(&self) -> Csum {
        Csum::new(self.features(), self.s_uuid, self.s_checksum_seed.get())
    }

    /// Sets `s_checksum` where the features ask for it.
    pub fn update_checksum(&mut self) {
        if self.features().ro_compat.contains(RoCompat::METADATA_CSUM) {
            self.s_checksum.set(self.computed_checksum());
        }
    }

    /// What `s_checksum` should be.
    #[must_use]
    pub fn computed_checksum(&self) -> u32 {
        self.as_bytes().first_chunk::<SUPERBLOCK_SIZE>().map_or(0, csum::superblock)
    }
}

fn halves(v: u64) -> (U32, U32) {
    (U32::new(v as u32), U32::new((v >> 32) as u32))
}

/// A checked superblock with what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    raw: RawSuperblock,
    features: Features,
    geometry: Geometry,
    csum: Csum,
}

impl Superblock {
    /// Decodes and checks 1024 bytes: magic, checksum, features that are known, geometry, journal place.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`], [`FormatError::Checksum`], [`FormatError::Incompatible`].
    pub fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = Self::raw_from(bytes)?;
        Self::check_magic(&raw)?;
        Self::verify_checksum(&raw)?;
        Self::from_raw(raw)
    }

    /// The fields as they are, unchecked (a checker wants to see them).
    ///
    /// # Errors
    /// [`Corrupt::Short`].
    pub fn raw_from(bytes: &[u8]) -> Result<RawSuperblock, FormatError> {
        let kind = Corrupt::Short { have: bytes.len() as u64, need: SUPERBLOCK_SIZE as u64 };
        let place = Place::Superblock;
        let bytes = bytes.get(..SUPERBLOCK_SIZE).ok_or(FormatError::corrupt(place, kind))?;
        RawSuperblock::read_from_bytes(bytes).map_err(|_| FormatError::corrupt(place, kind))
    }

    /// # Errors
    /// [`Corrupt::Magic`].
    pub fn check_magic(raw: &RawSuperblock) -> Result<(), FormatError> {
        let found = raw.s_magic.get();
        if found == EXT4_SUPER_MAGIC {
            return Ok(());
        }
        let kind = Corrupt::Magic { found: u32::from(found), expected: u32::from(EXT4_SUPER_MAGIC) };
        Err(FormatError::corrupt(Place::Superblock, kind))
    }

    /// # Errors
    /// [`FormatError::Checksum`], or [`Corrupt::Mismatch`] for an unknown `s_checksum_type`.
    pub fn verify_checksum(raw: &RawSuperblock) -> Result<(), FormatError> {
        if !raw.features().ro_compat.contains(RoCompat::METADATA_CSUM) {
            return Ok(());
        }
        let place = Place::Superblock;
        if raw.s_checksum_type != 1 {
            let value = u64::from(raw.s_checksum_type);
            let kind = Corrupt::Mismatch { field: "s_checksum_type", value, expected: 1 };
            return Err(FormatError::corrupt(place, kind));
        }
        let (stored, computed) = (raw.s_checksum.get(), raw.computed_checksum());
        if stored == computed { Ok(()) } else { Err(FormatError::Checksum { place, stored, computed }) }
    }

    /// Checks features and geometry, not magic or checksum (for a maker that has just filled in the fields).
    ///
    /// # Errors
    /// As [`Superblock::read`].
    pub fn from_raw(raw: RawSuperblock) -> Result<Self, FormatError> {
        let rev = raw.s_rev_level.get();
        if rev > 1 {
            let kind = Corrupt::Range { field: "s_rev_level", value: u64::from(rev), min: 0, max: 1 };
            return Err(FormatError::corrupt(Place::Superblock, kind));
        }
        let features = raw.features();
        let unknown = features.incompat.unsupported();
        if !unknown.is_empty() {
            return Err(FormatError::Incompatible(unknown));
        }
        check_combinations(features)?;
        let geometry = Geometry::new(&raw)?;
        let csum = raw.csum();
        let sb = Self { raw, features, geometry, csum };
        sb.check_inodes()?;
        sb.check_blocks()?;
        Ok(sb)
    }

    fn check_inodes(&self) -> Result<(), FormatError> {
        let max = u64::from(self.geometry.inodes_count());
        let fields = [
            ("s_journal_inum", self.raw.s_journal_inum.get()),
            ("s_usr_quota_inum", self.raw.s_usr_quota_inum.get()),
            ("s_grp_quota_inum", self.raw.s_grp_quota_inum.get()),
            ("s_prj_quota_inum", self.raw.s_prj_quota_inum.get()),
            ("s_orphan_file_inum", self.raw.s_orphan_file_inum.get()),
        ];
        for (field, value) in fields {
            let value = u64::from(value);
            if value > max {
                let kind = Corrupt::Range { field, value, min: 0, max };
                return Err(FormatError::corrupt(Place::Superblock, kind));
            }
        }
        Ok(())
    }

    fn check_blocks(&self) -> Result<(), FormatError> {
        let blocks = self.geometry.blocks_count();
        let counts = [
            ("s_free_blocks_count", self.raw.free_blocks_count()),
            ("s_r_blocks_count", self.raw.r_blocks_count()),
        ];
        for (field, value) in counts {
            if value > blocks {
                let kind = Corrupt::Range { field, value, min: 0, max: blocks };
                return Err(FormatError::corrupt(Place::Superblock, kind));
            }
        }
        let mmp = Pblk(self.raw.s_mmp_block.get());
        if self.features.incompat.contains(Incompat::MMP) && !self.geometry.contains(mmp) {
            let first = u64::from(self.geometry.first_data_block());
            let kind = Corrupt::BlockOutside { field: "s_mmp_block", block: mmp.0, first, last: blocks - 1 };
            return Err(FormatError::corrupt(Place::Superblock, kind));
        }
        Ok(())
    }

    /// The 1024 bytes with a fresh checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut raw = self.raw;
        raw.update_checksum();
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The raw fields.
    #[must_use]
    pub const fn raw(&self) -> &RawSuperblock {
        &self.raw
    }

    /// Changes raw fields, then checks all again; on an error nothing changes.
    ///
    /// # Errors
    /// As [`Superblock::read`].
    pub fn update(&mut self, change: impl FnOnce(&mut RawSuperblock)) -> Result<(), FormatError> {
        let mut raw = self.raw;
        change(&mut raw);
        *self = Self::from_raw(raw)?;
        Ok(())
    }

    /// The feature sets.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Sizes and places.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Checksum functions with this filesystem's seed.
    #[must_use]
    pub const fn csum(&self) -> &Csum {
        &self.csum
    }

    /// `s_uuid`
    #[must_use]
    pub const fn uuid(&self) -> [u8; 16] {
        self.raw.s_uuid
    }

    /// The label up to its first zero byte.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        until_zero(&self.raw.s_volume_name)
    }

    /// Stores the label.
    ///
    /// # Errors
    /// [`FormatError::TooBig`] beyond 16 bytes.
    pub fn set_label(&mut self, label: &[u8]) -> Result<(), FormatError> {
        let field = "s_volume_name";
        let too_big = FormatError::TooBig { field, value: label.len() as u64 };
        let mut name = [0; 16];
        name.get_mut(..label.len()).ok_or(too_big)?.copy_from_slice(label);
        self.raw.s_volume_name = name;
        Ok(())
    }

    /// Where it was last mounted, up to the first zero byte.
    #[must_use]
    pub fn last_mounted(&self) -> &[u8] {
        until_zero(&self.raw.s_last_mounted)
    }

    /// Stores the mount point, cut to 63 bytes.
    pub fn set_last_mounted(&mut self, path: &[u8]) {
        let n = path.len().min(63);
        self.raw.s_last_mounted = [0; 64];
        self.raw.s_last_mounted[..n].copy_from_slice(&path[..n]);
    }

    /// `s_state`
    #[must_use]
    pub fn state(&self) -> State {
        State::from_bits_retain(self.raw.s_state.get())
    }

    /// Stores `s_state`.
    pub fn set_state(&mut self, state: State) {
        self.raw.s_state.set(state.bits());
    }

    /// `s_errors`; an unknown value is the default, [`ErrorPolicy::Continue`].
    #[must_use]
    pub fn errors(&self) -> ErrorPolicy {
        match self.raw.s_errors.get() {
            2 => ErrorPolicy::RemountRo,
            3 => ErrorPolicy::Panic,
            _ => ErrorPolicy::Continue,
        }
    }

    /// Stores `s_errors`.
    pub fn set_errors(&mut self, policy: ErrorPolicy) {
        self.raw.s_errors.set(match policy {
            ErrorPolicy::Continue => 1,
            ErrorPolicy::RemountRo => 2,
            ErrorPolicy::Panic => 3,
        });
    }

    /// `s_default_mount_opts`
    #[must_use]
    pub fn default_mount_opts(&self) -> DefMountOpts {
        DefMountOpts::from_bits_retain(self.raw.s_default_mount_opts.get())
    }

    /// `s_mount_opts`, up to the first zero byte.
    #[must_use]
    pub fn mount_opts(&self) -> &[u8] {
        until_zero(&self.raw.s_mount_opts)
    }

    /// `s_flags`
    #[must_use]
    pub fn flags(&self) -> SbFlags {
        SbFlags::from_bits_retain(self.raw.s_flags.get())
    }

    /// Free blocks (not clusters).
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.raw.free_blocks_count()
    }

    /// Stores the free blocks.
    pub fn set_free_blocks(&mut self, blocks: u64) {
        self.raw.set_free_blocks_count(blocks);
    }

    /// Free inodes.
    #[must_use]
    pub fn free_inodes(&self) -> u32 {
        self.raw.s_free_inodes_count.get()
    }

    /// Stores the free inodes.
    pub fn set_free_inodes(&mut self, inodes: u32) {
        self.raw.s_free_inodes_count.set(inodes);
    }

    /// Reserved blocks.
    #[must_use]
    pub fn reserved_blocks(&self) -> u64 {
        self.raw.r_blocks_count()
    }

    /// User and group that may take reserved blocks.
    #[must_use]
    pub fn reserved_owner(&self) -> (u32, u32) {
        (u32::from(self.raw.s_def_resuid.get()), u32::from(self.raw.s_def_resgid.get()))
    }

    /// `s_mnt_count` and `s_max_mnt_count` (as the kernel reads it, signed: -1 is never).
    #[must_use]
    pub fn mount_counts(&self) -> (u16, i16) {
        (self.raw.s_mnt_count.get(), self.raw.s_max_mnt_count.get() as i16)
    }

    /// Stores `s_mnt_count`.
    pub fn set_mnt_count(&mut self, count: u16) {
        self.raw.s_mnt_count.set(count);
    }

    /// KiB written over the filesystem's life.
    #[must_use]
    pub fn kbytes_written(&self) -> u64 {
        self.raw.s_kbytes_written.get()
    }

    /// Stores the KiB written.
    pub fn set_kbytes_written(&mut self, kbytes: u64) {
        self.raw.s_kbytes_written.set(kbytes);
    }

    /// First inode of the orphan list, 0 for none.
    #[must_use]
    pub fn last_orphan(&self) -> Ino {
        Ino(self.raw.s_last_orphan.get())
    }

    /// Stores the first inode of the orphan list.
    pub fn set_last_orphan(&mut self, ino: Ino) {
        self.raw.s_last_orphan.set(ino.0);
    }

    /// The orphan file, where the feature is on.
    #[must_use]
    pub fn orphan_file(&self) -> Option<Ino> {
        self.ino_if(self.features.compat.contains(Compat::ORPHAN_FILE), self.raw.s_orphan_file_inum)
    }

    /// The internal journal's inode; `None` without a journal and with an external one.
    #[must_use]
    pub fn journal_inode(&self) -> Option<Ino> {
        self.ino_if(self.features.compat.contains(Compat::HAS_JOURNAL), self.raw.s_journal_inum)
    }

    /// UUID and device number of an external journal.
    #[must_use]
    pub fn external_journal(&self) -> Option<([u8; 16], u32)> {
        let external =
            self.features.compat.contains(Compat::HAS_JOURNAL) && self.raw.s_journal_inum.get() == 0;
        external.then(|| (self.raw.s_journal_uuid, self.raw.s_journal_dev.get()))
    }

    /// Inodes of the user, group and project quota files, where they exist.
    #[must_use]
    pub fn quota_inodes(&self) -> [Option<Ino>; 3] {
        let quota = self.features.ro_compat.contains(RoCompat::QUOTA);
        let r = &self.raw;
        [r.s_usr_quota_inum, r.s_grp_quota_inum, r.s_prj_quota_inum].map(|n| self.ino_if(quota, n))
    }

    fn ino_if(&self, on: bool, number: U32) -> Option<Ino> {
        (on && number.get() != 0).then(|| Ino(number.get()))
    }

    /// The seed of directory hashes.
    #[must_use]
    pub fn hash_seed(&self) -> [u32; 4] {
        self.raw.s_hash_seed.map(U32::get)
    }

    /// `s_def_hash_version` as stored (0 legacy, 1 half MD4, 2 TEA, 3 to 5 the same unsigned, 6 SipHash).
    #[must_use]
    pub const fn def_hash_version(&self) -> u8 {
        self.raw.s_def_hash_version
    }

    /// Extra bytes that new inodes get; 0 in inodes of 128 bytes. Never more than the record has.
    #[must_use]
    pub fn want_extra_isize(&self) -> u16 {
        let room = self.geometry.inode_size() - 128;
        let known = 32.min(room);
        if self.features.ro_compat.contains(RoCompat::EXTRA_ISIZE) {
            let asked = self.raw.s_want_extra_isize.get().max(self.raw.s_min_extra_isize.get());
            return if (4..=room).contains(&asked) && asked.is_multiple_of(4) {
                asked.max(known)
            } else {
                known
            };
        }
        known
    }

    /// Block and check interval (seconds) of multiple-mount protection.
    #[must_use]
    pub fn mmp(&self) -> Option<(Pblk, u16)> {
        let on = self.features.incompat.contains(Incompat::MMP);
        on.then(|| (Pblk(self.raw.s_mmp_block.get()), self.raw.s_mmp_interval.get()))
    }

    /// RAID stride and stripe width in blocks, 0 for none.
    #[must_use]
    pub fn raid(&self) -> (u32, u32) {
        (u32::from(self.raw.s_raid_stride.get()), self.raw.s_raid_stripe_width.get())
    }

    /// Sets or clears features that change while mounted (`needs_recovery`, `orphan_present`, `large_file` …).
    ///
    /// # Errors
    /// As [`Superblock::read`]: a combination that cannot be.
    pub fn set_features(&mut self, features: Features) -> Result<(), FormatError> {
        self.update(|raw| raw.set_features(features))
    }

    /// Names of the features, as dumpe2fs prints them.
    #[must_use]
    pub fn feature_names(&self) -> String {
        self.features.names()
    }
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

fn check_combinations(f: Features) -> Result<(), FormatError> {
    let err =
        |a, b, relation| Err(FormatError::corrupt(Place::Superblock, Corrupt::Features { a, b, relation }));
    if f.compat.contains(Compat::RESIZE_INODE) && f.incompat.contains(Incompat::META_BG) {
        return err("resize_inode", "meta_bg", "exclude each other");
    }
    if f.incompat.contains(Incompat::CSUM_SEED) && !f.ro_compat.contains(RoCompat::METADATA_CSUM) {
        return err("metadata_csum_seed", "metadata_csum", "go together");
    }
    if f.ro_compat.contains(RoCompat::BIGALLOC) && !f.incompat.contains(Incompat::EXTENTS) {
        return err("bigalloc", "extent", "go together");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
