//! Mappings, with a test in the place of the handler.

mod aligned;
mod meanwhile;
mod moved;
mod unsaid;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::{self, JoinHandle};

use super::{MapRequest, Protection, Target, UserMap};
use crate::{MemFile, Message, Uffd, bell, user_memory};

const PAGE: usize = 4096;
const EFAULT: i32 = 14;

/// A descriptor, its reader, and a file of 64 pages.
struct Rig {
    uffd: Arc<Uffd>,
    file: Arc<MemFile>,
    faults: mpsc::Receiver<Seen>,
    bell: Arc<OwnedFd>,
    reader: Option<JoinHandle<()>>,
    /// Addresses that one test unmaps are others' to get: who looks at what is left there is alone.
    _turn: Turn,
}

static TURN: RwLock<()> = RwLock::new(());

/// Held until the test ends.
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Turn {
    fn shared() -> Self {
        Self::Shared { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Self {
        Self::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    addr: usize,
    write: bool,
    thread: u32,
}

/// Needs a userfaultfd; with `kernel`, one that serves system calls.
fn rig(kernel: bool) -> Option<Rig> {
    rig_in(Turn::shared(), kernel)
}

fn rig_in(turn: Turn, kernel: bool) -> Option<Rig> {
    rig_of(turn, kernel, |_| ())
}

/// With a descriptor that was made another one.
fn rig_of(turn: Turn, kernel: bool, make: impl FnOnce(&mut Uffd)) -> Option<Rig> {
    match Uffd::open().map(|mut uffd| {
        make(&mut uffd);
        uffd
    }) {
        Ok(uffd) if kernel && !uffd.handles_kernel_faults() => {
            println!("skipped: no userfaultfd that serves faults in system calls");
            None
        }
        Ok(uffd) => Some(Rig::over(uffd, turn)),
        Err(error) => {
            println!("skipped: no userfaultfd: {error}");
            None
        }
    }
}

impl Rig {
    fn over(uffd: Uffd, turn: Turn) -> Self {
        let uffd = Arc::new(uffd);
        let file = MemFile::new("test", PAGE).expect("a memory file");
        file.resize(64 * PAGE as u64).expect("resize");
        let bell = Arc::new(bell::new().expect("a bell"));
        let (sender, faults) = mpsc::channel();
        let reader = {
            let (uffd, bell) = (Arc::clone(&uffd), Arc::clone(&bell));
            thread::spawn(move || read_all(&uffd, &bell, &sender))
        };
        Self { uffd, file, faults, bell, reader: Some(reader), _turn: turn }
    }

    fn map(&self, request: MapRequest) -> UserMap {
        UserMap::new(&self.uffd, &self.file, UserMap::new_id(), &request).expect("a mapping")
    }

    fn fill(&self, pages: Range<u32>, byte: u8) {
        for page in pages {
            self.file.page(page).expect("memory").mem().copy_from(0, &[byte; PAGE]);
        }
    }

    fn byte(&self, page: u32) -> u8 {
        let mut byte = [0];
        self.file.page(page).expect("memory").mem().copy_to(0, &mut byte);
        byte[0]
    }

    /// The next fault; its page in `map`, and whether it stores.
    fn fault(&self, map: &UserMap) -> (u32, bool) {
        let seen = self.faults.recv().expect("the reader runs");
        let place = user_memory::find(seen.addr).expect("an address of ours");
        assert_eq!(place.map, map.pages().id());
        assert_ne!(seen.thread, crate::thread_number());
        (place.page, seen.write)
    }

    /// Where the next fault is, if it still is anywhere.
    fn place(&self) -> Option<user_memory::UserPlace> {
        user_memory::find(self.faults.recv().expect("the reader runs").addr)
    }

    /// Answers the next fault by showing its page.
    fn serve(&self, map: &UserMap) -> (u32, bool) {
        let (page, write) = self.fault(map);
        map.pages().install(page..page + 1, write).expect("install");
        map.pages().wake(page..page + 1);
        (page, write)
    }

    fn assert_quiet(&self) {
        assert_eq!(self.faults.try_recv().ok(), None, "a fault that nothing calls for");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        bell::ring(&self.bell);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader");
        }
    }
}

fn read_all(uffd: &Uffd, bell: &Arc<OwnedFd>, to: &mpsc::Sender<Seen>) {
    let mut messages = Vec::new();
    while !bell::wait(uffd, bell, None).expect("wait") {
        // Possibly none: who was to be reported was woken meanwhile.
        uffd.read(&mut messages).expect("read");
        for message in messages.drain(..) {
            if let Message::Fault { addr, write, thread } = message {
                let _ = to.send(Seen { addr, write, thread });
            }
        }
    }
}

fn shared(pages: usize) -> MapRequest {
    MapRequest {
        offset: 0,
        len: pages * PAGE,
        protection: Protection::READ_WRITE,
        shared: true,
        may_write: true,
        sync: false,
        hint: 0,
    }
}

fn private(pages: usize) -> MapRequest {
    MapRequest { shared: false, may_write: false, ..shared(pages) }
}

/// What a thread of its own loads.
fn load<'s>(
    scope: &'s thread::Scope<'s, '_>,
    map: &'s UserMap,
    page: usize,
) -> thread::ScopedJoinHandle<'s, u8> {
    scope.spawn(move || {
        let mut byte = [0];
        map.copy_out(page * PAGE, &mut byte).expect("may load");
        byte[0]
    })
}

