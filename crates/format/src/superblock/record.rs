//! Times and recorded errors of the superblock.

use zerocopy::little_endian::U32;

use super::{RawSuperblock, State, Superblock};
use crate::{Compat, FormatError, Incompat, RoCompat};

/// One of the superblock's 40-bit times, in seconds since 1970 (0 is "never").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SbTime {
    /// Last mount.
    Mount,
    /// Last write.
    Write,
    /// Last check.
    LastCheck,
    /// When the filesystem was made.
    Mkfs,
    /// First error.
    FirstError,
    /// Last error.
    LastError,
}

/// An error record of the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorRecord {
    /// Seconds since 1970.
    pub time: u64,
    /// Inode, or 0.
    pub ino: u32,
    /// Block, or 0.
    pub block: u64,
    /// Name of the function, zero-padded.
    pub func: [u8; 32],
    /// Line number.
    pub line: u32,
    /// The kernel's small code for the error (`s_*_error_errcode`).
    pub errcode: u8,
}

impl RawSuperblock {
    /// A time in seconds since 1970; 0 is "never".
    #[must_use]
    pub fn time(&self, which: SbTime) -> u64 {
        let (lo, hi) = match which {
            SbTime::Mount => (self.s_mtime, self.s_mtime_hi),
            SbTime::Write => (self.s_wtime, self.s_wtime_hi),
            SbTime::LastCheck => (self.s_lastcheck, self.s_lastcheck_hi),
            SbTime::Mkfs => (self.s_mkfs_time, self.s_mkfs_time_hi),
            SbTime::FirstError => (self.s_first_error_time, self.s_first_error_time_hi),
            SbTime::LastError => (self.s_last_error_time, self.s_last_error_time_hi),
        };
        u64::from(lo.get()) | u64::from(hi) << 32
    }
}

impl Superblock {
    /// A time in seconds since 1970.
    #[must_use]
    pub fn time(&self, which: SbTime) -> u64 {
        self.raw.time(which)
    }

    /// Stores a time; beyond 40 bits it is cut to the largest.
    pub fn set_time(&mut self, which: SbTime, seconds: u64) {
        let seconds = seconds.min((1 << 40) - 1);
        let (low, high) = (U32::new(seconds as u32), (seconds >> 32) as u8);
        let r = &mut self.raw;
        let (lo, hi) = match which {
            SbTime::Mount => (&mut r.s_mtime, &mut r.s_mtime_hi),
            SbTime::Write => (&mut r.s_wtime, &mut r.s_wtime_hi),
            SbTime::LastCheck => (&mut r.s_lastcheck, &mut r.s_lastcheck_hi),
            SbTime::Mkfs => (&mut r.s_mkfs_time, &mut r.s_mkfs_time_hi),
            SbTime::FirstError => (&mut r.s_first_error_time, &mut r.s_first_error_time_hi),
            SbTime::LastError => (&mut r.s_last_error_time, &mut r.s_last_error_time_hi),
        };
        (*lo, *hi) = (low, high);
    }

    /// `s_error_count`
    #[must_use]
    pub fn error_count(&self) -> u32 {
        self.raw.s_error_count.get()
    }

    /// The first error on record, `None` while there is none.
    #[must_use]
    pub fn first_error(&self) -> Option<ErrorRecord> {
        let r = &self.raw;
        (self.error_count() != 0).then(|| ErrorRecord {
            time: self.time(SbTime::FirstError),
            ino: r.s_first_error_ino.get(),
            block: r.s_first_error_block.get(),
            func: r.s_first_error_func,
            line: r.s_first_error_line.get(),
            errcode: r.s_first_error_errcode,
        })
    }

    /// The last error on record, `None` while there is none.
    #[must_use]
    pub fn last_error(&self) -> Option<ErrorRecord> {
        let r = &self.raw;
        (self.error_count() != 0).then(|| ErrorRecord {
            time: self.time(SbTime::LastError),
            ino: r.s_last_error_ino.get(),
            block: r.s_last_error_block.get(),
            func: r.s_last_error_func,
            line: r.s_last_error_line.get(),
            errcode: r.s_last_error_errcode,
        })
    }

    /// Counts an error: the last one always, the first one if none is on record; sets the error state.
    pub fn record_error(&mut self, e: &ErrorRecord) {
        let first = self.error_count() == 0 || self.time(SbTime::FirstError) == 0;
        if first {
            self.set_time(SbTime::FirstError, e.time);
            self.raw.s_first_error_ino.set(e.ino);
            self.raw.s_first_error_block.set(e.block);
            self.raw.s_first_error_func = e.func;
            self.raw.s_first_error_line.set(e.line);
            self.raw.s_first_error_errcode = e.errcode;
        }
        self.set_time(SbTime::LastError, e.time);
        self.raw.s_last_error_ino.set(e.ino);
        self.raw.s_last_error_block.set(e.block);
        self.raw.s_last_error_func = e.func;
        self.raw.s_last_error_line.set(e.line);
        self.raw.s_last_error_errcode = e.errcode;
        self.raw.s_error_count.set(self.error_count().saturating_add(1));
        self.set_state(self.state() | State::ERROR);
    }

    /// Takes over the errors that another copy of the superblock has on record, and the error state.
    pub fn take_errors_of(&mut self, other: &Self) {
        for which in [SbTime::FirstError, SbTime::LastError] {
            self.set_time(which, other.time(which));
        }
        let (to, from) = (&mut self.raw, &other.raw);
        to.s_error_count = from.s_error_count;
        to.s_first_error_ino = from.s_first_error_ino;
        to.s_first_error_block = from.s_first_error_block;
        to.s_first_error_func = from.s_first_error_func;
        to.s_first_error_line = from.s_first_error_line;
        to.s_first_error_errcode = from.s_first_error_errcode;
        to.s_last_error_ino = from.s_last_error_ino;
        to.s_last_error_block = from.s_last_error_block;
        to.s_last_error_func = from.s_last_error_func;
        to.s_last_error_line = from.s_last_error_line;
        to.s_last_error_errcode = from.s_last_error_errcode;
        self.set_state(self.state() | State::ERROR);
    }

    /// Takes over what changes with use and is written to the primary superblock, but not to each backup: the state and the errors on
    /// record, the orphans, the mounts, and the features that come with use.
    ///
    /// # Errors
    /// Features that contradict each other.
    pub fn take_use_of(&mut self, primary: &Self) -> Result<(), FormatError> {
        self.take_errors_of(primary);
        self.set_state(primary.state());
        self.set_last_orphan(primary.last_orphan());
        self.set_mnt_count(primary.mount_counts().0);
        self.set_kbytes_written(primary.kbytes_written());
        for which in [SbTime::Mount, SbTime::Write, SbTime::LastCheck] {
            self.set_time(which, primary.time(which));
        }
        let (mut to, from) = (self.features(), primary.features());
        to.incompat.set(Incompat::RECOVER, from.incompat.contains(Incompat::RECOVER));
        to.ro_compat.set(RoCompat::ORPHAN_PRESENT, from.ro_compat.contains(RoCompat::ORPHAN_PRESENT));
        to.ro_compat |= from.ro_compat & RoCompat::LARGE_FILE;
        to.compat |= from.compat & Compat::EXT_ATTR;
        self.set_features(to)
    }
}
