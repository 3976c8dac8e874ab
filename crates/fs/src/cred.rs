//! Who asks: ids, groups, capabilities; and what mode bits and ACLs let them do.

use std::sync::Arc;

/// Capabilities of a caller that the filesystem looks at (capabilities(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps(u16);

impl Caps {
    /// None.
    pub const NONE: Self = Self(0);
    /// `CAP_CHOWN`: change owner and group at will.
    pub const CHOWN: Self = Self(1);
    /// `CAP_DAC_OVERRIDE`: no permission checks (except execution of what nobody may execute).
    pub const DAC_OVERRIDE: Self = Self(1 << 1);
    /// `CAP_DAC_READ_SEARCH`: read anything, search any directory.
    pub const DAC_READ_SEARCH: Self = Self(1 << 2);
    /// `CAP_FOWNER`: act as every file's owner.
    pub const FOWNER: Self = Self(1 << 3);
    /// `CAP_FSETID`: keep set-id bits.
    pub const FSETID: Self = Self(1 << 4);
    /// `CAP_LINUX_IMMUTABLE`: set the immutable and append-only flags.
    pub const LINUX_IMMUTABLE: Self = Self(1 << 5);
    /// `CAP_SYS_RESOURCE`: use reserved blocks, exceed quotas, set the journal-data flag.
    pub const SYS_RESOURCE: Self = Self(1 << 6);
    /// `CAP_SYS_ADMIN`: trusted attributes, shutdown, generation.
    pub const SYS_ADMIN: Self = Self(1 << 7);
    /// `CAP_MKNOD`: make device nodes.
    pub const MKNOD: Self = Self(1 << 8);
    /// `CAP_SETFCAP`: set `security.capability`.
    pub const SETFCAP: Self = Self(1 << 9);
    /// All of them.
    pub const ALL: Self = Self((1 << 10) - 1);

    /// Whether all of `other` are in `self`.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The ids and rights an operation is done with.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// User id: owner of what is created, and who is asked for in permission checks.
    pub uid: u32,
    /// Group id: group of what is created, unless the directory decides.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Option<Arc<[u32]>>,
    /// Capabilities.
    pub caps: Caps,
    /// Mode bits withheld at creation, where no default ACL decides.
    pub umask: u16,
    /// Somebody above (the kernel's VFS in a mount with `default_permissions`) has made the access decisions:
    /// mode bits and ACLs are not asked again. Everything else (set-id bits, reserved blocks) follows the ids.
    pub access_checked: bool,
}

impl Credentials {
    /// The superuser, umask 022.
    #[must_use]
    pub const fn root() -> Self {
        Self { uid: 0, gid: 0, groups: None, caps: Caps::ALL, umask: 0o022, access_checked: false }
    }

    /// An ordinary user without capabilities, umask 022; user 0 has all capabilities.
    #[must_use]
    pub fn user(uid: u32, gid: u32, groups: &[u32]) -> Self {
        let caps = if uid == 0 { Caps::ALL } else { Caps::NONE };
        let groups = if groups.is_empty() { None } else { Some(groups.into()) };
        Self { uid, gid, groups, caps, umask: 0o022, access_checked: false }
    }

    /// A caller whose access the kernel has checked already; only ids are known. User 0 has all capabilities.
    #[must_use]
    pub const fn checked(uid: u32, gid: u32) -> Self {
        let caps = if uid == 0 { Caps::ALL } else { Caps::NONE };
        Self { uid, gid, groups: None, caps, umask: 0, access_checked: true }
    }

    /// The same with another umask.
    #[must_use]
    pub const fn with_umask(mut self, umask: u16) -> Self {
        self.umask = umask & 0o777;
        self
    }

    /// Whether `cap` is held.
    #[must_use]
    pub const fn has(&self, cap: Caps) -> bool {
        self.caps.has(cap)
    }

    /// Whether `gid` is the caller's group or one of the supplementary ones.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.as_ref().is_some_and(|g| g.contains(&gid))
    }

    /// Whether the caller owns a file of `uid` or may act as if.
    #[must_use]
    pub const fn owns(&self, uid: u32) -> bool {
        self.uid == uid || self.has(Caps::FOWNER)
    }

    /// Whether set-group-id may stay on a file of group `gid` that the caller changes.
    #[must_use]
    pub fn may_keep_setgid(&self, gid: u32) -> bool {
        // Where the kernel checked access it also told us to clear the bit if it must be (KILL_SUIDGID); we do
        // not know the supplementary groups and must not guess from the main one.
        self.access_checked || self.has(Caps::FSETID) || self.in_group(gid)
    }
}

/// What is wanted of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(pub u8);

impl Access {
    /// Execute a file, search a directory.
    pub const EXEC: Self = Self(1);
    /// Write.
    pub const WRITE: Self = Self(2);
    /// Read.
    pub const READ: Self = Self(4);
    /// Read and write.
    pub const READ_WRITE: Self = Self(6);
    /// Write and search: what changing a directory's names needs.
    pub const WRITE_EXEC: Self = Self(3);

    /// Whether `self` asks for all of `other`.
    #[must_use]
    pub const fn wants(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether permission bits `rwx` (4, 2, 1) grant all of `self`.
    #[must_use]
    pub const fn granted_by(self, rwx: u16) -> bool {
        (rwx as u8) & self.0 == self.0
    }
}

impl Credentials {
    /// The mode bits' answer for a file of `uid`, `gid`, `mode` that has no ACL: one class of bits decides alone.
    #[must_use]
    pub fn granted_by_mode(&self, uid: u32, gid: u32, mode: u16, want: Access) -> bool {
        let bits = if self.uid == uid {
            mode >> 6
        } else if self.in_group(gid) {
            mode >> 3
        } else {
            mode
        };
        want.granted_by(bits & 7)
    }

    /// Whether capabilities grant what mode bits or an ACL refused.
    #[must_use]
    pub const fn granted_by_caps(&self, is_dir: bool, mode: u16, want: Access) -> bool {
        if is_dir {
            if self.has(Caps::DAC_OVERRIDE) {
                return true;
            }
            return !want.wants(Access::WRITE) && self.has(Caps::DAC_READ_SEARCH);
        }
        if want.0 == Access::READ.0 && self.has(Caps::DAC_READ_SEARCH) {
            return true;
        }
        // Nobody executes what has no execute bit at all.
        (!want.wants(Access::EXEC) || mode & 0o111 != 0) && self.has(Caps::DAC_OVERRIDE)
    }
}

#[cfg(test)]
mod tests;
