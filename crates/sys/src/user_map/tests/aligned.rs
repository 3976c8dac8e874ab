//! Where large mappings lie.

use std::sync::Arc;

use super::{PAGE, Rig, rig, shared};
use crate::MemFile;
use crate::user_map::{MapRequest, Target, UserMap};

const HUGE: usize = 2 << 20;

fn map(rig: &Rig, file: &Arc<MemFile>, offset: usize, len: usize, hint: usize) -> UserMap {
    let request = MapRequest { offset: offset as u64, len, hint, ..shared(1) };
    UserMap::new(&rig.uffd, file, UserMap::new_id(), &request).expect("a mapping")
}

#[test]
fn huge_pages_of_a_file_are_huge_pages_of_a_large_mapping() {
    let Some(rig) = rig(false) else { return };
    let file = MemFile::new("large", PAGE).expect("a memory file");
    file.resize(8 * HUGE as u64).expect("resize");
    // The system's own choice would be right now and then; so one after the other, with something of odd size between them.
    let mut kept = Vec::new();
    for (offset, len) in [
        (0, HUGE),
        (0, HUGE + PAGE),
        (3 * PAGE, HUGE),
        (HUGE - PAGE, 3 * HUGE + 5 * PAGE),
        (HUGE, 2 * HUGE),
        (5 * PAGE, HUGE),
    ] {
        let large = map(&rig, &file, offset, len, 0);
        assert_eq!((large.as_ptr().addr().wrapping_sub(offset)) % HUGE, 0, "{len} bytes from {offset} on");
        let small = map(&rig, &file, offset, HUGE - PAGE, 0);
        kept.push((large, small));
    }
    // A program that says where gets it there, and one that moves a mapping gets it aligned again.
    let (large, small) = kept.swap_remove(2);
    let place = small.as_ptr().addr();
    drop((small, large));
    let asked = map(&rig, &file, 0, HUGE - PAGE, place);
    assert_eq!(asked.as_ptr().addr(), place);
    let at = asked.as_ptr().addr();
    // SAFETY: nobody uses the old addresses.
    let moved = unsafe { asked.pages().remap(at + PAGE..at + 2 * PAGE, 3 * HUGE, Target::Anywhere) };
    assert_eq!(moved.expect("move").wrapping_sub(PAGE) % HUGE, 0);
}
