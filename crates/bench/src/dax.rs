//! Files that go past the page cache to a device that is memory: loads and stores beside a plain mapping of the device, reads beside a
//! copy from there, and what a change of the mode takes.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use extant::{
    Credentials, FiemapHow, Filesystem, InodeFlags, MapOptions, NewInode, OpenFile, OpenMode, Protection,
    Setup,
};
use extant_device::{BlockDevice, FileDevice};
use extant_sys::FileMap;

use crate::target::Result;
use crate::{Args, Outcome};

/// Bytes of a read.
const MIB: usize = 1 << 20;
/// Words from one that is touched to the next: a line of the processor's cache.
const LINE: usize = 8;
/// How often the whole file is gone through.
const PASSES: u64 = 8;

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// A run of bytes of the file that lie in a row on the device.
#[derive(Clone, Copy)]
struct Piece {
    at: usize,
    on_device: usize,
    len: usize,
}

/// A file of `mib=` in the image `path=`, on a device that is the image's memory; `device=file`: on the image itself, and only reads.
pub(crate) fn run(args: &Args, out: &mut Outcome) -> Result<()> {
    let (path, len) = (args.text("path", ""), args.size("mib", 256)? * MIB);
    let image = File::options().read(true).write(true).open(path)?;
    let in_memory = args.text("device", "memory") == "memory";
    let device: Arc<dyn BlockDevice> = if in_memory {
        copy_in(&image)?
    } else {
        Arc::new(extant_device::OpenOptions::new().write(true).open(path)?)
    };
    let fs = Filesystem::open(Arc::clone(&device), Setup::with_options("cache_size=64g")?)?;
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root()?, b"dax", &NewInode::file(0o600), &cred)?;
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred)?;
    let flip = || Ok(fs.set_flags(&inode, inode.attr().flags ^ InodeFlags::DAX, &cred)?);
    flip()?;
    if !fs.effective_dax(&inode) {
        return Err("the device is no memory".into());
    }
    file.fallocate(extant::FallocateMode::Allocate, 0, len as u64, false)?;
    let piece = vec![1; MIB];
    for at in (0..len).step_by(MIB) {
        file.write_at(at as u64, &piece)?;
    }
    let memory = device.direct_access().ok_or("a device without memory")?;
    let plain = FileMap::new(memory.memory(), usize::try_from(device.size())?)?;
    let pieces = pieces(&file, len)?;
    if in_memory {
        loads_and_stores(&file, &plain, &pieces, len, out)?;
    }
    reads(&file, &plain, &pieces, len, out)?;
    if in_memory {
        // A mapped file with all of its pages in memory, and the windows of one without.
        let protection = Protection::READ_WRITE;
        let map = file.map(0, len, &MapOptions { protection, ..MapOptions::default() })?;
        let touch = || {
            for at in (0..len).step_by(crate::mapped::PAGE) {
                map.atomic_u64(at).fetch_add(1, Relaxed);
            }
        };
        flip()?;
        touch();
        file.fsync(false)?;
        switch(&fs, out, ["to_dax", "to_dax_held", "to_dax_writing", "to_dax_freeing"], flip)?;
        touch();
        switch(&fs, out, ["to_cache", "to_cache_held", "to_cache_writing", "to_cache_freeing"], flip)?;
        touch();
    }
    drop((plain, file, inode));
    fs.unmount()?;
    drop(fs);
    if in_memory { copy_out(&*device, &image) } else { Ok(()) }
}

fn copy_in(image: &File) -> Result<Arc<dyn BlockDevice>> {
    let size = image.metadata()?.len();
    let device = FileDevice::in_memory(size)?;
    let mut bytes = vec![0; MIB];
    for at in (0..size).step_by(MIB) {
        let n = (size - at).min(MIB as u64) as usize;
        image.read_exact_at(&mut bytes[..n], at)?;
        if bytes[..n].iter().any(|b| *b != 0) {
            device.write_at(at, &bytes[..n])?;
        }
    }
    Ok(Arc::new(device))
}

fn copy_out(device: &dyn BlockDevice, image: &File) -> Result<()> {
    let mut bytes = vec![0; MIB];
    for at in (0..device.size()).step_by(MIB) {
        let n = (device.size() - at).min(MIB as u64) as usize;
        device.read_at(at, &mut bytes[..n])?;
        image.write_all_at(&bytes[..n], at)?;
    }
    Ok(())
}

fn pieces(file: &OpenFile, len: usize) -> Result<Vec<Piece>> {
    let piece = |e: &extant::FiemapExtent| Piece {
        at: e.logical as usize,
        on_device: e.physical as usize,
        len: e.length as usize,
    };
    let all: Vec<Piece> =
        file.fiemap(0, len as u64, FiemapHow::default(), usize::MAX)?.iter().map(piece).collect();
    let whole: usize = all.iter().map(|piece| piece.len).sum();
    if whole == len { Ok(all) } else { Err(format!("{whole} bytes of {len} are on the device").into()) }
}

