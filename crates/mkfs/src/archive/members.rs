//! The members of an archive, one after the other.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use extant_format::acl::Acl;
use extant_format::{DeviceNumber, Timestamp};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::acl_text::{self, Names};
use super::pax;
use super::sparse::{Data, Map, PaxSparse};
use crate::error::{MkfsError, Result, source_error};

/// Unit of an archive.
const BLOCK: u64 = 512;
/// Bytes of headers that one member may have before it: what says more is broken.
const MAX_HEADERS: u64 = 64 << 20;

/// Where an archive comes from.
pub trait Input: Read + Sized {
    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// As of reading; the end before them.
    fn pass(&mut self, len: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(len), &mut io::sink())?;
        if passed == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads what stands behind the last member, where that says whether all before it was right: sums of what packs an archive.
    ///
    /// # Errors
    /// As of reading; it was not.
    fn finish(&mut self) -> io::Result<()>;
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A directory.
    Directory,
    /// A file; its content is what [`Members`] reads until the next member.
    Regular,
    /// A symbolic link to [`Member::link`].
    Symlink,
    /// Another name of the member [`Member::link`].
    Link,
    /// A FIFO.
    Fifo,
    /// A character device.
    Char(DeviceNumber),
    /// A block device.
    Block(DeviceNumber),
}

/// A member: what its headers say.
#[derive(Debug)]
pub struct Member {
    /// As the archive has it: perhaps with `/` before or behind it, `.` or `..` in it.
    pub path: Vec<u8>,
    /// The target of a link, else empty.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// The lower 12 bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub mtime: Timestamp,
    /// Time of access, if it is known.
    pub atime: Option<Timestamp>,
    /// Full names and values as the system shows them; each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file.
    pub size: u64,
    /// Where there is data, if there are holes: ascending ranges below `size`, which follow each other in the archive.
    pub data: Option<Vec<Data>>,
    /// Where the content begins in the archive, behind a map of holes.
    pub offset: u64,
    /// Bytes of content in the archive.
    pub stored: u64,
}

/// A reader of members; as a [`Read`] the content of the present one.
#[derive(Debug)]
pub struct Members<R> {
    input: R,
    /// For messages.
    archive: PathBuf,
    /// Bytes taken from the input.
    at: u64,
    /// Bytes of the present member that are not taken yet.
    left: u64,
    /// Headers for all members that follow.
    globals: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether extended attributes and access control lists are wanted.
    attributes: bool,
    names: Names,
}

/// What stands before a member's own header.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of all of it.
    len: u64,
}

/// What the records say.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    atime: Option<Timestamp>,
    acls: [Option<Vec<u8>>; 2],
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<PaxSparse>,
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if len == 0 {
            // Decompressors take an empty buffer for an error.
            return Ok(0);
        }
        let got = self.input.read(&mut buf[..len])?;
        self.left -= got as u64;
        self.at += got as u64;
        Ok(got)
    }
}

impl<R: Input> Members<R> {
    /// Those of the archive that `input` is at the start of; `archive` names it in messages.
    pub fn new(input: R, archive: &Path, attributes: bool) -> Self {
        Self {
            input,
            archive: archive.to_owned(),
            at: 0,
            left: 0,
            globals: BTreeMap::new(),
            attributes,
            names: Names::of_host(),
        }
    }

