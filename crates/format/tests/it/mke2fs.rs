//! Decodes what mke2fs wrote and compares with what dumpe2fs says.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use extant_format::{GroupDesc, GroupNr, Place, Superblock};

/// One image on disk, removed on drop.
struct Image {
    path: PathBuf,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn tool(name: &str) -> Option<String> {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|d| format!("{d}/{name}"));
    let path = found.into_iter().find(|p| std::path::Path::new(p).exists());
    if path.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    path
}

/// Makes an image with these arguments; `None` where mke2fs is absent.
fn mke2fs(name: &str, args: &[&str], size: &str) -> Option<Image> {
    let tool = tool("mke2fs")?;
    let path = std::env::temp_dir().join(format!("extant-format-{}-{name}.img", std::process::id()));
    let image = Image { path };
    let out = Command::new(tool).args(["-q", "-F"]).args(args).arg(&image.path).arg(size).output().unwrap();
    assert!(out.status.success(), "mke2fs {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Some(image)
}

fn read(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(&image.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn dumpe2fs(image: &Image) -> String {
    let out = Command::new(tool("dumpe2fs").unwrap()).arg(&image.path).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

const MATRIX: &[(&str, &[&str], &str)] = &[
    ("ext4", &["-t", "ext4"], "64M"),
    ("ext4-big", &["-t", "ext4"], "3G"),
    ("ext4-1k", &["-t", "ext4", "-b", "1024"], "300M"),
    ("ext2", &["-t", "ext2"], "600M"),
    ("ext3-128", &["-t", "ext3", "-I", "128"], "64M"),
    ("meta_bg", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"], "600M"),
    ("meta_bg32", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^64bit,^flex_bg"], "600M"),
    ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "65536"], "2G"),
    ("bigalloc-1k", &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"], "600M"),
    ("sparse2", &["-t", "ext4", "-O", "sparse_super2", "-E", "num_backup_sb=2"], "600M"),
    ("all-backups", &["-t", "ext4", "-O", "^sparse_super,^resize_inode"], "600M"),
    ("uninit", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"], "600M"),
    ("csum_seed", &["-t", "ext4", "-O", "metadata_csum_seed,mmp,orphan_file,quota,project"], "600M"),
    ("64k", &["-t", "ext4", "-b", "65536"], "9G"),
    ("noflex", &["-t", "ext4", "-O", "^flex_bg,^64bit", "-g", "1024"], "200M"),
];

#[test]
fn superblock_agrees_with_dumpe2fs() {
    for (name, args, size) in MATRIX {
        let Some(image) = mke2fs(name, args, size) else { return };
        let bytes = read(&image, 1024, 1024);
        let sb = Superblock::read(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(&sb.encode()[..], &bytes[..], "{name}: encode is not the inverse");
        let text = dumpe2fs(&image);
        let fields: HashMap<&str, &str> = text
            .lines()
            .take_while(|l| !l.starts_with("Group 0"))
            .filter_map(|l| l.split_once(':'))
            .collect();
        let field =
            |key: &str| fields.get(key).map(|v| v.trim()).unwrap_or_else(|| panic!("{name}: no {key}"));
        assert_eq!(field("Filesystem features"), sb.feature_names(), "{name}");
        let geo = sb.geometry();
        assert_eq!(field("Inode count"), geo.inodes_count().to_string(), "{name}");
        assert_eq!(field("Block count"), geo.blocks_count().to_string(), "{name}");
        assert_eq!(field("Free blocks"), sb.free_blocks().to_string(), "{name}");
        assert_eq!(field("Free inodes"), sb.free_inodes().to_string(), "{name}");
        assert_eq!(field("First block"), geo.first_data_block().to_string(), "{name}");
        assert_eq!(field("Blocks per group"), geo.blocks_per_group().to_string(), "{name}");
        assert_eq!(field("Inodes per group"), geo.inodes_per_group().to_string(), "{name}");
        assert_eq!(field("Inode blocks per group"), geo.itable_blocks().to_string(), "{name}");
    }
}

/// What dumpe2fs prints about one group.
#[derive(Default, Debug)]
struct Group {
    range: (u64, u64),
    superblock: Option<u64>,
    descs: Option<(u64, u64)>,
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free_blocks: u64,
    free_inodes: u64,
    dirs: u64,
    unused: u64,
}

fn number(text: &str) -> u64 {
    let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number in {text:?}"))
}

fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key).map(|(_, rest)| rest)
}

fn range(text: &str) -> (u64, u64) {
    let first = number(text);
    let rest = text.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    (first, rest.strip_prefix('-').map_or(first, number))
}

fn groups(text: &str) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for line in text.lines() {
        if let Some(blocks) = after(line, ": (Blocks ") {
            groups.push(Group { range: range(blocks), ..Group::default() });
        }
        let Some(g) = groups.last_mut() else { continue };
        if let Some(rest) = after(line, "superblock at ") {
            g.superblock = Some(number(rest));
        }
        if let Some(rest) =
            after(line, "Group descriptors at ").or_else(|| after(line, "Group descriptor at "))
        {
            g.descs = Some(range(rest));
        }
        if let Some(rest) = after(line, "Block bitmap at ") {
            g.block_bitmap = number(rest);
        }
        if let Some(rest) = after(line, "Inode bitmap at ") {
            g.inode_bitmap = number(rest);
        }
        if let Some(rest) = after(line, "Inode table at ") {
            g.inode_table = number(rest);
        }
        if line.contains(" directories") {
            g.free_blocks = number(line);
            let rest = after(line, ", ").unwrap();
            g.free_inodes = number(rest);
            g.dirs = number(after(rest, "free inodes, ").unwrap());
            g.unused = after(rest, "directories, ").map_or(0, number);
        }
    }
    groups
}

#[test]
fn groups_agree_with_dumpe2fs() {
    for (name, args, size) in MATRIX {
        let Some(image) = mke2fs(&format!("g-{name}"), args, size) else { return };
        let sb = Superblock::read(&read(&image, 1024, 1024)).unwrap();
        let geo = sb.geometry();
        let shown = groups(&dumpe2fs(&image));
        assert_eq!(shown.len(), geo.groups() as usize, "{name}");
        for (group, shown) in geo.group_numbers().zip(&shown) {
            check_group(name, &image, &sb, group, shown);
        }
    }
}

fn check_group(name: &str, image: &Image, sb: &Superblock, group: GroupNr, shown: &Group) {
    let geo = sb.geometry();
    let what = format!("{name} group {group}");
    let first = geo.group_first_block(group).0;
    assert_eq!(shown.range, (first, first + u64::from(geo.blocks_in_group(group)) - 1), "{what}");
    assert_eq!(shown.superblock, geo.super_block(group).map(|b| b.0), "{what}");
    assert_eq!(shown.descs, desc_range(sb, group), "{what}");
    let (block, offset) = geo.desc_location(group).unwrap();
    let at = block.0 * u64::from(geo.block_size()) + u64::from(offset);
    let bytes = read(image, at, usize::from(geo.desc_size()));
    let desc = GroupDesc::read(group, &bytes, geo, sb.csum()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(desc.block_bitmap.0, shown.block_bitmap, "{what}");
    assert_eq!(desc.inode_bitmap.0, shown.inode_bitmap, "{what}");
    assert_eq!(desc.inode_table.0, shown.inode_table, "{what}");
    assert_eq!(u64::from(desc.free_clusters), shown.free_blocks, "{what}");
    assert_eq!(u64::from(desc.free_inodes), shown.free_inodes, "{what}");
    assert_eq!(u64::from(desc.used_dirs), shown.dirs, "{what}");
    assert_eq!(u64::from(desc.itable_unused), shown.unused, "{what}");
    let mut again = bytes.clone();
    desc.encode(group, &mut again, geo.desc_size(), sb.csum()).unwrap();
    assert_eq!(again, bytes, "{what}: encode is not the inverse");
    check_bitmaps(&what, image, sb, group, &desc);
    check_backup(&what, image, sb, group);
}

/// The descriptor blocks that a group shows, without the reserved ones.
fn desc_range(sb: &Superblock, group: GroupNr) -> Option<(u64, u64)> {
    let geo = sb.geometry();
    let at = |index| {
        let primary = if group.0 == 0 || geo.in_meta_bg(index) && group.0.is_multiple_of(geo.desc_per_block())
        {
            geo.desc_block(index).filter(|b| geo.group_of_block(*b).is_some_and(|(g, _)| g == group))
        } else {
            None
        };
        primary.or(geo.backup_desc_block(index, group))
    };
    let blocks: Vec<u64> = (0..geo.desc_blocks()).filter_map(at).map(|b| b.0).collect();
    Some((*blocks.first()?, *blocks.last()?))
}

fn check_bitmaps(what: &str, image: &Image, sb: &Superblock, group: GroupNr, desc: &GroupDesc) {
    use extant_format::{BgFlags, bitmap};
    let geo = sb.geometry();
    let block_size = geo.block_size();
    let block = |b: u64| read(image, b * u64::from(block_size), block_size as usize);
    if !desc.flags.contains(BgFlags::BLOCK_UNINIT) {
        let map = block(desc.block_bitmap.0);
        desc.verify_block_bitmap(group, &map, geo, sb.csum()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut damaged = map.clone();
        damaged[0] ^= 1;
        let verdict = desc.verify_block_bitmap(group, &damaged, geo, sb.csum());
        assert_eq!(verdict.is_err(), sb.csum().has_metadata(), "{what}");
        let clusters = geo.clusters_in_group(group);
        assert_eq!(bitmap::count_zeros(&map, 0, clusters), desc.free_clusters, "{what}");
        assert!(bitmap::is_padded(&map, clusters), "{what}");
    }
    if !desc.flags.contains(BgFlags::INODE_UNINIT) {
        let map = block(desc.inode_bitmap.0);
        desc.verify_inode_bitmap(group, &map, geo, sb.csum()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(bitmap::count_zeros(&map, 0, geo.inodes_per_group()), desc.free_inodes, "{what}");
        assert!(bitmap::is_padded(&map, geo.inodes_per_group()), "{what}");
    }
    let wrong = GroupDesc { checksum: desc.checksum ^ 1, ..*desc };
    let bytes = vec![0; usize::from(geo.desc_size())];
    let verdict = wrong.verify_checksum(group, &bytes, geo.desc_size(), sb.csum());
    if let Err(e) = verdict {
        assert!(e.to_string().starts_with(&Place::GroupDesc(group).to_string()), "{what}: {e}");
    }
}

fn check_backup(what: &str, image: &Image, sb: &Superblock, group: GroupNr) {
    let Some(at) = sb.geometry().super_offset(group) else { return };
    let backup = Superblock::read(&read(image, at, 1024)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(u32::from(backup.raw().s_block_group_nr.get()), group.0, "{what}");
    assert_eq!(backup.uuid(), sb.uuid(), "{what}");
}
