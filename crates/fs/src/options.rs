//! ext4's mount options: parsed from the comma-separated form of mount(8), merged over the superblock's defaults.
//!
//! Names and meanings are those of ext4(5), section "Mount options for ext4", and of mount(8) for the ones every
//! filesystem has. What is accepted and changes nothing here is in [`WITHOUT_EFFECT`]; anything else unknown is
//! refused by name.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What to do when damage is found (`errors=`, or the superblock's `s_errors`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// Record it and go on.
    Continue,
    /// Turn the filesystem read-only.
    RemountReadOnly,
    /// Stop at once and touch the image no more.
    Panic,
}

/// When access times are updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtimePolicy {
    /// When older than the last change or than a day.
    #[default]
    Relatime,
    /// Never.
    Noatime,
    /// At every access.
    Strictatime,
}

/// `data=`. Ordering is by "claim, write, publish" in every mode; see [`DataMode::Writeback`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DataMode {
    /// File data is on the device before the metadata that names it.
    #[default]
    Ordered,
    /// Accepted; behaves as `ordered`.
    Writeback,
    /// File data goes through the journal.
    Journal,
}

/// `dax=`: which files go past the page cache to a device that is memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DaxMode {
    /// Those with the flag, where the device can.
    #[default]
    Inode,
    /// All; refused where the device cannot. `dax` alone is this.
    Always,
    /// None, whatever their flags say.
    Never,
}

/// `dax_switch=` (Extant's own): when a changed DAX flag takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DaxSwitch {
    /// At once, under whoever uses the file.
    #[default]
    Live,
    /// When the inode is next read, after everybody has let go of it, as in the kernel.
    Deferred,
}

/// Whether uninitialised inode tables are zeroed in the background, and how hard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitItable {
    /// `noinit_itable`
    Off,
    /// `init_itable=N`: after each table it waits N times as long as the zeroing took.
    Multiplier(u32),
}

impl Default for InitItable {
    fn default() -> Self {
        Self::Multiplier(10)
    }
}

/// Which quotas the options ask to keep.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuotaOptions {
    /// `usrquota` / `quota`: enforce user limits.
    pub user: bool,
    /// `grpquota`: enforce group limits.
    pub group: bool,
    /// `prjquota`: enforce project limits.
    pub project: bool,
    /// `noquota`: none of them.
    pub none: bool,
    /// `usrjquota=` file name (old visible quota files).
    pub user_file: Option<String>,
    /// `grpjquota=` file name.
    pub group_file: Option<String>,
    /// `jqfmt=`.
    pub format: Option<String>,
}

/// Every mount option. Options that the superblock may preset are `Option`s until [`MountOptions::resolve`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `noload` / `norecovery`: do not replay the journal (read-only only).
    pub noload: bool,
    /// `sb=`: superblock to use, in units of 1 KiB.
    pub sb: Option<u64>,
    /// `errors=`.
    pub errors: Option<OnError>,
    /// `commit=` seconds (0 means the default of 5).
    pub commit: Option<u32>,
    /// `data=`.
    pub data: Option<DataMode>,
    /// `barrier` / `nobarrier`.
    pub barrier: Option<bool>,
    /// `acl` / `noacl`.
    pub acl: Option<bool>,
    /// `user_xattr` / `nouser_xattr`.
    pub user_xattr: Option<bool>,
    /// `resuid=`: user who may use reserved blocks.
    pub resuid: Option<u32>,
    /// `resgid=`: group that may use reserved blocks.
    pub resgid: Option<u32>,
    /// `grpid` / `bsdgroups`: new files get the directory's group.
    pub grpid: Option<bool>,
    /// `discard` / `nodiscard`: discard freed blocks after their commit.
    pub discard: Option<bool>,
    /// `delalloc` / `nodelalloc`.
    pub delalloc: Option<bool>,
    /// `auto_da_alloc` / `noauto_da_alloc`: flush a replaced file before its rename commits.
    pub auto_da_alloc: Option<bool>,
    /// `minixdf`: statfs counts the filesystem's own overhead as capacity.
    pub minixdf: Option<bool>,
    /// `init_itable=`, `noinit_itable`.
    pub init_itable: Option<InitItable>,
    /// `journal_path=`: external journal.
    pub journal_path: Option<PathBuf>,
    /// `stripe=` blocks.
    pub stripe: Option<u32>,
    /// Quota options.
    pub quota: QuotaOptions,
    /// `lazytime`.
    pub lazytime: bool,
    /// `sync`.
    pub sync: bool,
    /// `dirsync`.
    pub dirsync: bool,
    /// `noatime`, `relatime`, `strictatime`.
    pub atime: AtimePolicy,
    /// `nodiratime`.
    pub nodiratime: bool,
    /// `max_dir_size_kb=`; 0 is no limit.
    pub max_dir_size_kb: Option<u32>,
    /// `inode_readahead_blks=`.
    pub inode_readahead_blks: Option<u32>,
    /// `mbcache` / `no_mbcache`: share extended-attribute blocks of equal content.
    pub mbcache: Option<bool>,
    /// `data_err=abort`.
    pub data_err_abort: Option<bool>,
    /// `dax=`.
    pub dax: Option<DaxMode>,
    /// `dax_switch=`.
    pub dax_switch: DaxSwitch,
    /// `pmem=on|off` (Extant's own): the device is persistent memory, or not, whatever it says itself.
    pub pmem: Option<bool>,
    /// `cache_size=` bytes of page cache and metadata cache (Extant's own; k, m, g suffixes).
    pub cache_size: Option<u64>,
}

