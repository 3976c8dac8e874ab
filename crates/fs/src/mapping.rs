//! Files mapped into the memory of the program that uses the library: mmap(2), msync(2), madvise(2), mprotect(2), pins.
//!
//! A load or store is what it is through the kernel's ext4: coherent with reads and writes, a fault before the first store to a
//! clean page, blocks delayed until writeback, SIGBUS past the end of the file and where a page cannot be had. What a fault gets is
//! decided by [`extant_vm::AddressSpace::fault`]; threads of the filesystem ask it ([`FaultServer`], made with the first
//! mapping).
//!
//! **No reference into mapped memory.** Others store to it at any time: the pointer, atomic accessors, and copies are what there is.
//! A buffer that is handed to a call of this library and lies in such memory is copied before or after the call takes its first lock.
//!
//! # What is different
//! - A child of fork(2) does not have the mapping (MADV_DONTFORK): an access there is SIGSEGV.
//! - Without the right to serve faults inside of system calls ([`Mapping::serves_system_calls`]), a system call that meets a page that
//!   is not there yet answers EFAULT; loads and stores work.
//! - A page that could not be had is SIGBUS for a short while, then it is tried again. A store that cannot be (no space, read-only) is
//!   SIGBUS for its thread alone, with SI_QUEUE for its code.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use extant_format::inode::InodeFlags;
use extant_format::{Ino, Tid};
use extant_journal::CommitObserver;
use extant_sync::atomic::{AtomicU8, AtomicU32, Ordering};
use extant_sync::{Arc, Mutex, Rank};
use extant_sys::{MapRequest, MemFile, Protection, UserPages, user_atomic};
use extant_vm::real::{FaultHandler, FaultServer, FaultThreads, ParkedFaults, RealMapping, RealMmu};
use extant_vm::{Access, Fault, FaultWait, MapAdvice, MapId, MapView, SpaceWait};

use crate::cred::Credentials;
use crate::data::FileData;
use crate::dax::DaxSwitchTimes;
use crate::error::{Error, Result};
use crate::filesystem::{Filesystem, Mode};
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::open_file::{OpenFile, OpenMode};

/// What a mapping is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapOptions {
    /// What the program may do.
    pub protection: Protection,
    /// Stores go to the file (MAP_SHARED); otherwise to the mapping's own copies (MAP_PRIVATE).
    pub shared: bool,
    /// What is stored is durable once its lines have left the processor's caches (MAP_SYNC): of a file in DAX mode on persistent memory.
    /// Until the mapping is gone the file stays in that mode.
    pub sync: bool,
    /// Where it would be welcome; 0: anywhere.
    pub hint: usize,
}

impl Default for MapOptions {
    /// Shared, for loads.
    fn default() -> Self {
        Self { protection: Protection::READ, shared: true, sync: false, hint: 0 }
    }
}

/// How [`Mapping::sync`] goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// It is written in the background, as it would be anyway (MS_ASYNC).
    Async,
    /// It is durable on return (MS_SYNC).
    Sync,
}

/// What a program says of its use of a range ([`Mapping::advise`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Nothing special (MADV_NORMAL).
    Normal,
    /// No order (MADV_RANDOM).
    Random,
    /// From start to end (MADV_SEQUENTIAL).
    Sequential,
    /// Soon needed (MADV_WILLNEED): brought into the cache.
    WillNeed,
    /// Not needed for a while (MADV_DONTNEED): the next access is a fault. Nothing of a shared mapping is lost; a private one's own copies
    /// are, and it shows the file again.
    DontNeed,
}

/// Files without a mapping that keep their memory file, and its descriptor, for the next one: those used last.
const KEPT: usize = 32;

/// What a filesystem has once a file of it is mapped.
#[derive(Debug)]
pub(crate) struct Maps {
    server: OnceLock<Arc<FaultServer>>,
    /// A directory of a tmpfs for the memory of mapped files.
    dir: Option<PathBuf>,
    /// Files whose last mapping has gone, and that may have a memory file; the one that went last is at the end.
    idle: Mutex<VecDeque<Ino>>,
    /// What the last change of a file's mode took.
    pub(crate) last_switch: Mutex<Option<DaxSwitchTimes>>,
    /// Hears from the journal.
    after_commit: OnceLock<Arc<AfterCommit>>,
}

