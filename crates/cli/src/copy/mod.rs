//! Copying trees between an image, the host's folders and tar archives. A source walks and hands items to a sink; the
//! two know nothing of each other.
//!
//! | | source | sink |
//! |---|---|---|
//! | image | [`from_volume`] | [`to_volume`] |
//! | folder | [`from_host`] | [`to_host`] |
//! | tar | [`from_archive`] | [`to_archive`] |

pub(crate) mod from_archive;
pub(crate) mod from_host;
pub(crate) mod from_volume;
pub(crate) mod to_archive;
pub(crate) mod to_host;
pub(crate) mod to_volume;

use std::ops::Range;

use extant_format::inode::{FileType, Timestamp};

use crate::edit::Owner;
use crate::fail::Outcome;

/// Bytes copied at a time.
pub(crate) const CHUNK: usize = 1 << 20;

/// What an inode is apart from its content.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    /// Permissions, set-id bits, sticky bit.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    /// Full names and values.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file's content, asked for in ascending order.
pub(crate) trait Content {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// The next range at or after `from` that holds data (not a hole), if there is one.
    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>>;

    /// Fills the buffer from `offset`, which lies in a data range, as does the buffer's end.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome;
}

/// What stands at a path.
pub(crate) enum What<'a> {
    Dir,
    File(&'a mut dyn Content),
    Symlink(Vec<u8>),
    /// FIFO, socket, character or block device, with (major, minor).
    Special(FileType, u32, u32),
    /// Another name of what was handed over before under this path.
    Link(Vec<u8>),
}

/// What became of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Added {
    /// It is there.
    Taken,
    /// The sink cannot have such a thing, and has said so: nothing is at that path, so nothing can be linked to it.
    LeftOut,
}

/// Takes items. Paths are relative, without `.` and `..`; the empty path is the top itself. A directory comes before
/// what is in it.
pub(crate) trait Sink {
    /// Takes one item.
    fn add(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Outcome<Added>;

    /// Everything was handed over.
    fn finish(&mut self) -> Outcome;
}

/// Hands every item of a source to a sink.
pub(crate) trait Source {
    /// Walks; calls [`Sink::add`] for each item, not [`Sink::finish`].
    fn feed(&mut self, sink: &mut dyn Sink) -> Outcome;
}

/// Gives all items one owner on their way.
pub(crate) struct Owned<'a> {
    pub(crate) owner: Owner,
    pub(crate) to: &'a mut dyn Sink,
}

impl Sink for Owned<'_> {
    fn add(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Outcome<Added> {
        let mut meta = meta.clone();
        meta.uid = self.owner.uid.unwrap_or(meta.uid);
        meta.gid = self.owner.gid.unwrap_or(meta.gid);
        self.to.add(path, &meta, what)
    }

    fn finish(&mut self) -> Outcome {
        self.to.finish()
    }
}

/// Calls `piece` for each piece of a content's data, in order, at most [`CHUNK`] bytes at a time.
pub(crate) fn each_piece(content: &mut dyn Content, piece: &mut dyn FnMut(u64, &[u8]) -> Outcome) -> Outcome {
    let mut buf = vec![0; CHUNK.min(usize::try_from(content.size()).unwrap_or(CHUNK)).max(1)];
    let mut at = 0;
    while let Some(range) = content.data(at)? {
        at = range.start;
        while at < range.end {
            let len = buf.len().min(usize::try_from(range.end - at).unwrap_or(buf.len()));
            content.read(at, &mut buf[..len])?;
            piece(at, &buf[..len])?;
            at += len as u64;
        }
    }
    Ok(())
}

/// `dir/name`, where `dir` may be empty.
pub(crate) fn below(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Whether a name can be one component of a path: a tar archive or a damaged image may say anything.
pub(crate) fn is_safe_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}
