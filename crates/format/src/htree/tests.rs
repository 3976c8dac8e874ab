//! A tree built with these helpers keeps every name findable; damage gives errors.

use super::{
    DxBlock, DxEntry, DxKind, HtreeError, deepen, insert_entry, kind_of, make_indexed, root_info, set_tail,
    split_leaf, split_node, verify_tail,
};
use crate::dir::{self, DirLayout, NewEntry};
use crate::hash::{HashVersion, Hasher};
use crate::inode::FileType;
use crate::testing::Rng;
use crate::types::{Ino, Lblk};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

const SEED: u32 = 0x1234_5678;

struct Tree {
    layout: DirLayout,
    hasher: Hasher,
    blocks: Vec<Vec<u8>>,
}

impl Tree {
    fn new(block_size: u32, checksummed: bool, version: HashVersion) -> Self {
        let layout = DirLayout {
            block_size,
            filetype: true,
            checksummed,
            hash_in_entry: false,
            inodes_count: 1 << 30,
        };
        let mut first = vec![0; block_size as usize];
        dir::init_first(&layout, &mut first, Ino(2), Ino(2)).unwrap();
        Self { layout, hasher: Hasher::new(version, [0; 4]).unwrap(), blocks: vec![first] }
    }

    fn grow(&mut self) -> Vec<u8> {
        vec![0; self.layout.block_size as usize]
    }

    fn path(&self, hash: u32) -> (Vec<(usize, usize)>, usize) {
        let info = root_info(&self.layout, &self.blocks[0], true).unwrap();
        let (mut path, mut at, mut kind) = (Vec::new(), 0, DxKind::Root);
        for _ in 0..=info.indirect_levels {
            let view = DxBlock::new(&self.layout, &self.blocks[at], kind).unwrap();
            let index = view.lookup(hash);
            path.push((at, index));
            at = view.entry(index).unwrap().lblk.0 as usize;
            kind = DxKind::Node;
        }
        (path, at)
    }

    fn insert(&mut self, name: &str, ino: u32) -> Result<(), HtreeError> {
        let entry = NewEntry::new(Ino(ino), FileType::Regular, name.as_bytes());
        if root_info(&self.layout, &self.blocks[0], true).is_err() {
            if dir::insert(&self.layout, &mut self.blocks[0], &entry)?.is_some() {
                return Ok(());
            }
            let mut leaf = self.grow();
            make_indexed(&self.layout, &mut self.blocks[0], &mut leaf, Lblk(1), self.hasher.version())?;
            self.blocks.push(leaf);
        }
        loop {
            let (path, leaf) = self.path(self.hasher.hash(name.as_bytes()).major);
            if dir::insert(&self.layout, &mut self.blocks[leaf], &entry)?.is_some() {
                return Ok(());
            }
            if !self.make_room(&path)? {
                continue;
            }
            let mut new = self.grow();
            let hash = split_leaf(&self.layout, &self.hasher, &mut self.blocks[leaf], &mut new)?;
            self.blocks.push(new);
            let lblk = Lblk(self.blocks.len() as u32 - 1);
            let &(at, index) = path.last().unwrap();
            let kind = if at == 0 { DxKind::Root } else { DxKind::Node };
            insert_entry(&self.layout, &mut self.blocks[at], kind, index, DxEntry { hash, lblk })?;
        }
    }

    /// True if the lowest index block has room; otherwise splits one level and says false.
    fn make_room(&mut self, path: &[(usize, usize)]) -> Result<bool, HtreeError> {
        let kind = |at: usize| if at == 0 { DxKind::Root } else { DxKind::Node };
        let full: Vec<bool> = path
            .iter()
            .map(|&(at, _)| DxBlock::new(&self.layout, &self.blocks[at], kind(at)).unwrap().is_full())
            .collect();
        let Some(level) =
            full.iter().rposition(|f| !f).map_or(Some(0), |l| (l + 1 < full.len()).then_some(l + 1))
        else {
            return Ok(true);
        };
        let mut new = self.grow();
        let lblk = Lblk(self.blocks.len() as u32);
        if level == 0 {
            deepen(&self.layout, &mut self.blocks[0], &mut new, lblk, true)?;
        } else {
            let hash = split_node(&self.layout, &mut self.blocks[path[level].0], &mut new)?;
            let (at, index) = path[level - 1];
            insert_entry(&self.layout, &mut self.blocks[at], kind(at), index, DxEntry { hash, lblk })?;
        }
        self.blocks.push(new);
        Ok(false)
    }

    fn find(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash(name.as_bytes()).major;
        let (path, leaf) = self.path(hash);
        let hit = dir::find(&self.layout, &self.blocks[leaf], name.as_bytes()).unwrap();
        hit.map(|r| r.ino.0).or_else(|| {
            // Walk on through continued leaves of the same lowest index block; enough for these tests.
            let &(at, index) = path.last().unwrap();
            let kind = if at == 0 { DxKind::Root } else { DxKind::Node };
            let view = DxBlock::new(&self.layout, &self.blocks[at], kind).unwrap();
            let next = view.entry(index + 1).filter(|e| e.hash == hash | 1)?;
            let block = &self.blocks[next.lblk.0 as usize];
            dir::find(&self.layout, block, name.as_bytes()).unwrap().map(|r| r.ino.0)
        })
    }
}

