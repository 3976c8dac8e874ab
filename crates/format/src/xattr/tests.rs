//! Areas against a model, against hostile bytes, and against what debugfs and the kernel wrote (in the checker's tests).

use super::{
    Area, AreaKind, AttrSet, BlockHeader, Value, XattrError, block_hash, entry_hash, entry_hash_ea_inode,
    full_name, list, set_block_checksum, set_refcount, split_name, verify_block,
};
use crate::testing::Rng;
use crate::types::{Ino, Pblk};
use std::collections::BTreeMap;
use std::string::String;
use std::vec;
use std::vec::Vec;

#[test]
fn names_split_and_join() {
    for (full, index, rest) in [
        ("user.a", 1, "a"),
        ("system.posix_acl_access", 2, ""),
        ("system.posix_acl_default", 3, ""),
        ("trusted.overlay.opaque", 4, "overlay.opaque"),
        ("security.selinux", 6, "selinux"),
        ("system.data", 7, "data"),
    ] {
        assert_eq!(split_name(full.as_bytes()), Some((index, rest.as_bytes())));
        assert_eq!(full_name(index, rest.as_bytes()).as_deref(), Some(full));
    }
    assert_eq!(split_name(b"user."), None);
    assert_eq!(split_name(b"os2.x"), None);
    assert_eq!(full_name(9, b"c"), None);
}

#[test]
fn areas_behave_like_maps() {
    let mut rng = Rng::from_env();
    for _ in 0..300 {
        let mut model: BTreeMap<(u8, Vec<u8>), Vec<u8>> = BTreeMap::new();
        let mut set = AttrSet::new();
        let (mut ibody, mut block) = (vec![0; 96], vec![0; 1024]);
        for _ in 0..40 {
            let key = (1 + rng.below(7) as u8, rng.name(6).into_bytes());
            if rng.chance(3) && !model.is_empty() {
                let victim = model.keys().nth(rng.below(model.len())).unwrap().clone();
                let value = model.remove(&victim).unwrap();
                assert_eq!(set.remove(victim.0, &victim.1), Some(Value::Inline(value)));
            } else {
                let len = rng.below(40);
                let value = rng.bytes(len);
                let old = set.set(key.0, &key.1, Value::Inline(value.clone())).unwrap();
                assert_eq!(old, model.insert(key, value).map(Value::Inline));
            }
            let fits = set.fits(AreaKind::Ibody, ibody.len());
            assert_eq!(set.write_ibody(&mut ibody).is_ok(), fits);
            if fits {
                compare(Area::ibody(&ibody).unwrap(), &model);
            }
            if set.write_block(&mut block, 1).is_ok() {
                compare(Some(Area::block(&block).unwrap()), &model);
            }
        }
    }
}

fn compare(area: Option<Area<'_>>, model: &BTreeMap<(u8, Vec<u8>), Vec<u8>>) {
    let Some(area) = area else {
        assert!(model.is_empty());
        return;
    };
    assert_eq!(area.overlap(), None);
    let found: BTreeMap<_, _> =
        area.entries().map(|e| ((e.index, e.name.to_vec()), e.value.to_vec())).collect();
    assert_eq!(&found, model);
    for ((index, name), value) in model {
        assert_eq!(area.find(*index, name).unwrap().value, value);
    }
    if area.kind() == AreaKind::Block {
        let key = |e: &super::Entry<'_>| (e.index, e.name.len(), e.name.to_vec());
        let keys: Vec<_> = area.entries().map(|e| key(&e)).collect();
        assert!(keys.is_sorted());
        assert!(area.entries().all(|e| e.hash == entry_hash(e.name, e.value, false)));
    }
}

#[test]
fn hashes_of_known_entries() {
    assert_ne!(entry_hash(b"\xff\xfe", b"", false), entry_hash(b"\xff\xfe", b"", true));
    assert_eq!(entry_hash_ea_inode(b"x", 0x1234, false), entry_hash(b"x", &0x1234_u32.to_le_bytes(), false));
    assert_eq!(block_hash([1, 0, 3]), 0);
    assert_eq!(block_hash([1, 2]), 0x0001_0002);
}

