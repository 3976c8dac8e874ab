//! What a file system behind the transport implements.

use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::reply::{Bytes, Empty, Ioctl, Reply, XattrValue};
use crate::wire::{
    AttrOut, BmapIn, BmapOut, CopyFileRangeIn, CreateIn, CreateOut, EntryOut, FallocateIn, FlushIn, FsyncIn,
    GetattrIn, InHeader, InitFlags, IoctlIn, LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, OpenIn, OpenOut,
    PollIn, PollOut, ReadIn, ReleaseIn, SetattrIn, SetxattrIn, StatfsOut, StatxIn, StatxOut, WriteIn,
    WriteOut,
};

/// The place of the thread that serves a request.
pub(crate) trait Stand {
    /// The thread is going to wait. Whether others take requests meanwhile.
    fn leave(&self) -> bool;

    /// It goes on.
    fn come_back(&self);
}

/// Who asks about which node.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    header: &'a InHeader,
    interrupted: &'a AtomicBool,
    stand: &'a dyn Stand,
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("header", self.header).finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    pub(crate) fn new(header: &'a InHeader, interrupted: &'a AtomicBool, stand: &'a dyn Stand) -> Self {
        Self { header, interrupted, stand }
    }

    /// Runs `f`, which waits for something that is no answer of the device: for another request, for example. Somebody else takes
    /// requests meanwhile; where nobody is left for that, `f` does not run.
    pub fn wait<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        /// Also when `f` panics, which the reader outlives.
        struct Away<'a>(&'a dyn Stand);

        impl Drop for Away<'_> {
            fn drop(&mut self) {
                self.0.come_back();
            }
        }

        let others = self.stand.leave();
        let away = Away(self.stand);
        let done = others.then(f);
        drop(away);
        done
    }

    /// The node the request is about.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.header.nodeid
    }

    /// The caller's user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.header.uid
    }

    /// The caller's group id.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.header.gid
    }

    /// The caller's thread, 0 if unknown.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.header.pid
    }

    /// The request's name.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.header.unique
    }

    /// Whether the caller got a signal while it waits. A long operation may then end early with EINTR.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Protocol minor version.
    pub minor: u32,
    /// Capabilities.
    pub flags: InitFlags,
    /// Largest read-ahead, bytes.
    pub max_readahead: u32,
}

/// What the server wants of the connection.
#[derive(Clone, Copy, Debug)]
pub struct InitConfig {
    /// Capabilities; those not offered are left out.
    pub flags: InitFlags,
    /// Read-ahead, bytes; at most what was offered.
    pub max_readahead: u32,
    /// Background requests (read-ahead, asynchronous direct I/O) at once.
    pub max_background: u16,
    /// From how many on the kernel holds back.
    pub congestion_threshold: u16,
    /// Largest WRITE and READ, bytes.
    pub max_write: u32,
    /// Granularity of times, nanoseconds.
    pub time_gran_ns: u32,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self {
            flags: InitFlags::ASYNC_READ | InitFlags::BIG_WRITES | InitFlags::MAX_PAGES,
            max_readahead: 1 << 20,
            max_background: 64,
            congestion_threshold: 48,
            max_write: 1 << 20,
            time_gran_ns: 1,
        }
    }
}

/// A file system. Calls come from several threads at once; each gets a [`Reply`] that it must answer.
///
/// Whatever is not implemented answers ENOSYS; for most requests the kernel then does not ask again.
#[expect(unused_variables, reason = "the defaults refuse without looking")]
pub trait Server: Send + Sync {
    /// The first request of a connection.
    fn init(&self, offer: &Offer) -> InitConfig {
        InitConfig::default()
    }
    /// The last call: the file system is unmounted. On a `fuseblk` mount umount(2) waits for it; on others it comes
    /// after the kernel has gone. Called once.
    fn destroy(&self) {}

