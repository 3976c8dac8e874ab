//! Directories: records, names, types, checksums. Indexes are checked by [`crate::index`].

use crate::blocks::Visited;
use crate::context::Context;
use crate::finding::{Kind, Pass, Place};
use crate::index::{DirIndex, Leaf};
use crate::inodes::{Dir, Info, Inodes};
use extant_format::dir::{self, DirError, DirLayout, Record};
use extant_format::hash::{HashVersion, Hasher};
use extant_format::htree::{self, DxBlock, DxKind};
use extant_format::inline::{self, Part};
use extant_format::superblock::SbFlags;
use extant_format::{BgFlags, Incompat, Ino, InodeFlags, Pblk};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

const PASS: Pass = Pass::Directories;

/// What the pass learns of each directory, by its place in [`Inodes::dirs`].
pub(crate) struct Tree {
    /// The directory that names it; 0: none.
    pub(crate) parent: Vec<AtomicU32>,
    /// What its `..` says; 0: nothing.
    pub(crate) dotdot: Vec<AtomicU32>,
}

/// Runs the pass over all directories.
pub(crate) fn check(cx: &Context<'_>, inodes: &Inodes) -> Tree {
    let zeros = || inodes.dirs.iter().map(|_| AtomicU32::new(0)).collect();
    let tree = Tree { parent: zeros(), dotdot: zeros() };
    // A block that several directories claim is read for the first only: that bounds the work.
    let visited = Visited::new(&cx.geo);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut one = Checker { cx, inodes, tree: &tree, visited: &visited, block: Vec::new() };
        loop {
            let from = next.fetch_add(16, Ordering::Relaxed);
            if from >= inodes.dirs.len() {
                return;
            }
            for (n, dir) in inodes.dirs.iter().enumerate().skip(from).take(16) {
                one.directory(n, dir);
            }
        }
    };
    if cx.threads <= 1 || inodes.dirs.len() < 64 {
        worker();
    } else {
        std::thread::scope(|scope| (0..cx.threads).for_each(|_| drop(scope.spawn(worker))));
    }
    tree
}

struct Checker<'a, 'd> {
    cx: &'a Context<'d>,
    inodes: &'a Inodes,
    tree: &'a Tree,
    visited: &'a Visited,
    block: Vec<u8>,
}

/// What is the same for all blocks of one directory.
struct OfDir<'a> {
    at: usize,
    dir: &'a Dir,
    layout: DirLayout,
    seed: u32,
    encrypted: bool,
    casefold: bool,
    hasher: Option<Hasher>,
}

impl Checker<'_, '_> {
    fn directory(&mut self, at: usize, dir: &Dir) {
        let cx = self.cx;
        let encrypted = dir.flags.contains(InodeFlags::ENCRYPT);
        let casefold = dir.flags.contains(InodeFlags::CASEFOLD) && cx.incompat(Incompat::CASEFOLD);
        let layout = DirLayout {
            block_size: cx.geo.block_size(),
            filetype: cx.incompat(Incompat::FILETYPE),
            checksummed: cx.csum.has_metadata(),
            hash_in_entry: encrypted && casefold,
            // Checked here, so that the walk goes on behind it.
            inodes_count: u32::MAX,
        };
        let seed = cx.csum.inode_seed(Ino(dir.ino), dir.generation);
        let of = OfDir { at, dir, layout, seed, encrypted, casefold, hasher: None };
        match &dir.inline {
            Some(parts) => self.inline(&of, &parts.0, &parts.1),
            None => self.blocks(of),
        }
    }

    fn found(&self, place: Place, kind: Kind) {
        self.cx.found(PASS, place, kind);
    }

    fn inline(&mut self, of: &OfDir<'_>, i_block: &[u8; inline::IBLOCK_LEN], second: &[u8]) {
        let ino = of.dir.ino;
        let parent = inline::parent(i_block).0;
        self.inodes.count(ino);
        self.dotdot(of, parent, Place::DirEntry(ino, 0, 0));
        let mut names = Vec::new();
        for (part, record) in inline::records(&of.layout, i_block, second) {
            let block = u32::from(part == Part::Second);
            match record {
                Ok(record) if record.is_used() => {
                    self.entry(of, &record, Place::DirEntry(ino, block, record.offset));
                    names.push((record.name.to_vec(), record.ino.0));
                }
                Ok(_) => {}
                Err(_) => self.found(Place::DirBlock(ino, block), Kind::DirCorrupt {}),
            }
        }
        self.duplicates(of, 0, &mut names.iter().map(|(n, i)| (&n[..], *i)).collect());
    }

