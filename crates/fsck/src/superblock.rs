//! The first part: superblock, descriptors, metadata's own places, multiple-mount protection.

use crate::blocks::{BlockMap, Span, spans};
use crate::context::{Context, Sink};
use crate::finding::{Kind, Pass, Place};
use crate::{Options, Totals};
use extant_device::BlockDevice;
use extant_format::mmp::{Mmp, MmpSeq};
use extant_format::superblock::{RawSuperblock, SUPERBLOCK_SIZE, SbTime, State};
use extant_format::{
    BgFlags, Compat, Corrupt, FormatError, GroupDesc, GroupNr, Incompat, Pblk, RoCompat, Superblock,
};

const PASS: Pass = Pass::Superblock;
/// The only `s_encoding` there is: UTF-8 of Unicode 12.1.
const UTF8_12_1: u16 = 1;
/// The largest descriptor that any tool accepts.
const MAX_DESC_SIZE: u16 = 1024;

/// Reads superblock and descriptors, from a backup if the primary ones are unusable.
pub(crate) fn open<'d>(dev: &'d dyn BlockDevice, options: &Options, sink: &'d Sink) -> Option<Context<'d>> {
    let add = |kind| sink.add(PASS, Place::Filesystem, kind);
    if let Some((block, block_size)) = options.superblock {
        let at = block.checked_mul(u64::from(block_size))?;
        let Some(sb) = read_super(dev, at, sink).filter(|sb| sb.geometry().block_size() == block_size) else {
            add(Kind::SuperblockInvalid {});
            return None;
        };
        let group = group_of(&sb, block);
        return load(dev, sb, group, sink, options);
    }
    let primary = read_super(dev, 1024, sink);
    if let Some(sb) = primary {
        if descriptors_look_sane(dev, &sb, GroupNr(0)) {
            return load(dev, sb, GroupNr(0), sink, options);
        }
        if let Some((block, backup)) = find_own_backup(dev, sink) {
            add(Kind::BackupUsed { block });
            let group = group_of(&backup, block);
            return load(dev, backup, group, sink, options);
        }
        return load(dev, sb, GroupNr(0), sink, options);
    }
    if primary_is_refused(dev) {
        add(Kind::PrimaryRefused {});
    }
    if sink.is_fatal() {
        return None;
    }
    if let Some((block, sb)) = find_backup(dev, sink) {
        add(Kind::BackupUsed { block });
        let group = group_of(&sb, block);
        return load(dev, sb, group, sink, options);
    }
    if let Some((block, sb)) = find_own_backup(dev, sink).filter(|_| only_tables_are_wrong(dev)) {
        add(Kind::BackupUsed { block });
        let group = group_of(&sb, block);
        return load(dev, sb, group, sink, options);
    }
    match read_leniently(dev, sink) {
        Some((_, u32::MAX)) => {
            add(Kind::SuperblockField { offset: 0x104, value: u64::from(u32::MAX) });
            None
        }
        Some((_, 1..)) if find_own_backup(dev, sink).is_some() => {
            let (block, sb) = find_own_backup(dev, sink)?;
            add(Kind::BackupUsed { block });
            let group = group_of(&sb, block);
            load(dev, sb, group, sink, options)
        }
        Some((sb, extra)) => {
            let cx = load(dev, sb, GroupNr(0), sink, options)?;
            Some(Context { extra_desc_blocks: extra, ..cx })
        }
        None => {
            add(if has_magic(dev) { Kind::SuperblockInvalid {} } else { Kind::NoFilesystem {} });
            None
        }
    }
}

/// The group whose superblock lies in that block; its descriptors go with it.
fn group_of(sb: &Superblock, block: u64) -> GroupNr {
    sb.geometry().group_of_block(Pblk(block)).map_or(GroupNr(0), |(group, _)| group)
}

/// A block of the descriptor table as kept in `group`; the primary one where that group keeps none.
fn desc_block(sb: &Superblock, index: u32, group: GroupNr) -> Option<Pblk> {
    let geo = sb.geometry();
    if group.0 == 0 {
        return geo.desc_block(index);
    }
    geo.backup_desc_block(index, group).or_else(|| geo.desc_block(index))
}

fn read_bytes(dev: &dyn BlockDevice, at: u64) -> Option<[u8; SUPERBLOCK_SIZE]> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    dev.read_at(at, &mut bytes).ok()?;
    Some(bytes)
}

