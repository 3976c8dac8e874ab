//! Windows: parts of a mapping that show pages of a device in place of those of the memory file.
//!
//! A window is put over the mapping by mmap(2) with MAP_FIXED: one call, after which an access meets the device's page and is nobody's
//! fault any more. It is taken away by moving a registered mapping of the memory file over it (mremap(2) with MREMAP_FIXED): also one
//! call, so that there is no time at which an access meets neither. Mapping the memory file in its place and registering that would
//! leave such a time, in which the kernel itself fills pages with zeros.
//!
//! Windows that lie behind each other in the file and on the device are one. The kernel allows a process so many mappings
//! (`vm.max_map_count`); all windows together take a fourth of these at most, apart from a few that every mapping may have. A mapping that
//! wants more gives up those it has: the next access there is a fault.
//!
//! All of this happens under the mapping's `changing` lock, so that its shape stays what it is.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{MutexGuard, OnceLock, PoisonError};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mremap_fixed, munmap};

use super::{Protection, UserPages};
use crate::DeviceMemory;

/// Windows that a mapping may have whatever the others have.
const LEAST: usize = 64;
/// Windows that a mapping may have at most.
const MOST: usize = 4096;

/// Windows of all mappings of the process.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// The windows of a mapping: by the byte of the file where they begin, the byte where they end, and where that is on the device.
#[derive(Debug, Default)]
pub(super) struct Windows {
    map: BTreeMap<u64, (u64, u64)>,
}

impl Windows {
    /// Whether the mapping shows these bytes of the file by one window from byte `at` of the device on.
    fn show(&self, bytes: &Range<u64>, at: u64) -> bool {
        self.map
            .range(..=bytes.start)
            .next_back()
            .is_some_and(|(start, (end, device))| *end >= bytes.end && device + (bytes.start - start) == at)
    }

    /// The parts of windows in a range.
    fn inside(&self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let first = self.map.range(..bytes.start).next_back().filter(|(_, (end, _))| *end > bytes.start);
        first
            .into_iter()
            .chain(self.map.range(bytes.clone()))
            .map(|(start, (end, _))| (*start).max(bytes.start)..(*end).min(bytes.end))
            .collect()
    }

