//! POSIX access control lists: ext4's compact encoding, the `system.posix_acl_*` encoding of programs, and what a list
//! means for permissions.
//!
//! On disk (attribute indexes 2 and 3): `a_version` = 1 (32 bits), then per entry `e_tag` and `e_perm` (16 bits each), and
//! `e_id` (32 bits) for named users and groups only. Programs pass version 2 and always an id.
//!
//! Sources: acl(5), acl_valid(3), kernel documentation `filesystems/ext4/attributes.rst`; layout confirmed with setfacl on
//! a kernel mount.

use alloc::vec::Vec;
use thiserror::Error;

/// `a_version` of the stored form.
const DISK_VERSION: u32 = 1;
/// `a_version` of the form that programs pass.
const XATTR_VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Whom an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Tag {
    /// The file's owner.
    UserObj,
    /// The user with this id.
    User(u32),
    /// The file's group.
    GroupObj,
    /// The group with this id.
    Group(u32),
    /// The most that named users and any group may get.
    Mask,
    /// Everyone else.
    Other,
}

impl Tag {
    fn from_raw(raw: u16, id: u32) -> Option<Self> {
        Some(match raw {
            0x01 => Self::UserObj,
            0x02 => Self::User(id),
            0x04 => Self::GroupObj,
            0x08 => Self::Group(id),
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return None,
        })
    }

    const fn raw(self) -> (u16, Option<u32>) {
        match self {
            Self::UserObj => (0x01, None),
            Self::User(id) => (0x02, Some(id)),
            Self::GroupObj => (0x04, None),
            Self::Group(id) => (0x08, Some(id)),
            Self::Mask => (0x10, None),
            Self::Other => (0x20, None),
        }
    }

    /// Place in a valid list.
    const fn rank(self) -> u8 {
        match self {
            Self::UserObj => 0,
            Self::User(_) => 1,
            Self::GroupObj => 2,
            Self::Group(_) => 3,
            Self::Mask => 4,
            Self::Other => 5,
        }
    }
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclEntry {
    /// Whom it is for.
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub perm: u8,
}

/// Why bytes or entries are no access control list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AclError {
    /// The version is not the one of this encoding.
    #[error("access control list has version {0}")]
    Version(u32),
    /// The bytes end within an entry.
    #[error("access control list of {0} bytes ends within an entry")]
    Truncated(usize),
    /// The tag has no meaning.
    #[error("access control list entry {index} has unknown tag {tag:#x}")]
    Tag {
        /// Of the entry.
        index: usize,
        /// The tag.
        tag: u16,
    },
    /// Bits other than read, write, execute.
    #[error("access control list entry {index} has permissions {perm:#x}")]
    Perm {
        /// Of the entry.
        index: usize,
        /// The permissions.
        perm: u16,
    },
    /// A named entry whose id is that of nobody.
    #[error("access control list entry {0} has an invalid id")]
    Id(usize),
    /// Entries out of order, or one that may be there once only is there twice.
    #[error("access control list entry {0} is out of place")]
    Order(usize),
    /// Owner, group or other is missing, or the mask is although there are named entries.
    #[error("access control list lacks a required entry")]
    Missing,
}

/// A valid access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

impl Acl {
    /// A list of these entries.
    ///
    /// # Errors
    /// An [`AclError`] for what makes it invalid.
    pub fn new(entries: Vec<AclEntry>) -> Result<Self, AclError> {
        let mut last = None;
        let mut seen = [false; 6];
        for (index, entry) in entries.iter().enumerate() {
            if entry.perm > 7 {
                return Err(AclError::Perm { index, perm: u16::from(entry.perm) });
            }
            if matches!(entry.tag, Tag::User(NO_ID) | Tag::Group(NO_ID)) {
                return Err(AclError::Id(index));
            }
            let rank = entry.tag.rank();
            let named = matches!(rank, 1 | 3);
            if last.is_some_and(|l| rank < l || (rank == l && !named)) {
                return Err(AclError::Order(index));
            }
            seen[usize::from(rank)] = true;
            last = Some(rank);
        }
        let [owner, users, group, groups, mask, other] = seen;
        if !(owner && group && other) || ((users || groups) && !mask) {
            return Err(AclError::Missing);
        }
        Ok(Self { entries })
    }

    /// The list that says the same as the permission bits of `mode`.
    #[must_use]
    pub fn from_mode(mode: u16) -> Self {
        let entry = |tag, shift: u16| AclEntry { tag, perm: (mode >> shift & 7) as u8 };
        Self { entries: [entry(Tag::UserObj, 6), entry(Tag::GroupObj, 3), entry(Tag::Other, 0)].to_vec() }
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// Reads the stored form. `None` for a list without entries, which means the same as none at all.
    ///
    /// # Errors
    /// An [`AclError`] for what makes it invalid.
    pub fn from_disk(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let mut rest = versioned(bytes, DISK_VERSION)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let named = matches!(rest.first(), Some(0x02 | 0x08)) && rest.get(1) == Some(&0);
            let len = if named { 8 } else { 4 };
            let entry = rest.get(..len).ok_or(AclError::Truncated(bytes.len()))?;
            let id = if named { u32_at(entry, 4) } else { NO_ID };
            entries.push(decode(entries.len(), entry, id)?);
            rest = &rest[len..];
        }
        if entries.is_empty() { Ok(None) } else { Self::new(entries).map(Some) }
    }

