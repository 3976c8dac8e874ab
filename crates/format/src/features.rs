//! Feature bits of the superblock, under the kernel's names, printed as `dumpe2fs` prints them.
//!
//! A bit that no name is known for keeps its value ([`Compat`] and its siblings never drop bits) and prints as
//! `FEATURE_C7`, `FEATURE_I5` or `FEATURE_R2`. Source: the kernel's ext4 documentation, "Super Block"; names by
//! setting each bit with debugfs and reading it back with dumpe2fs 1.47.

use alloc::string::String;
use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// `s_feature_compat`: may be written by whoever does not know a bit (a checker must know it).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct Compat: u32 {
        /// Directory preallocation; unused.
        const DIR_PREALLOC = 0x1;
        /// AFS inodes; unused.
        const IMAGIC_INODES = 0x2;
        /// There is a journal, in an inode or on another device.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes are in use.
        const EXT_ATTR = 0x8;
        /// Descriptor blocks are reserved for growth, held by inode 7.
        const RESIZE_INODE = 0x10;
        /// Directories may have a hash tree.
        const DIR_INDEX = 0x20;
        /// Never in Linux.
        const LAZY_BG = 0x40;
        /// Never in Linux.
        const EXCLUDE_INODE = 0x80;
        /// Snapshot exclusion bitmaps; never in Linux.
        const EXCLUDE_BITMAP = 0x100;
        /// Superblock backups in the two groups of `s_backup_bgs` only.
        const SPARSE_SUPER2 = 0x200;
        /// The journal may hold fast commits.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and the UUID will not change (fscrypt).
        const STABLE_INODES = 0x800;
        /// Orphans are kept in a file.
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }
}

bitflags! {
    /// `s_feature_incompat`: an unknown bit refuses the mount.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct Incompat: u32 {
        /// Compressed files; never in Linux.
        const COMPRESSION = 0x1;
        /// Directory entries carry a file type.
        const FILETYPE = 0x2;
        /// The journal holds transactions to replay.
        const RECOVER = 0x4;
        /// This device is an external journal.
        const JOURNAL_DEV = 0x8;
        /// Descriptor blocks lie in their own groups from `s_first_meta_bg` on.
        const META_BG = 0x10;
        /// Files may have extent trees.
        const EXTENTS = 0x40;
        /// Block numbers of 64 bits, descriptors of `s_desc_size` bytes.
        const BIT64 = 0x80;
        /// Multiple-mount protection.
        const MMP = 0x100;
        /// A group's bitmaps and table may lie outside it.
        const FLEX_BG = 0x200;
        /// Values of extended attributes may be inodes.
        const EA_INODE = 0x400;
        /// Data in directory entries; never in Linux.
        const DIRDATA = 0x1000;
        /// The checksum seed is stored, not computed from the UUID.
        const CSUM_SEED = 0x2000;
        /// Hash trees of three levels, directories beyond 2 GiB.
        const LARGEDIR = 0x4000;
        /// Small files and directories live in their inode.
        const INLINE_DATA = 0x8000;
        /// Some inodes are encrypted.
        const ENCRYPT = 0x10000;
        /// Some directories compare names without case.
        const CASEFOLD = 0x20000;
        const _ = !0;
    }
}

bitflags! {
    /// `s_feature_ro_compat`: an unknown bit allows reading only.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct RoCompat: u32 {
        /// Backups in groups 0, 1 and powers of 3, 5, 7 only.
        const SPARSE_SUPER = 0x1;
        /// A file of 2 GiB or more exists.
        const LARGE_FILE = 0x2;
        /// Never used.
        const BTREE_DIR = 0x4;
        /// `i_blocks` has 48 bits, possibly in filesystem blocks.
        const HUGE_FILE = 0x8;
        /// crc16 of descriptors, uninitialised groups (`uninit_bg`).
        const GDT_CSUM = 0x10;
        /// Directories may have more than 64,998 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes have at least `s_min_extra_isize` extra bytes.
        const EXTRA_ISIZE = 0x40;
        /// Never in Linux.
        const HAS_SNAPSHOT = 0x80;
        /// Quota files are kept with every change.
        const QUOTA = 0x100;
        /// The unit of allocation is a cluster.
        const BIGALLOC = 0x200;
        /// crc32c over all metadata.
        const METADATA_CSUM = 0x400;
        /// Never in Linux.
        const REPLICA = 0x800;
        /// Must not be written.
        const READONLY = 0x1000;
        /// Inodes have project ids, project quota.
        const PROJECT = 0x2000;
        /// Blocks are shared between files (Android); read-only.
        const SHARED_BLOCKS = 0x4000;
        /// Some files are under fs-verity.
        const VERITY = 0x8000;
        /// The orphan file may have entries.
        const ORPHAN_PRESENT = 0x10000;
        const _ = !0;
    }
}

const COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "dir_prealloc"),
    (0x2, "imagic_inodes"),
    (0x4, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x40, "lazy_bg"),
    (0x100, "snapshot_bitmap"),
    (0x200, "sparse_super2"),
    (0x400, "fast_commit"),
    (0x800, "stable_inodes"),
    (0x1000, "orphan_file"),
];
const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extent"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
];
const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
    (0x10000, "orphan_present"),
];

impl Compat {
    /// What Extant knows how to keep right when it writes.
    pub const SUPPORTED: Self = Self::from_bits_retain(
        Self::DIR_PREALLOC.bits()
            | Self::HAS_JOURNAL.bits()
            | Self::EXT_ATTR.bits()
            | Self::RESIZE_INODE.bits()
            | Self::DIR_INDEX.bits()
            | Self::SPARSE_SUPER2.bits()
            | Self::FAST_COMMIT.bits()
            | Self::STABLE_INODES.bits()
            | Self::ORPHAN_FILE.bits(),
    );

    /// The bits that are not in [`Compat::SUPPORTED`].
    #[must_use]
    pub const fn unsupported(self) -> Self {
        Self::from_bits_retain(self.bits() & !Self::SUPPORTED.bits())
    }
}

impl Incompat {
    /// What Extant mounts. Encrypted and casefolded files are refused one by one, not the whole filesystem.
    pub const SUPPORTED: Self = Self::from_bits_retain(
        Self::FILETYPE.bits()
            | Self::RECOVER.bits()
            | Self::META_BG.bits()
            | Self::EXTENTS.bits()
            | Self::BIT64.bits()
            | Self::MMP.bits()
            | Self::FLEX_BG.bits()
            | Self::EA_INODE.bits()
            | Self::CSUM_SEED.bits()
            | Self::LARGEDIR.bits()
            | Self::INLINE_DATA.bits()
            | Self::ENCRYPT.bits()
            | Self::CASEFOLD.bits(),
    );

    /// The bits that refuse a mount.
    #[must_use]
    pub const fn unsupported(self) -> Self {
        Self::from_bits_retain(self.bits() & !Self::SUPPORTED.bits())
    }
}

impl RoCompat {
    /// What Extant mounts for writing.
    pub const SUPPORTED: Self = Self::from_bits_retain(
        Self::SPARSE_SUPER.bits()
            | Self::LARGE_FILE.bits()
            | Self::HUGE_FILE.bits()
            | Self::GDT_CSUM.bits()
            | Self::DIR_NLINK.bits()
            | Self::EXTRA_ISIZE.bits()
            | Self::QUOTA.bits()
            | Self::BIGALLOC.bits()
            | Self::METADATA_CSUM.bits()
            | Self::PROJECT.bits()
            | Self::VERITY.bits()
            | Self::ORPHAN_PRESENT.bits(),
    );

    /// The bits that allow reading only (`read-only` and `shared_blocks` among them).
    #[must_use]
    pub const fn unsupported(self) -> Self {
        Self::from_bits_retain(self.bits() & !Self::SUPPORTED.bits())
    }
}

/// The three sets of a superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Features {
    /// `s_feature_compat`
    pub compat: Compat,
    /// `s_feature_incompat`
    pub incompat: Incompat,
    /// `s_feature_ro_compat`
    pub ro_compat: RoCompat,
}

