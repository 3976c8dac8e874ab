//! Handles: one operation's part of a transaction.

use std::fmt;
use std::sync::Arc;

use extant_format::{Pblk, Tid};
use extant_sync::{Held, Rank, assert_nothing_held};

use crate::cache::{Buf, Load, State, zeroed};
use crate::mutant::without;
use crate::{Error, Journal, Result};

/// The right to change metadata, within one transaction (rank 60; belongs to the thread that started it).
///
/// All that is changed through one handle, between [`Journal::start`] or [`Self::restart`] and the next restart or
/// [`Self::finish`], is on disk after a crash as a whole or not at all. A handle that is dropped after a change without
/// `finish` aborts the journal: its operation is half done, and must never be committed.
///
/// # Credits
/// One credit is one block of the log: a block changed for the first time in the transaction (those that it has already cost
/// nothing), or as many of the handle's revoke records as fit in a block ([`Journal::revoke_credits`]). In debug builds a
/// handle that needs more than it asked for panics, whether the transaction has room for it or not.
#[must_use = "a handle that is dropped after a change aborts the journal"]
pub struct Handle {
    journal: Arc<Journal>,
    tid: Tid,
    credits: u32,
    asked: u32,
    changed: bool,
    /// Changes since it was started.
    changes: u64,
    /// Revoke records since its last start.
    revoked: u32,
    open: bool,
    _held: Held,
}

impl Handle {
    /// Opens a handle. Counts as taking rank 60.
    #[track_caller]
    pub(crate) fn start(journal: &Arc<Journal>, credits: u32) -> Result<Self> {
        let held = Held::enter(Rank::HANDLE, None);
        let tid = journal.enter(credits)?;
        Ok(Self {
            journal: Arc::clone(journal),
            tid,
            credits,
            asked: credits,
            changed: false,
            changes: 0,
            revoked: 0,
            open: true,
            _held: held,
        })
    }

    /// The transaction. It changes with [`Self::restart`].
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// The journal it belongs to.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Blocks it may still add to the transaction.
    #[must_use]
    pub fn credits_left(&self) -> u32 {
        self.credits
    }

    /// Counts up with every change. Who compares it before and after a call that failed knows whether that left something
    /// half done.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Says that what was changed so far is whole, whatever comes: a handle that is dropped before its next change does not
    /// abort the journal.
    pub fn keep(&mut self) {
        self.changed = false;
    }

    /// Changes a block under rank 100. The change becomes part of this handle's transaction. Checksums inside the block
    /// are the caller's to renew within `change`.
    ///
    /// # Errors
    /// Nothing has been changed then: [`Error::Aborted`], [`Error::OutOfCredits`], [`Error::Forgotten`].
    #[track_caller]
    pub fn modify<R>(&mut self, buf: &Buf, change: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        self.journal.check()?;
        let mut state = buf.state();
        self.join(buf, &mut state)?;
        Ok(change(Arc::make_mut(&mut state.data)))
    }

    /// The block `pblk`, newly allocated: filled with zeros, part of this handle's transaction, never read from the
    /// device.
    ///
    /// # Errors
    /// As [`Self::modify`], and [`Error::OutOfRange`].
    #[track_caller]
    pub fn create(&mut self, pblk: Pblk) -> Result<Buf> {
        self.journal.check()?;
        let (buf, _) = self.journal.cache().lookup_or_insert(pblk)?;
        {
            let mut state = buf.state();
            if state.forgotten == Some(self.tid) {
                state.forgotten = None;
                self.journal.running().cancel_revoke(pblk);
            }
            self.join(&buf, &mut state)?;
            state.data = zeroed(self.journal.cache().block_size());
            state.load = Load::Ready;
        }
        buf.set_verified();
        buf.notify();
        Ok(buf)
    }

