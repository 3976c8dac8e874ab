//! The page's word.

#[cfg(not(feature = "shuttle"))]
mod word {
    use extant_sync::Arc;
    use extant_sys::PagePool;

    use super::super::{Kind, LockedPages, Page, blocks};
    use crate::wait::WaitTable;

    fn page() -> Page {
        Page::new_locked(7, PagePool::new(4096).take())
    }

    #[test]
    fn kinds_do_not_mix() {
        let page = page();
        let kinds = [Kind::Uptodate, Kind::Dirty, Kind::Delayed, Kind::Claimed, Kind::Backed, Kind::InFlight];
        for (i, kind) in kinds.iter().enumerate() {
            page.update(|s| s.with(*kind, i as u8));
        }
        for (i, kind) in kinds.iter().enumerate() {
            assert_eq!(page.state().has(*kind), i as u8);
        }
        page.update(|s| s.without(Kind::Claimed, 0b0011));
        assert_eq!((page.state().has(Kind::Claimed), page.state().has(Kind::Delayed)), (0, 2));
        assert_eq!(blocks(1..3), 0b0110);
        assert_eq!(blocks(0..4), 0b1111);
        assert_eq!(blocks(2..2), 0);
    }

    #[test]
    fn only_idle_clean_unused_pages_are_evicted() {
        let waits = WaitTable::new();
        let page = page();
        assert!(!page.try_lock_for_eviction(), "locked");
        page.unlock(&waits);
        for kind in [Kind::Dirty, Kind::Delayed, Kind::Claimed, Kind::InFlight] {
            page.update(|s| s.with(kind, 2));
            assert!(!page.try_lock_for_eviction(), "{kind:?}");
            page.update(|s| s.without(kind, 2));
        }
        page.touch();
        assert!(!page.try_lock_for_eviction(), "used");
        assert!(page.try_lock_for_eviction(), "unused since");
        assert!(!page.try_lock());
    }

    #[test]
    fn a_detached_page_is_not_handed_out() {
        let waits = WaitTable::new();
        let page = Arc::new(page());
        page.detach();
        page.unlock(&waits);
        assert!(LockedPages::wait_for(page.clone(), &waits).is_none());
        assert!(page.try_lock(), "it was unlocked again");
    }
}

#[cfg(feature = "shuttle")]
mod explore {
    use extant_sync::atomic::{AtomicU32, Ordering};
    use extant_sync::{Arc, model, thread};
    use extant_sys::PagePool;

    use super::super::{LockedPages, Page};
    use crate::wait::WaitTable;

    /// Three operations on one page: the lock excludes, and nobody sleeps for ever.
    #[test]
    fn page_lock_wakes_every_waiter() {
        let scenario = || {
            let waits = Arc::new(WaitTable::new());
            let page = Arc::new(Page::new_locked(0, PagePool::new(4096).take()));
            page.unlock(&waits);
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (waits, page, inside) = (Arc::clone(&waits), Arc::clone(&page), Arc::clone(&inside));
                    thread::spawn(move || {
                        for _ in 0..2 {
                            let _locked =
                                LockedPages::wait_for(Arc::clone(&page), &waits).expect("in the index");
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            for t in threads {
                t.join().expect("no panic inside");
            }
        };
        model::check_random(scenario, 2000);
        model::check_pct(scenario, 1000, 3);
    }
}
