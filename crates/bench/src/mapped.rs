//! Files mapped into memory: what loads, stores and writeback cost, and one fault.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use extant_sys::{MapRequest, MemFile, Message, Protection, Uffd, UserMap, bell};

use crate::target::{Result, Target, TargetMap};
use crate::{Outcome, processor_seconds};

/// The system's page, as these workloads count.
pub(crate) const PAGE: usize = 4096;
/// Pages that writeback protects with one call.
const PROTECT_BATCH: u32 = 512;
/// Pages of a round of single faults.
const ROUND: usize = 512;

/// A word of each page of `len` bytes.
pub(crate) fn words(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(PAGE)
}

/// Loads a word of each page and notes how long each took, in nanoseconds.
pub(crate) fn time_each(len: usize, load: impl Fn(usize) -> u64, into: &mut Vec<u64>) {
    for at in words(len) {
        let start = Instant::now();
        black_box(load(at));
        into.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Does a part of the work, and notes what it took.
fn part<T>(out: &mut Outcome, cpu: &'static str, wall: &'static str, work: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), processor_seconds());
    let result = work();
    out.parts.push((cpu, processor_seconds() - before));
    out.parts.push((wall, start.elapsed().as_secs_f64()));
    result
}

/// Loads from a file of which nothing is in memory.
pub(crate) fn cold(t: &dyn Target, path: &str, out: &mut Outcome) -> Result<()> {
    let file = t.open(path, false)?;
    let start = Instant::now();
    let map = file.map()?;
    out.entries = map.load_each() & 0xFFFF_FFFF;
    out.timed = Some(start.elapsed());
    out.bytes = map.len() as u64;
    Ok(())
}

/// Through a fresh mapping of a file that is in memory: loads; then stores to pages that are clean and were loaded from; writeback;
/// stores again; writeback; twice writeback of nothing.
pub(crate) fn work(t: &dyn Target, path: &str, out: &mut Outcome) -> Result<()> {
    let file = t.open(path, false)?;
    out.bytes = file.map()?.load_each() & 0xFFFF_FFFF;
    let map: Box<dyn TargetMap> = file.map()?;
    out.entries = part(out, "warm", "warm_wall", || map.load_each()) & 0xFFFF_FFFF;
    part(out, "store", "store_wall", || map.store_each(1));
    part(out, "sync", "sync_wall", || map.sync())?;
    part(out, "again", "again_wall", || map.store_each(2));
    part(out, "sync_again", "sync_again_wall", || map.sync())?;
    // Nothing is dirty: what it takes to find that out, the first time and from then on.
    part(out, "clean", "clean_wall", || map.sync())?;
    part(out, "clean_again", "clean_again_wall", || map.sync())?;
    if map.load_each() != 2 * (map.len() / PAGE) as u64 {
        return Err("what was stored is not there".into());
    }
    Ok(())
}

/// Single faults of pages that are in memory: the target's, beside a handler that does nothing but let the kernel go on.
pub(crate) fn latency(t: &dyn Target, path: &str, rounds: usize, out: &mut Outcome) -> Result<()> {
    let file = t.open(path, false)?;
    let ours = file.map()?;
    ours.load_each();
    let bare = Bare::start(ours.len().min(ROUND * PAGE))?;
    let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
    // The first round warms both up.
    for round in 0..=rounds {
        if round == 1 {
            of_ours.clear();
            of_bare.clear();
        }
        ours.time_each(&mut of_ours)?;
        bare.time_each(&mut of_bare)?;
    }
    out.parts.push(("ours", median(&mut of_ours)));
    out.parts.push(("bare", median(&mut of_bare)));
    Ok(())
}

fn median(all: &mut [u64]) -> f64 {
    all.sort_unstable();
    all.get(all.len() / 2).map_or(f64::NAN, |ns| *ns as f64 * 1e-9)
}

/// Takes the right to store away from so many MiB that can be stored to, as writeback does.
pub(crate) fn protect(mib: usize, out: &mut Outcome) -> Result<()> {
    let uffd = Arc::new(Uffd::open()?);
    let pages = u32::try_from((mib << 20) / PAGE)?;
    let (_file, map) = memory(&uffd, pages)?;
    map.pages().install(0..pages, true)?;
    for at in words(map.len()) {
        map.atomic_u64(at).store(1, Relaxed);
    }
    part(out, "protect", "protect_wall", || {
        let mut starts = (0..pages).step_by(PROTECT_BATCH as usize);
        starts.try_for_each(|at| map.pages().protect(at..(at + PROTECT_BATCH).min(pages)))
    })?;
    Ok(())
}

/// A mapping of so many pages that are all in memory, none of them visible.
fn memory(uffd: &Arc<Uffd>, pages: u32) -> Result<(Arc<MemFile>, UserMap)> {
    let file = MemFile::new("bench", PAGE)?;
    let len = pages as usize * PAGE;
    file.resize(len as u64)?;
    for page in 0..pages {
        file.page(page)?.mem().copy_from(0, &[1; 8]);
    }
    let request = MapRequest {
        offset: 0,
        len,
        protection: Protection::READ_WRITE,
        shared: true,
        may_write: true,
        sync: false,
        hint: 0,
    };
    let map = UserMap::new(uffd, &file, UserMap::new_id(), &request)?;
    Ok((file, map))
}

/// A thread that answers each fault with one system call.
struct Bare {
    map: UserMap,
    bell: Arc<std::os::fd::OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bare {
    fn start(len: usize) -> Result<Self> {
        let uffd = Arc::new(Uffd::open()?);
        let (_file, map) = memory(&uffd, u32::try_from(len / PAGE)?)?;
        let bell = Arc::new(bell::new()?);
        let (pages, stop) = (Arc::clone(map.pages()), Arc::clone(&bell));
        let answer = move || -> std::io::Result<()> {
            let mut messages = Vec::new();
            while !bell::wait(&*uffd, &stop, None)? {
                uffd.read(&mut messages)?;
                for message in messages.drain(..) {
                    if let Message::Fault { addr, .. } = message {
                        pages.answer(addr)?;
                    }
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("bare-handler".into()).spawn(move || {
            if let Err(error) = answer() {
                // Whoever waits for it would wait for ever.
                eprintln!("extant-bench: the bare handler: {error}");
                std::process::exit(1);
            }
        })?;
        Ok(Self { map, bell, thread: Some(thread) })
    }

    fn time_each(&self, into: &mut Vec<u64>) -> Result<()> {
        let pages = u32::try_from(self.map.len() / PAGE)?;
        self.map.pages().zap(0..pages)?;
        time_each(self.map.len(), |at| self.map.atomic_u64(at).load(Relaxed), into);
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        bell::ring(&self.bell);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
