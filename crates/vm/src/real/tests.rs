//! Real memory, real threads, and a handler with a small state of its own.

use std::io;
use std::time::Duration;

use extant_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use extant_sync::{Arc, Mutex, Rank, Weak, thread};
use extant_sys::{MapRequest, MemFile, Protection};

use super::mutant::Guard;
use super::pending::Waiter;
use super::suspects::{Suspects, Verdict};
use super::{FaultHandler, FaultServer, FaultThreads, RealMapping, RealMmu};
use crate::{Access, Fault, FaultWait, MapId, Mmu, SpaceWait};

const PAGE: usize = 4096;
const PAGES: u32 = 64;
const ONE: FaultThreads = FaultThreads { reads: 1, writes: 1 };

/// A file whose page `n` is full of `n + 1` when it is read.
struct Toy {
    me: Weak<Self>,
    mmu: Arc<RealMmu>,
    pages: Mutex<Vec<State>>,
    /// What the next faults get instead.
    instead: Mutex<Vec<Fault>>,
    panics: AtomicBool,
    asked: AtomicU32,
    looks: AtomicU32,
    has_space: AtomicBool,
    quick: AtomicU32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    uptodate: bool,
    dirty: bool,
}

fn toy(threads: FaultThreads) -> Option<Arc<Toy>> {
    let server = match FaultServer::start(threads) {
        Ok(server) => server,
        Err(error) => {
            println!("skipped: no userfaultfd: {error}");
            return None;
        }
    };
    let mmu = RealMmu::new(MemFile::new("toy", PAGE).expect("a memory file"), server);
    mmu.resize(u64::from(PAGES) * PAGE as u64).expect("resize");
    Some(Arc::new_cyclic(|me| Toy {
        me: me.clone(),
        mmu,
        pages: Mutex::new(Rank::PAGE, vec![State::default(); PAGES as usize]),
        instead: Mutex::new(Rank::LEAF, Vec::new()),
        panics: AtomicBool::new(false),
        asked: AtomicU32::new(0),
        looks: AtomicU32::new(0),
        has_space: AtomicBool::new(false),
        quick: AtomicU32::new(0),
    }))
}

/// All of a file.
fn whole(shared: bool) -> MapRequest {
    MapRequest {
        offset: 0,
        len: PAGES as usize * PAGE,
        protection: Protection::READ_WRITE,
        shared,
        may_write: shared,
        sync: false,
        hint: 0,
    }
}

/// This program, started anew for one test, with a variable set.
fn anew(test: &str, variable: &str) -> std::process::Output {
    let program = std::env::current_exe().expect("this program");
    std::process::Command::new(program)
        .args(["--exact", &format!("real::tests::{test}"), "--nocapture"])
        .env(variable, "1")
        .output()
        .expect("a program")
}

impl Toy {
    fn map(&self, shared: bool) -> RealMapping {
        self.mmu.map(&whole(shared), self.me.upgrade().expect("alive")).expect("a mapping")
    }

    fn install(&self, map: MapId, page: u32, access: Access, state: &mut State) -> Fault {
        if access == Access::Write {
            state.dirty = true;
        }
        match self.mmu.install(map, page..page + 1, state.dirty) {
            Ok(()) => Fault::Mapped,
            Err(error) => panic!("install of page {page}: {error}"),
        }
    }

    /// Cleans a page as writeback does; whether it was dirty.
    fn clean(&self, page: u32) -> bool {
        let mut pages = self.pages.lock();
        self.mmu.protect(page..page + 1).expect("protect");
        std::mem::take(&mut pages[page as usize].dirty)
    }

    fn drop_page(&self, page: u32) {
        let mut pages = self.pages.lock();
        self.mmu.discard(page..page + 1).expect("discard");
        pages[page as usize] = State::default();
    }
}

impl FaultHandler for Toy {
    fn try_fault(&self, map: MapId, page: u32, access: Access) -> Option<Fault> {
        if !self.instead.lock().is_empty() {
            return None;
        }
        let mut pages = self.pages.try_lock()?;
        let state = pages.get_mut(page as usize).filter(|s| s.uptodate)?;
        self.quick.fetch_add(1, Ordering::Relaxed);
        Some(self.install(map, page, access, state))
    }

    fn fault(&self, map: MapId, page: u32, access: Access, _wait: &mut FaultWait) -> Fault {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(!self.panics.swap(false, Ordering::Relaxed), "asked to");
        if let Some(fault) = self.instead.lock().pop() {
            return fault;
        }
        let mut pages = self.pages.lock();
        let Some(state) = pages.get_mut(page as usize) else { return Fault::Sigbus };
        if !state.uptodate {
            let memory = self.mmu.memory(page).expect("memory");
            memory.mem().copy_from(0, &[page as u8 + 1; PAGE]);
            state.uptodate = true;
        }
        self.install(map, page, access, state)
    }

