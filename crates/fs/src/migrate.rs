//! From extents to indirect blocks and back (`chattr +e`, `chattr -e`): the same data blocks in the other kind of map.

use extant_alloc::Reservation;
use extant_format::inode::InodeFlags;
use extant_format::{Lblk, RoCompat};
use extant_journal::Handle;
use extant_map::{Content, Extent, LBLK_END, MapFs, MapKind, Run};

use crate::cred::Credentials;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

impl Filesystem {
    /// Gives an inode the other kind of map. The data stays where it is; tree blocks come out of `purse`. All within
    /// `handle`, which has the credits. The caller writes the inode.
    ///
    /// # Errors
    /// `NotSupported` (nothing changed) for unwritten blocks and blocks past the reach of an indirect map.
    pub(crate) fn change_map_kind(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        extents: bool,
        purse: &mut Reservation,
    ) -> Result<()> {
        let runs = self.map_runs(inode)?;
        self.check_indirect(&runs, extents)?;
        let mut i_block = inode.map.write();
        let whole = Lblk(0)..Lblk(LBLK_END);
        let mut map = inode.map_mut(&mut i_block);
        let removed = self.map.remove(handle, &mut map, whole, Content::Kept, 0, purse)?;
        if removed.left.is_some() {
            let words = "it does not fit into one transaction";
            return Err(Error::corrupt(Place::Inode(inode.ino), CorruptKind::Map(words.into())));
        }
        let mut delta = removed.delta.total();
        inode.state().raw.flags.set(InodeFlags::EXTENTS, extents);
        MapFs::init(inode.map_kind(), &mut i_block, inode.ino);
        for run in runs {
            delta += self.map.insert(handle, &mut inode.map_mut(&mut i_block), run, purse)?.total();
        }
        self.map_changed(inode, &i_block, delta);
        Ok(())
    }

    /// The same for a caller (`FS_IOC_SETFLAGS`), in a handle of its own. The inode lock is held exclusively.
    ///
    /// # Errors
    /// `NotSupported` for inline content, for a map too large for one handle, and for indirect blocks where clusters have several
    /// blocks or the size is past their reach.
    pub(crate) fn migrate(&self, inode: &InodeRef, extents: bool, cred: &Credentials) -> Result<()> {
        if self.is_inline(inode) {
            return Err(Error::NotSupported("a block map for content in the inode"));
        }
        if !extents && self.features.ro_compat.contains(RoCompat::BIGALLOC) {
            return Err(Error::NotSupported("indirect blocks on a filesystem with clusters (bigalloc)"));
        }
        if !extents && inode.size() > self.map.max_blocks(MapKind::Indirect) << self.geo.log_block_size() {
            return Err(Error::NotSupported("indirect blocks for a file of that size"));
        }
        let data = inode.data(self);
        data.set_rights(self, cred);
        // Faults wait: what they delay would count on the old map.
        let _guard = data.pages.exclusive();
        data.pages.sync(&**data, 0..u64::MAX)?;
        let runs = self.map_runs(inode)?;
        self.check_indirect(&runs, extents)?;
        let (old, new) = (self.tree_blocks(!extents, &runs), self.tree_blocks(extents, &runs));
        // Each block that comes or goes: itself, its bitmap, the descriptor.
        let blocks = u32::try_from(3 * (old + new)).unwrap_or(u32::MAX);
        let removal = 2 * self.map.remove_credits(inode.map_kind(), self.depth(inode)?);
        let credits = blocks.saturating_add(removal + 16);
        if credits > self.journal.max_credits() / 2 {
            return Err(Error::NotSupported("converting a map of that size"));
        }
        let kind = if extents { MapKind::Extents } else { MapKind::Indirect };
        let mut purse = self.alloc.reserve_below(0, new, self.privilege(cred), MapFs::reach(kind))?;
        let mut handle = self.start_data(inode, credits)?;
        let done = self.change_map_kind(&mut handle, inode, extents, &mut purse);
        let done = done.and_then(|()| self.write_inode(&mut handle, inode));
        self.finish(handle, done, inode)
    }

    /// The most tree blocks that a map of these runs has.
    fn tree_blocks(&self, extents: bool, runs: &[Extent]) -> u64 {
        if extents {
            return self.map.tree_blocks_worst(MapKind::Extents, 0, runs.len() as u64);
        }
        let per = self.geo.block_size() / 4;
        let leaves: u64 = runs.iter().map(|run| u64::from(run.len / per) + 2).sum();
        let span = runs.last().map_or(0, |run| u64::from(run.end() / per) + 1);
        let leaves = leaves.min(span);
        leaves + leaves.div_ceil(per.into()) + 4
    }

    /// All mapped runs of an inode.
    pub(crate) fn map_runs(&self, inode: &Inode) -> Result<Vec<Extent>> {
        let i_block = inode.map.read();
        let (mut at, mut runs) = (0, Vec::new());
        while let Some((lblk, Run::Mapped { pblk, len, unwritten })) =
            self.map.next_mapped(&inode.map_ref(&i_block), Lblk(at), LBLK_END)?
        {
            runs.push(Extent { lblk, len, pblk, unwritten });
            at = lblk.0.saturating_add(len);
        }
        Ok(runs)
    }

    /// Refuses what an indirect map cannot hold.
    pub(crate) fn check_indirect(&self, runs: &[Extent], extents: bool) -> Result<()> {
        let reach = self.map.max_blocks(MapKind::Indirect);
        let far = |run: &Extent| {
            u64::from(run.end()) > reach || run.pblk.0 + u64::from(run.len) > u64::from(u32::MAX)
        };
        if !extents && runs.iter().any(|run| run.unwritten || far(run)) {
            return Err(Error::NotSupported("indirect blocks for a file with unwritten or far blocks"));
        }
        Ok(())
    }
}
