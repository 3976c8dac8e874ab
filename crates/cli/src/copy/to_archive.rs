//! A tar archive as sink.

use std::io::{self, Read, Write};
use std::ops::Range;

use extant_format::acl::Acl;
use extant_format::inode::FileType;
use extant_mkfs::archive::{acl_to_text, pax};
use tar::{EntryType, Header};

use super::{Added, Content, Meta, Sink, What};
use crate::fail::{Failure, Outcome, show_path};

/// An archive to write: PAX headers where the old ones do not hold a path, a time or an attribute.
pub(crate) struct ArchiveSink<W: Write> {
    out: tar::Builder<W>,
    name: String,
}

impl<W: Write> ArchiveSink<W> {
    pub(crate) fn new(out: W, name: &str) -> Self {
        Self { out: tar::Builder::new(out), name: name.to_owned() }
    }

    fn failed(&self, err: &io::Error) -> Failure {
        Failure::writing(&self.name, err)
    }

    /// The PAX records of an item.
    fn records(item: &Item<'_>, meta: &Meta) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records = Vec::new();
        let mut put = |key: &[u8], value: Vec<u8>| records.push((key.to_vec(), value));
        if item.path.len() > 100 || !item.path.is_ascii() {
            put(b"path", item.path.to_vec());
        }
        if item.link.len() > 100 || !item.link.is_ascii() {
            put(b"linkpath", item.link.to_vec());
        }
        if item.stored >= 1 << 33 {
            put(b"size", item.stored.to_string().into_bytes());
        }
        if let Some((name, size)) = item.sparse {
            put(b"GNU.sparse.major", b"1".to_vec());
            put(b"GNU.sparse.minor", b"0".to_vec());
            put(b"GNU.sparse.name", name.to_vec());
            put(b"GNU.sparse.realsize", size.to_string().into_bytes());
        }
        for (key, id) in [(b"uid", meta.uid), (b"gid", meta.gid)] {
            if id >= 1 << 21 {
                put(key, id.to_string().into_bytes());
            }
        }
        if meta.mtime.nsec != 0 || !(0..1 << 33).contains(&meta.mtime.sec) {
            put(b"mtime", pax::time_text(meta.mtime));
        }
        for (name, value) in &meta.xattrs {
            // GNU tar takes lists from their text alone, others from the attribute.
            let text = match &name[..] {
                pax::XATTR_ACL_ACCESS => Some(pax::ACL_ACCESS),
                pax::XATTR_ACL_DEFAULT => Some(pax::ACL_DEFAULT),
                _ => None,
            };
            if let Some(key) = text
                && let Ok(Some(acl)) = Acl::from_xattr(value)
            {
                put(key, acl_to_text(&acl));
            }
            put(&pax::xattr_key(name), value.clone());
        }
        records
    }

    fn header(kind: EntryType, meta: &Meta, stored: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(u64::from(meta.uid));
        header.set_gid(u64::from(meta.gid));
        header.set_mtime(u64::try_from(meta.mtime.sec).unwrap_or(0));
        header.set_size(stored);
        header
    }

    fn file(&mut self, mut header: Header, path: &[u8], meta: &Meta, content: &mut dyn Content) -> Outcome {
        let size = content.size();
        let (mut all, mut at) = (DataRanges::new(MAX_RANGES), 0);
        while let Some(range) = content.data(at)? {
            at = range.end;
            all.add(range);
        }
        let ranges = all.ranges;
        let sum = ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        let (map, made_up) = (sparse_map(&ranges, size), sparse_name(path));
        let item = if sum == size {
            Item { path, link: b"", stored: size, sparse: None }
        } else {
            let stored = map.len() as u64 + sum;
            Item { path: &made_up, link: b"", stored, sparse: Some((path, size)) }
        };
        header.set_size(item.stored);
        self.name(&mut header, &item, meta).map_err(|err| self.failed(&err))?;
        let data = Ranges { content, ranges: ranges.into_iter(), now: 0..0, data: Some(0..0) };
        let appended = match item.sparse {
            Some(_) => self.out.append(&header, (&map[..]).chain(data)),
            None => self.out.append(&header, data),
        };
        appended.map_err(|err| self.failed(&err))
    }

    /// Writes the PAX records (as an entry of its own, as the format wants) and fills the header's names as far as they
    /// fit.
    fn name(&mut self, header: &mut Header, item: &Item<'_>, meta: &Meta) -> io::Result<()> {
        let records = Self::records(item, meta);
        let mut body = Vec::new();
        for (key, value) in &records {
            body.extend(pax::record(key, value));
        }
        if !body.is_empty() {
            let mut pax = Header::new_ustar();
            pax.set_entry_type(EntryType::XHeader);
            pax.set_size(body.len() as u64);
            pax.set_mode(0o644);
            fill_name(&mut pax, b"pax", b"");
            pax.set_cksum();
            self.out.append(&pax, &body[..])?;
        }
        fill_name(header, item.path, item.link);
        header.set_cksum();
        Ok(())
    }
}

