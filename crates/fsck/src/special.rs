//! Inodes with a fixed purpose: bad blocks, root, journal, resize, quota, orphan file, reserved ones.

use crate::blocks::{BlockMap, spans};
use crate::context::{Context, Record};
use crate::external;
use crate::finding::{Kind, Pass, Place};
use crate::inodes::{self, Info, Scratch, Tally};
use crate::map::{self, Piece};
use crate::xattrs;
use extant_format::jbd2::{self, SuperblockError};
use extant_format::orphan_file::{self, OrphanFileError};
use extant_format::{Compat, Incompat, Ino, InodeFlags, Pblk, RoCompat};

const PASS: Pass = Pass::Inodes;

/// Handles an inode that is not an ordinary one; `None` for those that are (the root among them).
pub(crate) fn inode(
    cx: &Context<'_>,
    rec: &Record,
    tally: &mut Tally,
    scratch: &mut Scratch,
) -> Option<Info> {
    let raw = cx.sb.raw();
    let (ino, add) = (rec.ino, |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind));
    if ino == Ino::ROOT {
        root(cx, rec);
        return None;
    }
    let system = Info { bits: Info::USED | Info::SYSTEM, links: rec.links(), kind: 0 };
    if ino == Ino::BAD_BLOCKS {
        bad_blocks(cx, rec, scratch);
        return Some(system);
    }
    let journal = ino.0 == raw.s_journal_inum.get();
    let quotas = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
    let quota = cx.ro_compat(RoCompat::QUOTA) && quotas.contains(&ino.0);
    let orphans = cx.compat(Compat::ORPHAN_FILE) && ino.0 == raw.s_orphan_file_inum.get();
    if journal || quota || orphans {
        if !rec.is_reg() && rec.mode != 0 {
            add(Kind::JournalMode { mode: u64::from(rec.mode) });
        }
        if ino >= cx.geo.first_ino() && rec.links() == 0 {
            return None;
        }
        inodes::reserved(cx, rec, tally, scratch);
        return Some(system);
    }
    if ino < cx.geo.first_ino() || is_hidden(cx, ino, rec.links()) {
        reserved(cx, rec, tally, scratch);
        return Some(system);
    }
    None
}

/// Whether the superblock names the inode as a project quota or orphan file: those have no fixed numbers. An orphan file that is
/// not there is no inode in use; a quota file is.
pub(crate) fn is_hidden(cx: &Context<'_>, ino: Ino, links: u16) -> bool {
    let raw = cx.sb.raw();
    raw.s_prj_quota_inum.get() == ino.0 || raw.s_orphan_file_inum.get() == ino.0 && links != 0
}

fn root(cx: &Context<'_>, rec: &Record) {
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    if !rec.is_dir() && rec.links() != 0 {
        add(Kind::RootNotDirectory {});
    }
}

fn bad_blocks(cx: &Context<'_>, rec: &Record, scratch: &mut Scratch) {
    let raw = &rec.raw;
    let odd = (rec.mode != 0 && !rec.is_reg())
        || raw.i_uid.get() != 0
        || raw.i_gid.get() != 0
        || raw.i_links_count.get() != 0
        || rec.has(InodeFlags::INLINE_DATA)
        || raw.i_file_acl_lo.get() != 0;
    if odd {
        cx.found(PASS, Place::Inode(rec.ino.0), Kind::BadBlocksInode {});
    }
    if rec.has(InodeFlags::EXTENTS) && is_map_clear(rec) {
        return;
    }
    let mut runs = Vec::new();
    map::walk(cx, rec, &mut scratch.buffers, true, |piece| match piece {
        Piece::Data { pblk, len: 1, .. } if may_be_bad(cx, pblk) => {
            let block = pblk.0;
            cx.found(PASS, Place::Inode(rec.ino.0), Kind::BadBlockReserved { block });
            true
        }
        Piece::Data { pblk, len, .. } if metadata_has(cx, pblk, len) => {
            let block = pblk.0;
            cx.found(PASS, Place::Inode(rec.ino.0), Kind::BadBlockInMetadata { block });
            true
        }
        piece => inodes::claim(cx, &mut runs, false, piece),
    });
}

