//! Every inode: its fields, its block map, its attributes. What later passes need is collected on the way.

use crate::context::{Context, Record};
use crate::finding::{Kind, Pass, Place};
use crate::map::{self, Buffers, Piece, Totals};
use crate::special;
use crate::xattrs::{self, BlocksSeen};
use extant_format::inline::IBLOCK_LEN;
use extant_format::{
    Compat, FileType, FormatError, GroupNr, Incompat, Ino, InodeFlags, InodeFormat, Pblk, RoCompat,
};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PASS: Pass = Pass::Inodes;
/// Bytes of an inode table that are read at once.
const CHUNK: usize = 256 * 1024;

/// What later passes know of an inode.
#[derive(Clone, Copy, Default)]
pub(crate) struct Info {
    /// `i_links_count`
    pub(crate) links: u16,
    /// The type as directories state it; 0 for none.
    pub(crate) kind: u8,
    /// [`Info::USED`] and others.
    pub(crate) bits: u8,
}

impl Info {
    /// In use.
    pub(crate) const USED: u8 = 1;
    /// Holds an attribute's value.
    pub(crate) const EA_INODE: u8 = 2;
    /// Encrypted.
    pub(crate) const ENCRYPTED: u8 = 4;
    /// A system file that no directory names.
    pub(crate) const SYSTEM: u8 = 8;

    pub(crate) fn is(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }
}

/// A directory for the later passes.
pub(crate) struct Dir {
    pub(crate) ino: u32,
    pub(crate) generation: u32,
    pub(crate) flags: InodeFlags,
    /// Where its blocks are: logical block, block, length.
    pub(crate) runs: Vec<(u32, u64, u32)>,
    /// Blocks it should have by its size.
    pub(crate) blocks: u32,
    /// `i_block` and the value of `system.data`, for inline directories.
    pub(crate) inline: Option<Box<([u8; IBLOCK_LEN], Vec<u8>)>>,
}

/// Usage of an id.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    pub(crate) space: u64,
    pub(crate) inodes: u64,
}

/// What one thread collects.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) dirs: Vec<Dir>,
    pub(crate) ea_refs: FxHashMap<u32, u64>,
    pub(crate) ea_stored: Vec<(u32, u64)>,
    pub(crate) xattr_blocks: std::sync::Arc<BlocksSeen>,
    /// By user, group, project.
    pub(crate) usage: [FxHashMap<u32, Usage>; 3],
    pub(crate) large_files: u64,
}

/// What the pass gives to the others.
pub(crate) struct Inodes {
    /// By group; shorter than the group where the rest was never used.
    pub(crate) groups: Vec<Vec<Info>>,
    /// How often directories name each inode, by group like `groups`.
    pub(crate) named: Vec<Vec<AtomicU32>>,
    pub(crate) dirs: Vec<Dir>,
    pub(crate) ea_refs: FxHashMap<u32, u64>,
    pub(crate) ea_stored: FxHashMap<u32, u64>,
    pub(crate) usage: [FxHashMap<u32, Usage>; 3],
    per_group: u32,
}

impl Inodes {
    fn place(&self, ino: u32) -> Option<(usize, usize)> {
        let index = ino.checked_sub(1)?;
        Some(((index / self.per_group) as usize, (index % self.per_group) as usize))
    }

    /// What is known of an inode; the default for one that is not in use.
    pub(crate) fn info(&self, ino: u32) -> Info {
        self.place(ino).and_then(|(g, i)| self.groups.get(g)?.get(i)).copied().unwrap_or_default()
    }

