//! ext4 behind the transport. It translates: ids, flags, errors, structures. What an operation does is the library's
//! business.
//!
//! Node ids are inode numbers, the generation is `i_generation`; so a handle made by name_to_handle_at(2) or by an NFS
//! server stays right after the inode leaves the cache and after a remount. FUSE wants 1 for the root, which is inode 2:
//! the two numbers are exchanged (inode 1, the list of bad blocks, has no name and is never a node).

mod caller;
mod coherent;
mod convert;
mod data;
mod extents;
mod ioctl;
mod list;
mod names;
mod nodes;
mod open;
mod quota;
mod serve;

use std::sync::OnceLock;
use std::time::Duration;

use extant::{Filesystem, Ino, InodeRef};
use extant_sync::Arc;
use rustix::io::Errno;

use crate::notify::Notifier;
use crate::wire::{AttrOut, EntryOut, InitFlags};

pub use ioctl::{ControlReply, ServerState, control_remount, control_second_mount, control_server};

use coherent::Dropper;
use nodes::Nodes;
use open::OpenFiles;

/// How the adapter answers.
#[derive(Clone, Copy, Debug)]
pub struct AdapterOptions {
    /// The kernel's page cache collects writes.
    pub writeback_cache: bool,
    /// How long names and attributes may be cached. Nobody else changes the image, so it is long.
    pub ttl: Duration,
    /// The kernel is told that root owns everything, whatever the image says: for a user namespace that has no other ids.
    pub as_root: bool,
    /// Byte of the mount's block device where the file system begins, if it is that device's: blocks of files can then be named
    /// by their place on it (FIBMAP, swap files).
    pub device_offset: Option<u64>,
    /// Capabilities not to use, for tests and measurements.
    pub without: InitFlags,
}

impl Default for AdapterOptions {
    fn default() -> Self {
        let ttl = Duration::from_secs(365 * 86_400);
        let without = InitFlags::empty();
        Self { writeback_cache: false, ttl, as_root: false, device_offset: None, without }
    }
}

/// What to do after the unmount.
struct AtEnd(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for AtEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtEnd")
    }
}

/// Says why a second mount cannot have these options.
type Refuses = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Whether a second mount may be.
struct Second(Box<Refuses>);

impl std::fmt::Debug for Second {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Second")
    }
}

/// A mounted file system as a FUSE server.
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<Filesystem>,
    nodes: Nodes,
    files: OpenFiles,
    options: AdapterOptions,
    notifier: OnceLock<Notifier>,
    at_end: OnceLock<AtEnd>,
    second: OnceLock<Second>,
    dropper: Dropper,
    dropping: extents::Dropping,
    /// What [`Filesystem::unmount`] said, once it was called.
    ended: extant_sync::Mutex<Option<Result<(), String>>>,
}

