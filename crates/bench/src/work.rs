//! The workloads. Each prepares nothing by itself: what it reads must be there (`fill` makes it).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::target::{Kind, Result, Target};

/// A seeded generator for sizes and places (splitmix64): the same work for every target.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Bytes that do not compress to nothing and differ from file to file.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&rng.next().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// `files` files of `size` bytes, spread over `dirs` directories named under `base`.
pub(crate) fn create(t: &dyn Target, base: &str, dirs: usize, files: usize, size: usize) -> Result<()> {
    let data = pattern(size, 1);
    if !base.is_empty() {
        t.mkdir(base)?;
    }
    for d in 0..dirs {
        t.mkdir(&dir_name(base, d))?;
    }
    for f in 0..files {
        t.create(&file_name(base, f % dirs, f), &data)?;
    }
    Ok(())
}

/// Stats every file that [`create`] made.
pub(crate) fn stat(t: &dyn Target, base: &str, dirs: usize, files: usize) -> Result<()> {
    for f in 0..files {
        t.stat(&file_name(base, f % dirs, f))?;
    }
    Ok(())
}

/// Removes what [`create`] made.
pub(crate) fn remove(t: &dyn Target, base: &str, dirs: usize, files: usize) -> Result<()> {
    for f in 0..files {
        t.remove_file(&file_name(base, f % dirs, f))?;
    }
    for d in 0..dirs {
        t.remove_dir(&dir_name(base, d))?;
    }
    Ok(())
}

/// What a walk does with a file that it comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    Stat,
    Read,
    StatAndRead,
}

/// Walks the tree below `path`; answers entries and bytes (read, or else those that stat tells).
pub(crate) fn walk(t: &dyn Target, path: &str, visit: Visit) -> Result<(u64, u64)> {
    let mut buf = vec![0; 256 << 10];
    let mut todo = vec![path.to_owned()];
    let (mut entries, mut bytes) = (0, 0);
    while let Some(dir) = todo.pop() {
        let more = walk_one(t, &dir, visit, &mut buf, |child| todo.push(child))?;
        entries += more.0;
        bytes += more.1;
    }
    Ok((entries, bytes))
}

/// The same by several threads, each of which takes the next directory when it is done with one.
pub(crate) fn walk_together(t: &dyn Target, path: &str, visit: Visit, threads: usize) -> Result<(u64, u64)> {
    let todo = Todo::default();
    todo.state.lock().unwrap_or_else(PoisonError::into_inner).dirs.push(path.to_owned());
    let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    on_threads(threads, |_| {
        let mut buf = vec![0; 256 << 10];
        while let Some((dir, mut taken)) = todo.take() {
            let more = walk_one(t, &dir, visit, &mut buf, |child| taken.found.push(child))?;
            taken.done = true;
            entries.fetch_add(more.0, Relaxed);
            bytes.fetch_add(more.1, Relaxed);
        }
        Ok(())
    })?;
    Ok((entries.into_inner(), bytes.into_inner()))
}

/// Directories that are left to several threads.
#[derive(Default)]
struct Todo {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    dirs: Vec<String>,
    /// Directories that a thread is at, which may have others in them.
    under_way: usize,
    failed: bool,
}

/// A directory that a thread is at. Dropped before it is done, by an error or a panic, it ends the walk of all.
struct Taken<'a> {
    todo: &'a Todo,
    found: Vec<String>,
    done: bool,
}

impl Todo {
    /// The next directory; none when all are done, or one has failed.
    fn take(&self) -> Option<(String, Taken<'_>)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(state, |s| !s.failed && s.dirs.is_empty() && s.under_way > 0);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            return None;
        }
        let dir = state.dirs.pop()?;
        state.under_way += 1;
        Some((dir, Taken { todo: self, found: Vec::new(), done: false }))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.todo.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way -= 1;
        state.failed |= !self.done;
        state.dirs.append(&mut self.found);
        drop(state);
        self.todo.changed.notify_all();
    }
}

/// One directory; `inner` gets the directories in it.
fn walk_one(
    t: &dyn Target,
    dir: &str,
    visit: Visit,
    buf: &mut [u8],
    mut inner: impl FnMut(String),
) -> Result<(u64, u64)> {
    let (mut entries, mut bytes) = (0, 0);
    for (name, kind) in t.list(dir)? {
        let child = join(dir, &name);
        entries += 1;
        match kind {
            Kind::Dir => inner(child),
            Kind::File => {
                let told = if visit == Visit::Read { 0 } else { t.stat(&child)? };
                bytes += if visit == Visit::Stat { told } else { t.read(&child, buf)? };
            }
            Kind::Other => {}
        }
    }
    Ok((entries, bytes))
}

