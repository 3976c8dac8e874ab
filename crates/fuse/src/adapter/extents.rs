//! Our own ioctls ([`crate::private`]): extents, moving blocks, the other modes of fallocate(2).

use extant::{Access, FallocateMode, FiemapHow, Ino, InodeFlags, InodeRef, MoveRange};
use extant_sync::atomic::{AtomicBool, Ordering};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::coherent::Stale;
use super::open::Open;
use super::{Adapter, caller, errno, node_of};
use crate::private::{FIEMAP_ROOM, Fallocate, FiemapHead, MoveExt};
use crate::reply::{Empty, Reply};
use crate::server::Request;

/// One thread at a time has the kernel drop pages: it waits for READs and WRITEs, which others serve, so there must be others.
#[derive(Debug, Default)]
pub(super) struct Dropping(AtomicBool);

/// The right to that. It is held from before an operation to after it: EAGAIN is then only said before anything is done.
struct MayDrop<'a>(&'a Dropping);

impl Dropping {
    fn begin(&self) -> Result<MayDrop<'_>, Errno> {
        if self.0.swap(true, Ordering::Acquire) { Err(Errno::AGAIN) } else { Ok(MayDrop(self)) }
    }
}

impl Drop for MayDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

impl Adapter {
    pub(super) fn fiemap_ioctl(
        &self,
        req: &Request<'_>,
        inode: &InodeRef,
        data: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        let (mut head, _) = FiemapHead::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
        let how = FiemapHow::from_raw(head.flags).map_err(|_| Errno::BADR)?;
        let (start, length) = (head.start, head.length);
        let most = (head.extent_count as usize).min(FIEMAP_ROOM);
        let mut out = data.to_vec();
        let interrupted = &|| req.interrupted();
        if most == 0 {
            let count = self.fs.fiemap_count_interruptible(inode, start, length, how, interrupted);
            head.mapped_extents = count.map_err(|e| errno(&e))?;
        } else {
            let found = self.fs.fiemap_interruptible(inode, start, length, how, most, interrupted);
            let found = found.map_err(|e| errno(&e))?;
            head.mapped_extents = found.len() as u32;
            let extents = out[size_of::<FiemapHead>()..].chunks_exact_mut(extant::FiemapExtent::SIZE);
            extents.zip(&found).for_each(|(into, extent)| into.copy_from_slice(&extent.to_bytes()));
        }
        out[..size_of::<FiemapHead>()].copy_from_slice(head.as_bytes());
        Ok(out)
    }

