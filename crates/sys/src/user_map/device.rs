//! Windows: parts of a mapping that show pages of a device in place of those of the memory file.
//!
//! A window is put over the mapping by mmap(2) with MAP_FIXED: one call, after which an access meets the device's page and is nobody's
//! fault any more. It is taken away by moving a registered mapping of the memory file over it (mremap(2) with MREMAP_FIXED): also one
//! call, so that there is no time at which an access meets neither. Mapping the memory file in its place and registering that would
//! leave such a time, in which the kernel itself fills pages with zeros.
//!
//! Windows that lie behind each other in the file and on the device are one. The kernel allows a process so many mappings
//! (`vm.max_map_count`); what this library has mapped takes a fourth of these at most, with a few windows that every mapping may have a half,
//! and one mapping no more than 4,096. Who wants more is refused ([`Showing::TooMany`]), before the kernel refuses anything (`budget`).
//!
//! All of this happens under the mapping's `changing` lock, so that its shape stays what it is. What the program has put in a part's place by a
//! call of its own is looked for before, and left alone.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mremap_fixed, munmap};

use super::budget::{self, Counted};
use super::{Protection, UserPages};
use crate::device_memory::{self, DeviceMemory};
use crate::uffd::Watch;
use crate::vma::FileId;

/// Windows of a mapping that is not fragmented: it may have so many while others have as many as they may.
const FEW: usize = 64;
/// Windows that a mapping may have at most.
const MOST: usize = 4096;
/// A window so long that loads have made is not watched until somebody asks: that is done page by page, and takes its huge pages away.
///
/// Measured on memory files, tmpfs with huge pages and an image on ext4 (Linux 6.18, a virtual machine): the first load of a page 1.2 us
/// in place of .3, .05 and .1, the first store after each time somebody has asked 1.0 to 1.3 us (with ext4 below as without), later ones nothing;
/// asking .7 ns a page, 12 ns if all were stored to.
const LONG: usize = 2 << 20;
/// Longer ones are never watched: it takes eight bytes of page tables for each page.
const LONGEST: usize = 1 << 30;
/// The kernel's mappings that a window takes: its own, and the rest behind it.
const EACH: usize = 2;

/// What came of showing pages of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Showing {
    /// They are shown.
    Shown,
    /// The mapping shows the memory file only: a private one, whose own copies must stay when a window goes.
    Never,
    /// There are too many windows, or mappings. Nothing was done, or only a part.
    TooMany,
}

/// What programs have stored to a device through windows since that was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// Nothing.
    Nothing,
    /// Nothing that was seen: but windows have gone, and a store in that moment is not.
    Perhaps,
    /// Something, or it cannot be told.
    Something,
}

/// The most that was said of stores since it was taken last.
#[derive(Debug, Default)]
pub struct StoredMark(AtomicU8);

impl StoredMark {
    /// Says so.
    pub fn raise(&self, stored: Stored) {
        self.0.fetch_max(stored as u8, Ordering::AcqRel);
    }

    /// What was said; from now on nothing was.
    pub fn take(&self) -> Stored {
        match self.0.swap(0, Ordering::AcqRel) {
            0 => Stored::Nothing,
            1 => Stored::Perhaps,
            _ => Stored::Something,
        }
    }

    fn is_full(&self) -> bool {
        self.0.load(Ordering::Acquire) >= Stored::Something as u8
    }
}

/// The windows of a mapping, by the byte of the file where they begin.
#[derive(Debug, Default)]
pub(super) struct Windows {
    map: BTreeMap<u64, Window>,
    /// The device's file as the kernel names it in its mappings.
    file: Option<FileId>,
    counted: Counted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// The byte of the file where it ends.
    end: u64,
    /// Where its beginning is on the device.
    device: u64,
    /// Stores to it are found by [`Watch::stored`].
    watched: bool,
}

impl Window {
    /// What of a window that begins at `start` lies behind `at`.
    fn from(self, start: u64, at: u64) -> Self {
        Self { device: self.device + (at - start), ..self }
    }
}

impl Windows {
    /// Whether the mapping shows these bytes of the file by one window from byte `at` of the device on.
    fn show(&self, bytes: &Range<u64>, at: u64) -> bool {
        self.map
            .range(..=bytes.start)
            .next_back()
            .is_some_and(|(start, w)| w.end >= bytes.end && w.from(*start, bytes.start).device == at)
    }