/// Options that are accepted and change nothing, each with the reason.
pub const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("rw", "the default"),
    ("async", "the default"),
    ("defaults", "stands for nothing"),
    ("nolazytime", "the default"),
    ("diratime", "the default"),
    ("suid", "decided by whoever mounts"),
    ("nosuid", "decided by whoever mounts"),
    ("dev", "decided by whoever mounts"),
    ("nodev", "decided by whoever mounts"),
    ("exec", "decided by whoever mounts"),
    ("noexec", "decided by whoever mounts"),
    ("symfollow", "decided by whoever mounts"),
    ("nosymfollow", "decided by whoever mounts"),
    ("mand", "mandatory locks are gone from Linux"),
    ("nomand", "mandatory locks are gone from Linux"),
    ("silent", "messages are not a console's"),
    ("loud", "messages are not a console's"),
    ("iversion", "i_version always counts changes"),
    ("i_version", "i_version always counts changes"),
    ("noiversion", "i_version always counts changes"),
    ("bh", "there are no buffer heads"),
    ("nobh", "there are no buffer heads"),
    ("orlov", "the only allocator"),
    ("oldalloc", "removed in Linux 2.6.39"),
    ("dioread_lock", "direct reads always exclude truncation by page ranges"),
    ("dioread_nolock", "direct reads always exclude truncation by page ranges"),
    ("nodioread_nolock", "direct reads always exclude truncation by page ranges"),
    ("journal_async_commit", "the commit record is always written after its flush"),
    ("nojournal_checksum", "checksums follow the journal's own feature bits"),
    ("journal_ioprio", "there is no I/O priority to pass on"),
    ("journal_checksum", "checksums follow the journal's own feature bits"),
    ("delalloc", "a block gets its place when its content is written"),
    ("nodelalloc", "a block gets its place when its content is written, never before"),
    ("min_batch_time", "an fsync waits for nothing but a commit that is under way, which all who wait share"),
    ("max_batch_time", "an fsync waits for nothing but a commit that is under way, which all who wait share"),
    ("block_validity", "blocks of the filesystem's own are refused in every map"),
    ("noblock_validity", "blocks of the filesystem's own are refused in every map"),
    ("debug", "a kernel debugging aid"),
    ("prefetch_block_bitmaps", "bitmaps are read when first needed"),
    ("no_prefetch_block_bitmaps", "bitmaps are read when first needed"),
    ("mb_optimize_scan", "the allocator's search is always indexed"),
    ("warn_on_error", "a kernel debugging aid"),
    ("nowarn_on_error", "a kernel debugging aid"),
    ("nouid32", "ids are 32 bits wide"),
    ("inlinecrypt", "encrypted files are refused one by one"),
    ("reservation", "an option of ext3"),
    ("noreservation", "an option of ext3"),
    ("check", "an option of ext2"),
    ("nocheck", "an option of ext2"),
];

