//! Telling the kernel that what it caches is no longer right.

use std::io::IoSlice;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::reply::{Channel, Outlet};
use crate::wire::{NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, NotifyStoreOut, notify};

/// Sends notifications. Must not be used by the thread that serves a request about the same node: the kernel may
/// hold that node's locks until the request is answered.
///
/// ENOENT means that the kernel does not know the node or the name, which is as good as done.
#[derive(Clone, Debug)]
pub struct Notifier {
    channel: Channel,
}

impl Notifier {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Attributes changed, and data in `[off, off + len)`; `len` 0 is to the end, a negative `off` spares the data.
    pub fn inval_inode(&self, node: u64, off: i64, len: i64) -> Result<(), Errno> {
        self.send(notify::INVAL_INODE, &NotifyInvalInodeOut { ino: node, off, len }, &[], false)
    }

    /// The name's node changed.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        let namelen = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        self.send(notify::INVAL_ENTRY, &NotifyInvalEntryOut { parent, namelen, flags: 0 }, name, true)
    }

    /// Puts data into the kernel's cache.
    pub fn store(&self, node: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
        self.send(notify::STORE, &NotifyStoreOut { nodeid: node, offset, size, padding: 0 }, data, false)
    }

    /// The name of `child` was removed.
    pub fn delete(&self, parent: u64, child: u64, name: &[u8]) -> Result<(), Errno> {
        let namelen = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        self.send(notify::DELETE, &NotifyDeleteOut { parent, child, namelen, padding: 0 }, name, true)
    }

    fn send<T: IntoBytes + Immutable>(
        &self,
        code: i32,
        body: &T,
        tail: &[u8],
        zero: bool,
    ) -> Result<(), Errno> {
        let end: &[u8] = if zero { &[0] } else { &[] };
        let parts = [IoSlice::new(body.as_bytes()), IoSlice::new(tail), IoSlice::new(end)];
        self.channel.send(0, code, &parts)
    }
}