/// A tree of `files` files with a realistic spread of sizes (most small, few large, `total` bytes on average in all).
pub(crate) fn fill(t: &dyn Target, files: usize, total: u64) -> Result<()> {
    let mut rng = Rng(7);
    let dirs = files.div_ceil(50);
    for d in 0..dirs {
        if d % 20 == 0 {
            t.mkdir(&format!("g{}", d / 20))?;
        }
        t.mkdir(&format!("g{}/d{d}", d / 20))?;
    }
    let average = (total / files.max(1) as u64).max(1);
    let data = pattern((average * 16) as usize, 3);
    for f in 0..files {
        let size = match rng.below(10) {
            0..6 => rng.below(average / 2 + 1),
            6..9 => rng.below(average * 2),
            _ => rng.below(average * 11),
        };
        let d = f / 50;
        let from = rng.below(average) as usize;
        let to = (from + size as usize).min(data.len());
        t.create(&format!("g{}/d{d}/f{f}", d / 20), &data[from..to])?;
    }
    Ok(())
}

/// Writes `mib` MiB to `path` in pieces of 1 MiB; fsync at the end if asked.
pub(crate) fn seq_write(t: &dyn Target, path: &str, mib: u64, fsync: bool) -> Result<()> {
    let data = pattern(1 << 20, 5);
    let file = t.open(path, true)?;
    for i in 0..mib {
        file.write_at(i << 20, &data)?;
    }
    if fsync { file.fsync() } else { Ok(()) }
}

/// Reads `path` from start to end in pieces of 1 MiB.
pub(crate) fn seq_read(t: &dyn Target, path: &str) -> Result<u64> {
    let mut buf = vec![0; 1 << 20];
    t.read(path, &mut buf)
}

/// `n` random reads of 4 KiB.
pub(crate) fn random_read(t: &dyn Target, path: &str, n: u64) -> Result<()> {
    let blocks = t.stat(path)? / 4096;
    let file = t.open(path, false)?;
    let (mut rng, mut buf) = (Rng(11), vec![0; 4096]);
    for _ in 0..n {
        if file.read_at(rng.below(blocks) * 4096, &mut buf)? != buf.len() {
            return Err("short read".into());
        }
    }
    Ok(())
}

/// `n` random writes of 4 KiB, then fsync.
pub(crate) fn random_write(t: &dyn Target, path: &str, n: u64) -> Result<()> {
    let blocks = t.stat(path)? / 4096;
    let file = t.open(path, false)?;
    let mut rng = Rng(13);
    let data = pattern(4096, 13);
    for _ in 0..n {
        file.write_at(rng.below(blocks) * 4096, &data)?;
    }
    file.fsync()
}

/// `n` appends of 300 bytes, each followed by fsync.
pub(crate) fn append_fsync(t: &dyn Target, path: &str, n: u64) -> Result<()> {
    let file = t.open(path, true)?;
    let data = pattern(300, 17);
    for i in 0..n {
        file.write_at(i * 300, &data)?;
        file.fsync()?;
    }
    Ok(())
}

/// A file of `extents` extents of one block each, every second block a hole.
pub(crate) fn fragments(t: &dyn Target, path: &str, extents: u64) -> Result<()> {
    let file = t.open(path, true)?;
    (0..extents).try_for_each(|n| file.fallocate(0, (2 * n + 1) * BLOCK, BLOCK))
}

/// The mode words of fallocate(2) that `ranges` knows: punch (and keep the size), collapse, insert.
const RANGES: &[(&str, u32)] = &[("punch", 3), ("collapse", 8), ("insert", 32)];

/// `n` operations of one mode, a block each, at random places of a file.
pub(crate) fn ranges(t: &dyn Target, path: &str, mode: &str, n: u64) -> Result<()> {
    let (_, mode) = RANGES.iter().find(|(name, _)| *name == mode).ok_or("no such mode")?;
    let mut blocks = t.stat(path)? / BLOCK - 1;
    let file = t.open(path, false)?;
    let mut rng = Rng(23);
    for _ in 0..n {
        file.fallocate(*mode, rng.below(blocks) * BLOCK, BLOCK)?;
        match mode {
            8 => blocks -= 1,
            32 => blocks += 1,
            _ => {}
        }
    }
    Ok(())
}

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// Runs `f(thread)` on `threads` threads and passes on the first failure.
pub(crate) fn on_threads(threads: usize, f: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|i| {
                scope.spawn({
                    let f = &f;
                    move || f(i)
                })
            })
            .collect();
        all.into_iter().try_for_each(|h| h.join().map_err(|_| "a thread panicked")?)
    })
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn dir_name(base: &str, d: usize) -> String {
    join(base, &format!("d{d:04}"))
}

pub(crate) fn file_name(base: &str, d: usize, f: usize) -> String {
    format!("{}/file-{f:06}", dir_name(base, d))
}
