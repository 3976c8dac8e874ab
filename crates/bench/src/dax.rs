//! Files that go past the page cache to a device that is memory: loads and stores beside a mapping of a plain file, reads beside a copy
//! in memory, and what a change of the mode takes.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use extant::{
    Credentials, Filesystem, InodeFlags, MapOptions, NewInode, OpenFile, OpenMode, Protection, Setup,
};
use extant_sys::FileMap;

use crate::target::Result;
use crate::{Args, Outcome};

/// Bytes of a read.
const MIB: usize = 1 << 20;
/// Bytes from one word to the next: a line of the processor's cache.
const LINE: usize = 64;
/// How often the whole file is gone through.
const PASSES: u64 = 8;

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The image `path=`, a file of `mib=` in it, and a plain file `plain=` of that size in the same tmpfs.
pub(crate) fn run(args: &Args, out: &mut Outcome) -> Result<()> {
    let len = args.size("mib", 256)? * MIB;
    let device = extant_device::OpenOptions::new().write(true).open(args.text("path", ""))?;
    let fs = Filesystem::open(Arc::new(device), Setup::with_options("cache_size=64g")?)?;
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root()?, b"dax", &NewInode::file(0o600), &cred)?;
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred)?;
    let flip = || Ok(fs.set_flags(&inode, inode.attr().flags ^ InodeFlags::DAX, &cred)?);
    flip()?;
    if !fs.effective_dax(&inode) {
        return Err("the image is on no tmpfs".into());
    }
    file.fallocate(extant::FallocateMode::Allocate, 0, len as u64, false)?;
    let piece = vec![1; MIB];
    for at in (0..len).step_by(MIB) {
        file.write_at(at as u64, &piece)?;
    }
    loads_and_stores(&file, args.text("plain", ""), len, out)?;
    reads(&file, len, out)?;
    // A mapped file with all of its pages in memory, and the windows of one without.
    let map =
        file.map(0, len, &MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() })?;
    flip()?;
    for at in (0..len).step_by(crate::mapped::PAGE) {
        map.atomic_u64(at).fetch_add(1, Relaxed);
    }
    file.fsync(false)?;
    out.parts.push(("to_dax", seconds(flip)?));
    for at in (0..len).step_by(crate::mapped::PAGE) {
        map.atomic_u64(at).fetch_add(1, Relaxed);
    }
    out.parts.push(("to_cache", seconds(flip)?));
    drop((map, file));
    drop(inode);
    Ok(fs.unmount()?)
}

fn loads_and_stores(file: &OpenFile, plain: &str, len: usize, out: &mut Outcome) -> Result<()> {
    let other = File::options().read(true).write(true).create(true).truncate(true).open(plain)?;
    for at in (0..len).step_by(MIB) {
        std::os::unix::fs::FileExt::write_all_at(&other, &vec![1; MIB], at as u64)?;
    }
    let theirs = FileMap::new(&other, len)?;
    let ours =
        file.map(0, len, &MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() })?;
    let words = || (0..len).step_by(LINE);
    let mut load = |name: &'static str, word: &dyn Fn(usize) -> u64| -> Result<()> {
        out.parts.push((
            name,
            seconds(|| {
                for _ in 0..PASSES {
                    words().for_each(|at| {
                        black_box(word(at));
                    });
                }
                Ok(())
            })?,
        ));
        Ok(())
    };
    load("first_ours", &|at| ours.atomic_u64(at).load(Relaxed))?;
    load("first_plain", &|at| theirs.atomic_u64(at).load(Relaxed))?;
    load("load_ours", &|at| ours.atomic_u64(at).load(Relaxed))?;
    load("load_plain", &|at| theirs.atomic_u64(at).load(Relaxed))?;
    load("store_ours", &|at| {
        ours.atomic_u64(at).store(at as u64, Relaxed);
        0
    })?;
    load("store_plain", &|at| {
        theirs.atomic_u64(at).store(at as u64, Relaxed);
        0
    })?;
    drop(theirs);
    std::fs::remove_file(plain)?;
    Ok(())
}

/// What is done with each MiB, by its offset.
type OnePiece<'a> = dyn FnMut(usize, &mut [u8]) -> Result<()> + 'a;

fn reads(file: &OpenFile, len: usize, out: &mut Outcome) -> Result<()> {
    let memory = vec![1_u8; len];
    let mut buf = vec![0_u8; MIB];
    let mut all = |one: &mut OnePiece<'_>| {
        seconds(|| {
            for _ in 0..PASSES {
                for at in (0..len).step_by(MIB) {
                    one(at, &mut buf)?;
                    black_box(&buf);
                }
            }
            Ok(())
        })
    };
    // The first of each warms up.
    for (name, copy) in [("read_warm", "memcpy_warm"), ("read", "memcpy")] {
        out.parts.push((
            name,
            all(&mut |at, buf| {
                file.read_at(at as u64, buf)?;
                Ok(())
            })?,
        ));
        out.parts.push((
            copy,
            all(&mut |at, buf| {
                buf.copy_from_slice(&memory[at..at + MIB]);
                Ok(())
            })?,
        ));
    }
    Ok(())
}
