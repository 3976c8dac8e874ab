//! Quota: usage kept by user, group and project, limits enforced.
//!
//! # Keeping
//! What the quota files count is made equal to the inodes at one place: [`Filesystem::quota_settle`], which runs whenever an
//! inode is written, in the same handle. It compares what was counted for the inode (owner ids, bytes of `i_blocks`, the inode
//! itself) with what the inode is now, and changes the entries by the difference. So creation, growth, truncation, chown and
//! eviction need nothing of their own, and after a crash usage and inodes agree.
//!
//! # Enforcing
//! Before anything is promised: [`Filesystem::quota_reserve`] with dirty data, [`Filesystem::quota_admit`] for inodes, metadata
//! and changes of owner. Promised bytes count towards the limits in memory. Who has `CAP_SYS_RESOURCE` passes. As in the
//! kernel, usage is kept whenever the filesystem has the feature, and limits count only with `usrquota`, `grpquota`,
//! `prjquota`.
//!
//! # Locks
//! Counting for one inode: rank 82, key 0; an entry: rank 82, key by kind and id, one at a time. The tree of a quota file:
//! rank 74. Entries that a caller needs are looked up, and made, before its handle ([`Filesystem::quota_prepare`]).

use std::sync::Arc;

use extant_format::inode::InodeFlags;
use extant_format::quota::{
    BLOCK_LEN, Dqblk, EntryPlace, QuotaError, QuotaInfo, QuotaKind, Resource, Revision, Verdict, write_entry,
};
use extant_format::{Ino, RoCompat};
use extant_journal::{Buf, Handle};
use extant_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use extant_sync::{Mutex, Rank};
use rustc_hash::FxHashMap;

use crate::cred::{Caps, Credentials};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;

/// The kinds in the order of the superblock's fields.
pub(crate) const KINDS: [QuotaKind; 3] = [QuotaKind::User, QuotaKind::Group, QuotaKind::Project];

/// Limits of an id; 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaLimits {
    /// Most space, in KiB.
    pub space_hard: u64,
    /// Space above which the grace time runs, in KiB.
    pub space_soft: u64,
    /// Most inodes.
    pub inodes_hard: u64,
    /// Inodes above which the grace time runs.
    pub inodes_soft: u64,
}

/// The owner ids of an inode, by kind.
pub(crate) type Ids = [u32; 3];

/// The quotas of a mounted filesystem.
pub(crate) struct Quotas {
    kinds: [Option<Kind>; 3],
}

/// One quota file and what is known of it.
pub(crate) struct Kind {
    pub(crate) kind: QuotaKind,
    pub(crate) inode: InodeRef,
    /// The file has a name, see `quota_visible`.
    pub(crate) visible: bool,
    revision: Revision,
    /// Limits count.
    enforced: AtomicBool,
    /// Grace times in seconds: space, inodes.
    pub(crate) grace: (AtomicU32, AtomicU32),
    /// Rank 74.
    pub(crate) tree: Mutex<()>,
    entries: Mutex<FxHashMap<u32, Arc<Entry>>>,
}

/// One id's entry. It exists in the file as long as this does.
pub(crate) struct Entry {
    key: u64,
    state: Mutex<EntryState>,
}

/// What an id has, and where that is stored.
pub(crate) struct EntryState {
    pub(crate) dq: Dqblk,
    /// Bytes promised to dirty data.
    pub(crate) reserved: u64,
    pub(crate) place: EntryPlace,
    /// The block of the quota file, and the byte where its 1 KiB begins.
    pub(crate) buf: (Buf, usize),
    pub(crate) revision: Revision,
}

/// What the quota files have counted for an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counted {
    ids: Ids,
    bytes: u64,
    /// The inode itself, and those that hold its attribute values.
    inodes: u32,
    /// Bytes promised to its dirty data.
    reserved: u64,
}

/// The lock over [`Counted`], in each inode.
pub(crate) fn counted(ids: Ids, sectors: u64, inodes: u32) -> Mutex<Counted> {
    Mutex::new(Rank::QUOTA, Counted { ids, bytes: sectors * 512, inodes, reserved: 0 })
}

impl Quotas {
    pub(crate) fn new(kinds: [Option<Kind>; 3]) -> Self {
        Self { kinds }
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = (usize, &Kind)> {
        self.kinds.iter().enumerate().filter_map(|(i, k)| k.as_ref().map(|k| (i, k)))
    }
}

impl Kind {
    /// A quota file that is kept from now on; its limits count until [`Filesystem::quota_remount`] says otherwise.
    pub(crate) fn new(kind: QuotaKind, inode: InodeRef, visible: bool, info: &QuotaInfo) -> Self {
        Self {
            kind,
            inode,
            visible,
            revision: info.revision,
            enforced: AtomicBool::new(true),
            grace: (AtomicU32::new(info.bgrace), AtomicU32::new(info.igrace)),
            tree: Mutex::new(Rank::QUOTA_FILE, ()),
            entries: Mutex::new(Rank::LEAF, FxHashMap::default()),
        }
    }