    fn look_for_space(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    fn may_have_space(&self, _wait: &SpaceWait) -> bool {
        self.has_space.load(Ordering::Relaxed)
    }
}

/// One byte by write(2) to a pipe: the kernel's own access, which fails instead of killing.
fn look(map: &RealMapping, page: usize) -> io::Result<u8> {
    map.peek(page * PAGE)
}

fn is_fault(result: &io::Result<u8>) -> bool {
    result.as_ref().is_err_and(|e| e.raw_os_error() == Some(14))
}

fn load(map: &RealMapping, page: usize) -> u8 {
    map.atomic_u8(page * PAGE).load(Ordering::Relaxed)
}

fn store(map: &RealMapping, page: usize, byte: u8) {
    map.atomic_u8(page * PAGE).store(byte, Ordering::Relaxed);
}

#[test]
fn loads_and_stores_are_served() {
    let Some(toy) = toy(ONE) else { return };
    let (one, two) = (toy.map(true), toy.map(true));
    let private = toy.map(false);
    assert_eq!((load(&one, 0), load(&one, 5), load(&private, 7)), (1, 6, 8));
    store(&private, 7, 99);
    store(&one, 5, 70);
    assert_eq!((load(&two, 5), load(&private, 5), load(&one, 7)), (70, 70, 8));
    assert!(toy.clean(5) && !toy.clean(5));
    store(&two, 5, 71);
    assert!(toy.clean(5));
    assert_eq!((load(&one, 5), load(&private, 7)), (71, 99));
    toy.drop_page(5);
    assert_eq!((load(&one, 5), load(&two, 5), load(&private, 5)), (6, 6, 6));
    assert!(toy.quick.load(Ordering::Relaxed) > 0, "the reader answers what is in memory");
    assert_eq!(toy.mmu.mappings(), 3);
    drop((one, two, private));
    assert_eq!((toy.mmu.mappings(), toy.mmu.server().restarts()), (0, 0));
}

#[test]
fn a_page_that_cannot_be_had_is_asked_for_again() {
    let Some(toy) = toy(ONE) else { return };
    if !toy.mmu.server().handles_kernel_faults() {
        println!("skipped: no userfaultfd that serves faults in system calls");
        return;
    }
    for shared in [true, false] {
        let map = toy.map(shared);
        toy.drop_page(3);
        toy.instead.lock().extend([Fault::Oom, Fault::Sigbus]);
        for _ in 0..2 {
            assert!(is_fault(&look(&map, 3)));
            toy.mmu.server().retry_poisoned();
        }
        assert_eq!(look(&map, 3).expect("to be had again"), 4);
        // A handler that panics is SIGBUS for that page, and no more.
        toy.panics.store(true, Ordering::Relaxed);
        assert!(is_fault(&look(&map, 9)));
        assert_eq!(look(&map, 10).expect("served"), 11);
        toy.mmu.server().retry_poisoned();
        assert_eq!(look(&map, 9).expect("served"), 10);
        toy.drop_page(9);
        toy.drop_page(10);
    }
    assert_eq!(toy.mmu.server().restarts(), 0);
    // Past the end: the kernel's own answer.
    let map = toy.map(true);
    toy.mmu.resize(PAGE as u64).expect("resize");
    let asked = toy.asked.load(Ordering::Relaxed);
    assert!(is_fault(&look(&map, 1)));
    assert_eq!(toy.asked.load(Ordering::Relaxed), asked);
}

/// A store that cannot be is SIGBUS for its thread, as often as it tries; whoever loads from the page meanwhile sees it.
#[test]
fn a_refused_store_hides_nothing() {
    let Some(toy) = toy(ONE) else { return };
    extant_sys::bus::count().expect("a handler");
    let map = toy.map(true);
    assert_eq!(load(&map, 3), 4);
    let before = extant_sys::bus::counted().count;
    toy.instead.lock().extend([Fault::Oom, Fault::Sigbus, Fault::Sigbus]);
    let stop = AtomicBool::new(false);
    let looked = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Where a load is a signal, the handler would count it.
                assert!([4, 9].contains(&load(&map, 3)));
                looked.fetch_add(1, Ordering::Relaxed);
            }
        });
        while looked.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        store(&map, 3, 9);
        stop.store(true, Ordering::Relaxed);
    });
    let got = extant_sys::bus::counted();
    // A refusal whose thread has not gone to sleep yet, or may have been woken, has it try again.
    let signals = got.count - before;
    assert!((1..=3).contains(&signals), "{signals} signals for three refusals");
    assert!(toy.instead.lock().is_empty(), "not refused three times");
    assert_eq!((got.addr, got.thread), (map.as_ptr().addr() + 3 * PAGE, extant_sys::thread_number()));
    assert_eq!(load(&map, 3), 9);
}

