//! How far it is, for whoever shows it.

/// Hears about progress. Methods may be called from several threads at once and must be quick.
pub trait Progress: Sync {
    /// A new stage begins; `total` units follow (0: not known).
    fn stage(&self, what: &'static str, total: u64);
    /// `units` more are done.
    fn advance(&self, units: u64);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
}