fn fill_name(header: &mut Header, path: &[u8], link: &[u8]) {
    let old = header.as_old_mut();
    let put = |field: &mut [u8], bytes: &[u8]| {
        let len = bytes.len().min(field.len());
        field[..len].copy_from_slice(&bytes[..len]);
    };
    put(&mut old.name, path);
    put(&mut old.linkname, link);
}

/// What the headers of an item say beside owner, permissions, time and attributes.
struct Item<'a> {
    path: &'a [u8],
    link: &'a [u8],
    /// Bytes of content in the archive.
    stored: u64,
    /// The real name and size of a file with holes.
    sparse: Option<(&'a [u8], u64)>,
}

impl<W: Write> Sink for ArchiveSink<W> {
    fn add(&mut self, path: &[u8], meta: &Meta, what: What<'_>) -> Outcome<Added> {
        let name = match (&what, path) {
            (What::Dir, b"") => b"./".to_vec(),
            (What::Dir, path) => [path, b"/"].concat(),
            (_, path) => path.to_vec(),
        };
        let (kind, link) = match &what {
            What::Dir => (EntryType::Directory, Vec::new()),
            What::File(_) => (EntryType::Regular, Vec::new()),
            What::Symlink(target) => (EntryType::Symlink, target.clone()),
            What::Link(first) => (EntryType::Link, first.clone()),
            What::Special(FileType::Fifo, ..) => (EntryType::Fifo, Vec::new()),
            What::Special(FileType::CharDevice, ..) => (EntryType::Char, Vec::new()),
            What::Special(FileType::BlockDevice, ..) => (EntryType::Block, Vec::new()),
            What::Special(..) => {
                eprintln!("extant: {}: tar has no sockets; left out", show_path(path));
                return Ok(Added::LeftOut);
            }
        };
        let mut header = Self::header(kind, meta, 0);
        if let What::Special(_, major, minor) = what {
            let set = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
            set.map_err(|err| self.failed(&err))?;
        }
        if let What::File(content) = what {
            return self.file(header, &name, meta, content).map(|()| Added::Taken);
        }
        let item = Item { path: &name, link: &link, stored: 0, sparse: None };
        self.name(&mut header, &item, meta).map_err(|err| self.failed(&err))?;
        self.out.append(&header, io::empty()).map(|()| Added::Taken).map_err(|err| self.failed(&err))
    }

    fn finish(&mut self) -> Outcome {
        let finished = self.out.finish().and_then(|()| self.out.get_mut().flush());
        finished.map_err(|err| self.failed(&err))
    }
}

/// Most ranges in the map of a file: all of them are in memory, and a small image can have files of 2^29.
const MAX_RANGES: usize = 1 << 20;

/// Where a file has data. If there are too many ranges, small holes count as data, which is zeros.
struct DataRanges {
    ranges: Vec<Range<u64>>,
    most: usize,
    /// Holes below so many bytes are left out.
    least_hole: u64,
}

impl DataRanges {
    fn new(most: usize) -> Self {
        Self { ranges: Vec::new(), most, least_hole: 1 }
    }

    /// Takes the next range.
    fn add(&mut self, range: Range<u64>) {
        self.join(range);
        while self.ranges.len() > self.most {
            self.least_hole = self.least_hole.saturating_mul(2);
            for range in std::mem::take(&mut self.ranges) {
                self.join(range);
            }
        }
    }