/// A big-endian word of a journal's superblock; 0 past the end.
pub(crate) fn word_be(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn has_magic(dev: &dyn BlockDevice) -> bool {
    read_bytes(dev, 1024)
        .and_then(|b| Superblock::raw_from(&b).ok())
        .is_some_and(|raw| Superblock::check_magic(&raw).is_ok())
}

/// Whether the primary superblock opens, but says what no filesystem can: then e2fsck asks for a backup by name and ends.
fn primary_is_refused(dev: &dyn BlockDevice) -> bool {
    let raw = read_bytes(dev, 1024).and_then(|b| Superblock::raw_from(&b).ok());
    let Some(raw) = raw.filter(|raw| Superblock::check_magic(raw).is_ok()) else {
        return false;
    };
    let summed = raw.features().ro_compat.contains(RoCompat::METADATA_CSUM);
    if raw.s_rev_level.get() > 1 || summed && raw.s_checksum_type != 1 {
        return true;
    }
    let Err(FormatError::Corrupt { kind: Corrupt::Range { field, value, .. }, .. }) =
        Superblock::from_raw(raw)
    else {
        return false;
    };
    // A first block beyond the end is no superblock at all.
    field == "s_first_ino" || field == "s_first_data_block" && value < raw.blocks_count()
}

/// A superblock that is right in itself, but for fields that nobody needs to find their way. Unknown features end the
/// check.
fn read_super(dev: &dyn BlockDevice, at: u64, sink: &Sink) -> Option<Superblock> {
    let raw = Superblock::raw_from(&read_bytes(dev, at)?).ok()?;
    Superblock::check_magic(&raw).ok()?;
    Superblock::verify_checksum(&raw).ok()?;
    if !sizes_agree(&raw) {
        return None;
    }
    let sb = mended(raw, sink, soft)?;
    // Shared blocks are no matter for a checker, nor that nobody may write.
    let harmless = RoCompat::SHARED_BLOCKS | RoCompat::READONLY;
    let unknown = sb.features().ro_compat.unsupported().difference(harmless);
    let compat = sb.features().compat.unsupported().difference(Compat::IMAGIC_INODES);
    if !compat.is_empty() {
        let compat = u64::from(compat.bits());
        sink.add(PASS, Place::Filesystem, Kind::FeatureUnknownCompat { compat });
        return None;
    }
    if !unknown.is_empty() {
        let ro_compat = u64::from(unknown.bits());
        sink.add(PASS, Place::Filesystem, Kind::FeatureUnknownRo { ro_compat });
        return None;
    }
    Some(sb)
}

/// Checks a superblock, changing fields with `mend` as long as that helps; what was changed is reported when it did.
fn mended(
    mut raw: RawSuperblock,
    sink: &Sink,
    mend: impl Fn(&mut RawSuperblock, Corrupt) -> Option<Kind>,
) -> Option<Superblock> {
    let mut findings = Vec::new();
    for _ in 0..12 {
        let error = match Superblock::from_raw(raw) {
            Ok(sb) => {
                findings.into_iter().for_each(|kind| sink.add(PASS, Place::Filesystem, kind));
                return Some(sb);
            }
            Err(FormatError::Incompatible(bits)) => {
                let incompat = u64::from(bits.bits());
                sink.add(PASS, Place::Filesystem, Kind::FeatureUnknown { incompat });
                return None;
            }
            Err(FormatError::Corrupt { kind, .. }) => kind,
            Err(_) => return None,
        };
        findings.push(mend(&mut raw, error)?);
    }
    None
}

/// Without bigalloc clusters are blocks, and the fields say so; the size of flex groups is a number of bits.
fn sizes_agree(raw: &RawSuperblock) -> bool {
    let flex = raw.s_log_groups_per_flex < 32;
    flex && raw.features().ro_compat.contains(RoCompat::BIGALLOC)
        || flex
            && raw.s_clusters_per_group == raw.s_blocks_per_group
            && raw.s_log_cluster_size == raw.s_log_block_size
}

/// The places where mke2fs puts the first backup for each block size.
fn find_backup(dev: &dyn BlockDevice, sink: &Sink) -> Option<(u64, Superblock)> {
    for log in 10..=16_u32 {
        let block_size = 1_u64 << log;
        let first = u64::from(log == 10);
        let at = (block_size * 8 + first) << log;
        if at >= dev.size() || sink.is_fatal() {
            continue;
        }
        let Some(sb) = read_super(dev, at, sink) else {
            continue;
        };
        let block = at >> log;
        let group = group_of(&sb, block);
        if u64::from(sb.geometry().block_size()) == block_size && descriptors_look_sane(dev, &sb, group) {
            return Some((block, sb));
        }
    }
    None
}

/// With a wrong descriptor size, number of inodes or of reserved descriptor blocks the superblock still opens (that of inodes
/// only if mke2fs's places for a backup have none), but its descriptors make no sense: then the backup in the place that
/// the superblock names is looked for.
fn only_tables_are_wrong(dev: &dyn BlockDevice) -> bool {
    let raw = read_bytes(dev, 1024).and_then(|b| Superblock::raw_from(&b).ok());
    let Some(raw) = raw.filter(|raw| sizes_agree(raw) && raw.s_desc_size.get() <= MAX_DESC_SIZE) else {
        return false;
    };
    let mut mended = raw;
    if let Err(FormatError::Corrupt {
        kind: Corrupt::Mismatch { field: "s_inodes_count", expected, .. },
        ..
    }) = Superblock::from_raw(raw)
    {
        mended.s_inodes_count.set(expected as u32);
        // Where they do make sense the number is an error, and no reason to look further; so it is where they cannot be read.
        return Superblock::from_raw(mended).is_ok_and(|sb| {
            let table = u64::from(sb.geometry().desc_blocks()) << sb.geometry().log_block_size();
            table < dev.size() && !descriptors_look_sane(dev, &sb, GroupNr(0))
        });
    }
    // Of a size that cannot be the opener says so at once.
    if !fits_device(dev, &raw) {
        return false;
    }
    mended.s_desc_size.set(64);
    if Superblock::from_raw(mended).is_ok() {
        return true;
    }
    mended.s_reserved_gdt_blocks.set(0);
    let mut features = mended.features();
    features.incompat.remove(Incompat::MMP);
    mended.set_features(features);
    Superblock::from_raw(mended).is_ok()
}

fn fits_device(dev: &dyn BlockDevice, raw: &RawSuperblock) -> bool {
    let log = raw.s_log_block_size.get().min(6) + 10;
    let backup = u64::from(raw.s_first_data_block.get()) + u64::from(raw.s_blocks_per_group.get());
    backup < raw.blocks_count() && raw.blocks_count() <= dev.size() >> log
}

/// The backup in group 1, where the primary superblock says that group is.
fn find_own_backup(dev: &dyn BlockDevice, sink: &Sink) -> Option<(u64, Superblock)> {
    let raw = Superblock::raw_from(&read_bytes(dev, 1024)?).ok()?;
    Superblock::check_magic(&raw).ok()?;
    let log = raw.s_log_block_size.get().checked_add(10).filter(|l| *l <= 16)?;
    let block = u64::from(raw.s_first_data_block.get()) + u64::from(raw.s_blocks_per_group.get());
    let sb = read_super(dev, block << log, sink)?;
    let right =
        sb.geometry().log_block_size() == log && descriptors_look_sane(dev, &sb, group_of(&sb, block));
    right.then_some((block, sb))
}

/// The primary superblock with what can be worked round, and the number of descriptor blocks in front of the first
/// meta group beyond those there are.
fn read_leniently(dev: &dyn BlockDevice, sink: &Sink) -> Option<(Superblock, u32)> {
    let add = |kind| sink.add(PASS, Place::Filesystem, kind);
    let raw = Superblock::raw_from(&read_bytes(dev, 1024)?).ok()?;
    Superblock::check_magic(&raw).ok()?;
    let extra = std::cell::Cell::new(0);
    let sb = mended(raw, sink, |raw, error| match error {
        Corrupt::Range { field: "s_first_meta_bg", value, max, .. } => {
            raw.s_first_meta_bg.set(max as u32);
            let none = value == u64::from(u32::MAX);
            extra.set(if none { u32::MAX } else { (value - max).min(256) as u32 });
            Some(Kind::FirstMetaBg { value, max })
        }
        // The only descriptor is where it is, however small it is said to be.
        Corrupt::Range { field: "s_desc_size", value, .. }
            if (1..64).contains(&value) && is_one_group(raw) =>
        {
            raw.s_desc_size.set(64);
            Some(Kind::DescSizeSmall { value })
        }
        error => soft(raw, error),
    })?;
    if Superblock::verify_checksum(&raw).is_err() {
        let (stored, computed) = (u64::from(raw.s_checksum.get()), u64::from(raw.computed_checksum()));
        add(Kind::SuperblockChecksum { stored, computed });
    }
    if !sizes_agree(&raw) {
        add(Kind::SuperblockField { offset: 0x24, value: u64::from(raw.s_clusters_per_group.get()) });
    }
    Some((sb, extra.get()))
}

fn is_one_group(raw: &RawSuperblock) -> bool {
    let first = u64::from(raw.s_first_data_block.get());
    raw.blocks_count().saturating_sub(first) <= u64::from(raw.s_blocks_per_group.get())
}

/// Makes a copy of the superblock usable where only a side value is wrong.
fn soft(raw: &mut RawSuperblock, error: Corrupt) -> Option<Kind> {
    let Corrupt::Range { field, value, max, .. } = error else {
        return None;
    };
    let quota = if raw.features().ro_compat.contains(RoCompat::QUOTA) {
        Kind::QuotaInode { ino: value }
    } else {
        Kind::QuotaInodeHidden { ino: value }
    };
    Some(match field {
        "s_free_blocks_count" => {
            raw.set_free_blocks_count(0);
            Kind::FreeBlocks { stored: value, counted: 0 }
        }
        "s_r_blocks_count" => {
            raw.set_r_blocks_count(0);
            Kind::ReservedBlocks { value, max }
        }
        "s_usr_quota_inum" => {
            raw.s_usr_quota_inum.set(0);
            quota
        }
        "s_grp_quota_inum" => {
            raw.s_grp_quota_inum.set(0);
            quota
        }
        "s_prj_quota_inum" => {
            raw.s_prj_quota_inum.set(0);
            quota
        }
        "s_journal_inum" => {
            raw.s_journal_inum.set(0);
            Kind::JournalInode { ino: value }
        }
        "s_orphan_file_inum" => {
            raw.s_orphan_file_inum.set(0);
            let used = raw.features().compat.contains(Compat::ORPHAN_FILE);
            let ino = value;
            if used { Kind::OrphanFileInode { ino } } else { Kind::OrphanFileHidden { ino } }
        }
        _ => return None,
    })
}

/// Whether every group's bitmaps and table lie inside the filesystem, as the opener of a filesystem demands.
fn descriptors_look_sane(dev: &dyn BlockDevice, sb: &Superblock, kept_in: GroupNr) -> bool {
    let geo = sb.geometry();
    let mut block = vec![0; geo.block_size() as usize];
    let per = geo.desc_per_block();
    let mut places: Vec<(u64, u64)> = Vec::new();
    for index in 0..geo.desc_blocks() {
        let Some(at) = desc_block(sb, index, kept_in) else {
            return false;
        };
        if at.0.checked_mul(block.len() as u64).is_none_or(|o| dev.read_at(o, &mut block).is_err()) {
            return false;
        }
        for n in 0..per {
            let group = index * per + n;
            if group >= geo.groups() {
                break;
            }
            let bytes = &block[(n * u32::from(geo.desc_size())) as usize..];
            let Ok(desc) = GroupDesc::decode(GroupNr(group), bytes, geo.desc_size()) else {
                return false;
            };
            let table = u64::from(geo.itable_blocks());
            let own = [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)];
            let first = geo.group_first_block(GroupNr(group)).0;
            let last = first + u64::from(geo.blocks_in_group(GroupNr(group)));
            // Without flexible groups they lie in the group itself.
            let inside = |block: Pblk, len: u64| block.0 >= first && block.0.saturating_add(len) <= last;
            let sane =
                |block, len| geo.contains_range(block, len) && (geo.has_flex_bg() || inside(block, len));
            if !own.into_iter().all(|(block, len)| sane(block, len)) {
                return false;
            }
            let group = GroupNr(group);
            let base = geo.base_meta_blocks(group).min(geo.blocks_in_group(group));
            places.push((geo.group_first_block(group).0, u64::from(base)));
            places.push((desc.block_bitmap.0, 1));
            places.push((desc.inode_bitmap.0, 1));
            places.push((desc.inode_table.0, u64::from(geo.itable_blocks())));
        }
    }
    places.retain(|p| p.1 > 0);
    places.sort_unstable();
    places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0)
}

