//! What a thread holds, and the check of the order. Compiled to nothing in release builds.

use std::marker::PhantomData;

use crate::Rank;

/// A rank that this thread holds until the value is dropped. Guards contain one; states that are not mutexes (a
/// page lock, an open handle, a freeze level) enter one themselves.
///
/// It belongs to the thread that made it. A state that moves to another thread drops its token before and makes
/// a new one with [`Held::adopt`] after.
#[must_use = "the rank is held only as long as this value lives"]
pub struct Held {
    #[cfg(debug_assertions)]
    id: u64,
    thread_bound: PhantomData<*const ()>,
}

/// The start of another filesystem instance within one thread, see [`Held::boundary`].
#[must_use = "the boundary stands only as long as this value lives"]
pub struct Boundary {
    _held: Held,
}

impl Held {
    /// Enters `rank`, as a lock that may wait does. `key` orders several of one rank: they must ascend.
    ///
    /// # Panics
    /// In debug builds, when this thread holds anything that must come later, naming both places.
    #[track_caller]
    #[inline]
    pub fn enter(rank: Rank, key: Option<u64>) -> Self {
        check(rank, key);
        Self::adopt(rank, key)
    }

    /// Enters `rank` without a check: the state was got without waiting (a try), or comes from another thread.
    #[track_caller]
    #[inline]
    pub fn adopt(rank: Rank, key: Option<u64>) -> Self {
        #[cfg(debug_assertions)]
        return Self { id: list::push(rank, key), thread_bound: PhantomData };
        #[cfg(not(debug_assertions))]
        {
            let _ = (rank, key);
            Self { thread_bound: PhantomData }
        }
    }

    /// From here on this thread works for another instance of the filesystem, whose device is a file of the first:
    /// its ranks all lie above those held now, so the order starts anew until the boundary is dropped.
    #[track_caller]
    #[inline]
    pub fn boundary() -> Boundary {
        #[cfg(debug_assertions)]
        return Boundary { _held: Self { id: list::push_boundary(), thread_bound: PhantomData } };
        #[cfg(not(debug_assertions))]
        Boundary { _held: Self { thread_bound: PhantomData } }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        list::remove(self.id);
    }
}

/// Checks that this thread may wait for `rank` now, without entering it (waiting for a commit, for writeback).
///
/// # Panics
/// In debug builds, when this thread holds anything that must come later, naming both places.
#[track_caller]
#[inline]
pub(crate) fn check(rank: Rank, key: Option<u64>) {
    #[cfg(debug_assertions)]
    list::check(rank, key, None);
    #[cfg(not(debug_assertions))]
    let _ = (rank, key);
}

/// The same for a lock that is given up and taken again inside one call (a condition variable).
#[track_caller]
#[inline]
pub(crate) fn check_again(rank: Rank, key: Option<u64>, held: &Held) {
    #[cfg(debug_assertions)]
    list::check(rank, key, Some(held.id));
    #[cfg(not(debug_assertions))]
    let _ = (rank, key, held);
}

/// Whether this thread holds `rank`. Always `false` in release builds: for assertions only.
#[must_use]
pub fn holds(rank: Rank) -> bool {
    #[cfg(debug_assertions)]
    return list::holds(rank);
    #[cfg(not(debug_assertions))]
    {
        let _ = rank;
        false
    }
}

/// One thing that a thread holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBy {
    /// Of this taking alone, in the whole process: who sees it twice knows that it was held in between.
    pub id: u64,
    /// What, and where it was taken.
    pub what: String,
}

/// What another thread holds, outermost first; `thread` is its number as the system has it (`gettid`). Empty in release builds,
/// under schedule exploration, and for a thread that never took a rank: for assertions only. A thread that does not stand still
/// may hold something else by the time of the answer.
#[must_use]
pub fn held_by(thread: u32) -> Vec<HeldBy> {
    #[cfg(all(debug_assertions, not(feature = "shuttle")))]
    return list::held_by(thread);
    #[cfg(not(all(debug_assertions, not(feature = "shuttle"))))]
    {
        let _ = thread;
        Vec::new()
    }
}

/// Asserts, in debug builds, that this thread holds no rank at or above `from`: for places where it may wait long or
/// touch a caller's memory.
///
/// # Panics
/// In debug builds, naming what is held and where it was taken.
#[track_caller]
#[inline]
pub fn assert_nothing_held(from: Rank, why: &str) {
    #[cfg(debug_assertions)]
    list::assert_nothing_held(from, why);
    #[cfg(not(debug_assertions))]
    let _ = (from, why);
}

