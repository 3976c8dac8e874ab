//! Committing: one thread at a time closes the running transaction, writes it to the log and makes it durable.
//!
//! Whoever first needs a commit does it (no thread switch on fsync); the others wait for it, and the first of them does the next
//! one if theirs was not in it.

use std::borrow::Cow;
use std::io::IoSlice;
use std::sync::Arc;

use extant_format::jbd2::{IncompatFeatures, LogFormat, escape, is_escapable};
use extant_format::{Pblk, Tid};
use extant_sync::MutexGuard;
use extant_sync::atomic::Ordering;

use crate::cache::{Buf, MAX_TRANSFER, MAX_VECTORS, WriteOrder};
use crate::journal::{Committed, Log, State};
use crate::mutant::without;
use crate::running::Contents;
use crate::{Error, Flushed, Journal, Result};

/// One block of a transaction as it was when the transaction was closed.
pub(crate) struct BlockCopy {
    pub(crate) buf: Buf,
    pub(crate) data: Arc<[u8]>,
}

/// A commit or checkpoint under way, of which there is one at a time. Dropped, the next one may begin. If it unwinds, nobody knows what
/// is where: the journal is aborted, and whoever waits is told.
pub(crate) struct UnderWay<'j> {
    journal: &'j Journal,
    flag: fn(&mut State) -> &mut bool,
    /// It returned.
    pub(crate) over: bool,
}

impl<'j> UnderWay<'j> {
    /// After the flag was set.
    pub(crate) fn new(journal: &'j Journal, flag: fn(&mut State) -> &mut bool) -> Self {
        Self { journal, flag, over: false }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.journal.abort(5);
        }
        *(self.flag)(&mut self.journal.state.lock()) = false;
        self.journal.changed.notify_all();
    }
}

impl Journal {
    /// Returns once `tid` is durable.
    pub(crate) fn commit_through(&self, tid: Tid) -> Result<Flushed> {
        let mut state = self.state.lock();
        let begun_before = state.begun;
        loop {
            if !tid.is_after(self.committed_tid()) {
                return Ok(flushed(&state, begun_before));
            }
            self.check()?;
            if state.committing {
                self.changed.wait(&mut state);
                continue;
            }
            state.committing = true;
            drop(state);
            let mut under_way = UnderWay::new(self, |state| &mut state.committing);
            let outcome = self.commit_running();
            under_way.over = true;
            drop(under_way);
            state = self.state.lock();
            match outcome {
                Ok(true) => {}
                Ok(false) => return Ok(flushed(&state, begun_before)),
                Err(error) => {
                    drop(state);
                    self.abort(error.errno());
                    return Err(error);
                }
            }
        }
    }

    /// Closes the running transaction and commits it; false when there was nothing in it.
    fn commit_running(&self) -> Result<bool> {
        let Some((tid, contents, start)) = self.close_running()? else { return Ok(false) };
        let copies = take_copies(tid, &contents.joined);
        let blocks = match &self.log {
            Some(log) => self.write_to_log(log, tid, start, &copies, &contents.revokes)?,
            None => self.write_in_order(&copies)?,
        };
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        self.settle(tid, &contents, start, blocks);
        Ok(true)
    }

    /// Waits until no handle is open, takes the transaction's contents, and opens the next transaction.
    fn close_running(&self) -> Result<Option<(Tid, Contents, u32)>> {
        self.running().close();
        let mut state = self.state.lock();
        while !self.running().is_still() && !self.is_aborted() {
            self.changed.wait(&mut state);
        }
        if let Err(error) = self.check() {
            self.reopen(state);
            return Err(error);
        }
        let tid = self.running().tid();
        let mut contents = self.running().take_contents();
        if contents.is_empty() {
            self.reopen(state);
            // Who looked while it was closed could not know that there was nothing in it.
            self.tell_settled(tid);
            return Ok(None);
        }
        contents.joined.sort_unstable_by_key(Buf::pblk);
        contents.revokes.sort_unstable();
        if let Some(log) = &self.log {
            state.committing_need = log.blocks_for(contents.joined.len(), contents.revokes.len());
        }
        state.begun += 1;
        state.given = self.affordable(&state);
        self.running().switch(tid.next(), state.given);
        self.changed.notify_all();
        Ok(Some((tid, contents, state.head)))
    }

    fn tell_settled(&self, tid: Tid) {
        self.observers().iter().for_each(|observer| observer.settled(tid));
    }

    fn reopen(&self, state: MutexGuard<'_, State>) {
        self.running().reopen();
        drop(state);
        self.changed.notify_all();
    }

