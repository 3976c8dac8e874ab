//! Which pages a look speaks for.

use extant_sys::transfers::UnderWay::{self, Nothing, Perhaps, ThreadsRun};

use super::{Before, Looks};

/// What each look says that begins at a time.
fn looks(looks: &[(u64, UnderWay)]) -> Vec<Before> {
    let mut all = Looks::default();
    looks.iter().map(|(ms, seen)| all.note(*seen, *ms)).collect()
}

#[test]
fn one_look_at_running_threads_speaks_for_what_is_old_alone() {
    assert_eq!(looks(&[(60_000, ThreadsRun), (60_999, ThreadsRun)]), [30_000, 30_999]);
    let broken = [(60_000, ThreadsRun), (60_500, Perhaps), (61_000, ThreadsRun), (61_999, ThreadsRun)];
    assert_eq!(looks(&broken), [30_000, 30_500, 31_000, 31_999]);
}

#[test]
fn two_a_second_apart_speak_for_what_was_written_before_the_first() {
    assert_eq!(looks(&[(60_000, ThreadsRun), (61_000, ThreadsRun)]), [30_000, 60_000]);
    // Looks in between change nothing, and it goes on.
    let many: Vec<_> = (0..=30).map(|n| (60_000 + 100 * n, ThreadsRun)).collect();
    let said = looks(&many);
    assert_eq!((said[9], said[10], said[19], said[20], said[30]), (30_900, 60_000, 60_000, 61_000, 62_000));
    // One that has seen nothing has seen no more than threads that run.
    assert_eq!(looks(&[(60_000, Nothing), (61_000, ThreadsRun)]), [Before::MAX, 60_000]);
    // Long ago is no less than half a minute.
    assert_eq!(looks(&[(60_000, ThreadsRun), (100_000, ThreadsRun)]), [30_000, 70_000]);
}

/// A look that began before one that has seen more is noted after it.
#[test]
fn looks_that_are_noted_late_do_not_count() {
    let late = [(60_500, Perhaps), (60_000, ThreadsRun), (61_000, ThreadsRun), (62_000, ThreadsRun)];
    assert_eq!(looks(&late)[2..], [31_000, 61_000]);
    let late = [(61_000, ThreadsRun), (60_000, ThreadsRun), (61_500, ThreadsRun)];
    assert_eq!(looks(&late), [31_000, 30_000, 31_500]);
}
