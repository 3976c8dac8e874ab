//! mremap(2) by an instruction of the program's own, and memory that it puts in a mapping's place: nobody waits for ever, no store is lost, and
//! what is somebody else's stays.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use super::{PAGE, Rig, Turn, is_fault, look, private, shared};
use crate::user_memory;
use crate::vma::{FileId, Maps};
use crate::{Uffd, UserMap, UserPages};

/// Alone: what one test moves and unmaps leaves addresses that others get.
fn rig() -> Option<Rig> {
    super::rig_in(Turn::alone(), true)
}

/// mremap(2) of pages at an address; where they are then.
pub(super) fn mremap(from: usize, pages: usize, new_pages: usize, flags: i32, to: usize) -> usize {
    // SAFETY: memory of this test, to which no reference exists; the new place, if named, was reserved by it.
    let at = unsafe {
        libc::mremap(
            std::ptr::with_exposed_provenance_mut(from),
            pages * PAGE,
            new_pages * PAGE,
            flags,
            std::ptr::with_exposed_provenance_mut::<libc::c_void>(to),
        )
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    at.expose_provenance()
}

pub(super) fn reserve(pages: usize) -> usize {
    super::super::change::reserve(pages * PAGE, 0).expect("addresses")
}

/// Other memory in place of what is at an address, full of `byte`.
pub(super) fn replace(at: usize, pages: usize, byte: u8) {
    let start = std::ptr::with_exposed_provenance_mut::<u8>(at);
    // SAFETY: addresses of this test, to which no reference exists.
    let got = unsafe {
        libc::mmap(
            start.cast(),
            pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_eq!(got.addr(), at);
    // SAFETY: memory made just now.
    unsafe { std::ptr::write_bytes(start, byte, pages * PAGE) };
}

pub(super) fn unmap(at: usize, pages: usize) {
    // SAFETY: memory of this test, which does not use it any more.
    assert_eq!(unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), pages * PAGE) }, 0);
}

pub(super) fn word(at: usize) -> &'static AtomicU8 {
    // SAFETY: memory of this test, which is there as long as it looks.
    unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(at)) }
}

/// Answers faults as a server does until `thread` is done, and gives what it said. Told are the pages and whether it was a store; one may
/// be told twice.
fn answer<T>(rig: &Rig, map: &UserMap, thread: ScopedJoinHandle<'_, T>) -> (T, Vec<(u32, bool)>) {
    let mut met = Vec::new();
    while !thread.is_finished() {
        let Ok(seen) = rig.faults.try_recv() else {
            thread::yield_now();
            continue;
        };
        let Some(place) = user_memory::find(seen.addr).filter(|place| place.map == map.pages().id()) else {
            UserPages::look_for(&rig.uffd, seen.addr).expect("look");
            continue;
        };
        map.pages().install(place.page..place.page + 1, seen.write).expect("install");
        map.pages().wake(place.page..place.page + 1);
        met.push((place.page, seen.write));
    }
    (thread.join().expect("an access"), met)
}

/// Stores at an address, which is a fault at a page of the file.
fn store_meets(rig: &Rig, map: &UserMap, at: usize, page: u32, byte: u8) {
    let met = thread::scope(|s| answer(rig, map, s.spawn(move || word(at).store(byte, Ordering::Relaxed))).1);
    assert!(met.contains(&(page, true)), "{met:?}");
    assert_eq!(rig.byte(page), byte);
}

/// Loads from an address, which is a fault at a page of the file.
pub(super) fn load_meets(rig: &Rig, map: &UserMap, at: usize, page: u32) -> u8 {
    let load = move || word(at).load(Ordering::Relaxed);
    let (byte, met) = thread::scope(|s| answer(rig, map, s.spawn(load)));
    assert!(met.contains(&(page, false)), "{met:?}");
    byte
}

/// Whether the kernel has the file mapped at an address. Others may get addresses that were given up.
fn shows_file(rig: &Rig, at: usize) -> bool {
    let id = FileId::of(&rustix::fs::fstat(&rig.file).expect("stat"));
    let vma = rig.uffd.maps().expect("/proc").covering(at).expect("an answer");
    vma.is_some_and(|vma| vma.file == id)
}

/// What was moved is the mapping's: pages are served, writeback takes the right to store away there, a zap takes them away there, and it goes
/// with the mapping.
#[test]
fn what_the_program_moves_is_followed() {
    let Some(rig) = rig() else { return };
    rig.fill(0..8, 4);
    let map = rig.map(shared(8));
    let base = map.as_ptr().addr();
    map.pages().install(0..4, true).expect("install");
    let place = reserve(8);
    // A part, then all that is left.
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(mremap(base, 2, 2, fixed, place), place);
    map.pages().protect(0..8).expect("protect");
    assert!(!user_memory::overlaps(base, 2 * PAGE) && user_memory::overlaps(place, 2 * PAGE));
    store_meets(&rig, &map, place + PAGE, 1, 5);
    store_meets(&rig, &map, base + 2 * PAGE, 2, 5);
    assert_eq!(mremap(base + 2 * PAGE, 6, 6, fixed, place + 2 * PAGE), place + 2 * PAGE);
    map.pages().protect(0..8).expect("protect");
    store_meets(&rig, &map, place + 2 * PAGE, 2, 6);
    store_meets(&rig, &map, place + 7 * PAGE, 7, 6);
    map.pages().zap(0..8).expect("zap");
    assert_eq!(load_meets(&rig, &map, place + 7 * PAGE, 7), 6);
    drop(map);
    assert!(!shows_file(&rig, place) && !shows_file(&rig, place + 7 * PAGE), "left behind");
}

