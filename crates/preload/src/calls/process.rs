//! The process: its beginning and end, fork, exec, threads.

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::abi::{interpose, is_inside, serve};
use crate::{config, limit, mount, real};

/// Run by the loader before the program's `main`, and after its `exit`.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let _ = serve::<c_int>(|| {
        if config::config().is_some() {
            config::begin();
            // SAFETY: these may run at any fork.
            unsafe { libc::pthread_atfork(Some(before_fork), None, Some(in_child)) };
            // SAFETY: it may run at exit. Registered first, it runs after the program's own.
            unsafe { libc::atexit(at_exit) };
        }
        Ok(Some(0))
    });
}

extern "C" fn at_exit() {
    // What streams of the C library still hold: it writes that later, when the filesystem is closed.
    // SAFETY: null means all streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    end();
}

fn end() {
    let _ = serve::<c_int>(|| {
        mount::end();
        Ok(Some(0))
    });
}

extern "C" fn before_fork() {
    let _ = serve::<c_int>(|| {
        mount::rest();
        Ok(Some(0))
    });
}

extern "C" fn in_child() {
    mount::forked();
}

interpose! {
    fn popen(command: *const c_char, mode: *const c_char) -> *mut libc::FILE,
        if config::config().is_some() => {
            mount::rest();
            Ok(Some(limit::starting(false, || real::call!(popen(command: *const c_char, mode: *const c_char) -> *mut libc::FILE))))
                .and_then(opened)
        };
    fn posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int,
        if config::config().is_some() => spawn(envp, |envp| {
            real::call!(posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn posix_spawnp(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int,
        if config::config().is_some() => spawn(envp, |envp| {
            real::call!(posix_spawnp(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn execve(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int,
        if config::config().is_some() => exec(envp, |envp| {
            real::call!(execve(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn execvpe(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int,
        if config::config().is_some() => exec(envp, |envp| {
            real::call!(execvpe(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn fexecve(fd: c_int, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int,
        if config::config().is_some() => exec(envp, |envp| {
            real::call!(fexecve(fd: c_int, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn execv(path: *const c_char, argv: *const *mut c_char) -> c_int,
        if config::config().is_some() => exec(environment(), |envp| {
            real::call!(execve(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
    fn execvp(path: *const c_char, argv: *const *mut c_char) -> c_int,
        if config::config().is_some() => exec(environment(), |envp| {
            real::call!(execvpe(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int)
        });
}

pub(super) type Environment = *const *mut c_char;

pub(super) fn environment() -> Environment {
    unsafe extern "C" {
        static environ: Environment;
    }
    // SAFETY: the C library's variable; it is read once.
    unsafe { environ }
}

/// A list of variables with the working directory inside the image in it, or without one.
struct Variables {
    list: Vec<*mut c_char>,
    _cwd: Option<Vec<u8>>,
}

impl Variables {
    fn new(envp: Environment) -> Option<Self> {
        let config = config::config()?;
        let mut cwd = config::cwd_variable(config);
        let name = config::CWD_VARIABLE.to_bytes();
        let mut list = Vec::new();
        let mut at = envp;
        while !at.is_null() {
            // SAFETY: the program says that it is a list that ends with a null pointer.
            let one = unsafe { *at };
            if one.is_null() {
                break;
            }
            // SAFETY: of C strings.
            let text = unsafe { CStr::from_ptr(one) }.to_bytes();
            if text.strip_prefix(name).is_none_or(|rest| rest.first() != Some(&b'=')) {
                list.push(one);
            }
            // SAFETY: this was not the end.
            at = unsafe { at.add(1) };
        }
        if let Some(cwd) = &mut cwd {
            list.push(cwd.as_mut_ptr().cast());
        }
        list.push(std::ptr::null_mut());
        Some(Self { list, _cwd: cwd })
    }
}

fn opened(stream: Option<*mut libc::FILE>) -> crate::abi::Answer<*mut libc::FILE> {
    if stream.is_some_and(<*mut libc::FILE>::is_null) {
        return Err(crate::abi::Errno(crate::abi::errno()));
    }
    Ok(stream)
}

fn spawn(envp: Environment, real: impl FnOnce(Environment) -> c_int) -> crate::abi::Answer<c_int> {
    mount::rest();
    let Some(variables) = Variables::new(envp) else { return Ok(None) };
    Ok(Some(limit::starting(false, || real(variables.list.as_ptr()))))
}

fn exec(envp: Environment, real: impl FnOnce(Environment) -> c_int) -> crate::abi::Answer<c_int> {
    let Some(variables) = Variables::new(envp) else { return Ok(None) };
    limit::starting(true, || real(variables.list.as_ptr()));
    Err(crate::abi::Errno(crate::abi::errno()))
}

/// A child of vfork shares its parent's memory: what it closes and opens would be closed and opened there. fork is a vfork that
/// POSIX allows.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_vfork"))]
unsafe extern "C" fn vfork() -> c_int {
    real::call!(fork() -> c_int)
}

/// These do not come back, so they are none of those above.
macro_rules! endings {
    ($($name:ident ($($arg:ident: $ty:ty)?) { $($first:tt)* })+) => { $(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[cfg_attr(test, unsafe(export_name = concat!("extant_test_", stringify!($name))))]
        #[cfg_attr(test, allow(non_snake_case, reason = "the C library's name"))]
        unsafe extern "C" fn $name($($arg: $ty)?) -> ! {
            if !is_inside() {
                $($first)*
            }
            real::call!($name($($arg: $ty)?) -> !)
        }
    )+ };
}

endings! {
    _exit(status: c_int) { end(); }
    _Exit(status: c_int) { end(); }
    quick_exit(status: c_int) { end(); }
    abort() { end(); }
}

/// A thread's function.
type Body = extern "C" fn(*mut c_void) -> *mut c_void;

/// What a thread of the library's starts with.
struct Own {
    body: Body,
    argument: *mut c_void,
}

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_pthread_create"))]
unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    body: Body,
    argument: *mut c_void,
) -> c_int {
    if !is_inside() {
        mount::note_thread();
        return create(thread, attributes, body, argument);
    }
    let own = Box::into_raw(Box::new(Own { body, argument }));
    let before = mask_signals(None);
    let done = create(thread, attributes, begin_own, own.cast());
    mask_signals(Some(&before));
    if done != 0 {
        // SAFETY: no thread was made that would take it.
        drop(unsafe { Box::from_raw(own) });
    }
    done
}

fn create(thread: *mut c_void, attributes: *const c_void, body: Body, argument: *mut c_void) -> c_int {
    real::call!(pthread_create(thread: *mut c_void, attributes: *const c_void, body: Body, argument: *mut c_void) -> c_int)
}

/// A thread of the library's is inside of it all its life.
extern "C" fn begin_own(own: *mut c_void) -> *mut c_void {
    crate::abi::stay_inside();
    // SAFETY: made for this thread.
    let own = unsafe { Box::from_raw(own.cast::<Own>()) };
    (own.body)(own.argument)
}

/// Blocks all signals in this thread (and those that it makes): they are the program's to handle, in its own threads. Or goes back to
/// what was before.
fn mask_signals(to: Option<&libc::sigset_t>) -> libc::sigset_t {
    // SAFETY: a set of bits.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: room for a set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: a set, and room for one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, to.unwrap_or(&all), &raw mut before) };
    before
}
