//! What the caller asks for, before any default is applied. Every field is optional in the sense of mke2fs.

use std::path::PathBuf;

use crate::size::Size;

/// The options of making a filesystem. [`Options::default`] asks for nothing: the defaults of mke2fs.conf.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `-t`: ext2, ext3 or ext4 (the default), or another type of mke2fs.conf.
    pub fs_type: Option<String>,
    /// `-T`: usage types, comma-separated.
    pub usage: Option<String>,
    /// `-b`: bytes a block; negative: at least so many.
    pub block_size: Option<i64>,
    /// `-C`: bytes a cluster.
    pub cluster_size: Option<u64>,
    /// `-I`: bytes an inode.
    pub inode_size: Option<u64>,
    /// `-i`: bytes an inode stands for.
    pub inode_ratio: Option<u64>,
    /// `-N`: inodes.
    pub inodes: Option<u64>,
    /// `-g`: blocks a group.
    pub blocks_per_group: Option<u64>,
    /// `-G`: groups a flexible group.
    pub groups_per_flex: Option<u64>,
    /// `-L`: label.
    pub label: Option<String>,
    /// `-M`: last mounted directory.
    pub last_mounted: Option<String>,
    /// `-U`: UUID; hash seed and journal UUID follow from it.
    pub uuid: Option<[u8; 16]>,
    /// `-U clear`, `random` and `time` leave [`Options::uuid`] empty; `clear` means all zero.
    pub uuid_clear: bool,
    /// `-m`: percentage of blocks for the super-user.
    pub reserved_percent: Option<f64>,
    /// `-e`: 1 continue, 2 remount-ro, 3 panic.
    pub errors: Option<u16>,
    /// `-r`: revision.
    pub revision: Option<u32>,
    /// `-o`: creator's operating system.
    pub creator_os: Option<u32>,
    /// `-O`: features to set and clear, in order.
    pub features: Vec<String>,
    /// `-j`.
    pub journal: bool,
    /// `-J size=`: MiB.
    pub journal_size: Option<u64>,
    /// `-J fast_commit_size=`: KiB.
    pub fast_commit_size: Option<u64>,
    /// `-J location=`: block.
    pub journal_location: Option<Size>,
    /// `-J device=`.
    pub journal_device: Option<PathBuf>,
    /// `-E`.
    pub extended: Extended,
    /// `-S`: only superblocks and descriptors.
    pub super_only: bool,
    /// SIZE.
    pub size: Option<Size>,
    /// Seconds since 1970 of every time in the image; none: now.
    pub time: Option<u64>,
    /// `-d`.
    pub source: Option<Source>,
    /// `--owner`: everything in the image belongs to these.
    pub owner: Option<(u32, u32)>,
    /// Where mke2fs.conf is; none: `/etc/mke2fs.conf`.
    pub conf: Option<PathBuf>,
}

/// Where the contents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory, or a tar archive (plain, gzip, zstd, xz).
    Path(PathBuf),
    /// A tar archive on standard input.
    Stdin,
}

/// `-E`
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "these are switches on a command line")]
pub struct Extended {
    /// `stride=` blocks.
    pub stride: Option<u32>,
    /// `stripe_width=` blocks.
    pub stripe_width: Option<u32>,
    /// `resize=` blocks.
    pub resize: Option<Size>,
    /// `offset=` bytes.
    pub offset: Option<u64>,
    /// `hash_seed=`.
    pub hash_seed: Option<[u8; 16]>,
    /// `lazy_itable_init=`.
    pub lazy_itable_init: Option<bool>,
    /// `lazy_journal_init=`.
    pub lazy_journal_init: Option<bool>,
    /// `assume_storage_prezeroed=`.
    pub prezeroed: Option<bool>,
    /// `no_copy_xattrs`.
    pub no_copy_xattrs: bool,
    /// `packed_meta_blocks=`.
    pub packed_meta_blocks: Option<bool>,
    /// `num_backup_sb=`.
    pub num_backup_sb: Option<u32>,
    /// `root_owner=`.
    pub root_owner: Option<(u32, u32)>,
    /// `root_perms=`.
    pub root_perms: Option<u16>,
    /// `quotatype=`: user, group, project.
    pub quota_types: Option<[bool; 3]>,
    /// `orphan_file_size=` bytes.
    pub orphan_file_size: Option<u64>,
    /// `mmp_update_interval=` seconds.
    pub mmp_update_interval: Option<u16>,
    /// `desc_size=` bytes.
    pub desc_size: Option<u16>,
    /// `discard`, `nodiscard` and `-K`.
    pub discard: Option<bool>,
    /// `test_fs`.
    pub test_fs: bool,
    /// `revision=`.
    pub revision: Option<u32>,
}
