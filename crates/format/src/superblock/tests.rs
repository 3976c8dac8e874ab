use super::*;
use crate::test_support::{raw_superblock, superblock};

fn refused(change: impl FnOnce(&mut RawSuperblock)) -> Corrupt {
    let mut raw = raw_superblock();
    change(&mut raw);
    match Superblock::from_raw(raw).unwrap_err() {
        FormatError::Corrupt { place: Place::Superblock, kind } => kind,
        other => panic!("{other}"),
    }
}

fn bytes_of(raw: &mut RawSuperblock) -> [u8; SUPERBLOCK_SIZE] {
    raw.update_checksum();
    *raw.as_bytes().first_chunk().unwrap()
}

#[test]
fn reads_back_what_it_wrote() {
    let mut sb = superblock(|_| ());
    sb.set_label(b"a label").unwrap();
    sb.set_last_mounted(b"/mnt/somewhere");
    sb.set_time(SbTime::Mount, 0x12_3456_789a);
    sb.set_state(State::VALID | State::ORPHAN);
    sb.set_errors(ErrorPolicy::Panic);
    sb.set_free_blocks(17);
    let back = Superblock::read(&sb.encode()).unwrap();
    assert_eq!(back.label(), b"a label");
    assert_eq!(back.last_mounted(), b"/mnt/somewhere");
    assert_eq!(back.time(SbTime::Mount), 0x12_3456_789a);
    assert_eq!(back.state(), State::VALID | State::ORPHAN);
    assert_eq!(back.errors(), ErrorPolicy::Panic);
    assert_eq!(back.free_blocks(), 17);
    assert!(sb.set_label(&[b'x'; 17]).is_err());
}

#[test]
fn bytes_that_are_no_superblock() {
    let short = Superblock::read(&[0; 1023]).unwrap_err();
    assert!(matches!(short, FormatError::Corrupt { kind: Corrupt::Short { have: 1023, need: 1024 }, .. }));
    let magic = Superblock::read(&[0; 1024]).unwrap_err();
    assert!(matches!(
        magic,
        FormatError::Corrupt { kind: Corrupt::Magic { found: 0, expected: 0xef53 }, .. }
    ));
    let mut bytes = bytes_of(&mut raw_superblock());
    bytes[0x78] ^= 1;
    assert!(matches!(Superblock::read(&bytes).unwrap_err(), FormatError::Checksum { .. }));
    let mut raw = raw_superblock();
    raw.s_checksum_type = 2;
    let kind = Superblock::read(&bytes_of(&mut raw)).unwrap_err();
    let wrong = Corrupt::Mismatch { field: "s_checksum_type", value: 2, expected: 1 };
    assert_eq!(kind, FormatError::corrupt(Place::Superblock, wrong));
}

#[test]
fn unknown_features() {
    let mut raw = raw_superblock();
    raw.s_feature_incompat.set(raw.s_feature_incompat.get() | 0x800_0000 | 0x8);
    let e = Superblock::from_raw(raw).unwrap_err();
    assert_eq!(e, FormatError::Incompatible(Incompat::from_bits_retain(0x800_0008)));
    assert_eq!(std::format!("{e}"), "unsupported incompatible features: journal_dev FEATURE_I27");
    let sb = superblock(|raw| raw.s_feature_ro_compat.set(raw.s_feature_ro_compat.get() | 0x1004));
    assert_eq!(sb.features().ro_compat.unsupported().bits(), 0x1004);
}