    fn join(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if range.start - last.end < self.least_hole => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

/// The map of a file with holes, as GNU's sparse format 1.0 wants it before the data: the number of ranges, their offsets
/// and lengths, one a line, filled up to 512 bytes. An empty range ends what ends in a hole.
fn sparse_map(ranges: &[Range<u64>], size: u64) -> Vec<u8> {
    let tail = (ranges.last().map_or(0, |range| range.end) < size).then_some(size..size);
    let mut map = format!("{}\n", ranges.len() + usize::from(tail.is_some()));
    for range in ranges.iter().chain(&tail) {
        map.push_str(&format!("{}\n{}\n", range.start, range.end - range.start));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// The name under which who does not know the format unpacks map and data, as GNU tar makes it up.
fn sparse_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    [&path[..at], b"GNUSparseFile.0/", &path[at..]].concat()
}

/// The data of a content, one range behind the other.
struct Ranges<'a> {
    content: &'a mut dyn Content,
    ranges: std::vec::IntoIter<Range<u64>>,
    /// What is left of the present one.
    now: Range<u64>,
    /// The content's own range there or behind: small holes may be in between. None behind the last.
    data: Option<Range<u64>>,
}

impl Read for Ranges<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.ranges.next() {
                Some(range) => self.now = range,
                None => return Ok(0),
            }
        }
        let failed = |failure: Failure| io::Error::other(failure.to_string());
        let at = self.now.start;
        if self.data.as_ref().is_some_and(|data| data.end <= at) {
            self.data = self.content.data(at).map_err(failed)?;
        }
        let data = self.data.clone().unwrap_or(u64::MAX..u64::MAX);
        let is_data = data.contains(&at);
        let end = if is_data { data.end } else { data.start };
        let left = end.min(self.now.end) - at;
        let len = buf.len().min(usize::try_from(left).unwrap_or(buf.len()));
        if is_data {
            self.content.read(at, &mut buf[..len]).map_err(failed)?;
        } else {
            buf[..len].fill(0);
        }
        self.now.start += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;

    use extant_format::Timestamp;
    use extant_mkfs::archive::{Members, Unpacked};

    use super::{
        Added, ArchiveSink, Content, DataRanges, MAX_RANGES, Meta, Outcome, Range, Sink as _, What,
        sparse_map, sparse_name,
    };

    /// So many ranges of one byte, with as many holes behind them.
    struct Comb(u64);

    impl Content for Comb {
        fn size(&self) -> u64 {
            2 * self.0
        }

        fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
            let start = from.next_multiple_of(2);
            Ok((start < self.size()).then_some(start..start + 1))
        }

        fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
            assert!(offset.is_multiple_of(2) && buf.len() == 1, "{offset} is read where no data is");
            buf[0] = 1 + (offset % 101) as u8;
            Ok(())
        }
    }

    #[test]
    fn small_holes_are_left_out_first() {
        let ranges = [0..10, 11..20, 23..30, 1030..1031, 1033..1040, 9000..9001];
        let found = |most| {
            let mut all = DataRanges::new(most);
            ranges.iter().for_each(|range| all.add(range.clone()));
            all.ranges
        };
        assert_eq!(found(6), ranges);
        assert_eq!(found(5), [0..20, 23..30, 1030..1031, 1033..1040, 9000..9001]);
        assert_eq!(found(4), [0..30, 1030..1040, 9000..9001]);
        assert_eq!(found(2), [0..1040, 9000..9001]);
        assert!(matches!(&found(1)[..], [all] if *all == (0..9001)));
    }

    #[test]
    fn more_ranges_than_a_map_may_have_are_data_with_zeros_between() {
        let meta = Meta {
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        };
        let most = MAX_RANGES as u64;
        for (count, ranges) in [(3, 3), (most, most), (most + 1, 1)] {
            let mut bytes = Vec::new();
            let mut sink = ArchiveSink::new(&mut bytes, "archive");
            let added = sink.add(b"comb", &meta, What::File(&mut Comb(count)));
            assert!(matches!(added, Ok(Added::Taken)));
            drop(sink);
            let input = Unpacked::new(Box::new(&bytes[..])).unwrap();
            let mut members = Members::new(input, Path::new("archive"), true);
            let member = members.next_member().unwrap().unwrap();
            let data = member.data.unwrap();
            assert_eq!((&member.path[..], member.size, data.len() as u64), (&b"comb"[..], 2 * count, ranges));
            let mut content = vec![0; member.stored as usize];
            members.read_exact(&mut content).unwrap();
            for range in data {
                let stored = &content[range.before as usize..][..range.len as usize];
                for (at, byte) in (range.offset..).zip(stored) {
                    let expected = if at % 2 == 0 { 1 + (at % 101) as u8 } else { 0 };
                    assert!(*byte == expected, "{count} ranges: {byte} at {at}");
                }
            }
        }
    }

    #[test]
    fn maps_of_holes() {
        let text = |ranges: &[std::ops::Range<u64>], size| {
            let map = sparse_map(ranges, size);
            assert!(map.len().is_multiple_of(512));
            String::from_utf8(map).unwrap().trim_end_matches('\0').to_owned()
        };
        assert_eq!(text(&[], 7), "1\n7\n0\n");
        assert_eq!(text(&[0..512, 4096..8192], 8192), "2\n0\n512\n4096\n4096\n");
        assert_eq!(text(&[0..10, 4096..8192], 1 << 40), "3\n0\n10\n4096\n4096\n1099511627776\n0\n");
        assert_eq!(sparse_name(b"a/b/c"), b"a/b/GNUSparseFile.0/c");
        assert_eq!(sparse_name(b"c"), b"GNUSparseFile.0/c");
    }
}