/// A mapping that was moved whole says where it is.
#[test]
fn a_mapping_that_was_moved_whole_says_where_it_is() {
    let Some(rig) = rig() else { return };
    rig.fill(0..2, 4);
    for request in [shared(2), private(2)] {
        let map = rig.map(request);
        let place = reserve(2);
        mremap(map.as_ptr().addr(), 2, 2, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place);
        // The message was read when the call came back; that it was followed is waited for.
        map.pages().zap(0..1).expect("zap");
        rig.uffd.catch_up();
        assert_eq!(map.as_ptr().addr(), place);
        assert_eq!(load_meets(&rig, &map, place + PAGE, 1), 4);
    }
}

/// What the kernel tells nobody of is found at the first access: growth in place, what a move makes longer, and the old place of one that
/// leaves it.
#[test]
fn what_nobody_was_told_of_is_found() {
    let Some(rig) = rig() else { return };
    rig.fill(0..16, 4);
    let map = rig.map(shared(2));
    // Two pages in a place with room for more, unless somebody else has got that by then.
    let room = reserve(8);
    mremap(map.as_ptr().addr(), 2, 2, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, room);
    unmap(room + 2 * PAGE, 6);
    let place = mremap(room, 2, 3, libc::MREMAP_MAYMOVE, 0);
    store_meets(&rig, &map, place + 2 * PAGE, 2, 5);
    let second = reserve(8);
    mremap(place, 3, 5, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, second);
    store_meets(&rig, &map, second + 4 * PAGE, 4, 5);
    store_meets(&rig, &map, second, 0, 5);
    let third = reserve(8);
    let stay = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    mremap(second, 5, 5, stay, third);
    store_meets(&rig, &map, second + PAGE, 1, 6);
    store_meets(&rig, &map, third + 3 * PAGE, 3, 6);
    // All of it is protected.
    map.pages().protect(0..16).expect("protect");
    store_meets(&rig, &map, second + PAGE, 1, 7);
    store_meets(&rig, &map, third + 3 * PAGE, 3, 7);
    store_meets(&rig, &map, third + 4 * PAGE, 4, 7);
    drop(map);
    for left in [second + PAGE, third, third + 4 * PAGE] {
        assert!(!shows_file(&rig, left), "left behind");
    }
}

/// What is left of a mapping that is gone is SIGBUS (here EFAULT), and not a wait.
#[test]
fn what_is_left_of_a_mapping_that_is_gone() {
    let Some(rig) = rig() else { return };
    rig.fill(0..2, 4);
    let map = rig.map(shared(2));
    let (base, place) = (map.as_ptr().addr(), reserve(2));
    let stay = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    mremap(base, 2, 2, stay, place);
    rig.uffd.catch_up();
    drop(map);
    assert!(!shows_file(&rig, place) && shows_file(&rig, base), "what goes, what stays");
    thread::scope(|s| {
        let looking = s.spawn(move || look(base));
        let seen = rig.faults.recv().expect("the reader runs");
        assert_eq!((seen.addr, user_memory::find(seen.addr)), (base, None));
        UserPages::look_for(&rig.uffd, seen.addr).expect("look");
        assert!(is_fault(&looking.join().expect("look")));
    });
    unmap(base, 2);
}

/// Memory of somebody else's in a mapping's place: no zap clears it, and it outlives the mapping, with nothing written back in between.
#[test]
fn what_is_somebody_elses_stays() {
    if let Some(rig) = rig() {
        somebody_elses_stays(&rig);
    }
}

/// The same where the kernel does not answer for one address (before Linux 6.11), and the text is read.
#[test]
fn what_is_somebody_elses_stays_as_the_text_says() {
    let with_text = |uffd: &mut Uffd| uffd.set_maps(Some(Maps::as_text().expect("/proc")));
    if let Some(rig) = super::rig_of(Turn::alone(), true, with_text) {
        somebody_elses_stays(&rig);
    }
}

