//! Reading a tar archive: plain, gzip, zstd or xz, from a file or standard input.
//!
//! The members of a plain archive in a file are used where they are. Others pass through once and their contents are
//! kept in a temporary file until the layout is known.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Component, Path};

use extant_format::acl::{Acl, AclEntry, Tag};
use extant_format::{DeviceNumber, FileType, Timestamp};
use tar::{Entry, EntryType};

use super::pax_sparse::PaxSparse;
use super::tree::{Content, Data, Kind, Meta, Node, NodeId, Place, Tree, add_data, source_error};
use crate::error::{MkfsError, Result};
use crate::options::Options;
use crate::progress::Progress;

/// Granularity at which zeros in sparse members become holes.
const HOLE: usize = 4096;
/// The largest sparse member that is expanded.
const MAX_SPARSE: u64 = 1 << 38;

/// Reads the archive at `path`.
///
/// # Errors
/// [`MkfsError::Source`], [`MkfsError::Member`].
pub(super) fn read_path(path: &Path, options: &Options, progress: &dyn Progress) -> Result<Tree> {
    let mut file = File::open(path).map_err(|e| source_error(path, e))?;
    let mut magic = [0; 6];
    let got = read_up_to(&mut file, &mut magic).map_err(|e| source_error(path, e))?;
    let packed = Packing::of(&magic[..got]);
    let seekable = file.seek(SeekFrom::Start(0)).is_ok();
    if seekable && packed == Packing::None {
        let copy = file.try_clone().map_err(|e| source_error(path, e))?;
        // Contents are not read now: between headers the file is skipped.
        let mut archive = tar::Archive::new(Skipper(BufReader::with_capacity(1 << 14, file)));
        let entries = archive.entries_with_seek().map_err(|e| source_error(path, e))?;
        return Reader::new(path, options, progress, Some(copy)).read(entries);
    }
    let stream: Box<dyn Read> =
        if seekable { Box::new(file) } else { Box::new(io::Cursor::new(magic[..got].to_vec()).chain(file)) };
    read_stream(path, packed, stream, options, progress)
}

/// Reads an archive from standard input.
///
/// # Errors
/// As [`read_path`].
pub(super) fn read_stdin(options: &Options, progress: &dyn Progress) -> Result<Tree> {
    let path = Path::new("standard input");
    let mut stdin = io::stdin().lock();
    let mut magic = [0; 6];
    let got = read_up_to(&mut stdin, &mut magic).map_err(|e| source_error(path, e))?;
    let stream = io::Cursor::new(magic[..got].to_vec()).chain(stdin);
    read_stream(path, Packing::of(&magic[..got]), Box::new(stream), options, progress)
}

fn read_up_to(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
    Xz,
}

impl Packing {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Xz,
            _ => Self::None,
        }
    }
}

fn read_stream<'a>(
    path: &'a Path,
    packing: Packing,
    stream: Box<dyn Read + 'a>,
    options: &'a Options,
    progress: &'a dyn Progress,
) -> Result<Tree> {
    let stream: Box<dyn Read + 'a> = match packing {
        Packing::None => stream,
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(stream))),
        Packing::Zstd => Box::new(zstd::Decoder::new(stream).map_err(|e| source_error(path, e))?),
        Packing::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(stream)),
    };
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, stream));
    let entries = archive.entries().map_err(|e| source_error(path, e))?;
    Reader::new(path, options, progress, None).read(entries)
}

/// A file that is skipped through without throwing away what was read ahead.
struct Skipper(BufReader<File>);

impl Read for Skipper {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl io::Seek for Skipper {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Current(by) => {
                self.0.seek_relative(by)?;
                self.0.stream_position()
            }
            to => self.0.seek(to),
        }
    }
}

/// A temporary file that members' contents go to.
struct Spool {
    file: io::BufWriter<File>,
    at: u64,
}

struct Reader<'a> {
    archive: &'a Path,
    tree: Tree,
    /// The archive, if members can be used where they are.
    in_place: Option<File>,
    spool: Option<Spool>,
    attributes: bool,
    progress: &'a dyn Progress,
}

impl<'a> Reader<'a> {
    fn new(archive: &'a Path, options: &Options, progress: &'a dyn Progress, in_place: Option<File>) -> Self {
        let attributes = !options.extended.no_copy_xattrs;
        Self { archive, tree: Tree::new(), in_place, spool: None, attributes, progress }
    }

    fn read<R: Read>(mut self, entries: tar::Entries<'_, R>) -> Result<Tree> {
        let path = self.archive.to_owned();
        for entry in entries {
            let entry = entry.map_err(|e| source_error(&path, e))?;
            self.check_end(&entry)?;
            self.member(entry)?;
            self.progress.advance(1);
        }
        self.tree.archives.extend(self.in_place);
        if let Some(spool) = self.spool {
            let file = spool.file.into_inner().map_err(|e| source_error(&path, e.into_error()))?;
            self.tree.archives.push(file);
        }
        Ok(self.tree)
    }

