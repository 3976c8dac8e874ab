//! From what was asked for to what will be made: defaults of mke2fs.conf by type and size, rules between options.

use std::path::PathBuf;

use extant_format::{Compat, Features, Incompat, RoCompat};
use uuid::Uuid;

use crate::conf::Conf;
use crate::error::{Result, invalid, usage};
use crate::options::Options;
use crate::size::Size;

/// Everything decided but the layout.
#[derive(Clone, Debug)]
pub struct Params {
    /// Bytes a block.
    pub block_size: u32,
    /// Blocks a cluster.
    pub cluster_ratio: u32,
    /// Blocks of the filesystem.
    pub blocks: u64,
    /// Blocks there were before a last cluster that is not whole was left out; what is reserved is a part of these.
    pub blocks_asked: u64,
    /// Inodes asked for; the layout rounds. 0, where the size does not reach one: an inode for each block or 4096 bytes.
    pub inodes: u64,
    /// Whether the caller fixed the inodes (`-N`, `-i`).
    pub inodes_fixed: bool,
    /// Bytes an inode.
    pub inode_size: u16,
    /// Bytes a descriptor.
    pub desc_size: u16,
    /// The features.
    pub features: Features,
    /// Blocks a group, `None` for as many as fit.
    pub blocks_per_group: Option<u32>,
    /// log2 of the groups of a flexible group.
    pub log_groups_per_flex: u8,
    /// Percentage of blocks for the super-user.
    pub reserved_percent: f64,
    /// `s_rev_level`
    pub revision: u32,
    /// Blocks that the descriptor table can grow to.
    pub resize: Option<u64>,
    /// RAID stride in blocks.
    pub stride: u32,
    /// RAID stripe width in blocks.
    pub stripe_width: u32,
    /// Label.
    pub label: Vec<u8>,
    /// Last mounted directory.
    pub last_mounted: Vec<u8>,
    /// UUID.
    pub uuid: [u8; 16],
    /// Seed of directory hashes.
    pub hash_seed: [u8; 16],
    /// UUID of an external journal that is made.
    pub journal_uuid: [u8; 16],
    /// `s_def_hash_version`
    pub hash_version: u8,
    /// `s_errors`
    pub errors: u16,
    /// `s_creator_os`
    pub creator_os: u32,
    /// `s_default_mount_opts`
    pub default_mount_opts: u32,
    /// Seconds since 1970 of every time.
    pub time: u64,
    /// Whether periodic checks are on.
    pub periodic_check: bool,
    /// Journal in blocks (fast commits not counted), `None` for the default.
    pub journal_blocks: Option<u64>,
    /// Fast-commit blocks, `None` for the default.
    pub fast_commit_blocks: Option<u64>,
    /// Goal of the journal.
    pub journal_goal: Option<u64>,
    /// External journal.
    pub journal_device: Option<PathBuf>,
    /// Inode tables need not be zeroed now.
    pub lazy_itable_init: bool,
    /// Journal at the front.
    pub packed_meta_blocks: bool,
    /// Backups with sparse_super2.
    pub num_backup_sb: u32,
    /// User and group of the root directory.
    pub root_owner: (u32, u32),
    /// Permissions of the root directory.
    pub root_perms: u16,
    /// User, group, project quota files.
    pub quota: [bool; 3],
    /// Bytes of the orphan file, `None` for the default.
    pub orphan_file_size: Option<u64>,
    /// `s_mmp_interval`
    pub mmp_interval: u16,
    /// A test filesystem.
    pub test_fs: bool,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

const NAMESPACE_HASH_SEED: &[u8] = b"hash_seed";
const NAMESPACE_JOURNAL: &[u8] = b"journal";

/// Bytes of the largest file.
const MAX_FILE: u64 = i64::MAX as u64;

/// `SOURCE_DATE_EPOCH`, where it is set.
///
/// # Errors
/// [`crate::MkfsError::Usage`]: it is no number of seconds.
pub(crate) fn source_date() -> Result<Option<u64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    match text.to_str().and_then(|t| t.trim().parse::<u64>().ok()).filter(|&t| i64::try_from(t).is_ok()) {
        Some(time) => Ok(Some(time)),
        None => usage(format!(
            "SOURCE_DATE_EPOCH={}: not a number of seconds since 1970; correct it or unset it",
            text.display()
        )),
    }
}

