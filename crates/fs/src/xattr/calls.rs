//! What callers ask of extended attributes: by full names, with permissions.

use extant_format::inode::{FileType, InodeFlags};
use extant_format::xattr::{
    INDEX_ENCRYPTION, INDEX_POSIX_ACL_ACCESS, INDEX_POSIX_ACL_DEFAULT, INDEX_SECURITY, INDEX_SYSTEM,
    INDEX_TRUSTED, INDEX_USER, MAX_VALUE_LEN, split_name,
};

use extant_sync::atomic::Ordering;

use crate::cred::{Access, Caps, Credentials};
use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::late_features::LateFeature;
use crate::mapping::of_caller;

/// How setting treats an attribute that exists or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrSet {
    /// Either.
    #[default]
    Any,
    /// It must not exist (`XATTR_CREATE`).
    Create,
    /// It must exist (`XATTR_REPLACE`).
    Replace,
}

/// The attribute of [`INDEX_SECURITY`] that holds a file's capabilities (capabilities(7)).
const FILE_CAPS: &[u8] = b"capability";

/// Longest name, its prefix included (Linux `XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

/// The prefix of a stored attribute's full name; `None` for what programs do not see.
const fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        INDEX_USER => "user.",
        INDEX_POSIX_ACL_ACCESS => "system.posix_acl_access",
        INDEX_POSIX_ACL_DEFAULT => "system.posix_acl_default",
        INDEX_TRUSTED => "trusted.",
        INDEX_SECURITY => "security.",
        _ => return None,
    })
}

