//! The requests, each to its translation.

use extant::XattrSet;
use rustix::io::Errno;

use super::{Adapter, caller, convert, errno, node_of};
use crate::reply::{Bytes, Empty, Ioctl, Reply, XattrValue};
use crate::server::{InitConfig, Offer, Request, Server};
use crate::wire::{
    AttrOut, BmapIn, BmapOut, CopyFileRangeIn, CreateIn, CreateOut, EntryOut, FallocateIn, FsyncFlags,
    FsyncIn, GetattrFlags, GetattrIn, InitFlags, IoctlIn, Kstatfs, LinkIn, LseekIn, LseekOut, MkdirIn,
    MknodIn, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, SetxattrFlags, SetxattrIn, StatfsOut, StatxIn,
    StatxOut, WriteIn, WriteOut,
};

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
const TRUSTED: &[u8] = b"trusted.";
const S_ISGID: u16 = 0o2000;

impl Adapter {
    /// The open file that a request about attributes names.
    fn handle(flags: u32, fh: u64) -> Option<u64> {
        GetattrFlags::from_bits_retain(flags).contains(GetattrFlags::FH).then_some(fh)
    }

    fn do_setattr(&self, req: &Request<'_>, args: &SetattrIn) -> Result<AttrOut, Errno> {
        let inode = self.inode(req.node())?;
        let change = convert::set_attr(args);
        let set = self.with_space(req, caller::checked(req), |cred| self.fs.set_attr(&inode, &change, cred));
        Ok(self.attr_out(&set.map_err(|e| errno(&e))?))
    }

    fn do_setxattr(
        &self,
        req: &Request<'_>,
        args: &SetxattrIn,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), Errno> {
        let inode = self.inode(req.node())?;
        let how = match args.flags {
            0 => XattrSet::Any,
            XATTR_CREATE => XattrSet::Create,
            XATTR_REPLACE => XattrSet::Replace,
            _ => return Err(Errno::INVAL),
        };
        let cred = caller::checked(req);
        let set = |cred: &_| self.fs.set_xattr(&inode, name, value, how, cred);
        self.with_space(req, cred.clone(), set).map_err(|e| errno(&e))?;
        // The caller is not in the file's group: the kernel, which knows, asks for what chmod(2) would do.
        if SetxattrFlags::from_bits_retain(args.setxattr_flags).contains(SetxattrFlags::ACL_KILL_SGID) {
            let mode = inode.attr().mode & 0o7777;
            if mode & S_ISGID != 0 {
                let change = extant::SetAttr { mode: Some(mode & !S_ISGID), ..extant::SetAttr::default() };
                self.fs.set_attr(&inode, &change, &cred).map_err(|e| errno(&e))?;
            }
        }
        Ok(())
    }

    /// As the kernel's ext4: names in `trusted.` are for who has `CAP_SYS_ADMIN`. Their values the kernel itself refuses to others.
    fn do_listxattr(&self, req: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(req.node())?;
        let list = |cred: &_| self.fs.list_xattr(&inode, cred).map_err(|e| errno(&e));
        let cred = caller::checked(req);
        let all = list(&cred)?;
        // Hardly ever there, and who asks is only known from /proc.
        if !all.split(|&b| b == 0).any(|name| name.starts_with(TRUSTED)) || caller::is_admin(req) {
            return Ok(all);
        }
        list(&extant::Credentials { caps: cred.caps.without(extant::Caps::SYS_ADMIN), ..cred })
    }
}