fn store<'s>(
    scope: &'s thread::Scope<'s, '_>,
    map: &'s UserMap,
    page: usize,
    byte: u8,
) -> thread::ScopedJoinHandle<'s, ()> {
    scope.spawn(move || map.copy_in(page * PAGE, &[byte]).expect("may store"))
}

/// What write(2) to a pipe makes of one byte at an address: the kernel's own access, which fails instead of killing.
fn look(addr: usize) -> io::Result<u8> {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    // SAFETY: the length is 1, and the kernel alone looks at the address, which may be anything.
    let done =
        unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&write), addr as *const libc::c_void, 1) };
    if done != 1 {
        return Err(io::Error::last_os_error());
    }
    let mut byte = [0];
    rustix::io::read(&read, &mut byte).expect("read the pipe");
    Ok(byte[0])
}

fn is_fault(result: &io::Result<u8>) -> bool {
    result.as_ref().is_err_and(|e| e.raw_os_error() == Some(EFAULT))
}

#[test]
fn absent_unmapped_and_protected_pages_are_faults() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(shared(4));
    thread::scope(|s| {
        // Absent.
        let loading = load(s, &map, 1);
        assert_eq!(rig.fault(&map), (1, false));
        rig.fill(1..2, 7);
        map.pages().install(1..2, false).expect("install");
        map.pages().wake(1..2);
        assert_eq!(loading.join().expect("load"), 7);
        // There, not mapped; and then protected.
        rig.fill(2..3, 8);
        let loading = load(s, &map, 2);
        assert_eq!(rig.serve(&map), (2, false));
        assert_eq!(loading.join().expect("load"), 8);
        for page in [1, 2] {
            let storing = store(s, &map, page, 9);
            assert_eq!(rig.serve(&map), (page as u32, true));
            storing.join().expect("store");
            assert_eq!(rig.byte(page as u32), 9);
        }
        // Writable until it is protected again.
        store(s, &map, 1, 10).join().expect("store");
        rig.assert_quiet();
        map.pages().protect(0..4).expect("protect");
        let storing = store(s, &map, 1, 11);
        assert_eq!(rig.serve(&map), (1, true));
        storing.join().expect("store");
        assert_eq!((rig.byte(1), load(s, &map, 2).join().expect("load")), (11, 9));
        // A store to a page that is there and not mapped is one fault.
        rig.fill(3..4, 1);
        let storing = store(s, &map, 3, 2);
        assert_eq!(rig.serve(&map), (3, true));
        storing.join().expect("store");
        rig.assert_quiet();
    });
}

#[test]
fn two_mappings_are_protected_apart() {
    let Some(rig) = rig(false) else { return };
    let (one, two) = (rig.map(shared(2)), rig.map(shared(2)));
    rig.fill(0..2, 1);
    one.pages().install(0..2, true).expect("install");
    two.pages().install(0..2, false).expect("install");
    thread::scope(|s| {
        store(s, &one, 0, 5).join().expect("store");
        rig.assert_quiet();
        let storing = store(s, &two, 0, 6);
        assert_eq!(rig.serve(&two), (0, true));
        storing.join().expect("store");
        one.pages().protect(0..1).expect("protect");
        store(s, &two, 0, 7).join().expect("store");
        rig.assert_quiet();
        let storing = store(s, &one, 0, 8);
        assert_eq!(rig.serve(&one), (0, true));
        storing.join().expect("store");
    });
    assert_eq!(rig.byte(0), 8);
}

