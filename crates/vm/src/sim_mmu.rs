//! A simulated memory management unit: page tables in a map, and threads that load and store through them.
//!
//! An access and a change of the tables exclude each other, as they do where a change waits until every processor has seen it. What
//! is not allowed is a fault, and the accessing thread itself brings it to the engine: so every interleaving of faults with everything
//! else can be explored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;

use extant_device::DirectAccess;
use extant_sync::{Arc, Mutex, MutexGuard, Rank};
use extant_sys::transfers::UnderWay;
use extant_sys::{MemFile, PageMem, Showing, Stored};

use crate::fault::{FaultWait, MapView};
use crate::host::Host;
use crate::mmu::{Access, Fault, MapId, Mmu};

/// A simulated unit for one file.
pub struct SimMmu {
    memory: std::sync::Arc<MemFile>,
    /// What mappings show of a file in DAX mode.
    device: Option<DirectAccess>,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    /// For each mapping the pages that it sees.
    maps: BTreeMap<MapId, BTreeMap<u32, Shown>>,
    /// Those that show no device.
    private: BTreeSet<MapId>,
    size: u64,
    /// Calls from now on until one fails, once.
    fails_after: Option<u32>,
    protects: usize,
    /// Transfers that are under way.
    transfers: usize,
    /// What looks see, whatever is under way.
    seen: Option<UnderWay>,
    /// A byte that a device puts somewhere, and calls from now on until it does.
    lands: Option<(u32, Landing)>,
    /// Somebody has stored to the device since it was asked last.
    stored_to_device: bool,
    /// Pages of the device that all mappings may show, if that is limited: without insisting, and at all.
    most_windows: Option<(usize, usize)>,
    /// Whose memory was given back, each time: who has the old one keeps it.
    given_back: Vec<Range<u32>>,
}

/// The memory of a page, as a device has it that was told to write there: still the same when the file has other memory for that page.
pub struct Target {
    mmu: Arc<SimMmu>,
    page: u32,
    /// Of [`Tables::given_back`], what was before.
    since: usize,
}

impl Target {
    /// The device writes. What is written to memory that was given back is nobody's.
    ///
    /// # Panics
    /// When the memory file has no view of the page.
    pub fn copy_from(&self, at: usize, bytes: &[u8]) {
        let tables = self.mmu.tables.lock();
        if tables.given_back[self.since..].iter().all(|gone| !gone.contains(&self.page)) {
            self.mmu.memory.page(self.page).expect("a view").mem().copy_from(at, bytes);
        }
    }
}

/// A byte that a device puts at a place of a page's memory.
#[derive(Debug, Clone, Copy)]
pub struct Landing {
    /// The page.
    pub page: u32,
    /// The place in it.
    pub at: usize,
    /// The byte.
    pub byte: u8,
}

impl Tables {
    /// What a device does by now.
    fn landing(&mut self) -> Option<Landing> {
        match &mut self.lands {
            Some((0, _)) => self.lands.take().map(|(_, landing)| landing),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }

    fn windows(&self) -> usize {
        let shown = |table: &BTreeMap<u32, Shown>| table.values().filter(|s| s.is_of_device()).count();
        self.maps.values().map(shown).sum()
    }

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

/// What a mapping sees of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The memory file's page, for stores or not.
    File { storable: bool },
    /// The device's, from this byte on.
    Device { at: u64 },
}

impl Shown {
    fn is_of_device(self) -> bool {
        matches!(self, Self::Device { .. })
    }

    fn is_storable(self) -> bool {
        !matches!(self, Self::File { storable: false })
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
        Self::over_device(page_size, size, None)
    }

    /// The same for a file that may be in DAX mode.
    ///
    /// # Errors
    /// The system's.
    pub fn over_device(page_size: usize, size: u64, device: Option<DirectAccess>) -> io::Result<Arc<Self>> {
        let memory = MemFile::new("extant-simulated", page_size)?;
        memory.resize(size)?;
        Ok(Arc::new(Self {
            memory,
            device,
            tables: Mutex::new(Rank::LEAF, Tables { size, ..Tables::default() }),
        }))
    }

    /// A new mapping, which sees nothing yet.
    pub fn map(&self) -> MapId {
        let mut tables = self.tables.lock();
        let id = MapId(tables.maps.last_key_value().map_or(0, |(last, _)| last.0 + 1));
        tables.maps.insert(id, BTreeMap::new());
        id
    }

    /// The same for one that is private: it shows copies of what the device has. For loads.
    pub fn map_private(&self) -> MapId {
        let id = self.map();
        self.tables.lock().private.insert(id);
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

    /// A device puts a byte into memory that it was told to write to, as the call after `calls` more begins; no fault tells of it.
    pub fn land_after(&self, calls: u32, landing: Landing) {
        self.tables.lock().lands = Some((calls, landing));
    }

    /// Whether [`Self::land_after`] has come to pass.
    pub fn has_landed(&self) -> bool {
        self.tables.lock().lands.is_none()
    }

    /// The tables, for a call.
    fn begin(&self) -> io::Result<MutexGuard<'_, Tables>> {
        let mut tables = self.tables.lock();
        if let Some(Landing { page, at, byte }) = tables.landing() {
            self.memory.page(page)?.mem().copy_from(at, &[byte]);
        }
        tables.may_fail()?;
        Ok(tables)
    }

