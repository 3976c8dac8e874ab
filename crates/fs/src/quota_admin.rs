//! Quota as an administrator sees it: all ids with usage and limits, grace times, and what is left of a project for statfs.

use extant_alloc::Privilege;
use extant_format::RoCompat;
use extant_format::quota::{Dqblk, LIMIT_UNIT, QuotaFile, QuotaInfo, QuotaKind};
use extant_map::MapFs;
use extant_sync::atomic::Ordering;

use crate::attr::StatFs;
use crate::cred::{Caps, Credentials};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::quota::{KINDS, Kind};
use crate::quota_file::Store;

/// For how long a soft limit may be passed, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaGrace {
    /// Of space.
    pub space: u32,
    /// Of inodes.
    pub inodes: u32,
}

impl Filesystem {
    /// Of which kinds usage is on record: kept by this mount, or in the hidden quota files of one that is read only.
    pub fn quota_on_record(&self) -> Vec<QuotaKind> {
        KINDS.into_iter().filter(|kind| self.quota_inode(*kind).is_ok()).collect()
    }

    /// Usage and limits of up to `most` ids of a kind, from `from` on, in order of ids. What is promised to data in memory is not
    /// in it.
    ///
    /// # Errors
    /// `NotSupported` where nothing of the kind is on record; damage.
    pub fn quota_list(&self, kind: QuotaKind, from: u32, most: usize) -> Result<Vec<(u32, Dqblk)>> {
        self.check_alive()?;
        let inode = self.quota_inode(kind)?;
        self.noted(self.in_quota_file(kind, &inode, |file| file.entries_from(from, most)))
    }

    /// The grace times of a kind.
    ///
    /// # Errors
    /// As [`Self::quota_list`].
    pub fn quota_grace(&self, kind: QuotaKind) -> Result<QuotaGrace> {
        self.check_alive()?;
        let inode = self.quota_inode(kind)?;
        let info: QuotaInfo = self.noted(self.in_quota_file(kind, &inode, |file| Ok(*file.info())))?;
        Ok(QuotaGrace { space: info.bgrace, inodes: info.igrace })
    }

    /// Sets the grace times of a kind; what runs already ends when it would have.
    ///
    /// # Errors
    /// `NotPermitted` without `CAP_SYS_ADMIN`; `NotSupported`; `ReadOnly`; damage.
    pub fn set_quota_grace(&self, kind: QuotaKind, grace: QuotaGrace, cred: &Credentials) -> Result<()> {
        let _write = self.begin_write()?;
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        let kept = self.kept_kind(kind)?;
        let mut none = self.alloc.no_reservation_below(Privilege::Pool, MapFs::reach(kept.inode.map_kind()));
        let mut handle = self.journal.start(1)?;
        let _tree = kept.tree.lock();
        let store = Store::changing(self, &kept.inode, &mut handle, &mut none);
        let set = QuotaFile::open_any(store, kind, kept.inode.size())
            .and_then(|mut file| file.set_grace(grace.space, grace.inodes));
        self.finish(handle, set, &kept.inode)?;
        kept.grace.0.store(grace.space, Ordering::Relaxed);
        kept.grace.1.store(grace.inodes, Ordering::Relaxed);
        Ok(())
    }

    /// What statfs says of a file or directory. Where new files inherit a project whose limits count, that is no more than what the
    /// project may have, the lower of its two limits, and what is left of that; as in the kernel.
    ///
    /// # Errors
    /// Damage of the quota file.
    pub fn statfs_at(&self, inode: &InodeRef) -> Result<StatFs> {
        let mut stats = self.statfs();
        let Some(dq) = self.noted(self.inherited_project(inode))? else { return Ok(stats) };
        let blocks = |bytes: u64| bytes >> self.geo.log_block_size();
        let space =
            lower_limit(dq.bsoftlimit, dq.bhardlimit).map(|kib| blocks(kib.saturating_mul(LIMIT_UNIT)));
        if let Some(limit) = space {
            let left = limit.saturating_sub(blocks(dq.curspace));
            stats.blocks = stats.blocks.min(limit);
            stats.blocks_free = stats.blocks_free.min(left);
            stats.blocks_available = stats.blocks_available.min(left);
        }
        if let Some(limit) = lower_limit(dq.isoftlimit, dq.ihardlimit) {
            stats.files = stats.files.min(limit);
            stats.files_free = stats.files_free.min(limit.saturating_sub(dq.curinodes));
        }
        Ok(stats)
    }

    fn quota_inode(&self, kind: QuotaKind) -> Result<InodeRef> {
        if let Ok(kept) = self.kept_kind(kind) {
            return Ok(kept.inode.clone());
        }
        let none = Error::NotSupported("quota of this kind");
        let hidden = self.features.ro_compat.contains(RoCompat::QUOTA);
        let inodes = self.sb.lock().quota_inodes();
        let ino =
            inodes[kind as usize].filter(|_| hidden && (kind != QuotaKind::Project || self.has_project()));
        self.noted(self.iget(ino.ok_or(none)?))
    }

    fn in_quota_file<T>(
        &self,
        kind: QuotaKind,
        inode: &InodeRef,
        work: impl FnOnce(&mut QuotaFile<Store<'_>>) -> Result<T>,
    ) -> Result<T> {
        let kept: Option<&Kind> = self.kept_kind(kind).ok();
        let _tree = kept.map(|kept| kept.tree.lock());
        work(&mut QuotaFile::open_any(Store::reading(self, inode), kind, inode.size())?)
    }
}

/// The lower of a soft and a hard limit, where 0 is none.
fn lower_limit(soft: u64, hard: u64) -> Option<u64> {
    [soft, hard].into_iter().filter(|limit| *limit != 0).min()
}