/// The latest time that an inode of `inode_size` bytes has room for: 34 bits of seconds from 1901 on, or 32 in one of 128 bytes.
const fn latest_time(inode_size: u16) -> u64 {
    if inode_size == 128 { i32::MAX as u64 } else { 0x3_7fff_ffff }
}

/// A time that was asked for, where inodes of `inode_size` bytes have room for it.
fn fitting(time: u64, inode_size: u16) -> Result<u64> {
    let latest = latest_time(inode_size);
    if time > latest {
        return usage(format!(
            "SOURCE_DATE_EPOCH={time}: inodes of {inode_size} bytes have no times after {latest} seconds since 1970"
        ));
    }
    Ok(time)
}

/// A time stamp for what is made: `SOURCE_DATE_EPOCH` where it is set, else now.
///
/// # Errors
/// [`crate::MkfsError::Usage`]: `SOURCE_DATE_EPOCH` is no number of seconds.
pub fn now() -> Result<u64> {
    if let Some(time) = source_date()? {
        return Ok(time);
    }
    Ok(clock())
}

fn clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// What a size in bytes or blocks is in blocks.
fn in_blocks(size: Size, block_size: u32) -> u64 {
    match size {
        Size::Blocks(n) => n,
        Size::Bytes(n) => n / u64::from(block_size),
    }
}

/// The usage type that a size stands for, from mke2fs(8), `-T`.
fn usage_of_size(bytes: u128) -> &'static str {
    const MIB: u128 = 1 << 20;
    match bytes / MIB {
        0..3 => "floppy",
        3..512 => "small",
        n if n < 4 << 20 => "default",
        n if n < 16 << 20 => "big",
        _ => "huge",
    }
}

impl Params {
    /// Whether an external journal is to be made, not a filesystem.
    #[must_use]
    pub const fn is_journal_device(&self) -> bool {
        self.features.incompat.contains(Incompat::JOURNAL_DEV)
    }
}

struct Resolver<'a> {
    options: &'a Options,
    conf: &'a Conf,
    types: Vec<String>,
    warnings: Vec<String>,
}

impl Params {
    /// Applies defaults. `device_bytes` is the space there is where no SIZE is given.
    ///
    /// # Errors
    /// [`crate::MkfsError::Usage`] and [`crate::MkfsError::Invalid`], naming the option.
    pub fn resolve(options: &Options, conf: &Conf, device_bytes: Option<u64>) -> Result<Self> {
        let mut resolver = Resolver { options, conf, types: Vec::new(), warnings: Vec::new() };
        resolver.resolve(device_bytes)
    }
}