/// The superblock's presets: `s_default_mount_opts`, `s_errors`, reserved ids, RAID stripe.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presets {
    /// `s_default_mount_opts`.
    pub default_mount_opts: u32,
    /// `s_errors` (1 continue, 2 read-only, 3 panic; others mean read-only).
    pub errors: u16,
    /// `s_def_resuid`.
    pub resuid: u32,
    /// `s_def_resgid`.
    pub resgid: u32,
    /// `s_raid_stripe_width` or `s_raid_stride`, blocks.
    pub stripe: u32,
}

/// Options after the superblock's defaults were applied: what the mount runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// `errors=`.
    pub errors: OnError,
    /// `commit=` seconds.
    pub commit_secs: u32,
    /// `data=`.
    pub data: DataMode,
    /// `barrier`.
    pub barrier: bool,
    /// `acl`.
    pub acl: bool,
    /// `user_xattr`.
    pub user_xattr: bool,
    /// `resuid=`.
    pub resuid: u32,
    /// `resgid=`.
    pub resgid: u32,
    /// `grpid`.
    pub grpid: bool,
    /// `discard`.
    pub discard: bool,
    /// `delalloc`.
    pub delalloc: bool,
    /// `stripe=` blocks, 0 for none.
    pub stripe: u32,
    /// `auto_da_alloc`.
    pub auto_da_alloc: bool,
    /// `minixdf`.
    pub minixdf: bool,
    /// `init_itable=`.
    pub init_itable: InitItable,
    /// `max_dir_size_kb=`; 0 is no limit.
    pub max_dir_size_kb: u32,
    /// `inode_readahead_blks=`.
    pub inode_readahead_blks: u32,
    /// `mbcache`.
    pub mbcache: bool,
    /// `dax=`.
    pub dax: DaxMode,
    /// Everything that the superblock does not preset.
    pub given: MountOptions,
}

impl Resolved {
    /// Whether a mount with the other options would do the same, however they were given.
    pub(crate) fn does_as(&self, other: &Self) -> bool {
        let in_force = |r: &Self| Self { given: r.given.without_resolved(), ..r.clone() };
        in_force(self) == in_force(other)
    }
}

/// Bits of `s_default_mount_opts` (ext4 documentation, "The Super Block": `s_default_mount_opts`).
mod default_opt {
    pub(super) const BSDGROUPS: u32 = 0x2;
    pub(super) const JMODE: u32 = 0x60;
    pub(super) const JMODE_DATA: u32 = 0x20;
    pub(super) const JMODE_WBACK: u32 = 0x60;
    pub(super) const NOBARRIER: u32 = 0x100;
    pub(super) const DISCARD: u32 = 0x400;
    pub(super) const NODELALLOC: u32 = 0x800;
}

impl MountOptions {
    /// Parses a comma-separated list over the defaults.
    pub fn parse(list: &str) -> Result<Self> {
        let mut options = Self::default();
        options.apply(list)?;
        Ok(options)
    }

