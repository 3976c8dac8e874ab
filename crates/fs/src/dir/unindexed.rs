//! Directories whose hash tree is damaged.
//!
//! Found by damaging trees and looking at what Linux 6.18 does. A wrong checksum, an entry past the end or a leaf where an index
//! block belongs is an error of every operation that meets it. An index that contradicts itself (hash version, depth, limit,
//! count, an entry that leads back …) is passed by with a warning, and counts as no error: names are looked up from end to
//! end. A new name makes the directory an ordinary one, without index; but not where metadata has checksums, for there the
//! index, which carries a good one, was not damaged by accident. Names are removed in either case: that changes a leaf only.
//!
//! Listing keeps to hashes, so that a position means the same whether or not the tree can be read.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use extant_format::dir as records;
use extant_format::hash::Hasher;
use extant_format::inode::{FileType, InodeFlags};
use extant_format::{Ino, Lblk};
use extant_sync::atomic::Ordering::Relaxed;

use super::dir_error;
use super::list::{DirEntry, END, Sink, position_of};
use crate::error::{CorruptKind, Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;

/// Names that one pass over the blocks picks out.
const PORTION: usize = 4096;

/// A name on its way to the reader, in the order of listing.
#[derive(PartialEq, Eq)]
struct Key {
    at: u64,
    name: Vec<u8>,
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at).then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The names of lowest position, with what they lead to.
type Portion = BTreeMap<Key, (Ino, Option<FileType>)>;

impl Error {
    /// Whether this is a hash tree without which names can still be found.
    pub(crate) fn is_bad_index(&self) -> bool {
        matches!(self, Self::Corrupt(c) if matches!(c.kind, CorruptKind::BadIndex(_)))
    }
}

impl Filesystem {
    /// Says once for each inode in core that its index is passed by.
    pub(super) fn warn_of_index(&self, dir: &Inode, error: &Error) {
        if !dir.index_warned.swap(true, Relaxed) {
            tracing::warn!("{error}: names are looked for from end to end; e2fsck is recommended");
        }
    }

    /// Before a name is added: the directory goes on without its index. The caller holds its lock exclusively and writes the inode.
    pub(super) fn drop_index(&self, dir: &Inode, error: Error) -> Result<()> {
        if self.csum.has_metadata() {
            return Err(error);
        }
        self.warn_of_index(dir, &error);
        dir.state().raw.flags.remove(InodeFlags::INDEX);
        Ok(())
    }

    /// Lists by hash without the tree: pass after pass over all blocks, each for the next names in order.
    pub(super) fn list_unindexed(&self, dir: &Inode, from: u64, sink: Sink<'_>) -> Result<()> {
        // A tree whose root cannot be read has lost its hash function; the filesystem's own is what it was made with.
        let Some(hasher) = self.hasher_of(dir).ok().or_else(|| self.default_hasher()) else {
            return self.list_linear(dir, from, sink);
        };
        let mut from = from;
        // The first pass starts a group of equal hashes from its beginning, for positions in a group are counted.
        let mut low = from & !u64::from(u32::MAX);
        while low < END {
            let (portion, after) = self.next_portion(dir, low, &hasher)?;
            let mut entries = portion.iter().peekable();
            let mut free = 0;
            while let Some((key, (ino, kind))) = entries.next() {
                let at = key.at.max(free);
                free = at + 1;
                let next = entries.peek().map_or(after, |(k, _)| k.at.max(free));
                if at < from {
                    continue;
                }
                if sink(DirEntry { ino: *ino, kind: *kind, name: &key.name, next }).is_break() {
                    return Ok(());
                }
            }
            low = after;
            from = from.max(after);
        }
        Ok(())
    }

    /// The names from position `low` on, as many as one pass takes, and the position of the next one.
    fn next_portion(&self, dir: &Inode, low: u64, hasher: &Hasher) -> Result<(Portion, u64)> {
        let mut portion = Portion::new();
        let mut after = END;
        for lblk in (0..self.dir_blocks(dir)).map(Lblk) {
            let (buf, layout) = self.dir_any(dir, lblk)?;
            let bytes = buf.bytes();
            for record in records::entries(&layout, &bytes) {
                let record = record.map_err(|e| dir_error(dir, lblk, &e))?;
                let at = position_of(record.name, hasher);
                if at < low || at >= after {
                    continue;
                }
                let kind = FileType::from_dirent_code(record.raw_type);
                portion.insert(Key { at, name: record.name.to_vec() }, (record.ino, kind));
                if portion.len() > PORTION {
                    after = cut(&mut portion, after);
                }
            }
        }
        Ok((portion, after))
    }
}

/// Drops the names of the highest position; it is where the next pass begins. Names of one position stay together, however many.
fn cut(portion: &mut Portion, after: u64) -> u64 {
    let Some(last) = portion.last_key_value().map(|(key, _)| key.at) else { return after };
    if portion.first_key_value().is_some_and(|(key, _)| key.at == last) {
        return after;
    }
    drop(portion.split_off(&Key { at: last, name: Vec::new() }));
    last
}