#[test]
fn features_that_do_not_go_together() {
    let set = |raw: &mut RawSuperblock, edit: fn(&mut Features)| {
        let mut features = raw.features();
        edit(&mut features);
        raw.set_features(features);
    };
    let kind = refused(|raw| {
        set(raw, |f| {
            f.compat.insert(Compat::RESIZE_INODE);
            f.incompat.insert(Incompat::META_BG);
        });
    });
    assert!(matches!(kind, Corrupt::Features { a: "resize_inode", b: "meta_bg", .. }));
    let kind = refused(|raw| {
        set(raw, |f| {
            f.ro_compat.remove(RoCompat::METADATA_CSUM);
            f.incompat.insert(Incompat::CSUM_SEED);
        });
    });
    assert!(matches!(kind, Corrupt::Features { a: "metadata_csum_seed", .. }));
    let kind = refused(|raw| {
        set(raw, |f| {
            f.incompat.remove(Incompat::EXTENTS);
            f.ro_compat.insert(RoCompat::BIGALLOC);
        });
    });
    assert!(matches!(kind, Corrupt::Features { a: "bigalloc", .. }));
}

#[test]
fn fields_out_of_range() {
    let field = |kind: Corrupt| match kind {
        Corrupt::Range { field, .. }
        | Corrupt::Mismatch { field, .. }
        | Corrupt::NotPowerOfTwo { field, .. }
        | Corrupt::BlockOutside { field, .. } => field,
        other => panic!("{other}"),
    };
    type Case = (&'static str, fn(&mut RawSuperblock));
    let cases: &[Case] = &[
        ("s_rev_level", |r| r.s_rev_level.set(2)),
        ("s_log_block_size", |r| r.s_log_block_size.set(7)),
        ("s_log_block_size", |r| r.s_log_block_size.set(u32::MAX)),
        ("s_blocks_per_group", |r| r.s_blocks_per_group.set(0)),
        ("s_blocks_per_group", |r| r.s_blocks_per_group.set(32769)),
        ("s_inode_size", |r| r.s_inode_size.set(0)),
        ("s_inode_size", |r| r.s_inode_size.set(200)),
        ("s_inode_size", |r| r.s_inode_size.set(8192)),
        ("s_desc_size", |r| r.s_desc_size.set(32)),
        ("s_desc_size", |r| r.s_desc_size.set(65)),
        ("s_desc_size", |r| r.s_desc_size.set(2048)),
        ("s_first_data_block", |r| r.s_first_data_block.set(2)),
        ("s_first_data_block", |r| r.s_first_data_block.set(u32::MAX)),
        ("s_blocks_count", |r| r.set_blocks_count(0)),
        ("s_blocks_count", |r| r.set_blocks_count(u64::MAX)),
        ("s_inodes_per_group", |r| r.s_inodes_per_group.set(0)),
        ("s_inodes_per_group", |r| r.s_inodes_per_group.set(40000)),
        ("s_inodes_count", |r| r.s_inodes_count.set(1000)),
        ("s_first_ino", |r| r.s_first_ino.set(3)),
        ("s_first_ino", |r| r.s_first_ino.set(5000)),
        ("s_log_groups_per_flex", |r| r.s_log_groups_per_flex = 32),
        ("s_reserved_gdt_blocks", |r| r.s_reserved_gdt_blocks.set(2000)),
        ("s_journal_inum", |r| r.s_journal_inum.set(5000)),
        ("s_orphan_file_inum", |r| r.s_orphan_file_inum.set(5000)),
        ("s_free_blocks_count", |r| r.set_free_blocks_count(5000)),
        ("s_r_blocks_count", |r| r.set_r_blocks_count(5000)),
        ("s_mmp_block", |r| {
            r.s_feature_incompat.set(r.s_feature_incompat.get() | 0x100);
            r.s_mmp_block.set(1 << 40);
        }),
        ("s_first_meta_bg", |r| {
            r.s_feature_incompat.set(r.s_feature_incompat.get() | 0x10);
            r.s_first_meta_bg.set(9);
        }),
        ("s_clusters_per_group", |r| {
            r.s_feature_ro_compat.set(r.s_feature_ro_compat.get() | 0x200);
            r.s_clusters_per_group.set(4);
        }),
        ("s_blocks_per_group", |r| {
            r.s_feature_ro_compat.set(r.s_feature_ro_compat.get() | 0x200);
            r.s_log_cluster_size.set(6);
        }),
        ("s_log_cluster_size", |r| {
            r.s_feature_ro_compat.set(r.s_feature_ro_compat.get() | 0x200);
            r.s_log_cluster_size.set(1);
        }),
    ];
    for (want, change) in cases {
        assert_eq!(field(refused(change)), *want);
    }
}

#[test]
fn the_first_error_stays() {
    let mut sb = superblock(|_| ());
    assert_eq!(sb.first_error(), None);
    let error = |time, line| ErrorRecord { time, ino: 5, block: 6, func: [b'f'; 32], line, errcode: 7 };
    sb.record_error(&error(100, 1));
    sb.record_error(&error(200, 2));
    assert_eq!(sb.first_error(), Some(error(100, 1)));
    assert_eq!(sb.last_error(), Some(error(200, 2)));
    assert_eq!(sb.error_count(), 2);
    assert!(sb.state().contains(State::ERROR));
}

#[test]
fn random_damage_never_panics() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(3u64);
    std::eprintln!("seed={seed}");
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut good = 0;
    for _ in 0..30_000 {
        let mut raw = raw_superblock();
        for _ in 0..1 + next() % 4 {
            let at = (next() % 0x290) as usize;
            raw.as_mut_bytes()[at] = [0, 1, 0xff, next() as u8][(next() % 4) as usize];
        }
        let Ok(sb) = Superblock::from_raw(raw) else { continue };
        good += 1;
        let geo = sb.geometry();
        let last = crate::GroupNr(geo.groups() - 1);
        let _ = (geo.desc_location(last), geo.super_offset(last), geo.base_meta_blocks(last));
        let _ = (geo.blocks_in_group(last), geo.clusters_in_group(last), geo.group_first_block(last));
        let _ = (geo.inode_location(Ino(geo.inodes_count())), geo.itable_blocks(), sb.want_extra_isize());
        let _ = (geo.group_of_block(Pblk(next())), geo.contains_range(Pblk(next()), next()));
        let _ = Superblock::read(&sb.encode()).is_ok();
    }
    assert!(good > 100, "the damage must leave some that can be read");
}

