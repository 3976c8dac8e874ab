//! Guards that the schedule tests take away, one at a time, to see that the tests notice. Only with the feature `shuttle`; otherwise
//! the question `without!(Guard)` is the constant `false`.

#[cfg(feature = "shuttle")]
mod explored {
    use std::sync::atomic::{AtomicU8, Ordering};

    /// A guard of the journal that can be taken away.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Mutant {
        /// All guards are there.
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

    static CURRENT: AtomicU8 = AtomicU8::new(0);

    /// Takes a guard away, for the whole process.
    pub fn remove_guard(mutant: Mutant) {
        CURRENT.store(mutant as u8, Ordering::SeqCst);
    }

    /// Whether this guard has been taken away.
    pub(crate) fn is(mutant: Mutant) -> bool {
        CURRENT.load(Ordering::SeqCst) == mutant as u8
    }
}

#[cfg(feature = "shuttle")]
pub(crate) use explored::is;
#[cfg(feature = "shuttle")]
pub use explored::{Mutant, remove_guard};

/// Whether the guard named is taken away in this run.
#[cfg(feature = "shuttle")]
macro_rules! without {
    ($mutant:ident) => {
        $crate::mutant::is($crate::mutant::Mutant::$mutant)
    };
}

/// Whether the guard named is taken away in this run: never, in the product.
#[cfg(not(feature = "shuttle"))]
macro_rules! without {
    ($mutant:ident) => {
        false
    };
}

pub(crate) use without;
