//! What is above a directory, and who may wait for whom because of it.
//!
//! Who holds the lock of a directory and waits for one in it would wait for ever if the directories of a damaged image went round in a
//! circle: each in the next, with a `..` that says so. So directories within others are waited for only by who knows that the root is above,
//! and the root is in no directory ([`Filesystem::iget_child`]). What is seen once stays true: only a rename between
//! directories puts one into another, and it has seen the root above that other one, and not what it moves. Where nobody else has
//! the lock nothing is looked at.

use extant_format::Ino;
use extant_sync::WriteGuard;
use rustc_hash::FxHashSet;

use crate::create::key;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mutant::without;
use crate::rename::RenameFlags;

impl Filesystem {
    /// The ancestors of both directories, themselves included. Under the rename lock.
    pub(crate) fn ancestry(&self, from: &InodeRef, to: &InodeRef) -> Result<Ancestry> {
        Ok(Ancestry { of_from: self.ancestors(from)?, of_to: self.ancestors(to)? })
    }

    fn ancestors(&self, dir: &InodeRef) -> Result<FxHashSet<u32>> {
        let mut found = FxHashSet::default();
        let mut at = dir.clone();
        loop {
            if !found.insert(at.ino.0) {
                return Err(Error::corrupt(Place::Inode(at.ino), CorruptKind::Parent(dir.ino)));
            }
            if at.ino == Ino::ROOT || at.is_dead() {
                return Ok(found);
            }
            match self.parent_of(&at) {
                Ok(parent) => at = parent,
                // Who removed it while its lock was waited for may have removed its parent since. One that lives has a parent that does.
                Err(_) if at.is_dead() && !without!(self, GoneAbove) => return Ok(found),
                Err(error) => return Err(error),
            }
        }
    }

    fn parent_of(&self, dir: &InodeRef) -> Result<InodeRef> {
        let parent = {
            let _lock = dir.lock.read_ordered(key::PARENT);
            self.parent_ino(dir)?
        };
        let parent = self.iget_named(dir, parent)?;
        if parent.is_dir() {
            Ok(parent)
        } else {
            Err(Error::corrupt(Place::Inode(dir.ino), CorruptKind::Parent(parent.ino)))
        }
    }

    /// Looks that the root is above `dir`. With no inode locked.
    ///
    /// # Errors
    /// Damage, if it is not.
    pub(crate) fn check_rooted(&self, dir: &InodeRef) -> Result<()> {
        let _rename = self.rename_lock.lock();
        self.ancestors(dir).map(drop)
    }

    /// Locks `child`, which was found in a directory that the caller has locked. `None` where somebody else has the lock, `child` is a
    /// directory, and it is not known that the root is above the one it is in: then the caller gives up its lock, looks
    /// ([`Self::check_rooted`]), and comes once more with `rooted`.
    pub(crate) fn lock_child<'a>(&self, child: &'a InodeRef, rooted: bool) -> Option<WriteGuard<'a, ()>> {
        let key = key::child(child.ino, child.is_dir());
        if rooted || !child.is_dir() || without!(self, RootAbove) {
            return Some(child.lock.write_ordered(key));
        }
        child.lock.try_write_ordered(key)
    }
}

/// Ancestors of both directories, by number; empty within one directory.
#[derive(Default)]
pub(crate) struct Ancestry {
    of_from: FxHashSet<u32>,
    of_to: FxHashSet<u32>,
}

impl Ancestry {
    /// Refuses to move a directory below itself, or over one of its ancestors. Before the children are locked: an ancestor
    /// may be locked as a directory already.
    pub(crate) fn check(&self, source: &Inode, target: Option<&InodeRef>, flags: RenameFlags) -> Result<()> {
        let below = Err(Error::Invalid("a directory cannot go below itself"));
        if self.of_to.contains(&source.ino.0) {
            return below;
        }
        match target {
            Some(target) if self.of_from.contains(&target.ino.0) => {
                if flags.exchange {
                    below
                } else {
                    Err(Error::NotEmpty)
                }
            }
            _ => Ok(()),
        }
    }

    /// Locks both directories, the ancestor first, unrelated ones by number.
    pub(crate) fn lock<'a>(&self, from: &'a InodeRef, to: &'a InodeRef) -> [WriteGuard<'a, ()>; 2] {
        let from_first = if self.of_to.contains(&from.ino.0) {
            true
        } else if self.of_from.contains(&to.ino.0) {
            false
        } else {
            from.ino < to.ino
        };
        let (first, second) = if from_first { (from, to) } else { (to, from) };
        let first = first.lock.write_ordered(key::PARENT);
        [first, second.lock.write_ordered(key::SECOND_PARENT)]
    }
}
