//! Guards of the threads that answer faults, which the tests take away one at a time to see what is then not answered.

/// A guard that can be taken away, in tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Guard {
    /// All are there.
    #[default]
    None,
    /// A thread that begins anew has everybody who waits ask again.
    LostMessage,
    /// A fault whose handler panicked is answered.
    PanicAnswered,
    /// Who waits is woken too when the page was there already.
    WakeWhenThere,
}

/// Whether the guard named is taken away: never, in the product.
macro_rules! without {
    ($shared:expr, $guard:ident) => {
        cfg!(test) && $shared.is_without($crate::real::mutant::Guard::$guard)
    };
}

pub(super) use without;
