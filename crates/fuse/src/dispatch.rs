//! From a request's bytes to the server's call.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::reply::{Answer, Empty, Outlet, Reply};
use crate::server::{Request, Server};
use crate::wire::{
    AccessIn, BatchForgetIn, CopyFileRangeOut, ForgetIn, ForgetOne, GetxattrIn, InHeader, ReadIn, Rename2In,
    RenameIn, SetxattrIn, SyncfsIn, WriteIn, WriteOut, opcode,
};

/// A request after its head.
#[derive(Clone, Copy)]
pub(crate) struct Body<'a> {
    /// The structure of the request's kind, and what follows it where that is not apart.
    pub(crate) fixed: &'a [u8],
    /// Names and data, where they are apart.
    pub(crate) rest: Option<&'a [u8]>,
}

/// What is left of a request to take arguments from.
struct Args<'a>(Body<'a>);

impl<'a> Args<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Option<&'a T> {
        let (value, rest) = T::ref_from_prefix(self.0.fixed).ok()?;
        self.0.fixed = rest;
        Some(value)
    }

    /// Names and data.
    fn tail(&mut self) -> &mut &'a [u8] {
        self.0.rest.as_mut().unwrap_or(&mut self.0.fixed)
    }

    /// A name up to its zero byte.
    fn name(&mut self) -> Option<&'a [u8]> {
        let tail = self.tail();
        let end = tail.iter().position(|&b| b == 0)?;
        let (name, rest) = tail.split_at(end);
        *tail = &rest[1..];
        Some(name)
    }

    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let tail = self.tail();
        let (bytes, rest) = tail.split_at_checked(len as usize)?;
        *tail = rest;
        Some(bytes)
    }
}

