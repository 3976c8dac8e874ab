//! Encodings, validity, and the algorithm of acl(5).

use super::{Acl, AclEntry, AclError, Subject, Tag};
use crate::testing::Rng;
use std::vec;
use std::vec::Vec;

fn entry(tag: Tag, perm: u8) -> AclEntry {
    AclEntry { tag, perm }
}

fn sample() -> Acl {
    Acl::new(vec![
        entry(Tag::UserObj, 7),
        entry(Tag::User(1000), 6),
        entry(Tag::User(1001), 0),
        entry(Tag::GroupObj, 5),
        entry(Tag::Group(50), 7),
        entry(Tag::Mask, 5),
        entry(Tag::Other, 0),
    ])
    .unwrap()
}

#[test]
fn both_encodings_round_trip() {
    let acl = sample();
    assert_eq!(Acl::from_disk(&acl.to_disk()).unwrap().unwrap(), acl);
    assert_eq!(Acl::from_xattr(&acl.to_xattr()).unwrap().unwrap(), acl);
    assert_eq!(acl.to_disk().len(), 4 + 4 * 4 + 3 * 8);
    assert_eq!(acl.to_xattr().len(), 4 + 7 * 8);
    assert_eq!(Acl::from_disk(&[1, 0, 0, 0]).unwrap(), None);
    assert_eq!(Acl::from_xattr(&[2, 0, 0, 0]).unwrap(), None);
}

#[test]
fn each_fault_has_its_error() {
    let acl = |entries: &[AclEntry]| Acl::new(entries.to_vec()).unwrap_err();
    let (owner, group, other) = (entry(Tag::UserObj, 7), entry(Tag::GroupObj, 5), entry(Tag::Other, 0));
    assert_eq!(acl(&[owner, group]), AclError::Missing);
    assert_eq!(acl(&[owner, entry(Tag::User(1), 7), group, other]), AclError::Missing);
    assert_eq!(acl(&[group, owner, other]), AclError::Order(1));
    assert_eq!(acl(&[owner, owner, group, other]), AclError::Order(1));
    assert_eq!(acl(&[owner, entry(Tag::User(u32::MAX), 7), group, other]), AclError::Id(1));
    assert_eq!(acl(&[entry(Tag::UserObj, 8), group, other]), AclError::Perm { index: 0, perm: 8 });
    assert_eq!(Acl::from_disk(&[2, 0, 0, 0]), Err(AclError::Version(2)));
    assert_eq!(Acl::from_disk(&[1, 0, 0]), Err(AclError::Truncated(3)));
    assert_eq!(Acl::from_disk(&[1, 0, 0, 0, 3, 0, 0, 0]), Err(AclError::Tag { index: 0, tag: 3 }));
    assert_eq!(Acl::from_disk(&[1, 0, 0, 0, 2, 0, 0, 0]), Err(AclError::Truncated(8)));
}

#[test]
fn lists_and_modes() {
    let mut acl = sample();
    assert_eq!(acl.equiv_mode(), (0o750, false));
    acl.chmod(0o623);
    assert_eq!(acl.equiv_mode(), (0o623, false));
    assert_eq!(acl.entries()[3], entry(Tag::GroupObj, 5), "the group's own entry stays");
    assert_eq!(Acl::from_mode(0o644).equiv_mode(), (0o644, true));
    let mut default = sample();
    assert_eq!(default.create_masq(0o100_666), (0o100_640, true));
    assert_eq!(default.equiv_mode().0, 0o640);
    let mut minimal = Acl::from_mode(0o775);
    assert_eq!(minimal.create_masq(0o640), (0o640, false));
}

#[test]
fn the_access_algorithm() {
    let acl = sample();
    let who = |uid, gid| Subject { uid, gid, groups: &[] };
    let may = |uid, gid, want| acl.permits(&who(uid, gid), 5, 6, want);
    assert!(may(5, 0, 7), "owner, not limited by the mask");
    assert!(may(1000, 0, 4) && !may(1000, 0, 2), "named user, limited by the mask");
    assert!(!may(1001, 6, 4), "a named user is not helped by the group");
    assert!(may(9, 6, 5) && !may(9, 6, 2), "group");
    assert!(may(9, 50, 5) && !may(9, 50, 7), "named group, limited by the mask");
    assert!(!may(9, 9, 4), "other");
    let groups = Subject { uid: 9, gid: 9, groups: &[50] };
    assert!(acl.permits(&groups, 5, 6, 1));
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    for _ in 0..50_000 {
        let len = rng.below(70);
        let mut bytes: Vec<u8> = if rng.chance(2) { rng.bytes(len) } else { sample().to_disk() };
        if !bytes.is_empty() {
            rng.mutate(&mut bytes);
        }
        for acl in [Acl::from_disk(&bytes), Acl::from_xattr(&bytes)].into_iter().flatten().flatten() {
            assert_eq!(Acl::from_disk(&acl.to_disk()).unwrap().unwrap(), acl);
        }
    }
}