    /// Counts a name.
    pub(crate) fn count(&self, ino: u32) {
        if let Some(cell) = self.place(ino).and_then(|(g, i)| self.named.get(g)?.get(i)) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many names were counted.
    pub(crate) fn named(&self, ino: u32) -> u32 {
        let cell = self.place(ino).and_then(|(g, i)| self.named.get(g)?.get(i));
        cell.map_or(0, |c| c.load(Ordering::Relaxed))
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) buffers: Buffers,
    pub(crate) block: Vec<u8>,
}

/// What a thread brings back: its tally, and the inodes of the groups it scanned.
type Scanned = (Tally, Vec<(usize, Vec<Info>)>);

/// Runs the pass over all groups.
pub(crate) fn check(cx: &Context<'_>) -> Inodes {
    let blocks_seen = std::sync::Arc::new(BlocksSeen::default());
    let groups = cx.geo.groups() as usize;
    let next = AtomicU64::new(0);
    let worker = || {
        let mut tally = Tally { xattr_blocks: blocks_seen.clone(), ..Tally::default() };
        let (mut scratch, mut table) = (Scratch::default(), Vec::new());
        let mut infos = Vec::new();
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= groups as u64 {
                return (tally, infos);
            }
            let of_group = scan_group(cx, GroupNr(group as u32), &mut tally, &mut scratch, &mut table);
            if !of_group.is_empty() {
                infos.push((group as usize, of_group));
            }
        }
    };
    // The threads only fill their own tallies; bitmaps are shared and atomic.
    let results = if cx.threads <= 1 {
        vec![worker()]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..cx.threads).map(|_| scope.spawn(worker)).collect();
            handles.into_iter().filter_map(|h| h.join().ok()).collect()
        })
    };
    let inodes = merge(cx, results);
    if let Ok(seen) = std::sync::Arc::try_unwrap(blocks_seen) {
        seen.report(cx);
    }
    special::check(cx);
    inodes
}

fn merge(cx: &Context<'_>, results: Vec<Scanned>) -> Inodes {
    let mut all = Inodes {
        groups: vec![Vec::new(); cx.geo.groups() as usize],
        named: Vec::new(),
        dirs: Vec::new(),
        ea_refs: FxHashMap::default(),
        ea_stored: FxHashMap::default(),
        usage: Default::default(),
        per_group: cx.geo.inodes_per_group(),
    };
    let mut large_files = 0;
    for (tally, infos) in results {
        for (group, infos) in infos {
            all.groups[group] = infos;
        }
        all.dirs.extend(tally.dirs);
        for (ino, refs) in tally.ea_refs {
            let sum = all.ea_refs.entry(ino).or_default();
            *sum = sum.saturating_add(refs);
        }
        all.ea_stored.extend(tally.ea_stored);
        for (to, from) in all.usage.iter_mut().zip(tally.usage) {
            for (id, usage) in from {
                let sum = to.entry(id).or_default();
                sum.space += usage.space;
                sum.inodes += usage.inodes;
            }
        }
        large_files += tally.large_files;
    }
    all.dirs.sort_unstable_by_key(|d| d.ino);
    all.named = all.groups.iter().map(|g| g.iter().map(|_| AtomicU32::new(0)).collect()).collect();
    if large_files > 0 && !cx.ro_compat(RoCompat::LARGE_FILE) {
        cx.found(PASS, Place::Filesystem, Kind::LargeFileFeature { count: large_files });
    }
    all
}

fn scan_group(
    cx: &Context<'_>,
    group: GroupNr,
    tally: &mut Tally,
    scratch: &mut Scratch,
    table: &mut Vec<u8>,
) -> Vec<Info> {
    let used = cx.in_tables[group.0 as usize];
    if used == 0 || !cx.readable[group.0 as usize] {
        return Vec::new();
    }
    let format = InodeFormat::new(&cx.sb);
    let size = usize::from(cx.geo.inode_size());
    let start = cx.descs[group.0 as usize].inode_table.0 * u64::from(cx.geo.block_size());
    let mut infos = vec![Info::default(); used as usize];
    let per_chunk = (CHUNK / size).max(1);
    for (n, part) in infos.chunks_mut(per_chunk).enumerate() {
        let first = n * per_chunk;
        table.resize(part.len() * size, 0);
        let at = start + (first * size) as u64;
        if cx.dev.read_at(at, table).is_err() {
            let block = at / u64::from(cx.geo.block_size());
            cx.found(PASS, Place::Group(group.0), Kind::InodeTableUnreadable { block });
            break;
        }
        for (index, (info, bytes)) in part.iter_mut().zip(table.chunks_exact(size)).enumerate() {
            let ino = cx.geo.ino_of(group, (first + index) as u32);
            *info = one(cx, &format, ino, bytes, tally, scratch);
        }
    }
    infos
}