    /// A member that is used where it is must be there whole, with what fills its last block.
    fn check_end(&self, entry: &Entry<'_, impl Read>) -> Result<()> {
        let Some(archive) = &self.in_place else { return Ok(()) };
        let len = archive.metadata().map_err(|e| source_error(self.archive, e))?.len();
        let end = entry.size().checked_next_multiple_of(512);
        // The size of an old sparse member is that of the file, not of what is stored.
        let stored = entry.header().entry_type() != EntryType::GNUSparse;
        let end = end.and_then(|size| entry.raw_file_position().checked_add(size));
        if stored && end.is_none_or(|end| end > len) {
            let path = entry.path().map_or_else(|_| self.archive.to_owned(), std::borrow::Cow::into_owned);
            return Err(MkfsError::Member {
                path,
                what: format!("the archive of {len} bytes ends within it"),
            });
        }
        Ok(())
    }

    fn spool(&mut self) -> Result<&mut Spool> {
        if self.spool.is_none() {
            let file = tempfile::tempfile().map_err(|e| source_error(&std::env::temp_dir(), e))?;
            self.spool = Some(Spool { file: io::BufWriter::with_capacity(1 << 20, file), at: 0 });
        }
        match &mut self.spool {
            Some(spool) => Ok(spool),
            None => unreachable!("it was just made"),
        }
    }

    fn member(&mut self, mut entry: Entry<'_, impl Read>) -> Result<()> {
        let mut path = entry.path().map_err(|e| source_error(self.archive, e))?.into_owned();
        let file_type = entry.header().entry_type();
        if matches!(file_type, EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink) {
            return Ok(());
        }
        let Extensions { mut meta, xattrs, sparse } = self.extensions_of(&mut entry, &path)?;
        if let Some(name) = sparse.as_ref().and_then(PaxSparse::name) {
            path = name;
        }
        let names = components(&path)?;
        let Some((name, parents)) = names.split_last() else {
            // The root directory itself.
            let root = &mut self.tree.nodes[0];
            (root.meta, root.xattrs) = (meta, xattrs);
            return Ok(());
        };
        let parent = self.directory_of(parents, &path)?;
        if file_type == EntryType::Link {
            let target = entry.link_name().map_err(|e| source_error(&path, e))?;
            let target = target.map(std::borrow::Cow::into_owned).unwrap_or_default();
            return self.hard_link(parent, name, &target, &path);
        }
        if file_type == EntryType::Directory
            && let Some(old) = self.lookup(parent, name)
            && matches!(self.tree.nodes[old as usize].kind, Kind::Directory(_))
        {
            let node = &mut self.tree.nodes[old as usize];
            (node.meta, node.xattrs) = (meta, xattrs);
            return Ok(());
        }
        let kind = match sparse {
            Some(sparse) => Kind::Regular(self.sparse_content(&mut entry, &sparse, &path)?),
            None => self.kind_of(&mut entry, file_type, &path)?,
        };
        if matches!(kind, Kind::Symlink(_)) {
            meta.perms = 0o777;
        }
        let node = self.tree.add(Node { meta, kind, names: 1, xattrs });
        self.link(parent, name, node)
    }