    /// Reads the form that programs pass to setxattr. `None` for a list without entries: it removes.
    ///
    /// # Errors
    /// An [`AclError`] for what makes it invalid.
    pub fn from_xattr(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let rest = versioned(bytes, XATTR_VERSION)?;
        if !rest.len().is_multiple_of(8) {
            return Err(AclError::Truncated(bytes.len()));
        }
        let entry = |(n, e)| decode(n, e, u32_at(e, 4));
        let entries: Vec<_> = rest.chunks_exact(8).enumerate().map(entry).collect::<Result<_, _>>()?;
        if entries.is_empty() { Ok(None) } else { Self::new(entries).map(Some) }
    }

    /// The stored form.
    #[must_use]
    pub fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (tag, id) = entry.tag.raw();
            bytes.extend(tag.to_le_bytes());
            bytes.extend(u16::from(entry.perm).to_le_bytes());
            bytes.extend(id.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes
    }

    /// The form that getxattr gives to programs.
    #[must_use]
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (tag, id) = entry.tag.raw();
            bytes.extend(tag.to_le_bytes());
            bytes.extend(u16::from(entry.perm).to_le_bytes());
            bytes.extend(id.unwrap_or(NO_ID).to_le_bytes());
        }
        bytes
    }

    fn perm_of(&self, tag: Tag) -> Option<u8> {
        self.entries.iter().find(|e| e.tag == tag).map(|e| e.perm)
    }

    fn entry_mut(&mut self, tag: Tag) -> Option<&mut AclEntry> {
        self.entries.iter_mut().find(|e| e.tag == tag)
    }

    /// The permission bits (0o777) that an inode with this list shows, and whether they say all of it: then the list
    /// need not be stored.
    #[must_use]
    pub fn equiv_mode(&self) -> (u16, bool) {
        let bits = |tag| u16::from(self.perm_of(tag).unwrap_or(0));
        let group = self.perm_of(Tag::Mask).map_or_else(|| bits(Tag::GroupObj), u16::from);
        let minimal = self.entries.len() == 3;
        ((bits(Tag::UserObj) << 6) | (group << 3) | bits(Tag::Other), minimal)
    }

    /// What chmod to `mode` makes of the list: owner, other, and the mask (or, without one, the group) take its bits.
    pub fn chmod(&mut self, mode: u16) {
        let group = if self.perm_of(Tag::Mask).is_some() { Tag::Mask } else { Tag::GroupObj };
        for (tag, shift) in [(Tag::UserObj, 6), (group, 3), (Tag::Other, 0)] {
            if let Some(entry) = self.entry_mut(tag) {
                entry.perm = (mode >> shift & 7) as u8;
            }
        }
    }

    /// Turns a directory's default list into the access list of a file that is created with `mode`: each limits the
    /// other. Returns the file's mode (other bits than 0o777 as they were), and whether the list must be stored.
    #[must_use]
    pub fn create_masq(&mut self, mode: u16) -> (u16, bool) {
        let group = if self.perm_of(Tag::Mask).is_some() { Tag::Mask } else { Tag::GroupObj };
        let mut result = mode & !0o777;
        for (tag, shift) in [(Tag::UserObj, 6), (group, 3), (Tag::Other, 0)] {
            if let Some(entry) = self.entry_mut(tag) {
                entry.perm &= (mode >> shift & 7) as u8;
                result |= u16::from(entry.perm) << shift;
            }
        }
        (result, self.entries.len() > 3)
    }

    /// Whether the list grants `want` (read 4, write 2, execute 1) to `who` on a file of `owner` and `group`. Privileges
    /// are the caller's business.
    #[must_use]
    pub fn permits(&self, who: &Subject<'_>, owner: u32, group: u32, want: u8) -> bool {
        let mask = self.perm_of(Tag::Mask).unwrap_or(7);
        if who.uid == owner {
            return self.perm_of(Tag::UserObj).is_some_and(|p| p & want == want);
        }
        if let Some(perm) = self.perm_of(Tag::User(who.uid)) {
            return perm & mask & want == want;
        }
        let mut in_a_group = false;
        for entry in &self.entries {
            let matches = match entry.tag {
                Tag::GroupObj => who.is_member(group),
                Tag::Group(gid) => who.is_member(gid),
                _ => false,
            };
            in_a_group |= matches;
            if matches && entry.perm & mask & want == want {
                return true;
            }
        }
        !in_a_group && self.perm_of(Tag::Other).is_some_and(|p| p & want == want)
    }
}

/// Who asks for access.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

impl Subject<'_> {
    fn is_member(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

fn versioned(bytes: &[u8], version: u32) -> Result<&[u8], AclError> {
    if bytes.len() < 4 {
        return Err(AclError::Truncated(bytes.len()));
    }
    let found = u32_at(bytes, 0);
    if found == version { Ok(&bytes[4..]) } else { Err(AclError::Version(found)) }
}

fn decode(index: usize, bytes: &[u8], id: u32) -> Result<AclEntry, AclError> {
    let (tag, perm) = (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]));
    let tag = Tag::from_raw(tag, id).ok_or(AclError::Tag { index, tag })?;
    if perm > 7 {
        return Err(AclError::Perm { index, perm });
    }
    Ok(AclEntry { tag, perm: perm as u8 })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests;