/// Asks faults again that wait for a commit (MAP_SYNC).
#[derive(Debug)]
struct AfterCommit(ParkedFaults);

impl CommitObserver for AfterCommit {
    fn committed(&self, _tid: Tid) {}

    fn settled(&self, _tid: Tid) {
        self.0.retry();
    }

    fn aborted(&self, _errno: i32) {
        self.0.retry();
    }
}

impl Maps {
    pub(crate) fn in_dir(dir: Option<PathBuf>) -> Self {
        Self {
            server: OnceLock::new(),
            dir,
            idle: Mutex::new(Rank::LEAF, VecDeque::new()),
            last_switch: Mutex::new(Rank::LEAF, None),
            after_commit: OnceLock::new(),
        }
    }

    fn add_idle(&self, ino: Ino) {
        let mut idle = self.idle.lock();
        idle.retain(|other| *other != ino);
        idle.push_back(ino);
    }
}

/// A mapping of a file; unmapped when dropped. It keeps the file in use, and the filesystem open.
#[derive(Debug)]
pub struct Mapping {
    map: RealMapping,
    /// After `map`.
    _end: EndOfMapping,
    handler: Arc<Handler>,
    /// For msync's errors.
    file: OpenFile,
    /// Bytes from the start of its first page of the cache on.
    inside: usize,
}

/// Memory of a mapping that a device may write at any time: its pages are dirty and in memory until this is dropped. It keeps the
/// filesystem open, which is not unmounted meanwhile.
#[derive(Debug)]
pub struct Pin {
    pages: extant_vm::Pin,
    _of: Arc<Handler>,
}

impl Pin {
    /// Pages of the file's cache.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.pages.len()
    }
}

/// Dropped when a mapping is gone: its file may be one without a mapping.
#[derive(Debug)]
struct EndOfMapping {
    fs: Arc<Filesystem>,
    ino: Ino,
    mmu: Arc<RealMmu>,
    /// It was one with MAP_SYNC.
    sync: Option<Arc<FileData>>,
}

impl Drop for EndOfMapping {
    fn drop(&mut self) {
        if let Some(data) = &self.sync {
            data.pages.end_sync_map();
        }
        if self.mmu.mappings() == 0 {
            self.fs.maps.add_idle(self.ino);
        }
    }
}

/// Answers the faults of one mapping.
#[derive(Debug)]
struct Handler {
    fs: Arc<Filesystem>,
    /// Keeps the inode from eviction.
    inode: InodeRef,
    data: Arc<FileData>,
    /// The pages of the file that the mapping has, for what a fault brings along.
    first: AtomicU32,
    end: AtomicU32,
    advice: AtomicU8,
    sync: bool,
}

impl Handler {
    fn view(&self, id: MapId) -> MapView {
        let advice = match self.advice.load(Ordering::Relaxed) {
            1 => MapAdvice::Random,
            2 => MapAdvice::Sequential,
            _ => MapAdvice::Normal,
        };
        let pages = self.first.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed);
        MapView { id, pages, advice, sync: self.sync }
    }
}

impl FaultHandler for Handler {
    fn try_fault(&self, mapping: MapId, page: u32, access: Access) -> Option<Fault> {
        if self.fs.check_alive().is_err() {
            return None;
        }
        self.data.pages.try_fault(&*self.data, &self.view(mapping), page, access)
    }

    fn fault(&self, mapping: MapId, page: u32, access: Access, wait: &mut FaultWait) -> Fault {
        if self.fs.check_alive().is_err() {
            if !self.fs.mount.ending.load(Ordering::Acquire) {
                return Fault::Sigbus;
            }
            // What is in memory can still be seen. Nobody asks a parked one again: the process ends. It is refused to the thread that ends it.
            let seen = || self.data.pages.fault_in_memory(&*self.data, &self.view(mapping), page);
            return (access == Access::Read).then(seen).flatten().unwrap_or(Fault::Parked);
        }
        let fault = self.data.pages.fault_or_wait(&*self.data, &self.view(mapping), page, access, wait);
        if fault == Fault::Mapped && access == Access::Read {
            self.fs.touch_atime(&self.inode);
        }
        fault
    }