impl Server for Adapter {
    /// Without ATOMIC_O_TRUNC, by which an open would truncate before the kernel has looked whether the file is being executed.
    fn init(&self, offer: &Offer) -> InitConfig {
        let mut config = InitConfig::default();
        config.flags |= InitFlags::POSIX_ACL
            | InitFlags::DONT_MASK
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::EXPORT_SUPPORT
            | InitFlags::ALLOW_IDMAP
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::CACHE_SYMLINKS
            | InitFlags::SETXATTR_EXT
            | InitFlags::ASYNC_DIO
            | InitFlags::HAS_IOCTL_DIR
            | InitFlags::NO_OPENDIR_SUPPORT
            | InitFlags::ABORT_ERROR;
        if !self.fs.options().acl {
            config.flags -= InitFlags::POSIX_ACL;
        }
        if self.options.writeback_cache {
            config.flags |= InitFlags::WRITEBACK_CACHE;
        }
        config.flags -= self.options.without;
        tracing::debug!(minor = offer.minor, offered = ?offer.flags, wanted = ?config.flags, "INIT");
        config
    }

    fn destroy(&self) {
        self.finish();
    }

    fn lookup(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.do_lookup(req, name));
    }

    fn forget(&self, node: u64, nlookup: u64) {
        self.nodes.forget(node, nlookup);
    }

    fn getattr(&self, req: &Request<'_>, args: &GetattrIn, reply: Reply<'_, AttrOut>) {
        let inode = self.inode_or_file(req.node(), Self::handle(args.getattr_flags, args.fh));
        reply.answer(inode.map(|i| self.attr_out(&i.attr())));
    }

    fn statx(&self, req: &Request<'_>, args: &StatxIn, reply: Reply<'_, StatxOut>) {
        let inode = self.inode_or_file(req.node(), Self::handle(args.getattr_flags, args.fh));
        reply.answer(inode.map(|i| StatxOut {
            attr_valid: self.options.ttl.as_secs(),
            attr_valid_nsec: self.options.ttl.subsec_nanos(),
            stat: convert::statx(&self.told(&i.attr())),
            ..StatxOut::default()
        }));
    }

    fn setattr(&self, req: &Request<'_>, args: &SetattrIn, reply: Reply<'_, AttrOut>) {
        reply.answer(self.do_setattr(req, args));
    }

    fn readlink(&self, req: &Request<'_>, reply: Reply<'_, Bytes>) {
        let target = self.inode(req.node()).and_then(|i| self.fs.readlink(&i).map_err(|e| errno(&e)));
        reply.answer_bytes(target);
    }

    fn symlink(&self, req: &Request<'_>, name: &[u8], target: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.do_symlink(req, name, target));
    }

    fn mknod(&self, req: &Request<'_>, args: &MknodIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.do_mknod(req, args, name));
    }

    fn mkdir(&self, req: &Request<'_>, args: &MkdirIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.do_mkdir(req, args, name));
    }

    fn unlink(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.answer_empty(self.do_remove(req, name, false));
    }

    fn rmdir(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        reply.answer_empty(self.do_remove(req, name, true));
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
        reply.answer_empty(self.do_rename(req, old, new_parent, new, flags));
    }

    fn link(&self, req: &Request<'_>, args: &LinkIn, name: &[u8], reply: Reply<'_, EntryOut>) {
        reply.answer(self.do_link(req, args.oldnodeid, name));
    }

    fn open(&self, req: &Request<'_>, args: &OpenIn, reply: Reply<'_, OpenOut>) {
        reply.answer(self.do_open(req, args));
    }

    fn create(&self, req: &Request<'_>, args: &CreateIn, name: &[u8], reply: Reply<'_, CreateOut>) {
        reply.answer(self.do_create(req, args, name));
    }

    fn tmpfile(&self, req: &Request<'_>, args: &CreateIn, reply: Reply<'_, CreateOut>) {
        reply.answer(self.do_tmpfile(req, args));
    }

    fn read(&self, _: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        self.do_read(args, reply);
    }

    fn write(&self, req: &Request<'_>, args: &WriteIn, data: &[u8], reply: Reply<'_, WriteOut>) {
        self.answer_write(req, args, data, reply);
    }

    fn release(&self, _: &Request<'_>, args: &ReleaseIn, reply: Reply<'_, Empty>) {
        self.close(args.fh);
        reply.done();
    }

    fn fsync(&self, _: &Request<'_>, args: &FsyncIn, reply: Reply<'_, Empty>) {
        let datasync = FsyncFlags::from_bits_retain(args.fsync_flags).contains(FsyncFlags::FDATASYNC);
        reply.answer_empty(self.do_fsync(args.fh, datasync));
    }

    fn fsyncdir(&self, req: &Request<'_>, args: &FsyncIn, reply: Reply<'_, Empty>) {
        let datasync = FsyncFlags::from_bits_retain(args.fsync_flags).contains(FsyncFlags::FDATASYNC);
        reply.answer_empty(self.do_fsyncdir(req, datasync));
    }

    fn statfs(&self, req: &Request<'_>, reply: Reply<'_, StatfsOut>) {
        let found = self.inode(req.node()).and_then(|inode| self.fs.statfs_at(&inode).map_err(|e| errno(&e)));
        let s = match found {
            Ok(stats) => stats,
            Err(errno) => return reply.error(errno),
        };
        let st = Kstatfs {
            blocks: s.blocks,
            bfree: s.blocks_free,
            bavail: s.blocks_available,
            files: s.files,
            ffree: s.files_free,
            bsize: s.block_size,
            namelen: s.name_max,
            frsize: s.block_size,
            ..Kstatfs::default()
        };
        reply.ok(&StatfsOut { st });
    }

    fn setxattr(
        &self,
        req: &Request<'_>,
        args: &SetxattrIn,
        name: &[u8],
        value: &[u8],
        reply: Reply<'_, Empty>,
    ) {
        reply.answer_empty(self.do_setxattr(req, args, name, value));
    }

    fn getxattr(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, XattrValue>) {
        let inode = self.inode(req.node());
        reply.answer_value(
            inode.and_then(|i| self.fs.get_xattr(&i, name, &caller::checked(req)).map_err(|e| errno(&e))),
        );
    }

    fn listxattr(&self, req: &Request<'_>, reply: Reply<'_, XattrValue>) {
        reply.answer_value(self.do_listxattr(req));
    }

    fn removexattr(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, Empty>) {
        let inode = self.inode(req.node());
        reply.answer_empty(inode.and_then(|i| {
            let remove = |cred: &_| self.fs.remove_xattr(&i, name, cred);
            self.with_space(req, caller::checked(req), remove).map_err(|e| errno(&e))
        }));
    }

    fn opendir(&self, _: &Request<'_>, _: &OpenIn, reply: Reply<'_, OpenOut>) {
        // Nothing is kept for an open directory. The kernel then leaves OPENDIR and RELEASEDIR out.
        reply.error(Errno::NOSYS);
    }

    fn readdir(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        match self.do_readdir(req, args) {
            Ok(out) => reply.bytes(out.bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        match self.do_readdirplus(req, args) {
            Ok(out) => reply.bytes(out.bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn bmap(&self, req: &Request<'_>, args: &BmapIn, reply: Reply<'_, BmapOut>) {
        reply.answer(self.do_bmap(req, args));
    }

    fn ioctl(&self, req: &Request<'_>, args: &IoctlIn, data: &[u8], reply: Reply<'_, Ioctl>) {
        reply.answer_ioctl(self.do_ioctl(req, args, data));
    }

    fn fallocate(&self, req: &Request<'_>, args: &FallocateIn, reply: Reply<'_, Empty>) {
        self.answer_fallocate(req, args, reply);
    }

    fn lseek(&self, req: &Request<'_>, args: &LseekIn, reply: Reply<'_, LseekOut>) {
        reply.answer(self.do_lseek(req, args).map(|offset| LseekOut { offset }));
    }

    fn copy_file_range(&self, req: &Request<'_>, args: &CopyFileRangeIn) -> Result<u64, Errno> {
        self.do_copy(req, args)
    }

    fn syncfs(&self, _: &Request<'_>, reply: Reply<'_, Empty>) {
        reply.answer_empty(self.fs.sync().map_err(|e| errno(&e)));
    }
}

impl Adapter {
    /// The node of an inode, for notifications.
    #[must_use]
    pub fn node_id(ino: extant::Ino) -> u64 {
        node_of(ino)
    }
}
