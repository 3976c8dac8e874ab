//! The memory file of one inode and its mappings.

use std::fmt;
use std::io;
use std::ops::{Deref, Range};

use extant_device::DirectAccess;
use extant_sync::{Arc, Mutex, Rank};
use extant_sys::transfers::UnderWay;
use extant_sys::{MapRequest, MemFile, PageMem, Showing, Stored, StoredMark, UserMap, UserPages};

use super::{FaultHandler, FaultServer};
use crate::{Access, MapId, Mmu};

/// A memory file and its mappings.
pub struct RealMmu {
    /// `None`: it was let go of, until the next mapping. A leaf.
    file: Mutex<Option<Arc<MemFile>>>,
    page_size: usize,
    server: Arc<FaultServer>,
    /// What mappings show of a file in DAX mode.
    device: Option<DirectAccess>,
    /// Of mappings that are gone.
    stored: StoredMark,
    /// Exchanged, never changed: who works on the mappings holds no lock.
    maps: Mutex<Arc<[Arc<UserPages>]>>,
}

/// A mapping of an inode, unmapped when dropped.
pub struct RealMapping {
    /// `None` only while it is being dropped.
    map: Option<UserMap>,
    mmu: Arc<RealMmu>,
}

impl RealMmu {
    /// Over a memory file, whose pages are those of the inode's page cache.
    #[must_use]
    pub fn new(file: Arc<MemFile>, server: Arc<FaultServer>) -> Arc<Self> {
        Self::over_device(file, server, None)
    }

    /// The same for a file that may be in DAX mode, on a device that can be mapped.
    #[must_use]
    pub fn over_device(
        file: Arc<MemFile>,
        server: Arc<FaultServer>,
        device: Option<DirectAccess>,
    ) -> Arc<Self> {
        let page_size = file.page_size();
        let file = Mutex::new(Rank::LEAF, Some(file));
        let (stored, maps) = (StoredMark::default(), Mutex::new(Rank::LEAF, Arc::from([])));
        Arc::new(Self { file, page_size, server, device, stored, maps })
    }

    /// How many windows of the device all mappings show.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.all().iter().map(|map| map.windows()).sum()
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Whether it has a memory file, and with it a descriptor.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.lock().is_some()
    }

    /// Gets a memory file again, empty and of the inode's size, after it has let go of the last one. Under the inode lock.
    ///
    /// # Panics
    /// When it has one, or that has pages of another size.
    pub fn renew(&self, file: Arc<MemFile>) {
        assert_eq!(file.page_size(), self.page_size, "pages of another size");
        let old = self.file.lock().replace(file);
        assert!(old.is_none(), "a file with two memory files");
    }

    /// The memory file.
    fn file(&self) -> Option<Arc<MemFile>> {
        self.file.lock().clone()
    }

    fn need_file(&self) -> io::Result<Arc<MemFile>> {
        // A fault of a mapping that has just gone: nobody waits for it.
        self.file().ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    /// Who reads the faults.
    #[must_use]
    pub fn server(&self) -> &Arc<FaultServer> {
        &self.server
    }

    /// Maps the file into this process; `handler` decides its faults. Under the lock that keeps the memory file from going.
    ///
    /// # Errors
    /// As [`UserMap::new`]; `OutOfMemory` without a memory file.
    pub fn map(
        self: &Arc<Self>,
        request: &MapRequest,
        handler: Arc<dyn FaultHandler>,
    ) -> io::Result<RealMapping> {
        let map = UserMap::new(self.server.uffd(), &self.need_file()?, UserMap::new_id(), request)?;
        // Nothing is installed before it is in the list: all that is must be found by `protect`.
        {
            let mut maps = self.maps.lock();
            *maps = maps.iter().cloned().chain([Arc::clone(map.pages())]).collect();
        }
        self.server.add(map.pages(), handler);
        Ok(RealMapping { map: Some(map), mmu: Arc::clone(self) })
    }

    /// How many mappings there are.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.maps.lock().len()
    }

    fn all(&self) -> Arc<[Arc<UserPages>]> {
        Arc::clone(&self.maps.lock())
    }

    fn find(&self, map: MapId) -> Option<Arc<UserPages>> {
        self.maps.lock().iter().find(|pages| pages.id() == map.0).cloned()
    }

    fn forget(&self, map: MapId) {
        {
            let mut maps = self.maps.lock();
            if let Some(gone) = maps.iter().find(|pages| pages.id() == map.0) {
                self.stored.raise(gone.had_stored_to_device());
            }
            *maps = maps.iter().filter(|pages| pages.id() != map.0).cloned().collect();
        }
        self.server.remove(map);
    }
}