    fn add(&mut self, bytes: Range<u64>, at: u64) {
        self.remove(&bytes);
        let (mut start, mut end, mut device) = (bytes.start, bytes.end, at);
        if let Some((s, (e, d))) = self.map.range(..start).next_back().map(|(s, w)| (*s, *w))
            && e == start
            && d + (e - s) == device
        {
            (start, device) = (s, d);
        }
        if let Some((e, d)) = self.map.get(&end).copied()
            && d == at + (bytes.end - bytes.start)
        {
            self.take(end);
            end = e;
        }
        if self.map.insert(start, (end, device)).is_none() {
            ALL.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remove(&mut self, bytes: &Range<u64>) {
        let before = self.map.range(..bytes.start).next_back().map(|(s, w)| (*s, *w));
        if let Some((start, (end, device))) = before.filter(|(_, (end, _))| *end > bytes.start) {
            self.put(start, (bytes.start, device));
            if end > bytes.end {
                self.put(bytes.end, (end, device + (bytes.end - start)));
            }
        }
        let within: Vec<u64> = self.map.range(bytes.clone()).map(|(start, _)| *start).collect();
        for start in within {
            if let Some((end, device)) = self.take(start)
                && end > bytes.end
            {
                self.put(bytes.end, (end, device + (bytes.end - start)));
            }
        }
    }

    fn put(&mut self, start: u64, window: (u64, u64)) {
        if self.map.insert(start, window).is_none() {
            ALL.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(&mut self, start: u64) -> Option<(u64, u64)> {
        let window = self.map.remove(&start)?;
        ALL.fetch_sub(1, Ordering::Relaxed);
        Some(window)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= MOST || (self.len() >= LEAST && ALL.load(Ordering::Relaxed) >= budget())
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        ALL.fetch_sub(self.map.len(), Ordering::Relaxed);
    }
}

/// How many windows all mappings may have together. Each takes two of the kernel's mappings: its own, and the rest behind it.
fn budget() -> usize {
    static BUDGET: OnceLock<usize> = OnceLock::new();
    *BUDGET.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse::<usize>().unwrap_or(65_530) / 8
    })
}

impl UserPages {
    /// Shows pages of a device, from byte `at` of its memory on, in place of those of the file, for what the program may do with the
    /// mapping. Wakes nobody. `false`, and nothing done, for a private mapping: its own copies must stay when the window goes. Not from
    /// the thread that reads messages.
    ///
    /// # Errors
    /// The system's; some of the pages may then be shown.
    pub fn show_device(&self, pages: Range<u32>, device: &DeviceMemory, at: u64) -> io::Result<bool> {
        if !self.shared {
            return Ok(false);
        }
        let mut windows = self.change();
        let bytes = self.bytes(&pages);
        if windows.show(&bytes, at) {
            return Ok(true);
        }
        if windows.is_full() {
            self.rearm(&mut windows, &(0..u64::MAX))?;
        }
        let parts: Vec<(Range<usize>, u64, Protection)> = {
            let state = self.read();
            let part = |p: &super::pieces::Piece| {
                let range = p.part(&bytes);
                (range.clone(), p.file_byte(range.start), p.protection)
            };
            state.over(&bytes).map(part).collect()
        };
        for (range, byte, protection) in parts {
            let on_device = at + (byte - bytes.start);
            let inherited = self.put_window(&range, protection, device, on_device)?;
            windows.add(byte..byte + range.len() as u64, on_device);
            if let Err(error) = inherited {
                self.rearm(&mut windows, &(byte..byte + range.len() as u64))?;
                return Err(error);
            }
        }
        Ok(true)
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
        let flags = MapFlags::SHARED | MapFlags::FIXED;
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

    /// Whether the program may be storing to a device, which is no fault.
    #[must_use]
    pub fn may_store_to_device(&self) -> bool {
        self.change().len() > 0 && self.read().pieces.iter().any(|piece| piece.protection.write)
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
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else { return Ok(()) };
        let span = first.start..last.end;
        let parts: Vec<(Range<usize>, u64, Protection)> = {
            let state = self.read();
            let part = |p: &super::pieces::Piece| {
                let range = p.part(&span);
                (range.clone(), p.file_byte(range.start), p.protection)
            };
            state.over(&span).map(part).collect()
        };
        let bytes_of = |(range, byte, _): &(Range<usize>, u64, Protection)| *byte..*byte + range.len() as u64;
        for (n, part) in parts.iter().enumerate() {
            // The program may have mapped one byte of the file at two places of a mapping it moved; each has its own windows.
            if windows.inside(&bytes_of(part)).is_empty() {
                continue;
            }
            if let Err(error) = self.rearm_part(&part.0, part.1, part.2) {
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
        // Who met the old registration while the window came is asked again.
        self.uffd.wake(range.clone());
        moved
    }

    /// Forgets windows whose addresses are unmapped.
    pub(super) fn forget_windows(&self, windows: &mut Windows, addresses: &Range<usize>) {
        let gone: Vec<Range<u64>> = {
            let state = self.read();
            let clip = |p: &super::pieces::Piece| {
                let part = p.range.start.max(addresses.start)..p.range.end.min(addresses.end);
                p.file_byte(part.start)..p.file_byte(part.start) + part.len() as u64
            };
            state.inside(addresses).map(clip).collect()
        };
        gone.iter().for_each(|bytes| windows.remove(bytes));
    }

    /// Takes the windows at these addresses away before a change that the kernel makes to one mapping of its own only.
    pub(super) fn rearm_addresses(&self, windows: &mut Windows, addresses: &Range<usize>) -> io::Result<()> {
        let bytes: Vec<Range<u64>> = {
            let state = self.read();
            let clip = |p: &super::pieces::Piece| {
                let part = p.range.start.max(addresses.start)..p.range.end.min(addresses.end);
                p.file_byte(part.start)..p.file_byte(part.start) + part.len() as u64
            };
            state.inside(addresses).map(clip).collect()
        };
        bytes.iter().try_for_each(|bytes| self.rearm(windows, bytes))
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
        let (mut windows, mut pages) = (Windows::default(), BTreeMap::<u64, u64>::new());
        for _ in 0..20_000 {
            let (first, len) = (below(60), below(9) + 1);
            let bytes = first * PAGE..(first + len) * PAGE;
            if below(3) == 0 {
                windows.remove(&bytes);
                pages.retain(|page, _| !(first..first + len).contains(page));
            } else {
                // Mostly where neighbours go on.
                let at = if below(4) == 0 { below(100) } else { first + 1000 };
                windows.add(bytes.clone(), at * PAGE);
                pages.extend((0..len).map(|n| (first + n, at + n)));
                assert!(windows.show(&bytes, at * PAGE));
            }
            let mut runs = 0;
            let mut before = None;
            for (page, at) in &pages {
                runs += usize::from(before != Some((page.wrapping_sub(1), at.wrapping_sub(1))));
                before = Some((*page, *at));
            }
            assert_eq!(windows.len(), runs);
            let (page, at) = (below(70), below(2) * 1000);
            let shown = pages.get(&page) == Some(&(page + at));
            assert_eq!(windows.show(&(page * PAGE..(page + 1) * PAGE), (page + at) * PAGE), shown);
            let inside: u64 = windows.inside(&bytes).iter().map(|r| (r.end - r.start) / PAGE).sum();
            assert_eq!(inside, pages.range(first..first + len).count() as u64);
        }
    }
}
