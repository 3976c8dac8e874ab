//! What a journal is opened with.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the journal's times come from.
pub trait Clock: Send + Sync + Debug {
    /// Time since 1970: what commit blocks carry, and what the age of a transaction is measured with.
    fn now(&self) -> Duration;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// Journal features that the filesystem's own features ask for; a mount sets them on an empty log, as Linux does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedFeatures {
    /// Checksums of version 3: on a filesystem with `metadata_csum`.
    pub checksums: bool,
    /// 64-bit block numbers: on a filesystem with `64bit`.
    pub bit64: bool,
}

/// How a journal runs.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Features to set in the journal superblock; `None` leaves them.
    pub features: Option<WantedFeatures>,
    /// The `commit=` interval. A thread commits what is older; `None` starts no thread, and only callers commit.
    pub commit_interval: Option<Duration>,
    /// False (`barrier=0`): no flushes.
    pub barrier: bool,
    /// Where times come from.
    pub clock: Arc<dyn Clock>,
    /// The most blocks a transaction may grow to; `None`: what fits in a quarter of the log and of the cache.
    pub max_transaction_blocks: Option<u32>,
    /// The guard that a schedule test takes away.
    #[cfg(feature = "shuttle")]
    pub mutant: crate::Mutant,
}

impl Default for JournalOptions {
    /// Five seconds, flushes on, the system's clock, features left alone.
    fn default() -> Self {
        Self {
            features: None,
            commit_interval: Some(Duration::from_secs(5)),
            barrier: true,
            clock: Arc::new(SystemClock),
            max_transaction_blocks: None,
            #[cfg(feature = "shuttle")]
            mutant: crate::Mutant::None,
        }
    }
}
