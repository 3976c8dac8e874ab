//! One request of a mounted filesystem, over and over: each call here reaches the server, none is answered from the
//! kernel's caches.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

use crate::target::Result;
use crate::work;

const MIB: usize = 1 << 20;
/// Size of the file that is read and written, MiB: less than what starts a writeback or leaves a cache.
const FILE_MIB: u64 = 16;

/// What `create` made beforehand.
pub(crate) struct Files {
    pub(crate) base: String,
    pub(crate) dirs: usize,
    pub(crate) files: usize,
}

/// Does `n` of what `name` says below `dir`; answers how long they took, without what prepares them.
pub(crate) fn run(name: &str, dir: &Path, n: u64, files: &Files) -> Result<Duration> {
    match name {
        "rate-getattr" => getattr(dir, n),
        "rate-lookup" => lookup(dir, files),
        "rate-create-unlink" => timed(n, |i| {
            let path = dir.join(format!("new-{i}"));
            OpenOptions::new().write(true).create_new(true).open(&path)?;
            Ok(fs::remove_file(&path)?)
        }),
        "rate-open-close" => {
            let path = dir.join("file");
            timed(n, |_| Ok(File::open(&path).map(drop)?))
        }
        "rate-write-4k" => write_4k(dir, n),
        "rate-read-4k" => read_direct(dir, n, 4096),
        "rate-read-1m" => read_direct(dir, n, MIB),
        "rate-prepare" => prepare(dir),
        _ => Err(format!("no rate named {name}").into()),
    }
}

fn timed(n: u64, mut f: impl FnMut(u64) -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    for i in 0..n {
        f(i)?;
    }
    Ok(begin.elapsed())
}

/// Makes the file that the others read and write.
fn prepare(dir: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let data = work::pattern(MIB, 5);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(dir.join("file"))?;
    for i in 0..FILE_MIB {
        file.write_all_at(&data, i << 20)?;
    }
    file.sync_all()?;
    Ok(begin.elapsed())
}

/// Has the kernel forget all names, inodes and pages of this one mount, which a remount does; other mounts and their users keep
/// theirs.
pub(crate) fn forget(dir: &Path) -> Result<()> {
    Ok(rustix::mount::mount_remount(dir, rustix::mount::MountFlags::empty(), c"")?)
}

/// Attributes that must be the server's own, whatever is cached.
fn getattr(dir: &Path, n: u64) -> Result<Duration> {
    let file = File::open(dir.join("file"))?;
    timed(n, |_| {
        statx(&file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
        Ok(())
    })
}

/// A stat of each of `files` whose name the kernel has forgotten.
fn lookup(dir: &Path, files: &Files) -> Result<Duration> {
    let all: Vec<_> =
        (0..files.files).map(|f| dir.join(work::file_name(&files.base, f % files.dirs.max(1), f))).collect();
    forget(dir)?;
    // What was dropped is told to the server among the next requests; it is not to be counted.
    getattr(dir, 200)?;
    let mut paths = all.iter();
    timed(all.len() as u64, |_| {
        let path = paths.next().ok_or("as many as there are")?;
        Ok(rustix::fs::lstat(path).map(drop)?)
    })
}

fn write_4k(dir: &Path, n: u64) -> Result<Duration> {
    let file = OpenOptions::new().write(true).open(dir.join("file"))?;
    let data = work::pattern(4096, 9);
    timed(n, |i| Ok(file.write_all_at(&data, i % (FILE_MIB << 8) * 4096)?))
}

fn read_direct(dir: &Path, n: u64, len: usize) -> Result<Duration> {
    let direct = i32::try_from(OFlags::DIRECT.bits())?;
    let file = OpenOptions::new().read(true).custom_flags(direct).open(dir.join("file"))?;
    let mut room = vec![0; len + 4096];
    let start = room.as_ptr().align_offset(4096);
    let buffer = &mut room[start..start + len];
    let pieces = FILE_MIB * MIB as u64 / len as u64;
    timed(n, |i| Ok(file.read_exact_at(buffer, i % pieces * len as u64)?))
}
