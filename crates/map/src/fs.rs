//! The maps of one filesystem's inodes: what to call, for either kind of map.

use std::ops::Range;

use extant_alloc::{Allocator, Reservation};
use extant_format::extent::{Extent, MAX_LBLK, Node};
use extant_format::indirect::{self, MapKind};
use extant_format::{Csum, Geometry, Ino, Lblk, Pblk, Superblock};
use extant_journal::{BlockCache, Handle};
use extant_sync::Arc;

use crate::error::{MapError, Result};
use crate::indirects::{Indirects, POINTER_END};
use crate::remove::Removal;
use crate::status::{ExtentStatus, Run, Status};
use crate::tree::{self, Tree};

/// What all maps of a filesystem share. Make one per mount.
pub struct MapFs {
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) alloc: Arc<Allocator>,
    pub(crate) geo: Geometry,
    pub(crate) csum: Csum,
    journal: Option<Ino>,
}

impl std::fmt::Debug for MapFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapFs").field("geo", &self.geo).finish_non_exhaustive()
    }
}

/// An inode's map, to be read. Held by the caller: the map lock (rank 80), shared at least.
#[derive(Clone, Copy)]
pub struct MapRef<'a> {
    /// The inode.
    pub ino: Ino,
    /// `i_generation`, which goes into checksums.
    pub generation: u32,
    /// Extents or indirect blocks (`EXT4_EXTENTS_FL`).
    pub kind: MapKind,
    /// `i_block`
    pub i_block: &'a [u8; 60],
    /// The inode's extent-status cache.
    pub es: &'a ExtentStatus,
}

/// An inode's map, to be changed. Held by the caller: the map lock (rank 80), exclusively. After a change the caller
/// writes `i_block` with the inode, in the same handle.
pub struct MapMut<'a> {
    /// The inode.
    pub ino: Ino,
    /// `i_generation`, which goes into checksums.
    pub generation: u32,
    /// Extents or indirect blocks (`EXT4_EXTENTS_FL`).
    pub kind: MapKind,
    /// `i_block`
    pub i_block: &'a mut [u8; 60],
    /// The inode's extent-status cache.
    pub es: &'a ExtentStatus,
}

impl MapMut<'_> {
    /// The map for reading.
    #[must_use]
    pub fn as_ref(&self) -> MapRef<'_> {
        MapRef {
            ino: self.ino,
            generation: self.generation,
            kind: self.kind,
            i_block: self.i_block,
            es: self.es,
        }
    }
}

impl std::fmt::Debug for MapRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MapRef({:?}, {:?})", self.ino, self.kind)
    }
}

impl std::fmt::Debug for MapMut<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MapMut({:?}, {:?})", self.ino, self.kind)
    }
}

/// How many blocks a change added to the inode (for `i_blocks` and quota), in filesystem blocks. Clusters count whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Data blocks.
    pub data: i64,
    /// Tree or indirect blocks.
    pub tree: i64,
}

impl Delta {
    /// Both together.
    #[must_use]
    pub const fn total(self) -> i64 {
        self.data + self.tree
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.data += other.data;
        self.tree += other.tree;
    }
}

/// The state that [`MapFs::convert`] brings blocks into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Data was written to the blocks.
    Yes,
    /// The blocks read as zeroes again.
    No,
}

/// How a hole gets blocks ([`MapFs::placement`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The blocks belong to a cluster that the file has already: map them there, nothing to claim or publish.
    Implied {
        /// Where the first block is.
        pblk: Pblk,
        /// For how many blocks.
        len: u32,
    },
    /// By a claim, for this many blocks at most.
    Claim {
        /// Blocks.
        len: u32,
    },
}

/// What blocks hold, for their freeing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// File data, which the journal does not know.
    Data,
    /// Directory blocks, long symlinks, quota, xattr values, journalled data: the journal must not bring them back.
    Journalled,
    /// The caller decides what becomes of the blocks: they leave the map and stay allocated. Tree blocks are freed.
    Kept,
}

/// How far a removal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Blocks freed (negative numbers).
    pub delta: Delta,
    /// `None`: the whole range is a hole now. Else the blocks from here to the range's end are, and the handle has no
    /// credits for more: write the inode, restart the handle, call again.
    pub left: Option<Lblk>,
}