#[test]
fn a_superblock_over_another_changes_its_first_sector_only() {
    let old = superblock(|_| ());
    assert!(old.csum().has_metadata());
    let before = old.encode();
    let mut sb = old.clone();
    for n in 1..200u64 {
        sb.set_last_mounted(
            &b"/mnt/a/place/that/is/as/long/as/may/be/and/a/bit/longer/stil"[..(n % 60) as usize],
        );
        sb.set_time(SbTime::Mount, 1_800_000_000 + n * n);
        sb.set_free_blocks(n);
        sb.set_state(if n % 3 == 0 { State::VALID } else { State::ORPHAN });
        let over = sb.encode_over(&before);
        assert_eq!(over[512..], before[512..], "{n}");
        let back = Superblock::read(&over).unwrap();
        assert_eq!((back.free_blocks(), back.state()), (n, sb.state()));
        assert_eq!(
            (back.last_mounted(), back.time(SbTime::Mount)),
            (sb.last_mounted(), sb.time(SbTime::Mount))
        );
        sb = back;
    }
}

#[test]
fn a_superblock_that_cannot_keep_its_checksum_has_a_new_one() {
    let old = superblock(|_| ());
    let mut before = old.encode();
    let mut sb = old.clone();
    sb.set_free_blocks(5);
    let long = |sb: &mut Superblock| sb.set_last_mounted(&[b'x'; 60]);
    let mut no_room = sb.clone();
    long(&mut no_room);
    assert_eq!(no_room.encode_over(&before), no_room.encode());
    let mut second_half = sb.clone();
    second_half.update(|raw| raw.s_overhead_clusters.set(9)).unwrap();
    assert_eq!(second_half.encode_over(&before), second_half.encode());
    before[0x78] ^= 1;
    assert_eq!(sb.encode_over(&before), sb.encode(), "what was there is damaged");
    assert_eq!(sb.encode_over(&[]), sb.encode());
}
