//! The first pass: where the log ends, and whether it may be replayed.

use extant_format::Tid;
use extant_format::jbd2::{BlockType, CommitRecord, Header, LogFormat, Superblock};

use super::reader::LogReader;
use crate::{Error, LogPlace, Result};

/// What the scan found.
pub(super) struct Scanned {
    /// The first transaction that is not whole.
    pub(super) end: Tid,
    pub(super) transactions: u32,
    /// Where `end` would start.
    pub(super) head: u32,
}

/// Which block numbers the log may name.
pub(super) struct Limits {
    fs_blocks: u64,
    /// The journal's own blocks on the filesystem's device, sorted, as (first, past the last).
    own: Vec<(u64, u64)>,
}

impl Limits {
    pub(super) fn new(place: &LogPlace, fs_blocks: u64) -> Self {
        let mut own: Vec<(u64, u64)> = if place.is_external() {
            Vec::new()
        } else {
            place.runs().iter().map(|run| (run.pblk.0, run.pblk.0 + u64::from(run.len))).collect()
        };
        own.sort_unstable();
        Self { fs_blocks, own }
    }

    fn allows(&self, pblk: u64) -> bool {
        let after = self.own.partition_point(|(first, _)| *first <= pblk);
        let inside = after.checked_sub(1).is_some_and(|i| pblk < self.own[i].1);
        pblk < self.fs_blocks && !inside
    }
}

/// The state of one transaction while it is scanned.
#[derive(Default)]
struct Transaction {
    /// The first thing in it that did not check out, and where.
    fault: Option<(u32, Fault)>,
    crc: u32,
}

#[derive(Clone, Copy)]
enum Fault {
    Checksum(&'static str),
    Damaged(&'static str),
}

impl Fault {
    fn at(self, tid: Tid, block: u32) -> Error {
        match self {
            Self::Checksum(what) => Error::Checksum { tid: tid.0, block, what },
            Self::Damaged(what) => Error::Damaged { tid: tid.0, block, what },
        }
    }
}

/// Walks the log; see the module above for where it ends.
pub(super) fn scan(
    reader: &mut LogReader<'_>,
    format: &LogFormat,
    sb: &Superblock,
    limits: &Limits,
) -> Result<Scanned> {
    let mut found = Scanned { end: sb.sequence(), transactions: 0, head: sb.start() };
    let mut at = sb.start();
    let mut steps = 0;
    let mut last_time = (0, 0);
    while let Some((commit_at, after)) = scan_one(reader, format, limits, at, found.end, &mut steps)? {
        let (fault, crc) = (after.fault, after.crc);
        let block = reader.block(commit_at)?;
        let Some(record) = CommitRecord::decode(block) else { break };
        let own_checksum_ok = format.commit_checksum_ok(block);
        let fault = match fault {
            None if !own_checksum_ok => Some((commit_at, Fault::Checksum("the commit block"))),
            None if !crc_ok(format, &record, crc) => Some((commit_at, Fault::Checksum("the transaction"))),
            other => other,
        };
        let next_at = reader.advance(commit_at, 1);
        if let Some((block, fault)) = fault {
            let is_stale = record.time() < last_time;
            let may_be_torn = !own_checksum_ok || format.has_transaction_crc();
            if is_stale
                || (may_be_torn && !starts_whole(reader, format, limits, next_at, found.end.next(), steps)?)
            {
                break;
            }
            return Err(fault.at(found.end, block));
        }
        last_time = record.time();
        found.end = found.end.next();
        found.transactions += 1;
        at = next_at;
        found.head = at;
    }
    Ok(found)
}

/// Scans the transaction `tid` from `at` to its commit block; `None` where the log ends before one.
fn scan_one(
    reader: &mut LogReader<'_>,
    format: &LogFormat,
    limits: &Limits,
    mut at: u32,
    tid: Tid,
    steps: &mut u32,
) -> Result<Option<(u32, Transaction)>> {
    let mut transaction = Transaction { fault: None, crc: !0 };
    // More blocks than the log has would come round to the transaction's own start.
    while *steps < reader.size() {
        let block = reader.block(at)?;
        let Some(header) = Header::decode(block).filter(|h| h.sequence == tid) else { return Ok(None) };
        let mut used = 1;
        match header.block_type {
            Some(BlockType::Commit) => {
                *steps += 1;
                return Ok(Some((at, transaction)));
            }
            Some(BlockType::Descriptor) => {
                used += scan_descriptor(reader, format, limits, at, &mut transaction)?;
            }
            Some(BlockType::Revoke) => scan_revoke(format, block, at, &mut transaction),
            _ => return Ok(None),
        }
        *steps = steps.saturating_add(used);
        at = reader.advance(at, used);
    }
    Ok(None)
}

/// Checks a descriptor block; how many blocks follow it.
fn scan_descriptor(
    reader: &mut LogReader<'_>,
    format: &LogFormat,
    limits: &Limits,
    at: u32,
    transaction: &mut Transaction,
) -> Result<u32> {
    let block = reader.block(at)?;
    let mut count = 0;
    let mut allowed = true;
    for tag in format.tags(block) {
        count += 1;
        allowed &= limits.allows(tag.pblk.0);
    }
    let fault = if !format.tail_checksum_ok(block) {
        Some(Fault::Checksum("a descriptor block"))
    } else if !allowed {
        Some(Fault::Damaged("a tag names a block outside the filesystem or inside the journal"))
    } else {
        None
    };
    transaction.fault = transaction.fault.or(fault.map(|fault| (at, fault)));
    if format.has_transaction_crc() {
        for n in 0..=count {
            let block = reader.block(reader.advance(at, n))?;
            transaction.crc = LogFormat::transaction_crc(transaction.crc, block);
        }
    }
    Ok(count)
}

fn scan_revoke(format: &LogFormat, block: &[u8], at: u32, transaction: &mut Transaction) {
    let fault = if !format.tail_checksum_ok(block) {
        Some(Fault::Checksum("a revoke block"))
    } else if format.revokes(block).is_none() {
        Some(Fault::Damaged("a revoke block's count does not fit the block"))
    } else {
        None
    };
    transaction.fault = transaction.fault.or(fault.map(|fault| (at, fault)));
}

/// The old checksum over a transaction's blocks, where the commit block carries one.
fn crc_ok(format: &LogFormat, record: &CommitRecord, crc: u32) -> bool {
    if !format.has_transaction_crc() {
        return true;
    }
    match (record.checksum_type, record.checksum_size, record.checksum) {
        (0, 0, 0) => true,
        (kind, size, sum) => kind == 1 && size == 4 && sum == crc,
    }
}

/// Whether transaction `tid` stands whole at `at`: then what came before it cannot have been cut off by a crash.
fn starts_whole(
    reader: &mut LogReader<'_>,
    format: &LogFormat,
    limits: &Limits,
    at: u32,
    tid: Tid,
    mut steps: u32,
) -> Result<bool> {
    let Some((commit_at, transaction)) = scan_one(reader, format, limits, at, tid, &mut steps)? else {
        return Ok(false);
    };
    let crc = transaction.crc;
    let block = reader.block(commit_at)?;
    let whole = CommitRecord::decode(block).is_some_and(|record| crc_ok(format, &record, crc));
    Ok(whole && transaction.fault.is_none() && format.commit_checksum_ok(block))
}