/// Minor faults of this thread so far, those that only the kernel sees included.
fn kernel_faults() -> i64 {
    // SAFETY: all zeros are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it is a `rusage` to be written.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(result, 0);
    usage.ru_minflt
}

#[test]
fn a_batch_for_stores_leaves_the_kernel_no_faults() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(shared(64));
    rig.fill(0..64, 1);
    map.pages().install(0..64, false).expect("install");
    map.pages().install(0..64, true).expect("install again");
    let stores = |map: &UserMap| {
        let before = kernel_faults();
        for page in 0..64 {
            map.atomic_u8(page * PAGE).store(2, std::sync::atomic::Ordering::Relaxed);
        }
        kernel_faults() - before
    };
    stores(&map);
    map.pages().protect(0..64).expect("protect");
    map.pages().install(0..64, true).expect("install again");
    assert_eq!(stores(&map), 0);
    // Some are writable, some read-only, some not there.
    map.pages().protect(10..20).expect("protect");
    map.pages().zap(30..40).expect("zap");
    map.pages().install(0..64, true).expect("install again");
    assert_eq!(stores(&map), 0);
    rig.assert_quiet();
    assert!((0..64).all(|page| rig.byte(page) == 2));
}

#[test]
fn what_a_private_mapping_stored_stays_its_own() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(private(4));
    rig.fill(0..4, 1);
    thread::scope(|s| {
        let storing = store(s, &map, 0, 2);
        assert_eq!(rig.serve(&map), (0, true));
        storing.join().expect("store");
        let loading = load(s, &map, 1);
        assert_eq!(rig.serve(&map), (1, false));
        assert_eq!(loading.join().expect("load"), 1);
        store(s, &map, 1, 3).join().expect("store");
        map.pages().install(0..3, true).expect("install");
        map.pages().protect(0..4).expect("protect");
        map.pages().zap(0..4).expect("zap");
        rig.file.discard(0..4).expect("discard");
        let see = |page| load(s, &map, page).join().expect("load");
        assert_eq!((see(0), see(1)), (2, 3));
        rig.assert_quiet();
        // The page that it had not copied went with the file's.
        let loading = load(s, &map, 2);
        assert_eq!(rig.fault(&map), (2, false));
        rig.fill(2..3, 9);
        map.pages().install(2..3, false).expect("install");
        map.pages().wake(2..3);
        assert_eq!(loading.join().expect("load"), 9);
    });
    assert_eq!((rig.byte(0), rig.byte(1)), (0, 0));
}

#[test]
fn a_page_that_is_discarded_is_absent_in_every_mapping() {
    let Some(rig) = rig(false) else { return };
    let maps = [rig.map(shared(2)), rig.map(shared(2)), rig.map(private(2))];
    rig.fill(0..2, 1);
    for map in &maps {
        map.pages().install(0..2, true).expect("install");
    }
    rig.file.discard(0..1).expect("discard");
    for map in &maps {
        let absent = map.pages().install(0..1, false).expect_err("absent");
        assert_eq!(absent.raw_os_error(), Some(EFAULT));
        thread::scope(|s| {
            assert_eq!(load(s, map, 1).join().expect("load"), 1);
            let loading = load(s, map, 0);
            assert_eq!(rig.fault(map), (0, false));
            rig.fill(0..1, 4);
            map.pages().install(0..1, false).expect("install");
            map.pages().wake(0..1);
            assert_eq!(loading.join().expect("load"), 4);
        });
        rig.file.discard(0..1).expect("discard");
    }
}

