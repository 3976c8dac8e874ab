//! `extant exec`: a command that sees an image mounted, without any right.
//!
//! The process moves into a mount namespace of its own (and a user namespace, unless it is root), mounts there, runs the
//! command, unmounts, and passes its status on. Nobody else sees the mount.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use extant_sync::{Arc, Mutex, Rank};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::fakeroot::{self, Answerer};
use super::{CommandError, Options, log, mount};
use crate::adapter::{Adapter, AdapterOptions};
use crate::mount::{MountRequest, enter_namespace, mount_direct, unmount};
use crate::session::{Session, SessionOptions};

/// What `extant exec` is asked to do.
#[derive(Clone, Debug, Default)]
pub struct ExecArgs {
    /// Image file or block device.
    pub image: PathBuf,
    /// `-o`.
    pub options: Vec<String>,
    /// Ids and device nodes that the namespace does not have go into the image nevertheless.
    pub fakeroot: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// Statuses for a command that did not run, as of env(1).
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// How a command ended, or why it did not run.
type Ran = Result<ExitStatus, std::io::Error>;

/// The variable that names the directory.
const ROOT: &str = "EXTANT_ROOT";

/// Runs a command in a namespace where the image is mounted at `$EXTANT_ROOT`; returns its exit status (128 and the
/// signal's number if a signal ended it; 127 if there is no such command, 126 if it cannot be run, as env(1)). SIGTERM and SIGHUP are passed on to it. The image is clean when it returns. Must be
/// called while the process has one thread.
pub fn exec(args: &ExecArgs) -> Result<u8, CommandError> {
    let options = Options::parse(&args.options.join(","))?;
    let Some((program, rest)) = args.command.split_first() else {
        return Err(CommandError::usage("no command"));
    };
    let image = args.image.canonicalize();
    let image = image.map_err(|e| CommandError::failure(format!("{}: {e}", args.image.display())))?;
    // Root has all ids, and makes no user namespace.
    let fakeroot = args.fakeroot && !rustix::process::geteuid().is_root();
    enter_namespace().map_err(|e| CommandError::system(e.to_string()))?;
    let asked = Asked::listen()?;
    log::start(if options.trace { tracing::Level::TRACE } else { tracing::Level::WARN });
    let dir = Directory::new()?;
    let fs = mount::open(&image, &options, Some(&dir.0))?.fs;
    let writeback_cache = options.writeback_cache;
    let adapter =
        Adapter::new(fs, AdapterOptions { writeback_cache, as_root: fakeroot, ..Default::default() });
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", dir.0.display()));
    let mut request = MountRequest::new(&image, &dir.0);
    request.flags = options.flags;
    let session_options =
        SessionOptions { readers: options.readers, pin: options.pin, ..SessionOptions::default() };
    let status = mount_direct(&request).and_then(|device| {
        let session = Session::start(device, &adapter, session_options)?;
        adapter.set_notifier(session.notifier());
        std::thread::scope(|scope| {
            let server = scope.spawn(|| session.run(&adapter));
            // The terminal's signals are for the command; this process must outlive it.
            let run = || asked.run(Command::new(program).args(rest).env(ROOT, &dir.0));
            let status = ignoring_signals(|| if fakeroot { trapped(&adapter, &dir.0, run) } else { run() });
            // What the command has left running may still use it; the mount ends with the last user.
            unmount(&dir.0, false).or_else(|_| unmount(&dir.0, true))?;
            let served = server.join().unwrap_or_else(|_| Err(std::io::Error::other("the server panicked")));
            served.and(status)
        })
    });
    adapter.finish();
    let status = status.map_err(|e| at(&e))?;
    let not_run = |e: std::io::Error| CommandError {
        status: if e.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE },
        reason: format!("{}: {e}", program.display()),
    };
    adapter.ended().unwrap_or(Ok(())).map_err(|e| at(&format!("unmount: {e}")))?;
    let status = status.map_err(not_run)?;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    Ok(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(u8::MAX))
}

/// Runs `run` in a thread whose system calls about ids are answered by another one, and those of all that it starts.
fn trapped<R: Send>(
    adapter: &Adapter,
    dir: &Path,
    run: impl FnOnce() -> std::io::Result<R> + Send,
) -> std::io::Result<R> {
    let answerer = Answerer::new(adapter, dir)?;
    let (stop, stopper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (give, take) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || {
            if let Ok(listener) = take.recv() {
                answerer.run(&listener, &stop);
            }
        });
        let running = scope.spawn(move || {
            give.send(fakeroot::trap()?).map_err(std::io::Error::other)?;
            run()
        });
        let result = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        drop(stopper);
        answering.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result
    })
}

/// SIGTERM and SIGHUP: the command is asked to end, not this process, which has to unmount.
struct Asked(Arc<Mutex<Running>>);

/// What is known of the command.
#[derive(Default)]
struct Running {
    command: Option<OwnedFd>,
    /// A signal that came before it ran.
    early: Option<i32>,
}

impl Asked {
    /// Takes the signals from now on, until this process ends.
    fn listen() -> Result<Self, CommandError> {
        let failed = |e: std::io::Error| CommandError::system(format!("signals: {e}"));
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGHUP]).map_err(failed)?;
        let state = Arc::new(Mutex::new(Rank::LEAF, Running::default()));
        let of_thread = Arc::clone(&state);
        let thread = extant_sync::thread::Builder::new().name("signals".into());
        let spawned = thread.spawn(move || {
            for signal in signals.forever() {
                let mut running = of_thread.lock();
                match (&running.command, Signal::from_named_raw(signal)) {
                    // Ended already: then it is being unmounted.
                    (Some(command), Some(signal)) => drop(pidfd_send_signal(command, signal)),
                    _ => running.early = Some(signal),
                }
            }
        });
        spawned.map_err(failed)?;
        Ok(Self(state))
    }

    /// Runs the command to its end; not at all if a signal came before.
    fn run(&self, command: &mut Command) -> std::io::Result<Ran> {
        let mut child = {
            let mut running = self.0.lock();
            if let Some(signal) = running.early {
                return Ok(Ok(ExitStatus::from_raw(signal)));
            }
            let child = match command.spawn() {
                Ok(child) => child,
                // No process to be had.
                Err(e)
                    if [Errno::AGAIN, Errno::NOMEM]
                        .map(|n| Some(n.raw_os_error()))
                        .contains(&e.raw_os_error()) =>
                {
                    return Err(e);
                }
                Err(e) => return Ok(Err(e)),
            };
            // Nobody has waited for it yet, so the number is its own.
            let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Errno::SRCH)?;
            running.command = Some(pidfd_open(pid, PidfdFlags::empty())?);
            child
        };
        child.wait().map(Ok)
    }
}

/// Keeps interrupts of the terminal from ending this process while `f` runs.
fn ignoring_signals<R>(f: impl FnOnce() -> R) -> R {
    use signal_hook::consts::{SIGINT, SIGQUIT};
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Where a handler cannot be set the signal ends us, and the journal keeps what was synced.
    let handlers: Vec<_> =
        [SIGINT, SIGQUIT].iter().filter_map(|&s| signal_hook::flag::register(s, seen.clone()).ok()).collect();
    let result = f();
    for handler in handlers {
        signal_hook::low_level::unregister(handler);
    }
    result
}

/// A directory to mount on, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, CommandError> {
        let base = std::env::temp_dir();
        let path = base.join(format!("extant-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| CommandError::system(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Still in use by what the command has left running: then it stays, empty.
        let _ = std::fs::remove_dir(&self.0);
    }
}