/// mprotect(2) lets a store to a file through that is not open for writing: it is refused, the page stays clean, and nobody asks for ever.
#[test]
fn a_store_that_the_kernel_alone_allows_is_refused() {
    const ASKED: &str = "EXTANT_STORE_THAT_MAY_NOT";
    let Some(toy) = toy(ONE) else { return };
    if !toy.mmu.server().handles_kernel_faults() {
        println!("skipped: no userfaultfd that serves faults in system calls");
        return;
    }
    let request = MapRequest { protection: Protection::READ, may_write: false, ..whole(true) };
    let map = toy.mmu.map(&request, toy.me.upgrade().expect("alive")).expect("a mapping");
    assert_eq!((load(&map, 3), load(&map, 4)), (4, 5));
    extant_sys::unsaid::protect(map.pages(), Protection::READ_WRITE).expect("mprotect");
    if std::env::var_os(ASKED).is_some() {
        store(&map, 3, 9);
        return;
    }
    // By a system call, of a page that is visible, and of one that is not.
    for page in [3, 9] {
        let refused = extant_sys::unsaid::put(map.pages(), page * PAGE, 9).expect_err("stored");
        assert_eq!(refused.raw_os_error(), Some(14), "page {page}");
        assert!(!toy.clean(page as u32), "page {page} was dirty");
    }
    toy.mmu.server().retry_poisoned();
    assert_eq!((load(&map, 3), load(&map, 9)), (4, 10));
    // By a thread of a program that does nothing about it: this one, started anew.
    let output = anew("a_store_that_the_kernel_alone_allows_is_refused", ASKED);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(7), "{output:?}");
}

/// What mremap(2) has moved by the program's own instruction is served, and so is what it has made longer, of which the kernel tells nobody.
#[test]
fn memory_that_the_program_moved_is_served() {
    let Some(toy) = toy(ONE) else { return };
    if !toy.mmu.server().handles_kernel_faults() {
        println!("skipped: no userfaultfd that serves faults in system calls");
        return;
    }
    let request = MapRequest { len: 8 * PAGE, ..whole(true) };
    let map = toy.mmu.map(&request, toy.me.upgrade().expect("alive")).expect("a mapping");
    assert_eq!(load(&map, 1), 2);
    let place = extant_sys::unsaid::move_away(map.pages(), 2 * PAGE).expect("mremap");
    for page in [9, 1, 7] {
        assert_eq!(extant_sys::unsaid::look(place + page * PAGE).expect("served"), page as u8 + 1);
    }
    assert_eq!(map.as_ptr().addr(), place);
    store(&map, 2, 70);
    assert!(toy.clean(2));
    store(&map, 2, 71);
    assert!(toy.clean(2), "stored unseen");
    assert_eq!(extant_sys::unsaid::look(place + 2 * PAGE).expect("served"), 71);
}

#[test]
fn a_parked_fault_waits_without_a_thread() {
    let Some(toy) = toy(ONE) else { return };
    let map = Arc::new(toy.map(true));
    toy.instead.lock().extend([Fault::Parked, Fault::Parked]);
    let threads: Vec<_> = (0..2)
        .map(|page| {
            let map = Arc::clone(&map);
            thread::spawn(move || load(&map, page))
        })
        .collect();
    while toy.asked.load(Ordering::Relaxed) < 2 {
        thread::yield_now();
    }
    // The only thread for loads is free.
    assert_eq!(load(&map, 20), 21);
    let mut again = 0;
    while again < 2 {
        again += toy.mmu.server().retry_parked();
    }
    let got: Vec<u8> = threads.into_iter().map(|t| t.join().expect("load")).collect();
    assert_eq!(got, [1, 2]);
}

