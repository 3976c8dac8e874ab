//! The second pass: revoke records, and for each block the copy that counts.

use extant_format::Tid;
use extant_format::jbd2::{BlockType, Header, LogFormat, MAGIC, Superblock, TagFlags};
use rustc_hash::{FxHashMap, FxHashSet};

use super::reader::LogReader;
use super::scan::Scanned;
use crate::{Error, Result};

/// The copy of a block that recovery writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Winner {
    pub(super) pblk: u64,
    /// Where the copy is in the journal.
    at: u32,
    tid: Tid,
    escaped: bool,
    checksum: u32,
}

impl Winner {
    /// The block as it belongs on the device.
    pub(super) fn content(&self, reader: &mut LogReader<'_>) -> Result<Vec<u8>> {
        let mut bytes = reader.block(self.at)?.to_vec();
        if self.escaped {
            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(bytes)
    }
}

pub(super) struct Collected {
    pub(super) winners: Vec<Winner>,
    pub(super) revoked: u64,
}

/// Walks the transactions that the scan accepted.
pub(super) fn collect(
    reader: &mut LogReader<'_>,
    format: &LogFormat,
    sb: &Superblock,
    scanned: &Scanned,
) -> Result<Collected> {
    // Only what the log has a copy of can be revoked: a log may be full of records, each much shorter than what it would cost to
    // remember it.
    let mut copied: FxHashSet<u64> = FxHashSet::default();
    walk(reader, sb, scanned, format, |_, _, block, kind| {
        if kind == BlockType::Descriptor {
            copied.extend(format.tags(block).map(|tag| tag.pblk.0));
        }
    })?;
    let mut revokes: FxHashMap<u64, Tid> = FxHashMap::default();
    walk(reader, sb, scanned, format, |tid, _, block, kind| {
        if kind == BlockType::Revoke {
            for pblk in format.revokes(block).into_iter().flatten().filter(|pblk| copied.contains(&pblk.0)) {
                let latest = revokes.entry(pblk.0).or_insert(tid);
                if tid.is_after(*latest) {
                    *latest = tid;
                }
            }
        }
    })?;
    drop(copied);
    let mut winners: FxHashMap<u64, Winner> = FxHashMap::default();
    let mut revoked = 0;
    let (first, size) = (sb.first(), u64::from(reader.size()));
    walk(reader, sb, scanned, format, |tid, at, block, kind| {
        if kind != BlockType::Descriptor {
            return;
        }
        for (n, tag) in format.tags(block).enumerate() {
            if revokes.get(&tag.pblk.0).is_some_and(|by| !tid.is_after(*by)) {
                revoked += 1;
                continue;
            }
            let place = (u64::from(at - first) + n as u64 + 1) % size;
            let winner = Winner {
                pblk: tag.pblk.0,
                at: first + place as u32,
                tid,
                escaped: tag.flags.contains(TagFlags::ESCAPE),
                checksum: tag.checksum,
            };
            winners.insert(tag.pblk.0, winner);
        }
    })?;
    let mut winners: Vec<Winner> = winners.into_values().collect();
    winners.sort_unstable_by_key(|winner| winner.at);
    Ok(Collected { winners, revoked })
}

/// Checks the checksum of every copy that will be written.
pub(super) fn verify(reader: &mut LogReader<'_>, format: &LogFormat, winners: &[Winner]) -> Result<()> {
    if !format.has_checksums() {
        return Ok(());
    }
    for winner in winners {
        if format.tag_checksum(winner.tid, reader.block(winner.at)?) != winner.checksum {
            return Err(Error::Checksum { tid: winner.tid.0, block: winner.at, what: "a metadata block" });
        }
    }
    Ok(())
}

/// Shows every descriptor and revoke block of the accepted transactions.
fn walk(
    reader: &mut LogReader<'_>,
    sb: &Superblock,
    scanned: &Scanned,
    format: &LogFormat,
    mut show: impl FnMut(Tid, u32, &[u8], BlockType),
) -> Result<()> {
    let (mut at, mut tid) = (sb.start(), sb.sequence());
    while tid != scanned.end {
        let block = reader.block(at)?;
        let header = Header::decode(block).filter(|h| h.sequence == tid);
        let Some(kind) = header.and_then(|h| h.block_type) else {
            return Err(Error::Damaged { tid: tid.0, block: at, what: "the log changes while it is read" });
        };
        show(tid, at, block, kind);
        let used = match kind {
            BlockType::Descriptor => 1 + format.tags(block).count() as u32,
            _ => 1,
        };
        if kind == BlockType::Commit {
            tid = tid.next();
        }
        at = reader.advance(at, used);
    }
    Ok(())
}
