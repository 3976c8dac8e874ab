//! The choke point of `errors=`: what happens when damage is found.
//!
//! It may be reached with any lock held, so it only sets flags and wakes: the record in the superblock is made in
//! memory here and written with the end of the operation that has met the damage, or by the next change of the superblock.
//!
//! With `errors=remount-ro` the journal is aborted, as in the kernel: what is not committed may rest on the damage. What
//! was durable stays so, fsync of anything else answers `ReadOnly`, and unmount reports the abort.

use extant_format::superblock::{ErrorRecord, State};
use extant_journal::Handle;
use extant_sync::atomic::Ordering;

use crate::error::{Error, Place};
use crate::filesystem::{Filesystem, Mode};
use crate::options::OnError;

impl Filesystem {
    /// Records damage and applies `errors=`.
    pub(crate) fn on_damage(&self, error: &Error) {
        tracing::error!("{error}");
        if self.mode() != Mode::ReadWrite {
            return;
        }
        self.saw_errors.store(true, Ordering::Release);
        self.record(error);
        match self.options().errors {
            OnError::Continue => {}
            OnError::RemountReadOnly => {
                self.set_mode(Mode::ReadOnly);
                self.journal.abort(error.errno());
            }
            OnError::Panic => {
                self.set_mode(Mode::Shutdown);
                // Not an abort: that would be recorded in the journal.
                self.journal.stop();
                if let Some(stop) = self.on_panic.get() {
                    stop();
                }
            }
        }
    }

    /// What is done besides when damage is met under `errors=panic`: once this is set, a server ends its process with it. It is called with
    /// locks held, must not use the filesystem, and what it does not end goes on to get [`Error::Shutdown`]. Set once; later calls
    /// change nothing.
    pub fn on_panic(&self, stop: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_panic.set(Box::new(stop));
    }

    /// Applies `data_err=` when the device did not take content.
    pub(crate) fn on_lost_content(&self, error: &Error) {
        if matches!(error, Error::Io(_)) && self.options().given.data_err_abort == Some(true) {
            tracing::error!("data_err=abort: content of a file could not be written: {error}");
            self.journal.abort(error.errno());
        }
    }

    /// Refuses to write content once nothing can be published any more: after a shutdown, an abort, or when somebody else has taken the
    /// filesystem (MMP), to whom blocks that are free here may belong.
    ///
    /// # Errors
    /// `Shutdown`, `ReadOnly`.
    pub(crate) fn check_may_write_data(&self) -> crate::error::Result<()> {
        match (self.mode(), self.journal.is_aborted()) {
            (Mode::Shutdown, _) => Err(Error::Shutdown),
            (_, true) => Err(Error::ReadOnly),
            (_, false) => Ok(()),
        }
    }

    fn record(&self, error: &Error) {
        let mut record = ErrorRecord {
            time: self.clock.now().sec.max(0) as u64,
            ino: 0,
            block: 0,
            func: [0; 32],
            line: 0,
            errcode: errcode(error.errno()),
        };
        let name = b"extant";
        record.func[..name.len()].copy_from_slice(name);
        match error.place() {
            Some(Place::Block(b) | Place::XattrBlock { pblk: b, .. }) => record.block = b.0,
            Some(Place::Inode(i) | Place::DirBlock { ino: i, .. }) => record.ino = i.0,
            _ => {}
        }
        let mut sb = self.sb.lock();
        sb.record_error(&record);
        let state = sb.state() | State::ERROR;
        sb.set_state(state);
    }

    /// Does for damage that was found before there was a filesystem what [`Self::on_damage`] does. The mount goes on as after damage that
    /// is found later: with `errors=remount-ro` read-only.
    ///
    /// # Errors
    /// `Shutdown` with `errors=panic`; the journal's.
    pub(crate) fn record_found_early(&self) -> crate::error::Result<()> {
        let found = std::mem::take(&mut *self.mount.found_early.lock());
        found.iter().for_each(|error| self.on_damage(error));
        if self.mode() == Mode::Shutdown {
            return Err(Error::Shutdown);
        }
        self.write_record()
    }

    /// Writes the record of damage onto the device, beside an aborted journal: into the superblock as it is there, for the one in
    /// memory has changes that never became durable. If a recovery takes it back, the journal's own errno is left.
    pub(crate) fn leave_record(&self) -> crate::error::Result<()> {
        let (at, mut there) = crate::bootstrap::read_state(&*self.device, self.options().given.sb)?;
        let before = there.encode();
        there.take_errors_of(&self.sb.lock());
        self.device.write_at(at, &there.encode_over(&before))?;
        Ok(self.device.flush()?)
    }

    /// Adds the record of damage that was found since it was last written to a handle, if its transaction has room: what was left
    /// undone because of the damage (blocks of a group that is out of use are not freed) is not durable without it.
    pub(crate) fn record_with(&self, handle: &mut Handle) -> crate::error::Result<()> {
        if self.saw_errors.load(Ordering::Acquire)
            && self.mode() == Mode::ReadWrite
            && handle.extend(1)?
            && self.saw_errors.swap(false, Ordering::AcqRel)
        {
            self.write_super(handle, |_| {})?;
        }
        Ok(())
    }

    /// Writes the record of damage found since it was last written, in a handle of its own.
    pub(crate) fn write_record(&self) -> crate::error::Result<()> {
        if self.mode() == Mode::ReadWrite && self.saw_errors.swap(false, Ordering::AcqRel) {
            let mut handle = self.journal.start(1)?;
            self.write_super(&mut handle, |_| {})?;
            handle.finish()?;
        }
        Ok(())
    }
}

/// The superblock's code for an error number (kernel ext4 documentation, "Super Block", `s_first_error_errcode`).
const fn errcode(errno: i32) -> u8 {
    match errno {
        5 => 2,   // EIO
        12 => 3,  // ENOMEM
        74 => 4,  // EFSBADCRC
        117 => 5, // EFSCORRUPTED
        28 => 6,  // ENOSPC
        _ => 1,   // unknown
    }
}
