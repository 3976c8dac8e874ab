//! Ranges that go out of a file or come in: FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE.
//!
//! What is dirty from the range's start on is written first, so that all of it has places; then it leaves the cache and all mappings,
//! under exclusive `invalidate_lock` and the writeback gate; then the extents move, whole nodes of the tree at a time
//! ([`extant_map::Shift`]). Pages and memory of mappings never move.
//!
//! # Crashes
//! One handle takes the blocks of the range out (or splits an extent), changes every node of the tree that moves, and sets
//! `i_disksize`: after a crash the operation is there or not. A tree with more nodes behind the range than one transaction takes is
//! moved in parts, each in a handle of its own. Between them the map is whole and the checker content, but the file is half moved:
//! the hole is where the last part ended, from the front backwards (collapse: with the old size until the last part, so that nothing is
//! past it) or from the end forwards (insert: with the new size from the first part on, for the same reason). A range in more
//! groups than one transaction takes bitmaps goes in parts too, and is a hole before anything moves. No record of
//! orphans is needed: there is nothing that the next mount would have to finish for the filesystem to be whole.
//!
//! # Pins
//! A pinned page cannot move: a device may write its memory at any time, and would write it to the place that the bytes have left.
//! Waiting could be waiting for oneself, so a pin at or behind the range is `Busy`.

use std::ops::Range;

use extant_alloc::{Reservation, ToFree};
use extant_format::Lblk;
use extant_journal::Handle;
use extant_map::{LBLK_END, MapKind, MovedNodes, Shift};
use extant_vm::{ExclusiveGuard, Gate, Host};

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

impl Filesystem {
    /// Takes a range of whole clusters out of the file.
    pub(crate) fn collapse_range(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        range: Range<u64>,
    ) -> Result<()> {
        self.check_clusters(&range)?;
        if range.end >= inode.size() {
            return Err(Error::Invalid("collapsing a range that reaches the end of the file"));
        }
        let size = inode.size() - (range.end - range.start);
        let (mut spare, gate) = self.prepare_move(inode, guard, range.start)?;
        let data = inode.data(self);
        data.pages.hold_shown(guard, &**data, &range)?;
        let blocks = self.whole_blocks(&range);
        let least = self.removal_credits(inode);
        let (room, _groups) = self.removal_room(inode, &blocks)?;
        let (nodes, _held) = self.move_nodes(inode, blocks.end)?;
        let credits = self.move_credits(nodes, least, room);
        // What taking the range out leaves for the move, so that one handle does both where it can.
        let own = self.inode_credits();
        let keep = if nodes + own + least <= credits { nodes + own } else { own };
        let mut handle = self.start_data(inode, credits)?;
        let done = (|| {
            let gone = Lblk(blocks.start)..Lblk(blocks.end);
            self.remove_range_keeping(&mut handle, inode, gone, &mut spare, (keep, credits))?;
            let moved = Lblk(blocks.end)..Lblk(LBLK_END);
            self.move_blocks(&mut handle, inode, moved, Shift::Down(blocks.end - blocks.start), credits)?;
            self.set_disk_size(&mut handle, inode, size)
        })();
        let done = self.finish(handle, done, inode);
        self.end_move(inode, guard, gate);
        done
    }

    /// Makes room of whole clusters inside the file.
    pub(crate) fn insert_range(
        &self,
        inode: &InodeRef,
        guard: &ExclusiveGuard<'_>,
        range: Range<u64>,
    ) -> Result<()> {
        self.check_clusters(&range)?;
        let size = inode.size().saturating_add(range.end - range.start);
        if size > self.max_file_size(inode) {
            return Err(Error::FileTooBig);
        }
        if range.start >= inode.size() {
            return Err(Error::Invalid("inserting at or past the end of the file"));
        }
        self.need_size(size)?;
        let blocks = self.whole_blocks(&range);
        let by = blocks.end - blocks.start;
        // Preallocated blocks past the end move too.
        let last = self.map.extents_end(&mut inode.map_mut(&mut inode.map.write()))?;
        if last.checked_add(by).is_none() {
            return Err(Error::Invalid("blocks past the end would move past the last block there can be"));
        }
        inode.data(self).pages.grow_memory(size)?;
        let (mut spare, gate) = self.prepare_move(inode, guard, range.start)?;
        let split = self.map.convert_credits(MapKind::Extents, self.depth(inode)?, 1);
        let (nodes, _held) = self.move_nodes(inode, blocks.start)?;
        let credits = self.move_credits(nodes, split, 0);
        let mut handle = self.start_data(inode, credits)?;
        let done = (|| {
            self.split_for_move(&mut handle, inode, Lblk(blocks.start), &mut spare)?;
            self.set_disk_size(&mut handle, inode, size)?;
            let moved = Lblk(blocks.start)..Lblk(LBLK_END);
            self.move_blocks(&mut handle, inode, moved, Shift::Up(by), credits)
        })();
        let done = self.finish(handle, done, inode);
        self.end_move(inode, guard, gate);
        done
    }

