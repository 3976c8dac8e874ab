//! Extended attributes: in the inode, in a block that equal sets share, in inodes of their own.

use extant_format::acl::Acl;
use extant_format::xattr::{self, AreaKind, AttrSet, MAX_REFCOUNT, Value};
use extant_format::{Ino, Inode, InodeFlags, Pblk};
use rustc_hash::FxHashMap;

use crate::builder::Builder;
use crate::error::{MkfsError, Result, invalid};
use crate::special::broken;

/// A block of attributes.
struct Block {
    bytes: Vec<u8>,
    pblk: u64,
    refcount: u32,
}

/// An inode that holds a value.
struct Holder {
    inode: Inode,
    references: u64,
}

/// Places attributes and keeps what is written at the end, when reference counts are known.
#[derive(Default)]
pub(super) struct AttrPlacer {
    blocks: Vec<Block>,
    by_content: FxHashMap<Vec<u8>, usize>,
    holders: FxHashMap<Ino, Holder>,
    by_value: FxHashMap<Vec<u8>, (Ino, u32)>,
}

/// Where an inode's attributes went.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Those in the inode.
    pub(super) ibody: AttrSet,
    /// The block of the others, 0 for none.
    pub(super) block: u64,
    /// Sectors of the inodes that hold values: whoever refers to one is charged for all of it.
    pub(super) held_sectors: u64,
    /// How many of those inodes.
    pub(super) held_inodes: u64,
}

impl AttrPlacer {
    /// Places the attributes `xattrs` (full names, values as the system shows them) of one inode.
    pub(super) fn place(
        &mut self,
        b: &mut Builder,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        ibody_len: usize,
    ) -> Result<Placed> {
        let mut placed = Placed::default();
        if xattrs.is_empty() {
            return Ok(placed);
        }
        let mut outside = AttrSet::new();
        let block_len = b.block_size() as usize;
        for (full, value) in xattrs {
            let Some((index, name)) = xattr::split_name(full) else {
                return invalid(format!(
                    "extended attribute '{}' has no place in ext4",
                    String::from_utf8_lossy(full)
                ));
            };
            if index == xattr::INDEX_SYSTEM {
                // Attributes of the source's own filesystem.
                continue;
            }
            let Some(value) = stored(index, value)? else { continue };
            let fits = |set: &AttrSet, kind, len| {
                set.room_for_value(kind, len, name.len()) >= xattr::padded(value.len())
                    && set.area_len(kind) + xattr::entry_len(name.len()) + xattr::padded(value.len()) <= len
            };
            if fits(&placed.ibody, AreaKind::Ibody, ibody_len) {
                placed.ibody.set(index, name, Value::Inline(value)).map_err(broken)?;
            } else if fits(&outside, AreaKind::Block, block_len) {
                outside.set(index, name, Value::Inline(value)).map_err(broken)?;
            } else {
                placed.held_sectors += b.sectors((value.len() as u64).div_ceil(block_len as u64));
                placed.held_inodes += 1;
                let held = self.hold(b, full, value)?;
                let small =
                    placed.ibody.area_len(AreaKind::Ibody) + xattr::entry_len(name.len()) <= ibody_len;
                let set = if small { &mut placed.ibody } else { &mut outside };
                set.set(index, name, held).map_err(broken)?;
            }
        }
        if !outside.is_empty() {
            placed.block = self.share(b, outside)?;
        }
        Ok(placed)
    }

    /// The block that holds just these attributes: one that exists already, or a new one.
    fn share(&mut self, b: &mut Builder, mut set: AttrSet) -> Result<u64> {
        let mut bytes = vec![0; b.block_size() as usize];
        set.write_block(&mut bytes, 1).map_err(broken)?;
        if let Some(&at) = self.by_content.get(&bytes)
            && self.blocks[at].refcount < MAX_REFCOUNT
        {
            self.blocks[at].refcount += 1;
            return Ok(self.blocks[at].pblk);
        }
        let goal = b.data_goal;
        let pblk = b.allocate(goal, 1)?;
        self.by_content.insert(bytes.clone(), self.blocks.len());
        self.blocks.push(Block { bytes, pblk, refcount: 1 });
        Ok(pblk)
    }

