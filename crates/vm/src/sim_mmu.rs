//! A simulated memory management unit: page tables in a map, and threads that load and store through them.
//!
//! An access and a change of the tables exclude each other, as they do where a change waits until every processor has seen it. What
//! is not allowed is a fault, and the accessing thread itself brings it to the engine: so every interleaving of faults with everything
//! else can be explored.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;

use extant_sync::{Arc, Mutex, Rank};
use extant_sys::{MemFile, PageMem};

use crate::fault::MapView;
use crate::host::Host;
use crate::mmu::{Access, Fault, MapId, Mmu};

/// A simulated unit for one file.
pub struct SimMmu {
    memory: std::sync::Arc<MemFile>,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    /// For each mapping the pages that it sees, and whether it may store to them.
    maps: BTreeMap<MapId, BTreeMap<u32, bool>>,
    size: u64,
    /// Calls from now on until one fails, once.
    fails_after: Option<u32>,
    protects: usize,
    /// Transfers that are under way.
    transfers: usize,
}

impl Tables {
    fn may_fail(&mut self) -> io::Result<()> {
        match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                Err(io::Error::from_raw_os_error(12))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// What an access met.
enum Met {
    Done,
    Fault,
    PastEnd,
}

impl SimMmu {
    /// A unit for a file of `size` bytes with pages of `page_size`.
    ///
    /// # Errors
    /// The system's, when it has no descriptor left.
    pub fn new(page_size: usize, size: u64) -> io::Result<Arc<Self>> {
        let memory = MemFile::new("extant-simulated", page_size)?;
        memory.resize(size)?;
        Ok(Arc::new(Self { memory, tables: Mutex::new(Rank::LEAF, Tables { size, ..Tables::default() }) }))
    }

    /// A new mapping, which sees nothing yet.
    pub fn map(&self) -> MapId {
        let mut tables = self.tables.lock();
        let id = MapId(tables.maps.last_key_value().map_or(0, |(last, _)| last.0 + 1));
        tables.maps.insert(id, BTreeMap::new());
        id
    }

    /// Ends a mapping.
    pub fn end(&self, id: MapId) {
        self.tables.lock().maps.remove(&id);
    }

    /// Lets the call after `calls` more fail, once.
    pub fn fail_after(&self, calls: u32) {
        self.tables.lock().fails_after = Some(calls);
    }

    /// Calls of [`Mmu::protect`] until now.
    pub fn protects(&self) -> usize {
        self.tables.lock().protects
    }

    /// The memory of a page, as a device sees it that was told to write there.
    ///
    /// # Errors
    /// The system's.
    pub fn target(&self, page: u32) -> io::Result<PageMem> {
        self.memory.page(page)
    }

    /// A device is told to write to the memory; [`Self::end_transfer`] says that it has.
    pub fn begin_transfer(&self) {
        self.tables.lock().transfers += 1;
    }

    /// A transfer is over.
    pub fn end_transfer(&self) {
        self.tables.lock().transfers -= 1;
    }

    /// Whether some mapping may store to the page.
    pub fn is_storable(&self, page: u32) -> bool {
        self.tables.lock().maps.values().any(|table| table.get(&page) == Some(&true))
    }

    /// Loads from byte `at` of the file, inside one page, through a mapping; the fault that could not be answered.
    ///
    /// # Errors
    /// [`Fault::Sigbus`], [`Fault::Oom`], [`Fault::Parked`].
    pub fn load<H: Host>(&self, host: &H, view: &MapView, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let len = into.len();
        self.access(host, view, at, len, Access::Read, |mem, from| mem.mem().copy_to(from, into))
    }

    /// Stores `bytes` at byte `at` of the file, inside one page.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn store<H: Host>(&self, host: &H, view: &MapView, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.access(host, view, at, bytes.len(), Access::Write, |mem, from| mem.mem().copy_from(from, bytes))
    }

    fn access<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        at: u64,
        len: usize,
        access: Access,
        mut act: impl FnMut(&PageMem, usize),
    ) -> Result<(), Fault> {
        let size = self.memory.page_size() as u64;
        let (page, from) = ((at / size) as u32, (at % size) as usize);
        assert!(from + len <= size as usize, "an access inside of one page");
        loop {
            match self.attempt(view.id, page, access, |mem| act(mem, from)) {
                Met::Done => return Ok(()),
                Met::PastEnd => return Err(Fault::Sigbus),
                Met::Fault => match host.space().fault(host, view, page, access) {
                    Fault::Mapped | Fault::Retry => {}
                    fault => return Err(fault),
                },
            }
        }
    }

    fn attempt(&self, id: MapId, page: u32, access: Access, act: impl FnOnce(&PageMem)) -> Met {
        let tables = self.tables.lock();
        if u64::from(page) * self.memory.page_size() as u64 >= tables.size {
            return Met::PastEnd;
        }
        let right = tables.maps.get(&id).and_then(|table| table.get(&page));
        match right {
            Some(storable) if access == Access::Read || *storable => {
                act(&self.memory.page(page).expect("a view of the memory"));
                Met::Done
            }
            _ => Met::Fault,
        }
    }
}

impl Mmu for SimMmu {
    fn memory(&self, index: u32) -> io::Result<PageMem> {
        self.tables.lock().may_fail()?;
        self.memory.page(index)
    }

    fn install(&self, mapping: MapId, pages: Range<u32>, writable: bool) -> io::Result<()> {
        let mut tables = self.tables.lock();
        tables.may_fail()?;
        if let Some(table) = tables.maps.get_mut(&mapping) {
            for page in pages {
                *table.entry(page).or_insert(false) |= writable;
            }
        }
        Ok(())
    }

    fn protect(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.tables.lock();
        tables.may_fail()?;
        tables.protects += 1;
        for table in tables.maps.values_mut() {
            table.range_mut(pages.clone()).for_each(|(_, storable)| *storable = false);
        }
        Ok(())
    }

    fn unmap(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.tables.lock();
        tables.may_fail()?;
        for table in tables.maps.values_mut() {
            table.retain(|page, _| !pages.contains(page));
        }
        Ok(())
    }

    fn discard(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.tables.lock();
        tables.may_fail()?;
        for table in tables.maps.values_mut() {
            table.retain(|page, _| !pages.contains(page));
        }
        self.memory.discard(pages)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let mut tables = self.tables.lock();
        tables.may_fail()?;
        tables.size = size;
        let end = u32::try_from(size.div_ceil(self.memory.page_size() as u64)).unwrap_or(u32::MAX);
        for table in tables.maps.values_mut() {
            table.split_off(&end);
        }
        // The file never shrinks, so that a scenario without a guard reads zeros in place of being killed.
        let have = rustix::fs::fstat(&*self.memory)?.st_size as u64;
        if size < have { self.memory.discard(end..u32::MAX) } else { self.memory.resize(size) }
    }

    fn is_quiet(&self) -> bool {
        self.tables.lock().transfers == 0
    }

    fn release(&self) {
        // What is asked for later is another file's memory, with nothing in it.
        let _ = self.memory.discard(0..u32::MAX);
    }

    fn wake(&self, _mapping: MapId, _pages: Range<u32>) {}
}

impl fmt::Debug for SimMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMmu").finish_non_exhaustive()
    }
}
