//! Requests about content.

use std::cell::RefCell;

use extant::{FallocateMode, InodeFlags, OpenFile, PageRefs, PassedOn, SeekKind, WritePlace};
use extant_sync::Arc;
use extant_sys::MemSlice;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::coherent::Stale;
use super::open::{Open, is_direct};
use super::{Adapter, caller, errno};
use crate::reply::{Bytes, Empty, Reply};
use crate::server::Request;
use crate::wire::{self, BmapIn, BmapOut, CopyFileRangeIn, FallocateIn, LseekIn, ReadIn, WriteIn, WriteOut};

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// Set-user-id and set-group-id.
const SET_ID: u16 = 0o6000;
/// Bytes copied between two looks at whether the caller still waits.
const COPY_PIECE: usize = 1 << 20;

/// Up to so many bytes are read by copying: references to pages cost more.
const COPIED: usize = 8192;

#[derive(Default)]
struct Room {
    buffer: Vec<u8>,
    refs: PageRefs,
}

thread_local! {
    /// What a reader thread reads into.
    static ROOM: RefCell<Room> = RefCell::new(Room::default());
}

/// Calls `f` with this thread's buffer, `len` bytes of it, and its list of pages.
fn with_room<R>(len: usize, f: impl FnOnce(&mut [u8], &mut PageRefs) -> R) -> R {
    ROOM.with_borrow_mut(|room| {
        if room.buffer.len() < len {
            room.buffer.resize(len, 0);
        }
        f(&mut room.buffer[..len], &mut room.refs)
    })
}

impl Adapter {
    fn file(&self, fh: u64) -> Result<Arc<Open>, Errno> {
        self.files.find(fh).ok_or(Errno::BADF)
    }

    pub(super) fn do_read(&self, args: &ReadIn, reply: Reply<'_, Bytes>) {
        let file = match self.file(args.fh) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        file.note_read(args.flags);
        let (len, flags) = (args.size as usize, file.read_flags(args.flags));
        if len <= COPIED {
            return with_room(len, |buffer, _| match file.read_passed_on(args.offset, buffer, flags) {
                Ok(n) => reply.bytes(&buffer[..n]),
                Err(error) => reply.error(errno(&error)),
            });
        }
        with_room(len, |buffer, refs| {
            match file.read_refs_passed_on(args.offset, buffer, refs, flags) {
                Ok(_) => {
                    let mut pieces = Vec::with_capacity(refs.pieces());
                    refs.memory(MemSlice::from_mut(buffer), &mut pieces);
                    reply.memory(&pieces);
                }
                Err(error) => reply.error(errno(&error)),
            }
            // Pages are not to be kept until this thread's next READ.
            refs.clear();
        });
    }

    pub(super) fn answer_write(
        &self,
        req: &Request<'_>,
        args: &WriteIn,
        data: &[u8],
        reply: Reply<'_, WriteOut>,
    ) {
        let file = match self.file(args.fh) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let done = self.do_write(req, &file, args, data);
        let done = done.map(|(out, at)| {
            if at != args.offset {
                self.appended_elsewhere(req.node(), &file, args.offset, at);
            }
            out
        });
        match (done, self.notifier.get()) {
            (Ok(out), Some(notifier)) if file.may_leave_stale(args.flags) => {
                match reply.detach() {
                    Ok(reply) => self.dropper.answer(notifier, req.node(), args.offset, reply, out),
                    // A seat of a ring: were all to wait, the READs that the kernel waits for would not be served.
                    Err(reply) => reply.ok(&out),
                }
            }
            (done, _) => reply.answer(done),
        }
    }

    /// The kernel took the file to end elsewhere, and has what was appended in its pages there. It keeps the page that it has locked
    /// until the write is answered, so nobody waits here for the drop.
    fn appended_elsewhere(&self, node: u64, file: &Open, there: u64, at: u64) {
        if let Some(notifier) = self.notifier.get().filter(|_| file.may_be_cached()) {
            self.dropper.tell(notifier, node, Stale { pages: Some((there.min(at), 0)), grown_to: None });
        }
    }

