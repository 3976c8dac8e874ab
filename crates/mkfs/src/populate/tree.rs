//! What goes into an image.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use extant_format::{DeviceNumber, FileType, Timestamp};
use rustc_hash::FxHashMap;

use super::{scan, tarball};
use crate::archive::Data;
use crate::error::Result;
use crate::options::{Options, Source};
use crate::params::source_date;
use crate::progress::Progress;

/// Number of a node; the root directory is 0.
pub(crate) type NodeId = u32;
/// Names of a directory and what they are of.
pub(crate) type Entries = Vec<(Box<[u8]>, NodeId)>;

/// Owner, permissions, time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// The lower 12 bits of the mode.
    pub(crate) perms: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
}

/// A file of any type.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
    /// Names that it has (not counted for directories).
    pub(crate) names: u32,
    /// Full names and values as the system shows them.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Entries in any order; sorted before use.
    Directory(Entries),
    Regular(Content),
    Symlink(Box<[u8]>),
    Device(FileType, DeviceNumber),
    /// FIFO or socket.
    Other(FileType),
}

/// A file's bytes.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) place: Place,
    /// Where there is data, if there are holes: ascending ranges below `size`.
    pub(crate) data: Option<Vec<Data>>,
}

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A file in one of [`Tree::dirs`].
    Host { dir: u32, name: Box<[u8]> },
    /// Bytes of one of [`Tree::archives`]; with holes, data ranges follow each other there.
    Archive { file: u8, offset: u64 },
}

/// The contents of an image.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dirs: Vec<PathBuf>,
    /// The archive itself, or what was kept of it, or both.
    pub(crate) archives: Vec<File>,
}

impl Kind {
    pub(crate) const fn file_type(&self) -> FileType {
        match self {
            Self::Directory(_) => FileType::Directory,
            Self::Regular(_) => FileType::Regular,
            Self::Symlink(_) => FileType::Symlink,
            Self::Device(kind, _) | Self::Other(kind) => *kind,
        }
    }
}

impl Tree {
    /// Reads what `source` holds; owners, times and attributes as `options` say.
    ///
    /// # Errors
    /// [`MkfsError::Source`](crate::MkfsError::Source), [`MkfsError::Member`](crate::MkfsError::Member), naming the file.
    pub fn read(source: &Source, options: &Options, progress: &dyn Progress) -> Result<Self> {
        progress.stage("Reading the source", 0);
        let mut tree = match source {
            Source::Path(path) if path.is_dir() => scan::scan(path, options, progress)?,
            Source::Path(path) => tarball::read_path(path, options, progress)?,
            Source::Stdin => tarball::read_stdin(options, progress)?,
        };
        tree.apply(options)?;
        tree.sort();
        Ok(tree)
    }

    /// A tree of an empty root directory.
    pub(crate) fn new() -> Self {
        let meta = Meta { perms: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
        let root = Node { meta, kind: Kind::Directory(Vec::new()), names: 1, xattrs: Vec::new() };
        Self { nodes: vec![root], dirs: Vec::new(), archives: Vec::new() }
    }

    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    pub(crate) fn entries(&self, id: NodeId) -> &[(Box<[u8]>, NodeId)] {
        match &self.nodes[id as usize].kind {
            Kind::Directory(entries) => entries,
            _ => &[],
        }
    }

    /// The first path of a node in the image, from its root on. Looks through all directories: for messages.
    pub(crate) fn path(&self, id: NodeId) -> PathBuf {
        let (mut names, mut at) = (Vec::new(), id);
        while at != 0 {
            let name_in =
                |dir: NodeId| self.entries(dir).iter().find(|(_, child)| *child == at).map(|(name, _)| name);
            let found = (0..self.nodes.len() as NodeId).find_map(|dir| Some((dir, name_in(dir)?)));
            let Some((dir, name)) = found else { break };
            names.push(OsStr::from_bytes(name));
            at = dir;
        }
        let root = PathBuf::from("/");
        names.iter().rev().fold(root, |path, name| path.join(name))
    }

    pub(crate) fn entries_of(&mut self, id: NodeId) -> Option<&mut Entries> {
        match &mut self.nodes[id as usize].kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Overrides owners and cuts times.
    fn apply(&mut self, options: &Options) -> Result<()> {
        let limit = options.time.map_or_else(source_date, |time| Ok(Some(time)))?;
        for node in &mut self.nodes {
            if let Some((uid, gid)) = options.owner {
                (node.meta.uid, node.meta.gid) = (uid, gid);
            }
            if let Some(limit) = limit
                && node.meta.mtime.sec >= limit as i64
            {
                node.meta.mtime = Timestamp::from_sec(limit as i64);
            }
            if options.extended.no_copy_xattrs {
                node.xattrs.clear();
            }
            node.xattrs.sort();
        }
        let root = &mut self.nodes[0].meta;
        if let Some((uid, gid)) = options.extended.root_owner {
            (root.uid, root.gid) = (uid, gid);
        }
        if let Some(perms) = options.extended.root_perms {
            root.perms = perms;
        }
        Ok(())
    }

    /// Sorts every directory by name.
    fn sort(&mut self) {
        for node in &mut self.nodes {
            if let Kind::Directory(entries) = &mut node.kind {
                entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            }
        }
    }

    /// The nodes in the order in which they get numbers: directories before what is in them, by name.
    pub(crate) fn order(&self) -> Vec<NodeId> {
        let mut seen = vec![false; self.nodes.len()];
        let (mut order, mut stack) = (Vec::with_capacity(self.nodes.len()), vec![0]);
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            order.push(id);
            stack.extend(self.entries(id).iter().rev().map(|(_, child)| *child));
        }
        order
    }

    /// The path of a host file.
    pub(crate) fn host_path(&self, dir: u32, name: &[u8]) -> PathBuf {
        self.dirs[dir as usize].join(Path::new(std::ffi::OsStr::from_bytes(name)))
    }

    /// Bytes of all regular files.
    pub(crate) fn data_bytes(&self) -> u64 {
        let size = |n: &Node| match &n.kind {
            Kind::Regular(c) => c.data.as_ref().map_or(c.size, |d| d.iter().map(|d| d.len).sum()),
            _ => 0,
        };
        self.nodes.iter().map(size).sum()
    }
}

/// Hard links met so far: device and inode of the source to node.
pub(crate) type Links = FxHashMap<(u64, u64), NodeId>;
