//! What the kernel has mapped where: `/proc/self/maps`, asked for one address (PROCMAP_QUERY, Linux 6.11), or read as text where the kernel
//! does not answer that.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, Stat, openat};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `PROCMAP_QUERY`, of `PROCFS_IOCTL_MAGIC`.
const QUERY: Opcode = opcode::read_write::<Query>(b'f', 17);
/// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`.
const OR_NEXT: u64 = 0x10;
/// `PROCMAP_QUERY_VMA_WRITABLE` and the like.
const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const EXECUTABLE: u64 = 1 << 2;
const SHARED: u64 = 1 << 3;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Query>() == 104);

/// The mappings of the process that opened it.
pub(crate) struct Maps(Source);

enum Source {
    /// The open text, which answers ioctls.
    Query(OwnedFd),
    /// The folder where the text is.
    Text(OwnedFd),
}

/// The kernel's mappings in a range, in order. After an error there are no more.
pub(crate) struct Walk<'a> {
    maps: &'a Maps,
    range: Range<usize>,
    /// What was read, in one piece: the text is not asked anew for each.
    text: Option<std::vec::IntoIter<Vma>>,
}

/// Which file, as the kernel says it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    major: u32,
    minor: u32,
    inode: u64,
}

/// One of the kernel's mappings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) range: Range<usize>,
    /// The byte of the file at its start.
    pub(crate) offset: u64,
    pub(crate) file: FileId,
    pub(crate) shared: bool,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) exec: bool,
}

impl FileId {
    /// Of a memory file, or one of a tmpfs.
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            major: rustix::fs::major(stat.st_dev),
            minor: rustix::fs::minor(stat.st_dev),
            inode: stat.st_ino,
        }
    }
}

impl Vma {
    /// The byte of the file at an address inside.
    pub(crate) fn file_byte(&self, addr: usize) -> u64 {
        self.offset + (addr - self.range.start) as u64
    }
}

impl Maps {
    /// Those of this process.
    ///
    /// # Errors
    /// The system's: there is no `/proc`.
    pub(crate) fn of_process() -> io::Result<Self> {
        let file = File::open("/proc/self/maps")?.into();
        match query(&file, 0) {
            Err(Errno::NOTTY) => Self::as_text(),
            _ => Ok(Self(Source::Query(crate::descriptor::lift(file)))),
        }
    }

    /// The same, read as text.
    ///
    /// # Errors
    /// As [`Self::of_process`].
    pub(crate) fn as_text() -> io::Result<Self> {
        let folder = openat(CWD, "/proc/self", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(Source::Text(crate::descriptor::lift(folder))))
    }

    /// The mapping that has an address.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn covering(&self, addr: usize) -> io::Result<Option<Vma>> {
        self.walk(addr..addr + 1).next().transpose()
    }

    /// The mappings that have any address of a range: asked for one after the other, or taken from one read of the text.
    pub(crate) fn walk(&self, range: Range<usize>) -> Walk<'_> {
        Walk { maps: self, range, text: None }
    }
}

impl Walk<'_> {
    fn step(&mut self) -> io::Result<Option<Vma>> {
        match &self.maps.0 {
            Source::Query(file) => Ok(query(file, self.range.start)?),
            Source::Text(folder) => {
                if self.text.is_none() {
                    self.text = Some(read(folder)?.into_iter());
                }
                Ok(self.text.as_mut().and_then(|all| all.find(|vma| vma.range.end > self.range.start)))
            }
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = io::Result<Vma>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let next = self.step().map(|vma| vma.filter(|vma| vma.range.start < self.range.end)).transpose();
        self.range.start = match &next {
            Some(Ok(vma)) => vma.range.end.min(self.range.end),
            Some(Err(_)) | None => self.range.end,
        };
        next
    }
}

/// The mapping that has an address, or else the next one behind it.
fn query(file: &OwnedFd, addr: usize) -> rustix::io::Result<Option<Vma>> {
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_flags: OR_NEXT,
        query_addr: addr as u64,
        ..Query::default()
    };
    // SAFETY: PROCMAP_QUERY takes a pointer to a `struct procmap_query`; with no room for names in it, it writes nothing else.
    let call = unsafe { Updater::<QUERY, Query>::new(&mut query) };
    // SAFETY: as above.
    match unsafe { ioctl(file, call) } {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let is = |flag| query.vma_flags & flag != 0;
    Ok(Some(Vma {
        range: query.vma_start as usize..query.vma_end as usize,
        offset: query.vma_offset,
        file: FileId { major: query.dev_major, minor: query.dev_minor, inode: query.inode },
        shared: is(SHARED),
        read: is(READABLE),
        write: is(WRITABLE),
        exec: is(EXECUTABLE),
    }))
}

