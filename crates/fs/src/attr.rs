//! Attributes: stat, chmod, chown, times, inode flags, projects; statfs.

use std::time::Instant;

use extant_format::inode::device::DeviceNumber;
use extant_format::inode::{FileType, InodeFlags, Timestamp};
use extant_format::xattr::INDEX_POSIX_ACL_ACCESS;
use extant_format::{Ino, RoCompat, Tid};
use extant_sync::Arc;
use extant_vm::Switch;

use crate::cred::{Access, Caps, Credentials};
use crate::data::FileData;
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;
use crate::xattr::XattrPlan;

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o010;

/// What stat and statx say of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// `i_generation`
    pub generation: u32,
    /// Type.
    pub kind: FileType,
    /// Type and permission bits.
    pub mode: u16,
    /// Names; 1 for a directory with more subdirectories than can be counted.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a device node stands for.
    pub rdev: DeviceNumber,
    /// Size in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes; with what delayed blocks will take, and a regular file's content in the inode. (So
    /// the kernel counts: programs take a file with 0 here for one hole.)
    pub blocks: u64,
    /// Block size of the filesystem.
    pub block_size: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where the inode has room for it.
    pub btime: Option<Timestamp>,
    /// ext4's inode flags.
    pub flags: InodeFlags,
    /// Project id, 0 without the feature.
    pub project: u32,
    /// Counts changes.
    pub version: u64,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Timestamp),
}

/// What to change of an inode. What is `None` stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (0o7777).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of the inode; only for restoring, by who may do everything.
    pub ctime: Option<Timestamp>,
    /// Clear set-user-id, and set-group-id where it means execution, as a write does.
    pub kill_suidgid: bool,
    /// The times are what a cache above this one noted of writes that it took: the flags IMMUTABLE and APPEND do not forbid them.
    pub noted_by_cache: bool,
}

/// What statfs says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Block size.
    pub block_size: u32,
    /// Blocks, without the filesystem's own structures (unless `minixdf`).
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that everybody may use.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u32,
    /// Filesystem id: the halves of the UUID folded together.
    pub fsid: u64,
}

/// Flags and project as FS_IOC_FSGETXATTR gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FsxAttr {
    /// `fsx_xflags`
    pub xflags: u32,
    /// `fsx_projid`
    pub project: u32,
}

/// `FS_XFLAG_*` bits and the inode flags they stand for.
const XFLAGS: [(u32, InodeFlags); 7] = [
    (0x8, InodeFlags::IMMUTABLE),
    (0x10, InodeFlags::APPEND),
    (0x20, InodeFlags::SYNC),
    (0x40, InodeFlags::NOATIME),
    (0x80, InodeFlags::NODUMP),
    (0x200, InodeFlags::PROJINHERIT),
    (0x8000, InodeFlags::DAX),
];

impl Inode {
    /// What stat says. Takes a leaf lock only.
    #[must_use]
    pub fn attr(&self) -> Attr {
        let state = self.state();
        let raw = &state.raw;
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        let delayed = u64::from(state.delayed) * u64::from(self.block_size / 512);
        let is_inline = self.kind == FileType::Regular && raw.flags.contains(InodeFlags::INLINE_DATA);
        let inline = if is_inline { state.size.div_ceil(512) } else { 0 };
        Attr {
            ino: self.ino,
            generation: raw.generation,
            kind: self.kind,
            mode: raw.mode,
            nlink: raw.links_count.into(),
            uid: raw.uid,
            gid: raw.gid,
            rdev: if device { DeviceNumber::decode(&raw.i_block) } else { DeviceNumber::default() },
            size: state.size,
            blocks: raw.blocks + delayed + inline,
            block_size: self.block_size,
            atime: raw.atime,
            mtime: raw.mtime,
            ctime: raw.ctime,
            btime: (raw.extra_isize >= 24).then_some(raw.crtime),
            flags: raw.flags,
            project: raw.projid,
            version: raw.version,
        }
    }
}