    /// Whether byte `byte` of the file is shown by a window at byte `at` of this file, as far as is known which file the device is.
    pub(super) fn is_window(&self, byte: u64, file: FileId, at: u64) -> bool {
        self.file.is_none_or(|known| known == file) && self.show(&(byte..byte + 1), at)
    }

    /// The parts of windows in a range, and whether they are watched.
    pub(super) fn inside(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let first = self.map.range(..bytes.start).next_back().filter(|(_, w)| w.end > bytes.start);
        first
            .into_iter()
            .chain(self.map.range(bytes.clone()))
            .map(|(start, w)| ((*start).max(bytes.start)..w.end.min(bytes.end), w.watched))
            .collect()
    }

    fn add(&mut self, bytes: Range<u64>, at: u64, watched: bool) {
        self.cut_out(&bytes);
        let (mut start, mut new) = (bytes.start, Window { end: bytes.end, device: at, watched });
        if let Some((s, w)) = self.map.range(..start).next_back().map(|(s, w)| (*s, *w))
            && w.end == start
            && w.from(s, start) == (Window { end: start, ..new })
        {
            (start, new.device) = (s, w.device);
        }
        if let Some(w) = self.map.get(&bytes.end).copied()
            && w == (Window { end: w.end, device: at + (bytes.end - bytes.start), watched })
        {
            self.map.remove(&bytes.end);
            new.end = w.end;
        }
        self.map.insert(start, new);
        self.count();
    }

    fn remove(&mut self, bytes: &Range<u64>) {
        self.cut_out(bytes);
        self.count();
    }

    fn count(&mut self) {
        self.counted.set(EACH * self.map.len());
    }

    fn cut_out(&mut self, bytes: &Range<u64>) {
        let before = self.map.range(..bytes.start).next_back().map(|(s, w)| (*s, *w));
        if let Some((start, w)) = before.filter(|(_, w)| w.end > bytes.start) {
            self.map.insert(start, Window { end: bytes.start, ..w });
            if w.end > bytes.end {
                self.map.insert(bytes.end, w.from(start, bytes.end));
            }
        }
        let within: Vec<u64> = self.map.range(bytes.clone()).map(|(start, _)| *start).collect();
        for start in within {
            if let Some(w) = self.map.remove(&start).filter(|w| w.end > bytes.end) {
                self.map.insert(bytes.end, w.from(start, bytes.end));
            }
        }
    }

    /// Says that all windows in a range, which are whole, are watched.
    fn set_watched(&mut self, bytes: &Range<u64>) {
        let within: Vec<(u64, Window)> = self.map.range(bytes.clone()).map(|(s, w)| (*s, *w)).collect();
        // Anew: neighbours may be one now.
        within.into_iter().for_each(|(start, w)| self.add(start..w.end, w.device, true));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether one more is too many.
    fn is_full(&self) -> bool {
        let part = if self.len() < FEW { 2 } else { 4 };
        self.len() >= MOST || budget::taken() + EACH > budget::allowed() / part
    }
}

impl UserPages {
    /// Shows pages of a device, from byte `at` of its memory on, in place of those of the file, for what the program may do with the
    /// mapping. Wakes nobody. `store`: who faults will store to them. `insist`: however many windows there are, as long as the kernel gives a
    /// mapping. Not from the thread that reads messages.
    ///
    /// # Errors
    /// The system's; some of the pages may then be shown.
    pub fn show_device(
        &self,
        pages: Range<u32>,
        device: &DeviceMemory,
        at: u64,
        store: bool,
        insist: bool,
    ) -> io::Result<Showing> {
        if !self.shared {
            return Ok(Showing::Never);
        }
        let mut windows = self.change();
        let bytes = self.bytes(&pages);
        if windows.show(&bytes, at) {
            return Ok(Showing::Shown);
        }
        if windows.is_full() && !insist {
            return Ok(Showing::TooMany);
        }
        budget::keep_room();
        // What is replaced, if the file has grown behind a window.
        self.note_stores(&windows, &bytes);
        let parts = self.shown_parts(&mut windows, &bytes);
        for (range, byte, protection) in parts {
            let on_device = at + (byte - bytes.start);
            let inherited = match self.put_window(&range, protection, device, on_device) {
                Err(error) if budget::is_full(&error) => return Ok(Showing::TooMany),
                put => put?,
            };
            if windows.file.is_none() {
                windows.file = self.file_at(range.start);
            }
            // What is stored to first is plain memory until somebody asks.
            let watched = protection.write && !store && range.len() < LONG && self.watch(&range);
            windows.add(byte..byte + range.len() as u64, on_device, watched);
            if let Err(error) = inherited {
                self.rearm(&mut windows, &(byte..byte + range.len() as u64))?;
                return Err(error);
            }
        }
        Ok(Showing::Shown)
    }

