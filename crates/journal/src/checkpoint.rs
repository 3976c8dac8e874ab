//! Checkpoints: what is committed is written to its place, and the log's tail moves on.
//!
//! Order: blocks written in place, flush, journal superblock with the new tail made durable, and only then may the log space
//! be written again: were it written earlier, recovery from the old tail would stop at the new blocks.

use std::sync::Arc;

use extant_format::Tid;
use extant_sync::atomic::Ordering;

use crate::cache::Buf;
use crate::commit::{BlockCopy, UnderWay};
use crate::journal::Log;
use crate::{Journal, Result};

impl Journal {
    /// Writes everything that is committed in place and frees its log space. One at a time; a second caller waits for the first
    /// one's end, and goes on from there.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        {
            let mut state = self.state.lock();
            while state.checkpointing {
                self.check()?;
                self.changed.wait(&mut state);
            }
            if state.committed.is_empty() {
                return Ok(());
            }
            state.checkpointing = true;
        }
        let mut under_way = UnderWay::new(self, |state| &mut state.checkpointing);
        let outcome = self.checkpoint_committed(log);
        under_way.over = true;
        drop(under_way);
        if let Err(error) = &outcome {
            self.abort(error.errno());
        }
        outcome
    }

    fn checkpoint_committed(&self, log: &Log) -> Result<()> {
        self.check()?;
        let (last, lists) = self.committed_lists();
        let Some(last) = last else { return Ok(()) };
        let copies = claim_for_writing(&lists);
        let sorted: Vec<&BlockCopy> = copies.iter().map(|(copy, _)| copy).collect();
        let outcome = self.write_in_place(&sorted);
        for (copy, tid) in &copies {
            release_written(&copy.buf, *tid, outcome.is_ok());
        }
        outcome?;
        if self.options.barrier {
            self.cache().flush()?;
        }
        self.counts.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.advance_tail(log, last)
    }

    fn committed_lists(&self) -> (Option<Tid>, Vec<Arc<Vec<Buf>>>) {
        let state = self.state.lock();
        let lists = state.committed.iter().map(|t| Arc::clone(&t.bufs)).collect();
        (state.committed.back().map(|t| t.tid), lists)
    }

    /// Makes the tail after transaction `last` durable, then counts the space before it as free.
    fn advance_tail(&self, log: &Log, last: Tid) -> Result<()> {
        let (tid, start) = {
            let state = self.state.lock();
            let next = state.committed.iter().find(|t| t.tid.is_after(last));
            next.map_or((last.next(), state.head), |t| (t.tid, t.start))
        };
        {
            let mut sb = log.superblock.lock();
            sb.set_tail(tid, start);
            log.place.write_superblock(&sb)?;
            if self.options.barrier {
                log.place.flush()?;
            }
        }
        let mut state = self.state.lock();
        while state.committed.front().is_some_and(|t| !t.tid.is_after(last)) {
            if let Some(done) = state.committed.pop_front() {
                state.used -= done.blocks;
            }
        }
        self.grow_room(&mut state);
        Ok(())
    }

    /// Whether the log or the cache is so full of committed blocks that a checkpoint should not wait.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let Some(log) = &self.log else { return false };
        let state = self.state.lock();
        let pinned: usize = state.committed.iter().map(|t| t.bufs.len()).sum();
        state.used > log.size() / 2 || pinned as u64 > self.cache().budget_blocks().max(1024) / 2
    }

    /// Marks the log empty, for a clean end.
    pub(crate) fn mark_empty(&self, log: &Log) -> Result<()> {
        let mut sb = log.superblock.lock();
        if sb.start() == 0 {
            return Ok(());
        }
        sb.set_tail(self.running_tid(), 0);
        log.place.write_superblock(&sb)?;
        if self.options.barrier { log.place.flush() } else { Ok(()) }
    }
}

/// The contents to write, by block number, each once; marked as being written.
fn claim_for_writing(lists: &[Arc<Vec<Buf>>]) -> Vec<(BlockCopy, Tid)> {
    let mut copies = Vec::new();
    for buf in lists.iter().flat_map(|list| list.iter()) {
        let mut state = buf.state();
        if state.writing {
            continue;
        }
        if let Some((tid, data)) = state.checkpoint.clone() {
            state.writing = true;
            copies.push((BlockCopy { buf: buf.clone(), data }, tid));
        }
    }
    copies.sort_unstable_by_key(|(copy, _)| copy.buf.pblk());
    copies
}

/// The write of `tid`'s content has ended.
fn release_written(buf: &Buf, tid: Tid, written: bool) {
    let mut state = buf.state();
    state.writing = false;
    if written && state.checkpoint.as_ref().is_some_and(|(of, _)| *of == tid) {
        state.checkpoint = None;
    }
    drop(state);
    buf.notify();
}