impl Resolver<'_> {
    fn resolve(&mut self, device_bytes: Option<u64>) -> Result<Params> {
        let offset = self.options.extended.offset.unwrap_or(0);
        let device_bytes = device_bytes.map(|b| b.saturating_sub(offset));
        self.find_types(device_bytes)?;
        let features = self.features()?;
        let block_size = self.block_size()?;
        let cluster_ratio = self.cluster_ratio(features, block_size)?;
        let blocks_asked = self.blocks(device_bytes, block_size)?;
        let blocks = blocks_asked / u64::from(cluster_ratio) * u64::from(cluster_ratio);
        let features = self.size_features(features, blocks)?;
        let inode_size = self.inode_size(features, block_size)?;
        let cluster = u64::from(block_size) * u64::from(cluster_ratio);
        let (inodes, inodes_fixed) = self.inodes(features, blocks_asked, block_size, cluster)?;
        let o = self.options;
        let uuid = if o.uuid_clear { [0; 16] } else { o.uuid.unwrap_or_else(|| *Uuid::new_v4().as_bytes()) };
        let derived = |name| *Uuid::new_v5(&Uuid::from_bytes(uuid), name).as_bytes();
        let e = &o.extended;
        let params = Params {
            block_size,
            cluster_ratio,
            blocks,
            blocks_asked,
            inodes,
            inodes_fixed,
            inode_size,
            desc_size: self.desc_size(features)?,
            features,
            blocks_per_group: self.blocks_per_group(block_size, cluster_ratio)?,
            log_groups_per_flex: self.log_groups_per_flex(features)?,
            reserved_percent: self.reserved_percent()?,
            revision: o.revision.or(e.revision).unwrap_or(1),
            resize: self.resize(blocks, block_size, features)?,
            stride: e.stride.unwrap_or(0),
            stripe_width: e.stripe_width.unwrap_or(0),
            label: self.text_field(o.label.as_deref(), 16, "-L: the label"),
            last_mounted: self.text_field(o.last_mounted.as_deref(), 63, "-M: the directory"),
            uuid,
            hash_seed: e.hash_seed.unwrap_or_else(|| derived(NAMESPACE_HASH_SEED)),
            journal_uuid: derived(NAMESPACE_JOURNAL),
            hash_version: self.hash_version()?,
            errors: o.errors.unwrap_or(1),
            creator_os: o.creator_os.unwrap_or(0),
            default_mount_opts: self.default_mount_opts()?,
            time: match o.time.map_or_else(source_date, |time| Ok(Some(time)))? {
                Some(time) => fitting(time, inode_size)?,
                None => clock(),
            },
            periodic_check: self.conf.boolean(&self.types, "enable_periodic_fsck").unwrap_or(false),
            // What has no room in the product is too large for any filesystem anyway.
            journal_blocks: o.journal_size.map(|mib| mib.saturating_mul(1 << 20) / u64::from(block_size)),
            fast_commit_blocks: o
                .fast_commit_size
                .map(|kib| kib.saturating_mul(1 << 10) / u64::from(block_size))
                .filter(|&blocks| blocks > 0),
            journal_goal: o.journal_location.map(|l| in_blocks(l, block_size)),
            journal_device: o.journal_device.clone(),
            lazy_itable_init: e.lazy_itable_init.or(self.flag("lazy_itable_init")).unwrap_or(true),
            packed_meta_blocks: e.packed_meta_blocks.or(self.flag("packed_meta_blocks")).unwrap_or(false),
            num_backup_sb: e.num_backup_sb.unwrap_or(2),
            root_owner: e.root_owner.unwrap_or((0, 0)),
            root_perms: e.root_perms.unwrap_or(0o755),
            quota: quota_types(features, e.quota_types),
            orphan_file_size: e.orphan_file_size,
            mmp_interval: e.mmp_update_interval.filter(|&s| s != 0).unwrap_or(5),
            test_fs: e.test_fs,
            warnings: std::mem::take(&mut self.warnings),
        };
        check(&params)?;
        // With this, no place in the image has an offset without room.
        let end = params.blocks_asked.checked_mul(u64::from(block_size)).and_then(|b| b.checked_add(offset));
        if end.is_none_or(|end| end > MAX_FILE) {
            return invalid(match offset {
                0 => format!("a filesystem of {blocks_asked} blocks is larger than a file can be"),
                _ => format!(
                    "-E offset={offset}: a filesystem of {blocks_asked} blocks would end past what a file can hold"
                ),
            });
        }
        Ok(params)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.conf.boolean(&self.types, key)
    }

    /// The list of types whose stanzas count: filesystem type, then usage types.
    fn find_types(&mut self, device_bytes: Option<u64>) -> Result<()> {
        let fs_type = self.options.fs_type.as_deref().unwrap_or("ext4");
        if !matches!(fs_type, "ext2" | "ext3" | "ext4") && !self.conf.knows(fs_type) {
            return usage(format!("-t {fs_type}: unknown type; use ext2, ext3 or ext4"));
        }
        self.types.push(fs_type.to_owned());
        match &self.options.usage {
            Some(list) => {
                for name in list.split(',') {
                    if name != "default" && !self.conf.knows(name) {
                        self.warnings.push(format!("usage type '{name}' is not defined in mke2fs.conf"));
                    }
                    self.types.push(name.to_owned());
                }
            }
            None => self.types.push(usage_of_size(self.bytes_asked(device_bytes)).to_owned()),
        }
        if self.options.creator_os == Some(HURD) {
            self.types.push("hurd".to_owned());
        }
        Ok(())
    }

    fn bytes_asked(&self, device_bytes: Option<u64>) -> u128 {
        // A bare number counts blocks of the size asked for, else of the default size.
        let unit = self.options.block_size.map_or(4096, i64::unsigned_abs);
        match self.options.size {
            Some(Size::Blocks(n)) => u128::from(n) * u128::from(unit),
            Some(Size::Bytes(n)) => u128::from(n),
            None => u128::from(device_bytes.unwrap_or(0)),
        }
    }

    fn features(&self) -> Result<Features> {
        let mut features = Features::default();
        if self.options.revision == Some(0) || self.options.extended.revision == Some(0) {
            for list in &self.options.features {
                edit(&mut features, list)?;
            }
            if features != Features::default() {
                return invalid("-O: a filesystem of revision 0 (-r 0) has no features");
            }
            return Ok(features);
        }
        let base = self.conf.string(&self.types, "base_features");
        edit(
            &mut features,
            base.unwrap_or("sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr"),
        )?;
        for list in self.conf.each(&self.types, "features") {
            edit(&mut features, list)?;
        }
        if self.options.features.is_empty() {
            edit(&mut features, self.conf.string(&self.types, "default_features").unwrap_or(""))?;
        }
        let hurd = self.options.creator_os == Some(HURD);
        if hurd {
            features = features.difference(not_of_hurd());
        }
        for list in &self.options.features {
            edit(&mut features, list)?;
        }
        let o = &self.options;
        if o.journal || o.journal_size.is_some() || o.journal_device.is_some() {
            features.compat.insert(Compat::HAS_JOURNAL);
        }
        if o.extended.quota_types.is_some_and(|[_, _, project]| project) {
            features.ro_compat.insert(RoCompat::PROJECT);
        }
        if hurd && features != features.difference(not_of_hurd()) {
            return invalid(
                "-o hurd: the Hurd has no filetype, huge_file, metadata_csum and ea_inode; leave them out of -O",
            );
        }
        if features.ro_compat.contains(RoCompat::METADATA_CSUM) {
            features.ro_compat.remove(RoCompat::GDT_CSUM);
        }
        let names_orphans = |list: &String| list.split([',', ' ']).any(|name| name == "orphan_file");
        if features.compat.contains(Compat::ORPHAN_FILE)
            && !features.compat.contains(Compat::HAS_JOURNAL)
            && self.options.features.iter().any(names_orphans)
        {
            return invalid("orphan_file needs a journal: add has_journal to -O, or leave it out");
        }
        if !features.compat.contains(Compat::HAS_JOURNAL) {
            features.compat.remove(Compat::FAST_COMMIT | Compat::ORPHAN_FILE);
        }
        Ok(features)
    }

    fn block_size(&self) -> Result<u32> {
        let asked = match self.options.block_size {
            Some(n) => n,
            None => self.conf.integer(&self.types, "blocksize").unwrap_or(4096),
        };
        // Negative: at least so many, and the heuristic's 4096.
        let bytes = if asked < 0 { asked.unsigned_abs().max(4096) } else { asked.unsigned_abs() };
        if !bytes.is_power_of_two() || !(1024..=65536).contains(&bytes) {
            return invalid(format!("-b {asked}: a block has 1024 to 65536 bytes, a power of two"));
        }
        Ok(bytes as u32)
    }

    fn cluster_ratio(&self, features: Features, block_size: u32) -> Result<u32> {
        let bigalloc = features.ro_compat.contains(RoCompat::BIGALLOC);
        let conf = self.conf.integer(&self.types, "cluster_size").map(i64::unsigned_abs);
        let Some(bytes) = self.options.cluster_size.or(conf.filter(|_| bigalloc)) else {
            return Ok(if bigalloc { 16 } else { 1 });
        };
        if !bigalloc {
            return invalid("-C: clusters need the feature bigalloc (-O bigalloc)");
        }
        let range = u64::from(block_size).max(2048)..=256 << 20;
        if !bytes.is_power_of_two() || !range.contains(&bytes) {
            return invalid(format!(
                "-C {bytes}: a cluster has 2048 bytes to 256 MiB, a power of two, and at least a block"
            ));
        }
        Ok((bytes / u64::from(block_size)) as u32)
    }

    fn blocks(&mut self, device_bytes: Option<u64>, block_size: u32) -> Result<u64> {
        if let Some(size) = self.options.size {
            let blocks = in_blocks(size, block_size);
            if let Some(have) = device_bytes.map(|b| b / u64::from(block_size))
                && blocks > have
            {
                return invalid(format!(
                    "the size asked for, {blocks} blocks, is larger than the device, {have} blocks of {block_size} bytes"
                ));
            }
            return Ok(blocks);
        }
        let Some(bytes) = device_bytes.filter(|&b| b != 0) else {
            return usage("the image does not exist yet or is empty: give a SIZE, or contents with -d");
        };
        // Where the device decides, whole pages of 4 KiB, as mke2fs.
        let per_page = u64::from((4096 / block_size).max(1));
        Ok(bytes / u64::from(block_size) / per_page * per_page)
    }

    /// Features that follow from the number of blocks.
    fn size_features(&mut self, mut features: Features, blocks: u64) -> Result<Features> {
        if blocks <= u64::from(u32::MAX) {
            return Ok(features);
        }
        if !features.incompat.contains(Incompat::EXTENTS) {
            return invalid(format!("{blocks} blocks need extents; use -t ext4 or a larger block size (-b)"));
        }
        if !features.incompat.contains(Incompat::BIT64) {
            if self.options.features.iter().any(|f| f.contains("^64bit")) {
                return invalid(format!(
                    "{blocks} blocks need the feature 64bit; drop ^64bit or use larger blocks (-b)"
                ));
            }
            features.incompat.insert(Incompat::BIT64);
        }
        // The resize inode's map has 32-bit pointers.
        features.compat.remove(Compat::RESIZE_INODE);
        Ok(features)
    }

    fn inode_size(&mut self, features: Features, block_size: u32) -> Result<u16> {
        let revision0 = self.options.revision == Some(0) || self.options.extended.revision == Some(0);
        let default = self.conf.integer(&self.types, "inode_size").map_or(256, i64::unsigned_abs);
        let bytes = self.options.inode_size.unwrap_or(if revision0 { 128 } else { default });
        let max = u64::from(block_size).min(4096);
        if !bytes.is_power_of_two() || !(128..=max).contains(&bytes) {
            return invalid(format!("-I {bytes}: an inode has 128 to {max} bytes, a power of two"));
        }
        if bytes == 128 {
            if features.incompat.contains(Incompat::INLINE_DATA) {
                return invalid("-I 128: inline_data needs inodes of 256 bytes or more");
            }
            if features.ro_compat.contains(RoCompat::PROJECT) {
                return invalid("-I 128: project needs inodes of 256 bytes or more");
            }
            self.warnings.push("128-byte inodes cannot handle dates beyond 2038".to_owned());
        }
        Ok(bytes as u16)
    }

    fn inodes(&self, features: Features, blocks: u64, block_size: u32, cluster: u64) -> Result<(u64, bool)> {
        if let Some(n) = self.options.inodes {
            return match u32::try_from(n) {
                Ok(0) | Err(_) => invalid(format!("-N {n}: there can be 1 to 4294967295 inodes")),
                Ok(n) => Ok((u64::from(n), true)),
            };
        }
        let ratio = match self.options.inode_ratio {
            Some(r) if !(1024..=64 << 20).contains(&r) => {
                return invalid(format!("-i {r}: one inode stands for 1024 to 67108864 bytes"));
            }
            Some(r) => r,
            None => {
                self.conf.integer(&self.types, "inode_ratio").map_or(16384, i64::unsigned_abs).max(cluster)
            }
        };
        let bytes = u128::from(blocks) * u128::from(block_size);
        let inodes = bytes / u128::from(ratio);
        if inodes > u128::from(u32::MAX) && !features.incompat.contains(Incompat::BIT64) {
            return invalid(format!(
                "too many inodes ({inodes}); raise the ratio (-i) or give a number (-N)"
            ));
        }
        Ok((inodes.min(u128::from(u32::MAX)) as u64, self.options.inode_ratio.is_some()))
    }

    fn desc_size(&self, features: Features) -> Result<u16> {
        match self.options.extended.desc_size {
            None if features.incompat.contains(Incompat::BIT64) => Ok(64),
            None => Ok(32),
            Some(n)
                if features.incompat.contains(Incompat::BIT64)
                    && n.is_power_of_two()
                    && (64..=1024).contains(&n) =>
            {
                Ok(n)
            }
            Some(n) => invalid(format!(
                "-E desc_size={n}: with 64bit a power of two from 64 to 1024, else leave it out"
            )),
        }
    }

    fn blocks_per_group(&self, block_size: u32, ratio: u32) -> Result<Option<u32>> {
        let Some(n) = self.options.blocks_per_group else { return Ok(None) };
        // With bigalloc mke2fs counts clusters.
        let (max, unit) = (block_size * 8, if ratio > 1 { "clusters" } else { "blocks" });
        match u32::try_from(n) {
            Ok(n) if (256..=max).contains(&n) && n.is_multiple_of(8) => Ok(Some(n.min(65528) * ratio)),
            _ => invalid(format!("-g {n}: a group has 256 to {max} {unit}, a multiple of 8")),
        }
    }

    fn log_groups_per_flex(&self, features: Features) -> Result<u8> {
        let on = features.incompat.contains(Incompat::FLEX_BG);
        let asked = self.options.groups_per_flex;
        if asked.is_some() && !on {
            return invalid("-G: flexible groups need the feature flex_bg (-O flex_bg)");
        }
        let conf = self.conf.integer(&self.types, "flex_bg_size").map(i64::unsigned_abs);
        let n = asked.or(conf).unwrap_or(16);
        if !n.is_power_of_two() || n > 1 << 31 {
            return invalid(format!("-G {n}: a flexible group has a power of two of groups"));
        }
        Ok(if on { n.trailing_zeros() as u8 } else { 0 })
    }

    fn reserved_percent(&self) -> Result<f64> {
        let conf = self.conf.string(&self.types, "reserved_ratio").and_then(|s| s.parse().ok());
        let percent = self.options.reserved_percent.or(conf).unwrap_or(5.0);
        if !(0.0..=50.0).contains(&percent) {
            return invalid(format!("-m {percent}: 0 to 50 percent of the blocks can be reserved"));
        }
        Ok(percent)
    }

    fn resize(&self, blocks: u64, block_size: u32, features: Features) -> Result<Option<u64>> {
        let Some(size) = self.options.extended.resize else { return Ok(None) };
        let resize = in_blocks(size, block_size);
        if resize <= blocks {
            return invalid(format!(
                "-E resize={resize}: the maximum must be larger than the filesystem's {blocks} blocks"
            ));
        }
        if !features.compat.contains(Compat::RESIZE_INODE) {
            return invalid("-E resize: needs the feature resize_inode (-O resize_inode)");
        }
        Ok(Some(resize.min(u64::from(u32::MAX))))
    }

    /// The bytes of a text, cut to what fits.
    fn text_field(&mut self, text: Option<&str>, max: usize, what: &str) -> Vec<u8> {
        let bytes = text.unwrap_or("").as_bytes();
        let kept = &bytes[..bytes.len().min(max)];
        if kept.len() < bytes.len() {
            let cut = String::from_utf8_lossy(kept);
            self.warnings.push(format!("{what} has {} bytes and is cut to {max}: '{cut}'", bytes.len()));
        }
        kept.to_vec()
    }

    fn hash_version(&self) -> Result<u8> {
        match self.conf.string(&self.types, "hash_alg").unwrap_or("half_md4") {
            "legacy" => Ok(0),
            "half_md4" => Ok(1),
            "tea" => Ok(2),
            other => invalid(format!("mke2fs.conf: unknown hash_alg '{other}'; use legacy, half_md4 or tea")),
        }
    }

    fn default_mount_opts(&self) -> Result<u32> {
        let list = self.conf.string(&self.types, "default_mntopts").unwrap_or("acl,user_xattr");
        let mut bits = 0;
        for name in list.split([',', ' ']).map(str::trim).filter(|n| !n.is_empty()) {
            let (name, clear) = name.strip_prefix('^').map_or((name, false), |n| (n, true));
            let bit = match name {
                "debug" => 0x1,
                "bsdgroups" => 0x2,
                "user_xattr" => 0x4,
                "acl" => 0x8,
                "uid16" => 0x10,
                "journal_data" => 0x20,
                "journal_data_ordered" => 0x40,
                "journal_data_writeback" => 0x60,
                "nobarrier" => 0x100,
                "block_validity" => 0x200,
                "discard" => 0x400,
                "nodelalloc" => 0x800,
                other => return invalid(format!("mke2fs.conf: unknown default_mntopts '{other}'")),
            };
            bits = if clear { bits & !bit } else { bits | bit };
        }
        Ok(bits)
    }
}

