//! Recovery: replay of a log that was not closed.
//!
//! 1. **Scan** walks the log from its tail and finds the first transaction that is not whole; it checks every checksum and every
//!    block number that will be used.
//! 2. **Collect** gathers revoke records, then for each block the last copy that no later revoke record covers.
//! 3. **Replay** writes these copies in place, and flushes.
//!
//! Nothing is written before the scan has accepted the whole log, so a damaged journal leaves the image as it was.
//!
//! # Where the log ends
//! At the first block without jbd2's magic number or with another sequence number: that is what a crash leaves. A commit block
//! whose own checksum is wrong ends it too, when nothing whole follows (it was torn; nobody was told that it is durable), and so does
//! anything older than the transaction before (left from an earlier use of the same blocks). Everything else that does not check
//! out is damage: blocks of a transaction are flushed before its commit block is written, so they were whole once.

mod collect;
mod reader;
mod scan;

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use extant_device::BlockDevice;
use extant_format::fast_commit::{Operation, Scanner};
use extant_format::jbd2::Superblock;
use extant_format::{Pblk, Tid};

use crate::cache::MAX_VECTORS;
use crate::commit::Image;
use crate::{Error, LogPlace, Result};
use collect::Winner;
use reader::LogReader;

/// What a recovery found and did.
///
/// With fast commits: the caller applies [`Recovery::fast_commits`] to the filesystem, hands what that changed to
/// [`Recovery::log_fast_commits`], writes it in place, and only then calls [`Recovery::finish`].
#[derive(Debug)]
pub struct Recovery {
    place: LogPlace,
    superblock: Superblock,
    needed: bool,
    transactions: u32,
    blocks: u64,
    revoked: u64,
    next: Tid,
    /// Where `next` would start in the log.
    head: u32,
    fast_commits: Vec<Operation>,
}

/// Replays the journal at `place` onto `device`, the filesystem of `fs_blocks` blocks.
///
/// `device` (and, for an internal journal, that of `place`) may be an overlay, so that the image stays untouched. The log
/// itself is left as it is until [`Recovery::finish`]; repeating a replay is harmless.
///
/// # Errors
/// The journal superblock is refused, the log is damaged in its middle, or the device fails.
pub fn recover(place: &LogPlace, device: &Arc<dyn BlockDevice>, fs_blocks: u64) -> Result<Recovery> {
    let superblock = place.read_superblock()?;
    let mut recovery = Recovery {
        place: place.clone(),
        needed: superblock.start() != 0,
        next: superblock.sequence(),
        head: superblock.start(),
        superblock,
        transactions: 0,
        blocks: 0,
        revoked: 0,
        fast_commits: Vec::new(),
    };
    if recovery.needed {
        recovery.replay(device, fs_blocks)?;
    }
    Ok(recovery)
}

/// In place of [`recover`], for a filesystem that says that it needs no recovery: what the log at `place` holds is none of its
/// changes, and is not replayed. [`Recovery::finish`] marks the log empty.
///
/// # Errors
/// The journal superblock is refused, or the device fails.
pub fn pass_over(place: &LogPlace) -> Result<Recovery> {
    let mut superblock = place.read_superblock()?;
    let (needed, head) = (superblock.start() != 0, superblock.start());
    if needed {
        superblock.pass_over_log();
    }
    Ok(Recovery {
        place: place.clone(),
        needed,
        next: superblock.sequence(),
        head,
        superblock,
        transactions: 0,
        blocks: 0,
        revoked: 0,
        fast_commits: Vec::new(),
    })
}

impl Recovery {
    /// Whether the log was in use; it may still have been empty.
    #[must_use]
    pub fn was_needed(&self) -> bool {
        self.needed
    }

    /// Transactions replayed.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Blocks written.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Copies not written because of a revoke record.
    #[must_use]
    pub fn revoked(&self) -> u64 {
        self.revoked
    }

    /// The errno that an abort left in the journal; 0 for none. The filesystem has errors then.
    #[must_use]
    pub fn recorded_errno(&self) -> u32 {
        self.superblock.errno()
    }

    /// What fast commits after the last transaction describe. The filesystem must apply it before [`Self::finish`].
    #[must_use]
    pub fn fast_commits(&self) -> &[Operation] {
        &self.fast_commits
    }

