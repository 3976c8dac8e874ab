//! Extended attributes of an inode: its own area, its block, and the inodes that hold values.

use crate::context::{Context, Record};
use crate::finding::{Kind, Pass, Place};
use crate::inodes::Tally;
use extant_format::inline;
use extant_format::xattr::{self, Area, AreaKind, Entry, INDEX_ENCRYPTION, INDEX_SYSTEM, XattrError};
use extant_format::{Compat, Incompat, Ino, InodeFlags, Pblk};

const PASS: Pass = Pass::Inodes;

/// In place of a count of references: the value inode is of the older form, which keeps none.
pub(crate) const OWNED: u64 = u64::MAX;

/// What the attributes of an inode say to the rest of the check.
#[derive(Default)]
pub(crate) struct Found {
    /// The value of `system.data`: its length, and the value where it is wanted.
    pub(crate) inline: Option<Vec<u8>>,
    /// The encryption context.
    pub(crate) encryption: Option<Vec<u8>>,
    /// Bytes and inodes of values in inodes, which count for the quota.
    pub(crate) quota_space: u64,
    pub(crate) quota_inodes: u64,
    /// An attribute block is there (a cluster of the inode).
    pub(crate) block: bool,
}

/// The bytes behind an inode's fields, if `i_extra_isize` is right.
fn ibody<'a>(cx: &Context<'_>, rec: &Record, bytes: &'a [u8]) -> Option<&'a [u8]> {
    if cx.geo.inode_size() <= 128 {
        return None;
    }
    let extra = rec.raw.i_extra_isize.get();
    let room = cx.geo.inode_size() - 128;
    if extra != 0 && (extra < 4 || extra > room || !extra.is_multiple_of(4)) {
        let value = u64::from(extra);
        cx.found(PASS, Place::Inode(rec.ino.0), Kind::ExtraIsize { value });
        return None;
    }
    if extra == 0 {
        return None;
    }
    bytes.get(128 + usize::from(extra)..usize::from(cx.geo.inode_size()))
}

/// Checks all attributes of an inode. `bytes` is its record; without it only the block is looked at.
pub(crate) fn check(
    cx: &Context<'_>,
    rec: &Record,
    bytes: Option<&[u8]>,
    tally: &mut Tally,
    buf: &mut Vec<u8>,
) -> Found {
    let mut found = Found::default();
    if let Some(area) = bytes.and_then(|bytes| ibody(cx, rec, bytes)) {
        match Area::ibody(area) {
            Ok(Some(area)) => entries(cx, rec, &area, tally, &mut found),
            Ok(None) => {}
            Err(e) => cx.found(PASS, Place::Inode(rec.ino.0), Kind::XattrIbody { offset: offset_of(&e) }),
        }
    }
    block(cx, rec, tally, &mut found, buf);
    found
}

fn offset_of(e: &XattrError) -> u64 {
    match *e {
        XattrError::EntryBounds(offset)
        | XattrError::ValueBounds { offset, .. }
        | XattrError::ValueSize { offset, .. } => offset as u64,
        _ => 0,
    }
}

fn entries(cx: &Context<'_>, rec: &Record, area: &Area<'_>, tally: &mut Tally, found: &mut Found) {
    let place = Place::Inode(rec.ino.0);
    for entry in area.entries() {
        let offset = entry.offset as u64;
        if entry.index == 0 && area.kind() == AreaKind::Block {
            cx.found(PASS, place, Kind::XattrName { offset });
        }
        if entry.value_inum.0 != 0 {
            value_inode(cx, rec, &entry, tally, found);
            continue;
        }
        // Values in an inode have no hash in most kernels; older ones wrote it.
        let wanted = area.kind() == AreaKind::Block || entry.hash != 0;
        let hashes = [false, true].map(|signed| xattr::entry_hash(entry.name, entry.value, signed));
        if wanted && !hashes.contains(&entry.hash) {
            cx.found(PASS, place, Kind::XattrHash { offset });
        }
        if area.kind() == AreaKind::Ibody && entry.index == INDEX_SYSTEM && is_data(&entry, area.len()) {
            found.inline = Some(entry.value.to_vec());
        }
        if entry.index == INDEX_ENCRYPTION && entry.name == b"c" {
            found.encryption = Some(entry.value.to_vec());
        }
    }
    if let Some((offset, _)) = area.overlap() {
        cx.found(PASS, place, Kind::XattrCollision { offset: offset as u64 });
    }
}

/// Whether an entry is that of inline data: the name up to a zero byte, and even an empty value in the area.
fn is_data(entry: &Entry<'_>, area_len: usize) -> bool {
    let inside = usize::from(entry.value_offs) + xattr::IBODY_HEADER_LEN <= area_len;
    inside
        && entry.name.strip_prefix(inline::DATA_NAME).is_some_and(|rest| rest.first().is_none_or(|&b| b == 0))
}