/// Who waits for space does so without a thread, is asked again when there may be some, and looked for together with all who wait.
#[test]
fn a_store_without_space_waits_without_a_thread() {
    let Some(toy) = toy(ONE) else { return };
    let map = Arc::new(toy.map(true));
    toy.instead.lock().extend([Fault::AwaitsSpace; 3]);
    let threads: Vec<_> = (0..2)
        .map(|page| {
            let map = Arc::clone(&map);
            thread::spawn(move || store(&map, page, 9))
        })
        .collect();
    while toy.asked.load(Ordering::Relaxed) < 2 {
        thread::yield_now();
    }
    // One that comes while the others are looked for is looked for with them.
    let third = {
        let map = Arc::clone(&map);
        thread::spawn(move || store(&map, 2, 9))
    };
    while toy.asked.load(Ordering::Relaxed) < 3 || toy.looks.load(Ordering::Relaxed) < 3 {
        thread::yield_now();
    }
    // The only thread for stores is free.
    store(&map, 20, 9);
    assert_eq!(toy.asked.load(Ordering::Relaxed), 4, "asked again without space");
    toy.instead.lock().push(Fault::AwaitsSpace);
    toy.has_space.store(true, Ordering::Relaxed);
    threads.into_iter().chain([third]).for_each(|t| t.join().expect("store"));
    assert_eq!([0, 1, 2, 20].map(|page| load(&map, page)), [9; 4]);
    assert_eq!(toy.asked.load(Ordering::Relaxed), 8, "one of them once more");
}

#[test]
fn a_lost_message_is_sent_again() {
    let Some(toy) = toy(ONE) else { return };
    let map = toy.map(true);
    toy.mmu.server().shared().break_reader.store(true, Ordering::Relaxed);
    assert_eq!((load(&map, 1), toy.mmu.server().restarts()), (2, 1));
}

/// A message whose thread was let go since, and holds a lock by rights.
#[test]
fn an_old_message_accuses_nobody() {
    let Some(toy) = toy(ONE) else { return };
    let map = toy.map(true);
    let shared = toy.mmu.server().shared();
    let waiter = Waiter { addr: map.as_ptr().addr(), thread: extant_sys::thread_number(), since: 0 };
    let lock = Mutex::new(Rank::INODE, ());
    for _ in 0..3 {
        let held = lock.lock();
        shared.fault(false, waiter);
        // The same message seen twice says no more than once.
        shared.fault(false, waiter);
        drop(held);
        shared.suspects.lock().begin_read();
    }
    assert_eq!(load(&map, 0), 1);
}

#[test]
fn suspects_are_judged_by_what_they_held_all_the_time() {
    let held = |ids: &[u64]| -> Vec<extant_sync::HeldBy> {
        ids.iter().map(|id| extant_sync::HeldBy { id: *id, what: format!("lock {id}") }).collect()
    };
    let mut suspects = Suspects::default();
    suspects.begin_read();
    assert_eq!(suspects.judge(1, &held(&[])), Verdict::Innocent);
    assert_eq!(suspects.judge(1, &held(&[5, 6])), Verdict::LookAgain);
    assert_eq!(suspects.judge(1, &held(&[5, 6])), Verdict::LookAgain);
    assert_eq!(suspects.judge(2, &held(&[])), Verdict::Innocent);
    suspects.begin_read();
    assert_eq!(suspects.judge(2, &held(&[5])), Verdict::LookAgain);
    assert_eq!(suspects.judge(1, &held(&[6, 7])), Verdict::Guilty("lock 6".into()));
    suspects.begin_read();
    assert_eq!(suspects.judge(2, &held(&[6])), Verdict::LookAgain);
    suspects.begin_read();
    assert_eq!(suspects.judge(2, &held(&[])), Verdict::Innocent);
    suspects.begin_read();
    assert_eq!(suspects.judge(2, &held(&[6])), Verdict::LookAgain);
}

/// In debug builds. The program is this one, started anew for that.
#[test]
fn a_fault_with_a_lock_held_ends_the_program() {
    const ASKED: &str = "EXTANT_FAULT_WITH_A_LOCK";
    if !cfg!(debug_assertions) {
        println!("skipped: locks are looked at in debug builds");
        return;
    }
    let Some(toy) = toy(ONE) else { return };
    if std::env::var_os(ASKED).is_some() {
        let map = toy.map(true);
        let lock = Mutex::new(Rank::INODE, ());
        let _held = lock.lock();
        load(&map, 0);
        return;
    }
    let output = anew("a_fault_with_a_lock_held_ends_the_program", ASKED);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it went on");
    assert!(said.contains("lock order: thread") && said.contains("while it holds"), "it said: {said}");
}