/// All from the text. The file is opened anew: who else reads it moves no position of this one, from which the kernel would go on inside of a line.
fn read(folder: &OwnedFd) -> io::Result<Vec<Vma>> {
    let mut file = File::from(openat(folder, "maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let line = |line| parse(line).ok_or_else(|| io::Error::other("a line of /proc/self/maps"));
    text.lines().map(line).collect()
}

/// A line: `start-end perms offset major:minor inode path`.
fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, end) = words.next()?.split_once('-')?;
    let perms = words.next()?.as_bytes();
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    Some(Vma {
        range: hex(start)? as usize..hex(end)? as usize,
        offset,
        file: FileId { major: hex(major)? as u32, minor: hex(minor)? as u32, inode },
        shared: *perms.get(3)? == b's',
        read: perms[0] == b'r',
        write: perms[1] == b'w',
        exec: perms[2] == b'x',
    })
}

#[cfg(test)]
mod tests {
    use super::{FileId, Maps, Vma};
    use crate::MemFile;

    /// What is asked for and what is read say the same of every mapping of this process.
    #[test]
    fn two_ways_to_ask() {
        let (maps, text) = (Maps::of_process().expect("/proc"), Maps::as_text().expect("/proc"));
        // Something that stays where it is, with a file of ours behind it.
        let file = MemFile::new("maps", 4096).expect("a memory file");
        file.resize(4096).expect("resize");
        let id = FileId::of(&rustix::fs::fstat(&file).expect("stat"));
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::SHARED,
                &file,
                0,
            )
        }
        .expect("a mapping");
        let here = at.addr();
        let read = text.covering(here).expect("text").expect("mapped");
        assert_eq!((read.range.clone(), read.file), (here..here + 4096, id));
        assert_eq!((read.shared, read.read, read.write, read.exec), (true, true, false, false));
        assert_eq!(maps.covering(here).expect("an answer"), Some(read));
        // The program itself, which stays where it is too.
        let code = two_ways_to_ask as fn() as usize;
        let read = text.covering(code).expect("text");
        assert!(read.as_ref().is_some_and(|vma| vma.exec && vma.range.contains(&code)));
        assert_eq!(maps.covering(code).expect("an answer"), read);
        // SAFETY: exactly the mapping made above.
        unsafe { rustix::mm::munmap(at, 4096) }.expect("munmap");
    }

    /// All of a range, by both ways, while others read the text too.
    #[test]
    fn a_range_is_walked() {
        const PAGES: usize = 64;
        let len = PAGES * 4096;
        let file = MemFile::new("walk", 4096).expect("a memory file");
        file.resize(len as u64).expect("resize");
        let id = FileId::of(&rustix::fs::fstat(&file).expect("stat"));
        let (none, flags) = (rustix::mm::ProtFlags::empty(), rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let at =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, none, flags, &file, 0) }.expect("a mapping");
        for page in (1..PAGES).step_by(2) {
            let start = at.wrapping_byte_add(page * 4096);
            // SAFETY: a page of the mapping just made, which nobody knows.
            unsafe { rustix::mm::mprotect(start, 4096, rustix::mm::MprotectFlags::READ) }.expect("mprotect");
        }
        let (maps, text) = (Maps::of_process().expect("/proc"), Maps::as_text().expect("/proc"));
        let range = at.addr()..at.addr() + len;
        let walk = |maps: &Maps| maps.walk(range.clone()).collect::<Result<Vec<_>, _>>().expect("an answer");
        let asked = walk(&maps);
        // The last one may be one with what is behind it.
        assert_eq!(asked.len(), PAGES);
        let is_right = |(n, vma): (usize, &Vma)| {
            (vma.file, vma.read, vma.file_byte(range.start + n * 4096)) == (id, n % 2 == 1, n as u64 * 4096)
        };
        assert!(asked.iter().enumerate().all(is_right), "{asked:x?}");
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..20).for_each(|_| assert_eq!(walk(&text), asked)));
            }
        });
        let middle = range.start + 4096 * 7 + 1..range.start + 4096 * 9 + 1;
        for maps in [&maps, &text] {
            let part: Vec<Vma> = maps.walk(middle.clone()).collect::<Result<_, _>>().expect("an answer");
            assert_eq!(part, asked[7..10]);
        }
        // SAFETY: exactly the mapping made above.
        unsafe { rustix::mm::munmap(at, len) }.expect("munmap");
    }
}