fn somebody_elses_stays(rig: &Rig) {
    rig.fill(0..8, 4);
    let map = rig.map(shared(8));
    let base = map.as_ptr().addr();
    map.pages().install(0..8, false).expect("install");
    replace(base + 3 * PAGE, 2, 9);
    let there = |what: &str| {
        assert_eq!(word(base + 3 * PAGE).load(Ordering::Relaxed), 9, "{what}");
        assert_eq!(word(base + 5 * PAGE - 1).load(Ordering::Relaxed), 9, "{what}");
    };
    // Pages that are visible for loads are shown anew for stores, all at once.
    map.pages().install(0..8, true).expect("install");
    there("installed");
    map.pages().zap(0..8).expect("zap");
    there("zapped");
    store_meets(rig, &map, base + 2 * PAGE, 2, 5);
    store_meets(rig, &map, base + 5 * PAGE, 5, 5);
    drop(map);
    there("dropped");
    assert!(!shows_file(rig, base) && !shows_file(rig, base + 5 * PAGE), "left behind");
    unmap(base + 3 * PAGE, 2);
}

/// A thread that waits where memory is moved away from waits no more.
#[test]
fn who_waits_for_what_moves_away_is_not_forgotten() {
    let Some(rig) = rig() else { return };
    let map = rig.map(shared(1));
    let (base, place) = (map.as_ptr().addr(), reserve(1));
    thread::scope(|s| {
        let looking = s.spawn(move || look(base));
        assert_eq!(rig.faults.recv().expect("the reader runs").addr, base);
        mremap(base, 1, 1, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place);
        assert!(is_fault(&looking.join().expect("look")));
    });
}

/// What was moved just now goes with its mapping, too.
#[test]
fn a_mapping_that_has_just_moved_goes() {
    let Some(rig) = rig() else { return };
    rig.fill(0..1, 4);
    for _ in 0..500 {
        let map = rig.map(shared(1));
        map.pages().install(0..1, false).expect("install");
        let (base, place) = (map.as_ptr().addr(), reserve(1));
        mremap(base, 1, 1, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place);
        drop(map);
        assert!(!shows_file(&rig, place), "left behind");
    }
}

/// A page that is protected is not stored to, wherever it is moved to meanwhile.
#[test]
fn no_store_escapes_while_a_page_moves() {
    let Some(rig) = rig() else { return };
    rig.fill(0..1, 0);
    let map = rig.map(shared(1));
    let places = [reserve(1), reserve(1)];
    let start = map.as_ptr().addr();
    let (locked, stop, pages, file) = (Mutex::new(()), AtomicBool::new(false), map.pages(), &rig.file);
    let byte = || {
        let mut byte = [0];
        file.page(0).expect("memory").mem().copy_to(0, &mut byte);
        byte[0]
    };
    thread::scope(|s| {
        let moving = s.spawn(|| {
            let mut at = start;
            for n in 0..5_000_usize {
                let to = places[n % 2];
                at = mremap(at, 1, 1, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to);
                word(at).store(n as u8, Ordering::Release);
            }
            stop.store(true, Ordering::Release);
        });
        let watching = s.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let _page = locked.lock().expect("no panic");
                pages.protect(0..1).expect("protect");
                let before = byte();
                (0..20).for_each(|_| thread::yield_now());
                assert_eq!(byte(), before, "a store to a protected page");
            }
        });
        while !moving.is_finished() && !watching.is_finished() {
            let Ok(seen) = rig.faults.try_recv() else {
                thread::yield_now();
                continue;
            };
            let Some(place) = user_memory::find(seen.addr) else {
                UserPages::look_for(&rig.uffd, seen.addr).expect("look");
                continue;
            };
            // As a server does: what is shown for stores is dirty, under the page's lock.
            let _page = locked.lock().unwrap_or_else(PoisonError::into_inner);
            pages.install(place.page..place.page + 1, seen.write).expect("install");
            pages.wake(place.page..place.page + 1);
        }
        // Whoever still stores is let go.
        while !moving.is_finished() {
            pages.install(0..1, true).expect("install");
            pages.wake(0..1);
        }
        watching.join().expect("nothing was stored");
    });
}

/// What is somebody else's may be another mapping of ours: the addresses are that one's from then on.
#[test]
fn addresses_are_those_of_the_mapping_that_came_last() {
    let Some(rig) = rig() else { return };
    rig.fill(0..8, 4);
    let first = rig.map(shared(8));
    let base = first.as_ptr().addr();
    first.pages().install(0..8, true).expect("install");
    let second = rig.map(shared(2));
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mremap(second.as_ptr().addr(), 2, 2, fixed, base + 2 * PAGE);
    rig.uffd.catch_up();
    let of = |page: usize| user_memory::find(base + page * PAGE).map(|place| (place.map, place.page));
    let (one, two) = (first.pages().id(), second.pages().id());
    assert_eq!(
        [of(1), of(2), of(3), of(4)],
        [Some((one, 1)), Some((two, 0)), Some((two, 1)), Some((one, 4))]
    );
    drop(first);
    store_meets(&rig, &second, base + 3 * PAGE, 1, 5);
    drop(second);
    assert!(!shows_file(&rig, base + 3 * PAGE), "left behind");
}