impl Features {
    /// The set with the one feature that dumpe2fs and mke2fs call `name`. Also takes mke2fs's second names
    /// (`extents`, `sparse_super1`, `journal`, `gdt_csum` …) and the form `FEATURE_C7`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = match name {
            "extents" => "extent",
            "gdt_csum" => "uninit_bg",
            "dir_prealloc" => "dir_prealloc",
            other => other,
        };
        let bit = |names: &[(u32, &str)], letter: &str| {
            names.iter().find(|(_, n)| *n == name).map(|(b, _)| *b).or_else(|| numbered(name, letter))
        };
        if let Some(b) = bit(COMPAT_NAMES, "C") {
            return Some(Self { compat: Compat::from_bits_retain(b), ..Self::default() });
        }
        if let Some(b) = bit(INCOMPAT_NAMES, "I") {
            return Some(Self { incompat: Incompat::from_bits_retain(b), ..Self::default() });
        }
        let b = bit(RO_COMPAT_NAMES, "R")?;
        Some(Self { ro_compat: RoCompat::from_bits_retain(b), ..Self::default() })
    }

    /// Every bit of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            compat: Compat::from_bits_retain(self.compat.bits() | other.compat.bits()),
            incompat: Incompat::from_bits_retain(self.incompat.bits() | other.incompat.bits()),
            ro_compat: RoCompat::from_bits_retain(self.ro_compat.bits() | other.ro_compat.bits()),
        }
    }

    /// The bits of `self` that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self {
            compat: Compat::from_bits_retain(self.compat.bits() & !other.compat.bits()),
            incompat: Incompat::from_bits_retain(self.incompat.bits() & !other.incompat.bits()),
            ro_compat: RoCompat::from_bits_retain(self.ro_compat.bits() & !other.ro_compat.bits()),
        }
    }

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        let missing = other.difference(self);
        missing.is_empty()
    }

    /// Whether no bit is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.compat.bits() == 0 && self.incompat.bits() == 0 && self.ro_compat.bits() == 0
    }

    /// Descriptors carry a checksum, so groups may be uninitialised (`uninit_bg` or `metadata_csum`).
    #[must_use]
    pub const fn has_group_desc_csum(self) -> bool {
        self.ro_compat.contains(RoCompat::GDT_CSUM) || self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Names in dumpe2fs's order, separated by one space; "(none)" for the empty set.
    #[must_use]
    pub fn names(self) -> String {
        use alloc::string::ToString as _;
        self.to_string()
    }
}

fn numbered(name: &str, letter: &str) -> Option<u32> {
    let bit: u32 = name.strip_prefix("FEATURE_")?.strip_prefix(letter)?.parse().ok()?;
    1u32.checked_shl(bit)
}

fn write_names(
    f: &mut fmt::Formatter<'_>,
    first: &mut bool,
    bits: u32,
    names: &[(u32, &str)],
    letter: char,
) -> fmt::Result {
    for bit in 0..u32::BITS {
        if bits & (1 << bit) == 0 {
            continue;
        }
        if !core::mem::take(first) {
            f.write_str(" ")?;
        }
        match names.iter().find(|(b, _)| *b == 1 << bit) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "FEATURE_{letter}{bit}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("(none)");
        }
        let mut first = true;
        write_names(f, &mut first, self.compat.bits(), COMPAT_NAMES, 'C')?;
        write_names(f, &mut first, self.incompat.bits(), INCOMPAT_NAMES, 'I')?;
        write_names(f, &mut first, self.ro_compat.bits(), RO_COMPAT_NAMES, 'R')
    }
}

macro_rules! display_set {
    ($t:ty, $names:expr, $letter:literal) => {
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_names(f, &mut true, self.bits(), $names, $letter)
            }
        }
    };
}
display_set!(Compat, COMPAT_NAMES, 'C');
display_set!(Incompat, INCOMPAT_NAMES, 'I');
display_set!(RoCompat, RO_COMPAT_NAMES, 'R');

#[cfg(test)]
mod tests;