/// Everything about one inode.
fn one(
    cx: &Context<'_>,
    format: &InodeFormat,
    ino: Ino,
    bytes: &[u8],
    tally: &mut Tally,
    scratch: &mut Scratch,
) -> Info {
    // Never used: the common case in a fresh table.
    let untouched = bytes[..128].iter().all(|&b| b == 0) && bytes.iter().all(|&b| b == 0);
    if untouched && ino != Ino::ROOT {
        let reserved = ino < cx.geo.first_ino() || special::is_hidden(cx, ino, 0);
        let bits = if reserved { Info::USED | Info::SYSTEM } else { 0 };
        return Info { bits, ..Info::default() };
    }
    let Some(rec) = Record::new(ino, bytes) else {
        return Info::default();
    };
    let add = |kind| cx.found(PASS, Place::Inode(ino.0), kind);
    if let Err(FormatError::Checksum { stored, computed, .. }) = format.verify_checksum(ino, bytes)
        && !untouched
    {
        add(Kind::InodeChecksum { stored: u64::from(stored), computed: u64::from(computed) });
    }
    let dtime = rec.raw.i_dtime.get();
    if dtime != 0 && dtime < cx.low_dtime {
        add(Kind::WasOrphan {});
    }
    if let Some(info) = special::inode(cx, &rec, tally, scratch) {
        return info;
    }
    if rec.links() == 0 {
        if dtime == 0 && rec.mode != 0 {
            add(Kind::ZeroDtime {});
        }
        return Info::default();
    }
    if dtime != 0 && dtime >= cx.low_dtime {
        add(Kind::DtimeSet { dtime: u64::from(dtime) });
    }
    in_use(cx, &rec, bytes, tally, scratch)
}

/// An inode with links.
pub(crate) fn in_use(
    cx: &Context<'_>,
    rec: &Record,
    bytes: &[u8],
    tally: &mut Tally,
    scratch: &mut Scratch,
) -> Info {
    if !xattrs::is_value_inode(rec) {
        fields(cx, rec);
    }
    let attrs = xattrs::check(cx, rec, Some(bytes), tally, &mut scratch.block);
    flags(cx, rec, &attrs);
    let (totals, runs) = blocks(cx, rec, scratch);
    let ea_clusters = attrs.quota_space >> cx.geo.log_block_size() >> cx.geo.log_cluster_ratio();
    let clusters = totals.clusters + u64::from(attrs.block) + ea_clusters;
    size(cx, rec, &attrs, &totals, tally);
    block_count(cx, rec, clusters);
    kind(cx, rec, &attrs, &totals, scratch);
    if rec.is_dir() {
        tally.dirs.push(directory(cx, rec, attrs.inline.as_ref(), runs));
    }
    if xattrs::is_value_inode(rec) {
        tally.ea_stored.push((rec.ino.0, xattrs::stored_references(rec)));
    } else {
        charge(cx, rec, bytes, clusters, &attrs, tally);
    }
    let mut bits = Info::USED;
    if xattrs::is_value_inode(rec) {
        bits |= Info::EA_INODE;
    }
    if rec.has(InodeFlags::ENCRYPT) {
        bits |= Info::ENCRYPTED;
    }
    let kind = FileType::from_mode(rec.mode).map_or(0, FileType::dirent_code);
    Info { links: rec.links(), kind, bits }
}

/// A reserved inode: what it claims is looked at, not what it is.
pub(crate) fn reserved(cx: &Context<'_>, rec: &Record, tally: &mut Tally, scratch: &mut Scratch) {
    let attrs = xattrs::check(cx, rec, None, tally, &mut scratch.block);
    let (totals, _) = blocks(cx, rec, scratch);
    size(cx, rec, &attrs, &totals, tally);
    block_count(cx, rec, totals.clusters + u64::from(attrs.block));
}

/// Fields that must be zero, and those that must make sense for the features.
fn fields(cx: &Context<'_>, rec: &Record) {
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    let raw = &rec.raw;
    if FileType::from_mode(rec.mode).is_none() {
        add(Kind::Mode { mode: u64::from(rec.mode) });
    }
    if raw.i_obso_faddr.get() != 0 {
        add(Kind::Faddr { value: u64::from(raw.i_obso_faddr.get()) });
    }
    if raw.l_i_file_acl_high.get() != 0 && !cx.incompat(Incompat::BIT64) {
        add(Kind::FileAclHigh { value: u64::from(raw.l_i_file_acl_high.get()) });
    }
    if raw.l_i_blocks_high.get() != 0 && !cx.ro_compat(RoCompat::HUGE_FILE) {
        add(Kind::BlocksHigh { value: u64::from(raw.l_i_blocks_high.get()) });
    }
    let sized = rec.is_reg() || rec.is_dir() && cx.incompat(Incompat::LARGEDIR);
    if raw.i_size_high.get() != 0 && !sized {
        add(Kind::SizeHigh { value: u64::from(raw.i_size_high.get()) });
    }
}

