//! What can go wrong when a filesystem is made; every message says what, where and what to do.

use std::io;
use std::path::{Path, PathBuf};

use extant_device::OpenError;
use extant_format::FormatError;

/// An error of making or populating a filesystem.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// Options that contradict each other or the format.
    #[error("{0}")]
    Invalid(String),
    /// The filesystem does not fit on the device.
    #[error("{0}")]
    TooSmall(String),
    /// The source does not fit into the filesystem.
    #[error("no space left: {what} needs {needed} {unit}, {free} are free; give a larger SIZE{hint}")]
    NoSpace {
        /// What did not fit.
        what: String,
        /// How much it needs.
        needed: u64,
        /// How much there is.
        free: u64,
        /// "blocks" or "inodes".
        unit: &'static str,
        /// A further way out.
        hint: &'static str,
    },
    /// The image cannot be opened for writing.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading or writing the image failed.
    #[error("{what}: {source}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the source, or the configuration, cannot be read.
    #[error("{}: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A member of the source archive that cannot be represented.
    #[error("{}: {what}", path.display())]
    Member {
        /// The member.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The result would not be valid: a bug in the layout.
    #[error("the layout is not valid: {0}")]
    Format(#[from] FormatError),
}

/// A result with [`MkfsError`].
pub type Result<T> = std::result::Result<T, MkfsError>;

pub(crate) fn source_error(path: &Path, source: impl Into<io::Error>) -> MkfsError {
    MkfsError::Source { path: path.to_owned(), source: source.into() }
}

pub(crate) fn usage<T>(text: impl Into<String>) -> Result<T> {
    Err(MkfsError::Usage(text.into()))
}

pub(crate) fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(MkfsError::Invalid(text.into()))
}
