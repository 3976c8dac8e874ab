//! The prefixes of attribute names, and the bytes that stand for them.

use alloc::string::String;

/// `user.`
pub const INDEX_USER: u8 = 1;
/// `system.posix_acl_access`, the whole name.
pub const INDEX_POSIX_ACL_ACCESS: u8 = 2;
/// `system.posix_acl_default`, the whole name.
pub const INDEX_POSIX_ACL_DEFAULT: u8 = 3;
/// `trusted.`
pub const INDEX_TRUSTED: u8 = 4;
/// `security.`
pub const INDEX_SECURITY: u8 = 6;
/// `system.`; `system.data` holds inline data and is never shown.
pub const INDEX_SYSTEM: u8 = 7;
/// The encryption context; it has no name that a program could use.
pub const INDEX_ENCRYPTION: u8 = 9;

/// (index, prefix, the prefix is the whole name). Whole names come first, they win over their prefixes.
const PREFIXES: [(u8, &str, bool); 8] = [
    (INDEX_POSIX_ACL_ACCESS, "system.posix_acl_access", true),
    (INDEX_POSIX_ACL_DEFAULT, "system.posix_acl_default", true),
    (8, "system.richacl", true),
    (INDEX_USER, "user.", false),
    (INDEX_TRUSTED, "trusted.", false),
    (INDEX_SECURITY, "security.", false),
    (INDEX_SYSTEM, "system.", false),
    (10, "gnu.", false),
];

/// Splits a full attribute name into the index of its prefix and the rest, as they are stored. `None` for a
/// namespace that ext4 does not have, and for a prefix with nothing behind it.
#[must_use]
pub fn split_name(full: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(index, prefix, whole)| {
        let rest = full.strip_prefix(prefix.as_bytes())?;
        (rest.is_empty() == whole).then_some((index, rest))
    })
}

/// The full name of a stored entry; `None` for an index without a prefix. Bytes that are not UTF-8 are replaced.
#[must_use]
pub fn full_name(index: u8, name: &[u8]) -> Option<String> {
    let &(_, prefix, whole) = PREFIXES.iter().find(|p| p.0 == index)?;
    let mut full = String::from(prefix);
    if !whole {
        full.push_str(&String::from_utf8_lossy(name));
    }
    Some(full)
}
