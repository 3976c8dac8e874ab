//! A directory tree as a value, so that two of them can be compared: what the kernel shows, what a mount shows, what
//! the library shows, what the model says.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::Hasher as _;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::SeekFrom;

/// Bytes hashed at a time; zero chunks do not count, so holes and zeroes are equal.
pub const CHUNK: usize = 4096;
/// Contents up to this size are kept, so that a difference can be shown.
const KEEP: u64 = 64 << 10;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// A file's content: its size and the hash of what is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Data {
    /// Size in bytes.
    pub size: u64,
    /// Hash over (offset, bytes) of every chunk that is not all zero.
    pub digest: u64,
    /// The content itself, if it is small.
    pub bytes: Option<Vec<u8>>,
}

/// Builds a [`Data`] from chunks given in ascending order.
#[derive(Debug, Default)]
pub struct DataBuilder {
    hasher: std::collections::hash_map::DefaultHasher,
}

impl DataBuilder {
    /// Adds the bytes at `offset`, a multiple of [`CHUNK`]. Only the last call may have a length that is not.
    pub fn chunk(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(CHUNK as u64), "chunk at {offset}");
        for (i, part) in bytes.chunks(CHUNK).enumerate() {
            // Trailing zeroes are cut, so that a short last chunk hashes like a full one.
            let Some(last) = part.iter().rposition(|b| *b != 0) else { continue };
            self.hasher.write_u64(offset + (i * CHUNK) as u64);
            self.hasher.write(&part[..=last]);
        }
    }

    /// The finished value.
    #[must_use]
    pub fn finish(self, size: u64, bytes: Option<Vec<u8>>) -> Data {
        Data { size, digest: self.hasher.finish(), bytes }
    }
}

impl Data {
    /// The value for a content in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut builder = DataBuilder::default();
        builder.chunk(0, bytes);
        let size = bytes.len() as u64;
        builder.finish(size, (size <= KEEP).then(|| bytes.to_vec()))
    }

    /// The value for a content that is read through `read_at` (which fills the whole buffer), over these data ranges.
    pub fn of_ranges(
        size: u64,
        ranges: &[(u64, u64)],
        mut read_at: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut builder = DataBuilder::default();
        let mut kept = (size <= KEEP).then(|| vec![0; size as usize]);
        let mut buf = vec![0; 256 << 10];
        let mut next = 0;
        for (start, end) in ranges {
            let mut at = next.max(start / CHUNK as u64 * CHUNK as u64);
            let end = end.next_multiple_of(CHUNK as u64).min(size);
            while at < end {
                let len = buf.len().min((end - at) as usize);
                read_at(at, &mut buf[..len])?;
                builder.chunk(at, &buf[..len]);
                if let Some(kept) = &mut kept {
                    kept[at as usize..at as usize + len].copy_from_slice(&buf[..len]);
                }
                at += len as u64;
            }
            next = next.max(at);
        }
        Ok(builder.finish(size, kept))
    }
}

/// One inode as seen under one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count.
    pub nlink: u64,
    /// Content of a regular file.
    pub data: Data,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Device number of a device node, as (major, minor).
    pub rdev: (u32, u32),
    /// Extended attributes, ACLs included.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path (in order) of the same inode, if it has several.
    pub link_of: Option<Vec<u8>>,
    /// Modification time, if it is known.
    pub mtime: Option<(i64, u32)>,
    /// The ranges that hold data, if they were asked for: byte start and end, adjacent ones joined.
    pub layout: Option<Vec<(u64, u64)>>,
}

impl Node {
    /// A node without content.
    #[must_use]
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            nlink: 1,
            data: Data::default(),
            target: Vec::new(),
            rdev: (0, 0),
            xattrs: BTreeMap::new(),
            link_of: None,
            mtime: None,
            layout: None,
        }
    }
}

/// A whole tree by path; the root's path is empty, others are like `dir/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tree {
    /// Every name.
    pub nodes: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    /// Reads the tree under a folder (of any mounted filesystem). `lost+found` of the root is left out. With `layout`
    /// the data ranges of files are kept too, for a comparison of sparse layout.
    pub fn read(root: &Path, layout: bool) -> io::Result<Self> {
        let _open = crate::oracle::files_on_a_mount();
        let mut reader = Reader { nodes: BTreeMap::new(), first: BTreeMap::new(), layout };
        reader.visit(root, Vec::new())?;
        Ok(Self { nodes: reader.nodes }.with_links())
    }

    /// Makes `link_of` the first path of each group; nodes must carry any path of the group, or none.
    #[must_use]
    pub fn with_links(mut self) -> Self {
        let mut count: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for node in self.nodes.values() {
            if let Some(link) = &node.link_of {
                *count.entry(link.clone()).or_default() += 1;
            }
        }
        for node in self.nodes.values_mut() {
            if node.link_of.as_ref().is_some_and(|link| count[link] < 2) {
                node.link_of = None;
            }
        }
        self
    }

    /// What differs, one line each, at most `limit` of them. Times and layouts are compared where both know them.
    #[must_use]
    pub fn differences(&self, other: &Self, limit: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let mut paths: Vec<&Vec<u8>> = self.nodes.keys().chain(other.nodes.keys()).collect();
        paths.sort();
        paths.dedup();
        for path in paths {
            if lines.len() >= limit {
                break;
            }
            let name = format!("/{}", String::from_utf8_lossy(path));
            match (self.nodes.get(path), other.nodes.get(path)) {
                (Some(a), Some(b)) => lines.extend(node_difference(&name, a, b)),
                (Some(_), None) => lines.push(format!("{name}: only in the first")),
                (None, Some(_)) => lines.push(format!("{name}: only in the second")),
                (None, None) => {}
            }
        }
        lines
    }

    /// Fails the test, naming what differs, unless both trees are equal.
    #[track_caller]
    pub fn assert_equal(&self, other: &Self, what: &str) {
        let lines = self.differences(other, 20);
        assert!(lines.is_empty(), "{what}:\n{}", lines.join("\n"));
    }
}