/// Serves every request but INIT, INTERRUPT and DESTROY, which are the session's. `None` if it is malformed (then
/// nothing was answered).
pub(crate) fn serve<S: Server + ?Sized>(
    server: &S,
    outlet: &dyn Outlet,
    req: &Request<'_>,
    header: &InHeader,
    body: Body<'_>,
) -> Option<()> {
    let mut args = Args(body);
    let unique = header.unique;
    match header.opcode {
        opcode::LOOKUP => server.lookup(req, args.name()?, reply(outlet, unique)),
        opcode::FORGET => server.forget(header.nodeid, args.take::<ForgetIn>()?.nlookup),
        opcode::BATCH_FORGET => {
            for _ in 0..args.take::<BatchForgetIn>()?.count {
                let one = args.take::<ForgetOne>()?;
                server.forget(one.nodeid, one.nlookup);
            }
        }
        opcode::GETATTR => server.getattr(req, args.take()?, reply(outlet, unique)),
        opcode::STATX => server.statx(req, args.take()?, reply(outlet, unique)),
        opcode::SETATTR => server.setattr(req, args.take()?, reply(outlet, unique)),
        opcode::READLINK => server.readlink(req, reply(outlet, unique)),
        opcode::SYMLINK => server.symlink(req, args.name()?, args.name()?, reply(outlet, unique)),
        opcode::MKNOD => server.mknod(req, args.take()?, args.name()?, reply(outlet, unique)),
        opcode::MKDIR => server.mkdir(req, args.take()?, args.name()?, reply(outlet, unique)),
        opcode::UNLINK => server.unlink(req, args.name()?, reply(outlet, unique)),
        opcode::RMDIR => server.rmdir(req, args.name()?, reply(outlet, unique)),
        opcode::RENAME => {
            let newdir = args.take::<RenameIn>()?.newdir;
            server.rename(req, args.name()?, newdir, args.name()?, 0, reply(outlet, unique));
        }
        opcode::RENAME2 => {
            let how = args.take::<Rename2In>()?;
            server.rename(req, args.name()?, how.newdir, args.name()?, how.flags, reply(outlet, unique));
        }
        opcode::LINK => server.link(req, args.take()?, args.name()?, reply(outlet, unique)),
        opcode::OPEN => server.open(req, args.take()?, reply(outlet, unique)),
        opcode::CREATE => server.create(req, args.take()?, args.name()?, reply(outlet, unique)),
        opcode::TMPFILE => server.tmpfile(req, args.take()?, reply(outlet, unique)),
        opcode::READ => {
            let how = args.take::<ReadIn>()?;
            server.read(req, how, Reply::new(outlet, unique, how.size));
        }
        opcode::WRITE => {
            let how = args.take::<WriteIn>()?;
            server.write(req, how, args.bytes(how.size)?, reply(outlet, unique));
        }
        opcode::FLUSH => server.flush(req, args.take()?, reply(outlet, unique)),
        opcode::RELEASE => server.release(req, args.take()?, reply(outlet, unique)),
        opcode::FSYNC => server.fsync(req, args.take()?, reply(outlet, unique)),
        opcode::STATFS => server.statfs(req, reply(outlet, unique)),
        opcode::SETXATTR => {
            let how = args.take::<SetxattrIn>()?;
            server.setxattr(req, how, args.name()?, args.bytes(how.size)?, reply(outlet, unique));
        }
        opcode::GETXATTR => {
            let room = args.take::<GetxattrIn>()?.size;
            server.getxattr(req, args.name()?, Reply::new(outlet, unique, room));
        }
        opcode::LISTXATTR => {
            let room = args.take::<GetxattrIn>()?.size;
            server.listxattr(req, Reply::new(outlet, unique, room));
        }
        opcode::REMOVEXATTR => server.removexattr(req, args.name()?, reply(outlet, unique)),
        opcode::OPENDIR => server.opendir(req, args.take()?, reply(outlet, unique)),
        opcode::READDIR => {
            let how = args.take::<ReadIn>()?;
            server.readdir(req, how, Reply::new(outlet, unique, how.size));
        }
        opcode::READDIRPLUS => {
            let how = args.take::<ReadIn>()?;
            server.readdirplus(req, how, Reply::new(outlet, unique, how.size));
        }
        opcode::RELEASEDIR => server.releasedir(req, args.take()?, reply(outlet, unique)),
        opcode::FSYNCDIR => server.fsyncdir(req, args.take()?, reply(outlet, unique)),
        opcode::ACCESS => server.access(req, args.take::<AccessIn>()?.mask, reply(outlet, unique)),
        opcode::BMAP => server.bmap(req, args.take()?, reply(outlet, unique)),
        opcode::IOCTL => {
            let how = args.take::<crate::wire::IoctlIn>()?;
            server.ioctl(req, how, args.bytes(how.in_size)?, reply(outlet, unique));
        }
        opcode::POLL => server.poll(req, args.take()?, reply(outlet, unique)),
        opcode::FALLOCATE => server.fallocate(req, args.take()?, reply(outlet, unique)),
        opcode::LSEEK => server.lseek(req, args.take()?, reply(outlet, unique)),
        opcode::COPY_FILE_RANGE => {
            let reply = reply::<WriteOut>(outlet, unique);
            // The older request's reply has 32 bits; the kernel asks with a length that fits.
            let copied = server.copy_file_range(req, args.take()?);
            let out = copied.map(|n| WriteOut { size: u32::try_from(n).unwrap_or(u32::MAX), padding: 0 });
            reply.answer(out);
        }
        opcode::COPY_FILE_RANGE_64 => {
            let reply = reply::<CopyFileRangeOut>(outlet, unique);
            let copied = server.copy_file_range(req, args.take()?);
            reply.answer(copied.map(|bytes_copied| CopyFileRangeOut { bytes_copied }));
        }
        opcode::SYNCFS => {
            args.take::<SyncfsIn>()?;
            server.syncfs(req, reply(outlet, unique));
        }
        // Locks are the kernel's own (the flags are not negotiated), and there is no DAX window to map into.
        opcode::GETLK | opcode::SETLK | opcode::SETLKW | opcode::SETUPMAPPING | opcode::REMOVEMAPPING => {
            reply::<Empty>(outlet, unique).error(Errno::NOSYS);
        }
        // An answer to a notification that is never sent.
        opcode::NOTIFY_REPLY => {}
        _ => reply::<Empty>(outlet, unique).error(Errno::NOSYS),
    }
    Some(())
}

/// Whether a request may wait for the device for long; another reader then takes over.
pub(crate) fn may_block(header: &InHeader) -> bool {
    matches!(
        header.opcode,
        opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::SYNCFS
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::COPY_FILE_RANGE_64
            | opcode::IOCTL
            | opcode::BMAP
    )
}

/// Whether the kernel waits for an answer.
pub(crate) fn wants_answer(code: u32) -> bool {
    !matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY)
}

fn reply<'a, A: Answer>(outlet: &'a dyn Outlet, unique: u64) -> Reply<'a, A> {
    Reply::new(outlet, unique, 0)
}
