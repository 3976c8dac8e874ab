//! A library for `LD_PRELOAD` that serves an image inside an unmodified program's own process.
//!
//! ```text
//! LD_PRELOAD=libextant_preload.so EXTANT_IMAGE=disk.img EXTANT_ROOT=/x program /x/file …
//! ```
//!
//! The C library's calls about paths below `EXTANT_ROOT`, and about descriptors opened there, are answered by the
//! [`extant`] library on the image; all others go on to the C library. `docs/preload.md` says what is served.
//!
//! # Parts
//! | module | what |
//! |---|---|
//! | `abi` | what every exported function does first and last: guard, errno, panics |
//! | `real` | the C library's own functions |
//! | `config` | the environment; which paths are ours; the working directory |
//! | `mount` | the filesystem: opened when it is first needed, closed at exit, fork and exec |
//! | `limit` | RLIMIT_FSIZE: the program's, and the kernel's |
//! | `table` | descriptors and what they stand for |
//! | `description` | an open file, shared by its descriptors |
//! | `walk` | from a path to an inode |
//! | `user` | memory and strings of the program |
//! | `calls` | the exported functions |
//!
//! # Rules
//! - A descriptor of ours is a real one, of `/dev/null` opened for neither reading nor writing: numbers, limits, `dup`, `poll`
//!   and `close` are the kernel's. What reaches it past this library gets an error and changes nothing.
//! - While a thread is inside this library, its calls go straight to the C library (`abi`): the device and the filesystem's
//!   threads are never served by themselves, and a signal handler that interrupts a call is refused, not deadlocked.
//! - Nothing unwinds into the program: a panic is reported on standard error and answered with EIO.

#![allow(unsafe_code, reason = "the C ABI: pointers of the program, and functions of the C library")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("structures of the plain and the 64-bit calls are the same on 64-bit Linux only");

mod abi;
mod calls;
mod config;
mod description;
#[cfg(feature = "test-flips")]
mod flips;
mod limit;
mod mount;
mod real;
mod table;
mod user;
mod walk;