fn flags(cx: &Context<'_>, rec: &Record, attrs: &xattrs::Found) {
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    if rec.has(InodeFlags::IMAGIC) && !cx.compat(Compat::IMAGIC_INODES) {
        add(Kind::Imagic {});
    }
    if rec.has(InodeFlags::INLINE_DATA) {
        if !cx.incompat(Incompat::INLINE_DATA) {
            add(Kind::InlineWithoutFeature {});
        } else if attrs.inline.is_none() {
            add(Kind::InlineWithoutAttribute {});
        }
        if rec.has(InodeFlags::EXTENTS) {
            add(Kind::InlineAndExtents {});
        }
    }
    if rec.has(InodeFlags::EXTENTS) && !cx.incompat(Incompat::EXTENTS) {
        add(Kind::ExtentsWithoutFeature {});
    }
    if rec.has(InodeFlags::ENCRYPT) {
        if !cx.incompat(Incompat::ENCRYPT) {
            add(Kind::EncryptWithoutFeature {});
        } else if attrs.encryption.is_none() {
            add(Kind::EncryptWithoutAttribute {});
        }
        if attrs.encryption.as_ref().is_some_and(|v| !xattrs::is_encryption_context(v)) {
            add(Kind::EncryptAttributeBad {});
        }
    }
    if rec.has(InodeFlags::CASEFOLD) {
        if !rec.is_dir() {
            add(Kind::CasefoldNotDirectory {});
        } else if !cx.incompat(Incompat::CASEFOLD) {
            add(Kind::CasefoldWithoutFeature {});
        }
    }
    if rec.has(InodeFlags::VERITY) && !(cx.ro_compat(RoCompat::VERITY) && rec.is_reg()) {
        add(Kind::VerityBad {});
    }
    if rec.has(InodeFlags::INDEX) {
        if !rec.is_dir() {
            add(Kind::IndexNotDirectory {});
        } else if !cx.compat(Compat::DIR_INDEX) {
            add(Kind::IndexWithoutFeature {});
        }
    }
}

/// Whether `i_block` is a block map at all.
pub(crate) fn has_map(rec: &Record) -> bool {
    if rec.has(InodeFlags::INLINE_DATA) {
        return false;
    }
    match rec.format() {
        0x8000 | 0x4000 => true,
        0xa000 => !is_fast_symlink(rec),
        _ => false,
    }
}

/// A symbolic link whose target is in `i_block`.
pub(crate) fn is_fast_symlink(rec: &Record) -> bool {
    rec.is_symlink()
        && !rec.has(InodeFlags::INLINE_DATA)
        && !rec.has(InodeFlags::EXTENTS)
        && rec.size() < IBLOCK_LEN as u64
}

fn blocks(cx: &Context<'_>, rec: &Record, scratch: &mut Scratch) -> (Totals, Vec<(u32, u64, u32)>) {
    let mut runs = Vec::new();
    if !has_map(rec) {
        return (Totals::default(), runs);
    }
    let header = u16::from_le_bytes([rec.raw.i_block[0], rec.raw.i_block[1]]) == 0xf30a;
    if header && !rec.has(InodeFlags::EXTENTS) && cx.incompat(Incompat::EXTENTS) && looks_like_tree(rec) {
        cx.found(PASS, Place::Inode(rec.ino.0), Kind::ExtentsFlagMissing {});
    }
    let wanted = rec.is_dir();
    let totals = map::walk(cx, rec, &mut scratch.buffers, true, |piece| claim(cx, &mut runs, wanted, piece));
    (totals, runs)
}

fn looks_like_tree(rec: &Record) -> bool {
    extant_format::Node::open(&rec.raw.i_block, rec.ino, None, None).is_ok()
}

/// Claims a piece of a map. A tree block that something else has claimed is not entered: that bounds the work.
pub(crate) fn claim(cx: &Context<'_>, runs: &mut Vec<(u32, u64, u32)>, wanted: bool, piece: Piece) -> bool {
    match piece {
        Piece::Tree(block) => !cx.claim(block, 1) || cx.may_enter_shared(),
        Piece::Data { lblk, pblk, len, own } => {
            if len > own {
                cx.claim(Pblk(pblk.0 + u64::from(own)), u64::from(len - own));
            }
            if wanted {
                match runs.last_mut() {
                    Some((l, p, n)) if *l + *n == lblk && *p + u64::from(*n) == pblk.0 => *n += len,
                    _ => runs.push((lblk, pblk.0, len)),
                }
            }
            true
        }
    }
}

