//! DAX: a file without pages. Reads and writes copy from and to the device, mappings show it.
//!
//! A file is in this mode or not ([`AddressSpace::is_dax`]); that changes under exclusive `invalidate_lock` by who holds the inode lock
//! exclusively ([`AddressSpace::prepare_switch`]), and is looked at under either. Then, whatever a caller has seen before, the index has no
//! page, and a mapping shows
//! - pages of the device, for written blocks, to loads and stores alike: what is stored is in the device's memory at once,
//! - pages of zeros of the memory file, without the right to store, for holes and unwritten blocks that were loaded from,
//! - copies, in private mappings, and where nothing may be stored (a file that may not change).
//!
//! **A block gets its place before a store is let through**: reserved and claimed, filled on the device, published, like every block; the
//! commit that makes the map durable flushes the device first, so that nobody finds what the block had before. That is done under the
//! gate, by faults and writers alike, with another look at the map: there is one who gives a block its place. The page of zeros is taken
//! from all mappings before: under the gate it does not come back (test `dax::store_to_a_hole`).
//!
//! **What takes blocks away hides the device first**, under exclusive `invalidate_lock` ([`AddressSpace::hide`]): faults wait, and find
//! what the map says then. A pinned page keeps its blocks from being used again ([`Host::hold`]).
//!
//! **A file of which mappings show too many pieces** leaves the mode by itself ([`AddressSpace::fault`]), for all its mappings, by the same
//! exchange: the kernel has so many mappings for a process. It comes back when its flag is changed, or when it is next read.
//!
//! Past the end of the file, in its last page, programs may store what they like; it is zeroed when the file grows over it, with that page
//! hidden, and nobody reads it until then.

use std::ops::Range;

use extant_device::DirectAccess;
use extant_format::Lblk;
use extant_sync::atomic::Ordering;
use extant_sys::Stored;

use crate::Host;
use crate::host::{Backing, Mapped, Placement};
use crate::mutant::without;
use crate::space::{AddressSpace, ExclusiveGuard};
use crate::write::WriteOutcome;

/// Blocks that are placed at a time.
const MOST_BLOCKS: u32 = 4096;
/// Blocks that lie in one huge page; few where schedules are explored, so that small files have several.
pub(crate) const HUGE: u32 = if cfg!(feature = "shuttle") { 4 } else { 512 };
/// Zeros are written in pieces of this.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is at a page of a file in DAX mode.
pub(crate) enum DaxRun {
    /// Written blocks in a row, from a byte of the device on.
    Written { pages: Range<u32>, at: u64 },
    /// Blocks that read as zeros.
    Zeros(Mapped),
}

impl AddressSpace {
    /// Whether the file is in DAX mode: certain under the inode lock or `invalidate_lock`.
    #[must_use]
    pub fn is_dax(&self) -> bool {
        self.dax.load(Ordering::Acquire)
    }

    /// The mode of a file that nobody has used yet.
    pub fn begin_dax(&self, on: bool) {
        debug_assert!(!on || self.cache.dax().is_some(), "a device without memory");
        self.dax.store(on, Ordering::Release);
    }

    /// Counts a mapping with MAP_SYNC, of a file in DAX mode, which stays in it until [`Self::end_sync_map`]. Under the inode lock, held
    /// exclusively.
    pub fn begin_sync_map(&self) {
        self.sync_maps.fetch_add(1, Ordering::AcqRel);
    }