impl Filesystem {
    /// Changes attributes, all or none. A size is set first.
    ///
    /// # Errors
    /// `NotPermitted`, `AccessDenied`, `ReadOnly`, `Invalid`, `FileTooBig`, `NoSpace`, `NoRoom`; damage.
    pub fn set_attr(&self, inode: &InodeRef, change: &SetAttr, cred: &Credentials) -> Result<Attr> {
        self.noted(self.with_space(|| self.set_attr_inner(inode, change, cred)))?;
        Ok(inode.attr())
    }

    fn set_attr_inner(&self, inode: &InodeRef, change: &SetAttr, cred: &Credentials) -> Result<()> {
        let _write = self.begin_write()?;
        let tid = {
            let _lock = inode.lock.write();
            self.may_change(inode, change, cred)?;
            let chowned = change.uid.is_some() || change.gid.is_some();
            if inode.is_regular() && (change.size.is_some() || chowned || change.kill_suidgid) {
                // Granted to the old content, or by the old owner.
                self.kill_file_caps(inode, cred)?;
            }
            if let Some(size) = change.size {
                self.set_size(inode, size, cred)?;
            }
            self.change_attr(inode, change, cred)?
        };
        self.settle(tid, self.is_sync(inode))
    }

    /// What the caller may change: POSIX and the kernel's rules for notify_change.
    fn may_change(&self, inode: &Inode, change: &SetAttr, cred: &Credentials) -> Result<()> {
        let (uid, gid, flags) = {
            let state = inode.state();
            (state.raw.uid, state.raw.gid, state.raw.flags)
        };
        let changes_owner = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
        let sets_time = |t: Option<SetTime>| matches!(t, Some(SetTime::At(_)));
        let exact_times = sets_time(change.atime) || sets_time(change.mtime) || change.ctime.is_some();
        let touches = change.atime.is_some() || change.mtime.is_some();
        let only_times = !changes_owner && change.size.is_none() && change.atime.is_none();
        let flags = if change.noted_by_cache && only_times { InodeFlags::empty() } else { flags };
        if flags.intersects(InodeFlags::IMMUTABLE) && (changes_owner || touches || change.size.is_some()) {
            return Err(Error::NotPermitted);
        }
        if flags.contains(InodeFlags::APPEND) && (changes_owner || exact_times || change.size.is_some()) {
            return Err(Error::NotPermitted);
        }
        if cred.access_checked {
            return Ok(());
        }
        if change.uid.is_some_and(|new| new != uid || cred.uid != uid) && !cred.has(Caps::CHOWN) {
            return Err(Error::NotPermitted);
        }
        if let Some(new) = change.gid {
            let own = cred.uid == uid && (new == gid || cred.in_group(new));
            if !own && !cred.has(Caps::CHOWN) {
                return Err(Error::NotPermitted);
            }
        }
        if change.mode.is_some() && !cred.owns(uid) {
            return Err(Error::NotPermitted);
        }
        if change.size.is_some() {
            self.permission(inode, Access::WRITE, cred)?;
        }
        if exact_times && !cred.owns(uid) {
            return Err(Error::NotPermitted);
        }
        if touches && !exact_times && !cred.owns(uid) {
            self.permission(inode, Access::WRITE, cred)?;
        }
        Ok(())
    }

