//! The commands `mount`, `umount`, `exec` and the helper of mount(8), as functions of parsed arguments.
//!
//! Failures carry mount(8)'s exit status.

mod daemon;
mod exec;
mod fakeroot;
mod helper;
mod log;
mod mount;
mod options;
mod previous;
mod umount;

use std::fmt;

pub use exec::{ExecArgs, exec};
pub use helper::mount_helper;
pub use mount::{MountArgs, mount};
pub use options::{Attach, Options};
pub use umount::{UmountArgs, Unmounted, Waits, umount};

/// Exit statuses of mount(8).
pub mod status {
    /// Wrong invocation, or no permission.
    pub const USAGE: u8 = 1;
    /// A system error: no memory, no fork, no free loop device.
    pub const SYSTEM: u8 = 2;
    /// A bug of this program.
    pub const INTERNAL: u8 = 4;
    /// The mount failed.
    pub const FAILURE: u8 = 32;
}

/// Why a command failed, and the status to exit with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandError {
    /// For the shell.
    pub status: u8,
    /// For people: what, where, and what to do.
    pub reason: String,
}

impl CommandError {
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self { status: status::USAGE, reason: reason.into() }
    }

    pub(crate) fn system(reason: impl Into<String>) -> Self {
        Self { status: status::SYSTEM, reason: reason.into() }
    }

    pub(crate) fn failure(reason: impl Into<String>) -> Self {
        Self { status: status::FAILURE, reason: reason.into() }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for CommandError {}
