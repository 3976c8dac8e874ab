//! Requests about names.

use extant::{Error, NewInode, RenameFlags};
use rustix::io::Errno;

use super::{Adapter, caller, convert, errno};
use crate::server::Request;
use crate::wire::{EntryOut, MkdirIn, MknodIn};

#[allow(clippy::cast_possible_truncation, reason = "16 bits of mode, 9 of umask")]
fn short(mode: u32) -> u16 {
    mode as u16
}

impl Adapter {
    pub(super) fn do_lookup(&self, req: &Request<'_>, name: &[u8]) -> Result<EntryOut, Errno> {
        let dir = self.inode(req.node())?;
        // `.` and `..` are how the kernel asks for an inode it has forgotten, from a file handle. `.` may be asked
        // of any file.
        if name == b"." {
            return Ok(self.entry(&dir));
        }
        match self.fs.lookup(&dir, name, &caller::checked(req)) {
            Ok(inode) => Ok(self.entry(&inode)),
            // The kernel may remember that there is none: nobody but it makes names.
            Err(Error::NotFound) => Ok(EntryOut {
                entry_valid: self.options.ttl.as_secs(),
                entry_valid_nsec: self.options.ttl.subsec_nanos(),
                ..EntryOut::default()
            }),
            Err(error) => Err(errno(&error)),
        }
    }

    pub(super) fn do_mknod(&self, req: &Request<'_>, args: &MknodIn, name: &[u8]) -> Result<EntryOut, Errno> {
        let dir = self.inode(req.node())?;
        let cred = caller::checked(req).with_umask(short(args.umask));
        let new = NewInode { mode: short(args.mode), rdev: convert::device_of(args.rdev) };
        let inode = self.with_space(req, cred, |cred| self.fs.mknod(&dir, name, &new, cred));
        let inode = inode.map_err(|e| errno(&e))?;
        Ok(self.entry(&inode))
    }

    pub(super) fn do_mkdir(&self, req: &Request<'_>, args: &MkdirIn, name: &[u8]) -> Result<EntryOut, Errno> {
        let dir = self.inode(req.node())?;
        let cred = caller::checked(req).with_umask(short(args.umask));
        let mode = short(args.mode & 0o7777);
        let inode = self.with_space(req, cred, |cred| self.fs.mkdir(&dir, name, mode, cred));
        let inode = inode.map_err(|e| errno(&e))?;
        Ok(self.entry(&inode))
    }

    pub(super) fn do_symlink(
        &self,
        req: &Request<'_>,
        name: &[u8],
        target: &[u8],
    ) -> Result<EntryOut, Errno> {
        let dir = self.inode(req.node())?;
        let cred = caller::checked(req);
        let inode = self.with_space(req, cred, |cred| self.fs.symlink(&dir, name, target, cred));
        let inode = inode.map_err(|e| errno(&e))?;
        Ok(self.entry(&inode))
    }

    pub(super) fn do_link(&self, req: &Request<'_>, old: u64, name: &[u8]) -> Result<EntryOut, Errno> {
        let (inode, dir) = (self.inode(old)?, self.inode(req.node())?);
        let linked =
            self.with_space(req, caller::checked(req), |cred| self.fs.link(&inode, &dir, name, cred));
        linked.map_err(|e| errno(&e))?;
        Ok(self.entry(&inode))
    }

    pub(super) fn do_remove(&self, req: &Request<'_>, name: &[u8], directory: bool) -> Result<(), Errno> {
        let dir = self.inode(req.node())?;
        let victim = if directory {
            self.fs.rmdir(&dir, name, &caller::checked(req))
        } else {
            self.fs.unlink(&dir, name, &caller::checked(req))
        };
        self.nodes.lost_name(victim.map_err(|e| errno(&e))?);
        Ok(())
    }

    pub(super) fn do_rename(
        &self,
        req: &Request<'_>,
        old: &[u8],
        new_parent: u64,
        new: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let (from, to) = (self.inode(req.node())?, self.inode(new_parent)?);
        let flags = RenameFlags::from_bits(flags).map_err(|e| errno(&e))?;
        let rename = |cred: &_| self.fs.rename(&from, old, &to, new, flags, cred);
        let victim = self.with_space(req, caller::checked(req), rename).map_err(|e| errno(&e))?;
        if let Some(victim) = victim {
            self.nodes.lost_name(victim);
        }
        Ok(())
    }
}
