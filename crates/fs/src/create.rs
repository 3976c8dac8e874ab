//! Making inodes and their first names: create, mknod, mkdir, symlink, O_TMPFILE, link.

use extant_alloc::{InodeRequest, Reservation};
use extant_format::inline;
use extant_format::inode::device::DeviceNumber;
use extant_format::inode::{
    FileType, GOOD_OLD_INODE_SIZE, I_BLOCK_SIZE, Inode as RawInode, InodeFlags, LINK_MAX,
};
use extant_format::xattr::{AttrSet, INDEX_SYSTEM};
use extant_format::{Ino, Lblk, Tid};
use extant_journal::Handle;
use extant_map::{MapFs, MapKind};
use extant_sync::WriteGuard;
use extant_sync::atomic::Ordering;

use crate::cred::{Access, Caps, Credentials};
use crate::credits::{NEW_INODE, ORPHAN};
use crate::dir::{NamePlace, Plan, check_name};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::late_features::LateFeature;
use crate::mapping::of_caller;
use crate::mutant::without;
use crate::quota::Ids;
use crate::xattr::NewAttrs;

const S_ISGID: u16 = 0o2000;

/// Keys of inode locks (rank 20): parents before children, directories before others.
pub(crate) mod key {
    use extant_format::Ino;

    /// The only parent, or the first of two.
    pub(crate) const PARENT: u64 = 0;
    /// The second of two parents.
    pub(crate) const SECOND_PARENT: u64 = 1 << 32;

    /// A child.
    pub(crate) const fn child(ino: Ino, is_dir: bool) -> u64 {
        (if is_dir { 2 << 32 } else { 3 << 32 }) | ino.0 as u64
    }
}

/// What a new inode is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewInode {
    /// Type and permission bits; a mode without a type makes a regular file.
    pub mode: u16,
    /// The device, for device nodes.
    pub rdev: DeviceNumber,
}

impl NewInode {
    /// A regular file.
    #[must_use]
    pub fn file(mode: u16) -> Self {
        Self { mode: FileType::Regular.mode_bits() | (mode & 0o7777), rdev: DeviceNumber::default() }
    }

    fn kind(&self) -> Result<FileType> {
        match self.mode & 0xf000 {
            0 => Ok(FileType::Regular),
            mode => FileType::from_mode(mode).ok_or(Error::Invalid("file type")),
        }
    }
}

/// What an inode is made from, once everything about it is decided.
struct Spec<'a> {
    kind: FileType,
    mode: u16,
    /// Attributes in the inode and in a block.
    attrs: [AttrSet; 2],
    i_block: Option<[u8; I_BLOCK_SIZE]>,
    /// Target of a symbolic link.
    target: &'a [u8],
}

impl Spec<'_> {
    fn node(kind: FileType, mode: u16, rdev: DeviceNumber) -> Self {
        let attrs = [AttrSet::new(), AttrSet::new()];
        Self { kind, mode, attrs, i_block: Some(rdev.encode()), target: &[] }
    }
}

/// A number to start generations from.
pub(crate) fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}

