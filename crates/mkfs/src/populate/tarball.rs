//! Reading a tar archive: plain, gzip, zstd or xz, from a file or standard input.
//!
//! The members of a plain archive in a file are used where they are. Others pass through once and their contents are
//! kept in a temporary file until the layout is known.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Component, Path, PathBuf};

use extant_format::{FileType, Timestamp};

use super::tree::{Content, Kind, Meta, Node, NodeId, Place, Tree};
use crate::archive::{Input, Member, MemberKind, Members, Packing, Unpacked};
use crate::error::{MkfsError, Result, source_error};
use crate::options::Options;
use crate::progress::Progress;

/// Reads the archive at `path`.
///
/// # Errors
/// [`MkfsError::Source`], [`MkfsError::Member`].
pub(super) fn read_path(path: &Path, options: &Options, progress: &dyn Progress) -> Result<Tree> {
    let mut file = File::open(path).map_err(|e| source_error(path, e))?;
    if file.stream_position().is_err() {
        return read_stream(path, Box::new(file), options, progress);
    }
    let mut magic = Vec::new();
    file.by_ref()
        .take(Packing::MAGIC as u64)
        .read_to_end(&mut magic)
        .and_then(|_| file.rewind())
        .map_err(|e| source_error(path, e))?;
    if Packing::of(&magic) == Packing::None {
        let copy = file.try_clone().map_err(|e| source_error(path, e))?;
        // Contents are not read now: between headers the file is skipped.
        let input = Skipper(BufReader::with_capacity(1 << 14, file));
        return Reader::new(path, progress, Some(copy)).read(Members::new(input, path, attributes(options)));
    }
    read_stream(path, Box::new(file), options, progress)
}

/// Reads an archive from standard input.
///
/// # Errors
/// As [`read_path`].
pub(super) fn read_stdin(options: &Options, progress: &dyn Progress) -> Result<Tree> {
    read_stream(Path::new("standard input"), Box::new(io::stdin().lock()), options, progress)
}

fn read_stream<'a>(
    path: &'a Path,
    stream: Box<dyn Read + 'a>,
    options: &'a Options,
    progress: &'a dyn Progress,
) -> Result<Tree> {
    let input = Unpacked::new(stream).map_err(|e| source_error(path, e))?;
    Reader::new(path, progress, None).read(Members::new(input, path, attributes(options)))
}

/// A file that is skipped through without throwing away what was read ahead.
struct Skipper(BufReader<File>);

