//! Rename, with all its flags.
//!
//! Between directories it holds the rename lock (rank 15), under which the ancestors of both directories are read; only
//! such renames change ancestry, so what was read stays true. Then the directories are locked, the ancestor first, then the
//! inodes that move or go (`ancestry`).

use extant_alloc::Reservation;
use extant_format::Tid;
use extant_format::inode::FileType;
use extant_format::inode::device::DeviceNumber;
use extant_journal::Handle;
use extant_sync::WriteGuard;

use crate::ancestry::Ancestry;
use crate::create::key;
use crate::cred::{Caps, Credentials};
use crate::credits::{EXCHANGE, RENAME};
use crate::dir::{Found, Plan, check_name};
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::mapping::of_caller;
use crate::quota::Ids;

/// renameat2's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Fail if the new name exists.
    pub noreplace: bool,
    /// Both exist: exchange them.
    pub exchange: bool,
    /// Leave a whiteout (a character device 0:0) behind.
    pub whiteout: bool,
}

impl RenameFlags {
    /// From the bits of renameat2(2).
    ///
    /// # Errors
    /// `Invalid` for unknown bits and combinations that contradict each other.
    pub fn from_bits(bits: u32) -> Result<Self> {
        let flags = Self { noreplace: bits & 1 != 0, exchange: bits & 2 != 0, whiteout: bits & 4 != 0 };
        if bits & !7 != 0 || (flags.exchange && (flags.noreplace || flags.whiteout)) {
            return Err(Error::Invalid("rename flags"));
        }
        Ok(flags)
    }
}

/// Both ends of a rename.
#[derive(Clone, Copy)]
struct Ends<'a> {
    from: &'a InodeRef,
    from_name: &'a [u8],
    to: &'a InodeRef,
    to_name: &'a [u8],
}

/// How a rename went.
enum Outcome {
    /// Done, in this transaction; the inode whose name was replaced.
    Done(Option<InodeRef>, Tid),
    /// Nothing is done: this file would replace another with content that is in memory only (`auto_da_alloc`). Its content is
    /// to be published first, while no directory is locked.
    Unpublished(InodeRef),
    /// Nothing is done: a directory that moves or goes is locked, and it is not known yet that the root is above the one it is in.
    Unrooted,
}

/// What was done before for a rename that is tried once more.
#[derive(Clone, Copy, Default)]
struct Before {
    /// The content in memory was published.
    published: bool,
    /// The root is above the directories.
    rooted: bool,
}

/// What was found at them.
struct Cast {
    source: InodeRef,
    source_at: Found,
    target: Option<(InodeRef, Found)>,
}

/// `..` of a directory that moves, and of one that it is exchanged with, found before anything changes.
#[derive(Default)]
struct Parents {
    source: Option<Found>,
    target: Option<Found>,
}

impl Filesystem {
    /// Renames `from_name` in `from` to `to_name` in `to`. Returns the inode whose name was replaced, if any.
    ///
    /// # Errors
    /// Those of rename(2); damage.
    pub fn rename(
        &self,
        from: &InodeRef,
        from_name: &[u8],
        to: &InodeRef,
        to_name: &[u8],
        flags: RenameFlags,
        cred: &Credentials,
    ) -> Result<Option<InodeRef>> {
        let (from_name, to_name) = (of_caller(from_name), of_caller(to_name));
        let ends = Ends { from, from_name: &from_name, to, to_name: &to_name };
        self.noted(self.rename_inner(ends, flags, cred))
    }

