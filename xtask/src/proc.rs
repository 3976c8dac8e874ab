//! Starting programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command function gives: whether all held, or why it could not be told.
pub(crate) type Verdict = Result<bool, String>;

/// Makes the workspace's root the current folder.
pub(crate) fn enter_root() -> Result<(), String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().ok_or("no folder above xtask")?;
    std::env::set_current_dir(root).map_err(|err| format!("{}: {err}", root.display()))
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with its output going through; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Verdict {
    let status = command.stdin(Stdio::null()).status().map_err(|err| format!("{command:?}: {err}"))?;
    Ok(status.success())
}

/// Runs a command that must succeed; gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|err| format!("{command:?}: {err}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The full path of a program, also from the system folders that a user's `PATH` often lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// A program of the release build, where cargo puts it.
pub(crate) fn release(name: &str) -> Result<PathBuf, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let path = target.join("release").join(name);
    path.canonicalize().map_err(|err| format!("{}: {err}", path.display()))
}