    /// Writes what applying [`Self::fast_commits`] changes, `blocks` in ascending order, to the log as one transaction. From
    /// here on the fast commits are void: a further recovery replays the transaction. The caller then writes the
    /// blocks in place. False, with nothing written, if the log is too small for them.
    ///
    /// Until the transaction is durable the fast commits are valid: all that the log held is in place on `device`, and
    /// is taken out of it first.
    ///
    /// # Errors
    /// The device's; [`Error::Not64Bit`].
    pub fn log_fast_commits(
        &mut self,
        device: &Arc<dyn BlockDevice>,
        blocks: &[(Pblk, Vec<u8>)],
        now: Duration,
    ) -> Result<bool> {
        let format = self.superblock.log_format();
        let (first, end) = (self.superblock.first(), self.superblock.log_end());
        let room = (end - first) as usize;
        if blocks.is_empty() {
            return Ok(true);
        }
        if blocks.len() + blocks.len().div_ceil(format.tags_per_descriptor()) + 2 > room {
            return Ok(false);
        }
        if let Some((pblk, _)) = blocks.last().filter(|b| b.0.0 > u64::from(u32::MAX) && !format.is_64bit()) {
            return Err(Error::Not64Bit(*pblk));
        }
        device.flush().map_err(|source| Error::Flush(Arc::new(source)))?;
        self.superblock.set_tail(self.next, self.head);
        self.place.write_superblock(&self.superblock)?;
        self.place.flush()?;
        let mut image = Image::new(&format, self.next);
        for part in blocks.chunks(format.tags_per_descriptor()) {
            image.add_described(part.iter().map(|(pblk, bytes)| (*pblk, &**bytes)));
        }
        let logged = image.blocks();
        let (before_end, wrapped) = logged.split_at(logged.len().min((end - self.head) as usize));
        self.place.write(self.head, before_end)?;
        self.place.write(first, wrapped)?;
        self.place.flush()?;
        let mut commit = vec![0; format.block_size()];
        let crc = if format.has_transaction_crc() { image.transaction_crc() } else { 0 };
        format.write_commit(&mut commit, self.next, (now.as_secs(), now.subsec_nanos()), crc);
        let at = first + ((self.head - first) as usize + logged.len()) as u32 % (end - first);
        self.place.write_durably(at, &commit)?;
        self.next = self.next.next();
        Ok(true)
    }

    /// Marks the log empty and forgets a recorded errno: the filesystem has taken over both. Flushes the filesystem's `device`
    /// before, and the log after.
    pub fn finish(mut self, device: &Arc<dyn BlockDevice>) -> Result<()> {
        if !self.needed && self.superblock.errno() == 0 {
            return Ok(());
        }
        device.flush().map_err(|source| Error::Flush(Arc::new(source)))?;
        if self.needed {
            // One number is skipped, so that what a crash left half written can never continue what comes next.
            self.superblock.set_tail(self.next.next(), 0);
        }
        self.superblock.set_errno(0);
        self.place.write_superblock(&self.superblock)?;
        self.place.flush()
    }

    fn replay(&mut self, device: &Arc<dyn BlockDevice>, fs_blocks: u64) -> Result<()> {
        let format = self.superblock.log_format();
        let mut reader = LogReader::new(&self.place, self.superblock.first(), self.superblock.log_end());
        let limits = scan::Limits::new(&self.place, fs_blocks);
        let scanned = scan::scan(&mut reader, &format, &self.superblock, &limits)?;
        self.next = scanned.end;
        self.head = scanned.head;
        self.transactions = scanned.transactions;
        let collected = collect::collect(&mut reader, &format, &self.superblock, &scanned)?;
        self.revoked = collected.revoked;
        collect::verify(&mut reader, &format, &collected.winners)?;
        self.blocks = collected.winners.len() as u64;
        write_winners(&mut reader, device, format.block_size(), collected.winners)?;
        device.flush().map_err(|source| Error::Flush(Arc::new(source)))?;
        self.fast_commits = self.scan_fast_commits()?;
        tracing::info!(transactions = self.transactions, blocks = self.blocks, "journal replayed");
        Ok(())
    }

    fn scan_fast_commits(&self) -> Result<Vec<Operation>> {
        let mut scanner = Scanner::new(self.next);
        if self.superblock.fast_commit_blocks() == 0 {
            return Ok(Vec::new());
        }
        // The block between the log and the area is never used.
        let first = self.superblock.log_end() + 1;
        let mut reader = LogReader::new(&self.place, first, self.superblock.max_len());
        for block in first..self.superblock.max_len() {
            if scanner.block(reader.block(block)?).is_err() {
                break;
            }
        }
        Ok(scanner.finish())
    }
}

/// Writes the chosen copies in place, neighbours together.
fn write_winners(
    reader: &mut LogReader<'_>,
    device: &Arc<dyn BlockDevice>,
    block_size: usize,
    mut winners: Vec<Winner>,
) -> Result<()> {
    winners.sort_unstable_by_key(|winner| winner.pblk);
    let most = ((1 << 20) / block_size).clamp(1, MAX_VECTORS);
    for run in winners.chunk_by(|a, b| a.pblk + 1 == b.pblk) {
        for part in run.chunks(most) {
            let mut blocks = Vec::with_capacity(part.len());
            for winner in part {
                blocks.push(winner.content(reader)?);
            }
            let slices: Vec<IoSlice<'_>> = blocks.iter().map(|b| IoSlice::new(b)).collect();
            let pblk = Pblk(part[0].pblk);
            device
                .write_vectored_at(pblk.0 * block_size as u64, &slices)
                .map_err(|source| Error::Write { pblk, source: Arc::new(source) })?;
        }
    }
    Ok(())
}