impl MapFs {
    /// The maps of the filesystem that `alloc` allocates for.
    #[must_use]
    pub fn new(cache: Arc<BlockCache>, alloc: Arc<Allocator>, sb: &Superblock) -> Arc<Self> {
        let journal = Some(Ino(sb.raw().s_journal_inum.get())).filter(|i| i.0 != 0);
        Arc::new(Self { cache, alloc, geo: *sb.geometry(), csum: *sb.csum(), journal })
    }

    /// An empty map for a new inode's `i_block`.
    pub fn init(kind: MapKind, i_block: &mut [u8; 60], ino: Ino) {
        match kind {
            MapKind::Extents => {
                extant_format::extent::NodeMut::init(&mut i_block[..], ino, None, 0);
            }
            MapKind::Indirect => i_block.fill(0),
        }
    }

    /// What is at `lblk`, for at most `max` blocks; asks the cache first, and remembers what the tree said.
    ///
    /// # Errors
    /// A damaged map ([`MapError::Format`], [`MapError::NotData`]), or I/O.
    pub fn lookup(&self, map: &MapRef<'_>, lblk: Lblk, max: u32) -> Result<Run> {
        if let Some(run) = map.es.lookup(lblk, max) {
            return Ok(run);
        }
        let run = self.lookup_tree(map, lblk)?;
        map.es.remember(lblk, run);
        Ok(run.cut(max.max(1)))
    }

