//! Images that nobody should trust: everything in them is looked at, and
//! whatever they hold, the answer is an error, never a panic, an endless walk or memory without bound.

use std::ops::ControlFlow;
use std::sync::Arc;

use extant::{Credentials, Error, FileType, Filesystem, Ino, InodeRef, Setup};
use extant_device::BlockDevice;
use extant_testkit::Rng;
use extant_testkit::sim::Content;

/// Data read of one file at most: its size may say anything.
const READ_LIMIT: u64 = 16 << 20;
/// Names looked at, at most: directories may hold each other.
const NAME_LIMIT: u64 = 20_000;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Names.
    pub names: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Errors of single files and directories; the walk goes on.
    pub errors: u64,
}

/// Mounts read-only and looks at everything. `Err` if it cannot be mounted, which is an answer too.
pub fn read_everything(device: Arc<dyn BlockDevice>) -> Result<Seen, Error> {
    let fs = Filesystem::open(device, Setup::read_only())?;
    let mut walk =
        Walk { fs: &fs, cred: Credentials::root(), seen: Seen::default(), buf: vec![0; 256 << 10] };
    match fs.root() {
        Ok(root) => walk.tree(root),
        Err(_) => walk.seen.errors += 1,
    }
    let seen = walk.seen;
    fs.unmount()?;
    Ok(seen)
}

struct Walk<'a> {
    fs: &'a Arc<Filesystem>,
    cred: Credentials,
    seen: Seen,
    buf: Vec<u8>,
}

impl Walk<'_> {
    fn tree(&mut self, root: InodeRef) {
        let mut visited = std::collections::HashSet::from([root.ino()]);
        let mut todo = vec![root];
        while let Some(dir) = todo.pop() {
            self.look(&dir);
            for name in self.names(&dir) {
                if self.seen.names >= NAME_LIMIT {
                    return;
                }
                self.seen.names += 1;
                match self.fs.lookup(&dir, &name, &self.cred) {
                    Ok(child) if child.is_dir() => {
                        if visited.insert(child.ino()) {
                            todo.push(child);
                        }
                    }
                    Ok(child) => self.file(&child),
                    Err(_) => self.seen.errors += 1,
                }
            }
        }
        // What no name leads to is reachable by number (file handles).
        for ino in 1..=64 {
            if let Ok(inode) = self.fs.inode(Ino(ino)) {
                self.look(&inode);
            }
        }
    }

    fn names(&mut self, dir: &InodeRef) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let listed = self.fs.read_dir(dir, 0, &self.cred, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push(entry.name.to_vec());
            }
            if (names.len() as u64) < NAME_LIMIT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        self.seen.errors += u64::from(listed.is_err());
        names
    }

    fn look(&mut self, inode: &InodeRef) {
        let attr = inode.attr();
        let names = self.fs.list_xattr(inode, &self.cred);
        self.seen.errors += u64::from(names.is_err());
        for name in names.unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
            self.seen.errors += u64::from(self.fs.get_xattr(inode, name, &self.cred).is_err());
        }
        if attr.kind == FileType::Symlink {
            self.seen.errors += u64::from(self.fs.readlink(inode).is_err());
        }
    }

    fn file(&mut self, inode: &InodeRef) {
        self.look(inode);
        if !inode.is_regular() {
            return;
        }
        if let Err(_err) = self.content(inode) {
            self.seen.errors += 1;
        }
    }

    fn content(&mut self, inode: &InodeRef) -> Result<(), Error> {
        // The front and the end: a size may say anything.
        let size = inode.size();
        let mut read = 0;
        for start in [0, size / 2, size.saturating_sub(READ_LIMIT / 4)] {
            let mut at = start;
            while at < start.saturating_add(READ_LIMIT / 4) {
                let len = self.fs.read_at(inode, at, &mut self.buf)? as u64;
                if len == 0 {
                    break;
                }
                read += len;
                at += len;
            }
        }
        self.seen.bytes += read;
        Ok(())
    }
}

/// Damages a content in one of the ways that fuzzing has found fruitful. What stays zero in the image is left alone, so
/// that most damage hits structures.
pub fn damage(content: &mut Content, rng: &mut Rng) {
    let places = content.nonzero_chunks();
    if places.is_empty() {
        return;
    }
    for _ in 0..1 + rng.below(4) {
        // Superblock, descriptors, bitmaps and the first inodes are at the front: half of the damage goes there.
        let front = if rng.chance(1, 2) { places.len().min(24) } else { places.len() };
        let chunk = places[rng.below(front as u64) as usize];
        let at = chunk + rng.below(4096);
        let word = match rng.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 0x7fff_ffff,
            3 => 1 << rng.below(64),
            _ => rng.next_u64(),
        };
        let len = *rng.pick(&[1_usize, 1, 2, 4, 4, 8]);
        let len = len.min((content.size() - at) as usize);
        match rng.below(10) {
            0 => copy(content, *rng.pick(&places), chunk),
            1 => content.zero(chunk, 1024),
            _ => content.write(at, &word.to_le_bytes()[..len]),
        }
    }
}