    fn change_attr(&self, inode: &Inode, change: &SetAttr, cred: &Credentials) -> Result<Tid> {
        let now = self.now();
        let [uid, gid, project] = Self::quota_ids(inode);
        let mut mode = inode.state().raw.mode;
        let old_mode = mode;
        let (new_uid, new_gid) = (change.uid.unwrap_or(uid), change.gid.unwrap_or(gid));
        if let Some(bits) = change.mode {
            mode = (mode & 0o170_000) | (bits & 0o7777);
            if !cred.may_keep_setgid(new_gid) {
                mode &= !S_ISGID;
            }
        }
        let chowned = change.uid.is_some() || change.gid.is_some();
        if !inode.is_dir() && (change.kill_suidgid || (chowned && change.mode.is_none())) {
            mode = without_setid(mode);
        }
        let acl = if (mode ^ old_mode) & 0o777 != 0 { self.acl_after_chmod(inode, mode)? } else { None };
        let name = (INDEX_POSIX_ACL_ACCESS, &b""[..]);
        // As in `store_xattr`.
        let _first = acl.as_ref().and_then(|_| inode.data.get()).map(|data| data.pages.lock_inline());
        let plan = acl.map(|acl| self.plan_xattr(inode, name, Some(&acl), cred)).transpose()?;
        if (new_uid, new_gid) != (uid, gid) {
            self.quota_admit_transfer(inode, [new_uid, new_gid, project], cred)?;
        }
        let credits = 1 + plan.as_ref().map_or(0, XattrPlan::credits);
        let mut handle = self.start(&[[uid, gid, project], [new_uid, new_gid, project]], credits)?;
        let before = {
            let mut state = inode.state();
            let raw = &mut state.raw;
            let before = (raw.uid, raw.gid, raw.mode, raw.ctime, raw.atime, raw.mtime);
            (raw.uid, raw.gid, raw.mode) = (new_uid, new_gid, mode);
            raw.ctime = change.ctime.unwrap_or(now);
            if let Some(t) = change.atime {
                raw.atime = self.time_of(t, now);
            }
            if let Some(t) = change.mtime {
                raw.mtime = self.time_of(t, now);
            }
            raw.version = raw.version.wrapping_add(1);
            before
        };
        let tid = handle.tid();
        let done = match plan {
            Some(plan) => self.apply_xattr(&mut handle, inode, plan),
            None => self.write_inode(&mut handle, inode),
        };
        if done.is_err() {
            let mut state = inode.state();
            let raw = &mut state.raw;
            (raw.uid, raw.gid, raw.mode, raw.ctime, raw.atime, raw.mtime) = before;
        }
        self.finish(handle, done, inode)?;
        Ok(tid)
    }

    fn time_of(&self, t: SetTime, now: Timestamp) -> Timestamp {
        match t {
            SetTime::Now => now,
            SetTime::At(t) => {
                t.clamp_to(self.inode_format.inode_size() > extant_format::inode::GOOD_OLD_INODE_SIZE)
            }
        }
    }

    /// Whether changes of this inode must be durable when they return.
    pub(crate) fn is_sync(&self, inode: &Inode) -> bool {
        let given = &self.options().given;
        let flags = inode.flags();
        given.sync
            || flags.contains(InodeFlags::SYNC)
            || (inode.is_dir() && (given.dirsync || flags.contains(InodeFlags::DIRSYNC)))
    }

