//! A device's content as a value: sparse, shared between copies until written.

use std::fs::File;
use std::hash::Hasher as _;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

const CHUNK: usize = 4096;
const CHUNK_BYTES: u64 = CHUNK as u64;
/// Chunks in a leaf of the table: a copy of the content copies one pointer per leaf.
const LEAF: usize = 512;

type Chunk = Option<Arc<[u8; CHUNK]>>;
type Leaf = Option<Arc<Vec<Chunk>>>;

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn chunk_of(leaf: &Leaf, at: usize) -> Option<&Arc<[u8; CHUNK]>> {
    leaf.as_ref()?.get(at)?.as_ref()
}

fn bytes_of(chunk: Option<&Arc<[u8; CHUNK]>>) -> &[u8; CHUNK] {
    static ZEROES: [u8; CHUNK] = [0; CHUNK];
    chunk.map_or(&ZEROES, |chunk| chunk)
}

/// Bytes of a device. Cloning copies pointers only.
#[derive(Clone)]
pub struct Content {
    leaves: Vec<Leaf>,
    size: u64,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({} bytes)", self.size)
    }
}

impl Content {
    /// `size` zero bytes; takes next to no memory.
    #[must_use]
    pub fn zeroed(size: u64) -> Self {
        let leaves = size.div_ceil(CHUNK_BYTES * LEAF as u64) as usize;
        Self { leaves: vec![None; leaves], size }
    }

    /// The content of an image file; holes and zeroes take no memory.
    pub fn from_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut content = Self::zeroed(file.metadata()?.len());
        let mut buf = vec![0; 1 << 20];
        for (start, end) in data_ranges(&file, content.size) {
            let mut at = start;
            while at < end {
                let len = buf.len().min((end - at) as usize);
                file.read_exact_at(&mut buf[..len], at)?;
                content.write_nonzero(at, &buf[..len]);
                at += len as u64;
            }
        }
        Ok(content)
    }

    /// Writes the content to a file, sparse where it is zero.
    pub fn to_file(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size)?;
        for (at, chunk) in self.chunks() {
            let len = (self.size - at).min(CHUNK_BYTES) as usize;
            file.write_all_at(&chunk[..len], at)?;
        }
        Ok(())
    }

    /// Length in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// A hash of the content: equal contents have equal hashes, whatever their history.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        hasher.write_u64(self.size);
        for (at, chunk) in self.chunks() {
            if chunk.iter().any(|b| *b != 0) {
                hasher.write_u64(at);
                hasher.write(&chunk[..]);
            }
        }
        hasher.finish()
    }

    /// Writes what differs from `old` to a file that holds `old`, a content of the same size.
    pub fn update_file(&self, file: &File, old: &Self) -> io::Result<()> {
        assert_eq!(self.size, old.size, "contents of different sizes");
        for (l, (mine, theirs)) in self.leaves.iter().zip(&old.leaves).enumerate() {
            if same(mine.as_ref(), theirs.as_ref()) {
                continue;
            }
            for c in 0..LEAF {
                let (a, b) = (chunk_of(mine, c), chunk_of(theirs, c));
                if same(a, b) || bytes_of(a) == bytes_of(b) {
                    continue;
                }
                let at = (l * LEAF + c) as u64 * CHUNK_BYTES;
                let len = (self.size - at).min(CHUNK_BYTES) as usize;
                file.write_all_at(&bytes_of(a)[..len], at)?;
            }
        }
        Ok(())
    }

    /// Byte offsets of the chunks of 4,096 bytes that are not all zero.
    #[must_use]
    pub fn nonzero_chunks(&self) -> Vec<u64> {
        self.chunks().filter(|(_, chunk)| chunk.iter().any(|b| *b != 0)).map(|(at, _)| at).collect()
    }

    /// The chunks that are in memory, with their byte offsets.
    fn chunks(&self) -> impl Iterator<Item = (u64, &[u8; CHUNK])> {
        self.leaves.iter().enumerate().filter_map(|(l, leaf)| Some((l, leaf.as_ref()?))).flat_map(
            |(l, leaf)| {
                leaf.iter().enumerate().filter_map(move |(c, chunk)| {
                    Some(((l * LEAF + c) as u64 * CHUNK_BYTES, chunk.as_deref()?))
                })
            },
        )
    }

    /// Reads; the range must lie inside.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        self.assert_inside(offset, buf.len() as u64);
        let mut done = 0;
        while done < buf.len() {
            let (index, within, len) = split(offset + done as u64, buf.len() - done);
            let to = &mut buf[done..done + len];
            match self.chunk(index) {
                Some(chunk) => to.copy_from_slice(&chunk[within..within + len]),
                None => to.fill(0),
            }
            done += len;
        }
    }

    /// Writes; the range must lie inside.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.assert_inside(offset, data.len() as u64);
        let mut done = 0;
        while done < data.len() {
            let (index, within, len) = split(offset + done as u64, data.len() - done);
            self.chunk_mut(index)[within..within + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
    }

    /// Zeroes a range, giving whole chunks back.
    pub fn zero(&mut self, offset: u64, len: u64) {
        self.assert_inside(offset, len);
        let mut done = 0;
        while done < len {
            let room = usize::try_from(len - done).unwrap_or(usize::MAX);
            let (index, within, part) = split(offset + done, room);
            if part == CHUNK {
                if self.chunk(index).is_some() {
                    *self.slot(index) = None;
                }
            } else if self.chunk(index).is_some() {
                self.chunk_mut(index)[within..within + part].fill(0);
            }
            done += part as u64;
        }
    }

    fn write_nonzero(&mut self, offset: u64, data: &[u8]) {
        for (i, part) in data.chunks(CHUNK).enumerate() {
            if part.iter().any(|b| *b != 0) {
                self.write(offset + (i * CHUNK) as u64, part);
            }
        }
    }

    fn chunk(&self, index: usize) -> Option<&[u8; CHUNK]> {
        self.leaves[index / LEAF].as_ref()?[index % LEAF].as_deref()
    }

    fn slot(&mut self, index: usize) -> &mut Chunk {
        let leaf = self.leaves[index / LEAF].get_or_insert_with(|| Arc::new(vec![None; LEAF]));
        &mut Arc::make_mut(leaf)[index % LEAF]
    }

    fn chunk_mut(&mut self, index: usize) -> &mut [u8; CHUNK] {
        Arc::make_mut(self.slot(index).get_or_insert_with(|| Arc::new([0; CHUNK])))
    }

    fn assert_inside(&self, offset: u64, len: u64) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        assert!(inside, "{len} bytes at {offset} of {}", self.size);
    }
}

/// The chunk that holds `offset`, the place in it, and how much of `len` it holds.
fn split(offset: u64, len: usize) -> (usize, usize, usize) {
    let within = (offset % CHUNK_BYTES) as usize;
    ((offset / CHUNK_BYTES) as usize, within, len.min(CHUNK - within))
}

/// The ranges of a file that hold data, as the host's filesystem tells; the whole file where it cannot.
fn data_ranges(file: &File, size: u64) -> Vec<(u64, u64)> {
    use rustix::fs::SeekFrom;
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else {
            if ranges.is_empty() && at == 0 && rustix::fs::seek(file, SeekFrom::Hole(0)).is_err() {
                ranges.push((0, size));
            }
            break;
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size);
        ranges.push((start, end.min(size)));
        at = end;
    }
    ranges
}
