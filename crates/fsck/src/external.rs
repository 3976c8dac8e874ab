//! External journals: a device of its own that begins with a superblock of ext4 (feature `journal_dev`) in the place where a
//! filesystem has one, and in the block after that the journal's.
//!
//! What e2fsck 1.47.0 says of a filesystem with a damaged journal at hand is what is said here (`tests/it/external.rs`).

use crate::context::{Context, Sink};
use crate::finding::{Kind, Pass, Place};
use crate::special::{Log, journal_superblock};
use crate::{Totals, superblock};
use extant_device::BlockDevice;
use extant_format::superblock::{RawSuperblock, SUPERBLOCK_SIZE};
use extant_format::{Compat, Incompat, Superblock};

/// Where the superblock of ext4 is, in bytes.
const SUPERBLOCK_AT: u64 = 1024;
/// `s_nr_users` and `s_users` in the journal's superblock.
const USERS_AT: usize = 0x100;
const MOST_USERS: usize = 48;
const LARGEST_BLOCK: u32 = 65536;

/// The superblock of a journal device; `None` if that is none.
pub(crate) fn superblock_of(dev: &dyn BlockDevice) -> Option<RawSuperblock> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    dev.read_at(SUPERBLOCK_AT, &mut bytes).ok()?;
    let raw = Superblock::raw_from(&bytes).ok()?;
    Superblock::check_magic(&raw).ok()?;
    raw.features().incompat.contains(Incompat::JOURNAL_DEV).then_some(raw)
}

/// Checks the journal of a filesystem that has it on another device.
pub(crate) fn check(cx: &Context<'_>, dev: &dyn BlockDevice) {
    let add = |kind| cx.found(Pass::Superblock, Place::Filesystem, kind);
    let Some(raw) = superblock_of(dev).filter(|raw| Superblock::verify_checksum(raw).is_ok()) else {
        add(Kind::JournalDeviceSuperblock {});
        return;
    };
    if raw.s_uuid != cx.sb.raw().s_journal_uuid {
        add(Kind::JournalDeviceOther {});
        return;
    }
    let has = cx.compat(Compat::HAS_JOURNAL);
    if !has {
        add(Kind::JournalWithoutFeature { ino: 0 });
    }
    let log = Log {
        block_size: cx.geo.block_size(),
        blocks: raw.blocks_count(),
        has_journal: has,
        needs_recovery: cx.incompat(Incompat::RECOVER),
    };
    if let Some(bytes) = read(dev, &log, &add) {
        journal_superblock(&log, &bytes, &add);
        if !users(&bytes).any(|user| user == cx.sb.raw().s_uuid) {
            add(Kind::JournalUserUnlisted {});
        }
    }
}

/// Checks a journal device alone.
pub(crate) fn check_alone(dev: &dyn BlockDevice, raw: &RawSuperblock, sink: &Sink) -> Totals {
    let add = |kind| sink.add(Pass::Superblock, Place::Filesystem, kind);
    add(Kind::JournalDeviceAlone {});
    let block_size = 1024_u32.checked_shl(raw.s_log_block_size.get()).filter(|size| *size <= LARGEST_BLOCK);
    let Some(block_size) = block_size.filter(|_| Superblock::verify_checksum(raw).is_ok()) else {
        add(Kind::JournalDeviceSuperblock {});
        return Totals::default();
    };
    let blocks = raw.blocks_count();
    let there = dev.size() / u64::from(block_size);
    if blocks > there {
        add(Kind::SizeBeyondDevice { blocks, device: there });
    }
    // Whether the log is to be replayed the filesystem says.
    let log = Log { block_size, blocks, has_journal: false, needs_recovery: true };
    if let Some(bytes) = read(dev, &log, &add) {
        journal_superblock(&log, &bytes, &add);
        if superblock::word_be(&bytes, 0x1c) != 0 {
            add(Kind::JournalDeviceNotEmpty {});
        }
    }
    Totals { blocks, blocks_count: blocks, ..Totals::default() }
}

/// The block with the journal's superblock: the one after the superblock of ext4.
fn read(dev: &dyn BlockDevice, log: &Log, add: &impl Fn(Kind)) -> Option<Vec<u8>> {
    let at = (SUPERBLOCK_AT / u64::from(log.block_size) + 1) * u64::from(log.block_size);
    let mut bytes = vec![0; log.block_size as usize];
    if dev.read_at(at, &mut bytes).is_err() {
        add(Kind::JournalSuperblock {});
        return None;
    }
    Some(bytes)
}

/// The filesystems that the journal lists.
fn users(bytes: &[u8]) -> impl Iterator<Item = [u8; 16]> + '_ {
    let count = (superblock::word_be(bytes, 0x40) as usize).min(MOST_USERS);
    bytes.get(USERS_AT..).unwrap_or_default().as_chunks::<16>().0.iter().take(count).copied()
}
