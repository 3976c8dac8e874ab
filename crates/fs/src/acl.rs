//! Permissions: mode bits, access control lists, capabilities; inheritance of lists.

use extant_format::acl::{Acl, Subject};
use extant_format::inode::{FileType, InodeFlags};
use extant_format::xattr::{INDEX_POSIX_ACL_ACCESS, INDEX_POSIX_ACL_DEFAULT};
use extant_sync::atomic::Ordering;

use crate::cred::{Access, Credentials};
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::xattr::NewAttrs;

const S_ISGID: u16 = 0o2000;

impl Filesystem {
    /// Whether `cred` may access `inode` in the way of `want`.
    ///
    /// # Errors
    /// `AccessDenied`; `ReadOnly` and `NotPermitted` (immutable) for writing.
    pub fn access(&self, inode: &InodeRef, want: Access, cred: &Credentials) -> Result<()> {
        self.noted(self.permission(inode, want, cred))
    }

    pub(crate) fn permission(&self, inode: &Inode, want: Access, cred: &Credentials) -> Result<()> {
        let (mode, uid, gid, flags) = {
            let state = inode.state();
            (state.raw.mode, state.raw.uid, state.raw.gid, state.raw.flags)
        };
        if want.wants(Access::WRITE) {
            let stored = matches!(inode.kind(), FileType::Regular | FileType::Directory | FileType::Symlink);
            if stored && self.is_read_only() {
                return Err(Error::ReadOnly);
            }
            if flags.contains(InodeFlags::IMMUTABLE) {
                return Err(Error::NotPermitted);
            }
        }
        if cred.access_checked || self.grants(inode, (mode, uid, gid), want, cred)? {
            return Ok(());
        }
        if cred.granted_by_caps(inode.is_dir(), mode, want) { Ok(()) } else { Err(Error::AccessDenied) }
    }

    fn grants(
        &self,
        inode: &Inode,
        (mode, uid, gid): (u16, u32, u32),
        want: Access,
        cred: &Credentials,
    ) -> Result<bool> {
        // The group bits are the list's mask: without any of them no named entry grants anything.
        let listed =
            cred.uid != uid && mode & 0o070 != 0 && self.options().acl && inode.kind() != FileType::Symlink;
        if listed && let Some(acl) = self.acl(inode, INDEX_POSIX_ACL_ACCESS)? {
            let groups = cred.groups.as_deref().unwrap_or_default();
            let who = Subject { uid: cred.uid, gid: cred.gid, groups };
            return Ok(acl.permits(&who, uid, gid, want.0));
        }
        Ok(cred.granted_by_mode(uid, gid, mode, want))
    }

    /// The access or default list of an inode.
    pub(crate) fn acl(&self, inode: &Inode, index: u8) -> Result<Option<Acl>> {
        if inode.no_acl.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match self.xattr_value(inode, index, b"")? {
            Some(bytes) => {
                Acl::from_disk(&bytes).map_err(|_| Error::corrupt(Place::Inode(inode.ino), CorruptKind::Acl))
            }
            None => {
                if !self.has_acl(inode)? {
                    inode.no_acl.store(true, Ordering::SeqCst);
                    // One may have been set since the look, and its setter's note overwritten.
                    if self.has_acl(inode)? {
                        inode.no_acl.store(false, Ordering::SeqCst);
                    }
                }
                Ok(None)
            }
        }
    }

    /// Whether there is a list of either kind. (Asking a file for its default list says nothing about its access list.)
    fn has_acl(&self, inode: &Inode) -> Result<bool> {
        Ok(self.xattr_exists(inode, INDEX_POSIX_ACL_ACCESS, b"")?
            || inode.is_dir() && self.xattr_exists(inode, INDEX_POSIX_ACL_DEFAULT, b"")?)
    }

    /// A list in the form that programs read.
    pub(crate) fn acl_xattr(&self, inode: &Inode, index: u8) -> Result<Option<Vec<u8>>> {
        Ok(self.acl(inode, index)?.map(|acl| acl.to_xattr()))
    }

