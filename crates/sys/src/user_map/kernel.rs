//! What the kernel says of a mapping, against our books: memory that the program moved, grew, unmapped or replaced by calls that nobody here
//! was told of.
//!
//! A move is a message of the kernel's, and is followed by the reader before anybody sees the next message ([`follow`]). Growth in place,
//! what a move makes longer, and the old place of a move that leaves it (MREMAP_DONTUNMAP) are no messages: the first access there is a
//! fault at an address that is nobody's, and [`UserPages::look_for`] asks the kernel whose it is. Of memory that went there is no
//! message either: who is about to take pages away, or to unmap, asks what is still there, and who comes to addresses takes them
//! over ([`take_over`]).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

use super::device::Windows;
use super::pieces::Piece;
use super::{Protection, UserPages};
use crate::uffd::Outcome;
use crate::user_memory;
use crate::vma::Vma;
use crate::{Uffd, vma};

/// All mappings that are there, by number.
static ALL: RwLock<BTreeMap<u64, Weak<UserPages>>> = RwLock::new(BTreeMap::new());

fn find(id: u64) -> Option<Arc<UserPages>> {
    ALL.read().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
}

/// From now on the mapping is found by its number.
pub(super) fn add(pages: &Arc<UserPages>) {
    let weak = Arc::downgrade(pages);
    ALL.write().unwrap_or_else(PoisonError::into_inner).insert(pages.id, weak);
}

pub(super) fn remove(id: u64) {
    let gone = ALL.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    drop(gone);
}

/// Memory has moved, and nobody here did that. By the reader of messages.
pub(crate) fn follow(uffd: &Uffd, from: &Range<usize>, to: usize) {
    let new = to..to + from.len();
    for pages in user_memory::maps_in(from.clone()).into_iter().filter_map(find) {
        if std::ptr::eq(&raw const *pages.uffd, uffd) {
            take_over(&new, pages.id);
            pages.has_moved(from, &new);
        }
    }
}

/// These addresses are another mapping's now: what others had there has gone, or they would not be to be had. A part that is being changed
/// is left to who does that.
pub(super) fn take_over(range: &Range<usize>, id: u64) {
    let others = user_memory::maps_in(range.clone()).into_iter().filter(|other| *other != id);
    for pages in others.filter_map(find) {
        let mut state = pages.write();
        state.take_out_idle(range);
        pages.publish(&mut state);
    }
}

impl UserPages {
    fn has_moved(&self, from: &Range<usize>, to: &Range<usize>) {
        let mut state = self.write();
        let parts: Vec<Piece> = {
            state.cut(from);
            let (moved, left) = std::mem::take(&mut state.pieces)
                .into_iter()
                .partition(|p| !p.busy && from.start <= p.range.start && p.range.end <= from.end);
            state.pieces = left;
            moved
        };
        // What the mapping itself had there was replaced.
        state.take_out_idle(to);
        state.pieces.extend(parts.into_iter().map(|mut piece| {
            let start = piece.range.start - from.start + to.start;
            piece.range = start..start + piece.range.len();
            piece
        }));
        self.publish(&mut state);
        drop(state);
        if from.start == self.start.load(Ordering::Acquire) && from.len() == self.len.load(Ordering::Acquire)
        {
            self.start.store(to.start, Ordering::Release);
        }
        // Whose fault was seen before this was left unanswered, or is answered where the memory is now.
        self.uffd.wake(from.clone());
        self.uffd.wake(to.clone());
    }

    /// Whether one of the kernel's mappings is one of this file, of the same kind.
    fn is_of(&self, vma: &Vma) -> bool {
        self.shared == vma.shared && self.file_id == vma.file
    }

    /// The parts of a range, which shows the file from byte `byte` on by our books, that the kernel has mapped so.
    pub(super) fn still_there(&self, range: &Range<usize>, byte: u64) -> Vec<Range<usize>> {
        self.parts_that(range, |vma, at| {
            self.is_of(vma) && vma.file_byte(at) == byte + (at - range.start) as u64
        })
    }

