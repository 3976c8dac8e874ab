//! Images with one damage each: which images, and which damages.

use std::fmt;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Rig, quiet, tool};

/// One damage.
#[derive(Debug, Clone)]
pub(crate) enum Damage {
    /// A request to debugfs.
    Request(String),
    /// This many bytes from an offset, as a little-endian number.
    Bytes { at: u64, len: usize, value: u32 },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(text) => f.write_str(text),
            Self::Bytes { at, len, value } => write!(f, "{len} bytes at {at:#x} = {value:#x}"),
        }
    }
}

impl Damage {
    /// Damages the image.
    pub(crate) fn apply(&self, image: &Path) -> Result<(), String> {
        match self {
            Self::Request(request) => {
                quiet(Command::new(tool("debugfs")?).args(["-w", "-R", request]).arg(image)).map(drop)
            }
            Self::Bytes { at, len, value } => {
                let file = fs::File::options().write(true).open(image);
                let done = file.and_then(|f| f.write_all_at(&value.to_le_bytes()[..*len], *at));
                done.map_err(|err| format!("{}: {err}", image.display()))
            }
        }
    }
}

/// The image of the fixed table.
pub(crate) const FIXED: &str = "-t ext4 -b 1024";

/// What seeds choose from.
const OPTIONS: &[&str] = &[
    FIXED,
    "-t ext4 -b 1024 -O ^metadata_csum",
    "-t ext4 -b 4096",
    "-t ext2 -b 1024",
    "-t ext3 -b 1024",
    "-t ext4 -b 1024 -O ^extent,^64bit",
    "-t ext4 -b 1024 -O bigalloc -C 4096",
    "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "-t ext4 -b 1024 -O inline_data",
    "-t ext4 -b 1024 -O ea_inode,large_dir",
    "-t ext4 -b 1024 -O quota,project",
    "-t ext4 -b 1024 -O orphan_file",
    "-t ext4 -b 1024 -O fast_commit",
    "-t ext4 -b 1024 -O metadata_csum_seed",
    "-t ext4 -b 1024 -O ^64bit,^metadata_csum,uninit_bg",
    "-t ext4 -b 1024 -O mmp",
    "-t ext4 -b 1024 -I 128",
    "-t ext4 -b 1024 -I 1024 -O inline_data,^metadata_csum",
    "-t ext4 -b 2048 -O ^flex_bg",
    "-t ext4 -b 1024 -O sparse_super2,^resize_inode",
    "-t ext4 -b 1024 -O ^has_journal",
    "-t ext4 -b 1024 -O ^dir_index,^metadata_csum",
    "-t ext4 -b 1024 -O ^sparse_super,^resize_inode",
    "-t ext4 -b 1024 -g 2048 -N 512 -O ^metadata_csum",
    "-t ext2 -b 4096 -r 1 -O ^dir_index,^filetype",
    "-t ext4 -b 1024 -O orphan_file,quota,inline_data,ea_inode,^metadata_csum",
];

/// The image that a seed stands for.
pub(crate) fn options(seed: u64) -> &'static str {
    OPTIONS[(seed % OPTIONS.len() as u64) as usize]
}

/// A small image with files, directories, links, devices, attributes and holes.
pub(crate) fn base_image(rig: &Rig, options: &str) -> Result<PathBuf, String> {
    let image = rig.dir.join("base.img");
    let tree = rig.dir.join("tree");
    if !tree.exists() {
        make_tree(&tree).map_err(|err| format!("{}: {err}", tree.display()))?;
        // Attributes and devices where this user and this folder can have them.
        let set = [("user.small", "value"), ("user.large", &"x".repeat(400))];
        for (name, value) in set {
            let _ = quiet(Command::new("setfattr").args(["-n", name, "-v", value]).arg(tree.join("file")));
        }
        let _ = quiet(Command::new("mknod").arg(tree.join("null")).args(["c", "1", "3"]));
        let _ = quiet(Command::new("mkfifo").arg(tree.join("fifo")));
    }
    let _ = fs::remove_file(&image);
    let mut make = Command::new(tool("mke2fs")?);
    make.args(["-q", "-F", "-U", "3b0b7d1e-6a0b-4f6c-9a53-0d2f3c1f4e11"]).args(options.split_whitespace());
    quiet(make.arg("-d").arg(&tree).arg(&image).arg("16M"))?;
    Ok(image)
}

fn make_tree(tree: &Path) -> std::io::Result<()> {
    fs::create_dir_all(tree.join("dir"))?;
    fs::create_dir_all(tree.join("many"))?;
    fs::write(tree.join("file"), vec![7; 50_000])?;
    fs::write(tree.join("tiny"), "tiny")?;
    fs::write(tree.join("dir/inner"), "inner")?;
    fs::hard_link(tree.join("tiny"), tree.join("dir/hard"))?;
    for i in 0..300 {
        fs::write(tree.join(format!("many/a-name-that-fills-the-directory-{i}")), "")?;
    }
    let sparse = fs::File::create(tree.join("sparse"))?;
    for i in 0..40 {
        sparse.write_all_at(&[9; 4096], i * 40_960)?;
    }
    std::os::unix::fs::symlink("file", tree.join("link"))?;
    std::os::unix::fs::symlink("x".repeat(200), tree.join("long-link"))
}