#[test]
fn poison_is_a_failed_access_until_it_is_healed() {
    let Some(rig) = rig(true) else { return };
    for request in [shared(4), private(4)] {
        let map = rig.map(request);
        rig.file.discard(0..4).expect("discard");
        rig.fill(2..4, 6);
        let base = map.as_ptr().addr();
        thread::scope(|s| {
            let looking = s.spawn(move || look(base));
            assert_eq!(rig.fault(&map), (0, false));
            map.pages().poison(0).expect("poison");
            map.pages().wake(0..1);
            assert!(is_fault(&looking.join().expect("look")));
            assert!(is_fault(&look(base)), "still");
            rig.assert_quiet();
            map.pages().heal(&(0..4));
            let looking = s.spawn(move || look(base));
            assert_eq!(rig.fault(&map), (0, false));
            rig.fill(0..1, 5);
            map.pages().install(0..1, false).expect("install");
            map.pages().wake(0..1);
            assert_eq!(looking.join().expect("look").expect("healed"), 5);
            // Installing heals too. A page that a shared mapping sees is hidden, with what was stored to it.
            map.pages().poison(2).expect("poison");
            assert!(is_fault(&look(base + 2 * PAGE)));
            map.pages().install(2..3, true).expect("install");
            store(s, &map, 2, 7).join().expect("store");
            map.pages().poison(2).expect("poison");
            if map.pages().is_shared() {
                assert!(is_fault(&look(base + 2 * PAGE)));
                map.pages().install(2..3, false).expect("install");
                assert_eq!(look(base + 2 * PAGE).expect("visible"), 7);
                // One that may only be loaded, for which a store was refused.
                map.pages().protect(2..3).expect("protect");
                map.pages().poison(2).expect("poison");
                assert!(is_fault(&look(base + 2 * PAGE)));
                map.pages().install(2..3, true).expect("install");
            }
            map.pages().heal(&(0..4));
            assert_eq!(look(base + 2 * PAGE).expect("visible"), 7);
            rig.assert_quiet();
        });
    }
}

#[test]
fn past_the_end_the_kernel_answers() {
    let Some(rig) = rig(true) else { return };
    let map = rig.map(shared(80));
    rig.fill(63..64, 1);
    map.pages().install(60..70, false).expect_err("absent pages before the end");
    map.pages().install(63..70, false).expect("absent pages past the end are no error");
    let at = |page: usize| map.as_ptr().addr() + page * PAGE;
    assert_eq!(look(at(63)).expect("inside"), 1);
    assert!(is_fault(&look(at(64))));
    rig.assert_quiet();
    assert!(
        map.pages().is_page_past_end(64).expect("stat") && !map.pages().is_page_past_end(63).expect("stat")
    );
    // It grows: the same page is a fault.
    rig.file.resize(65 * PAGE as u64).expect("resize");
    thread::scope(|s| {
        let addr = at(64);
        let looking = s.spawn(move || look(addr));
        assert_eq!(rig.fault(&map), (64, false));
        rig.fill(64..65, 3);
        map.pages().install(64..65, false).expect("install");
        map.pages().wake(64..65);
        assert_eq!(looking.join().expect("look").expect("inside"), 3);
    });
    // And shrinks.
    rig.file.resize(PAGE as u64).expect("resize");
    assert!(is_fault(&look(at(63))));
    rig.assert_quiet();
}

#[test]
fn parts_are_unmapped() {
    let Some(rig) = rig_in(Turn::alone(), true) else { return };
    let map = rig.map(MapRequest { offset: 2 * PAGE as u64, ..shared(8) });
    let base = map.as_ptr().addr();
    rig.fill(0..64, 1);
    map.pages().install(0..64, true).expect("install");
    let page_at = |n: usize| user_memory::find(base + n * PAGE).map(|p| p.page);
    assert_eq!((page_at(0), page_at(7), page_at(8)), (Some(2), Some(9), None));
    // Head, tail, middle.
    for gone in [0..1, 7..8, 3..5] {
        let range = base + gone.start * PAGE..base + gone.end * PAGE;
        // SAFETY: nobody uses that part.
        unsafe { map.pages().unmap(range.clone()) }.expect("unmap");
        assert!(!user_memory::overlaps(range.start, range.len()));
    }
    let left: Vec<Option<u32>> = (0..8).map(page_at).collect();
    assert_eq!(left, [None, Some(3), Some(4), None, None, Some(7), Some(8), None]);
    assert!(user_memory::overlaps(base, 2 * PAGE) && user_memory::overlaps(base + 2 * PAGE + 5, 1));
    assert_eq!(user_memory::maps_in(base + 4 * PAGE..base + 6 * PAGE), [map.pages().id()]);
    for (n, page) in left.iter().enumerate() {
        assert_eq!(look(base + n * PAGE).is_ok(), page.is_some(), "page {n}");
    }
    // The rest works on, over the hole.
    map.pages().protect(0..64).expect("protect");
    map.pages().install(0..64, true).expect("install");
    map.pages().zap(0..64).expect("zap");
    thread::scope(|s| {
        let addr = base + 5 * PAGE;
        let looking = s.spawn(move || look(addr));
        assert_eq!(rig.serve(&map), (7, false));
        assert_eq!(looking.join().expect("look").expect("inside"), 1);
    });
    let id = map.pages().id();
    drop(map);
    // Another test may have the addresses by now.
    assert!(!user_memory::maps_in(base..base + 8 * PAGE).contains(&id));
}