/// `s_creator_os` of the Hurd.
const HURD: u32 = 1;

/// Features whose fields the Hurd has for something else.
fn not_of_hurd() -> Features {
    Features {
        compat: Compat::empty(),
        incompat: Incompat::FILETYPE | Incompat::EA_INODE,
        ro_compat: RoCompat::HUGE_FILE | RoCompat::METADATA_CSUM,
    }
}

/// Applies a list like `has_journal,^resize_inode,none`.
fn edit(features: &mut Features, list: &str) -> Result<()> {
    for name in list.split([',', ' ', '\t']).filter(|n| !n.is_empty()) {
        let (name, clear) = match name.strip_prefix(['^', '-']) {
            Some(rest) => (rest, true),
            None => (name.strip_prefix('+').unwrap_or(name), false),
        };
        if name == "none" || name == "clear" {
            *features = Features::default();
            continue;
        }
        let Some(feature) = Features::from_name(&name.to_ascii_lowercase()).filter(|&f| makeable(f)) else {
            return usage(format!("-O {name}: unknown or unsupported feature"));
        };
        *features = if clear { features.difference(feature) } else { features.union(feature) };
    }
    Ok(())
}

/// The features that can be asked for: those that mount, without the ones that only the running system sets.
fn makeable(f: Features) -> bool {
    let compat = Compat::SUPPORTED.difference(Compat::DIR_PREALLOC);
    let incompat = Incompat::SUPPORTED.difference(Incompat::RECOVER).union(Incompat::JOURNAL_DEV);
    let ro_compat = RoCompat::SUPPORTED.difference(RoCompat::ORPHAN_PRESENT);
    Features { compat, incompat, ro_compat }.contains(f)
}