fn load<'d>(
    dev: &'d dyn BlockDevice,
    sb: Superblock,
    kept_in: GroupNr,
    sink: &'d Sink,
    options: &Options,
) -> Option<Context<'d>> {
    let geo = *sb.geometry();
    let add = |kind| sink.add(PASS, Place::Filesystem, kind);
    let device = dev.size() >> geo.log_block_size();
    if geo.blocks_count() > device {
        add(Kind::SizeBeyondDevice { blocks: geo.blocks_count(), device });
    }
    // Descriptors must be readable, so their number is bounded by the device's size.
    let bytes = u64::from(geo.desc_blocks()) << geo.log_block_size();
    if bytes > dev.size() {
        add(Kind::DescriptorUnreadable { block: device });
        return None;
    }
    let mut descs = Vec::with_capacity(geo.groups() as usize);
    let mut in_tables = Vec::with_capacity(geo.groups() as usize);
    let mut block = vec![0; geo.block_size() as usize];
    let csum = *sb.csum();
    for index in 0..geo.desc_blocks() {
        let at = desc_block(&sb, index, kept_in)?;
        let offset = at.0.checked_mul(block.len() as u64);
        if offset.is_none_or(|o| dev.read_at(o, &mut block).is_err()) {
            add(Kind::DescriptorUnreadable { block: at.0 });
            return None;
        }
        for n in 0..geo.desc_per_block().min(geo.groups() - index * geo.desc_per_block()) {
            let group = GroupNr(index * geo.desc_per_block() + n);
            let bytes = &block[(n * u32::from(geo.desc_size())) as usize..];
            let mut desc = GroupDesc::decode(group, bytes, geo.desc_size()).ok()?;
            let verdict = desc.verify_checksum(group, bytes, geo.desc_size(), &csum);
            if let Err(FormatError::Checksum { stored, computed, .. }) = verdict {
                let (stored, computed) = (u64::from(stored), u64::from(computed));
                sink.add(PASS, Place::Group(group.0), Kind::DescriptorChecksum { stored, computed });
            }
            // What a backup or a bad descriptor says was never initialised may have been since: all of it counts. The
            // tables' scan is bounded by the primary descriptors as they are.
            let lazy = sb.features().has_group_desc_csum();
            let from_backup = kept_in.0 != 0;
            in_tables.push(match lazy && !from_backup {
                true => inodes_in_use(&desc, geo.inodes_per_group(), verdict.is_err()),
                false => geo.inodes_per_group(),
            });
            if lazy && (from_backup || verdict.is_err()) {
                desc.flags.remove(BgFlags::BLOCK_UNINIT.union(BgFlags::INODE_UNINIT));
                desc.itable_unused = 0;
            }
            descs.push(desc);
        }
    }
    let raw = sb.raw();
    let small = |t: u32| t != 0 && t < raw.s_inodes_count.get();
    let tiny_times = [raw.s_wtime.get(), raw.s_mtime.get(), raw.s_mkfs_time.get()].into_iter().any(small);
    Some(Context {
        dev,
        claims: BlockMap::new(&geo),
        shared: BlockMap::new(&geo),
        metadata: BlockMap::new(&geo),
        readable: vec![true; descs.len()],
        in_tables,
        features: sb.features(),
        low_dtime: if tiny_times { 0 } else { raw.s_inodes_count.get() },
        descs,
        geo,
        csum,
        sb,
        sink,
        threads: options.threads,
        journal: None,
        extra_desc_blocks: 0,
        entered: Default::default(),
    })
}