fn copy(content: &mut Content, from: u64, to: u64) {
    let mut bytes = [0; 1024];
    content.read(from, &mut bytes);
    content.write(to, &bytes);
}

/// Options of the images that are damaged: with checksums most damage is noticed at once, without them it gets far.
const VARIANTS: &[&str] = &[
    "-t ext4 -b 1024 -O ^metadata_csum",
    "-t ext4 -b 4096 -O ^metadata_csum,^64bit",
    "-t ext4 -b 1024 -O ^metadata_csum,inline_data,ea_inode",
    "-t ext4 -b 1024 -O ^metadata_csum,bigalloc -C 4096",
    "-t ext4 -b 1024 -O ^extent,^64bit,^metadata_csum",
    "-t ext2 -b 1024",
    "-t ext3 -b 2048",
    "-t ext4 -b 1024 -I 512 -O inline_data,orphan_file,large_dir",
    "-t ext4 -b 4096",
];

/// Healthy images to damage.
pub struct Bases(Vec<(&'static str, Content)>);

impl Bases {
    /// Makes them with mke2fs, each with a small tree of many kinds of inodes; and each that has a journal once more, written to
    /// and not unmounted.
    #[must_use]
    pub fn make() -> Self {
        let dir = extant_testkit::scratch();
        let tree = dir.join("tree");
        fill(&tree);
        let image = dir.join("image");
        let contents = VARIANTS.iter().copied().map(|options| {
            let mut args: Vec<&str> = options.split_whitespace().collect();
            let tree = tree.to_string_lossy();
            args.extend(["-d", &tree]);
            extant_testkit::oracle::mke2fs_with(&image, 8 << 20, &args);
            let content = Content::from_file(&image).unwrap_or_else(|err| panic!("{err}"));
            std::fs::remove_file(&image).unwrap_or_else(|err| panic!("{err}"));
            (options, content)
        });
        let clean: Vec<_> = contents.collect();
        let journalled = clean.iter().filter(|(options, _)| !options.contains("ext2"));
        let unclean = journalled.enumerate().map(|(i, (options, content))| {
            (*options, crate::assault::interrupted(content.clone(), &mut Rng::new(i as u64)))
        });
        let unclean: Vec<_> = unclean.collect();
        Self(clean.into_iter().chain(unclean).collect())
    }

    /// One of them.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Content {
        rng.pick(&self.0).1.clone()
    }

    /// One of those that have a journal, and its options.
    pub(crate) fn pick_journalled(&self, rng: &mut Rng) -> (&'static str, Content) {
        loop {
            let (options, content) = rng.pick(&self.0);
            if !options.contains("ext2") {
                return (options, content.clone());
            }
        }
    }
}

fn fill(tree: &std::path::Path) {
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(tree.join("dir/below"))?;
        std::fs::create_dir_all(tree.join("many"))?;
        std::fs::write(tree.join("small"), "small")?;
        std::fs::write(tree.join("dir/file"), vec![7; 300_000])?;
        for i in 0..200 {
            std::fs::write(tree.join(format!("many/a-name-of-some-length-{i}")), "")?;
        }
        std::os::unix::fs::symlink("dir/file", tree.join("short-link"))?;
        std::os::unix::fs::symlink("x/".repeat(60), tree.join("dir/long-link"))?;
        std::fs::hard_link(tree.join("small"), tree.join("dir/hard"))?;
        let sparse = std::fs::File::create(tree.join("sparse"))?;
        for i in 0..40 {
            std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", i * 40_000)?;
        }
        Ok(())
    };
    make().unwrap_or_else(|err| panic!("{}: {err}", tree.display()));
}

/// Damages one of the images by the seed and looks at all of it; whether it could be mounted.
#[must_use]
pub fn trial(bases: &Bases, seed: u64) -> bool {
    let mut rng = Rng::new(seed);
    let mut content = bases.pick(&mut rng);
    damage(&mut content, &mut rng);
    read_everything(extant_testkit::SimDevice::read_only(content)).is_ok()
}

/// What the process may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Peak memory in KiB.
    pub peak_kib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // The cache's own bound, the images, and room for the program.
        Self { peak_kib: 1 << 20 }
    }
}

impl Limits {
    /// `Err` says what was exceeded.
    pub fn check(&self) -> Result<(), String> {
        let status = std::fs::read_to_string("/proc/self/status").map_err(|err| err.to_string())?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 =
            peak.and_then(|t| t.split_whitespace().next()).and_then(|t| t.parse().ok()).unwrap_or(0);
        if kib <= self.peak_kib { Ok(()) } else { Err(format!("peak memory of {kib} KiB")) }
    }
}