impl Read for Skipper {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Input for Skipper {
    fn pass(&mut self, len: u64) -> io::Result<()> {
        // Whether the file is that long was looked at before (`check_end`).
        self.0.seek_relative(i64::try_from(len).map_err(|_| io::ErrorKind::UnexpectedEof)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn attributes(options: &Options) -> bool {
    !options.extended.no_copy_xattrs
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
    progress: &'a dyn Progress,
}

impl<'a> Reader<'a> {
    fn new(archive: &'a Path, progress: &'a dyn Progress, in_place: Option<File>) -> Self {
        Self { archive, tree: Tree::new(), in_place, spool: None, progress }
    }

    fn read<R: Input>(mut self, mut members: Members<R>) -> Result<Tree> {
        while let Some(member) = members.next_member()? {
            self.check_end(&member)?;
            self.member(member, &mut members)?;
            self.progress.advance(1);
        }
        self.tree.archives.extend(self.in_place);
        if let Some(spool) = self.spool {
            let file = spool.file.into_inner().map_err(|e| source_error(self.archive, e.into_error()))?;
            self.tree.archives.push(file);
        }
        Ok(self.tree)
    }

    /// A member that is used where it is must be there whole, with what fills its last block.
    fn check_end(&self, member: &Member) -> Result<()> {
        let Some(archive) = &self.in_place else { return Ok(()) };
        let len = archive.metadata().map_err(|e| source_error(self.archive, e))?.len();
        let end = member.offset.checked_add(member.stored).and_then(|end| end.checked_next_multiple_of(512));
        if end.is_none_or(|end| end > len) {
            return Err(refused(&shown(&member.path), format!("the archive of {len} bytes ends within it")));
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

    fn member(&mut self, member: Member, content: &mut impl Read) -> Result<()> {
        let path = shown(&member.path);
        let names = components(&path)?;
        let mut meta = Meta { perms: member.mode, uid: member.uid, gid: member.gid, mtime: member.mtime };
        let Some((name, parents)) = names.split_last() else {
            if member.kind != MemberKind::Directory {
                return Err(refused(&path, "the root of the archive, and no directory"));
            }
            let root = &mut self.tree.nodes[0];
            (root.meta, root.xattrs) = (meta, member.xattrs);
            return Ok(());
        };
        let parent = self.directory_of(parents, &path)?;
        if member.kind == MemberKind::Link {
            return self.hard_link(parent, name, &shown(&member.link), &path);
        }
        if member.kind == MemberKind::Directory
            && let Some(old) = self.lookup(parent, name)
            && matches!(self.tree.nodes[old as usize].kind, Kind::Directory(_))
        {
            let node = &mut self.tree.nodes[old as usize];
            (node.meta, node.xattrs) = (meta, member.xattrs);
            return Ok(());
        }
        let kind = match member.kind {
            MemberKind::Directory | MemberKind::Link => Kind::Directory(Vec::new()),
            MemberKind::Regular => Kind::Regular(self.content(&member, content, &path)?),
            MemberKind::Symlink => Kind::Symlink(member.link.into()),
            MemberKind::Char(number) => Kind::Device(FileType::CharDevice, number),
            MemberKind::Block(number) => Kind::Device(FileType::BlockDevice, number),
            MemberKind::Fifo => Kind::Other(FileType::Fifo),
        };
        if matches!(kind, Kind::Symlink(_)) {
            meta.perms = 0o777;
        }
        let node = self.tree.add(Node { meta, kind, names: 1, xattrs: member.xattrs });
        self.link(parent, name, node, &path)
    }

    /// The content of a file; with holes, its data ranges stand one behind the other.
    fn content(&mut self, member: &Member, content: &mut impl Read, path: &Path) -> Result<Content> {
        let (size, data) = (member.size, member.data.clone());
        if self.in_place.is_some() {
            let place = Place::Archive { file: 0, offset: member.offset };
            return Ok(Content { size, place, data });
        }
        let spool = self.spool()?;
        let place = Place::Archive { file: 0, offset: spool.at };
        let copied = io::copy(content, &mut spool.file).map_err(|e| source_error(path, e))?;
        spool.at += copied;
        if copied != member.stored {
            return Err(refused(
                path,
                format!("the archive ends within it, {copied} of {} bytes", member.stored),
            ));
        }
        Ok(Content { size, place, data })
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree
            .entries(dir)
            .binary_search_by(|(n, _)| n.as_ref().cmp(name))
            .ok()
            .map(|at| self.tree.entries(dir)[at].1)
    }

    /// Gives `node` the name, in place of what had it before: the later of two members counts. A directory that is not
    /// empty stays, as it does for who unpacks.
    fn link(&mut self, dir: NodeId, name: &[u8], node: NodeId, path: &Path) -> Result<()> {
        if let Some(old) = self.lookup(dir, name)
            && matches!(&self.tree.nodes[old as usize].kind, Kind::Directory(entries) if !entries.is_empty())
        {
            return Err(refused(path, "a directory with contents is in its place"));
        }
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
        let refuse = |what: String| Err(refused(path, what));
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
        self.link(parent, name, node, path)
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
                    self.link(dir, name, node, path)?;
                    node
                }
            };
        }
        Ok(dir)
    }
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

fn shown(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}

fn refused(path: &Path, what: impl Into<String>) -> MkfsError {
    MkfsError::Member { path: path.to_owned(), what: what.into() }
}