    fn look_for_space(&self) {
        self.fs.pages.end_grace();
    }

    fn may_have_space(&self, wait: &SpaceWait) -> bool {
        // Where nothing may be stored any more, there is nothing to wait for.
        self.fs.is_read_only() || self.fs.pages.may_have_space(wait)
    }
}

impl OpenFile {
    /// Maps `len` bytes of the file from byte `offset` on (a multiple of the system's page); they may lie past its end, where an
    /// access is SIGBUS until the file has grown.
    ///
    /// # Errors
    /// `Invalid` for a length of 0 or an offset inside a page; `AccessDenied` when the file is not open for reading, or for stores to a
    /// shared mapping not for writing, or only for appending; `NotSupported` where the kernel has no userfaultfd, and for
    /// [`MapOptions::sync`] of a file that is not in DAX mode, or not on persistent memory; `OutOfMemory` and the like from the system.
    pub fn map(&self, offset: u64, len: usize, options: &MapOptions) -> Result<Mapping> {
        let fs = self.filesystem();
        fs.check_alive()?;
        let mode = self.mode();
        let append = self.inode().flags().contains(InodeFlags::APPEND);
        if !mode.read || (options.shared && options.protection.write && (!mode.write || append)) {
            return Err(Error::AccessDenied);
        }
        let request = MapRequest {
            offset,
            len,
            protection: options.protection,
            shared: options.shared && !(options.protection.write && extant_vm::bug!(LostStores, 32)),
            may_write: mode.write && !append,
            sync: options.sync,
            hint: options.hint,
        };
        fs.release_idle(KEPT);
        match self.map_now(&request) {
            Err(error) if matches!(error.errno(), 23 | 24) => {
                // No descriptor is left: those that are only kept for later go too.
                fs.release_idle(0);
                self.map_now(&request)
            }
            done => done,
        }
    }

    fn map_now(&self, request: &MapRequest) -> Result<Mapping> {
        let (fs, offset, len) = (self.filesystem(), request.offset, request.len);
        // An open file of its own: what writeback fails is reported to the program by fsync and by msync.
        let mode = OpenMode { direct: false, ..self.mode() };
        let file = OpenFile::new(fs, self.inode(), mode, self.credentials())?;
        let data = Arc::clone(self.inode().data(fs));
        let server = fs.fault_server()?;
        // Over all of it: who takes memory files away holds it too.
        let _lock = self.inode().lock.write();
        if request.sync && !(data.pages.is_dax() && fs.is_persistent()) {
            return Err(Error::NotSupported("MAP_SYNC of what is not in DAX mode on persistent memory"));
        }
        // The others store nothing to the device.
        let sync = request.sync && request.shared && request.may_write;
        let mmu = fs.mapped(self.inode(), &data, self.credentials(), server)?;
        let page = mmu.page_size() as u64;
        let page_of = |at: u64| u32::try_from(at / page).unwrap_or(u32::MAX);
        let handler = Arc::new(Handler {
            fs: Arc::clone(fs),
            inode: self.inode().clone(),
            data: Arc::clone(&data),
            first: AtomicU32::new(page_of(offset)),
            end: AtomicU32::new(page_of(offset.saturating_add(len as u64).saturating_add(page - 1))),
            advice: AtomicU8::new(0),
            sync,
        });
        if sync {
            data.pages.begin_sync_map();
        }
        let (ino, sync) = (self.inode().ino, sync.then_some(data));
        let end = EndOfMapping { fs: Arc::clone(fs), ino, mmu: Arc::clone(&mmu), sync };
        let map = mmu.map(request, Arc::clone(&handler) as Arc<dyn FaultHandler>).map_err(map_error)?;
        Ok(Mapping { map, _end: end, handler, file, inside: (offset % page) as usize })
    }
}