/// What a change of the mode takes: all of it; while everybody waits; of this, writing and freeing pages.
fn switch(
    fs: &Filesystem,
    out: &mut Outcome,
    names: [&'static str; 4],
    flip: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let whole = seconds(flip)?;
    let times = fs.last_dax_switch().ok_or("nothing was switched")?;
    let all = [whole, times.held.as_secs_f64(), times.writing.as_secs_f64(), times.freeing.as_secs_f64()];
    out.parts.extend(names.into_iter().zip(all));
    Ok(())
}

/// Both of two things in turn, so many times: the seconds of each.
fn in_turn(
    times: u64,
    mut one: impl FnMut() -> Result<()>,
    mut other: impl FnMut() -> Result<()>,
) -> Result<[f64; 2]> {
    let mut all = [0.0; 2];
    for _ in 0..times {
        all[0] += seconds(&mut one)?;
        all[1] += seconds(&mut other)?;
    }
    Ok(all)
}

fn loads_and_stores(
    file: &OpenFile,
    plain: &FileMap,
    pieces: &[Piece],
    len: usize,
    out: &mut Outcome,
) -> Result<()> {
    let map =
        file.map(0, len, &MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() })?;
    let (ours, theirs) = (map.atomic_u64s(0, len / 8), plain.atomic_u64s());
    let load = |word: &AtomicU64| {
        black_box(word.load(Relaxed));
    };
    let store = |word: &AtomicU64| word.store(1, Relaxed);
    let mine = |p: &Piece| &ours[p.at / 8..(p.at + p.len) / 8];
    let its = |p: &Piece| &theirs[p.on_device / 8..(p.on_device + p.len) / 8];
    let first = in_turn(1, || all(pieces, mine, load), || all(pieces, its, load))?;
    let loads = in_turn(PASSES, || all(pieces, mine, load), || all(pieces, its, load))?;
    let stores = in_turn(PASSES, || all(pieces, mine, store), || all(pieces, its, store))?;
    out.parts.extend(["first_ours", "first_plain"].into_iter().zip(first));
    out.parts.extend(["load_ours", "load_plain"].into_iter().zip(loads));
    out.parts.extend(["store_ours", "store_plain"].into_iter().zip(stores));
    Ok(())
}

/// One word of each line.
fn all<'m>(
    pieces: &[Piece],
    words: impl Fn(&Piece) -> &'m [AtomicU64],
    one: impl Fn(&AtomicU64),
) -> Result<()> {
    pieces.iter().for_each(|piece| words(piece).iter().step_by(LINE).for_each(&one));
    Ok(())
}

/// What is read in one call.
fn chunks(pieces: &[Piece]) -> Vec<Piece> {
    let cut = |piece: &Piece| {
        let piece = *piece;
        (0..piece.len).step_by(MIB).map(move |skip| Piece {
            at: piece.at + skip,
            on_device: piece.on_device + skip,
            len: MIB.min(piece.len - skip),
        })
    };
    pieces.iter().flat_map(cut).collect()
}

/// Reads beside copies from a plain mapping of the device, and from memory of the program's own.
fn reads(file: &OpenFile, plain: &FileMap, pieces: &[Piece], len: usize, out: &mut Outcome) -> Result<()> {
    let own = vec![1_u8; len];
    let (mut ours, mut theirs) = (vec![0_u8; MIB], vec![0_u8; MIB]);
    let chunks = chunks(pieces);
    let mut read = || {
        for chunk in &chunks {
            file.read_at(chunk.at as u64, &mut ours[..chunk.len])?;
            black_box(&ours);
        }
        Ok(())
    };
    let mut copy = |from: &dyn Fn(&Piece, &mut [u8])| {
        for chunk in &chunks {
            from(chunk, &mut theirs[..chunk.len]);
            black_box(&theirs);
        }
        Ok(())
    };
    let device = |chunk: &Piece, into: &mut [u8]| plain.copy_out(chunk.on_device, into);
    let memory = |chunk: &Piece, into: &mut [u8]| into.copy_from_slice(&own[chunk.at..][..chunk.len]);
    // The first of each warms up.
    in_turn(1, &mut read, || copy(&device))?;
    let beside_device = in_turn(PASSES, &mut read, || copy(&device))?;
    in_turn(1, &mut read, || copy(&memory))?;
    let beside_memory = in_turn(PASSES, &mut read, || copy(&memory))?;
    out.parts.extend(["read", "memcpy"].into_iter().zip(beside_device));
    out.parts.extend(["read_again", "memcpy_own"].into_iter().zip(beside_memory));
    Ok(())
}