#[test]
fn who_waits_for_a_part_that_goes_is_not_forgotten() {
    let Some(rig) = rig(true) else { return };
    let map = rig.map(shared(4));
    let base = map.as_ptr().addr();
    thread::scope(|s| {
        for whole in [false, true] {
            let looking = s.spawn(move || look(base + PAGE * usize::from(!whole)));
            assert!(!rig.fault(&map).1);
            let range = if whole { base..base + 4 * PAGE } else { base + PAGE..base + 2 * PAGE };
            // SAFETY: the kernel alone uses it.
            unsafe { map.pages().unmap(range) }.expect("unmap");
            assert!(is_fault(&looking.join().expect("look")));
        }
    });
}

#[test]
fn a_moved_mapping_keeps_its_faults() {
    let Some(rig) = rig(true) else { return };
    let map = rig.map(shared(4));
    rig.fill(0..8, 1);
    map.pages().install(0..4, false).expect("install");
    let base = map.as_ptr().addr();
    // Something that is in its way when it grows, so that it must move.
    let place = super::change::reserve(64 * PAGE, 0).expect("addresses");
    // SAFETY: the addresses were reserved just now.
    let there =
        unsafe { map.pages().remap(base..base + 4 * PAGE, 4 * PAGE, Target::Fixed(place)) }.expect("move");
    assert_eq!((there, map.as_ptr().addr()), (place, place));
    assert!(is_fault(&look(base)) && !user_memory::overlaps(base, 4 * PAGE));
    assert_eq!(look(place + 3 * PAGE).expect("there"), 1);
    // SAFETY: nobody else uses it.
    unsafe { map.pages().remap(place..place + 4 * PAGE, 6 * PAGE, Target::InPlace) }.expect_err("no room");
    // SAFETY: as above.
    let there =
        unsafe { map.pages().remap(place..place + 4 * PAGE, 6 * PAGE, Target::Anywhere) }.expect("move");
    assert_eq!((map.as_ptr().addr(), map.len()), (there, 6 * PAGE));
    thread::scope(|s| {
        // What was protected still is, and what is new is absent.
        for page in [2, 5] {
            let storing = store(s, &map, page, 3);
            assert_eq!(rig.serve(&map), (page as u32, true));
            storing.join().expect("store");
        }
        map.pages().protect(0..8).expect("protect");
        let storing = store(s, &map, 5, 4);
        assert_eq!(rig.serve(&map), (5, true));
        storing.join().expect("store");
    });
    // It shrinks, and grows again where it is.
    // SAFETY: nobody uses what goes.
    unsafe { map.pages().remap(there..there + 6 * PAGE, 2 * PAGE, Target::InPlace) }.expect("shrink");
    assert_eq!(map.len(), 2 * PAGE);
    assert!(is_fault(&look(there + 2 * PAGE)));
    // SAFETY: nobody else uses it.
    unsafe { map.pages().remap(there..there + 2 * PAGE, 4 * PAGE, Target::InPlace) }.expect("grow");
    thread::scope(|s| {
        let loading = load(s, &map, 3);
        assert_eq!(rig.serve(&map), (3, false));
        assert_eq!(loading.join().expect("load"), 1);
    });
    // SAFETY: nothing is touched when it is refused.
    let wide = unsafe { map.pages().remap(there..there + 9 * PAGE, 9 * PAGE, Target::Anywhere) };
    assert_eq!(wide.expect_err("more than it has").raw_os_error(), Some(EFAULT));
}