/// The system's errors by their own names.
fn map_error(error: std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(12) => Error::OutOfMemory,
        Some(13) => Error::AccessDenied,
        Some(22) => Error::Invalid("an offset or length that cannot be mapped"),
        _ if error.kind() == std::io::ErrorKind::Unsupported => {
            Error::NotSupported("mapping without userfaultfd (kernel 6.6 and later have what it needs)")
        }
        _ => Error::Io(error),
    }
}

impl Filesystem {
    /// The mappings of a file, from now on kept for it, with a memory file. Under the inode lock.
    fn mapped(
        &self,
        inode: &InodeRef,
        data: &FileData,
        cred: &Credentials,
        server: Arc<FaultServer>,
    ) -> Result<Arc<RealMmu>> {
        data.set_mapper(self, cred);
        let old = data.real_mmu();
        if let Some(mmu) = old.as_ref().filter(|mmu| mmu.has_file()) {
            return Ok(Arc::clone(mmu));
        }
        let page = (self.geo.block_size() as usize).max(4096);
        let memory = match &self.maps.dir {
            Some(dir) => MemFile::in_dir(dir, page),
            None => MemFile::new("extant", page),
        }
        .map_err(map_error)?;
        // Before anybody sees it: readers hold no inode lock, and take their pages from there at once.
        let whole = inode.size().checked_next_multiple_of(page as u64).ok_or(Error::FileTooBig)?;
        memory.resize(whole).map_err(map_error)?;
        if let Some(mmu) = old {
            mmu.renew(memory);
            return Ok(mmu);
        }
        let mmu = RealMmu::over_device(memory, server, self.pages.dax().cloned());
        data.attach(&mmu);
        Ok(mmu)
    }

    /// Takes the memory files of files without a mapping away until no more than `keep` have one, those first whose mapping went first.
    /// Takes inode locks (20); nothing is held.
    fn release_idle(&self, keep: usize) {
        // Each once: one that is in use goes to the end.
        let most = self.maps.idle.lock().len();
        for _ in 0..most {
            let ino = {
                let mut idle = self.maps.idle.lock();
                if idle.len() <= keep {
                    return;
                }
                idle.pop_front()
            };
            let Some(inode) = ino.and_then(|ino| self.icache.cached(ino)) else { continue };
            let Some(data) = inode.data.get() else { continue };
            let Some(mmu) = data.real_mmu() else { continue };
            // One that has a mapping again comes back when that ends; one that is at work goes to the end.
            let released = inode
                .lock
                .try_write()
                .is_some_and(|_lock| mmu.mappings() > 0 || data.pages.leave_memory(&**data));
            if !released {
                self.maps.add_idle(inode.ino);
            }
        }
    }

    fn fault_server(&self) -> Result<Arc<FaultServer>> {
        if let Some(server) = self.maps.server.get() {
            return Ok(Arc::clone(server));
        }
        let server = FaultServer::start(FaultThreads::default()).map_err(map_error)?;
        // Two at once: one of them ends at once. Nobody parks a fault there before the journal tells it of commits.
        let server = self.maps.server.get_or_init(|| {
            let made = self.maps.after_commit.get_or_init(|| Arc::new(AfterCommit(server.parked())));
            self.journal.add_observer(Arc::downgrade(made) as _);
            server
        });
        Ok(Arc::clone(server))
    }

    /// The calling thread ends the process: it does not wait for that in a fault.
    pub(crate) fn end_by_this_thread(&self) {
        if let Some(server) = self.maps.server.get() {
            server.refuse_parked_of(extant_sys::thread_number());
        }
    }

    /// Lets changes go on, and asks again the faults that had to wait for that.
    pub(crate) fn open_gates(&self) {
        self.gate.open();
        if let Some(server) = self.maps.server.get() {
            server.retry_parked();
        }
    }
}

impl FileData {
    /// Notes the mappings of the file. Under the inode lock.
    fn attach(&self, mmu: &Arc<RealMmu>) {
        let first = self.pages.attach(Arc::clone(mmu) as Arc<dyn extant_vm::Mmu>);
        debug_assert!(first, "a file with two memory files");
        *self.mmu.lock() = Arc::downgrade(mmu);
    }