fn is_map_clear(rec: &Record) -> bool {
    rec.raw.i_block.iter().all(|byte| *byte == 0)
}

/// Whether the filesystem can do without the block: copies of superblock and descriptors, what is kept free for descriptors,
/// inodes that were never used.
fn may_be_bad(cx: &Context<'_>, pblk: Pblk) -> bool {
    let own = cx.geo.group_of_block(pblk).map(|(group, _)| group).filter(|group| group.0 != 0);
    let copy = own.is_some_and(|group| {
        let first = cx.geo.group_first_block(group).0;
        pblk.0 < first + u64::from(cx.geo.base_meta_blocks(group)) && !cx.geo.has_meta_bg()
    });
    let unused = cx.descs.iter().zip(&cx.in_tables).any(|(desc, used)| {
        let end = desc.inode_table.0.saturating_add(u64::from(cx.geo.itable_blocks()));
        let first = desc.inode_table.0.saturating_add(u64::from(used.div_ceil(cx.geo.inodes_per_block())));
        (first..end).contains(&pblk.0)
    });
    copy || unused || is_reserved_gdt(cx, pblk)
}

/// Whether the block is kept free for descriptors to come.
fn is_reserved_gdt(cx: &Context<'_>, pblk: Pblk) -> bool {
    let Some((group, _)) = cx.geo.group_of_block(pblk).filter(|(group, _)| cx.geo.has_super(*group)) else {
        return false;
    };
    let base = u64::from(cx.geo.base_meta_blocks(group));
    let first = cx.geo.group_first_block(group).0 + base - u64::from(cx.geo.reserved_gdt_blocks()).min(base);
    pblk.0 >= first && pblk.0 < cx.geo.group_first_block(group).0 + base
}

fn metadata_has(cx: &Context<'_>, pblk: Pblk, len: u32) -> bool {
    spans(&cx.geo, pblk, u64::from(len)).any(|s| cx.metadata.test_any(s))
}

fn reserved(cx: &Context<'_>, rec: &Record, tally: &mut Tally, scratch: &mut Scratch) {
    let add = |kind| cx.found(PASS, Place::Inode(rec.ino.0), kind);
    let wrong = match rec.ino.0 {
        5 => rec.is_dir(),
        7 => rec.mode != 0 && !rec.is_reg(),
        _ => rec.mode != 0,
    };
    if rec.has(InodeFlags::CASEFOLD) {
        add(Kind::CasefoldNotDirectory {});
    }
    if rec.has(InodeFlags::INLINE_DATA) && rec.has(InodeFlags::EXTENTS) && is_map_clear(rec) {
        add(Kind::InlineAndExtents {});
    }
    if matches!(rec.ino.0, 3 | 4 | 8) || rec.ino >= cx.geo.first_ino() {
        // Usable, and not used; whatever else is in it has no meaning.
        if rec.links() != 0 || rec.raw.i_blocks_lo.get() != 0 || rec.word(0) != 0 {
            add(Kind::SystemInodeNotClear {});
        }
        if rec.ino.0 == 8 && rec.has(InodeFlags::EXTENTS) && !cx.incompat(Incompat::EXTENTS) {
            add(Kind::ExtentsWithoutFeature {});
        }
        return;
    }
    if wrong {
        add(Kind::ReservedMode { mode: u64::from(rec.mode) });
    }
    if rec.has(InodeFlags::INDEX) && !rec.is_dir() {
        add(Kind::IndexNotDirectory {});
    }
    if rec.ino == Ino::RESIZE && !cx.compat(Compat::RESIZE_INODE) && cx.geo.reserved_gdt_blocks() != 0 {
        // A list that no feature calls for any more: its own block is still taken.
        add(Kind::ResizeInode {});
        let block = Pblk(u64::from(rec.word(13)));
        if cx.geo.contains(block) {
            cx.claim(block, 1);
        }
        return;
    }
    if rec.ino == Ino::RESIZE && cx.compat(Compat::RESIZE_INODE) {
        resize(cx, rec, tally, scratch);
        return;
    }
    inodes::reserved(cx, rec, tally, scratch);
}

