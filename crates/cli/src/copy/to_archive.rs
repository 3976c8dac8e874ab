//! A tar archive as sink.

use std::io::{self, Read, Write};
use std::ops::Range;

use extant_format::inode::{FileType, Timestamp};
use tar::{EntryType, Header};

use super::{Added, Content, Meta, PAX_XATTR, Sink, What};
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
    fn records(path: &[u8], link: &[u8], meta: &Meta, size: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records = Vec::new();
        let mut put = |key: &[u8], value: Vec<u8>| records.push((key.to_vec(), value));
        if path.len() > 100 || !path.is_ascii() {
            put(b"path", path.to_vec());
        }
        if link.len() > 100 || !link.is_ascii() {
            put(b"linkpath", link.to_vec());
        }
        if size >= 1 << 33 {
            put(b"size", size.to_string().into_bytes());
        }
        if meta.mtime.nsec != 0 || !(0..1 << 33).contains(&meta.mtime.sec) {
            put(b"mtime", time_text(meta.mtime));
        }
        for (name, value) in &meta.xattrs {
            put(&[PAX_XATTR, name].concat(), value.clone());
        }
        records
    }

    fn header(kind: EntryType, meta: &Meta, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(u64::from(meta.uid));
        header.set_gid(u64::from(meta.gid));
        header.set_mtime(u64::try_from(meta.mtime.sec).unwrap_or(0));
        header.set_size(size);
        header
    }

    /// Writes the PAX records (as an entry of its own, as the format wants) and fills the header's names as far as they
    /// fit.
    fn name(
        &mut self,
        header: &mut Header,
        path: &[u8],
        link: &[u8],
        meta: &Meta,
        size: u64,
    ) -> io::Result<()> {
        let records = Self::records(path, link, meta, size);
        let mut body = Vec::new();
        for (key, value) in &records {
            body.extend(pax_record(key, value));
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
        fill_name(header, path, link);
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

/// `LEN KEY=VALUE\n`, where LEN counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

pub(super) fn time_text(time: Timestamp) -> Vec<u8> {
    let Timestamp { sec, nsec } = time;
    if sec < 0 && nsec > 0 {
        return format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec).into_bytes();
    }
    format!("{sec}.{nsec:09}").into_bytes()
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
        let size = if let What::File(content) = &what { content.size() } else { 0 };
        let mut header = Self::header(kind, meta, size);
        if let What::Special(_, major, minor) = what {
            let set = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
            set.map_err(|err| self.failed(&err))?;
        }
        self.name(&mut header, &name, &link, meta, size).map_err(|err| self.failed(&err))?;
        let appended = match what {
            What::File(content) => self.out.append(&header, Filled { content, at: 0, next: None }),
            _ => self.out.append(&header, io::empty()),
        };
        appended.map(|()| Added::Taken).map_err(|err| self.failed(&err))
    }

    fn finish(&mut self) -> Outcome {
        let finished = self.out.finish().and_then(|()| self.out.get_mut().flush());
        finished.map_err(|err| self.failed(&err))
    }
}

/// A content as a stream, holes as zeroes.
struct Filled<'a> {
    content: &'a mut dyn Content,
    at: u64,
    /// The data range at or after `at`, if it is known.
    next: Option<Range<u64>>,
}

impl Read for Filled<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let failed = |failure: Failure| io::Error::other(failure.to_string());
        let size = self.content.size();
        if self.at >= size || buf.is_empty() {
            return Ok(0);
        }
        if self.next.as_ref().is_none_or(|range| range.end <= self.at) {
            self.next = Some(self.content.data(self.at).map_err(failed)?.unwrap_or(size..size));
        }
        let range = self.next.clone().unwrap_or(size..size);
        let (data, end) = if self.at < range.start { (false, range.start) } else { (true, range.end) };
        let len = buf.len().min(usize::try_from(end - self.at).unwrap_or(buf.len()));
        if data {
            self.content.read(self.at, &mut buf[..len]).map_err(failed)?;
        } else {
            buf[..len].fill(0);
        }
        self.at += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::pax_record;

    #[test]
    fn a_pax_record_counts_itself() {
        assert_eq!(pax_record(b"path", b"abc"), b"12 path=abc\n");
        for len in [1, 80, 88, 89, 90, 91, 985, 990, 9983, 9990] {
            let record = pax_record(b"key", &vec![b'x'; len]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(record.len()));
        }
    }
}