    /// Puts a window in the mapping's place. Inside: whether children of fork(2) will go without it; if not, it is there all the same.
    fn put_window(
        &self,
        range: &Range<usize>,
        protection: Protection,
        device: &DeviceMemory,
        at: u64,
    ) -> io::Result<io::Result<()>> {
        let start = ptr::with_exposed_provenance_mut(range.start);
        let kind = if self.sync && device.maps_sync() { device_memory::SYNC } else { MapFlags::SHARED };
        let flags = kind | MapFlags::FIXED;
        // SAFETY:
        // - The addresses are a part of this mapping, which keeps its shape while `changing` is held; nothing else is replaced.
        // - Who accesses a mapping of the file may see what the file has; the caller has looked where that is on the device.
        unsafe { mmap(start, range.len(), protection.for_mmap(), flags, device.as_fd(), at) }?;
        // SAFETY: exactly the mapping just made; the advice changes nothing of its content.
        Ok(unsafe { madvise(start, range.len(), Advice::LinuxDontFork) }.map_err(io::Error::from))
    }

    /// Takes the windows over these pages away: the next access is a fault. Waits until the reader of messages has seen it: not from
    /// that thread.
    ///
    /// # Errors
    /// The system's; then some of the windows may be there still.
    pub fn hide_device(&self, pages: Range<u32>) -> io::Result<()> {
        let mut windows = self.change();
        let bytes = self.bytes(&pages);
        self.rearm(&mut windows, &bytes)
    }

    /// The parts of the mapping that show these bytes of the file: addresses, the first byte, and what may be done there.
    pub(super) fn parts(&self, bytes: &Range<u64>) -> Vec<(Range<usize>, u64, Protection)> {
        let state = self.read();
        let part = |p: &super::pieces::Piece| {
            let range = p.part(bytes);
            (range.clone(), p.file_byte(range.start), p.protection)
        };
        state.over(bytes).map(part).collect()
    }

    /// The same without what the program has unmapped, or put something else in the place of: that is no part of the mapping any more.
    fn shown_parts(&self, windows: &mut Windows, bytes: &Range<u64>) -> Vec<(Range<usize>, u64, Protection)> {
        let (shown, gone) = self.shown_and_gone(windows, bytes);
        if gone.is_empty() {
            return shown;
        }
        // Looked at again with the reader held: what the program has moved, and is not followed yet, is not gone.
        let held = self.uffd.hold();
        let (shown, gone) = self.shown_and_gone(windows, bytes);
        if self.uffd.is_moving() {
            return shown;
        }
        let mut state = self.write();
        gone.iter().for_each(|(range, _)| state.take_out(range));
        self.publish(&mut state);
        drop(state);
        drop(held);
        for (range, byte) in gone {
            // Windows of bytes that are shown elsewhere stay on record.
            let bytes = byte..byte + range.len() as u64;
            let mut left = self.parts(&bytes);
            left.sort_unstable_by_key(|(_, byte, _)| *byte);
            let mut at = bytes.start;
            let ends = left.into_iter().map(|(range, byte, _)| byte..byte + range.len() as u64);
            for next in ends.chain(std::iter::once(bytes.end..bytes.end)) {
                if at < next.start {
                    windows.remove(&(at..next.start));
                }
                at = at.max(next.end);
            }
        }
        shown
    }

    /// What the kernel says of the parts that show these bytes: what is there, and what is not, each with its first byte.
    #[expect(clippy::type_complexity, reason = "two lists of one function")]
    fn shown_and_gone(
        &self,
        windows: &Windows,
        bytes: &Range<u64>,
    ) -> (Vec<(Range<usize>, u64, Protection)>, Vec<(Range<usize>, u64)>) {
        let (mut shown, mut gone) = (Vec::new(), Vec::new());
        for (range, byte, protection) in self.parts(bytes) {
            let byte_at = |at: usize| byte + (at - range.start) as u64;
            let mut at = range.start;
            for part in self.still_shown(windows, &range, byte) {
                if at < part.start {
                    gone.push((at..part.start, byte_at(at)));
                }
                at = part.end;
                shown.push((part.clone(), byte_at(part.start), protection));
            }
            if at < range.end {
                gone.push((at..range.end, byte_at(at)));
            }
        }
        (shown, gone)
    }