    /// Puts a value that no area has room for into an inode of its own.
    fn hold(&mut self, b: &mut Builder, full: &[u8], value: Vec<u8>) -> Result<Value> {
        use extant_format::Incompat;
        if !b.sb().features().incompat.contains(Incompat::EA_INODE) {
            return Err(MkfsError::Invalid(format!(
                "extended attribute '{}' of {} bytes is too large for a block; use -O ea_inode or -E no_copy_xattrs",
                String::from_utf8_lossy(full),
                value.len()
            )));
        }
        let size = value.len() as u32;
        if let Some(&(ino, hash)) = self.by_value.get(&value) {
            if let Some(holder) = self.holders.get_mut(&ino) {
                holder.references += 1;
            }
            return Ok(Value::EaInode { ino, size, hash });
        }
        let ino = b.new_ino()?;
        let hash = xattr::ea_inode_hash(b.csum().seed(), &value);
        let block = b.block_size() as usize;
        let blocks = value.len().div_ceil(block) as u32;
        let goal = b.data_goal;
        let (map, runs, flags) = b.new_map(ino, blocks, goal)?;
        for run in &runs {
            let start = run.lblk as usize * block;
            let mut bytes = value[start..value.len().min(start + run.len as usize * block)].to_vec();
            bytes.resize(run.len as usize * block, 0);
            b.write_block(run.pblk, &bytes)?;
        }
        let mut inode = Inode {
            size: u64::from(size),
            blocks: b.sectors(u64::from(blocks)) + b.sectors_each(map.tree_blocks),
            i_block: map.i_block,
            flags: flags | InodeFlags::EA_INODE,
            ..b.fresh(0o100600)
        };
        inode.set_ea_hash(hash);
        self.holders.insert(ino, Holder { inode, references: 1 });
        self.by_value.insert(value, (ino, hash));
        Ok(Value::EaInode { ino, size, hash })
    }

    /// Writes blocks and inodes with their reference counts.
    pub(super) fn finish(mut self, b: &mut Builder) -> Result<()> {
        let seed = b.csum().seed();
        self.blocks.sort_by_key(|block| block.pblk);
        for block in &mut self.blocks {
            xattr::set_refcount(&mut block.bytes, block.refcount).map_err(broken)?;
            if b.has_csum() {
                xattr::set_block_checksum(seed, Pblk(block.pblk), &mut block.bytes);
            }
            b.write_block(block.pblk, &block.bytes)?;
        }
        let mut holders: Vec<(Ino, Holder)> = self.holders.into_iter().collect();
        holders.sort_by_key(|(ino, _)| *ino);
        for (ino, mut holder) in holders {
            holder.inode.set_ea_refcount(holder.references);
            b.put_uncharged(ino, &holder.inode, None)?;
        }
        Ok(())
    }
}

/// The value as it is stored: access control lists have a form of their own on disk; one that says no more than the
/// mode is not stored.
fn stored(index: u8, value: &[u8]) -> Result<Option<Vec<u8>>> {
    if !matches!(index, xattr::INDEX_POSIX_ACL_ACCESS | xattr::INDEX_POSIX_ACL_DEFAULT) {
        return Ok(Some(value.to_vec()));
    }
    Ok(Acl::from_xattr(value).map_err(broken)?.map(|acl| acl.to_disk()))
}

/// Blocks that the attributes of one inode may need; for planning.
pub(super) fn blocks_at_most(xattrs: &[(Vec<u8>, Vec<u8>)], block_size: u64) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let large: u64 = xattrs
        .iter()
        .map(|(_, v)| v.len() as u64)
        .filter(|&n| n > block_size / 2)
        .map(|n| n.div_ceil(block_size))
        .sum();
    1 + large
}