/// At every moment an access of the moved mapping's place is the reservation's (EFAULT), or the file's content: never zeros.
#[test]
fn no_access_meets_an_unregistered_page() {
    let Some(rig) = rig(true) else { return };
    rig.fill(0..1, 9);
    let place = super::change::reserve(PAGE, 0).expect("addresses");
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|s| {
        let watcher = s.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                match look(place) {
                    Ok(byte) => assert_eq!(byte, 9),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(EFAULT)),
                }
            }
        });
        for _ in 0..200 {
            let map = rig.map(shared(1));
            let from = map.as_ptr().addr();
            // SAFETY: the place is reserved for this.
            unsafe { map.pages().remap(from..from + PAGE, PAGE, Target::Fixed(place)) }.expect("move");
            // The watcher comes by.
            while rig.place().is_none_or(|p| p.map != map.pages().id()) {}
            map.pages().install(0..1, false).expect("install");
            map.pages().wake(0..1);
            // SAFETY: who looks there expects anything.
            unsafe { map.pages().vacate(place..place + PAGE) }.expect("vacate");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        watcher.join().expect("the watcher");
    });
}

#[test]
fn protection_is_changed() {
    let Some(rig) = rig(true) else { return };
    rig.fill(0..4, 1);
    let map = rig.map(MapRequest { protection: Protection::READ, ..shared(4) });
    let base = map.as_ptr().addr();
    // Asked for stores, and the program may not: it stays tracked when it may.
    map.pages().install(0..4, true).expect("install");
    assert_eq!(map.copy_in(0, &[1]).expect_err("read-only").raw_os_error(), Some(13));
    map.pages().set_protection(base + PAGE..base + 3 * PAGE, Protection::READ_WRITE).expect("protect");
    thread::scope(|s| {
        let storing = store(s, &map, 1, 2);
        assert_eq!(rig.serve(&map), (1, true));
        storing.join().expect("store");
        // Over pieces with different protection.
        map.pages().install(0..4, true).expect("install");
        store(s, &map, 2, 2).join().expect("store");
        rig.assert_quiet();
        map.pages().protect(0..4).expect("protect");
        let storing = store(s, &map, 2, 3);
        assert_eq!(rig.serve(&map), (2, true));
        storing.join().expect("store");
    });
    assert!(map.copy_in(0, &[1]).is_err() && map.copy_in(3 * PAGE, &[1]).is_err());
    let unwritable = rig.map(MapRequest { protection: Protection::READ, may_write: false, ..shared(1) });
    let at = unwritable.as_ptr().addr();
    let refused = unwritable.pages().set_protection(at..at + PAGE, Protection::READ_WRITE);
    assert_eq!(refused.expect_err("opened for reading").raw_os_error(), Some(13));
}

#[test]
fn bad_requests_are_refused() {
    let Some(rig) = rig(false) else { return };
    let errno = |request: MapRequest| {
        UserMap::new(&rig.uffd, &rig.file, 0, &request).expect_err("bad").raw_os_error().expect("an errno")
    };
    assert_eq!(errno(shared(0)), 22);
    assert_eq!(errno(MapRequest { offset: 100, ..shared(1) }), 22);
    assert_eq!(errno(MapRequest { may_write: false, ..shared(1) }), 13);
    assert_eq!(errno(MapRequest { len: usize::MAX, ..shared(1) }), 12);
    assert_eq!(errno(MapRequest { offset: u64::MAX - 4095, ..shared(1) }), 75);
}

#[test]
fn a_child_has_no_mapping() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(shared(1));
    rig.fill(0..1, 1);
    map.pages().install(0..1, true).expect("install");
    let ptr = map.as_ptr();
    // SAFETY: the child does nothing but one load and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: in the child nothing is mapped there, and the load is the end of it.
        let byte = unsafe { ptr.read_volatile() };
        // SAFETY: ends the process without running anything.
        unsafe { libc::_exit(i32::from(byte)) };
    }
    let mut status = 0;
    // SAFETY: the child's number, and a place for its status.
    let got = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(got, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "status {status:x}");
}