    /// Begins to watch a window, which is whole; whether that can be. What was touched already is taken to be stored to.
    fn watch(&self, range: &Range<usize>) -> bool {
        let Some(watch) = Watch::of_process().filter(|_| range.len() <= LONGEST) else { return false };
        // SAFETY: a window of this mapping, which keeps its shape while `changing` is held.
        match unsafe { watch.begin(range) } {
            Ok(touched) => {
                if touched {
                    self.stored_to_device.raise(Stored::Something);
                }
                true
            }
            Err(_) => false,
        }
    }

    /// What the program has stored to a device through windows since this was asked last: what it does from now on is found the next time.
    /// Where the kernel cannot tell, what may be stored to counts as stored to.
    pub fn has_stored_to_device(&self) -> Stored {
        let mut windows = self.change();
        let mut plain = Vec::new();
        for (range, byte, protection) in self.parts(&(0..u64::MAX)) {
            for (bytes, watched) in windows.inside(&(byte..byte + range.len() as u64)) {
                let start = range.start + (bytes.start - byte) as usize;
                let addresses = start..start + (bytes.end - bytes.start) as usize;
                if protection.write && (!watched || self.was_stored(&addresses)) {
                    self.stored_to_device.raise(Stored::Something);
                }
                // Not what is somebody else's by now.
                let is_there =
                    || self.still_shown(&windows, &addresses, bytes.start).first() == Some(&addresses);
                if protection.write && !watched && is_there() && self.watch(&addresses) {
                    plain.push(bytes);
                }
            }
        }
        plain.iter().for_each(|bytes| windows.set_watched(bytes));
        self.stored_to_device.take()
    }

    /// The same of a mapping that is gone.
    pub fn had_stored_to_device(&self) -> Stored {
        self.stored_to_device.take()
    }

    /// Notes what was stored to windows that are about to go, and that something may be until they have.
    pub(super) fn note_stores(&self, windows: &Windows, bytes: &Range<u64>) {
        if windows.len() == 0 {
            return;
        }
        for (range, byte, _) in self.parts(bytes).into_iter().filter(|(_, _, p)| p.write) {
            for (bytes, watched) in windows.inside(&(byte..byte + range.len() as u64)) {
                if self.stored_to_device.is_full() {
                    return;
                }
                let start = range.start + (bytes.start - byte) as usize;
                let addresses = start..start + (bytes.end - bytes.start) as usize;
                let stored = !watched || self.was_stored(&addresses);
                self.stored_to_device.raise(if stored { Stored::Something } else { Stored::Perhaps });
            }
        }
    }

    fn was_stored(&self, addresses: &Range<usize>) -> bool {
        Watch::of_process().is_none_or(|watch| watch.stored(addresses).unwrap_or(true))
    }

    /// How many windows there are.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.change().len()
    }

    /// The lock over changes of the mapping's shape.
    pub(super) fn change(&self) -> MutexGuard<'_, Windows> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the memory file back in the place of windows. What lies between two of them may have to be asked for again, too.
    pub(super) fn rearm(&self, windows: &mut Windows, bytes: &Range<u64>) -> io::Result<()> {
        let inside = windows.inside(bytes);
        let (Some((first, _)), Some((last, _))) = (inside.first(), inside.last()) else { return Ok(()) };
        let span = first.start..last.end;
        self.note_stores(windows, &span);
        let parts = self.shown_parts(windows, &span);
        let bytes_of = |(range, byte, _): &(Range<usize>, u64, Protection)| *byte..*byte + range.len() as u64;
        for (n, part) in parts.iter().enumerate() {
            // The program may have mapped one byte of the file at two places of a mapping it moved; each has its own windows.
            if windows.inside(&bytes_of(part)).is_empty() {
                continue;
            }
            if let Err(error) = budget::with_room(|| self.rearm_part(&part.0, part.1, part.2)) {
                // What has gone is no longer counted as there, unless it is there at another place.
                let left: Vec<_> = parts[n..].iter().map(bytes_of).collect();
                let apart =
                    |bytes: &Range<u64>| left.iter().all(|l| l.end <= bytes.start || bytes.end <= l.start);
                parts[..n].iter().map(bytes_of).filter(apart).for_each(|gone| windows.remove(&gone));
                return Err(error);
            }
        }
        windows.remove(&span);
        Ok(())
    }

