use super::device::DeviceNumber;
use super::*;
use crate::superblock::RawSuperblock;
use crate::test_support::{raw_superblock, superblock};

fn sample(extra_isize: u16) -> Inode {
    Inode {
        mode: 0o100644,
        uid: 0x1_2345,
        gid: 0xffff_fffe,
        size: 0x12_3456_789a,
        links_count: 3,
        blocks: 0x1_0000_0008,
        flags: InodeFlags::EXTENTS | InodeFlags::NODUMP,
        generation: 0xdead_beef,
        file_acl: Pblk(0x1234_5678_9abc),
        atime: Timestamp { sec: 0x3_7fff_ffff, nsec: 999_999_999 },
        ctime: Timestamp { sec: -1, nsec: 1 },
        mtime: Timestamp { sec: 0x8000_0000, nsec: 5 },
        crtime: Timestamp { sec: 1, nsec: 2 },
        dtime: 7,
        i_block: [0x5a; 60],
        version: 0x1_0000_0002,
        projid: 42,
        extra_isize,
    }
}

#[test]
fn round_trip_keeps_other_bytes() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let mut bytes = [0xee; 256];
    format.encode(Ino(12), &sample(32), &mut bytes).unwrap();
    assert_eq!(format.read(Ino(12), &bytes).unwrap(), sample(32));
    assert!(bytes[160..].iter().all(|&b| b == 0xee));
    assert_eq!(bytes[0x70..0x74], [0xee; 4], "i_obso_faddr");
}

#[test]
fn fields_beyond_extra_isize_are_not_touched() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let mut bytes = [0xee; 256];
    format.encode(Ino(12), &sample(8), &mut bytes).unwrap();
    assert!(bytes[0x88..].iter().all(|&b| b == 0xee));
    let back = format.read(Ino(12), &bytes).unwrap();
    assert_eq!((back.projid, back.version >> 32, back.crtime), (0, 0, Timestamp::default()));
    assert_eq!(back.ctime, sample(8).ctime);
    assert_eq!(back.mtime, Timestamp::from_sec(i64::from(i32::MAX)), "cut to 2038");
}

#[test]
fn small_records_end_in_2038() {
    let format = InodeFormat::new(&superblock(|raw| raw.s_inode_size.set(128)));
    let mut bytes = [0; 128];
    format.encode(Ino(12), &sample(0), &mut bytes).unwrap();
    let back = format.read(Ino(12), &bytes).unwrap();
    assert_eq!(back.atime, Timestamp::from_sec(i64::from(i32::MAX)));
    assert_eq!(back.ctime, Timestamp::from_sec(-1));
    assert_eq!(InodeFormat::time_limits(0).1, i64::from(i32::MAX));
    assert_eq!(InodeFormat::time_limits(32).1, 15_032_385_535);
}

#[test]
fn damaged_record_fails_its_checksum() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let mut bytes = [0; 256];
    format.encode(Ino(12), &sample(32), &mut bytes).unwrap();
    for at in [0, 0x7b, 0x7e, 0x81, 0x84, 200, 255] {
        let mut damaged = bytes;
        damaged[at] ^= 0x10;
        let e = format.read(Ino(12), &damaged).unwrap_err();
        assert!(matches!(e, FormatError::Checksum { place: Place::Inode(Ino(12)), .. }), "{at}: {e}");
    }
    assert!(format.read(Ino(13), &bytes).is_err(), "the number is part of the sum");
}

#[test]
fn block_counts_take_three_forms() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let mut bytes = [0; 256];
    for blocks in [8, u64::from(u32::MAX) + 1, (1 << 48) - 8, 1 << 48, 1 << 50] {
        let inode = Inode { blocks, ..sample(32) };
        format.encode(Ino(12), &inode, &mut bytes).unwrap();
        let back = format.read(Ino(12), &bytes).unwrap();
        assert_eq!(back.blocks, blocks);
        assert_eq!(back.flags.contains(InodeFlags::HUGE_FILE), blocks >= 1 << 48);
    }
    let inode = Inode { blocks: 1 << 52, ..sample(32) };
    let e = format.encode(Ino(12), &inode, &mut bytes).unwrap_err();
    assert!(matches!(e, FormatError::TooBig { field: "i_blocks", .. }));
}

#[test]
fn no_huge_file_means_32_bits() {
    let strip = |raw: &mut RawSuperblock| {
        let mut f = raw.features();
        f.ro_compat.remove(RoCompat::HUGE_FILE);
        raw.set_features(f);
    };
    let format = InodeFormat::new(&superblock(strip));
    let e = format.encode(Ino(12), &sample(32), &mut [0; 256]).unwrap_err();
    assert_eq!(e, FormatError::TooBig { field: "i_blocks", value: 0x1_0000_0008 });
}

#[test]
fn directory_sizes_need_large_dir() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let inode = Inode { mode: 0o40755, size: 1 << 33, ..sample(32) };
    let e = format.encode(Ino(12), &inode, &mut [0; 256]).unwrap_err();
    assert!(matches!(e, FormatError::TooBig { field: "i_size", .. }));
}

#[test]
fn extra_isize_must_fit() {
    let format = InodeFormat::new(&superblock(|_| ()));
    for extra in [130, 132, 30] {
        let e = format.encode(Ino(12), &sample(extra), &mut [0; 256]).unwrap_err();
        assert!(matches!(
            e,
            FormatError::Corrupt { kind: Corrupt::Range { field: "i_extra_isize", .. }, .. }
        ));
    }
    let mut raw = raw_superblock();
    let mut f = raw.features();
    f.ro_compat.remove(RoCompat::METADATA_CSUM);
    raw.set_features(f);
    let format = InodeFormat::new(&Superblock::from_raw(raw).unwrap());
    let mut bytes = [0; 256];
    bytes[0x80] = 200;
    assert!(format.read(Ino(12), &bytes).is_err());
}

#[test]
fn negative_size_is_corrupt() {
    let inode = Inode { size: 1 << 63, ..sample(32) };
    let e = inode.validate(Ino(12), 256).unwrap_err();
    assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::Range { field: "i_size", .. }, .. }));
}

#[test]
fn short_record_and_unknown_type() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let e = format.read(Ino(12), &[0; 255]).unwrap_err();
    assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::Short { have: 255, need: 256 }, .. }));
    let inode = Inode { mode: 0o170644, ..sample(32) };
    let e = inode.require_type(Ino(12)).unwrap_err();
    assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::FileType { mode: 0o170644 }, .. }));
}

#[test]
fn device_numbers() {
    for (major, minor, word) in [(8, 1, 0), (255, 255, 0), (256, 0, 4), (8, 256, 4), (4095, 1_048_575, 4)] {
        let dev = DeviceNumber { major, minor };
        let i_block = dev.encode();
        assert_eq!(DeviceNumber::decode(&i_block), dev);
        assert!(i_block[word..word + 4].iter().any(|&b| b != 0), "{dev:?}");
        assert!(dev.fits());
    }
    assert!(!DeviceNumber { major: 4096, minor: 0 }.fits());
}

#[test]
fn ea_inode_fields() {
    let format = InodeFormat::new(&superblock(|_| ()));
    let mut inode = sample(32);
    inode.set_ea_hash(0x8765_4321);
    inode.set_ea_refcount(0x1_0000_0003);
    let mut bytes = [0; 256];
    format.encode(Ino(12), &inode, &mut bytes).unwrap();
    let back = format.read(Ino(12), &bytes).unwrap();
    assert_eq!((back.ea_hash(), back.ea_refcount()), (0x8765_4321, 0x1_0000_0003));
}