/// Inode fields and the values that the fixed table gives them.
const INODE_FIELDS: &[(&str, &[&str])] = &[
    ("mode", &["0", "0140644", "0170000"]),
    ("links_count", &["0", "7", "65535"]),
    ("size", &["1", "99999999", "4398046511104"]),
    ("blocks", &["0", "3", "99999"]),
    ("flags", &["0", "0x10000000", "0x80000", "0x1000", "0x20"]),
    ("dtime", &["1000000"]),
    ("file_acl", &["5", "99999999"]),
    ("extra_isize", &["3", "200"]),
    ("generation", &["12345"]),
    ("block[0]", &["0", "5"]),
    ("block[1]", &["1", "0xffffffff"]),
    ("block[2]", &["7"]),
    ("block[3]", &["1"]),
    ("block[4]", &["50000"]),
    ("block[5]", &["1", "99999999"]),
    ("uid", &["77"]),
    ("atime", &["0"]),
];

/// The inodes that the table damages: a file, directories, the journal, the resize inode, a link.
const INODES: &[&str] = &["<2>", "/file", "/dir", "/many", "<8>", "<7>", "/link"];

/// Further ones that seeds draw.
const MORE_INODES: &[&str] = &[
    "/tiny",
    "/sparse",
    "/long-link",
    "/null",
    "/fifo",
    "/lost+found",
    "<1>",
    "<3>",
    "<4>",
    "<5>",
    "<12>",
    "<13>",
];

/// Superblock fields.
const SUPER_FIELDS: &[(&str, &[&str])] = &[
    ("inodes_count", &["1", "100000"]),
    ("blocks_count", &["64", "99999999"]),
    ("free_blocks_count", &["0", "3"]),
    ("free_inodes_count", &["0", "3"]),
    ("first_data_block", &["7"]),
    ("log_block_size", &["9"]),
    ("blocks_per_group", &["8", "33"]),
    ("inodes_per_group", &["1"]),
    ("state", &["0", "2"]),
    ("rev_level", &["9"]),
    ("first_ino", &["3"]),
    ("inode_size", &["100", "64"]),
    ("journal_inum", &["0", "11"]),
    ("last_orphan", &["12", "999999"]),
    ("desc_size", &["7"]),
    ("want_extra_isize", &["300"]),
    ("mnt_count", &["50"]),
    ("magic", &["1"]),
    ("def_hash_version", &["9"]),
    ("reserved_gdt_blocks", &["5", "9999"]),
];

/// Group descriptor fields.
const GROUP_FIELDS: &[(&str, &[&str])] = &[
    ("block_bitmap", &["1", "99999999"]),
    ("inode_bitmap", &["1", "99999999"]),
    ("inode_table", &["1", "99999999"]),
    ("free_blocks_count", &["0", "9999"]),
    ("free_inodes_count", &["0", "9999"]),
    ("used_dirs_count", &["0", "999"]),
    ("itable_unused", &["0", "60000"]),
    ("flags", &["0", "7"]),
];

/// The fixed table: every value of every field.
pub(crate) fn table() -> Vec<Damage> {
    let mut all = Vec::new();
    for inode in INODES {
        for (field, values) in INODE_FIELDS {
            all.extend(values.iter().map(|value| format!("set_inode_field {inode} {field} {value}")));
        }
    }
    for (field, values) in SUPER_FIELDS {
        all.extend(values.iter().map(|value| format!("set_super_value {field} {value}")));
    }
    for (field, values) in GROUP_FIELDS {
        all.extend(values.iter().map(|value| format!("set_block_group 0 {field} {value}")));
    }
    all.into_iter().map(Damage::Request).collect()
}

const DRAWN_INODE_FIELDS: &[&str] = &[
    "mode",
    "uid",
    "size",
    "atime",
    "ctime",
    "mtime",
    "dtime",
    "gid",
    "links_count",
    "blocks",
    "flags",
    "version",
    "block[0]",
    "block[1]",
    "block[2]",
    "block[3]",
    "block[4]",
    "block[5]",
    "block[6]",
    "block[7]",
    "block[8]",
    "block[9]",
    "block[10]",
    "block[11]",
    "block[IND]",
    "block[DIND]",
    "block[TIND]",
    "generation",
    "file_acl",
    "faddr",
    "extra_isize",
    "ctime_extra",
    "mtime_extra",
    "atime_extra",
    "crtime",
    "crtime_extra",
    "projid",
];

