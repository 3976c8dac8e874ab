//! Changing what a mount may do: freeze and thaw, remount, shutdown, trim.

use std::sync::Arc;
use std::time::Duration;

use extant_format::geometry::SUPERBLOCK_OFFSET;
use extant_format::superblock::{SbTime, State};
use extant_format::{GroupDesc, Incompat, Pblk, RoCompat};

use extant_sync::atomic::Ordering;

use crate::cred::{Caps, Credentials};
use crate::error::{Error, Result};
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::mutant::without;
use crate::options::{MountOptions, Resolved};

/// How a shutdown treats what is not yet on the device (`EXT4_IOC_SHUTDOWN`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShutdownMode {
    /// Write everything first, and leave the image clean.
    Sync,
    /// Commit the journal, drop dirty data.
    FlushLog,
    /// Drop everything at once, as a crash does.
    NoFlush,
}

impl Filesystem {
    /// Stops all changes, and brings the image into a state that is clean without recovery, until [`Self::thaw`].
    ///
    /// # Errors
    /// `Busy` if it is frozen already; what could not be written: nothing is frozen then, but it is read-only if the image could not
    /// be marked as in use again.
    pub fn freeze(&self, cred: &Credentials) -> Result<()> {
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        // No remount meanwhile: it would write what is to stay as it is, and open the gates
        // (test `explore::freezing_beside_a_remount`).
        let _whole = (!without!(self, FreezeAlone)).then(|| self.mount.whole.lock());
        self.check_alive()?;
        if self.mount.frozen.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy);
        }
        let done = self.still().and_then(|()| self.clean_or_in_use());
        if done.is_err() {
            self.open_gates();
            self.mount.frozen.store(false, Ordering::Release);
        } else {
            self.rest_mmp();
        }
        done
    }

    /// Keeps changes out, level after level, and writes everything.
    fn still(&self) -> Result<()> {
        self.gate.close(Level::Write);
        self.gate.close(Level::Fault);
        self.hide_devices()?;
        if self.mode() != Mode::ReadWrite {
            return Ok(());
        }
        self.write_everything()?;
        self.gate.close(Level::Internal);
        // What readers touched, and what was under way, since.
        self.flush_times()?;
        Ok(self.journal.rest()?)
    }

    fn write_still(&self) -> Result<()> {
        if self.mode() == Mode::ReadWrite {
            self.write_clean_super(true)?;
        }
        Ok(())
    }

    /// The same for who opens the gates again if it fails: some of it may have been written, and what is written under a superblock
    /// that says clean is lost in a crash.
    fn clean_or_in_use(&self) -> Result<()> {
        let written = self.write_still();
        if written.is_err() {
            // Or it is read-only; the error is that of the write.
            let _ = self.mark_thawed();
        }
        written
    }

    /// Ends a freeze.
    ///
    /// # Errors
    /// `Invalid` if it is not frozen; what could not be written: it is read-only then; `Incompatible` if somebody else has taken it
    /// meanwhile (multiple-mount protection): it is shut down then.
    pub fn thaw(&self, cred: &Credentials) -> Result<()> {
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        let _whole = self.mount.whole.lock();
        if !self.mount.frozen.swap(false, Ordering::AcqRel) {
            return Err(Error::Invalid("not frozen"));
        }
        let marked = self.mark_thawed();
        self.open_gates();
        marked
    }

    /// Before the gates open: the image says that it is in use, or nothing is written to it any more.
    pub(crate) fn mark_thawed(&self) -> Result<()> {
        if self.mode() != Mode::ReadWrite {
            return Ok(());
        }
        self.wake_mmp()?;
        let marked = self.mark_in_use();
        if let Err(e) = &marked {
            tracing::error!("the superblock could not be marked as in use: {e}; read-only from here on");
            self.set_mode(Mode::ReadOnly);
            self.journal.abort(e.errno());
        }
        marked
    }

    /// The superblock of a filesystem that is being written to.
    pub(crate) fn mark_in_use(&self) -> Result<()> {
        let journal = self.journal.has_log();
        let now = self.clock.now().sec.max(0) as u64;
        self.store_super(|sb| {
            let mut features = sb.features();
            if journal {
                features.incompat |= Incompat::RECOVER;
            } else {
                sb.set_state(sb.state().difference(State::VALID));
            }
            if sb.orphan_file().is_some() {
                features.ro_compat |= RoCompat::ORPHAN_PRESENT;
            }
            sb.set_time(SbTime::Write, now);
            // These two bits contradict nothing.
            let _ = sb.set_features(features);
        })
    }

    /// Changes the options of the mount; read-only and read-write too.
    ///
    /// # Errors
    /// `Incompatible` for options that cannot change, and for writing to an image that changed while it was read-only; `Busy` while
    /// it is frozen; what could not be written. The options are the old ones then, unless the image could not be marked as in use again: it
    /// is read-only then.
    pub fn remount(&self, options: &MountOptions) -> Result<()> {
        let _whole = self.mount.whole.lock();
        self.check_alive()?;
        if self.mount.frozen.load(Ordering::Acquire) {
            return Err(Error::Busy);
        }
        let sb = self.superblock();
        let options = options.over_superblock(&sb);
        let mut resolved = options.resolve(&crate::mount::presets(&sb))?;
        let refuse = |why: &str| Err(Error::Incompatible(why.into()));
        match (self.mode(), options.read_only) {
            (Mode::ReadOnly, false) if self.dev_read_only => {
                return refuse(
                    "it was mounted read-only from a device or journal that cannot be written, or is replayed in memory only: \
                     mount it anew",
                );
            }
            (Mode::ReadOnly, false) if self.mount.half_begun.load(Ordering::Acquire) => {
                return refuse("an earlier remount for writing failed half-way: mount it anew");
            }
            (Mode::ReadOnly, false) if self.journal.is_aborted() => {
                return refuse("the journal was aborted: unmount and check it");
            }
            _ => {}
        }
        if options.data.is_some_and(|d| d != self.options().data) {
            return refuse("`data=` cannot change on a mounted filesystem");
        }
        let given = &self.options().given;
        let fixed = [
            ("journal_path", options.journal_path.is_some() && options.journal_path != given.journal_path),
            ("cache_size", options.cache_size.is_some() && options.cache_size != given.cache_size),
            ("pmem", options.pmem.is_some() && options.pmem != given.pmem),
            ("sb", options.sb.is_some() && options.sb != given.sb),
        ];
        if let Some((name, _)) = fixed.iter().find(|(_, changed)| *changed) {
            return refuse(&format!("`{name}=` cannot change on a mounted filesystem"));
        }
        let dax = self.options().dax;
        if options.dax.is_some_and(|asked| asked != dax) {
            return refuse("`dax=` cannot change on a mounted filesystem");
        }
        resolved.dax = dax;
        resolved.given.pmem = given.pmem;
        let (old, mode) = (self.options(), self.mode());
        self.use_options(Arc::new(resolved));
        let done = match (mode, options.read_only) {
            (Mode::ReadWrite, true) => self.to_read_only(),
            // Copies that were shown meanwhile go.
            (Mode::ReadOnly, false) => self.to_read_write().and_then(|()| self.hide_devices()),
            _ => Ok(()),
        };
        if done.is_err() && self.mode() == mode {
            self.use_options(old);
        }
        done?;
        if let Some(this) = self.this.upgrade() {
            this.start_lazy_init();
        }
        Ok(())
    }

    /// The words of `list` that this mount does not do: what a second mount of the same filesystem cannot have. Words that come to
    /// what is in force already, `ro` and `rw` are not among them.
    ///
    /// # Errors
    /// Words that are unknown or exclude each other.
    pub fn options_not_in_force(&self, list: &str) -> Result<Vec<String>> {
        let (now, presets) = (self.options(), crate::mount::presets(&self.superblock()));
        let in_force = |list: &str| -> Result<bool> {
            let mut given = now.given.clone();
            given.apply(list)?;
            given.read_only = now.given.read_only;
            let mut would = given.resolve(&presets)?;
            if given.dax == now.given.dax {
                would.dax = now.dax;
            }
            Ok(would.does_as(&now))
        };
        if in_force(list)? {
            return Ok(Vec::new());
        }
        let mut words = Vec::new();
        for word in list.split(',') {
            if !in_force(word)? {
                words.push(word.to_owned());
            }
        }
        Ok(words)
    }

    fn use_options(&self, options: Arc<Resolved>) {
        self.alloc.set_discard(options.discard);
        self.alloc.set_stripe(options.stripe);
        self.journal.set_commit_interval(Duration::from_secs(options.commit_secs.into()));
        self.journal.set_barrier(options.barrier);
        *self.options.write() = options;
        self.quota_remount();
    }

    fn to_read_write(&self) -> Result<()> {
        let again = self.mount.started.load(Ordering::Acquire);
        if !again {
            self.device.make_writable().map_err(|e| {
                let why = format!("its device was opened for reading and cannot be written now: {e}");
                Error::Incompatible(why.into())
            })?;
        }
        let mmp = crate::mmp::Protection::acquire(&self.device, &self.superblock(), false)?;
        let turned = self
            .hold_mmp(mmp)
            .and_then(|()| self.check_unchanged())
            .and_then(|()| if again { self.write_again() } else { self.begin_late() });
        if turned.is_err() && self.mode() != Mode::ReadWrite {
            self.let_go();
        }
        turned?;
        if !again && let Some(this) = self.this.upgrade() {
            this.start_threads();
        }
        Ok(())
    }

    /// The same where the error, if there is one, is not the caller's.
    fn let_go(&self) {
        if let Err(e) = self.release_mmp() {
            tracing::error!("multiple-mount protection: {e}");
        }
    }

    /// The first time that it is writable.
    fn begin_late(&self) -> Result<()> {
        let begun = self.announce().and_then(|()| self.turn_writable()).and_then(|()| self.take_up());
        if begun.is_err() {
            self.set_mode(Mode::ReadOnly);
            self.end_begun();
        }
        begun
    }

    /// After a mount for writing that failed half-way: nothing more is written, recovery does the rest.
    fn end_begun(&self) {
        if self.mount.begun.load(Ordering::Acquire) {
            self.mount.half_begun.store(true, Ordering::Release);
            self.journal.stop();
            // Waits for its thread. What it says is known: it was stopped.
            let _ = self.journal.close();
        }
    }

    /// From read-only back to read-write.
    fn write_again(&self) -> Result<()> {
        self.mark_in_use()?;
        self.turn_writable()?;
        let held = self.hold_quota_files(true);
        if held.is_err() {
            // If that fails too, it stays read-write.
            let _ = self.to_read_only();
        }
        held
    }

    /// Refuses to write to an image that somebody else has written to while it was read-only here: superblock and descriptors are
    /// as they were read, or last written. Not everybody heeds locks of the image (a loop device, a checker).
    fn check_unchanged(&self) -> Result<()> {
        let changed = || {
            let why = "its image was changed by somebody else since it was mounted: mount it anew";
            Error::Incompatible(why.into())
        };
        let mut there = [0; 1024];
        self.device.read_at(SUPERBLOCK_OFFSET, &mut there)?;
        let at = self.sb_offset();
        if !self.sb_buf.with(|bytes| bytes[at..at + 1024] == there) {
            return Err(changed());
        }
        let (size, desc_size) = (self.geo.block_size(), self.geo.desc_size());
        let (mut read, mut bytes) = (None, vec![0; size as usize]);
        for group in self.geo.group_numbers() {
            let Some((block, at)) = self.geo.desc_location(group) else { continue };
            if read != Some(block) {
                self.device.read_at(block.0 * u64::from(size), &mut bytes)?;
                read = Some(block);
            }
            let there = GroupDesc::decode(group, &bytes[at as usize..], desc_size)?;
            // The checksum is made when it is written.
            let known =
                self.alloc.group_desc(group).map(|desc| GroupDesc { checksum: there.checksum, ..desc });
            if known != Some(there) {
                return Err(changed());
            }
        }
        Ok(())
    }

    pub(crate) fn to_read_only(&self) -> Result<()> {
        // A device may still write what is then not written.
        let unpinned = || if self.pages.stats().pins > 0 { Err(Error::Busy) } else { Ok(()) };
        unpinned()?;
        // Whoever makes one now waits until it is read-only.
        let none_comes = || {
            self.gate.close(Level::Write);
            self.gate.close(Level::Fault);
            if without!(self, PinsCounted) { Ok(()) } else { unpinned() }
        };
        let done = self
            .hold_quota_files(false)
            .and_then(|()| none_comes())
            .and_then(|()| self.still())
            .and_then(|()| self.clean_or_in_use());
        let done = done.and_then(|()| {
            self.set_mode(Mode::ReadOnly);
            self.check_alive()
        });
        self.open_gates();
        if done.is_ok() {
            // Nothing is written any more.
            self.let_go();
        }
        if done.is_err()
            && let Err(e) = self.hold_quota_files(true)
        {
            tracing::error!("quota files, which are kept on, can be changed: {e}");
        }
        done
    }

    /// Stops the mount for good: nothing is written after this.
    ///
    /// # Errors
    /// `NotPermitted`; what could not be written before.
    pub fn shutdown(&self, how: ShutdownMode, cred: &Credentials) -> Result<()> {
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        if self.mode() != Mode::ReadWrite {
            self.set_mode(Mode::Shutdown);
            return self.end_stores();
        }
        let _whole = (how == ShutdownMode::Sync).then(|| self.mount.whole.lock());
        let done = match how {
            // All is written, and what comes now waits for the thaw.
            ShutdownMode::Sync if self.mount.frozen.load(Ordering::Acquire) => Ok(()),
            ShutdownMode::Sync => self.still().and_then(|()| self.write_still()),
            ShutdownMode::FlushLog => self.journal.commit_all().map(drop).map_err(Error::from),
            ShutdownMode::NoFlush => Ok(()),
        };
        self.set_mode(Mode::Shutdown);
        let done = done.and(self.end_stores());
        self.journal.stop();
        if how == ShutdownMode::Sync {
            // Whoever waited at the gates is told.
            self.open_gates();
        }
        done
    }

    /// Discards free blocks between bytes `start` and `start + len` in runs of at least `min_len` bytes; returns how many
    /// bytes were discarded.
    ///
    /// # Errors
    /// `NotPermitted`; `Invalid` for a range past the end or shorter than a block, and for runs longer than a group; the device's errors.
    pub fn trim(&self, start: u64, len: u64, min_len: u64, cred: &Credentials) -> Result<u64> {
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        let _write = self.begin_write()?;
        let shift = self.geo.log_block_size();
        if start >= self.geo.blocks_count() << shift || len < 1 << shift {
            return Err(Error::Invalid("range to trim"));
        }
        // No run is longer than a group.
        if min_len >> shift > u64::from(self.geo.blocks_per_group()) {
            return Err(Error::Invalid("length of runs to trim"));
        }
        let end = start.saturating_add(len) >> shift;
        let (first, end) = (Pblk(start >> shift), Pblk(end.min(self.geo.blocks_count())));
        self.journal.commit_all()?;
        let stop = || self.mode() != Mode::ReadWrite;
        Ok(self.alloc.trim(first, end, min_len >> shift, &stop)? << shift)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
