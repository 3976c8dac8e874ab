//! Directory blocks, made whole: linear in order of names, or a hash tree with its leaves in order of hashes.

use extant_format::dir::{self, DirLayout, NewEntry, encode_rec_len};
use extant_format::hash::{HashVersion, Hasher};
use extant_format::htree::{self, DxKind};
use extant_format::{FileType, Ino};

use crate::error::{Result, invalid};
use crate::special::broken;

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) ino: Ino,
    pub(super) kind: FileType,
    pub(super) name: &'a [u8],
}

/// How directories of a filesystem are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirMaker {
    pub(super) layout: DirLayout,
    /// `dir_index`: with which hash.
    pub(super) index: Option<(HashVersion, Hasher)>,
    pub(super) large_dir: bool,
}

/// The blocks of a directory.
pub(super) struct Blocks {
    pub(super) bytes: Vec<u8>,
    /// It has a hash tree.
    pub(super) indexed: bool,
}

impl DirMaker {
    /// Whether the entries fit in one block.
    fn fits_one(&self, entries: &[Entry<'_>]) -> bool {
        let used: usize = entries.iter().map(|e| self.layout.rec_len(e.name.len(), false)).sum();
        used + 24 <= self.layout.usable(self.layout.block_size as usize)
    }

    /// Makes the blocks of directory `ino`; `seed` is its checksum seed.
    pub(super) fn build(&self, ino: Ino, parent: Ino, entries: &[Entry<'_>], seed: u32) -> Result<Blocks> {
        match &self.index {
            Some((version, hasher)) if !self.fits_one(entries) => {
                let bytes = self.indexed(ino, parent, entries, seed, *version, hasher)?;
                Ok(Blocks { bytes, indexed: true })
            }
            _ => Ok(Blocks { bytes: self.linear(ino, parent, entries, seed)?, indexed: false }),
        }
    }

    fn linear(&self, ino: Ino, parent: Ino, entries: &[Entry<'_>], seed: u32) -> Result<Vec<u8>> {
        let size = self.layout.block_size as usize;
        let usable = self.layout.usable(size);
        let dots = [
            NewEntry::new(ino, FileType::Directory, b"."),
            NewEntry::new(parent, FileType::Directory, b".."),
        ];
        let mut bytes = Vec::new();
        let mut block: Vec<NewEntry<'_>> = dots.to_vec();
        let mut used = 24;
        for e in entries {
            let len = self.layout.rec_len(e.name.len(), false);
            if used + len > usable {
                self.push_leaf(&mut bytes, &block, seed)?;
                block.clear();
                used = 0;
            }
            block.push(NewEntry::new(e.ino, e.kind, e.name));
            used += len;
        }
        self.push_leaf(&mut bytes, &block, seed)?;
        Ok(bytes)
    }

    fn push_leaf(&self, bytes: &mut Vec<u8>, entries: &[NewEntry<'_>], seed: u32) -> Result<()> {
        let (start, size) = (bytes.len(), self.layout.block_size as usize);
        bytes.resize(start + size, 0);
        let block = &mut bytes[start..];
        if !dir::pack(&self.layout, block, entries.iter().copied()) {
            return invalid("directory entries do not fit into their block");
        }
        dir::set_tail(&self.layout, block, seed);
        Ok(())
    }

    /// Root, nodes, leaves. Leaves keep an eighth free for names to come.
    fn indexed(
        &self,
        ino: Ino,
        parent: Ino,
        entries: &[Entry<'_>],
        seed: u32,
        version: HashVersion,
        hasher: &Hasher,
    ) -> Result<Vec<u8>> {
        let mut hashed: Vec<(u32, u32, &Entry<'_>)> = entries
            .iter()
            .map(|e| {
                let hash = hasher.hash(e.name);
                (hash.major, hash.minor, e)
            })
            .collect();
        hashed.sort_unstable_by(|a, b| (a.0, a.1, a.2.name).cmp(&(b.0, b.1, b.2.name)));
        let usable = self.layout.usable(self.layout.block_size as usize);
        let full = usable - usable / 8;
        let mut leaves = Vec::new();
        let mut keys: Vec<u32> = Vec::new();
        let (mut block, mut used, mut last) = (Vec::new(), 0, None);
        for (major, _, e) in &hashed {
            let len = self.layout.rec_len(e.name.len(), false);
            if keys.is_empty() || used + len > full {
                if !block.is_empty() {
                    self.push_leaf(&mut leaves, &block, seed)?;
                }
                block.clear();
                used = 0;
                // Bit 0 says that names with this hash begin in the leaf before.
                keys.push(major | u32::from(last == Some(*major)));
            }
            block.push(NewEntry::new(e.ino, e.kind, e.name));
            (used, last) = (used + len, Some(*major));
        }
        self.push_leaf(&mut leaves, &block, seed)?;
        let mut bytes = self.index_blocks(ino, parent, &keys, seed, version)?;
        bytes.append(&mut leaves);
        Ok(bytes)
    }

    /// The root and the nodes above leaves with these first hashes.
    fn index_blocks(
        &self,
        ino: Ino,
        parent: Ino,
        keys: &[u32],
        seed: u32,
        version: HashVersion,
    ) -> Result<Vec<u8>> {
        let root_limit = usize::from(DxKind::Root.limit(&self.layout));
        let node_limit = usize::from(DxKind::Node.limit(&self.layout));
        // Levels of nodes from the leaves up, each as (first hash, count of entries).
        let mut levels: Vec<usize> = Vec::new();
        let mut count = keys.len();
        while count > root_limit {
            count = count.div_ceil(node_limit);
            levels.push(count);
        }
        let most = if self.large_dir { 2 } else { 1 };
        if levels.len() > most {
            return invalid(
                "a directory has too many names for its hash tree; use -O large_dir or larger blocks (-b)",
            );
        }
        let nodes: usize = levels.iter().sum();
        let size = self.layout.block_size as usize;
        let mut bytes = vec![0; size * (1 + nodes)];
        // Top level first behind the root, the one above the leaves last.
        let mut first_lblk = Vec::new();
        let mut next = 1;
        for &n in levels.iter().rev() {
            first_lblk.push(next);
            next += n;
        }
        first_lblk.reverse();
        let leaf_base = 1 + nodes;
        let mut below: Vec<(u32, usize)> =
            keys.iter().enumerate().map(|(n, &k)| (k, leaf_base + n)).collect();
        for &first in &first_lblk {
            let mut above = Vec::new();
            for (n, piece) in below.chunks(node_limit).enumerate() {
                let at = first + n;
                let block = &mut bytes[at * size..(at + 1) * size];
                block[4..6].copy_from_slice(&encode_rec_len(size as u32, size as u32).to_le_bytes());
                self.fill_index(block, DxKind::Node, piece, node_limit, seed)?;
                above.push((piece[0].0, at));
            }
            below = above;
        }
        let block = &mut bytes[..size];
        let dotdot = [
            NewEntry::new(ino, FileType::Directory, b"."),
            NewEntry::new(parent, FileType::Directory, b".."),
        ];
        if !dir::pack(&self.layout.without_tail(), block, dotdot) {
            return invalid("a directory block is too small for its first entries");
        }
        block[24..].fill(0);
        block[28..32].copy_from_slice(&[version.family().raw(), 8, levels.len() as u8, 0]);
        self.fill_index(block, DxKind::Root, &below, root_limit, seed)?;
        Ok(bytes)
    }

    /// Writes count, limit and entries; the first entry's hash is where count and limit are.
    fn fill_index(
        &self,
        block: &mut [u8],
        kind: DxKind,
        entries: &[(u32, usize)],
        limit: usize,
        seed: u32,
    ) -> Result<()> {
        let start = if kind == DxKind::Root { 32 } else { 8 };
        for (n, (hash, lblk)) in entries.iter().enumerate() {
            let at = start + n * htree::ENTRY_LEN;
            block[at..at + 4].copy_from_slice(&hash.to_le_bytes());
            block[at + 4..at + 8].copy_from_slice(&(*lblk as u32).to_le_bytes());
        }
        block[start..start + 2].copy_from_slice(&(limit as u16).to_le_bytes());
        block[start + 2..start + 4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        htree::set_tail(&self.layout, block, kind, seed).map_err(broken)
    }
}
