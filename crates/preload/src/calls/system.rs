//! system(3): the C library's, which starts the shell out of sight; where the program's limits have to be the kernel's for that moment
//! ([`limit`]), the same by posix_spawn(3).

use std::ffi::{c_char, c_int, c_short, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr;

use libc::{SIG_BLOCK, SIG_IGN, SIG_SETMASK, SIGCHLD, SIGINT, SIGQUIT, sigset_t};

use super::process::{Environment, environment};
use crate::abi::{errno, is_inside, serve, set_errno};
use crate::{config, limit, mount, real};

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, unsafe(export_name = "extant_test_system"))]
unsafe extern "C" fn system(command: *const c_char) -> c_int {
    if !is_inside() && config::config().is_some() {
        let mut limited = false;
        let _ = serve::<c_int>(|| {
            mount::rest();
            limited = !command.is_null() && !mount::is_forked() && limit::hides();
            Ok(Some(0))
        });
        if limited {
            return run(command);
        }
    }
    real::call!(system(command: *const c_char) -> c_int)
}

/// The signals that the program does not get while it waits for a command.
struct Quiet {
    actions: [(c_int, libc::sigaction); 2],
    mask: sigset_t,
}

impl Quiet {
    fn begin() -> Self {
        let actions = [SIGINT, SIGQUIT].map(|signal| {
            // SAFETY: a structure of integers.
            let (mut ignore, mut before): (libc::sigaction, libc::sigaction) = unsafe { zeroed() };
            ignore.sa_sigaction = SIG_IGN;
            // SAFETY: an action, and room for one.
            unsafe { libc::sigaction(signal, &raw const ignore, &raw mut before) };
            (signal, before)
        });
        // SAFETY: sets of bits.
        let (mut child, mut mask): (sigset_t, sigset_t) = unsafe { zeroed() };
        // SAFETY: a set.
        unsafe { libc::sigaddset(&raw mut child, SIGCHLD) };
        // SAFETY: a set, and room for one.
        unsafe { libc::pthread_sigmask(SIG_BLOCK, &raw const child, &raw mut mask) };
        Self { actions, mask }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (signal, before) in &self.actions {
            // SAFETY: what it was before.
            unsafe { libc::sigaction(*signal, before, ptr::null_mut()) };
        }
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const self.mask, ptr::null_mut()) };
    }
}

fn run(command: *const c_char) -> c_int {
    let quiet = Quiet::begin();
    let mut started = Err(libc::EIO);
    let _ = serve::<c_int>(|| {
        started = start(command, &quiet);
        Ok(Some(0))
    });
    let done = match started {
        Ok(pid) => wait(pid),
        // As a shell that could not be executed.
        Err(_) => Ok(127 << 8),
    };
    drop(quiet);
    done.unwrap_or_else(|error| {
        set_errno(error);
        -1
    })
}

fn start(command: *const c_char, quiet: &Quiet) -> Result<c_int, c_int> {
    let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    // SAFETY: room for attributes.
    match unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) } {
        0 => {}
        error => return Err(error),
    }
    let place = attributes.as_mut_ptr();
    // SAFETY: a set of bits.
    let mut default: sigset_t = unsafe { zeroed() };
    for (signal, _) in quiet.actions.iter().filter(|(_, before)| before.sa_sigaction != SIG_IGN) {
        // SAFETY: a set.
        unsafe { libc::sigaddset(&raw mut default, *signal) };
    }
    // SAFETY: attributes that were made above, and a set.
    unsafe { libc::posix_spawnattr_setsigdefault(place, &raw const default) };
    // SAFETY: as above.
    unsafe { libc::posix_spawnattr_setsigmask(place, &raw const quiet.mask) };
    let flags = (libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK) as c_short;
    // SAFETY: as above.
    unsafe { libc::posix_spawnattr_setflags(place, flags) };
    let words = [c"sh".as_ptr(), c"-c".as_ptr(), c"--".as_ptr(), command, ptr::null()];
    let mut child: c_int = 0;
    let (pid, path, actions): (*mut c_int, _, *const c_void) =
        (&raw mut child, c"/bin/sh".as_ptr(), ptr::null());
    let (with, argv, envp): (*const c_void, Environment, _) =
        (place.cast_const().cast(), words.as_ptr().cast(), environment());
    let done = limit::starting(
        false,
        || real::call!(posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, with: *const c_void, argv: Environment, envp: Environment) -> c_int),
    );
    // SAFETY: as above; they are not used any more.
    unsafe { libc::posix_spawnattr_destroy(place) };
    if done == 0 { Ok(child) } else { Err(done) }
}

fn wait(pid: c_int) -> Result<c_int, c_int> {
    let mut status = 0;
    loop {
        // SAFETY: room for a status.
        let done = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        match errno() {
            _ if done == pid => return Ok(status),
            libc::EINTR => {}
            error => return Err(error),
        }
    }
}
