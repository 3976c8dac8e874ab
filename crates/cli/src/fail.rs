//! Failures as the user sees them: where, what, and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use extant_device::OpenError;

/// What a command gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// A failed command: one line, and perhaps one about what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    hint: Option<String>,
    /// Nothing to say: the reader of our output has gone away.
    quiet: bool,
    status: u8,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, quiet: false, status: 1 }
    }

    /// Ends with a status without a word: all was said elsewhere.
    pub(crate) fn silent(status: u8) -> Self {
        Self { what: String::new(), hint: None, quiet: true, status }
    }

    /// The exit status, 1 unless given.
    pub(crate) fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it; the exit status to end with.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.quiet {
            eprintln!("extant: {self}");
        }
        ExitCode::from(self.status)
    }

    /// Standard output failed.
    pub(crate) fn output(err: &io::Error) -> Self {
        Self::writing("standard output", err)
    }

    /// Writing to `name` failed. A closed pipe is an end, not an error to talk about.
    pub(crate) fn writing(name: &str, err: &io::Error) -> Self {
        let quiet = err.kind() == io::ErrorKind::BrokenPipe;
        Self { what: format!("{name}: {err}"), hint: None, quiet, status: 1 }
    }

    pub(crate) fn host(path: &Path, err: &io::Error) -> Self {
        Self::new(format!("{}: {err}", path.display()))
    }

    pub(crate) fn open(err: &OpenError) -> Self {
        let failure = Self::new(err.to_string());
        match err {
            OpenError::InUse { .. } => failure
                .hint("wait until it is free; commands that only read take --force-read, at their own risk"),
            _ => failure,
        }
    }

    /// An operation on `path` inside the image failed.
    pub(crate) fn inside(path: &[u8], err: &extant::Error) -> Self {
        let failure = Self::new(format!("{}: {err}", show_path(path)));
        match err {
            extant::Error::Corrupt(_) | extant::Error::Checksum(_) => {
                failure.hint("the image is damaged: `extant fsck -f IMAGE` shows all of it")
            }
            extant::Error::NoSpace | extant::Error::NoInodes => {
                failure.hint("the image is full: `extant info IMAGE` shows blocks and inodes")
            }
            _ => failure,
        }
    }

    /// Mounting the image failed.
    pub(crate) fn mount(image: &Path, err: &extant::Error) -> Self {
        let failure = Self::new(format!("{}: {err}", image.display()));
        match err {
            extant::Error::Corrupt(damage) if no_magic(&damage.kind) => {
                Self::new(format!("{}: no ext2, ext3 or ext4 filesystem is there", image.display())).hint(
                    "a disk with partitions needs --partition NUMBER; if the superblock was overwritten, `extant fsck -f IMAGE` \
                     looks for its copies",
                )
            }
            extant::Error::Corrupt(_) | extant::Error::Checksum(_) => failure.hint(
                "`extant fsck -f IMAGE` shows what is wrong with it; `extant info IMAGE` what it says it is",
            ),
            _ => failure,
        }
    }
}

/// Whether there is no superblock at all.
fn no_magic(kind: &extant::CorruptKind) -> bool {
    matches!(kind, extant::CorruptKind::Layout(what) if what.contains("superblock: magic number"))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

/// A path inside an image for a message: absolute, control characters escaped.
pub(crate) fn show_path(path: &[u8]) -> String {
    let text = crate::show::name(path);
    if path.starts_with(b"/") { text } else { format!("/{text}") }
}

/// Adds the place to an error of the library.
pub(crate) trait At<T> {
    /// The same, with the path inside the image that it is about.
    fn at(self, path: &[u8]) -> Outcome<T>;
}

impl<T> At<T> for Result<T, extant::Error> {
    fn at(self, path: &[u8]) -> Outcome<T> {
        self.map_err(|err| Failure::inside(path, &err))
    }
}

/// Adds the place to an error of the host.
pub(crate) trait OnHost<T> {
    /// The same, with the host's path that it is about.
    fn on(self, path: &Path) -> Outcome<T>;
}

impl<T> OnHost<T> for io::Result<T> {
    fn on(self, path: &Path) -> Outcome<T> {
        self.map_err(|err| Failure::host(path, &err))
    }
}

impl<T> OnHost<T> for Result<T, rustix::io::Errno> {
    fn on(self, path: &Path) -> Outcome<T> {
        self.map_err(|err| Failure::host(path, &err.into()))
    }
}