    pub(super) fn fallocate_ioctl(&self, req: &Request<'_>, fh: u64, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let asked = Fallocate::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        if asked.reserved != 0 {
            return Err(Errno::INVAL);
        }
        let (mode, keep_size) = FallocateMode::from_flags(asked.mode).map_err(|e| errno(&e))?;
        let file = self.files.find(fh).ok_or(Errno::BADF)?;
        if asked.length == 0 {
            return Err(Errno::INVAL);
        }
        refuse_reader(&file)?;
        refuse_swap(&file)?;
        let resizes = match mode {
            FallocateMode::CollapseRange | FallocateMode::InsertRange => true,
            _ => !keep_size,
        };
        // Then the size is the kernel's, which is told of none that becomes smaller: it would put what is appended elsewhere than at the end.
        if resizes && self.options.writeback_cache {
            return Err(Errno::OPNOTSUPP);
        }
        // Also where nothing is cached yet: a page that is read meanwhile must go.
        let right = self.dropping.begin()?;
        // Before, so that nothing of what the kernel has written for others is lost in the move; after, since it is elsewhere then.
        self.drop_cached(&right, &file, asked.offset)?;
        let done = self.fallocate_as(req, &file, mode, asked.offset, asked.length, keep_size);
        self.drop_after(&right, &file, asked.offset);
        drop(right);
        self.attributes_changed(req.node());
        done.map_err(|e| errno(&e))?;
        Ok(data.to_vec())
    }

    /// Whether the last byte is a zero, as after an allocation. If not, somebody has changed the file meanwhile (an ioctl, which the kernel lets
    /// in beside a fallocate(2)), and nothing is told of the end.
    fn ends_with_zero(&self, file: &Open, size: u64) -> bool {
        let mut last = [0xFF];
        let read = size.checked_sub(1).map(|last_byte| self.fs.read_at(file.inode(), last_byte, &mut last));
        matches!(read, Some(Ok(1))) && last == [0]
    }

    /// After a fallocate(2) that failed: the kernel takes the file to be as it was, but it may be longer, with blocks and zeros up to
    /// where the space was out (docs/fallocate.md).
    pub(super) fn answer_in_part(
        &self,
        node: u64,
        file: &Open,
        zeroed_from: Option<u64>,
        size_before: u64,
        reply: Reply<'_, Empty>,
        errno: Errno,
    ) {
        self.attributes_changed(node);
        let size = file.inode().attr().size;
        let pages = zeroed_from.filter(|_| file.may_be_cached()).map(|offset| (offset, 0));
        // With the writeback cache it is what the kernel brings back beside the call that makes the file longer.
        let grown = size > size_before && !self.options.writeback_cache;
        let grown_to = (grown && self.ends_with_zero(file, size)).then_some(size);
        let stale = Stale { pages, grown_to };
        let Some(notifier) = self.notifier.get().filter(|_| pages.is_some() || grown_to.is_some()) else {
            return reply.error(errno);
        };
        if stale.grown_to.is_some() {
            file.note_stored();
        }
        let reply = match reply.detach() {
            Ok(reply) => return self.dropper.fail(notifier, node, stale, reply, errno),
            Err(reply) => reply,
        };
        // A seat of a ring: one may wait, so that others are left to serve.
        match self.dropping.begin() {
            Ok(_right) => {
                if let Err(error) = stale.tell(notifier, node) {
                    tracing::error!(%error, node, "the kernel may show what the file was before");
                }
            }
            Err(_) => self.dropper.tell(notifier, node, stale),
        }
        reply.error(errno);
    }

    /// The donor comes by number and generation, so whether the caller may write it is asked here; to whom it is not known, nothing
    /// is allowed. Nor is it enough: directories on the way to it may be closed to the caller. So somebody has it open for writing.
    pub(super) fn move_ext_ioctl(&self, req: &Request<'_>, fh: u64, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut asked = MoveExt::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        if asked.reserved != 0 {
            return Err(Errno::INVAL);
        }
        let file = self.files.find(fh).ok_or(Errno::BADF)?;
        refuse_reader(&file)?;
        let ino = u32::try_from(asked.donor_ino).map_err(|_| Errno::STALE)?;
        let inode = self.fs.inode_generation(Ino(ino), asked.donor_generation).map_err(|e| errno(&e))?;
        let cred = caller::unchecked(req).ok_or(Errno::PERM)?;
        self.fs.access(&inode, Access::WRITE, &cred).map_err(|e| errno(&e))?;
        let donor = self.files.writer_of(&inode).ok_or(Errno::BADF)?;
        refuse_swap(&file)?;
        refuse_swap(&donor)?;
        // Not where nothing is cached: moves of several files need not wait for each other.
        let mut right = if donor.may_be_cached() { Some(self.dropping.begin()?) } else { None };
        if let Some(right) = &right {
            self.drop_cached(right, &donor, 0)?;
        }
        let MoveExt { orig_start, donor_start, len, .. } = asked;
        let moved = file.move_extents(&donor, MoveRange { orig_start, donor_start, len });
        if right.is_none() && donor.may_be_cached() {
            right = self.dropping.begin().ok();
        }
        match &right {
            Some(right) => self.drop_after(right, &donor, 0),
            None if donor.may_be_cached() => {
                tracing::warn!(ino, "a donor read during a move may show old content");
            }
            None => {}
        }
        asked.moved_len = moved.map_err(|e| errno(&e))?;
        Ok(asked.as_bytes().to_vec())
    }

    /// Has the kernel write and drop what it caches of a file from byte `offset` on, if it may cache anything.
    fn drop_cached(&self, _: &MayDrop<'_>, file: &Open, offset: u64) -> Result<(), Errno> {
        let Some(notifier) = self.notifier.get().filter(|_| file.may_be_cached()) else { return Ok(()) };
        let offset = i64::try_from(offset).map_err(|_| Errno::FBIG)?;
        match notifier.inval_inode(node_of(file.inode().ino()), offset, 0) {
            // The kernel does not know the inode, and caches nothing of it.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The same after the operation, whose answer it does not change: who is told of an error would do it again.
    fn drop_after(&self, right: &MayDrop<'_>, file: &Open, offset: u64) {
        if let Err(error) = self.drop_cached(right, file, offset) {
            let ino = file.inode().ino().0;
            tracing::error!(%error, ino, offset, "the kernel may show old content of a file whose blocks moved");
        }
    }

    /// Before a file can no more be changed: what was stored to it comes first, as the kernel's ext4 has it.
    pub(super) fn bring_back(&self, inode: &InodeRef) -> Result<(), Errno> {
        let already = inode.attr().flags.contains(InodeFlags::IMMUTABLE);
        let Some(writer) = self.files.writer_of(inode).filter(|writer| !already && writer.may_be_cached())
        else {
            return Ok(());
        };
        let right = self.dropping.begin()?;
        self.drop_cached(&right, &writer, 0)
    }
}

/// Before anything is dropped: who may only read has no say in what the kernel caches.
fn refuse_reader(file: &Open) -> Result<(), Errno> {
    if file.mode().write { Ok(()) } else { Err(Errno::BADF) }
}

/// Blocks of a file that somebody was told the numbers of stay where they are while it is open: the kernel writes to those of a swap
/// file by itself.
fn refuse_swap(file: &Open) -> Result<(), Errno> {
    if file.has_told_blocks() { Err(Errno::TXTBSY) } else { Ok(()) }
}