    /// The same, where a window of the device counts as well.
    pub(super) fn still_shown(
        &self,
        windows: &Windows,
        range: &Range<usize>,
        byte: u64,
    ) -> Vec<Range<usize>> {
        self.parts_that(range, |vma, at| {
            let byte = byte + (at - range.start) as u64;
            self.is_of(vma) && vma.file_byte(at) == byte
                || vma.shared && windows.is_window(byte, vma.file, vma.file_byte(at))
        })
    }

    /// The parts of a range where the kernel's mapping is as wanted; told are it and the part's first address. All of it where that
    /// cannot be told.
    fn parts_that(&self, range: &Range<usize>, wanted: impl Fn(&Vma, usize) -> bool) -> Vec<Range<usize>> {
        let Some(maps) = self.uffd.maps() else { return vec![range.clone()] };
        let mut parts: Vec<Range<usize>> = Vec::new();
        for vma in maps.walk(range.clone()) {
            let Ok(vma) = vma else { return vec![range.clone()] };
            let part = vma.range.start.max(range.start)..vma.range.end.min(range.end);
            if wanted(&vma, part.start) {
                match parts.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => parts.push(part),
                }
            }
        }
        parts
    }

    /// Takes away what is visible in a range that shows the file from byte `byte` on: no memory that the program has put there since.
    pub(super) fn zap_addresses(&self, range: Range<usize>, byte: u64) -> io::Result<()> {
        for part in self.still_there(&range, byte) {
            let start = std::ptr::with_exposed_provenance_mut(part.start);
            // SAFETY:
            // - A part of this mapping: callers hold `state`, under which it stays what it is, and the kernel said so just now.
            // - The file keeps the content; a private mapping's copies are not concerned (see the callers).
            match unsafe { madvise(start, part.len(), Advice::LinuxDontneedLocked) } {
                // The program unmapped it in this moment.
                Ok(()) | Err(Errno::NOMEM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The file that the kernel has mapped at an address.
    pub(super) fn file_at(&self, addr: usize) -> Option<vma::FileId> {
        covering(&self.uffd, addr).ok()?.map(|vma| vma.file)
    }

    /// A thread waits at an address that is in no mapping that is known: the kernel is asked whose it is, and that mapping has it from now
    /// on. Where it is nobody's any more, accesses are SIGBUS. May wait for who changes a mapping: not from the thread that reads
    /// messages.
    ///
    /// # Errors
    /// The system's. Where the kernel cannot be asked at all (there is no `/proc`), accesses of the page are SIGBUS; of what may pass (no
    /// descriptor is free) the thread asks again.
    pub fn look_for(uffd: &Uffd, addr: usize) -> io::Result<()> {
        let page = addr & !(page_size() - 1);
        let done = match Self::find_owner(uffd, addr, page) {
            Err(error) if !is_passing(&error) => refuse_unknown(uffd, addr, page).and(Err(error)),
            done => done,
        };
        uffd.wake(page..page + page_size());
        done
    }

    fn find_owner(uffd: &Uffd, addr: usize, page: usize) -> io::Result<()> {
        let all = all_of(uffd);
        let is_in = |pages: &&Arc<Self>| pages.read().pieces.iter().any(|p| p.range.contains(&addr));
        if let Some(changed) = all.iter().find(is_in) {
            // Whoever changes it holds this until it is done.
            drop(changed.change());
            return Ok(());
        }
        let Some(vma) = covering(uffd, addr)? else { return Ok(()) };
        if uffd.is_own_move(addr) {
            // Who moves it wakes.
            return Ok(());
        }
        let of_file: Vec<&Arc<Self>> = all.iter().filter(|p| p.is_of(&vma)).collect();
        // One that goes on here; one that shows the same bytes; any.
        let bytes = vma.offset..vma.offset + vma.range.len() as u64;
        let goes_on = |p: &&&Arc<Self>| p.read().inside(&vma.range).next().is_some();
        let shows = |p: &&&Arc<Self>| p.read().over(&bytes).next().is_some();
        let owner = of_file.iter().find(goes_on).or_else(|| of_file.iter().find(shows)).or(of_file.first());
        match owner {
            Some(owner) => owner.adopt(addr),
            None => refuse(uffd, addr, page),
        }
    }

    /// Takes addresses that the kernel has mapped for this file, and that nobody is known to have, into the mapping.
    ///
    /// A thread may be at the new place of a move before the reader has read of it: the kernel hands out faults before events. These addresses
    /// are not free but another mapping's, perhaps: with them this one would unmap that one's memory at its end. So all is looked at
    /// and done with the reader held, and nothing while it has something to read (`nobody_adopts_what_another_mapping_moves`). Of new
    /// mappings and of growth ([`UserPages::grow`]) the kernel says something before the books do, which is done with the reader held, too.
    fn adopt(&self, addr: usize) -> io::Result<()> {
        let changing = self.change();
        let held = self.uffd.hold();
        let Some(vma) = covering(self.uffd.as_ref(), addr)? else { return Ok(()) };
        // Looked at after the kernel: who moves something says so before, and until the books have it.
        if self.uffd.is_moving()
            || self.uffd.is_own_move_in(&vma.range)
            || !self.is_of(&vma)
            || find(self.id).is_none()
        {
            return Ok(());
        }
        let protection = Protection { read: vma.read, write: vma.write && self.may_store(), exec: vma.exec };
        self.claim(&mut self.write(), &vma.range, addr, vma.offset, protection);
        drop(held);
        drop(changing);
        // Who waits elsewhere in it has a message of his own.
        Ok(())
    }
}

/// All mappings whose faults are messages of a descriptor.
fn all_of(uffd: &Uffd) -> Vec<Arc<UserPages>> {
    let all = ALL.read().unwrap_or_else(PoisonError::into_inner);
    all.values().filter_map(Weak::upgrade).filter(|p| std::ptr::eq(&raw const *p.uffd, uffd)).collect()
}

fn covering(uffd: &Uffd, addr: usize) -> io::Result<Option<Vma>> {
    let maps: &vma::Maps = uffd.maps().ok_or(Errno::NOENT)?;
    maps.covering(addr)
}

/// Whether what the system could not do now it may do soon.
fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::AGAIN];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Makes accesses of a page SIGBUS that is left of a mapping which is gone.
pub(super) fn refuse(uffd: &Uffd, addr: usize, page: usize) -> io::Result<()> {
    // What was looked at before this may have become a mapping's by now: as in `adopt`.
    let _held = uffd.hold();
    let Some(vma) = covering(uffd, addr)? else { return Ok(()) };
    if all_of(uffd).iter().any(|pages| pages.is_of(&vma)) {
        return Ok(());
    }
    refuse_nobodys(uffd, addr, page, || vma.shared)
}

/// The same where the kernel cannot be asked whose the page is: nobody's, by our books.
fn refuse_unknown(uffd: &Uffd, addr: usize, page: usize) -> io::Result<()> {
    let _held = uffd.hold();
    if all_of(uffd).iter().any(|pages| pages.read().pieces.iter().any(|p| p.range.contains(&addr))) {
        return Ok(());
    }
    // SAFETY: where it is registered for that it is a shared mapping's, and nobody's: the next store is refused.
    let shared = || unsafe { uffd.protect(page..page + page_size(), true) } == Outcome::Done;
    refuse_nobodys(uffd, addr, page, shared)
}

/// Makes accesses of a page SIGBUS, if nobody has got it meanwhile. With the reader held.
fn refuse_nobodys(uffd: &Uffd, addr: usize, page: usize, shared: impl FnOnce() -> bool) -> io::Result<()> {
    if uffd.is_moving() || uffd.is_own_move(addr) || user_memory::find(addr).is_some() {
        return Ok(());
    }
    let part = page..page + page_size();
    if shared() {
        // Visible without the right to store.
        let start = std::ptr::with_exposed_provenance_mut(page);
        // SAFETY: a page of a memory file, which keeps its content; nobody has it but who waits for it.
        let zapped = unsafe { madvise(start, page_size(), Advice::LinuxDontneedLocked) };
        zapped?;
        // SAFETY: what is registered with this descriptor and no mapping's is nobody's.
        let _ = unsafe { uffd.protect(part.clone(), false) };
    }
    // SAFETY: as above.
    match unsafe { uffd.poison(part) } {
        Outcome::Done | Outcome::Part(_) | Outcome::Exists | Outcome::Moving | Outcome::NotMapped => Ok(()),
        other => Err(other.error()),
    }
}