    /// Whether the cache of inodes must keep the file: its memory file is one of those that are counted, and what a device puts there
    /// without a pin is looked for there.
    pub(crate) fn has_memory_file(&self) -> bool {
        self.pages.mmu().is_some() && self.real_mmu().is_some_and(|mmu| mmu.has_file())
    }

    fn real_mmu(&self) -> Option<Arc<RealMmu>> {
        self.mmu.lock().upgrade()
    }
}

impl Mapping {
    /// The first byte's address. It is valid until the mapping is dropped, or that part of it unmapped.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_ptr()
    }

    /// Bytes: whole pages of the system.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether a system call that is given this memory waits for its faults; otherwise it answers EFAULT where a page is missing.
    /// Needs `/dev/userfaultfd`, or the capability CAP_SYS_PTRACE.
    #[must_use]
    pub fn serves_system_calls(&self) -> bool {
        self.handler.fs.maps.server.get().is_some_and(|server| server.handles_kernel_faults())
    }

    /// Copies bytes out of the mapping.
    ///
    /// # Errors
    /// `AccessDenied` when it may not be read.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn read_at(&self, at: usize, into: &mut [u8]) -> Result<()> {
        self.map.copy_out(at, into).map_err(map_error)
    }

    /// Copies bytes into the mapping.
    ///
    /// # Errors
    /// `AccessDenied` when it may not be stored to.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn write_at(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.map.copy_in(at, bytes).map_err(map_error)
    }

    /// pread(2) from byte `offset` of a file of the system to a range of the mapping; bytes read. Where a store would be a signal this
    /// is an error. A file that is open for O_DIRECT has its device write the memory: with a [`pin`](Self::pin) that is the file's
    /// whenever it comes.
    ///
    /// # Errors
    /// `AccessDenied` when it may not be stored to; EFAULT where a page cannot be had, or [`Self::serves_system_calls`] says no; what
    /// reading the file gives.
    ///
    /// # Panics
    /// When the bytes are not all inside.
    pub fn read_from(&self, file: impl AsFd, offset: u64, range: Range<usize>) -> Result<usize> {
        self.map.read_from(file, offset, range.start, range.len()).map_err(map_error)
    }

    /// A byte, for atomic access.
    ///
    /// # Panics
    /// When it is not inside.
    #[must_use]
    pub fn atomic_u8(&self, at: usize) -> &user_atomic::AtomicU8 {
        self.map.atomic_u8(at)
    }

    /// Four bytes, for atomic access.
    ///
    /// # Panics
    /// When they are not inside, or `at` is no multiple of 4.
    #[must_use]
    pub fn atomic_u32(&self, at: usize) -> &user_atomic::AtomicU32 {
        self.map.atomic_u32(at)
    }

    /// Eight bytes, for atomic access.
    ///
    /// # Panics
    /// When they are not inside, or `at` is no multiple of 8.
    #[must_use]
    pub fn atomic_u64(&self, at: usize) -> &user_atomic::AtomicU64 {
        self.map.atomic_u64(at)
    }

    /// `count` times eight bytes from `at` on, for atomic access.
    ///
    /// # Panics
    /// When they are not all inside, or `at` is no multiple of 8.
    #[must_use]
    pub fn atomic_u64s(&self, at: usize, count: usize) -> &[user_atomic::AtomicU64] {
        self.map.atomic_u64s(at, count)
    }

    /// msync(2) of a range of the mapping: what was stored is durable on return, with [`SyncMode::Sync`]. The file's other dirty pages
    /// are written too.
    ///
    /// # Errors
    /// The device's, also of an earlier writeback that this mapping has not been told of; `Shutdown`.
    pub fn sync(&self, range: Range<usize>, mode: SyncMode) -> Result<()> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::Invalid("a range that is not inside the mapping"));
        }
        match mode {
            SyncMode::Async => Ok(()),
            SyncMode::Sync => self.file.fsync(true),
        }
    }

    /// madvise(2) for a range of the mapping (whole pages of the system). What is said of an order counts for the whole mapping.
    ///
    /// # Errors
    /// `Invalid` for a range that is not inside; the system's.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        let pages = self.pages_of(range.clone())?;
        match advice {
            Advice::Normal => self.handler.advice.store(0, Ordering::Relaxed),
            Advice::Random => self.handler.advice.store(1, Ordering::Relaxed),
            Advice::Sequential => self.handler.advice.store(2, Ordering::Relaxed),
            Advice::WillNeed => self.populate(pages),
            Advice::DontNeed if self.map.pages().is_shared() => {
                self.map.pages().zap(pages).map_err(map_error)?;
            }
            Advice::DontNeed => {
                let start = self.as_ptr().addr();
                let range = start + range.start..start + range.end;
                self.map.pages().drop_copies(range).map_err(map_error)?;
            }
        }
        Ok(())
    }

    /// Brings pages in, as far as they can be had.
    fn populate(&self, pages: Range<u32>) {
        let data = &self.handler.data;
        let view = MapView {
            pages: pages.clone(),
            advice: MapAdvice::Sequential,
            ..self.handler.view(self.map.id())
        };
        for page in pages.step_by(512) {
            if data.pages.fault(&**data, &view, page, Access::Read) != Fault::Mapped {
                return;
            }
        }
    }

    /// mprotect(2) of a range of the mapping (whole pages of the system).
    ///
    /// # Errors
    /// `AccessDenied` for stores to a shared mapping of a file that is not open for writing; `Invalid`, `OutOfMemory`.
    pub fn protect(&self, range: Range<usize>, protection: Protection) -> Result<()> {
        self.pages_of(range.clone())?;
        let start = self.as_ptr().addr();
        let range = start + range.start..start + range.end;
        self.map.pages().set_protection(range, protection).map_err(map_error)
    }

    /// Keeps the pages of a range dirty and in memory until the pin is dropped, for memory that a device is told to write or read:
    /// what it puts there is the file's, whenever it comes.
    ///
    /// # Errors
    /// `Invalid` for a range that is not inside, `AccessDenied` where nothing may be stored; `ReadOnly`, and after an unmount `Shutdown`;
    /// EFAULT where there is no space, or a page cannot be read. Then nothing is pinned.
    pub fn pin(&self, range: Range<usize>) -> Result<Pin> {
        let pages = self.pages_of(range)?;
        if !self.map.pages().is_shared() || !self.file.mode().write {
            return Err(Error::AccessDenied);
        }
        let (fs, data) = (&self.handler.fs, &self.handler.data);
        loop {
            fs.check_alive()?;
            match data.pages.pin(&**data, &self.handler.view(self.map.id()), pages.clone()) {
                Ok(pages) => return Ok(Pin { pages, _of: Arc::clone(&self.handler) }),
                // Until the thaw.
                Err(Fault::Parked) => drop(fs.gate.enter(Level::Fault)),
                Err(Fault::Oom) => return Err(Error::OutOfMemory),
                Err(_) if fs.mode() == Mode::ReadOnly => return Err(Error::ReadOnly),
                Err(_) => {
                    return Err(Error::Io(std::io::Error::from_raw_os_error(crate::error::errno::EFAULT)));
                }
            }
        }
    }

    /// What lies below, for a caller that answers for the users of the memory: unmapping, moving and growing parts of the mapping
    /// (`UserPages::unmap`, `UserPages::remap`, both unsafe).
    #[must_use]
    pub fn user_pages(&self) -> &Arc<UserPages> {
        self.map.pages()
    }

    /// Says that the mapping has got `more` bytes at its end: what a fault there may bring along.
    pub fn has_grown(&self, more: usize) {
        let page = self.map.pages().file().page_size();
        let more = u32::try_from(more.div_ceil(page)).unwrap_or(u32::MAX);
        let end = self.handler.end.load(Ordering::Relaxed);
        self.handler.end.store(end.saturating_add(more), Ordering::Relaxed);
    }

    /// The pages of the file that a range of the mapping touches.
    fn pages_of(&self, range: Range<usize>) -> Result<Range<u32>> {
        if range.start >= range.end || range.end > self.len() {
            return Err(Error::Invalid("a range that is not inside the mapping"));
        }
        let page = self.map.pages().file().page_size();
        let first = self.handler.first.load(Ordering::Relaxed);
        // The mapping may begin inside a page of the cache, which is larger than the system's with blocks above 4 KiB.
        let of = |at: usize| first + ((at + self.inside) / page) as u32;
        Ok(of(range.start)..of(range.end - 1) + 1)
    }
}

