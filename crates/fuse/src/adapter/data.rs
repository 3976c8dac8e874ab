//! Requests about content.

use extant::InodeRef;
use rustix::io::Errno;

use super::{Adapter, errno};
use crate::reply::{Bytes, Reply};
use crate::server::Request;
use crate::wire::{CopyFileRangeIn, FallocateIn, LseekIn, ReadIn, WriteIn};

impl Adapter {
    fn file(&self, req: &Request<'_>, fh: u64) -> Result<InodeRef, Errno> {
        self.inode_or_file(req.node(), Some(fh))
    }

    pub(super) fn do_read(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        let read = self.file(req, args.fh).and_then(|inode| {
            let mut bytes = vec![0; args.size as usize];
            let n = self.fs.read_at(&inode, args.offset, &mut bytes).map_err(|e| errno(&e))?;
            bytes.truncate(n);
            Ok(bytes)
        });
        reply.answer_bytes(read);
    }

    pub(super) fn do_write(
        &self,
        _: &Request<'_>,
        _: &WriteIn,
        _: &[u8],
    ) -> Result<crate::wire::WriteOut, Errno> {
        Err(Errno::ROFS)
    }

    pub(super) fn do_fsync(&self, _: &Request<'_>, _: u64, _: bool) -> Result<(), Errno> {
        self.fs.sync().map_err(|e| errno(&e))
    }

    pub(super) fn do_fsyncdir(&self, _: &Request<'_>, _: bool) -> Result<(), Errno> {
        self.fs.sync().map_err(|e| errno(&e))
    }

    pub(super) fn do_fallocate(&self, _: &Request<'_>, _: &FallocateIn) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    pub(super) fn do_lseek(&self, _: &Request<'_>, _: &LseekIn) -> Result<u64, Errno> {
        Err(Errno::NOSYS)
    }

    pub(super) fn do_copy(&self, _: &Request<'_>, _: &CopyFileRangeIn) -> Result<u64, Errno> {
        Err(Errno::NOSYS)
    }
}