    fn rename_inner(
        &self,
        ends: Ends<'_>,
        flags: RenameFlags,
        cred: &Credentials,
    ) -> Result<Option<InodeRef>> {
        check_name(ends.from_name)?;
        check_name(ends.to_name)?;
        let dots = |name: &[u8]| name == b"." || name == b"..";
        if dots(ends.from_name) || dots(ends.to_name) {
            return Err(if flags.noreplace { Error::Exists } else { Error::Busy });
        }
        if flags.whiteout && !cred.has(Caps::MKNOD) {
            return Err(Error::NotPermitted);
        }
        self.check_dir(ends.from)?;
        self.check_dir(ends.to)?;
        let mut before = Before::default();
        loop {
            let outcome = self.with_space(|| {
                let _write = self.begin_write()?;
                if ends.from == ends.to {
                    let _dir = ends.from.lock.write_ordered(key::PARENT);
                    return self.rename_locked(ends, &Ancestry::default(), flags, before, cred);
                }
                let _rename = self.rename_lock.lock();
                let ancestry = self.ancestry(ends.from, ends.to)?;
                let _dirs = ancestry.lock(ends.from, ends.to);
                let before = Before { rooted: true, ..before };
                self.rename_locked(ends, &ancestry, flags, before, cred)
            })?;
            match outcome {
                Outcome::Done(victim, tid) => {
                    self.settle(tid, self.is_sync(ends.from) || self.is_sync(ends.to))?;
                    return Ok(victim);
                }
                Outcome::Unrooted => {
                    self.check_rooted(ends.from)?;
                    before.rooted = true;
                }
                Outcome::Unpublished(source) => {
                    self.publish_data(&source);
                    before.published = true;
                }
            }
        }
    }

    fn rename_locked(
        &self,
        ends: Ends<'_>,
        ancestry: &Ancestry,
        flags: RenameFlags,
        before: Before,
        cred: &Credentials,
    ) -> Result<Outcome> {
        if ends.from.is_dead() || ends.to.is_dead() {
            return Err(Error::NotFound);
        }
        let cast = self.find_cast(ends)?;
        match &cast.target {
            Some(_) if flags.noreplace => return Err(Error::Exists),
            None if flags.exchange => return Err(Error::NotFound),
            _ => {}
        }
        ancestry.check(&cast.source, cast.target.as_ref().map(|(target, _)| target), flags)?;
        if cast.target.as_ref().is_some_and(|(target, _)| *target == cast.source) {
            // Two names of one inode: nothing happens, by POSIX.
            return Ok(Outcome::Done(None, self.journal.running_tid()));
        }
        let Some(children) = lock_children(self, &cast, before.rooted) else { return Ok(Outcome::Unrooted) };
        self.may_rename(ends, &cast, flags, cred)?;
        let parents = self.find_parents(ends, &cast, flags.exchange)?;
        if flags.exchange {
            return self.exchange(ends, &cast, &parents).map(|(victim, tid)| Outcome::Done(victim, tid));
        }
        if self.replaces_unpublished(&cast) {
            if !before.published {
                return Ok(Outcome::Unpublished(cast.source.clone()));
            }
            // What was written since; under the inode lock that is all.
            self.publish_data(&cast.source);
        }
        let plan = match &cast.target {
            None => Some(self.plan_name(ends.to, ends.to_name)?),
            Some(_) => None,
        };
        let new_blocks = plan.as_ref().map_or(0, Plan::blocks);
        if new_blocks > 0 {
            self.quota_admit(Self::quota_ids(ends.to), new_blocks.into(), 0, cred)?;
        }
        let whiteout = flags.whiteout.then(|| self.node_owners(ends.from, FileType::CharDevice, cred));
        if let Some(owners) = whiteout {
            self.quota_admit(owners, 0, 1, cred)?;
        }
        let mut blocks = self.reserve(ends.to, u64::from(new_blocks), cred)?;
        let credits = RENAME + plan.as_ref().map_or(Ok(1), |plan| self.plan_credits(ends.to, plan))?;
        let target = cast.target.as_ref().map_or(ends.to, |(target, _)| target);
        let growing = Some((&**ends.to, new_blocks, &mut blocks));
        let _held = self.hold(&[ends.from, ends.to, &cast.source, target], growing)?;
        let mut handle = self.start(&owners_of(ends, &cast, whiteout), credits)?;
        let tid = handle.tid();
        let whiteout =
            if flags.whiteout { Some(self.make_whiteout(&mut handle, ends.from, cred)?) } else { None };
        let done = self.rename_in(&mut handle, ends, (&cast, &parents), plan, whiteout.as_ref(), &mut blocks);
        self.finish(handle, done, ends.from)?;
        cast.source.note_tid(tid, true);
        drop(children);
        Ok(Outcome::Done(cast.target.map(|(inode, _)| inode), tid))
    }