    /// What to answer, and where it was written.
    fn do_write(
        &self,
        req: &Request<'_>,
        file: &OpenFile,
        args: &WriteIn,
        data: &[u8],
    ) -> Result<(WriteOut, u64), Errno> {
        let flags = wire::WriteFlags::from_bits_retain(args.write_flags);
        let kill = flags.contains(wire::WriteFlags::KILL_SUIDGID);
        let before = if kill { file.inode().attr().mode } else { 0 };
        let cached = flags.contains(wire::WriteFlags::CACHE);
        // The kernel puts what is appended at the end that it knows. Before it comes what RWF_NOAPPEND asked for, of which it says nothing.
        let before_end = !cached && file.mode().append && args.offset < file.inode().size();
        if before_end && file.inode().attr().flags.contains(InodeFlags::APPEND) {
            return Err(Errno::PERM);
        }
        let passed = PassedOn {
            place: self.place(args.flags, cached),
            past_cache: is_direct(args.flags),
            kill_suidgid: kill,
        };
        let put = |offset, data| self.put(req, file, offset, data, passed).map_err(|e| errno(&e));
        let (mut size, at) = put(args.offset, data)?;
        // The kernel takes what it brings back for written as a whole, unless it is told of an error.
        while cached && size < data.len() {
            match put(args.offset + size as u64, &data[size..])? {
                (0, _) => return Err(Errno::IO),
                (more, _) => size += more,
            }
        }
        if kill && before & SET_ID != 0 && file.inode().attr().mode != before {
            // The kernel asks for it, but keeps the mode it knows.
            self.attributes_changed(req.node());
        }
        Ok((WriteOut { size: u32::try_from(size).unwrap_or(u32::MAX), padding: 0 }, at))
    }

    /// Where a WRITE goes. What the kernel's cache writes back is under the flags of any file that is open, O_APPEND and O_DIRECT among them;
    /// and with the writeback cache the end of a file is where the kernel has it, which may be behind ours.
    fn place(&self, flags: u32, cached: bool) -> WritePlace {
        match OFlags::from_bits_retain(flags).contains(OFlags::APPEND) {
            _ if cached => WritePlace::Cached,
            false => WritePlace::At,
            true if self.options.writeback_cache => WritePlace::Cached,
            true => WritePlace::End,
        }
    }

    /// How much was written, and where; if there was no space for everybody, as who the caller is: some may have the last blocks.
    fn put(
        &self,
        req: &Request<'_>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        passed: PassedOn,
    ) -> extant::Result<(usize, u64)> {
        match file.write_passed_on(offset, data, passed) {
            Err(error) if caller::lacks_space(&error) => self.once_more(req, caller::checked(req), |cred| {
                self.fs.write_at(file.inode(), offset, data, file.flags_for(passed), cred)
            }),
            done => done,
        }
    }

    pub(super) fn do_fsync(&self, fh: u64, data_only: bool) -> Result<(), Errno> {
        self.file(fh)?.fsync(data_only).map_err(|e| errno(&e))
    }

    pub(super) fn do_fsyncdir(&self, req: &Request<'_>, data_only: bool) -> Result<(), Errno> {
        self.fs.fsync(&self.inode(req.node())?, data_only).map_err(|e| errno(&e))
    }

    pub(super) fn answer_fallocate(&self, req: &Request<'_>, args: &FallocateIn, reply: Reply<'_, Empty>) {
        let mode = FallocateMode::from_flags(args.mode).map_err(|e| errno(&e));
        let (file, (mode, keep_size)) = match mode.and_then(|mode| Ok((self.file(args.fh)?, mode))) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let before = file.inode().attr().size;
        let asked =
            |mode, keep_size| self.fallocate_as(req, &file, mode, args.offset, args.length, keep_size);
        let longer = matches!(mode, FallocateMode::Allocate | FallocateMode::ZeroRange) && !keep_size;
        // With the writeback cache the size is the kernel's, which may be ahead of ours and is not told of one that a call which fails
        // leaves behind: so that is raised only once all of it is there.
        let done = if self.options.writeback_cache && longer {
            asked(mode, true).and_then(|()| asked(FallocateMode::Allocate, false))
        } else {
            asked(mode, keep_size)
        };
        match done {
            Ok(()) => reply.done(),
            Err(error) => {
                let zeroed_from = (mode == FallocateMode::ZeroRange).then_some(args.offset);
                self.answer_in_part(req.node(), &file, zeroed_from, before, reply, errno(&error));
            }
        }
    }

