//! For how long blocks are held.

use std::time::{Duration, Instant};

use extant_sys::transfers::UnderWay::{Nothing, Perhaps, ThreadsRun};

use super::Doubt;
#[cfg(not(feature = "shuttle"))]
use super::{SpaceHope, SpaceWait};
#[cfg(not(feature = "shuttle"))]
use crate::PageCache;

/// What each look says, `ms` after the blocks were taken from the file.
fn looks(looks: &[(u64, extant_sys::transfers::UnderWay)]) -> Vec<bool> {
    let since = Instant::now();
    let mut doubt = Doubt::new(since);
    looks.iter().map(|(ms, seen)| doubt.ends(*seen, since + Duration::from_millis(*ms))).collect()
}

#[test]
fn one_look_at_running_threads_says_nothing() {
    assert_eq!(
        looks(&[
            (0, Perhaps),
            (5_000, ThreadsRun),
            (10_000, Perhaps),
            (15_000, ThreadsRun),
            (15_900, ThreadsRun)
        ]),
        [false; 5]
    );
    assert_eq!(looks(&[(29_500, ThreadsRun)]), [false]);
}

#[test]
fn two_looks_at_running_threads_a_second_apart_do() {
    assert_eq!(looks(&[(0, Perhaps), (5_000, ThreadsRun), (6_000, ThreadsRun)]), [false, false, true]);
    assert_eq!(looks(&[(0, ThreadsRun), (1_000, ThreadsRun)]), [false, true]);
}

#[test]
fn nothing_under_way_ends_it_at_once_and_half_a_minute_whatever_is() {
    assert_eq!(looks(&[(0, Perhaps), (1, Nothing)]), [false, true]);
    assert_eq!(looks(&[(29_999, Perhaps), (30_000, Perhaps)]), [false, true]);
}

/// A look from before says nothing of blocks that were taken from the file after it.
#[test]
fn a_look_from_before_does_not_count() {
    let now = Instant::now();
    let mut doubt = Doubt::new(now + Duration::from_millis(1));
    assert!(!doubt.ends(Nothing, now));
}

/// Blocks can be used before anyone hears of it, and who has looked for space before that hears of it, though none are held any more.
#[cfg(not(feature = "shuttle"))]
#[test]
fn who_looked_before_hears_of_what_ended_since() {
    struct Hold(extant_sync::Arc<PageCache>, u64);
    impl Drop for Hold {
        fn drop(&mut self) {
            assert_eq!(self.0.graces_ended(), self.1, "told too early");
        }
    }
    let device = extant_sync::Arc::new(extant_device::MemoryDevice::new(1 << 20));
    let cache = PageCache::new(device, 4096, crate::CacheConfig::default());
    let mmu = crate::SimMmu::new(4096, 1 << 16).unwrap();
    let (mut wait, seen) = (SpaceWait::default(), cache.graces_ended());
    assert!(wait.begin(&cache) && !wait.begin(&cache));
    assert!(!cache.await_grace(&mut wait), "none are held");
    assert!(cache.may_have_space(&wait));
    cache.add_grace(
        mmu,
        Doubt::new(Instant::now()),
        vec![Box::new(Hold(extant_sync::Arc::clone(&cache), seen))],
        4096,
    );
    assert_eq!(cache.grace_bytes(), 4096);
    assert_eq!((cache.hope_for_space(&mut wait), cache.may_have_space(&wait)), (SpaceHope::Later, false));
    cache.forget_grace();
    assert!(cache.may_have_space(&wait));
    assert!(cache.await_grace(&mut wait));
    assert!(!cache.await_grace(&mut wait));
}
