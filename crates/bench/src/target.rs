//! What a workload runs on: a directory of any mounted filesystem, or an image through the library.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::mapped::words;

/// Any failure ends a workload; its text is all that is wanted of it.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What an entry of a directory is, as far as a workload cares.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File,
    Other,
}

/// A filesystem seen by paths that are relative to its root and have no leading slash.
pub(crate) trait Target: Sync {
    fn mkdir(&self, path: &str) -> Result<()>;
    /// Creates (exclusively) and writes a file, and closes it.
    fn create(&self, path: &str, data: &[u8]) -> Result<()>;
    /// Reads a whole file in pieces of `buf`'s length and answers its length.
    fn read(&self, path: &str, buf: &mut [u8]) -> Result<u64>;
    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>>;
    /// The size that stat reports.
    fn stat(&self, path: &str) -> Result<u64>;
    fn remove_file(&self, path: &str) -> Result<()>;
    fn remove_dir(&self, path: &str) -> Result<()>;
    /// Opens for reading and writing, creating the file if `create`.
    fn open(&self, path: &str, create: bool) -> Result<Box<dyn TargetFile + '_>>;
    /// Everything so far is on the device when this returns.
    fn sync(&self) -> Result<()>;
    /// The directory, where the target is one of a mount.
    fn mounted_at(&self) -> Option<&Path> {
        None
    }
    /// Unmounts, where the target was opened by this program.
    fn close(self: Box<Self>) -> Result<()>;
}

/// An open file of a [`Target`].
pub(crate) trait TargetFile: Sync {
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> Result<usize>;
    fn write_at(&self, pos: u64, data: &[u8]) -> Result<()>;
    fn fsync(&self) -> Result<()>;
    /// fallocate(2) with its mode word.
    fn fallocate(&self, mode: u32, pos: u64, len: u64) -> Result<()>;
    /// Maps all of it, shared, for loads and stores.
    fn map(&self) -> Result<Box<dyn TargetMap>>;
}

/// A mapping of a file of a [`Target`].
pub(crate) trait TargetMap {
    /// Bytes.
    fn len(&self) -> usize;
    /// The word at a byte.
    fn word(&self, at: usize) -> &AtomicU64;
    /// Loads one word of each page, in order; their sum.
    fn load_each(&self) -> u64 {
        words(self.len()).fold(0, |sum, at| sum.wrapping_add(self.word(at).load(Relaxed)))
    }
    /// Stores one word to each page, in order.
    fn store_each(&self, value: u64) {
        words(self.len()).for_each(|at| self.word(at).store(value, Relaxed));
    }
    /// Loads one word of each page and notes how long each took, in nanoseconds. Every page is taken
    /// out of the mapping, not out of the cache, first.
    fn time_each(&self, into: &mut Vec<u64>) -> Result<()>;
    /// Everything stored is on the device when this returns.
    fn sync(&self) -> Result<()>;
}
