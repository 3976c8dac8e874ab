//! Changes of a mapping's shape: unmapping, moving, growing, protecting parts of it.
//!
//! While its system calls run, a part that goes away or moves is busy: not in the process-wide tree, so that the reader of messages
//! leaves a fault there unanswered; left out by installing; waited for by protecting. What comes after wakes whoever waits there.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap, mremap_fixed, munmap};
use rustix::param::page_size;

use super::pieces::State;
use super::{Protection, UserPages};

/// Where mremap(2) may leave a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Where it is.
    InPlace,
    /// Anywhere.
    Anywhere,
    /// At this address, in place of whatever is there.
    Fixed(usize),
}

impl UserPages {
    /// munmap(2) of the part of the range that is this mapping's: multiples of the system's page.
    ///
    /// # Errors
    /// EINVAL for an unaligned range; ENOMEM when the system cannot have more mappings. Then nothing or a part is unmapped.
    ///
    /// # Safety
    /// Nobody uses that memory again, through [`UserMap`](super::UserMap) or otherwise.
    pub unsafe fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        self.remove(range, |part| {
            // SAFETY: a part of this mapping, which stays what it is while it is busy; the caller's promise.
            unsafe { munmap(ptr::with_exposed_provenance_mut(part.start), part.len()) }
        })
    }

    /// As [`Self::unmap`], but the addresses stay taken, without access: for what is to be put there next.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    ///
    /// # Safety
    /// As [`Self::unmap`].
    pub unsafe fn vacate(&self, range: Range<usize>) -> io::Result<()> {
        self.remove(range, |part| {
            let start = ptr::with_exposed_provenance_mut(part.start);
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: a part of this mapping, which stays what it is while it is busy, is replaced; the caller's promise.
            unsafe { mmap_anonymous(start, part.len(), ProtFlags::empty(), flags) }.map(|_| ())
        })
    }

    fn remove(
        &self,
        range: Range<usize>,
        take: impl Fn(&Range<usize>) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        aligned(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut changing = self.change();
        let parts = self.begin(&range);
        let mut result = Ok(());
        for part in &parts {
            self.note_stores_at(&changing, part);
            result = take(part);
            if result.is_err() {
                break;
            }
            self.forget_windows(&mut changing, part);
            self.write().pieces.retain(|p| p.range != *part);
        }
        self.end(&range);
        drop(changing);
        for part in parts {
            self.uffd.wake(part);
        }
        Ok(result?)
    }

    /// Unmaps everything. The owner's last act. What the program has put in the mapping's place meanwhile stays.
    pub(super) fn close(&self) {
        let mut changing = self.change();
        // What moved before this was called has been followed by then.
        self.uffd.catch_up();
        let parts = self.begin(&(0..usize::MAX));
        self.note_stores(&changing, &(0..u64::MAX));
        for (range, byte, _) in self.parts(&(0..u64::MAX)) {
            for part in self.still_shown(&changing, &range, byte) {
                // SAFETY:
                // - A part of this mapping, which stays what it is while it is busy; the kernel said just now that it still shows the file.
                // - The owner goes, and with it every way to the memory that this crate gave; pointers are the program's to keep right.
                let result = unsafe { munmap(ptr::with_exposed_provenance_mut(part.start), part.len()) };
                debug_assert!(result.is_ok(), "munmap of an own mapping: {result:?}");
            }
        }
        *changing = super::device::Windows::default();
        {
            let mut state = self.write();
            state.pieces.clear();
            self.publish(&mut state);
        }
        super::kernel::remove(self.id);
        drop(changing);
        for part in parts {
            self.uffd.wake(part);
        }
    }

    /// mprotect(2) of the part of the range that is this mapping's.
    ///
    /// # Errors
    /// EINVAL for an unaligned range, EACCES for stores to a shared mapping of a file not opened for writing; ENOMEM when the system
    /// cannot have more mappings.
    pub fn set_protection(&self, range: Range<usize>, protection: Protection) -> io::Result<()> {
        aligned(&range)?;
        if self.shared && protection.write && !self.may_write {
            return Err(Errno::ACCESS.into());
        }
        let mut changing = self.change();
        // What was stored is noted, and windows that nothing could be stored to are not watched.
        self.rearm_addresses(&mut changing, &range)?;
        let parts: Vec<(Range<usize>, Protection)> = {
            let mut state = self.write();
            state.cut(&range);
            let parts = state.inside(&range).map(|p| (p.range.clone(), p.protection)).collect();
            // What is lost is lost at once, what is gained is gained at the end: until then nobody installs for stores.
            for piece in state.pieces.iter_mut().filter(|p| is_inside(&p.range, &range)) {
                piece.protection.write &= protection.write;
                piece.stores = false;
            }
            self.publish(&mut state);
            parts
        };
        let mut result = Ok(());
        for (part, before) in parts {
            let start = ptr::with_exposed_provenance_mut(part.start);
            if result.is_ok() {
                // SAFETY:
                // - A part of this mapping, which keeps its shape while `changing` is held.
                // - An access that is no longer allowed is a signal.
                result = unsafe { mprotect(start, part.len(), protection.for_mprotect()) };
            }
            let now = if result.is_ok() { protection } else { before };
            let mut state = self.write();
            for piece in state.pieces.iter_mut().filter(|p| is_inside(&p.range, &part)) {
                piece.protection = now;
            }
        }
        let mut state = self.write();
        state.merge();
        self.publish(&mut state);
        drop(state);
        drop(changing);
        Ok(result?)
    }

    /// madvise(MADV_DONTNEED) of the part of the range that is this mapping's: a private mapping's own copies go, and what of it was
    /// marked; the next access is a fault.
    ///
    /// # Errors
    /// EINVAL for an unaligned range; the system's.
    pub fn drop_copies(&self, range: Range<usize>) -> io::Result<()> {
        aligned(&range)?;
        // Nothing moves meanwhile, and nothing is installed.
        let changing = self.change();
        let mut state = self.write();
        let parts: Vec<_> = state
            .inside(&range)
            .map(|p| {
                let part = p.range.start.max(range.start)..p.range.end.min(range.end);
                let byte = p.file_byte(part.start);
                (byte..byte + part.len() as u64, part)
            })
            .collect();
        let mut result = Ok(());
        for (bytes, part) in parts {
            result = self.zap_addresses(part, bytes.start);
            if result.is_err() {
                break;
            }
            state.poisoned.retain(|byte| !bytes.contains(byte));
        }
        drop(state);
        drop(changing);
        result
    }

    /// A thread waits at an address to store, in a shared mapping: so the kernel lets it, whatever we know. mprotect(2) by its number, or
    /// pkey_mprotect(2), has changed that; a store to a file that may not be stored to is refused all the same.
    pub fn note_store_at(&self, addr: usize) {
        let is_new = |p: &super::pieces::Piece| p.range.contains(&addr) && !p.is_writable();
        if !self.may_write || !self.read().pieces.iter().any(is_new) {
            return;
        }
        if let Some(piece) = self.write().pieces.iter_mut().find(|p| is_new(p)) {
            piece.stores = true;
        }
    }

    /// Forgets addresses that are nothing of the mapping any more: the program unmapped them, or put something else there, without a word
    /// to us. Each is looked at again, with nothing under way.
    pub(super) fn forget_gone(&self, gone: Vec<Range<usize>>) {
        let mut changing = self.change();
        for range in gone {
            let whole = |state: &State| state.inside(&range).any(|p| !p.busy && is_inside(&range, &p.range));
            // A window is no part of the memory file's mapping, and is not gone.
            let shows_device = self.bytes_at(&range).iter().any(|bytes| !changing.inside(bytes).is_empty());
            // What has moved there, and is not followed yet, is not gone.
            let _held = self.uffd.hold();
            // SAFETY: a part of this mapping, or nothing that is registered: then nothing is done.
            let there = || unsafe { self.uffd.protect(range.clone(), true) };
            if whole(&self.read()) && !shows_device && matches!(there(), crate::uffd::Outcome::NotMapped) {
                self.forget_windows(&mut changing, &range);
                let mut state = self.write();
                state.take_out(&range);
                self.publish(&mut state);
            }
        }
    }

    /// mremap(2): a part of the mapping gets another length, or another place. Its new address. A move to an address waits until the
    /// reader of messages has seen it: not from that thread.
    ///
    /// # Errors
    /// EINVAL for unaligned or empty ranges, EFAULT when `old` is not all one piece of this mapping; the system's. Then nothing has
    /// changed.
    ///
    /// # Safety
    /// - Nobody uses the part's old addresses again, if it moves or shrinks.
    /// - With [`Target::Fixed`], the addresses from there on for `new_len` bytes are the caller's to replace, and no part of a
    ///   mapping of a memory file ([`Self::vacate`] makes it so).
    pub unsafe fn remap(&self, old: Range<usize>, new_len: usize, target: Target) -> io::Result<usize> {
        aligned(&old)?;
        aligned(&(0..new_len))?;
        if old.is_empty() || new_len == 0 {
            return Err(Errno::INVAL.into());
        }
        if !self.read().inside(&old).any(|p| p.range.start <= old.start && old.end <= p.range.end) {
            return Err(Errno::FAULT.into());
        }
        if new_len <= old.len() && !matches!(target, Target::Fixed(_)) {
            // SAFETY: the caller's promise.
            unsafe { self.unmap(old.start + new_len..old.end) }?;
            self.resized(&old, old.start, new_len);
            return Ok(old.start);
        }
        if let Target::Fixed(addr) = target {
            // SAFETY: the caller's promise.
            return unsafe { self.move_to(&old, new_len, addr) };
        }
        match self.grow(&old, new_len) {
            Err(_) if target == Target::Anywhere => {}
            done => return done,
        }
        let byte = self.read().inside(&old).next().map_or(0, |piece| piece.file_byte(old.start));
        let reserved = reserve(new_len, byte)?;
        // SAFETY: the addresses were reserved just now; the caller's promise.
        let moved = unsafe { self.move_to(&old, new_len, reserved) };
        if moved.is_err() {
            // SAFETY: a failed move changes nothing: they are still what was reserved.
            let _ = unsafe { munmap(ptr::with_exposed_provenance_mut(reserved), new_len) };
        }
        moved
    }

    /// Makes a piece longer where it is. The kernel sends no message for that.
    fn grow(&self, old: &Range<usize>, new_len: usize) -> io::Result<usize> {
        let mut changing = self.change();
        self.rearm_addresses(&mut changing, old)?;
        let start = ptr::with_exposed_provenance_mut(old.start);
        // SAFETY: a part of this mapping; without a flag it stays where it is, and nothing else is replaced.
        unsafe { mremap(start, old.len(), new_len, MremapFlags::empty()) }?;
        let new = old.start..old.start + new_len;
        {
            // In one step for who adopts addresses: somebody may be there already.
            let _held = self.uffd.hold();
            super::kernel::take_over(&(old.end..new.end), self.id);
            let mut state = self.write();
            state.take_out_idle(&(old.end..new.end));
            if let Some(piece) = state.pieces.iter_mut().find(|p| is_inside(old, &p.range)) {
                piece.range.end = new.end;
            }
            self.publish(&mut state);
        }
        self.resized(old, new.start, new_len);
        // Somebody may have been there between the system call and the tree's change.
        self.uffd.wake(old.end..new.end);
        Ok(new.start)
    }

    /// # Safety
    /// As [`Self::remap`].
    unsafe fn move_to(&self, old: &Range<usize>, new_len: usize, addr: usize) -> io::Result<usize> {
        let new = addr..addr.checked_add(new_len).ok_or(Errno::INVAL)?;
        aligned(&new)?;
        let mut changing = self.change();
        self.begin(old);
        let cleared = self.rearm_addresses(&mut changing, old);
        if let Err(error) = cleared {
            self.end(old);
            drop(changing);
            self.uffd.wake(old.clone());
            return Err(error);
        }
        let from = ptr::with_exposed_provenance_mut(old.start);
        let to = ptr::with_exposed_provenance_mut(new.start);
        let own = self.uffd.own_move(old.clone(), new.clone());
        super::kernel::take_over(&new, self.id);
        // SAFETY:
        // - The old addresses are a part of this mapping, which stays what it is while it is busy.
        // - What is at the new ones, and who still uses either, is the caller's promise.
        let result = unsafe { mremap_fixed(from, old.len(), new_len, MremapFlags::MAYMOVE, to) };
        if result.is_ok() {
            let mut state = self.write();
            state.take_out_idle(&new);
            if let Some(piece) = state.pieces.iter_mut().find(|p| p.range == *old) {
                piece.range = new.clone();
            }
        }
        self.end(if result.is_ok() { &new } else { old });
        drop(own);
        drop(changing);
        if result.is_ok() {
            self.resized(old, new.start, new_len);
            self.uffd.wake(new.clone());
        }
        self.uffd.wake(old.clone());
        result?;
        Ok(new.start)
    }

    /// Keeps what the owner says of a mapping that was remapped whole.
    fn resized(&self, old: &Range<usize>, start: usize, len: usize) {
        if old.start == self.start.load(Ordering::Acquire) && old.len() == self.len.load(Ordering::Acquire) {
            self.start.store(start, Ordering::Release);
            self.len.store(len, Ordering::Release);
        }
    }

    /// Marks what is in the range busy: the parts. No ioctl on them is under way any more.
    fn begin(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut state = self.write();
        state.cut(range);
        state.set_busy(range, true);
        self.publish(&mut state);
        state.inside(range).map(|p| p.range.clone()).collect()
    }

    /// Ends what [`Self::begin`] began.
    fn end(&self, range: &Range<usize>) {
        let mut state: std::sync::RwLockWriteGuard<'_, State> = self.write();
        state.set_busy(range, false);
        self.publish(&mut state);
    }
}