    fn rearm_part(&self, range: &Range<usize>, byte: u64, protection: Protection) -> io::Result<()> {
        let len = range.len();
        // SAFETY:
        // - A new mapping at an address of the system's choice touches nothing that exists.
        // - It cannot be accessed.
        let spare =
            unsafe { mmap(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::SHARED, &self.file, byte) }?;
        let opened = self.open(spare.expose_provenance()..spare.expose_provenance() + len, protection);
        let start = spare.expose_provenance();
        let own = self.uffd.own_move(start..start + len, range.clone());
        let moved = opened.and_then(|()| {
            let to = ptr::with_exposed_provenance_mut(range.start);
            // SAFETY:
            // - The old addresses are the mapping just made, which nobody knows.
            // - The new ones are a part of this mapping, which keeps its shape while `changing` is held. What is there shows the file,
            //   and what comes there shows the same file.
            unsafe { mremap_fixed(spare, len, len, MremapFlags::MAYMOVE, to) }?;
            Ok(())
        });
        if moved.is_err() {
            // SAFETY: a failed move changes nothing: it is still the mapping that was made here.
            let _ = unsafe { munmap(spare, len) };
        }
        drop(own);
        // Who met the old registration while the window came is asked again.
        self.uffd.wake(range.clone());
        moved
    }

    /// Notes what was stored to windows whose addresses are about to be unmapped.
    pub(super) fn note_stores_at(&self, windows: &Windows, addresses: &Range<usize>) {
        self.bytes_at(addresses).iter().for_each(|bytes| self.note_stores(windows, bytes));
    }

    /// Forgets windows whose addresses are unmapped.
    pub(super) fn forget_windows(&self, windows: &mut Windows, addresses: &Range<usize>) {
        self.bytes_at(addresses).iter().for_each(|bytes| windows.remove(bytes));
    }

    /// Takes the windows at these addresses away before a change that the kernel makes to one mapping of its own only.
    pub(super) fn rearm_addresses(&self, windows: &mut Windows, addresses: &Range<usize>) -> io::Result<()> {
        self.bytes_at(addresses).iter().try_for_each(|bytes| self.rearm(windows, bytes))
    }

    /// The bytes of the file that these addresses show.
    pub(super) fn bytes_at(&self, addresses: &Range<usize>) -> Vec<Range<u64>> {
        let state = self.read();
        let clip = |p: &super::pieces::Piece| {
            let part = p.range.start.max(addresses.start)..p.range.end.min(addresses.end);
            p.file_byte(part.start)..p.file_byte(part.start) + part.len() as u64
        };
        state.inside(addresses).map(clip).collect()
    }
}

impl Protection {
    fn for_mmap(self) -> ProtFlags {
        let mut flags = ProtFlags::empty();
        flags.set(ProtFlags::READ, self.read);
        flags.set(ProtFlags::WRITE, self.write);
        flags.set(ProtFlags::EXEC, self.exec);
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::Windows;
    use std::collections::BTreeMap;

    const PAGE: u64 = 4096;

    /// Windows against a table of pages: what is shown where, and that what lies in a row is one.
    #[test]
    fn windows_merge_and_split_like_pages() {
        let seed =
            std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x9E37_79B9_7F4A_7C15_u64);
        println!("seed={seed}");
        let mut random = seed | 1;
        let mut below = |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        let (mut windows, mut pages) = (Windows::default(), BTreeMap::<u64, (u64, bool)>::new());
        for _ in 0..20_000 {
            let (first, len) = (below(60), below(9) + 1);
            let bytes = first * PAGE..(first + len) * PAGE;
            if below(3) == 0 {
                windows.remove(&bytes);
                pages.retain(|page, _| !(first..first + len).contains(page));
            } else {
                // Mostly where neighbours go on.
                let at = if below(4) == 0 { below(100) } else { first + 1000 };
                let watched = below(4) == 0;
                windows.add(bytes.clone(), at * PAGE, watched);
                pages.extend((0..len).map(|n| (first + n, (at + n, watched))));
                assert!(windows.show(&bytes, at * PAGE));
            }
            let mut runs = 0;
            let mut before = None;
            for (page, (at, watched)) in &pages {
                runs += usize::from(before != Some((page.wrapping_sub(1), at.wrapping_sub(1), *watched)));
                before = Some((*page, *at, *watched));
            }
            assert_eq!(windows.len(), runs);
            let (page, at) = (below(70), below(2) * 1000);
            let shown = pages.get(&page).is_some_and(|(on, _)| *on == page + at);
            assert_eq!(windows.show(&(page * PAGE..(page + 1) * PAGE), (page + at) * PAGE), shown);
            let inside: u64 = windows.inside(&bytes).iter().map(|(r, _)| (r.end - r.start) / PAGE).sum();
            assert_eq!(inside, pages.range(first..first + len).count() as u64);
        }
    }
}