    /// What statfs says, as the kernel counts.
    pub fn statfs(&self) -> StatFs {
        let overhead = if self.options().minixdf { 0 } else { self.overhead };
        let space = self.alloc.statfs(overhead);
        let uuid = self.sb.lock().uuid();
        let half = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&uuid[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        StatFs {
            block_size: self.geo.block_size(),
            blocks: space.blocks,
            blocks_free: space.bfree,
            blocks_available: space.bavail,
            files: space.files,
            files_free: space.ffree,
            name_max: extant_format::dir::MAX_NAME_LEN as u32,
            fsid: half(0) ^ half(8),
        }
    }

    /// Changes the inode flags that a caller may change (`FS_IOC_SETFLAGS`), of a regular file or a directory. Where that changes the
    /// mode that a file is in ([`Self::effective_dax`]) it waits, with nothing held, until nothing of the file is pinned.
    ///
    /// # Errors
    /// `NotPermitted`, `NotSupported` for flags that need a conversion, and of what is neither file nor directory; `Busy` for a file that
    /// would leave DAX mode and has a mapping with [`MapOptions::sync`](crate::MapOptions); `WouldDeadlock` when it would have to wait and this thread has made a [`Pin`](crate::Pin) that is there still; damage.
    pub fn set_flags(&self, inode: &InodeRef, flags: InodeFlags, cred: &Credentials) -> Result<()> {
        self.noted(self.set_flags_waiting(inode, flags, None, cred))
    }

    /// The same without waiting for pins.
    ///
    /// # Errors
    /// As [`Self::set_flags`]; `Busy` in place of waiting.
    pub fn try_set_flags(&self, inode: &InodeRef, flags: InodeFlags, cred: &Credentials) -> Result<()> {
        self.noted(self.set_flags_now(inode, flags, None, cred))?.ok_or(Error::Busy)
    }

    /// Waits for pins with nothing held: who has one goes on using the file, and so comes to drop it.
    fn set_flags_waiting(
        &self,
        inode: &InodeRef,
        flags: InodeFlags,
        project: Option<u32>,
        cred: &Credentials,
    ) -> Result<()> {
        let mut bar = None;
        while self.set_flags_now(inode, flags, project, cred)?.is_none() {
            let bar = bar.get_or_insert_with(|| inode.data(self).pages.bar_pins());
            bar.wait().map_err(|_| Error::WouldDeadlock)?;
        }
        Ok(())
    }

    /// `None`, and nothing done: pins keep the file from changing its mode.
    fn set_flags_now(
        &self,
        inode: &InodeRef,
        flags: InodeFlags,
        project: Option<u32>,
        cred: &Credentials,
    ) -> Result<Option<()>> {
        let _write = self.begin_write()?;
        let tid = {
            let _lock = inode.lock.write();
            let (old, uid) = {
                let state = inode.state();
                (state.raw.flags, state.raw.uid)
            };
            if !inode.is_regular() && !inode.is_dir() {
                return Err(Error::NotSupported("inode flags of what is neither file nor directory"));
            }
            if !cred.owns(uid) {
                return Err(Error::NotPermitted);
            }
            self.check_not_quota_file(inode)?;
            let changeable = InodeFlags::USER_MODIFIABLE;
            let new = (old & !changeable) | (flags & changeable);
            self.may_set_flags(inode, old, new, flags, cred)?;
            let project = project.unwrap_or_else(|| inode.state().raw.projid);
            self.may_set_project(inode, project, (old & new).contains(InodeFlags::IMMUTABLE))?;
            let [uid, gid, _] = Self::quota_ids(inode);
            self.quota_admit_transfer(inode, [uid, gid, project], cred)?;
            let follow = self.mode_to_follow(inode, old, new);
            // What its mappings promise the page cache cannot keep, and they may stay for ever: nobody waits for that.
            if follow == Some(false) && inode.data(self).pages.is_mapped_sync() {
                return Err(Error::Busy);
            }
            if follow.is_some() && inode.data(self).pages.is_pinned() {
                if without!(self, FlipWaitsUnlocked) {
                    let _ = inode.data(self).pages.bar_pins().wait();
                }
                return Ok(None);
            }
            if (old ^ new).contains(InodeFlags::EXTENTS) {
                self.migrate(inode, new.contains(InodeFlags::EXTENTS), cred)?;
            }
            match self.store_flags(inode, new, project, follow)? {
                None => return Ok(None),
                Some(tid) => tid,
            }
        };
        self.settle(tid, self.is_sync(inode)).map(Some)
    }

    /// Stores flags and project, and changes with them what goes by them: either all of it, or nothing and an error. `follow`: the mode
    /// that the file is to come into. `None`, and nothing done: pins keep it from that. Under the inode lock, held exclusively.
    fn store_flags(
        &self,
        inode: &Inode,
        new: InodeFlags,
        project: u32,
        follow: Option<bool>,
    ) -> Result<Option<Tid>> {
        let changed = inode.flags() ^ new;
        let fixes = changed.contains(InodeFlags::IMMUTABLE);
        let concerned = |data: &&Arc<FileData>| {
            follow.is_some() || changed.contains(InodeFlags::JOURNAL_DATA) || (fixes && data.pages.is_dax())
        };
        let data = inode.data.get().filter(concerned);
        if let Some(data) = data.filter(|_| follow.is_some()) {
            data.pages.begin_switch(&**data)?;
        }
        // No store and no writeback until the flag is what the next one goes by.
        let guard = data.map(|data| data.pages.exclusive());
        let began = Instant::now();
        if let (Some(data), Some(guard), None) = (data, &guard, follow) {
            data.pages.hide_dax(guard)?;
        }
        if changed.contains(InodeFlags::JOURNAL_DATA) {
            self.settle_data(inode)?;
        }
        // Everything that may fail of the change of the mode comes before the handle, and what is left cannot.
        let switch = match (follow, data, &guard) {
            (Some(on), Some(data), Some(guard)) => {
                let Some(ready) = data.pages.prepare_switch(guard, &**data, on)? else { return Ok(None) };
                Some(ready)
            }
            _ => None,
        };
        let _gate = data.filter(|_| switch.is_none()).map(|data| data.pages.gate());
        let tid = self.store_new_flags(inode, new, project)?;
        if let Some(data) = inode.data.get() {
            data.set_journalled(self.journals_data(inode));
        }
        let times = switch.map(Switch::commit);
        drop(guard);
        if let Some(times) = times {
            self.note_switch(began.elapsed(), times);
        }
        // With `dax_switch=deferred` a changed flag counts once nobody has the file open.
        if changed.contains(InodeFlags::DAX) {
            self.follow_later(inode);
        }
        Ok(Some(tid))
    }

    /// Flags and project in the inode and on the disk; on an error they are what they were.
    fn store_new_flags(&self, inode: &Inode, new: InodeFlags, project: u32) -> Result<Tid> {
        let old_ids = Self::quota_ids(inode);
        let [uid, gid, _] = old_ids;
        // The device is asked before the first change.
        let buf = self.cache.read(inode.table.0)?;
        let mut handle = self.start(&[[uid, gid, project], old_ids], 1)?;
        let tid = handle.tid();
        let before = {
            let mut state = inode.state();
            let before = (state.raw.flags, state.raw.projid, state.raw.ctime, state.raw.version);
            state.raw.flags = new;
            state.raw.projid = project;
            state.raw.ctime = self.now();
            state.raw.version = state.raw.version.wrapping_add(1);
            before
        };
        let done = self.write_inode_to(&mut handle, inode, &buf);
        let done = self.finish(handle, done, inode);
        if done.is_err() {
            let raw = &mut inode.state().raw;
            (raw.flags, raw.projid, raw.ctime, raw.version) = before;
        }
        done.map(|()| tid)
    }

    /// Changes `i_generation` (`EXT4_IOC_SETVERSION`). In core the inode keeps the one that it was read with
    /// ([`Inode::generation`]) until it leaves the cache.
    ///
    /// # Errors
    /// `NotPermitted`; `NotSupported` where checksums of metadata depend on it (the kernel answers ENOTTY); `ReadOnly`; damage.
    pub fn set_generation(&self, inode: &InodeRef, generation: u32, cred: &Credentials) -> Result<()> {
        if !cred.owns(inode.state().raw.uid) {
            return Err(Error::NotPermitted);
        }
        if self.csum.has_metadata() {
            return Err(Error::NotSupported(
                "changing i_generation with metadata_csum, whose checksums depend on it",
            ));
        }
        let _write = self.begin_write()?;
        let tid = {
            let _lock = inode.lock.write();
            let mut handle = self.start_data(inode, 1)?;
            {
                let mut state = inode.state();
                state.raw.generation = generation;
                state.raw.ctime = self.now();
                state.raw.version = state.raw.version.wrapping_add(1);
            }
            let tid = handle.tid();
            let done = self.write_inode(&mut handle, inode);
            self.finish(handle, done, inode)?;
            tid
        };
        self.settle(tid, self.is_sync(inode))
    }

    /// Brings everything that a file has dirty or in the log to its place, so that its data may go another way from now on. The
    /// caller holds the inode lock exclusively.
    fn settle_data(&self, inode: &Inode) -> Result<()> {
        if let Some(data) = inode.data.get() {
            data.pages.sync(&**data, 0..u64::MAX)?;
        }
        if self.journals_data(inode) {
            self.journal.checkpoint_all()?;
        }
        Ok(())
    }

    fn may_set_flags(
        &self,
        inode: &Inode,
        old: InodeFlags,
        new: InodeFlags,
        asked: InodeFlags,
        cred: &Credentials,
    ) -> Result<()> {
        let changed = old ^ new;
        if old.contains(InodeFlags::IMMUTABLE) && new.contains(InodeFlags::IMMUTABLE) && !changed.is_empty() {
            return Err(Error::NotPermitted);
        }
        let fixed = InodeFlags::EXTENTS | InodeFlags::ENCRYPT | InodeFlags::VERITY | InodeFlags::INLINE_DATA;
        if asked.difference(old).intersects(fixed.difference(InodeFlags::EXTENTS)) {
            return Err(Error::NotSupported("setting that inode flag"));
        }
        if changed.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) && !cred.has(Caps::LINUX_IMMUTABLE)
        {
            return Err(Error::NotPermitted);
        }
        if changed.contains(InodeFlags::JOURNAL_DATA) && !cred.has(Caps::SYS_RESOURCE) {
            return Err(Error::NotPermitted);
        }
        self.may_set_dax(inode, old, new)?;
        if changed.contains(InodeFlags::EXTENTS) && (!self.has_extents() || !inode.is_regular()) {
            return Err(Error::NotSupported("converting between extents and indirect blocks"));
        }
        if changed.contains(InodeFlags::CASEFOLD) {
            return Err(Error::NotSupported("case-insensitive directories (feature casefold)"));
        }
        let dirs_only = InodeFlags::DIRSYNC | InodeFlags::TOPDIR | InodeFlags::PROJINHERIT;
        if !inode.is_dir() && asked.difference(old).intersects(dirs_only & !InodeFlags::PROJINHERIT) {
            return Err(Error::NotSupported("a directory's flag on another file"));
        }
        Ok(())
    }

