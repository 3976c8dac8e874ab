//! Errors of writeback, reported once to every open file.

use extant_sync::atomic::{AtomicU64, Ordering};

/// Set in the low bits: somebody has been told.
const SEEN: u64 = 1 << 15;
const ERRNO: u64 = SEEN - 1;
/// One error more.
const STEP: u64 = 1 << 16;

/// The last failed writeback of an inode, with a count.
#[derive(Debug, Default)]
pub struct ErrSeq(AtomicU64);

/// What one open file has been told. Taken with [`ErrSeq::sample`] when it is opened.
#[derive(Debug)]
pub struct ErrCursor(AtomicU64);

impl ErrSeq {
    /// Remembers a failure.
    pub fn set(&self, errno: i32) {
        let errno = u64::from(errno.unsigned_abs()) & ERRNO;
        let mut old = self.0.load(Ordering::Acquire);
        loop {
            // An error nobody was told of needs no new number.
            let count = if old & SEEN != 0 || old == 0 {
                (old & !(STEP - 1)).wrapping_add(STEP)
            } else {
                old & !(STEP - 1)
            };
            match self.0.compare_exchange(old, count | errno, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// A cursor for a file that is opened now. An error that nobody has been told of yet is told to it.
    #[must_use]
    pub fn sample(&self) -> ErrCursor {
        let now = self.0.load(Ordering::Acquire);
        ErrCursor(AtomicU64::new(if now & SEEN != 0 { now } else { 0 }))
    }

    /// The error since `cursor`'s last check, if any; the cursor is moved on.
    pub fn check(&self, cursor: &ErrCursor) -> Option<i32> {
        let now = self.0.load(Ordering::Acquire);
        if now & !SEEN == cursor.0.load(Ordering::Acquire) & !SEEN {
            return None;
        }
        // If this fails there is a newer error, which the next check finds.
        let _ = self.0.compare_exchange(now, now | SEEN, Ordering::AcqRel, Ordering::Relaxed);
        let before = cursor.0.swap(now | SEEN, Ordering::AcqRel);
        // Two threads with one open file: one of them reports.
        (before & !SEEN != now & !SEEN).then(|| i32::try_from(now & ERRNO).unwrap_or(i32::MAX))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::ErrSeq;

    #[test]
    fn every_open_file_is_told_once() {
        let seq = ErrSeq::default();
        let (a, b) = (seq.sample(), seq.sample());
        assert_eq!(seq.check(&a), None);
        seq.set(5);
        assert_eq!(seq.check(&a), Some(5));
        assert_eq!(seq.check(&a), None);
        let late = seq.sample();
        assert_eq!(seq.check(&late), None, "it was reported before this file was opened");
        assert_eq!(seq.check(&b), Some(5));
        seq.set(5);
        seq.set(28);
        assert_eq!((seq.check(&a), seq.check(&b), seq.check(&late)), (Some(28), Some(28), Some(28)));
        assert_eq!((seq.check(&a), seq.check(&b), seq.check(&late)), (None, None, None));
    }

    #[test]
    fn an_error_nobody_saw_is_told_to_the_next_file() {
        let seq = ErrSeq::default();
        seq.set(5);
        let (a, b) = (seq.sample(), seq.sample());
        assert_eq!(seq.check(&a), Some(5));
        assert_eq!(seq.check(&b), Some(5));
    }
}