impl Filesystem {
    /// Makes a file, device node, FIFO or socket named `name` in `dir`.
    ///
    /// # Errors
    /// `Exists`, `NoSpace`, `NameTooLong`, `AccessDenied`, `NotPermitted`, ...; damage.
    pub fn mknod(&self, dir: &InodeRef, name: &[u8], new: &NewInode, cred: &Credentials) -> Result<InodeRef> {
        self.noted(new.kind().and_then(|kind| {
            let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
            if matches!(kind, FileType::Directory | FileType::Symlink) {
                return Err(Error::Invalid("file type"));
            }
            if device && !cred.has(Caps::MKNOD) && !cred.access_checked {
                return Err(Error::NotPermitted);
            }
            if device && !new.rdev.fits() {
                return Err(Error::Invalid("device number"));
            }
            let i_block = device.then(|| new.rdev.encode());
            self.make(dir, &of_caller(name), kind, new.mode & 0o7777, i_block, &[], cred)
        }))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Self::mknod`]; `TooManyLinks`.
    pub fn mkdir(&self, dir: &InodeRef, name: &[u8], mode: u16, cred: &Credentials) -> Result<InodeRef> {
        // Of the upper bits only the sticky bit is the caller's to choose.
        self.noted(self.make(dir, &of_caller(name), FileType::Directory, mode & 0o1777, None, &[], cred))
    }

    /// Makes a symbolic link to `target`.
    ///
    /// # Errors
    /// As [`Self::mknod`]; `NameTooLong` for a target that does not fit a block.
    pub fn symlink(
        &self,
        dir: &InodeRef,
        name: &[u8],
        target: &[u8],
        cred: &Credentials,
    ) -> Result<InodeRef> {
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.len() >= self.geo.block_size().min(4096) as usize {
            return Err(Error::NameTooLong);
        }
        let (name, target) = (of_caller(name), of_caller(target));
        if target.contains(&0) {
            return Err(Error::Invalid("link target"));
        }
        self.noted(self.make(dir, &name, FileType::Symlink, 0o777, None, &target, cred))
    }

    #[allow(clippy::too_many_arguments, reason = "all that a new inode is made from")]
    fn make(
        &self,
        dir: &InodeRef,
        name: &[u8],
        kind: FileType,
        mode: u16,
        i_block: Option<[u8; I_BLOCK_SIZE]>,
        target: &[u8],
        cred: &Credentials,
    ) -> Result<InodeRef> {
        check_name(name)?;
        let (inode, tid) = self.with_space(|| {
            let _write = self.begin_write()?;
            let mut lock = dir.lock.write_ordered(key::PARENT);
            let plan = self.may_create(dir, name, cred)?;
            if without!(self, PlanHeld) {
                drop(lock);
                extant_sync::thread::yield_now();
                lock = dir.lock.write_ordered(key::PARENT);
            }
            if kind == FileType::Directory {
                self.check_subdir(dir)?;
            }
            let (mode, attrs) = self.inherit_acl(dir, kind, mode, cred)?;
            let spec = self.spec(dir, (kind, mode, attrs), i_block, target)?;
            self.make_locked(dir, &lock, name, plan, &spec, cred)
        })?;
        self.settle(tid, self.is_sync(dir))?;
        Ok(inode)
    }

    /// What a new inode in `dir` is made from, its attributes placed.
    ///
    /// # Errors
    /// `NoRoom`: they do not fit into the inode and a block.
    fn spec<'a>(
        &self,
        dir: &Inode,
        (kind, mode, mut attrs): (FileType, u16, NewAttrs),
        i_block: Option<[u8; I_BLOCK_SIZE]>,
        target: &'a [u8],
    ) -> Result<Spec<'a>> {
        if self.starts_inline(kind) {
            attrs.insert(0, (INDEX_SYSTEM, inline::DATA_NAME.to_vec(), Vec::new()));
        }
        let attrs = self.place_new(dir, &attrs)?;
        Ok(Spec { kind, mode, attrs, i_block, target })
    }

    /// Whether the caller may make `name` in `dir`, where it is not yet; and where it will go.
    pub(crate) fn may_create(&self, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<Plan> {
        self.check_dir(dir)?;
        if dir.is_dead() {
            return Err(Error::NotFound);
        }
        let place = self.find_or_plan(dir, name);
        if matches!(place, Ok(NamePlace::Taken)) {
            return Err(Error::Exists);
        }
        self.permission(dir, Access::WRITE_EXEC, cred)?;
        match place? {
            NamePlace::Free(plan) => Ok(plan),
            NamePlace::Taken => Err(Error::Exists),
        }
    }

    /// Refuses a subdirectory more than can be counted.
    pub(crate) fn check_subdir(&self, dir: &Inode) -> Result<()> {
        let full = dir.state().raw.links_count >= LINK_MAX;
        if full && !(self.has_dir_nlink() && self.is_indexed(dir)) {
            Err(Error::TooManyLinks)
        } else {
            Ok(())
        }
    }

    fn make_locked(
        &self,
        dir: &InodeRef,
        _lock: &WriteGuard<'_, ()>,
        name: &[u8],
        plan: Plan,
        spec: &Spec<'_>,
        cred: &Credentials,
    ) -> Result<(InodeRef, Tid)> {
        let own = self.own_blocks(spec);
        self.need_attrs(spec)?;
        self.quota_admit_new(dir, spec, plan.blocks(), own, cred)?;
        let mut blocks = self.reserve(dir, u64::from(plan.blocks() + own), cred)?;
        let credits = self.plan_credits(dir, &plan)? + NEW_INODE + own * self.block_credits(0);
        let owners = [self.new_owners(dir, spec, cred), Self::quota_ids(dir)];
        let _held = self.hold(&[dir], Some((&**dir, plan.blocks(), &mut blocks)))?;
        let mut handle = self.start(&owners, credits)?;
        let tid = handle.tid();
        let inode = self.make_inode(&mut handle, dir, spec, name, cred, &mut blocks)?;
        let named = self.add_name(&mut handle, dir, plan, name, (inode.ino, spec.kind), &mut blocks);
        let done = named.and_then(|()| {
            if spec.kind == FileType::Directory {
                self.inc_links(dir);
            }
            self.touch_dir(&mut handle, dir)
        });
        self.finish(handle, done, dir)?;
        inode.note_tid(tid, true);
        Ok((inode, tid))
    }

    /// Asks the quotas of the new inode's owners, and for a directory that grows those of its owners.
    fn quota_admit_new(
        &self,
        dir: &Inode,
        spec: &Spec<'_>,
        dir_blocks: u32,
        own_blocks: u32,
        cred: &Credentials,
    ) -> Result<()> {
        if !self.has_quotas() {
            return Ok(());
        }
        self.quota_admit(self.new_owners(dir, spec, cred), u64::from(own_blocks), 1, cred)?;
        if dir_blocks > 0 {
            self.quota_admit(Self::quota_ids(dir), u64::from(dir_blocks), 0, cred)?;
        }
        Ok(())
    }

    /// Attributes want a feature.
    fn need_attrs(&self, spec: &Spec<'_>) -> Result<()> {
        if spec.attrs.iter().all(AttrSet::is_empty) {
            Ok(())
        } else {
            self.need_feature(LateFeature::ExtAttr)
        }
    }

    fn new_owners(&self, dir: &Inode, spec: &Spec<'_>, cred: &Credentials) -> Ids {
        let raw = self.new_raw(dir, spec, cred);
        [raw.uid, raw.gid, raw.projid]
    }

    /// Blocks that the inode itself needs: a directory's first, a long target's, its attributes'.
    fn own_blocks(&self, spec: &Spec<'_>) -> u32 {
        let content = match spec.kind {
            FileType::Directory => u32::from(!self.starts_inline(spec.kind)),
            FileType::Symlink => u32::from(spec.target.len() >= I_BLOCK_SIZE),
            _ => 0,
        };
        content + u32::from(!spec.attrs[1].is_empty())
    }

    /// Whether new inodes of this kind keep their content in the inode.
    fn starts_inline(&self, kind: FileType) -> bool {
        self.has_inline_data()
            && self.inode_format.inode_size() > GOOD_OLD_INODE_SIZE
            && matches!(kind, FileType::Directory)
    }

    /// Allocates and writes an inode with its content and attributes. On an error before anything but the number was taken
    /// the number is given back.
    fn make_inode(
        &self,
        handle: &mut Handle,
        dir: &InodeRef,
        spec: &Spec<'_>,
        name: &[u8],
        cred: &Credentials,
        blocks: &mut Reservation,
    ) -> Result<InodeRef> {
        let raw = self.new_raw(dir, spec, cred);
        let inode = self.allocate(handle, dir, raw, spec.kind, name)?;
        let filled = self.fill_inode(handle, &inode, dir, spec, blocks);
        filled?;
        Ok(inode)
    }

    fn fill_inode(
        &self,
        handle: &mut Handle,
        inode: &InodeRef,
        dir: &InodeRef,
        spec: &Spec<'_>,
        blocks: &mut Reservation,
    ) -> Result<()> {
        if spec.kind == FileType::Directory {
            if self.starts_inline(spec.kind) {
                let mut i_block = [0; I_BLOCK_SIZE];
                inline::init_dir(&self.layout, &mut i_block, dir.ino);
                *inode.map.write() = i_block;
                let mut state = inode.state();
                state.raw.i_block = i_block;
                state.size = I_BLOCK_SIZE as u64;
                state.raw.size = state.size;
            } else {
                self.init_dir(handle, inode, dir.ino, blocks)?;
            }
        }
        if spec.target.len() >= I_BLOCK_SIZE {
            let buf = self.add_meta_block(handle, inode, Lblk(0), blocks)?;
            handle.modify(&buf, |bytes| bytes[..spec.target.len()].copy_from_slice(spec.target))?;
        }
        if spec.attrs.iter().all(AttrSet::is_empty) {
            return self.write_inode(handle, inode);
        }
        self.xattr_init(handle, inode, &spec.attrs, blocks)
    }

    /// The fields of a new inode.
    fn new_raw(&self, dir: &Inode, spec: &Spec<'_>, cred: &Credentials) -> RawInode {
        let now = self.now();
        let (dir_mode, dir_gid, dir_flags, dir_project) = {
            let state = dir.state();
            (state.raw.mode, state.raw.gid, state.raw.flags, state.raw.projid)
        };
        let mut mode = spec.mode;
        let mut gid = cred.gid;
        if self.options().grpid {
            gid = dir_gid;
        } else if dir_mode & S_ISGID != 0 {
            gid = dir_gid;
            if spec.kind == FileType::Directory {
                mode |= S_ISGID;
            } else if mode & (S_ISGID | 0o010) == S_ISGID | 0o010 && !cred.may_keep_setgid(gid) {
                mode &= !S_ISGID;
            }
        }
        let mut flags = dir_flags.inherited_by(spec.kind);
        let mut i_block = spec.i_block.unwrap_or([0; I_BLOCK_SIZE]);
        let size = if spec.kind == FileType::Symlink { spec.target.len() as u64 } else { 0 };
        let inline = self.starts_inline(spec.kind);
        let short_link = spec.kind == FileType::Symlink && spec.target.len() < I_BLOCK_SIZE;
        if short_link {
            i_block[..spec.target.len()].copy_from_slice(spec.target);
        }
        let mapped = matches!(spec.kind, FileType::Regular | FileType::Directory | FileType::Symlink);
        if inline {
            flags |= InodeFlags::INLINE_DATA;
        } else if mapped && !short_link && self.has_extents() {
            flags |= InodeFlags::EXTENTS;
        }
        let inherits = dir_flags.contains(InodeFlags::PROJINHERIT) && self.has_project();
        RawInode {
            mode: spec.kind.mode_bits() | mode,
            uid: cred.uid,
            gid,
            size,
            links_count: if spec.kind == FileType::Directory { 2 } else { 1 },
            flags,
            atime: now,
            ctime: now,
            mtime: now,
            crtime: now,
            i_block,
            projid: if inherits { dir_project } else { 0 },
            ..RawInode::default()
        }
    }

    /// Allocates a number for a new inode made in `dir` and puts it into the cache, unwritten.
    fn allocate(
        &self,
        handle: &mut Handle,
        dir: &Inode,
        raw: RawInode,
        kind: FileType,
        name: &[u8],
    ) -> Result<InodeRef> {
        let is_dir = kind == FileType::Directory;
        let top = dir.ino == Ino::ROOT || dir.flags().contains(InodeFlags::TOPDIR);
        let request = InodeRequest {
            parent: dir.ino,
            is_dir,
            top_level: top,
            spread: name.iter().fold(0u32, |h, b| h.rotate_left(5) ^ u32::from(*b)),
        };
        let ino = self.alloc.alloc_inode(handle, &request)?;
        self.adopt(handle, ino, raw, kind)
    }

    /// Makes the in-core inode of a number just allocated, its place in the table zeroed.
    fn adopt(&self, handle: &mut Handle, ino: Ino, mut raw: RawInode, kind: FileType) -> Result<InodeRef> {
        let place = self.inode_place(ino)?;
        let size = self.inode_format.inode_size();
        if size > GOOD_OLD_INODE_SIZE {
            raw.extra_isize = self.want_extra_isize;
        }
        raw.generation = self.next_generation.fetch_add(0x9E37_79B9, Ordering::Relaxed);
        let has_tree = raw.flags.contains(InodeFlags::EXTENTS);
        if has_tree {
            MapFs::init(MapKind::Extents, &mut raw.i_block, ino);
        }
        // The allocator has made the table block anew if this is the only inode of it.
        let buf = self.cache.read(place.0)?;
        handle.modify(&buf, |bytes| bytes[place.1..place.1 + usize::from(size)].fill(0))?;
        let cache = std::sync::Arc::downgrade(&self.icache);
        let ids = [raw.uid, raw.gid, raw.projid];
        let mut inode = self.build_inode(ino, kind, raw, place, cache);
        inode.counted = crate::quota::counted(ids, 0, 0);
        // They are never inherited.
        inode.no_file_caps.store(true, Ordering::Relaxed);
        self.icache.insert_new(inode)
    }

    /// Makes a device node without a name yet.
    pub(crate) fn new_node(
        &self,
        handle: &mut Handle,
        dir: &InodeRef,
        kind: FileType,
        mode: u16,
        rdev: DeviceNumber,
        cred: &Credentials,
    ) -> Result<InodeRef> {
        let spec = Spec::node(kind, mode, rdev);
        let mut none = self.alloc.no_reservation(extant_alloc::Privilege::Normal);
        self.make_inode(handle, dir, &spec, b"", cred, &mut none)
    }

    /// The owners of what [`Self::new_node`] makes.
    pub(crate) fn node_owners(&self, dir: &Inode, kind: FileType, cred: &Credentials) -> Ids {
        self.new_owners(dir, &Spec::node(kind, 0, DeviceNumber::default()), cred)
    }

    /// Makes an inode without a name from finished fields, near `parent`: for attribute values.
    pub(crate) fn new_inode_of(
        &self,
        handle: &mut Handle,
        parent: Ino,
        mut raw: RawInode,
        kind: FileType,
    ) -> Result<InodeRef> {
        if self.has_extents() {
            raw.flags |= InodeFlags::EXTENTS;
        }
        let request = InodeRequest { parent, is_dir: false, top_level: false, spread: 0 };
        let ino = self.alloc.alloc_inode(handle, &request)?;
        self.adopt(handle, ino, raw, kind)
    }

    /// Notes a change of a directory's names in its times, and writes it. One credit.
    pub(crate) fn touch_dir(&self, handle: &mut Handle, dir: &Inode) -> Result<()> {
        let now = self.now();
        {
            let mut state = dir.state();
            state.raw.mtime = now;
            state.raw.ctime = now;
            state.raw.version = state.raw.version.wrapping_add(1);
        }
        self.write_inode(handle, dir)
    }

    /// Counts one subdirectory more. A directory with too many to count has 1 link for good.
    pub(crate) fn inc_links(&self, dir: &Inode) {
        let indexed = self.is_indexed(dir);
        let mut state = dir.state();
        let links = &mut state.raw.links_count;
        if *links == 1 && indexed {
            return;
        }
        *links = links.saturating_add(1);
        if indexed && *links > LINK_MAX {
            *links = 1;
        }
    }

    /// Counts one subdirectory less.
    pub(crate) fn dec_links(&self, dir: &Inode) {
        let mut state = dir.state();
        if state.raw.links_count > 2 {
            state.raw.links_count -= 1;
        }
    }

    /// Makes a file without a name, which vanishes with its last user unless it is linked.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn tmpfile(&self, dir: &InodeRef, mode: u16, cred: &Credentials) -> Result<InodeRef> {
        self.noted(self.with_space(|| {
            let _write = self.begin_write()?;
            let _lock = dir.lock.write_ordered(key::PARENT);
            self.check_dir(dir)?;
            if dir.is_dead() {
                return Err(Error::NotFound);
            }
            self.permission(dir, Access::WRITE_EXEC, cred)?;
            let (mode, attrs) = self.inherit_acl(dir, FileType::Regular, mode & 0o7777, cred)?;
            let spec = self.spec(dir, (FileType::Regular, mode, attrs), None, &[])?;
            let own = self.own_blocks(&spec);
            self.need_attrs(&spec)?;
            self.quota_admit_new(dir, &spec, 0, own, cred)?;
            let mut blocks = self.reserve(dir, u64::from(own), cred)?;
            let credits = NEW_INODE + ORPHAN + own * self.block_credits(0);
            let mut handle = self.start(&[self.new_owners(dir, &spec, cred)], credits)?;
            let inode = self.make_inode(&mut handle, dir, &spec, b"", cred, &mut blocks)?;
            inode.state().raw.links_count = 0;
            let done =
                self.orphan_add(&mut handle, &inode).and_then(|()| self.write_inode(&mut handle, &inode));
            self.finish(handle, done, &inode)?;
            inode.set_linkable();
            inode.set_dead(true);
            Ok(inode)
        }))
    }

    /// Makes `name` in `dir` one more name of `inode`.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` (directories), `TooManyLinks`, `CrossDevice`, ...; damage.
    pub fn link(&self, inode: &InodeRef, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<()> {
        self.noted(self.link_inner(inode, dir, &of_caller(name), cred))
    }

    fn link_inner(&self, inode: &InodeRef, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<()> {
        check_name(name)?;
        let tid = self.with_space(|| {
            let _write = self.begin_write()?;
            let _parent = dir.lock.write_ordered(key::PARENT);
            let plan = self.may_create(dir, name, cred)?;
            if inode.is_dir() {
                return Err(Error::NotPermitted);
            }
            let _child = inode.lock.write_ordered(key::child(inode.ino, false));
            self.may_link(inode, dir)?;
            if plan.blocks() > 0 {
                self.quota_admit(Self::quota_ids(dir), plan.blocks().into(), 0, cred)?;
            }
            let mut blocks = self.reserve(dir, u64::from(plan.blocks()), cred)?;
            let owners = [Self::quota_ids(dir), Self::quota_ids(inode)];
            let _held = self.hold(&[dir, inode], Some((&**dir, plan.blocks(), &mut blocks)))?;
            let mut handle = self.start(&owners, self.plan_credits(dir, &plan)? + ORPHAN + 1)?;
            let tid = handle.tid();
            let done = self.link_in(&mut handle, inode, dir, name, plan, &mut blocks);
            self.finish(handle, done, dir)?;
            Ok(tid)
        })?;
        self.settle(tid, self.is_sync(dir))
    }

    fn may_link(&self, inode: &Inode, dir: &Inode) -> Result<()> {
        let (flags, links, project) = {
            let state = inode.state();
            (state.raw.flags, state.raw.links_count, state.raw.projid)
        };
        if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        if links == 0 && !inode.is_linkable() {
            return Err(Error::NotFound);
        }
        if links >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        self.check_project(dir, project)
    }

    /// A directory that passes its project on takes only what belongs to it.
    pub(crate) fn check_project(&self, dir: &Inode, project: u32) -> Result<()> {
        let (flags, own) = {
            let state = dir.state();
            (state.raw.flags, state.raw.projid)
        };
        let passes = flags.contains(InodeFlags::PROJINHERIT) && self.has_project();
        if passes && own != project { Err(Error::CrossDevice) } else { Ok(()) }
    }

    fn link_in(
        &self,
        handle: &mut Handle,
        inode: &InodeRef,
        dir: &InodeRef,
        name: &[u8],
        plan: Plan,
        blocks: &mut Reservation,
    ) -> Result<()> {
        self.add_name(handle, dir, plan, name, (inode.ino, inode.kind()), blocks)?;
        let first = {
            let mut state = inode.state();
            state.raw.links_count += 1;
            state.raw.ctime = self.now();
            state.raw.links_count == 1
        };
        if first {
            inode.set_dead(false);
            self.orphan_del(handle, inode)?;
        }
        self.write_inode(handle, inode)?;
        self.touch_dir(handle, dir)
    }
}
