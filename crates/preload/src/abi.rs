//! What every exported function does first and last.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::c_int;

/// An error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errno(pub(crate) c_int);

impl From<extant::Error> for Errno {
    fn from(error: extant::Error) -> Self {
        Self(error.errno())
    }
}

/// `Ok(None)`: not ours, the C library is to answer.
pub(crate) type Answer<T> = Result<Option<T>, Errno>;

/// What a call gives when it fails.
pub(crate) trait Fails {
    const FAILED: Self;
}

impl Fails for c_int {
    const FAILED: Self = -1;
}

impl Fails for i64 {
    const FAILED: Self = -1;
}

impl Fails for isize {
    const FAILED: Self = -1;
}

impl<T> Fails for *mut T {
    const FAILED: Self = std::ptr::null_mut();
}

/// The address of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) *mut libc::c_void);

impl Fails for Address {
    const FAILED: Self = Self(libc::MAP_FAILED);
}

thread_local! {
    /// This thread is inside the library.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the library: what it calls then is the library's own.
pub(crate) fn is_inside() -> bool {
    INSIDE.get()
}

/// For a thread of the library's.
pub(crate) fn stay_inside() {
    INSIDE.set(true);
}

/// Sets the guard, and takes it back.
struct Inside;

impl Inside {
    fn enter() -> Option<Self> {
        if INSIDE.replace(true) { None } else { Some(Self) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

pub(crate) fn errno() -> c_int {
    // SAFETY: always a valid pointer to this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: always a valid pointer to this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place = value };
}

/// Runs what answers a call. `None`: the C library is to answer. Errno changes only when the call fails.
pub(crate) fn serve<T: Fails>(body: impl FnOnce() -> Answer<T>) -> Option<T> {
    let inside = Inside::enter()?;
    let before = errno();
    let answer = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        crate::user::complain("a panic was caught; the call gets EIO");
        Err(Errno(libc::EIO))
    });
    drop(inside);
    crate::limit::deliver();
    match answer {
        Ok(value) => {
            set_errno(before);
            value
        }
        Err(Errno(number)) => {
            set_errno(number);
            Some(T::FAILED)
        }
    }
}

/// Exported functions. Each is its own name, other names for the same in brackets, and the answer:
///
/// - `if CONDITION => ANSWER`: asked only where the (cheap) condition holds;
/// - `at ROUTE = DIRFD, PATH => ANSWER`: about a path; the answer may send the call elsewhere through `ROUTE`.
///
/// In unit tests they have other names: the test program is to have the C library's own.
///
/// Where there is no answer the C library's function is called with the same arguments.
macro_rules! interpose {
    () => {};
    (fn $name:ident $([$($alias:ident),+])? ($($args:tt)*) -> $ret:ty, if $when:expr => $body:expr; $($rest:tt)*) => {
        interpose!(@define $name ($($args)*) $ret {
            if $when && let Some(answer) = $crate::abi::serve::<$ret>(|| $body) {
                return answer;
            }
        });
        interpose!(@aliases [$($($alias)+)?] $name ($($args)*) $ret);
        interpose!($($rest)*);
    };
    (fn $name:ident $([$($alias:ident),+])? ($($args:tt)*) -> $ret:ty,
        $(at $route:ident = $dirfd:expr, $path:ident),+ => $body:expr; $($rest:tt)*) => {
        interpose!(@define $name ($($args)*) $ret {
            $(let mut $route = $crate::walk::Route::new($dirfd, $path);)+
            if let Some(answer) = $crate::abi::serve::<$ret>(|| $body) {
                return answer;
            }
            $(let $path = $route.path();)+
        });
        interpose!(@aliases [$($($alias)+)?] $name ($($args)*) $ret);
        interpose!($($rest)*);
    };
    (@define $name:ident ($($arg:ident: $ty:ty),* $(,)?) $ret:ty { $($ours:tt)* }) => {
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[cfg_attr(test, unsafe(export_name = concat!("extant_test_", stringify!($name))))]
        unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            $($ours)*
            $crate::real::call!($name($($arg: $ty),*) -> $ret)
        }
    };
    (@aliases [$($alias:ident)*] $name:ident $args:tt $ret:ty) => {
        $(interpose!(@alias $alias $name $args $ret);)*
    };
    (@alias $alias:ident $name:ident ($($arg:ident: $ty:ty),* $(,)?) $ret:ty) => {
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[cfg_attr(test, unsafe(export_name = concat!("extant_test_", stringify!($alias))))]
        unsafe extern "C" fn $alias($($arg: $ty),*) -> $ret {
            // SAFETY: the same function under another name.
            unsafe { $name($($arg),*) }
        }
    };
}
pub(crate) use interpose;