/// The resize inode's double-indirect block lists, for each reserved descriptor block, the block in group 0; that one
/// lists its copies in the groups with backups.
fn resize(cx: &Context<'_>, rec: &Record, tally: &mut Tally, scratch: &mut Scratch) {
    let add = |kind| cx.found(Pass::Superblock, Place::Inode(rec.ino.0), kind);
    let block = Pblk(u64::from(rec.word(13)));
    let others = (0..15).any(|n| n != 13 && rec.word(n) != 0);
    let regular = rec.is_reg() && rec.links() == 1;
    if others || !regular {
        add(Kind::ResizeInode {});
    }
    let attrs = xattrs::check(cx, rec, None, tally, &mut scratch.block);
    if !inodes::has_map(rec) || rec.has(InodeFlags::EXTENTS) {
        // What the words mean is another thing then; as a list they own nothing.
        add(Kind::ResizeInode {});
        let totals = inodes::has_map(rec).then(|| map::walk(cx, rec, &mut scratch.buffers, true, |_| true));
        let clusters = totals.map_or(0, |t| t.clusters) + u64::from(attrs.block);
        resize_blocks(cx, rec, clusters);
        return;
    }
    if others || !cx.geo.contains(block) {
        odd_resize(cx, rec, block, scratch);
        return;
    }
    // The descriptor blocks themselves are metadata; only the double-indirect block is the inode's own.
    cx.claim(block, 1);
    let mut clusters = 1 + u64::from(attrs.block);
    let mut last = None;
    let reserved = cx.geo.reserved_gdt_blocks();
    let table = cx.geo.desc_block(0).map_or(0, |b| b.0);
    let first = table + u64::from(cx.geo.desc_blocks());
    let per = cx.geo.block_size() / 4;
    let (mut dind, mut ind) = (vec![0; cx.block_size()], vec![0; cx.block_size()]);
    let word = |b: &[u8], n: u32| {
        let at = n as usize * 4;
        b.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    if !cx.read_block(block, &mut dind) {
        add(Kind::ResizeInode {});
        return;
    }
    let mut right = true;
    for n in 0..reserved.min(per) {
        let gdt = first + u64::from(n);
        let slot = (cx.geo.desc_blocks() + n) % per;
        right &= u64::from(word(&dind, slot)) == gdt;
        if cx.geo.contains(Pblk(gdt)) && cx.read_block(Pblk(gdt), &mut ind) {
            let groups = cx.geo.super_groups().filter(|g| g.0 != 0);
            for (at, group) in groups.enumerate().take(per as usize) {
                let copy = gdt + u64::from(group.0) * u64::from(cx.geo.blocks_per_group());
                right &= u64::from(word(&ind, at as u32)) == copy;
            }
        }
    }
    if !right {
        add(Kind::ResizeInode {});
    }
    for n in (0..per).filter(|&n| word(&dind, n) != 0) {
        let gdt = Pblk(u64::from(word(&dind, n)));
        if !cx.geo.contains(gdt) {
            add(Kind::IndirectIllegal { block: gdt.0 });
            continue;
        }
        clusters += 1;
        if !cx.read_block(gdt, &mut ind) {
            add(Kind::ReadError {});
            continue;
        }
        for at in (0..per).filter(|&at| word(&ind, at) != 0) {
            let copy = u64::from(word(&ind, at));
            last = Some(12 + per + n * per + at);
            if cx.geo.contains(Pblk(copy)) {
                clusters += 1;
            } else {
                add(Kind::BlockIllegal { lblk: u64::from(at), block: copy });
            }
        }
    }
    inodes::size(cx, rec, &attrs, &map::Totals { last, last_written: last, ..map::Totals::default() }, tally);
    resize_blocks(cx, rec, clusters);
}

/// The resize inode's count of sectors against what its list holds.
fn resize_blocks(cx: &Context<'_>, rec: &Record, clusters: u64) {
    let should = clusters * (cx.geo.cluster_size() / 512);
    let blocks = u64::from(rec.raw.i_blocks_lo.get());
    if blocks != should {
        cx.found(PASS, Place::Inode(rec.ino.0), Kind::Blocks { blocks, should });
    }
}

/// A resize inode that is no list of descriptor blocks: its map is looked at, its blocks are not claimed, since they are
/// metadata mostly.
fn odd_resize(cx: &Context<'_>, rec: &Record, block: Pblk, scratch: &mut Scratch) {
    let entered = BlockMap::new(&cx.geo);
    let totals = map::walk(cx, rec, &mut scratch.buffers, true, |piece| {
        if let Piece::Tree(tree) = piece {
            if tree == block {
                cx.claim(block, 1);
            }
            return spans(&cx.geo, tree, 1).all(|s| entered.claim(s, None).is_none());
        }
        true
    });
    resize_blocks(cx, rec, totals.clusters);
}

/// What must hold of the special inodes that the superblock names, whether or not they were met.
pub(crate) fn check(cx: &Context<'_>) {
    journal(cx);
    orphan_list(cx);
    orphan_blocks(cx);
    quota_inodes(cx);
}

fn record(cx: &Context<'_>, ino: u32) -> Option<Record> {
    let mut bytes = Vec::new();
    cx.read_inode(Ino(ino), &mut bytes).then(|| Record::new(Ino(ino), &bytes)).flatten()
}

/// Where the blocks of a file lie, in order.
pub(crate) fn runs_of(cx: &Context<'_>, rec: &Record) -> Vec<(u32, u64, u32)> {
    let mut runs = Vec::new();
    let mut left = cx.geo.blocks_count();
    map::walk(cx, rec, &mut map::Buffers::default(), false, |piece| {
        // Bounded by the blocks there are, should the tree loop.
        if left == 0 {
            return false;
        }
        left -= 1;
        if let Piece::Data { lblk, pblk, len, .. } = piece {
            runs.push((lblk, pblk.0, len));
        }
        true
    });
    runs
}

fn journal(cx: &Context<'_>) {
    let raw = cx.sb.raw();
    let add = |kind| cx.found(Pass::Superblock, Place::Filesystem, kind);
    let ino = raw.s_journal_inum.get();
    let has = cx.compat(Compat::HAS_JOURNAL);
    if !has && cx.incompat(Incompat::RECOVER) {
        add(Kind::RecoveryWithoutJournal {});
    }
    if raw.s_journal_uuid != [0; 16] || (has && raw.s_journal_dev.get() != 0 && ino == 0) {
        match cx.journal {
            Some(dev) => external::check(cx, dev),
            None => add(Kind::JournalExternalMissing {}),
        }
        return;
    }
    if ino == 0 && !has {
        return;
    }
    let found = record(cx, ino);
    let copy = found.as_ref().filter(|r| !is_log(cx, r)).and_then(|r| log_backup(cx, r));
    let copy = copy.filter(|r| is_log(cx, r));
    if copy.is_some() {
        add(Kind::JournalBackupUsed { ino: u64::from(ino) });
    }
    let Some(rec) = copy.or(found).filter(|r| r.links() != 0 && r.is_reg()) else {
        add(Kind::JournalInode { ino: u64::from(ino) });
        return;
    };
    if !has {
        add(Kind::JournalWithoutFeature { ino: u64::from(ino) });
    }
    let runs = runs_of(cx, &rec);
    let Some(first) = inodes::first_block(&runs) else {
        add(Kind::JournalInode { ino: u64::from(ino) });
        return;
    };
    let mapped: u64 = runs.iter().map(|r| u64::from(r.2)).sum();
    let blocks = rec.size() >> cx.geo.log_block_size();
    let mut bytes = vec![0; cx.block_size()];
    let short = rec.size() > mapped << cx.geo.log_block_size();
    if short || !cx.read_block(first, &mut bytes) {
        add(Kind::JournalSuperblock {});
        return;
    }
    let log = Log {
        block_size: cx.geo.block_size(),
        blocks: blocks.min(mapped),
        has_journal: has,
        needs_recovery: cx.incompat(Incompat::RECOVER),
    };
    journal_superblock(&log, &bytes, &add);
}

/// What a journal's superblock is held against.
pub(crate) struct Log {
    /// Of the filesystem.
    pub(crate) block_size: u32,
    /// How many there are for the journal.
    pub(crate) blocks: u64,
    /// The filesystem says that it has a journal, and that it needs recovery.
    pub(crate) has_journal: bool,
    pub(crate) needs_recovery: bool,
}

/// Whether the inode can be read as a journal at all.
fn is_log(cx: &Context<'_>, rec: &Record) -> bool {
    if rec.links() == 0 || !rec.is_reg() {
        return false;
    }
    let runs = runs_of(cx, rec);
    let mapped: u64 = runs.iter().map(|r| u64::from(r.2)).sum();
    let blocks = rec.size() >> cx.geo.log_block_size();
    let mut bytes = vec![0; cx.block_size()];
    blocks <= mapped
        && inodes::first_block(&runs).is_some_and(|first| cx.read_block(first, &mut bytes))
        && is_log_superblock(&bytes, cx.geo.block_size(), blocks)
}

/// The journal's inode as the superblock keeps a copy of its map and size. e2fsck takes that where the inode itself is no
/// journal, but gets nowhere with it where the map is of extents.
fn log_backup(cx: &Context<'_>, rec: &Record) -> Option<Record> {
    let raw = cx.sb.raw();
    if raw.s_jnl_backup_type != 1 || rec.has(InodeFlags::EXTENTS) {
        return None;
    }
    let mut copy = rec.clone();
    for (word, slot) in raw.s_jnl_blocks.iter().zip(copy.raw.i_block.chunks_exact_mut(4)) {
        slot.copy_from_slice(&word.get().to_le_bytes());
    }
    copy.raw.i_size_high = raw.s_jnl_blocks[15];
    copy.raw.i_size_lo = raw.s_jnl_blocks[16];
    copy.raw.i_links_count.set(1);
    copy.mode = 0x8000 | 0o600;
    Some(copy)
}

fn is_log_superblock(bytes: &[u8], block_size: u32, blocks: u64) -> bool {
    let word = |at| crate::superblock::word_be(bytes, at);
    word(0) == jbd2::MAGIC
        && matches!(word(4), 3 | 4)
        && word(0x0c) == block_size
        && u64::from(word(0x10)) <= blocks
}

/// The journal's superblock, as far as a journal that is not replayed matters: words are big-endian.
pub(crate) fn journal_superblock(log: &Log, bytes: &[u8], add: &impl Fn(Kind)) {
    let word = |at| crate::superblock::word_be(bytes, at);
    let (version2, users) = (word(4) == 4, word(0x40));
    if !is_log_superblock(bytes, log.block_size, log.blocks) {
        add(Kind::JournalSuperblock {});
        return;
    }
    if word(0x20) != 0 {
        add(Kind::JournalErrno { errno: u64::from(word(0x20)) });
    }
    if word(0x1c) != 0 && log.has_journal && !log.needs_recovery {
        add(Kind::RecoveryFlagMissing {});
    }
    if !version2 {
        if [0x24, 0x28, 0x2c].into_iter().any(|at| word(at) != 0) {
            add(Kind::JournalV1Fields {});
        }
        return;
    }
    if users > 1 {
        add(Kind::JournalUsers { users: u64::from(users) });
    }
    let incompat = jbd2::IncompatFeatures::from_bits_retain(word(0x28));
    if !incompat.difference(jbd2::IncompatFeatures::SUPPORTED).is_empty() || word(0x2c) != 0 {
        add(Kind::JournalUnsupported {});
        return;
    }
    // The decoder's other demands are those of a replay.
    let decoded = jbd2::Superblock::decode(bytes, log.block_size, log.blocks);
    if let Err(
        SuperblockError::Checksum { .. }
        | SuperblockError::ChecksumType(_)
        | SuperblockError::ConflictingChecksums
        | SuperblockError::FastCommitArea(_),
    ) = decoded
    {
        add(Kind::JournalSuperblock {});
    }
}

/// The linked list of orphans: inodes whose `i_dtime` is the next one's number.
fn orphan_list(cx: &Context<'_>) {
    let mut ino = cx.sb.raw().s_last_orphan.get();
    let mut left = cx.geo.inodes_count();
    let mut seen = rustc_hash::FxHashSet::default();
    while ino != 0 {
        let bad = Kind::OrphanListBad { ino: u64::from(ino) };
        let reserved = ino < cx.geo.first_ino().0 || ino > cx.geo.inodes_count();
        if reserved || left == 0 || !seen.insert(ino) {
            cx.found(Pass::Superblock, Place::Filesystem, bad);
            return;
        }
        let Some(rec) = record(cx, ino) else {
            cx.found(Pass::Superblock, Place::Filesystem, bad);
            return;
        };
        left -= 1;
        ino = rec.raw.i_dtime.get();
    }
}

fn orphan_blocks(cx: &Context<'_>) {
    let raw = cx.sb.raw();
    let add = |kind| cx.found(Pass::Superblock, Place::Filesystem, kind);
    let ino = raw.s_orphan_file_inum.get();
    if !cx.compat(Compat::ORPHAN_FILE) {
        // A number without the feature must not be that of a file, the journal's excepted.
        let journal = cx.compat(Compat::HAS_JOURNAL) && ino == raw.s_journal_inum.get();
        if !journal && record(cx, ino).is_some_and(|r| r.links() != 0) {
            add(Kind::OrphanFileInode { ino: u64::from(ino) });
        }
        return;
    }
    let Some(rec) = record(cx, ino).filter(|r| r.is_reg() && r.links() != 0) else {
        add(Kind::OrphanFileInode { ino: u64::from(ino) });
        return;
    };
    let present = cx.ro_compat(RoCompat::ORPHAN_PRESENT);
    let seed = cx.csum.has_metadata().then(|| cx.csum.inode_seed(rec.ino, rec.raw.i_generation.get()));
    let mut bytes = vec![0; cx.block_size()];
    let (mut orphans, mut next) = (0, 0_u64);
    for (lblk, pblk, len) in runs_of(cx, &rec) {
        if u64::from(lblk) != next {
            add(Kind::OrphanFileHole { lblk: next });
        }
        next = u64::from(lblk) + u64::from(len);
        for pblk in pblk..pblk + u64::from(len) {
            let place = orphan_file::Place { inode_seed: seed, pblk: Pblk(pblk) };
            let verdict: Result<(), OrphanFileError> = match cx.read_block(Pblk(pblk), &mut bytes) {
                true => orphan_file::verify(place, &bytes),
                false => Err(OrphanFileError::TooShort(0)),
            };
            if verdict.is_err() {
                add(Kind::OrphanFileBad { block: pblk });
                continue;
            }
            orphans += orphan_file::orphans(&bytes).count();
        }
    }
    if next < rec.size() >> cx.geo.log_block_size() {
        add(Kind::OrphanFileHole { lblk: next });
    }
    match (orphans > 0, present) {
        (true, false) => add(Kind::OrphanFileNotClean {}),
        (false, true) => add(Kind::OrphanPresentClean {}),
        _ => {}
    }
}

fn quota_inodes(cx: &Context<'_>) {
    let raw = cx.sb.raw();
    let inos = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
    let enabled = cx.ro_compat(RoCompat::QUOTA);
    for ino in inos.into_iter().filter(|&i| i != 0) {
        let add = |kind| cx.found(Pass::Superblock, Place::Inode(ino), kind);
        if !enabled {
            add(Kind::QuotaInodeHidden { ino: u64::from(ino) });
            continue;
        }
        let reserved = ino < cx.geo.first_ino().0 && !matches!(ino, 3 | 4);
        let valid = record(cx, ino).is_some_and(|r| r.is_reg() && r.links() != 0);
        if reserved || !valid {
            add(Kind::QuotaInode { ino: u64::from(ino) });
        }
    }
}