    /// Looks a name up.
    fn lookup(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.error(Errno::NOSYS);
    }
    /// The kernel drops `nlookup` references to `node`.
    fn forget(&self, node: u64, nlookup: u64) {}
    /// Attributes.
    fn getattr(&self, req: &Request<'_>, args: &GetattrIn, reply: Reply<'_, AttrOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Extended attributes of statx(2).
    fn statx(&self, req: &Request<'_>, args: &StatxIn, reply: Reply<'_, StatxOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Changes attributes.
    fn setattr(&self, req: &Request<'_>, args: &SetattrIn, reply: Reply<'_, AttrOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Target of a symbolic link.
    fn readlink(&self, req: &Request<'_>, reply: Reply<'_, Bytes>) {
        reply.error(Errno::NOSYS);
    }
    /// Makes a symbolic link.
    fn symlink(&self, req: &Request<'_>, name: &[u8], target: &[u8], reply: Reply<'_, EntryOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Makes a node of any type but a directory.
    fn mknod(&self, req: &Request<'_>, args: &MknodIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Makes a directory.
    fn mkdir(&self, req: &Request<'_>, args: &MkdirIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Removes a name.
    fn unlink(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Removes a directory.
    fn rmdir(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Renames `old` here to `new` in `new_parent`; `flags` as in renameat2(2).
    fn rename(
        &self,
        req: &Request<'_>,
        old: &[u8],
        new_parent: u64,
        new: &[u8],
        flags: u32,
        reply: Reply<'_, Empty>,
    ) {
        reply.error(Errno::NOSYS);
    }
    /// Makes a hard link here.
    fn link(&self, req: &Request<'_>, args: &LinkIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Opens a file.
    fn open(&self, req: &Request<'_>, args: &OpenIn, reply: Reply<'_, OpenOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Makes and opens a file.
    fn create(&self, req: &Request<'_>, args: &CreateIn, name: &[u8], reply: Reply<'_, CreateOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Makes and opens a file without a name.
    fn tmpfile(&self, req: &Request<'_>, args: &CreateIn, reply: Reply<'_, CreateOut>) {
        reply.error(Errno::OPNOTSUPP);
    }
    /// Reads.
    fn read(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        reply.error(Errno::NOSYS);
    }
    /// Writes.
    fn write(&self, req: &Request<'_>, args: &WriteIn, data: &[u8], reply: Reply<'_, WriteOut>) {
        reply.error(Errno::NOSYS);
    }
    /// One descriptor of an open file was closed.
    fn flush(&self, req: &Request<'_>, args: &FlushIn, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// The last descriptor of an open file was closed.
    fn release(&self, req: &Request<'_>, args: &ReleaseIn, reply: Reply<'_, Empty>) {
        reply.done();
    }
    /// Makes a file durable.
    fn fsync(&self, req: &Request<'_>, args: &FsyncIn, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Figures of the file system.
    fn statfs(&self, req: &Request<'_>, reply: Reply<'_, StatfsOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Sets an extended attribute.
    fn setxattr(
        &self,
        req: &Request<'_>,
        args: &SetxattrIn,
        name: &[u8],
        value: &[u8],
        reply: Reply<'_, Empty>,
    ) {
        reply.error(Errno::NOSYS);
    }
    /// An extended attribute's value.
    fn getxattr(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, XattrValue>) {
        reply.error(Errno::NOSYS);
    }
    /// The names of extended attributes, each ended by a zero byte.
    fn listxattr(&self, req: &Request<'_>, reply: Reply<'_, XattrValue>) {
        reply.error(Errno::NOSYS);
    }
    /// Removes an extended attribute.
    fn removexattr(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Opens a directory.
    fn opendir(&self, req: &Request<'_>, args: &OpenIn, reply: Reply<'_, OpenOut>) {
        reply.ok(&OpenOut::default());
    }
    /// Names after a cookie, made with [`crate::wire::DirBuffer`].
    fn readdir(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        reply.error(Errno::NOSYS);
    }
    /// Names after a cookie with their attributes.
    fn readdirplus(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        reply.error(Errno::NOSYS);
    }
    /// Closes a directory.
    fn releasedir(&self, req: &Request<'_>, args: &ReleaseIn, reply: Reply<'_, Empty>) {
        reply.done();
    }
    /// Makes a directory durable.
    fn fsyncdir(&self, req: &Request<'_>, args: &FsyncIn, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Whether the caller may; not asked on mounts with `default_permissions`.
    fn access(&self, req: &Request<'_>, mask: u32, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Block on the device of a block of a file.
    fn bmap(&self, req: &Request<'_>, args: &BmapIn, reply: Reply<'_, BmapOut>) {
        reply.error(Errno::NOSYS);
    }
    /// An ioctl; `data` is the argument's bytes.
    fn ioctl(&self, req: &Request<'_>, args: &IoctlIn, data: &[u8], reply: Reply<'_, Ioctl>) {
        reply.error(Errno::NOTTY);
    }
    /// Readiness.
    fn poll(&self, req: &Request<'_>, args: &PollIn, reply: Reply<'_, PollOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Preallocates, punches, zeroes.
    fn fallocate(&self, req: &Request<'_>, args: &FallocateIn, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
    /// Next data or hole.
    fn lseek(&self, req: &Request<'_>, args: &LseekIn, reply: Reply<'_, LseekOut>) {
        reply.error(Errno::NOSYS);
    }
    /// Copies between files; answers the bytes copied.
    fn copy_file_range(&self, req: &Request<'_>, args: &CopyFileRangeIn) -> Result<u64, Errno> {
        Err(Errno::NOSYS)
    }
    /// Makes everything durable (only sent on `fuseblk` mounts).
    fn syncfs(&self, req: &Request<'_>, reply: Reply<'_, Empty>) {
        reply.error(Errno::NOSYS);
    }
}