const DRAWN_SUPER_FIELDS: &[&str] = &[
    "inodes_count",
    "blocks_count",
    "r_blocks_count",
    "free_blocks_count",
    "free_inodes_count",
    "first_data_block",
    "log_block_size",
    "log_cluster_size",
    "blocks_per_group",
    "clusters_per_group",
    "inodes_per_group",
    "mnt_count",
    "max_mnt_count",
    "state",
    "errors",
    "minor_rev_level",
    "checkinterval",
    "creator_os",
    "rev_level",
    "def_resuid",
    "first_ino",
    "inode_size",
    "block_group_nr",
    "feature_compat",
    "feature_incompat",
    "feature_ro_compat",
    "prealloc_blocks",
    "reserved_gdt_blocks",
    "journal_inum",
    "journal_dev",
    "last_orphan",
    "jnl_backup_type",
    "desc_size",
    "default_mount_opts",
    "first_meta_bg",
    "jnl_blocks[0]",
    "jnl_blocks[5]",
    "min_extra_isize",
    "want_extra_isize",
    "flags",
    "raid_stride",
    "mmp_interval",
    "mmp_block",
    "raid_stripe_width",
    "log_groups_per_flex",
    "usr_quota_inum",
    "grp_quota_inum",
    "prj_quota_inum",
    "overhead_clusters",
    "backup_bgs[0]",
    "checksum_type",
    "encryption_level",
    "error_count",
    "first_error_ino",
    "lpf_ino",
    "checksum_seed",
    "orphan_file_inum",
];

/// Numbers drawn with the same seed are the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Small numbers, powers of two and their neighbours, anything.
    fn value(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(20) as u32,
            1 => 1 << self.below(32),
            2 => (1_u32 << self.below(32)).wrapping_sub(1),
            _ => self.0 as u32,
        }
    }
}

/// `count` damages of an image, by seed: fields, and bytes in places that matter.
pub(crate) fn drawn(image: &Path, seed: u64, count: usize) -> Result<Vec<Damage>, String> {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let map = Places::of(image)?;
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let value = dice.value();
        all.push(match dice.below(10) {
            0..4 => {
                let inode = if dice.below(2) == 0 { dice.of(INODES) } else { dice.of(MORE_INODES) };
                let field = dice.of(DRAWN_INODE_FIELDS);
                Damage::Request(format!("set_inode_field {inode} {field} {value}"))
            }
            4..6 => Damage::Request(format!("set_super_value {} {value}", dice.of(DRAWN_SUPER_FIELDS))),
            6 => {
                let (group, field) = (dice.below(map.groups), GROUP_FIELDS[dice.below(GROUP_FIELDS.len())].0);
                Damage::Request(format!("set_block_group {group} {field} {value}"))
            }
            _ => {
                let block = map.blocks[dice.below(map.blocks.len())];
                let len = [1, 2, 4][dice.below(3)];
                // What is at the front of a block is used more often.
                let room = if dice.below(2) == 0 { 64 } else { map.block_size };
                let at = block * map.block_size as u64 + (dice.below(room) & !(len - 1)) as u64;
                Damage::Bytes { at, len, value }
            }
        });
    }
    Ok(all)
}

/// Blocks of an image that hold more than data.
struct Places {
    block_size: usize,
    groups: usize,
    blocks: Vec<u64>,
}

impl Places {
    fn of(image: &Path) -> Result<Self, String> {
        let text = quiet(Command::new(tool("dumpe2fs")?).arg(image))?;
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let block_size: usize =
            field("Block size:").and_then(|v| v.parse().ok()).ok_or("dumpe2fs: no block size")?;
        let groups = text.lines().filter(|l| l.starts_with("Group ")).count().max(1);
        let mut blocks = Vec::new();
        for line in text.lines() {
            for key in ["Block bitmap at ", "Inode bitmap at ", "Inode table at ", "Group descriptors at "] {
                let Some(rest) = line.split(key).nth(1) else { continue };
                let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u64>);
                if let Some(Ok(first)) = numbers.next() {
                    // Of a table, the blocks in use.
                    blocks.extend(first..first + if key.contains("table") { 6 } else { 1 });
                }
            }
        }
        for path in ["/", "/dir", "/many", "/file", "/sparse", "/long-link", "<8>", "<3>", "<12>"] {
            let listed =
                quiet(Command::new(tool("debugfs")?).args(["-R", &format!("stat {path}")]).arg(image));
            blocks.extend(tree_blocks(&listed.unwrap_or_default()));
        }
        for path in ["/", "/dir", "/many"] {
            let listed =
                quiet(Command::new(tool("debugfs")?).args(["-R", &format!("blocks {path}")]).arg(image))?;
            blocks.extend(listed.split_whitespace().filter_map(|w| w.parse::<u64>().ok()));
        }
        Ok(Self { block_size, groups, blocks })
    }
}

/// Blocks of a map and of attributes, from what `stat` prints.
fn tree_blocks(stat: &str) -> Vec<u64> {
    let mut found = Vec::new();
    let words: Vec<&str> = stat.split([' ', ',', '\n']).filter(|w| !w.is_empty()).collect();
    for word in &words {
        let node = ["(IND):", "(DIND):", "(TIND):", "(ETB0):", "(ETB1):"];
        found.extend(node.iter().filter_map(|n| word.strip_prefix(n)).filter_map(|n| n.parse::<u64>().ok()));
    }
    for pair in words.windows(3) {
        if pair[0] == "File" && pair[1] == "ACL:" {
            found.extend(pair[2].parse::<u64>().ok().filter(|&b| b != 0));
        }
    }
    found
}