    /// For what is open for writing.
    pub(super) fn fallocate_as(
        &self,
        req: &Request<'_>,
        file: &OpenFile,
        mode: FallocateMode,
        offset: u64,
        length: u64,
        keep_size: bool,
    ) -> extant::Result<()> {
        match file.fallocate(mode, offset, length, keep_size) {
            Err(error) if caller::lacks_space(&error) => self.once_more(req, caller::checked(req), |cred| {
                self.fs.fallocate(file.inode(), mode, offset, length, keep_size, cred)
            }),
            done => done,
        }
    }

    pub(super) fn do_lseek(&self, req: &Request<'_>, args: &LseekIn) -> Result<u64, Errno> {
        let kind = match args.whence {
            SEEK_DATA => SeekKind::Data,
            SEEK_HOLE => SeekKind::Hole,
            _ => return Err(Errno::INVAL),
        };
        let file = self.file(args.fh)?;
        let found = self.fs.seek_interruptible(file.inode(), args.offset, kind, &|| req.interrupted());
        found.map_err(|e| errno(&e))
    }

    /// The block of the mount's device, in units of `args.blocksize` bytes. The kernel reads and writes swap files there, and
    /// one made by fallocate(2) is to serve: an unwritten block is answered with its place, where ext4's FIBMAP says 0.
    pub(super) fn do_bmap(&self, req: &Request<'_>, args: &BmapIn) -> Result<BmapOut, Errno> {
        let offset = self.options.device_offset.ok_or(Errno::NOSYS)?;
        let inode = self.inode(req.node())?;
        self.files.note_blocks_told(inode.ino().0);
        let (unit, block) = (u64::from(args.blocksize), u64::from(self.fs.geometry().block_size()));
        let at = args.block.checked_mul(unit).filter(|_| unit > 0).ok_or(Errno::INVAL)?;
        let place = |at: u64| -> Result<Option<u64>, Errno> {
            let Some(pblk) = self.fs.device_block(&inode, at / block).map_err(|e| errno(&e))? else {
                return Ok(None);
            };
            let byte = pblk.0.checked_mul(block).and_then(|b| b.checked_add(offset + at % block));
            byte.map(Some).ok_or(Errno::RANGE)
        };
        let Some(first) = place(at)?.filter(|byte| byte.is_multiple_of(unit)) else {
            return Ok(BmapOut { block: 0 });
        };
        // The kernel's block may be larger than ours: then it is one only if its parts lie side by side.
        for part in (block..unit).step_by(usize::try_from(block).unwrap_or(usize::MAX)) {
            if at.checked_add(part).map(place).transpose()?.flatten() != Some(first + part) {
                return Ok(BmapOut { block: 0 });
            }
        }
        Ok(BmapOut { block: first / unit })
    }

    /// Copies piece by piece; what is copied when something fails, or when the caller is interrupted, counts.
    pub(super) fn do_copy(&self, req: &Request<'_>, args: &CopyFileRangeIn) -> Result<u64, Errno> {
        if args.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.file(args.fh_in)?, self.file(args.fh_out)?);
        let mut copied = 0;
        while copied < args.len {
            let piece = usize::try_from(args.len - copied).unwrap_or(COPY_PIECE).min(COPY_PIECE);
            let moved = with_room(piece, |buffer, _| {
                let read = from.read_at(args.off_in + copied, buffer)?;
                if read == 0 {
                    return Ok(0);
                }
                // The kernel refuses it to a file that is open for appending.
                let at = args.off_out + copied;
                self.put(req, &to, at, &buffer[..read], PassedOn::default()).map(|(size, _)| size)
            });
            match moved {
                Ok(0) => break,
                Ok(n) => copied += n as u64,
                Err(_) if copied > 0 => break,
                Err(error) => return Err(errno(&error)),
            }
            if req.interrupted() {
                break;
            }
        }
        Ok(copied)
    }
}