fn quota_types(features: Features, asked: Option<[bool; 3]>) -> [bool; 3] {
    if !features.ro_compat.contains(RoCompat::QUOTA) {
        return [false; 3];
    }
    let project = features.ro_compat.contains(RoCompat::PROJECT);
    let mut types = asked.unwrap_or([true, true, project]);
    types[2] |= project;
    types
}

/// Rules between features.
fn check(p: &Params) -> Result<()> {
    let f = p.features;
    let compat = |b| f.compat.contains(b);
    let incompat = |b| f.incompat.contains(b);
    let ro = |b| f.ro_compat.contains(b);
    let rules = [
        (
            compat(Compat::RESIZE_INODE) && incompat(Incompat::META_BG),
            "resize_inode and meta_bg exclude each other: add ^resize_inode or ^meta_bg to -O",
        ),
        (
            compat(Compat::RESIZE_INODE) && !ro(RoCompat::SPARSE_SUPER) && !compat(Compat::SPARSE_SUPER2),
            "resize_inode needs sparse_super: add ^resize_inode to -O",
        ),
        (ro(RoCompat::BIGALLOC) && !incompat(Incompat::EXTENTS), "bigalloc needs extents: add extent to -O"),
        (
            incompat(Incompat::CSUM_SEED) && !ro(RoCompat::METADATA_CSUM),
            "metadata_csum_seed needs metadata_csum: add metadata_csum to -O, or ^metadata_csum_seed",
        ),
        (incompat(Incompat::CASEFOLD), "casefold is not supported: leave it and the encoding out"),
        (p.quota[2] && !ro(RoCompat::PROJECT), "project quota needs the feature project: add project to -O"),
        (p.revision > 1, "-r: the revision is 0 or 1"),
        (p.num_backup_sb > 2, "-E num_backup_sb: 0, 1 or 2"),
        (p.mmp_interval > 300, "-E mmp_update_interval: at most 300 seconds"),
        (p.blocks == 0, "a filesystem of no blocks cannot be made: give a larger SIZE"),
    ];
    match rules.iter().find(|(broken, _)| *broken) {
        Some((_, text)) => invalid(*text),
        None => Ok(()),
    }
}
