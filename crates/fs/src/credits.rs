//! How many blocks an operation may change at worst: the credits of its handles, in one place.
//!
//! An operation on names, attributes or one run of blocks is one handle, and [`Filesystem::largest_handle`] is the largest of
//! them: a journal that has not as much room is not written to. What has no bound of its own is cut into pieces that are each
//! whole, one handle after the other: removing blocks, publishing data, dropping the attribute values of a dead inode. What
//! can be neither bounded nor cut is refused before its first change if the journal is too small for it: a large attribute value
//! in many pieces, unsharing an attribute block that names hundreds of values, another kind of map for a fragmented file.

use extant_alloc::{ClaimRequest, Reservation, ToFree};
use extant_format::Lblk;
use extant_format::extent::MAX_DEPTH;
use extant_journal::{Buf, Handle};
use extant_map::MapKind;
use smallvec::SmallVec;

use crate::dir::Plan;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::inode::Inode;
use crate::quota::Ids;

/// One name goes: its block, the inode that it led to, the record of orphans.
pub(crate) const UNLINK: u32 = 4;
/// A new inode: its bitmap, the descriptor, its block of the inode table.
pub(crate) const NEW_INODE: u32 = 3;
/// A record of orphans comes or goes: a slot, the superblock, or a neighbour in the list.
pub(crate) const ORPHAN: u32 = 1;
/// A rename beside the new name: the old one and what that takes, a whiteout, the inode that moves and its `..`, both directories.
pub(crate) const RENAME: u32 = UNLINK + NEW_INODE + 5;
/// An exchange: two names, two inodes, two `..`, both directories.
pub(crate) const EXCHANGE: u32 = 8;
/// An attribute block comes or goes: itself, its bitmap, the descriptor, a revoke record.
pub(crate) const XATTR_BLOCK: u32 = 4;
/// A reference to an attribute value comes or goes: the inode that holds the value, and a record of orphans.
pub(crate) const VALUE: u32 = 1 + ORPHAN;
/// Attribute values of a dead inode that go in one handle.
pub(crate) const VALUES_AT_ONCE: usize = 16;

/// What an operation will change, in memory ([`Filesystem::hold`]).
pub(crate) struct Held {
    _tables: SmallVec<[Buf; 2]>,
    _growth: Option<(Vec<Buf>, Option<ToFree>)>,
}

/// A directory that gets so many new blocks out of a reservation.
pub(crate) type Growth<'a> = (&'a Inode, u32, &'a mut Reservation);

impl Filesystem {
    /// Opens a handle for changes of inodes with these owners: `credits`, and what the entries of the owners in the quota files
    /// take, which are found or made first. Nothing above rank 60 is held.
    ///
    /// An inode may change its owner, or another thread's change of owner may be written with it: two entries of each kind.
    ///
    /// # Errors
    /// Damage of a quota file; `NoSpace` for a new entry; the journal's.
    #[track_caller]
    pub(crate) fn start(&self, owners: &[Ids], credits: u32) -> Result<Handle> {
        for ids in owners {
            self.quota_prepare(*ids)?;
        }
        Ok(self.journal.start(credits + self.quota_credits(owners.len() as u32))?)
    }

    /// The same for one inode. Its own block is counted by the caller, and is read first: what is done in the handle is mostly in
    /// memory already, and a device that fails only then would leave it half done.
    #[track_caller]
    pub(crate) fn start_data(&self, inode: &Inode, credits: u32) -> Result<Handle> {
        self.cache.read(inode.table.0)?;
        self.start(&[Self::quota_ids(inode)], credits)
    }

    /// Reads what an operation on names changes of these inodes, and of a directory that grows: their blocks of the inode table, the
    /// way to its end, the bitmap that blocks of its map come from as a rule; its new blocks are claimed. As long as the result is
    /// held it stays in the cache: the device is asked before the first change, and fails before it.
    ///
    /// # Errors
    /// The device's; damage; `NoSpace`.
    pub(crate) fn hold(&self, inodes: &[&Inode], growing: Option<Growth<'_>>) -> Result<Held> {
        let tables = inodes.iter().map(|inode| Ok(self.cache.read(inode.table.0)?)).collect::<Result<_>>()?;
        let growth = match growing {
            Some((dir, blocks, space)) if blocks > 0 => Some(self.hold_growth(dir, blocks, space)?),
            _ => None,
        };
        Ok(Held { _tables: tables, _growth: growth })
    }

