//! Points in time, and when access times move.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use extant_format::inode::Timestamp;

use crate::options::AtimePolicy;

/// The clock that inodes' times come from.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The present.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        timestamp(SystemTime::now())
    }
}

/// `t` as a timestamp.
#[must_use]
pub fn timestamp(t: SystemTime) -> Timestamp {
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() }
        }
        Err(e) => {
            let before = e.duration();
            let sec = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timestamp { sec: -sec, nsec: 0 },
                n => Timestamp { sec: -sec - 1, nsec: 1_000_000_000 - n },
            }
        }
    }
}

/// A timestamp as the standard library's time.
#[must_use]
pub fn system_time(t: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|b| b.checked_add(Duration::from_nanos(t.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// Whether reading moves the access time, by the mount's policy: relatime moves it when it is not after the last
/// change, or older than a day.
#[must_use]
pub(crate) fn atime_moves(
    policy: AtimePolicy,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    now: Timestamp,
) -> bool {
    match policy {
        AtimePolicy::Noatime => false,
        AtimePolicy::Strictatime => now != atime,
        AtimePolicy::Relatime => {
            atime <= mtime || atime <= ctime || now.sec.saturating_sub(atime.sec) >= 86_400
        }
    }
}

#[cfg(test)]
mod tests {
    use extant_format::inode::Timestamp;

    use super::{atime_moves, system_time, timestamp};
    use crate::options::AtimePolicy;

    #[test]
    fn system_time_both_ways() {
        for t in [(0, 0), (1, 999_999_999), (-1, 0), (-1, 500_000_000), (0x3_7fff_ffff, 1)] {
            let t = Timestamp { sec: t.0, nsec: t.1 };
            assert_eq!(timestamp(system_time(t)), t);
        }
    }

    #[test]
    fn relatime_moves_once_after_a_change_and_once_a_day() {
        let s = Timestamp::from_sec;
        let moves = |a, m, n| atime_moves(AtimePolicy::Relatime, s(a), s(m), s(m), s(n));
        assert!(moves(10, 10, 11));
        assert!(!moves(11, 10, 12));
        assert!(moves(11, 10, 11 + 86_400));
    }
}