    /// `fixed`: the inode is immutable, and stays so.
    fn may_set_project(&self, inode: &Inode, project: u32, fixed: bool) -> Result<()> {
        if inode.state().raw.projid == project {
            return Ok(());
        }
        if fixed {
            return Err(Error::NotPermitted);
        }
        if !self.features.ro_compat.contains(RoCompat::PROJECT) || inode.state().raw.extra_isize < 32 {
            return Err(Error::NotSupported("project ids on this filesystem (feature project)"));
        }
        Ok(())
    }

    /// Flags and project (`FS_IOC_FSGETXATTR`).
    #[must_use]
    pub fn fsx_attr(&self, inode: &InodeRef) -> FsxAttr {
        let state = inode.state();
        let flags = state.raw.flags;
        let xflags = XFLAGS.iter().filter(|(_, f)| flags.contains(*f)).fold(0, |all, (bit, _)| all | bit);
        FsxAttr { xflags, project: state.raw.projid }
    }

    /// Changes flags and project (`FS_IOC_FSSETXATTR`), waiting as [`Self::set_flags`] does.
    ///
    /// # Errors
    /// As [`Self::set_flags`].
    pub fn set_fsx_attr(&self, inode: &InodeRef, attr: FsxAttr, cred: &Credentials) -> Result<()> {
        let known = XFLAGS.iter().fold(0, |all, (bit, _)| all | bit);
        if attr.xflags & !known & !0x8000_0000 != 0 {
            return Err(Error::NotSupported("that extended flag"));
        }
        let mut flags = inode.flags();
        for (bit, flag) in XFLAGS {
            flags.set(flag, attr.xflags & bit != 0);
        }
        self.noted(self.set_flags_waiting(inode, flags, Some(attr.project), cred))
    }
}

/// Without set-user-id, and without set-group-id where it means execution.
pub(crate) const fn without_setid(mode: u16) -> u16 {
    let mode = mode & !S_ISUID;
    if mode & S_IXGRP != 0 { mode & !S_ISGID } else { mode }
}