/// Inodes of a group that may be in use by its descriptor; of a count that cannot be, all, or none if its checksum is wrong
/// as well.
fn inodes_in_use(desc: &GroupDesc, per_group: u32, bad: bool) -> u32 {
    if desc.flags.contains(BgFlags::INODE_UNINIT) {
        return 0;
    }
    per_group.checked_sub(desc.itable_unused).unwrap_or(if bad { 0 } else { per_group })
}

/// Checks the fields of the superblock and of the descriptors, and claims what metadata itself takes.
pub(crate) fn check(cx: &mut Context<'_>) {
    if cx.incompat(Incompat::CASEFOLD) && cx.sb.raw().s_encoding.get() != UTF8_12_1 {
        let encoding = u64::from(cx.sb.raw().s_encoding.get());
        cx.found(PASS, Place::Filesystem, Kind::EncodingUnknown { encoding });
        return;
    }
    fields(cx);
    state(cx);
    descriptors(cx);
    claim_metadata(cx);
    mmp(cx);
}

/// What the fields of the superblock count, unless one of them asks for a check.
pub(crate) fn says_clean(cx: &Context<'_>, now: u64) -> Option<Totals> {
    let (raw, state) = (cx.sb.raw(), cx.sb.state());
    let (inodes, free_inodes) = (u64::from(cx.geo.inodes_count()), u64::from(raw.s_free_inodes_count.get()));
    // In blocks, with clusters too.
    let free = raw.free_blocks_count();
    let (mounts, max) = cx.sb.mount_counts();
    let (last, interval) = (raw.time(SbTime::LastCheck), u64::from(raw.s_checkinterval.get()));
    // One in the future is no check.
    let too_old = interval != 0 && now.checked_sub(last).is_none_or(|age| age >= interval);
    let too_often = max > 0 && i32::from(mounts) >= i32::from(max);
    let elsewhere = cx.compat(Compat::HAS_JOURNAL) && raw.s_journal_inum.get() == 0 && cx.journal.is_none();
    let asks =
        !state.contains(State::VALID) || state.contains(State::ERROR) || too_old || too_often || elsewhere;
    (!asks).then_some(Totals {
        inodes: inodes.checked_sub(free_inodes)?,
        inodes_count: inodes,
        blocks: cx.geo.blocks_count().checked_sub(free)?,
        blocks_count: cx.geo.blocks_count(),
        directories: 0,
    })
}

