//! A tar archive (plain, gzip, zstd or xz) as source.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use extant_format::inode::{FileType, Timestamp};
use extant_mkfs::{Data, MkfsError, PaxSparse};
use tar::EntryType;

use super::{Added, Content, Meta, PAX_XATTR, Sink, Source, What, is_safe_name};
use crate::fail::{Failure, Outcome, show_path};

/// An archive to read, compressed or not: its first bytes say.
pub(crate) struct ArchiveSource {
    archive: tar::Archive<Box<dyn Read>>,
    /// For messages.
    name: String,
}

impl ArchiveSource {
    /// The archive at `path`; `-` is standard input.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let (raw, name): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin()), "standard input".to_owned())
        } else {
            let file = File::open(path).map_err(|err| Failure::host(path, &err))?;
            (Box::new(file), path.display().to_string())
        };
        let reader = decompressed(raw).map_err(|err| Failure::new(format!("{name}: {err}")))?;
        Ok(Self { archive: tar::Archive::new(reader), name })
    }
}

fn decompressed(mut raw: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    raw.by_ref().take(6).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(raw);
    let whole = BufReader::with_capacity(256 << 10, whole);
    Ok(match &magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(whole)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(whole)),
        _ => Box::new(whole),
    })
}

impl Source for ArchiveSource {
    fn feed(&mut self, sink: &mut dyn Sink) -> Outcome {
        let name = self.name.clone();
        let failed = |err: io::Error| Failure::new(format!("{name}: {err}"));
        let mut count = 0_u64;
        for entry in self.archive.entries().map_err(failed)? {
            if count == 0 && entry.is_err() {
                return Err(Failure::new(format!("{name}: not a tar archive (plain, gzip, zstd or xz)")));
            }
            let mut entry = entry.map_err(failed)?;
            count += 1;
            let kind = entry.header().entry_type();
            let sparse = pax_sparse(&mut entry, &name)?;
            let own = sparse.as_ref().and_then(PaxSparse::name).map(|n| n.into_os_string().into_vec());
            let path = relative(&own.unwrap_or_else(|| entry.path_bytes().into_owned()), &name)?;
            let meta = meta_of(&mut entry).map_err(failed)?;
            if let Some(sparse) = sparse {
                let mut content = Holes::new(&mut entry, &sparse, &path, &name)?;
                let _: Added = sink.add(&path, &meta, What::File(&mut content))?;
                continue;
            }
            // An image, which is where archives go, can have all of it.
            let _: Added = match kind {
                EntryType::Directory => sink.add(&path, &meta, What::Dir)?,
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    sink.add(&path, &meta, What::Symlink(target))?
                }
                EntryType::Link => {
                    let first = relative(&entry.link_name_bytes().unwrap_or_default(), &name)?;
                    sink.add(&path, &meta, What::Link(first))?
                }
                EntryType::Fifo => sink.add(&path, &meta, What::Special(FileType::Fifo, 0, 0))?,
                EntryType::Char | EntryType::Block => {
                    let number =
                        |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default).map_err(failed);
                    let major = number(entry.header().device_major())?;
                    let minor = number(entry.header().device_minor())?;
                    let kind =
                        if kind == EntryType::Char { FileType::CharDevice } else { FileType::BlockDevice };
                    sink.add(&path, &meta, What::Special(kind, major, minor))?
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let sparse = kind == EntryType::GNUSparse;
                    let mut content =
                        Stream { size: entry.size(), entry: &mut entry, at: 0, sparse, name: &name };
                    sink.add(&path, &meta, What::File(&mut content))?
                }
                // Headers for the reader itself.
                EntryType::XGlobalHeader => Added::Taken,
                other => {
                    let what =
                        format!("{name}: {}: entries of type {other:?} are not known", show_path(&path));
                    return Err(Failure::new(what));
                }
            };
        }
        if count == 0 {
            return Err(Failure::new(format!("{name}: an archive without entries, or no tar archive")));
        }
        Ok(())
    }
}

/// An entry's path without leading `/` and `./`; one with `..` is refused.
fn relative(path: &[u8], archive: &str) -> Outcome<Vec<u8>> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    if let Some(bad) = names.iter().find(|n| !is_safe_name(n)) {
        let what = format!("{archive}: the path {} with {}", show_path(path), crate::show::name(bad));
        return Err(Failure::new(what).hint("it would lead out of the target; nothing of it was written"));
    }
    Ok(names.join(&b'/'))
}