    /// Writes the transaction to the log from block `start`; how many blocks it took.
    fn write_to_log(
        &self,
        log: &Log,
        tid: Tid,
        start: u32,
        copies: &[BlockCopy],
        revokes: &[u64],
    ) -> Result<u32> {
        let mut image = Image::new(&log.format, tid);
        image.add_revokes(revokes);
        image.add_copies(copies);
        let blocks = image.blocks();
        let commit_at = blocks.len() as u32;
        if commit_at + 1 >= log.size() - self.state.lock().used {
            return Err(Error::TooManyCredits { wanted: commit_at + 1, most: self.max_credits() });
        }
        self.announce(log, tid, start, !revokes.is_empty())?;
        self.write_log_blocks(log, start, &blocks)?;
        if self.barrier() {
            log.place.flush()?;
            if log.place.is_external() {
                self.cache().flush()?;
            }
        }
        let now = self.options.clock.now();
        let mut commit = vec![0; log.format.block_size()];
        let crc = if log.format.has_transaction_crc() { image.transaction_crc() } else { 0 };
        log.format.write_commit(&mut commit, tid, (now.as_secs(), now.subsec_nanos()), crc);
        self.write_commit_block(log, log.advance(start, commit_at), &commit)?;
        self.counts.log_blocks.fetch_add(u64::from(commit_at) + 1, Ordering::Relaxed);
        Ok(commit_at + 1)
    }

    fn write_commit_block(&self, log: &Log, at: u32, commit: &[u8]) -> Result<()> {
        if self.barrier() { log.place.write_durably(at, commit) } else { log.place.write(at, &[commit]) }
    }

    /// Makes the journal superblock say that the log is in use, before its first transaction is committed.
    fn announce(&self, log: &Log, tid: Tid, start: u32, revokes: bool) -> Result<()> {
        let mut sb = log.superblock.lock();
        let needs_feature = revokes && !sb.incompat().contains(IncompatFeatures::REVOKE);
        if sb.start() != 0 && !needs_feature {
            return Ok(());
        }
        if needs_feature {
            let (compat, incompat) = (sb.compat(), sb.incompat() | IncompatFeatures::REVOKE);
            sb.set_features(compat, incompat);
        }
        if sb.start() == 0 {
            sb.set_tail(tid, start);
        }
        log.place.write_superblock(&sb)
    }

    fn write_log_blocks(&self, log: &Log, start: u32, blocks: &[&[u8]]) -> Result<()> {
        let before_end = ((log.end - start) as usize).min(blocks.len());
        let (now, wrapped) = blocks.split_at(before_end);
        log.place.write(start, now)?;
        if wrapped.is_empty() { Ok(()) } else { log.place.write(log.first, wrapped) }
    }

    /// Without a log: writes the blocks in place, class by class, and flushes.
    fn write_in_order(&self, copies: &[BlockCopy]) -> Result<u32> {
        for order in WriteOrder::ALL {
            let class: Vec<&BlockCopy> = copies.iter().filter(|c| c.buf.order() == order).collect();
            self.write_in_place(&class)?;
        }
        if self.barrier() {
            self.cache().flush()?;
        }
        Ok(0)
    }