fn fields(cx: &Context<'_>) {
    let raw = cx.sb.raw();
    let add = |kind| cx.found(PASS, Place::Filesystem, kind);
    let max = cx.geo.blocks_count() / 2;
    if raw.r_blocks_count() > max {
        add(Kind::ReservedBlocks { value: raw.r_blocks_count(), max });
    }
    if raw.s_rev_level.get() == 0 && !cx.features.is_empty() {
        add(Kind::FeaturesOnRevision0 {});
    }
    let desc_size = raw.s_desc_size.get();
    if desc_size > MAX_DESC_SIZE || (desc_size != 0 && !desc_size.is_power_of_two()) {
        add(Kind::SuperblockField { offset: 0xfe, value: u64::from(desc_size) });
    }
    if cx.ro_compat(RoCompat::ORPHAN_PRESENT) && !cx.compat(Compat::ORPHAN_FILE) {
        add(Kind::OrphanPresentWithoutFile {});
    }
    if cx.compat(Compat::RESIZE_INODE) && cx.incompat(Incompat::META_BG) {
        add(Kind::ResizeInodeAndMetaBg {});
    }
    if cx.ro_compat(RoCompat::GDT_CSUM) && cx.ro_compat(RoCompat::METADATA_CSUM) {
        add(Kind::GdtAndMetadataCsum {});
    }
    if !cx.compat(Compat::RESIZE_INODE) && raw.s_reserved_gdt_blocks.get() != 0 {
        add(Kind::ReservedGdtUnused { blocks: u64::from(raw.s_reserved_gdt_blocks.get()) });
    }
    if cx.geo.inodes_per_group() < cx.geo.inodes_per_block() || !cx.geo.inodes_per_group().is_multiple_of(8) {
        add(Kind::SuperblockField { offset: 0x28, value: u64::from(cx.geo.inodes_per_group()) });
    }
}

