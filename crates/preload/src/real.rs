//! The C library's own functions: what this library stands in front of.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of the C library, looked up when it is first called.
pub(crate) struct Real {
    name: &'static CStr,
    place: AtomicPtr<c_void>,
}

impl Real {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, place: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address. A C library without it (it was there when the program was linked) ends the process: there is no answer
    /// of the right type.
    pub(crate) fn address(&self) -> *mut c_void {
        let place = self.place.load(Ordering::Relaxed);
        if place.is_null() { self.look_up() } else { place }
    }

    #[cold]
    fn look_up(&self) -> *mut c_void {
        let place = self.try_look_up();
        if place.is_null() {
            crate::user::complain(&format!("the C library has no {}", self.name.to_string_lossy()));
            std::process::abort();
        }
        place
    }

    /// The same; null where there is none.
    pub(crate) fn try_look_up(&self) -> *mut c_void {
        // SAFETY: a C string; RTLD_NEXT asks for the next one after this library's own.
        let place = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.place.store(place, Ordering::Relaxed);
        place
    }
}

/// Calls the C library's function of this name and type: `call!(close(fd: c_int) -> c_int)`. The arguments are variables.
macro_rules! call {
    ($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty) => {{
        static REAL: $crate::real::Real = $crate::real::Real::new(
            // A C string from the name.
            match ::std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name with a zero byte"),
            },
        );
        let address = REAL.address();
        // SAFETY: the C library documents this type for the function of this name.
        let function = unsafe { ::std::mem::transmute::<*mut ::std::ffi::c_void, unsafe extern "C" fn($($ty),*) -> $ret>(address) };
        // SAFETY: the arguments are those that the caller gave for just this function.
        unsafe { function($($arg),*) }
    }};
}
pub(crate) use call;
