//! Bugs of one line in the path of data, to see that suites notice them. Only with the feature `sharpness`, and then the one that
//! the environment variable `EXTANT_BUG` names; otherwise the question `bug!(Bug)` is the constant `false`.

/// A bug of one line.
#[cfg(feature = "sharpness")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A hole ends with the last whole block.
    PunchEnd,
    /// A range begins to be zeros at the first whole block.
    ZeroStart,
    /// What was cut off a file's last block is there again when the file grows.
    OldTail,
    /// One mapping for stores in 32 keeps them to itself.
    LostStores,
    /// One write in 64 that goes on into another page leaves out the first one, which it covers in part.
    TornWrite,
}

#[cfg(feature = "sharpness")]
const BUGS: [Bug; 5] = [Bug::PunchEnd, Bug::ZeroStart, Bug::OldTail, Bug::LostStores, Bug::TornWrite];

/// Whether this bug is the one that is there.
///
/// # Panics
/// If `EXTANT_BUG` names none.
#[cfg(feature = "sharpness")]
#[must_use]
pub fn is_there(bug: Bug) -> bool {
    static THERE: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let named = || {
        let name = std::env::var("EXTANT_BUG").ok().filter(|name| !name.is_empty())?;
        let found = BUGS.into_iter().find(|bug| format!("{bug:?}") == name);
        Some(found.unwrap_or_else(|| panic!("EXTANT_BUG={name}: there are {BUGS:?}")))
    };
    *THERE.get_or_init(named) == Some(bug)
}

/// Once in so many calls.
#[cfg(feature = "sharpness")]
#[must_use]
pub fn once_in(calls: u64) -> bool {
    static CALLS: extant_sync::atomic::AtomicU64 = extant_sync::atomic::AtomicU64::new(1);
    CALLS.fetch_add(1, extant_sync::atomic::Ordering::Relaxed).is_multiple_of(calls)
}

/// Whether the bug named is there; with a number, once in so many times.
#[cfg(feature = "sharpness")]
#[macro_export]
#[doc(hidden)]
macro_rules! bug {
    ($bug:ident) => {
        $crate::sharpness::is_there($crate::sharpness::Bug::$bug)
    };
    ($bug:ident, $calls:literal) => {
        $crate::bug!($bug) && $crate::sharpness::once_in($calls)
    };
}

/// Whether the bug named is there: never, in the product.
#[cfg(not(feature = "sharpness"))]
#[macro_export]
#[doc(hidden)]
macro_rules! bug {
    ($bug:ident) => {
        false
    };
    ($bug:ident, $calls:literal) => {
        false
    };
}