    fn blocks(&mut self, mut of: OfDir<'_>) {
        let (cx, ino) = (self.cx, of.dir.ino);
        let mut index = of.dir.flags.contains(InodeFlags::INDEX).then(DirIndex::default);
        let mut next = 0_u32;
        let mut block = std::mem::take(&mut self.block);
        block.resize(cx.block_size(), 0);
        for &(lblk, pblk, len) in &of.dir.runs {
            self.holes(ino, next, lblk, of.dir.blocks);
            for n in 0..len {
                let (lblk, pblk) = (lblk + n, Pblk(pblk + u64::from(n)));
                if !self.visited.first_time(pblk) {
                    continue;
                }
                if !cx.read_block(pblk, &mut block) {
                    self.found(Place::DirBlock(ino, lblk), Kind::DirUnreadable {});
                    continue;
                }
                self.one_block(&mut of, lblk, &block, &mut index);
            }
            next = lblk + len;
        }
        self.holes(ino, next, of.dir.blocks, of.dir.blocks);
        self.block = block;
        if let Some(index) = index {
            index.report(cx, ino, of.dir.blocks.max(next));
        }
    }

    fn holes(&self, ino: u32, from: u32, to: u32, end: u32) {
        if from < to.min(end) {
            self.found(Place::DirBlock(ino, from), Kind::DirHole {});
        }
    }

    fn one_block(&mut self, of: &mut OfDir<'_>, lblk: u32, block: &[u8], index: &mut Option<DirIndex>) {
        let place = Place::DirBlock(of.dir.ino, lblk);
        let kind = index.as_ref().and_then(|_| index_kind(&of.layout, lblk, block));
        match (kind, index) {
            (Some(kind), Some(index)) => {
                self.index_block(of, lblk, block, kind, index);
                let layout = of.layout.without_tail();
                self.records(of, &layout, lblk, block, None);
            }
            (_, index) => {
                if of.layout.checksummed {
                    if !dir::has_tail(block) {
                        self.found(place, Kind::DirNoTail {});
                    } else if dir::verify_tail(&of.layout, block, of.seed).is_err() {
                        self.found(place, Kind::DirChecksum {});
                    }
                }
                let mut leaf = Leaf::default();
                let layout = of.layout;
                self.records(of, &layout, lblk, block, Some(&mut leaf));
                if let Some(index) = index {
                    index.leaf(lblk, leaf);
                }
            }
        }
    }

    fn index_block(&self, of: &mut OfDir<'_>, lblk: u32, block: &[u8], kind: DxKind, index: &mut DirIndex) {
        let (cx, place) = (self.cx, Place::DirBlock(of.dir.ino, lblk));
        if kind == DxKind::Root {
            match htree::root_info(&of.layout, block, cx.incompat(Incompat::LARGEDIR)) {
                Ok(info) => {
                    of.hasher = hasher(cx, info.hash_version);
                    index.levels = Some(info.indirect_levels);
                }
                Err(_) => self.found(place, Kind::HtreeRoot {}),
            }
        }
        if htree::verify_tail(&of.layout, block, kind, of.seed).is_err() {
            self.found(place, Kind::HtreeNodeChecksum {});
        }
        match DxBlock::new(&of.layout, block, kind) {
            Ok(view) => index.node(lblk, kind, &view),
            Err(_) if kind == DxKind::Root => self.found(place, Kind::HtreeRoot {}),
            Err(_) => self.found(place, Kind::HtreeNode {}),
        }
    }