/// The largest file that a map of indirect blocks can hold.
fn indirect_limit(cx: &Context<'_>) -> u64 {
    let block = u64::from(cx.geo.block_size());
    let per = block / 4;
    let blocks = (12 + per + per * per + per * per * per).min(u64::from(u32::MAX));
    blocks * block
}

/// `i_size` against the map, and whether the file is a large one.
pub(crate) fn size(
    cx: &Context<'_>,
    rec: &Record,
    attrs: &xattrs::Found,
    totals: &Totals,
    tally: &mut Tally,
) {
    let block = u64::from(cx.geo.block_size());
    let size = rec.size();
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    let huge = !rec.has(InodeFlags::EXTENTS) && size > indirect_limit(cx);
    if rec.has(InodeFlags::INLINE_DATA) {
        let room = (IBLOCK_LEN + attrs.inline.as_ref().map_or(0, Vec::len)) as u64;
        if attrs.inline.is_some() && rec.is_dir() && size != room {
            add(Kind::Size { size, should: room });
        } else if huge {
            add(Kind::SizeHuge { size });
        } else if size > room {
            add(Kind::InlineSize { size, room });
        }
        return;
    }
    if !has_map(rec) {
        if rec.ino < cx.geo.first_ino() && huge {
            add(Kind::SizeHuge { size });
        }
        return;
    }
    if rec.is_dir() {
        let mapped = totals.last.map_or(0, |l| u64::from(l) + 1);
        let blocks = size.div_ceil(block);
        // Preallocated blocks may lie behind the end.
        let spare = u64::from(cx.sb.raw().s_prealloc_dir_blocks);
        let wrong = blocks > mapped || mapped - blocks.min(mapped) > spare || !size.is_multiple_of(block);
        if wrong {
            add(Kind::Size { size, should: mapped * block });
        }
        return;
    }
    let ratio = u64::from(cx.geo.cluster_ratio());
    let last = totals.last_written.map(|l| u64::from(l) & !(ratio - 1));
    let verity = rec.has(InodeFlags::VERITY);
    if let Some(last) = last.filter(|&l| size < l * block && !verity) {
        add(Kind::Size { size, should: (last + 1) * block });
    } else if huge || rec.has(InodeFlags::EXTENTS) && size > u64::from(u32::MAX) * block {
        add(Kind::SizeHuge { size });
    }
    if rec.is_reg() && size >= 1 << 31 {
        tally.large_files += 1;
    }
}

fn block_count(cx: &Context<'_>, rec: &Record, clusters: u64) {
    let mut stored = u64::from(rec.raw.i_blocks_lo.get());
    let huge = cx.ro_compat(RoCompat::HUGE_FILE);
    if huge {
        stored |= u64::from(rec.raw.l_i_blocks_high.get()) << 32;
    }
    let in_blocks = huge && rec.has(InodeFlags::HUGE_FILE);
    let unit = if in_blocks { 1 } else { u64::from(cx.geo.block_size() / 512) };
    let should = clusters * u64::from(cx.geo.cluster_ratio()) * unit;
    if stored != should {
        cx.found(PASS, Place::Inode(rec.ino.0), Kind::Blocks { blocks: stored, should });
    }
}

/// What the type demands of size, flags and content.
fn kind(cx: &Context<'_>, rec: &Record, attrs: &xattrs::Found, totals: &Totals, scratch: &mut Scratch) {
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    match rec.format() {
        0x2000 | 0x6000 | 0x1000 | 0xc000 => {
            if rec.flags.intersects(InodeFlags::IMMUTABLE.union(InodeFlags::APPEND)) {
                add(Kind::SpecialFlags {});
            }
            if rec.flags.intersects(InodeFlags::EXTENTS.union(InodeFlags::INLINE_DATA)) {
                add(Kind::ExtentsOnSpecial {});
            }
            if rec.size() != 0 {
                add(Kind::SpecialSize { size: rec.size() });
            }
            if matches!(rec.format(), 0x2000 | 0x6000) && !device_is_valid(rec) {
                add(Kind::DeviceNumber {});
            }
        }
        0xa000 => {
            if rec.flags.intersects(InodeFlags::IMMUTABLE.union(InodeFlags::APPEND)) {
                add(Kind::SpecialFlags {});
            }
            if !symlink_is_valid(cx, rec, attrs, totals, scratch) {
                add(Kind::SymlinkBad {});
            }
        }
        _ => {}
    }
}