fn state(cx: &Context<'_>) {
    let add = |kind| cx.found(PASS, Place::Filesystem, kind);
    let state = cx.sb.state();
    if !state.contains(State::VALID) {
        add(Kind::NotUnmounted {});
    }
    if cx.incompat(Incompat::RECOVER) {
        add(Kind::NeedsRecovery {});
    }
}

fn descriptors(cx: &mut Context<'_>) {
    let uninit_known = cx.features.has_group_desc_csum();
    for group in cx.geo.group_numbers() {
        let desc = cx.descs[group.0 as usize];
        let add = |kind| cx.found(PASS, Place::Group(group.0), kind);
        let inside = |block: Pblk, len: u32| {
            let (first, last) = if cx.geo.has_flex_bg() {
                (u64::from(cx.geo.first_data_block()), cx.geo.blocks_count())
            } else {
                let first = cx.geo.group_first_block(group).0;
                (first, first + u64::from(cx.geo.blocks_in_group(group)))
            };
            block.0 >= first && block.0.checked_add(u64::from(len)).is_some_and(|end| end <= last)
        };
        if !inside(desc.block_bitmap, 1) {
            add(Kind::BlockBitmapOutside { block: desc.block_bitmap.0 });
        }
        if !inside(desc.inode_bitmap, 1) {
            add(Kind::InodeBitmapOutside { block: desc.inode_bitmap.0 });
        }
        let table = cx.geo.itable_blocks();
        if !inside(desc.inode_table, table) {
            add(Kind::InodeTableOutside { block: desc.inode_table.0 });
        }
        let uninit = BgFlags::INODE_UNINIT.union(BgFlags::BLOCK_UNINIT);
        if !uninit_known && (desc.flags.intersects(uninit) || desc.itable_unused != 0) {
            add(Kind::UninitWithoutFeature {});
        }
        if uninit_known && desc.itable_unused > cx.geo.inodes_per_group() {
            let (value, max) = (u64::from(desc.itable_unused), u64::from(cx.geo.inodes_per_group()));
            add(Kind::ItableUnused { value, max });
        }
        let last = group.0 + 1 == cx.geo.groups();
        if last && desc.flags.contains(BgFlags::BLOCK_UNINIT) {
            add(Kind::LastBlockUninit {});
        }
        cx.readable[group.0 as usize] = cx.geo.contains_range(desc.inode_table, u64::from(table));
    }
}