    /// Walks the records of a block; `leaf` collects the hashes.
    fn records(
        &mut self,
        of: &OfDir<'_>,
        layout: &DirLayout,
        lblk: u32,
        block: &[u8],
        mut leaf: Option<&mut Leaf>,
    ) {
        let ino = of.dir.ino;
        let mut names: Vec<(&[u8], u32)> = Vec::new();
        for (n, record) in dir::records(layout, block).enumerate() {
            let record = match record {
                Ok(record) => record,
                Err(DirError::EmptyName { offset, .. }) => {
                    self.found(Place::DirEntry(ino, lblk, offset), Kind::EntryEmptyName {});
                    break;
                }
                Err(_) => {
                    self.found(Place::DirBlock(ino, lblk), Kind::DirCorrupt {});
                    if lblk == 0 && n < 2 {
                        self.found(Place::DirBlock(ino, lblk), Kind::DotdotMissing {});
                    }
                    break;
                }
            };
            let place = Place::DirEntry(ino, lblk, record.offset);
            let type_byte = block.get(record.offset as usize + 7).is_some_and(|&b| b != 0);
            if record.is_used() && !layout.filetype && type_byte {
                self.found(place, Kind::EntryFileTypeSet {});
            }
            if lblk == 0 && n < 2 {
                // Old readers took these two names up to a zero byte.
                let after = record.offset as usize + dir::HEADER_LEN + record.name.len();
                if block.get(after).is_some_and(|&b| b != 0) {
                    self.found(place, Kind::NulInDot {});
                }
                if n == 0 {
                    self.dot(of, &record, place);
                } else {
                    self.second(of, &record, place);
                }
                continue;
            }
            if !record.is_used() {
                continue;
            }
            self.entry(of, &record, place);
            names.push((record.name, record.ino.0));
            if let (Some(leaf), Some(hasher)) = (leaf.as_deref_mut(), &of.hasher) {
                leaf.add(hash_of(of, hasher, &record));
            } else if let Some(leaf) = leaf.as_deref_mut() {
                leaf.add(record.stored_hash.map(|(hash, _)| hash));
            }
        }
        self.duplicates(of, lblk, &mut names);
    }

    fn dot(&self, of: &OfDir<'_>, record: &Record<'_>, place: Place) {
        if !record.is_used() || record.name != b"." {
            self.found(place, Kind::DotMissing {});
            return;
        }
        if record.ino.0 != of.dir.ino || self.is_system(record.ino.0) {
            self.found(place, Kind::DotInode { ino: u64::from(record.ino.0) });
        }
        if record.rec_len > 12 {
            self.found(place, Kind::DotBig {});
        }
        if self.in_uninit_part(record.ino.0) {
            self.found(place, Kind::EntryUninit { ino: u64::from(record.ino.0) });
        }
        self.file_type(of, record, 2, place);
        self.inodes.count(record.ino.0);
    }

    fn second(&self, of: &OfDir<'_>, record: &Record<'_>, place: Place) {
        if !record.is_used() || record.name != b".." {
            self.found(place, Kind::DotdotMissing {});
            return;
        }
        self.file_type(of, record, 2, place);
        self.dotdot(of, record.ino.0, place);
    }

    fn dotdot(&self, of: &OfDir<'_>, parent: u32, place: Place) {
        self.tree.dotdot[of.at].store(parent, Ordering::Relaxed);
        if parent == 0 || parent > self.cx.geo.inodes_count() {
            self.found(place, Kind::EntryInode { ino: u64::from(parent) });
            return;
        }
        if !self.inodes.info(parent).is(Info::USED) {
            self.found(place, Kind::EntryUnused { ino: u64::from(parent) });
        }
        self.inodes.count(parent);
    }

    /// An entry other than the first two.
    fn entry(&self, of: &OfDir<'_>, record: &Record<'_>, place: Place) {
        let ino = record.ino.0;
        let value = u64::from(ino);
        match record.name {
            b"." => self.found(place, Kind::DotDuplicate {}),
            b".." => self.found(place, Kind::DotdotDuplicate {}),
            _ => {}
        }
        let hidden = (ino < self.cx.geo.first_ino().0 && ino != Ino::ROOT.0) || self.is_system(ino);
        if ino > self.cx.geo.inodes_count() || hidden {
            self.found(place, Kind::EntryInode { ino: value });
            return;
        }
        if ino == Ino::ROOT.0 {
            self.found(place, Kind::EntryRoot {});
            return;
        }
        if ino == of.dir.ino {
            self.found(place, Kind::EntrySelf { ino: value });
            return;
        }
        let info = self.inodes.info(ino);
        if !info.is(Info::USED) {
            self.found(place, Kind::EntryUnused { ino: value });
            return;
        }
        if self.in_uninit_part(ino) {
            self.found(place, Kind::EntryUninit { ino: value });
        }
        if info.is(Info::EA_INODE) {
            self.found(place, Kind::EntryEaInode { ino: value });
        }
        if of.encrypted {
            if record.name.len() < 16 {
                self.found(place, Kind::EncryptedName {});
            }
            let content = matches!(info.kind, 1 | 2 | 7);
            if content && !info.is(Info::ENCRYPTED) {
                self.found(place, Kind::UnencryptedInEncrypted { ino: value });
            }
        } else if record.has_illegal_byte() {
            self.found(place, Kind::EntryName {});
        }
        self.file_type(of, record, info.kind, place);
        self.inodes.count(ino);
        if info.kind == 2 {
            self.adopt(of, ino, place);
        }
    }

