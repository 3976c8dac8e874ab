//! What the kernel has mapped where: `/proc/self/maps`, asked for one address (PROCMAP_QUERY, Linux 6.11), or read as text where the kernel
//! does not answer that.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::Stat;
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
pub(crate) struct Maps(OwnedFd);

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
        Ok(Self(crate::descriptor::lift(File::open("/proc/self/maps")?.into())))
    }

    /// The mapping that has an address, or else the next one behind it.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn at_or_behind(&self, addr: usize) -> io::Result<Option<Vma>> {
        match self.query(addr) {
            Err(Errno::NOTTY) => self.search(addr),
            done => Ok(done?),
        }
    }

    fn query(&self, addr: usize) -> rustix::io::Result<Option<Vma>> {
        let mut query = Query {
            size: size_of::<Query>() as u64,
            query_flags: OR_NEXT,
            query_addr: addr as u64,
            ..Query::default()
        };
        // SAFETY: PROCMAP_QUERY takes a pointer to a `struct procmap_query`; with no room for names in it, it writes nothing else.
        let call = unsafe { Updater::<QUERY, Query>::new(&mut query) };
        // SAFETY: as above.
        match unsafe { ioctl(&self.0, call) } {
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

    /// The same from the text.
    fn search(&self, addr: usize) -> io::Result<Option<Vma>> {
        let file = File::from(self.0.try_clone()?);
        let mut text = Vec::new();
        let mut part = vec![0; 1 << 16];
        loop {
            match file.read_at(&mut part, text.len() as u64)? {
                0 => break,
                got => text.extend_from_slice(&part[..got]),
            }
        }
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().filter_map(parse).find(|vma| vma.range.end > addr))
    }
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
    use super::{FileId, Maps};
    use crate::MemFile;

    /// What is asked for and what is read say the same of every mapping of this process.
    #[test]
    fn two_ways_to_ask() {
        let maps = Maps::of_process().expect("/proc");
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
        let searched = maps.search(here).expect("text").expect("mapped");
        assert_eq!((searched.range.clone(), searched.file), (here..here + 4096, id));
        assert_eq!(
            (searched.shared, searched.read, searched.write, searched.exec),
            (true, true, false, false)
        );
        assert_eq!(maps.at_or_behind(here).expect("an answer"), Some(searched));
        // The program itself, which stays where it is too.
        let code = two_ways_to_ask as fn() as usize;
        let searched = maps.search(code).expect("text");
        assert!(searched.as_ref().is_some_and(|vma| vma.exec && vma.range.contains(&code)));
        assert_eq!(maps.at_or_behind(code).expect("an answer"), searched);
        // SAFETY: exactly the mapping made above.
        unsafe { rustix::mm::munmap(at, 4096) }.expect("munmap");
    }
}
