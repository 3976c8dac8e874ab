//! Open files.

use extant::{AtimePolicy, InodeFlags, InodeRef, Leave, NewInode, OpenFile, OpenMode, ReadFlags};
use extant_sync::{Arc, Mutex, Rank, Weak};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::coherent::{Shared, SharedByInode};
use super::{Adapter, caller, errno};
use crate::server::Request;
use crate::wire::{CreateIn, CreateOut, FopenFlags, OpenIn, OpenOut};

const SHARDS: usize = 16;

/// An open file, and what it shares with others of its inode.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: OpenFile,
    /// `None` only while it is closed.
    shared: Option<Arc<Shared>>,
    files: Weak<SharedByInode>,
    /// The kernel does not use its cache for this one, whatever a request's flags say.
    uncached: bool,
    /// The kernel keeps what it reads when the file is opened again.
    kept: bool,
}

impl Open {
    /// Notes a READ; `flags` are those of the request.
    pub(super) fn note_read(&self, flags: u32) {
        if let Some(shared) = self.shared.as_ref().filter(|_| !self.is_uncached(flags)) {
            shared.note_buffered();
        }
    }

    /// The kernel is given a page.
    pub(super) fn note_stored(&self) {
        if let Some(shared) = &self.shared {
            shared.note_buffered();
        }
    }

    /// How a READ with these flags is done. What the kernel fills its pages with must be whole, since it takes less for the end of the
    /// file; and what it keeps it does not ask for soon again, so at random places it would be kept twice.
    pub(super) fn read_flags(&self, flags: u32) -> ReadFlags {
        if is_direct(flags) {
            return ReadFlags { leave: Leave::Nothing, whole: false };
        }
        let leave = if self.kept { Leave::Streams } else { Leave::Pages };
        ReadFlags { leave, whole: !self.uncached }
    }

    fn is_uncached(&self, flags: u32) -> bool {
        self.uncached || is_direct(flags)
    }

    /// Whether the kernel may have pages of the file.
    pub(super) fn may_be_cached(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_buffered())
    }

    /// Whether somebody was told where on the device blocks of the file are, since it is open.
    pub(super) fn has_told_blocks(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.has_told_blocks())
    }

    /// Whether a WRITE with these flags may leave old pages in the kernel's cache.
    pub(super) fn may_leave_stale(&self, flags: u32) -> bool {
        self.is_uncached(flags) && self.shared.as_ref().is_some_and(|shared| shared.is_buffered())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (Some(shared), Some(files)) = (self.shared.take(), self.files.upgrade()) {
            files.close(self.file.inode().ino().0, shared);
        }
    }
}

impl std::ops::Deref for Open {
    type Target = OpenFile;

    fn deref(&self) -> &OpenFile {
        &self.file
    }
}

/// Whether a request comes past the kernel's cache.
pub(super) fn is_direct(flags: u32) -> bool {
    OFlags::from_bits_retain(flags).contains(OFlags::DIRECT)
}

/// Open files by the handle that the kernel holds: slot and shard.
#[derive(Debug)]
pub(super) struct OpenFiles {
    shards: Vec<Mutex<Slots>>,
    shared: Arc<SharedByInode>,
    next: extant_sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct Slots {
    files: Vec<Option<Arc<Open>>>,
    free: Vec<usize>,
}

impl OpenFiles {
    pub(super) fn new() -> Self {
        let shard = || Mutex::new(Rank::LEAF, Slots::default());
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            shared: Arc::new(SharedByInode::new()),
            next: extant_sync::atomic::AtomicUsize::new(0),
        }
    }

    /// Keeps a file; its handle is never 0.
    fn insert(&self, file: OpenFile, flags: OFlags, answer: FopenFlags) -> u64 {
        let shared = self.shared.open(file.inode().ino().0);
        let uncached = answer.contains(FopenFlags::DIRECT_IO);
        let kept = answer.contains(FopenFlags::KEEP_CACHE) && !uncached;
        if !uncached && !flags.contains(OFlags::DIRECT) {
            shared.note_buffered();
        }
        let file = Open { file, shared: Some(shared), files: Arc::downgrade(&self.shared), uncached, kept };
        let shard = self.next.fetch_add(1, extant_sync::atomic::Ordering::Relaxed) % SHARDS;
        let mut slots = self.shards[shard].lock();
        let file = Some(Arc::new(file));
        let slot = match slots.free.pop() {
            Some(slot) => {
                slots.files[slot] = file;
                slot
            }
            None => {
                slots.files.push(file);
                slots.files.len() - 1
            }
        };
        ((slot + 1) * SHARDS + shard) as u64
    }

    /// Somebody is told where on the device blocks of an inode are.
    pub(super) fn note_blocks_told(&self, ino: u32) {
        self.shared.note_blocks_told(ino);
    }

    fn place(fh: u64) -> Option<(usize, usize)> {
        let fh = usize::try_from(fh).ok()?;
        Some((fh % SHARDS, (fh / SHARDS).checked_sub(1)?))
    }