fn is_inside(inner: &Range<usize>, outer: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn aligned(range: &Range<usize>) -> io::Result<()> {
    let page = page_size();
    let fine = range.start.is_multiple_of(page) && range.end.is_multiple_of(page) && range.start <= range.end;
    if fine { Ok(()) } else { Err(Errno::INVAL.into()) }
}

/// Bytes of a huge page.
pub(super) const HUGE: usize = 2 << 20;

/// Addresses that nothing else will get, for `len` bytes of a file from byte `offset` on, a multiple of the system's page. Where a huge
/// page fits in, bytes of the file that are a huge page are one of the address space.
pub(super) fn reserve(len: usize, offset: u64) -> io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let spare = if len < HUGE { 0 } else { HUGE };
    let whole = len.checked_add(spare).ok_or(Errno::NOMEM)?;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let base =
        unsafe { mmap_anonymous(ptr::null_mut(), whole, ProtFlags::empty(), flags) }?.expose_provenance();
    if spare == 0 {
        return Ok(base);
    }
    let before = (offset as usize).wrapping_sub(base) % HUGE;
    let start = base + before;
    for (at, len) in [(base, before), (start + len, spare - before)] {
        if len > 0 {
            // SAFETY: a part of what was mapped just now, which nobody else knows of.
            unsafe { munmap(ptr::with_exposed_provenance_mut(at), len) }?;
        }
    }
    Ok(start)
}