/// Mappings whose faults the accessing thread brings itself, for the schedule tests.
#[cfg(feature = "shuttle")]
impl Filesystem {
    /// The simulated mappings of a file, which has no others.
    ///
    /// # Errors
    /// The system's.
    pub fn map_simulated(&self, inode: &InodeRef) -> Result<Arc<extant_vm::SimMmu>> {
        let _lock = inode.lock.write();
        let data = inode.data(self);
        data.set_mapper(self, &Credentials::root());
        let page = (self.geo.block_size() as usize).max(4096);
        let mmu = extant_vm::SimMmu::over_device(page, inode.size(), self.pages.dax().cloned())
            .map_err(Error::Io)?;
        assert!(
            data.pages.attach(Arc::clone(&mmu) as Arc<dyn extant_vm::Mmu>),
            "a file with two memory files"
        );
        Ok(mmu)
    }

    /// Loads or stores a byte through a simulated mapping.
    ///
    /// # Errors
    /// What the fault got that could not be answered.
    pub fn access_simulated(
        &self,
        inode: &InodeRef,
        mmu: &extant_vm::SimMmu,
        view: &MapView,
        at: u64,
        store: Option<u8>,
    ) -> Result<u8, Fault> {
        let data = inode.data(self);
        match store {
            Some(byte) => mmu.store(&**data, view, at, &[byte]).map(|()| byte),
            None => {
                let mut byte = [0];
                mmu.load(&**data, view, at, &mut byte).map(|()| byte[0])
            }
        }
    }

