//! Making the maps of files: extent trees and indirect maps, laid out in one pass.

use extant_format::extent::{self, MAX_LEN};
use extant_format::indirect;
use extant_format::inode::I_BLOCK_SIZE;
use extant_format::{Extent, Index, Ino, Lblk, NodeMut, Pblk};

use crate::builder::Builder;
use crate::error::Result;

/// A run of a file's blocks, without limit of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) lblk: u32,
    pub(crate) len: u32,
    pub(crate) pblk: u64,
}

/// A finished map: the root and how many tree blocks it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) i_block: [u8; I_BLOCK_SIZE],
    pub(crate) tree_blocks: u64,
}

/// The extents of runs: none longer than an extent can be (a whole number of clusters).
pub(crate) fn extents_of(runs: &[Run], cluster_ratio: u32) -> Vec<Extent> {
    let longest = MAX_LEN / cluster_ratio.min(MAX_LEN) * cluster_ratio.min(MAX_LEN);
    let mut extents = Vec::new();
    for run in runs {
        let mut done = 0;
        while done < run.len {
            let len = (run.len - done).min(longest);
            let (lblk, pblk) = (Lblk(run.lblk + done), Pblk(run.pblk + u64::from(done)));
            extents.push(Extent { lblk, len, pblk, unwritten: false });
            done += len;
        }
    }
    extents
}

/// Writes the tree of `extents`; blocks for nodes come from `goal` on.
pub(crate) fn extent_tree(b: &mut Builder, ino: Ino, extents: &[Extent], goal: u64) -> Result<Map> {
    let mut i_block = [0; I_BLOCK_SIZE];
    if extents.len() <= usize::from(extent::ROOT_ENTRIES) {
        let mut root = NodeMut::init(&mut i_block, ino, None, 0);
        for (at, e) in extents.iter().enumerate() {
            root.insert_extent(at as u16, *e)?;
        }
        return Ok(Map { i_block, tree_blocks: 0 });
    }
    let per_node = usize::from(extent::capacity(b.block_size() as usize));
    let mut tree_blocks = 0;
    let mut level = Vec::new();
    for piece in extents.chunks(per_node) {
        let block = b.allocate(goal, 1)?;
        tree_blocks += 1;
        let fill = |node: &mut NodeMut<'_>| {
            piece.iter().enumerate().try_for_each(|(at, e)| node.insert_extent(at as u16, *e))
        };
        write_node(b, ino, block, 0, fill)?;
        level.push(Index { lblk: piece[0].lblk, child: Pblk(block) });
    }
    let mut depth = 1;
    while level.len() > usize::from(extent::ROOT_ENTRIES) {
        let mut above = Vec::new();
        for piece in level.chunks(per_node) {
            let block = b.allocate(goal, 1)?;
            tree_blocks += 1;
            let fill = |node: &mut NodeMut<'_>| {
                piece.iter().enumerate().try_for_each(|(at, e)| node.insert_index(at as u16, *e))
            };
            write_node(b, ino, block, depth, fill)?;
            above.push(Index { lblk: piece[0].lblk, child: Pblk(block) });
        }
        level = above;
        depth += 1;
    }
    let mut root = NodeMut::init(&mut i_block, ino, None, depth);
    for (at, e) in level.iter().enumerate() {
        root.insert_index(at as u16, *e)?;
    }
    Ok(Map { i_block, tree_blocks })
}

fn write_node(
    b: &mut Builder,
    ino: Ino,
    block: u64,
    depth: u16,
    fill: impl FnOnce(&mut NodeMut<'_>) -> std::result::Result<(), extant_format::FormatError>,
) -> Result<()> {
    let mut bytes = vec![0; b.block_size() as usize];
    let mut node = NodeMut::init(&mut bytes, ino, Some(Pblk(block)), depth);
    fill(&mut node)?;
    node.set_checksum(ino, 0, b.csum());
    b.write_block(block, &bytes)
}

/// Pointer blocks on the way to the next logical block, kept until they are full.
struct Open {
    block: u64,
    bytes: Vec<u8>,
}

/// Allocates the blocks of an indirect map in the order a sequential writer would: data and, where one is needed,
/// the pointer blocks in between. `wanted` are the logical ranges that have blocks. Returns the data's runs too.
pub(crate) fn indirect_map(b: &mut Builder, wanted: &[(u32, u32)], goal: u64) -> Result<(Map, Vec<Run>)> {
    let size = b.block_size();
    let mut i_block = [0; I_BLOCK_SIZE];
    let mut open: [Option<Open>; 3] = [None, None, None];
    let mut path_now: Vec<u32> = Vec::new();
    let (mut runs, mut tree_blocks, mut next): (Vec<Run>, _, _) = (Vec::new(), 0, goal);
    for &(start, len) in wanted {
        let (mut lblk, end) = (start, start + len);
        while lblk < end {
            let Some(path) = indirect::Path::new(Lblk(lblk), size) else {
                return crate::error::invalid(format!(
                    "a file needs block {lblk}, past what an indirect map reaches"
                ));
            };
            let offsets = path.offsets();
            for depth in 1..offsets.len() {
                if open[depth - 1].is_some() && path_now.get(..depth) == Some(&offsets[..depth]) {
                    continue;
                }
                for slot in &mut open[depth - 1..] {
                    close(b, slot)?;
                }
                let block = b.allocate(next, 1)?;
                (next, tree_blocks) = (block + 1, tree_blocks + 1);
                point(&mut i_block, &mut open, &offsets[..depth], block);
                open[depth - 1] = Some(Open { block, bytes: vec![0; size as usize] });
                path_now = offsets[..depth].to_vec();
            }
            path_now = offsets[..offsets.len() - 1].to_vec();
            let here = (path.rest_of_block(size) + 1).min(end - lblk);
            let (first, got) = b.allocate_some(next, u64::from(here))?;
            for n in 0..got as u32 {
                let mut offsets = offsets.to_vec();
                *offsets.last_mut().unwrap_or(&mut 0) += n;
                point(&mut i_block, &mut open, &offsets, first + u64::from(n));
            }
            let run = Run { lblk, len: got as u32, pblk: first };
            match runs.last_mut() {
                Some(last) if last.lblk + last.len == lblk && last.pblk + u64::from(last.len) == first => {
                    last.len += run.len;
                }
                _ => runs.push(run),
            }
            (lblk, next) = (lblk + got as u32, first + got);
        }
    }
    for slot in &mut open {
        close(b, slot)?;
    }
    Ok((Map { i_block, tree_blocks }, runs))
}

fn close(b: &mut Builder, slot: &mut Option<Open>) -> Result<()> {
    match slot.take() {
        Some(open) => b.write_block(open.block, &open.bytes),
        None => Ok(()),
    }
}

/// Stores `block` in the pointer that `offsets` leads to: a word of `i_block` or of the innermost open block.
fn point(i_block: &mut [u8; I_BLOCK_SIZE], open: &mut [Option<Open>; 3], offsets: &[u32], block: u64) {
    let word = (block as u32).to_le_bytes();
    let put = |bytes: &mut [u8], at: u32| bytes[at as usize * 4..at as usize * 4 + 4].copy_from_slice(&word);
    match offsets {
        [at] => put(i_block, *at),
        [.., at] => {
            if let Some(parent) = &mut open[offsets.len() - 2] {
                put(&mut parent.bytes, *at);
            }
        }
        [] => {}
    }
}