    /// The open file of a handle.
    pub(super) fn find(&self, fh: u64) -> Option<Arc<Open>> {
        let (shard, slot) = Self::place(fh)?;
        self.shards[shard].lock().files.get(slot)?.clone()
    }

    /// Takes a handle back. The file is closed when it is dropped, which may start a flush or queue an eviction.
    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Open>> {
        let (shard, slot) = Self::place(fh)?;
        let mut slots = self.shards[shard].lock();
        let old = slots.files.get_mut(slot).and_then(Option::take)?;
        slots.free.push(slot);
        Some(old)
    }

    /// Whether any file of this inode is open.
    pub(super) fn any_of(&self, inode: &InodeRef) -> bool {
        self.shared.is_open(inode.ino().0)
    }

    /// An open file of this inode that may be written to.
    pub(super) fn writer_of(&self, inode: &InodeRef) -> Option<Arc<Open>> {
        let writes = |open: &&Arc<Open>| open.mode().write && open.inode() == inode;
        self.shards.iter().find_map(|shard| shard.lock().files.iter().flatten().find(writes).cloned())
    }

    /// Closes everything, at the end of the mount.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *shard.lock());
            drop(old);
        }
    }
}

/// What open(2)'s flags mean. Reading is always allowed: the kernel has checked the caller, and reads for itself what it
/// writes in part.
fn mode_of(flags: OFlags) -> OpenMode {
    OpenMode {
        read: true,
        write: flags.intersects(OFlags::WRONLY | OFlags::RDWR),
        append: flags.contains(OFlags::APPEND),
        data_sync: flags.contains(OFlags::DSYNC),
        sync: flags.contains(OFlags::SYNC),
        // fcntl(2) may change it: every request says by itself.
        direct: false,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "12 bits of mode, 9 of umask")]
fn short(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

impl Adapter {
    /// What the kernel may do with any file: nobody but it changes the content, so its cache stays; there is nothing to do
    /// when a descriptor is closed; direct writes to one file need not wait for each other.
    fn opened(&self, req: &Request<'_>, inode: &InodeRef, flags: OFlags) -> Result<OpenOut, Errno> {
        let mode = mode_of(flags);
        let file = OpenFile::new(&self.fs, inode, mode, &caller::checked(req)).map_err(|e| errno(&e))?;
        // The kernel does not know that it may only grow: it would let a mapping store to what is there.
        let uncached = mode.write && inode.attr().flags.contains(InodeFlags::APPEND);
        let mut answer = FopenFlags::KEEP_CACHE | FopenFlags::NOFLUSH | FopenFlags::PARALLEL_DIRECT_WRITES;
        // What the kernel reads from its own cache changes no access time here; with `strictatime` that would be seen.
        if self.fs.options().given.atime == AtimePolicy::Strictatime {
            answer -= FopenFlags::KEEP_CACHE;
        }
        answer.set(FopenFlags::DIRECT_IO, uncached);
        let fh = self.files.insert(file, flags, answer);
        Ok(OpenOut { fh, open_flags: answer.bits(), backing_id: 0 })
    }

    pub(super) fn do_open(&self, req: &Request<'_>, args: &OpenIn) -> Result<OpenOut, Errno> {
        let inode = self.inode(req.node())?;
        let flags = OFlags::from_bits_retain(args.flags);
        self.opened(req, &inode, flags)
    }

    pub(super) fn do_create(
        &self,
        req: &Request<'_>,
        args: &CreateIn,
        name: &[u8],
    ) -> Result<CreateOut, Errno> {
        let dir = self.inode(req.node())?;
        let cred = caller::checked(req).with_umask(short(args.umask));
        let new = NewInode::file(short(args.mode));
        let any = !OFlags::from_bits_retain(args.flags).contains(OFlags::EXCL);
        let inode = self.with_space(req, cred, |cred| match self.fs.mknod(&dir, name, &new, cred) {
            // It was made in between, and the caller takes any.
            Err(extant::Error::Exists) if any => self.fs.lookup(&dir, name, cred),
            other => other,
        });
        let inode = inode.map_err(|e| errno(&e))?;
        let open = self.opened(req, &inode, OFlags::from_bits_retain(args.flags))?;
        Ok(CreateOut { entry: self.entry(&inode), open })
    }

    pub(super) fn close(&self, fh: u64) {
        let Some(open) = self.files.remove(fh) else { return };
        let inode = open.inode();
        if inode.is_dead() {
            self.nodes.closed(inode.ino());
        }
    }

    pub(super) fn do_tmpfile(&self, req: &Request<'_>, args: &CreateIn) -> Result<CreateOut, Errno> {
        let dir = self.inode(req.node())?;
        let cred = caller::checked(req).with_umask(short(args.umask));
        let inode = self.with_space(req, cred, |cred| self.fs.tmpfile(&dir, short(args.mode), cred));
        let inode = inode.map_err(|e| errno(&e))?;
        let open = self.opened(req, &inode, OFlags::from_bits_retain(args.flags))?;
        Ok(CreateOut { entry: self.entry(&inode), open })
    }
}