    fn cached(&self, id: u32) -> Option<Arc<Entry>> {
        self.entries.lock().get(&id).cloned()
    }

    /// Keeps an entry just read; if another caller was first, that one's.
    pub(crate) fn keep(&self, id: u32, state: EntryState) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        let key = 1 + ((self.kind as u64) << 32 | u64::from(id));
        let made = || Arc::new(Entry { key, state: Mutex::new(Rank::QUOTA, state) });
        Arc::clone(entries.entry(id).or_insert_with(made))
    }

    /// What an entry is in memory.
    pub(crate) fn entry_state(&self, dq: Dqblk, place: EntryPlace, buf: (Buf, usize)) -> EntryState {
        EntryState { dq, reserved: 0, place, buf, revision: self.revision }
    }

    fn grace_for(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Space => self.grace.0.load(Ordering::Relaxed),
            Resource::Inodes => self.grace.1.load(Ordering::Relaxed),
        }
    }
}

impl Filesystem {
    /// Opens the quota files of a filesystem that is mounted for writing.
    pub(crate) fn quota_open(&self) -> Result<()> {
        if !self.has_hidden_quota() {
            return self.quota_open_visible();
        }
        let given = &self.options().given.quota;
        if given.user_file.is_some() || given.group_file.is_some() {
            tracing::warn!(
                "`usrjquota=` and `grpjquota=` are left out: the filesystem has hidden quota files"
            );
        }
        let mut kinds = [None, None, None];
        let inodes = self.sb.lock().quota_inodes();
        for (i, ino) in inodes.into_iter().enumerate() {
            let Some(ino) = ino else { continue };
            if KINDS[i] == QuotaKind::Project && !self.has_project() {
                continue;
            }
            let inode = self.iget(ino)?;
            let info = self.quota_info(KINDS[i], &inode)?;
            if info.revision != Revision::R1 {
                return Err(QuotaError::Version(info.revision.version()).into());
            }
            kinds[i] = Some(Kind::new(KINDS[i], inode, false, &info));
        }
        let _ = self.quotas.set(Quotas { kinds });
        self.quota_remount();
        Ok(())
    }

    /// Whether usage is kept for anything.
    pub(crate) fn has_quotas(&self) -> bool {
        self.quotas.get().is_some()
    }

    /// Of how many kinds usage is kept.
    pub(crate) fn quota_kinds(&self) -> u32 {
        match self.quotas.get() {
            Some(quotas) => quotas.each().count() as u32,
            // Not opened yet: as many as there are files.
            None if self.has_hidden_quota() => {
                self.sb.lock().quota_inodes().into_iter().flatten().count() as u32
            }
            None => self.visible_kinds(),
        }
    }

    /// Whether quota files, if there are any, are hidden inodes (feature quota).
    pub(crate) fn has_hidden_quota(&self) -> bool {
        self.features.ro_compat.contains(RoCompat::QUOTA)
    }

    /// Whether an inode is counted: not the filesystem's own, not attribute values.
    pub(crate) fn is_counted(&self, inode: &Inode) -> bool {
        let ordinary = inode.ino == Ino::ROOT || inode.ino >= self.geo.first_ino();
        ordinary
            && !inode.flags().contains(InodeFlags::EA_INODE)
            && !self.is_system_inode(inode.ino)
            && !self.is_quota_file(inode.ino)
    }

    /// The owner ids of an inode as it is now.
    pub(crate) fn quota_ids(inode: &Inode) -> Ids {
        let state = inode.state();
        [state.raw.uid, state.raw.gid, state.raw.projid]
    }

