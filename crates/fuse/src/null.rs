//! A file system in memory behind the same transport: the least that any server can cost. Benchmarks measure the
//! real one against it. Nothing is stored.

mod tree;

use std::io::{self, IoSlice};
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::mount::{MountRequest, mount};
use crate::reply::{Bytes, Empty, Reply, XattrValue};
use crate::server::{InitConfig, Offer, Request, Server};
use crate::session::{Session, SessionOptions};
use crate::wire::{
    Attr, AttrOut, CreateIn, CreateOut, DirBuffer, EntryOut, FallocateIn, FattrFlags, FopenFlags, FsyncIn,
    GetattrIn, InitFlags, Kstatfs, LinkIn, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, SetattrIn, StatfsOut,
    WriteIn, WriteOut,
};
use tree::{Body, Tree};

/// How the null server answers.
#[derive(Clone, Copy, Debug)]
pub struct NullOptions {
    /// The kernel's page cache collects writes.
    pub writeback_cache: bool,
    /// Seconds that names and attributes may be cached.
    pub ttl: u64,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self { writeback_cache: false, ttl: 86_400 }
    }
}

/// The server.
#[derive(Debug)]
pub struct NullServer {
    tree: Tree,
    options: NullOptions,
}

impl NullServer {
    /// An empty file system.
    #[must_use]
    pub fn new(options: NullOptions) -> Self {
        Self { tree: Tree::new(), options }
    }

    /// Mounts it on `target` and serves until it is unmounted; `ready` is called once requests are served.
    pub fn mount_and_run(
        options: NullOptions,
        session: SessionOptions,
        target: &Path,
        ready: impl FnOnce(),
    ) -> io::Result<()> {
        let server = Self::new(options);
        let mut request = MountRequest::new("null", target);
        request.subtype = "extant-null".into();
        let (device, _) = mount(&request)?;
        let session = Session::start(device, &server, session)?;
        ready();
        session.run(&server)
    }

    fn entry(&self, attr: Attr) -> EntryOut {
        EntryOut {
            nodeid: attr.ino,
            generation: 0,
            entry_valid: self.options.ttl,
            attr_valid: self.options.ttl,
            attr,
            ..EntryOut::default()
        }
    }

    fn attr_out(&self, attr: Attr) -> AttrOut {
        AttrOut { attr_valid: self.options.ttl, attr, ..AttrOut::default() }
    }

    fn make(
        &self,
        req: &Request<'_>,
        name: &[u8],
        mode: u32,
        rdev: u32,
        body: Body,
    ) -> Result<EntryOut, Errno> {
        self.tree.make(req.node(), name, mode, rdev, (req.uid(), req.gid()), body).map(|a| self.entry(a))
    }

    fn list(&self, req: &Request<'_>, args: &ReadIn, plus: bool, reply: Reply<'_, Bytes>) {
        let mut out = DirBuffer::new(args.size);
        let listed = self.tree.list(req.node(), args.offset, |name, cookie, attr| {
            let kind = FileType::from_raw_mode(attr().mode);
            let kind = match kind {
                FileType::Directory => 4,
                FileType::Symlink => 10,
                FileType::RegularFile => 8,
                _ => 0,
            };
            if !plus {
                return out.push(attr().ino, cookie, kind, name);
            }
            if !out.fits_plus(name) {
                return false;
            }
            let entry = self.entry(attr());
            self.tree.remember(entry.nodeid);
            out.push_plus(&entry, entry.nodeid, cookie, kind, name)
        });
        match listed {
            Ok(()) => reply.bytes(out.bytes()),
            Err(errno) => reply.error(errno),
        }
    }
}

impl Server for NullServer {
    fn init(&self, _: &Offer) -> InitConfig {
        let mut config = InitConfig::default();
        config.flags |= InitFlags::ATOMIC_O_TRUNC
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::CACHE_SYMLINKS
            | InitFlags::SETXATTR_EXT
            | InitFlags::ASYNC_DIO
            | InitFlags::DONT_MASK
            | InitFlags::POSIX_ACL
            | InitFlags::EXPORT_SUPPORT;
        if self.options.writeback_cache {
            config.flags |= InitFlags::WRITEBACK_CACHE;
        }
        config
    }

