//! How long a look in vain counts.

use std::time::Duration;

use super::{PAUSE, Pause};

#[test]
fn a_look_in_vain_counts_for_a_while_and_for_a_few_more_pages() {
    let pause = Pause::default();
    assert!(!pause.holds(10, 800), "nobody has looked");
    let start = Duration::from_secs(5);
    pause.begin_at(10, start);
    let at = |over, after| pause.holds_at(over, 800, start + after);
    assert!(at(10, Duration::ZERO) && at(110, PAUSE - Duration::from_millis(1)));
    assert!(!at(111, Duration::ZERO), "many have come");
    assert!(!at(10, PAUSE), "it is long ago");
    pause.begin_at(790, start);
    assert!(at(800, Duration::ZERO));
    assert!(!at(801, Duration::ZERO), "twice the limit is the most");
}