    /// Calls of [`Mmu::protect`] until now.
    pub fn protects(&self) -> usize {
        self.tables.lock().protects
    }

    /// The memory of a page, for a device that is told to write there.
    #[must_use]
    pub fn target(self: &Arc<Self>, page: u32) -> Target {
        Target { mmu: Arc::clone(self), page, since: self.tables.lock().given_back.len() }
    }

    /// Lets mappings show so many pages of the device and no more: without insisting, and at all.
    pub fn limit_windows(&self, wanted: usize, insisted: usize) {
        self.tables.lock().most_windows = Some((wanted, insisted));
    }

    /// A device is told to write to the page that a mapping shows, if that is the device's own: where that is. The transfer is under way
    /// until [`Self::end_transfer`].
    pub fn begin_transfer_to(&self, id: MapId, page: u32) -> Option<u64> {
        let mut tables = self.tables.lock();
        match tables.maps.get(&id).and_then(|table| table.get(&page)) {
            Some(Shown::Device { at }) => {
                let at = *at;
                tables.transfers += 1;
                Some(at)
            }
            _ => None,
        }
    }

    /// A device is told to write to the memory; [`Self::end_transfer`] says that it has.
    pub fn begin_transfer(&self) {
        self.tables.lock().transfers += 1;
    }

    /// A transfer is over.
    pub fn end_transfer(&self) {
        self.tables.lock().transfers -= 1;
    }

    /// Who looks at what is under way sees this from now on.
    pub fn looks_like(&self, seen: UnderWay) {
        self.tables.lock().seen = Some(seen);
    }

    /// How many pages of the device all mappings show.
    pub fn windows(&self) -> usize {
        self.tables.lock().windows()
    }

    /// Whether some mapping may store to the page.
    pub fn is_storable(&self, page: u32) -> bool {
        self.tables
            .lock()
            .maps
            .values()
            .any(|table| table.get(&page).is_some_and(|shown| shown.is_storable()))
    }

    /// Loads from byte `at` of the file, inside one page, through a mapping; the fault that could not be answered.
    ///
    /// # Errors
    /// [`Fault::Sigbus`], [`Fault::Oom`], [`Fault::Parked`].
    pub fn load<H: Host>(&self, host: &H, view: &MapView, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let len = into.len();
        self.access(host, view, (at, len), Access::Read, None, |place| match place {
            Place::Memory(mem, from) => mem.mem().copy_to(from, into),
            Place::Device(device, from) => device.read_at(from, into).expect("inside of the device"),
        })
    }

    /// Stores `bytes` at byte `at` of the file, inside one page.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn store<H: Host>(&self, host: &H, view: &MapView, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.store_inside(host, view, at, bytes, None)
    }