    fn lookup(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        match self.tree.lookup(req.node(), name) {
            Ok(attr) => reply.ok(&self.entry(attr)),
            Err(Errno::NOENT) if self.options.ttl > 0 => {
                reply.ok(&EntryOut { entry_valid: self.options.ttl, ..EntryOut::default() });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, node: u64, nlookup: u64) {
        self.tree.forget(node, nlookup);
    }

    fn getattr(&self, req: &Request<'_>, _: &GetattrIn, reply: Reply<'_, AttrOut>) {
        reply.answer(self.tree.attr(req.node()).map(|a| self.attr_out(a)));
    }

    fn setattr(&self, req: &Request<'_>, args: &SetattrIn, reply: Reply<'_, AttrOut>) {
        let valid = FattrFlags::from_bits_retain(args.valid);
        reply.answer(self.tree.change(req.node(), args, valid).map(|a| self.attr_out(a)));
    }

    fn readlink(&self, req: &Request<'_>, reply: Reply<'_, Bytes>) {
        reply.answer_bytes(self.tree.link_target(req.node()));
    }

    fn symlink(&self, req: &Request<'_>, name: &[u8], target: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.make(req, name, 0o120_777, 0, Body::link(target)));
    }

    fn mknod(&self, req: &Request<'_>, args: &MknodIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.make(req, name, args.mode & !args.umask, args.rdev, Body::file()));
    }

    fn mkdir(&self, req: &Request<'_>, args: &MkdirIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.make(req, name, 0o040_000 | (args.mode & 0o7777 & !args.umask), 0, Body::dir()));
    }

    fn unlink(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.answer_empty(self.tree.remove(req.node(), name, false));
    }

    fn rmdir(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.answer_empty(self.tree.remove(req.node(), name, true));
    }

    fn rename(
        &self,
        req: &Request<'_>,
        old: &[u8],
        new_parent: u64,
        new: &[u8],
        flags: u32,
        reply: Reply<'_, Empty>,
    ) {
        reply.answer_empty(self.tree.rename(req.node(), old, new_parent, new, flags));
    }

    fn link(&self, req: &Request<'_>, args: &LinkIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.tree.link(args.oldnodeid, req.node(), name).map(|a| self.entry(a)));
    }

    fn open(&self, _: &Request<'_>, _: &OpenIn, reply: Reply<'_, OpenOut>) {
        reply.ok(&open_out());
    }

    fn create(&self, req: &Request<'_>, args: &CreateIn, name: &[u8], reply: Reply<'_, CreateOut>) {
        let mode = 0o100_000 | (args.mode & 0o7777 & !args.umask);
        let made = self.make(req, name, mode, 0, Body::file());
        reply.answer(made.map(|entry| CreateOut { entry, open: open_out() }));
    }

    fn read(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        let Ok(node) = self.tree.node(req.node()) else { return reply.error(Errno::STALE) };
        let Body::File(file) = &node.body else { return reply.error(Errno::ISDIR) };
        let file = file.read();
        let slices: Vec<IoSlice<'_>> =
            file.slices(args.offset, args.size as usize).map(IoSlice::new).collect();
        reply.vectored(&slices);
    }

    fn write(&self, req: &Request<'_>, args: &WriteIn, data: &[u8], reply: Reply<'_, WriteOut>) {
        let Ok(node) = self.tree.node(req.node()) else { return reply.error(Errno::STALE) };
        let Body::File(file) = &node.body else { return reply.error(Errno::ISDIR) };
        let mut file = file.write();
        file.write(args.offset, data);
        node.set_size(file.size());
        drop(file);
        reply.ok(&WriteOut { size: args.size, padding: 0 });
    }

    fn fsync(&self, _: &Request<'_>, _: &FsyncIn, reply: Reply<'_, Empty>) {
        reply.done();
    }

    fn fsyncdir(&self, _: &Request<'_>, _: &FsyncIn, reply: Reply<'_, Empty>) {
        reply.done();
    }

    fn statfs(&self, _: &Request<'_>, reply: Reply<'_, StatfsOut>) {
        let blocks = 1 << 28;
        let st = Kstatfs {
            blocks,
            bfree: blocks,
            bavail: blocks,
            files: 1 << 30,
            ffree: 1 << 30,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
            ..Kstatfs::default()
        };
        reply.ok(&StatfsOut { st });
    }

    fn getxattr(&self, _: &Request<'_>, _: &[u8], reply: Reply<'_, XattrValue>) {
        reply.error(Errno::NODATA);
    }

    fn listxattr(&self, _: &Request<'_>, reply: Reply<'_, XattrValue>) {
        reply.value(&[]);
    }

    fn readdir(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        self.list(req, args, false, reply);
    }

    fn readdirplus(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        self.list(req, args, true, reply);
    }

    fn fallocate(&self, _: &Request<'_>, _: &FallocateIn, reply: Reply<'_, Empty>) {
        reply.error(Errno::OPNOTSUPP);
    }

    fn syncfs(&self, _: &Request<'_>, reply: Reply<'_, Empty>) {
        reply.done();
    }
}

fn open_out() -> OpenOut {
    OpenOut { fh: 0, open_flags: (FopenFlags::KEEP_CACHE | FopenFlags::NOFLUSH).bits(), backing_id: 0 }
}