#[test]
fn values_in_inodes_keep_their_hash() {
    let mut set = AttrSet::new();
    let value = Value::EaInode { ino: Ino(77), size: 5000, hash: 0xabcd };
    set.set(1, b"big", value).unwrap();
    let mut block = vec![0; 1024];
    set.write_block(&mut block, 3).unwrap();
    let area = Area::block(&block).unwrap();
    let entry = area.find(1, b"big").unwrap();
    assert_eq!((entry.value_inum, entry.value_size, entry.value), (Ino(77), 5000, &[][..]));
    assert_eq!(entry.hash, entry_hash_ea_inode(b"big", 0xabcd, false));
    let mut again = AttrSet::from_area(&area);
    let mut copy = vec![0; 1024];
    again.write_block(&mut copy, 3).unwrap();
    assert_eq!(block, copy);
    assert_eq!(list(&area), [String::from("user.big")]);
}

#[test]
fn block_header_and_checksum() {
    let mut block = vec![0; 1024];
    AttrSet::new().write_block(&mut block, 1).unwrap();
    set_refcount(&mut block, 5).unwrap();
    assert_eq!(BlockHeader::read(&block).unwrap().refcount, 5);
    assert_eq!(set_refcount(&mut block, 0), Err(XattrError::Refcount(0)));
    set_block_checksum(9, Pblk(100), &mut block);
    verify_block(9, Pblk(100), &block).unwrap();
    assert!(verify_block(9, Pblk(101), &block).is_err());
}

#[test]
fn each_kind_of_damage_has_its_error() {
    let mut set = AttrSet::new();
    set.set(1, b"name", Value::Inline(vec![7; 20])).unwrap();
    let mut good = vec![0; 256];
    set.write_block(&mut good, 1).unwrap();
    let bad = |at: usize, bytes: &[u8]| {
        let mut block = good.clone();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        Area::block(&block).map(|_| ()).unwrap_err()
    };
    assert!(matches!(bad(0, &[1]), XattrError::Magic(_)));
    assert!(matches!(bad(8, &[2]), XattrError::Blocks(2)));
    assert!(matches!(bad(4, &[0]), XattrError::Refcount(0)));
    assert!(matches!(bad(32, &[250]), XattrError::EntryBounds(32)));
    assert!(matches!(bad(34, &[250]), XattrError::ValueBounds { .. }));
    assert!(matches!(bad(34, &[40]), XattrError::ValueBounds { .. }));
    assert!(matches!(bad(40, &[0xff, 0xff, 0xff, 0xff]), XattrError::ValueBounds { .. }));
    assert!(matches!(bad(36, &[9, 0, 0, 0, 0, 0, 0, 1]), XattrError::ValueSize { inum: 9, .. }));
    assert!(matches!(Area::block(&good[..20]), Err(XattrError::TooShort(20))));
    assert!(Area::ibody(&[1, 2, 3, 4, 0, 0, 0, 0]).unwrap().is_none());
}

#[test]
fn hostile_bytes_never_panic() {
    let mut rng = Rng::from_env();
    for _ in 0..30_000 {
        let len = [4, 32, 96, 256, 1024][rng.below(5)];
        let mut bytes = rng.bytes(len);
        let mut set = AttrSet::new();
        for _ in 0..rng.below(6) {
            let (index, name) = (rng.next() as u8 % 8, rng.name(9));
            let size = rng.below(30);
            set.set(index, name.as_bytes(), Value::Inline(rng.bytes(size))).unwrap();
        }
        let block = rng.chance(2);
        let _ = if block { set.write_block(&mut bytes, 1) } else { set.write_ibody(&mut bytes) };
        rng.mutate(&mut bytes);
        let area = if block { Area::block(&bytes).ok() } else { Area::ibody(&bytes).ok().flatten() };
        if let Some(area) = area {
            let _ = (area.overlap(), list(&area), area.find(1, b"x"));
            let mut again = AttrSet::from_area(&area);
            let mut copy = vec![0; 65536];
            let _ = (again.write_block(&mut copy, 1), again.write_ibody(&mut copy[..len]));
        }
        set_block_checksum(1, Pblk(1), &mut bytes);
        let _ = verify_block(1, Pblk(1), &bytes).is_ok() || bytes.len() < 32;
    }
}