    /// Says that the metadata block `pblk` has been freed in this handle's transaction: its buffer is not written any
    /// more, a revoke record keeps recovery from writing older copies, and the buffer leaves the cache when the
    /// transaction is durable, before [`CommitObserver::committed`](crate::CommitObserver::committed) is told.
    ///
    /// Credits: [`Journal::revoke_credits`].
    #[track_caller]
    pub fn revoke(&mut self, pblk: Pblk) -> Result<()> {
        self.journal.check()?;
        self.journal.check_64bit(pblk)?;
        if self.journal.revokes_per_block().is_some_and(|n| self.revoked.is_multiple_of(n)) {
            self.use_credit()?;
        }
        self.revoked += 1;
        self.note_change();
        self.journal.running().revoke(pblk);
        self.journal.mark_begin();
        if let Some(buf) = self.journal.cache().find(pblk) {
            buf.state().forgotten = Some(self.tid);
            self.journal.running().forget(buf);
        }
        Ok(())
    }

    /// Asks for `credits` more. False when the transaction has no room, or is being closed: then the operation brings
    /// its inode into a state that recovery can finish, and calls [`Self::restart`].
    pub fn extend(&mut self, credits: u32) -> Result<bool> {
        self.journal.check()?;
        let extended = self.journal.running().reserve(credits).is_ok();
        if extended {
            self.credits += credits;
            self.asked += credits;
        }
        Ok(extended)
    }

    /// Sees to it that at least `credits` are left, by [`Self::extend`], else by [`Self::restart`], with all that a restart asks of
    /// the caller.
    #[track_caller]
    pub fn ensure(&mut self, credits: u32) -> Result<()> {
        match credits.saturating_sub(self.credits) {
            0 => Ok(()),
            more if self.extend(more)? => Ok(()),
            _ => self.restart(credits),
        }
    }

    /// Ends this part of the operation and starts another with `credits`, maybe in a later transaction. What was changed so
    /// far may become durable without what follows. Nothing above rank 60 may be held, and what was read under such
    /// ranks must be read again.
    #[track_caller]
    pub fn restart(&mut self, credits: u32) -> Result<()> {
        assert_nothing_held(Rank::XATTR, "restart of a handle");
        self.leave();
        self.tid = self.journal.enter(credits)?;
        self.credits = credits;
        self.asked = credits;
        self.revoked = 0;
        self.open = true;
        Ok(())
    }

    /// Ends the operation. The transaction to wait for when it must be durable.
    ///
    /// # Errors
    /// [`Error::Aborted`]: the change will never be durable.
    pub fn finish(mut self) -> Result<Tid> {
        self.leave();
        self.journal.check()?;
        Ok(self.tid)
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.open) {
            self.changed = false;
            self.journal.leave(self.credits);
        }
    }

    /// Makes the buffer part of the transaction, preserving what an earlier one still has to write.
    #[track_caller]
    fn join(&mut self, buf: &Buf, state: &mut State) -> Result<()> {
        self.note_change();
        if state.running == Some(self.tid) && state.forgotten.is_none() {
            return Ok(());
        }
        if state.forgotten.is_some() {
            return Err(Error::Forgotten(buf.pblk()));
        }
        self.journal.check_64bit(buf.pblk())?;
        self.use_credit()?;
        if let Some(older) = state.running
            && !without!(self.journal, NoCopyForCommit)
        {
            // Its commit has not come to this block yet: leave it the content as it is now.
            debug_assert!(state.committing.is_none(), "three transactions in one buffer");
            state.committing = Some((older, Arc::clone(&state.data)));
        }
        state.running = Some(self.tid);
        self.journal.joined(buf);
        Ok(())
    }

    fn note_change(&mut self) {
        self.changed = true;
        self.changes += 1;
    }

    #[track_caller]
    fn use_credit(&mut self) -> Result<()> {
        if self.credits > 0 {
            self.credits -= 1;
            return Ok(());
        }
        self.journal.note_overrun(self.asked);
        if cfg!(debug_assertions) {
            panic!("a handle changes more blocks than the {} it asked for", self.asked);
        }
        self.journal.running().reserve_at_once(1).map_err(|_| Error::OutOfCredits(self.asked))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.open {
            if self.changed {
                self.journal.abort_unfinished(self.tid);
            }
            self.leave();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("tid", &self.tid)
            .field("credits", &self.credits)
            .finish_non_exhaustive()
    }
}