    fn kind_of(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        file_type: EntryType,
        path: &Path,
    ) -> Result<Kind> {
        let refuse = |what: &str| Err(MkfsError::Member { path: path.to_owned(), what: what.to_owned() });
        let device = |entry: &Entry<'_, _>| -> Result<DeviceNumber> {
            let number = |n: io::Result<Option<u32>>| {
                n.map_err(|e| source_error(path, e)).map(Option::unwrap_or_default)
            };
            let (major, minor) =
                (number(entry.header().device_major())?, number(entry.header().device_minor())?);
            Ok(DeviceNumber { major, minor })
        };
        Ok(match file_type {
            EntryType::Directory => Kind::Directory(Vec::new()),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                Kind::Regular(self.content(entry, file_type, path)?)
            }
            EntryType::Symlink => match entry.link_name_bytes() {
                Some(target) => Kind::Symlink(target.into_owned().into()),
                None => return refuse("a symbolic link without a target"),
            },
            EntryType::Char => Kind::Device(FileType::CharDevice, device(entry)?),
            EntryType::Block => Kind::Device(FileType::BlockDevice, device(entry)?),
            EntryType::Fifo => Kind::Other(FileType::Fifo),
            other => {
                let what = format!(
                    "member type {:?} is not supported; make the archive without it",
                    char::from(other.as_byte())
                );
                return refuse(&what);
            }
        })
    }

    fn content(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        file_type: EntryType,
        path: &Path,
    ) -> Result<Content> {
        let size = entry.size();
        let sparse = file_type == EntryType::GNUSparse;
        if self.in_place.is_some() && !sparse {
            let place = Place::Archive { file: 0, offset: entry.raw_file_position() };
            return Ok(Content { size, place, data: None });
        }
        if sparse && size > MAX_SPARSE {
            let what = format!("a sparse member of {size} bytes is too large, at most {MAX_SPARSE}");
            return Err(MkfsError::Member { path: path.to_owned(), what });
        }
        let file = u8::from(self.in_place.is_some());
        let spool = self.spool()?;
        let place = Place::Archive { file, offset: spool.at };
        if sparse {
            let data =
                spool_sparse(entry, &mut spool.file, &mut spool.at).map_err(|e| source_error(path, e))?;
            return Ok(Content { size, place, data: Some(data) });
        }
        let copied = io::copy(entry, &mut spool.file).map_err(|e| source_error(path, e))?;
        spool.at += copied;
        if copied != size {
            let what = format!("the archive ends within it, {copied} of {size} bytes");
            return Err(MkfsError::Member { path: path.to_owned(), what });
        }
        Ok(Content { size, place, data: None })
    }

    /// The content of a member in one of the sparse formats of PAX headers: its data ranges stand one behind the other.
    fn sparse_content(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        sparse: &PaxSparse,
        path: &Path,
    ) -> Result<Content> {
        let stored = entry.size();
        let (map, map_len) = sparse.map(entry, path)?;
        let (size, data) = sparse.ranges(&map, stored.saturating_sub(map_len), path)?;
        if self.in_place.is_some() {
            let place = Place::Archive { file: 0, offset: entry.raw_file_position() + map_len };
            return Ok(Content { size, place, data: Some(data) });
        }
        let spool = self.spool()?;
        let place = Place::Archive { file: 0, offset: spool.at };
        let copied = io::copy(entry, &mut spool.file).map_err(|e| source_error(path, e))?;
        spool.at += copied;
        if copied + map_len != stored {
            let what = format!("the archive ends within it, {copied} of {stored} bytes");
            return Err(MkfsError::Member { path: path.to_owned(), what });
        }
        Ok(Content { size, place, data: Some(data) })
    }

    /// Owner, permissions, time and extended attributes of a member, and whether it is sparse.
    fn extensions_of(&self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<Extensions> {
        let fail = |e| source_error(path, e);
        let header = entry.header();
        let meta = Meta {
            perms: (header.mode().map_err(fail)? & 0o7777) as u16,
            uid: header.uid().map_err(fail)? as u32,
            gid: header.gid().map_err(fail)? as u32,
            mtime: Timestamp::from_sec(header.mtime().map_err(fail)? as i64),
        };
        let mut found = Extensions { meta, xattrs: Vec::new(), sparse: None };
        let Some(extensions) = entry.pax_extensions().map_err(fail)? else { return Ok(found) };
        for extension in extensions {
            let extension = extension.map_err(fail)?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            if let Some(name) = key.strip_prefix(b"GNU.sparse.".as_slice()) {
                found.sparse.get_or_insert_with(PaxSparse::default).header(name, value, path)?;
                continue;
            }
            match key {
                b"uid" => found.meta.uid = decimal(value, path)?,
                b"gid" => found.meta.gid = decimal(value, path)?,
                b"mtime" => found.meta.mtime = seconds(value).unwrap_or(found.meta.mtime),
                b"SCHILY.acl.access" if self.attributes => {
                    found
                        .xattrs
                        .extend(acl_from_text(value).map(|a| (b"system.posix_acl_access".to_vec(), a)));
                }
                b"SCHILY.acl.default" if self.attributes => {
                    found
                        .xattrs
                        .extend(acl_from_text(value).map(|a| (b"system.posix_acl_default".to_vec(), a)));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice())
                        && self.attributes
                    {
                        found.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(found)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree
            .entries(dir)
            .binary_search_by(|(n, _)| n.as_ref().cmp(name))
            .ok()
            .map(|at| self.tree.entries(dir)[at].1)
    }

    /// Gives `node` the name, in place of what had it before.
    fn link(&mut self, dir: NodeId, name: &[u8], node: NodeId) -> Result<()> {
        let Some(entries) = self.tree.entries_of(dir) else { return Ok(()) };
        match entries.binary_search_by(|(n, _)| n.as_ref().cmp(name)) {
            Ok(at) => {
                let old = std::mem::replace(&mut entries[at].1, node);
                let old = &mut self.tree.nodes[old as usize];
                old.names = old.names.saturating_sub(1);
            }
            Err(at) => entries.insert(at, (name.into(), node)),
        }
        Ok(())
    }

    fn hard_link(&mut self, parent: NodeId, name: &[u8], target: &Path, path: &Path) -> Result<()> {
        let refuse = |what: String| Err(MkfsError::Member { path: path.to_owned(), what });
        let mut node = 0;
        for part in components(target)? {
            match self.lookup(node, &part) {
                Some(next) => node = next,
                None => {
                    return refuse(format!("a hard link to {}, which is not before it", target.display()));
                }
            }
        }
        if matches!(self.tree.nodes[node as usize].kind, Kind::Directory(_)) {
            return refuse(format!("a hard link to the directory {}", target.display()));
        }
        if self.lookup(parent, name) == Some(node) {
            return Ok(());
        }
        self.tree.nodes[node as usize].names += 1;
        self.link(parent, name, node)
    }

    /// The directory that `parents` lead to, made on the way where the archive does not have it.
    fn directory_of(&mut self, parents: &[Vec<u8>], path: &Path) -> Result<NodeId> {
        let mut dir = 0;
        for name in parents {
            dir = match self.lookup(dir, name) {
                Some(node) if matches!(self.tree.nodes[node as usize].kind, Kind::Directory(_)) => node,
                Some(_) => {
                    let what = format!("'{}' on the way is not a directory", String::from_utf8_lossy(name));
                    return Err(MkfsError::Member { path: path.to_owned(), what });
                }
                None => {
                    let meta = Meta { perms: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
                    let kind = Kind::Directory(Vec::new());
                    let node = self.tree.add(Node { meta, kind, names: 1, xattrs: Vec::new() });
                    self.link(dir, name, node)?;
                    node
                }
            };
        }
        Ok(dir)
    }
}

/// What the headers of a member say beside its type.
struct Extensions {
    meta: Meta,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<PaxSparse>,
}

/// The names of a path below the root; `..` is refused, `.` and `/` are dropped.
fn components(path: &Path) -> Result<Vec<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) if name.len() > 255 => {
                let what = "a name of more than 255 bytes".to_owned();
                return Err(MkfsError::Member { path: path.to_owned(), what });
            }
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                let what = "'..' in a path leads out of the archive".to_owned();
                return Err(MkfsError::Member { path: path.to_owned(), what });
            }
        }
    }
    Ok(names)
}