#[test]
fn system_calls_are_served() {
    let Some(rig) = rig(true) else { return };
    let map = rig.map(shared(4));
    let base = map.as_ptr().addr();
    rig.fill(0..4, 4);
    thread::scope(|s| {
        let looking = s.spawn(move || look(base));
        assert_eq!(rig.serve(&map), (0, false));
        assert_eq!(looking.join().expect("look").expect("served"), 4);
        // read(2) into it: one event, missing and store at once.
        let zero = std::fs::File::open("/dev/zero").expect("/dev/zero");
        let reading = s.spawn(move || {
            // SAFETY: two pages of the mapping, which lives on and to which no reference exists.
            unsafe {
                libc::read(
                    std::os::fd::AsRawFd::as_raw_fd(&zero),
                    (base + PAGE) as *mut libc::c_void,
                    2 * PAGE,
                )
            }
        });
        assert_eq!(rig.serve(&map), (1, true));
        assert_eq!(rig.serve(&map), (2, true));
        assert_eq!(reading.join().expect("read"), 2 * PAGE as isize);
    });
    assert_eq!((rig.byte(1), rig.byte(2), rig.byte(3)), (0, 0, 4));
}

#[test]
fn user_mode_only_says_so() {
    let Ok(uffd) = Uffd::user_mode_only() else {
        println!("skipped: no userfaultfd");
        return;
    };
    assert!(!uffd.handles_kernel_faults());
    let rig = Rig::over(uffd, Turn::shared());
    let map = rig.map(shared(2));
    rig.fill(0..2, 4);
    assert!(is_fault(&look(map.as_ptr().addr())));
    rig.assert_quiet();
    thread::scope(|s| {
        let loading = load(s, &map, 0);
        assert_eq!(rig.serve(&map), (0, false));
        assert_eq!(loading.join().expect("load"), 4);
    });
    assert_eq!(look(map.as_ptr().addr()).expect("it is mapped"), 4);
}

#[test]
fn locked_memory_is_zapped_too() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(shared(2));
    rig.fill(0..2, 4);
    map.pages().install(0..2, true).expect("install");
    // SAFETY: locks pages that are in memory anyway.
    if unsafe { libc::mlock(map.as_ptr().cast(), map.len()) } != 0 {
        println!("skipped: mlock: {}", io::Error::last_os_error());
        return;
    }
    map.pages().zap(0..2).expect("zap");
    thread::scope(|s| {
        let loading = load(s, &map, 0);
        assert_eq!(rig.serve(&map), (0, false));
        assert_eq!(loading.join().expect("load"), 4);
    });
}

/// The program splits the kernel's mapping by advice for a part: everything goes on page by page.
#[test]
fn advice_for_a_part_is_no_obstacle() {
    let Some(rig) = rig(false) else { return };
    let map = rig.map(shared(8));
    rig.fill(0..8, 4);
    let middle = map.as_ptr().wrapping_add(3 * PAGE);
    // SAFETY: a part of the mapping, whose content the advice leaves alone.
    let result = unsafe { libc::madvise(middle.cast(), 2 * PAGE, libc::MADV_RANDOM) };
    assert_eq!(result, 0);
    map.pages().install(0..8, false).expect("install");
    map.pages().install(0..8, true).expect("install");
    thread::scope(|s| {
        for page in 0..8 {
            store(s, &map, page, 5).join().expect("store");
        }
        rig.assert_quiet();
        map.pages().protect(0..8).expect("protect");
        for page in 0..8 {
            let storing = store(s, &map, page, 6);
            assert_eq!(rig.serve(&map), (page as u32, true));
            storing.join().expect("store");
        }
    });
}

/// A store is refused: its thread alone gets the signal, as from the kernel, and what the page shows to others stays.
#[test]
fn a_refused_store_is_a_signal_for_its_thread() {
    let Some(rig) = rig(false) else { return };
    crate::bus::count().expect("a handler");
    let map = rig.map(shared(4));
    rig.fill(0..4, 4);
    map.pages().install(0..4, false).expect("install");
    let at = map.as_ptr().addr() + 2 * PAGE;
    thread::scope(|s| {
        let before = crate::bus::counted().count;
        let since = rig.uffd.wakes();
        let storing = store(s, &map, 2, 5);
        let seen = rig.faults.recv().expect("the reader runs");
        assert_eq!((seen.addr, seen.write), (at, true));
        assert_eq!(map.pages().refuse_access(seen.addr, seen.thread, since), super::Refused::Signalled);
        map.pages().wake(2..3);
        // The handler lets it try again.
        assert_eq!(rig.serve(&map), (2, true));
        storing.join().expect("store");
        let got = crate::bus::counted();
        assert_eq!((got.count, got.addr, got.code), (before + 1, at, libc::SI_QUEUE));
        assert_eq!(got.thread, seen.thread);
        // The old message once more: the thread was woken since.
        assert_eq!(map.pages().refuse_access(seen.addr, seen.thread, since), super::Refused::Gone);
        assert_eq!(map.atomic_u8(2 * PAGE).load(std::sync::atomic::Ordering::Relaxed), 5);
    });
    rig.assert_quiet();
}