    /// The same, but what a fault has to wait for is an answer too: [`Fault::Parked`], [`Fault::AwaitsSpace`]; `wait` is for the next try.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn store_or_wait<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        at: u64,
        bytes: &[u8],
        wait: &mut FaultWait,
    ) -> Result<(), Fault> {
        self.store_inside(host, view, at, bytes, Some(wait))
    }

    fn store_inside<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        at: u64,
        bytes: &[u8],
        wait: Option<&mut FaultWait>,
    ) -> Result<(), Fault> {
        self.access(host, view, (at, bytes.len()), Access::Write, wait, |place| match place {
            Place::Memory(mem, from) => mem.mem().copy_from(from, bytes),
            Place::Device(device, from) => device.write_at(from, bytes).expect("inside of the device"),
        })
    }

    fn access<H: Host>(
        &self,
        host: &H,
        view: &MapView,
        (at, len): (u64, usize),
        access: Access,
        mut wait: Option<&mut FaultWait>,
        mut act: impl FnMut(Place<'_>),
    ) -> Result<(), Fault> {
        let size = self.memory.page_size() as u64;
        let (page, from) = ((at / size) as u32, (at % size) as usize);
        assert!(from + len <= size as usize, "an access inside of one page");
        loop {
            match self.attempt(view.id, (page, from), access, &mut act) {
                Met::Done => return Ok(()),
                Met::PastEnd => return Err(Fault::Sigbus),
                Met::Fault => {
                    let fault = match &mut wait {
                        Some(wait) => host.space().fault_or_wait(host, view, page, access, wait),
                        None => host.space().fault(host, view, page, access),
                    };
                    if !matches!(fault, Fault::Mapped | Fault::Retry) {
                        return Err(fault);
                    }
                }
            }
        }
    }

    fn attempt(
        &self,
        id: MapId,
        (page, from): (u32, usize),
        access: Access,
        act: &mut impl FnMut(Place<'_>),
    ) -> Met {
        let mut tables = self.tables.lock();
        let shown = tables.maps.get(&id).and_then(|table| table.get(&page)).copied();
        // What the device shows does not end with the memory file.
        let on_device = matches!(shown, Some(Shown::Device { .. }));
        if !on_device && u64::from(page) * self.memory.page_size() as u64 >= tables.size {
            return Met::PastEnd;
        }
        match (shown, &self.device) {
            (Some(shown), _) if access == Access::Write && !shown.is_storable() => return Met::Fault,
            (Some(Shown::File { .. }), _) => {
                act(Place::Memory(&self.memory.page(page).expect("a view of the memory"), from));
            }
            (Some(Shown::Device { at }), Some(device)) => {
                tables.stored_to_device |= access == Access::Write;
                act(Place::Device(device, at + from as u64));
            }
            _ => return Met::Fault,
        }
        Met::Done
    }
}

/// The memory that an access meets.
enum Place<'a> {
    Memory(&'a PageMem, usize),
    Device(&'a DirectAccess, u64),
}

impl Mmu for SimMmu {
    fn memory(&self, index: u32) -> io::Result<PageMem> {
        drop(self.begin()?);
        self.memory.page(index)
    }

    fn install(&self, mapping: MapId, pages: Range<u32>, writable: bool) -> io::Result<()> {
        let mut tables = self.begin()?;
        if let Some(table) = tables.maps.get_mut(&mapping) {
            for page in pages {
                match table.entry(page).or_insert(Shown::File { storable: false }) {
                    Shown::File { storable } => *storable |= writable,
                    Shown::Device { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn protect(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.begin()?;
        tables.protects += 1;
        for table in tables.maps.values_mut() {
            for (_, shown) in table.range_mut(pages.clone()) {
                if let Shown::File { storable } = shown {
                    *storable = false;
                }
            }
        }
        Ok(())
    }

    fn unmap(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.begin()?;
        for table in tables.maps.values_mut() {
            // As the real one: what the device shows is taken away by another call.
            table.retain(|page, shown| !pages.contains(page) || matches!(shown, Shown::Device { .. }));
        }
        Ok(())
    }

    fn show_device(
        &self,
        mapping: MapId,
        pages: Range<u32>,
        at: u64,
        _access: Access,
        insist: bool,
    ) -> io::Result<Showing> {
        let mut tables = self.begin()?;
        if tables.private.contains(&mapping) {
            return Ok(Showing::Never);
        }
        let most = tables.most_windows.map(|(wanted, insisted)| if insist { insisted } else { wanted });
        let table = tables.maps.get(&mapping);
        let shown = |page: &u32| table.and_then(|t| t.get(page)).is_some_and(|s| s.is_of_device());
        let new = pages.clone().filter(|page| !shown(page)).count();
        if new > 0 && most.is_some_and(|most| tables.windows() + new > most) {
            return Ok(Showing::TooMany);
        }
        if let Some(table) = tables.maps.get_mut(&mapping) {
            let size = self.memory.page_size() as u64;
            for (n, page) in (0..).zip(pages) {
                table.insert(page, Shown::Device { at: at + n * size });
            }
        }
        Ok(Showing::Shown)
    }

    fn have_stored_to_device(&self) -> Stored {
        let stored = std::mem::take(&mut self.tables.lock().stored_to_device);
        if stored { Stored::Something } else { Stored::Nothing }
    }

    fn hide_device(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.begin()?;
        for table in tables.maps.values_mut() {
            table.retain(|page, shown| !pages.contains(page) || matches!(shown, Shown::File { .. }));
        }
        Ok(())
    }

    fn discard(&self, pages: Range<u32>) -> io::Result<()> {
        let mut tables = self.begin()?;
        for table in tables.maps.values_mut() {
            table.retain(|page, shown| !pages.contains(page) || matches!(shown, Shown::Device { .. }));
        }
        tables.given_back.push(pages.clone());
        self.memory.discard(pages)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let mut tables = self.begin()?;
        tables.size = size;
        let end = u32::try_from(size.div_ceil(self.memory.page_size() as u64)).unwrap_or(u32::MAX);
        for table in tables.maps.values_mut() {
            table.retain(|page, shown| *page < end || matches!(shown, Shown::Device { .. }));
        }
        tables.given_back.push(end..u32::MAX);
        // The file never shrinks, so that a scenario without a guard reads zeros in place of being killed.
        let have = rustix::fs::fstat(&*self.memory)?.st_size as u64;
        if size < have { self.memory.discard(end..u32::MAX) } else { self.memory.resize(size) }
    }

    fn under_way(&self) -> UnderWay {
        let tables = self.tables.lock();
        let true_state = if tables.transfers == 0 { UnderWay::Nothing } else { UnderWay::Perhaps };
        tables.seen.unwrap_or(true_state)
    }

    fn release(&self) {
        // What is asked for later is another file's memory, with nothing in it.
        let mut tables = self.tables.lock();
        tables.given_back.push(0..u32::MAX);
        let _ = self.memory.discard(0..u32::MAX);
    }

    fn wake(&self, _mapping: MapId, _pages: Range<u32>) {}
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target(page {})", self.page)
    }
}

impl fmt::Debug for SimMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMmu").finish_non_exhaustive()
    }
}