fn decimal(value: &[u8], path: &Path) -> Result<u32> {
    let parsed = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
    parsed.ok_or_else(|| MkfsError::Member {
        path: path.to_owned(),
        what: format!("owner '{}' is not a number that fits", String::from_utf8_lossy(value)),
    })
}

/// `1700000000.123456789`
fn seconds(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nsec > 0 {
        return Some(Timestamp { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec });
    }
    Some(Timestamp { sec, nsec })
}

/// An ACL in the text form of PAX headers (`user::rw-,user:name:r--:1000,…`) as the system's attribute; `None` for
/// what cannot be read.
#[must_use]
pub fn acl_from_text(value: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(value).ok()?;
    let mut entries = Vec::new();
    for item in text.split([',', '\n']).map(str::trim).filter(|i| !i.is_empty()) {
        let fields: Vec<&str> = item.split(':').collect();
        let [kind, who, perms, rest @ ..] = fields.as_slice() else { return None };
        let id = || rest.first().unwrap_or(who).parse::<u32>().ok();
        let tag = match (*kind, who.is_empty()) {
            ("user" | "u", true) => Tag::UserObj,
            ("user" | "u", false) => Tag::User(id()?),
            ("group" | "g", true) => Tag::GroupObj,
            ("group" | "g", false) => Tag::Group(id()?),
            ("mask" | "m", _) => Tag::Mask,
            ("other" | "o", _) => Tag::Other,
            _ => return None,
        };
        let bit = |c, b| if perms.contains(c) { b } else { 0 };
        entries.push(AclEntry { tag, perm: bit('r', 4) | bit('w', 2) | bit('x', 1) });
    }
    Some(Acl::new(entries).ok()?.to_xattr())
}

/// Copies a sparse member's data, leaving out blocks of zeros; returns where data is.
fn spool_sparse(
    entry: &mut impl Read,
    file: &mut io::BufWriter<File>,
    at: &mut u64,
) -> io::Result<Vec<Data>> {
    let (mut ranges, mut offset): (Vec<Data>, u64) = (Vec::new(), 0);
    let mut block = [0; HOLE];
    loop {
        let got = read_up_to(entry, &mut block)?;
        if got == 0 {
            return Ok(ranges);
        }
        if block[..got].iter().any(|&b| b != 0) {
            file.write_all(&block[..got])?;
            *at += got as u64;
            add_data(&mut ranges, offset, got as u64);
        }
        offset += got as u64;
    }
}