#[cfg(debug_assertions)]
mod list {
    #[cfg(feature = "shuttle")]
    use std::cell::RefCell;
    use std::panic::Location;
    #[cfg(not(feature = "shuttle"))]
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicU64, Ordering},
        sync::{Arc, Mutex, PoisonError, Weak},
    };

    #[cfg(not(feature = "shuttle"))]
    use super::HeldBy;
    use crate::Rank;

    struct Entry {
        id: u64,
        /// `None`: an instance boundary.
        rank: Option<Rank>,
        key: Option<u64>,
        place: &'static Location<'static>,
    }

    #[derive(Default)]
    struct List {
        next: u64,
        entries: Vec<Entry>,
    }

    impl List {
        /// Entries since the last boundary.
        fn current(&self) -> &[Entry] {
            let from = self.entries.iter().rposition(|e| e.rank.is_none()).map_or(0, |i| i + 1);
            &self.entries[from..]
        }
    }

    // Schedule exploration runs its threads as coroutines of one: the list must be theirs.
    #[cfg(feature = "shuttle")]
    shuttle::thread_local! {
        static LIST: RefCell<List> = RefCell::new(List::default());
    }
    #[cfg(not(feature = "shuttle"))]
    std::thread_local! {
        static LIST: Arc<Mutex<List>> = enlisted();
    }

    /// Every thread's list by the thread's number, for [`held_by`].
    #[cfg(not(feature = "shuttle"))]
    static LISTS: Mutex<BTreeMap<u32, Weak<Mutex<List>>>> = Mutex::new(BTreeMap::new());
    /// Threads that ever had a list.
    #[cfg(not(feature = "shuttle"))]
    static ENLISTED: AtomicU64 = AtomicU64::new(0);

    #[cfg(not(feature = "shuttle"))]
    fn enlisted() -> Arc<Mutex<List>> {
        // A number of the system's may be another thread's later; those of what is held are not.
        let next = ENLISTED.fetch_add(1, Ordering::Relaxed) << 32;
        let list = Arc::new(Mutex::new(List { next, entries: Vec::new() }));
        let mut lists = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|_, list| list.strong_count() > 0);
        lists.insert(extant_sys::thread_number(), Arc::downgrade(&list));
        list
    }

    /// `None` while the thread's locals are being destroyed: nothing is checked then.
    #[cfg(feature = "shuttle")]
    fn with<R>(f: impl FnOnce(&mut List) -> R) -> Option<R> {
        LIST.try_with(|l| f(&mut l.borrow_mut())).ok()
    }

    /// `None` while the thread's locals are being destroyed: nothing is checked then.
    #[cfg(not(feature = "shuttle"))]
    fn with<R>(f: impl FnOnce(&mut List) -> R) -> Option<R> {
        LIST.try_with(|l| f(&mut l.lock().unwrap_or_else(PoisonError::into_inner))).ok()
    }

    #[cfg(not(feature = "shuttle"))]
    pub(super) fn held_by(thread: u32) -> Vec<HeldBy> {
        let list = LISTS.lock().unwrap_or_else(PoisonError::into_inner).get(&thread).and_then(Weak::upgrade);
        let Some(list) = list else { return Vec::new() };
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        let ranks = list.entries.iter().filter_map(|e| Some((e.id, e.rank?, e.key, e.place)));
        ranks
            .map(|(id, rank, key, place)| {
                let what = format!("{rank:?}{} since {place}", show_key(key));
                HeldBy { id, what }
            })
            .collect()
    }

    #[track_caller]
    pub(super) fn push(rank: Rank, key: Option<u64>) -> u64 {
        add(Some(rank), key, Location::caller())
    }

    #[track_caller]
    pub(super) fn push_boundary() -> u64 {
        add(None, None, Location::caller())
    }

    fn add(rank: Option<Rank>, key: Option<u64>, place: &'static Location<'static>) -> u64 {
        with(|l| {
            let id = l.next;
            l.next += 1;
            l.entries.push(Entry { id, rank, key, place });
            id
        })
        .unwrap_or(u64::MAX)
    }

    pub(super) fn remove(id: u64) {
        let _ = with(|l| {
            if let Some(at) = l.entries.iter().rposition(|e| e.id == id) {
                l.entries.remove(at);
            }
        });
    }

    #[track_caller]
    pub(super) fn check(rank: Rank, key: Option<u64>, except: Option<u64>) {
        let place = Location::caller();
        let problem = with(|l| {
            let bad =
                l.current().iter().filter(|e| Some(e.id) != except).find(|e| !may_follow(e, rank, key))?;
            Some(format!(
                "lock order: {rank:?}{} wanted at {place} while {:?}{} is held since {}",
                show_key(key),
                bad.rank.expect("no boundary in the current list"),
                show_key(bad.key),
                bad.place
            ))
        });
        // While a panic unwinds, a second one would abort and hide the first.
        if let Some(Some(message)) = problem
            && !std::thread::panicking()
        {
            panic!("{message}");
        }
    }

    fn may_follow(held: &Entry, rank: Rank, key: Option<u64>) -> bool {
        let Some(have) = held.rank else { return true };
        match have.level().cmp(&rank.level()) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => matches!((held.key, key), (Some(a), Some(b)) if a < b),
            std::cmp::Ordering::Greater => false,
        }
    }

    fn show_key(key: Option<u64>) -> String {
        key.map_or_else(String::new, |k| format!(" key {k}"))
    }

    pub(super) fn holds(rank: Rank) -> bool {
        with(|l| l.current().iter().any(|e| e.rank == Some(rank))).unwrap_or(false)
    }

    #[track_caller]
    pub(super) fn assert_nothing_held(from: Rank, why: &str) {
        let place = Location::caller();
        let problem = with(|l| {
            let bad = l.current().iter().find(|e| e.rank.is_some_and(|r| r.level() >= from.level()))?;
            let rank = bad.rank.expect("just looked at");
            Some(format!("lock order: {why} at {place} while {rank:?} is held since {}", bad.place))
        });
        if let Some(Some(message)) = problem
            && !std::thread::panicking()
        {
            panic!("{message}");
        }
    }
}