    /// Whether a file with unwritten content takes another's name, and such content must be on the device before the rename is.
    fn replaces_unpublished(&self, cast: &Cast) -> bool {
        cast.target.is_some() && cast.source.has_dirty_data() && self.options().auto_da_alloc
    }

    fn find_cast(&self, ends: Ends<'_>) -> Result<Cast> {
        let source_at = self.find(ends.from, ends.from_name)?.ok_or(Error::NotFound)?;
        let source = self.iget_child(ends.from, source_at.ino)?;
        let target = match self.find(ends.to, ends.to_name)? {
            Some(found) => Some((self.iget_child(ends.to, found.ino)?, found)),
            None => None,
        };
        Ok(Cast { source, source_at, target })
    }

    /// `..` of a directory.
    fn parent_entry(&self, dir: &InodeRef) -> Result<Found> {
        let missing = || Error::corrupt(Place::Inode(dir.ino), CorruptKind::Dirent("no `..`", 0));
        self.find(dir, b"..")?.ok_or_else(missing)
    }

    /// Finds the `..` that will change. Under the locks of the directories that move.
    fn find_parents(&self, ends: Ends<'_>, cast: &Cast, exchange: bool) -> Result<Parents> {
        if ends.from == ends.to {
            return Ok(Parents::default());
        }
        let entry = |inode: &InodeRef| inode.is_dir().then(|| self.parent_entry(inode)).transpose();
        let target = cast.target.as_ref().filter(|_| exchange);
        Ok(Parents {
            source: entry(&cast.source)?,
            target: target.map_or(Ok(None), |(inode, _)| entry(inode))?,
        })
    }

    fn may_rename(&self, ends: Ends<'_>, cast: &Cast, flags: RenameFlags, cred: &Credentials) -> Result<()> {
        let source = &cast.source;
        self.may_delete(ends.from, source, cred)?;
        match &cast.target {
            None => self.permission(ends.to, crate::cred::Access::WRITE_EXEC, cred)?,
            Some((target, _)) => {
                self.may_delete(ends.to, target, cred)?;
                if !flags.exchange {
                    self.may_replace(source, target)?;
                }
            }
        }
        let moves = ends.from != ends.to;
        if source.is_dir() && moves {
            // Its `..` changes.
            self.permission(source, crate::cred::Access::WRITE, cred)?;
        }
        let gains = |gone: bool| source.is_dir() && moves && !gone;
        if gains(cast.target.as_ref().is_some_and(|(t, _)| t.is_dir())) {
            self.check_subdir(ends.to)?;
        }
        self.check_project(ends.to, source.attr().project)?;
        if let (true, Some((target, _))) = (flags.exchange, &cast.target) {
            if target.is_dir() && moves {
                self.permission(target, crate::cred::Access::WRITE, cred)?;
                if !source.is_dir() {
                    self.check_subdir(ends.from)?;
                }
            }
            self.check_project(ends.from, target.attr().project)?;
        }
        Ok(())
    }

    fn may_replace(&self, source: &InodeRef, target: &InodeRef) -> Result<()> {
        match (source.is_dir(), target.is_dir()) {
            (true, false) => Err(Error::NotDirectory),
            (false, true) => Err(Error::IsDirectory),
            (true, true) if !self.dir_is_empty(target)? => Err(Error::NotEmpty),
            _ => Ok(()),
        }
    }

    fn make_whiteout(&self, handle: &mut Handle, dir: &InodeRef, cred: &Credentials) -> Result<InodeRef> {
        self.new_node(handle, dir, FileType::CharDevice, 0, DeviceNumber::default(), cred)
    }