/// Loads page 1, with `guard` taken away once, and `work` beside it. Nobody answers the load any more, until everybody is told to ask
/// again.
fn is_left_unanswered(toy: &Arc<Toy>, guard: Guard, work: impl FnOnce(&RealMapping)) {
    let map = toy.map(true);
    let shared = toy.mmu.server().shared();
    *shared.mutant.lock() = guard;
    let loaded = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let byte = load(&map, 1);
            loaded.store(true, Ordering::Release);
            byte
        });
        work(&map);
        while *shared.mutant.lock() != Guard::None {
            thread::yield_now();
        }
        // Others are served on, by the same threads: what is not answered by now never is.
        for page in 30..40 {
            assert_eq!(look(&map, page).expect("served"), page as u8 + 1);
            toy.drop_page(page as u32);
        }
        assert!(!loaded.load(Ordering::Acquire), "{guard:?}: answered without the guard");
        map.pages().wake_all();
        assert_eq!(loading.join().expect("load"), 2);
    });
    toy.drop_page(1);
}

#[test]
fn mutants_leave_threads_waiting() {
    let Some(toy) = toy(ONE) else { return };
    let server = Arc::clone(toy.mmu.server());
    if !server.handles_kernel_faults() {
        println!("skipped: no userfaultfd that serves faults in system calls");
        return;
    }
    server.shared().break_reader.store(true, Ordering::Relaxed);
    is_left_unanswered(&toy, Guard::LostMessage, |_| {});
    toy.panics.store(true, Ordering::Relaxed);
    is_left_unanswered(&toy, Guard::PanicAnswered, |_| {});
    toy.instead.lock().push(Fault::Parked);
    let asked = toy.asked.load(Ordering::Relaxed);
    is_left_unanswered(&toy, Guard::WakeWhenThere, |map| {
        // The message is read and not answered; then somebody else's fault brings the page along.
        while toy.asked.load(Ordering::Relaxed) == asked {
            thread::yield_now();
        }
        toy.mmu.memory(1).expect("memory").mem().copy_from(0, &[2; PAGE]);
        toy.pages.lock()[1].uptodate = true;
        toy.mmu.install(map.id(), 1..2, false).expect("install");
        while server.retry_parked() == 0 {
            thread::yield_now();
        }
    });
    assert_eq!(server.restarts(), 1);
}

/// Threads store counters while pages are cleaned and dropped: a store that was made is in the file when its page is clean.
#[test]
fn no_store_is_lost_between_protecting_and_cleaning() {
    let Some(toy) = toy(FaultThreads { reads: 2, writes: 2 }) else { return };
    let maps = Arc::new([toy.map(true), toy.map(true)]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4_usize)
        .map(|n| {
            let (maps, stop) = (Arc::clone(&maps), Arc::clone(&stop));
            thread::spawn(move || {
                let at = |page: usize| page * PAGE + 8 * (n + 1);
                let mut rounds = 0_u64;
                // At least once, however late it begins: what is looked for at the end is what it stored last.
                loop {
                    rounds += 1;
                    for page in 0..4 {
                        maps[n % 2].atomic_u64(at(page)).store(rounds, Ordering::Release);
                    }
                    if stop.load(Ordering::Relaxed) {
                        return rounds;
                    }
                }
            })
        })
        .collect();
    let snapshot = |page: u32| {
        let mut words = [0; 40];
        toy.mmu.memory(page).expect("memory").mem().copy_to(0, &mut words);
        words
    };
    for round in 0..500 {
        let page = round % 4;
        let mut pages = toy.pages.lock();
        toy.mmu.protect(page..page + 1).expect("protect");
        pages[page as usize].dirty = false;
        // Clean and protected under the page's lock: nobody can change it.
        let (first, second) = (snapshot(page), snapshot(page));
        assert!(first == second, "a store to a protected page");
    }
    stop.store(true, Ordering::Relaxed);
    let rounds: Vec<u64> = writers.into_iter().map(|w| w.join().expect("writer")).collect();
    for (n, want) in rounds.into_iter().enumerate() {
        let at = 8 * (n + 1);
        let got = maps[0].atomic_u64(at).load(Ordering::Acquire);
        assert_eq!(got, want);
    }
}

/// Time of one fault on a page in memory, beside a handler that does nothing but CONTINUE.
#[test]
fn latency() {
    let Some(toy) = toy(ONE) else { return };
    let rounds = if std::env::var_os("LATENCY").is_some() { 20_000 } else { 200 };
    let map = toy.map(true);
    assert_eq!(load(&map, 0), 1);
    let ours = time(rounds, || {
        toy.mmu.unmap(0..1).expect("unmap");
        load(&map, 0);
    });
    println!("fault served: {ours:?}, with an unmap before each");
}

fn time(rounds: u32, mut work: impl FnMut()) -> Duration {
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        work();
    }
    start.elapsed() / rounds
}