    /// The same past the cache: the rest of one extent, never several that follow each other on the disk.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_extent(&self, map: &MapRef<'_>, lblk: Lblk, max: u32) -> Result<Run> {
        Ok(self.lookup_tree(map, lblk)?.cut(max.max(1)))
    }

    /// What the tree has at `lblk`, past the cache.
    fn lookup_tree(&self, map: &MapRef<'_>, lblk: Lblk) -> Result<Run> {
        let run = match map.kind {
            MapKind::Extents => tree::lookup(self, map.ino, map.generation, map.i_block, lblk)?,
            MapKind::Indirect => Indirects::lookup(self, map.ino, map.i_block, lblk)?,
        };
        if let Run::Mapped { pblk, len, .. } = run {
            self.check_data(map.ino, lblk, pblk, len)?;
        }
        Ok(run)
    }

    /// The next mapped run at or after `lblk`, before `end`.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn next_mapped(&self, map: &MapRef<'_>, lblk: Lblk, end: u32) -> Result<Option<(Lblk, Run)>> {
        let mut at = lblk.0;
        while at < end {
            let run = self.lookup(map, Lblk(at), end - at)?;
            match run {
                Run::Mapped { .. } => return Ok(Some((Lblk(at), run))),
                Run::Hole { len } => at = at.saturating_add(len),
            }
        }
        Ok(None)
    }

    /// With bigalloc: where `lblk` must be because another block of its cluster is mapped. `None`: the cluster is
    /// not allocated, or clusters are single blocks.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn implied(&self, map: &MapRef<'_>, lblk: Lblk) -> Result<Option<Pblk>> {
        let ratio = self.geo.cluster_ratio();
        if ratio == 1 {
            return Ok(None);
        }
        let first = lblk.0 & !(ratio - 1);
        let found = self.next_mapped(map, Lblk(first), first.saturating_add(ratio))?;
        Ok(found.and_then(|(at, run)| match run {
            Run::Mapped { pblk, .. } => {
                Some(Pblk((pblk.0 + u64::from(lblk.0)).checked_sub(u64::from(at.0))?))
            }
            Run::Hole { .. } => None,
        }))
    }

    /// How the hole `[lblk, lblk + len)` gets its blocks, from its start on: without bigalloc always by a claim of `len`.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn placement(&self, map: &MapRef<'_>, lblk: Lblk, len: u32) -> Result<Placement> {
        let ratio = self.geo.cluster_ratio();
        if ratio == 1 || len == 0 {
            return Ok(Placement::Claim { len });
        }
        if let Some(pblk) = self.implied(map, lblk)? {
            return Ok(Placement::Implied { pblk, len: len.min(ratio - lblk.0 % ratio) });
        }
        // The cluster of the hole's end may be allocated for blocks behind it.
        let last = (lblk.0 + (len - 1)) / ratio * ratio;
        if last > lblk.0 && self.implied(map, Lblk(last))?.is_some() {
            return Ok(Placement::Claim { len: last - lblk.0 });
        }
        Ok(Placement::Claim { len })
    }

    /// Maps a hole to blocks, which the caller publishes in the same handle. Tree blocks come out of `res` (see
    /// [`Self::tree_blocks_worst`]). Nothing is changed if it fails before the journal does.
    ///
    /// Credits: [`Self::insert_credits`] without the data's own 2.
    ///
    /// # Errors
    /// [`MapError::Overlap`] if a block of the range is mapped; [`MapError::TooBig`]; a damaged map; the journal's.
    pub fn insert(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        extent: Extent,
        res: &mut Reservation,
    ) -> Result<Delta> {
        let end = u64::from(extent.lblk.0) + u64::from(extent.len);
        if end > self.max_blocks(map.kind) {
            return Err(MapError::TooBig { ino: map.ino, lblk: end - 1 });
        }
        self.check_data(map.ino, extent.lblk, extent.pblk, extent.len)?;
        let data = self.new_clusters(&map.as_ref(), extent)?;
        let tree = match map.kind {
            MapKind::Extents => self.tree(map).insert(handle, extent, res),
            MapKind::Indirect => Indirects::new(self, map).insert(handle, extent, res),
        };
        let status =
            if extent.unwritten { Status::Unwritten(extent.pblk) } else { Status::Written(extent.pblk) };
        let tree = self.settle(map, (extent.lblk, extent.len), Some(status), tree)?;
        Ok(Delta { data, tree: i64::from(tree) })
    }

    /// Brings the mapped blocks of a range into one state; holes stay holes. If the range's ends are ends of extents
    /// ([`Self::split_at`] beforehand), no tree block is needed.
    ///
    /// Credits: [`Self::convert_credits`].
    ///
    /// # Errors
    /// [`MapError::NoUnwritten`]; a damaged map; the journal's.
    pub fn convert(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        lblk: Lblk,
        len: u32,
        to: Written,
        res: &mut Reservation,
    ) -> Result<Delta> {
        if map.kind == MapKind::Indirect {
            return if to == Written::Yes {
                Ok(Delta::default())
            } else {
                Err(MapError::NoUnwritten { ino: map.ino })
            };
        }
        let end = lblk.0.saturating_add(len);
        let (mut at, mut tree) = (lblk.0, 0);
        while at < end {
            let run = self.lookup(&map.as_ref(), Lblk(at), end - at)?;
            let Run::Mapped { pblk, len, .. } = run else {
                at = at.saturating_add(run.len());
                continue;
            };
            let to_end = at + len;
            let result = self.tree(map).convert_one(handle, (at, to_end), to == Written::No, res);
            let (added, done) = match result {
                Ok((added, done)) => (added, done.unwrap_or(to_end)),
                Err(error) => {
                    map.es.forget(Lblk(0), MAX_LBLK);
                    return Err(error);
                }
            };
            tree += i64::from(added);
            let status = if to == Written::No { Status::Unwritten(pblk) } else { Status::Written(pblk) };
            map.es.changed(Lblk(at), done - at, status);
            at = done;
        }
        Ok(Delta { data: 0, tree })
    }

    /// Makes `lblk` the start of an extent, so that a later conversion up to or from there needs no room. Credits:
    /// [`Self::insert_credits`].
    ///
    /// # Errors
    /// A damaged map; the journal's.
    pub fn split_at(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        lblk: Lblk,
        res: &mut Reservation,
    ) -> Result<Delta> {
        if map.kind == MapKind::Indirect {
            return Ok(Delta::default());
        }
        let added = self.tree(map).split_at(handle, lblk, res);
        if added.is_err() {
            map.es.forget(Lblk(0), MAX_LBLK);
        }
        Ok(Delta { data: 0, tree: i64::from(added?) })
    }

    /// Makes a range a hole and frees its blocks, from its end backwards, as far as the handle's credits go, of which `keep`
    /// are left to the caller: some blocks at least if it has [`Self::remove_credits`] beside them. With `Lblk(0)` and
    /// `u32::MAX` everything goes and the map is empty.
    ///
    /// A range inside one extent splits it, which may take tree blocks out of `res`.
    ///
    /// # Errors
    /// A damaged map; the device's; the journal's. Unless it is the journal's or damage that shows late
    /// ([`Handle::changes`] tells), nothing was changed: what a call did before it met an error counts, and the next call
    /// returns the error.
    pub fn remove(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        range: Range<Lblk>,
        content: Content,
        keep: u32,
        res: &mut Reservation,
    ) -> Result<Removed> {
        let reach = u32::try_from(self.max_blocks(map.kind)).unwrap_or(MAX_LBLK);
        let (start, end) = (range.start.0, range.end.0.min(reach));
        if start >= end {
            return Ok(Removed { delta: Delta::default(), left: None });
        }
        let removal = Removal { start, end, content, keep };
        let result = match map.kind {
            MapKind::Extents => self.remove_extents(handle, map, removal, res),
            MapKind::Indirect => Indirects::new(self, map).remove(handle, removal),
        };
        match result {
            Ok(removed) => {
                let from = removed.left.map_or(start, |l| l.0);
                if from < end {
                    map.es.changed(Lblk(from), end - from, Status::Hole);
                }
                Ok(removed)
            }
            Err(error) => {
                map.es.forget(Lblk(0), MAX_LBLK);
                Err(error)
            }
        }
    }

    /// Levels below the root; 0 to 5 for extents, always 3 for indirect maps.
    ///
    /// # Errors
    /// A damaged root.
    pub fn depth(&self, map: &MapRef<'_>) -> Result<u16> {
        match map.kind {
            MapKind::Extents => Ok(Node::open(map.i_block, map.ino, None, None)?.depth()),
            MapKind::Indirect => Ok(3),
        }
    }

    /// One past the last logical block that a map of this kind reaches.
    #[must_use]
    pub fn max_blocks(&self, kind: MapKind) -> u64 {
        match kind {
            MapKind::Extents => u64::from(MAX_LBLK),
            MapKind::Indirect => indirect::max_blocks(self.geo.block_size()).min(u64::from(MAX_LBLK)),
        }
    }

    /// One past the last block that a map of this kind can name: where blocks for it must end.
    #[must_use]
    pub fn reach(kind: MapKind) -> u64 {
        match kind {
            MapKind::Extents => u64::MAX,
            MapKind::Indirect => POINTER_END,
        }
    }

    /// The filesystem's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// The allocator.
    #[must_use]
    pub fn allocator(&self) -> &Arc<Allocator> {
        &self.alloc
    }

    pub(crate) fn tree<'a>(&'a self, map: &'a mut MapMut<'_>) -> Tree<'a> {
        Tree { fs: self, ino: map.ino, generation: map.generation, root: map.i_block }
    }

    /// Blocks that no file may map are an error wherever they turn up. The journal's own inode may map its blocks.
    pub(crate) fn check_data(&self, ino: Ino, lblk: Lblk, pblk: Pblk, len: u32) -> Result<()> {
        if self.journal == Some(ino) && self.geo.contains_range(pblk, u64::from(len)) {
            return Ok(());
        }
        if self.alloc.is_data_range(pblk, u64::from(len)) {
            return Ok(());
        }
        Err(MapError::NotData { ino, lblk, pblk, len })
    }

    /// Clusters that an extent adds to the inode, in blocks: those of which no other block is mapped yet.
    fn new_clusters(&self, map: &MapRef<'_>, extent: Extent) -> Result<i64> {
        let ratio = self.geo.cluster_ratio();
        if ratio == 1 || extent.len == 0 {
            return Ok(i64::from(extent.len));
        }
        let (first, last) = (extent.lblk.0 / ratio, (extent.end() - 1) / ratio);
        let mut clusters = i64::from(last - first) + 1;
        clusters -= i64::from(self.implied(map, extent.lblk)?.is_some());
        if last > first {
            clusters -= i64::from(self.implied(map, Lblk(extent.end() - 1))?.is_some());
        }
        Ok(clusters * i64::from(ratio))
    }

    /// Brings the cache in step with a change of the map, or lets it forget after one that failed.
    fn settle<T>(
        &self,
        map: &MapMut<'_>,
        (lblk, len): (Lblk, u32),
        status: Option<Status>,
        result: Result<T>,
    ) -> Result<T> {
        match (&result, status) {
            (Ok(_), Some(status)) => map.es.changed(lblk, len, status),
            (Ok(_), None) => {}
            (Err(_), _) => map.es.forget(Lblk(0), MAX_LBLK),
        }
        result
    }
}