    /// Writes blocks, sorted by number, to their places, neighbours together.
    pub(crate) fn write_in_place(&self, copies: &[&BlockCopy]) -> Result<()> {
        let most = (MAX_TRANSFER / self.cache().block_size()).clamp(1, MAX_VECTORS);
        let follows = |a: &&BlockCopy, b: &&BlockCopy| a.buf.pblk().0 + 1 == b.buf.pblk().0;
        for run in copies.chunk_by(follows) {
            for part in run.chunks(most) {
                let slices: Vec<IoSlice<'_>> = part.iter().map(|c| IoSlice::new(&c.data)).collect();
                self.cache().write_run(part[0].buf.pblk(), &slices)?;
            }
        }
        self.counts.written_in_place.fetch_add(copies.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The transaction is durable: its blocks wait for their checkpoint, what it freed is let go, waiters wake.
    fn settle(&self, tid: Tid, contents: &Contents, start: u32, blocks: u32) {
        for buf in &contents.forgotten {
            self.let_go(tid, buf);
        }
        let bufs = self.await_checkpoint(tid, &contents.joined);
        if without!(self, DurableBeforeTold) {
            self.set_committed(tid);
        }
        for observer in self.observers() {
            observer.committed(tid);
        }
        let mut state = self.state.lock();
        state.committing_need = 0;
        state.ended += 1;
        if let Some(log) = &self.log {
            state.used += blocks;
            state.head = log.advance(start, blocks);
            state.committed.push_back(Committed { tid, start, blocks, bufs: Arc::new(bufs) });
        }
        self.grow_room(&mut state);
        self.set_committed(tid);
        drop(state);
        self.tell_settled(tid);
        if self.wants_checkpoint() {
            self.thread.wake();
        }
    }

    /// A buffer whose block was freed: neither written nor found any more.
    fn let_go(&self, tid: Tid, buf: &Buf) {
        {
            let mut state = buf.state();
            if state.forgotten != Some(tid) {
                return;
            }
            if !without!(self, ReuseUnderCheckpoint) {
                buf.wait_written(&mut state);
            }
            state.running = None;
            state.committing = None;
            state.checkpoint = None;
        }
        self.cache().remove(buf);
    }

    fn await_checkpoint(&self, tid: Tid, joined: &[Buf]) -> Vec<Buf> {
        let mut waiting = Vec::with_capacity(joined.len());
        for buf in joined {
            let mut state = buf.state();
            let Some((of, data)) = state.committing.take() else { continue };
            debug_assert_eq!(of, tid, "another transaction's copy");
            if self.log.is_some() {
                state.checkpoint = Some((of, data));
                waiting.push(buf.clone());
            }
        }
        waiting
    }
}

/// Whether a commit has both begun and ended since `begun_before` was read.
fn flushed(state: &State, begun_before: u64) -> Flushed {
    if state.ended > begun_before { Flushed::Yes } else { Flushed::No }
}

/// Takes each block's content as of the transaction's end.
fn take_copies(tid: Tid, joined: &[Buf]) -> Vec<BlockCopy> {
    let mut copies = Vec::with_capacity(joined.len());
    for buf in joined {
        let mut state = buf.state();
        if state.forgotten == Some(tid) {
            continue;
        }
        if state.committing.is_none() {
            debug_assert_eq!(state.running, Some(tid), "a joined buffer without its transaction");
            state.running = None;
            state.committing = Some((tid, Arc::clone(&state.data)));
        }
        if let Some((_, data)) = &state.committing {
            copies.push(BlockCopy { buf: buf.clone(), data: Arc::clone(data) });
        }
    }
    copies
}

/// A transaction's blocks in log order, without the commit block.
pub(crate) struct Image<'a> {
    format: &'a LogFormat,
    tid: Tid,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    block: Cow<'a, [u8]>,
    /// Whether the old transaction checksum covers it.
    summed: bool,
}

impl<'a> Image<'a> {
    pub(crate) fn new(format: &'a LogFormat, tid: Tid) -> Self {
        Self { format, tid, parts: Vec::new() }
    }

    fn add_revokes(&mut self, revokes: &[u64]) {
        for chunk in revokes.chunks(self.format.revokes_per_block()) {
            let mut block = vec![0; self.format.block_size()];
            let mut writer = self.format.revoke_block(&mut block, self.tid);
            chunk.iter().for_each(|pblk| writer.push(Pblk(*pblk)));
            writer.finish();
            self.parts.push(Part { block: Cow::Owned(block), summed: false });
        }
    }

    fn add_copies(&mut self, copies: &'a [BlockCopy]) {
        for chunk in copies.chunks(self.format.tags_per_descriptor()) {
            self.add_described(chunk.iter().map(|copy| (copy.buf.pblk(), &*copy.data)));
        }
    }

    /// Adds blocks with one descriptor block before them, which has room for all.
    pub(crate) fn add_described(&mut self, blocks: impl Iterator<Item = (Pblk, &'a [u8])>) {
        let mut block = vec![0; self.format.block_size()];
        let at = self.parts.len();
        let mut writer = self.format.descriptor(&mut block, self.tid);
        for (pblk, data) in blocks {
            let logged = escape(data);
            let checksum = self.format.tag_checksum(self.tid, &logged);
            writer.push(pblk, is_escapable(data), checksum);
            self.parts.push(Part { block: logged, summed: true });
        }
        writer.finish();
        self.parts.insert(at, Part { block: Cow::Owned(block), summed: true });
    }

    pub(crate) fn blocks(&self) -> Vec<&[u8]> {
        self.parts.iter().map(|part| &*part.block).collect()
    }

    pub(crate) fn transaction_crc(&self) -> u32 {
        let summed = self.parts.iter().filter(|part| part.summed);
        summed.fold(!0, |sum, part| LogFormat::transaction_crc(sum, &part.block))
    }
}
