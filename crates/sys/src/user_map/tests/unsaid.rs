//! What the program does to a mapping by the numbers of system calls, which nobody here is told of; and pieces that become one again.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;

use super::{PAGE, Protection, Target, load, look, private, rig, shared, store};
use crate::user_memory;
use crate::{MapRequest, UserMap};

/// A part of the mapping is replaced by other memory: it is no part of the mapping any more, the rest is protected as before, and what is
/// there now outlives the mapping.
#[test]
fn a_part_that_is_replaced_is_given_up() {
    let Some(rig) = rig(true) else { return };
    rig.fill(0..8, 4);
    let map = rig.map(shared(8));
    map.pages().install(0..8, true).expect("install");
    let middle = map.as_ptr().wrapping_add(3 * PAGE);
    // SAFETY: a part of the mapping, to which no reference exists, is replaced; it is this test's.
    let other = unsafe {
        libc::mmap(
            middle.cast(),
            2 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_eq!(other.addr(), middle.addr());
    map.pages().protect(0..8).expect("protect what is there");
    assert!(!user_memory::overlaps(middle.addr(), 2 * PAGE), "addresses that are somebody else's");
    thread::scope(|s| {
        for page in [2, 5] {
            let storing = store(s, &map, page, 5);
            assert_eq!(rig.serve(&map), (page as u32, true));
            storing.join().expect("store");
        }
    });
    map.pages().protect(0..8).expect("protect");
    drop(map);
    assert_eq!(look(middle.addr()).expect("still there"), 0);
    // SAFETY: made by this test, which does not use it any more.
    assert_eq!(unsafe { libc::munmap(other, 2 * PAGE) }, 0);
}

/// mprotect(2) by its number lets the program store: the store gets its page, and the next writeback takes the right away again.
#[test]
fn stores_that_were_allowed_without_a_word() {
    let Some(rig) = rig(false) else { return };
    rig.fill(0..2, 1);
    let map = rig.map(MapRequest { protection: Protection::READ, ..shared(2) });
    map.pages().install(0..2, false).expect("install");
    // SAFETY: the mapping keeps its place; more may be done there than before.
    let done = unsafe { libc::mprotect(map.as_ptr().cast(), 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE) };
    assert_eq!(done, 0);
    let word = map.atomic_u8(PAGE);
    thread::scope(|s| {
        for byte in [2, 3] {
            let storing = s.spawn(move || word.store(byte, Ordering::Relaxed));
            let seen = rig.faults.recv().expect("the reader runs");
            assert!(seen.write);
            map.pages().note_store_at(seen.addr);
            map.pages().install(1..2, true).expect("install");
            map.pages().wake(1..2);
            storing.join().expect("store");
            assert_eq!(rig.byte(1), byte);
            map.pages().protect(0..2).expect("protect");
        }
    });
    rig.assert_quiet();
}

/// A half is protected and let go again: it is one piece, which can be moved.
#[test]
fn pieces_become_one_again() {
    let Some(rig) = rig(true) else { return };
    rig.fill(0..4, 1);
    let map = rig.map(shared(4));
    let base = map.as_ptr().addr();
    for n in 0..200 {
        let half = base + n % 3 * PAGE..base + 4 * PAGE;
        map.pages().set_protection(half.clone(), Protection::READ).expect("protect");
        map.pages().set_protection(half, Protection::READ_WRITE).expect("protect");
    }
    // SAFETY: nobody else uses it.
    let there = unsafe { map.pages().remap(base..base + 4 * PAGE, 4 * PAGE, Target::Anywhere) };
    assert_eq!(there.expect("one piece, which stays where it is"), base);
    // SAFETY: as above.
    let there = unsafe { map.pages().remap(base..base + 4 * PAGE, 6 * PAGE, Target::Anywhere) };
    assert_eq!(there.expect("one piece"), map.as_ptr().addr());
}

/// MADV_DONTNEED of a private mapping: its own copy goes, and it shows the file.
#[test]
fn a_private_copy_is_dropped() {
    let Some(rig) = rig(false) else { return };
    rig.fill(0..3, 1);
    let map = rig.map(private(3));
    let base = map.as_ptr().addr();
    let see = |map: &UserMap, page: usize| -> io::Result<u8> {
        let mut byte = [0];
        map.copy_out(page * PAGE, &mut byte)?;
        Ok(byte[0])
    };
    map.pages().install(0..3, false).expect("install");
    thread::scope(|s| {
        for page in 0..3 {
            store(s, &map, page, 7).join().expect("store");
        }
    });
    map.pages().drop_copies(base + PAGE..base + 2 * PAGE).expect("drop");
    thread::scope(|s| {
        let loading = load(s, &map, 1);
        assert_eq!(rig.serve(&map), (1, false));
        assert_eq!(loading.join().expect("load"), 1, "the copy is still there");
    });
    assert_eq!((see(&map, 0).expect("load"), see(&map, 2).expect("load"), rig.byte(0)), (7, 7, 1));
    map.pages().drop_copies(base + 1..base + PAGE).expect_err("not aligned");
    rig.assert_quiet();
}