    /// Sets or removes a list given in the form that programs write. The caller holds the inode lock exclusively.
    pub(crate) fn set_acl(
        &self,
        inode: &Inode,
        index: u8,
        value: Option<&[u8]>,
        cred: &Credentials,
    ) -> Result<()> {
        let (mode, uid, gid) = {
            let state = inode.state();
            (state.raw.mode, state.raw.uid, state.raw.gid)
        };
        if inode.kind() == FileType::Symlink {
            return Err(Error::NotSupported("access control lists of symbolic links"));
        }
        if !cred.owns(uid) {
            return Err(Error::NotPermitted);
        }
        let acl = match value {
            Some(bytes) => Acl::from_xattr(bytes).map_err(|_| Error::Invalid("access control list"))?,
            None => None,
        };
        if index == INDEX_POSIX_ACL_DEFAULT {
            if !inode.is_dir() {
                return if acl.is_some() { Err(Error::AccessDenied) } else { Ok(()) };
            }
            return self.store_acl(inode, index, acl, mode, cred);
        }
        let mut new_mode = mode;
        let mut stored = None;
        if let Some(acl) = acl {
            let (bits, whole) = acl.equiv_mode();
            new_mode = (mode & !0o777) | bits;
            if !cred.may_keep_setgid(gid) {
                new_mode &= !S_ISGID;
            }
            stored = (!whole).then_some(acl);
        }
        self.store_acl(inode, index, stored, new_mode, cred)
    }

    fn store_acl(
        &self,
        inode: &Inode,
        index: u8,
        acl: Option<Acl>,
        mode: u16,
        cred: &Credentials,
    ) -> Result<()> {
        let value = acl.map(|a| a.to_disk());
        let exists = self.xattr_exists(inode, index, b"")?;
        let old_mode = std::mem::replace(&mut inode.state().raw.mode, mode);
        if value.is_none() && !exists {
            if old_mode == mode {
                return Ok(());
            }
            inode.state().raw.ctime = self.now();
            let mut handle = self.start_data(inode, 1)?;
            let done = self.write_inode(&mut handle, inode);
            return self.finish(handle, done, inode);
        }
        inode.no_acl.store(false, Ordering::Relaxed);
        let done = self.store_xattr(inode, (index, b""), value.as_deref(), cred);
        if done.is_err() {
            inode.state().raw.mode = old_mode;
        }
        done
    }

    /// What chmod does to the access list: `None` if there is none to change.
    pub(crate) fn acl_after_chmod(&self, inode: &Inode, mode: u16) -> Result<Option<Vec<u8>>> {
        if !self.options().acl || inode.kind() == FileType::Symlink {
            return Ok(None);
        }
        Ok(self.acl(inode, INDEX_POSIX_ACL_ACCESS)?.map(|mut acl| {
            acl.chmod(mode);
            acl.to_disk()
        }))
    }

    /// The mode of a new inode in `dir`, and the lists that it begins with. The default list decides, or the umask.
    pub(crate) fn inherit_acl(
        &self,
        dir: &Inode,
        kind: FileType,
        mode: u16,
        cred: &Credentials,
    ) -> Result<(u16, NewAttrs)> {
        if kind == FileType::Symlink {
            return Ok((mode, NewAttrs::new()));
        }
        let default = if self.options().acl { self.acl(dir, INDEX_POSIX_ACL_DEFAULT)? } else { None };
        let Some(default) = default else { return Ok((mode & !cred.umask, NewAttrs::new())) };
        let mut attrs = NewAttrs::new();
        if kind == FileType::Directory {
            attrs.push((INDEX_POSIX_ACL_DEFAULT, Vec::new(), default.to_disk()));
        }
        let mut access = default;
        let (mode, stored) = access.create_masq(mode);
        if stored {
            attrs.push((INDEX_POSIX_ACL_ACCESS, Vec::new(), access.to_disk()));
        }
        Ok((mode, attrs))
    }
}