impl Mmu for RealMmu {
    fn memory(&self, index: u32) -> io::Result<PageMem> {
        self.need_file()?.page(index)
    }

    fn populate(&self, pages: Range<u32>) {
        if let Some(file) = self.file() {
            file.populate(pages);
        }
    }

    fn install(&self, mapping: MapId, pages: Range<u32>, writable: bool) -> io::Result<()> {
        // Unmapped meanwhile: nobody waits.
        self.find(mapping).map_or(Ok(()), |map| map.install(pages, writable))
    }

    fn protect(&self, pages: Range<u32>) -> io::Result<()> {
        self.all().iter().try_for_each(|map| map.protect(pages.clone()))
    }

    fn unmap(&self, pages: Range<u32>) -> io::Result<()> {
        self.all().iter().try_for_each(|map| map.zap(pages.clone()))
    }

    fn show_device(
        &self,
        mapping: MapId,
        pages: Range<u32>,
        at: u64,
        access: Access,
        insist: bool,
    ) -> io::Result<Showing> {
        let device = self.device.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        // Unmapped meanwhile: nobody waits.
        self.find(mapping).map_or(Ok(Showing::Shown), |map| {
            map.show_device(pages, device.memory(), device.place(at), access == Access::Write, insist)
        })
    }

    fn have_stored_to_device(&self) -> Stored {
        // All of them, so that none says it the next time.
        self.all().iter().fold(self.stored.take(), |most, map| most.max(map.has_stored_to_device()))
    }

    fn hide_device(&self, pages: Range<u32>) -> io::Result<()> {
        self.all().iter().try_for_each(|map| map.hide_device(pages.clone()))
    }

    fn discard(&self, pages: Range<u32>) -> io::Result<()> {
        if let Some(file) = self.file() {
            file.discard(pages.clone())?;
        }
        // What could not be had before is another page now.
        self.all().iter().for_each(|map| map.heal(&pages));
        Ok(())
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        // Whole pages: the view of a large last page must have all of it.
        let whole =
            size.checked_next_multiple_of(self.page_size as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        // The next memory file begins with the size that the inode has then.
        self.file().map_or(Ok(()), |file| file.resize(whole))
    }

    fn under_way(&self) -> UnderWay {
        extant_sys::transfers::under_way()
    }

    fn release(&self) {
        debug_assert_eq!(self.mappings(), 0, "mappings without memory");
        let file = self.file.lock().take();
        drop(file);
    }

    fn heal(&self, pages: Range<u32>) {
        self.all().iter().for_each(|map| map.heal(&pages));
    }

    fn wake(&self, mapping: MapId, pages: Range<u32>) {
        if let Some(map) = self.find(mapping) {
            map.wake(pages);
        }
    }
}

impl RealMapping {
    /// What the engine calls it.
    #[must_use]
    pub fn id(&self) -> MapId {
        MapId(self.pages().id())
    }
}

impl Deref for RealMapping {
    type Target = UserMap;

    fn deref(&self) -> &UserMap {
        self.map.as_ref().expect("taken by the drop alone")
    }
}

impl Drop for RealMapping {
    fn drop(&mut self) {
        let id = self.id();
        // Unmapped first: until then `protect` and the reader must find it.
        drop(self.map.take());
        self.mmu.forget(id);
    }
}

impl fmt::Debug for RealMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealMmu")
            .field("file", &self.file())
            .field("maps", &self.all())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RealMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealMapping").field("map", &self.map).finish_non_exhaustive()
    }
}