fn node_difference(name: &str, a: &Node, b: &Node) -> Option<String> {
    let mut text = String::new();
    let mut field = |label: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            let _ = write!(text, " {label} {a} / {b};");
        }
    };
    field("kind", &a.kind, &b.kind);
    field("mode", &format_args!("{:o}", a.mode), &format_args!("{:o}", b.mode));
    field("uid", &a.uid, &b.uid);
    field("gid", &a.gid, &b.gid);
    field("nlink", &a.nlink, &b.nlink);
    field("size", &a.data.size, &b.data.size);
    field("rdev", &a.rdev, &b.rdev);
    field("target", &String::from_utf8_lossy(&a.target), &String::from_utf8_lossy(&b.target));
    field("xattrs", &text_of(&a.xattrs), &text_of(&b.xattrs));
    field("link of", &a.link_of, &b.link_of);
    if a.mtime.is_some() && b.mtime.is_some() {
        field("mtime", &a.mtime, &b.mtime);
    }
    if a.layout.is_some() && b.layout.is_some() {
        field("layout", &a.layout, &b.layout);
    }
    if a.data.digest != b.data.digest {
        let at = first_difference(a.data.bytes.as_deref(), b.data.bytes.as_deref());
        let _ = write!(text, " content{at};");
    }
    (!text.is_empty()).then(|| format!("{name}:{text}"))
}

fn first_difference(a: Option<&[u8]>, b: Option<&[u8]>) -> String {
    let (Some(a), Some(b)) = (a, b) else { return String::new() };
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    format!(
        " from byte {same}: {:02x?} / {:02x?}",
        &a[same..a.len().min(same + 8)],
        &b[same..b.len().min(same + 8)]
    )
}

fn text_of(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<String, String> {
    xattrs.iter().map(|(k, v)| (k.escape_ascii().to_string(), v.escape_ascii().to_string())).collect()
}

struct Reader {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// The first path of each inode number with several links.
    first: BTreeMap<u64, Vec<u8>>,
    layout: bool,
}

impl Reader {
    fn visit(&mut self, at: &Path, path: Vec<u8>) -> io::Result<()> {
        let node = self
            .node(at, &path)
            .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", at.display())))?;
        let is_dir = node.kind == Kind::Dir;
        self.nodes.insert(path.clone(), node);
        if !is_dir {
            return Ok(());
        }
        let mut names = std::fs::read_dir(at)?
            .map(|entry| entry.map(|e| e.file_name().into_vec()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            if path.is_empty() && name == b"lost+found" {
                // Its `..` is a link of the root.
                if let Some(root) = self.nodes.get_mut(&path) {
                    root.nlink -= 1;
                }
                continue;
            }
            let child = at.join(std::ffi::OsStr::from_bytes(&name));
            let child_path = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
            self.visit(&child, child_path)?;
        }
        Ok(())
    }

    fn node(&mut self, at: &Path, path: &[u8]) -> io::Result<Node> {
        let meta = std::fs::symlink_metadata(at)?;
        let mut node = Node::new(kind_of(meta.mode()), meta.mode() & 0o7777);
        (node.uid, node.gid, node.nlink) = (meta.uid(), meta.gid(), meta.nlink());
        node.mtime = Some((meta.mtime(), meta.mtime_nsec() as u32));
        node.xattrs = xattrs(at)?;
        match node.kind {
            Kind::File => {
                let file = File::open(at)?;
                let ranges = data_ranges(&file, meta.len());
                node.data = Data::of_ranges(meta.len(), &ranges, |off, buf| file.read_exact_at(buf, off))?;
                node.layout = self.layout.then_some(ranges);
            }
            Kind::Symlink => node.target = std::fs::read_link(at)?.into_os_string().into_vec(),
            Kind::Char | Kind::Block => {
                node.rdev = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            }
            _ => {}
        }
        if node.kind != Kind::Dir && meta.nlink() > 1 {
            node.link_of = Some(self.first.entry(meta.ino()).or_insert_with(|| path.to_vec()).clone());
        }
        Ok(node)
    }
}

/// The kind of a mode's file type bits; what is none of the others is a regular file.
#[must_use]
pub fn kind_of(mode: u32) -> Kind {
    match mode & 0o170_000 {
        0o040_000 => Kind::Dir,
        0o120_000 => Kind::Symlink,
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        0o020_000 => Kind::Char,
        0o060_000 => Kind::Block,
        _ => Kind::File,
    }
}

/// A path's extended attributes, links not followed.
pub fn xattrs(at: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 65_536];
    let len = match rustix::fs::llistxattr(at, &mut list[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(err) => return Err(err.into()),
    };
    let mut map = BTreeMap::new();
    let mut value = vec![0; 65_536];
    for name in list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let key = CString::new(name).expect("split at NUL");
        let len = rustix::fs::lgetxattr(at, key.as_c_str(), &mut value[..])?;
        map.insert(name.to_vec(), value[..len].to_vec());
    }
    Ok(map)
}

/// The ranges of a file that hold data, by SEEK_DATA and SEEK_HOLE; of a small one all of it, since the kernel's answer for
/// content that it has not allocated yet leaves some out (seen on ext2 with 1024-byte blocks, Linux 6.18).
fn data_ranges(file: &File, size: u64) -> Vec<(u64, u64)> {
    const SMALL: u64 = 4 << 20;
    if size <= SMALL {
        return vec![(0, size)];
    }
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
        at = end.max(start + 1);
    }
    ranges
}
