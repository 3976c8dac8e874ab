//! Guards that the schedule tests take away, one at a time, to see that the tests notice. Only with the feature `shuttle`; otherwise
//! the question `without!(journal, Guard)` is the constant `false`.

/// A guard of the journal that can be taken away.
#[cfg(feature = "shuttle")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All guards are there.
    #[default]
    None,
    /// A handle that changes a block of the transaction being committed does not leave it the old content.
    NoCopyForCommit,
    /// The last handle wakes the committer without having taken the lock under which that looks.
    WakeWithoutLock,
    /// An abort does not wake who waits.
    SilentAbort,
    /// A transaction counts as durable before observers have heard of it.
    DurableBeforeTold,
    /// A freed block is let go while a checkpoint still writes it.
    ReuseUnderCheckpoint,
}

/// Whether the guard named is taken away in this run.
#[cfg(feature = "shuttle")]
macro_rules! without {
    ($journal:expr, $mutant:ident) => {
        $journal.options.mutant == $crate::mutant::Mutant::$mutant
    };
}

/// Whether the guard named is taken away in this run: never, in the product.
#[cfg(not(feature = "shuttle"))]
macro_rules! without {
    ($journal:expr, $mutant:ident) => {
        false
    };
}

pub(crate) use without;
