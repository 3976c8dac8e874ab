//! Replies to READDIR and READDIRPLUS.

use zerocopy::{Immutable, IntoBytes};

use super::EntryOut;

/// One name (`struct fuse_dirent`); the name's bytes follow, padded to 8.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Dirent {
    ino: u64,
    off: u64,
    namelen: u32,
    kind: u32,
}

const DIRENT: usize = size_of::<Dirent>();
const ENTRY: usize = size_of::<EntryOut>();

/// Collects names until the caller's room is used up.
#[derive(Debug)]
pub struct DirBuffer {
    bytes: Vec<u8>,
    room: usize,
}

impl DirBuffer {
    /// An empty buffer for `room` bytes.
    #[must_use]
    pub fn new(room: u32) -> Self {
        let room = room as usize;
        Self { bytes: Vec::with_capacity(room.min(1 << 17)), room }
    }

    /// Adds a name of READDIR; false if it does not fit (then nothing was added).
    /// `cookie` is the offset of the *next* entry, `kind` a `DT_*` value.
    pub fn push(&mut self, ino: u64, cookie: u64, kind: u8, name: &[u8]) -> bool {
        if !self.fits(DIRENT, name) {
            return false;
        }
        self.name(ino, cookie, kind, name);
        true
    }

    /// Adds a name of READDIRPLUS; false if it does not fit. An `entry` with node id 0 gives the name alone.
    pub fn push_plus(&mut self, entry: &EntryOut, ino: u64, cookie: u64, kind: u8, name: &[u8]) -> bool {
        if !self.fits(ENTRY + DIRENT, name) {
            return false;
        }
        self.bytes.extend_from_slice(entry.as_bytes());
        self.name(ino, cookie, kind, name);
        true
    }

    /// Counts how many names of READDIRPLUS fit into `room` bytes, before their attributes are known.
    #[must_use]
    pub fn plus_room(room: u32) -> PlusRoom {
        PlusRoom(room as usize)
    }

    /// Whether a name of READDIRPLUS would fit.
    #[must_use]
    pub fn fits_plus(&self, name: &[u8]) -> bool {
        self.fits(ENTRY + DIRENT, name)
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The reply's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn fits(&self, head: usize, name: &[u8]) -> bool {
        self.bytes.len() + head + name.len().next_multiple_of(8) <= self.room
    }

    fn name(&mut self, ino: u64, off: u64, kind: u8, name: &[u8]) {
        #[allow(clippy::cast_possible_truncation, reason = "names have at most 255 bytes")]
        let head = Dirent { ino, off, namelen: name.len() as u32, kind: u32::from(kind) };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

/// What is left of a READDIRPLUS reply.
#[derive(Clone, Copy, Debug)]
pub struct PlusRoom(usize);

impl PlusRoom {
    /// Takes the room of one name; false if there is not enough.
    pub fn take(&mut self, name: &[u8]) -> bool {
        let left = self.0.checked_sub(ENTRY + DIRENT + name.len().next_multiple_of(8));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}