    /// One of them is gone.
    pub fn end_sync_map(&self) {
        self.sync_maps.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_mapped_sync(&self) -> bool {
        self.sync_maps.load(Ordering::Acquire) > 0
    }

    pub(crate) fn direct_access(&self) -> std::io::Result<&DirectAccess> {
        self.cache.dax().ok_or_else(|| std::io::Error::from_raw_os_error(95))
    }

    /// Takes the device out of all mappings, and the copies: the next access is a fault, which decides anew. For who changes whether
    /// stores are allowed.
    ///
    /// # Errors
    /// The system's; then some may go on showing the device.
    pub fn hide_dax(&self, _guard: &ExclusiveGuard<'_>) -> std::io::Result<()> {
        if !self.is_dax() {
            return Ok(());
        }
        self.hide(&(0..u64::MAX))?;
        self.give_back(&(0..u64::MAX));
        Ok(())
    }

    /// [`Self::write`] to a file in DAX mode. The caller holds the inode lock exclusively, perhaps `held` too.
    pub(crate) fn write_dax<H: Host>(
        &self,
        held: Option<&ExclusiveGuard<'_>>,
        host: &H,
        pos: u64,
        data: &[u8],
    ) -> WriteOutcome<H::Error> {
        let mut written = 0;
        if data.is_empty() {
            return WriteOutcome { written, error: None };
        }
        let Some(end) = pos.checked_add(data.len() as u64) else {
            return WriteOutcome { written, error: Some(std::io::Error::from_raw_os_error(27).into()) };
        };
        let size = host.size();
        // Nobody sees a longer file before its bytes, nor faults on its last page while that changes.
        let guard = (end > size && held.is_none()).then(|| self.exclusive());
        let ready = match held.or(guard.as_ref()).filter(|_| end > size) {
            Some(guard) => self.dax_growth(guard, host, end),
            None => Ok(()),
        };
        let result = ready.and_then(|()| self.write_dax_runs(host, pos, data, size, &mut written));
        drop(guard);
        self.grown(size, host.size());
        WriteOutcome { written, error: result.err() }
    }

    pub(crate) fn write_dax_runs<H: Host>(
        &self,
        host: &H,
        pos: u64,
        data: &[u8],
        size: u64,
        written: &mut usize,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let block = u64::from(geo.block_size());
        while *written < data.len() {
            let at = pos + *written as u64;
            let lblk = u32::try_from(at / block)
                .map_err(|_| H::Error::from(std::io::Error::from_raw_os_error(27)))?;
            let inside = at % block;
            let rest = &data[*written..];
            let most = geo.blocks_up(rest.len().saturating_add(inside as usize)).min(MOST_BLOCKS);
            let mapped = host.map(Lblk(lblk), most)?;
            let bytes = |blocks: u32| ((geo.block_bytes(blocks) - inside) as usize).min(rest.len());
            let n = match mapped.backing {
                Backing::Data(pblk) => {
                    let n = bytes(mapped.len.clamp(1, most));
                    let done = self.cache.device().write_at(geo.pblk_bytes(pblk)? + inside, &rest[..n]);
                    self.changed_device();
                    done?;
                    if self.mmu().is_some() && !without!(self.cache, CopiesDropped) {
                        // A fault that read the old bytes before may be about to show them: it holds the gate.
                        let _gate = self.gate();
                        self.drop_copies(at..at + n as u64)?;
                    }
                    let end = at + n as u64;
                    if end > size {
                        let before = host.size();
                        host.grow_size(end);
                        host.publish(&mut [], end).inspect_err(|_| host.set_size(before))?;
                    }
                    n
                }
                Backing::Hole | Backing::Unwritten(_) => {
                    let end = |blocks: u32| {
                        let end = at + bytes(blocks) as u64;
                        if end > size { end } else { 0 }
                    };
                    let fill = |place: u64, blocks: u32| {
                        self.fill_new(place, blocks, inside, &rest[..bytes(blocks)])
                    };
                    match self.place_dax(host, lblk, most, fill, end)? {
                        // A fault was faster.
                        0 => continue,
                        blocks => bytes(blocks),
                    }
                }
            };
            *written += n;
        }
        Ok(())
    }

    /// Fills blocks that had no content with `data` from byte `inside` on, and zeros round it.
    fn fill_new(&self, place: u64, blocks: u32, inside: u64, data: &[u8]) -> std::io::Result<()> {
        let geo = self.cache.geometry();
        let block = geo.block_size() as usize;
        let device = self.cache.device();
        if inside == 0 && data.len().is_multiple_of(block) {
            return device.write_at(place, data);
        }
        let whole = geo.block_bytes(blocks) as usize;
        let mut bytes = vec![0; whole];
        bytes[inside as usize..inside as usize + data.len()].copy_from_slice(data);
        device.write_at(place, &bytes)
    }

    /// Gives blocks from `lblk` on, up to `most`, that are a hole or unwritten, places with content: `fill` writes that to the device,
    /// from a byte of it on, for so many blocks. `end` says what `i_size` and `i_disksize` become at least by so many blocks (0: they
    /// stay). How many blocks; 0 when the first has content by now. Under the inode lock exclusively or shared `invalidate_lock`; takes
    /// the gate.
    pub(crate) fn place_dax<H: Host>(
        &self,
        host: &H,
        lblk: u32,
        most: u32,
        fill: impl Fn(u64, u32) -> std::io::Result<()>,
        end: impl Fn(u32) -> u64,
    ) -> Result<u32, H::Error> {
        let geo = self.cache.geometry();
        let _gate = (!without!(self.cache, PlacedOnce)).then(|| self.gate());
        let mapped = host.map(Lblk(lblk), most)?;
        let mut len = mapped.len.clamp(1, most);
        let delayed = match mapped.backing {
            Backing::Data(_) if !without!(self.cache, PlacedLooked) => return Ok(0),
            Backing::Unwritten(_) => false,
            Backing::Hole | Backing::Data(_) => true,
        };
        while delayed && let Err(error) = host.reserve(Lblk(lblk), len) {
            // As far as space goes.
            if len == 1 {
                return Err(error);
            }
            len /= 2;
        }
        let give_back = |from: u32| {
            if delayed && from < len {
                host.unreserve(Lblk(lblk + from), len - from);
            }
        };
        if !without!(self.cache, DaxHolesHidden) {
            let start = geo.block_bytes(lblk);
            self.drop_copies(start..start + geo.block_bytes(len)).inspect_err(|_| give_back(0))?;
        }
        let Placement { pblk, len: got, mut claim } =
            host.claim(Lblk(lblk), len, delayed).inspect_err(|_| give_back(0))?;
        let got = got.clamp(1, len);
        give_back(got);
        let give_back = || {
            if delayed {
                host.unreserve(Lblk(lblk), got);
            }
        };
        if !without!(self.cache, DaxFilled) {
            let filled = geo.pblk_bytes(pblk).and_then(|place| fill(place, got));
            self.changed_device();
            if let Err(error) = filled {
                drop(claim);
                give_back();
                return Err(error.into());
            }
        }
        let (before, end) = (host.size(), end(got));
        host.grow_size(end);
        let published = host.publish(claim.as_mut_slice(), end);
        drop(claim);
        published.inspect_err(|_| {
            host.set_size(before);
            give_back();
        })?;
        Ok(got)
    }

    /// Writes zeros to blocks from byte `place` of the device on: a block whose memory is there, not a hole of an image file, in which a
    /// store could fail.
    pub(crate) fn zero_new(&self, place: u64, blocks: u32) -> std::io::Result<()> {
        self.zero_device(place, self.cache.geometry().block_bytes(blocks))
    }

    fn zero_device(&self, place: u64, len: u64) -> std::io::Result<()> {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROS.len() as u64);
            self.cache.device().write_at(place + done, &ZEROS[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    /// Makes the bytes `from..to` of one block zero on the device, if it has content. Under exclusive `invalidate_lock`.
    pub(crate) fn zero_in_dax_block<H: Host>(&self, host: &H, from: u64, to: u64) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let block = u64::from(geo.block_size());
        let Ok(lblk) = u32::try_from(from / block) else { return Ok(()) };
        if let Backing::Data(pblk) = host.map(Lblk(lblk), 1)?.backing {
            // Before the bytes change: that may fail. Under exclusive `invalidate_lock` no copy comes anew.
            self.drop_copies(from..to)?;
            let zeroed = self.zero_device(geo.pblk_bytes(pblk)? + from % block, to - from);
            self.changed_device();
            zeroed?;
        }
        Ok(())
    }

    /// [`Self::prepare_growth`] in DAX mode.
    pub(crate) fn dax_growth<H: Host>(
        &self,
        _guard: &ExclusiveGuard<'_>,
        host: &H,
        size: u64,
    ) -> Result<(), H::Error> {
        let geo = self.cache.geometry();
        let old = host.size();
        let block = u64::from(geo.block_size());
        if !old.is_multiple_of(block) && !without!(self.cache, DaxEndHidden) {
            if let (Some(mmu), Some(page)) = (self.mmu(), geo.page_of(old)) {
                mmu.hide_device(page..page + 1)?;
            }
            self.zero_in_dax_block(host, old, old.next_multiple_of(block))?;
        }
        self.grow_memory(size)?;
        Ok(())
    }

    /// Notes what programs have stored through mappings that show the device, which is no fault. For fsync, and before a mapping goes.
    /// Nothing is held.
    pub fn note_stores<H: Host>(&self, host: &H) {
        let Some(mmu) = self.mmu().filter(|_| self.shown.load(Ordering::Acquire)) else { return };
        let stored = {
            // One at a time: who finds nothing finds the change noted by who found it (test `dax::two_at_a_time_make_durable`).
            let _one = (!without!(self.cache, NotedAtOnce)).then(|| self.noting.lock());
            let stored = mmu.have_stored_to_device();
            if stored > Stored::Nothing {
                self.changed_device();
            }
            stored
        };
        if stored == Stored::Something {
            host.stored();
        }
    }

    /// The device has bytes of the file that it may not have made durable: after they were written.
    pub(crate) fn changed_device(&self) {
        self.device_changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Before the device is flushed for the file's sake, after [`Self::note_stores`]: the number of its last change, to be told to
    /// [`Self::flushed`]. `None`: there was none since a flush. Of a file in DAX mode; of others nobody knows.
    pub fn unflushed(&self) -> Option<u64> {
        let changes = self.device_changes.load(Ordering::Acquire);
        (!self.is_dax() || self.device_flushed.load(Ordering::Acquire) < changes).then_some(changes)
    }

    /// After the device was flushed.
    pub fn flushed(&self, changes: u64) {
        self.device_flushed.fetch_max(changes, Ordering::AcqRel);
    }

    /// The written blocks round block `lblk` that lie in a row on the device, at most from the start of its huge page on and up to
    /// `last`; or what `lblk` is if it is not written.
    pub(crate) fn dax_run<H: Host>(
        &self,
        host: &H,
        first: u32,
        lblk: u32,
        last: u32,
    ) -> Result<DaxRun, H::Error> {
        let geo = self.cache.geometry();
        let mut at = (lblk & !(HUGE - 1)).max(first);
        loop {
            let mapped = host.map(Lblk(at), last - at + 1)?;
            let len = mapped.len.clamp(1, last - at + 1);
            if at + (len - 1) < lblk {
                at += len;
                continue;
            }
            return Ok(match mapped.backing {
                Backing::Data(pblk) => DaxRun::Written { pages: at..at + len, at: geo.pblk_bytes(pblk)? },
                _ => DaxRun::Zeros(Mapped { len: at + len - lblk, ..mapped }),
            });
        }
    }
}
