//! Bitmaps and counts against what was found.

use crate::context::Context;
use crate::finding::{Kind, Pass, Place};
use crate::inodes::{Info, Inodes};
use extant_format::{BgFlags, GroupDesc, GroupNr, bitmap};
use std::sync::atomic::{AtomicU64, Ordering};

const PASS: Pass = Pass::Summary;

/// Runs the pass over all groups.
pub(crate) fn check(cx: &Context<'_>, inodes: &Inodes) {
    let (free_blocks, free_inodes) = (AtomicU64::new(0), AtomicU64::new(0));
    let next = AtomicU64::new(0);
    let worker = || {
        let mut block = vec![0; cx.block_size()];
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= u64::from(cx.geo.groups()) {
                return;
            }
            let group = GroupNr(group as u32);
            free_blocks.fetch_add(blocks(cx, group, &mut block), Ordering::Relaxed);
            free_inodes.fetch_add(inode_bits(cx, inodes, group, &mut block), Ordering::Relaxed);
        }
    };
    if cx.threads <= 1 {
        worker();
    } else {
        std::thread::scope(|scope| (0..cx.threads).for_each(|_| drop(scope.spawn(worker))));
    }
    let raw = cx.sb.raw();
    let add = |kind| cx.found(PASS, Place::Filesystem, kind);
    let counted = free_blocks.into_inner() << cx.geo.log_cluster_ratio();
    if raw.free_blocks_count() != counted {
        add(Kind::FreeBlocks { stored: raw.free_blocks_count(), counted });
    }
    let counted = free_inodes.into_inner();
    let stored = u64::from(raw.s_free_inodes_count.get());
    if stored != counted {
        add(Kind::FreeInodes { stored, counted });
    }
}

fn uninit(cx: &Context<'_>, desc: &GroupDesc, flag: BgFlags) -> bool {
    cx.features.has_group_desc_csum() && desc.flags.contains(flag)
}

/// Words of a bitmap: bits that differ, as runs.
fn runs(count: u32, differs: impl Fn(u32) -> u64, mut each: impl FnMut(u32, u32)) {
    let mut open: Option<u32> = None;
    for word in 0..count.div_ceil(64) {
        let bits = differs(word);
        if bits == 0 && open.is_none() {
            continue;
        }
        for bit in 0..64 {
            let at = word * 64 + bit;
            let set = at < count && bits & (1 << bit) != 0;
            match (set, open) {
                (true, None) => open = Some(at),
                (false, Some(first)) => {
                    each(first, at - first);
                    open = None;
                }
                _ => {}
            }
        }
    }
    if let Some(first) = open {
        each(first, count - first);
    }
}

fn word_at(bytes: &[u8], word: u32) -> u64 {
    let at = word as usize * 8;
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The block bitmap of a group; returns the free clusters in it.
fn blocks(cx: &Context<'_>, group: GroupNr, block: &mut [u8]) -> u64 {
    let desc = &cx.descs[group.0 as usize];
    let count = cx.geo.clusters_in_group(group);
    let add = |kind| cx.found(PASS, Place::Group(group.0), kind);
    let load = |map: &crate::blocks::BlockMap, word: u32| {
        map.group(group).and_then(|w| w.get(word as usize)).map_or(0, |w| w.load(Ordering::Relaxed))
    };
    let free = if uninit(cx, desc, BgFlags::BLOCK_UNINIT) {
        let mut used = 0;
        let extra = |w| load(&cx.claims, w) & !load(&cx.metadata, w);
        runs(count, extra, |_, n| used += u64::from(n));
        if used > 0 {
            add(Kind::BlockUninitInUse { count: used });
        }
        let taken: u32 = (0..count.div_ceil(64)).map(|w| load(&cx.metadata, w).count_ones()).sum();
        count.saturating_sub(taken)
    } else {
        if !cx.geo.contains(desc.block_bitmap) || !cx.read_block(desc.block_bitmap, block) {
            add(Kind::BlockBitmapUnreadable { block: desc.block_bitmap.0 });
            return 0;
        }
        if desc.verify_block_bitmap(group, block, &cx.geo, &cx.csum).is_err() {
            add(Kind::BlockBitmapChecksum {});
        }
        if !bitmap::is_padded(block, count) {
            add(Kind::BlockBitmapPadding {});
        }
        let place = |bit| cx.geo.block_of_bit(group, bit).0;
        runs(
            count,
            |w| load(&cx.claims, w) & !word_at(block, w),
            |bit, n| {
                add(Kind::BlockMarkedFree { block: place(bit), count: u64::from(n) });
            },
        );
        runs(
            count,
            |w| !load(&cx.claims, w) & word_at(block, w),
            |bit, n| {
                add(Kind::BlockMarkedUsed { block: place(bit), count: u64::from(n) });
            },
        );
        bitmap::count_zeros(block, 0, count)
    };
    if desc.free_clusters != free {
        add(Kind::GroupFreeBlocks { stored: u64::from(desc.free_clusters), counted: u64::from(free) });
    }
    u64::from(free)
}

/// The inode bitmap of a group; returns the free inodes in it.
fn inode_bits(cx: &Context<'_>, inodes: &Inodes, group: GroupNr, block: &mut [u8]) -> u64 {
    let desc = &cx.descs[group.0 as usize];
    let count = cx.geo.inodes_per_group();
    let add = |kind| cx.found(PASS, Place::Group(group.0), kind);
    let infos: &[Info] = inodes.groups.get(group.0 as usize).map_or(&[], |g| g);
    let used = |word: u32| {
        let part = infos.iter().skip(word as usize * 64).take(64).enumerate();
        part.fold(0_u64, |bits, (n, info)| bits | u64::from(info.is(Info::USED)) << n)
    };
    let free = if uninit(cx, desc, BgFlags::INODE_UNINIT) {
        count
    } else {
        if !cx.geo.contains(desc.inode_bitmap) || !cx.read_block(desc.inode_bitmap, block) {
            add(Kind::InodeBitmapUnreadable { block: desc.inode_bitmap.0 });
            return 0;
        }
        if desc.verify_inode_bitmap(group, block, &cx.geo, &cx.csum).is_err() {
            add(Kind::InodeBitmapChecksum {});
        }
        if !bitmap::is_padded(block, count) {
            add(Kind::InodeBitmapPadding {});
        }
        let place = |bit| u64::from(cx.geo.ino_of(group, bit).0);
        runs(
            count,
            |w| used(w) & !word_at(block, w),
            |bit, n| {
                add(Kind::InodeMarkedFree { ino: place(bit), count: u64::from(n) });
            },
        );
        runs(
            count,
            |w| !used(w) & word_at(block, w),
            |bit, n| {
                add(Kind::InodeMarkedUsed { ino: place(bit), count: u64::from(n) });
            },
        );
        bitmap::count_zeros(block, 0, count)
    };
    if desc.free_inodes != free {
        add(Kind::GroupFreeInodes { stored: u64::from(desc.free_inodes), counted: u64::from(free) });
    }
    let dirs = infos.iter().filter(|i| i.kind == 2).count() as u64;
    if u64::from(desc.used_dirs) != dirs {
        add(Kind::GroupDirectories { stored: u64::from(desc.used_dirs), counted: dirs });
    }
    u64::from(free)
}