/// A value in an inode of its own: the inode must be one for values, and its hash that of the entry.
fn value_inode(cx: &Context<'_>, rec: &Record, entry: &Entry<'_>, tally: &mut Tally, found: &mut Found) {
    let (ino, place) = (entry.value_inum, Place::Inode(rec.ino.0));
    let bad = |kind| cx.found(PASS, place, kind);
    if !cx.incompat(Incompat::EA_INODE) || ino < cx.geo.first_ino() || ino.0 > cx.geo.inodes_count() {
        bad(Kind::XattrValueInode { ino: u64::from(ino.0) });
        return;
    }
    let mut bytes = Vec::new();
    let value = cx.read_inode(ino, &mut bytes).then(|| Record::new(ino, &bytes)).flatten();
    let Some(value) = value else {
        bad(Kind::XattrValueInode { ino: u64::from(ino.0) });
        return;
    };
    if !value.has(InodeFlags::EA_INODE) || value.links() == 0 {
        bad(Kind::XattrValueFlag { ino: u64::from(ino.0) });
        return;
    }
    // The inode keeps the value's hash where others keep their access time.
    let hash = value.raw.i_atime.get();
    let hashes = [false, true].map(|signed| xattr::entry_hash_ea_inode(entry.name, hash, signed));
    if !hashes.contains(&entry.hash) {
        // An older form has the owner's number and generation instead of hash and references, and is not charged.
        let owned = value.raw.i_mtime.get() == rec.ino.0
            && value.raw.i_generation.get() == rec.raw.i_generation.get();
        if owned {
            tally.ea_refs.insert(ino.0, OWNED);
        } else {
            bad(Kind::XattrValueFlag { ino: u64::from(ino.0) });
        }
        return;
    }
    *tally.ea_refs.entry(ino.0).or_default() += 1;
    let block = u64::from(cx.geo.block_size());
    found.quota_space += (u64::from(entry.value_size).div_ceil(block)) * block;
    found.quota_inodes += 1;
}

fn block(cx: &Context<'_>, rec: &Record, tally: &mut Tally, found: &mut Found, buf: &mut Vec<u8>) {
    let pblk = rec.file_acl(cx.incompat(Incompat::BIT64));
    if pblk.0 == 0 {
        return;
    }
    let place = Place::Inode(rec.ino.0);
    if !cx.compat(Compat::EXT_ATTR) {
        cx.found(PASS, place, Kind::XattrBlockWithoutFeature { block: pblk.0 });
        return;
    }
    if !cx.geo.contains(pblk) {
        // In a reserved inode, and in the orphan file, it is a field without a meaning.
        let orphans = cx.compat(Compat::ORPHAN_FILE) && rec.ino.0 == cx.sb.raw().s_orphan_file_inum.get();
        if (rec.ino >= cx.geo.first_ino() && !orphans) || rec.ino == Ino::ROOT {
            cx.found(PASS, place, Kind::XattrBlockIllegal { block: pblk.0 });
        }
        return;
    }
    found.block = true;
    buf.resize(cx.block_size(), 0);
    if !cx.read_block(pblk, buf) {
        cx.found(PASS, place, Kind::XattrBlockCorrupt { block: pblk.0 });
        return;
    }
    // Every inode's own look is needed for what the attributes mean to it; findings are made once a block.
    let first = tally.xattr_blocks.see(cx, pblk, buf);
    let Ok(area) = Area::block(buf) else {
        if first {
            cx.found(PASS, place, Kind::XattrBlockCorrupt { block: pblk.0 });
        }
        return;
    };
    if first {
        if cx.csum.has_metadata() && xattr::verify_block(cx.csum.seed(), pblk, buf).is_err() {
            cx.found(PASS, place, Kind::XattrBlockChecksum { block: pblk.0 });
        }
        entries(cx, rec, &area, tally, found);
    } else {
        again(cx, &area, found);
    }
}

/// A further inode that shares a block whose entries were checked.
fn again(cx: &Context<'_>, area: &Area<'_>, found: &mut Found) {
    let block = u64::from(cx.geo.block_size());
    for entry in area.entries() {
        if entry.value_inum.0 != 0 {
            found.quota_space += (u64::from(entry.value_size).div_ceil(block)) * block;
            found.quota_inodes += 1;
        } else if entry.index == INDEX_ENCRYPTION && entry.name == b"c" {
            found.encryption = Some(entry.value.to_vec());
        }
    }
}

/// The attribute blocks met, with how often; shared by all threads.
#[derive(Default)]
pub(crate) struct BlocksSeen {
    seen: std::sync::Mutex<rustc_hash::FxHashMap<u64, (u32, u32)>>,
}

impl BlocksSeen {
    /// Counts a reference; true for the first one, which also claims the block.
    pub(crate) fn see(&self, cx: &Context<'_>, pblk: Pblk, bytes: &[u8]) -> bool {
        let stored = xattr::BlockHeader::read(bytes).map_or(0, |h| h.refcount);
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let entry = seen.entry(pblk.0).or_insert((0, stored));
        entry.0 += 1;
        if entry.0 == 1 {
            cx.claim(pblk, 1);
        }
        entry.0 == 1
    }

    /// Compares what was counted with what the blocks say.
    pub(crate) fn report(self, cx: &Context<'_>) {
        let mut all: Vec<_> =
            self.seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().collect();
        all.sort_unstable();
        for (block, (should, refcount)) in all {
            if refcount != 0 && refcount != should {
                let (refcount, should) = (u64::from(refcount), u64::from(should));
                cx.found(PASS, Place::Block(block), Kind::XattrRefcount { refcount, should });
            }
        }
    }
}

/// Whether a value is an encryption context (versions 1 and 2).
pub(crate) fn is_encryption_context(value: &[u8]) -> bool {
    matches!((value.first(), value.len()), (Some(1), 28) | (Some(2), 40))
}

/// The inode of a hidden value is named by attributes only.
pub(crate) fn is_value_inode(rec: &Record) -> bool {
    rec.has(InodeFlags::EA_INODE)
}

/// The count of references that a value inode keeps.
pub(crate) fn stored_references(rec: &Record) -> u64 {
    u64::from(rec.raw.i_ctime.get()) << 32 | u64::from(rec.raw.l_i_version.get())
}