    /// The next member. What is left of the content of the one before is passed over. That there is none is said when what packs
    /// the archive is found to be right to its end.
    ///
    /// # Errors
    /// [`MkfsError::Source`]: the archive cannot be read, or is none, or not all of it was right. [`MkfsError::Member`]: a member whose headers cannot be,
    /// or that is not known.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let mut before = Before::default();
        loop {
            self.end_content()?;
            let Some(header) = self.header()? else {
                if before.len > 0 {
                    return Err(self.broken("it ends behind a header"));
                }
                self.input.finish().map_err(|err| match err.kind() {
                    io::ErrorKind::UnexpectedEof => self.broken("its end is missing"),
                    _ => source_error(&self.archive, err),
                })?;
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::XHeader => {
                    let body = self.body(&header, &mut before)?;
                    let records = pax::records(&body).ok_or_else(|| self.broken("malformed PAX records"))?;
                    before.records.extend(records.into_iter().map(owned));
                }
                EntryType::XGlobalHeader => {
                    let body = self.body(&header, &mut Before::default())?;
                    let records = pax::records(&body).ok_or_else(|| self.broken("malformed PAX records"))?;
                    self.globals.extend(records.into_iter().map(owned));
                    let len: usize = self.globals.iter().map(|(key, value)| key.len() + value.len()).sum();
                    if len as u64 > MAX_HEADERS {
                        return Err(self.broken("its global headers are too long"));
                    }
                }
                EntryType::GNULongName => before.path = Some(until_nul(self.body(&header, &mut before)?)),
                EntryType::GNULongLink => before.link = Some(until_nul(self.body(&header, &mut before)?)),
                _ => return self.member(&header, before).map(Some),
            }
        }
    }

    fn broken(&self, what: impl Into<String>) -> MkfsError {
        source_error(&self.archive, io::Error::new(io::ErrorKind::InvalidData, what.into()))
    }

    fn failed(&self, err: io::Error) -> MkfsError {
        if err.kind() == io::ErrorKind::UnexpectedEof {
            return self.broken("the archive ends within a member");
        }
        source_error(&self.archive, err)
    }

    fn end_content(&mut self) -> Result<()> {
        let end = self.at.checked_add(self.left).and_then(|end| end.checked_next_multiple_of(BLOCK));
        let end = end.ok_or_else(|| self.broken("a member of a size that cannot be"))?;
        if end > self.at {
            self.input.pass(end - self.at).map_err(|e| self.failed(e))?;
        }
        (self.at, self.left) = (end, 0);
        Ok(())
    }

    /// The next header; none at the archive's end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut got = 0;
        while got < BLOCK as usize {
            match self.input.read(&mut header.as_mut_bytes()[got..]) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(self.broken("the archive ends within a header")),
                Ok(n) => got += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(source_error(&self.archive, err)),
            }
        }
        self.at += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The field of the sum counts as spaces.
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => {
                Err(self.broken(format!("no tar header at byte {}: its checksum is wrong", self.at - BLOCK)))
            }
        }
    }

    /// The content of a header for the next member.
    fn body(&mut self, header: &Header, before: &mut Before) -> Result<Vec<u8>> {
        let size = header.entry_size().map_err(|e| self.failed(e))?;
        before.len = before.len.saturating_add(size).saturating_add(1);
        if before.len > MAX_HEADERS {
            return Err(self.broken(format!("headers of {} bytes before a member", before.len)));
        }
        self.left = size;
        let mut body = Vec::new();
        self.read_to_end(&mut body).map_err(|e| source_error(&self.archive, e))?;
        if self.left > 0 {
            return Err(self.broken("the archive ends within a header"));
        }
        Ok(body)
    }

    fn member(&mut self, header: &Header, before: Before) -> Result<Member> {
        let path = before.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let said = self.said(&before.records, &shown(&path))?;
        // The name in the header of a member with holes is made up.
        let own = said.sparse.as_ref().and_then(PaxSparse::name).map(<[u8]>::to_vec);
        let path = own.or(said.path).unwrap_or(path);
        let at = shown(&path);
        let fail = |e: io::Error| refused(&at, e.to_string());
        let kind = kind_of(header, &path, &at)?;
        let narrow = |what: &str, id: u64| {
            u32::try_from(id).map_err(|_| refused(&at, format!("{what} {id} is over 32 bits")))
        };
        let id = |said: Option<u32>, what, read: io::Result<u64>| match said {
            Some(id) => Ok(id),
            None => narrow(what, read.map_err(fail)?),
        };
        let link = said.link.or(before.link);
        let mtime = match said.mtime {
            Some(time) => time,
            None => Timestamp::from_sec(header.mtime().map_err(fail)? as i64),
        };
        let mut member = Member {
            link: link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            kind,
            mode: (header.mode().map_err(fail)? & 0o7777) as u16,
            uid: id(said.uid, "owner", header.uid())?,
            gid: id(said.gid, "group", header.gid())?,
            mtime,
            atime: said.atime,
            xattrs: said.xattrs,
            size: 0,
            data: None,
            offset: 0,
            stored: 0,
            path,
        };
        if member.path.contains(&0) || member.link.contains(&0) {
            return Err(refused(&at, "a zero byte in a name"));
        }
        if member.link.is_empty() && matches!(kind, MemberKind::Symlink | MemberKind::Link) {
            return Err(refused(&at, "a link without a target"));
        }
        self.lists(&mut member, &said.acls, &at)?;
        // A further name has no content, whatever size its header repeats.
        if kind != MemberKind::Link {
            self.left = said.size.map_or_else(|| header.entry_size().map_err(fail), Ok)?;
        }
        if kind == MemberKind::Regular {
            self.content(&mut member, header, said.sparse, &at)?;
        }
        Ok(member)
    }

    /// Size, holes, and where the bytes are.
    fn content(
        &mut self,
        member: &mut Member,
        header: &Header,
        sparse: Option<PaxSparse>,
        at: &Path,
    ) -> Result<()> {
        let stored = self.left;
        if let Some(sparse) = sparse {
            member.size = sparse.size(at)?;
            let map = sparse.map(self, at)?;
            member.data = Some(map.data(member.size, self.left, at)?);
        } else if header.entry_type() == EntryType::GNUSparse {
            let (size, map) = self.old_map(header, at)?;
            member.size = size;
            member.data = Some(map.data(size, stored, at)?);
        } else {
            member.size = stored;
        }
        (member.offset, member.stored) = (self.at, self.left);
        Ok(())
    }

    /// Size and map of a member in GNU's own format: in the header and in blocks behind it.
    fn old_map(&mut self, header: &Header, at: &Path) -> Result<(u64, Map)> {
        let fail = |e: io::Error| refused(at, e.to_string());
        let Some(gnu) = header.as_gnu() else {
            return Err(refused(at, "a sparse member of another format than GNU's"));
        };
        let mut map = Map::default();
        let mut add = |entries: &[GnuSparseHeader]| -> Result<()> {
            for entry in entries.iter().filter(|entry| !entry.is_empty()) {
                map.add(entry.offset().map_err(fail)?, entry.length().map_err(fail)?, at)?;
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            // They are not counted in the member's size.
            self.input.read_exact(block.as_mut_bytes()).map_err(|e| self.failed(e))?;
            self.at += BLOCK;
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((gnu.real_size().map_err(fail)?, map))
    }

    /// What records say; later ones count, and those of the member more than those of the archive.
    fn said(&self, records: &[(Vec<u8>, Vec<u8>)], at: &Path) -> Result<Said> {
        let mut said = Said::default();
        let own = records.iter().map(|(key, value)| (key, value));
        for (key, value) in self.globals.iter().chain(own) {
            if let Some(name) = key.strip_prefix(b"GNU.sparse.".as_slice()) {
                said.sparse.get_or_insert_default().header(name, value, at)?;
                continue;
            }
            if let Some(rest) = key.strip_prefix(pax::XATTR) {
                let name = pax::xattr_name(rest);
                if name.contains(&0) {
                    return Err(refused(at, "a zero byte in the name of an extended attribute"));
                }
                if self.attributes {
                    set(&mut said.xattrs, name, value.clone());
                }
                continue;
            }
            let bytes = || Some(value.clone()).filter(|value| !value.is_empty());
            match &key[..] {
                b"path" => said.path = bytes(),
                b"linkpath" => said.link = bytes(),
                b"size" => said.size = parsed(key, value, at, decimal)?,
                b"uid" => said.uid = parsed(key, value, at, decimal)?,
                b"gid" => said.gid = parsed(key, value, at, decimal)?,
                b"mtime" => said.mtime = parsed(key, value, at, pax::time)?,
                b"atime" => said.atime = parsed(key, value, at, pax::time)?,
                pax::ACL_ACCESS => said.acls[0] = bytes(),
                pax::ACL_DEFAULT => said.acls[1] = bytes(),
                _ => {}
            }
        }
        Ok(said)
    }

    /// Turns lists in text into attributes, where the attribute itself is not there: it needs no names.
    fn lists(&self, member: &mut Member, acls: &[Option<Vec<u8>>; 2], at: &Path) -> Result<()> {
        if !self.attributes {
            return Ok(());
        }
        for (text, name) in acls.iter().zip([pax::XATTR_ACL_ACCESS, pax::XATTR_ACL_DEFAULT]) {
            let Some(text) = text else { continue };
            if member.xattrs.iter().any(|(known, _)| known == name) {
                continue;
            }
            let Some(acl) = acl_text::from_text(text, &self.names).map_err(|what| refused(at, what))? else {
                continue;
            };
            if name == pax::XATTR_ACL_ACCESS && equals_mode(&acl, member) {
                continue;
            }
            member.xattrs.push((name.to_vec(), acl.to_xattr()));
        }
        Ok(())
    }
}

/// Gives the member the mode that its list says; whether that says all of it.
fn equals_mode(acl: &Acl, member: &mut Member) -> bool {
    let (bits, all) = acl.equiv_mode();
    member.mode = member.mode & !0o777 | bits;
    all
}

fn kind_of(header: &Header, path: &[u8], at: &Path) -> Result<MemberKind> {
    let device = || -> Result<DeviceNumber> {
        let number = |n: io::Result<Option<u32>>| {
            n.map(Option::unwrap_or_default).map_err(|e| refused(at, e.to_string()))
        };
        Ok(DeviceNumber { major: number(header.device_major())?, minor: number(header.device_minor())? })
    };
    Ok(match header.entry_type() {
        EntryType::Directory => MemberKind::Directory,
        // The format before ustar had no type for directories.
        EntryType::Regular if path.ends_with(b"/") => MemberKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::Regular,
        EntryType::Symlink => MemberKind::Symlink,
        EntryType::Link => MemberKind::Link,
        EntryType::Fifo => MemberKind::Fifo,
        EntryType::Char => MemberKind::Char(device()?),
        EntryType::Block => MemberKind::Block(device()?),
        other => {
            let kind = char::from(other.as_byte());
            return Err(refused(
                at,
                format!("member type {kind:?} is not supported; make the archive without it"),
            ));
        }
    })
}

/// Sets one of the attributes.
fn set(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, name: Vec<u8>, value: Vec<u8>) {
    match xattrs.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => xattrs.push((name, value)),
    }
}

/// A record's value; an empty one takes back what was said before.
fn parsed<T>(key: &[u8], value: &[u8], at: &Path, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or_else(|| {
        let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        refused(at, format!("its {key} '{value}' is not a number that fits"))
    })
}

fn decimal<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn owned((key, value): (&[u8], &[u8])) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), value.to_vec())
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
    text
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

fn refused(at: &Path, what: impl Into<String>) -> MkfsError {
    MkfsError::Member { path: at.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests;