    /// Finds the entries of these ids, or makes them, in handles of its own. No handle is open and nothing above rank 60 held.
    ///
    /// # Errors
    /// Damage of a quota file; `NoSpace` for a new entry.
    pub(crate) fn quota_prepare(&self, ids: Ids) -> Result<()> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        for (i, kind) in quotas.each() {
            if kind.cached(ids[i]).is_none() {
                self.quota_load(kind, ids[i], None)?;
            }
        }
        Ok(())
    }

    /// Makes what the quota files count for an inode equal to what it is. Called with every write of an inode, in its handle.
    ///
    /// Credits: one for each entry that changes ([`Self::quota_credits`]).
    pub(crate) fn quota_settle(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        if !self.has_quotas() || !self.is_counted(inode) {
            return Ok(());
        }
        let ids = Self::quota_ids(inode);
        let bytes = inode.state().raw.blocks * 512;
        // quotacheck(8), which makes visible files, sees no values.
        let values = if self.has_hidden_quota() { inode.ea_values.load(Ordering::Relaxed) } else { 0 };
        let inodes = 1 + values;
        self.quota_change(handle, inode, ids, |was| Counted { ids, bytes, inodes, reserved: was.reserved })
    }

    /// Takes an inode that is being freed out of the counts. Credits as [`Self::quota_settle`].
    pub(crate) fn quota_gone(&self, handle: &mut Handle, inode: &Inode) -> Result<()> {
        if !self.has_quotas() || !self.is_counted(inode) {
            return Ok(());
        }
        let ids = Self::quota_ids(inode);
        self.quota_change(handle, inode, ids, |was| Counted { bytes: 0, inodes: 0, ..*was })
    }

    fn quota_change(
        &self,
        handle: &mut Handle,
        inode: &Inode,
        ids: Ids,
        now: impl Fn(&Counted) -> Counted,
    ) -> Result<()> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        let mut counted = inode.counted.lock_ordered(0);
        loop {
            let was = *counted;
            if was == now(&was) {
                return Ok(());
            }
            let missing = quotas.each().flat_map(|(i, k)| [(k, was.ids[i]), (k, ids[i])]);
            let missing: Vec<_> = missing.filter(|(k, id)| k.cached(*id).is_none()).collect();
            if missing.is_empty() {
                break;
            }
            // Nobody prepared for them. The tree's lock comes before the one held.
            drop(counted);
            for (kind, id) in missing {
                self.quota_load(kind, id, Some(handle))?;
            }
            counted = inode.counted.lock_ordered(0);
        }
        let (was, now) = (*counted, now(&counted));
        for (i, kind) in quotas.each() {
            let (old, new) = (was.ids[i], now.ids[i]);
            if old == new {
                self.quota_move(handle, kind, old, Change::between(&was, &now))?;
            } else {
                self.quota_move(handle, kind, old, Change::between(&was, &Counted::default()))?;
                self.quota_move(handle, kind, new, Change::between(&Counted::default(), &now))?;
            }
        }
        *counted = now;
        Ok(())
    }

    /// Changes one entry in place, and in memory.
    fn quota_move(&self, handle: &mut Handle, kind: &Kind, id: u32, change: Change) -> Result<()> {
        if change.is_nothing() {
            return Ok(());
        }
        let Some(entry) = kind.cached(id) else { return Ok(()) };
        let mut state = entry.state.lock_ordered(entry.key);
        state.reserved = state.reserved.saturating_add_signed(change.reserved);
        if change.bytes == 0 && change.inodes == 0 {
            return Ok(());
        }
        let now = self.clock.now().sec.max(0) as u64;
        for (resource, by) in [(Resource::Space, change.bytes), (Resource::Inodes, change.inodes)] {
            if by > 0 {
                // What is already there is counted whatever the limits say; they were asked before.
                let verdict = match state.dq.admit(resource, by as u64, now, kind.grace_for(resource)) {
                    Verdict::Exceeded => state.over(resource, now, kind.grace_for(resource)),
                    verdict => verdict,
                };
                state.dq.charge(resource, by as u64, verdict);
            } else if by < 0 && !state.dq.release(resource, by.unsigned_abs()) {
                tracing::warn!("quota of {:?} {id} counted less than was freed", kind.kind);
            }
        }
        state.store(handle, id)
    }

    /// Asks whether `blocks` and `inodes` more may be charged to these ids; promises nothing. The entries are found or made
    /// first: no handle is open, nothing above rank 60 is held.
    ///
    /// # Errors
    /// `QuotaExceeded`; those of [`Self::quota_prepare`].
    pub(crate) fn quota_admit(&self, ids: Ids, blocks: u64, inodes: u64, cred: &Credentials) -> Result<()> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        self.quota_prepare(ids)?;
        if cred.has(Caps::SYS_RESOURCE) {
            return Ok(());
        }
        let bytes = blocks << self.geo.log_block_size();
        for (i, kind) in quotas.each().filter(|(_, k)| k.enforced.load(Ordering::Relaxed)) {
            let Some(entry) = kind.cached(ids[i]) else { continue };
            let state = entry.state.lock_ordered(entry.key);
            self.admit_in(kind, &state, bytes, inodes)?;
        }
        Ok(())
    }

    /// The same for a change of an inode's owner: everything that it has moves to the ids that are new.
    pub(crate) fn quota_admit_transfer(&self, inode: &Inode, ids: Ids, cred: &Credentials) -> Result<()> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        self.quota_prepare(ids)?;
        if cred.has(Caps::SYS_RESOURCE) || !self.is_counted(inode) {
            return Ok(());
        }
        let has = *inode.counted.lock_ordered(0);
        for (i, kind) in quotas.each().filter(|(_, k)| k.enforced.load(Ordering::Relaxed)) {
            if ids[i] == has.ids[i] {
                continue;
            }
            let Some(entry) = kind.cached(ids[i]) else { continue };
            let state = entry.state.lock_ordered(entry.key);
            self.admit_in(kind, &state, has.bytes + has.reserved, has.inodes.into())?;
        }
        Ok(())
    }

    fn admit_in(&self, kind: &Kind, state: &EntryState, bytes: u64, inodes: u64) -> Result<()> {
        let now = self.clock.now().sec.max(0) as u64;
        let dq = Dqblk { curspace: state.dq.curspace.saturating_add(state.reserved), ..state.dq };
        for (resource, add) in [(Resource::Space, bytes), (Resource::Inodes, inodes)] {
            if add > 0 && dq.admit(resource, add, now, kind.grace_for(resource)) == Verdict::Exceeded {
                return Err(Error::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// Promises an inode's dirty data `blocks` blocks of its owners' quotas. No handle is open, nothing above rank 60 held.
    ///
    /// # Errors
    /// `QuotaExceeded` (unless `exempt`), with nothing promised; those of [`Self::quota_prepare`].
    pub(crate) fn quota_reserve(&self, inode: &Inode, blocks: u64, exempt: bool) -> Result<()> {
        let Some(quotas) = self.quotas.get() else { return Ok(()) };
        if blocks == 0 || !self.is_counted(inode) {
            return Ok(());
        }
        let bytes = blocks << self.geo.log_block_size();
        self.quota_prepare(Self::quota_ids(inode))?;
        let mut counted = inode.counted.lock_ordered(0);
        let ids = counted.ids;
        for (i, kind) in quotas.each() {
            let Some(entry) = kind.cached(ids[i]) else { continue };
            let mut state = entry.state.lock_ordered(entry.key);
            let refused = if exempt || !kind.enforced.load(Ordering::Relaxed) {
                Ok(())
            } else {
                self.admit_in(kind, &state, bytes, 0)
            };
            if let Err(e) = refused {
                drop(state);
                for (j, earlier) in quotas.each().filter(|(j, _)| *j < i) {
                    unreserve(earlier, ids[j], bytes);
                }
                return Err(e);
            }
            state.reserved = state.reserved.saturating_add(bytes);
        }
        counted.reserved = counted.reserved.saturating_add(bytes);
        Ok(())
    }

    /// Takes a promise back: the data is on its way into `i_blocks` (before the inode is written in the publishing handle), or
    /// was dropped.
    pub(crate) fn quota_unreserve(&self, inode: &Inode, blocks: u64) {
        let Some(quotas) = self.quotas.get() else { return };
        if blocks == 0 || !self.is_counted(inode) {
            return;
        }
        let mut counted = inode.counted.lock_ordered(0);
        let bytes = (blocks << self.geo.log_block_size()).min(counted.reserved);
        for (i, kind) in quotas.each() {
            unreserve(kind, counted.ids[i], bytes);
        }
        counted.reserved -= bytes;
    }

    /// Usage and limits of an id.
    ///
    /// # Errors
    /// `NotSupported` where usage is not kept (feature quota, mounted for writing); damage.
    pub fn quota(&self, kind: QuotaKind, id: u32) -> Result<Dqblk> {
        self.check_alive()?;
        self.with_quota(kind, id, |state| state.dq)
    }

    /// Sets the limits of an id; usage stays. A soft limit that is passed already starts its grace time with the next charge.
    ///
    /// # Errors
    /// `NotPermitted` without `CAP_SYS_ADMIN`; `NotSupported`; `ReadOnly`; damage.
    pub fn set_quota(&self, kind: QuotaKind, id: u32, limits: QuotaLimits, cred: &Credentials) -> Result<()> {
        let _write = self.begin_write()?;
        if !cred.has(Caps::SYS_ADMIN) {
            return Err(Error::NotPermitted);
        }
        self.with_quota(kind, id, |_| ())?;
        let mut handle = self.journal.start(1)?;
        let stored = self.with_quota(kind, id, |state| {
            let dq = &mut state.dq;
            (dq.bhardlimit, dq.bsoftlimit) = (limits.space_hard, limits.space_soft);
            (dq.ihardlimit, dq.isoftlimit) = (limits.inodes_hard, limits.inodes_soft);
            state.store(&mut handle, id)
        });
        match stored.and_then(|stored| stored) {
            Ok(()) => handle.finish().map(drop).map_err(Error::from),
            Err(e) => Err(e),
        }
    }

    /// A quota that this mount keeps.
    pub(crate) fn kept_kind(&self, kind: QuotaKind) -> Result<&Kind> {
        let kept = self.quotas.get().and_then(|q| q.each().map(|(_, k)| k).find(|k| k.kind == kind));
        kept.ok_or(Error::NotSupported("quota of this kind"))
    }

    /// Usage (promises included) and limits of the project that new files below `inode` inherit, if there is one and its limits
    /// count.
    pub(crate) fn inherited_project(&self, inode: &Inode) -> Result<Option<Dqblk>> {
        let Ok(kind) = self.kept_kind(QuotaKind::Project) else { return Ok(None) };
        if !kind.enforced.load(Ordering::Relaxed) || !inode.flags().contains(InodeFlags::PROJINHERIT) {
            return Ok(None);
        }
        let [_, _, project] = Self::quota_ids(inode);
        let entry = match kind.cached(project) {
            Some(entry) => Some(entry),
            None => self.quota_find(kind, project)?,
        };
        Ok(entry.map(|entry| {
            let state = entry.state.lock_ordered(entry.key);
            Dqblk { curspace: state.dq.curspace.saturating_add(state.reserved), ..state.dq }
        }))
    }

    fn with_quota<R>(&self, kind: QuotaKind, id: u32, work: impl FnOnce(&mut EntryState) -> R) -> Result<R> {
        let kept = self.kept_kind(kind)?;
        let entry = match kept.cached(id) {
            Some(entry) => entry,
            None => self.noted(self.quota_load(kept, id, None))?,
        };
        let mut state = entry.state.lock_ordered(entry.key);
        Ok(work(&mut state))
    }

    /// Turns the enforcement of limits on or off as new mount options say.
    pub(crate) fn quota_remount(&self) {
        let Some(quotas) = self.quotas.get() else { return };
        let wanted = self.quota_wanted();
        for (i, kind) in quotas.each() {
            kind.enforced.store(wanted[i], Ordering::Relaxed);
        }
    }

    /// Which limits the mount options enforce, by kind.
    fn quota_wanted(&self) -> [bool; 3] {
        let options = self.options();
        let given = &options.given.quota;
        let user = given.user || given.user_file.is_some();
        let group = given.group || given.group_file.is_some();
        [user, group, given.project].map(|on| on && !given.none)
    }
}

fn unreserve(kind: &Kind, id: u32, bytes: u64) {
    if let Some(entry) = kind.cached(id) {
        let mut state = entry.state.lock_ordered(entry.key);
        state.reserved = state.reserved.saturating_sub(bytes);
    }
}

impl EntryState {
    /// Writes the entry in place. Credits: 1.
    fn store(&self, handle: &mut Handle, id: u32) -> Result<()> {
        let (buf, start) = &self.buf;
        handle.modify(buf, |bytes: &mut [u8]| {
            if let Some(block) = bytes.get_mut(*start..).and_then(|b| b.first_chunk_mut::<BLOCK_LEN>()) {
                write_entry(block, self.place, self.revision, (id, &self.dq));
            }
        })?;
        Ok(())
    }

    /// The grace time of a resource that is over its limit and is counted all the same.
    fn over(&self, resource: Resource, now: u64, grace: u32) -> Verdict {
        let running = match resource {
            Resource::Space => self.dq.btime,
            Resource::Inodes => self.dq.itime,
        };
        Verdict::Grace(if running == 0 { now.saturating_add(u64::from(grace)) } else { running })
    }
}

/// By how much an entry changes.
#[derive(Clone, Copy)]
struct Change {
    bytes: i64,
    inodes: i64,
    reserved: i64,
}

impl Change {
    fn between(was: &Counted, now: &Counted) -> Self {
        Self {
            bytes: now.bytes as i64 - was.bytes as i64,
            inodes: i64::from(now.inodes) - i64::from(was.inodes),
            reserved: now.reserved as i64 - was.reserved as i64,
        }
    }

    fn is_nothing(self) -> bool {
        self.bytes == 0 && self.inodes == 0 && self.reserved == 0
    }
}