impl Filesystem {
    /// Index and rest of a full name that a program may use.
    fn split<'n>(&self, name: &'n [u8]) -> Result<(u8, &'n [u8])> {
        if name.len() > NAME_MAX {
            return Err(Error::Range);
        }
        let (index, rest) =
            split_name(name).ok_or(Error::NotSupported("attribute names of this namespace"))?;
        match index {
            INDEX_USER if !self.options().user_xattr => {
                Err(Error::NotSupported("user attributes (nouser_xattr)"))
            }
            INDEX_POSIX_ACL_ACCESS | INDEX_POSIX_ACL_DEFAULT if !self.options().acl => {
                Err(Error::NotSupported("access control lists (noacl)"))
            }
            INDEX_SYSTEM | INDEX_ENCRYPTION => Err(Error::NotSupported("attribute names of this namespace")),
            i if prefix(i).is_none() => Err(Error::NotSupported("attribute names of this namespace")),
            i => Ok((i, rest)),
        }
    }

    /// The value of the attribute `name` (its full name).
    ///
    /// # Errors
    /// `NoAttribute`; `NotPermitted` or `AccessDenied` as xattr(7) says; damage.
    pub fn get_xattr(&self, inode: &InodeRef, name: &[u8], cred: &Credentials) -> Result<Vec<u8>> {
        self.noted(self.get_xattr_inner(inode, &of_caller(name), cred))
    }

    fn get_xattr_inner(&self, inode: &InodeRef, name: &[u8], cred: &Credentials) -> Result<Vec<u8>> {
        self.check_alive()?;
        let (index, rest) = self.split(name)?;
        match index {
            INDEX_POSIX_ACL_ACCESS | INDEX_POSIX_ACL_DEFAULT => {
                return self.acl_xattr(inode, index)?.ok_or(Error::NoAttribute);
            }
            INDEX_TRUSTED if !cred.has(Caps::SYS_ADMIN) => return Err(Error::NoAttribute),
            INDEX_USER => {
                if !matches!(inode.kind(), FileType::Regular | FileType::Directory) {
                    return Err(Error::NoAttribute);
                }
                self.permission(inode, Access::READ, cred)?;
            }
            _ => {}
        }
        self.xattr_value(inode, index, rest)?.ok_or(Error::NoAttribute)
    }

    /// The full names of all attributes that the caller may see, each followed by a zero byte.
    ///
    /// # Errors
    /// Damage.
    pub fn list_xattr(&self, inode: &InodeRef, cred: &Credentials) -> Result<Vec<u8>> {
        self.noted(self.check_alive().and_then(|()| {
            let mut list = Vec::new();
            for (index, name) in self.xattr_names(inode)? {
                let Some(prefix) = prefix(index) else { continue };
                let hidden = match index {
                    INDEX_TRUSTED => !cred.has(Caps::SYS_ADMIN),
                    INDEX_USER => !self.options().user_xattr,
                    INDEX_POSIX_ACL_ACCESS | INDEX_POSIX_ACL_DEFAULT => !self.options().acl,
                    _ => false,
                };
                if !hidden {
                    list.extend_from_slice(prefix.as_bytes());
                    list.extend_from_slice(&name);
                    list.push(0);
                }
            }
            Ok(list)
        }))
    }

    /// Sets the attribute `name` (its full name).
    ///
    /// # Errors
    /// `Exists`, `NoAttribute` by `how`; `NoSpace`, `QuotaExceeded`, `NoRoom`, `ValueTooBig`, `Range`; permissions; damage.
    pub fn set_xattr(
        &self,
        inode: &InodeRef,
        name: &[u8],
        value: &[u8],
        how: XattrSet,
        cred: &Credentials,
    ) -> Result<()> {
        // Of one that is too long no more than says so.
        let most = value.len().min(MAX_VALUE_LEN as usize + 1);
        let (name, value) = (of_caller(name), of_caller(&value[..most]));
        self.noted(self.with_space(|| self.change_xattr(inode, &name, Some(&value), how, cred)))
    }

    /// Removes the attribute `name` (its full name).
    ///
    /// # Errors
    /// `NoAttribute`; permissions; damage.
    pub fn remove_xattr(&self, inode: &InodeRef, name: &[u8], cred: &Credentials) -> Result<()> {
        let name = of_caller(name);
        self.noted(self.with_space(|| self.change_xattr(inode, &name, None, XattrSet::Replace, cred)))
    }

    fn change_xattr(
        &self,
        inode: &InodeRef,
        name: &[u8],
        value: Option<&[u8]>,
        how: XattrSet,
        cred: &Credentials,
    ) -> Result<()> {
        let _write = self.begin_write()?;
        let (index, rest) = self.split(name)?;
        if value.is_some_and(|v| v.len() > MAX_VALUE_LEN as usize) {
            return Err(Error::ValueTooBig);
        }
        let _lock = inode.lock.write();
        self.may_change_xattr(inode, index, rest, cred)?;
        if matches!(index, INDEX_POSIX_ACL_ACCESS | INDEX_POSIX_ACL_DEFAULT) {
            return self.set_acl(inode, index, value, cred);
        }
        let exists = self.xattr_exists(inode, index, rest)?;
        match (how, exists) {
            (XattrSet::Create, true) => return Err(Error::Exists),
            (XattrSet::Replace, false) => return Err(Error::NoAttribute),
            _ => {}
        }
        self.store_xattr(inode, (index, rest), value, cred)
    }

    pub(crate) fn xattr_exists(&self, inode: &Inode, index: u8, name: &[u8]) -> Result<bool> {
        Ok(self.xattr_names(inode)?.iter().any(|(i, n)| *i == index && n == name))
    }

    /// Whether the file carries capabilities (`security.capability`).
    pub(crate) fn has_file_caps(&self, inode: &Inode) -> Result<bool> {
        if inode.no_file_caps.load(Ordering::Acquire) {
            return Ok(false);
        }
        let there = self.xattr_exists(inode, INDEX_SECURITY, FILE_CAPS)?;
        if !there {
            inode.no_file_caps.store(true, Ordering::Release);
            // Some may have been set since the look, and the setter's note overwritten.
            if self.xattr_exists(inode, INDEX_SECURITY, FILE_CAPS)? {
                inode.no_file_caps.store(false, Ordering::Release);
            }
        }
        Ok(there)
    }

    /// Takes a file's capabilities away. The caller holds the inode lock exclusively.
    pub(crate) fn kill_file_caps(&self, inode: &Inode, cred: &Credentials) -> Result<()> {
        if !self.has_file_caps(inode)? {
            return Ok(());
        }
        self.store_xattr(inode, (INDEX_SECURITY, FILE_CAPS), None, cred)
    }

    /// Sets or removes one attribute in a handle of its own. The caller holds the inode lock exclusively.
    pub(crate) fn store_xattr(
        &self,
        inode: &Inode,
        (index, name): (u8, &[u8]),
        value: Option<&[u8]>,
        cred: &Credentials,
    ) -> Result<()> {
        if value.is_some() {
            self.need_feature(LateFeature::ExtAttr)?;
        }
        // A store through a mapping would move content out of the attributes that the plan has read.
        let _first = inode.data.get().map(|data| data.pages.lock_inline());
        let plan = self.plan_xattr(inode, (index, name), value, cred)?;
        let mut handle = self.start_data(inode, plan.credits() + 1)?;
        let done = self.apply_xattr(&mut handle, inode, plan);
        if index == INDEX_SECURITY {
            inode.no_file_caps.store(false, Ordering::Release);
        }
        self.finish(handle, done, inode)
    }

    fn may_change_xattr(&self, inode: &Inode, index: u8, name: &[u8], cred: &Credentials) -> Result<()> {
        let flags = inode.flags();
        if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        match index {
            INDEX_TRUSTED if !cred.has(Caps::SYS_ADMIN) => Err(Error::NotPermitted),
            INDEX_SECURITY => {
                let needed = if name == FILE_CAPS { Caps::SETFCAP } else { Caps::SYS_ADMIN };
                if cred.has(needed) { Ok(()) } else { Err(Error::NotPermitted) }
            }
            INDEX_USER => {
                if !matches!(inode.kind(), FileType::Regular | FileType::Directory) {
                    return Err(Error::NotPermitted);
                }
                let (mode, uid) = {
                    let state = inode.state();
                    (state.raw.mode, state.raw.uid)
                };
                if inode.is_dir() && mode & 0o1000 != 0 && !cred.owns(uid) {
                    return Err(Error::NotPermitted);
                }
                self.permission(inode, Access::WRITE, cred)
            }
            _ => Ok(()),
        }
    }
}