    /// The file is as long as the disk knows it to be: also after an error in a later part.
    fn end_move(&self, inode: &InodeRef, guard: &ExclusiveGuard<'_>, _gate: Gate<'_>) {
        let data = inode.data(self);
        data.pages.moved(guard, &**data, data.disk_size());
    }

    fn check_clusters(&self, range: &Range<u64>) -> Result<()> {
        let cluster = u64::from(self.geo.block_size()) << self.geo.log_cluster_ratio();
        if range.start.is_multiple_of(cluster) && range.end.is_multiple_of(cluster) {
            return Ok(());
        }
        Err(Error::Invalid("a range that is not whole blocks (with bigalloc: clusters)"))
    }

    /// All that may fail before the map changes: tree blocks for a split, places for what is dirty, the cache empty from `start` on.
    fn prepare_move<'a>(
        &self,
        inode: &'a InodeRef,
        guard: &ExclusiveGuard<'_>,
        start: u64,
    ) -> Result<(Reservation, Gate<'a>)> {
        let data = inode.data(self);
        if data.pages.has_pins(guard, start) {
            return Err(Error::Busy);
        }
        debug_assert_eq!(inode.map_kind(), MapKind::Extents, "refused before");
        let spare = self.split_space(inode)?;
        data.pages.sync(&**data, start..u64::MAX)?;
        if data.disk_size() < inode.size() {
            self.raise_disk_size(inode, inode.size())?;
        }
        let gate = data.pages.take_out(guard, &**data, start)?;
        // Blocks set aside for the file's growth are behind blocks that are somewhere else in it now.
        inode.window.release();
        Ok((spare, gate))
    }

    /// Credits of a handle that changes so many nodes and does something else before, which takes `first`, better `room` more. Half of
    /// what a transaction has where it has not enough for all: then it is done in parts, and other operations get their turn.
    fn move_credits(&self, nodes: u32, first: u32, room: u32) -> u32 {
        let own = self.inode_credits();
        // The first start of a handle adds those of the owners' quota entries.
        let most = self.journal.max_credits().saturating_sub(own);
        let least = nodes.saturating_add(first + own);
        if least <= most { most.min(least.saturating_add(room)) } else { most / 2 }
    }

    /// How many nodes of the tree change, with those that a split or a removal before adds; they are in memory, so that no device is
    /// met once something has changed.
    fn move_nodes(&self, inode: &Inode, from: u32) -> Result<(u32, MovedNodes)> {
        let added = 2 * (u32::from(self.depth(inode)?) + 2);
        let i_block = inode.map.read();
        let nodes = self.map.moved_nodes(&inode.map_ref(&i_block), Lblk(from)..Lblk(LBLK_END))?;
        Ok((nodes.count().saturating_add(added), nodes))
    }

    /// Credits beyond the least for taking out a range in one handle: the bitmaps and descriptors of its groups, and the nodes that go,
    /// each with its own; and what freeing reads.
    fn removal_room(&self, inode: &Inode, blocks: &Range<u32>) -> Result<(u32, Vec<ToFree>)> {
        let (groups, held) = self.hold_groups(inode, blocks)?;
        let i_block = inode.map.read();
        let nodes =
            self.map.moved_nodes(&inode.map_ref(&i_block), Lblk(blocks.start)..Lblk(blocks.end))?.count();
        let revoked = if self.journals_data(inode) { blocks.end - blocks.start } else { 0 };
        let room = self.alloc.alloc_credits(groups.saturating_add(nodes)).saturating_add(nodes);
        Ok((room.saturating_add(self.journal.revoke_credits(revoked.saturating_add(nodes))), held))
    }

    /// Makes a block that moves up the first of its extent.
    fn split_for_move(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        at: Lblk,
        spare: &mut Reservation,
    ) -> Result<()> {
        let mut i_block = inode.map.write();
        let delta = self.map.split_at(handle, &mut inode.map_mut(&mut i_block), at, spare)?;
        self.map_changed(inode, &i_block, delta.total());
        Ok(())
    }

    /// Moves the blocks of a range, in as many handles as it takes; the last is still open. Nothing above rank 60 is held.
    fn move_blocks(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        range: Range<Lblk>,
        by: Shift,
        credits: u32,
    ) -> Result<()> {
        let mut todo = range;
        loop {
            let left = {
                let mut i_block = inode.map.write();
                let mut map = inode.map_mut(&mut i_block);
                let left = self.map.shift(handle, &mut map, todo.clone(), by, self.inode_credits())?;
                self.map_changed(inode, &i_block, 0);
                left
            };
            self.write_inode(handle, inode)?;
            handle.keep();
            match left {
                None => return Ok(()),
                Some(left) => todo = left,
            }
            handle.restart(credits)?;
        }
    }

    fn set_disk_size(&self, handle: &mut Handle, inode: &Inode, size: u64) -> Result<()> {
        inode.state().raw.size = size;
        self.write_inode(handle, inode)
    }
}
