//! Times of inodes: 32 signed bits of seconds, plus 2 bits of epoch and 30 of nanoseconds in the extra field.
//!
//! Source: the kernel's ext4 documentation, "Inode Timestamps".

use zerocopy::little_endian::U32;

/// 1901-12-13 20:45:52 UTC.
pub(super) const MIN: i64 = i32::MIN as i64;
/// 2038-01-19 03:14:07 UTC, without extra field.
pub(super) const MAX_PLAIN: i64 = i32::MAX as i64;
/// 2446-05-10 22:38:55 UTC, with extra field.
pub(super) const MAX_EXTRA: i64 = 0x3_7fff_ffff;

/// Seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// Nanoseconds after `sec`, below 1,000,000,000.
    pub nsec: u32,
}

impl Timestamp {
    /// A whole second.
    #[must_use]
    pub const fn from_sec(sec: i64) -> Self {
        Self { sec, nsec: 0 }
    }

    /// The value whose on-disk seconds are these 32 bits and whose extra field is zero (EA inodes keep other things
    /// in time fields).
    #[must_use]
    pub const fn from_raw_seconds(raw: u32) -> Self {
        Self { sec: raw as i32 as i64, nsec: 0 }
    }

    /// Cut to what an inode can hold, with or without the extra field.
    #[must_use]
    pub fn clamp_to(self, has_extra: bool) -> Self {
        let max = if has_extra { MAX_EXTRA } else { MAX_PLAIN };
        let nsec = if has_extra { self.nsec.min(999_999_999) } else { 0 };
        match self.sec {
            s if s < MIN => Self { sec: MIN, nsec: 0 },
            s if s > max => Self { sec: max, nsec: 0 },
            sec => Self { sec, nsec },
        }
    }
}

/// From the fields on disk; nanoseconds out of range are cut.
pub(super) fn decode(seconds: u32, extra: Option<u32>) -> Timestamp {
    let low = i64::from(seconds as i32);
    match extra {
        None => Timestamp { sec: low, nsec: 0 },
        Some(extra) => {
            Timestamp { sec: low + (i64::from(extra & 3) << 32), nsec: (extra >> 2).min(999_999_999) }
        }
    }
}

/// The fields on disk; the time is cut to what they hold.
pub(super) fn encode(time: Timestamp, has_extra: bool) -> (U32, U32) {
    let time = time.clamp_to(has_extra);
    let low = time.sec as i32;
    let epoch = ((time.sec - i64::from(low)) >> 32) as u32 & 3;
    (U32::new(low as u32), U32::new(epoch | time.nsec << 2))
}