/// A device number takes the first or the second word; the rest is zero.
fn device_is_valid(rec: &Record) -> bool {
    let rest_from = if rec.word(0) != 0 { 1 } else { 2 };
    rec.raw.i_block[rest_from * 4..].iter().all(|&b| b == 0)
}

fn symlink_is_valid(
    cx: &Context<'_>,
    rec: &Record,
    attrs: &xattrs::Found,
    totals: &Totals,
    scratch: &mut Scratch,
) -> bool {
    let size = rec.size();
    if rec.has(InodeFlags::INLINE_DATA) {
        let second = attrs.inline.as_deref().unwrap_or_default();
        let target: Vec<u8> = rec.raw.i_block.iter().chain(second).copied().collect();
        // All of the inline data, or up to its first zero.
        let end = target.iter().position(|&b| b == 0).unwrap_or(target.len());
        return size > 0 && (size == target.len() as u64 || size == end as u64);
    }
    if size == 0 || size > u64::from(cx.geo.block_size()) {
        return false;
    }
    let encrypted = rec.has(InodeFlags::ENCRYPT);
    if is_fast_symlink(rec) {
        if encrypted {
            return rec.raw.i_block[size as usize..].iter().all(|&b| b == 0) && size > 2;
        }
        let end = rec.raw.i_block.iter().position(|&b| b == 0);
        return end == Some(size as usize);
    }
    // The target lies in the first block, which is the only one. The map is not walked again for it: only the first walk leaves out
    // tree blocks that were met before, and without that a tree can lead to itself.
    let Some(first) = totals.first.filter(|_| totals.mapped == 1 && size < u64::from(cx.geo.block_size()))
    else {
        return false;
    };
    scratch.block.resize(cx.block_size(), 0);
    if !cx.read_block(first, &mut scratch.block) {
        return false;
    }
    let end = scratch.block.iter().position(|&b| b == 0).unwrap_or(scratch.block.len());
    encrypted || end as u64 == size
}

fn directory(cx: &Context<'_>, rec: &Record, second: Option<&Vec<u8>>, runs: Vec<(u32, u64, u32)>) -> Dir {
    let inline = rec.has(InodeFlags::INLINE_DATA).then(|| {
        let second = second.cloned().unwrap_or_default();
        Box::new((rec.raw.i_block, second))
    });
    let blocks = (rec.size() / u64::from(cx.geo.block_size())).min(u64::from(u32::MAX)) as u32;
    Dir { ino: rec.ino.0, generation: rec.raw.i_generation.get(), flags: rec.flags, runs, blocks, inline }
}

fn charge(
    cx: &Context<'_>,
    rec: &Record,
    bytes: &[u8],
    clusters: u64,
    attrs: &xattrs::Found,
    tally: &mut Tally,
) {
    if rec.ino < cx.geo.first_ino() && rec.ino != Ino::ROOT {
        return;
    }
    let add = Usage { space: clusters * cx.geo.cluster_size(), inodes: 1 + attrs.quota_inodes };
    let project = if cx.geo.inode_size() > 128 && rec.raw.i_extra_isize.get() >= 32 && bytes.len() >= 160 {
        rec.raw.i_projid.get()
    } else {
        0
    };
    let uid = u32::from(rec.raw.i_uid.get()) | u32::from(rec.raw.l_i_uid_high.get()) << 16;
    let gid = u32::from(rec.raw.i_gid.get()) | u32::from(rec.raw.l_i_gid_high.get()) << 16;
    for (map, id) in tally.usage.iter_mut().zip([uid, gid, project]) {
        let sum = map.entry(id).or_default();
        sum.space += add.space;
        sum.inodes += add.inodes;
    }
}

/// A pair of blocks for `special`.
pub(crate) fn first_block(runs: &[(u32, u64, u32)]) -> Option<Pblk> {
    runs.iter().find(|r| r.0 == 0).map(|r| Pblk(r.1))
}