    /// Whether the superblock calls the inode a quota or orphan file.
    fn is_system(&self, ino: u32) -> bool {
        let raw = self.cx.sb.raw();
        let quota = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
        quota.contains(&ino) || ino == raw.s_orphan_file_inum.get()
    }

    /// Whether the inode's group says, whatever the features, that the inode was never used.
    fn in_uninit_part(&self, ino: u32) -> bool {
        let Some(place) = self.cx.geo.inode_location(Ino(ino)) else {
            return false;
        };
        let Some(desc) = self.cx.descs.get(place.group.0 as usize) else {
            return false;
        };
        // Without regard to overflow, as the oracle has it: a number that cannot be then counts as none.
        let end = self.cx.geo.ino_of(place.group, 0).0.wrapping_add(self.cx.geo.inodes_per_group());
        desc.flags.contains(BgFlags::INODE_UNINIT) || ino >= end.wrapping_sub(desc.itable_unused)
    }

    /// A directory has one parent.
    fn adopt(&self, of: &OfDir<'_>, child: u32, place: Place) {
        let Ok(at) = self.inodes.dirs.binary_search_by_key(&child, |d| d.ino) else {
            return;
        };
        let cell = &self.tree.parent[at];
        if cell.compare_exchange(0, of.dir.ino, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            self.found(place, Kind::EntryDirectoryLink { ino: u64::from(child) });
        }
    }

    fn file_type(&self, of: &OfDir<'_>, record: &Record<'_>, should: u8, place: Place) {
        // Without the feature the byte is the name length's upper half, and was looked at as that.
        if of.layout.filetype && record.raw_type != should {
            let (stored, should) = (u64::from(record.raw_type), u64::from(should));
            if stored == 0 {
                self.found(place, Kind::EntryFileTypeMissing { should });
                return;
            }
            self.found(place, Kind::EntryFileType { stored, should });
        }
    }

    fn duplicates(&self, of: &OfDir<'_>, lblk: u32, names: &mut Vec<(&[u8], u32)>) {
        let fold = of.casefold && !of.encrypted;
        let same = |a: &[u8], b: &[u8]| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        if fold {
            names.sort_unstable_by_key(|n| n.0.to_ascii_lowercase());
        } else {
            names.sort_unstable();
        }
        for pair in names.windows(2).filter(|w| same(w[0].0, w[1].0)) {
            let ino = u64::from(pair[1].1);
            self.found(Place::DirBlock(of.dir.ino, lblk), Kind::EntryDuplicate { ino });
        }
    }
}

/// Whether a block of an indexed directory is part of the index.
fn index_kind(layout: &DirLayout, lblk: u32, block: &[u8]) -> Option<DxKind> {
    if lblk == 0 {
        return Some(DxKind::Root);
    }
    let limit = block.get(8..10).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let node = htree::kind_of(layout, block) == Some(DxKind::Node);
    (node && limit == Some(DxKind::Node.limit(layout))).then_some(DxKind::Node)
}

fn hasher(cx: &Context<'_>, version: HashVersion) -> Option<Hasher> {
    let raw = cx.sb.raw();
    let unsigned = cx.sb.flags().contains(SbFlags::UNSIGNED_HASH);
    Hasher::new(version.resolve(unsigned), raw.s_hash_seed.map(zerocopy::little_endian::U32::get))
}

/// The hash of a record's name; `None` where it takes tables that only the encoding has.
fn hash_of(of: &OfDir<'_>, hasher: &Hasher, record: &Record<'_>) -> Option<u32> {
    if let Some((hash, _)) = record.stored_hash {
        return Some(hash);
    }
    if !of.casefold {
        return Some(hasher.hash(record.name).major);
    }
    record.name.is_ascii().then(|| hasher.hash(&record.name.to_ascii_lowercase()).major)
}
