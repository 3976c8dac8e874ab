//! File contents into place: chunks of the image that are contiguous, read by several threads and each written at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use extant_device::BlockDevice;

use super::tree::{Content, Kind, NodeId, Place, Tree};
use crate::error::{MkfsError, Result, source_error};
use crate::progress::Progress;
use crate::writer::device_error;

/// Bytes of an image that are put together in memory: few enough to be in the processor's cache still when they are written.
const CHUNK: u64 = 512 << 10;

/// Bytes of a file and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) node: NodeId,
    /// In the file.
    pub(super) offset: u64,
    /// In the file; the rest of the last block is zeros.
    pub(super) len: u64,
    /// In the image.
    pub(super) image: u64,
    /// In the image, whole blocks.
    pub(super) room: u64,
}

/// Copies all jobs, which are in ascending order of the image.
pub(super) fn copy(
    tree: &Tree,
    jobs: &[Job],
    device: &dyn BlockDevice,
    threads: usize,
    progress: &dyn Progress,
) -> Result<()> {
    let pieces = pieces(jobs);
    let chunks = chunks(&pieces);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        let mut copier = Copier { tree, device, buffer: Vec::new(), open: None };
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = chunks.get(at) else { return Ok(()) };
            if let Err(e) = copier.chunk(&pieces[range.clone()]) {
                stop.store(true, Ordering::Relaxed);
                return Err(e);
            }
            progress.advance(pieces[range.clone()].iter().map(|j| j.len).sum());
        }
        Ok(())
    };
    if threads <= 1 || chunks.len() < 4 {
        return work();
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut result = Ok(());
        for handle in handles {
            let done = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if result.is_ok() {
                result = done;
            }
        }
        result
    })
}

/// Jobs cut so that none is larger than a chunk.
fn pieces(jobs: &[Job]) -> Vec<Job> {
    let mut pieces = Vec::with_capacity(jobs.len());
    for job in jobs {
        let mut done = 0;
        while done < job.room {
            let room = (job.room - done).min(CHUNK);
            let len = job.len.saturating_sub(done).min(room);
            pieces.push(Job { offset: job.offset + done, len, image: job.image + done, room, ..*job });
            done += room;
        }
    }
    pieces
}

/// Ranges of pieces that follow each other in the image, each of about a chunk.
fn chunks(pieces: &[Job]) -> Vec<std::ops::Range<usize>> {
    let mut chunks: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (at, piece) in pieces.iter().enumerate() {
        let follows = at > 0 && pieces[at - 1].image + pieces[at - 1].room == piece.image;
        match chunks.last_mut() {
            Some(range) if follows && bytes + piece.room <= CHUNK => {
                range.end = at + 1;
                bytes += piece.room;
            }
            _ => {
                chunks.push(at..at + 1);
                bytes = piece.room;
            }
        }
    }
    chunks
}

struct Copier<'a> {
    tree: &'a Tree,
    device: &'a dyn BlockDevice,
    buffer: Vec<u8>,
    /// The host file that was read last: large files come in many pieces.
    open: Option<(NodeId, File)>,
}

impl Copier<'_> {
    fn chunk(&mut self, pieces: &[Job]) -> Result<()> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(()) };
        let total = (last.image + last.room - first.image) as usize;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < total {
            buffer.resize(total, 0);
        }
        for piece in pieces {
            let at = (piece.image - first.image) as usize;
            let (data, rest) = buffer[at..at + piece.room as usize].split_at_mut(piece.len as usize);
            self.read(piece, data)?;
            rest.fill(0);
        }
        self.device.write_at(first.image, &buffer[..total]).map_err(device_error("writing the image"))?;
        self.buffer = buffer;
        Ok(())
    }

    fn read(&mut self, piece: &Job, into: &mut [u8]) -> Result<()> {
        let Kind::Regular(content) = &self.tree.nodes[piece.node as usize].kind else { return Ok(()) };
        match &content.place {
            Place::Archive { file, offset } => {
                read_archive(self.tree, content, *file, *offset, piece.offset, into)
            }
            Place::Host { dir, name } => {
                let path = || self.tree.host_path(*dir, name);
                if self.open.as_ref().is_none_or(|(node, _)| *node != piece.node) {
                    let path = path();
                    let file = open_host(&path)?;
                    self.open = Some((piece.node, file));
                }
                let Some((_, file)) = &self.open else { return Ok(()) };
                file.read_exact_at(into, piece.offset).map_err(|e| short(path(), e))
            }
        }
    }
}

fn open_host(path: &std::path::Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nofollow).open(path);
    file.map_err(|e| source_error(path, e))
}

fn short(path: PathBuf, e: std::io::Error) -> MkfsError {
    if e.kind() == std::io::ErrorKind::UnexpectedEof {
        return MkfsError::Member {
            path,
            what: "the file became shorter while it was read; try again".to_owned(),
        };
    }
    MkfsError::Source { path, source: e }
}

/// Reads from the archive; with holes, data ranges follow each other there.
fn read_archive(
    tree: &Tree,
    content: &Content,
    file: u8,
    start: u64,
    offset: u64,
    into: &mut [u8],
) -> Result<()> {
    let Some(archive) = tree.archives.get(usize::from(file)) else { return Ok(()) };
    let fail = |e| short(PathBuf::from("the archive"), e);
    let Some(ranges) = &content.data else {
        return archive.read_exact_at(into, start + offset).map_err(fail);
    };
    into.fill(0);
    let end = offset + into.len() as u64;
    let first = ranges.partition_point(|d| d.offset + d.len <= offset);
    for d in ranges[first..].iter().take_while(|d| d.offset < end) {
        let (from, to) = (d.offset.max(offset), (d.offset + d.len).min(end));
        let target = &mut into[(from - offset) as usize..(to - offset) as usize];
        archive.read_exact_at(target, start + d.before + (from - d.offset)).map_err(fail)?;
    }
    Ok(())
}

/// All of a small file.
pub(super) fn whole(tree: &Tree, content: &Content) -> Result<Vec<u8>> {
    let mut bytes = vec![0; content.size as usize];
    match &content.place {
        Place::Archive { file, offset } => read_archive(tree, content, *file, *offset, 0, &mut bytes)?,
        Place::Host { dir, name } => {
            let path = tree.host_path(*dir, name);
            open_host(&path)?.read_exact_at(&mut bytes, 0).map_err(|e| short(path, e))?;
        }
    }
    Ok(bytes)
}