    fn rename_in(
        &self,
        handle: &mut Handle,
        ends: Ends<'_>,
        (cast, parents): (&Cast, &Parents),
        plan: Option<Plan>,
        whiteout: Option<&InodeRef>,
        blocks: &mut Reservation,
    ) -> Result<()> {
        let source = &cast.source;
        let named = (source.ino, source.kind());
        match (plan, &cast.target) {
            (Some(plan), _) => {
                self.add_name(handle, ends.to, plan, ends.to_name, named, blocks)?;
            }
            (None, Some((_, found))) => self.redirect_name(handle, ends.to, found, named)?,
            (None, None) => return Err(Error::NotFound),
        }
        // Adding may have moved the old name.
        let old = if ends.from == ends.to {
            self.find(ends.from, ends.from_name)?.ok_or(Error::NotFound)?
        } else {
            cast.source_at.clone()
        };
        match whiteout {
            Some(node) => self.redirect_name(handle, ends.from, &old, (node.ino, node.kind()))?,
            None => self.remove_name(handle, ends.from, &old)?,
        }
        if let Some((target, _)) = &cast.target {
            if target.is_dir() {
                self.dec_links(ends.to);
            }
            self.drop_link(handle, target)?;
        }
        self.moved(handle, source, parents.source.as_ref(), ends.from, ends.to)?;
        self.touch_dir(handle, ends.from)?;
        if ends.from != ends.to { self.touch_dir(handle, ends.to) } else { Ok(()) }
    }

    /// After an inode got a name in `to` instead of `from`: its change time, and for a directory `..` and the counts.
    fn moved(
        &self,
        handle: &mut Handle,
        inode: &InodeRef,
        parent: Option<&Found>,
        from: &InodeRef,
        to: &InodeRef,
    ) -> Result<()> {
        inode.state().raw.ctime = self.now();
        if let Some(parent) = parent {
            self.redirect_name(handle, inode, parent, (to.ino, FileType::Directory))?;
            self.dec_links(from);
            self.inc_links(to);
        }
        self.write_inode(handle, inode)
    }

    fn exchange(&self, ends: Ends<'_>, cast: &Cast, parents: &Parents) -> Result<(Option<InodeRef>, Tid)> {
        let Some((target, target_at)) = &cast.target else { return Err(Error::NotFound) };
        let source = &cast.source;
        let owners = [ends.from, ends.to, source, target].map(|inode| Self::quota_ids(inode));
        let _held = self.hold(&[ends.from, ends.to, source, target], None)?;
        let mut handle = self.start(&owners, EXCHANGE)?;
        let tid = handle.tid();
        let h = &mut handle;
        let done = self
            .redirect_name(h, ends.to, target_at, (source.ino, source.kind()))
            .and_then(|()| self.redirect_name(h, ends.from, &cast.source_at, (target.ino, target.kind())))
            .and_then(|()| self.moved(h, source, parents.source.as_ref(), ends.from, ends.to))
            .and_then(|()| self.moved(h, target, parents.target.as_ref(), ends.to, ends.from))
            .and_then(|()| self.touch_dir(h, ends.from))
            .and_then(|()| if ends.from != ends.to { self.touch_dir(h, ends.to) } else { Ok(()) });
        self.finish(handle, done, ends.from)?;
        source.note_tid(tid, true);
        target.note_tid(tid, true);
        Ok((None, tid))
    }
}

/// The owners of all inodes that a rename may write.
fn owners_of(ends: Ends<'_>, cast: &Cast, whiteout: Option<Ids>) -> Vec<Ids> {
    let target = cast.target.as_ref().map(|(inode, _)| inode);
    let inodes = [Some(ends.from), Some(ends.to), Some(&cast.source), target];
    let owners = inodes.into_iter().flatten().map(|inode| Filesystem::quota_ids(inode));
    owners.chain(whiteout).collect()
}

/// Locks what moves and what goes: directories first, then by number. `None` where one is locked and it is not known that it may be
/// waited for.
fn lock_children<'a>(fs: &Filesystem, cast: &'a Cast, rooted: bool) -> Option<Vec<WriteGuard<'a, ()>>> {
    let mut children = vec![&cast.source];
    children.extend(cast.target.as_ref().map(|(inode, _)| inode));
    children.sort_by_key(|c| key::child(c.ino, c.is_dir()));
    children.into_iter().map(|c| fs.lock_child(c, rooted)).collect()
}