    fn hold_growth(
        &self,
        dir: &Inode,
        blocks: u32,
        space: &mut Reservation,
    ) -> Result<(Vec<Buf>, Option<ToFree>)> {
        let tree = self.alloc.goal_for_inode(dir.ino, false);
        let (goal, nodes) = if self.is_inline(dir) {
            (tree, Vec::new())
        } else {
            let end = self.dir_blocks(dir);
            let range = Lblk(end.saturating_sub(1))..Lblk(end.saturating_add(blocks));
            let nodes = self.map.hold(&dir.map_ref(&dir.map.read()), range)?;
            (self.meta_goal(dir, Lblk(end))?, nodes)
        };
        let request = ClaimRequest::plain(goal, Lblk(0), blocks).below(self.reach(dir));
        self.alloc.claim_ahead(&request, space)?;
        // Blocks of the map come from elsewhere where this cannot be read.
        Ok((nodes, self.alloc.prepare_free(tree, 1).ok()))
    }

    /// Credits for the quota entries of so many inodes.
    pub(crate) fn quota_credits(&self, inodes: u32) -> u32 {
        2 * self.quota_kinds() * inodes
    }

    /// Credits for writing one inode.
    pub(crate) fn inode_credits(&self) -> u32 {
        1 + self.quota_credits(1)
    }

    /// Credits that one new metadata block of an inode takes, in a map of `depth`: itself, its bitmap and descriptor, the map.
    pub(crate) fn block_credits(&self, depth: u16) -> u32 {
        let kind = if self.has_extents() { MapKind::Extents } else { MapKind::Indirect };
        1 + self.map.insert_credits(kind, depth, 1)
    }

    /// Credits with which a removal of blocks goes on, after a restart too. See [`Filesystem::remove_blocks`].
    pub(crate) fn removal_credits(&self, inode: &Inode) -> u32 {
        // A damaged root is met by the removal.
        let depth = self.depth(inode).unwrap_or(MAX_DEPTH);
        self.map.remove_credits(inode.map_kind(), depth) + self.inode_credits()
    }

    /// Credits for the end of an inode: its attributes, its record as an orphan, itself, its bitmap and descriptor.
    pub(crate) fn end_credits(&self) -> u32 {
        let values = if self.has_ea_inode() { VALUE * VALUES_AT_ONCE as u32 } else { 0 };
        XATTR_BLOCK + values + ORPHAN + self.inode_credits() + 2
    }

    /// Credits for a new entry in a quota file whose map has `depth`: the blocks that it adds, block 0, the tree's root, two blocks
    /// of entries, and the inode.
    pub(crate) fn quota_entry_credits(&self, depth: u16) -> u32 {
        crate::quota_file::NEW_BLOCKS * self.block_credits(depth) + 5
    }

    /// The largest handle that is neither cut into pieces nor refused beforehand, in the deepest maps that there can be.
    pub(crate) fn largest_handle(&self) -> u32 {
        let (kind, depth) =
            if self.has_extents() { (MapKind::Extents, MAX_DEPTH) } else { (MapKind::Indirect, 3) };
        let renamed = Plan::split_credits(self, depth) + RENAME + self.quota_credits(5);
        let created =
            Plan::split_credits(self, depth) + NEW_INODE + 2 * self.block_credits(0) + self.quota_credits(2);
        let removed = self.map.remove_credits(kind, depth) + self.inode_credits() + self.end_credits();
        // One claim, which is of one group; it may be a file's of the other kind, but for clusters, which only extents have.
        let mapped = |kind, depth| self.map.insert_credits_for(kind, depth, self.geo.blocks_per_group());
        let other = if self.geo.cluster_ratio() == 1 { mapped(MapKind::Indirect, 3) } else { 0 };
        let published =
            mapped(kind, depth).max(other) + self.map.convert_credits(kind, depth, 1) + self.inode_credits();
        let entry = if self.quota_kinds() > 0 { self.quota_entry_credits(depth) } else { 0 };
        [renamed, created, removed, published, entry].into_iter().max().unwrap_or_default()
    }

    /// Refuses to write through a journal that has no room for the largest handle.
    ///
    /// # Errors
    /// `Incompatible`.
    pub(crate) fn check_journal_size(&self) -> Result<()> {
        let (most, wanted) = (self.journal.max_credits(), self.largest_handle());
        if most >= wanted {
            return Ok(());
        }
        let why = format!(
            "its journal is too small for writing: a transaction holds {most} blocks, and one operation may change {wanted}: \
             mount it with `ro`, or give it a larger journal (`tune2fs -O ^has_journal`, then `tune2fs -J size=`)"
        );
        Err(Error::Incompatible(why.into()))
    }
}
