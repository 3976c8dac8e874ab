//! Going to the background: the command starts itself again as the server and waits until that is ready.
//!
//! A child of fork(2) would have one thread and the parent's locks; a new process has neither trouble.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::{CommandError, log, status};

/// What the server writes to its standard output once the mount is ready.
const READY: &str = "ready";

/// Starts this program with `args` and returns once it says that it is ready. If it ends instead, it has said why on
/// standard error, and its exit status is passed on.
pub(super) fn start(args: &[OsString]) -> Result<(), CommandError> {
    let program =
        std::env::current_exe().map_err(|e| CommandError::system(format!("/proc/self/exe: {e}")))?;
    let mut child = Command::new(&program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| CommandError::system(format!("{}: {e}", program.display())))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        // End of file without a word: it failed. The status tells.
        let _ = BufReader::new(stdout).read_line(&mut said);
    }
    if said.trim() == READY {
        return Ok(());
    }
    let ended = child.wait().map_err(|e| CommandError::system(format!("waiting for the server: {e}")))?;
    let code = ended.code().and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0);
    let reason = match ended.signal() {
        Some(signal) => format!("the server was killed by signal {signal} before the mount was ready"),
        None => String::new(),
    };
    Err(CommandError { status: code.unwrap_or(status::INTERNAL), reason })
}

/// Makes this process the leader of a session of its own, so that a closing terminal does not end it.
pub(super) fn leave_terminal() {
    // EPERM: it leads one already.
    let _ = rustix::process::setsid();
    // Relative paths were made absolute before; holding a directory would keep its mount busy.
    let _ = std::env::set_current_dir("/");
}

/// Tells who waits in [`start`], then lets go of standard input, output and error.
pub(super) fn tell_ready() {
    println!("{READY}");
    let _ = std::io::stdout().flush();
    log::to_syslog();
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}