    /// Applies a comma-separated list over `self`; later words win.
    pub fn apply(&mut self, list: &str) -> Result<()> {
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((n, v)) => (n, Some(v)),
                None => (word, None),
            };
            let known = match value {
                None => self.set_flag(name),
                Some(v) => self.set_value(name, v, word)?,
            };
            if !known && !WITHOUT_EFFECT.iter().any(|(n, _)| *n == name) {
                return Err(refused(format!("unknown mount option `{word}`")));
            }
        }
        Ok(())
    }

    /// Options without a value; false if `name` is none of them.
    fn set_flag(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noload" | "norecovery" => self.noload = true,
            "load" => self.noload = false,
            "barrier" => self.barrier = Some(true),
            "nobarrier" => self.barrier = Some(false),
            "acl" => self.acl = Some(true),
            "noacl" => self.acl = Some(false),
            "user_xattr" => self.user_xattr = Some(true),
            "nouser_xattr" => self.user_xattr = Some(false),
            "grpid" | "bsdgroups" => self.grpid = Some(true),
            "nogrpid" | "sysvgroups" => self.grpid = Some(false),
            "discard" => self.discard = Some(true),
            "nodiscard" => self.discard = Some(false),
            "delalloc" => self.delalloc = Some(true),
            "nodelalloc" => self.delalloc = Some(false),
            "auto_da_alloc" => self.auto_da_alloc = Some(true),
            "noauto_da_alloc" => self.auto_da_alloc = Some(false),
            "minixdf" => self.minixdf = Some(true),
            "bsddf" => self.minixdf = Some(false),
            "init_itable" => self.init_itable = Some(InitItable::default()),
            "noinit_itable" => self.init_itable = Some(InitItable::Off),
            "quota" | "usrquota" | "uquota" => self.quota.user = true,
            "grpquota" | "gquota" => self.quota.group = true,
            "prjquota" | "pquota" => self.quota.project = true,
            "noquota" => self.quota = QuotaOptions { none: true, ..QuotaOptions::default() },
            "lazytime" => self.lazytime = true,
            "nolazytime" => self.lazytime = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "noatime" => self.atime = AtimePolicy::Noatime,
            "relatime" => self.atime = AtimePolicy::Relatime,
            // Each takes back the one word only.
            "atime" if self.atime != AtimePolicy::Noatime => {}
            "nostrictatime" if self.atime != AtimePolicy::Strictatime => {}
            "atime" | "nostrictatime" => self.atime = AtimePolicy::Relatime,
            "norelatime" => {}
            "strictatime" => self.atime = AtimePolicy::Strictatime,
            "nodiratime" => self.nodiratime = true,
            "diratime" => self.nodiratime = false,
            "mbcache" => self.mbcache = Some(true),
            "no_mbcache" | "nombcache" => self.mbcache = Some(false),
            "dax" => self.dax = Some(DaxMode::Always),
            _ => return false,
        }
        true
    }

    /// Options with a value; false if `name` is none of them.
    fn set_value(&mut self, name: &str, v: &str, word: &str) -> Result<bool> {
        match name {
            "sb" => self.sb = Some(number(v, word)?),
            "errors" => {
                self.errors = Some(match v {
                    "continue" => OnError::Continue,
                    "remount-ro" => OnError::RemountReadOnly,
                    "panic" => OnError::Panic,
                    _ => return Err(bad_value(word)),
                });
            }
            "commit" => self.commit = Some(number32(v, word)?),
            "data" => {
                self.data = Some(match v {
                    "ordered" => DataMode::Ordered,
                    "writeback" => DataMode::Writeback,
                    "journal" => DataMode::Journal,
                    _ => return Err(bad_value(word)),
                });
            }
            "barrier" => self.barrier = Some(number(v, word)? != 0),
            "auto_da_alloc" => self.auto_da_alloc = Some(number(v, word)? != 0),
            "resuid" => self.resuid = Some(number32(v, word)?),
            "resgid" => self.resgid = Some(number32(v, word)?),
            "init_itable" => self.init_itable = Some(InitItable::Multiplier(number32(v, word)?)),
            "journal_path" => self.journal_path = Some(PathBuf::from(v)),
            "stripe" => self.stripe = Some(number32(v, word)?),
            "usrjquota" => self.quota.user_file = some_text(v),
            "grpjquota" => self.quota.group_file = some_text(v),
            "jqfmt" => match v {
                "vfsold" | "vfsv0" | "vfsv1" => self.quota.format = Some(v.to_owned()),
                _ => return Err(bad_value(word)),
            },
            "max_dir_size_kb" => self.max_dir_size_kb = Some(number32(v, word)?),
            "inode_readahead_blks" => {
                let n = number32(v, word)?;
                if n != 0 && (!n.is_power_of_two() || n > 1 << 30) {
                    return Err(bad_value(word));
                }
                self.inode_readahead_blks = Some(n);
            }
            "journal_ioprio" => {
                if number(v, word)? > 7 {
                    return Err(bad_value(word));
                }
            }
            "mb_optimize_scan" => {
                number(v, word)?;
            }
            "data_err" => match v {
                "abort" => self.data_err_abort = Some(true),
                "ignore" => self.data_err_abort = Some(false),
                _ => return Err(bad_value(word)),
            },
            "cache_size" => self.cache_size = Some(size(v, word)?),
            "journal_dev" => {
                return Err(refused(
                    "`journal_dev=` names a kernel device number; use `journal_path=`".into(),
                ));
            }
            "dax" => {
                self.dax = Some(match v {
                    "inode" => DaxMode::Inode,
                    "always" => DaxMode::Always,
                    "never" => DaxMode::Never,
                    _ => return Err(bad_value(word)),
                });
            }
            "dax_switch" => {
                self.dax_switch = match v {
                    "live" => DaxSwitch::Live,
                    "deferred" => DaxSwitch::Deferred,
                    _ => return Err(bad_value(word)),
                };
            }
            "pmem" => {
                self.pmem = Some(match v {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad_value(word)),
                });
            }
            "test_dummy_encryption" => return Err(refused(format!("`{word}`: encryption is not supported"))),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The same options where those that [`Resolved`] has in force are not said.
    fn without_resolved(&self) -> Self {
        Self {
            errors: None,
            commit: None,
            data: None,
            barrier: None,
            acl: None,
            user_xattr: None,
            resuid: None,
            resgid: None,
            grpid: None,
            discard: None,
            delalloc: None,
            stripe: None,
            auto_da_alloc: None,
            minixdf: None,
            init_itable: None,
            max_dir_size_kb: None,
            inode_readahead_blks: None,
            mbcache: None,
            dax: None,
            data_err_abort: Some(self.data_err_abort.unwrap_or(false)),
            ..self.clone()
        }
    }

    /// Applies the superblock's presets under what was given.
    pub fn resolve(&self, presets: &Presets) -> Result<Resolved> {
        let bits = presets.default_mount_opts;
        if self.noload && !self.read_only {
            return Err(refused(
                "`noload` needs `ro`: writing without recovery would destroy the journal's changes".into(),
            ));
        }
        let preset_data = match bits & default_opt::JMODE {
            default_opt::JMODE_DATA => DataMode::Journal,
            default_opt::JMODE_WBACK => DataMode::Writeback,
            _ => DataMode::Ordered,
        };
        let preset_errors = match presets.errors {
            1 => OnError::Continue,
            3 => OnError::Panic,
            // What is none of the three too: as the kernel does.
            _ => OnError::RemountReadOnly,
        };
        Ok(Resolved {
            errors: self.errors.unwrap_or(preset_errors),
            commit_secs: self.commit.filter(|&s| s != 0).unwrap_or(5),
            data: self.data.unwrap_or(preset_data),
            barrier: self.barrier.unwrap_or(bits & default_opt::NOBARRIER == 0),
            // Both are on by default since Linux 2.6.39 whatever the superblock says.
            acl: self.acl.unwrap_or(true),
            user_xattr: self.user_xattr.unwrap_or(true),
            resuid: self.resuid.unwrap_or(presets.resuid),
            resgid: self.resgid.unwrap_or(presets.resgid),
            grpid: self.grpid.unwrap_or(bits & default_opt::BSDGROUPS != 0),
            discard: self.discard.unwrap_or(bits & default_opt::DISCARD != 0),
            delalloc: self.delalloc.unwrap_or(bits & default_opt::NODELALLOC == 0),
            stripe: self.stripe.unwrap_or(presets.stripe),
            auto_da_alloc: self.auto_da_alloc.unwrap_or(true),
            minixdf: self.minixdf.unwrap_or(false),
            init_itable: self.init_itable.unwrap_or_default(),
            max_dir_size_kb: self.max_dir_size_kb.unwrap_or(0),
            inode_readahead_blks: self.inode_readahead_blks.unwrap_or(32),
            mbcache: self.mbcache.unwrap_or(true),
            dax: self.dax.unwrap_or_default(),
            given: self.clone(),
        })
    }
}

fn refused(why: String) -> Error {
    Error::Incompatible(why.into_boxed_str())
}

fn bad_value(word: &str) -> Error {
    refused(format!("bad value in mount option `{word}`"))
}

fn number(v: &str, word: &str) -> Result<u64> {
    let parsed = match v.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => v.parse(),
    };
    parsed.map_err(|_| bad_value(word))
}

fn number32(v: &str, word: &str) -> Result<u32> {
    u32::try_from(number(v, word)?).map_err(|_| bad_value(word))
}

fn size(v: &str, word: &str) -> Result<u64> {
    let (digits, shift) = match v.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&v[..v.len() - 1], 10),
        Some(b'm') => (&v[..v.len() - 1], 20),
        Some(b'g') => (&v[..v.len() - 1], 30),
        Some(b't') => (&v[..v.len() - 1], 40),
        _ => (v, 0),
    };
    number(digits, word)?.checked_mul(1 << shift).ok_or_else(|| bad_value(word))
}

fn some_text(v: &str) -> Option<String> {
    (!v.is_empty()).then(|| v.to_owned())
}

pub(crate) mod stored;
#[cfg(test)]
mod tests;