#[test]
fn every_name_stays_findable_to_three_levels() {
    let mut rng = Rng::from_env();
    for (block_size, count, checksummed) in [(1024, 30_000, true), (1024, 3000, false), (4096, 20_000, true)]
    {
        let mut tree = Tree::new(block_size, checksummed, HashVersion::HalfMd4);
        let names: Vec<String> = (0..count).map(|n| n.to_string() + &rng.name(40)).collect();
        for (n, name) in names.iter().enumerate() {
            tree.insert(name, n as u32 + 11).unwrap();
        }
        for (n, name) in names.iter().enumerate() {
            assert_eq!(tree.find(name), Some(n as u32 + 11), "{name}");
        }
        let levels = root_info(&tree.layout, &tree.blocks[0], true).unwrap().indirect_levels;
        assert_eq!(levels >= 1, block_size == 1024, "small blocks need nodes");
        if block_size == 1024 && count == 30_000 {
            assert_eq!(root_info(&tree.layout, &tree.blocks[0], false).is_err(), levels >= 2);
        }
    }
}

#[test]
fn checksums_cover_used_entries_and_tail() {
    let mut tree = Tree::new(1024, true, HashVersion::Tea);
    for n in 0..400 {
        tree.insert(&std::format!("name-{n}"), n + 11).unwrap();
    }
    let mut root = tree.blocks[0].clone();
    assert_eq!(kind_of(&tree.layout, &root), Some(DxKind::Root));
    set_tail(&tree.layout, &mut root, DxKind::Root, SEED).unwrap();
    verify_tail(&tree.layout, &root, DxKind::Root, SEED).unwrap();
    let entries = DxBlock::new(&tree.layout, &root, DxKind::Root).unwrap().count();
    let mut unused = root.clone();
    unused[32 + entries * 8] ^= 0xff;
    verify_tail(&tree.layout, &unused, DxKind::Root, SEED).unwrap();
    root[40] ^= 1;
    assert!(matches!(verify_tail(&tree.layout, &root, DxKind::Root, SEED), Err(HtreeError::Checksum { .. })));
}

#[test]
fn names_of_one_hash_continue() {
    let layout = DirLayout {
        block_size: 1024,
        filetype: true,
        checksummed: true,
        hash_in_entry: true,
        inodes_count: 99,
    };
    let hasher = Hasher::new(HashVersion::HalfMd4, [0; 4]).unwrap();
    let names: Vec<String> = (0..20).map(|n| std::format!("collision-{n:02}")).collect();
    let entry = |n: &'static str| NewEntry::new(Ino(12), FileType::Regular, n.as_bytes());
    let (mut leaf, mut new) = (vec![0; 1024], vec![0; 1024]);
    let all = names.iter().map(|n| NewEntry { name: n.as_bytes(), stored_hash: Some((8, 0)), ..entry("x") });
    assert!(dir::pack(&layout, &mut leaf, all));
    assert_eq!(split_leaf(&layout, &hasher, &mut leaf, &mut new).unwrap(), 9);
    let count = |b: &[u8]| dir::entries(&layout, b).count();
    assert_eq!(count(&leaf) + count(&new), 20);
}

#[test]
fn each_kind_of_damage_has_its_error() {
    let mut tree = Tree::new(1024, false, HashVersion::HalfMd4);
    for n in 0..200 {
        tree.insert(&std::format!("name-{n}"), n + 11).unwrap();
    }
    let bad = |at: usize, byte: u8| {
        let mut root = tree.blocks[0].clone();
        root[at] = byte;
        root_info(&tree.layout, &root, false)
            .and_then(|_| DxBlock::new(&tree.layout, &root, DxKind::Root).map(|v| v.count()))
            .unwrap_err()
    };
    assert!(matches!(bad(24, 1), HtreeError::Reserved(1)));
    assert!(matches!(bad(28, 9), HtreeError::HashVersion(9)));
    assert!(matches!(bad(29, 4), HtreeError::InfoLength(4)));
    assert!(matches!(bad(30, 2), HtreeError::Levels(2)));
    assert!(matches!(bad(31, 1), HtreeError::Flags(1)));
    assert!(matches!(bad(32, 9), HtreeError::Limit { limit: 9, expected: 124 }));
    assert!(matches!(bad(34, 0), HtreeError::Count { count: 0, .. }));
    assert!(matches!(bad(34, 125), HtreeError::Count { count: 125, .. }));
    assert!(matches!(bad(8, b'x'), HtreeError::BadHead));
    assert!(matches!(bad(51, 0), HtreeError::Order { index: 2, .. }));
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    let mut tree = Tree::new(1024, true, HashVersion::HalfMd4);
    for n in 0..6000 {
        tree.insert(&std::format!("a-rather-long-name-{n}"), n + 11).unwrap();
    }
    for round in 0..30_000 {
        let which = if round % 3 == 0 { 0 } else { rng.below(tree.blocks.len()) };
        let mut block = if rng.chance(8) { rng.bytes(1024) } else { tree.blocks[which].clone() };
        rng.mutate(&mut block);
        let mut new = vec![0; 1024];
        let kind = if rng.chance(2) { DxKind::Root } else { DxKind::Node };
        let _ = (kind_of(&tree.layout, &block), verify_tail(&tree.layout, &block, kind, SEED));
        if let Ok(view) = DxBlock::new(&tree.layout, &block, kind) {
            assert!(view.lookup(rng.next() as u32) < view.count());
        }
        let entry = DxEntry { hash: rng.next() as u32, lblk: Lblk(7) };
        let _ = insert_entry(&tree.layout, &mut block, kind, rng.below(130), entry);
        let _ = set_tail(&tree.layout, &mut block, kind, SEED);
        let _ = deepen(&tree.layout, &mut block.clone(), &mut new, Lblk(9), true);
        let _ = split_node(&tree.layout, &mut block.clone(), &mut new);
        let _ = make_indexed(&tree.layout, &mut block.clone(), &mut new, Lblk(9), HashVersion::Tea);
        let _ = split_leaf(&tree.layout, &tree.hasher, &mut block, &mut new);
    }
}