fn meta_of(entry: &mut tar::Entry<'_, Box<dyn Read>>) -> io::Result<Meta> {
    let header = entry.header();
    let mut meta = Meta {
        mode: header.mode()? & 0o7777,
        uid: u32::try_from(header.uid()?).map_err(|_| io::Error::other("a user id over 32 bits"))?,
        gid: u32::try_from(header.gid()?).map_err(|_| io::Error::other("a group id over 32 bits"))?,
        atime: Timestamp::default(),
        mtime: Timestamp { sec: header.mtime()? as i64, nsec: 0 },
        xattrs: Vec::new(),
    };
    let mut atime = None;
    if let Some(records) = entry.pax_extensions()? {
        for record in records {
            let record = record?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            match key {
                b"mtime" => meta.mtime = pax_time(value).unwrap_or(meta.mtime),
                b"atime" => atime = pax_time(value),
                b"uid" => meta.uid = number().unwrap_or(meta.uid),
                b"gid" => meta.gid = number().unwrap_or(meta.gid),
                b"SCHILY.acl.access" => meta.xattrs.extend(acl("system.posix_acl_access", value)),
                b"SCHILY.acl.default" => meta.xattrs.extend(acl("system.posix_acl_default", value)),
                _ => {
                    if let Some(name) = key.strip_prefix(PAX_XATTR) {
                        meta.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
    }
    meta.atime = atime.unwrap_or(meta.mtime);
    Ok(meta)
}

/// An access control list in text as the attribute that it is; none if it cannot be read.
fn acl(name: &str, text: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    Some((name.as_bytes().to_vec(), extant_mkfs::acl_from_text(text)?))
}

/// What PAX headers say of a member with holes.
fn pax_sparse(entry: &mut tar::Entry<'_, Box<dyn Read>>, archive: &str) -> Outcome<Option<PaxSparse>> {
    let failed = |err: &dyn std::fmt::Display| Failure::new(format!("{archive}: {err}"));
    let path = entry.path().map_err(|err| failed(&err))?.into_owned();
    let mut sparse: Option<PaxSparse> = None;
    let Some(records) = entry.pax_extensions().map_err(|err| failed(&err))? else { return Ok(None) };
    for record in records {
        let record = record.map_err(|err| failed(&err))?;
        if let Some(key) = record.key_bytes().strip_prefix(b"GNU.sparse.") {
            let sparse = sparse.get_or_insert_default();
            sparse.header(key, record.value_bytes(), &path).map_err(|err| failed(&err))?;
        }
    }
    Ok(sparse)
}

/// `1234.5` as a time.
fn pax_time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (sec, nsec): (i64, u32) = (whole.parse().ok()?, digits.parse().ok()?);
    if whole.starts_with('-') && nsec > 0 {
        return Some(Timestamp { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec });
    }
    Some(Timestamp { sec, nsec })
}

/// A file's content in an archive: it comes once, in order.
struct Stream<'a, 'b> {
    entry: &'a mut tar::Entry<'b, Box<dyn Read>>,
    size: u64,
    at: u64,
    sparse: bool,
    name: &'a str,
}

impl Content for Stream<'_, '_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        Ok(Some(from..self.size))
    }

    fn zeroes_are_holes(&self) -> bool {
        // The reader of archives has filled the holes in.
        self.sparse
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
        assert_eq!(offset, self.at, "an archive is read in order");
        self.at += buf.len() as u64;
        self.entry.read_exact(buf).map_err(|err| Failure::new(format!("{}: {err}", self.name)))
    }
}

/// The content of a member in one of the sparse formats of PAX headers: its data ranges come once, in order.
struct Holes<'a, 'b> {
    entry: &'a mut tar::Entry<'b, Box<dyn Read>>,
    size: u64,
    ranges: Vec<Data>,
    /// Bytes of data that were read.
    at: u64,
    name: &'a str,
}

impl<'a, 'b> Holes<'a, 'b> {
    fn new(
        entry: &'a mut tar::Entry<'b, Box<dyn Read>>,
        sparse: &PaxSparse,
        path: &[u8],
        name: &'a str,
    ) -> Outcome<Self> {
        let failed = |err: MkfsError| Failure::new(format!("{name}: {err}"));
        let path = Path::new(OsStr::from_bytes(path));
        let stored = entry.size();
        let (map, len) = sparse.map(entry, path).map_err(failed)?;
        let (size, ranges) = sparse.ranges(&map, stored.saturating_sub(len), path).map_err(failed)?;
        Ok(Self { entry, size, ranges, at: 0, name })
    }
}

impl Content for Holes<'_, '_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
        let next = self.ranges.partition_point(|d| d.offset + d.len <= from);
        Ok(self.ranges.get(next).map(|d| d.offset.max(from)..d.offset + d.len))
    }

    fn zeroes_are_holes(&self) -> bool {
        false
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
        let range = self.ranges[..self.ranges.partition_point(|d| d.offset <= offset)].last();
        let at = range.map(|d| d.before + (offset - d.offset));
        assert_eq!(at, Some(self.at), "an archive is read in order");
        self.at += buf.len() as u64;
        self.entry.read_exact(buf).map_err(|err| Failure::new(format!("{}: {err}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use extant_format::inode::Timestamp;

    use super::pax_time;
    use crate::copy::to_archive::time_text;

    #[test]
    fn times_survive_their_text() {
        for (sec, nsec) in [(0, 0), (1, 500_000_000), (-1, 250_000_000), (-5, 0), (1 << 34, 1)] {
            let time = Timestamp { sec, nsec };
            assert_eq!(pax_time(&time_text(time)), Some(time), "{time:?}");
        }
    }
}
