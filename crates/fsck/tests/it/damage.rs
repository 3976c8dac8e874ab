//! One damaged field an image: the verdict is e2fsck's.

use crate::{Rng, base, e2fsck_says_clean, e2fsck_text};
use extant_device::MemoryDevice;
use extant_format::{FileType, GroupDesc, Ino, InodeFlags, InodeFormat, Node, Superblock};
use extant_fsck::{Options, check};
use std::fmt::Write as _;
use std::path::Path;

/// A place to damage: byte offset in the image, width in bytes, and what it is.
type Target = (usize, usize, String);

/// Where things lie in an image.
pub(crate) struct Layout {
    superblock: Vec<Target>,
    descriptors: Vec<Target>,
    inodes: Vec<Target>,
    blocks: Vec<(usize, usize, String)>,
    bitmaps: Vec<(usize, usize, String)>,
}

/// Fields of an inode: (offset, width).
const INODE_FIELDS: &[(usize, usize)] = &[
    (0, 2),
    (2, 2),
    (4, 4),
    (20, 4),
    (24, 2),
    (26, 2),
    (28, 4),
    (32, 4),
    (36, 4),
    (40, 4),
    (44, 4),
    (48, 4),
    (52, 4),
    (56, 4),
    (60, 4),
    (64, 4),
    (84, 4),
    (88, 4),
    (92, 4),
    (96, 4),
    (100, 4),
    (104, 4),
    (108, 4),
    (112, 4),
    (116, 2),
    (118, 2),
    (120, 2),
    (124, 2),
    (128, 2),
    (130, 2),
    (132, 4),
    (136, 4),
    (140, 4),
    (144, 4),
    (156, 4),
    (160, 4),
    (164, 4),
    (168, 4),
    (172, 4),
    (176, 4),
    (180, 2),
    (182, 2),
    (40, 2),
    (42, 2),
    (44, 2),
    (46, 2),
    (56, 2),
    (58, 2),
];

fn fields(base: usize, len: usize, what: &str) -> Vec<Target> {
    (0..len / 4).map(|n| (base + n * 4, 4, format!("{what}+{:#x}", n * 4))).collect()
}

impl Layout {
    pub(crate) fn new(image: &[u8]) -> Self {
        let sb = Superblock::read(&image[1024..2048]).unwrap();
        let geo = *sb.geometry();
        let block_size = geo.block_size() as usize;
        let mut layout = Self {
            superblock: fields(1024, 0x290, "superblock"),
            descriptors: Vec::new(),
            inodes: Vec::new(),
            blocks: Vec::new(),
            bitmaps: Vec::new(),
        };
        let format = InodeFormat::new(&sb);
        let size = usize::from(geo.inode_size());
        for group in geo.group_numbers() {
            let (block, offset) = geo.desc_location(group).unwrap();
            let at = block.0 as usize * block_size + offset as usize;
            let desc = GroupDesc::decode(group, &image[at..], geo.desc_size()).unwrap();
            for n in 0..usize::from(geo.desc_size()) / 2 {
                layout.descriptors.push((at + n * 2, 2, format!("group {group} descriptor+{:#x}", n * 2)));
            }
            let bytes = |b: extant_format::Pblk| b.0 as usize * block_size;
            layout.bitmaps.push((
                bytes(desc.block_bitmap),
                block_size,
                format!("group {group} block bitmap"),
            ));
            layout.bitmaps.push((
                bytes(desc.inode_bitmap),
                block_size,
                format!("group {group} inode bitmap"),
            ));
            for index in 0..geo.inodes_per_group() {
                let ino = geo.ino_of(group, index);
                let at = bytes(desc.inode_table) + index as usize * size;
                layout.inode(image, &format, ino, at, size, block_size);
            }
        }
        layout
    }

    fn inode(
        &mut self,
        image: &[u8],
        format: &InodeFormat,
        ino: Ino,
        at: usize,
        size: usize,
        block_size: usize,
    ) {
        let record = &image[at..at + size];
        if record.iter().all(|&b| b == 0) && ino.0 > 12 {
            return;
        }
        for &(offset, width) in INODE_FIELDS.iter().filter(|f| f.0 + f.1 <= size) {
            self.inodes.push((at + offset, width, format!("inode {ino}+{offset:#x}")));
        }
        let Ok(inode) = format.decode(ino, record) else {
            return;
        };
        let what = match inode.file_type() {
            Some(FileType::Directory) => "directory",
            Some(FileType::Symlink) => "symlink",
            Some(FileType::Regular) if ino.0 < 11 => "system file",
            _ => "file",
        };
        if inode.file_acl.0 != 0 {
            self.blocks.push((
                inode.file_acl.0 as usize * block_size,
                block_size,
                format!("inode {ino} xattrs"),
            ));
        }
        let mapped =
            matches!(inode.file_type(), Some(FileType::Directory | FileType::Regular | FileType::Symlink));
        if !mapped || inode.is_fast_symlink() || inode.has_inline_data() {
            return;
        }
        let mut first = Vec::new();
        if inode.flags.contains(InodeFlags::EXTENTS) {
            let Ok(node) = Node::open(&inode.i_block, ino, None, None) else {
                return;
            };
            first.extend(node.extents().map(|e| e.pblk.0));
            first.extend(node.indexes().map(|i| i.child.0));
        } else {
            let words = inode.i_block.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
            first.extend(words.filter(|&b| b != 0).map(u64::from));
        }
        let tree = matches!(what, "directory" | "symlink" | "system file") || !inode.has_extents();
        if tree {
            for block in first {
                self.blocks.push((
                    block as usize * block_size,
                    block_size,
                    format!("{what} {ino} block {block}"),
                ));
            }
        }
    }

