use std::io::Read as _;
use std::path::Path;

use tar::{EntryType, Header};

use super::super::Unpacked;
use super::*;

/// A header with its checksum.
fn header(kind: EntryType, path: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_cksum();
    header
}

/// A header and its content.
fn item(header: &Header, content: &[u8]) -> Vec<u8> {
    let mut bytes = [header.as_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pax_item(kind: EntryType, records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let body: Vec<u8> = records.iter().flat_map(|(key, value)| pax::record(key, value)).collect();
    item(&header(kind, b"pax", body.len() as u64), &body)
}

fn file(records: &[(&[u8], &[u8])], path: &[u8], content: &[u8]) -> Vec<u8> {
    let member = item(&header(EntryType::Regular, path, content.len() as u64), content);
    [pax_item(EntryType::XHeader, records), member].concat()
}

fn members(bytes: &[u8]) -> Members<Unpacked<'_>> {
    Members::new(Unpacked::new(Box::new(bytes)).unwrap(), Path::new("archive"), true)
}

/// Members and their contents.
fn all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>> {
    let (mut members, mut found) = (members(bytes), Vec::new());
    while let Some(member) = members.next_member()? {
        let mut content = Vec::new();
        members.read_to_end(&mut content).unwrap();
        found.push((member, content));
    }
    Ok(found)
}

fn error(bytes: &[u8]) -> String {
    all(bytes).unwrap_err().to_string()
}

#[test]
fn a_piece_of_a_value_is_no_record() {
    // To a reader of lines the value holds a path, a size and an owner.
    let mut value: Vec<u8> = b"\n13 path=evil\n9 size=0\n9 uid=77\n".to_vec();
    value.extend(0..=255);
    let bytes = file(&[(b"SCHILY.xattr.user.x", &value), (b"mtime", b"-1.5")], b"name", b"content");
    let bytes = [bytes, file(&[], b"next", b"")].concat();
    let found = all(&bytes).unwrap();
    let (member, content) = &found[0];
    assert_eq!(
        (&member.path[..], member.uid, member.size, &content[..]),
        (&b"name"[..], 1, 7, &b"content"[..])
    );
    assert_eq!(member.xattrs, [(b"user.x".to_vec(), value)]);
    assert_eq!(member.mtime, Timestamp { sec: -2, nsec: 500_000_000 });
    assert_eq!(found[1].0.path, b"next");
}

#[test]
fn records_count_more_than_headers_and_later_ones_more() {
    let global = pax_item(EntryType::XGlobalHeader, &[(b"uid", b"10"), (b"gid", b"20"), (b"mtime", b"7")]);
    let long = vec![b'n'; 300];
    let own =
        file(&[(b"uid", b"11"), (b"uid", b"4000000000"), (b"mtime", b""), (b"path", &long)], b"short", b"");
    let found = all(&[global, own, file(&[], b"second", b"")].concat()).unwrap();
    let (first, second) = (&found[0].0, &found[1].0);
    assert_eq!((&first.path, first.uid, first.gid, first.mtime.sec), (&long, 4_000_000_000, 20, 3));
    assert_eq!((&second.path[..], second.uid, second.gid, second.mtime.sec), (&b"second"[..], 10, 20, 7));
    // A size of records: the content is that long, whatever the header says.
    let mut lying = file(&[(b"size", b"600")], b"large", &[7; 600]);
    let at = lying.len() - 1024 - 512;
    lying[at..at + 512].copy_from_slice(header(EntryType::Regular, b"large", 0).as_bytes());
    let found = all(&[lying, file(&[], b"next", b"")].concat()).unwrap();
    assert_eq!((found[0].1.len(), &found[1].0.path[..]), (600, &b"next"[..]));
}

#[test]
fn lists_are_attributes_and_the_mode() {
    let acl = b"user::rwx\nuser:12:r--\ngroup::---\nmask::rw-\nother::--x\n\n";
    let bytes = [
        file(&[(pax::ACL_ACCESS, acl)], b"list", b""),
        file(&[(pax::ACL_ACCESS, b"user::rw-\ngroup::r--\nother::---\n")], b"mode", b""),
        file(
            &[(pax::ACL_ACCESS, b"user:no such:r"), (b"SCHILY.xattr.system.posix_acl_access", b"x")],
            b"a",
            b"",
        ),
    ];
    let found = all(&bytes.concat()).unwrap();
    assert_eq!(found[0].0.mode, 0o761);
    let list = Acl::from_xattr(&found[0].0.xattrs[0].1).unwrap().unwrap();
    assert_eq!(list.entries().len(), 5);
    assert_eq!((found[1].0.mode, found[1].0.xattrs.len()), (0o640, 0));
    // The attribute needs no names.
    assert_eq!(found[2].0.xattrs, [(b"system.posix_acl_access".to_vec(), b"x".to_vec())]);
    let unknown = file(&[(pax::ACL_ACCESS, b"u::rw,g::r,o::r,m::r,user:no-such-user:r")], b"member", b"");
    let err = error(&unknown);
    assert!(err.contains("member") && err.contains("'no-such-user'") && err.contains("/etc/passwd"), "{err}");
    let mut without =
        Members::new(Unpacked::new(Box::new(&unknown[..])).unwrap(), Path::new("archive"), false);
    assert!(without.next_member().unwrap().unwrap().xattrs.is_empty());
}

#[test]
fn the_old_map_of_holes() {
    let mut gnu = Header::new_gnu();
    gnu.set_entry_type(EntryType::GNUSparse);
    for (set, value) in
        [(Header::set_uid as fn(&mut Header, u64), 1), (Header::set_gid, 2), (Header::set_mtime, 3)]
    {
        set(&mut gnu, value);
    }
    gnu.set_mode(0o600);
    gnu.set_size(12);
    gnu.as_old_mut().name[..5].copy_from_slice(b"holes");
    let own = gnu.as_gnu_mut().unwrap();
    own.set_real_size(1 << 40);
    own.sparse[0].set_offset(4096);
    own.sparse[0].set_length(5);
    own.set_is_extended(true);
    gnu.set_cksum();
    let mut block = GnuExtSparseHeader::new();
    block.sparse_mut()[0].set_offset(1 << 30);
    block.sparse_mut()[0].set_length(7);
    let bytes = [gnu.as_bytes(), &block.as_bytes()[..], b"hellohellooo"].concat();
    let padded = [bytes, vec![0; 500], file(&[], b"next", b"")].concat();
    let found = all(&padded).unwrap();
    let (member, content) = &found[0];
    let data: Vec<_> = member.data.iter().flatten().map(|d| (d.offset, d.len, d.before)).collect();
    assert_eq!(data, [(4096, 5, 0), (1 << 30, 7, 5)]);
    assert_eq!((member.size, member.offset, member.stored, content.len()), (1 << 40, 1024, 12, 12));
    assert_eq!(found[1].0.path, b"next");
}

#[test]
fn what_cannot_be_is_refused() {
    for (bytes, said) in [
        (b"some text, and no archive".to_vec(), "ends within a header"),
        (vec![b'x'; 512], "checksum"),
        (item(&header(EntryType::XHeader, b"pax", 4), b"junk"), "malformed"),
        (pax_item(EntryType::XHeader, &[(b"path", b"x")]), "behind a header"),
        (file(&[(b"path", b"a\0b")], b"a", b""), "zero byte"),
        (file(&[(b"SCHILY.xattr.user.\0", b"")], b"a", b""), "zero byte"),
        (file(&[(b"uid", b"4294967296")], b"member", b""), "member: its uid '4294967296'"),
        (file(&[(b"mtime", b"noon")], b"member", b""), "member: its mtime 'noon'"),
        (file(&[(b"size", b"18446744073709551615")], b"member", b""), "cannot be"),
        (item(&header(EntryType::Symlink, b"l", 0), b""), "without a target"),
        (item(&header(EntryType::new(b'V'), b"volume", 0), b""), "'V'"),
        (header(EntryType::XHeader, b"pax", 1 << 32).as_bytes().to_vec(), "headers of"),
        (header(EntryType::GNULongName, b"pax", 600).as_bytes().to_vec(), "ends within"),
    ] {
        let err = error(&bytes);
        assert!(err.contains(said), "{said}: {err}");
    }
    let whole = file(&[], b"member", &[1; 600]);
    assert!(error(&whole[..whole.len() - 512]).contains("ends within a member"));
}

#[test]
fn further_names_have_no_content() {
    // Some programs repeat the file's size there.
    let mut link = header(EntryType::Link, b"second", 600);
    link.as_old_mut().linkname[..5].copy_from_slice(b"first");
    link.set_cksum();
    let found = all(&[item(&link, b""), file(&[], b"dir/", b"")].concat()).unwrap();
    assert_eq!((found[0].0.kind, &found[0].0.link[..]), (MemberKind::Link, &b"first"[..]));
    assert_eq!(found[1].0.kind, MemberKind::Directory);
}
