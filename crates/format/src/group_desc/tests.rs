use super::*;
use crate::features::RoCompat;
use crate::test_support::superblock;

fn sample() -> GroupDesc {
    GroupDesc {
        block_bitmap: Pblk(100),
        inode_bitmap: Pblk(101),
        inode_table: Pblk(102),
        free_clusters: 40,
        free_inodes: 30,
        used_dirs: 2,
        flags: BgFlags::INODE_ZEROED,
        itable_unused: 20,
        block_bitmap_csum: 0x1234_5678,
        inode_bitmap_csum: 0x9abc_def0,
        checksum: 0,
    }
}

#[test]
fn both_sizes_and_both_checksums() {
    for (bit64, csum) in [(true, true), (true, false), (false, true), (false, false)] {
        let sb = superblock(|raw| {
            let mut f = raw.features();
            f.incompat.set(crate::Incompat::BIT64, bit64);
            if !csum {
                f.ro_compat.remove(RoCompat::METADATA_CSUM);
                f.ro_compat.insert(RoCompat::GDT_CSUM);
            }
            raw.set_features(f);
        });
        let (geo, size) = (sb.geometry(), sb.geometry().desc_size());
        let mut bytes = [0xee; 64];
        sample().encode(GroupNr(0), &mut bytes[..usize::from(size)], size, sb.csum()).unwrap();
        let back = GroupDesc::read(GroupNr(0), &bytes, geo, sb.csum()).unwrap();
        let cut = |sum: u32| if bit64 { sum } else { sum & 0xffff };
        assert_eq!(back.block_bitmap_csum, cut(0x1234_5678));
        assert_eq!(
            GroupDesc { checksum: 0, block_bitmap_csum: 0x1234_5678, inode_bitmap_csum: 0x9abc_def0, ..back },
            sample()
        );
        assert_eq!(bytes[0x14..0x18], [0xee; 4], "the exclusion bitmap is left alone");
        bytes[0x0c] ^= 1;
        let e = GroupDesc::read(GroupNr(0), &bytes, geo, sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::Checksum { place: Place::GroupDesc(GroupNr(0)), .. }), "{e}");
    }
}

#[test]
fn a_small_descriptor_refuses_large_values() {
    let sb = superblock(|_| ());
    for (desc, field) in [
        (GroupDesc { inode_table: Pblk(1 << 32), ..sample() }, "bg_inode_table_lo"),
        (GroupDesc { free_clusters: 65536, ..sample() }, "bg_free_blocks_count_lo"),
    ] {
        let e = desc.encode(GroupNr(0), &mut [0; 32], 32, sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::TooBig { field: f, .. } if f == field), "{e}");
    }
    let e = sample().encode(GroupNr(4), &mut [0; 63], 64, sb.csum()).unwrap_err();
    let short = Corrupt::Short { have: 63, need: 64 };
    assert_eq!(e, FormatError::corrupt(Place::GroupDesc(GroupNr(4)), short));
}

#[test]
fn places_and_counts_outside_the_filesystem() {
    let sb = superblock(|_| ());
    let field = |desc: GroupDesc| match desc.validate(GroupNr(0), sb.geometry()) {
        Err(FormatError::Corrupt {
            kind: Corrupt::BlockOutside { field, .. } | Corrupt::Range { field, .. },
            ..
        }) => field,
        other => panic!("{other:?}"),
    };
    sample().validate(GroupNr(0), sb.geometry()).unwrap();
    assert_eq!(field(GroupDesc { block_bitmap: Pblk(4096), ..sample() }), "bg_block_bitmap");
    assert_eq!(field(GroupDesc { inode_bitmap: Pblk(u64::MAX), ..sample() }), "bg_inode_bitmap");
    assert_eq!(field(GroupDesc { inode_table: Pblk(4040), ..sample() }), "bg_inode_table");
    assert_eq!(field(GroupDesc { inode_table: Pblk(u64::MAX), ..sample() }), "bg_inode_table");
    assert_eq!(field(GroupDesc { free_clusters: 4097, ..sample() }), "bg_free_blocks_count");
    assert_eq!(field(GroupDesc { free_inodes: 1025, ..sample() }), "bg_free_inodes_count");
    assert_eq!(field(GroupDesc { used_dirs: 1025, ..sample() }), "bg_used_dirs_count");
    assert_eq!(field(GroupDesc { itable_unused: 1025, ..sample() }), "bg_itable_unused");
}

#[test]
fn bitmaps_too_short_for_the_group() {
    let sb = superblock(|_| ());
    let e = sample().verify_block_bitmap(GroupNr(2), &[0; 100], sb.geometry(), sb.csum()).unwrap_err();
    let short = Corrupt::Short { have: 100, need: 4096 };
    assert_eq!(e, FormatError::corrupt(Place::BlockBitmap(GroupNr(2)), short));
    let e = sample().verify_inode_bitmap(GroupNr(2), &[0; 128], sb.geometry(), sb.csum()).unwrap_err();
    assert!(matches!(e, FormatError::Checksum { place: Place::InodeBitmap(GroupNr(2)), .. }));
}
