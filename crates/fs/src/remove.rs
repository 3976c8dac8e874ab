//! Taking names away: unlink, rmdir.

use extant_format::Tid;
use extant_format::inode::InodeFlags;
use extant_journal::Handle;

use crate::create::key;
use crate::cred::{Access, Credentials};
use crate::credits::UNLINK;
use crate::dir::{Found, check_name};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::mapping::of_caller;

impl Filesystem {
    /// Removes the name `name`, which is no directory's, from `dir`. Returns the inode that it led to; if that was its last
    /// name, the inode goes when the last reference does.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `NotPermitted`, `AccessDenied`; damage.
    pub fn unlink(&self, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<InodeRef> {
        self.noted(self.remove(dir, &of_caller(name), false, cred))
    }

    /// Removes the empty directory `name` from `dir`, and returns it.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `NotPermitted`, `AccessDenied`; damage.
    pub fn rmdir(&self, dir: &InodeRef, name: &[u8], cred: &Credentials) -> Result<InodeRef> {
        self.noted(self.remove(dir, &of_caller(name), true, cred))
    }

    fn remove(&self, dir: &InodeRef, name: &[u8], want_dir: bool, cred: &Credentials) -> Result<InodeRef> {
        check_name(name)?;
        match name {
            b"." => return Err(if want_dir { Error::Invalid("`.`") } else { Error::IsDirectory }),
            b".." => return Err(if want_dir { Error::NotEmpty } else { Error::IsDirectory }),
            _ => {}
        }
        self.icache.throttle();
        let mut rooted = false;
        let (victim, tid) = loop {
            if let Some(done) = self.remove_locked(dir, name, (want_dir, rooted), cred)? {
                break done;
            }
            self.check_rooted(dir)?;
            rooted = true;
        };
        self.settle(tid, self.is_sync(dir))?;
        Ok(victim)
    }

    /// The same under the locks; `None` if the directory is locked and cannot be waited for ([`Self::lock_child`]).
    fn remove_locked(
        &self,
        dir: &InodeRef,
        name: &[u8],
        (want_dir, rooted): (bool, bool),
        cred: &Credentials,
    ) -> Result<Option<(InodeRef, Tid)>> {
        let _write = self.begin_write()?;
        let _parent = dir.lock.write_ordered(key::PARENT);
        self.check_dir(dir)?;
        let found = self.find(dir, name)?.ok_or(Error::NotFound)?;
        let victim = self.iget_child(dir, found.ino)?;
        let Some(child) = self.lock_child(&victim, rooted) else { return Ok(None) };
        self.may_delete(dir, &victim, cred)?;
        match (want_dir, victim.is_dir()) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            _ => {}
        }
        if want_dir && !self.dir_is_empty(&victim)? {
            return Err(Error::NotEmpty);
        }
        let owners = [Self::quota_ids(dir), Self::quota_ids(&victim)];
        let _held = self.hold(&[dir, &victim], None)?;
        let mut handle = self.start(&owners, UNLINK + 1)?;
        let tid = handle.tid();
        let done = self.remove_in(&mut handle, dir, &found, &victim);
        self.finish(handle, done, dir)?;
        drop(child);
        Ok(Some((victim, tid)))
    }

    /// Whether the caller may take the name of `victim` out of `dir`.
    pub(crate) fn may_delete(&self, dir: &Inode, victim: &Inode, cred: &Credentials) -> Result<()> {
        self.permission(dir, Access::WRITE_EXEC, cred)?;
        let (dir_mode, dir_uid, dir_flags) = {
            let state = dir.state();
            (state.raw.mode, state.raw.uid, state.raw.flags)
        };
        let (uid, flags) = {
            let state = victim.state();
            (state.raw.uid, state.raw.flags)
        };
        if dir_flags.contains(InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        let sticky = dir_mode & 0o1000 != 0 && !cred.access_checked && cred.uid != uid && !cred.owns(dir_uid);
        if sticky || flags.intersects(InodeFlags::APPEND | InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    fn remove_in(&self, handle: &mut Handle, dir: &Inode, found: &Found, victim: &InodeRef) -> Result<()> {
        self.remove_name(handle, dir, found)?;
        self.drop_link(handle, victim)?;
        if victim.is_dir() {
            self.dec_links(dir);
        }
        self.touch_dir(handle, dir)
    }

    /// Takes one link away (all of a directory), records an orphan if that was the last, and writes the inode. Credits:
    /// [`UNLINK`], with the name.
    pub(crate) fn drop_link(&self, handle: &mut Handle, victim: &InodeRef) -> Result<()> {
        let dead = {
            let mut state = victim.state();
            let raw = &mut state.raw;
            raw.links_count = if victim.is_dir() { 0 } else { raw.links_count.saturating_sub(1) };
            raw.ctime = self.now();
            raw.links_count == 0
        };
        if dead {
            self.orphan_add(handle, victim)?;
            victim.set_dead(true);
        }
        self.write_inode(handle, victim)
    }
}