impl Adapter {
    /// Serves `fs`. The adapter unmounts it at the end of the session.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>, options: AdapterOptions) -> Self {
        let ended = extant_sync::Mutex::new(extant_sync::Rank::LEAF, None);
        Self {
            fs,
            nodes: Nodes::new(),
            files: OpenFiles::new(),
            options,
            notifier: OnceLock::new(),
            at_end: OnceLock::new(),
            second: OnceLock::new(),
            dropper: Dropper::new(),
            dropping: extents::Dropping::default(),
            ended,
        }
    }

    /// Lets the adapter tell the kernel of changes that it does not see by itself. Only the first call counts.
    pub fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// What is to be done once the file system is unmounted, before umount(2) returns where it waits. Only the first call counts.
    pub fn set_at_end(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.at_end.set(AtEnd(Box::new(f)));
    }

    /// What answers [`control_second_mount`]: says why a second mount of the same cannot have these options. Only the first call
    /// counts; before it every second mount is refused.
    pub fn set_second_mount(&self, f: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) {
        let _ = self.second.set(Second(Box::new(f)));
    }

    /// The kernel does not know that an ioctl has changed attributes (ctime). No data is concerned, so this may be said by the
    /// thread that serves the request.
    fn attributes_changed(&self, node: u64) {
        if let Some(notifier) = self.notifier.get() {
            // ENOENT: it does not cache them.
            let _ = notifier.inval_inode(node, -1, 0);
        }
    }

    /// Attributes of an inode were changed other than by a request.
    pub fn changed_outside(&self, inode: &InodeRef) {
        self.attributes_changed(node_of(inode.ino()));
    }

    /// A name in a directory was made other than by a request.
    pub fn name_changed_outside(&self, dir: &InodeRef, name: &[u8]) {
        if let Some(notifier) = self.notifier.get() {
            // ENOENT: it does not know the name.
            let _ = notifier.inval_entry(node_of(dir.ino()), name);
        }
        self.changed_outside(dir);
    }

    /// What the kernel is told of an inode.
    fn told(&self, attr: &extant::Attr) -> extant::Attr {
        if self.options.as_root { extant::Attr { uid: 0, gid: 0, ..*attr } } else { *attr }
    }

    /// The file system.
    #[must_use]
    pub fn filesystem(&self) -> &Arc<Filesystem> {
        &self.fs
    }

    /// How the unmount went; `None` before it.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), String>> {
        self.ended.lock().clone()
    }

    /// Lets go of every inode and unmounts; only the first call does anything. [`crate::Server::destroy`] does the
    /// same.
    pub fn finish(&self) {
        if self.ended.lock().is_some() {
            return;
        }
        self.dropper.end();
        self.files.clear();
        self.nodes.clear();
        let result = self.fs.unmount();
        if let Err(error) = &result {
            tracing::error!(%error, "unmount");
        }
        *self.ended.lock() = Some(result.map_err(|e| e.to_string()));
        if let Some(AtEnd(f)) = self.at_end.get() {
            f();
        }
    }

    fn inode(&self, node: u64) -> Result<InodeRef, Errno> {
        self.fs.inode(ino_of(node)?).map_err(|e| errno(&e))
    }

    /// The inode of an open file if the request names one, else of the node.
    fn inode_or_file(&self, node: u64, fh: Option<u64>) -> Result<InodeRef, Errno> {
        if let Some(open) = fh.and_then(|fh| self.files.find(fh)) {
            return Ok(open.inode().clone());
        }
        self.inode(node)
    }

    /// A reply that makes the kernel know the inode: counts one reference.
    fn entry(&self, inode: &InodeRef) -> EntryOut {
        self.nodes.remember(inode);
        self.entry_uncounted(inode)
    }

    fn entry_uncounted(&self, inode: &InodeRef) -> EntryOut {
        let attr = inode.attr();
        EntryOut {
            nodeid: node_of(attr.ino),
            // One that a client sets shows up when the kernel has forgotten the inode: it takes an inode whose generation
            // changes for another one, and open files of it would break.
            generation: u64::from(inode.generation()),
            entry_valid: self.options.ttl.as_secs(),
            attr_valid: self.options.ttl.as_secs(),
            entry_valid_nsec: self.options.ttl.subsec_nanos(),
            attr_valid_nsec: self.options.ttl.subsec_nanos(),
            attr: convert::attr(&self.told(&attr)),
        }
    }

    fn attr_out(&self, attr: &extant::Attr) -> AttrOut {
        AttrOut {
            attr_valid: self.options.ttl.as_secs(),
            attr_valid_nsec: self.options.ttl.subsec_nanos(),
            dummy: 0,
            attr: convert::attr(&self.told(attr)),
        }
    }
}

/// A device number as the system calls have it.
pub(crate) fn device_of(word: u32) -> extant::DeviceNumber {
    convert::device_of(word)
}

/// The errno of an error.
fn errno(error: &extant::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

const EXT4_ROOT: u32 = 2;

fn ino_of(node: u64) -> Result<Ino, Errno> {
    match u32::try_from(node) {
        Ok(1) => Ok(Ino(EXT4_ROOT)),
        Ok(EXT4_ROOT) => Ok(Ino(1)),
        Ok(n) => Ok(Ino(n)),
        Err(_) => Err(Errno::STALE),
    }
}

fn node_of(ino: Ino) -> u64 {
    match ino.0 {
        EXT4_ROOT => 1,
        1 => u64::from(EXT4_ROOT),
        n => u64::from(n),
    }
}

#[cfg(test)]
mod tests;
