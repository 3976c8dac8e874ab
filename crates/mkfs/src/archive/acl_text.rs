//! Access control lists as text: `user::rw-`, `user:NAME:r--`, `mask::r--`, …, one a line or separated by commas. A fourth
//! field is the id of the name (star writes it, GNU tar does not).

use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::PathBuf;

use extant_format::acl::{Acl, AclEntry, Tag};

/// Ids of names: those of this host, from its files, read when first needed. Directory services are not asked.
#[derive(Debug)]
pub(super) struct Names {
    users: Table,
    groups: Table,
}

#[derive(Debug)]
struct Table {
    file: PathBuf,
    ids: OnceCell<HashMap<String, u32>>,
}

impl Names {
    /// Those of `/etc/passwd` and `/etc/group`.
    pub(super) fn of_host() -> Self {
        let table = |file: &str| Table { file: file.into(), ids: OnceCell::new() };
        Self { users: table("/etc/passwd"), groups: table("/etc/group") }
    }
}

impl Table {
    fn id(&self, name: &str) -> Result<u32, String> {
        if self.ids.get().is_none() {
            let text = std::fs::read(&self.file).map_err(|e| format!("{}: {e}", self.file.display()))?;
            let _ = self.ids.set(ids(&String::from_utf8_lossy(&text)));
        }
        let found = self.ids.get().and_then(|ids| ids.get(name)).copied();
        found.ok_or_else(|| format!("{} does not have it", self.file.display()))
    }
}

/// `NAME:PASSWORD:ID:…` a line; the first of equal names counts.
fn ids(text: &str) -> HashMap<String, u32> {
    let mut found = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(id)) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok())) {
            found.entry(name.to_owned()).or_insert(id);
        }
    }
    found
}

/// A list from its text; `None` for a text without entries.
///
/// # Errors
/// What is wrong with it: a name that this host does not know, a text that is no list.
pub(super) fn from_text(text: &[u8], names: &Names) -> Result<Option<Acl>, String> {
    let text = String::from_utf8_lossy(text);
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let item = line.split('#').next().unwrap_or_default().trim();
        if !item.is_empty() {
            entries.push(entry(item, names)?);
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort_by_key(|e| e.tag);
    Acl::new(entries).map(Some).map_err(|e| e.to_string())
}

fn entry(item: &str, names: &Names) -> Result<AclEntry, String> {
    let bad = || format!("its access control list has '{item}', which is no entry");
    let fields: Vec<&str> = item.split(':').collect();
    let [kind, who, perms, rest @ ..] = fields.as_slice() else { return Err(bad()) };
    let id = |what: &str, table: &Table| {
        match rest.first().unwrap_or(who).parse::<u32>() {
        Ok(id) => Ok(id),
        Err(_) => table.id(who).map_err(|why| {
            format!(
                "its access control list is for the {what} '{who}', whose id is not known: {why}; leave it out, or \
                 archive it where the name is known with numbers (the list as an extended attribute has them)"
            )
        }),
    }
    };
    let tag = match (*kind, who.is_empty()) {
        ("user" | "u", true) => Tag::UserObj,
        ("user" | "u", false) => Tag::User(id("user", &names.users)?),
        ("group" | "g", true) => Tag::GroupObj,
        ("group" | "g", false) => Tag::Group(id("group", &names.groups)?),
        ("mask" | "m", _) => Tag::Mask,
        ("other" | "o", _) => Tag::Other,
        _ => return Err(bad()),
    };
    if !perms.chars().all(|c| "rwx-".contains(c)) {
        return Err(bad());
    }
    let bit = |c, b| if perms.contains(c) { b } else { 0 };
    Ok(AclEntry { tag, perm: bit('r', 4) | bit('w', 2) | bit('x', 1) })
}

/// A list as text, with numbers for names, one entry a line: GNU tar and star read it.
#[must_use]
pub fn acl_to_text(acl: &Acl) -> Vec<u8> {
    let mut text = String::new();
    for AclEntry { tag, perm } in acl.entries() {
        let who = match tag {
            Tag::UserObj => "user:".to_owned(),
            Tag::User(id) => format!("user:{id}"),
            Tag::GroupObj => "group:".to_owned(),
            Tag::Group(id) => format!("group:{id}"),
            Tag::Mask => "mask:".to_owned(),
            Tag::Other => "other:".to_owned(),
        };
        let bit = |bit, shown| if perm & bit != 0 { shown } else { '-' };
        text.extend([&who, ":"]);
        text.extend([bit(4, 'r'), bit(2, 'w'), bit(1, 'x'), '\n']);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let table = |text| {
            let cell = OnceCell::new();
            cell.set(ids(text)).unwrap();
            Table { file: "a file".into(), ids: cell }
        };
        Names {
            users: table("root:x:0:0:root:/root:/bin/sh\nlisa:x:1001:1001::/:/bin/sh\nlisa:x:7:7::/:/\n#\n"),
            groups: table("bin:x:2:\n"),
        }
    }

    #[test]
    fn lists_survive_their_text() {
        let text = b"user::rw-\nuser:12:r--\nuser:1001:r-x\ngroup::---\ngroup:2:--x\nmask::rwx\nother::-w-\n";
        let acl = from_text(text, &names()).unwrap().unwrap();
        assert_eq!(acl_to_text(&acl), text);
        // Names, commas, short words, comments, star's ids, any order.
        let same = b"u::rw,g::-,o::w,m::rwx,user:lisa:rx #effective:r-x\n g:bin:x,user:nobody-here:r:12";
        assert_eq!(from_text(same, &names()).unwrap().unwrap(), acl);
        assert_eq!(from_text(b"\n", &names()), Ok(None));
    }

    #[test]
    fn what_is_no_list_is_said() {
        for (text, said) in [
            (&b"user::rw-,user:nobody-here:r--,group::r--,mask::r--,other::r--"[..], "'nobody-here'"),
            (b"user::rw-,group:lisa:r--,group::r--,mask::r--,other::r--", "'lisa'"),
            (b"user::rw-,group::r--,other::rq-", "'other::rq-'"),
            (b"user::rw-,owner::r--,other::r--", "'owner::r--'"),
            (b"user:rw-", "'user:rw-'"),
            (b"user::rw-,user:12:r--,group::r--,other::r--", "required"),
        ] {
            let err = from_text(text, &names()).unwrap_err();
            assert!(err.contains(said), "{err}");
        }
    }
}
