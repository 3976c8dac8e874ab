//! READDIR and READDIRPLUS.

use std::ops::ControlFlow;

use extant::{FileType, Ino};
use rustix::io::Errno;

use super::{Adapter, caller, convert, errno, node_of};
use crate::server::Request;
use crate::wire::{DirBuffer, EntryOut, ReadIn};

/// A name of a directory, kept until its inode is looked at outside the directory's lock.
struct Listed {
    ino: Ino,
    kind: Option<FileType>,
    next: u64,
    /// Where the name lies in the batch.
    name: std::ops::Range<usize>,
}

impl Adapter {
    pub(super) fn do_readdir(&self, req: &Request<'_>, args: &ReadIn) -> Result<DirBuffer, Errno> {
        let dir = self.inode(req.node())?;
        let mut out = DirBuffer::new(args.size);
        self.fs
            .read_dir(&dir, args.offset, &caller::checked(req), &mut |e| {
                let kind = convert::dirent_type(e.kind);
                flow(out.push(u64::from(e.ino.0), e.next, kind, e.name))
            })
            .map_err(|e| errno(&e))?;
        Ok(out)
    }

    /// Names first, then their inodes: the directory's lock is not held while those are read. Nobody removes a name
    /// in between, since the kernel holds the directory over the whole request.
    pub(super) fn do_readdirplus(&self, req: &Request<'_>, args: &ReadIn) -> Result<DirBuffer, Errno> {
        let dir = self.inode(req.node())?;
        let mut names = Vec::with_capacity(4096);
        let mut listed = Vec::with_capacity(args.size as usize / 160);
        let mut room = DirBuffer::plus_room(args.size);
        self.fs
            .read_dir(&dir, args.offset, &caller::checked(req), &mut |e| {
                if !room.take(e.name) {
                    return ControlFlow::Break(());
                }
                let start = names.len();
                names.extend_from_slice(e.name);
                listed.push(Listed { ino: e.ino, kind: e.kind, next: e.next, name: start..names.len() });
                ControlFlow::Continue(())
            })
            .map_err(|e| errno(&e))?;
        let mut out = DirBuffer::new(args.size);
        for one in listed {
            let name = &names[one.name];
            let entry = self.plus_entry(name, one.ino);
            let kind = convert::dirent_type(one.kind);
            if !out.push_plus(&entry, u64::from(one.ino.0), one.next, kind, name) {
                if entry.nodeid != 0 {
                    self.nodes.forget(entry.nodeid, 1);
                }
                break;
            }
        }
        Ok(out)
    }

    /// The inode of a name; node id 0, which makes the kernel take the name alone, for `.` and `..` and for an inode
    /// that cannot be read.
    fn plus_entry(&self, name: &[u8], ino: Ino) -> EntryOut {
        if matches!(name, b"." | b"..") {
            return EntryOut::default();
        }
        match self.inode(node_of(ino)) {
            Ok(inode) => self.entry(&inode),
            Err(_) => EntryOut::default(),
        }
    }
}

fn flow(go_on: bool) -> ControlFlow<()> {
    if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