/// Who cannot be told by a signal still waits.
#[test]
fn a_refused_store_that_no_signal_stops() {
    let Some(rig) = rig(true) else { return };
    let map = rig.map(shared(4));
    rig.fill(0..4, 4);
    map.pages().install(0..4, false).expect("install");
    let base = map.as_ptr().addr();
    thread::scope(|s| {
        // One that blocks the signal.
        let since = rig.uffd.wakes();
        let word = map.atomic_u8(PAGE);
        let storing = s.spawn(move || {
            // SAFETY: a set of signals is plain data, for which zeros are a value.
            let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
            // SAFETY: a set of this thread's.
            unsafe { libc::sigemptyset(&raw mut set) };
            // SAFETY: as above.
            unsafe { libc::sigaddset(&raw mut set, libc::SIGBUS) };
            // SAFETY: this thread's mask alone changes, and nobody wants the old one.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
            word.store(5, std::sync::atomic::Ordering::Relaxed);
        });
        let seen = rig.faults.recv().expect("the reader runs");
        assert_eq!(map.pages().refuse_access(seen.addr, seen.thread, since), super::Refused::Waits);
        map.pages().install(1..2, true).expect("install");
        map.pages().wake(1..2);
        storing.join().expect("store");
        // One in a system call.
        let since = rig.uffd.wakes();
        let zero = std::fs::File::open("/dev/zero").expect("/dev/zero");
        let reading = s.spawn(move || {
            // SAFETY: a page of the mapping, which lives on and to which no reference exists.
            unsafe {
                libc::read(
                    std::os::fd::AsRawFd::as_raw_fd(&zero),
                    (base + 2 * PAGE) as *mut libc::c_void,
                    PAGE,
                )
            }
        });
        let seen = rig.faults.recv().expect("the reader runs");
        assert_eq!(map.pages().refuse_access(seen.addr, seen.thread, since), super::Refused::Waits);
        map.pages().poison(2).expect("poison");
        map.pages().wake(2..3);
        assert_eq!(reading.join().expect("read"), -1);
        map.pages().heal(&(2..3));
    });
    rig.assert_quiet();
}

/// A mapping keeps its descriptor open: without one the kernel would show zeros where the file's content is.
#[test]
fn the_descriptor_outlives_the_mapping() {
    let Some(rig) = rig(true) else { return };
    rig.fill(0..1, 9);
    let uffd = Arc::new(Uffd::open().expect("another one"));
    let weak = Arc::downgrade(&uffd);
    let map = UserMap::new(&uffd, &rig.file, UserMap::new_id(), &shared(1)).expect("a mapping");
    drop(uffd);
    assert!(weak.upgrade().is_some(), "closed under a mapping");
    drop(map);
    assert!(weak.upgrade().is_none(), "a descriptor is left");
    // The mutant: the descriptor goes first, and a load of what the file does not have yet is no fault.
    let uffd = Arc::new(Uffd::open().expect("another one"));
    let map = UserMap::new(
        &uffd,
        &rig.file,
        UserMap::new_id(),
        &MapRequest { offset: 9 * PAGE as u64, ..shared(1) },
    )
    .expect("a mapping");
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    // SAFETY: the number stays a descriptor, of another file.
    let done = unsafe {
        libc::dup2(
            std::os::fd::AsRawFd::as_raw_fd(&null),
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&*uffd)),
        )
    };
    assert!(done >= 0);
    assert_eq!(look(map.as_ptr().addr()).expect("no fault"), 0, "zeros that nobody put there");
    // It ends with the process: nothing can be said to its descriptor any more.
    std::mem::forget(map);
}