fn claim_metadata(cx: &Context<'_>) {
    let own = |start: Pblk, len: u64| {
        for span in spans(&cx.geo, start, len) {
            cx.claims.claim(span, None);
            cx.metadata.claim(span, None);
        }
    };
    for group in cx.geo.group_numbers() {
        let extra = if cx.geo.has_super(group) { cx.extra_desc_blocks } else { 0 };
        let count =
            u64::from(cx.geo.base_meta_blocks(group) + extra).min(u64::from(cx.geo.blocks_in_group(group)));
        own(cx.geo.group_first_block(group), count);
    }
    if cx.incompat(Incompat::MMP) {
        let block = Pblk(cx.sb.raw().s_mmp_block.get());
        if cx.geo.contains(block) {
            own(block, 1);
        }
    }
    for (group, desc) in cx.descs.iter().enumerate() {
        let table = u64::from(cx.geo.itable_blocks());
        for (start, len) in [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)] {
            if cx.geo.contains_range(start, len) {
                claim_tables(cx, group as u32, start, len);
            }
        }
    }
}

/// Bitmaps and tables of several groups share clusters in bigalloc filesystems; blocks they never share.
fn claim_tables(cx: &Context<'_>, group: u32, start: Pblk, len: u64) {
    let bigalloc = cx.geo.has_bigalloc();
    for span in spans(&cx.geo, start, len) {
        let collision = cx.claims.claim(span, None);
        cx.metadata.claim(span, None);
        if let (Some(bit), false) = (collision, bigalloc) {
            let block = cx.geo.block_of_bit(GroupNr(span.group), bit).0;
            cx.found(PASS, Place::Group(group), Kind::MetadataCollision { block });
            cx.shared.claim(Span { group: span.group, first: bit, count: 1 }, None);
        }
    }
}

fn mmp(cx: &Context<'_>) {
    if !cx.incompat(Incompat::MMP) {
        return;
    }
    let block = Pblk(cx.sb.raw().s_mmp_block.get());
    let add = |kind| cx.found(PASS, Place::Filesystem, kind);
    let mut bytes = vec![0; cx.block_size()];
    if !cx.geo.contains(block) || !cx.read_block(block, &mut bytes) {
        add(Kind::MmpBlock { block: block.0 });
        return;
    }
    match Mmp::read(block, &bytes, &cx.csum) {
        Ok(mmp) => match mmp.seq {
            MmpSeq::Clean => {}
            seq => add(Kind::MmpInUse { sequence: u64::from(seq.raw()) }),
        },
        Err(FormatError::Checksum { .. }) => add(Kind::MmpChecksum {}),
        Err(FormatError::Corrupt { kind: Corrupt::Magic { .. }, .. }) => add(Kind::MmpMagic {}),
        Err(_) => add(Kind::MmpInUse { sequence: 0 }),
    }
}