    /// Damages one field of `image` and says what was done.
    pub(crate) fn damage(&self, rng: &mut Rng, image: &mut [u8]) -> String {
        let (at, width, what) = match rng.below(10) {
            0 | 1 => self.superblock[rng.below(self.superblock.len())].clone(),
            2 => self.descriptors[rng.below(self.descriptors.len())].clone(),
            3..=6 => self.inodes[rng.below(self.inodes.len())].clone(),
            7 => self.inside(rng, &self.bitmaps),
            _ => self.inside(rng, &self.blocks),
        };
        let old = read(image, at, width);
        let mut new = value(rng, old, width);
        while new == old {
            new = value(rng, old, width);
        }
        image[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
        format!("{what} (byte {at}, {width} wide): {old:#x} -> {new:#x}")
    }

    /// A field near the start of a block, mostly, where structures are.
    fn inside(&self, rng: &mut Rng, of: &[(usize, usize, String)]) -> Target {
        let (at, len, what) = &of[rng.below(of.len())];
        let width = rng.pick(&[1, 2, 2, 4]);
        let most = if rng.below(3) == 0 { *len } else { 96 };
        let offset = rng.below(most / width) * width;
        (at + offset, width, format!("{what}+{offset:#x}"))
    }
}

fn read(image: &[u8], at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&image[at..at + width]);
    u64::from_le_bytes(bytes)
}

fn value(rng: &mut Rng, old: u64, width: usize) -> u64 {
    let mask = (1 << (8 * width)) - 1;
    let new = match rng.below(9) {
        0 => 0,
        1 => 1,
        2 => mask,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 | 6 => old ^ (1 << rng.below(8 * width)),
        7 => rng.next() % 300,
        _ => rng.next(),
    };
    new & mask
}

#[test]
fn one_damaged_field_is_judged_as_by_e2fsck() {
    // Deterministic unless told otherwise, so that a run means the same everywhere.
    let mut rng = Rng::from_env(Some(1));
    let count = std::env::var("DAMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(200_usize);
    let folder = tempfile::tempdir().unwrap();
    let only = std::env::var("KIND").unwrap_or_default();
    let made = base::KINDS.iter().filter(|k| k.0.contains(&only));
    let images: Vec<_> =
        made.filter_map(|k| base::make(folder.path(), k).map(|b| (k.0, Layout::new(&b), b))).collect();
    if images.is_empty() {
        eprintln!("skipped: mke2fs, debugfs or e2fsck is not installed");
        return;
    }
    let (mut wrong, mut clean) = (String::new(), 0);
    let mut disagreements = 0;
    let file = folder.path().join("damaged");
    for n in 0..count {
        let (name, layout, good) = &images[n % images.len()];
        let mut image = good.clone();
        let what = layout.damage(&mut rng, &mut image);
        std::fs::write(&file, &image).unwrap();
        let Some(theirs) = e2fsck_says_clean(&file) else {
            println!("#{n} {name}: {what}: e2fsck has no verdict");
            continue;
        };
        let report = check(&MemoryDevice::from_bytes(&image), &Options::default());
        clean += usize::from(theirs);
        if report.is_clean() == theirs {
            continue;
        }
        disagreements += 1;
        let text = explain(&file, theirs, &report);
        let _ = writeln!(wrong, "#{n} {name}: {what}: e2fsck says clean={theirs}\n{text}");
        keep(&file, n);
    }
    println!("{count} images, {clean} of them clean, {disagreements} disagreements");
    assert!(clean > 0 && clean < count, "both verdicts occur");
    assert!(wrong.is_empty(), "{disagreements} disagreements:\n{wrong}");
}

fn explain(file: &Path, theirs: bool, report: &extant_fsck::Report) -> String {
    if theirs {
        report.errors().take(5).map(|f| format!("    ours: {f}\n")).collect()
    } else {
        let text = e2fsck_text(file);
        let lines =
            text.lines().filter(|l| !l.is_empty() && !l.starts_with("Pass") && !l.starts_with("e2fsck 1"));
        lines.take(6).map(|l| format!("    theirs: {l}\n")).collect()
    }
}

/// Keeps a disagreeing image where `KEEP=` says.
fn keep(file: &Path, n: usize) {
    if let Ok(folder) = std::env::var("KEEP") {
        let _ = std::fs::copy(file, Path::new(&folder).join(format!("damaged-{n}.img")));
    }
}