    /// Pins pages of a file in a simulated mapping.
    ///
    /// # Errors
    /// What a fault got that could not be answered.
    pub fn pin_simulated(
        &self,
        inode: &InodeRef,
        view: &MapView,
        pages: Range<u32>,
    ) -> Result<extant_vm::Pin, Fault> {
        let data = inode.data(self);
        data.pages.pin(&**data, view, pages)
    }

    /// Takes clean pages out of the cache.
    pub fn reclaim_pages(&self, most: usize) -> usize {
        self.pages.reclaim(most)
    }
}

impl Drop for Mapping {
    /// What a device put into it without a fault is found now at the latest.
    fn drop(&mut self) {
        if !self.handler.fs.is_read_only() {
            let data = &self.handler.data;
            // What there is no space for is told to the next fsync.
            let _ = data.pages.find_unseen_changes(&**data, 0..u64::MAX);
            data.pages.note_stores(&**data);
        }
    }
}

/// Whether any byte of a buffer lies in a mapping of a file of this library.
#[must_use]
pub fn overlaps_mapping(addr: *const u8, len: usize) -> bool {
    extant_sys::user_memory::overlaps(addr.addr(), len)
}

/// Calls `read`, which says how many bytes it has read, with a buffer for the caller's. That is the caller's own unless it lies in a mapping:
/// no memory of a mapping is touched while a lock is held (a fault there may need the lock).
pub(crate) fn into_caller(buf: &mut [u8], read: impl FnOnce(&mut [u8]) -> Result<usize>) -> Result<usize> {
    if !overlaps_mapping(buf.as_ptr(), buf.len()) {
        return read(buf);
    }
    let mut own = vec![0; buf.len()];
    let n = read(&mut own)?;
    // What is not read stays what it is, also what others store there meanwhile (test `a_short_read_leaves_the_rest_of_its_buffer_alone` of `extant-preload`).
    buf[..n].copy_from_slice(&own[..n]);
    Ok(n)
}

/// Bytes of the caller that are no memory of a mapping: its own, or a copy, whose faults are met here.
pub(crate) fn of_caller(bytes: &[u8]) -> Cow<'_, [u8]> {
    if overlaps_mapping(bytes.as_ptr(), bytes.len()) {
        Cow::Owned(bytes.to_vec())
    } else {
        Cow::Borrowed(bytes)
    }
}
